//! SQL of our own: prepared once per backend, run inside a [`ServiceScope`] under the latest snapshot.
//!
//! The latest snapshot, not the transaction's: in a REPEATABLE READ session keys, versions and expiry are judged as
//! they are now. Plans are kept, and are safe to keep because the scope pins `search_path` whenever they are run or
//! planned anew (a caller's own `=` operator is never seen).
//!
//! Client backends and database workers, main thread; in parallel mode queries only.

use std::cell::Cell;
use std::ffi::CStr;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use hyperion_vault_core::envelope::Id;
use pgrx::pg_sys::{self, Datum, Oid};

use super::datum;
use super::scope::ServiceScope;
use super::triggers::{self, Family};
use crate::error::{Result, VaultError};

/// A statement with its parameter types. Make it a `static`: the plan is kept in it, per process.
pub struct Statement {
    sql: &'static CStr,
    types: &'static [Oid],
    /// What it writes to; None for a query.
    writes: Option<Family>,
    plan: AtomicPtr<pg_sys::_SPI_plan>,
}

impl Statement {
    /// A statement that writes to, or locks, the tables of secrets.
    pub const fn new(sql: &'static CStr, types: &'static [Oid]) -> Self {
        Self { sql, types, writes: Some(Family::Secrets), plan: AtomicPtr::new(ptr::null_mut()) }
    }

    /// A statement that writes to, or locks, the tables that say who may do what.
    pub const fn on_access(sql: &'static CStr, types: &'static [Oid]) -> Self {
        Self { sql, types, writes: Some(Family::Access), plan: AtomicPtr::new(ptr::null_mut()) }
    }

    /// One that writes to, or locks, the tables of the audit log.
    pub const fn on_log(sql: &'static CStr, types: &'static [Oid]) -> Self {
        Self { sql, types, writes: Some(Family::Log), plan: AtomicPtr::new(ptr::null_mut()) }
    }

    /// A plain SELECT: also runs while the leader executes a parallel plan, and on a standby.
    pub const fn query(sql: &'static CStr, types: &'static [Oid]) -> Self {
        Self { sql, types, writes: None, plan: AtomicPtr::new(ptr::null_mut()) }
    }
}

