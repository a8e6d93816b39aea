//! Isolation levels: a row whose newest version a transaction's snapshot does not see is read as it is, and not overwritten;
//! READ COMMITTED waits for whoever holds the row, and looks again. Runs in the test process.
//!
//! The trap: a session that was not waiting when the other one ended. Each waits in the server's view before the next step.

use super::state;
use crate::watch::Waiter;
use hyperion_vault_tests::{Ask, Client, Cluster, PATIENCE, Vault, backend_pid, sqlstate, wait_for};

fn cluster() -> Cluster {
    Cluster::builder().conf("deadlock_timeout", "100ms").conf("max_prepared_transactions", "10").start()
}

/// Waits until the session with this pid waits for a lock.
#[track_caller]
fn until_blocked(root: &mut Client, pid: i32) {
    wait_for("the session to wait for a lock", PATIENCE, || {
        root.query_one("SELECT cardinality(pg_blocking_pids($1)) > 0", &[&pid]).expect("an answer").get(0)
    });
}

/// Runs `waiting` in a session of its own while `holder` has done `held`, ends the holder's transaction with `end` once the
/// other waits, and gives the SQLSTATE of the waiting statement ("" if it worked).
#[track_caller]
fn under(vault: &Vault<'_>, held: &str, waiting: &str, end: &str) -> String {
    let (mut root, mut holder) = (vault.root(), vault.root());
    holder.ask(&format!("BEGIN; {held}"));
    let waiter = Waiter::start(vault.root(), waiting);
    until_blocked(&mut root, waiter.pid);
    holder.ask(end);
    match waiter.finish() {
        Ok(_) => String::new(),
        Err(error) => error.code().unwrap_or_else(|| panic!("{waiting}: {error:?}")).code().to_owned(),
    }
}

/// What writes a secret `s` that is there.
const WRITES: [&str; 9] = [
    "SELECT vault.put_secret('s', 'mine')",
    "SELECT vault.update_secret('s', value => 'mine')",
    "SELECT vault.update_secret('s', description => 'mine')",
    "SELECT vault.update_secret('s', metadata => '{}', reset => '{grace_period}')",
    "SELECT vault.rotate_secret('s')",
    "SELECT vault.roll_back_secret('s', 1)",
    "SELECT vault.rename_secret('s', 't')",
    "SELECT vault.delete_secret('s')",
    "SELECT vault.delete_secret('s', '1 hour')",
];

fn make(root: &mut Client) {
    root.ask(
        "SELECT vault.delete_secret(name) FROM vault.list_secrets(); SELECT vault.delete_secret(name) FROM vault.list_secrets(deleted => true);
         SELECT vault.create_secret('s', 'one', grace_period => '1 day', generator => '{}'); SELECT vault.put_secret('s', 'two')",
    );
}

#[test]
fn what_a_snapshot_does_not_see_is_not_overwritten() {
    let cluster = cluster();
    let vault = cluster.vault();
    let mut root = vault.root();
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        for write in WRITES {
            // What others did after the snapshot, and what is read then.
            for (meanwhile, value) in [
                ("SELECT vault.put_secret('s', 'three')", "three"),
                ("SELECT vault.update_secret('s', description => 'theirs')", "two"),
                ("SELECT vault.rename_secret('s', 'x'); SELECT vault.rename_secret('x', 's')", "two"),
                (
                    "SELECT vault.delete_secret('s'); SELECT vault.create_secret('s', 'anew', generator => '{}', grace_period => '1 day')",
                    "anew",
                ),
            ] {
                make(&mut root);
                let mut old = vault.root();
                old.ask(&format!("BEGIN ISOLATION LEVEL {level}; SELECT count(*) FROM pg_class"));
                root.ask(meanwhile);
                assert_eq!(old.ask("SELECT vault.read_secret('s')"), value, "{level}: {meanwhile}");
                old.ask("SAVEPOINT s");
                let code = state(&mut old, write);
                // Of a secret that is younger than the snapshot there is no version 1 in grace, or it is the only one.
                let expected = if value == "anew" && write.contains("roll_back") {
                    ["40001", "55000"]
                } else {
                    ["40001"; 2]
                };
                assert!(expected.contains(&code.as_str()), "{level}: {meanwhile}; {write}: {code}");
                old.ask("ROLLBACK TO s");
                // Nothing of the attempt is left, and reading goes on.
                assert_eq!(old.ask("SELECT vault.read_secret('s')"), value, "{level}: {meanwhile}; {write}");
                old.ask("ROLLBACK");
                assert_eq!(root.ask("SELECT vault.read_secret('s')"), value, "{level}: {meanwhile}; {write}");
            }
        }
        // What it did itself is its own, again and again; what it sees unchanged may be changed.
        make(&mut root);
        let mut own = vault.root();
        own.ask(&format!("BEGIN ISOLATION LEVEL {level}; SELECT count(*) FROM pg_class"));
        own.ask(
            "SELECT vault.put_secret('s', 'three'); SELECT vault.rotate_secret('s'); SAVEPOINT a; SELECT vault.put_secret('s', 'five'); ROLLBACK TO a;
             SELECT vault.roll_back_secret('s', 1); SELECT vault.rename_secret('s', 't'); SELECT vault.update_secret('t', description => 'd');
             SELECT vault.create_secret('u', 'one'); SELECT vault.put_secret('u', 'two'); SELECT vault.delete_secret('u'); SELECT vault.create_secret('u', 'anew')",
        );
        assert_eq!(own.ask("SELECT vault.read_secret('t'), vault.read_secret('u')"), "one|anew");
        own.ask("COMMIT");
        assert_eq!(vault.app().ask("SELECT vault.read_secret('t'), vault.read_secret('u')"), "one|anew");
    }
}

