//! What is due is rotated, once; what is not, is not.

use std::time::Duration;

use super::{another_look, builder, make_due, recorded, until_done, versions};
use crate::watch::status;
use hyperion_vault_tests::{Ask, Cluster, PATIENCE, StopMode, wait_for};

#[test]
fn what_was_due_together_is_not_due_together_again() {
    let cluster = builder().start();
    let vault = cluster.vault();
    let mut root = vault.root();
    vault.ops().ask(
        "SELECT count(vault.create_secret('s/' || i, kind => 'automatic', rotation_interval => '10 days')) FROM generate_series(1, 40) i",
    );
    make_due(&mut root, "1 second");
    until_done(&mut root);
    // Each by some other part of an hour, and not all by next to nothing.
    let early = "SELECT count(DISTINCT early), max(early) - min(early) > interval '10 minutes' FROM
                   (SELECT version_created_at + rotation_interval - next_rotation_at AS early FROM vault.secrets) s";
    assert_eq!(root.ask(early), "40|t");
}

/// Values and words that the table keeps out of line, before and after a rotation.
#[test]
fn large_values_are_rotated_and_their_words_stay() {
    let cluster = builder().start();
    let vault = cluster.vault();
    let mut root = vault.root();
    // Hardly to be compressed.
    root.ask(
        "CREATE FUNCTION words(seed int, n int) RETURNS text LANGUAGE sql IMMUTABLE AS
        $$ SELECT string_agg(md5(seed::text || i::text), ' ') FROM generate_series(1, n) i $$",
    );
    root.ask(
        "SELECT vault.create_secret('s/' || i, kind => 'automatic', username => 'app', password => words(i, 1000), rotation_interval => '10 days',
                  grace_period => '1 day', keep_versions => 9, generator => '{\"length\": 4096}', description => words(-i, 120),
                  metadata => jsonb_build_object('a', words(100 + i, 200)))
           FROM generate_series(1, 20) i",
    );
    let outside = "SELECT pg_relation_size(reltoastrelid) > 20 * 33000 FROM pg_class WHERE oid = 'vault.secrets'::regclass";
    assert_eq!(root.ask(outside), "t");
    let first = root.ask("SELECT vault.read_secret('s/7')");
    for version in 2..6 {
        make_due(&mut root, "1 second");
        until_done(&mut root);
        if version == 3 {
            for table in ["secrets", "secret_versions"] {
                root.ask(&format!("VACUUM FULL vault.{table}"));
            }
        }
        let kept = format!(
            "SELECT count(*) FROM generate_series(1, 20) i, vault.secrets s, vault.list_versions(s.name) v WHERE s.name = 's/' || i
                AND s.version = {version} AND s.description = words(-i, 120) AND s.metadata ->> 'a' = words(100 + i, 200)"
        );
        assert_eq!(root.ask(&kept), (20 * version).to_string());
        assert_eq!(root.ask("SELECT count(DISTINCT vault.read_secret(name)), min(length(vault.read_secret(name))) FROM vault.secrets"), "20|4096");
        let firsts = "SELECT count(*) FROM generate_series(1, 20) i WHERE vault.read_secret('s/' || i, 1) = words(i, 1000)";
        assert_eq!(root.ask(firsts), "20");
    }
    assert_eq!(root.ask("SELECT vault.read_secret('s/7', 1)"), first);
    root.ask("CREATE SCHEMA checks; CREATE EXTENSION amcheck SCHEMA checks");
    for table in ["secrets", "secret_versions"] {
        let damage =
            format!("SELECT * FROM checks.verify_heapam('vault.{table}'::regclass, check_toast => true)");
        assert_eq!(root.ask(&damage), "");
    }
}

