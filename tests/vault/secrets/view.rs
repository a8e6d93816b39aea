//! `vault.decrypted_secrets`: which rows, for whom, and above all how many values a query opens. Runs in the test process.
//!
//! Opened values are counted by the lookups of their keys. The trap: a plan that opens few because there are few; so
//! there are 2,000 secrets, and the control is a query that opens them all.

use super::run_out;
use hyperion_vault_tests::{Ask, Client, Cluster, Vault, sqlstate};

fn opened(observer: &mut Client) -> i64 {
    let sql =
        "SELECT (c->>'hits')::bigint + (c->>'misses')::bigint FROM (SELECT vault.status()->'cache') s(c)";
    observer.ask(sql).parse().expect("a number")
}

/// Runs a query; its result, and how many values it opened.
#[track_caller]
fn counted(client: &mut Client, observer: &mut Client, sql: &str) -> (String, i64) {
    let before = opened(observer);
    let result = client.ask(sql);
    (result, opened(observer) - before)
}

#[test]
fn opens_only_the_result() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let (mut app, mut root) = (vault.app(), vault.root());
    root.ask(
        "SELECT vault.create_secret('s/' || to_char(i, 'FM0000'), 'value ' || i) FROM generate_series(1, 2000) i;
         CREATE TABLE public.t AS SELECT 's/' || to_char(i * 100, 'FM0000') AS n, i FROM generate_series(1, 5) i;
         CREATE TABLE public.big AS SELECT 's/' || to_char(i % 20, 'FM0000') AS n FROM generate_series(1, 3000) i;
         GRANT SELECT ON public.t, public.big TO PUBLIC;",
    );
    // Before and after the planner knows the table.
    for analyzed in [false, true] {
        if analyzed {
            root.ask("ANALYZE vault.secrets, public.t, public.big");
            // Nothing is learned about the rows of the view.
            root.ask("SET client_min_messages = error; ANALYZE vault._readable; RESET client_min_messages");
            assert_eq!(
                root.ask("SELECT count(*) FROM pg_statistic WHERE starelid = 'vault._readable'::regclass"),
                "0"
            );
        }
        for (sql, expected, opens) in [
            ("SELECT decrypted_secret FROM $D WHERE name = 's/0007'", "value 7", 1),
            (
                "SELECT decrypted_secret FROM $D WHERE name = 's/0007' AND length(decrypted_secret) > 0",
                "value 7",
                2,
            ),
            ("SELECT count(decrypted_secret) FROM $D WHERE name = 'missing'", "0", 0),
            (
                "SELECT string_agg(decrypted_secret, ',' ORDER BY name) FROM $D WHERE name = ANY ('{s/0001,s/0003,missing}')",
                "value 1,value 3",
                2,
            ),
            (
                "SELECT string_agg(decrypted_secret, ',' ORDER BY name) FROM $D WHERE name IN ('s/0001', 's/0002')",
                "value 1,value 2",
                2,
            ),
            (
                "SELECT string_agg(d.decrypted_secret, ',' ORDER BY i) FROM t JOIN $D d ON d.name = t.n",
                "value 100,value 200,value 300,value 400,value 500",
                5,
            ),
            (
                "SELECT string_agg(d.decrypted_secret, ',' ORDER BY i) FROM t, $D d WHERE d.name = t.n AND i < 3",
                "value 100,value 200",
                2,
            ),
            ("SELECT count(d.decrypted_secret) FROM t LEFT JOIN $D d ON d.name = t.n || '/no' ", "0", 0),
            ("SELECT count(d.decrypted_secret) FROM t LEFT JOIN $D d ON d.name = t.n AND i = 1", "1", 1),
            ("SELECT decrypted_secret FROM $D WHERE name = (SELECT n FROM t WHERE i = 1)", "value 100", 1),
            ("SELECT (SELECT decrypted_secret FROM $D WHERE name = t.n) FROM t WHERE i = 2", "value 200", 1),
            ("SELECT count(*) FROM $D", "2000", 0),
            ("SELECT count(*) FROM $D WHERE name LIKE 's/00%'", "99", 0),
            ("SELECT count(*) FROM (SELECT name FROM $D) x", "2000", 0),
            (
                "SELECT count(*) FROM (SELECT DISTINCT id, name, description, created_at, updated_at FROM $D) x",
                "2000",
                0,
            ),
            ("SELECT EXISTS (SELECT * FROM $D WHERE name = 's/0001')", "t", 0),
            ("SELECT name FROM $D ORDER BY updated_at DESC, name LIMIT 1", "s/2000", 0),
            (
                "SELECT string_agg(decrypted_secret, ',') FROM $D WHERE name LIKE 's/001_'",
                "value 10,value 11,value 12,value 13,value 14,value 15,value 16,value 17,value 18,value 19",
                10,
            ),
            ("SELECT decrypted_secret FROM $D ORDER BY name LIMIT 2", "value 1\nvalue 2", 2),
            ("SELECT decrypted_secret FROM $D ORDER BY name DESC LIMIT 1 OFFSET 3", "value 1997", 4),
            ("SELECT decrypted_secret FROM $D ORDER BY updated_at, name LIMIT 2", "value 1\nvalue 2", 2),
            ("SELECT decrypted_secret FROM $D ORDER BY md5(name), name LIMIT 1", "*", 1),
            // The control: here all of them have to be opened.
            ("SELECT count(*) FROM $D WHERE decrypted_secret = 'value 5'", "1", 2000),
            ("SELECT count(decrypted_secret) FROM $D", "2000", 2000),
        ] {
            let sql = sql.replace("$D", "vault.decrypted_secrets");
            let (result, count) = counted(&mut app, &mut root, &sql);
            let most =
                if sql.contains("OFFSET") || sql.contains("length(") { 1..=opens } else { opens..=opens };
            let right = expected == "*" || result == expected;
            assert!(right && most.contains(&count), "{sql}: {result}, {count} opened, analyzed {analyzed}");
        }
        // A parameter, as applications bind it, and the same plan for the seventh time.
        for _ in 0..7 {
            let before = opened(&mut root);
            let row = app.query_one(
                "SELECT decrypted_secret FROM vault.decrypted_secrets WHERE name = $1",
                &[&"s/0042"],
            );
            assert_eq!(row.unwrap().get::<_, &str>(0), "value 42");
            let names = vec!["s/0001", "s/0002"];
            let rows = app.query(
                "SELECT decrypted_secret FROM vault.decrypted_secrets WHERE name = ANY ($1)",
                &[&names],
            );
            assert_eq!(rows.unwrap().len(), 2);
            assert_eq!(opened(&mut root) - before, 3);
        }
        explain(&mut app, &mut root);
    }
}

