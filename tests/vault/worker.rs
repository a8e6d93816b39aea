//! Sessions that wait for the key service: every way to end the wait, a full queue, and what waiting must not hold up.
//!
//! Runs in the test process against real servers with an injected slow or hanging provider. Nothing here is timed
//! tightly: the provider hangs for good, so whatever comes back within `QUICK` came for another reason.

use crate::watch::{
    QUICK, Waiter, backends_of, expect_idle_queue, gone_process, make_cold, processing, status,
    until_processing,
};
use hyperion_vault_tests::{
    Client, Cluster, NoTls, PATIENCE, SIGCONT, SIGSTOP, Vault, expect_disconnect, sqlstate, wait_for,
};
use std::time::{Duration, Instant};

/// Secrets `hot` (cached), `cold` and `cold/2` (their keys are not), `auto` (can be rotated).
fn seed(vault: &Vault<'_>) {
    make_cold(
        vault,
        "SELECT vault.create_secret(name, 'cold value') FROM (VALUES ('cold'), ('cold/2')) v (name)",
    );
    let sql = "SELECT vault.create_secret('hot', 'hot value');
               SELECT vault.create_secret('auto', kind => 'automatic', rotation_interval => '1 day')";
    vault.ops().batch_execute(sql).unwrap();
}

/// A session that fails rather than waits.
fn impatient(mut client: Client) -> Client {
    client.batch_execute("SET statement_timeout = '10s'; SET lock_timeout = '3s'").unwrap();
    client
}

fn text(client: &mut Client, sql: &str) -> String {
    client.query_one(sql, &[]).unwrap_or_else(|error| panic!("{sql}: {error:?}")).get(0)
}

fn hanging_cluster() -> Cluster {
    // The provider's attempts end after a third of it: later than anything a test waits for.
    Cluster::builder()
        .conf("hyperion_vault.kms_timeout_ms", "180000")
        .conf("client_connection_check_interval", "200ms")
        .start()
}

/// Statements that need the key service, with the role that may run them.
const WAITING: [(&str, &str); 6] = [
    ("app", "SELECT vault.read_secret('cold')"),
    ("app", "SELECT value FROM vault.get_secret('cold')"),
    ("app", "SELECT valid FROM vault.verify('cold', 'x')"),
    ("ops", "SELECT vault.create_secret('new', 'v')"),
    ("ops", "SELECT vault.put_secret('hot', 'v')"),
    ("ops", "SELECT vault.rotate_secret('auto')"),
];

#[test]
fn every_wait_for_the_key_service_can_be_ended() {
    let cluster = hanging_cluster();
    let vault = cluster.vault();
    seed(&vault);
    let mut witness = cluster.witness();
    let mut root = vault.root();
    let mut reader = impatient(vault.app());
    let worker = cluster.pid_of("hyperion_vault kms");
    cluster.set_faults("hang");

    let (mut ended, mut slowest) = (0, Duration::ZERO);
    for (user, sql) in WAITING {
        for how in ["cancel", "statement_timeout", "terminate", "client gone"] {
            let begun = if how == "client gone" {
                let process = gone_process(&cluster, user, sql, |_| until_processing(&mut root, 1));
                wait_for("the session of a client that is gone to end", PATIENCE, || {
                    backends_of(&mut root, "gone") == 0
                });
                process
            } else {
                let mut session = vault.session(user);
                if how == "statement_timeout" {
                    session.batch_execute("SET statement_timeout = '300ms'").unwrap();
                }
                let waiter = Waiter::start(session, sql);
                if how != "statement_timeout" {
                    until_processing(&mut root, 1);
                    // Others go on meanwhile, as long as they need no key service.
                    assert_eq!(text(&mut reader, "SELECT vault.read_secret('hot')"), "hot value");
                }
                let begun = Instant::now();
                match how {
                    "cancel" => {
                        waiter.token.cancel_query(NoTls).unwrap();
                        sqlstate!(waiter.finish(), "57014", message: "user request");
                    }
                    "terminate" => {
                        root.execute("SELECT pg_terminate_backend($1)", &[&waiter.pid]).unwrap();
                        expect_disconnect(waiter.finish());
                    }
                    _ => drop(sqlstate!(waiter.finish(), "57014", message: "statement timeout")),
                }
                begun
            };
            let took = begun.elapsed();
            assert!(took < QUICK, "{sql}: {how} took {took:?}");
            slowest = slowest.max(took);
            expect_idle_queue(&mut root);
            ended += 1;
        }
    }
    println!("{ended} waits ended, the slowest in {slowest:?}; all slots free");

    assert_eq!(cluster.pid_of("hyperion_vault kms"), worker, "the worker is the same");
    witness.assert_survived();
    assert_eq!(status(&mut root)["workers"][0]["starts"], 1);
    cluster.clear_faults();
    assert_eq!(text(&mut vault.app(), "SELECT vault.read_secret('cold')"), "cold value");
    assert_eq!(text(&mut vault.app(), "SELECT vault.read_secret('hot')"), "hot value", "no half-done change");
    sqlstate!(vault.app().simple_query("SELECT vault.read_secret('new')"), "P0002");
    expect_idle_queue(&mut root);
}

