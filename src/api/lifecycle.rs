//! `delete_secret`, `restore_secret`: how a secret ends, and how the end is called off.
//!
//! Client backends on a primary, main thread. No key service is asked. The trap it avoids: a key that outlives its
//! secret; whatever hides or destroys versions also takes their keys out of the cache, when it commits.

use hyperion_vault_core::envelope::Id;
use hyperion_vault_core::policy::Action;
use hyperion_vault_core::secret::Presence;
use pgrx::pg_sys::Datum;

use super::arguments;
use super::gate::no_secret;
use super::keys::{ATTEMPTS, forget, overtaken};
use super::writing::admitted;
use crate::audit;
use crate::error::{Kind, Result, VaultError};
use crate::pg::fcinfo::{Args, Return};
use crate::pg::heap::Write;
use crate::store::secrets::{self, Locked};
use crate::store::versions::{self, StoredKey};

/// Deletes a locked secret and all its versions for good.
pub fn destroy(write: &Write, locked: &Locked<'_>) -> Result<()> {
    let mut keys = versions::delete_all(write, locked.id)?;
    secrets::delete(write, locked)?;
    keys.push(locked.key());
    forget(locked.id, &keys)
}

/// Deletes a locked secret that has run out, whose name another one takes. That is recorded besides the operation that is
/// running.
pub fn replace_gone(write: &Write, name: &str, locked: &Locked<'_>) -> Result<()> {
    destroy(write, locked)?;
    audit::also("delete", Some(name), locked.version);
    Ok(())
}

/// Deletes the retained versions of a locked secret beyond the newest `keep`. Each leaves a record, besides that of the
/// operation that is running.
pub fn purge(write: &Write, secret: Id, keep: u32, now: i64) -> Result<()> {
    record_purged(secret, &versions::purge(write, secret, keep, now)?)
}

/// The same after one more version of the secret was superseded, and nothing else has changed.
pub fn purge_next(write: &Write, secret: Id, keep: u32, now: i64) -> Result<()> {
    record_purged(secret, &versions::purge_next(write, secret, keep, now)?)
}

fn record_purged(secret: Id, purged: &[StoredKey]) -> Result<()> {
    purged.iter().for_each(|key| audit::also("purge", None, key.version));
    forget(secret, purged)
}

/// Hides a locked secret for the length of a window.
fn bury(write: &Write, locked: &Locked<'_>, window: Datum) -> Result<()> {
    secrets::bury(write, locked, window, crate::pg::clock())?;
    let mut keys = versions::keys(locked.id)?;
    keys.push(locked.key());
    forget(locked.id, &keys)
}

/// Locks the row of that name, live, deleted or gone; None if there is none.
fn locked<'w>(write: &'w Write, name: &str) -> Result<Option<Locked<'w>>> {
    for _ in 0..ATTEMPTS {
        if let Some(locked) = secrets::lock_any(write, name)? {
            return Ok(Some(locked));
        }
        // Gone, unless it was replaced while this call waited for the lock.
        if secrets::state(name)?.is_none() {
            return Ok(None);
        }
    }
    Err(overtaken(name))
}

/// `vault.delete_secret(name, recovery_window)`.
pub fn delete_secret(args: &Args) -> Result<Return> {
    let name = admitted(args, &[Action::Delete])?;
    let (window, recoverable) = arguments::recovery_window(args, 1)?;
    let write = Write::begin();
    let locked = locked(&write, name)?.ok_or_else(|| no_secret(name))?;
    match locked.presence {
        Presence::Live if recoverable => bury(&write, &locked, window)?,
        Presence::Deleted { .. } if recoverable => {
            return Err(VaultError::new(Kind::WrongState, format!("secret \"{name}\" is deleted already"))
                .detail("Its recovery window is still open.")
                .hint(
                    "Restore it first to give it another window, or delete it without one to destroy it now.",
                ));
        }
        Presence::Live | Presence::Deleted { .. } => destroy(&write, &locked)?,
        Presence::Gone => return Err(no_secret(name)),
    }
    Ok(Return::Void)
}

/// `vault.restore_secret(name)`. For whoever may delete it.
pub fn restore_secret(args: &Args) -> Result<Return> {
    let name = admitted(args, &[Action::Delete])?;
    let write = Write::begin();
    let locked = locked(&write, name)?.ok_or_else(|| no_secret(name))?;
    match locked.presence {
        Presence::Deleted { .. } => secrets::restore(&write, &locked, crate::pg::clock()).map(Return::Value),
        Presence::Live => Err(VaultError::new(Kind::WrongState, format!("secret \"{name}\" is not deleted"))
            .hint("There is nothing to restore.")),
        Presence::Gone => Err(no_secret(name)),
    }
}
