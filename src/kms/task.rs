//! A flight's task, and the state all flights and the main thread share.
//!
//! Tasks run on the tokio threads; `board`, `serve_now`, `cancel`, `replace`, `close` are the main thread's. One short lock covers
//! all state and is never held across an await, a provider call or a delivery.
//!
//! The trap it avoids: a waiter that is never told. A flight's task ends by a result, by the last deadline, by the
//! last cancel, by a panic in the provider or in here, or by the runtime's end; in each case the [`Boarding`] guard
//! retires the flight, frees its place, and answers whoever is left.

use std::collections::HashMap;
use std::future::{self, Future};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyperion_vault_core::envelope::Dek;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time;

use crate::breaker::{self, Breaker};
use crate::config::Limits;
use crate::error::{ErrorKind, KmsError};
use crate::flights::{FlightId, Flights, Joined};
use crate::provider::KeyProvider;
use crate::retry;
use crate::service::{Completion, Job, Op, Outcome, Wake, shutting_down};
use crate::status::Status;

/// What makes two jobs the same: provider generation (an answer of the provider before a reload is not an answer
/// of the one after) and question.
type FlightKey = Arc<(u64, Op)>;

/// What a flight's task and the others tell each other.
pub(crate) struct TaskSide {
    changed: Arc<Notify>,
    last_error: Option<KmsError>,
    /// Whether the provider is being asked right now; between attempts an open breaker ends the flight.
    attempting: bool,
}

/// Everything under the lock.
pub(crate) struct State {
    pub(crate) flights: Flights<FlightKey>,
    pub(crate) tasks: HashMap<FlightId, TaskSide>,
    pub(crate) provider: Result<Arc<dyn KeyProvider>, KmsError>,
    pub(crate) generation: u64,
    pub(crate) limits: Limits,
    pub(crate) counters: Status,
    pub(crate) breaker: Breaker,
    pub(crate) closed: bool,
}

impl State {
    /// Lets those in who may run now, and tells them.
    fn admit(&mut self) {
        for id in self.flights.admit() {
            self.tell(id);
        }
    }

    /// Makes a task look again. A `Notify` keeps one call for a task that is not listening yet.
    fn tell(&self, id: FlightId) {
        if let Some(task) = self.tasks.get(&id) {
            task.changed.notify_one();
        }
    }
}

/// The state, and the ways out to the main thread.
pub(crate) struct Shared {
    pub(crate) state: Mutex<State>,
    /// Signalled when the last flight is gone.
    pub(crate) idle: Condvar,
    pub(crate) completions: Sender<Completion>,
    pub(crate) wake: Wake,
}

impl Shared {
    /// Takes a job up, in a new flight or in one that is under way.
    pub(crate) fn board(shared: &Arc<Self>, runtime: &Handle, job: Job) -> Result<(), KmsError> {
        let mut state = shared.lock();
        if state.closed {
            return Err(shutting_down());
        }
        // Whoever had this id is gone, or he would not have given it away.
        if let Some(id) = state.flights.cancel(job.id) {
            state.tell(id);
        }
        let provider = state.provider.clone()?;
        if let Some(error) = state.breaker.refusal(Instant::now()) {
            state.counters.refused += 1;
            return Err(error);
        }
        if state.flights.jobs() >= state.limits.max_jobs {
            return Err(KmsError::new(ErrorKind::Overloaded, "too many requests wait for the key service")
                .with_detail(format!("The limit is {}.", state.limits.max_jobs))
                .with_hint("Repeat the request later."));
        }
        // Only unwrapping is shared: two who generate want two keys, and a description has to be fresh.
        let key =
            matches!(job.op, Op::Unwrap { .. }).then(|| FlightKey::new((state.generation, job.op.clone())));
        match state.flights.join(job.id, key, job.deadline) {
            // Its deadline may be the first now.
            Joined::Shared(id) => {
                state.counters.coalesced += 1;
                state.tell(id);
            }
            Joined::New(id) => {
                let changed = Arc::new(Notify::new());
                let task = TaskSide { changed: Arc::clone(&changed), last_error: None, attempting: false };
                state.tasks.insert(id, task);
                state.admit();
                let boarding = Boarding { shared: Arc::clone(shared), id };
                let (limits, generation) = (state.limits, state.generation);
                drop(state);
                let call = Arc::new(Call { provider, op: job.op, limits, generation });
                runtime.spawn(fly(boarding, changed, call));
            }
        }
        Ok(())
    }

