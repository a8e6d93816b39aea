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

    /// Locks the table and gives its oid and its index's, which the lock keeps valid.
    ///
    /// The lock first, the trust in a remembered oid after: a session that slept in the middle of a statement (the
    /// key service is asked without any lock) may wake up in a world where the extension was dropped and made anew.
    fn lock(&self) -> Result<(Oid, Oid)> {
        loop {
            let (table, index) = self.oids()?;
            // SAFETY: the number of a relation that is gone can be locked like any other.
            unsafe { pg_sys::LockRelationOid(table, pg_sys::AccessShareLock as i32) };
            // Taking the lock made this process hear of all changes committed before.
            if self.known.get().is_some_and(|(_, _, seen)| seen == GENERATION.get()) {
                return Ok((table, index));
            }
            // SAFETY: the lock just taken.
            unsafe { pg_sys::UnlockRelationOid(table, pg_sys::AccessShareLock as i32) };
        }
    }

    /// Calls `visit` for each row whose leading index columns equal `keys`, until it says stop (false).
    /// Column references a tuple gives out are valid during the visit only.
    pub fn each(&self, keys: &[Key<'_>], mut visit: impl FnMut(&Tuple) -> Result<bool>) -> Result<()> {
        let (table, index) = self.lock()?;
        // SAFETY: the relation is locked, and closed and unlocked below (by the transaction's end if an error
        // unwinds); the scan keys name the table's columns behind the index's first
        // ones, as the catalog interface wants for `indexOK`, with the equality function of their type; the snapshot
        // (null) means the latest one, registered by the scan.
        unsafe {
            let relation = pg_sys::table_open(table, pg_sys::NoLock as i32);
            let mut scan_keys: [pg_sys::ScanKeyData; 2] = std::mem::zeroed();
            assert!(
                keys.len() <= scan_keys.len().min(self.columns.len()),
                "more keys than the index has columns"
            );
            for ((scan_key, key), column) in scan_keys.iter_mut().zip(keys).zip(self.columns) {
                let (procedure, collation, value) = match key {
                    Key::Text(text) => (
                        pg_sys::Oid::from(pg_sys::F_TEXTEQ),
                        pg_sys::C_COLLATION_OID,
                        datum::varlena(text.as_bytes()),
                    ),
                    Key::Uuid(id) => (pg_sys::Oid::from(pg_sys::F_UUID_EQ), Oid::INVALID, datum::uuid(*id)),
                    Key::Int(value) => {
                        (pg_sys::Oid::from(pg_sys::F_INT4EQ), Oid::INVALID, Datum::from(*value))
                    }
                };
                pg_sys::ScanKeyEntryInitialize(
                    scan_key,
                    0,
                    *column,
                    pg_sys::BTEqualStrategyNumber as u16,
                    Oid::INVALID,
                    collation,
                    procedure,
                    value,
                );
            }
            let scan = pg_sys::systable_beginscan(
                relation,
                index,
                true,
                std::ptr::null_mut(),
                keys.len() as i32,
                scan_keys.as_mut_ptr(),
            );
            let outcome = loop {
                let tuple = pg_sys::systable_getnext(scan);
                if tuple.is_null() {
                    break Ok(());
                }
                match visit(&Tuple { tuple, desc: (*relation).rd_att }) {
                    Ok(true) => {}
                    Ok(false) => break Ok(()),
                    Err(e) => break Err(e),
                }
            };
            pg_sys::systable_endscan(scan);
            pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
            outcome
        }
    }
}

/// A row during a visit.
pub struct Tuple {
    tuple: pg_sys::HeapTuple,
    desc: pg_sys::TupleDesc,
}

impl Tuple {
    /// A column as it is stored; by-reference values are valid during the visit only.
    pub fn raw(&self, column: i16) -> Option<Datum> {
        let mut null = false;
        // SAFETY: the tuple is pinned during the visit; columns are numbered as in sql/20_schema.sql, and the server
        // checks the number against the descriptor.
        let value = unsafe { pg_sys::heap_getattr(self.tuple, i32::from(column), self.desc, &mut null) };
        (!null).then_some(value)
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
