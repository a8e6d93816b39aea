//! The same calls from every place SQL lets them stand: composites, set-returning, functions, plans, cursors, COPY.
//! Runs in the test process.
//!
//! The traps: a writer run twice because its result was taken apart, a plan kept with a stale answer, a session left
//! in the extension's own state after an error was caught.

use super::Sessions;
use hyperion_vault_tests::{Ask, Cluster, sqlstate};
use std::io::Read;

#[test]
fn calls_from_everywhere() {
    let cluster = Cluster::builder().start();
    let mut s = Sessions::of(&cluster.vault());
    s.root.ask("CREATE SCHEMA work AUTHORIZATION ops; GRANT USAGE ON SCHEMA work TO app");
    composites(&mut s);
    plans(&mut s);
    functions(&mut s);
    sets_and_cursors(&mut s);
    errors_caught(&mut s);
    parallel(&mut s, cluster.toolchain().major);
}

fn composites(s: &mut Sessions) {
    assert_eq!(s.ops.ask("SELECT (vault.put_secret('c', 'one')).version"), "1");
    assert_eq!(s.states("c"), "1 current", "one call, one version");
    assert_eq!(
        s.ops.ask("SELECT (i).name, (i).version FROM (SELECT vault.put_secret('c', 'two') AS i OFFSET 0) x"),
        "c|2"
    );
    assert_eq!(s.ops.ask("SELECT i.version, i.name FROM vault.put_secret('c', 'three') AS i"), "3|c");
    assert_eq!(s.ops.ask("SELECT i IS NULL, i.name = 'c' FROM vault.put_secret('c', 'four') i"), "f|t");
    assert_eq!(
        s.ops.ask("SELECT to_jsonb(i) ->> 'version' FROM vault.update_secret('c', description => 'd') i"),
        "4"
    );
    assert_eq!(
        s.ops.ask(
            "SELECT string_agg(n || (vault.put_secret(n, 'v')).version, ' ') FROM unnest('{x,y,z}'::text[]) n"
        ),
        "x1 y1 z1"
    );
    let lateral =
        "SELECT n, i.version FROM unnest('{x,y}'::text[]) n, LATERAL vault.put_secret(n, 'w') i ORDER BY 1";
    assert_eq!(s.ops.ask(lateral), "x|2\ny|2");
    // Twice in one statement: each sees what the other did.
    assert_eq!(
        s.ops.ask("SELECT (vault.put_secret('t', 'a')).version, (vault.put_secret('t', 'b')).version"),
        "1|2"
    );
    // A CTE that writes, read by the rest of the statement: superuser, who may do both.
    let cte = "WITH w AS MATERIALIZED (SELECT (vault.put_secret('cte', 'written')).version AS v)
               SELECT v, vault.read_secret('cte') FROM w";
    assert_eq!(s.root.ask(cte), "1|written");
    assert_eq!(s.app.ask("WITH r AS (SELECT * FROM vault.get_secret('cte')) SELECT value FROM r"), "written");
    assert_eq!(s.app.ask("SELECT (vault.verify('cte', 'written')).*"), "t|1");
    assert_eq!(s.app.ask("SELECT vault.verify('cte', 'no')"), "(f,)");
    // Stored: composites are ordinary values.
    s.ops.ask(
        "CREATE TABLE work.log AS SELECT i FROM vault.put_secret('logged', 'never stored in clear') i;
               INSERT INTO work.log SELECT vault.put_secret('logged', 'nor this')",
    );
    assert_eq!(s.ops.ask("SELECT (i).name, (i).version FROM work.log ORDER BY 2"), "logged|1\nlogged|2");
    assert!(!s.ops.ask("SELECT i::text FROM work.log").contains("clear"));
    // Planning a call is not making it.
    s.ops.ask("EXPLAIN (VERBOSE) SELECT vault.put_secret('planned', 'v')");
    s.ops.ask("EXPLAIN SELECT * FROM vault.put_secret('planned', 'v')");
    assert_eq!(s.app.ask("SELECT count(*) FROM vault.list_secrets('planned')"), "0");
}

