//! The staging buffer: the end of the current segment, in a file that all processes of the server have mapped.
//!
//! ```text
//! segment number (8) | bytes of it in its file (upper 4), bytes staged behind them (lower 4) | zeros | staged bytes
//! ```
//!
//! A `write(2)` for each record is a tenth of what an audited read costs. So records are copied into this file, and what
//! has gathered goes into the segment in one `write(2)`: when the buffer is full, when the relay comes by, when a record
//! is to be on disk. The kernel owns the pages, as it does those of a file that was written to: they survive the death of
//! any process and of the server (`kill -9`, a container's end), and not that of the machine.
//!
//! Written under the lock of [`super::Shared`]: the bytes first, then the header, in one store for the two lengths. A
//! process that dies in between leaves bytes that no header counts. The header of a former life tells what never reached
//! its segment; [`settle`](super::settle) appends it there, and decides by the frames themselves how much of it has.
//!
//! The traps it avoids: memory that a full disk takes away (a store into a mapping cannot fail, only kill: the file is
//! written full of zeros before it is mapped, on file systems that keep what they have given, see [`super::Facts`]); bytes of
//! an earlier filling that a machine's crash left in the place of newer ones (a frame's MAC covers where it lies).

use std::io;
use std::path::Path;

/// In the spool's directory.
pub(super) const STAGING: &str = "staging";
/// Bytes before the staged ones.
pub const STAGING_HEADER: usize = 64;
/// The whole file: some thousand records.
pub const STAGING_BYTES: usize = 256 << 10;

/// What the header says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Staged {
    pub segment: u64,
    /// Bytes of the segment that are in its file.
    pub written: u32,
    /// Bytes that follow those.
    pub length: u32,
}

impl Staged {
    /// The header's two words. The first changes only while nothing is staged.
    pub fn words(self) -> [u64; 2] {
        [self.segment, u64::from(self.written) << 32 | u64::from(self.length)]
    }

    pub fn from_words([segment, lengths]: [u64; 2]) -> Self {
        Self { segment, written: (lengths >> 32) as u32, length: lengths as u32 }
    }

    /// From the whole file: with what is staged, if that can be.
    pub(super) fn read(file: &[u8]) -> Option<(Self, &[u8])> {
        let (header, bytes) = file.split_at_checked(STAGING_HEADER)?;
        let word =
            |at: usize| header.get(at..at + 8).and_then(|word| word.try_into().ok()).map(u64::from_ne_bytes);
        let staged = Self::from_words([word(0)?, word(8)?]);
        Some((staged, bytes.get(..staged.length as usize)?))
    }
}

/// The file as one process has it. Whoever calls holds the lock.
pub trait Staging: Sized {
    /// The file, which is there, is private and has [`STAGING_BYTES`].
    fn open(path: &Path) -> io::Result<Self>;
    /// Copies bytes to a place among the staged ones. There is room: `at + bytes.len() <= STAGING_BYTES - STAGING_HEADER`.
    fn put(&mut self, at: usize, bytes: &[u8]);
    /// Makes the header say so, in native byte order; the second word in one store, after everything before.
    fn publish(&mut self, staged: Staged);
    /// The first bytes that are staged.
    fn with<R>(&self, length: usize, f: impl FnOnce(&[u8]) -> R) -> R;
}
