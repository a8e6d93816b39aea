//! Reading the extension's own tables, without SQL.
//!
//! The server's catalog-scan interface reads any table through any index under the *latest* snapshot, also while a
//! parallel plan is running (where `GetLatestSnapshot` refuses), and sees the transaction's own changes. No planner,
//! no operator lookup, no row-level security, no privilege check: who may read was decided before.
//!
//! A point read ([`Table::point`]) goes to the place where the row was last seen, if somebody has seen it: a row
//! that is there, visible under the latest snapshot and has the key that is looked for is the one the unique index would
//! lead to. Anything else, and it takes the index.
//!
//! Client backends and database workers, main thread, primary or standby. The trap it avoids: a visit that writes to the
//! table it is visiting; collect first, then write.

use std::cell::{Cell, UnsafeCell};
use std::mem::MaybeUninit;
use std::rc::Rc;

use hyperion_vault_core::cache::{Hash, Place, Places};
use hyperion_vault_core::envelope::Id;
use pgrx::pg_sys::{self, Datum, Oid};

use super::datum;
use super::table::Known;
pub use super::table::{Index, Table, generation};
use super::tuple::Tuple;
use crate::error::{Kind, Result, VaultError};

/// A value that an indexed column is compared with.
#[derive(Clone, Copy)]
pub enum Key<'a> {
    Text(&'a str),
    Uuid(Id),
    Bool(bool),
    Short(i16),
    Int(i32),
    Long(i64),
    /// `timestamptz`.
    Time(i64),
    Oid(Oid),
}

/// How a column compares with a key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Lt,
    Le,
    Eq,
    Ge,
    Gt,
}

/// A condition on a column of an index, which is counted from 0.
#[derive(Clone, Copy)]
pub struct Bound<'a> {
    pub column: usize,
    pub op: Op,
    pub key: Key<'a>,
}

