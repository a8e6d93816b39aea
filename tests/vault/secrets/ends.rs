//! How secrets end: deletion with a recovery window, `expires_in`, and what a name is worth meanwhile.

use super::{cached, id_of, rows, run_out};
use crate::api::Sessions;
use crate::watch::first_look;
use hyperion_vault_tests::{Ask, Client, Cluster, Vault, sqlstate};

/// A cluster whose maintenance worker, once it has had its first look, lies still: what has ended stays where it is.
fn seldom_looked_at() -> Cluster {
    Cluster::builder().conf("hyperion_vault.scan_interval_secs", "3600").start()
}

/// Nobody gets at the secret, whatever he asks with; managers are told what they can do about it.
#[track_caller]
fn invisible(s: &mut Sessions, name: &str, hint: &str) {
    for call in [
        "read_secret('N')",
        "read_secret('N', 1)",
        "read_secret_bytes('N')",
        "get_secret('N')",
        "verify('N', 'one')",
        "verify_bytes('N', '\\x00')",
        "list_versions('N')",
    ] {
        let error = sqlstate!(s.app.try_ask(&format!("SELECT vault.{}", call.replace('N', name))), "P0002", message: "does not exist");
        assert!(error.detail().is_none(), "{call}: a reader learns no more: {error:?}");
    }
    for call in [
        "update_secret('N', 'x')",
        "update_secret('N', description => 'x')",
        "rotate_secret('N')",
        "roll_back_secret('N', 1)",
    ] {
        let sql = format!("SELECT vault.{}", call.replace('N', name));
        sqlstate!(s.ops.try_ask(&sql), "P0002", message: "does not exist", hint: hint);
    }
    let listed = format!("SELECT count(*) FROM vault.list_secrets('{name}')");
    assert_eq!((s.app.ask(&listed), s.ops.ask(&listed)), ("0".into(), "0".into()));
}

fn three_versions(s: &mut Sessions, name: &str) -> String {
    s.ops.ask(&format!(
        "SELECT vault.create_secret('{name}', 'one', grace_period => '1 hour', description => 'kept');
         SELECT vault.put_secret('{name}', 'two'); SELECT vault.put_secret('{name}', 'three')"
    ));
    id_of(&mut s.root, name)
}

#[test]
fn deleted_and_restored() {
    let cluster = seldom_looked_at();
    let vault = cluster.vault();
    first_look(&cluster);
    let mut s = Sessions::of(&vault);
    let id = three_versions(&mut s, "d");

    // A session with an old snapshot, and a warm cache, is bound at once.
    let mut old = vault.app();
    old.ask("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class");
    assert_eq!(old.ask("SELECT vault.read_secret('d'), vault.read_secret('d', 1)"), "three|one");
    s.read("d");
    let keys = cached(&vault);
    assert_eq!(s.ops.ask("SELECT vault.delete_secret('d', recovery_window => '7 days')"), "");
    assert_eq!(cached(&vault), keys - 3, "the keys of its three versions have left the cache");
    sqlstate!(old.try_ask("SELECT vault.read_secret('d')"), "P0002");
    old.ask("ROLLBACK");
    invisible(&mut s, "d", "restore_secret");
    assert_eq!(rows(&mut s.root, &id), "1|2");
    let status = "SELECT s -> 'secrets', s -> 'deleted' FROM vault.status() s";
    assert_eq!(s.root.ask(status), "0|1");

    // The name is taken, and who may take it is told how to get it.
    for call in [
        "create_secret('d', 'new')",
        "put_secret('d', 'new')",
        r"create_secret_bytes('d', '\x00')",
        r"put_secret_bytes('d', '\x00')",
    ] {
        sqlstate!(s.ops.try_ask(&format!("SELECT vault.{call}")), "23505", message: "can still be restored", hint: "restore_secret");
    }
    let deleted = "SELECT name, version, recover_until - updated_at FROM vault.list_secrets(deleted => true)";
    assert_eq!(s.ops.ask(deleted), "d|3|7 days");
    sqlstate!(s.ops.try_ask("SELECT vault.delete_secret('d', '1 day')"), "55000", message: "deleted already", hint: "Restore it first");
    sqlstate!(s.app.try_ask("SELECT vault.restore_secret('d')"), "42501");

    // Back as it was, and nothing but as it was.
    let restored = "SELECT name, version, description, recover_until FROM vault.restore_secret('d')";
    s.ops.ask(&format!("BEGIN; {restored}; ROLLBACK"));
    invisible(&mut s, "d", "restore_secret");
    assert_eq!(s.ops.ask(restored), "d|3|kept|∅");
    assert_eq!(
        s.app.ask("SELECT vault.read_secret('d'), vault.read_secret('d', 1), vault.read_secret('d', 2)"),
        "three|one|two"
    );
    assert_eq!((s.states("d"), id_of(&mut s.root, "d")), ("3 current, 2 grace, 1 grace".into(), id.clone()));
    assert_eq!(s.ops.ask(deleted), "");
    sqlstate!(s.ops.try_ask("SELECT vault.restore_secret('d')"), "55000", message: "is not deleted");
    sqlstate!(s.ops.try_ask("SELECT vault.restore_secret('never')"), "P0002", message: "does not exist");

    // Undone with the transaction, savepoints too.
    s.ops.ask("BEGIN; SELECT vault.delete_secret('d', '1 day'); SAVEPOINT a; SELECT vault.restore_secret('d'); ROLLBACK TO a");
    sqlstate!(s.ops.try_ask("SELECT vault.update_secret('d', 'x')"), "P0002");
    s.ops.ask("ROLLBACK");
    assert_eq!(s.read("d"), "three");

    // Deleted once more without a window: destroyed, within the window too.
    s.ops.ask("SELECT vault.delete_secret('d', '1 day')");
    s.ops.ask("SELECT vault.delete_secret('d')");
    assert_eq!(rows(&mut s.root, &id), "0|0");
    sqlstate!(s.ops.try_ask("SELECT vault.restore_secret('d')"), "P0002");
    windows(&mut s);
    over(&mut s, "recover_until");
}

