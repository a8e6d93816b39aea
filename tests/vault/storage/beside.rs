//! Beside the server's own machinery: indexes of a superuser, logical decoding, minimal WAL, HOT, TOAST. Runs in the test
//! process.

use super::{TABLES, builder, call_everything, give_work, make_manager, state, until_worked};
use hyperion_vault_tests::{Ask, Client, Cluster, LEAKS, StopMode, sqlstate};
use std::collections::BTreeSet;

/// Every B-tree index of the vault against its table, and every table and TOAST table, by the server's amcheck.
#[track_caller]
fn check(root: &mut Client) {
    root.ask("CREATE SCHEMA IF NOT EXISTS checks; CREATE EXTENSION IF NOT EXISTS amcheck SCHEMA checks");
    let damaged = "SELECT c.oid::regclass, v.* FROM pg_class c, LATERAL checks.verify_heapam(c.oid::regclass, check_toast => true) v
        WHERE c.oid IN (SELECT unnest(ARRAY[oid, reltoastrelid]) FROM pg_class WHERE relnamespace = 'vault'::regnamespace AND relkind = 'r')";
    assert_eq!(root.ask(damaged), "");
    let indexes = "SELECT count(checks.bt_index_check(i.indexrelid::regclass, heapallindexed => true)::text) > 15
        FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid
       WHERE t.relnamespace = 'vault'::regnamespace AND c.relam = (SELECT oid FROM pg_am WHERE amname = 'btree')";
    assert_eq!(root.ask(indexes), "t");
}

const INDEXES: &str = "CREATE UNIQUE INDEX x_unique ON vault.secrets (version_id);
    CREATE INDEX x_expression ON vault.secrets (lower(name), (metadata ->> 'a'));
    CREATE INDEX x_partial ON vault.secrets (updated_at) WHERE version > 1;
    CREATE INDEX x_brin ON vault.secrets USING brin (created_at, updated_at) WITH (pages_per_range = 1, autosummarize);
    CREATE INDEX x_bloom ON vault.secret_versions USING brin (version_id uuid_bloom_ops);
    CREATE INDEX x_hash ON vault.secrets USING hash (name);
    CREATE INDEX x_gin ON vault.secrets USING gin (metadata);
    CREATE INDEX x_gin_slow ON vault.secrets USING gin (to_tsvector('english', coalesce(description, ''))) WITH (fastupdate = off);
    CREATE INDEX x_include ON vault.secret_versions (version) INCLUDE (created_at);
    CREATE INDEX x_gist ON vault.secrets USING gist (tstzrange(created_at, expires_at));
    CREATE INDEX x_spgist ON vault.secrets USING spgist (name);
    ALTER TABLE vault.secrets ADD CONSTRAINT x_excluded EXCLUDE USING hash (version_id WITH =);
    CREATE INDEX x_roles ON vault.roles (lower(name)); CREATE INDEX x_rules ON vault.role_permissions (action);
    CREATE INDEX x_bindings ON vault.role_bindings (pg_role_oid); CREATE INDEX x_tokens ON vault.tokens (created_at);
    CREATE INDEX x_log ON vault.audit_log (subject, at)";

