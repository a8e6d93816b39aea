//! A caller's search path full of traps: operators, functions, types and tables of the same names as the server's.
//!
//! Every trap raises EVIL1. A statement of the extension that looks anything up along the caller's path falls into
//! one, when it is planned for the first time (cold) or when its kept plan is checked again (warm).

use super::{state, text};
use hyperion_vault_tests::{Client, Cluster, Vault};

/// Types whose operators the extension's statements might use.
const TYPES: [&str; 12] = [
    "text",
    "name",
    "uuid",
    "int4",
    "int8",
    "bool",
    "timestamptz",
    "interval",
    "jsonb",
    "bytea",
    "oid",
    "text[]",
];
const OPERATORS: [&str; 11] = ["=", "<>", "<", ">", "<=", ">=", "+", "-", "||", "~~", "~"];
/// Functions, with their parameters, that SQL is likely to call.
const FUNCTIONS: [(&str, &str, &str); 14] = [
    ("clock_timestamp", "", "timestamptz"),
    ("now", "", "timestamptz"),
    ("transaction_timestamp", "", "timestamptz"),
    ("count", "", "bigint"),
    ("length", "text", "int"),
    ("lower", "text", "text"),
    ("format", "text, VARIADIC \"any\"", "text"),
    ("set_config", "text, text, boolean", "text"),
    ("current_setting", "text", "text"),
    ("starts_with", "text, text", "boolean"),
    ("uuid_eq", "uuid, uuid", "boolean"),
    ("texteq", "text, text", "boolean"),
    ("coalesce", "text, text", "text"),
    ("gen_random_uuid", "", "uuid"),
];

