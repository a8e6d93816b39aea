//! A foreign table of the extension's own: a relation that callers' queries scan, whose rows come from code of ours.
//!
//! Client backends, main thread, primary or standby. `plan` tells the planner which conditions bound a scan, `scan` runs
//! one; what a row is, and who sees it, the [`Table`] knows. The traps it avoids:
//!
//! - A scan of a table in the caller's query tells what the caller must not know: the server pushes leakproof conditions
//!   below every filter, and EXPLAIN shows what the filter removed. Here a query sees the rows that the [`Scan`] gives out
//!   and nothing else.
//! - Estimates that depend on the data tell it too. All figures are constants, and no function for ANALYZE is given, so
//!   nothing of the rows gets into the statistics.
//! - Nothing is held between two rows, no lock, pin or snapshot of ours: a cursor may stay open for hours.

mod plan;
mod scan;

use std::cell::Cell;
use std::ffi::CStr;

use hyperion_vault_core::envelope::Id;
use hyperion_vault_core::readable::Bound;
use pgrx::pg_sys::{self, Datum, Oid};

use super::fcinfo::Return;
use crate::error::Result;

/// The columns of the table.
pub const COLUMNS: usize = 5;

/// A foreign table and what scans it. There is one in a process.
pub struct Table {
    /// In whatever order the relation has them; others that a superuser added are NULL.
    pub columns: [(&'static CStr, Type); COLUMNS],
    /// The column whose values bound scans and order rows: a unique text, in byte order.
    pub key: &'static CStr,
    /// What EXPLAIN calls the key's values, and what it says that an unbounded scan returns.
    pub explained: (&'static CStr, &'static CStr),
    pub begin: fn(Bound) -> Result<Box<dyn Scan>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Type {
    Uuid,
    Text,
    Timestamp,
}

impl Type {
    fn oid(self) -> Oid {
        match self {
            Self::Uuid => pg_sys::UUIDOID,
            Self::Text => pg_sys::TEXTOID,
            Self::Timestamp => pg_sys::TIMESTAMPTZOID,
        }
    }
}

/// A value of a row.
pub enum Value<'a> {
    Null,
    Uuid(Id),
    Text(&'a str),
    /// Microseconds since 2000-01-01 00:00 UTC.
    Timestamp(i64),
}

/// A scan that has begun. It ends when it is dropped.
pub trait Scan {
    /// The next row, in the order of [`Table::columns`]; rows come in the order of the key.
    fn next(&mut self) -> Result<Option<[Value<'_>; COLUMNS]>>;
}

thread_local! {
    static TABLE: Cell<Option<&'static Table>> = const { Cell::new(None) };
}

/// The table, once its handler has been called: the server does so before it calls anything else here.
fn table() -> &'static Table {
    match TABLE.get() {
        Some(table) => table,
        None => unreachable!("a foreign table is used before its handler was called"),
    }
}

/// The body of the handler function: what the server calls for `table`.
pub fn handler(table: &'static Table) -> Return {
    TABLE.set(Some(table));
    // SAFETY: palloc0 returns enough zeroed memory or raises; zero is null for every callback, and the tag makes it a node.
    let routine = unsafe {
        let routine = pg_sys::palloc0(size_of::<pg_sys::FdwRoutine>()).cast::<pg_sys::FdwRoutine>();
        (*routine).type_ = pg_sys::NodeTag::T_FdwRoutine;
        (*routine).GetForeignRelSize = Some(plan::rel_size);
        (*routine).GetForeignPaths = Some(plan::paths);
        (*routine).GetForeignPlan = Some(plan::plan);
        (*routine).BeginForeignScan = Some(scan::begin);
        (*routine).IterateForeignScan = Some(scan::iterate);
        (*routine).ReScanForeignScan = Some(scan::rescan);
        (*routine).EndForeignScan = Some(scan::end);
        (*routine).ExplainForeignScan = Some(scan::explain);
        routine
    };
    // No IsForeignScanParallelSafe: a worker has no client address. No AnalyzeForeignTable. Nothing that modifies.
    Return::Value(Datum::from(routine))
}
