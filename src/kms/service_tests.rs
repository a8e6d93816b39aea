//! The service against providers that are slow, broken, hanging or blocking. Times are real: waits are bounded by
//! [`PATIENCE`], and what must be "at once" is compared with delays many times longer.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::pending;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;

use hyperion_vault_core::envelope::Id;

use super::*;
use crate::config::{AwsConfig, LocalConfig, ProviderConfig};
use crate::provider::{BoxFuture, WrappedBy, WrappedDek};
use crate::testing::{Faults, FaultyProvider};

#[path = "outage_tests.rs"]
mod outage;
#[path = "serve_now_tests.rs"]
mod serve_now;

const PATIENCE: Duration = Duration::from_secs(20);
const LIMITS: Limits =
    Limits { max_in_flight: 64, max_jobs: 10_000, max_retries: 5, attempt_timeout: PATIENCE };

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn place(n: u8) -> DekContext {
    DekContext { vault: Id([1; 16]), secret: Id([2; 16]), version: Id([n; 16]) }
}

fn unwrap(n: u8) -> Op {
    Op::Unwrap { context: place(n), stored: stored(&[n; 8]) }
}

fn stored(wrapped: &[u8]) -> StoredDek {
    StoredDek { wrapped: WrappedDek(wrapped.to_vec()), key_id: "probe".into() }
}

fn by_probe() -> WrappedBy {
    WrappedBy { key_id: "probe".into(), key_material_id: None }
}

/// Answers with a DEK of the version's byte, after a while; notes what happened.
#[derive(Default)]
struct Probe {
    delay: Duration,
    hang: bool,
    block: Duration,
    /// Versions in the order their calls began.
    began: Mutex<Vec<u8>>,
    inside: AtomicUsize,
    most: AtomicUsize,
    dropped: AtomicUsize,
}

/// Notes that a call's future is gone.
struct Inside<'a>(&'a Probe, bool);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, SeqCst);
        if !self.1 {
            self.0.dropped.fetch_add(1, SeqCst);
        }
    }
}

impl Probe {
    fn slow(delay: Duration) -> Arc<Self> {
        Arc::new(Self { delay, ..Self::default() })
    }

    fn hanging() -> Arc<Self> {
        Arc::new(Self { hang: true, ..Self::default() })
    }

    fn calls(&self) -> usize {
        self.began.lock().unwrap().len()
    }

    async fn visit(&self, context: &DekContext) -> Box<Dek> {
        let mut inside = Inside(self, false);
        self.most.fetch_max(self.inside.fetch_add(1, SeqCst) + 1, SeqCst);
        let n = context.version.0[0];
        self.began.lock().unwrap().push(n);
        thread::sleep(self.block);
        if self.hang {
            pending::<()>().await;
        }
        tokio::time::sleep(self.delay).await;
        inside.1 = true;
        Box::new(Dek::from_slice(&[n; 32]).unwrap())
    }
}

impl KeyProvider for Probe {
    fn name(&self) -> &'static str {
        "probe"
    }

    fn generate_dek<'a>(&'a self, context: &'a DekContext) -> BoxFuture<'a, Result<GeneratedDek, KmsError>> {
        Box::pin(async move {
            Ok(GeneratedDek { dek: self.visit(context).await, wrapped: WrappedDek(vec![1]), by: by_probe() })
        })
    }

    fn unwrap_dek<'a>(
        &'a self,
        context: &'a DekContext,
        _: &'a StoredDek,
    ) -> BoxFuture<'a, Result<Box<Dek>, KmsError>> {
        Box::pin(async move { Ok(self.visit(context).await) })
    }

    fn wrap_dek<'a>(
        &'a self,
        _: &'a DekContext,
        _: &'a Dek,
    ) -> BoxFuture<'a, Result<(WrappedDek, WrappedBy), KmsError>> {
        Box::pin(async { Ok((WrappedDek(vec![1]), by_probe())) })
    }

    fn rewrap_dek<'a>(
        &'a self,
        _: &'a DekContext,
        stored: &'a StoredDek,
    ) -> BoxFuture<'a, Result<(WrappedDek, WrappedBy), KmsError>> {
        Box::pin(async { Ok((stored.wrapped.clone(), by_probe())) })
    }

    fn describe(&self) -> BoxFuture<'_, Result<KeyDescription, KmsError>> {
        Box::pin(async {
            Ok(KeyDescription { key_id: "probe".into(), key_material_id: None, enabled: true })
        })
    }
}

