//! Who is calling, from where, and in what kind of context.
//!
//! Client backends, main thread. The trap it avoids: `MyProcPort` is null in every process without a client, and a
//! Unix-socket client has no address: the two must not be taken for one another.

use std::cell::{Cell, OnceCell};
use std::ffi::CStr;
use std::net::IpAddr;

use pgrx::pg_sys::{self, Datum, Oid};

use super::{datum, plain};

/// Where the session's client is. Constant for the life of the process.
#[derive(Clone, Debug)]
pub enum Origin {
    UnixSocket,
    Ip(IpAddr),
    /// A background worker connected to the database, with its type.
    Worker(String),
    Autovacuum,
    /// Anything else: a parallel worker, a standalone backend. Never admitted.
    Other,
}

thread_local! {
    static ORIGIN: OnceCell<Origin> = const { OnceCell::new() };
}

/// Runs `f` with the session's origin, found once per process.
pub fn with_origin<R>(f: impl FnOnce(&Origin) -> R) -> R {
    ORIGIN.with(|origin| f(origin.get_or_init(find_origin)))
}

fn find_origin() -> Origin {
    // SAFETY: these globals are set before any SQL runs and do not change afterwards.
    unsafe {
        if !pg_sys::MyProcPort.is_null() {
            return match client_address() {
                Some(ip) => Origin::Ip(ip),
                None => Origin::UnixSocket,
            };
        }
        if pg_sys::MyBackendType == pg_sys::BackendType::B_AUTOVAC_WORKER {
            return Origin::Autovacuum;
        }
        if pg_sys::MyBackendType == pg_sys::BackendType::B_BG_WORKER && !pg_sys::MyBgworkerEntry.is_null() {
            if pg_sys::ParallelWorkerNumber >= 0 {
                return Origin::Other;
            }
            let kind = CStr::from_ptr((*pg_sys::MyBgworkerEntry).bgw_type.as_ptr());
            return Origin::Worker(kind.to_string_lossy().into_owned());
        }
    }
    Origin::Other
}

/// What `inet_client_addr()` says: the peer of the TCP connection, None on a Unix socket.
fn client_address() -> Option<IpAddr> {
    // A call frame for a function without arguments that looks only at `isnull`.
    // SAFETY: zero is valid for every field of FunctionCallInfoBaseData; inet_client_addr reads MyProcPort (not
    // null: checked by the caller) and its result is null or an inet.
    unsafe {
        let mut frame: pg_sys::FunctionCallInfoBaseData = std::mem::zeroed();
        let address = pg_sys::inet_client_addr(&mut frame);
        if frame.isnull {
            return None;
        }
        datum::inet(address).map(|net| net.addr())
    }
}

/// The role whose rights count now: the session's, or what SET ROLE or a SECURITY DEFINER function made of it.
pub fn current_user() -> Oid {
    plain::user()
}

/// Whether this is a child of the postmaster, and not the postmaster itself.
pub fn is_child() -> bool {
    // SAFETY: a plain read of a flag that is set right after the fork.
    unsafe { pg_sys::IsUnderPostmaster }
}

/// The role that connected, whatever SET ROLE made of it since; SET SESSION AUTHORIZATION changes it.
pub fn session_user() -> Oid {
    plain::session_user()
}

pub fn is_superuser(role: Oid) -> bool {
    // SAFETY: a syscache lookup; false for a role that does not exist.
    unsafe { pg_sys::superuser_arg(role) }
}

/// Whether `role` has the privileges of `of` (membership with INHERIT), false where `of` does not exist.
pub fn has_privileges_of(role: Oid, of: &CStr) -> bool {
    // SAFETY: syscache lookups on valid arguments.
    unsafe {
        let of = pg_sys::get_role_oid(of.as_ptr(), true);
        of != Oid::INVALID && pg_sys::has_privs_of_role(role, of)
    }
}

