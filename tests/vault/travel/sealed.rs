//! `export_sealed` and `import_sealed`: a vault as a document of ciphertext. Runs in the test process.

use super::{ROLES, elsewhere, fill, goes_on, learn, reader};
use base64::prelude::{BASE64_STANDARD, Engine};
use hyperion_vault_tests::scan::{Scan, assert_none};
use hyperion_vault_tests::{Ask, Client, Cluster, PATIENCE, StopMode, random_bytes, sqlstate, wait_for};
use serde_json::{Value, json};

const EXPORT: &str = "SELECT vault.export_sealed()";

fn import(client: &mut Client, document: &str) -> Result<i64, postgres::Error> {
    Ok(client.query_one("SELECT vault.import_sealed($1::text::jsonb)", &[&document])?.get(0))
}

/// An empty vault in a new cluster with the same key.
fn empty_vault(cluster: &Cluster) -> Cluster {
    let other = elsewhere(cluster);
    other.superuser().ask("CREATE EXTENSION hyperion_vault");
    other.superuser().ask(ROLES);
    other
}

/// A secret that runs out keeps its end, one deleted with a window its way back.
#[test]
fn ends_travel_too() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut ops = vault.ops();
    ops.ask("SELECT vault.create_secret('fleeting', 'v1', expires_in => '1 year')");
    ops.ask("SELECT vault.create_secret('binned', 'v2')");
    ops.ask("SELECT vault.delete_secret('binned', recovery_window => '1 day')");
    let ends = "SELECT name, expires_at, recover_until FROM vault.list_secrets()
                 UNION ALL SELECT name, expires_at, recover_until FROM vault.list_secrets(deleted => true)";
    let (document, known) = (ops.ask(EXPORT), ops.ask(ends));
    let other = empty_vault(&cluster);
    let mut there = other.connect("ops", other.database());
    assert_eq!(import(&mut there, &document).unwrap(), 2);
    assert_eq!(there.ask(ends), known);
    let mut app = reader(&other);
    assert_eq!(app.ask("SELECT vault.read_secret('fleeting')"), "v1");
    sqlstate!(app.try_ask("SELECT vault.read_secret('binned')"), "P0002");
    there.ask("SELECT vault.restore_secret('binned')");
    assert_eq!(app.ask("SELECT vault.read_secret('binned')"), "v2");
}

