//! How much shared memory the settings allow, counted without the extension's own types. Pure; used by the tests and the
//! benchmark.
//!
//! This is what the documentation promises an administrator, so it must not follow the code when a struct grows.

/// One request slot: the longest request and answer, and a cache line.
const SLOT: usize = 16 * 1024;
/// Eight cached data keys with their digests, and the places of eight rows.
const SET: usize = 704 + 64;
/// Entries a set of 8 places is sized for.
const SET_ENTRIES: usize = 4;
/// Header, counters, uses of tokens (256 kB), and rounding up to pages.
const FIXED: usize = 288 * 1024;

/// The most bytes that `kms_queue_slots` and `dek_cache_size` may cost. The cache has a power of two of sets.
pub fn bound(queue_slots: usize, cache_entries: usize) -> usize {
    FIXED + queue_slots * SLOT + cache_entries.div_ceil(SET_ENTRIES).max(1).next_power_of_two() * SET
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_follows_both_settings() {
        assert_eq!(bound(0, 0), FIXED + SET);
        assert_eq!(bound(0, 4), FIXED + SET);
        assert_eq!(bound(0, 5), FIXED + 2 * SET);
        assert_eq!(bound(3, 8) - bound(2, 8), SLOT);
        // The defaults: 4 MiB of slots, 3 MiB of keys and places.
        assert_eq!(bound(256, 16_384), FIXED + 256 * SLOT + 4096 * SET);
    }
}
