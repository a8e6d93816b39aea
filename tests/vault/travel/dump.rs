//! pg_dump and pg_restore: what is in a dump, who can make one, and into what it restores. Runs in the test process.

use super::{ROLES, elsewhere, fill, goes_on, learn, reader};
use hyperion_vault_tests::scan::{Scan, assert_none};
use hyperion_vault_tests::{Ask, Client, Cluster, StopMode, Vault, random_bytes, sqlstate};

#[test]
fn dump_and_restore() {
    let cluster = Cluster::builder().allowed_ips("local,127.0.0.1").start();
    let vault = cluster.vault();
    let planted = Scan::plant(&cluster);
    let values = fill(&mut vault.ops());
    let token = with_access(&mut vault.root());
    let known = learn(&mut reader(&cluster));
    assert_none(&planted.look_for(values.iter().map(|(name, value)| (*name, value))).dump(&cluster));

    // Plain SQL through psql; roles come with CREATE EXTENSION, members are the operator's to make.
    let plain = cluster.pg_dump(&[]);
    let text = String::from_utf8_lossy(&plain);
    for table in
        ["secrets", "secret_versions", "vault_meta", "roles", "role_permissions", "role_bindings", "tokens"]
    {
        assert!(text.contains(&format!("COPY vault.{table} ")), "{table} is not in the dump");
    }
    assert!(!text.contains("CREATE TABLE vault."), "the tables are the extension's to make");
    let restored = elsewhere(&cluster);
    restored
        .run_tool("psql", &["-X", "-q", "-v", "ON_ERROR_STOP=1", "--single-transaction"], &plain)
        .success();
    restored.superuser().ask(ROLES);
    goes_on(&restored, &known);
    access_goes_on(&restored, &token);

    // Its ciphertexts are bound to its key.
    restored.stop(StopMode::Fast);
    restored.write_key_file(&random_bytes::<32>(), 0o600);
    restored.start_again();
    let read = reader(&restored).try_ask("SELECT vault.read_secret('new')");
    sqlstate!(read, "38000", message: "another master key", hint: "Restore the key file");
    drop(restored);

    // Custom format with the roles first, members included, as pg_dumpall leaves them; in parallel, tables in any order.
    let globals = cluster.run_tool("pg_dumpall", &["--roles-only"], b"").success().stdout;
    let file = cluster.dir().join("vault.dump");
    let file = file.to_str().expect("a path under /tmp that we named");
    cluster.run_tool("pg_dump", &["-Fc", "-f", file], b"").success();
    let restored = elsewhere(&cluster);
    // "role postgres already exists" is the one error expected of it.
    let said = restored.run_tool("psql", &["-X", "-q"], &globals).errors();
    assert!(
        said.lines()
            .filter(|line| line.contains("ERROR"))
            .all(|line| line.contains("\"postgres\" already exists")),
        "{said}"
    );
    restored.run_tool("pg_restore", &["-d", "postgres", "-j", "2", "--exit-on-error", file], b"").success();
    goes_on(&restored, &known);

    // Again over what is there: dropped first, then as in the dump.
    let args = ["-d", "postgres", "--clean", "--if-exists", "--exit-on-error", file];
    restored.run_tool("pg_restore", &args, b"").success();
    goes_on(&restored, &known);

    weak_dumps(&vault, &known);
}

/// A role bound to a Postgres role, and a token of it, which is returned.
pub fn with_access(root: &mut Client) -> String {
    root.ask(
        r#"CREATE ROLE bound LOGIN IN ROLE vault_user;
           SELECT vault.create_role('lister', permissions => '[{"action":"list","path":"db/*"}]');
           SELECT vault.bind_role('lister', 'bound')"#,
    );
    root.ask("SELECT vault.create_token('lister', 'lister')")
}