#[test]
fn round_trip() {
    let cluster = Cluster::builder().allowed_ips("local,127.0.0.1").start();
    let vault = cluster.vault();
    let (mut ops, mut app, mut root) = (vault.ops(), vault.app(), vault.root());
    assert_eq!(
        ops.ask("SELECT vault.import_sealed(vault.export_sealed())"),
        "0",
        "a vault that never was used"
    );
    let planted = Scan::plant(&cluster);
    let values = fill(&mut ops);
    root.ask("SELECT vault.update_secret('auto', metadata => '{\"n\": 1e400, \"i\": 12345678901234567890123}', description => 'ü')");
    let known = learn(&mut reader(&cluster));
    let document = ops.ask(EXPORT);

    // Not a value is in it, but everything else: each column of the tables.
    let file = cluster.dir().join("export.json");
    std::fs::write(&file, &document).expect("cannot write a file");
    assert_none(&planted.look_for(values.iter().map(|(name, value)| (*name, value))).path(&file));
    let large = format!("1{}", "0".repeat(400)); // 1e400 as jsonb shows it
    let parsed: Value = serde_json::from_str(&document.replace(&large, "1")).expect("an export is JSON");
    let keys = |value: &Value| value.as_object().expect("an object").keys().cloned().collect::<Vec<_>>();
    let secrets = parsed["secrets"].as_array().expect("an array");
    let count = secrets.len() as i64;
    let rich =
        secrets.iter().find(|secret| secret["name"] == "db/password").expect("one with superseded versions");
    let secret = [keys(rich), keys(&rich["current"]), vec!["version_created_at".into()]].concat();
    // What its place says is not repeated.
    let superseded = [keys(&rich["superseded"][0]), vec!["secret_id".into(), "format".into()]].concat();
    for (table, exported) in [("secrets", secret), ("secret_versions", superseded)] {
        let columns = root.ask(&format!("SELECT attname FROM pg_attribute WHERE attrelid = 'vault.{table}'::regclass AND attnum > 0 AND NOT attisdropped"));
        // Who set a target, and oids, mean nothing elsewhere; grace_until follows from the versions; what the worker
        // notes down for itself it finds out again.
        let own = |name: &str| {
            name.starts_with("target_")
                || ["grace_until", "rotation_attempts", "rotation_error", "rotation_retry_at", "settled"]
                    .contains(&name)
        };
        for column in columns.lines().filter(|name| !own(name)) {
            assert!(exported.iter().any(|key| key == column), "{table}.{column} is not exported");
        }
    }
    assert!(count >= 5);

    // Who may. (The same question to both, before anything is looked at.)
    for call in ["export_sealed()", "import_sealed('{}')", "import_sealed(NULL)"] {
        sqlstate!(app.try_ask(&format!("SELECT vault.{call}")), "42501", message: "permission denied to", hint: "vault_admin");
        sqlstate!(vault.nobody().try_ask(&format!("SELECT vault.{call}")), "42501");
    }
    sqlstate!(ops.try_ask("SELECT vault.import_sealed(NULL)"), "22023", message: "sealed must not be null");
    let read_only = "BEGIN READ ONLY; SELECT vault.import_sealed(vault.export_sealed())";
    sqlstate!(ops.try_ask(read_only), "25006");
    ops.ask("ROLLBACK");

    // Back into the vault it came from: what is there is not touched; what is gone comes back.
    sqlstate!(import(&mut ops, &document), "23505", message: "\"auto\" already exists", detail: "Nothing was imported");
    ops.ask(
        "SELECT vault.delete_secret(name) FROM vault.list_secrets(); SELECT vault.delete_secret('buried')",
    );
    assert_eq!(import(&mut ops, &document).unwrap(), count);
    assert!(learn(&mut reader(&cluster)) == known, "imported, but not the same");
    assert_eq!(ops.ask(EXPORT), document);
    // One that runs out in between does not come back; that its row still stands is in nobody's way.
    ops.ask("SELECT vault.create_secret('brief', 'v', expires_in => '5 seconds')");
    let with_brief = ops.ask(EXPORT);
    wait_for("the end of a secret", PATIENCE, || {
        ops.ask("SELECT count(*) FROM vault.list_secrets('brief')") == "0"
    });
    assert_eq!(ops.ask(EXPORT), document);
    ops.ask(
        "SELECT vault.delete_secret(name) FROM vault.list_secrets(); SELECT vault.delete_secret('buried')",
    );
    assert_eq!(import(&mut ops, &with_brief).unwrap(), count);
    let mut later: Value = serde_json::from_str(&with_brief.replace(&large, "1")).unwrap();
    let secrets = later["secrets"].as_array_mut().unwrap();
    secrets.retain(|secret| secret["name"] == "brief");
    secrets[0]["expires_at"] = json!(7_000_000_000_000_000_i64);
    secrets[0]["id"] = json!("00000000-0000-4000-8000-000000000000");
    assert_eq!(import(&mut ops, &later.to_string()).unwrap(), 1);
    ops.ask("SELECT vault.delete_secret('brief')");
    // By id too: under another name it is still there.
    let mut renamed: Value = serde_json::from_str(&ops.ask(EXPORT).replace(&large, "1")).unwrap();
    let secrets = renamed["secrets"].as_array_mut().unwrap();
    secrets.retain(|secret| secret["name"] == "empty");
    secrets[0]["name"] = json!("another name");
    sqlstate!(import(&mut ops, &renamed.to_string()), "23505", message: "\"another name\"", detail: "its id");

    // Into an empty vault of another cluster, as its administrator: it takes the id over.
    let other = empty_vault(&cluster);
    let mut there = other.connect("ops", other.database());
    // Not only if it never had one.
    there.ask("SELECT vault.create_secret('tried', 'v'); SELECT vault.delete_secret('tried')");
    there.ask("BEGIN");
    assert_eq!(import(&mut there, &document).unwrap(), count);
    there.ask("ROLLBACK");
    assert_eq!(there.ask("SELECT vault.status() -> 'secrets'"), "0");
    assert_eq!(import(&mut there, &document).unwrap(), count);
    assert_eq!(there.ask(EXPORT), document, "exported again, it is the same");
    goes_on(&other, &known);

    // With another key everything is there and nothing opens; the error says which key is missing.
    other.stop(StopMode::Fast);
    other.write_key_file(&random_bytes::<32>(), 0o600);
    other.start_again();
    sqlstate!(reader(&other).try_ask("SELECT vault.read_secret('db/password')"), "38000", message: "another master key", hint: "Restore the key file");
    assert_eq!(
        other.connect("ops", other.database()).ask("SELECT count(*) FROM vault.list_secrets('db/*')"),
        "1"
    );
}

