//! `hyperion_vault kms`: the only process that talks to the key service and the only one that holds its credentials.
//!
//! A background worker that belongs to no database and runs no SQL. Its main thread (this file) owns the request slots it has
//! taken and everything of Postgres; the tokio threads inside [`Service`] own the calls. They meet in the service's
//! channel and an eventfd, nowhere else.
//!
//! ```text
//! turn: settings reloaded? → completions: cache, answer, wake → abandoned: withdraw → submitted: take, cache?, ask
//!       → sweep expired keys → publish counts → sleep on latch | eventfd | 1 s
//! ```
//!
//! Orderly death (SIGTERM, panic, ERROR, FATAL): the exit callback withdraws the announcement; slots stay as they are and
//! the successor (1 s later) recovers them under a new epoch: taken requests are submitted again. Death by SIGKILL or
//! a crash restarts the whole server, with a new mapping.
//!
//! The trap it avoids: a completion for a slot that has a new owner; tickets carry generation and epoch.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, UNIX_EPOCH};

use hyperion_vault_core::cache::Lookup;
use hyperion_vault_core::ipc::{
    Completed, Epoch, ErrorKind, Recovered, Request, Response, Taken, WorkerTicket,
};
use hyperion_vault_kms::{Completion, Job, KmsError, Op, Outcome, Service, StoredDek, WrappedDek};

use crate::area::{self, Area};
use crate::config;
use crate::pg::latch::Eventfd;
use crate::pg::{exit, latch, monotonic_ms, unix_now, worker};

/// Seconds until the postmaster starts the worker again: short, since reads of uncached secrets wait for it.
const RESTART_SECS: i32 = 1;
/// The longest sleep. Requests and completions wake the worker; this is for the sweep and for a wake-up lost
/// between two workers.
const TURN: Duration = Duration::from_secs(1);
/// A full sweep of the cache takes this many turns of a second.
const SWEEP_TURNS: usize = 5;
/// How often a provider that could not be opened is tried again: a repaired key file needs no reload.
const REOPEN: Duration = Duration::from_secs(5);
/// By how much the worker's deadline comes before the session's: enough for an answer to cross on a busy machine.
const TELLING: Duration = Duration::from_millis(50);
/// How long calls under way may still take when the worker is told to stop.
const SHUTDOWN: Duration = Duration::from_millis(500);

pub fn register() {
    worker::register(c"hyperion_vault kms", c"hyperion_vault_kms_main", RESTART_SECS);
}

/// Entry point, by name, for the postmaster.
#[unsafe(no_mangle)]
#[pgrx::pg_guard]
pub extern "C-unwind" fn hyperion_vault_kms_main(_arg: pgrx::pg_sys::Datum) {
    worker::attach();
    worker::join_sessions();
    worker::forbid_core_dumps();
    let area = match area::get() {
        Ok(area) => area,
        Err(e) => e.raise(),
    };
    exit::before_exit(take_leave);
    let mut worker = Worker::start(area);
    while !worker::stop_requested() {
        worker.turn();
    }
    worker.service.shutdown(SHUTDOWN);
    worker.deliver_last();
    worker::exit_for_restart();
}

fn take_leave() {
    if let Ok(area) = area::get() {
        area.header.set_worker(None);
        area.header.worker_pid.store(0, Relaxed);
        // Those who wait look again at whether there is a worker.
        area.header.slot_freed.broadcast();
    }
}

/// A request under way.
struct Pending {
    slot: usize,
    ticket: WorkerTicket,
    /// Where the unwrapped key goes; None for other requests.
    digest: Option<[u8; 32]>,
}

struct Worker {
    area: Area,
    epoch: Epoch,
    service: Service,
    wake: Eventfd,
    pending: HashMap<u64, Pending>,
    next_job: u64,
    request: Vec<u8>,
    swept_at: u64,
    sweep_from: usize,
    /// When the provider was last opened, or tried.
    opened_at: u64,
}

impl Worker {
    fn start(area: Area) -> Self {
        let wake = match Eventfd::new() {
            Ok(wake) => wake,
            Err(e) => crate::error::VaultError::internal(format!("could not create an eventfd: {e}")).raise(),
        };
        let raise = wake.clone();
        let config = config::service();
        let service =
            worker::with_signals_blocked(|| Service::start(&config, Arc::new(move || raise.raise())));
        let service = match service {
            Ok(service) => service,
            Err(e) => raise_kms(&e),
        };
        if let Some(error) = service.status().provider_error {
            warn(&error);
        }
        let epoch = area.header.epoch.begin();
        for slot in area.slots {
            if let Recovered::Answered(client) = slot.recover(epoch) {
                latch::wake(client);
            }
        }
        area.header.slot_freed.broadcast();
        area.header.worker_pid.store(worker::my_pid(), Relaxed);
        area.header.started_at.store(unix_now(), Relaxed);
        area.header.set_worker(Some(latch::my_proc()));
        pgrx::log!("hyperion_vault kms worker started");
        Self {
            area,
            epoch,
            service,
            wake,
            pending: HashMap::new(),
            // A successor never reuses a predecessor's numbers, though no completion of that one can reach it.
            next_job: u64::from(epoch.number()) << 32,
            request: Vec::new(),
            swept_at: monotonic_ms(),
            sweep_from: 0,
            opened_at: monotonic_ms(),
        }
    }

