//! How fast the spools grow, for an estimate of when they will be full.
//!
//! In shared memory; the relay looks in each of its turns, on a standby too, and so does whoever asks for the status, since
//! the question matters most when the relay does nothing. All zero is: nobody has looked yet. No lock: of two that look at
//! once one is counted.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Relaxed};
use std::time::Duration;

/// Over which the average is taken: what is older weighs little more than a third.
const OVER: Duration = Duration::from_secs(10);
/// Looks that follow another sooner say nothing.
const SHORTEST: u64 = 100;

#[repr(C)]
#[derive(Default)]
pub struct Growth {
    /// When somebody looked last, in milliseconds of a clock that never stands at 0.
    at: AtomicU64,
    /// Bytes then.
    size: AtomicU64,
    /// Bytes a second, as bits of an f64.
    average: AtomicU64,
}

impl Growth {
    /// Takes note of the size of all spools at `now`, in milliseconds of a monotonic clock.
    pub fn look(&self, now: u64, size: u64) {
        let then = self.at.load(Relaxed);
        if now < then.saturating_add(SHORTEST)
            || self.at.compare_exchange(then, now, AcqRel, Relaxed).is_err()
        {
            return;
        }
        let before = self.size.swap(size, AcqRel);
        if then == 0 {
            return;
        }
        let seconds = (now - then) as f64 / 1000.0;
        let rate = (size as f64 - before as f64) / seconds;
        let average = f64::from_bits(self.average.load(Relaxed));
        let weight = 1.0 - (-seconds / OVER.as_secs_f64()).exp();
        self.average.store((average + (rate - average) * weight).to_bits(), Relaxed);
    }

    /// Seconds until `size` has grown to `limit` at the present rate; None while it does not grow, or by less than a byte a
    /// second.
    pub fn seconds_to_full(&self, size: u64, limit: u64) -> Option<u64> {
        let average = f64::from_bits(self.average.load(Relaxed));
        (average >= 1.0).then(|| (limit.saturating_sub(size) as f64 / average) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;

    /// Looks every `step` milliseconds for `seconds`, at sizes that grow by `rate` bytes a second from `size`.
    fn grow(growth: &Growth, from: u64, step: u64, seconds: u64, size: u64, rate: u64) -> (u64, u64) {
        let mut now = from;
        while now < from + seconds * 1000 {
            now += step;
            growth.look(now, size + (now - from) * rate / 1000);
        }
        (now, size + (now - from) * rate / 1000)
    }

    #[test]
    fn a_steady_rate_is_found_however_often_one_looks() {
        for step in [100, 200, 2_000, 20_000] {
            let growth = Growth::default();
            assert_eq!(growth.seconds_to_full(0, MB), None, "nothing is known");
            let (now, size) = grow(&growth, 1, step, 60, 0, MB);
            let left = growth.seconds_to_full(size, size + 100 * MB).unwrap();
            assert!((99..=103).contains(&left), "every {step} ms: {left}");
            // Within the time of the average most of a change is seen.
            let (now, size) = grow(&growth, now, step, 10, size, 10 * MB);
            let left = growth.seconds_to_full(size, size + 100 * MB).unwrap();
            assert!((10..=16).contains(&left), "every {step} ms: {left}");
            // What stands still is never full.
            grow(&growth, now, step, 300, size, 0);
            let left = growth.seconds_to_full(size, size + 100 * MB);
            assert_eq!(left, None, "every {step} ms");
        }
    }

    #[test]
    fn what_comes_and_goes_does_not_fill_up() {
        let growth = Growth::default();
        for turn in 0..500_u64 {
            growth.look(1 + turn * 200, MB * (turn % 2));
        }
        assert!(growth.seconds_to_full(0, 1000 * MB).is_none_or(|left| left > 2000));
        let full = Growth::default();
        grow(&full, 1, 1000, 20, 0, MB);
        assert_eq!(full.seconds_to_full(2 * MB, MB), Some(0), "past its limit");
    }

    #[test]
    fn looks_at_the_same_moment_count_once() {
        let growth = Growth::default();
        growth.look(1000, 0);
        for _ in 0..100 {
            growth.look(2000, MB);
        }
        let once = growth.seconds_to_full(MB, 2 * MB);
        growth.look(2050, 100 * MB);
        assert_eq!(growth.seconds_to_full(MB, 2 * MB), once, "too soon after");
    }
}
