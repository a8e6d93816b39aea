//! A page of `list_secrets` costs the rows of the page, wherever it is and however often it was asked for.
//!
//! Counted in rows the server fetched, not in time. The rows are copies made by a superuser: listing opens none.

use hyperion_vault_tests::{Ask, Client, Cluster};

/// Rows of vault.secrets that a call fetched, however it found them.
#[track_caller]
fn fetched(root: &mut Client, call: &str) -> (String, i64) {
    let sql = "SELECT seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_xact_all_tables
                WHERE relid = 'vault.secrets'::regclass";
    let so_far = |root: &mut Client| root.ask(sql).parse::<i64>().expect("a number");
    root.ask("BEGIN");
    let before = so_far(root);
    let result = root.ask(call);
    let rows = so_far(root) - before;
    root.ask("COMMIT");
    (result, rows)
}

#[test]
fn a_page_among_a_hundred_thousand() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut root = vault.root();
    root.ask(
        "SELECT vault.create_secret('model', 'v');
         INSERT INTO vault.secrets (id, version_id, version, name, format, wrapped_dek, sealed, kms_key_id, kind,
                created_at, updated_at, version_created_at)
           SELECT gen_random_uuid(), gen_random_uuid(), 1, to_char(i % 10, 'FM0') || '/' || to_char(i, 'FM000000'), format,
                wrapped_dek, sealed, kms_key_id, kind, created_at, updated_at, version_created_at
             FROM vault.secrets, generate_series(1, 100000) i;
         INSERT INTO vault.secret_versions SELECT s.id, gen_random_uuid(), v, s.format, s.wrapped_dek, s.sealed, s.kms_key_id, NULL,
                s.created_at, s.created_at, NULL FROM vault.secrets s, generate_series(2, 3) v WHERE s.name LIKE '9/%';
         ANALYZE vault.secrets, vault.secret_versions",
    );
    // More often than it takes a statement to get its one plan for all parameters.
    for round in 0..8 {
        for (call, expected, most) in [
            ("SELECT count(*), min(name) FROM vault.list_secrets(max_rows => 100)", "100|0/000010", 101),
            (
                "SELECT count(*), min(name) FROM vault.list_secrets(after => '5/050005', max_rows => 100)",
                "100|5/050015",
                101,
            ),
            (
                "SELECT count(*), min(name) FROM vault.list_secrets(after => '9/099899', max_rows => 100)",
                "11|9/099909",
                12,
            ),
            (
                "SELECT count(*), min(name) FROM vault.list_secrets('7/*', after => '7/050007', max_rows => 10)",
                "10|7/050017",
                11,
            ),
            (
                "SELECT count(*), min(name) FROM vault.list_secrets('7/*', after => '3/', max_rows => 10)",
                "10|7/000007",
                11,
            ),
            ("SELECT count(*), min(name) FROM vault.list_secrets('7/*', after => '8/')", "0|∅", 1),
            ("SELECT count(*), min(name) FROM vault.list_secrets('model')", "1|model", 1),
            ("SELECT count(*), min(name) FROM vault.list_secrets('mode')", "0|∅", 1),
            // In chunks, none of which is fetched twice.
            (
                "SELECT count(*), max(name) FROM vault.list_secrets('3/*', max_rows => 10000)",
                "10000|3/099993",
                10_100,
            ),
            ("SELECT count(*), max(version) FROM vault.list_versions('9/099999')", "3|3", 2),
        ] {
            let (result, rows) = fetched(&mut root, call);
            assert_eq!(result, expected, "{call}");
            // The planner looks up a few rows itself: the ends of the index.
            assert!(rows <= most + 10, "{call}: {rows} rows fetched in round {round}");
        }
    }
    // The control: this counter sees a search that walks.
    let (_, rows) = fetched(&mut root, "SELECT count(*) FROM vault.list_secrets('*/099999')");
    assert!(rows > 99_000, "{rows}");
    // All pages together are all names, once.
    let sql = "WITH RECURSIVE page(n, last) AS (
          SELECT 0::bigint, '' UNION ALL SELECT l.n, l.last FROM page p, LATERAL
            (SELECT p.n + count(*) AS n, max(name) AS last FROM vault.list_secrets(after => p.last, max_rows => 9999)) l WHERE l.last IS NOT NULL)
        SELECT max(n), count(*) FROM page";
    assert_eq!(root.ask(sql), "100001|12");
}
