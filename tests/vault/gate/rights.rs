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
const TABLE: [(&str, &str); 33] = [
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
    ("SELECT vault.create_role('another role'), NAME", "sfpp+++"),
    ("SELECT vault.set_role_permissions('a role', '[]'), NAME", "sfpp+++"),
    ("SELECT vault.drop_role('a role'), NAME", "sfpp+++"),
    ("SELECT vault.list_roles(), NAME", "sf+++++"),
    ("SELECT vault.can('read', NAME)", "sf+++++"),
    ("SELECT vault.bind_role('a role', 'outsider'), NAME", "sfpp+++"),
    ("SELECT vault.unbind_role('a role', 'monitor'), NAME", "sfpp+++"),
    // Whoever may create Postgres roles may take a name that a binding waits for.
    ("SELECT vault.rebind_roles(), NAME", "sfpppp+"),
    ("SELECT vault.create_token('another token', 'a role'), NAME", "sfpp+++"),
    ("SELECT vault.revoke_token('a token'), NAME", "sfpp+++"),
    ("SELECT vault.list_tokens(), NAME", "sf+++++"),
    ("SELECT vault.authenticate(TOKEN), NAME", "sf+++++"),
];

/// The functions that need a secret to be there.
const NAMED: [&str; 12] = [
    "update_secret",
    "rotate_secret",
    "roll_back_secret",
    "restore_secret",
    "rename_secret",
    "delete_secret",
    "read_secret",
    "read_secret_bytes",
    "get_secret",
    "verify",
    "verify_bytes",
    "list_versions",
];

/// What the calls are about. TOKEN stands for the token this returns.
fn filled(root: &mut Client) -> String {
    root.batch_execute(
        "SELECT vault.create_secret('exists/it', 'x', generator => '{}');
         SELECT vault.put_secret('exists/it', 'y');
         SELECT vault.create_secret_bytes('exists/it/bytes', 'x');
         SELECT vault.create_secret('exists/it/deleted', 'x');
         SELECT vault.delete_secret('exists/it/deleted', '1 day');
         CREATE ROLE outsider LOGIN; CREATE ROLE monitor LOGIN IN ROLE pg_monitor;
         SELECT vault.create_role('a role'); SELECT vault.bind_role('a role', 'monitor')",
    )
    .unwrap();
    root.query_one("SELECT vault.create_token('a token', 'a role')", &[]).unwrap().get(0)
}

/// The function that a call calls.
fn function(call: &str) -> &str {
    let name = call.split("vault.").nth(1).expect("a call of the vault");
    name.split('(').next().expect("split gives one part at least")
}

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
fn attempt(client: &mut Client, call: &str, name: &str, token: &str) -> Option<DbError> {
    let sql = call
        .replace("NAME_OF_BYTES", &format!("'{name}/bytes'"))
        .replace("NAME_OF_DELETED", &format!("'{name}/deleted'"))
        .replace("NAME", &format!("'{name}'"))
        .replace("TOKEN", &format!("'{token}'"));
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
        "CREATE ROLE t_auditor LOGIN IN ROLE vault_auditor;
         CREATE ROLE t_user LOGIN IN ROLE vault_user;
         CREATE ROLE t_reader LOGIN IN ROLE vault_reader;
         CREATE ROLE t_admin LOGIN IN ROLE vault_admin;
         CREATE ROLE t_both LOGIN IN ROLE vault_reader, vault_admin;",
    )
    .unwrap();
    let token = filled(&mut root);
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
            let existing = attempt(&mut client, call, "exists/it", &token);
            let missing = attempt(&mut client, call, "absent/it", &token);
            let expected = met(cell);
            if expected == Met::Allowed {
                let code = |error: &Option<DbError>| {
                    error.as_ref().map_or("00000", |error| error.code().code()).to_owned()
                };
                let outcome = (code(&existing), code(&missing));
                let right = match call {
                    _ if call.contains("create_secret") => ("23505", "00000"),
                    _ if !NAMED.contains(&function(call)) => ("00000", "00000"),
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
                        && existing.hint().is_some_and(|h| h.contains("vault_") || h.contains("superuser"))
                }
            };
            assert!(right, "{role}: {call}: not refused by what should refuse: {existing:?}");
        }
    }
    // Monitoring sees how the vault is, and nothing else.
    let mut monitor = vault.session("monitor");
    for (call, _) in TABLE {
        let allowed = attempt(&mut monitor, call, "exists/it", &token).is_none();
        assert_eq!(allowed, call.contains("status"), "{call}");
    }
    // Private functions are nobody's.
    for role in ROLES.into_iter().filter(|role| *role != "postgres") {
        let refused = attempt(&mut vault.session(role), "SELECT vault._check_install()", "", "").unwrap();
        assert_eq!(refused.code().code(), "42501", "{role}");
        // What the view calls, members may call too, and get nothing by it.
        let member = ["t_user", "t_reader", "t_admin", "t_both"].contains(&role);
        let call = "SELECT vault._open(gen_random_uuid(), 'exists/it')";
        let refused = attempt(&mut vault.session(role), call, "", "").unwrap();
        assert_eq!(refused.code().code(), if member { "55000" } else { "42501" }, "{role}");
    }
}

