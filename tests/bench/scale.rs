//! `scale`: the same calls on a vault a hundred times as large. Runs in the benchmark's process.
//!
//! Two clusters that differ in nothing but the number of secrets, each with four superseded versions, asked in turn (small,
//! large, small, large …). Reported is how much longer a call takes on the large one: 1.3 at most is what the project
//! promises. The trap: keys that fit the cache of the small vault and not of the large one, which would measure the key
//! service; both caches hold everything, and the names asked for are spread over all there are.

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
    json!({ "name": NAME, "small": SMALL, "large": LARGE, "versions": VERSIONS, "calls": results })
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
    root.ask("VACUUM (ANALYZE)");
    cluster
}
