//! What happens beside the storm: commands that rewrite tables and indexes, columns that come and go, processes that die.
//! Runs in the main thread.

use crate::random::Random;
use hyperion_vault_tests::{Ask, Client, Cluster, SIGKILL, SIGTERM};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const COMMANDS: [&str; 11] = [
    "VACUUM FULL {t}",
    "VACUUM FULL {t}",
    "CLUSTER {t} USING {key}",
    "REINDEX TABLE CONCURRENTLY {t}",
    "REINDEX TABLE CONCURRENTLY {t}",
    "REINDEX TABLE {t}",
    "VACUUM (FREEZE, INDEX_CLEANUP ON) {t}",
    "ANALYZE {t}",
    "ALTER TABLE {t} ADD COLUMN IF NOT EXISTS extra tstzrange",
    "ALTER TABLE {t} DROP COLUMN IF EXISTS extra",
    "CHECKPOINT",
];

/// The vault's tables with their primary keys.
const TABLES: &str = "SELECT c.oid::regclass, i.relname FROM pg_class c JOIN pg_constraint k ON k.conrelid = c.oid AND k.contype = 'p'
    JOIN pg_class i ON i.oid = k.conindid WHERE c.relnamespace = 'vault'::regnamespace AND c.relkind = 'r' ORDER BY 1";

/// What the server may answer such a command: it gave way to the storm, or the server went down under it.
const ALLOWED: [&str; 8] = ["55P03", "40P01", "57014", "57P01", "57P02", "57P03", "XX002", "08006"];

/// Disturbs until the deadline; tells what was done.
pub fn until(cluster: &Cluster, deadline: Instant, kill_every: Duration, stop: &AtomicBool) -> String {
    let mut random = Random::new(99);
    let tables = cluster.superuser().ask(TABLES);
    let tables: Vec<_> = tables.lines().filter_map(|line| line.split_once('|')).collect();
    assert!(tables.len() >= 10, "{tables:?}");
    let mut done: BTreeMap<String, u32> = BTreeMap::new();
    let begun = Instant::now();
    let mut next_kill = Instant::now() + kill_every;
    let mut kills = 0;
    let mut session: Option<Client> = None;
    while Instant::now() < deadline && !stop.load(Ordering::Relaxed) {
        if Instant::now() >= next_kill {
            session = None;
            *done.entry(kill(cluster, kills, &mut random)).or_default() += 1;
            kills += 1;
            next_kill = Instant::now() + kill_every;
            continue;
        }
        let Some(client) = &mut session else {
            session = connect(cluster);
            continue;
        };
        let (table, key) = *random.pick(&tables);
        let template = *random.pick(&COMMANDS);
        let command = template.replace("{t}", table).replace("{key}", key);
        match client.try_ask(&command) {
            Ok(_) => *done.entry(named(template).to_owned()).or_default() += 1,
            Err(error) => match error.code().map(|code| code.code().to_owned()) {
                Some(code) if ALLOWED.contains(&code.as_str()) => {
                    *done.entry(format!("gave way ({code})")).or_default() += 1;
                    if code.starts_with("57P") {
                        session = None;
                    }
                }
                // The server's own, with any table: a rewrite copies a row that was updated and whose successor is dead, if
                // it meets the successor first, and the row's TOAST chunks may be vacuumed by then. It works later.
                Some(code) if code == "XX001" && rewrites(template) => {
                    examine(cluster, table, &format!("{command}: {error:?}"));
                    *done.entry("rewrite met a dead row".into()).or_default() += 1;
                }
                Some(code) => panic!("{command}: {code}: {error:?}"),
                None => session = None,
            },
        }
        std::thread::sleep(Duration::from_millis(random.below(150) as u64));
    }
    if begun.elapsed() > Duration::from_secs(300) {
        let commands = COMMANDS.iter().map(|template| named(template));
        for what in commands.chain(KILLS) {
            assert!(done.contains_key(what), "not once: {what}; {done:?}");
        }
    }
    done.iter().map(|(what, n)| format!("{n} × {what}")).collect::<Vec<_>>().join(", ")
}

fn named(template: &'static str) -> &'static str {
    template.split(" {").next().unwrap_or(template)
}

fn rewrites(template: &str) -> bool {
    template.starts_with("CLUSTER") || template.starts_with("VACUUM FULL")
}

/// Panics unless the table is sound and every row that anybody sees is whole.
fn examine(cluster: &Cluster, table: &str, what: &str) {
    assert!(what.contains("missing chunk number"), "{what}");
    let mut client = cluster.superuser();
    let damage = client.ask(&format!("SELECT * FROM checks.verify_heapam('{table}', check_toast => true)"));
    assert_eq!(damage, "", "{what}");
    client.ask(&format!("SELECT sum(length(t::text)) FROM {table} t"));
}

fn connect(cluster: &Cluster) -> Option<Client> {
    cluster.wait_ready();
    let mut client = cluster.try_connect("postgres", cluster.database()).ok()?;
    client.try_ask("SET lock_timeout = '3s'; SET statement_timeout = '20s'").ok()?;
    Some(client)
}

const KILLS: [&str; 4] = ["a session killed", "the postmaster killed", "a worker ended", "a worker killed"];

/// The death of one process, or of all. In turn, so that each happens in a short run as well.
fn kill(cluster: &Cluster, turn: u32, random: &mut Random) -> String {
    cluster.wait_ready();
    let victims =
        |titles: &[&str]| -> Vec<i32> { titles.iter().flat_map(|title| cluster.pids(title)).collect() };
    match turn % 4 {
        0 => {
            let sessions = victims(&["postgres: storm"]);
            if !sessions.is_empty() {
                cluster.try_kill(*random.pick(&sessions), SIGKILL);
            }
            KILLS[0].into()
        }
        1 => {
            cluster.kill_postmaster_9();
            cluster.start_again();
            KILLS[1].into()
        }
        2 => {
            let workers =
                victims(&["hyperion_vault maintenance", "hyperion_vault relay", "hyperion_vault kms"]);
            if !workers.is_empty() {
                cluster.try_kill(*random.pick(&workers), SIGTERM);
            }
            KILLS[2].into()
        }
        _ => {
            let workers = victims(&["hyperion_vault maintenance", "hyperion_vault relay", "checkpointer"]);
            if !workers.is_empty() {
                cluster.try_kill(*random.pick(&workers), SIGKILL);
            }
            KILLS[3].into()
        }
    }
}
