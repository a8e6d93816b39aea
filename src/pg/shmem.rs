//! The extension's shared memory: one anonymous shared mapping, made by the postmaster, inherited by every child.
//!
//! An own mapping rather than Postgres' main segment, because it holds unwrapped DEKs: it is excluded from core
//! dumps, kept out of swap where the memory-lock limit allows, and wiped before it is let go. After a crash of any
//! process the postmaster runs the start-up hooks again; the old mapping is wiped and a new one made, so the cache
//! starts empty and every slot free. (Processes that outlive such a restart, the logger for one, keep the old
//! mapping: it holds zeros.)
//!
//! States: none (before start-up) → mapped. Owner: the postmaster makes and remakes it; children only use it.
//! The trap it avoids: `EXEC_BACKEND` builds would not inherit it; they do not exist on the systems supported here.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use pgrx::pg_sys;

static BASE: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());
static SIZE: AtomicUsize = AtomicUsize::new(0);
static LOCKED: AtomicBool = AtomicBool::new(false);

/// A type that may lie in the mapping.
///
/// # Safety
/// All-zero bytes are a valid value, every field is an atomic (or padding), there are no pointers into one
/// process's private memory and nothing to drop; alignment is at most a page.
pub unsafe trait Shared: Sync + 'static {}

/// Makes (or after a crash remakes) the mapping of `size` bytes, all zero.
pub fn create(size: usize) -> io::Result<()> {
    let old = BASE.swap(std::ptr::null_mut(), Ordering::Relaxed);
    if !old.is_null() {
        let len = SIZE.load(Ordering::Relaxed);
        // SAFETY: `old` and `len` describe a mapping this function made; every process that used it has ended
        // (the postmaster remakes shared memory only then), so nothing refers to it any more. Volatile, so that
        // the wipe is not optimised away before the unmapping.
        unsafe {
            for i in (0..len).step_by(8) {
                std::ptr::write_volatile(old.add(i).cast::<u64>(), 0);
            }
            libc::munmap(old.cast(), len);
        }
    }
    let page = 4096;
    let size = size.div_ceil(page) * page;
    // SAFETY: a fresh anonymous mapping at an address of the kernel's choice aliases nothing.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: exactly the mapping just made. The flag belongs to the mapping and is inherited over fork.
    if unsafe { libc::madvise(base, size, libc::MADV_DONTDUMP) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // Best effort: unprivileged processes may lock 8 MiB by default. The lock is the postmaster's and lives as long
    // as it does. What came of it is shown by vault.status().
    // SAFETY: exactly the mapping just made.
    let locked = unsafe { libc::mlock(base, size) } == 0;
    LOCKED.store(locked, Ordering::Relaxed);
    SIZE.store(size, Ordering::Relaxed);
    BASE.store(base.cast(), Ordering::Relaxed);
    Ok(())
}

/// Size in bytes, 0 before [`create`].
pub fn size() -> usize {
    SIZE.load(Ordering::Relaxed)
}

/// Where the mapping is in this process; another place is another mapping.
pub fn address() -> usize {
    BASE.load(Ordering::Relaxed) as usize
}

/// Whether the mapping could be locked into memory.
pub fn locked() -> bool {
    LOCKED.load(Ordering::Relaxed)
}

/// `count` values of `T` at byte `offset`, or None before the mapping exists or beyond its end.
pub fn slice<T: Shared>(offset: usize, count: usize) -> Option<&'static [T]> {
    let base = NonNull::new(BASE.load(Ordering::Relaxed))?;
    let end = count.checked_mul(size_of::<T>())?.checked_add(offset)?;
    if end > SIZE.load(Ordering::Relaxed) || !offset.is_multiple_of(align_of::<T>()) {
        return None;
    }
    // SAFETY: in bounds and aligned (the base is page-aligned) by the checks above; `T: Shared` is valid when zero
    // and made of atomics, so shared references from many processes are sound; the mapping lives as long as this
    // process does (only the postmaster unmaps, and only when no child is left).
    Some(unsafe { std::slice::from_raw_parts(base.as_ptr().add(offset).cast::<T>(), count) })
}

static mut PREVIOUS_STARTUP: pg_sys::shmem_startup_hook_type = None;
static MAKE: AtomicPtr<()> = AtomicPtr::new(std::ptr::null_mut());

/// Runs `make` whenever the postmaster sets up shared memory: at start, and again after a crash.
pub fn on_startup(make: fn()) {
    MAKE.store(make as *mut (), Ordering::Relaxed);
    // SAFETY: _PG_init runs on the main thread before any child exists; hooks are chained as the server asks.
    unsafe {
        PREVIOUS_STARTUP = pg_sys::shmem_startup_hook;
        pg_sys::shmem_startup_hook = Some(startup_hook);
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn startup_hook() {
    // SAFETY: PREVIOUS_STARTUP was stored by `on_startup`; MAKE holds a `fn()` stored there as well.
    unsafe {
        if let Some(previous) = PREVIOUS_STARTUP {
            previous();
        }
        let make: fn() = std::mem::transmute::<*mut (), fn()>(MAKE.load(Ordering::Relaxed));
        make();
    }
}

// SAFETY: `repr(C)`, atomics only, all-zero is a free slot / an empty set / zero counts (their crate's contract).
unsafe impl Shared for hyperion_vault_core::ipc::Slot {}
// SAFETY: as above.
unsafe impl Shared for hyperion_vault_core::cache::Set {}
// SAFETY: as above.
unsafe impl Shared for hyperion_vault_core::cache::Counters {}
// SAFETY: as above.
unsafe impl Shared for hyperion_vault_core::cache::Line {}
// SAFETY: as above.
unsafe impl Shared for hyperion_vault_core::policy::uses::Cell {}
// SAFETY: atomics and a condition variable that the postmaster initialises before anyone uses it.
unsafe impl Shared for crate::area::Header {}
// SAFETY: as above.
unsafe impl Shared for crate::area::Audit {}
