//! Targets under the schedule: others' code that sleeps or fails keeps nobody else waiting.

use std::time::{Duration, Instant};

use super::{builder, make_due};
use hyperion_vault_tests::{Ask, Client, PATIENCE, wait_for};

const HOOKS: &str = "hyperion_vault hooks";

#[test]
fn a_sleeping_hook_keeps_no_other_rotation_waiting() {
    let cluster = builder().conf("hyperion_vault.hook_timeout_ms", "7000").start();
    let vault = cluster.vault();
    let (mut ops, mut root) = (vault.ops(), vault.root());
    root.ask(
        "GRANT vault_reader TO ops; CREATE SCHEMA app AUTHORIZATION ops; SET ROLE ops;
         CREATE TABLE app.asleep (name text); CREATE TABLE app.seen (name text, version int, value text);
         CREATE FUNCTION app.on_rotate(name text, version int) RETURNS void LANGUAGE plpgsql AS $$
         BEGIN
             IF EXISTS (SELECT FROM app.asleep a WHERE a.name = on_rotate.name) THEN PERFORM pg_sleep(60); END IF;
             INSERT INTO app.seen VALUES (name, version, vault.read_secret(name, version));
         END $$;
         RESET ROLE",
    );
    ops.ask(
        "SELECT count(vault.create_secret(name, kind => 'automatic', rotation_interval => '1 day', grace_period => '1 hour',
            target => '{\"type\": \"function\", \"function\": \"app.on_rotate(text,int)\"}'))
           FROM (VALUES ('a/asleep'), ('b/asleep'), ('z/awake')) n (name);
         SELECT count(vault.create_secret('plain/' || i, kind => 'automatic', rotation_interval => '1 day')) FROM generate_series(1, 50) i",
    );
    root.ask("CREATE ROLE target_role LOGIN");
    root.ask(
        "SELECT vault.create_secret('role', kind => 'automatic', rotation_interval => '1 day',
            target => '{\"type\": \"postgres_role\", \"role\": \"target_role\"}')",
    );
    assert!(cluster.pids(HOOKS).is_empty(), "nothing to do for it");
    ops.ask("INSERT INTO app.asleep VALUES ('a/asleep'), ('b/asleep')");
    let password = "SELECT rolpassword FROM pg_authid WHERE rolname = 'target_role'";
    let before = root.ask(password);
    make_due(&mut root, "1 second");
    root.ask("UPDATE vault.secrets SET next_rotation_at = next_rotation_at - interval '1 hour' WHERE name LIKE '%asleep'");

    let begun = Instant::now();
    let done =
        "SELECT count(*) FROM vault.secrets WHERE version = 2 AND (name LIKE 'plain/%' OR name = 'role')";
    wait_for("all without a hook", PATIENCE, || root.ask(done) == "51");
    println!("51 rotations beside two hooks that sleep: {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_millis(6900), "they waited for a hook: {:?}", begun.elapsed());
    assert_ne!(root.ask(password), before);

    // The one that is awake comes after those that were due before it, and not after their next attempts.
    let awake = "SELECT version FROM vault.secrets WHERE name = 'z/awake'";
    wait_for("the hook that is awake", 2 * PATIENCE, || root.ask(awake) == "2");
    let failed = "SELECT count(*) FROM vault.list_secrets() WHERE name LIKE '%asleep' AND version = 1 AND rotation_attempts > 0
                     AND rotation_error LIKE '%hook_timeout_ms%'";
    wait_for("the record of those asleep", PATIENCE, || root.ask(failed) == "2");
    assert!(begun.elapsed() > Duration::from_secs(7), "they had their time");
    assert_eq!(root.ask("SELECT count(*) FROM vault.secret_versions WHERE secret_id IN (SELECT id FROM vault.secrets WHERE name LIKE '%asleep')"), "0");
    // Each try had a value of its own; the one that worked is the one that was handed over.
    ops.ask("DELETE FROM app.asleep; SELECT count(vault.update_secret(name, description => 'awake')) FROM vault.list_secrets('*asleep')");
    wait_for("those that woke up", PATIENCE, || {
        root.ask("SELECT count(*) FROM vault.secrets WHERE name LIKE '%asleep' AND version = 2") == "2"
    });
    let agree =
        "SELECT count(*) FROM app.seen s JOIN vault.secrets v ON v.name = s.name AND v.version = s.version
                  WHERE s.version = 2 AND s.value = vault.read_secret(s.name)";
    assert_eq!(root.ask(agree), "3");
    wait_for("the worker for hooks to leave", PATIENCE, || cluster.pids(HOOKS).is_empty());
}

