//! `hyperion_vault kms`: the only process that talks to the key service and the only one that holds its credentials.
//!
//! A background worker that belongs to no database and runs no SQL. Its main thread (this file) owns the request slots it has
//! taken and everything of Postgres; the tokio threads inside [`Service`] own the calls that wait. They meet in the service's
//! channel and an eventfd, nowhere else. A provider that answers at once (`local`) is asked on the main thread.
//!
//! ```text
//! turn: settings reloaded? → completions: cache, answer, wake → abandoned: withdraw
//!       → each second: sweep expired keys, mark all slots
//!       → submitted: take all that are marked in the inbox; cache? provider at once? else hand over
//!       → publish counts → complete what was answered, wake the clients
//!       → marks again? next turn, else sleep on latch | eventfd | 1 s
//! ```
//!
//! Orderly death (SIGTERM, panic, ERROR, FATAL): the exit callback withdraws the announcement; slots stay as they are and
//! the successor (1 s later) recovers them under a new epoch: taken requests are submitted again. Death by SIGKILL or
//! a crash restarts the whole server, with a new mapping.
//!
//! The trap it avoids: a completion for a slot that has a new owner; tickets carry generation and epoch.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::time::{Duration, Instant};

use hyperion_vault_core::cache::Lookup;
use hyperion_vault_core::ipc::{
    Completed, Epoch, ErrorKind, Recovered, Request, Response, Taken, WorkerTicket,
};
use hyperion_vault_core::reserve;
use hyperion_vault_kms::{
    Completion, Job, KmsError, Op, Outcome, Service, ServiceConfig, StoredDek, WrappedDek,
};
use zeroize::Zeroizing;

use crate::area::{self, Area};
use crate::config;
use crate::pg::latch::{Eventfd, Events};
use crate::pg::{exit, latch, monotonic_ms, unix_now, worker};

mod answers;
mod publish;

use answers::Answers;
use publish::publish;

/// Seconds until the postmaster starts the worker again: short, since reads of uncached secrets wait for it.
const RESTART_SECS: i32 = 1;
/// The longest sleep. Requests and completions wake the worker; this is for the sweep, and for a request whose mark or
/// wake-up was lost with its client or between two workers.
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
        area.header.reserving.store(reserve::NOTHING, Release);
        // Those who wait look again at whether there is a worker.
        area.header.slot_freed.broadcast();
    }
}

/// Says whether sessions may ask for keys ahead: only of a provider that answers at once, without a bill for each call.
fn announce(area: Area, epoch: Epoch, service: &Service) {
    let mark =
        service.immediate().map_or(reserve::NOTHING, |opened| (u64::from(epoch.number()) << 32) + opened + 1);
    area.header.reserving.store(mark, Release);
}

/// A request under way.
struct Pending {
    slot: usize,
    ticket: WorkerTicket,
    /// Where the unwrapped key goes; None for other requests.
    digest: Option<[u8; 32]>,
}

/// A request answered on this thread, before its client is told.
struct Answered {
    slot: usize,
    ticket: WorkerTicket,
    status: u32,
    bytes: Zeroizing<Vec<u8>>,
}

