//! `postgres_role_pair`: two roles in turn, so that the credential before really works until its grace ends.

use super::{builder, credential, logs_in, prepare, version};
use hyperion_vault_tests::{Ask, Client, Cluster, PATIENCE, Vault, sqlstate, wait_for};

const PAIR: &str = "'{\"type\":\"postgres_role_pair\",\"roles\":[\"app_a\",\"app_b\"]}'";
const ROTATE: &str = "SELECT version FROM vault.rotate_secret('db/app')";

fn create(vault: &Vault<'_>, more: &str) -> Client {
    let mut keeper = vault.session("keeper");
    keeper
        .ask(&format!("SELECT vault.create_secret('db/app', generator => '{{}}', target => {PAIR} {more})"));
    keeper
}

fn gets_in(cluster: &Cluster, (username, password): &(String, String)) -> bool {
    logs_in(cluster, username, password)
}

/// Moves the end of every grace of `db/app` to now, in the vault; the server's VALID UNTIL is another matter.
fn end_grace(root: &mut Client) {
    root.ask("UPDATE vault.secret_versions SET expires_at = clock_timestamp()");
}

#[test]
fn two_roles_take_turns() {
    let cluster = builder().start();
    let vault = prepare(&cluster);
    let mut keeper = create(&vault, ", grace_period => '1 hour'");
    let (mut root, mut ops, mut app) = (vault.root(), vault.session("keeper"), vault.app());
    let first = credential(&mut app, "db/app");
    assert_eq!(first.0, "app_a");
    assert!(gets_in(&cluster, &first));

    // By somebody without a right to the roles.
    vault.ops().ask(ROTATE);
    let second = credential(&mut app, "db/app");
    assert_eq!(second.0, "app_b");
    assert!(gets_in(&cluster, &second) && gets_in(&cluster, &first), "both work");
    // The server knows when the first one ends: with its grace, to the microsecond.
    let ends = "SELECT bool_and(r.rolvaliduntil = v.expires_at) FROM pg_authid r, vault.secret_versions v WHERE rolname = 'app_a' AND v.version = 1";
    assert_eq!(root.ask(ends), "t");
    assert_eq!(root.ask("SELECT rolvaliduntil FROM pg_authid WHERE rolname = 'app_b'"), "infinity");

    // It is the turn of a role whose credential is promised to work: refused, whoever asks and in whatever way.
    for call in ["rotate_secret('db/app')", "update_secret('db/app', password => 'x')"] {
        for client in [&mut ops, &mut root, &mut keeper] {
            sqlstate!(client.try_ask(&format!("SELECT vault.{call}")), "55000",
                message: "role \"app_a\", whose turn it is in secret \"db/app\", has a credential in grace",
                detail: "that of version 1, for another 3", hint: "reset => '{grace_period}'");
        }
    }
    assert_eq!(version(&mut root, "db/app"), 2);
    assert!(gets_in(&cluster, &first) && gets_in(&cluster, &second));
    // Back to the very credential that is in grace: that breaks nothing.
    assert_eq!(ops.ask("SELECT version FROM vault.roll_back_secret('db/app', 1)"), "3");
    assert_eq!(credential(&mut app, "db/app"), first);
    assert!(gets_in(&cluster, &first) && gets_in(&cluster, &second));
    assert_eq!(root.ask("SELECT rolvaliduntil FROM pg_authid WHERE rolname = 'app_a'"), "infinity");

    // In an emergency the grace can be taken off, and then ends.
    ops.ask("SELECT vault.update_secret('db/app', reset => '{grace_period}')");
    assert_eq!(ops.ask(ROTATE), "4");
    let fourth = credential(&mut app, "db/app");
    assert_eq!(fourth.0, "app_b");
    assert!(gets_in(&cluster, &fourth) && !gets_in(&cluster, &second) && !gets_in(&cluster, &first));
    sqlstate!(app.try_ask("SELECT vault.read_secret('db/app', 2)"), "P0002");
    assert_eq!(ops.ask(ROTATE), "5");
    assert!(!gets_in(&cluster, &fourth), "no grace, no credential");
    let fifth = credential(&mut app, "db/app");
    assert_eq!(fifth.0, "app_a");
    assert!(gets_in(&cluster, &fifth));
}

