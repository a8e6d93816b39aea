//! A sequence lock for words in shared memory: readers write nothing, writers exclude each other.
//!
//! Runs in every process attached to the mapping. Even sequence: quiet; odd: a writer is inside. The trap it avoids:
//! the textbook seqlock with plain data is a data race; here the data are `Relaxed` atomics and the order comes from
//! two fences. A writer cannot be interrupted inside: Postgres handles cancel and terminate at interrupt points, of
//! which there is none, and a death that skips the rest (SIGKILL) makes the postmaster remake all shared memory.
//!
//! Pairs:
//! - writer's `fence(Release)` after the odd store ↔ reader's `fence(Acquire)` before its second load: a reader that
//!   saw any word of a write also sees that the sequence has moved on.
//! - writer's final `Release` store ↔ reader's first `Acquire` load: who sees the new even sequence sees all words.
//! - the same store ↔ the next writer's `Acquire` exchange: writers see each other's words.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::ipc::atomic::{AtomicU64, fence};

/// The sequence word. All zero is a valid, quiet lock.
#[repr(transparent)]
pub(super) struct Seqlock(AtomicU64);

impl Seqlock {
    pub(super) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Runs `read` until no writer interfered, at most `attempts` times. What `read` returned in a disturbed attempt
    /// is dropped: it may be torn.
    pub(super) fn read<T>(&self, attempts: u32, mut read: impl FnMut() -> T) -> Option<T> {
        for attempt in 0..attempts {
            // Acquire: pairs with the Release in `Writing::drop`.
            let before = self.0.load(Acquire);
            if before & 1 == 0 {
                let value = read();
                // Pairs with the Release fence in `try_write`.
                fence(Acquire);
                if self.0.load(Relaxed) == before {
                    return Some(value);
                }
            }
            relax(attempt);
        }
        None
    }

    /// Locks out other writers, trying at most `attempts` times; readers retry until the guard is dropped. Hold it
    /// for a handful of stores: no calls out, no allocation, nothing that can panic.
    pub(super) fn write(&self, attempts: u32) -> Option<Writing<'_>> {
        for attempt in 0..attempts {
            let before = self.0.load(Relaxed);
            // Acquire: pairs with the Release in `Writing::drop` of the writer before.
            if before & 1 == 0
                && self.0.compare_exchange(before, before.wrapping_add(1), Acquire, Relaxed).is_ok()
            {
                // Pairs with the Acquire fence in `read`: the odd number comes before every data store.
                fence(Release);
                return Some(Writing { lock: self, quiet: before.wrapping_add(2) });
            }
            relax(attempt);
        }
        None
    }

    #[cfg(all(test, not(loom)))]
    pub(super) fn current(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A write in progress; ends when dropped.
#[must_use = "the write ends at once if the guard is dropped"]
pub(super) struct Writing<'a> {
    lock: &'a Seqlock,
    quiet: u64,
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        // Release: pairs with the Acquire loads and exchanges above.
        self.lock.0.store(self.quiet, Release);
    }
}

/// The first attempts spin (a critical section is some tens of nanoseconds); later ones assume that the writer lost
/// its processor and give ours away.
fn relax(attempt: u32) {
    #[cfg(all(test, loom))]
    {
        let _ = attempt;
        loom::thread::yield_now();
    }
    #[cfg(not(all(test, loom)))]
    if attempt < 16 { std::hint::spin_loop() } else { std::thread::yield_now() }
}
