//! What runs out: grace periods, versions beyond those kept, secrets with an end, recovery windows. Rows and keys go by
//! themselves; readers never waited for that.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{another_look, builder, recorded};
use crate::audit::log;
use hyperion_vault_tests::{Ask, Client, Cluster, PATIENCE, SIGCONT, sqlstate, wait_for};

fn cached(root: &mut Client) -> String {
    root.ask("SELECT vault.status() -> 'cache' -> 'entries'")
}

#[test]
fn what_has_run_out_is_removed_with_its_keys() {
    let cluster = builder().start();
    let vault = cluster.vault();
    let (mut ops, mut root) = (vault.ops(), vault.root());
    // Four versions, three in grace; one is kept afterwards.
    ops.ask(
        "SELECT vault.create_secret('g', 'v1', grace_period => '1 hour', keep_versions => 1);
         SELECT vault.put_secret('g', 'v2'); SELECT vault.put_secret('g', 'v3'); SELECT vault.put_secret('g', 'v4');
         SELECT vault.create_secret('ends', 'v', expires_in => '1 hour');
         SELECT vault.put_secret('ends', 'w');
         SELECT vault.create_secret('buried', 'v'); SELECT vault.delete_secret('buried', '1 hour');
         SELECT vault.create_secret('restored', 'v'); SELECT vault.delete_secret('restored', '1 hour');
         SELECT vault.create_secret('extended', 'v', expires_in => '1 hour')",
    );
    assert_eq!(cached(&mut root), "7", "of g, ends, extended");
    ops.ask("SELECT vault.restore_secret('restored'); SELECT vault.update_secret('extended', expires_in => '2 hours')");
    root.ask(
        "UPDATE vault.secret_versions SET expires_at = clock_timestamp() WHERE expires_at IS NOT NULL;
         UPDATE vault.secrets SET expires_at = clock_timestamp() WHERE name = 'ends';
         UPDATE vault.secrets SET recover_until = clock_timestamp() WHERE name = 'buried'",
    );
    wait_for("the rows to go", PATIENCE, || {
        root.ask("SELECT string_agg(name, ' ' ORDER BY name) FROM vault.secrets") == "extended g restored"
            && root.ask("SELECT string_agg(version::text, ' ') FROM vault.secret_versions") == "3"
    });
    // Keys go right after the commit.
    wait_for("their keys to go, but the current ones of g and extended", PATIENCE, || {
        cached(&mut root) == "2"
    });
    for name in ["ends", "buried"] {
        let record = recorded(&mut root, name);
        assert!(
            record.starts_with("delete ")
                && record.ends_with(" postgres internal:hyperion_vault maintenance"),
            "{record}"
        );
    }
    // What it did to each version.
    let told = log(&cluster, "action, version, outcome, role", "subject = 'g' AND function = 'maintenance'");
    assert_eq!(
        told.lines().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>(),
        [
            "expire|1|ok|postgres",
            "expire|2|ok|postgres",
            "expire|3|ok|postgres",
            "purge|1|ok|postgres",
            "purge|2|ok|postgres"
        ]
    );
    assert_eq!(told.lines().count(), 5, "each once: {told}");
    let listed = "SELECT string_agg(version || ' ' || state, ', ') FROM vault.list_versions('g')";
    assert_eq!(ops.ask(listed), "4 current, 3 retained");
    // What is settled is not looked at again.
    assert_eq!(
        root.ask("SELECT count(*) FROM vault.secret_versions WHERE NOT settled AND expires_at IS NOT NULL"),
        "0"
    );
    assert_eq!(ops.ask("SELECT version FROM vault.roll_back_secret('g', 3)"), "5");
    assert_eq!(vault.app().ask("SELECT vault.read_secret('g')"), "v3");
}

/// Whoever makes a version that pushes another out is told to have done so, unless it did not happen.
#[test]
fn what_a_new_version_pushes_out_is_recorded() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut ops = vault.ops();
    ops.ask("SELECT vault.create_secret('s', 'v1', keep_versions => 1); SELECT vault.put_secret('s', 'v2'); SELECT vault.put_secret('s', 'v3')");
    ops.ask("BEGIN; SELECT vault.put_secret('s', 'v4'); ROLLBACK; SELECT vault.update_secret('s', keep_versions => 0)");
    let told = log(&cluster, "action, function, version, outcome, role", "function <> 'create_secret'");
    assert_eq!(
        told,
        "put|put_secret|2|ok|ops\npurge|put_secret|1|ok|ops\nput|put_secret|3|ok|ops\n\
         purge|put_secret|2|rolled_back|ops\nput|put_secret|4|rolled_back|ops\n\
         purge|update_secret|2|ok|ops\nupdate|update_secret|∅|ok|ops"
    );
}