/// A service and a main thread that, like the worker's, looks for completions only after it was woken.
struct Rig {
    service: Service,
    wakes: Arc<AtomicUsize>,
    woken: Cell<usize>,
    fetched: RefCell<VecDeque<Completion>>,
}

impl Rig {
    fn new(provider: Arc<dyn KeyProvider>, limits: Limits) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(THREADS).enable_all().build().unwrap();
        Self::with(|wake| Service::with_provider(runtime, Ok(provider), limits, wake))
    }

    fn started(config: &ServiceConfig) -> Self {
        Self::with(|wake| Service::start(config, wake).unwrap())
    }

    fn with(start: impl FnOnce(Wake) -> Service) -> Self {
        let wakes = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&wakes);
        let wake: Wake = Arc::new(move || {
            counter.fetch_add(1, SeqCst);
        });
        Self { service: start(wake), wakes, woken: Cell::new(0), fetched: RefCell::default() }
    }

    fn faulty(faults: &str, limits: Limits) -> Self {
        let faults: Faults = faults.parse().unwrap();
        Self::new(Arc::new(FaultyProvider::new(Probe::slow(ms(0)), faults)), limits)
    }

    fn submit(&self, id: u64, op: Op) {
        // Longer than any test waits: nothing passes because a deadline cleared it away.
        self.submit_until(id, op, 10 * PATIENCE);
    }

    fn submit_until(&self, id: u64, op: Op, wait: Duration) {
        self.service.submit(Job { id, deadline: Instant::now() + wait, op });
    }

    fn next(&self) -> Completion {
        if self.fetched.borrow().is_empty() {
            self.until("no wake-up", |rig| {
                let wakes = rig.wakes.load(SeqCst);
                if rig.woken.replace(wakes) != wakes {
                    rig.fetched.borrow_mut().extend(std::iter::from_fn(|| rig.service.try_recv()));
                }
                !rig.fetched.borrow().is_empty()
            });
        }
        self.fetched.borrow_mut().pop_front().unwrap()
    }

    fn take(&self, n: usize) -> BTreeMap<u64, Result<Outcome, KmsError>> {
        let mut results = BTreeMap::new();
        for _ in 0..n {
            let Completion { id, result } = self.next();
            assert!(results.insert(id, result).is_none(), "job {id} was answered twice");
        }
        results
    }

    fn error(&self) -> KmsError {
        self.next().result.unwrap_err()
    }

    fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let started = Instant::now();
        while !condition(self) {
            assert!(started.elapsed() < PATIENCE, "{what}: {:?}", self.service);
            thread::sleep(ms(1));
        }
    }

    /// Nothing is left over: no answer, no job, no place taken, no entry.
    fn assert_idle(&self) {
        self.until("not idle", |rig| {
            let state = rig.service.shared.state.lock().unwrap();
            state.flights.is_empty() && state.tasks.is_empty()
        });
        let status = self.service.status();
        assert_eq!((status.in_flight, status.queued, status.jobs), (0, 0, 0));
        assert!(self.fetched.borrow().is_empty() && self.service.try_recv().is_none());
    }
}

fn key(result: &Result<Outcome, KmsError>) -> [u8; 32] {
    match result {
        Ok(Outcome::Unwrapped(dek)) => *dek.as_bytes(),
        Ok(Outcome::Generated(made)) => *made.dek.as_bytes(),
        other => panic!("{other:?}"),
    }
}

fn key_file(dir: &Path, name: &str, fill: u8) -> ServiceConfig {
    let file = dir.join(name);
    let options = std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&file);
    std::io::Write::write_all(&mut options.unwrap(), &[fill; 32]).unwrap();
    let data_directory = dir.join("data");
    std::fs::create_dir_all(&data_directory).unwrap();
    ServiceConfig {
        provider: ProviderConfig::Local(LocalConfig { key_file: file, data_directory }),
        limits: LIMITS,
        faults: None,
    }
}

