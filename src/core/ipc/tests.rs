//! The slot's edges one by one, and real threads on real slots.
//!
//! Unit tests only. `model` shows that no interleaving breaks the protocol; here are the refusals, the limits, the
//! sizes the shared mapping depends on, and a run on the machine's own memory model.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::*;

fn slot() -> Box<Slot> {
    Box::new(Slot::new())
}

fn epoch(number: u64) -> Epoch {
    Epoch::from_counter(number)
}

fn submitted(slot: &Slot, proc: i32, bytes: &[u8]) -> ClientTicket {
    let ticket = slot.try_claim(proc).expect("free");
    slot.write_request(&ticket, 2, 50, bytes).expect("fits");
    slot.submit(&ticket).expect("held");
    ticket
}

fn assert_wiped(slot: &Slot) {
    assert_eq!(slot.snapshot().state, Some(State::Free));
    assert!(slot.dump()[1..].iter().all(|word| *word == 0), "a free slot is not wiped");
}

#[test]
fn layout_is_what_the_mapping_is_sized_for() {
    assert_eq!(size_of::<Slot>(), 64 + REQUEST_BYTES + RESPONSE_BYTES);
    assert_eq!(align_of::<Slot>(), 64);
    assert_eq!(size_of::<EpochCounter>(), 8);
    assert!(!std::mem::needs_drop::<Slot>());
}

#[test]
fn the_table_is_exactly_this() {
    use Event as E;
    use State as S;
    let allowed = [
        (S::Free, E::Claim, S::Filling),
        (S::Filling, E::Submit, S::Submitted),
        (S::Filling, E::Release, S::Free),
        (S::Submitted, E::TakeBack, S::Filling),
        (S::Submitted, E::Take, S::Processing),
        (S::Processing, E::Complete, S::Done),
        (S::Processing, E::Abandon, S::Abandoned),
        (S::Processing, E::Requeue, S::Submitted),
        (S::Done, E::Consume, S::Free),
        (S::Abandoned, E::Reclaim, S::Free),
    ];
    for from in S::ALL {
        for (_, event, _) in allowed {
            let to = allowed.iter().find(|(state, on, _)| (*state, *on) == (from, event)).map(|(.., to)| *to);
            assert_eq!(transition(from, event), to, "{from:?} on {event:?}");
        }
    }
    // Whoever leaves a state owns it, except that a waiting request may be picked up by either side and a client
    // may always walk away from a busy worker.
    for (from, event, _) in allowed {
        let walks_away = (from, event) == (S::Processing, E::Abandon);
        assert!(from.owner() == event.actor() || from.owner() == Owner::Nobody || walks_away);
    }
}

#[test]
fn words_keep_their_three_parts() {
    let free = Word::from_bits(u64::from(u32::MAX));
    assert_eq!((free.state(), free.epoch(), free.generation()), (Some(State::Free), 0, u32::MAX));
    let claimed = free.after(Event::Claim, None).expect("free");
    assert_eq!((claimed.state(), claimed.epoch(), claimed.generation()), (Some(State::Filling), 0, 0));
    let highest = epoch(Epoch::LIMIT - 1);
    assert_eq!(highest.number(), 0x00ff_ffff);
    let taken = claimed.after(Event::Submit, None).and_then(|word| word.after(Event::Take, Some(highest)));
    let taken = taken.expect("submitted");
    assert_eq!((taken.state(), taken.epoch(), taken.generation()), (Some(State::Processing), 0x00ff_ffff, 0));
    assert_eq!(taken.after(Event::Abandon, None).map(Word::epoch), Some(0x00ff_ffff));
    assert_eq!(taken.after(Event::Complete, None).map(Word::epoch), Some(0));
    assert_eq!(claimed.after(Event::Submit, None).and_then(|word| word.after(Event::Take, None)), None);
    for byte in 6..=255u64 {
        assert_eq!(Word::from_bits(byte << 56).state(), None);
    }
    assert!((0..10).all(|number| epoch(number).number() != 0));
    assert_ne!(epoch(Epoch::LIMIT).number(), 0);
}

