//! When scheduled work is done: how early a rotation comes, when a failed one is tried again, when to look next.
//!
//! Runs in the maintenance worker. Pure: the caller brings the time and random numbers. The trap it avoids: a thousand
//! secrets that were made, or that failed, together, and come back together for ever.

use std::time::Duration;

/// How long after its first failure a rotation is tried again; doubled with each failure in a row.
const FIRST_RETRY_SECS: u64 = 5;
/// And never longer than this: whoever repaired what was wrong does not wait for days.
const LONGEST_RETRY_SECS: u64 = 3600;
/// The shortest time between two looks at the tables.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);

/// How much of its leeway a rotation uses, from 0 to below 1, for a random number. The leeway itself, one part in
/// twenty of the interval and at most an hour, is in the statement that sets the date: intervals are PostgreSQL's. Early,
/// never late: the interval is what an auditor reads as the maximum age.
pub fn earliness(random: u64) -> f64 {
    // 53 bits: every result is a float of its own, and none is rounded up to 1.
    (random >> 11) as f64 / (1u64 << 53) as f64
}

/// How long to wait after failure number `attempts` (from 1), spread by up to a quarter either way for a random number.
pub fn retry_after(attempts: u32, random: u64) -> Duration {
    let doubled = FIRST_RETRY_SECS.saturating_mul(1 << attempts.saturating_sub(1).min(20));
    let middle = Duration::from_secs(doubled.min(LONGEST_RETRY_SECS));
    middle.mul_f64(0.75 + earliness(random) / 2.0)
}

/// How long to sleep: until the next date (microseconds of the same clock as `now`), within the two bounds.
pub fn pause(now: i64, next: Option<i64>, scan_interval: Duration) -> Duration {
    let until = next.map_or(scan_interval, |next| {
        Duration::from_micros(u64::try_from(next.saturating_sub(now)).unwrap_or(0))
    });
    until.clamp(SHORTEST_PAUSE, scan_interval.max(SHORTEST_PAUSE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn retries_back_off_and_are_spread() {
        let middle = |attempts| retry_after(attempts, 1 << 63).as_secs_f64();
        let middles: Vec<f64> = [1, 2, 3, 4, 10, 11, 100, u32::MAX].map(middle).into();
        assert_eq!(middles, [5.0, 10.0, 20.0, 40.0, 2560.0, 3600.0, 3600.0, 3600.0]);
        assert_eq!(retry_after(0, 1 << 63), retry_after(1, 1 << 63));
        assert_eq!(retry_after(1, 0).as_secs_f64(), 3.75);
        assert!((6.2..=6.25).contains(&retry_after(1, u64::MAX).as_secs_f64()));
    }

    #[test]
    fn the_worker_sleeps_until_the_next_date_within_bounds() {
        let scan = Duration::from_secs(15);
        let at = |next: Option<i64>| pause(1_000_000, next, scan).as_millis();
        assert_eq!(at(None), 15_000);
        assert_eq!(at(Some(6_000_000)), 5000);
        assert_eq!(at(Some(i64::MAX)), 15_000);
        for due in [1_000_000, 0, i64::MIN, 1_200_000] {
            assert_eq!(at(Some(due)), 1000);
        }
        assert_eq!(pause(0, None, Duration::ZERO).as_millis(), 1000);
    }

    #[test]
    fn earliness_uses_the_whole_range() {
        assert_eq!(earliness(0), 0.0);
        assert!(earliness(u64::MAX) < 1.0 && earliness(u64::MAX) > 0.999_999);
    }

    proptest! {
        #[test]
        fn always_in_range(random: u64, attempts: u32) {
            let share = earliness(random);
            prop_assert!((0.0..1.0).contains(&share));
            let wait = retry_after(attempts, random).as_secs_f64();
            prop_assert!((3.75..=4500.0).contains(&wait));
        }
    }
}
