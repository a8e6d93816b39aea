//! What a role with every privilege does to the vault's objects other than by statements on rows: nothing, and nobody waits
//! for it. Runs in the test process.
//!
//! The trap: a refusal that comes from somewhere else, such as a missing grant or an owner's check; so the same command
//! is shown to work for them on a table of their own, and on the vault's for a superuser.

use super::text;
use hyperion_vault_tests::threads::background;
use hyperion_vault_tests::{Ask, Client, Cluster, PATIENCE, Vault, lend, sqlstate, wait_for};

const SUPERUSERS: &str = "nly superusers";

/// A role `eve` with everything that can be granted, also without row-level security, and something of every kind of its own.
fn prepare(vault: &Vault<'_>) -> Client {
    let mut root = vault.root();
    root.ask(
        "CREATE ROLE eve LOGIN BYPASSRLS; GRANT CREATE ON DATABASE postgres TO eve; CREATE SCHEMA mine AUTHORIZATION eve; CREATE SCHEMA other AUTHORIZATION eve; GRANT ALL ON SCHEMA vault TO eve;
         GRANT ALL ON ALL TABLES IN SCHEMA vault TO eve; GRANT vault_reader, vault_admin TO eve",
    );
    let mut eve = vault.session("eve");
    eve.ask(
        "CREATE FUNCTION mine.fire() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
         CREATE TABLE mine.own (id uuid PRIMARY KEY, name text); CREATE VIEW mine.view AS SELECT * FROM mine.own;
         CREATE FUNCTION mine.create_secret(varchar, varchar) RETURNS int LANGUAGE sql AS 'SELECT 1';
         CREATE TYPE mine.t AS ENUM ('a'); CREATE DOMAIN mine.d AS int; CREATE SEQUENCE mine.s;
         CREATE OPERATOR mine.=== (LEFTARG = varchar, RIGHTARG = varchar, FUNCTION = mine.create_secret);
         CREATE COLLATION mine.c FROM \"C\"; CREATE AGGREGATE mine.a(int) (SFUNC = int4pl, STYPE = int);
         CREATE TEXT SEARCH CONFIGURATION mine.ts (COPY = pg_catalog.simple); CREATE CONVERSION mine.v FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8;
         CREATE STATISTICS mine.st ON id, name FROM mine.own",
    );
    eve
}

#[track_caller]
fn refused(client: &mut Client, sql: &str) {
    sqlstate!(client.try_ask(sql), "42501", message: "permission denied", hint: SUPERUSERS);
    if sql.starts_with("BEGIN") {
        client.ask("ROLLBACK");
    }
}

/// Each of the extension's triggers: its table, name, and what it is.
const TRIGGERS: &str = "SELECT c.relname, tgname, concat_ws(' ', tgfoid::regproc, tgenabled, tgtype) FROM pg_trigger JOIN pg_class c ON c.oid = tgrelid
    WHERE relnamespace = 'vault'::regnamespace ORDER BY 1, 2";

