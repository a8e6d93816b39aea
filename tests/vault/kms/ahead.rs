//! Keys that a session asks for ahead, while it makes one secret after another. Runs in the test process.
//!
//! The traps: a reserve that is never used, so that nothing is tested; and one that is used after the master key or the vault
//! has been replaced, whose secrets nobody could ever open.

use super::value;
use crate::watch::{calls, expect_idle_queue, status};
use hyperion_vault_tests::kms::{FakeKms, Op};
use hyperion_vault_tests::threads::clients_at_once;
use hyperion_vault_tests::{Ask, Client, Cluster, PATIENCE, sqlstate, wait_for};
use std::time::Duration;

/// As hyperion_vault_core::reserve has it.
const MOST_AHEAD: u64 = 15;

/// No key is ever found in the cache.
fn cluster() -> Cluster {
    Cluster::builder().conf("hyperion_vault.dek_cache_ttl_secs", "0").start()
}

/// Quickly, each in a transaction of its own.
fn create(client: &mut Client, names: impl IntoIterator<Item = String>) {
    for name in names {
        client.execute("SELECT vault.create_secret($1, $2)", &[&name, &value(&name)]).expect("a new secret");
    }
}

#[track_caller]
fn reads(client: &mut Client, name: &str) {
    let read: String = client
        .query_one("SELECT vault.read_secret($1)", &[&name])
        .unwrap_or_else(|error| panic!("{name}: {error:?}"))
        .get(0);
    assert_eq!(read, value(name));
}

/// Makes secrets until keys are kept ahead.
fn fill(client: &mut Client, prefix: &str) {
    create(client, (0..8).map(|i| format!("{prefix}/{i}")));
}

#[test]
fn a_row_of_secrets_takes_few_hand_overs_and_one_takes_one_key() {
    const N: u64 = 200;
    let cluster = cluster();
    let vault = cluster.vault();
    let (mut ops, mut app, mut root) = (vault.ops(), vault.app(), vault.root());
    let before = calls(&mut root);
    create(&mut ops, ["alone".to_owned()]);
    assert_eq!(calls(&mut root), before + 1);
    std::thread::sleep(Duration::from_millis(1100));
    create(&mut ops, ["alone, later".to_owned()]);
    assert_eq!(calls(&mut root), before + 2, "one that is alone asks for its own key");

    let before = calls(&mut root);
    create(&mut ops, (0..N).map(|i| format!("row/{i}")));
    let asked = calls(&mut root) - before;
    assert!((N..=N + MOST_AHEAD).contains(&asked), "{asked} keys for {N} secrets");
    for i in 0..N {
        reads(&mut app, &format!("row/{i}"));
    }
    // No id and no key twice.
    let distinct = "SELECT count(DISTINCT id), count(DISTINCT version_id), count(DISTINCT wrapped_dek) FROM vault.secrets WHERE name LIKE 'row/%'";
    assert_eq!(root.ask(distinct), format!("{N}|{N}|{N}"));

    // In one statement, in a transaction that is rolled back in part, and by a session that makes something else between.
    ops.ask(
        "SELECT count(vault.create_secret('many/' || i, 'value of many/' || i)) FROM generate_series(1, 100) i",
    );
    ops.ask("BEGIN; SELECT vault.create_secret('gone', 'v'); SAVEPOINT s; SELECT vault.create_secret('gone too', 'v')");
    ops.ask("ROLLBACK TO s; SELECT vault.create_secret('stays', 'v'); SELECT vault.put_secret('stays', 'w'); COMMIT");
    assert_eq!(
        app.ask("SELECT vault.read_secret('stays'), vault.read_secret('gone'), vault.read_secret('many/77')"),
        "w|v|value of many/77"
    );
    sqlstate!(app.try_ask("SELECT vault.read_secret('gone too')"), "P0002");
    expect_idle_queue(&mut root);
}

