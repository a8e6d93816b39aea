//! Columns that a superuser adds to the tables: those that may be NULL are carried along, others are refused with what to
//! do about it.

use super::{TABLES, builder, call_everything, give_work, make_manager, until_worked};
use crate::audit::settle;
use hyperion_vault_tests::{Ask, Client, Cluster, PATIENCE, sqlstate, wait_for};

/// Columns of types of every length and alignment, some of them dropped again.
const ADDED: &str = "ALTER TABLE T ADD COLUMN x_name name, ADD COLUMN x_range tstzrange, ADD COLUMN x_floats float8[], ADD COLUMN x_bool boolean,
        ADD COLUMN x_gone int;
    ALTER TABLE T DROP COLUMN x_gone; ALTER TABLE T ADD COLUMN x_gone int;
    ALTER TABLE T ADD COLUMN x_text text DEFAULT 'of old rows', ADD COLUMN x_late numeric DEFAULT 1.5, ADD COLUMN x_char \"char\", ADD COLUMN x_two smallint;
    ALTER TABLE T DROP COLUMN x_floats, DROP COLUMN x_two; ALTER TABLE T ADD COLUMN x_floats float8[]";

const SET: &str = "x_name = 'n', x_range = '[2020-01-01,2021-01-01)', x_floats = '{1.5,2.5}', x_bool = true, x_gone = 7, x_char = 'c'";
const GET: &str =
    "concat_ws(' ', x_name, lower(x_range)::date, x_floats, x_bool, x_gone, x_char, x_text, x_late)";

fn add(root: &mut Client) {
    for table in TABLES {
        root.ask(&ADDED.replace(" T ", &format!(" vault.{table} ")));
    }
}

#[test]
fn columns_of_others_are_carried_along() {
    let cluster = builder().start();
    let vault = cluster.vault();
    let mut root = vault.root();
    make_manager(&mut root);
    root.ask(
        "SELECT vault.create_secret('old', 'one', grace_period => '1 day', generator => '{}'); SELECT vault.put_secret('old', 'two');
         SELECT vault.create_secret('older', 'one');
         SELECT vault.create_role('kept', permissions => '[{\"action\":\"read\",\"path\":\"x\"}]'); SELECT vault.bind_role('kept', 'app'); SELECT vault.create_token('kept', 'kept')",
    );
    give_work(&mut root, "w");
    add(&mut root);
    root.ask(&format!("UPDATE vault.secrets SET {SET} WHERE name = 'old'"));
    for table in ["secret_versions", "roles", "role_permissions", "role_bindings", "tokens"] {
        root.ask(&format!("UPDATE vault.{table} SET {SET}"));
    }

    // Everything goes on, of sessions from before and after.
    let mut manager = vault.session("manager");
    call_everything(&mut manager);
    call_everything(&mut root);
    give_work(&mut root, "v");
    until_worked(&vault, "w");
    until_worked(&vault, "v");

    let kept = "n 2020-01-01 {1.5,2.5} t 7 c of old rows 1.5";
    let of = |root: &mut Client, name: &str| {
        root.ask(&format!("SELECT {GET} FROM vault.secrets WHERE name = '{name}'"))
    };
    for (change, version) in [
        ("vault.put_secret('old', 'three')", "3"),
        ("vault.update_secret('old', description => 'd', metadata => '{\"a\":1}')", "3"),
        ("vault.update_secret('old', value => 'four', grace_period => '2 days')", "4"),
        ("vault.rotate_secret('old')", "5"),
        ("vault.roll_back_secret('old', 4)", "6"),
        ("vault.rename_secret('old', 'renamed')", ""),
        ("vault.rename_secret('renamed', 'old')", ""),
        ("vault.delete_secret('old', '1 day')", ""),
        ("vault.restore_secret('old')", ""),
    ] {
        manager.ask(&format!("SELECT {change}"));
        let name = if change.contains("'old', 'renamed'") { "renamed" } else { "old" };
        assert_eq!(of(&mut root, name), kept, "after {change}");
        if !version.is_empty() {
            assert_eq!(manager.ask("SELECT version FROM vault.list_secrets('old')"), version, "{change}");
        }
    }
    assert_eq!(manager.ask("SELECT vault.read_secret('old')"), "four");
    assert_eq!(manager.ask("SELECT vault.read_secret('old', 1)"), "one");
    // A default is a matter of INSERT statements: rows from before have it, as the server shows it, and new ones are NULL.
    manager.ask("SELECT vault.put_secret('older', 'two'); SELECT vault.put_secret('older', 'three')");
    assert_eq!(of(&mut root, "older"), "of old rows 1.5");
    manager.ask("SELECT vault.create_secret('new', 'one'); SELECT vault.put_secret('new', 'two')");
    for (table, condition) in [
        ("secrets", "name = 'new'"),
        ("secret_versions", "version = 5"),
        ("audit_log", "subject = 'new'"),
        ("roles", "name = 'new'"),
        ("role_permissions", "path = 'new'"),
        ("role_bindings", "pg_role = 'ops'"),
        ("tokens", "name = 'new'"),
    ] {
        if table == "roles" {
            manager.ask(
                "SELECT vault.create_role('new', permissions => '[{\"action\":\"read\",\"path\":\"new\"}]'); SELECT vault.bind_role('new', 'ops');
                 SELECT vault.create_token('new', 'new')",
            );
        }
        settle(&cluster);
        let rows = root.ask(&format!(
            "SELECT count(*) > 0, count(x_name) + count(x_range) + count(x_floats) + count(x_bool) + count(x_gone) + count(x_text) + count(x_late)
               FROM vault.{table} WHERE {condition}"
        ));
        assert_eq!(rows, "t|0", "{table}");
    }
    // Other tables' rows that stay keep what they had.
    assert_eq!(root.ask(&format!("SELECT {GET} FROM vault.secret_versions WHERE version = 1 AND secret_id = (SELECT id FROM vault.secrets WHERE name = 'old')")), kept);
    assert_eq!(root.ask(&format!("SELECT {GET} FROM vault.roles WHERE name = 'kept'")), kept);
    manager.ask("SELECT vault.set_role_permissions('kept', '[{\"action\":\"read\",\"path\":\"y\"}]')");
    assert_eq!(root.ask(&format!("SELECT {GET} FROM vault.tokens WHERE name = 'kept'")), kept);
    assert_eq!(root.ask(&format!("SELECT {GET} FROM vault.role_bindings WHERE pg_role = 'app'")), kept);
    // The time of a token's last use is noted in its row.
    let token = root.ask("SELECT vault.create_token('used', 'kept')");
    root.ask(&format!(
        "UPDATE vault.tokens SET {SET}, x_text = 'of old rows', x_late = 1.5 WHERE name = 'used'"
    ));
    root.ask(&format!("BEGIN; SELECT vault.authenticate('{token}'); COMMIT"));
    // The worker does so when it begins.
    root.ask("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'hyperion_vault maintenance'");
    wait_for("the use to be noted", PATIENCE, || {
        root.ask("SELECT last_used_at IS NOT NULL FROM vault.tokens WHERE name = 'used'") == "t"
    });
    assert_eq!(root.ask(&format!("SELECT {GET} FROM vault.tokens WHERE name = 'used'")), kept);
}

