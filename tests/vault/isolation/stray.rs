//! Stray grants and stray memberships: a role that holds every privilege on every table, or is a member of vault_service,
//! sees and changes nothing, and no code that it ties to the tables runs.

use super::{state, text};
use hyperion_vault_tests::{Ask, Client, Cluster, Vault, lend, sqlstate};

const TABLES: [&str; 12] = [
    "secrets",
    "secret_versions",
    "secret_dates",
    "target_roles",
    "vault_meta",
    "roles",
    "role_permissions",
    "role_bindings",
    "tokens",
    "audit_log",
    "audit_spools",
    "audit_pending",
];

/// Everything in the tables as a superuser sees it; of the audit log, which goes on meanwhile, what had been there when
/// the attacks began.
fn contents(root: &mut Client) -> String {
    TABLES
        .map(|table| {
            let (what, which) = match table {
                "audit_log" => ("t::text", "id <= (SELECT id FROM logged)"),
                "audit_spools" => ("spool_id::text", "true"),
                "audit_pending" => ("t::text", "id <= (SELECT id FROM logged)"),
                _ => ("t::text", "true"),
            };
            text(
                root,
                &format!("SELECT string_agg({what}, '|' ORDER BY {what}) FROM vault.{table} t WHERE {which}"),
            )
        })
        .join("\n")
}

