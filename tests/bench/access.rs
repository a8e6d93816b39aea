//! `access`: the same cached read in a vault with one rule and in one with a hundred thousand. Runs in the benchmark's process.
//!
//! Two clusters that differ in their policy alone, asked in turn: one role with one rule and one token; 1,000 roles of 100
//! rules and 10,000 tokens. The caller has one role, bound to his Postgres role or carried by a token that each
//! transaction shows. Reported is how much longer a call takes under the large policy, and how much more of the server's
//! processor, which jumps less on a busy machine: 1.05 at most is what the project promises.

use crate::machine::{self, Cores, Sessions};
use crate::pgbench::Run;
use crate::scenarios::FIRST;
use crate::stats::Summary;
use hyperion_vault_tests::{Ask, Cluster};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

pub const NAME: &str = "access";

const SECRETS: u64 = 1_000;
const ROLES: u32 = 1_000;
const RULES: u32 = 100;
const TOKENS: u32 = 10_000;
const SECONDS: u32 = 2;

struct Side {
    cluster: Cluster,
    token: String,
}

/// Measures each way to call `pairs` times and prints it.
pub fn measure(pairs: u32, cores: Option<Cores>) -> Value {
    let (little, large) = (vault_of(1, 1, 1, cores), vault_of(ROLES, RULES, TOKENS, cores));
    println!("\na cached read under {ROLES} roles of {RULES} rules and {TOKENS} tokens ÷ under one of each");
    let name = format!("\\set n random({FIRST}, {})\n", FIRST + SECRETS - 1);
    let read = "SELECT vault.read_secret(:n);\n";
    let results: Vec<Value> = [("bound", "bound", false), ("token", "holder", true)]
        .into_iter()
        .map(|(what, user, shows)| {
            let script = |side: &Side| {
                let show = format!("BEGIN;\nSELECT vault.authenticate('{}');\n{read}END;\n", side.token);
                format!("{name}{}", if shows { show.as_str() } else { read })
            };
            compare(what, user, (&little, &script(&little)), (&large, &script(&large)), pairs)
        })
        .collect();
    let reload = first_call(&large);
    println!("first call of a session, which loads the policy: {:.2} ms", reload.as_secs_f64() * 1e3);
    json!({ "name": NAME, "roles": ROLES, "rules": RULES, "tokens": TOKENS, "calls": results,
            "first_call_ms": reload.as_secs_f64() * 1e3 })
}

fn compare(
    what: &str,
    user: &str,
    (little, little_script): (&Side, &str),
    (large, large_script): (&Side, &str),
    pairs: u32,
) -> Value {
    // Time and processor time of one transaction.
    let cost = |side: &Side, script: &str, seed: u32| {
        let sessions = Sessions::of(&side.cluster);
        let before = sessions.total(&side.cluster);
        let rate = Run { script, user, clients: 1, seconds: SECONDS, seed }.execute(&side.cluster);
        let spent = (sessions.total(&side.cluster) - before).as_secs_f64();
        (1.0 / rate.tps, spent / rate.transactions as f64)
    };
    cost(little, little_script, 0);
    cost(large, large_script, 0);
    let (longer, dearer): (Vec<f64>, Vec<f64>) = (1..=pairs)
        .map(|seed| {
            let (a, b) = (cost(little, little_script, seed), cost(large, large_script, seed));
            (b.0 / a.0, b.1 / a.1)
        })
        .unzip();
    let summary = |ratios: &[f64]| Summary::of(ratios.iter().copied()).expect("pairs, every rate above zero");
    let (time, cpu) = (summary(&longer), summary(&dearer));
    println!(
        "{what:<15}time {:>5.3} ({:.3} – {:.3})   server CPU {:>5.3} ({:.3} – {:.3})   load {}",
        time.median,
        time.min,
        time.max,
        cpu.median,
        cpu.min,
        cpu.max,
        machine::load()
    );
    json!({ "call": what, "longer": longer, "cpu": dearer,
            "median": { "longer": time.median, "cpu": cpu.median }, "load_average": machine::load() })
}

/// How long a new session takes to find out what it may.
fn first_call(side: &Side) -> Duration {
    let ask = |first: bool| {
        let mut client = side.cluster.connect("bound", side.cluster.database());
        client.ask(if first { "SELECT 1" } else { "SELECT vault.can('list', 'x')" });
        let begun = Instant::now();
        client.ask("SELECT vault.can('list', 'x')");
        begun.elapsed()
    };
    // The quickest of some: what else the machine does only adds.
    let quickest = |first| (0..21).map(|_| ask(first)).min().unwrap_or_default();
    quickest(true).saturating_sub(quickest(false))
}

fn vault_of(roles: u32, rules: u32, tokens: u32, cores: Option<Cores>) -> Side {
    let cluster = Cluster::builder()
        .time_limit(Duration::from_secs(3600))
        .conf("autovacuum", "off")
        .conf("hyperion_vault.dek_cache_ttl_secs", "7200")
        .start();
    if let Some(cores) = cores {
        cores.pin_server(&cluster);
    }
    let mut root = cluster.vault().root();
    let last = FIRST + SECRETS - 1;
    // The caller's role comes first: its own rule covers the names; the others of it lie around them in the index.
    root.ask(&format!(
        "SELECT count(vault.create_secret(n::text, repeat(md5(n::text), 2))) FROM generate_series({FIRST}, {last}) n;
         CREATE ROLE bound LOGIN IN ROLE vault_user; CREATE ROLE holder LOGIN IN ROLE vault_user;
         SELECT count(vault.create_role('role ' || r, permissions => (
             SELECT jsonb_agg(jsonb_build_object('action', 'read', 'path',
                      CASE WHEN r = 1 AND i = 1 THEN '1*' ELSE to_char(99999999000 + 1000 * i + r, 'FM999999999999') || '/*' END))
               FROM generate_series(1, {rules}) i))) FROM generate_series(1, {roles}) r;
         SELECT vault.bind_role('role 1', 'bound');
         SELECT count(vault.create_token('token ' || t, 'role ' || 1 + t % {roles})) FROM generate_series(2, {tokens}) t"
    ));
    if roles > 1 {
        root.ask(&format!(
            "DO $$ BEGIN FOR r IN 2..{roles} LOOP EXECUTE format('CREATE ROLE %I', 'group ' || r); PERFORM vault.bind_role('role ' || r, format('%I', 'group ' || r)::regrole); END LOOP; END $$"
        ));
    }
    let token = root.ask("SELECT vault.create_token('token 1', 'role 1')");
    let wrong = "SELECT count(*) FROM generate_series(100000000000, 100000000999) n WHERE vault.read_secret(n::text) <> repeat(md5(n::text), 2)";
    let mut bound = cluster.connect("bound", cluster.database());
    assert_eq!(bound.ask(wrong), "0");
    assert_eq!(root.ask("SELECT vault.status() -> 'access' ->> 'tokens'"), tokens.to_string());
    root.ask("VACUUM (ANALYZE)");
    Side { cluster, token }
}
