//! Functions of the server that cannot raise an error, called without the guard that the bindings put around each call.
//!
//! Main thread. Each runs several times per read, and the guard costs as much as what it guards. The trap it avoids: a
//! function that does raise, called this way, would jump over Rust frames: only such are here as are a look at a variable,
//! a clock, or a few words of shared memory, on every supported major.

use pgrx::pg_sys::{Oid, TimeLineID, TimestampTz, XLogRecPtr};

mod raw {
    use super::*;

    unsafe extern "C-unwind" {
        pub fn GetUserId() -> Oid;
        pub fn GetSessionUserId() -> Oid;
        pub fn GetCurrentTimestamp() -> TimestampTz;
        pub fn GetSystemIdentifier() -> u64;
        pub fn RecoveryInProgress() -> bool;
        pub fn GetWALInsertionTimeLine() -> TimeLineID;
        pub fn GetXLogReplayRecPtr(timeline: *mut TimeLineID) -> XLogRecPtr;
    }
}

pub fn user() -> Oid {
    // SAFETY: no arguments; valid inside any session; see the module.
    unsafe { raw::GetUserId() }
}

pub fn session_user() -> Oid {
    // SAFETY: as `user`.
    unsafe { raw::GetSessionUserId() }
}

/// Microseconds since 2000-01-01 00:00 UTC.
pub fn timestamp() -> i64 {
    // SAFETY: no arguments; see the module.
    unsafe { raw::GetCurrentTimestamp() }
}

/// Once the control file has been read.
pub fn system_identifier() -> u64 {
    // SAFETY: no arguments; see the module.
    unsafe { raw::GetSystemIdentifier() }
}

pub fn in_recovery() -> bool {
    // SAFETY: no arguments; see the module.
    unsafe { raw::RecoveryInProgress() }
}

/// The timeline that this server writes, or on a standby replays.
pub fn timeline() -> u32 {
    if in_recovery() {
        let mut timeline = 0;
        // SAFETY: a valid out-parameter; see the module.
        unsafe { raw::GetXLogReplayRecPtr(&mut timeline) };
        timeline
    } else {
        // SAFETY: not in recovery, as it wants; see the module.
        unsafe { raw::GetWALInsertionTimeLine() }
    }
}