/// A secret that has run out and is still there goes when its name is taken, and that is recorded.
#[test]
fn what_gives_up_its_name_is_recorded() {
    let cluster = Cluster::builder().conf("hyperion_vault.scan_interval_secs", "3600").start();
    let vault = cluster.vault();
    let (mut ops, mut root) = (vault.ops(), vault.root());
    crate::watch::first_look(&cluster);
    root.ask("GRANT vault_reader TO ops");
    ops.ask(
        "SELECT vault.create_secret('made', 'v', expires_in => '1 hour'); SELECT vault.put_secret('made', 'w');
         SELECT vault.create_secret('target', 'v', expires_in => '1 hour'); SELECT vault.create_secret('source', 'v')",
    );
    crate::audit::settle(&cluster);
    let last = root.ask("SELECT max(id) FROM vault.audit_log");
    root.ask("UPDATE vault.secrets SET expires_at = clock_timestamp() WHERE expires_at IS NOT NULL");
    ops.ask("SELECT vault.create_secret('made', 'x'); SELECT vault.rename_secret('source', 'target')");
    assert_eq!(
        log(
            &cluster,
            "action, function, subject, version, outcome",
            &format!("id > {last} AND function <> 'list_secrets'")
        ),
        "delete|create_secret|made|2|ok\ncreate|create_secret|made|1|ok\n\
         delete|rename_secret|target|1|ok\nrename|rename_secret|source|∅|ok"
    );
}

/// The clock decides for readers: in a long transaction, on a standby, with nobody there to remove anything.
#[test]
fn an_end_binds_at_once_without_the_worker() {
    let primary = Cluster::builder().conf("hyperion_vault.scan_interval_secs", "1").start();
    let vault = primary.vault();
    let mut ops = vault.ops();
    let standby = primary.standby();
    // The worker is kept away, between two turns.
    crate::watch::first_look(&primary);
    let pid = primary.pid_of("hyperion_vault maintenance");
    primary.freeze(pid);
    ops.ask("SELECT vault.create_secret('g', 'old', grace_period => '9 seconds'); SELECT vault.create_secret('e', 'v', expires_in => '10 seconds')");
    ops.ask("SELECT vault.put_secret('g', 'new')");
    standby.wait_replayed(&primary);
    let mut sessions = [vault.app(), standby.connect("app", "postgres")];
    for session in &mut sessions {
        session.ask("BEGIN ISOLATION LEVEL REPEATABLE READ");
        assert_eq!(session.ask("SELECT vault.read_secret('g', 1), vault.read_secret('e')"), "old|v");
    }
    std::thread::sleep(Duration::from_millis(10_100));
    for session in &mut sessions {
        session.ask("SAVEPOINT s");
        sqlstate!(session.try_ask("SELECT vault.read_secret('g', 1)"), "P0002");
        session.ask("ROLLBACK TO s");
        assert_eq!(session.ask("SELECT valid FROM vault.verify('g', 'old')"), "f");
        sqlstate!(session.try_ask("SELECT vault.read_secret('e')"), "P0002");
        session.ask("ROLLBACK");
    }
    let mut root = vault.root();
    assert_eq!(root.ask("SELECT count(*) FROM vault.secrets"), "2", "the rows still stand");
    primary.kill(pid, SIGCONT);
    wait_for("the rows to go", PATIENCE, || root.ask("SELECT count(*) FROM vault.secrets") == "1");
    another_look();
    assert_eq!(root.ask("SELECT settled FROM vault.secret_versions"), "t");
}

/// While no record can be written nothing is removed, and nobody tries all of it every second.
#[test]
fn what_cannot_be_recorded_is_tried_less_and_less_often() {
    let cluster = builder().conf("hyperion_vault.audit_spool_max_mb", "1").start();
    let vault = cluster.vault();
    let (mut ops, mut root) = (vault.ops(), vault.root());
    root.ask("GRANT vault_reader TO ops");
    ops.ask("SELECT count(vault.create_secret('s/' || i, 'v', expires_in => '1 hour')) FROM generate_series(1, 20) i");
    crate::audit::settle(&cluster);
    let relay = crate::audit::stop_relay(&cluster);
    let refused = ops.try_ask("DO $$ BEGIN LOOP PERFORM vault.read_secret('s/1'); END LOOP; END $$");
    sqlstate!(refused, "58030");
    let mark = cluster.log_mark();
    root.ask("UPDATE vault.secrets SET expires_at = clock_timestamp()");
    std::thread::sleep(Duration::from_secs(6));
    let log = cluster.log_since(mark);
    let told = log.lines().filter(|line| line.contains("hyperion_vault maintenance WARNING:")).count();
    assert!((1..=6).contains(&told), "{told} times\n{log}");
    assert_eq!(root.ask("SELECT count(*) FROM vault.secrets"), "20");
    cluster.kill(relay, SIGCONT);
    wait_for("them to go", PATIENCE, || root.ask("SELECT count(*) FROM vault.secrets") == "0");
}
