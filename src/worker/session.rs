//! What the workers of the vault's database have in common: post, connection, transactions, and a loop that ends when
//! it is told to.
//!
//! Main thread of such a worker. Connected as the bootstrap superuser; statements run inside the extension's own scope.
//! SIGTERM is the server's own `die`: a statement, a wait for a lock or for the key service ends at once, as FATAL, and
//! between transactions the worker leaves without a word.
//!
//! The traps it avoids: a setting of the database or the role (`ALTER DATABASE … SET default_transaction_read_only`)
//! that stops the vault's own work; an error that ends the worker and takes a second each time; a transaction that is
//! open while the worker sleeps.

use std::cell::Cell;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use pgrx::pg_sys::panic::CaughtError;

use super::ROSTER;
use super::posts::{Post, Posts, Reason};
use crate::area;
use crate::config;
use crate::error::Result;
use crate::pg::worker::{self, Wakeup};
use crate::pg::{catalog, exit, transaction};
use crate::store;

/// After an error of the worker's own, doubled for each in a row.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

thread_local! {
    static POST: Cell<Option<&'static Post>> = const { Cell::new(None) };
    /// Whether a step of the turn has failed.
    static FAILED: Cell<bool> = const { Cell::new(false) };
    /// Whether it was said that the tables do not fit the library.
    static OUTDATED: Cell<bool> = const { Cell::new(false) };
}

/// The life of a worker: `turn` again and again, each time after the pause that it returned. It is a [`step`], and may have
/// some of its own. Does not return.
pub fn serve(index: usize, mut turn: impl FnMut() -> Result<Duration>) -> ! {
    let name = ROSTER[index].name;
    worker::attach_to_statements();
    let area = match area::get() {
        Ok(area) => area,
        Err(e) => e.raise(),
    };
    let posts = &area.header.posts;
    let post = &posts.workers[index];
    if !post.take() {
        worker::exit_quietly();
    }
    POST.set(Some(post));
    // Before the connection: callbacks run in reverse order, so the post is left once the server has forgotten the
    // session.
    exit::after_session(|| {
        if let (Some(post), Ok(area)) = (POST.get(), area::get()) {
            post.leave();
            area.header.posts.launcher.wake();
        }
    });
    leave_if_told(posts, post);
    worker::connect(&config::database(), name);

    let mut failures = 0;
    loop {
        leave_if_told(posts, post);
        reload_if_told();
        FAILED.set(false);
        let pause = step(|| {
            if !transaction::run(|| Ok(catalog::extension_exists()))? {
                return Ok(None);
            }
            posts.set_found(index, true);
            worker::report_running();
            turn().map(Some)
        });
        if pause == Some(None) {
            posts.set_found(index, false);
            leave(post, Reason::NoExtension);
        }
        let mut pause = pause.flatten().unwrap_or(FIRST_PAUSE);
        if FAILED.get() {
            failures += 1;
            pause = FIRST_PAUSE.saturating_mul(1 << (failures - 1).min(10)).min(LONGEST_PAUSE);
        } else {
            failures = 0;
        }
        worker::report_idle();
        // Told during the turn, whose own waits may have taken the latch: the pause is that of the former settings.
        if reload_if_told() {
            continue;
        }
        if worker::nap(pause) == Wakeup::Stop {
            leave(post, Reason::Told);
        }
    }
}

/// Runs one part of a turn, which none of the others waits for: an error, of ours, of the server or a panic, aborts what is
/// open, goes to the server's log and to `vault.status()`, and makes the worker back off once the turn is over.
pub fn step<R>(f: impl FnOnce() -> Result<R>) -> Option<R> {
    let result = attempt(f);
    if result.is_none() {
        FAILED.set(true);
    }
    result
}

/// As [`step`], but the worker does not back off: for what has a pace of its own.
pub fn attempt<R>(f: impl FnOnce() -> Result<R>) -> Option<R> {
    pgrx::PgTryBuilder::new(AssertUnwindSafe(|| match f() {
        Ok(value) => Some(value),
        // Through the server's own error, so that there is one way out of a transaction.
        Err(error) => error.raise(),
    }))
    .catch_others(|error| recover(error))
    .catch_rust_panic(|error| recover(error))
    .execute()
}

fn recover<R>(error: CaughtError) -> Option<R> {
    let report = transaction::report(error);
    transaction::abort();
    crate::error::log_caught(&report);
    if let Some(post) = POST.get() {
        post.failed(report.message());
    }
    None
}

/// Whether the vault's tables fit the library. If ALTER EXTENSION UPDATE is due, the worker says so once and has nothing to
/// do until then.
pub fn tables_fit() -> Result<bool> {
    let error = match transaction::run(|| Ok(store::check_tables()))? {
        Err(error) if error.is_outdated() => error,
        checked => {
            OUTDATED.set(false);
            return checked.map(|()| true);
        }
    };
    if !OUTDATED.replace(true) {
        if let Some(post) = POST.get() {
            post.failed(&error.summary());
        }
        error.warn();
    }
    Ok(false)
}

/// Reads the configuration again if it may have changed; whether it may.
fn reload_if_told() -> bool {
    let told = worker::reload_requested();
    if told {
        worker::reload_configuration();
    }
    told
}

fn leave_if_told(posts: &Posts, post: &Post) {
    if worker::death_requested() || posts.is_held_off() {
        leave(post, Reason::Told);
    }
}

/// Ends a worker that has nothing more to do, until it is wanted again.
pub fn leave_for_now() -> ! {
    match POST.get() {
        Some(post) => leave(post, Reason::Told),
        None => worker::exit_quietly(),
    }
}

fn leave(post: &Post, reason: Reason) -> ! {
    post.set_reason(reason);
    worker::exit_quietly()
}
