//! The caller's session: the extension takes on no role and sets no setting for its own work, so that it is the same after
//! each call, however that ends. A target's function runs in a scope of its own, of which nothing is left. And whose rights
//! count: those of the effective role, whatever the session's settings are.

use super::{state, text};
use hyperion_vault_tests::threads::background;
use hyperion_vault_tests::{Ask, Client, Cluster, NoTls, PATIENCE, Vault, backend_pid, sqlstate, wait_for};

/// What must be the same before and after: roles, and every setting with where it comes from.
fn surroundings(client: &mut Client) -> String {
    text(
        client,
        "SELECT pg_catalog.concat_ws('|', session_user, current_user, pg_catalog.current_setting('search_path'),
           pg_catalog.current_setting('row_security'), pg_catalog.current_setting('role'),
           (SELECT pg_catalog.md5(pg_catalog.string_agg(pg_catalog.concat_ws(' ', s.name, s.setting, s.source), ',' ORDER BY s.name))
              -- Shows counters of a build for tests.
              FROM pg_catalog.pg_settings s WHERE s.name <> 'hyperion_vault.test_counters'))",
    )
}

/// A session of `spy`, who may do everything, with settings of its own.
fn spy(vault: &Vault<'_>) -> Client {
    let mut client = vault.session("spy");
    // The first function in PL/pgSQL brings settings of the language along.
    client
        .batch_execute("DO 'BEGIN END'; SET search_path = public, pg_catalog; SET statement_timeout = '60s'")
        .unwrap();
    client
}

#[test]
fn the_session_is_the_callers() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut root = vault.root();
    // Two targets: a function that tells what it runs as, and changes what it can; and one that fails after it.
    root.ask(
        "CREATE ROLE spy LOGIN IN ROLE vault_reader, vault_admin;
         CREATE ROLE setter LOGIN IN ROLE vault_reader, vault_admin;
         CREATE SCHEMA hooks AUTHORIZATION setter;
         CREATE TABLE hooks.witness (told text); ALTER TABLE hooks.witness OWNER TO setter",
    );
    let mut setter = vault.session("setter");
    setter.ask(
        "CREATE FUNCTION hooks.tell(name text, version int) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
           INSERT INTO hooks.witness SELECT concat_ws('|', session_user, current_user, current_setting('search_path'),
             current_setting('row_security'));
           PERFORM set_config('search_path', 'hooks', false), set_config('work_mem', '1234kB', false);
           IF name = 'fails' AND version > 1 THEN RAISE 'refused'; END IF; END $$;
         SELECT vault.create_secret('a', 'value of a', generator => '{\"length\": 20}'), vault.create_secret('b', 'value of b');
         SELECT vault.create_secret(n, 'v', target => '{\"type\":\"function\",\"function\":\"hooks.tell\"}') FROM unnest('{told,fails}'::text[]) n",
    );
    root.ask("TRUNCATE hooks.witness");
    let mut client = spy(&vault);
    let outside = surroundings(&mut client);
    assert!(outside.starts_with("spy|spy|public, pg_catalog|on|none|"), "{outside}");

    // The positive control: a target's function runs as its setter, with settings of the extension's.
    client.ask("SELECT vault.put_secret('told', 'w')");
    assert_eq!(root.ask("SELECT told FROM hooks.witness"), "spy|setter|pg_catalog, pg_temp|on");
    assert_eq!(surroundings(&mut client), outside);
    // And the comparison sees a setting that changes.
    client.ask("SET work_mem = '1234kB'");
    assert_ne!(surroundings(&mut client), outside);
    client.ask("RESET work_mem");
    assert_eq!(surroundings(&mut client), outside);

    for (call, expected) in [
        ("SELECT vault.read_secret('a')", "00000"),
        ("SELECT vault.rotate_secret('a')", "00000"),
        ("SELECT * FROM vault.list_secrets()", "00000"),
        ("SELECT vault.status()", "00000"),
        ("SELECT decrypted_secret FROM vault.decrypted_secrets WHERE name = 'a'", "00000"),
        ("SELECT vault.put_secret('told', 'x')", "00000"),
        // Refused by the extension, before and between its changes; by a unique index, in one; by a target's function, after it.
        ("SELECT vault.read_secret('none')", "P0002"),
        ("SELECT vault.rotate_secret('b')", "55000"),
        ("SELECT vault.put_secret('a', 'x', expected_version => 77)", "55000"),
        ("SELECT * FROM vault.list_versions('none')", "P0002"),
        ("SELECT vault.update_secret('a', reset => '{nothing}')", "22023"),
        ("SELECT vault.update_secret('b', kind => 'automatic')", "22023"),
        ("SELECT vault.create_secret('a', 'x')", "23505"),
        ("SELECT vault.rename_secret('a', 'b')", "23505"),
        ("SELECT vault.put_secret('fails', 'x')", "38000"),
    ] {
        assert_eq!(state(&mut client, call), expected, "{call}");
        assert_eq!(surroundings(&mut client), outside, "after {call}");
        // Caught by an exception block: the transaction goes on.
        let caught = format!(
            "DO $$ BEGIN PERFORM 1 FROM ({call}) q; EXCEPTION WHEN OTHERS THEN
               IF current_user <> 'spy' OR current_setting('search_path') <> 'public, pg_catalog' THEN RAISE 'not the caller''s'; END IF; END $$"
        );
        client.batch_execute("BEGIN; SAVEPOINT s").unwrap();
        assert_eq!(state(&mut client, &caught), "00000", "{call}");
        assert_eq!(surroundings(&mut client), outside, "after {call}, caught");
        let plain = state(&mut client, call);
        client.batch_execute("ROLLBACK TO s").unwrap();
        assert_eq!(
            (plain.as_str(), surroundings(&mut client)),
            (expected, outside.clone()),
            "savepoint, {call}"
        );
        client.batch_execute("ROLLBACK").unwrap();
        assert_eq!(surroundings(&mut client), outside, "after rollback, {call}");
    }

    interrupted(&vault, &outside);
    under_settings_of_its_own(&vault);
    whose_rights_count(&vault);
}

