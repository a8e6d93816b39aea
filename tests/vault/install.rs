//! Where the vault can be installed and where not, its roles, its settings, and its end. Runs in the test process.
//!
//! What is refused must be refused whole: no roles, no schema left behind, and a hint that names the way out.

mod settings;

use hyperion_vault_tests::{Ask, Client, Cluster, NoTls, StopMode, expect_error, sqlstate};
use std::sync::{Arc, Mutex};

const CREATE: &str = "CREATE EXTENSION hyperion_vault";

/// Roles and schemas of the vault that exist.
fn remains(client: &mut Client) -> String {
    client.ask("SELECT rolname FROM pg_roles WHERE rolname LIKE 'vault%' UNION ALL SELECT nspname FROM pg_namespace WHERE nspname LIKE 'vault%' ORDER BY 1")
}

/// One call of every function that applications use.
const CALLS: [&str; 11] = [
    "create_secret('a', 'v')",
    "put_secret('a', 'v')",
    "update_secret('a', 'v')",
    "rotate_secret('a')",
    "delete_secret('a')",
    "read_secret('a')",
    "get_secret('a')",
    "verify('a', 'v')",
    "list_secrets()",
    "list_versions('a')",
    "status()",
];

#[test]
fn another_database() {
    let cluster = Cluster::builder().start();
    let mut root = cluster.superuser();
    root.ask("CREATE DATABASE other");
    let mut other = cluster.connect("postgres", "other");
    let refused = sqlstate!(other.try_ask(CREATE), "55000",
        message: "the vault does not live in this database", detail: "database \"other\"", hint: "hyperion_vault.database");
    assert!(refused.detail().unwrap_or_default().contains("\"postgres\""));
    assert_eq!(remains(&mut other), "", "a refused installation leaves nothing");

    // A copy of the vault's database has its functions and its rows, and none of its secrets.
    cluster.vault();
    root.ask("SELECT vault.create_secret('a', 'v')");
    drop((root, other));
    cluster.connect("postgres", "template1").ask("CREATE DATABASE copy TEMPLATE postgres");
    let mut copy = cluster.connect("postgres", "copy");
    assert_eq!(copy.ask("SELECT count(*) FROM vault.secrets"), "1", "the copy is one");
    for call in CALLS {
        sqlstate!(copy.try_ask(&format!("SELECT vault.{call}")), "55000", detail: "database \"copy\"", hint: "hyperion_vault.database");
    }
    assert_eq!(copy.ask("SELECT count(*) FROM vault.secrets"), "1");
    // It can be taken out of the copy, which concerns the vault in no way.
    copy.ask("DROP EXTENSION hyperion_vault");
    sqlstate!(copy.try_ask(CREATE), "55000", hint: "hyperion_vault.database");
    assert_eq!(cluster.superuser().ask("SELECT vault.read_secret('a')"), "v");

    // The setting follows the database, with a restart; then the former one is the wrong one.
    drop(copy);
    cluster.stage_conf("hyperion_vault.database", "other");
    cluster.restart(StopMode::Fast);
    let mut former = cluster.superuser();
    for call in CALLS {
        sqlstate!(former.try_ask(&format!("SELECT vault.{call}")), "55000", detail: "hyperion_vault.database is \"other\"");
    }
    let mut other = cluster.connect("postgres", "other");
    other.ask(CREATE);
    other.ask("SELECT vault.create_secret('b', 'w')");
    assert_eq!(other.ask("SELECT vault.read_secret('b'), vault.status() ->> 'secrets'"), "w|1");
}

#[test]
fn another_encoding() {
    let cluster = Cluster::builder().conf("hyperion_vault.database", "latin").start();
    let mut root = cluster.superuser();
    root.ask("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0");
    root.ask("CREATE DATABASE ascii ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0");
    for database in ["latin", "ascii"] {
        cluster.stage_conf("hyperion_vault.database", database);
        cluster.restart(StopMode::Fast);
        let mut session = cluster.connect("postgres", database);
        sqlstate!(session.try_ask(CREATE), "55000", message: "encoding UTF8", hint: "ENCODING 'UTF8' TEMPLATE template0");
        assert_eq!(remains(&mut session), "");
    }
}