#[test]
fn a_credential_ends_with_its_grace() {
    let cluster = builder().start();
    let vault = prepare(&cluster);
    let mut keeper = create(&vault, ", grace_period => '6 seconds'");
    let mut app = vault.app();
    let first = credential(&mut app, "db/app");
    keeper.ask(ROTATE);
    assert!(gets_in(&cluster, &first));
    // Nobody does anything: the server itself stops accepting it, as the vault does.
    wait_for("the end of the first credential", PATIENCE, || !gets_in(&cluster, &first));
    let valid = "SELECT valid FROM vault.verify('db/app', $1)";
    assert!(!app.query_one(valid, &[&first.1]).unwrap().get::<_, bool>(0));
    assert!(gets_in(&cluster, &credential(&mut app, "db/app")));
    assert_eq!(keeper.ask(ROTATE), "3");
    assert!(gets_in(&cluster, &credential(&mut app, "db/app")));
}

#[test]
fn pairs_begin_anywhere() {
    let cluster = builder().start();
    let vault = prepare(&cluster);
    let (mut root, mut keeper, mut app) = (vault.root(), vault.session("keeper"), vault.app());
    // With the second, if the caller says so.
    keeper.ask(&format!("SELECT vault.create_secret('db/app', username => 'app_b', password => 'p', generator => '{{}}', grace_period => '1 hour', target => {PAIR})"));
    assert!(logs_in(&cluster, "app_b", "p") && !logs_in(&cluster, "app_a", "p"));
    keeper.ask(ROTATE);
    assert_eq!(credential(&mut app, "db/app").0, "app_a");
    assert!(logs_in(&cluster, "app_b", "p"));
    keeper.ask("SELECT vault.delete_secret('db/app')");
    assert!(logs_in(&cluster, "app_b", "p"), "deleting a secret changes no role");

    // On a secret that is in use already: the role it has stays as it is.
    root.ask("ALTER ROLE app_a PASSWORD 'known'");
    keeper.ask("SELECT vault.create_secret('db/app', username => 'app_a', password => 'known', generator => '{}', grace_period => '1 hour')");
    keeper.ask(&format!("SELECT vault.update_secret('db/app', target => {PAIR})"));
    assert_eq!(credential(&mut app, "db/app"), ("app_b".into(), "known".into()));
    assert!(logs_in(&cluster, "app_b", "known") && logs_in(&cluster, "app_a", "known"));
    // What was in grace before there was a target counts as well.
    sqlstate!(keeper.try_ask(ROTATE), "55000", message: "role \"app_a\", whose turn");
    end_grace(&mut root);
    keeper.ask(ROTATE);
    sqlstate!(keeper.try_ask("SELECT vault.update_secret('db/app', username => 'app_a', password => 'q')"), "22023",
        message: "username is not the role whose turn it is");

    // A role is in one secret, alone or in a pair.
    for target in [
        "{\"type\":\"postgres_role\",\"role\":\"app_b\"}",
        "{\"type\":\"postgres_role_pair\",\"roles\":[\"svc\",\"app_a\"]}",
    ] {
        sqlstate!(keeper.try_ask(&format!("SELECT vault.create_secret('db/2', generator => '{{}}', target => '{target}')")), "55000",
            message: "from another secret");
    }
    // Rolled back, with both roles.
    let (before, until) = (
        credential(&mut app, "db/app"),
        "SELECT rolname, rolvaliduntil FROM pg_authid WHERE rolname LIKE 'app_%' ORDER BY 1",
    );
    end_grace(&mut root);
    let known = root.ask(until);
    keeper.ask(&format!("BEGIN; {ROTATE}; ROLLBACK"));
    assert_eq!(root.ask(until), known);
    assert_eq!(credential(&mut app, "db/app"), before);
    assert!(gets_in(&cluster, &before));
}
