//! Targets: new versions that become a role's password, or are handed to a function, in the transaction that makes them.
//! Runs in the test process.
//!
//! What a role's password is, is asked the way a client would: by logging in over TCP, where pg_hba.conf wants
//! scram-sha-256. The trap: a login that works because the server trusts everybody; each test here begins with one that
//! must fail.

mod hooks;
mod kills;
mod logins;
mod pairs;
mod passwords;
mod roles;
mod scheduled;
mod setters;
mod silence;
mod travels;

use hyperion_vault_tests::{Ask, Client, Cluster, ClusterBuilder, NoTls, Vault};

/// SQL that makes the roles of these tests: `keeper` manages the vault and may alter `app`, `app_a` and `app_b`.
const ROLES: &str = "
    CREATE ROLE keeper LOGIN CREATEROLE IN ROLE vault_admin;
    CREATE ROLE app_a LOGIN; CREATE ROLE app_b LOGIN; CREATE ROLE svc LOGIN PASSWORD 'of its own';
    DO $$ BEGIN
        IF current_setting('server_version_num')::int >= 160000 THEN
            EXECUTE 'GRANT app_a, app_b, svc TO keeper WITH ADMIN OPTION';
        END IF;
    END $$;";

fn builder() -> ClusterBuilder {
    Cluster::builder()
}

/// Creates the vault and the roles, and has TCP clients asked for their passwords.
fn prepare(cluster: &Cluster) -> Vault<'_> {
    require_passwords(cluster);
    let vault = cluster.vault();
    vault.root().batch_execute(ROLES).expect("cannot create the roles");
    assert!(!logs_in(cluster, "svc", "something else"), "the server asks nobody for a password");
    assert!(logs_in(cluster, "svc", "of its own"));
    vault
}

fn require_passwords(cluster: &Cluster) {
    let rules = "local all all trust\nlocal replication all trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
    std::fs::write(cluster.data_dir().join("pg_hba.conf"), rules).expect("cannot write pg_hba.conf");
    cluster.reload();
}

/// Whether a client gets in as `role` with this password. Fails on anything but a refusal of the password.
#[track_caller]
fn logs_in(cluster: &Cluster, role: &str, password: &str) -> bool {
    let mut config = cluster.config_tcp(role, cluster.database(), "127.0.0.1");
    match config.password(password).connect(NoTls) {
        Ok(_) => true,
        Err(error) if error.code().is_some_and(|code| code.code() == "28P01") => false,
        Err(error) => panic!("{role} was neither let in nor refused: {error:?}"),
    }
}

/// User name and password of a secret, as an application reads them.
#[track_caller]
fn credential(app: &mut Client, name: &str) -> (String, String) {
    let row = app.query_one("SELECT username, password FROM vault.get_secret($1)", &[&name]);
    let row = row.unwrap_or_else(|error| panic!("{name}: {error:?}"));
    (row.get(0), row.get(1))
}

/// Whether what the vault says of `name` gets a client in.
#[track_caller]
fn agrees(cluster: &Cluster, app: &mut Client, name: &str) -> bool {
    let (username, password) = credential(app, name);
    logs_in(cluster, &username, &password)
}

#[track_caller]
fn version(client: &mut Client, name: &str) -> i32 {
    let sql = "SELECT version FROM vault.list_secrets() WHERE name = $1";
    client.query_one(sql, &[&name]).expect("the secret").get(0)
}

fn major(cluster: &Cluster) -> u32 {
    cluster.toolchain().major
}

/// A secret `db/svc` for role `svc`, made by `keeper`.
fn secret_for_svc(vault: &Vault<'_>) -> Client {
    let mut keeper = vault.session("keeper");
    let sql = "SELECT name, version, target FROM vault.create_secret('db/svc', generator => '{}',
                 target => '{\"type\":\"postgres_role\",\"role\":\"svc\"}')";
    assert_eq!(keeper.ask(sql), "db/svc|1|{\"role\": \"svc\", \"type\": \"postgres_role\"}");
    keeper
}
