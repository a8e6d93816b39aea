//! Asking the key-service worker: the backend's side of the request queue.
//!
//! Runs in client backends, main thread. Design:
//!
//! 1. Claim a free slot; if there is none, wait on the condition variable `slot_freed` until the deadline, looking
//!    into the cache at each wake-up (somebody else's answer may be ours).
//! 2. Write the request, submit, set the worker's latch, sleep on the own latch until the answer is there.
//! 3. Consume the answer (copied out, slot wiped and freed), announce the free slot.
//!
//! Every sleep lets cancel, `statement_timeout` and termination take effect at once. An ERROR unwinds through
//! [`Hold`], whose drop gives the slot up; FATAL does not unwind, so an exit callback gives up whatever this process
//! number still holds. The caller holds no lock and no snapshot-sensitive state: it may sleep for seconds.
//!
//! The trap it avoids: waiting for a worker that is gone. Its successor takes over submitted requests, so a wait is
//! bounded by the deadline alone and need not notice the death.

use std::cell::Cell;
use std::time::Duration;

use hyperion_vault_core::cache::Lookup;
use hyperion_vault_core::envelope::{Dek, DekContext};
use hyperion_vault_core::ipc::{self, ClientTicket, Poll, Reclaimed, Request, Response, Slot};

use crate::area::{self, Area};
use crate::config;
use crate::error::{Kind, Result, VaultError};
use crate::pg::{exit, latch, monotonic_ms};

/// A fresh DEK and what is stored with the value it seals.
pub struct Generated {
    pub dek: Dek,
    pub wrapped: Vec<u8>,
    pub key_id: String,
    pub key_material_id: Option<String>,
}

/// A new DEK for this place.
pub fn generate(context: DekContext) -> Result<Generated> {
    match ask(&Request::GenerateDek { context }, None)? {
        Answered::Response(Response::Dek { dek, wrapped, key_id, key_material_id }) => Ok(Generated {
            dek,
            wrapped,
            key_id,
            key_material_id: (!key_material_id.is_empty()).then_some(key_material_id),
        }),
        _ => Err(unexpected()),
    }
}

/// The DEK if it is cached. Cheap, never sleeps.
pub fn cached(digest: &[u8; 32]) -> Result<Option<Dek>> {
    let area = area::get()?;
    let found = area.cache().lookup(digest, monotonic_ms());
    area.counters.looked_up(latch::my_proc().max(0) as usize, &found);
    Ok(match found {
        Lookup::Hit(dek) => Some(dek),
        Lookup::Stale { .. } | Lookup::Miss => None,
    })
}

/// The DEK behind `wrapped`, which the key of that id wrapped, through the worker, which caches it.
pub fn unwrap(context: DekContext, wrapped: &[u8], key_id: &str) -> Result<Dek> {
    let digest = context.cache_digest(wrapped);
    let request = Request::UnwrapDek { context, wrapped: wrapped.to_vec(), key_id: key_id.to_owned() };
    let answer = ask(&request, Some(&digest));
    match answer {
        Ok(Answered::Cached(dek) | Answered::Response(Response::Unwrapped { dek })) => Ok(dek),
        Ok(_) => Err(unexpected()),
        Err(failure) => match stale(&failure, &digest)? {
            Some(dek) => Ok(dek),
            None => Err(failure.into()),
        },
    }
}

/// Past its TTL an entry may serve while the key service cannot be asked; never when it has said no.
fn stale(failure: &Failure, digest: &[u8; 32]) -> Result<Option<Dek>> {
    if !failure.is_outage() {
        return Ok(None);
    }
    match area::get()?.cache().lookup(digest, monotonic_ms()) {
        Lookup::Hit(dek) => Ok(Some(dek)),
        Lookup::Stale { dek, expired_for_ms } if expired_for_ms <= config::dek_cache_stale_ms() => {
            Ok(Some(dek))
        }
        _ => Ok(None),
    }
}

enum Answered {
    Response(Response),
    /// Found in the cache while waiting for a slot.
    Cached(Dek),
}

/// Why there is no answer.
enum Failure {
    /// The worker said so.
    Service {
        kind: ipc::ErrorKind,
        message: String,
        detail: String,
        hint: String,
    },
    /// No slot became free in time.
    QueueFull,
    /// The worker did not answer in time.
    NoAnswer {
        worker_running: bool,
    },
    Other(VaultError),
}

impl Failure {
    fn is_outage(&self) -> bool {
        match self {
            Failure::Service { kind, .. } => kind.is_outage(),
            Failure::QueueFull | Failure::NoAnswer { .. } => true,
            Failure::Other(_) => false,
        }
    }
}

impl From<VaultError> for Failure {
    fn from(e: VaultError) -> Self {
        Failure::Other(e)
    }
}

impl From<Failure> for VaultError {
    fn from(failure: Failure) -> Self {
        let waited = format!("Waited {} ms.", config::kms_timeout().as_millis());
        match failure {
            Failure::Service { kind, message, detail, hint } => VaultError::from_kms(kind, &message, &detail, &hint),
            Failure::QueueFull => VaultError::new(Kind::Overloaded, "the key-service request queue is full")
                .detail(waited)
                .hint("Raise hyperion_vault.kms_queue_slots or hyperion_vault.kms_max_in_flight, or look for a slow key service in vault.status()."),
            Failure::NoAnswer { worker_running: true } => {
                VaultError::new(Kind::KmsUnavailable, "the key service did not answer in time")
                    .detail(waited)
                    .hint("See vault.status() for the state of the key service; hyperion_vault.kms_timeout_ms bounds the wait.")
            }
            Failure::NoAnswer { worker_running: false } => {
                VaultError::new(Kind::KmsUnavailable, "the key-service worker is not running")
                    .detail(waited)
                    .hint("The server restarts it by itself; if it does not stay up, the server log says why.")
            }
            Failure::Other(e) => e,
        }
    }
}

