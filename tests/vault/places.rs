//! Point reads that skip the index (the row is looked for where it was last seen), and `verify` that skips the superseded
//! versions (the end of the last grace stands beside the current version). Both are short cuts, so what is tested is that
//! nobody can tell: wherever the row went, whoever moved it, and whatever happened to the file. Runs in the test process.

mod grace;

use hyperion_vault_tests::threads::{background, clients_at_once};
use hyperion_vault_tests::{Ask, Client, Cluster, backend_pid, sqlstate, wait_for};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

/// How often a statement scans the index on names, and the one on superseded versions, as the session counts it itself.
fn descents(client: &mut Client, statement: &str) -> String {
    client.batch_execute("BEGIN").unwrap();
    let count = |client: &mut Client| {
        let counts = client.ask(
            "SELECT pg_stat_get_xact_numscans('vault.secrets_name_key'::regclass),
                    pg_stat_get_xact_numscans('vault.secret_versions_pkey'::regclass)",
        );
        counts.split('|').map(|count| count.parse().unwrap()).collect::<Vec<i64>>()
    };
    // What was counted before is handed over at the end of some transaction, not in one.
    let before = count(client);
    client.ask(statement);
    let after = count(client);
    client.batch_execute("COMMIT").unwrap();
    format!("{}|{}", after[0] - before[0], after[1] - before[1])
}

#[test]
fn a_row_is_found_wherever_it_went() {
    let cluster = Cluster::builder().conf("autovacuum", "off").start();
    let vault = cluster.vault();
    let (mut ops, mut app, mut other, mut root) = (vault.ops(), vault.app(), vault.app(), vault.root());
    let read = |client: &mut Client, name: &str| client.ask(&format!("SELECT vault.read_secret('{name}')"));
    ops.ask("SELECT vault.create_secret(name => 'a', value => 'a1', grace_period => '1 hour')");
    ops.ask("SELECT vault.create_secret('b', 'b1')");

    // The short cut is taken: once per server, not per session.
    assert_eq!(descents(&mut app, "SELECT vault.read_secret('a')"), "1|0");
    assert_eq!(descents(&mut app, "SELECT vault.read_secret('a')"), "0|0");
    assert_eq!(descents(&mut other, "SELECT vault.read_secret('a'), vault.get_secret('a')"), "0|0");

    // A new version, a rolled-back one, one of a savepoint, the transaction's own.
    ops.ask("SELECT vault.put_secret('a', 'a2')");
    assert_eq!((read(&mut app, "a"), read(&mut other, "a")), ("a2".into(), "a2".into()));
    assert_eq!(descents(&mut app, "SELECT vault.read_secret('a', 1), vault.read_secret('a', 1)"), "0|1");
    root.batch_execute(
        "BEGIN; SELECT vault.put_secret('a', 'a3'); SAVEPOINT s; SELECT vault.put_secret('a', 'a4')",
    )
    .unwrap();
    assert_eq!((read(&mut root, "a"), read(&mut app, "a")), ("a4".into(), "a2".into()));
    root.batch_execute("ROLLBACK TO s").unwrap();
    assert_eq!((read(&mut root, "a"), read(&mut app, "a")), ("a3".into(), "a2".into()));
    root.batch_execute("ROLLBACK").unwrap();
    assert_eq!((read(&mut root, "a"), read(&mut app, "a")), ("a2".into(), "a2".into()));

    // In a snapshot, and in a single statement, that are older than the change.
    app.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ").unwrap();
    assert_eq!(read(&mut app, "a"), "a2");
    ops.ask("SELECT vault.put_secret('a', 'a5')");
    assert_eq!(read(&mut app, "a"), "a5");
    app.batch_execute("COMMIT").unwrap();
    root.batch_execute("SELECT pg_advisory_lock(7)").unwrap();
    let pid = backend_pid(&mut other);
    let slow = background(move || {
        let both =
            "SELECT vault.read_secret('a') || pg_advisory_xact_lock(7)::text || vault.read_secret('a')";
        other.ask(both)
    });
    let between =
        format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND wait_event = 'advisory'");
    wait_for("a statement between its two reads", LIMIT, || root.ask(&between) == "1");
    ops.ask("SELECT vault.put_secret('a', 'a6')");
    root.batch_execute("SELECT pg_advisory_unlock(7)").unwrap();
    assert_eq!(slow.finish(LIMIT), "a5a6");

    // Another secret under the name, and the row under another name.
    for (name, new_name) in [("a", "c"), ("b", "a"), ("c", "b")] {
        root.ask(&format!("SELECT vault.rename_secret('{name}', '{new_name}')"));
    }
    assert_eq!((read(&mut app, "a"), read(&mut app, "b")), ("b1".into(), "a6".into()));
    ops.ask("SELECT vault.delete_secret('a')");
    sqlstate!(app.try_ask("SELECT vault.read_secret('a')"), "P0002");
    ops.ask("SELECT vault.create_secret('a', 'a7')");
    assert_eq!(read(&mut app, "a"), "a7");

    // The table written anew, its rows in other places.
    root.batch_execute("VACUUM FULL vault.secrets").unwrap();
    assert_eq!((read(&mut app, "a"), read(&mut app, "b")), ("a7".into(), "a6".into()));
    root.batch_execute("CLUSTER vault.secrets USING secrets_pkey; REINDEX TABLE vault.secrets").unwrap();
    assert_eq!((read(&mut app, "a"), read(&mut app, "b")), ("a7".into(), "a6".into()));

    // The extension made anew: places of the former table mean nothing.
    root.batch_execute("DROP EXTENSION hyperion_vault CASCADE; CREATE EXTENSION hyperion_vault").unwrap();
    root.batch_execute("GRANT vault_reader TO app; GRANT vault_admin TO ops").unwrap();
    sqlstate!(app.try_ask("SELECT vault.read_secret('a')"), "P0002");
    vault.ops().ask("SELECT vault.create_secret('a', 'anew')");
    assert_eq!(read(&mut app, "a"), "anew");
}

