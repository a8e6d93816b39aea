//! [`Appender`]: how a process appends to the spool, and opens one where none is open.
//!
//! Client backends and workers; the postmaster opens the first. One append is one `write(2)` to a descriptor that stays
//! open. The traps it avoids: a directory that others can write to; a retry that writes a record twice (a failed append
//! is an error to the caller, whose operation is then refused); an error that lasts although its cause has gone: where no
//! spool is open, the next append opens one.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::time::Duration;

use super::frame::SpoolKey;
use super::reader::{IDENTITY, Identity, segment_name, size_below};
use super::shared::{Shared, Synced};
use crate::envelope::Id;

/// Where spools lie, and how much may.
pub struct Place<'a> {
    pub base: &'a Path,
    /// Bytes in all spools together.
    pub limit: u64,
    /// Asked only where a spool has to be opened.
    pub facts: &'a dyn Fn() -> Facts,
}

/// What opening a spool wants to know.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// The user that the server runs as.
    pub owner: u32,
    pub system_id: u64,
    /// Now: monotonic milliseconds, and microseconds since 2000.
    pub now_ms: u64,
    pub clock: i64,
}

/// A segment is closed at this size, or at a fraction of the limit if that is less.
const SEGMENT_BYTES: u64 = 16 << 20;
const SEGMENTS_IN_LIMIT: u64 = 8;
/// The share of the limit that denials leave to others: one in so many parts.
const RESERVE: u64 = 4;
/// After opening failed, so long nobody tries again: an operation that is refused meanwhile costs no file operations.
const OPEN_PAUSE_MS: u64 = 200;
/// How long one waits for another process that opens a spool or makes a segment: far longer than that takes.
const ROLL_WAITS: u32 = 2000;
const ROLL_WAIT: Duration = Duration::from_micros(100);

/// What is appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Without this record the operation is refused.
    Needed,
    /// The operation is refused anyway: must leave room for the others.
    Refusal,
}

/// Why nothing was appended.
#[derive(Debug)]
pub enum AppendError {
    /// The limit is reached.
    Full { limit: u64 },
    /// What was being done when the system said no.
    Io { doing: &'static str, error: io::Error },
    /// The directory is not fit.
    Unfit(Why),
    /// No spool is open, and could not be opened moments ago.
    Closed,
}

/// Why a directory is not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    NotADirectory = 1,
    OtherOwner,
    OthersMayWrite,
    InUse,
    NoRandomness,
}

impl Why {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotADirectory => "it is not a directory",
            Self::OtherOwner => "it belongs to another user than the server's",
            Self::OthersMayWrite => "other users may write to it",
            Self::InUse => "another server uses it",
            Self::NoRandomness => "the system gives no random bytes",
        }
    }

    pub fn from_u32(number: u32) -> Option<Self> {
        [Self::NotADirectory, Self::OtherOwner, Self::OthersMayWrite, Self::InUse, Self::NoRandomness]
            .into_iter()
            .find(|why| *why as u32 == number)
    }
}

impl AppendError {
    /// The operating system's number; 0 if it was not asked.
    pub fn errno(&self) -> u32 {
        match self {
            Self::Io { error, .. } => error.raw_os_error().unwrap_or(0) as u32,
            _ => 0,
        }
    }

    pub fn why(&self) -> u32 {
        match self {
            Self::Unfit(why) => *why as u32,
            _ => 0,
        }
    }
}

fn io(doing: &'static str) -> impl Fn(io::Error) -> AppendError {
    move |error| AppendError::Io { doing, error }
}

/// A process's hold on the current segment.
#[derive(Default)]
pub struct Appender {
    open: Option<Open>,
}

struct Open {
    generation: u64,
    segment: u64,
    key: SpoolKey,
    file: File,
}

/// Which segment an append went to, for who wants to wait until it is on disk.
pub struct Appended {
    segment: u64,
}

