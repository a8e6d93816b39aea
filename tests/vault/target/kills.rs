//! SIGKILL of the rotating session, of the workers that rotate what is due, and of the postmaster, at random points: what the
//! vault says and what the server accepts are the same afterwards. Runs in the test process.
//!
//! `HYPERION_VAULT_TEST_KILLS` raises the number of deaths (default 20 of sessions, 8 of workers).

use std::time::Duration;

use super::{agrees, builder, prepare, secret_for_svc};
use hyperion_vault_tests::threads::{Background, background};
use hyperion_vault_tests::{Ask, Client, Cluster, PATIENCE, SIGKILL, backend_pid, random_bytes, wait_for};

const NAMES: [&str; 3] = ["db/svc", "db/app", "hooked"];

fn deaths(usual: usize) -> usize {
    std::env::var("HYPERION_VAULT_TEST_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

/// Rotates all three, in one transaction each or in one for all, until the session dies. Returns the versions that were
/// acknowledged last.
fn rotate_until_death(mut client: Client, together: bool) -> Background<[i32; 3]> {
    background(move || {
        let mut acknowledged = [0; 3];
        loop {
            if together {
                let sql =
                    "SELECT (vault.rotate_secret(n)).version FROM unnest('{db/svc,db/app,hooked}'::text[]) n";
                let Ok(rows) = client.query(sql, &[]) else { return acknowledged };
                for (place, row) in acknowledged.iter_mut().zip(rows) {
                    *place = row.get(0);
                }
            } else {
                for (name, place) in NAMES.iter().zip(&mut acknowledged) {
                    let Ok(row) = client.query_one("SELECT (vault.rotate_secret($1)).version", &[name])
                    else {
                        return acknowledged;
                    };
                    *place = row.get(0);
                }
            }
        }
    })
}

fn sound(cluster: &Cluster, acknowledged: [i32; 3], what: &str) {
    let (mut root, mut app) = (cluster.superuser(), cluster.connect("app", cluster.database()));
    assert!(agrees(cluster, &mut app, "db/svc"), "{what}: the role");
    assert!(agrees(cluster, &mut app, "db/app"), "{what}: the pair");
    // What the hook was given, and for which versions: each once, in order, the last one current.
    let current = app.ask("SELECT version, value FROM vault.get_secret('hooked')");
    assert_eq!(
        root.ask("SELECT version, value FROM app.seen ORDER BY version DESC LIMIT 1"),
        current,
        "{what}: the hook"
    );
    assert_eq!(
        root.ask("SELECT count(*) = max(version) AND count(DISTINCT version) = count(*) FROM app.seen"),
        "t",
        "{what}"
    );
    for (name, acknowledged) in NAMES.iter().zip(acknowledged) {
        // Kept: all of them (see keep_versions below).
        let versions = root.ask(&format!("SELECT max(version), count(*) FROM vault.list_versions('{name}')"));
        let (newest, count) = versions.split_once('|').expect("two columns");
        assert_eq!(newest, count, "{what}: {name} has a gap or a double");
        assert!(
            newest.parse::<i32>().expect("a number") >= acknowledged,
            "{what}: {name} lost what was acknowledged"
        );
    }
}

#[test]
fn a_killed_rotation_is_whole_or_not_there() {
    let cluster =
        builder().conf("hyperion_vault.keep_versions", "1000").time_limit(Duration::from_secs(3600)).start();
    let vault = prepare(&cluster);
    let mut keeper = secret_for_svc(&vault);
    vault.root().batch_execute(
        "GRANT vault_reader TO keeper; CREATE SCHEMA app AUTHORIZATION keeper; SET ROLE keeper; CREATE TABLE app.seen (version int, value text);
         CREATE FUNCTION app.on_rotate(name text, version int) RETURNS void LANGUAGE sql AS
           $$ INSERT INTO app.seen VALUES (version, vault.read_secret(name)) $$",
    ).unwrap();
    keeper.ask("SELECT vault.create_secret('db/app', generator => '{}', target => '{\"type\":\"postgres_role_pair\",\"roles\":[\"app_a\",\"app_b\"]}')");
    keeper.ask("SELECT vault.create_secret('hooked', generator => '{}', target => '{\"type\":\"function\",\"function\":\"app.on_rotate\"}')");
    drop(keeper);

    let (mut rotated, mut last) = (0, [1; 3]);
    for death in 0..deaths(20) {
        let mut client = vault.ops();
        let pid = backend_pid(&mut client);
        let rotating = rotate_until_death(client, death % 2 == 0);
        // A rotation takes some 10 ms, the first of a session more; anywhere in the first few.
        let random = u16::from_le_bytes(random_bytes::<2>());
        std::thread::sleep(Duration::from_millis(30 + u64::from(random) % 120));
        let what = if death % 3 == 2 {
            cluster.kill_postmaster_9();
            cluster.start_again();
            format!("death {death}, of the postmaster")
        } else {
            cluster.kill_and_wait(pid, SIGKILL);
            cluster.wait_ready();
            format!("death {death}, of the session")
        };
        let acknowledged = rotating.finish(PATIENCE);
        rotated += acknowledged.iter().zip(last).map(|(now, before)| (now - before).max(0)).sum::<i32>();
        last = [0, 1, 2].map(|i| acknowledged[i].max(last[i]));
        sound(&cluster, last, &what);
    }
    println!("{} deaths, {rotated} rotations acknowledged", deaths(20));
    assert!(rotated > 0, "nothing was rotated: the deaths prove nothing");
}

#[test]
fn a_killed_worker_leaves_each_due_rotation_whole_and_once() {
    let cluster = builder()
        .conf("hyperion_vault.scan_interval_secs", "1")
        .conf("hyperion_vault.keep_versions", "1000")
        .time_limit(Duration::from_secs(3600))
        .start();
    let vault = prepare(&cluster);
    vault
        .root()
        .batch_execute(
            "GRANT vault_reader TO keeper; CREATE SCHEMA app AUTHORIZATION keeper; SET ROLE keeper;
             CREATE TABLE app.seen (version int, value text);
             CREATE FUNCTION app.on_rotate(name text, version int) RETURNS void LANGUAGE plpgsql AS $$
             BEGIN
                 INSERT INTO app.seen VALUES (version, vault.read_secret(name, version));
                 PERFORM pg_sleep(0.2);
             END $$",
        )
        .unwrap();
    let mut keeper = vault.session("keeper");
    for (name, target) in [
        ("db/svc", r#"{"type":"postgres_role","role":"svc"}"#),
        ("db/app", r#"{"type":"postgres_role_pair","roles":["app_a","app_b"]}"#),
        ("hooked", r#"{"type":"function","function":"app.on_rotate"}"#),
    ] {
        keeper.ask(&format!(
            "SELECT vault.create_secret('{name}', kind => 'automatic', rotation_interval => '30 days',
               grace_period => '100 milliseconds', target => '{target}')"
        ));
    }
    drop(keeper);
    let done = |version: usize| format!("SELECT count(*) FROM vault.secrets WHERE version = {version}");
    let mut in_the_middle = 0;
    for death in 0..deaths(8) {
        let mut root = vault.root();
        root.ask("UPDATE vault.secrets SET next_rotation_at = clock_timestamp() - interval '1 second'");
        // Once something has begun to happen: a worker for hooks comes, or the first version does.
        let hooks = || cluster.pids("hyperion_vault hooks").first().copied();
        wait_for("a rotation", PATIENCE, || hooks().is_some() || root.ask(&done(death + 2)) != "0");
        std::thread::sleep(Duration::from_millis(u64::from(random_bytes::<1>()[0]) % 80));
        let before = root.ask(&done(death + 2));
        let (what, killed) = match death % 4 {
            1 => {
                cluster.kill_postmaster_9();
                cluster.start_again();
                ("the postmaster", true)
            }
            3 => {
                let pid = cluster.pid_of("hyperion_vault maintenance");
                ("the maintenance worker", cluster.try_kill(pid, SIGKILL))
            }
            _ => ("the worker for hooks", hooks().is_some_and(|pid| cluster.try_kill(pid, SIGKILL))),
        };
        if killed {
            // A child's death is noticed a moment later.
            std::thread::sleep(Duration::from_millis(100));
        }
        cluster.wait_ready();
        let mut root = vault.root();
        in_the_middle += usize::from(killed && before != "3");
        wait_for("all three to be rotated", 2 * PATIENCE, || root.ask(&done(death + 2)) == "3");
        let version = i32::try_from(death + 2).expect("a small number");
        sound(&cluster, [version; 3], &format!("death {death}, of {what}, with {before} of 3 done"));
    }
    println!("{in_the_middle} of {} deaths came before all three were rotated", deaths(8));
    assert!(in_the_middle > 0, "no death came in the middle: they prove nothing");
}
