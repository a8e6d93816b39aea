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
//! <base>/<spool id>/staging         the end of the last segment, mapped by everybody (see `staging`)
//! ```
//!
//! A spool belongs to one life of one server's shared memory: each start, and each restart after a crash, opens a new one
//! under a fresh random id. So nothing is ever appended to files that this life did not make: not behind a torn tail, and
//! not to a copy that a base backup, a snapshot or `cp` made. Older spools, copies among them, are only read, staging buffer
//! included, until all they hold is in the table. A record's key is spool id and position; a copy has the same, so what was
//! relayed once is not relayed again.
//!
//! # States of a record, and owners
//!
//! | state | where | who changes it, holding the lock in [`Shared`] |
//! |---|---|---|
//! | staged | staging buffer, counted by its header | any process copies it there; its operation may go on |
//! | written | the current segment's file | whoever finds the buffer full, and the relay, by one `write(2)` of all |
//! | closed | a segment that is not the current one | nobody; the relay removes the segment, once what it read of it is durable |
//!
//! Invariants:
//! - One process at a time appends, writes, and makes the next segment: it holds the lock. So frames lie in the order of
//!   their positions without gaps, and a segment is closed only after everything staged for it is in its file.
//! - A frame counts once the buffer's header does, which is stored last: a process that is killed leaves nothing by halves.
//!   The holder's death (a crash: shared memory is made anew) frees the lock with the mapping it lies in; one that leaves
//!   by itself in the middle (it ran out of memory) gives it up on its way out.
//! - What is staged is written at the same place again if that failed: the same bytes, whatever a reader has seen of them.
//! - A frame that is cut short (a full disk, and no buffer or more than it takes) is followed by whole ones. A reader goes on at the next frame
//!   whose MAC is right. The MAC is keyed with a random key, so a caller cannot make his secret's name look like a record
//!   and have it found inside a torn one; and covers the place, so a frame counts nowhere else.
//! - One server at a time uses a base directory: it holds a lock there (the postmaster, from which all its children
//!   inherit it; where that could not have it at the start, the relay). Without the lock nothing is opened, read or removed:
//!   two servers would take each other's spools for those of former lives.
//! - `size` counts every byte below `<base>` that is a record's; appending stops at the limit, and for denials a reserve
//!   earlier, so that who may do nothing cannot keep the others from reading.

mod denials;
mod frame;
mod growth;
mod reader;
mod record;
mod shared;
mod spool;
mod staging;
#[cfg(test)]
mod tests;

pub use denials::{Actor, Denials, Seen, WINDOW_SECS};
pub use frame::{Frames, LONGEST_FRAME, Next, SpoolKey, push};
pub use growth::Growth;
pub use reader::{
    Part, Segment, Spool, intact, position, remove_segment, remove_spool, rest, size_below, split, spools,
};
pub use record::{Client, Outcome, Record};
pub use shared::{Held, Shared, Synced};
pub use spool::{AppendError, Appended, Appender, Class, Facts, Place, Why, give_way, hold_base, open_spool};
pub use staging::{STAGING_BYTES, STAGING_HEADER, Staged, Staging};
