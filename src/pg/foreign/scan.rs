//! Running a scan: from the server's scan node to [`Scan`](super::Scan) and from its rows to the node's slot.
//!
//! Client backends, main thread, while a statement runs. The trap it avoids: what bounds a scan are expressions of the
//! caller's query, with functions of anybody. They are computed before the scan begins and never inside it. EXPLAIN begins
//! scans as well; those do nothing.

use hyperion_vault_core::readable::Bound;
use pgrx::pg_sys::{self, Datum, ForeignScanState};
use pgrx::{PgList, PgMemoryContexts};

use super::plan::Kind;
use super::{COLUMNS, Scan, Type, Value, table};
use crate::error::{Kind as ErrorKind, Result, VaultError};
use crate::pg::datum;

/// What a scan node remembers. In the query's memory, and dropped with it.
struct State {
    /// The bounding expressions, ready to be computed, and what each gives.
    bounds: Vec<(*mut pg_sys::ExprState, Kind)>,
    /// For each column of the relation the place in [`super::Table::columns`]; None: always NULL.
    columns: Vec<Option<usize>>,
    /// None before the first row.
    scan: Option<Box<dyn Scan>>,
}

#[pgrx::pg_guard]
pub(super) unsafe extern "C-unwind" fn begin(node: *mut ForeignScanState, flags: i32) {
    if flags & pg_sys::EXEC_FLAG_EXPLAIN_ONLY as i32 != 0 {
        return;
    }
    // SAFETY: the executor's node, initialised up to this call: plan, slot and query memory are there.
    unsafe {
        let plan = (*node).ss.ps.plan.cast::<pg_sys::ForeignScan>();
        let kinds = PgList::<i32>::from_pg((*plan).fdw_private);
        let expressions = pg_sys::ExecInitExprList((*plan).fdw_exprs, (&raw mut (*node).ss.ps).cast());
        let expressions = PgList::<pg_sys::ExprState>::from_pg(expressions);
        let bounds = expressions.iter_ptr().zip(kinds.iter_int().map(Kind::of)).collect();
        let columns = match columns((*(*node).ss.ss_ScanTupleSlot).tts_tupleDescriptor) {
            Ok(columns) => columns,
            Err(error) => error.raise(),
        };
        let mut memory = PgMemoryContexts::For((*(*node).ss.ps.state).es_query_cxt);
        (*node).fdw_state = memory.leak_and_drop_on_delete(State { bounds, columns, scan: None }).cast();
    }
}

#[pgrx::pg_guard]
pub(super) unsafe extern "C-unwind" fn iterate(node: *mut ForeignScanState) -> *mut pg_sys::TupleTableSlot {
    // SAFETY: `begin` has made the state of this node, which is running: nothing else refers to the state.
    let (state, slot) = unsafe {
        let slot = (*node).ss.ss_ScanTupleSlot;
        pg_sys::ExecClearTuple(slot);
        (&mut *(*node).fdw_state.cast::<State>(), slot)
    };
    if state.scan.is_none() {
        // SAFETY: the node is running.
        let bound = unsafe { state.bound((*node).ss.ps.ps_ExprContext) };
        match (table().begin)(bound) {
            Ok(scan) => state.scan = Some(scan),
            Err(error) => error.raise(),
        }
    }
    let Some(scan) = &mut state.scan else { unreachable!("begun above") };
    match scan.next() {
        Ok(None) => {}
        // SAFETY: the slot is empty and has a place for each of the relation's columns.
        Ok(Some(row)) => unsafe {
            if let Err(error) = store(slot, &state.columns, &row) {
                error.raise();
            }
        },
        Err(error) => error.raise(),
    }
    slot
}

#[pgrx::pg_guard]
pub(super) unsafe extern "C-unwind" fn rescan(node: *mut ForeignScanState) {
    // SAFETY: the state is that of `begin`, or none was made.
    if let Some(state) = unsafe { (*node).fdw_state.cast::<State>().as_mut() } {
        state.scan = None;
    }
}

#[pgrx::pg_guard]
pub(super) unsafe extern "C-unwind" fn end(node: *mut ForeignScanState) {
    // SAFETY: as in `rescan`. The state itself goes with the query's memory.
    if let Some(state) = unsafe { (*node).fdw_state.cast::<State>().as_mut() } {
        state.scan = None;
    }
}

/// Says what bounds the scan. A plan knows nothing else.
#[pgrx::pg_guard]
pub(super) unsafe extern "C-unwind" fn explain(node: *mut ForeignScanState, out: *mut pg_sys::ExplainState) {
    let (label, everything) = table().explained;
    // SAFETY: the node's plan, and the state of the running EXPLAIN, which copies the strings.
    unsafe {
        let plan = (*node).ss.ps.plan.cast::<pg_sys::ForeignScan>();
        let bound = if (*plan).fdw_exprs.is_null() { everything } else { c"by name" };
        pg_sys::ExplainPropertyText(label.as_ptr(), bound.as_ptr(), out);
    }
}

