//! Hits, misses and the rest, counted in stripes.
//!
//! Runs in every process attached to the mapping. The trap it avoids: one global counter, whose cache line would
//! travel between all cores at every read and cost more than the read.

use std::sync::atomic::Ordering::Relaxed;

use crate::ipc::atomic::AtomicU64;

/// Stripes; processes share them by number modulo this. More than the cores of most machines; 8 kB.
const STRIPES: usize = 64;

/// Statistics of the cache. All zero is valid; numbers wrap, and are `Relaxed`: they order nothing.
#[repr(C)]
pub struct Counters {
    stripes: [Stripe; STRIPES],
}

/// 128 bytes apart: adjacent-line prefetching would make pairs of 64-byte lines travel together.
#[repr(C, align(128))]
struct Stripe {
    hits: AtomicU64,
    stale: AtomicU64,
    misses: AtomicU64,
    inserts: AtomicU64,
    evictions: AtomicU64,
}

/// Sums over all stripes since the server's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub hits: u64,
    /// Entries past their TTL that were found (and served only during an outage).
    pub stale: u64,
    pub misses: u64,
    pub inserts: u64,
    /// Live entries that had to make room.
    pub evictions: u64,
}

impl Counters {
    #[allow(clippy::new_without_default, reason = "placed in shared memory, hardly ever made by value")]
    pub fn new() -> Self {
        let stripe = || Stripe {
            hits: AtomicU64::new(0),
            stale: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            inserts: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
        };
        Self { stripes: std::array::from_fn(|_| stripe()) }
    }

    /// Counts what a lookup found, on the stripe of this process number (any number will do).
    pub fn looked_up(&self, proc: usize, found: &super::Lookup) {
        let stripe = self.stripe(proc);
        match found {
            super::Lookup::Hit(_) => &stripe.hits,
            super::Lookup::Stale { .. } => &stripe.stale,
            super::Lookup::Miss => &stripe.misses,
        }
        .fetch_add(1, Relaxed);
    }

    /// Counts what an insert did.
    pub fn inserted(&self, proc: usize, done: super::Inserted) {
        let stripe = self.stripe(proc);
        match done {
            super::Inserted::Fresh => {
                stripe.inserts.fetch_add(1, Relaxed);
            }
            super::Inserted::Evicted => {
                stripe.inserts.fetch_add(1, Relaxed);
                stripe.evictions.fetch_add(1, Relaxed);
            }
            super::Inserted::Busy => {}
        }
    }

    pub fn totals(&self) -> Totals {
        let mut sum = Totals::default();
        for stripe in &self.stripes {
            sum.hits = sum.hits.wrapping_add(stripe.hits.load(Relaxed));
            sum.stale = sum.stale.wrapping_add(stripe.stale.load(Relaxed));
            sum.misses = sum.misses.wrapping_add(stripe.misses.load(Relaxed));
            sum.inserts = sum.inserts.wrapping_add(stripe.inserts.load(Relaxed));
            sum.evictions = sum.evictions.wrapping_add(stripe.evictions.load(Relaxed));
        }
        sum
    }

    fn stripe(&self, proc: usize) -> &Stripe {
        &self.stripes[proc % STRIPES]
    }
}
