//! Statements that name a table of the vault: refused for whoever is neither a superuser nor BYPASSRLS, whatever they were
//! granted, and before anything is scanned.
//!
//! The trap: an error that comes from somewhere else, such as a missing grant. So everybody here has every privilege, and the
//! refusal is known by its hint.

use super::{state, text};
use hyperion_vault_tests::{Ask, Client, Cluster, Vault, lend, sqlstate};

const HINT: &str = "Use the functions of schema vault";

/// Every table of the vault.
fn tables(root: &mut Client) -> Vec<String> {
    let sql = "SELECT c.relname FROM pg_depend d JOIN pg_class c ON c.oid = d.objid
                WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
                  AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'hyperion_vault')
                  AND c.relkind = 'r' ORDER BY 1";
    root.ask(sql).lines().map(str::to_owned).collect()
}

/// A role `eve` with every privilege that can be granted, a schema of its own, and secrets whose names it wants to know.
fn prepare(vault: &Vault<'_>) -> Client {
    let mut root = vault.root();
    root.ask(
        "SELECT vault.create_secret('top/launch-codes', 'v'), vault.create_secret('top/other', 'v');
         SELECT vault.create_role('r', permissions => '[{\"action\":\"read\",\"path\":\"x\"}]');
         CREATE ROLE eve LOGIN;
         GRANT ALL ON SCHEMA vault TO eve; GRANT ALL ON ALL TABLES IN SCHEMA vault TO eve;
         GRANT ALL ON TYPE vault.secret_kind, vault.secret_format, vault.secret_info TO eve;
         CREATE SCHEMA mine AUTHORIZATION eve",
    );
    root
}

#[track_caller]
fn refused(client: &mut Client, sql: &str) {
    let error = sqlstate!(client.try_ask(sql), "42501", message: "permission denied for table ");
    let hint = error.hint().unwrap_or_default();
    assert!(
        hint.contains(HINT) || hint.contains("vault_auditor"),
        "{sql}: refused by something else: {error:?}"
    );
}

fn copied(client: &mut Client, sql: &str) -> String {
    let mut text = String::new();
    std::io::Read::read_to_string(&mut client.copy_out(sql).expect("a copy"), &mut text).expect("all of it");
    text
}

