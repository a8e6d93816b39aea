//! Writing to the extension's own tables, without SQL.
//!
//! Client backends on a primary and database workers, main thread, in a transaction with an active snapshot. Rows are
//! formed here and handed to the server's heap, which logs them, moves long values out, decodes them for logical
//! replication and finds serialization conflicts; index entries are made by [`index`](super::index). No trigger, rule,
//! policy, default or constraint of anybody has a part in it; so what the extension promises of its rows it sees to itself.
//!
//! Rules that this module keeps:
//!
//! - The lock on a table (ROW EXCLUSIVE) is taken before its relation is looked at, and held to the end of the transaction.
//! - A row is changed or deleted only after it was locked ([`Table::lock`]), or under the lock of the row it belongs to.
//! - In REPEATABLE READ and SERIALIZABLE, a row whose newest version the transaction's snapshot does not see is not
//!   locked: 40001. Reading it is allowed ([`scan`](super::scan)).
//! - Each change ends with a new command, so that what comes next in the transaction sees it.
//!
//! The traps it avoids: a write where none is allowed, which SQL would have refused (a [`Write`] is proof that it was
//! asked); a row that was renamed while its lock was waited for (its key is compared again).

use std::marker::PhantomData;
use std::rc::Rc;

use hyperion_vault_core::cache::Places;

use pgrx::pg_sys::{self, Datum, Oid, TM_Result};

use super::index::{Change, Indexes, Values};
use super::scan::{Key, Op, Search, damaged, has, place_of};
use super::table::{Known, Table, generation};
use super::tuple::Tuple;
use crate::error::{Kind, Result, VaultError};

/// Proof that the transaction may write. Rows that are locked or written are in memory that lasts as long.
pub struct Write {
    context: pg_sys::MemoryContext,
}

impl Write {
    /// Raises the server's own errors where nothing can be written: in recovery, in a read-only transaction, in parallel
    /// mode.
    pub fn begin() -> Self {
        let what = c"a change to the vault".as_ptr();
        // SAFETY: a valid string; plain reads of the session's state.
        unsafe {
            pg_sys::PreventCommandIfReadOnly(what);
            pg_sys::PreventCommandIfParallelMode(what);
            pg_sys::PreventCommandDuringRecovery(what);
            Self { context: pg_sys::CurrentMemoryContext }
        }
    }

    /// Runs `f` in the memory that rows are kept in.
    fn in_memory<R>(&self, f: impl FnOnce() -> R) -> R {
        // SAFETY: the context was current when `self` was made, and is not gone before `self` is; an error that unwinds
        // sets another one.
        unsafe {
            let before = pg_sys::MemoryContextSwitchTo(self.context);
            let result = f();
            pg_sys::MemoryContextSwitchTo(before);
            result
        }
    }
}

/// What becomes of somebody else's lock.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// It is waited for; the deadlock detector, `lock_timeout` and cancel end it.
    Block,
    /// The row is passed over.
    Skip,
}

/// A row that this transaction has locked or written.
pub struct RowLock<'w> {
    tuple: pg_sys::HeapTuple,
    known: Rc<Known>,
    _memory: PhantomData<&'w Write>,
}

impl RowLock<'_> {
    pub fn row(&self) -> Result<Tuple<'_>> {
        // SAFETY: a copy of the table's tuple, in memory that outlives `self`.
        unsafe { Tuple::new(self.tuple, &self.known.layout) }.ok_or_else(damaged)
    }
}

/// A column, counted from 1 as in [`Table::new`], and its value; None for NULL.
pub type Assignment = (i16, Option<Datum>);

/// A table open for writing. Its lock stays to the end of the transaction.
struct Target {
    relation: pg_sys::Relation,
    known: Rc<Known>,
    /// See [`Table::derived`].
    derived: bool,
}

impl Drop for Target {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: opened by `Table::target`; while an error unwinds, the abort gives it back.
            unsafe { pg_sys::table_close(self.relation, pg_sys::NoLock as pg_sys::LOCKMODE) };
        }
    }
}

/// Flags of `table_tuple_lock` (access/tableam.h).
const LOCK_UPDATE_IN_PROGRESS: u8 = 1;
const FIND_LAST_VERSION: u8 = 2;
/// Option of `heap_insert` (access/heapam.h).
const INSERT_SPECULATIVE: i32 = 0x0010;
/// In place of a line pointer's number: a row that is speculative (access/htup_details.h, storage/itemptr.h).
const SPECULATIVE_OFFSET: u16 = 0xfffe;