#[test]
fn the_local_provider_through_the_service() {
    let dir = tempfile::tempdir().unwrap();
    let config = key_file(dir.path(), "key", 7);
    let rig = Rig::started(&config);
    rig.submit(1, Op::Generate(place(1)));
    let Ok(Outcome::Generated(made)) = rig.next().result else { panic!() };
    let op = |n, wrapped: &[u8]| Op::Unwrap { context: place(n), stored: stored(wrapped) };
    rig.submit(2, op(1, made.wrapped.as_bytes()));
    rig.submit(3, op(2, made.wrapped.as_bytes()));
    rig.submit(4, op(1, b""));
    rig.submit(5, Op::Describe);
    let results = rig.take(4);
    assert_eq!(&key(&results[&2]), made.dek.as_bytes());
    assert_eq!(results[&3].as_ref().unwrap_err().kind, ErrorKind::Unauthenticated);
    assert_eq!(results[&4].as_ref().unwrap_err().kind, ErrorKind::Unauthenticated);
    let Ok(Outcome::Described(description)) = &results[&5] else { panic!() };
    assert_eq!(description.key_id, made.by.key_id);
    let status = rig.service.status();
    assert_eq!((status.provider, status.calls, status.failures, status.retries), (Some("local"), 5, 2, 0));
    rig.assert_idle();
}

#[test]
fn five_hundred_concurrent_unwraps_make_one_call() {
    let probe = Probe::slow(ms(3000));
    let rig = Rig::new(probe.clone(), LIMITS);
    for id in 0..500 {
        rig.submit(id, unwrap(7));
    }
    let results = rig.take(500);
    assert!(results.values().all(|result| key(result) == [7; 32]));
    assert_eq!(probe.calls(), 1);
    let status = rig.service.status();
    assert_eq!((status.calls, status.coalesced, status.failures), (1, 499, 0));
    assert!(rig.wakes.load(SeqCst) < 10, "one wake-up for all of them");
    // An answer is not a cache: who asks later, asks again.
    rig.submit(500, unwrap(7));
    rig.take(1);
    assert_eq!(probe.calls(), 2);
    rig.assert_idle();
}

#[test]
fn a_shared_failure_reaches_every_waiter() {
    let rig = Rig::faulty("delay_ms=2000,fail=refused,times=1", LIMITS);
    (0..50).for_each(|id| rig.submit(id, unwrap(7)));
    assert!(rig.take(50).values().all(|result| result.as_ref().unwrap_err().kind == ErrorKind::Refused));
    assert_eq!(rig.service.status().calls, 1);
}

#[test]
fn other_questions_do_not_share() {
    let probe = Probe::slow(ms(100));
    let rig = Rig::new(probe.clone(), LIMITS);
    let same_bytes = |n| Op::Unwrap { context: place(n), stored: stored(&[9]) };
    rig.submit(1, same_bytes(1));
    rig.submit(2, same_bytes(2));
    rig.submit(3, Op::Unwrap { context: place(1), stored: stored(&[9, 9]) });
    rig.submit(4, Op::Generate(place(1)));
    rig.submit(5, Op::Generate(place(1)));
    let results = rig.take(5);
    assert_eq!(key(&results[&1]), [1; 32]);
    assert_eq!(key(&results[&2]), [2; 32]);
    assert_eq!((probe.calls(), rig.service.status().coalesced), (5, 0));
}

#[test]
fn calls_are_admitted_in_order_of_arrival() {
    let probe = Probe::slow(ms(1));
    let rig = Rig::new(probe.clone(), Limits { max_in_flight: 1, ..LIMITS });
    (0..100).for_each(|n| rig.submit(n, unwrap(n as u8 + 1)));
    rig.take(100);
    assert_eq!(*probe.began.lock().unwrap(), (1..=100).collect::<Vec<u8>>());
    assert_eq!(probe.most.load(SeqCst), 1);
}

#[test]
fn calls_at_one_time_are_bounded() {
    let limits = Limits { max_in_flight: 3, ..LIMITS };
    let submit = |rig: &Rig| (0..60).for_each(|n| rig.submit(n, unwrap(n as u8 + 1)));
    let hanging = Rig::new(Probe::hanging(), limits);
    submit(&hanging);
    let status = hanging.service.status();
    assert_eq!((status.jobs, status.in_flight, status.queued), (60, 3, 57));
    let probe = Probe::slow(ms(20));
    let rig = Rig::new(probe.clone(), limits);
    submit(&rig);
    rig.take(60);
    assert_eq!(probe.most.load(SeqCst), 3);
    rig.assert_idle();
}

