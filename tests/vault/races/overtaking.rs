//! One session waits for another and then finds the world changed: deterministic, unlike the storm.

use super::Expected;
use hyperion_vault_tests::threads::background;
use hyperion_vault_tests::{Client, PATIENCE, Vault, backend_pid, sqlstate, wait_for};

/// Waits until the session with this pid waits for a lock.
fn wait_blocked(observer: &mut Client, pid: i32) {
    wait_for("the session to wait for a lock", PATIENCE, || {
        let sql = "SELECT cardinality(pg_blocking_pids($1)) > 0";
        observer.query_one(sql, &[&pid]).unwrap().get(0)
    });
}

pub fn replace_under_waiters(vault: &Vault<'_>) -> Expected {
    let mut expected = Expected::new();
    // Delete and create in one transaction: at no moment was there no secret of that name, so nobody may be told so.
    for (i, call) in [
        "vault.put_secret($1, 'late')",
        "vault.update_secret($1, value => 'late')",
        "vault.rotate_secret($1)",
        "vault.update_secret($1, description => 'late')",
        "vault.delete_secret($1)",
    ]
    .into_iter()
    .enumerate()
    {
        let (name, generator) = (format!("overtaken/{i}"), r#"{"length": 20}"#);
        let mut first = vault.root();
        let create = format!("SELECT vault.create_secret($1, $2, generator => '{generator}')");
        first.query_one(&create, &[&name, &"old"]).unwrap();
        first.batch_execute("BEGIN").unwrap();
        first.query_one("SELECT vault.delete_secret($1)", &[&name]).unwrap();
        first.query_one(&create, &[&name, &"new"]).unwrap();

        let mut second = vault.ops();
        let pid = backend_pid(&mut second);
        let (sql, waiting_name) = (format!("SELECT {call}"), name.clone());
        let waiting = background(move || second.query(&sql, &[&waiting_name]).map(drop));
        wait_blocked(&mut vault.root(), pid);
        first.batch_execute("COMMIT").unwrap();
        waiting.finish(PATIENCE).unwrap_or_else(|error| panic!("{call}: {error:?}"));

        let read = first.query_one("SELECT version, value FROM vault.get_secret($1)", &[&name]);
        match i {
            0 | 1 => {
                let row = read.unwrap();
                assert_eq!((row.get::<_, i32>(0), row.get::<_, &str>(1)), (2, "late"), "{call}");
                expected.push((name, None, "late".into()));
            }
            2 => assert_eq!(read.unwrap().get::<_, i32>(0), 2),
            3 => expected.push((name, Some(1), "new".into())),
            _ => drop(sqlstate!(read, "P0002")),
        }
    }

    // Two creates of one name: the second waits, and is told the truth, whichever it is.
    for (end, outcome) in [("COMMIT", Some("23505")), ("ROLLBACK", None)] {
        let name = format!("overtaken/{end}");
        let (mut first, mut second) = (vault.ops(), vault.ops());
        let pid = backend_pid(&mut second);
        first.batch_execute("BEGIN").unwrap();
        first.query_one("SELECT vault.create_secret($1, 'first')", &[&name]).unwrap();
        let create = name.clone();
        let waiting = background(move || {
            second.query("SELECT vault.create_secret($1, 'second')", &[&create]).map(drop)
        });
        wait_blocked(&mut vault.root(), pid);
        first.batch_execute(end).unwrap();
        let result = waiting.finish(PATIENCE);
        match outcome {
            Some(code) => drop(sqlstate!(result, code)),
            None => result.unwrap(),
        }
        expected.push((name, None, if outcome.is_some() { "first" } else { "second" }.into()));
    }

    writes_under_an_old_snapshot(vault, &mut expected);
    expected
}

/// A transaction with an old snapshot reads the secret as it is now, one that is younger than itself included; it overwrites
/// and removes nothing that its snapshot does not see. (Every write and every kind of change: storage/levels.rs.)
fn writes_under_an_old_snapshot(vault: &Vault<'_>, expected: &mut Expected) {
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        let name = format!("young/{level}");
        let (mut old, mut other) = (vault.root(), vault.root());
        old.batch_execute(&format!("BEGIN ISOLATION LEVEL {level}; SELECT count(*) FROM pg_class")).unwrap();
        other.query_one("SELECT vault.create_secret($1, '1', grace_period => '1 day')", &[&name]).unwrap();
        other.query_one("SELECT vault.put_secret($1, '2')", &[&name]).unwrap();
        for call in [
            "(vault.put_secret($1, '3')).version",
            "vault.delete_secret($1)",
            "vault.delete_secret($1, '1 day')",
        ] {
            old.batch_execute("SAVEPOINT s").unwrap();
            sqlstate!(old.query(&format!("SELECT {call}"), &[&name]), "40001");
            old.batch_execute("ROLLBACK TO s").unwrap();
            let read = old.query_one("SELECT version, value FROM vault.get_secret($1)", &[&name]).unwrap();
            assert_eq!((read.get::<_, i32>(0), read.get::<_, &str>(1)), (2, "2"), "{level}: {call}");
        }
        // What is new is its own, and the transaction commits.
        let own = format!("own/{level}");
        old.query_one("SELECT vault.create_secret($1, '1', grace_period => '1 day')", &[&own]).unwrap();
        old.query_one("SELECT vault.put_secret($1, '2')", &[&own]).unwrap();
        old.batch_execute("COMMIT").unwrap();
        // Repeated, as 40001 asks for, it works.
        let put = old.query_one("SELECT (vault.put_secret($1, '3')).version", &[&name]).unwrap();
        assert_eq!(put.get::<_, i32>(0), 3);
        expected.extend((1..=3).map(|n| (name.clone(), Some(n), n.to_string())));
        expected.extend((1..=2).map(|n| (own.clone(), Some(n), n.to_string())));
    }
}
