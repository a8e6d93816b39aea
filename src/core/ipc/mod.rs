//! The request queue between client backends and the key-service worker: slots in shared memory, and the messages
//! in them.
//!
//! `state` is the protocol as a pure table, `slot` runs it on atomics, `queue` looks at all slots at once, `inbox` tells
//! the worker which of them to look at, `wire` gives the payload bytes their meaning. Waiting and waking (latches) are the caller's: nothing here blocks. The
//! structures lie in a zero-filled mapping shared by all processes of one server; the trap is a slot that two
//! parties own, or none: see the tests in `model` (every interleaving) and `tests` (real threads).

pub(crate) mod atomic;
mod inbox;
mod queue;
mod slot;
mod state;
mod wire;

pub use inbox::{Inbox, InboxOf};
pub use queue::{EpochCounter, StateCounts, claim_any, held_by};
pub use slot::{
    Answer, ClientTicket, Completed, Poll, REQUEST_BYTES, RESPONSE_BYTES, Reclaimed, Recovered,
    STATUS_OVERSIZE, Slot, SlotOf, SlotView, Taken, WorkerTicket, WriteError,
};
pub use state::{Epoch, Event, Owner, State, Word, transition};
pub use wire::{ErrorKind, MAX_WRAPPED, Malformed, Request, Response};

#[cfg(all(test, not(loom)))]
mod model;
#[cfg(all(test, not(loom)))]
mod tests;
#[cfg(all(test, not(loom)))]
mod traced;
#[cfg(all(test, not(loom)))]
mod wire_tests;

#[cfg(all(test, loom))]
mod loom_tests;