impl Table {
    fn target(&self, _: &Write) -> Result<Target> {
        loop {
            let known = self.known()?;
            self.check_writable(&known)?;
            // SAFETY: any number can be locked; the lock keeps the oid valid, if what is known is not out of date.
            unsafe {
                pg_sys::LockRelationOid(known.table, pg_sys::RowExclusiveLock as pg_sys::LOCKMODE);
                if generation() == known.generation {
                    let relation = pg_sys::table_open(known.table, pg_sys::NoLock as pg_sys::LOCKMODE);
                    return Ok(Target { relation, known, derived: self.derived });
                }
            }
        }
    }

    /// Locks the table as a writer does, to the end of the transaction. Needed before a scan that [takes](Held::take) rows:
    /// without the lock the table may be rewritten between the scan and the change, and other rows be in their places.
    pub fn hold<'w>(&self, write: &'w Write) -> Result<Held<'w>> {
        let known = self.lock_table(pg_sys::RowExclusiveLock)?;
        Ok(Held { write, known })
    }

    /// Locks the table as a reader does, to the end of the transaction: it is not rewritten meanwhile.
    pub fn lock_for_reading(&self) -> Result<()> {
        self.lock_table(pg_sys::AccessShareLock).map(drop)
    }

    /// Waits until nobody is writing to the table, and keeps others from it to the end of the transaction.
    pub fn lock_alone(&self, _: &Write) -> Result<()> {
        self.lock_table(pg_sys::ShareRowExclusiveLock).map(drop)
    }

    fn lock_table(&self, mode: u32) -> Result<Rc<Known>> {
        loop {
            let known = self.known()?;
            // SAFETY: any number can be locked.
            unsafe { pg_sys::LockRelationOid(known.table, mode as pg_sys::LOCKMODE) };
            if generation() == known.generation {
                return Ok(known);
            }
        }
    }

    /// Tells every session, when the transaction commits, that what it remembers of the table is out of date, and this
    /// one at once. A relation-cache invalidation: it travels with the transaction, also to standbys, and is undone with it.
    pub fn announce_change(&self, write: &Write) -> Result<()> {
        let target = self.target(write)?;
        // SAFETY: the relation is open.
        unsafe {
            pg_sys::CacheInvalidateRelcache(target.relation);
            pg_sys::CommandCounterIncrement();
        }
        Ok(())
    }

    /// Inserts a row; columns that are not assigned are NULL. A duplicate is the server's unique violation.
    pub fn insert<'w>(&self, write: &'w Write, values: &[Assignment]) -> Result<RowLock<'w>> {
        let target = self.target(write)?;
        let (row, tuple) = target.form(write, values);
        // SAFETY: a tuple of the table that is open for writing; index entries follow at once.
        unsafe {
            let command = pg_sys::GetCurrentCommandId(true);
            pg_sys::heap_insert(target.relation, tuple, command, 0, std::ptr::null_mut());
            let indexes = Indexes::open(target.relation);
            indexes.insert(tuple, &row, Change::Inserted, None);
            indexes.close();
            pg_sys::CommandCounterIncrement();
        }
        Ok(RowLock { tuple, known: Rc::clone(&target.known), _memory: PhantomData })
    }

    /// Inserts a row unless a unique index has its key already; None then. Waits for a transaction that has inserted or
    /// deleted such a row and is not at its end. Needs no lock on the key: of two sessions that insert the same key at the
    /// same time one takes its row back before anybody has waited for it.
    pub fn insert_unless_present<'w>(
        &self,
        write: &'w Write,
        index: usize,
        keys: &[Key<'_>],
        values: &[Assignment],
    ) -> Result<Option<RowLock<'w>>> {
        self.insert_or(Wait::Block, write, index, keys, values)
    }

    /// The same; with [`Wait::Skip`] it waits for nobody, and None says only that the key is taken, or about to be.
    pub fn insert_or<'w>(
        &self,
        wait: Wait,
        write: &'w Write,
        index: usize,
        keys: &[Key<'_>],
        values: &[Assignment],
    ) -> Result<Option<RowLock<'w>>> {
        let target = self.target(write)?;
        let arbiter = target.known.indexes[index];
        let columns = self.indexes[index].columns;
        let numbers: Vec<i16> = columns.iter().map(|column| target.known.number(*column)).collect();
        loop {
            let (row, tuple) = target.form(write, values);
            // SAFETY: as in `insert`. The token tells others who see the row that it may be taken back, which happens
            // before the token's lock is given up.
            let inserted = unsafe {
                let transaction = pg_sys::GetCurrentTransactionId();
                let token = pg_sys::SpeculativeInsertionLockAcquire(transaction);
                let place = &raw mut (*(*tuple).t_data).t_ctid;
                (*place).ip_blkid.bi_hi = (token >> 16) as u16;
                (*place).ip_blkid.bi_lo = token as u16;
                (*place).ip_posid = SPECULATIVE_OFFSET;
                let command = pg_sys::GetCurrentCommandId(true);
                pg_sys::heap_insert(
                    target.relation,
                    tuple,
                    command,
                    INSERT_SPECULATIVE,
                    std::ptr::null_mut(),
                );
                let indexes = Indexes::open(target.relation);
                let unique = indexes.insert(tuple, &row, Change::Inserted, Some(&numbers));
                indexes.close();
                if unique {
                    pg_sys::heap_finish_speculative(target.relation, &raw mut (*tuple).t_self);
                } else {
                    pg_sys::heap_abort_speculative(target.relation, &raw mut (*tuple).t_self);
                }
                pg_sys::SpeculativeInsertionLockRelease(transaction);
                unique
            };
            if inserted {
                // SAFETY: no arguments.
                unsafe { pg_sys::CommandCounterIncrement() };
                return Ok(Some(RowLock { tuple, known: Rc::clone(&target.known), _memory: PhantomData }));
            }
            // As a rule whoever calls has looked before: so the row is inserted first, and a wait comes only if it must.
            if matches!(wait, Wait::Skip) || target.is_present(arbiter, columns, keys) {
                return Ok(None);
            }
            pgrx::check_for_interrupts!();
        }
    }

    /// Inserts many rows at once: pages are filled and logged as a whole. Calls `row` for the assignments of each.
    pub fn insert_all(
        &self,
        write: &Write,
        count: usize,
        mut row: impl FnMut(usize, &mut Vec<Assignment>),
    ) -> Result<()> {
        /// Rows handed over at a time: their tuples are in memory at once.
        const BATCH: usize = 500;
        let target = self.target(write)?;
        let mut assignments = Vec::new();
        // SAFETY: as in `insert`; slots and their tuples are in the current memory context, and dropped or left to it.
        unsafe {
            let desc = (*target.relation).rd_att;
            let indexes = Indexes::open(target.relation);
            let bulk = pg_sys::GetBulkInsertState();
            let mut slots: Vec<*mut pg_sys::TupleTableSlot> = Vec::new();
            let mut first = 0;
            while first < count {
                let batch = BATCH.min(count - first);
                let mut rows = Vec::with_capacity(batch);
                for place in 0..batch {
                    assignments.clear();
                    row(first + place, &mut assignments);
                    let (values, tuple) = target.form_here(&assignments);
                    if slots.len() <= place {
                        slots
                            .push(pg_sys::MakeSingleTupleTableSlot(desc, &raw const pg_sys::TTSOpsHeapTuple));
                    }
                    pg_sys::ExecStoreHeapTuple(tuple, slots[place], false);
                    rows.push((values, tuple));
                }
                let command = pg_sys::GetCurrentCommandId(true);
                pg_sys::heap_multi_insert(
                    target.relation,
                    slots.as_mut_ptr(),
                    batch as i32,
                    command,
                    0,
                    bulk,
                );
                for (place, (values, tuple)) in rows.iter().enumerate() {
                    // The heap says in the slot where it has put the row.
                    (**tuple).t_self = (*slots[place]).tts_tid;
                    indexes.insert(*tuple, values, Change::Inserted, None);
                    pg_sys::ExecClearTuple(slots[place]);
                    pg_sys::heap_freetuple(*tuple);
                }
                first += batch;
            }
            for slot in slots {
                pg_sys::ExecDropSingleTupleTableSlot(slot);
            }
            pg_sys::FreeBulkInsertState(bulk);
            indexes.close();
            pg_sys::CommandCounterIncrement();
        }
        Ok(())
    }

    /// Locks the row with these keys, which are all of a unique index's, as of now; None if there is none, or (with
    /// [`Wait::Skip`]) somebody else has it. After a wait it is the row that has the keys then.
    pub fn lock<'w>(
        &self,
        write: &'w Write,
        index: usize,
        keys: &[Key<'_>],
        places: Option<Places<'_>>,
        wait: Wait,
    ) -> Result<Option<RowLock<'w>>> {
        let target = self.target(write)?;
        let columns = self.indexes[index].columns;
        loop {
            let mut place = None;
            self.point(index, keys, places, |row| {
                place = row.map(Tuple::item_pointer);
                Ok(())
            })?;
            let Some(place) = place else { return Ok(None) };
            match target.lock_at(write, place, wait)? {
                Attempt::Locked(row) => {
                    if has(&row.row()?, columns, keys, true) {
                        return Ok(Some(row));
                    }
                    // Renamed while its lock was waited for: another row may have the keys now.
                }
                Attempt::Skipped => return Ok(None),
                Attempt::Gone => {}
            }
            pgrx::check_for_interrupts!();
        }
    }

    /// Remembers where a row with these keys has been written, for the [point reads](Table::point) that come next: in an index
    /// there may be an entry for each page that the transaction has filled with the row's former versions.
    pub fn remember(&self, keys: &[Key<'_>], places: Places<'_>, row: &RowLock<'_>) -> Result<()> {
        places.remember(place_of(&row.known, keys), row.row()?.place());
        Ok(())
    }

    /// Changes a row that is locked, or belongs to one that is. Columns that are not assigned stay as they are, those of
    /// others too. The row as it is now.
    pub fn update<'w>(
        &self,
        write: &'w Write,
        row: &RowLock<'w>,
        values: &[Assignment],
    ) -> Result<RowLock<'w>> {
        let target = self.target(write)?;
        let desc = target.desc();
        // SAFETY: the row's tuple is one of the table's (its lock has kept the table as it was since); the new one is
        // formed in memory that lasts as long as `write`; index entries follow at once unless the heap needs none.
        unsafe {
            pg_sys::CheckCmdReplicaIdentity(target.relation, pg_sys::CmdType::CMD_UPDATE);
            let mut new = Values::none(target.known.width);
            let mut replaced = vec![false; target.known.width];
            for (column, value) in values {
                let number = target.known.number(*column);
                new.set(number, *value);
                replaced[number as usize - 1] = true;
            }
            let tuple = write.in_memory(|| {
                pg_sys::heap_modify_tuple(
                    row.tuple,
                    desc,
                    new.values.as_mut_ptr(),
                    new.nulls.as_mut_ptr(),
                    replaced.as_mut_ptr(),
                )
            });
            let mut place = (*row.tuple).t_self;
            let mut failure = pg_sys::TM_FailureData::default();
            let mut mode = pg_sys::LockTupleMode::LockTupleExclusive;
            let command = pg_sys::GetCurrentCommandId(true);
            #[cfg(not(feature = "pg15"))]
            let mut changed = pg_sys::TU_UpdateIndexes::TU_None;
            let result = pg_sys::heap_update(
                target.relation,
                &mut place,
                tuple,
                command,
                std::ptr::null_mut(),
                true,
                &mut failure,
                &mut mode,
                #[cfg(not(feature = "pg15"))]
                &mut changed,
            );
            check_changed(result)?;
            #[cfg(feature = "pg15")]
            let (all, some) = {
                let heap_only = (*(*tuple).t_data).t_infomask2 & pg_sys::HEAP_ONLY_TUPLE as u16 != 0;
                (!heap_only, false)
            };
            #[cfg(not(feature = "pg15"))]
            let (all, some) = (
                changed == pg_sys::TU_UpdateIndexes::TU_All,
                changed == pg_sys::TU_UpdateIndexes::TU_Summarizing,
            );
            if all || some {
                let indexes = Indexes::open(target.relation);
                let change = if some { Change::Summaries(&replaced) } else { Change::Updated(&replaced) };
                indexes.insert(tuple, &Values::of(tuple, desc), change, None);
                indexes.close();
            }
            pg_sys::CommandCounterIncrement();
            Ok(RowLock { tuple, known: Rc::clone(&target.known), _memory: PhantomData })
        }
    }

    /// Deletes a row that is locked, or belongs to one that is.
    pub fn delete(&self, write: &Write, row: &RowLock<'_>) -> Result<()> {
        // SAFETY: the row's tuple is in memory.
        self.delete_at(write, unsafe { (*row.tuple).t_self })
    }

    fn delete_at(&self, write: &Write, mut place: pg_sys::ItemPointerData) -> Result<()> {
        let target = self.target(write)?;
        // SAFETY: a place in the table that is open for writing, where this transaction sees a row.
        unsafe {
            pg_sys::CheckCmdReplicaIdentity(target.relation, pg_sys::CmdType::CMD_DELETE);
            let mut failure = pg_sys::TM_FailureData::default();
            let command = pg_sys::GetCurrentCommandId(true);
            let result = pg_sys::heap_delete(
                target.relation,
                &mut place,
                command,
                std::ptr::null_mut(),
                true,
                &mut failure,
                false,
            );
            check_changed(result)?;
            pg_sys::CommandCounterIncrement();
        }
        Ok(())
    }

    /// Locks a row that was [taken](Held::take), waiting for whoever has it: as it is then. None if it is gone.
    pub fn lock_taken<'w>(&self, write: &'w Write, row: &RowLock<'w>) -> Result<Option<RowLock<'w>>> {
        let target = self.target(write)?;
        // SAFETY: the row's tuple is in memory.
        match target.lock_at(write, unsafe { (*row.tuple).t_self }, Wait::Block)? {
            Attempt::Locked(row) => Ok(Some(row)),
            Attempt::Gone | Attempt::Skipped => Ok(None),
        }
    }
}

