//! Neither a password nor a verifier is in any statement, statistic, log or message. Runs in the test process.
//!
//! The server logs and counts whatever it can. The trap: a search that cannot find. A password and a verifier that a
//! statement does hold are found in the same places.

use super::{agrees, builder, credential, prepare, secret_for_svc};
use hyperion_vault_tests::scan::{Needles, assert_none};
use hyperion_vault_tests::threads::background;
use hyperion_vault_tests::{Ask, Client, LogMark, PATIENCE, random_text, wait_until};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

const LOUD: [(&str, &str); 14] = [
    ("log_statement", "all"),
    ("log_min_duration_statement", "0"),
    ("log_duration", "on"),
    ("log_parameter_max_length", "-1"),
    ("log_min_messages", "debug5"),
    ("log_min_error_statement", "debug5"),
    ("debug_print_parse", "on"),
    ("debug_print_rewritten", "on"),
    ("debug_print_plan", "on"),
    ("pg_stat_statements.track", "all"),
    ("pg_stat_statements.track_utility", "on"),
    ("auto_explain.log_min_duration", "0"),
    ("auto_explain.log_nested_statements", "on"),
    ("auto_explain.log_verbose", "on"),
];

fn verifiers(root: &mut Client) -> Vec<String> {
    root.ask("SELECT rolpassword FROM pg_authid WHERE rolpassword IS NOT NULL")
        .lines()
        .map(str::to_owned)
        .collect()
}

#[test]
fn no_statement_holds_a_password() {
    let mut cluster =
        builder().conf("shared_preload_libraries", "hyperion_vault,pg_stat_statements,auto_explain");
    for (name, value) in LOUD {
        cluster = cluster.conf(name, value);
    }
    let cluster = Arc::new(cluster.start());
    let vault = prepare(&cluster);
    let mut root = vault.root();
    root.batch_execute("CREATE EXTENSION pg_stat_statements").unwrap();
    let control = format!("a control {}", random_text(12));
    root.batch_execute(&format!("CREATE ROLE control PASSWORD '{control}'")).unwrap();

    // What others see of the sessions while they rotate.
    let stop = Arc::new(AtomicBool::new(false));
    let watcher = {
        let (cluster, stop) = (Arc::clone(&cluster), Arc::clone(&stop));
        background(move || {
            let mut watcher = cluster.superuser();
            let mut seen = String::new();
            while !stop.load(SeqCst) {
                let now = watcher
                    .ask("SELECT string_agg(query, ' ') FROM pg_stat_activity WHERE pid <> pg_backend_pid()");
                if !seen.contains(&now) {
                    seen.push_str(&now);
                }
            }
            seen
        })
    };
    let mut keeper = secret_for_svc(&vault);
    let (mut ops, mut app) = (vault.ops(), vault.app());
    let mut secret: Vec<String> = verifiers(&mut root);
    keeper.ask(
        "SELECT vault.create_secret('db/app', generator => '{}', grace_period => '1 hour',
        target => '{\"type\":\"postgres_role_pair\",\"roles\":[\"app_a\",\"app_b\"]}')",
    );
    let given = random_text(24);
    for round in 0..4 {
        ops.ask("SELECT vault.rotate_secret('db/svc')");
        secret.push(credential(&mut app, "db/svc").1);
        secret.extend(verifiers(&mut root));
        // The pair takes its turn once, and is refused after that, by the vault.
        assert_eq!(ops.try_ask("SELECT vault.rotate_secret('db/app')").is_ok(), round == 0);
    }
    // Bound, as values should be. (The log has parameters if it is told to: it is not, for this one.)
    ops.batch_execute("SET log_statement = none").unwrap_err();
    root.batch_execute("ALTER ROLE keeper SET log_parameter_max_length = 0; ALTER ROLE keeper SET log_statement = 'none';
        ALTER ROLE keeper SET log_min_duration_statement = -1; ALTER ROLE keeper SET log_duration = off;
        ALTER ROLE keeper SET debug_print_parse = off; ALTER ROLE keeper SET debug_print_rewritten = off; ALTER ROLE keeper SET debug_print_plan = off;
        ALTER ROLE keeper SET \"auto_explain.log_min_duration\" = -1").unwrap();
    let mut quiet = vault.session("keeper");
    quiet.query("SELECT vault.update_secret('db/svc', password => $1)", &[&given]).unwrap();
    secret.push(given);
    secret.extend(verifiers(&mut root));
    assert!(agrees(&cluster, &mut app, "db/svc"));
    root.batch_execute("ALTER ROLE svc SUPERUSER").unwrap();
    assert!(ops.try_ask("SELECT vault.rotate_secret('db/svc')").is_err());
    stop.store(true, SeqCst);

    // Verifiers by their keys alone, as they would be in a message of another form.
    let mut known: Vec<(String, String)> =
        secret.iter().map(|text| ("a secret".to_owned(), text.clone())).collect();
    known.extend(
        secret.iter().filter_map(|text| Some(("a key".to_owned(), text.rsplit_once(':')?.1.to_owned()))),
    );
    assert!(known.iter().all(|(_, text)| text.len() > 20));
    // `root` and `app` have read them: that is their own statement's answer, which no log holds.
    let needles = Needles::new(known);
    assert_none(&needles.in_bytes("pg_stat_activity", watcher.finish(PATIENCE).as_bytes()));
    let statements = root.ask("SELECT query FROM pg_stat_statements");
    assert!(statements.contains("vault.rotate_secret"), "pg_stat_statements counts nothing");
    assert_none(&needles.in_bytes("pg_stat_statements", statements.as_bytes()));
    root.ask("SELECT 'the last line'");
    assert!(wait_until(PATIENCE, || cluster.log_contains(LogMark::START, "the last line")));
    assert_none(&needles.in_path(&cluster.log_path()));
    assert!(
        cluster.log_contains(LogMark::START, &control),
        "the log holds no statements: this search proves nothing"
    );
    assert!(!statements.to_lowercase().contains("alter role svc password"));
}
