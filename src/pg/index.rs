//! Index entries for rows that were written below SQL.
//!
//! Client backends on a primary and database workers, main thread, between the heap's change and the end of the same
//! operation. As the executor does it, but without an executor: what the extension's own indexes are made of needs no
//! expression to be evaluated. For indexes that an administrator has added (expressions, predicates, exclusion
//! constraints) an executor's state is made.
//!
//! The trap it avoids: an error that is caught after the heap has the row and before the last index has it; whoever
//! catches one aborts the (sub)transaction.

use pgrx::pg_sys::{self, Datum};

/// The values of a row, one for each column of the table, and which of them are NULL.
pub(super) struct Values {
    pub values: Vec<Datum>,
    pub nulls: Vec<bool>,
}

impl Values {
    /// All NULL.
    pub fn none(width: usize) -> Self {
        Self { values: vec![Datum::null(); width], nulls: vec![true; width] }
    }

    /// # Safety
    /// The tuple is one of a table with this descriptor; by-reference values point into it.
    pub unsafe fn of(tuple: pg_sys::HeapTuple, desc: pg_sys::TupleDesc) -> Self {
        // SAFETY: as the caller promises; the arrays have room for each column.
        unsafe {
            let mut all = Self::none((*desc).natts as usize);
            pg_sys::heap_deform_tuple(tuple, desc, all.values.as_mut_ptr(), all.nulls.as_mut_ptr());
            all
        }
    }

    /// `number` counts from 1, as the table's columns do.
    pub fn set(&mut self, number: i16, value: Option<Datum>) {
        let place = number as usize - 1;
        self.nulls[place] = value.is_none();
        self.values[place] = value.unwrap_or(Datum::null());
    }
}

/// All indexes of a table, open for writing.
pub(super) struct Indexes {
    relation: pg_sys::Relation,
    open: Vec<(pg_sys::Relation, *mut pg_sys::IndexInfo)>,
}

const LOCK: pg_sys::LOCKMODE = pg_sys::RowExclusiveLock as pg_sys::LOCKMODE;

impl Indexes {
    /// # Safety
    /// The relation is open and locked for writing as long as the result is used.
    pub unsafe fn open(relation: pg_sys::Relation) -> Self {
        // SAFETY: as the caller promises; the list is a copy of the relation cache's.
        unsafe {
            let list = pg_sys::RelationGetIndexList(relation);
            let count = if list.is_null() { 0 } else { (*list).length as usize };
            let mut open = Vec::with_capacity(count);
            for i in 0..count {
                let index = pg_sys::index_open((*(*list).elements.add(i)).oid_value, LOCK);
                open.push((index, pg_sys::BuildIndexInfo(index)));
            }
            pg_sys::list_free(list);
            Self { relation, open }
        }
    }

    /// Adds entries for a row. Raises the server's own unique violation, but for `unless`: the columns of a unique index,
    /// where a duplicate, or what may become one, makes the result false (and the other indexes are left out, since the row
    /// is taken back). While REINDEX CONCURRENTLY runs there are two such indexes.
    ///
    /// # Safety
    /// The tuple is in the table, at the place its own `t_self` says, and has these values.
    pub unsafe fn insert(
        &self,
        tuple: pg_sys::HeapTuple,
        row: &Values,
        change: Change<'_>,
        unless: Option<&[i16]>,
    ) -> bool {
        for (index, info) in &self.open {
            // SAFETY: open indexes of the open table and what was built for them.
            unsafe {
                if !(**info).ii_ReadyForInserts
                    || matches!(change, Change::Summaries(_)) && !is_summarizing(*info)
                {
                    continue;
                }
                let checked = if !(**info).ii_Unique {
                    pg_sys::IndexUniqueCheck::UNIQUE_CHECK_NO
                } else if unless.is_some_and(|columns| is_on(*info, columns)) {
                    pg_sys::IndexUniqueCheck::UNIQUE_CHECK_PARTIAL
                } else {
                    // Those of a deferrable constraint too: the check is not put off.
                    pg_sys::IndexUniqueCheck::UNIQUE_CHECK_YES
                };
                let inserted = self.insert_one(*index, *info, tuple, row, checked, change.keeps(*info));
                // Of the others the result says nothing.
                if !inserted && checked == pg_sys::IndexUniqueCheck::UNIQUE_CHECK_PARTIAL {
                    return false;
                }
            }
        }
        true
    }

