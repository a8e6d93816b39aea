//! What the extension's own triggers are told.
//!
//! They are for what a superuser does to the tables in SQL (a restore, a repair) and for logical replication: the
//! extension's own changes fire none and tell by themselves. The server's process of whoever makes the change, main thread.
//! The trap it avoids: statement triggers, which do not run where logical replication applies a change.

use pgrx::pg_sys;

use super::fcinfo::{Args, Return};
use super::scan::Table;
use super::tuple::Tuple;
use crate::error::{Kind, Result, VaultError};

/// The body of a trigger that tells every session, when the transaction commits, that what it remembers of the table
/// is out of date (and this one at once). See [`Table::announce_change`].
pub fn announce_change(args: &Args) -> Result<Return> {
    let data = trigger(args)?;
    // SAFETY: the relation is open while its trigger runs.
    unsafe { pg_sys::CacheInvalidateRelcache((*data).tg_relation) };
    Ok(Return::Void)
}

/// Calls `visit` with the row as it was and as it is, in a row trigger on that table: None for one that there is not.
pub fn changed_row(
    args: &Args,
    table: &Table,
    visit: impl FnOnce(Option<&Tuple<'_>>, Option<&Tuple<'_>>) -> Result<()>,
) -> Result<Return> {
    let data = trigger(args)?;
    // SAFETY: the trigger's data is the server's while it runs; which of its tuples there are, the event says.
    unsafe {
        let event = (*data).tg_event;
        if event & pg_sys::TRIGGER_EVENT_ROW == 0 {
            return Err(misplaced());
        }
        let (old, new) = match event & pg_sys::TRIGGER_EVENT_OPMASK {
            pg_sys::TRIGGER_EVENT_INSERT => (std::ptr::null_mut(), (*data).tg_trigtuple),
            pg_sys::TRIGGER_EVENT_DELETE => ((*data).tg_trigtuple, std::ptr::null_mut()),
            _ => ((*data).tg_trigtuple, (*data).tg_newtuple),
        };
        table.visit_tuples((*(*data).tg_relation).rd_id, old, new, visit)?;
    }
    Ok(Return::Void)
}

fn trigger(args: &Args) -> Result<*mut pg_sys::TriggerData> {
    args.trigger().ok_or_else(misplaced)
}

fn misplaced() -> VaultError {
    VaultError::new(Kind::WrongState, "this function can only be called as one of the extension's triggers")
}
