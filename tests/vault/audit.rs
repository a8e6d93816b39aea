//! The audit log as its reader sees it. Runs in the test process.

mod canary;
mod chaos;
pub(crate) mod every_function;
mod full;
mod log_rights;
mod outcomes;
mod relay;
mod spools;

use hyperion_vault_tests::{Ask, Client, Cluster, PATIENCE, SIGCONT, random_text, wait_for};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The log with the last word on each write in the place of `pending`: the relay may come by in the middle of any.
pub const LAST_WORDS: &str = "(SELECT (jsonb_populate_record(l, jsonb_build_object('outcome', coalesce(r.outcome, l.outcome)))).*
       FROM vault.audit_log l LEFT JOIN vault.audit_log r ON r.resolves = l.id WHERE l.resolves IS NULL) audit_log";

/// Waits until everything recorded up to now is in the table: leaves a record of its own and waits for that.
#[track_caller]
pub fn settle(cluster: &Cluster) {
    let mut root = cluster.superuser();
    let mark = format!("mark/{}", random_text(12));
    // One that works: of one that does not, the record may be left out.
    wait_for("a record to be accepted", PATIENCE, || {
        root.try_ask(&format!("SELECT count(*) FROM vault.list_secrets('{mark}')")).is_ok()
    });
    let sql = format!("SELECT count(*) FROM vault.audit_log WHERE subject = '{mark}'");
    wait_for("the relay to take the last record", PATIENCE, || root.ask(&sql) == "1");
    let ended = "SELECT count(*) FROM vault.audit_pending WHERE pg_xact_status(xid::xid8) <> 'in progress'";
    wait_for("the relay to judge what has ended", PATIENCE, || root.ask(ended) == "0");
}

/// Stops the relay in its sleep: in the middle of its work it may hold what every session needs. Its pid.
#[track_caller]
pub fn stop_relay(cluster: &Cluster) -> i32 {
    let mut root = cluster.superuser();
    let mut asleep = || -> Option<i32> {
        let sql = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'hyperion_vault relay'
                      AND state = 'idle' AND wait_event_type = 'Extension'";
        root.ask(sql).parse().ok()
    };
    let mut stopped = None;
    wait_for("the relay to be stopped in its sleep", PATIENCE, || {
        let Some(pid) = asleep() else { return false };
        cluster.freeze(pid);
        stopped = asleep();
        if stopped.is_none() {
            cluster.kill(pid, SIGCONT);
        }
        stopped.is_some()
    });
    stopped.expect("it was waited for")
}

/// Rows of the log, without marks, in the order of their ids.
#[track_caller]
pub fn log(cluster: &Cluster, columns: &str, condition: &str) -> String {
    settle(cluster);
    cluster.superuser().ask(&format!(
        "SELECT {columns} FROM {LAST_WORDS}
          WHERE coalesce(subject, '') NOT LIKE 'mark/%' AND function <> 'status' AND {condition} ORDER BY id"
    ))
}

/// What `vault.status()` says of the audit log.
pub fn status(root: &mut Client) -> Value {
    crate::watch::status(root)["audit"].take()
}

/// Makes the directory that the vault's spool is to lie in, and waits until it is used: secret `a` has this value then.
#[track_caller]
pub fn begin_in(base: &Path, cluster: &Cluster, value: &str) {
    cluster.make_server_directory(base);
    let mut ops = cluster.connect("ops", cluster.database());
    wait_for("the directory to be used", PATIENCE, || {
        ops.try_ask(&format!("SELECT vault.put_secret('a', '{value}')")).is_ok()
    });
    settle(cluster);
}

/// The segments of all spools below a directory, in order.
pub fn segments(base: &Path) -> Vec<PathBuf> {
    let mut found = files(base);
    found.retain(|path| path.extension().is_some_and(|end| end == "log"));
    found
}

/// Where the staging buffer of the only spool is, or would be.
#[track_caller]
pub fn staging(base: &Path) -> PathBuf {
    let segments = segments(base);
    assert_eq!(segments.len(), 1, "{segments:?}");
    segments[0].with_file_name("staging")
}

fn files(base: &Path) -> Vec<PathBuf> {
    let entries = |path: &Path| -> Vec<PathBuf> {
        match std::fs::read_dir(path) {
            Ok(entries) => entries.map(|entry| entry.unwrap().path()).collect(),
            // The relay removes spools meanwhile.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => panic!("{}: {error}", path.display()),
        }
    };
    let spools = entries(base).into_iter().filter(|path| path.is_dir());
    let mut found: Vec<_> = spools.flat_map(|spool| entries(&spool)).collect();
    found.sort();
    found
}