/// The same for who may do what, where an update overwrites a row.
#[test]
fn roles_and_tokens_under_an_old_snapshot() {
    let cluster = cluster();
    let vault = cluster.vault();
    let mut root = vault.root();
    let mut wrong = Vec::new();
    let rules = |path: &str| {
        format!("SELECT vault.set_role_permissions('r', '[{{\"action\":\"read\",\"path\":\"{path}\"}}]')")
    };
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        root.ask("SELECT vault.create_role('r'); SELECT vault.create_role('other'); SELECT vault.create_token('t', 'r')");
        for (meanwhile, then) in [
            (rules("a/*"), rules("b/*")),
            ("SELECT vault.bind_role('r', 'app')".to_owned(), "SELECT vault.unbind_role('r', 'app')".to_owned()),
            (
                "SELECT vault.drop_role('r'); SELECT vault.create_role('r'); SELECT vault.create_token('t', 'r')".to_owned(),
                "SELECT vault.drop_role('r')".to_owned(),
            ),
            (
                "SELECT vault.revoke_token('t'); SELECT vault.create_token('t', 'r')".to_owned(),
                "SELECT vault.revoke_token('t')".to_owned(),
            ),
        ] {
            let mut old = vault.root();
            old.ask(&format!("BEGIN ISOLATION LEVEL {level}; SELECT count(*) FROM pg_class"));
            root.ask(&meanwhile);
            let before = root.ask("SELECT name, permissions, pg_roles FROM vault.list_roles() ORDER BY 1; SELECT name, role FROM vault.list_tokens()");
            let code = state(&mut old, &then);
            if code != "40001" {
                wrong.push(format!("{level}: {meanwhile}; {then}: {code}"));
            }
            old.ask("ROLLBACK");
            let after = root.ask("SELECT name, permissions, pg_roles FROM vault.list_roles() ORDER BY 1; SELECT name, role FROM vault.list_tokens()");
            assert_eq!(after, before, "{level}: {meanwhile}; {then}");
        }
        root.ask("SELECT vault.drop_role('r'); SELECT vault.drop_role('other')");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn read_committed_waits_and_looks_again() {
    let cluster = cluster();
    let vault = cluster.vault();
    let mut root = vault.root();
    for write in WRITES {
        for (held, end, gone) in [
            ("SELECT vault.put_secret('s', 'held')", "COMMIT", false),
            ("SELECT vault.put_secret('s', 'held')", "ROLLBACK", false),
            (
                "SAVEPOINT a; SELECT vault.put_secret('s', 'held'); SAVEPOINT b; SELECT vault.put_secret('s', 'again')",
                "ROLLBACK TO b; COMMIT",
                false,
            ),
            ("SELECT vault.rename_secret('s', 'x')", "COMMIT", true),
            ("SELECT vault.rename_secret('s', 'x')", "ROLLBACK", false),
            ("SELECT vault.delete_secret('s')", "COMMIT", true),
            ("SELECT vault.delete_secret('s')", "ROLLBACK", false),
            ("SELECT vault.delete_secret('s', '1 hour')", "COMMIT", true),
            // At no moment was there none of this name.
            (
                "SELECT vault.delete_secret('s'); SELECT vault.create_secret('s', 'anew', generator => '{}', grace_period => '1 day')",
                "COMMIT",
                false,
            ),
            (
                "SELECT vault.rename_secret('s', 'x'); SELECT vault.create_secret('s', 'anew', generator => '{}')",
                "COMMIT",
                false,
            ),
        ] {
            make(&mut root);
            let code = under(&vault, held, write, end);
            let creates = write.contains("put_secret");
            let anew = held.contains("anew") && end == "COMMIT" && write.contains("roll_back");
            let expected: &[&str] = match () {
                // One that can be restored is destroyed by deleting it again.
                () if gone && held.contains("1 hour") && write.contains("delete") => &["", "P0002", "55000"],
                () if gone && creates => &["", "23505", "55000"],
                () if gone => &["P0002"],
                () if anew => &["P0002", "55000", "22023"],
                () => &[""],
            };
            assert!(expected.contains(&code.as_str()), "{held}; {end}, then {write}: {code:?}");
            // The holder's secret is not touched by what was meant for the other one.
            if gone && held.contains("rename") && end == "COMMIT" {
                assert_eq!(root.ask("SELECT vault.read_secret('x')"), "two", "{held}; {write}");
            }
            if code.is_empty()
                && (write.contains("'mine')") && write.contains("put") || write.contains("value => 'mine'"))
            {
                assert_eq!(root.ask("SELECT vault.read_secret('s')"), "mine", "{held}; {end}, then {write}");
            }
        }
    }
    // A rolled back savepoint gives its row free while the transaction goes on.
    make(&mut root);
    let mut holder = vault.root();
    holder.ask("BEGIN; SAVEPOINT a; SELECT vault.put_secret('s', 'held')");
    let waiter = Waiter::start(vault.root(), "SELECT vault.put_secret('s', 'waited')");
    until_blocked(&mut root, waiter.pid);
    holder.ask("ROLLBACK TO a");
    waiter.finish().expect("the row is free");
    holder.ask("COMMIT");
    assert_eq!(root.ask("SELECT version, value FROM vault.get_secret('s')"), "3|waited");
}

#[test]
fn waits_end_as_everywhere() {
    let cluster = cluster();
    let vault = cluster.vault();
    let mut root = vault.root();
    root.ask("SELECT vault.create_secret('a', 'v', generator => '{}'); SELECT vault.create_secret('b', 'v', generator => '{}'); SELECT vault.create_role('r')");
    let mut holder = vault.root();
    holder.ask("BEGIN; SELECT vault.put_secret('a', 'held'); SELECT vault.create_secret('new', 'v'); SELECT vault.set_role_permissions('r', '[]'); SELECT vault.bind_role('r', 'app')");
    for (setting, code) in [("lock_timeout", "55P03"), ("statement_timeout", "57014")] {
        for call in [
            "SELECT vault.put_secret('a', 'x')",
            "SELECT vault.rotate_secret('a')",
            "SELECT vault.delete_secret('a')",
            "SELECT vault.rename_secret('a', 'c')",
            "SELECT vault.rename_secret('b', 'new')",
            "SELECT vault.create_secret('new', 'x')",
            "SELECT vault.put_secret('new', 'x')",
            "SELECT vault.drop_role('r')",
        ] {
            let mut client = vault.root();
            client.ask(&format!("SET {setting} = '150ms'; BEGIN; SAVEPOINT s"));
            assert_eq!(state(&mut client, call), code, "{call}");
            client.ask("ROLLBACK TO s");
            // The transaction goes on as if nothing had been tried.
            client.ask("SELECT vault.put_secret('b', 'fine'); COMMIT");
        }
    }
    holder.ask("ROLLBACK");
    assert_eq!(root.ask("SELECT vault.read_secret('a'), vault.read_secret('b')"), "v|fine");

    // Two sessions, two secrets, in opposite order: one of them is told, the other goes on.
    let (mut first, mut second) = (vault.root(), vault.root());
    first.ask("BEGIN; SELECT vault.put_secret('a', 'first')");
    second.ask("BEGIN; SELECT vault.put_secret('b', 'second')");
    let pid = backend_pid(&mut first);
    let waiting = hyperion_vault_tests::threads::background(move || {
        let outcome = state(&mut first, "SELECT vault.put_secret('b', 'first')");
        (first, outcome)
    });
    until_blocked(&mut root, pid);
    let of_second = state(&mut second, "SELECT vault.put_secret('a', 'second')");
    second.ask(if of_second == "00000" { "COMMIT" } else { "ROLLBACK" });
    let (mut first, of_first) = waiting.finish(PATIENCE);
    first.ask(if of_first == "00000" { "COMMIT" } else { "ROLLBACK" });
    let mut outcomes = [of_first.as_str(), of_second.as_str()];
    outcomes.sort_unstable();
    assert_eq!(outcomes, ["00000", "40P01"]);
    let winner = if of_first == "00000" { "first|first" } else { "second|second" };
    assert_eq!(root.ask("SELECT vault.read_secret('a'), vault.read_secret('b')"), winner);

    // Terminated while it waits: nothing is left.
    holder.ask("BEGIN; SELECT vault.put_secret('a', 'held')");
    let waiter = Waiter::start(vault.root(), "SELECT vault.put_secret('a', 'x')");
    until_blocked(&mut root, waiter.pid);
    root.ask(&format!("SELECT pg_terminate_backend({})", waiter.pid));
    hyperion_vault_tests::expect_disconnect(waiter.finish());
    holder.ask("COMMIT");
    assert_eq!(root.ask("SELECT vault.read_secret('a')"), "held");
}

/// Each session, in a transaction that has read, makes its statement; then both commit. One of them at least is refused, and
/// nobody is told anything else.
#[track_caller]
fn one_gives_way(mut sessions: [(&mut Client, String); 2], what: &str) {
    let mut told = vec![];
    for (client, write) in &mut sessions {
        told.push(state(client, write));
    }
    for (client, _) in &mut sessions {
        // A COMMIT of a failed transaction says nothing of it.
        told.push(state(client, "COMMIT"));
    }
    let refused = told.iter().filter(|code| *code == "40001").count();
    assert!(
        refused >= 1 && told.iter().all(|code| ["00000", "40001"].contains(&code.as_str())),
        "{what}: {told:?}"
    );
}

/// Each reads what the other writes: one of the two has to give way, in whichever order they end.
#[test]
fn write_skew_is_refused() {
    let cluster = cluster();
    let vault = cluster.vault();
    let mut root = vault.root();
    for (read, write) in [
        ("vault.read_secret", "vault.put_secret"),
        ("vault.verify", "vault.put_secret"),
        ("vault.list_versions", "vault.put_secret"),
    ] {
        root.ask("SELECT vault.put_secret('a', 'on'); SELECT vault.put_secret('b', 'on')");
        let (mut first, mut second) = (vault.root(), vault.root());
        let argument = if read.contains("verify") { ", 'on'" } else { "" };
        for (client, of) in [(&mut first, "b"), (&mut second, "a")] {
            client.ask("BEGIN ISOLATION LEVEL SERIALIZABLE");
            client.ask(&format!("SELECT {read}('{of}'{argument})"));
        }
        let off = |of: &str| format!("SELECT {write}('{of}', 'off')");
        one_gives_way([(&mut first, off("a")), (&mut second, off("b"))], read);
        let left = root.ask("SELECT vault.read_secret('a') || vault.read_secret('b')");
        assert_ne!(left, "offoff", "{read}: both went off");
    }
}

/// What was not there when one looked, and what was not listed: the session that makes it has to give way, or the one that looked.
#[test]
fn what_was_looked_for_and_made_is_refused() {
    let cluster = cluster();
    let vault = cluster.vault();
    let mut root = vault.root();
    root.ask("SELECT vault.create_secret('q/' || i, 'v', grace_period => '1 day') FROM generate_series(1, 20) i; SELECT vault.create_role('q_1'); SELECT vault.create_role('q_2')");
    let secret = "SELECT vault.create_secret('p/{}', 'v')";
    let put = "SELECT vault.put_secret('p/{}', 'v')";
    let delete = "SELECT vault.delete_secret('p/{}')";
    let role = "SELECT vault.create_role('p_{}')";
    for (look, found, make, remove) in [
        ("SELECT vault.read_secret('p/{}')", "P0002", secret, delete),
        ("SELECT vault.verify('p/{}', 'v')", "P0002", put, delete),
        ("SELECT name FROM vault.list_secrets('p/{}')", "", secret, delete),
        ("SELECT name FROM vault.list_secrets('p/*')", "", put, delete),
        ("SELECT name FROM vault.read_secrets('{p/{}}')", "", secret, delete),
        ("SELECT name FROM vault.decrypted_secrets WHERE name = 'p/{}'", "", secret, delete),
        ("SELECT name FROM vault.decrypted_secrets WHERE name > 'p/' AND name < 'p0'", "", secret, delete),
        (
            "SELECT name FROM vault.list_roles() WHERE name = 'p_{}'",
            "",
            role,
            "SELECT vault.drop_role('p_{}')",
        ),
        (
            "SELECT name FROM vault.list_tokens() WHERE name = 'p_{}'",
            "",
            "SELECT vault.create_token('p_{}', 'q_{}')",
            "SELECT vault.revoke_token('p_{}')",
        ),
        (
            "SELECT count(*) FROM vault.list_roles()",
            "-",
            "SELECT vault.bind_role('q_{}', 'app')",
            "SELECT vault.unbind_role('q_{}', 'app')",
        ),
    ] {
        let (mut first, mut second) = (vault.root(), vault.root());
        for (client, of) in [(&mut first, "2"), (&mut second, "1")] {
            client.ask("SET lock_timeout = '10s'; BEGIN ISOLATION LEVEL SERIALIZABLE; SAVEPOINT s");
            let look = look.replace("{}", of);
            match found {
                "P0002" => assert_eq!(state(client, &look), "P0002", "{look}"),
                "-" => _ = client.ask(&look),
                _ => assert_eq!(client.ask(&look), found, "{look}"),
            }
            client.ask("ROLLBACK TO s");
        }
        let made = |of: &str| make.replace("{}", of);
        one_gives_way([(&mut first, made("1")), (&mut second, made("2"))], &format!("{look}; {make}"));
        let mut removed = 0;
        for of in ["1", "2"] {
            removed += u32::from(root.try_ask(&remove.replace("{}", of)).is_ok());
        }
        assert_eq!(removed, 1, "{look}; {make}: one of them is made");
    }
}

/// A prepared transaction holds a name: whoever wants it waits for its end.
#[test]
fn a_prepared_transaction_holds_its_names() {
    let cluster = cluster();
    let vault = cluster.vault();
    let mut root = vault.root();
    for (end, code, value) in
        [("COMMIT PREPARED 'p'", "23505", "prepared"), ("ROLLBACK PREPARED 'p'", "", "waited")]
    {
        let mut holder = vault.root();
        holder.ask("BEGIN; SELECT vault.create_secret('p', 'prepared'); PREPARE TRANSACTION 'p'");
        drop(holder);
        sqlstate!(vault.app().try_ask("SELECT vault.read_secret('p')"), "P0002");
        let waiter = Waiter::start(vault.root(), "SELECT vault.create_secret('p', 'waited')");
        let pid = waiter.pid;
        wait_for("it to wait for the prepared transaction", PATIENCE, || {
            root.ask(&format!("SELECT wait_event_type FROM pg_stat_activity WHERE pid = {pid}")) == "Lock"
        });
        root.ask(end);
        let outcome = waiter.finish();
        assert_eq!(
            outcome.err().map_or(String::new(), |error| error.code().expect("an error").code().to_owned()),
            code,
            "{end}"
        );
        assert_eq!(vault.app().ask("SELECT vault.read_secret('p')"), value);
        root.ask("SELECT vault.delete_secret('p')");
    }
    // It survives the server, with the names it holds.
    root.ask("SELECT vault.create_secret('old', 'one')");
    root.ask("BEGIN; SELECT vault.create_secret('p', 'prepared'); SELECT vault.put_secret('old', 'two'); PREPARE TRANSACTION 'p'");
    cluster.restart(hyperion_vault_tests::StopMode::Immediate);
    let mut root = vault.root();
    root.ask("SET lock_timeout = '200ms'");
    for call in [
        "vault.create_secret('p', 'x')",
        "vault.put_secret('p', 'x')",
        "vault.put_secret('old', 'x')",
        "vault.delete_secret('old')",
    ] {
        assert_eq!(state(&mut root, &format!("SELECT {call}")), "55P03", "{call}");
    }
    assert_eq!(root.ask("SELECT vault.read_secret('old')"), "one");
    root.ask("COMMIT PREPARED 'p'");
    assert_eq!(root.ask("SELECT vault.read_secret('old'), vault.read_secret('p')"), "two|prepared");
}
