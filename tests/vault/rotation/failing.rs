//! A rotation that fails comes back later, says why, and holds up nobody.

use std::time::{Duration, Instant};

use super::{another_look, builder, make_due, recorded, until_done, versions};
use crate::watch::status;
use hyperion_vault_tests::{Ask, PATIENCE, wait_for};

#[test]
fn a_failing_rotation_backs_off_and_delays_no_other() {
    let cluster = builder().start();
    let vault = cluster.vault();
    let (mut ops, mut root) = (vault.ops(), vault.root());
    ops.ask(
        "SELECT count(vault.create_secret(name, kind => 'automatic', rotation_interval => '1 day'))
           FROM (VALUES ('a/good'), ('b/broken'), ('d/good')) n (name);
         SELECT vault.create_secret('c/damaged', kind => 'automatic', username => 'u', password => 'p', rotation_interval => '1 day')",
    );
    // A generator that makes nothing, and a current version that does not open.
    root.ask("UPDATE vault.secrets SET generator = '{\"length\": 0}' WHERE name = 'b/broken'");
    root.ask("UPDATE vault.secrets SET sealed = set_byte(sealed, 30, (get_byte(sealed, 30) + 1) % 256) WHERE name = 'c/damaged'");
    make_due(&mut root, "1 second");
    let begun = Instant::now();
    wait_for("the good ones", PATIENCE, || versions(&mut root) == "a/good=2 b/broken=1 c/damaged=1 d/good=2");
    let tried_again = "SELECT coalesce(max(rotation_attempts), 0) > 1 FROM vault.secrets";
    assert_eq!(root.ask(tried_again), "f", "they came after the second try of the others");
    let failing = "SELECT name, rotation_attempts, rotation_error, rotation_retry_at - clock_timestamp() BETWEEN '1s' AND '7s',
                          next_rotation_at < clock_timestamp()
                     FROM vault.list_secrets() WHERE rotation_attempts > 0";
    wait_for("the failures", PATIENCE, || {
        root.ask("SELECT count(*) FROM vault.secrets WHERE rotation_attempts = 1") == "2"
    });
    let shown = ops.ask(failing);
    assert!(shown.starts_with("b/broken|1|") && shown.contains("length"), "{shown}");
    assert!(shown.contains("\nc/damaged|1|ciphertext cannot be authenticated|t|t"), "{shown}");
    let shown = status(&mut root);
    assert_eq!(
        (&shown["open_rotation_jobs"], &shown["failing_rotations"]),
        (&2.into(), &2.into()),
        "{shown}"
    );

    let record = recorded(&mut root, "c/damaged");
    assert!(record.starts_with("rotate error XX001 postgres internal"), "{record}");

    // The second attempt comes after 3.75 to 6.25 s (and the worker's next look), not sooner, not never.
    let attempt = |root: &mut hyperion_vault_tests::Client, n: u32| {
        let sql = format!("SELECT count(*) FROM vault.secrets WHERE rotation_attempts = {n}");
        wait_for("the next attempt", PATIENCE, || root.ask(&sql) == "2");
    };
    attempt(&mut root, 2);
    let waited = begun.elapsed();
    assert!((Duration::from_millis(3700)..Duration::from_secs(12)).contains(&waited), "{waited:?}");
    // Others that become due meanwhile are not held up, and are not counted against.
    make_due(&mut root, "1 second");
    wait_for("the good ones", PATIENCE, || versions(&mut root) == "a/good=3 b/broken=1 c/damaged=1 d/good=3");

    // Repaired: it does not wait for its next try, which is far away.
    root.ask("UPDATE vault.secrets SET rotation_retry_at = clock_timestamp() + interval '1 hour' WHERE name = 'b/broken'");
    ops.ask("SELECT vault.update_secret('b/broken', generator => '{\"length\": 12}')");
    wait_for("the repaired one", PATIENCE, || versions(&mut root).contains("b/broken=2"));
    let clean =
        "SELECT rotation_attempts, rotation_error, rotation_retry_at FROM vault.list_secrets('b/broken')";
    assert_eq!(ops.ask(clean), "∅|∅|∅");
    // By hand it fails for whoever asks, and the record stays.
    assert!(ops.try_ask("SELECT vault.rotate_secret('c/damaged')").is_err());
    assert_eq!(ops.ask("SELECT rotation_attempts >= 2 FROM vault.list_secrets('c/damaged')"), "t");
    ops.ask("SELECT vault.update_secret('c/damaged', username => 'u', password => 'p')");
    assert_eq!(ops.ask("SELECT rotation_attempts IS NULL FROM vault.list_secrets('c/damaged')"), "t");
}

