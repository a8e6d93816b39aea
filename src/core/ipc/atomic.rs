//! The atomics every shared-memory structure of this crate is made of, and byte strings stored in them.
//!
//! Runs in every process attached to the mapping. Three faces, one name: plain `std` atomics in a release and in
//! other crates' builds; `loom`'s under `--cfg loom`; and, in this crate's own tests, `std` atomics that report
//! each access to the enumerating model checker (`traced`). The trap it avoids is testing a re-implementation: the
//! checkers run the very code that runs in the server.
//!
//! Payload bytes are kept in `AtomicU64` words accessed `Relaxed`: a byte race between processes would be
//! undefined behaviour, a word race is merely a wrong value, and which party may touch the words at all is the
//! business of the state machine on top.

#[cfg(all(test, loom))]
pub(crate) use loom::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, fence};
#[cfg(not(test))]
pub(crate) use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, fence};
#[cfg(all(test, not(loom)))]
pub(crate) use {
    super::traced::{AtomicI32, AtomicU32, AtomicU64},
    std::sync::atomic::fence,
};

use std::sync::atomic::Ordering::Relaxed;

/// Copies `bytes` into `words`, little-endian, the last word zero-padded; bytes beyond the capacity are ignored
/// (callers check the length first).
pub(crate) fn store_bytes(words: &[AtomicU64], bytes: &[u8]) {
    for (word, chunk) in words.iter().zip(bytes.chunks(8)) {
        let mut le = [0u8; 8];
        le[..chunk.len()].copy_from_slice(chunk);
        word.store(u64::from_le_bytes(le), Relaxed);
    }
}

/// Fills `out` from `words`; what lies beyond the capacity is left as it was.
pub(crate) fn load_bytes(words: &[AtomicU64], out: &mut [u8]) {
    for (word, chunk) in words.iter().zip(out.chunks_mut(8)) {
        let le = word.load(Relaxed).to_le_bytes();
        chunk.copy_from_slice(&le[..chunk.len()]);
    }
}

/// Zeroes `words`. Atomic stores to memory another process can read: the compiler cannot drop them as dead.
pub(crate) fn wipe(words: &[AtomicU64]) {
    for word in words {
        word.store(0, Relaxed);
    }
}
