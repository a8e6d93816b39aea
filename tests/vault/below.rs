//! Findings of a review of the table layer: each test fails while its defect is there.

use hyperion_vault_tests::threads::background;
use hyperion_vault_tests::{Client, Cluster, PATIENCE, backend_pid, wait_for};
use std::time::Duration;

fn number(client: &mut Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).unwrap_or_else(|error| panic!("{sql}: {error:?}")).get(0)
}

fn blocked(observer: &mut Client, pid: i32) {
    wait_for("the session to wait for a lock", PATIENCE, || {
        let sql = "SELECT cardinality(pg_blocking_pids($1)) > 0";
        observer.query_one(sql, &[&pid]).unwrap().get(0)
    });
}

/// A name that the server stores compressed is found again under its lock.
#[test]
fn a_compressed_name_can_be_written_to() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut ops = vault.ops();
    ops.batch_execute("SELECT vault.create_secret(repeat('n', 500), repeat('v', 1800))").unwrap();
    let stored = number(&mut vault.root(), "SELECT pg_column_size(name)::int8 FROM vault.secrets");
    println!("the name takes {stored} bytes");
    assert!(stored < 200, "not compressed: {stored}");
    ops.batch_execute("SET statement_timeout = '10s'").unwrap();
    ops.batch_execute("SELECT vault.put_secret(repeat('n', 500), 'other')").unwrap();
}

/// A table that is rewritten between the look at rows and the write: only what was meant is deleted.
#[test]
fn a_rewrite_between_look_and_delete_harms_nobody() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let (mut root, mut ops) = (vault.root(), vault.ops());
    let make = "SELECT vault.create_secret('x1', '0', keep_versions => 5);
                SELECT vault.create_secret('x2', '0', keep_versions => 5);
                SELECT vault.create_secret('dead', '0', keep_versions => 5)";
    ops.batch_execute(make).unwrap();
    let names: Vec<String> = root
        .query("SELECT name FROM vault.secrets WHERE name LIKE 'x%' ORDER BY id", &[])
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    for name in ["dead".to_owned(), names[0].clone(), names[1].clone()] {
        for value in ["1", "2", "3"] {
            ops.query("SELECT vault.put_secret($1, $2)", &[&name, &value]).unwrap();
        }
    }
    ops.batch_execute("SELECT vault.delete_secret('dead')").unwrap();
    let left = |root: &mut Client, name: &str| -> i64 {
        let sql = "SELECT count(*) FROM vault.secret_versions v JOIN vault.secrets s ON s.id = v.secret_id WHERE name = $1";
        root.query_one(sql, &[&name]).unwrap().get(0)
    };
    assert_eq!((left(&mut root, &names[0]), left(&mut root, &names[1])), (3, 3));

    let mut other = vault.root();
    other.batch_execute("BEGIN; LOCK TABLE vault.secret_versions IN SHARE MODE").unwrap();
    let pid = backend_pid(&mut ops);
    let name = names[0].clone();
    let deleting = background(move || ops.query("SELECT vault.delete_secret($1)", &[&name]).map(drop));
    blocked(&mut root, pid);
    other.batch_execute("CLUSTER vault.secret_versions USING secret_versions_pkey; COMMIT").unwrap();
    println!("delete: {:?}", deleting.finish(PATIENCE));
    assert_eq!(left(&mut root, &names[1]), 3, "versions of a secret that nobody deleted");
    assert_eq!(number(&mut root, "SELECT count(*) FROM vault.secret_versions"), 3, "of the deleted one");
}

/// Dropping a role waits for a note of its token's last use, and succeeds then.
#[test]
fn a_role_is_dropped_beside_the_note_of_a_use() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let (mut root, mut ops) = (vault.root(), vault.ops());
    ops.batch_execute("SELECT vault.create_role('r'); SELECT vault.create_token('t', 'r')").unwrap();
    root.batch_execute("BEGIN; UPDATE vault.tokens SET last_used_at = now()").unwrap();
    let pid = backend_pid(&mut ops);
    let dropping = background(move || ops.batch_execute("SELECT vault.drop_role('r')"));
    blocked(&mut vault.root(), pid);
    root.batch_execute("COMMIT").unwrap();
    dropping.finish(PATIENCE).unwrap_or_else(|error| panic!("{error:?}"));
}

/// rebind_roles gives nobody a role that was taken away meanwhile.
#[test]
fn rebinding_revives_no_binding() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let (mut root, mut ops) = (vault.root(), vault.ops());
    ops.batch_execute("SELECT vault.create_role('r'); SELECT vault.bind_role('r', 'nobody_special')")
        .unwrap();
    root.batch_execute("UPDATE vault.role_bindings SET pg_role_oid = 1").unwrap();
    ops.batch_execute("BEGIN; SELECT vault.unbind_role('r', 'nobody_special')").unwrap();
    let mut superuser = vault.root();
    let pid = backend_pid(&mut superuser);
    let rebinding = background(move || superuser.batch_execute("SELECT * FROM vault.rebind_roles()"));
    blocked(&mut root, pid);
    ops.batch_execute("COMMIT").unwrap();
    println!("rebind: {:?}", rebinding.finish(PATIENCE));
    assert_eq!(number(&mut root, "SELECT count(*) FROM vault.role_bindings"), 0);
}

