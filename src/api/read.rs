//! `read_secret`, `get_secret`, `verify`: the functions that open values.
//!
//! Client backends, main thread, primary or standby. A value is only ever opened from a lookup made *after* its key
//! was at hand: while the key service is asked, the secret may be deleted, replaced or expire, and then its value is
//! not returned any more.

use hyperion_vault_core::envelope::{Format, constant_time_eq, decode_userpass, plaintext_len};
use hyperion_vault_core::policy::Action;
use hyperion_vault_core::secret::{Timestamp, VersionState};
use pgrx::pg_sys::Datum;

use super::gate::{self, no_secret};
use super::keys::{ATTEMPTS, Opener, overtaken};
use crate::error::{Kind, Result, VaultError};
use crate::pg::datum;
use crate::pg::fcinfo::{Args, Return};
use crate::pg::srf::RowSet;
use crate::store::secrets::{self, Current, Sealed};
use crate::store::versions;

/// A secret, and the version of it that was asked for.
struct Found {
    /// The enum value of the secret's kind.
    kind: Datum,
    version: Sealed,
}

/// Looks a version up as of now, and checks the secret's own address list.
fn find(name: &str, version: Option<i32>) -> Result<Found> {
    let Current { version: current, kind, allowed_ips } =
        secrets::current(name)?.ok_or_else(|| no_secret(name))?;
    gate::narrowed(allowed_ips.as_deref())?;
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
fn find_with_key(name: &str, version: Option<i32>) -> Result<(Found, Opener)> {
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
fn admitted(args: &Args, action: Action) -> Result<&str> {
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
    match version.format {
        // Opened in place: no buffer of ours ever holds the value.
        Format::Opaque => {
            let value = datum::varlena_with(plaintext_len(&version.sealed)?, |out| {
                opener.open_into(name, &version, out)
            })?;
            Ok(Return::Value(value))
        }
        Format::Userpass => {
            let payload = opener.open(name, &version)?;
            let (_, password) = decode_userpass(payload.as_bytes())?;
            Ok(Return::Value(datum::varlena(password.as_bytes())))
        }
        Format::Binary => Err(binary(name)),
    }
}

fn binary(name: &str) -> VaultError {
    VaultError::new(Kind::Invalid, format!("secret \"{name}\" is binary"))
        .hint("This version reads and writes text only.")
}

/// `vault.get_secret(name, version)`.
pub fn get_secret(args: &Args) -> Result<Return> {
    let name = admitted(args, Action::Read)?;
    let rows = RowSet::begin(args)?;
    let (Found { version, kind }, opener) = find_with_key(name, args.int(1))?;
    let payload = opener.open(name, &version)?;
    let text = |text: &str| Some(datum::varlena(text.as_bytes()));
    let (value, username, password) = match version.format {
        Format::Opaque => (text(payload.as_str()?), None, None),
        Format::Userpass => {
            let (username, password) = decode_userpass(payload.as_bytes())?;
            (None, text(username), text(password))
        }
        Format::Binary => return Err(binary(name)),
    };
    rows.push(&[
        text(name),
        Some(kind),
        Some(datum::enum_value("vault.secret_format", version.format.as_str())),
        Some(Datum::from(version.version)),
        value,
        username,
        password,
        Some(Datum::from(version.created_at)),
        version.expires_at.map(Datum::from),
    ]);
    rows.finish()
}

/// `vault.verify(name, candidate)`: compares with every live version, whatever the earlier ones said, so that the
/// time taken does not tell which one matched.
pub fn verify(args: &Args) -> Result<Return> {
    let name = admitted(args, Action::Verify)?;
    let candidate = args.text(1).ok_or_else(|| gate::null("candidate"))?;
    for _ in 0..ATTEMPTS {
        let live = live(name)?;
        let mut fetched = false;
        let mut openers = Vec::with_capacity(live.len());
        for version in &live {
            openers.push(match Opener::cached(version)? {
                Some(opener) => opener,
                None => {
                    fetched = true;
                    Opener::fetch(version)?
                }
            });
        }
        if fetched {
            let again = self::live(name);
            let same = |(a, b): (&Sealed, &Sealed)| a.version_id == b.version_id && a.wrapped == b.wrapped;
            let unchanged =
                |again: &Vec<Sealed>| again.len() == live.len() && again.iter().zip(&live).all(same);
            if !again.as_ref().is_ok_and(unchanged) {
                // As in `find_with_key`. A key too many costs one call.
                for (version, opener) in live.iter().zip(&openers) {
                    opener.evict(version);
                }
                again?;
                continue;
            }
        }
        let mut matched = None;
        for (version, opener) in live.iter().zip(&openers) {
            let payload = opener.open(name, version)?;
            let equal = match version.format {
                Format::Opaque | Format::Binary => constant_time_eq(payload.as_bytes(), candidate.as_bytes()),
                Format::Userpass => {
                    let (_, password) = decode_userpass(payload.as_bytes())?;
                    constant_time_eq(password.as_bytes(), candidate.as_bytes())
                }
            };
            // Newest first: the first match is the newest.
            if equal && matched.is_none() {
                matched = Some(version.version);
            }
        }
        let mut values = [Datum::from(matched.is_some()), matched.map_or(Datum::null(), Datum::from)];
        return Ok(args.row(&mut values, &mut [false, matched.is_none()]));
    }
    Err(overtaken(name))
}

/// The current version and those in grace, newest first.
fn live(name: &str) -> Result<Vec<Sealed>> {
    let Found { version: current, .. } = find(name, None)?;
    let grace = versions::in_grace(current.secret, now().0)?;
    Ok(std::iter::once(current).chain(grace).collect())
}