fn unexpected() -> VaultError {
    VaultError::internal("the key-service worker gave an answer to another question")
}

/// A claimed slot; given up on drop unless its answer was consumed.
struct Hold {
    area: Area,
    slot: &'static Slot,
    ticket: Option<ClientTicket>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            release(self.area, self.slot, ticket);
        }
    }
}

fn ask(request: &Request, digest: Option<&[u8; 32]>) -> Result<Answered, Failure> {
    let area = area::get()?;
    let deadline = monotonic_ms() + config::kms_timeout().as_millis() as u64;
    register_exit_callback();
    let mut hold = match claim(area, digest, deadline)? {
        Claimed::Slot(hold) => hold,
        Claimed::Cached(dek) => return Ok(Answered::Cached(dek)),
    };
    let bytes = request
        .encode()
        .map_err(|_| VaultError::new(Kind::Corrupted, "wrapped key cannot be authenticated"))?;
    let ticket = hold.ticket.as_ref().ok_or_else(unexpected)?;
    hold.slot
        .write_request(ticket, request.op(), deadline, &bytes)
        .and_then(|()| hold.slot.submit(ticket))
        .map_err(|_| VaultError::internal("a request slot was lost while it was filled"))?;
    if let Some(worker) = area.header.worker_proc() {
        latch::wake(worker);
    }
    let response = wait(&mut hold, deadline)?;
    match response {
        Response::Error { kind, message, detail, hint } => {
            Err(Failure::Service { kind, message, detail, hint })
        }
        response => Ok(Answered::Response(response)),
    }
}

enum Claimed {
    Slot(Hold),
    Cached(Dek),
}

fn claim(area: Area, digest: Option<&[u8; 32]>, deadline: u64) -> Result<Claimed, Failure> {
    let me = latch::my_proc();
    let try_once = || {
        ipc::claim_any(area.slots, me.max(0) as usize, me).map(|(index, ticket)| Hold {
            area,
            slot: &area.slots[index],
            ticket: Some(ticket),
        })
    };
    if let Some(hold) = try_once() {
        return Ok(Claimed::Slot(hold));
    }
    let waiting = area.header.slot_freed.prepare();
    loop {
        if let Some(digest) = digest
            && let Lookup::Hit(dek) = area.cache().lookup(digest, monotonic_ms())
        {
            return Ok(Claimed::Cached(dek));
        }
        if let Some(hold) = try_once() {
            return Ok(Claimed::Slot(hold));
        }
        let left = deadline.saturating_sub(monotonic_ms());
        if left == 0 {
            return Err(Failure::QueueFull);
        }
        // At most 100 ms at a time: the cache has no wake-up of its own.
        waiting.sleep(Duration::from_millis(left.min(100)));
    }
}

fn wait(hold: &mut Hold, deadline: u64) -> Result<Response, Failure> {
    loop {
        let ticket = hold.ticket.take().ok_or_else(unexpected)?;
        match hold.slot.poll(&ticket) {
            Poll::Done => {
                let answer = hold.slot.consume(ticket).map_err(|ticket| {
                    hold.ticket = Some(ticket);
                    unexpected()
                })?;
                hold.area.header.slot_freed.broadcast();
                return Ok(Response::decode(&answer.bytes).map_err(|_| unexpected())?);
            }
            Poll::NotHeld => {
                return Err(VaultError::internal("a request slot was lost while it was waited for").into());
            }
            Poll::Waiting => hold.ticket = Some(ticket),
        }
        let left = deadline.saturating_sub(monotonic_ms());
        if left == 0 {
            return Err(Failure::NoAnswer { worker_running: hold.area.header.worker_proc().is_some() });
        }
        // At most a second at a time: a worker that started meanwhile finds the request by itself, but a wake-up
        // sent to its predecessor's process number is lost.
        latch::wait(Duration::from_millis(left.min(1000)));
    }
}

thread_local! {
    static REGISTERED: Cell<bool> = const { Cell::new(false) };
}

fn register_exit_callback() {
    if !REGISTERED.replace(true) {
        exit::before_exit(give_up_everything);
    }
}

/// The process ends without unwinding: free what it holds.
fn give_up_everything() {
    let Ok(area) = area::get() else { return };
    for (index, ticket) in ipc::held_by(area.slots, latch::my_proc()) {
        release(area, &area.slots[index], ticket);
    }
}

/// Gives a slot up, whatever its state, and tells whom it concerns.
fn release(area: Area, slot: &Slot, ticket: ClientTicket) {
    match slot.give_up(ticket) {
        // The worker wipes, frees and announces it; it need not wait for the answer to do so.
        Reclaimed::LeftToWorker => {
            if let Some(worker) = area.header.worker_proc() {
                latch::wake(worker);
            }
        }
        Reclaimed::Freed => area.header.slot_freed.broadcast(),
        Reclaimed::NotHeld => {}
    }
}