    /// # Safety
    /// As [`insert`](Self::insert).
    unsafe fn insert_one(
        &self,
        index: pg_sys::Relation,
        info: *mut pg_sys::IndexInfo,
        tuple: pg_sys::HeapTuple,
        row: &Values,
        checked: pg_sys::IndexUniqueCheck::Type,
        unchanged: bool,
    ) -> bool {
        let mut values = [Datum::null(); MAX_KEYS];
        let mut nulls = [true; MAX_KEYS];
        // SAFETY: as the caller promises. The tuple's place is only read.
        unsafe {
            let tid = &raw mut (*tuple).t_self;
            let add = |values: &mut [Datum; MAX_KEYS], nulls: &mut [bool; MAX_KEYS]| {
                pg_sys::index_insert(
                    index,
                    values.as_mut_ptr(),
                    nulls.as_mut_ptr(),
                    tid,
                    self.relation,
                    checked,
                    unchanged,
                    info,
                )
            };
            let plain_predicate = holds(info, row);
            if plain_predicate == Some(false) {
                return true;
            }
            if plain_predicate.is_none()
                || !(*info).ii_Expressions.is_null()
                || !(*info).ii_ExclusionOps.is_null()
            {
                let execution = Execution::begin(self.relation, tuple);
                let wanted = plain_predicate.is_some() || execution.holds((*info).ii_Predicate);
                let unique = !wanted || {
                    execution.form(info, &mut values, &mut nulls);
                    let unique = add(&mut values, &mut nulls);
                    if !(*info).ii_ExclusionOps.is_null() {
                        pg_sys::check_exclusion_constraint(
                            self.relation,
                            index,
                            info,
                            tid,
                            values.as_ptr().cast_mut(),
                            nulls.as_ptr().cast_mut(),
                            execution.state,
                            false,
                        );
                    }
                    unique
                };
                execution.end();
                // What it prepared was the execution's.
                (*info).ii_ExpressionsState = std::ptr::null_mut();
                (*info).ii_PredicateState = std::ptr::null_mut();
                return unique;
            }
            for i in 0..(*info).ii_NumIndexAttrs as usize {
                let place = (*info).ii_IndexAttrNumbers[i] as usize - 1;
                values[i] = row.values[place];
                nulls[i] = row.nulls[place];
            }
            add(&mut values, &mut nulls)
        }
    }

    /// Gives the indexes back, and their locks: the table's keeps them from being dropped.
    pub fn close(self) {
        for (index, info) in self.open {
            // SAFETY: opened and built by `open`. From 17 on an insertion may leave something to be released.
            unsafe {
                #[cfg(any(feature = "pg17", feature = "pg18"))]
                pg_sys::index_insert_cleanup(index, info);
                #[cfg(any(feature = "pg15", feature = "pg16"))]
                let _ = info;
                pg_sys::index_close(index, LOCK);
            }
        }
    }
}

const MAX_KEYS: usize = pg_sys::INDEX_MAX_KEYS as usize;

/// What was done to the row.
#[derive(Clone, Copy)]
pub(super) enum Change<'a> {
    Inserted,
    /// Updated: for each column of the table, whether it was assigned.
    Updated(&'a [bool]),
    /// Updated in a way that concerns only indexes that summarize blocks.
    Summaries(&'a [bool]),
}

impl Change<'_> {
    /// Whether the row's former version has the same keys in the index: the server then looks for such versions to remove.
    ///
    /// # Safety
    /// `info` is what the server built for an index of the row's table.
    unsafe fn keeps(self, info: *mut pg_sys::IndexInfo) -> bool {
        let (Self::Updated(assigned) | Self::Summaries(assigned)) = self else { return false };
        // SAFETY: as the caller promises; the numbers of columns are those of the table, 0 for an expression.
        unsafe {
            let info = &*info;
            info.ii_Expressions.is_null()
                && info.ii_IndexAttrNumbers[..info.ii_NumIndexKeyAttrs as usize]
                    .iter()
                    .all(|number| *number > 0 && !assigned[*number as usize - 1])
        }
    }
}

