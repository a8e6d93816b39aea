//! SIGKILL of the worker and of the postmaster in the middle of rotations: each due time gives one rotation.

use std::time::Duration;

use super::{builder, make_due, until_done};
use hyperion_vault_tests::{Ask, PATIENCE, SIGKILL, SIGTERM, random_bytes, wait_for};

/// `HYPERION_VAULT_CRASH_ROUNDS=100` for the full number.
fn rounds() -> usize {
    std::env::var("HYPERION_VAULT_CRASH_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(8)
}

const SECRETS: usize = 150;

#[test]
fn each_due_time_gives_one_rotation_whatever_dies() {
    let cluster = builder()
        .conf("hyperion_vault.keep_versions", "1000")
        .conf("hyperion_vault.kms_max_in_flight", "8")
        .time_limit(Duration::from_secs(1800))
        .start();
    let vault = cluster.vault();
    vault.ops().ask(&format!(
        "SELECT count(vault.create_secret('s/' || i, kind => 'automatic', rotation_interval => '1 day', grace_period => '1 day',
            username => CASE WHEN i % 2 = 0 THEN 'u' END)) FROM generate_series(1, {SECRETS}) i"
    ));
    cluster.set_faults("delay_ms=60");
    let mut in_the_middle = 0;
    for round in 0..rounds() {
        let mut root = vault.root();
        make_due(&mut root, "1 second");
        let worker = cluster.pid_of("hyperion_vault maintenance");
        // Once it has begun, somewhere in the second or so that it takes.
        let begun = format!("SELECT count(*) > 0 FROM vault.secrets WHERE version = {}", round + 2);
        wait_for("the first rotations", PATIENCE, || root.ask(&begun) == "t");
        std::thread::sleep(Duration::from_millis(u64::from(random_bytes::<1>()[0])));
        let done: usize = root
            .ask(&format!("SELECT count(*) FROM vault.secrets WHERE version = {}", round + 2))
            .parse()
            .unwrap();
        in_the_middle += usize::from(done < SECRETS);
        match round % 4 {
            0 | 2 => cluster.kill_and_wait(worker, SIGKILL),
            1 => {
                cluster.kill_postmaster_9();
                cluster.start_again();
            }
            _ => cluster.kill_and_wait(worker, SIGTERM),
        }
        cluster.wait_ready();
        let mut root = vault.root();
        until_done(&mut root);
        // Nothing is due any more: each has one version more, and all the earlier ones once.
        let counts =
            "SELECT min(version), max(version), min(n), max(n), min(first), max(last) FROM vault.secrets s
            CROSS JOIN LATERAL (SELECT count(*) AS n, min(version) AS first, max(version) AS last
                FROM vault.secret_versions v WHERE v.secret_id = s.id) v";
        let (now, kept) = (round + 2, round + 1);
        assert_eq!(root.ask(counts), format!("{now}|{now}|{kept}|{kept}|1|{kept}"), "round {round}");
    }
    println!("{in_the_middle} of {} deaths came in the middle of {SECRETS} rotations", rounds());
    assert!(in_the_middle > 0, "no death came in the middle: they prove nothing");
    cluster.clear_faults();
    // All of them open.
    let versions = rounds() + 1;
    let opened = format!(
        "SELECT count(value) FROM generate_series(1, {SECRETS}) i, generate_series(1, {versions}) v,
           LATERAL (SELECT vault.read_secret('s/' || i, v) AS value) r"
    );
    assert_eq!(vault.app().ask(&opened), (SECRETS * versions).to_string());
}
