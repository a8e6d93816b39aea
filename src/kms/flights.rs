//! Who waits for which provider call, and which call may run: single flight and first-come admission. Pure.
//!
//! A *flight* is one provider call (its retries included) with one or more *waiters*: jobs that want the same
//! answer. Life of a flight:
//!
//! ```text
//! join ──▶ queued ──admit──▶ running ──settle──▶ without waiters ──retire──▶ gone
//!              └──cancel / expire of the last waiter──▲
//! ```
//!
//! Used under the service's lock, by the worker's main thread (join, cancel) and the flights' tasks (the rest). The
//! trap it avoids: a place among the running calls given away before the call that held it has really ended, or
//! never given back. A place is freed by `retire` and nothing else, which the task's guard calls however it ends.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::time::Instant;

/// Flights are numbered as they come: a smaller number is served first.
pub(crate) type FlightId = u64;

/// What [`Flights::join`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Joined {
    /// Nobody asks for this yet: start a task for it.
    New(FlightId),
    /// A call for the same thing is under way; tell its task that there is one more deadline.
    Shared(FlightId),
}

/// A flight as its task finds it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Checked {
    /// Waiters whose deadline has passed, now removed.
    pub expired: Vec<u64>,
    /// When to check next; `None` if nobody waits any more and the task should end.
    pub next_deadline: Option<Instant>,
    /// Whether the call may run.
    pub running: bool,
}

struct Waiter {
    job: u64,
    deadline: Instant,
}

struct Flight<K> {
    /// What it fetches, if others may share it. Cleared once nobody may join any more.
    key: Option<K>,
    waiters: Vec<Waiter>,
    running: bool,
}

/// All flights of a service.
pub(crate) struct Flights<K> {
    flights: HashMap<FlightId, Flight<K>>,
    by_key: HashMap<K, FlightId>,
    by_job: HashMap<u64, FlightId>,
    /// Not yet admitted, in order of arrival.
    queue: BTreeSet<FlightId>,
    running: usize,
    limit: usize,
    next: FlightId,
}

