//! What no other module looks at: the stale window and the cache's bound, prepared transactions across crashes of
//! every kind of process, a change that inherits from the value it replaces, maintenance of the tables under load.
//! Runs in the test process.

use crate::watch::{calls, expect_idle_queue, make_cold, status, until_processing, until_running};
use hyperion_vault_tests::threads::{Background, background};
use hyperion_vault_tests::{
    Ask, Client, Cluster, NoTls, PATIENCE, SIGKILL, SIGSEGV, SIGTERM, StopMode, backend_pid,
    expect_disconnect, memory, sqlstate, wait_for,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// A statement in its own session that is expected to wait.
fn waiting(mut client: Client, sql: &str) -> (i32, Background<Result<String, postgres::Error>>) {
    let (pid, sql) = (backend_pid(&mut client), sql.to_owned());
    (pid, background(move || client.try_ask(&sql)))
}

const READ: &str = "SELECT vault.read_secret('kept')";

/// Past its lifetime a key may serve while the key service cannot be asked, never when it has said no.
#[test]
fn a_stale_key_serves_in_an_outage_and_only_then() {
    let cluster = Cluster::builder()
        .conf("hyperion_vault.dek_cache_ttl_secs", "1")
        .conf("hyperion_vault.dek_cache_stale_secs", "3600")
        .conf("hyperion_vault.kms_max_retries", "0")
        .conf("hyperion_vault.dek_cache_size", "8")
        .start();
    let vault = cluster.vault();
    let (mut app, mut ops, mut root) = (vault.app(), vault.ops(), vault.root());
    ops.ask("SELECT vault.create_secret('kept', 'the value', grace_period => '1 day')");
    // A refusal is what shows that the lifetime is over: until then the key is simply used.
    cluster.set_faults("fail=refused");
    wait_for("the key's lifetime to end", PATIENCE, || app.try_ask(READ).is_err());
    sqlstate!(app.try_ask(READ), "38000", message: "refused");
    for outage in ["fail=unreachable", "fail=throttled", "hang"] {
        if outage == "hang" {
            cluster.set_conf("hyperion_vault.kms_timeout_ms", "300");
        }
        cluster.set_faults(outage);
        assert_eq!(app.ask(READ), "the value", "{outage}");
        assert_eq!(app.ask("SELECT value FROM vault.get_secret('kept')"), "the value", "{outage}");
        assert_eq!(app.ask("SELECT valid FROM vault.verify('kept', 'the value')"), "t", "{outage}");
        sqlstate!(ops.try_ask("SELECT vault.put_secret('kept', 'x')"), "08006");
    }
    assert!(status(&mut root)["cache"]["stale"].as_u64() > Some(8), "{}", status(&mut root)["cache"]);
    cluster.reset_conf("hyperion_vault.kms_timeout_ms");
    cluster.set_faults("fail=refused");
    sqlstate!(app.try_ask(READ), "38000", message: "refused");
    // Without the window an outage is an outage, for what was cached too.
    cluster.set_faults("fail=unreachable");
    assert_eq!(app.ask(READ), "the value");
    cluster.set_conf("hyperion_vault.dek_cache_stale_secs", "0");
    sqlstate!(app.try_ask(READ), "08006", message: "unreachable");
    cluster.clear_faults();
    assert_eq!(app.ask(READ), "the value");

    // More keys than there is room for: each still opens, and the cache keeps to its size.
    cluster.set_conf("hyperion_vault.dek_cache_ttl_secs", "3600");
    ops.ask("SELECT vault.create_secret('many/' || i, 'value ' || i) FROM generate_series(1, 200) i");
    let right = "SELECT count(*) FROM generate_series(1, 200) i WHERE vault.read_secret('many/' || i) = 'value ' || i";
    let before = calls(&mut root);
    assert_eq!((app.ask(right), app.ask(right)), ("200".into(), "200".into()));
    let cache = status(&mut root)["cache"].take();
    assert!(cache["entries"].as_u64() <= Some(16) && cache["capacity"] == 16, "{cache}");
    assert!(calls(&mut root) >= before + 2 * 180, "keys came from elsewhere than the key service");
    expect_idle_queue(&mut root);
}

/// A prepared transaction outlives every crash, hidden until it is committed; processes that are not ours die too.
#[test]
fn prepared_transactions_survive_the_death_of_any_process() {
    let cluster = Cluster::builder()
        .conf("max_prepared_transactions", "4")
        .conf("hyperion_vault.kms_timeout_ms", "60000")
        .start();
    let vault = cluster.vault();
    let mut ops = vault.ops();
    ops.ask("SELECT vault.create_secret('changed', 'old'); SELECT vault.create_secret('deleted', 'old')");
    ops.ask(
        "BEGIN; SELECT vault.put_secret('changed', 'new'); SELECT vault.create_secret('made', 'new');
         SELECT vault.delete_secret('deleted'); PREPARE TRANSACTION 'yes'",
    );
    ops.ask("BEGIN; SELECT vault.create_secret('undone', 'never'); PREPARE TRANSACTION 'no'");

    // What is sent to the worker as to any session: a cancel costs nobody his request, nor the worker its life.
    let mut root = vault.root();
    let mut witness = cluster.witness();
    let worker = cluster.pid_of("hyperion_vault kms");
    cluster.set_faults("delay_ms=5000");
    let (_, cancelled) = waiting(vault.ops(), "SELECT version FROM vault.create_secret('cancel', 'v')");
    until_processing(&mut root, 1);
    root.ask(&format!("SELECT pg_cancel_backend({worker})"));
    assert_eq!(cancelled.finish(PATIENCE).expect("not its request"), "1");
    cluster.clear_faults();
    assert_eq!(cluster.pid_of("hyperion_vault kms"), worker);
    assert_eq!(status(&mut root)["workers"][0]["starts"], 1);
    witness.assert_survived();
    expect_idle_queue(&mut root);

    for (process, signal) in [
        ("checkpointer", SIGKILL),
        ("walwriter", SIGKILL),
        ("autovacuum launcher", SIGKILL),
        ("hyperion_vault kms", SIGSEGV),
        ("a backend", SIGSEGV),
    ] {
        let mut witness = cluster.witness();
        let mut victim = vault.app();
        let pid = if process == "a backend" { backend_pid(&mut victim) } else { cluster.pid_of(process) };
        cluster.kill_and_wait(pid, signal);
        witness.assert_lost();
        cluster.wait_ready();
        let mut root = vault.root();
        until_running(&mut root, 1);
        let mut app = vault.app();
        let read =
            "SELECT vault.read_secret('changed'), vault.read_secret('deleted'), vault.read_secret('cancel')";
        assert_eq!(app.ask(read), "old|old|v", "{process}");
        for name in ["made", "undone"] {
            sqlstate!(app.try_ask(&format!("SELECT vault.read_secret('{name}')")), "P0002");
        }
        // Whoever changes the same secret waits for the outcome.
        let mut ops = vault.ops();
        ops.ask("SET lock_timeout = '100ms'");
        sqlstate!(ops.try_ask("SELECT vault.put_secret('changed', 'x')"), "55P03");
        expect_idle_queue(&mut root);
    }
    vault.root().ask("COMMIT PREPARED 'yes'");
    vault.root().ask("ROLLBACK PREPARED 'no'");
    let mut app = vault.app();
    assert_eq!(app.ask("SELECT vault.read_secret('changed'), vault.read_secret('made')"), "new|new");
    for name in ["deleted", "undone"] {
        sqlstate!(app.try_ask(&format!("SELECT vault.read_secret('{name}')")), "P0002");
    }
    assert_eq!(vault.ops().ask("SELECT version FROM vault.put_secret('changed', 'newer')"), "3");
}

/// A change of one half of a login needs the other half, and so the old key: it waits for it, and for its own, without
/// a lock, and never brings back what was replaced meanwhile.
#[test]
fn half_a_login_is_changed_without_a_lock_and_without_losing_the_other_half() {
    let cluster = Cluster::builder().conf("hyperion_vault.kms_timeout_ms", "180000").start();
    let vault = cluster.vault();
    let login = "SELECT version, username, password FROM vault.get_secret('login')";
    make_cold(&vault, "SELECT vault.create_secret('login', username => 'u1', password => 'p1')");
    let (mut root, mut app, mut ops) = (vault.root(), vault.app(), vault.ops());
    ops.ask("SET lock_timeout = '5s'; SET statement_timeout = '20s'");
    let late = "SELECT version FROM vault.update_secret('login', password => 'late')";
    let unlocked = |root: &mut Client, pid: i32| {
        let sql = format!("SELECT count(*) FROM pg_locks WHERE pid = {pid} AND locktype <> 'virtualxid'");
        assert_eq!(root.ask(&sql), "0", "a lock is held while waiting for the key service");
    };

    // Cold: it waits for the old key. Each way out leaves the secret as it was.
    cluster.set_faults("hang");
    for how in ["cancel", "terminate"] {
        let client = vault.ops();
        let token = client.cancel_token();
        let (pid, change) = waiting(client, late);
        until_processing(&mut root, 1);
        unlocked(&mut root, pid);
        if how == "cancel" {
            token.cancel_query(NoTls).expect("cannot cancel");
            sqlstate!(change.finish(PATIENCE), "57014", message: "user request");
        } else {
            root.ask(&format!("SELECT pg_terminate_backend({pid})"));
            expect_disconnect(change.finish(PATIENCE));
        }
        expect_idle_queue(&mut root);
    }
    cluster.clear_faults();
    assert_eq!(app.ask(login), "1|u1|p1");

    // Warm: it has read the old value and waits for its own key. Meanwhile the other half changes, or all of it.
    for (meanwhile, expected) in [
        ("vault.update_secret('login', username => 'u2')", "3|u2|late"),
        ("vault.update_secret('login', description => 'd')", "4|u2|late"),
        (
            "vault.delete_secret('login'), vault.create_secret('login', username => 'u3', password => 'p3')",
            "2|u3|late",
        ),
    ] {
        app.ask(login);
        cluster.set_faults("hang=1");
        let (pid, change) = waiting(vault.ops(), late);
        until_processing(&mut root, 1);
        unlocked(&mut root, pid);
        ops.ask(&format!("SELECT {meanwhile}"));
        // Its request goes to the worker's successor.
        cluster.clear_faults();
        cluster.kill_and_wait(cluster.pid_of("hyperion_vault kms"), SIGTERM);
        let version = change.finish(PATIENCE).unwrap_or_else(|error| panic!("{meanwhile}: {error:?}"));
        assert_eq!((app.ask(login), version), (expected.into(), expected[..1].into()), "{meanwhile}");
    }
    expect_idle_queue(&mut root);
}

/// Rewriting tables and indexes under sessions that read and write: nobody sees an error, a gap or another value.
#[test]
fn tables_are_maintained_under_load() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut root = vault.root();
    root.ask("SELECT vault.create_secret('m/' || i, 'value ' || i, grace_period => '1 day') FROM generate_series(0, 99) i");
    root.ask("SELECT vault.put_secret('m/' || i, 'now ' || i) FROM generate_series(0, 99) i");
    let stop = Arc::new(AtomicBool::new(false));
    let session = |user: &str| (Arc::clone(&stop), cluster.config(user, cluster.database()));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (stop, config) = session("app");
            background(move || {
                let mut client = config.connect(NoTls).expect("cannot connect");
                let sql =
                    "SELECT vault.read_secret($1), vault.read_secret($1, 1), (vault.verify($1, $2)).version";
                let read = client.prepare(sql).expect("cannot prepare");
                let mut reads = 0;
                while !stop.load(Relaxed) {
                    let i = reads % 100;
                    let row = client
                        .query_one(&read, &[&format!("m/{i}"), &format!("now {i}")])
                        .unwrap_or_else(|error| panic!("{error:?}"));
                    let got: (String, String, i32) = (row.get(0), row.get(1), row.get(2));
                    assert_eq!(got, (format!("now {i}"), format!("value {i}"), 2));
                    reads += 1;
                }
                reads
            })
        })
        .collect();
    let writer = {
        let (stop, config) = session("ops");
        background(move || {
            let mut client = config.connect(NoTls).expect("cannot connect");
            let mut version = 0;
            while !stop.load(Relaxed) {
                let row = client
                    .query_one("SELECT version FROM vault.put_secret('written', $1)", &[&version.to_string()])
                    .unwrap_or_else(|error| panic!("{error:?}"));
                version += 1;
                assert_eq!(row.get::<_, i32>(0), version);
                if version % 20 == 0 {
                    // As a connection pool does between two users of a session: plans kept are thrown away.
                    client.batch_execute("DISCARD ALL").expect("cannot discard");
                }
            }
            version
        })
    };
    for _ in 0..3 {
        for table in ["secrets", "secret_versions", "vault_meta"] {
            for rewrite in ["REINDEX TABLE CONCURRENTLY", "VACUUM FULL", "REINDEX TABLE"] {
                root.ask(&format!("{rewrite} vault.{table}"));
            }
            root.ask(&format!("CLUSTER vault.{table} USING {table}_pkey"));
            root.ask(&format!("VACUUM (FREEZE, ANALYZE) vault.{table}"));
        }
    }
    stop.store(true, Relaxed);
    let reads: usize = readers.into_iter().map(|reader| reader.finish(PATIENCE)).sum();
    let written = writer.finish(PATIENCE);
    println!("{reads} reads and {written} writes beside 45 rewrites of tables and indexes");
    assert!(reads > 100 && written > 10, "that was no load");
    let last = (written - 1).to_string();
    assert_eq!(root.ask("SELECT vault.read_secret('written')"), last);

    // The role of services' logins plays no part in what the extension does.
    root.ask("ALTER ROLE vault_service RENAME TO misnamed");
    for (call, answer) in [
        ("(vault.create_secret('more', 'x')).version", "1"),
        ("(vault.put_secret('more', 'y')).version", "2"),
        ("count(*) FROM vault.list_secrets('more')", "1"),
        ("vault.read_secret('more')", "y"),
        ("vault.delete_secret('more')", ""),
    ] {
        assert_eq!(root.ask(&format!("SELECT {call}")), answer, "{call}");
    }
    // The roles that give rights give none under another name.
    root.ask("ALTER ROLE vault_reader RENAME TO misnamed_too");
    let read = vault.app().try_ask("SELECT vault.read_secret('written')");
    sqlstate!(read, "42501", message: "permission denied to read");
    root.ask("ALTER ROLE misnamed RENAME TO vault_service; ALTER ROLE misnamed_too RENAME TO vault_reader");
    assert_eq!(vault.app().ask("SELECT vault.read_secret('written')"), last);
}

