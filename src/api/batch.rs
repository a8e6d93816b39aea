//! `read_secrets`: many values in one call.
//!
//! Client backends, main thread, primary or standby. Names whose keys are cached are opened at the first look. Those that
//! are not are collected first, so that their keys can be fetched at the same time; then, with the keys at hand, what is
//! there *now* is opened. In between a secret may have been deleted or replaced, see `read`. The trap it avoids: values
//! waiting in memory for the rest of the batch; each is opened, copied into the result and let go of before the next.

use std::collections::HashSet;

use hyperion_vault_core::policy::Action;
use hyperion_vault_core::secret::SecretName;

use super::gate;
use super::keys::Opener;
use super::read::{Found, current, push, with_key};
use crate::audit;
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
    audit::detail(format!("names: {}", names.len()));
    let rows = RowSet::begin(args)?;
    let warm = open_while_warm(&rows, &names)?;
    let rest = &names[warm..];
    for (name, key) in rest.iter().zip(keys(rest)?) {
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
        SecretName::parse(name)?;
    }
    let mut seen = HashSet::new();
    Ok(names.into_iter().filter(|name| seen.insert(name.clone())).collect())
}

/// Adds the rows of the first names, up to one whose key is not cached; returns how many names that were.
fn open_while_warm(rows: &RowSet, names: &[String]) -> Result<usize> {
    for (index, name) in names.iter().enumerate() {
        let warm = with_scratch(|| {
            current(name, |found| {
                let Some(found) = found else { return Ok(true) };
                let Some(opener) = Opener::cached(&found.version)? else { return Ok(false) };
                give(rows, name, &Found { kind: found.kind, version: found.version }, &opener)?;
                Ok(true)
            })
        })?;
        if !warm {
            return Ok(index);
        }
    }
    Ok(names.len())
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
        let version = with_scratch(|| current(name, |found| Ok(found.map(|f| f.version.without_value()))))?;
        keys.push(match version {
            Some(version) => match Opener::cached(&version.stored())? {
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
    enum Now {
        Done,
        NotThere,
        /// Made or replaced since the first look.
        Another,
    }
    let now = current(name, |found| match (found, &key) {
        (None, _) => Ok(Now::NotThere),
        (Some(found), Some(key)) if found.version.is(&key.version) => {
            give(rows, name, &Found { kind: found.kind, version: found.version }, &key.opener)?;
            Ok(Now::Done)
        }
        (Some(_), _) => Ok(Now::Another),
    });
    if let (Ok(Now::NotThere | Now::Another), Some(key)) = (&now, &key) {
        // As in `with_key`.
        key.opener.evict(&key.version);
    }
    match now? {
        Now::Done | Now::NotThere => Ok(()),
        Now::Another => match with_key(name, None, |found, opener| give(rows, name, found, opener)) {
            Err(error) if error.is_not_found() => Ok(()),
            result => result,
        },
    }
}

/// Adds a row, and its record: one for each secret.
fn give(rows: &RowSet, name: &str, found: &Found<'_>, opener: &Opener) -> Result<()> {
    push(rows, name, found, opener)?;
    audit::each(name, found.version.version);
    Ok(())
}