#[test]
fn no_statement_of_others_starts() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut root = prepare(&vault);
    let tables = tables(&mut root);
    assert!(tables.len() >= 10, "{tables:?}");
    let mut eve = vault.session("eve");
    for table in &tables {
        let key = text(
            &mut root,
            &format!(
                "SELECT attname::text FROM pg_attribute WHERE attrelid = 'vault.{table}'::regclass AND attnum = 1"
            ),
        );
        for statement in [
            "SELECT * FROM vault.T",
            "SELECT FROM vault.T",
            "SELECT count(*) FROM vault.T",
            "SELECT count(*) FROM ONLY vault.T AS innocent",
            "EXPLAIN SELECT * FROM vault.T",
            "EXPLAIN (ANALYZE, COSTS OFF) SELECT * FROM vault.T",
            "EXPLAIN (ANALYZE, BUFFERS) SELECT FROM vault.T WHERE K IS NOT NULL",
            "SELECT * FROM vault.T FOR UPDATE",
            "SELECT * FROM vault.T FOR KEY SHARE NOWAIT",
            "SELECT * FROM vault.T TABLESAMPLE SYSTEM (100)",
            "SELECT * FROM vault.T WHERE false",
            "SELECT * FROM vault.T LIMIT 0",
            "SELECT tableoid::regclass, ctid, xmin FROM vault.T",
            "SELECT EXISTS (SELECT FROM vault.T)",
            "SELECT (SELECT K FROM vault.T LIMIT 1)",
            "WITH w AS MATERIALIZED (SELECT * FROM vault.T) SELECT * FROM w",
            "WITH w AS (SELECT * FROM vault.T) SELECT 1 FROM pg_class LEFT JOIN w ON false",
            "SELECT * FROM pg_class c, LATERAL (SELECT * FROM vault.T LIMIT c.relpages) t",
            "INSERT INTO vault.T SELECT * FROM vault.T",
            "INSERT INTO vault.T DEFAULT VALUES ON CONFLICT DO NOTHING",
            "UPDATE vault.T SET K = K",
            "DELETE FROM vault.T",
            "DELETE FROM vault.T WHERE false RETURNING *",
            "WITH d AS (DELETE FROM vault.T RETURNING *) SELECT * FROM d",
            "MERGE INTO vault.T USING (SELECT 1) s ON true WHEN MATCHED THEN DELETE",
            "MERGE INTO mine.own o USING vault.T s ON false WHEN NOT MATCHED THEN DO NOTHING",
            "COPY vault.T TO STDOUT",
            "COPY vault.T (K) TO STDOUT",
            "COPY (SELECT * FROM vault.T) TO STDOUT",
            "COPY vault.T FROM STDIN",
            "CREATE TABLE mine.taken AS SELECT * FROM vault.T",
            "SELECT * INTO mine.taken FROM vault.T",
            "CREATE MATERIALIZED VIEW mine.taken AS SELECT * FROM vault.T",
            "BEGIN; DECLARE c CURSOR FOR SELECT * FROM vault.T",
            "BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT * FROM vault.T; COMMIT",
            "PREPARE p AS SELECT * FROM vault.T; EXECUTE p",
            "DO $$ BEGIN PERFORM FROM vault.T; END $$",
            "DO $$ DECLARE r record; BEGIN FOR r IN SELECT * FROM vault.T LOOP END LOOP; END $$",
            "SELECT mine.definer_T()",
            "SELECT mine.invoker_T()",
            "SELECT * FROM mine.view_T",
            "SELECT * FROM mine.barrier_T",
            "SELECT * FROM mine.nested_T",
            "INSERT INTO mine.own SELECT 1 FROM vault.T",
            "UPDATE mine.own SET n = 2 FROM vault.T",
            "DELETE FROM mine.own USING vault.T",
            "SELECT query_to_xml('SELECT * FROM vault.T', true, true, '')",
            "SELECT table_to_xml('vault.T', true, true, '')",
            "SELECT * FROM ts_stat('SELECT to_tsvector(K::text) FROM vault.T')",
        ] {
            // Ways in that this role makes for itself.
            let make = "CREATE TABLE IF NOT EXISTS mine.own (n int);
                CREATE OR REPLACE FUNCTION mine.definer_T() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS 'SELECT count(*) FROM vault.T';
                CREATE OR REPLACE FUNCTION mine.invoker_T() RETURNS bigint LANGUAGE sql STABLE AS 'SELECT count(*) FROM vault.T';
                CREATE OR REPLACE VIEW mine.view_T AS SELECT * FROM vault.T;
                CREATE OR REPLACE VIEW mine.barrier_T WITH (security_barrier) AS SELECT * FROM vault.T WHERE K IS NOT NULL;
                CREATE OR REPLACE VIEW mine.nested_T AS SELECT n.K FROM mine.view_T n JOIN mine.own ON true";
            let fill = |sql: &str| {
                sql.replace("vault.T", &format!("vault.{table}"))
                    .replace("_T", &format!("_{table}"))
                    .replace("K", &key)
                    .replace(&format!("FOR {key}EY"), "FOR KEY")
            };
            // What the server does not do with foreign tables whoever asks.
            let foreign =
                ["TABLESAMPLE", "COPY vault.T", "INTO vault.T", "UPDATE vault.T", "DELETE FROM vault.T"];
            if table == "_readable" && foreign.iter().any(|part| statement.contains(part)) {
                continue;
            }
            eve.ask(&fill(make));
            refused(&mut eve, &fill(statement));
            eve.ask("ROLLBACK; DEALLOCATE ALL; DROP TABLE IF EXISTS mine.taken");
            if statement.contains("mine.view") || statement.contains("definer") {
                // Nobody is served by a view or function of this role, not even a superuser.
                refused(&mut root, &fill(statement));
            }
        }
    }
    // The foreign table behind vault.decrypted_secrets, which only the view's owner scans.
    for statement in [
        "SELECT * FROM vault._readable",
        "EXPLAIN SELECT * FROM vault._readable",
        "EXPLAIN (ANALYZE, BUFFERS) SELECT FROM vault._readable WHERE name = 'top/launch-codes'",
        "COPY (SELECT * FROM vault._readable) TO STDOUT",
        "BEGIN; DECLARE c CURSOR FOR SELECT * FROM vault._readable",
        "INSERT INTO vault._readable DEFAULT VALUES",
        "UPDATE vault._readable SET name = 'x'",
        "DELETE FROM vault._readable",
    ] {
        refused(&mut eve, statement);
        eve.ask("ROLLBACK");
    }
    // Tables of the same names elsewhere are nobody's business.
    eve.ask(
        "CREATE TABLE mine.secrets (name text); INSERT INTO mine.secrets VALUES ('x'); SELECT * FROM mine.secrets;
         CREATE TEMP TABLE secrets (name text); SELECT * FROM secrets; EXPLAIN ANALYZE SELECT * FROM mine.secrets",
    );
    // The vault itself is used as before.
    assert_eq!(vault.app().ask("SELECT vault.read_secret('top/other')"), "v");
    assert_eq!(text(&mut root, "SELECT count(*)::text FROM vault.secrets"), "2");
}

