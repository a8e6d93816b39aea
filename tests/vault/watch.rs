//! What the tests of the key-service worker look at: `vault.status()`, its queue, and its calls.
//!
//! Runs in the test process. The trap: figures the worker publishes lag behind its answers by up to one turn of its
//! loop, so they are waited for, or taken when they have come to rest.

use hyperion_vault_tests::threads::{Background, background};
use hyperion_vault_tests::{Ask, Client, Cluster, PATIENCE, Vault, backend_pid, wait_for};
use serde_json::Value;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What must come at once, as seen from a loaded machine: an idle one takes a hundredth. What it is compared with
/// hangs for a minute or more.
pub const QUICK: Duration = Duration::from_secs(5);

pub type Outcome = Result<Option<String>, postgres::Error>;

/// A statement in a session of its own that is expected to wait.
pub struct Waiter {
    pub pid: i32,
    pub token: postgres::CancelToken,
    result: Background<Outcome>,
}

impl Waiter {
    /// Starts `sql` in the session, which reports its first column as text.
    pub fn start(mut client: Client, sql: &str) -> Self {
        let (pid, token) = (backend_pid(&mut client), client.cancel_token());
        let sql = sql.to_owned();
        let run = move || {
            let messages = client.simple_query(&sql)?;
            Ok(messages.into_iter().find_map(|message| match message {
                postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            }))
        };
        Self { pid, token, result: background(run) }
    }

    #[track_caller]
    pub fn finish(self) -> Outcome {
        self.result.finish(PATIENCE)
    }
}

pub fn status(root: &mut Client) -> Value {
    let text: String =
        root.query_one("SELECT vault.status()::text", &[]).expect("cannot ask for the status").get(0);
    serde_json::from_str(&text).expect("the status is JSON")
}

/// Requests the worker has taken and not answered.
pub fn processing(root: &mut Client) -> u64 {
    in_state(root, "processing")
}

pub fn in_state(root: &mut Client, state: &str) -> u64 {
    status(root)["queue"]["states"][state].as_u64().expect("a state of the queue")
}

#[track_caller]
pub fn until_processing(root: &mut Client, requests: u64) {
    wait_for(&format!("{requests} requests under way"), PATIENCE, || processing(root) == requests);
}

/// Waits until every slot is free again: none is leaked.
#[track_caller]
pub fn expect_idle_queue(root: &mut Client) {
    let mut last = Value::Null;
    let idle = hyperion_vault_tests::wait_until(PATIENCE, || {
        last = status(root)["queue"].take();
        last["states"]["free"] == last["slots"] && last["slots"].as_u64() > Some(0)
    });
    assert!(idle, "slots are still occupied: {last}");
}

/// Calls made at the provider by the present worker, once the figure has come to rest.
pub fn calls(root: &mut Client) -> u64 {
    let figure = |root: &mut Client| {
        let kms = status(root)["kms"].take();
        (kms["calls"].as_u64().expect("a count"), kms["in_flight"].as_u64().expect("a count"))
    };
    let mut before = figure(root);
    loop {
        // Longer than a turn of the worker, after which it publishes at the latest.
        std::thread::sleep(Duration::from_millis(1300));
        let now = figure(root);
        if now == before && now.1 == 0 {
            return now.0;
        }
        before = now;
    }
}

/// How often the worker has started.
pub fn starts(root: &mut Client) -> u64 {
    status(root)["workers"][0]["starts"].as_u64().expect("a count")
}

#[track_caller]
pub fn until_running(root: &mut Client, starts: u64) {
    let mut last = Value::Null;
    let running = hyperion_vault_tests::wait_until(PATIENCE, || {
        last = status(root)["workers"][0].take();
        last["running"] == true && last["starts"] == starts
    });
    assert!(running, "the worker should run for the {starts}th time: {last}");
}

/// Waits until the maintenance worker has looked for what there is to do, all of it, and sleeps.
#[track_caller]
pub fn first_look(cluster: &Cluster) {
    let mut root = cluster.superuser();
    let idle = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'hyperion_vault maintenance' AND state = 'idle'";
    wait_for("the maintenance worker's first look", PATIENCE, || root.ask(idle) == "1");
}

/// Runs `sql` as `ops` while the cache takes nothing in.
#[track_caller]
pub fn make_cold(vault: &Vault<'_>, sql: &str) {
    vault.cluster.set_conf("hyperion_vault.dek_cache_ttl_secs", "0");
    vault.ops().batch_execute(sql).expect("cannot make cold secrets");
    vault.cluster.reset_conf("hyperion_vault.dek_cache_ttl_secs");
}

/// Runs `sql` in a client process of its own, named `gone`, kills it by SIGKILL once `ready` returns, and gives the
/// moment of that.
pub fn gone_process(cluster: &Cluster, user: &str, sql: &str, ready: impl FnOnce(u32)) -> Instant {
    let mut child = Command::new(cluster.toolchain().program("psql"))
        .args(["-X", "-U", user, "-c", sql])
        .env("PGHOST", cluster.socket_dir())
        .env("PGPORT", cluster.port().to_string())
        .env("PGDATABASE", cluster.database())
        .env("PGAPPNAME", "gone")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("cannot run psql");
    ready(child.id());
    let now = Instant::now();
    child.kill().and_then(|()| child.wait()).expect("cannot kill our own child");
    now
}

/// Sessions with this application name.
pub fn backends_of(root: &mut Client, application: &str) -> i64 {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1";
    root.query_one(sql, &[&application]).expect("cannot ask for the sessions").get(0)
}

/// Memory of a process that is its own, in kilobytes.
pub fn private_kb(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("Linux says so");
    line.split_ascii_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}
