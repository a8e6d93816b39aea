//! `rename_secret`: every version moves, none stays readable where it was, and races end one way or the other.

use super::{id_of, rows, run_out};
use crate::api::Sessions;
use hyperion_vault_tests::threads::background;
use hyperion_vault_tests::{Ask, Client, Cluster, PATIENCE, Vault, backend_pid, sqlstate, wait_for};

#[test]
fn rename() {
    let cluster = Cluster::builder().conf("hyperion_vault.keep_versions", "2").start();
    let vault = cluster.vault();
    let mut s = Sessions::of(&vault);
    s.root.ask("CREATE ROLE t_both LOGIN IN ROLE vault_reader, vault_admin");
    let mut both = vault.session("t_both");
    s.ops.ask("SELECT vault.create_secret('a', 'one', grace_period => '1 hour', description => 'd')");
    s.ops.ask("SELECT vault.put_secret('a', 'two'); SELECT vault.put_secret('a', 'three')");
    s.expire("a");
    s.ops.ask("SELECT vault.put_secret('a', 'four')");
    assert_eq!(s.states("a"), "4 current, 3 grace, 2 retained, 1 retained");
    let id = id_of(&mut s.root, "a");
    let fixed = "SELECT string_agg(t::text, '|' ORDER BY version) FROM (
        SELECT version, version_id, wrapped_dek, created_at, superseded_at, expires_at FROM vault.secret_versions
        UNION ALL SELECT version, version_id, wrapped_dek, version_created_at, NULL, NULL FROM vault.secrets) t";
    let before = s.root.ask(fixed);
    let sealed = "SELECT string_agg(encode(sealed, 'hex'), ' ') FROM
        (SELECT sealed FROM vault.secrets UNION ALL SELECT sealed FROM vault.secret_versions) t";
    let sealed_before = s.root.ask(sealed);

    both.ask("BEGIN; SELECT vault.rename_secret('a', 'undone'); ROLLBACK");
    assert_eq!(s.read("a"), "four");
    let info = "SELECT name, version, description, id::text, updated_at > version_created_at FROM vault.rename_secret('a', 'team/b')";
    assert_eq!(both.ask(info), format!("team/b|4|d|{id}|t"));
    assert_eq!(s.root.ask(fixed), before, "numbers, keys and times stay");
    let sealed_after = s.root.ask(sealed);
    assert!(sealed_after.split(' ').all(|one| !sealed_before.contains(one)), "each version has a new nonce");
    sqlstate!(s.app.try_ask("SELECT vault.read_secret('a')"), "P0002");
    assert_eq!(
        (s.read("team/b"), s.states("team/b")),
        ("four".into(), "4 current, 3 grace, 2 retained, 1 retained".into())
    );
    assert_eq!(s.app.ask("SELECT vault.read_secret('team/b', 3)"), "three");
    assert_eq!(s.verify("team/b", "three"), "true|3");
    // What is retained was sealed again too: else it could not be rolled back to.
    s.ops.ask("SELECT vault.roll_back_secret('team/b', 2)");
    assert_eq!(s.read("team/b"), "two");
    // With no key in the cache: all are fetched.
    cluster.restart(hyperion_vault_tests::StopMode::Fast);
    let mut s = Sessions::of(&vault);
    let mut both = vault.session("t_both");
    both.ask("SELECT vault.rename_secret('team/b', 'c')");
    assert_eq!((s.read("c"), id_of(&mut s.root, "c")), ("two".into(), id.clone()));

    other_formats(&mut s, &mut both);
    refusals(&mut s, &mut both);
    assert_eq!(rows(&mut s.root, &id), "1|4");
    races(&vault);
}

fn other_formats(s: &mut Sessions, both: &mut Client) {
    s.ops.ask(r"SELECT vault.create_secret_bytes('bin', '\x00ff'); SELECT vault.create_secret('log', username => 'u', password => 'p')");
    both.ask("SELECT vault.rename_secret('bin', 'bin2'), vault.rename_secret('log', 'log2')");
    assert_eq!(
        s.app.ask("SELECT vault.read_secret_bytes('bin2'), username, password FROM vault.get_secret('log2')"),
        r"\x00ff|u|p"
    );
}