#[test]
fn of_another_vault() {
    let cluster = Cluster::builder().allowed_ips("local,127.0.0.1").start();
    let mut ops = cluster.vault().ops();
    fill(&mut ops);
    let known = learn(&mut reader(&cluster));
    let document = ops.ask(EXPORT);
    let secrets = document.matches("\"superseded\":").count() as i64;
    let other = empty_vault(&cluster);
    let mut there = other.connect("ops", other.database());
    there.ask("SELECT vault.create_secret('own', 'v')");
    let own = there.ask(EXPORT);
    sqlstate!(import(&mut there, &document), "55000", message: "of another vault", detail: "which has secrets", hint: "empty vault");
    assert_eq!(there.ask(EXPORT), own);

    // A first secret that is being created while the import looks is a secret: whoever is later gives way.
    there.ask("SELECT vault.delete_secret('own')");
    there.ask("BEGIN; SELECT vault.create_secret('own', 'second')");
    let mut admin = other.connect("ops", other.database());
    admin.ask("SET lock_timeout = '300ms'");
    sqlstate!(import(&mut admin, &document), "55P03");
    there.ask("COMMIT");
    sqlstate!(import(&mut admin, &document), "55000", message: "of another vault");
    assert_eq!(reader(&other).ask("SELECT vault.read_secret('own')"), "second");
    there.ask("SELECT vault.delete_secret('own')");
    admin.ask("BEGIN");
    assert_eq!(import(&mut admin, &document).unwrap(), secrets);
    let late = std::thread::spawn(move || there.ask("SELECT version FROM vault.create_secret('late', 'v')"));
    let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'vault.secrets'::regclass";
    let mut root = other.superuser();
    wait_for("the creator to wait", PATIENCE, || root.ask(waits) == "1");
    admin.ask("COMMIT");
    assert_eq!(late.join().unwrap(), "1");
    assert_eq!(
        reader(&other).ask("SELECT vault.read_secret('late')"),
        "v",
        "sealed for the vault that it now is"
    );
    admin.ask("SELECT vault.delete_secret('late')");
    goes_on(&other, &known);
}

