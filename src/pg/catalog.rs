//! Questions to the catalogs about databases and the extension.
//!
//! Sessions and workers, main thread. The trap it avoids: the launcher is connected to no database and knows only the
//! shared catalogs, and those only by walking over them: their indexes are described in a database's own.

use std::ffi::{CStr, CString};

use pgrx::pg_sys::{self, Oid};

use super::identity;

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
    unsafe { pg_sys::get_extension_oid(c"hyperion_vault".as_ptr(), true) != Oid::INVALID }
}

/// The schema of an extension, None if there is no such extension.
pub(super) fn extension_namespace(extension: Oid) -> Option<Oid> {
    // SAFETY: a scan of the catalog by its key; the tuple's fixed part is read while the scan is open.
    unsafe {
        let lock = pg_sys::AccessShareLock as i32;
        let relation = pg_sys::table_open(pg_sys::ExtensionRelationId, lock);
        let mut key = pg_sys::ScanKeyData::default();
        pg_sys::ScanKeyInit(
            &mut key,
            pg_sys::Anum_pg_extension_oid as i16,
            pg_sys::BTEqualStrategyNumber as u16,
            pg_sys::Oid::from(pg_sys::F_OIDEQ),
            pg_sys::Datum::from(extension),
        );
        let index = Oid::from(pg_sys::ExtensionOidIndexId);
        let scan = pg_sys::systable_beginscan(relation, index, true, std::ptr::null_mut(), 1, &mut key);
        let tuple = pg_sys::systable_getnext(scan);
        let found = (!tuple.is_null())
            .then(|| (*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_extension>()).extnamespace);
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, lock);
        found
    }
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
