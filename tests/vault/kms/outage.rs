//! KMS away altogether, with fifty sessions that need it: what each call costs once the breaker is open, who does not
//! notice, and how the end is found out. Runs in the test process.
//!
//! The trap: figures of the time before the breaker opened, when callers wait for retries and deadlines, drown those that
//! count. Calls are told apart by when they began.

use super::{cold_secrets, create, read, value};
use crate::watch::{QUICK, expect_idle_queue, status};
use hyperion_vault_tests::kms::{FakeKms, Fault};
use hyperion_vault_tests::threads::{Background, background};
use hyperion_vault_tests::{Client, Cluster, NoTls, PATIENCE, Vault, wait_for};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

const SESSIONS: usize = 50;
/// What one attempt is given, a third of `kms_timeout_ms`. Who asks nobody takes milliseconds, or what a loaded machine makes
/// of them, and never this.
const ATTEMPT: Duration = Duration::from_secs(1);

/// A call, when it began and what it took.
struct Call {
    begun: Instant,
    took: Duration,
    /// SQLSTATE, message and hint of its error.
    error: Option<(String, String, String)>,
}

/// Repeats `call` until told to stop.
fn repeat(
    mut client: Client,
    stop: &Arc<AtomicBool>,
    call: impl Fn(&mut Client, usize) -> Result<(), postgres::Error> + Send + 'static,
) -> Background<Vec<Call>> {
    let stop = Arc::clone(stop);
    background(move || {
        let mut calls = Vec::new();
        while !stop.load(Relaxed) {
            let begun = Instant::now();
            let result = call(&mut client, calls.len());
            let error = result.err().map(|error| {
                let error = error.as_db_error().expect("the session goes on");
                let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
                (error.code().code().to_owned(), error.message().to_owned(), text(error.hint()))
            });
            calls.push(Call { begun, took: begun.elapsed(), error });
            std::thread::sleep(Duration::from_millis(20));
        }
        calls
    })
}

/// Half of the sessions read secrets whose keys are not cached, half create.
fn callers(
    cluster: &Cluster,
    fault: Fault,
    first: usize,
    stop: &Arc<AtomicBool>,
) -> Vec<Background<Vec<Call>>> {
    (0..SESSIONS)
        .map(|i| {
            let user = if i % 2 == 0 { "app" } else { "ops" };
            let client = cluster.config(user, cluster.database()).connect(NoTls).expect("cannot connect");
            repeat(client, stop, move |client, n| match i % 2 {
                0 => read(client, &format!("cold/{}", first + i / 2)).map(drop),
                _ => create(client, &format!("never/{}/{i}/{n}", fault.name())).map(drop),
            })
        })
        .collect()
}

/// Median and largest of the calls that began after `since`.
fn times(calls: &[Call], since: Instant) -> (usize, Duration, Duration) {
    let mut times: Vec<_> = calls.iter().filter(|call| call.begun > since).map(|call| call.took).collect();
    times.sort();
    let longest = *times.last().expect("calls were made while the breaker was open");
    (times.len(), times[times.len() / 2], longest)
}

/// Makes a secret whose key is in the cache past its time.
fn stale_secret(vault: &Vault<'_>, name: &str) {
    vault.cluster.set_conf("hyperion_vault.dek_cache_ttl_secs", "1");
    create(&mut vault.ops(), name).unwrap();
    vault.cluster.reset_conf("hyperion_vault.dek_cache_ttl_secs");
    std::thread::sleep(Duration::from_millis(1100));
}

/// A count of the worker's.
fn of(status: &serde_json::Value, what: &str) -> u64 {
    status["kms"][what].as_u64().expect("a count")
}

fn breaker(root: &mut Client) -> String {
    status(root)["kms"]["breaker"].as_str().expect("open or closed").to_owned()
}

