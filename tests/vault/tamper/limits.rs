//! What whoever can write the tables can do all the same, shown so that nobody relies on the contrary: the limits
//! that the threat model states. Runs in the test process.

use super::{Table, VALUES, fill};
use hyperion_vault_tests::{Client, Cluster, sqlstate};

fn read(client: &mut Client, name: &str) -> Result<String, postgres::Error> {
    client.query_one("SELECT vault.read_secret($1)", &[&name]).map(|row| row.get(0))
}

#[test]
fn what_writing_the_tables_can_do() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut ops = vault.ops();
    fill(&mut ops);
    let sql = "SELECT vault.create_secret(name => 'narrow', value => 'v', allowed_ips => '{10.0.0.0/8}')";
    ops.query(sql, &[]).unwrap();
    let mut table = Table::new(&vault);
    let Table { root, app } = &mut table;

    // Roll back: a complete older state of the same secret is authentic. Only an outside record of versions tells.
    root.batch_execute(
        "UPDATE vault.secrets s SET sealed = o.sealed, wrapped_dek = o.wrapped_dek, version_id = o.version_id, version = o.version
           FROM vault.secret_versions o WHERE o.secret_id = s.id",
    )
    .unwrap();
    assert_eq!(read(app, "a").unwrap(), VALUES[0]);
    table.restore();
    let Table { root, app } = &mut table;
    assert_eq!(read(app, "a").unwrap(), VALUES[1]);

    // Bring back: a deleted secret whose row was kept, as after restoring a backup.
    ops.query("SELECT vault.delete_secret('b')", &[]).unwrap();
    sqlstate!(read(app, "b"), "P0002");
    root.batch_execute("INSERT INTO vault.secrets SELECT * FROM kept.secrets WHERE name = 'b'").unwrap();
    assert_eq!(read(app, "b").unwrap(), VALUES[2]);

    // Change properties, which are not part of what is authenticated: the address list, the end of a grace period.
    sqlstate!(read(app, "narrow"), "42501", detail: "allowed_ips");
    root.batch_execute("UPDATE vault.secrets SET allowed_ips = NULL WHERE name = 'narrow'").unwrap();
    assert_eq!(read(app, "narrow").unwrap(), "v");
    let first = "SELECT vault.read_secret('a', 1)";
    root.batch_execute("UPDATE vault.secret_versions SET expires_at = now() - interval '1 second'").unwrap();
    sqlstate!(app.query(first, &[]), "P0002");
    root.batch_execute("UPDATE vault.secret_versions SET expires_at = now() + interval '1 day'").unwrap();
    assert_eq!(app.query_one(first, &[]).unwrap().get::<_, String>(0), VALUES[0]);
    // But the server-wide list cannot be widened from the tables.
    cluster.set_conf("hyperion_vault.allowed_ips", "10.0.0.0/8");
    sqlstate!(read(app, "narrow"), "42501", detail: "hyperion_vault.allowed_ips");
}
