//! `hyperion_vault hooks`: rotations whose target is a function.
//!
//! A worker of the vault's database that is there only while there is something for it to do: the maintenance worker says
//! so, the launcher starts it, and it leaves when nothing is due. Others' code may sleep until `hook_timeout_ms` cuts it
//! off; in a process of its own it keeps no other rotation waiting. The trap it avoids: a request that comes while it is
//! about to leave; it takes the request away before it looks.

use std::ffi::CStr;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use super::{rotation, session};
use crate::area;
use crate::config;
use crate::error::Result;
use crate::pg::{clock, datum, identity, transaction};
use crate::store::schedule::{self, Lane};

pub const NAME: &CStr = c"hyperion_vault hooks";

/// Between two passes while there is more.
const BREATH: Duration = Duration::from_millis(20);
/// When all that is due is locked by others: each look asks the key service for a key.
const LOCKED: Duration = Duration::from_secs(1);

/// Entry point, by name, for the postmaster; the argument is its place in the roster.
#[unsafe(no_mangle)]
#[pgrx::pg_guard]
pub extern "C-unwind" fn hyperion_vault_hooks_main(arg: pgrx::pg_sys::Datum) {
    session::serve(datum::index(arg), turn)
}

fn turn() -> Result<Duration> {
    area::get()?.header.posts.hooks_wanted.store(false, SeqCst);
    if identity::in_recovery() || !config::rotation_enabled() || !session::tables_fit()? {
        session::leave_for_now();
    }
    let more = rotation::pass(Lane::Hooks)?;
    if !more && !are_due()? {
        session::leave_for_now();
    }
    Ok(if more { BREATH } else { LOCKED })
}

/// Asks for the worker, if there is anything for it. In the maintenance worker.
pub fn call() -> Result<()> {
    if are_due()? {
        let posts = &area::get()?.header.posts;
        if !posts.hooks_wanted.swap(true, SeqCst) {
            // No news: a worker that has failed again and again is not started sooner for it.
            posts.launcher.wake();
        }
    }
    Ok(())
}

fn are_due() -> Result<bool> {
    transaction::run(|| schedule::hooks_are_due(clock()))
}