/// A way to see or change something. All are refused (42501), but for views of the server's own that show nothing.
fn attacks() -> Vec<String> {
    let mut attacks = Vec::new();
    for table in TABLES {
        let key = match table {
            "secrets" => "name",
            "secret_versions" => "version",
            "secret_dates" => "at",
            "target_roles" => "role",
            "vault_meta" => "vault_id",
            "role_permissions" | "role_bindings" => "role_id",
            "audit_log" => "subject",
            "audit_spools" => "spool_id",
            "audit_pending" => "xid",
            _ => "name",
        };
        for attack in [
            "SELECT * FROM vault.T",
            "SELECT FROM vault.T",
            "TABLE vault.T",
            "SELECT * FROM ONLY vault.T FOR UPDATE",
            "SELECT * FROM vault.T WHERE mine.leak(K::text)",
            "SELECT * FROM vault.T WHERE K::text <<>> 'x'",
            "SELECT * FROM mine.view_of_T",
            "SELECT * FROM mine.read_T()",
            "WITH w AS (SELECT * FROM vault.T) SELECT * FROM w",
            "SELECT * FROM vault.T TABLESAMPLE SYSTEM (100)",
            "SELECT * FROM vault.T ORDER BY K LIMIT 1",
            "COPY vault.T TO STDOUT",
            "COPY (SELECT * FROM vault.T) TO STDOUT",
            "DELETE FROM vault.T",
            "DELETE FROM vault.T RETURNING *",
            "DELETE FROM vault.T WHERE mine.leak(K::text) RETURNING *",
            "UPDATE vault.T SET K = K",
            "UPDATE vault.T SET K = K RETURNING *",
            "WITH d AS (DELETE FROM vault.T RETURNING *) SELECT * FROM d",
            "MERGE INTO vault.T USING (SELECT 1) s ON true WHEN MATCHED THEN DELETE",
            "TRUNCATE vault.T",
            "TRUNCATE vault.T CASCADE",
            "TRUNCATE vault.secrets, vault.secret_versions, vault.vault_meta",
            "CREATE RULE mine AS ON SELECT TO vault.T DO INSTEAD SELECT 1",
            "CREATE RULE mine AS ON UPDATE TO vault.T DO ALSO NOTIFY mine",
            "CREATE POLICY mine ON vault.T USING (true)",
            "CREATE POLICY auditing ON vault.T USING (true)",
            "ALTER TABLE vault.T DROP CONSTRAINT T_pkey",
            "DROP TRIGGER refuse_truncate ON vault.T",
            "ALTER TABLE vault.T DISABLE ROW LEVEL SECURITY",
            "ALTER TABLE vault.T NO FORCE ROW LEVEL SECURITY",
            "ALTER TABLE vault.T DISABLE TRIGGER ALL",
            "ALTER TABLE vault.T OWNER TO CURRENT_USER",
            "CREATE INDEX ON vault.T ((mine.leak(K::text)))",
            "CREATE STATISTICS mine.s ON K, ctid FROM vault.T",
            "CREATE TABLE mine.child () INHERITS (vault.T)",
            "CREATE PUBLICATION mine FOR TABLE vault.T",
            "DROP TABLE vault.T CASCADE",
            "ALTER FUNCTION vault._secret_changed() OWNER TO CURRENT_USER",
            "CREATE OR REPLACE FUNCTION vault._open(id uuid, name text) RETURNS text LANGUAGE sql AS 'SELECT $2'",
            "SELECT * FROM pg_stats WHERE schemaname = 'vault'",
            "SELECT * FROM pg_stats_ext WHERE schemaname = 'vault'",
            "SELECT lo_import('/etc/passwd')",
        ] {
            attacks.push(
                attack
                    .replace("vault.T", &format!("vault.{table}"))
                    .replace("_T", &format!("_{table}"))
                    .replace("K", key),
            );
        }
    }
    attacks.extend(
        [
            "INSERT INTO vault.vault_meta VALUES (true, gen_random_uuid(), now()) ON CONFLICT (singleton) DO UPDATE SET vault_id = excluded.vault_id",
            "INSERT INTO vault.vault_meta VALUES (true, gen_random_uuid(), now()) ON CONFLICT DO NOTHING RETURNING *",
            "INSERT INTO vault.secret_versions SELECT gen_random_uuid(), gen_random_uuid(), 1, 'opaque', '', '', '', '', now(), now(), NULL",
            "INSERT INTO vault.secrets (id, version_id, version, name, format, wrapped_dek, sealed, kms_key_id, kind, created_at, updated_at, version_created_at)
             SELECT gen_random_uuid(), gen_random_uuid(), 1, 'stray', 'opaque', '', '', '', 'manual', now(), now(), now()",
            "INSERT INTO vault.secrets (id, version_id, version, name, format, wrapped_dek, sealed, kms_key_id, kind, created_at, updated_at, version_created_at)
             SELECT gen_random_uuid(), gen_random_uuid(), 1, 'kept', 'opaque', '', '', '', 'manual', now(), now(), now() ON CONFLICT (name) WHERE name IS NOT NULL DO UPDATE SET sealed = ''",
            "INSERT INTO vault.secret_dates SELECT gen_random_uuid(), 1, now()",
            "INSERT INTO vault.target_roles SELECT 10, gen_random_uuid()",
            "INSERT INTO vault.roles SELECT gen_random_uuid(), 'stray', NULL, true, now()",
            "INSERT INTO vault.role_permissions SELECT gen_random_uuid(), 'read', '*'",
            "INSERT INTO vault.role_bindings SELECT '00000000-0000-0000-0000-000000000000', current_user, 'stray'::regrole, now()",
            "INSERT INTO vault.tokens SELECT gen_random_uuid(), '00000000-0000-0000-0000-000000000000', sha256('x'), 'stray', now(), 'stray'",
            "UPDATE vault.tokens SET hash = sha256('x')",
            "INSERT INTO vault.audit_log SELECT * FROM vault.audit_log",
            "INSERT INTO vault.audit_log (id, at, spool_id, position, system_id, timeline, node, session_role, role, client, action, function, outcome)
             SELECT 1, now(), gen_random_uuid(), 1, 1, 1, 'n', 'r', 'r', 'local', 'read', 'read_secret', 'ok'",
            "UPDATE vault.audit_log SET outcome = 'ok', subject = 'another'",
            "INSERT INTO vault.audit_spools SELECT gen_random_uuid(), 1",
            "UPDATE vault.audit_spools SET position = 0",
            "INSERT INTO vault.audit_pending VALUES (1, '3')",
            "SELECT vault.bind_role('admin', 'stray')",
            "SELECT vault.create_token('stray', 'kept')",
            "COPY vault.vault_meta FROM PROGRAM 'echo'",
            "SHOW hyperion_vault.allowed_ips",
            "SET session_replication_role = replica",
            "ALTER EXTENSION hyperion_vault DROP FUNCTION vault._open(uuid, text)",
            "DROP EXTENSION hyperion_vault CASCADE",
            "DROP SCHEMA vault CASCADE",
            "SELECT vault.read_secret('kept')",
            "SELECT vault.put_secret('kept', 'x')",
            "SELECT * FROM vault.list_secrets()",
        ]
        .map(str::to_owned),
    );
    attacks
}

