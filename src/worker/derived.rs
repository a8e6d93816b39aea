//! What is derived from the vault's rows, made again where it is missing.
//!
//! In the maintenance worker, on a primary: at its start, after one of the tables was altered, and every hour. Triggers keep the
//! derived tables when rows come in without the extension (a restore, a superuser, logical replication); but triggers can be
//! switched off, as `pg_restore --disable-triggers` does, and then nothing but a walk over the rows finds a date. The
//! trap it avoids: a walk over a million secrets each second; VACUUM and ANALYZE look like an alteration, too.

use std::cell::Cell;

use hyperion_vault_core::envelope::Id;

use crate::error::Result;
use crate::pg::heap::Write;
use crate::pg::{monotonic_ms, transaction, worker};
use crate::store::{derived, schedule};

/// At least so long between the end of a walk and the beginning of the next: a million secrets are walked over in about a
/// second.
const PAUSE_MS: u64 = 15_000;

/// However little was heard of an alteration: triggers that stay switched off are none.
const EVERY_MS: u64 = 3_600_000;

thread_local! {
    /// The alterations that the last walk has seen.
    static WALKED: Cell<Option<(u64, u64)>> = const { Cell::new(None) };
    /// When it ended.
    static WALKED_AT: Cell<u64> = const { Cell::new(0) };
}

const FIRST: Id = Id([0; 16]);

/// One turn of the maintenance worker, outside of a transaction.
pub fn turn() -> Result<()> {
    let now = transaction::run(derived::alterations)?;
    let since = monotonic_ms().saturating_sub(WALKED_AT.get());
    let pause = if WALKED.get() == Some(now) { EVERY_MS } else { PAUSE_MS };
    if WALKED.get().is_some() && since < pause {
        return Ok(());
    }
    if walk()? {
        WALKED.set(Some(now));
    }
    WALKED_AT.set(monotonic_ms());
    Ok(())
}

/// False if the worker is to end.
fn walk() -> Result<bool> {
    let mut after = Some(FIRST);
    while let Some(from) = after {
        after = transaction::run(|| {
            let page = derived::walk_secrets(from)?;
            if !page.unsynced.is_empty() {
                let write = Write::begin();
                page.unsynced.iter().try_for_each(|secret| schedule::heal(&write, *secret))?;
            }
            Ok(page.next)
        })?;
        if worker::death_requested() {
            return Ok(false);
        }
    }
    after = Some(FIRST);
    while let Some(from) = after {
        after = transaction::run(|| derived::walk_versions(&Write::begin(), from))?;
        if worker::death_requested() {
            return Ok(false);
        }
    }
    Ok(true)
}
