//! `roll_back_secret`: an old value becomes the newest version.

use crate::api::Sessions;
use hyperion_vault_tests::{Ask, Cluster, sqlstate};

#[test]
fn roll_back() {
    let cluster = Cluster::builder().start();
    let mut s = Sessions::of(&cluster.vault());
    s.ops.ask("SELECT vault.create_secret('r', 'one', keep_versions => 2)");
    for value in ["two", "three", "four"] {
        s.ops.ask(&format!("SELECT vault.put_secret('r', '{value}')"));
    }
    assert_eq!(s.states("r"), "4 current, 3 retained, 2 retained");
    // Retained: its value cannot be read, and comes back all the same. Purged and never made: not there.
    sqlstate!(s.app.try_ask("SELECT vault.read_secret('r', 2)"), "P0002");
    for version in [1, 0, -1, 5, i32::MAX] {
        let sql = format!("SELECT vault.roll_back_secret('r', {version})");
        sqlstate!(s.ops.try_ask(&sql), "P0002", message: "no version", detail: "purged", hint: "list_versions");
    }
    sqlstate!(s.ops.try_ask("SELECT vault.roll_back_secret('r', 4)"), "55000", message: "at version 4 already");
    let info = "SELECT i.version, i.format, position('two' in i::text), i.updated_at = i.version_created_at
                  FROM vault.roll_back_secret('r', 2) i";
    assert_eq!(s.ops.ask(info), "5|opaque|0|t");
    assert_eq!((s.read("r"), s.states("r")), ("two".into(), "5 current, 4 retained, 3 retained".into()));
    // Version 2, whose value lives on, is gone itself.
    sqlstate!(s.ops.try_ask("SELECT vault.roll_back_secret('r', 2)"), "P0002");
    // A key, a nonce and a place of its own: no two rows look alike.
    s.ops.ask("SELECT vault.update_secret('r', keep_versions => 9)");
    s.ops.ask("SELECT vault.roll_back_secret('r', 4); SELECT vault.roll_back_secret('r', 4)");
    let distinct = "SELECT count(*), count(DISTINCT wrapped_dek), count(DISTINCT version_id), count(DISTINCT substr(sealed, 2, 24))
                      FROM (SELECT wrapped_dek, version_id, sealed FROM vault.secrets WHERE name = 'r'
                            UNION ALL SELECT wrapped_dek, version_id, sealed FROM vault.secret_versions) v";
    assert_eq!(s.root.ask(distinct), "5|5|5|5");
    assert_eq!(s.read("r"), "four");

    in_grace_and_undone(&mut s);
    a_login_as_a_whole(&mut s);

    s.ops.ask("SELECT vault.update_secret('r', keep_versions => 0)");
    assert_eq!(s.states("r"), "7 current", "keep_versions 0 keeps none");
    sqlstate!(s.ops.try_ask("SELECT vault.roll_back_secret('r', 6)"), "P0002");
    sqlstate!(s.ops.try_ask("SELECT vault.roll_back_secret('missing', 1)"), "P0002", message: "does not exist");
    sqlstate!(s.app.try_ask("SELECT vault.roll_back_secret('r', 1)"), "42501");
}

fn in_grace_and_undone(s: &mut Sessions) {
    s.ops.ask("SELECT vault.create_secret('g', 'one', grace_period => '1 hour')");
    s.ops.ask("SELECT vault.put_secret('g', 'bad')");
    s.ops.ask("BEGIN; SELECT vault.roll_back_secret('g', 1); ROLLBACK");
    assert_eq!((s.read("g"), s.states("g")), ("bad".into(), "2 current, 1 grace".into()));
    s.ops.ask("SELECT vault.roll_back_secret('g', 1)");
    assert_eq!((s.read("g"), s.states("g")), ("one".into(), "3 current, 2 grace, 1 grace".into()));
    assert_eq!((s.verify("g", "bad"), s.verify("g", "one")), ("true|2".into(), "true|3".into()));
    // An automatic one is due an interval after it.
    s.ops.ask("SELECT vault.create_secret('auto', kind => 'automatic', rotation_interval => '1 day')");
    s.ops.ask("SELECT vault.rotate_secret('auto')");
    let due = "SELECT version, next_rotation_at - version_created_at FROM vault.roll_back_secret('auto', 1)";
    assert_eq!(s.ops.ask(due), "3|1 day");
}

fn a_login_as_a_whole(s: &mut Sessions) {
    s.ops.ask(
        "SELECT vault.create_secret('l', username => 'u1', password => 'p1');
               SELECT vault.update_secret('l', username => 'u2', password => 'p2');
               SELECT vault.roll_back_secret('l', 1)",
    );
    assert_eq!(s.app.ask("SELECT version, username, password FROM vault.get_secret('l')"), "3|u1|p1");
}