/// Equality and order on text are leakproof, so that the server may use them below a row-security filter, and says how
/// many rows the filter removed.
#[test]
fn names_cannot_be_walked() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut root = prepare(&vault);
    root.ask("SELECT vault.create_secret('p/' || to_char(i, 'FM000'), 'v') FROM generate_series(1, 300) i");
    root.ask("CREATE ROLE walker LOGIN IN ROLE vault_user; GRANT SELECT ON ALL TABLES IN SCHEMA vault TO walker; ANALYZE");
    for who in ["walker", "eve"] {
        let mut client = vault.session(who);
        for plan in ["enable_seqscan", "enable_indexscan", "enable_bitmapscan"] {
            client.ask(&format!("RESET ALL; SET {plan} = off"));
            for condition in [
                "name = 'top/launch-codes'",
                "name = 'top/none'",
                "name >= 'top/l' AND name < 'top/m'",
                "name LIKE 'top/%'",
                "name = ANY ('{top/launch-codes}')",
                "id = (SELECT id FROM vault.secrets LIMIT 1)",
            ] {
                for explain in
                    ["EXPLAIN (ANALYZE, COSTS OFF)", "EXPLAIN (ANALYZE, BUFFERS, TIMING OFF)", "EXPLAIN", ""]
                {
                    refused(
                        &mut client,
                        &format!("{explain} SELECT name FROM vault.secrets WHERE {condition}"),
                    );
                }
            }
            let prepared = "PREPARE p(text) AS SELECT name FROM vault.secrets WHERE name = $1; EXPLAIN ANALYZE EXECUTE p('top/other')";
            refused(&mut client, prepared);
            client.ask("DEALLOCATE ALL");
        }
        // What everybody may read of the statistics does not move, whatever is asked: the planner, which works before anything
        // is refused, reads the ends of an index if the constant lies near them.
        let scanned = "SELECT coalesce(sum(seq_tup_read + idx_tup_fetch), 0)::text FROM pg_stat_xact_all_tables WHERE schemaname = 'vault'";
        client.ask("RESET ALL; BEGIN");
        let before = text(&mut client, scanned);
        for constant in ["", "p/000", "p/150", "top/launch", "top/other", "zz"] {
            client.ask("SAVEPOINT s");
            assert_eq!(
                state(&mut client, &format!("SELECT FROM vault.secrets WHERE name > '{constant}'")),
                "42501"
            );
            client.ask("ROLLBACK TO s");
            assert_eq!(text(&mut client, scanned), before, "{who}: {constant:?}");
        }
        client.ask("ROLLBACK");
    }
}