/// A column that has to have a value that the extension does not know. What adds it, and what takes it away.
const REFUSED: [(&str, &str); 5] = [
    ("ADD COLUMN x int NOT NULL DEFAULT 1", "DROP COLUMN x"),
    ("ADD COLUMN x int GENERATED ALWAYS AS (1) STORED", "DROP COLUMN x"),
    ("ADD COLUMN x public.required DEFAULT 1", "DROP COLUMN x"),
    ("ADD COLUMN x public.nested DEFAULT 1", "DROP COLUMN x"),
    ("ADD COLUMN x int GENERATED BY DEFAULT AS IDENTITY", "DROP COLUMN x"),
];

#[test]
fn columns_that_need_a_value_are_refused() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut root = vault.root();
    make_manager(&mut root);
    let mut manager = vault.session("manager");
    root.ask("CREATE DOMAIN public.required AS int NOT NULL; CREATE DOMAIN public.nested AS public.required CHECK (value > 0)");
    root.ask("SELECT vault.create_secret('a', 'one', grace_period => '1 day', generator => '{}'); SELECT vault.create_role('r')");
    for (table, writes) in [
        (
            "secrets",
            &[
                "SELECT vault.create_secret('b', 'v')",
                "SELECT vault.put_secret('a', 'v')",
                "SELECT vault.update_secret('a', description => 'd')",
                "SELECT vault.rotate_secret('a')",
                "SELECT vault.rename_secret('a', 'c')",
                "SELECT vault.delete_secret('a', '1 day')",
            ][..],
        ),
        ("secret_versions", &["SELECT vault.put_secret('a', 'v')", "SELECT vault.rotate_secret('a')"][..]),
        ("roles", &["SELECT vault.create_role('b')"][..]),
        (
            "role_permissions",
            &["SELECT vault.set_role_permissions('r', '[{\"action\":\"read\",\"path\":\"y\"}]')"][..],
        ),
        ("role_bindings", &["SELECT vault.bind_role('r', 'app')"][..]),
        ("tokens", &["SELECT vault.create_token('t', 'r')"][..]),
    ] {
        for (add, drop) in REFUSED {
            root.ask(&format!("ALTER TABLE vault.{table} {add}"));
            for write in writes {
                sqlstate!(manager.try_ask(write), "55000", message: table, detail: "\"x\"", hint: "column");
            }
            // Reading goes on.
            assert_eq!(manager.ask("SELECT vault.read_secret('a')"), "one", "{table} {add}");
            assert_eq!(manager.ask("SELECT count(*) FROM vault.list_secrets()"), "1", "{table} {add}");
            assert_eq!(
                manager.ask("SELECT count(*) FROM vault.list_roles() WHERE name = 'r'"),
                "1",
                "{table} {add}"
            );
            root.ask(&format!("ALTER TABLE vault.{table} {drop}"));
        }
    }
    manager.ask(
        "SELECT vault.put_secret('a', 'two'); SELECT vault.create_secret('b', 'v'); SELECT vault.create_role('b'); SELECT vault.bind_role('r', 'app');
         SELECT vault.create_token('t', 'r'); SELECT vault.set_role_permissions('r', '[{\"action\":\"read\",\"path\":\"y\"}]')",
    );
    // The relay says what is in its way, keeps the records, and goes on afterwards.
    settle(&cluster);
    for (add, drop) in REFUSED {
        root.ask(&format!("ALTER TABLE vault.audit_log {add}; SELECT vault.put_secret('a', 'three')"));
        let mut shown = String::new();
        wait_for("the relay to say so", PATIENCE, || {
            shown = crate::watch::status(&mut root)["workers"].to_string();
            shown.contains("audit_log") && shown.contains('x')
        });
        root.ask(&format!("ALTER TABLE vault.audit_log {drop}"));
        settle(&cluster);
    }
    assert_eq!(
        root.ask("SELECT count(DISTINCT version) FROM vault.audit_log WHERE subject = 'a' AND function = 'put_secret' AND outcome IN ('ok', 'pending')"),
        "6"
    );
}

