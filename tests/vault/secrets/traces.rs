//! `vault.decrypted_secrets`: what a caller may not read leaves no trace in plans, statistics and buffers, and nothing else
//! gets at the foreign table below the view. Runs in the test process.
//!
//! The trap: a comparison of two answers that are equal because both are empty. The control is a reader, who sees the
//! difference by the same means.

use hyperion_vault_tests::{Ask, Client, Cluster, sqlstate};

/// What a caller can learn of a query besides its result: the plan as it ran, with its buffers, and what the statistics
/// say of every table of the vault.
fn traces(client: &mut Client, sql: &str) -> String {
    let stats = "SELECT string_agg(concat_ws(' ', relname, seq_scan, seq_tup_read, idx_scan, idx_tup_fetch), ',' ORDER BY relname)
                   FROM pg_stat_xact_all_tables WHERE schemaname = 'vault'";
    let explain = format!("EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, SUMMARY OFF) {sql}");
    // Catalogs and the caller's own rights are remembered from the third time on.
    for _ in 0..2 {
        client.ask(&explain);
    }
    client.ask("BEGIN");
    let before = client.ask(stats);
    let plan = client.ask(&explain);
    let after = client.ask(stats);
    client.ask("COMMIT");
    let moved: Vec<_> = before.split(',').zip(after.split(',')).filter(|(a, b)| a != b).collect();
    // Scans as differences: the counters go on.
    let numbers =
        |line: &str| -> Vec<i64> { line.split(' ').skip(1).map(|n| n.parse().unwrap_or(0)).collect() };
    let moved: Vec<_> = moved
        .iter()
        .map(|(a, b)| {
            let change: Vec<_> = numbers(b).iter().zip(numbers(a)).map(|(b, a)| b - a).collect();
            format!("{}: {change:?}", b.split(' ').next().unwrap_or_default())
        })
        .collect();
    format!("{plan}\n{}", moved.join("\n"))
}

/// Ways to ask for the names around NAME.
const PROBES: [&str; 16] = [
    "SELECT * FROM $D WHERE name = 'NAME'",
    "SELECT * FROM $D WHERE name = ANY ('{NAME,mine/a}')",
    "SELECT * FROM $D WHERE name IN ('NAME', 'NAMES')",
    "SELECT * FROM $D WHERE name = 'NAME' OR name = 'NAME/x'",
    "SELECT * FROM $D WHERE name >= 'NAME' AND name <= 'NAME'",
    "SELECT * FROM $D WHERE name BETWEEN 'NAME' AND 'NAMEz' ORDER BY name LIMIT 1",
    "SELECT * FROM $D WHERE name LIKE 'NAME%'",
    "SELECT * FROM $D WHERE name ^@ 'NAME'",
    "SELECT * FROM $D WHERE name ~ '^NAME'",
    "SELECT d.* FROM (VALUES ('NAME'), ('mine/a')) v(n) JOIN $D d ON d.name = v.n",
    "SELECT d.* FROM (VALUES ('NAME')) v(n) LEFT JOIN $D d ON d.name = v.n",
    "SELECT (SELECT id FROM $D WHERE name = v.n) FROM (VALUES ('NAME')) v(n)",
    "SELECT count(*) FROM $D WHERE name > 'NAME'",
    "SELECT name FROM $D WHERE name > 'NAME' ORDER BY name LIMIT 1",
    "SELECT name FROM $D ORDER BY name LIMIT 1",
    "SELECT count(*), min(name), max(name) FROM $D",
];

fn probes(name: &str) -> impl Iterator<Item = String> {
    PROBES.iter().map(move |probe| probe.replace("$D", "vault.decrypted_secrets").replace("NAME", name))
}