#[test]
fn not_preloaded() {
    let cluster = Cluster::builder().preload(false).start();
    let mut root = cluster.superuser();
    let load = |client: &mut Client| client.try_ask("LOAD 'hyperion_vault'");
    for _ in 0..2 {
        sqlstate!(root.try_ask(CREATE), "55000", message: "hyperion_vault is not preloaded", hint: "shared_preload_libraries");
        sqlstate!(load(&mut root), "55000", message: "not preloaded", hint: "restart the server");
    }
    assert_eq!(remains(&mut root), "");
    assert_eq!(root.ask("SELECT count(*) FROM pg_settings WHERE name LIKE 'hyperion%'"), "0");
    // Preloaded into one session is not preloaded.
    root.ask("CREATE ROLE eager LOGIN; ALTER ROLE eager SET session_preload_libraries = 'hyperion_vault'");
    let Err(error) = cluster.try_connect("eager", "postgres") else { panic!("a session loaded the library") };
    let error = expect_error::<()>(Err(error), "55000");
    assert!(error.hint().is_some_and(|hint| hint.contains("shared_preload_libraries")));
    assert_eq!(root.ask("SELECT 1"), "1");
    drop((root, cluster));

    // Taken out of the configuration later: every call says so; put back, all is there.
    let cluster = Cluster::builder().start();
    let mut s = cluster.vault().root();
    s.ask("SELECT vault.create_secret('a', 'v')");
    // Not by ALTER SYSTEM, which writes an empty list as a list of one empty name.
    let path = cluster.data_dir().join("postgresql.conf");
    let conf = std::fs::read_to_string(&path).expect("cannot read the file");
    cluster.append_conf("shared_preload_libraries", "");
    cluster.restart(StopMode::Fast);
    let mut s = cluster.superuser();
    assert_eq!(s.ask("SHOW shared_preload_libraries"), "");
    for call in CALLS {
        sqlstate!(s.try_ask(&format!("SELECT vault.{call}")), "55000", message: "not preloaded", hint: "shared_preload_libraries");
    }
    std::fs::write(&path, conf).expect("cannot write the file");
    cluster.restart(StopMode::Fast);
    assert_eq!(cluster.superuser().ask("SELECT vault.read_secret('a')"), "v");
}

/// A superuser's session, and the notices it got.
fn listening(cluster: &Cluster) -> (Client, Arc<Mutex<Vec<String>>>) {
    let notices = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&notices);
    let mut config = cluster.config("postgres", "postgres");
    config.notice_callback(move |notice| {
        log.lock().unwrap().push(format!("{}: {}", notice.severity(), notice.message()));
    });
    (config.connect(NoTls).expect("cannot connect"), notices)
}

