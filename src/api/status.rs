//! `vault.status()`: one document that says how the vault on this server is.
//!
//! Client backends, main thread, primary or standby. Names no secret. Figures from shared memory are each of their
//! own moment.

use std::ffi::CStr;
use std::sync::atomic::Ordering::Relaxed;

use hyperion_vault_core::cache::WAYS;
use hyperion_vault_core::ipc::{ErrorKind, StateCounts};
use serde_json::json;

use super::gate;
use crate::area::{self, Area};
use crate::config::{self, KmsMode};
use crate::error::Result;
use crate::pg::fcinfo::{Args, Return};
use crate::pg::{datum, identity, shmem};
use crate::store::{listing, meta, roles, versions};
use crate::worker::ROSTER;
use crate::worker::posts::Post;

pub fn status(_args: &Args) -> Result<Return> {
    gate::environment()?;
    let area = area::get()?;
    let (secrets, (superseded, grace)) = (listing::count()?, versions::count()?);
    let [roles, bindings, inactive_bindings, tokens] = roles::count()?;
    let status = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "vault_id": meta::vault_id()?.map(|id| id.to_string()),
        "in_recovery": identity::in_recovery(),
        "secrets": secrets.live,
        "automatic": secrets.automatic,
        "open_rotation_jobs": secrets.due,
        "failing_rotations": secrets.failing,
        "deleted": secrets.deleted,
        "active_versions": secrets.live,
        "grace_versions": grace,
        "retained_versions": superseded - grace,
        "access": {
            "roles": roles,
            "bindings": bindings,
            "inactive_bindings": inactive_bindings,
            "tokens": tokens,
        },
        "workers": workers(&area),
        "kms": kms(&area),
        "queue": queue(&area),
        "cache": cache(&area),
        "audit": crate::audit::status::status(&area),
        "shared_memory": { "bytes": shmem::size(), "locked": shmem::locked() },
    });
    Ok(Return::Value(datum::jsonb(&status)))
}

/// The key-service worker first, then the launcher, then those it starts.
fn workers(area: &Area) -> Vec<serde_json::Value> {
    let posts = &area.header.posts;
    let mut all = vec![key_service_worker(area), post(c"hyperion_vault launcher", &posts.launcher)];
    all.extend(ROSTER.iter().zip(&posts.workers).map(|(employee, at)| post(employee.name, at)));
    all
}

fn post(name: &CStr, post: &Post) -> serde_json::Value {
    let pid = post.pid();
    let last_error = post.last_error.read();
    json!({
        "name": name.to_string_lossy(),
        "running": pid.is_some(),
        "pid": pid,
        "starts": post.starts.load(Relaxed),
        "started_at_unix": post.started_at.load(Relaxed),
        "last_error_at_unix": last_error.as_ref().map(|_| post.last_error_at.load(Relaxed)),
        "last_error": last_error,
    })
}

fn key_service_worker(area: &Area) -> serde_json::Value {
    let running = area.header.worker_proc().is_some();
    let pid = area.header.worker_pid.load(Relaxed);
    json!({
        "name": "hyperion_vault kms",
        "running": running,
        "pid": running.then_some(pid),
        "starts": area.header.epoch.current().map_or(0, |epoch| epoch.number() - 1),
        "started_at_unix": area.header.started_at.load(Relaxed),
    })
}

fn kms(area: &Area) -> serde_json::Value {
    let stats = &area.header.stats;
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Relaxed);
    let breaker = count(&stats.breaker);
    let last_error = u8::try_from(stats.last_error_kind.load(Relaxed))
        .ok()
        .and_then(ErrorKind::from_u8)
        .map(ErrorKind::as_str);
    json!({
        "mode": match config::kms_mode() { KmsMode::Aws => "aws", KmsMode::Local => "local" },
        "usable": match stats.provider.load(Relaxed) { 1 => Some(true), 2 => Some(false), _ => None },
        "calls": count(&stats.calls),
        "failures": count(&stats.failures),
        "retries": count(&stats.retries),
        "coalesced": count(&stats.coalesced),
        "in_flight": count(&stats.in_flight),
        "breaker": if breaker & 1 == 1 { "open" } else { "closed" },
        "breaker_opened": breaker >> 1,
        "refused_by_breaker": count(&stats.refused),
        "last_error": last_error,
        "last_error_at_unix": last_error.map(|_| count(&stats.last_error_at)),
    })
}

fn queue(area: &Area) -> serde_json::Value {
    let counts = StateCounts::of(area.slots);
    let states: serde_json::Map<String, serde_json::Value> =
        counts.iter().map(|(state, count)| (state.name().to_owned(), json!(count))).collect();
    json!({ "slots": area.slots.len(), "states": states })
}

fn cache(area: &Area) -> serde_json::Value {
    let totals = area.counters.totals();
    json!({
        "capacity": area.cache().sets() * WAYS,
        "entries": area.cache().occupied(),
        "hits": totals.hits,
        "stale": totals.stale,
        "misses": totals.misses,
    })
}
