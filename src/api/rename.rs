//! `rename_secret`: the same secret under another name.
//!
//! Client backends on a primary, main thread. The name is part of what each version is sealed for, so every version the
//! secret has is opened and sealed again, under its own key with a new nonce; numbers, states and times stay. The
//! pattern of all writers, see `writing`: keys first, then the locks, then the check that nothing has moved. Whoever
//! renames could give himself a name he may read, so renaming takes the right to read as well.
//!
//! The trap it avoids: two renames that lock two names in opposite orders. Rows are locked in the order of their names.

use hyperion_vault_core::policy::Action;
use hyperion_vault_core::secret::Presence;
use pgrx::pg_sys::Datum;

use super::create::{exists, reserved};
use super::gate;
use super::keys::{ATTEMPTS, Opener, overtaken};
use super::lifecycle::replace_gone;
use super::writing::{admitted, invalid, missing};
use crate::audit;
use crate::error::Result;
use crate::pg::fcinfo::{Args, Return};
use crate::pg::heap::Write;
use crate::pg::memory::with_scratch;
use crate::store::secrets::{self, Locked, Sealed};
use crate::store::versions::{self, StoredKey};

/// `vault.rename_secret(name, new_name)`.
pub fn rename_secret(args: &Args) -> Result<Return> {
    let name = admitted(args, &[Action::Delete])?;
    let new_name = gate::name(Some(args.text(1).ok_or_else(|| gate::null("new_name"))?))?.as_str();
    gate::authorize(&[Action::Read], name)?;
    gate::authorize(&[Action::Create], new_name)?;
    audit::subject(name);
    audit::detail(format!("new name: {new_name}"));
    if name == new_name {
        return Err(invalid("new_name is the name the secret has", "Pass another name."));
    }
    let mut damage = None;
    for _ in 0..ATTEMPTS {
        let Some(current) = secrets::current(name)? else { return Err(missing(name)) };
        if let Some(taken) = secrets::state(new_name)? {
            check_free(new_name, taken)?;
        }
        let mut openers = Vec::new();
        for version in versions::all(current.secret)?.into_iter().chain([current]) {
            let opener = match Opener::cached(&version.stored())? {
                Some(opener) => opener,
                None => Opener::fetch(&version)?,
            };
            openers.push((version, opener));
        }
        let write = Write::begin();
        let Some(locked) = lock_both(&write, name, new_name)? else { continue };
        if !unchanged(&locked, &openers)? {
            continue;
        }
        // Other renames may have sealed the versions for another name and back meanwhile, see `unmoved`: all of them, so that
        // nothing is written when the first one does not open.
        match rename(&write, &locked, name, new_name, &openers) {
            Err(error) if error.is_corrupted() => damage = Some(error),
            renamed => return renamed.map(Return::Value),
        }
    }
    if let Some(damage) = damage {
        return Err(damage);
    }
    Err(overtaken(name))
}

fn check_free(new_name: &str, presence: Presence) -> Result<()> {
    match presence {
        Presence::Live => Err(exists(new_name)),
        Presence::Deleted { .. } => Err(reserved(new_name)),
        Presence::Gone => Ok(()),
    }
}

/// Locks the secret, and the row that has the new name if there is one, which must be gone and is destroyed. None if
/// the secret has moved.
fn lock_both<'w>(write: &'w Write, name: &str, new_name: &str) -> Result<Option<Locked<'w>>> {
    let (locked, taken) = if name < new_name {
        let locked = secrets::lock(write, name)?;
        (locked, secrets::lock_any(write, new_name)?)
    } else {
        let taken = secrets::lock_any(write, new_name)?;
        (secrets::lock(write, name)?, taken)
    };
    if let Some(taken) = taken {
        check_free(new_name, taken.presence)?;
        replace_gone(write, new_name, &taken)?;
    }
    Ok(locked)
}

/// Whether the locked secret has exactly the versions whose keys are at hand.
fn unchanged(locked: &Locked<'_>, openers: &[(Sealed, Opener)]) -> Result<bool> {
    let mut now = versions::keys(locked.id)?;
    now.push(locked.key());
    let known = |key: &StoredKey| {
        openers
            .iter()
            .any(|(version, _)| version.version_id == key.version_id && version.wrapped == key.wrapped)
    };
    Ok(now.len() == openers.len() && now.iter().all(known))
}

fn rename(
    write: &Write,
    locked: &Locked<'_>,
    name: &str,
    new_name: &str,
    openers: &[(Sealed, Opener)],
) -> Result<Datum> {
    let mut info = None;
    for (version, opener) in openers {
        let sealed = opener.seal_again(name, new_name, version)?;
        if version.version_id == locked.version_id {
            let now = crate::pg::clock();
            info = Some(secrets::rename(write, locked, new_name, &sealed, now, || exists(new_name))?);
        } else {
            with_scratch(|| versions::seal_again(&Write::begin(), version, &sealed))?;
        }
    }
    info.ok_or_else(|| overtaken(name))
}
