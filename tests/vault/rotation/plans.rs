//! A look at the tables costs what is due, not what is there.

use std::time::Duration;

use super::{builder, until_done};
use hyperion_vault_tests::{Ask, Client, wait_for};

/// `HYPERION_VAULT_PLAN_ROWS=1000000` for the full number.
fn rows() -> usize {
    std::env::var("HYPERION_VAULT_PLAN_ROWS").ok().and_then(|rows| rows.parse().ok()).unwrap_or(50_000)
}

/// Index entries and rows that have been read: (of secrets, of versions), and sequential scans of both.
fn read(root: &mut Client) -> (i64, i64) {
    let sql = "SELECT (SELECT sum(idx_tup_read)::int8 FROM pg_stat_all_indexes WHERE schemaname = 'vault'),
                      (SELECT sum(seq_scan)::int8 FROM pg_stat_all_tables WHERE schemaname = 'vault' AND relname LIKE 'secret%')";
    let row = root.query_one(sql, &[]).unwrap();
    (row.get(0), row.get(1))
}

#[test]
fn a_look_does_not_grow_with_what_is_not_due() {
    // The worker's plans go to the log.
    let cluster = builder()
        .conf("shared_preload_libraries", "hyperion_vault, auto_explain")
        .conf("auto_explain.log_min_duration", "0")
        .conf("auto_explain.log_nested_statements", "on")
        .conf("autovacuum", "off")
        .time_limit(Duration::from_secs(900))
        .start();
    let vault = cluster.vault();
    let (mut ops, mut root) = (vault.ops(), vault.root());
    root.ask("SET auto_explain.log_min_duration = -1");
    ops.ask(
        "SELECT vault.create_secret('due', kind => 'automatic', rotation_interval => '1 day');
         SELECT vault.create_secret('ends', 'v', expires_in => '1 day')",
    );
    // Its figures are told when it ends.
    drop(ops);
    let count = rows();
    // Rows of every kind with dates to come: none of them is ever opened.
    root.ask(&format!(
        "INSERT INTO vault.secrets (id, version_id, version, name, format, wrapped_dek, sealed, kms_key_id, kind, rotation_interval,
            next_rotation_at, created_at, updated_at, version_created_at, expires_at, recover_until)
         SELECT gen_random_uuid(), gen_random_uuid(), 1, 'x/' || i, 'opaque', '\\x00', '\\x00', 'k',
            (CASE i % 2 WHEN 0 THEN 'automatic' ELSE 'manual' END)::vault.secret_kind, interval '30 days',
            CASE i % 2 WHEN 0 THEN clock_timestamp() + i * interval '1 second' + interval '1 day' END,
            now(), now(), now(), CASE i % 3 WHEN 0 THEN now() + interval '9 days' END, CASE i % 5 WHEN 0 THEN now() + interval '9 days' END
           FROM generate_series(1, {count}) i;
         INSERT INTO vault.secret_versions (secret_id, version_id, version, format, wrapped_dek, sealed, kms_key_id, created_at,
            superseded_at, expires_at, settled)
         SELECT gen_random_uuid(), gen_random_uuid(), 1, 'opaque', '\\x00', '\\x00', 'k', now(), now(),
            now() + (CASE i % 2 WHEN 0 THEN '9 days' ELSE '-9 days' END)::interval, i % 2 = 1
           FROM generate_series(1, {count}) i;
         ANALYZE vault.secrets; ANALYZE vault.secret_versions"
    ));
    std::thread::sleep(Duration::from_secs(3));
    let mark = cluster.log_mark();
    let before = read(&mut root);
    std::thread::sleep(Duration::from_secs(5));
    root.ask("SELECT pg_stat_force_next_flush()");
    let after = read(&mut root);
    println!(
        "{count} secrets, as many versions, none due: {} index entries read in five looks",
        after.0 - before.0
    );
    // A look reads the first entry of each of three indexes to know the next date; nothing else.
    assert!(after.0 - before.0 <= 60, "{} index entries read", after.0 - before.0);
    assert_eq!(after.1, before.1, "sequential scans");
    let log = cluster.log_since(mark);
    for index in ["secrets_due_idx", "secrets_end_idx", "secret_versions_grace_idx"] {
        assert!(
            log.contains(&format!("Index Scan using {index}"))
                || log.contains(&format!("Index Only Scan using {index}")),
            "{index} in\n{log}"
        );
    }
    assert!(!log.contains("Seq Scan") && !log.contains("Sort"), "{log}");
    for line in
        log.lines().filter(|line| line.contains("Index Scan using") || line.contains("Index Cond")).take(8)
    {
        println!("{}", line.trim());
    }

    // One is due among them.
    root.ask(
        "UPDATE vault.secrets SET next_rotation_at = clock_timestamp() WHERE name = 'due';
              UPDATE vault.secrets SET expires_at = clock_timestamp() WHERE name = 'ends'",
    );
    until_done(&mut root);
    assert_eq!(root.ask("SELECT version FROM vault.secrets WHERE name = 'due'"), "2");
    wait_for("the end of the other", hyperion_vault_tests::PATIENCE, || {
        root.ask("SELECT count(*) FROM vault.secrets WHERE name = 'ends'") == "0"
    });
}
