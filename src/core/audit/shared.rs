//! [`Shared`]: the part of the audit log that all processes of a server share, in the mapping.
//!
//! Written by whoever appends and by the relay; all zero is valid and means: no spool is open. See the module for who
//! owns what. Not under the crate's model checker: the counters are plain, and the one ordering that matters is SeqCst.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU32, AtomicU64};

use super::frame::SpoolKey;
use crate::envelope::Id;

/// So many segments may have writers in flight, or be unsynced, before the counter of one serves another as well. It
/// then counts too many, which delays a removal and nothing else.
pub const SLOTS: usize = 4;

/// What the state of a segment's slot is, one cache line each.
#[derive(Default)]
#[repr(C, align(64))]
struct Slot {
    in_flight: AtomicU32,
    /// Bytes appended to the segment.
    bytes: AtomicU64,
    /// Segment number in the upper, offset in the lower half: so far it is on disk.
    synced: AtomicU64,
}

#[derive(Default)]
#[repr(C, align(64))]
pub struct Shared {
    /// The current segment's number; 0: no spool is open.
    segment: AtomicU64,
    /// How many spools this life of the server has opened.
    generation: AtomicU64,
    id: [AtomicU64; 2],
    key: [AtomicU64; 2],
    /// Held by who opens a spool or makes a segment.
    rolling: AtomicU32,
    /// Whether somebody who lives as long as the server holds the base directory's lock.
    pub held: AtomicU32,
    /// Held by who syncs for the others.
    syncing: AtomicU32,
    /// Monotonic milliseconds: not before then is opening tried again.
    retry_at: AtomicU64,
    slots: [Slot; SLOTS],
    /// Bytes in all spools below the base directory.
    pub size: AtomicU64,
    /// Records appended since the spool was opened.
    pub appended: AtomicU64,
    /// Appends that failed since the server started.
    pub failed: AtomicU64,
    /// Unix seconds and errno (0: the limit) of the last failure.
    pub failed_at: AtomicU64,
    pub failed_errno: AtomicU32,
    /// [`super::Why`] of the last failure; 0: none.
    pub failed_why: AtomicU32,
    /// Denials and errors that could not be written, whose callers were refused anyway.
    pub unrecorded: AtomicU64,
}

/// How far a segment is known to be on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Synced(pub u64);

impl Synced {
    pub fn new(segment: u64, offset: u64) -> Self {
        Self(segment << 32 | offset)
    }
}

impl Shared {
    /// The current segment, 0 if there is none.
    pub fn segment(&self) -> u64 {
        self.segment.load(SeqCst)
    }

    pub fn generation(&self) -> u64 {
        self.generation.load(Acquire)
    }

    pub fn id(&self) -> Id {
        Id(pair(&self.id))
    }

    pub fn key(&self) -> SpoolKey {
        SpoolKey(pair(&self.key))
    }

    fn slot(&self, segment: u64) -> &Slot {
        &self.slots[(segment % SLOTS as u64) as usize]
    }

    /// Whether nobody can be appending to this segment of the open spool any more.
    pub fn finished(&self, segment: u64) -> bool {
        // In this order; pairs with `enter`.
        self.segment() > segment && self.slot(segment).in_flight.load(SeqCst) == 0
    }

    /// Bytes in a segment, if it is the current one.
    pub fn bytes(&self, segment: u64) -> u64 {
        self.slot(segment).bytes.load(Relaxed)
    }

    pub(super) fn grow(&self, segment: u64, bytes: u64) {
        self.slot(segment).bytes.fetch_add(bytes, Relaxed);
        self.size.fetch_add(bytes, Relaxed);
    }

    /// Becomes a writer of a segment of a generation, if it is still the current one.
    pub(super) fn enter(&self, generation: u64, segment: u64) -> Option<InFlight<'_>> {
        let counter = &self.slot(segment).in_flight;
        counter.fetch_add(1, SeqCst);
        let writer = InFlight(counter);
        // After the increment; pairs with `finished`.
        (self.segment() == segment && self.generation() == generation).then_some(writer)
    }

    /// The right to open a spool or make a segment; None if another has it.
    pub fn roll(&self) -> Option<Held<'_>> {
        Held::take(&self.rolling)
    }

    /// The right to sync for all; None if another has it.
    pub fn sync(&self) -> Option<Held<'_>> {
        Held::take(&self.syncing)
    }

    pub fn synced(&self, segment: u64) -> Synced {
        Synced(self.slot(segment).synced.load(Acquire))
    }

    pub fn set_synced(&self, segment: u64, synced: Synced) {
        self.slot(segment).synced.fetch_max(synced.0, Release);
    }

    /// A new spool is there, with segment 1. The caller holds `rolling`.
    pub(super) fn opened(&self, id: Id, key: SpoolKey) {
        store(&self.id, &id.0);
        store(&self.key, &key.0);
        self.appended.store(0, Relaxed);
        for slot in &self.slots {
            slot.bytes.store(0, Relaxed);
            slot.synced.store(0, Relaxed);
        }
        self.generation.fetch_add(1, Release);
        self.segment.store(1, SeqCst);
    }

    /// Segment `next` is there. The caller holds `rolling`.
    pub(super) fn rolled(&self, next: u64) {
        self.slot(next).bytes.store(0, Relaxed);
        self.segment.store(next, SeqCst);
    }

    /// The spool's files have gone: whoever appends next opens another.
    pub fn close(&self) {
        self.segment.store(0, SeqCst);
    }

    /// Whether opening may be tried now; if so, not again before `pause_ms` have passed.
    pub(super) fn may_retry(&self, now_ms: u64, pause_ms: u64) -> bool {
        let at = self.retry_at.load(Relaxed);
        now_ms >= at && self.retry_at.compare_exchange(at, now_ms + pause_ms, Relaxed, Relaxed).is_ok()
    }
}

fn pair(words: &[AtomicU64; 2]) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (chunk, word) in bytes.chunks_mut(8).zip(words) {
        chunk.copy_from_slice(&word.load(Relaxed).to_le_bytes());
    }
    bytes
}

fn store(words: &[AtomicU64; 2], bytes: &[u8; 16]) {
    for (word, chunk) in words.iter().zip(bytes.chunks(8)) {
        word.store(u64::from_le_bytes(chunk.try_into().unwrap_or_default()), Relaxed);
    }
}

/// A writer's presence in a segment.
pub(super) struct InFlight<'a>(&'a AtomicU32);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// A right that one process at a time has. Held over file operations only, in which no error of the server is raised;
/// a holder that is killed takes the mapping with it.
pub struct Held<'a>(&'a AtomicU32);

impl<'a> Held<'a> {
    fn take(word: &'a AtomicU32) -> Option<Self> {
        // Acquire: pairs with the Release of `drop`. Lazily: a guard that is made and thrown away would give up what
        // another holds.
        word.compare_exchange(0, 1, Acquire, Relaxed).is_ok().then(|| Self(word))
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.store(0, Release);
    }
}
