//! A secret that is renamed all the time, with versions in grace: a reader that finds the secret and then one of its
//! versions may find that one sealed for another name. That is no damage, and nobody is told so.

use super::{LIMIT, allowed};
use hyperion_vault_tests::threads::clients_at_once;
use hyperion_vault_tests::{Ask, Cluster};
use std::time::{Duration, Instant};

/// The trap: a window of microseconds. Two sessions rename as fast as they can; without the second look, each kind of reader
/// fails within seconds.
#[test]
fn a_rename_between_two_looks_is_no_damage() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut root = vault.root();
    root.ask("SELECT vault.create_secret('a', 'v1', grace_period => '1 day', keep_versions => 3)");
    for version in 2..6 {
        root.ask(&format!("SELECT vault.put_secret('a', 'v{version}')"));
    }
    let (calls, end) = (
        [
            "SELECT vault.rename_secret('a', 'b')",
            "SELECT vault.rename_secret('b', 'a')",
            "SELECT vault.verify('a', 'v3')",
            "SELECT vault.read_secret('a', 2)",
            "SELECT value FROM vault.get_secret('b', 4)",
            "SELECT vault.roll_back_secret('a', 3)",
        ],
        Instant::now() + Duration::from_secs(10),
    );
    let worked = clients_at_once(&cluster, "postgres", calls.len() + 1, LIMIT, move |part, mut client| {
        // Each renames in one direction, so that two of them may meet in each.
        let call = calls[if part == calls.len() { 0 } else { part }];
        let mut worked = 0;
        while Instant::now() < end {
            match client.simple_query(call) {
                Ok(_) => worked += 1,
                Err(error) => _ = allowed(&error),
            }
            if call.contains("roll_back") {
                // Each makes a version more.
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        worked
    });
    println!("{worked:?}");
    assert!(worked.iter().all(|worked| *worked > 20), "{worked:?}");
    let name = root.ask("SELECT name FROM vault.list_secrets()");
    assert_eq!(
        root.ask(&format!("SELECT vault.read_secret('{name}', 3), valid FROM vault.verify('{name}', 'v5')")),
        "v3|t"
    );
}
