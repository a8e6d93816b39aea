//! The relay: in nobody's way, at work again by itself, and told of in `vault.status()`.

use super::{log, settle, status, stop_relay};
use hyperion_vault_tests::threads::background;
use hyperion_vault_tests::{Ask, Client, Cluster, PATIENCE, SIGCONT, SIGTERM, StopMode, wait_for};
use std::time::{Duration, Instant};

#[test]
fn it_comes_back_after_each_death_and_after_drop_and_create_extension() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    vault.ops().ask("SELECT vault.create_secret('a', 'v')");
    let mut witness = cluster.witness();
    for _ in 0..3 {
        settle(&cluster);
        cluster.kill_and_wait(cluster.pid_of("hyperion_vault relay"), SIGTERM);
        vault.app().ask("SELECT vault.read_secret('a')");
    }
    settle(&cluster);
    witness.assert_survived();
    assert_eq!(log(&cluster, "id", "session_role = 'app'").lines().count(), 3);
    // Without the extension, records wait; with it again, they are taken.
    let mut root = vault.root();
    root.ask("DROP EXTENSION hyperion_vault");
    root.ask("CREATE EXTENSION hyperion_vault");
    settle(&cluster);
    root.ask("SELECT vault.create_secret('b', 'v')");
    assert_eq!(log(&cluster, "function, outcome", "subject = 'b'"), "create_secret|ok");
}

