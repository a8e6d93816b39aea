//! Who may do what: roles with rules, bindings to Postgres roles, tokens, and what nobody can give himself. Runs in the
//! test process.

mod bindings;
mod duties;
mod races;
mod rules;
mod tokens;

use hyperion_vault_tests::{Ask, Client, Vault};

/// What a call comes to: its rows, or the SQLSTATE of its error.
#[track_caller]
fn outcome(client: &mut Client, sql: &str) -> String {
    client
        .try_ask(sql)
        .unwrap_or_else(|error| error.code().unwrap_or_else(|| panic!("{sql}: {error:?}")).code().to_owned())
}

fn read(client: &mut Client, name: &str) -> String {
    outcome(client, &format!("SELECT vault.read_secret('{name}')"))
}

/// Secrets `a/one`, `a/two`, `b/one`, `c`, whose values are `value of` and their names, and login roles `one` and `two`
/// that may call the API and nothing else.
fn filled(vault: &Vault<'_>) -> Client {
    let mut root = vault.root();
    root.ask(
        "SELECT vault.create_secret(n, 'value of ' || n) FROM unnest('{a/one,a/two,b/one,c}'::text[]) n;
         CREATE ROLE one LOGIN IN ROLE vault_user; CREATE ROLE two LOGIN IN ROLE vault_user",
    );
    root
}
