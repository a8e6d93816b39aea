//! Targets that go elsewhere: nobody's function runs as somebody else there. Runs in the test process.

use super::{agrees, builder, logs_in, prepare, require_passwords, secret_for_svc, version};
use hyperion_vault_tests::{Ask, Client, Cluster, KeyFile, sqlstate};

const ROTATE: &str = "SELECT vault.rotate_secret('db/svc')";

/// Another cluster with the same key, and an empty vault.
fn elsewhere(cluster: &Cluster) -> Cluster {
    let key = std::fs::read(cluster.key_path()).expect("the key file");
    let other = builder().key_file(KeyFile::Custom { bytes: key, mode: 0o600 }).start();
    require_passwords(&other);
    other
}

#[track_caller]
fn inactive(client: &mut Client, detail: &str) {
    let before = version(client, "db/svc");
    sqlstate!(client.try_ask(ROTATE), "55000", message: "is not active", detail: detail, hint: "Set it again");
    assert_eq!(version(client, "db/svc"), before);
}

#[test]
fn an_imported_target_is_nobodys() {
    let cluster = builder().start();
    let vault = prepare(&cluster);
    // The strongest setter there is, and a hook of his.
    let mut root = vault.root();
    root.ask("SELECT vault.create_secret('db/svc', generator => '{}', target => '{\"type\":\"postgres_role\",\"role\":\"svc\"}')");
    let document = vault.ops().ask("SELECT vault.export_sealed()");
    assert!(
        document.contains("postgres_role")
            && !document.contains("target_set_by")
            && !document.contains("\"postgres\"")
    );

    let other = elsewhere(&cluster);
    let there = prepare_again(&other);
    let (mut ops, mut app) = (there.ops(), there.app());
    assert_eq!(
        ops.query_one("SELECT vault.import_sealed($1::text::jsonb)", &[&document]).unwrap().get::<_, i64>(0),
        1
    );
    assert_eq!(ops.ask("SELECT target ->> 'role' FROM vault.list_secrets()"), "svc");
    inactive(&mut ops, "It came with an import, and nobody has set it here.");
    inactive(&mut there.root(), "It came with an import");
    assert!(logs_in(&other, "svc", "of its own"));
    // Whoever may, sets it again; who may not, takes it off.
    let set =
        "SELECT vault.update_secret('db/svc', target => '{\"type\":\"postgres_role\",\"role\":\"svc\"}')";
    sqlstate!(ops.try_ask(set), "42501");
    there.session("keeper").ask(set);
    assert!(agrees(&other, &mut app, "db/svc"));
    ops.ask(ROTATE);
    assert!(agrees(&other, &mut app, "db/svc"));
    // A document cannot say who set a target.
    let forged = document.replace("\"target\":", "\"target_set_by\": \"postgres\", \"target\":");
    assert_ne!(forged, document);
    sqlstate!(ops.query("SELECT vault.import_sealed($1::text::jsonb)", &[&forged]), "22023", message: "not valid");
    // Back where it was exported, it is nobody's as well.
    root.ask("SELECT vault.delete_secret('db/svc')");
    vault.ops().query("SELECT vault.import_sealed($1::text::jsonb)", &[&document]).unwrap();
    inactive(&mut root, "It came with an import");
}

fn prepare_again(cluster: &Cluster) -> hyperion_vault_tests::Vault<'_> {
    let vault = cluster.vault();
    vault.root().batch_execute(super::ROLES).expect("cannot create the roles");
    vault
}

#[test]
fn a_restored_target_is_its_setters_or_nobodys() {
    let cluster = builder().start();
    let vault = prepare(&cluster);
    drop(secret_for_svc(&vault));
    let dump = String::from_utf8(cluster.pg_dump(&[])).expect("UTF-8");

    // A cluster where `keeper` is somebody else, by oid.
    let other = elsewhere(&cluster);
    let mut root = other.superuser();
    root.batch_execute(
        "CREATE ROLE a; CREATE ROLE b; CREATE ROLE c; CREATE ROLE vault_service; CREATE ROLE vault_user; CREATE ROLE vault_reader;
         CREATE ROLE vault_admin; CREATE ROLE vault_auditor; CREATE ROLE app LOGIN IN ROLE vault_reader; CREATE ROLE ops LOGIN IN ROLE vault_admin;
         CREATE ROLE nobody_special LOGIN",
    )
    .unwrap();
    root.batch_execute(super::ROLES).unwrap();
    root.batch_execute("ALTER ROLE keeper SUPERUSER").unwrap();
    other.psql(&dump).success();
    let mut ops = other.connect("ops", other.database());
    inactive(&mut ops, "Role \"keeper\", which set it, has been dropped, renamed or made again");
    assert!(logs_in(&other, "svc", "of its own"));
    let set =
        "SELECT vault.update_secret('db/svc', target => '{\"type\":\"postgres_role\",\"role\":\"svc\"}')";
    other.connect("keeper", other.database()).ask(set);
    ops.ask(ROTATE);
    assert!(agrees(&other, &mut other.connect("app", other.database()), "db/svc"));

    // A superuser may say that the names are those they were: if all of them are there.
    assert_eq!(root.ask("SELECT * FROM vault.rebind_roles()"), "", "nothing is wrong");
    root.ask("UPDATE vault.secrets SET target_set_by_oid = 99999, target_roles = '{99999}'");
    inactive(&mut ops, "Role \"keeper\"");
    root.ask("ALTER ROLE svc RENAME TO svc2");
    assert_eq!(root.ask("SELECT * FROM vault.rebind_roles()"), "secret db/svc|keeper|missing");
    root.ask("ALTER ROLE svc2 RENAME TO svc");
    assert_eq!(root.ask("SELECT * FROM vault.rebind_roles()"), "secret db/svc|keeper|rebound");
    ops.ask(ROTATE);
    assert!(agrees(&other, &mut other.connect("app", other.database()), "db/svc"));
    // What was imported has no name to be given to anybody.
    root.ask("UPDATE vault.secrets SET target_set_by = NULL, target_set_by_oid = NULL, target_roles = NULL");
    assert_eq!(root.ask("SELECT * FROM vault.rebind_roles()"), "");
    inactive(&mut ops, "It came with an import");

    // In the same cluster, where oids are the same, it goes on.
    root = vault.root();
    root.ask("DROP EXTENSION hyperion_vault; DROP SCHEMA vault");
    drop(root);
    // In one transaction, or the relay writes how far its spool is before the dump does.
    cluster.psql_as("postgres", &["-q", "--single-transaction"], &dump).success();
    vault.ops().ask(ROTATE);
    assert!(agrees(&cluster, &mut vault.app(), "db/svc"));
}
