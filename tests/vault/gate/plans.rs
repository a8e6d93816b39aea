//! How the planner and executor may call the functions: parallel plans give right values, EXPLAIN opens nothing.

use super::{state, text};
use hyperion_vault_tests::{Ask, Client, Cluster, Vault, sqlstate};

/// How many data keys have been looked up on this server: every opened version is one.
fn lookups(client: &mut Client) -> i64 {
    let sql =
        "SELECT (c->>'hits')::bigint + (c->>'misses')::bigint FROM (SELECT vault.status()->'cache') s(c)";
    client.query_one(sql, &[]).unwrap().get(0)
}

#[test]
fn parallel_plans_and_explain() {
    let cluster = Cluster::builder().conf("max_parallel_workers_per_gather", "2").start();
    let vault = cluster.vault();
    let mut root = vault.root();
    root.batch_execute(
        "SELECT vault.create_secret('p/' || n, 'value ' || n, grace_period => '1 day') FROM generate_series(0, 2) n;
         SELECT vault.put_secret('p/0', 'newer');
         CREATE TABLE big AS SELECT n FROM generate_series(1, 30000) n; ANALYZE big;
         GRANT SELECT ON big TO PUBLIC;
         CREATE FUNCTION lies(n text) RETURNS text LANGUAGE sql VOLATILE PARALLEL SAFE AS 'SELECT vault.read_secret(n)';
         CREATE FUNCTION folds(n text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS
           $$ BEGIN RETURN vault.read_secret(n); END $$;",
    )
    .unwrap();

    let mut app = vault.app();
    app.batch_execute(
        "SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0",
    )
    .unwrap();
    let force = text(
        &mut root,
        "SELECT name FROM pg_settings WHERE name IN ('debug_parallel_query', 'force_parallel_mode') LIMIT 1",
    );
    for forced in ["off", "on"] {
        app.batch_execute(&format!("SET {force} = {forced}")).unwrap();
        for (sql, expected) in [
            ("SELECT vault.read_secret('p/1')", "value 1"),
            ("SELECT vault.read_secret('p/0', 1)", "value 0"),
            ("SELECT value FROM vault.get_secret('p/2')", "value 2"),
            ("SELECT version::text FROM vault.verify('p/0', 'value 0')", "1"),
            ("SELECT count(*)::text FROM vault.list_versions('p/0')", "2"),
            ("SELECT vault.status()->>'secrets'", "3"),
        ] {
            assert_eq!(text(&mut app, sql), expected, "{forced}: {sql}");
        }
        // Plans that really have workers below the call.
        for (sql, expected) in [
            (
                "SELECT string_agg(DISTINCT v, ',' ORDER BY v) FROM
                   (SELECT vault.read_secret('p/' || n % 3) v FROM (SELECT n FROM big WHERE n % 1000 = 0 OFFSET 0) b) r",
                "newer,value 1,value 2",
            ),
            (
                "SELECT count(*)::text FROM big, vault.get_secret('p/1') g WHERE n % 10000 = 0 AND g.value = 'value 1'",
                "3",
            ),
            ("SELECT count(*)::text FROM big, vault.list_secrets() l WHERE n % 10000 = 0", "9"),
            ("SELECT count(*)::text FROM big, vault.list_versions('p/0') l WHERE n % 10000 = 0", "6"),
            (
                "SELECT count(*)::text FROM (SELECT n FROM big WHERE n % 10000 = 0 OFFSET 0) b,
                   LATERAL vault.verify('p/1', 'value ' || n % 3) v WHERE v.valid",
                "1",
            ),
            ("SELECT (count(*), vault.status()->>'secrets')::text FROM big", "(30000,3)"),
        ] {
            let plan: String =
                app.query(&format!("EXPLAIN {sql}"), &[]).unwrap().iter().map(|row| row.get::<_, String>(0)).collect();
            assert!(plan.contains("Workers Planned"), "no parallel plan: {plan}");
            assert_eq!(text(&mut app, sql), expected, "{forced}: {sql}");
        }
    }
    // A wrapper that claims to be safe is run in a worker, which has no client: refused, not guessed.
    let refused = app.query("SELECT public.lies('p/1')", &[]);
    sqlstate!(refused, "42501", message: "client address is not allowed");
    app.batch_execute(&format!("SET {force} = off")).unwrap();
    assert_eq!(text(&mut app, "SELECT public.lies('p/1')"), "value 1");

    writes_are_refused(&vault, &force);
    explain_opens_nothing(&mut app, &mut vault.ops());
}

/// Every function that writes, below one that claims to be safe: refused in the leader and in workers, before anything is
/// written or the key service is asked.
fn writes_are_refused(vault: &Vault<'_>, force: &str) {
    let mut root = vault.root();
    root.ask(
        "CREATE FUNCTION lies_about(sql text) RETURNS void LANGUAGE plpgsql VOLATILE PARALLEL SAFE AS 'BEGIN EXECUTE sql; END';
         SELECT vault.create_secret('a/x', 'v', generator => '{}'); SELECT vault.create_secret_bytes('a/b', 'v');
         SELECT vault.create_secret('a/deleted', 'v'); SELECT vault.delete_secret('a/deleted', '1 day'); SELECT vault.create_role('r')",
    );
    let state_of = "SELECT md5(string_agg(s::text, ',' ORDER BY id)), (SELECT count(*) FROM vault.secret_versions),
        (SELECT count(*) FROM vault.roles), (SELECT count(*) FROM vault.tokens), (SELECT count(*) FROM vault.role_bindings),
        vault.status() -> 'kms' ->> 'calls' FROM vault.secrets s";
    let before = root.ask(state_of);
    for (workers, place) in [("0", "EXECUTE"), ("8", "parallel worker")] {
        let mut client = vault.root();
        client.ask(&format!("SET {force} = on; SET max_parallel_workers = {workers}"));
        for call in [
            "create_secret('a/new', 'v')",
            "create_secret_bytes('a/new', 'v')",
            "put_secret('a/x', 'w')",
            "put_secret('a/new', 'w')",
            "put_secret_bytes('a/b', 'w')",
            "update_secret('a/x', description => 'd')",
            "rotate_secret('a/x')",
            "roll_back_secret('a/x', 1)",
            "rename_secret('a/x', 'a/y')",
            "delete_secret('a/x')",
            "restore_secret('a/deleted')",
            "import_sealed('{}')",
            "create_role('s')",
            "set_role_permissions('r', '[]')",
            "bind_role('r', 'app')",
            "unbind_role('r', 'app')",
            "drop_role('r')",
            "create_token('t', 'r')",
            "revoke_token('t')",
            "rebind_roles()",
        ] {
            let sql = format!("SELECT public.lies_about($$SELECT vault.{call}$$)");
            let refused = sqlstate!(client.try_ask(&sql), "25006", message: "during a parallel operation", hint: "PARALLEL UNSAFE");
            let context = refused.where_().unwrap_or_default();
            assert!(context.ends_with(place), "{call}: {context}");
        }
    }
    assert_eq!(root.ask(state_of), before);
}

fn explain_opens_nothing(app: &mut Client, observer: &mut Client) {
    app.batch_execute("PREPARE p AS SELECT vault.read_secret('p/1')").unwrap();
    let reads = [
        "SELECT vault.read_secret('p/1')",
        "SELECT * FROM vault.get_secret('p/1')",
        "SELECT valid FROM vault.verify('p/1', 'x')",
        "SELECT n FROM big WHERE n = 1 AND vault.read_secret('p/1') = 'value 1'",
        "SELECT 1 FROM (VALUES (1)) v ORDER BY vault.read_secret('p/1')",
        "EXECUTE p",
    ];
    let before = lookups(observer);
    for read in reads {
        for options in ["", "(VERBOSE, COSTS OFF)", "(FORMAT JSON)"] {
            assert_eq!(state(app, &format!("EXPLAIN {options} {read}")), "00000");
        }
    }
    assert_eq!(state(app, "EXPLAIN SELECT vault.read_secret('no such secret')"), "00000");
    assert_eq!(lookups(observer), before, "EXPLAIN has opened something");
    for read in reads {
        let before = lookups(observer);
        assert_eq!(state(app, &format!("EXPLAIN ANALYZE {read}")), "00000");
        assert!(lookups(observer) > before, "EXPLAIN ANALYZE runs the statement: {read}");
    }
    // A wrapper that claims to be immutable is run by the planner: with the caller's rights, and through the gate.
    let before = lookups(observer);
    assert_eq!(state(app, "EXPLAIN SELECT public.folds('p/1')"), "00000");
    assert!(lookups(observer) > before);
    assert_eq!(state(observer, "EXPLAIN SELECT public.folds('p/1')"), "42501");
}
