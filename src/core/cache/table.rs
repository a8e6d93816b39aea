//! The set-associative table of unwrapped DEKs, keyed by the digest of wrapped DEK and encryption context.
//!
//! Client backends look up, insert and remove; the key-service worker sweeps. A lookup reads three cache lines and
//! writes none (once an entry's reference bit is set). The trap it avoids: a global lock or LRU list that every
//! read would have to write. Key bytes are zeroed when an entry is evicted, expires (at the next sweep), or is removed.
//!
//! All times are monotonic milliseconds of the machine (`CLOCK_MONOTONIC`), the same in every process.

use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

use super::seqlock::Seqlock;
use crate::envelope::{CryptoError, Dek, KEY_LEN};
use crate::ipc::atomic::{AtomicU64, load_bytes, store_bytes, wipe};

/// Entries of a set: the tags of one set fill one cache line.
pub const WAYS: usize = 8;

/// A reader gives up after this many disturbed attempts and calls it a miss: one key-service call more, never a wait.
const READ_ATTEMPTS: u32 = 64;
/// A writer that gives up only leaves a key uncached.
const INSERT_ATTEMPTS: u32 = 256;
/// Removal must not be given up lightly: nearly all attempts yield the processor, so this is some milliseconds of
/// waiting at the least, for a critical section of tens of nanoseconds.
const REMOVE_ATTEMPTS: u32 = 1 << 16;

/// How many sets keep `entries` entries: a power of two, at least 1, at most 2^24 (11 GB). Room for twice as many, since
/// keys fall on sets by hash: a table that is half full has hardly a set that overflows, a full one has many.
pub fn sets_for(entries: usize) -> usize {
    entries.div_ceil(WAYS / 2).clamp(1, 1 << 24).next_power_of_two()
}

/// One set of [`WAYS`] entries, 704 bytes. All zero is valid and empty.
#[repr(C, align(64))]
pub struct Set {
    seq: Seqlock,
    /// Where the clock hand of the eviction stands (modulo [`WAYS`]).
    hand: AtomicU64,
    /// One reference bit per entry, set by readers outside of the lock; only a hint for eviction.
    referenced: AtomicU64,
    _pad: [AtomicU64; 5],
    /// First word of each entry's digest.
    tags: [AtomicU64; WAYS],
    entries: [Entry; WAYS],
    /// Until when an expired entry may serve during an outage; equal to `expires_at` if it may not.
    stale_until: [AtomicU64; WAYS],
}

/// One cache line: what a hit reads besides the head of the set and the tags.
#[repr(C)]
struct Entry {
    /// The second to fourth word of the digest.
    digest: [AtomicU64; 3],
    dek: [AtomicU64; KEY_LEN / 8],
    /// 0: unoccupied, and every other word of this entry is zero too.
    expires_at: AtomicU64,
}

/// What a lookup found.
#[derive(Debug)]
pub enum Lookup {
    Hit(Dek),
    /// Past its TTL, within the stale window it was inserted with. Only to be used if the key service cannot be
    /// asked ([`crate::ipc::ErrorKind::is_outage`]); compare `expired_for_ms` with the window set now.
    Stale {
        dek: Dek,
        expired_for_ms: u64,
    },
    Miss,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// Into an empty or dead entry, or over an older insert of the same digest.
    Fresh,
    /// A live entry was wiped to make room.
    Evicted,
    /// The set stayed locked too long: not cached. Nothing is wrong.
    Busy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    Wiped,
    NotThere,
    /// The set stayed locked too long: the key may still be there. Report it, or try again.
    Busy,
}

/// What [`Table::clear`] and [`Table::sweep`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cleared {
    /// Entries zeroed.
    pub wiped: usize,
    /// Sets left alone because they stayed locked.
    pub busy: usize,
}

/// A view of the sets as one table. Cheap to make, holds no state of its own.
#[derive(Clone, Copy)]
pub struct Table<'a> {
    sets: &'a [Set],
}

impl<'a> Table<'a> {
    /// Uses the largest power of two of the sets; every process must pass the same slice. No sets: nothing is ever
    /// cached.
    pub fn from_sets(sets: &'a [Set]) -> Self {
        let usable = sets.len().checked_ilog2().map_or(0, |log| 1 << log);
        Self { sets: &sets[..usable] }
    }

