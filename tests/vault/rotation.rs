//! Scheduled work: rotations that are due, those that fail, and what runs out. Runs in the test process.
//!
//! The trap: time. Dates are moved by a superuser, which is what waiting would do; the worker looks once a second here.

mod crashes;
mod due;
mod failing;
mod hooks;
mod plans;
mod races;
mod runs_out;
mod speed;

use std::time::{Duration, Instant};

use crate::audit::LAST_WORDS;
use hyperion_vault_tests::{Ask, Client, Cluster, ClusterBuilder, PATIENCE, wait_for};

/// A cluster whose worker looks every second.
fn builder() -> ClusterBuilder {
    Cluster::builder().conf("hyperion_vault.scan_interval_secs", "1")
}

/// Makes all automatic secrets due, and as far overdue as `ago`.
#[track_caller]
fn make_due(root: &mut Client, ago: &str) {
    root.ask(&format!(
        "UPDATE vault.secrets SET next_rotation_at = clock_timestamp() - interval '{ago}' WHERE kind = 'automatic'"
    ));
}

/// Waits until no secret that can be rotated is due; returns how long that took.
#[track_caller]
fn until_done(root: &mut Client) -> Duration {
    let begun = Instant::now();
    wait_for("all that is due to be rotated", 4 * PATIENCE, || {
        root.ask(
            "SELECT NOT EXISTS (SELECT FROM vault.secrets WHERE kind = 'automatic' AND recover_until IS NULL
               AND next_rotation_at <= clock_timestamp())",
        ) == "t"
    });
    begun.elapsed()
}

/// Longer than the worker takes to look again: what it was going to do it has done.
fn another_look() {
    std::thread::sleep(Duration::from_millis(2500));
}

/// Names with their versions, in order.
#[track_caller]
fn versions(root: &mut Client) -> String {
    root.ask("SELECT string_agg(name || '=' || version, ' ' ORDER BY name) FROM vault.secrets")
}

/// What the worker has left in the audit log of this secret, once there is anything and what became of it is known.
#[track_caller]
fn recorded(root: &mut Client, name: &str) -> String {
    let sql = format!(
        "SELECT string_agg(concat_ws(' ', action, version, outcome, sqlstate, role, client), ', ' ORDER BY id) FROM {LAST_WORDS}
          WHERE subject = '{name}' AND function = 'maintenance'"
    );
    wait_for("the audit log to tell", PATIENCE, || {
        let found = root.ask(&sql);
        found != "∅" && !found.contains("pending")
    });
    root.ask(&sql)
}