fn windows(s: &mut Sessions) {
    s.ops.ask("SELECT vault.create_secret('w', 'v')");
    for (window, message) in [
        ("-1 s", "must not be negative"),
        ("36501 days", "is too long"),
        ("1 month -31 days", "must not be negative"),
    ] {
        let sql = format!("SELECT vault.delete_secret('w', '{window}')");
        sqlstate!(s.ops.try_ask(&sql), "22023", message: message);
    }
    sqlstate!(s.ops.try_ask("SELECT vault.delete_secret('w', NULL)"), "22023", message: "recovery_window must not be null");
    s.ops.ask("SELECT vault.delete_secret('w', '1 month -30 days')");
    assert_eq!(s.root.ask("SELECT count(*) FROM vault.secrets WHERE name = 'w'"), "0", "no window at all");
}

/// Once an end has come there is nothing to restore, the name is free, and taking it destroys what was left.
fn over(s: &mut Sessions, column: &str) {
    for call in [
        "create_secret('o', 'new')",
        "put_secret('o', 'new')",
        "put_secret('o', 'new', expected_version => 0)",
    ] {
        let id = three_versions(s, "o");
        match column {
            "recover_until" => s.ops.ask("SELECT vault.delete_secret('o', '1 hour')"),
            _ => s.ops.ask("SELECT vault.update_secret('o', expires_in => '1 hour')"),
        };
        run_out(&mut s.root, "o", column);
        invisible(s, "o", "list_secrets");
        for call in ["restore_secret('o')", "delete_secret('o')", "delete_secret('o', '1 day')"] {
            sqlstate!(s.ops.try_ask(&format!("SELECT vault.{call}")), "P0002");
        }
        assert_eq!(s.ops.ask("SELECT count(*) FROM vault.list_secrets(deleted => true)"), "0");
        assert_eq!(s.root.ask("SELECT s -> 'secrets', s -> 'deleted' FROM vault.status() s"), "0|0");
        assert_eq!(rows(&mut s.root, &id), "1|2");
        s.ops.ask(&format!("BEGIN; SELECT vault.{call}; ROLLBACK"));
        assert_eq!(rows(&mut s.root, &id), "1|2", "taking the name was undone");
        assert_eq!(
            s.ops.ask(&format!("SELECT version, expires_at, recover_until, description FROM vault.{call}")),
            "1|∅|∅|∅"
        );
        assert_eq!(rows(&mut s.root, &id), "0|0", "nothing sealed is left of the old one");
        assert_eq!((s.read("o"), s.states("o")), ("new".into(), "1 current".into()));
        s.ops.ask("SELECT vault.delete_secret('o')");
    }
}