#[test]
fn what_is_due_is_rotated_once_and_told() {
    let cluster = builder().start();
    let vault = cluster.vault();
    let (mut ops, mut root, mut app) = (vault.ops(), vault.root(), vault.app());
    ops.ask(
        "SELECT vault.create_secret('plain', kind => 'automatic', rotation_interval => '10 days', grace_period => '1 hour');
         SELECT vault.create_secret('hex', kind => 'automatic', rotation_interval => '1 hour',
            generator => '{\"length\": 20, \"charset\": \"hex\"}');
         SELECT vault.create_secret('pair', kind => 'automatic', username => 'app', password => 'first',
            rotation_interval => '1 month', grace_period => '1 day');
         SELECT vault.create_secret('long', kind => 'automatic', rotation_interval => '36500 days');
         SELECT vault.create_secret('manual', 'v', generator => '{\"length\": 20}');
         SELECT vault.create_secret('buried', kind => 'automatic', rotation_interval => '1 hour');
         SELECT vault.create_secret('over', kind => 'automatic', rotation_interval => '1 hour', expires_in => '1 hour')",
    );
    ops.ask("SELECT vault.delete_secret('buried', '1 day')");
    let before = app.ask("SELECT vault.read_secret('plain')");
    let mut listener = vault.root();
    listener.ask("LISTEN vault_rotation");
    // All their keys come at the same time.
    cluster.set_faults("delay_ms=100");
    // Five intervals missed: one rotation.
    root.ask("UPDATE vault.secrets SET expires_at = clock_timestamp() WHERE name = 'over'");
    make_due(&mut root, "50 days");
    wait_for("the rotation", PATIENCE, || {
        versions(&mut root) == "buried=1 hex=2 long=2 manual=1 pair=2 plain=2"
    });
    another_look();
    assert_eq!(versions(&mut root), "buried=1 hex=2 long=2 manual=1 pair=2 plain=2", "once, and no other");

    // The path of rotate_secret: grace, generator, user name.
    assert_ne!(app.ask("SELECT vault.read_secret('plain')"), before);
    assert_eq!(app.ask("SELECT vault.read_secret('plain', 1)"), before, "in grace");
    assert_eq!(app.ask("SELECT vault.read_secret('hex') ~ '^[0-9a-f]{20}$'"), "t");
    let pair = "SELECT username, password <> 'first', (SELECT password FROM vault.get_secret('pair', 1)) FROM vault.get_secret('pair')";
    assert_eq!(app.ask(pair), "app|t|first");

    // A little early, never late: up to one part in twenty, and an hour.
    let spread = "SELECT bool_and(next_rotation_at <= version_created_at + rotation_interval
                     AND next_rotation_at > version_created_at + rotation_interval - least(rotation_interval / 20, '1 hour'))
                    FROM vault.secrets WHERE kind = 'automatic' AND name <> 'buried'";
    assert_eq!(root.ask(spread), "t");
    let shown = status(&mut root);
    assert_eq!(
        (&shown["open_rotation_jobs"], &shown["failing_rotations"]),
        (&0.into(), &0.into()),
        "{shown}"
    );

    // One notification a batch, with ids and versions, and no names.
    let mut told = Vec::new();
    let mut notifications = listener.notifications();
    let mut waiting = notifications.timeout_iter(Duration::from_millis(300));
    while let Some(notification) = postgres::fallible_iterator::FallibleIterator::next(&mut waiting).unwrap()
    {
        assert_eq!(notification.channel(), "vault_rotation");
        told.push(notification.payload().to_owned());
    }
    assert!((1..=4).contains(&told.len()), "{told:?}");
    let rotated: Vec<serde_json::Value> = told
        .iter()
        .flat_map(|payload| {
            let payload: serde_json::Value = serde_json::from_str(payload).unwrap();
            payload["rotated"].as_array().unwrap().clone()
        })
        .collect();
    cluster.clear_faults();
    let mut ids: Vec<_> = rotated.iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect();
    ids.sort();
    let expected = root.ask("SELECT string_agg(id::text, ' ' ORDER BY id::text) FROM vault.secrets WHERE kind = 'automatic' AND name <> 'buried'");
    assert_eq!(ids.join(" "), expected);
    assert!(rotated.iter().all(|one| one["version"] == 2 && one.as_object().unwrap().len() == 2));

    let record = recorded(&mut root, "plain");
    assert!(
        record.starts_with("rotate 2 ") && record.ends_with(" postgres internal:hyperion_vault maintenance"),
        "{record}"
    );

    // Switched off and on again, without restart.
    cluster.set_conf("hyperion_vault.rotation_enabled", "off");
    another_look();
    make_due(&mut root, "1 second");
    another_look();
    assert_eq!(versions(&mut root), "buried=1 hex=2 long=2 manual=1 pair=2 plain=2");
    assert_eq!(status(&mut root)["open_rotation_jobs"], 4);
    cluster.set_conf("hyperion_vault.rotation_enabled", "on");
    until_done(&mut root);
    assert_eq!(versions(&mut root), "buried=1 hex=3 long=3 manual=1 pair=3 plain=3");
}

/// The user name of a userpass secret is sealed: its key is asked for before anything is locked.
#[test]
fn keys_that_are_not_cached_are_fetched_first() {
    let cluster = builder().conf("hyperion_vault.dek_cache_ttl_secs", "0").start();
    let vault = cluster.vault();
    let (mut ops, mut root, mut app) = (vault.ops(), vault.root(), vault.app());
    ops.ask(
        "SELECT count(vault.create_secret('p/' || i, kind => 'automatic', username => 'user ' || i, password => 'first',
            rotation_interval => '1 day')) FROM generate_series(1, 100) i",
    );
    make_due(&mut root, "1 second");
    until_done(&mut root);
    let right = "SELECT count(*) FROM generate_series(1, 100) i, vault.get_secret('p/' || i) s
                  WHERE s.version = 2 AND s.username = 'user ' || i AND length(s.password) = 32";
    assert_eq!(app.ask(right), "100");
    assert_eq!(root.ask("SELECT count(*) FROM vault.secrets WHERE rotation_attempts IS NOT NULL"), "0");
}

