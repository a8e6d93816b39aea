//! `scale`: the same calls on a vault a hundred times as large. Runs in the benchmark's process.
//!
//! Two clusters that differ in nothing but the number of secrets, each with four superseded versions, asked in turn (small,
//! large, small, large …). Reported is how much longer a call takes on the large one: 1.3 at most is what the project
//! promises. The trap: keys that fit the cache of the small vault and not of the large one, which would measure the key
//! service; both caches hold everything, and the names asked for are spread over all there are. On the large one, what 64
//! sessions do at once beside 8, which would show a lock that everybody waits for.

use crate::machine::{self, Cores};
use crate::pgbench::Run;
use crate::scenarios::FIRST;
use crate::stats::Summary;
use hyperion_vault_tests::threads::clients_at_once;
use hyperion_vault_tests::{Ask, Cluster};
use serde_json::{Value, json};
use std::time::Duration;

pub const NAME: &str = "scale";

const SMALL: u64 = 1_000;
const LARGE: u64 = 100_000;
const VERSIONS: u32 = 5;
/// Sessions that make the secrets.
const MAKERS: usize = 4;
const SECONDS: u32 = 2;
const LIMIT: Duration = Duration::from_secs(3600);

/// Calls, with the last line of a pgbench script each.
const CALLS: [(&str, &str); 3] = [
    ("read_secret", "SELECT vault.read_secret(:n);\n"),
    ("verify", "SELECT * FROM vault.verify(:n, 'not the value');\n"),
    ("list_secrets", "SELECT count(*) FROM vault.list_secrets(after => :n, max_rows => 100);\n"),
];

/// Measures each call `pairs` times and prints it.
pub fn measure(pairs: u32, cores: Option<Cores>) -> Value {
    let small = vault_of(SMALL, cores);
    let large = vault_of(LARGE, cores);
    println!("\n{VERSIONS} versions of each secret; time of a call among {LARGE} secrets ÷ among {SMALL}");
    let results: Vec<Value> = CALLS.iter().map(|call| compare(call, &small, &large, pairs)).collect();
    let crowds: Vec<Value> = CROWDS.iter().map(|crowd| crowd_of(crowd, &large, pairs)).collect();
    json!({ "name": NAME, "small": SMALL, "large": LARGE, "versions": VERSIONS, "calls": results, "crowds": crowds })
}

const FEW: u32 = 8;
const MANY: u32 = 64;
/// Names asked for, with the last line of a script each: what many sessions do at once must not be less than what a few do.
const CROWDS: [(&str, u64, &str); 4] = [
    ("10 hot secrets", 10, "SELECT vault.read_secret(:n);\n"),
    ("100,000 secrets", LARGE, "SELECT vault.read_secret(:n);\n"),
    ("10 hot rows, plain", 10, "SELECT value FROM bench.plain WHERE name = :n;\n"),
    ("100,000 rows, plain", LARGE, "SELECT value FROM bench.plain WHERE name = :n;\n"),
];

/// Calls a second of 64 sessions ÷ of 8.
fn crowd_of((what, names, call): &(&str, u64, &str), cluster: &Cluster, pairs: u32) -> Value {
    let script = format!("\\set n random({FIRST}, {})\n{call}", FIRST + names - 1);
    let rate = |clients, seed| {
        Run { script: &script, user: "app", clients, seconds: SECONDS, seed }.execute(cluster).tps
    };
    rate(FEW, 0);
    let kept: Vec<f64> = (1..=pairs).map(|seed| rate(MANY, seed) / rate(FEW, seed)).collect();
    let ratio = Summary::of(kept.iter().copied()).expect("at least one pair, every rate above zero");
    println!(
        "{what:<20}{:>6.2}   ({:.2} – {:.2})   {MANY} sessions ÷ {FEW}   load {}",
        ratio.median,
        ratio.min,
        ratio.max,
        machine::load()
    );
    json!({
        "names": what,
        "kept": { "median": ratio.median, "min": ratio.min, "max": ratio.max },
        "pairs": kept,
        "load_average": machine::load(),
    })
}

fn compare((name, call): &(&str, &str), small: &Cluster, large: &Cluster, pairs: u32) -> Value {
    let rate = |cluster: &Cluster, secrets: u64, seed: u32| {
        let script = format!("\\set n random({FIRST}, {})\n{call}", FIRST + secrets - 1);
        Run { script: &script, user: "app", clients: 1, seconds: SECONDS, seed }.execute(cluster).tps
    };
    // Pages and the server's own caches warm up first.
    rate(small, SMALL, 0);
    rate(large, LARGE, 0);
    let longer: Vec<f64> =
        (1..=pairs).map(|seed| rate(small, SMALL, seed) / rate(large, LARGE, seed)).collect();
    let ratio = Summary::of(longer.iter().copied()).expect("at least one pair, every rate above zero");
    println!(
        "{name:<15}{:>6.2}   ({:.2} – {:.2})   load {}",
        ratio.median,
        ratio.min,
        ratio.max,
        machine::load()
    );
    json!({
        "call": name,
        "longer": { "median": ratio.median, "min": ratio.min, "max": ratio.max },
        "pairs": longer,
        "load_average": machine::load(),
    })
}

/// A vault with that many secrets, their superseded versions out of grace and retained.
fn vault_of(secrets: u64, cores: Option<Cores>) -> Cluster {
    let cluster = Cluster::builder()
        .time_limit(LIMIT)
        .conf("autovacuum", "off")
        .conf("max_wal_size", "4GB")
        // Room for the large vault too: what is asked is how the work grows, not what a page from the disk costs.
        .conf("shared_buffers", "1GB")
        .conf("max_connections", "120")
        .conf("hyperion_vault.dek_cache_size", &(2 * LARGE * u64::from(VERSIONS)).to_string())
        .conf("hyperion_vault.dek_cache_ttl_secs", "7200")
        .start();
    if let Some(cores) = cores {
        cores.pin_server(&cluster);
    }
    cluster.vault();
    clients_at_once(&cluster, "ops", MAKERS, LIMIT, move |part, mut client| {
        let names = format!("generate_series({}, {}, {MAKERS}) n", FIRST + part as u64, FIRST + secrets - 1);
        client.ask(&format!(
            "SELECT count(vault.create_secret(n::text, md5(n::text), grace_period => '0')) FROM {names}"
        ));
        for version in 2..=VERSIONS {
            client.ask(&format!(
                "SELECT count(vault.update_secret(n::text, value => md5(n::text || '/{version}'))) FROM {names}"
            ));
        }
    });
    let mut root = cluster.superuser();
    let status = root.ask("SELECT vault.status() ->> 'secrets', vault.status() ->> 'retained_versions'");
    assert_eq!(status, format!("{secrets}|{}", secrets * u64::from(VERSIONS - 1)));
    root.ask(&format!(
        "CREATE SCHEMA bench; CREATE TABLE bench.plain (name text COLLATE \"C\" PRIMARY KEY, value text NOT NULL);
         INSERT INTO bench.plain SELECT n::text, md5(n::text) FROM generate_series({FIRST}, {}) n;
         GRANT USAGE ON SCHEMA bench TO app; GRANT SELECT ON bench.plain TO app",
        FIRST + secrets - 1
    ));
    root.ask("VACUUM (ANALYZE)");
    cluster
}
