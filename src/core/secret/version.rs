//! The life of a version: current → grace → retained → purged.
//!
//! Runs in backends (every read by number, every verify) and in the maintenance worker. Pure: the caller brings
//! the time, which must be `clock_timestamp()` and not the transaction's start, so that an expiry binds open
//! transactions too. The trap it avoids is two places that disagree about the last microsecond: a version whose
//! `expires_at` equals `now` has expired, here and therefore everywhere.

use super::limits::IntervalParts;

/// Microseconds since 2000-01-01 00:00 UTC, as in the server's `timestamptz`; `i64::MAX` is `infinity` and
/// `i64::MIN` is `-infinity`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

/// A length of time in microseconds, never negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(i64);

/// Where a version stands at a given time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VersionState {
    /// The newest; what a read without a version number returns.
    Current,
    /// Superseded, but still valid until its `expires_at`.
    Grace,
    /// Superseded and no longer valid; kept for `roll_back_secret` only.
    Retained,
}

/// A version that is not the current one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superseded {
    pub version: i32,
    /// End of its grace; `None`: it had none.
    pub expires_at: Option<Timestamp>,
}

/// The last timestamp the server can hold, 294276-12-31 23:59:59.999999 (`END_TIMESTAMP - 1`): a sum is held
/// there, since one microsecond more than `i64::MAX - 1` would read as `infinity`.
const LAST_FINITE: i64 = 9_223_371_331_199_999_999;

impl VersionState {
    /// The state at `now`. A current version has no grace, so its `expires_at` is not looked at.
    pub fn at(now: Timestamp, is_current: bool, expires_at: Option<Timestamp>) -> Self {
        match expires_at {
            _ if is_current => Self::Current,
            Some(end) if now < end => Self::Grace,
            _ => Self::Retained,
        }
    }

    /// Whether `read_secret(name, version)` returns it.
    pub fn readable_by_number(self) -> bool {
        matches!(self, Self::Current | Self::Grace)
    }

    /// Whether `verify` compares a candidate with it.
    pub fn accepted_by_verify(self) -> bool {
        matches!(self, Self::Current | Self::Grace)
    }

    /// Whether `roll_back_secret` can make its value current again.
    pub fn can_be_rolled_back_to(self) -> bool {
        matches!(self, Self::Grace | Self::Retained)
    }

    /// The word shown by `list_versions`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Grace => "grace",
            Self::Retained => "retained",
        }
    }
}

/// The numbers of the versions to destroy now, ascending: of those past their grace, all but the newest
/// `keep_versions`. Versions in grace are neither purged nor counted.
///
/// `superseded` holds the versions of one secret in any order, without its current one.
pub fn versions_to_purge(now: Timestamp, superseded: &[Superseded], keep_versions: u32) -> Vec<i32> {
    let mut retained: Vec<i32> = superseded
        .iter()
        .filter(|v| VersionState::at(now, false, v.expires_at) == VersionState::Retained)
        .map(|v| v.version)
        .collect();
    retained.sort_unstable();
    let keep = usize::try_from(keep_versions).unwrap_or(usize::MAX);
    retained.truncate(retained.len().saturating_sub(keep));
    retained
}

/// The `expires_at` of a version superseded at `now`; `None` without a grace period: it is retained at once.
pub fn grace_until(now: Timestamp, grace_period: Span) -> Option<Timestamp> {
    (grace_period.0 > 0).then(|| now.plus(grace_period))
}

impl Timestamp {
    pub const INFINITY: Self = Self(i64::MAX);

    /// The sum, held at the last finite timestamp; an infinite one stays what it is.
    pub fn plus(self, span: Span) -> Self {
        match self.0 {
            i64::MIN | i64::MAX => self,
            t => Self(t.saturating_add(span.0).min(LAST_FINITE)),
        }
    }
}

impl Span {
    pub const ZERO: Self = Self(0);

    pub const fn from_secs(secs: u32) -> Self {
        Self(secs as i64 * 1_000_000)
    }

    pub fn micros(self) -> i64 {
        self.0
    }

