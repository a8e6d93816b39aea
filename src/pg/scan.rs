//! Direct index scans of the extension's own tables: the read path, without SPI.
//!
//! The server's catalog-scan interface reads any table through any index under the *latest* snapshot, also while a
//! parallel plan is running (where `GetLatestSnapshot` refuses), and sees the transaction's own changes. No planner,
//! no operator lookup, no row-level security, no privilege check: who may read was decided before.
//!
//! A point read ([`IndexedTable::point`]) goes to the place where the row was last seen, if somebody has seen it: a row
//! that is there, visible under the latest snapshot and has the key that is looked for is the one the unique index would
//! lead to. Anything else, and it takes the index.
//!
//! Client backends and database workers, main thread, primary or standby.

use std::cell::{Cell, UnsafeCell};
use std::ffi::CStr;
use std::mem::MaybeUninit;

use hyperion_vault_core::cache::{Hash, Place, Places};
use hyperion_vault_core::envelope::Id;
use hyperion_vault_core::row::Layout;
use pgrx::pg_sys::{self, Datum, Oid};

use super::datum;
use super::tuple::{Tuple, layout};
use crate::error::{Kind, Result, VaultError};

/// A table of schema `vault` and one of its indexes, by name; oids are looked up once and again after any change to
/// the relation cache that might concern them. Make it a `thread_local`.
pub struct IndexedTable {
    table: &'static CStr,
    index: &'static CStr,
    /// The table's column behind each column of the index, as in sql/20_schema.sql. Not asked of the index, which would
    /// have to be opened and locked once more for it; the server refuses a number that is not one of them.
    columns: &'static [i16],
    known: Cell<Option<Known>>,
}

/// What a session remembers of a table.
#[derive(Clone, Copy)]
struct Known {
    table: Oid,
    index: Oid,
    layout: Layout,
    /// [`GENERATION`] before it was looked up.
    generation: u64,
}

thread_local! {
    /// Counts invalidations of relations; names are looked up anew when it has moved.
    static GENERATION: Cell<u64> = const { Cell::new(0) };
    static LISTENING: Cell<bool> = const { Cell::new(false) };
}

/// Moves whenever something this process remembers of a relation may be out of date.
pub fn generation() -> u64 {
    listen();
    GENERATION.get()
}

