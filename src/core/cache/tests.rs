//! The DEK cache: what may be served when, what is left in memory, and readers against writers on real threads.
//!
//! Unit tests only. Keys are functions of their digests, so that a key served for another digest is recognised; what
//! is left in memory is judged by scanning the raw words.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::*;
use crate::envelope::Dek;

fn sets(count: usize) -> Vec<Set> {
    (0..count).map(|_| Set::new()).collect()
}

fn digest(number: u64) -> [u8; 32] {
    Sha256::digest(number.to_le_bytes()).into()
}

/// A digest that falls into set 0 of any table and is alone in its tag or in its other words, as `number` says.
fn crafted(tag: u64, rest: u64) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&tag.to_le_bytes());
    bytes[24..].copy_from_slice(&rest.to_le_bytes());
    bytes
}

fn dek_of(digest: &[u8; 32]) -> Dek {
    Dek::from_slice(&Sha256::digest(digest)).expect("not zero")
}

fn hit(found: Lookup) -> Option<[u8; 32]> {
    match found {
        Lookup::Hit(dek) => Some(*dek.as_bytes()),
        _ => None,
    }
}

/// How many copies of the key lie anywhere in the sets, in whole or in any word.
fn remains(sets: &[Set], digest: &[u8; 32]) -> usize {
    let dek = dek_of(digest);
    let parts: Vec<u64> =
        dek.as_bytes().chunks(8).map(|part| u64::from_le_bytes(part.try_into().expect("8"))).collect();
    sets.iter().flat_map(Set::dump).filter(|word| parts.contains(word)).count()
}

#[test]
fn layout_is_what_the_mapping_is_sized_for() {
    assert_eq!(size_of::<Set>(), 704);
    assert_eq!(align_of::<Set>(), 64);
    assert_eq!(size_of::<Counters>(), 64 * 128);
    assert!(!std::mem::needs_drop::<Set>());
}

#[test]
fn sets_are_a_power_of_two_and_enough() {
    for (entries, expected) in [(0, 1), (1, 1), (4, 1), (5, 2), (16384, 4096), (16385, 8192)] {
        assert_eq!(sets_for(entries), expected, "{entries} entries");
    }
    assert_eq!(sets_for(usize::MAX), 1 << 24);
}

#[test]
fn any_number_of_sets_is_a_table() {
    for (count, used) in [(0, 0), (1, 1), (2, 2), (3, 2), (7, 4), (8, 8)] {
        let sets = sets(count);
        let table = Table::from_sets(&sets);
        assert_eq!(table.sets(), used);
        for number in 0..50 {
            let digest = digest(number);
            table.insert(&digest, &dek_of(&digest), 0, 10, 0);
            assert_eq!(hit(table.lookup(&digest, 5)).is_some(), count > 0);
            assert_eq!(table.remove(&digest), if count > 0 { Removed::Wiped } else { Removed::NotThere });
        }
        assert_eq!(table.clear(), Cleared::default());
        assert_eq!(table.sweep(99, 0..usize::MAX), Cleared::default());
    }
}

#[test]
fn an_entry_lives_as_long_as_it_may() {
    let sets = sets(1);
    let table = Table::from_sets(&sets);
    let digest = digest(1);
    assert!(matches!(table.lookup(&digest, 0), Lookup::Miss));
    assert_eq!(table.insert(&digest, &dek_of(&digest), 1000, 300, 50), Inserted::Fresh);
    let key = Some(*dek_of(&digest).as_bytes());
    assert_eq!(hit(table.lookup(&digest, 1000)), key);
    assert_eq!(hit(table.lookup(&digest, 1299)), key);
    for (now, late) in [(1300, 0), (1349, 49)] {
        match table.lookup(&digest, now) {
            Lookup::Stale { dek, expired_for_ms } => {
                assert_eq!((Some(*dek.as_bytes()), expired_for_ms), (key, late));
            }
            other => panic!("{other:?} at {now}"),
        }
    }
    assert!(matches!(table.lookup(&digest, 1350), Lookup::Miss));

    // Renewed, this time without a stale window.
    assert_eq!(table.insert(&digest, &dek_of(&digest), 2000, 300, 0), Inserted::Fresh);
    assert_eq!(table.occupied(), 1);
    assert_eq!(hit(table.lookup(&digest, 2299)), key);
    assert!(matches!(table.lookup(&digest, 2300), Lookup::Miss));

    // A TTL beyond the end of time does not wrap into the past.
    table.insert(&digest, &dek_of(&digest), u64::MAX - 5, u64::MAX, u64::MAX);
    assert_eq!(hit(table.lookup(&digest, u64::MAX - 1)), key);

    // A TTL of 0 caches nothing, and ends what was cached.
    assert_eq!(table.insert(&digest, &dek_of(&digest), 3000, 0, 1000), Inserted::Fresh);
    assert!(matches!(table.lookup(&digest, 3000), Lookup::Miss));
    assert_eq!((table.occupied(), remains(&sets, &digest)), (0, 0));
}