    /// `None` if negative or beyond `i64`. A month counts as 30 days and a day as 24 hours, as when the server
    /// compares intervals: schedules then depend neither on the calendar nor on the session's time zone.
    pub(super) fn from_parts(parts: IntervalParts) -> Option<Self> {
        const DAY: i128 = 86_400_000_000;
        let days = i128::from(parts.months) * 30 + i128::from(parts.days);
        let total = days * DAY + i128::from(parts.micros);
        i64::try_from(total).ok().filter(|&t| t >= 0).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Timestamp = Timestamp(820_000_000_000_000);

    fn at(offset: i64) -> Option<Timestamp> {
        Some(Timestamp(NOW.0 + offset))
    }

    #[test]
    fn states() {
        use VersionState::*;
        for (is_current, expires_at, expected) in [
            (true, None, Current),
            (true, at(-1), Current),
            (true, at(1), Current),
            (false, None, Retained),
            (false, at(-1), Retained),
            (false, at(0), Retained),
            (false, at(1), Grace),
            (false, Some(Timestamp::INFINITY), Grace),
            (false, Some(Timestamp(i64::MIN)), Retained),
        ] {
            assert_eq!(
                VersionState::at(NOW, is_current, expires_at),
                expected,
                "{is_current} {expires_at:?}"
            );
        }
        for (state, word, readable, verified, rolled_back) in [
            (Current, "current", true, true, false),
            (Grace, "grace", true, true, true),
            (Retained, "retained", false, false, true),
        ] {
            assert_eq!(state.as_str(), word);
            assert_eq!(state.readable_by_number(), readable);
            assert_eq!(state.accepted_by_verify(), verified);
            assert_eq!(state.can_be_rolled_back_to(), rolled_back);
        }
    }

    #[test]
    fn purge() {
        let v = |version, expires_at| Superseded { version, expires_at };
        let mixed = [v(3, at(0)), v(1, None), v(5, at(1)), v(2, at(-9)), v(4, None)];
        for (keep, expected) in [
            (0, vec![1, 2, 3, 4]),
            (1, vec![1, 2, 3]),
            (2, vec![1, 2]),
            (3, vec![1]),
            (4, vec![]),
            (5, vec![]),
            (u32::MAX, vec![]),
        ] {
            assert_eq!(versions_to_purge(NOW, &mixed, keep), expected, "keep {keep}");
        }
        assert_eq!(versions_to_purge(NOW, &[], 0), Vec::<i32>::new());
        assert_eq!(versions_to_purge(NOW, &[v(1, at(1)), v(2, at(1))], 0), Vec::<i32>::new());
        // An older version with a long grace outlives newer ones that had none.
        assert_eq!(versions_to_purge(NOW, &[v(1, at(1)), v(2, None), v(3, None)], 1), vec![2]);
    }

    #[test]
    fn grace() {
        assert_eq!(grace_until(NOW, Span::ZERO), None);
        assert_eq!(grace_until(NOW, Span::from_secs(1)), at(1_000_000));
        let end = grace_until(Timestamp(i64::MAX - 1), Span::from_secs(1));
        assert_eq!(end, Some(Timestamp(LAST_FINITE)), "a sum never becomes infinity");
        assert_eq!(Timestamp::INFINITY.plus(Span::from_secs(1)), Timestamp::INFINITY);
        assert_eq!(Timestamp(i64::MIN).plus(Span::from_secs(1)), Timestamp(i64::MIN));
    }

    #[test]
    fn interval_parts_add_up() {
        let span =
            |months, days, micros| Span::from_parts(IntervalParts { months, days, micros }).map(Span::micros);
        assert_eq!(span(0, 0, 1), Some(1));
        assert_eq!(span(1, 0, 0), span(0, 30, 0));
        assert_eq!(span(0, 1, 0), Some(86_400_000_000));
        assert_eq!(span(1, -30, 5), Some(5));
        assert_eq!(span(1, -31, 0), None);
        assert_eq!(span(i32::MAX, i32::MAX, i64::MAX), None);
        assert_eq!(span(i32::MIN, i32::MIN, i64::MIN), None);
    }

    proptest! {
        #[test]
        fn purge_keeps_the_newest_and_everything_in_grace(
            offsets in prop::collection::vec(prop::option::of(-3i64..3), 0..12), keep in 0u32..8,
        ) {
            let all: Vec<Superseded> = offsets.iter().enumerate()
                .map(|(i, o)| Superseded { version: i as i32 + 1, expires_at: o.and_then(at) }).collect();
            let purged = versions_to_purge(NOW, &all, keep);
            for v in &all {
                let in_grace = v.expires_at.is_some_and(|e| e > NOW);
                let newer_retained = all.iter()
                    .filter(|w| w.version > v.version && w.expires_at.is_none_or(|e| e <= NOW)).count();
                prop_assert_eq!(purged.contains(&v.version), !in_grace && newer_retained >= keep as usize);
            }
        }
    }
}
