//! Every kind of code that a role with all privileges on the tables could tie to them, or put in the way of those who use
//! the vault: none runs in any operation, and the role learns no name.
//!
//! The list is of kinds: an attempt that the server refuses is as good as one that has no effect. What is known to be
//! possible is marked, so that a typing error does not pass for a defence.

use super::{TABLES, builder, calls, give_work, make_manager, state, until_worked};
use hyperion_vault_tests::{Ask, Client, Cluster, Vault, lend, sqlstate};

/// How the server may answer an attempt that it does not allow: no privilege, or wrong kind of object, or dependent objects.
const REFUSALS: [&str; 9] = ["42501", "2BP01", "42809", "42830", "42P16", "42P17", "0A000", "55000", "55P02"];

/// Attempts on each table `{t}`, whose bare name is `{n}` and one of whose columns is `{k}`.
const ON_TABLES: &[(Possible, &str)] = &[
    (
        Lent,
        "CREATE TRIGGER t1 BEFORE INSERT OR UPDATE OR DELETE ON {t} FOR EACH ROW EXECUTE FUNCTION mine.fire()",
    ),
    (
        Lent,
        "CREATE TRIGGER t2 AFTER INSERT OR UPDATE OR DELETE ON {t} FOR EACH STATEMENT EXECUTE FUNCTION mine.fire()",
    ),
    (
        Lent,
        "CREATE TRIGGER \"RI_ConstraintTrigger_c_1\" AFTER INSERT OR UPDATE OR DELETE ON {t} FOR EACH ROW EXECUTE FUNCTION mine.fire_definer()",
    ),
    (
        Lent,
        "CREATE CONSTRAINT TRIGGER t4 AFTER INSERT OR UPDATE OR DELETE ON {t} DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION mine.fire()",
    ),
    (
        Lent,
        "CREATE TRIGGER t5 AFTER UPDATE ON {t} REFERENCING OLD TABLE AS o NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION mine.fire()",
    ),
    (
        Lent,
        "CREATE TRIGGER t6 BEFORE UPDATE OF {k} ON {t} FOR EACH ROW WHEN (mine.condition(new.{k}::text)) EXECUTE FUNCTION mine.fire()",
    ),
    (Lent, "CREATE OR REPLACE TRIGGER t7 BEFORE UPDATE ON {t} FOR EACH ROW EXECUTE FUNCTION mine.fire()"),
    (
        No,
        "CREATE OR REPLACE TRIGGER refuse_truncate BEFORE TRUNCATE ON {t} FOR EACH STATEMENT EXECUTE FUNCTION mine.fire()",
    ),
    (
        No,
        "CREATE OR REPLACE TRIGGER access_changed BEFORE UPDATE ON {t} FOR EACH ROW EXECUTE FUNCTION mine.fire()",
    ),
    (Lent, "CREATE TRIGGER t8 BEFORE DELETE ON {t} FOR EACH ROW EXECUTE FUNCTION mine.fire()"),
    (No, "ALTER TABLE {t} ENABLE ALWAYS TRIGGER t1"),
    (No, "CREATE RULE r1 AS ON INSERT TO {t} DO ALSO SELECT mine.condition('')"),
    (No, "CREATE RULE r2 AS ON UPDATE TO {t} DO INSTEAD SELECT mine.condition('')"),
    (No, "CREATE RULE r3 AS ON DELETE TO {t} DO INSTEAD NOTHING"),
    (No, "CREATE RULE \"_RETURN\" AS ON SELECT TO {t} DO INSTEAD SELECT * FROM mine.bait"),
    (No, "CREATE POLICY p1 ON {t} USING (mine.condition({k}::text))"),
    (
        No,
        "CREATE POLICY p2 ON {t} AS RESTRICTIVE FOR ALL TO PUBLIC USING (mine.condition('')) WITH CHECK (mine.condition(''))",
    ),
    (No, "ALTER TABLE {t} DISABLE ROW LEVEL SECURITY"),
    (No, "ALTER TABLE {t} ADD COLUMN x text DEFAULT mine.some(''::text)"),
    (No, "ALTER TABLE {t} ADD COLUMN x mine.spy"),
    (No, "ALTER TABLE {t} ADD COLUMN x text GENERATED ALWAYS AS (mine.some(''::text)) STORED"),
    (No, "ALTER TABLE {t} ALTER COLUMN {k} SET DEFAULT NULL"),
    (No, "ALTER TABLE {t} ALTER COLUMN {k} TYPE mine.spy USING {k}::text"),
    (No, "ALTER TABLE {t} ADD CONSTRAINT c1 CHECK (mine.condition(''))"),
    (No, "ALTER TABLE {t} ADD CONSTRAINT c2 CHECK (mine.condition('')) NOT VALID"),
    (No, "ALTER TABLE {t} ADD CONSTRAINT c3 FOREIGN KEY ({k}) REFERENCES mine.bait"),
    (No, "ALTER TABLE {t} ADD CONSTRAINT c4 EXCLUDE USING btree ({k} WITH =)"),
    (No, "CREATE INDEX i1 ON {t} (mine.some({k}::text))"),
    (No, "CREATE INDEX i2 ON {t} ({k}) WHERE mine.condition('')"),
    (No, "CREATE UNIQUE INDEX i3 ON {t} ({k})"),
    (No, "CREATE STATISTICS mine.s1 ON (mine.some({k}::text)), (1) FROM {t}"),
    (No, "CREATE TABLE mine.child () INHERITS ({t})"),
    (No, "ALTER TABLE {t} INHERIT mine.bait"),
    (No, "CREATE PUBLICATION p FOR TABLE {t} WHERE (mine.condition(''))"),
    (No, "ALTER TABLE {t} REPLICA IDENTITY FULL"),
    (No, "ALTER TABLE {t} SET (fillfactor = 10)"),
    (No, "ALTER TABLE {t} OWNER TO eve"),
    (No, "ALTER TABLE {t} SET SCHEMA mine"),
    (No, "ALTER TABLE {t} RENAME TO x"),
    (No, "DROP TABLE {t} CASCADE"),
    // A warning that nothing was granted.
    (Perhaps, "GRANT ALL ON {t} TO app"),
    (No, "INSERT INTO {t} DEFAULT VALUES"),
    (No, "UPDATE {t} SET {k} = {k}"),
    (No, "SELECT * FROM {t}"),
    (No, "TRUNCATE {t}"),
    (Lent, "CREATE VIEW vault.v_{n} AS SELECT * FROM {t} WHERE mine.condition({k}::text)"),
    (
        Lent,
        "CREATE FUNCTION vault.\"_of\"({t}) RETURNS boolean LANGUAGE sql AS 'SELECT mine.condition('''')'",
    ),
    // On 17 and later, ALL includes MAINTAIN.
    (Perhaps, "ANALYZE {t}"),
    (Perhaps, "VACUUM {t}"),
    (No, "REINDEX TABLE {t}"),
    (No, "CLUSTER {t}"),
    (No, "VACUUM FULL {t}"),
    (No, "BEGIN; LOCK TABLE {t} IN SHARE ROW EXCLUSIVE MODE; ROLLBACK"),
];

