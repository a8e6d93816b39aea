//! Which transaction, timeline and cluster this is, and what has become of a transaction.
//!
//! Main thread only. The trap it avoids: asking the commit log about an id it does not know (too old, or of a future that
//! a restore has undone), which raises an error; such an id is told apart first.

use pgrx::pg_sys;

use super::plain;

/// The full id of the running (sub)transaction if it has written anything; it is what a savepoint's rollback undoes.
pub fn current_id() -> Option<u64> {
    // SAFETY: no arguments; invalid (0) if none is assigned.
    let id = unsafe { pg_sys::GetCurrentFullTransactionIdIfAny() }.value;
    (id != 0).then_some(id)
}

/// The timeline that this server writes, or on a standby replays.
pub fn timeline() -> u32 {
    plain::timeline()
}

/// The cluster's identifier, the same on all its members.
pub fn system_id() -> u64 {
    plain::system_identifier()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Committed,
    RolledBack,
    /// Also: prepared, and neither committed nor rolled back.
    Running,
    /// Nobody knows any more, or it is not of this history.
    Unknown,
}

/// What has become of a (sub)transaction of this server's timeline. Within a transaction.
pub fn fate(full: u64) -> Fate {
    // SAFETY: no arguments.
    if full >= unsafe { pg_sys::ReadNextFullTransactionId() }.value {
        return Fate::Unknown;
    }
    // SAFETY: takes an xid8, which is passed by value, and returns text, or NULL for an id whose status is kept no longer.
    let status = unsafe {
        pgrx::direct_function_call_as_datum(pg_sys::pg_xact_status, &[Some(pg_sys::Datum::from(full))])
            .map(|text| super::datum::varlena_bytes(text))
    };
    match status {
        Some(b"committed") => Fate::Committed,
        Some(b"aborted") => Fate::RolledBack,
        Some(b"in progress") => Fate::Running,
        _ => Fate::Unknown,
    }
}

/// Has the running transaction's commit wait until it is on disk here, where the settings would not.
pub fn commit_durably() {
    // SAFETY: a plain read; a setting that any session may change, until the transaction ends.
    unsafe {
        if pg_sys::synchronous_commit == pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_OFF as i32 {
            pg_sys::set_config_option(
                c"synchronous_commit".as_ptr(),
                c"local".as_ptr(),
                pg_sys::GucContext::PGC_USERSET,
                pg_sys::GucSource::PGC_S_SESSION,
                pg_sys::GucAction::GUC_ACTION_LOCAL,
                true,
                0,
                false,
            );
        }
    }
}