fn refusals(s: &mut Sessions, both: &mut Client) {
    s.ops.ask("SELECT vault.create_secret('taken', 'v'); SELECT vault.create_secret('kept', 'v'); SELECT vault.delete_secret('kept', '1 day')");
    s.ops.ask("SELECT vault.create_secret('over', 'v', expires_in => '1 hour')");
    run_out(&mut s.root, "over", "expires_at");
    let over = id_of(&mut s.root, "over");
    for (from, to, code, hint) in [
        ("c", "taken", "23505", "put_secret"),
        ("c", "kept", "23505", "restore_secret"),
        ("c", "c", "22023", "another name"),
        ("missing", "n", "P0002", "list_secrets"),
        ("kept", "n", "P0002", "restore_secret"),
        ("over", "n", "P0002", "list_secrets"),
    ] {
        sqlstate!(both.try_ask(&format!("SELECT vault.rename_secret('{from}', '{to}')")), code, hint: hint);
    }
    // Neither managing nor reading alone is enough.
    sqlstate!(s.ops.try_ask("SELECT vault.rename_secret('c', 'n')"), "42501", message: "to read secret \"c\"");
    sqlstate!(s.app.try_ask("SELECT vault.rename_secret('c', 'n')"), "42501", message: "to delete secret \"c\"");
    // A name whose secret has run out is free.
    both.ask("SELECT vault.rename_secret('c', 'over')");
    assert_eq!((s.read("over"), rows(&mut s.root, &over)), ("two".into(), "0|0".into()));
}

fn races(vault: &Vault<'_>) {
    let mut root = vault.root();
    // Somebody creates the new name, not yet committed; somebody writes the old one; two renames cross.
    for (i, (first, second, end, code)) in [
        ("create_secret('N/b', 'first')", "rename_secret('N/a', 'N/b')", "COMMIT", Some("23505")),
        ("create_secret('N/b', 'first')", "rename_secret('N/a', 'N/b')", "ROLLBACK", None),
        ("put_secret('N/a', 'newer')", "rename_secret('N/a', 'N/b')", "COMMIT", None),
        ("delete_secret('N/a')", "rename_secret('N/a', 'N/b')", "COMMIT", Some("P0002")),
        ("rename_secret('N/a', 'N/b')", "rename_secret('N/a', 'N/c')", "COMMIT", Some("P0002")),
        ("rename_secret('N/a', 'N/b')", "put_secret('N/a', 'another')", "COMMIT", None),
        ("rename_secret('N/a', 'N/b')", "create_secret('N/b', 'x')", "COMMIT", Some("23505")),
    ]
    .into_iter()
    .enumerate()
    {
        let call = |sql: &str| format!("SELECT vault.{}", sql.replace('N', &format!("race/{i}")));
        root.ask(&call("create_secret('N/a', 'value')"));
        let (mut one, mut other) = (vault.root(), vault.root());
        one.ask(&format!("BEGIN; {}", call(first)));
        let (pid, sql) = (backend_pid(&mut other), call(second));
        let waiting = background(move || other.batch_execute(&sql));
        wait_for("the second to wait", PATIENCE, || {
            root.query_one("SELECT cardinality(pg_blocking_pids($1)) > 0", &[&pid]).unwrap().get(0)
        });
        one.ask(end);
        let result = waiting.finish(PATIENCE);
        match code {
            Some("23505") => drop(sqlstate!(result, "23505", message: "already exists", hint: "put_secret")),
            Some(code) => drop(sqlstate!(result, code)),
            None => result.unwrap_or_else(|error| panic!("{first} / {second}: {error:?}")),
        }
        let names = format!(
            "SELECT string_agg(name || '=' || vault.read_secret(name), ' ' ORDER BY name) FROM vault.list_secrets('race/{i}/*')"
        );
        let expected = match i {
            0 => "N/a=value N/b=first",
            1 => "N/b=value",
            2 => "N/b=newer",
            3 => "∅",
            4 => "N/b=value",
            5 => "N/a=another N/b=value",
            _ => "N/b=value",
        };
        assert_eq!(root.ask(&names), expected.replace('N', &format!("race/{i}")), "{first} / {second}");
    }
}