#[test]
fn roles_are_adopted_when_harmless() {
    let cluster = Cluster::builder().start();
    let (mut root, notices) = listening(&cluster);
    let heard = || std::mem::take(&mut *notices.lock().unwrap());
    // Each attribute alone makes a role of that name unfit, whichever of the five it is.
    let attributes = ["LOGIN", "SUPERUSER", "CREATEROLE", "CREATEDB", "REPLICATION", "BYPASSRLS"];
    for (i, attribute) in attributes.iter().enumerate() {
        let role =
            ["vault_service", "vault_user", "vault_reader", "vault_admin", "vault_auditor", "vault_reader"]
                [i];
        root.ask(&format!("CREATE ROLE {role} {attribute}"));
        let error = sqlstate!(root.try_ask(CREATE), "55000", message: "cannot be adopted", detail: "NOLOGIN NOSUPERUSER", hint: "ALTER ROLE");
        assert!(error.message().contains(role) && error.hint().unwrap_or_default().contains(role));
        assert_eq!(remains(&mut root), role, "only the role that was there before");
        // What the hint says works.
        let fix = error.hint().unwrap_or_default();
        let fix = &fix[fix.find("ALTER ROLE").expect("checked above")..];
        root.ask(fix.trim_end_matches('.'));
        root.ask(&format!("{CREATE}; DROP EXTENSION hyperion_vault; DROP SCHEMA IF EXISTS vault"));
        root.ask("DROP ROLE vault_service, vault_user, vault_reader, vault_admin, vault_auditor");
    }
    heard();

    // With members: adopted and named.
    root.ask(
        "CREATE ROLE bob LOGIN; CREATE ROLE \"Eve, the 2nd\" LOGIN; CREATE ROLE node LOGIN;
         CREATE ROLE vault_service; GRANT vault_service TO node;
         CREATE ROLE vault_reader; GRANT vault_reader TO bob, \"Eve, the 2nd\"; CREATE ROLE vault_auditor",
    );
    heard();
    root.ask(CREATE);
    let notices = [
        "NOTICE: role \"vault_service\" already exists and is adopted with its members: node",
        "NOTICE: role \"vault_reader\" already exists and is adopted with its members: \"Eve, the 2nd\", bob",
    ];
    assert_eq!(heard(), notices, "nothing of roles without members");
    // A service's login has no right on any table, nor on a function.
    let mut node = cluster.connect("node", "postgres");
    for sql in ["SELECT * FROM vault.secrets", "SELECT vault.list_secrets()"] {
        sqlstate!(node.try_ask(sql), "42501", message: "permission denied for schema vault");
    }
    root.ask("SELECT vault.create_secret('a', 'v')");
    assert_eq!(cluster.connect("bob", "postgres").ask("SELECT vault.read_secret('a')"), "v");
}

#[test]
fn a_schema_of_others_is_not_taken_over() {
    let cluster = Cluster::builder().start();
    let mut root = cluster.superuser();
    root.ask("CREATE ROLE mallory LOGIN");
    for (prepare, detail) in [
        ("CREATE SCHEMA vault AUTHORIZATION mallory", "mallory"),
        ("CREATE SCHEMA vault; GRANT CREATE ON SCHEMA vault TO mallory", "may create objects"),
        ("CREATE SCHEMA vault; GRANT CREATE ON SCHEMA vault TO PUBLIC", "may create objects"),
        (
            "CREATE SCHEMA vault; CREATE FUNCTION vault.read_secret(text) RETURNS text LANGUAGE sql AS 'SELECT $1'",
            "holds objects",
        ),
        ("CREATE SCHEMA vault; CREATE TABLE vault.secrets (a int)", "holds objects"),
        ("CREATE SCHEMA vault; CREATE TYPE vault.t AS ENUM ('a')", "holds objects"),
    ] {
        root.ask(prepare);
        sqlstate!(root.try_ask(CREATE), "55000", message: "schema \"vault\" exists and cannot be taken over", detail: detail, hint: "Drop or rename");
        assert_eq!(remains(&mut root), "vault", "only the schema that was there before");
        root.ask("DROP SCHEMA vault CASCADE");
    }
    // One that is nobody's but a superuser's is: pg_restore makes it before the extension.
    root.ask("CREATE SCHEMA vault; GRANT USAGE ON SCHEMA vault TO mallory");
    root.ask(CREATE);
    root.ask("SELECT vault.create_secret('a', 'v')");
}

