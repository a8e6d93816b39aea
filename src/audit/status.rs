//! What `vault.status()` says of the audit log.
//!
//! Client backends, main thread, primary or standby.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use serde_json::{Value, json};

use super::spool::last_failure;
use crate::area::Area;
use crate::config;

/// Takes note of how large the spools are, for how fast they grow. Before one is open the size of former ones is not known.
pub fn look(area: &Area) {
    let spool = &area.audit.spool;
    if spool.segment() != 0 {
        area.audit.growth.look(crate::pg::monotonic_ms(), spool.size());
    }
}

/// Records and seconds that the table lags behind, the spools' size, when they will be full, what failed last.
pub fn status(area: &Area) -> Value {
    let count = |counter: &AtomicU64| counter.load(Relaxed);
    let (spool, relay) = (&area.audit.spool, &area.audit.relay);
    let lag = spool.appended().saturating_sub(count(&relay.relayed)) + count(&relay.backlog);
    let settled = count(&relay.settled);
    let lag_seconds = match (lag, settled) {
        (0, _) => Some(0.0),
        (_, 0) => None,
        (_, settled) => Some((crate::pg::clock() - settled as i64).max(0) as f64 / 1e6),
    };
    let (size, limit) = (spool.size(), config::spool_limit());
    look(area);
    let failed_at = count(&spool.failed_at);
    json!({
        "open": spool.segment() != 0,
        "sync": config::audit_sync(),
        "appended": spool.appended(),
        "lag_records": lag,
        "lag_seconds": lag_seconds,
        "spool_bytes": size,
        "spool_max_bytes": limit,
        "seconds_to_full": area.audit.growth.seconds_to_full(size, limit),
        "append_failures": count(&spool.failed),
        "last_append_failure": (failed_at != 0).then(|| last_failure(area.audit)),
        "last_append_failure_at_unix": (failed_at != 0).then_some(failed_at),
        "unrecorded_refusals": count(&spool.unrecorded),
        "torn": count(&relay.torn),
    })
}
