//! [`Shared`]: the part of the audit log that all processes of a server share, in the mapping.
//!
//! Written by whoever appends and by the relay; all zero is valid and means: no spool is open. See the module for who
//! owns what. Not under the crate's model checker: what changes together changes under one lock.

use std::cell::Cell;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::{Duration, Instant};

use super::frame::SpoolKey;
use crate::envelope::Id;

/// What every append touches, in one cache line. All but `size` changes under the lock alone; others may look.
#[derive(Default)]
#[repr(C, align(64))]
struct Appending {
    lock: AtomicU32,
    /// Bytes of the current segment that are in its file.
    written: AtomicU64,
    /// Bytes behind those that are in the staging buffer.
    staged: AtomicU64,
    /// Records appended since the spool was opened.
    appended: AtomicU64,
    /// Bytes in all spools below the base directory.
    size: AtomicU64,
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
    /// Held by who opens a spool or removes one.
    opening: AtomicU32,
    /// Whether somebody who lives as long as the server holds the base directory's lock.
    pub held: AtomicU32,
    /// Held by who syncs for the others.
    syncing: AtomicU32,
    /// The inode of the staging buffer; 0: there is none.
    staging: AtomicU64,
    /// Monotonic milliseconds: not before then is opening tried again.
    retry_at: AtomicU64,
    appending: Appending,
    /// [`Synced`]: everything before it is on disk.
    synced: AtomicU64,
    /// The generation of a spool of which something could not be brought to disk; 0: none.
    broken: AtomicU64,
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

/// A place in the open spool: segment number in the upper, offset in the lower half.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Synced(u64);

impl Synced {
    pub fn new(segment: u64, offset: u64) -> Self {
        Self(segment << 32 | offset)
    }

    pub fn segment(self) -> u64 {
        self.0 >> 32
    }
}

/// The lock is held over some hundred instructions, now and then over a `write(2)`, rarely over making a file. So first one
/// spins, for a holder on another processor; then lets others run, of whom one may be the holder that was made to wait in the
/// middle of it; then naps, until something must be wrong (a holder that died takes the mapping with it, unless the
/// postmaster died too).
const SPINS: u32 = 50;
const YIELDS: u32 = 20;
const NAP: Duration = Duration::from_micros(50);
const LOCK_PATIENCE: Duration = Duration::from_secs(30);

impl Shared {
    /// The current segment, 0 if there is none.
    pub fn segment(&self) -> u64 {
        self.segment.load(Acquire)
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

    /// Whether nobody appends to this segment of the open spool any more, and all of it is in its file.
    pub fn finished(&self, segment: u64) -> bool {
        // Acquire: what was written before the segment was closed is in the file.
        self.segment() > segment
    }

    /// Bytes in all spools below the base directory.
    pub fn size(&self) -> u64 {
        self.appending.size.load(Relaxed)
    }

    /// So many bytes have gone. Never below zero: a spool that somebody put there while the server ran was never counted.
    pub fn shrink(&self, bytes: u64) {
        let less = |size: u64| Some(size.saturating_sub(bytes));
        let _ = self.appending.size.fetch_update(Relaxed, Relaxed, less);
    }

    fn grow(&self, bytes: u64) {
        self.appending.size.fetch_add(bytes, Relaxed);
    }

    /// Records appended since the spool was opened.
    pub fn appended(&self) -> u64 {
        self.appending.appended.load(Relaxed)
    }

    /// The right to append, alone. None: it could not be had, which should not happen.
    pub(super) fn lock(&self) -> Option<Locked<'_>> {
        let take =
            || Held::take(&self.appending.lock, APPENDING).map(|held| Locked { shared: self, _held: held });
        let waits = [(SPINS, std::hint::spin_loop as fn()), (YIELDS, std::thread::yield_now)];
        for (times, wait) in waits {
            for _ in 0..times {
                let locked = take();
                if locked.is_some() {
                    return locked;
                }
                wait();
            }
        }
        let begun = Instant::now();
        while begun.elapsed() < LOCK_PATIENCE {
            let locked = take();
            if locked.is_some() {
                return locked;
            }
            std::thread::sleep(NAP);
        }
        None
    }

    /// The right to open a spool or to remove one; None if another has it.
    pub fn opening(&self) -> Option<Held<'_>> {
        Held::take(&self.opening, OPENING)
    }

