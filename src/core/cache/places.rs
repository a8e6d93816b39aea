//! Where rows were last seen: a lossy table from a key's hash to a place in a table's file.
//!
//! Client backends read and write it, without any order between them. Every answer is a guess: whoever takes one looks at
//! the row that is there *now*, under his own snapshot, and goes through the index if it is not the one he wants. So
//! nothing here can make a read wrong, and an index descent is saved whenever nobody has moved the row. All zero is valid
//! and empty. The trap it avoids: a lock, or a line that every read would write: a hit writes nothing.

use std::sync::atomic::Ordering::Relaxed;

use crate::ipc::atomic::AtomicU64;

const WAYS: usize = 8;

/// A cache line of guesses: tag (16 bits), block (32), offset (16; never 0, so 0 is an empty one).
#[repr(C, align(64))]
pub struct Line([AtomicU64; WAYS]);

/// A row's place: block and line pointer, the server's `ctid`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub block: u32,
    /// From 1.
    pub offset: u16,
}

/// Hash of a key: not for anything an attacker must not be able to choose, since a collision costs an index descent.
#[derive(Clone, Copy)]
pub struct Hash(u64);

impl Hash {
    /// `table` keeps those of different tables apart.
    pub fn new(table: u32) -> Self {
        Self(u64::from(table)).mix(0)
    }

    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            let mut word = [0; 8];
            word.copy_from_slice(chunk);
            self = self.mix(u64::from_le_bytes(word));
        }
        let rest = chunks.remainder();
        let mut word = [0; 8];
        word[..rest.len()].copy_from_slice(rest);
        self.mix(u64::from_le_bytes(word)).mix(bytes.len() as u64)
    }

    fn mix(self, word: u64) -> Self {
        // An odd constant with bits all over (2^64 ÷ the golden ratio); the high bits, which depend on all others, are
        // folded back.
        let product = (self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self(product ^ product >> 32)
    }
}

/// A view of the lines as one table.
#[derive(Clone, Copy)]
pub struct Places<'a> {
    lines: &'a [Line],
}

/// How many lines remember the places of `entries` rows: a power of two, with room for twice as many, at most 2^22
/// (256 MB).
pub fn lines_for(entries: usize) -> usize {
    entries.div_ceil(WAYS / 2).clamp(1, 1 << 22).next_power_of_two()
}

impl<'a> Places<'a> {
    /// Uses the largest power of two of the lines. None: nothing is ever remembered.
    pub fn from_lines(lines: &'a [Line]) -> Self {
        let usable = lines.len().checked_ilog2().map_or(0, |log| 1 << log);
        Self { lines: &lines[..usable] }
    }

    pub fn guess(&self, hash: Hash) -> Option<Place> {
        let words = self.line(hash)?.0.iter().map(|word| word.load(Relaxed));
        let word = words.into_iter().find(|word| *word != 0 && word >> 48 == tag(hash))?;
        Some(Place { block: (word >> 16) as u32, offset: word as u16 })
    }

    /// In place of what was remembered for the key, or of a free one, or of any.
    pub fn remember(&self, hash: Hash, place: Place) {
        let Some(line) = self.line(hash) else { return };
        let position = |wanted: fn(u64, u64) -> bool| {
            line.0.iter().position(|word| wanted(word.load(Relaxed), tag(hash)))
        };
        let way = position(|word, tag| word != 0 && word >> 48 == tag)
            .or_else(|| position(|word, _| word == 0))
            // As good as random: rows are spread over their pages.
            .unwrap_or(usize::from(place.offset) % WAYS);
        let word = tag(hash) << 48 | u64::from(place.block) << 16 | u64::from(place.offset);
        line.0[way].store(word, Relaxed);
    }

    fn line(&self, hash: Hash) -> Option<&'a Line> {
        // Other bits than the tag's.
        self.lines.get(hash.0 as usize & self.lines.len().checked_sub(1)?)
    }
}

fn tag(hash: Hash) -> u64 {
    hash.0 >> 48
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn lines(count: usize) -> Vec<Line> {
        (0..count).map(|_| Line(std::array::from_fn(|_| AtomicU64::new(0)))).collect()
    }

    fn hash(name: &str) -> Hash {
        Hash::new(7).bytes(name.as_bytes())
    }

    #[test]
    fn what_is_remembered_is_guessed_and_replaced() {
        let lines = lines(4);
        let places = Places::from_lines(&lines);
        assert_eq!(places.guess(hash("a")), None);
        for place in [Place { block: 0, offset: 1 }, Place { block: u32::MAX, offset: u16::MAX }] {
            places.remember(hash("a"), place);
            assert_eq!(places.guess(hash("a")), Some(place));
        }
        assert_eq!(places.guess(hash("b")), None);
        assert_eq!(places.guess(Hash::new(8).bytes(b"a")), None, "of another table");
        let used = lines.iter().flat_map(|line| &line.0).filter(|word| word.load(Relaxed) != 0).count();
        assert_eq!(used, 1, "the new place took the old one's");
    }

    #[test]
    fn nearly_all_of_as_many_rows_as_it_is_made_for_are_remembered() {
        let entries = 10_000;
        let lines = lines(lines_for(entries));
        let places = Places::from_lines(&lines);
        let place = |i: usize| Place { block: i as u32 / 40, offset: (i % 40) as u16 + 1 };
        // Names as people give them: long common parts, differing in a few digits.
        let name = |i: usize| format!("service/{}/database/password", 100_000_000 + i);
        for i in 0..entries {
            places.remember(hash(&name(i)), place(i));
        }
        let right = (0..entries).filter(|i| places.guess(hash(&name(*i))) == Some(place(*i))).count();
        assert!(right > entries * 98 / 100, "{right} of {entries}");
    }

    #[test]
    fn keys_cut_elsewhere_have_other_hashes() {
        let names = ["", "\0", "a", "a\0", "aaaaaaaa", "aaaaaaaa\0", "aaaaaaaaaaaaaaaa"];
        let hashes: std::collections::HashSet<_> = names.iter().map(|name| hash(name).0).collect();
        assert_eq!(hashes.len(), names.len());
    }

    #[test]
    fn sizes_are_powers_of_two_within_bounds() {
        assert_eq!([0, 1, 4, 5, 16_384].map(lines_for), [1, 1, 1, 2, 4096]);
        assert_eq!(lines_for(usize::MAX), 1 << 22);
        assert_eq!((size_of::<Line>(), align_of::<Line>()), (64, 64));
        let lines = lines(3);
        assert_eq!(Places::from_lines(&lines).lines.len(), 2);
        let none = Places::from_lines(&[]);
        none.remember(hash("a"), Place { block: 1, offset: 1 });
        assert_eq!(none.guess(hash("a")), None);
    }
}
