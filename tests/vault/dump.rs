//! The vault carried elsewhere: dumped and restored, streamed to a standby, promoted. Runs in the test process.
//!
//! What leaves is sealed bytes, and they open wherever the same master key is: all secrets and versions must read, and
//! writing must go on.

use hyperion_vault_tests::scan::{Scan, assert_none};
use hyperion_vault_tests::{
    Ask, Client, Cluster, KeyFile, StopMode, Vault, random_bytes, random_text, sqlstate,
};

/// A secret of each kind, in each state; values by name.
fn fill(ops: &mut Client) -> Vec<(&'static str, String)> {
    let mut values = Vec::new();
    let mut value = |name| {
        values.push((name, random_text(40)));
        values[values.len() - 1].1.clone()
    };
    let (one, two, three) = (value("one"), value("two"), value("three"));
    let sql = "SELECT vault.create_secret('db/password', $1, grace_period => '1 day', description => 'd', metadata => '{\"a\": 1}')";
    ops.execute(sql, &[&one]).unwrap();
    for next in [&two, &three] {
        ops.execute("SELECT vault.put_secret('db/password', $1)", &[next]).unwrap();
    }
    let password = value("password");
    ops.execute("SELECT vault.create_secret(name => 'login', username => 'ü', password => $1)", &[&password])
        .unwrap();
    ops.ask("SELECT vault.create_secret('auto', kind => 'automatic', rotation_interval => '30 days', allowed_ips => '{127.0.0.1}',
               generator => '{\"length\": 40}', keep_versions => 2)");
    ops.ask("SELECT vault.rotate_secret('auto')");
    let retained = value("retained");
    ops.execute("SELECT vault.create_secret('r', $1)", &[&retained]).unwrap();
    let large = random_text(1 << 20);
    ops.execute("SELECT vault.put_secret('r', $1)", &[&large]).unwrap();
    ops.execute("SELECT vault.create_secret('empty', '')", &[]).unwrap();
    values.push(("large", large[..40].to_owned()));
    values
}

/// Everything a reader and a lister can learn, values as digests; `reader` comes through TCP for auto's own list.
fn learn(reader: &mut Client) -> String {
    reader.ask(
        "SELECT i::text, (SELECT string_agg(v::text, ' ') FROM vault.list_versions(i.name) v),
                md5(coalesce(g.value, '') || '/' || coalesce(g.username, '') || '/' || coalesce(g.password, ''))
           FROM vault.list_secrets() i, vault.get_secret(i.name) g
         UNION ALL SELECT vault.read_secret('db/password', 1), vault.read_secret('db/password', 2), vault.read_secret('db/password')
         UNION ALL SELECT vault.verify('db/password', vault.read_secret('db/password', 1))::text, vault.status() ->> 'vault_id', ''",
    )
}

fn reader(cluster: &Cluster) -> Client {
    cluster.connect_tcp("app", cluster.database(), "127.0.0.1")
}

const ROLES: &str = "CREATE ROLE app LOGIN IN ROLE vault_reader; CREATE ROLE ops LOGIN IN ROLE vault_admin";

/// A new cluster with the same key and no vault yet.
fn elsewhere(cluster: &Cluster) -> Cluster {
    let bytes = std::fs::read(cluster.key_path()).expect("cannot read the key file");
    let key = KeyFile::Custom { bytes, mode: 0o600 };
    Cluster::builder().key_file(key).allowed_ips("local,127.0.0.1").fresh_initdb().start()
}

