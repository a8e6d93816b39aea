//! Every orderly end of the key-service worker, in the middle of requests and under load: the server goes on, those
//! who wait are served by the successor, nothing acknowledged is lost.
//!
//! Runs in the test process. `die=` in the injected faults ends the worker's own main thread; a panic of the provider
//! is another matter, since the worker must survive that.

use crate::load::{COLD_READERS, CREATORS, Load, read_value};
use crate::watch::{
    calls, expect_idle_queue, in_state, make_cold, private_kb, processing, starts, status, until_processing,
    until_running,
};
use hyperion_vault_tests::threads::{Background, background};
use hyperion_vault_tests::{
    Client, Cluster, PATIENCE, SIGTERM, StopMode, Vault, backend_pid, expect_disconnect, sqlstate, wait_for,
};
use std::time::{Duration, Instant};

const ROUNDS: usize = 20;
/// More than the readers of cold secrets get through.
const COLD: usize = 4000;

#[test]
fn twenty_orderly_deaths_of_the_worker_under_load() {
    let cluster = Cluster::builder().conf("hyperion_vault.kms_timeout_ms", "120000").start();
    let vault = cluster.vault();
    Load::prepare(&vault, COLD);
    let mut root = vault.root();
    let mut witness = cluster.witness();
    let load = Load::start(&cluster, COLD);

    let mut gap_reads = 0;
    for round in 0..ROUNDS {
        std::thread::sleep(Duration::from_millis(100)); // some load that is not interrupted
        // Everybody who needs the key service gets stuck in it, then the worker ends.
        cluster.set_faults("hang");
        until_stuck(&mut root, (CREATORS + COLD_READERS) as i64);
        let lived = u64::try_from(round).unwrap() + 1;
        assert_eq!(starts(&mut root), lived, "it ended by itself");
        let pid = cluster.pid_of("hyperion_vault kms");
        match ["SIGTERM", "die=panic", "die=error", "die=fatal"][round % 4] {
            "SIGTERM" => {
                cluster.clear_faults();
                cluster.kill(pid, SIGTERM);
            }
            death => cluster.set_conf("hyperion_vault.test_faults", death),
        }
        // Cached secrets are read while there is no worker. A slow machine may sleep through that second in a round.
        let gone = |root: &mut Client| {
            let worker = status(root)["workers"][0].take();
            worker["running"] == false && worker["starts"] == lived
        };
        wait_for("the worker to be gone", PATIENCE, || gone(&mut root) || starts(&mut root) > lived);
        let reads = load.hot_reads();
        std::thread::sleep(Duration::from_millis(100));
        let later = load.hot_reads();
        if gone(&mut root) {
            gap_reads += later - reads;
        }
        until_running(&mut root, lived + 1);
    }
    cluster.clear_faults();
    let done = load.finish(3 * PATIENCE);
    assert!(
        gap_reads > 0 && done.acknowledged.len() >= ROUNDS * CREATORS && done.cold_reads >= ROUNDS,
        "hardly any load"
    );
    witness.assert_survived();
    expect_idle_queue(&mut root);
    assert_eq!(starts(&mut root), ROUNDS as u64 + 1);

    done.assert_all_open(&mut vault.app());
    let log = cluster.log();
    assert_eq!(log.matches("hyperion_vault kms worker started").count(), ROUNDS + 1);
    assert!(!log.contains("terminating any other active server processes"));
    println!(
        "{ROUNDS} deaths of the worker: {} secrets acknowledged, all open; {} cold reads and {} cached ones \
         (slowest {:?}, {gap_reads} of them without a worker); no session hung, all slots free",
        done.acknowledged.len(),
        done.cold_reads,
        done.hot_reads,
        done.slowest_hot_read
    );
}

/// Waits until so many sessions wait for the key service. Requests are not counted: a session that asks for keys ahead
/// has several.
#[track_caller]
fn until_stuck(root: &mut Client, sessions: i64) {
    let stuck = "SELECT count(*) FROM pg_stat_activity
        WHERE backend_type = 'client backend' AND state = 'active' AND wait_event_type = 'Extension'
          AND query_start < clock_timestamp() - interval '100 ms'";
    wait_for(&format!("{sessions} sessions to wait for the key service"), PATIENCE, || {
        root.query_one(stuck, &[]).unwrap().get::<_, i64>(0) == sessions
    });
}

