//! SIGKILL of the rotating session, and of the postmaster, at random points: what the vault says and what the server
//! accepts are the same afterwards. Runs in the test process.
//!
//! `HYPERION_VAULT_TEST_KILLS` raises the number of deaths (default 20).

use std::time::Duration;

use super::{agrees, builder, prepare, secret_for_svc};
use hyperion_vault_tests::threads::{Background, background};
use hyperion_vault_tests::{Ask, Client, Cluster, PATIENCE, SIGKILL, backend_pid, random_bytes};

const NAMES: [&str; 3] = ["db/svc", "db/app", "hooked"];

fn deaths() -> usize {
    std::env::var("HYPERION_VAULT_TEST_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(20)
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
    for death in 0..deaths() {
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
    println!("{} deaths, {rotated} rotations acknowledged", deaths());
    assert!(rotated > 0, "nothing was rotated: the deaths prove nothing");
}
