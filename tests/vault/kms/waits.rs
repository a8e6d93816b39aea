//! Ends of waiting for KMS, and of transactions that had a data key made: the wait ends at once, the call is dropped,
//! and nothing is left. Runs in the test process.
//!
//! tests/vault/worker.rs looks at the same with the `local` provider; here a real connection has to be given up too.

use super::{cold_secrets, create, key_calls, read, value};
use crate::watch::{QUICK, Waiter, expect_idle_queue, status};
use hyperion_vault_tests::kms::{FakeKms, Fault, Op};
use hyperion_vault_tests::{
    Ask, Client, Cluster, NoTls, PATIENCE, Vault, expect_disconnect, sqlstate, wait_for,
};
use std::time::{Duration, Instant};

/// Attempts last a third of it: longer than anything here waits.
fn patient_cluster(kms: &FakeKms) -> Cluster {
    Cluster::builder()
        .aws(kms)
        .conf("hyperion_vault.kms_timeout_ms", "180000")
        .conf("client_connection_check_interval", "200ms")
        .start()
}

const WAITING: [(&str, &str); 5] = [
    ("app", "SELECT vault.read_secret('cold/1')"),
    ("app", "SELECT valid FROM vault.verify('cold/1', 'x')"),
    ("ops", "SELECT vault.create_secret('new', 'v')"),
    ("ops", "SELECT vault.put_secret('hot', 'v')"),
    ("ops", "SELECT vault.rotate_secret('auto')"),
];

#[test]
fn every_wait_ends_at_once_and_drops_its_call() {
    let kms = FakeKms::start();
    let cluster = patient_cluster(&kms);
    let vault = cluster.vault();
    cold_secrets(&vault, "cold", 1);
    create(&mut vault.ops(), "hot").unwrap();
    let sql = "SELECT vault.create_secret('auto', kind => 'automatic', rotation_interval => '1 day')";
    vault.ops().batch_execute(sql).unwrap();
    let mut root = vault.root();
    kms.close_connections();
    wait_for("connections to close", PATIENCE, || kms.open_connections() == 0);
    kms.inject(Fault::Hang);
    let (mut slowest, mut slowest_drop) = (Duration::ZERO, Duration::ZERO);
    for (user, sql) in WAITING {
        for how in ["statement_timeout", "pg_cancel_backend", "cancel request", "pg_terminate_backend"] {
            kms.reset_counters();
            let mut session = vault.session(user);
            // Time for the call to arrive before; a call that hangs for a second is one towards an outage.
            let timeout = Duration::from_millis(if how == "statement_timeout" { 800 } else { 0 });
            session.batch_execute(&format!("SET statement_timeout = {}", timeout.as_millis())).unwrap();
            let started = Instant::now();
            let waiter = Waiter::start(session, sql);
            wait_for("the call to arrive", PATIENCE, || key_calls(&kms) == 1);
            assert_eq!(kms.open_connections(), 1);
            let mut begun = Instant::now();
            match how {
                "pg_cancel_backend" | "pg_terminate_backend" => {
                    root.execute(&format!("SELECT {how}($1)"), &[&waiter.pid]).unwrap();
                }
                "cancel request" => waiter.token.cancel_query(NoTls).unwrap(),
                _ => begun = started + timeout,
            }
            let result = waiter.finish();
            let took = begun.elapsed();
            match how {
                "pg_terminate_backend" => expect_disconnect(result),
                "statement_timeout" => drop(sqlstate!(result, "57014", message: "statement timeout")),
                _ => drop(sqlstate!(result, "57014", message: "user request")),
            }
            wait_for("the call to be dropped", PATIENCE, || kms.open_connections() == 0);
            let dropped = begun.elapsed();
            assert!(took < QUICK && dropped < 2 * QUICK, "{sql}: {how}: {took:?}, {dropped:?}");
            slowest = slowest.max(took);
            slowest_drop = slowest_drop.max(dropped);
            expect_idle_queue(&mut root);
            assert_eq!(key_calls(&kms), 1, "{sql}: {how}: asked again");
        }
    }
    println!("20 waits ended, the slowest in {slowest:?}; connection to KMS closed after {slowest_drop:?}");
    kms.clear();
    assert_eq!(read(&mut root, "cold/1").unwrap(), value("cold/1"));
    assert_eq!(read(&mut root, "hot").unwrap(), value("hot"));
    sqlstate!(read(&mut root, "new"), "P0002");
    assert_eq!(root.ask("SELECT version FROM vault.secrets WHERE name = 'auto'"), "1");
    assert_eq!(status(&mut root)["workers"][0]["starts"], 1);
}

