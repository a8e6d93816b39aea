//! Triggers that others put on the extension's tables.
//!
//! Client backends on a primary, main thread. The trap it avoids: row-level security does not keep a role with a stray
//! TRIGGER privilege from attaching a function of his own, which the server would run inside our statements, as
//! `vault_service` and with the flag up that opens every row. REFERENCES is as good: a foreign key with ON DELETE
//! CASCADE deletes from *his* table, and so runs his triggers. So a statement that writes looks first.

use std::ffi::CStr;

use pgrx::pg_sys;

use super::datum;
use super::fcinfo::{Args, Return};
use crate::error::{Kind, Result, VaultError};

/// The tables that a statement may write to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Family {
    Secrets,
    /// Who may do what.
    Access,
    /// The audit log. Its lock keeps other writers out, so nobody else looks at these.
    Log,
}

impl Family {
    fn tables(self) -> &'static [&'static CStr] {
        match self {
            Self::Secrets => &[c"vault_meta", c"secrets", c"secret_versions"],
            Self::Log => &[c"audit_log", c"audit_spools", c"audit_pending"],
            Self::Access => &[c"roles", c"role_permissions", c"role_bindings", c"tokens"],
        }
    }
}

/// The triggers that sql/ makes.
const OURS: [&str; 4] = ["identity_changed", "access_changed", "access_truncated", "refuse_truncate"];

/// The body of a trigger that tells every session, when the transaction commits, that what it remembers of the table
/// is out of date (and this one at once). A relation-cache invalidation: it travels with the transaction, also to
/// standbys, and is undone with it.
pub fn announce_change(args: &Args) -> Result<Return> {
    let Some(relation) = args.trigger_relation() else {
        return Err(VaultError::new(Kind::WrongState, "this function can only be called as a trigger"));
    };
    // SAFETY: the relation is open while its trigger runs.
    unsafe { pg_sys::CacheInvalidateRelcache(relation) };
    Ok(Return::Void)
}

/// Refuses if one of these tables has a trigger that is not ours. What it saw stays true for the transaction: it keeps
/// the lock that a writing statement takes anyway, which CREATE TRIGGER waits for.
pub fn refuse_foreign(family: Family) -> Result<()> {
    for table in family.tables() {
        // SAFETY: syscache lookups on valid strings.
        let oid = unsafe {
            pg_sys::get_relname_relid(table.as_ptr(), pg_sys::get_namespace_oid(c"vault".as_ptr(), true))
        };
        if oid == pg_sys::Oid::INVALID {
            // The statement will say so.
            continue;
        }
        // SAFETY: opened under a lock that lasts until the end of the transaction, closed without giving it up; the
        // trigger list belongs to the open relation and is only read while it is.
        let foreign = unsafe {
            let relation = pg_sys::try_table_open(oid, pg_sys::RowExclusiveLock as i32);
            if relation.is_null() {
                // Dropped meanwhile: the same.
                continue;
            }
            let list = (*relation).trigdesc;
            let count = if list.is_null() { 0 } else { (*list).numtriggers as usize };
            let foreign = (0..count)
                .map(|i| &*(*list).triggers.add(i))
                // Internal ones too: they are foreign keys', and our tables have none.
                .map(|trigger| datum::cstr_lossy(trigger.tgname))
                .find(|name| !OURS.contains(&name.as_str()));
            pg_sys::table_close(relation, pg_sys::NoLock as i32);
            foreign
        };
        if let Some(name) = foreign {
            let table = table.to_string_lossy();
            return Err(VaultError::new(
                Kind::WrongState,
                format!("table \"vault.{table}\" has a trigger that is not the extension's"),
            )
            .detail(format!("Trigger \"{name}\" would run, or have code run, with the rights of the extension."))
            .hint("Drop the trigger, or the foreign key behind it, and revoke the TRIGGER or REFERENCES privilege from whoever made it."));
        }
    }
    Ok(())
}
