//! Slot and inbox under loom: the memory orderings, which `model` (sequentially consistent) cannot see.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p hyperion_vault_core --release loom`. Two threads and one word of payload
//! each way keep the search short; loom's stale `Relaxed` loads do the rest.
//!
//! The trap: loom 0.7 remembers only the last access to an atomic, so a load by one thread, then a load and an exchange
//! by another, counts as no race, and the orders in which the exchange comes first are never tried. Our operations
//! begin with just such loads. So each test is written for the order that matters to happen by default, the
//! spawning thread first; `model` is the one that tries all orders.

use loom::sync::{Arc, Notify};
use loom::thread;

use super::inbox::InboxOf;
use super::slot::{Completed, Poll, Reclaimed, Recovered, SlotOf};
use super::state::{Epoch, State};

type Tiny = SlotOf<1, 1>;

const REQUEST: [u8; 8] = [0x5a; 8];

fn answer_of(request: &[u8]) -> Vec<u8> {
    request.iter().map(|byte| !byte).collect()
}

fn serve(slot: &Tiny, epoch: Epoch) -> Option<Completed> {
    let taken = slot.take(epoch)?;
    assert_eq!((taken.op, taken.deadline_ms), (7, 99), "the request was submitted after it was written");
    let mut request = Vec::new();
    assert!(slot.read_request(&taken.ticket, &mut request));
    assert!(request.iter().all(|byte| byte & 0xf0 == 0x50) && request.len() == 8, "a request half seen");
    Some(slot.complete(taken.ticket, 1, &answer_of(&request)))
}

/// Submits and looks `polls` times; `true` if the answer came.
fn ask(slot: &Tiny, proc: i32, request: &[u8; 8], polls: u32) -> Option<bool> {
    let ticket = slot.try_claim(proc)?;
    assert!(slot.looks_wiped(), "claimed before the wipe is seen");
    slot.write_request(&ticket, 7, 99, request).expect("just claimed");
    slot.submit(&ticket).expect("just claimed");
    for _ in 0..polls {
        match slot.poll(&ticket) {
            Poll::Done => {
                let answer = slot.consume(ticket).expect("done");
                assert_eq!(answer.bytes.as_slice(), answer_of(request), "an answer half seen");
                return Some(true);
            }
            Poll::Waiting => thread::yield_now(),
            Poll::NotHeld => panic!("a client lost its slot"),
        }
    }
    assert_ne!(slot.give_up(ticket), Reclaimed::NotHeld);
    Some(false)
}

fn assert_free_and_wiped(slot: &Tiny) {
    assert_eq!(slot.snapshot().state, Some(State::Free));
    assert!(slot.looks_wiped());
    assert_eq!(slot.snapshot().client_proc, None);
}

#[test]
fn loom_request_and_response_are_seen_whole() {
    loom::model(|| {
        let slot = Arc::new(Tiny::new());
        let worker = {
            let slot = slot.clone();
            thread::spawn(move || {
                let _ = serve(&slot, Epoch::from_counter(1));
            })
        };
        ask(&slot, 0, &REQUEST, 2);
        worker.join().expect("worker");
        // Whoever was second wiped; if the worker never saw it, the client took it back.
        assert_free_and_wiped(&slot);
    });
}

#[test]
fn loom_the_wipe_does_not_reach_the_next_client() {
    loom::model(|| {
        let slot = Arc::new(Tiny::new());
        let other = {
            let slot = slot.clone();
            thread::spawn(move || ask(&slot, 1, &[0x51; 8], 0))
        };
        // Claims before, between or after the other's life of the slot; what it wrote must still be there.
        if let Some(ticket) = slot.try_claim(0) {
            assert!(slot.looks_wiped(), "claimed before the wipe is seen");
            slot.write_request(&ticket, 7, 99, &REQUEST).expect("just claimed");
            slot.submit(&ticket).expect("just claimed");
            assert!(serve(&slot, Epoch::from_counter(1)).is_some());
            let answer = slot.consume(ticket).expect("done");
            assert_eq!(answer.bytes.as_slice(), answer_of(&REQUEST));
        }
        other.join().expect("client");
        assert_free_and_wiped(&slot);
    });
}

#[test]
fn loom_a_request_taken_back_is_wiped_for_the_next_client() {
    loom::model(|| {
        let slot = Arc::new(Tiny::new());
        let next = {
            let slot = slot.clone();
            thread::spawn(move || ask(&slot, 1, &[0x51; 8], 0))
        };
        ask(&slot, 0, &REQUEST, 0);
        next.join().expect("client");
        assert_free_and_wiped(&slot);
    });
}

