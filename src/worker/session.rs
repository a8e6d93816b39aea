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

/// After an error of the worker's own, doubled for each in a row.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

thread_local! {
    static POST: Cell<Option<&'static Post>> = const { Cell::new(None) };
}

/// The life of a worker: `turn` again and again, each time after the pause that it returned. An error that leaves it
/// aborts its transaction and is shown in `vault.status()`. Does not return.
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
        if worker::reload_requested() {
            worker::reload_configuration();
        }
        let pause = match attempt(|| {
            if !transaction::run(|| Ok(catalog::extension_exists()))? {
                return Ok(None);
            }
            posts.set_found(true);
            worker::report_running();
            turn().map(Some)
        }) {
            Ok(Some(pause)) => {
                failures = 0;
                pause
            }
            Ok(None) => {
                posts.set_found(false);
                leave(post, Reason::NoExtension);
            }
            Err(message) => {
                post.failed(&message);
                failures += 1;
                FIRST_PAUSE.saturating_mul(1 << (failures - 1).min(10)).min(LONGEST_PAUSE)
            }
        };
        worker::report_idle();
        if worker::nap(pause) == Wakeup::Stop {
            leave(post, Reason::Told);
        }
    }
}

/// Runs `f`; an error, of ours, of the server or a panic, aborts what is open, goes to the server's log and comes back as
/// its message.
pub fn attempt<R>(f: impl FnOnce() -> Result<R>) -> Result<R, String> {
    pgrx::PgTryBuilder::new(AssertUnwindSafe(|| match f() {
        Ok(value) => Ok(value),
        // Through the server's own error, so that there is one way out of a transaction.
        Err(error) => error.raise(),
    }))
    .catch_others(|error| Err(recover(error)))
    .catch_rust_panic(|error| Err(recover(error)))
    .execute()
}

fn recover(error: CaughtError) -> String {
    let report = match error {
        CaughtError::PostgresError(report)
        | CaughtError::ErrorReport(report)
        | CaughtError::RustPanic { ereport: report, .. } => report,
    };
    transaction::abort();
    let message = report.message().to_owned();
    crate::error::log_caught(&report);
    message
}

fn leave_if_told(posts: &Posts, post: &Post) {
    if worker::death_requested() || posts.is_held_off() {
        leave(post, Reason::Told);
    }
}

fn leave(post: &Post, reason: Reason) -> ! {
    post.set_reason(reason);
    worker::exit_quietly()
}
