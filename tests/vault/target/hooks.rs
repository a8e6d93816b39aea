//! `function`: hooks that take what they are given, and hooks that do what they must not.

use super::{builder, prepare, version};
use crate::audit::LAST_WORDS;
use hyperion_vault_tests::{
    Ask, Client, Cluster, LogMark, PATIENCE, SIGTERM, Toolchain, Vault, sqlstate, wait_for,
};
use std::time::{Duration, Instant};

/// A schema of `keeper`'s with a table, and a function that writes what it reads there. `keeper` may read secrets, or his
/// function could be handed none, and the vault's address list has nobody in it but the harness.
const SCHEMA: &str = "
    GRANT vault_reader TO keeper;
    CREATE SCHEMA app AUTHORIZATION keeper; SET ROLE keeper;
    CREATE TABLE app.seen (at serial, name text, version int, username text, value text, as_role name, path text);
    CREATE FUNCTION app.on_rotate(name text, version int) RETURNS void LANGUAGE plpgsql AS $$
    DECLARE got record;
    BEGIN
        SELECT * INTO got FROM vault.get_secret(name, version) g;
        INSERT INTO app.seen (name, version, username, value, as_role, path)
        VALUES (name, version, got.username, coalesce(got.value, got.password), current_user, current_setting('search_path'));
    END $$;
    RESET ROLE;";

fn set_up(cluster: &Cluster) -> Vault<'_> {
    let vault = prepare(cluster);
    vault.root().batch_execute(SCHEMA).expect("cannot make the schema");
    vault
}

fn target(function: &str) -> String {
    format!("'{{\"type\":\"function\",\"function\":\"{function}\"}}'")
}

fn create(keeper: &mut Client, function: &str) -> String {
    keeper.ask(&format!("SELECT version, target ->> 'function' FROM vault.create_secret('hooked', 'first', generator => '{{}}', target => {})", target(function)))
}