    /// See [`Service::serve_now`](crate::Service::serve_now). On the main thread; holds the lock while it counts only.
    pub(crate) fn serve_now(&self, op: &Op) -> Option<Result<Outcome, KmsError>> {
        let provider = {
            let state = self.lock();
            if state.closed || state.breaker.is_open() {
                return None;
            }
            state.provider.as_ref().ok().map(Arc::clone)?
        };
        let immediate = provider.immediate()?;
        // Unwind safe: a provider keeps nothing between calls. The payload is not looked at, as in `Caught`.
        let result = catch_unwind(AssertUnwindSafe(|| match op {
            Op::Generate(context) => immediate.generate_now(context).map(Outcome::Generated),
            Op::Unwrap { context, stored } => immediate.unwrap_now(context, stored).map(Outcome::Unwrapped),
            Op::Describe => immediate.describe_now().map(Outcome::Described),
        }))
        .unwrap_or_else(|_| Err(broken()));
        let mut state = self.lock();
        state.counters.calls += 1;
        state.counters.ended(result.as_ref().err());
        Some(result)
    }

    /// See [`Service::immediate`](crate::Service::immediate).
    pub(crate) fn immediate(&self) -> Option<u64> {
        let state = self.lock();
        state.provider.as_ref().ok()?.immediate().map(|_| state.generation)
    }

    /// Removes a job; its flight's task finds out whether anybody is left.
    pub(crate) fn cancel(&self, job: u64) -> bool {
        let mut state = self.lock();
        let Some(id) = state.flights.cancel(job) else { return false };
        state.counters.cancelled += 1;
        state.tell(id);
        true
    }

    /// Swaps provider and limits.
    pub(crate) fn replace(
        &self,
        provider: Result<Arc<dyn KeyProvider>, KmsError>,
        limits: Limits,
    ) -> Result<(), KmsError> {
        let opened = provider.as_ref().map(drop).map_err(KmsError::clone);
        let mut state = self.lock();
        state.provider = provider;
        state.generation += 1;
        state.breaker.reset();
        state.limits = limits;
        state.flights.set_limit(limits.max_in_flight);
        state.admit();
        opened
    }

    /// A consistent copy of the counters.
    pub(crate) fn status(&self) -> Status {
        let state = self.lock();
        let (in_flight, queued) = state.flights.running_and_queued();
        Status {
            provider: state.provider.as_ref().ok().map(|provider| provider.name()),
            provider_error: state.provider.as_ref().err().cloned(),
            in_flight,
            queued,
            jobs: state.flights.jobs(),
            breaker_open: state.breaker.is_open(),
            breaker_opened: state.breaker.opened(),
            ..state.counters.clone()
        }
    }