impl<K: Clone + Eq + Hash> Flights<K> {
    /// At most `limit` calls at one time.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            flights: HashMap::new(),
            by_key: HashMap::new(),
            by_job: HashMap::new(),
            queue: BTreeSet::new(),
            running: 0,
            limit: limit.max(1),
            next: 0,
        }
    }

    /// Another limit from now on. A lower one is reached as running calls end; none is stopped.
    pub(crate) fn set_limit(&mut self, limit: usize) {
        self.limit = limit.max(1);
    }

    /// Adds a job, to the flight of its key if there is one. `job` must not be waiting already.
    pub(crate) fn join(&mut self, job: u64, key: Option<K>, deadline: Instant) -> Joined {
        debug_assert!(!self.by_job.contains_key(&job));
        let waiter = Waiter { job, deadline };
        let shared = key.as_ref().and_then(|key| self.by_key.get(key).copied());
        if let Some((id, flight)) = shared.and_then(|id| Some((id, self.flights.get_mut(&id)?))) {
            flight.waiters.push(waiter);
            self.by_job.insert(job, id);
            return Joined::Shared(id);
        }
        let id = self.next;
        self.next += 1;
        if let Some(key) = &key {
            self.by_key.insert(key.clone(), id);
        }
        self.flights.insert(id, Flight { key, waiters: vec![waiter], running: false });
        self.by_job.insert(job, id);
        self.queue.insert(id);
        Joined::New(id)
    }

    /// Gives free places to the flights that came first; their tasks are to be told.
    pub(crate) fn admit(&mut self) -> Vec<FlightId> {
        let mut admitted = Vec::new();
        while self.running < self.limit {
            let Some(id) = self.queue.pop_first() else { break };
            if let Some(flight) = self.flights.get_mut(&id) {
                flight.running = true;
                self.running += 1;
                admitted.push(id);
            }
        }
        admitted
    }

    /// Removes a job that nobody waits for any more. Its flight, so that the task can be told; `None` if the job
    /// is not waiting.
    pub(crate) fn cancel(&mut self, job: u64) -> Option<FlightId> {
        let id = self.by_job.remove(&job)?;
        let flight = self.flights.get_mut(&id)?;
        flight.waiters.retain(|waiter| waiter.job != job);
        self.close_if_deserted(id);
        Some(id)
    }

    /// Removes the waiters whose time is up and says what is left.
    pub(crate) fn check(&mut self, id: FlightId, now: Instant) -> Checked {
        let Some(flight) = self.flights.get_mut(&id) else {
            return Checked { expired: Vec::new(), next_deadline: None, running: false };
        };
        let expired: Vec<u64> =
            flight.waiters.extract_if(.., |waiter| waiter.deadline <= now).map(|waiter| waiter.job).collect();
        let next_deadline = flight.waiters.iter().map(|waiter| waiter.deadline).min();
        let running = flight.running;
        for job in &expired {
            self.by_job.remove(job);
        }
        self.close_if_deserted(id);
        Checked { expired, next_deadline, running }
    }

    /// Until when somebody waits for this flight.
    pub(crate) fn last_deadline(&self, id: FlightId) -> Option<Instant> {
        self.flights.get(&id)?.waiters.iter().map(|waiter| waiter.deadline).max()
    }

    /// Takes all waiters, to be given the result. Whoever asks for the same from now on starts a new flight.
    pub(crate) fn settle(&mut self, id: FlightId) -> Vec<u64> {
        let Some(flight) = self.flights.get_mut(&id) else { return Vec::new() };
        let jobs: Vec<u64> = flight.waiters.drain(..).map(|waiter| waiter.job).collect();
        for job in &jobs {
            self.by_job.remove(job);
        }
        self.close_if_deserted(id);
        jobs
    }

    /// Forgets a flight whose task has ended, and frees its place. Returns waiters it still had.
    pub(crate) fn retire(&mut self, id: FlightId) -> Vec<u64> {
        let left = self.settle(id);
        self.queue.remove(&id);
        if self.flights.remove(&id).is_some_and(|flight| flight.running) {
            self.running -= 1;
        }
        left
    }

    /// Jobs waiting.
    pub(crate) fn jobs(&self) -> usize {
        self.by_job.len()
    }

    /// Calls running, and flights waiting for a place.
    pub(crate) fn running_and_queued(&self) -> (usize, usize) {
        (self.running, self.queue.len())
    }

    /// Whether no flight exists, not even one about to end.
    pub(crate) fn is_empty(&self) -> bool {
        self.flights.is_empty()
    }

    /// A flight without waiters is about to be dropped: nobody may board it.
    fn close_if_deserted(&mut self, id: FlightId) {
        if let Some(flight) = self.flights.get_mut(&id)
            && flight.waiters.is_empty()
        {
            // No place for a call nobody waits for.
            self.queue.remove(&id);
            if let Some(key) = flight.key.take() {
                self.by_key.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(base: Instant, ms: u64) -> Instant {
        base + Duration::from_millis(ms)
    }

    fn flights(limit: usize) -> (Flights<&'static str>, Instant) {
        (Flights::new(limit), Instant::now())
    }

    #[test]
    fn equal_keys_share_a_flight_others_do_not() {
        let (mut all, t) = flights(9);
        assert_eq!(all.join(1, Some("a"), at(t, 10)), Joined::New(0));
        assert_eq!(all.join(2, Some("a"), at(t, 30)), Joined::Shared(0));
        assert_eq!(all.join(3, Some("b"), at(t, 10)), Joined::New(1));
        assert_eq!(all.join(4, None, at(t, 10)), Joined::New(2));
        assert_eq!(all.join(5, None, at(t, 10)), Joined::New(3));
        assert_eq!(all.last_deadline(0), Some(at(t, 30)));
        assert_eq!(all.settle(0), [1, 2]);
        assert_eq!(all.jobs(), 3);
        // Settled but not yet retired: the next one starts afresh.
        assert_eq!(all.join(6, Some("a"), at(t, 10)), Joined::New(4));
        assert!(all.retire(0).is_empty());
        // ... and retiring the old one does not close the new one.
        assert_eq!(all.join(7, Some("a"), at(t, 10)), Joined::Shared(4));
    }

    #[test]
    fn admission_is_first_come_first_served_and_bounded() {
        let (mut all, t) = flights(2);
        for job in 0..5 {
            all.join(job, None, at(t, 10));
        }
        assert_eq!(all.admit(), [0, 1]);
        assert!(all.admit().is_empty());
        // Settled is not over: the place comes free with retire.
        all.settle(1);
        assert!(all.admit().is_empty());
        all.retire(1);
        assert_eq!(all.admit(), [2]);
        assert_eq!(all.running_and_queued(), (2, 2));
        all.retire(1);
        assert!(all.admit().is_empty(), "retiring twice frees one place");
        all.set_limit(3);
        assert_eq!(all.admit(), [3]);
        all.set_limit(0);
        all.retire(0);
        all.retire(2);
        assert!(all.admit().is_empty(), "a lowered limit binds, and is at least 1");
        all.retire(3);
        assert_eq!(all.admit(), [4]);
    }

    #[test]
    fn last_cancel_closes_the_flight() {
        let (mut all, t) = flights(1);
        all.join(1, Some("a"), at(t, 10));
        all.join(2, Some("a"), at(t, 10));
        assert_eq!(all.cancel(1), Some(0));
        assert_eq!(all.cancel(1), None);
        assert_eq!(all.check(0, t).next_deadline, Some(at(t, 10)));
        assert_eq!(all.cancel(2), Some(0));
        assert_eq!(all.check(0, t).next_deadline, None);
        assert!(all.admit().is_empty(), "nobody waits: no place");
        assert_eq!(all.join(3, Some("a"), at(t, 10)), Joined::New(1));
        assert!(all.retire(0).is_empty());
        assert_eq!(all.admit(), [1]);
        assert_eq!(all.settle(1), [3]);
        all.retire(1);
        assert!(all.is_empty());
        assert_eq!((all.jobs(), all.running_and_queued()), (0, (0, 0)));
    }

    #[test]
    fn each_waiter_has_its_own_deadline() {
        let (mut all, t) = flights(1);
        all.join(1, Some("a"), at(t, 10));
        all.join(2, Some("a"), at(t, 20));
        all.join(3, Some("a"), at(t, 30));
        assert_eq!(
            all.check(0, at(t, 9)),
            Checked { expired: vec![], next_deadline: Some(at(t, 10)), running: false }
        );
        all.admit();
        assert_eq!(
            all.check(0, at(t, 20)),
            Checked { expired: vec![1, 2], next_deadline: Some(at(t, 30)), running: true }
        );
        assert_eq!(all.check(0, at(t, 31)).expired, [3]);
        assert_eq!(all.check(0, at(t, 31)).next_deadline, None);
        assert_eq!(all.running_and_queued(), (1, 0), "the call holds its place until it is dropped");
        all.retire(0);
        assert_eq!(all.running_and_queued(), (0, 0));
    }

    #[test]
    fn retire_hands_over_who_still_waits() {
        let (mut all, t) = flights(1);
        all.join(1, Some("a"), at(t, 10));
        all.join(2, Some("a"), at(t, 10));
        assert_eq!(all.retire(0), [1, 2]);
        assert!(all.is_empty());
        assert_eq!(all.join(1, Some("a"), at(t, 10)), Joined::New(1));
    }

    /// Random walks against what must hold whatever happens.
    #[test]
    fn invariants_hold_on_random_walks() {
        let keys = [Some("a"), Some("b"), None];
        for walk in 0..200u64 {
            // xorshift64: reproducible, and no more is asked of it.
            let mut seed = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(walk + 1);
            let mut draw = move |below: u64| {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                seed % below
            };
            let (mut all, t) = flights(2);
            let (mut limit, mut now, mut open) = (2, 0, BTreeSet::new());
            let mut answered = HashMap::<u64, u32>::new();
            for job in 0..300 {
                match draw(7) {
                    0..=2 => {
                        if let Joined::New(id) = all.join(job, keys[draw(3) as usize], at(t, now + draw(20)))
                        {
                            open.insert(id);
                        }
                    }
                    3 => drop(all.cancel(draw(job + 1))),
                    4 => {
                        limit = 1 + draw(3) as usize;
                        all.set_limit(limit);
                    }
                    _ => {
                        now += draw(5);
                        let id = draw(all.next + 1);
                        let mut done = all.check(id, at(t, now)).expired;
                        if draw(2) == 0 {
                            done.extend(all.settle(id));
                        }
                        if draw(2) == 0 {
                            done.extend(all.retire(id));
                            open.remove(&id);
                        }
                        for job in done {
                            *answered.entry(job).or_default() += 1;
                        }
                    }
                }
                let before = all.running;
                let admitted = all.admit();
                assert!(admitted.is_sorted());
                assert!(all.running <= limit.max(before));
                assert_eq!(all.running, all.flights.values().filter(|flight| flight.running).count());
                assert_eq!(
                    all.jobs(),
                    all.flights.values().map(|flight| flight.waiters.len()).sum::<usize>()
                );
                assert_eq!(all.by_key.len(), all.flights.values().filter(|f| f.key.is_some()).count());
                assert!(all.by_key.iter().all(|(_, id)| !all.flights[id].waiters.is_empty()));
                assert!(all.queue.iter().all(|id| !all.flights[id].running));
                assert!(open.iter().eq(all.flights.keys().collect::<BTreeSet<_>>()));
            }
            assert!(answered.values().all(|&times| times == 1), "no job is answered twice");
        }
    }
}