fn plans(s: &mut Sessions) {
    // Often enough that the server keeps a generic plan; the answer follows the secret, not the plan.
    s.ops.ask("PREPARE w(text, text) AS SELECT (vault.put_secret($1, $2)).version");
    s.app.ask("PREPARE r(text) AS SELECT vault.read_secret($1); PREPARE constant AS SELECT vault.read_secret('plan')");
    let read = s.app.prepare("SELECT vault.read_secret($1), (vault.verify($1, $2)).valid").unwrap();
    let write = s.ops.prepare("SELECT version FROM vault.put_secret(name => $1, value => $2)").unwrap();
    for i in 0..12 {
        let value = format!("value {i}");
        assert_eq!(s.ops.ask(&format!("EXECUTE w('plan', '{value}')")), (2 * i + 1).to_string());
        assert_eq!(s.app.ask("EXECUTE r('plan')"), value);
        assert_eq!(s.app.ask("EXECUTE constant"), value);
        let version: i32 = s.ops.query_one(&write, &[&"plan", &"bound"]).unwrap().get(0);
        assert_eq!(version, 2 * i + 2);
        let row = s.app.query_one(&read, &[&"plan", &"bound"]).unwrap();
        assert_eq!((row.get::<_, String>(0), row.get(1)), ("bound".into(), true));
    }
    s.app.ask("DEALLOCATE ALL");
}

fn functions(s: &mut Sessions) {
    s.ops.ask(
        "CREATE FUNCTION work.store(n text, v text) RETURNS int LANGUAGE plpgsql AS $$
           DECLARE i vault.secret_info; again record;
           BEGIN
             i := vault.put_secret(n, v);
             SELECT * INTO again FROM vault.put_secret(n, v || '!');
             PERFORM vault.update_secret(n, description => 'from plpgsql');
             IF again.version <> i.version + 1 THEN RAISE 'lost one'; END IF;
             RETURN again.version;
           END $$;
         CREATE FUNCTION work.fetch(n text) RETURNS text LANGUAGE sql AS 'SELECT vault.read_secret(n)';
         CREATE FUNCTION work.fetch_inline(n text) RETURNS text LANGUAGE sql STABLE AS 'SELECT vault.read_secret(n)';
         CREATE FUNCTION work.fetch_atomic(n text) RETURNS text BEGIN ATOMIC SELECT vault.read_secret(n); END;
         CREATE FUNCTION work.infos() RETURNS SETOF vault.secret_info LANGUAGE sql AS 'SELECT * FROM vault.list_secrets()';
         CREATE FUNCTION work.each() RETURNS SETOF text LANGUAGE plpgsql AS $$
           DECLARE i vault.secret_info;
           BEGIN
             FOR i IN SELECT * FROM vault.list_secrets('f*') LOOP
               RETURN NEXT i.name || '=' || vault.read_secret(i.name);
             END LOOP;
             RETURN QUERY SELECT value FROM vault.get_secret('f');
           END $$;",
    );
    assert_eq!(s.ops.ask("SELECT work.store('f', 'v')"), "2");
    assert_eq!(s.ops.ask("SELECT work.store('f', 'w')"), "4");
    for function in ["fetch", "fetch_inline", "fetch_atomic"] {
        assert_eq!(s.app.ask(&format!("SELECT work.{function}('f')")), "w!", "{function}");
        // The owner's rights are the owner's: ops may not read, whoever calls.
        s.ops.ask(&format!("ALTER FUNCTION work.{function} SECURITY DEFINER"));
        sqlstate!(s.app.try_ask(&format!("SELECT work.{function}('f')")), "42501", message: "permission denied to read");
        s.ops.ask(&format!("ALTER FUNCTION work.{function} SECURITY INVOKER"));
    }
    assert_eq!(s.app.ask("SELECT * FROM work.each()"), "f=w!\nw!");
    let count = s.app.ask("SELECT count(*) FROM vault.list_secrets()");
    assert_eq!(s.app.ask("SELECT count(*) FROM work.infos()"), count);
    s.ops.ask(
        "DO $$ DECLARE n text; BEGIN
           FOR n IN SELECT name FROM vault.list_secrets('f') LOOP PERFORM vault.put_secret(n, 'from do'); END LOOP;
         END $$",
    );
    assert_eq!(s.read("f"), "from do");
    // In a trigger, with the table's own change, and undone with it.
    s.ops.ask(
        "CREATE TABLE work.accounts (id int PRIMARY KEY, secret text);
         CREATE FUNCTION work.keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           PERFORM vault.put_secret('account/' || NEW.id, NEW.secret); NEW.secret := NULL; RETURN NEW; END $$;
         CREATE TRIGGER keep BEFORE INSERT ON work.accounts FOR EACH ROW EXECUTE FUNCTION work.keep();
         INSERT INTO work.accounts SELECT i, 'pin ' || i FROM generate_series(1, 3) i",
    );
    s.ops.ask("BEGIN; INSERT INTO work.accounts VALUES (4, 'undone'); ROLLBACK");
    let pins =
        "SELECT string_agg(vault.read_secret(name), ', ' ORDER BY name) FROM vault.list_secrets('account/*')";
    assert_eq!(s.app.ask(pins), "pin 1, pin 2, pin 3");
    assert_eq!(s.ops.ask("SELECT count(secret) FROM work.accounts"), "0");
}