    /// The right to sync for all; None if another has it.
    pub fn sync(&self) -> Option<Held<'_>> {
        Held::take(&self.syncing, SYNCING)
    }

    /// Gives up whatever rights the calling process has: for one that leaves without running destructors (FATAL, which is
    /// also what running out of memory is). What it was changing is whole: everything is told last and in one store.
    pub fn let_go(&self) {
        let mine = MINE.replace(0);
        let words = [(&self.appending.lock, APPENDING), (&self.opening, OPENING), (&self.syncing, SYNCING)];
        for (word, _) in words.into_iter().filter(|(_, right)| mine & right != 0) {
            word.store(0, Release);
        }
    }

    /// The inode of the staging buffer; None: there is none.
    pub fn staging(&self) -> Option<u64> {
        Some(self.staging.load(Relaxed)).filter(|inode| *inode != 0)
    }

    /// From now on nothing of this spool is said to be on disk. Without the lock, which may not be to be had.
    pub(super) fn set_broken(&self, generation: u64) {
        self.broken.fetch_max(generation, Release);
    }

    /// Up to where the spool of a generation is on disk. None: it is not the open one any more, or has failed at that.
    pub fn synced(&self, generation: u64) -> Option<Synced> {
        // In this order: who opens another spool says that nothing of it is synced before he says that it is another.
        let synced = Synced(self.synced.load(Acquire));
        (self.generation() == generation && self.broken.load(Acquire) != generation).then_some(synced)
    }

    /// Under the lock, so that what was synced of one spool is not said of the next.
    pub(super) fn set_synced(&self, generation: u64, synced: Synced) {
        if let Some(_locked) = self.lock()
            && self.generation() == generation
        {
            self.synced.fetch_max(synced.0, Release);
        }
    }

    /// A new spool is there, with segment 1, its staging buffer's inode, and so many bytes in all. Nobody appends: the
    /// segment was 0.
    pub(super) fn opened(
        &self,
        locked: &Locked<'_>,
        (id, key): (Id, SpoolKey),
        staging: Option<u64>,
        size: u64,
    ) {
        store(&self.id, &id.0);
        store(&self.key, &key.0);
        self.staging.store(staging.unwrap_or(0), Relaxed);
        self.synced.store(0, Relaxed);
        let appending = &locked.shared.appending;
        appending.appended.store(0, Relaxed);
        appending.written.store(0, Relaxed);
        appending.staged.store(0, Relaxed);
        appending.size.store(size, Relaxed);
        self.generation.fetch_add(1, Release);
        self.segment.store(1, Release);
    }

    /// The spool of a generation has lost its files: whoever appends next opens another.
    pub fn close(&self, generation: u64) {
        if let Some(_locked) = self.lock()
            && self.generation() == generation
        {
            self.segment.store(0, Release);
        }
    }

    /// Whether opening may be tried now; if so, not again before `pause_ms` have passed.
    pub(super) fn may_retry(&self, now_ms: u64, pause_ms: u64) -> bool {
        let at = self.retry_at.load(Relaxed);
        now_ms >= at && self.retry_at.compare_exchange(at, now_ms + pause_ms, Relaxed, Relaxed).is_ok()
    }
}

/// The one who may append at this moment, to the segment that is current as long.
pub(super) struct Locked<'a> {
    shared: &'a Shared,
    _held: Held<'a>,
}

impl Locked<'_> {
    pub fn segment(&self) -> u64 {
        self.shared.segment()
    }

    pub fn written(&self) -> u64 {
        self.shared.appending.written.load(Relaxed)
    }

    pub fn staged(&self) -> u64 {
        self.shared.appending.staged.load(Relaxed)
    }

    /// So many bytes were appended, to the file or to the staging buffer.
    pub fn wrote(&self, bytes: u64) {
        add(&self.shared.appending.written, bytes);
        self.shared.grow(bytes);
    }

    pub fn staged_more(&self, bytes: u64) {
        add(&self.shared.appending.staged, bytes);
        self.shared.grow(bytes);
    }

    /// What was staged is in the file.
    pub fn drained(&self) {
        let staged = self.staged();
        add(&self.shared.appending.written, staged);
        self.shared.appending.staged.store(0, Relaxed);
    }

    pub fn count(&self, records: u64) {
        add(&self.shared.appending.appended, records);
    }

    /// Segment `next` is there, and all of the one before is in its file.
    pub fn rolled(&self, next: u64) {
        self.shared.appending.written.store(0, Relaxed);
        self.shared.segment.store(next, Release);
    }
}

/// Adds to what only the holder of the lock changes.
fn add(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Relaxed) + more, Relaxed);
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

/// The rights, as bits.
const APPENDING: u8 = 1;
const OPENING: u8 = 2;
const SYNCING: u8 = 4;

thread_local! {
    /// Those that this process has (its main thread, and no other).
    static MINE: Cell<u8> = const { Cell::new(0) };
}

/// A right that one process at a time has. Held over file operations only, in which no ERROR of the server is raised. Who
/// leaves in the middle of them gives it up with [`Shared::let_go`]; who is killed takes the mapping with him.
pub struct Held<'a> {
    word: &'a AtomicU32,
    right: u8,
}

impl<'a> Held<'a> {
    fn take(word: &'a AtomicU32, right: u8) -> Option<Self> {
        // Acquire: pairs with the Release of `drop`.
        word.compare_exchange(0, 1, Acquire, Relaxed).ok()?;
        MINE.set(MINE.get() | right);
        Some(Self { word, right })
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        MINE.set(MINE.get() & !self.right);
        self.word.store(0, Release);
    }
}
