//! Many sessions at KMS at one time: one key that all want, and many keys. Runs in the test process.
//!
//! The trap: sessions that come one after the other find the key in the cache and share nothing. The fake answers so late
//! that all are there before.

use super::{cold_secrets, key_calls, read, value};
use crate::watch::{expect_idle_queue, status};
use hyperion_vault_tests::kms::{FakeKms, Fault, Op};
use hyperion_vault_tests::threads::clients_at_once;
use hyperion_vault_tests::{Cluster, PATIENCE};
use std::time::{Duration, Instant};

/// Sessions that read one secret, where the machine lets a process have so many files open.
const CROWD: usize = 1000;
/// Files that a client of this process has open: socket, and its runtime's epoll and eventfd.
const FILES: usize = 6;

/// Secrets that sessions read, a share each.
const SECRETS: usize = 4000;
const READERS: usize = 64;
const IN_FLIGHT: usize = 16;
const LATENCY: Duration = Duration::from_millis(20);

#[test]
fn a_thousand_readers_of_one_secret_make_one_call() {
    let kms = FakeKms::start();
    let crowd = CROWD.min(open_files(CROWD * FILES + 500).saturating_sub(500) / FILES);
    assert!(crowd >= 64, "too few open files are allowed: {crowd} sessions");
    let cluster = Cluster::builder()
        .aws(&kms)
        .max_connections(u32::try_from(crowd).unwrap() + 20)
        .conf("shared_buffers", "8MB")
        .conf("hyperion_vault.kms_timeout_ms", "120000")
        .start();
    let vault = cluster.vault();
    cold_secrets(&vault, "cold", 1);
    kms.reset_counters();
    kms.inject(Fault::Latency(Duration::from_secs(3)));
    let begun = Instant::now();
    let results = clients_at_once(&cluster, "app", crowd, 6 * PATIENCE, move |_, mut client| {
        let connected = Instant::now();
        assert_eq!(read(&mut client, "cold/1").unwrap(), value("cold/1"));
        connected.elapsed()
    });
    let longest = results.iter().max().copied().unwrap_or_default();
    assert_eq!(kms.calls(Op::Decrypt), 1, "of {crowd} readers");
    let mut root = vault.root();
    let shown = status(&mut root);
    println!(
        "{crowd} cold readers of one secret, 3 s latency, {} slots: 1 Decrypt, {} shared it; {:?} in all, the longest read \
         {longest:?}",
        shown["queue"]["slots"],
        shown["kms"]["coalesced"],
        begun.elapsed()
    );
    expect_idle_queue(&mut root);
    assert_eq!(key_calls(&kms), 1);
}

#[test]
fn no_more_calls_than_allowed_and_no_fewer() {
    let kms = FakeKms::start();
    let cluster = Cluster::builder()
        .aws(&kms)
        .conf("hyperion_vault.kms_max_in_flight", &IN_FLIGHT.to_string())
        .conf("hyperion_vault.kms_timeout_ms", "60000")
        .start();
    let vault = cluster.vault();
    cold_secrets(&vault, "cold", SECRETS);
    kms.reset_counters();
    // So late that the first ones are there together, on any machine.
    kms.inject_times(Fault::Latency(Duration::from_secs(2)), IN_FLIGHT as u64);
    kms.inject(Fault::Latency(LATENCY));
    let begun = Instant::now();
    clients_at_once(&cluster, "app", READERS, 6 * PATIENCE, |reader, mut client| {
        for i in (reader + 1..=SECRETS).step_by(READERS) {
            let name = format!("cold/{i}");
            assert_eq!(read(&mut client, &name).unwrap(), value(&name));
        }
    });
    let rate = SECRETS as f64 / begun.elapsed().as_secs_f64();
    let ideal = IN_FLIGHT as f64 / LATENCY.as_secs_f64();
    println!(
        "{SECRETS} cold secrets, {READERS} sessions: {rate:.0} a second, {:.2} of in-flight ÷ latency",
        rate / ideal
    );
    assert_eq!(kms.calls(Op::Decrypt), SECRETS as u64);
    assert_eq!(kms.max_concurrent(), IN_FLIGHT as u64);
    // The claim is the benchmark's (make bench); this is for calls that would run one after the other.
    assert!(rate > 1.0 / LATENCY.as_secs_f64(), "{rate:.0} a second");
    let mut root = vault.root();
    expect_idle_queue(&mut root);
    let shown = status(&mut root)["kms"].take();
    assert_eq!((&shown["failures"], &shown["breaker_opened"]), (&0.into(), &0.into()), "{shown}");
}

/// Raises the limit of open files to what is wanted, as far as it may be; what it is then.
fn open_files(wanted: usize) -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls get a valid rlimit structure; they change nothing else of this process.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        limit.rlim_cur = limit.rlim_cur.max((wanted as libc::rlim_t).min(limit.rlim_max));
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
    }
    usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX)
}
