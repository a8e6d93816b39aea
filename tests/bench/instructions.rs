//! `instructions`: how many instructions of the server one call takes, counted by valgrind's callgrind; `gate` holds some of
//! them against limits. Runs in the benchmark's process.
//!
//! A count does not depend on what else the machine does, so it tells changes of a per cent that times on a shared machine
//! do not. Two runs of different length are subtracted, so that a session's start does not count; the kernel's part (the
//! larger one of a short call) is not in it. The trap: valgrind has no SHA instructions, so the digest of the cache key is counted
//! as the software that runs in their place; its share is shown apart and left out of the ratio.

use crate::scenarios::{self, Kind, Scenario};
use hyperion_vault_tests::{Cluster, StopMode};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

pub const NAME: &str = "instructions";
/// Only on demand: a part of [`NAME`] that fails.
pub const GATE: &str = "gate";

/// Instructions of the server's user mode in one call ÷ in the plain select of the same server, at most. A few per cent above
/// what was counted: compilers of the server differ. Whoever has a reason to raise one, raises it here.
const LIMITS: [(&str, f64); 4] =
    [("read_secret", 1.06), ("verify", 1.33), ("by_version", 1.19), ("userpass", 1.09)];

const SHORT: u32 = 500;
const LONG: u32 = 2_500;
/// Names asked for: all are cached after the first run.
const NAMES: u64 = 100;

/// Instructions per call.
#[derive(Clone, Copy, Default)]
struct Count {
    all: f64,
    /// Of which of SHA-256 in software.
    digest: f64,
}

pub fn measure() -> Value {
    if !Command::new("valgrind").arg("--version").output().is_ok_and(|out| out.status.success()) {
        println!("\ninstructions: not counted, there is no valgrind here");
        return json!({ "name": NAME, "skipped": "no valgrind" });
    }
    let counted = count_all(|_| true);
    let scenarios = counted.iter().map(|one| {
        json!({ "name": one.name, "vault": one.vault.all, "digest": one.vault.digest, "plain": one.plain.all, "ratio": one.ratio() })
    });
    json!({ "name": NAME, "scenarios": scenarios.collect::<Vec<_>>() })
}

/// Counts what has a limit. Panics if one is exceeded, or if there is no valgrind.
pub fn check() -> Value {
    let limit = |name: &str| LIMITS.iter().find(|(limited, _)| *limited == name).map(|(_, limit)| *limit);
    let counted = count_all(|name| limit(name).is_some());
    assert_eq!(counted.len(), LIMITS.len(), "a limit for what is not counted");
    let slower: Vec<String> = counted
        .iter()
        .filter_map(|one| {
            let limit = limit(one.name)?;
            (one.ratio() > limit).then(|| format!("{} {:.3}, limit {limit}", one.name, one.ratio()))
        })
        .collect();
    assert!(slower.is_empty(), "more instructions than allowed: {}", slower.join("; "));
    println!("all within their limits");
    json!({ "name": GATE, "passed": LIMITS.len() })
}

/// What was counted of a scenario.
struct Counted {
    name: &'static str,
    vault: Count,
    plain: Count,
}

impl Counted {
    fn ratio(&self) -> f64 {
        (self.vault.all - self.vault.digest) / self.plain.all
    }
}

fn count_all(wanted: impl Fn(&str) -> bool) -> Vec<Counted> {
    let cluster = Cluster::builder()
        .time_limit(Duration::from_secs(3600))
        .conf("autovacuum", "off")
        .conf("hyperion_vault.dek_cache_ttl_secs", "7200")
        .start();
    crate::fill(&cluster);
    cluster.stop(StopMode::Fast);
    let directory = cluster.dir().join("callgrind");
    cluster.make_server_directory(&directory);
    let out = format!("--callgrind-out-file={}/%p.out", directory.display());
    let runner = ["valgrind", "--tool=callgrind", "--trace-children=yes", &out];
    cluster.start_under(&runner).unwrap_or_else(|failure| panic!("{}:\n{}", failure.reason, failure.log));

    println!(
        "\ninstructions per call in user mode; without those of SHA-256, which the processor does itself"
    );
    println!("{:<17}{:>9}{:>9}{:>8}{:>19}", "", "vault", "plain", "ratio", "(SHA in software)");
    let mut plain_counts: HashMap<String, Count> = HashMap::new();
    let mut results = Vec::new();
    let chosen =
        |scenario: &Scenario| scenario.clients == 1 && scenario.kind < Kind::Writing && wanted(scenario.name);
    for scenario in scenarios::all().into_iter().filter(chosen) {
        let vault = count(&cluster, &directory, &few(&scenario.vault));
        let plain = *plain_counts
            .entry(scenario.plain.clone())
            .or_insert_with(|| count(&cluster, &directory, &few(&scenario.plain)));
        let counted = Counted { name: scenario.name, vault, plain };
        println!(
            "{:<17}{:>9.0}{:>9.0}{:>8.3}{:>19.0}",
            scenario.name,
            vault.all - vault.digest,
            plain.all,
            counted.ratio(),
            vault.digest
        );
        results.push(counted);
    }
    results
}