#[test]
fn a_full_queue_refuses_clearly_and_heals() {
    let cluster = Cluster::builder().conf("hyperion_vault.kms_queue_slots", "4").start();
    let vault = cluster.vault();
    seed(&vault);
    let mut root = vault.root();
    let mut reader = impatient(vault.app());
    let timeout = |ms: &str| {
        cluster.set_conf("hyperion_vault.kms_timeout_ms", ms);
        // Their sessions take it over at their next statement.
    };
    // The four hold their slots until they are told to let go.
    timeout("180000");
    cluster.set_faults("hang");
    let holding: Vec<_> = (0..4)
        .map(|i| Waiter::start(vault.ops(), &format!("SELECT vault.create_secret('held/{i}', 'v')")))
        .collect();
    until_processing(&mut root, 4);

    // Those without a slot: cancellable, terminable, subject to statement_timeout.
    let waits = |pid: i32| {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND wait_event_type = 'Extension'";
        let mut root = vault.root();
        wait_for("a session to wait for a slot", PATIENCE, || {
            root.query_one(sql, &[&pid]).unwrap().get::<_, i64>(0) == 1
        });
    };
    let create = "SELECT vault.create_secret('late', 'v')";
    let waiter = Waiter::start(vault.ops(), create);
    waits(waiter.pid);
    waiter.token.cancel_query(NoTls).unwrap();
    let begun = Instant::now();
    sqlstate!(waiter.finish(), "57014");
    assert!(begun.elapsed() < QUICK);
    let waiter = Waiter::start(vault.ops(), create);
    waits(waiter.pid);
    root.execute("SELECT pg_terminate_backend($1)", &[&waiter.pid]).unwrap();
    expect_disconnect(waiter.finish());
    let mut session = vault.ops();
    session.batch_execute("SET statement_timeout = '200ms'").unwrap();
    sqlstate!(session.simple_query(create), "57014", message: "statement timeout");

    timeout("500");
    for sql in [create, "SELECT vault.put_secret('hot', 'v')", "SELECT vault.rotate_secret('auto')"] {
        sqlstate!(vault.ops().simple_query(sql), "53000", message: "queue is full", hint: "kms_queue_slots");
    }
    sqlstate!(vault.app().simple_query("SELECT vault.read_secret('cold')"), "53000", detail: "500 ms");
    assert_eq!(text(&mut reader, "SELECT vault.read_secret('hot')"), "hot value", "needs no slot");
    assert_eq!(processing(&mut root), 4, "the four are still there");

    // One that comes now gets a slot as soon as one is free, and its answer, without anybody's help.
    timeout("60000");
    cluster.clear_faults();
    let patient = Waiter::start(vault.app(), "SELECT vault.read_secret('cold')");
    waits(patient.pid);
    for waiter in holding {
        waiter.token.cancel_query(NoTls).unwrap();
        sqlstate!(waiter.finish(), "57014", message: "user request");
    }
    assert_eq!(patient.finish().unwrap().as_deref(), Some("cold value"));
    expect_idle_queue(&mut root);
    vault.ops().batch_execute(create).unwrap();
    assert_eq!(text(&mut root, "SELECT vault.read_secret('late')"), "v");
    assert_eq!(text(&mut root, "SELECT count(*)::text FROM vault.list_secrets('held/*')"), "0");
    assert_eq!(status(&mut root)["workers"][0]["starts"], 1);
}

