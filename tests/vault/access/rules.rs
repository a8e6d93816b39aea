//! Rules of action and path: what they allow, what listings and the view show, what `can` says.

use super::{filled, outcome, read};
use hyperion_vault_tests::{Ask, Client, Cluster, sqlstate};

#[test]
fn a_role_gets_exactly_its_paths() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut root = filled(&vault);
    let mut one = vault.session("one");
    assert_eq!(read(&mut one, "a/one"), "42501", "no rule, no access");
    root.ask(
        r#"SELECT vault.create_role('a reader', 'for the tests', permissions => '[{"action":"read","path":"a/*"},{"action":"list","path":"a/t*"},{"action":"verify","path":"c"}]');
           SELECT vault.bind_role('a reader', 'one')"#,
    );
    assert_eq!(read(&mut one, "a/one"), "value of a/one");
    assert_eq!(read(&mut one, "a/two"), "value of a/two");
    for name in ["b/one", "c", "a", "b/absent"] {
        let error = sqlstate!(one.try_ask(&format!("SELECT vault.read_secret('{name}')")), "42501",
            message: "permission denied to read", hint: "vault role that grants read");
        assert!(error.message().contains(name));
    }
    assert_eq!(read(&mut one, "a/absent"), "P0002", "who may read it may know");
    assert_eq!(outcome(&mut one, "SELECT vault.verify('c', 'value of c')"), "(t,1)");
    assert_eq!(outcome(&mut one, "SELECT vault.verify('a/one', 'x')"), "42501", "reading is not verifying");
    for write in [
        "put_secret('a/one', 'x')",
        "create_secret('a/three', 'x')",
        "delete_secret('a/one')",
        "rotate_secret('a/one')",
    ] {
        assert_eq!(outcome(&mut one, &format!("SELECT vault.{write}")), "42501", "{write}");
    }
    assert_eq!(outcome(&mut one, "SELECT count(*) FROM vault.read_secrets('{a/one,a/two}')"), "2");
    assert_eq!(outcome(&mut one, "SELECT count(*) FROM vault.read_secrets('{a/one,c}')"), "42501");

    // Listing shows what may be listed, the view what may be read; neither is an error.
    assert_eq!(outcome(&mut one, "SELECT name FROM vault.list_secrets()"), "a/two");
    assert_eq!(outcome(&mut one, "SELECT name FROM vault.list_secrets('a/o*')"), "");
    assert_eq!(outcome(&mut one, "SELECT version FROM vault.list_versions('a/two')"), "1");
    assert_eq!(outcome(&mut one, "SELECT * FROM vault.list_versions('a/one')"), "42501");
    assert_eq!(
        outcome(&mut one, "SELECT name, decrypted_secret FROM vault.decrypted_secrets ORDER BY 1"),
        "a/one|value of a/one\na/two|value of a/two"
    );
    assert_eq!(outcome(&mut one, "SELECT count(*) FROM vault.decrypted_secrets WHERE name = 'c'"), "0");
    let mut two = vault.session("two");
    assert_eq!(outcome(&mut two, "SELECT count(*) FROM vault.decrypted_secrets"), "0");
    assert_eq!(outcome(&mut two, "SELECT name FROM vault.list_secrets()"), "42501");

    for (action, path, expected) in [
        ("read", "a/one", "t"),
        ("read", "a/*", "t"),
        ("read", "a/x*y", "t"),
        ("read", "a*", "f"),
        ("read", "*", "f"),
        ("list", "a/one", "f"),
        ("list", "a/t", "t"),
        ("verify", "c", "t"),
        ("*", "a/one", "f"),
    ] {
        let sql = format!("SELECT vault.can('{action}', '{path}')");
        assert_eq!(outcome(&mut one, &sql), expected, "{sql}");
        assert_eq!(outcome(&mut two, &sql), "f", "can is about the caller: {sql}");
        assert_eq!(outcome(&mut root, &sql), "t", "{sql}");
    }
    // Who does not manage sees the roles he has.
    let roles = "SELECT name, is_admin, permissions, pg_roles, inactive_pg_roles FROM vault.list_roles()";
    let own = r#"a reader|f|[{"path": "a/*", "action": "read"}, {"path": "a/t*", "action": "list"}, {"path": "c", "action": "verify"}]|{one}|{}"#;
    assert_eq!(outcome(&mut one, roles), own);
    assert_eq!(outcome(&mut two, roles), "");
    assert_eq!(outcome(&mut vault.ops(), roles), format!("{own}\nadmin|t|[]|{{}}|{{}}"));

    // Every action at once; several roles add up; an admin by policy manages and does not read.
    root.ask(
        r#"SELECT vault.create_role('all of b', permissions => '[{"action":"*","path":"b/*"}]');
           SELECT vault.bind_role('all of b', 'one'); SELECT vault.bind_role('admin', 'two')"#,
    );
    assert_eq!(outcome(&mut one, "SELECT (vault.put_secret('b/one', 'new')).version"), "2");
    assert_eq!(read(&mut one, "b/one") + &read(&mut one, "a/one"), "newvalue of a/one");
    assert_eq!(
        outcome(&mut one, "SELECT vault.rename_secret('b/one', 'b/other')").len(),
        outcome(&mut root, "SELECT s FROM vault.list_secrets('b/other') s").len()
    );
    assert_eq!(outcome(&mut one, "SELECT vault.rename_secret('b/other', 'elsewhere')"), "42501");
    assert_eq!(
        outcome(&mut one, "SELECT vault.rename_secret('a/one', 'b/a')"),
        "42501",
        "it takes the right to delete"
    );
    assert_eq!(outcome(&mut one, "SELECT string_agg(name, ' ') FROM vault.list_secrets()"), "a/two b/other");
    assert_eq!(outcome(&mut two, "SELECT count(*) FROM vault.list_secrets()"), "4");
    assert_eq!(outcome(&mut two, "SELECT (vault.put_secret('c', 'w')).version"), "2");
    assert_eq!(read(&mut two, "c"), "42501");
    assert_eq!(outcome(&mut two, "SELECT jsonb_array_length(vault.export_sealed() -> 'secrets')"), "4");
    for (granted, to) in [("*", "a/*"), ("read", "x")] {
        let sql = format!(
            r#"SELECT vault.create_role('r', permissions => '[{{"action":"{granted}","path":"{to}"}}]')"#
        );
        assert_eq!(outcome(&mut two, &sql), "42501", "{sql}");
    }

    // Rules are replaced; a dropped role is gone with its bindings, and one of its name made anew is another.
    root.ask(r#"SELECT vault.set_role_permissions('a reader', '[{"action":"read","path":"c"}]')"#);
    assert_eq!((read(&mut one, "c"), read(&mut one, "a/one")), ("w".into(), "42501".into()));
    root.ask(
        r#"SELECT vault.drop_role('a reader'); SELECT vault.create_role('a reader', permissions => '[{"action":"read","path":"c"}]')"#,
    );
    assert_eq!(read(&mut one, "c"), "42501");
    assert_eq!(
        root.ask("SELECT vault.status() -> 'access'"),
        r#"{"roles": 2, "tokens": 0, "bindings": 2, "inactive_bindings": 0}"#
    );
}

