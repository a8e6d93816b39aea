//! The tables as others may treat them: code of theirs on them, columns and indexes of their own, hardened catalogs, old
//! snapshots, maintenance commands beside. Runs in the test process.
//!
//! The trap: an attack that is none. Each test that expects nothing to happen has a control in which it does.

mod beside;
mod columns;
mod cost;
mod creators;
mod hardened;
mod hostile_kinds;
mod levels;
mod schema;
mod triggers;

use crate::audit::{every_function::CALLS, settle};
use hyperion_vault_tests::{Ask, Client, Cluster, ClusterBuilder, PATIENCE, Vault, wait_for};

/// Every table of the vault.
pub const TABLES: [&str; 12] = [
    "secrets",
    "secret_versions",
    "secret_dates",
    "target_roles",
    "vault_meta",
    "roles",
    "role_permissions",
    "role_bindings",
    "tokens",
    "audit_log",
    "audit_spools",
    "audit_pending",
];

/// A cluster whose maintenance worker looks every second.
fn builder() -> ClusterBuilder {
    Cluster::builder().conf("hyperion_vault.scan_interval_secs", "1").conf("log_min_messages", "warning")
}

/// Makes a role that may do everything that can be granted, and nothing else.
fn make_manager(root: &mut Client) {
    root.ask("CREATE ROLE manager LOGIN IN ROLE vault_reader, vault_admin");
}

/// A call of each function of the API, by name, in an order in which they work; of those that this session may call.
fn calls(client: &mut Client) -> Vec<(&'static str, &'static str)> {
    let superuser = client.ask("SHOW is_superuser") == "on";
    CALLS
        .iter()
        .map(|(name, call, _)| (*name, *call))
        .filter(|(name, _)| superuser || *name != "rebind_roles")
        .collect()
}

/// Calls every function of the API once, and removes what it made, so that it can be called again.
#[track_caller]
fn call_everything(client: &mut Client) {
    for (function, call) in calls(client) {
        client.try_ask(call).unwrap_or_else(|error| panic!("{function}: {error:?}"));
    }
    client.ask("SELECT vault.delete_secret('a/b'), vault.delete_secret('a/y')");
}

/// The same under savepoints that are taken back, and at the highest isolation level.
#[track_caller]
fn call_everything_in_a_transaction(client: &mut Client) {
    let calls = calls(client);
    client.ask("BEGIN ISOLATION LEVEL SERIALIZABLE");
    for (function, call) in calls.iter().filter(|(_, call)| !call.contains("BEGIN")) {
        client.ask("SAVEPOINT s");
        client.try_ask(call).unwrap_or_else(|error| panic!("{function}: {error:?}"));
        client.ask("ROLLBACK TO s");
        client.try_ask(call).unwrap_or_else(|error| panic!("{function}: {error:?}"));
    }
    client.ask("ROLLBACK");
}

/// Secrets that keep the workers busy: one that is always due and has versions that run out, one that ends, one that is
/// deleted with a window.
#[track_caller]
fn give_work(client: &mut Client, name: &str) {
    client.ask(&format!(
        "SELECT vault.create_secret('{name}/auto', kind => 'automatic', rotation_interval => '1 second',
             grace_period => '1 second', keep_versions => 1);
         SELECT vault.create_secret('{name}/ends', 'v', expires_in => '1 second');
         SELECT vault.create_secret('{name}/buried', 'v'); SELECT vault.delete_secret('{name}/buried', '1 second')"
    ));
}

/// Waits until the workers have done everything that [`give_work`] gave them, and the log tells of it.
#[track_caller]
fn until_worked(vault: &Vault<'_>, name: &str) {
    let mut root = vault.root();
    let version = format!("SELECT version FROM vault.list_secrets('{name}/auto')");
    let begun: i32 = root.ask(&version).parse().expect("a version");
    wait_for("scheduled rotations", PATIENCE, || {
        root.ask(&version).parse::<i32>().is_ok_and(|now| now >= begun + 3)
    });
    let rows = format!("SELECT count(*) FROM vault.secrets WHERE name IN ('{name}/ends', '{name}/buried')");
    wait_for("what has run out to be removed", PATIENCE, || root.ask(&rows) == "0");
    settle(vault.cluster);
    let told = format!(
        "SELECT count(DISTINCT action || version::text) > 3 FROM vault.audit_log WHERE subject = '{name}/auto' AND function = 'maintenance'"
    );
    wait_for("the log to tell of rotations", PATIENCE, || root.ask(&told) == "t");
}

/// SQLSTATE of a statement, "00000" if it succeeds.
#[track_caller]
fn state(client: &mut Client, sql: &str) -> String {
    match client.simple_query(sql) {
        Ok(_) => "00000".into(),
        Err(error) => error.code().unwrap_or_else(|| panic!("{sql}: {error:?}")).code().into(),
    }
}
