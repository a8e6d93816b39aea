//! `postgres_role`: the role's password is the current version, whatever makes that.

use super::{agrees, builder, credential, logs_in, prepare, secret_for_svc, version};
use hyperion_vault_tests::threads::clients_at_once;
use hyperion_vault_tests::{Ask, PATIENCE, sqlstate};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering::SeqCst};

#[test]
fn the_password_is_the_current_version() {
    let cluster = builder().start();
    let vault = prepare(&cluster);
    let mut keeper = secret_for_svc(&vault);
    let (mut app, mut ops, mut root) = (vault.app(), vault.ops(), vault.root());

    // Created: generated value, user name from the target.
    let (username, first) = credential(&mut app, "db/svc");
    assert_eq!(username, "svc");
    assert!(logs_in(&cluster, "svc", &first) && !logs_in(&cluster, "svc", "of its own"));
    let stored = root.ask("SELECT rolpassword FROM pg_authid WHERE rolname = 'svc'");
    assert!(stored.starts_with("SCRAM-SHA-256$"), "no verifier");
    assert_eq!(
        root.ask(
            "SELECT target_set_by, target_set_by_oid::regrole, target_roles::regrole[] FROM vault.secrets"
        ),
        "keeper|keeper|{svc}"
    );

    // Rotated, by somebody who could not alter the role himself.
    sqlstate!(ops.try_ask("ALTER ROLE svc PASSWORD 'x'"), "42501");
    assert_eq!(ops.ask("SELECT version FROM vault.rotate_secret('db/svc')"), "2");
    let (_, second) = credential(&mut app, "db/svc");
    assert!(logs_in(&cluster, "svc", &second) && !logs_in(&cluster, "svc", &first));
    // Given, or rolled back: by who may set that password himself, else it would be everybody's who manages the vault.
    for chosen in [
        "update_secret('db/svc', password => 'by hand')",
        "roll_back_secret('db/svc', 1)",
        "update_secret('db/svc', generator => '{\"length\": 1, \"charset\": \"ab\"}')",
    ] {
        sqlstate!(
            ops.try_ask(&format!("SELECT vault.{chosen}")),
            "42501",
            message: "permission denied for role \"ops\" to choose the password of role \"svc\"",
            detail: "It needs CREATEROLE",
            hint: "Rotate the secret"
        );
    }
    assert!(logs_in(&cluster, "svc", &second) && version(&mut root, "db/svc") == 2);
    keeper.ask("SELECT vault.update_secret('db/svc', generator => '{\"length\": 20}')");
    let mut manager = ops;
    let mut ops = vault.session("keeper");
    assert_eq!(ops.ask("SELECT version FROM vault.update_secret('db/svc', password => 'by hand')"), "3");
    assert!(logs_in(&cluster, "svc", "by hand") && agrees(&cluster, &mut app, "db/svc"));
    // Rolled back.
    assert_eq!(ops.ask("SELECT version FROM vault.roll_back_secret('db/svc', 2)"), "4");
    assert!(logs_in(&cluster, "svc", &second) && agrees(&cluster, &mut app, "db/svc"));
    // Neither a property nor a name makes a version.
    manager.ask("SELECT vault.update_secret('db/svc', description => 'd')");
    root.ask("SELECT vault.rename_secret('db/svc', 'db/other')");
    assert_eq!(version(&mut root, "db/other"), 4);
    assert!(agrees(&cluster, &mut app, "db/other"));
    root.ask("SELECT vault.rename_secret('db/other', 'db/svc')");

    // The user name follows the target, and cannot be another.
    sqlstate!(
        ops.try_ask("SELECT vault.update_secret('db/svc', username => 'else', password => 'p')"),
        "22023",
        message: "username is not the role",
        hint: "Leave username out"
    );
    ops.ask("SELECT vault.update_secret('db/svc', username => 'svc', password => 'p')");
    assert!(logs_in(&cluster, "svc", "p"));
    sqlstate!(
        ops.try_ask("SELECT vault.update_secret('db/svc', password => '')"),
        "22023",
        message: "must not be empty"
    );
    assert!(agrees(&cluster, &mut app, "db/svc"));

    // Taken off: the secret goes its own way. Set again: the value that there is becomes the password once more.
    ops.ask("SELECT vault.update_secret('db/svc', reset => '{target}')");
    assert_eq!(ops.ask("SELECT target FROM vault.update_secret('db/svc', password => 'vault only')"), "∅");
    assert!(logs_in(&cluster, "svc", "p") && !agrees(&cluster, &mut app, "db/svc"));
    let target = "target => '{\"type\":\"postgres_role\",\"role\":\"svc\"}'";
    let before = version(&mut root, "db/svc");
    keeper.ask(&format!("SELECT vault.update_secret('db/svc', {target})"));
    assert_eq!(version(&mut root, "db/svc"), before + 1);
    assert!(logs_in(&cluster, "svc", "vault only") && agrees(&cluster, &mut app, "db/svc"));
    sqlstate!(
        keeper.try_ask(&format!("SELECT vault.update_secret('db/svc', {target}, reset => '{{target}}')")),
        "22023",
        message: "target is both given and reset"
    );

    // Deleted: the password stays what it was. Restored: so does the target.
    ops.ask("SELECT vault.delete_secret('db/svc', '1 day')");
    assert!(logs_in(&cluster, "svc", "vault only"));
    ops.ask("SELECT vault.restore_secret('db/svc')");
    ops.ask("SELECT vault.rotate_secret('db/svc')");
    assert!(!logs_in(&cluster, "svc", "vault only") && agrees(&cluster, &mut app, "db/svc"));
}