/// Conditions of equality on the first columns of an index.
pub fn equal<'a, const N: usize>(keys: [Key<'a>; N]) -> [Bound<'a>; N] {
    let mut column = 0;
    keys.map(|key| {
        column += 1;
        Bound { column: column - 1, op: Op::Eq, key }
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Forward,
    Backward,
}

/// The most conditions of a scan.
const MAX_BOUNDS: usize = 4;

/// What is committed now and what this transaction has written, held for several scans.
pub struct Snapshot(pg_sys::Snapshot);

impl Snapshot {
    pub fn latest() -> Self {
        // SAFETY: the catalog's may be taken in parallel mode; asked for no relation in particular, it is never an older
        // one. Registering makes a copy.
        Self(unsafe { pg_sys::RegisterSnapshot(pg_sys::GetCatalogSnapshot(Oid::INVALID)) })
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: registered above; while an error unwinds, the abort gives it back.
            unsafe { pg_sys::UnregisterSnapshot(self.0) };
        }
    }
}

impl Table {
    /// Calls `visit` for the rows within the bounds in the order of an index, until it says stop (false). Column
    /// references that a tuple gives out are valid during the visit only; nothing is written to the table meanwhile.
    pub fn scan(
        &self,
        index: usize,
        bounds: &[Bound<'_>],
        direction: Direction,
        visit: impl FnMut(&Tuple<'_>) -> Result<bool>,
    ) -> Result<()> {
        let (known, open) = self.open()?;
        let columns = self.indexes[index].columns;
        assert!(bounds.len() <= MAX_BOUNDS, "more conditions than a scan takes");
        // SAFETY: plain C structs; the tail beyond the bounds is not read.
        let mut keys: [pg_sys::ScanKeyData; MAX_BOUNDS] = unsafe { std::mem::zeroed() };
        for (entry, bound) in keys.iter_mut().zip(bounds) {
            let search = Search::of(&bound.key, bound.op, known.number(columns[bound.column]));
            // SAFETY: a valid entry; the procedure compares the key's type.
            unsafe { search.write(entry) };
        }
        let direction = match direction {
            Direction::Forward => pg_sys::ScanDirection::ForwardScanDirection,
            Direction::Backward => pg_sys::ScanDirection::BackwardScanDirection,
        };
        // SAFETY: the index is one of the table's, both are open and locked; no snapshot (null) means the latest one,
        // registered by the scan; the keys outlive it.
        unsafe {
            let index = pg_sys::index_open(known.indexes[index], LOCK);
            let scan = pg_sys::systable_beginscan_ordered(
                open.relation,
                index,
                std::ptr::null_mut(),
                bounds.len() as i32,
                keys.as_mut_ptr(),
            );
            let outcome = visit_all(&known, visit, || pg_sys::systable_getnext_ordered(scan, direction));
            pg_sys::systable_endscan_ordered(scan);
            pg_sys::index_close(index, LOCK);
            open.end();
            outcome
        }
    }

    /// The first row that `find` takes, within the bounds in the order of an index.
    pub fn find<R>(
        &self,
        index: usize,
        bounds: &[Bound<'_>],
        direction: Direction,
        mut find: impl FnMut(&Tuple<'_>) -> Result<Option<R>>,
    ) -> Result<Option<R>> {
        let mut found = None;
        self.scan(index, bounds, direction, |row| {
            found = find(row)?;
            Ok(found.is_none())
        })?;
        Ok(found)
    }

    /// Calls `visit` for every row, in no order, until it says stop (false): as of the snapshot, or of now.
    pub fn all(
        &self,
        snapshot: Option<&Snapshot>,
        visit: impl FnMut(&Tuple<'_>) -> Result<bool>,
    ) -> Result<()> {
        let (known, open) = self.open()?;
        let snapshot = snapshot.map_or(std::ptr::null_mut(), |snapshot| snapshot.0);
        // SAFETY: the table is open and locked; the snapshot is registered, by its owner or by the scan.
        unsafe {
            let none = std::ptr::null_mut();
            let scan = pg_sys::systable_beginscan(open.relation, Oid::INVALID, false, snapshot, 0, none);
            let outcome = visit_all(&known, visit, || pg_sys::systable_getnext(scan));
            pg_sys::systable_endscan(scan);
            open.end();
            outcome
        }
    }

    /// Whether there is any row now.
    pub fn is_empty(&self) -> Result<bool> {
        let mut empty = true;
        self.all(None, |_| {
            empty = false;
            Ok(false)
        })?;
        Ok(empty)
    }

    /// Calls `visit` with two tuples that a trigger was given, null for one that there is not.
    ///
    /// # Safety
    /// The tuples are the relation's, and in place during the visit.
    pub(super) unsafe fn visit_tuples(
        &self,
        relation: Oid,
        old: pg_sys::HeapTuple,
        new: pg_sys::HeapTuple,
        visit: impl FnOnce(Option<&Tuple<'_>>, Option<&Tuple<'_>>) -> Result<()>,
    ) -> Result<()> {
        let known = self.known()?;
        if known.table != relation {
            return Err(VaultError::new(Kind::WrongState, "a trigger of the extension is on another table"));
        }
        let row = |tuple: pg_sys::HeapTuple| {
            if tuple.is_null() {
                return Ok(None);
            }
            // SAFETY: as the caller promises.
            unsafe { Tuple::new(tuple, &known.layout) }.map(Some).ok_or_else(damaged)
        };
        let (old, new) = (row(old)?, row(new)?);
        visit(old.as_ref(), new.as_ref())
    }

    fn open(&self) -> Result<(Rc<Known>, Open)> {
        loop {
            let known = self.known()?;
            if let Some(open) = Open::begin(&known, None) {
                return Ok((known, open));
            }
        }
    }

    /// Calls `visit` with the row whose index columns equal `keys`, which are all of a unique index's, or with None.
    /// What the row gives out is valid during the visit only. The visit may look into other tables; it must not sleep, since
    /// this one is locked meanwhile.
    pub fn point<R>(
        &self,
        index: usize,
        keys: &[Key<'_>],
        places: Option<Places<'_>>,
        visit: impl FnOnce(Option<&Tuple<'_>>) -> Result<R>,
    ) -> Result<R> {
        let columns = self.indexes[index].columns;
        assert!(keys.len() == columns.len() && keys.len() <= 2, "a point read has a key for each column");
        let (known, hash, open) = loop {
            let known = self.known()?;
            let hash = place_of(&known, keys);
            let guess = places.and_then(|places| places.guess(hash));
            if let Some(open) = Open::begin(&known, guess) {
                break (known, hash, open);
            }
        };
        // SAFETY: the tuple is pinned until `open` ends.
        let row = open.tuple().and_then(|tuple| unsafe { Tuple::new(tuple, &known.layout) });
        if let Some(row) = row.filter(|row| has(row, columns, keys, false)) {
            let outcome = visit(Some(&row));
            open.end();
            return outcome;
        }
        open.let_go();
        // SAFETY: plain C structs; the tail beyond `keys` is not read.
        let mut scan_keys: [pg_sys::ScanKeyData; 2] = unsafe { std::mem::zeroed() };
        let mut search = [Search::NONE; 2];
        for ((search, key), column) in search.iter_mut().zip(keys).zip(columns) {
            *search = Search::of(key, Op::Eq, known.number(*column));
        }
        let scan = Scan::begin(
            open.relation,
            known.indexes[index],
            &search[..keys.len()],
            &mut scan_keys,
            open.may_borrow,
        );
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
}

/// What a row with these keys is remembered by.
pub(super) fn place_of(known: &Known, keys: &[Key<'_>]) -> Hash {
    keys.iter().fold(Hash::new(known.table.to_u32()), |hash, key| key.mix_into(hash))
}

/// Whether the row has these keys in these columns. A text that is stored compressed counts as another one unless it is to
/// be `decompressed`.
pub(super) fn has(row: &Tuple<'_>, columns: &[i16], keys: &[Key<'_>], decompressed: bool) -> bool {
    keys.iter().zip(columns).all(|(key, column)| match key {
        Key::Text(text) if decompressed => row.bytes(*column) == Some(text.as_bytes()),
        Key::Text(text) => row.inline(*column) == Some(text.as_bytes()),
        Key::Uuid(id) => row.uuid(*column) == Some(*id),
        Key::Bool(value) => row.bool(*column) == Some(*value),
        Key::Short(number) => row.short(*column) == Some(*number),
        Key::Int(number) => row.int(*column) == Some(*number),
        Key::Long(number) | Key::Time(number) => row.bigint(*column) == Some(*number),
        Key::Oid(oid) => row.oid(*column) == Some(*oid),
    })
}

/// # Safety
/// `next` returns the table's tuples, each in place until it is called again, and null at the end.
unsafe fn visit_all(
    known: &Known,
    mut visit: impl FnMut(&Tuple<'_>) -> Result<bool>,
    mut next: impl FnMut() -> pg_sys::HeapTuple,
) -> Result<()> {
    loop {
        let tuple = next();
        if tuple.is_null() {
            return Ok(());
        }
        // SAFETY: as the caller promises.
        let row = unsafe { Tuple::new(tuple, &known.layout) }.ok_or_else(damaged)?;
        if !visit(&row)? {
            return Ok(());
        }
    }
}

pub(super) fn damaged() -> VaultError {
    VaultError::new(Kind::Corrupted, "stored secret cannot be authenticated")
}

impl Key<'_> {
    fn mix_into(&self, hash: Hash) -> Hash {
        match self {
            Key::Text(text) => hash.bytes(text.as_bytes()),
            Key::Uuid(id) => hash.bytes(&id.0),
            Key::Bool(value) => hash.bytes(&[u8::from(*value)]),
            Key::Short(number) => hash.bytes(&number.to_le_bytes()),
            Key::Int(number) => hash.bytes(&number.to_le_bytes()),
            Key::Long(number) | Key::Time(number) => hash.bytes(&number.to_le_bytes()),
            Key::Oid(oid) => hash.bytes(&oid.to_u32().to_le_bytes()),
        }
    }
}

/// A key in the server's terms.
#[derive(Clone, Copy)]
pub(super) struct Search {
    /// Of the table.
    column: i16,
    strategy: u16,
    procedure: Oid,
    collation: Oid,
    value: Datum,
}

impl Search {
    const NONE: Self = Self {
        column: 0,
        strategy: 0,
        procedure: Oid::INVALID,
        collation: Oid::INVALID,
        value: Datum::null(),
    };

    pub(super) fn of(key: &Key<'_>, op: Op, column: i16) -> Self {
        use pg_sys::{
            F_BOOLEQ, F_BOOLGE, F_BOOLGT, F_BOOLLE, F_BOOLLT, F_INT2EQ, F_INT2GE, F_INT2GT, F_INT2LE,
            F_INT2LT, F_INT4EQ, F_INT4GE, F_INT4GT, F_INT4LE, F_INT4LT, F_INT8EQ, F_INT8GE, F_INT8GT,
            F_INT8LE, F_INT8LT, F_OIDEQ, F_OIDGE, F_OIDGT, F_OIDLE, F_OIDLT, F_TEXT_GE, F_TEXT_GT, F_TEXT_LE,
            F_TEXT_LT, F_TEXTEQ, F_TIMESTAMPTZ_EQ, F_TIMESTAMPTZ_GE, F_TIMESTAMPTZ_GT, F_TIMESTAMPTZ_LE,
            F_TIMESTAMPTZ_LT, F_UUID_EQ, F_UUID_GE, F_UUID_GT, F_UUID_LE, F_UUID_LT,
        };
        // In the order of `Op`.
        let (procedures, collation, value) = match key {
            Key::Text(text) => (
                [F_TEXT_LT, F_TEXT_LE, F_TEXTEQ, F_TEXT_GE, F_TEXT_GT],
                pg_sys::C_COLLATION_OID,
                datum::varlena(text.as_bytes()),
            ),
            Key::Uuid(id) => {
                ([F_UUID_LT, F_UUID_LE, F_UUID_EQ, F_UUID_GE, F_UUID_GT], Oid::INVALID, datum::uuid(*id))
            }
            Key::Bool(value) => {
                ([F_BOOLLT, F_BOOLLE, F_BOOLEQ, F_BOOLGE, F_BOOLGT], Oid::INVALID, Datum::from(*value))
            }
            Key::Short(value) => {
                ([F_INT2LT, F_INT2LE, F_INT2EQ, F_INT2GE, F_INT2GT], Oid::INVALID, Datum::from(*value))
            }
            Key::Int(value) => {
                ([F_INT4LT, F_INT4LE, F_INT4EQ, F_INT4GE, F_INT4GT], Oid::INVALID, Datum::from(*value))
            }
            Key::Long(value) => {
                ([F_INT8LT, F_INT8LE, F_INT8EQ, F_INT8GE, F_INT8GT], Oid::INVALID, Datum::from(*value))
            }
            Key::Time(value) => (
                [F_TIMESTAMPTZ_LT, F_TIMESTAMPTZ_LE, F_TIMESTAMPTZ_EQ, F_TIMESTAMPTZ_GE, F_TIMESTAMPTZ_GT],
                Oid::INVALID,
                Datum::from(*value),
            ),
            Key::Oid(oid) => ([F_OIDLT, F_OIDLE, F_OIDEQ, F_OIDGE, F_OIDGT], Oid::INVALID, Datum::from(*oid)),
        };
        let (place, strategy) = match op {
            Op::Lt => (0, pg_sys::BTLessStrategyNumber),
            Op::Le => (1, pg_sys::BTLessEqualStrategyNumber),
            Op::Eq => (2, pg_sys::BTEqualStrategyNumber),
            Op::Ge => (3, pg_sys::BTGreaterEqualStrategyNumber),
            Op::Gt => (4, pg_sys::BTGreaterStrategyNumber),
        };
        Self { column, strategy: strategy as u16, procedure: Oid::from(procedures[place]), collation, value }
    }

    /// # Safety
    /// The entry is valid to be written.
    pub(super) unsafe fn write(&self, entry: pg_sys::ScanKey) {
        // SAFETY: as the caller promises; the procedure exists.
        unsafe {
            pg_sys::ScanKeyEntryInitialize(
                entry,
                0,
                self.column,
                self.strategy,
                Oid::INVALID,
                self.collation,
                self.procedure,
                self.value,
            );
        }
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
                if generation() != known.generation {
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
                if buffer != 0 {
                    raw::ReleaseBuffer(buffer);
                }
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
                for (i, Search { column, strategy, procedure, collation, value }) in search.iter().enumerate()
                {
                    raw::ScanKeyEntryInitialize(
                        keys.add(i),
                        0,
                        *column,
                        *strategy,
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
