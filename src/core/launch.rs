//! When a worker that ended is started again.
//!
//! Runs in the launcher. Pure: the caller brings a monotonic time in milliseconds. The trap it avoids: a worker that
//! cannot live (a role is missing, the disk is full) and is started a hundred times a second, or once and never again.

use std::time::Duration;

/// After an ordinary end, and after the first failure.
const SHORTEST: Duration = Duration::from_secs(1);
/// After failures in a row.
const LONGEST: Duration = Duration::from_secs(60);
/// While there is nothing to work on, at most this long until somebody looks again: on a standby nobody says that the
/// primary has created the extension.
const LONGEST_LOOK: Duration = Duration::from_secs(30);
/// A worker that lived this long was well: its end is not one of a row.
const LIVED: u64 = 30_000;

/// How a worker ended, or why it was not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Was told to, or made way for a command that wants nobody in the database.
    Orderly,
    /// There is no extension, or no database.
    NothingToDo,
    /// Anything else.
    Failed,
}

/// The record of one worker.
#[derive(Clone, Copy, Debug, Default)]
pub struct Record {
    in_a_row: u32,
    started_at: u64,
    not_before: u64,
}

impl Record {
    /// Whether it may be started at `now`.
    pub fn may_start(&self, now: u64) -> bool {
        now >= self.not_before
    }

    /// How long from `now` until it may.
    pub fn wait(&self, now: u64) -> Duration {
        Duration::from_millis(self.not_before.saturating_sub(now))
    }

    pub fn started(&mut self, now: u64) {
        self.started_at = now;
        self.not_before = now;
    }

    pub fn ended(&mut self, now: u64, how: Ended) {
        if how == Ended::Orderly || now.saturating_sub(self.started_at) >= LIVED {
            self.in_a_row = 0;
        }
        let longest = if how == Ended::NothingToDo { LONGEST_LOOK } else { LONGEST };
        let pause = SHORTEST.saturating_mul(1 << self.in_a_row.min(16)).min(longest);
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.not_before = now + pause.as_millis() as u64;
    }

    /// Something has changed: what went wrong before need not go wrong again.
    pub fn forgive(&mut self) {
        self.in_a_row = 0;
        self.not_before = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pauses after ends of one kind, each right after the start.
    fn pauses(how: Ended, count: usize) -> Vec<u64> {
        let mut record = Record::default();
        let mut now = 1000;
        (0..count)
            .map(|_| {
                assert!(record.may_start(now));
                record.started(now);
                now += 10;
                record.ended(now, how);
                assert!(!record.may_start(now));
                let wait = record.wait(now).as_millis() as u64;
                now += wait;
                wait
            })
            .collect()
    }

    #[test]
    fn failures_in_a_row_are_spaced_out() {
        assert_eq!(
            pauses(Ended::Failed, 9),
            [1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000, 60_000]
        );
        assert_eq!(pauses(Ended::NothingToDo, 7), [1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        assert_eq!(pauses(Ended::Orderly, 3), [1000, 1000, 1000]);
        assert_eq!(pauses(Ended::Failed, 100)[99], 60_000);
    }

    #[test]
    fn a_life_or_a_change_begins_anew() {
        let mut record = Record::default();
        for now in 0..5 {
            record.started(now);
            record.ended(now, Ended::Failed);
        }
        assert_eq!(record.wait(4).as_millis(), 16_000);
        record.started(100);
        record.ended(100 + LIVED, Ended::Failed);
        assert_eq!(record.wait(100 + LIVED).as_millis(), 1000);
        record.started(200_000);
        record.ended(200_000, Ended::Failed);
        assert!(!record.may_start(200_000));
        record.forgive();
        assert!(record.may_start(200_000));
    }
}