/// The restored vault is used as if nothing had happened.
fn goes_on(cluster: &Cluster, known: &str) {
    let (mut app, mut ops) = (reader(cluster), cluster.connect("ops", cluster.database()));
    assert!(learn(&mut app) == known, "restored, but not the same");
    assert_eq!(ops.ask("SELECT version FROM vault.put_secret('db/password', 'four')"), "4");
    assert_eq!(ops.ask("SELECT version FROM vault.rotate_secret('auto')"), "3");
    assert_eq!(ops.ask("SELECT version FROM vault.create_secret('new', 'here')"), "1");
    assert_eq!(app.ask("SELECT vault.read_secret('db/password'), vault.read_secret('new')"), "four|here");
    assert_eq!(
        app.ask("SELECT string_agg(state, ' ') FROM vault.list_versions('db/password')"),
        "current grace grace grace"
    );
    assert_eq!(app.ask("SELECT string_agg(state, ' ') FROM vault.list_versions('r')"), "current retained");
    ops.ask("SELECT vault.delete_secret('login')");
    sqlstate!(app.try_ask("SELECT vault.read_secret('login')"), "P0002");
}

#[test]
fn dump_and_restore() {
    let cluster = Cluster::builder().allowed_ips("local,127.0.0.1").start();
    let vault = cluster.vault();
    let planted = Scan::plant(&cluster);
    let values = fill(&mut vault.ops());
    let known = learn(&mut reader(&cluster));
    assert_none(&planted.look_for(values.iter().map(|(name, value)| (*name, value))).dump(&cluster));

    // Plain SQL through psql; roles come with CREATE EXTENSION, members are the operator's to make.
    let plain = cluster.pg_dump(&[]);
    let text = String::from_utf8_lossy(&plain);
    for table in ["secrets", "secret_versions", "vault_meta"] {
        assert!(text.contains(&format!("COPY vault.{table} ")), "{table} is not in the dump");
    }
    assert!(!text.contains("CREATE TABLE vault."), "the tables are the extension's to make");
    let restored = elsewhere(&cluster);
    restored
        .run_tool("psql", &["-X", "-q", "-v", "ON_ERROR_STOP=1", "--single-transaction"], &plain)
        .success();
    restored.superuser().ask(ROLES);
    goes_on(&restored, &known);

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

    weak_dumps(&vault);
}

/// Who may not bypass row-level security gets nothing out, whatever was granted to him.
fn weak_dumps(vault: &Vault<'_>) {
    let cluster = vault.cluster;
    cluster.superuser().ask("CREATE ROLE backup LOGIN; CREATE ROLE snoop LOGIN BYPASSRLS; GRANT USAGE ON SCHEMA vault TO backup, snoop");
    let dump = |args: &[&str]| cluster.run_tool("pg_dump", args, b"");
    let outcome = dump(&["-U", "backup", "-n", "vault", "-e", "hyperion_vault"]);
    assert!(
        !outcome.status.success() && outcome.errors().contains("permission denied"),
        "{}",
        outcome.errors()
    );
    cluster
        .superuser()
        .ask("GRANT pg_read_all_data TO backup; GRANT EXECUTE ON FUNCTION vault._inside() TO backup");
    let outcome = dump(&["-U", "backup"]);
    assert!(
        !outcome.status.success() && outcome.errors().contains("row-level security"),
        "{}",
        outcome.errors()
    );
    let text = dump(&["-U", "backup", "--enable-row-security"]).success().text();
    assert!(text.contains("COPY vault.secrets ") && !text.contains("db/password"), "rows left the vault");
    // BYPASSRLS without the right to the tables is not enough either; with both it is a backup role.
    let outcome = dump(&["-U", "snoop"]);
    assert!(
        !outcome.status.success() && outcome.errors().contains("permission denied"),
        "{}",
        outcome.errors()
    );
    cluster.superuser().ask("GRANT pg_read_all_data TO snoop");
    assert!(dump(&["-U", "snoop"]).success().text().contains("db/password"));
}

