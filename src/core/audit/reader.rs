//! What lies below the base directory: spools, their segments, and how they are read and removed.
//!
//! Runs in the relay (and in whoever opens a spool, for the sizes). The trap it avoids: removing, or taking for a spool,
//! what is not one: only names and contents that this code made are touched. And what is known of files that others write
//! to: it is out of date by the time it is acted upon, unless nobody can write any more.

use std::cmp::Ordering;
use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use siphasher::sip::SipHasher24;

use super::frame::{Frames, Next, SpoolKey};
use super::shared::Shared;
use super::spool::O_NOFOLLOW;
use super::staging::{STAGING, STAGING_BYTES, Staged, Tail};
use crate::envelope::Id;

pub(super) const IDENTITY: &str = "identity";
const MAGIC: [u8; 8] = *b"HVSPOOL1";
const LENGTH: usize = 8 + 16 + 16 + 8 + 8;

/// The file that says which spool a directory is.
pub(super) struct Identity {
    pub id: Id,
    pub key: SpoolKey,
    pub system_id: u64,
    pub created: i64,
}

impl Identity {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(LENGTH + 8);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&self.id.0);
        bytes.extend_from_slice(&self.key.0);
        bytes.extend_from_slice(&self.system_id.to_le_bytes());
        bytes.extend_from_slice(&self.created.to_le_bytes());
        bytes.extend_from_slice(&SipHasher24::new().hash(&bytes).to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, sum) = bytes.split_at_checked(LENGTH)?;
        if sum != SipHasher24::new().hash(body).to_le_bytes() {
            return None;
        }
        let (magic, rest) = body.split_first_chunk::<8>()?;
        let (id, rest) = rest.split_first_chunk::<16>()?;
        let (key, rest) = rest.split_first_chunk::<16>()?;
        let (system_id, created) = rest.split_first_chunk::<8>()?;
        (*magic == MAGIC).then_some(Self {
            id: Id(*id),
            key: SpoolKey(*key),
            system_id: u64::from_le_bytes(*system_id),
            created: i64::from_le_bytes(created.try_into().ok()?),
        })
    }
}

pub(super) fn segment_name(segment: u64) -> String {
    format!("{segment:08}.log")
}

fn segment_number(name: &str) -> Option<u64> {
    let number = name.strip_suffix(".log")?.parse().ok()?;
    (number > 0 && number <= u64::from(u32::MAX >> 1) && segment_name(number) == name).then_some(number)
}

/// A record's position: its segment's number in the upper, its offset in the lower 32 bits.
pub fn position(segment: u64, offset: u64) -> i64 {
    (segment << 32 | offset) as i64
}

/// Segment and offset of a position.
pub fn split(position: i64) -> (u64, u64) {
    let position = position as u64;
    (position >> 32, position & u64::from(u32::MAX))
}

/// A spool that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spool {
    pub id: Id,
    pub system_id: u64,
    pub created: i64,
    pub segments: Vec<Segment>,
    key: [u8; 16],
    directory: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub number: u64,
    pub bytes: u64,
}

/// Part of a segment.
#[derive(Debug)]
pub struct Part {
    pub bytes: Vec<u8>,
    pub segment: u64,
    pub offset: u64,
    /// Whether nothing follows: the segment is finished and this is its end.
    pub last: bool,
}

impl Spool {
    pub fn key(&self) -> SpoolKey {
        SpoolKey(self.key)
    }

