//! Tests of the test harness itself, on plain PostgreSQL: a harness that cannot see a failure proves nothing.
//!
//! They run in the test process, one cluster each, and need no build of the extension.

use hyperion_vault_tests::scan::{Form, Scan, assert_none};
use hyperion_vault_tests::threads::{at_once, background, clients_at_once};
use hyperion_vault_tests::{
    Client, Cluster, ClusterBuilder, LogMark, NoTls, PATIENCE, SIGCONT, SIGKILL, SIGSTOP, SIGTERM, StopMode,
    backend_pid, expect_disconnect, ipv6_loopback_works, random_text, sqlstate, wait_until,
};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn plain() -> ClusterBuilder {
    Cluster::builder().preload(false)
}

fn number(client: &mut Client, sql: &str) -> i32 {
    client.query_one(sql, &[]).unwrap().get(0)
}

/// Whether `f` panics; its message goes to the captured output.
fn fails(f: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(f)).is_err()
}

#[test]
fn starts_serves_restarts_and_leaves_nothing_behind() {
    let cluster = plain().database("odd \"name").start();
    let mut client = cluster.superuser();
    client.batch_execute("CREATE TABLE t AS SELECT 7 AS n").unwrap();
    let row =
        client.query_one("SELECT current_database(), current_setting('server_version_num')", &[]).unwrap();
    assert_eq!(row.get::<_, String>(0), cluster.database());
    assert!(row.get::<_, String>(1).starts_with(&cluster.toolchain().major.to_string()));
    for host in ["127.0.0.1", "::1"].into_iter().take(if ipv6_loopback_works() { 2 } else { 1 }) {
        let mut tcp = cluster.connect_tcp("postgres", "postgres", host);
        let address: String = tcp.query_one("SELECT host(inet_client_addr())", &[]).unwrap().get(0);
        assert_eq!(address, host);
    }
    let socket: Option<String> = client.query_one("SELECT host(inet_client_addr())", &[]).unwrap().get(0);
    assert_eq!(socket, None);

    for mode in [StopMode::Smart, StopMode::Fast, StopMode::Immediate] {
        drop(client);
        cluster.stop(mode);
        assert!(!cluster.is_running() && cluster.processes().is_empty());
        cluster.start_again();
        client = cluster.superuser();
        assert_eq!(number(&mut client, "SELECT n FROM t"), 7);
    }
    cluster.kill_postmaster_9();
    assert!(!cluster.is_running());
    cluster.start_again();
    assert_eq!(number(&mut cluster.superuser(), "SELECT n FROM t"), 7);

    let (dir, processes) = (cluster.dir().to_owned(), cluster.processes());
    assert!(dir.exists() && processes.len() > 3);
    drop(cluster);
    assert!(!dir.exists() && processes.iter().all(|process| !process.is_running()));
}

#[test]
fn a_witness_tells_a_crash_restart_from_an_orderly_death() {
    let cluster = plain().start();
    let mut witness = cluster.witness();

    let mut ended = cluster.superuser();
    cluster.kill_and_wait(backend_pid(&mut ended), SIGTERM);
    expect_disconnect(ended.simple_query("SELECT 1"));
    witness.assert_survived();
    cluster.kill_and_wait(cluster.pid_of("autovacuum launcher"), SIGTERM);
    witness.assert_survived();
    assert!(fails(|| witness.assert_lost()));

    // The slow postmaster has not heard of the death yet when the witness is asked.
    let cluster = Arc::new(cluster);
    for slow in [true, false, false, false] {
        let mut witness = cluster.witness();
        let mut killed = cluster.superuser();
        let pid = backend_pid(&mut killed);
        if slow {
            cluster.signal_postmaster(SIGSTOP);
        }
        cluster.kill_and_wait(pid, SIGKILL);
        let shared = Arc::clone(&cluster);
        let waker = background(move || {
            std::thread::sleep(Duration::from_millis(300));
            shared.signal_postmaster(SIGCONT);
        });
        witness.assert_lost();
        waker.finish(PATIENCE);
        assert!(fails(|| witness.assert_survived()));
        cluster.wait_ready();
        cluster.witness().assert_survived();
    }
}