#[test]
fn a_request_goes_round() {
    let slot = slot();
    let ticket = slot.try_claim(0).expect("free");
    assert!(slot.try_claim(1).is_none());
    assert!(slot.take(epoch(1)).is_none(), "not submitted yet");
    slot.write_request(&ticket, 1, 10, &[9; 100]).expect("fits");
    slot.write_request(&ticket, 2, 20, &[7; 21]).expect("may be repeated");
    assert_eq!(slot.dump()[7 + 3], 0, "the longer first request is gone");
    slot.submit(&ticket).expect("held");
    assert_eq!(slot.submit(&ticket), Err(WriteError::NotHeld));
    assert_eq!(slot.write_request(&ticket, 2, 20, &[]), Err(WriteError::NotHeld));
    assert_eq!(slot.poll(&ticket), Poll::Waiting);
    let ticket = slot.consume(ticket).expect_err("nothing to consume yet");

    let taken = slot.take(epoch(1)).expect("submitted");
    assert!(slot.take(epoch(1)).is_none());
    assert_eq!((taken.op, taken.deadline_ms), (2, 20));
    let mut request = vec![1; 5000];
    assert!(slot.read_request(&taken.ticket, &mut request));
    assert_eq!(request, [7; 21]);
    assert!(!slot.abandoned_by_client(&taken.ticket));
    assert_eq!(slot.snapshot().client_proc, Some(0));
    assert_eq!(slot.complete(taken.ticket, 3, &[8; 40]), Completed::Delivered(0));
    assert_eq!(slot.poll(&ticket), Poll::Done);
    let answer = slot.consume(ticket).expect("done");
    assert_eq!((answer.status, answer.bytes.as_slice()), (3, &[8; 40][..]));
    assert_wiped(&slot);
}

#[test]
fn capacities_are_exact() {
    let slot = slot();
    let ticket = slot.try_claim(4).expect("free");
    assert_eq!(slot.write_request(&ticket, 1, 1, &[1; REQUEST_BYTES + 1]), Err(WriteError::TooLong));
    let full: Vec<u8> = (0..REQUEST_BYTES).map(|at| at as u8).collect();
    slot.write_request(&ticket, 1, 1, &full).expect("fits exactly");
    slot.submit(&ticket).expect("held");
    let taken = slot.take(epoch(1)).expect("submitted");
    let mut request = Vec::new();
    assert!(slot.read_request(&taken.ticket, &mut request));
    assert_eq!(request, full);
    let response: Vec<u8> = (0..RESPONSE_BYTES).map(|at| (at * 7) as u8).collect();
    assert_eq!(slot.complete(taken.ticket, 0, &response), Completed::Delivered(4));
    assert_eq!(slot.consume(ticket).expect("done").bytes.as_slice(), response);
    assert_wiped(&slot);

    let ticket = submitted(&slot, 4, &[]);
    let taken = slot.take(epoch(1)).expect("submitted");
    assert_eq!(slot.complete(taken.ticket, 0, &[1; RESPONSE_BYTES + 1]), Completed::Delivered(4));
    let answer = slot.consume(ticket).expect("done");
    assert_eq!((answer.status, answer.bytes.len()), (STATUS_OVERSIZE, 0));
    assert_wiped(&slot);
}

#[test]
fn lengths_in_shared_memory_are_not_trusted() {
    let slot = slot();
    let ticket = submitted(&slot, 4, &[1; 16]);
    let mut dump = slot.dump();
    dump[5] = u64::from(u32::MAX);
    dump[6] = u64::from(u32::MAX);
    slot.restore(&dump);
    let taken = slot.take(epoch(1)).expect("submitted");
    let mut request = Vec::new();
    assert!(slot.read_request(&taken.ticket, &mut request));
    assert_eq!(request.len(), REQUEST_BYTES);
    assert_eq!(slot.give_up(ticket), Reclaimed::LeftToWorker);
    assert_eq!(slot.recover(epoch(2)), Recovered::Freed);
    assert_wiped(&slot);
}