fn sets_and_cursors(s: &mut Sessions) {
    s.ops.ask("SELECT vault.put_secret('s' || i, 'v' || i) FROM generate_series(1, 5) i");
    s.ops.ask("SELECT vault.create_secret('sv', 'one', grace_period => '1 hour'); SELECT vault.put_secret('sv', 'two')");
    // In the target list.
    assert_eq!(s.app.ask("SELECT (vault.list_versions('sv')).version"), "2\n1");
    assert_eq!(s.app.ask("SELECT (vault.get_secret('sv')).value"), "two");
    assert_eq!(s.app.ask("SELECT (vault.list_secrets('s_', max_rows => 3)).name"), "");
    assert_eq!(s.app.ask("SELECT (vault.list_secrets('s*', max_rows => 3)).name"), "s1\ns2\ns3");
    assert_eq!(
        s.app.ask("SELECT n, (vault.get_secret(n)).value FROM unnest('{s1,s2}'::text[]) n"),
        "s1|v1\ns2|v2"
    );
    // With ordinality, aliased, joined, limited, as a subquery.
    let rows = "SELECT o, name FROM vault.list_secrets('s*') WITH ORDINALITY AS x(id, name) CROSS JOIN LATERAL (SELECT ordinality AS o) y
                 WHERE name IN (SELECT name FROM vault.list_secrets('*2')) LIMIT 1";
    assert_eq!(s.app.ask(rows), "2|s2");
    let rows =
        "SELECT * FROM ROWS FROM (vault.verify('s1', 'v1'), generate_series(1, 2)) AS r(valid, version, n)";
    assert_eq!(s.app.ask(rows), "t|1|1\n∅|∅|2");

    // COPY out of a query.
    let mut out = String::new();
    let sql = "COPY (SELECT name, vault.read_secret(name) FROM vault.list_secrets('s_') UNION ALL
               SELECT name, vault.read_secret(name) FROM vault.list_secrets('s*') WHERE name < 's3') TO STDOUT (FORMAT csv)";
    s.app.copy_out(sql).unwrap().read_to_string(&mut out).unwrap();
    assert_eq!(out, "s1,v1\ns2,v2\n");

    // Cursors: forwards, backwards, in pieces, and through the protocol's portals.
    s.app.ask("BEGIN; DECLARE c SCROLL CURSOR FOR SELECT name, vault.read_secret(name) FROM vault.list_secrets('s*') WHERE name <> 'sv'");
    assert_eq!(s.app.ask("FETCH 2 FROM c"), "s1|v1\ns2|v2");
    assert_eq!(s.app.ask("FETCH 1 FROM c"), "s3|v3");
    assert_eq!(s.app.ask("FETCH BACKWARD 1 FROM c"), "s2|v2");
    assert_eq!(s.app.ask("FETCH ALL FROM c"), "s3|v3\ns4|v4\ns5|v5");
    s.app.ask("COMMIT");
    let mut transaction = s.app.transaction().unwrap();
    let portal = transaction.bind("SELECT (vault.list_secrets('s*')).name", &[]).unwrap();
    let first: Vec<String> = transaction.query_portal(&portal, 2).unwrap().iter().map(|r| r.get(0)).collect();
    let rest: Vec<String> = transaction.query_portal(&portal, 0).unwrap().iter().map(|r| r.get(0)).collect();
    assert_eq!((first.join(" "), rest.join(" ")), ("s1 s2".into(), "s3 s4 s5 sv".into()));
    transaction.commit().unwrap();
    s.ops.ask("BEGIN; DECLARE w CURSOR FOR SELECT (vault.put_secret('s1', 'by cursor ' || i)).version FROM generate_series(1, 100) i");
    assert_eq!(s.ops.ask("FETCH 2 FROM w"), "2\n3");
    s.ops.ask("CLOSE w; COMMIT");
    assert_eq!(s.read("s1"), "by cursor 2", "only what was fetched was done");
}