#[test]
fn names_of_others_leave_no_trace() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let (mut root, mut app) = (vault.root(), vault.app());
    root.ask(
        r#"CREATE ROLE nought LOGIN IN ROLE vault_user; CREATE ROLE wholes LOGIN IN ROLE vault_user; CREATE ROLE parts LOGIN IN ROLE vault_user;
           SELECT vault.create_role('some', permissions => '[{"action":"read","path":"mine/*"},{"action":"read","path":"one"}]'),
                  vault.bind_role('some', 'wholes'),
                  vault.create_role('parts', permissions => '[{"action":"read","path":"mine/*"},{"action":"read","path":"team/*/db"}]'),
                  vault.bind_role('parts', 'parts');
           SELECT vault.create_secret(n, 'v') FROM unnest('{aa,mine/a,mine/b,one,team/x/db,team/y/other,zz}'::text[]) n"#,
    );
    let mut clients = ["nought", "wholes", "parts"].map(|role| vault.session(role));
    // Names before, between and behind what the roles may read; there and not there.
    let names = ["a", "mind", "minf/secret", "top/launch-codes", "team/w", "team/y/other", "zzz"];
    for client in &mut clients {
        for (there, missing) in [("zz", "zy"), ("aa", "ab"), ("team/y/other", "team/y/othes")] {
            for (there, missing) in probes(there).zip(probes(missing)) {
                let seen = traces(client, &there);
                assert_eq!(
                    seen.replace("zz", "zy").replace("aa", "ab").replace("/other", "/othes"),
                    traces(client, &missing).replace("zz", "zy").replace("aa", "ab"),
                    "{there}"
                );
            }
        }
    }
    let mut look = |clients: &mut [Client]| -> Vec<(String, String)> {
        let mut seen = Vec::new();
        for client in clients {
            for name in names {
                seen.extend(probes(name).map(|sql| (sql.clone(), traces(client, &sql))));
            }
        }
        let control = "SELECT count(*) FROM vault.decrypted_secrets";
        seen.push((control.into(), traces(&mut app, control)));
        seen
    };
    let before = look(&mut clients);
    root.ask(
        "SELECT vault.create_secret(n, 'v') FROM unnest('{a,mind,minf/secret,top/launch-codes,zzz}'::text[]) n;
         SELECT vault.create_secret('minz/' || i, 'v') FROM generate_series(1, 20) i",
    );
    let after = look(&mut clients);
    // Of what lies between the names that a rule allows, callers can tell how many rows there are and on how many pages, but
    // not where: one goes, another comes.
    root.ask("SELECT vault.rename_secret('team/y/other', 'team/w')");
    let renamed = look(&mut clients);
    assert_ne!(after.last(), before.last(), "a reader sees that there are more");
    let probes = before.len() - 1;
    for (before, (after, renamed)) in before.iter().zip(after.iter().zip(&renamed)).take(probes) {
        assert_eq!(after, before);
        let without_pages = |(_, seen): &(String, String)| -> Vec<String> {
            seen.lines().filter(|line| !line.contains("Buffers:")).map(str::to_owned).collect()
        };
        assert_eq!(without_pages(renamed), without_pages(before), "{}", before.0);
    }
}

