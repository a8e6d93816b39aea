//! Every interleaving of clients, a worker that may die anywhere, and its successors, on one slot, step by step.
//!
//! Unit tests only. The parties are scripts of real [`SlotOf`] calls, run one atomic access at a time by `traced`;
//! the search visits every reachable combination of memory and progress once, in the plain `cargo test`. Checked at
//! every access:
//!
//! - payload is touched by its owner alone (the claimer while the word says client, the living worker while it
//!   says worker), and the word changes only by an event of the table, caused by its proper party;
//! - whenever the slot is free, every other word is zero; whenever a request waits, the response area is zero;
//! - every response a client gets answers its own request of that generation, every request read is whole;
//! - when all parties have finished, the slot is free.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

use super::Completed;
use super::slot::{Place, Poll, Reclaimed, Recovered, SlotOf, WorkerTicket};
use super::state::{Epoch, Event, Owner, State, Word};
use super::traced::{Access, Kind, Mark, Seen, Step, mark, step};

/// Two words each: a torn payload shows.
type Small = SlotOf<2, 2>;

/// What a client does once its request is submitted.
#[derive(Clone, Copy, Debug)]
enum Patience {
    /// Looks so many times, then gives up; consumes when done.
    Polls(u32),
    /// Finds the response and gives up all the same (cancelled at that moment).
    Discards,
    /// Exits: finds its hold by process number and gives it up, unless there is none left.
    Exits,
    /// Gives up before submitting.
    NeverSubmits,
    /// Exits while filling.
    ExitsFilling,
}

#[derive(Clone, Copy, Debug)]
enum Script {
    /// One attempt at the slot per patience, one after the other; skipped if the slot is taken.
    Client { proc: i32, requests: &'static [Patience] },
    /// Recovers, then serves up to `serves` requests it finds, looking `looks` times. May be killed anywhere.
    Worker { number: u64, serves: u32, looks: u32 },
}

/// The word a request of this process and generation consists of, twice over; its response is the complement.
fn request_word(proc: i32, generation: u32) -> u64 {
    0x5a00_0000_0000_0000 | ((proc as u64 + 1) << 40) | u64::from(generation)
}

fn payload(word: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&word.to_le_bytes());
    bytes[8..].copy_from_slice(&word.to_le_bytes());
    bytes
}

fn word_of(bytes: &[u8]) -> u64 {
    assert_eq!(bytes.len(), 16, "payload of a wrong length");
    let (first, second) = bytes.split_at(8);
    assert_eq!(first, second, "torn payload");
    u64::from_le_bytes(first.try_into().expect("eight bytes"))
}

impl Script {
    fn role(self) -> Owner {
        match self {
            Self::Client { .. } => Owner::Client,
            Self::Worker { .. } => Owner::Worker,
        }
    }

    fn run(self, slot: &Small) {
        match self {
            Self::Client { proc, requests } => {
                for (done, patience) in (0..).zip(requests) {
                    mark(done);
                    client(slot, proc, *patience);
                }
            }
            Self::Worker { number, serves, looks } => worker(slot, number, serves, looks),
        }
    }
}

fn client(slot: &Small, proc: i32, patience: Patience) {
    let Some(ticket) = slot.try_claim(proc) else { return };
    if matches!(patience, Patience::ExitsFilling) {
        drop(ticket);
        let ticket = slot.held_by(proc).expect("a claimed slot is found by its number");
        assert_eq!(slot.give_up(ticket), Reclaimed::Freed);
        return;
    }
    let generation = slot.generation_of(&ticket);
    let request = request_word(proc, generation);
    slot.write_request(&ticket, 7, 99, &payload(request)).expect("still filling");
    if matches!(patience, Patience::NeverSubmits) {
        assert_eq!(slot.give_up(ticket), Reclaimed::Freed);
        return;
    }
    slot.submit(&ticket).expect("still filling");
    let polls = match patience {
        Patience::Polls(polls) => polls,
        Patience::Discards => 1,
        Patience::Exits => {
            drop(ticket);
            let ticket = slot.held_by(proc).expect("a submitted request is found by its number");
            assert_ne!(slot.give_up(ticket), Reclaimed::NotHeld);
            return;
        }
        Patience::NeverSubmits | Patience::ExitsFilling => return,
    };
    for _ in 0..polls {
        match slot.poll(&ticket) {
            Poll::Waiting => {}
            Poll::NotHeld => panic!("a client lost its slot"),
            Poll::Done if matches!(patience, Patience::Discards) => {
                assert_eq!(slot.give_up(ticket), Reclaimed::Freed, "DONE belongs to the client");
                return;
            }
            Poll::Done => {
                let answer = slot.consume(ticket).expect("DONE belongs to the client");
                assert_eq!(answer.status, generation);
                assert_eq!(word_of(&answer.bytes), !request, "a response to another request");
                return;
            }
        }
    }
    assert_ne!(slot.give_up(ticket), Reclaimed::NotHeld);
}

