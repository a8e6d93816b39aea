//! Bad input: each with its SQLSTATE, its message and a hint that says what to do. Runs in the test process.
//!
//! One table, so that a new function finds its place in it. Two rules hold for every row: the error leaves the vault
//! as it was, and it repeats no value (who swaps two arguments must not find the secret in the log).

mod cases;

use cases::{ACCESS, READERS, WRITERS};
use hyperion_vault_tests::{Ask, Client, Cluster, Vault, expect_error, sqlstate};

/// Stands wherever a value goes; must never come back.
const VALUE: &str = "cAnArY-in-the-wrong-place";

/// Call, SQLSTATE, part of the message, part of the hint.
type Case<'a> = (&'a str, &'a str, &'a str, &'a str);

fn table(text: &str) -> impl Iterator<Item = Case<'_>> {
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(|line| {
        let mut columns = line.split('|').map(str::trim);
        let mut next = || columns.next().unwrap_or_else(|| panic!("{line} lacks a column"));
        (next(), next(), next(), next())
    })
}

#[track_caller]
fn refused(client: &mut Client, (call, code, message, hint): Case<'_>) {
    let sql = format!("SELECT vault.{}", call.replace("$V", &format!("'{VALUE}'")));
    let result = client.try_ask(&sql);
    assert!(result.is_err(), "{call} succeeded");
    let error = expect_error(result, code);
    let hint = if hint == "-" { "" } else { hint };
    let (said, advice) = (error.message(), error.hint().unwrap_or_default());
    assert!(said.contains(message), "{call}: message {said:?}");
    assert!(advice.contains(hint) && advice.is_empty() == hint.is_empty(), "{call}: hint {advice:?}");
    assert!(!format!("{error:?}").contains(VALUE), "{call}: the error repeats the value");
    let lower = !said.starts_with(char::is_uppercase) && !said.ends_with('.');
    assert!(lower, "{call}: not the server's style: {said:?}");
    // The server's own errors (22P02, 22021, …) have no hint; ours always have, as a sentence.
    assert!(advice.is_empty() || advice.ends_with('.'), "{call}: hint {advice:?}");
}

/// What must not change: everything the vault holds.
fn state(root: &mut Client) -> String {
    root.ask(
        "SELECT s::text FROM vault.secrets s UNION ALL SELECT v::text FROM vault.secret_versions v
         UNION ALL SELECT r::text FROM vault.roles r UNION ALL SELECT p::text FROM vault.role_permissions p
         UNION ALL SELECT b::text FROM vault.role_bindings b UNION ALL SELECT t::text FROM vault.tokens t ORDER BY 1",
    )
}

fn prepared(vault: &Vault<'_>) -> (Client, Client, Client) {
    let (app, mut ops, root) = (vault.app(), vault.ops(), vault.root());
    ops.ask("SELECT vault.create_secret('s', 'v', grace_period => '1 hour', keep_versions => 3)");
    ops.ask("SELECT vault.put_secret('s', 'w')");
    ops.ask("SELECT vault.create_secret('login', username => 'u', password => 'p')");
    ops.ask("SELECT vault.create_role('r'), vault.create_token('t', 'r')");
    (app, ops, root)
}

