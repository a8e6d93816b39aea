//! Which slots hold a request that the worker has not seen, and whether the worker has to be woken for it.
//!
//! Lies in shared memory. Client backends mark and ring; the key-service worker's main thread collects, and announces
//! that it sleeps. A mark is a hint: the slot's word alone says whether there is a request. So a mark too many costs one
//! look at a slot, and the worker still looks at all slots once a second, in case a mark was lost with its client.
//!
//! What it saves: a look at one cache line in place of one line a slot, on a wake-up; and wake-ups. A worker that is
//! awake collects again before it sleeps, so nobody has to wake it, and of those who find it asleep only the first does.
//!
//! ```text
//! client                                worker
//!   submit the slot                       awake: asleep = 0
//!   mark: words |= bit        (A)         collect: words = 0, look at those slots
//!   ring: fence                           may_sleep: asleep = 1   (C)
//!         asleep was 1 → 0?   (B)                    fence
//!         then set its latch                         words == 0?  (D)  then wait for the latch
//! ```
//!
//! The trap it avoids is the lost wake-up: (A) not seen by (D) while (C) is not seen by (B). The two fences forbid it:
//! whichever comes second in their total order sees what was stored before the first. The client that turns `asleep` back
//! to 0 owes the wake-up to the others, who rely on it; it does nothing between the two that could fail.
//!
//! Orderings, by pair: `mark` (Release) and `collect` (Acquire) carry the slot's submission, so a collected slot is seen as
//! submitted. The fence in `ring` pairs with the one in `may_sleep`. `asleep` carries nothing and is `Relaxed`.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};

use super::atomic::{AtomicU32, AtomicU64, fence};

const BITS: usize = u64::BITS as usize;

/// The inbox of the server. The parameter of [`InboxOf`] exists for the model checker, which needs few words.
pub type Inbox = InboxOf<128>;

/// Marks for `64 * W` slots. All zero is valid: nothing is marked, and the worker is awake or not there. Holds no pointer
/// and needs no drop, so it may lie in a zero-filled mapping shared by processes.
#[repr(C, align(64))]
pub struct InboxOf<const W: usize> {
    /// 1 while the worker sleeps or is about to.
    asleep: AtomicU32,
    words: [AtomicU64; W],
}

impl<const W: usize> InboxOf<W> {
    /// How many slots can be marked.
    pub const SLOTS: usize = W * BITS;

    #[allow(clippy::new_without_default, reason = "placed in shared memory, hardly ever made by value")]
    pub fn new() -> Self {
        Self { asleep: AtomicU32::new(0), words: std::array::from_fn(|_| AtomicU64::new(0)) }
    }

    /// Client: slot `index` has been submitted. Follow a burst of marks with one [`Self::ring`].
    pub fn mark(&self, index: usize) {
        if let Some(word) = self.words.get(index / BITS) {
            // Release: pairs with the Acquire of `collect`.
            word.fetch_or(1 << (index % BITS), Release);
        }
    }

    /// Client: whether the worker must be woken for what this process has marked. If so, do it now: others rely on it.
    #[must_use = "the worker sleeps, and nobody else will wake it"]
    pub fn ring(&self) -> bool {
        // Pairs with the fence of `may_sleep`.
        fence(SeqCst);
        // Looked at before it is written: while the worker is awake, clients share the cache line.
        self.asleep.load(Relaxed) == 1 && self.asleep.compare_exchange(1, 0, Relaxed, Relaxed).is_ok()
    }

    /// Worker: from now on nobody needs to ring. Before [`Self::collect`], once after each sleep and at its start.
    pub fn awake(&self) {
        self.asleep.store(0, Relaxed);
    }

    /// Worker: unmarks the slots below `slots` that are marked, and hands each to `look`.
    pub fn collect(&self, slots: usize, mut look: impl FnMut(usize)) {
        for (word, first) in self.words(slots).iter().zip((0..).step_by(BITS)) {
            if word.load(Relaxed) == 0 {
                continue;
            }
            // Acquire: pairs with the Release of `mark`.
            let mut marked = word.swap(0, Acquire);
            while marked != 0 {
                look(first + marked.trailing_zeros() as usize);
                marked &= marked - 1;
            }
        }
    }

    /// Worker: announces that it is about to sleep. False if there are marks, and it must look again instead.
    pub fn may_sleep(&self, slots: usize) -> bool {
        self.asleep.store(1, Relaxed);
        // Pairs with the fence of `ring`.
        fence(SeqCst);
        let empty = self.words(slots).iter().all(|word| word.load(Relaxed) == 0);
        if !empty {
            self.awake();
        }
        empty
    }

    fn words(&self, slots: usize) -> &[AtomicU64] {
        &self.words[..slots.div_ceil(BITS).min(W)]
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn collected(inbox: &Inbox, slots: usize) -> Vec<usize> {
        let mut found = Vec::new();
        inbox.collect(slots, |slot| found.push(slot));
        found
    }

    #[test]
    fn marks_are_collected_once_and_in_order() {
        let inbox = Inbox::new();
        for slot in [200, 3, 64, 3, 63, 0] {
            inbox.mark(slot);
        }
        assert_eq!(collected(&inbox, 256), [0, 3, 63, 64, 200]);
        assert_eq!(collected(&inbox, 256), [0; 0]);
        inbox.mark(Inbox::SLOTS - 1);
        inbox.mark(Inbox::SLOTS);
        assert_eq!(collected(&inbox, 256), [0; 0], "beyond the slots in use");
        assert_eq!(collected(&inbox, usize::MAX), [Inbox::SLOTS - 1], "what lies outside is not marked");
    }

    #[test]
    fn the_first_of_those_who_find_it_asleep_wakes_it() {
        let inbox = Inbox::new();
        inbox.mark(1);
        assert!(!inbox.ring(), "a worker that is awake, or not there, is not woken");
        assert!(!inbox.may_sleep(4), "there is a mark");
        inbox.mark(2);
        assert!(!inbox.ring(), "it looks again by itself");
        assert_eq!(collected(&inbox, 4), [1, 2]);
        assert!(inbox.may_sleep(4));
        let woken = (0..4).filter(|slot| {
            inbox.mark(*slot);
            inbox.ring()
        });
        assert_eq!(woken.count(), 1, "four requests, one wake-up");
        inbox.awake();
        assert_eq!(collected(&inbox, 4), [0, 1, 2, 3]);
        assert!(inbox.may_sleep(4));
        inbox.awake();
        assert!(!inbox.ring(), "woken by something else");
    }

    #[test]
    fn layout_is_what_the_mapping_is_sized_for() {
        assert_eq!(size_of::<Inbox>(), 64 + Inbox::SLOTS / 8);
        assert!(!std::mem::needs_drop::<Inbox>());
    }
}