/// A bound parameter.
pub enum Bind<'a> {
    Text(&'a str),
    OptText(Option<&'a str>),
    Bytes(&'a [u8]),
    Uuid(Id),
    Int(i32),
    OptInt(Option<i32>),
    Bool(bool),
    Float(f64),
    Timestamp(i64),
    /// A value as it came in, of the statement's declared type.
    Raw(Option<Datum>),
}

impl Bind<'_> {
    fn datum(&self) -> Option<Datum> {
        match self {
            Bind::Text(text) => Some(datum::varlena(text.as_bytes())),
            Bind::OptText(text) => text.map(|text| datum::varlena(text.as_bytes())),
            Bind::Bytes(bytes) => Some(datum::varlena(bytes)),
            Bind::Uuid(id) => Some(datum::uuid(*id)),
            Bind::Int(value) => Some(Datum::from(*value)),
            Bind::OptInt(value) => value.map(Datum::from),
            Bind::Bool(value) => Some(Datum::from(*value)),
            Bind::Float(value) => Some(Datum::from(value.to_bits())),
            Bind::Timestamp(value) => Some(Datum::from(*value)),
            Bind::Raw(datum) => *datum,
        }
    }
}

/// An open SPI connection inside the service scope. One at a time per call of ours.
pub struct Spi {
    /// The context that was current before: results are copied there.
    caller: pg_sys::MemoryContext,
    /// Whose triggers have been looked at, last.
    looked: Cell<Option<Family>>,
    // Dropped after the connection is closed (fields drop after `drop` runs).
    scope: ServiceScope,
}

impl Spi {
    pub fn connect() -> Result<Self> {
        let scope = ServiceScope::enter()?;
        // SAFETY: a plain read; SPI_connect switches to its own context.
        let caller = unsafe { pg_sys::CurrentMemoryContext };
        // SAFETY: no arguments; nesting is allowed.
        if unsafe { pg_sys::SPI_connect() } != pg_sys::SPI_OK_CONNECT as i32 {
            return Err(VaultError::internal("SPI_connect failed"));
        }
        Ok(Self { caller, looked: Cell::new(None), scope })
    }

    /// Looks at the tables' triggers, and takes the lock on the tables that writing takes, until the end of the
    /// transaction. The first statement that writes does it by itself.
    pub fn begin_writing(&self, family: Family) -> Result<()> {
        if self.looked.replace(Some(family)) != Some(family) {
            triggers::refuse_foreign(family)?;
        }
        Ok(())
    }

    /// See [`ServiceScope::prefer_index_order`].
    pub fn prefer_index_order(&self) {
        self.scope.prefer_index_order();
    }

    /// Runs the statement; what its rows (of a SELECT or RETURNING) give out stays valid as long as they do.
    pub fn run(&self, statement: &Statement, binds: &[Bind<'_>]) -> Result<Rows<'_>> {
        assert!(binds.len() == statement.types.len(), "parameters do not match the statement");
        let read_only = statement.writes.is_none();
        if let Some(family) = statement.writes {
            self.begin_writing(family)?;
        }
        let plan = prepared(statement)?;
        let mut nulls = vec![b' ' as std::ffi::c_char; binds.len()];
        let mut values: Vec<Datum> = binds
            .iter()
            .zip(&mut nulls)
            .map(|(bind, null)| {
                bind.datum().unwrap_or_else(|| {
                    *null = b'n' as std::ffi::c_char;
                    Datum::null()
                })
            })
            .collect();
        // SAFETY: the plan is saved and valid; values and nulls have one entry per parameter; the snapshot is
        // registered for the duration (SPI pushes a copy of it). An error unwinds, and the abort releases it.
        unsafe {
            // Both are taken now. The catalog's is the one that may be taken in parallel mode; asked for no relation in
            // particular, it is never an older one.
            let snapshot = pg_sys::RegisterSnapshot(if read_only {
                pg_sys::GetCatalogSnapshot(Oid::INVALID)
            } else {
                pg_sys::GetLatestSnapshot()
            });
            let code = pg_sys::SPI_execute_snapshot(
                plan,
                values.as_mut_ptr(),
                nulls.as_ptr(),
                snapshot,
                ptr::null_mut(),
                read_only,
                true,
                0,
            );
            pg_sys::UnregisterSnapshot(snapshot);
            if code < 0 {
                return Err(VaultError::internal(format!("SPI_execute_snapshot failed with code {code}")));
            }
            Ok(Rows {
                table: pg_sys::SPI_tuptable,
                count: pg_sys::SPI_processed as usize,
                caller: self.caller,
                _connection: std::marker::PhantomData,
            })
        }
    }
}

impl Drop for Spi {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: the connection is ours and open; while an error unwinds, the abort closes it instead.
            unsafe { pg_sys::SPI_finish() };
        }
    }
}

fn prepared(statement: &Statement) -> Result<pg_sys::SPIPlanPtr> {
    let kept = statement.plan.load(Ordering::Relaxed);
    if !kept.is_null() {
        return Ok(kept);
    }
    // SAFETY: valid SQL and types; SPI_keepplan moves the plan out of the connection's memory.
    unsafe {
        let plan = pg_sys::SPI_prepare(
            statement.sql.as_ptr(),
            statement.types.len() as i32,
            statement.types.as_ptr().cast_mut(),
        );
        if plan.is_null() || pg_sys::SPI_keepplan(plan) != 0 {
            return Err(VaultError::internal("SPI_prepare failed"));
        }
        statement.plan.store(plan, Ordering::Relaxed);
        Ok(plan)
    }
}

/// The result of a statement.
pub struct Rows<'a> {
    table: *mut pg_sys::SPITupleTable,
    count: usize,
    caller: pg_sys::MemoryContext,
    _connection: std::marker::PhantomData<&'a Spi>,
}