    pub fn lookup(&self, digest: &[u8; 32], now_ms: u64) -> Lookup {
        let Some((set, key)) = self.find_set(digest) else { return Lookup::Miss };
        let found = set.seq.read(READ_ATTEMPTS, || {
            let way = set.way_of(&key)?;
            let expires_at = set.entries[way].expires_at.load(Relaxed);
            // The second line is only needed past the TTL.
            let stale_until =
                if now_ms < expires_at { expires_at } else { set.stale_until[way].load(Relaxed) };
            if now_ms >= stale_until.max(expires_at) {
                return None;
            }
            // A torn copy drops, and wipes itself, with the attempt. An all-zero one, equally torn, is refused.
            let dek = Dek::fill(|bytes| {
                load_bytes(&set.entries[way].dek, bytes);
                Ok::<(), CryptoError>(())
            });
            dek.ok().map(|dek| (way, dek, expires_at))
        });
        let Some(Some((way, dek, expires_at))) = found else { return Lookup::Miss };
        // Relaxed, and only if it changes something: a hot entry's line stays shared between all cores. The entry
        // may have been replaced since; then the newcomer gets a reference it has not earned.
        if set.referenced.load(Relaxed) & (1 << way) == 0 {
            set.referenced.fetch_or(1 << way, Relaxed);
        }
        match now_ms.checked_sub(expires_at) {
            None => Lookup::Hit(dek),
            Some(expired_for_ms) => Lookup::Stale { dek, expired_for_ms },
        }
    }

    /// Caches `dek` for `ttl_ms`, and for outages `stale_ms` longer. A TTL of 0 caches nothing and wipes what was
    /// there.
    pub fn insert(&self, digest: &[u8; 32], dek: &Dek, now_ms: u64, ttl_ms: u64, stale_ms: u64) -> Inserted {
        let Some((set, key)) = self.find_set(digest) else { return Inserted::Fresh };
        let Some(_writing) = set.seq.write(INSERT_ATTEMPTS) else { return Inserted::Busy };
        if ttl_ms == 0 {
            if let Some(way) = set.way_of(&key) {
                set.wipe(way);
            }
            return Inserted::Fresh;
        }
        let (way, evicted) = match set.way_of(&key).or_else(|| set.dead_way(now_ms)) {
            Some(way) => (way, false),
            None => (set.victim(), true),
        };
        // Wiped first: an entry is never a mixture, not even for a process that would die here.
        set.wipe(way);
        let entry = &set.entries[way];
        let expires_at = now_ms.saturating_add(ttl_ms);
        store_bytes(&entry.dek, dek.as_bytes());
        for (word, value) in entry.digest.iter().zip(&key.rest) {
            word.store(*value, Relaxed);
        }
        set.tags[way].store(key.tag, Relaxed);
        set.stale_until[way].store(expires_at.saturating_add(stale_ms), Relaxed);
        // Occupied from here on.
        entry.expires_at.store(expires_at, Relaxed);
        if evicted { Inserted::Evicted } else { Inserted::Fresh }
    }

    /// Wipes one entry: its key was deleted or shredded, or the key service refused it.
    pub fn remove(&self, digest: &[u8; 32]) -> Removed {
        let Some((set, key)) = self.find_set(digest) else { return Removed::NotThere };
        let Some(_writing) = set.seq.write(REMOVE_ATTEMPTS) else { return Removed::Busy };
        match set.way_of(&key) {
            Some(way) => {
                set.wipe(way);
                Removed::Wiped
            }
            None => Removed::NotThere,
        }
    }

    /// Wipes everything. Sets are taken one after the other: an insert at the same time may survive.
    pub fn clear(&self) -> Cleared {
        let mut done = Cleared::default();
        for set in self.sets {
            set.wipe_where(REMOVE_ATTEMPTS, |_| true, &mut done);
        }
        done
    }

    /// Wipes the entries of `sets` (cut to the table) that may not serve any more, stale window included. The worker
    /// calls it for a range per turn, so that dead keys do not stay in memory and no turn takes long.
    pub fn sweep(&self, now_ms: u64, sets: Range<usize>) -> Cleared {
        let end = sets.end.min(self.sets.len());
        let start = sets.start.min(end);
        let mut done = Cleared::default();
        for set in &self.sets[start..end] {
            let due = |way| set.is_occupied(way) && set.dies_at(way) <= now_ms;
            // A look without the lock first: a sweep that finds nothing due disturbs no reader.
            if (0..WAYS).any(due) {
                set.wipe_where(INSERT_ATTEMPTS, due, &mut done);
            }
        }
        done
    }

    /// Sets in use: the range to sweep, and [`WAYS`] times that is the capacity.
    pub fn sets(&self) -> usize {
        self.sets.len()
    }

    /// Entries holding a key, dead ones not yet swept included. Approximate while others write.
    pub fn occupied(&self) -> usize {
        self.sets.iter().map(|set| (0..WAYS).filter(|way| set.is_occupied(*way)).count()).sum()
    }

