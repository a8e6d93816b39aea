//! `hyperion_vault launcher`: starts the workers of the vault's database while the extension is there.
//!
//! A background worker of no database, from consistent state on, so also on a standby. It asks the shared catalog
//! whether there is such a database, and the first worker whether there is an extension in it: that takes a connection,
//! which a worker that finds none gives back at once. Then it looks again: when a session has created the extension or
//! used it (that session says so), else at growing intervals.
//!
//! Whether a worker runs, its post says and not a handle, so that a new launcher finds those its predecessor started.
//!
//! The traps it avoids: a line in the log for each attempt (a worker that ends with status 0 leaves none, and one that
//! connected to a database that is not there would leave two); a restart that races with a command that wants nobody in
//! the database.

use std::sync::atomic::Ordering::Acquire;
use std::time::Duration;

use hyperion_vault_core::launch::{Ended, Record};

use super::ROSTER;
use super::posts::{Posts, Reason};
use crate::area;
use crate::config;
use crate::pg::worker::{self, DynamicWorker, Stage};
use crate::pg::{catalog, exit, identity, latch, monotonic_ms};

const RESTART_SECS: i32 = 1;
/// The longest sleep. Whatever happens wakes it; this is for a wake-up lost between two launchers.
const TURN: Duration = Duration::from_secs(10);
/// While a worker is on its way: the postmaster tells of its start, not of its taking the post.
const STARTING: Duration = Duration::from_millis(50);

pub fn register() {
    worker::register(c"hyperion_vault launcher", c"hyperion_vault_launcher_main", RESTART_SECS);
}

/// Entry point, by name, for the postmaster.
#[unsafe(no_mangle)]
#[pgrx::pg_guard]
pub extern "C-unwind" fn hyperion_vault_launcher_main(_arg: pgrx::pg_sys::Datum) {
    worker::attach();
    worker::join_sessions();
    let area = match area::get() {
        Ok(area) => area,
        Err(e) => e.raise(),
    };
    let posts = &area.header.posts;
    exit::before_exit(|| {
        if let Ok(area) = area::get() {
            area.header.posts.launcher.leave();
        }
    });
    // A predecessor that is still on its way out: the postmaster tries again.
    if posts.launcher.take() {
        let mut launcher = Launcher { posts, workers: Default::default(), news: 0, complained: false };
        while !worker::stop_requested() {
            if worker::reload_requested() {
                worker::reload_configuration();
            }
            // While pg_upgrade carries a cluster over nothing may change in it.
            let pause = if identity::in_binary_upgrade() { TURN } else { launcher.turn() };
            latch::wait(pause);
        }
    }
    worker::exit_for_restart();
}

#[derive(Default)]
struct Charge {
    record: Record,
    /// Started by this launcher and not yet known to have ended.
    handle: Option<DynamicWorker>,
    /// Seen at its post since it was started, or found there.
    seen: bool,
    /// The number of the news when it was started.
    news: u32,
}

struct Launcher {
    posts: &'static Posts,
    workers: [Charge; ROSTER.len()],
    news: u32,
    /// Whether it was said that there is no room for a worker.
    complained: bool,
}

impl Launcher {
    /// Starts who may be started; returns how long nothing needs to be done.
    fn turn(&mut self) -> Duration {
        // Acquire: pairs with the Release in `tell_launcher`; what it tells of was done before.
        let news = self.posts.news.load(Acquire);
        if news != self.news {
            self.news = news;
            for charge in &mut self.workers {
                charge.record.forgive();
            }
        }
        let mut pause = TURN;
        for index in 0..ROSTER.len() {
            pause = pause.min(self.look_after(index));
        }
        pause.max(Duration::from_millis(1))
    }

    fn look_after(&mut self, index: usize) -> Duration {
        let now = monotonic_ms();
        let post = &self.posts.workers[index];
        let charge = &mut self.workers[index];
        if post.pid().is_some() {
            charge.seen = true;
            return TURN;
        }
        if let Some(handle) = &charge.handle {
            // One that has left its post is about to end, or has.
            if handle.stage() != Stage::Ended {
                return STARTING;
            }
        }
        if charge.handle.take().is_some() || charge.seen {
            charge.seen = false;
            let how = match post.reason() {
                Reason::Told => Ended::Orderly,
                Reason::NoExtension => Ended::NothingToDo,
                Reason::Unknown => Ended::Failed,
            };
            charge.record.ended(now, how);
            // Something has changed since it was started, before or after the server was done with it: it made way for a
            // command that is over by now, or looked too early.
            if self.posts.news.load(Acquire) != charge.news {
                charge.record.forgive();
            }
        }
        let found = index == 0 || self.posts.found() == Some(true);
        if self.posts.is_held_off() || !found || !self.posts.is_wanted(index) {
            return TURN;
        }
        if !charge.record.may_start(now) {
            return charge.record.wait(now);
        }
        self.start(index, now)
    }

    fn start(&mut self, index: usize, now: u64) -> Duration {
        let charge = &mut self.workers[index];
        let post = &self.posts.workers[index];
        charge.record.started(now);
        charge.news = self.posts.news.load(Acquire);
        // One that dies before it takes its post is not to be judged by what its predecessor said.
        post.set_reason(Reason::Unknown);
        if !catalog::accepts_connections(&config::database()) {
            self.posts.set_found(index, false);
            post.failed("the vault's database does not exist or takes no connections");
            charge.record.ended(now, Ended::NothingToDo);
            return charge.record.wait(now);
        }
        match worker::start(ROSTER[index].name, ROSTER[index].entry, index) {
            Some(handle) => {
                charge.handle = Some(handle);
                self.complained = false;
                STARTING
            }
            None => {
                if !std::mem::replace(&mut self.complained, true) {
                    crate::error::VaultError::new(
                        crate::error::Kind::Overloaded,
                        format!("could not start \"{}\"", ROSTER[index].name.to_string_lossy()),
                    )
                    .detail("All background workers are in use.")
                    .hint("Raise max_worker_processes and restart the server.")
                    .warn();
                }
                post.failed("no background worker is free: raise max_worker_processes");
                charge.record.ended(now, Ended::Failed);
                charge.record.wait(now)
            }
        }
    }
}
