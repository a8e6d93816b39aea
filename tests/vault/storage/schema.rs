//! The extension's schema renamed away, and one of its name with look-alikes in its place.

use super::{builder, give_work, until_worked};
use crate::audit::every_function::CALLS;
use hyperion_vault_tests::{Ask, Client, sqlstate};

/// Every function of the API, by the schema's present name, says what is wrong and how to mend it.
#[track_caller]
fn all_refuse(client: &mut Client, schema: &str) {
    for (function, call, _) in CALLS {
        let call = match *function {
            // Two look at what they are given first, the third answers by built-in roles before any table.
            "import_sealed" | "authenticate" | "can" => continue,
            _ => call,
        };
        let call = call.replace("vault.", &format!("{schema}."));
        println!("{call}");
        let error = sqlstate!(client.try_ask(&call), "55000", hint: "RENAME TO vault");
        assert!(!format!("{error:?}").contains("CREATE EXTENSION"), "{function}: {error:?}");
    }
}

#[test]
fn a_renamed_schema_is_named() {
    let cluster = builder().start();
    let vault = cluster.vault();
    let mut root = vault.root();
    root.ask(
        "SELECT vault.create_secret('a', 'one', grace_period => '1 day'); SELECT vault.put_secret('a', 'two');
         CREATE ROLE eve LOGIN; GRANT CREATE ON DATABASE postgres TO eve",
    );
    give_work(&mut root, "w");
    let mut app = vault.app();
    assert_eq!(app.ask("SELECT vault.read_secret('a')"), "two");

    root.ask("ALTER SCHEMA vault RENAME TO \"old one\"");
    for client in [&mut vault.root(), &mut root] {
        all_refuse(client, "\"old one\"");
    }
    for read in ["read_secret('a')", "read_secret('a', 1)", "list_secrets()", "status()"] {
        sqlstate!(app.try_ask(&format!("SELECT \"old one\".{read}")), "55000", hint: "RENAME TO vault");
    }

    // Somebody else's schema of that name, with tables that look the same and hold what they like.
    let mut eve = vault.session("eve");
    eve.ask("CREATE SCHEMA vault; GRANT ALL ON SCHEMA vault TO PUBLIC");
    for table in super::TABLES {
        root.ask(&format!("CREATE TABLE vault.{table} (LIKE \"old one\".{table} INCLUDING ALL); ALTER TABLE vault.{table} OWNER TO eve; GRANT ALL ON vault.{table} TO PUBLIC"));
        root.ask(&format!("INSERT INTO vault.{table} SELECT * FROM \"old one\".{table}"));
    }
    root.ask("UPDATE vault.secrets SET description = 'fake'");
    for client in [&mut vault.root(), &mut root] {
        all_refuse(client, "\"old one\"");
    }
    let before = root.ask("SELECT string_agg(s::text, ',' ORDER BY id) FROM vault.secrets s");
    sqlstate!(app.try_ask("SELECT \"old one\".read_secret('a')"), "55000", hint: "RENAME TO vault");
    std::thread::sleep(std::time::Duration::from_millis(2500)); // the worker looks every second
    assert_eq!(
        root.ask("SELECT string_agg(s::text, ',' ORDER BY id) FROM vault.secrets s"),
        before,
        "used by a worker"
    );

    root.ask("DROP SCHEMA vault CASCADE; ALTER SCHEMA \"old one\" RENAME TO vault");
    assert_eq!(app.ask("SELECT vault.read_secret('a')"), "two");
    assert_eq!(vault.app().ask("SELECT vault.read_secret('a', 1)"), "one");
    root.ask("SELECT vault.put_secret('a', 'three'); SELECT vault.status()");
    until_worked(&vault, "w");
}