#[test]
fn a_call_that_hangs_times_out_and_gives_its_place_back() {
    let rig = Rig::faulty("hang=1", Limits { max_in_flight: 1, ..LIMITS });
    let started = Instant::now();
    rig.submit_until(1, unwrap(1), ms(150));
    rig.submit(2, unwrap(2));
    let first = rig.next();
    let error = first.result.unwrap_err();
    assert_eq!((first.id, error.kind), (1, ErrorKind::TimedOut));
    assert!((ms(150)..ms(2000)).contains(&started.elapsed()), "{:?}", started.elapsed());
    assert!(error.hint.unwrap().contains("reached"));
    assert_eq!(key(&rig.next().result), [2; 32]);
    assert_eq!(rig.service.status().timed_out, 1);
    rig.assert_idle();
}

#[test]
fn a_job_that_never_gets_a_place_times_out_and_makes_no_call() {
    let probe = Probe::hanging();
    let rig = Rig::new(probe.clone(), Limits { max_in_flight: 1, ..LIMITS });
    rig.submit(1, unwrap(1));
    rig.until("call begins", |_| probe.calls() == 1);
    rig.submit_until(2, unwrap(2), ms(50));
    let error = rig.error();
    assert_eq!(error.kind, ErrorKind::TimedOut);
    assert!(error.detail.unwrap().contains("waiting for a free call"));
    assert_eq!(probe.calls(), 1);
}

#[test]
fn a_deadline_already_past_makes_no_call() {
    let probe = Probe::slow(ms(0));
    let rig = Rig::new(probe.clone(), LIMITS);
    rig.submit_until(1, unwrap(1), ms(0));
    assert_eq!(rig.error().kind, ErrorKind::TimedOut);
    rig.assert_idle();
    assert_eq!(probe.calls(), 0);
}

#[test]
fn waiters_of_one_call_keep_their_own_deadlines() {
    let probe = Probe::slow(ms(3000));
    let rig = Rig::new(probe.clone(), LIMITS);
    let started = Instant::now();
    rig.submit(1, unwrap(7));
    rig.until("call begins", |_| probe.calls() == 1);
    // Joins later, leaves earlier.
    rig.submit_until(2, unwrap(7), ms(50));
    let first = rig.next();
    assert_eq!((first.id, first.result.unwrap_err().kind), (2, ErrorKind::TimedOut));
    assert!(started.elapsed() < ms(2500), "{:?}", started.elapsed());
    assert_eq!(key(&rig.next().result), [7; 32]);
    assert_eq!(probe.calls(), 1);
    // And the other way round: the call goes on for the one that joined.
    rig.submit_until(3, unwrap(8), ms(1000));
    rig.submit(4, unwrap(8));
    assert_eq!(rig.next().id, 3);
    assert_eq!(key(&rig.next().result), [8; 32]);
    assert_eq!(probe.calls(), 2);
    rig.assert_idle();
}

#[test]
fn cancelling_the_only_waiter_drops_the_call() {
    let probe = Probe::hanging();
    let rig = Rig::new(probe.clone(), Limits { max_in_flight: 1, ..LIMITS });
    rig.submit(1, unwrap(1));
    rig.until("call begins", |_| probe.calls() == 1);
    rig.submit(2, unwrap(2));
    assert!(rig.service.cancel(2), "while queued");
    assert!(rig.service.cancel(1), "while running");
    assert!(!rig.service.cancel(1));
    assert!(!rig.service.cancel(99));
    rig.assert_idle();
    assert_eq!((probe.calls(), probe.dropped.load(SeqCst)), (1, 1));
    assert_eq!(rig.service.status().cancelled, 2);
    assert_eq!(rig.wakes.load(SeqCst), 0, "nobody was told anything");
}

#[test]
fn cancelling_one_of_two_leaves_the_other() {
    let probe = Probe::slow(ms(200));
    let rig = Rig::new(probe.clone(), LIMITS);
    rig.submit(1, unwrap(7));
    rig.submit(2, unwrap(7));
    assert!(rig.service.cancel(1));
    let only = rig.next();
    assert_eq!((only.id, key(&only.result)), (2, [7; 32]));
    assert_eq!((probe.calls(), probe.dropped.load(SeqCst)), (1, 0));
    rig.assert_idle();
}

