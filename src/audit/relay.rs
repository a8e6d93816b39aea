//! `hyperion_vault relay`: takes records from the spools into `vault.audit_log`, each exactly once.
//!
//! A worker of the vault's database, main thread; the only writer of the log's tables. A turn:
//!
//! ```text
//! spools, oldest first → read frames from where the table says → one transaction: rows, and how far → remove what is taken
//! ```
//!
//! Exactly once: a spool's position is committed with the rows it stands for, and read again in the transaction that
//! goes on from it, under a lock that keeps a second relay out. A segment is removed only after the commit is on disk, be
//! `synchronous_commit` off or not.
//!
//! A pending write is judged here, when its record is taken: the commit log knows what became of the (sub)transaction. If
//! it is still running (or prepared), the row says `pending`, and a later row resolves it. On another timeline than the
//! record's the same id may be another transaction: `unknown`.
//!
//! It is in no hurry ([`log::rest`]): what sessions do is worth more than a log that is up to the second.
//!
//! In recovery nothing can be written: only what the primary's table (as replayed) has already is removed, which are
//! copies of its spools that a base backup brought along.
//!
//! The trap it avoids: taking the end of what was read for the end of a segment. What is read, and what is removed, is
//! decided in [`log`], which asks whether a segment is finished *before* it looks how much there is.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::CStr;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use hyperion_vault_core::audit::{self as log, Frames, Next, Outcome, Part, Record, Segment, Spool};
use hyperion_vault_core::envelope::Id;

use super::spool::{close_segment, drain, keep_open, let_go, write_counted};
use crate::area::{self, Area};
use crate::config;
use crate::error::{Result, VaultError};
use crate::pg::xact::{self, Fate};
use crate::pg::{datum, exit, identity, monotonic_ms, thread_time, transaction};
use crate::store::audit as table;
use crate::worker::session;

pub const NAME: &CStr = c"hyperion_vault relay";

/// Between looks when there was nothing to take. Nobody wakes the relay: that would cost every read.
const PAUSE: Duration = Duration::from_millis(200);
/// On a standby there is little to do.
const RECOVERY_PAUSE: Duration = Duration::from_secs(2);
/// How much one transaction takes: some thousand records.
const BATCH_BYTES: usize = 1 << 20;
/// How often transactions that were running are asked about again, and counted refusals are looked for.
const REVIEW: Duration = Duration::from_secs(1);
/// Until the next try after one that failed.
const REVIEW_AGAIN: Duration = Duration::from_secs(15);
/// Writes asked about in one go.
const REVIEWED: usize = 1000;
/// So long a review may take; the next one goes on where it ended, at once if that was worth while.
const REVIEW_TIME: Duration = Duration::from_millis(100);
/// If it was not: some open transaction has written very much.
const REVIEW_LATER: Duration = Duration::from_secs(5);
/// A record's usual length, for an estimate.
const USUAL_BYTES: u64 = 200;

/// Entry point, by name, for the postmaster; the argument is its place in the roster.
#[unsafe(no_mangle)]
#[pgrx::pg_guard]
pub extern "C-unwind" fn hyperion_vault_relay_main(arg: pgrx::pg_sys::Datum) {
    let mut relay = Relay::default();
    exit::before_exit(let_go);
    session::serve(datum::index(arg), move || relay.turn())
}

#[derive(Default)]
struct Relay {
    /// How far spools are known to be taken.
    taken: HashMap<Id, Taken>,
    /// When to review again, in milliseconds.
    review_at: u64,
    /// The last pending row that was asked about; the next review begins behind it.
    reviewed: i64,
}

/// How far a spool is in the table.
#[derive(Clone, Copy, Default)]
pub struct Taken {
    /// Where the next frame begins.
    pub position: i64,
    pub records: i64,
}

impl Relay {
    fn turn(&mut self) -> Result<Duration> {
        let area = area::get()?;
        if !keep_open(&area) {
            // What lies there may be another server's.
            return Ok(PAUSE);
        }
        let now = monotonic_ms();
        super::status::look(&area);
        if identity::in_recovery() {
            // After a promotion everything is looked at anew.
            self.taken.clear();
            let _ = drain(&area);
            config::with_spool_dir(|base| self.tidy(&area, base))?;
            return Ok(RECOVERY_PAUSE);
        }
        let busy = thread_time();
        if now >= self.review_at {
            // What fails here keeps nothing from being taken.
            let pause = session::attempt(|| self.review(&area)).unwrap_or(REVIEW_AGAIN);
            self.review_at = now + pause.as_millis() as u64;
        }
        config::with_spool_dir(|base| self.take(&area, base, busy))
    }