/// All that a create could leave: rows, cached keys, locks, slots.
fn traces(root: &mut Client) -> String {
    expect_idle_queue(root);
    let rows =
        root.ask("SELECT (SELECT count(*) FROM vault.secrets), (SELECT count(*) FROM vault.secret_versions)");
    let locks = "SELECT count(*) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
                  WHERE c.relnamespace = 'vault'::regnamespace AND l.pid <> pg_backend_pid()";
    // The lock of a session that has just ended may be there for a moment.
    wait_for("locks to be released", PATIENCE, || root.ask(locks) == "0");
    format!("{rows}; {} cached", status(root)["cache"]["entries"])
}

/// Runs `make` at a fresh name and compares what it leaves with what was there.
fn leaves_nothing(vault: &Vault<'_>, kms: &FakeKms, what: &str, make: impl FnOnce(&mut Client, &str)) {
    let mut root = vault.root();
    let before = traces(&mut root);
    kms.reset_counters();
    make(&mut vault.ops(), "new");
    assert!(kms.calls(Op::GenerateDataKey) >= 1, "{what}: no key was made");
    kms.clear();
    assert_eq!(traces(&mut root), before, "{what}");
    sqlstate!(read(&mut root, "new"), "P0002");
    // Nothing stands in the way of the name.
    create(&mut root, "new").unwrap();
    assert_eq!(read(&mut root, "new").unwrap(), value("new"));
    root.batch_execute("SELECT vault.delete_secret('new')").unwrap();
    assert_eq!(traces(&mut root), before, "{what}: after another create and delete");
}

#[test]
fn a_create_that_does_not_commit_leaves_nothing() {
    let kms = FakeKms::start();
    let cluster = patient_cluster(&kms);
    let vault = cluster.vault();
    create(&mut vault.ops(), "other").unwrap();
    let insert = |name: &str| format!("SELECT vault.create_secret('{name}', 'v')");

    leaves_nothing(&vault, &kms, "ROLLBACK", |ops, name| {
        ops.batch_execute(&format!("BEGIN; {}; ROLLBACK", insert(name))).unwrap();
    });
    leaves_nothing(&vault, &kms, "ROLLBACK TO SAVEPOINT", |ops, name| {
        ops.batch_execute(&format!("BEGIN; SAVEPOINT s; {}; ROLLBACK TO s; COMMIT", insert(name))).unwrap();
    });
    leaves_nothing(&vault, &kms, "an error later in the statement", |ops, name| {
        let sql = format!("{}, 1 / length(vault.put_secret('{name}', 'w')::text || 'x') / 0", insert(name));
        sqlstate!(ops.batch_execute(&sql), "22012");
    });
    leaves_nothing(&vault, &kms, "the end of the session in a transaction", |ops, name| {
        ops.batch_execute(&format!("BEGIN; {}", insert(name))).unwrap();
        let pid = hyperion_vault_tests::backend_pid(ops);
        vault.root().execute("SELECT pg_terminate_backend($1)", &[&pid]).unwrap();
        expect_disconnect(ops.batch_execute("COMMIT"));
    });
    leaves_nothing(&vault, &kms, "the end of the session while KMS makes the key", |_, name| {
        kms.inject(Fault::Hang);
        let waiter = Waiter::start(vault.ops(), &insert(name));
        wait_for("the call to arrive", PATIENCE, || kms.calls(Op::GenerateDataKey) == 1);
        vault.root().execute("SELECT pg_terminate_backend($1)", &[&waiter.pid]).unwrap();
        // The answer comes now, to a session that is about to be gone.
        kms.clear();
        expect_disconnect(waiter.finish());
    });
    // The key is there, and the insert waits for another transaction that has taken the name.
    for terminate in [true, false] {
        leaves_nothing(&vault, &kms, "the end of the session between key and insert", |ops, name| {
            ops.batch_execute(&format!("BEGIN; {}", insert(name))).unwrap();
            let waiter = Waiter::start(vault.ops(), &insert(name));
            let waits = "SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND wait_event_type = 'Lock'";
            let mut root = vault.root();
            wait_for("the insert to wait", PATIENCE, || {
                root.query_one(waits, &[&waiter.pid]).unwrap().get::<_, i64>(0) == 1
            });
            assert_eq!(kms.calls(Op::GenerateDataKey), 2);
            let function = if terminate { "pg_terminate_backend" } else { "pg_cancel_backend" };
            root.execute(&format!("SELECT {function}($1)"), &[&waiter.pid]).unwrap();
            if terminate {
                expect_disconnect(waiter.finish());
            } else {
                sqlstate!(waiter.finish(), "57014");
            }
            ops.batch_execute("ROLLBACK").unwrap();
        });
    }
}
