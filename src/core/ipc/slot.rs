//! One request slot in shared memory: the table of `state` driven by one atomic word, and the payload it guards.
//!
//! Client backends claim, write, submit, poll and consume; the key-service worker's *main thread* takes, reads and
//! completes (tokio tasks get copies, never a slot). A successor worker calls [`SlotOf::recover`] once, before it
//! takes anything. No method blocks, allocates in the shared area, or runs foreign code, so a process cannot end
//! orderly in the middle of one. The traps it avoids: a late completion landing in the next request (tickets carry
//! the generation), a client's wipe racing a worker's write (only the owner touches the payload), and a slot lost
//! with a dead party.
//!
//! Assumption that no code here can replace: at most one worker process lives at a time. The postmaster starts a
//! successor only after it has reaped the predecessor, and the predecessor's threads died with it.
//!
//! Orderings, by pair (the word is the only synchronising variable; everything else is `Relaxed` under it):
//!
//! | release | acquire | carries |
//! |---|---|---|
//! | `submit` | `take` | the request, client to worker |
//! | `submit` | `recover`'s load | the same to a successor: `take` and `abandon` are read-modify-writes, so they continue `submit`'s release sequence |
//! | `complete` | `poll`, `consume`, `give_up` load | the response, worker to client |
//! | requeue in `recover` | `take` again; `give_up` after its take-back | the wiped response words: later writes come after the wipe |
//! | `consume`, `give_up`, `complete`, `recover` to FREE | `try_claim` | the wipe: it cannot overtake the next client's writes |

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use zeroize::Zeroizing;

use super::atomic::{AtomicI32, AtomicU32, AtomicU64, load_bytes, store_bytes, wipe};
use super::state::{Epoch, Event, State, Word};

#[cfg(test)]
mod inspect;
#[cfg(all(test, not(loom)))]
pub(super) use inspect::Place;

/// Request payload, bytes. An encryption context and the largest wrapped key AWS KMS accepts (6,144 bytes for a
/// `CiphertextBlob`, API reference of Decrypt) fit with room to spare.
pub const REQUEST_BYTES: usize = 7168;
/// Response payload, bytes. A DEK, the largest wrapped key and a key ARN (at most 2,048 bytes) fit.
pub const RESPONSE_BYTES: usize = 8192;

/// Status of a response that was too long to deliver; its bytes are empty.
pub const STATUS_OVERSIZE: u32 = u32::MAX;

/// The slot of the server. The parameters of [`SlotOf`] exist for the model checkers, which need small payloads.
pub type Slot = SlotOf<{ REQUEST_BYTES / 8 }, { RESPONSE_BYTES / 8 }>;

/// A request slot with `Q` words of request and `R` words of response. All zero is a valid, free slot; it holds no
/// pointer and needs no drop, so it may lie in a zero-filled mapping shared by processes.
#[repr(C, align(64))]
pub struct SlotOf<const Q: usize, const R: usize> {
    /// See [`Word`].
    word: AtomicU64,
    /// Monotonic milliseconds; a worker may skip what nobody waits for any more.
    deadline_ms: AtomicU64,
    /// Process number of the client plus one; 0 while free.
    client: AtomicI32,
    op: AtomicU32,
    status: AtomicU32,
    /// Lengths in bytes. Stored *before* the bytes, so that a wipe by the same process covers a half-written payload.
    request_len: AtomicU32,
    response_len: AtomicU32,
    _spare: AtomicU32,
    /// The payload starts on a cache line of its own: polling clients do not slow a writing worker.
    _pad: [AtomicU64; 3],
    request: [AtomicU64; Q],
    response: [AtomicU64; R],
}

/// A client's hold on one generation of one slot. Not `Clone`: what ends the hold takes the ticket.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a dropped ticket leaves its slot occupied: consume it or give it up"]
pub struct ClientTicket {
    slot: usize,
    generation: u32,
}

/// A worker's hold on one attempt at one request. Keep it on the main thread and complete it whatever becomes of the
/// task that works on the request: a lost ticket keeps its slot until the worker restarts.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a dropped ticket leaves its slot occupied until the worker restarts"]
pub struct WorkerTicket {
    slot: usize,
    word: Word,
}

