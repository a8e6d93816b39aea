//! When each token was used last: a table in shared memory, so that using a token writes no row.
//!
//! Written by every backend that recognises a token, read by listings and by the maintenance worker, which notes the times
//! in the tokens' rows now and then. No lock. What is lost is lost without harm: with more tokens in use than there is
//! room for, the one not used for longest makes room, and its time stays at what was noted. The trap it avoids: a table
//! that an attacker fills; only tokens that are valid are noted.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use crate::envelope::Id;

/// Cells a token may be in.
const WAYS: usize = 16;
/// Room for 10,000 tokens in use between two notes with few displaced: 256 KiB.
pub const CELLS: usize = 16_384;

/// All zero: free.
#[repr(C)]
pub struct Cell {
    /// The first half of the token's id, which is random: two tokens that share it do not happen. Never zero: part of it
    /// says which kind of uuid it is.
    key: AtomicU64,
    /// Microseconds since 2000, as of `clock_timestamp()`.
    at: AtomicI64,
}

/// The table over its cells, of which there are a multiple of [`WAYS`].
#[derive(Clone, Copy)]
pub struct Uses<'a>(pub &'a [Cell]);

impl Uses<'_> {
    fn set(&self, id: Id) -> (u64, &[Cell]) {
        let [a, b, c, d, e, f, g, h, ..] = id.0;
        let key = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        let sets = (self.0.len() / WAYS).max(1);
        let first = key as usize % sets * WAYS;
        (key, self.0.get(first..first + WAYS).unwrap_or_default())
    }

    /// Notes a use. Relaxed throughout: a cell's two words need not agree with one another. Between a displacement's two
    /// stores another use of the displaced token may be told as one of its successor: of the same moment.
    pub fn note(&self, id: Id, now: i64) {
        let (key, set) = self.set(id);
        if let Some(cell) = set.iter().find(|cell| cell.key.load(Relaxed) == key) {
            cell.at.fetch_max(now, Relaxed);
            return;
        }
        let Some(oldest) = set.iter().min_by_key(|cell| match cell.key.load(Relaxed) {
            0 => i64::MIN,
            _ => cell.at.load(Relaxed),
        }) else {
            return;
        };
        let was = oldest.key.load(Relaxed);
        // Somebody else's now: not noted this time.
        if oldest.key.compare_exchange(was, key, Relaxed, Relaxed).is_ok() {
            oldest.at.store(now, Relaxed);
        }
    }

    /// When the token was used last, as far as it is known.
    pub fn last(&self, id: Id) -> Option<i64> {
        let (key, set) = self.set(id);
        set.iter().filter(|cell| cell.key.load(Relaxed) == key).map(|cell| cell.at.load(Relaxed)).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(count: usize) -> Vec<Cell> {
        (0..count).map(|_| Cell { key: AtomicU64::new(0), at: AtomicI64::new(0) }).collect()
    }

    fn id(n: u64) -> Id {
        let mut bytes = [7; 16];
        bytes[..8].copy_from_slice(&n.to_be_bytes());
        Id(bytes)
    }

    #[test]
    fn the_latest_use_is_known_and_the_oldest_token_makes_room() {
        let memory = cells(WAYS);
        let uses = Uses(&memory);
        assert_eq!(uses.last(id(1)), None);
        uses.note(id(1), 5);
        uses.note(id(1), 4);
        assert_eq!(uses.last(id(1)), Some(5), "a clock that is a little behind changes nothing");
        for n in 2..=WAYS as u64 {
            uses.note(id(n), 10 + n as i64);
        }
        assert_eq!(uses.last(id(1)), Some(5), "there is room for all of them");
        uses.note(id(99), 50);
        assert_eq!((uses.last(id(1)), uses.last(id(2)), uses.last(id(99))), (None, Some(12), Some(50)));
    }

    #[test]
    fn ten_thousand_tokens_mostly_fit() {
        let memory = cells(CELLS);
        let uses = Uses(&memory);
        let ids: Vec<Id> = (0..10_000).map(|_| Id::random().unwrap()).collect();
        ids.iter().enumerate().for_each(|(n, id)| uses.note(*id, n as i64 + 1));
        let known = ids.iter().enumerate().filter(|(n, id)| uses.last(**id) == Some(*n as i64 + 1)).count();
        assert!(known > 9_800, "{known} of 10,000");
    }

    #[test]
    fn no_cells_is_no_memory() {
        Uses(&[]).note(id(1), 1);
        assert_eq!(Uses(&[]).last(id(1)), None);
    }

    #[test]
    fn uses_at_the_same_time() {
        let memory = cells(WAYS * 2);
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let memory = &memory;
                scope.spawn(move || {
                    (0..10_000).for_each(|n| Uses(memory).note(id(1 + thread * 4 + n % 4), n as i64 + 1));
                });
            }
        });
        // Sixteen tokens in two sets of sixteen: nobody is displaced, but two may have taken one free cell.
        for n in 1..=16 {
            assert!(Uses(&memory).last(id(n)).is_some_and(|at| at > 9_990), "{n}");
        }
    }
}