#[test]
fn all_or_nothing() {
    let cluster = builder().start();
    let vault = prepare(&cluster);
    vault.root().ask("GRANT vault_reader TO keeper");
    let mut keeper = secret_for_svc(&vault);
    let mut app = vault.app();
    let (_, first) = credential(&mut app, "db/svc");

    let rotate = "SELECT version FROM vault.rotate_secret('db/svc')";
    keeper.ask(&format!("BEGIN; {rotate}; ROLLBACK"));
    assert!(logs_in(&cluster, "svc", &first) && agrees(&cluster, &mut app, "db/svc"));
    assert_eq!(version(&mut keeper, "db/svc"), 1);

    // A savepoint's rollback takes back one of two.
    keeper.ask(&format!("BEGIN; {rotate}; SAVEPOINT s"));
    let (_, second) = credential(&mut keeper, "db/svc");
    assert!(logs_in(&cluster, "svc", &first), "not committed yet");
    keeper.ask(&format!("{rotate}; ROLLBACK TO s; COMMIT"));
    assert_eq!(version(&mut keeper, "db/svc"), 2);
    assert_eq!(credential(&mut app, "db/svc").1, second);
    assert!(logs_in(&cluster, "svc", &second));

    // Twice in one transaction; an error that is caught; an error at the end.
    keeper.ask(&format!("BEGIN; {rotate}; {rotate}; COMMIT"));
    assert!(agrees(&cluster, &mut app, "db/svc"));
    keeper.ask(
        "DO $$ BEGIN
             BEGIN PERFORM vault.rotate_secret('db/svc'); PERFORM 1 / 0; EXCEPTION WHEN division_by_zero THEN NULL; END;
         END $$",
    );
    assert_eq!(version(&mut keeper, "db/svc"), 4);
    assert!(agrees(&cluster, &mut app, "db/svc"));
    sqlstate!(keeper.try_ask("SELECT vault.rotate_secret('db/svc'), 1 / (random() * 0)::int"), "22012");
    assert_eq!(version(&mut keeper, "db/svc"), 4);
    assert!(agrees(&cluster, &mut app, "db/svc"));

    // An old snapshot, which does not see the newest version: read, and not overwritten; the password stays with the version.
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        let before = version(&mut keeper, "db/svc");
        keeper.ask(&format!("BEGIN ISOLATION LEVEL {level}; SELECT count(*) FROM pg_roles"));
        vault.ops().ask(rotate);
        assert_eq!(credential(&mut keeper, "db/svc"), credential(&mut app, "db/svc"));
        sqlstate!(keeper.try_ask(rotate), "40001");
        keeper.ask("ROLLBACK");
        assert_eq!(version(&mut keeper, "db/svc"), before + 1);
        assert!(agrees(&cluster, &mut app, "db/svc"));
        keeper.ask(&format!("BEGIN ISOLATION LEVEL {level}; {rotate}; COMMIT"));
        assert_eq!(version(&mut keeper, "db/svc"), before + 2);
        assert!(agrees(&cluster, &mut app, "db/svc"));
    }
}

