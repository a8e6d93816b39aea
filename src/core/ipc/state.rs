//! The request slot's state machine as a pure table: which state follows which event, who owns the payload, and how
//! state, worker epoch and generation share one 64-bit word.
//!
//! Runs in client backends and on the key-service worker's main thread, through `slot`. The trap it avoids: rules
//! spread over compare-and-swap loops, where nobody can enumerate them.
//!
//! ```text
//!            claim           submit             take(epoch)             complete
//!     FREE ─────────▶ FILLING ──────▶ SUBMITTED ───────────▶ PROCESSING ────────▶ DONE
//!      ▲                │  ▲  take back │   ▲    requeue (successor) │               │
//!      │    release     │  └────────────┘   └────────────────────────┤ abandon       │
//!      ├────────────────┘                                            ▼               │
//!      ├───────────────────────────────── reclaim (worker) ──── ABANDONED            │
//!      └───────────────────────────────── consume (client) ──────────────────────────┘
//! ```

/// Where a slot stands. The numeric values are the top byte of the word; `Free` is 0 so that zero-filled memory is
/// a valid, empty queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum State {
    Free = 0,
    Filling = 1,
    Submitted = 2,
    Processing = 3,
    Done = 4,
    Abandoned = 5,
}

/// What moves a slot on. Each event belongs to one party: see [`Event::actor`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// Client takes a free slot; begins a new generation.
    Claim,
    /// Client hands the request over.
    Submit,
    /// Client gives up before a worker took the request: it owns the payload again, to wipe it.
    TakeBack,
    /// Client returns a wiped slot it was filling.
    Release,
    /// Client gives up while a worker is busy: the worker inherits the wiping.
    Abandon,
    /// Client has read (or discarded) the response and wiped the slot.
    Consume,
    /// Worker begins.
    Take,
    /// Worker has written the response.
    Complete,
    /// A successor worker has wiped a half-written response: the request is tried again.
    Requeue,
    /// A worker has wiped an abandoned slot.
    Reclaim,
}

/// Who may touch the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// Nobody: the payload is all zero (`Free`) or waits unread (`Submitted`).
    Nobody,
    Client,
    /// The worker of the epoch in the word, or, once that one is dead, its successor.
    Worker,
}

/// The whole protocol. `None`: the event is refused in that state.
pub const fn transition(from: State, event: Event) -> Option<State> {
    use Event as E;
    use State as S;
    Some(match (from, event) {
        (S::Free, E::Claim) => S::Filling,
        (S::Filling, E::Submit) => S::Submitted,
        (S::Filling, E::Release) => S::Free,
        (S::Submitted, E::TakeBack) => S::Filling,
        (S::Submitted, E::Take) => S::Processing,
        (S::Processing, E::Complete) => S::Done,
        (S::Processing, E::Abandon) => S::Abandoned,
        (S::Processing, E::Requeue) => S::Submitted,
        (S::Done, E::Consume) => S::Free,
        (S::Abandoned, E::Reclaim) => S::Free,
        _ => return None,
    })
}

impl Event {
    /// The only party that may cause this event.
    pub const fn actor(self) -> Owner {
        match self {
            Self::Claim | Self::Submit | Self::TakeBack | Self::Release | Self::Abandon | Self::Consume => {
                Owner::Client
            }
            Self::Take | Self::Complete | Self::Requeue | Self::Reclaim => Owner::Worker,
        }
    }
}

impl State {
    pub const ALL: [Self; 6] =
        [Self::Free, Self::Filling, Self::Submitted, Self::Processing, Self::Done, Self::Abandoned];

    /// `None` for a byte no version of this code writes.
    pub const fn from_u8(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Free,
            1 => Self::Filling,
            2 => Self::Submitted,
            3 => Self::Processing,
            4 => Self::Done,
            5 => Self::Abandoned,
            _ => return None,
        })
    }

    pub const fn owner(self) -> Owner {
        match self {
            Self::Free | Self::Submitted => Owner::Nobody,
            Self::Filling | Self::Done => Owner::Client,
            Self::Processing | Self::Abandoned => Owner::Worker,
        }
    }

    /// Lower-case name for `vault.status()`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Filling => "filling",
            Self::Submitted => "submitted",
            Self::Processing => "processing",
            Self::Done => "done",
            Self::Abandoned => "abandoned",
        }
    }
}

/// A worker's life, 1 to 2^24 - 1. Zero means "no worker" and is never handed out. The number wraps after 16.7
/// million worker starts; only equality is ever asked, and only between a worker and its direct predecessors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Epoch(u32);

impl Epoch {
    pub(super) const LIMIT: u64 = (1 << 24) - 1;

    /// The epoch of the `starts`-th worker start (a counter that only grows).
    pub const fn from_counter(starts: u64) -> Self {
        Self((starts % Self::LIMIT) as u32 + 1)
    }

    /// The number in the slot words and in `vault.status()`.
    pub const fn number(self) -> u32 {
        self.0
    }
}

/// The one word a slot's life hangs on: state (8 bits), worker epoch (24), generation (32).
///
/// The epoch is set while a worker holds the slot (`Processing`, `Abandoned`) and zero otherwise. The generation
/// grows with every claim, so a ticket of an earlier life never matches a later one (ABA), short of 2^32 claims of
/// one slot during one request.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Word(u64);

impl Word {
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub const fn bits(self) -> u64 {
        self.0
    }

    /// `None` if the memory holds a state no version of this code writes; every operation refuses such a slot.
    pub const fn state(self) -> Option<State> {
        State::from_u8((self.0 >> 56) as u8)
    }

    pub const fn epoch(self) -> u32 {
        (self.0 >> 32) as u32 & 0x00ff_ffff
    }

    pub const fn generation(self) -> u32 {
        self.0 as u32
    }

    /// The word after `event`, or `None` where [`transition`] refuses. `epoch` is recorded by `Take` only.
    pub const fn after(self, event: Event, epoch: Option<Epoch>) -> Option<Self> {
        let Some(from) = self.state() else { return None };
        let Some(to) = transition(from, event) else { return None };
        let generation = match event {
            Event::Claim => self.generation().wrapping_add(1),
            _ => self.generation(),
        };
        let epoch = match (event, epoch) {
            (Event::Take, Some(epoch)) => epoch.0,
            // A worker without an epoch cannot take: nobody could tell later that it is dead.
            (Event::Take, None) => return None,
            // The worker goes on without its client, still under its own epoch.
            (Event::Abandon, _) => self.epoch(),
            _ => 0,
        };
        Some(Self(((to as u64) << 56) | ((epoch as u64) << 32) | generation as u64))
    }
}

impl std::fmt::Debug for Word {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.state() {
            Some(state) => write!(f, "{}", state.name())?,
            None => write!(f, "unknown({:#04x})", (self.0 >> 56) as u8)?,
        }
        write!(f, "/epoch {}/generation {}", self.epoch(), self.generation())
    }
}