    /// Takes the next batch of the oldest spool that has one. How long to wait until the next, so that this turn's work,
    /// which began when the thread had run for `busy`, is no more than its share.
    fn take(&mut self, area: &Area, base: &Path, busy: Duration) -> Result<Duration> {
        let before = crate::pg::clock();
        // Where it cannot be, what is in the segments is taken all the same, which may make room.
        let drained = drain(area).is_ok();
        let spools = log::spools(base).map_err(|e| unreadable(&e))?;
        notice_loss(area, base);
        self.load(&spools)?;
        let mut unread = None;
        for spool in &spools {
            let from = self.taken(spool);
            let open = is_open(area, spool);
            let part = match spool.next_part(&area.audit.spool, open, from.position, BATCH_BYTES) {
                Err(error) if !open => {
                    // Of a former life: the others are not to wait for it.
                    unread = Some(error);
                    continue;
                }
                part => part.map_err(|e| unreadable(&e))?,
            };
            if open != is_open(area, spool) {
                // It was being opened, or has been closed: what was read of it may be the half of something.
                return Ok(Duration::ZERO);
            }
            if let Some(part) = part {
                let taken = transaction::run(|| take_part(area, spool, from, &part))?;
                self.taken.insert(spool.id, taken);
                self.publish(area, &spools);
                self.remove(area, spool, taken)?;
                // That was all there was. What has come meanwhile waits for more to come: a transaction costs as much
                // as hundreds of records.
                let all = !part.last && part.bytes.len() < BATCH_BYTES && spools.last() == Some(spool);
                if all {
                    told(unread)?;
                    self.caught_up(area, before, drained)?;
                }
                let waiting = spools.iter().map(|spool| spool.waiting(self.taken(spool).position)).sum();
                let rest = log::rest(thread_time().saturating_sub(busy), waiting, config::spool_limit());
                return Ok(if all { rest.max(PAUSE) } else { rest });
            }
            self.remove(area, spool, from)?;
        }
        self.publish(area, &spools);
        told(unread)?;
        self.caught_up(area, before, drained)?;
        let rest = log::rest(thread_time().saturating_sub(busy), 0, config::spool_limit());
        Ok(rest.max(PAUSE))
    }

    /// Asks again about transactions that were running, and writes counts of refusals whose time is over. When to do so
    /// again.
    fn review(&mut self, area: &Area) -> Result<Duration> {
        transaction::run(|| {
            for (actor, count) in area.audit.denials.take_counted(monotonic_ms() / 1000) {
                write_counted(actor, count);
            }
            Ok(())
        })?;
        let (begun, mut judged) = (Instant::now(), 0);
        loop {
            let after = self.reviewed;
            let (next, resolved) = transaction::run(|| {
                let page = table::pending(after, REVIEWED)?;
                let resolved: Vec<(i64, Outcome)> = page
                    .rows
                    .into_iter()
                    .map(|row| (row.id, judge(row.system_id, row.timeline, row.xid)))
                    .filter(|(_, outcome)| *outcome != Outcome::Pending)
                    .collect();
                table::resolve(&resolved)?;
                Ok((page.next, resolved.len()))
            })?;
            judged += resolved;
            // One transaction may have any number of writes: the others do not wait for its end.
            self.reviewed = next.unwrap_or(0);
            if next.is_none() {
                return Ok(REVIEW);
            }
            if begun.elapsed() >= REVIEW_TIME || area.header.posts.is_held_off() {
                return Ok(if judged > 0 { Duration::ZERO } else { REVIEW_LATER });
            }
        }
    }

    fn taken(&self, spool: &Spool) -> Taken {
        self.taken.get(&spool.id).copied().unwrap_or_default()
    }

    /// Asks the table about spools that are not known yet.
    fn load(&mut self, spools: &[Spool]) -> Result<()> {
        for spool in spools {
            if let Entry::Vacant(entry) = self.taken.entry(spool.id) {
                entry.insert(transaction::run(|| table::taken(spool.id))?);
            }
        }
        Ok(())
    }

    /// In recovery: removes what the replayed table has.
    fn tidy(&mut self, area: &Area, base: &Path) -> Result<()> {
        let spools = log::spools(base).map_err(|e| unreadable(&e))?;
        notice_loss(area, base);
        self.load(&spools)?;
        for spool in spools {
            let taken = self.taken(&spool);
            self.remove(area, &spool, taken)?;
        }
        Ok(())
    }

    /// Removes a spool's finished segments that have been taken, and the spool itself if it is a former one and empty.
    fn remove(&self, area: &Area, spool: &Spool, taken: Taken) -> Result<()> {
        let shared = &area.audit.spool;
        // A spool that is just being opened looks like a former one that is empty: not while anybody is at that.
        let Some(_opening) = shared.opening() else { return Ok(()) };
        let open = is_open(area, spool);
        let mut left = spool.segments.len();
        for Segment { number, bytes } in
            spool.spent(shared, open, taken.position).map_err(|e| unreadable(&e))?
        {
            log::remove_segment(spool, number).map_err(|e| unreadable(&e))?;
            shared.shrink(bytes);
            left -= 1;
        }
        if left == 0 && !open {
            // Is looked at anew there. What else may lie in it is not ours to remove; it then stays, and costs a look a turn.
            let _ = log::remove_spool(spool);
        }
        Ok(())
    }