/// EXPLAIN opens nothing, not even where the function is called with constants behind the view's back.
fn explain(app: &mut Client, root: &mut Client) {
    let before = opened(root);
    for sql in [
        "SELECT * FROM vault.decrypted_secrets",
        "SELECT * FROM vault.decrypted_secrets WHERE name = 's/0001' AND decrypted_secret = 'value 1'",
        "SELECT * FROM vault.decrypted_secrets a JOIN vault.decrypted_secrets b USING (decrypted_secret)",
        "SELECT vault._open(id, 's/0001') FROM vault.decrypted_secrets",
    ] {
        app.ask(&format!("EXPLAIN {sql}"));
        app.ask(&format!("EXPLAIN (VERBOSE, FORMAT JSON) {sql}"));
    }
    let id = app.ask("SELECT id FROM vault.decrypted_secrets WHERE name = 's/0001'");
    for sql in [
        "SELECT vault._open('ID', 's/0001')",
        "EXPLAIN SELECT FROM t WHERE n = vault._open('ID', 's/0001')",
        "SELECT vault._open(i, n) FROM (VALUES ('ID'::uuid, 's/0001')) v(i, n)",
    ] {
        sqlstate!(app.try_ask(&sql.replace("ID", &id)), "55000", message: "for the view", hint: "vault.read_secret()");
    }
    assert_eq!(opened(root), before, "EXPLAIN has opened something");
    let plan = app.ask("EXPLAIN SELECT decrypted_secret FROM vault.decrypted_secrets WHERE name = 's/0001'");
    assert!(plan.starts_with("Foreign Scan on _readable s") && plan.contains(" rows=1 "), "{plan}");
    assert!(plan.contains("Secrets: by name"), "{plan}");
}

