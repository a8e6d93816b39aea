//! The extension's own tables: which relation it is, where its columns lie, what its indexes are.
//!
//! Client backends and database workers, main thread, primary or standby. Tables are read ([`scan`](super::scan)) and
//! written ([`heap`](super::heap)) below SQL, so nothing that the server runs inside a statement (triggers, rules,
//! policies, operators, plans, settings) has a part in it.
//!
//! The traps it avoids. A column that is found by its number: what an administrator adds to a table, or an upgrade adds
//! behind that, moves it; so columns are found by name, once per generation of the relation cache. A table that is found
//! by its name alone: after `ALTER SCHEMA vault RENAME` anybody with CREATE on the database could put another one in its
//! place; so it must be a member of the extension.

use std::cell::{Cell, RefCell};
use std::ffi::CStr;
use std::rc::Rc;

use hyperion_vault_core::row::Layout;
use pgrx::pg_sys::{self, Datum, Oid};

use super::catalog::{self, EXTENSION};
use super::datum;
use super::tuple::{self, Attribute};
use crate::error::{Kind, Result, VaultError};

const SCHEMA: &CStr = c"vault";
/// Relations of the present version that earlier ones lack. Until an upgrade script has made them, the tables are an earlier
/// version's: they are refused as a whole, so that nothing is half done in between.
const NEWEST: [&CStr; 3] = [c"secret_dates", c"target_roles", c"role_bindings_key"];

/// An index of a table, and the table's columns behind its own, in their order, counted from 1 as in [`Table::new`].
pub struct Index {
    pub name: &'static CStr,
    pub columns: &'static [i16],
}

/// A table of schema `vault`. Make it a `thread_local`: what a session knows of it is kept in it.
pub struct Table {
    pub(super) name: &'static CStr,
    /// The columns that the extension reads or writes. They are counted from 1 in this order, whatever their numbers in
    /// the table are.
    columns: &'static [&'static CStr],
    pub(super) indexes: &'static [Index],
    /// Rows are kept under the locks of the rows they are derived from: the newest version counts, whatever the
    /// transaction's snapshot is.
    pub(super) derived: bool,
    /// The same in every version there was: used before an upgrade, too.
    in_every_version: bool,
    known: RefCell<Option<Rc<Known>>>,
    /// The relation that was last found to be a member of the extension.
    member: Cell<Oid>,
}

/// What a session knows of a table.
pub(super) struct Known {
    pub table: Oid,
    /// As in [`Table::indexes`].
    pub indexes: Vec<Oid>,
    pub layout: Layout,
    /// The number in the table of each column of ours.
    pub numbers: Vec<i16>,
    /// All columns of the table, dropped ones too.
    pub width: usize,
    /// Why no row can be written.
    pub obstacle: Option<String>,
    /// [`GENERATION`] before it was looked up.
    pub generation: u64,
}

impl Known {
    /// The number in the table of a column of ours.
    pub fn number(&self, column: i16) -> i16 {
        self.numbers[column as usize - 1]
    }
}

thread_local! {
    /// Counts invalidations of relations; tables are looked up anew when it has moved.
    static GENERATION: Cell<u64> = const { Cell::new(0) };
    static LISTENING: Cell<bool> = const { Cell::new(false) };
    /// Relations that [`Table::alterations`] was asked about, and how often each was altered since.
    static WATCHED: RefCell<Vec<(Oid, u64)>> = const { RefCell::new(Vec::new()) };
}

