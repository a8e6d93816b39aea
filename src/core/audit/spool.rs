//! [`Appender`]: how a process appends to the spool, and opens one where none is open.
//!
//! Client backends and workers; the postmaster opens the first. An append copies its frames into the staging buffer; what
//! does not fit there, or has none, is written to the segment. The traps it avoids: a directory that others can write to; a
//! retry that writes a record twice (a failed append is an error to the caller, whose operation is then refused); an error
//! that lasts although its cause has gone: where no spool is open, the next append opens one.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Acquire;
use std::time::Duration;

use super::frame::SpoolKey;
use super::reader::{IDENTITY, Identity, remove_empty, segment_name, size_below};
use super::shared::{Locked, Shared, Synced};
use super::staging::{STAGING, STAGING_BYTES, STAGING_HEADER, Staged, Staging};
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
    /// Whether the base directory, which is there, lies on a file system that takes back nothing that it has given: a store
    /// into a mapped file that was written before needs no room.
    pub keeps_blocks: bool,
}

/// A segment is closed at this size, or at a fraction of the limit if that is less.
const SEGMENT_BYTES: u64 = 16 << 20;
const SEGMENTS_IN_LIMIT: u64 = 8;
/// The share of the limit that denials leave to others: one in so many parts.
const RESERVE: u64 = 4;
/// After opening failed, so long nobody tries again: an operation that is refused meanwhile costs no file operations.
const OPEN_PAUSE_MS: u64 = 200;
/// Before looking again whether another process has opened a spool.
const OPENING_WAIT: Duration = Duration::from_micros(100);
const STAGING_ROOM: u64 = (STAGING_BYTES - STAGING_HEADER) as u64;

/// In that part of the limit an operation waits before it appends, between these times.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);
const LONGEST_WAIT: Duration = Duration::from_millis(8);

