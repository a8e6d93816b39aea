//! Keys made ahead by a process that makes one new secret after another.
//!
//! Pure. A process owns its reserve; nobody else sees it. The first secret asks for its own key alone; while they follow
//! each other quickly, each request asks for more, so that a hand-over to the key-service worker is paid once for several.
//!
//! A key in the reserve protects nothing yet. It is good as long as the *mark* is what it was when the key was asked for:
//! the key service's provider, as it was opened. The trap it avoids: a key wrapped under a master key that has been
//! replaced, which nobody could unwrap; and keys that were made long before they protect something.

/// How long a key waits for its secret.
pub const LIFE_MS: u64 = 5_000;
/// Secrets follow each other if no more time lies between two requests.
pub const PACE_MS: u64 = 1_000;
/// At most so many beyond the one that is needed at once.
pub const MOST_AHEAD: usize = 15;

/// What the provider is marked with while nothing may be kept.
pub const NOTHING: u64 = 0;

/// Keys with what they were made for.
#[derive(Debug)]
pub struct Reserve<K> {
    keys: Vec<K>,
    mark: u64,
    made_at: u64,
    asked_at: Option<u64>,
    ahead: usize,
}

impl<K> Reserve<K> {
    pub const fn new() -> Self {
        Self { keys: Vec::new(), mark: NOTHING, made_at: 0, asked_at: None, ahead: 0 }
    }

    /// A key that is still good. Otherwise those that are here are dropped.
    pub fn take(&mut self, mark: u64, now_ms: u64) -> Option<K> {
        if mark == NOTHING || mark != self.mark || now_ms.saturating_sub(self.made_at) >= LIFE_MS {
            self.keys.clear();
        }
        self.keys.pop()
    }

    /// How many to ask for beyond the one that is needed. Call it once for each request.
    pub fn ahead(&mut self, mark: u64, now_ms: u64) -> usize {
        let follows = self.asked_at.is_some_and(|at| now_ms.saturating_sub(at) < PACE_MS);
        self.asked_at = Some(now_ms);
        self.ahead = if follows && mark != NOTHING { (2 * self.ahead + 1).min(MOST_AHEAD) } else { 0 };
        self.ahead
    }

    /// Keeps what a request brought ahead. `mark` and time are those from before it was made.
    pub fn keep(&mut self, mark: u64, now_ms: u64, keys: impl IntoIterator<Item = K>) {
        self.keys.clear();
        self.keys.extend(keys);
        (self.mark, self.made_at) = (mark, now_ms);
    }
}

impl<K> Default for Reserve<K> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: u64 = 7;

    #[test]
    fn one_alone_asks_for_nothing_ahead_and_a_row_of_them_for_more_each_time() {
        let mut reserve = Reserve::<u8>::new();
        let asked: Vec<usize> = (0..6).map(|i| reserve.ahead(MARK, 10 * i)).collect();
        assert_eq!(asked, [0, 1, 3, 7, 15, 15]);
        assert_eq!(reserve.ahead(MARK, 50 + PACE_MS), 0, "after a pause");
        assert_eq!(reserve.ahead(MARK, 60 + PACE_MS), 1);
        assert_eq!(reserve.ahead(NOTHING, 70 + PACE_MS), 0, "from a provider that takes its time");
    }

    #[test]
    fn keys_are_given_once_each() {
        let mut reserve = Reserve::new();
        assert_eq!(reserve.take(MARK, 0), None);
        reserve.keep(MARK, 100, [1, 2]);
        let mut taken = [reserve.take(MARK, 100), reserve.take(MARK, 99 + LIFE_MS)];
        taken.sort_unstable();
        assert_eq!(taken, [Some(1), Some(2)]);
        assert_eq!(reserve.take(MARK, 100), None);
    }

    #[test]
    fn no_key_outlives_its_time_or_its_provider() {
        for (mark, now) in [(MARK, 100 + LIFE_MS), (MARK + 1, 100), (NOTHING, 100)] {
            let mut reserve = Reserve::new();
            reserve.keep(MARK, 100, [1, 2]);
            assert_eq!(reserve.take(mark, now), None);
            assert_eq!(reserve.take(MARK, 100), None, "dropped, not kept for later");
        }
        let mut reserve = Reserve::new();
        reserve.keep(NOTHING, 100, [1]);
        assert_eq!(reserve.take(NOTHING, 100), None);
    }
}