    /// Takes no more jobs; waits until none is under way, or `timeout` has passed.
    pub(crate) fn close(&self, timeout: Duration) {
        let mut state = self.lock();
        state.closed = true;
        // The result says whether time ran out; either way the threads are stopped next.
        drop(
            self.idle
                .wait_timeout_while(state, timeout, |state| !state.flights.is_empty())
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    /// Answers all who still wait.
    pub(crate) fn abandon(&self) {
        let ids: Vec<FlightId> = self.lock().tasks.keys().copied().collect();
        for id in ids {
            self.retire(id);
        }
    }

    /// Gives the result to each of the jobs, then wakes the main thread once.
    pub(crate) fn deliver(&self, jobs: Vec<u64>, result: Result<Outcome, KmsError>) {
        let Some((&last, others)) = jobs.split_last() else { return };
        for &id in others {
            // Without a receiver the service is gone: the result is dropped, and wiped.
            let _ = self.completions.send(Completion { id, result: copy(&result) });
        }
        let _ = self.completions.send(Completion { id: last, result });
        (self.wake)();
    }

    /// Answers those whose time is up. When to look again and whether the call may run; `None` if nobody waits.
    fn check(&self, id: FlightId) -> Option<(Instant, bool)> {
        let mut state = self.lock();
        let checked = state.flights.check(id, Instant::now());
        if !checked.expired.is_empty() {
            state.counters.timed_out += checked.expired.len() as u64;
            let last_error = state.tasks.get(&id).and_then(|task| task.last_error.clone());
            drop(state);
            self.deliver(checked.expired, Err(timed_out(checked.running, last_error)));
        }
        checked.next_deadline.map(|next| (next, checked.running))
    }

    /// Answers all waiters of a flight.
    fn settle(&self, id: FlightId, result: Result<Outcome, KmsError>) {
        let jobs = self.lock().flights.settle(id);
        self.deliver(jobs, result);
    }

    /// The end of a flight, see [`Boarding`]. Does nothing the second time.
    fn retire(&self, id: FlightId) {
        let mut state = self.lock();
        let left = state.flights.retire(id);
        state.tasks.remove(&id);
        state.admit();
        let error = if state.closed { shutting_down() } else { broken() };
        if state.flights.is_empty() {
            self.idle.notify_all();
        }
        drop(state);
        self.deliver(left, Err(error));
    }

    /// What to tell a flight's waiters instead of asking (again): the breaker is open, and no attempt is under way.
    fn refusal(&self, id: FlightId) -> Option<KmsError> {
        let mut state = self.lock();
        let attempting = state.tasks.get(&id).is_some_and(|task| task.attempting);
        let refusal = state.breaker.refusal(Instant::now()).filter(|_| !attempting)?;
        state.counters.refused += 1;
        Some(refusal)
    }

    /// Whether the `opened`th opening of this generation's breaker still lasts.
    fn is_open(&self, generation: u64, opened: u64) -> bool {
        let state = self.lock();
        (state.generation, state.breaker.opened()) == (generation, opened) && state.breaker.is_open()
    }

    /// How long somebody will still wait for this flight.
    fn remaining(&self, id: FlightId) -> Duration {
        let last = self.lock().flights.last_deadline(id);
        last.map_or(Duration::ZERO, |last| last.saturating_duration_since(Instant::now()))
    }

    /// A poisoned lock is taken all the same: the state is a set of counters and tables that every operation leaves
    /// consistent, and refusing it would turn one panic into the end of the service.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A flight's claim to its entry and place. Retires it when dropped, however the task ends.
struct Boarding {
    shared: Arc<Shared>,
    id: FlightId,
}

impl Drop for Boarding {
    fn drop(&mut self) {
        self.shared.retire(self.id);
    }
}

/// What to ask whom. Fixed when the flight begins: a reload does not change a call under way.
struct Call {
    provider: Arc<dyn KeyProvider>,
    op: Op,
    limits: Limits,
    /// The provider's. What a replaced one answers says nothing about its successor.
    generation: u64,
}

impl Call {
    async fn ask(&self) -> Result<Outcome, KmsError> {
        match &self.op {
            Op::Generate(context) => self.provider.generate_dek(context).await.map(Outcome::Generated),
            Op::Unwrap { context, stored } => {
                self.provider.unwrap_dek(context, stored).await.map(Outcome::Unwrapped)
            }
            Op::Describe => self.provider.describe().await.map(Outcome::Described),
        }
    }
}

/// The task of one flight: waits for its place, makes the call, minds the deadlines.
async fn fly(boarding: Boarding, changed: Arc<Notify>, call: Arc<Call>) {
    // Dropped before `boarding`: the place is free only when the call is really gone.
    let mut attempts: Option<Pin<Box<_>>> = None;
    loop {
        let Some((next_deadline, running)) = boarding.shared.check(boarding.id) else { return };
        if let Some(error) = boarding.shared.refusal(boarding.id) {
            return boarding.shared.settle(boarding.id, Err(error));
        }
        if running && attempts.is_none() {
            attempts = Some(Box::pin(make_attempts(&boarding.shared, boarding.id, &call)));
        }
        let result = tokio::select! {
            // A result that is there is given, even if the deadline passed in the same moment.
            biased;
            result = async {
                match &mut attempts {
                    Some(attempts) => attempts.await,
                    None => future::pending().await,
                }
            } => result,
            () = changed.notified() => continue,
            () = time::sleep_until(next_deadline.into()) => continue,
        };
        return boarding.shared.settle(boarding.id, result);
    }
}

/// Asks until there is an answer, an error that no repetition cures, or nobody who waits long enough.
async fn make_attempts(shared: &Arc<Shared>, id: FlightId, call: &Arc<Call>) -> Result<Outcome, KmsError> {
    let mut failed = 0;
    loop {
        let error = match Attempt::make(shared, Some(id), call, failed > 0).await {
            Ok(outcome) => return Ok(outcome),
            Err(error) => error,
        };
        failed += 1;
        let remaining = shared.remaining(id);
        match retry::next_delay(error.kind, failed, call.limits.max_retries, remaining, retry::random()) {
            Some(delay) => {
                // It may have opened while this attempt was under way, when nobody could be told.
                if let Some(refusal) = shared.refusal(id) {
                    return Err(refusal);
                }
                time::sleep(delay).await;
            }
            None if failed > 1 => return Err(error.with_detail(format!("Gave up after {failed} attempts."))),
            None => return Err(error),
        }
    }
}

/// Asks a key service that has not answered, until it does. Holds no place and answers nobody.
async fn probe(shared: Arc<Shared>, call: Arc<Call>, opened: u64) {
    let (mut pause, longest) = breaker::PROBE;
    loop {
        time::sleep(pause).await;
        if !shared.is_open(call.generation, opened) {
            return;
        }
        // Its result is wiped unseen; that there is one closes the breaker.
        drop(Attempt::make(&shared, None, &call, true).await);
        pause = (pause * 2).min(longest);
    }
}

/// One attempt under way: counted when it begins, and when it ends, however it ends.
struct Attempt<'a> {
    shared: &'a Arc<Shared>,
    id: Option<FlightId>,
    call: &'a Arc<Call>,
    began: Instant,
    ended: bool,
}

impl<'a> Attempt<'a> {
    async fn make(
        shared: &'a Arc<Shared>,
        id: Option<FlightId>,
        call: &'a Arc<Call>,
        repeated: bool,
    ) -> Result<Outcome, KmsError> {
        let mut attempt = Self::begin(shared, id, call, repeated);
        let asked = time::timeout(call.limits.attempt_timeout, Caught(Box::pin(call.ask()))).await;
        let result = asked.unwrap_or_else(|_| {
            Err(no_answer().with_detail(format!(
                "It was given {} ms for one attempt.",
                call.limits.attempt_timeout.as_millis()
            )))
        });
        attempt.ended = true;
        attempt.end(result.as_ref().err());
        result
    }

    fn begin(shared: &'a Arc<Shared>, id: Option<FlightId>, call: &'a Arc<Call>, repeated: bool) -> Self {
        let mut state = shared.lock();
        state.counters.calls += 1;
        state.counters.retries += u64::from(repeated);
        if let Some(task) = id.and_then(|id| state.tasks.get_mut(&id)) {
            task.attempting = true;
        }
        drop(state);
        Self { shared, id, call, began: Instant::now(), ended: false }
    }

    fn end(&self, error: Option<&KmsError>) {
        let mut guard = self.shared.lock();
        let state = &mut *guard;
        if let Some(task) = self.id.and_then(|id| state.tasks.get_mut(&id)) {
            task.attempting = false;
            if let Some(error) = error {
                task.last_error = Some(error.clone());
            }
        }
        state.counters.ended(error);
        if state.generation != self.call.generation || state.closed {
            return;
        }
        match error {
            None => state.breaker.answered(),
            Some(error) if state.breaker.failed(error, Instant::now()) => {
                let opened = state.breaker.opened();
                // Whoever waits for a place or for his next attempt is answered now.
                for task in state.tasks.values() {
                    task.changed.notify_one();
                }
                drop(guard);
                // An attempt ends on a tokio thread, or with the runtime itself: then there is nobody to tell.
                if let Ok(runtime) = Handle::try_current() {
                    runtime.spawn(probe(Arc::clone(self.shared), Arc::clone(self.call), opened));
                }
            }
            Some(_) => {}
        }
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.ended && self.began.elapsed() >= breaker::OVERDUE {
            self.end(Some(&no_answer().with_detail("Nobody waited any longer.")));
        }
    }
}

/// Turns a panic in a provider into an error, so that it is counted and reported like any other.
struct Caught<F>(Pin<Box<F>>);

impl<F: Future<Output = Result<Outcome, KmsError>>> Future for Caught<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        // Unwind safe: a future that panicked is never polled again. The payload is not looked at: it is whatever
        // the provider had in hand.
        catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(cx)))
            .unwrap_or_else(|_| Poll::Ready(Err(broken())))
    }
}

