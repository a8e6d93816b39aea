//! The relay beside a benchmark. Runs in the benchmark's process.
//!
//! The trap: what a run has left in the spool is taken into the table during the next one, on the same core: the vault's
//! work would be charged to the other side. So every run begins when there is nothing left to take.

use hyperion_vault_tests::{Ask, Client, Cluster};
use std::time::Duration;

/// Asking leaves records too.
const NOTHING: i64 = 100;

/// Waits until the relay has taken what there is.
pub fn settle(cluster: &Cluster) {
    caught_up(&mut cluster.superuser(), NOTHING);
}

/// Waits until fewer than so many records are in the spool that are not in the table.
pub fn caught_up(root: &mut Client, left: i64) {
    while lag(root) >= left {
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Records in the spool that are not in the table.
pub fn lag(root: &mut Client) -> i64 {
    root.ask("SELECT vault.status() #>> '{audit,lag_records}'").parse().expect("a number")
}
