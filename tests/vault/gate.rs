//! The gate in front of every operation: who may ask (rights), from where (addresses, workers), and in what context
//! (restricted operations, plans). Runs in the test process.

mod addresses;
mod plans;
mod restricted;
mod rights;
mod workers;

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