/// Calls that are interrupted while they wait for a row lock.
fn interrupted(vault: &Vault<'_>, outside: &str) {
    let mut holder = vault.root();
    holder.batch_execute("BEGIN; SELECT vault.put_secret('a', 'held')").unwrap();
    for how in ["cancel", "lock_timeout", "caught"] {
        let mut client = spy(vault);
        let (pid, token) = (backend_pid(&mut client), client.cancel_token());
        if how == "lock_timeout" {
            client.batch_execute("SET lock_timeout = '100ms'").unwrap();
        }
        let sql = match how {
            "caught" => {
                "DO $$ BEGIN PERFORM vault.rotate_secret('a'); EXCEPTION WHEN query_canceled THEN
                   IF current_user <> 'spy' THEN RAISE 'not the caller''s'; END IF; END $$"
            }
            _ => "SELECT vault.rotate_secret('a')",
        };
        let waiting = background(move || (state(&mut client, sql), client));
        if how != "lock_timeout" {
            let mut root = vault.root();
            wait_for("the session to wait for the row", PATIENCE, || {
                let blocked = "SELECT cardinality(pg_blocking_pids($1)) > 0";
                root.query_one(blocked, &[&pid]).unwrap().get(0)
            });
            token.cancel_query(NoTls).unwrap();
        }
        let (outcome, mut client) = waiting.finish(PATIENCE);
        let expected = match how {
            "cancel" => "57014",
            "lock_timeout" => "55P03",
            _ => "00000",
        };
        assert_eq!(outcome, expected, "{how}");
        client.batch_execute("RESET lock_timeout").unwrap();
        assert_eq!(surroundings(&mut client), outside, "{how}");
    }
    holder.batch_execute("ROLLBACK").unwrap();
    assert_eq!(state(&mut spy(vault), "SELECT vault.rotate_secret('a')"), "00000", "no lock is left");
}

