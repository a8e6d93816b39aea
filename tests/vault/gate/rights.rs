//! The table of rights: every function for every kind of role. A refusal is the same whether or not the name exists.

use hyperion_vault_tests::{Client, Cluster, DbError};

/// What a role meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Met {
    /// The function does its work.
    Allowed,
    /// The vault refuses, on the name alone.
    Policy,
    /// The server refuses: no EXECUTE.
    Function,
    /// The server refuses: no USAGE on the schema.
    Schema,
}

const ROLES: [&str; 7] = ["outsider", "t_auditor", "t_user", "t_reader", "t_admin", "t_both", "postgres"];

/// Calls on a name, and per role of `ROLES` what it meets: `+` allowed, `p` policy, `f` function, `s` schema.
const TABLE: [(&str, &str); 21] = [
    ("SELECT vault.create_secret(NAME, 'x')", "sfpp+++"),
    ("SELECT vault.put_secret(NAME, 'x')", "sfpp+++"),
    ("SELECT vault.update_secret(NAME, value => 'x')", "sfpp+++"),
    ("SELECT vault.create_secret_bytes(NAME, 'x')", "sfpp+++"),
    ("SELECT vault.put_secret_bytes(NAME_OF_BYTES, 'x')", "sfpp+++"),
    ("SELECT vault.rotate_secret(NAME)", "sfpp+++"),
    ("SELECT vault.roll_back_secret(NAME, 1)", "sfpp+++"),
    ("SELECT vault.restore_secret(NAME_OF_DELETED)", "sfpp+++"),
    // Who renames could give himself a name he may read: it takes both roles.
    ("SELECT vault.rename_secret(NAME, 'exists/elsewhere')", "sfppp++"),
    ("SELECT * FROM vault.read_secrets(ARRAY[NAME])", "sfp+p++"),
    ("SELECT vault.delete_secret(NAME)", "sfpp+++"),
    ("SELECT vault.read_secret(NAME)", "sfp+p++"),
    ("SELECT vault.read_secret_bytes(NAME)", "sfp+p++"),
    ("SELECT * FROM vault.verify_bytes(NAME, 'x')", "sfp+p++"),
    ("SELECT * FROM vault.get_secret(NAME)", "sfp+p++"),
    ("SELECT * FROM vault.verify(NAME, 'x')", "sfp+p++"),
    ("SELECT * FROM vault.list_secrets(NAME)", "sfp++++"),
    ("SELECT * FROM vault.list_versions(NAME)", "sfp++++"),
    ("SELECT vault.export_sealed(), NAME", "sfpp+++"),
    // A vault without anything.
    (
        "SELECT vault.import_sealed('{\"format\": \"hyperion_vault sealed export\", \"format_version\": 1, \"vault_id\": null, \"secrets\": []}'), NAME",
        "sfpp+++",
    ),
    ("SELECT vault.status(), NAME", "sf+++++"),
];

fn met(cell: char) -> Met {
    match cell {
        '+' => Met::Allowed,
        'p' => Met::Policy,
        'f' => Met::Function,
        's' => Met::Schema,
        _ => panic!("what is {cell:?}?"),
    }
}

/// Runs a call and takes it back; its error, if it fails.
fn attempt(client: &mut Client, call: &str, name: &str) -> Option<DbError> {
    let sql = call
        .replace("NAME_OF_BYTES", &format!("'{name}/bytes'"))
        .replace("NAME_OF_DELETED", &format!("'{name}/deleted'"))
        .replace("NAME", &format!("'{name}'"));
    client.batch_execute("BEGIN").unwrap();
    let result = client.batch_execute(&sql);
    client.batch_execute("ROLLBACK").unwrap();
    result.err().map(|error| error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error:?}")).clone())
}

/// All that a client gets to know of an error, with the name taken out.
fn shown(error: &DbError, name: &str) -> [String; 5] {
    let text = |text: Option<&str>| text.unwrap_or("").replace(name, "NAME");
    [
        error.code().code().to_owned(),
        text(Some(error.message())),
        text(error.detail()),
        text(error.hint()),
        text(error.where_()),
    ]
}

