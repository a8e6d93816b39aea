//! What became of a write is what became of its transaction.

use super::{log, settle};
use hyperion_vault_tests::{Ask, Cluster, PATIENCE, SIGKILL, StopMode, sqlstate, wait_for};

/// Subject and outcome of writes.
fn outcomes(cluster: &Cluster) -> String {
    log(cluster, "subject || ' ' || outcome", "function <> 'read_secret'")
}

#[test]
fn savepoints_exceptions_and_rollbacks_are_told_apart() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut ops = vault.ops();
    ops.ask("SELECT vault.create_secret('auto', 'v')");
    ops.ask("BEGIN; SELECT vault.create_secret('rolled', 'v'); ROLLBACK");
    ops.ask(
        "BEGIN; SELECT vault.create_secret('kept', 'v'); SAVEPOINT s; SELECT vault.put_secret('auto', 'w');
         ROLLBACK TO s; SELECT vault.create_secret('after', 'v'); RELEASE s; COMMIT",
    );
    ops.ask(
        "DO $$ BEGIN
           PERFORM vault.create_secret('outer', 'v');
           BEGIN PERFORM vault.create_secret('inner', 'v'); RAISE 'no'; EXCEPTION WHEN raise_exception THEN NULL; END;
         END $$",
    );
    // A failure is known at once, and a deferred one at the end.
    sqlstate!(ops.try_ask("SELECT vault.create_secret('auto', 'v')"), "23505");
    ops.ask("CREATE TEMP TABLE d (a int UNIQUE DEFERRABLE INITIALLY DEFERRED); INSERT INTO d VALUES (1)");
    sqlstate!(
        ops.try_ask("BEGIN; SELECT vault.create_secret('deferred', 'v'); INSERT INTO d VALUES (1); COMMIT"),
        "23505"
    );
    assert_eq!(
        outcomes(&cluster),
        "auto ok\nrolled rolled_back\nkept ok\nauto rolled_back\nafter ok\nouter ok\ninner rolled_back\nauto error\ndeferred rolled_back"
    );
    assert_eq!(
        log(&cluster, "sqlstate, version", "subject = 'auto' AND function = 'create_secret'"),
        "∅|1\n23505|∅",
        "failures have their SQLSTATE, successes the version they made"
    );
}

#[test]
fn an_open_transaction_is_pending_until_it_ends() {
    let cluster = Cluster::builder().conf("max_prepared_transactions", "4").start();
    let vault = cluster.vault();
    let mut writer = vault.ops();
    writer.ask("SELECT vault.create_secret('first', 'v')");
    let mut open = vault.ops();
    open.ask("BEGIN; SELECT vault.create_secret('a', 'v')");
    let mut undone = vault.ops();
    undone.ask("BEGIN; SELECT vault.create_secret('b', 'v')");
    writer.ask("BEGIN; SELECT vault.create_secret('c', 'v'); PREPARE TRANSACTION 'c'");
    writer.ask("BEGIN; SELECT vault.create_secret('d', 'v'); PREPARE TRANSACTION 'd'");
    assert_eq!(outcomes(&cluster), "first ok\na pending\nb pending\nc pending\nd pending");

    // A restart in between changes nothing for what is prepared, and ends the rest.
    open.ask("COMMIT");
    undone.ask("ROLLBACK");
    cluster.restart(StopMode::Fast);
    let mut ops = vault.ops();
    ops.ask("COMMIT PREPARED 'c'");
    ops.ask("ROLLBACK PREPARED 'd'");
    let mut root = vault.root();
    wait_for("the pending ones to be resolved", PATIENCE, || {
        root.ask("SELECT count(*) FROM vault.audit_pending") == "0"
    });
    let resolved = vault.root().ask(
        "SELECT l.subject, l.outcome, p.outcome FROM vault.audit_log l JOIN vault.audit_log p ON p.id = l.resolves
          WHERE l.subject = p.subject AND l.subject <> 'first' ORDER BY 1",
    );
    assert_eq!(resolved, "a|ok|pending\nb|rolled_back|pending\nc|ok|pending\nd|rolled_back|pending");
}

/// However many writes an open transaction has, others' are judged meanwhile.
#[test]
fn a_large_transaction_keeps_nobody_waiting_for_an_outcome() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let (mut large, mut small, mut root) = (vault.ops(), vault.ops(), vault.root());
    // Who makes a vault's first secret makes its identity, and others wait for that.
    small.ask("SELECT vault.create_secret('first', 'v')");
    settle(&cluster);
    large.ask("BEGIN; SELECT count(vault.create_secret('l/' || i, 'v')) FROM generate_series(1, 1200) i");
    small.ask("BEGIN; SELECT vault.create_secret('small', 'v')");
    wait_for("all to be pending", PATIENCE, || {
        root.ask("SELECT count(*) FROM vault.audit_pending") == "1201"
    });
    small.ask("COMMIT");
    let resolved = "SELECT outcome FROM vault.audit_log WHERE subject = 'small' AND resolves IS NOT NULL";
    wait_for("the small one to be resolved", PATIENCE, || root.ask(resolved) == "ok");
    large.ask("ROLLBACK");
    settle(&cluster);
    assert_eq!(
        root.ask(
            "SELECT count(*) FROM vault.audit_log WHERE outcome = 'rolled_back' AND resolves IS NOT NULL"
        ),
        "1200"
    );
}

