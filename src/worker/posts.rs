//! Who is at work: one post for the launcher and one for each worker of the database, in shared memory.
//!
//! A worker takes its post before it connects and leaves it after the server has forgotten its session, so that an
//! empty post means: nobody of ours is in the database. A session that wants them gone raises `held_off`, then looks at
//! the posts; a worker takes its post, then looks at `held_off`. With sequentially consistent order at least one of the
//! two sees the other.
//!
//! Every process. All zero is: nobody there, nothing known.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64};

use hyperion_vault_core::note::Note;

use super::ROSTER;
use crate::pg::{latch, worker};

/// The place of one process.
#[repr(C)]
pub struct Post {
    pid: AtomicI32,
    /// Process number plus one, to wake it; 0: none.
    proc_number: AtomicI32,
    pub starts: AtomicU64,
    /// Unix seconds.
    pub started_at: AtomicU64,
    /// Why the last one ended, as it saw it: [`Reason`] as a number.
    reason: AtomicU32,
    pub last_error: Note,
    /// Unix seconds.
    pub last_error_at: AtomicU64,
}

/// Why a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It did not get to say.
    Unknown = 0,
    /// Told to stop, or held off.
    Told = 1,
    /// The extension is not there.
    NoExtension = 2,
}

impl Post {
    /// Takes the post for this process; false if another one has it.
    pub fn take(&self) -> bool {
        if self.pid.compare_exchange(0, worker::my_pid(), SeqCst, Relaxed).is_err() {
            return false;
        }
        self.reason.store(Reason::Unknown as u32, Relaxed);
        self.starts.fetch_add(1, Relaxed);
        self.started_at.store(crate::pg::unix_now(), Relaxed);
        // Release: pairs with the Acquire in `wake`.
        self.proc_number.store(latch::my_proc() + 1, Release);
        true
    }

    /// Leaves the post, if this process has it.
    pub fn leave(&self) {
        if self.pid.load(Relaxed) == worker::my_pid() {
            self.proc_number.store(0, Release);
            self.pid.store(0, SeqCst);
        }
    }

    pub fn pid(&self) -> Option<i32> {
        Some(self.pid.load(SeqCst)).filter(|pid| *pid != 0)
    }

    pub fn wake(&self) {
        // Acquire: pairs with the Release in `take`.
        latch::wake(self.proc_number.load(Acquire) - 1);
    }

    pub fn set_reason(&self, reason: Reason) {
        self.reason.store(reason as u32, Release);
    }

    pub fn reason(&self) -> Reason {
        match self.reason.load(Acquire) {
            1 => Reason::Told,
            2 => Reason::NoExtension,
            _ => Reason::Unknown,
        }
    }

    /// Remembers what went wrong. Never names a secret: `vault.status()` shows it.
    pub fn failed(&self, message: &str) {
        self.last_error.write(message);
        self.last_error_at.store(crate::pg::unix_now(), Relaxed);
    }
}

/// A part of the mapping's header.
#[repr(C)]
pub struct Posts {
    pub launcher: Post,
    pub workers: [Post; ROSTER.len()],
    /// How many transactions want nobody of ours in the database.
    pub held_off: AtomicU32,
    /// Whether the worker for hooks has something to do.
    pub hooks_wanted: AtomicBool,
    /// Moves when the launcher should look again, whatever it found before.
    pub news: AtomicU32,
    /// Whether the extension was found: 0 not asked, 1 yes, 2 no.
    found: AtomicU32,
}

impl Posts {
    pub fn is_held_off(&self) -> bool {
        self.held_off.load(SeqCst) > 0
    }

    /// Has the launcher look again now.
    pub fn tell_launcher(&self) {
        self.news.fetch_add(1, Release);
        self.launcher.wake();
    }

    /// Whether the worker of that place in the roster should run, where there is an extension.
    pub fn is_wanted(&self, index: usize) -> bool {
        !ROSTER[index].on_demand || self.hooks_wanted.load(SeqCst)
    }

    /// Says whether the extension is there, if this is the worker of that place in the roster who finds that out: others may
    /// have looked before it did. Once it is there, the launcher starts those that wait for that.
    pub fn set_found(&self, index: usize, found: bool) {
        if index != 0 {
            return;
        }
        let now = if found { 1 } else { 2 };
        // Release: pairs with the Acquire in `found`, for a launcher that is awake already.
        if self.found.swap(now, Release) != now && found {
            self.launcher.wake();
        }
    }

    pub fn found(&self) -> Option<bool> {
        match self.found.load(Acquire) {
            1 => Some(true),
            2 => Some(false),
            _ => None,
        }
    }
}