#[test]
fn superusers_and_bypassrls_pass() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut root = prepare(&vault);
    let tables = tables(&mut root);
    root.ask(
        "CREATE ROLE dumper LOGIN BYPASSRLS IN ROLE pg_read_all_data; CREATE ROLE reads_all LOGIN IN ROLE pg_read_all_data;
         CREATE ROLE chief LOGIN SUPERUSER",
    );
    for who in ["dumper", "chief", "postgres"] {
        let mut client = vault.session(who);
        for table in &tables {
            client.ask(&format!("SELECT * FROM vault.{table}; EXPLAIN ANALYZE SELECT * FROM vault.{table}"));
            copied(&mut client, &format!("COPY (SELECT * FROM vault.{table}) TO STDOUT"));
        }
        assert_eq!(client.ask("SELECT count(*) FROM vault.secrets"), "2");
    }
    for table in &tables {
        refused(&mut vault.session("reads_all"), &format!("SELECT * FROM vault.{table}"));
    }
    // In parallel workers, too.
    let force = text(
        &mut root,
        "SELECT name FROM pg_settings WHERE name IN ('debug_parallel_query', 'force_parallel_mode') LIMIT 1",
    );
    root.ask(&format!("SET {force} = on"));
    assert_eq!(root.ask("SELECT count(*) FROM vault.secrets"), "2");
    root.ask(&format!("RESET {force}"));
    let dump = cluster
        .run_tool("pg_dump", &["-U", "dumper", "--data-only", "--table", "vault.*"], b"")
        .success()
        .text();
    assert!(dump.contains("top/launch-codes"), "{dump}");

    // A superuser's own deeds: a view, or a function, through which others look.
    root.ask(
        "CREATE VIEW public.names AS SELECT name FROM vault.secrets; GRANT SELECT ON public.names TO eve;
         CREATE VIEW public.invoked WITH (security_invoker) AS SELECT name FROM vault.secrets; GRANT SELECT ON public.invoked TO eve;
         CREATE FUNCTION public.count_names() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS 'SELECT count(*) FROM vault.secrets';
         CREATE VIEW public.written AS SELECT id, name, is_admin, created_at FROM vault.roles; GRANT ALL ON public.written TO eve",
    );
    let mut eve = vault.session("eve");
    assert_eq!(eve.ask("SELECT count(*) FROM public.names"), "2");
    assert_eq!(eve.ask("SELECT public.count_names()"), "2");
    eve.ask(
        "INSERT INTO public.written VALUES (gen_random_uuid(), 'made', false, now()) ON CONFLICT (id) DO UPDATE SET name = excluded.name",
    );
    refused(&mut eve, "SELECT * FROM public.invoked");
    // Whose statement it is changes with SET ROLE; a plan that was made before does not help.
    root.ask("PREPARE p AS SELECT count(*) FROM vault.secrets; EXECUTE p; SET ROLE eve");
    refused(&mut root, "EXECUTE p");
    root.ask("RESET ROLE; EXECUTE p");
    let mut chief = vault.session("chief");
    chief.ask("SELECT * FROM vault.secrets");
    root.ask("ALTER ROLE chief NOSUPERUSER; GRANT SELECT ON vault.secrets TO chief; GRANT USAGE ON SCHEMA vault TO chief");
    refused(&mut chief, "SELECT * FROM vault.secrets");
    root.ask("ALTER ROLE chief BYPASSRLS");
    chief.ask("SELECT * FROM vault.secrets");
}

