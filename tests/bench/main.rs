//! The benchmark: what a read through the vault costs beside a plain primary-key select. `make bench` runs it.
//!
//! A throw-away cluster, 10,000 secrets of 64 bytes and a plain table of the same, both asked by the real `pgbench` in
//! prepared mode, in turn (vault, plain, vault, plain …), so that a machine that slows down slows both. Reported is the
//! median of the pairs' ratios. Figures of one machine; the ratio is what travels.
//!
//! Environment: `PG_CONFIG` (server under test), `BENCH_SECONDS` per run (3), `BENCH_PAIRS` per scenario (5),
//! `BENCH_OUT` (where the JSON goes). Arguments: names of scenarios, such as `read_secret`; none means all. The scenarios
//! `kms`, `scale`, `access`, `audit`, `relay`, `long_log`, `crowd`, `rotation` and `rotation_local` are other matters, with clusters and files of their own;
//! `instructions` counts instead of measuring time, and `gate`, which is not in "all", fails if there are too many.

mod access;
mod audit;
mod crowd;
mod instructions;
mod kms;
mod machine;
mod pgbench;
mod relay;
mod report;
mod rotation;
mod rotation_local;
mod scale;
mod scenarios;
mod stats;

use hyperion_vault_tests::{Client, Cluster, StopMode, memory};
use machine::{Cores, Sessions};
use pgbench::Run;
use report::{Outcome, Pair, Side};
use scenarios::{FEW, FIRST, FIRST_USERPASS, FIRST_VERSIONED, FIRST_WRITTEN, Kind, SECRETS, Scenario};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Keys not found in the cache during a "cached" scenario, at most: more would measure the key service. The cache is
/// set-associative, and with more than half of its entries in use a few keys find their set full.
const MISSES: f64 = 0.001;

/// Settings that differ from a default installation's, each for a reason.
const SETTINGS: [(&str, &str); 6] = [
    // For 64 of pgbench and a few of ours.
    ("max_connections", "120"),
    // As in production, and synchronous_commit stays on; it concerns the writing scenarios alone.
    ("fsync", "on"),
    // Nothing else is to run meanwhile.
    ("autovacuum", "off"),
    ("max_wal_size", "4GB"),
    // Room for all names with every set below its limit, and no expiry in the middle of a run: "cached" is to mean it.
    ("hyperion_vault.dek_cache_size", "65536"),
    ("hyperion_vault.dek_cache_ttl_secs", "7200"),
];

struct Plan {
    seconds: u32,
    pairs: u32,
    only: Vec<String>,
    out: PathBuf,
}

impl Plan {
    fn from_env() -> Self {
        let number = |name, default: u32| match std::env::var(name) {
            Ok(text) => {
                text.parse().ok().filter(|n| *n > 0).unwrap_or_else(|| panic!("{name}={text} is not a count"))
            }
            Err(_) => default,
        };
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from);
        Self {
            seconds: number("BENCH_SECONDS", 3),
            pairs: number("BENCH_PAIRS", 5),
            only: std::env::args().skip(1).collect(),
            out: std::env::var_os("BENCH_OUT").map_or_else(|| target.join("bench/bench.json"), PathBuf::from),
        }
    }

    fn wants(&self, scenario: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == scenario)
    }

    /// Seconds and pairs: runs of the stated figure at full length, of what stands beside it shorter.
    fn length(&self, scenario: &Scenario) -> (u32, u32) {
        if scenario.kind == Kind::Main {
            (self.seconds, self.pairs)
        } else {
            (self.seconds.min(2), self.pairs)
        }
    }
}

