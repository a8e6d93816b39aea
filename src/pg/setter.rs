//! [`SetterScope`]: the state in which a secret's target is applied, as the role that set it.
//!
//! Inside it the session is that role, in a security-restricted operation: no SET ROLE, no temporary objects, nothing
//! deferred to a time when the session is somebody else again. `search_path` is `pg_catalog, pg_temp`, and the settings
//! by which a caller could bend what runs here are the server's own. Settings that change inside do not outlive it.
//!
//! Client backends and database workers, main thread. The trap it avoids: rights that come from whoever happens to
//! rotate, or from the worker, which is a superuser. What is put back on the way out: on return by `drop`; on an error by the abort of the (sub)transaction, which the server
//! does itself (and which must not be called while an error unwinds).

use std::ffi::{CStr, CString};

use pgrx::pg_sys::{self, Oid};

/// What a caller could set to have the same code mean something else, or its statements shown with their parameters.
const FIXED: [(&CStr, &CStr); 11] = [
    (c"search_path", c"pg_catalog, pg_temp"),
    (c"row_security", c"on"),
    (c"standard_conforming_strings", c"on"),
    (c"transform_null_equals", c"off"),
    (c"TimeZone", c"UTC"),
    (c"DateStyle", c"ISO, MDY"),
    (c"IntervalStyle", c"postgres"),
    (c"bytea_output", c"hex"),
    (c"debug_print_parse", c"off"),
    (c"debug_print_rewritten", c"off"),
    (c"debug_print_plan", c"off"),
];

pub struct SetterScope {
    nest: i32,
    user: Oid,
    context: i32,
}

impl SetterScope {
    pub fn enter(setter: Oid) -> Self {
        let mut user = Oid::INVALID;
        let mut context = 0;
        // SAFETY: out-parameters are valid; the calls below only change session state that `drop`, or the abort of
        // the surrounding (sub)transaction, restores.
        let nest = unsafe {
            pg_sys::GetUserIdAndSecContext(&mut user, &mut context);
            let nest = pg_sys::NewGUCNestLevel();
            for (name, value) in FIXED {
                set(name, value);
            }
            harden_verifiers();
            let restricted = pg_sys::SECURITY_RESTRICTED_OPERATION | pg_sys::SECURITY_LOCAL_USERID_CHANGE;
            pg_sys::SetUserIdAndSecContext(setter, context | restricted as i32);
            nest
        };
        Self { nest, user, context }
    }
}

/// Sets a parameter until the nest level ends.
///
/// # Safety
/// A nest level of the caller is open.
unsafe fn set(name: &CStr, value: &CStr) {
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

/// As the server has it by default, and PostgreSQL 15 always.
const FEWEST_ITERATIONS: i64 = 4096;

/// Whoever rotates does not choose how hard a password is to guess: what the session itself has set is undone, and what
/// its role or database sets counts only upwards.
///
/// # Safety
/// A nest level of the caller is open.
unsafe fn harden_verifiers() {
    // PostgreSQL 15 does not have the setting.
    if cfg!(feature = "pg15") {
        return;
    }
    let name = c"scram_iterations";
    // SAFETY: the setting exists; its reset value is read before anything changes it.
    let servers = unsafe {
        let value = pg_sys::GetConfigOptionResetString(name.as_ptr());
        if value.is_null() {
            None
        } else {
            CStr::from_ptr(value).to_str().ok().and_then(|text| text.parse().ok())
        }
    };
    let iterations = servers.unwrap_or(FEWEST_ITERATIONS).max(FEWEST_ITERATIONS);
    if let Ok(iterations) = CString::new(iterations.to_string()) {
        // SAFETY: as the caller promises.
        unsafe { set(name, &iterations) };
    }
}

impl Drop for SetterScope {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // Not as at a commit: a setting that a function changed inside goes back as well.
            // SAFETY: the values are those `enter` saved; the nest level is the one it opened.
            unsafe {
                pg_sys::SetUserIdAndSecContext(self.user, self.context);
                pg_sys::AtEOXact_GUC(false, self.nest);
            }
        }
    }
}