#[test]
fn auditors_read_the_log_and_nothing_else() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut root = prepare(&vault);
    root.ask(
        "CREATE ROLE auditor LOGIN IN ROLE vault_auditor; CREATE ROLE late LOGIN NOINHERIT IN ROLE vault_auditor;
         GRANT ALL ON SCHEMA vault TO auditor, late; GRANT ALL ON ALL TABLES IN SCHEMA vault TO auditor, late;
         CREATE SCHEMA audit AUTHORIZATION auditor; GRANT USAGE ON SCHEMA audit TO eve",
    );
    crate::audit::settle(&cluster);
    let mut auditor = vault.session("auditor");
    let count = "SELECT count(*) > 0 FROM vault.audit_log WHERE subject = 'top/other'";
    assert_eq!(auditor.ask(count), "t");
    for reading in [
        "SELECT * FROM vault.audit_log",
        "EXPLAIN ANALYZE SELECT * FROM vault.audit_log WHERE id > 0",
        "BEGIN; DECLARE c CURSOR FOR SELECT * FROM vault.audit_log; FETCH c; COMMIT",
        "CREATE VIEW audit.log AS SELECT * FROM vault.audit_log; GRANT SELECT ON audit.log TO eve",
    ] {
        auditor.ask(reading);
    }
    assert!(copied(&mut auditor, "COPY (SELECT * FROM vault.audit_log) TO STDOUT").contains("top/other"));
    // Their own view, for those whom they let read it.
    assert_eq!(vault.session("eve").ask("SELECT count(*) > 0 FROM audit.log"), "t");
    for writing in [
        "SELECT * FROM vault.audit_log FOR UPDATE",
        "SELECT * FROM vault.audit_log FOR KEY SHARE",
        "UPDATE vault.audit_log SET outcome = 'ok'",
        "UPDATE vault.audit_log SET outcome = 'ok' WHERE false",
        "DELETE FROM vault.audit_log",
        "DELETE FROM audit.log",
        "INSERT INTO vault.audit_log SELECT * FROM vault.audit_log",
        "MERGE INTO vault.audit_log USING (SELECT 1) s ON false WHEN MATCHED THEN DELETE",
        "COPY vault.audit_log FROM STDIN",
    ] {
        refused(&mut auditor, writing);
    }
    for table in tables(&mut root).iter().filter(|table| *table != "audit_log") {
        refused(&mut auditor, &format!("SELECT * FROM vault.{table}"));
        refused(&mut auditor, &format!("SELECT * FROM vault.audit_log, vault.{table}"));
    }
    let mut late = vault.session("late");
    refused(&mut late, count);
    late.ask("SET ROLE vault_auditor");
    assert_eq!(late.ask(count), "t");
    refused(&mut vault.session("eve"), "SELECT * FROM vault.audit_log");
}