#[test]
fn an_outage_costs_each_caller_milliseconds() {
    let kms = FakeKms::start();
    let cluster = Cluster::builder()
        .aws(&kms)
        .conf("hyperion_vault.kms_timeout_ms", "3000")
        .conf("hyperion_vault.kms_max_retries", "2")
        .start();
    let vault = cluster.vault();
    cold_secrets(&vault, "cold", SESSIONS);
    create(&mut vault.ops(), "warm").unwrap();
    cluster.set_conf("hyperion_vault.dek_cache_stale_secs", "600");
    let mut root = vault.root();
    for (round, fault) in [Fault::Refused, Fault::Hang].into_iter().enumerate() {
        let stale = format!("stale/{round}");
        stale_secret(&vault, &stale);
        assert_eq!(breaker(&mut root), "closed");
        let before = status(&mut root);
        let stop = Arc::new(AtomicBool::new(false));
        kms.inject(fault);
        let begun = Instant::now();
        let callers = callers(&cluster, fault, 1 + round * SESSIONS / 2, &stop);
        let warm = repeat(vault.app(), &stop, |client, _| {
            read(client, "warm").map(|read| assert_eq!(read, value("warm")))
        });
        let expired = {
            let name = stale.clone();
            repeat(vault.app(), &stop, move |client, _| {
                read(client, &name).map(|read| assert_eq!(read, value(&name)))
            })
        };
        wait_for("the breaker to open", PATIENCE, || breaker(&mut root) == "open");
        let opened = Instant::now();
        // Longer than a pause between two attempts: nobody is about to begin one now, and only probes are made.
        std::thread::sleep(Duration::from_millis(200));
        let asked = of(&status(&mut root), "calls");
        std::thread::sleep(Duration::from_millis(1300));
        stop.store(true, Relaxed);
        let calls: Vec<Call> = callers.into_iter().flat_map(|caller| caller.finish(PATIENCE)).collect();
        for (call, (code, message, hint)) in
            calls.iter().map(|call| (call, call.error.as_ref().expect("KMS is away")))
        {
            assert_eq!(code, "08006", "{message}");
            if call.begun > opened {
                assert_eq!(message, "the key service cannot be reached");
                assert!(hint.contains("kms.breaker closed"), "{hint}");
            }
        }
        let (number, median, longest) = times(&calls, opened);
        println!(
            "{}: open after {:?}; then {number} calls of {SESSIONS} sessions, median {median:?}, longest {longest:?}",
            fault.name(),
            opened - begun
        );
        assert!(median < ATTEMPT && longest < QUICK && number >= SESSIONS, "{median:?}, {longest:?}");

        let (warm, expired) = (warm.finish(PATIENCE), expired.finish(PATIENCE));
        assert!(warm.iter().chain(&expired).all(|call| call.error.is_none()), "cached reads fail");
        let (_, warm_median, warm_longest) = times(&warm, begun);
        let (_, median, longest) = times(&expired, opened);
        println!(
            "  cached reads: median {warm_median:?}, longest {warm_longest:?}; past their time: {median:?}, {longest:?}"
        );
        assert!(warm_median < ATTEMPT && warm_longest < QUICK);
        assert!(median < ATTEMPT && longest < QUICK);

        let now = status(&mut root);
        let probes = of(&now, "calls") - asked;
        // The pauses between probes begin at a quarter of a second.
        assert!(
            probes as f64 <= 2.0 + opened.elapsed().as_secs_f64() / 0.25,
            "{probes} calls while it was open"
        );
        assert!(
            of(&now, "refused_by_breaker") > of(&before, "refused_by_breaker") + SESSIONS as u64,
            "{now}"
        );
        assert!(of(&now, "breaker_opened") == of(&before, "breaker_opened") + 1, "{now}");
        assert!(now["cache"]["stale"].as_u64() > before["cache"]["stale"].as_u64(), "{now}");
        expect_idle_queue(&mut root);

        // Nobody asks any more. Its end is noticed all the same.
        kms.clear();
        let cleared = Instant::now();
        wait_for("the breaker to close", PATIENCE, || breaker(&mut root) == "closed");
        let noticed = cleared.elapsed();
        println!("  its end was noticed after {noticed:?}");
        assert!(noticed < Duration::from_secs(10), "{noticed:?}");
        create(&mut vault.ops(), &format!("after/{round}")).unwrap();
        for i in 1..=SESSIONS / 2 {
            let name = format!("cold/{}", round * SESSIONS / 2 + i);
            assert_eq!(read(&mut root, &name).unwrap(), value(&name));
        }
        assert_eq!(read(&mut root, &stale).unwrap(), value(&stale));
    }
    let never = "SELECT count(*) FROM vault.secrets WHERE name LIKE 'never/%'";
    assert_eq!(root.query_one(never, &[]).unwrap().get::<_, i64>(0), 0, "a create that failed left a row");
    assert_eq!(status(&mut root)["workers"][0]["starts"], 1);
}

/// A key that is denied or disabled is no outage: an entry past its time does not serve then.
#[test]
fn expired_keys_do_not_serve_against_a_refusal() {
    let kms = FakeKms::start();
    let cluster = Cluster::builder().aws(&kms).conf("hyperion_vault.dek_cache_stale_secs", "600").start();
    let vault = cluster.vault();
    stale_secret(&vault, "stale");
    let mut app = vault.app();
    for fault in [Fault::AccessDenied, Fault::Disabled, Fault::PendingDeletion, Fault::NotFound] {
        kms.inject(fault);
        hyperion_vault_tests::sqlstate!(read(&mut app, "stale"), "38000");
        kms.clear();
    }
    kms.inject(Fault::KmsInternal);
    assert_eq!(read(&mut app, "stale").unwrap(), value("stale"));
}
