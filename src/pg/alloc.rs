//! Rust's allocator in a server process: running out of memory ends one session, not the server.
//!
//! Every process and thread. Rust answers a failed allocation with abort(), which is SIGABRT, which the postmaster takes
//! for a crash: one session that seals a large value under a memory limit (`vm.overcommit_memory = 2`, which the server's
//! own manual recommends, or `ulimit -v`) would restart the whole cluster. So the failure is made a FATAL of this
//! session: it leaves through the exit callbacks, as after `pg_terminate_backend`. It cannot be an ERROR, since
//! an allocator must not unwind.
//!
//! The trap it avoids: the report needs memory too. It takes little, and if even that is not there, it is abort() after all.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, Ordering};

use pgrx::pg_sys;

pub struct Allocator;

// SAFETY: memory is the system allocator's throughout; a failure either is passed on or does not return.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { checked(System.alloc(layout), layout.size()) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { checked(System.alloc_zeroed(layout), layout.size()) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { checked(System.realloc(old, layout, size), size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// How often memory was asked for, for the tests of what a read costs.
#[cfg(feature = "testing")]
pub static ASKED: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

#[inline]
fn checked(memory: *mut u8, size: usize) -> *mut u8 {
    #[cfg(feature = "testing")]
    ASKED.fetch_add(1, Ordering::Relaxed);
    if memory.is_null() {
        exhausted(size);
    }
    memory
}

/// Ends the session. Returns (and the caller aborts) where that cannot be done: on a thread that is not Postgres' own, in
/// the postmaster, or while memory runs out again underneath.
#[cold]
fn exhausted(size: usize) {
    static ENDING: AtomicBool = AtomicBool::new(false);
    // SAFETY: system calls without arguments; plain reads of globals that the main thread writes long before, at its
    // start. A thread other than the main one has a thread id that is not the process's.
    let main_thread_of_child = unsafe { libc::gettid() == libc::getpid() && pg_sys::IsUnderPostmaster };
    if main_thread_of_child && !ENDING.swap(true, Ordering::Relaxed) {
        pgrx::ereport!(
            pgrx::PgLogLevel::FATAL,
            pgrx::PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY,
            "out of memory in hyperion_vault",
            format!("Failed on request of size {size}.")
        );
    }
}
