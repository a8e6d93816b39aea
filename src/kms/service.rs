//! [`Service`]: what the main thread of the `hyperion_vault kms` worker holds. Jobs in, completions out.
//!
//! Its functions are called on that main thread and return at once, except `start` and `reconfigure`, which read
//! the key file, and `shutdown`, which waits as long as it is told. What they set going runs on [`THREADS`] tokio
//! threads, in `task.rs`; an [`ImmediateProvider`](crate::ImmediateProvider) is asked by `serve_now` on the main thread itself.
//!
//! The traps it avoids. *Signals*: a thread that does not block them may run PostgreSQL's handlers, which belong
//! to the main thread. So the caller blocks all signals around `start` and restores them after; all threads are
//! spawned in there and inherit the mask, and nothing here starts another later (the blocking pool's threads are
//! spawned by a provider from a tokio thread, whose mask is inherited again). *Forks*: `start` belongs into the worker
//! process, never into the postmaster.

use std::collections::HashMap;
use std::fmt;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use hyperion_vault_core::envelope::{Dek, DekContext};
use tokio::runtime::{Builder, Runtime};

use crate::breaker::Breaker;
use crate::config::{Limits, ServiceConfig};
use crate::error::{ErrorKind, KmsError};
use crate::flights::Flights;
use crate::provider::{GeneratedDek, KeyDescription, KeyProvider, StoredDek};
use crate::status::Status;
use crate::task::{Shared, State};

/// Calls wait, they do not compute. Two, so that one that blocks its thread does not stop the others.
pub const THREADS: usize = 2;

/// As the threads are named, to be found in `top -H` and `/proc`.
pub const THREAD_NAME: &str = "hv-kms";

/// How long stopped calls may take to let go of their thread, once they have been dropped.
const STOP: Duration = Duration::from_millis(500);

/// Called after completions were queued, from any thread, to make the main thread look: writes an eventfd. Must
/// neither block nor panic, and may be called more often than there are completions.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// What to ask the key service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Make a DEK for this place. Each job gets its own.
    Generate(DekContext),
    /// Unwrap the DEK of this place. Concurrent jobs for the same bytes and place share one call.
    Unwrap {
        /// Where it belongs.
        context: DekContext,
        /// As stored.
        stored: StoredDek,
    },
    /// Describe the wrapping key.
    Describe,
}

/// A question, and until when somebody waits for the answer.
#[derive(Clone, Debug)]
pub struct Job {
    /// The caller's name for it. Unique among waiting jobs: a job with the id of a waiting one replaces that. As a
    /// completion may already be queued when its job is cancelled, ids must not be reused soon: put a
    /// generation into them.
    pub id: u64,
    /// All attempts together end here, with `TimedOut`.
    pub deadline: Instant,
    /// The question.
    pub op: Op,
}

/// An answer.
#[derive(Debug)]
pub enum Outcome {
    /// To [`Op::Generate`].
    Generated(GeneratedDek),
    /// To [`Op::Unwrap`].
    Unwrapped(Box<Dek>),
    /// To [`Op::Describe`].
    Described(KeyDescription),
}

/// A job's end. Exactly one for each job that was not cancelled or replaced, at most one otherwise.
#[derive(Debug)]
pub struct Completion {
    /// The job's.
    pub id: u64,
    /// Its result.
    pub result: Result<Outcome, KmsError>,
}

/// The running key service client.
pub struct Service {
    runtime: Option<Runtime>,
    shared: Arc<Shared>,
    completions: Receiver<Completion>,
}