#[test]
fn standby() {
    let primary = Cluster::builder().allowed_ips("local,127.0.0.1").start();
    let vault = primary.vault();
    let mut ops = vault.ops();
    fill(&mut ops);
    let standby = primary.standby();
    standby.wait_replayed(&primary);

    // Reads on the standby: its own worker, its own key file, the same answers.
    let mut here = reader(&standby);
    assert!(learn(&mut here) == learn(&mut reader(&primary)));
    let status = "SELECT s -> 'in_recovery', s -> 'secrets', s -> 'workers' -> 0 -> 'running', s -> 'kms' ->> 'calls' <> '0' FROM vault.status() s";
    assert_eq!(here.ask(status), "true|5|true|t");
    assert_eq!(standby.pids("hyperion_vault kms").len(), 1);
    assert_ne!(standby.pids("hyperion_vault kms"), primary.pids("hyperion_vault kms"));

    // Writes are refused with the way out, before the key service is asked.
    let mut admin = standby.connect("ops", "postgres");
    let calls = "SELECT vault.status() -> 'kms' ->> 'calls'";
    let before = admin.ask(calls);
    for call in [
        "create_secret('x', 'v')",
        "put_secret('r', 'v')",
        "update_secret('r', description => 'd')",
        "rotate_secret('auto')",
        "delete_secret('r')",
    ] {
        sqlstate!(admin.try_ask(&format!("SELECT vault.{call}")), "25006", message: "cannot be changed on a standby", hint: "primary");
    }
    assert_eq!(admin.ask(calls), before);

    // What is replayed binds at once, in a snapshot that is older too; a new value is seen, a deleted one is gone.
    here.ask("BEGIN ISOLATION LEVEL REPEATABLE READ");
    assert_eq!(here.ask("SELECT vault.read_secret('empty'), length(vault.read_secret('r'))"), "|1048576");
    ops.ask("SELECT vault.delete_secret('r'); SELECT vault.put_secret('empty', 'no more')");
    standby.wait_replayed(&primary);
    assert_eq!(here.ask("SELECT vault.read_secret('empty')"), "no more");
    for call in ["read_secret('r')", "get_secret('r')", "verify('r', 'v')", "list_versions('r')"] {
        here.ask("SAVEPOINT s");
        sqlstate!(here.try_ask(&format!("SELECT vault.{call}")), "P0002", message: "\"r\" does not exist");
        here.ask("ROLLBACK TO s");
    }
    assert_eq!(here.ask("SELECT count(*) FROM vault.list_secrets('r')"), "0");
    here.ask("COMMIT");
    // A secret's own list, a shorter grace, another key: all of them follow.
    ops.ask("SELECT vault.update_secret('empty', allowed_ips => '{192.0.2.1}')");
    vault.root().ask("UPDATE vault.secret_versions SET expires_at = clock_timestamp()");
    standby.wait_replayed(&primary);
    sqlstate!(here.try_ask("SELECT vault.read_secret('empty')"), "42501", message: "address is not allowed");
    sqlstate!(here.try_ask("SELECT vault.read_secret('db/password', 1)"), "P0002");

    // Its worker comes back after an orderly death, without the server noticing.
    let mut witness = standby.witness();
    standby.kill_and_wait(standby.pid_of("hyperion_vault kms"), hyperion_vault_tests::SIGTERM);
    ops.ask("SELECT vault.create_secret('cold', 'fetched by the new worker')");
    standby.wait_replayed(&primary);
    assert_eq!(here.ask("SELECT vault.read_secret('cold')"), "fetched by the new worker");
    witness.assert_survived();

    // The primary goes; the standby takes over and goes on, in the sessions it has.
    drop(ops);
    primary.stop(StopMode::Immediate);
    assert_eq!(here.ask("SELECT vault.read_secret('cold')"), "fetched by the new worker");
    standby.superuser().ask("SELECT pg_promote()");
    assert_eq!(admin.ask("SELECT version FROM vault.put_secret('cold', 'written after')"), "2");
    assert_eq!(admin.ask("SELECT version FROM vault.rotate_secret('auto')"), "3");
    assert_eq!(here.ask("SELECT vault.read_secret('cold'), length(vault.read_secret('auto')), vault.status() -> 'in_recovery'"), "written after|40|false");
    witness.assert_survived();
    standby.restart(StopMode::Immediate);
    assert_eq!(reader(&standby).ask("SELECT vault.read_secret('cold')"), "written after");
}
