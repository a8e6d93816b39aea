//! What a session remembers from one read to the next (the vault's id, the caller's rights) and how it learns that it is
//! out of date: at its next statement, whoever changed it, wherever. Runs in the test process.

use hyperion_vault_tests::{Ask, Client, Cluster, PATIENCE, expect_error, sqlstate, wait_for};

const READ: &str = "SELECT vault.read_secret('a')";

fn reads(client: &mut Client) -> bool {
    match client.try_ask(READ) {
        Ok(value) => {
            assert_eq!(value, "value of a");
            true
        }
        Err(error) => {
            let code = error.code().map(|code| code.code().to_owned());
            assert!(matches!(code.as_deref(), Some("42501" | "XX001")), "{error:?}");
            false
        }
    }
}

#[test]
fn rights_and_identity_bind_at_the_next_statement() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut root = vault.root();
    vault.ops().ask("SELECT (vault.create_secret('a', 'value of a')).name");
    let mut run = |sql: &str| root.batch_execute(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));

    // Rights, in every way in which they come and go. The session has read before each of them.
    let mut app = vault.session("nobody_special");
    // vault_user may call and does nothing by itself: every answer here is one of our own.
    run("CREATE ROLE team; GRANT vault_user TO nobody_special");
    for (give, take) in [
        ("GRANT vault_reader TO nobody_special", "REVOKE vault_reader FROM nobody_special"),
        ("GRANT vault_reader TO team; GRANT team TO nobody_special", "REVOKE vault_reader FROM team"),
        ("GRANT vault_reader TO team", "REVOKE team FROM nobody_special"),
        ("ALTER ROLE nobody_special SUPERUSER", "ALTER ROLE nobody_special NOSUPERUSER"),
    ] {
        run(give);
        assert!(reads(&mut app), "{give}");
        assert!(reads(&mut app));
        run(take);
        assert!(!reads(&mut app), "{take}");
    }
    // Also inside a transaction that sees none of it in its snapshot, and rolled back by another.
    run("GRANT vault_reader TO nobody_special");
    app.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ").unwrap();
    assert!(reads(&mut app));
    run("BEGIN; REVOKE vault_reader FROM nobody_special; ROLLBACK");
    assert!(reads(&mut app));
    run("REVOKE vault_reader FROM nobody_special");
    expect_error(app.try_ask(READ), "42501");
    app.batch_execute("ROLLBACK").unwrap();

    // One session, one role after the other.
    let mut switching = vault.root();
    for (role, may) in [("app", true), ("nobody_special", false), ("ops", false), ("app", true)] {
        switching.batch_execute(&format!("SET ROLE {role}")).unwrap();
        assert_eq!(reads(&mut switching), may, "{role}");
    }

    // The identity: replaced below SQL's guards, what it sealed does not open any more, not even in a session that has
    // just opened it; put back or rolled back, it does.
    let mut app = vault.app();
    assert!(reads(&mut app));
    let other = "SET row_security = off; UPDATE vault.vault_meta SET vault_id = gen_random_uuid()";
    run("CREATE TABLE kept AS SELECT vault_id FROM vault.vault_meta");
    run(&format!("BEGIN; {other}; ROLLBACK"));
    assert!(reads(&mut app));
    run(&format!("SET session_replication_role = replica; {other}"));
    sqlstate!(app.try_ask(READ), "XX001");
    run("UPDATE vault.vault_meta m SET vault_id = k.vault_id FROM kept k");
    assert!(reads(&mut app));
    run("DELETE FROM vault.vault_meta");
    sqlstate!(app.try_ask(READ), "XX001", detail: "vault_meta");
    run("INSERT INTO vault.vault_meta SELECT true, vault_id, now() FROM kept");
    assert!(reads(&mut app));
    run("BEGIN; TRUNCATE vault.vault_meta; ROLLBACK");
    assert!(reads(&mut app));

    // On a standby the same, as soon as it is replayed.
    let standby = cluster.standby();
    let mut there = standby.connect("app", "postgres");
    assert!(reads(&mut there));
    run(other);
    standby.wait_replayed(&cluster);
    wait_for("the standby to have noticed", PATIENCE, || !reads(&mut there));
    run("UPDATE vault.vault_meta m SET vault_id = k.vault_id FROM kept k; REVOKE vault_reader FROM app");
    standby.wait_replayed(&cluster);
    wait_for("the standby to refuse", PATIENCE, || expect_denied(&mut there));
}

fn expect_denied(client: &mut Client) -> bool {
    client.try_ask(READ).is_err_and(|error| error.code().is_some_and(|code| code.code() == "42501"))
}