struct Worker {
    area: Area,
    epoch: Epoch,
    service: Service,
    events: Events,
    pending: HashMap<u64, Pending>,
    next_job: u64,
    request: Vec<u8>,
    /// Of the turn; kept for their capacity.
    marked: Vec<usize>,
    answered: Vec<Answered>,
    /// When the work of each second was done.
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
        announce(area, epoch, &service);
        area.header.set_worker(Some(latch::my_proc()));
        pgrx::log!("hyperion_vault kms worker started");
        Self {
            area,
            epoch,
            service,
            events: Events::new(wake),
            pending: HashMap::new(),
            // A successor never reuses a predecessor's numbers, though no completion of that one can reach it.
            next_job: u64::from(epoch.number()) << 32,
            request: Vec::new(),
            // A predecessor may have taken marks and not the requests: all slots, at first.
            marked: (0..area.slots.len()).collect(),
            answered: Vec::new(),
            swept_at: monotonic_ms(),
            sweep_from: 0,
            opened_at: monotonic_ms(),
        }
    }

    fn turn(&mut self) {
        self.area.header.inbox.awake();
        if worker::reload_requested() {
            worker::reload_configuration();
            self.opened_at = monotonic_ms();
            let config = config::service();
            if let Err(error) = self.reconfigure(&config) {
                warn(&error);
            }
            #[cfg(feature = "testing")]
            if let Some(death) = config.faults.and_then(|faults| faults.die) {
                die(death);
            }
        }
        self.reopen();
        self.deliver();
        self.withdraw_abandoned();
        self.each_second();
        self.take_submitted();
        let all_told = self.tell();
        if !all_told {
            publish(&self.service, &self.area.header.stats);
        }
        if self.area.header.inbox.may_sleep(self.area.slots.len()) {
            self.events.wait(TURN);
        }
        pgrx::check_for_interrupts!();
    }

    /// Tries a provider again that could not be opened. Quietly: its error was logged, and each caller gets it.
    fn reopen(&mut self) {
        let now = monotonic_ms();
        if now.saturating_sub(self.opened_at) < REOPEN.as_millis() as u64 {
            return;
        }
        self.opened_at = now;
        if self.service.status().provider_error.is_some() && self.reconfigure(&config::service()).is_ok() {
            pgrx::log!("hyperion_vault: the key service's provider can be used again");
        }
    }

    fn reconfigure(&self, config: &ServiceConfig) -> Result<(), KmsError> {
        // Before the former provider is gone: nobody keeps a key of it for later.
        self.area.header.reserving.store(reserve::NOTHING, Release);
        let opened = self.service.reconfigure(config);
        announce(self.area, self.epoch, &self.service);
        opened
    }

    /// Answers whatever has been completed. The counts come first: who has an answer finds its call among them.
    fn deliver(&mut self) {
        let completed: Vec<Completion> = std::iter::from_fn(|| self.service.try_recv()).collect();
        if completed.is_empty() {
            return;
        }
        publish(&self.service, &self.area.header.stats);
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
        let response = self.answers().to(result, pending.digest.as_ref());
        self.complete(pending.slot, pending.ticket, &response);
    }

    fn answers(&self) -> Answers<'_> {
        Answers { area: self.area, service: &self.service }
    }

    fn complete(&self, slot: usize, ticket: WorkerTicket, response: &Response) {
        let (status, bytes) = response.encode();
        let completed = self.area.slots[slot].complete(ticket, status, &bytes);
        if let Some(client) = self.completed(completed) {
            latch::wake(client);
        }
    }

    /// Whom to wake.
    fn completed(&self, completed: Completed) -> Option<i32> {
        match completed {
            Completed::Delivered(client) => return Some(client),
            Completed::WasAbandoned => self.area.header.slot_freed.broadcast(),
            Completed::Refused => {
                pgrx::warning!("hyperion_vault: a request slot had a new owner before its answer")
            }
        }
        None
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
                // Never read by anyone.
                self.complete(pending.slot, pending.ticket, &answers::internal("withdrawn"));
            }
        }
    }

    fn take_submitted(&mut self) {
        let mut marked = std::mem::take(&mut self.marked);
        self.area.header.inbox.collect(self.area.slots.len(), |slot| marked.push(slot));
        for slot in marked.drain(..) {
            if let Some(taken) = self.area.slots[slot].take(self.epoch) {
                self.begin(slot, taken);
            }
        }
        self.marked = marked;
    }

    /// Completes what was answered in this turn. Counts come before answers, as in [`Self::deliver`]. Latches are set after
    /// all answers: a client that takes the worker's core when it is woken delays no other's. True if there was something
    /// and no call is under way, so that what was published holds.
    fn tell(&mut self) -> bool {
        if self.answered.is_empty() {
            return false;
        }
        publish(&self.service, &self.area.header.stats);
        let mut answered = std::mem::take(&mut self.answered);
        let mut clients = Vec::with_capacity(answered.len());
        for Answered { slot, ticket, status, bytes } in answered.drain(..) {
            let completed = self.area.slots[slot].complete(ticket, status, &bytes);
            if let Some(client) = self.completed(completed)
                && clients.last() != Some(&client)
            {
                clients.push(client);
            }
        }
        clients.into_iter().for_each(latch::wake);
        self.answered = answered;
        self.pending.is_empty()
    }

    fn answer_now(&mut self, slot: usize, ticket: WorkerTicket, response: &Response) {
        let (status, bytes) = response.encode();
        self.answered.push(Answered { slot, ticket, status, bytes });
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
                    self.answer_now(slot, ticket, &Response::Unwrapped { dek });
                    return;
                }
                let stored = StoredDek { wrapped: WrappedDek(wrapped), key_id };
                (Op::Unwrap { context, stored }, Some(digest))
            }
            Ok(Request::Describe) => (Op::Describe, None),
            Err(malformed) => {
                self.answer_now(slot, ticket, &answers::internal(&malformed.to_string()));
                return;
            }
        };
        if let Some(result) = self.service.serve_now(&op) {
            // On the threads a panic is logged where it happens; here nothing else would tell.
            if let Err(error) = &result
                && error.kind == ErrorKind::Internal
            {
                warn(error);
            }
            let response = self.answers().to(result, digest.as_ref());
            self.answer_now(slot, ticket, &response);
            return;
        }
        let left = Duration::from_millis(deadline_ms.saturating_sub(monotonic_ms()));
        // The session stops waiting at its deadline, and then knows less than the worker could have told it.
        let left = left - TELLING.min(left / 10);
        self.next_job += 1;
        let id = self.next_job;
        self.pending.insert(id, Pending { slot, ticket, digest });
        self.service.submit(Job { id, deadline: Instant::now() + left, op });
    }

    /// Zeroises what has expired, a part of the cache each second; and has this turn look at all slots.
    fn each_second(&mut self) {
        let now = monotonic_ms();
        if now.saturating_sub(self.swept_at) < TURN.as_millis() as u64 {
            return;
        }
        self.swept_at = now;
        self.marked.extend(0..self.area.slots.len());
        let cache = self.area.cache();
        let step = cache.sets().div_ceil(SWEEP_TURNS);
        cache.sweep(now, self.sweep_from..self.sweep_from + step);
        self.sweep_from += step;
        if self.sweep_from >= cache.sets() {
            self.sweep_from = 0;
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
