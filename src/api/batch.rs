//! `read_secrets`: many values in one call.
//!
//! Client backends, main thread, primary or standby. Names are looked at twice: first to find out which keys are not
//! cached, which are then fetched at the same time; then, with the keys at hand, to open what is there *now*. In between
//! a secret may have been deleted or replaced, see `read`. The trap it avoids: values waiting in memory for the rest of
//! the batch; each is opened, copied into the result and let go of before the next.

use std::collections::HashSet;

use hyperion_vault_core::policy::Action;

use super::gate;
use super::keys::Opener;
use super::read::{Found, current, find_with_key, push};
use crate::config;
use crate::error::{Kind, Result, VaultError};
use crate::pg::fcinfo::{Args, Return};
use crate::pg::memory::with_scratch;
use crate::pg::srf::RowSet;
use crate::store::secrets::Sealed;

/// `vault.read_secrets(names)`: one row for each name there is, in the order given, names given twice once.
pub fn read_secrets(args: &Args) -> Result<Return> {
    gate::environment()?;
    let names = names(args)?;
    gate::authorize_each(Action::Read, names.iter().map(String::as_str))?;
    gate::plaintext()?;
    let rows = RowSet::begin(args)?;
    for (name, key) in names.iter().zip(keys(&names)?) {
        with_scratch(|| read(&rows, name, key))?;
    }
    rows.finish()
}

fn names(args: &Args) -> Result<Vec<String>> {
    let names = match args.text_array(0) {
        None => return Err(gate::null("names")),
        Some(Err(())) => {
            return Err(VaultError::new(Kind::Invalid, "names must not hold a NULL")
                .hint("Pass an array of names, such as '{db/user,db/password}'."));
        }
        Some(Ok(names)) => names,
    };
    let most = config::max_batch();
    if names.len() > most {
        return Err(VaultError::new(Kind::Invalid, "too many names at once")
            .detail(format!("There are {}; at most {most} are allowed.", names.len()))
            .hint("Read them in several calls, or raise hyperion_vault.max_batch."));
    }
    for name in &names {
        gate::name(Some(name))?;
    }
    let mut seen = HashSet::new();
    Ok(names.into_iter().filter(|name| seen.insert(name.clone())).collect())
}

/// A version, without its value, and its key.
struct Key {
    version: Sealed,
    opener: Opener,
}

/// The key of each name's current version, as far as there is one.
fn keys(names: &[String]) -> Result<Vec<Option<Key>>> {
    let mut keys: Vec<Option<Key>> = Vec::with_capacity(names.len());
    let mut cold: Vec<(usize, Sealed)> = Vec::new();
    for name in names {
        let version =
            with_scratch(|| current(name))?.map(|found| Sealed { sealed: Vec::new(), ..found.version });
        keys.push(match version {
            Some(version) => match Opener::cached(&version)? {
                Some(opener) => Some(Key { version, opener }),
                None => {
                    cold.push((keys.len(), version));
                    None
                }
            },
            None => None,
        });
    }
    let fetched = Opener::fetch_all(&cold.iter().map(|(_, version)| version).collect::<Vec<_>>())?;
    for ((index, version), opener) in cold.into_iter().zip(fetched) {
        keys[index] = Some(Key { version, opener });
    }
    Ok(keys)
}

/// Adds the row of one name, if there is such a secret now.
fn read(rows: &RowSet, name: &str, key: Option<Key>) -> Result<()> {
    let now = current(name)?;
    let same = |key: &Key| {
        now.as_ref().is_some_and(|now| {
            now.version.version_id == key.version.version_id && now.version.wrapped == key.version.wrapped
        })
    };
    let key = match key {
        Some(key) if same(&key) => Some(key),
        Some(key) => {
            // As in `find_with_key`.
            key.opener.evict(&key.version);
            None
        }
        None => None,
    };
    let Some(now) = now else { return Ok(()) };
    let found = Found { kind: now.kind, version: now.version };
    match key {
        Some(key) => push(rows, name, &found, &key.opener),
        // Made or replaced since the first look.
        None => match find_with_key(name, None) {
            Ok((found, opener)) => push(rows, name, &found, &opener),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        },
    }
}