/// SECURITY DEFINER does not matter here; raising does. A `"any"` argument rules plpgsql out for one of them.
fn set_traps(root: &mut Client) {
    let mut sql = String::from(
        "CREATE SCHEMA evil; GRANT USAGE ON SCHEMA evil TO PUBLIC;
         CREATE FUNCTION evil.raise() RETURNS void LANGUAGE plpgsql AS
           $$ BEGIN RAISE EXCEPTION 'fell into a trap' USING ERRCODE = 'EVIL1'; END $$;\n",
    );
    let body = "LANGUAGE plpgsql AS $$ BEGIN PERFORM evil.raise(); RETURN NULL; END $$";
    for ty in TYPES {
        let function = format!("trap_{}", ty.replace("[]", "_array"));
        sql += &format!("CREATE FUNCTION evil.{function}({ty}, {ty}) RETURNS boolean {body};\n");
        for operator in OPERATORS {
            sql += &format!(
                "CREATE OPERATOR evil.{operator} (LEFTARG = {ty}, RIGHTARG = {ty}, FUNCTION = evil.{function});\n"
            );
        }
    }
    for (name, parameters, result) in FUNCTIONS {
        if !parameters.contains("any") {
            sql += &format!("CREATE FUNCTION evil.\"{name}\"({parameters}) RETURNS {result} {body};\n");
        }
    }
    // timestamptz + interval is what expiry is made of.
    sql += &format!(
        "CREATE FUNCTION evil.trap_later(timestamptz, interval) RETURNS timestamptz {body};
         CREATE OPERATOR evil.+ (LEFTARG = timestamptz, RIGHTARG = interval, FUNCTION = evil.trap_later);
         CREATE AGGREGATE evil.count(\"any\") (SFUNC = int8inc_any, STYPE = bigint, INITCOND = '-1000000');
         CREATE DOMAIN evil.uuid AS text CHECK (false);
         CREATE DOMAIN evil.interval AS text CHECK (false);
         CREATE DOMAIN evil.timestamptz AS text CHECK (false);
         CREATE TABLE evil.secrets (LIKE vault.secrets); CREATE TABLE evil.pg_class (LIKE pg_class);
         CREATE TABLE evil.secret_versions (LIKE vault.secret_versions); CREATE TABLE evil.pg_proc (LIKE pg_proc);
         CREATE SCHEMA \"vault \";"
    );
    root.batch_execute(&sql).unwrap_or_else(|error| panic!("{error:?}"));
    root.batch_execute("GRANT ALL ON ALL TABLES IN SCHEMA evil TO PUBLIC").unwrap();
}

/// Everything the API can do, in words that need no lookup of the caller's own: parameters instead of casts. Returns
/// what is to be the same on every path.
fn whole_api(ops: &mut Client, app: &mut Client, name: &str) -> Vec<String> {
    let one = |client: &mut Client, sql: &str, params: &[&(dyn postgres::types::ToSql + Sync)]| {
        let row = client.query_one(sql, params).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        (0..row.len())
            .map(|i| match row.columns()[i].type_().name() {
                "int4" => row.get::<_, Option<i32>>(i).map(|n| n.to_string()),
                "bool" => row.get::<_, Option<bool>>(i).map(|b| b.to_string()),
                _ => row.get::<_, Option<String>>(i),
            })
            .map(|value| value.unwrap_or_else(|| "null".into()))
            .collect::<Vec<_>>()
            .join(" ")
    };
    let mut said = Vec::new();
    let create =
        "SELECT version FROM vault.create_secret($1, 'one', grace_period => '1 day', keep_versions => 3,
                  generator => '{\"length\": 20}', kind => 'automatic', rotation_interval => '30 days',
                  description => 'd', metadata => '{}', allowed_ips => NULL)";
    said.push(one(ops, create, &[&name]));
    said.push(one(ops, "SELECT version FROM vault.put_secret($1, 'two', expected_version => 1)", &[&name]));
    let update = "SELECT version FROM vault.update_secret($1, value => 'three', grace_period => '2 days',
                  rotation_interval => '40 days', reset => '{description,keep_versions}')";
    said.push(one(ops, update, &[&name]));
    said.push(one(ops, "SELECT version FROM vault.rotate_secret($1)", &[&name]));
    said.push(one(ops, "SELECT version FROM vault.put_secret($1, 'five')", &[&name]));
    said.push(one(app, "SELECT vault.read_secret($1)", &[&name]));
    said.push(one(app, "SELECT vault.read_secret($1, 2)", &[&name]));
    said.push(one(app, "SELECT version, value, name FROM vault.get_secret($1)", &[&name]));
    said.push(one(app, "SELECT valid, version FROM vault.verify($1, 'three')", &[&name]));
    said.push(one(app, "SELECT valid, version FROM vault.verify($1, 'wrong')", &[&name]));
    let pattern = format!("{}*", &name[..name.len() - 1]);
    let listed = ops.query("SELECT name FROM vault.list_secrets($1)", &[&pattern]).unwrap();
    said.extend(listed.iter().map(|row| row.get::<_, String>(0)));
    let versions = app.query("SELECT version, state FROM vault.list_versions($1)", &[&name]).unwrap();
    said.extend(versions.iter().map(|row| format!("{} {}", row.get::<_, i32>(0), row.get::<_, &str>(1))));
    let status: serde_json::Value =
        one(ops, "SELECT to_json(s)::pg_catalog.text FROM vault.status() s", &[]).parse().unwrap();
    said.push(format!("{} {}", status["secrets"], status["grace_versions"]));
    let rule = format!("[{{\"action\": \"list\", \"path\": \"{name}\"}}]");
    one(
        ops,
        "SELECT vault.create_role($1, permissions => ($2::pg_catalog.text)::pg_catalog.jsonb)::pg_catalog.text",
        &[&name, &rule],
    );
    one(
        ops,
        "SELECT vault.set_role_permissions($1, ($2::pg_catalog.text)::pg_catalog.jsonb)::pg_catalog.text",
        &[&name, &rule],
    );
    one(ops, "SELECT vault.bind_role($1, 'nobody_special')::pg_catalog.text", &[&name]);
    let token = one(ops, "SELECT vault.create_token($1, $1, '1 day')", &[&name]);
    one(app, "SELECT vault.authenticate($1)::pg_catalog.text", &[&token]);
    said.push(one(ops, "SELECT vault.can('read', $1)", &[&name]));
    said.push(one(
        ops,
        "SELECT pg_catalog.concat_ws(' ', name, permissions, pg_roles) FROM vault.list_roles() OFFSET 1",
        &[],
    ));
    said.push(one(ops, "SELECT pg_catalog.concat_ws(' ', name, role) FROM vault.list_tokens()", &[]));
    one(ops, "SELECT vault.unbind_role($1, 'nobody_special')::pg_catalog.text", &[&name]);
    one(ops, "SELECT vault.revoke_token($1)::pg_catalog.text", &[&name]);
    one(ops, "SELECT vault.drop_role($1)::pg_catalog.text", &[&name]);
    one(ops, "SELECT vault.delete_secret($1)::pg_catalog.text", &[&name]);
    assert_eq!(state(app, &format!("SELECT vault.read_secret('{name}')")), "P0002");
    said.iter().map(|said| said.replace(name, "NAME")).collect()
}