#[test]
fn a_crash_right_after_the_commit_or_before_it_is_told_right() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    vault.ops().ask("SELECT vault.create_secret('first', 'v')");
    settle(&cluster);
    // Nobody can take the records before the crash.
    let relay = super::stop_relay(&cluster);
    let mut open = vault.ops();
    open.ask("BEGIN; SELECT vault.create_secret('open', 'v')");
    vault.ops().ask("SELECT vault.create_secret('committed', 'v')");
    assert_eq!(vault.app().ask("SELECT vault.read_secret('committed')"), "v");
    // A stopped process dies of this too, and the server restarts as after any crash.
    cluster.kill_and_wait(relay, SIGKILL);
    cluster.wait_ready();
    assert_eq!(outcomes(&cluster), "first ok\nopen rolled_back\ncommitted ok");
    assert_eq!(log(&cluster, "subject, outcome", "function = 'read_secret'"), "committed|ok");
}

#[test]
fn across_a_fork_a_pending_write_is_unknown_and_copies_are_not_taken_twice() {
    let primary = Cluster::builder().start();
    let vault = primary.vault();
    vault.ops().ask("SELECT vault.create_secret('before', 'v')");
    settle(&primary);
    // Something that is in the spool and in the table when it is copied.
    let mut open = vault.ops();
    open.ask("BEGIN; SELECT vault.create_secret('open', 'v')");
    assert_eq!(outcomes(&primary), "before ok\nopen pending");
    let standby = primary.standby();
    vault.ops().ask("SELECT vault.create_secret('later', 'v')");
    settle(&primary);
    standby.wait_replayed(&primary);
    let before = vault.root().ask("SELECT count(*) FROM vault.audit_log WHERE resolves IS NULL");
    standby.superuser().ask("SELECT pg_promote()");
    let mut root = standby.superuser();
    wait_for("the pending write to be judged", PATIENCE, || {
        root.ask("SELECT outcome FROM vault.audit_log WHERE resolves IS NOT NULL AND subject = 'open'")
            == "unknown"
    });
    settle(&standby);
    assert_eq!(
        root.ask("SELECT count(*) FROM vault.audit_log WHERE timeline = 1 AND resolves IS NULL"),
        before,
        "the copy of the primary's spool was taken before"
    );
    assert_eq!(root.ask("SELECT count(*) FROM (SELECT FROM vault.audit_log WHERE resolves IS NULL GROUP BY spool_id, position HAVING count(*) > 1) x"), "0");
    // The new primary writes records of its own, and the old one resolves its.
    standby.superuser().ask("SELECT vault.create_secret('after', 'v')");
    assert_eq!(log(&standby, "subject, outcome", "timeline = 2 AND function = 'create_secret'"), "after|ok");
    open.ask("COMMIT");
    wait_for("the old primary to resolve its own", PATIENCE, || {
        vault
            .root()
            .ask("SELECT outcome FROM vault.audit_log WHERE resolves IS NOT NULL AND subject = 'open'")
            == "ok"
    });
}

#[test]
fn what_was_read_on_a_standby_is_in_the_table_once_it_is_promoted() {
    let primary = Cluster::builder().conf("hyperion_vault.node_name", "one").start();
    let vault = primary.vault();
    vault.ops().ask("SELECT vault.create_secret('a', 'v')");
    settle(&primary);
    let standby = primary.standby();
    standby.wait_replayed(&primary);
    standby.stage_conf("hyperion_vault.node_name", "two");
    standby.stage_conf("hyperion_vault.audit_spool_max_mb", "1");
    standby.restart(hyperion_vault_tests::StopMode::Fast);
    let mut app = standby.connect("app", standby.database());
    for _ in 0..20 {
        app.ask("SELECT vault.read_secret('a')");
    }
    // Another life of the standby's, and a limit that nobody makes room under.
    standby.restart(hyperion_vault_tests::StopMode::Fast);
    let mut app = standby.connect("app", standby.database());
    let (mut more, mut to_full) = (0, None);
    let mut watcher = standby.superuser();
    let refused = loop {
        match app.try_ask("SELECT vault.read_secret('a')") {
            Ok(_) => more += 1,
            Err(error) => break error,
        }
        if more % 500 == 0 {
            to_full = super::status(&mut watcher)["seconds_to_full"].as_u64().or(to_full);
        }
        assert!(more < 20_000, "not refused");
    };
    assert_eq!(refused.code().map(|code| code.code()), Some("58030"), "{refused:?}");
    assert!(to_full.is_some_and(|seconds| seconds < 3600), "told in advance: {to_full:?}");
    standby.superuser().ask("SELECT pg_promote()");
    let condition = "session_role = 'app' AND outcome = 'ok'";
    let found = log(&standby, "node || ' ' || function || ' ' || timeline", condition);
    assert_eq!(found.lines().count(), 20 + more);
    assert!(found.lines().all(|line| line == "two read_secret 1"), "{}", found.lines().next().unwrap());
    assert_eq!(app.ask("SELECT vault.read_secret('a')"), "v", "there is room again");
}