/// Pages of a filtered listing: complete, in order, and found without walking over what is not listed.
#[test]
fn pages_hold_what_may_be_listed() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut root = filled(&vault);
    root.ask(
        r#"SELECT count(vault.create_secret('m/' || to_char(n, 'FM0000') || CASE WHEN n % 50 = 0 THEN '/key' ELSE '/x' END, 'v')) FROM generate_series(1, 1500) n;
           SELECT vault.create_role('r', permissions => '[{"action":"list","path":"m/*/key"},{"action":"list","path":"a/two"},{"action":"list","path":"m/0001*"},{"action":"list","path":"b/*"},{"action":"list","path":"b/one*"}]');
           SELECT vault.bind_role('r', 'one')"#,
    );
    let mut one = vault.session("one");
    let mut expected: Vec<String> = vec!["a/two".into(), "b/one".into(), "m/0001/x".into()];
    expected.extend((1..=30).map(|n| format!("m/{:04}/key", n * 50)));
    for size in [1, 7, 20, 33, 10_000] {
        let (mut found, mut after) = (Vec::new(), "NULL".to_owned());
        loop {
            let sql = format!("SELECT name FROM vault.list_secrets(after => {after}, max_rows => {size})");
            let page: Vec<String> = one.ask(&sql).lines().map(str::to_owned).collect();
            let Some(last) = page.last() else { break };
            assert!(page.len() <= size);
            after = format!("'{last}'");
            found.extend(page);
        }
        assert_eq!(found, expected, "pages of {size}");
    }
    assert_eq!(one.ask("SELECT string_agg(name, ' ') FROM vault.list_secrets('*/0100*')"), "m/0100/key");
    assert_eq!(one.ask("SELECT count(*) FROM vault.list_secrets('m/0002/x')"), "0");
    assert_eq!(one.ask("SELECT count(*) FROM vault.list_secrets('a/two')"), "1");
    root.ask("SELECT vault.delete_secret('a/two', '1 day'); SELECT vault.delete_secret('a/one', '1 day')");
    assert_eq!(one.ask("SELECT name FROM vault.list_secrets(deleted => true)"), "a/two");
}

