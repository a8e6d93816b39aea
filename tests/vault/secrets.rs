//! The rest of the secrets API: bytes, roll back, deletion with a way back, secrets that run out, renaming, batches, the
//! view. Runs in the test process.
//!
//! The trap: time. Nothing here waits for a clock: ends are moved into the past by a superuser, which is what waiting
//! would do.

mod batch;
mod bytes;
mod contexts;
mod ends;
mod neighbours;
mod paging;
mod rename;
mod roll_back;
mod scans;
mod traces;
mod view;

use hyperion_vault_tests::{Ask, Client, Vault};

/// Moves an end of a secret (`expires_at`, `recover_until`) to just now.
#[track_caller]
fn run_out(root: &mut Client, name: &str, column: &str) {
    let sql = format!(
        "UPDATE vault.secrets SET {column} = clock_timestamp() WHERE name = $1 AND {column} IS NOT NULL"
    );
    assert_eq!(root.execute(&sql, &[&name]).expect("cannot move the end"), 1, "{name} has no {column}");
}

/// Rows that hold anything of these names: secrets and superseded versions.
#[track_caller]
fn rows(root: &mut Client, id: &str) -> String {
    root.ask(&format!(
        "SELECT (SELECT count(*) FROM vault.secrets WHERE id = '{id}'),
                (SELECT count(*) FROM vault.secret_versions WHERE secret_id = '{id}')"
    ))
}

#[track_caller]
fn id_of(root: &mut Client, name: &str) -> String {
    root.query_one("SELECT id::text FROM vault.secrets WHERE name = $1", &[&name]).expect("a secret").get(0)
}

/// Keys in the cache.
fn cached(vault: &Vault<'_>) -> i64 {
    vault.root().ask("SELECT vault.status() -> 'cache' -> 'entries'").parse().expect("a number")
}