    fn turn(&mut self) {
        if worker::reload_requested() {
            worker::reload_configuration();
            self.opened_at = monotonic_ms();
            let config = config::service();
            if let Err(error) = self.service.reconfigure(&config) {
                warn(&error);
            }
            #[cfg(feature = "testing")]
            if let Some(death) = config.faults.and_then(|faults| faults.die) {
                die(death);
            }
        }
        self.reopen();
        self.wake.drain();
        self.deliver();
        self.withdraw_abandoned();
        self.take_submitted();
        self.sweep();
        self.publish();
        latch::wait_or_readable(self.wake.raw(), TURN);
    }

    /// Tries a provider again that could not be opened. Quietly: its error was logged, and each caller gets it.
    fn reopen(&mut self) {
        let now = monotonic_ms();
        if now.saturating_sub(self.opened_at) < REOPEN.as_millis() as u64 {
            return;
        }
        self.opened_at = now;
        if self.service.status().provider_error.is_some()
            && self.service.reconfigure(&config::service()).is_ok()
        {
            pgrx::log!("hyperion_vault: the key service's provider can be used again");
        }
    }

    /// Answers whatever has been completed. The counts come first: who has an answer finds its call among them.
    fn deliver(&mut self) {
        let completed: Vec<Completion> = std::iter::from_fn(|| self.service.try_recv()).collect();
        if completed.is_empty() {
            return;
        }
        self.publish();
        for Completion { id, result } in completed {
            self.answer(id, result);
        }
    }

    /// Answers what has been completed before the end. A call that the end cut short is no answer: its slot stays
    /// taken, and the successor asks again while its client waits on.
    fn deliver_last(&mut self) {
        while let Some(Completion { id, result }) = self.service.try_recv() {
            if !result.as_ref().is_err_and(KmsError::is_retryable) {
                self.answer(id, result);
            }
        }
    }

    fn answer(&mut self, id: u64, result: Result<Outcome, KmsError>) {
        let Some(pending) = self.pending.remove(&id) else { return };
        let response = match result {
            Ok(outcome) => self.respond(outcome, pending.digest.as_ref()),
            Err(error) => error_response(error),
        };
        self.complete(pending.slot, pending.ticket, &response);
    }

    fn respond(&self, outcome: Outcome, digest: Option<&[u8; 32]>) -> Response {
        match outcome {
            Outcome::Generated(generated) => Response::Dek {
                dek: *generated.dek,
                wrapped: generated.wrapped.0,
                key_id: generated.by.key_id,
                key_material_id: generated.by.key_material_id.unwrap_or_default(),
            },
            Outcome::Unwrapped(dek) => {
                if let Some(digest) = digest {
                    let done = self.area.cache().insert(
                        digest,
                        &dek,
                        monotonic_ms(),
                        config::dek_cache_ttl_ms(),
                        config::dek_cache_stale_ms(),
                    );
                    self.area.counters.inserted(latch::my_proc().max(0) as usize, done);
                }
                Response::Unwrapped { dek: *dek }
            }
            Outcome::Described(described) => Response::Described {
                provider: self.service.status().provider.unwrap_or_default().to_owned(),
                key_id: described.key_id,
                key_material_id: described.key_material_id.unwrap_or_default(),
            },
        }
    }

    fn complete(&self, slot: usize, ticket: WorkerTicket, response: &Response) {
        let (status, bytes) = response.encode();
        match self.area.slots[slot].complete(ticket, status, &bytes) {
            Completed::Delivered(client) => latch::wake(client),
            Completed::WasAbandoned => self.area.header.slot_freed.broadcast(),
            Completed::Refused => {
                pgrx::warning!("hyperion_vault: a request slot had a new owner before its answer")
            }
        }
    }

