//! Latches: how a process sleeps until another wakes it, and stays cancellable meanwhile.
//!
//! Main thread only. Threads that are not Postgres' own cannot set a latch (craft trap 2): they write an
//! [`Eventfd`], which the main thread waits on beside its latch.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
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

/// What a worker's loop sleeps on: its latch, an [`Eventfd`], and the end of the postmaster. Made once: the server's
/// `WaitLatchOrSocket` makes an epoll descriptor for each sleep and closes it again, six system calls.
pub struct Events {
    set: NonNull<pg_sys::WaitEventSet>,
    /// Open as long as the set watches it.
    wake: Eventfd,
}

impl Events {
    /// For the rest of the process's life: the server frees it with the process.
    pub fn new(wake: Eventfd) -> Self {
        const EVENTS: i32 = 3;
        // SAFETY: main thread of a process that owns MyLatch; the set has room for the three events added. It belongs to
        // no resource owner and, where sets are allocated in a memory context, to one that is never reset.
        let set = unsafe {
            #[cfg(any(feature = "pg15", feature = "pg16"))]
            let set = pg_sys::CreateWaitEventSet(pg_sys::TopMemoryContext, EVENTS);
            #[cfg(any(feature = "pg17", feature = "pg18"))]
            let set = pg_sys::CreateWaitEventSet(std::ptr::null_mut(), EVENTS);
            let nothing = std::ptr::null_mut();
            pg_sys::AddWaitEventToSet(set, pg_sys::WL_LATCH_SET, NO_SOCKET, pg_sys::MyLatch, nothing);
            pg_sys::AddWaitEventToSet(
                set,
                pg_sys::WL_EXIT_ON_PM_DEATH,
                NO_SOCKET,
                std::ptr::null_mut(),
                nothing,
            );
            pg_sys::AddWaitEventToSet(
                set,
                pg_sys::WL_SOCKET_READABLE,
                wake.raw(),
                std::ptr::null_mut(),
                nothing,
            );
            set
        };
        match NonNull::new(set) {
            Some(set) => Self { set, wake },
            // palloc raises instead of returning null.
            None => crate::error::VaultError::internal("no set of events to wait for").raise(),
        }
    }

    /// Sleeps until the latch is set, the eventfd was raised, or `timeout` is over, and makes both ready to be raised again.
    /// The worker's loop looks at its signals itself.
    pub fn wait(&self, timeout: Duration) {
        let mut occurred = pg_sys::WaitEvent::default();
        // SAFETY: `set` was made by `new` and never freed; one event is asked for and there is room for it.
        unsafe {
            pg_sys::WaitEventSetWait(
                self.set.as_ptr(),
                millis(timeout),
                &mut occurred,
                1,
                pg_sys::PG_WAIT_EXTENSION,
            );
            pg_sys::ResetLatch(pg_sys::MyLatch);
        }
        // With the latch reported first, a raised eventfd ends the next sleep at once.
        if occurred.events & pg_sys::WL_SOCKET_READABLE != 0 {
            self.wake.drain();
        }
    }
}

/// A counter in the kernel that any thread may raise and the main thread can sleep on.
#[derive(Clone)]
pub struct Eventfd(Arc<OwnedFd>);

/// `PGINVALID_SOCKET`.
const NO_SOCKET: pg_sys::pgsocket = -1;

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

    fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Makes the descriptor readable. Callable from any thread; it touches nothing of Postgres.
    pub fn raise(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: 8 readable bytes, as eventfd(2) wants. EAGAIN means the counter is full: readable already.
        unsafe { libc::write(self.raw(), one.as_ptr().cast(), one.len()) };
    }

    /// Makes it unreadable again.
    fn drain(&self) {
        let mut count = [0u8; 8];
        // SAFETY: 8 writable bytes. EAGAIN means nobody had raised it.
        unsafe { libc::read(self.raw(), count.as_mut_ptr().cast(), count.len()) };
    }
}
