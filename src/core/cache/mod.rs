//! The shared cache of unwrapped DEKs: what makes a read cost no key-service call.
//!
//! `seqlock` is the protocol one set of entries lives under, `table` the set-associative cache on top of it,
//! `counters` its statistics. `places` is another matter: it remembers where rows were. The structures lie in a
//! zero-filled mapping shared by all processes of one server (all zero is an empty cache). Client backends look up, insert and remove; the key-service worker sweeps. The trap
//! is a key served for another digest, or left in memory after its time: see `tests`.

mod counters;
mod places;
mod seqlock;
mod table;

pub use counters::{Counters, Totals};
pub use places::{Hash, Line, Place, Places, lines_for};
pub use table::{Cleared, Inserted, Lookup, Removed, Set, Table, WAYS, sets_for};

#[cfg(all(test, not(loom)))]
mod tests;

#[cfg(all(test, loom))]
mod loom_tests;
