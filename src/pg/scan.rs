//! Direct index scans of the extension's own tables: the read path, without SPI.
//!
//! The server's catalog-scan interface reads any table through any index under the *latest* snapshot, also while a
//! parallel plan is running (where `GetLatestSnapshot` refuses), and sees the transaction's own changes. No planner,
//! no operator lookup, no row-level security, no privilege check: who may read was decided before.
//!
//! Client backends and database workers, main thread, primary or standby.

use std::cell::Cell;
use std::ffi::CStr;

use hyperion_vault_core::envelope::Id;
use pgrx::pg_sys::{self, Datum, Oid};

use super::datum;
use crate::error::{Kind, Result, VaultError};

/// A table of schema `vault` and one of its indexes, by name; oids are looked up once and again after any change to
/// the relation cache that might concern them. Make it a `thread_local`.
pub struct IndexedTable {
    table: &'static CStr,
    index: &'static CStr,
    /// The table's column behind each column of the index, as in sql/20_schema.sql. Not asked of the index, which would
    /// have to be opened and locked once more for it; the server refuses a number that is not one of them.
    columns: &'static [i16],
    known: Cell<Option<(Oid, Oid, u64)>>,
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

    fn oids(&self) -> Result<(Oid, Oid)> {
        let generation = generation();
        if let Some((table, index, seen)) = self.known.get()
            && seen == generation
        {
            return Ok((table, index));
        }
        // SAFETY: syscache lookups on valid strings.
        let (table, index) = unsafe {
            let schema = pg_sys::get_namespace_oid(c"vault".as_ptr(), true);
            (
                pg_sys::get_relname_relid(self.table.as_ptr(), schema),
                pg_sys::get_relname_relid(self.index.as_ptr(), schema),
            )
        };
        if table == Oid::INVALID || index == Oid::INVALID {
            return Err(VaultError::new(Kind::WrongState, "the tables of hyperion_vault are missing")
                .hint("Run CREATE EXTENSION hyperion_vault."));
        }
        self.known.set(Some((table, index, generation)));
        Ok((table, index))
    }

