//! No function of the API is without a record, and each says what it is about.

use super::{LAST_WORDS, log};
use crate::watch::Waiter;
use hyperion_vault_tests::{Ask, Cluster, NoTls, PATIENCE, sqlstate, wait_for};
use std::collections::BTreeSet;

/// Every function of the API by name, with a call of it, by a superuser, in this order; and its action, subject, version
/// and outcome in the log. A set-returning or many-secret function may leave several.
pub const CALLS: &[(&str, &str, &[&str])] = &[
    ("create_secret", "SELECT vault.create_secret('a/x', 'v')", &["create|a/x|1|ok|∅"]),
    ("create_secret_bytes", "SELECT vault.create_secret_bytes('a/b', '\\x00')", &["create|a/b|1|ok|∅"]),
    ("put_secret", "SELECT vault.put_secret('a/x', 'w')", &["put|a/x|2|ok|∅"]),
    ("put_secret_bytes", "SELECT vault.put_secret_bytes('a/b', '\\x01')", &["put|a/b|2|ok|∅"]),
    (
        "update_secret",
        "SELECT vault.update_secret('a/x', grace_period => '1 day', generator => '{}')",
        &["update|a/x|∅|ok|∅"],
    ),
    ("rotate_secret", "SELECT vault.rotate_secret('a/x')", &["rotate|a/x|3|ok|∅"]),
    ("roll_back_secret", "SELECT vault.roll_back_secret('a/x', 1)", &["roll_back|a/x|4|ok|∅"]),
    ("rename_secret", "SELECT vault.rename_secret('a/x', 'a/y')", &["rename|a/x|∅|ok|new name: a/y"]),
    ("delete_secret", "SELECT vault.delete_secret('a/b', '1 day')", &["delete|a/b|∅|ok|∅"]),
    ("restore_secret", "SELECT vault.restore_secret('a/b')", &["restore|a/b|∅|ok|∅"]),
    ("read_secret", "SELECT vault.read_secret('a/y')", &["read|a/y|4|ok|∅"]),
    ("read_secret_bytes", "SELECT vault.read_secret_bytes('a/b')", &["read|a/b|2|ok|∅"]),
    ("get_secret", "SELECT * FROM vault.get_secret('a/y', 3)", &["read|a/y|3|ok|∅"]),
    (
        "read_secrets",
        "SELECT * FROM vault.read_secrets('{a/b,none,a/y}')",
        &["read|a/b|2|ok|names: 3", "read|a/y|4|ok|names: 3"],
    ),
    ("verify", "SELECT * FROM vault.verify('a/y', 'v')", &["verify|a/y|4|ok|match"]),
    ("verify_bytes", "SELECT * FROM vault.verify_bytes('a/b', '\\x02')", &["verify|a/b|2|ok|no match"]),
    ("list_secrets", "SELECT * FROM vault.list_secrets('a/*')", &["list|a/*|∅|ok|∅"]),
    ("list_versions", "SELECT * FROM vault.list_versions('a/y')", &["list|a/y|∅|ok|∅"]),
    ("status", "SELECT vault.status()", &["status|∅|∅|ok|∅"]),
    ("export_sealed", "SELECT vault.export_sealed()", &["export|∅|∅|ok|secrets: 2"]),
    (
        "import_sealed",
        "SELECT vault.import_sealed(jsonb_set(vault.export_sealed(), '{secrets}', '[]'))",
        &["import|∅|∅|ok|secrets: 0"],
    ),
    (
        "create_role",
        "SELECT vault.create_role('r', permissions => '[{\"action\": \"read\", \"path\": \"a/*\"}]')",
        &["create_role|r|∅|ok|∅"],
    ),
    ("set_role_permissions", "SELECT vault.set_role_permissions('r', '[]')", &["set_permissions|r|∅|ok|∅"]),
    ("bind_role", "SELECT vault.bind_role('r', 'app')", &["bind_role|r|∅|ok|Postgres role: app"]),
    ("unbind_role", "SELECT vault.unbind_role('r', 'app')", &["unbind_role|r|∅|ok|Postgres role: app"]),
    ("rebind_roles", "SELECT * FROM vault.rebind_roles()", &["rebind_roles|∅|∅|ok|∅"]),
    ("list_roles", "SELECT * FROM vault.list_roles()", &["list_roles|∅|∅|ok|∅"]),
    ("can", "SELECT vault.can('read', 'a/*')", &["can|a/*|∅|ok|∅"]),
    ("create_token", "SELECT vault.create_token('t', 'r')", &["create_token|t|∅|ok|role: r"]),
    ("list_tokens", "SELECT * FROM vault.list_tokens()", &["list_tokens|∅|∅|ok|∅"]),
    (
        "authenticate",
        "BEGIN; SELECT vault.authenticate(vault.create_token('u', 'r')); COMMIT",
        &["authenticate|u|∅|ok|∅"],
    ),
    ("revoke_token", "SELECT vault.revoke_token('t')", &["revoke_token|t|∅|ok|∅"]),
    ("drop_role", "SELECT vault.drop_role('r')", &["drop_role|r|∅|ok|∅"]),
    // The view, by the rows that it opened.
    (
        "decrypted_secrets",
        "SELECT decrypted_secret FROM vault.decrypted_secrets",
        &["read|a/b|2|ok|no value", "read|a/y|4|ok|∅"],
    ),
];