fn worker(slot: &Small, number: u64, serves: u32, looks: u32) {
    let epoch = Epoch::from_counter(number);
    match slot.recover(epoch) {
        Recovered::Answered(proc) => assert!((-1..=2).contains(&proc)),
        Recovered::Nothing | Recovered::Requeued | Recovered::Freed => {}
    }
    // A completion from the life before: whatever the slot is doing now, it is refused and touches nothing.
    if number > 1 {
        let late = WorkerTicket::forge(slot, Epoch::from_counter(number - 1), 1);
        assert!(!slot.abandoned_by_client(&late));
        assert_eq!(slot.complete(late, 0, &payload(0)), Completed::Refused);
    }
    let mut served = 0;
    for looked in 0..looks {
        mark(1 + u64::from(looked) * 100 + served);
        let Some(taken) = slot.take(epoch) else { continue };
        assert_eq!((taken.op, taken.deadline_ms), (7, 99));
        let mut request = Vec::new();
        assert!(slot.read_request(&taken.ticket, &mut request), "the worker lost its slot");
        let request = word_of(&request);
        let generation = request as u32;
        assert_eq!(request, request_word((request >> 40) as u8 as i32 - 1, generation), "no request at all");
        match slot.complete(taken.ticket, generation, &payload(!request)) {
            Completed::Delivered(proc) => assert_eq!(proc, (request >> 40) as u8 as i32 - 1),
            Completed::WasAbandoned => {}
            Completed::Refused => panic!("a living worker was refused"),
        }
        served += 1;
        if served == u64::from(serves) {
            return;
        }
    }
}

#[derive(Clone)]
struct Party {
    script: Script,
    history: Vec<Seen>,
    /// The access it will make next; `None` once finished, or dead.
    next: Option<Access>,
    mark: Mark,
}

#[derive(Clone)]
struct Situation {
    memory: Vec<u64>,
    parties: Vec<Party>,
    /// Who made the latest claim.
    claimer: Option<usize>,
    /// Workers live one after the other; this one is alive.
    living_worker: Option<usize>,
    trail: Option<Rc<Trail>>,
}

/// How the search came here, for the message of a failure.
struct Trail {
    party: usize,
    /// The word before.
    word: Word,
    /// The access and its offset in the slot; `None`: the party died.
    did: Option<(Kind, Place, usize)>,
    before: Option<Rc<Trail>>,
}

struct Search {
    slot: Box<Small>,
    seen: HashSet<u128>,
    finals: usize,
    /// Events observed anywhere: shows that the scenarios reach what they are about.
    events: HashSet<Event>,
}

