//! SIGKILL of every kind of process, and five hundred readers of one cold secret.
//!
//! Runs in the test process. The first shows what costs the whole server and what is left afterwards; the second that a
//! restarted server with an empty cache does not run over its key service.

use crate::watch::{
    calls, expect_idle_queue, in_state, processing, starts, status, until_processing, until_running,
};
use hyperion_vault_tests::threads::{Background, at_once, background};
use hyperion_vault_tests::{
    Client, Cluster, NoTls, PATIENCE, SIGCONT, SIGKILL, SIGSTOP, SIGTERM, StopMode, Vault, backend_pid,
    expect_disconnect, sqlstate, wait_for,
};

/// A statement in its own session that is expected to wait.
fn waiting(mut client: Client, sql: &str) -> (i32, Background<Result<(), postgres::Error>>) {
    let (pid, sql) = (backend_pid(&mut client), sql.to_owned());
    (pid, background(move || client.batch_execute(&sql)))
}

/// What is left when a server has come back from a crash.
fn assert_sound(vault: &Vault<'_>, acknowledged: &[String], uncommitted: &str, what: &str) {
    let mut root = vault.root();
    // Before anything is read: keys in the cache could only be from before.
    let cache = status(&mut root)["cache"].take();
    assert_eq!((&cache["entries"], &cache["hits"]), (&0.into(), &0.into()), "{what}: {cache}");
    until_running(&mut root, 1);
    expect_idle_queue(&mut root);
    let mut app = vault.app();
    for name in acknowledged {
        let row = app.query_one("SELECT vault.read_secret($1)", &[name]);
        let value: String = row.unwrap_or_else(|error| panic!("{what}: {name}: {error:?}")).get(0);
        assert_eq!(value, format!("the value of {name}"), "{what}");
    }
    sqlstate!(app.query("SELECT vault.read_secret($1)", &[&uncommitted]), "P0002");
    let count = root.query_one("SELECT count(*) FROM vault.list_secrets()", &[]).unwrap();
    assert_eq!(count.get::<_, i64>(0), i64::try_from(acknowledged.len()).unwrap(), "{what}");
    assert_eq!(calls(&mut root), acknowledged.len() as u64, "{what}: each key was unwrapped once");
}

#[test]
fn sigkill_restarts_the_server_and_loses_nothing() {
    let cluster = Cluster::builder().conf("hyperion_vault.kms_timeout_ms", "180000").start();
    let vault = cluster.vault();
    let mut acknowledged = Vec::new();
    let mut survivors = 0;
    for what in ["a waiting backend", "an idle backend", "the worker", "the postmaster", "none: SIGTERM"] {
        let mut ops = vault.ops();
        for i in 0..20 {
            let name = format!("{what}/{i}").replace(' ', "-");
            let name = if i % 2 == 0 { name } else { name.replace(':', "") };
            let value = format!("the value of {name}");
            ops.execute("SELECT vault.create_secret($1, $2)", &[&name, &value]).unwrap();
            acknowledged.push(name);
        }
        let mut open = vault.ops();
        open.batch_execute("BEGIN; SELECT vault.create_secret('uncommitted', 'v')").unwrap();
        let mut idle = vault.app();
        let idle_pid = backend_pid(&mut idle);
        let mut root = vault.root();
        let mut witness = cluster.witness();
        // Whoever hangs now goes on hanging, yet the server that comes back has a healthy key service.
        cluster.set_faults("hang");
        let (waiting_pid, waiter) = waiting(vault.ops(), "SELECT vault.create_secret('never', 'v')");
        until_processing(&mut root, 1);
        cluster.clear_faults();
        let worker = cluster.pid_of("hyperion_vault kms");
        match what {
            "a waiting backend" => cluster.kill_and_wait(waiting_pid, SIGKILL),
            "an idle backend" => cluster.kill_and_wait(idle_pid, SIGKILL),
            "the worker" => cluster.kill_and_wait(worker, SIGKILL),
            "the postmaster" => cluster.kill_postmaster_9(),
            _ => {
                // The same end in good order costs nobody anything: the witness of the witness.
                for pid in [waiting_pid, idle_pid, worker] {
                    cluster.kill_and_wait(pid, SIGTERM);
                }
                expect_disconnect(waiter.finish(PATIENCE));
                witness.assert_survived();
                until_running(&mut root, 2);
                expect_idle_queue(&mut root);
                let entries = status(&mut root)["cache"]["entries"].as_u64().unwrap();
                assert!(entries > acknowledged.len() as u64 / 2, "the cache survives the worker: {entries}");
                open.batch_execute("ROLLBACK").unwrap();
                survivors += 1;
                continue;
            }
        }
        witness.assert_lost();
        expect_disconnect(waiter.finish(PATIENCE));
        if what == "the postmaster" {
            cluster.start_again();
        } else {
            cluster.wait_ready();
        }
        assert_sound(&vault, &acknowledged, "uncommitted", what);
    }
    assert_eq!(survivors, 1);
    println!("4 kinds of SIGKILL: {} acknowledged secrets open after each; no slot lost", acknowledged.len());
}

