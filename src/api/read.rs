//! `read_secret`, `read_secret_bytes`, `get_secret`: the functions that open one value.
//!
//! Client backends, main thread, primary or standby. A value is only ever opened from a lookup made *after* its key
//! was at hand: while the key service is asked, the secret may be deleted, replaced or expire, and then its value is
//! not returned any more. With the key in the cache, which is nearly always, there is one lookup, and the value is opened from
//! the server's page straight into the result.

use std::cell::Cell;

use hyperion_vault_core::envelope::{Format, decode_userpass, plaintext_len};
use hyperion_vault_core::policy::Action;
use hyperion_vault_core::secret::{Presence, Timestamp, VersionState};
use pgrx::pg_sys::Datum;

use super::gate::{self, no_secret};
use super::hook;
use super::keys::{self, ATTEMPTS, Opener, overtaken, unmoved};
use crate::audit;
use crate::error::{Kind, Result, VaultError};
use crate::pg::datum;
use crate::pg::fcinfo::{Args, Return};
use crate::pg::srf::RowSet;
use crate::store::secrets::{self, Current, Sealed, Stored};
use crate::store::versions;

/// A secret, and the version of it that was asked for.
pub struct Found<'a> {
    /// The enum value of the secret's kind.
    pub kind: Datum,
    pub version: Stored<'a>,
}

