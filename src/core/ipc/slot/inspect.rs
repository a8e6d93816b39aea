//! What tests and model checkers need to see, set and forge in a slot, which nobody else may.
//!
//! Unit tests only. A child module, so that the fields stay private: the trap is a payload word that product code
//! reaches past the state machine.

use super::*;

#[cfg(all(test, loom))]
impl<const Q: usize, const R: usize> SlotOf<Q, R> {
    /// Whether this thread sees zeroes in all that a client and a worker write into each other's view. `client` is
    /// left out: whoever has just claimed the slot has written it.
    pub(in crate::ipc) fn looks_wiped(&self) -> bool {
        let heads = [&self.op, &self.status, &self.request_len, &self.response_len];
        self.request.iter().chain(&self.response).all(|word| word.load(Relaxed) == 0)
            && heads.iter().all(|word| word.load(Relaxed) == 0)
            && self.deadline_ms.load(Relaxed) == 0
    }

    /// What a worker leaves that dies in the middle of `complete`.
    pub(in crate::ipc) fn half_complete(&self) {
        self.response_len.store(8, Relaxed);
        self.response[0].store(u64::MAX, Relaxed);
    }
}

/// What the model checker needs to see and set; everything in the order of the memory.
#[cfg(all(test, not(loom)))]
impl<const Q: usize, const R: usize> SlotOf<Q, R> {
    /// The word first, then all that must be zero while the slot is free.
    pub(in crate::ipc) fn dump(&self) -> Vec<u64> {
        let head = [
            self.word.load(Relaxed),
            self.deadline_ms.load(Relaxed),
            self.client.load(Relaxed) as u64,
            u64::from(self.op.load(Relaxed)),
            u64::from(self.status.load(Relaxed)),
            u64::from(self.request_len.load(Relaxed)),
            u64::from(self.response_len.load(Relaxed)),
        ];
        let payload = self.request.iter().chain(&self.response).map(|word| word.load(Relaxed));
        head.into_iter().chain(payload).collect()
    }

    pub(in crate::ipc) fn restore(&self, dump: &[u64]) {
        self.word.store(dump[0], Relaxed);
        self.deadline_ms.store(dump[1], Relaxed);
        self.client.store(dump[2] as i32, Relaxed);
        self.op.store(dump[3] as u32, Relaxed);
        self.status.store(dump[4] as u32, Relaxed);
        self.request_len.store(dump[5] as u32, Relaxed);
        self.response_len.store(dump[6] as u32, Relaxed);
        for (word, value) in self.request.iter().chain(&self.response).zip(&dump[7..]) {
            word.store(*value, Relaxed);
        }
    }

    pub(in crate::ipc) fn generation_of(&self, ticket: &ClientTicket) -> u32 {
        ticket.generation
    }

    pub(in crate::ipc) fn place(&self, addr: usize) -> Place {
        let of = |word: &AtomicU64| std::ptr::from_ref(word).addr();
        match addr {
            _ if addr == of(&self.word) => Place::Word,
            _ if addr == std::ptr::from_ref(&self.client).addr() => Place::Client,
            _ if self.response.iter().any(|word| of(word) == addr) => Place::Response,
            _ => Place::Payload,
        }
    }
}

#[cfg(all(test, not(loom)))]
impl WorkerTicket {
    /// The ticket a worker of `epoch` would hold for `generation` of `slot`, valid or not.
    pub(in crate::ipc) fn forge<const Q: usize, const R: usize>(
        slot: &SlotOf<Q, R>,
        epoch: Epoch,
        generation: u32,
    ) -> Self {
        let word = Word::from_bits(((State::Submitted as u64) << 56) | u64::from(generation));
        let word = word.after(Event::Take, Some(epoch)).expect("submitted may be taken");
        Self { slot: slot.address(), word }
    }
}

/// What an address within the slot is, for the ownership rules of the model checker.
#[cfg(all(test, not(loom)))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ipc) enum Place {
    Word,
    Client,
    Response,
    Payload,
}