/// Each waits for a place in the queue, and none while it has some.
#[test]
fn a_crowd_of_creators_fits_into_a_small_queue() {
    const CREATORS: usize = 40;
    for slots in ["4", "16"] {
        let cluster = Cluster::builder()
            .conf("hyperion_vault.kms_queue_slots", slots)
            .conf("hyperion_vault.kms_timeout_ms", "20000")
            .max_connections(80)
            .start();
        cluster.vault();
        let made = clients_at_once(&cluster, "ops", CREATORS, 4 * PATIENCE, |i, mut client| {
            let begun = std::time::Instant::now();
            create(&mut client, (0..60).map(|n| format!("c/{i}/{n}")));
            begun.elapsed()
        });
        let longest = made.iter().max().copied().unwrap_or_default();
        assert!(
            longest < Duration::from_secs(20),
            "with {slots} slots somebody waited for a deadline: {longest:?}"
        );
        let mut root = cluster.superuser();
        expect_idle_queue(&mut root);
        assert_eq!(root.ask("SELECT count(*) FROM vault.secrets"), (CREATORS * 60).to_string());
    }
}

/// What a session has at hand changes nothing of what others are to it.
#[test]
fn a_taken_name_is_told_at_once_whoever_is_at_work_on_it() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let (mut ops, mut busy) = (vault.ops(), vault.ops());
    ops.ask("SELECT vault.create_secret('w', 'v')");
    busy.ask("BEGIN; SELECT vault.update_secret('w', description => 'd')");
    fill(&mut ops, "n");
    ops.ask("SET statement_timeout = '10s'");
    sqlstate!(ops.try_ask("SELECT vault.create_secret('w', 'v')"), "23505", message: "already exists");
    // A name that is about to be taken is waited for.
    busy.ask("ROLLBACK; BEGIN; SELECT vault.create_secret('x', 'v')");
    fill(&mut ops, "m");
    ops.ask("SET statement_timeout = '300ms'");
    sqlstate!(ops.try_ask("SELECT vault.create_secret('x', 'v')"), "57014");
    busy.ask("COMMIT");
    sqlstate!(ops.try_ask("SELECT vault.create_secret('x', 'v')"), "23505", message: "already exists");
}

/// Whoever makes secrets otherwise uses what is there, and asks for no more.
#[test]
fn no_more_is_asked_for_than_is_used() {
    const N: u64 = 48;
    let cluster = cluster();
    let vault = cluster.vault();
    let (mut ops, mut root) = (vault.ops(), vault.root());
    ops.ask("SELECT vault.create_secret('taken', 'v')");
    let target = "generator => '{}', target => '{\"type\":\"postgres_role\",\"role\":\"served\"}'";
    root.ask("CREATE ROLE served LOGIN; CREATE EXTENSION pgstattuple");
    for (what, sql) in [
        ("alternating with taken names", "SELECT vault.create_secret('alternating/N', 'v')"),
        ("bytes", "SELECT vault.create_secret_bytes('bytes/N', 'v')"),
        ("put", "SELECT vault.put_secret('put/N', 'v')"),
        ("for a target", &format!("SELECT vault.create_secret('target/N', {target})")),
    ] {
        let before = calls(&mut root);
        let who = if what == "for a target" { &mut root } else { &mut ops };
        for i in 0..N {
            if what == "for a target" && i > 0 {
                who.ask(&format!("SELECT vault.delete_secret('target/{}')", i - 1));
            }
            who.ask(&sql.replace("/N", &format!("/{i}")));
            if what.starts_with("alternating") {
                sqlstate!(who.try_ask("SELECT vault.create_secret('taken', 'v')"), "23505");
            }
        }
        let asked = calls(&mut root) - before;
        assert!((N - MOST_AHEAD..=N + MOST_AHEAD).contains(&asked), "{what}: {asked} keys for {N} secrets");
        if what.starts_with("alternating") {
            let dead: u64 = root
                .ask("SELECT dead_tuple_count FROM pgstattuple('vault.secrets')")
                .parse()
                .expect("a number");
            assert!(dead <= N / 8, "{dead} dead rows");
        }
    }
}