#[test]
fn loom_abandoning_meets_completing() {
    loom::model(|| {
        let slot = Arc::new(Tiny::new());
        let ticket = slot.try_claim(0).expect("free");
        slot.write_request(&ticket, 7, 99, &REQUEST).expect("just claimed");
        slot.submit(&ticket).expect("just claimed");
        let worker = {
            let slot = slot.clone();
            thread::spawn(move || serve(&slot, Epoch::from_counter(1)))
        };
        let given_up = slot.give_up(ticket);
        // A newcomer as soon as the slot is free: it must find it wiped, and keep what it writes.
        if let Some(ticket) = slot.try_claim(1) {
            assert!(slot.looks_wiped(), "claimed before the wipe is seen");
            slot.write_request(&ticket, 7, 99, &[0x52; 8]).expect("just claimed");
            assert_eq!(slot.give_up(ticket), Reclaimed::Freed);
        }
        let completed = worker.join().expect("worker");
        match given_up {
            Reclaimed::LeftToWorker => assert_eq!(completed, Some(Completed::WasAbandoned)),
            Reclaimed::Freed => assert_ne!(completed, Some(Completed::WasAbandoned)),
            Reclaimed::NotHeld => panic!("a client lost its slot"),
        }
        assert_free_and_wiped(&slot);
    });
}

#[test]
fn loom_abandoning_meets_recovery() {
    loom::model(|| {
        let slot = Arc::new(Tiny::new());
        let ticket = slot.try_claim(0).expect("free");
        slot.write_request(&ticket, 7, 99, &REQUEST).expect("just claimed");
        slot.submit(&ticket).expect("just claimed");
        // The first worker takes it, writes half a response, and dies.
        drop(slot.take(Epoch::from_counter(1)));
        slot.half_complete();
        let successor = {
            let slot = slot.clone();
            thread::spawn(move || {
                let recovered = slot.recover(Epoch::from_counter(2));
                assert_ne!(recovered, Recovered::Nothing);
                serve(&slot, Epoch::from_counter(2))
            })
        };
        slot.give_up(ticket);
        if let Some(ticket) = slot.try_claim(1) {
            assert!(slot.looks_wiped(), "claimed before the wipe is seen");
            assert_eq!(slot.give_up(ticket), Reclaimed::Freed);
        }
        successor.join().expect("successor");
        assert_free_and_wiped(&slot);
    });
}

/// The slots of two clients, the inbox, and the worker's latch.
struct Office {
    slots: [Tiny; 2],
    inbox: InboxOf<1>,
    latch: Notify,
}

impl Office {
    fn new() -> Arc<Self> {
        Arc::new(Self { slots: [Tiny::new(), Tiny::new()], inbox: InboxOf::new(), latch: Notify::new() })
    }

    /// A client that submits in its slot and rings, and never looks again.
    fn submit(&self, slot: usize) {
        let ticket = self.slots[slot].try_claim(slot as i32).expect("its own slot");
        self.slots[slot].write_request(&ticket, 7, 99, &REQUEST).expect("just claimed");
        self.slots[slot].submit(&ticket).expect("just claimed");
        self.inbox.mark(slot);
        if self.inbox.ring() {
            self.latch.notify();
        }
    }

    /// The worker's loop until it has answered `requests`. A lost wake-up is a thread that waits for ever, which loom reports.
    fn serve(&self, requests: usize) {
        let mut served = 0;
        loop {
            self.inbox.awake();
            self.inbox.collect(self.slots.len(), |slot| {
                let served_it = serve(&self.slots[slot], Epoch::from_counter(1));
                assert!(matches!(served_it, Some(Completed::Delivered(_))), "marked before it was submitted");
                served += 1;
            });
            if served == requests {
                return;
            }
            if self.inbox.may_sleep(self.slots.len()) {
                self.latch.wait();
            }
        }
    }
}

#[test]
fn loom_no_wake_up_is_lost() {
    loom::model(|| {
        let office = Office::new();
        let client = {
            let office = office.clone();
            thread::spawn(move || office.submit(0))
        };
        office.serve(1);
        client.join().expect("client");
    });
}

#[test]
fn loom_a_client_may_rely_on_the_wake_up_of_another() {
    let mut model = loom::model::Builder::new();
    // Three threads: so many switches where a thread could have gone on are enough to lose a wake-up, and not too many.
    model.preemption_bound = Some(3);
    model.check(|| {
        let office = Office::new();
        let clients = [0, 1].map(|slot| {
            let office = office.clone();
            thread::spawn(move || office.submit(slot))
        });
        office.serve(2);
        for client in clients {
            client.join().expect("client");
        }
    });
}