fn main() {
    let plan = Plan::from_env();
    let scenarios: Vec<_> =
        scenarios::all().into_iter().filter(|scenario| plan.wants(scenario.name)).collect();
    let known = !scenarios.is_empty()
        || [
            kms::NAME,
            scale::NAME,
            access::NAME,
            audit::NAME,
            audit::LONG_LOG,
            audit::RELAY,
            crowd::NAME,
            instructions::NAME,
            instructions::GATE,
            rotation::NAME,
            rotation_local::NAME,
        ]
        .iter()
        .any(|name| plan.wants(name));
    assert!(known, "no scenario has one of these names: {:?}", plan.only);
    let cores = Cores::choose();
    if let Some(cores) = cores {
        cores.pin_client();
    }
    let mut document = if scenarios.is_empty() { json!({}) } else { beside_plain(&plan, &scenarios, cores) };
    if plan.wants(instructions::NAME) {
        document["instructions"] = instructions::measure();
    }
    if plan.only.iter().any(|name| name == instructions::GATE) {
        document["gate"] = instructions::check();
    }
    if plan.wants(audit::NAME) {
        document["audit"] = audit::measure(plan.pairs, cores);
    }
    // Part of "audit", so not of "all".
    if plan.only.iter().any(|name| name == audit::RELAY) {
        document["relay"] = audit::measure_relay(plan.pairs, cores);
    }
    if plan.wants(audit::LONG_LOG) {
        document["long_log"] = audit::measure_long_log(plan.pairs.min(3), cores);
    }
    if plan.wants(crowd::NAME) {
        document["crowd"] = crowd::measure(plan.pairs.min(3), cores);
    }
    if plan.wants(kms::NAME) {
        document["kms"] = kms::measure(plan.pairs.min(3), cores);
    }
    if plan.wants(scale::NAME) {
        document["scale"] = scale::measure(plan.pairs, cores);
    }
    if plan.wants(access::NAME) {
        document["access"] = access::measure(plan.pairs, cores);
    }
    if plan.wants(rotation::NAME) {
        document["rotation"] = rotation::measure(plan.pairs.min(3), cores);
    }
    if plan.wants(rotation_local::NAME) {
        document["rotation_local"] = rotation_local::measure(plan.pairs, cores);
    }
    write(&plan.out, &document);
}

/// The scenarios that have a plain counterpart.
fn beside_plain(plan: &Plan, scenarios: &[Scenario], cores: Option<Cores>) -> Value {
    let load_before = machine::load();
    let builder = Cluster::builder().time_limit(Duration::from_secs(3600));
    let cluster = SETTINGS.iter().fold(builder, |builder, (name, value)| builder.conf(name, value)).start();
    if let Some(cores) = cores {
        cores.pin_server(&cluster);
    }
    let build = fill(&cluster);
    let pinned = cores.map_or_else(
        || "not pinned (one core, or no taskset): figures jump".to_owned(),
        |cores| format!("server on core {}, pgbench on core {}", cores.server, cores.client),
    );
    println!("{}, {}", cluster.toolchain().version, machine::processor());
    println!("{pinned}; load average before: {load_before}");
    println!("hyperion_vault: {build} build; {SECRETS} secrets of 64 bytes; pgbench --protocol=prepared");
    println!("settings: {}", SETTINGS.map(|(name, value)| format!("{name} = {value}")).join(", "));
    println!("\n{}", report::HEADER);

    let outcomes: Vec<Outcome> = scenarios
        .iter()
        .map(|scenario| {
            if scenario.kind == Kind::Cold {
                forget_keys(&cluster, cores);
            }
            let outcome = measure(&cluster, scenario, plan);
            println!("{}", outcome.row());
            outcome
        })
        .collect();

    println!();
    let memory = shared_memory(&cluster);
    json!({
        "server": cluster.toolchain().version,
        "processor": machine::processor(),
        "build": build,
        "at_unix": SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs()),
        "pinned": cores.map(|cores| json!({ "server_core": cores.server, "client_core": cores.client })),
        "load_average_before": load_before,
        "load_average_after": machine::load(),
        "secrets": SECRETS,
        "value_bytes": 64,
        "settings": Value::from_iter(SETTINGS),
        "scenarios": outcomes.iter().map(Outcome::json).collect::<Vec<_>>(),
        "shared_memory": memory,
    })
}