/// Moves whenever something this process remembers of a relation may be out of date.
pub fn generation() -> u64 {
    if !LISTENING.replace(true) {
        let schemas = pg_sys::SysCacheIdentifier::NAMESPACEOID as i32;
        // SAFETY: the callbacks stay valid; registered once per process.
        unsafe {
            pg_sys::CacheRegisterRelcacheCallback(Some(invalidated), Datum::null());
            // A schema that is renamed is no change of the tables in it, and yet they are not found by their names.
            pg_sys::CacheRegisterSyscacheCallback(schemas, Some(schema_changed), Datum::null());
        }
    }
    GENERATION.get()
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn invalidated(_arg: Datum, relation: Oid) {
    GENERATION.set(GENERATION.get() + 1);
    WATCHED.with(|watched| {
        // Nothing else runs while it is borrowed. Without an oid the message means every relation.
        if let Ok(mut watched) = watched.try_borrow_mut() {
            let meant = |of: Oid| relation == Oid::INVALID || relation == of;
            watched.iter_mut().filter(|(of, _)| meant(*of)).for_each(|(_, count)| *count += 1);
        }
    });
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn schema_changed(_arg: Datum, _cache: i32, _hash: u32) {
    GENERATION.set(GENERATION.get() + 1);
}

impl Table {
    pub const fn new(
        name: &'static CStr,
        columns: &'static [&'static CStr],
        indexes: &'static [Index],
    ) -> Self {
        Self {
            name,
            columns,
            indexes,
            derived: false,
            in_every_version: false,
            known: RefCell::new(None),
            member: Cell::new(Oid::INVALID),
        }
    }

    /// A table whose rows are derived from other tables' and changed only together with them.
    pub const fn derived(mut self) -> Self {
        self.derived = true;
        self
    }

    /// Used even while other tables are an earlier version's.
    pub const fn in_every_version(mut self) -> Self {
        self.in_every_version = true;
        self
    }

    /// Refuses if the table cannot be used as it is.
    pub fn check(&self) -> Result<()> {
        self.known().map(drop)
    }

    pub(super) fn known(&self) -> Result<Rc<Known>> {
        let generation = generation();
        if let Some(known) = &*self.known.borrow()
            && known.generation == generation
        {
            return Ok(Rc::clone(known));
        }
        let known = Rc::new(self.look_up(generation)?);
        *self.known.borrow_mut() = Some(Rc::clone(&known));
        Ok(known)
    }

    /// Moves whenever the table may have been altered, its triggers included, or analysed; and when it is another one.
    pub fn alterations(&self) -> Result<u64> {
        let table = self.known()?.table;
        Ok(WATCHED.with_borrow_mut(|watched| {
            if let Some((_, count)) = watched.iter().find(|(of, _)| *of == table) {
                return *count;
            }
            let sum = watched.iter().map(|(_, count)| count + 1).sum();
            watched.push((table, sum));
            sum
        }))
    }

    #[cold]
    fn look_up(&self, generation: u64) -> Result<Known> {
        // SAFETY: syscache lookups on valid strings; the relation is closed again, and its descriptor read before that.
        unsafe {
            let schema = pg_sys::get_namespace_oid(SCHEMA.as_ptr(), true);
            let find = |name: &CStr| pg_sys::get_relname_relid(name.as_ptr(), schema);
            let table = find(self.name);
            if schema == Oid::INVALID || table == Oid::INVALID || !self.is_member(table) {
                return Err(if self.derived && is_outdated() { outdated() } else { missing() });
            }
            if !self.in_every_version && is_outdated() {
                return Err(outdated());
            }
            let indexes: Vec<Oid> = self.indexes.iter().map(|index| find(index.name)).collect();
            if indexes.contains(&Oid::INVALID) {
                return Err(outdated());
            }
            let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
            let relation = pg_sys::try_table_open(table, lock);
            if relation.is_null() {
                return Err(missing());
            }
            let is_heap = (*(*relation).rd_rel).relam == pg_sys::HEAP_TABLE_AM_OID;
            let attributes = tuple::attributes((*relation).rd_att);
            pg_sys::table_close(relation, lock);
            if !is_heap {
                return Err(VaultError::new(
                    Kind::WrongState,
                    format!("table \"vault.{}\" does not have the table access method heap", self.display()),
                )
                .hint("Run ALTER TABLE … SET ACCESS METHOD heap."));
            }
            self.arrange(table, indexes, &attributes, generation)
        }
    }

    fn arrange(
        &self,
        table: Oid,
        indexes: Vec<Oid>,
        attributes: &[Attribute],
        generation: u64,
    ) -> Result<Known> {
        let place = |name: &CStr| attributes.iter().position(|attribute| attribute.is(name));
        let mut numbers = Vec::with_capacity(self.columns.len());
        for name in self.columns {
            numbers.push(place(name).ok_or_else(outdated)? as i16 + 1);
        }
        let ours = |i: usize| numbers.iter().position(|number| *number as usize == i + 1);
        let obstacle = attributes
            .iter()
            .enumerate()
            .find_map(|(i, attribute)| if ours(i).is_some() { None } else { attribute.obstacle() });
        let layout = Layout::new(
            attributes
                .iter()
                .enumerate()
                .map(|(i, attribute)| (attribute.len, attribute.align, ours(i).map(|place| place + 1))),
        )
        .ok_or_else(|| {
            VaultError::internal(format!("table vault.{} has a column of an unknown kind", self.display()))
        })?;
        Ok(Known { table, indexes, layout, numbers, width: attributes.len(), obstacle, generation })
    }

    /// Whether the relation belongs to the extension. Asked of the catalog once for each relation: a member stays one.
    fn is_member(&self, table: Oid) -> bool {
        if self.member.get() == table {
            return true;
        }
        let member = catalog::has_relation(table);
        if member {
            self.member.set(table);
        }
        member
    }

    fn display(&self) -> String {
        self.name.to_string_lossy().into_owned()
    }

    /// Refuses if rows cannot be written as the table is now.
    pub(super) fn check_writable(&self, known: &Known) -> Result<()> {
        let Some(obstacle) = &known.obstacle else { return Ok(()) };
        Err(VaultError::new(
            Kind::WrongState,
            format!("table \"vault.{}\" has a column that the extension cannot fill", self.display()),
        )
        .detail(obstacle.clone())
        .hint("Additional columns must accept NULL: change the column, or drop it."))
    }
}

/// The extension is there, but not its tables by their names; or it is not there.
fn missing() -> VaultError {
    // SAFETY: catalog lookups on valid strings.
    let extension = unsafe { pg_sys::get_extension_oid(EXTENSION.as_ptr(), true) };
    let error = VaultError::new(Kind::WrongState, "the tables of hyperion_vault are missing");
    if extension == Oid::INVALID {
        return error.hint("Run CREATE EXTENSION hyperion_vault.");
    }
    let schema = extension_schema(extension).unwrap_or_default();
    if schema.is_empty() || schema == "vault" {
        return error
            .detail("The extension is here, but at least one of its tables is not, or was taken out of it.")
            .hint("Restore the table, or recreate the extension.");
    }
    error.detail(format!("The extension's schema was renamed: it is called \"{schema}\" now.")).hint(format!(
        "Run ALTER SCHEMA \"{}\" RENAME TO vault; if there is another schema of that name, rename or drop it first.",
        schema.replace('"', "\"\"")
    ))
}

/// The name that the extension's schema has now.
fn extension_schema(extension: Oid) -> Option<String> {
    let schema = super::catalog::extension_namespace(extension)?;
    // SAFETY: a syscache lookup; the result is null or palloc'd.
    unsafe {
        let name = pg_sys::get_namespace_name(schema);
        (!name.is_null()).then(|| datum::cstr_lossy(name))
    }
}

/// Whether the extension is here with the tables of an earlier version. In a transaction.
pub(super) fn is_outdated() -> bool {
    // SAFETY: catalog lookups on valid strings.
    unsafe {
        let schema = pg_sys::get_namespace_oid(SCHEMA.as_ptr(), true);
        schema != Oid::INVALID
            && NEWEST.iter().any(|name| pg_sys::get_relname_relid(name.as_ptr(), schema) == Oid::INVALID)
            && pg_sys::get_extension_oid(EXTENSION.as_ptr(), true) != Oid::INVALID
    }
}

/// The tables are those of another version of the extension than the library.
pub fn outdated() -> VaultError {
    VaultError::new(Kind::Outdated, "the tables of hyperion_vault do not fit the library")
        .detail("A table, a column or an index is missing.")
        .hint("Run ALTER EXTENSION hyperion_vault UPDATE.")
}