#[test]
fn names() {
    let cluster = Cluster::builder().start();
    let (mut app, mut ops, mut root) = prepared(&cluster.vault());
    let before = state(&mut root);
    let long = "x".repeat(513);
    let deep = format!("{}é", "x".repeat(511));
    let slashes = "must not contain an empty segment";
    let dots = "must not contain \".\" or \"..\" as a segment";
    let invisible = "contains a control or invisible character";
    let bad = [
        ("", "must not be empty"),
        (long.as_str(), "is too long"),
        (deep.as_str(), "is too long"),
        ("/a", "must not start with \"/\""),
        ("/", "must not start with \"/\""),
        ("a/", "must not end with \"/\""),
        ("a//b", slashes),
        ("..", dots),
        (".", dots),
        ("a/../b", dots),
        ("../a", dots),
        ("a/.", dots),
        ("a*", "must not contain \"*\""),
        ("*", "must not contain \"*\""),
        ("a\nb", invisible),
        ("\t", invisible),
        ("\u{7f}", invisible),
        ("a\u{85}", invisible),
        ("\u{202e}a", invisible),
        ("a\u{200b}", invisible),
        ("\u{feff}a", invisible),
        ("\u{2028}", invisible),
    ];
    let readers = [
        "read_secret($1)",
        "read_secret_bytes($1)",
        "get_secret($1)",
        "verify($1, 'v')",
        "verify_bytes($1, 'v')",
        "list_versions($1)",
    ];
    let writers = [
        "create_secret($1, 'v')",
        "put_secret($1, 'v')",
        "update_secret($1, 'v')",
        "create_secret_bytes($1, 'v')",
        "put_secret_bytes($1, 'v')",
        "rotate_secret($1)",
        "roll_back_secret($1, 1)",
        "delete_secret($1)",
        "delete_secret($1, '1 day')",
        "restore_secret($1)",
    ];
    for (name, message) in bad {
        for (client, calls) in [(&mut app, &readers[..]), (&mut ops, &writers[..])] {
            for call in calls {
                let result = client.query(&format!("SELECT vault.{call}"), &[&name]);
                let error = sqlstate!(result, "22023", message: message, hint: "such as db/password");
                assert!(error.message().starts_with("secret name "), "{call} {name:?}: {error:?}");
            }
        }
    }
    for (client, calls) in [(&mut app, &readers[..]), (&mut ops, &writers[..])] {
        for call in calls {
            let sql = format!("SELECT vault.{}", call.replace("$1", "NULL"));
            sqlstate!(client.try_ask(&sql), "22023", message: "name must not be null", hint: "Pass a value for name");
            // Bytes that are no UTF-8 do not get past the server.
            let sql = format!("SELECT vault.{}", call.replace("$1", "E'\\xff'"));
            sqlstate!(client.try_ask(&sql), "22021", message: "invalid byte sequence");
            let sql = format!("SELECT vault.{}", call.replace("$1", "'missing'"));
            if !call.starts_with("create") && !call.starts_with("put") {
                sqlstate!(client.try_ask(&sql), "P0002", message: "secret \"missing\" does not exist", hint: "list_secrets");
            }
        }
    }
    assert_eq!(state(&mut root), before);
    // And what is allowed: the longest, dots inside segments, blanks, other scripts, joiners.
    for name in [
        "x".repeat(512),
        format!("{}é", "x".repeat(510)),
        "a.b/.c/..d/e..".into(),
        " ".into(),
        "Ключ/鍵".into(),
        "می\u{200c}خواهم".into(),
        "%_\\'\"$1;--".into(),
    ] {
        ops.execute("SELECT vault.create_secret($1, 'found')", &[&name]).unwrap();
        let value: String = app.query_one("SELECT vault.read_secret($1)", &[&name]).unwrap().get(0);
        assert_eq!(value, "found");
        ops.execute("SELECT vault.delete_secret($1)", &[&name]).unwrap();
    }
    assert_eq!(state(&mut root), before);
}

#[test]
fn arguments() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let (mut app, mut ops, mut root) = prepared(&vault);
    let before = state(&mut root);
    assert_eq!((table(WRITERS).count(), table(READERS).count(), table(ACCESS).count()), (142, 34, 64));
    for case in table(WRITERS).chain(table(ACCESS)) {
        refused(&mut ops, case);
    }
    for case in table(READERS) {
        refused(&mut app, case);
    }
    // Infinite intervals exist from 17 on; before, the server refuses the word.
    for (interval, message, hint) in
        [("infinity", "is too long", "36500 days"), ("-infinity", "must not be negative", "'30 days'")]
    {
        for property in ["rotation_interval", "grace_period", "expires_in"] {
            let sql = format!("SELECT vault.update_secret('s', {property} => '{interval}')");
            if cluster.toolchain().major >= 17 {
                sqlstate!(ops.try_ask(&sql), "22023", message: message, hint: hint);
            } else {
                sqlstate!(ops.try_ask(&sql), "22007");
            }
        }
    }
    assert_eq!(state(&mut root), before, "a refused call changed something");
    assert!(
        !cluster.log().lines().any(|line| line.contains(VALUE)
            && !line.contains("STATEMENT:")
            && !line.contains("SELECT vault."))
    );
    // The edges on the good side.
    for call in [
        "create_secret('n', 'v', rotation_interval => '1 s', grace_period => '0', keep_versions => 0)",
        "update_secret('n', rotation_interval => '36500 days', grace_period => '100 years -25 days', keep_versions => 1000)",
        "update_secret('n', description => repeat('d', 4096), metadata => jsonb_build_object('k', repeat('x', 65527)))",
        "update_secret('n', description => '', metadata => '{}', generator => '{}')",
        "update_secret('n', generator => '{\"length\": 4096, \"charset\": \"ab\", \"require\": []}')",
        "update_secret('n', allowed_ips => '{0.0.0.0/0,::/0}', reset => '{}')",
        "rotate_secret('n')",
        "update_secret('login', username => repeat('u', 1024))",
        "list_secrets(repeat('*', 1024), max_rows => 10000)",
        "list_secrets('no/such//thing', after => '')",
    ] {
        ops.ask(&format!("SELECT vault.{call}"));
    }
    ops.ask("SELECT vault.delete_secret('n')");

    // Without any role of the vault the server itself refuses; vault_user may ask, and is refused with the reason.
    let mut nobody = vault.nobody();
    sqlstate!(nobody.try_ask("SELECT vault.read_secret('s')"), "42501", message: "permission denied for schema vault");
    root.ask("GRANT vault_user TO nobody_special");
    for (call, hint) in [
        ("read_secret('s')", "vault_reader"),
        ("get_secret('n')", "vault_reader"),
        ("verify('s', 'v')", "vault_reader"),
        ("list_secrets()", "vault_reader or vault_admin"),
        ("list_versions('n')", "vault_reader or vault_admin"),
        ("create_secret('s', $V)", "vault_admin"),
        ("delete_secret('n')", "vault_admin"),
    ] {
        refused(&mut nobody, (call, "42501", "permission denied to", hint));
    }
}

