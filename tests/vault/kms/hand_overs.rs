//! What a request to the `local` provider does not cost: another thread of the worker, and a wake-up of its own. Runs in the
//! test process.
//!
//! Seen from outside, by how often the kernel has switched away from the worker's threads because they slept
//! (`voluntary_ctxt_switches`), which is the same for every build. The trap: a figure that stays small because the requests
//! never came; so calls are counted too, and a delayed provider shows that the threads' figure moves when they work.

use crate::watch::{calls, expect_idle_queue, in_state, status};
use hyperion_vault_tests::threads::{background, clients_at_once};
use hyperion_vault_tests::{Ask, Client, Cluster, PATIENCE, SIGCONT, expect_error, wait_for};
use std::fs;

const WORKER: &str = "hyperion_vault kms";
/// How often a thread may have slept for reasons of its own: the worker's turn each second, a lock, a page.
const STRAY: u64 = 5;

/// Sleeps so far of the worker's main thread, and of all its others.
fn sleeps(worker: i32) -> (u64, u64) {
    let (mut main, mut others) = (0, 0);
    for task in fs::read_dir(format!("/proc/{worker}/task")).expect("the worker runs") {
        let task = task.expect("a thread").path();
        let status = fs::read_to_string(task.join("status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        let count: u64 = line.and_then(|count| count.trim().parse().ok()).expect("a count");
        if task.ends_with(worker.to_string()) { main += count } else { others += count }
    }
    assert!(others > 0, "no other threads: nothing is measured");
    (main, others)
}

/// No key is ever found in the cache.
fn cluster() -> Cluster {
    Cluster::builder().conf("hyperion_vault.dek_cache_ttl_secs", "0").start()
}

fn create(client: &mut Client, prefix: &str, n: u64) {
    client.ask(&format!(
        "SELECT count(vault.create_secret('{prefix}/' || i, 'v')) FROM generate_series(1, {n}) i"
    ));
}

fn read_one_by_one(client: &mut Client, prefix: &str, n: u64) {
    let sql = format!("SELECT count(vault.read_secret('{prefix}/' || i)) FROM generate_series(1, {n}) i");
    assert_eq!(client.ask(&sql), n.to_string());
}

#[test]
fn the_local_provider_needs_no_other_thread() {
    const N: u64 = 300;
    let cluster = cluster();
    let vault = cluster.vault();
    let (mut ops, mut app, mut root) = (vault.ops(), vault.app(), vault.root());
    create(&mut ops, "first", 1);
    let worker = cluster.pid_of(WORKER);
    let (calls_before, (_, before)) = (calls(&mut root), sleeps(worker));
    create(&mut ops, "s", N);
    read_one_by_one(&mut app, "s", N);
    let (_, after) = sleeps(worker);
    assert!(calls(&mut root) >= calls_before + 2 * N, "the requests came");
    assert!(after - before <= STRAY, "{} sleeps of other threads for {} requests", after - before, 2 * N);

    // A provider that waits is asked by the threads, as the fault's own test needs it.
    cluster.set_faults("delay_ms=1");
    let (_, before) = sleeps(worker);
    create(&mut ops, "delayed", 20);
    let (_, after) = sleeps(worker);
    assert!(after - before >= 20, "{} sleeps of other threads for 20 delayed requests", after - before);
    cluster.clear_faults();
    read_one_by_one(&mut app, "delayed", 20);
    expect_idle_queue(&mut root);
}

/// A batch is marked as a whole before the worker is woken.
#[test]
fn a_batch_of_requests_wakes_the_worker_once() {
    const ROUNDS: u64 = 5;
    const BATCH: u64 = 60;
    let cluster = cluster();
    let vault = cluster.vault();
    let (mut app, mut root) = (vault.app(), vault.root());
    create(&mut vault.ops(), "s", BATCH);
    let batch = format!(
        "SELECT count(value) FROM vault.read_secrets(ARRAY(SELECT 's/' || i FROM generate_series(1, {BATCH}) i))"
    );
    assert_eq!(app.ask(&batch), BATCH.to_string());
    let worker = cluster.pid_of(WORKER);
    let (calls_before, (before, _)) = (calls(&mut root), sleeps(worker));
    for _ in 0..ROUNDS {
        assert_eq!(app.ask(&batch), BATCH.to_string());
    }
    let (after, _) = sleeps(worker);
    assert_eq!(calls(&mut root), calls_before + ROUNDS * BATCH, "each key was asked for");
    let woken = after - before;
    assert!(woken <= ROUNDS + STRAY, "{woken} wake-ups for {ROUNDS} batches of {BATCH} requests");
}

/// Clients that come while the worker is held back are answered in one turn.
#[test]
fn a_crowd_wakes_the_worker_once() {
    const CROWD: u64 = 24;
    let cluster = cluster();
    let vault = cluster.vault();
    let mut root = vault.root();
    // The first write of a vault is one that others wait for, and then ask anew.
    create(&mut root, "first", 1);
    let worker = cluster.pid_of(WORKER);
    cluster.freeze(worker);
    let (before, others_before) = sleeps(worker);
    let config = cluster.config("ops", cluster.database());
    let crowd: Vec<_> = (0..CROWD)
        .map(|i| {
            let config = config.clone();
            background(move || {
                let mut client = config.connect(hyperion_vault_tests::NoTls).expect("a session");
                client.ask(&format!("SELECT (vault.create_secret('c/{i}', 'v')).version"))
            })
        })
        .collect();
    wait_for("all requests", PATIENCE, || in_state(&mut root, "submitted") == CROWD);
    cluster.kill(worker, SIGCONT);
    for one in crowd {
        assert_eq!(one.finish(PATIENCE), "1");
    }
    let (after, others_after) = sleeps(worker);
    assert!(after - before <= STRAY, "{} wake-ups for {CROWD} requests", after - before);
    assert!(others_after - others_before <= STRAY, "{}", others_after - others_before);
    expect_idle_queue(&mut root);
}

/// Nobody waits for ever, whatever the moment: sessions that ask one request after the other, while others do the same.
#[test]
fn no_wake_up_is_lost_among_many() {
    const CLIENTS: usize = 8;
    const EACH: u64 = 400;
    let cluster = Cluster::builder()
        .conf("hyperion_vault.dek_cache_ttl_secs", "0")
        .conf("hyperion_vault.kms_queue_slots", "4")
        .start();
    cluster.vault();
    create(&mut cluster.superuser(), "s", EACH);
    // Fewer slots than clients: some wait for a slot, others for an answer. A lost wake-up costs its client the second
    // until the worker or the client looks by itself.
    let slowest = clients_at_once(&cluster, "app", CLIENTS, 2 * PATIENCE, |_, mut client| {
        let read = client.prepare("SELECT vault.read_secret('s/' || $1::int)").expect("a statement");
        let times = (1..=EACH as i32).map(|i| {
            let begun = std::time::Instant::now();
            let value: String = client.query_one(&read, &[&i]).expect("a row").get(0);
            assert_eq!(value, "v");
            begun.elapsed()
        });
        let mut times: Vec<_> = times.collect();
        times.sort();
        times
    });
    let late: usize = slowest.iter().flatten().filter(|time| time.as_millis() >= 900).count();
    assert!(late <= 2, "{late} of {} requests took a second: wake-ups are lost", CLIENTS as u64 * EACH);
    expect_idle_queue(&mut cluster.superuser());
}

#[test]
fn a_panic_on_the_main_thread_fails_one_request() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let (mut ops, mut root) = (vault.ops(), vault.root());
    create(&mut ops, "s", 1);
    let worker = cluster.pid_of(WORKER);
    let mark = cluster.log_mark();
    cluster.set_faults("panic_now=1");
    // A session that has made nothing yet: it asks for one key, and none ahead.
    let refused = vault.ops().execute("SELECT vault.create_secret('t', 'v')", &[]);
    let error = expect_error(refused, "XX000");
    assert_eq!(error.message(), "key service call ended unexpectedly");
    assert!(cluster.log_contains(mark, "WARNING:  hyperion_vault: key service call ended unexpectedly"));
    create(&mut ops, "u", 3);
    assert_eq!(cluster.pid_of(WORKER), worker, "the worker is the same");
    assert_eq!(status(&mut root)["kms"]["last_error"], "internal");
    expect_idle_queue(&mut root);
}
