//! `vault.vault_meta`: which vault this is.
//!
//! The id is made by the first transaction that seals anything, not by CREATE EXTENSION, so that a dump restores into
//! an empty table. Client backends, main thread.

use std::cell::Cell;

use hyperion_vault_core::envelope::Id;
use pgrx::pg_sys::Datum;

use super::secrets::SECRETS;
use super::versions::VERSIONS;
use crate::error::{Kind, Result, VaultError};
use crate::pg::datum;
use crate::pg::heap::{Wait, Write};
use crate::pg::scan::{self, Index, Key, Table};

thread_local! {
    static META: Table = const {
        Table::new(
            c"vault_meta",
            &[c"singleton", c"vault_id", c"created_at"],
            &[Index { name: c"vault_meta_pkey", columns: &[SINGLETON] }],
        )
        .in_every_version()
    };
}

/// Columns of [`META`].
const SINGLETON: i16 = 1;
const VAULT_ID: i16 = 2;
const CREATED_AT: i16 = 3;
/// The key of the only row.
const ONLY: [Key<'static>; 1] = [Key::Bool(true)];

thread_local! {
    /// The id, and the generation of the relation cache in which it was read. Every change to the table announces itself and
    /// so ends that: those made here do it by themselves, a superuser's by the trigger identity_changed.
    static KNOWN: Cell<Option<(Id, u64)>> = const { Cell::new(None) };
}

/// The vault's id: remembered, since it never changes in the ordinary course of things. Ask it after a lookup or under a lock
/// on a table, which makes this process hear of changes; what is sealed takes it from [`establish`], under the lock.
pub fn remembered_vault_id() -> Result<Option<Id>> {
    let generation = scan::generation();
    if let Some((id, seen)) = KNOWN.get()
        && seen == generation
    {
        return Ok(Some(id));
    }
    let id = vault_id()?;
    // Of before the look: had a change been announced during it, the next call looks again.
    KNOWN.set(id.map(|id| (id, generation)));
    Ok(id)
}

/// The vault's id as of now, None while nothing has been sealed.
pub fn vault_id() -> Result<Option<Id>> {
    META.with(|meta| meta.point(0, &ONLY, None, |row| Ok(row.and_then(|row| row.uuid(VAULT_ID)))))
}

/// Makes `candidate` the vault's id unless it has one, and returns the id it has. May wait for another session's
/// first seal to commit or roll back. Refuses if there are secrets: they were sealed under an id that is lost or not
/// restored yet, and with another in its place they could not be read even when it is found.
pub fn establish(write: &Write, candidate: Id) -> Result<Id> {
    // Before the id is read: from here on to the end of this transaction no import can put another in its place.
    SECRETS.with(|secrets| secrets.hold(write).map(drop))?;
    // What is remembered is not out of date under the lock: whoever changes the id announces it before the lock is free.
    if let Some(id) = remembered_vault_id()? {
        return Ok(id);
    }
    if !SECRETS.with(|secrets| secrets.is_empty())? {
        // The look at the id was earlier: another session's first secret may have come between.
        return vault_id()?.ok_or_else(lost);
    }
    META.with(|meta| {
        let made = meta.insert_unless_present(
            write,
            0,
            &ONLY,
            &[
                (SINGLETON, Some(Datum::from(true))),
                (VAULT_ID, Some(datum::uuid(candidate))),
                (CREATED_AT, Some(Datum::from(crate::pg::clock()))),
            ],
        )?;
        if made.is_some() { meta.announce_change(write) } else { Ok(()) }
    })?;
    vault_id()?.ok_or_else(lost)
}

/// Makes `vault` the vault's id if it has none, or has one under which nothing is sealed any more. Returns the id that
/// it has instead if it cannot be.
///
/// Whatever else is ever bound to the vault's id must be asked for here.
pub fn adopt(write: &Write, vault: Id) -> Result<Option<Id>> {
    let Some(mut id) = vault_id()? else {
        let id = establish(write, vault)?;
        return Ok((id != vault).then_some(id));
    };
    if id != vault {
        // Sessions that are sealing under the former id hold a lock this waits for; those that come later read the
        // new one (`establish`).
        SECRETS.with(|secrets| secrets.lock_alone(write))?;
        let unused = SECRETS.with(|table| table.is_empty())? && VERSIONS.with(|table| table.is_empty())?;
        if unused {
            META.with(|meta| {
                if let Some(row) = meta.lock(write, 0, &ONLY, None, Wait::Block)? {
                    meta.update(write, &row, &[(VAULT_ID, Some(datum::uuid(vault)))])?;
                    meta.announce_change(write)?;
                }
                Ok::<(), VaultError>(())
            })?;
        }
        id = vault_id()?.ok_or_else(lost)?;
    }
    Ok((id != vault).then_some(id))
}

/// Secrets without the vault they belong to.
pub fn lost() -> VaultError {
    VaultError::new(Kind::Corrupted, "stored secret cannot be authenticated")
        .detail("vault.vault_meta has no row, but secrets exist.")
        .hint("Restore vault.vault_meta together with the other tables of the vault.")
}
