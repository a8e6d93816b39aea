//! Who reads the log, that nobody changes it through SQL, and that it travels with the database.

use super::{log, settle};
use hyperion_vault_tests::{Ask, Cluster, lend, sqlstate};

#[test]
fn auditors_read_and_nobody_writes() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut root = vault.root();
    root.ask(
        "CREATE ROLE auditor LOGIN IN ROLE vault_auditor; CREATE ROLE schemer LOGIN IN ROLE vault_auditor, vault_admin, vault_reader;
         SELECT vault.create_secret('a', 'v')",
    );
    settle(&cluster);
    let mut auditor = vault.session("auditor");
    assert_eq!(
        auditor.ask("SELECT function, subject FROM vault.audit_log WHERE subject = 'a' AND resolves IS NULL"),
        "create_secret|a"
    );
    // Not even the auditor sees the bookkeeping, or anything else of the vault.
    for table in ["audit_spools", "audit_pending", "secrets", "secret_versions"] {
        sqlstate!(auditor.try_ask(&format!("SELECT * FROM vault.{table}")), "42501");
    }
    // Whatever somebody was granted by mistake: he sees nothing that is not his, and changes nothing.
    root.ask(
        "GRANT ALL ON ALL TABLES IN SCHEMA vault TO schemer; GRANT SELECT ON vault.audit_log TO app, ops",
    );
    sqlstate!(vault.app().try_ask("SELECT count(*) FROM vault.audit_log"), "42501", hint: "vault_auditor");
    let mut schemer = vault.session("schemer");
    for sql in [
        "UPDATE vault.audit_log SET outcome = 'ok', subject = 'b'",
        "DELETE FROM vault.audit_log",
        "DELETE FROM vault.audit_spools",
        "DELETE FROM vault.audit_pending",
        "UPDATE vault.audit_spools SET position = 0",
        "INSERT INTO vault.audit_log SELECT * FROM vault.audit_log LIMIT 1",
        "INSERT INTO vault.audit_pending VALUES (1, '3')",
        "TRUNCATE vault.audit_log",
        "TRUNCATE vault.audit_spools",
    ] {
        sqlstate!(schemer.try_ask(sql), "42501");
    }
    assert_eq!(log(&cluster, "function, subject, outcome", "subject IN ('a', 'b')"), "create_secret|a|ok");
    assert_eq!(root.ask("SELECT count(*) > 0, min(position) > 0 FROM vault.audit_spools"), "t|t");
}

#[test]
fn a_strangers_trigger_on_the_log_does_not_run() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut root = vault.root();
    root.ask(
        "GRANT TRIGGER ON vault.audit_log TO nobody_special; GRANT USAGE, CREATE ON SCHEMA public TO nobody_special; GRANT USAGE ON SCHEMA vault TO nobody_special;
         CREATE TABLE public.ran (who text)",
    );
    let mut nobody = vault.nobody();
    nobody.ask(
        "CREATE FUNCTION public.spy() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.ran VALUES (current_user); RETURN NEW; END $$",
    );
    let trigger = "CREATE TRIGGER spy BEFORE INSERT ON vault.audit_log EXECUTE FUNCTION public.spy()";
    lend(&mut nobody, &mut root, trigger);
    root.ask("SELECT vault.create_secret('a', 'v')");
    // The relay goes on.
    settle(&cluster);
    assert_eq!(log(&cluster, "function, subject", "subject = 'a'"), "create_secret|a");
    assert_eq!(root.ask("SELECT count(*) FROM public.ran"), "0");
    // The control: for a superuser's own statement it would.
    root.ask("GRANT INSERT ON public.ran TO PUBLIC; BEGIN; INSERT INTO vault.audit_log SELECT * FROM vault.audit_log WHERE false");
    assert_eq!(root.ask("SELECT who FROM public.ran"), "postgres");
    root.ask("ROLLBACK");
}

