//! [`Denials`]: repeated refusals of one actor are counted instead of written.
//!
//! Shared by all backends, so that reconnecting does not start anew. An actor is a role at an address. In each window of
//! [`WINDOW_SECS`] his first [`WRITTEN`] refusals are written as they are; of the rest only the number, once the window is
//! over: by his next refusal, or by the relay, which looks at all of them now and then.
//!
//! The trap it avoids: a table that fills. It has a fixed number of places; an actor whose place another takes loses his
//! count to the caller, who writes it.

use std::hash::Hasher;
use std::net::IpAddr;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};

use siphasher::sip::SipHasher24;

/// Length of a window. A flood leaves its count at most so late.
pub const WINDOW_SECS: u64 = 10;
/// Refusals of one actor in one window that are written in full.
const WRITTEN: u64 = 20;
/// Somebody who was interrupted by the scheduler holds a place for milliseconds; after this many attempts a refusal is
/// written rather than waited for.
const ATTEMPTS: u32 = 1 << 14;
/// Actors that are refused at one time; more share places.
const PLACES: usize = 256;

/// Who was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Actor {
    /// Oid of the session's role.
    pub role: u32,
    /// None: no TCP client.
    pub address: Option<IpAddr>,
}

/// What to do with a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Write it; else it was counted.
    pub write: bool,
    /// And write, of this actor, so many that were only counted.
    pub counted: Option<(Actor, u64)>,
}

#[derive(Default)]
#[repr(C, align(64))]
struct Place {
    lock: AtomicU32,
    /// Role; 0: nobody.
    role: AtomicU32,
    /// 0: no address, 4 or 6.
    family: AtomicU32,
    address: [AtomicU64; 2],
    window: AtomicU64,
    written: AtomicU64,
    counted: AtomicU64,
}

/// All zero is valid and empty.
#[repr(C)]
pub struct Denials {
    places: [Place; PLACES],
}

impl Default for Denials {
    fn default() -> Self {
        Self { places: std::array::from_fn(|_| Place::default()) }
    }
}

impl Denials {
    /// A refusal of `actor` at `now_secs` of a clock that does not step back.
    pub fn seen(&self, actor: Actor, now_secs: u64) -> Seen {
        let place = &self.places[slot(actor)];
        let Some(_held) = Lock::take(&place.lock) else {
            return Seen { write: true, counted: None };
        };
        let window = now_secs / WINDOW_SECS + 1;
        let counted = (place.actor() != Some(actor) || place.window.load(Relaxed) != window)
            .then(|| place.begin(actor, window))
            .flatten();
        let write = place.written.load(Relaxed) < WRITTEN;
        let counter = if write { &place.written } else { &place.counted };
        counter.fetch_add(1, Relaxed);
        Seen { write, counted }
    }

    /// Takes back a count that was told and could not be written. False if its place is another actor's by now.
    pub fn give_back(&self, actor: Actor, count: u64) -> bool {
        let place = &self.places[slot(actor)];
        let held = Lock::take(&place.lock);
        let still = held.is_some() && place.actor() == Some(actor);
        if still {
            place.counted.fetch_add(count, Relaxed);
        }
        still
    }

    /// Counts of windows that are over, for whoever writes them; each is told once.
    pub fn take_counted(&self, now_secs: u64) -> Vec<(Actor, u64)> {
        let window = now_secs / WINDOW_SECS + 1;
        let over = |place: &Place| {
            if place.counted.load(Relaxed) == 0 || place.window.load(Relaxed) == window {
                return None;
            }
            let _held = Lock::take(&place.lock)?;
            let actor = place.actor()?;
            (place.window.load(Relaxed) != window).then(|| (actor, place.counted.swap(0, Relaxed)))
        };
        self.places.iter().filter_map(over).filter(|(_, count)| *count > 0).collect()
    }
}

impl Place {
    fn actor(&self) -> Option<Actor> {
        let role = self.role.load(Relaxed);
        let bits =
            u128::from(self.address[0].load(Relaxed)) << 64 | u128::from(self.address[1].load(Relaxed));
        let address = match self.family.load(Relaxed) {
            4 => Some(IpAddr::V4((bits as u32).into())),
            6 => Some(IpAddr::V6(bits.into())),
            _ => None,
        };
        (role != 0).then_some(Actor { role, address })
    }

    /// Makes the place this actor's, in this window. What was counted before, and of whom.
    fn begin(&self, actor: Actor, window: u64) -> Option<(Actor, u64)> {
        let before = self.actor().zip(Some(self.counted.swap(0, Relaxed))).filter(|(_, count)| *count > 0);
        let (family, bits) = match actor.address {
            None => (0, 0),
            Some(IpAddr::V4(address)) => (4, u128::from(u32::from(address))),
            Some(IpAddr::V6(address)) => (6, u128::from(address)),
        };
        self.role.store(actor.role, Relaxed);
        self.family.store(family, Relaxed);
        self.address[0].store((bits >> 64) as u64, Relaxed);
        self.address[1].store(bits as u64, Relaxed);
        self.window.store(window, Relaxed);
        self.written.store(0, Relaxed);
        before
    }
}

fn slot(actor: Actor) -> usize {
    let mut hasher = SipHasher24::new();
    hasher.write_u32(actor.role);
    match actor.address {
        None => {}
        Some(IpAddr::V4(address)) => hasher.write(&address.octets()),
        Some(IpAddr::V6(address)) => hasher.write(&address.octets()),
    }
    (hasher.finish() % PLACES as u64) as usize
}

/// Over a few loads and stores; nothing of the server is called under it.
struct Lock<'a>(&'a AtomicU32);

impl<'a> Lock<'a> {
    fn take(word: &'a AtomicU32) -> Option<Self> {
        for attempt in 0..ATTEMPTS {
            // Acquire: pairs with the Release of `drop`.
            if word.compare_exchange_weak(0, 1, Acquire, Relaxed).is_ok() {
                return Some(Self(word));
            }
            if attempt % 16 == 15 {
                std::thread::yield_now();
            }
        }
        None
    }
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        self.0.store(0, Release);
    }
}
