//! When to try a failed call again, and how long to wait first. Pure.
//!
//! Asked on the tokio threads after each failed attempt. The trap it avoids: every waiter of an outage coming
//! back in the same millisecond (hence the jitter), and a pause that outlasts all who wait (hence the deadline:
//! it is kinder to report the last failure now than a timeout later).

use std::time::Duration;

use crate::error::ErrorKind;

/// The first pause. About what a healthy key service takes to answer, so a blip costs one more round trip.
const BASE: Duration = Duration::from_millis(50);

/// The first pause when the service asks for fewer calls: its buckets refill by the second.
const BASE_THROTTLED: Duration = Duration::from_millis(200);

/// The longest pause, so that a recovery is noticed within seconds.
const CAP: Duration = Duration::from_secs(2);

/// The pause before the next attempt, or `None` if there should be none.
///
/// `failed` counts the attempts made so far (1 after the first), `remaining` is the time until nobody waits any
/// more, `random` any 32 bits.
pub(crate) fn next_delay(
    kind: ErrorKind,
    failed: u32,
    max_retries: u32,
    remaining: Duration,
    random: u32,
) -> Option<Duration> {
    if !kind.is_retryable() || failed > max_retries {
        return None;
    }
    let delay = backoff(kind, failed, random);
    (delay < remaining).then_some(delay)
}

/// Exponential, capped, and spread over its upper half: waiting at least half keeps a retry from coming at once.
pub(crate) fn backoff(kind: ErrorKind, failed: u32, random: u32) -> Duration {
    let base = if kind == ErrorKind::Throttled { BASE_THROTTLED } else { BASE };
    // 2^16 times the base is far beyond the cap; stopping there keeps the shift in range.
    let ceiling = base.saturating_mul(1 << failed.saturating_sub(1).min(16)).min(CAP);
    ceiling / 2 + (ceiling / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}

/// 32 bits to spread retries by. Without a random source all retries take the middle: no harm but crowding.
pub(crate) fn random() -> u32 {
    getrandom::u32().unwrap_or(u32::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn pauses_double_up_to_the_cap_and_stay_in_the_upper_half() {
        for failed in 1..100 {
            let ceiling = Duration::from_millis(50 * 2u64.pow(failed.min(20) - 1)).min(CAP);
            assert_eq!(backoff(ErrorKind::Unreachable, failed, 0), ceiling / 2, "{failed}");
            assert_eq!(backoff(ErrorKind::Unreachable, failed, u32::MAX), ceiling, "{failed}");
            let middle = backoff(ErrorKind::TimedOut, failed, u32::MAX / 2);
            assert!(ceiling / 2 < middle && middle < ceiling);
        }
        assert_eq!(backoff(ErrorKind::Unreachable, u32::MAX, u32::MAX), CAP);
        assert_eq!(backoff(ErrorKind::Throttled, 1, u32::MAX), Duration::from_millis(200));
    }

    #[test]
    fn nothing_is_retried_that_must_not_be() {
        for kind in ErrorKind::ALL {
            let wanted = matches!(kind, ErrorKind::Unreachable | ErrorKind::TimedOut | ErrorKind::Throttled);
            assert_eq!(next_delay(kind, 1, 5, HOUR, 0).is_some(), wanted, "{kind:?}");
        }
    }

    #[test]
    fn stops_after_max_retries() {
        let retried = |failed, max| next_delay(ErrorKind::Unreachable, failed, max, HOUR, 0).is_some();
        assert!(!retried(1, 0));
        assert!(retried(5, 5));
        assert!(!retried(6, 5));
        assert!(!retried(u32::MAX, 5));
    }

    #[test]
    fn never_waits_past_the_deadline() {
        let delay = backoff(ErrorKind::Unreachable, 1, 7);
        let tick = Duration::from_nanos(1);
        assert_eq!(next_delay(ErrorKind::Unreachable, 1, 5, delay + tick, 7), Some(delay));
        assert_eq!(next_delay(ErrorKind::Unreachable, 1, 5, delay, 7), None);
        assert_eq!(next_delay(ErrorKind::Unreachable, 1, 5, Duration::ZERO, 7), None);
    }

    #[test]
    fn random_is_not_constant() {
        assert!((0..10).any(|_| random() != random()));
    }
}
