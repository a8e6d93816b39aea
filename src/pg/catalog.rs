//! Questions to the catalogs about databases and the extension.
//!
//! Sessions and workers, main thread. The trap it avoids: the launcher is connected to no database and knows only the
//! shared catalogs, and those only by walking over them: their indexes are described in a database's own.

use std::ffi::{CStr, CString};

use pgrx::pg_sys::{self, Oid};

use super::identity;

/// The extension's name, as CREATE EXTENSION takes it.
pub(super) const EXTENSION: &CStr = c"hyperion_vault";

/// Whether there is a database of that name that can be connected to. For a worker of no database, outside a
/// transaction.
pub fn accepts_connections(name: &str) -> bool {
    // SAFETY: a transaction of its own around a walk over a shared catalog, as the server's autovacuum launcher does it;
    // the tuples' fixed part is read while the scan is open.
    unsafe {
        pg_sys::StartTransactionCommand();
        pg_sys::GetTransactionSnapshot();
        let relation = pg_sys::table_open(pg_sys::DatabaseRelationId, pg_sys::AccessShareLock as i32);
        let scan = pg_sys::table_beginscan_catalog(relation, 0, std::ptr::null_mut());
        let mut found = false;
        loop {
            let tuple = pg_sys::heap_getnext(scan, pg_sys::ScanDirection::ForwardScanDirection);
            if tuple.is_null() {
                break;
            }
            let form = &*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_database>();
            // A connection limit of -2 marks one that is half dropped.
            if CStr::from_ptr(form.datname.data.as_ptr()).to_bytes() == name.as_bytes() {
                found = form.datallowconn && form.datconnlimit != -2;
                break;
            }
        }
        pg_sys::table_endscan(scan);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
        pg_sys::CommitTransactionCommand();
        found
    }
}

/// Whether the extension exists in the database of this session. In a transaction.
pub fn extension_exists() -> bool {
    // SAFETY: a catalog lookup by a valid string.
    unsafe { pg_sys::get_extension_oid(EXTENSION.as_ptr(), true) != Oid::INVALID }
}

/// The schema of an extension, None if there is no such extension.
pub(super) fn extension_namespace(extension: Oid) -> Option<Oid> {
    let class = pg_sys::ExtensionRelationId;
    row_now(class, extension, |row| row.oid(pg_sys::Anum_pg_extension_extnamespace as i16))
}

/// The extension in this database.
pub(super) struct Vault {
    extension: Oid,
    pub(super) namespace: Oid,
}

/// None where it is not installed. In a transaction.
pub(super) fn vault() -> Option<Vault> {
    // SAFETY: a catalog lookup by a valid string.
    let extension = unsafe { pg_sys::get_extension_oid(EXTENSION.as_ptr(), true) };
    if extension == Oid::INVALID {
        return None;
    }
    Some(Vault { extension, namespace: extension_namespace(extension)? })
}

impl Vault {
    /// Whether the table, view or foreign table belongs to the extension.
    pub(super) fn has_relation(&self, relation: Oid) -> bool {
        extension_of(relation) == self.extension
    }
}

/// Whether the table, view or foreign table belongs to the extension. In a transaction.
pub(super) fn has_relation(relation: Oid) -> bool {
    // SAFETY: a catalog lookup by a valid string.
    let extension = unsafe { pg_sys::get_extension_oid(EXTENSION.as_ptr(), true) };
    extension != Oid::INVALID && extension_of(relation) == extension
}

/// INVALID for what belongs to none, or is not there.
fn extension_of(relation: Oid) -> Oid {
    // SAFETY: a catalog lookup by oid.
    unsafe { pg_sys::getExtensionOfObject(pg_sys::RelationRelationId, relation) }
}

/// pg_constraint, pg_depend and its index by the dependent object, and pg_rewrite: names that the bindings lack.
pub(super) const CONSTRAINTS: Oid = Oid::from_u32(2606);
const DEPENDENCIES: Oid = Oid::from_u32(2608);
const DEPENDENCIES_BY_DEPENDENT: Oid = Oid::from_u32(2673);
const RULES: Oid = Oid::from_u32(2618);
pub(super) const TRIGGERS: Oid = pg_sys::TriggerRelationId;

