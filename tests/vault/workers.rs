//! The launcher and the workers of the vault's database: when they come, when they go, and what they never hold up.
//!
//! Runs in the test process.

use std::time::{Duration, Instant};

use crate::watch::status;
use hyperion_vault_tests::{
    Ask, Client, Cluster, PATIENCE, SIGKILL, SIGTERM, StopMode, sqlstate, wait_for, wait_until,
};

const LAUNCHER: &str = "hyperion_vault launcher";
const MAINTENANCE: &str = "hyperion_vault maintenance";
const RELAY: &str = "hyperion_vault relay";
/// A worker is back a second after its end, or at once after a command it made room for; the rest is the machine.
const SOON: Duration = Duration::from_secs(5);

/// What `vault.status()` says of a worker.
fn shown(root: &mut Client, name: &str) -> serde_json::Value {
    let workers = status(root)["workers"].take();
    let found = workers.as_array().and_then(|all| all.iter().find(|worker| worker["name"] == name).cloned());
    found.unwrap_or_else(|| panic!("{name} is not among {workers}"))
}

/// Waits until `look` finds a process that is not `before`; returns it and how long that took.
#[track_caller]
fn another(title: &str, before: Option<i32>, mut look: impl FnMut() -> Option<i32>) -> (i32, Duration) {
    let begun = Instant::now();
    let mut found = None;
    wait_for(&format!("another {title}"), PATIENCE, || {
        found = look();
        found.is_some() && found != before
    });
    (found.expect("just found"), begun.elapsed())
}

/// Waits until a worker runs whose process is not `before`; returns its process and how long that took.
#[track_caller]
fn next(cluster: &Cluster, title: &str, before: Option<i32>) -> (i32, Duration) {
    another(title, before, || cluster.pids(title).first().copied())
}

/// As [`next`], and the worker has found the extension: one that comes to look and finds none does not count.
#[track_caller]
fn next_at_work(cluster: &Cluster, title: &str, before: Option<i32>) -> (i32, Duration) {
    let mut elsewhere = cluster.connect("postgres", "template1");
    // It reports neither before it has found it.
    let sql = format!(
        "SELECT pid FROM pg_stat_activity WHERE backend_type = '{title}' AND state IN ('active', 'idle')"
    );
    another(title, before, || elsewhere.ask(&sql).parse().ok())
}

/// Waits until there is no maintenance worker. One that comes to look for the extension is gone at once; one that stays
/// fails the test.
#[track_caller]
fn nobody_stays(cluster: &Cluster) {
    wait_for("the worker to be gone", PATIENCE, || cluster.pids(MAINTENANCE).is_empty());
}

/// Sessions of our workers in the vault's database.
fn inside(elsewhere: &mut Client) -> String {
    elsewhere.ask(
        "SELECT coalesce(string_agg(backend_type, ',' ORDER BY backend_type), '') FROM pg_stat_activity
          WHERE datname = 'postgres' AND backend_type LIKE 'hyperion_vault%'",
    )
}

/// The log without what may be in it: connections that came too early, and a worker that was met in the middle of a
/// statement by a command that wants it gone, which ends as every session does.
fn log(cluster: &Cluster) -> String {
    let expected = |line: &&str| {
        line.ends_with("is starting up")
            || line.contains("hyperion_vault ")
                && (line.contains("terminating background worker")
                    || line.ends_with("exited with exit code 1"))
    };
    cluster.log().lines().filter(|line| !expected(line)).collect::<Vec<_>>().join("\n")
}

