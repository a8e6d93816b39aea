//! Many clients at once, with a bound on how long they may take. Runs in the test process.
//!
//! The trap: joining a thread whose session hangs hangs the test. Threads here are never joined; they report through
//! a channel, and who has not reported in time is named. The session left behind ends with its cluster.

use crate::cluster::Cluster;
use postgres::{Client, NoTls};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

/// Prepares `n` threads, lets them all go at the same moment, and returns what they returned, in order. Fails if one
/// panics, or if not all are done `limit` after the call.
#[track_caller]
pub fn at_once<S: 'static, T: Send + 'static>(
    n: usize,
    limit: Duration,
    prepare: impl Fn(usize) -> S + Send + Sync + 'static,
    work: impl Fn(usize, S) -> T + Send + Sync + 'static,
) -> Vec<T> {
    let deadline = Instant::now() + limit;
    let barrier = Arc::new(Barrier::new(n));
    let jobs = Arc::new((prepare, work));
    let (sender, results) = channel();
    for i in 0..n {
        let (barrier, jobs, sender) = (Arc::clone(&barrier), Arc::clone(&jobs), sender.clone());
        std::thread::spawn(move || {
            // A thread that cannot prepare must come to the barrier all the same, or the others wait for ever.
            let prepared = catch_unwind(AssertUnwindSafe(|| jobs.0(i)));
            barrier.wait();
            let result = prepared.and_then(|prepared| catch_unwind(AssertUnwindSafe(|| jobs.1(i, prepared))));
            let _ = sender.send((i, result)); // nobody listens once the test has failed
        });
    }
    drop(sender);
    let mut done: Vec<Option<T>> = (0..n).map(|_| None).collect();
    for _ in 0..n {
        match results.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok((i, Ok(value))) => done[i] = Some(value),
            Ok((_, Err(panic))) => resume_unwind(panic),
            Err(_) => {
                let late: Vec<_> =
                    done.iter().enumerate().filter(|(_, d)| d.is_none()).map(|(i, _)| i).collect();
                panic!("after {limit:?} {} of {n} threads were not done: {late:?}", late.len());
            }
        }
    }
    done.into_iter().map(|value| value.expect("n threads have each reported once")).collect()
}

/// [`at_once`] with one session of `user` per thread, all connected before the first statement.
#[track_caller]
pub fn clients_at_once<T: Send + 'static>(
    cluster: &Cluster,
    user: &str,
    n: usize,
    limit: Duration,
    work: impl Fn(usize, Client) -> T + Send + Sync + 'static,
) -> Vec<T> {
    let config = cluster.config(user, cluster.database());
    at_once(n, limit, move |_| config.connect(NoTls).expect("cannot connect"), work)
}

/// Something going on in another thread, such as a statement that is expected to wait.
pub struct Background<T> {
    result: Receiver<std::thread::Result<T>>,
}

/// Runs `work` in another thread.
pub fn background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Background<T> {
    let (sender, result) = channel();
    std::thread::spawn(move || {
        let _ = sender.send(catch_unwind(AssertUnwindSafe(work))); // nobody listens once the test has failed
    });
    Background { result }
}

impl<T> Background<T> {
    /// What the work returned; fails if it panicked, or has not ended within `limit` from now.
    #[track_caller]
    pub fn finish(self, limit: Duration) -> T {
        match self.result.recv_timeout(limit) {
            Ok(Ok(value)) => value,
            Ok(Err(panic)) => resume_unwind(panic),
            Err(_) => panic!("what runs in the background was not done after {limit:?}"),
        }
    }
}

/// Acts when a test takes too long; put to rest by dropping it.
pub(crate) struct Watchdog {
    expired: Arc<AtomicBool>,
    /// Never sent to: its closing is the signal.
    _leash: Sender<()>,
}

impl Watchdog {
    /// After `limit` calls `act` (which stops the server: whatever waits for it gets an error and fails its test). If
    /// the test has still not ended a minute later, something else hangs: then the whole process ends, and with it,
    /// by sys.rs, every server it started.
    pub fn start(limit: Duration, act: impl FnOnce() + Send + 'static) -> Self {
        let (leash, end) = channel::<()>();
        let expired = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&expired);
        let test = std::thread::current().name().unwrap_or("?").to_owned();
        std::thread::spawn(move || {
            if end.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                eprintln!("test {test}: still not done after {limit:?}; stopping its server");
                // Pairs with the Acquire in `expired`: seen by whoever sees an effect of `act` and asks why.
                flag.store(true, Ordering::Release);
                act();
                if end.recv_timeout(Duration::from_secs(60)) == Err(RecvTimeoutError::Timeout) {
                    eprintln!("test {test}: hangs without its server; giving up on the whole run");
                    std::process::exit(124);
                }
            }
        });
        Self { expired, _leash: leash }
    }

    pub fn expired(&self) -> bool {
        self.expired.load(Ordering::Acquire)
    }
}

/// Runs `then` with all signals blocked in this thread, as a worker does while it starts threads.
pub fn with_signals_blocked<R>(then: impl FnOnce() -> R) -> R {
    // SAFETY: both sets live on this stack, and sigfillset initialises the one that is read first.
    unsafe {
        let (mut all, mut before) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigfillset(&mut all);
        assert_eq!(libc::pthread_sigmask(libc::SIG_BLOCK, &all, &mut before), 0);
        let result = then();
        assert_eq!(libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut()), 0);
        result
    }
}