/// A row of a catalog, during a look-up.
struct Row {
    tuple: pg_sys::HeapTuple,
    columns: pg_sys::TupleDesc,
}

impl Row {
    /// The value of a column of type oid, by its number.
    fn oid(&self, column: i16) -> Option<Oid> {
        // SAFETY: tuple and descriptor belong together, and the scan that they come from is open.
        let value = unsafe {
            pgrx::htup::heap_getattr_raw(
                self.tuple,
                std::num::NonZeroUsize::new(column as usize)?,
                self.columns,
            )
        };
        value.map(|datum| Oid::from(datum.value() as u32))
    }
}

/// What `f` makes of the row of a catalog that has that oid, as it is now: the running command's own changes included.
fn row_now<R>(class: Oid, object: Oid, f: impl FnOnce(&Row) -> Option<R>) -> Option<R> {
    // SAFETY: asked first whether the class is one of those with an oid and an index on it.
    let (index, column) = unsafe {
        if !pg_sys::is_objectclass_supported(class) {
            return None;
        }
        (pg_sys::get_object_oid_index(class), pg_sys::get_object_attnum_oid(class))
    };
    let mut f = Some(f);
    let mut found = None;
    scan_now(class, index, &[(column, object)], |row| {
        if let Some(f) = f.take() {
            found = f(row);
        }
    });
    found
}

/// Calls `f` with each row whose leading columns of the index have those oids.
fn scan_now(class: Oid, index: Oid, columns: &[(i16, Oid)], mut f: impl FnMut(&Row)) {
    let lock = pg_sys::AccessShareLock as i32;
    let mut keys = [pg_sys::ScanKeyData::default(); 2];
    // SAFETY: a scan of a catalog by its index with keys that outlive it; rows are read while it is open. The snapshot is the
    // server's own static one.
    unsafe {
        for (key, (column, oid)) in keys.iter_mut().zip(columns) {
            let (equals, value) = (pg_sys::Oid::from(pg_sys::F_OIDEQ), pg_sys::Datum::from(*oid));
            pg_sys::ScanKeyInit(key, *column, pg_sys::BTEqualStrategyNumber as u16, equals, value);
        }
        let relation = pg_sys::table_open(class, lock);
        let snapshot = &raw mut pg_sys::SnapshotSelfData;
        let scan = pg_sys::systable_beginscan(
            relation,
            index,
            true,
            snapshot,
            columns.len() as i32,
            keys.as_mut_ptr(),
        );
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            f(&Row { tuple, columns: (*relation).rd_att });
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, lock);
    }
}

/// A column of type oid of a catalog's row, as it is now. None if there is no such row.
pub(super) fn oid_now(class: Oid, object: Oid, column: &CStr) -> Option<Oid> {
    // SAFETY: a syscache lookup by a valid string.
    let number = unsafe { pg_sys::get_attnum(class, column.as_ptr()) };
    row_now(class, object, |row| row.oid(number))
}

/// The schema that an object is in now; None if objects of its kind are in none.
pub(super) fn namespace_now(class: Oid, object: Oid) -> Option<Oid> {
    // SAFETY: asked first whether the class is known.
    let number = unsafe {
        if !pg_sys::is_objectclass_supported(class) {
            return None;
        }
        pg_sys::get_object_attnum_namespace(class)
    };
    (number > 0).then(|| row_now(class, object, |row| row.oid(number))).flatten()
}

/// Whether the relation is in a schema called vault.
pub(super) fn is_in_vault_schema(relation: Oid) -> bool {
    // SAFETY: syscache lookups; null, or a palloc'd string.
    unsafe {
        let name = pg_sys::get_namespace_name(pg_sys::get_rel_namespace(relation));
        !name.is_null() && CStr::from_ptr(name) == c"vault"
    }
}

/// None if it is no index.
pub(super) fn table_of_index(index: Oid) -> Option<Oid> {
    // SAFETY: a syscache lookup; no oid for what is no index.
    let table = unsafe { pg_sys::IndexGetRelation(index, true) };
    (table != Oid::INVALID).then_some(table)
}