#[test]
fn signals_reach_only_processes_of_this_server() {
    /// The null signal of kill(2): were the guard broken, this test would still do no damage.
    const HARMLESS: i32 = 0;
    let (cluster, other) = (plain().start(), plain().start());
    let mut witness = other.witness();
    let strangers = [
        1,
        i32::try_from(std::process::id()).unwrap(),
        0,
        -1,
        other.postmaster_pid(),
        backend_pid(&mut other.superuser()),
        other.pid_of("checkpointer"),
    ];
    for pid in strangers {
        assert!(fails(|| cluster.kill(pid, HARMLESS)), "signalled {pid}");
    }
    cluster.kill(cluster.pid_of("checkpointer"), HARMLESS);
    cluster.kill_and_wait(cluster.pid_of("autovacuum launcher"), SIGTERM);
    witness.assert_survived();
    assert_eq!(cluster.pids("checkpointer").len(), 1);
    assert!(cluster.pids("no such process").is_empty());
}

#[test]
fn two_clusters_live_side_by_side() {
    let pair = at_once(2, Duration::from_secs(120), |_| (), |_, ()| plain().start());
    assert_ne!(pair[0].port(), pair[1].port());
    for (i, cluster) in pair.iter().enumerate() {
        cluster.superuser().batch_execute(&format!("CREATE TABLE t AS SELECT {i} AS n")).unwrap();
    }
    pair[0].restart(StopMode::Fast);
    for (i, cluster) in pair.iter().enumerate() {
        let mut tcp = cluster.connect_tcp("postgres", "postgres", "127.0.0.1");
        assert_eq!(number(&mut tcp, "SELECT n FROM t"), i32::try_from(i).unwrap());
    }
}

#[test]
fn settings_take_effect_before_the_call_returns() {
    let cluster = plain().conf("application_name", "it's a \\ test").max_connections(17).start();
    assert_eq!(cluster.show("max_connections"), "17");
    let mut open = cluster.superuser();
    for i in 1..=20 {
        cluster.set_conf("lock_timeout", &i.to_string());
        assert_eq!(cluster.show("lock_timeout"), format!("{i}ms"));
        let seen: String = open.query_one("SHOW lock_timeout", &[]).unwrap().get(0);
        assert_eq!(seen, format!("{i}ms"), "in a session that was open before");
    }
    cluster.set_conf("statement_timeout", "200");
    sqlstate!(open.simple_query("SELECT pg_sleep(60)"), "57014");
    cluster.set_conf("default_transaction_read_only", "on");
    cluster.reset_conf("statement_timeout");
    assert_eq!(cluster.show("statement_timeout"), "0");
    assert_eq!(cluster.show("default_transaction_read_only"), "on");
    cluster.reset_conf("default_transaction_read_only");

    sqlstate!(cluster.try_set_conf("work_mem", "many"), "22023", message: "work_mem");
    assert!(fails(|| cluster.set_conf("max_connections", "18")), "it needs a restart");
    cluster.restart(StopMode::Fast);
    assert_eq!(cluster.show("max_connections"), "18");

    let mark = cluster.log_mark();
    cluster.append_conf("work_mem", "many");
    cluster.reload();
    cluster.wait_for_log(mark, "invalid value for parameter \"work_mem\"", PATIENCE);
    assert!(
        !cluster.log_contains(cluster.log_mark(), "work_mem")
            && cluster.log_contains(LogMark::START, "work_mem")
    );
    cluster.stop(StopMode::Fast);
    let Err(failure) = cluster.try_start_again() else { panic!("started with a wrong setting") };
    assert!(failure.log.contains("work_mem"), "{failure:?}");
}

