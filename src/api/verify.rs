//! `verify`, `verify_bytes`: is this the value?
//!
//! Client backends, main thread, primary or standby. The trap it avoids: an answer whose time tells which version
//! matched, or how much of it.

use std::cell::Cell;

use hyperion_vault_core::envelope::{Format, constant_time_eq, decode_userpass};
use hyperion_vault_core::policy::Action;
use pgrx::pg_sys::Datum;

use super::gate::{self, no_secret};
use super::keys::{ATTEMPTS, Opener, overtaken, unmoved};
use super::read::{admitted, current, find};
use crate::audit;
use crate::error::Result;
use crate::pg::fcinfo::{Args, Return};
use crate::store::secrets::{Sealed, Stored};
use crate::store::versions;

/// `vault.verify(name, candidate)`: compares with every live version, whatever the earlier ones said, so that the
/// time taken does not tell which one matched.
pub fn verify(args: &Args) -> Result<Return> {
    compare(args, args.text(1).map(str::as_bytes))
}

/// `vault.verify_bytes(name, candidate)`: the same; text compares as its UTF-8 bytes.
pub fn verify_bytes(args: &Args) -> Result<Return> {
    compare(args, args.bytes(1))
}

fn compare(args: &Args, candidate: Option<&[u8]>) -> Result<Return> {
    let name = admitted(args, Action::Verify)?;
    let candidate = candidate.ok_or_else(|| gate::null("candidate"))?;
    let matched = match only_current(name, candidate)? {
        Some(matched) => matched,
        None => {
            // The current version alone is one row, in which nothing can have moved.
            let several = Cell::new(false);
            match among_live(name, candidate, &several) {
                Err(error) if error.is_corrupted() && several.get() => {
                    unmoved(name, || among_live(name, candidate, &several))?
                }
                compared => compared?,
            }
        }
    };
    audit::detail(if matched.is_some() { "match" } else { "no match" });
    if let Some(version) = matched {
        audit::version(version);
    }
    let mut values = [Datum::from(matched.is_some()), matched.map_or(Datum::null(), Datum::from)];
    Ok(args.row(&mut values, &mut [false, matched.is_none()]))
}

/// Compares with the current version where it is all there is to compare with and its key is cached; else None, and
/// nothing has been compared.
fn only_current(name: &str, candidate: &[u8]) -> Result<Option<Option<i32>>> {
    current(name, |found| {
        let found = found.ok_or_else(|| no_secret(name))?;
        if found.grace_until.is_none_or(|end| end > i64::MIN && end > crate::pg::clock()) {
            return Ok(None);
        }
        let Some(opener) = Opener::cached(&found.version)? else { return Ok(None) };
        audit::version(found.version.version);
        let equal = matches(name, &found.version, &opener, candidate)?;
        Ok(Some(equal.then_some(found.version.version)))
    })
}

fn matches(name: &str, version: &Stored<'_>, opener: &Opener, candidate: &[u8]) -> Result<bool> {
    let payload = opener.open(name, version)?;
    Ok(match version.format {
        Format::Opaque | Format::Binary => constant_time_eq(payload.as_bytes(), candidate),
        Format::Userpass => {
            let (_, password) = decode_userpass(payload.as_bytes())?;
            constant_time_eq(password.as_bytes(), candidate)
        }
    })
}

/// Compares with every live version; returns the newest that matches, and whether there were `several`.
fn among_live(name: &str, candidate: &[u8], several: &Cell<bool>) -> Result<Option<i32>> {
    for _ in 0..ATTEMPTS {
        let live = live(name)?;
        several.set(live.len() > 1);
        let mut fetched = false;
        let mut openers = Vec::with_capacity(live.len());
        for version in &live {
            openers.push(match Opener::cached(&version.stored())? {
                Some(opener) => opener,
                None => {
                    fetched = true;
                    Opener::fetch(version)?
                }
            });
        }
        if fetched {
            let again = self::live(name);
            let same = |(a, b): (&Sealed, &Sealed)| a.stored().is(b);
            let unchanged =
                |again: &Vec<Sealed>| again.len() == live.len() && again.iter().zip(&live).all(same);
            if !again.as_ref().is_ok_and(unchanged) {
                // As in `with_key`. A key too many costs one call.
                for (version, opener) in live.iter().zip(&openers) {
                    opener.evict(version);
                }
                again?;
                continue;
            }
        }
        let mut matched = None;
        for (version, opener) in live.iter().zip(&openers) {
            // Newest first: the first match is the newest.
            if matches(name, &version.stored(), opener, candidate)? && matched.is_none() {
                matched = Some(version.version);
            }
        }
        return Ok(matched);
    }
    Err(overtaken(name))
}

/// The current version and those in grace, newest first.
fn live(name: &str) -> Result<Vec<Sealed>> {
    let current = find(name, None, |found| Ok(found.version.to_sealed()))?;
    let grace = versions::in_grace(current.secret, crate::pg::clock())?;
    Ok(std::iter::once(current).chain(grace).collect())
}
