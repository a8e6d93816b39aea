//! Many due at once: keys are asked for side by side, each secret is rotated once, others go on.

use std::time::Instant;

use super::{builder, make_due, until_done};
use crate::watch::status;
use hyperion_vault_tests::Ask;

/// `HYPERION_VAULT_DUE=10000` for the full number; the rate is measured by the benchmark, on a build that is optimised.
fn secrets() -> usize {
    std::env::var("HYPERION_VAULT_DUE").ok().and_then(|due| due.parse().ok()).unwrap_or(2000)
}

#[test]
fn thousands_due_at_once() {
    let cluster = builder().conf("hyperion_vault.kms_max_in_flight", "16").start();
    let vault = cluster.vault();
    let (mut ops, mut root, mut app) = (vault.ops(), vault.root(), vault.app());
    let count = secrets();
    ops.ask(&format!(
        "SELECT count(vault.create_secret('s/' || i, kind => 'automatic', rotation_interval => '1 day')) FROM generate_series(1, {count}) i"
    ));
    ops.ask("SELECT vault.create_secret('hot', 'v')");
    cluster.set_faults("delay_ms=20");
    make_due(&mut root, "1 second");
    let begun = Instant::now();
    let (mut slowest, mut most) = (begun.elapsed(), 0);
    while root.ask("SELECT EXISTS (SELECT FROM vault.secrets WHERE kind = 'automatic' AND next_rotation_at <= clock_timestamp())") == "t" {
        let asked = Instant::now();
        assert_eq!(app.ask("SELECT vault.read_secret('hot')"), "v");
        slowest = slowest.max(asked.elapsed());
        most = most.max(status(&mut root)["kms"]["in_flight"].as_u64().unwrap());
        assert!(begun.elapsed() < 4 * hyperion_vault_tests::PATIENCE, "not done");
    }
    let rate = count as f64 / begun.elapsed().as_secs_f64();
    println!(
        "{count} rotations at 20 ms a call, {most} in flight: {rate:.0}/s; the slowest read beside them {slowest:?}"
    );
    until_done(&mut root);
    let sound = "SELECT count(*) FROM vault.secrets WHERE kind = 'automatic' AND version = 2 AND rotation_attempts IS NULL";
    assert_eq!(root.ask(sound), count.to_string());
    assert_eq!(root.ask("SELECT count(*) FROM vault.secret_versions"), count.to_string());
    assert!(most > 4, "{most} in flight: not side by side");
}
