//! Eight sessions that want one new name at once: exactly one makes it, the others are told, or change it. Runs in the test
//! process.

use hyperion_vault_tests::threads::clients_at_once;
use hyperion_vault_tests::{Ask, Cluster};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(120);
const SESSIONS: usize = 8;
const ROUNDS: usize = 40;

#[test]
fn of_one_new_name_one_is_made() {
    let cluster =
        Cluster::builder().conf("max_prepared_transactions", "20").conf("deadlock_timeout", "100ms").start();
    let vault = cluster.vault();
    let mut root = vault.root();
    root.ask("CREATE ROLE maker LOGIN IN ROLE vault_admin, vault_reader");
    for round in 0..ROUNDS {
        let name = format!("new/{round}");
        // Now and then the first secret of all: with it the vault gets its id.
        if round % 2 == 0 {
            root.ask(
                "DELETE FROM vault.secret_versions; DELETE FROM vault.secrets; DELETE FROM vault.vault_meta",
            );
        }
        let wanted = name.clone();
        // Odd sessions put, even ones create; some roll back, in part or whole, some prepare first.
        let outcomes = clients_at_once(&cluster, "maker", SESSIONS, LIMIT, move |i, mut client| {
            let call = match i % 2 {
                0 => format!("SELECT version FROM vault.create_secret('{wanted}', 'value {i}')"),
                _ => format!("SELECT version FROM vault.put_secret('{wanted}', 'value {i}')"),
            };
            let result = match (i + round) % 4 {
                0 => client.try_ask(&call),
                1 => {
                    // What is taken back counts for nothing.
                    let outcome = client.try_ask(&format!("BEGIN; {call}")).map(|_| String::new());
                    client.ask("ROLLBACK");
                    outcome
                }
                2 => client
                    .try_ask(&format!("BEGIN; SAVEPOINT s; {call}"))
                    .and_then(|_| client.try_ask(&format!("ROLLBACK TO s; {call}")))
                    .and_then(|version| client.try_ask("COMMIT").map(|_| version)),
                _ => {
                    let gid = format!("p{round}-{i}");
                    client
                        .try_ask(&format!("BEGIN; {call}"))
                        .and_then(|version| {
                            client.try_ask(&format!("PREPARE TRANSACTION '{gid}'")).map(|_| version)
                        })
                        .and_then(|version| {
                            client.try_ask(&format!("COMMIT PREPARED '{gid}'")).map(|_| version)
                        })
                }
            };
            match result {
                Ok(version) => Ok((i, version)),
                Err(error) => Err(error.code().unwrap_or_else(|| panic!("{error:?}")).code().to_owned()),
            }
        });
        let made: Vec<_> = outcomes
            .iter()
            .filter_map(|outcome| outcome.as_ref().ok())
            .filter(|(_, version)| !version.is_empty())
            .collect();
        let refused: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
        assert!(refused.iter().all(|code| *code == "23505"), "{outcomes:?}");
        // Versions 1 up, each once: the first made it, each other one changed it.
        let mut versions: Vec<i32> =
            made.iter().map(|(_, version)| version.parse().expect("a version")).collect();
        versions.sort_unstable();
        assert_eq!(versions, (1..=versions.len() as i32).collect::<Vec<_>>(), "{outcomes:?}");
        let row =
            root.ask(&format!("SELECT count(*), min(version) FROM vault.secrets WHERE name = '{name}'"));
        assert_eq!(row, format!("1|{}", versions.len()), "{outcomes:?}");
        let (last, _) =
            made.iter().find(|(_, version)| *version == versions.len().to_string()).expect("the last");
        assert_eq!(root.ask(&format!("SELECT vault.read_secret('{name}')")), format!("value {last}"));
    }
}

/// No lock a name: the lock table is for sixty-four times so many sessions and tables, not for names.
#[test]
fn thousands_of_new_names_fit_into_a_small_lock_table() {
    let cluster = Cluster::builder().conf("max_locks_per_transaction", "10").max_connections(20).start();
    let vault = cluster.vault();
    let mut root = vault.root();
    root.ask("BEGIN");
    for call in [
        "SELECT vault.put_secret('n/' || i, 'v') FROM generate_series(1, 3000) i",
        "SELECT vault.put_secret('n/' || i, 'w') FROM generate_series(1, 3000) i",
        "SELECT vault.create_role('n/' || i) FROM generate_series(1, 500) i",
        "SELECT vault.create_token('n/' || i, 'n/1') FROM generate_series(1, 500) i",
        "SELECT vault.rename_secret('n/' || i, 'm/' || i) FROM generate_series(1, 500) i",
        "SELECT vault.delete_secret('n/' || i) FROM generate_series(501, 1000) i",
    ] {
        root.ask(call);
        let locks: i64 =
            root.ask("SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid()").parse().expect("a number");
        assert!(locks < 60, "{locks} locks after {call}");
    }
    root.ask("COMMIT");
    assert_eq!(root.ask("SELECT count(*) FROM vault.secrets"), "2500");
    assert_eq!(vault.app().ask("SELECT vault.read_secret('n/3000'), vault.read_secret('m/500')"), "w|w");
}
