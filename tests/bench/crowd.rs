//! `crowd`: whether many sessions get in each other's way. Runs in the benchmark's process.
//!
//! Reads by 8 sessions and by 64, of a few keys that all of them want and of 100,000 that hardly two want at once, beside a
//! plain select of the same names; all four in turn. Reported is 64 ÷ 8 of each: one where nothing is waited for. The
//! trap: a session touches each page of shared memory for the first time once, which the kernel makes it pay for, and
//! short runs measure that: so these are long.

use crate::machine::{self, Cores};
use crate::pgbench::Run;
use crate::relay;
use crate::stats::Summary;
use hyperion_vault_tests::{Ask, Cluster};
use serde_json::{Value, json};
use std::time::Duration;

pub const NAME: &str = "crowd";

const FIRST: u64 = 100_000_000_000;
const SECRETS: u64 = 100_000;
const HOT: u64 = 16;
const SECONDS: u32 = 12;
const SESSIONS: [u32; 2] = [8, 64];

pub fn measure(pairs: u32, cores: Option<Cores>) -> Value {
    let cluster = Cluster::builder()
        .time_limit(Duration::from_secs(3600))
        .conf("max_connections", "120")
        .conf("autovacuum", "off")
        .conf("max_wal_size", "4GB")
        .conf("hyperion_vault.dek_cache_size", "262144")
        .conf("hyperion_vault.dek_cache_ttl_secs", "7200")
        .start();
    fill(&cluster);
    if let Some(cores) = cores {
        cores.pin_server(&cluster);
    }
    println!("\n64 sessions ÷ 8, reads a second ({SECONDS} s each)");
    let results: Vec<Value> = [("hot keys", HOT), ("different keys", SECRETS)]
        .into_iter()
        .map(|(what, keys)| compare(&cluster, what, keys, pairs))
        .collect();
    json!({ "name": NAME, "sessions": SESSIONS, "seconds_per_run": SECONDS, "results": results })
}

fn compare(cluster: &Cluster, what: &str, keys: u64, pairs: u32) -> Value {
    let name = format!("\\set n random({FIRST}, {})\n", FIRST + keys - 1);
    let scripts = [
        format!("{name}SELECT vault.read_secret(:n);\n"),
        format!("{name}SELECT value FROM bench.plain WHERE name = :n;\n"),
    ];
    let mut ratios = [Vec::new(), Vec::new()];
    for pair in 1..=pairs {
        for (script, ratios) in scripts.iter().zip(&mut ratios) {
            let [few, many] = SESSIONS.map(|clients| {
                relay::settle(cluster);
                let run = Run { script, user: "app", clients, seconds: SECONDS, seed: clients * 1000 + pair };
                run.execute(cluster).tps
            });
            ratios.push(many / few);
        }
    }
    let beside = Summary::of(ratios[0].iter().zip(&ratios[1]).map(|(vault, plain)| vault / plain));
    let [vault, plain] = ratios.map(|ratios| Summary::of(ratios).expect("pairs, every rate above zero"));
    let beside = beside.expect("pairs, every rate above zero");
    println!(
        "{keys:>7} {what:<15} vault.read_secret {:.2} ({:.2} – {:.2}), plain select {:.2} ({:.2} – {:.2}); one ÷ the other {:.2}   load {}",
        vault.median,
        vault.min,
        vault.max,
        plain.median,
        plain.min,
        plain.max,
        beside.median,
        machine::load()
    );
    let summary = |of: &Summary| json!({ "median": of.median, "min": of.min, "max": of.max });
    json!({
        "keys": keys,
        "vault": summary(&vault),
        "plain": summary(&plain),
        "vault_by_plain": summary(&beside),
        "load_average": machine::load(),
    })
}

fn fill(cluster: &Cluster) {
    let vault = cluster.vault();
    let rows = format!(
        "SELECT i::text AS name, repeat('v', 64) AS value FROM generate_series({FIRST}, {}) i",
        FIRST + SECRETS - 1
    );
    vault.root().ask(&format!(
        "CREATE SCHEMA bench;
         CREATE TABLE bench.plain (name text COLLATE \"C\" PRIMARY KEY, value text NOT NULL);
         INSERT INTO bench.plain {rows};
         GRANT USAGE ON SCHEMA bench TO PUBLIC; GRANT SELECT ON bench.plain TO PUBLIC"
    ));
    vault.ops().ask(&format!("SELECT count(vault.create_secret(name, value)) FROM ({rows}) r"));
    vault.app().ask(&format!("SELECT count(vault.read_secret(name)) FROM ({rows}) r"));
    vault.root().ask("VACUUM (ANALYZE)");
}