#[test]
fn names_that_are_taken_are_told_and_cost_no_key() {
    let cluster = cluster();
    let vault = cluster.vault();
    let (mut ops, mut root) = (vault.ops(), vault.root());
    fill(&mut ops, "n");
    ops.ask("SELECT vault.create_secret('buried', 'v'), vault.delete_secret('buried', '1 day')");
    for _ in 0..3 {
        sqlstate!(ops.try_ask("SELECT vault.create_secret('n/1', 'v')"), "23505", message: "already exists", hint: "put_secret");
        sqlstate!(ops.try_ask("SELECT vault.create_secret('buried', 'v')"), "23505", message: "can still be restored");
        // The session goes on, in a transaction too.
        ops.ask("BEGIN; SAVEPOINT s");
        sqlstate!(ops.try_ask("SELECT vault.create_secret('n/2', 'v')"), "23505", message: "already exists");
        ops.ask("ROLLBACK TO s; COMMIT");
    }
    let before = calls(&mut root);
    for _ in 0..20 {
        sqlstate!(ops.try_ask("SELECT vault.create_secret('n/1', 'v')"), "23505");
    }
    assert_eq!(calls(&mut root), before);
    // A name that has run out is free.
    ops.ask("SELECT vault.create_secret('short', 'v', expires_in => '1 second'), pg_sleep(1.2)");
    fill(&mut ops, "m");
    create(&mut ops, ["short".to_owned()]);
    reads(&mut vault.app(), "short");
}

#[test]
fn no_key_outlives_the_master_key_or_the_vault() {
    let cluster = cluster();
    let vault = cluster.vault();
    let (mut ops, mut app, mut root) = (vault.ops(), vault.app(), vault.root());
    let key_of = |root: &mut Client, name: &str| {
        root.ask(&format!("SELECT kms_key_id FROM vault.secrets WHERE name = '{name}'"))
    };
    fill(&mut ops, "old");
    let old = key_of(&mut root, "old/7");

    let other: Vec<u8> =
        std::fs::read(cluster.key_path()).expect("the key").iter().map(|byte| !byte).collect();
    cluster.write_key_file(&other, 0o600);
    cluster.reload();
    wait_for("the other master key", PATIENCE, || {
        let read = root.try_ask("SELECT vault.read_secret('old/1')");
        read.is_err_and(|error| error.code().is_some_and(|code| code.code() == "38000"))
    });
    create(&mut ops, ["new".to_owned()]);
    assert_ne!(key_of(&mut root, "new"), old, "wrapped under a master key that is gone");
    reads(&mut app, "new");

    // Keys of a session that stands still while the key changes twice are of neither.
    fill(&mut ops, "still");
    cluster.write_key_file(&[], 0o600);
    cluster.reload();
    wait_for("the provider to be unusable", PATIENCE, || status(&mut root)["kms"]["usable"] == false);
    sqlstate!(ops.try_ask("SELECT vault.create_secret('while it is unusable', 'v')"), "38000");
    let third: Vec<u8> = other.iter().map(|byte| byte ^ 0x55).collect();
    cluster.write_key_file(&third, 0o600);
    cluster.reload();
    wait_for("the provider to be usable", PATIENCE, || status(&mut root)["kms"]["usable"] == true);
    create(&mut ops, ["of the third".to_owned()]);
    reads(&mut app, "of the third");

    // Another vault in the place of this one.
    fill(&mut ops, "once more");
    root.ask("DELETE FROM vault.secret_versions; DELETE FROM vault.secrets; DELETE FROM vault.vault_meta");
    create(&mut vault.ops(), ["first of another vault".to_owned()]);
    create(&mut ops, ["second".to_owned()]);
    reads(&mut app, "first of another vault");
    reads(&mut app, "second");

    // Another worker, which reads the key file as it is now.
    fill(&mut ops, "and again");
    cluster.write_key_file(&other, 0o600);
    let worker = cluster.pid_of("hyperion_vault kms");
    cluster.kill(worker, hyperion_vault_tests::SIGTERM);
    wait_for("the next worker", PATIENCE, || {
        cluster.pids("hyperion_vault kms").iter().any(|pid| *pid != worker)
    });
    create(&mut ops, ["of the next worker".to_owned()]);
    reads(&mut app, "of the next worker");
}

/// Each call to AWS is paid for, and may take long.
#[test]
fn aws_is_asked_for_what_is_needed() {
    let kms = FakeKms::start();
    let cluster = Cluster::builder().aws(&kms).start();
    let vault = cluster.vault();
    create(&mut vault.ops(), (0..30).map(|i| format!("n/{i}")));
    assert_eq!(kms.calls(Op::GenerateDataKey), 30);
}