/// Visits the live secret of that name as of now; refuses where its own address list does.
pub fn current<R>(name: &str, visit: impl FnOnce(Option<&Current<'_>>) -> Result<R>) -> Result<R> {
    secrets::visit(name, |found| {
        let Some(found) = found else { return visit(None) };
        match found.presence {
            Presence::Live => {
                gate::narrowed(found.allowed_ips.as_deref())?;
                visit(Some(found))
            }
            Presence::Deleted { .. } => visit(None),
            Presence::Gone => {
                // Nobody was there to do so when it ran out.
                keys::evict(&found.version)?;
                visit(None)
            }
        }
    })
}

/// Visits a version as of now.
pub fn find<R>(name: &str, version: Option<i32>, visit: impl FnOnce(&Found<'_>) -> Result<R>) -> Result<R> {
    // Given back if the version is not the current one: then it is looked for after the secret's row has been left.
    let looked = current(name, |current| {
        let Current { version: current, kind, .. } = current.ok_or_else(|| no_secret(name))?;
        audit::version(version.unwrap_or(current.version));
        match version.filter(|number| *number != current.version) {
            None => visit(&Found { kind: *kind, version: *current }).map(Ok),
            Some(number) => Ok(Err((visit, current.secret, *kind, number))),
        }
    })?;
    let (visit, secret, kind, number) = match looked {
        Ok(result) => return Ok(result),
        Err(superseded) => superseded,
    };
    let no_version = |detail: &str| {
        VaultError::new(Kind::NotFound, format!("secret \"{name}\" has no readable version {number}"))
            .detail(detail)
            .hint("See vault.list_versions(); the current version and those in grace can be read.")
    };
    versions::visit(secret, number, |superseded| {
        let version = *superseded.ok_or_else(|| no_version("There is no such version."))?;
        let state = VersionState::at(now(), false, version.expires_at.map(Timestamp));
        if !state.readable_by_number() {
            return Err(no_version("It is superseded and not, or no longer, in grace."));
        }
        visit(&Found { kind, version })
    })
}

fn now() -> Timestamp {
    Timestamp(crate::pg::clock())
}

/// Finds a version and opens it with its key.
pub fn with_key<R>(
    name: &str,
    version: Option<i32>,
    open: impl Fn(&Found<'_>, &Opener) -> Result<R>,
) -> Result<R> {
    match version {
        // One row.
        None => with_key_once(name, version, open),
        Some(_) => unmoved(name, || with_key_once(name, version, &open)),
    }
}

/// If the key has to be fetched, finds the version again.
fn with_key_once<R>(
    name: &str,
    version: Option<i32>,
    open: impl Fn(&Found<'_>, &Opener) -> Result<R>,
) -> Result<R> {
    let look = |fetched: Option<&(Sealed, Opener)>, used: &Cell<bool>| {
        find(name, version, |found| {
            if let Some((sealed, opener)) = fetched
                && found.version.is(sealed)
            {
                used.set(true);
                return open(found, opener).map(Ok);
            }
            match Opener::cached(&found.version)? {
                Some(opener) => open(found, &opener).map(Ok),
                None => Ok(Err(found.version.without_value())),
            }
        })
    };
    let mut cold = match look(None, &Cell::new(false))? {
        Ok(opened) => return Ok(opened),
        Err(cold) => cold,
    };
    for _ in 0..ATTEMPTS {
        let opener = Opener::fetch(&cold)?;
        let fetched = (cold, opener);
        let used = Cell::new(false);
        let looked = look(Some(&fetched), &used);
        if !used.get() {
            // Deleted or replaced while the key service was asked: whoever did that found no key in the cache to wipe.
            fetched.1.evict(&fetched.0);
        }
        cold = match looked? {
            Ok(opened) => return Ok(opened),
            Err(cold) => cold,
        };
    }
    Err(overtaken(name))
}

/// What every function that reads asks first. `version`: the one that is read, None for the current one.
fn admitted_to(args: &Args, version: Option<i32>) -> Result<&str> {
    gate::environment()?;
    let name = gate::name(args.text(0))?.as_str();
    if hook::admits(name, version)? {
        return Ok(name);
    }
    admitted(args, Action::Read)
}

/// What every function here asks first.
pub fn admitted(args: &Args, action: Action) -> Result<&str> {
    gate::environment()?;
    let name = gate::name(args.text(0))?.as_str();
    gate::authorize(&[action], name)?;
    gate::plaintext()?;
    Ok(name)
}

/// `vault.read_secret(name, version)`.
pub fn read_secret(args: &Args) -> Result<Return> {
    let name = admitted_to(args, args.int(1))?;
    with_key(name, args.int(1), |found, opener| text(name, &found.version, opener))
}

/// The value as text: that of an opaque secret, the password of a userpass one.
pub fn text(name: &str, version: &Stored<'_>, opener: &Opener) -> Result<Return> {
    match version.format {
        Format::Opaque => opened(opener, name, version).map(Return::Value),
        Format::Userpass => {
            let payload = opener.open(name, version)?;
            let (_, password) = decode_userpass(payload.as_bytes())?;
            Ok(Return::Value(datum::varlena(password.as_bytes())))
        }
        Format::Binary => Err(VaultError::new(Kind::Invalid, format!("secret \"{name}\" is binary"))
            .hint("Use vault.read_secret_bytes().")),
    }
}

/// `vault.read_secret_bytes(name, version)`.
pub fn read_secret_bytes(args: &Args) -> Result<Return> {
    let name = admitted_to(args, args.int(1))?;
    with_key(name, args.int(1), |Found { version, .. }, opener| match version.format {
        Format::Binary | Format::Opaque => opened(opener, name, version).map(Return::Value),
        Format::Userpass => {
            Err(VaultError::new(Kind::Invalid, format!("secret \"{name}\" holds a username and password"))
                .hint("Use vault.read_secret() for the password, or vault.get_secret()."))
        }
    })
}

/// The value as a text or bytea, opened in place: no buffer of ours ever holds it.
fn opened(opener: &Opener, name: &str, version: &Stored<'_>) -> Result<Datum> {
    datum::varlena_with(plaintext_len(version.sealed)?, |out| opener.open_into(name, version, out))
}

/// `vault.get_secret(name, version)`.
pub fn get_secret(args: &Args) -> Result<Return> {
    let name = admitted_to(args, args.int(1))?;
    let rows = RowSet::begin(args)?;
    with_key(name, args.int(1), |found, opener| push(&rows, name, found, opener))?;
    rows.finish()
}

/// Adds the row of `get_secret`. Of a binary secret it has no value: bytes are no text, and a text that stands for them
/// would be taken for the value. It is opened all the same, so that NULL is never the word of somebody who has changed
/// the row.
pub fn push(rows: &RowSet, name: &str, found: &Found<'_>, opener: &Opener) -> Result<()> {
    let version = &found.version;
    let text = |text: &str| Some(datum::varlena(text.as_bytes()));
    let (value, username, password) = match version.format {
        Format::Opaque => (Some(opened(opener, name, version)?), None, None),
        Format::Userpass => {
            let payload = opener.open(name, version)?;
            let (username, password) = decode_userpass(payload.as_bytes())?;
            (None, text(username), text(password))
        }
        Format::Binary => {
            opener.open(name, version)?;
            (None, None, None)
        }
    };
    rows.push(&[
        text(name),
        Some(found.kind),
        Some(datum::enum_value("vault.secret_format", version.format.as_str())),
        Some(Datum::from(version.version)),
        value,
        username,
        password,
        Some(Datum::from(version.created_at)),
        version.expires_at.map(Datum::from),
    ])
}
