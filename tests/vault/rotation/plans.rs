//! A look at the tables costs what is due, not what is there.

use std::time::Duration;

use super::{builder, until_done};
use hyperion_vault_tests::{Ask, Client, wait_for};

/// `HYPERION_VAULT_PLAN_ROWS=1000000` for the full number.
fn rows() -> usize {
    std::env::var("HYPERION_VAULT_PLAN_ROWS").ok().and_then(|rows| rows.parse().ok()).unwrap_or(50_000)
}

/// What has been read: index entries of the whole vault; scans of the index over dates; scans of secrets and versions, by an
/// index or without one.
fn read(root: &mut Client) -> [i64; 3] {
    let sql = "SELECT sum(idx_tup_read)::int8, sum(idx_scan) FILTER (WHERE indexrelname = 'secret_dates_at_idx')::int8,
                      sum(idx_scan) FILTER (WHERE relname IN ('secrets', 'secret_versions'))::int8
                        + (SELECT sum(seq_scan)::int8 FROM pg_stat_all_tables WHERE schemaname = 'vault' AND relname LIKE 'secret%')
                 FROM pg_stat_all_indexes WHERE schemaname = 'vault'";
    let row = root.query_one(sql, &[]).unwrap();
    [row.get(0), row.get(1), row.get(2)]
}

#[test]
fn a_look_does_not_grow_with_what_is_not_due() {
    let cluster = builder().conf("autovacuum", "off").time_limit(Duration::from_secs(900)).start();
    let vault = cluster.vault();
    let (mut ops, mut root) = (vault.ops(), vault.root());
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
         ANALYZE vault.secrets, vault.secret_versions, vault.secret_dates"
    ));
    // Altered and analysed tables are walked over once, to find dates that are missing.
    wait_for("the walk to be over", hyperion_vault_tests::PATIENCE, || {
        let seen = |root: &mut Client| {
            std::thread::sleep(Duration::from_secs(2));
            root.ask("SELECT pg_stat_force_next_flush()");
            read(root)
        };
        let (one, other) = (seen(&mut root), seen(&mut root));
        other[0] > one[0] && other[0] - one[0] < 60 && other[2] == one[2]
    });
    let before = read(&mut root);
    std::thread::sleep(Duration::from_secs(5));
    root.ask("SELECT pg_stat_force_next_flush()");
    let after = read(&mut root);
    let [entries, looks, others] = [0, 1, 2].map(|i| after[i] - before[i]);
    println!(
        "{count} secrets, as many versions, none due: {entries} index entries read in five seconds, {looks} scans"
    );
    // A look reads the first entry of each kind of date to know the next one; nothing else.
    assert!(entries <= 60, "{entries} index entries read");
    assert!(looks >= 4 * 3, "the index over dates was scanned {looks} times: the worker did not look");
    assert_eq!(others, 0, "scans of secrets or versions");

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
