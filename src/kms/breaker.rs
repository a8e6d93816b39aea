//! When to stop asking a key service that is away, and when to ask again. Pure.
//!
//! ```text
//!            outage, often and long enough                 probe: any answer at all
//!   closed ─────────────────────────────▶ open ─────────────────────────────────▶ closed
//!     ▲  any answer: count starts anew      │ callers get the last error at once
//!     └─────────────── reload ──────────────┘
//! ```
//!
//! Used under the service's lock. *Answers* are successes and everything that is no outage: a service that denies or
//! throttles is there. Opening takes both a number of failures without an answer between and some time: a blip of a
//! second is for the retries to ride out, and a hundred calls that fail in the same millisecond are one observation.
//!
//! While it is open nobody waits for the key service; the service asks it by itself ([`PROBE`]), with the very question
//! that failed, so that what is found to work is what callers need. The trap it avoids: a caller picked as the
//! guinea pig, who waits for a whole timeout while others are answered in a millisecond; and an outage long over
//! that is only found out by the next caller's failure.

use std::time::{Duration, Instant};

use crate::error::{ErrorKind, KmsError};

/// Weight of failures that opens. A call that got no answer weighs two: it took seconds to learn that.
const WEIGHT: u32 = 6;

/// How long calls have to have failed without an answer between.
const SPAN: Duration = Duration::from_secs(1);

/// Between probes, at first and at most: recovery is noticed within seconds, and costs a request a second.
pub(crate) const PROBE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(1));

/// An unfinished call that was given up counts as one without an answer if it ran this long: callers with a short
/// `statement_timeout` would otherwise never teach the breaker that calls hang.
pub(crate) const OVERDUE: Duration = Duration::from_secs(1);

/// Whether the key service is being asked.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    weight: u32,
    failing_since: Option<Instant>,
    open: Option<KmsError>,
    opened: u64,
}

impl Breaker {
    /// There was an answer.
    pub(crate) fn answered(&mut self) {
        self.weight = 0;
        self.failing_since = None;
        self.open = None;
    }

    /// A call ended with this error. `true` if that opened the breaker: start probing.
    pub(crate) fn failed(&mut self, error: &KmsError, now: Instant) -> bool {
        let weight = match error.kind {
            ErrorKind::Unreachable => 1,
            ErrorKind::TimedOut => 2,
            _ => {
                self.answered();
                return false;
            }
        };
        let since = *self.failing_since.get_or_insert(now);
        self.weight = self.weight.saturating_add(weight);
        if self.open.is_some() {
            self.open = Some(error.clone());
            return false;
        }
        if self.weight < WEIGHT || now.saturating_duration_since(since) < SPAN {
            return false;
        }
        self.open = Some(error.clone());
        self.opened += 1;
        true
    }

    /// What to tell callers instead of asking, while open.
    pub(crate) fn refusal(&self, now: Instant) -> Option<KmsError> {
        let last = self.open.as_ref()?;
        let seconds = self.failing_since.map_or(0, |since| now.saturating_duration_since(since).as_secs());
        let mut error = KmsError::new(last.kind, "the key service cannot be reached")
            .with_detail(format!("It has not answered for {seconds} s; the last call: {}.", last.message));
        if let Some(detail) = &last.detail {
            error = error.with_detail(detail);
        }
        Some(error.with_hint(
            "It is asked again every second in the background; repeat the request when vault.status() shows kms.breaker closed.",
        ))
    }

    /// Whether nobody is asked.
    pub(crate) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// How often it has opened.
    pub(crate) fn opened(&self) -> u64 {
        self.opened
    }

    /// Another provider or other settings: what was learned is about the old ones.
    pub(crate) fn reset(&mut self) {
        self.answered();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(kind: ErrorKind) -> KmsError {
        KmsError::new(kind, "no").with_detail("Because.")
    }

    /// Feeds failures of one kind at these milliseconds; at which of them it opened.
    fn opens_at(kind: ErrorKind, at: &[u64]) -> Option<u64> {
        let start = Instant::now();
        let mut breaker = Breaker::default();
        at.iter().copied().find(|ms| breaker.failed(&error(kind), start + Duration::from_millis(*ms)))
    }

    #[test]
    fn opens_by_number_and_time_together() {
        assert_eq!(opens_at(ErrorKind::Unreachable, &[0; 100]), None);
        assert_eq!(opens_at(ErrorKind::Unreachable, &[0, 0, 0, 0, 0, 0, 999]), None);
        assert_eq!(opens_at(ErrorKind::Unreachable, &[0, 0, 0, 0, 0, 0, 1000]), Some(1000));
        assert_eq!(opens_at(ErrorKind::Unreachable, &[0, 1000, 2000, 3000, 4000]), None);
        assert_eq!(opens_at(ErrorKind::Unreachable, &[0, 1000, 2000, 3000, 4000, 5000]), Some(5000));
        // One caller's three attempts that hang.
        assert_eq!(opens_at(ErrorKind::TimedOut, &[3000, 6000, 9000]), Some(9000));
    }

    #[test]
    fn only_outages_count_and_any_answer_starts_anew() {
        for kind in ErrorKind::ALL {
            let outage = matches!(kind, ErrorKind::Unreachable | ErrorKind::TimedOut);
            assert_eq!(opens_at(kind, &[0, 500, 1000, 1500, 2000, 2500]).is_some(), outage, "{kind:?}");
        }
        let start = Instant::now();
        let mut breaker = Breaker::default();
        for round in 0..10 {
            for n in 0..5 {
                let at = start + Duration::from_secs(round * 10 + n);
                assert!(!breaker.failed(&error(ErrorKind::Unreachable), at));
            }
            if round % 2 == 0 {
                breaker.answered();
            } else {
                breaker.failed(&error(ErrorKind::Throttled), start);
            }
        }
    }

    #[test]
    fn open_it_tells_the_last_error_until_an_answer() {
        let start = Instant::now();
        let mut breaker = Breaker::default();
        assert_eq!(breaker.refusal(start), None);
        for second in 0..6 {
            breaker.failed(&error(ErrorKind::Unreachable), start + Duration::from_secs(second));
        }
        assert!(breaker.is_open());
        let later = start + Duration::from_secs(9);
        let told = breaker.refusal(later).unwrap();
        assert_eq!(told.kind, ErrorKind::Unreachable);
        assert_eq!(told.detail.as_deref(), Some("It has not answered for 9 s; the last call: no. Because."));
        // It opens once, however often it goes on failing.
        assert!(!breaker.failed(&error(ErrorKind::TimedOut), later));
        assert_eq!(breaker.refusal(later).unwrap().kind, ErrorKind::TimedOut);
        assert_eq!(breaker.opened(), 1);
        breaker.answered();
        assert_eq!(breaker.refusal(later), None);
        assert!(!breaker.failed(&error(ErrorKind::Unreachable), later), "the count starts anew");
    }
}