#[test]
fn guards_stay_and_nothing_is_tied_to_the_tables() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut eve = prepare(&vault);
    let mut root = vault.root();
    root.ask("SELECT vault.create_secret('kept', 'value')");
    let triggers = root.ask(TRIGGERS);
    assert!(triggers.lines().count() >= 20, "{triggers}");
    for line in triggers.lines() {
        let [table, name, _] = line.split('|').collect::<Vec<_>>()[..] else { panic!("{line}") };
        for kind in ["BEFORE TRUNCATE", "AFTER UPDATE", "BEFORE INSERT OR DELETE"] {
            refused(
                &mut eve,
                &format!(
                    "CREATE OR REPLACE TRIGGER {name} {kind} ON vault.{table} EXECUTE FUNCTION mine.fire()"
                ),
            );
        }
    }
    let relations = root.ask(
        "SELECT relname, relkind FROM pg_class WHERE relnamespace = 'vault'::regnamespace AND relkind IN ('r', 'v', 'f') ORDER BY 1",
    );
    for line in relations.lines() {
        let (name, kind) = line.split_once('|').expect("name and kind");
        let trigger = |timing: &str| {
            format!(
                "CREATE TRIGGER t {timing} INSERT ON vault.{name} FOR EACH ROW EXECUTE FUNCTION mine.fire()"
            )
        };
        refused(&mut eve, &trigger(if kind == "v" { "INSTEAD OF" } else { "BEFORE" }));
        refused(&mut eve, &format!("DO $$ BEGIN EXECUTE '{}'; END $$", trigger("BEFORE")));
        if kind == "r" {
            refused(&mut eve, &format!("TRUNCATE vault.{name}"));
            refused(&mut eve, &format!("TRUNCATE mine.own, vault.{name} CASCADE"));
        }
    }
    assert_eq!(root.ask(TRIGGERS), triggers);
    // A superuser's statement runs no code of theirs, and the guard is one.
    root.ask("UPDATE vault.secrets SET description = 'by hand' WHERE name = 'kept'");
    assert_eq!(root.ask("SELECT description FROM vault.secrets"), "by hand");

    // Rows are not held by keys of theirs, however they are made.
    for sql in [
        "CREATE TABLE mine.tied (id uuid REFERENCES vault.secrets)",
        "CREATE TABLE mine.tied (id uuid, FOREIGN KEY (id) REFERENCES vault.secrets (id) ON DELETE CASCADE)",
        "ALTER TABLE mine.own ADD FOREIGN KEY (id) REFERENCES vault.roles NOT VALID",
        "CREATE TABLE mine.whole (id uuid REFERENCES vault.tokens) PARTITION BY LIST (id)",
    ] {
        refused(&mut eve, sql);
    }
    assert_eq!(
        root.ask("SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND confrelid::regclass::text LIKE 'vault.%' AND connamespace = 'mine'::regnamespace"),
        "0"
    );
    lend(&mut eve, &mut root, "ALTER TABLE mine.own ADD FOREIGN KEY (id) REFERENCES vault.secrets");

    // A vault table that a superuser has put below a table of theirs: the command does not name it.
    root.ask(
        "CREATE TABLE mine.parent (name text COLLATE \"C\"); ALTER TABLE mine.parent OWNER TO eve; ALTER TABLE vault.roles INHERIT mine.parent",
    );
    for sql in [
        "TRUNCATE mine.parent",
        "BEGIN; LOCK mine.parent IN SHARE MODE",
        "CREATE OR REPLACE TRIGGER t AFTER TRUNCATE ON vault.roles EXECUTE FUNCTION mine.fire()",
    ] {
        refused(&mut eve, sql);
    }
    root.ask(
        "ALTER TABLE vault.roles NO INHERIT mine.parent; CREATE TABLE mine.whole (LIKE vault.roles) PARTITION BY RANGE (id);
         ALTER TABLE mine.whole ATTACH PARTITION vault.roles DEFAULT; ALTER TABLE mine.whole OWNER TO eve; ALTER TABLE vault.roles OWNER TO postgres",
    );
    for sql in [
        "CREATE TRIGGER t AFTER INSERT ON mine.whole FOR EACH ROW EXECUTE FUNCTION mine.fire()",
        "TRUNCATE mine.whole",
        "BEGIN; LOCK mine.whole IN SHARE MODE",
    ] {
        refused(&mut eve, sql);
    }
    root.ask("ALTER TABLE mine.whole DETACH PARTITION vault.roles");
}

