//! The slot under loom: the memory orderings, which `model` (sequentially consistent) cannot see.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p hyperion_vault_core --release loom`. Two threads and one word of payload
//! each way keep the search short; loom's stale `Relaxed` loads do the rest.
//!
//! The trap: loom 0.7 remembers only the last access to an atomic, so a load by one thread, then a load and an exchange
//! by another, counts as no race, and the orders in which the exchange comes first are never tried. Our operations
//! begin with just such loads. So each test is written for the order that matters to happen by default, the
//! spawning thread first; `model` is the one that tries all orders.

use loom::sync::Arc;
use loom::thread;

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