/// What was restored with `--disable-triggers` is rotated all the same.
#[test]
fn secrets_that_came_in_without_triggers_are_rotated() {
    let cluster = Cluster::builder().conf("hyperion_vault.scan_interval_secs", "1").start();
    let vault = cluster.vault();
    let mut root = vault.root();
    root.batch_execute(
        "SELECT vault.create_secret('a', kind => 'automatic', rotation_interval => '3 s');
         SELECT vault.create_secret('control', kind => 'automatic', rotation_interval => '3 s')",
    )
    .unwrap();
    root.batch_execute(
        "BEGIN; ALTER TABLE vault.secrets DISABLE TRIGGER ALL; ALTER TABLE vault.secret_dates DISABLE TRIGGER ALL;
         CREATE TEMP TABLE kept AS SELECT * FROM vault.secrets WHERE name = 'a'; DELETE FROM vault.secrets WHERE name = 'a';
         DELETE FROM vault.secret_dates WHERE secret_id = (SELECT id FROM kept);
         INSERT INTO vault.secrets SELECT * FROM kept; ALTER TABLE vault.secrets ENABLE TRIGGER ALL; ALTER TABLE vault.secret_dates ENABLE TRIGGER ALL; COMMIT",
    )
    .unwrap();
    let enabled: String = root
        .query_one("SELECT string_agg(tgname || '=' || tgenabled::text, ' ') FROM pg_trigger WHERE tgrelid = 'vault.secrets'::regclass", &[])
        .unwrap()
        .get(0);
    println!("triggers: {enabled}");
    for name in ["control", "a"] {
        wait_for(&format!("the rotation of {name}"), Duration::from_secs(20), || {
            number(&mut root, &format!("SELECT version::int8 FROM vault.secrets WHERE name = '{name}'")) > 1
        });
    }
}

/// Versions that are restored while the worker rotates their secret.
#[test]
fn a_restore_of_versions_stands_a_rotation_beside_it() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let (mut root, mut ops) = (vault.root(), vault.ops());
    ops.batch_execute(
        "SELECT vault.create_secret('a', '1', grace_period => '1 day'); SELECT vault.put_secret('a', '2')",
    )
    .unwrap();
    root.batch_execute(
        "CREATE TABLE kept AS SELECT * FROM vault.secret_versions; DELETE FROM vault.secret_versions;
         ALTER TABLE vault.secret_dates DISABLE TRIGGER ALL; DELETE FROM vault.secret_dates;
         ALTER TABLE vault.secret_dates ENABLE TRIGGER ALL",
    )
    .unwrap();
    // In place of the worker.
    ops.batch_execute("BEGIN; SELECT vault.put_secret('a', '3')").unwrap();
    let mut restoring = vault.root();
    let pid = backend_pid(&mut restoring);
    let restored =
        background(move || restoring.batch_execute("INSERT INTO vault.secret_versions SELECT * FROM kept"));
    blocked(&mut root, pid);
    ops.batch_execute("COMMIT").unwrap();
    restored.finish(PATIENCE).unwrap_or_else(|error| panic!("{error:?}"));
}

/// A subscriber of all tables.
#[test]
fn all_tables_can_be_replicated() {
    let source = Cluster::builder().conf("wal_level", "logical").start();
    let target = Cluster::builder().conf("wal_level", "logical").start();
    let (from, to) = (source.vault(), target.vault());
    let (mut root, mut replica) = (from.root(), to.root());
    root.batch_execute("CREATE PUBLICATION p FOR TABLES IN SCHEMA vault").unwrap();
    replica
        .batch_execute(&format!(
            "CREATE SUBSCRIPTION s CONNECTION 'host={} port={} dbname={} user=postgres' PUBLICATION p WITH (copy_data = false)",
            source.socket_dir().display(), source.port(), source.database()
        ))
        .unwrap();
    root.batch_execute("SELECT vault.create_secret('a', kind => 'automatic', rotation_interval => '1 day')")
        .unwrap();
    let arrived = hyperion_vault_tests::wait_until(Duration::from_secs(20), || {
        number(&mut replica, "SELECT count(*) FROM vault.secrets") == 1
    });
    let errors = number(&mut replica, "SELECT apply_error_count FROM pg_stat_subscription_stats");
    assert!(arrived && errors == 0, "arrived: {arrived}, errors: {errors}");
}