/// Whoever comes at once takes turns; nothing deadlocks, and what is left agrees.
#[test]
fn concurrent_changes_take_turns() {
    let cluster = Arc::new(builder().max_connections(40).conf("max_prepared_transactions", "2").start());
    let vault = prepare(&cluster);
    let mut keeper = secret_for_svc(&vault);
    let pair = "target => '{\"type\":\"postgres_role_pair\",\"roles\":[\"app_a\",\"app_b\"]}'";
    keeper.ask(&format!("SELECT vault.create_secret('db/app', generator => '{{}}', {pair})"));
    let repeated = Arc::new(AtomicI32::new(0));
    let counted = Arc::clone(&repeated);
    let done = clients_at_once(&cluster, "keeper", 6, PATIENCE * 2, move |i, mut client| {
        let mut done = 0;
        for round in 0..12 {
            let name = if (i + round) % 2 == 0 { "db/svc" } else { "db/app" };
            let sql = match (i + round) % 5 {
                0 | 1 => format!("SELECT vault.rotate_secret('{name}')"),
                2 => format!("SELECT vault.update_secret('{name}', password => 'p{i}{round}')"),
                3 => format!("BEGIN; SELECT vault.rotate_secret('{name}'); ROLLBACK"),
                // The server's own way to the same row of its catalog.
                _ => "BEGIN; ALTER ROLE svc CONNECTION LIMIT 90; SELECT pg_sleep(0.01); COMMIT".to_owned(),
            };
            match client.try_ask(&sql) {
                Ok(_) => done += 1,
                // Two writers of a role's row, one of which did not ask us: who comes second is told to repeat, by us or
                // in the server's own way.
                Err(error) => {
                    let told = format!("{error:?}");
                    assert!(
                        told.contains("E40001") || told.contains("tuple concurrently updated"),
                        "{sql}: {told}"
                    );
                    client.ask("ROLLBACK");
                    counted.fetch_add(i32::from(told.contains("was altered meanwhile")), SeqCst);
                }
            }
        }
        done
    });
    let repeated = repeated.load(SeqCst);
    assert!(done.iter().sum::<i32>() + repeated > 50 && repeated > 0, "{done:?}, {repeated}");
    let mut app = vault.app();
    assert!(agrees(&cluster, &mut app, "db/svc") && agrees(&cluster, &mut app, "db/app"));
    for name in ["db/svc", "db/app"] {
        let rows = keeper.ask(&format!("SELECT version FROM vault.list_versions('{name}') ORDER BY version"));
        let versions: Vec<i32> = rows.lines().map(|version| version.parse().unwrap()).collect();
        assert!(versions.windows(2).all(|pair| pair[1] == pair[0] + 1), "{versions:?}");
    }

    // Two who want the same role for a secret of theirs: one gets it.
    keeper.ask("SELECT vault.delete_secret('db/svc')");
    let got = clients_at_once(&cluster, "keeper", 4, PATIENCE, |i, mut client| {
        client
            .try_ask(&format!("SELECT vault.create_secret('mine/{i}', generator => '{{}}', target => '{{\"type\":\"postgres_role\",\"role\":\"svc\"}}')"))
            .is_ok()
    });
    assert_eq!(got.iter().filter(|got| **got).count(), 1, "{got:?}");
    let name = keeper.ask("SELECT name FROM vault.list_secrets('mine/*')");
    assert!(agrees(&cluster, &mut app, &name));

    // A prepared transaction holds on to it, and to both halves.
    keeper.ask(&format!("BEGIN; SELECT vault.rotate_secret('{name}'); PREPARE TRANSACTION 'p'"));
    assert!(agrees(&cluster, &mut app, &name));
    let before = credential(&mut app, &name);
    keeper.ask("SET lock_timeout = '200ms'");
    sqlstate!(keeper.try_ask(&format!("SELECT vault.rotate_secret('{name}')")), "55P03");
    keeper.ask("COMMIT PREPARED 'p'");
    assert!(credential(&mut app, &name) != before && agrees(&cluster, &mut app, &name));
}
