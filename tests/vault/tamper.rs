//! Rows changed below the vault, by somebody who can write the tables: nothing opens except where it was sealed. Runs
//! in the test process.
//!
//! Each tampering is tried with its data key cached and again with no cache at all, through every function that opens
//! values; then the row is put back and must open, so that it was the tampering that was refused and nothing else.
//! What tampering can do all the same is tested at the end, as a limit that the documentation states.
//!
//! The trap: a refusal that tells what was wrong. Whoever can write the tables would use it as an oracle.

mod limits;
mod matrix;
mod places;

use hyperion_vault_tests::{Client, DbError, Vault, expect_error};
use postgres::types::ToSql;

/// The values of the secrets that [`fill`] makes. None is part of another.
const VALUES: [&str; 4] = ["value-one-of-a", "value-two-of-a", "value-of-b", "password-of-login"];

/// Secrets: `a` with versions 1 (in grace) and 2, `b`, and `login` (a user name and password).
fn fill(client: &mut Client) {
    let sql = "SELECT vault.create_secret(name => 'a', value => $1, grace_period => '1 hour')";
    client.query(sql, &[&VALUES[0]]).unwrap();
    client.query("SELECT vault.put_secret('a', $1)", &[&VALUES[1]]).unwrap();
    client.query("SELECT vault.put_secret('b', $1)", &[&VALUES[2]]).unwrap();
    let sql = "SELECT vault.create_secret(name => 'login', username => 'somebody', password => $1)";
    client.query(sql, &[&VALUES[3]]).unwrap();
}

/// A query that opens one value, as (text of the query, secret, version).
fn reads(name: &str, version: Option<i32>) -> Vec<(&'static str, Vec<Box<dyn ToSql + Sync>>)> {
    let of_version = || -> Vec<Box<dyn ToSql + Sync>> { vec![Box::new(name.to_owned()), Box::new(version)] };
    let candidate: Vec<Box<dyn ToSql + Sync>> = vec![Box::new(name.to_owned()), Box::new("candidate")];
    vec![
        ("SELECT vault.read_secret($1, $2)", of_version()),
        ("SELECT * FROM vault.get_secret($1, $2)", of_version()),
        ("SELECT * FROM vault.verify($1, $2)", candidate),
    ]
}

fn run(
    client: &mut Client,
    sql: &str,
    parameters: &[Box<dyn ToSql + Sync>],
) -> Result<Vec<postgres::Row>, postgres::Error> {
    let parameters: Vec<&(dyn ToSql + Sync)> = parameters.iter().map(AsRef::as_ref).collect();
    client.query(sql, &parameters)
}

/// Every function refuses this version, as damaged data and with nothing said about how.
#[track_caller]
fn assert_refused(client: &mut Client, name: &str, version: Option<i32>, what: &str) {
    for (sql, parameters) in reads(name, version) {
        let result = run(client, sql, &parameters);
        assert!(result.is_err(), "{what}: {sql} did not refuse");
        let error = expect_error(result, "XX001");
        assert!(error.message().ends_with(" cannot be authenticated"), "{what}: {sql}: {}", error.message());
        assert_flat(&error, what);
    }
}

/// Neither a value nor a hint at which check failed. Two facts may be told that anyone who can see the tables knows:
/// that the bytes are not of the loaded provider's format, and that the vault has no identity.
#[track_caller]
fn assert_flat(error: &DbError, what: &str) {
    let told = [error.detail().unwrap_or_default(), error.hint().unwrap_or_default()].concat();
    assert!(
        told.is_empty() || told.contains("format of the local provider") || told.contains("vault.vault_meta"),
        "{what}: {told}"
    );
    let all = format!("{error:?}");
    assert!(VALUES.iter().all(|value| !all.contains(value)), "{what}: {all}");
}

/// All that [`fill`] made opens: the tables are as they were.
#[track_caller]
fn assert_all_open(client: &mut Client) {
    let cases = [
        ("a", Some(1), VALUES[0]),
        ("a", None, VALUES[1]),
        ("b", None, VALUES[2]),
        ("login", None, VALUES[3]),
    ];
    for (name, version, value) in cases {
        let read: String =
            client.query_one("SELECT vault.read_secret($1, $2)", &[&name, &version]).unwrap().get(0);
        assert_eq!(read, value);
        let sql = "SELECT coalesce(value, password) FROM vault.get_secret($1, $2)";
        assert_eq!(client.query_one(sql, &[&name, &version]).unwrap().get::<_, String>(0), value);
        let sql = "SELECT valid FROM vault.verify($1, $2)";
        assert!(client.query_one(sql, &[&name, &value]).unwrap().get::<_, bool>(0));
    }
}

/// The sessions of a tampering: a superuser writes the tables, a reader reads.
struct Table {
    root: Client,
    app: Client,
}

impl Table {
    fn new(vault: &Vault<'_>) -> Self {
        let (mut root, app) = (vault.root(), vault.app());
        // Copies to put back from. A superuser is not subject to row-level security.
        root.batch_execute(
            "CREATE SCHEMA kept;
             CREATE TABLE kept.vault_meta AS TABLE vault.vault_meta;
             CREATE TABLE kept.secrets AS TABLE vault.secrets;
             CREATE TABLE kept.secret_versions AS TABLE vault.secret_versions;",
        )
        .unwrap();
        Self { root, app }
    }

    /// Puts everything back as it was when the copies were made.
    fn restore(&mut self) {
        self.root
            .batch_execute(
                "BEGIN;
                 DELETE FROM vault.secrets; DELETE FROM vault.secret_versions; DELETE FROM vault.vault_meta;
                 INSERT INTO vault.vault_meta TABLE kept.vault_meta;
                 INSERT INTO vault.secrets TABLE kept.secrets;
                 INSERT INTO vault.secret_versions TABLE kept.secret_versions;
                 COMMIT;",
            )
            .unwrap();
    }

    /// Runs `tampering`, which must change something; the secrets named must be refused. Then restores.
    #[track_caller]
    fn tampered(&mut self, tampering: &str, refused: &[(&str, Option<i32>)]) {
        self.root.batch_execute(tampering).unwrap_or_else(|error| panic!("{tampering}: {error:?}"));
        let changed: bool = self
            .root
            .query_one(
                "SELECT EXISTS (TABLE vault.secrets EXCEPT TABLE kept.secrets)
                     OR EXISTS (TABLE vault.secret_versions EXCEPT TABLE kept.secret_versions)
                     OR EXISTS (TABLE kept.vault_meta EXCEPT TABLE vault.vault_meta)",
                &[],
            )
            .unwrap()
            .get(0);
        assert!(changed, "{tampering}: nothing was changed");
        for (name, version) in refused {
            assert_refused(&mut self.app, name, *version, tampering);
        }
        self.restore();
    }
}