/// The tables that inherit from it, also by way of others, and its partitions.
pub(super) fn descendants(relation: Oid) -> Vec<Oid> {
    unsafe extern "C-unwind" {
        /// catalog/pg_inherits.h.
        fn find_all_inheritors(parent: Oid, lock: i32, counts: *mut *mut pg_sys::List) -> *mut pg_sys::List;
    }
    // SAFETY: a catalog scan that takes no locks; the list is a copy. What it raises unwinds from the guard.
    unsafe {
        let list = pg_sys::ffi::pg_guard_ffi_boundary(|| {
            find_all_inheritors(relation, pg_sys::NoLock as i32, std::ptr::null_mut())
        });
        pgrx::PgList::<Oid>::from_pg(list).iter_oid().filter(|found| *found != relation).collect()
    }
}

/// The relations that a view's query names; none if it is no view.
pub(super) fn below_view(view: Oid) -> Vec<Oid> {
    // SAFETY: a syscache lookup.
    if unsafe { pg_sys::get_rel_relkind(view) } as u8 != pg_sys::RELKIND_VIEW {
        return Vec::new();
    }
    // SAFETY: a view exists as long as this command holds it; its rules are copied before it is closed.
    let rules: Vec<Oid> = unsafe {
        let lock = pg_sys::AccessShareLock as i32;
        let relation = pg_sys::try_relation_open(view, lock);
        if relation.is_null() {
            return Vec::new();
        }
        let block = (*relation).rd_rules;
        let rules = if block.is_null() {
            Vec::new()
        } else {
            (0..(*block).numLocks).map(|i| (**(*block).rules.add(i as usize)).ruleId).collect()
        };
        pg_sys::relation_close(relation, lock);
        rules
    };
    let mut below = Vec::new();
    for rule in rules {
        scan_now(DEPENDENCIES, DEPENDENCIES_BY_DEPENDENT, &[(1, RULES), (2, rule)], |row| {
            // refclassid, refobjid
            if row.oid(4) == Some(pg_sys::RelationRelationId)
                && let Some(relation) = row.oid(5)
                && relation != view
            {
                below.push(relation);
            }
        });
    }
    below
}

/// Whether `role` may drop or alter that database.
pub fn may_manage_database(name: &str, role: Oid) -> bool {
    let Some(database) = database_oid(name) else { return false };
    // SAFETY: a catalog lookup; true for superusers.
    unsafe {
        #[cfg(feature = "pg15")]
        {
            pg_sys::pg_database_ownercheck(database, role)
        }
        #[cfg(not(feature = "pg15"))]
        {
            pg_sys::object_ownercheck(pg_sys::DatabaseRelationId, database, role)
        }
    }
}

/// Whether `role` may make a database from that one.
pub fn may_copy_database(name: &str, role: Oid) -> bool {
    identity::is_superuser(role) || may_manage_database(name, role) && may_create_databases(role)
}

fn may_create_databases(role: Oid) -> bool {
    // SAFETY: a syscache lookup; the tuple's fixed part is read before it is released.
    unsafe {
        let tuple =
            pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::AUTHOID as i32, pg_sys::Datum::from(role));
        if tuple.is_null() {
            return false;
        }
        let may = (*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_authid>()).rolcreatedb;
        pg_sys::ReleaseSysCache(tuple);
        may
    }
}

fn database_oid(name: &str) -> Option<Oid> {
    let name = CString::new(name).ok()?;
    // SAFETY: a catalog lookup by a valid string.
    let oid = unsafe { pg_sys::get_database_oid(name.as_ptr(), true) };
    (oid != Oid::INVALID).then_some(oid)
}

/// What the catalog says of a role.
pub struct Role {
    pub name: String,
    pub superuser: bool,
    pub create_role: bool,
    pub replication: bool,
    pub bypass_rls: bool,
}

