//! A time limit on code that is not ours, beside the caller's own `statement_timeout`, which goes on as it was.
//!
//! A timer of the server's own facility, in whatever process runs the code, also a worker: when it rings, the running
//! statement is cancelled as by `pg_cancel_backend`. Main thread. The traps it avoids: a limit on the statement as a
//! whole, which would have to be put back on every way out; and a cancellation that comes too late for the code it was
//! meant for and hits the caller's next statement.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pgrx::pg_sys;

mod raw {
    use std::ffi::c_int;

    /// `USER_TIMEOUT` (utils/timeout.h): ask for any number that is free. PostgreSQL 17 has one more of its own.
    pub const USER_TIMEOUT: c_int = if cfg!(any(feature = "pg15", feature = "pg16")) { 12 } else { 13 };

    unsafe extern "C-unwind" {
        pub fn RegisterTimeout(id: c_int, handler: extern "C-unwind" fn()) -> c_int;
        pub fn enable_timeout_after(id: c_int, delay_ms: c_int);
        pub fn disable_timeout(id: c_int, keep_indicator: bool);
    }
}

/// Relaxed throughout: a signal handler and the thread it interrupts.
static RANG: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// The number the server has given us, once per process.
    static ID: Cell<Option<i32>> = const { Cell::new(None) };
}

/// Runs in a signal handler: sets flags and no more. The server's caller of it sets the latch.
extern "C-unwind" fn ring() {
    RANG.store(true, Ordering::Relaxed);
    // SAFETY: flags of this process made to be set from signal handlers.
    unsafe {
        pg_sys::QueryCancelPending = 1;
        pg_sys::InterruptPending = 1;
    }
}

/// An alarm that is set, until it is dropped. One at a time.
pub struct Alarm {
    id: i32,
}

impl Alarm {
    pub fn set(after: Duration) -> Self {
        let id = ID.get().unwrap_or_else(|| {
            // SAFETY: a handler that is safe to run at any point; ten numbers are free for the likes of us.
            let id = unsafe {
                pg_sys::ffi::pg_guard_ffi_boundary(|| raw::RegisterTimeout(raw::USER_TIMEOUT, ring))
            };
            ID.set(Some(id));
            id
        });
        RANG.store(false, Ordering::Relaxed);
        let millis = after.as_millis().clamp(1, i32::MAX as u128) as i32;
        // SAFETY: registered above; raises nothing.
        unsafe { raw::enable_timeout_after(id, millis) };
        Self { id }
    }

    pub fn rang(&self) -> bool {
        RANG.load(Ordering::Relaxed)
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        // Also while unwinding: none of this raises.
        // SAFETY: registered in `set`; the flag is this process's own. If the alarm rang, whoever set it has the
        // cancellation reported by now.
        unsafe {
            raw::disable_timeout(self.id, false);
            if self.rang() {
                pg_sys::QueryCancelPending = 0;
            }
        }
    }
}
