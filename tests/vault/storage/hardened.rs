//! A hardened server: PUBLIC may run no function of the server. The vault needs none of its callers'.

use super::{builder, calls, give_work, make_manager, until_worked};
use hyperion_vault_tests::Ask;

#[test]
fn nothing_depends_on_what_public_may_run() {
    let cluster = builder().start();
    let vault = cluster.vault();
    let mut root = vault.root();
    make_manager(&mut root);
    give_work(&mut root, "before");
    let mut old = vault.session("manager");
    old.ask("SELECT vault.create_secret('w', 'v'); SELECT vault.put_secret('w', 'w'); SELECT vault.read_secret('w')");
    let mut listener = vault.root();
    listener.ask("LISTEN vault_rotation");
    root.ask("REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA pg_catalog FROM PUBLIC; CREATE ROLE loser LOGIN IN ROLE vault_user");
    // The control: neither a caller nor the group of services may run even these.
    for function in ["clock_timestamp()", "pg_notify('a', 'b')", "now()", "1 = 1"] {
        let refused = vault.session("manager").try_ask(&format!("SELECT {function}"));
        hyperion_vault_tests::sqlstate!(refused, "42501");
    }

    let mut new = vault.session("manager");
    // Asked before, since asking takes a function.
    let calls = calls(&mut new);
    for client in [&mut old, &mut new] {
        for (function, call) in &calls {
            // By itself, without the functions that the list calls around it.
            let call = match *function {
                "import_sealed" => {
                    let document = root.ask("SELECT jsonb_set(vault.export_sealed(), '{secrets}', '[]')");
                    format!("SELECT vault.import_sealed('{document}')")
                }
                _ => (*call).to_owned(),
            };
            client.try_ask(&call).unwrap_or_else(|error| panic!("{function}: {error:?}"));
        }
        client.ask("SELECT vault.delete_secret('a/b'), vault.delete_secret('a/y')");
        assert_eq!(client.ask("SELECT vault.read_secret('w')"), "w");
        assert_eq!(client.ask("SELECT valid, version FROM vault.verify('w', 'w')"), "t|2");
        assert!(client.ask("SELECT name, decrypted_secret FROM vault.decrypted_secrets").contains("w|w"));
        client.ask("SELECT vault.status(), vault.list_secrets('*')");
    }
    assert_eq!(vault.session("loser").ask("SELECT name FROM vault.decrypted_secrets"), "");

    give_work(&mut new, "after");
    until_worked(&vault, "before");
    until_worked(&vault, "after");
    let mut told = 0;
    hyperion_vault_tests::wait_for("the notice of a rotation", hyperion_vault_tests::PATIENCE, || {
        listener.ask("SELECT 1");
        let mut news = listener.notifications();
        let mut iter = news.iter();
        while let Ok(Some(_)) = postgres::fallible_iterator::FallibleIterator::next(&mut iter) {
            told += 1;
        }
        told > 0
    });
}