#[test]
fn indexes_of_others_are_kept_right() {
    let cluster = builder().start();
    let vault = cluster.vault();
    let mut root = vault.root();
    make_manager(&mut root);
    root.ask("SELECT vault.create_secret('s/' || i, 'v') FROM generate_series(1, 200) i");
    give_work(&mut root, "w");
    root.ask(INDEXES);
    let mut manager = vault.session("manager");
    call_everything(&mut manager);
    for turn in 0..3 {
        manager.ask(&format!(
            "SELECT vault.put_secret('s/' || i, 'turn {turn}') FROM generate_series(1, 120) i;
             SELECT vault.update_secret('s/' || i, description => 'words of turn {turn}', metadata => '{{\"a\": {turn}}}') FROM generate_series(100, 200) i;
             SELECT vault.delete_secret('s/' || i) FROM generate_series(190, 200) i; SELECT vault.create_secret('s/' || i, 'anew') FROM generate_series(190, 200) i"
        ));
        manager.ask(
            "BEGIN; SELECT vault.put_secret('s/' || i, 'never') FROM generate_series(1, 50) i; ROLLBACK",
        );
        match turn {
            0 => root.ask("VACUUM FULL vault.secrets"),
            1 => {
                root.ask("CLUSTER vault.secrets USING secrets_pkey").to_owned()
                    + &root.ask("REINDEX TABLE CONCURRENTLY vault.secrets")
            }
            _ => root.ask("VACUUM (ANALYZE) vault.secrets"),
        };
        manager.ask(&format!(
            "SELECT vault.put_secret('s/' || i, 'after {turn}') FROM generate_series(50, 150) i"
        ));
        // What each index finds is what a walk over the table finds.
        for (condition, index) in [
            ("name = 's/77'", "x_hash"),
            ("lower(name) = 's/120' AND metadata ->> 'a' = '0'", "x_expression"),
            ("updated_at > now() - interval '1 hour' AND version > 1", "x_partial"),
            ("created_at > now() - interval '1 hour'", "x_brin"),
            ("metadata @> '{\"a\": 2}'", "x_gin"),
            (
                "to_tsvector('english', coalesce(description, '')) @@ to_tsquery('english', 'turn')",
                "x_gin_slow",
            ),
            ("tstzrange(created_at, expires_at) @> now()", "x_gist"),
            ("name ^@ 's/1'", "x_spgist"),
        ] {
            let sql = format!(
                "SELECT count(*), md5(string_agg(id::text || version, ',' ORDER BY id)) FROM vault.secrets WHERE {condition}"
            );
            root.ask("SET enable_indexscan = off; SET enable_bitmapscan = off; SET enable_indexonlyscan = off; SET enable_seqscan = on");
            let walked = root.ask(&sql);
            root.ask("SET enable_indexscan = on; SET enable_bitmapscan = on; SET enable_seqscan = off");
            assert_eq!(root.ask(&sql), walked, "turn {turn}, {index}: {condition}");
        }
        root.ask("RESET ALL");
        check(&mut root);
    }
    until_worked(&vault, "w");
    check(&mut root);
    // What an index keeps between insertions is given back: the server says so of what is not.
    let log = cluster.log();
    for sign in LEAKS {
        assert!(!log.contains(sign), "{sign}: {:?}", log.lines().find(|line| line.contains(sign)));
    }
    assert_eq!(
        vault.app().ask("SELECT vault.read_secret('s/50'), vault.read_secret('s/1')"),
        "after 2|turn 2"
    );
}

/// A constraint of a superuser is the superuser's: it is kept, and named when it is violated.
#[test]
fn constraints_of_others_are_kept() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut root = vault.root();
    root.ask("SELECT vault.create_secret('a', 'v', description => 'one'); SELECT vault.create_secret('b', 'v', description => 'two')");
    for (constraint, code) in [
        ("CREATE UNIQUE INDEX x ON vault.secrets (description)", "23505"),
        ("ALTER TABLE vault.secrets ADD CONSTRAINT x EXCLUDE USING hash (description WITH =)", "23P01"),
        (
            "ALTER TABLE vault.secrets ADD CONSTRAINT x UNIQUE (description) DEFERRABLE INITIALLY IMMEDIATE",
            "23505",
        ),
        (
            "ALTER TABLE vault.secrets ADD CONSTRAINT x UNIQUE (description) DEFERRABLE INITIALLY DEFERRED",
            "23505",
        ),
        (
            "ALTER TABLE vault.secrets ADD CONSTRAINT x EXCLUDE USING hash (description WITH =) DEFERRABLE INITIALLY DEFERRED",
            "23P01",
        ),
    ] {
        root.ask(constraint);
        for call in [
            "SELECT vault.update_secret('b', description => 'one')",
            "SELECT vault.create_secret('c', 'v', description => 'one')",
        ] {
            // One that is checked later may be refused as such instead.
            let error = vault.ops().try_ask(call).expect_err(constraint);
            let error = error.as_db_error().expect("of the server");
            let said = error.code().code();
            assert!(
                said == code || constraint.contains("DEFERRABLE") && said == "55000",
                "{constraint}: {call}: {error:?}"
            );
            assert!(!error.message().contains("secret \"c\" already exists"), "{constraint}: {error:?}");
        }
        if !constraint.contains("DEFERRABLE") {
            root.ask("SELECT vault.update_secret('b', description => 'three'); SELECT vault.update_secret('b', description => 'two')");
        }
        root.ask("DROP INDEX IF EXISTS vault.unused");
        root.ask(if constraint.starts_with("CREATE") {
            "DROP INDEX vault.x"
        } else {
            "ALTER TABLE vault.secrets DROP CONSTRAINT x"
        });
        assert_eq!(
            root.ask("SELECT string_agg(name || '=' || description, ' ' ORDER BY name) FROM vault.secrets"),
            "a=one b=two"
        );
    }
}

