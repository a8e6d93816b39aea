//! A Postgres condition variable in our shared mapping: where backends wait for a free request slot.
//!
//! Main thread only. A sleep ends by broadcast, by timeout, or by cancel and termination (the server's sleep checks
//! for interrupts and takes the process off the list on every exit path).

use std::cell::UnsafeCell;
use std::time::Duration;

use pgrx::pg_sys;

use super::shmem::Shared;

#[repr(C, align(64))]
pub struct CondVar(UnsafeCell<pg_sys::ConditionVariable>);

// SAFETY: the server's own spinlock inside guards every access.
unsafe impl Sync for CondVar {}
// SAFETY: `init` is called once by the postmaster before any child exists; until then the zero bytes are not used.
// It holds process numbers, not pointers.
unsafe impl Shared for CondVar {}

impl CondVar {
    /// Once, in the postmaster, right after the mapping is made.
    pub fn init(&self) {
        // SAFETY: no other process exists yet.
        unsafe { pg_sys::ConditionVariableInit(self.0.get()) }
    }

    pub fn broadcast(&self) {
        // SAFETY: initialised by `init`.
        unsafe { pg_sys::ConditionVariableBroadcast(self.0.get()) }
    }

    /// Joins the waiters; what the caller checks after this and before sleeping is not missed.
    pub fn prepare(&self) -> Waiting<'_> {
        // SAFETY: initialised by `init`.
        unsafe { pg_sys::ConditionVariablePrepareToSleep(self.0.get()) };
        Waiting(self)
    }
}

/// A place among the waiters, given up on drop.
pub struct Waiting<'a>(&'a CondVar);

impl Waiting<'_> {
    pub fn sleep(&self, timeout: Duration) {
        let millis = super::latch::millis(timeout);
        // SAFETY: initialised; prepared by `prepare`.
        unsafe { pg_sys::ConditionVariableTimedSleep(self.0.0.get(), millis, pg_sys::PG_WAIT_EXTENSION) };
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        // Also while unwinding: the call takes a spinlock and no more, it cannot raise.
        // SAFETY: no arguments; does nothing if the process is not waiting.
        unsafe { pg_sys::ConditionVariableCancelSleep() };
    }
}