#[test]
fn a_job_with_the_id_of_a_waiting_one_replaces_it() {
    let rig = Rig::faulty("hang=1", Limits { max_in_flight: 1, ..LIMITS });
    rig.submit(1, unwrap(3));
    rig.until("call begins", |rig| rig.service.status().calls == 1);
    // Needs the place of the one it replaces.
    rig.submit(1, unwrap(4));
    assert_eq!(key(&rig.next().result), [4; 32]);
    rig.assert_idle();
}

#[test]
fn a_panic_is_an_internal_error_and_not_the_end() {
    let rig = Rig::faulty("delay_ms=100,panic=1", LIMITS);
    rig.submit(1, unwrap(7));
    rig.submit(2, unwrap(7));
    for result in rig.take(2).into_values() {
        let error = result.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Internal);
        assert!(!format!("{error:?}").contains("asked for by a test"), "the payload is not passed on");
    }
    let status = rig.service.status();
    assert_eq!((status.calls, status.failures), (1, 1), "a defect is counted, and not retried");
    assert_eq!(status.last_error.unwrap().error.kind, ErrorKind::Internal);
    rig.submit(3, unwrap(7));
    assert_eq!(key(&rig.next().result), [7; 32]);
    rig.assert_idle();
}

/// Panics while the future is made, and while it is dropped: outside of what the provider's own future covers.
struct Rude {
    on_drop: bool,
}

struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("bomb");
    }
}

impl KeyProvider for Rude {
    fn name(&self) -> &'static str {
        "rude"
    }

    fn generate_dek<'a>(&'a self, _: &'a DekContext) -> BoxFuture<'a, Result<GeneratedDek, KmsError>> {
        panic!("no future");
    }

    fn unwrap_dek<'a>(
        &'a self,
        _: &'a DekContext,
        _: &'a StoredDek,
    ) -> BoxFuture<'a, Result<Box<Dek>, KmsError>> {
        let bomb = self.on_drop.then_some(Bomb);
        Box::pin(async move {
            let _bomb = bomb;
            pending().await
        })
    }

    fn wrap_dek<'a>(
        &'a self,
        _: &'a DekContext,
        _: &'a Dek,
    ) -> BoxFuture<'a, Result<(WrappedDek, WrappedBy), KmsError>> {
        Box::pin(pending())
    }

    fn rewrap_dek<'a>(
        &'a self,
        _: &'a DekContext,
        _: &'a StoredDek,
    ) -> BoxFuture<'a, Result<(WrappedDek, WrappedBy), KmsError>> {
        Box::pin(pending())
    }

    fn describe(&self) -> BoxFuture<'_, Result<KeyDescription, KmsError>> {
        Box::pin(pending())
    }
}

#[test]
fn panics_outside_the_providers_future_are_survived() {
    let rig = Rig::new(Arc::new(Rude { on_drop: true }), Limits { max_in_flight: 1, ..LIMITS });
    rig.submit(1, Op::Generate(place(1)));
    assert_eq!(rig.error().kind, ErrorKind::Internal);
    for id in 2..5 {
        // The future blows up when it is dropped, at the deadline.
        rig.submit_until(id, unwrap(1), ms(20));
        assert_eq!(rig.error().kind, ErrorKind::TimedOut);
    }
    rig.assert_idle();
}

#[test]
fn what_may_pass_is_retried() {
    for kind in ["unreachable", "throttled", "timed_out"] {
        let rig = Rig::faulty(&format!("fail={kind},times=2"), LIMITS);
        rig.submit(1, unwrap(7));
        assert_eq!(key(&rig.next().result), [7; 32]);
        let status = rig.service.status();
        assert_eq!((status.calls, status.failures, status.retries), (3, 2, 2), "{kind}");
        assert_eq!(status.last_error.unwrap().error.kind.as_str(), kind);
        assert!(status.last_success_at.is_some());
    }
}

#[test]
fn what_will_not_pass_is_not_retried() {
    for kind in ErrorKind::ALL.into_iter().filter(|kind| !kind.is_retryable()) {
        let rig = Rig::faulty(&format!("fail={}", kind.as_str()), LIMITS);
        rig.submit(1, unwrap(7));
        let error = rig.error();
        assert_eq!((error.kind, error.detail), (kind, None));
        assert_eq!(rig.service.status().calls, 1, "{kind:?}");
    }
}

