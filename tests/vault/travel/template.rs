//! A copy of the vault's database made with CREATE DATABASE … TEMPLATE. Runs in the test process.
//!
//! The copy has the vault's id, rows and functions. It is refused as every other database is, until an administrator
//! says, with a restart, that it is the vault's database now; then the original is refused. Never both.

use super::{fill, goes_on, learn, reader};
use hyperion_vault_tests::{Ask, Cluster, StopMode, sqlstate};

#[test]
fn a_copy_is_the_vault_only_if_the_setting_says_so() {
    let mut cluster = Cluster::builder().allowed_ips("local,127.0.0.1").start();
    fill(&mut cluster.vault().ops());
    let known = learn(&mut reader(&cluster));
    cluster.connect("postgres", "template1").ask("CREATE DATABASE copy TEMPLATE postgres");

    let refused = |cluster: &Cluster, user: &str, database: &str| {
        let mut session = cluster.connect(user, database);
        for call in [
            "SELECT vault.read_secret('empty')",
            "SELECT * FROM vault.get_secret('empty')",
            "SELECT vault.verify('empty', '')",
            "SELECT vault.put_secret('empty', 'v')",
            "SELECT vault.create_secret('another', 'v')",
            "SELECT vault.delete_secret('empty')",
            "SELECT * FROM vault.list_secrets()",
            "SELECT vault.status()",
        ] {
            sqlstate!(session.try_ask(call), "55000", message: "the vault does not live in this database", hint: "hyperion_vault.database");
        }
    };
    refused(&cluster, "postgres", "copy");
    refused(&cluster, "ops", "copy");
    assert!(learn(&mut reader(&cluster)) == known, "the original knows nothing of it");

    cluster.stage_conf("hyperion_vault.database", "copy");
    cluster.restart(StopMode::Fast);
    refused(&cluster, "postgres", "postgres");
    cluster.moved_to_database("copy");
    goes_on(&cluster, &known);
}
