//! The soak: everything at once on one vault, with maintenance commands and deaths of processes beside it, for half an hour;
//! then what was acknowledged has to be there, and every table and index has to be sound. `make soak` runs it.
//!
//! Environment: `PG_CONFIG` (server under test), `SOAK_MINUTES` (30). A short run is a test of this program, below. The
//! traps: a storm that is none, so that what happened is counted and held against minima; and a commit whose answer
//! was lost with the session, which may or may not have taken place (model.rs).

mod check;
mod disturb;
mod model;
mod operations;
mod random;
mod storm;

use hyperion_vault_tests::{Ask, Cluster, Vault, wait_for};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

fn main() {
    let minutes = match std::env::var("SOAK_MINUTES") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("SOAK_MINUTES={text} is not a number of minutes")),
        Err(_) => 30,
    };
    run(Duration::from_secs(60 * minutes), Duration::from_secs(45));
}

/// Storms for so long, with a process killed every `kill_every`; panics if anything is not as it must be.
fn run(length: Duration, kill_every: Duration) {
    let cluster = Cluster::builder()
        .time_limit(length + Duration::from_secs(600))
        .conf("hyperion_vault.scan_interval_secs", "1")
        .conf("hyperion_vault.kms_timeout_ms", "20000")
        .conf("max_prepared_transactions", "20")
        .conf("max_wal_size", "512MB")
        .conf("autovacuum_naptime", "1s")
        .conf("deadlock_timeout", "100ms")
        .start();
    let cluster = Arc::new(cluster);
    let vault = cluster.vault();
    let mut root = vault.root();
    root.ask(
        "CREATE ROLE storm LOGIN IN ROLE vault_reader, vault_admin; GRANT CREATE ON SCHEMA public TO storm;
         CREATE SCHEMA checks; CREATE EXTENSION amcheck SCHEMA checks",
    );
    for i in 0..8 {
        root.ask(&format!(
            "SELECT vault.create_secret('auto/{i}', kind => 'automatic', rotation_interval => '1 second', grace_period => '{} second', keep_versions => {})",
            i % 3,
            i % 4
        ));
    }
    drop(root);

    let begun = Instant::now();
    let stop = Arc::new(AtomicBool::new(false));
    let storm = storm::Storm::begin(&cluster, &stop);
    let disturbances = disturb::until(&cluster, begun + length, kill_every, &stop);
    stop.store(true, Ordering::Relaxed);
    cluster.wait_ready();
    let notes = storm.end();
    println!("{disturbances}");
    notes.report();
    notes.assert_stormy(begun.elapsed());

    goes_on(&vault);
    notes.assert_kept(&vault);
    check::sound(&cluster);
    println!(
        "soaked for {:?}: what was acknowledged is there, tables and indexes are sound",
        begun.elapsed()
    );
}

/// Workers rotate, and nothing is left over from those that died.
fn goes_on(vault: &Vault<'_>) {
    let mut root = vault.root();
    for name in root.ask("SELECT gid FROM pg_prepared_xacts").lines() {
        root.ask(&format!("ROLLBACK PREPARED '{name}'"));
    }
    let versions = "SELECT string_agg(version::text, ' ' ORDER BY name) FROM vault.list_secrets('auto/*')";
    let before: Vec<i64> = numbers(&root.ask(versions));
    assert_eq!(before.len(), 8);
    wait_for("every automatic secret to be rotated once more", Duration::from_secs(60), || {
        numbers(&root.ask(versions)).iter().zip(&before).all(|(now, before)| now > before)
    });
    let orphans = "SELECT count(*) FROM vault.secret_versions v WHERE NOT EXISTS (SELECT FROM vault.secrets s WHERE s.id = v.secret_id)";
    assert_eq!(root.ask(orphans), "0", "versions without their secret");
    let doubles = "SELECT count(*) FROM (SELECT FROM vault.secrets GROUP BY name HAVING count(*) > 1 UNION ALL SELECT FROM vault.secrets GROUP BY id HAVING count(*) > 1) d";
    assert_eq!(root.ask(doubles), "0", "one name, two secrets");
}

fn numbers(text: &str) -> Vec<i64> {
    text.split_whitespace().map(|number| number.parse().expect("a number")).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    #[test]
    fn a_short_soak() {
        super::run(Duration::from_secs(20), Duration::from_secs(6));
    }
}