#[test]
fn expires_in() {
    let cluster = seldom_looked_at();
    let vault = cluster.vault();
    first_look(&cluster);
    let mut s = Sessions::of(&vault);
    let created = "SELECT expires_at - created_at FROM vault.create_secret('e', 'one', expires_in => '2 hours', grace_period => '1 day')";
    assert_eq!(s.ops.ask(created), "02:00:00");
    // A new value leaves the end where it is; a new expires_in counts from now.
    assert_eq!(s.ops.ask("SELECT expires_at - created_at FROM vault.put_secret('e', 'two')"), "02:00:00");
    assert_eq!(
        s.ops.ask(
            "SELECT expires_at - updated_at, version FROM vault.update_secret('e', expires_in => '1 hour')"
        ),
        "01:00:00|2"
    );
    assert_eq!(s.ops.ask("SELECT expires_at FROM vault.update_secret('e', reset => '{expires_in}')"), "∅");
    s.ops.ask("SELECT vault.update_secret('e', expires_in => '1 hour')");
    sqlstate!(s.ops.try_ask("SELECT vault.update_secret('e', expires_in => '1 s', reset => '{expires_in}')"), "22023", message: "both given and reset");
    assert_eq!(s.app.ask("SELECT expires_at IS NOT NULL FROM vault.list_secrets('e')"), "t");

    // It ends in the middle of transactions that have read it before, by the clock.
    let mut old = vault.app();
    old.ask("BEGIN ISOLATION LEVEL REPEATABLE READ");
    assert_eq!(old.ask("SELECT vault.read_secret('e'), vault.read_secret('e', 1)"), "two|one");
    let keys = cached(&vault);
    run_out(&mut s.root, "e", "expires_at");
    sqlstate!(old.try_ask("SELECT vault.read_secret('e')"), "P0002");
    assert_eq!(cached(&vault), keys - 1, "whoever finds it run out takes its key out of the cache");
    old.ask("ROLLBACK");
    invisible(&mut s, "e", "list_secrets");
    s.ops.ask("SELECT vault.put_secret('e', 'three')");
    assert_eq!((s.read("e"), s.states("e")), ("three".into(), "1 current".into()));
    s.ops.ask("SELECT vault.delete_secret('e')");

    // What runs out while it waits to be restored cannot be restored.
    s.ops.ask("SELECT vault.create_secret('both', 'v', expires_in => '1 hour'); SELECT vault.delete_secret('both', '1 day')");
    run_out(&mut s.root, "both", "expires_at");
    sqlstate!(s.ops.try_ask("SELECT vault.restore_secret('both')"), "P0002");
    s.ops.ask("SELECT vault.create_secret('both', 'w'); SELECT vault.delete_secret('both')");
    over(&mut s, "expires_at");
    a_real_second(&mut s);
    two_take_the_name(&vault, &mut s.root);
}

/// The clock itself, once.
fn a_real_second(s: &mut Sessions) {
    s.ops.ask("SELECT vault.create_secret('second', 'v', expires_in => '1 second')");
    s.root.ask("SELECT pg_sleep(1.1)");
    sqlstate!(s.app.try_ask("SELECT vault.read_secret('second')"), "P0002");
}

/// Two sessions take a name that is free again, one after the other: one of them gets it.
fn two_take_the_name(vault: &Vault<'_>, root: &mut Client) {
    use hyperion_vault_tests::threads::background;
    use hyperion_vault_tests::{PATIENCE, backend_pid, wait_for};
    let (mut first, mut second) = (vault.ops(), vault.ops());
    for (end, code) in [("COMMIT", Some("23505")), ("ROLLBACK", None)] {
        let name = format!("raced/{end}");
        first.ask(&format!("SELECT vault.create_secret('{name}', 'old', expires_in => '1 hour')"));
        let id = id_of(root, &name);
        run_out(root, &name, "expires_at");
        first.ask(&format!("BEGIN; SELECT vault.create_secret('{name}', 'first')"));
        let pid = backend_pid(&mut second);
        let sql = format!("SELECT vault.create_secret('{name}', 'second')");
        let waiting = background(move || (second.batch_execute(&sql), second));
        wait_for("the second to wait", PATIENCE, || {
            root.query_one("SELECT cardinality(pg_blocking_pids($1)) > 0", &[&pid]).unwrap().get(0)
        });
        first.ask(end);
        let (result, back) = waiting.finish(PATIENCE);
        second = back;
        match code {
            Some(code) => drop(sqlstate!(result, code, message: "already exists")),
            None => result.unwrap(),
        }
        let value = if code.is_some() { "first" } else { "second" };
        assert_eq!(vault.app().ask(&format!("SELECT vault.read_secret('{name}')")), value);
        assert_eq!(rows(root, &id), "0|0");
    }
}
