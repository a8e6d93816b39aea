//! `kms`: many different secrets, none of their keys in the cache, through a key service that takes its time. Runs in the
//! benchmark's process, which is also the key service (the fake of tests/support/kms).
//!
//! With `kms_max_in_flight` calls at one time of `LATENCY` each, a worker that adds nothing of its own makes in-flight ÷
//! latency calls a second. Reported is the share of that which sessions get. The trap: a cache that is warm after the
//! first run; so the server restarts before each, and the fake's count of calls has to be the number of secrets.

use crate::machine::{self, Cores};
use crate::stats::Summary;
use hyperion_vault_tests::kms::{FakeKms, Fault, Op};
use hyperion_vault_tests::threads::clients_at_once;
use hyperion_vault_tests::{Client, Cluster, StopMode};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

pub const NAME: &str = "kms";

const SECRETS: usize = 10_000;
const SESSIONS: usize = 64;
const IN_FLIGHT: u32 = 16;
const LATENCY: Duration = Duration::from_millis(20);
/// For one run, which takes some 13 seconds at best.
const LIMIT: Duration = Duration::from_secs(600);

/// Calls a second that in-flight and latency allow.
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
        .conf("hyperion_vault.kms_max_in_flight", &IN_FLIGHT.to_string())
        .conf("hyperion_vault.kms_timeout_ms", "60000")
        .start();
    if let Some(cores) = cores {
        cores.pin_server(&cluster);
    }
    fill(&cluster);
    println!(
        "\n{SECRETS} cold secrets, {SESSIONS} sessions, kms_max_in_flight = {IN_FLIGHT}, {} ms a call: {:.0} a second at most",
        LATENCY.as_millis(),
        ideal()
    );
    let mut rates = Vec::new();
    for _ in 0..runs {
        cluster.restart(StopMode::Fast);
        if let Some(cores) = cores {
            cores.pin_server(&cluster);
        }
        kms.clear();
        // The first call makes session and connection.
        read(&mut cluster.connect("app", "postgres"), "first");
        kms.reset_counters();
        kms.inject(Fault::Latency(LATENCY));
        let rate = run(&cluster);
        assert_eq!(kms.calls(Op::Decrypt), SECRETS as u64, "the cache was not cold, or calls were repeated");
        assert_eq!(kms.max_concurrent(), u64::from(IN_FLIGHT));
        println!("{rate:>8.0} a second, {:.2} of it   load {}", rate / ideal(), machine::load());
        rates.push(rate);
    }
    let ratio =
        Summary::of(rates.iter().map(|rate| rate / ideal())).expect("at least one run, none of them endless");
    println!("kms: {:.2} of in-flight ÷ latency (median; {:.2} – {:.2})", ratio.median, ratio.min, ratio.max);
    json!({
        "name": NAME,
        "secrets": SECRETS,
        "sessions": SESSIONS,
        "max_in_flight": IN_FLIGHT,
        "latency_ms": LATENCY.as_millis() as u64,
        "ideal_per_second": ideal(),
        "per_second": rates,
        "ratio": { "median": ratio.median, "min": ratio.min, "max": ratio.max },
        "load_average": machine::load(),
    })
}

/// Makes the secrets, in as many sessions: each costs a call.
fn fill(cluster: &Cluster) {
    let vault = cluster.vault();
    let create = "SELECT count(vault.create_secret(name, 'the value of ' || name))";
    vault.ops().query_one(&format!("{create} FROM (VALUES ('first')) n (name)"), &[]).expect("a secret");
    clients_at_once(cluster, "ops", 8, LIMIT, move |part, mut client| {
        let names = format!("SELECT 's/' || i FROM generate_series({part}, {}, 8) i", SECRETS - 1);
        client.query_one(&format!("{create} FROM ({names}) n (name)"), &[]).expect("secrets can be made");
    });
}

/// Every secret read once, each by one of the sessions; reads a second.
fn run(cluster: &Cluster) -> f64 {
    let begun = clients_at_once(cluster, "app", SESSIONS, LIMIT, |session, mut client| {
        let begun = Instant::now();
        for i in (session..SECRETS).step_by(SESSIONS) {
            read(&mut client, &format!("s/{i}"));
        }
        begun
    });
    // From the first session's first read, connecting not counted.
    let first = begun.into_iter().min().expect("there are sessions");
    SECRETS as f64 / first.elapsed().as_secs_f64()
}

fn read(client: &mut Client, name: &str) {
    let row = client.query_one("SELECT vault.read_secret($1)", &[&name]);
    let read: String = row.unwrap_or_else(|error| panic!("{name}: {error:?}")).get(0);
    assert!(read.strip_prefix("the value of ") == Some(name), "{name} has another value");
}