impl Service {
    /// Starts the threads and opens the provider. Call it with all signals blocked (see the module).
    ///
    /// A provider that cannot be opened is no error here: the worker has to live and tell each caller why. It is
    /// in [`Status::provider_error`], and [`Self::reconfigure`] tries again. Fails only without threads.
    pub fn start(config: &ServiceConfig, wake: Wake) -> Result<Self, KmsError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            // For the aws provider's name look-ups and credential files. Four, so that a name server that does not
            // answer does not hold up the files.
            .max_blocking_threads(4)
            .thread_name(THREAD_NAME)
            .enable_all()
            .build()
            .map_err(|error| {
                KmsError::new(ErrorKind::Internal, "could not start the threads of the key service worker")
                    .with_detail(format!("Reason: {error}."))
            })?;
        Ok(Self::with_provider(runtime, config.open(), config.limits, wake))
    }

    fn with_provider(
        runtime: Runtime,
        provider: Result<Arc<dyn KeyProvider>, KmsError>,
        limits: Limits,
        wake: Wake,
    ) -> Self {
        let (sender, completions) = mpsc::channel();
        let state = State {
            flights: Flights::new(limits.max_in_flight),
            tasks: HashMap::new(),
            provider,
            generation: 0,
            limits,
            counters: Status::default(),
            breaker: Breaker::default(),
            closed: false,
        };
        let shared =
            Arc::new(Shared { state: Mutex::new(state), idle: Condvar::new(), completions: sender, wake });
        Self { runtime: Some(runtime), shared, completions }
    }

    /// Answers at once, on the calling thread, if the provider can: no hand-over to another thread and back, which takes
    /// longer than the local provider's work. `None`: nothing was asked, [`Self::submit`] it.
    ///
    /// Counted like any other call. A provider that panics fails this call alone. No deadline is looked at: it takes
    /// microseconds. Concurrent questions share nothing, since there is no time in which a second could join.
    pub fn serve_now(&self, op: &Op) -> Option<Result<Outcome, KmsError>> {
        self.shared.serve_now(op)
    }

    /// How often the provider has been opened, if it is one that answers at once.
    pub fn immediate(&self) -> Option<u64> {
        self.shared.immediate()
    }

    /// Sets a job going. Whatever becomes of it, it becomes known through [`Self::try_recv`].
    pub fn submit(&self, job: Job) {
        let id = job.id;
        match &self.runtime {
            Some(runtime) => {
                if let Err(error) = Shared::board(&self.shared, runtime.handle(), job) {
                    self.shared.deliver(vec![id], Err(error));
                }
            }
            None => self.shared.deliver(vec![id], Err(shutting_down())),
        }
    }

    /// Withdraws a job. A call that nobody else waits for is dropped. `false` if the job was not waiting (any
    /// more): its completion may then be queued already, or be about to.
    pub fn cancel(&self, id: u64) -> bool {
        self.shared.cancel(id)
    }

    /// The next completion, if there is one. Drain it after each wake-up.
    pub fn try_recv(&self) -> Option<Completion> {
        self.completions.try_recv().ok()
    }

    /// Takes new settings. The provider is opened anew even if they are the same, since the file may not be.
    ///
    /// Jobs already submitted finish with the provider they began with. If the new one cannot be opened, jobs
    /// from now on are refused with the returned error: going on with a key that the settings no longer name would
    /// hide the mistake until the next restart.
    pub fn reconfigure(&self, config: &ServiceConfig) -> Result<(), KmsError> {
        self.shared.replace(config.open(), config.limits)
    }

    /// The counters.
    pub fn status(&self) -> Status {
        self.shared.status()
    }

    /// Takes no more jobs, waits up to `timeout` for those under way, stops the rest (they fail as `Unreachable`)
    /// and ends the threads. Completions can still be received afterwards.
    pub fn shutdown(&mut self, timeout: Duration) {
        let Some(runtime) = self.runtime.take() else { return };
        self.shared.close(timeout);
        runtime.shutdown_timeout(STOP);
        // A call that blocks its thread has not been dropped: those who wait for it must not wait too.
        self.shared.abandon();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.shutdown(Duration::ZERO);
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("status", &self.status()).finish_non_exhaustive()
    }
}

pub(crate) fn shutting_down() -> KmsError {
    KmsError::new(ErrorKind::Unreachable, "key service worker is shutting down")
        .with_hint("Repeat the request when it has restarted.")
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
