//! Targets of secrets that rotate by themselves: applied by a worker, as the role that set them.

use super::{agrees, builder, credential, logs_in, prepare};
use hyperion_vault_tests::{Ask, Client, LogMark, PATIENCE, wait_for};

fn due(root: &mut Client, name: &str) {
    root.ask(&format!("UPDATE vault.secrets SET next_rotation_at = clock_timestamp() WHERE name = '{name}'"));
}

fn version_is(root: &mut Client, name: &str, version: i32) {
    wait_for(&format!("version {version} of {name}"), PATIENCE, || {
        root.ask(&format!("SELECT version FROM vault.secrets WHERE name = '{name}'")) == version.to_string()
    });
}

#[test]
fn what_is_due_reaches_its_target() {
    // Without a cache: what a worker needs to know of a pair it must know before it locks.
    let cluster = builder()
        .conf("hyperion_vault.scan_interval_secs", "1")
        .conf("hyperion_vault.dek_cache_ttl_secs", "0")
        .start();
    let vault = prepare(&cluster);
    let (mut root, mut app) = (vault.root(), vault.app());
    let mut keeper = vault.session("keeper");
    root.batch_execute(
        "GRANT vault_reader TO keeper;
         CREATE SCHEMA app AUTHORIZATION keeper; SET ROLE keeper; CREATE TABLE app.seen (version int, value text, who text);
         CREATE FUNCTION app.on_rotate(name text, version int) RETURNS void LANGUAGE sql AS
           $$ INSERT INTO app.seen VALUES (version, vault.read_secret(name, version), current_user || ' for ' || session_user) $$;
         RESET ROLE",
    )
    .unwrap();
    let create = |keeper: &mut Client, name: &str, grace: &str, target: &str| {
        keeper.ask(&format!(
            "SELECT vault.create_secret('{name}', kind => 'automatic', rotation_interval => '30 days', grace_period => '{grace}', target => '{target}')"
        ));
    };
    create(&mut keeper, "db/svc", "1 hour", "{\"type\":\"postgres_role\",\"role\":\"svc\"}");
    create(
        &mut keeper,
        "db/app",
        "1 second",
        "{\"type\":\"postgres_role_pair\",\"roles\":[\"app_a\",\"app_b\"]}",
    );
    create(&mut keeper, "hooked", "1 hour", "{\"type\":\"function\",\"function\":\"app.on_rotate\"}");
    let before = credential(&mut app, "db/app");
    for name in ["db/svc", "db/app", "hooked"] {
        due(&mut root, name);
    }
    for name in ["db/svc", "db/app", "hooked"] {
        version_is(&mut root, name, 2);
    }
    assert!(agrees(&cluster, &mut app, "db/svc") && agrees(&cluster, &mut app, "db/app"));
    let after = credential(&mut app, "db/app");
    assert_eq!((before.0.as_str(), after.0.as_str()), ("app_a", "app_b"));
    assert_eq!(root.ask("SELECT who FROM app.seen WHERE version = 2"), "keeper for postgres");
    assert_eq!(
        root.ask("SELECT value FROM app.seen WHERE version = 2"),
        app.ask("SELECT vault.read_secret('hooked')")
    );

    // A turn that comes while the other credential is in grace waits for its end, and then is taken.
    due(&mut root, "db/app");
    version_is(&mut root, "db/app", 3);
    assert!(agrees(&cluster, &mut app, "db/app"));

    // A setter who may no longer do it: shown, tried again, and the rest goes on.
    root.ask("ALTER ROLE keeper NOCREATEROLE");
    let known = credential(&mut app, "db/svc");
    for name in ["db/svc", "hooked"] {
        due(&mut root, name);
    }
    version_is(&mut root, "hooked", 3);
    let error = "SELECT rotation_attempts > 0, rotation_error FROM vault.list_secrets('db/svc')";
    wait_for("the failure", PATIENCE, || root.ask(error).starts_with("t|"));
    let shown = root.ask(error);
    assert!(
        shown.contains("permission denied for role \"keeper\"") && shown.contains("CREATEROLE"),
        "{shown}"
    );
    assert!(logs_in(&cluster, "svc", &known.1) && credential(&mut app, "db/svc") == known);
    root.ask("ALTER ROLE keeper CREATEROLE");
    version_is(&mut root, "db/svc", 3);
    assert!(agrees(&cluster, &mut app, "db/svc"));

    // A hook that fails says why.
    keeper.ask("CREATE OR REPLACE FUNCTION app.on_rotate(name text, version int) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'the other side is full'; END $$");
    due(&mut root, "hooked");
    let error = "SELECT rotation_error FROM vault.list_secrets('hooked')";
    wait_for("the failure", PATIENCE, || root.ask(error) != "∅");
    let shown = root.ask(error);
    assert!(
        shown.contains("rotation hook app.on_rotate(text,int)") && shown.contains("the other side is full"),
        "{shown}"
    );
    assert_eq!(root.ask("SELECT version FROM vault.secrets WHERE name = 'hooked'"), "3");
}

/// A worker cuts a hook short as a session does, and lives on.
#[test]
fn a_sleeping_hook_is_ended_in_a_worker_too() {
    let cluster = builder()
        .conf("hyperion_vault.scan_interval_secs", "1")
        .conf("hyperion_vault.hook_timeout_ms", "1500")
        .start();
    let vault = prepare(&cluster);
    let (mut root, mut keeper) = (vault.root(), vault.session("keeper"));
    root.batch_execute(
        "GRANT vault_reader TO keeper; CREATE SCHEMA app AUTHORIZATION keeper; SET ROLE keeper;
         CREATE FUNCTION app.on_rotate(name text, version int) RETURNS void LANGUAGE plpgsql AS
           $$ BEGIN IF version > 1 THEN PERFORM pg_sleep(60); END IF; END $$;
         RESET ROLE",
    )
    .unwrap();
    let create = "SELECT vault.create_secret($1, kind => 'automatic', rotation_interval => '30 days'";
    keeper.ask(&format!(
        "{}, target => '{{\"type\":\"function\",\"function\":\"app.on_rotate\"}}')",
        create.replace("$1", "'a/sleeper'")
    ));
    keeper.ask(&format!("{})", create.replace("$1", "'b/other'")));
    // What an administrator allows the transactions of sessions is no limit for a worker's.
    root.batch_execute(
        "DO $$ BEGIN
           IF current_setting('server_version_num')::int >= 170000 THEN ALTER DATABASE postgres SET transaction_timeout = '200ms'; END IF;
         END $$",
    )
    .unwrap();
    let workers = "SELECT pid FROM pg_stat_activity WHERE backend_type LIKE 'hyperion_vault%'";
    let before = root.ask(workers);
    for name in ["a/sleeper", "b/other"] {
        due(&mut root, name);
    }
    version_is(&mut root, "b/other", 2);
    let error = "SELECT rotation_error FROM vault.list_secrets('a/sleeper')";
    wait_for("the failure", PATIENCE, || root.ask(error) != "∅");
    let shown = root.ask(error);
    assert!(shown.contains("took too long") && shown.contains("hook_timeout_ms is 1500"), "{shown}");
    assert_eq!(root.ask("SELECT version FROM vault.secrets WHERE name = 'a/sleeper'"), "1");
    // (One that calls functions comes only when there is one to call, and goes.)
    let now = root.ask(workers);
    assert!(
        before.lines().all(|pid| now.lines().any(|now| now == pid)),
        "a worker died of it: {before} {now}"
    );
    assert!(!cluster.log_contains(LogMark::START, "exited with exit code 1"), "a worker died of it");
}