#[test]
fn changes_are_decoded_with_their_keys() {
    let cluster = builder().conf("wal_level", "logical").start();
    let vault = cluster.vault();
    let mut root = vault.root();
    make_manager(&mut root);
    root.ask("CREATE PUBLICATION everything FOR ALL TABLES");
    root.ask("SELECT pg_create_logical_replication_slot('text', 'test_decoding')");
    root.ask("SELECT pg_create_logical_replication_slot('binary', 'pgoutput')");
    let mut manager = vault.session("manager");
    manager.ask(
        "SELECT vault.create_secret('kept', 'v', grace_period => '1 day'); SELECT vault.put_secret('kept', 'w'); SELECT vault.update_secret('kept', description => 'd');
         SELECT vault.create_secret('gone', 'v', grace_period => '1 day'); SELECT vault.put_secret('gone', 'w')",
    );
    let id = root.ask("SELECT id FROM vault.secrets WHERE name = 'gone'");
    let kept = root.ask("SELECT id FROM vault.secrets WHERE name = 'kept'");
    manager.ask(
        "SELECT vault.delete_secret('gone');
         SELECT vault.create_role('r', permissions => '[{\"action\":\"read\",\"path\":\"x\"}]'); SELECT vault.set_role_permissions('r', '[{\"action\":\"read\",\"path\":\"y\"}]');
         SELECT vault.bind_role('r', 'app'); SELECT vault.create_token('t', 'r'); SELECT vault.revoke_token('t'); SELECT vault.unbind_role('r', 'app'); SELECT vault.drop_role('r')",
    );
    manager.ask(
        "BEGIN; SELECT vault.create_secret('never', 'v'); SELECT vault.put_secret('kept', 'never'); ROLLBACK",
    );
    manager.ask("BEGIN; SAVEPOINT s; SELECT vault.create_secret('never/2', 'v'); ROLLBACK TO s; SELECT vault.create_secret('in part', 'v'); COMMIT");
    call_everything(&mut manager);
    call_everything(&mut root);
    give_work(&mut root, "w");
    until_worked(&vault, "w");

    let changes = root.ask("SELECT data FROM pg_logical_slot_get_changes('text', NULL, NULL, 'include-xids', 'off') WHERE data LIKE 'table vault.%'");
    let has = |start: &str, parts: &[&str]| {
        changes.lines().any(|line| line.starts_with(start) && parts.iter().all(|part| line.contains(part)))
    };
    for (table, operations) in [
        ("secrets", "INSERT UPDATE DELETE"),
        ("secret_versions", "INSERT UPDATE DELETE"),
        ("vault_meta", "INSERT"),
        ("roles", "INSERT DELETE"),
        ("role_permissions", "INSERT DELETE"),
        ("role_bindings", "INSERT DELETE"),
        ("tokens", "INSERT DELETE"),
        ("audit_log", "INSERT"),
        ("audit_spools", "INSERT UPDATE"),
    ] {
        for operation in operations.split(' ') {
            assert!(has(&format!("table vault.{table}: {operation}:"), &[]), "no {operation} of {table}");
        }
    }
    assert!(has("table vault.secrets: INSERT:", &[&id, "name[text]:'gone'", "version[integer]:1"]));
    assert!(has("table vault.secrets: UPDATE:", &[&kept, "version[integer]:2"]));
    assert!(has("table vault.secrets: UPDATE:", &[&kept, "description[text]:'d'"]));
    assert!(has("table vault.secrets: DELETE:", &[&id]), "the key of what was deleted");
    assert!(has("table vault.secret_versions: DELETE:", &[&id, "version[integer]:1"]));
    assert!(has("table vault.role_permissions: DELETE:", &["path[text]:'x'"]));
    assert!(has("table vault.secrets: INSERT:", &["name[text]:'in part'"]));
    // The audit log tells of them.
    assert!(
        !changes.lines().any(|line| line.contains("never") && !line.contains("vault.audit_log")),
        "rolled back"
    );
    assert!(!changes.contains("no-tuple-data"), "a row without its key");
    let bytes: i64 = root
        .ask("SELECT sum(length(data)) FROM pg_logical_slot_get_binary_changes('binary', NULL, NULL, 'proto_version', '1', 'publication_names', 'everything')")
        .parse()
        .expect("a number");
    assert!(bytes > 10_000, "{bytes}");

    // A superuser who takes the keys away from a published table is told where the server tells everybody.
    root.ask("ALTER TABLE vault.secrets REPLICA IDENTITY NOTHING");
    for call in [
        "SELECT vault.put_secret('kept', 'x')",
        "SELECT vault.delete_secret('kept')",
        "SELECT vault.rename_secret('kept', 'x')",
    ] {
        sqlstate!(manager.try_ask(call), "55000", message: "replica identity");
    }
    manager.ask("SELECT vault.create_secret('more', 'v')");
    root.ask("ALTER TABLE vault.secrets REPLICA IDENTITY FULL; SELECT vault.put_secret('kept', 'x'); SELECT vault.delete_secret('more')");
    let changes = root.ask("SELECT data FROM pg_logical_slot_get_changes('text', NULL, NULL) WHERE data LIKE 'table vault.secrets: %'");
    assert!(
        changes.lines().any(|line| line.contains("DELETE:") && line.contains("name[text]:'more'")),
        "{changes}"
    );
}