/// While the key service is away nothing fails; it waits.
#[test]
fn an_outage_and_throttling_slow_rotation_down() {
    let cluster = builder().conf("hyperion_vault.kms_timeout_ms", "2000").start();
    let vault = cluster.vault();
    let (mut ops, mut root) = (vault.ops(), vault.root());
    ops.ask(
        "SELECT count(vault.create_secret('s/' || i, kind => 'automatic', rotation_interval => '1 day')) FROM generate_series(1, 200) i;
         SELECT vault.create_secret('ends', 'v', expires_in => '1 hour')",
    );
    cluster.set_faults("fail=unreachable");
    make_due(&mut root, "1 second");
    let last_error = |root: &mut hyperion_vault_tests::Client| {
        let workers = status(root)["workers"].take();
        let worker =
            workers.as_array().unwrap().iter().find(|w| w["name"] == "hyperion_vault maintenance").cloned();
        worker.unwrap()["last_error"].as_str().unwrap_or_default().to_owned()
    };
    wait_for("the worker to say so", PATIENCE, || last_error(&mut root).contains("cannot be reached"));
    // What needs no keys is done all the same.
    root.ask("UPDATE vault.secrets SET expires_at = clock_timestamp() WHERE name = 'ends'");
    wait_for("the end of a secret", PATIENCE, || {
        root.ask("SELECT count(*) FROM vault.secrets WHERE name = 'ends'") == "0"
    });
    assert_eq!(
        root.ask("SELECT count(*) FROM vault.secrets WHERE version > 1 OR rotation_attempts > 0"),
        "0"
    );
    cluster.clear_faults();
    let took = until_done(&mut root);
    assert!(took < Duration::from_secs(25), "{took:?}");

    cluster.set_faults("fail=throttled,times=150");
    make_due(&mut root, "1 second");
    until_done(&mut root);
    cluster.clear_faults();
    assert_eq!(
        root.ask("SELECT count(*) FROM vault.secrets WHERE version = 3 AND rotation_attempts IS NULL"),
        "200"
    );
}

/// Who holds a row, or a table, delays that and nothing else.
#[test]
fn a_locked_secret_is_left_for_later() {
    let cluster = builder().start();
    let vault = cluster.vault();
    let (mut ops, mut root) = (vault.ops(), vault.root());
    // More than the worker finds at a time, all of them in front.
    ops.ask("SELECT count(vault.create_secret('l/' || i, kind => 'automatic', rotation_interval => '1 day')) FROM generate_series(1, 300) i");
    ops.ask("SELECT vault.create_secret('z', kind => 'automatic', rotation_interval => '1 day')");
    let mut holder = vault.root();
    holder.ask("BEGIN; SELECT count(*) FROM (SELECT FROM vault.secrets WHERE name LIKE 'l/%' FOR UPDATE) l");
    root.ask(
        "SET lock_timeout = '1s';
         UPDATE vault.secrets SET next_rotation_at = clock_timestamp() WHERE name = 'z'",
    );
    holder.ask("UPDATE vault.secrets SET next_rotation_at = clock_timestamp() - interval '1 hour' WHERE name LIKE 'l/%'; COMMIT; BEGIN;
                SELECT count(*) FROM (SELECT FROM vault.secrets WHERE name LIKE 'l/%' FOR UPDATE) l");
    let z = "SELECT version FROM vault.secrets WHERE name = 'z'";
    wait_for("the one that is free", PATIENCE, || root.ask(z) == "2");
    let done = root.ask("SELECT count(*) FROM vault.secrets WHERE name LIKE 'l/%' AND version = 2");
    holder.ask("COMMIT");
    until_done(&mut root);
    let all = "SELECT count(*) FROM vault.secrets WHERE version = 2 AND rotation_attempts IS NULL";
    assert_eq!(root.ask(all), "301", "{done} of them between two locks");

    // A rotation by hand in an open transaction: when it commits, nothing is due any more.
    make_due(&mut root, "1 second");
    until_done(&mut root);
    let mut hand = vault.ops();
    hand.ask("BEGIN; SELECT vault.rotate_secret('z')");
    another_look();
    hand.ask("COMMIT");
    another_look();
    assert_eq!(root.ask(z), "4");
    // A lock on the table: the worker gives up after its own time-out and comes back.
    holder.ask("BEGIN; LOCK TABLE vault.secrets IN ACCESS EXCLUSIVE MODE");
    std::thread::sleep(Duration::from_secs(7));
    holder.ask("COMMIT");
    make_due(&mut root, "1 second");
    until_done(&mut root);
    assert_eq!(root.ask(z), "5");
}
