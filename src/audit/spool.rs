//! Appending to the spool, with the settings and the shared memory of this server.
//!
//! Client backends and workers, main thread; [`open`] in the postmaster. The trap it avoids: an error of the file system
//! that tells every caller the path of the spool; they get the reason, the log and `vault.status()` say where.

use std::cell::RefCell;
use std::fs::File;
use std::sync::Mutex;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyperion_vault_core::audit::{self as log, AppendError, Appended, Appender, Class, Facts, Place, Why};

use super::About;
use crate::area::{self, Area, Audit};
use crate::config;
use crate::error::{Kind, Result, VaultError};
use crate::pg::identity::{self, Origin};
use crate::pg::mapped::{self, Mapped};
use crate::pg::{exit, monotonic_ms, xact};

thread_local! {
    static APPENDER: RefCell<Appender<Mapped>> = RefCell::new(Appender::default());
}

fn with_place<R>(f: impl FnOnce(&Place<'_>) -> R) -> R {
    config::with_spool_dir(|base| {
        let facts = || Facts {
            owner: crate::pg::server_user(),
            system_id: xact::system_id(),
            now_ms: monotonic_ms(),
            clock: crate::pg::clock(),
            keeps_blocks: mapped::overwrites_in_place(base),
        };
        f(&Place { base, limit: config::spool_limit(), facts: &facts })
    })
}

fn with_appender<R>(f: impl FnOnce(&mut Appender<Mapped>, &Place<'_>) -> R) -> R {
    APPENDER.with_borrow_mut(|appender| with_place(|place| f(appender, place)))
}

/// For the relay: writes what is staged.
pub fn drain(area: &Area) -> Result<(), AppendError> {
    with_appender(|appender, place| appender.drain(&area.audit.spool, place))
}

/// For the relay: writes what is staged and ends the segment, so that it can be removed.
pub fn close_segment(area: &Area) -> Result<(), AppendError> {
    with_appender(|appender, place| appender.close_segment(&area.audit.spool, place))
}

/// Takes the directory and opens the spool of this life of the server. In the postmaster, which goes on without it: the
/// relay tries again.
pub fn open() {
    let Ok(area) = area::get() else { return };
    if let Err(error) = take_directory(&area) {
        refused(area.audit, &error).warn();
    }
}

/// Sees to it that the directory is this server's and a spool is open. Whether it is this server's: if it is and no spool can
/// be opened, then what is taken from former ones may make the room for it.
pub fn keep_open(area: &area::Area) -> bool {
    let shared = &area.audit.spool;
    let unfit = (shared.held.load(Acquire) == 0 || shared.segment() == 0)
        && matches!(take_directory(area), Err(AppendError::Unfit(_)));
    // A directory that others may write to is not read either: what lies there may be theirs.
    !unfit && shared.held.load(Acquire) != 0
}

/// Gives up what this process holds of the spool. For one that leaves without running destructors.
pub fn let_go() {
    if let Ok(area) = area::get() {
        area.audit.spool.let_go();
    }
}

fn take_directory(area: &area::Area) -> Result<(), AppendError> {
    /// As long as this process lives, and any child that inherited it.
    static LOCK: Mutex<Option<File>> = Mutex::new(None);
    let shared = &area.audit.spool;
    let taken = with_place(|place| {
        let Ok(mut lock) = LOCK.lock() else { return Err(AppendError::Closed) };
        // The postmaster still has it when a child's crash has made the mapping anew.
        if shared.held.load(Acquire) == 0 && lock.is_none() {
            *lock = Some(log::hold_base(place)?);
            if identity::is_child() {
                // What this process holds ends with it.
                exit::before_exit(|| {
                    if let Ok(area) = area::get() {
                        area.audit.spool.held.store(0, Release);
                    }
                });
            }
        }
        shared.held.store(1, Release);
        log::open_spool(shared, place)
    });
    taken.inspect_err(|error| note(area.audit, error))
}

/// Appends frames; the operation they tell of must be refused if this fails.
pub fn append(frames: &mut [u8], records: u64, class: Class) -> Result<()> {
    // Not preloaded: there is no vault, and nothing was done.
    let Ok(area) = area::get() else { return Ok(()) };
    let audit = area.audit;
    if let Some(wait) = log::give_way(audit.spool.size(), config::spool_limit())
        && !identity::in_recovery()
    {
        // Too short to be worth an interrupt, and this is after the operation: it is to be recorded. A standby's relay takes
        // nothing, so there is nobody to wait for.
        std::thread::sleep(wait);
    }
    let result = with_appender(|appender, place| {
        let appended = appender.append(&audit.spool, place, frames, records, class)?;
        if config::audit_sync() && class == Class::Needed {
            sync(audit, place, appender, &appended)?;
        }
        Ok(())
    });
    result.map_err(|error| {
        note(audit, &error);
        refused(audit, &error)
    })
}

/// The longest wait for another's sync before looking again: it announces its end, this is for one that failed.
const SYNC_WAIT: Duration = Duration::from_millis(10);

/// Waits until the record is on disk. A cancel here refuses the operation, whose record stays.
fn sync(
    audit: &'static Audit,
    place: &Place<'_>,
    appender: &mut Appender<Mapped>,
    appended: &Appended,
) -> Result<(), AppendError> {
    loop {
        let waiting = audit.synced.prepare();
        if appender.sync(&audit.spool, place, appended)? {
            drop(waiting);
            audit.synced.broadcast();
            return Ok(());
        }
        waiting.sleep(SYNC_WAIT);
    }
}

/// Appends what tells of an operation that was refused or failed.
pub fn append_if_possible(frames: &mut [u8]) -> bool {
    let Ok(area) = area::get() else { return false };
    let appended = APPENDER.try_with(|appender| {
        let mut appender = appender.try_borrow_mut().ok()?;
        with_place(|place| appender.append(&area.audit.spool, place, frames, 1, Class::Refusal)).ok()
    });
    let appended = matches!(appended, Ok(Some(_)));
    if !appended {
        area.audit.spool.unrecorded.fetch_add(1, Relaxed);
    }
    appended
}

/// Whether this refusal of the session's is to be written, or has only been counted. Writes what was counted before.
pub fn worth_writing() -> bool {
    let Ok(area) = area::get() else { return false };
    let actor = log::Actor {
        role: identity::session_user().to_u32(),
        address: identity::with_origin(|origin| match origin {
            Origin::Ip(address) => Some(address.to_canonical()),
            _ => None,
        }),
    };
    let seen = area.audit.denials.seen(actor, monotonic_ms() / 1000);
    if let Some((actor, count)) = seen.counted {
        write_counted(actor, count);
    }
    seen.write
}

/// One record for refusals of one actor that were only counted. Within a transaction that has not failed.
pub fn write_counted(actor: log::Actor, count: u64) {
    let role = super::name_of(actor.role.into());
    let who = super::Names { session_role: role.clone(), role };
    let client = actor.address.map_or(log::Client::None, log::Client::Ip);
    let about = About {
        function: "several",
        action: "several",
        who: &who,
        token: None,
        subject: None,
        detail: Some("counted instead of written, since they were many"),
        version: None,
        occurrences: u32::try_from(count).unwrap_or(u32::MAX),
        client: Some(client),
    };
    let mut frames = Vec::new();
    about.push(&mut frames, log::Outcome::Denied, None, 0);
    if !append_if_possible(&mut frames)
        && let Ok(area) = area::get()
    {
        // For the next time, which may find room.
        area.audit.denials.give_back(actor, count);
    }
}

fn note(audit: &Audit, error: &AppendError) {
    if matches!(error, AppendError::Closed | AppendError::Stuck) {
        return;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
    audit.spool.failed.fetch_add(1, Relaxed);
    audit.spool.failed_errno.store(error.errno(), Relaxed);
    audit.spool.failed_why.store(error.why(), Relaxed);
    audit.spool.failed_at.store(now, Relaxed);
}

/// The reason of the last failure, in words.
pub fn last_failure(audit: &Audit) -> String {
    let errno = audit.spool.failed_errno.load(Relaxed);
    match (errno, Why::from_u32(audit.spool.failed_why.load(Relaxed))) {
        (0, Some(why)) => format!("The directory of the audit spool cannot be used: {}.", why.as_str()),
        (0, None) => "The audit spool has reached its limit.".to_owned(),
        (errno, _) => {
            format!("The audit spool failed: {}.", std::io::Error::from_raw_os_error(errno as i32))
        }
    }
}

fn refused(audit: &Audit, error: &AppendError) -> VaultError {
    let (detail, hint) = match error {
        AppendError::Full { limit } => (
            format!("The audit spool has reached its limit of {} MB.", limit >> 20),
            "Records leave it for vault.audit_log; see vault.status() for what keeps them, or raise hyperion_vault.audit_spool_max_mb.",
        ),
        AppendError::Io { doing, error } => (
            format!("The audit spool failed at {doing}: {error}."),
            "Make room or repair the directory of hyperion_vault.audit_spool_dir; operations go on by themselves.",
        ),
        AppendError::Stuck => (
            "Another process has kept the audit spool for half a minute.".to_owned(),
            "See whether the file system of hyperion_vault.audit_spool_dir hangs, or whether somebody has stopped a process of the server.",
        ),
        AppendError::Closed if audit.spool.failed_at.load(Relaxed) == 0 => (
            "The audit spool has just been closed, or was never opened.".to_owned(),
            "Repeat the operation; see vault.status() and the server log if it fails again.",
        ),
        AppendError::Unfit(_) | AppendError::Closed => (
            last_failure(audit),
            "Make it a directory of this server alone, owned by its user, with mode 0700; operations go on by themselves.",
        ),
    };
    VaultError::new(Kind::AuditUnavailable, "the audit record cannot be written, so the operation is refused")
        .detail(detail)
        .hint(hint)
}