#[test]
fn minimal_wal_loses_nothing() {
    let cluster = Cluster::builder()
        .conf("wal_level", "minimal")
        .conf("max_wal_senders", "0")
        .conf("wal_skip_threshold", "0")
        .start();
    let mut root = cluster.superuser();
    // Tables made by the same transaction that writes to them are not logged row by row.
    root.ask("BEGIN; CREATE EXTENSION hyperion_vault; SELECT vault.create_secret('with the tables', repeat('v', 100000), grace_period => '1 day'); SELECT vault.put_secret('with the tables', 'w'); COMMIT");
    root.ask("SELECT vault.create_secret('later', 'v'); SELECT vault.put_secret('later', 'w')");
    root.ask("BEGIN; TRUNCATE vault.tokens, vault.role_bindings; SELECT vault.create_role('r'); SELECT vault.create_token('t', 'r'); COMMIT");
    cluster.kill_postmaster_9();
    cluster.start_again();
    let mut root = cluster.superuser();
    assert_eq!(root.ask("SELECT vault.read_secret('with the tables'), length(vault.read_secret('with the tables', 1)), vault.read_secret('later')"), "w|100000|w");
    assert_eq!(root.ask("SELECT name, role FROM vault.list_tokens()"), "t|r");
    check(&mut root);
    cluster.restart(StopMode::Immediate);
    check(&mut cluster.superuser());
}

/// Of a table, updates and those that stayed on their page without a new index entry.
fn updates(client: &mut Client, table: &str) -> (i64, i64) {
    client.ask("SELECT pg_stat_force_next_flush()");
    let row = client
        .query_one(
            "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_all_tables WHERE relid = $1::text::regclass",
            &[&table],
        )
        .expect("the statistics");
    (row.get(0), row.get(1))
}

