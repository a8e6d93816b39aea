//! The vault streamed to a standby, and the standby promoted. Runs in the test process.

use super::{fill, learn, reader};
use hyperion_vault_tests::{Ask, Cluster, StopMode, sqlstate};

#[test]
fn standby() {
    let primary = Cluster::builder().allowed_ips("local,127.0.0.1").start();
    let vault = primary.vault();
    let mut ops = vault.ops();
    fill(&mut ops);
    let standby = primary.standby();
    standby.wait_replayed(&primary);

    // Reads on the standby: its own worker, its own key file, the same answers.
    let mut here = reader(&standby);
    assert!(learn(&mut here) == learn(&mut reader(&primary)));
    let status = "SELECT s -> 'in_recovery', s -> 'secrets', s -> 'workers' -> 0 -> 'running', s -> 'kms' ->> 'calls' <> '0' FROM vault.status() s";
    assert_eq!(here.ask(status), "true|6|true|t");
    assert_eq!(standby.pids("hyperion_vault kms").len(), 1);
    assert_ne!(standby.pids("hyperion_vault kms"), primary.pids("hyperion_vault kms"));

    // Writes are refused with the way out, before the key service is asked.
    let mut admin = standby.connect("ops", "postgres");
    let calls = "SELECT vault.status() -> 'kms' ->> 'calls'";
    let before = admin.ask(calls);
    for call in [
        "create_secret('x', 'v')",
        "put_secret('r', 'v')",
        "update_secret('r', description => 'd')",
        "rotate_secret('auto')",
        "delete_secret('r')",
    ] {
        sqlstate!(admin.try_ask(&format!("SELECT vault.{call}")), "25006", message: "cannot be changed on a standby", hint: "primary");
    }
    assert_eq!(admin.ask(calls), before);

    // What is replayed binds at once, in a snapshot that is older too; a new value is seen, a deleted one is gone.
    here.ask("BEGIN ISOLATION LEVEL REPEATABLE READ");
    assert_eq!(here.ask("SELECT vault.read_secret('empty'), length(vault.read_secret('r'))"), "|1048576");
    ops.ask("SELECT vault.delete_secret('r'); SELECT vault.put_secret('empty', 'no more')");
    standby.wait_replayed(&primary);
    assert_eq!(here.ask("SELECT vault.read_secret('empty')"), "no more");
    for call in ["read_secret('r')", "get_secret('r')", "verify('r', 'v')", "list_versions('r')"] {
        here.ask("SAVEPOINT s");
        sqlstate!(here.try_ask(&format!("SELECT vault.{call}")), "P0002", message: "\"r\" does not exist");
        here.ask("ROLLBACK TO s");
    }
    assert_eq!(here.ask("SELECT count(*) FROM vault.list_secrets('r')"), "0");
    here.ask("COMMIT");
    // A secret's own list, a shorter grace, another key: all of them follow.
    ops.ask("SELECT vault.update_secret('empty', allowed_ips => '{192.0.2.1}')");
    vault.root().ask("UPDATE vault.secret_versions SET expires_at = clock_timestamp()");
    standby.wait_replayed(&primary);
    sqlstate!(here.try_ask("SELECT vault.read_secret('empty')"), "42501", message: "address is not allowed");
    sqlstate!(here.try_ask("SELECT vault.read_secret('db/password', 1)"), "P0002");

    // Its worker comes back after an orderly death, without the server noticing.
    let mut witness = standby.witness();
    standby.kill_and_wait(standby.pid_of("hyperion_vault kms"), hyperion_vault_tests::SIGTERM);
    ops.ask("SELECT vault.create_secret('cold', 'fetched by the new worker')");
    standby.wait_replayed(&primary);
    assert_eq!(here.ask("SELECT vault.read_secret('cold')"), "fetched by the new worker");
    witness.assert_survived();

    // The primary goes; the standby takes over and goes on, in the sessions it has.
    drop(ops);
    primary.stop(StopMode::Immediate);
    assert_eq!(here.ask("SELECT vault.read_secret('cold')"), "fetched by the new worker");
    standby.superuser().ask("SELECT pg_promote()");
    assert_eq!(admin.ask("SELECT version FROM vault.put_secret('cold', 'written after')"), "2");
    assert_eq!(admin.ask("SELECT version FROM vault.rotate_secret('auto')"), "3");
    assert_eq!(here.ask("SELECT vault.read_secret('cold'), length(vault.read_secret('auto')), vault.status() -> 'in_recovery'"), "written after|40|false");
    witness.assert_survived();
    standby.restart(StopMode::Immediate);
    assert_eq!(reader(&standby).ask("SELECT vault.read_secret('cold')"), "written after");
}
