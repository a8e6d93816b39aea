//! A short text in shared memory: the last error of a worker, for whoever asks how it is.
//!
//! Written by one process at a time, read by any. A sequence number that is odd while somebody writes; a second writer
//! gives up rather than waits, a reader who was disturbed looks again. The trap it avoids: half of one text and half of
//! another, which would name an error that never was.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64, fence};

const WORDS: usize = 32;
/// What is longer is cut.
pub const MAX_BYTES: usize = WORDS * 8;
/// How often a reader looks who finds a writer at it: a write is a few dozen stores.
const ATTEMPTS: usize = 100;

/// All zero is the empty note.
#[repr(C)]
pub struct Note {
    sequence: AtomicU32,
    len: AtomicU32,
    words: [AtomicU64; WORDS],
}

impl Default for Note {
    fn default() -> Self {
        Self {
            sequence: AtomicU32::new(0),
            len: AtomicU32::new(0),
            words: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl Note {
    /// Replaces the text, cut to [`MAX_BYTES`] at a character's end.
    pub fn write(&self, text: &str) {
        let before = self.sequence.load(Relaxed);
        // Acquire: pairs with the Release below of the writer before.
        if before & 1 == 1
            || self.sequence.compare_exchange(before, before.wrapping_add(1), Acquire, Relaxed).is_err()
        {
            return;
        }
        // Pairs with the Acquire fence in `read`: who sees a word of this write sees that the number has moved.
        fence(Release);
        let text = &text.as_bytes()[..text.floor_char_boundary(MAX_BYTES)];
        self.len.store(text.len() as u32, Relaxed);
        for (word, bytes) in self.words.iter().zip(text.chunks(8)) {
            let mut padded = [0; 8];
            padded[..bytes.len()].copy_from_slice(bytes);
            word.store(u64::from_le_bytes(padded), Relaxed);
        }
        // Release: pairs with the Acquire load in `read`.
        self.sequence.store(before.wrapping_add(2), Release);
    }

    /// The text; None if there is none.
    pub fn read(&self) -> Option<String> {
        for _ in 0..ATTEMPTS {
            // Acquire: pairs with the last store of `write`.
            let before = self.sequence.load(Acquire);
            let len = (self.len.load(Relaxed) as usize).min(MAX_BYTES);
            let mut bytes = Vec::with_capacity(len.next_multiple_of(8));
            for word in &self.words[..len.div_ceil(8)] {
                bytes.extend(word.load(Relaxed).to_le_bytes());
            }
            bytes.truncate(len);
            // Pairs with the Release fence in `write`.
            fence(Acquire);
            if before & 1 == 0 && self.sequence.load(Relaxed) == before {
                return (len > 0).then(|| String::from_utf8_lossy(&bytes).into_owned());
            }
            std::hint::spin_loop();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_holds_what_was_written_last() {
        let note = Note::default();
        assert_eq!(note.read(), None);
        for text in ["could not connect", "x", &"é".repeat(200)[..MAX_BYTES], "läuft"] {
            note.write(text);
            assert_eq!(note.read().as_deref(), Some(text));
        }
        note.write("");
        assert_eq!(note.read(), None);
        note.write(&format!("x{}", "é".repeat(200)));
        assert_eq!(note.read().map(|text| text.len()), Some(MAX_BYTES - 1), "cut between characters");
    }

    #[test]
    fn readers_never_see_two_texts_in_one() {
        let note = Note::default();
        let texts = ["a".repeat(MAX_BYTES), "b".repeat(MAX_BYTES / 2), "c".repeat(3)];
        std::thread::scope(|scope| {
            for text in &texts {
                let note = &note;
                scope.spawn(move || (0..20_000).for_each(|_| note.write(text)));
            }
            for _ in 0..20_000 {
                if let Some(read) = note.read() {
                    assert!(texts.contains(&read), "{read}");
                }
            }
        });
    }
}