#[test]
fn rows_and_rights() {
    let cluster = Cluster::builder().allowed_ips("local, 127.0.0.1").start();
    let vault = cluster.vault();
    let (mut ops, mut app, mut root) = (vault.ops(), vault.app(), vault.root());
    ops.ask(
        r"SELECT vault.create_secret('a', 'one', description => 'first'); SELECT vault.put_secret('a', 'two');
          SELECT vault.create_secret('l', username => 'u', password => 'p');
          SELECT vault.create_secret_bytes('b', '\x00');
          SELECT vault.create_secret('narrow', 'v', allowed_ips => '{10.0.0.0/8}');
          SELECT vault.create_secret('deleted', 'v'); SELECT vault.delete_secret('deleted', '1 day');
          SELECT vault.create_secret('over', 'v', expires_in => '1 hour')",
    );
    run_out(&mut root, "over", "expires_at");
    let all = "SELECT name, description, decrypted_secret FROM vault.decrypted_secrets ORDER BY name";
    let rows = "a|first|two\nb|∅|∅\nl|∅|p";
    assert_eq!((app.ask(all), root.ask(all)), (rows.into(), rows.into()));
    assert_eq!(app.ask("SELECT d.id = l.id AND d.created_at = l.created_at AND d.updated_at = l.updated_at AND d.updated_at > d.created_at
                          FROM vault.decrypted_secrets d JOIN vault.list_secrets('a') l USING (name)"), "t");
    filtered(&vault);

    // Functions, views of others: the rights of whoever asks.
    root.ask("CREATE VIEW public.v AS SELECT * FROM vault.decrypted_secrets; GRANT SELECT ON public.v TO PUBLIC;
              CREATE FUNCTION public.definer() RETURNS SETOF text LANGUAGE sql SECURITY DEFINER AS 'SELECT decrypted_secret FROM vault.decrypted_secrets ORDER BY name';
              ALTER FUNCTION public.definer() OWNER TO app");
    assert_eq!(app.ask("SELECT count(*), count(decrypted_secret) FROM public.v"), "3|2");
    assert_eq!(ops.ask("SELECT count(*) FROM public.v"), "0", "a superuser's view lends nothing");
    assert_eq!(
        ops.ask("SELECT string_agg(x, ',') FROM public.definer() x"),
        "two,p",
        "a definer lends what he has"
    );
    root.ask("GRANT USAGE ON SCHEMA vault TO nobody_special");
    for sql in ["SELECT * FROM vault.decrypted_secrets", "SELECT * FROM public.v"] {
        sqlstate!(vault.nobody().try_ask(sql), "42501");
    }
    // Nothing is written through it, and what is sealed cannot be had.
    for sql in [
        "UPDATE vault.decrypted_secrets SET description = 'x'",
        "DELETE FROM vault.decrypted_secrets",
        "INSERT INTO vault.decrypted_secrets (name) VALUES ('x')",
        "SELECT * FROM vault.decrypted_secrets FOR UPDATE",
        "SELECT sealed FROM vault.secrets",
        "SELECT wrapped_dek FROM vault.secrets",
        "SELECT * FROM vault.secrets",
        "SELECT s FROM vault.secrets s",
        "UPDATE vault.secrets SET description = 'x'",
    ] {
        sqlstate!(app.try_ask(sql), "42501", message: "permission denied");
    }
    let stored = "CREATE MATERIALIZED VIEW public.m AS SELECT * FROM vault.decrypted_secrets";
    sqlstate!(root.try_ask(stored), "42501", message: "security-restricted operation");
    old_snapshots(&vault);
    addresses(&cluster);
}

/// Who may not read sees no row, and no name through a function of his own either.
fn filtered(vault: &Vault<'_>) {
    let (mut ops, mut root) = (vault.ops(), vault.root());
    root.ask("CREATE ROLE t_user LOGIN IN ROLE vault_user; CREATE TABLE public.leaked (x text); GRANT INSERT, SELECT ON public.leaked TO PUBLIC;
              CREATE FUNCTION public.leak(text) RETURNS boolean LANGUAGE plpgsql COST 0.0001 AS
                $$ BEGIN INSERT INTO public.leaked VALUES ($1); RETURN true; END $$");
    let leak = "SELECT count(*) FROM vault.decrypted_secrets WHERE public.leak(name) AND public.leak(decrypted_secret)";
    for mut client in [vault.session("t_user"), vault.ops()] {
        assert_eq!(client.ask("SELECT count(*) FROM vault.decrypted_secrets"), "0");
        assert_eq!(
            client.ask(
                "SELECT count(*) FROM vault.decrypted_secrets WHERE name = 'a' OR decrypted_secret IS NULL"
            ),
            "0"
        );
        assert_eq!(client.ask(leak), "0");
        sqlstate!(client.try_ask("SELECT count(*) FROM vault.secrets WHERE public.leak(name)"), "42501");
        sqlstate!(client.try_ask("SELECT count(*) FROM vault._readable WHERE public.leak(name)"), "42501");
        // There is no row security that could be turned off.
        assert_eq!(client.ask("SET row_security = off; SELECT name FROM vault.decrypted_secrets"), "");
    }
    assert_eq!(root.ask("SELECT count(*) FROM public.leaked"), "0");
    // The control: whoever may read leaks what he may read, and only that.
    assert_eq!(vault.app().ask(leak), "3");
    assert_eq!(root.ask("SELECT string_agg(DISTINCT x, ' ') FROM public.leaked"), "a b l p two");
    assert_eq!(ops.ask("SELECT count(*) FROM vault.decrypted_secrets"), "0");
}

/// Rows and values are of now, whatever the transaction's snapshot.
fn old_snapshots(vault: &Vault<'_>) {
    let (mut ops, mut old) = (vault.ops(), vault.app());
    ops.ask("SELECT vault.create_secret('o/' || i, 'old') FROM generate_series(1, 4) i");
    old.ask("BEGIN ISOLATION LEVEL REPEATABLE READ");
    let sql = "SELECT string_agg(name || '=' || coalesce(decrypted_secret, '-'), ' ' ORDER BY name) FROM vault.decrypted_secrets WHERE name LIKE 'o/%'";
    assert_eq!(old.ask(sql), "o/1=old o/2=old o/3=old o/4=old");
    ops.ask("SELECT vault.delete_secret('o/1'); SELECT vault.put_secret('o/2', 'new'); SELECT vault.delete_secret('o/3', '1 day');
             SELECT vault.delete_secret('o/4'); SELECT vault.create_secret('o/4', 'another secret')");
    assert_eq!(old.ask(sql), "o/2=new o/4=another secret");
    // A row that was fetched before its secret went has no value any more.
    let all = "SELECT name || '=' || coalesce(decrypted_secret, '-') FROM vault.decrypted_secrets WHERE name LIKE 'o/%' ORDER BY name";
    old.ask(&format!("DECLARE c CURSOR FOR {all}"));
    assert_eq!(old.ask("FETCH c"), "o/2=new");
    ops.ask("SELECT vault.delete_secret('o/4')");
    assert_eq!(old.ask("FETCH ALL FROM c"), "o/4=-");
    old.ask("COMMIT");
    assert_eq!(old.ask(sql), "o/2=new");
}

/// The global list refuses, as in every function; a secret's own list hides its row.
fn addresses(cluster: &Cluster) {
    let mut tcp = cluster.connect_tcp("app", cluster.database(), "127.0.0.1");
    let mut ops = cluster.connect("ops", cluster.database());
    ops.ask("SELECT vault.update_secret('narrow', allowed_ips => '{127.0.0.0/8}')");
    let narrow = "SELECT decrypted_secret FROM vault.decrypted_secrets WHERE name = 'narrow'";
    assert_eq!(tcp.ask(narrow), "v");
    let mut app = cluster.connect("app", cluster.database());
    assert_eq!(app.ask(narrow), "");
    cluster.set_conf("hyperion_vault.allowed_ips", "local");
    sqlstate!(tcp.try_ask(narrow), "42501", message: "client address is not allowed");
    assert_eq!(
        tcp.ask("SELECT count(*) FROM vault.decrypted_secrets WHERE name = 'a'"),
        "1",
        "a name is no value"
    );
}