/// Settings of the database or the superuser do not reach the worker's own statements.
#[test]
fn hostile_settings_of_database_and_role_change_nothing() {
    let cluster = builder().start();
    let vault = cluster.vault();
    let (mut ops, mut root) = (vault.ops(), vault.root());
    root.ask(
        "CREATE SCHEMA evil; CREATE ROLE weak;
         CREATE FUNCTION evil.refuse(timestamptz, timestamptz) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'caught'; END $$;
         CREATE OPERATOR evil.<= (LEFTARG = timestamptz, RIGHTARG = timestamptz, FUNCTION = evil.refuse);
         ALTER DATABASE postgres SET default_transaction_read_only = on;
         ALTER DATABASE postgres SET search_path = evil, pg_catalog;
         ALTER DATABASE postgres SET row_security = off;
         ALTER ROLE postgres SET default_transaction_isolation = 'serializable';
         ALTER ROLE postgres SET role = 'weak';
         ALTER ROLE postgres SET session_replication_role = 'replica'",
    );
    ops.ask("SET default_transaction_read_only = off; SELECT vault.create_secret('a', kind => 'automatic', rotation_interval => '1 day')");
    // The worker that runs was there before the settings.
    let pid = cluster.pid_of("hyperion_vault maintenance");
    root.ask(&format!("SELECT pg_terminate_backend({pid}, 5000)"));
    make_due(&mut root, "1 second");
    until_done(&mut root);
    assert_eq!(root.ask("SELECT version FROM vault.secrets"), "2");
    assert!(!cluster.log().contains("caught"));
}

/// A standby does none of it; after its promotion it does, without restart.
#[test]
fn a_standby_waits_for_its_promotion() {
    let primary = builder().start();
    let vault = primary.vault();
    let (mut ops, mut root) = (vault.ops(), vault.root());
    ops.ask("SELECT vault.create_secret('a', kind => 'automatic', rotation_interval => '1 day', grace_period => '1 day')");
    primary.set_conf("hyperion_vault.rotation_enabled", "off");
    another_look();
    let standby = primary.standby();
    standby.set_conf("hyperion_vault.rotation_enabled", "on");
    make_due(&mut root, "1 second");
    standby.wait_replayed(&primary);
    let mut here = standby.connect("app", "postgres");
    let value = here.ask("SELECT vault.read_secret('a')");
    another_look();
    assert_eq!(here.ask("SELECT version FROM vault.get_secret('a')"), "1");
    let log = standby.log();
    assert!(!log.contains("read-only transaction") && !log.contains("WARNING"), "{log}");
    primary.stop(StopMode::Immediate);
    let mut there = standby.superuser();
    there.ask("SELECT pg_promote()");
    wait_for("the rotation", PATIENCE, || there.ask("SELECT version FROM vault.secrets") == "2");
    assert_eq!(here.ask("SELECT vault.read_secret('a', 1)"), value, "the same secret, one version on");
    another_look();
    assert_eq!(there.ask("SELECT version FROM vault.secrets"), "2");
}

/// The signal that settings have changed comes while the worker waits within a turn, which takes it for what it waits for.
#[test]
fn a_setting_that_changes_in_the_middle_of_a_turn_counts() {
    let cluster = Cluster::builder().conf("hyperion_vault.scan_interval_secs", "3600").start();
    let vault = cluster.vault();
    let (mut ops, mut root) = (vault.ops(), vault.root());
    ops.ask("SELECT vault.create_secret('s', kind => 'automatic', rotation_interval => '1 day')");
    let mut holder = vault.root();
    holder.ask("BEGIN; LOCK TABLE vault.secret_dates IN ACCESS EXCLUSIVE MODE");
    // Wakes it.
    cluster.set_conf("hyperion_vault.scan_interval_secs", "3599");
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'hyperion_vault maintenance' AND wait_event_type = 'Lock'";
    wait_for("the worker to wait", PATIENCE, || root.ask(waits) == "1");
    cluster.set_conf("hyperion_vault.scan_interval_secs", "1");
    holder.ask("COMMIT");
    // It sleeps by now.
    another_look();
    make_due(&mut root, "1 second");
    wait_for("the rotation", PATIENCE, || versions(&mut root) == "s=2");
}
