//! The functions wherever SQL lets functions be called: savepoints, exceptions, prepared transactions, COPY, triggers,
//! DO, cursors, functions and views of others. Right results, and the rights of whoever counts there.

use crate::api::Sessions;
use hyperion_vault_tests::{Ask, Client, Cluster, sqlstate};
use std::io::{Read, Write};

#[test]
fn contexts() {
    let cluster = Cluster::builder().conf("max_prepared_transactions", "4").start();
    let vault = cluster.vault();
    let mut s = Sessions::of(&vault);
    s.root.ask("GRANT CREATE ON SCHEMA public TO ops, app");
    s.ops.ask("SELECT vault.create_secret('c', 'one', grace_period => '1 hour')");
    savepoints_and_exceptions(&mut s);
    prepared_transactions(&mut s);
    copy(&mut s);
    triggers(&mut s);
    cursors(&mut s);
    wrappers(&mut s);
}

fn savepoints_and_exceptions(s: &mut Sessions) {
    s.ops.ask(
        "BEGIN; SELECT vault.put_secret('c', 'two'); SAVEPOINT a; SELECT vault.put_secret('c', 'three');
         SELECT vault.delete_secret('c', '1 day'); SAVEPOINT b; SELECT vault.restore_secret('c'); RELEASE b;
         SELECT vault.roll_back_secret('c', 1); ROLLBACK TO a; SELECT vault.put_secret('c', 'four'); COMMIT",
    );
    assert_eq!((s.read("c"), s.states("c")), ("four".into(), "3 current, 2 grace, 1 grace".into()));
    assert_eq!(s.app.ask("SELECT vault.read_secret('c', 2)"), "two");
    // An error that is caught undoes its block and nothing else, at every depth.
    s.ops.ask(
        "DO $$ BEGIN
           PERFORM vault.create_secret('do/kept', 'v');
           BEGIN
             PERFORM vault.create_secret('do/undone', 'v');
             BEGIN PERFORM vault.create_secret('do/kept', 'again'); EXCEPTION WHEN unique_violation THEN
               PERFORM vault.put_secret('do/inner', 'v'); END;
             PERFORM vault.restore_secret('do/kept');
           EXCEPTION WHEN object_not_in_prerequisite_state THEN PERFORM vault.put_secret('do/kept', 'w'); END;
           BEGIN PERFORM vault.rotate_secret('missing'); EXCEPTION WHEN no_data_found THEN NULL; END;
         END $$",
    );
    assert_eq!(
        s.app.ask("SELECT string_agg(name || ' ' || version, ',') FROM vault.list_secrets('do/*')"),
        "do/kept 2"
    );
    assert_eq!(s.read("do/kept"), "w");
    // Ten thousand caught errors leave nothing behind that would run out.
    s.app.ask(
        "DO $$ BEGIN FOR i IN 1..10000 LOOP
           BEGIN PERFORM vault.read_secret('missing'); EXCEPTION WHEN no_data_found THEN NULL; END;
         END LOOP; END $$",
    );
    assert_eq!(s.read("c"), "four");
}

fn prepared_transactions(s: &mut Sessions) {
    s.ops.ask("BEGIN; SELECT vault.put_secret('2pc', 'v'); SELECT vault.delete_secret('do/kept', '1 day'); PREPARE TRANSACTION 'one'");
    sqlstate!(s.app.try_ask("SELECT vault.read_secret('2pc')"), "P0002");
    assert_eq!(s.read("do/kept"), "w", "not deleted yet");
    s.ops.ask("COMMIT PREPARED 'one'");
    assert_eq!(s.read("2pc"), "v");
    sqlstate!(s.app.try_ask("SELECT vault.read_secret('do/kept')"), "P0002");
    s.ops.ask("BEGIN; SELECT vault.restore_secret('do/kept'); SELECT vault.put_secret('2pc', 'w'); PREPARE TRANSACTION 'two'");
    s.ops.ask("ROLLBACK PREPARED 'two'");
    assert_eq!(s.read("2pc"), "v");
    sqlstate!(s.app.try_ask("SELECT vault.read_secret('do/kept')"), "P0002");
    s.ops.ask("SELECT vault.restore_secret('do/kept')");
}