#[test]
fn read_only_transactions_and_expired_versions() {
    let cluster = Cluster::builder().start();
    let (mut app, mut ops, mut root) = prepared(&cluster.vault());
    let before = state(&mut root);
    let writers = [
        "create_secret('n', 'v')",
        "put_secret('n', 'v')",
        "put_secret('s', 'v')",
        "update_secret('s', 'v')",
        "update_secret('s', description => 'd')",
        "rotate_secret('s')",
        "delete_secret('s')",
        "delete_secret('s', '1 day')",
        "restore_secret('s')",
        "roll_back_secret('s', 1)",
        "put_secret_bytes('n', 'v')",
        // Refused as a write, not as a missing secret.
        "delete_secret('missing')",
    ];
    let calls = || provider_calls(&cluster);
    let asked = calls();
    for call in writers {
        ops.ask("BEGIN READ ONLY");
        let error = sqlstate!(ops.try_ask(&format!("SELECT vault.{call}")), "25006", message: "read-only transaction", hint: "READ WRITE");
        assert!(error.message().starts_with("the vault cannot be changed"));
        ops.ask("ROLLBACK");
        ops.ask("SET default_transaction_read_only = on");
        sqlstate!(ops.try_ask(&format!("SELECT vault.{call}")), "25006", hint: "READ WRITE");
        ops.ask("BEGIN READ WRITE; SELECT vault.put_secret('other', 'v'); ROLLBACK; RESET default_transaction_read_only");
    }
    // Refused before the key service was asked: only the puts above asked it.
    assert_eq!(calls(), asked + writers.len() as i64);
    assert_eq!(state(&mut root), before);
    app.ask("SET default_transaction_read_only = on");
    assert_eq!(app.ask("SELECT vault.read_secret('s'), (vault.verify('s', 'v')).version, (SELECT count(*) FROM vault.list_secrets())"), "w|1|2");
    assert_eq!(app.ask("SELECT value FROM vault.get_secret('s', 1)"), "v");
    assert_eq!(app.ask("SELECT count(*) FROM vault.list_versions('s')"), "2");
    assert_eq!(app.ask("SELECT vault.status() ->> 'secrets'"), "2");

    // Out of grace: not there any more for readers, whatever they ask with.
    root.ask("UPDATE vault.secret_versions SET expires_at = clock_timestamp()");
    for call in ["read_secret('s', 1)", "get_secret('s', 1)"] {
        refused(&mut app, (call, "P0002", "no readable version 1", "list_versions"));
    }
    assert_eq!(app.ask("SELECT * FROM vault.verify('s', 'v')"), "f|∅");
    // An expiry in the middle of a statement's transaction counts too: the clock decides, not the transaction.
    root.ask("UPDATE vault.secret_versions SET expires_at = clock_timestamp() + interval '1 hour'");
    app.ask("BEGIN ISOLATION LEVEL REPEATABLE READ");
    assert_eq!(app.ask("SELECT vault.read_secret('s', 1)"), "v");
    root.ask("UPDATE vault.secret_versions SET expires_at = clock_timestamp()");
    refused(&mut app, ("read_secret('s', 1)", "P0002", "no readable version 1", "list_versions"));
    app.ask("ROLLBACK");
}

/// Calls the key service has had so far.
fn provider_calls(cluster: &Cluster) -> i64 {
    let sql = "SELECT (vault.status() -> 'kms' ->> 'calls')";
    cluster.superuser().ask(sql).parse().expect("a number")
}
