//! The service's threads, seen through `/proc`. In a process of its own: another test's threads would be counted.
//!
//! A thread that does not block signals would run PostgreSQL's handlers, which belong to the main thread.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyperion_vault_core::envelope::{DekContext, Id};
use hyperion_vault_kms::{
    Job, Limits, Op, ProviderConfig, Service, ServiceConfig, StoredDek, THREAD_NAME, THREADS, WrappedDek,
};
use hyperion_vault_tests::threads::with_signals_blocked;
use hyperion_vault_tests::{PATIENCE, wait_for};

/// Thread id → blocked signals, of the service's threads.
fn threads() -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    for task in fs::read_dir("/proc/self/task").unwrap() {
        // One that ends meanwhile is no longer there to be read.
        let Ok(status) = fs::read_to_string(task.unwrap().path().join("status")) else { continue };
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().to_owned()
        };
        if field("Name:") == THREAD_NAME {
            found.insert(field("Pid:"), u64::from_str_radix(&field("SigBlk:"), 16).unwrap());
        }
    }
    found
}

#[test]
fn all_threads_exist_after_start_and_block_signals() {
    let dir = tempfile::tempdir().unwrap();
    let key_file = dir.path().join("key");
    fs::write(&key_file, [7; 32]).unwrap();
    fs::set_permissions(&key_file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let data_directory = dir.path().join("data");
    fs::create_dir(&data_directory).unwrap();
    let config = ServiceConfig {
        provider: ProviderConfig::Local(hyperion_vault_kms::LocalConfig { key_file, data_directory }),
        limits: Limits {
            max_in_flight: 64,
            max_jobs: 10_000,
            max_retries: 5,
            attempt_timeout: Duration::from_secs(5),
        },
        #[cfg(feature = "testing")]
        faults: None,
    };
    assert!(threads().is_empty());
    let mut service = with_signals_blocked(|| Service::start(&config, Arc::new(|| ())).unwrap());

    // A new thread gets its name a moment after it is made.
    let started = Instant::now();
    while threads().len() < THREADS && started.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let at_start = threads();
    assert_eq!(at_start.len(), THREADS);
    // SIGKILL (9) and SIGSTOP (19) cannot be blocked, and 32 and 33 are the C library's own.
    let blockable = !(1u64 << 8 | 1 << 18 | 1 << 31 | 1 << 32);
    for (thread, blocked) in &at_start {
        assert_eq!(blocked & blockable, blockable, "thread {thread} blocks only {blocked:016x}");
    }

    // Work, failures, cancels, reload: no thread comes or goes.
    let place = |n: u64| DekContext { vault: Id([1; 16]), secret: Id([2; 16]), version: Id([n as u8; 16]) };
    for id in 0..2000 {
        let deadline = Instant::now() + Duration::from_secs(10);
        let op = match id % 3 {
            0 => Op::Generate(place(id)),
            1 => Op::Unwrap {
                context: place(id),
                stored: StoredDek { wrapped: WrappedDek(vec![id as u8; 83]), key_id: "local:0".into() },
            },
            _ => Op::Describe,
        };
        service.submit(Job { id, deadline, op });
        if id % 100 == 0 {
            service.cancel(id);
            service.reconfigure(&config).unwrap();
        }
    }
    let started = Instant::now();
    while service.status().jobs > 0 && started.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(service.status().jobs, 0);
    assert_eq!(threads(), at_start);

    service.shutdown(Duration::from_secs(5));
    // A thread that was joined is listed for a moment more.
    wait_for("the threads to end", PATIENCE, || threads().is_empty());
}
