//! `audit`: what being audited costs, and how fast records reach the table. Runs in the benchmark's process.
//!
//! In one run, in turn: a plain select; `vault.read_secret`, which decides, records and opens; and what people do without
//! a vault, a function that inserts into a log and selects, with synchronous commit and without. Reported as ratios to the
//! plain select. Then once more the first two, for so long that the relay must keep up: what it has not done at the end of a
//! short run is not in its figure. Then the relay is held while sessions read, and timed while it takes all those records.
//!
//! `relay`: that last part alone.
//!
//! `long_log`: the same of the relay with many millions of rows in the table (`BENCH_LOG_ROWS`, ten million) beside an empty one,
//! what a row takes on the disk, and how long the rows of a minute are looked for.

use crate::machine::{self, Cores};
use crate::pgbench::Run;
use crate::relay::{caught_up, lag, settle};
use crate::scenarios::FIRST;
use crate::stats::Summary;
use hyperion_vault_tests::threads::clients_at_once;
use hyperion_vault_tests::{Ask, Client, Cluster, SIGCONT, SIGSTOP};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

pub const NAME: &str = "audit";
pub const LONG_LOG: &str = "long_log";
pub const RELAY: &str = "relay";

const SECRETS: u64 = 1_000;
const SECONDS: u32 = 2;
/// Of a run in which the relay must keep up.
const LONG: u32 = 45;
/// Records that the relay takes while it is timed.
const RECORDS: usize = 600_000;
/// So many are left to wait: the relay takes its time with the last ones.
const LEFT: i64 = 200_000;
const SESSIONS: usize = 4;
const LIMIT: Duration = Duration::from_secs(600);

pub fn measure(pairs: u32, cores: Option<Cores>) -> Value {
    let cluster = cluster(cores);
    println!("\nreads that are audited ÷ a plain primary-key select, in one run");
    let reads: Vec<Value> = [1, 8].into_iter().map(|clients| compare(&cluster, clients, pairs)).collect();
    let sustained = sustained(&cluster, pairs.min(3));
    let ingest = ingest(&cluster, pairs.min(3));
    json!({ "name": NAME, "reads": reads, "sustained": sustained, "ingest": ingest })
}

/// The rate of the relay by itself, for which two builds are compared.
pub fn measure_relay(runs: u32, cores: Option<Cores>) -> Value {
    println!("\nthe relay by itself");
    json!({ "name": RELAY, "ingest": ingest(&cluster(cores), runs) })
}

/// What a log of many rows costs that an empty one does not.
pub fn measure_long_log(runs: u32, cores: Option<Cores>) -> Value {
    let rows: u64 =
        std::env::var("BENCH_LOG_ROWS").map_or(10_000_000, |n| n.parse().expect("BENCH_LOG_ROWS is a count"));
    let cluster = cluster(cores);
    println!("\nthe audit log: empty, then with {rows} rows more");
    let empty = ingest(&cluster, runs);
    let mut root = cluster.superuser();
    settle(&cluster);
    // A row each millisecond up to a day ago; below the ids that there are.
    for first in (1..=rows).step_by(1_000_000) {
        root.ask(&format!(
            "INSERT INTO vault.audit_log (id, at, spool_id, position, system_id, timeline, node, session_role, role, client,
                client_addr, action, function, subject, version, outcome, occurrences)
             SELECT i, now() - interval '1 day' - ({rows} - i) * interval '1 millisecond', '00000000-0000-0000-0000-000000000001', i::bigint * 120,
                7000000000000000000, 1, 'node', 'app', 'app', 'tcp', '10.0.0.7', 'read', 'read_secret', 'app/db/password' || i % 1000,
                1, 'ok', 1
               FROM generate_series({first}, least({rows}, {first} + 999999)) i"
        ));
    }
    root.ask("VACUUM ANALYZE vault.audit_log");
    root.ask("CHECKPOINT");
    let long = ingest(&cluster, runs);
    let number = |root: &mut Client, sql: &str| root.ask(sql).parse::<f64>().expect("a number");
    let bytes = number(
        &mut root,
        "SELECT pg_total_relation_size('vault.audit_log')::float8 / count(*) FROM vault.audit_log",
    );
    let minute = format!(
        "SELECT count(*) FROM vault.audit_log WHERE at BETWEEN now() - interval '1 day' - {rows} * interval '0.5 milliseconds'
            AND now() - interval '1 day' - {rows} * interval '0.5 milliseconds' + interval '1 minute'"
    );
    let found = number(&mut root, &minute);
    let begun = Instant::now();
    root.ask(&minute);
    let looked = begun.elapsed();
    println!("{bytes:.0} bytes a row with its indexes; {found} rows of one minute found in {looked:?}");
    json!({ "name": LONG_LOG, "rows": rows, "empty": empty, "long": long, "bytes_per_row": bytes, "minute_ms": looked.as_secs_f64() * 1000.0 })
}

fn cluster(cores: Option<Cores>) -> Cluster {
    let cluster = Cluster::builder()
        .time_limit(Duration::from_secs(7200))
        .fsync(true)
        .conf("autovacuum", "off")
        .conf("max_wal_size", "4GB")
        .conf("hyperion_vault.dek_cache_ttl_secs", "7200")
        .start();
    fill(&cluster);
    if let Some(cores) = cores {
        cores.pin_server(&cluster);
    }
    cluster
}

