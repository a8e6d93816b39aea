//! Contexts in which the server evaluates expressions on behalf of a table's owner and stores what comes out: no value
//! gets into an index, a materialised view or the statistics that way, in a session or in autovacuum.

use super::{state, text};
use hyperion_vault_tests::{Cluster, PATIENCE, sqlstate};

const VALUE: &str = "value-that-must-not-be-stored";

#[test]
fn no_value_gets_into_indexes_views_or_statistics() {
    let cluster = Cluster::builder()
        .conf("autovacuum_naptime", "1s")
        // Only the table made for it is analysed automatically.
        .conf("autovacuum_analyze_threshold", "1000000")
        .conf("autovacuum_vacuum_threshold", "1000000")
        .start();
    let vault = cluster.vault();
    let mut root = vault.root();
    // Index expressions must be IMMUTABLE, so these lie. `refused` swallows the error and says who was refused.
    root.batch_execute(&format!(
        "SELECT vault.create_secret('k', '{VALUE}');
         CREATE FUNCTION plain(n int) RETURNS text LANGUAGE plpgsql IMMUTABLE AS
           $$ BEGIN RETURN vault.read_secret('k'); END $$;
         CREATE FUNCTION through_get(n int) RETURNS text LANGUAGE plpgsql IMMUTABLE AS
           $$ BEGIN RETURN (SELECT value FROM vault.get_secret('k')); END $$;
         CREATE FUNCTION guess(n int) RETURNS text LANGUAGE plpgsql IMMUTABLE AS
           $$ BEGIN RETURN (SELECT valid FROM vault.verify('k', 'guess')); END $$;
         CREATE FUNCTION swallow(n int) RETURNS text LANGUAGE plpgsql IMMUTABLE AS
           $$ BEGIN RETURN vault.read_secret('k');
              EXCEPTION WHEN OTHERS THEN RAISE LOG 'probe: % %', SQLSTATE, SQLERRM; RETURN 'nothing ' || SQLSTATE;
           END $$;
         CREATE TABLE t AS SELECT n FROM generate_series(1, 50) n;
         CREATE TABLE empty (n int);"
    ))
    .unwrap();
    // Positive control: in a statement of the session itself each of them works.
    for (function, result) in
        [("plain", VALUE), ("through_get", VALUE), ("guess", "false"), ("swallow", VALUE)]
    {
        assert_eq!(text(&mut root, &format!("SELECT {function}(n) FROM t LIMIT 1")), result);
    }

    for function in ["plain", "through_get", "guess"] {
        for sql in [
            format!("CREATE INDEX i ON t ({function}(n))"),
            format!("CREATE UNIQUE INDEX CONCURRENTLY i ON t (n, ({function}(n)))"),
            format!("CREATE INDEX i ON t (n) WHERE {function}(n) > 'a'"),
            format!("CREATE MATERIALIZED VIEW m AS SELECT {function}(n) FROM t"),
        ] {
            let refused = root.batch_execute(&sql);
            sqlstate!(refused, "42501", message: "security-restricted", detail: "materialized views", hint: "session");
            root.batch_execute("DROP INDEX IF EXISTS i").unwrap();
        }
        // Without rows or data there is nothing to evaluate yet; the moment comes.
        root.batch_execute(&format!(
            "CREATE MATERIALIZED VIEW m AS SELECT {function}(n) FROM t WITH NO DATA;
             CREATE STATISTICS s ON n, ({function}(n)) FROM t"
        ))
        .unwrap();
        for sql in ["REFRESH MATERIALIZED VIEW m", "ANALYZE t"] {
            sqlstate!(root.batch_execute(sql), "42501", message: "security-restricted");
        }
        root.batch_execute("DROP MATERIALIZED VIEW m; DROP STATISTICS s").unwrap();
    }
    for call in [
        "SELECT vault.read_secret('k')",
        "SELECT * FROM vault.get_secret('k')",
        "SELECT * FROM vault.verify('k', 'g')",
    ] {
        let sql = format!("CREATE MATERIALIZED VIEW m AS {call}");
        sqlstate!(root.batch_execute(&sql), "42501", message: "security-restricted");
    }
    // What holds no value may be stored, and whoever refreshes, it is the owner's rights that count.
    root.batch_execute("CREATE MATERIALIZED VIEW names AS SELECT name FROM vault.list_secrets()").unwrap();
    assert_eq!(text(&mut root, "SELECT name FROM names"), "k");
    root.batch_execute("ALTER MATERIALIZED VIEW names OWNER TO nobody_special").unwrap();
    assert_eq!(state(&mut root, "REFRESH MATERIALIZED VIEW names"), "42501");

    an_index_on_an_empty_table(&cluster);
    swallowed_errors_store_nothing(&cluster);
}