fn listen() {
    if !LISTENING.replace(true) {
        // SAFETY: the callback stays valid; registered once per process.
        unsafe { pg_sys::CacheRegisterRelcacheCallback(Some(invalidated), Datum::null()) };
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn invalidated(_arg: Datum, _relation: Oid) {
    GENERATION.set(GENERATION.get() + 1);
}

/// A search key on an index column: equality only.
pub enum Key<'a> {
    Text(&'a str),
    Uuid(Id),
    Int(i32),
}

impl IndexedTable {
    pub const fn new(table: &'static CStr, index: &'static CStr, columns: &'static [i16]) -> Self {
        Self { table, index, columns, known: Cell::new(None) }
    }

    fn known(&self) -> Result<Known> {
        let generation = generation();
        if let Some(known) = self.known.get()
            && known.generation == generation
        {
            return Ok(known);
        }
        let known = self.look_up(generation)?;
        self.known.set(Some(known));
        Ok(known)
    }

    #[cold]
    fn look_up(&self, generation: u64) -> Result<Known> {
        let missing = || {
            VaultError::new(Kind::WrongState, "the tables of hyperion_vault are missing")
                .hint("Run CREATE EXTENSION hyperion_vault.")
        };
        // SAFETY: syscache lookups on valid strings; the relation is closed again, and its descriptor read before that.
        unsafe {
            let schema = pg_sys::get_namespace_oid(c"vault".as_ptr(), true);
            let table = pg_sys::get_relname_relid(self.table.as_ptr(), schema);
            let index = pg_sys::get_relname_relid(self.index.as_ptr(), schema);
            if table == Oid::INVALID || index == Oid::INVALID {
                return Err(missing());
            }
            let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
            let relation = pg_sys::try_table_open(table, lock);
            if relation.is_null() {
                return Err(missing());
            }
            let layout = layout((*relation).rd_att);
            pg_sys::table_close(relation, lock);
            let layout = layout.ok_or_else(|| {
                VaultError::internal("a table of the vault has a column of an unknown kind")
            })?;
            Ok(Known { table, index, layout, generation })
        }
    }

    /// Calls `visit` for each row whose leading index columns equal `keys`, until it says stop (false).
    /// Column references a tuple gives out are valid during the visit only.
    pub fn each(&self, keys: &[Key<'_>], mut visit: impl FnMut(&Tuple<'_>) -> Result<bool>) -> Result<()> {
        // SAFETY: plain C structs; the tail beyond `keys` is not read.
        let mut scan_keys: [pg_sys::ScanKeyData; 2] = unsafe { std::mem::zeroed() };
        assert!(
            keys.len() <= scan_keys.len().min(self.columns.len()),
            "more keys than the index has columns"
        );
        let search = self.search(keys);
        let search = &search[..keys.len()];
        let (known, scan) = loop {
            let known = self.known()?;
            if let Some(open) = Open::begin(&known, None) {
                // The latest snapshot, registered for as long as the scan lasts.
                break (known, Scan::begin(open.relation, known.index, search, &mut scan_keys, false));
            }
        };
        let mut tuple = scan.first;
        let outcome = loop {
            if tuple.is_null() {
                break Ok(());
            }
            // SAFETY: the tuple is the table's and stays in place until the scan goes on.
            let Some(row) = (unsafe { Tuple::new(tuple, &known.layout) }) else {
                break Err(damaged());
            };
            match visit(&row) {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(e) => break Err(e),
            }
            // SAFETY: the scan is open.
            tuple = unsafe { pg_sys::systable_getnext(scan.scan) };
        };
        scan.end();
        outcome
    }

    /// Calls `visit` with the row whose index columns equal `keys`, which are all of a unique index's, or with None.
    /// What the row gives out is valid during the visit only. The visit may look into other tables; it must not sleep, since
    /// this one is locked meanwhile.
    pub fn point<R>(
        &self,
        keys: &[Key<'_>],
        places: Option<Places<'_>>,
        visit: impl FnOnce(Option<&Tuple<'_>>) -> Result<R>,
    ) -> Result<R> {
        let (known, hash, open) = loop {
            let known = self.known()?;
            let hash = keys.iter().fold(Hash::new(known.table.to_u32()), |hash, key| key.mix_into(hash));
            let guess = places.and_then(|places| places.guess(hash));
            if let Some(open) = Open::begin(&known, guess) {
                break (known, hash, open);
            }
        };
        // SAFETY: the tuple is pinned until `open` ends.
        let row = open.tuple().and_then(|tuple| unsafe { Tuple::new(tuple, &known.layout) });
        if let Some(row) = row.filter(|row| self.has(row, keys)) {
            let outcome = visit(Some(&row));
            open.end();
            return outcome;
        }
        open.let_go();
        // SAFETY: plain C structs; the tail beyond `keys` is not read.
        let mut scan_keys: [pg_sys::ScanKeyData; 2] = unsafe { std::mem::zeroed() };
        let search = self.search(keys);
        let scan =
            Scan::begin(open.relation, known.index, &search[..keys.len()], &mut scan_keys, open.may_borrow);
        let outcome = if scan.first.is_null() {
            visit(None)
        } else {
            // SAFETY: the tuple is pinned until the scan ends.
            match unsafe { Tuple::new(scan.first, &known.layout) } {
                Some(row) => {
                    if let Some(places) = places {
                        places.remember(hash, row.place());
                    }
                    visit(Some(&row))
                }
                None => Err(damaged()),
            }
        };
        scan.end();
        outcome
    }

    fn search(&self, keys: &[Key<'_>]) -> [Search; 2] {
        assert!(keys.len() <= self.columns.len().min(2), "more keys than the index has columns");
        let mut search = [Search::NONE; 2];
        for ((search, key), column) in search.iter_mut().zip(keys).zip(self.columns) {
            *search = Search::of(key, *column);
        }
        search
    }

    fn has(&self, row: &Tuple<'_>, keys: &[Key<'_>]) -> bool {
        keys.len() == self.columns.len()
            && keys.iter().zip(self.columns).all(|(key, column)| match key {
                // Not a compressed one: then the index is asked.
                Key::Text(text) => row.inline(*column) == Some(text.as_bytes()),
                Key::Uuid(id) => row.uuid(*column) == Some(*id),
                Key::Int(number) => row.int(*column) == Some(*number),
            })
    }
}

fn damaged() -> VaultError {
    VaultError::new(Kind::Corrupted, "stored secret cannot be authenticated")
}

impl Key<'_> {
    fn mix_into(&self, hash: Hash) -> Hash {
        match self {
            Key::Text(text) => hash.bytes(text.as_bytes()),
            Key::Uuid(id) => hash.bytes(&id.0),
            Key::Int(number) => hash.bytes(&number.to_le_bytes()),
        }
    }
}

/// A key in the server's terms.
#[derive(Clone, Copy)]
struct Search {
    column: i16,
    procedure: Oid,
    collation: Oid,
    value: Datum,
}

impl Search {
    const NONE: Self =
        Self { column: 0, procedure: Oid::INVALID, collation: Oid::INVALID, value: Datum::null() };

    fn of(key: &Key<'_>, column: i16) -> Self {
        let (procedure, collation, value) = match key {
            Key::Text(text) => (pg_sys::F_TEXTEQ, pg_sys::C_COLLATION_OID, datum::varlena(text.as_bytes())),
            Key::Uuid(id) => (pg_sys::F_UUID_EQ, Oid::INVALID, datum::uuid(*id)),
            Key::Int(value) => (pg_sys::F_INT4EQ, Oid::INVALID, Datum::from(*value)),
        };
        Self { column, procedure: Oid::from(procedure), collation, value }
    }
}

/// The server's functions as they are, without the guard that the bindings put around each call: a point read calls
/// eight of them, and the guards would cost as much as an index descent. They are called inside one guard, in closures
/// over whose frames an ERROR may jump: nothing to drop in them, and nothing that panics.
mod raw {
    use pgrx::pg_sys::{
        AttrNumber, BlockNumber, Buffer, Datum, ForkNumber, HeapTuple, LOCKMODE, Oid, RegProcedure, Relation,
        ScanKey, Snapshot, StrategyNumber, SysScanDesc,
    };

    unsafe extern "C-unwind" {
        pub fn LockRelationOid(relation: Oid, mode: LOCKMODE);
        pub fn UnlockRelationOid(relation: Oid, mode: LOCKMODE);
        pub fn table_open(relation: Oid, mode: LOCKMODE) -> Relation;
        pub fn table_close(relation: Relation, mode: LOCKMODE);
        pub fn RelationGetNumberOfBlocksInFork(relation: Relation, fork: ForkNumber::Type) -> BlockNumber;
        pub fn ActiveSnapshotSet() -> bool;
        pub fn GetSnapshotData(snapshot: Snapshot) -> Snapshot;
        pub fn heap_fetch(
            relation: Relation,
            snapshot: Snapshot,
            tuple: HeapTuple,
            buffer: *mut Buffer,
            keep_buffer: bool,
        ) -> bool;
        pub fn ReleaseBuffer(buffer: Buffer);
        pub fn ScanKeyEntryInitialize(
            entry: ScanKey,
            flags: i32,
            attribute: AttrNumber,
            strategy: StrategyNumber,
            subtype: Oid,
            collation: Oid,
            procedure: RegProcedure,
            argument: Datum,
        );
        pub fn systable_beginscan(
            heap: Relation,
            index: Oid,
            index_ok: bool,
            snapshot: Snapshot,
            keys: i32,
            key: ScanKey,
        ) -> SysScanDesc;
        pub fn systable_getnext(scan: SysScanDesc) -> HeapTuple;
        pub fn systable_endscan(scan: SysScanDesc);
    }
}

const LOCK: pg_sys::LOCKMODE = pg_sys::AccessShareLock as pg_sys::LOCKMODE;

/// Runs `f` with ERRORs of the server caught at its end rather than at each call.
///
/// # Safety
/// `f` has nothing to drop, and does not panic.
unsafe fn guarded<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(feature = "testing")]
    GUARDS.set(GUARDS.get() + 1);
    // SAFETY: as the caller promises; main thread (checked inside).
    unsafe { pg_sys::ffi::pg_guard_ffi_boundary(f) }
}

#[cfg(feature = "testing")]
thread_local! {
    /// Guards of this file that were entered, for the tests of what a read costs.
    pub static GUARDS: Cell<u64> = const { Cell::new(0) };
}

thread_local! {
    /// The latest snapshot of a point read. Neither active nor registered: it is used while another one is active, which
    /// keeps the rows that this one sees from being vacuumed away; and only between two calls, so that a read inside a read
    /// may take it anew.
    static LATEST: UnsafeCell<MaybeUninit<pg_sys::SnapshotData>> = const { UnsafeCell::new(MaybeUninit::zeroed()) };
}

/// A table, locked and open; and the row at the place that was guessed, if one is visible there, with its page pinned.
/// Ended by [`Open::end`] or [`Scan::end`], or by the transaction's end if an error unwinds.
struct Open {
    relation: pg_sys::Relation,
    tuple: UnsafeCell<pg_sys::HeapTupleData>,
    buffer: Cell<pg_sys::Buffer>,
    /// Whether some snapshot is active, so that [`LATEST`] is enough for this read.
    may_borrow: bool,
}

impl Open {
    /// Locks and opens, unless taking the lock made this process hear that what it knew of the relations is out of date.
    ///
    /// The lock first, the trust in a remembered oid after: a session that slept in the middle of a statement (the
    /// key service is asked without any lock) may wake up in a world where the extension was dropped and made anew.
    fn begin(known: &Known, guess: Option<Place>) -> Option<Self> {
        let latest = LATEST.with(|latest| latest.get().cast::<pg_sys::SnapshotData>());
        // SAFETY: `guarded` has plain values only. The number of a relation that is gone can be locked like any other;
        // the lock keeps the oids valid. All-zero is an MVCC snapshot without arrays, which the server makes at the
        // first use. The block exists (`block_exists`); a line pointer beyond the page's is no row; the tuple points
        // into a page that stays pinned.
        unsafe {
            guarded(move || {
                raw::LockRelationOid(known.table, LOCK);
                if GENERATION.get() != known.generation {
                    raw::UnlockRelationOid(known.table, LOCK);
                    return None;
                }
                let relation = raw::table_open(known.table, pg_sys::NoLock as pg_sys::LOCKMODE);
                let mut tuple = pg_sys::HeapTupleData {
                    t_len: 0,
                    t_self: std::mem::zeroed(),
                    t_tableOid: known.table,
                    t_data: std::ptr::null_mut(),
                };
                let mut buffer = 0;
                let may_borrow = raw::ActiveSnapshotSet();
                if let Some(place) = guess
                    && may_borrow
                    && (*(*relation).rd_rel).relam == pg_sys::HEAP_TABLE_AM_OID
                    && block_exists(relation, place.block)
                {
                    tuple.t_self.ip_blkid.bi_hi = (place.block >> 16) as u16;
                    tuple.t_self.ip_blkid.bi_lo = place.block as u16;
                    tuple.t_self.ip_posid = place.offset;
                    let snapshot = raw::GetSnapshotData(latest);
                    if !raw::heap_fetch(relation, snapshot, &mut tuple, &mut buffer, false) {
                        buffer = 0;
                    }
                }
                Some(Self { relation, tuple: UnsafeCell::new(tuple), buffer: Cell::new(buffer), may_borrow })
            })
        }
    }

    fn tuple(&self) -> Option<pg_sys::HeapTuple> {
        (self.buffer.get() != 0).then(|| self.tuple.get())
    }

    /// Gives up the page, not the table.
    fn let_go(&self) {
        let buffer = self.buffer.replace(0);
        if buffer != 0 {
            // SAFETY: pinned by `begin`; nothing refers to the page any more.
            unsafe { guarded(move || raw::ReleaseBuffer(buffer)) };
        }
    }

    fn end(self) {
        let (relation, buffer) = (self.relation, self.buffer.get());
        // SAFETY: pinned and opened by `begin`; the lock is given back with the relation.
        unsafe {
            guarded(move || {
                raw::ReleaseBuffer(buffer);
                raw::table_close(relation, LOCK);
            });
        }
    }
}

/// Whether the table's file has this block, so that reading it is no error: a guess may be of a file that was longer.
///
/// The server remembers a file's length for the time being, and forgets it when it hears that the file was cut. Before it
/// is cut everyone is told, and it is cut under a lock that excludes ours: so what is remembered now, with
/// the lock taken and messages heard, the file still has.
///
/// # Safety
/// Inside `guarded`; the relation is open, and was locked after it was last unlocked.
unsafe fn block_exists(relation: pg_sys::Relation, block: pg_sys::BlockNumber) -> bool {
    let main = pg_sys::ForkNumber::MAIN_FORKNUM;
    // SAFETY: as the caller promises; a file handle of an open relation is null or valid.
    unsafe {
        let file = (*relation).rd_smgr;
        let remembered = if file.is_null() {
            pg_sys::InvalidBlockNumber
        } else {
            (*file).smgr_cached_nblocks[main as usize]
        };
        if remembered != pg_sys::InvalidBlockNumber && block < remembered {
            return true;
        }
        block < raw::RelationGetNumberOfBlocksInFork(relation, main)
    }
}

/// An open scan with its first row. Ended by [`Scan::end`], or by the transaction's end if an error unwinds.
struct Scan {
    relation: pg_sys::Relation,
    scan: pg_sys::SysScanDesc,
    first: pg_sys::HeapTuple,
}

impl Scan {
    /// On a table that is locked and open. `borrow`: the scan is for one row, and [`LATEST`] is enough for it.
    fn begin(
        relation: pg_sys::Relation,
        index: Oid,
        search: &[Search],
        keys: &mut [pg_sys::ScanKeyData; 2],
        borrow: bool,
    ) -> Self {
        let keys = keys.as_mut_ptr();
        let latest = LATEST.with(|latest| latest.get().cast::<pg_sys::SnapshotData>());
        // SAFETY: `guarded` has plain values only. The scan keys name the table's columns behind the index's first ones,
        // as the catalog interface wants for `indexOK`, with the equality function of their type; no snapshot (null)
        // means the latest one, registered by the scan.
        unsafe {
            guarded(move || {
                for (i, Search { column, procedure, collation, value }) in search.iter().enumerate() {
                    let equal = pg_sys::BTEqualStrategyNumber as pg_sys::StrategyNumber;
                    raw::ScanKeyEntryInitialize(
                        keys.add(i),
                        0,
                        *column,
                        equal,
                        Oid::INVALID,
                        *collation,
                        *procedure,
                        *value,
                    );
                }
                let snapshot = if borrow { raw::GetSnapshotData(latest) } else { std::ptr::null_mut() };
                let count = search.len() as i32;
                let scan = raw::systable_beginscan(relation, index, true, snapshot, count, keys);
                Self { relation, scan, first: raw::systable_getnext(scan) }
            })
        }
    }

    fn end(self) {
        // SAFETY: as in `begin`; scan and relation are open, and the lock is given back with the relation.
        unsafe {
            guarded(move || {
                raw::systable_endscan(self.scan);
                raw::table_close(self.relation, LOCK);
            });
        }
    }
}