#[test]
fn workers_come_with_the_extension_and_go_with_it() {
    let cluster = Cluster::builder().start();
    cluster.pid_of(LAUNCHER);
    let mut root = cluster.superuser();
    // Looked for once or twice by now, and not found: without a word.
    std::thread::sleep(Duration::from_secs(2));
    nobody_stays(&cluster);

    let mut before = None;
    for round in 0..3 {
        root.ask("CREATE EXTENSION hyperion_vault");
        let (pid, took) = next_at_work(&cluster, MAINTENANCE, before);
        assert!(took < SOON, "round {round}: the worker came after {took:?}");
        wait_for("the worker to be idle, which means without locks", PATIENCE, || {
            let sql = format!(
                "SELECT concat_ws(' ', state, datname, application_name, usename, (SELECT count(*) FROM pg_locks l WHERE l.pid = a.pid))
                   FROM pg_stat_activity a WHERE pid = {pid}"
            );
            root.ask(&sql) == format!("idle postgres {MAINTENANCE} postgres 0")
        });
        let worker = shown(&mut root, MAINTENANCE);
        assert_eq!((&worker["running"], &worker["pid"]), (&true.into(), &pid.into()), "{worker}");
        assert_eq!(shown(&mut root, LAUNCHER)["running"], true);

        // Dropped and not: it comes back.
        root.ask("BEGIN; DROP EXTENSION hyperion_vault; ROLLBACK");
        let (pid, took) = next_at_work(&cluster, MAINTENANCE, Some(pid));
        assert!(took < SOON, "{took:?}");
        wait_for("the worker's session", PATIENCE, || inside(&mut root).contains(MAINTENANCE));
        let begun = Instant::now();
        root.ask("DROP EXTENSION hyperion_vault");
        assert!(begun.elapsed() < SOON, "dropped after {:?}", begun.elapsed());
        nobody_stays(&cluster);
        before = Some(pid);
    }
    std::thread::sleep(Duration::from_secs(1));
    nobody_stays(&cluster);
    let log = log(&cluster);
    for word in ["FATAL", "WARNING", "exit code", "terminating background worker"] {
        assert!(!log.contains(word), "{word} in\n{log}");
    }
}

#[test]
fn commands_that_want_the_database_for_themselves_have_it() {
    // The server sends an autovacuum worker away as it does others, with a line in the log.
    let cluster = Cluster::builder().conf("autovacuum", "off").start();
    let vault = cluster.vault();
    vault.ops().ask("SELECT vault.create_secret('a', 'v')");
    let places = cluster.dir().join("sock/place");
    let mut elsewhere = cluster.connect("postgres", "template1");
    elsewhere.ask("CREATE ROLE stranger LOGIN; SET statement_timeout = '20s'");
    cluster.make_server_directory(&places);
    elsewhere.ask(&format!("CREATE TABLESPACE place LOCATION '{}'", places.display()));
    let come = |before: Option<i32>| {
        let (pid, took) = next(&cluster, MAINTENANCE, before);
        assert!(took < SOON, "back after {took:?}");
        wait_for("the worker's session", PATIENCE, || {
            let sql =
                format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND datname = 'postgres'");
            cluster.connect("postgres", "template1").ask(&sql) == "1"
        });
        pid
    };
    let mut pid = come(None);
    // Client sessions of `vault()` are on their way out.
    let alone = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'postgres' AND backend_type = 'client backend'";
    wait_for("the sessions to end", PATIENCE, || elsewhere.ask(alone) == "0");

    for sql in [
        "CREATE DATABASE copy TEMPLATE postgres",
        "CREATE DATABASE copy2 TEMPLATE = postgres STRATEGY = file_copy",
        "ALTER DATABASE postgres SET TABLESPACE place",
        "BEGIN; ALTER DATABASE postgres RENAME TO moved; ROLLBACK",
        "DO $$ BEGIN ALTER DATABASE postgres RENAME TO moved; ALTER DATABASE moved RENAME TO postgres; END $$",
    ] {
        let begun = Instant::now();
        // Were anybody in the way, the server would say so.
        elsewhere.ask(sql);
        println!("{sql}: {:?}", begun.elapsed());
        pid = come(Some(pid));
    }
    // A command that fails after it got what it wanted.
    sqlstate!(elsewhere.try_ask("ALTER DATABASE postgres RENAME TO copy"), "42P04");
    pid = come(Some(pid));
    sqlstate!(elsewhere.try_ask("ALTER DATABASE postgres SET TABLESPACE nowhere"), "42704");
    pid = come(Some(pid));

    // While it is renamed there is nobody to work for; the worker does not come, and nothing is said.
    elsewhere.ask("BEGIN; ALTER DATABASE postgres RENAME TO moved");
    std::thread::sleep(Duration::from_millis(1500));
    assert!(cluster.pids(MAINTENANCE).is_empty(), "held off to the end of the transaction");
    elsewhere.ask("COMMIT");
    std::thread::sleep(Duration::from_millis(1500));
    assert!(cluster.pids(MAINTENANCE).is_empty());
    elsewhere.ask("ALTER DATABASE moved RENAME TO postgres");
    pid = come(Some(pid));

    // Who asked for it dies in the middle.
    let mut asker = cluster.connect("postgres", "template1");
    asker.ask("BEGIN; ALTER DATABASE postgres RENAME TO moved");
    nobody_stays(&cluster);
    let asker_pid = hyperion_vault_tests::backend_pid(&mut asker);
    elsewhere.ask(&format!("SELECT pg_terminate_backend({asker_pid})"));
    pid = come(Some(pid));

    // Not for those who may not.
    let mut stranger = cluster.connect("stranger", "template1");
    for sql in [
        "DROP DATABASE postgres",
        "ALTER DATABASE postgres RENAME TO mine",
        "CREATE DATABASE mine TEMPLATE postgres",
        "ALTER DATABASE postgres SET TABLESPACE place",
    ] {
        sqlstate!(stranger.try_ask(sql), "42501");
    }
    elsewhere.ask("ALTER ROLE stranger CREATEDB");
    sqlstate!(stranger.try_ask("CREATE DATABASE mine TEMPLATE postgres"), "42501");
    sqlstate!(cluster.connect("stranger", "postgres").try_ask("DROP EXTENSION hyperion_vault"), "42501");
    assert_eq!(cluster.pids(MAINTENANCE), [pid], "they did not move it");

    wait_for("the sessions to end", PATIENCE, || elsewhere.ask(alone) == "0");
    elsewhere.ask("DROP DATABASE postgres");
    std::thread::sleep(Duration::from_millis(1500));
    assert!(cluster.pids(MAINTENANCE).is_empty());
    elsewhere.ask("ALTER DATABASE copy RENAME TO postgres");
    pid = come(Some(pid));
    // So long ago that nobody looks every other second any more; whoever makes it says so.
    elsewhere.ask("DROP DATABASE postgres");
    std::thread::sleep(Duration::from_millis(8000));
    elsewhere.ask("CREATE DATABASE postgres TEMPLATE copy2");
    come(Some(pid));
    assert_eq!(cluster.connect("app", "postgres").ask("SELECT vault.read_secret('a')"), "v");
    let log = log(&cluster);
    // The asker's own end is the only one of its kind.
    assert_eq!(log.matches("FATAL").count(), 1, "{log}");
    for word in ["exit code", "terminating background worker", "PANIC"] {
        assert!(!log.contains(word), "{word} in\n{log}");
    }
}