/// In a large policy a session loads the rules that apply to its role, once, and again after a change; a token is one look-up.
#[test]
fn only_what_applies_is_loaded_and_once() {
    // Nobody else is to look at the policy meanwhile.
    let cluster = Cluster::builder().conf("autovacuum", "off").start();
    let vault = cluster.vault();
    let mut root = filled(&vault);
    root.ask(
        r#"SELECT count(vault.create_role('other ' || r, permissions => (
               SELECT jsonb_agg(jsonb_build_object('action', 'read', 'path', 'other/' || r || '/' || i || '/*')) FROM generate_series(1, 40) i)))
             FROM generate_series(1, 200) r;
           SELECT count(vault.create_token('token ' || t, 'other ' || 1 + t % 200)) FROM generate_series(1, 1000) t;
           SELECT vault.create_role('mine', permissions => '[{"action":"read","path":"a/*"},{"action":"read","path":"c"}]');
           SELECT vault.bind_role('mine', 'one')"#,
    );
    let token = root.ask("SELECT vault.create_token('mine', 'mine')");
    // What making all this has looked at is counted before the rest.
    root.ask("SELECT pg_stat_force_next_flush()");
    let (mut one, mut two) = (vault.session("one"), vault.session("two"));
    let mut looked_at = 0;
    // Rows of the policy that the sessions have looked at since the last time.
    let mut rows = |client: &mut Client| -> i64 {
        client.ask("SELECT pg_stat_force_next_flush()");
        let sum: i64 = root
            .ask(
                "SELECT sum(coalesce(idx_tup_read, 0)) + (SELECT sum(seq_tup_read) FROM pg_stat_user_tables WHERE schemaname = 'vault' AND relname ~ '^(role|token)')
                   FROM pg_stat_user_indexes WHERE schemaname = 'vault' AND relname ~ '^(role|token)'",
            )
            .parse()
            .expect("a number");
        sum - std::mem::replace(&mut looked_at, sum)
    };
    rows(&mut vault.root());
    rows(&mut one);
    assert_eq!(read(&mut one, "a/one"), "value of a/one");
    let first = rows(&mut one);
    assert!((3..=6).contains(&first), "{first} rows: one binding, one role, two rules");
    assert_eq!(one.ask("SELECT count(vault.read_secret('a/one')) FROM generate_series(1, 500)"), "500");
    assert_eq!(rows(&mut one), 0);
    two.ask(&format!("BEGIN; SELECT vault.authenticate('{token}'); SELECT count(vault.read_secret('c')) FROM generate_series(1, 500); COMMIT"));
    let shown = rows(&mut two);
    assert!((4..=8).contains(&shown), "{shown} rows: a token, one binding, one role, two rules");
    two.ask(&format!("BEGIN; SELECT vault.authenticate('{token}'); SELECT vault.read_secret('c'); COMMIT"));
    assert_eq!(rows(&mut two), 1, "the token");
    let mut changer = vault.root();
    changer.ask("SELECT vault.set_role_permissions('other 7', '[]')");
    rows(&mut changer);
    assert_eq!(read(&mut one, "a/one"), "value of a/one");
    let again = rows(&mut one);
    assert!((1..=6).contains(&again), "{again} rows after a change elsewhere");
}