#[test]
fn a_frozen_worker_delays_only_those_who_need_it() {
    // Both deadlines come while it is frozen.
    let cluster = Cluster::builder().conf("hyperion_vault.kms_timeout_ms", "10000").start();
    let vault = cluster.vault();
    seed(&vault);
    let mut root = vault.root();
    let worker = cluster.pid_of("hyperion_vault kms");
    // One request taken by the worker, one it has not seen.
    cluster.set_faults("hang");
    let taken = Waiter::start(vault.ops(), "SELECT vault.create_secret('taken', 'v')");
    until_processing(&mut root, 1);
    cluster.kill(worker, SIGSTOP);
    let unseen = Waiter::start(vault.app(), "SELECT vault.read_secret('cold')");
    assert_eq!(text(&mut impatient(vault.app()), "SELECT vault.read_secret('hot')"), "hot value");
    sqlstate!(taken.finish(), "08006", message: "did not answer in time", hint: "vault.status()");
    sqlstate!(unseen.finish(), "08006", message: "did not answer in time");
    let states = status(&mut root)["queue"]["states"].clone();
    assert_eq!((&states["abandoned"], &states["submitted"]), (&1.into(), &0.into()), "{states}");
    cluster.kill(worker, SIGCONT);
    expect_idle_queue(&mut root);
    cluster.clear_faults();
    cluster.set_conf("hyperion_vault.kms_timeout_ms", "60000");
    assert_eq!(text(&mut root, "SELECT vault.read_secret('cold')"), "cold value");
}

/// Four sessions hang in the key service; another one changes, reads and deletes the very same names meanwhile.
#[test]
fn no_lock_is_held_while_waiting_for_the_key_service() {
    let cluster = hanging_cluster();
    let vault = cluster.vault();
    seed(&vault);
    let mut root = vault.root();
    cluster.set_faults("hang=5");
    let hanging = [
        ("ops", "SELECT (vault.create_secret('new', 'late')).version"),
        ("ops", "SELECT (vault.put_secret('hot', 'late')).version"),
        ("ops", "SELECT (vault.rotate_secret('auto')).version"),
        ("app", "SELECT vault.read_secret('cold')"),
        ("app", "SELECT valid FROM vault.verify('cold/2', 'cold value')"),
    ];
    let waiters = hanging.map(|(user, sql)| Waiter::start(vault.session(user), sql));
    until_processing(&mut root, 5);

    let pids: Vec<i32> = waiters.iter().map(|waiter| waiter.pid).collect();
    // Neither a row nor a table nor a transaction number: others have nothing to wait for.
    let locks: String = text(
        &mut root,
        &format!(
            "SELECT coalesce(string_agg(locktype || ' ' || mode, ', '), 'none') FROM pg_locks
              WHERE pid = ANY ('{{{}}}') AND locktype <> 'virtualxid'",
            pids.iter().map(i32::to_string).collect::<Vec<_>>().join(",")
        ),
    );
    assert_eq!(locks, "none");
    let in_transaction = "SELECT count(*)::text FROM pg_stat_activity
                           WHERE wait_event_type = 'Extension' AND backend_xid IS NULL AND usename IN ('app', 'ops')";
    wait_for("all five to sleep", PATIENCE, || text(&mut root, in_transaction) == "5");

    let (mut ops, mut app) = (impatient(vault.ops()), impatient(vault.app()));
    let mut slowest = (Duration::ZERO, "");
    let mut go = |client: &mut Client, sql: &'static str| -> String {
        let begun = Instant::now();
        let got = text(client, sql);
        assert!(begun.elapsed() < QUICK, "{sql} took {:?}", begun.elapsed());
        slowest = slowest.max((begun.elapsed(), sql));
        got
    };
    assert_eq!(go(&mut app, "SELECT vault.read_secret('hot')"), "hot value");
    assert_eq!(go(&mut app, "SELECT valid::text FROM vault.verify('hot', 'hot value')"), "true");
    go(&mut ops, "SELECT vault.update_secret('hot', description => 'mine')::text");
    assert_eq!(go(&mut ops, "SELECT (vault.put_secret('hot', 'mine')).version::text"), "2");
    go(&mut ops, "SELECT concat(vault.delete_secret('hot')::text)");
    go(&mut ops, "SELECT vault.update_secret('auto', description => 'mine')::text");
    assert_eq!(go(&mut ops, "SELECT (vault.rotate_secret('auto')).version::text"), "2");
    go(&mut ops, "SELECT vault.update_secret('cold', description => 'mine')::text");
    go(&mut ops, "SELECT concat(vault.delete_secret('cold')::text)");
    go(&mut ops, "SELECT concat(vault.delete_secret('cold/2')::text)");
    assert_eq!(go(&mut ops, "SELECT (vault.create_secret('new', 'mine')).version::text"), "1");
    assert_eq!(go(&mut app, "SELECT vault.read_secret('new')"), "mine");
    println!("beside {} hanging sessions the slowest statement took {slowest:?}", waiters.len());
    assert_eq!(processing(&mut root), 5, "all are still hanging");

    // The worker's successor asks again for all of them; each then finds the world changed.
    cluster.clear_faults();
    cluster.kill_and_wait(cluster.pid_of("hyperion_vault kms"), hyperion_vault_tests::SIGTERM);
    let [new, hot, auto, cold, verify] = waiters.map(Waiter::finish);
    sqlstate!(new, "23505");
    assert_eq!(hot.unwrap().as_deref(), Some("1"), "deleted meanwhile, so created again");
    assert_eq!(auto.unwrap().as_deref(), Some("3"), "rotated meanwhile, so rotated again");
    sqlstate!(cold, "P0002");
    sqlstate!(verify, "P0002");
    assert_eq!(text(&mut root, "SELECT vault.read_secret('hot')"), "late");
    assert_eq!(text(&mut root, "SELECT vault.read_secret('new')"), "mine");
    expect_idle_queue(&mut root);
    // One each for `hot` and `new`, three versions of `auto`. The keys that were fetched for `cold` and `cold/2` came
    // after these were deleted and must not stay; nor must the one of the `new` that was not created.
    assert_eq!(status(&mut root)["cache"]["entries"], 5);
}