#[test]
fn a_panicking_provider_costs_one_request_and_no_worker() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    make_cold(&vault, "SELECT vault.create_secret('cold', 'cold value')");
    let (mut root, mut ops, mut witness) = (vault.root(), vault.ops(), cluster.witness());
    let worker = cluster.pid_of("hyperion_vault kms");
    cluster.set_faults("panic=2");
    sqlstate!(ops.simple_query("SELECT vault.create_secret('a', 'v')"), "XX000", message: "ended unexpectedly");
    sqlstate!(root.simple_query("SELECT vault.read_secret('cold')"), "XX000", hint: "server log");
    ops.batch_execute("SELECT vault.create_secret('a', 'v')").unwrap();
    assert_eq!(read_value(&mut root, "cold"), "cold value");

    // Retryable failures are retried, others are told at once.
    cluster.set_faults("fail=unreachable,times=2");
    ops.batch_execute("SELECT vault.create_secret('b', 'v')").unwrap();
    cluster.set_faults("fail=throttled,times=1");
    ops.batch_execute("SELECT vault.create_secret('c', 'v')").unwrap();
    cluster.set_faults("fail=refused,times=1");
    let before = calls(&mut root);
    sqlstate!(ops.simple_query("SELECT vault.create_secret('d', 'v')"), "38000", message: "refused");
    assert_eq!(calls(&mut root), before + 1, "a refusal is not repeated");
    ops.batch_execute("SELECT vault.create_secret('d', 'v')").unwrap();
    let kms = status(&mut root)["kms"].take();
    assert_eq!((&kms["retries"], &kms["last_error"]), (&3.into(), &"refused".into()), "{kms}");

    // The next worker would begin with the same faults.
    cluster.clear_faults();
    // It is seen as a session of no database, and can be ended as one.
    let seen = root
        .query_one("SELECT backend_type, datname FROM pg_stat_activity WHERE pid = $1", &[&worker])
        .expect("the worker is in pg_stat_activity");
    assert_eq!(seen.get::<_, String>(0), "hyperion_vault kms");
    assert_eq!(seen.get::<_, Option<String>>(1), None);
    let terminated: bool = root.query_one("SELECT pg_terminate_backend($1)", &[&worker]).unwrap().get(0);
    assert!(terminated);
    until_running(&mut root, 2);
    ops.batch_execute("SELECT vault.create_secret('e', 'v')").unwrap();
    witness.assert_survived();
    expect_idle_queue(&mut root);
}

#[test]
fn the_worker_does_not_grow() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let (mut ops, mut root) = (vault.ops(), vault.root());
    let worker = cluster.pid_of("hyperion_vault kms");
    let mut series = 0;
    let mut work = |root: &mut Client| {
        series += 1;
        let creates = format!(
            "SELECT count(vault.create_secret('m/{series}/' || i, 'v')) FROM generate_series(1, 1500) i"
        );
        make_cold(&vault, &creates);
        let reads =
            format!("SELECT count(vault.read_secret('m/{series}/' || i)) FROM generate_series(1, 1500) i");
        assert_eq!(root.query_one(&reads, &[]).unwrap().get::<_, i64>(0), 1500);
        // Failures and requests that are given up leave nothing behind either.
        cluster.set_faults("fail=refused,times=200");
        let failing = "DO $$ BEGIN FOR i IN 1..200 LOOP
            BEGIN PERFORM vault.create_secret('never', 'v'); EXCEPTION WHEN external_routine_exception THEN NULL; END;
            END LOOP; END $$";
        ops.batch_execute(failing).unwrap();
        cluster.set_faults("hang");
        // A session of its own: a RESET would have to be done within that time, too.
        let mut hasty = vault.ops();
        hasty.batch_execute("SET statement_timeout = '5ms'").unwrap();
        for _ in 0..50 {
            sqlstate!(hasty.simple_query("SELECT vault.create_secret('never', 'v')"), "57014");
        }
        drop(hasty);
        cluster.clear_faults();
        expect_idle_queue(root);
    };
    work(&mut root);
    let before = private_kb(worker);
    for _ in 0..3 {
        work(&mut root);
    }
    let after = private_kb(worker);
    println!("private memory of the worker: {before} kB after 3250 requests, {after} kB after 13000");
    // A leak of the smallest kind, some 200 bytes a request, would be 2 MB.
    assert!(after < before + 1500, "{before} kB before, {after} kB after");
}

fn waiting(mut client: Client, sql: &str) -> (i32, Background<Result<(), postgres::Error>>) {
    let (pid, sql) = (backend_pid(&mut client), sql.to_owned());
    (pid, background(move || client.batch_execute(&sql)))
}

/// Calls every function once, in sessions whose plans and caches may know other tables.
fn exercise(ops: &mut Client, root: &mut Client, round: &str) {
    let name = format!("n/{round}");
    for sql in [
        "SELECT vault.create_secret($1, 'one', metadata => '{\"a\": 1}', grace_period => '1 hour')",
        "SELECT vault.put_secret($1, 'two')",
        "SELECT vault.update_secret($1, 'three', description => 'd')",
        "SELECT vault.update_secret($1, kind => 'automatic', rotation_interval => '1 day')",
        "SELECT vault.rotate_secret($1)",
        "SELECT vault.put_secret($1, 'five')",
    ] {
        ops.execute(sql, &[&name]).unwrap_or_else(|error| panic!("{round}: {sql}: {error:?}"));
    }
    assert_eq!(read_value(root, &name), "five", "{round}");
    let row =
        root.query_one("SELECT kind::text, format::text, value FROM vault.get_secret($1)", &[&name]).unwrap();
    assert_eq!((row.get(0), row.get(1), row.get(2)), ("automatic", "opaque", "five"));
    let row = root.query_one("SELECT valid, version FROM vault.verify($1, 'three')", &[&name]).unwrap();
    assert_eq!((row.get::<_, bool>(0), row.get::<_, i32>(1)), (true, 3));
    assert_eq!(root.query("SELECT vault.list_versions($1)", &[&name]).unwrap().len(), 5);
    let listed =
        root.query_one("SELECT count(*) FROM vault.list_secrets() WHERE name = $1", &[&name]).unwrap();
    assert_eq!(listed.get::<_, i64>(0), 1);
    ops.batch_execute(&format!(
        "SELECT vault.create_secret('{name}/gone', 'v'); SELECT vault.delete_secret('{name}/gone')"
    ))
    .unwrap();
}