/// Session settings that change what SQL means, or that row-level security would trip over.
fn under_settings_of_its_own(vault: &Vault<'_>) {
    let mut root = vault.root();
    for (who, settings) in [
        ("spy", "SET row_security = off"),
        ("spy", "SET default_transaction_isolation = 'serializable'; SET row_security = off"),
        (
            "spy",
            "SET transform_null_equals = on; SET standard_conforming_strings = off; SET quote_all_identifiers = on",
        ),
        (
            "spy",
            "SET DateStyle = 'German'; SET IntervalStyle = 'sql_standard'; SET TimeZone = 'Pacific/Apia'",
        ),
        (
            "spy",
            "SET plan_cache_mode = force_generic_plan; SET enable_indexscan = off; SET jit_above_cost = 0",
        ),
        ("spy", "SET default_tablespace = ''; SET xmloption = document; SET array_nulls = off"),
        ("postgres", "SET session_replication_role = replica"),
        ("postgres", "SET session_replication_role = replica; SET row_security = off"),
    ] {
        let mut client = vault.session(who);
        client.batch_execute(settings).unwrap();
        for (call, expected) in [
            ("SELECT (vault.create_secret('s', 'one', grace_period => '1 day')).version::text", "1"),
            ("SELECT (vault.put_secret('s', 'two')).version::text", "2"),
            ("SELECT (vault.update_secret('s', value => 'three', keep_versions => 1)).version::text", "3"),
            ("SELECT vault.read_secret('s')", "three"),
            ("SELECT vault.read_secret('s', 1)", "one"),
            ("SELECT valid::text FROM vault.verify('s', 'two')", "true"),
            ("SELECT count(*)::text FROM vault.list_versions('s')", "3"),
            ("SELECT name FROM vault.list_secrets('s')", "s"),
            ("SELECT vault.delete_secret('s')::text", ""),
            ("SELECT count(*)::text FROM vault.list_secrets('s')", "0"),
        ] {
            assert_eq!(text(&mut client, call), expected, "{settings}: {call}");
        }
        let left = "SELECT count(*)::text FROM vault.secret_versions v
                    WHERE NOT EXISTS (SELECT FROM vault.secrets s WHERE s.id = v.secret_id)";
        assert_eq!(text(&mut root, left), "0", "{settings}: versions without their secret");
    }
}

/// The effective role decides: not who logged in, nor who wrote the calling function.
fn whose_rights_count(vault: &Vault<'_>) {
    let mut root = vault.root();
    root.batch_execute(
        "CREATE ROLE late LOGIN NOINHERIT IN ROLE vault_reader;
         CREATE FUNCTION public.as_app(n text) RETURNS text SECURITY DEFINER LANGUAGE sql VOLATILE
           AS 'SELECT vault.read_secret(n)';
         ALTER FUNCTION public.as_app OWNER TO app;
         CREATE FUNCTION public.as_ops(n text) RETURNS text SECURITY DEFINER LANGUAGE sql VOLATILE
           AS 'SELECT vault.read_secret(n)';
         ALTER FUNCTION public.as_ops OWNER TO ops;
         CREATE FUNCTION public.write_as_ops(n text, v text) RETURNS void SECURITY DEFINER LANGUAGE plpgsql
           AS $$ BEGIN PERFORM vault.put_secret(n, v);
             IF current_user <> 'ops' THEN RAISE 'not the owner any more'; END IF; END $$;
         ALTER FUNCTION public.write_as_ops OWNER TO ops;",
    )
    .unwrap();
    let read = "SELECT vault.read_secret('b')";

    let mut nobody = vault.nobody();
    assert_eq!(state(&mut nobody, read), "42501");
    assert_eq!(text(&mut nobody, "SELECT public.as_app('b')"), "value of b");
    assert_eq!(text(&mut nobody, "SELECT current_user::text"), "nobody_special");
    assert_eq!(state(&mut nobody, "SELECT public.write_as_ops('b', 'written')"), "00000");
    let mut app = vault.app();
    assert_eq!(text(&mut app, read), "written");
    let refused = app.query("SELECT public.as_ops('b')", &[]);
    sqlstate!(refused, "42501", message: "permission denied to read secret", hint: "vault_reader");
    sqlstate!(app.query("SELECT vault.put_secret('b', 'x')", &[]), "42501", message: "permission denied");

    // SET ROLE, in both directions, for a superuser too.
    let mut late = vault.session("late");
    assert_eq!(state(&mut late, read), "42501", "a member without INHERIT");
    late.batch_execute("SET ROLE vault_reader").unwrap();
    assert_eq!(text(&mut late, read), "written");
    late.batch_execute("RESET ROLE").unwrap();
    assert_eq!(state(&mut late, read), "42501");
    assert_eq!(text(&mut root, read), "written");
    for (role, expected) in
        [("ops", "42501"), ("nobody_special", "42501"), ("vault_service", "42501"), ("app", "00000")]
    {
        root.batch_execute(&format!("BEGIN; SET LOCAL ROLE {role}; SAVEPOINT s")).unwrap();
        assert_eq!(state(&mut root, read), expected, "{role}");
        root.batch_execute("ROLLBACK").unwrap();
    }
    root.batch_execute("SET SESSION AUTHORIZATION ops").unwrap();
    assert_eq!(state(&mut root, read), "42501");

    // A right that is taken away is gone for sessions that are open.
    let mut open = vault.app();
    assert_eq!(text(&mut open, read), "written");
    vault.root().batch_execute("REVOKE vault_reader FROM app").unwrap();
    assert_eq!(state(&mut open, read), "42501");
}