fn copied(client: &mut Client, sql: &str) -> String {
    let mut text = String::new();
    client.copy_out(sql).expect("COPY begins").read_to_string(&mut text).expect("COPY ends");
    text
}

fn copy(s: &mut Sessions) {
    assert_eq!(
        copied(&mut s.app, "COPY (SELECT name, value FROM vault.read_secrets('{c,2pc}')) TO STDOUT"),
        "c\tfour\n2pc\tv\n"
    );
    let view = "COPY (SELECT decrypted_secret FROM vault.decrypted_secrets WHERE name = 'c') TO STDOUT";
    assert_eq!(copied(&mut s.app, view), "four\n");
    assert_eq!(copied(&mut s.ops, view), "");
    // (Refused when the first row is made, after the stream has begun.)
    let mut text = String::new();
    let refused =
        s.ops.copy_out("COPY (SELECT vault.read_secret('c')) TO STDOUT").unwrap().read_to_string(&mut text);
    assert!(refused.is_err_and(|error| format!("{error:?}").contains("42501")) && text.is_empty());
    // COPY FROM into a table whose trigger writes: one secret a row, or none at all.
    s.ops.ask(
        "CREATE TABLE public.inbox (name text, value text);
         CREATE FUNCTION public.keep() RETURNS trigger LANGUAGE plpgsql AS
           $$ BEGIN PERFORM vault.put_secret(new.name, new.value); RETURN NULL; END $$;
         CREATE TRIGGER keep BEFORE INSERT ON public.inbox FOR EACH ROW EXECUTE FUNCTION public.keep()",
    );
    for (lines, outcome) in [("in/1\tv1\nin/2\tv2\n", None), ("in/3\tv3\n/bad\tv4\n", Some("22023"))] {
        let mut writer = s.ops.copy_in("COPY public.inbox FROM STDIN").unwrap();
        writer.write_all(lines.as_bytes()).unwrap();
        match (writer.finish(), outcome) {
            (result, Some(code)) => drop(sqlstate!(result, code)),
            (result, None) => drop(result.unwrap()),
        }
    }
    assert_eq!(
        s.app.ask(
            "SELECT string_agg(name || '=' || vault.read_secret(name), ' ') FROM vault.list_secrets('in/*')"
        ),
        "in/1=v1 in/2=v2"
    );
    assert_eq!(s.root.ask("SELECT count(*) FROM public.inbox"), "0");
}

fn triggers(s: &mut Sessions) {
    // A trigger runs as whoever makes it fire, unless its function is a definer's.
    s.root.ask("GRANT INSERT ON public.inbox TO app");
    sqlstate!(s.app.try_ask("INSERT INTO public.inbox VALUES ('in/4', 'v')"), "42501", message: "to update secret");
    s.ops.ask("ALTER FUNCTION public.keep() SECURITY DEFINER");
    s.app.ask("INSERT INTO public.inbox VALUES ('in/4', 'v')");
    assert_eq!(s.read("in/4"), "v");
    // Deferred: at commit, and undone with it.
    s.ops.ask(
        "CREATE TABLE public.later (name text);
         CREATE FUNCTION public.drop_later() RETURNS trigger LANGUAGE plpgsql AS
           $$ BEGIN PERFORM vault.delete_secret(new.name); RETURN NULL; END $$;
         CREATE CONSTRAINT TRIGGER later AFTER INSERT ON public.later DEFERRABLE INITIALLY DEFERRED
           FOR EACH ROW EXECUTE FUNCTION public.drop_later()",
    );
    s.ops.ask("BEGIN; INSERT INTO public.later VALUES ('in/4'); SELECT vault.update_secret('in/4', description => 'still there'); COMMIT");
    sqlstate!(s.app.try_ask("SELECT vault.read_secret('in/4')"), "P0002");
    let failed = s.ops.try_ask("BEGIN; SELECT vault.put_secret('in/1', 'undone'); INSERT INTO public.later VALUES ('missing'); COMMIT");
    sqlstate!(failed, "P0002");
    s.ops.ask("ROLLBACK");
    assert_eq!(s.read("in/1"), "v1");
}