/// An administrator who edits an export gains no value he may not read, and nobody reads one for another.
#[test]
fn edited() {
    let cluster = Cluster::builder().allowed_ips("local,127.0.0.1").start();
    let vault = cluster.vault();
    let (mut ops, mut app) = (vault.ops(), vault.app());
    ops.ask("SELECT vault.create_secret('a', 'value of a', grace_period => '1 hour'); SELECT vault.put_secret('a', 'second of a')");
    ops.ask("SELECT vault.create_secret('b', 'value of b', grace_period => '1 hour'); SELECT vault.put_secret('b', 'second of b')");
    let document: Value = serde_json::from_str(&ops.ask(EXPORT)).unwrap();
    let clear = "SELECT vault.delete_secret(name) FROM vault.list_secrets()";
    let sealed_of = |secret: usize| document["secrets"][secret]["current"]["sealed"].clone();
    let flipped = {
        let mut bytes = BASE64_STANDARD.decode(sealed_of(0).as_str().unwrap()).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        json!(BASE64_STANDARD.encode(bytes))
    };
    type Edit<'a> = (&'a str, Box<dyn Fn(&mut Value) + 'a>, &'a str);
    let edits: [Edit<'_>; 8] = [
        ("another name", Box::new(|d| d["secrets"][0]["name"] = json!("mine")), "mine"),
        (
            "names exchanged",
            Box::new(|d| {
                d["secrets"][0]["name"] = json!("b");
                d["secrets"][1]["name"] = json!("a");
            }),
            "a",
        ),
        (
            "values exchanged",
            Box::new(|d| {
                d["secrets"][0]["current"]["sealed"] = sealed_of(1);
            }),
            "a",
        ),
        (
            "the other's current version whole",
            Box::new(|d| {
                d["secrets"][0]["current"] = document["secrets"][1]["current"].clone();
            }),
            "a",
        ),
        (
            "another id",
            Box::new(|d| d["secrets"][0]["id"] = json!("00000000-0000-4000-8000-000000000000")),
            "a",
        ),
        ("another number", Box::new(|d| d["secrets"][0]["current"]["version"] = json!(3)), "a"),
        ("another format", Box::new(|d| d["secrets"][0]["format"] = json!("userpass")), "a"),
        ("a bit", Box::new(|d| d["secrets"][0]["current"]["sealed"] = flipped.clone()), "a"),
    ];
    for (what, edit, name) in edits {
        ops.ask(clear);
        let mut edited = document.clone();
        edit(&mut edited);
        assert_eq!(
            import(&mut ops, &edited.to_string()).unwrap_or_else(|e| panic!("{what}: {e}")),
            2,
            "{what}"
        );
        for call in [format!("read_secret('{name}')"), format!("verify('{name}', 'value of a')")] {
            sqlstate!(app.try_ask(&format!("SELECT vault.{call}")), "XX001", message: "cannot be authenticated");
        }
        // Whoever imported it may not even ask.
        sqlstate!(ops.try_ask(&format!("SELECT vault.read_secret('{name}')")), "42501");
    }
    // An older version as the current one is what it was: an older state, which opens.
    ops.ask(clear);
    let mut older = document.clone();
    let former = older["secrets"][0]["superseded"][0].clone();
    for key in document["secrets"][0]["current"].as_object().unwrap().keys() {
        older["secrets"][0]["current"][key] = former[key].clone();
    }
    older["secrets"][0]["superseded"] = json!([]);
    assert_eq!(import(&mut ops, &older.to_string()).unwrap(), 2);
    assert_eq!(app.ask("SELECT vault.read_secret('a'), vault.read_secret('b', 1)"), "value of a|value of b");

    // What is not an export is refused with the place, and nothing of it is there, nor repeated.
    ops.ask(clear);
    let text = document.to_string();
    sqlstate!(import(&mut ops, &text[..text.len() / 2]), "22P02");
    for (pointer, value, place) in [
        ("", json!([1]), "at the document"),
        ("/secrets/1/name", json!("canary//canary"), "at secrets[1].name"),
        ("/secrets/1/current/sealed", json!("canary"), "at secrets[1].current.sealed"),
        ("/secrets/1/superseded/0/version", json!("canary"), "at secrets[1].superseded[0].version"),
        ("/secrets/1/superseded", json!({"canary": 1}), "at secrets[1].superseded"),
        ("/secrets/1/keep_versions", json!(-1), "at secrets[1].keep_versions"),
        ("/format_version", json!(2), "at format_version"),
    ] {
        let mut wrong = document.clone();
        *wrong.pointer_mut(pointer).unwrap() = value;
        let error = sqlstate!(import(&mut ops, &wrong.to_string()), "22023", message: place, hint: "");
        assert!(!format!("{error:?}").contains("canary"), "{error:?}");
    }
    assert_eq!(ops.ask("SELECT count(*) FROM vault.list_secrets()"), "0");
    // Larger than this server admits: said so.
    cluster.set_conf("hyperion_vault.max_secret_bytes", "8");
    let mut ops = vault.ops();
    sqlstate!(import(&mut ops, &text), "22023", message: "current.sealed", detail: "at most 8", hint: "max_secret_bytes");
}
