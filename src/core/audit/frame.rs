//! Frames: how records lie in a segment, and how they are found again after a torn one.
//!
//! ```text
//! magic (4) | payload length (4) | SipHash-2-4 of segment number, length and payload (8) | payload
//! ```
//!
//! Runs in backends and the relay. The trap it avoids: going on behind a torn frame by its length, or at any bytes that
//! look like a header: only a MAC that is right says that a frame starts here. Who chooses a secret's name chooses bytes
//! of a payload, so the MAC is keyed; the segment's number is under it, so that a file cannot take another's place.

use std::hash::Hasher;
use std::ops::Range;

use siphasher::sip::SipHasher24;

const MAGIC: [u8; 4] = [0xa7, b'H', b'V', 0x01];
/// Bytes before the payload.
const FRAME_HEADER: usize = 16;
/// The longest payload: several times what the longest record has.
const MAX_PAYLOAD: usize = 16 * 1024;
pub const LONGEST_FRAME: usize = FRAME_HEADER + MAX_PAYLOAD;

/// The random key of one spool.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SpoolKey(pub [u8; 16]);

impl SpoolKey {
    fn mac(&self, segment: u64, payload: &[u8]) -> u64 {
        let mut hasher = SipHasher24::new_with_key(&self.0);
        hasher.write_u64(segment.to_le());
        hasher.write_u64((payload.len() as u64).to_le());
        hasher.write(payload);
        hasher.finish()
    }

    /// Makes the header of a frame whose payload and length are in place.
    fn seal(&self, segment: u64, frame: &mut [u8]) {
        let Some((header, payload)) = frame.split_at_mut_checked(FRAME_HEADER) else { return };
        header[..4].copy_from_slice(&MAGIC);
        header[8..].copy_from_slice(&self.mac(segment, payload).to_le_bytes());
    }

    /// Seals each of the frames that [`push`] put one behind the other, for the segment they are going into.
    pub(super) fn seal_all(&self, segment: u64, mut frames: &mut [u8]) {
        while let Some(header) = frames.first_chunk::<FRAME_HEADER>() {
            let length = FRAME_HEADER + length_in(header);
            let Some((frame, rest)) = frames.split_at_mut_checked(length) else { return };
            self.seal(segment, frame);
            frames = rest;
        }
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
        (self.key.mac(self.segment, self.bytes.get(payload.clone())?) == mac).then_some(payload)
    }
}
