//! Asking the key-service worker: the backend's side of the request queue.
//!
//! Runs in client backends, main thread. Design:
//!
//! 1. Claim a free slot; if there is none, wait on the condition variable `slot_freed` until the deadline, looking
//!    into the cache at each wake-up (somebody else's answer may be ours).
//! 2. Write the request, submit, mark the slot in the worker's inbox; ring, once for all that were marked, which sets
//!    the worker's latch if it sleeps; sleep on the own latch until the answer is there.
//! 3. Consume the answer (copied out, slot wiped and freed), announce the free slot.
//!
//! Every sleep lets cancel, `statement_timeout` and termination take effect at once. An ERROR unwinds through
//! [`Hold`], whose drop gives the slot up; FATAL does not unwind, so an exit callback gives up whatever this process
//! number still holds. The caller holds no lock and no snapshot-sensitive state: it may sleep for seconds.
//!
//! The trap it avoids: waiting for a worker that is gone. Its successor takes over submitted requests, so a wait is
//! bounded by the deadline alone and need not notice the death.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::Ordering::Acquire;
use std::time::Duration;

use hyperion_vault_core::cache::Lookup;
use hyperion_vault_core::envelope::{Dek, DekContext};
use hyperion_vault_core::ipc::{
    self, ClientTicket, Poll, Reclaimed, Request, Response, Slot, State, StateCounts,
};

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
        Answered::Response(response) => generated(response),
        Answered::Cached(_) => Err(unexpected()),
    }
}

/// A new DEK for the first of these places, and for as many others as there is room for while half of the queue is free; with
/// their numbers. Sleeps for a slot only while it holds none: sessions that wait for each other's would all wait.
pub fn generate_ahead(contexts: &[DekContext]) -> Result<(Generated, Vec<(usize, Generated)>)> {
    let (first, others) = contexts.split_first().ok_or_else(unexpected)?;
    let request = |context: &DekContext| Request::GenerateDek { context: *context };
    let mut ahead = Pipeline::open()?;
    let free = StateCounts::of(ahead.area.slots).count(State::Free);
    let room = free.saturating_sub(ahead.area.slots.len() / 2);
    if room == 0 || others.is_empty() {
        return Ok((generate(*first)?, Vec::new()));
    }
    let deadline = deadline();
    let Some(mut hold) = claim_now(ahead.area) else { return Ok((generate(*first)?, Vec::new())) };
    submit(&mut hold, &request(first), deadline)?;
    for (index, context) in others.iter().enumerate().take(room - 1) {
        if ahead.submit(index + 1, &request(context))?.is_some() {
            break;
        }
    }
    let first = match answer(&mut hold, deadline)? {
        Answered::Response(response) => generated(response)?,
        Answered::Cached(_) => return Err(unexpected()),
    };
    // A worker takes what was submitted together at one time: what is not here by now is given up with the pipeline.
    let others = ahead
        .collect()
        .into_iter()
        .filter_map(|(index, answer)| Some((index, generated(answer.ok()?).ok()?)))
        .collect();
    Ok((first, others))
}

/// The key service's provider as it was opened, if it may be asked for keys ahead, see [`hyperion_vault_core::reserve`].
pub fn reserving() -> Result<u64> {
    // Acquire: pairs with the worker's Release.
    Ok(area::get()?.header.reserving.load(Acquire))
}

/// The answer to [`Request::GenerateDek`].
pub fn generated(response: Response) -> Result<Generated> {
    match response {
        Response::Dek { dek, wrapped, key_id, key_material_id } => Ok(Generated {
            dek,
            wrapped,
            key_id,
            key_material_id: (!key_material_id.is_empty()).then_some(key_material_id),
        }),
        _ => Err(unexpected()),
    }
}

/// The answer to [`Request::UnwrapDek`].
pub fn unwrapped(response: Response) -> Result<Dek> {
    match response {
        Response::Unwrapped { dek } => Ok(dek),
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

/// A wrapped DEK, the place it belongs to, and the id of the key that wrapped it.
pub struct Wrapped<'a> {
    pub context: DekContext,
    pub wrapped: &'a [u8],
    pub key_id: &'a str,
}

impl Wrapped<'_> {
    fn digest(&self) -> [u8; 32] {
        self.context.cache_digest(self.wrapped)
    }

    pub fn request(&self) -> Request {
        Request::UnwrapDek {
            context: self.context,
            wrapped: self.wrapped.to_vec(),
            key_id: self.key_id.to_owned(),
        }
    }

    /// What an answer comes to.
    fn dek(&self, answer: Result<Answered, Failure>) -> Result<Dek> {
        match answer {
            Ok(Answered::Cached(dek) | Answered::Response(Response::Unwrapped { dek })) => Ok(dek),
            Ok(_) => Err(unexpected()),
            Err(failure) => match stale(&failure, &self.digest())? {
                Some(dek) => Ok(dek),
                None => Err(failure.into()),
            },
        }
    }
}

