//! Whether a secret is there: live, deleted but recoverable, or gone although its row still stands.
//!
//! Runs in backends on every operation, and in the maintenance worker. Pure: the caller brings `clock_timestamp()`.
//! The trap it avoids is a secret that lives on until somebody cleans up: run out is run out at the microsecond, for
//! every reader, whether or not a job has deleted the row.

use super::version::Timestamp;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Presence {
    Live,
    /// Deleted with a recovery window that is still open: nobody reads it, its name stays taken.
    Deleted {
        /// End of the window.
        recoverable_until: Timestamp,
    },
    /// Run out (`expires_in`), or deleted and its window over: as if it had never been, its row may be destroyed.
    Gone,
}

impl Presence {
    /// The presence at `now` of a secret with these ends. A time that equals `now` has come.
    pub fn at(now: Timestamp, expires_at: Option<Timestamp>, recover_until: Option<Timestamp>) -> Self {
        match (expires_at, recover_until) {
            (Some(end), _) if end <= now => Self::Gone,
            (_, Some(end)) if end <= now => Self::Gone,
            (_, Some(end)) => Self::Deleted { recoverable_until: end },
            (_, None) => Self::Live,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_counts_and_the_earlier_one_wins() {
        let at = |expires: Option<i64>, recover: Option<i64>| {
            Presence::at(Timestamp(10), expires.map(Timestamp), recover.map(Timestamp))
        };
        let deleted = |until| Presence::Deleted { recoverable_until: Timestamp(until) };
        for (expires, recover, expected) in [
            (None, None, Presence::Live),
            (Some(11), None, Presence::Live),
            (Some(10), None, Presence::Gone),
            (Some(9), None, Presence::Gone),
            (None, Some(11), deleted(11)),
            (None, Some(10), Presence::Gone),
            (Some(11), Some(12), deleted(12)),
            // What runs out while it waits to be restored cannot be restored.
            (Some(10), Some(12), Presence::Gone),
            (Some(12), Some(9), Presence::Gone),
        ] {
            assert_eq!(at(expires, recover), expected, "{expires:?} {recover:?}");
        }
    }
}
