//! What lies where in the extension's shared mapping, and who may touch it.
//!
//! | part | written by | read by |
//! |---|---|---|
//! | [`Header`] | the key-service worker (postmaster at start); [`Posts`] by their holders; [`Inbox`] by whoever asks | everyone |
//! | slots | backend and worker in turn, by the slot's state | owner of the moment |
//! | cache sets | worker inserts and sweeps; backends insert what they sealed, remove what they deleted | everyone, lock-free |
//! | places | everyone | everyone, lock-free, as guesses |
//! | cache counters | everyone, striped | status |
//! | uses of tokens | backends that recognise a token, lock-free | listings, the maintenance worker |
//! | [`Audit`] | whoever appends to the audit spool; the relay | everyone |
//!
//! Made by the postmaster in the shared-memory start-up hook, zero-filled; sizes come from restart-only settings, so
//! every process computes the same layout. The trap it avoids: a layout that depends on anything that can change
//! while the server runs.

use std::cell::Cell;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

use hyperion_vault_core::audit;
use hyperion_vault_core::cache::{Counters, Line, Places, Set, Table, lines_for, sets_for};
use hyperion_vault_core::ipc::{EpochCounter, Inbox, Slot};
use hyperion_vault_core::policy::uses::{self, Uses};

use crate::config;
use crate::error::{Kind, Result, VaultError};
use crate::pg::condvar::CondVar;
use crate::pg::shmem;
use crate::worker::posts::Posts;

/// One per server.
#[repr(C, align(64))]
pub struct Header {
    /// Process number of the running worker plus one; 0: none. Its own doing on start and exit.
    worker_proc: AtomicI32,
    pub worker_pid: AtomicI32,
    /// Counts worker starts; each start recovers what its predecessor left.
    pub epoch: EpochCounter,
    pub started_at: AtomicU64,
    /// The provider as it was opened, if keys may be asked for ahead: another number each time, [`NOTHING`](hyperion_vault_core::reserve::NOTHING) if not.
    pub reserving: AtomicU64,
    pub stats: KmsStats,
    /// Backends waiting for a free slot.
    pub slot_freed: CondVar,
    /// Which slots the worker has to look at, and whether it sleeps.
    pub inbox: Inbox,
    /// The launcher and the workers of the vault's database.
    pub posts: Posts,
}

/// What the worker publishes of its service, copied after each turn of its loop. Counts are since its start.
#[repr(C)]
pub struct KmsStats {
    pub calls: AtomicU64,
    pub failures: AtomicU64,
    pub retries: AtomicU64,
    pub coalesced: AtomicU64,
    pub in_flight: AtomicU64,
    /// Requests answered by the open breaker.
    pub refused: AtomicU64,
    /// How often the breaker opened, doubled, plus one while it is open: both in one load.
    pub breaker: AtomicU64,
    /// [`hyperion_vault_core::ipc::ErrorKind`] of the last failure, as a number; 0: none.
    pub last_error_kind: AtomicU32,
    /// Whether the provider could be opened: 0 not asked yet, 1 yes, 2 no.
    pub provider: AtomicU32,
    /// Unix seconds.
    pub last_error_at: AtomicU64,
}

/// The audit log's part.
#[repr(C, align(64))]
pub struct Audit {
    pub spool: audit::Shared,
    pub denials: audit::Denials,
    pub relay: RelayStats,
    pub growth: audit::Growth,
    /// Those who wait for a sync that another is at.
    pub synced: CondVar,
}

/// What the relay publishes.
#[repr(C)]
pub struct RelayStats {
    /// Records of the open spool that are in the table.
    pub relayed: AtomicU64,
    /// Records in spools of former lives of the server that are not in the table yet.
    pub backlog: AtomicU64,
    /// Microseconds since 2000: what was appended before then is in the table. 0: the relay has not run yet.
    pub settled: AtomicU64,
    /// Frames found torn since the server started.
    pub torn: AtomicU64,
}

impl Header {
    pub fn worker_proc(&self) -> Option<i32> {
        // Acquire: pairs with the Release of `set_worker`, so that a worker seen here has recovered the slots.
        self.worker_proc.load(Ordering::Acquire).checked_sub(1).filter(|number| *number >= 0)
    }