/// Attempts on other things.
const ELSEWHERE: &[(Possible, &str)] = &[
    // Functions, tables and types of the extension's schema, where the role may create.
    (
        Lent,
        "CREATE FUNCTION vault.texteq(text, text) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RETURN mine.condition(''''); END'",
    ),
    (Lent, "CREATE OPERATOR vault.= (LEFTARG = text, RIGHTARG = text, FUNCTION = vault.texteq)"),
    (
        Lent,
        "CREATE FUNCTION vault.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS 'BEGIN PERFORM mine.condition(''''); RETURN now(); END'",
    ),
    (
        Lent,
        "CREATE FUNCTION vault.\"_open\"(uuid, text, int DEFAULT 1) RETURNS boolean LANGUAGE sql AS 'SELECT mine.condition('''')'",
    ),
    (
        Lent,
        "CREATE FUNCTION vault.\"_check_install\"(int DEFAULT 1) RETURNS boolean LANGUAGE sql AS 'SELECT mine.condition('''')'",
    ),
    (
        Lent,
        "CREATE TABLE vault.pg_class (LIKE pg_class); CREATE TABLE vault.pg_authid (oid oid, rolname name)",
    ),
    (
        Lent,
        "CREATE DOMAIN vault.text AS pg_catalog.text CHECK (mine.condition(value)); CREATE DOMAIN vault.jsonb AS pg_catalog.jsonb CHECK (mine.condition(''))",
    ),
    (Lent, "CREATE COLLATION vault.\"C\" FROM \"POSIX\"; CREATE COLLATION mine.\"C\" FROM \"POSIX\""),
    (No, "CREATE OR REPLACE FUNCTION vault.status() RETURNS jsonb LANGUAGE sql AS 'SELECT NULL::jsonb'"),
    (No, "ALTER FUNCTION vault.read_secret(text, int) OWNER TO eve"),
    (No, "ALTER FUNCTION vault.read_secret(text, int) SECURITY DEFINER SET search_path = mine"),
    (No, "DROP FUNCTION vault.read_secret(text, int)"),
    (No, "CREATE OR REPLACE VIEW vault.decrypted_secrets AS SELECT NULL::uuid AS id"),
    (
        No,
        "CREATE TRIGGER t INSTEAD OF INSERT ON vault.decrypted_secrets FOR EACH ROW EXECUTE FUNCTION mine.fire(); ALTER VIEW vault.decrypted_secrets OWNER TO eve",
    ),
    (No, "CREATE RULE r AS ON UPDATE TO vault.decrypted_secrets DO INSTEAD SELECT mine.condition('')"),
    // Types and casts.
    (No, "ALTER TYPE vault.secret_kind ADD VALUE 'x'"),
    (No, "ALTER TYPE vault.secret_info ADD ATTRIBUTE x int"),
    (No, "CREATE CAST (vault.secret_kind AS text) WITH FUNCTION mine.of_kind(vault.secret_kind) AS IMPLICIT"),
    (No, "CREATE CAST (text AS vault.secret_kind) WITH FUNCTION mine.to_kind(text) AS ASSIGNMENT"),
    (No, "CREATE CAST (uuid AS text) WITH INOUT AS IMPLICIT"),
    (No, "CREATE CAST (jsonb AS text) WITH FUNCTION mine.of_jsonb(jsonb) AS IMPLICIT"),
    (
        Yes,
        "CREATE DOMAIN mine.uuid AS pg_catalog.uuid CHECK (mine.condition('')); CREATE DOMAIN mine.timestamptz AS pg_catalog.timestamptz CHECK (mine.condition(''))",
    ),
    (
        No,
        "CREATE OPERATOR CLASS mine.text_ops DEFAULT FOR TYPE text USING btree AS OPERATOR 3 vault.= (text, text)",
    ),
    (No, "CREATE OPERATOR pg_catalog.=== (LEFTARG = text, RIGHTARG = text, FUNCTION = vault.texteq)"),
    (No, "CREATE FUNCTION pg_catalog.texteq(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT true'"),
    (No, "CREATE TYPE pg_catalog.text2"),
    // What runs by itself.
    (No, "CREATE EVENT TRIGGER e ON ddl_command_end EXECUTE FUNCTION mine.fire_event()"),
    (No, "CREATE EVENT TRIGGER e ON sql_drop EXECUTE FUNCTION mine.fire_event()"),
    (Perhaps, "CREATE EVENT TRIGGER e ON login EXECUTE FUNCTION mine.fire_event()"),
    (No, "CREATE LANGUAGE evil HANDLER plpgsql_call_handler"),
    (No, "CREATE FUNCTION mine.c() RETURNS int LANGUAGE c AS 'hyperion_vault', 'vault_open'"),
    (No, "CREATE FUNCTION mine.i(cstring) RETURNS int LANGUAGE internal AS 'int4in'"),
    (No, "CREATE TRANSFORM FOR text LANGUAGE sql (FROM SQL WITH FUNCTION mine.hidden(internal))"),
    (No, "CREATE ACCESS METHOD evil TYPE TABLE HANDLER heap_tableam_handler"),
    (No, "CREATE FOREIGN DATA WRAPPER evil"),
    (No, "CREATE USER MAPPING FOR PUBLIC SERVER hyperion_vault"),
    (No, "CREATE SUBSCRIPTION s CONNECTION 'dbname=postgres' PUBLICATION p"),
    (No, "CREATE PUBLICATION p FOR ALL TABLES"),
    (No, "CREATE PUBLICATION p FOR TABLES IN SCHEMA vault"),
    // Settings of others.
    (No, "ALTER ROLE manager SET search_path = mine"),
    (No, "ALTER ROLE ALL SET search_path = mine"),
    (No, "ALTER DATABASE postgres SET search_path = mine"),
    (No, "ALTER SYSTEM SET local_preload_libraries = 'evil'"),
    (No, "SET hyperion_vault.allowed_ips = '0.0.0.0/0'"),
    (No, "SET session_replication_role = replica"),
    (Perhaps, "ALTER DEFAULT PRIVILEGES IN SCHEMA vault GRANT ALL ON TABLES TO PUBLIC"),
    (No, "GRANT vault_service TO eve"),
    (No, "SET ROLE vault_service"),
    (No, "ALTER SCHEMA vault RENAME TO x"),
    (No, "ALTER SCHEMA vault OWNER TO eve"),
    (No, "ALTER EXTENSION hyperion_vault UPDATE"),
    (No, "ALTER EXTENSION hyperion_vault ADD TABLE mine.bait"),
    (No, "COMMENT ON EXTENSION hyperion_vault IS 'x'"),
];