impl State {
    /// What bounds the scan that begins now.
    ///
    /// # Safety
    /// The expression context is that of the running node.
    unsafe fn bound(&self, context: *mut pg_sys::ExprContext) -> Bound {
        if self.bounds.is_empty() {
            return Bound::Rights;
        }
        let mut keys = Vec::new();
        for (expression, kind) in &self.bounds {
            // SAFETY: as the caller promises; the planner has found a text, or an array of texts.
            unsafe {
                let Some(value) = compute(*expression, context) else { continue };
                match kind {
                    Kind::Key => keys.extend(text(value)),
                    Kind::Keys => {
                        // Texts have no fixed length and the alignment of an int.
                        let elements = datum::array_elements(value, pg_sys::TEXTOID, -1, b'i');
                        keys.extend(elements.into_iter().flatten().filter_map(|value| text(value)));
                    }
                }
            }
        }
        Bound::Names(keys)
    }
}

/// None for NULL.
unsafe fn compute(expression: *mut pg_sys::ExprState, context: *mut pg_sys::ExprContext) -> Option<Datum> {
    let mut is_null = false;
    // SAFETY: an initialised expression and its context; an ERROR in it unwinds from here on, with nothing to drop inside.
    let value = unsafe {
        let Some(compute) = (*expression).evalfunc else { unreachable!("expressions are initialised") };
        let is_null = &raw mut is_null;
        pg_sys::ffi::pg_guard_ffi_boundary(move || compute(expression, context, is_null))
    };
    (!is_null).then_some(value)
}

/// A copy. None for what is not UTF-8, which equals no key.
unsafe fn text(value: Datum) -> Option<String> {
    // SAFETY: a text, in place until the executor computes the next row.
    let bytes = unsafe { datum::varlena_bytes(value) };
    std::str::from_utf8(bytes).ok().map(str::to_owned)
}

/// Which of the table's columns each column of the relation is.
///
/// # Safety
/// The descriptor is valid.
unsafe fn columns(desc: pg_sys::TupleDesc) -> Result<Vec<Option<usize>>> {
    // SAFETY: as the caller promises.
    let count = unsafe { (*desc).natts };
    (0..count)
        .map(|number| {
            // SAFETY: the number is below natts; a name is a NUL-terminated string.
            let (name, type_oid, dropped) = unsafe {
                let column = attribute(desc, number);
                let name = std::ffi::CStr::from_ptr((*column).attname.data.as_ptr());
                (name.to_owned(), (*column).atttypid, (*column).attisdropped)
            };
            let known = table().columns.iter().position(|(known, _)| !dropped && *known == name.as_c_str());
            match known {
                Some(place) if table().columns[place].1.oid() != type_oid => Err(changed(&name)),
                known => Ok(known),
            }
        })
        .collect()
}

/// # Safety
/// The descriptor is valid and has a column of that number, counted from 0.
unsafe fn attribute(desc: pg_sys::TupleDesc, number: i32) -> *const pg_sys::FormData_pg_attribute {
    // SAFETY: as the caller promises: before 18, natts entries follow the descriptor.
    unsafe {
        #[cfg(any(feature = "pg15", feature = "pg16", feature = "pg17"))]
        let attribute = &raw const (*desc).attrs.as_slice((*desc).natts as usize)[number as usize];
        #[cfg(feature = "pg18")]
        let attribute = pg_sys::TupleDescAttr(desc, number);
        attribute
    }
}

#[cold]
fn changed(column: &std::ffi::CStr) -> VaultError {
    let column = column.to_string_lossy();
    VaultError::new(ErrorKind::WrongState, "a table of hyperion_vault has been changed")
        .detail(format!(
            "Column \"{column}\" of the relation behind vault.decrypted_secrets has another type."
        ))
        .hint("Give the column the type that CREATE EXTENSION gave it, or recreate the extension.")
}

/// Fills the slot. The values are in the memory of the row, which lasts until the executor asks for the next one.
///
/// # Safety
/// The slot is empty and has as many columns as `columns`.
unsafe fn store(
    slot: *mut pg_sys::TupleTableSlot,
    columns: &[Option<usize>],
    row: &[Value<'_>; COLUMNS],
) -> Result<()> {
    for (number, place) in columns.iter().enumerate() {
        let value = match place {
            None => None,
            Some(place) => match (&row[*place], table().columns[*place].1) {
                (Value::Null, _) => None,
                (Value::Uuid(id), Type::Uuid) => Some(datum::uuid(*id)),
                (Value::Text(text), Type::Text) => Some(datum::varlena(text.as_bytes())),
                (Value::Timestamp(at), Type::Timestamp) => Some(Datum::from(*at)),
                _ => return Err(VaultError::internal("a value of another type than its column")),
            },
        };
        // SAFETY: as the caller promises.
        unsafe {
            *(*slot).tts_values.add(number) = value.unwrap_or(Datum::null());
            *(*slot).tts_isnull.add(number) = value.is_none();
        }
    }
    // SAFETY: every column has a value.
    unsafe { pg_sys::ExecStoreVirtualTuple(slot) };
    Ok(())
}