/// A table whose lock this transaction holds as a writer.
pub struct Held<'w> {
    write: &'w Write,
    known: Rc<Known>,
}

impl<'w> Held<'w> {
    /// A row of the table, found by a scan, to be changed or deleted under the lock of the row it belongs to, or to be
    /// [locked](Table::lock_taken) itself. If somebody changes it meanwhile all the same, changing it fails with 40001.
    pub fn take(&self, row: &Tuple<'_>) -> RowLock<'w> {
        // SAFETY: the scan's tuple is in place during the visit; its copy lasts as long as the `Write`.
        let tuple = self.write.in_memory(|| unsafe { pg_sys::heap_copytuple(row.heap_tuple()) });
        RowLock { tuple, known: Rc::clone(&self.known), _memory: PhantomData }
    }
}

/// What came of an attempt to lock a row.
enum Attempt<'w> {
    Locked(RowLock<'w>),
    Skipped,
    /// It was deleted while its lock was waited for.
    Gone,
}

impl Target {
    fn desc(&self) -> pg_sys::TupleDesc {
        // SAFETY: the relation is open.
        unsafe { (*self.relation).rd_att }
    }

    /// A row in the memory of `write`.
    fn form(&self, write: &Write, values: &[Assignment]) -> (Values, pg_sys::HeapTuple) {
        write.in_memory(|| self.form_here(values))
    }

