//! A hundred orderly deaths of the worker in the middle of calls to KMS, under load. Runs in the test process.
//!
//! The postmaster starts a worker again a second after its death, so a hundred in a row would take two minutes: five
//! clusters take their turns side by side, on one fake. Every fifth death comes while calls take longer than a dying
//! worker waits for them: these are cut off, and the successor asks again.

use crate::load::Load;
use crate::watch::{expect_idle_queue, private_kb, processing, status, until_running};
use hyperion_vault_tests::kms::{FakeKms, Fault};
use hyperion_vault_tests::threads::background;
use hyperion_vault_tests::{Cluster, PATIENCE, SIGTERM, wait_until};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

const CLUSTERS: usize = 5;
const DEATHS: usize = 20;
/// More than the readers of cold secrets get through.
const COLD: usize = 600;
/// Of every call, so that there are always some under way.
const LATENCY: Duration = Duration::from_millis(10);
/// Longer than a worker that was told to stop waits for its calls (half a second).
const LONG: Duration = Duration::from_millis(900);

#[derive(Default)]
struct Survived {
    /// Deaths with requests under way.
    mid_call: usize,
    acknowledged: usize,
    cold_reads: usize,
    /// Private memory of the first worker and of the largest, in kilobytes.
    first_kb: u64,
    largest_kb: u64,
}

#[test]
fn a_hundred_orderly_deaths_in_the_middle_of_calls() {
    let kms = Arc::new(FakeKms::start());
    let prepared = Arc::new(Barrier::new(CLUSTERS + 1));
    let begun = Instant::now();
    let clusters: Vec<_> = (0..CLUSTERS)
        .map(|_| {
            let (kms, prepared) = (Arc::clone(&kms), Arc::clone(&prepared));
            background(move || survive(&kms, &prepared))
        })
        .collect();
    prepared.wait();
    println!("prepared after {:?}", begun.elapsed());
    kms.inject(Fault::Latency(LATENCY));
    let results: Vec<Survived> = clusters.into_iter().map(|one| one.finish(16 * PATIENCE)).collect();
    let sum = |of: fn(&Survived) -> usize| results.iter().map(of).sum::<usize>();
    println!(
        "{} deaths of the worker in {:?}, {} of them with calls under way: {} secrets acknowledged, all open; {} cold reads; \
         private memory of the first workers {:?} kB, of the largest {:?} kB",
        CLUSTERS * DEATHS,
        begun.elapsed(),
        sum(|one| one.mid_call),
        sum(|one| one.acknowledged),
        sum(|one| one.cold_reads),
        results.iter().map(|one| one.first_kb).collect::<Vec<_>>(),
        results.iter().map(|one| one.largest_kb).collect::<Vec<_>>(),
    );
    assert!(sum(|one| one.mid_call) >= CLUSTERS * DEATHS * 9 / 10, "hardly any call was interrupted");
    for one in &results {
        // Each is a fresh process; what it inherits from the postmaster must not have grown.
        assert!(one.largest_kb < one.first_kb + 6000, "{} kB, then {} kB", one.first_kb, one.largest_kb);
    }
}

fn survive(kms: &FakeKms, prepared: &Barrier) -> Survived {
    let cluster = Cluster::builder()
        .aws(kms)
        .conf("hyperion_vault.kms_timeout_ms", "120000")
        .time_limit(Duration::from_secs(600))
        .start();
    let vault = cluster.vault();
    Load::prepare(&vault, COLD);
    let mut root = vault.root();
    let mut witness = cluster.witness();
    prepared.wait();
    let load = Load::start(&cluster, COLD);
    let mut survived = Survived::default();
    for death in 0..DEATHS {
        let lived = death as u64 + 1;
        until_running(&mut root, lived);
        if death % 5 == 0 {
            kms.inject_times(Fault::Latency(LONG), CLUSTERS as u64);
        }
        let worker =
            i32::try_from(status(&mut root)["workers"][0]["pid"].as_i64().expect("it runs")).unwrap();
        // Some load that is not interrupted first, and a worker that has grown to what it needs.
        std::thread::sleep(Duration::from_millis(150));
        let under_way = wait_until(PATIENCE, || processing(&mut root) > 0);
        survived.mid_call += usize::from(under_way);
        let memory = private_kb(worker);
        if death == 0 {
            survived.first_kb = memory;
        }
        survived.largest_kb = survived.largest_kb.max(memory);
        if death % 4 < 2 {
            cluster.kill(worker, SIGTERM);
        } else {
            root.execute("SELECT pg_terminate_backend($1)", &[&worker]).unwrap();
        }
    }
    until_running(&mut root, DEATHS as u64 + 1);
    let done = load.finish(3 * PATIENCE);
    expect_idle_queue(&mut root);
    witness.assert_survived();
    done.assert_all_open(&mut vault.app());
    let log = cluster.log();
    assert_eq!(log.matches("hyperion_vault kms worker started").count(), DEATHS + 1);
    assert!(!log.contains("terminating any other active server processes"));
    // No session was told of any of it.
    assert!(
        !log.contains("ERROR:  "),
        "{}",
        log.lines().filter(|l| l.contains("ERROR:")).collect::<String>()
    );
    assert!(done.acknowledged.len() >= DEATHS && done.cold_reads >= DEATHS && done.hot_reads > 0);
    survived.acknowledged = done.acknowledged.len();
    survived.cold_reads = done.cold_reads;
    survived
}