/// Whether the server is known to allow it.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Possible {
    Yes,
    No,
    /// The vault refuses it, and a superuser may do it for them.
    Lent,
    /// It depends on the table, or on the major.
    Perhaps,
}
use Possible::{Lent, No, Perhaps, Yes};

#[test]
fn nothing_of_theirs_runs_and_nothing_is_learned() {
    let cluster = builder().start();
    let vault = cluster.vault();
    let mut root = vault.root();
    seed(&mut root);
    let mut eve = vault.session("eve");
    eve.ask(BAIT);

    let mut possible = 0;
    let attempts: Vec<_> = TABLES
        .iter()
        .flat_map(|table| {
            let key = column(&mut root, table);
            ON_TABLES
                .iter()
                .map(move |(expected, attempt)| (*expected, fill(attempt, table, &key)))
                .collect::<Vec<_>>()
        })
        .chain(ELSEWHERE.iter().map(|(expected, attempt)| (*expected, (*attempt).to_owned())))
        .collect();
    for (expected, attempt) in attempts {
        if expected == Lent {
            lend(&mut eve, &mut root, &attempt);
            possible += 1;
            continue;
        }
        let code = state(&mut eve, &attempt);
        eve.ask("ROLLBACK");
        match expected {
            Yes => assert_eq!(code, "00000", "the attack is not one: {attempt}"),
            No => assert!(REFUSALS.contains(&code.as_str()), "{code}: {attempt}"),
            Lent | Perhaps => {
                assert!(code == "00000" || REFUSALS.contains(&code.as_str()), "{code}: {attempt}")
            }
        }
        possible += u32::from(code == "00000");
    }
    assert!(possible > 80, "{possible}");
    foreign_keys(&mut root, &mut eve);
    nothing_was_learned(&mut eve);
    root.ask("ALTER SEQUENCE mine.canary RESTART");

    for (who, prelude) in [
        ("manager", ""),
        ("postgres", ""),
        ("manager", "SET search_path = mine, vault, pg_catalog"),
        ("postgres", "SET search_path = mine, vault, pg_catalog"),
        ("manager", "SELECT mine.litter(); SET search_path = pg_temp, mine, pg_catalog"),
        ("postgres", "SET session_replication_role = replica"),
    ] {
        let mut client = vault.session(who);
        client.ask(prelude);
        client.ask("SELECT 1"); // what the prelude itself runs is the caller's
        root.ask("ALTER SEQUENCE mine.canary RESTART");
        every_call(&mut client, &mut root, &format!("{who}: {prelude}"));
    }
    seeds_go(&vault, &mut root);
    until_worked(&vault, "w");
    silent(&mut root, "the workers");
    cluster_commands(&mut root);
    controls(&cluster, &mut root);
}