#[test]
fn a_scan_finds_what_is_there_and_only_that() {
    let cluster = plain().start();
    let planted = Scan::plant(&cluster);
    let mut client = cluster.superuser();
    let sql = "CREATE TABLE leak (t text); CREATE TABLE unlogged_leak (b bytea)";
    client.batch_execute(sql).unwrap();
    client.execute("INSERT INTO leak VALUES ($1)", &[&"a value in a table"]).unwrap();
    client
        .execute("INSERT INTO leak VALUES (encode($1, 'base64'))", &[&&b"\x01 a value in base64"[..]])
        .unwrap();
    let long = random_text(9000);
    client.execute("INSERT INTO leak VALUES ($1)", &[&long]).unwrap();

    let values = [("table", "a value in a table"), ("base64", "a value in base64"), ("long", &long)];
    let scan = planted.look_for(values.into_iter().chain([("absent", "a value that is nowhere")]));
    let hits = scan.data_directory(&cluster);
    for (label, part) in
        [("table", "/base/"), ("table", "/pg_wal/"), ("base64", "/base/"), ("long", "/base/")]
    {
        assert!(hits.iter().any(|hit| hit.needle == label && hit.place.contains(part)), "{label} in {part}");
    }
    assert!(hits.iter().all(|hit| hit.needle != "absent"));
    assert!(hits.iter().all(|hit| (hit.form == Form::Base64) == (hit.needle == "base64")));
    assert!(fails(|| assert_none(&hits)));
    assert!(scan.dump(&cluster).iter().any(|hit| hit.needle == "table"));
    assert_none(&planted.look_for([("absent", "a value that is nowhere")]).data_directory(&cluster));

    cluster.stop(StopMode::Fast);
    assert_none(&planted.look_for([("absent", "a value that is nowhere")]).data_directory(&cluster));
    std::fs::remove_dir_all(cluster.data_dir().join("pg_wal")).unwrap();
    assert!(fails(|| drop(scan.data_directory(&cluster))), "a search without the WAL is blind");
}

