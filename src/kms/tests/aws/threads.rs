//! The service's threads with the `aws` provider: name look-ups and files go to threads of tokio's blocking pool, which
//! come later than the service's own two, from one of these.
//!
//! Looked at in a child process, through `/proc`: other tests' threads would be counted. The trap: a thread that does
//! not block signals would run PostgreSQL's handlers, which belong to the main thread.

use std::collections::BTreeMap;
use std::fs;

use hyperion_vault_kms::{THREAD_NAME, THREADS};
use hyperion_vault_tests::kms::{Credentials, FakeKms};

use crate::child::Launch;

/// Thread id → name and blocked signals, of all threads of this process.
pub fn threads() -> BTreeMap<String, (String, u64)> {
    let mut found = BTreeMap::new();
    for task in fs::read_dir("/proc/self/task").unwrap() {
        // A thread may end between the two.
        let Ok(status) = fs::read_to_string(task.unwrap().path().join("status")) else { continue };
        let field = |name: &str| {
            status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned()
        };
        let blocked = u64::from_str_radix(&field("SigBlk:"), 16).unwrap();
        found.insert(field("Pid:"), (field("Name:"), blocked));
    }
    found
}

#[test]
fn threads_that_look_up_names_and_read_files_block_all_signals_and_end_with_the_service() {
    let kms = FakeKms::start();
    // Credentials in a file, the endpoint by name: both are for the blocking pool.
    let Credentials { access_key_id, secret_access_key, .. } = Credentials::example();
    let profile = format!(
        "[default]\naws_access_key_id = {access_key_id}\naws_secret_access_key = {secret_access_key}\n"
    );
    let mut child = Launch::new(&kms.key_arn())
        .endpoint(&format!("http://localhost:{}", kms.port()))
        .file(".aws/credentials", &profile)
        .start();
    for _ in 0..20 {
        let answer = child.ask("describe");
        // A call may be on a connection that is just being closed; the service would repeat it.
        if answer.kind() != "unreachable" {
            answer.ok();
        }
        // So that the next call looks the name up again.
        kms.close_connections();
    }
    let threads = child.threads();
    assert!(threads.len() > THREADS, "nothing went to the blocking pool: {threads:?}");
    // As with_max_blocking_threads says.
    assert!(threads.len() <= THREADS + 4, "{threads:?}");
    // SIGKILL (9) and SIGSTOP (19) cannot be blocked, and 32 and 33 are the C library's own.
    let blockable = !(1u64 << 8 | 1 << 18 | 1 << 31 | 1 << 32);
    for (name, blocked) in &threads {
        assert_eq!(name, THREAD_NAME);
        assert_eq!(blocked & blockable, blockable, "a thread blocks only {blocked:016x}");
    }
    child.stop();
}