    /// Calls `visit` for each row whose leading index columns equal `keys`, until it says stop (false).
    /// Column references a tuple gives out are valid during the visit only.
    pub fn each(&self, keys: &[Key<'_>], mut visit: impl FnMut(&Tuple) -> Result<bool>) -> Result<()> {
        // SAFETY: plain C structs; the tail beyond `keys` is not read.
        let mut scan_keys: [pg_sys::ScanKeyData; 2] = unsafe { std::mem::zeroed() };
        assert!(
            keys.len() <= scan_keys.len().min(self.columns.len()),
            "more keys than the index has columns"
        );
        let mut search = [Search::NONE; 2];
        for ((search, key), column) in search.iter_mut().zip(keys).zip(self.columns) {
            *search = Search::of(key, *column);
        }
        let search = &search[..keys.len()];
        let scan = loop {
            let (table, index) = self.oids()?;
            let seen = GENERATION.get();
            if let Some(scan) = Scan::begin(table, index, search, &mut scan_keys, seen) {
                break scan;
            }
        };
        let mut tuple = scan.first;
        let outcome = loop {
            if tuple.is_null() {
                break Ok(());
            }
            // SAFETY: the tuple and the relation's descriptor stay in place until the scan goes on.
            let row = unsafe { Tuple::new(tuple, (*scan.relation).rd_att) };
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
}

/// The server's functions as they are, without the guard that the bindings put around each call: a point read calls
/// eight of them, and the guards would cost as much as the index descent. [`Scan`] calls them inside one guard.
mod raw {
    use pgrx::pg_sys::{
        AttrNumber, Datum, HeapTuple, LOCKMODE, Oid, RegProcedure, Relation, ScanKey, Snapshot,
        StrategyNumber, SysScanDesc,
    };

    unsafe extern "C-unwind" {
        pub fn LockRelationOid(relation: Oid, mode: LOCKMODE);
        pub fn UnlockRelationOid(relation: Oid, mode: LOCKMODE);
        pub fn table_open(relation: Oid, mode: LOCKMODE) -> Relation;
        pub fn table_close(relation: Relation, mode: LOCKMODE);
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

/// An open scan with its first row. Ended by [`Scan::end`], or by the transaction's end if an error unwinds.
struct Scan {
    relation: pg_sys::Relation,
    scan: pg_sys::SysScanDesc,
    first: pg_sys::HeapTuple,
}

impl Scan {
    /// Locks the table and begins, unless taking the lock made this process hear that what it knew of the relations
    /// (as of generation `seen`) is out of date.
    ///
    /// The lock first, the trust in a remembered oid after: a session that slept in the middle of a statement (the
    /// key service is asked without any lock) may wake up in a world where the extension was dropped and made anew.
    fn begin(
        table: Oid,
        index: Oid,
        search: &[Search],
        keys: &mut [pg_sys::ScanKeyData; 2],
        seen: u64,
    ) -> Option<Self> {
        let keys = keys.as_mut_ptr();
        let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
        // SAFETY: one guard for all: an ERROR in any of these calls jumps to it, over frames of this closure that hold
        // nothing to drop. The number of a relation that is gone can be locked like any other; the lock keeps the oids
        // valid; the scan keys name the table's columns behind the index's first ones, as the catalog interface wants
        // for `indexOK`, with the equality function of their type; the snapshot (null) means the latest one,
        // registered by the scan.
        unsafe {
            pg_sys::ffi::pg_guard_ffi_boundary(move || {
                raw::LockRelationOid(table, lock);
                if GENERATION.get() != seen {
                    raw::UnlockRelationOid(table, lock);
                    return None;
                }
                let relation = raw::table_open(table, pg_sys::NoLock as pg_sys::LOCKMODE);
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
                let count = search.len() as i32;
                let scan = raw::systable_beginscan(relation, index, true, std::ptr::null_mut(), count, keys);
                Some(Self { relation, scan, first: raw::systable_getnext(scan) })
            })
        }
    }

    fn end(self) {
        // SAFETY: as in `begin`; scan and relation are open, and the lock is given back with the relation.
        unsafe {
            pg_sys::ffi::pg_guard_ffi_boundary(move || {
                raw::systable_endscan(self.scan);
                raw::table_close(self.relation, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
            });
        }
    }
}

/// More than any of our tables has.
const MAX_COLUMNS: usize = 32;

/// A row during a visit, taken apart once: columns behind others of varying length are found from the row's start.
pub struct Tuple {
    values: [Datum; MAX_COLUMNS],
    nulls: [bool; MAX_COLUMNS],
    columns: usize,
}

impl Tuple {
    /// # Safety
    /// The tuple is one of a table with this descriptor, and outlives this.
    unsafe fn new(tuple: pg_sys::HeapTuple, desc: pg_sys::TupleDesc) -> Self {
        let mut values = [Datum::null(); MAX_COLUMNS];
        let mut nulls = [true; MAX_COLUMNS];
        // SAFETY: as the caller promises; there is room for every column (checked).
        let columns = unsafe {
            let columns = (*desc).natts as usize;
            assert!(columns <= MAX_COLUMNS, "a table has more columns than expected");
            pg_sys::heap_deform_tuple(tuple, desc, values.as_mut_ptr(), nulls.as_mut_ptr());
            columns
        };
        Self { values, nulls, columns }
    }

    /// A column as it is stored; by-reference values are valid during the visit only.
    pub fn raw(&self, column: i16) -> Option<Datum> {
        let index = usize::try_from(column).ok()?.checked_sub(1).filter(|index| *index < self.columns)?;
        (!self.nulls[index]).then_some(self.values[index])
    }

    pub fn uuid(&self, column: i16) -> Option<Id> {
        // SAFETY: the column is uuid.
        self.raw(column).map(|d| unsafe { datum::uuid_from(d) })
    }

    pub fn int(&self, column: i16) -> Option<i32> {
        self.raw(column).map(|d| d.value() as i32)
    }

    pub fn timestamp(&self, column: i16) -> Option<i64> {
        self.raw(column).map(|d| d.value() as i64)
    }

    /// The bytes of a text or bytea column, detoasted.
    pub fn bytes(&self, column: i16) -> Option<&[u8]> {
        // SAFETY: the column is a varlena, in place during the visit; a detoasted copy lives in the function's
        // own memory, longer.
        self.raw(column).map(|d| unsafe { datum::varlena_bytes(d) })
    }

    pub fn text(&self, column: i16) -> Option<&str> {
        self.bytes(column).and_then(|bytes| std::str::from_utf8(bytes).ok())
    }

    pub fn cidr_array(&self, column: i16) -> Option<Option<Vec<hyperion_vault_core::IpNet>>> {
        // SAFETY: the column is cidr[].
        self.raw(column).map(|d| unsafe { datum::cidr_array(d) })
    }
}