/// The foreign table, its server and its wrapper are nobody's; stray rights to them show what the view shows.
#[test]
fn nothing_else_gets_at_the_foreign_table() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut root = vault.root();
    root.ask(
        r#"SELECT vault.create_secret(n, 'value of ' || n) FROM unnest('{a/one,a/two,b}'::text[]) n;
           CREATE ROLE stray LOGIN IN ROLE vault_user; CREATE SCHEMA mine AUTHORIZATION stray;
           SELECT vault.create_role('a', permissions => '[{"action":"read","path":"a/*"}]'), vault.bind_role('a', 'stray');"#,
    );
    let mut stray = vault.session("stray");
    for sql in [
        "SELECT name FROM vault._readable",
        "INSERT INTO vault._readable VALUES (gen_random_uuid(), 'x')",
        "UPDATE vault.decrypted_secrets SET name = 'x'",
        "ALTER FOREIGN TABLE vault._readable OWNER TO stray",
        "CREATE FOREIGN TABLE mine.f (name text) SERVER hyperion_vault",
        "CREATE SERVER mine FOREIGN DATA WRAPPER hyperion_vault",
        "CREATE USER MAPPING FOR stray SERVER hyperion_vault",
        "CREATE TABLE mine.p (LIKE vault._readable) PARTITION BY LIST (name)",
        "SELECT vault._secrets_handler()",
    ] {
        let error = stray.try_ask(sql).err();
        let code = error.as_ref().and_then(|error| error.code()).map(|code| code.code().to_owned());
        // LIKE asks for SELECT, as every other statement here asks for something.
        assert_eq!(code.as_deref(), Some("42501"), "{sql}: {error:?}");
    }
    root.ask(
        "GRANT ALL ON ALL TABLES IN SCHEMA vault TO stray; GRANT USAGE ON FOREIGN SERVER hyperion_vault TO stray;
         GRANT USAGE ON FOREIGN DATA WRAPPER hyperion_vault TO stray",
    );
    stray.ask(
        "CREATE FOREIGN TABLE mine.f (sealed bytea, name text, value int, id uuid) SERVER hyperion_vault;
         CREATE FOREIGN TABLE mine.nameless (id uuid) SERVER hyperion_vault;
         CREATE FOREIGN TABLE mine.wrong (name text, id int) SERVER hyperion_vault",
    );
    for (sql, expected) in [
        ("SELECT name FROM mine.f ORDER BY name", "a/one\na/two"),
        ("SELECT name FROM mine.f WHERE name IN ('a/one', 'b')", "a/one"),
        ("SELECT name, sealed, value, id IS NULL FROM mine.f ORDER BY name DESC", "a/two|∅|∅|f\na/one|∅|∅|f"),
        ("SELECT tableoid::regclass, name FROM mine.f WHERE name = 'a/one'", "mine.f|a/one"),
        ("SELECT (f).name FROM mine.f f WHERE name = 'a/one'", "a/one"),
        ("SELECT count(*) FROM mine.nameless", "2"),
        (
            "EXPLAIN (COSTS OFF) SELECT * FROM mine.wrong",
            "Foreign Scan on wrong\n  Secrets: all that the current role may read",
        ),
    ] {
        assert_eq!(stray.ask(sql), expected, "{sql}");
    }
    sqlstate!(stray.try_ask("SELECT name FROM vault._readable"), "42501", hint: "Use the functions");
    sqlstate!(stray.try_ask("SELECT * FROM mine.wrong"), "55000", message: "has been changed", hint: "recreate the extension");
    for client in [&mut stray, &mut root] {
        for sql in [
            "INSERT INTO vault._readable VALUES (gen_random_uuid(), 'x')",
            "UPDATE vault._readable SET name = 'x'",
            "DELETE FROM vault._readable",
            "TRUNCATE vault._readable",
            "COPY vault._readable FROM STDIN",
            "INSERT INTO vault.decrypted_secrets (name) VALUES ('x')",
            "DELETE FROM vault.decrypted_secrets",
            "MERGE INTO vault._readable USING (SELECT 1) s ON true WHEN MATCHED THEN DELETE",
            "IMPORT FOREIGN SCHEMA s FROM SERVER hyperion_vault INTO mine",
        ] {
            assert!(client.try_ask(sql).is_err(), "{sql}");
        }
    }
    assert_eq!(root.ask("SELECT count(*) FROM vault.decrypted_secrets"), "3");
    // A superuser's column is NULL, and the view is as it was.
    root.ask("ALTER FOREIGN TABLE vault._readable ADD COLUMN note text");
    assert_eq!(root.ask("SELECT name, note FROM vault._readable WHERE name = 'b'"), "b|∅");
    assert_eq!(stray.ask("SELECT * FROM vault.decrypted_secrets WHERE name = 'b'"), "");
    assert_eq!(
        vault.app().ask("SELECT decrypted_secret FROM vault.decrypted_secrets WHERE name = 'b'"),
        "value of b"
    );
}

/// An older release's view becomes this one without its dependents.
#[test]
fn dependents_survive_a_new_definition() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut root = vault.root();
    root.ask(
        "SELECT vault.create_secret('a', 'one');
         CREATE OR REPLACE VIEW vault.decrypted_secrets WITH (security_invoker = true) AS
           SELECT s.id, s.name, s.description, vault._open(s.id, s.name) AS decrypted_secret, s.created_at, s.updated_at FROM vault.secrets s;
         CREATE VIEW public.dependent AS SELECT name, decrypted_secret FROM vault.decrypted_secrets;
         GRANT SELECT ON public.dependent TO PUBLIC",
    );
    let sql = include_str!("../../../sql/35_view.sql");
    let (_, view) = sql.split_once("CREATE VIEW vault.decrypted_secrets AS").expect("the view");
    let (view, _) = view.split_once(';').expect("its end");
    root.ask(&format!("CREATE OR REPLACE VIEW vault.decrypted_secrets AS{view}"));
    assert_eq!(
        root.ask("SELECT reloptions FROM pg_class WHERE oid = 'vault.decrypted_secrets'::regclass"),
        "∅"
    );
    assert_eq!(vault.app().ask("SELECT * FROM public.dependent"), "a|one");
    assert_eq!(vault.ops().ask("SELECT count(*) FROM public.dependent"), "0");
}