#[test]
fn waiting_requests_hold_up_no_administration() {
    let cluster = Cluster::builder().conf("hyperion_vault.kms_timeout_ms", "180000").start();
    let vault: Vault<'_> = cluster.vault();
    let (mut ops, mut root) = (vault.ops(), vault.root());
    let mut admin = vault.root();
    admin.batch_execute("SET statement_timeout = '20s'; SET lock_timeout = '10s'").unwrap();
    exercise(&mut ops, &mut root, "first");
    let planned = root.prepare("SELECT vault.read_secret($1)").unwrap();
    make_cold(&vault, "SELECT vault.create_secret('cold', 'cold value')");
    cluster.set_faults("hang");
    let (_, create) = waiting(vault.ops(), "SELECT vault.create_secret('late', 'v') IS NULL");
    let (_, put) = waiting(vault.ops(), "SELECT vault.put_secret('n/first', 'v') IS NULL");
    let (_, read) = waiting(vault.app(), "SELECT vault.read_secret('cold')");
    until_processing(&mut root, 3);

    for sql in ["CREATE DATABASE other", "ALTER DATABASE other RENAME TO another", "DROP DATABASE another"] {
        admin.batch_execute(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
    for sql in ["DROP EXTENSION hyperion_vault", "CREATE EXTENSION hyperion_vault"] {
        admin.batch_execute(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
    assert_eq!(processing(&mut root), 3, "they wait as before");
    cluster.clear_faults();
    cluster.kill_and_wait(cluster.pid_of("hyperion_vault kms"), SIGTERM);
    // The world they asked in is gone. New secrets go into the new one; what was to be read is not there.
    create.finish(PATIENCE).unwrap();
    put.finish(PATIENCE).unwrap();
    sqlstate!(read.finish(PATIENCE), "P0002");
    assert_eq!(read_value(&mut root, "late"), "v");
    assert_eq!(root.query_one(&planned, &[&"n/first"]).unwrap().get::<_, &str>(0), "v");

    // The same sessions, with plans, function and table oids of the former extension.
    exercise(&mut ops, &mut root, "second");
    admin.batch_execute("DROP EXTENSION hyperion_vault").unwrap();
    sqlstate!(root.simple_query("SELECT vault.read_secret('n/second')"), "42883");
    admin.batch_execute("CREATE EXTENSION hyperion_vault").unwrap();
    exercise(&mut ops, &mut root, "third");
    expect_idle_queue(&mut root);

    // Shutdown while requests wait, in a slot and for one that the worker has not seen.
    cluster.set_faults("hang");
    let (_, late) = waiting(vault.ops(), "SELECT vault.create_secret('late', 'v')");
    until_processing(&mut root, 1);
    let mark = cluster.log_mark();
    let begun = Instant::now();
    cluster.stop(StopMode::Fast);
    println!("fast shutdown with a request under way: {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(15));
    expect_disconnect(late.finish(PATIENCE));
    let log = cluster.log_since(mark);
    assert!(log.contains("database system is shut down") && !log.contains("signal"), "{log}");
    cluster.start_again();
    cluster.clear_faults();
    let mut root = vault.root();
    assert_eq!(read_value(&mut root, "n/third"), "five");
    sqlstate!(root.simple_query("SELECT vault.read_secret('late')"), "P0002");
    assert_eq!(in_state(&mut root, "abandoned"), 0);
    expect_idle_queue(&mut root);

    // The vault's own database: the workers that sit in it make room.
    drop((ops, root, admin));
    let mut elsewhere = cluster.connect("postgres", "template1");
    wait_for("the sessions to end", PATIENCE, || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'postgres' AND backend_type = 'client backend'";
        elsewhere.query_one(sql, &[]).unwrap().get::<_, i64>(0) == 0
    });
    elsewhere.batch_execute("SET statement_timeout = '20s'").unwrap();
    elsewhere.batch_execute("ALTER DATABASE postgres RENAME TO moved").unwrap();
    elsewhere.batch_execute("ALTER DATABASE moved RENAME TO postgres").unwrap();
    assert_eq!(read_value(&mut vault.root(), "n/third"), "five");
}