#[test]
fn each_try_has_a_value_of_its_own() {
    let cluster = builder().start();
    let vault = cluster.vault();
    let (mut ops, mut root) = (vault.ops(), vault.root());
    // What a failed try was given is undone with it; a sequence is not.
    root.ask(
        "GRANT vault_reader TO ops; CREATE SCHEMA app AUTHORIZATION ops; SET ROLE ops; CREATE SEQUENCE app.tries;
         CREATE SEQUENCE app.given_1; CREATE SEQUENCE app.given_2; CREATE SEQUENCE app.given_3; CREATE SEQUENCE app.given_4;
         CREATE FUNCTION app.on_rotate(name text, version int) RETURNS void LANGUAGE plpgsql AS $$
         DECLARE try bigint := nextval('app.tries');
         BEGIN
             IF try <= 4 THEN
                 PERFORM setval('app.given_' || try, 1 + hashtextextended(vault.read_secret(name, version), 0) & 9223372036854775806);
             END IF;
             IF version > 1 THEN RAISE EXCEPTION 'not today'; END IF;
         END $$;
         RESET ROLE",
    );
    ops.ask(
        "SELECT vault.create_secret('s', kind => 'automatic', rotation_interval => '1 day',
            target => '{\"type\": \"function\", \"function\": \"app.on_rotate(text,int)\"}')",
    );
    make_due(&mut root, "1 second");
    wait_for("three tries more", PATIENCE, || {
        // None need wait as long as it would.
        root.ask("UPDATE vault.secrets SET rotation_retry_at = clock_timestamp() WHERE rotation_retry_at > clock_timestamp()");
        root.ask("SELECT is_called FROM app.given_4") == "t"
    });
    let seen = (1..=4).map(|n| root.ask(&format!("SELECT last_value FROM app.given_{n}")));
    let distinct: std::collections::HashSet<_> = seen.collect();
    assert_eq!(distinct.len(), 4, "{distinct:?}");
    assert_eq!(root.ask("SELECT version FROM vault.secrets"), "1");
}

#[test]
fn the_worker_waits_for_the_key_service_without_a_lock() {
    let cluster = builder().conf("hyperion_vault.kms_timeout_ms", "6000").start();
    let vault = cluster.vault();
    let (mut ops, mut root) = (vault.ops(), vault.root());
    ops.ask("SELECT vault.create_secret('s', kind => 'automatic', rotation_interval => '1 day')");
    cluster.set_faults("hang");
    make_due(&mut root, "1 second");
    crate::watch::until_processing(&mut root, 1);
    let worker = cluster.pid_of("hyperion_vault maintenance");
    let locks = format!(
        "SELECT string_agg(locktype || ' ' || mode, ', ') FROM pg_locks WHERE pid = {worker} AND (locktype IN ('tuple', 'transactionid') OR mode NOT IN ('AccessShareLock', 'ExclusiveLock'))"
    );
    assert_eq!(root.ask(&locks), "∅");
    // And so nobody waits for it.
    ops.ask(
        "SET lock_timeout = '500ms'; SELECT vault.update_secret('s', description => 'changed meanwhile')",
    );
    root.ask("SET lock_timeout = '500ms'; UPDATE vault.secrets SET description = 'again'");
    // The call that hangs fails at its deadline; the next try works.
    cluster.clear_faults();
    wait_for("the rotation", PATIENCE, || root.ask("SELECT version FROM vault.secrets") == "2");
}

/// A row that somebody has is looked for now and then, not all the time: each look asks the key service for a key.
#[test]
fn a_locked_secret_with_a_hook_is_looked_for_now_and_then() {
    let cluster = builder().start();
    let vault = cluster.vault();
    let (mut ops, mut root) = (vault.ops(), vault.root());
    root.ask(
        "GRANT vault_reader TO ops; CREATE SCHEMA app AUTHORIZATION ops; SET ROLE ops;
         CREATE FUNCTION app.on_rotate(name text, version int) RETURNS void LANGUAGE sql AS '';
         RESET ROLE",
    );
    ops.ask(
        "SELECT vault.create_secret('s', kind => 'automatic', rotation_interval => '1 day',
            target => '{\"type\": \"function\", \"function\": \"app.on_rotate(text,int)\"}')",
    );
    make_due(&mut root, "-1 second");
    let mut holder = vault.root();
    holder.ask("BEGIN; SELECT FROM vault.secrets FOR UPDATE");
    cluster.pid_of(HOOKS);
    let calls = |root: &mut Client| crate::watch::status(root)["kms"]["calls"].as_u64().expect("a count");
    let before = calls(&mut root);
    std::thread::sleep(Duration::from_secs(3));
    let calls = calls(&mut root) - before;
    assert!(calls <= 8, "{calls} calls in 3 s");
    holder.ask("COMMIT");
    wait_for("the rotation", PATIENCE, || root.ask("SELECT version FROM vault.secrets") == "2");
}

/// The maintenance worker asks for the worker for hooks again and again; one that dies each time is started less and less
/// often all the same.
#[test]
fn a_worker_for_hooks_that_dies_each_time_is_spaced_out() {
    let cluster = builder().start();
    let vault = cluster.vault();
    let mut root = vault.root();
    root.ask(
        "CREATE FUNCTION public.on_rotate(name text, version int) RETURNS void LANGUAGE plpgsql AS $$
         BEGIN
             IF version > 1 THEN PERFORM pg_terminate_backend(pg_backend_pid()), pg_sleep(1); END IF;
         END $$;
         SELECT vault.create_secret('s', kind => 'automatic', rotation_interval => '1 day',
            target => '{\"type\": \"function\", \"function\": \"public.on_rotate(text,int)\"}')",
    );
    let mark = cluster.log_mark();
    make_due(&mut root, "1 second");
    std::thread::sleep(Duration::from_secs(10));
    let deaths =
        cluster.log_since(mark).matches("terminating background worker \"hyperion_vault hooks\"").count();
    assert!((2..=5).contains(&deaths), "{deaths} deaths in 10 s");
}