impl<'a> Rows<'a> {
    /// Rows returned, or changed by a statement that returns none.
    pub fn len(&self) -> usize {
        self.count
    }

    pub fn iter(&self) -> impl Iterator<Item = Row<'_>> {
        let rows = if self.table.is_null() { 0 } else { self.count };
        (0..rows).map(|index| Row { rows: self, index })
    }

    pub fn first(&self) -> Option<Row<'_>> {
        self.iter().next()
    }
}

impl Drop for Rows<'_> {
    fn drop(&mut self) {
        if !self.table.is_null() && !std::thread::panicking() {
            // SAFETY: the table belongs to the connection, which the borrow keeps open, and is freed once; rows and
            // their columns borrow from `self`, and raw datums are used while it lasts.
            unsafe { pg_sys::SPI_freetuptable(self.table) };
        }
    }
}

/// One row; columns count from 1, as in SPI.
pub struct Row<'a> {
    rows: &'a Rows<'a>,
    index: usize,
}

impl Row<'_> {
    pub fn raw(&self, column: i32) -> Option<Datum> {
        let mut null = false;
        // SAFETY: the table has `count` tuples; SPI_getbinval reports a column that does not exist as NULL.
        let value = unsafe {
            let tuple = *(*self.rows.table).vals.add(self.index);
            pg_sys::SPI_getbinval(tuple, (*self.rows.table).tupdesc, column, &mut null)
        };
        (!null).then_some(value)
    }

    pub fn bytes(&self, column: i32) -> Option<&[u8]> {
        // SAFETY: the statement's column is bytea; it lives as long as the connection.
        self.raw(column).map(|d| unsafe { datum::varlena_bytes(d) })
    }

    pub fn uuid(&self, column: i32) -> Option<Id> {
        // SAFETY: the statement's column is uuid.
        self.raw(column).map(|d| unsafe { datum::uuid_from(d) })
    }

    pub fn int(&self, column: i32) -> Option<i32> {
        self.raw(column).map(|d| d.value() as i32)
    }

    pub fn bigint(&self, column: i32) -> Option<i64> {
        self.raw(column).map(|d| d.value() as i64)
    }

    /// A `timestamptz` column.
    pub fn timestamp(&self, column: i32) -> Option<i64> {
        self.bigint(column)
    }

    pub fn text(&self, column: i32) -> Option<&str> {
        self.bytes(column).and_then(|bytes| std::str::from_utf8(bytes).ok())
    }

    pub fn bool(&self, column: i32) -> Option<bool> {
        self.raw(column).map(|d| d.value() != 0)
    }

    /// An `interval` column as (months, days, microseconds).
    pub fn interval(&self, column: i32) -> Option<(i32, i32, i64)> {
        // SAFETY: the statement's column is interval.
        self.raw(column).map(|d| unsafe { datum::interval(d) })
    }

    /// A `cidr[]` column; Some(None) if it cannot be read.
    pub fn cidr_array(&self, column: i32) -> Option<Option<Vec<hyperion_vault_core::IpNet>>> {
        // SAFETY: the statement's column is cidr[].
        self.raw(column).map(|d| unsafe { datum::cidr_array(d) })
    }

    /// A `jsonb` column in text form.
    pub fn jsonb(&self, column: i32) -> Option<String> {
        // SAFETY: the statement's column is jsonb.
        self.raw(column).map(|d| unsafe { datum::jsonb_text(d) })
    }

    /// A copy of a by-reference column in the memory the caller had before the connection: a function's result.
    pub fn result(&self, column: i32) -> Option<Datum> {
        let value = self.raw(column)?;
        // SAFETY: a varlena or composite datum (both start with a length word); copied into the caller's context,
        // and the current context is put back.
        unsafe {
            let before = pg_sys::MemoryContextSwitchTo(self.rows.caller);
            let copy = datum::copy_varlena(value);
            pg_sys::MemoryContextSwitchTo(before);
            Some(copy)
        }
    }
}
