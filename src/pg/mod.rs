//! The only unsafe code of the extension: one small safe wrapper per server facility.
//!
//! Everything here runs on a Postgres process's main thread (pgrx panics elsewhere). Everything outside `src/pg`
//! is safe Rust over these wrappers. The trap it avoids: an invariant of the server that is kept in one place and
//! forgotten in the next.

pub mod alarm;
pub mod alloc;
pub mod call;
pub mod catalog;
pub mod composite;
pub mod condvar;
pub mod datum;
pub mod exit;
pub mod fcinfo;
pub mod foreign;
pub mod guc;
pub mod heap;
pub mod identity;
mod index;
pub mod latch;
pub mod mapped;
pub mod members;
pub mod memory;
pub mod occupied;
pub mod password;
pub mod permissions;
pub mod plain;
pub mod scan;
pub mod setter;
pub mod shmem;
pub mod srf;
pub mod table;
pub mod transaction;
pub mod triggers;
pub mod tuple;
pub mod utility;
pub mod watch;
pub mod worker;
pub mod xact;

use pgrx::pg_sys;

/// Whether `_PG_init` runs because of `shared_preload_libraries`, in the postmaster (or a standalone backend).
pub fn preloading() -> bool {
    // SAFETY: a plain read of a flag that the main thread alone writes.
    unsafe { pg_sys::process_shared_preload_libraries_in_progress }
}

/// With RUST_BACKTRACE in the postmaster's environment, an error of the server that passes a guard of ours would carry a
/// backtrace to the client. In `_PG_init`.
pub fn keep_backtraces_from_clients() {
    // SAFETY: the postmaster has one thread, and no child yet.
    unsafe {
        std::env::remove_var("RUST_BACKTRACE");
        std::env::remove_var("RUST_LIB_BACKTRACE");
    }
}

/// Milliseconds of a clock that never steps back and is the same in every process of this machine.
pub fn monotonic_ms() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // The coarse clock (a few ms) is read without a system call; lifetimes are seconds.
    // SAFETY: `now` is a valid timespec to write to; the clock id exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &mut now) };
    (now.tv_sec as u64) * 1000 + (now.tv_nsec as u64) / 1_000_000
}

/// How long this thread has had a processor.
pub fn thread_time() -> std::time::Duration {
    let mut used = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: as in `monotonic_ms`.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut used) };
    std::time::Duration::new(used.tv_sec as u64, used.tv_nsec as u32)
}

/// The server's data directory, as an absolute path.
pub fn data_dir() -> String {
    // SAFETY: DataDir is set before any library is loaded and never changes.
    unsafe { datum::cstr_lossy(pg_sys::DataDir) }
}

/// `clock_timestamp()`: microseconds since 2000-01-01 00:00 UTC, the server's own measure.
pub fn clock() -> i64 {
    plain::timestamp()
}

/// Runs `f`; a unique violation of that index is raised as `error()` instead, which says it in the vault's words. An
/// error all the same: nothing goes on after it but the abort.
pub fn on_unique_violation<R>(
    index: &'static str,
    f: impl FnOnce() -> R,
    error: impl Fn() -> crate::error::VaultError + std::panic::UnwindSafe + std::panic::RefUnwindSafe,
) -> R {
    pgrx::PgTryBuilder::new(std::panic::AssertUnwindSafe(f))
        .catch_when(pgrx::PgSqlErrorCode::ERRCODE_UNIQUE_VIOLATION, move |caught| {
            use pg_sys::panic::CaughtError;
            // In whatever language, the message quotes the index: another one may be an administrator's.
            match &caught {
                CaughtError::PostgresError(report) if !report.message().contains(index) => caught.rethrow(),
                _ => error().raise(),
            }
        })
        .execute()
}

/// Lets a cancellation or termination of the session take effect, which unwinds.
pub fn check_for_interrupts() {
    pgrx::check_for_interrupts!();
}

/// Seconds since 1970.
pub fn unix_now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The five characters of an SQLSTATE from the number that the server makes of them (six bits each).
pub fn sqlstate(code: i32) -> [u8; 5] {
    std::array::from_fn(|i| ((code >> (6 * i)) & 0x3f) as u8 + b'0')
}

/// The SQLSTATE of an error that is unwinding.
pub fn sqlstate_of_panic(payload: &(dyn std::any::Any + Send)) -> [u8; 5] {
    use pg_sys::panic::{CaughtError, ErrorReportWithLevel};
    let code = if let Some(error) = payload.downcast_ref::<CaughtError>() {
        match error {
            CaughtError::PostgresError(report)
            | CaughtError::ErrorReport(report)
            | CaughtError::RustPanic { ereport: report, .. } => report.sql_error_code(),
        }
    } else if let Some(report) = payload.downcast_ref::<ErrorReportWithLevel>() {
        report.sql_error_code()
    } else {
        pgrx::PgSqlErrorCode::ERRCODE_INTERNAL_ERROR
    };
    sqlstate(code as i32)
}

/// The user that the server runs as.
pub fn server_user() -> u32 {
    static USER: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    // SAFETY: no arguments; cannot fail. The server never becomes another user.
    *USER.get_or_init(|| unsafe { libc::geteuid() })
}

/// The name of this machine.
pub fn host_name() -> String {
    let mut name = [0u8; 256];
    // SAFETY: a writable buffer and its length, less one byte so that the name ends in a zero.
    unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) };
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    String::from_utf8_lossy(&name[..end]).into_owned()
}
