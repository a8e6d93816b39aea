//! The tables: one file per family. Reads are direct index scans; writes are constant SQL inside the service scope.
//!
//! Client backends, main thread.

pub mod audit;
pub mod changes;
pub mod listing;
pub mod meta;
pub mod readable;
pub mod roles;
pub mod schedule;
pub mod sealed;
pub mod secrets;
mod sql;
pub mod targets;
pub mod tokens;
pub mod versions;

use pgrx::pg_sys::Datum;

use crate::error::Result;
use crate::pg::spi::{Spi, Statement};

/// Runs what gives rows the oids that roles have now, then what finds those whose roles are not there. Calls `each` with the
/// two columns that either returns, and whether the roles are there.
fn each_rebound(
    spi: &Spi,
    rebind: &Statement,
    missing: &Statement,
    mut each: impl FnMut(Datum, Datum, bool) -> Result<()>,
) -> Result<()> {
    for (statement, found) in [(rebind, true), (missing, false)] {
        let rows = spi.run(statement, &[])?;
        for row in rows.iter() {
            if let (Some(first), Some(second)) = (row.raw(1), row.raw(2)) {
                each(first, second, found)?;
            }
        }
    }
    Ok(())
}