    /// Everything that was there at that time has been taken, if what was staged then could be written: a segment that takes
    /// up much of a small limit can go.
    fn caught_up(&self, area: &Area, at: i64, drained: bool) -> Result<()> {
        if !drained {
            return Ok(());
        }
        area.audit.relay.settled.store(at as u64, Relaxed);
        let shared = &area.audit.spool;
        if shared.size() > config::spool_limit() / 2 {
            close_segment(area)
                .map_err(|e| VaultError::internal(format!("cannot close a segment: {e:?}")))?;
        }
        Ok(())
    }

    fn publish(&self, area: &Area, spools: &[Spool]) {
        let mut backlog = 0;
        for spool in spools {
            let taken = self.taken(spool);
            if is_open(area, spool) {
                area.audit.relay.relayed.store(taken.records as u64, Relaxed);
                continue;
            }
            backlog += spool.waiting(taken.position).div_ceil(USUAL_BYTES);
        }
        area.audit.relay.backlog.store(backlog, Relaxed);
    }
}

/// What could not be read, once nothing else is to be done.
fn told(unread: Option<std::io::Error>) -> Result<()> {
    unread.map_or(Ok(()), |error| Err(unreadable(&error)))
}

fn unreadable(error: &std::io::Error) -> VaultError {
    VaultError::new(crate::error::Kind::AuditUnavailable, format!("the audit spool cannot be read: {error}"))
        .hint("Look at the directory of hyperion_vault.audit_spool_dir; the relay goes on by itself.")
}

fn is_open(area: &Area, spool: &Spool) -> bool {
    let shared = &area.audit.spool;
    shared.segment() != 0 && shared.id() == spool.id
}

/// The open spool's current segment is gone from the disk: what is appended would be, too. Or the staging buffer is, or has
/// been replaced: of that, some have the one mapped and others the other.
fn notice_loss(area: &Area, base: &Path) {
    let shared = &area.audit.spool;
    let (generation, segment) = (shared.generation(), shared.segment());
    if segment != 0 && !log::intact(base, shared) && shared.segment() == segment {
        // First, since nothing is appended to it from then on.
        shared.close(generation);
        pgrx::warning!(
            "hyperion_vault: a segment of the open audit spool is gone, or its staging file; records may be lost"
        );
    }
}

/// Inserts what a part holds, in the running transaction.
fn take_part(area: &Area, spool: &Spool, from: Taken, part: &Part) -> Result<Taken> {
    xact::commit_durably();
    let mut writer = table::Writer::begin(spool.id)?;
    let now = writer.taken()?;
    if now.position != from.position {
        // Another relay was here.
        return Ok(now);
    }
    let frames = Frames { key: spool.key(), segment: part.segment, offset: part.offset, bytes: &part.bytes };
    let (mut at, mut records, mut torn) = (0, 0, 0);
    let end = loop {
        match frames.next(at) {
            Next::Frame(payload) => {
                let position = log::position(part.segment, part.offset + at as u64);
                at = payload.end;
                let Some(record) = Record::decode(&part.bytes[payload]) else {
                    torn += 1;
                    continue;
                };
                writer.add(spool, position, &record, judged(spool, &record));
                records += 1;
            }
            Next::Torn(range) => {
                at = range.end;
                torn += 1;
            }
            Next::End if part.last => {
                torn += i64::from(at < part.bytes.len());
                break part.bytes.len();
            }
            // In the middle of a frame, or of nothing: all of a batch that is no frame is skipped, but for what may be
            // the beginning of one.
            Next::End if at == 0 => {
                torn += 1;
                break part.bytes.len() - log::LONGEST_FRAME.min(part.bytes.len() - 1);
            }
            Next::End => break at,
        }
    };
    if torn > 0 {
        area.audit.relay.torn.fetch_add(torn as u64, Relaxed);
        pgrx::warning!(
            "hyperion_vault: skipped {torn} torn records in segment {} of audit spool {}",
            part.segment,
            spool.id
        );
    }
    let taken = Taken {
        position: log::position(part.segment, part.offset + end as u64),
        records: from.records + records,
    };
    writer.finish(taken)?;
    Ok(taken)
}

/// The outcome of a record as it is known now.
fn judged(spool: &Spool, record: &Record<'_>) -> Outcome {
    if record.outcome != Outcome::Pending {
        return record.outcome;
    }
    judge(spool.system_id, record.timeline, record.xid)
}

fn judge(system_id: u64, timeline: u32, xid: u64) -> Outcome {
    if system_id != xact::system_id() || timeline != xact::timeline() {
        return Outcome::Unknown;
    }
    match xact::fate(xid) {
        Fate::Committed => Outcome::Ok,
        Fate::RolledBack => Outcome::RolledBack,
        Fate::Running => Outcome::Pending,
        Fate::Unknown => Outcome::Unknown,
    }
}