#[test]
fn nothing_waits_for_it() {
    let cluster = Cluster::builder().database("vaulted").start();
    let vault = cluster.vault();
    vault.ops().ask("SELECT vault.create_secret('a', 'v')");
    settle(&cluster);
    // Each time it has much to take, and is in the middle of it when it is told to go.
    let busy = || {
        let relay = stop_relay(&cluster);
        cluster
            .connect("app", "vaulted")
            .ask("DO $$ BEGIN FOR i IN 1..60000 LOOP PERFORM vault.read_secret('a'); END LOOP; END $$");
        let lag = status(&mut cluster.connect("postgres", "vaulted"))["lag_records"].as_u64().unwrap();
        assert!(lag > 50_000, "only {lag} records wait");
        cluster.kill(relay, SIGCONT);
    };
    let mut other = cluster.connect("postgres", "postgres");
    let mut at_once = |sql: &str| {
        let start = Instant::now();
        other.ask(sql);
        assert!(start.elapsed() < Duration::from_secs(10), "{sql}: {:?}", start.elapsed());
    };
    // An auditor with a long statement keeps nobody from anything either.
    vault.root().ask("SELECT count(*) FROM vault.audit_log");
    busy();
    at_once("ALTER DATABASE vaulted RENAME TO elsewhere");
    at_once("ALTER DATABASE elsewhere RENAME TO vaulted");
    wait_for("the database to be found again", PATIENCE, || {
        cluster
            .try_connect("app", "vaulted")
            .is_ok_and(|mut app| app.try_ask("SELECT vault.read_secret('a')").is_ok())
    });
    busy();
    at_once("CREATE DATABASE copy TEMPLATE vaulted");
    settle(&cluster);
    assert_eq!(log(&cluster, "id", "session_role = 'app' AND outcome = 'ok'").lines().count(), 120_001);
    busy();
    at_once("DROP DATABASE vaulted");
    let start = Instant::now();
    cluster.stop(StopMode::Fast);
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn status_tells_how_far_it_is_and_when_the_spool_will_be_full() {
    let cluster = Cluster::builder().conf("hyperion_vault.audit_spool_max_mb", "4").start();
    let vault = cluster.vault();
    let (mut root, mut app) = (vault.root(), vault.app());
    root.ask("SELECT vault.create_secret('a', 'v')");
    settle(&cluster);
    let calm = status(&mut root);
    assert!(calm["lag_records"].as_u64().unwrap() < 5 && calm["open"] == true && calm["torn"] == 0, "{calm}");
    assert_eq!(calm["spool_max_bytes"], 4 << 20);
    let relay = stop_relay(&cluster);
    for _ in 0..2000 {
        app.ask("SELECT vault.read_secret('a')");
    }
    std::thread::sleep(Duration::from_millis(300));
    let behind = status(&mut root);
    assert!(
        behind["lag_records"].as_u64().unwrap() >= 2000 && behind["lag_seconds"].as_f64().unwrap() >= 0.3,
        "{behind}"
    );
    assert!(
        behind["spool_bytes"].as_u64().unwrap() > calm["spool_bytes"].as_u64().unwrap() + 150_000,
        "{behind}"
    );
    // When it will be full is known with the relay stopped, as that is when it matters.
    let bytes = |root: &mut Client| status(root)["spool_bytes"].as_u64().unwrap();
    let (begun, before) = (Instant::now(), bytes(&mut root));
    while begun.elapsed() < Duration::from_secs(8) {
        app.ask("SELECT vault.read_secret('a')");
        std::thread::sleep(Duration::from_millis(1));
        bytes(&mut root);
    }
    let now = status(&mut root);
    let (size, limit) = (now["spool_bytes"].as_u64().unwrap(), now["spool_max_bytes"].as_u64().unwrap());
    let rate = (size - before) as f64 / begun.elapsed().as_secs_f64();
    let (expected, told) = ((limit - size) as f64 / rate, now["seconds_to_full"].as_u64().unwrap() as f64);
    assert!((expected / 3.0..expected * 4.0).contains(&told), "{told} s, expected {expected:.0}: {now}");
    cluster.kill(relay, SIGCONT);
    wait_for("the relay to catch up", PATIENCE, || status(&mut root)["lag_records"].as_u64().unwrap() < 5);
    let names: Vec<String> = super::super::watch::status(&mut root)["workers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|worker| worker["name"].as_str().unwrap().to_owned())
        .collect();
    assert!(names.iter().any(|name| name == "hyperion_vault relay"), "{names:?}");
}

#[test]
fn a_name_for_the_node_is_in_each_record() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut root = vault.root();
    root.ask("SELECT vault.create_secret('a', 'v')");
    root.ask("ALTER SYSTEM SET hyperion_vault.node_name = 'db-7.example'");
    root.ask("SELECT pg_reload_conf()");
    wait_for("the new name", PATIENCE, || root.ask("SHOW hyperion_vault.node_name") == "db-7.example");
    root.ask("SELECT vault.read_secret('a')");
    let nodes = log(
        &cluster,
        "node, timeline, system_id = (SELECT system_identifier FROM pg_control_system())",
        "subject = 'a'",
    );
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(nodes, format!("{}|1|t\ndb-7.example|1|t", host.trim()));
    hyperion_vault_tests::sqlstate!(
        root.try_ask("ALTER SYSTEM SET hyperion_vault.node_name = E'a\\nb'"),
        "22023"
    );
}

#[test]
fn what_workers_do_by_themselves_is_recorded_too() {
    let cluster = Cluster::builder().conf("hyperion_vault.scan_interval_secs", "1").start();
    let vault = cluster.vault();
    vault.ops().ask(
        "SELECT vault.create_secret('turns', kind => 'automatic', rotation_interval => '1 second');
         SELECT vault.create_secret('ends', 'v', expires_in => '1 second')",
    );
    let mut root = vault.root();
    // Versions go too, once there are many.
    let sql = "SELECT DISTINCT action, subject, CASE action WHEN 'delete' THEN version END, session_role, client, outcome FROM vault.audit_log
                WHERE function = 'maintenance' AND outcome = 'ok' AND action <> 'purge' ORDER BY 1";
    wait_for("both to be done", PATIENCE, || root.ask(sql).lines().count() == 2);
    assert_eq!(
        root.ask(sql),
        "delete|ends|1|postgres|internal:hyperion_vault maintenance|ok\n\
         rotate|turns|∅|postgres|internal:hyperion_vault maintenance|ok"
    );
}

/// Names are as they were, whatever encoding the database's sessions are given.
#[test]
fn an_encoding_for_the_databases_clients_is_not_its() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    vault.root().ask("ALTER DATABASE postgres SET client_encoding = 'LATIN1'; ALTER ROLE postgres SET client_encoding = 'LATIN1'");
    cluster.kill_and_wait(cluster.pid_of("hyperion_vault relay"), SIGTERM);
    vault.ops().ask("SELECT vault.create_secret('schlüssel/日本', 'v')");
    assert_eq!(log(&cluster, "subject", "function = 'create_secret'"), "schlüssel/日本");
}

/// As fast as the relay can follow, so that segments are closed while it looks at their ends.
#[test]
fn nothing_is_lost_where_one_segment_ends_and_the_next_begins() {
    const SESSIONS: usize = 3;
    const ROUNDS: usize = 150;
    const READS: usize = 100;
    // Segments of 768 kB, and room for all there will be: it is no matter of who is faster.
    let cluster = Cluster::builder().conf("hyperion_vault.audit_spool_max_mb", "6").start();
    let vault = cluster.vault();
    vault.ops().ask("SELECT vault.create_secret('a', 'v')");
    let reads =
        format!("DO $$ BEGIN FOR i IN 1..{READS} LOOP PERFORM vault.read_secret('a'); END LOOP; END $$");
    let readers: Vec<_> = (0..SESSIONS)
        .map(|_| {
            let (mut app, reads) = (vault.app(), reads.clone());
            background(move || {
                for _ in 0..ROUNDS {
                    app.ask(&reads);
                    // Lets the relay catch up with the end of what there is.
                    std::thread::sleep(Duration::from_millis(5));
                }
            })
        })
        .collect();
    for reader in readers {
        reader.finish(Duration::from_secs(120));
    }
    let count = log(&cluster, "id", "function = 'read_secret'").lines().count();
    assert_eq!(count, SESSIONS * ROUNDS * READS);
}