/// Where a table's file has been cut, a place behind its end is no error; in sessions that have seen it longer, too, and on
/// a standby.
#[test]
fn a_file_that_was_cut() {
    let cluster = Cluster::builder().conf("autovacuum", "off").start();
    let vault = cluster.vault();
    let (mut ops, mut app, mut root) = (vault.ops(), vault.app(), vault.root());
    let standby = cluster.standby();
    let make =
        "SELECT count(vault.create_secret('s/' || i, repeat(i || ' ', 300))) FROM generate_series(1, 120) i";
    let all = "SELECT count(vault.read_secret('s/' || i)) FROM generate_series(1, 120) i";
    ops.ask(make);
    standby.wait_replayed(&cluster);
    let mut there = standby.connect("app", "postgres");
    let blocks = "SELECT pg_relation_size('vault.secrets') / 8192";
    for round in 0..2 {
        for client in [&mut app, &mut there] {
            assert_eq!((client.ask(all), client.ask(all)), ("120".into(), "120".into()), "{round}");
        }
        let before: i64 = root.ask(blocks).parse().unwrap();
        ops.ask("SELECT vault.delete_secret('s/' || i) FROM generate_series(5, 120) i");
        // No snapshot is open that could see the deleted rows, but a session's end may lag behind.
        let deadline = Instant::now() + LIMIT;
        while root.ask(blocks).parse::<i64>().unwrap() * 4 > before {
            assert!(Instant::now() < deadline, "the file is never cut");
            root.batch_execute("VACUUM (TRUNCATE) vault.secrets").unwrap();
        }
        standby.wait_replayed(&cluster);
        for client in [&mut app, &mut there] {
            for gone in ["s/120", "s/60", "s/5"] {
                let sql = format!("SELECT vault.read_secret('{gone}')");
                sqlstate!(client.try_ask(&sql), "P0002");
            }
            assert_eq!(client.ask("SELECT vault.read_secret('s/4') = repeat('4 ', 300)"), "t");
        }
        ops.ask(&make.replace("(1, 120)", "(5, 120)"));
        standby.wait_replayed(&cluster);
    }
    let wrong = "SELECT count(*) FROM generate_series(1, 120) i WHERE vault.read_secret('s/' || i) <> repeat(i || ' ', 300)";
    assert_eq!((app.ask(wrong), there.ask(wrong)), ("0".into(), "0".into()));
}

