//! Load on a vault that goes on while something is done to its worker: creates, cold reads, cached reads; and what became
//! of it. Runs in the test process, each session in a thread of its own.
//!
//! Whatever goes wrong in a session ends its thread with a panic, which comes out when the load is finished: a test that
//! only counts what worked would not notice.

use crate::watch::make_cold;
use hyperion_vault_tests::threads::{Background, background};
use hyperion_vault_tests::{Client, Cluster, NoTls, Vault};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Creators, each with names of its own.
pub const CREATORS: usize = 3;
/// Readers of cold secrets, who share them out.
pub const COLD_READERS: usize = 2;

/// Load that goes on until told to stop, and what became of it.
pub struct Load {
    stop: Arc<AtomicBool>,
    creators: Vec<Background<Vec<String>>>,
    cold_readers: Vec<Background<usize>>,
    hot_reader: Background<(u64, Duration)>,
    hot_reads: Arc<AtomicU64>,
}

/// What a load came to.
pub struct Done {
    /// The secrets whose creation was acknowledged.
    pub acknowledged: Vec<String>,
    pub cold_reads: usize,
    pub hot_reads: u64,
    pub slowest_hot_read: Duration,
}

impl Load {
    /// Makes the secrets that will be read: many `cold/…` that are in no cache, and `hot`.
    pub fn prepare(vault: &Vault<'_>, cold: usize) {
        let sql = format!(
            "SELECT count(vault.create_secret('cold/' || i, 'cold value')) FROM generate_series(0, {}) i",
            cold - 1
        );
        make_cold(vault, &sql);
        vault.ops().batch_execute("SELECT vault.create_secret('hot', 'hot value')").unwrap();
    }

    /// Starts it, on a vault that is prepared with as many cold secrets; when they are used up, cold reads end.
    pub fn start(cluster: &Cluster, cold: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let hot_reads = Arc::new(AtomicU64::new(0));
        let session = |user: &str| cluster.config(user, cluster.database());
        let creators = (0..CREATORS).map(|worker| {
            let (stop, config) = (Arc::clone(&stop), session("ops"));
            background(move || {
                let mut client = config.connect(NoTls).unwrap();
                let create = client.prepare("SELECT vault.create_secret($1, $2)").unwrap();
                let mut acknowledged = Vec::new();
                while !stop.load(Relaxed) {
                    let name = format!("load/{worker}/{}", acknowledged.len());
                    client
                        .execute(&create, &[&name, &value(&name)])
                        .unwrap_or_else(|e| panic!("{name}: {e:?}"));
                    acknowledged.push(name);
                    std::thread::sleep(Duration::from_millis(5));
                }
                acknowledged
            })
        });
        let cold_readers = (0..COLD_READERS).map(|reader| {
            let (stop, config) = (Arc::clone(&stop), session("app"));
            background(move || {
                let mut client = config.connect(NoTls).unwrap();
                let mut read = 0;
                while !stop.load(Relaxed) && reader + COLD_READERS * read < cold {
                    let name = format!("cold/{}", reader + COLD_READERS * read);
                    assert_eq!(read_value(&mut client, &name), "cold value");
                    read += 1;
                    std::thread::sleep(Duration::from_millis(15));
                }
                read
            })
        });
        let hot_reader = {
            let (stop, config, reads) = (Arc::clone(&stop), session("app"), Arc::clone(&hot_reads));
            background(move || {
                let mut client = config.connect(NoTls).unwrap();
                client.batch_execute("SET statement_timeout = '10s'").unwrap();
                let mut slowest = Duration::ZERO;
                while !stop.load(Relaxed) {
                    let begun = Instant::now();
                    assert_eq!(read_value(&mut client, "hot"), "hot value");
                    slowest = slowest.max(begun.elapsed());
                    reads.fetch_add(1, Relaxed);
                    std::thread::sleep(Duration::from_millis(2));
                }
                (reads.load(Relaxed), slowest)
            })
        };
        Self {
            creators: creators.collect(),
            cold_readers: cold_readers.collect(),
            hot_reader,
            hot_reads,
            stop,
        }
    }

    /// Cached reads so far.
    pub fn hot_reads(&self) -> u64 {
        self.hot_reads.load(Relaxed)
    }

    /// Ends it; fails if a session failed, or hangs for longer than `limit`.
    #[track_caller]
    pub fn finish(self, limit: Duration) -> Done {
        self.stop.store(true, Relaxed);
        let acknowledged = self.creators.into_iter().flat_map(|creator| creator.finish(limit)).collect();
        let cold_reads = self.cold_readers.into_iter().map(|reader| reader.finish(limit)).sum();
        let (hot_reads, slowest_hot_read) = self.hot_reader.finish(limit);
        Done { acknowledged, cold_reads, hot_reads, slowest_hot_read }
    }
}

impl Done {
    /// Every acknowledged secret opens, with its value.
    #[track_caller]
    pub fn assert_all_open(&self, app: &mut Client) {
        for name in &self.acknowledged {
            assert_eq!(read_value(app, name), value(name));
        }
    }
}

fn value(name: &str) -> String {
    format!("the value of {name}")
}

#[track_caller]
pub fn read_value(client: &mut Client, name: &str) -> String {
    let row = client.query_one("SELECT vault.read_secret($1)", &[&name]);
    row.unwrap_or_else(|error| panic!("cannot read {name}: {error:?}")).get(0)
}