#[test]
fn the_log_is_dumped_and_goes_on_after_a_restore() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    vault.ops().ask("SELECT vault.create_secret('a', 'v'); SELECT vault.put_secret('a', 'w')");
    settle(&cluster);
    let rows = "SELECT count(*), min(id), max(id) FROM vault.audit_log";
    let (before, dump) = (vault.root().ask(rows), cluster.pg_dump(&["postgres"]));
    let other = Cluster::builder().start();
    other.superuser().ask("CREATE ROLE app LOGIN; CREATE ROLE ops LOGIN; CREATE ROLE nobody_special LOGIN");
    other.psql(&String::from_utf8(dump).unwrap()).success();
    let mut root = other.superuser();
    // The dump itself asks nothing of the vault, the restore neither.
    let kept = root.ask("SELECT count(*) FROM vault.audit_log WHERE subject = 'a' AND resolves IS NULL");
    assert_eq!(kept, "2");
    assert!(root.try_ask("SELECT vault.read_secret('b')").is_err());
    settle(&other);
    // Rows that were written before the restored ones came neither collide with them nor come before them.
    let last = before.rsplit('|').next().unwrap();
    assert_eq!(
        root.ask(&format!("SELECT count(*) > 0 FROM vault.audit_log WHERE id > {last} AND subject = 'b'")),
        "t"
    );
    assert_eq!(
        root.ask(&format!("SELECT count(*) FROM vault.audit_log WHERE id <= {last} AND subject <> 'a'")),
        "1"
    );
    assert_eq!(log(&other, "subject, sqlstate", "subject = 'b'"), "b|P0002");
}

#[test]
fn the_log_stays_cheap_when_it_is_long() {
    let cluster = Cluster::builder().conf("autovacuum", "off").start();
    let vault = cluster.vault();
    let mut root = vault.root();
    root.ask("SELECT vault.create_secret('a', 'v')");
    settle(&cluster);
    // As many rows as a test can afford; what matters is what the plans do with them.
    root.ask(
        "INSERT INTO vault.audit_log (id, at, spool_id, position, system_id, timeline, node, session_role, role, client, action, function, outcome, occurrences)
         SELECT 1000 + i, now() - interval '300 days' + i * interval '2 minutes', gen_random_uuid(), i, 1, 1, 'n', 'r', 'r', 'local', 'read', 'read_secret', 'ok', 1
           FROM generate_series(1, 200000) i;
         ANALYZE vault.audit_log",
    );
    let plan =
        |root: &mut hyperion_vault_tests::Client, sql: &str| root.ask(&format!("EXPLAIN (COSTS OFF) {sql}"));
    let by_time = plan(&mut root, "SELECT count(*) FROM vault.audit_log WHERE at > now() - interval '1 day'");
    assert!(by_time.contains("audit_log_at"), "{by_time}");
    let last = plan(&mut root, "SELECT max(id) FROM vault.audit_log");
    assert!(last.contains("Index Only Scan Backward using audit_log_pkey"), "{last}");
    // The relay's own statements read no more for it: blocks of the log that are read over another hundred records. Nobody
    // else may look at the log meanwhile.
    let read = "SELECT coalesce(heap_blks_read + heap_blks_hit, 0) FROM pg_statio_all_tables WHERE relname = 'audit_log'";
    let caught_up = |root: &mut hyperion_vault_tests::Client| {
        hyperion_vault_tests::wait_for("the relay", hyperion_vault_tests::PATIENCE, || {
            super::status(root)["lag_records"].as_u64().unwrap() < 3
        });
        // Statistics of a session that does nothing are a second late, or so.
        std::thread::sleep(std::time::Duration::from_millis(1500));
    };
    root.ask("SELECT pg_stat_force_next_flush()");
    caught_up(&mut root);
    let before: i64 = root.ask(read).trim().parse().unwrap();
    for i in 0..100 {
        assert!(root.try_ask(&format!("SELECT vault.read_secret('none/{i}')")).is_err());
    }
    caught_up(&mut root);
    let mut after = before;
    hyperion_vault_tests::wait_for("the figures", hyperion_vault_tests::PATIENCE, || {
        after = root.ask(read).trim().parse().unwrap();
        after > before
    });
    assert!(after - before < 2000, "{} blocks for a hundred records", after - before);
}