/// Other ways to a table than by its name.
#[test]
fn no_other_way_to_a_table() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut root = prepare(&vault);
    let mut eve = vault.session("eve");

    // As a child of a table of eve's: a superuser has to tie it, and still does not open it.
    root.ask(
        "CREATE TABLE mine.parent (name text COLLATE \"C\"); ALTER TABLE mine.parent OWNER TO eve; ALTER TABLE vault.roles INHERIT mine.parent;
         CREATE TABLE mine.whole (LIKE vault.roles) PARTITION BY RANGE (id)",
    );
    for statement in [
        "SELECT * FROM mine.parent",
        "EXPLAIN SELECT * FROM mine.parent",
        "UPDATE mine.parent SET name = 'x'",
        "DELETE FROM mine.parent",
        "COPY (SELECT * FROM mine.parent) TO STDOUT",
    ] {
        refused(&mut eve, statement);
    }
    eve.ask("SELECT * FROM ONLY mine.parent");
    assert_eq!(root.ask("SELECT count(*) FROM mine.parent"), "1");
    root.ask("ALTER TABLE vault.roles NO INHERIT mine.parent; ALTER TABLE mine.whole ATTACH PARTITION vault.roles DEFAULT; ALTER TABLE mine.whole OWNER TO eve; ALTER TABLE vault.roles OWNER TO postgres");
    for statement in
        ["SELECT * FROM mine.whole", "UPDATE mine.whole SET name = 'x'", "DELETE FROM mine.whole"]
    {
        refused(&mut eve, statement);
    }
    root.ask("ALTER TABLE mine.whole DETACH PARTITION vault.roles");

    // Foreign keys: the server's own checks run as the table's owner, and work.
    eve.ask("CREATE TABLE mine.tied (id uuid); INSERT INTO mine.tied VALUES (NULL)");
    lend(&mut eve, &mut root, "ALTER TABLE mine.tied ADD FOREIGN KEY (id) REFERENCES vault.secrets (id)");
    sqlstate!(eve.try_ask("INSERT INTO mine.tied VALUES (gen_random_uuid())"), "23503");
    let id = root.ask("SELECT id FROM vault.secrets WHERE name = 'top/other'");
    eve.ask(&format!("INSERT INTO mine.tied VALUES ('{id}')"));
    eve.ask("DROP TABLE mine.tied");
    eve.ask(&format!("CREATE TABLE mine.tied AS SELECT '{id}'::uuid AS id"));
    lend(&mut eve, &mut root, "ALTER TABLE mine.tied ADD FOREIGN KEY (id) REFERENCES vault.secrets (id)");
    eve.ask("DROP TABLE mine.tied");

    // Values out of line.
    let toast =
        root.ask("SELECT reltoastrelid::regclass FROM pg_class WHERE oid = 'vault.secrets'::regclass");
    root.ask(&format!("GRANT USAGE ON SCHEMA pg_toast TO eve; GRANT SELECT ON {toast} TO eve"));
    refused(&mut eve, &format!("SELECT * FROM {toast}"));
    root.ask(&format!("SELECT * FROM {toast}"));
    root.ask("VACUUM FULL vault.secrets");
    root.ask(&format!("SELECT * FROM {toast}"));
    refused(&mut eve, &format!("SELECT * FROM {toast}"));

    // As its owner, which a superuser has to make of eve.
    root.ask("ALTER TABLE vault.secrets OWNER TO eve");
    refused(&mut eve, "SELECT * FROM vault.secrets");
    root.ask("ALTER TABLE vault.secrets OWNER TO postgres; GRANT ALL ON vault.secrets TO eve");

    // Moved, renamed, made anew: a table is what belongs to the extension.
    root.ask("ALTER TABLE vault.tokens RENAME TO harmless; GRANT ALL ON vault.harmless TO eve");
    refused(&mut eve, "SELECT * FROM vault.harmless");
    root.ask("ALTER TABLE vault.harmless SET SCHEMA mine");
    refused(&mut eve, "SELECT * FROM mine.harmless");
    root.ask("ALTER TABLE mine.harmless SET SCHEMA vault; ALTER TABLE vault.harmless RENAME TO tokens");
    root.ask("ALTER SCHEMA vault RENAME TO elsewhere");
    refused(&mut eve, "SELECT * FROM elsewhere.secrets");
    root.ask("ALTER SCHEMA elsewhere RENAME TO vault");
    root.ask("DROP EXTENSION hyperion_vault CASCADE; CREATE TABLE vault.secrets (name text); GRANT ALL ON SCHEMA vault TO eve; GRANT ALL ON vault.secrets TO eve");
    assert_eq!(eve.ask("SELECT count(*) FROM vault.secrets"), "0");
    root.ask("DROP TABLE vault.secrets; REVOKE ALL ON SCHEMA vault FROM eve; CREATE EXTENSION hyperion_vault; GRANT USAGE ON SCHEMA vault TO eve; GRANT ALL ON ALL TABLES IN SCHEMA vault TO eve");
    refused(&mut eve, "SELECT * FROM vault.secrets");
}

/// In a database that is not the vault's, and in one that has no extension.
#[test]
fn in_other_databases() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    prepare(&vault).ask("CREATE DATABASE plain");
    let mut root = cluster.connect("postgres", "template1");
    root.ask("CREATE DATABASE copy TEMPLATE postgres");
    refused(&mut cluster.connect("eve", "copy"), "SELECT * FROM vault.secrets");
    assert_eq!(cluster.connect("postgres", "copy").ask("SELECT count(*) FROM vault.secrets"), "2");
    let mut plain = cluster.connect("postgres", "plain");
    plain.ask("CREATE SCHEMA vault; CREATE TABLE vault.secrets (name text); GRANT ALL ON SCHEMA vault TO eve; GRANT ALL ON vault.secrets TO eve");
    cluster.connect("eve", "plain").ask("INSERT INTO vault.secrets VALUES ('x'); SELECT * FROM vault.secrets; EXPLAIN ANALYZE SELECT * FROM vault.secrets");
}
