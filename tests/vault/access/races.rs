//! Changes at the same time: who waits for whom, and that nobody gains by it. Runs in the test process.

use super::{filled, outcome, read};
use hyperion_vault_tests::threads::{background, clients_at_once};
use hyperion_vault_tests::{Ask, Client, Cluster, PATIENCE, backend_pid, wait_for};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
const WIDE: &str = r#"SELECT vault.set_role_permissions('r', '[{"action":"read","path":"*"}]')"#;

/// Runs `call` as a manager while `change` is not yet committed; shows that it waits, and what it comes to after `end`.
fn meanwhile(cluster: &Cluster, root: &mut Client, change: &str, call: &'static str, end: &str) -> String {
    root.ask(&format!("BEGIN; {change}"));
    let mut manager = cluster.connect("ops", "postgres");
    let pid = backend_pid(&mut manager);
    let waiting = background(move || outcome(&mut manager, call));
    let mut other = cluster.superuser();
    wait_for("the call to wait", PATIENCE, || {
        other.ask(&format!("SELECT wait_event_type FROM pg_stat_activity WHERE pid = {pid}")) == "Lock"
    });
    root.ask(end);
    waiting.finish(LIMIT)
}

#[test]
fn what_was_judged_is_what_is_given() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut root = filled(&vault);
    root.ask("SELECT vault.create_role('r'); GRANT vault_user TO ops");
    let bind = "SELECT vault.bind_role('r', 'ops')";
    let token = "SELECT vault.create_token('t', 'r') LIKE 'hvt_%'";
    // A role that is being widened by who may: the manager does not slip in with what it was.
    for call in [bind, token] {
        assert_eq!(meanwhile(&cluster, &mut root, WIDE, call, "COMMIT"), "42501", "{call}");
        root.ask("SELECT vault.set_role_permissions('r', '[]')");
        assert!(
            ["", "t"].contains(&meanwhile(&cluster, &mut root, WIDE, call, "ROLLBACK").as_str()),
            "{call}"
        );
    }
    assert_eq!(root.ask("SELECT pg_roles FROM vault.list_roles() WHERE name = 'r'"), "{ops}");
    // A role that is being dropped: nothing is left that a later role of its name could fall to.
    let bind_again = "SELECT vault.bind_role('r', 'one')";
    assert_eq!(meanwhile(&cluster, &mut root, "SELECT vault.drop_role('r')", bind_again, "COMMIT"), "P0002");
    root.ask(&format!("SELECT vault.create_role('r'); {WIDE}"));
    for (who, name) in [("ops", "a/one"), ("one", "a/one")] {
        assert_eq!(read(&mut vault.session(who), name), "42501");
    }
    assert_eq!(
        root.ask("SELECT (SELECT count(*) FROM vault.tokens), (SELECT count(*) FROM vault.role_bindings)"),
        "0|0"
    );

    // Of one name, one is made.
    for (call, count) in [
        ("SELECT vault.create_role('same')", "SELECT count(*) FROM vault.roles WHERE name = 'same'"),
        ("SELECT vault.create_token('same', 'same') IS NULL", "SELECT count(*) FROM vault.tokens"),
    ] {
        let outcomes =
            clients_at_once(&cluster, "ops", 6, LIMIT, move |_, mut client| outcome(&mut client, call));
        let refused = outcomes.iter().filter(|outcome| *outcome == "23505").count();
        assert_eq!(refused, 5, "{call}: {outcomes:?}");
        assert_eq!(root.ask(count), "1");
    }
}

/// Readers who ask between a grant that has returned and the next change get what was decided, never what was before.
#[test]
fn a_storm_of_grants_and_revocations() {
    const TURNS: u64 = 100;
    let cluster = Cluster::builder().conf("max_prepared_transactions", "2").start();
    let vault = cluster.vault();
    let mut root = filled(&vault);
    root.ask(r#"SELECT vault.create_role('r', permissions => '[{"action":"read","path":"a/*"}]')"#);
    let token = root.ask("SELECT vault.create_token('t', 'r')");
    // Even: changing. Else: what holds since, granted (4n + 1) or revoked (4n + 3).
    let state = Arc::new(AtomicU64::new(3));
    // The last of those that a reader has judged.
    let judged = Arc::new(AtomicU64::new(0));
    let (seen, told) = (Arc::clone(&state), Arc::clone(&judged));
    let readers = background({
        let config = cluster.config("one", "postgres");
        move || {
            let mut client = config.connect(hyperion_vault_tests::NoTls).expect("a session");
            client.ask("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class");
            let (mut yes, mut no) = (0, 0);
            loop {
                let before = seen.load(SeqCst);
                if before == u64::MAX {
                    return (yes, no);
                }
                client.ask("SAVEPOINT s");
                let value = read(&mut client, "a/one");
                client.ask("ROLLBACK TO s");
                if before % 2 == 1 && before == seen.load(SeqCst) {
                    assert_eq!(value == "value of a/one", before % 4 == 1, "{before}: {value}");
                    if before % 4 == 1 {
                        yes += 1
                    } else {
                        no += 1
                    }
                    told.store(before, SeqCst);
                }
            }
        }
    });
    let (grant, revoke) = ("SELECT vault.bind_role('r', 'one')", "SELECT vault.unbind_role('r', 'one')");
    for turn in 0..TURNS {
        for (change, now) in [(grant, 1), (revoke, 3)] {
            state.store(turn * 4 + now - 1, SeqCst);
            if turn % 10 == 0 {
                root.ask(&format!("BEGIN; {change}; PREPARE TRANSACTION 'p'"));
                root.ask("COMMIT PREPARED 'p'");
            } else {
                root.ask(change);
            }
            state.store(turn * 4 + now, SeqCst);
            wait_for("a reader in between", PATIENCE, || judged.load(SeqCst) == turn * 4 + now);
        }
    }
    state.store(u64::MAX, SeqCst);
    let (yes, no) = readers.finish(LIMIT);
    assert!(yes >= TURNS && no >= TURNS, "{yes} reads, {no} refusals in between");

    // Prepared, not committed: as it was.
    let mut one = vault.session("one");
    one.ask("BEGIN");
    assert_eq!(outcome(&mut one, &format!("SELECT vault.authenticate('{token}')")), "");
    root.ask("BEGIN; SELECT vault.revoke_token('t'); PREPARE TRANSACTION 'p'");
    assert_eq!(read(&mut one, "a/one"), "value of a/one");
    root.ask("COMMIT PREPARED 'p'");
    assert_eq!(read(&mut one, "a/one"), "42501");
}