#[test]
fn nothing_is_planted_beside_the_functions() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut eve = prepare(&vault);
    let mut root = vault.root();
    let members = "SELECT count(*) FROM pg_depend WHERE refclassid = 'pg_namespace'::regclass AND refobjid = 'vault'::regnamespace";
    let before = root.ask(members);
    let made = [
        "FUNCTION vault.create_secret(varchar, text) RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "OR REPLACE FUNCTION vault.read_secret(varchar) RETURNS text LANGUAGE sql AS 'SELECT $1::text'",
        "PROCEDURE vault.x() LANGUAGE sql AS 'SELECT 1'",
        "AGGREGATE vault.x(int) (SFUNC = int4pl, STYPE = int)",
        "TABLE vault.x (a int)",
        "TABLE vault.x AS SELECT 1 AS a",
        "VIEW vault.x AS SELECT 1 AS a",
        "MATERIALIZED VIEW vault.x AS SELECT 1 AS a",
        "SEQUENCE vault.x",
        "TYPE vault.x AS ENUM ('a')",
        "TYPE vault.x AS (a int)",
        "TYPE vault.x AS RANGE (SUBTYPE = int)",
        "DOMAIN vault.text AS pg_catalog.text",
        "OPERATOR vault.==== (LEFTARG = varchar, RIGHTARG = varchar, FUNCTION = mine.create_secret)",
        "COLLATION vault.x FROM \"C\"",
        "CONVERSION vault.x FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8",
        "TEXT SEARCH CONFIGURATION vault.x (COPY = pg_catalog.simple)",
        "TEXT SEARCH DICTIONARY vault.x (TEMPLATE = pg_catalog.simple)",
        "STATISTICS vault.x ON id, name FROM mine.own",
        "EXTENSION citext SCHEMA vault",
    ];
    for what in made {
        refused(&mut eve, &format!("CREATE {what}"));
        // On their own ground it works.
        eve.ask(&format!(
            "BEGIN; CREATE {}; ROLLBACK",
            what.replace("vault.", "mine.").replace("SCHEMA vault", "SCHEMA mine")
        ));
    }
    let moved = [
        "FUNCTION mine.create_secret(varchar, varchar)",
        "TABLE mine.own",
        "VIEW mine.view",
        "TYPE mine.t",
        "DOMAIN mine.d",
        "SEQUENCE mine.s",
        "OPERATOR mine.=== (varchar, varchar)",
        "COLLATION mine.c",
        "AGGREGATE mine.a(int)",
        "CONVERSION mine.v",
        "TEXT SEARCH CONFIGURATION mine.ts",
        "STATISTICS mine.st",
    ];
    for what in moved {
        refused(&mut eve, &format!("ALTER {what} SET SCHEMA vault"));
        eve.ask(&format!("BEGIN; ALTER {what} SET SCHEMA other; ROLLBACK"));
    }
    assert_eq!(root.ask(members), before);
    // What a superuser made for them is not renamed into the way of a call.
    root.ask("CREATE FUNCTION vault.harmless(varchar) RETURNS text LANGUAGE sql AS 'SELECT ''stolen'''; ALTER FUNCTION vault.harmless OWNER TO eve");
    refused(&mut eve, "ALTER FUNCTION vault.harmless(varchar) RENAME TO read_secret");
    refused(
        &mut eve,
        "CREATE OR REPLACE FUNCTION vault.harmless(varchar) RETURNS text LANGUAGE sql AS 'SELECT 1::text'",
    );
    eve.ask("DROP FUNCTION vault.harmless(varchar)");

    // A database without the vault is none of our business.
    root.ask("CREATE DATABASE plain OWNER eve");
    let mut elsewhere = cluster.connect("eve", "plain");
    for sql in [
        "CREATE SCHEMA vault; CREATE TABLE vault.secrets (id int PRIMARY KEY); CREATE TABLE tied (id int REFERENCES vault.secrets)",
        "CREATE FUNCTION vault.fire() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "CREATE TRIGGER t BEFORE INSERT ON vault.secrets EXECUTE FUNCTION vault.fire()",
        "TRUNCATE vault.secrets CASCADE",
        "BEGIN; LOCK vault.secrets; COMMIT",
        "REINDEX SCHEMA vault",
        "CLUSTER vault.secrets USING secrets_pkey",
        "VACUUM FULL vault.secrets",
    ] {
        elsewhere.ask(sql);
    }
}