/// Rows of another kind of table are not touched, whatever that kind promises.
#[test]
fn tables_of_another_access_method_are_refused() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut root = vault.root();
    root.ask(
        "SELECT vault.create_secret('a', 'one', generator => '{}'); SELECT vault.create_role('r');
         CREATE ACCESS METHOD other TYPE TABLE HANDLER heap_tableam_handler",
    );
    let mut old = vault.session("postgres");
    let read = "SELECT vault.read_secret('a')";
    assert_eq!(old.ask(read), "one");
    for (table, calls) in [
        (
            "secrets",
            &[
                read,
                "SELECT vault.create_secret('b', 'v')",
                "SELECT vault.put_secret('a', 'v')",
                "SELECT vault.verify('a', 'one')",
                "SELECT vault.delete_secret('a')",
                "SELECT * FROM vault.list_secrets()",
                "SELECT * FROM vault.decrypted_secrets",
                "SELECT vault.export_sealed()",
            ][..],
        ),
        ("secret_versions", &["SELECT vault.put_secret('a', 'v')", "SELECT vault.read_secret('a', 7)"][..]),
        ("vault_meta", &["SELECT vault.export_sealed()"][..]),
        ("roles", &["SELECT vault.create_role('b')", "SELECT * FROM vault.list_roles()"][..]),
        (
            "role_permissions",
            &["SELECT vault.set_role_permissions('r', '[{\"action\":\"read\",\"path\":\"y\"}]')"][..],
        ),
        ("role_bindings", &["SELECT vault.bind_role('r', 'app')"][..]),
        ("tokens", &["SELECT vault.create_token('t', 'r')", "SELECT * FROM vault.list_tokens()"][..]),
    ] {
        root.ask(&format!("ALTER TABLE vault.{table} SET ACCESS METHOD other"));
        for call in calls {
            for client in [&mut old, &mut vault.root()] {
                let message = format!("vault.{table}");
                sqlstate!(client.try_ask(call), "55000", message: &message, hint: "SET ACCESS METHOD heap");
            }
        }
        root.ask(&format!("ALTER TABLE vault.{table} SET ACCESS METHOD heap"));
        assert_eq!(old.ask(read), "one", "mended as the hint says: {table}");
    }
    assert_eq!(
        root.ask("SELECT vault.put_secret('a', 'two'); SELECT vault.read_secret('a', 2)").lines().last(),
        Some("two")
    );
}