/// Nobody uses the vault; the first worker has yet to find the extension when the others are thought of.
#[test]
fn all_workers_come_soon_after_a_start() {
    let cluster = Cluster::builder().start();
    cluster.vault();
    for round in 0..5 {
        cluster.restart(StopMode::Fast);
        let begun = Instant::now();
        cluster.pid_of(RELAY);
        cluster.pid_of(MAINTENANCE);
        assert!(begun.elapsed() < SOON, "round {round}: after {:?}", begun.elapsed());
    }
}

/// Only the first worker says whether there is an extension: another's start that failed does not outlast the reason.
#[test]
fn what_one_worker_does_not_find_says_nothing_of_the_others() {
    let cluster = Cluster::builder().conf("hyperion_vault.scan_interval_secs", "3600").start();
    cluster.vault();
    let (relay, maintenance) = (cluster.pid_of(RELAY), cluster.pid_of(MAINTENANCE));
    let mut elsewhere = cluster.connect("postgres", "template1");
    elsewhere.ask("ALTER DATABASE postgres ALLOW_CONNECTIONS false");
    cluster.kill_and_wait(relay, SIGTERM);
    // It is to be started a second later, and cannot.
    std::thread::sleep(Duration::from_millis(2500));
    elsewhere.ask("ALTER DATABASE postgres ALLOW_CONNECTIONS true");
    next(&cluster, RELAY, Some(relay));
    assert_eq!(cluster.pids(MAINTENANCE), [maintenance]);
}