/// More sessions than slots, on purpose.
const READERS: usize = 500;
const SLOTS: u64 = 256;

#[test]
fn five_hundred_readers_of_a_cold_secret_cost_one_call() {
    let cluster = Cluster::builder()
        .max_connections(READERS as u32 + 20)
        .conf("hyperion_vault.kms_timeout_ms", "120000")
        .start();
    allow_open_files(READERS as u64 * 8);
    let vault = cluster.vault();
    vault.ops().batch_execute("SELECT vault.create_secret('cold', 'the one value')").unwrap();
    cluster.restart(StopMode::Fast);
    cluster.set_faults("delay_ms=300");
    let mut root = vault.root();
    until_running(&mut root, 1);
    assert_eq!(status(&mut root)["cache"]["entries"], 0);
    let before = calls(&mut root);

    // The worker is stopped until all have asked: so they do ask at the same time, on any machine.
    let worker = cluster.pid_of("hyperion_vault kms");
    cluster.kill(worker, SIGSTOP);
    let config = cluster.config("app", cluster.database());
    let readers = background(move || {
        at_once(
            READERS,
            4 * PATIENCE,
            move |_| config.connect(NoTls).expect("cannot connect"),
            |_, mut client: Client| {
                client.query_one("SELECT vault.read_secret('cold')", &[]).map(|row| row.get::<_, String>(0))
            },
        )
    });
    let asking =
        "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND wait_event_type = 'Extension'";
    wait_for("all to ask", 4 * PATIENCE, || {
        root.query_one(asking, &[]).unwrap().get::<_, i64>(0) == READERS as i64
    });
    assert_eq!((in_state(&mut root, "submitted"), in_state(&mut root, "free")), (SLOTS, 0));
    cluster.kill(worker, SIGCONT);
    let values = readers.finish(4 * PATIENCE);
    let wrong: Vec<_> =
        values.iter().filter(|value| !value.as_ref().is_ok_and(|v| v == "the one value")).collect();
    assert!(wrong.is_empty(), "{} of {READERS} failed, the first: {:?}", wrong.len(), wrong[0]);
    assert_eq!(calls(&mut root) - before, 1, "{READERS} sessions and one cold secret");
    let joined = status(&mut root)["kms"]["coalesced"].as_u64().unwrap();
    println!(
        "{READERS} sessions on one cold secret: 1 provider call, {joined} requests joined it, {} waited for a slot \
         and found the key in the cache",
        READERS as u64 - 1 - joined
    );
    assert_eq!(joined, SLOTS - 1);
    assert_eq!((processing(&mut root), starts(&mut root)), (0, 1));
    expect_idle_queue(&mut root);
}

/// Each of the test's sessions takes a handful of file descriptors.
fn allow_open_files(wanted: u64) {
    // SAFETY: two calls with a valid struct; the limit is this process's own.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit), 0);
        limit.rlim_cur = limit.rlim_cur.max(wanted).min(limit.rlim_max);
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &limit), 0);
    }
}