/// Rows that move all the time under readers: each value read is one of that name, and never older than one read before.
#[test]
fn rows_on_the_move() {
    const NAMES: usize = 12;
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    for name in 0..NAMES {
        vault.ops().ask(&format!("SELECT vault.create_secret('m/{name}', '{name}/00000000')"));
    }
    let done = Arc::new(AtomicBool::new(false));
    let vacuum = {
        let (done, mut root) = (Arc::clone(&done), vault.root());
        background(move || {
            let ways = ["VACUUM vault.secrets", "VACUUM FULL vault.secrets", "VACUUM vault.secret_versions"];
            for way in ways.iter().cycle().take_while(|_| !done.load(Ordering::Acquire)) {
                // A lock that two of these want the other way round is the server's to resolve.
                root.batch_execute(way).unwrap();
                std::thread::sleep(Duration::from_millis(20));
            }
        })
    };
    let reads: Vec<u64> = clients_at_once(&cluster, "postgres", 4, LIMIT, |part, mut client| {
        // All are connected by now.
        let end = Instant::now() + Duration::from_secs(4);
        if part == 0 {
            let mut number = 0;
            while Instant::now() < end {
                number += 1;
                let name = number as usize % NAMES;
                let put = format!("SELECT vault.put_secret('m/{name}', '{name}/{number:08}')");
                client.batch_execute(&put).unwrap();
                if number % 5 == 0 {
                    client.batch_execute(&format!("BEGIN; {put}; ROLLBACK")).unwrap();
                }
            }
            return 0;
        }
        let mut last = vec![String::new(); NAMES];
        let mut reads = 0;
        while Instant::now() < end || reads < 200 {
            for (name, last) in last.iter_mut().enumerate() {
                let value = client.ask(&format!("SELECT vault.read_secret('m/{name}')"));
                assert!(value.starts_with(&format!("{name}/")) && value.len() > 9, "another's value");
                assert!(value >= *last, "an older value after a newer one");
                *last = value;
                reads += 1;
            }
        }
        reads
    });
    done.store(true, Ordering::Release);
    vacuum.finish(LIMIT);
    println!("{} reads", reads.iter().sum::<u64>());
    assert!(reads[1..].iter().all(|&reads| reads > 0));
}

/// What a warm read costs, in things that can be counted on any machine: a gate against becoming slower by accident. Whoever
/// has to raise a number here says why in docs/performance.md.
#[test]
fn the_cost_of_a_warm_read() {
    let cluster = Cluster::builder().conf("autovacuum", "off").start();
    let vault = cluster.vault();
    let mut ops = vault.ops();
    ops.ask("SELECT vault.create_secret('a', repeat('v', 64))");
    ops.ask("SELECT vault.create_secret(name => 'u', username => 'user', password => repeat('v', 64))");
    ops.ask(
        "SELECT vault.create_secret('g', 'v1', grace_period => '1 hour'); SELECT vault.put_secret('g', 'v2')",
    );
    let mut app = vault.app();
    let mut count = |statement: &str| {
        let counters = |client: &mut Client| -> Vec<u64> {
            let shown = client.ask("SHOW hyperion_vault.test_counters");
            shown.split(' ').map(|count| count.parse().unwrap()).collect()
        };
        app.ask(statement);
        let before = counters(&mut app);
        let at_rest = counters(&mut app);
        let descents = descents(&mut app, statement);
        let after = counters(&mut app);
        // A counting allocates too.
        let calls = |of: usize| (after[of] - at_rest[of]).saturating_sub(at_rest[of] - before[of]);
        (calls(0), calls(1), descents)
    };
    // A hundred calls: allocations of ours, guards (each saves the state to come back to after an error), index descents.
    for (call, allocations, guards) in [
        // Look at the row, let go of it.
        ("vault.read_secret('a')", 0, 200),
        ("vault.read_secret_bytes('a')", 0, 200),
        // The opened payload, of which the password is a part.
        ("vault.read_secret('u')", 100, 200),
        // The secret's row, then the version's.
        ("vault.read_secret('g', 1)", 0, 400),
        // The opened value, to compare with.
        ("vault.verify('a', 'x')", 100, 200),
        ("get.value", 0, 200),
    ] {
        // The names differ for the planner, which would call a function of constants once.
        let get = ", LATERAL vault.get_secret(left('a' || i, 1)) get";
        let from = if call == "get.value" { get } else { "" };
        let statement = format!("SELECT count({call}) FROM generate_series(1, 100) i{from}");
        let (allocated, guarded, descents) = count(&statement);
        println!("{call}: {allocated} allocations, {guarded} guards, {descents} descents");
        assert_eq!(descents, "0|0", "{call} goes through an index");
        assert!(
            allocated <= allocations && guarded <= guards,
            "{call}: {allocated} allocations, {guarded} guards"
        );
    }
}