/// An index made while there are no rows is filled by the INSERTs of later sessions, each in a statement of its own,
/// with its own rights: the server marks that by nothing. It is the same as inserting the value. What rebuilds the
/// index, or looks at it for statistics, is refused.
fn an_index_on_an_empty_table(cluster: &Cluster) {
    let mut root = cluster.superuser();
    root.batch_execute("CREATE INDEX e ON empty (plain(n))").unwrap();
    assert_eq!(state(&mut root, "INSERT INTO empty VALUES (1)"), "00000");
    root.batch_execute("GRANT INSERT ON empty TO nobody_special").unwrap();
    let mut nobody = cluster.connect("nobody_special", cluster.database());
    assert_eq!(state(&mut nobody, "INSERT INTO empty VALUES (1)"), "42501", "his rights, not the owner's");
    for sql in [
        "ANALYZE empty",
        "VACUUM ANALYZE empty",
        "VACUUM FULL empty",
        "REINDEX INDEX e",
        "REINDEX TABLE CONCURRENTLY empty",
        "CLUSTER empty USING e",
        "ALTER TABLE empty ALTER COLUMN n TYPE bigint USING n + 1",
    ] {
        // A changed type makes the expression itself impossible: refused either way.
        let code = state(&mut root, sql);
        assert!(code == "42501" || (sql.starts_with("ALTER") && code == "42883"), "{sql}: {code}");
    }
    assert_eq!(state(&mut root, "VACUUM empty"), "00000", "evaluates nothing");
    root.batch_execute("DROP TABLE empty").unwrap();
}

/// A wrapper that swallows the error lets the operation through, and what is stored is what the wrapper made up.
fn swallowed_errors_store_nothing(cluster: &Cluster) {
    let mut root = cluster.superuser();
    root.batch_execute(
        "CREATE INDEX swallowed ON t (swallow(n)); CREATE STATISTICS s ON n, (swallow(n)) FROM t; ANALYZE t;
         CREATE MATERIALIZED VIEW m AS SELECT swallow(n) AS v FROM t; REINDEX TABLE t;",
    )
    .unwrap();
    root.batch_execute("VACUUM (FULL, ANALYZE) t").unwrap();
    assert_eq!(text(&mut root, "SELECT string_agg(DISTINCT v, ',') FROM m"), "nothing 42501");
    let kept = "SELECT most_common_vals::text FROM pg_stats WHERE tablename = 'swallowed'";
    assert_eq!(text(&mut root, kept), "{\"nothing 42501\"}");
    let kept = "SELECT most_common_vals::text FROM pg_stats_ext_exprs WHERE statistics_name = 's'";
    assert_eq!(text(&mut root, kept), "{\"nothing 42501\"}");

    // Autovacuum comes by itself, once it has heard of the change: a session that ends reports at once. The log's
    // prefix names the kind of process.
    let mark = cluster.log_mark();
    let mut brief = cluster.superuser();
    brief
        .batch_execute(
            "ALTER TABLE t SET (autovacuum_analyze_threshold = 1, autovacuum_analyze_scale_factor = 0);
             INSERT INTO t SELECT n FROM generate_series(51, 60) n",
        )
        .unwrap();
    drop(brief);
    cluster.wait_for_log(mark, "autovacuum worker LOG:  probe: 42501", 3 * PATIENCE);
    let log = cluster.log_since(mark);
    assert!(!log.contains("autovacuum worker ERROR"), "{log}");

    let stored = format!(
        "SELECT (SELECT count(*) FROM pg_statistic s WHERE s::text LIKE '%{VALUE}%')
              + (SELECT count(*) FROM pg_statistic_ext_data s WHERE s::text LIKE '%{VALUE}%')
              + (SELECT count(*) FROM m WHERE v LIKE '%{VALUE}%')"
    );
    assert_eq!(root.query_one(&stored, &[]).unwrap().get::<_, i64>(0), 0);
}