#[test]
fn digests_that_differ_in_any_word_are_different() {
    let sets = sets(4);
    let table = Table::from_sets(&sets);
    let base = digest(7);
    table.insert(&base, &dek_of(&base), 0, 10, 0);
    for bit in 0..256 {
        let mut other = base;
        other[bit / 8] ^= 1 << (bit % 8);
        assert!(matches!(table.lookup(&other, 5), Lookup::Miss), "bit {bit}");
        assert_eq!(table.remove(&other), Removed::NotThere);
    }
    assert!(hit(table.lookup(&base, 5)).is_some());
    // An empty table is all zero, and so is this digest.
    table.clear();
    assert!(matches!(table.lookup(&[0; 32], 0), Lookup::Miss));
}

#[test]
fn nothing_of_a_key_is_left_behind() {
    let sets = sets(1);
    let table = Table::from_sets(&sets);
    let gone: Vec<[u8; 32]> = (0..5).map(|number| crafted(number + 1, 1)).collect();
    for digest in &gone {
        table.insert(digest, &dek_of(digest), 0, 100, 50);
        assert_eq!(remains(&sets, digest), 4, "the positive control");
    }
    // Removal.
    assert_eq!(table.remove(&gone[0]), Removed::Wiped);
    assert_eq!(table.remove(&gone[0]), Removed::NotThere);
    assert_eq!(remains(&sets, &gone[0]), 0);
    // Renewal under another key.
    table.insert(&gone[1], &dek_of(&gone[2]), 0, 100, 50);
    assert_eq!(remains(&sets, &gone[1]), 0);
    table.remove(&gone[1]);
    // Expiry: not before the stale window is over, and only in the range.
    assert_eq!(table.sweep(149, 0..1).wiped, 0);
    assert_eq!(table.sweep(150, 1..1).wiped, 0);
    assert_eq!(remains(&sets, &gone[2]), 4);
    assert_eq!(table.sweep(150, 0..1), Cleared { wiped: 3, busy: 0 });
    // Eviction.
    for number in 0..=WAYS as u64 {
        let digest = crafted(number + 100, 2);
        table.insert(&digest, &dek_of(&digest), 200, 100, 0);
    }
    let left = (0..=WAYS as u64).filter(|number| remains(&sets, &crafted(number + 100, 2)) > 0).count();
    assert_eq!(left, WAYS);
    // Clearing.
    assert_eq!(table.clear(), Cleared { wiped: WAYS, busy: 0 });
    for digest in &gone {
        assert_eq!(remains(&sets, digest), 0);
    }
    // Only the sequence and the clock hand remember anything.
    assert!(sets[0].dump()[2..].iter().all(|word| *word == 0));
}

#[test]
fn dead_entries_go_before_living_ones_and_unused_before_used() {
    let sets = sets(1);
    let table = Table::from_sets(&sets);
    let entry = |number: u64| crafted(number + 1, 3);
    let insert =
        |number: u64, now: u64, ttl: u64| table.insert(&entry(number), &dek_of(&entry(number)), now, ttl, 0);
    let has = |number: u64, now: u64| hit(table.lookup(&entry(number), now)).is_some();
    for number in 0..WAYS as u64 {
        // The fourth expires early.
        assert_eq!(insert(number, 0, if number == 3 { 10 } else { 1000 }), Inserted::Fresh);
    }
    assert_eq!(insert(8, 20, 1000), Inserted::Fresh, "into the dead one");
    assert!(!has(3, 20));
    // All but two are used; those two go first, whatever the hand says, then everything is young again.
    for number in [0, 1, 2, 4, 6, 7] {
        assert!(has(number, 20));
    }
    assert_eq!(insert(9, 20, 1000), Inserted::Evicted);
    assert_eq!(insert(10, 20, 1000), Inserted::Evicted);
    assert_eq!(table.occupied(), WAYS);
    // Not looked up with `has`, which would be a use.
    assert_eq!([8, 5].map(|number| remains(&sets, &entry(number))), [0, 0]);
    for number in [0, 1, 2, 4, 6, 7, 9, 10] {
        assert_eq!(remains(&sets, &entry(number)), 4, "entry {number}");
    }
    // A scan of keys used once does not drive out one that is used all the time.
    for number in 100..200 {
        assert!(has(0, 20), "driven out by entry {number}");
        insert(number, 20, 1000);
    }
    // All referenced: still one leaves, and only one.
    let living: Vec<u64> = (0..200).filter(|number| has(*number, 20)).collect();
    assert_eq!(living.len(), WAYS);
    insert(300, 20, 1000);
    assert_eq!(living.iter().filter(|number| has(**number, 20)).count(), WAYS - 1);
}