#[test]
fn retries_end_and_say_so() {
    let rig = Rig::faulty("fail=unreachable", Limits { max_retries: 2, ..LIMITS });
    rig.submit(1, unwrap(7));
    let error = rig.error();
    assert_eq!(error.kind, ErrorKind::Unreachable);
    assert!(error.detail.unwrap().contains("Gave up after 3 attempts."));
    assert_eq!(rig.service.status().calls, 3);
}

#[test]
fn no_retry_begins_after_the_deadline() {
    let rig = Rig::faulty("fail=unreachable", Limits { max_retries: 1000, ..LIMITS });
    let started = Instant::now();
    rig.submit_until(1, unwrap(7), ms(400));
    // The real cause is reported, so earlier than the deadline, which would be another error.
    assert_eq!(rig.error().kind, ErrorKind::Unreachable);
    assert!(started.elapsed() < ms(2400), "{:?}", started.elapsed());
    let calls = rig.service.status().calls;
    assert!((2..=9).contains(&calls), "{calls}");
    rig.assert_idle();
    thread::sleep(ms(300));
    assert_eq!(rig.service.status().calls, calls);
}

#[test]
fn an_attempt_that_hangs_is_given_up_and_repeated() {
    let rig = Rig::faulty("hang=1", Limits { attempt_timeout: ms(100), ..LIMITS });
    rig.submit(1, unwrap(7));
    assert_eq!(key(&rig.next().result), [7; 32]);
    let status = rig.service.status();
    assert_eq!((status.calls, status.retries), (2, 1));
    assert_eq!(status.last_error.unwrap().error.kind, ErrorKind::TimedOut);
}

#[test]
fn a_timeout_names_the_failure_before_it() {
    let rig = Rig::faulty("fail=throttled,times=1,hang", LIMITS);
    rig.submit_until(1, unwrap(7), ms(600));
    let error = rig.error();
    assert_eq!(error.kind, ErrorKind::TimedOut);
    assert!(error.detail.unwrap().contains("injected failure: throttled"));
}

#[test]
fn more_jobs_than_can_be_held_are_refused() {
    let rig = Rig::new(Probe::hanging(), Limits { max_jobs: 3, ..LIMITS });
    (0..3).for_each(|id| rig.submit(id, unwrap(7)));
    rig.submit(3, unwrap(7));
    let refused = rig.next();
    assert_eq!((refused.id, refused.result.unwrap_err().kind), (3, ErrorKind::Overloaded));
    assert!(rig.service.cancel(0));
    rig.submit(4, unwrap(7));
    thread::sleep(ms(50));
    assert!(rig.service.try_recv().is_none(), "there is room again");
}

#[test]
fn a_reload_swaps_the_key_and_drops_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (key_file(dir.path(), "old", 7), key_file(dir.path(), "new", 8));
    let slow = ServiceConfig { faults: Some("delay_ms=400".parse().unwrap()), ..old.clone() };
    let rig = Rig::started(&old);
    rig.submit(0, Op::Generate(place(1)));
    let Ok(Outcome::Generated(made)) = rig.next().result else { panic!() };
    let op = || Op::Unwrap { context: place(1), stored: stored(made.wrapped.as_bytes()) };
    rig.service.reconfigure(&slow).unwrap();
    rig.submit(1, op());
    rig.service.reconfigure(&new).unwrap();
    // The same question, but to another key: not shared with the call under way.
    rig.submit(2, op());
    let second = rig.next();
    assert_eq!((second.id, second.result.unwrap_err().kind), (2, ErrorKind::Refused));
    let first = rig.next();
    assert_eq!((first.id, &key(&first.result)), (1, made.dek.as_bytes()));
    assert_eq!(rig.service.status().coalesced, 0);
}

#[test]
fn a_reload_to_what_cannot_work_refuses_until_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let good = key_file(dir.path(), "key", 7);
    let bad = ServiceConfig { provider: ProviderConfig::Aws(AwsConfig::default()), ..good.clone() };
    // A worker that starts without a usable provider lives, and says why.
    let rig = Rig::started(&bad);
    rig.submit(1, Op::Describe);
    let error = rig.error();
    assert_eq!(error.kind, ErrorKind::Misconfigured);
    assert_eq!(rig.service.status().provider_error, Some(error));
    rig.service.reconfigure(&good).unwrap();
    rig.submit(2, Op::Describe);
    assert!(rig.next().result.is_ok());
    assert_eq!(rig.service.reconfigure(&bad).unwrap_err().kind, ErrorKind::Misconfigured);
    rig.submit(3, Op::Describe);
    assert_eq!(rig.error().kind, ErrorKind::Misconfigured);
    assert_eq!(rig.service.status().provider, None);
}