    /// A row in the current memory context.
    fn form_here(&self, values: &[Assignment]) -> (Values, pg_sys::HeapTuple) {
        let mut row = Values::none(self.known.width);
        for (column, value) in values {
            row.set(self.known.number(*column), *value);
        }
        // SAFETY: one value of its type for each column of the descriptor.
        let tuple =
            unsafe { pg_sys::heap_form_tuple(self.desc(), row.values.as_mut_ptr(), row.nulls.as_mut_ptr()) };
        // SAFETY: the tuple was just formed.
        unsafe { (*tuple).t_tableOid = self.known.table };
        (row, tuple)
    }

    /// Whether a row with these keys is there for everybody, once those who are inserting or deleting one are through.
    fn is_present(&self, index: Oid, columns: &[i16], keys: &[Key<'_>]) -> bool {
        loop {
            // SAFETY: plain C structs. A snapshot of this kind sees what others have not committed, and says who they are.
            let mut dirty: pg_sys::SnapshotData = unsafe { std::mem::zeroed() };
            dirty.snapshot_type = pg_sys::SnapshotType::SNAPSHOT_DIRTY;
            // SAFETY: as above; the tail beyond `keys` is not read.
            let mut entries: [pg_sys::ScanKeyData; 2] = unsafe { std::mem::zeroed() };
            assert!(keys.len() <= entries.len(), "more keys than a unique index of ours has");
            for ((entry, key), column) in entries.iter_mut().zip(keys).zip(columns) {
                // SAFETY: a valid entry.
                unsafe { Search::of(key, Op::Eq, self.known.number(*column)).write(entry) };
            }
            // SAFETY: the table is open, the index one of its own; the tuple is read before the scan ends; waiting ends
            // with the other transaction, or by cancel, timeout or the deadlock detector as an error.
            unsafe {
                let scan = pg_sys::systable_beginscan(
                    self.relation,
                    index,
                    true,
                    &mut dirty,
                    keys.len() as i32,
                    entries.as_mut_ptr(),
                );
                let tuple = pg_sys::systable_getnext(scan);
                let found = !tuple.is_null();
                let mut place = if found { (*tuple).t_self } else { std::mem::zeroed() };
                pg_sys::systable_endscan(scan);
                if !found {
                    return false;
                }
                let inserting = dirty.xmin != pg_sys::TransactionId::from(0);
                let other = if inserting { dirty.xmin } else { dirty.xmax };
                if other == pg_sys::TransactionId::from(0) {
                    return true;
                }
                if inserting && dirty.speculativeToken != 0 {
                    pg_sys::SpeculativeInsertionWait(other, dirty.speculativeToken);
                } else {
                    pg_sys::XactLockTableWait(
                        other,
                        self.relation,
                        &mut place,
                        pg_sys::XLTW_Oper::XLTW_InsertIndex,
                    );
                }
            }
        }
    }

    fn lock_at<'w>(
        &self,
        write: &'w Write,
        mut place: pg_sys::ItemPointerData,
        wait: Wait,
    ) -> Result<Attempt<'w>> {
        // SAFETY: a plain read of a setting of the running transaction.
        let fixed_snapshot =
            !self.derived && unsafe { pg_sys::XactIsoLevel } >= pg_sys::XACT_REPEATABLE_READ as i32;
        let policy = match wait {
            Wait::Block => pg_sys::LockWaitPolicy::LockWaitBlock,
            Wait::Skip => pg_sys::LockWaitPolicy::LockWaitSkip,
        };
        let flags = LOCK_UPDATE_IN_PROGRESS | if fixed_snapshot { 0 } else { FIND_LAST_VERSION };
        // SAFETY: the table is open for writing; the slot is of the kind that the heap fills, and dropped below, or by the
        // transaction's end if an error unwinds. The heap looks at no snapshot for this.
        unsafe {
            let slot =
                pg_sys::MakeSingleTupleTableSlot(self.desc(), &raw const pg_sys::TTSOpsBufferHeapTuple);
            let mut failure = pg_sys::TM_FailureData::default();
            let result = pg_sys::table_tuple_lock(
                self.relation,
                &mut place,
                &raw mut pg_sys::SnapshotAnyData,
                slot,
                pg_sys::GetCurrentCommandId(true),
                pg_sys::LockTupleMode::LockTupleExclusive,
                policy,
                flags,
                &mut failure,
            );
            let attempt = match result {
                TM_Result::TM_Ok => {
                    let seen = !fixed_snapshot
                        || pg_sys::table_tuple_satisfies_snapshot(
                            self.relation,
                            slot,
                            pg_sys::GetTransactionSnapshot(),
                        );
                    if seen {
                        let tuple = write.in_memory(|| pg_sys::ExecCopySlotHeapTuple(slot));
                        Ok(Attempt::Locked(RowLock {
                            tuple,
                            known: Rc::clone(&self.known),
                            _memory: PhantomData,
                        }))
                    } else {
                        Err(overtaken())
                    }
                }
                TM_Result::TM_WouldBlock => Ok(Attempt::Skipped),
                TM_Result::TM_Updated | TM_Result::TM_Deleted if fixed_snapshot => Err(overtaken()),
                TM_Result::TM_Updated | TM_Result::TM_Deleted => Ok(Attempt::Gone),
                other => Err(VaultError::internal(format!("locking a row gave {other}"))),
            };
            pg_sys::ExecDropSingleTupleTableSlot(slot);
            attempt
        }
    }
}

/// Somebody else changed the row, and this transaction's snapshot is older.
fn overtaken() -> VaultError {
    VaultError::new(Kind::Conflict, "could not serialize access due to concurrent update")
        .detail("The row was changed after this transaction's snapshot was taken.")
        .hint("Roll back and try again.")
}

fn check_changed(result: pg_sys::TM_Result::Type) -> Result<()> {
    match result {
        TM_Result::TM_Ok => Ok(()),
        TM_Result::TM_Updated | TM_Result::TM_Deleted => Err(overtaken()),
        other => Err(VaultError::internal(format!("changing a row gave {other}"))),
    }
}
