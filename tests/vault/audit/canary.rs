//! No value, candidate, password or anything else that was given as one is in any record.

use super::{settle, stop_relay};
use hyperion_vault_tests::scan::Needles;
use hyperion_vault_tests::{Ask, Cluster, random_text};

#[test]
fn no_record_holds_what_was_given_as_a_value() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut root = vault.root();
    root.ask("SELECT vault.create_secret('a', 'x', generator => '{}'); SELECT vault.create_secret('u', username => 'n', password => 'p'); SELECT vault.create_secret_bytes('b', 'x')");
    settle(&cluster);
    // The spool keeps what it gets, so that it can be searched too.
    stop_relay(&cluster);
    let mut canaries = Vec::new();
    let mut canary = |call: &str| {
        let text = format!("canary{}", random_text(24));
        canaries.push((text.clone(), call.to_owned()));
        text
    };
    let name = format!("name/{}", random_text(24));
    // In the right places and in wrong ones, in calls that work and in calls that fail.
    let calls = [
        "create_secret('c1-a-secret', '$')",
        "create_secret('a', '$')",
        "create_secret('c/', '$')",
        "create_secret('$//', 'x')",
        "create_secret('c2', username => 'u', password => '$')",
        "create_secret('c3', '$', password => '$')",
        "create_secret('c4', '$', generator => '{\"length\":1}')",
        "create_secret('c5', 'x', generator => '{\"$\":1}')",
        "create_secret('c6', '$', expires_in => '-1 s')",
        "create_secret('c7', repeat('$', 100000))",
        "create_secret_bytes('c8', '$')",
        "create_secret_bytes('b', '$')",
        "create_secret_bytes('/', '$')",
        "put_secret('a', '$')",
        "put_secret('u', '$')",
        "put_secret('a', '$', expected_version => 77)",
        "put_secret('$ //', 'x')",
        "put_secret_bytes('b', '$')",
        "put_secret_bytes('a', '$')",
        "put_secret_bytes('u', '$')",
        "update_secret('a', '$')",
        "update_secret('u', password => '$')",
        "update_secret('a', password => '$')",
        "update_secret('none', '$')",
        "update_secret('a', reset => '{$}')",
        "update_secret('a', '$', expected_version => 1)",
        "rename_secret('a', '$//')",
        "rename_secret('$//', 'x')",
        "rotate_secret('$//')",
        "roll_back_secret('$//', 1)",
        "verify('a', '$')",
        "verify('none', '$')",
        "verify('$//', 'x')",
        "verify_bytes('b', '$')",
        "verify_bytes('a', '$')",
        "read_secret('$//')",
        "read_secret_bytes('$//')",
        "get_secret('$//')",
        "read_secrets('{a,$//}')",
        "read_secrets(ARRAY['$//', NULL])",
        "list_versions('$//')",
        "delete_secret('$//')",
        "restore_secret('$//')",
        "import_sealed('{\"$\": \"$\"}')",
        "import_sealed('\"$\"')",
        "create_secret('c9', 'x', description => '$', metadata => '{\"k\":\"$\"}')",
        "create_secret('c10', 'x', metadata => '\"$\"')",
        "create_secret('c11', '$', target => '{\"type\":\"$\"}')",
        "create_secret('c12', '$', allowed_ips => '{$}')",
        "update_secret('a', description => '$', metadata => '{\"$\":1}')",
        // Almost any text is a name of a role or of a token, and a pattern: not one with a control character.
        "list_secrets(E'$\\n')",
        "export_sealed('$//')",
        "can('$', 'a')",
        "can('read', E'$\\n')",
        "create_role(E'$\\n')",
        "create_role('r1', permissions => '[{\"action\":\"$\",\"path\":\"a\"}]')",
        "create_role('r2', permissions => '[{\"action\":\"read\",\"path\":\"$//\"}]')",
        "set_role_permissions(E'$\\n', '[]')",
        "set_role_permissions('none', '[\"$\"]')",
        "bind_role(E'$\\n', 'app')",
        "unbind_role(E'$\\n', 'app')",
        "drop_role(E'$\\n')",
        "create_token(E'$\\n', 'r')",
        "create_token('t', E'$\\n')",
        "revoke_token(E'$\\n')",
        "authenticate('$')",
    ];
    // Whatever takes a text, a document or bytes is called.
    let taking = root.ask(
        "SELECT string_agg(DISTINCT proname, ' ') FROM pg_proc
          WHERE pronamespace = 'vault'::regnamespace AND proname NOT LIKE '\\_%'
            AND proargtypes::oid[] && ARRAY['text'::regtype, 'jsonb'::regtype, 'bytea'::regtype, 'text[]'::regtype]::oid[]",
    );
    let called = |function: &&str| calls.iter().any(|call| call.starts_with(&format!("{function}(")));
    let left: Vec<_> = taking.split(' ').filter(|function| !called(function)).collect();
    assert!(left.is_empty(), "not called: {left:?}");
    let mut failed = 0;
    for call in calls {
        for role in ["postgres", "app", "ops"] {
            let sql = format!("SET ROLE {role}; SELECT * FROM vault.{}", call.replace('$', &canary(call)));
            failed += usize::from(root.try_ask(&sql).is_err());
        }
    }
    assert!(failed > calls.len() && failed < 3 * calls.len(), "{failed} failed: both kinds are wanted");
    let needles = Needles::new(canaries.iter().map(|(text, call)| (call.clone(), text.clone())));
    let spool = cluster.data_dir().join("hyperion_vault_audit");
    let hits = needles.in_path(&spool);
    assert!(hits.is_empty(), "{hits:?}");
    // The control: names are in it, those of the secrets, and one that looks like a value.
    assert!(root.try_ask(&format!("RESET ROLE; SELECT vault.read_secret('{name}')")).is_err());
    assert_eq!(Needles::new([("name", name.as_bytes())]).in_path(&spool).len(), 1);
    assert!(!Needles::new([("c1-a-secret", "c1-a-secret")]).in_path(&spool).is_empty());
}
