//! [`ServiceScope`]: the state in which the extension runs SQL of its own.
//!
//! Inside it the session is `vault_service`, `search_path` is `pg_catalog, pg_temp`, `row_security` is on, `TimeZone` is
//! UTC, and the flag that every row-level security policy asks for (`vault._inside()`) is up. Each is put back on every
//! way out: on return by `drop`; on an error by `drop` for the flag, and by the abort of the (sub)transaction for the role
//! and the settings, which the server restores itself (and which must not be called while an error unwinds).
//!
//! Client backends and database workers, main thread. No user code runs inside: statements are constant, parameters
//! are bound, and nothing the caller owns is named.

use std::cell::Cell;

use pgrx::pg_sys;

use super::identity;
use crate::error::{Kind, Result, VaultError};

thread_local! {
    /// The flag behind `vault._inside()`.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

pub fn inside() -> bool {
    INSIDE.get()
}

/// The flag raised or lowered, and put back as it was on every way out.
pub(super) struct InsideFlag {
    was: bool,
}

impl InsideFlag {
    fn raise() -> Self {
        Self { was: INSIDE.replace(true) }
    }

    pub(super) fn lower() -> Self {
        Self { was: INSIDE.replace(false) }
    }
}

impl Drop for InsideFlag {
    fn drop(&mut self) {
        INSIDE.set(self.was);
    }
}

pub struct ServiceScope {
    nest: i32,
    user: pg_sys::Oid,
    context: i32,
    // Dropped after `drop` runs: the flag is up as long as the session is vault_service.
    _inside: InsideFlag,
}

impl ServiceScope {
    pub fn enter() -> Result<Self> {
        let service = identity::role_oid(c"vault_service").ok_or_else(|| {
            VaultError::new(Kind::WrongState, "role \"vault_service\" does not exist")
                .hint("Create it with CREATE ROLE vault_service NOLOGIN and grant it what sql/20_schema.sql grants, or recreate the extension.")
        })?;
        let mut user = pg_sys::Oid::INVALID;
        let mut context = 0;
        // SAFETY: out-parameters are valid; the calls below only change session state that `drop`, or the abort of
        // the surrounding (sub)transaction, restores.
        let nest = unsafe {
            pg_sys::GetUserIdAndSecContext(&mut user, &mut context);
            let nest = pg_sys::NewGUCNestLevel();
            set(c"search_path", c"pg_catalog, pg_temp");
            set(c"row_security", c"on");
            // Sums of timestamps and intervals must not depend on who happens to rotate.
            set(c"TimeZone", c"UTC");
            pg_sys::SetUserIdAndSecContext(service, context | pg_sys::SECURITY_LOCAL_USERID_CHANGE as i32);
            nest
        };
        Ok(Self { nest, user, context, _inside: InsideFlag::raise() })
    }
}

impl ServiceScope {
    /// From here on until the scope ends, statements that want rows in the order of an index get them from it: a page
    /// that is sorted out of all that match costs as much as all of them, once a page.
    pub fn prefer_index_order(&self) {
        // SAFETY: the nest level is open as long as `self` is.
        unsafe {
            set(c"enable_bitmapscan", c"off");
            set(c"enable_seqscan", c"off");
            set(c"enable_sort", c"off");
        }
    }
}

/// Sets a parameter until the nest level ends.
///
/// # Safety
/// A nest level of the caller is open.
pub(super) unsafe fn set(name: &std::ffi::CStr, value: &std::ffi::CStr) {
    // SAFETY: valid strings; PGC_USERSET settings that any session may change.
    unsafe {
        pg_sys::set_config_option(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            pg_sys::GucSource::PGC_S_SESSION,
            pg_sys::GucAction::GUC_ACTION_SAVE,
            true,
            0,
            false,
        );
    }
}

impl Drop for ServiceScope {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: the values are those `enter` saved; the nest level is the one it opened.
            unsafe {
                pg_sys::SetUserIdAndSecContext(self.user, self.context);
                pg_sys::AtEOXact_GUC(true, self.nest);
            }
        }
    }
}