impl Search {
    fn explore(scripts: &[Script]) -> Self {
        let mut search =
            Self { slot: Box::new(Small::new()), seen: HashSet::new(), finals: 0, events: HashSet::new() };
        let mut start = Situation {
            memory: search.slot.dump(),
            parties: scripts
                .iter()
                .map(|script| Party {
                    script: *script,
                    history: Vec::new(),
                    next: None,
                    mark: Mark::default(),
                })
                .collect(),
            claimer: None,
            living_worker: None,
            trail: None,
        };
        for party in 0..scripts.len() {
            search.run(&mut start, party, false);
        }
        search.next_worker(&mut start);
        let mut open = vec![start];
        while let Some(now) = open.pop() {
            if !search.seen.insert(key(&now)) {
                continue;
            }
            let before = open.len();
            for party in (0..now.parties.len()).filter(|party| now.is_able(*party)) {
                let is_worker = now.parties[party].script.role() == Owner::Worker;
                let mut after = now.clone();
                search.advance(&mut after, party);
                search.next_worker(&mut after);
                open.push(after);
                // It may die here instead, unless nobody comes after it.
                if is_worker && search.successor(&now, party).is_some() {
                    let mut after = now.clone();
                    after.parties[party].next = None;
                    after.note(party, None);
                    search.next_worker(&mut after);
                    open.push(after);
                }
            }
            if open.len() == before {
                search.finals += 1;
                now.check(now.state() == State::Free, "a slot leaked");
            }
        }
        search
    }

    fn successor(&self, now: &Situation, party: usize) -> Option<usize> {
        (party + 1..now.parties.len()).find(|next| now.parties[*next].script.role() == Owner::Worker)
    }

    /// The postmaster: starts the next worker once the former has ended.
    fn next_worker(&self, now: &mut Situation) {
        let ended = now.living_worker.is_none_or(|worker| now.parties[worker].next.is_none());
        if ended {
            let workers = |party: &Party| party.script.role() == Owner::Worker && party.next.is_some();
            now.living_worker = now.parties.iter().position(workers);
        }
    }

    /// Replays `party`, with or without one further access, and notes where it stands.
    fn run(&self, now: &mut Situation, party: usize, advance: bool) {
        let Party { script, history, next, mark } = &mut now.parties[party];
        let script = *script;
        *next = match step(history, mark, advance, || script.run(&self.slot)) {
            Step::Paused(access) => Some(access),
            Step::Finished(()) => None,
        };
    }

    fn advance(&mut self, now: &mut Situation, party: usize) {
        self.slot.restore(&now.memory);
        let access = now.parties[party].next.expect("only parties with a next access are advanced");
        let place = self.slot.place(access.addr);
        let role = now.parties[party].script.role();
        let offset = access.addr - std::ptr::from_ref(&*self.slot).addr();
        now.note(party, Some((access.kind, place, offset)));
        // `held_by` and `recover` look at the client's number without owning it.
        let free_look = place == Place::Client && access.kind == Kind::Load;
        if place != Place::Word && !free_look {
            let owner = now.state().owner();
            now.check(owner == role, "payload touched in another's state");
            now.check(
                role == Owner::Worker || now.claimer == Some(party),
                "payload of another client touched",
            );
        }
        let before = Word::from_bits(now.memory[0]);
        let guard = Blame(now.trail.clone());
        self.run(now, party, true);
        std::mem::forget(guard);
        now.memory = self.slot.dump();
        let after = Word::from_bits(now.memory[0]);
        if before != after {
            let epoch = match now.parties[party].script {
                Script::Worker { number, .. } => Some(Epoch::from_counter(number)),
                Script::Client { .. } => None,
            };
            let event = EVENTS
                .into_iter()
                .find(|event| event.actor() == role && before.after(*event, epoch) == Some(after));
            now.check(event.is_some(), "the word changed by no event of this party");
            if event == Some(Event::Claim) {
                now.check(after.generation() == before.generation() + 1, "a claim began no new generation");
                now.claimer = Some(party);
            }
            let client_acts = role == Owner::Client && now.claimer != Some(party);
            now.check(!client_acts, "a client moved another client's request");
            self.events.extend(event);
        }
        let all_zero = |words: &[u64]| words.iter().all(|word| *word == 0);
        match now.state() {
            State::Free => now.check(all_zero(&now.memory[1..]), "a free slot is not wiped"),
            State::Submitted => now.check(all_zero(&now.memory[9..]), "a waiting request has a response"),
            _ => {}
        }
    }
}

impl Situation {
    fn state(&self) -> State {
        Word::from_bits(self.memory[0]).state().expect("a known state")
    }

    fn is_able(&self, party: usize) -> bool {
        let Party { script, next, .. } = &self.parties[party];
        next.is_some() && (script.role() == Owner::Client || self.living_worker == Some(party))
    }

