//! Set-returning functions, materialised in memory.
//!
//! The store is sized by us: the server's default (work_mem) would spill rows, values among them, to a temporary
//! file. Client backends, main thread.

use std::cell::Cell;

use pgrx::pg_sys::{self, Datum};

use super::fcinfo::{Args, Return};
use crate::error::{Kind, Result, VaultError};

/// Collects the rows of a set-returning call. Make it before opening an SPI connection.
pub struct RowSet {
    /// Bytes in the store so far.
    bytes: Cell<usize>,
    store: *mut pg_sys::Tuplestorestate,
    desc: pg_sys::TupleDesc,
}

/// The most one call may return, in bytes: a batch of 256 values of 1 MiB twice over, and any single value.
const MAX_BYTES: usize = 512 << 20;
/// What the store may hold before it turns to disk, in KiB: more than MAX_BYTES and the store's own bookkeeping, so that
/// it never does.
const STORE_KIB: i32 = 1 << 20;

/// More than any function here returns.
const MAX_COLUMNS: usize = 16;

impl RowSet {
    pub fn begin(args: &Args) -> Result<Self> {
        // SAFETY: fcinfo is that of the running call; resultinfo, where set, is a node the executor owns.
        unsafe {
            let info = (*args.raw()).resultinfo.cast::<pg_sys::ReturnSetInfo>();
            if info.is_null()
                || (*info).type_ != pg_sys::NodeTag::T_ReturnSetInfo
                || (*info).allowedModes & pg_sys::SetFunctionReturnMode::SFRM_Materialize as i32 == 0
            {
                return Err(VaultError::new(
                    Kind::Invalid,
                    "set-returning function called where a set is not allowed",
                )
                .hint("Call it in FROM."));
            }
            let context = (*(*info).econtext).ecxt_per_query_memory;
            let before = pg_sys::MemoryContextSwitchTo(context);
            let desc = pg_sys::CreateTupleDescCopy((*info).expectedDesc);
            let store = pg_sys::tuplestore_begin_heap(true, false, STORE_KIB);
            pg_sys::MemoryContextSwitchTo(before);
            (*info).returnMode = pg_sys::SetFunctionReturnMode::SFRM_Materialize;
            (*info).setResult = store;
            (*info).setDesc = desc;
            Ok(Self { bytes: Cell::new(0), store, desc })
        }
    }

    /// Adds a row: one value per column, None for NULL. The values are copied.
    pub fn push(&self, values: &[Option<Datum>]) -> Result<()> {
        let mut nulls = [true; MAX_COLUMNS];
        let mut datums = [Datum::null(); MAX_COLUMNS];
        for ((null, datum), value) in nulls.iter_mut().zip(&mut datums).zip(values) {
            *null = value.is_none();
            *datum = value.unwrap_or(Datum::null());
        }
        // SAFETY: the descriptor lives in the query's memory; one value per column is asserted. The tuple is ours.
        unsafe {
            let columns = (*self.desc).natts as usize;
            assert!(
                columns == values.len() && columns <= MAX_COLUMNS,
                "row does not match the declared result"
            );
            // Older majors declare the arrays as mutable; none writes to them.
            let (values, nulls) = (datums.as_ptr().cast_mut(), nulls.as_ptr().cast_mut());
            let tuple = pg_sys::heap_form_tuple(self.desc, values, nulls);
            let put = self.put(tuple);
            pg_sys::heap_freetuple(tuple);
            put
        }
    }

    /// The columns of a composite value as a row.
    pub fn push_composite(&self, composite: Datum) -> Result<()> {
        // SAFETY: `composite` is a datum of the declared row type; its header gives the tuple's length.
        unsafe {
            let header =
                pg_sys::pg_detoast_datum(composite.cast_mut_ptr()).cast::<pg_sys::HeapTupleHeaderData>();
            let mut tuple = pg_sys::HeapTupleData {
                t_len: pgrx::heap_tuple_header_get_datum_length(header) as u32,
                t_data: header,
                ..Default::default()
            };
            self.put(&mut tuple)
        }
    }

    /// # Safety
    /// `tuple` is of the declared row type. The store, which lives in the query's memory, copies it.
    unsafe fn put(&self, tuple: pg_sys::HeapTuple) -> Result<()> {
        // SAFETY: as the caller promises.
        unsafe {
            let bytes = self.bytes.get() + (*tuple).t_len as usize;
            if bytes > MAX_BYTES {
                return Err(VaultError::new(Kind::Invalid, "the result is too large")
                    .detail(format!("One call returns at most {} MiB.", MAX_BYTES >> 20))
                    .hint("Ask for fewer names or rows at once."));
            }
            self.bytes.set(bytes);
            pg_sys::tuplestore_puttuple(self.store, tuple);
        }
        Ok(())
    }

    pub fn finish(self) -> Result<Return> {
        Ok(Return::Null)
    }
}
