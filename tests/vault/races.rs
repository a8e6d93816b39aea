//! Sessions that race on one name: nothing acknowledged is lost, nothing is given twice, nobody deadlocks.
//!
//! The servers are real and the races are free-running: what is asserted is what must hold of any outcome. Runs in
//! the test process; one thread per session.

mod counter;
mod overtaking;
mod renames;
mod savepoints;
mod storm;

use hyperion_vault_tests::threads::clients_at_once;
use hyperion_vault_tests::{Client, Cluster, StopMode, Vault, sqlstate};
use std::time::{Duration, SystemTime};

/// How long one race may take: a few seconds on an idle machine.
const LIMIT: Duration = Duration::from_secs(150);

/// The isolation levels, None being autocommit.
const LEVELS: [Option<&str>; 4] =
    [None, Some("READ COMMITTED"), Some("REPEATABLE READ"), Some("SERIALIZABLE")];

/// What a session that races may be told: overtaken, gone, taken, or to try again. Above all not 40P01 (deadlock),
/// 23503 or 23505 of our own constraints, XX000, XX001.
const ALLOWED: [&str; 4] = ["55000", "P0002", "23505", "40001"];

/// The SQLSTATE of an error that a race may cause; any other fails the test.
#[track_caller]
fn allowed(error: &postgres::Error) -> &str {
    let code = error.code().unwrap_or_else(|| panic!("the session failed: {error:?}")).code();
    assert!(ALLOWED.contains(&code), "no session may be told this: {error:?}");
    code
}

/// What must be readable when the dust has settled: name, version (None: current) and value.
type Expected = Vec<(String, Option<i32>, String)>;

#[track_caller]
fn assert_readable(client: &mut Client, expected: &Expected) {
    for (name, version, value) in expected {
        let row = client
            .query_one("SELECT vault.read_secret($1, $2)", &[name, version])
            .unwrap_or_else(|error| panic!("{name} version {version:?}: {error:?}"));
        assert_eq!(row.get::<_, &str>(0), value, "{name} version {version:?}");
    }
}

/// A small generator of test decisions (xorshift64*); the seed is printed when a test fails.
struct Random(u64);

impl Random {
    fn new(stream: usize) -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock after 1970");
        let seed = (now.as_nanos() as u64 ^ ((stream as u64 + 1) << 48)) | 1;
        println!("stream {stream}: seed {seed:#x}");
        Self(seed)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % n
    }
}

#[test]
fn nothing_is_lost_doubled_or_unreadable() {
    let cluster = Cluster::builder().time_limit(Duration::from_secs(500)).start();
    let vault = cluster.vault();
    // Reads and manages: counters need both.
    vault.root().batch_execute("CREATE ROLE owner_of_all LOGIN IN ROLE vault_reader, vault_admin").unwrap();

    let mut expected = first_seal(&vault);
    expected.extend(counter::count_up(&vault));
    expected.extend(storm::rage(&vault));
    expected.extend(savepoints::roll_back(&vault));
    expected.extend(overtaking::replace_under_waiters(&vault));

    assert_readable(&mut vault.app(), &expected);
    // With an empty cache: what opened above by a key that only lived in memory does not open now.
    cluster.restart(StopMode::Fast);
    assert_readable(&mut vault.app(), &expected);
}

/// The vault gets its identity from the transaction that seals first. Eight try at once and some of them roll back:
/// the others must all end up in one and the same vault.
fn first_seal(vault: &Vault<'_>) -> Expected {
    let mut expected = Expected::new();
    for round in 0..4 {
        // A new extension is an empty vault.
        vault
            .root()
            .batch_execute("DROP EXTENSION hyperion_vault CASCADE; CREATE EXTENSION hyperion_vault")
            .unwrap();
        expected = clients_at_once(vault.cluster, "owner_of_all", 8, LIMIT, move |i, mut client| {
            let (name, value) = (format!("first/{i}"), format!("value {round} {i}"));
            let level = LEVELS[i % LEVELS.len()].unwrap_or("READ COMMITTED");
            for _ in 0..50 {
                let begin = format!("BEGIN ISOLATION LEVEL {level}");
                client.batch_execute(&begin).unwrap();
                let end = if (i + round) % 3 == 0 { "ROLLBACK" } else { "COMMIT" };
                let done = client
                    .query_one("SELECT vault.create_secret($1, $2)", &[&name, &value])
                    .and_then(|_| client.batch_execute(end));
                match done {
                    Ok(()) => return (end == "COMMIT").then_some((name, None, value)),
                    Err(error) => {
                        assert_eq!(allowed(&error), "40001");
                        client.batch_execute("ROLLBACK").unwrap();
                    }
                }
            }
            panic!("session {i} did not get through in 50 attempts");
        })
        .into_iter()
        .flatten()
        .collect();

        let mut root = vault.root();
        let ids: i64 = root.query_one("SELECT count(*) FROM vault.vault_meta", &[]).unwrap().get(0);
        assert_eq!(ids, 1);
        let secrets: i64 = root.query_one("SELECT count(*) FROM vault.secrets", &[]).unwrap().get(0);
        assert_eq!(secrets, expected.len() as i64, "rolled-back ones leave nothing");
        assert_eq!(expected.len(), if round % 3 == 1 { 6 } else { 5 });
        assert_readable(&mut root, &expected);
        sqlstate!(root.query("SELECT vault.read_secret('first/none')", &[]), "P0002");
    }
    expected
}
