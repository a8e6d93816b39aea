//! The sequence lock under loom: its fences, which no test on a strongly ordered machine can miss.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p hyperion_vault_core --release loom`

use loom::sync::Arc;
use loom::thread;
use std::sync::atomic::Ordering::Relaxed;

use super::seqlock::Seqlock;
use crate::ipc::atomic::AtomicU64;

struct Pair {
    lock: Seqlock,
    /// Always equal outside of a write.
    left: AtomicU64,
    right: AtomicU64,
}

impl Pair {
    fn new() -> Arc<Self> {
        Arc::new(Self { lock: Seqlock::new(), left: AtomicU64::new(0), right: AtomicU64::new(0) })
    }

    fn set(&self, value: u64) {
        if let Some(_writing) = self.lock.write(2) {
            self.left.store(value, Relaxed);
            self.right.store(value, Relaxed);
        }
    }

    /// Reads what is there and adds one: wrong if two writers are inside, or one does not see the other's words.
    fn add(&self) -> bool {
        let Some(_writing) = self.lock.write(2) else { return false };
        let (left, right) = (self.left.load(Relaxed), self.right.load(Relaxed));
        assert_eq!(left, right, "two writers at once");
        self.left.store(left + 1, Relaxed);
        self.right.store(right + 1, Relaxed);
        true
    }

    fn get(&self) -> Option<(u64, u64)> {
        self.lock.read(2, || (self.left.load(Relaxed), self.right.load(Relaxed)))
    }
}

#[test]
fn loom_a_read_is_never_torn() {
    loom::model(|| {
        let pair = Pair::new();
        let writer = {
            let pair = pair.clone();
            thread::spawn(move || {
                pair.set(1);
                pair.set(2);
            })
        };
        if let Some((left, right)) = pair.get() {
            assert_eq!(left, right, "torn");
        }
        writer.join().expect("writer");
        assert_eq!(pair.get(), Some((2, 2)));
    });
}

#[test]
fn loom_writers_exclude_and_see_each_other() {
    loom::model(|| {
        let pair = Pair::new();
        let other = {
            let pair = pair.clone();
            thread::spawn(move || pair.add())
        };
        let done = u64::from(pair.add()) + u64::from(other.join().expect("writer"));
        assert_eq!(pair.get(), Some((done, done)));
    });
}