impl Appender {
    /// Appends frames made by [`super::frame::push`], all or none, `records` of them.
    pub fn append(
        &mut self,
        shared: &Shared,
        place: &Place<'_>,
        frames: &mut [u8],
        records: u64,
        class: Class,
    ) -> Result<Appended, AppendError> {
        let length = frames.len() as u64;
        let limit = match class {
            Class::Needed => place.limit,
            Class::Refusal => place.limit - place.limit / RESERVE,
        };
        loop {
            let (generation, segment) = (shared.generation(), shared.segment());
            if segment == 0 {
                // Only for a server that has the directory to itself; the relay sees to that.
                if shared.held.load(Acquire) == 0 || !shared.may_retry((place.facts)().now_ms, OPEN_PAUSE_MS)
                {
                    return Err(AppendError::Closed);
                }
                open_spool(shared, place)?;
                continue;
            }
            if shared.size.load(Relaxed) + length > limit {
                return Err(AppendError::Full { limit: place.limit });
            }
            let bytes = shared.bytes(segment);
            if bytes > 0 && bytes + length > SEGMENT_BYTES.min(place.limit / SEGMENTS_IN_LIMIT) {
                roll(shared, place, segment)?;
                continue;
            }
            let Some(writer) = shared.enter(generation, segment) else { continue };
            let open = match self.current(shared, place, generation, segment) {
                Err(AppendError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
                    // Somebody has removed it. What comes from now on is not lost with it.
                    drop(writer);
                    shared.close();
                    continue;
                }
                open => open?,
            };
            open.key.seal_all(segment, frames);
            let written = write_once(&mut open.file, frames);
            if let Ok(written) = written {
                // What was written counts, be it torn.
                shared.grow(segment, written as u64);
            }
            drop(writer);
            return match written {
                Ok(written) if written == frames.len() => {
                    shared.appended.fetch_add(records, Relaxed);
                    Ok(Appended { segment })
                }
                Ok(_) => {
                    Err(AppendError::Io { doing: "writing", error: io::Error::from_raw_os_error(NO_SPACE) })
                }
                Err(error) => Err(AppendError::Io { doing: "writing", error }),
            };
        }
    }

    /// Has everything up to `appended` on disk: by another's sync, or by an own one that serves the others too. False if
    /// another is at it: wait a moment and ask again.
    pub fn sync(&mut self, shared: &Shared, appended: &Appended) -> Result<bool, AppendError> {
        let Some(open) = self.open.as_mut().filter(|open| open.segment == appended.segment) else {
            return Err(AppendError::Closed);
        };
        // With O_APPEND the descriptor stands behind what it wrote itself.
        let end = open.file.stream_position().map_err(io("syncing"))?;
        let want = Synced::new(open.segment, end);
        if shared.synced(open.segment) >= want {
            return Ok(true);
        }
        let Some(_held) = shared.sync() else { return Ok(false) };
        if shared.synced(open.segment) >= want {
            return Ok(true);
        }
        let length = open.file.metadata().map_err(io("syncing"))?.len();
        open.file.sync_data().map_err(io("syncing"))?;
        shared.set_synced(open.segment, Synced::new(open.segment, length));
        Ok(true)
    }

    fn current(
        &mut self,
        shared: &Shared,
        place: &Place<'_>,
        generation: u64,
        segment: u64,
    ) -> Result<&mut Open, AppendError> {
        let known = |open: &Open| open.generation == generation && open.segment == segment;
        if !self.open.as_ref().is_some_and(known) {
            let path = directory(place.base, shared.id()).join(segment_name(segment));
            let file = segment_options().open(path).map_err(io("opening a segment"))?;
            self.open = Some(Open { generation, segment, key: shared.key(), file });
        }
        self.open.as_mut().ok_or(AppendError::Closed)
    }
}

/// In the base directory.
const LOCK: &str = "lock";

/// ENOSPC: a write that ended early says so the next time, and there is no next time.
const NO_SPACE: i32 = 28;

/// One write(2); begun anew only if a signal kept it from writing anything.
fn write_once(file: &mut File, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match file.write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Not `create`: the segment was made by who rolled. A segment that somebody has removed must not come back under
/// writers that still have the old one open.
fn segment_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.append(true).custom_flags(O_NOFOLLOW);
    options
}

/// fcntl.h of Linux, the same on x86-64; aarch64 has another value.
#[cfg(target_arch = "aarch64")]
const O_NOFOLLOW: i32 = 0o100_000;
#[cfg(not(target_arch = "aarch64"))]
const O_NOFOLLOW: i32 = 0o400_000;

fn directory(base: &Path, id: Id) -> PathBuf {
    base.join(id.to_string())
}

