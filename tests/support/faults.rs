//! Faults injected into the key-service worker. Runs in the test process.
//!
//! `hyperion_vault.test_faults` exists only in builds with the `testing` feature; elsewhere setting it fails the test.

use crate::cluster::Cluster;
use std::time::Duration;

impl Cluster {
    /// Sets the faults, such as `delay_ms=500`, and waits until the server has them.
    #[track_caller]
    pub fn set_faults(&self, faults: &str) {
        self.set_conf("hyperion_vault.test_faults", faults);
        self.let_workers_settle();
    }

    #[track_caller]
    pub fn clear_faults(&self) {
        self.reset_conf("hyperion_vault.test_faults");
        self.let_workers_settle();
    }

    /// The one fixed sleep of this crate. A worker has been signalled by now, and its latch ends its sleep, but
    /// nothing shows from outside when it has read the file: this takes a scheduling delay and some file reads,
    /// about a millisecond, allowed two hundredfold.
    fn let_workers_settle(&self) {
        std::thread::sleep(Duration::from_millis(200));
    }
}