/// None if there is no such role.
pub fn role(oid: Oid) -> Option<Role> {
    // SAFETY: a syscache lookup; the tuple's fixed part is read before it is released.
    unsafe {
        let tuple =
            pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::AUTHOID as i32, pg_sys::Datum::from(oid));
        if tuple.is_null() {
            return None;
        }
        let form = &*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_authid>();
        let role = Role {
            name: super::datum::cstr_lossy(form.rolname.data.as_ptr()),
            superuser: form.rolsuper,
            create_role: form.rolcreaterole,
            replication: form.rolreplication,
            bypass_rls: form.rolbypassrls,
        };
        pg_sys::ReleaseSysCache(tuple);
        Some(role)
    }
}

/// A function with the parameters of a rotation hook: (text, int).
pub struct HookFunction {
    oid: Oid,
    schema: Oid,
    pub owner: Oid,
    /// Neither an aggregate, a window function, a procedure, nor one that returns a set.
    pub is_plain: bool,
}

/// None if there is no such function.
pub fn hook_function(schema: &str, name: &str) -> Option<HookFunction> {
    let (schema, name) = (CString::new(schema).ok()?, CString::new(name).ok()?);
    let parameters = [pg_sys::TEXTOID, pg_sys::INT4OID];
    // SAFETY: syscache lookups on valid strings and an oidvector that lives as long as the call; the tuple's fixed part is
    // read before it is released.
    unsafe {
        let schema = pg_sys::get_namespace_oid(schema.as_ptr(), true);
        if schema == Oid::INVALID {
            return None;
        }
        let parameters = pg_sys::buildoidvector(parameters.as_ptr(), parameters.len() as i32);
        let tuple = pg_sys::SearchSysCache3(
            pg_sys::SysCacheIdentifier::PROCNAMEARGSNSP as i32,
            pg_sys::Datum::from(name.as_ptr()),
            pg_sys::Datum::from(parameters),
            pg_sys::Datum::from(schema),
        );
        if tuple.is_null() {
            return None;
        }
        let form = &*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_proc>();
        let found = HookFunction {
            oid: form.oid,
            schema,
            owner: form.proowner,
            is_plain: form.prokind as u8 == b'f' && !form.proretset,
        };
        pg_sys::ReleaseSysCache(tuple);
        Some(found)
    }
}

/// Whether a role may call the function by its name: EXECUTE on it, and USAGE on its schema.
pub fn may_execute(role: Oid, function: &HookFunction) -> bool {
    // SAFETY: catalog lookups; false for what is gone.
    unsafe {
        #[cfg(feature = "pg15")]
        let (execute, usage) = (
            pg_sys::pg_proc_aclcheck(function.oid, role, pg_sys::ACL_EXECUTE as pg_sys::AclMode),
            pg_sys::pg_namespace_aclcheck(function.schema, role, pg_sys::ACL_USAGE as pg_sys::AclMode),
        );
        #[cfg(not(feature = "pg15"))]
        let (execute, usage) = (
            pg_sys::object_aclcheck(
                pg_sys::ProcedureRelationId,
                function.oid,
                role,
                pg_sys::ACL_EXECUTE as pg_sys::AclMode,
            ),
            pg_sys::object_aclcheck(
                pg_sys::NamespaceRelationId,
                function.schema,
                role,
                pg_sys::ACL_USAGE as pg_sys::AclMode,
            ),
        );
        execute == pg_sys::AclResult::ACLCHECK_OK && usage == pg_sys::AclResult::ACLCHECK_OK
    }
}

/// Tells listeners when the transaction commits, as `NOTIFY` does.
pub fn notify(channel: &CStr, payload: &str) -> crate::error::Result<()> {
    unsafe extern "C-unwind" {
        /// commands/async.h.
        fn Async_Notify(channel: *const std::ffi::c_char, payload: *const std::ffi::c_char);
    }
    let payload = CString::new(payload)
        .map_err(|_| crate::error::VaultError::internal("a notification with a zero byte"))?;
    // SAFETY: valid strings, copied; what it raises unwinds from the guard.
    unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| Async_Notify(channel.as_ptr(), payload.as_ptr())) };
    Ok(())
}