#[test]
fn a_hang_fails_the_test_instead_of_holding_it_up() {
    let begun = Instant::now();
    let cluster = plain().time_limit(Duration::from_secs(20)).start();
    assert!(fails(|| {
        let limit = Duration::from_secs(1);
        clients_at_once(&cluster, "postgres", 3, limit, |i, mut client| {
            client.simple_query(if i == 1 { "SELECT pg_sleep(600)" } else { "SELECT 1" }).map(drop)
        });
    }));
    let config = cluster.config("postgres", "postgres");
    let sleeper =
        background(move || config.connect(NoTls).unwrap().simple_query("SELECT pg_sleep(600)").is_err());
    assert!(fails(|| drop(cluster.superuser().simple_query("SELECT pg_sleep(600)").unwrap())));
    assert!(sleeper.finish(PATIENCE), "the sleeper should have lost its server");
    assert!((15..60).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    assert!(fails(move || drop(cluster)), "a test that swallows the error must still fail");
}

#[test]
fn clients_run_at_once_and_report_in_order() {
    let cluster = plain().max_connections(40).start();
    let limit = Duration::from_secs(60);
    let begun = Instant::now();
    let pids = clients_at_once(&cluster, "postgres", 30, limit, |i, mut client| {
        client.simple_query("SELECT pg_sleep(2)").unwrap();
        (i, backend_pid(&mut client))
    });
    assert!(begun.elapsed() < Duration::from_secs(40), "one after the other: {:?}", begun.elapsed());
    assert_eq!(pids.iter().map(|(i, _)| *i).collect::<Vec<_>>(), (0..30).collect::<Vec<_>>());
    assert_eq!(pids.iter().map(|(_, pid)| pid).collect::<std::collections::BTreeSet<_>>().len(), 30);
    let failing = |i: usize, ()| assert_ne!(i, 3);
    assert!(fails(|| drop(at_once(5, limit, |_| (), failing))));
    assert!(fails(|| drop(at_once(5, limit, |i| assert_ne!(i, 3), |_, ()| ()))));
}

#[test]
fn a_statement_can_be_cancelled_from_outside() {
    let cluster = plain().start();
    let mut client = cluster.superuser();
    let (token, pid) = (client.cancel_token(), backend_pid(&mut client));
    let waiting = background(move || client.simple_query("SELECT pg_sleep(600)").map(drop));
    let active =
        format!("SELECT count(*)::int FROM pg_stat_activity WHERE pid = {pid} AND wait_event = 'PgSleep'");
    assert!(wait_until(PATIENCE, || number(&mut cluster.superuser(), &active) == 1));
    token.cancel_query(NoTls).unwrap();
    sqlstate!(waiting.finish(PATIENCE), "57014", message: "user request");
}

#[test]
fn psql_runs_scripts_and_tells_failure() {
    let cluster = plain().database("elsewhere").start();
    let output = cluster.psql("SELECT current_user, current_database();\n\\echo läuft\n").success();
    assert_eq!(output.text(), "postgres|elsewhere\nläuft\n");
    let output = cluster.psql("SELECT 1/0; SELECT 2;");
    assert_eq!(output.status.code(), Some(3));
    assert!(output.text().is_empty() && output.errors().contains("division by zero"));
    assert!(fails(|| drop(output.success())));
    assert_eq!(
        cluster
            .psql(&"SELECT 'a long answer to a long script';\n".repeat(20_000))
            .success()
            .text()
            .lines()
            .count(),
        20_000
    );
}

#[test]
fn errors_of_another_kind_do_not_pass() {
    let cluster = plain().start();
    let mut client = cluster.superuser();
    let sql =
        "DO $$ BEGIN RAISE 'm' USING ERRCODE = '55000', DETAIL = 'some facts', HINT = 'Set it.'; END $$";
    let error = sqlstate!(client.batch_execute(sql), "55000", message: "m", detail: "facts", hint: "Set");
    assert_eq!(error.hint(), Some("Set it."));
    assert!(fails(|| drop(sqlstate!(client.batch_execute(sql), "22023"))));
    assert!(fails(|| drop(sqlstate!(client.batch_execute(sql), "55000", hint: "Unset"))));
    assert!(fails(|| drop(sqlstate!(client.batch_execute("SELECT 1"), "55000"))));
    assert!(
        fails(|| drop(sqlstate!(client.batch_execute("SELECT 1/0"), "22012", detail: "x"))),
        "no detail at all"
    );
}

#[test]
fn a_preloaded_cluster_is_configured_for_the_vault() {
    // Whether or not the library is installed, the server gets as far as trying to load it.
    let outcome = Cluster::builder().conf("shared_preload_libraries", "no_such_library").try_start();
    let Err(failure) = outcome else { panic!("started without its library") };
    assert!(failure.log.contains("no_such_library"), "{failure:?}");

    let cluster =
        Cluster::builder().conf("shared_preload_libraries", "").allowed_ips("local,10.0.0.0/8").start();
    assert_eq!(cluster.show("hyperion_vault.kms_mode"), "local");
    assert_eq!(cluster.show("hyperion_vault.allowed_ips"), "local,10.0.0.0/8");
    let key = cluster.show("hyperion_vault.local_master_key_file");
    assert_eq!(std::path::Path::new(&key), cluster.key_path());
    assert!(!key.starts_with(cluster.data_dir().to_str().unwrap()));
    // As the server sees it: readable by its user, 32 bytes.
    let size = format!("SELECT size::int FROM pg_stat_file('{key}')");
    assert_eq!(number(&mut cluster.superuser(), &size), 32);
    let mode =
        std::fs::metadata(&key).map(|meta| std::os::unix::fs::MetadataExt::mode(&meta) & 0o7777).unwrap();
    assert_eq!(mode, 0o600);
}