/// Rows a statement returned or changed; None if it was refused for want of privileges.
fn outcome(client: &mut Client, sql: &str) -> Option<u64> {
    let copy = sql.starts_with("COPY") && sql.ends_with("STDOUT");
    let result = if copy {
        client
            .copy_out(sql)
            .map(|mut reader| {
                let mut bytes = Vec::new();
                std::io::Read::read_to_end(&mut reader, &mut bytes).map(|_| bytes.len() as u64)
            })
            .map(|read| read.expect("a stream that began goes on"))
    } else {
        client.simple_query(sql).map(|messages| {
            messages
                .iter()
                .map(|message| match message {
                    postgres::SimpleQueryMessage::Row(_) => 1,
                    postgres::SimpleQueryMessage::CommandComplete(n) => *n,
                    _ => 0,
                })
                .sum()
        })
    };
    match result {
        Ok(rows) => Some(rows),
        Err(error) => {
            assert_eq!(error.code().map(|code| code.code()), Some("42501"), "{sql}: {error:?}");
            None
        }
    }
}

#[test]
fn every_privilege_on_the_tables_gives_nothing() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut root = vault.root();
    root.batch_execute(
        "CREATE ROLE taken LOGIN;
         SELECT vault.create_secret('kept', 'value', grace_period => '1 day');
         SELECT vault.put_secret('kept', 'newer');
         SELECT vault.create_secret('kept/' || n, n::text) FROM generate_series(1, 19) n;
         SELECT vault.create_secret('kept/20', username => 'taken', password => 'p', target => '{\"type\":\"postgres_role\",\"role\":\"taken\"}');
         CREATE ROLE stray LOGIN; CREATE ROLE joined LOGIN;
         SELECT vault.create_role('kept', permissions => '[{\"action\":\"read\",\"path\":\"*\"}]');
         SELECT vault.bind_role('kept', 'postgres'); SELECT vault.create_token('kept', 'kept');
         GRANT USAGE ON SCHEMA vault TO stray, joined;
         GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER ON ALL TABLES IN SCHEMA vault TO stray;
         GRANT ALL ON ALL TABLES IN SCHEMA vault TO joined, vault_service;
         GRANT vault_service TO joined;
         ANALYZE vault.secrets, vault.secret_versions, vault.vault_meta;
         CREATE TABLE leaked (what text); GRANT INSERT ON leaked TO PUBLIC;
         CREATE SCHEMA mine; GRANT ALL ON SCHEMA mine TO PUBLIC;
         CREATE TABLE mine.own (n text); ALTER TABLE mine.own OWNER TO stray;
         CREATE FUNCTION mine.leak(text) RETURNS boolean LANGUAGE plpgsql COST 0.0001 AS
           $$ BEGIN INSERT INTO public.leaked VALUES ($1); RETURN true; END $$;
         CREATE FUNCTION mine.leak(text, text) RETURNS boolean LANGUAGE sql COST 0.0001 AS 'SELECT mine.leak($1)';
         CREATE OPERATOR public.<<>> (LEFTARG = text, RIGHTARG = text, FUNCTION = mine.leak);
         CREATE FUNCTION mine.taken() RETURNS trigger LANGUAGE plpgsql AS
           $$ BEGIN INSERT INTO public.leaked VALUES (current_user); RETURN NULL; END $$;",
    )
    .unwrap();
    for table in TABLES {
        root.batch_execute(&format!(
            "CREATE VIEW mine.view_of_{table} AS TABLE vault.{table};
             ALTER VIEW mine.view_of_{table} OWNER TO stray; GRANT SELECT ON mine.view_of_{table} TO PUBLIC;
             CREATE FUNCTION mine.read_{table}() RETURNS SETOF vault.{table} LANGUAGE sql SECURITY DEFINER
               AS 'TABLE vault.{table}';
             ALTER FUNCTION mine.read_{table}() OWNER TO joined"
        ))
        .unwrap();
    }
    crate::audit::settle(&cluster);
    // Pending for as long as a transaction is open that has no lock on anything.
    let mut open = vault.root();
    open.batch_execute("BEGIN").unwrap();
    let xid = text(&mut open, "SELECT pg_current_xact_id()::text");
    root.batch_execute(&format!(
        "CREATE TABLE logged AS SELECT max(id) AS id FROM vault.audit_log;
         INSERT INTO vault.audit_pending SELECT id, '{xid}' FROM logged"
    ))
    .unwrap();
    let before = contents(&mut root);
    assert!(before.ends_with(&format!(",{xid})")), "{before}");
    assert!(before.contains("kept/20"), "the superuser sees the rows, or the comparison shows nothing");
    // Positive control: where the role may pass, the very same statement sees rows.
    root.batch_execute("BEGIN; ALTER ROLE stray BYPASSRLS; SET LOCAL ROLE stray").unwrap();
    assert_eq!(outcome(&mut root, "SELECT * FROM vault.secrets WHERE mine.leak(name::text)"), Some(42));
    root.batch_execute("ROLLBACK").unwrap();

    let (mut refused, mut empty) = (0, 0);
    for (who, set_role) in [
        ("stray", "SELECT 1"),
        ("joined", "SELECT 1"),
        ("joined", "SET ROLE vault_service"),
        ("stray", "SET row_security = off"),
        ("joined", "SET ROLE vault_service; SET row_security = off"),
    ] {
        let mut client = vault.session(who);
        client.batch_execute(set_role).unwrap();
        for attack in attacks() {
            match outcome(&mut client, &attack) {
                None => refused += 1,
                Some(0) if attack.contains(" pg_stats") => empty += 1,
                Some(rows) => panic!("{who}, {set_role}: {attack}: {rows} rows"),
            }
        }
        assert_eq!(contents(&mut root), before, "{who}, {set_role}");
        assert_eq!(text(&mut root, "SELECT count(*)::text FROM leaked"), "0", "{who}, {set_role}");
    }
    println!("{refused} refused, {empty} without any effect");
    assert!(refused > 100 && empty > 20);

    nothing_of_theirs_runs_inside(&vault);

    // The vault works on, and nothing of theirs takes part.
    assert_eq!(state(&mut vault.ops(), "SELECT vault.put_secret('kept', 'newest')"), "00000");
    assert_eq!(text(&mut vault.app(), "SELECT vault.read_secret('kept')"), "newest");
    assert_eq!(text(&mut vault.app(), "SELECT vault.read_secret('kept', 1)"), "value");
    assert_eq!(state(&mut vault.ops(), "SELECT vault.delete_secret('kept')"), "00000");
    assert_eq!(text(&mut root, "SELECT count(*)::text FROM leaked"), "0");
    // A superuser is not held up: restoring a dump begins with TRUNCATE or COPY.
    assert_eq!(state(&mut root, "BEGIN; TRUNCATE vault.secrets, vault.secret_versions; ROLLBACK"), "00000");
}