/// A rule with text behind its `*`: whatever pattern, place and number of rows a caller asks `list_secrets` for, the same
/// rows are fetched, so that nobody can count the names between two others.
#[test]
fn a_listing_fetches_the_span_of_the_rule() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    vault.ops().ask(
        "SELECT vault.create_role('suffix', permissions => '[{\"action\":\"list\",\"path\":\"*/zzz\"}]');
         SELECT vault.bind_role('suffix', 'nobody_special');
         SELECT vault.create_secret('hid/' || i, 'v') FROM generate_series(1, 50) i;
         SELECT vault.create_secret('own/zzz', 'v')",
    );
    vault.root().ask("GRANT vault_user TO nobody_special");
    // Counters of the session go on until it reports them: differences.
    let counter = |client: &mut Client| -> i64 {
        let sql =
            "SELECT idx_tup_fetch::int8 FROM pg_stat_xact_all_tables WHERE relid = 'vault.secrets'::regclass";
        client.query_one(sql, &[]).expect("the counter").get(0)
    };
    let fetched = |client: &mut Client, call: &str| -> (String, i64) {
        client.ask("BEGIN");
        let before = counter(client);
        let found = client.ask(&format!("SELECT coalesce(string_agg(name, ','), '') FROM {call}"));
        let after = counter(client);
        client.ask("COMMIT");
        (found, after - before)
    };
    let mut client = vault.session("nobody_special");
    fetched(&mut client, "vault.list_secrets()");
    for (call, names) in [
        ("vault.list_secrets()", "own/zzz"),
        ("vault.list_secrets('hid/1*')", ""),
        ("vault.list_secrets('nothing*')", ""),
        ("vault.list_secrets('own/*')", "own/zzz"),
        ("vault.list_secrets(after => 'hid/30')", "own/zzz"),
        ("vault.list_secrets(after => 'z')", ""),
        ("vault.list_secrets(max_rows => 1)", "own/zzz"),
    ] {
        assert_eq!(fetched(&mut client, call), (names.to_owned(), 51), "{call}");
    }
    // A name of one's own is looked up, another one is not.
    assert_eq!(fetched(&mut client, "vault.list_secrets('own/zzz')"), ("own/zzz".to_owned(), 1));
    assert_eq!(fetched(&mut client, "vault.list_secrets('hid/7')"), (String::new(), 0));
    assert_eq!(fetched(&mut client, "vault.list_secrets('hid/none')"), (String::new(), 0));
    // The control: where every name may be listed, what is asked for bounds the scan.
    let mut ops = vault.ops();
    fetched(&mut ops, "vault.list_secrets()");
    assert_eq!(fetched(&mut ops, "vault.list_secrets('hid/1*')").1, 11);
}

/// Before 17 the planner estimates conditions of anybody by the statistics of a table, before anything is refused.
#[test]
fn no_statistics_hold_names() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut root = vault.root();
    root.ask(
        "SELECT vault.create_secret('s/' || i, 'v') FROM generate_series(1, 200) i;
         SELECT vault.create_role('r/' || i) FROM generate_series(1, 200) i;
         CREATE TABLE control AS SELECT name FROM vault.secrets;
         ANALYZE",
    );
    let about = "SELECT count(*) FROM pg_statistic s JOIN pg_class c ON c.oid = s.starelid WHERE";
    let vaults = "c.relnamespace = 'vault'::regnamespace AND c.relname <> 'audit_log'";
    assert_eq!(root.ask(&format!("{about} {vaults}")), "0");
    assert_eq!(root.ask(&format!("{about} c.relname = 'control'")), "1");
    let named = "SELECT count(*) FROM pg_stats WHERE schemaname = 'vault' AND attname IN ('subject', 'detail', 'token', 'role')";
    assert_eq!(root.ask(named), "0");
}
