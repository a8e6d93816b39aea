//! The vault carried elsewhere: dumped and restored, streamed, recovered to a point in time, upgraded to another major,
//! copied as a template. Runs in the test process.
//!
//! What leaves is sealed bytes, and they open wherever the same master key is. So each of these ways ends in the same
//! two questions: does everything read as it did ([`learn`]), and does the vault go on ([`goes_on`])?

mod dump;
mod pg_upgrade;
mod recovery;
mod sealed;
mod standby;
mod template;

use hyperion_vault_tests::{Ask, Client, Cluster, ClusterBuilder, KeyFile, random_text, sqlstate};

/// A secret of each kind, in each state; values by name.
pub fn fill(ops: &mut Client) -> Vec<(&'static str, String)> {
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
    ops.ask("SELECT vault.create_secret_bytes('bin', '\\x00ff80', expires_in => '10 years')");
    ops.ask("SELECT vault.create_secret('buried', 'v'); SELECT vault.delete_secret('buried', recovery_window => '1 day')");
    values.push(("large", large[..40].to_owned()));
    values
}

/// Everything a reader and a lister can learn, values as digests; `reader` comes through TCP for auto's own list.
pub fn learn(reader: &mut Client) -> String {
    reader.ask(
        "SELECT i::text, (SELECT string_agg(v::text, ' ') FROM vault.list_versions(i.name) v),
                md5(coalesce(g.value, '') || '/' || coalesce(g.username, '') || '/' || coalesce(g.password, ''))
           FROM vault.list_secrets() i, vault.get_secret(i.name) g
         UNION ALL SELECT vault.read_secret('db/password', 1), vault.read_secret('db/password', 2), vault.read_secret('db/password')
         UNION ALL SELECT vault.verify('db/password', vault.read_secret('db/password', 1))::text, vault.status() ->> 'vault_id', vault.read_secret_bytes('bin')::text",
    )
}

pub fn reader(cluster: &Cluster) -> Client {
    cluster.connect_tcp("app", cluster.database(), "127.0.0.1")
}

/// The roles that a dump without its cluster's roles lacks.
pub const ROLES: &str =
    "CREATE ROLE app LOGIN IN ROLE vault_reader; CREATE ROLE ops LOGIN IN ROLE vault_admin";

/// A new cluster with the same key and no vault yet.
pub fn elsewhere(cluster: &Cluster) -> Cluster {
    elsewhere_builder(cluster).start()
}

pub fn elsewhere_builder(cluster: &Cluster) -> ClusterBuilder {
    let bytes = std::fs::read(cluster.key_path()).expect("cannot read the key file");
    let key = KeyFile::Custom { bytes, mode: 0o600 };
    Cluster::builder().key_file(key).allowed_ips("local,127.0.0.1").fresh_initdb()
}

/// The restored vault is used as if nothing had happened.
pub fn goes_on(cluster: &Cluster, known: &str) {
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
    ops.ask("SELECT vault.restore_secret('buried')");
    assert_eq!(app.ask("SELECT vault.read_secret('buried')"), "v");
    ops.ask("SELECT vault.delete_secret('login')");
    sqlstate!(app.try_ask("SELECT vault.read_secret('login')"), "P0002");
}
