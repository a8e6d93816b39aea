//! The DEK cache and the transaction: a key enters with the value it seals, and leaves with the row that held it.
//!
//! Client backends, main thread. What a transaction sealed is cached at once (the next read is likely close) and taken
//! out again if it rolls back; what it deleted or purged is taken out when it commits. A rolled-back savepoint takes
//! out all the transaction sealed so far: a later read asks the key service once more, nothing else. Between PREPARE
//! TRANSACTION and COMMIT PREPARED a read may cache a deleted key again; it then leaves with its lifetime.

use std::cell::RefCell;

use hyperion_vault_core::cache::Removed;
use hyperion_vault_core::envelope::Dek;

use crate::area;
use crate::config;
use crate::error::Result;
use crate::pg::exit::{self, End};
use crate::pg::{latch, monotonic_ms};

type Digest = [u8; 32];

thread_local! {
    static SEALED: RefCell<Vec<Digest>> = const { RefCell::new(Vec::new()) };
    static DELETED: RefCell<Vec<Digest>> = const { RefCell::new(Vec::new()) };
}

/// Caches the DEK of a version this transaction is writing.
pub fn sealed(digest: Digest, dek: &Dek) -> Result<()> {
    let area = area::get()?;
    exit::at_transaction_end(ended);
    SEALED.with_borrow_mut(|sealed| sealed.push(digest));
    let done = area.cache().insert(
        &digest,
        dek,
        monotonic_ms(),
        config::dek_cache_ttl_ms(),
        config::dek_cache_stale_ms(),
    );
    area.counters.inserted(latch::my_proc().max(0) as usize, done);
    Ok(())
}

/// Takes the DEK of a version out of the cache once this transaction has deleted it for good.
pub fn deleted(digest: Digest) {
    exit::at_transaction_end(ended);
    DELETED.with_borrow_mut(|deleted| deleted.push(digest));
}

fn ended(end: End) {
    if end != End::Commit {
        evict(&SEALED.take());
    }
    match end {
        End::Commit => {
            SEALED.take();
            evict(&DELETED.take());
        }
        End::Abort => drop(DELETED.take()),
        // What the transaction deleted before the savepoint is still deleted. What it deleted after it is not, and its
        // wiped key will cost one call.
        End::SavepointAbort(_) => {}
    }
}

/// Takes keys out of the cache, now.
pub fn evict(digests: &[Digest]) {
    if digests.is_empty() {
        return;
    }
    // Without the area nothing was cached.
    let Ok(area) = area::get() else { return };
    for digest in digests {
        if area.cache().remove(digest) == Removed::Busy {
            pgrx::warning!("hyperion_vault: a deleted data key stays cached until it expires");
        }
    }
}