/// What an administrator is promised for his settings, at three of them.
#[test]
fn shared_memory_is_bounded_by_the_settings() {
    let cluster = Cluster::builder().start();
    cluster.vault();
    for (slots, keys) in [(256, 16_384), (4, 8), (1000, 100_000)] {
        cluster.stage_conf("hyperion_vault.kms_queue_slots", &slots.to_string());
        cluster.stage_conf("hyperion_vault.dek_cache_size", &keys.to_string());
        cluster.restart(StopMode::Fast);
        let status = status(&mut cluster.superuser());
        let bytes = status["shared_memory"]["bytes"].as_u64().expect("a number") as usize;
        let bound = memory::bound(slots, keys);
        println!("kms_queue_slots = {slots}, dek_cache_size = {keys}: {bytes} bytes of at most {bound}");
        assert!(bytes > 0 && bytes <= bound);
        assert!(status["cache"]["capacity"].as_u64() >= Some(keys as u64), "room for what was asked for");
    }
}

/// When a secret is due must not depend on the time zone of whoever made or rotated it.
#[test]
fn due_times_are_the_same_in_every_time_zone() {
    let cluster = Cluster::builder().start();
    let mut ops = cluster.vault().ops();
    ops.ask("SET TimeZone = 'Europe/Berlin'");
    // Of these, at least one crosses a change of the clocks, whatever the date.
    for months in [3, 5, 7] {
        let due = format!(
            "SELECT next_rotation_at = (version_created_at AT TIME ZONE 'UTC' + interval '{months} months') AT TIME ZONE 'UTC'
             FROM vault.create_secret('m{months}', kind => 'automatic', rotation_interval => '{months} months')"
        );
        assert_eq!(ops.ask(&due), "t", "{months} months");
    }
    assert_eq!(ops.ask("SHOW TimeZone"), "Europe/Berlin");
}