/// Commands that would make everybody wait are refused before they wait themselves, while a writer is at work.
#[test]
fn nobody_waits_for_a_lock_of_theirs() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut eve = prepare(&vault);
    let mut root = vault.root();
    root.ask("GRANT USAGE ON SCHEMA vault TO eve; SELECT vault.create_secret('busy', 'v')");
    eve.ask(
        "CREATE VIEW mine.over AS SELECT count(*) FROM (SELECT name FROM vault.secrets) s; CREATE VIEW mine.above AS SELECT (SELECT count FROM mine.over)
         FROM mine.own; CREATE TABLE mine.whole (LIKE mine.own) PARTITION BY LIST (id); SET lock_timeout = '1ms'",
    );
    // As deep as one likes, and with so many ways that whoever walked them all would never end.
    eve.ask(
        "DO $$ BEGIN
           CREATE VIEW mine.v0 AS SELECT FROM vault.secrets; CREATE VIEW mine.w0 AS SELECT FROM mine.own;
           FOR i IN 1..70 LOOP
             EXECUTE format('CREATE VIEW mine.v%s AS SELECT FROM mine.v%s', i, i - 1);
             EXECUTE format('CREATE VIEW mine.w%s AS SELECT FROM mine.w%s a, mine.w%s b', i, i - 1, greatest(i - 2, 0));
           END LOOP; END $$",
    );
    let mut writer = vault.ops();
    writer.ask("BEGIN; SELECT vault.put_secret('busy', 'w')");
    for mode in [
        "ROW SHARE",
        "ROW EXCLUSIVE",
        "SHARE UPDATE EXCLUSIVE",
        "SHARE",
        "SHARE ROW EXCLUSIVE",
        "EXCLUSIVE",
        "ACCESS EXCLUSIVE",
    ] {
        for what in [
            "vault.secrets",
            "mine.v70",
            "ONLY vault.secrets",
            "mine.own, vault.tokens",
            "vault.decrypted_secrets",
            "mine.over",
            "mine.above",
        ] {
            refused(&mut eve, &format!("BEGIN; LOCK TABLE {what} IN {mode} MODE"));
            refused(&mut eve, &format!("BEGIN; LOCK TABLE {what} IN {mode} MODE NOWAIT"));
        }
        eve.ask(&format!("BEGIN; LOCK TABLE mine.own, mine.view IN {mode} MODE; ROLLBACK"));
    }
    eve.ask("SET statement_timeout = '20s'");
    sqlstate!(eve.try_ask("CLUSTER mine.w70 USING x"), "42809");
    eve.ask("RESET statement_timeout");
    // What a dump takes stops nobody.
    eve.ask("BEGIN; LOCK TABLE vault.secrets IN ACCESS SHARE MODE; ROLLBACK");
    for command in [
        "VACUUM FULL vault.secrets",
        "VACUUM (FULL, ANALYZE) mine.own, vault.secrets",
        "VACUUM (FULL true) vault.audit_log",
        "CLUSTER vault.secrets USING secrets_pkey",
        "CLUSTER vault.secrets",
        "REINDEX TABLE vault.secrets",
        "REINDEX TABLE CONCURRENTLY vault.secrets",
        "REINDEX INDEX vault.secrets_pkey",
        "REINDEX SCHEMA vault",
        "VACUUM (FULL off, FULL on) vault.secrets",
        // The server locks for these before it asks who owns the table.
        "CREATE RULE r AS ON INSERT TO vault.secrets DO NOTHING",
        "ALTER MATERIALIZED VIEW vault.secrets DEPENDS ON EXTENSION plpgsql",
        "ALTER TABLE mine.whole ATTACH PARTITION vault.secrets DEFAULT",
        "CREATE TABLE mine.part PARTITION OF vault.secrets DEFAULT",
        "CREATE TABLE mine.heir () INHERITS (vault.secrets)",
        "CREATE TABLE mine.tied (id uuid REFERENCES vault.secrets)",
        "CREATE TABLE mine.tied (id uuid, FOREIGN KEY (id) REFERENCES vault.secrets (id))",
        "ALTER TABLE mine.own ADD FOREIGN KEY (id) REFERENCES vault.secrets",
        "ALTER TABLE mine.own ADD COLUMN other uuid REFERENCES vault.secrets",
        "CREATE SCHEMA AUTHORIZATION eve CREATE TABLE tied (id uuid REFERENCES vault.secrets)",
        "CREATE CONSTRAINT TRIGGER t AFTER INSERT ON mine.own FROM vault.secrets FOR EACH ROW EXECUTE FUNCTION mine.fire()",
        "DO 'BEGIN EXECUTE ''CREATE RULE r AS ON INSERT TO vault.secrets DO NOTHING''; END'",
        "VACUUM FULL",
        "VACUUM (FULL, ANALYZE)",
        "CLUSTER",
        "REINDEX DATABASE postgres",
        "REINDEX SYSTEM postgres",
        "TRUNCATE vault.secrets",
        "CREATE TRIGGER t AFTER INSERT ON vault.secrets EXECUTE FUNCTION mine.fire()",
    ] {
        refused(&mut eve, command);
    }
    // Autovacuum may be at work.
    eve.ask("SET lock_timeout = '20s'");
    for command in [
        "VACUUM FULL mine.own",
        "CLUSTER mine.own USING own_pkey",
        "REINDEX TABLE mine.own",
        "REINDEX INDEX mine.own_pkey",
        "REINDEX SCHEMA mine",
        "TRUNCATE mine.own",
    ] {
        eve.ask(command);
    }
    eve.ask("VACUUM");
    eve.ask("ANALYZE");
    sqlstate!(eve.try_ask("BEGIN; LOCK TABLE nothing.there"), "3F000");
    eve.ask("ROLLBACK");
    // Those stop nobody; before 17 the server skips them with a warning.
    eve.ask("VACUUM vault.secrets");
    eve.ask("ANALYZE vault.secrets");
    writer.ask("COMMIT");
    root.ask("VACUUM FULL vault.secrets");
    root.ask("REINDEX SCHEMA vault");
    root.ask("BEGIN; LOCK TABLE vault.secrets; ROLLBACK");
    assert_eq!(text(&mut vault.app(), "SELECT vault.read_secret('busy')"), "w");
}