/// The result once more, for another waiter. Each gets a DEK of its own that wipes itself.
fn copy(result: &Result<Outcome, KmsError>) -> Result<Outcome, KmsError> {
    match result.as_ref().map_err(KmsError::clone)? {
        Outcome::Unwrapped(dek) => {
            Dek::from_slice(dek.as_bytes()).map(|dek| Outcome::Unwrapped(Box::new(dek))).map_err(|_| broken())
        }
        Outcome::Described(key) => Ok(Outcome::Described(key.clone())),
        // Never shared: a DEK given to two would seal two versions.
        Outcome::Generated(_) => Err(broken()),
    }
}

fn broken() -> KmsError {
    KmsError::new(ErrorKind::Internal, "key service call ended unexpectedly")
        .with_hint("The server log says more.")
}

fn no_answer() -> KmsError {
    KmsError::new(ErrorKind::TimedOut, "key service did not answer in time")
}

fn timed_out(running: bool, last_error: Option<KmsError>) -> KmsError {
    let error = match last_error {
        Some(last) => no_answer().with_detail(format!("The last attempt failed: {}.", last.message)),
        None if running => no_answer(),
        None => no_answer().with_detail("The request was still waiting for a free call."),
    };
    let hint = if running {
        "Check that the key service can be reached from this host."
    } else {
        "Raise hyperion_vault.kms_max_in_flight or hyperion_vault.kms_timeout_ms."
    };
    error.with_hint(hint)
}