/// Code of theirs that a superuser ties to the tables: a trigger, or a foreign key whose cascade runs the triggers of
/// *their* table. The extension's own writes go on, and none of that code runs.
fn nothing_of_theirs_runs_inside(vault: &Vault<'_>) {
    let mut root = vault.root();
    let mut joined = vault.session("joined");
    joined.ask(
        "CREATE FUNCTION mine.steal() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           INSERT INTO public.leaked VALUES (current_user);
           BEGIN INSERT INTO public.leaked SELECT name FROM vault.secrets; EXCEPTION WHEN insufficient_privilege THEN NULL; END;
           RETURN coalesce(new, old); END $$",
    );
    // Names, rules and Postgres roles can be guessed: nothing unique that a foreign key could refer to is made of them.
    for key in [
        "n text REFERENCES vault.secrets (name)",
        "n text REFERENCES vault.roles (name)",
        "n text REFERENCES vault.tokens (name)",
        "i uuid, n text, FOREIGN KEY (i, n) REFERENCES vault.role_bindings (role_id, pg_role)",
    ] {
        let tie = format!("CREATE TABLE mine.guess ({key})");
        sqlstate!(joined.try_ask(&tie), "42501", message: "foreign key");
        sqlstate!(root.try_ask(&tie), "42830", message: "no unique constraint");
    }
    for (tie, untie) in [
        (
            "CREATE TRIGGER mine AFTER INSERT OR UPDATE OR DELETE ON vault.secrets EXECUTE FUNCTION mine.steal()",
            "DROP TRIGGER mine ON vault.secrets",
        ),
        (
            "CREATE TRIGGER mine BEFORE INSERT OR UPDATE OR DELETE ON vault.secret_versions FOR EACH ROW EXECUTE FUNCTION mine.steal()",
            "DROP TRIGGER mine ON vault.secret_versions",
        ),
        (
            "CREATE CONSTRAINT TRIGGER access_changed AFTER INSERT OR UPDATE OR DELETE ON vault.secrets DEFERRABLE INITIALLY DEFERRED
               FOR EACH ROW EXECUTE FUNCTION mine.steal()",
            "DROP TRIGGER access_changed ON vault.secrets",
        ),
        (
            "ALTER TABLE mine.bait ADD FOREIGN KEY (n) REFERENCES vault.secrets (id) ON DELETE CASCADE",
            "DROP TABLE mine.bait",
        ),
    ] {
        let mut ops = vault.ops();
        ops.ask("SELECT vault.create_secret('another', 'one', grace_period => '1 day'), vault.put_secret('another', 'two')");
        if tie.contains("bait") {
            joined.ask("CREATE TABLE mine.bait (n uuid); CREATE TRIGGER bait BEFORE DELETE ON mine.bait FOR EACH ROW EXECUTE FUNCTION mine.steal()");
        }
        lend(&mut joined, &mut root, tie);
        if tie.contains("bait") {
            root.ask("INSERT INTO mine.bait SELECT id FROM vault.secrets");
        }
        // The control: a superuser's own statements run it.
        root.ask("BEGIN; DELETE FROM vault.secret_versions; DELETE FROM vault.secrets; SET CONSTRAINTS ALL IMMEDIATE");
        assert_ne!(root.ask("SELECT count(*) FROM leaked"), "0", "the attack is not one: {tie}");
        root.ask("ROLLBACK");

        let others = "SELECT vault.read_secret('kept') || count(*) FROM vault.list_secrets() WHERE name LIKE 'kept%'";
        let before = root.ask(others);
        for (call, answer) in [
            ("SELECT (vault.put_secret('another', 'three')).version", "3"),
            ("SELECT (vault.update_secret('another', description => 'd', keep_versions => 0)).version", "3"),
            ("SELECT (vault.roll_back_secret('another', 2)).version", "4"),
            ("SELECT (vault.create_secret('one more', 'x')).version", "1"),
            ("SELECT vault.delete_secret('one more', '1 day')", ""),
            ("SELECT (vault.restore_secret('one more')).version", "1"),
            ("SELECT vault.delete_secret('one more'), vault.delete_secret('another')", "|"),
        ] {
            assert_eq!(ops.ask(call), answer, "{tie}: {call}");
            assert_eq!(root.ask("SELECT count(*) FROM leaked"), "0", "{tie}: {call}");
        }
        assert_eq!(root.ask(others), before, "{tie}");
        let left = "SELECT (SELECT count(*) FROM vault.secrets WHERE name NOT LIKE 'kept%'),
                           (SELECT count(*) FROM vault.secret_versions v WHERE NOT EXISTS (SELECT FROM vault.secrets s WHERE s.id = v.secret_id))";
        assert_eq!(root.ask(left), "0|0", "{tie}");
        root.batch_execute(untie).unwrap();
    }
    root.batch_execute("DROP FUNCTION mine.steal()").unwrap();
}
