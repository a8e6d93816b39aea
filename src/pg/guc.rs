//! Check hooks: a bad setting is refused when it is set, with a reason, not when it is used.
//!
//! Run in whatever process reads the setting: the postmaster at start and reload, a session at ALTER SYSTEM. The trap
//! they avoid: a value that is accepted at reload and fails every call afterwards.

use std::ffi::{CStr, CString, c_char};

use hyperion_vault_core::secret::InvalidArgument;
use pgrx::pg_sys;

/// Judges a string setting; used by [`check_hook!`].
///
/// # Safety
/// `newval` is the pointer a check hook is given: to null, or to a NUL-terminated string.
pub unsafe fn check(
    newval: *mut *mut c_char,
    judge: impl FnOnce(&str) -> Result<(), InvalidArgument>,
) -> bool {
    // SAFETY: as the caller promises.
    let value = unsafe {
        if (*newval).is_null() {
            return true;
        }
        CStr::from_ptr(*newval)
    };
    let verdict = match value.to_str() {
        Ok(value) => judge(value),
        Err(_) => Err(InvalidArgument::new("value is not UTF-8")),
    };
    match verdict {
        Ok(()) => true,
        Err(error) => {
            // The server reports `invalid value for parameter "…"` itself; the reason goes into its DETAIL.
            let detail = match error.detail {
                Some(detail) => format!("{}: {detail}", error.message),
                None => error.message,
            };
            // SAFETY: globals the server offers to check hooks; strings are palloc'd, as it expects.
            unsafe {
                pg_sys::GUC_check_errdetail_string = palloc_cstr(&detail);
                if let Some(hint) = error.hint {
                    pg_sys::GUC_check_errhint_string = palloc_cstr(&hint);
                }
            }
            false
        }
    }
}

fn palloc_cstr(text: &str) -> *mut c_char {
    let text = CString::new(text.replace('\0', " ")).unwrap_or_default();
    // SAFETY: a valid string, copied into the current memory context.
    unsafe { pg_sys::pstrdup(text.as_ptr()) }
}

/// Defines `fn $name` as a check hook that calls `$judge: fn(&str) -> Result<(), InvalidArgument>`.
macro_rules! check_hook {
    ($name:ident, $judge:path) => {
        #[::pgrx::pg_guard]
        unsafe extern "C-unwind" fn $name(
            newval: *mut *mut ::std::ffi::c_char,
            _extra: *mut *mut ::std::ffi::c_void,
            _source: ::pgrx::pg_sys::GucSource::Type,
        ) -> bool {
            // SAFETY: called by the server as a check hook.
            unsafe { $crate::pg::guc::check(newval, $judge) }
        }
    };
}
pub(crate) use check_hook;

/// The value of a string setting without copying it.
pub fn with_str<R>(setting: &pgrx::GucSetting<Option<CString>>, f: impl FnOnce(&str) -> R) -> R {
    // SAFETY: the variable holds null or a NUL-terminated string of the server, which does not change while `f`
    // runs (settings change between statements, or in a reload the main thread itself starts).
    let value = unsafe {
        let raw = *setting.as_ptr();
        if raw.is_null() { c"" } else { CStr::from_ptr(raw) }
    };
    f(value.to_str().unwrap_or(""))
}

/// Registers a string setting with a check hook.
pub fn define_checked_string(
    name: &'static CStr,
    description: &'static CStr,
    setting: &'static pgrx::GucSetting<Option<CString>>,
    context: pgrx::GucContext,
    flags: pgrx::GucFlags,
    hook: unsafe extern "C-unwind" fn(
        *mut *mut c_char,
        *mut *mut std::ffi::c_void,
        pg_sys::GucSource::Type,
    ) -> bool,
) {
    // SAFETY: the hook was made by `check_hook!`.
    unsafe {
        pgrx::GucRegistry::define_string_guc_with_hooks(
            name,
            description,
            c"",
            setting,
            context,
            flags,
            Some(hook),
            None,
            None,
        )
    };
}

/// Registers a setting that nobody sets and that shows what this process has counted: allocations of ours, and guards that
/// point reads entered.
#[cfg(feature = "testing")]
pub fn define_counters(name: &'static CStr, setting: &'static pgrx::GucSetting<Option<CString>>) {
    #[pgrx::pg_guard]
    unsafe extern "C-unwind" fn show() -> *const c_char {
        let allocations = super::alloc::ASKED.load(std::sync::atomic::Ordering::Relaxed);
        palloc_cstr(&format!("{allocations} {}", super::scan::GUARDS.get()))
    }
    // SAFETY: the hook returns a string in memory that outlives its use.
    unsafe {
        pgrx::GucRegistry::define_string_guc_with_hooks(
            name,
            c"Allocations and guards of this process (test builds only).",
            c"",
            setting,
            pgrx::GucContext::Internal,
            pgrx::GucFlags::default(),
            None,
            None,
            Some(show),
        )
    };
}

/// From now on unknown settings under the prefix are refused, and those set before are dropped with a warning.
pub fn reserve_prefix(prefix: &'static CStr) {
    // SAFETY: a valid string; after all settings are defined.
    unsafe { pg_sys::MarkGUCPrefixReserved(prefix.as_ptr()) };
}