fn errors_caught(s: &mut Sessions) {
    let sql = "DO $$
      DECLARE before text := current_user; path text := current_setting('search_path');
      BEGIN
        FOR i IN 1..20 LOOP
          BEGIN PERFORM vault.create_secret('s2', 'taken'); RAISE 'not refused';
          EXCEPTION WHEN unique_violation THEN NULL; END;
          BEGIN PERFORM vault.rotate_secret('s2'); RAISE 'not refused';
          EXCEPTION WHEN object_not_in_prerequisite_state THEN NULL; END;
          BEGIN PERFORM vault.update_secret('s2', kind => 'automatic'); RAISE 'not refused';
          EXCEPTION WHEN invalid_parameter_value THEN NULL; END;
          BEGIN PERFORM vault.delete_secret('missing'); RAISE 'not refused';
          EXCEPTION WHEN no_data_found THEN NULL; END;
          PERFORM vault.put_secret('s2', 'after ' || i);
        END LOOP;
        IF current_user <> before OR current_setting('search_path') <> path THEN RAISE 'session changed'; END IF;
      END $$";
    s.ops.ask(sql);
    assert_eq!(s.read("s2"), "after 20");
    // What the extension may do to its tables, the session may not, at no time.
    s.root.ask("GRANT SELECT ON vault.secrets TO ops");
    let refused = |s: &mut Sessions| {
        sqlstate!(s.ops.try_ask("SELECT count(*) FROM vault.secrets"), "42501", message: "permission denied for table secrets");
    };
    refused(s);
    s.ops.ask("BEGIN; SAVEPOINT a; SELECT vault.put_secret('s3', 'kept'); SAVEPOINT b");
    refused(s);
    s.ops.ask("ROLLBACK TO b");
    sqlstate!(s.ops.try_ask("SELECT vault.create_secret('s3', 'x')"), "23505");
    s.ops.ask("ROLLBACK TO b");
    refused(s);
    s.ops.ask("ROLLBACK TO b");
    assert_eq!(s.ops.ask("SELECT current_user, session_user"), "ops|ops");
    s.ops.ask("SELECT vault.put_secret('s4', 'undone'); ROLLBACK TO b; SELECT vault.put_secret('s5', 'kept too'); COMMIT");
    assert_eq!((s.read("s3"), s.read("s4"), s.read("s5")), ("kept".into(), "v4".into(), "kept too".into()));
    s.root.ask("REVOKE SELECT ON vault.secrets FROM ops");
}

/// The server made to run queries in parallel workers wherever it thinks it may.
fn parallel(s: &mut Sessions, major: u32) {
    let setting = if major >= 16 { "debug_parallel_query" } else { "force_parallel_mode" };
    for session in [&mut s.app, &mut s.ops] {
        session.ask(&format!("SET {setting} = on; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0"));
    }
    assert_eq!(s.app.ask("SELECT vault.read_secret('s3'), vault.verify('s3', 'kept')"), "kept|(t,2)");
    let rows = "SELECT count(vault.read_secret('s3')) FROM pg_class WHERE relname LIKE 'pg_class%'";
    assert_ne!(s.app.ask(rows), "0");
    assert_eq!(s.app.ask("SELECT value FROM vault.get_secret('s3')"), "kept");
    assert_eq!(s.app.ask("SELECT count(*) FROM vault.list_secrets('s3')"), "1");
    assert_eq!(s.app.ask("SELECT state FROM vault.list_versions('s3') LIMIT 1"), "current");
    assert_ne!(s.app.ask("SELECT vault.status() ->> 'secrets'"), "0");
    s.ops.ask("SELECT vault.put_secret('s3', 'not in parallel')");
    assert_eq!(s.read("s3"), "not in parallel");
}