/// Tokens go on; bindings to Postgres roles that have another OID here wait for a superuser to say that they are the same.
fn access_goes_on(restored: &Cluster, token: &str) {
    let mut root = restored.superuser();
    root.ask(
        "CREATE ROLE bound LOGIN IN ROLE vault_user; UPDATE vault.role_bindings SET pg_role_oid = 10 WHERE pg_role_oid = 'bound'::regrole",
    );
    let mut bound = restored.connect("bound", restored.database());
    let list = "SELECT name FROM vault.list_secrets()";
    sqlstate!(bound.try_ask(list), "42501");
    assert_eq!(
        bound.ask(&format!("SELECT vault.authenticate('{token}'); {list}")).trim(),
        "db/password",
        "the token is the same"
    );
    assert_eq!(root.ask("SELECT * FROM vault.rebind_roles()"), "lister|bound|rebound");
    assert_eq!(bound.ask(list), "db/password");
    assert_eq!(
        root.ask(r#"SELECT permissions, pg_roles FROM vault.list_roles() WHERE name = 'lister'"#),
        r#"[{"path": "db/*", "action": "list"}]|{bound}"#
    );
    root.ask("SELECT vault.create_role('new'); SELECT vault.create_token('new', 'new')");
}

/// A role that may not bypass row-level security gets nothing out, whatever it was granted.
fn weak_dumps(vault: &Vault<'_>, known: &str) {
    let cluster = vault.cluster;
    cluster.superuser().ask("CREATE ROLE backup LOGIN; CREATE ROLE snoop LOGIN BYPASSRLS; GRANT USAGE ON SCHEMA vault TO backup, snoop");
    let dump = |args: &[&str]| cluster.run_tool("pg_dump", args, b"");
    let outcome = dump(&["-U", "backup", "-n", "vault", "-e", "hyperion_vault"]);
    assert!(
        !outcome.status.success() && outcome.errors().contains("permission denied"),
        "{}",
        outcome.errors()
    );
    cluster.superuser().ask("GRANT pg_read_all_data TO backup");
    for args in [&["-U", "backup"][..], &["-U", "backup", "--enable-row-security"]] {
        let outcome = dump(args);
        let refused = outcome.errors().contains("permission denied for table");
        assert!(!outcome.status.success() && refused, "{}", outcome.errors());
        assert!(!outcome.text().contains("db/password"), "rows left the vault");
    }
    // BYPASSRLS without the right to the tables is not enough either; with both it is a backup role.
    let outcome = dump(&["-U", "snoop"]);
    assert!(
        !outcome.status.success() && outcome.errors().contains("permission denied"),
        "{}",
        outcome.errors()
    );
    cluster.superuser().ask("GRANT pg_read_all_data TO snoop");
    let whole = dump(&["-U", "snoop"]).success().stdout;
    assert!(String::from_utf8_lossy(&whole).contains("db/password"));

    // Such a role makes dumps and does not restore them: the extension is a superuser's to create.
    let restored = elsewhere(cluster);
    let mut root = restored.superuser();
    root.ask("CREATE ROLE backup; CREATE ROLE snoop LOGIN BYPASSRLS CREATEROLE CREATEDB IN ROLE pg_read_all_data, pg_write_all_data;
              GRANT ALL ON DATABASE postgres TO snoop");
    let said = restored.run_tool("psql", &["-X", "-q", "-U", "snoop"], &whole).errors();
    assert!(said.contains("permission denied to create extension"), "{said}");
    // The schema that he made is his, and so none that a vault moves into.
    sqlstate!(root.try_ask("CREATE EXTENSION hyperion_vault"), "55000", detail: "role snoop", hint: "Drop or rename");
    root.ask("DROP SCHEMA vault");
    let args = ["-X", "-q", "-v", "ON_ERROR_STOP=1", "--single-transaction"];
    restored.run_tool("psql", &args, &whole).success();
    root.ask(ROLES);
    goes_on(&restored, known);
}

/// A dump of one schema restores as it is if it names the extension too; without it, it is the rows alone.
#[test]
fn a_single_schema() {
    let cluster = Cluster::builder().allowed_ips("local,127.0.0.1").start();
    fill(&mut cluster.vault().ops());
    cluster.superuser().ask("CREATE TABLE public.elsewhere (a int)");
    let known = learn(&mut reader(&cluster));
    let file = |name: &str| cluster.dir().join(name).to_str().expect("a path we named").to_owned();
    let dump = |name: &str, args: &[&str]| {
        cluster.run_tool("pg_dump", &[&["-Fc", "-f", &file(name)], args].concat(), b"").success();
    };
    dump("whole", &[]);
    dump("both", &["-n", "vault", "-e", "hyperion_vault"]);
    dump("rows", &["-n", "vault"]);

    let restored = elsewhere(&cluster);
    let restore = |args: &[&str], from: &str| {
        let all = [&["-d", restored.database(), "--exit-on-error", "--single-transaction"], args].concat();
        restored.run_tool("pg_restore", &[&all[..], &[&file(from)]].concat(), b"")
    };
    let mut root = restored.superuser();
    let reset = "DROP EXTENSION hyperion_vault; DROP SCHEMA vault; DROP ROLE IF EXISTS app, ops";
    // Schema and extension: everything, and nothing else.
    restore(&[], "both").success();
    root.ask(ROLES);
    assert_eq!(root.ask("SELECT to_regclass('public.elsewhere')"), "∅");
    goes_on(&restored, &known);

    // Without the extension a dump has the rows all the same (they must not be missing without a word), and so has what
    // pg_restore picks out of a whole dump by schema. Where there is no vault they are refused.
    for (args, from) in [(&[][..], "rows"), (&["-n", "vault"][..], "whole")] {
        root.ask(reset);
        let outcome = restore(args, from);
        assert!(
            !outcome.status.success() && outcome.errors().contains("does not exist"),
            "{}",
            outcome.errors()
        );
        // Into one without rows they go.
        root.ask("CREATE EXTENSION hyperion_vault");
        let args = [&["--data-only"], args].concat();
        restore(&args, from).success();
        root.ask(ROLES);
        goes_on(&restored, &known);
        // Into one with rows they do not, and leave it as it was.
        let outcome = restore(&args, from);
        assert!(
            !outcome.status.success() && outcome.errors().contains("duplicate key"),
            "{}",
            outcome.errors()
        );
        assert_eq!(reader(&restored).ask("SELECT vault.read_secret('db/password')"), "four");
    }
}

/// The rows of one table without the others: told at the first use, and nothing is taken for what it is not.
#[test]
fn part_of_a_vault() {
    let cluster = Cluster::builder().allowed_ips("local,127.0.0.1").start();
    fill(&mut cluster.vault().ops());
    let restored = elsewhere(&cluster);
    let mut root = restored.superuser();
    root.ask("CREATE EXTENSION hyperion_vault");
    root.ask(ROLES);
    let dump = cluster.pg_dump(&["--data-only", "-t", "vault.secrets"]);
    restored.run_tool("psql", &["-X", "-q", "-v", "ON_ERROR_STOP=1"], &dump).success();
    let mut ops = restored.connect("ops", restored.database());
    for call in ["read_secret('db/password')", "verify('login', 'v')"] {
        let refused = reader(&restored).try_ask(&format!("SELECT vault.{call}"));
        sqlstate!(refused, "XX001", detail: "vault.vault_meta", hint: "Restore vault.vault_meta");
    }
    sqlstate!(ops.try_ask("SELECT vault.create_secret('new', 'v')"), "XX001", hint: "Restore vault.vault_meta");
    let dump = cluster.pg_dump(&["--data-only", "-t", "vault.vault_meta", "-t", "vault.secret_versions"]);
    restored.run_tool("psql", &["-X", "-q", "-v", "ON_ERROR_STOP=1"], &dump).success();
    goes_on(&restored, &learn(&mut reader(&cluster)));
}
