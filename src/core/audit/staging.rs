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
//! process that dies in between leaves bytes that no header counts. The header of a former life tells what may never have
//! reached its segment: a reader lays the frames it finds there over what the segment has ([`Tail`]). Nothing is written for
//! that, so it takes no room, and there is nothing that could be cut short.
//!
//! The traps it avoids: memory that a full disk takes away (a store into a mapping cannot fail, only kill: the file is
//! written full of zeros before it is mapped, on file systems that keep what they have given, see [`super::Facts`]); bytes of
//! an earlier filling that a machine's crash left in the place of newer ones (a frame's MAC covers where it lies).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::frame::{Frames, Next, SpoolKey};
use super::reader::there;

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

    /// The header of a file. None: there is no such file, nothing is staged, or it says what cannot be.
    pub(super) fn read(directory: &Path) -> io::Result<Option<(Self, File)>> {
        let Some(file) = there(File::open(directory.join(STAGING)))? else { return Ok(None) };
        let mut header = [0; 16];
        match file.read_exact_at(&mut header, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        let word = |at: usize| header[at..at + 8].try_into().map_or(0, u64::from_ne_bytes);
        let staged = Self::from_words([word(0), word(8)]);
        let can_be = staged.length > 0 && staged.length as usize <= STAGING_BYTES - STAGING_HEADER;
        Ok(can_be.then_some((staged, file)))
    }

    /// Where in the segment the staged bytes end.
    pub(super) fn end(self) -> u64 {
        u64::from(self.written) + u64::from(self.length)
    }
}

/// What a former life has left in its staging buffer: where its whole frames lie. Bytes that are none (damaged, or of another
/// filling, which a crash of the machine or a copy of a running server's file can leave) are left out.
pub(super) struct Tail {
    /// Where in the segment each frame begins, and what it is; in order, never empty.
    frames: Vec<(u64, Vec<u8>)>,
}

impl Tail {
    /// None: nothing is staged for this segment.
    pub fn read(directory: &Path, segment: u64, key: SpoolKey) -> io::Result<Option<Self>> {
        let Some((staged, file)) = Staged::read(directory)?.filter(|(staged, _)| staged.segment == segment)
        else {
            return Ok(None);
        };
        let mut bytes = vec![0; staged.length as usize];
        match file.read_exact_at(&mut bytes, STAGING_HEADER as u64) {
            // Cut short by somebody: nothing can be told of it.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        let offset = u64::from(staged.written);
        let whole = Frames { key, segment, offset, bytes: &bytes };
        let (mut frames, mut at) = (Vec::new(), 0);
        loop {
            match whole.next(at) {
                Next::Frame(payload) => {
                    frames.push((offset + at as u64, bytes[at..payload.end].to_vec()));
                    at = payload.end;
                }
                Next::Torn(range) => at = range.end,
                Next::End => break,
            }
        }
        Ok((!frames.is_empty()).then_some(Self { frames }))
    }

    /// Where in the segment the last frame ends.
    pub fn end(&self) -> u64 {
        self.frames.last().map_or(0, |(start, frame)| start + frame.len() as u64)
    }

    /// Where the first frame begins that is not before this place.
    pub fn next(&self, offset: u64) -> Option<u64> {
        self.frames.iter().map(|(start, _)| *start).find(|start| *start >= offset)
    }

    /// Lays the frames over the part of the segment that begins at `offset` and has at most `most` bytes. A frame that is whole
    /// was made for its place, so it is what is or was to be there.
    pub fn lay_over(&self, offset: u64, most: usize, part: &mut Vec<u8>) {
        for (start, frame) in &self.frames {
            let (from, to) = ((*start).max(offset), (start + frame.len() as u64).min(offset + most as u64));
            let Some(length) = to.checked_sub(from).filter(|length| *length > 0) else { continue };
            let (at, skip, length) = ((from - offset) as usize, (from - start) as usize, length as usize);
            if part.len() < at + length {
                part.resize(at + length, 0);
            }
            part[at..at + length].copy_from_slice(&frame[skip..skip + length]);
        }
    }
}

/// The file as one process has it. Whoever calls holds the lock.
pub trait Staging: Sized {
    /// The file, which is there, is private and has [`STAGING_BYTES`]; its inode.
    fn open(path: &Path) -> io::Result<(Self, u64)>;
    /// Copies bytes to a place among the staged ones. There is room: `at + bytes.len() <= STAGING_BYTES - STAGING_HEADER`.
    fn put(&mut self, at: usize, bytes: &[u8]);
    /// Makes the header say so, in native byte order; the second word in one store, after everything before.
    fn publish(&mut self, staged: Staged);
    /// The first bytes that are staged.
    fn with<R>(&self, length: usize, f: impl FnOnce(&[u8]) -> R) -> R;
}
