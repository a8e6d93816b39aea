//! `hyperion_vault maintenance`: what has to happen by itself.
//!
//! A worker of the vault's database. On a standby it waits; after a promotion it works, without restart. On a primary it
//! looks for what has run out and what is due, then sleeps until the next date, at most `scan_interval_secs`.
//!
//! The trap it avoids: rotations that cannot be made, since the key service is away, holding up what needs no keys.

use std::ffi::CStr;
use std::time::Duration;

use hyperion_vault_core::schedule as decide;

use super::{derived, hooks, housekeeping, rotation, session, token_uses};
use crate::config;
use crate::error::Result;
use crate::pg::{clock, datum, identity, transaction};
use crate::store::schedule::{self, Lane};

pub const NAME: &CStr = c"hyperion_vault maintenance";

/// Between two passes while there is more: nothing beside a pass, and no busy loop if all that is due is locked.
const BREATH: Duration = Duration::from_millis(20);
/// How often a standby asks whether it still is one.
const RECOVERY_TURN: Duration = Duration::from_secs(1);
/// How often it looks whether ALTER EXTENSION UPDATE has been run, while it is due.
const UPDATE_TURN: Duration = Duration::from_secs(1);

/// Entry point, by name, for the postmaster; the argument is its place in the roster.
#[unsafe(no_mangle)]
#[pgrx::pg_guard]
pub extern "C-unwind" fn hyperion_vault_maintenance_main(arg: pgrx::pg_sys::Datum) {
    session::serve(datum::index(arg), turn)
}

fn turn() -> Result<Duration> {
    if identity::in_recovery() {
        return Ok(RECOVERY_TURN);
    }
    if !session::tables_fit()? {
        return Ok(UPDATE_TURN);
    }
    let rotations = config::rotation_enabled();
    // Each for itself: what fails in one holds up none of the others.
    session::step(token_uses::turn);
    session::step(derived::turn);
    let mut more = session::step(housekeeping::pass).unwrap_or(false);
    if rotations {
        session::step(hooks::call);
        more |= session::step(|| rotation::pass(Lane::Own)).unwrap_or(false);
    }
    if more {
        return Ok(BREATH);
    }
    let next = transaction::run(|| schedule::next(rotations))?;
    Ok(decide::pause(clock(), next, config::scan_interval()).min(token_uses::pause()))
}
