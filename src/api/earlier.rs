//! Functions of earlier releases that no longer do anything.
//!
//! Install scripts of those releases name their symbols: `pg_upgrade` and old dumps still run such a script, and the
//! upgrade script then drops the functions. Client backends, main thread. The trap it avoids: letting anybody in between
//! the restart with the new library and ALTER EXTENSION UPDATE.

use pgrx::pg_sys::Datum;

use crate::error::Result;
use crate::pg::fcinfo::{Args, Return};
use crate::pg::table;

/// `vault._inside()` of 0.1.0, the condition of its row-level security policies: nobody's statements pass.
pub fn inside(_args: &Args) -> Result<Return> {
    Ok(Return::Value(Datum::from(false)))
}

/// `vault._visible()` of 0.1.0, the condition of its view.
pub fn visible(_args: &Args) -> Result<Return> {
    Err(table::outdated())
}