    fn find_set(&self, digest: &[u8; 32]) -> Option<(&'a Set, Key)> {
        let mut words = digest.chunks_exact(8).map(|chunk| {
            let mut le = [0; 8];
            le.copy_from_slice(chunk);
            u64::from_le_bytes(le)
        });
        let mut next = || words.next().unwrap_or_default();
        let key = Key { tag: next(), rest: [next(), next(), next()] };
        // By another word than the tag: within a set all its bits tell entries apart. Digests are uniform (SHA-256).
        let index = key.rest[0] as usize & self.sets.len().checked_sub(1)?;
        Some((self.sets.get(index)?, key))
    }
}

/// A digest as it is stored.
struct Key {
    tag: u64,
    rest: [u64; 3],
}

impl Set {
    #[allow(clippy::new_without_default, reason = "placed in shared memory, hardly ever made by value")]
    pub fn new() -> Self {
        let zero = |_| AtomicU64::new(0);
        let entry = |_| Entry {
            digest: std::array::from_fn(zero),
            dek: std::array::from_fn(zero),
            expires_at: AtomicU64::new(0),
        };
        Self {
            seq: Seqlock::new(),
            hand: AtomicU64::new(0),
            referenced: AtomicU64::new(0),
            _pad: std::array::from_fn(zero),
            tags: std::array::from_fn(zero),
            entries: std::array::from_fn(entry),
            stale_until: std::array::from_fn(zero),
        }
    }

    /// The occupied entry of this digest. Not secret, so compared in the plain way. A wrong answer of a torn read is
    /// the caller's to discard.
    fn way_of(&self, key: &Key) -> Option<usize> {
        (0..WAYS).find(|way| {
            self.tags[*way].load(Relaxed) == key.tag
                && self.entries[*way]
                    .digest
                    .iter()
                    .zip(&key.rest)
                    .all(|(word, part)| word.load(Relaxed) == *part)
                && self.is_occupied(*way)
        })
    }

    fn is_occupied(&self, way: usize) -> bool {
        self.entries[way].expires_at.load(Relaxed) != 0
    }

    /// From when on the entry may not serve in any way. An empty one has always been dead.
    fn dies_at(&self, way: usize) -> u64 {
        self.entries[way].expires_at.load(Relaxed).max(self.stale_until[way].load(Relaxed))
    }

    fn dead_way(&self, now_ms: u64) -> Option<usize> {
        (0..WAYS).find(|way| !self.is_occupied(*way) || self.dies_at(*way) <= now_ms)
    }

    /// CLOCK: the first entry from the hand on without a reference since the hand last passed; the referenced ones
    /// lose their bit. If all are referenced, the one at the hand. Under the lock.
    fn victim(&self) -> usize {
        let start = self.hand.load(Relaxed) as usize;
        let referenced = self.referenced.load(Relaxed);
        let turn = (0..WAYS).find(|step| referenced & (1 << ((start + step) % WAYS)) == 0);
        let passed = (0..turn.unwrap_or(WAYS)).fold(0u64, |bits, step| bits | 1 << ((start + step) % WAYS));
        self.referenced.fetch_and(!passed, Relaxed);
        let way = (start + turn.unwrap_or(0)) % WAYS;
        self.hand.store(((way + 1) % WAYS) as u64, Relaxed);
        way
    }

    /// Zeroes every word of an entry. Under the lock.
    fn wipe(&self, way: usize) {
        let entry = &self.entries[way];
        entry.expires_at.store(0, Relaxed);
        wipe(&entry.dek);
        wipe(&entry.digest);
        self.tags[way].store(0, Relaxed);
        self.stale_until[way].store(0, Relaxed);
        // A newcomer starts without a reference: one pass of keys used once cannot drive out the used ones.
        self.referenced.fetch_and(!(1 << way), Relaxed);
    }

    /// Takes the lock and wipes the occupied entries that `due` picks.
    fn wipe_where(&self, attempts: u32, due: impl Fn(usize) -> bool, done: &mut Cleared) {
        let Some(_writing) = self.seq.write(attempts) else {
            done.busy += 1;
            return;
        };
        for way in (0..WAYS).filter(|way| self.is_occupied(*way) && due(*way)) {
            self.wipe(way);
            done.wiped += 1;
        }
    }
}

#[cfg(all(test, not(loom)))]
impl Set {
    /// Every word, in no order but that sequence and hand come first.
    pub(super) fn dump(&self) -> Vec<u64> {
        let entries = self.entries.iter();
        let entries =
            entries.flat_map(|entry| entry.digest.iter().chain(&entry.dek).chain([&entry.expires_at]));
        let rest = [&self.hand, &self.referenced].into_iter().chain(&self._pad).chain(&self.tags);
        let words = rest.chain(entries).chain(&self.stale_until);
        std::iter::once(self.seq.current()).chain(words.map(|word| word.load(Relaxed))).collect()
    }

    pub(super) fn while_locked(&self, inside: impl FnOnce()) {
        let _writing = self.seq.write(1).expect("nobody else is here");
        inside();
    }
}