/// The script on a few names only.
fn few(script: &str) -> String {
    let Some(start) = script.find("random(") else { return script.to_owned() };
    let (head, rest) = script.split_at(start + "random(".len());
    let (first, tail) = rest.split_once(',').expect("two arguments");
    let (_, tail) = tail.split_once(')').expect("a closing parenthesis");
    let last = first.trim().parse::<u64>().expect("a number") + NAMES - 1;
    format!("{head}{first}, {last}){tail}")
}

fn count(cluster: &Cluster, directory: &Path, script: &str) -> Count {
    let run = |transactions: u32| {
        let before = profiles(directory);
        let transactions = transactions.to_string();
        let args = [
            "--no-vacuum",
            "--protocol=prepared",
            "--client=1",
            "--random-seed=1",
            "--username=app",
            "--file=-",
        ];
        let args: Vec<&str> = args.into_iter().chain(["--transactions", &transactions]).collect();
        let output = cluster.run_tool("pgbench", &args, script.as_bytes());
        assert!(output.status.success(), "{}", output.errors());
        // Written when the session ends. pgbench connects more than once; the session that ran the script counted most.
        hyperion_vault_tests::wait_for("the session's profile", hyperion_vault_tests::PATIENCE, || {
            cluster.pids("[local]").is_empty() && profiles(directory).len() > before.len()
        });
        // A session that has left the list may still be writing its own.
        let written = || -> Vec<_> {
            let size = |path: PathBuf| {
                let bytes = std::fs::metadata(&path).map_or(0, |file| file.len());
                (path, bytes)
            };
            profiles(directory).into_iter().map(size).collect()
        };
        let mut seen = written();
        loop {
            std::thread::sleep(Duration::from_millis(1000));
            let now = written();
            if now == seen {
                break;
            }
            seen = now;
        }
        let new = profiles(directory).into_iter().filter(|path| !before.contains(path));
        let counts = new.filter_map(|path| read(&std::fs::read_to_string(path).ok()?));
        counts.max_by(|a, b| a.all.total_cmp(&b.all)).expect("a profile of the session")
    };
    // The first reads of each name ask the key service.
    run(SHORT);
    // The less of two: what the server's other processes commit meanwhile makes snapshots dearer.
    let least = |transactions| {
        let (one, other) = (run(transactions), run(transactions));
        if one.all < other.all { one } else { other }
    };
    let (short, long) = (least(SHORT), least(LONG));
    let per_call = |long: f64, short: f64| (long - short) / f64::from(LONG - SHORT);
    Count { all: per_call(long.all, short.all), digest: per_call(long.digest, short.digest) }
}

fn profiles(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).expect("the directory of the profiles");
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "out"))
        .collect()
}

/// Sum and share of a profile in callgrind's format: `fn=(id) name` (the name the first time only), lines of position and
/// cost, and after `calls=` one line with the cost of what was called, which is counted where it belongs.
fn read(profile: &str) -> Option<Count> {
    let mut names: HashMap<&str, bool> = HashMap::new();
    let mut count = Count::default();
    let (mut is_digest, mut called) = (false, false);
    for line in profile.lines() {
        if let Some(function) = line.strip_prefix("fn=") {
            let (id, name) = function.split_once(' ').unwrap_or((function, ""));
            is_digest = *names.entry(id).or_insert_with(|| name.contains("sha256::soft::compress"));
        } else if let Some(function) = line.strip_prefix("cfn=") {
            if let Some((id, name)) = function.split_once(' ') {
                names.entry(id).or_insert_with(|| name.contains("sha256::soft::compress"));
            }
        } else if line.starts_with("calls=") {
            called = true;
        } else if line.starts_with(|c: char| c.is_ascii_digit() || "+-*".contains(c))
            && !std::mem::take(&mut called)
        {
            let cost: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
            count.all += cost;
            if is_digest {
                count.digest += cost;
            }
        }
    }
    (count.all > 0.0).then_some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_summed_without_counting_twice() {
        let profile = "events: Ir\n\nfl=(1) a.c\nfn=(1) main\n10 5\n+1 7\ncfn=(2) sha2::sha256::soft::compress\ncalls=2 +3\n* 100\n\nfn=(2)\n20 100\n\ntotals: 112\n";
        let count = read(profile).unwrap();
        assert_eq!((count.all, count.digest), (112.0, 100.0));
        assert!(read("").is_none());
    }

    #[test]
    fn few_names_of_a_range() {
        assert_eq!(few("\\set n random(500, 9000)\nSELECT :n;\n"), "\\set n random(500, 599)\nSELECT :n;\n");
    }
}