/// What the attacker makes for itself. A sequence moves whatever becomes of the transaction.
const BAIT: &str = "GRANT USAGE ON SCHEMA mine TO PUBLIC; CREATE SEQUENCE mine.canary; GRANT ALL ON mine.canary TO PUBLIC;
    CREATE FUNCTION mine.condition(text) RETURNS boolean LANGUAGE plpgsql COST 0.0001 AS $$ BEGIN PERFORM pg_catalog.nextval('mine.canary'); RETURN true; END $$;
    CREATE FUNCTION mine.some(v anyelement) RETURNS anyelement LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN PERFORM pg_catalog.nextval('mine.canary'); RETURN v; END $$;
    CREATE FUNCTION mine.fire() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_catalog.nextval('mine.canary'); RETURN coalesce(new, old); END $$;
    CREATE FUNCTION mine.fire_definer() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN PERFORM pg_catalog.nextval('mine.canary'); RETURN coalesce(new, old); END $$;
    CREATE FUNCTION mine.fire_event() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_catalog.nextval('mine.canary'); END $$;
    CREATE FUNCTION mine.of_kind(vault.secret_kind) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM mine.condition(''); RETURN ''; END $$;
    CREATE FUNCTION mine.to_kind(text) RETURNS vault.secret_kind LANGUAGE plpgsql AS $$ BEGIN PERFORM mine.condition(''); RETURN 'manual'; END $$;
    CREATE FUNCTION mine.of_jsonb(jsonb) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM mine.condition(''); RETURN ''; END $$;
    CREATE DOMAIN mine.spy AS text CHECK (mine.condition(value));
    CREATE TABLE mine.bait (id uuid PRIMARY KEY, name text);
    CREATE FUNCTION mine.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS 'BEGIN PERFORM mine.condition(''''); RETURN now(); END';
    CREATE FUNCTION mine.texteq(text, text) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RETURN mine.condition(''''); END';
    CREATE FUNCTION mine.uuid_eq(uuid, uuid) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RETURN mine.condition(''''); END';
    CREATE FUNCTION mine.ordered(timestamptz, timestamptz) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RETURN mine.condition(''''); END';
    CREATE OPERATOR mine.= (LEFTARG = text, RIGHTARG = text, FUNCTION = mine.texteq);
    CREATE OPERATOR mine.= (LEFTARG = uuid, RIGHTARG = uuid, FUNCTION = mine.uuid_eq);
    CREATE OPERATOR mine.< (LEFTARG = timestamptz, RIGHTARG = timestamptz, FUNCTION = mine.ordered);
    CREATE OPERATOR mine.<= (LEFTARG = timestamptz, RIGHTARG = timestamptz, FUNCTION = mine.ordered);
    CREATE TABLE mine.secrets (id uuid, name text); CREATE TABLE mine.roles (id uuid, name text); CREATE TABLE mine.audit_log (id bigint);
    -- Code of the attacker that a caller has run: what it leaves in the caller's session.
    CREATE FUNCTION mine.litter() RETURNS void LANGUAGE plpgsql AS $$ BEGIN
      CREATE DOMAIN pg_temp.text AS pg_catalog.text CHECK (mine.condition(value)); CREATE DOMAIN pg_temp.jsonb AS pg_catalog.jsonb CHECK (mine.condition(''));
      CREATE DOMAIN pg_temp.uuid AS pg_catalog.uuid CHECK (mine.condition('')); CREATE DOMAIN pg_temp.bytea AS pg_catalog.bytea CHECK (mine.condition(''));
      CREATE DOMAIN pg_temp.timestamptz AS pg_catalog.timestamptz CHECK (mine.condition(''));
      CREATE TEMP TABLE secrets (id int); CREATE TEMP TABLE pg_class (oid int); CREATE TEMP TABLE pg_authid (oid int);
      CREATE FUNCTION pg_temp.texteq(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT mine.condition('''')';
    END $$";

/// The role with all privileges, and rows of every table for its foreign keys to refer to.
fn seed(root: &mut Client) {
    make_manager(root);
    root.ask(
        "CREATE ROLE eve LOGIN; CREATE SCHEMA mine AUTHORIZATION eve; GRANT ALL ON SCHEMA public TO eve; GRANT ALL ON DATABASE postgres TO eve;
         GRANT ALL ON SCHEMA vault TO eve; GRANT ALL ON ALL TABLES IN SCHEMA vault TO eve; GRANT TEMP ON DATABASE postgres TO PUBLIC;
         GRANT ALL ON TYPE vault.secret_kind, vault.secret_format, vault.secret_info TO eve",
    );
    for table in TABLES {
        let columns = root.ask(&format!(
            "SELECT string_agg(quote_ident(attname), ', ') FROM pg_attribute WHERE attrelid = 'vault.{table}'::regclass AND attnum > 0 AND NOT attisdropped"
        ));
        root.ask(&format!("GRANT ALL ({columns}) ON vault.{table} TO eve"));
    }
    root.ask(
        "SELECT vault.create_secret('seed/' || i, 'v1', grace_period => '1 day', generator => '{}') FROM generate_series(1, 6) i;
         SELECT vault.put_secret('seed/' || i, 'v2') FROM generate_series(1, 6) i;
         SELECT vault.create_role('seed', permissions => '[{\"action\":\"read\",\"path\":\"x\"}]'); SELECT vault.bind_role('seed', 'app');
         SELECT vault.create_token('seed', 'seed')",
    );
    give_work(root, "w");
}

/// The first column of a table of the vault.
pub(super) fn column(root: &mut Client, table: &str) -> String {
    root.ask(&format!(
        "SELECT attname FROM pg_attribute WHERE attrelid = 'vault.{table}'::regclass AND attnum = 1"
    ))
}

fn fill(attempt: &str, table: &str, key: &str) -> String {
    attempt.replace("{t}", &format!("vault.{table}")).replace("{n}", table).replace("{k}", key)
}

/// The attacker's tables refer to ours by every key that the server accepts, with every action, and hold the rows that
/// a superuser knows.
fn foreign_keys(root: &mut Client, eve: &mut Client) {
    for table in ["secrets", "roles", "tokens"] {
        let tie = format!(
            "CREATE TABLE mine.by_name (name text REFERENCES vault.{table} (name) ON UPDATE CASCADE)"
        );
        sqlstate!(eve.try_ask(&tie), "42501", message: "foreign key");
        sqlstate!(root.try_ask(&tie), "42830", message: "there is no unique constraint matching given keys");
    }
    let keys = root.ask(
        "SELECT c.relname, string_agg(quote_ident(a.attname), ', ' ORDER BY k.n), string_agg(format('%I %s', a.attname, format_type(a.atttypid, a.atttypmod)), ', ' ORDER BY k.n)
           FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, n)
           JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
          WHERE c.relnamespace = 'vault'::regnamespace AND c.relkind = 'r' AND c.relname NOT LIKE 'pg\\_%'
            AND i.indisunique AND i.indpred IS NULL AND i.indexprs IS NULL AND k.n <= i.indnkeyatts
          GROUP BY i.indexrelid, c.relname",
    );
    let mut made = 0;
    for (i, line) in keys.lines().enumerate() {
        let [table, names, columns] = line.split('|').collect::<Vec<_>>()[..] else { panic!("{line}") };
        assert!(
            !names.split(", ").any(|name| ["name", "subject", "hash"].contains(&name))
                && !names.split(", ").all(|name| ["action", "path", "pg_role", "kind"].contains(&name)),
            "a guessable key: {line}"
        );
        for (j, action) in ["CASCADE", "SET NULL", "SET DEFAULT", "RESTRICT", "NO ACTION"].iter().enumerate()
        {
            let mine = format!("mine.tied_{i}_{j}");
            eve.ask(&format!("CREATE TABLE {mine} ({columns})"));
            root.ask(&format!("INSERT INTO {mine} SELECT {names} FROM vault.{table}"));
            let deferred = if j % 2 == 0 { "DEFERRABLE INITIALLY DEFERRED" } else { "" };
            let tie = format!(
                "ALTER TABLE {mine} ADD FOREIGN KEY ({names}) REFERENCES vault.{table} ({names}) ON DELETE {action} ON UPDATE {action} {deferred}"
            );
            lend(eve, root, &tie);
            eve.ask(&format!(
                "CREATE TRIGGER t BEFORE INSERT OR UPDATE OR DELETE ON {mine} FOR EACH ROW EXECUTE FUNCTION mine.fire();
                 ALTER TABLE {mine} ADD CHECK (mine.condition('')) NOT VALID"
            ));
            for name in names.split(", ") {
                eve.ask(&format!(
                    "ALTER TABLE {mine} ALTER {name} SET DEFAULT mine.some(NULL::{})",
                    root.ask(&format!("SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'vault.{table}'::regclass AND attname = '{name}'"))
                ));
            }
            made += 1;
        }
    }
    assert!(made >= 40, "{made}");
}

/// What the attacker can ask shows no name.
fn nothing_was_learned(eve: &mut Client) {
    for sql in [
        "SELECT * FROM pg_stats WHERE schemaname = 'vault'",
        "SELECT * FROM pg_stats_ext WHERE schemaname = 'vault'",
        "SELECT * FROM pg_stat_activity WHERE query LIKE '%seed/%' AND usename <> 'eve'",
    ] {
        assert_eq!(eve.ask(sql), "", "{sql}");
    }
    // An insert that would collide with a name is refused before it could.
    for name in ["seed/1", "none"] {
        let insert = format!(
            "INSERT INTO vault.secrets (id, version_id, version, name, format, wrapped_dek, sealed, kms_key_id, kind, created_at, updated_at, version_created_at)
             SELECT gen_random_uuid(), gen_random_uuid(), 1, '{name}', 'opaque', '', '', '', 'manual', now(), now(), now()"
        );
        for end in ["", " ON CONFLICT DO NOTHING", " ON CONFLICT DO NOTHING RETURNING 1"] {
            sqlstate!(eve.try_ask(&format!("{insert}{end}")), "42501", message: "permission denied for table secrets");
        }
    }
}

#[track_caller]
fn silent(root: &mut Client, what: &str) {
    assert_eq!(root.ask("SELECT is_called FROM mine.canary"), "f", "code of the attacker ran: {what}");
}

/// Each function of the API, outside and inside a transaction.
#[track_caller]
fn every_call(client: &mut Client, root: &mut Client, who: &str) {
    let calls = calls(client);
    for in_transaction in [true, false] {
        if in_transaction {
            client.ask("BEGIN");
        }
        for (function, call) in &calls {
            if in_transaction && call.contains("BEGIN") {
                continue;
            }
            // The caller's own words are looked up along the caller's path.
            let call = call.replace("jsonb_set(", "pg_catalog.jsonb_set(");
            client.try_ask(&call).unwrap_or_else(|error| panic!("{who}: {function}: {error:?}"));
            silent(root, &format!("{who}: {function}"));
        }
        client.ask(if in_transaction {
            "ROLLBACK"
        } else {
            "SELECT vault.delete_secret('a/b'); SELECT vault.delete_secret('a/y')"
        });
        silent(root, who);
    }
}

/// The rows that foreign keys refer to change and go.
fn seeds_go(vault: &Vault<'_>, root: &mut Client) {
    let mut manager = vault.session("manager");
    for call in [
        "SELECT vault.put_secret('seed/1', 'v3')",
        "SELECT vault.rename_secret('seed/1', 'renamed')",
        "SELECT vault.rotate_secret('seed/2')",
        "SELECT vault.destroy_version('seed/2', 1)",
        "SELECT vault.roll_back_secret('seed/3', 1)",
        "SELECT vault.delete_secret('seed/3', '1 day')",
        "SELECT vault.restore_secret('seed/3')",
        "SELECT vault.delete_secret('seed/4')",
        "SELECT vault.update_secret('seed/5', keep_versions => 0, grace_period => '0', value => 'v3')",
        "SELECT vault.unbind_role('seed', 'app')",
        "SELECT vault.revoke_token('seed')",
        "SELECT vault.set_role_permissions('seed', '[]')",
        "SELECT vault.drop_role('seed')",
        "BEGIN; SELECT vault.delete_secret('seed/5'); SELECT vault.create_secret('seed/5', 'v'); SET CONSTRAINTS ALL IMMEDIATE; COMMIT",
    ] {
        match manager.try_ask(call) {
            Ok(_) => {}
            // Not in every version of the vault.
            Err(error)
                if call.contains("destroy_version")
                    && error.code().is_some_and(|code| code.code() == "42883") => {}
            Err(error) => panic!("{call}: {error:?}"),
        }
        silent(root, call);
    }
    assert_eq!(vault.app().ask("SELECT vault.read_secret('renamed')"), "v3");
}

/// Maintenance by a superuser rewrites and checks the tables; it runs no trigger either.
fn cluster_commands(root: &mut Client) {
    for table in TABLES {
        for command in ["VACUUM FULL", "REINDEX TABLE", "ANALYZE", "VACUUM FREEZE"] {
            root.ask(&format!("{command} vault.{table}"));
        }
        silent(root, table);
    }
}

/// Their code is there, and runs for statements of a superuser: in triggers, and in what foreign keys do.
fn controls(cluster: &Cluster, root: &mut Client) {
    for table in TABLES {
        let column = column(root, table);
        root.ask(&format!(
            "ALTER SEQUENCE mine.canary RESTART; UPDATE vault.{table} SET {column} = {column} WHERE false"
        ));
        assert_eq!(root.ask("SELECT is_called FROM mine.canary"), "t", "triggers of statements on {table}");
    }
    root.ask("ALTER SEQUENCE mine.canary RESTART");
    for table in TABLES {
        root.ask(&format!("ALTER TABLE vault.{table} DISABLE TRIGGER USER"));
    }
    // Some of the keys forbid it; those that cascade come first.
    let deleted = state(&mut cluster.superuser(), "DELETE FROM vault.secrets WHERE name = 'seed/6'");
    assert!(["00000", "23503", "23502", "23001"].contains(&deleted.as_str()), "{deleted}");
    assert_eq!(root.ask("SELECT is_called FROM mine.canary"), "t", "foreign keys");
}