thread_local! {
    static ROLES_CHANGED: Cell<u64> = const { Cell::new(0) };
    static LISTENING: Cell<bool> = const { Cell::new(false) };
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn roles_changed(_arg: Datum, _cache: i32, _hash: u32) {
    ROLES_CHANGED.set(ROLES_CHANGED.get() + 1);
}

/// Learns what other sessions have committed since this one last looked: within an open transaction a statement without
/// tables does not by itself. Costs a look at a counter if there is nothing.
pub fn hear_of_changes() {
    // SAFETY: a transaction is running; what taking any lock on a relation does.
    unsafe { pg_sys::AcceptInvalidationMessages() };
}

/// Moves whenever who is a member of what, who is a superuser, or what a role is called may have changed. Databases
/// too, for pg_database_owner, as the server's own cache of memberships does.
pub fn roles_generation() -> u64 {
    if !LISTENING.replace(true) {
        use pg_sys::SysCacheIdentifier::{AUTHMEMROLEMEM, AUTHOID, DATABASEOID};
        for cache in [AUTHMEMROLEMEM, AUTHOID, DATABASEOID] {
            // SAFETY: the callback stays valid; registered once per process.
            unsafe {
                pg_sys::CacheRegisterSyscacheCallback(cache as i32, Some(roles_changed), Datum::null())
            };
        }
    }
    ROLES_CHANGED.get()
}

/// Whether `role` has the privileges of `of` (membership with INHERIT), which may be gone.
pub fn has_privileges_of_role(role: Oid, of: Oid) -> bool {
    // SAFETY: syscache lookups; of a role that is gone nobody is a member.
    unsafe { pg_sys::has_privs_of_role(role, of) }
}

/// Whether `role` may grant `of` to others: membership with ADMIN OPTION, or a superuser.
pub fn is_admin_of(role: Oid, of: Oid) -> bool {
    // SAFETY: syscache lookups.
    unsafe { pg_sys::is_admin_of_role(role, of) }
}

/// The name of a role, None if there is none of that oid.
pub fn role_name(role: Oid) -> Option<String> {
    // SAFETY: a syscache lookup; the result is null or a palloc'd string.
    unsafe {
        let name = pg_sys::GetUserNameFromId(role, true);
        (!name.is_null()).then(|| datum::cstr_lossy(name))
    }
}

/// The oid of a role by name.
pub fn role_oid(name: &CStr) -> Option<Oid> {
    // SAFETY: a syscache lookup on a valid string.
    let oid = unsafe { pg_sys::get_role_oid(name.as_ptr(), true) };
    (oid != Oid::INVALID).then_some(oid)
}

/// Whether the server runs an index expression, a materialised view's query, VACUUM or ANALYZE on behalf of a
/// table's owner: its results are stored where this code does not reach.
pub fn in_restricted_operation() -> bool {
    // SAFETY: no arguments.
    unsafe { pg_sys::InSecurityRestrictedOperation() }
}

pub fn in_recovery() -> bool {
    plain::in_recovery()
}

/// Whether the server was started by pg_upgrade.
pub fn in_binary_upgrade() -> bool {
    // SAFETY: a plain read of a flag set at start.
    unsafe { pg_sys::IsBinaryUpgrade }
}

pub fn transaction_read_only() -> bool {
    // SAFETY: a plain read of a flag the main thread alone writes.
    unsafe { pg_sys::XactReadOnly }
}

/// Whether a parallel plan is running, in its leader or in a worker: nothing can be written then.
pub fn in_parallel_mode() -> bool {
    // SAFETY: no arguments.
    unsafe { pg_sys::IsInParallelMode() }
}

pub fn database_is_utf8() -> bool {
    // SAFETY: no arguments; constant per session.
    unsafe { pg_sys::GetDatabaseEncoding() == pg_sys::pg_enc::PG_UTF8 as i32 }
}

/// The name of the database the session is connected to. Asked each time: it may be renamed meanwhile.
pub fn database_name() -> String {
    // SAFETY: a syscache lookup; the result is palloc'd in the current context.
    unsafe { datum::cstr_lossy(pg_sys::get_database_name(pg_sys::MyDatabaseId)) }
}