fn write(path: &Path, document: &Value) {
    let written = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    written
        .and_then(|()| std::fs::write(path, format!("{document:#}\n")))
        .unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
    println!("written to {}", path.canonicalize().unwrap_or_else(|_| path.to_owned()).display());
}

/// From here on no key is cached.
fn forget_keys(cluster: &Cluster, cores: Option<Cores>) {
    cluster.stage_conf("hyperion_vault.dek_cache_ttl_secs", "0");
    cluster.restart(StopMode::Fast);
    if let Some(cores) = cores {
        cores.pin_server(cluster);
    }
}

/// Makes the secrets and the tables; says which build of the extension this is.
fn fill(cluster: &Cluster) -> &'static str {
    let vault = cluster.vault();
    let mut root = vault.root();
    let rows = |first: u64, count: u32| {
        let last = first + u64::from(count) - 1;
        format!("SELECT n::text, repeat(md5(n::text), 2) FROM generate_series({first}, {last}) n")
    };
    let (plain, userpass, versioned, written) = (
        rows(FIRST, SECRETS),
        rows(FIRST_USERPASS, FEW),
        rows(FIRST_VERSIONED, FEW),
        rows(FIRST_WRITTEN, SECRETS),
    );
    run(
        &mut root,
        &format!(
            "CREATE SCHEMA bench;
             CREATE TABLE bench.plain (name text COLLATE \"C\" PRIMARY KEY, value text NOT NULL);
             CREATE TABLE bench.inserted (LIKE bench.plain INCLUDING ALL);
             CREATE TABLE bench.updated (LIKE bench.plain INCLUDING ALL);
             CREATE FUNCTION bench.wrapped(text) RETURNS text LANGUAGE plpgsql SECURITY DEFINER AS
               'BEGIN RETURN (SELECT value FROM bench.plain WHERE name = $1); END';
             GRANT USAGE ON SCHEMA bench TO app, ops;
             GRANT SELECT ON bench.plain TO app;
             GRANT INSERT ON bench.inserted TO ops;
             GRANT SELECT, UPDATE ON bench.updated TO ops;
             INSERT INTO bench.plain {plain} UNION ALL {userpass} UNION ALL {versioned};
             INSERT INTO bench.updated {written};"
        ),
    );
    let mut ops = vault.ops();
    let mut each =
        |call: &str, rows: &str| run(&mut ops, &format!("SELECT {call} FROM ({rows}) r (name, value)"));
    each("vault.create_secret(name, value)", &plain);
    each("vault.create_secret(name => name, username => 'user', password => value)", &userpass);
    each("vault.create_secret(name => name, value => reverse(value), grace_period => '1 day')", &versioned);
    each("vault.put_secret(name, value)", &versioned);
    each("vault.create_secret(name, value)", &written);
    let old = "SELECT count(*) FROM bench.plain WHERE length(name) > 0 AND name >= $1 AND vault.read_secret(name, 1) <> reverse(value)";
    let first = FIRST_VERSIONED.to_string();
    let wrong: i64 = vault.app().query_one(old, &[&first]).expect("versions in grace").get(0);
    assert_eq!(wrong, 0, "earlier versions that do not read as they were written");
    // Everything read once: keys cached, hint bits set, and the value is the one that went in.
    let wrong = number(
        &mut vault.app(),
        "SELECT count(*) FROM bench.plain WHERE vault.read_secret(name) IS DISTINCT FROM value",
    );
    assert_eq!(wrong, 0, "secrets that do not read as they were written");
    // Each alone: a script is one transaction.
    run(&mut root, "VACUUM (ANALYZE)");
    run(&mut root, "CHECKPOINT");
    let testing = "SELECT count(*) FROM pg_settings WHERE name = 'hyperion_vault.test_faults'";
    if number(&mut root, testing) == 0 { "release" } else { "testing" }
}

