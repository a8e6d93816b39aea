//! Callbacks at the ends of things: of a process, of a transaction.
//!
//! Main thread only. FATAL (pg_terminate_backend) does not unwind Rust frames: what must be given back then is
//! given back here, not in a destructor.

use std::sync::atomic::{AtomicPtr, Ordering};

use pgrx::pg_sys;

/// Runs `f` when this process leaves shared memory in any orderly way, before it loses its latch and locks.
/// Once per process and function; `f` must not raise.
pub fn before_exit(f: fn()) {
    // SAFETY: the argument carries a plain function pointer, turned back in `run`.
    unsafe { pg_sys::before_shmem_exit(Some(run), pg_sys::Datum::from(f as *const () as usize)) };
}

/// As [`before_exit`], later: if called before a worker connects, once its session has been forgotten by the server.
pub fn after_session(f: fn()) {
    // SAFETY: as in `before_exit`.
    unsafe { pg_sys::on_shmem_exit(Some(run), pg_sys::Datum::from(f as *const () as usize)) };
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn run(_code: i32, arg: pg_sys::Datum) {
    // SAFETY: `arg` is the function pointer that `before_exit` passed.
    let f: fn() = unsafe { std::mem::transmute::<usize, fn()>(arg.value()) };
    f();
}

/// How a transaction or subtransaction ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    Commit,
    Abort,
    /// A savepoint's rollback: the transaction goes on, without what it did in the subtransaction of this number and in
    /// those begun later.
    SavepointAbort(u32),
}

/// The number of the running subtransaction; they grow within a transaction.
pub fn subtransaction() -> u32 {
    // SAFETY: no arguments.
    unsafe { pg_sys::GetCurrentSubTransactionId() }
}

/// More than there are callers of [`at_transaction_end`].
const MAX_LISTENERS: usize = 4;
static AT_XACT_END: [AtomicPtr<()>; MAX_LISTENERS] =
    [const { AtomicPtr::new(std::ptr::null_mut()) }; MAX_LISTENERS];

/// Runs `f(end)` at the end of every top-level transaction (prepare counts as commit) and at the rollback of a
/// subtransaction. `f` must not raise. Asked again for the same `f`, it changes nothing.
pub fn at_transaction_end(f: fn(End)) {
    for (place, listener) in AT_XACT_END.iter().enumerate() {
        let known = listener.load(Ordering::Relaxed);
        if known == f as *mut () {
            return;
        }
        if known.is_null() {
            listener.store(f as *mut (), Ordering::Relaxed);
            if place == 0 {
                // SAFETY: callbacks stay registered for the life of the process, as do these functions.
                unsafe {
                    pg_sys::RegisterXactCallback(Some(xact), std::ptr::null_mut());
                    pg_sys::RegisterSubXactCallback(Some(subxact), std::ptr::null_mut());
                }
            }
            return;
        }
    }
    unreachable!("more listeners than there is room for");
}

fn tell(end: End) {
    for listener in &AT_XACT_END {
        let f = listener.load(Ordering::Relaxed);
        if !f.is_null() {
            // SAFETY: AT_XACT_END only ever holds `fn(End)`s.
            let f: fn(End) = unsafe { std::mem::transmute::<*mut (), fn(End)>(f) };
            f(end);
        }
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn xact(event: pg_sys::XactEvent::Type, _arg: *mut std::ffi::c_void) {
    match event {
        pg_sys::XactEvent::XACT_EVENT_COMMIT | pg_sys::XactEvent::XACT_EVENT_PREPARE => tell(End::Commit),
        pg_sys::XactEvent::XACT_EVENT_ABORT => tell(End::Abort),
        _ => {}
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn subxact(
    event: pg_sys::SubXactEvent::Type,
    id: pg_sys::SubTransactionId,
    _parent: pg_sys::SubTransactionId,
    _arg: *mut std::ffi::c_void,
) {
    if event == pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB {
        tell(End::SavepointAbort(id));
    }
}