/// A reload that breaks the key file tells each caller, holds up no cached read, and a good reload heals it.
#[test]
fn a_reload_with_a_bad_key_file_is_told_and_healed() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    seed(&vault);
    let (mut ops, mut root) = (vault.ops(), vault.root());
    let worker = cluster.pid_of("hyperion_vault kms");
    let good = std::fs::read(cluster.key_path()).unwrap();
    let other: Vec<u8> = good.iter().map(|byte| !byte).collect();
    let usable = |root: &mut Client, wanted: bool| {
        wait_for("the worker to have read its key file", PATIENCE, || {
            status(root)["kms"]["usable"] == wanted
        });
    };
    for (bytes, mode) in [(&good[..31], 0o600), (&good[..], 0o644), (&[][..], 0o600)] {
        let mark = cluster.log_mark();
        cluster.write_key_file(bytes, mode);
        cluster.reload();
        usable(&mut root, false);
        cluster.wait_for_log(mark, "key file", PATIENCE);
        let error =
            sqlstate!(ops.simple_query("SELECT vault.put_secret('n', 'v')"), "38000", message: "key file");
        assert!(error.hint().is_some() && error.detail().is_some(), "{error:?}");
        sqlstate!(root.simple_query("SELECT vault.read_secret('cold')"), "38000");
        assert_eq!(text(&mut root, "SELECT vault.read_secret('hot')"), "hot value");
    }
    cluster.write_key_file(&other, 0o600);
    cluster.reload();
    usable(&mut root, true);
    let read = root.simple_query("SELECT vault.read_secret('cold')");
    sqlstate!(read, "38000", message: "another master key", detail: "local:", hint: "local_master_key_file");

    cluster.write_key_file(&good, 0o600);
    cluster.reload();
    wait_for("the good key to be in use", PATIENCE, || {
        root.query_one("SELECT vault.read_secret('cold')", &[])
            .is_ok_and(|row| row.get::<_, &str>(0) == "cold value")
    });
    ops.batch_execute("SELECT vault.put_secret('n', 'v')").unwrap();
    assert_eq!(cluster.pid_of("hyperion_vault kms"), worker, "none of this ended the worker");
    expect_idle_queue(&mut root);
}
