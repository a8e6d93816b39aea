//! `rotation`: ten thousand secrets due at once, through a key service that takes its time, with readers beside them. Runs
//! in the benchmark's process, which is also the key service (the fake of tests/support/kms).
//!
//! A worker that adds nothing of its own makes in-flight ÷ latency rotations a second. Reported is the share of that, from
//! the first of them on; and the rate of reads of another, cached secret meanwhile, beside what it is when nothing
//! is due. The server has one core and the key service shares the readers'. The traps: counting what was merely begun (at
//! the end every secret has exactly one version more); leaving the server on the core of the process that started it.

use crate::machine::{self, Cores};
use crate::relay;
use crate::stats::Summary;
use hyperion_vault_tests::kms::{FakeKms, Fault, Op};
use hyperion_vault_tests::threads::{background, clients_at_once};
use hyperion_vault_tests::{Ask, Cluster, NoTls};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

pub const NAME: &str = "rotation";

const SECRETS: u64 = 10_000;
const IN_FLIGHT: u32 = 16;
const LATENCY: Duration = Duration::from_millis(20);
const LIMIT: Duration = Duration::from_secs(600);

fn ideal() -> f64 {
    f64::from(IN_FLIGHT) / LATENCY.as_secs_f64()
}

/// Measures `runs` times and prints each.
pub fn measure(runs: u32, cores: Option<Cores>) -> Value {
    let kms = FakeKms::start();
    let cluster = Cluster::builder()
        .aws(&kms)
        .time_limit(Duration::from_secs(3600))
        .conf("autovacuum", "off")
        .conf("max_wal_size", "4GB")
        .conf("fsync", "on")
        .conf("hyperion_vault.kms_max_in_flight", &IN_FLIGHT.to_string())
        .conf("hyperion_vault.kms_timeout_ms", "60000")
        .conf("hyperion_vault.scan_interval_secs", "1")
        .start();
    cluster.vault();
    clients_at_once(&cluster, "ops", 8, LIMIT, |part, mut client| {
        client.ask(&format!(
            "SELECT count(vault.create_secret('s/' || i, kind => 'automatic', rotation_interval => '30 days', grace_period => '1 day'))
               FROM generate_series({part}, {}, 8) i",
            SECRETS - 1
        ));
    });
    let mut root = cluster.superuser();
    root.ask("SELECT vault.create_secret('hot', 'value')");
    if let Some(cores) = cores {
        cores.pin_server(&cluster);
    }
    println!(
        "\n{SECRETS} secrets due at once, kms_max_in_flight = {IN_FLIGHT}, {} ms a call: {:.0} a second at most",
        LATENCY.as_millis(),
        ideal()
    );
    let (mut rates, mut reads) = (Vec::new(), Vec::new());
    for run in 1..=u64::from(runs) {
        root.ask("VACUUM (ANALYZE)");
        relay::settle(&cluster);
        let idle = reads_a_second(&cluster, &AtomicBool::new(false), Duration::from_secs(3));
        relay::settle(&cluster);
        kms.clear();
        kms.reset_counters();
        kms.inject(Fault::Latency(LATENCY));
        let over = Arc::new(AtomicBool::new(false));
        let reader = {
            let (over, config) = (Arc::clone(&over), cluster.config("app", cluster.database()));
            background(move || read_until(&mut config.connect(NoTls).expect("a session"), &over, LIMIT))
        };
        root.ask(
            "UPDATE vault.secrets SET next_rotation_at = clock_timestamp() - interval '1 second' WHERE kind = 'automatic'",
        );
        let begun = Instant::now();
        let left = "SELECT count(*) FROM vault.secrets WHERE kind = 'automatic' AND next_rotation_at <= clock_timestamp()";
        // The worker looks once a second: it is its own work that is timed.
        while root.ask(left) == SECRETS.to_string() && begun.elapsed() < LIMIT {
            std::thread::sleep(Duration::from_millis(5));
        }
        let began = Instant::now();
        // Asked for by index: counting them all would take a tenth of the processor that the others share.
        let any =
            "SELECT EXISTS (SELECT FROM vault.secrets WHERE kind = 'automatic' AND recover_until IS NULL
                     AND greatest(rotation_retry_at, next_rotation_at) <= clock_timestamp())";
        root.ask("SET enable_seqscan = off");
        while root.ask(any) != "f" {
            assert!(begun.elapsed() < LIMIT, "not done");
            std::thread::sleep(Duration::from_millis(50));
        }
        root.ask("RESET enable_seqscan");
        let rate = SECRETS as f64 / began.elapsed().as_secs_f64();
        over.store(true, Relaxed);
        let busy = reader.finish(LIMIT);
        let sound = format!(
            "SELECT count(*) FROM vault.secrets WHERE kind = 'automatic' AND version = {} AND rotation_attempts IS NULL",
            run + 1
        );
        assert_eq!(root.ask(&sound), SECRETS.to_string(), "each once");
        assert_eq!(kms.calls(Op::GenerateDataKey), SECRETS);
        assert_eq!(kms.max_concurrent(), u64::from(IN_FLIGHT));
        println!(
            "{rate:>8.0} a second, {:.2} of it; reads meanwhile {:.2} of their rate   load {}",
            rate / ideal(),
            busy / idle,
            machine::load()
        );
        rates.push(rate);
        reads.push(busy / idle);
    }
    let ratio = Summary::of(rates.iter().map(|rate| rate / ideal())).expect("at least one run");
    let beside = Summary::of(reads.iter().copied()).expect("at least one run");
    println!(
        "rotation: {:.2} of in-flight ÷ latency (median; {:.2} – {:.2}); reads keep {:.2} ({:.2} – {:.2})",
        ratio.median, ratio.min, ratio.max, beside.median, beside.min, beside.max
    );
    json!({
        "name": NAME,
        "secrets": SECRETS,
        "max_in_flight": IN_FLIGHT,
        "latency_ms": LATENCY.as_millis() as u64,
        "ideal_per_second": ideal(),
        "per_second": rates,
        "ratio": { "median": ratio.median, "min": ratio.min, "max": ratio.max },
        "reads_kept": { "median": beside.median, "min": beside.min, "max": beside.max },
        "load_average": machine::load(),
    })
}

/// Reads of the cached secret by one session.
fn reads_a_second(cluster: &Cluster, over: &AtomicBool, limit: Duration) -> f64 {
    read_until(&mut cluster.connect("app", "postgres"), over, limit)
}

fn read_until(client: &mut hyperion_vault_tests::Client, over: &AtomicBool, limit: Duration) -> f64 {
    let read = client.prepare("SELECT vault.read_secret('hot')").expect("a statement");
    let (begun, mut reads) = (Instant::now(), 0u64);
    while !over.load(Relaxed) && begun.elapsed() < limit {
        let value: String = client.query_one(&read, &[]).expect("a row").get(0);
        assert_eq!(value, "value");
        reads += 1;
    }
    reads as f64 / begun.elapsed().as_secs_f64()
}
