//! `vault.vault_meta`: which vault this is.
//!
//! The id is made by the first transaction that seals anything, not by CREATE EXTENSION, so that a dump restores into
//! an empty table. Client backends, main thread.

use std::cell::Cell;

use hyperion_vault_core::envelope::Id;
use pgrx::pg_sys;

use crate::error::{Kind, Result, VaultError};
use crate::pg::scan::{self, IndexedTable};
use crate::pg::spi::{Bind, Spi, Statement};
use crate::pg::triggers::Family;

thread_local! {
    static META: IndexedTable = const { IndexedTable::new(c"vault_meta", c"vault_meta_pkey", &[]) };
}

const VAULT_ID: i16 = 2;

thread_local! {
    /// The id, and the generation of the relation cache in which it was read. Any change to the table ends that
    /// (trigger identity_changed).
    static KNOWN: Cell<Option<(Id, u64)>> = const { Cell::new(None) };
}

/// The vault's id, for opening what is sealed: remembered, since it never changes in the ordinary course of things.
/// What is sealed takes the id from [`vault_id`]. Ask it after a lookup, which makes this process hear of changes.
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
    let mut id = None;
    META.with(|meta| {
        meta.each(&[], |row| {
            id = row.uuid(VAULT_ID);
            Ok(false)
        })
    })?;
    Ok(id)
}

static ESTABLISH: Statement = Statement::new(
    c"INSERT INTO vault.vault_meta (vault_id, created_at)
      SELECT $1, clock_timestamp() WHERE NOT EXISTS (SELECT FROM vault.secrets) ON CONFLICT DO NOTHING",
    &[pg_sys::UUIDOID],
);

/// Makes `candidate` the vault's id unless it has one, and returns the id it has. May wait for another session's
/// first seal to commit or roll back. Refuses if there are secrets: they were sealed under an id that is lost or not
/// restored yet, and with another in its place they could not be read even when it is found.
pub fn establish(spi: &Spi, candidate: Id) -> Result<Id> {
    // Before the id is read: from here on to the end of this transaction no import can put another in its place.
    spi.begin_writing(Family::Secrets)?;
    if let Some(id) = vault_id()? {
        return Ok(id);
    }
    spi.run(&ESTABLISH, &[Bind::Uuid(candidate)])?;
    vault_id()?.ok_or_else(lost)
}

/// Waits until nobody is writing, and keeps others from it until the end of the transaction.
static ALONE: Statement = Statement::new(c"LOCK TABLE vault.secrets IN SHARE ROW EXCLUSIVE MODE", &[]);
static REPLACE: Statement = Statement::new(
    c"UPDATE vault.vault_meta SET vault_id = $1
       WHERE NOT EXISTS (SELECT FROM vault.secrets) AND NOT EXISTS (SELECT FROM vault.secret_versions)",
    &[pg_sys::UUIDOID],
);

/// Makes `vault` the vault's id if it has none, or has one under which nothing is sealed any more. Returns the id that
/// it has instead if it cannot be.
///
/// Whatever else is ever bound to the vault's id must be asked for here.
pub fn adopt(spi: &Spi, vault: Id) -> Result<Option<Id>> {
    let Some(mut id) = vault_id()? else {
        let id = establish(spi, vault)?;
        return Ok((id != vault).then_some(id));
    };
    if id != vault {
        // Sessions that are sealing under the former id hold a lock this waits for; those that come later read the
        // new one (`establish`).
        spi.run(&ALONE, &[])?;
        spi.run(&REPLACE, &[Bind::Uuid(vault)])?;
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
