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