#[test]
fn each_worker_comes_back_after_an_orderly_death() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut root = vault.root();
    let mut witness = cluster.witness();
    next(&cluster, MAINTENANCE, None);
    for how in ["terminate", "SIGTERM", "cancel"] {
        for title in [MAINTENANCE, LAUNCHER] {
            wait_for("its session", PATIENCE, || {
                root.ask(&format!("SELECT count(*) FROM pg_stat_activity WHERE backend_type = '{title}'"))
                    == "1"
            });
            let pid = cluster.pid_of(title);
            match how {
                "terminate" => {
                    assert_eq!(root.ask(&format!("SELECT pg_terminate_backend({pid}, 5000)")), "t")
                }
                "SIGTERM" => cluster.kill_and_wait(pid, SIGTERM),
                _ => {
                    let sleeps = format!(
                        "SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND wait_event_type = 'Extension'"
                    );
                    wait_for("it to sleep", PATIENCE, || root.ask(&sleeps) == "1");
                    root.ask(&format!("SELECT pg_cancel_backend({pid})"));
                    std::thread::sleep(Duration::from_millis(300));
                    assert_eq!(cluster.pids(title), [pid], "nothing to cancel");
                    continue;
                }
            }
            let (_, took) = next(&cluster, title, Some(pid));
            assert!(took < SOON, "{title} was back after {took:?}");
        }
    }
    // A launcher that comes back finds the worker that is there.
    let (launcher, worker) = (cluster.pid_of(LAUNCHER), cluster.pid_of(MAINTENANCE));
    cluster.kill_and_wait(launcher, SIGTERM);
    next(&cluster, LAUNCHER, Some(launcher));
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(cluster.pids(MAINTENANCE), [worker]);
    // Both at once.
    let launcher = cluster.pid_of(LAUNCHER);
    root.ask(&format!("SELECT pg_terminate_backend({launcher}), pg_terminate_backend({worker})"));
    next(&cluster, LAUNCHER, Some(launcher));
    next(&cluster, MAINTENANCE, Some(worker));
    witness.assert_survived();
    wait_for("its post", PATIENCE, || shown(&mut root, MAINTENANCE)["running"] == true);
    let shown = shown(&mut root, MAINTENANCE);
    assert_eq!(
        (&shown["running"], &shown["last_error"]),
        (&true.into(), &serde_json::Value::Null),
        "{shown}"
    );

    // SIGKILL takes the server along, and all come back with it.
    for title in [MAINTENANCE, LAUNCHER] {
        let pid = cluster.pid_of(title);
        cluster.kill_and_wait(pid, SIGKILL);
        witness.assert_lost();
        cluster.wait_ready();
        witness = cluster.witness();
        next(&cluster, LAUNCHER, Some(pid));
        next(&cluster, MAINTENANCE, Some(pid));
    }

    for mode in [StopMode::Smart, StopMode::Fast, StopMode::Immediate] {
        drop(witness);
        let begun = Instant::now();
        cluster.stop(mode);
        println!("{mode:?} shutdown: {:?}", begun.elapsed());
        assert!(begun.elapsed() < SOON, "{mode:?} shutdown took {:?}", begun.elapsed());
        cluster.start_again();
        next(&cluster, MAINTENANCE, None);
        witness = cluster.witness();
    }
}

#[test]
fn a_standby_has_its_own_and_promotion_needs_no_restart() {
    let primary = Cluster::builder().start();
    let standby = primary.standby();
    primary.vault();
    standby.wait_replayed(&primary);
    // The first call in a session says that there is an extension.
    let mut here = standby.connect("app", "postgres");
    here.ask("SELECT count(*) FROM vault.list_secrets()");
    let (pid, took) = next_at_work(&standby, MAINTENANCE, None);
    assert!(took < SOON, "{took:?}");
    // Replaying a DROP DATABASE ends sessions by itself; dropping the extension needs the worker's locks gone.
    primary.superuser().ask("DROP EXTENSION hyperion_vault; CREATE EXTENSION hyperion_vault");
    standby.wait_replayed(&primary);
    primary.stop(StopMode::Immediate);
    standby.superuser().ask("SELECT pg_promote()");
    assert_eq!(here.ask("SELECT vault.status() -> 'in_recovery'"), "false");
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(standby.pids(MAINTENANCE), [pid], "the same process goes on");
}

#[test]
fn what_is_missing_is_told_once() {
    // The launchers of ours and of logical replication, and the key service's worker, take all there are.
    let cluster = Cluster::builder().conf("max_worker_processes", "3").start();
    cluster.vault();
    let mut root = cluster.superuser();
    let told = wait_until(PATIENCE, || {
        shown(&mut root, MAINTENANCE)["last_error"]
            .as_str()
            .is_some_and(|error| error.contains("max_worker_processes"))
    });
    assert!(told, "{}", shown(&mut root, MAINTENANCE));
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(cluster.log().matches("could not start \"hyperion_vault maintenance\"").count(), 1);

    let cluster = Cluster::builder().conf("hyperion_vault.database", "nowhere").start();
    std::thread::sleep(Duration::from_secs(4));
    let log = log(&cluster);
    assert!(!log.contains("nowhere") && !log.contains("FATAL"), "{log}");
    cluster.superuser().ask("CREATE DATABASE nowhere");
    cluster.connect("postgres", "nowhere").ask("CREATE EXTENSION hyperion_vault");
    let (_, took) = next(&cluster, MAINTENANCE, None);
    assert!(took < SOON, "{took:?}");
}