#[test]
fn tickets_of_other_lives_and_other_slots_are_refused() {
    let (slot, other) = (slot(), slot());
    let old = submitted(&slot, 1, b"one");
    let old_take = slot.take(epoch(1)).expect("submitted");
    assert_eq!(slot.recover(epoch(2)), Recovered::Requeued);
    let new_take = slot.take(epoch(2)).expect("requeued");
    let mut request = vec![1];
    assert!(!slot.read_request(&old_take.ticket, &mut request));
    assert!(request.is_empty());
    let before = slot.dump();
    assert_eq!(slot.complete(old_take.ticket, 1, b"late"), Completed::Refused);
    assert_eq!(slot.dump(), before, "a late completion touched the slot");
    assert_eq!(slot.complete(new_take.ticket, 1, b"right"), Completed::Delivered(1));
    assert_eq!(slot.give_up(old), Reclaimed::Freed);

    // Two slots in the same state, of the same generation and worker: only the ticket's slot tells them apart.
    let round = other.try_claim(2).expect("free");
    assert_eq!(other.give_up(round), Reclaimed::Freed);
    let (mine, theirs) = (submitted(&slot, 1, b"two"), submitted(&other, 2, b"three"));
    assert_eq!(slot.generation_of(&mine), other.generation_of(&theirs), "or this shows nothing");
    assert_eq!(other.poll(&mine), Poll::NotHeld);
    assert_eq!(other.give_up(mine), Reclaimed::NotHeld);
    let taken = [slot.take(epoch(2)), other.take(epoch(2))].map(|taken| taken.expect("submitted").ticket);
    assert!(!slot.read_request(&taken[1], &mut request));
    assert!(!slot.abandoned_by_client(&taken[1]));
    let [my_take, their_take] = taken;
    assert_eq!(slot.complete(their_take, 0, b""), Completed::Refused);
    assert_eq!(slot.complete(my_take, 0, b""), Completed::Delivered(1));
    let mine = slot.held_by(1).expect("untouched by all that");
    assert_eq!(slot.give_up(mine), Reclaimed::Freed);

    // The same slot, client and worker, one request later.
    let first = submitted(&slot, 1, b"four");
    let old_generation = slot.generation_of(&first);
    let taken = slot.take(epoch(2)).expect("submitted");
    assert_eq!(slot.complete(taken.ticket, 0, b""), Completed::Delivered(1));
    assert!(slot.consume(first).is_ok());
    let second = submitted(&slot, 1, b"five");
    let taken = slot.take(epoch(2)).expect("submitted");
    let late = WorkerTicket::forge(&slot, epoch(2), old_generation);
    assert_eq!(slot.complete(late, 0, b"late"), Completed::Refused, "another generation");
    assert_eq!(slot.complete(taken.ticket, 0, b"right"), Completed::Delivered(1));
    assert_eq!(slot.consume(second).expect("done").bytes.as_slice(), b"right");
}

#[test]
fn recovery_touches_only_what_the_dead_left() {
    let slot = slot();
    assert_eq!(slot.recover(epoch(1)), Recovered::Nothing);
    let ticket = submitted(&slot, 3, b"x");
    assert_eq!(slot.recover(epoch(1)), Recovered::Nothing, "waiting requests just wait");
    let taken = slot.take(epoch(1)).expect("submitted");
    assert_eq!(slot.recover(epoch(1)), Recovered::Nothing, "the living worker's own");
    assert_eq!(slot.complete(taken.ticket, 0, b"y"), Completed::Delivered(3));
    assert_eq!(slot.recover(epoch(2)), Recovered::Answered(3), "the dead worker may not have woken it");
    assert!(slot.consume(ticket).is_ok());
    assert_eq!(slot.recover(epoch(2)), Recovered::Nothing);

    let ticket = submitted(&slot, 3, b"x");
    let taken = slot.take(epoch(2)).expect("submitted");
    assert_eq!(slot.give_up(ticket), Reclaimed::LeftToWorker);
    assert!(slot.abandoned_by_client(&taken.ticket));
    assert_eq!(slot.recover(epoch(2)), Recovered::Nothing, "the living worker still has to complete it");
    assert_eq!(slot.complete(taken.ticket, 0, &[5; 100]), Completed::WasAbandoned);
    assert_wiped(&slot);
}

#[test]
fn a_slot_of_an_unknown_state_is_left_alone() {
    let slot = slot();
    let mut dump = slot.dump();
    dump[0] = 0xee << 56;
    slot.restore(&dump);
    assert!(slot.try_claim(1).is_none());
    assert!(slot.take(epoch(1)).is_none());
    assert!(slot.held_by(1).is_none());
    assert_eq!(slot.recover(epoch(1)), Recovered::Nothing);
    assert_eq!(StateCounts::of(std::slice::from_ref(&*slot)).unknown, 1);
}

#[test]
fn the_queue_hands_out_every_slot_once() {
    let slots: Vec<Slot> = (0..3).map(|_| Slot::new()).collect();
    assert!(claim_any(&slots[..0], 0, 1).is_none());
    let claimed: Vec<_> = [5, 5, usize::MAX].map(|start| claim_any(&slots, start, 9).expect("free")).into();
    assert_eq!(claimed.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [2, 0, 1]);
    assert!(claim_any(&slots, 0, 9).is_none());
    assert_eq!(StateCounts::of(&slots).count(State::Filling), 3);
    assert_eq!(held_by(&slots, 8).count(), 0);
    for (index, ticket) in held_by(&slots, 9).collect::<Vec<_>>() {
        assert_eq!(slots[index].give_up(ticket), Reclaimed::Freed);
    }
    assert_eq!(StateCounts::of(&slots).count(State::Free), 3);
    drop(claimed);

    let starts = EpochCounter::new();
    assert_eq!(starts.current(), None);
    let first = starts.begin();
    assert_eq!(starts.current(), Some(first));
    assert_ne!(starts.begin(), first);
}

