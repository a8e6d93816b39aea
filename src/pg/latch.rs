//! Latches: how a process sleeps until another wakes it, and stays cancellable meanwhile.
//!
//! Main thread only. Threads that are not Postgres' own cannot set a latch (craft trap 2): they write an
//! [`Eventfd`], which the main thread waits on beside its latch.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use pgrx::pg_sys;

/// This process's index in the server's process array; how others find its latch.
pub fn my_proc() -> i32 {
    // SAFETY: set by InitProcess before any of our code runs in a backend or worker.
    unsafe {
        #[cfg(any(feature = "pg15", feature = "pg16"))]
        {
            if pg_sys::MyProc.is_null() { -1 } else { (*pg_sys::MyProc).pgprocno }
        }
        #[cfg(any(feature = "pg17", feature = "pg18"))]
        {
            pg_sys::MyProcNumber
        }
    }
}

/// Wakes the process with that number. A number whose process has ended wakes whoever has the place now, which
/// every latch user must tolerate anyway.
pub fn wake(proc_number: i32) {
    if proc_number < 0 {
        return;
    }
    // SAFETY: allProcs lives in shared memory and has allProcCount entries; the latch inside is always initialised.
    unsafe {
        let global = pg_sys::ProcGlobal;
        if global.is_null() || proc_number as u32 >= (*global).allProcCount {
            return;
        }
        let process = (*global).allProcs.add(proc_number as usize);
        pg_sys::SetLatch(&mut (*process).procLatch);
    }
}

/// For the server's waits. Rounded up: who sleeps until a date is not to wake just before it.
pub fn millis(timeout: Duration) -> std::ffi::c_long {
    timeout.as_nanos().div_ceil(1_000_000).clamp(1, i32::MAX as u128) as std::ffi::c_long
}

/// Sleeps until the latch is set or `timeout` is over, then lets a pending cancel, timeout or termination take
/// effect: it leaves as an ERROR that unwinds, or ends the process through its exit callbacks.
pub fn wait(timeout: Duration) {
    let millis = millis(timeout);
    // SAFETY: MyLatch is this process's own latch; the flags ask for nothing that needs a socket.
    unsafe {
        pg_sys::WaitLatch(
            pg_sys::MyLatch,
            (pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH) as i32,
            millis,
            pg_sys::PG_WAIT_EXTENSION,
        );
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    pgrx::check_for_interrupts!();
}

/// As [`wait`], also until `fd` is readable. For the worker's loop, which looks at its signals itself.
pub fn wait_or_readable(fd: RawFd, timeout: Duration) {
    let millis = millis(timeout);
    // SAFETY: as in `wait`; `fd` is open for the caller's lifetime of it.
    unsafe {
        pg_sys::WaitLatchOrSocket(
            pg_sys::MyLatch,
            (pg_sys::WL_LATCH_SET
                | pg_sys::WL_TIMEOUT
                | pg_sys::WL_SOCKET_READABLE
                | pg_sys::WL_EXIT_ON_PM_DEATH) as i32,
            fd,
            millis,
            pg_sys::PG_WAIT_EXTENSION,
        );
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    pgrx::check_for_interrupts!();
}

/// A counter in the kernel that any thread may raise and the main thread can sleep on.
#[derive(Clone)]
pub struct Eventfd(Arc<OwnedFd>);

impl Eventfd {
    pub fn new() -> std::io::Result<Self> {
        // SAFETY: no pointers; the result is checked.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: a descriptor just made and owned by nobody else.
        Ok(Self(Arc::new(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    pub fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Makes the descriptor readable. Callable from any thread; it touches nothing of Postgres.
    pub fn raise(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: 8 readable bytes, as eventfd(2) wants. EAGAIN means the counter is full: readable already.
        unsafe { libc::write(self.raw(), one.as_ptr().cast(), one.len()) };
    }

    /// Makes it unreadable again.
    pub fn drain(&self) {
        let mut count = [0u8; 8];
        // SAFETY: 8 writable bytes. EAGAIN means nobody had raised it.
        unsafe { libc::read(self.raw(), count.as_mut_ptr().cast(), count.len()) };
    }
}
