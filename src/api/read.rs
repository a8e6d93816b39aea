//! `read_secret`, `read_secret_bytes`, `get_secret`: the functions that open one value.
//!
//! Client backends, main thread, primary or standby. A value is only ever opened from a lookup made *after* its key
//! was at hand: while the key service is asked, the secret may be deleted, replaced or expire, and then its value is
//! not returned any more.

use hyperion_vault_core::envelope::{Format, decode_userpass, plaintext_len};
use hyperion_vault_core::policy::Action;
use hyperion_vault_core::secret::{Presence, Timestamp, VersionState};
use pgrx::pg_sys::Datum;

use super::gate::{self, no_secret};
use super::keys::{self, ATTEMPTS, Opener, overtaken};
use crate::error::{Kind, Result, VaultError};
use crate::pg::datum;
use crate::pg::fcinfo::{Args, Return};
use crate::pg::srf::RowSet;
use crate::store::secrets::{self, Current, Sealed};
use crate::store::versions;

/// A secret, and the version of it that was asked for.
pub struct Found {
    /// The enum value of the secret's kind.
    pub kind: Datum,
    pub version: Sealed,
}

/// The live secret of that name as of now; refuses where its own address list does.
pub fn current(name: &str) -> Result<Option<Current>> {
    let Some(found) = secrets::any(name)? else { return Ok(None) };
    match found.presence {
        Presence::Live => {
            gate::narrowed(found.allowed_ips.as_deref())?;
            Ok(Some(found))
        }
        Presence::Deleted { .. } => Ok(None),
        Presence::Gone => {
            // Nobody was there to do so when it ran out.
            keys::evict(&found.version)?;
            Ok(None)
        }
    }
}

/// Looks a version up as of now.
pub fn find(name: &str, version: Option<i32>) -> Result<Found> {
    let Current { version: current, kind, .. } = current(name)?.ok_or_else(|| no_secret(name))?;
    let Some(number) = version.filter(|number| *number != current.version) else {
        return Ok(Found { kind, version: current });
    };
    let no_version = |detail: &str| {
        VaultError::new(Kind::NotFound, format!("secret \"{name}\" has no readable version {number}"))
            .detail(detail)
            .hint("See vault.list_versions(); the current version and those in grace can be read.")
    };
    let superseded = versions::by_number(current.secret, number)?
        .ok_or_else(|| no_version("There is no such version."))?;
    let state = VersionState::at(now(), false, superseded.expires_at.map(Timestamp));
    if !state.readable_by_number() {
        return Err(no_version("It is superseded and not, or no longer, in grace."));
    }
    Ok(Found { kind, version: superseded })
}

fn now() -> Timestamp {
    Timestamp(crate::pg::clock())
}

/// Finds a version and its key. If the key had to be fetched, finds the version again.
pub fn find_with_key(name: &str, version: Option<i32>) -> Result<(Found, Opener)> {
    for _ in 0..ATTEMPTS {
        let found = find(name, version)?;
        if let Some(opener) = Opener::cached(&found.version)? {
            return Ok((found, opener));
        }
        let opener = Opener::fetch(&found.version)?;
        let again = find(name, version);
        let same = |again: &Found| {
            again.version.version_id == found.version.version_id
                && again.version.wrapped == found.version.wrapped
        };
        if again.as_ref().is_ok_and(same) {
            return Ok((again?, opener));
        }
        // Deleted or replaced while the key service was asked: whoever did that found no key in the cache to wipe.
        opener.evict(&found.version);
        again?;
    }
    Err(overtaken(name))
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
    let name = admitted(args, Action::Read)?;
    let (Found { version, .. }, opener) = find_with_key(name, args.int(1))?;
    text(name, &version, &opener)
}

/// The value as text: that of an opaque secret, the password of a userpass one.
pub fn text(name: &str, version: &Sealed, opener: &Opener) -> Result<Return> {
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
    let name = admitted(args, Action::Read)?;
    let (Found { version, .. }, opener) = find_with_key(name, args.int(1))?;
    match version.format {
        Format::Binary | Format::Opaque => opened(&opener, name, &version).map(Return::Value),
        Format::Userpass => {
            Err(VaultError::new(Kind::Invalid, format!("secret \"{name}\" holds a username and password"))
                .hint("Use vault.read_secret() for the password, or vault.get_secret()."))
        }
    }
}

/// The value as a text or bytea, opened in place: no buffer of ours ever holds it.
fn opened(opener: &Opener, name: &str, version: &Sealed) -> Result<Datum> {
    datum::varlena_with(plaintext_len(&version.sealed)?, |out| opener.open_into(name, version, out))
}

/// `vault.get_secret(name, version)`.
pub fn get_secret(args: &Args) -> Result<Return> {
    let name = admitted(args, Action::Read)?;
    let rows = RowSet::begin(args)?;
    let (found, opener) = find_with_key(name, args.int(1))?;
    push(&rows, name, &found, &opener)?;
    rows.finish()
}

/// Adds the row of `get_secret`. Of a binary secret it has no value: bytes are no text, and a text that stands for them
/// would be taken for the value. It is opened all the same, so that NULL is never the word of somebody who has changed
/// the row.
pub fn push(rows: &RowSet, name: &str, found: &Found, opener: &Opener) -> Result<()> {
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
