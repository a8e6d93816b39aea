//! What a call costs at the end of a long transaction, in blocks and rows: the server counts both for the running
//! transaction. Time would be a matter of the machine.

use super::builder;
use hyperion_vault_tests::{Ask, Client};

/// Calls in the transaction, and in the samples at its ends.
const CALLS: usize = 3000;
const SAMPLE: usize = 100;
/// Later calls find their row at the end of a chain within a page, and every page that is full costs a new entry in
/// each index, beside those that it replaces: some blocks more, not more with each call.
const FACTOR: i64 = 5;

/// Blocks of the vault's tables and their indexes looked at, and rows read of them, in this transaction.
fn touched(client: &mut Client) -> (i64, i64) {
    let sql = "SELECT sum(pg_stat_get_xact_blocks_fetched(c.oid))::bigint,
                      sum(pg_stat_get_xact_tuples_returned(c.oid) + pg_stat_get_xact_tuples_fetched(c.oid))::bigint
                 FROM pg_class c LEFT JOIN pg_index i ON i.indexrelid = c.oid LEFT JOIN pg_class t ON t.reltoastrelid = coalesce(i.indrelid, c.oid)
                WHERE 'vault'::regnamespace IN (c.relnamespace, t.relnamespace)";
    let row = client.query_one(sql, &[]).expect("the statistics");
    (row.get(0), row.get(1))
}

/// What `SAMPLE` calls cost at the beginning and at the end of a transaction of `CALLS`.
fn ends(client: &mut Client, call: &str) -> [(i64, i64); 2] {
    // The first calls of a session look up what they remember.
    client.ask(&format!("SELECT {call}"));
    client.ask("BEGIN");
    let mut costs = [(0, 0); 2];
    let mut done = 0;
    for cost in &mut costs {
        let before = touched(client);
        client.ask(&format!("SELECT {call} FROM pg_catalog.generate_series(1, {SAMPLE}) i"));
        let after = touched(client);
        *cost = (after.0 - before.0, after.1 - before.1);
        done += SAMPLE;
        if done == SAMPLE {
            let rest = CALLS - 2 * SAMPLE;
            client.ask(&format!("SELECT {call} FROM pg_catalog.generate_series(1, {rest}) i"));
        }
    }
    client.ask("COMMIT");
    costs
}

#[test]
fn a_call_does_not_cost_more_after_thousands() {
    let cluster = builder().start();
    let vault = cluster.vault();
    let mut root = vault.root();
    root.ask(
        "SELECT vault.create_secret('put', 'v'); SELECT vault.create_secret('rotate', kind => 'automatic', rotation_interval => '30 days');
         SELECT vault.create_secret('update', 'v'); SELECT vault.create_secret('graced', 'v', grace_period => '1 day', keep_versions => 5);
         CREATE SEQUENCE n",
    );
    for call in [
        "vault.put_secret('put', 'value')",
        "vault.rotate_secret('rotate')",
        "vault.update_secret('update', description => nextval('n')::text)",
        "vault.create_secret('new/' || nextval('n'), 'value')",
    ] {
        let [first, last] = ends(&mut root, call);
        println!("{call}: {first:?}, then {last:?} blocks and rows for {SAMPLE} calls");
        assert!(first.0 > 0 && last.0 > 0, "{call}: nothing was counted");
        assert!(
            last.0 <= FACTOR * first.0 && last.1 <= FACTOR * first.1.max(SAMPLE as i64),
            "{call}: {first:?}, then {last:?}"
        );
    }
    assert_eq!(vault.app().ask("SELECT version FROM vault.get_secret('put')"), (CALLS + 2).to_string());
    // Many secrets in one transaction take no lock each.
    root.ask("BEGIN; SELECT vault.create_secret('many/' || i, 'v') FROM generate_series(1, 3000) i");
    let locks: i64 =
        root.ask("SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid()").parse().expect("a number");
    assert!(locks < 60, "{locks} locks");
    root.ask("ROLLBACK");
}