fn compare(cluster: &Cluster, clients: u32, pairs: u32) -> Value {
    let name = format!("\\set n random({FIRST}, {})\n", FIRST + SECRETS - 1);
    let scripts = [
        ("plain select", "app", format!("{name}SELECT value FROM bench.plain WHERE name = :n;\n")),
        ("vault.read_secret", "app", format!("{name}SELECT vault.read_secret(:n);\n")),
        ("INSERT and select, synchronous commit", "app", format!("{name}SELECT bench.read_audited(:n);\n")),
        (
            "INSERT and select, asynchronous commit",
            "app_async",
            format!("{name}SELECT bench.read_audited(:n);\n"),
        ),
    ];
    let rate = |(_, user, script): &(&str, &str, String), seed| {
        settle(cluster);
        Run { script, user, clients, seconds: SECONDS, seed }.execute(cluster).tps
    };
    for script in &scripts {
        rate(script, 0);
    }
    let mut ratios = vec![Vec::new(); scripts.len()];
    for seed in 1..=pairs {
        let plain = rate(&scripts[0], seed);
        for (script, ratios) in scripts.iter().zip(&mut ratios).skip(1) {
            ratios.push(rate(script, seed) / plain);
        }
    }
    let results = scripts.iter().zip(ratios).skip(1).map(|((what, ..), ratios)| {
        let ratio = Summary::of(ratios).expect("pairs, every rate above zero");
        println!("{what:<40} c={clients}  {:.2} ({:.2} – {:.2})", ratio.median, ratio.min, ratio.max);
        json!({ "what": what, "median": ratio.median, "min": ratio.min, "max": ratio.max })
    });
    json!({ "clients": clients, "ratios": results.collect::<Vec<_>>(), "load_average": machine::load() })
}

/// Eight clients for so long that what they leave must be taken meanwhile.
fn sustained(cluster: &Cluster, pairs: u32) -> Value {
    let name = format!("\\set n random({FIRST}, {})\n", FIRST + SECRETS - 1);
    let rate = |call: &str, seed| {
        settle(cluster);
        let script = &format!("{name}{call};\n");
        Run { script, user: "app", clients: 8, seconds: LONG, seed }.execute(cluster)
    };
    let mut root = cluster.superuser();
    let (mut ratios, mut left) = (Vec::new(), Vec::new());
    for seed in 1..=pairs {
        let plain = rate("SELECT value FROM bench.plain WHERE name = :n", seed);
        let vault = rate("SELECT vault.read_secret(:n)", seed);
        left.push(lag(&mut root) as f64 / vault.transactions as f64);
        ratios.push(vault.tps / plain.tps);
    }
    let ratio = Summary::of(ratios).expect("pairs, every rate above zero");
    let most = left.iter().copied().fold(0.0, f64::max);
    println!(
        "vault.read_secret for {LONG} s                 c=8  {:.2} ({:.2} – {:.2}); of its records at most {:.1} % not in the table then",
        ratio.median,
        ratio.min,
        ratio.max,
        most * 100.0
    );
    json!({ "seconds": LONG, "median": ratio.median, "min": ratio.min, "max": ratio.max, "left": left })
}

/// Records a second from the spool into the table.
fn ingest(cluster: &Cluster, runs: u32) -> Value {
    let mut root = cluster.superuser();
    let rates: Vec<f64> = (0..runs)
        .map(|_| {
            caught_up(&mut root, 20);
            let relay = cluster.pid_of("hyperion_vault relay");
            cluster.kill(relay, SIGSTOP);
            clients_at_once(cluster, "app", SESSIONS, LIMIT, |_, mut client| {
                let each = RECORDS / SESSIONS;
                client.ask(&format!("DO $$ BEGIN FOR i IN 1..{each} LOOP PERFORM vault.read_secret('{FIRST}'); END LOOP; END $$"));
            });
            let count = "SELECT coalesce(sum(records), 0) FROM vault.audit_spools";
            let before: f64 = root.ask(count).parse().expect("a number");
            let begun = Instant::now();
            cluster.kill(relay, SIGCONT);
            caught_up(&mut root, LEFT);
            let taken = root.ask(count).parse::<f64>().expect("a number") - before;
            let rate = taken / begun.elapsed().as_secs_f64();
            println!("{rate:>8.0} records a second into the table ({taken:.0} of them)   load {}", machine::load());
            rate
        })
        .collect();
    let rate = Summary::of(rates).expect("runs");
    json!({ "records": RECORDS, "per_second": { "median": rate.median, "min": rate.min, "max": rate.max } })
}

fn fill(cluster: &Cluster) {
    let vault = cluster.vault();
    let mut root = vault.root();
    root.ask(&format!(
        "CREATE SCHEMA bench;
         CREATE TABLE bench.plain (name text COLLATE \"C\" PRIMARY KEY, value text NOT NULL);
         CREATE TABLE bench.log (id bigserial PRIMARY KEY, at timestamptz NOT NULL, who name NOT NULL, client inet, name text NOT NULL);
         INSERT INTO bench.plain SELECT i::text, repeat('v', 64) FROM generate_series({FIRST}, {FIRST} + {SECRETS} - 1) i;
         CREATE FUNCTION bench.read_audited(wanted text) RETURNS text LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
         BEGIN
             INSERT INTO bench.log (at, who, client, name) VALUES (clock_timestamp(), session_user, inet_client_addr(), wanted);
             RETURN (SELECT value FROM bench.plain WHERE name = wanted);
         END $$;
         GRANT USAGE ON SCHEMA bench TO PUBLIC; GRANT SELECT ON bench.plain TO PUBLIC;
         CREATE ROLE app_async LOGIN; ALTER ROLE app_async SET synchronous_commit = off"
    ));
    vault.ops().ask(&format!(
        "SELECT count(vault.create_secret(i::text, repeat('v', 64))) FROM generate_series({FIRST}, {FIRST} + {SECRETS} - 1) i"
    ));
    vault.app().ask(&format!(
        "SELECT count(vault.read_secret(i::text)) FROM generate_series({FIRST}, {FIRST} + {SECRETS} - 1) i"
    ));
    root.ask("VACUUM ANALYZE bench.plain");
}