#[test]
fn a_reload_that_raises_the_limit_lets_the_queue_in() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = key_file(dir.path(), "key", 7);
    config.limits.max_in_flight = 1;
    config.faults = Some("hang".parse().unwrap());
    let rig = Rig::started(&config);
    (0..4).for_each(|id| rig.submit(id, Op::Describe));
    assert_eq!(rig.service.status().in_flight, 1);
    config.limits.max_in_flight = 3;
    rig.service.reconfigure(&config).unwrap();
    assert_eq!(rig.service.status().in_flight, 3);
    rig.until("three calls", |rig| rig.service.status().calls == 3);
}

#[test]
fn shutdown_waits_for_what_ends_in_time() {
    let mut rig = Rig::new(Probe::slow(ms(200)), LIMITS);
    rig.submit(1, unwrap(7));
    let started = Instant::now();
    rig.service.shutdown(PATIENCE);
    assert!((ms(150)..PATIENCE / 2).contains(&started.elapsed()), "{:?}", started.elapsed());
    assert_eq!(key(&rig.next().result), [7; 32]);
    rig.submit(2, unwrap(7));
    assert_eq!(rig.error().kind, ErrorKind::Unreachable);
    rig.assert_idle();
}

#[test]
fn shutdown_does_not_wait_for_ever() {
    let mut rig = Rig::new(Probe::hanging(), Limits { max_in_flight: 1, ..LIMITS });
    (0..3).for_each(|id| rig.submit(id, unwrap(id as u8 + 1)));
    let started = Instant::now();
    rig.service.shutdown(ms(50));
    assert!(started.elapsed() < ms(50) + STOP + ms(300), "{:?}", started.elapsed());
    for result in rig.take(3).into_values() {
        assert_eq!(result.unwrap_err(), shutting_down());
    }
    rig.assert_idle();
}

#[test]
fn a_blocking_provider_stops_neither_the_others_nor_shutdown() {
    let blocking = Arc::new(Probe { block: ms(3000), ..Probe::default() });
    let mut rig = Rig::new(blocking.clone(), LIMITS);
    rig.submit_until(1, unwrap(1), ms(100));
    rig.until("call begins", |_| blocking.calls() == 1);
    let started = Instant::now();
    rig.submit(2, Op::Describe);
    assert_eq!(rig.next().id, 2);
    assert!(started.elapsed() < ms(1000));
    rig.service.shutdown(ms(10));
    assert_eq!(rig.error().kind, ErrorKind::Unreachable);
    assert!(started.elapsed() < ms(2500), "{:?}", started.elapsed());
}

/// Thousands of jobs with short and long deadlines, cancels, retries and panics: each job not cancelled is answered
/// exactly once, and nothing is left.
#[test]
fn every_job_is_answered_once_under_stress() {
    let rig = Rig::faulty(
        // So few failures that they are over before the breaker would open: here everything has to take its turn.
        "delay_ms=2,fail=unreachable,times=20,panic=20",
        Limits { max_in_flight: 4, max_retries: 2, ..LIMITS },
    );
    let mut cancelled = 0;
    for id in 0..3000u64 {
        let wait = if id % 7 == 0 { ms(id % 5) } else { PATIENCE };
        let op = match id % 3 {
            0 => Op::Generate(place((id % 200) as u8 + 1)),
            _ => unwrap((id % 40) as u8 + 1),
        };
        rig.submit_until(id, op, wait);
        if id % 11 == 0 && rig.service.cancel(id - id % 3) {
            cancelled += 1;
        }
    }
    let results = rig.take(3000 - cancelled);
    for (id, result) in &results {
        if result.is_ok() {
            let n = if id % 3 == 0 { (id % 200) as u8 } else { (id % 40) as u8 } + 1;
            assert_eq!(key(result), [n; 32], "job {id} got the key of another");
        }
    }
    assert!(results.values().any(Result::is_ok));
    rig.assert_idle();
}