#[test]
fn each_function_of_the_api_leaves_a_record_of_each_call() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut root = vault.root();
    let there: BTreeSet<String> = root
        .ask(
            "SELECT DISTINCT proname FROM pg_proc WHERE pronamespace = 'vault'::regnamespace AND proname NOT LIKE '\\_%'
             UNION SELECT viewname FROM pg_views WHERE schemaname = 'vault'",
        )
        .lines()
        .map(str::to_owned)
        .collect();
    let called: BTreeSet<String> = CALLS.iter().map(|(function, ..)| (*function).to_owned()).collect();
    assert_eq!(there, called, "functions and views of the API / those called here");

    for (function, call, expected) in CALLS {
        let before = root.ask("SELECT coalesce(max(id), 0) FROM vault.audit_log");
        root.ask(call);
        super::settle(&cluster);
        let found = root.ask(&format!(
            "SELECT action, subject, version, outcome, detail FROM {LAST_WORDS}
              WHERE id > {before} AND function = '{function}' AND coalesce(subject, '') NOT LIKE 'mark/%' ORDER BY subject, id"
        ));
        assert_eq!(found.lines().collect::<Vec<_>>(), *expected, "{call}");
    }
    let actors = log(&cluster, "session_role, role, client, client_addr", "true");
    assert!(actors.lines().all(|line| line == "postgres|postgres|local|∅"), "{actors}");
}

/// What everybody who may call anything may call: it shows them what is theirs, or nothing.
const OPEN_TO_ALL: &[&str] = &["can", "decrypted_secrets", "list_roles", "list_tokens", "status"];

#[test]
fn each_function_leaves_a_record_of_each_refusal() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut root = vault.root();
    root.ask("SELECT vault.create_secret('a/y', 'v'); SELECT vault.create_secret_bytes('a/b', 'v'); SELECT vault.create_role('r')");
    let mut open = BTreeSet::new();
    for (place, (function, call, _)) in CALLS.iter().enumerate() {
        // A caller each: of one caller, many refusals are counted instead of written.
        let caller = format!("stranger{place}");
        root.ask(&format!("CREATE ROLE {caller} LOGIN IN ROLE vault_user"));
        let mut stranger = vault.session(&caller);
        // By itself, where the list has it among others.
        let call = match *function {
            "authenticate" => "SELECT vault.authenticate('none')",
            "import_sealed" => "SELECT vault.import_sealed('{}')",
            _ => call,
        };
        let code = match stranger.try_ask(call) {
            Ok(_) => String::new(),
            Err(error) => error.code().map(|code| code.code().to_owned()).unwrap_or_default(),
        };
        if !["42501", "28000"].contains(&code.as_str()) {
            open.insert(*function);
            continue;
        }
        let found = log(&cluster, "function, outcome, sqlstate", &format!("session_role = '{caller}'"));
        assert_eq!(found, format!("{function}|denied|{code}"), "{call}");
    }
    assert_eq!(open, OPEN_TO_ALL.iter().copied().collect());
}