#[test]
fn every_function_for_every_role() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut root = vault.root();
    root.batch_execute(
        "CREATE ROLE outsider LOGIN;
         CREATE ROLE t_auditor LOGIN IN ROLE vault_auditor;
         CREATE ROLE t_user LOGIN IN ROLE vault_user;
         CREATE ROLE t_reader LOGIN IN ROLE vault_reader;
         CREATE ROLE t_admin LOGIN IN ROLE vault_admin;
         CREATE ROLE t_both LOGIN IN ROLE vault_reader, vault_admin;
         CREATE ROLE monitor LOGIN IN ROLE pg_monitor;
         SELECT vault.create_secret('exists/it', 'x', generator => '{}');
         SELECT vault.put_secret('exists/it', 'y');
         SELECT vault.create_secret_bytes('exists/it/bytes', 'x');
         SELECT vault.create_secret('exists/it/deleted', 'x');
         SELECT vault.delete_secret('exists/it/deleted', '1 day');",
    )
    .unwrap();
    // The table is complete: a function that is added must be given its row.
    let functions: i64 = root
        .query_one(
            "SELECT count(*) FROM pg_proc WHERE pronamespace = 'vault'::regnamespace AND proname !~ '^_'",
            &[],
        )
        .unwrap()
        .get(0);
    assert_eq!(functions, TABLE.len() as i64, "functions without a row in this table");

    for (call, cells) in TABLE {
        assert_eq!(cells.len(), ROLES.len());
        for (role, cell) in ROLES.into_iter().zip(cells.chars()) {
            let mut client = vault.session(role);
            let existing = attempt(&mut client, call, "exists/it");
            let missing = attempt(&mut client, call, "absent/it");
            let expected = met(cell);
            if expected == Met::Allowed {
                let code = |error: &Option<DbError>| {
                    error.as_ref().map_or("00000", |error| error.code().code()).to_owned()
                };
                let outcome = (code(&existing), code(&missing));
                let right = match call {
                    _ if call.contains("create_secret") => ("23505", "00000"),
                    _ if ["put_secret", "list_secrets", "read_secrets", "status", "_sealed"]
                        .iter()
                        .any(|f| call.contains(f)) =>
                    {
                        ("00000", "00000")
                    }
                    _ => ("00000", "P0002"),
                };
                assert_eq!((outcome.0.as_str(), outcome.1.as_str()), right, "{role}: {call}");
                continue;
            }
            let (Some(existing), Some(missing)) = (existing, missing) else {
                panic!("{role} may: {call}");
            };
            assert_eq!(existing.code().code(), "42501", "{role}: {call}: {existing:?}");
            assert_eq!(shown(&existing, "exists/it"), shown(&missing, "absent/it"), "{role}: {call}");
            let message = existing.message();
            let right = match expected {
                Met::Schema => message == "permission denied for schema vault",
                Met::Function => message.starts_with("permission denied for function"),
                _ => {
                    message.starts_with("permission denied to ")
                        && existing.hint().is_some_and(|h| h.contains("vault_"))
                }
            };
            assert!(right, "{role}: {call}: not refused by what should refuse: {existing:?}");
        }
    }
    // Monitoring sees how the vault is, and nothing else.
    let mut monitor = vault.session("monitor");
    for (call, _) in TABLE {
        let allowed = attempt(&mut monitor, call, "exists/it").is_none();
        assert_eq!(allowed, call.contains("status"), "{call}");
    }
    // Private functions are nobody's.
    for role in ROLES.into_iter().filter(|role| *role != "postgres") {
        let refused = attempt(&mut vault.session(role), "SELECT vault._check_install()", "").unwrap();
        assert_eq!(refused.code().code(), "42501", "{role}");
        // What the policies and the view call, members may call too, and get nothing by it.
        let member = ["t_user", "t_reader", "t_admin", "t_both"].contains(&role);
        for (call, of_member) in [
            ("SELECT 1 / (NOT vault._inside())::int", None),
            ("SELECT 1 / (NOT vault._visible('exists/it', NULL, '-infinity', NULL))::int", None),
            ("SELECT vault._open(gen_random_uuid(), 'exists/it')", Some("55000")),
        ] {
            let error = attempt(&mut vault.session(role), call, "");
            let code = error.as_ref().map(|error| error.code().code());
            assert_eq!(code, if member { of_member } else { Some("42501") }, "{role}: {call}");
        }
    }
}