fn sessions(vault: &Vault<'_>, path: Option<&str>) -> (Client, Client) {
    let (mut ops, mut app) = (vault.ops(), vault.app());
    for client in [&mut ops, &mut app] {
        // Results of earlier parse analysis must not hide a lookup.
        if let Some(path) = path {
            poison(client, path);
        }
    }
    (ops, app)
}

/// Sets the path, and shows that its traps work.
fn poison(client: &mut Client, path: &str) {
    client.batch_execute("CREATE TEMP TABLE IF NOT EXISTS secrets (name text, sealed bytea)").unwrap();
    client.batch_execute("CREATE TEMP TABLE IF NOT EXISTS secret_versions (version int)").unwrap();
    client
        .batch_execute("CREATE TEMP TABLE IF NOT EXISTS roles (); CREATE TEMP TABLE IF NOT EXISTS tokens ()")
        .unwrap();
    client.batch_execute(&format!("SET search_path = {path}")).unwrap();
    for trap in [
        "SELECT 'a'::pg_catalog.text = 'b'::pg_catalog.text",
        "SELECT '00000000-0000-0000-0000-000000000000'::pg_catalog.uuid = '00000000-0000-0000-0000-000000000000'",
        "SELECT 1 > 2",
        "SELECT clock_timestamp()",
        "SELECT 'a'::pg_catalog.text ~~ 'b'",
    ] {
        assert_eq!(state(client, trap), "EVIL1", "the trap does not work: {trap}");
    }
}

#[test]
fn a_hostile_search_path_changes_nothing() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    set_traps(&mut vault.root());
    vault.root().batch_execute("GRANT TEMP ON DATABASE postgres TO PUBLIC").unwrap();

    let (mut ops, mut app) = sessions(&vault, None);
    let right = whole_api(&mut ops, &mut app, "plain/0");
    assert!(right.contains(&"five".to_owned()) && right.contains(&"true 3".to_owned()), "{right:?}");
    assert!(right.contains(&"1 4".to_owned()), "status counts: {right:?}");

    for path in ["evil, pg_catalog", "evil, pg_temp, vault, pg_catalog", "pg_temp, evil, pg_catalog, vault"] {
        let (mut cold_ops, mut cold_app) = sessions(&vault, Some(path));
        assert_eq!(whole_api(&mut cold_ops, &mut cold_app, "cold/1"), right, "cold, {path}");
        // Warm: plans made under the ordinary path are checked again under this one, and the other way round.
        for client in [&mut ops, &mut app] {
            poison(client, path);
        }
        assert_eq!(whole_api(&mut ops, &mut app, "warm/2"), right, "warm, {path}");
        vault.root().batch_execute("ANALYZE vault.secrets").unwrap(); // plans must be made anew
        assert_eq!(whole_api(&mut ops, &mut app, "warm/3"), right, "replanned, {path}");
        assert_eq!(text(&mut ops, "SHOW search_path"), path);
        for client in [&mut ops, &mut app] {
            client.batch_execute("RESET search_path").unwrap();
        }
        assert_eq!(whole_api(&mut ops, &mut app, "back/4"), right, "back from {path}");
    }
}