#[test]
fn refusals_and_failures_are_recorded_with_who_and_why() {
    let cluster = Cluster::builder().allowed_ips("local").start();
    let vault = cluster.vault();
    let mut ops = vault.ops();
    ops.ask("SELECT vault.create_secret('s/t', 'v')");
    sqlstate!(ops.try_ask("SELECT vault.read_secret('s/t')"), "42501");
    sqlstate!(vault.app().try_ask("SELECT vault.delete_secret('s/t')"), "42501");
    sqlstate!(vault.app().try_ask("SELECT vault.read_secret('s/none')"), "P0002");
    sqlstate!(vault.app().try_ask("SELECT vault.read_secret('s//not a name')"), "22023");
    sqlstate!(vault.app().try_ask("SELECT * FROM vault.read_secrets('{s/t,s//u}')"), "22023");
    // From an address that is not allowed, as another role than that of the session.
    let mut root = vault.root();
    root.ask("ALTER ROLE app SET search_path = pg_catalog");
    let mut away = cluster.connect_tcp("app", "postgres", "127.0.0.1");
    sqlstate!(away.try_ask("SELECT vault.read_secret('s/t')"), "42501");
    let mut switched = vault.root();
    switched.ask("SET ROLE app");
    switched.ask("SELECT vault.read_secret('s/t')");
    // An error of the server's own, in the middle.
    let mut locker = vault.ops();
    locker.ask("BEGIN; SELECT vault.put_secret('s/t', 'w')");
    let waiting = Waiter::start(vault.ops(), "SELECT vault.put_secret('s/t', 'x')");
    let waits_for = format!("SELECT wait_event_type FROM pg_stat_activity WHERE pid = {}", waiting.pid);
    wait_for("it to wait", PATIENCE, || root.ask(&waits_for) == "Lock");
    waiting.token.cancel_query(NoTls).unwrap();
    sqlstate!(waiting.finish(), "57014");
    locker.ask("ROLLBACK");
    let found = log(
        &cluster,
        "session_role, role, client, host(client_addr), function, subject, version, outcome, sqlstate",
        "true",
    );
    let expected = "ops|ops|local|∅|create_secret|s/t|1|ok|∅\n\
         ops|ops|local|∅|read_secret|s/t|∅|denied|42501\n\
         app|app|local|∅|delete_secret|s/t|∅|denied|42501\n\
         app|app|local|∅|read_secret|s/none|∅|error|P0002\n\
         app|app|local|∅|read_secret|∅|∅|error|22023\n\
         app|app|local|∅|read_secrets|∅|∅|error|22023\n\
         app|app|tcp|127.0.0.1|read_secret|s/t|∅|denied|42501\n\
         postgres|app|local|∅|read_secret|s/t|1|ok|∅\n\
         ops|ops|local|∅|put_secret|s/t|∅|error|57014\n\
         ops|ops|local|∅|put_secret|s/t|2|rolled_back|∅";
    let sorted = |rows: &str| rows.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    assert_eq!(sorted(&found), sorted(expected));
}

#[test]
fn a_token_is_named_and_never_shown() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut root = vault.root();
    root.ask(
        "SELECT vault.create_secret('s', 'v');
         SELECT vault.create_role('r', permissions => '[{\"action\": \"read\", \"path\": \"s\"}]');
         CREATE ROLE gateway LOGIN IN ROLE vault_user",
    );
    let token = root.ask("SELECT vault.create_token('ci', 'r')");
    let mut gateway = vault.session("gateway");
    gateway
        .ask(&format!("BEGIN; SELECT vault.authenticate('{token}'); SELECT vault.read_secret('s'); COMMIT"));
    let error = sqlstate!(gateway.try_ask(&format!("SELECT vault.authenticate('{token}x')")), "28000");
    assert!(!format!("{error:?}").contains(&token));
    // In the place of a name, too.
    for call in ["revoke_token('$')", "create_token('$', 'r')"] {
        let error = sqlstate!(root.try_ask(&format!("SELECT vault.{}", call.replace('$', &token))), "22023");
        assert!(!format!("{error:?}").contains(&token), "{error:?}");
    }
    assert_eq!(log(&cluster, "id", &format!("to_jsonb(audit_log)::text LIKE '%{token}%'")), "");
    assert_eq!(
        log(&cluster, "function, subject, token, outcome, sqlstate", "session_role = 'gateway'"),
        "authenticate|ci|∅|ok|∅\nread_secret|s|ci|ok|∅\nauthenticate|∅|∅|denied|28000"
    );
}

#[test]
fn a_session_that_is_terminated_in_the_middle_of_a_call_leaves_its_record() {
    let cluster = Cluster::builder().conf("hyperion_vault.kms_timeout_ms", "60000").start();
    let vault = cluster.vault();
    vault.ops().ask("SELECT vault.create_secret('first', 'v')");
    cluster.set_faults("hang");
    let mut client = vault.ops();
    let pid = hyperion_vault_tests::backend_pid(&mut client);
    let waiting = hyperion_vault_tests::threads::background(move || {
        client.try_ask("SELECT vault.create_secret('never', 'v')").is_err()
    });
    let mut root = vault.root();
    crate::watch::until_processing(&mut root, 1);
    root.ask(&format!("SELECT pg_terminate_backend({pid})"));
    assert!(waiting.finish(PATIENCE));
    // The client is told before the record is written.
    let there = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}");
    wait_for("the end of the session", PATIENCE, || root.ask(&there) == "0");
    cluster.clear_faults();
    assert_eq!(log(&cluster, "subject, outcome, sqlstate", "subject = 'never'"), "never|error|57P01");
}