    /// Frees the slots whose clients have gone, and drops calls nobody waits for.
    fn withdraw_abandoned(&mut self) {
        let gone: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, pending)| self.area.slots[pending.slot].abandoned_by_client(&pending.ticket))
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            self.service.cancel(id);
            if let Some(pending) = self.pending.remove(&id) {
                self.complete(pending.slot, pending.ticket, &withdrawn());
            }
        }
    }

    fn take_submitted(&mut self) {
        for slot in 0..self.area.slots.len() {
            if let Some(taken) = self.area.slots[slot].take(self.epoch) {
                self.begin(slot, taken);
            }
        }
    }

    fn begin(&mut self, slot: usize, taken: Taken) {
        let Taken { ticket, deadline_ms, .. } = taken;
        if !self.area.slots[slot].read_request(&ticket, &mut self.request) {
            return;
        }
        let (op, digest) = match Request::decode(&self.request) {
            Ok(Request::GenerateDek { context }) => (Op::Generate(context), None),
            Ok(Request::UnwrapDek { context, wrapped, key_id }) => {
                let digest = context.cache_digest(&wrapped);
                // The queue may have been full of requests for this very key.
                if let Lookup::Hit(dek) = self.area.cache().lookup(&digest, monotonic_ms()) {
                    self.complete(slot, ticket, &Response::Unwrapped { dek });
                    return;
                }
                let stored = StoredDek { wrapped: WrappedDek(wrapped), key_id };
                (Op::Unwrap { context, stored }, Some(digest))
            }
            Ok(Request::Describe) => (Op::Describe, None),
            Err(malformed) => {
                self.complete(slot, ticket, &error_text(ErrorKind::Internal, &malformed.to_string()));
                return;
            }
        };
        let left = Duration::from_millis(deadline_ms.saturating_sub(monotonic_ms()));
        // The session stops waiting at its deadline, and then knows less than the worker could have told it.
        let left = left - TELLING.min(left / 10);
        self.next_job += 1;
        let id = self.next_job;
        self.pending.insert(id, Pending { slot, ticket, digest });
        self.service.submit(Job { id, deadline: Instant::now() + left, op });
    }

    /// Zeroises what has expired, a part of the cache each second.
    fn sweep(&mut self) {
        let now = monotonic_ms();
        if now.saturating_sub(self.swept_at) < TURN.as_millis() as u64 {
            return;
        }
        self.swept_at = now;
        let cache = self.area.cache();
        let step = cache.sets().div_ceil(SWEEP_TURNS);
        cache.sweep(now, self.sweep_from..self.sweep_from + step);
        self.sweep_from += step;
        if self.sweep_from >= cache.sets() {
            self.sweep_from = 0;
        }
    }

    fn publish(&self) {
        let status = self.service.status();
        let stats = &self.area.header.stats;
        stats.calls.store(status.calls, Relaxed);
        stats.failures.store(status.failures, Relaxed);
        stats.retries.store(status.retries, Relaxed);
        stats.coalesced.store(status.coalesced, Relaxed);
        stats.in_flight.store(status.in_flight as u64, Relaxed);
        stats.refused.store(status.refused, Relaxed);
        stats.breaker.store(status.breaker_opened << 1 | u64::from(status.breaker_open), Relaxed);
        stats.provider.store(if status.provider_error.is_none() { 1 } else { 2 }, Relaxed);
        // A provider that cannot be opened fails every request without a call of its own.
        let last = match (&status.provider_error, &status.last_error) {
            (Some(error), _) => Some((error.kind, unix_now())),
            (None, Some(last)) => {
                Some((last.error.kind, last.at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())))
            }
            (None, None) => None,
        };
        if let Some((kind, at)) = last {
            stats.last_error_kind.store(kind as u32, Relaxed);
            stats.last_error_at.store(at, Relaxed);
        }
    }
}

/// Ends the worker as a test asked for, with requests under way. Test builds only.
#[cfg(feature = "testing")]
fn die(death: hyperion_vault_kms::testing::Death) {
    use hyperion_vault_kms::testing::Death;
    match death {
        Death::Panic => panic!("panic asked for by a test"),
        Death::Error => crate::error::VaultError::internal("error asked for by a test").raise(),
        Death::Fatal => pgrx::ereport!(
            pgrx::PgLogLevel::FATAL,
            pgrx::PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
            "end asked for by a test"
        ),
    }
}

fn error_response(error: KmsError) -> Response {
    Response::Error {
        kind: error.kind,
        message: error.message,
        detail: error.detail.unwrap_or_default(),
        hint: error.hint.unwrap_or_default(),
    }
}

fn error_text(kind: ErrorKind, message: &str) -> Response {
    Response::Error { kind, message: message.to_owned(), detail: String::new(), hint: String::new() }
}

/// For a slot whose client is gone: never read by anyone.
fn withdrawn() -> Response {
    error_text(ErrorKind::Internal, "withdrawn")
}

fn raise_kms(error: &KmsError) -> ! {
    crate::error::VaultError::from_kms(
        error.kind,
        &error.message,
        error.detail.as_deref().unwrap_or_default(),
        error.hint.as_deref().unwrap_or_default(),
    )
    .raise()
}

fn warn(error: &KmsError) {
    crate::error::VaultError::from_kms(
        error.kind,
        &format!("hyperion_vault: {}", error.message),
        error.detail.as_deref().unwrap_or_default(),
        error.hint.as_deref().unwrap_or_default(),
    )
    .warn();
}
