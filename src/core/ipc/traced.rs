//! Atomics for this crate's own tests: `std`'s, unless the calling thread is inside [`step`], which lets the code under
//! test perform exactly one more access and then stops it.
//!
//! Runs in unit tests only. It makes an enumerating model checker out of the real code without threads: code is
//! a function of what its accesses returned, so to advance a party by one access it is run again from its start, the
//! recorded results are fed to it, and at the first access beyond them it touches memory. At the one after that it is
//! unwound. The trap it avoids is checking a model that has drifted from the code.
//!
//! Accesses are sequentially consistent here, whatever ordering they ask for: `loom_tests` checks the orderings.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering;

/// One access as the model sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Access {
    pub addr: usize,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Load,
    Store,
    Exchange,
}

/// The result of an access: the value read, and for an exchange whether it succeeded.
pub(super) type Seen = (bool, u64);

/// How a step ended.
pub(super) enum Step<T> {
    /// At its next access.
    Paused(Access),
    Finished(T),
}

struct Run {
    history: Vec<Seen>,
    replayed: usize,
    may_step: bool,
    mark: Mark,
}

/// The latest [`mark`] a party passed. Two runs of one party that stand at equal labels and have seen the same since
/// will do the same from here on.
#[derive(Clone, Copy, Default)]
pub(super) struct Mark {
    pub label: u64,
    /// How much of the history came before.
    pub from: usize,
}

struct Stop(Access);

thread_local! {
    static RUN: RefCell<Option<Run>> = const { RefCell::new(None) };
}

/// Runs `party` from its start through the accesses of `history` and, if `advance`, one further access for real, which
/// is appended to `history`. Assertions that fail in `party` panic through.
pub(super) fn step<T>(
    history: &mut Vec<Seen>,
    mark: &mut Mark,
    advance: bool,
    party: impl FnOnce() -> T,
) -> Step<T> {
    let run = Run { history: std::mem::take(history), replayed: 0, may_step: advance, mark: Mark::default() };
    RUN.with_borrow_mut(|slot| *slot = Some(run));
    let outcome = catch_unwind(AssertUnwindSafe(party));
    if let Some(run) = RUN.with_borrow_mut(Option::take) {
        assert!(run.replayed >= run.history.len(), "a party did not repeat its own history");
        *history = run.history;
        *mark = run.mark;
    }
    match outcome {
        Ok(value) => Step::Finished(value),
        Err(payload) => match payload.downcast::<Stop>() {
            Ok(stop) => Step::Paused(stop.0),
            Err(failure) => resume_unwind(failure),
        },
    }
}

/// Called by a party where all it remembers is in `label`: lets the search forget how it came here.
pub(super) fn mark(label: u64) {
    RUN.with_borrow_mut(|slot| {
        if let Some(run) = slot {
            run.mark = Mark { label, from: run.replayed };
        }
    });
}

fn access(addr: usize, kind: Kind, perform: impl Fn() -> Seen) -> Seen {
    enum Do {
        Return(Seen),
        Stop,
        Perform,
    }
    let todo = RUN.with_borrow_mut(|slot| match slot {
        // Plain concurrent use, or a destructor during the unwinding of a stopped party.
        None => Do::Perform,
        Some(run) if run.replayed < run.history.len() => {
            run.replayed += 1;
            Do::Return(run.history[run.replayed - 1])
        }
        Some(run) if run.may_step => {
            run.may_step = false;
            let seen = perform();
            run.history.push(seen);
            run.replayed += 1;
            Do::Return(seen)
        }
        Some(_) => Do::Stop,
    });
    match todo {
        Do::Return(seen) => seen,
        Do::Perform => perform(),
        Do::Stop => resume_unwind(Box::new(Stop(Access { addr, kind }))),
    }
}

macro_rules! traced {
    ($name:ident, $int:ty) => {
        #[repr(transparent)]
        #[derive(Debug)]
        pub(crate) struct $name(std::sync::atomic::$name);

        #[allow(dead_code, reason = "not every width needs every operation")]
        impl $name {
            pub(crate) const fn new(value: $int) -> Self {
                Self(std::sync::atomic::$name::new(value))
            }

            pub(crate) fn load(&self, order: Ordering) -> $int {
                access(self.addr(), Kind::Load, || (true, self.0.load(order) as u64)).1 as $int
            }

            pub(crate) fn store(&self, value: $int, order: Ordering) {
                access(self.addr(), Kind::Store, || {
                    self.0.store(value, order);
                    (true, 0)
                });
            }

            pub(crate) fn compare_exchange(
                &self,
                from: $int,
                to: $int,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$int, $int> {
                let (done, found) = access(self.addr(), Kind::Exchange, || {
                    match self.0.compare_exchange(from, to, success, failure) {
                        Ok(found) => (true, found as u64),
                        Err(found) => (false, found as u64),
                    }
                });
                if done { Ok(found as $int) } else { Err(found as $int) }
            }

            pub(crate) fn swap(&self, value: $int, order: Ordering) -> $int {
                access(self.addr(), Kind::Exchange, || (true, self.0.swap(value, order) as u64)).1 as $int
            }

            pub(crate) fn fetch_add(&self, by: $int, order: Ordering) -> $int {
                access(self.addr(), Kind::Exchange, || (true, self.0.fetch_add(by, order) as u64)).1 as $int
            }

            pub(crate) fn fetch_or(&self, bits: $int, order: Ordering) -> $int {
                access(self.addr(), Kind::Exchange, || (true, self.0.fetch_or(bits, order) as u64)).1 as $int
            }

            pub(crate) fn fetch_and(&self, bits: $int, order: Ordering) -> $int {
                access(self.addr(), Kind::Exchange, || (true, self.0.fetch_and(bits, order) as u64)).1 as $int
            }

            fn addr(&self) -> usize {
                std::ptr::from_ref(self).addr()
            }
        }
    };
}

traced!(AtomicI32, i32);
traced!(AtomicU32, u32);
traced!(AtomicU64, u64);