#[test]
fn dropped_and_created_again() {
    let cluster = Cluster::builder().start();
    // Who is not a superuser cannot install it, not even as the owner of the database.
    let mut root = cluster.superuser();
    root.ask("CREATE ROLE owner LOGIN CREATEROLE CREATEDB; GRANT ALL ON DATABASE postgres TO owner; ALTER DATABASE postgres OWNER TO owner");
    let mut owner = cluster.connect("owner", "postgres");
    sqlstate!(owner.try_ask(CREATE), "42501", message: "permission denied to create extension", hint: "superuser");
    assert_eq!(remains(&mut root), "");
    // Nor elsewhere than in its own schema, nor moved out of it.
    sqlstate!(root.try_ask(&format!("{CREATE} SCHEMA public")), "0A000", message: "must be installed in schema \"vault\"");

    let vault = cluster.vault();
    let (mut app, mut ops) = (vault.app(), vault.ops());
    sqlstate!(root.try_ask("ALTER EXTENSION hyperion_vault SET SCHEMA public"), "0A000", message: "does not support SET SCHEMA");
    let work = |ops: &mut Client, app: &mut Client| {
        ops.ask("SELECT vault.create_secret('a', 'one', grace_period => '1 hour'); SELECT vault.put_secret('a', 'two')");
        ops.ask("SELECT vault.create_secret('b', kind => 'automatic', rotation_interval => '1 day'); SELECT vault.rotate_secret('b')");
        let read = "SELECT vault.read_secret('a', 1), vault.read_secret('a'), vault.verify('a', 'one'), (SELECT count(*) FROM vault.list_secrets()),
                           (SELECT count(*) FROM vault.list_versions('b')), (SELECT kind FROM vault.get_secret('b'))";
        assert_eq!(app.ask(read), "one|two|(t,1)|2|2|automatic");
    };
    work(&mut ops, &mut app);
    let id = "SELECT vault.status() ->> 'vault_id'";
    let first = root.ask(id);

    // Rolled back, nothing has happened.
    root.ask("BEGIN; DROP EXTENSION hyperion_vault; ROLLBACK");
    assert_eq!(app.ask("SELECT vault.read_secret('a')"), "two");

    for _ in 0..2 {
        root.ask("DROP EXTENSION hyperion_vault");
        sqlstate!(app.try_ask("SELECT vault.read_secret('a')"), "42883");
        // The schema is the database's own, as for every extension with a fixed one; it is empty.
        let left = "SELECT (SELECT count(*) FROM pg_class WHERE relnamespace = n.oid) + (SELECT count(*) FROM pg_proc WHERE pronamespace = n.oid)
                         + (SELECT count(*) FROM pg_type WHERE typnamespace = n.oid) + (SELECT count(*) FROM pg_constraint WHERE connamespace = n.oid)
                      FROM pg_namespace n WHERE nspname = 'vault'";
        assert_eq!(root.ask(left), "0");
        let dangling = "SELECT (SELECT count(*) FROM pg_policy) + (SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal)
                             + (SELECT count(*) FROM pg_depend WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
                                 AND refobjid NOT IN (SELECT oid FROM pg_extension))
                             + (SELECT count(*) FROM pg_default_acl) + (SELECT count(*) FROM pg_event_trigger)";
        assert_eq!(root.ask(dangling), "0");
        // Sessions that used the former vault, with plans and caches of their own, use the new one.
        root.ask(CREATE);
        assert_eq!(app.ask("SELECT count(*) FROM vault.list_secrets()"), "0");
        sqlstate!(app.try_ask("SELECT vault.read_secret('a')"), "P0002");
        work(&mut ops, &mut app);
        let now = root.ask(id);
        assert!(now != first && now != "∅", "a new vault has an id of its own");
    }
    // The database can go while workers run: those that are connected to it make room.
    drop((app, ops, owner, root));
    let mut elsewhere = cluster.connect("postgres", "template1");
    elsewhere.ask("DROP DATABASE postgres");
    elsewhere.ask("CREATE DATABASE postgres");
    let mut root = cluster.superuser();
    root.ask(CREATE);
    root.ask("SELECT vault.create_secret('a', 'v')");
    assert_eq!(root.ask("SELECT vault.read_secret('a')"), "v");
}