fn make_segment(directory: &Path, segment: u64) -> Result<(), AppendError> {
    let path = directory.join(segment_name(segment));
    match OpenOptions::new().append(true).create_new(true).mode(0o600).custom_flags(O_NOFOLLOW).open(path) {
        Ok(_) => {}
        // Left by who made it and failed to say so.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(AppendError::Io { doing: "making a segment", error }),
    }
    sync_directory(directory)
}

fn sync_directory(path: &Path) -> Result<(), AppendError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(io("syncing the directory"))
}

/// Makes the segment behind `segment` the current one, unless somebody does.
pub(super) fn roll(shared: &Shared, place: &Place<'_>, segment: u64) -> Result<(), AppendError> {
    for _ in 0..ROLL_WAITS {
        if shared.segment() != segment {
            return Ok(());
        }
        let Some(_held) = shared.roll() else {
            std::thread::sleep(ROLL_WAIT);
            continue;
        };
        if shared.segment() == segment {
            let next = segment + 1;
            make_segment(&directory(place.base, shared.id()), next)?;
            shared.rolled(next);
        }
        return Ok(());
    }
    Err(AppendError::Closed)
}

/// Closes the current segment, so that it can be removed; if it has anything in it.
pub fn close_segment(shared: &Shared, place: &Place<'_>) -> Result<(), AppendError> {
    let segment = shared.segment();
    if segment == 0 || shared.bytes(segment) == 0 {
        return Ok(());
    }
    roll(shared, place, segment)
}

/// Takes the base directory's lock, which lasts as long as the file (in this process or a child of it) is open.
pub fn hold_base(place: &Place<'_>) -> Result<File, AppendError> {
    fit_directory(place)?;
    let doing = "locking the directory";
    let path = place.base.join(LOCK);
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(O_NOFOLLOW)
        .open(path)
        .map_err(io(doing))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(fs::TryLockError::WouldBlock) => Err(AppendError::Unfit(Why::InUse)),
        Err(fs::TryLockError::Error(error)) => Err(AppendError::Io { doing, error }),
    }
}

/// Opens a new spool, unless somebody does. For a server that holds the base directory's lock.
pub fn open_spool(shared: &Shared, place: &Place<'_>) -> Result<(), AppendError> {
    let Some(_held) = shared.roll() else {
        std::thread::sleep(ROLL_WAIT);
        return Ok(());
    };
    if shared.segment() != 0 {
        return Ok(());
    }
    fit_directory(place)?;
    let id = Id::random().map_err(|_| AppendError::Unfit(Why::NoRandomness))?;
    let facts = (place.facts)();
    let mut key = [0; 16];
    getrandom::fill(&mut key).map_err(|_| AppendError::Unfit(Why::NoRandomness))?;
    let identity = Identity { id, key: SpoolKey(key), system_id: facts.system_id, created: facts.clock };
    let directory = directory(place.base, id);
    let made = make_spool(&directory, &identity);
    if made.is_err() {
        // Nobody knows of it.
        let _ = fs::remove_dir_all(&directory);
        return made;
    }
    sync_directory(place.base)?;
    shared.size.store(size_below(place.base), Relaxed);
    shared.opened(id, identity.key);
    Ok(())
}

fn make_spool(directory: &Path, identity: &Identity) -> Result<(), AppendError> {
    let doing = "making a spool";
    DirBuilder::new().mode(0o700).create(directory).map_err(io(doing))?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(O_NOFOLLOW)
        .open(directory.join(IDENTITY))
        .map_err(io(doing))?;
    file.write_all(&identity.encode()).and_then(|()| file.sync_all()).map_err(io(doing))?;
    make_segment(directory, 1)
}

/// Makes the base directory if only it is missing, and looks at whether it is the server's own.
fn fit_directory(place: &Place<'_>) -> Result<(), AppendError> {
    match DirBuilder::new().mode(0o700).create(place.base) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(AppendError::Io { doing: "making the directory", error });
        }
        _ => {}
    }
    // Of the path itself: a link could be turned to another place later.
    let found = fs::symlink_metadata(place.base).map_err(io("looking at the directory"))?;
    if !found.is_dir() {
        return Err(AppendError::Unfit(Why::NotADirectory));
    }
    if found.uid() != (place.facts)().owner {
        return Err(AppendError::Unfit(Why::OtherOwner));
    }
    if found.mode() & 0o022 != 0 {
        return Err(AppendError::Unfit(Why::OthersMayWrite));
    }
    Ok(())
}