    /// The worker announces itself (Some) or takes leave (None).
    pub fn set_worker(&self, proc_number: Option<i32>) {
        // Release: pairs with the Acquire of `worker_proc`.
        self.worker_proc.store(proc_number.map_or(0, |number| number + 1), Ordering::Release);
    }
}

/// The parts of the mapping.
#[derive(Clone, Copy)]
pub struct Area {
    pub header: &'static Header,
    pub slots: &'static [Slot],
    pub counters: &'static Counters,
    pub audit: &'static Audit,
    sets: &'static [Set],
    lines: &'static [Line],
    uses: &'static [uses::Cell],
}

impl Area {
    /// When tokens were used last.
    pub fn uses(&self) -> Uses<'static> {
        Uses(self.uses)
    }

    pub fn cache(&self) -> Table<'static> {
        Table::from_sets(self.sets)
    }

    /// Where rows were last seen.
    pub fn places(&self) -> Places<'static> {
        Places::from_lines(self.lines)
    }
}

struct Layout {
    slots: usize,
    counters: usize,
    audit: usize,
    sets: usize,
    set_count: usize,
    lines: usize,
    line_count: usize,
    uses: usize,
    end: usize,
}

fn layout() -> Layout {
    let aligned = |offset: usize| offset.next_multiple_of(128);
    let slots = aligned(size_of::<Header>());
    let counters = aligned(slots + config::queue_slots() * size_of::<Slot>());
    let audit = aligned(counters + size_of::<Counters>());
    let sets = aligned(audit + size_of::<Audit>());
    let set_count = sets_for(config::dek_cache_size());
    let lines = aligned(sets + set_count * size_of::<Set>());
    let line_count = lines_for(config::dek_cache_size());
    let uses = aligned(lines + line_count * size_of::<Line>());
    let end = uses + uses::CELLS * size_of::<uses::Cell>();
    Layout { slots, counters, audit, sets, set_count, lines, line_count, uses, end }
}

/// Makes the mapping; again after a crash. Postmaster only.
pub fn create() {
    if let Err(error) = shmem::create(layout().end) {
        pgrx::ereport!(
            pgrx::PgLogLevel::FATAL,
            pgrx::PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY,
            format!("could not map {} bytes of shared memory for hyperion_vault: {error}", layout().end),
            "Reduce hyperion_vault.dek_cache_size or hyperion_vault.kms_queue_slots."
        );
    }
    if let Some(area) = find() {
        area.header.slot_freed.init();
        area.audit.synced.init();
        crate::audit::open();
    }
}

fn find() -> Option<Area> {
    let layout = layout();
    Some(Area {
        header: shmem::slice::<Header>(0, 1)?.first()?,
        slots: shmem::slice(layout.slots, config::queue_slots())?,
        counters: shmem::slice::<Counters>(layout.counters, 1)?.first()?,
        audit: shmem::slice::<Audit>(layout.audit, 1)?.first()?,
        sets: shmem::slice(layout.sets, layout.set_count)?,
        lines: shmem::slice(layout.lines, layout.line_count)?,
        uses: shmem::slice(layout.uses, uses::CELLS)?,
    })
}

thread_local! {
    /// The area, beside the mapping it is in: the postmaster may make another one after a crash.
    static FOUND: Cell<Option<(usize, Area)>> = const { Cell::new(None) };
}

/// The area of this server. Every read asks: laid out once per process.
pub fn get() -> Result<Area> {
    let mapping = shmem::address();
    match FOUND.get() {
        Some((address, area)) if address == mapping => Ok(area),
        _ => {
            let area = find().ok_or_else(not_preloaded)?;
            FOUND.set(Some((mapping, area)));
            Ok(area)
        }
    }
}

/// The library was not loaded by the postmaster: no worker, no shared memory.
pub fn not_preloaded() -> VaultError {
    VaultError::new(Kind::WrongState, "hyperion_vault is not preloaded")
        .detail("The key-service worker and its shared memory are made when the server starts.")
        .hint("Add hyperion_vault to shared_preload_libraries in postgresql.conf and restart the server.")
}