/// What [`SlotOf::take`] hands to the worker.
#[derive(Debug)]
pub struct Taken {
    pub ticket: WorkerTicket,
    pub op: u32,
    /// Monotonic milliseconds.
    pub deadline_ms: u64,
}

/// A response as the client gets it: copied out, the slot already wiped and free.
pub struct Answer {
    pub status: u32,
    pub bytes: Zeroizing<Vec<u8>>,
}

/// Shows no byte: they may be a key.
impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answer").field("status", &self.status).finish_non_exhaustive()
    }
}

/// Why a request was not written or submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteError {
    /// Longer than the slot's request area.
    TooLong,
    /// The ticket is not, or no longer, that of a slot being filled.
    NotHeld,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poll {
    /// Not yet taken, or being worked on.
    Waiting,
    /// Call [`SlotOf::consume`].
    Done,
    /// This ticket holds nothing here.
    NotHeld,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reclaimed {
    /// Wiped and free.
    Freed,
    /// A worker is busy with it, and will wipe and free it.
    LeftToWorker,
    /// The ticket held nothing here any more.
    NotHeld,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completed {
    /// The response waits for this process number: set its latch. A spurious wake-up is possible and harmless.
    Delivered(i32),
    /// The client had given up; slot wiped and free.
    WasAbandoned,
    /// The ticket is stale (an earlier generation, or an epoch that was recovered): nothing was touched.
    Refused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovered {
    Nothing,
    /// A request the dead worker had taken waits again.
    Requeued,
    /// A request whose client had gone was wiped.
    Freed,
    /// A response waits for this process number, which the dead worker may not have woken: set its latch.
    Answered(i32),
}

/// A slot at one moment, for `vault.status()`. Nothing follows from it: it may be over already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotView {
    /// `None`: the memory holds no state known to this code.
    pub state: Option<State>,
    /// Zero unless a worker holds the slot.
    pub epoch: u32,
    pub generation: u32,
    pub client_proc: Option<i32>,
}

/// The client's side.
impl<const Q: usize, const R: usize> SlotOf<Q, R> {
    /// Takes the slot if it is free. `client_proc` is the process number (0 or more) whose latch the worker sets.
    pub fn try_claim(&self, client_proc: i32) -> Option<ClientTicket> {
        let free = Word::from_bits(self.word.load(Relaxed));
        let claimed = free.after(Event::Claim, None)?;
        // Acquire: pairs with the Release of whoever freed the slot. One attempt: whoever lost goes to another slot.
        self.word.compare_exchange(free.bits(), claimed.bits(), Acquire, Relaxed).ok()?;
        self.client.store(client_proc.wrapping_add(1), Relaxed);
        Some(ClientTicket { slot: self.address(), generation: claimed.generation() })
    }

    /// Writes the request; may be repeated until [`Self::submit`].
    pub fn write_request(
        &self,
        ticket: &ClientTicket,
        op: u32,
        deadline_ms: u64,
        bytes: &[u8],
    ) -> Result<(), WriteError> {
        if bytes.len() > Q * 8 {
            return Err(WriteError::TooLong);
        }
        self.held(ticket, State::Filling).ok_or(WriteError::NotHeld)?;
        self.wipe_request();
        self.op.store(op, Relaxed);
        self.deadline_ms.store(deadline_ms, Relaxed);
        self.request_len.store(bytes.len() as u32, Relaxed);
        store_bytes(&self.request, bytes);
        Ok(())
    }

    /// Hands the request to the worker. Wake the worker afterwards.
    pub fn submit(&self, ticket: &ClientTicket) -> Result<(), WriteError> {
        let filling = self.held(ticket, State::Filling).ok_or(WriteError::NotHeld)?;
        // Release: pairs with the Acquire of `take` (and of `recover`'s load): the request is visible to the worker.
        self.advance(filling, Event::Submit, None, Release).map(drop).map_err(|_| WriteError::NotHeld)
    }

    /// Whether the response is there. Cheap; call it after every wake-up.
    pub fn poll(&self, ticket: &ClientTicket) -> Poll {
        // Acquire: pairs with the Release of `complete`.
        let word = Word::from_bits(self.word.load(Acquire));
        match word.state() {
            _ if !self.is_life_of(ticket, word) => Poll::NotHeld,
            Some(State::Submitted | State::Processing) => Poll::Waiting,
            Some(State::Done) => Poll::Done,
            _ => Poll::NotHeld,
        }
    }

    /// Copies the response out, wipes and frees the slot. Hands the ticket back unless the response is there.
    pub fn consume(&self, ticket: ClientTicket) -> Result<Answer, ClientTicket> {
        let Some(done) = self.held(&ticket, State::Done) else { return Err(ticket) };
        let status = self.status.load(Relaxed);
        // The length came through shared memory: never trust it beyond the area.
        let len = (self.response_len.load(Relaxed) as usize).min(R * 8);
        // Final size at once: a growing vector would leave unwiped copies behind.
        let mut bytes = Zeroizing::new(vec![0; len]);
        load_bytes(&self.response, &mut bytes);
        self.wipe_used();
        // Release: pairs with the Acquire of `try_claim`.
        match self.advance(done, Event::Consume, None, Release) {
            Ok(_) => Ok(Answer { status, bytes }),
            // Unreachable while the protocol holds: DONE belongs to this client alone.
            Err(_) => Err(ticket),
        }
    }

    /// Ends the hold in whatever state the request is: cancelled, timed out, or the process exits.
    pub fn give_up(&self, ticket: ClientTicket) -> Reclaimed {
        loop {
            // Acquire: pairs with `complete` (DONE: the wipe below comes after the worker's writes) and, after a
            // take-back, with `recover`.
            let word = Word::from_bits(self.word.load(Acquire));
            if !self.is_life_of(&ticket, word) {
                return Reclaimed::NotHeld;
            }
            // A failed exchange means that a worker moved the slot on meanwhile: look again. Each turn needs a
            // step of a worker, so this ends.
            match word.state() {
                Some(State::Submitted) => {
                    // Relaxed: the next turn's Acquire load finds our own FILLING, a read-modify-write that continues
                    // the release sequence of a requeue by `recover`; so its wipe precedes ours.
                    let _ = self.advance(word, Event::TakeBack, None, Relaxed);
                }
                Some(State::Processing) => {
                    // Relaxed: the client publishes nothing and touches nothing afterwards.
                    if self.advance(word, Event::Abandon, None, Relaxed).is_ok() {
                        return Reclaimed::LeftToWorker;
                    }
                }
                Some(state @ (State::Filling | State::Done)) => {
                    self.wipe_used();
                    let event = if state == State::Done { Event::Consume } else { Event::Release };
                    // Release: pairs with the Acquire of `try_claim`.
                    if self.advance(word, event, None, Release).is_ok() {
                        return Reclaimed::Freed;
                    }
                }
                Some(State::Abandoned) => return Reclaimed::LeftToWorker,
                Some(State::Free) | None => return Reclaimed::NotHeld,
            }
        }
    }

    /// The hold of process number `client_proc` on this slot, if any. For a process's exit callback, which may have
    /// lost its tickets with its stack, and for a new process that inherits a number. Only the process that has
    /// this number now may ask: for any other the answer is over before it arrives.
    pub fn held_by(&self, client_proc: i32) -> Option<ClientTicket> {
        // Acquire: pairs with whatever Release put the slot here, `consume` and `give_up` check again anyway.
        let word = Word::from_bits(self.word.load(Acquire));
        let held =
            matches!(word.state(), Some(State::Filling | State::Submitted | State::Processing | State::Done));
        // No stale owner: the number is wiped before a slot becomes free, and stored by the claimer itself.
        (held && self.client.load(Relaxed) == client_proc.wrapping_add(1))
            .then(|| ClientTicket { slot: self.address(), generation: word.generation() })
    }
}

/// The worker's side.
impl<const Q: usize, const R: usize> SlotOf<Q, R> {
    /// Takes a submitted request on behalf of the worker of this epoch.
    pub fn take(&self, epoch: Epoch) -> Option<Taken> {
        let submitted = Word::from_bits(self.word.load(Relaxed));
        // Acquire: pairs with the Release of `submit`, and of `recover` for a second attempt.
        let word = self.advance(submitted, Event::Take, Some(epoch), Acquire).ok()?;
        Some(Taken {
            ticket: WorkerTicket { slot: self.address(), word },
            op: self.op.load(Relaxed),
            deadline_ms: self.deadline_ms.load(Relaxed),
        })
    }

    /// Copies the request into `out`, in place of what was there; requests hold no secret. The request stays in the slot:
    /// should this worker die, its successor tries again. `false`: the ticket is stale; `out` is empty.
    pub fn read_request(&self, ticket: &WorkerTicket, out: &mut Vec<u8>) -> bool {
        out.clear();
        if !self.is_worked_by(ticket) {
            return false;
        }
        let len = (self.request_len.load(Relaxed) as usize).min(Q * 8);
        out.resize(len, 0);
        load_bytes(&self.request, out);
        true
    }

    /// Whether the client has given up: the work may be skipped, [`Self::complete`] is due all the same.
    pub fn abandoned_by_client(&self, ticket: &WorkerTicket) -> bool {
        let word = Word::from_bits(self.word.load(Relaxed));
        ticket.slot == self.address() && ticket.word.after(Event::Abandon, None) == Some(word)
    }

    /// Delivers a response, or wipes and frees the slot if the client has gone.
    pub fn complete(&self, ticket: WorkerTicket, status: u32, bytes: &[u8]) -> Completed {
        // Checked before a byte is written: a late completion must not touch a later request.
        if !self.is_worked_by(&ticket) {
            return Completed::Refused;
        }
        let (status, bytes) = if bytes.len() > R * 8 { (STATUS_OVERSIZE, &[][..]) } else { (status, bytes) };
        // Read before the hand-over: afterwards the slot may already belong to another client.
        let client_proc = self.client.load(Relaxed).wrapping_sub(1);
        self.status.store(status, Relaxed);
        self.response_len.store(bytes.len() as u32, Relaxed);
        store_bytes(&self.response, bytes);
        // Release: pairs with the Acquire of `poll`, `consume`, `give_up`.
        match self.advance(ticket.word, Event::Complete, None, Release) {
            Ok(_) => Completed::Delivered(client_proc),
            Err(now) if ticket.word.after(Event::Abandon, None) == Some(now) => {
                self.wipe_used();
                // Release: pairs with the Acquire of `try_claim`.
                match self.advance(now, Event::Reclaim, None, Release) {
                    Ok(_) => Completed::WasAbandoned,
                    Err(_) => Completed::Refused,
                }
            }
            Err(_) => Completed::Refused,
        }
    }

    /// Takes over from a dead worker. Every worker calls this for every slot, with its new epoch, before its first
    /// [`Self::take`]; the predecessor is dead by then (see the head of this file).
    pub fn recover(&self, epoch: Epoch) -> Recovered {
        loop {
            // Acquire: pairs with `submit` (through its release sequence), so a wipe here comes after the client's
            // writes.
            let word = Word::from_bits(self.word.load(Acquire));
            if word.epoch() == epoch.number() {
                return Recovered::Nothing;
            }
            match word.state() {
                Some(State::Processing) => {
                    // The dead worker may have stopped anywhere between two words. Lengths precede bytes, so a wipe
                    // by length would do; recovery is rare enough not to depend on it.
                    self.wipe_response();
                    // Release: pairs with the Acquire of `take` and `give_up`. Fails if the client abandons
                    // at this moment; the next turn then frees the slot.
                    if self.advance(word, Event::Requeue, None, Release).is_ok() {
                        return Recovered::Requeued;
                    }
                }
                Some(State::Abandoned) => {
                    wipe(&self.request);
                    self.wipe_response();
                    self.wipe_used();
                    // Release: pairs with the Acquire of `try_claim`. Only a worker leaves ABANDONED, and there is
                    // no other: this does not fail.
                    if self.advance(word, Event::Reclaim, None, Release).is_ok() {
                        return Recovered::Freed;
                    }
                }
                Some(State::Done) => {
                    return Recovered::Answered(self.client.load(Relaxed).wrapping_sub(1));
                }
                _ => return Recovered::Nothing,
            }
        }
    }
}

impl<const Q: usize, const R: usize> SlotOf<Q, R> {
    /// A free slot outside of shared memory: for tests, and for a queue within one process.
    #[allow(clippy::new_without_default, reason = "15 kB by value should be asked for by name")]
    pub fn new() -> Self {
        Self {
            word: AtomicU64::new(0),
            deadline_ms: AtomicU64::new(0),
            client: AtomicI32::new(0),
            op: AtomicU32::new(0),
            status: AtomicU32::new(0),
            request_len: AtomicU32::new(0),
            response_len: AtomicU32::new(0),
            _spare: AtomicU32::new(0),
            _pad: std::array::from_fn(|_| AtomicU64::new(0)),
            request: std::array::from_fn(|_| AtomicU64::new(0)),
            response: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    pub fn snapshot(&self) -> SlotView {
        let word = Word::from_bits(self.word.load(Relaxed));
        SlotView {
            state: word.state(),
            epoch: word.epoch(),
            generation: word.generation(),
            client_proc: self.client.load(Relaxed).checked_sub(1).filter(|client| *client >= 0),
        }
    }

    /// The only place where the word changes, besides the claim's identical exchange. `Err` carries the word found.
    fn advance(
        &self,
        from: Word,
        event: Event,
        epoch: Option<Epoch>,
        success: std::sync::atomic::Ordering,
    ) -> Result<Word, Word> {
        let to = from.after(event, epoch).ok_or(from)?;
        // Relaxed on failure: nothing is read on the strength of it. `complete` may find ABANDONED, with which the
        // client published nothing; all others look again.
        match self.word.compare_exchange(from.bits(), to.bits(), success, Relaxed) {
            Ok(_) => Ok(to),
            Err(found) => Err(Word::from_bits(found)),
        }
    }

    /// The word, if `ticket` holds this slot in `state`.
    fn held(&self, ticket: &ClientTicket, state: State) -> Option<Word> {
        // Acquire: pairs with the Release of `complete` when `state` is DONE.
        let word = Word::from_bits(self.word.load(Acquire));
        (self.is_life_of(ticket, word) && word.state() == Some(state)).then_some(word)
    }

    fn is_life_of(&self, ticket: &ClientTicket, word: Word) -> bool {
        ticket.slot == self.address() && ticket.generation == word.generation()
    }

    /// Whether the worker that `ticket` was given to still owns this slot, abandoned or not.
    fn is_worked_by(&self, ticket: &WorkerTicket) -> bool {
        let word = Word::from_bits(self.word.load(Relaxed));
        ticket.slot == self.address()
            && (word == ticket.word || ticket.word.after(Event::Abandon, None) == Some(word))
    }

    /// Generations of two slots may coincide, so tickets also name their slot. They never leave the process.
    fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Zeroes everything but the word. By length: what was written lies below it.
    fn wipe_used(&self) {
        self.wipe_request();
        let response = (self.response_len.load(Relaxed) as usize).div_ceil(8).min(R);
        wipe(&self.response[..response]);
        self.response_len.store(0, Relaxed);
        self.status.store(0, Relaxed);
        self.op.store(0, Relaxed);
        self.deadline_ms.store(0, Relaxed);
        self.client.store(0, Relaxed);
    }

    fn wipe_request(&self) {
        let request = (self.request_len.load(Relaxed) as usize).div_ceil(8).min(Q);
        wipe(&self.request[..request]);
        self.request_len.store(0, Relaxed);
    }

    /// Zeroes the whole response area, whatever its length says.
    fn wipe_response(&self) {
        wipe(&self.response);
        self.response_len.store(0, Relaxed);
        self.status.store(0, Relaxed);
    }
}
