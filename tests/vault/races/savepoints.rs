//! What a savepoint or a transaction takes back: the value before is what is read, and names are free again.

use super::Expected;
use hyperion_vault_tests::{Client, Vault, sqlstate};

/// (version, state) of a secret, oldest first.
fn versions(client: &mut Client, name: &str) -> Vec<(i32, String)> {
    let sql = "SELECT version, state FROM vault.list_versions($1) ORDER BY version";
    client.query(sql, &[&name]).unwrap().iter().map(|row| (row.get(0), row.get(1))).collect()
}

fn value(client: &mut Client, name: &str) -> String {
    client.query_one("SELECT vault.read_secret($1)", &[&name]).unwrap().get(0)
}

fn valid(client: &mut Client, name: &str, candidate: &str) -> bool {
    client.query_one("SELECT valid FROM vault.verify($1, $2)", &[&name, &candidate]).unwrap().get(0)
}

fn rows(client: &mut Client) -> (i64, i64) {
    let sql = "SELECT (SELECT count(*) FROM vault.secrets), (SELECT count(*) FROM vault.secret_versions)";
    let row = client.query_one(sql, &[]).unwrap();
    (row.get(0), row.get(1))
}

pub fn roll_back(vault: &Vault<'_>) -> Expected {
    let mut client = vault.root();
    let run = |client: &mut Client, sql: &str| client.batch_execute(sql).unwrap();
    run(&mut client, "SELECT vault.create_secret('undo/a', 'one', grace_period => '1 day')");
    let before = rows(&mut client);

    // Put, rotate, delete: each taken back alone.
    run(&mut client, "BEGIN");
    for undone in [
        "SELECT vault.put_secret('undo/a', 'two')",
        "SELECT vault.update_secret('undo/a', value => 'two', keep_versions => 0, reset => '{grace_period}')",
        "SELECT vault.delete_secret('undo/a')",
        "SELECT vault.delete_secret('undo/a'); SELECT vault.create_secret('undo/a', 'two')",
    ] {
        run(&mut client, "SAVEPOINT s");
        run(&mut client, undone);
        run(&mut client, "ROLLBACK TO s");
        assert_eq!(value(&mut client, "undo/a"), "one", "after {undone}");
        assert!(
            valid(&mut client, "undo/a", "one") && !valid(&mut client, "undo/a", "two"),
            "after {undone}"
        );
        assert_eq!(versions(&mut client, "undo/a"), [(1, "current".into())], "after {undone}");
    }
    // The number is free again, and what is kept is kept.
    run(&mut client, "SAVEPOINT s; SELECT vault.put_secret('undo/a', 'three'); RELEASE s");
    run(&mut client, "SAVEPOINT t; SELECT vault.put_secret('undo/a', 'four'); ROLLBACK TO t; COMMIT");
    assert_eq!(value(&mut client, "undo/a"), "three");
    assert_eq!(versions(&mut client, "undo/a"), [(1, "grace".into()), (2, "current".into())]);
    assert_eq!(rows(&mut client), (before.0, before.1 + 1));

    // A create that is taken back, by a savepoint, an exception block or the whole transaction, leaves nothing.
    let create = "SELECT vault.create_secret('undo/b', 'one')";
    let before = rows(&mut client);
    let gone = |client: &mut Client| {
        sqlstate!(client.query("SELECT vault.read_secret('undo/b')", &[]), "P0002");
    };
    run(&mut client, &format!("BEGIN; {create}; ROLLBACK"));
    gone(&mut client);
    run(&mut client, &format!("BEGIN; SAVEPOINT s; {create}; ROLLBACK TO s; COMMIT"));
    gone(&mut client);
    let block = "DO $$ BEGIN PERFORM vault.create_secret('undo/b', 'one'); RAISE division_by_zero;
                 EXCEPTION WHEN division_by_zero THEN NULL; END $$";
    run(&mut client, block);
    gone(&mut client);
    assert_eq!(rows(&mut client), before);
    assert!(client.query("SELECT FROM vault.list_secrets('undo/b')", &[]).unwrap().is_empty());

    // The name is free: in the transaction that took it back, and for everyone.
    run(&mut client, &format!("BEGIN; SAVEPOINT s; {create}; ROLLBACK TO s"));
    run(&mut client, "SELECT vault.create_secret('undo/b', 'two'); COMMIT");
    assert_eq!(value(&mut vault.app(), "undo/b"), "two");
    assert_eq!(versions(&mut client, "undo/b"), [(1, "current".into())]);

    vec![
        ("undo/a".into(), Some(1), "one".into()),
        ("undo/a".into(), None, "three".into()),
        ("undo/b".into(), None, "two".into()),
    ]
}
