//! Faults injected into the key-service worker. Runs in the test process.
//!
//! `hyperion_vault.test_faults` exists only in builds with the `testing` feature; elsewhere setting it fails the test.

use crate::cluster::Cluster;
use crate::process::Process;
use crate::{PATIENCE, wait_for};
use std::time::Duration;

impl Cluster {
    /// Sets the faults, such as `delay_ms=500`, and waits until the server has them.
    #[track_caller]
    pub fn set_faults(&self, faults: &str) {
        self.set_conf("hyperion_vault.test_faults", faults);
        self.let_worker_settle();
    }

    #[track_caller]
    pub fn clear_faults(&self) {
        self.reset_conf("hyperion_vault.test_faults");
        self.let_worker_settle();
    }

    /// The worker has been signalled before a new session is let in, which ends its sleep: once it sleeps again it has
    /// read the file. It might sleep on the way, waiting for a lock of its own; so the one fixed sleep of this crate
    /// follows, two hundred times what the rest takes.
    #[track_caller]
    fn let_worker_settle(&self) {
        drop(self.try_control());
        wait_for("the key-service worker to have read its settings", PATIENCE, || {
            let processes = self.processes();
            let mut workers = processes.iter().filter(|process| process.title.contains("hyperion_vault kms"));
            workers.all(Process::is_at_rest)
        });
        std::thread::sleep(Duration::from_millis(200));
    }
}