#[test]
fn a_locked_set_stops_nobody_for_ever() {
    let sets = sets(1);
    let table = Table::from_sets(&sets);
    let digest = digest(1);
    table.insert(&digest, &dek_of(&digest), 0, 10, 0);
    let counters = Counters::new();
    sets[0].while_locked(|| {
        assert!(matches!(table.lookup(&digest, 5), Lookup::Miss));
        assert_eq!(table.insert(&digest, &dek_of(&digest), 0, 10, 0), Inserted::Busy);
        assert_eq!(table.remove(&digest), Removed::Busy);
        assert_eq!(table.sweep(50, 0..1), Cleared { wiped: 0, busy: 1 });
        assert_eq!(table.clear(), Cleared { wiped: 0, busy: 1 });
        counters.inserted(0, Inserted::Busy);
    });
    assert!(hit(table.lookup(&digest, 5)).is_some());
    assert_eq!(counters.totals(), Totals::default());
}

#[test]
fn a_hot_entry_is_read_without_writing() {
    let sets = sets(1);
    let table = Table::from_sets(&sets);
    let digest = digest(1);
    table.insert(&digest, &dek_of(&digest), 0, 10, 5);
    let _ = table.lookup(&digest, 5);
    let before = sets[0].dump();
    for now in [5, 9, 12, 15] {
        let _ = table.lookup(&digest, now);
    }
    assert_eq!(sets[0].dump(), before);
}

#[test]
fn counters_add_up_over_all_processes() {
    let counters = Counters::new();
    for proc in [0, 1, 63, 64, usize::MAX] {
        counters.looked_up(proc, &Lookup::Miss);
        counters.looked_up(proc, &Lookup::Hit(dek_of(&[1; 32])));
        counters.looked_up(proc, &Lookup::Stale { dek: dek_of(&[1; 32]), expired_for_ms: 1 });
        counters.looked_up(proc, &Lookup::Miss);
        counters.inserted(proc, Inserted::Fresh);
        counters.inserted(proc, Inserted::Evicted);
    }
    assert_eq!(counters.totals(), Totals { hits: 5, stale: 5, misses: 10, inserts: 10, evictions: 5 });
}

