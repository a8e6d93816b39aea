//! [`Status`]: what the service has done, for `vault.status()` and metrics.
//!
//! Counted under the service's lock, copied out on the worker's main thread. The trap it avoids: counters that are
//! read one by one while they move, so that failures exceed calls.

use std::time::SystemTime;

use crate::error::KmsError;

/// A failure worth showing, and when it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastError {
    /// What.
    pub error: KmsError,
    /// When.
    pub at: SystemTime,
}

/// A consistent copy of the counters. All counts start at zero with the worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The provider that answers, unless opening it failed.
    pub provider: Option<&'static str>,
    /// Why there is no provider; every job gets this error.
    pub provider_error: Option<KmsError>,
    /// Attempts made at the provider, retries included.
    pub calls: u64,
    /// Attempts that failed.
    pub failures: u64,
    /// Attempts that were repeats.
    pub retries: u64,
    /// Jobs that shared a call made for another.
    pub coalesced: u64,
    /// Jobs whose deadline passed.
    pub timed_out: u64,
    /// Jobs withdrawn by their caller.
    pub cancelled: u64,
    /// Jobs answered by the open breaker, without a call.
    pub refused: u64,
    /// Whether callers are refused at once because the key service has not answered for a while.
    pub breaker_open: bool,
    /// How often that began.
    pub breaker_opened: u64,
    /// Calls running now.
    pub in_flight: usize,
    /// Calls waiting for a place now.
    pub queued: usize,
    /// Jobs waiting now.
    pub jobs: usize,
    /// The latest failed attempt.
    pub last_error: Option<LastError>,
    /// The latest attempt that succeeded.
    pub last_success_at: Option<SystemTime>,
}

impl Status {
    /// An attempt has ended.
    pub(crate) fn ended(&mut self, error: Option<&KmsError>) {
        let at = SystemTime::now();
        match error {
            None => self.last_success_at = Some(at),
            Some(error) => {
                self.failures += 1;
                self.last_error = Some(LastError { error: error.clone(), at });
            }
        }
    }
}