    /// Up to `most` bytes of a segment from `offset` on. None: there is no such segment.
    pub fn read(&self, segment: u64, offset: u64, most: usize) -> io::Result<Option<Vec<u8>>> {
        let path = self.directory.join(segment_name(segment));
        let Some(mut file) = there(fs::File::open(path))? else { return Ok(None) };
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = Vec::new();
        file.take(most as u64).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    /// Bytes behind a position, as this spool was listed.
    pub fn waiting(&self, position: i64) -> u64 {
        let (segment, offset) = split(position);
        let left = self.segments.iter().map(|s| match s.number.cmp(&segment) {
            Ordering::Less => 0,
            Ordering::Equal => s.bytes.saturating_sub(offset),
            Ordering::Greater => s.bytes,
        });
        left.sum()
    }

    /// What a former life has left in its staging buffer for this segment, if it does.
    fn tail(&self, segment: u64) -> io::Result<Option<Tail>> {
        Tail::read(&self.directory, segment, self.key())
    }

    /// What lies behind a position, up to `most` bytes of it. None: nothing as yet. `open`: the spool that is written to.
    ///
    /// Whether a segment is finished is asked before it is read: what was read is then all there is.
    pub fn next_part(
        &self,
        shared: &Shared,
        open: bool,
        position: i64,
        most: usize,
    ) -> io::Result<Option<Part>> {
        let (first, mut offset) = split(position);
        let mut segment = first;
        for Segment { number, .. } in self.segments.iter().filter(|s| s.number >= first) {
            if *number != segment {
                (segment, offset) = (*number, 0);
            }
            let finished = !open || shared.finished(segment);
            let tail = if open { None } else { self.tail(segment)? };
            let read = |offset| -> io::Result<(Vec<u8>, bool)> {
                let mut bytes = self.read(segment, offset, most)?.unwrap_or_default();
                if let Some(tail) = &tail {
                    tail.lay_over(offset, most, &mut bytes);
                }
                let frames = Frames { key: self.key(), segment, offset, bytes: &bytes };
                let some = frames.next(0) != Next::End;
                Ok((bytes, some))
            };
            let (mut bytes, mut some) = read(offset)?;
            // The segment ends long before what was staged for it begins (after the machine's crash, or in a copy).
            if !some
                && bytes.len() < most
                && let Some(beyond) = tail.as_ref().and_then(|tail| tail.next(offset))
            {
                offset = beyond;
                (bytes, some) = read(offset)?;
            }
            let end = tail.as_ref().map_or(0, Tail::end);
            let last = finished && bytes.len() < most && offset + bytes.len() as u64 >= end;
            // Of one that is not, a part without any frame is left alone: what is there is about to be overwritten.
            if !bytes.is_empty() && (finished || some) {
                return Ok(Some(Part { bytes, segment, offset, last }));
            }
            if !finished {
                return Ok(None);
            }
        }
        Ok(None)
    }

    /// The segments of which nothing is needed any more once the table has everything up to `position`, with their sizes.
    /// `open`: the spool that is written to; nothing of a segment is needed only if nobody can append to it.
    ///
    /// The sizes that this spool was listed with are out of date: what was appended since, before the segment was closed,
    /// would go with it. So a segment's size is asked for after it is known to be finished.
    pub fn spent(&self, shared: &Shared, open: bool, position: i64) -> io::Result<Vec<Segment>> {
        let (segment, offset) = split(position);
        let mut spent = Vec::new();
        for Segment { number, bytes: listed } in &self.segments {
            if open && !shared.finished(*number) {
                continue;
            }
            let path = self.directory.join(segment_name(*number));
            let Some(metadata) = there(fs::metadata(path))? else { continue };
            let bytes = metadata.len();
            // As it was counted: with what the buffer says that it has.
            let counted = if open { bytes } else { bytes.max(*listed) };
            // Asked only where it decides.
            let staged_end = || -> io::Result<u64> {
                Ok(if open { 0 } else { self.tail(*number)?.map_or(0, |tail| tail.end()) })
            };
            let is_spent = match number.cmp(&segment) {
                Ordering::Less => true,
                Ordering::Equal => offset >= bytes && offset >= staged_end()?,
                Ordering::Greater => !open && bytes == 0 && staged_end()? == 0,
            };
            if is_spent {
                spent.push(Segment { number: *number, bytes: counted });
            }
        }
        Ok(spent)
    }
}

/// While less than this waits, the relay leaves the processor to the sessions; not under a limit that is less than so many
/// times that, which would be reached while it rests.
const CALM_BYTES: u64 = 16 << 20;
const CALM_PART: u64 = 8;
/// It then works at most one part in so many of the time, of one processor.
const CALM_SHARE: u32 = 10;
/// Never longer: what is read now is in the table a second later.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How long the relay rests after a batch that took so much time of the processor, with so many bytes still waiting: a burst
/// of reads is taken once it is over, and what goes on for long is taken as fast as it can be.
pub fn rest(busy: Duration, waiting: u64, limit: u64) -> Duration {
    if waiting >= CALM_BYTES || limit < CALM_BYTES * CALM_PART {
        return Duration::ZERO;
    }
    (busy * (CALM_SHARE - 1)).min(LONGEST_PAUSE)
}

/// All spools below a base directory, oldest first. A directory without a whole identity is no spool: nothing was ever
/// appended to it.
pub fn spools(base: &Path) -> io::Result<Vec<Spool>> {
    let mut found = Vec::new();
    let Some(entries) = there(fs::read_dir(base))? else { return Ok(found) };
    for entry in entries {
        let entry = entry?;
        let named = entry.file_name().to_str().and_then(Id::parse);
        if named.is_none() || !entry.file_type()?.is_dir() {
            continue;
        }
        let directory = entry.path();
        let identity = fs::read(directory.join(IDENTITY)).ok().and_then(|bytes| Identity::decode(&bytes));
        let Some(identity) = identity.filter(|identity| Some(identity.id) == named) else { continue };
        // It may go at any moment, as a former one does, or one that could not be made.
        let Some(mut segments) = there(segments(&directory))? else { continue };
        // What cannot be told of the buffer does not keep the others from being taken.
        if let Ok(Some((staged, _))) = Staged::read(&directory)
            && let Some(segment) = segments.iter_mut().find(|segment| segment.number == staged.segment)
        {
            segment.bytes = segment.bytes.max(staged.end().min(segment.bytes + STAGING_BYTES as u64));
        }
        found.push(Spool {
            id: identity.id,
            system_id: identity.system_id,
            created: identity.created,
            segments,
            key: identity.key.0,
            directory,
        });
    }
    found.sort_by_key(|spool| (spool.created, spool.id));
    Ok(found)
}

/// None: it is not there any more.
pub(super) fn there<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

fn segments(directory: &Path) -> io::Result<Vec<Segment>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let Some(number) = entry.file_name().to_str().and_then(segment_number) else { continue };
        let Some(metadata) = there(entry.metadata())? else { continue };
        found.push(Segment { number, bytes: metadata.len() });
    }
    found.sort_by_key(|segment| segment.number);
    Ok(found)
}