#[test]
fn updates_stay_on_their_page() {
    let cluster = Cluster::builder().conf("autovacuum", "off").start();
    let vault = cluster.vault();
    let mut root = vault.root();
    root.ask("SELECT vault.create_secret('s', 'v', keep_versions => 1, generator => '{}'); SELECT vault.create_secret('t', 'v')");
    let before = updates(&mut root, "vault.secrets");
    for i in 0..100 {
        root.ask(&format!("SELECT vault.put_secret('s', 'value {i}')"));
        root.ask(&format!("SELECT vault.update_secret('t', description => 'text {i}')"));
    }
    let after = updates(&mut root, "vault.secrets");
    let (all, hot) = (after.0 - before.0, after.1 - before.1);
    assert!(all >= 200 && hot * 10 >= all * 9, "{hot} of {all} updates were HOT");
    let pages: i64 = root.ask("SELECT pg_relation_size('vault.secrets') / 8192").parse().expect("a number");
    // Four, if they were filled: a fifth of each is left free.
    assert!(pages <= 5, "{pages} pages for two secrets");
    // An index of a superuser over what changes makes them ordinary ones, and keeps them right.
    root.ask("CREATE INDEX x ON vault.secrets (updated_at)");
    let before = updates(&mut root, "vault.secrets");
    for i in 0..20 {
        root.ask(&format!("SELECT vault.put_secret('s', 'more {i}')"));
    }
    let after = updates(&mut root, "vault.secrets");
    assert_eq!(after.1 - before.1, 0, "HOT although an indexed column changed");
    check(&mut root);
}

#[test]
fn unchanged_large_values_stay_where_they_are() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut root = vault.root();
    let toast =
        root.ask("SELECT reltoastrelid::regclass FROM pg_class WHERE oid = 'vault.secrets'::regclass");
    let chunks =
        format!("SELECT string_agg(DISTINCT chunk_id::text, ' ' ORDER BY chunk_id::text) FROM {toast}");
    root.ask("CREATE FUNCTION noise(n int) RETURNS text LANGUAGE sql AS $$ SELECT string_agg(md5(i::text), '') FROM generate_series(1, n) i $$");
    root.ask("SELECT vault.create_secret('big', noise(3200), grace_period => '1 day', metadata => jsonb_build_object('a', noise(1500)), generator => '{}')");
    let there: BTreeSet<String> = root.ask(&chunks).split(' ').map(str::to_owned).collect();
    assert!(!there.is_empty());
    for call in [
        "vault.update_secret('big', description => 'd')",
        "vault.update_secret('big', keep_versions => 3, expires_in => '1 day')",
        "vault.update_secret('big', reset => '{description}')",
        "vault.delete_secret('big', '1 day')",
        "vault.restore_secret('big')",
    ] {
        root.ask(&format!("SELECT {call}"));
        let now: BTreeSet<String> = root.ask(&chunks).split(' ').map(str::to_owned).collect();
        assert_eq!(now, there, "rewritten by {call}");
    }
    // In the WAL, too, a small change of a large secret is small.
    let mut session = vault.root();
    let begun = session.ask("SELECT pg_current_wal_insert_lsn()");
    session.ask("CHECKPOINT; SELECT vault.update_secret('big', description => 'again'); SELECT vault.update_secret('big', description => 'and again')");
    let after = session.ask(&format!("SELECT pg_current_wal_insert_lsn() - '{begun}' < 60000"));
    assert_eq!(after, "t");
    // A new value: the old one moves to the superseded versions, and both read well.
    root.ask("SELECT vault.put_secret('big', noise(3300)); SELECT vault.rename_secret('big', 'bigger')");
    assert_eq!(
        root.ask("SELECT vault.read_secret('bigger') = noise(3300), vault.read_secret('bigger', 1) = noise(3200), metadata ->> 'a' = noise(1500) FROM vault.list_secrets('bigger')"),
        "t|t|t"
    );
    for table in TABLES {
        root.ask(&format!("VACUUM FULL vault.{table}"));
    }
    assert_eq!(
        root.ask(
            "SELECT vault.read_secret('bigger') = noise(3300), vault.read_secret('bigger', 1) = noise(3200)"
        ),
        "t|t"
    );
    assert_eq!(state(&mut root, "SELECT vault.delete_secret('bigger')"), "00000");
    // Nothing of it is left behind.
    root.ask("VACUUM vault.secrets");
    assert_eq!(root.ask(&format!("SELECT count(*) FROM {toast}")), "0");
    check(&mut root);
}