/// Writers that overwrite, remove and sweep under readers: no reader ever gets a key that is not its digest's.
#[test]
fn real_threads_never_see_another_entrys_key() {
    const DIGESTS: u64 = 40;
    // Two sets for forty digests: constant eviction.
    let sets = sets(2);
    let table = Table::from_sets(&sets);
    let keys: Vec<([u8; 32], [u8; 32])> =
        (0..DIGESTS).map(|number| (digest(number), *dek_of(&digest(number)).as_bytes())).collect();
    let (stop, failed) = (AtomicBool::new(false), AtomicBool::new(false));
    let (hits, misses, evictions) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for seed in 1..=3u64 {
            let (keys, stop, evictions) = (&keys, &stop, &evictions);
            scope.spawn(move || {
                let mut random = seed;
                while !stop.load(Ordering::Relaxed) {
                    let (digest, key) = &keys[(xorshift(&mut random) % DIGESTS) as usize];
                    match xorshift(&mut random) % 10 {
                        0 => drop(table.remove(digest)),
                        1 => drop(table.sweep(xorshift(&mut random) % 200, 0..2)),
                        2 if xorshift(&mut random).is_multiple_of(50) => drop(table.clear()),
                        _ => {
                            let dek = Dek::from_slice(key).expect("not zero");
                            if table.insert(digest, &dek, 0, 100, 50) == Inserted::Evicted {
                                evictions.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    }
                }
            });
        }
        for seed in 11..=13u64 {
            let (keys, stop, failed, hits, misses) = (&keys, &stop, &failed, &hits, &misses);
            scope.spawn(move || {
                let mut random = seed;
                while !stop.load(Ordering::Relaxed) {
                    let (digest, key) = &keys[(xorshift(&mut random) % DIGESTS) as usize];
                    match table.lookup(digest, xorshift(&mut random) % 200) {
                        Lookup::Hit(dek) | Lookup::Stale { dek, .. } => {
                            if dek.as_bytes() != key {
                                failed.store(true, Ordering::Relaxed);
                                return;
                            }
                            hits.fetch_add(1, Ordering::Relaxed);
                        }
                        Lookup::Miss => {
                            misses.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
        // As long as it takes to see enough of everything; on a busy machine that may be a while.
        let until = Instant::now() + Duration::from_secs(60);
        let enough = || {
            let seen = |count: &AtomicU64| count.load(Ordering::Relaxed) > 20_000;
            seen(&hits) && seen(&misses) && seen(&evictions)
        };
        while Instant::now() < until && !enough() && !failed.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(!failed.into_inner(), "another entry's key, or a torn one");
    let counts = [hits.into_inner(), misses.into_inner(), evictions.into_inner()];
    assert!(counts.iter().all(|count| *count > 20_000), "hits, misses, evictions: {counts:?}");
    assert!(table.occupied() <= 2 * WAYS);
    table.clear();
    assert!(keys.iter().all(|(digest, _)| remains(&sets, digest) == 0));
}

fn xorshift(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[derive(Clone, Debug)]
enum Act {
    Insert { number: u64, ttl: u64, stale: u64 },
    Remove(u64),
    Lookup(u64),
    Sweep,
    Clear,
    Wait(u64),
}

fn any_act() -> impl Strategy<Value = Act> {
    let number = 0..24u64;
    prop_oneof![
        4 => (number.clone(), 0..60u64, 0..20u64)
            .prop_map(|(number, ttl, stale)| Act::Insert { number, ttl, stale }),
        1 => number.clone().prop_map(Act::Remove),
        4 => number.prop_map(Act::Lookup),
        1 => Just(Act::Sweep),
        1 => (0..40u64).prop_map(Act::Wait),
        1 => (0..10u64).prop_map(|roll| if roll == 0 { Act::Clear } else { Act::Sweep }),
    ]
}

proptest! {
    /// Against a plain map: the cache may forget (evict), but what it serves is what the map says, at the time the
    /// map says, and what the map does not hold is nowhere in memory once swept.
    #[test]
    fn the_cache_never_knows_more_than_a_map(acts in prop::collection::vec(any_act(), 1..120)) {
        let sets = sets(2);
        let table = Table::from_sets(&sets);
        let mut map: HashMap<u64, (u64, u64)> = HashMap::new();
        let mut now = 1000;
        for act in acts {
            match act {
                Act::Insert { number, ttl, stale } => {
                    let digest = digest(number);
                    let done = table.insert(&digest, &dek_of(&digest), now, ttl, stale);
                    prop_assert_ne!(done, Inserted::Busy);
                    if ttl == 0 {
                        map.remove(&number);
                        prop_assert!(matches!(table.lookup(&digest, now), Lookup::Miss));
                    } else {
                        map.insert(number, (now + ttl, now + ttl + stale));
                        prop_assert!(hit(table.lookup(&digest, now)).is_some());
                    }
                }
                Act::Remove(number) => {
                    let there = table.remove(&digest(number)) == Removed::Wiped;
                    prop_assert!(map.remove(&number).is_some() || !there);
                    prop_assert_eq!(remains(&sets, &digest(number)), 0);
                }
                Act::Lookup(number) => match (table.lookup(&digest(number), now), map.get(&number)) {
                    (Lookup::Miss, _) => {}
                    (Lookup::Hit(dek), Some((expires, _))) => {
                        prop_assert!(now < *expires);
                        let right = dek_of(&digest(number));
                        prop_assert_eq!(dek.as_bytes(), right.as_bytes());
                    }
                    (Lookup::Stale { dek, expired_for_ms }, Some((expires, dies))) => {
                        prop_assert!(*expires <= now && now < *dies);
                        prop_assert_eq!(expired_for_ms, now - expires);
                        let right = dek_of(&digest(number));
                        prop_assert_eq!(dek.as_bytes(), right.as_bytes());
                    }
                    (found, None) => prop_assert!(false, "{:?} was never there", found),
                },
                Act::Sweep => {
                    table.sweep(now, 0..table.sets());
                    map.retain(|_, (_, dies)| now < *dies);
                    for number in 0..24 {
                        prop_assert!(map.contains_key(&number) || remains(&sets, &digest(number)) == 0);
                    }
                }
                Act::Clear => {
                    table.clear();
                    map.clear();
                    prop_assert_eq!(table.occupied(), 0);
                }
                Act::Wait(by) => now += by,
            }
        }
    }
}