/// Bytes in all spools' segments below a base directory, with what is staged for them.
pub fn size_below(base: &Path) -> u64 {
    spools(base).map_or(0, |spools| {
        spools.iter().flat_map(|spool| &spool.segments).map(|segment| segment.bytes).sum()
    })
}

/// Whether the open spool's files are those that it was opened with: the current segment, and the staging buffer that
/// processes have mapped.
pub fn intact(base: &Path, shared: &Shared) -> bool {
    let (directory, segment) = (base.join(shared.id().to_string()), shared.segment());
    let staging = || fs::metadata(directory.join(STAGING)).ok();
    directory.join(segment_name(segment)).exists()
        && shared.staging().is_none_or(|inode| {
            staging().is_some_and(|file| file.ino() == inode && file.len() >= STAGING_BYTES as u64)
        })
}

/// Removes a segment. What was there before counts for the caller.
///
/// Emptied first: a process that wrote to it may have it open for as long as its session is idle, and would keep its bytes
/// on the disk.
pub fn remove_segment(spool: &Spool, segment: u64) -> io::Result<()> {
    let path = spool.directory.join(segment_name(segment));
    let _ = fs::OpenOptions::new().write(true).truncate(true).custom_flags(O_NOFOLLOW).open(&path);
    fs::remove_file(path)
}

/// Removes a spool that is not the open one, if it has no segments. Nobody is opening one meanwhile.
pub fn remove_spool(spool: &Spool) -> io::Result<()> {
    // Not as it was listed: it may have been the open one then, and had another segment since.
    if !segments(&spool.directory)?.is_empty() {
        return Ok(());
    }
    for name in [STAGING, IDENTITY] {
        there(fs::remove_file(spool.directory.join(name)))?;
    }
    // Fails if anything else is in it, which then stays.
    fs::remove_dir(&spool.directory)
}

/// Removes former spools that nothing was appended to: where no relay runs, each start of the server would leave one more.
pub(super) fn remove_empty(base: &Path) {
    let empty = |spool: &Spool| spool.segments.iter().all(|segment| segment.bytes == 0);
    for spool in spools(base).unwrap_or_default().iter().filter(|spool| empty(spool)) {
        // What cannot be removed now is tried again.
        let removed = spool.segments.iter().try_for_each(|segment| remove_segment(spool, segment.number));
        let _ = removed.and_then(|()| remove_spool(spool));
    }
}
