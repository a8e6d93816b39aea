//! A page of a table in the order of an index on a text: a bounded scan that ends before anything else happens.
//!
//! Client backends, main thread, primary or standby. As in `scan`: the latest snapshot, no planner, no operator look-up, no
//! row-level security. Rows are copied out while the scan runs, so nothing of it is left between two pages.

use std::ffi::CStr;

use pgrx::PgMemoryContexts;
use pgrx::pg_sys::{self, Datum, Oid};

use super::datum;
use super::tuple::{Tuple, layout};
use crate::error::{Kind, Result, VaultError};

/// Visits the rows of `vault.<table>` whose `column`, the first and only one of `vault.<index>`, is from `start` to before
/// `end`, in byte order, at most `rows` of them.
pub fn each(
    table: &CStr,
    index: &CStr,
    column: i16,
    (start, end): (&str, Option<&str>),
    rows: usize,
    mut visit: impl FnMut(&Tuple<'_>) -> Result<()>,
) -> Result<()> {
    super::check_for_interrupts();
    // What the scan allocates, and copies of what was compressed, go with the page: a caller may ask for many of them.
    let mut memory = PgMemoryContexts::new("hyperion_vault page");
    // SAFETY: nothing that is allocated inside is used after it.
    unsafe { memory.switch_to(|_| scan(table, index, column, (start, end), rows, &mut visit)) }
}

fn scan(
    table: &CStr,
    index: &CStr,
    column: i16,
    (start, end): (&str, Option<&str>),
    rows: usize,
    visit: &mut dyn FnMut(&Tuple<'_>) -> Result<()>,
) -> Result<()> {
    let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
    // SAFETY: the relations are opened under a lock and closed in the end, or by the abort after an error. The keys name the
    // table's column behind the index, as the ordered catalog scan wants, with functions and values of its type; they
    // stay in place while the scan runs. A tuple is in place until the next one is asked for.
    unsafe {
        let schema = pg_sys::get_namespace_oid(c"vault".as_ptr(), true);
        let table = pg_sys::get_relname_relid(table.as_ptr(), schema);
        let index = pg_sys::get_relname_relid(index.as_ptr(), schema);
        if table == Oid::INVALID || index == Oid::INVALID {
            return Err(missing());
        }
        let table = pg_sys::try_table_open(table, lock);
        if table.is_null() {
            return Err(missing());
        }
        let Some(layout) = layout((*table).rd_att) else {
            pg_sys::table_close(table, lock);
            return Err(VaultError::internal("a table with columns of a strange kind"));
        };
        let index = pg_sys::index_open(index, lock);
        let mut keys: [pg_sys::ScanKeyData; 2] = std::mem::zeroed();
        let at_least = (pg_sys::BTGreaterEqualStrategyNumber, pg_sys::F_TEXT_GE);
        key(&mut keys[0], column, at_least, datum::varlena(start.as_bytes()));
        if let Some(end) = end {
            let below = (pg_sys::BTLessStrategyNumber, pg_sys::F_TEXT_LT);
            key(&mut keys[1], column, below, datum::varlena(end.as_bytes()));
        }
        let count = if end.is_some() { 2 } else { 1 };
        // No snapshot (null) means the latest one, registered by the scan.
        let scan =
            pg_sys::systable_beginscan_ordered(table, index, std::ptr::null_mut(), count, keys.as_mut_ptr());
        let forward = pg_sys::ScanDirection::ForwardScanDirection;
        let mut outcome = Ok(());
        for _ in 0..rows {
            let tuple = pg_sys::systable_getnext_ordered(scan, forward);
            if tuple.is_null() {
                break;
            }
            outcome = match Tuple::new(tuple, &layout) {
                Some(row) => visit(&row),
                None => Err(crate::store::secrets::unreadable()),
            };
            if outcome.is_err() {
                break;
            }
        }
        pg_sys::systable_endscan_ordered(scan);
        pg_sys::index_close(index, lock);
        pg_sys::table_close(table, lock);
        outcome
    }
}

unsafe fn key(key: &mut pg_sys::ScanKeyData, column: i16, (strategy, function): (u32, u32), value: Datum) {
    // SAFETY: a writable scan key; the function exists and is of texts.
    unsafe {
        pg_sys::ScanKeyEntryInitialize(
            key,
            0,
            column,
            strategy as pg_sys::StrategyNumber,
            Oid::INVALID,
            pg_sys::C_COLLATION_OID,
            Oid::from(function),
            value,
        );
    }
}

fn missing() -> VaultError {
    VaultError::new(Kind::WrongState, "the tables of hyperion_vault are missing")
        .hint("Run CREATE EXTENSION hyperion_vault.")
}
