//! When tokens were used last, written down now and then.
//!
//! In the maintenance worker, on a primary: at its start, and every five minutes. Sessions note uses in shared memory
//! (`core::policy::uses`), which a restart of the server forgets; so at most the last minutes are lost. The trap it avoids:
//! a revocation that waits; locked rows are passed over, and the transaction is short.

use std::cell::Cell;
use std::time::Duration;

use crate::area;
use crate::error::Result;
use crate::pg::heap::Write;
use crate::pg::{monotonic_ms, transaction};
use crate::store::tokens;

const EVERY_MS: u64 = 300_000;

thread_local! {
    static NEXT: Cell<u64> = const { Cell::new(0) };
}

/// How long until there is something to write down again.
pub fn pause() -> Duration {
    Duration::from_millis(NEXT.get().saturating_sub(monotonic_ms()))
}

/// One turn of the maintenance worker, outside of a transaction.
pub fn turn() -> Result<()> {
    let now = monotonic_ms();
    if now < NEXT.get() {
        return Ok(());
    }
    // Before the work: if it fails, it is not tried again every second.
    NEXT.set(now + EVERY_MS);
    let uses = area::get()?.uses();
    transaction::run(|| tokens::note_uses(&Write::begin(), uses))
}