/// Whether an index has exactly these columns as keys.
///
/// # Safety
/// `info` is what the server built for an index.
unsafe fn is_on(info: *mut pg_sys::IndexInfo, columns: &[i16]) -> bool {
    // SAFETY: as the caller promises.
    unsafe {
        let info = &*info;
        info.ii_Expressions.is_null()
            && info.ii_ExclusionOps.is_null()
            && info.ii_IndexAttrNumbers[..info.ii_NumIndexKeyAttrs as usize] == *columns
    }
}

/// # Safety
/// `info` is what the server built for an index.
unsafe fn is_summarizing(info: *mut pg_sys::IndexInfo) -> bool {
    // PostgreSQL 15 knows no such indexes: there an update concerns all of them or none.
    #[cfg(feature = "pg15")]
    {
        let _ = info;
        false
    }
    // SAFETY: as the caller promises.
    #[cfg(not(feature = "pg15"))]
    unsafe {
        (*info).ii_Summarizing
    }
}

/// Whether the index holds this row; None if only evaluating its predicate can tell. Answered here for no predicate, and
/// for `column IS NOT NULL`, which is the extension's own.
///
/// # Safety
/// `info` is what the server built for an index of the row's table.
unsafe fn holds(info: *mut pg_sys::IndexInfo, row: &Values) -> Option<bool> {
    // SAFETY: as the caller promises; a node's tag says what it is.
    unsafe {
        let predicate = (*info).ii_Predicate;
        if predicate.is_null() {
            return Some(true);
        }
        if (*predicate).length != 1 {
            return None;
        }
        let node = (*(*predicate).elements).ptr_value.cast::<pg_sys::NullTest>();
        if (*node.cast::<pg_sys::Node>()).type_ != pg_sys::NodeTag::T_NullTest
            || (*node).nulltesttype != pg_sys::NullTestType::IS_NOT_NULL
            // Of a composite value: that each of its fields is.
            || (*node).argisrow
        {
            return None;
        }
        let argument = (*node).arg.cast::<pg_sys::Var>();
        if (*argument.cast::<pg_sys::Node>()).type_ != pg_sys::NodeTag::T_Var || (*argument).varattno < 1 {
            return None;
        }
        Some(!row.nulls[(*argument).varattno as usize - 1])
    }
}

/// What evaluating expressions over a row needs.
struct Execution {
    state: *mut pg_sys::EState,
    context: *mut pg_sys::ExprContext,
    slot: *mut pg_sys::TupleTableSlot,
}

impl Execution {
    /// # Safety
    /// The tuple is one of the open relation's and stays in place until the end.
    unsafe fn begin(relation: pg_sys::Relation, tuple: pg_sys::HeapTuple) -> Self {
        // SAFETY: as the caller promises; ended by `end`, or by the transaction's end if an error unwinds.
        unsafe {
            let state = pg_sys::CreateExecutorState();
            let context = pg_sys::MakePerTupleExprContext(state);
            let slot =
                pg_sys::MakeSingleTupleTableSlot((*relation).rd_att, &raw const pg_sys::TTSOpsHeapTuple);
            pg_sys::ExecStoreHeapTuple(tuple, slot, false);
            (*slot).tts_tid = (*tuple).t_self;
            (*context).ecxt_scantuple = slot;
            Self { state, context, slot }
        }
    }

    /// # Safety
    /// A predicate over the relation's columns.
    unsafe fn holds(&self, predicate: *mut pg_sys::List) -> bool {
        // SAFETY: as the caller promises.
        unsafe { pg_sys::ExecQual(pg_sys::ExecPrepareQual(predicate, self.state), self.context) }
    }

    /// # Safety
    /// What the server built for an index of the relation.
    unsafe fn form(
        &self,
        info: *mut pg_sys::IndexInfo,
        values: &mut [Datum; MAX_KEYS],
        nulls: &mut [bool; MAX_KEYS],
    ) {
        // SAFETY: as the caller promises; the arrays have room for the most keys that there are.
        unsafe {
            pg_sys::FormIndexDatum(info, self.slot, self.state, values.as_mut_ptr(), nulls.as_mut_ptr());
        }
    }

    fn end(self) {
        // SAFETY: made by `begin`; nothing refers to them any more.
        unsafe {
            pg_sys::ExecDropSingleTupleTableSlot(self.slot);
            pg_sys::FreeExecutorState(self.state);
        }
    }
}
