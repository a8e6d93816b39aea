//! `rotation_local`: ten thousand automatic secrets due at once with the `local` provider, rotations a second. Runs in the
//! benchmark's process.
//!
//! With a key service that answers at once, the rate is that of the maintenance worker itself. It depends on the machine:
//! compare two builds in one sitting, in turn (`packaging/bench.sh rotation_local`).
//!
//! Secrets become due by their own interval, behind the back of a stopped worker, and rotations are counted by their
//! notifications. So it measures builds with different tables, and asks nothing of the server while it measures. The traps:
//! counting the worker's one-second wait for its next look (time runs from the first notification to the last); secrets
//! that are due a second time before the last is done (an interval far longer than a run, checked by the versions).

use crate::machine::{self, Cores};
use crate::relay;
use crate::stats::Summary;
use hyperion_vault_tests::threads::clients_at_once;
use hyperion_vault_tests::{Ask, Client, Cluster, PATIENCE, SIGCONT, wait_for};
use postgres::fallible_iterator::FallibleIterator;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

pub const NAME: &str = "rotation_local";

const SECRETS: usize = 10_000;
/// Several times as long as a run: the first secret of a run must not be due again before its end.
const INTERVAL: Duration = Duration::from_secs(60);
/// For the next notification.
const LIMIT: Duration = Duration::from_secs(120);
const WORKER: &str = "hyperion_vault maintenance";

/// Measures `runs` times and prints each.
pub fn measure(runs: u32, cores: Option<Cores>) -> Value {
    let cluster = Cluster::builder()
        .time_limit(Duration::from_secs(3600))
        .fsync(true)
        .conf("autovacuum", "off")
        .conf("max_wal_size", "4GB")
        .conf("hyperion_vault.scan_interval_secs", "1")
        .start();
    cluster.vault();
    if let Some(cores) = cores {
        cores.pin_server(&cluster);
    }
    hold_back(&cluster);
    let create = format!(
        "vault.create_secret('s/' || i, kind => 'automatic', rotation_interval => '{} s', grace_period => '1 day')",
        INTERVAL.as_secs()
    );
    clients_at_once(&cluster, "ops", 4, LIMIT, move |part, mut client| {
        client.ask(&format!("SELECT count({create}) FROM generate_series({part}, {}, 4) i", SECRETS - 1));
    });
    println!("\n{SECRETS} secrets due at once, local provider, synchronous commit");
    let mut root = cluster.superuser();
    root.batch_execute("LISTEN vault_rotation").expect("a listener");
    let mut rates = Vec::new();
    for run in 1..=runs {
        let last = Instant::now();
        root.ask("VACUUM (ANALYZE)");
        root.ask("CHECKPOINT");
        relay::settle(&cluster);
        std::thread::sleep((INTERVAL + Duration::from_secs(1)).saturating_sub(last.elapsed()));
        cluster.kill(cluster.pid_of(WORKER), SIGCONT);
        let rate = rotations_a_second(&mut root);
        hold_back(&cluster);
        let rotated =
            format!("SELECT count(*) FROM vault.secrets WHERE kind = 'automatic' AND version = {}", run + 1);
        assert_eq!(root.ask(&rotated), SECRETS.to_string(), "each once");
        println!("{rate:>8.0} rotations a second   load {}", machine::load());
        rates.push(rate);
    }
    // A stopped process would hold up the server's end.
    cluster.kill(cluster.pid_of(WORKER), SIGCONT);
    let rate = Summary::of(rates.iter().copied()).expect("at least one run");
    println!("{NAME}: {:.0} rotations a second (median; {:.0} – {:.0})", rate.median, rate.min, rate.max);
    json!({
        "name": NAME,
        "secrets": SECRETS,
        "per_second": { "median": rate.median, "min": rate.min, "max": rate.max },
        "runs": rates,
        "load_average": machine::load(),
    })
}

/// Stops the worker once it has nothing to do.
fn hold_back(cluster: &Cluster) {
    let idle = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'hyperion_vault maintenance' AND xact_start IS NULL";
    let mut root = cluster.superuser();
    wait_for("an idle maintenance worker", PATIENCE, || root.ask(idle) == "1");
    cluster.freeze(cluster.pid_of(WORKER));
}

/// From the first notification to the last of `SECRETS`.
fn rotations_a_second(listener: &mut Client) -> f64 {
    let mut notifications = listener.notifications();
    let mut waiting = notifications.timeout_iter(LIMIT);
    let mut next = || {
        let told = waiting.next().expect("a session").expect("the worker has stopped before the end");
        let told: Value = serde_json::from_str(told.payload()).expect("a JSON document");
        told["rotated"].as_array().map_or(0, Vec::len)
    };
    let first = next();
    let (began, mut done) = (Instant::now(), first);
    while done < SECRETS {
        done += next();
    }
    (done - first) as f64 / began.elapsed().as_secs_f64()
}