#[test]
fn a_hook_is_given_each_new_version() {
    let cluster = builder().start();
    let vault = set_up(&cluster);
    let (mut keeper, mut ops, mut app, mut root) =
        (vault.session("keeper"), vault.ops(), vault.app(), vault.root());
    assert_eq!(create(&mut keeper, "app.on_rotate"), "1|app.on_rotate(text,int)");
    let last = "SELECT name, version, username, value, as_role, path FROM app.seen ORDER BY at DESC LIMIT 1";
    assert_eq!(root.ask(last), "hooked|1|∅|first|keeper|pg_catalog, pg_temp");

    // Every way to a new version, by others than the setter; also where the caller has no business in the schema.
    ops.batch_execute("SET search_path = public").unwrap();
    ops.ask("SELECT vault.rotate_secret('hooked')");
    let value = app.ask("SELECT vault.read_secret('hooked')");
    assert_eq!(root.ask(last), format!("hooked|2|∅|{value}|keeper|pg_catalog, pg_temp"));
    ops.ask("SELECT vault.put_secret('hooked', 'third')");
    ops.ask("SELECT vault.update_secret('hooked', value => 'fourth')");
    ops.ask("SELECT vault.roll_back_secret('hooked', 3)");
    assert_eq!(
        root.ask(
            "SELECT string_agg(version || ' ' || value, ', ' ORDER BY at) FROM app.seen WHERE version > 2"
        ),
        "3 third, 4 fourth, 5 third"
    );
    // No new version, no call; another name is what the next call is given.
    ops.ask("SELECT vault.update_secret('hooked', description => 'd')");
    root.ask("SELECT vault.rename_secret('hooked', 'hooked/2')");
    assert_eq!(root.ask("SELECT count(*) FROM app.seen"), "5");
    ops.ask("SELECT vault.put_secret('hooked/2', 'sixth')");
    assert_eq!(root.ask(last), "hooked/2|6|∅|sixth|keeper|pg_catalog, pg_temp");
    // One transaction with the caller's.
    ops.ask("BEGIN; SELECT vault.put_secret('hooked/2', 'never'); ROLLBACK");
    assert_eq!(root.ask("SELECT count(*) FROM app.seen"), "6");
    ops.ask("SELECT vault.update_secret('hooked/2', reset => '{target}')");
    ops.ask("SELECT vault.put_secret('hooked/2', 'alone')");
    assert_eq!(root.ask("SELECT count(*) FROM app.seen"), "6");

    // Both parts of a userpass secret; bytes.
    keeper.ask(&format!(
        "SELECT vault.create_secret('up', username => 'u', password => 'p', target => {})",
        target("app.on_rotate(text,int)")
    ));
    assert_eq!(root.ask(last), "up|1|u|p|keeper|pg_catalog, pg_temp");
    keeper.batch_execute(
        "CREATE FUNCTION app.on_bytes(name text, version int) RETURNS bytea LANGUAGE sql AS
           $$ INSERT INTO app.seen (value) VALUES (encode(vault.read_secret_bytes(name), 'hex')); SELECT vault.read_secret_bytes(name, version) $$",
    )
    .unwrap();
    keeper.ask("SELECT vault.create_secret_bytes('bytes', '\\x0102')");
    keeper.ask(&format!("SELECT vault.update_secret('bytes', target => {})", target("app.on_bytes")));
    ops.ask("SELECT vault.put_secret_bytes('bytes', '\\x0304')");
    assert_eq!(root.ask("SELECT string_agg(value, ' ' ORDER BY at) FROM (SELECT * FROM app.seen ORDER BY at DESC LIMIT 2) s"), "0102 0304");

    // A secret's own address list does not keep its hook out, nor does the vault's; both keep everybody else out.
    cluster.set_conf("hyperion_vault.allowed_ips", "");
    ops.ask("SELECT vault.update_secret('up', allowed_ips => '{10.9.9.9}')");
    ops.ask("SELECT vault.update_secret('up', password => 'q')");
    assert_eq!(root.ask(last), "up|2|u|q|keeper|pg_catalog, pg_temp");
    sqlstate!(app.try_ask("SELECT vault.read_secret('up')"), "42501", message: "address");
    sqlstate!(keeper.try_ask("SELECT vault.read_secret('up')"), "42501", message: "address");
    cluster.reset_conf("hyperion_vault.allowed_ips");

    // Whatever the caller has set, the function means what it meant; and names may be any.
    root.ask("GRANT CREATE ON DATABASE postgres TO keeper");
    keeper
        .batch_execute(
            r#"CREATE SCHEMA "We""ird"; CREATE FUNCTION "We""ird"."On Rotate"(text, int) RETURNS void LANGUAGE plpgsql AS
               $$ BEGIN INSERT INTO app.seen (name, value) VALUES ($1, concat('a\b', NULL = NULL, '\x01'::bytea, interval '1 day 1 hour')); END $$"#,
        )
        .unwrap();
    keeper.ask(&format!(
        "SELECT vault.create_secret('weird', 'v', target => {})",
        target(r#"\"We\"\"ird\".\"On Rotate\""#)
    ));
    let meant = root.ask("SELECT value FROM app.seen WHERE name = 'weird'");
    ops.batch_execute(
        "SET standard_conforming_strings = off; SET backslash_quote = on; SET transform_null_equals = on; SET bytea_output = escape;
         SET IntervalStyle = sql_standard",
    )
    .unwrap();
    ops.ask("SELECT vault.put_secret('weird', 'w')");
    assert_eq!(
        root.ask("SELECT count(*), min(value) FROM app.seen WHERE name = 'weird'"),
        format!("2|{meant}")
    );
    assert_eq!(root.ask("SELECT count(DISTINCT value) FROM app.seen WHERE name = 'weird'"), "1");

    // SECURITY DEFINER: the function's owner is whom the value is for.
    root.batch_execute(
        "CREATE TABLE app.owned (value text); GRANT USAGE ON SCHEMA app TO PUBLIC;
         CREATE FUNCTION app.as_owner(name text, version int) RETURNS void LANGUAGE sql SECURITY DEFINER AS
           $$ INSERT INTO app.owned SELECT vault.read_secret(name) || ' ' || current_user $$",
    )
    .unwrap();
    keeper.ask(&format!("SELECT vault.create_secret('definer', 'd', target => {})", target("app.as_owner")));
    assert_eq!(root.ask("SELECT * FROM app.owned"), "d postgres");
    // No key service is asked while the secret is locked, cache or no cache.
    cluster.set_conf("hyperion_vault.dek_cache_ttl_secs", "0");
    let calls = "SELECT vault.status() #>> '{kms,calls}'";
    let before: i64 = root.ask(calls).parse().unwrap();
    ops.ask("SELECT vault.put_secret('definer', 'e')");
    assert_eq!(root.ask("SELECT count(*) FROM app.owned WHERE value = 'e postgres'"), "1");
    assert_eq!(root.ask(calls).parse::<i64>().unwrap(), before + 1, "one new key");
}

/// Who manages the vault and may not read a secret does not come to read it through a function of his: neither when he
/// sets the target, nor later, when the right he had then is gone.
#[test]
fn a_hook_is_handed_only_what_its_setter_may_read() {
    let cluster = builder().start();
    let vault = set_up(&cluster);
    let mut root = vault.root();
    root.ask("REVOKE vault_reader FROM keeper; SELECT vault.create_secret('hooked', 'of somebody', generator => '{}')");
    let mut keeper = vault.session("keeper");
    let set = format!("SELECT vault.update_secret('hooked', target => {})", target("app.on_rotate"));
    let make = format!(
        "SELECT vault.create_secret('made', generator => '{{}}', target => {})",
        target("app.on_rotate")
    );
    let refused = |client: &mut Client, call: &str| {
        sqlstate!(client.try_ask(call), "42501", message: "to call app.on_rotate", detail: "must be allowed to read");
    };
    refused(&mut keeper, &set);
    refused(&mut keeper, &make);
    // The target outlives the transaction, a token does not: it does not count.
    root.ask(r#"SELECT vault.create_role('hooks', permissions => '[{"action":"read","path":"hooked"}]')"#);
    let token = root.ask("SELECT vault.create_token('hooks', 'hooks')");
    keeper.ask(&format!("BEGIN; SELECT vault.authenticate('{token}'); SELECT vault.read_secret('hooked')"));
    refused(&mut keeper, &set);
    keeper.ask("ROLLBACK");
    // A rule for this very name does, and is asked for again with each version.
    root.ask("SELECT vault.bind_role('hooks', 'keeper')");
    keeper.ask(&set);
    assert_eq!(root.ask("SELECT string_agg(value, ' ') FROM app.seen"), "of somebody");
    refused(&mut keeper, &make);
    vault.ops().ask("SELECT vault.put_secret('hooked', 'another')");
    root.ask("SELECT vault.unbind_role('hooks', 'keeper')");
    for rotation in ["SELECT vault.rotate_secret('hooked')", "SELECT vault.put_secret('hooked', 'a third')"] {
        refused(&mut vault.ops(), rotation);
    }
    assert_eq!(root.ask("SELECT string_agg(value, ', ' ORDER BY at) FROM app.seen"), "of somebody, another");
    assert_eq!(version(&mut root, "hooked"), 3, "the version that set the target, and one more");
}

/// Hooks that must make the rotation fail: body, SQLSTATE, a part of the message or detail.
const FAILING: [(&str, &str, &str); 17] = [
    ("RAISE 'no such luck'", "38000", "no such luck"),
    ("RAISE 'I have seen %', vault.read_secret(name)", "38000", "not repeated here"),
    ("PERFORM vault.read_secret('other')", "38000", "may read only the version it is called for"),
    ("PERFORM vault.read_secret(name, version - 1)", "38000", "may read only the version"),
    ("PERFORM vault.read_secrets(ARRAY[name])", "38000", "may read only the version"),
    ("PERFORM vault.verify(name, 'x')", "38000", "may read only the version"),
    (
        "PERFORM decrypted_secret FROM vault.decrypted_secrets d WHERE d.name = on_bad.name",
        "38000",
        "may read only the version",
    ),
    ("PERFORM vault.rotate_secret(name)", "38000", "cannot change the vault"),
    ("PERFORM vault.put_secret('other', 'x')", "38000", "cannot change the vault"),
    ("PERFORM vault.delete_secret(name)", "38000", "cannot change the vault"),
    ("PERFORM vault.update_secret('other', reset => '{target}')", "38000", "cannot change the vault"),
    ("INSERT INTO public.forbidden VALUES (1)", "38000", "permission denied for table forbidden"),
    ("SET ROLE vault_reader", "38000", "cannot set parameter \"role\""),
    (
        "CREATE TEMP TABLE t AS SELECT vault.read_secret(name)",
        "38000",
        "within security-restricted operation",
    ),
    ("COMMIT", "38000", "invalid transaction termination"),
    ("PERFORM pg_sleep(60)", "57014", "took too long"),
    ("BEGIN PERFORM pg_sleep(60); EXCEPTION WHEN query_canceled THEN NULL; END", "57014", "took too long"),
];

#[test]
fn what_a_hook_must_not_do_fails_the_rotation() {
    let cluster = builder().conf("hyperion_vault.hook_timeout_ms", "1500").start();
    let vault = set_up(&cluster);
    let (mut root, mut ops, mut app) = (vault.root(), vault.ops(), vault.app());
    // As strong a setter as there is, short of a superuser: what he may do otherwise does not count in a hook.
    root.batch_execute("CREATE TABLE public.forbidden (i int); GRANT vault_reader TO keeper").unwrap();
    let mut keeper = vault.session("keeper");
    keeper.ask("SELECT vault.create_secret('other', 'of another')");
    keeper.ask("SELECT vault.create_secret('hooked', 'the value of now', generator => '{}')");
    for (body, code, words) in FAILING {
        keeper
            .batch_execute(&format!(
                "CREATE OR REPLACE FUNCTION app.on_bad(name text, version int) RETURNS void LANGUAGE plpgsql AS
                   $f$ BEGIN IF version > 1 THEN {body}; END IF; END $f$"
            ))
            .unwrap();
        // Where it is set, and where it is called later.
        let set = format!("SELECT vault.update_secret('hooked', target => {})", target("app.on_bad"));
        let mark = cluster.log_mark();
        for call in [set.as_str(), "SELECT vault.rotate_secret('hooked')"] {
            let client = if call == set { &mut keeper } else { &mut ops };
            if call != set {
                root.ask("UPDATE vault.secrets SET (target, target_set_by, target_set_by_oid, target_roles) =
                    ('{\"type\":\"function\",\"function\":\"app.on_bad(text,int)\"}', 'keeper', 'keeper'::regrole, '{}') WHERE name = 'hooked'");
            }
            let error = sqlstate!(client.try_ask(call), code, message: "rotation hook app.on_bad(text,int) of secret \"hooked\"");
            let said = format!("{} {}", error.message(), error.detail().unwrap_or_default());
            assert!(said.contains(words), "{body}: {said}");
            assert!(error.hint().unwrap_or_default().contains("Nothing was changed"), "{error:?}");
            assert_eq!(version(&mut ops, "hooked"), 1, "{body}");
        }
        // The value that was refused was in no message.
        assert!(!cluster.log_contains(mark, "I have seen"), "{body}");
        root.ask("UPDATE vault.secrets SET (target, target_set_by, target_set_by_oid, target_roles) = (NULL, NULL, NULL, NULL)");
    }
    assert_eq!(app.ask("SELECT vault.read_secret('hooked')"), "the value of now");
    // The sessions are what they were: nothing of the hook is left in them.
    for (client, code) in [(&mut keeper, "P0002"), (&mut ops, "42501")] {
        assert_eq!(
            client.ask("SELECT current_user = session_user, current_setting('search_path')"),
            "t|\"$user\", public"
        );
        client.ask("CREATE TEMP TABLE t (i int); DROP TABLE t");
        sqlstate!(client.try_ask("BEGIN; SELECT vault.read_secret('no/such')"), code);
        client.ask("ROLLBACK");
    }
}

#[test]
fn a_hooks_time_is_its_own() {
    let cluster = builder().conf("hyperion_vault.hook_timeout_ms", "2000").start();
    let vault = set_up(&cluster);
    let (mut keeper, mut ops) = (vault.session("keeper"), vault.ops());
    keeper
        .batch_execute(
            "CREATE TABLE app.naps (seconds float); INSERT INTO app.naps VALUES (0);
             CREATE FUNCTION app.nap(name text, version int) RETURNS void LANGUAGE plpgsql AS
               $$ BEGIN PERFORM pg_sleep(seconds) FROM app.naps; SET statement_timeout = '1ms'; SET search_path = nowhere; END $$",
        )
        .unwrap();
    create(&mut keeper, "app.nap");
    // It neither changes the caller's settings nor uses up, or stops, the caller's own time.
    ops.batch_execute("SET statement_timeout = '6s'").unwrap();
    ops.ask("SELECT vault.rotate_secret('hooked'), pg_sleep(3)");
    assert_eq!(ops.ask("SHOW statement_timeout"), "6s");
    assert_eq!(ops.ask("SHOW search_path"), "\"$user\", public");
    let begun = Instant::now();
    sqlstate!(ops.try_ask("SELECT vault.rotate_secret('hooked'), pg_sleep(60)"), "57014", message: "statement timeout");
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    let at = version(&mut ops, "hooked");
    // The caller's own time, if it is the shorter one, ends the hook.
    keeper.ask("UPDATE app.naps SET seconds = 30");
    ops.batch_execute("SET statement_timeout = '100ms'").unwrap();
    sqlstate!(ops.try_ask("SELECT vault.rotate_secret('hooked')"), "57014", message: "statement timeout");
    ops.batch_execute("SET statement_timeout = 0").unwrap();
    // Late by itself; caught by the caller, who goes on undisturbed for longer than the hook might have.
    sqlstate!(ops.try_ask("SELECT vault.rotate_secret('hooked')"), "57014", message: "took too long", detail: "hook_timeout_ms is 2000", hint: "raise the setting");
    ops.ask(
        "DO $$ BEGIN
             BEGIN PERFORM vault.rotate_secret('hooked'); EXCEPTION WHEN query_canceled THEN NULL; END;
             PERFORM pg_sleep(3);
         END $$",
    );
    assert_eq!(version(&mut ops, "hooked"), at);
    // Waiting for a lock counts.
    let mut blocker = vault.session("keeper");
    keeper.ask("UPDATE app.naps SET seconds = 0");
    blocker.ask("BEGIN; LOCK TABLE app.naps");
    sqlstate!(ops.try_ask("SELECT vault.rotate_secret('hooked')"), "57014", message: "took too long");
    blocker.ask("COMMIT");
    ops.ask("SELECT vault.rotate_secret('hooked')");
    // A killed session leaves the secret as it was, and unlocked.
    keeper.ask("UPDATE app.naps SET seconds = 30");
    cluster.set_conf("hyperion_vault.hook_timeout_ms", "60000");
    let doomed = vault.ops();
    let pid = {
        let mut doomed = doomed;
        let pid = hyperion_vault_tests::backend_pid(&mut doomed);
        let busy = hyperion_vault_tests::threads::background(move || {
            doomed.try_ask("SELECT vault.rotate_secret('hooked')").is_err()
        });
        let mut root = vault.root();
        wait_for("the hook", PATIENCE, || {
            root.ask(&format!("SELECT wait_event FROM pg_stat_activity WHERE pid = {pid}")) == "PgSleep"
        });
        cluster.kill_and_wait(pid, SIGTERM);
        assert!(busy.finish(PATIENCE));
        pid
    };
    assert!(pid > 0);
    assert_eq!(version(&mut ops, "hooked"), at + 1);
    ops.ask("BEGIN; SET LOCAL lock_timeout = '1s'; SELECT vault.update_secret('hooked', description => 'd'); COMMIT");
}

#[test]
fn a_function_is_what_it_was_when_it_was_set() {
    let cluster = builder().start();
    let vault = set_up(&cluster);
    let (mut root, mut keeper, mut ops) = (vault.root(), vault.session("keeper"), vault.ops());
    root.batch_execute(
        "CREATE ROLE other LOGIN; CREATE SCHEMA theirs AUTHORIZATION other; GRANT USAGE ON SCHEMA theirs TO PUBLIC; SET ROLE other;
         CREATE FUNCTION theirs.f(text, int) RETURNS void LANGUAGE sql AS ''; RESET ROLE;
         CREATE SCHEMA shut; CREATE FUNCTION shut.f(text, int) RETURNS void LANGUAGE sql AS '';
         CREATE FUNCTION app.no_execute(text, int) RETURNS void LANGUAGE sql AS ''; REVOKE ALL ON FUNCTION app.no_execute FROM PUBLIC;
         CREATE FUNCTION app.a_set(text, int) RETURNS SETOF int LANGUAGE sql AS 'SELECT 1';
         CREATE PROCEDURE app.proc(text, int) LANGUAGE sql AS '';
         CREATE FUNCTION app.bigger(text, bigint) RETURNS void LANGUAGE sql AS ''",
    )
    .unwrap();
    let set = |client: &mut Client, function: &str| {
        client.try_ask(&format!(
            "SELECT vault.create_secret('hooked', 'v', generator => '{{}}', target => {})",
            target(function)
        ))
    };
    for (function, code, words) in [
        ("app.no_such(text,int)", "55000", "does not exist"),
        ("app.bigger(text,int)", "55000", "does not exist"),
        ("theirs.f(text,int)", "42501", "belongs neither to"),
        ("shut.f(text,int)", "42501", "USAGE on its schema"),
        ("app.no_execute(text,int)", "42501", "needs EXECUTE"),
        ("app.a_set(text,int)", "42501", "returns a set"),
        ("app.proc(text,int)", "42501", "a procedure"),
        ("vault.read_secret(text,int)", "42501", "a schema of the server or of the vault"),
        ("pg_catalog.left(text,int)", "42501", "a schema of the server or of the vault"),
        ("on_rotate(text,int)", "22023", "with its schema"),
    ] {
        let error = sqlstate!(set(&mut keeper, function), code);
        assert!(format!("{error:?}").contains(words), "{function}: {error:?}");
    }
    // A superuser may alter any role, but a function of somebody else is somebody else's word.
    sqlstate!(set(&mut root, "theirs.f(text,int)"), "42501", detail: "its owner could have anything run as that role");
    sqlstate!(set(&mut root, "app.on_rotate(text,int)"), "42501", detail: "belongs neither to");
    assert_eq!(root.ask("SELECT count(*) FROM vault.list_secrets()"), "0");

    set(&mut keeper, "app.on_rotate(text,int)").unwrap();
    let rotate = "SELECT vault.rotate_secret('hooked')";
    ops.ask(rotate);
    for (change, code, words, back) in [
        (
            "ALTER FUNCTION app.on_rotate RENAME TO elsewhere",
            "55000",
            "function app.on_rotate(text,int) does not exist",
            "ALTER FUNCTION app.elsewhere RENAME TO on_rotate",
        ),
        (
            "ALTER FUNCTION app.on_rotate OWNER TO other",
            "42501",
            "belongs neither to",
            "ALTER FUNCTION app.on_rotate OWNER TO keeper",
        ),
        ("ALTER SCHEMA app RENAME TO app2", "55000", "does not exist", "ALTER SCHEMA app2 RENAME TO app"),
        (
            "ALTER FUNCTION app.on_rotate OWNER TO postgres; REVOKE ALL ON FUNCTION app.on_rotate FROM PUBLIC, keeper",
            "42501",
            "needs EXECUTE",
            "ALTER FUNCTION app.on_rotate OWNER TO keeper",
        ),
        ("DROP FUNCTION app.on_rotate", "55000", "does not exist", "SELECT 1"),
    ] {
        root.batch_execute(change).unwrap();
        let before = version(&mut ops, "hooked");
        for client in [&mut ops, &mut root] {
            let error = sqlstate!(client.try_ask(rotate), code);
            assert!(format!("{error:?}").contains(words), "{change}: {error:?}");
        }
        assert_eq!(version(&mut ops, "hooked"), before, "{change}");
        root.batch_execute(back).unwrap();
    }
    // Somebody else's function in its place is not called; the setter's own is, or a superuser's.
    root.ask("GRANT CREATE ON SCHEMA app TO other; SET ROLE other; CREATE FUNCTION app.on_rotate(text, int) RETURNS void LANGUAGE sql AS ''; RESET ROLE");
    sqlstate!(ops.try_ask(rotate), "42501", detail: "belongs neither to");
    root.ask("ALTER FUNCTION app.on_rotate(text, int) OWNER TO keeper");
    ops.ask(rotate);
}

/// Nothing of a hook runs after it, when the session is its caller's again.
#[test]
fn nothing_of_a_hook_outlives_it() {
    let cluster = builder().start();
    let vault = set_up(&cluster);
    let (mut root, mut keeper) = (vault.root(), vault.session("keeper"));
    keeper
        .batch_execute(
            "CREATE TABLE app.queue (i int);
             CREATE FUNCTION app.later() RETURNS trigger LANGUAGE plpgsql AS
               $$ BEGIN EXECUTE 'ALTER ROLE keeper SUPERUSER'; RETURN NULL; END $$;
             CREATE CONSTRAINT TRIGGER later AFTER INSERT ON app.queue DEFERRABLE INITIALLY DEFERRED
               FOR EACH ROW EXECUTE FUNCTION app.later();
             CREATE FUNCTION app.on_plant(name text, version int) RETURNS void LANGUAGE plpgsql AS $$
             BEGIN
               IF version > 1 THEN INSERT INTO app.queue VALUES (1); END IF;
               PERFORM set_config('search_path', 'app', false), set_config('hyperion.x', 'y', false);
               SET row_security = off;
             END $$",
        )
        .unwrap();
    create(&mut keeper, "app.on_plant");
    let rotate = "SELECT vault.rotate_secret('hooked')";
    sqlstate!(root.try_ask(rotate), "38000", detail: "deferred trigger within security-restricted operation");
    assert_eq!(root.ask("SELECT rolsuper FROM pg_roles WHERE rolname = 'keeper'"), "f");
    keeper.ask("DROP TRIGGER later ON app.queue");
    root.ask(rotate);
    assert_eq!(
        root.ask("SELECT current_setting('search_path'), current_setting('row_security'), current_setting('hyperion.x', true)"),
        "\"$user\", public|on|"
    );
    assert_eq!(root.ask("SELECT count(*) FROM app.queue"), "1");
}

/// What a hook reads is on record, as read by the one it ran as; the rotation around it stays its caller's.
#[test]
fn a_hook_leaves_its_own_records() {
    let cluster = builder().start();
    let vault = set_up(&cluster);
    let (mut root, mut keeper, mut ops) = (vault.root(), vault.session("keeper"), vault.ops());
    create(&mut keeper, "app.on_rotate");
    ops.ask("SELECT vault.rotate_secret('hooked')");
    keeper.batch_execute(
        "CREATE OR REPLACE FUNCTION app.on_rotate(name text, version int) RETURNS void LANGUAGE plpgsql AS
           $$ BEGIN PERFORM vault.read_secret('other'); END $$",
    )
    .unwrap();
    ops.try_ask("SELECT vault.rotate_secret('hooked')").unwrap_err();
    crate::audit::settle(&cluster);
    let log = format!(
        "SELECT role, session_role, function, subject, outcome FROM {LAST_WORDS}
         WHERE function IN ('rotate_secret', 'get_secret', 'read_secret') AND role IN ('ops', 'keeper') AND id >
           (SELECT max(id) FROM vault.audit_log WHERE function = 'create_secret' AND resolves IS NULL) ORDER BY id"
    );
    let expected = "keeper|ops|get_secret|hooked|ok\nops|ops|rotate_secret|hooked|ok\n\
                    keeper|ops|read_secret|other|denied\nops|ops|rotate_secret|hooked|error";
    assert_eq!(root.ask(&log), expected);
}

/// The value of another database's role is changed in the transaction that rotates the secret: the example of
/// docs/rotation.md, as it stands there.
#[test]
fn the_documented_hook_hands_the_value_to_another_database() {
    // A relocated tree's postgres_fdw would take the system's libpq.
    let libdir = library_directory(&Toolchain::from_env());
    let cluster = builder().env("LD_LIBRARY_PATH", &libdir).start();
    let vault = set_up(&cluster);
    let mut root = vault.root();
    root.batch_execute("CREATE DATABASE elsewhere").unwrap();
    let mut there = cluster.connect("postgres", "elsewhere");
    let document =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/rotation.md")).unwrap();
    let block = |marker: &str| {
        let at = document.find(marker).unwrap_or_else(|| panic!("no {marker:?} in docs/rotation.md"));
        let sql = &document[at..];
        sql[..sql.find("```").expect("an end of the block")]
            .replace("'db2.internal'", "'127.0.0.1'")
            .replace("'5432'", &format!("'{}'", cluster.port()))
    };
    there.batch_execute(&block("-- in the other database")).unwrap();
    root.batch_execute(&block("-- in the vault's database")).unwrap();
    root.batch_execute(&block("-- as rotation_hooks")).unwrap();

    let (mut ops, mut app) = (vault.ops(), vault.app());
    let remote = |there: &mut Client| there.ask("SELECT value, version FROM sync.api_key");
    let value = |app: &mut Client| app.ask("SELECT vault.read_secret('api/key')");
    assert_eq!(remote(&mut there), format!("{}|1", value(&mut app)));
    ops.ask("SELECT vault.rotate_secret('api/key')");
    assert_eq!(remote(&mut there), format!("{}|2", value(&mut app)));
    ops.ask("BEGIN; SELECT vault.rotate_secret('api/key'); ROLLBACK");
    assert_eq!(remote(&mut there), format!("{}|2", value(&mut app)), "rolled back on both sides");
    // The other side does not take it: neither does the vault.
    there.batch_execute("ALTER TABLE sync.api_key ADD CHECK (version < 3)").unwrap();
    sqlstate!(ops.try_ask("SELECT vault.rotate_secret('api/key')"), "38000", detail: "api_key");
    assert_eq!(remote(&mut there), format!("{}|2", value(&mut app)));
    assert!(!cluster.log_contains(LogMark::START, &value(&mut app)));
}

fn library_directory(tools: &Toolchain) -> String {
    let output =
        std::process::Command::new(&tools.pg_config).arg("--libdir").output().expect("pg_config runs");
    String::from_utf8(output.stdout).expect("a path").trim().to_owned()
}