/// A command that waits looks its names up again afterwards: by then they may mean a table of the vault.
#[test]
fn a_name_means_what_it_meant_when_it_was_judged() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut eve = prepare(&vault);
    let mut root = vault.root();
    let rewritten = "SELECT string_agg(relfilenode::text, ' ' ORDER BY oid) FROM pg_class WHERE relnamespace = 'vault'::regnamespace";
    for (command, code) in [
        ("BEGIN; LOCK TABLE secrets", "42P01"),
        ("CLUSTER secrets USING secrets_pkey", "42P01"),
        ("VACUUM FULL secrets", "42P01"),
        ("REINDEX TABLE secrets", "42P01"),
        ("TRUNCATE secrets", "42P01"),
        ("BEGIN; LOCK TABLE mine.first, mine.window", "42501"),
    ] {
        root.ask(
            "CREATE TABLE mine.secrets (id uuid PRIMARY KEY); CREATE TABLE mine.first (); CREATE VIEW mine.window AS SELECT id FROM mine.secrets;
             ALTER TABLE mine.secrets OWNER TO eve; ALTER TABLE mine.first OWNER TO eve; ALTER VIEW mine.window OWNER TO eve",
        );
        let before = root.ask(rewritten);
        eve.ask("BEGIN; LOCK TABLE mine.secrets, mine.first");
        let mut other = vault.session("eve");
        other.ask("SET search_path = mine, vault");
        let pid = hyperion_vault_tests::backend_pid(&mut other);
        let waiting = background(move || {
            let code = super::state(&mut other, command);
            (other, code)
        });
        wait_for("the command to wait", PATIENCE, || {
            root.ask(&format!("SELECT cardinality(pg_blocking_pids({pid})) > 0")) == "t"
        });
        eve.ask("CREATE OR REPLACE VIEW mine.window AS SELECT id FROM vault.secrets; ALTER TABLE mine.secrets RENAME TO away; COMMIT");
        let (other, found) = waiting.finish(PATIENCE);
        assert_eq!(found, code, "{command}");
        assert_eq!(root.ask(rewritten), before, "{command}");
        let locks = "SELECT count(*) FROM pg_locks WHERE relation = 'vault.secrets'::regclass AND mode = 'AccessExclusiveLock'";
        assert_eq!(root.ask(locks), "0", "{command}");
        drop(other);
        wait_for("the session to end", PATIENCE, || {
            root.ask(&format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}")) == "0"
        });
        root.ask("DROP VIEW mine.window; DROP TABLE mine.away, mine.first");
    }
}

/// What becomes the extension's is protected in sessions that have used it before.
#[test]
fn a_table_that_joins_the_extension_is_protected_at_once() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut eve = prepare(&vault);
    let mut root = vault.root();
    root.ask("ALTER EXTENSION hyperion_vault DROP TABLE vault.tokens; ALTER ROLE eve NOBYPASSRLS");
    assert_eq!(eve.ask("SELECT count(*) FROM vault.tokens"), "0");
    root.ask("ALTER EXTENSION hyperion_vault ADD TABLE vault.tokens");
    sqlstate!(eve.try_ask("SELECT count(*) FROM vault.tokens"), "42501", message: "permission denied for table tokens");
}
