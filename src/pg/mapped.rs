//! A file of the audit spool as memory: the staging buffer, mapped by each process that appends.
//!
//! Client backends and workers, main thread, under the lock of the spool. The kernel keeps the pages when a process dies, as
//! it keeps what was written to a file. The trap it avoids: SIGBUS, which is what a store gets for which the file system
//! has no room, or for which there is no file any more. So only files that were written full and brought to disk are
//! mapped, on file systems that overwrite in place ([`overwrites_in_place`]); nobody but the server's user can shorten
//! one (mode 0600 in a directory of 0700). What is left: a file of XFS that somebody has cloned (`cp --reflink`) is no longer
//! written in place; if the disk is full then, too, the server's processes that store into it end, and it restarts.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use hyperion_vault_core::audit::{STAGING_BYTES, STAGING_HEADER, Staged, Staging};

/// The mapping; undone when it is dropped.
pub struct Mapped(NonNull<u8>);

impl Mapped {
    /// One of the header's two words.
    fn word(&self, index: usize) -> &AtomicU64 {
        debug_assert!(index < 2);
        // SAFETY: within the mapping, which is at least a page and aligned to one, and lives as long as `self`; other
        // processes store into these words atomically too.
        unsafe { AtomicU64::from_ptr(self.0.as_ptr().cast::<u64>().add(index)) }
    }

    fn bytes(&self) -> *mut u8 {
        // SAFETY: within the mapping.
        unsafe { self.0.as_ptr().add(STAGING_HEADER) }
    }
}

impl Staging for Mapped {
    fn open(path: &Path) -> io::Result<(Self, u64)> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(path)?;
        let metadata = file.metadata()?;
        if metadata.len() < STAGING_BYTES as u64 {
            // To touch what lies behind its end would kill the process.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing of this process.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                STAGING_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mapped = NonNull::new(base.cast()).map(Self).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok((mapped, metadata.ino()))
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        // A panic, not an overrun, if the caller breaks its word.
        assert!(at.saturating_add(bytes.len()) <= STAGING_BYTES - STAGING_HEADER, "no room in the buffer");
        // SAFETY: the place is within the mapping, and the caller holds the lock under which alone it is touched.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.bytes().add(at), bytes.len()) };
    }

    fn publish(&mut self, staged: Staged) {
        let [segment, lengths] = staged.words();
        if self.word(0).load(Ordering::Relaxed) != segment {
            self.word(0).store(segment, Ordering::Release);
        }
        self.word(1).store(lengths, Ordering::Release);
    }

    fn with<R>(&self, length: usize, f: impl FnOnce(&[u8]) -> R) -> R {
        assert!(length <= STAGING_BYTES - STAGING_HEADER, "more than the buffer has");
        // SAFETY: within the mapping; whoever holds the lock, as the caller does, is the only one to change these bytes.
        f(unsafe { std::slice::from_raw_parts(self.bytes(), length) })
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `open`, to which nothing refers any more.
        unsafe { libc::munmap(self.0.as_ptr().cast(), STAGING_BYTES) };
    }
}

/// From linux/magic.h: ext2 to ext4, XFS, tmpfs. They write again where they wrote before. Others copy on writing (btrfs,
/// ZFS, bcachefs), keep a log (F2FS), ask a server (NFS) or another file system (overlay, FUSE): there a page that once had
/// room may find none.
const IN_PLACE: [u32; 3] = [0xef53, 0x5846_5342, 0x0102_1994];

/// Whether the file system below a directory overwrites files in place.
pub fn overwrites_in_place(directory: &Path) -> bool {
    let Ok(path) = std::ffi::CString::new(directory.as_os_str().as_bytes()) else { return false };
    let mut stat = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: a valid string, and room for the answer, which is all zero until the call succeeds.
    let (result, stat) = unsafe { (libc::statfs(path.as_ptr(), stat.as_mut_ptr()), stat.assume_init()) };
    result == 0 && IN_PLACE.contains(&(stat.f_type as u32))
}