fn cursors(s: &mut Sessions) {
    let rows = "SELECT name, value FROM vault.read_secrets('{in/1,in/2,c}')";
    s.app.ask(&format!("BEGIN; DECLARE a SCROLL CURSOR FOR {rows}; DECLARE h CURSOR WITH HOLD FOR {rows}"));
    assert_eq!(s.app.ask("FETCH 2 FROM a"), "in/1|v1\nin/2|v2");
    assert_eq!(s.app.ask("FETCH PRIOR FROM a"), "in/1|v1");
    assert_eq!(s.app.ask("FETCH LAST FROM a"), "c|four");
    s.app.ask("COMMIT");
    // Held: the values as they were; who holds them has read them.
    s.ops.ask("SELECT vault.put_secret('in/2', 'newer')");
    assert_eq!(s.app.ask("FETCH ALL FROM h"), "in/1|v1\nin/2|v2\nc|four");
    s.app.ask("CLOSE h");
    // Opened row by row, as they are fetched: a secret deleted meanwhile is not opened any more.
    s.app.ask("BEGIN; DECLARE v CURSOR FOR SELECT name, decrypted_secret FROM vault.decrypted_secrets WHERE name LIKE 'in/%' ORDER BY name");
    assert_eq!(s.app.ask("FETCH 1 FROM v"), "in/1|v1");
    s.ops.ask("SELECT vault.delete_secret('in/2')");
    assert_eq!(s.app.ask("FETCH 1 FROM v"), "in/2|∅");
    s.app.ask("COMMIT");
    s.ops.ask("SELECT vault.put_secret('in/2', 'v2')");
    // A cursor of PL/pgSQL, over a function that returns sets.
    let looped = "DO $$ DECLARE r record; seen text = ''; BEGIN
        FOR r IN SELECT * FROM vault.read_secrets('{in/1,in/2}') LOOP seen := seen || r.value; END LOOP;
        IF seen <> 'v1v2' THEN RAISE 'saw %', seen; END IF; END $$";
    s.app.ask(looped);
}

fn wrappers(s: &mut Sessions) {
    s.root.ask(
        "CREATE FUNCTION public.w_sql(n text) RETURNS text LANGUAGE sql AS 'SELECT vault.read_secret(n)';
         CREATE FUNCTION public.w_atomic(n text) RETURNS text LANGUAGE sql BEGIN ATOMIC SELECT vault.read_secret(n); END;
         CREATE FUNCTION public.w_plpgsql(n text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN vault.read_secret(n); END $$;
         CREATE FUNCTION public.w_view(n text) RETURNS text LANGUAGE sql AS 'SELECT decrypted_secret FROM vault.decrypted_secrets WHERE name = n';
         CREATE FUNCTION public.w_definer(n text) RETURNS text LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN RETURN vault.read_secret(n); END $$;
         ALTER FUNCTION public.w_definer(text) OWNER TO app;
         CREATE VIEW public.v_secret AS SELECT vault.read_secret('c') AS value;
         GRANT SELECT ON public.v_secret TO PUBLIC;",
    );
    for call in [
        "public.w_sql('c')",
        "public.w_atomic('c')",
        "public.w_plpgsql('c')",
        "public.w_view('c')",
        "public.w_definer('c')",
        "(SELECT value FROM public.v_secret)",
    ] {
        assert_eq!(s.app.ask(&format!("SELECT {call}")), "four", "{call}");
    }
    // The caller's rights, but for the definer's function.
    for call in [
        "public.w_sql('c')",
        "public.w_atomic('c')",
        "public.w_plpgsql('c')",
        "(SELECT value FROM public.v_secret)",
    ] {
        sqlstate!(s.ops.try_ask(&format!("SELECT {call}")), "42501", message: "permission denied to read secret \"c\"");
    }
    assert_eq!(s.ops.ask("SELECT public.w_view('c'), public.w_definer('c')"), "∅|four");
    // SET ROLE changes who asks.
    s.root.ask("GRANT app TO ops");
    assert_eq!(s.ops.ask("SET ROLE app; SELECT vault.read_secret('c')"), "four");
    sqlstate!(s.ops.try_ask("SELECT vault.put_secret('c', 'x')"), "42501");
    s.ops.ask("RESET ROLE");
    s.root.ask("REVOKE app FROM ops");
}
