//! supabase_vault and hyperion_vault in one database: refused, from either side. Runs in the test process.
//!
//! The other extension is not installed here: its row in pg_extension, and the tables it makes, stand for it.

use hyperion_vault_tests::{Ask, Cluster, sqlstate};

#[test]
fn not_beside_supabase_vault() {
    let cluster = Cluster::builder().start();
    let mut root = cluster.superuser();
    let pretend = |name: &str, schema: &str| {
        format!(
            "INSERT INTO pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion)
             VALUES (99999, '{name}', 10, '{schema}'::regnamespace, false, '0.3.1')"
        )
    };
    // In its own schema with its objects there, and in another one.
    for (schema, name) in
        [("vault", "supabase_vault"), ("public", "supabase_vault"), ("vault", "another_vault")]
    {
        root.ask(&format!(
            "BEGIN; CREATE SCHEMA vault; CREATE TABLE vault.secrets (); {}",
            pretend(name, schema)
        ));
        let (detail, hint) = match name {
            "supabase_vault" => ("create_secret", "docs/migration.md"),
            _ => ("schema \"vault\".", "another schema"),
        };
        let made = root.try_ask("CREATE EXTENSION hyperion_vault");
        sqlstate!(made, "55000", message: name, detail: detail, hint: hint);
        root.ask("ROLLBACK");
    }
    // Gone, it leaves its schema: empty it is taken over.
    root.ask("CREATE SCHEMA vault; CREATE EXTENSION hyperion_vault; SELECT vault.create_secret('s', 'v')");
    // And the other way round: what its script does first fails, and ours is untouched.
    for sql in [
        "CREATE TABLE vault.secrets (id uuid PRIMARY KEY, secret text NOT NULL)",
        "CREATE VIEW vault.decrypted_secrets AS SELECT 1 AS one",
    ] {
        sqlstate!(root.try_ask(sql), "42P07", message: "already exists");
    }
    assert_eq!(root.ask("SELECT decrypted_secret FROM vault.decrypted_secrets WHERE name = 's'"), "v");
}