/// Clients that lose patience at random, a worker that "dies" at random (its tickets are dropped) and is succeeded
/// under a new epoch, on few slots: responses always match, nothing is left over.
#[test]
fn real_threads() {
    const CLIENTS: i32 = 6;
    let slots: Vec<Slot> = (0..3).map(|_| Slot::new()).collect();
    let starts = EpochCounter::new();
    let (stop, closed) = (AtomicBool::new(false), AtomicBool::new(false));
    let (answered, gave_up, deaths) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let worker = || {
        let mut random = 0x9e37_79b9_7f4a_7c15u64;
        let mut buffer = Vec::new();
        loop {
            let epoch = starts.begin();
            for slot in &slots {
                slot.recover(epoch);
            }
            // One life: ends after some requests, a few of them taken and never completed.
            let lifetime = 1 + xorshift(&mut random) % 200;
            let mut done = 0;
            while done < lifetime {
                if closed.load(Ordering::Relaxed) {
                    return;
                }
                for slot in &slots {
                    let Some(taken) = slot.take(epoch) else { continue };
                    done += 1;
                    assert!(slot.read_request(&taken.ticket, &mut buffer));
                    let response: Vec<u8> = buffer.iter().rev().map(|byte| !byte).collect();
                    if xorshift(&mut random).is_multiple_of(50) {
                        // Dies with this request in hand.
                        deaths.fetch_add(1, Ordering::Relaxed);
                        done = lifetime;
                        break;
                    }
                    let status = response.len() as u32;
                    assert_ne!(slot.complete(taken.ticket, status, &response), Completed::Refused);
                }
                std::thread::yield_now();
            }
        }
    };
    let client = |proc: i32| {
        let mut random = 0xdead_beef_u64 + proc as u64;
        while !stop.load(Ordering::Relaxed) {
            let Some((index, ticket)) = claim_any(&slots, proc as usize, proc) else {
                std::thread::yield_now();
                continue;
            };
            let slot = &slots[index];
            let request: Vec<u8> =
                (0..xorshift(&mut random) % 300).map(|_| xorshift(&mut random) as u8).collect();
            slot.write_request(&ticket, 1, 0, &request).expect("just claimed");
            slot.submit(&ticket).expect("just claimed");
            let patience =
                if xorshift(&mut random).is_multiple_of(4) { xorshift(&mut random) % 50 } else { u64::MAX };
            let mut waited = 0;
            loop {
                match slot.poll(&ticket) {
                    Poll::Done => {
                        let answer = slot.consume(ticket).expect("done");
                        let expected: Vec<u8> = request.iter().rev().map(|byte| !byte).collect();
                        assert_eq!(answer.bytes.as_slice(), expected, "a response to another request");
                        assert_eq!(answer.status, expected.len() as u32);
                        answered.fetch_add(1, Ordering::Relaxed);
                        break;
                    }
                    Poll::NotHeld => panic!("a client lost its slot"),
                    Poll::Waiting if waited >= patience || stop.load(Ordering::Relaxed) => {
                        assert_ne!(slot.give_up(ticket), Reclaimed::NotHeld);
                        gave_up.fetch_add(1, Ordering::Relaxed);
                        break;
                    }
                    Poll::Waiting => {
                        waited += 1;
                        std::thread::yield_now();
                    }
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|proc| scope.spawn(move || client(proc))).collect();
        // As long as it takes to see enough of everything; on a busy machine that may be a while.
        let until = Instant::now() + Duration::from_secs(60);
        let enough = || {
            let seen = |count: &AtomicU64, least| count.load(Ordering::Relaxed) >= least;
            seen(&answered, 2000) && seen(&gave_up, 200) && seen(&deaths, 20)
        };
        let worker = scope.spawn(worker);
        while Instant::now() < until && !worker.is_finished() && !enough() {
            std::thread::sleep(Duration::from_millis(20));
        }
        stop.store(true, Ordering::Relaxed);
        let ends: Vec<_> = clients.into_iter().map(|client| client.join()).collect();
        closed.store(true, Ordering::Relaxed);
        worker.join().expect("worker");
        ends.into_iter().for_each(|end| end.expect("client"));
        let epoch = starts.begin();
        for slot in &slots {
            slot.recover(epoch);
            assert_wiped(slot);
        }
    });
    let counts = [answered, gave_up, deaths].map(AtomicU64::into_inner);
    assert!(
        counts[0] >= 2000 && counts[1] >= 200 && counts[2] >= 20,
        "answers, given up, deaths: {counts:?}"
    );
}

fn xorshift(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}
