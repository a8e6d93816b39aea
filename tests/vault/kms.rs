//! The `aws` provider inside a real server, against the strict fake of tests/support/kms. Runs in the test process.
//!
//! One file per subject: every fault in a table ([`faults`]), outages ([`outage`]), ends of waiting and of transactions
//! ([`waits`]), many sessions ([`crowds`]), deaths of the worker ([`deaths`]), keys and wrapped keys ([`keys`]),
//! credentials ([`credentials`]), settings ([`settings`]). [`hand_overs`] and [`ahead`] are about
//! the `local` provider.
//!
//! The trap they avoid: a fake that was asked something else than the test thinks. Calls are counted at the fake, not
//! at the worker alone.

mod ahead;
mod credentials;
mod crowds;
mod deaths;
mod faults;
mod hand_overs;
mod keys;
mod outage;
mod settings;
mod signer;
mod waits;

use crate::watch::make_cold;
use hyperion_vault_tests::kms::{FakeKms, Op};
use hyperion_vault_tests::{Client, Vault};

/// A secret's value that no other secret has.
fn value(name: &str) -> String {
    format!("the value of {name}")
}

/// Makes `n` secrets `prefix/1` … whose keys are in no cache.
#[track_caller]
fn cold_secrets(vault: &Vault<'_>, prefix: &str, n: usize) {
    let name = format!("'{prefix}/' || i");
    let sql = format!(
        "SELECT count(vault.create_secret({name}, 'the value of ' || {name})) FROM generate_series(1, {n}) i"
    );
    make_cold(vault, &sql);
}

fn create(client: &mut Client, name: &str) -> Result<u64, postgres::Error> {
    client.execute("SELECT vault.create_secret($1, $2)", &[&name, &value(name)])
}

fn read(client: &mut Client, name: &str) -> Result<String, postgres::Error> {
    client.query_one("SELECT vault.read_secret($1)", &[&name]).map(|row| row.get(0))
}

/// Creates a secret, which must work; gives the key and key material its row names.
#[track_caller]
fn created_by(root: &mut Client, name: &str) -> (String, Option<String>) {
    create(root, name).unwrap_or_else(|error| panic!("{name}: {error:?}"));
    let sql = "SELECT kms_key_id, kms_key_material_id FROM vault.secrets WHERE name = $1";
    let row = root.query_one(sql, &[&name]).unwrap();
    (row.get(0), row.get(1))
}

/// Calls for data keys, new and stored, that have arrived at the fake.
fn key_calls(kms: &FakeKms) -> u64 {
    kms.calls(Op::GenerateDataKey) + kms.calls(Op::Decrypt)
}
