//! What the key-service worker publishes of its service, for `vault.status()`.
//!
//! On its main thread: before any answer, so that a client that has one finds its call among the counts, and once a second.
//! The trap it avoids: fields that say different things of one moment. They are stored one by one; all are of one copy.

use std::sync::atomic::Ordering::Relaxed;
use std::time::UNIX_EPOCH;

use hyperion_vault_kms::Service;

use crate::area::KmsStats;
use crate::pg::unix_now;

/// Copies the counts.
pub fn publish(service: &Service, stats: &KmsStats) {
    let status = service.status();
    stats.calls.store(status.calls, Relaxed);
    stats.failures.store(status.failures, Relaxed);
    stats.retries.store(status.retries, Relaxed);
    stats.coalesced.store(status.coalesced, Relaxed);
    stats.in_flight.store(status.in_flight as u64, Relaxed);
    stats.refused.store(status.refused, Relaxed);
    stats.breaker.store(status.breaker_opened << 1 | u64::from(status.breaker_open), Relaxed);
    stats.provider.store(if status.provider_error.is_none() { 1 } else { 2 }, Relaxed);
    // A provider that cannot be opened fails every request without a call of its own.
    let last = match (&status.provider_error, &status.last_error) {
        (Some(error), _) => Some((error.kind, unix_now())),
        (None, Some(last)) => {
            Some((last.error.kind, last.at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())))
        }
        (None, None) => None,
    };
    if let Some((kind, at)) = last {
        stats.last_error_kind.store(kind as u32, Relaxed);
        stats.last_error_at.store(at, Relaxed);
    }
}
