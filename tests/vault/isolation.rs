//! What the caller brings along must not matter: an old snapshot, a search path full of traps, session settings,
//! stray grants, a caught error. Runs in the test process.

mod hostile;
mod members;
mod permissions;
mod scope;
mod snapshots;
mod stray;

use hyperion_vault_tests::Client;

/// One text out of one row.
#[track_caller]
fn text(client: &mut Client, sql: &str) -> String {
    client.query_one(sql, &[]).unwrap_or_else(|error| panic!("{sql}: {error:?}")).get(0)
}

/// SQLSTATE of a statement, "00000" if it succeeds.
#[track_caller]
fn state(client: &mut Client, sql: &str) -> String {
    match client.simple_query(sql) {
        Ok(_) => "00000".into(),
        Err(error) => error.code().unwrap_or_else(|| panic!("{sql}: {error:?}")).code().into(),
    }
}