const ACTIONS: [&str; 10] =
    ["read", "verify", "list", "create", "update", "delete", "rotate", "encrypt", "decrypt", "shred"];

/// Whoever calls, and what he has; `managing` is not an action.
struct Subject {
    role: String,
    has: Vec<&'static str>,
}

impl Subject {
    /// Whether he has what a cell of docs/access.md asks for.
    fn meets(&self, right: &str) -> bool {
        let has = |what: &str| self.has.contains(&what);
        match right {
            "none" => !has("no EXECUTE"),
            _ if has("superuser") => true,
            _ if right.contains(" or ") => right.split(" or ").any(has),
            _ => right.split(" and ").all(has),
        }
    }
}

/// docs/access.md, walked: each function by whoever has no right, each single one, all but one, each built-in role, and
/// through a function of theirs that runs as its owner.
#[test]
fn the_documented_right_is_the_one_that_is_needed() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut root = vault.root();
    let token = filled(&mut root);
    let document =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/access.md")).unwrap();
    let table = document.split("| Function | Right |").nth(1).expect("the table of rights");
    let rights: std::collections::BTreeMap<String, String> = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells: Vec<String> = line.split('|').map(|cell| cell.trim().replace('`', "")).collect();
            (cells[1].clone(), cells[2].clone())
        })
        .collect();
    assert_eq!(rights.len(), TABLE.len(), "each function has its row: {rights:?}");

    let managing = ["managing", "list", "create", "update", "delete", "rotate", "encrypt", "shred"];
    let mut subjects = Vec::new();
    let mut bound = |role: &str, is_admin: bool, actions: Vec<&'static str>| {
        let rules: Vec<String> =
            actions.iter().map(|action| format!(r#"{{"action":"{action}","path":"*"}}"#)).collect();
        root.batch_execute(&format!(
            "CREATE ROLE \"{role}\" LOGIN IN ROLE vault_user;
             SELECT vault.create_role('{role}', is_admin => {is_admin}, permissions => '[{}]'); SELECT vault.bind_role('{role}', '\"{role}\"')",
            rules.join(",")
        ))
        .unwrap();
        let has = if is_admin { managing.to_vec() } else { actions };
        Subject { role: role.to_owned(), has }
    };
    subjects.push(bound("has nothing", false, vec![]));
    subjects.push(bound("has is_admin", true, vec![]));
    for action in ACTIONS {
        subjects.push(bound(&format!("has {action}"), false, vec![action]));
        let others = ACTIONS.into_iter().filter(|other| *other != action).collect();
        subjects.push(bound(&format!("lacks {action}"), false, others));
    }
    let built_in = |role: &str, has: &[&'static str]| Subject { role: role.to_owned(), has: has.to_vec() };
    subjects.push(built_in("app", &["read", "verify", "list"]));
    subjects.push(built_in("ops", &managing));
    root.batch_execute("CREATE ROLE auditor LOGIN IN ROLE vault_auditor").unwrap();
    subjects.push(built_in("auditor", &["no EXECUTE"]));
    subjects.push(built_in("postgres", &["superuser"]));

    let (mut allowed, mut refused) = (0, 0);
    for subject in &subjects {
        let role = &subject.role;
        // Called by a superuser: the rights that count are the owner's all the same.
        root.batch_execute(&format!(
            r#"CREATE FUNCTION public."as {role}"(call text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN EXECUTE call; END $$;
               ALTER FUNCTION public."as {role}"(text) OWNER TO "{role}""#
        ))
        .unwrap();
        let mut client = vault.session(role);
        for (call, _) in TABLE {
            let right = &rights[function(call)];
            let expected = subject.meets(right);
            let direct = attempt(&mut client, call, "exists/it", &token);
            // `put_secret` of what is there is an update.
            let expected =
                if function(call).starts_with("put_secret") { subject.meets("update") } else { expected };
            assert_eq!(denied(direct.as_ref()), !expected, "{role}: {call}: {direct:?}");
            // `%I`-free quoting: the calls hold single quotes only.
            let call = call
                .replace('\'', "''")
                .replace("NAME_OF_BYTES", "''exists/it/bytes''")
                .replace("NAME_OF_DELETED", "''exists/it/deleted''");
            let call = call.replace("NAME", "''exists/it''").replace("TOKEN", &format!("''{token}''"));
            let wrapped = attempt(&mut root, &format!(r#"SELECT public."as {role}"('{call}')"#), "", "");
            assert_eq!(denied(wrapped.as_ref()), !expected, "owner {role}: {call}: {wrapped:?}");
            if expected { allowed += 1 } else { refused += 1 }
        }
        // Creating what is not there is no update.
        let create = attempt(&mut client, "SELECT vault.put_secret(NAME, 'x')", "absent/it", "");
        assert_eq!(denied(create.as_ref()), !subject.meets("create"), "{role}: {create:?}");
    }
    assert!(allowed > 150 && refused > 400, "{allowed} allowed, {refused} refused");
}

fn denied(error: Option<&DbError>) -> bool {
    error.is_some_and(|error| error.code().code() == "42501")
}