/// How long an operation waits, holding nothing, before it appends to spools of this size. Sessions that together make more
/// records than the relay takes would fill the spools and then be refused; where all processors are busy the relay gets
/// one process's share of them. So they slow down to its pace instead.
pub fn give_way(size: u64, limit: u64) -> Option<Duration> {
    let reserve = limit / RESERVE;
    let into = size.checked_sub(limit - reserve).filter(|into| *into > 0)?.min(reserve);
    Some(SHORTEST_WAIT + (LONGEST_WAIT - SHORTEST_WAIT).mul_f64(into as f64 / reserve as f64))
}

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
    /// No spool is open, and could not be opened moments ago; or the one in question is not open any more.
    Closed,
    /// Another process has kept the right to append for far too long.
    Stuck,
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

    /// A file of the spool is not there any more, or not the one that it was.
    fn is_loss(&self) -> bool {
        let lost = [io::ErrorKind::NotFound, io::ErrorKind::UnexpectedEof];
        matches!(self, Self::Io { error, .. } if lost.contains(&error.kind()))
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

/// A process's hold on the open spool.
pub struct Appender<S> {
    open: Option<Open<S>>,
}

impl<S> Default for Appender<S> {
    fn default() -> Self {
        Self { open: None }
    }
}

struct Open<S> {
    generation: u64,
    key: SpoolKey,
    directory: PathBuf,
    /// None: this spool has no staging buffer.
    staging: Option<S>,
    /// The segment that was written to last.
    file: Option<(u64, File)>,
}

/// Up to where an append went, for who wants to wait until it is on disk.
pub struct Appended {
    generation: u64,
    end: Synced,
}

impl<S: Staging> Appender<S> {
    /// Appends frames made by [`super::frame::push`], all or none, `records` of them.
    pub fn append(
        &mut self,
        shared: &Shared,
        place: &Place<'_>,
        frames: &mut [u8],
        records: u64,
        class: Class,
    ) -> Result<Appended, AppendError> {
        let limit = match class {
            Class::Needed => place.limit,
            Class::Refusal => place.limit - place.limit / RESERVE,
        };
        loop {
            let generation = shared.generation();
            if shared.segment() == 0 {
                // Only for a server that has the directory to itself; the relay sees to that.
                if shared.held.load(Acquire) == 0 || !shared.may_retry((place.facts)().now_ms, OPEN_PAUSE_MS)
                {
                    return Err(AppendError::Closed);
                }
                open_spool(shared, place)?;
                continue;
            }
            if shared.size() + frames.len() as u64 > limit {
                return Err(AppendError::Full { limit: place.limit });
            }
            let appended = self.open(shared, place, generation).and_then(|open| {
                open.key.seal_all(frames);
                let locked = shared.lock().ok_or(AppendError::Stuck)?;
                if shared.segment() == 0 || shared.generation() != generation {
                    return Ok(None);
                }
                let end = open.put(&locked, place, frames)?;
                locked.count(records);
                Ok(Some(Appended { generation, end }))
            });
            match appended {
                Ok(None) => {}
                Ok(Some(appended)) => return Ok(appended),
                // Somebody has removed it. What comes from now on is not lost with it.
                Err(error) if error.is_loss() => self.lost(shared, generation),
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes everything that is staged into the current segment's file.
    pub fn drain(&mut self, shared: &Shared, place: &Place<'_>) -> Result<(), AppendError> {
        self.alone(shared, place, Open::drain)
    }

    /// Closes the current segment, so that it can be removed; if it has anything in it.
    pub fn close_segment(&mut self, shared: &Shared, place: &Place<'_>) -> Result<(), AppendError> {
        self.alone(shared, place, |open, locked| {
            open.drain(locked)?;
            if locked.written() > 0 { open.roll(locked) } else { Ok(()) }
        })
    }

    /// Has everything up to `appended` on disk: by another's sync, or by an own one that serves the others too. False if
    /// another is at it: wait a moment and ask again.
    pub fn sync(
        &mut self,
        shared: &Shared,
        place: &Place<'_>,
        appended: &Appended,
    ) -> Result<bool, AppendError> {
        let synced = || shared.synced(appended.generation);
        if synced() >= Some(appended.end) {
            return Ok(true);
        }
        let Some(_held) = shared.sync() else { return Ok(false) };
        if synced() >= Some(appended.end) {
            return Ok(true);
        }
        let mut drained = None;
        self.alone(shared, place, |open, locked| {
            open.drain(locked)?;
            let end = Synced::new(locked.segment(), locked.written());
            drained = (open.generation == appended.generation).then(|| (end, open.directory.clone()));
            Ok(())
        })?;
        // Closed meanwhile: what this is about may be lost with the files.
        let Some(((end, directory), before)) = drained.zip(synced()) else {
            return Err(AppendError::Closed);
        };
        for segment in before.segment().max(1)..=end.segment() {
            let file = match File::open(directory.join(segment_name(segment))) {
                // The relay has removed it, which it does when all of it is in the table, on disk.
                Err(error) if error.kind() == io::ErrorKind::NotFound && segment < end.segment() => continue,
                file => file.map_err(io("syncing"))?,
            };
            if let Err(error) = file.sync_data() {
                // The kernel tells of it once and then takes the pages for clean: nobody may be told later that what was in
                // them is on the disk. What was staged and written goes its way as that of a former life.
                shared.set_broken(appended.generation);
                self.lost(shared, appended.generation);
                return Err(AppendError::Io { doing: "syncing", error });
            }
        }
        shared.set_synced(appended.generation, end);
        Ok(true)
    }

    /// Does something under the lock, if a spool is open.
    fn alone(
        &mut self,
        shared: &Shared,
        place: &Place<'_>,
        f: impl FnOnce(&mut Open<S>, &Locked<'_>) -> Result<(), AppendError>,
    ) -> Result<(), AppendError> {
        let generation = shared.generation();
        if shared.segment() == 0 {
            return Ok(());
        }
        let done = self.open(shared, place, generation).and_then(|open| {
            let locked = shared.lock().ok_or(AppendError::Stuck)?;
            if shared.segment() == 0 || shared.generation() != generation {
                return Ok(());
            }
            f(open, &locked)
        });
        match done {
            Err(error) if error.is_loss() => {
                self.lost(shared, generation);
                Ok(())
            }
            done => done,
        }
    }

    fn lost(&mut self, shared: &Shared, generation: u64) {
        self.open = None;
        shared.close(generation);
    }

    fn open(
        &mut self,
        shared: &Shared,
        place: &Place<'_>,
        generation: u64,
    ) -> Result<&mut Open<S>, AppendError> {
        if self.open.as_ref().is_none_or(|open| open.generation != generation) {
            // Of another generation by now, they are found out to be under the lock.
            let (directory, key) = (directory(place.base, shared.id()), shared.key());
            let lost = || io::Error::from(io::ErrorKind::NotFound);
            let staging = shared.staging().map(|known| match S::open(&directory.join(STAGING)) {
                // Another file of that name would be staged into by some, and drained by others.
                Ok((staging, inode)) => (inode == known).then_some(staging).ok_or_else(lost),
                Err(error) => Err(error),
            });
            let staging = staging.transpose().map_err(io("opening the staging buffer"))?;
            self.open = Some(Open { generation, key, directory, staging, file: None });
        }
        self.open.as_mut().ok_or(AppendError::Closed)
    }
}

impl<S: Staging> Open<S> {
    /// Appends sealed frames, to the staging buffer if they fit. Where they end.
    fn put(
        &mut self,
        locked: &Locked<'_>,
        place: &Place<'_>,
        frames: &mut [u8],
    ) -> Result<Synced, AppendError> {
        let length = frames.len() as u64;
        let most = SEGMENT_BYTES.min(place.limit / SEGMENTS_IN_LIMIT);
        // Of a small segment, not all at once.
        let room = self.staging.as_ref().map_or(0, |_| STAGING_ROOM.min(most / 2));
        if locked.staged() + length > room {
            self.drain(locked)?;
        }
        let bytes = locked.written() + locked.staged();
        if bytes > 0 && bytes + length > most {
            self.drain(locked)?;
            self.roll(locked)?;
        }
        let (segment, written, staged) = (locked.segment(), locked.written(), locked.staged());
        self.key.place_all(segment, written + staged, frames);
        if let Some(staging) = self.staging.as_mut().filter(|_| length <= room) {
            staging.put(staged as usize, frames);
            let length = (staged + length) as u32;
            staging.publish(Staged { segment, written: written as u32, length });
            locked.staged_more(frames.len() as u64);
        } else {
            let (wrote, result) = write_at(self.file(segment)?, frames, written);
            // What was written counts, be it torn.
            locked.wrote(wrote);
            result.map_err(io("writing"))?;
        }
        Ok(Synced::new(segment, locked.written() + locked.staged()))
    }

    /// Writes what is staged into the segment. Again from where it began, if that failed halfway before: the same bytes.
    fn drain(&mut self, locked: &Locked<'_>) -> Result<(), AppendError> {
        let (segment, written, staged) = (locked.segment(), locked.written(), locked.staged());
        if staged == 0 {
            return Ok(());
        }
        let Some(mut staging) = self.staging.take() else { return Err(AppendError::Closed) };
        let drained = self.file(segment).and_then(|file| {
            staging.with(staged as usize, |bytes| write_at(file, bytes, written).1).map_err(io("writing"))
        });
        if drained.is_ok() {
            staging.publish(Staged { segment, written: (written + staged) as u32, length: 0 });
            locked.drained();
        }
        self.staging = Some(staging);
        drained
    }

    /// Makes the segment behind the current one the current one. Nothing is staged.
    fn roll(&mut self, locked: &Locked<'_>) -> Result<(), AppendError> {
        let next = locked.segment() + 1;
        make_segment(&self.directory, next)?;
        locked.rolled(next);
        Ok(())
    }

    fn file(&mut self, segment: u64) -> Result<&File, AppendError> {
        if self.file.as_ref().is_none_or(|(number, _)| *number != segment) {
            let path = self.directory.join(segment_name(segment));
            // Not `create`: the segment was made by who rolled. A segment that somebody has removed must not come back
            // under writers that still have the old one open.
            let file = OpenOptions::new().write(true).custom_flags(O_NOFOLLOW).open(path);
            self.file = Some((segment, file.map_err(io("opening a segment"))?));
        }
        self.file.as_ref().map(|(_, file)| file).ok_or(AppendError::Closed)
    }
}

/// ENOSPC: what a write that got nowhere means.
const NO_SPACE: i32 = 28;

/// Writes bytes at a place of a file; how many were written.
fn write_at(file: &File, bytes: &[u8], at: u64) -> (u64, io::Result<()>) {
    let mut wrote = 0;
    while wrote < bytes.len() {
        match file.write_at(&bytes[wrote..], at + wrote as u64) {
            Ok(0) => return (wrote as u64, Err(io::Error::from_raw_os_error(NO_SPACE))),
            Ok(more) => wrote += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (wrote as u64, Err(error)),
        }
    }
    (wrote as u64, Ok(()))
}

/// In the base directory.
const LOCK: &str = "lock";

/// fcntl.h of Linux, the same on x86-64; aarch64 has another value.
#[cfg(target_arch = "aarch64")]
pub(super) const O_NOFOLLOW: i32 = 0o100_000;
#[cfg(not(target_arch = "aarch64"))]
pub(super) const O_NOFOLLOW: i32 = 0o400_000;

fn directory(base: &Path, id: Id) -> PathBuf {
    base.join(id.to_string())
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).custom_flags(O_NOFOLLOW).open(path)
}

fn make_segment(directory: &Path, segment: u64) -> Result<(), AppendError> {
    match new_file(&directory.join(segment_name(segment))) {
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
    let Some(_held) = shared.opening() else {
        std::thread::sleep(OPENING_WAIT);
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
    remove_empty(place.base);
    let directory = directory(place.base, id);
    let made = make_spool(&directory, &identity, facts.keeps_blocks);
    if made.is_err() {
        // Nobody knows of it.
        let _ = fs::remove_dir_all(&directory);
    }
    let staging = made?;
    sync_directory(place.base)?;
    let size = size_below(place.base);
    let locked = shared.lock().ok_or(AppendError::Stuck)?;
    shared.opened(&locked, (id, identity.key), staging, size);
    Ok(())
}

/// The inode of the staging buffer, if there is one.
fn make_spool(directory: &Path, identity: &Identity, staging: bool) -> Result<Option<u64>, AppendError> {
    let doing = "making a spool";
    DirBuilder::new().mode(0o700).create(directory).map_err(io(doing))?;
    let file = |name: &str, bytes: &[u8]| {
        let mut file = new_file(&directory.join(name))?;
        file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| file.metadata())
    };
    file(IDENTITY, &identity.encode()).map_err(io(doing))?;
    // On disk: so that no page of it asks for room when it is stored into.
    let buffer = staging.then(|| file(STAGING, &vec![0; STAGING_BYTES])).transpose();
    let staging = match buffer {
        // With a disk that is full, the spool is without one: then each record finds room, or is refused.
        Err(error) if error.kind() == io::ErrorKind::StorageFull => {
            fs::remove_file(directory.join(STAGING)).map_err(io(doing))?;
            None
        }
        buffer => buffer.map_err(io(doing))?.map(|file| file.ino()),
    };
    make_segment(directory, 1)?;
    Ok(staging)
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
