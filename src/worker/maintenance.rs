//! `hyperion_vault maintenance`: what has to happen by itself.
//!
//! A worker of the vault's database. On a standby it waits; after a promotion it works, without restart.

use std::ffi::CStr;
use std::time::Duration;

use super::{session, token_uses};
use crate::error::Result;
use crate::pg::{datum, identity};

pub const NAME: &CStr = c"hyperion_vault maintenance";

/// How often a standby asks whether it still is one.
const RECOVERY_TURN: Duration = Duration::from_secs(1);
/// How often a primary looks for work.
const TURN: Duration = Duration::from_secs(1);

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
    token_uses::turn()?;
    Ok(TURN)
}
