//! Frames: how records lie in a segment, and how they are found again after a torn one.
//!
//! ```text
//! magic (4) | payload length (4) | SipHash-2-4 of length and payload, xor that of segment number and offset (8) | payload
//! ```
//!
//! Runs in backends and the relay. The trap it avoids: going on behind a torn frame by its length, or at any bytes that
//! look like a header: only a MAC that is right says that a frame starts here. Who chooses a secret's name chooses bytes
//! of a payload, so the MAC is keyed; where the frame lies is under it, so that neither a file nor a frame can take another's
//! place. In two parts, since the place is known only under the lock: both are outputs of one keyed function on inputs
//! that are told apart by their first word.

use std::hash::Hasher;
use std::ops::Range;

use siphasher::sip::SipHasher24;

const MAGIC: [u8; 4] = [0xa7, b'H', b'V', 0x02];
/// Bytes before the payload.
const FRAME_HEADER: usize = 16;
/// The longest payload: several times what the longest record has.
const MAX_PAYLOAD: usize = 16 * 1024;
pub const LONGEST_FRAME: usize = FRAME_HEADER + MAX_PAYLOAD;

/// The random key of one spool.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SpoolKey(pub [u8; 16]);

/// First words of what is hashed.
const CONTENT: u64 = 0;
const PLACE: u64 = 1;

impl SpoolKey {
    fn content(&self, payload: &[u8]) -> u64 {
        let mut hasher = SipHasher24::new_with_key(&self.0);
        hasher.write_u64(CONTENT.to_le());
        hasher.write_u64((payload.len() as u64).to_le());
        hasher.write(payload);
        hasher.finish()
    }

    fn place(&self, segment: u64, offset: u64) -> u64 {
        let mut hasher = SipHasher24::new_with_key(&self.0);
        for word in [PLACE, segment, offset] {
            hasher.write_u64(word.to_le());
        }
        hasher.finish()
    }

    /// Makes the headers of frames that [`push`] put one behind the other, but for where they are going to lie.
    pub(super) fn seal_all(&self, frames: &mut [u8]) {
        each(frames, |_, header, payload| {
            header[..4].copy_from_slice(&MAGIC);
            header[8..].copy_from_slice(&self.content(payload).to_le_bytes());
        });
    }

    /// Adds that to their MACs. Once: doing it again takes it away.
    pub(super) fn place_all(&self, segment: u64, offset: u64, frames: &mut [u8]) {
        each(frames, |at, header, _| {
            let place = self.place(segment, offset + at as u64).to_le_bytes();
            header[8..].iter_mut().zip(place).for_each(|(byte, more)| *byte ^= more);
        });
    }
}

/// Calls for each frame with where it begins, its header and its payload.
fn each(frames: &mut [u8], mut f: impl FnMut(usize, &mut [u8; FRAME_HEADER], &[u8])) {
    let (mut rest, mut at) = (frames, 0);
    while let Some((header, behind)) = rest.split_first_chunk_mut::<FRAME_HEADER>() {
        let length = length_in(header);
        let Some((payload, behind)) = behind.split_at_mut_checked(length) else { return };
        f(at, header, payload);
        (rest, at) = (behind, at + FRAME_HEADER + length);
    }
}

/// Appends a frame, not sealed yet, whose payload `fill` appends.
pub fn push(out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; FRAME_HEADER]);
    fill(out);
    let length = (out.len() - start - FRAME_HEADER) as u32;
    out[start + 4..start + 8].copy_from_slice(&length.to_le_bytes());
}

fn length_in(header: &[u8; FRAME_HEADER]) -> usize {
    u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize
}

/// What lies at a place of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// A frame: where its payload is. The next one begins at the end of this range.
    Frame(Range<usize>),
    /// Bytes that are no frame, up to the next one.
    Torn(Range<usize>),
    /// No whole frame from here on: the end, or one that is being written.
    End,
}

/// The frames of a segment, or of a part that begins at a frame.
pub struct Frames<'a> {
    pub key: SpoolKey,
    pub segment: u64,
    /// Where in the segment the bytes begin.
    pub offset: u64,
    pub bytes: &'a [u8],
}

impl Frames<'_> {
    pub fn next(&self, at: usize) -> Next {
        if let Some(payload) = self.frame(at) {
            return Next::Frame(payload);
        }
        let mut from = at + 1;
        while let Some(found) = self.magic(from) {
            if self.frame(found).is_some() {
                return Next::Torn(at..found);
            }
            from = found + 1;
        }
        Next::End
    }

    fn magic(&self, from: usize) -> Option<usize> {
        let rest = self.bytes.get(from..)?;
        rest.windows(MAGIC.len()).position(|window| window == MAGIC).map(|found| from + found)
    }

    /// The payload of the frame that begins at `at`, if there is a whole one.
    fn frame(&self, at: usize) -> Option<Range<usize>> {
        let header = self.bytes.get(at..)?.first_chunk::<FRAME_HEADER>()?;
        if header[..4] != MAGIC {
            return None;
        }
        let length = length_in(header);
        if length > MAX_PAYLOAD {
            return None;
        }
        let payload = at + FRAME_HEADER..at + FRAME_HEADER + length;
        let mac = u64::from_le_bytes(*header.last_chunk()?);
        // The length first, by taking the payload: it may be any number.
        let content = self.key.content(self.bytes.get(payload.clone())?);
        (content ^ self.key.place(self.segment, self.offset + at as u64) == mac).then_some(payload)
    }
}
