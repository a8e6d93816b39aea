//! Setting the password of a role without a statement that holds it.
//!
//! `ALTER ROLE … PASSWORD` as text would put the verifier into `pg_stat_activity`, `pg_stat_statements`, the log. So the
//! server's own `AlterRole()` is called with a parse node built here. It checks the current role's rights, asks the
//! hooks that judge passwords, and writes `pg_authid` in the running transaction; what it raises is passed on, without
//! anything that looks like a verifier.
//!
//! Client backends and database workers, main thread, inside a `SetterScope`. The trap it avoids: a password in memory
//! that is freed but not wiped. The copy made here and the verifier are wiped; what the server's own functions copy is not.

use std::ffi::{CStr, CString, c_char};
use std::panic::AssertUnwindSafe;

use pgrx::pg_sys::panic::CaughtError;
use pgrx::pg_sys::{self, Oid};
use zeroize::{Zeroize, Zeroizing};

use crate::error::{Kind, Result, VaultError};

mod raw {
    use std::ffi::c_char;

    unsafe extern "C-unwind" {
        /// libpq/auth-scram.c: a SCRAM-SHA-256 verifier with a random salt and `scram_iterations`, palloc'd.
        pub fn pg_be_scram_build_secret(password: *const c_char) -> *mut c_char;
    }
}

/// Until when a role's password is accepted, as in `VALID UNTIL`.
#[derive(Clone, Copy)]
pub enum ValidUntil {
    Infinity,
    At(i64),
}

/// What is changed of a role.
pub struct Change<'a> {
    pub role: &'a str,
    pub password: Option<&'a str>,
    pub valid_until: Option<ValidUntil>,
}

/// Holds a role still until the end of the transaction: it is not dropped, and no other session of ours changes its
/// password. None if there is no role of that name.
pub fn lock_role(name: &str) -> Option<Oid> {
    let name = CString::new(name).ok()?;
    let role = super::identity::role_oid(&name)?;
    // SAFETY: any number can be locked; who waits here can be cancelled.
    unsafe {
        let mode = pg_sys::ShareUpdateExclusiveLock as pg_sys::LOCKMODE;
        pg_sys::LockSharedObject(pg_sys::AuthIdRelationId, role, 0, mode);
    }
    // Renamed or dropped while this waited: it is not the one that was asked for.
    (super::identity::role_oid(&name) == Some(role)).then_some(role)
}

/// Changes the role as the current one, in this transaction. Returns the role's oid.
pub fn alter_role(change: &Change<'_>) -> Result<Oid> {
    let altered = pgrx::PgTryBuilder::new(AssertUnwindSafe(|| alter(change)))
        .catch_others(|caught| refused(change.role, caught))
        .execute()?;
    // SAFETY: no arguments. What comes next in this transaction sees the change.
    unsafe { pg_sys::CommandCounterIncrement() };
    Ok(altered)
}

fn refused(role: &str, caught: CaughtError) -> Result<Oid> {
    let report = match &caught {
        CaughtError::PostgresError(report)
        | CaughtError::ErrorReport(report)
        | CaughtError::RustPanic { ereport: report, .. } => report,
    };
    if crate::error::is_for_the_caller(report.sql_error_code()) {
        caught.rethrow();
    }
    // The server has no code for it, and does not translate it: somebody else altered the role and committed while this
    // waited for its row.
    if report.message().starts_with("tuple concurrently") {
        VaultError::new(Kind::Conflict, format!("role \"{role}\" was altered meanwhile"))
            .hint("Try again.")
            .raise();
    }
    let mut reason = report.message().to_owned();
    if let Some(detail) = report.detail() {
        reason = format!("{reason}: {detail}");
    }
    if reason.contains("SCRAM-SHA-256$") {
        "the reason is not repeated here, since it holds what is stored of the password"
            .clone_into(&mut reason);
    }
    // Goes straight out: nothing is done in the transaction before it is undone.
    Err(VaultError::new(Kind::TargetFailed, format!("the password of role \"{role}\" could not be set"))
        .detail(format!("The server said: {reason}."))
        .hint("Nothing was changed. An extension that checks passwords must accept them as SCRAM verifiers, and this one."))
}

fn alter(change: &Change<'_>) -> Result<Oid> {
    let role = CText::new(change.role)?;
    let password = change.password.map(CText::new).transpose()?;
    let until = change.valid_until.map(|until| match until {
        ValidUntil::Infinity => c"infinity".to_owned(),
        // SAFETY: the result is in a static buffer, copied at once.
        ValidUntil::At(at) => unsafe { CStr::from_ptr(pg_sys::timestamptz_to_str(at)).to_owned() },
    });
    // SAFETY: nodes are palloc'd, of the types that AlterRole expects of the grammar; strings outlive the call, which
    // copies what it keeps. An error unwinds from here; what is left of the verifier then is in the memory of the call
    // that failed.
    unsafe {
        let verifier: *mut c_char = match &password {
            Some(password) => {
                let password = password.as_ptr();
                pg_sys::ffi::pg_guard_ffi_boundary(move || raw::pg_be_scram_build_secret(password))
            }
            None => std::ptr::null_mut(),
        };
        let mut options = std::ptr::null_mut();
        if !verifier.is_null() {
            options = pg_sys::lappend(options, option(c"password", verifier).cast());
        }
        if let Some(until) = &until {
            options = pg_sys::lappend(options, option(c"validUntil", until.as_ptr().cast_mut()).cast());
        }
        let mut spec = pg_sys::RoleSpec {
            type_: pg_sys::NodeTag::T_RoleSpec,
            roletype: pg_sys::RoleSpecType::ROLESPEC_CSTRING,
            rolename: role.as_ptr().cast_mut(),
            location: -1,
        };
        let mut statement = pg_sys::AlterRoleStmt {
            type_: pg_sys::NodeTag::T_AlterRoleStmt,
            role: &mut spec,
            options,
            // Options are set, not taken away.
            action: 1,
        };
        let state = pg_sys::make_parsestate(std::ptr::null_mut());
        let oid = pg_sys::AlterRole(state, &mut statement);
        pg_sys::free_parsestate(state);
        if !verifier.is_null() {
            std::slice::from_raw_parts_mut(verifier.cast::<u8>(), CStr::from_ptr(verifier).count_bytes())
                .zeroize();
        }
        Ok(oid)
    }
}

/// # Safety
/// `value` is a string that outlives the node.
unsafe fn option(name: &CStr, value: *mut c_char) -> *mut pg_sys::DefElem {
    // SAFETY: as the caller promises; names are static.
    unsafe { pg_sys::makeDefElem(name.as_ptr().cast_mut(), pg_sys::makeString(value).cast(), -1) }
}

/// With its terminating zero, wiped on drop.
struct CText(Zeroizing<Vec<u8>>);

impl CText {
    fn new(text: &str) -> Result<Self> {
        if text.as_bytes().contains(&0) {
            return Err(VaultError::internal("a name or password with a zero byte"));
        }
        // Full capacity at once: growing would leave a copy behind, unwiped.
        let mut bytes = Zeroizing::new(Vec::with_capacity(text.len() + 1));
        bytes.extend_from_slice(text.as_bytes());
        bytes.push(0);
        Ok(Self(bytes))
    }

    fn as_ptr(&self) -> *const c_char {
        self.0.as_ptr().cast()
    }
}
