//! The audit log below SQL: what a record is, how it lies in the spool, and who may append, roll and remove.
//!
//! Runs in client backends (append), in the relay worker (read, remove) and in the postmaster (open). No PostgreSQL:
//! files, atomics in the shared mapping, and bytes.
//!
//! # The spool
//!
//! ```text
//! <base>/<spool id>/identity        id, key, system identifier, time of birth; written once
//! <base>/<spool id>/00000001.log    segments: frames, one behind the other
//! <base>/<spool id>/00000002.log
//! ```
//!
//! A spool belongs to one life of one server's shared memory: each start, and each restart after a crash, opens a new one
//! under a fresh random id. So nothing is ever appended to files that this life did not make: not behind a torn tail, and
//! not to a copy that a base backup, a snapshot or `cp` made. Older spools, copies among them, are only read, until all
//! they hold is in the table. A record's key is spool id and position; a copy has the same, so what was relayed once is
//! not relayed again.
//!
//! # States of a segment, and owners
//!
//! | state | who may write | who may remove |
//! |---|---|---|
//! | current (`Shared::segment` names it) | any backend, by one `write(2)` with `O_APPEND` | nobody |
//! | closed, writers in flight | those that had entered before it was closed | nobody |
//! | finished (no writer in flight) | nobody | the relay, once the transaction that relayed it all is durable |
//!
//! Invariants:
//! - A writer enters (`in_flight += 1`) *before* it looks once more whether its segment is current, and the relay looks at
//!   `in_flight` *after* it saw that the segment is not. All four are `SeqCst`: one of the two sees the other.
//! - One frame is one `write(2)`, so a reader sees a prefix of it at most, and nothing behind it before all of it.
//! - A frame that is cut short (full disk, `kill -9`) is followed by whole ones. A reader goes on at the next frame whose
//!   MAC is right. The MAC is keyed with a random key, so a caller cannot make his secret's name look like a record and
//!   have it found inside a torn one.
//! - One server at a time uses a base directory: it holds a lock there (the postmaster, from which all its children
//!   inherit it; where that could not have it at the start, the relay). Without the lock nothing is opened, read or removed:
//!   two servers would take each other's spools for those of former lives.
//! - `size` counts every byte below `<base>`; appending stops at the limit, and for denials a reserve earlier, so that who
//!   may do nothing cannot keep the others from reading.

mod denials;
mod frame;
mod reader;
mod record;
mod shared;
mod spool;
#[cfg(test)]
mod tests;

pub use denials::{Actor, Denials, Seen, WINDOW_SECS};
pub use frame::{Frames, LONGEST_FRAME, Next, SpoolKey, push};
pub use reader::{
    Part, Segment, Spool, position, remove_segment, remove_spool, rest, segment_exists, size_below, split,
    spools,
};
pub use record::{Client, Outcome, Record};
pub use shared::{Held, Shared, Synced};
pub use spool::{
    AppendError, Appended, Appender, Class, Facts, Place, Why, close_segment, hold_base, open_spool,
};