    fn note(&mut self, party: usize, did: Option<(Kind, Place, usize)>) {
        let word = Word::from_bits(self.memory[0]);
        self.trail = Some(Rc::new(Trail { party, word, did, before: self.trail.take() }));
    }

    fn check(&self, holds: bool, what: &str) {
        if !holds {
            let _blame = Blame(self.trail.clone());
            panic!("{what}");
        }
    }
}

/// Prints the interleaving when dropped, which only a panic lets happen.
struct Blame(Option<Rc<Trail>>);

impl Drop for Blame {
    fn drop(&mut self) {
        let mut lines = Vec::new();
        let mut at = self.0.as_deref();
        while let Some(trail) = at {
            let did = match trail.did {
                Some((kind, place, offset)) => format!("{kind:?} of {place:?} at {offset}"),
                None => "dies".to_owned(),
            };
            lines.push(format!("[{:?}] party {}: {did}", trail.word, trail.party));
            at = trail.before.as_deref();
        }
        lines.reverse();
        eprintln!("interleaving:\n  {}", lines.join("\n  "));
    }
}

/// Two independent 64-bit hashes: with 10^7 situations a collision would have a chance of 10^-24.
fn key(now: &Situation) -> u128 {
    let hash = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        salt.hash(&mut hasher);
        now.memory.hash(&mut hasher);
        now.claimer.hash(&mut hasher);
        now.living_worker.hash(&mut hasher);
        for party in &now.parties {
            party.next.is_some().hash(&mut hasher);
            if party.next.is_some() {
                party.mark.label.hash(&mut hasher);
                party.history[party.mark.from..].hash(&mut hasher);
            }
        }
        hasher.finish()
    };
    (u128::from(hash(1)) << 64) | u128::from(hash(2))
}

const EVENTS: [Event; 10] = [
    Event::Claim,
    Event::Submit,
    Event::TakeBack,
    Event::Release,
    Event::Abandon,
    Event::Consume,
    Event::Take,
    Event::Complete,
    Event::Requeue,
    Event::Reclaim,
];

fn client_of(proc: i32, requests: &'static [Patience]) -> Script {
    Script::Client { proc, requests }
}

/// The `number`-th worker; it looks for a request `looks` times.
fn worker_of(number: u64, looks: u32) -> Script {
    Script::Worker { number, serves: looks, looks }
}

/// Explores, and returns the events that happened somewhere.
fn explore(scripts: &[Script]) -> HashSet<Event> {
    let search = Search::explore(scripts);
    eprintln!("{scripts:?}: {} situations, {} ends", search.seen.len(), search.finals);
    assert!(search.finals > 0);
    search.events
}

#[test]
fn a_client_a_dying_worker_and_its_successor() {
    let mut events = HashSet::new();
    for patience in [
        &[Patience::Polls(3)][..],
        &[Patience::Discards],
        &[Patience::Exits],
        &[Patience::NeverSubmits],
        &[Patience::ExitsFilling],
    ] {
        events.extend(explore(&[client_of(0, patience), worker_of(1, 1), worker_of(2, 1)]));
    }
    assert_eq!(events.len(), EVENTS.len(), "an event is out of the scenarios' reach: {events:?}");
}

#[test]
fn a_request_that_outlives_two_workers() {
    explore(&[client_of(0, &[Patience::Polls(2)]), worker_of(1, 1), worker_of(2, 1), worker_of(3, 1)]);
}

#[test]
fn one_client_after_the_other_in_the_same_slot() {
    for requests in [
        &[Patience::Polls(1), Patience::Polls(1)][..],
        &[Patience::Exits, Patience::Polls(1)],
        &[Patience::NeverSubmits, Patience::Polls(1)],
    ] {
        explore(&[client_of(0, requests), worker_of(1, 2), worker_of(2, 2)]);
    }
}

#[test]
fn two_clients_that_want_the_same_slot() {
    explore(&[
        client_of(0, &[Patience::Polls(1)]),
        client_of(1, &[Patience::Polls(1)]),
        worker_of(1, 1),
        worker_of(2, 1),
    ]);
}
