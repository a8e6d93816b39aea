//! What runs out: grace periods, retained versions beyond those that are kept, secrets with an end, deleted secrets whose
//! recovery window is over.
//!
//! A worker of the vault's database, on a primary. Readers judge all of this by the clock themselves; here the rows and the
//! cached keys go. No key service is asked. The trap it avoids: destroying what somebody has just restored or extended;
//! each row is judged again under its lock.

use hyperion_vault_core::secret::Presence;

use crate::api::{keys, lifecycle};
use crate::audit;
use crate::config;
use crate::error::{Result, VaultError};
use crate::pg::heap::Write;
use crate::pg::transaction::{self, Failure};
use crate::pg::{clock, worker};
use crate::store::schedule::{self, Dated, LockedAny, Place, START};
use crate::store::versions;

/// Rows of one transaction: each is a few short statements, so that no lock is held for long.
const BATCH: usize = 64;
/// Transactions of one pass, after which rotations have their turn.
const TRANSACTIONS: usize = 32;

/// Removes what has run out. True if there may be more.
pub fn pass() -> Result<bool> {
    let now = clock();
    Ok(repeat(|after| destroy_gone(now, after))? | repeat(|after| settle_ended(now, after))?)
}

/// What a transaction came to.
#[derive(Default)]
struct Batch {
    /// Where to go on; None if there is no more.
    next: Option<Place>,
    /// What ended it, after what was done before.
    outage: Option<VaultError>,
}

impl Batch {
    fn whole(last: Option<&Dated>, found: usize) -> Self {
        Self { next: last.filter(|_| found == BATCH).map(|dated| dated.at), outage: None }
    }
}

/// Runs `batch` from one place to the next, until it finds nothing more.
fn repeat(batch: impl Fn(Place) -> Result<Batch>) -> Result<bool> {
    let mut after = START;
    for _ in 0..TRANSACTIONS {
        let done = transaction::run(|| batch(after))?;
        if let Some(outage) = done.outage {
            return Err(outage);
        }
        match done.next {
            Some(next) => after = next,
            None => return Ok(false),
        }
        if worker::death_requested() {
            break;
        }
    }
    Ok(true)
}

static DELETE: audit::Operation =
    audit::Operation { function: "maintenance", action: "delete", kind: audit::Kind::Write };
/// The grace of a version is over.
static EXPIRE: audit::Operation =
    audit::Operation { function: "maintenance", action: "expire", kind: audit::Kind::Write };

fn destroy_gone(now: i64, after: Place) -> Result<Batch> {
    let found = schedule::gone(now, after, BATCH)?;
    for dated in &found {
        let write = Write::begin();
        let Some(LockedAny { name, secret }) = schedule::lock(&write, dated.secret)? else {
            schedule::heal(&write, dated.secret)?;
            continue;
        };
        if secret.presence == Presence::Gone {
            let outage = each_for_itself(|| {
                audit::run(&DELETE, || {
                    audit::subject(&name);
                    audit::version(secret.version);
                    lifecycle::destroy(&write, &secret)
                })
            });
            if outage.is_some() {
                return Ok(Batch { outage, ..Batch::default() });
            }
        } else {
            schedule::heal(&write, dated.secret)?;
        }
    }
    Ok(Batch::whole(found.last(), found.len()))
}

/// What cannot be done to one secret keeps nobody else waiting; it is tried again in the next pass. What can be done to
/// none, since no record can be written, is returned.
fn each_for_itself(f: impl FnOnce() -> Result<()>) -> Option<VaultError> {
    match transaction::savepoint(f) {
        Ok(()) => {}
        Err(Failure::Ours(error)) if error.is_outage() => return Some(*error),
        Err(Failure::Ours(error)) => (*error).warn(),
        Err(Failure::Raised(report) | Failure::Server(report)) => crate::error::log_caught(&report),
    }
    None
}

fn settle_ended(now: i64, after: Place) -> Result<Batch> {
    let found = schedule::ended(now, after, BATCH)?;
    for dated in &found {
        let outage = each_for_itself(|| {
            let write = Write::begin();
            let Some(LockedAny { name, secret }) = schedule::lock(&write, dated.secret)? else {
                return schedule::heal(&write, dated.secret);
            };
            let ended = versions::settle(&write, secret.id, now)?;
            let Some((last, others)) = ended.split_last() else { return Ok(()) };
            audit::run(&EXPIRE, || {
                audit::subject(&name);
                audit::version(last.version);
                others.iter().for_each(|key| audit::also(EXPIRE.action, None, key.version));
                keys::forget(secret.id, &ended)?;
                let keep = secret.keep_versions.unwrap_or_else(config::keep_versions).max(0) as u32;
                lifecycle::purge(&write, secret.id, keep, now)
            })
        });
        if outage.is_some() {
            return Ok(Batch { outage, ..Batch::default() });
        }
    }
    Ok(Batch::whole(found.last(), found.len()))
}