/// The DEK behind `wrapped`, through the worker, which caches it.
pub fn unwrap(wanted: &Wrapped<'_>) -> Result<Dek> {
    wanted.dek(ask(&wanted.request(), Some(&wanted.digest())))
}

/// The DEKs behind several, in their order, asked for at the same time as far as the queue allows. Each request has the
/// full deadline from when it got its slot. The first failure ends it.
pub fn unwrap_all(wanted: &[Wrapped<'_>]) -> Result<Vec<Dek>> {
    let area = area::get()?;
    register_exit_callback();
    // A quarter of the queue at most: other sessions want to read too.
    let share = (area.slots.len() / 4).max(1);
    let mut deks: Vec<Option<Dek>> = wanted.iter().map(|_| None).collect();
    let mut under_way: VecDeque<(usize, Hold, u64)> = VecDeque::new();
    for (index, one) in wanted.iter().enumerate() {
        let hold = loop {
            let deadline = deadline();
            if under_way.len() < share
                && let Some(hold) = claim_now(area)
            {
                break Some((hold, deadline));
            }
            // No slot, or enough of them: finish one of our own before waiting for somebody else's.
            if let Some((earlier, mut hold, deadline)) = under_way.pop_front() {
                deks[earlier] = Some(wanted[earlier].dek(answer(&mut hold, deadline))?);
                continue;
            }
            break match claim(area, Some(&one.digest()), deadline) {
                Ok(Claimed::Slot(hold)) => Some((hold, deadline)),
                Ok(Claimed::Cached(dek)) => {
                    deks[index] = Some(dek);
                    None
                }
                Err(failure) => {
                    deks[index] = Some(one.dek(Err(failure))?);
                    None
                }
            };
        };
        if let Some((mut hold, deadline)) = hold {
            submit(&mut hold, &one.request(), deadline)?;
            under_way.push_back((index, hold, deadline));
        }
    }
    while let Some((earlier, mut hold, deadline)) = under_way.pop_front() {
        deks[earlier] = Some(wanted[earlier].dek(answer(&mut hold, deadline))?);
    }
    // Each was answered above, or the function left with the error.
    deks.into_iter().map(|dek| dek.ok_or_else(unexpected)).collect()
}

/// Requests of one process that are under way at the same time, answered in whatever order: one that takes long holds
/// up none of the others. Given up on drop.
pub struct Pipeline<T> {
    area: Area,
    under_way: Vec<(T, Hold, u64)>,
}

impl<T> Pipeline<T> {
    pub fn open() -> Result<Self> {
        register_exit_callback();
        Ok(Self { area: area::get()?, under_way: Vec::new() })
    }

    pub fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Asks, if there is room: a quarter of the queue at most, since others want to read too. Gives `tag` back
    /// otherwise. The worker is woken by the next [`Self::collect`] or [`Self::wait`], once for all.
    pub fn submit(&mut self, tag: T, request: &Request) -> Result<Option<T>> {
        let share = (self.area.slots.len() / 4).max(1);
        if self.under_way.len() >= share {
            return Ok(Some(tag));
        }
        let Some(mut hold) = claim_now(self.area) else { return Ok(Some(tag)) };
        let deadline = deadline();
        submit(&mut hold, request, deadline)?;
        self.under_way.push((tag, hold, deadline));
        Ok(None)
    }

    /// What has been answered, or was not in time.
    pub fn collect(&mut self) -> Vec<(T, Result<Response>)> {
        ring(self.area);
        let mut answered = Vec::new();
        for (tag, mut hold, deadline) in std::mem::take(&mut self.under_way) {
            match look(&mut hold, deadline) {
                Ok(None) => self.under_way.push((tag, hold, deadline)),
                Ok(Some(Response::Error { kind, message, detail, hint })) => {
                    answered.push((tag, Err(VaultError::from_kms(kind, &message, &detail, &hint))));
                }
                Ok(Some(response)) => answered.push((tag, Ok(response))),
                Err(failure) => answered.push((tag, Err(failure.into()))),
            }
        }
        answered
    }

    /// Sleeps until one may be answered.
    pub fn wait(&self) {
        ring(self.area);
        latch::wait(if self.under_way.is_empty() { QUEUE_TURN } else { TURN });
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
    index: usize,
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

/// When a request that is made now has to be answered.
fn deadline() -> u64 {
    monotonic_ms() + config::kms_timeout().as_millis() as u64
}

fn ask(request: &Request, digest: Option<&[u8; 32]>) -> Result<Answered, Failure> {
    let area = area::get()?;
    let deadline = deadline();
    register_exit_callback();
    let mut hold = match claim(area, digest, deadline)? {
        Claimed::Slot(hold) => hold,
        Claimed::Cached(dek) => return Ok(Answered::Cached(dek)),
    };
    submit(&mut hold, request, deadline)?;
    answer(&mut hold, deadline)
}

/// Hands a request to the worker, and leaves it to [`ring`] to wake it.
fn submit(hold: &mut Hold, request: &Request, deadline: u64) -> Result<()> {
    let bytes = request
        .encode()
        .map_err(|_| VaultError::new(Kind::Corrupted, "wrapped key cannot be authenticated"))?;
    let ticket = hold.ticket.as_ref().ok_or_else(unexpected)?;
    hold.slot
        .write_request(ticket, request.op(), deadline, &bytes)
        .and_then(|()| hold.slot.submit(ticket))
        .map_err(|_| VaultError::internal("a request slot was lost while it was filled"))?;
    hold.area.header.inbox.mark(hold.index);
    MARKED.set(true);
    Ok(())
}

/// Wakes the worker for what this process has submitted since it last rang, unless the worker is awake or somebody else has
/// woken it. Before any sleep.
fn ring(area: Area) {
    // Without it, a batch that was answered as a whole would wake the worker again for each answer that is fetched.
    if MARKED.replace(false)
        && area.header.inbox.ring()
        && let Some(worker) = area.header.worker_proc()
    {
        latch::wake(worker);
    }
}

/// Waits for the answer to a request.
fn answer(hold: &mut Hold, deadline: u64) -> Result<Answered, Failure> {
    match wait(hold, deadline)? {
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

/// A free slot, if there is one.
fn claim_now(area: Area) -> Option<Hold> {
    let me = latch::my_proc();
    ipc::claim_any(area.slots, me.max(0) as usize, me).map(|(index, ticket)| Hold {
        area,
        index,
        slot: &area.slots[index],
        ticket: Some(ticket),
    })
}

fn claim(area: Area, digest: Option<&[u8; 32]>, deadline: u64) -> Result<Claimed, Failure> {
    if let Some(hold) = claim_now(area) {
        return Ok(Claimed::Slot(hold));
    }
    let waiting = area.header.slot_freed.prepare();
    loop {
        if let Some(digest) = digest
            && let Lookup::Hit(dek) = area.cache().lookup(digest, monotonic_ms())
        {
            return Ok(Claimed::Cached(dek));
        }
        if let Some(hold) = claim_now(area) {
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

/// At most so long at a time: a worker that started meanwhile finds a request by itself, but a wake-up sent to its
/// predecessor's process number is lost.
const TURN: Duration = Duration::from_secs(1);
/// The same while waiting for a free slot.
const QUEUE_TURN: Duration = Duration::from_millis(20);

fn wait(hold: &mut Hold, deadline: u64) -> Result<Response, Failure> {
    ring(hold.area);
    loop {
        if let Some(response) = look(hold, deadline)? {
            return Ok(response);
        }
        let left = Duration::from_millis(deadline.saturating_sub(monotonic_ms()));
        latch::wait(left.min(TURN));
    }
}

/// The answer, if there is one by now; an error once it is too late for one.
fn look(hold: &mut Hold, deadline: u64) -> Result<Option<Response>, Failure> {
    let ticket = hold.ticket.take().ok_or_else(unexpected)?;
    match hold.slot.poll(&ticket) {
        Poll::Done => {
            let answer = hold.slot.consume(ticket).map_err(|ticket| {
                hold.ticket = Some(ticket);
                unexpected()
            })?;
            hold.area.header.slot_freed.broadcast();
            return Ok(Some(Response::decode(&answer.bytes).map_err(|_| unexpected())?));
        }
        Poll::NotHeld => {
            return Err(VaultError::internal("a request slot was lost while it was waited for").into());
        }
        Poll::Waiting => hold.ticket = Some(ticket),
    }
    if monotonic_ms() >= deadline {
        return Err(Failure::NoAnswer { worker_running: hold.area.header.worker_proc().is_some() });
    }
    Ok(None)
}

thread_local! {
    static REGISTERED: Cell<bool> = const { Cell::new(false) };
    /// Whether this process has marked a slot since it last rang.
    static MARKED: Cell<bool> = const { Cell::new(false) };
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
