//! The slots taken together: finding a free one, counting states, and the counter of worker lives.
//!
//! Runs in client backends, the key-service worker's main thread, and whoever asks for `vault.status()`. The trap
//! it avoids: every client starting its search at slot 0 and fighting for the same cache line.

use std::sync::atomic::Ordering::{AcqRel, Acquire};

use super::atomic::AtomicU64;
use super::slot::{ClientTicket, SlotOf};
use super::state::{Epoch, State};

/// Counts worker starts in shared memory. All zero is valid: no worker has started yet.
#[repr(C)]
#[derive(Debug)]
pub struct EpochCounter(AtomicU64);

impl EpochCounter {
    #[allow(clippy::new_without_default, reason = "placed in shared memory, hardly ever made by value")]
    pub fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// A starting worker's own epoch, never used before. Call once per worker life, then recover every slot.
    pub fn begin(&self) -> Epoch {
        // AcqRel: pairs with `current`, for whoever orders other state by the epoch.
        Epoch::from_counter(self.0.fetch_add(1, AcqRel).wrapping_add(1))
    }

    /// The epoch of the latest worker, alive or dead; `None` before the first.
    pub fn current(&self) -> Option<Epoch> {
        // Acquire: pairs with `begin`.
        match self.0.load(Acquire) {
            0 => None,
            starts => Some(Epoch::from_counter(starts)),
        }
    }
}

/// Claims the first free slot at or after index `start` (any number: the process number spreads the clients out),
/// going round once. `None`: the queue is full at this moment.
pub fn claim_any<const Q: usize, const R: usize>(
    slots: &[SlotOf<Q, R>],
    start: usize,
    client_proc: i32,
) -> Option<(usize, ClientTicket)> {
    let start = start.checked_rem(slots.len())?;
    let (before, after) = slots.split_at(start);
    let round = after.iter().zip(start..).chain(before.iter().zip(0..));
    round.into_iter().find_map(|(slot, index)| Some((index, slot.try_claim(client_proc)?)))
}

/// Every hold of process number `client_proc`, for its exit callback: give each of them up. See
/// [`SlotOf::held_by`] for who may ask.
pub fn held_by<const Q: usize, const R: usize>(
    slots: &[SlotOf<Q, R>],
    client_proc: i32,
) -> impl Iterator<Item = (usize, ClientTicket)> + '_ {
    slots.iter().enumerate().filter_map(move |(index, slot)| Some((index, slot.held_by(client_proc)?)))
}

/// How many slots are in which state, for `vault.status()`. Each slot is seen at its own moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateCounts {
    counts: [usize; State::ALL.len()],
    /// Slots holding a state no version of this code writes; anything but 0 is a defect.
    pub unknown: usize,
}

impl StateCounts {
    pub fn of<const Q: usize, const R: usize>(slots: &[SlotOf<Q, R>]) -> Self {
        let mut all = Self::default();
        for slot in slots {
            match slot.snapshot().state {
                Some(state) => all.counts[state as usize] += 1,
                None => all.unknown += 1,
            }
        }
        all
    }

    pub fn count(&self, state: State) -> usize {
        self.counts[state as usize]
    }

    /// State and count, in the order of a request's life.
    pub fn iter(&self) -> impl Iterator<Item = (State, usize)> + '_ {
        State::ALL.into_iter().map(|state| (state, self.count(state)))
    }
}
