//! Separation of duties: who manages everything and reads nothing cannot come to read, by any way there is.

use super::{filled, outcome};
use hyperion_vault_tests::{Ask, Client, Cluster, lend, sqlstate};

/// Everything by which `client` might learn a value.
fn reads_nothing(client: &mut Client) {
    for name in ["a/one", "mine/one", "c", "elsewhere"] {
        for call in [
            format!("read_secret('{name}')"),
            format!("read_secret_bytes('{name}')"),
            format!("get_secret('{name}')"),
            format!("read_secrets('{{{name}}}')"),
            format!("verify('{name}', 'value of {name}')"),
        ] {
            // One that is his own to read may be there or not; none of them has a value of others.
            let answer = outcome(client, &format!("SELECT * FROM vault.{call}"));
            assert!(["42501", "P0002", ""].contains(&answer.as_str()), "{call}: {answer}");
        }
    }
    assert_eq!(
        outcome(
            client,
            "SELECT count(*) FROM vault.decrypted_secrets WHERE decrypted_secret LIKE 'value of%'"
        ),
        "0"
    );
}

#[test]
fn a_manager_cannot_come_to_read() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut root = filled(&vault);
    root.ask(
        r#"CREATE ROLE boss LOGIN IN ROLE vault_admin; CREATE ROLE crew; GRANT crew TO boss; CREATE ROLE accomplice LOGIN IN ROLE vault_user;
           SELECT vault.create_role('readers', permissions => '[{"action":"read","path":"*"},{"action":"verify","path":"*"}]');
           SELECT vault.create_role('mixed', is_admin => true, permissions => '[{"action":"read","path":"c"}]');
           SELECT vault.create_role('plain');
           SELECT vault.create_role('mine', permissions => '[{"action":"read","path":"mine/*"}]');
           SELECT vault.bind_role('mine', 'boss');
           SELECT vault.create_token('existing', 'readers'), vault.bind_role('readers', 'one')"#,
    );
    let mut boss = vault.session("boss");
    reads_nothing(&mut boss);
    let rule = |action: &str, path: &str| format!(r#"'[{{"action":"{action}","path":"{path}"}}]'"#);

    // Rules: in a new role, in one he has, in one he makes and then widens; each action that tells of values, and all.
    for action in ["read", "verify", "decrypt", "*"] {
        for path in ["*", "a/*", "a/one", "c", "mine*", "min*", "*/one", "mine", "**"] {
            let rule = rule(action, path);
            for call in [
                format!("create_role('new', permissions => {rule})"),
                format!("create_role('new', is_admin => true, permissions => {rule})"),
                format!("set_role_permissions('mine', {rule})"),
                format!("set_role_permissions('plain', {rule})"),
                format!("set_role_permissions('readers', {rule})"),
            ] {
                // What `readers` has, it may keep.
                let kept = call.contains("'readers'")
                    && path.chars().all(|c| c == '*')
                    && ["read", "verify"].contains(&action);
                if kept {
                    continue;
                }
                let error = sqlstate!(boss.try_ask(&format!("SELECT vault.{call}")), "42501",
                    message: "hand out a right", hint: "superuser");
                assert!(error.detail().is_some_and(|detail| detail.contains("do not hold")), "{call}");
            }
        }
    }
    // Bindings and tokens of roles that read: to himself, to a role he can become, to an accomplice, to everyone.
    for role in ["readers", "mixed"] {
        for to in ["boss", "crew", "accomplice", "vault_admin", "vault_user", "one"] {
            let sql = format!("SELECT vault.bind_role('{role}', '{to}')");
            sqlstate!(boss.try_ask(&sql), "42501", message: "hand out a right");
        }
        let sql = format!("SELECT vault.create_token('stolen', '{role}')");
        sqlstate!(boss.try_ask(&sql), "42501", message: "hand out a right");
    }
    sqlstate!(boss.try_ask("SELECT vault.rebind_roles()"), "42501");
    // A binding that lost its Postgres role does not come back through a role of the same name.
    root.ask("DROP ROLE one; CREATE ROLE one LOGIN IN ROLE vault_user; GRANT one TO boss");
    sqlstate!(boss.try_ask("SELECT vault.bind_role('readers', 'one')"), "42501");
    reads_nothing(&mut vault.session("one"));

    // What he does hold, he gives and takes.
    boss.ask(r#"SELECT vault.create_role('managers', is_admin => true, permissions => '[{"action":"update","path":"*"},{"action":"read","path":"mine/x*"}]')"#);
    boss.ask("SELECT vault.bind_role('managers', 'accomplice'); SELECT vault.bind_role('admin', 'crew'); SELECT vault.bind_role('mine', 'accomplice')");
    let token = boss.ask("SELECT vault.create_token('manager', 'admin')");
    let mut accomplice = vault.session("accomplice");
    accomplice.ask(&format!("BEGIN; SELECT vault.authenticate('{token}')"));
    for call in [
        format!("create_role('x', permissions => {})", rule("read", "a/*")),
        "bind_role('readers', 'accomplice')".to_owned(),
        "create_token('y', 'readers')".to_owned(),
    ] {
        accomplice.ask("SAVEPOINT s");
        sqlstate!(accomplice.try_ask(&format!("SELECT vault.{call}")), "42501", message: "hand out a right");
        accomplice.ask("ROLLBACK TO s");
    }
    accomplice.ask("ROLLBACK");
    reads_nothing(&mut accomplice);

    // Secrets moved to where he reads: by renaming, by import, by rolling back, by the half of a pair that is kept.
    for call in ["rename_secret('a/one', 'mine/one')", "rename_secret('c', 'mine/c')"] {
        sqlstate!(boss.try_ask(&format!("SELECT vault.{call}")), "42501", message: "permission denied to read");
    }
    let moved = r#"replace(vault.export_sealed()::text, '"a/one"', '"mine/one"')::jsonb"#;
    let document = boss.ask(&format!("SELECT {moved}"));
    sqlstate!(boss.try_ask(&format!("SELECT vault.import_sealed('{document}')")), "23505");
    boss.ask(&format!(
        "CREATE TEMP TABLE document AS SELECT {moved} AS d; SELECT vault.delete_secret(name) FROM vault.list_secrets(); SELECT vault.import_sealed(d) FROM document"
    ));
    assert_eq!(boss.ask("SELECT string_agg(name, ' ') FROM vault.list_secrets()"), "a/two b/one c mine/one");
    sqlstate!(boss.try_ask("SELECT vault.read_secret('mine/one')"), "XX001", message: "cannot be authenticated");
    root.ask("SELECT vault.delete_secret('mine/one')");
    reads_nothing(&mut boss);

    // Tables below, whatever was granted on them by mistake.
    root.ask("GRANT ALL ON ALL TABLES IN SCHEMA vault TO boss");
    for table in ["roles", "role_permissions", "role_bindings", "tokens"] {
        for statement in
            ["SELECT count(*) FROM vault.T", "TRUNCATE vault.T", "DELETE FROM vault.T RETURNING 1"]
        {
            sqlstate!(boss.try_ask(&statement.replace("vault.T", &format!("vault.{table}"))), "42501");
        }
    }
    sqlstate!(
        boss.try_ask("INSERT INTO vault.role_permissions SELECT gen_random_uuid(), 'read', '*'"),
        "42501"
    );
    // Nor does code of theirs run when others change who may do what.
    root.ask("GRANT CREATE ON SCHEMA public TO boss; CREATE TABLE public.seen (a text); GRANT ALL ON public.seen TO PUBLIC");
    boss.ask(
        "CREATE FUNCTION public.spy() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           INSERT INTO public.seen VALUES (TG_TABLE_NAME);
           INSERT INTO vault.role_permissions SELECT DISTINCT role_id, 'read', '*' FROM vault.role_bindings ON CONFLICT DO NOTHING;
           RETURN NEW; END $$",
    );
    for trigger in [
        "CREATE TRIGGER spy BEFORE INSERT ON vault.role_bindings FOR EACH ROW EXECUTE FUNCTION public.spy()",
        "CREATE TRIGGER access_changed_2 AFTER INSERT ON vault.tokens FOR EACH STATEMENT EXECUTE FUNCTION public.spy()",
    ] {
        lend(&mut boss, &mut root, trigger);
    }
    root.ask("SELECT vault.bind_role('plain', 'boss'); SELECT vault.create_token('z', 'plain'); SELECT vault.create_role('z')");
    assert_eq!(root.ask("SELECT count(*) FROM public.seen"), "0");
    // The control: for a superuser's own statement it would.
    root.ask("BEGIN; INSERT INTO vault.role_bindings SELECT role_id, 'other', 1, now() FROM vault.role_bindings LIMIT 1");
    assert_eq!(root.ask("SELECT * FROM public.seen"), "role_bindings");
    root.ask("ROLLBACK");
    reads_nothing(&mut boss);
}

/// Who holds reading rights himself, and manages, hands out those and no more; a superuser hands out all.
#[test]
fn who_holds_a_right_hands_it_out() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut root = filled(&vault);
    root.ask(
        r#"CREATE ROLE lead LOGIN IN ROLE vault_admin; CREATE ROLE dual LOGIN IN ROLE vault_admin, vault_reader;
           SELECT vault.create_role('lead', permissions => '[{"action":"read","path":"a/*"}]'); SELECT vault.bind_role('lead', 'lead')"#,
    );
    let mut lead = vault.session("lead");
    lead.ask(r#"SELECT vault.create_role('sub', permissions => '[{"action":"read","path":"a/o*"},{"action":"create","path":"*"}]'); SELECT vault.bind_role('sub', 'one')"#);
    assert_eq!(super::read(&mut vault.session("one"), "a/one"), "value of a/one");
    sqlstate!(lead.try_ask(r#"SELECT vault.set_role_permissions('sub', '[{"action":"read","path":"a/o*"},{"action":"read","path":"b/*"}]')"#),
        "42501", detail: "read on \"b/*\"");
    let mut both = vault.session("dual");
    both.ask(r#"SELECT vault.create_role('everything', permissions => '[{"action":"read","path":"*"},{"action":"verify","path":"*"}]')"#);
    sqlstate!(
        both.try_ask(
            r#"SELECT vault.create_role('keys', permissions => '[{"action":"decrypt","path":"*"}]')"#
        ),
        "42501"
    );
    root.ask(r#"SELECT vault.create_role('keys', permissions => '[{"action":"*","path":"*"}]')"#);

    // Who manages only sees to roles that others made; a reader makes none.
    sqlstate!(vault.app().try_ask("SELECT vault.create_role('x')"), "42501", message: "permission denied to create roles", hint: "is_admin");
    sqlstate!(vault.session("one").try_ask("SELECT vault.create_token('x', 'sub')"), "42501", hint: "is_admin");
    // The rule that a role has already may be kept by who does not hold it, and taken.
    vault.ops().ask(r#"SELECT vault.set_role_permissions('everything', '[{"action":"read","path":"*"},{"action":"list","path":"*"}]')"#);
    vault.ops().ask("SELECT vault.set_role_permissions('keys', '[]'); SELECT vault.drop_role('everything')");
    for (call, code) in [
        ("drop_role('admin')", "55000"),
        ("set_role_permissions('admin', '[]')", "55000"),
        ("create_role('admin')", "23505"),
        ("create_role('sub')", "23505"),
        ("drop_role('absent')", "P0002"),
    ] {
        assert_eq!(outcome(&mut root, &format!("SELECT vault.{call}")), code, "{call}");
    }
}