fn measure(cluster: &Cluster, scenario: &Scenario, plan: &Plan) -> Outcome {
    let (seconds, pairs) = plan.length(scenario);
    let sessions = Sessions::of(cluster);
    let side = |script: &str, seed| {
        relay::settle(cluster);
        if scenario.kind == Kind::Writing {
            // Autovacuum is off: dead rows that one run leaves are not to slow the next.
            run(&mut cluster.superuser(), "VACUUM");
        }
        let before = sessions.total(cluster);
        let run = Run { script, user: scenario.user, clients: scenario.clients, seconds, seed };
        let rate = run.execute(cluster);
        let spent = sessions.total(cluster) - before;
        Side { tps: rate.tps, cpu_us: spent.as_secs_f64() * 1e6 / rate.transactions as f64 }
    };
    // A second of each first: the plain table's pages and the server's own caches warm up too.
    for script in [&scenario.vault, &scenario.plain] {
        let seed = scenario.seed(0);
        Run { script, user: scenario.user, clients: scenario.clients, seconds: 1, seed }.execute(cluster);
    }
    let before = lookups(cluster);
    let pairs = (1..=pairs)
        .map(|pair| scenario.seed(pair))
        .map(|seed| Pair { vault: side(&scenario.vault, seed), plain: side(&scenario.plain, seed) })
        .collect();
    let after = lookups(cluster);
    let cache_hits = scenario.cached().then(|| {
        let (hits, misses) = (after.0 - before.0, after.1 - before.1);
        let share = hits as f64 / (hits + misses) as f64;
        assert!(share >= 1.0 - MISSES, "{}: not cached: {hits} hits, {misses} misses", scenario.name);
        share
    });
    Outcome {
        name: scenario.name,
        clients: scenario.clients,
        seconds,
        pairs,
        cache_hits,
        load: machine::load(),
    }
}

/// Cache hits and misses since the server's start.
fn lookups(cluster: &Cluster) -> (i64, i64) {
    let mut root = cluster.superuser();
    let mut count =
        |what| number(&mut root, &format!("SELECT (vault.status() #>> '{{cache,{what}}}')::bigint"));
    (count("hits"), count("misses") + count("stale"))
}

/// What the server mapped beside what its settings allow, as it runs and once more with small settings.
fn shared_memory(cluster: &Cluster) -> Vec<Value> {
    let here = used_memory(cluster);
    cluster.stage_conf("hyperion_vault.kms_queue_slots", "16");
    cluster.stage_conf("hyperion_vault.dek_cache_size", "1000");
    cluster.restart(StopMode::Fast);
    vec![here, used_memory(cluster)]
}

fn used_memory(cluster: &Cluster) -> Value {
    let mut root = cluster.superuser();
    let mut setting = |name| {
        let value = number(&mut root, &format!("SELECT current_setting('hyperion_vault.{name}')::bigint"));
        usize::try_from(value).expect("neither setting takes a negative value")
    };
    let (slots, entries) = (setting("kms_queue_slots"), setting("dek_cache_size"));
    let bytes = number(&mut root, "SELECT (vault.status() #>> '{shared_memory,bytes}')::bigint");
    let bound = memory::bound(slots, entries);
    println!(
        "shared memory: {bytes} bytes of at most {bound} (kms_queue_slots = {slots}, dek_cache_size = {entries})"
    );
    assert!(bytes > 0 && bytes as usize <= bound, "more shared memory than the settings allow");
    json!({ "bytes": bytes, "bound": bound, "kms_queue_slots": slots, "dek_cache_size": entries })
}

fn run(client: &mut Client, sql: &str) {
    client.batch_execute(sql).unwrap_or_else(|error| panic!("{sql}\nfailed: {error:?}"));
}

fn number(client: &mut Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).unwrap_or_else(|error| panic!("{sql}\nfailed: {error:?}")).get(0)
}
