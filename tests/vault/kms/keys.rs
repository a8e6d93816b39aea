//! Names of keys, changes of keys, and wrapped keys where they do not belong. Runs in the test process.
//!
//! Superusers write the tables here: rows cannot be protected from them, values must be. The trap: a refusal by the cache
//! or by the seal that KMS never had to give. Nothing is cached, and what was asked is looked up at the fake.

use super::signer::{Signer, base64, hex, unbase64};
use super::{cold_secrets, create, created_by, key_calls, read, value};
use crate::watch::until_running;
use hyperion_vault_tests::kms::{ALIAS, Credentials, FakeKms, KeyState, Op};
use hyperion_vault_tests::{Ask, Client, Cluster, PATIENCE, SIGTERM, sqlstate, wait_for};
use serde_json::json;

/// The ways to name a key that AWS knows: id, ARN, alias, alias ARN.
#[test]
fn a_key_can_be_named_in_four_ways_and_changed() {
    let kms = FakeKms::start();
    let cluster = Cluster::builder().aws(&kms).start();
    let vault = cluster.vault();
    let mut root = vault.root();
    let first = kms.key_arn();
    let alias_arn = first.replace(&format!("key/{}", kms.key_id()), ALIAS);
    // Uncached from here on: each read is asked of the key that the row names.
    cluster.set_conf("hyperion_vault.dek_cache_ttl_secs", "0");
    let mut names = Vec::new();
    for (i, named) in [kms.key_id(), &first, ALIAS, &alias_arn].into_iter().enumerate() {
        let name = format!("named/{i}");
        in_force(&cluster, &kms, named);
        let (key, material) = created_by(&mut root, &name);
        assert_eq!((key.as_str(), material), (first.as_str(), Some(kms.key_material_id(&first))), "{named}");
        names.push(name);
    }

    // An alias that is moved: new versions follow it, old ones stay with the key that wrapped them.
    let second = kms.create_key();
    in_force(&cluster, &kms, ALIAS);
    kms.create_alias(ALIAS, &second);
    assert_eq!(created_by(&mut root, "moved").0, second);
    names.push("moved".into());

    // Material that is rotated: old versions open, new ones name the new material.
    in_force(&cluster, &kms, &second);
    let before = kms.key_material_id(&second);
    let rotated = kms.rotate(&second);
    assert_ne!(before, rotated);
    assert_eq!(created_by(&mut root, "rotated"), (second.clone(), Some(rotated.clone())));
    root.batch_execute("SELECT vault.put_secret('moved', 'the value of moved')").unwrap();
    let sql = "SELECT kms_key_material_id FROM vault.secrets WHERE name = 'moved'
               UNION ALL SELECT kms_key_material_id FROM vault.secret_versions";
    assert_eq!(root.ask(sql), format!("{rotated}\n{before}"));
    names.push("rotated".into());

    for name in &names {
        assert_eq!(read(&mut root, name).unwrap(), value(name));
    }
    // Only what the first key wrapped needs it.
    kms.set_state(&first, KeyState::Disabled);
    sqlstate!(read(&mut root, "named/0"), "38000", message: "is disabled", hint: "enable-key");
    assert_eq!(read(&mut root, "rotated").unwrap(), value("rotated"));
    kms.set_state(&first, KeyState::PendingDeletion);
    sqlstate!(read(&mut root, "named/0"), "38000", hint: "cancel-key-deletion");
    kms.set_state(&first, KeyState::Enabled);
    assert_eq!(read(&mut root, "named/0").unwrap(), value("named/0"));
}

/// Sets the key and waits until the worker asks for it by this name.
fn in_force(cluster: &Cluster, kms: &FakeKms, named: &str) {
    cluster.set_conf("hyperion_vault.kms_key_id", named);
    let mut root = cluster.superuser();
    let mut tries = 0;
    wait_for("the worker to use the key", PATIENCE, || {
        tries += 1;
        let probe = format!("probe/{}", hyperion_vault_tests::random_text(12));
        create(&mut root, &probe).unwrap();
        root.execute("SELECT vault.delete_secret($1)", &[&probe]).unwrap();
        let last = kms.requests().into_iter().rfind(|seen| seen.op == Some(Op::GenerateDataKey));
        last.is_some_and(|seen| seen.key_id.as_deref() == Some(named))
    });
    assert!(tries < 50, "{tries} tries");
}

/// A node in another region uses the replica of a multi-region key there, for what was sealed here too.
#[test]
fn a_multi_region_key_opens_through_its_replica() {
    let kms = FakeKms::start();
    let key = kms.create_multi_region_key();
    let replica = kms.replicate(&key, "us-east-1");
    let cluster =
        Cluster::builder().aws_at(&kms.endpoint(), kms.region(), &key, &Credentials::example()).start();
    let vault = cluster.vault();
    let mut root = vault.root();
    cluster.set_conf("hyperion_vault.dek_cache_ttl_secs", "0");
    assert_eq!(created_by(&mut root, "home").0, key);
    cluster.set_conf("hyperion_vault.kms_region", "us-east-1");
    wait_for("the worker to be in its region", PATIENCE, || {
        let name = format!("probe/{}", hyperion_vault_tests::random_text(12));
        created_by(&mut root, &name).0 == replica
    });
    kms.reset_counters();
    // The primary is of no use to this node now.
    kms.set_state(&key, KeyState::Disabled);
    assert_eq!(read(&mut root, "home").unwrap(), value("home"));
    assert_eq!(created_by(&mut root, "abroad").0, replica);
    assert_eq!(read(&mut root, "abroad").unwrap(), value("abroad"));
    assert!(kms.requests().iter().all(|seen| seen.key_id.as_ref() == Some(&replica)));
}

struct Tampering<'a> {
    kms: &'a FakeKms,
    root: Client,
    app: Client,
}

impl Tampering<'_> {
    /// Changes a copy of the rows as `sql` says; `name` is refused, after one call at most. Then all is put back.
    fn refused(&mut self, what: &str, sql: &str, name: &str) {
        let changed = self.root.execute(sql, &[]).unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert!(changed > 0, "{what}: nothing was changed");
        for call in ["read_secret($1)", "get_secret($1)", "verify($1, 'x')"] {
            self.kms.reset_counters();
            let result = self.app.execute(&format!("SELECT vault.{call}"), &[&name]);
            let error = sqlstate!(result, "XX001", message: "cannot be authenticated");
            assert_eq!((error.detail(), error.hint()), (None, None), "{what}: {call}");
            assert!(key_calls(self.kms) <= 1, "{what}: {call}: {} calls", key_calls(self.kms));
        }
        self.restore();
    }

    fn restore(&mut self) {
        let sql = "UPDATE vault.secrets s
                      SET wrapped_dek = o.wrapped_dek, kms_key_id = o.kms_key_id, version_id = o.version_id, id = o.id
                     FROM kept o WHERE o.name = s.name";
        self.root.batch_execute(sql).unwrap();
        for name in ["cold/1", "cold/2"] {
            assert_eq!(read(&mut self.app, name).unwrap(), value(name));
        }
    }

    /// What a row holds: wrapped key, and the context it was wrapped in.
    fn row(&mut self, name: &str) -> (Vec<u8>, serde_json::Value) {
        let sql = "SELECT wrapped_dek, id::text, version_id::text, (vault.status() ->> 'vault_id') FROM vault.secrets
                    WHERE name = $1";
        let row = self.root.query_one(sql, &[&name]).unwrap();
        let id = |i: usize| row.get::<_, String>(i);
        let context = json!({
            "hyperion_vault:vault": id(3), "hyperion_vault:secret": id(1), "hyperion_vault:version": id(2),
        });
        (row.get(0), context)
    }
}

#[test]
fn a_wrapped_key_opens_only_in_its_place_and_under_its_key() {
    let kms = FakeKms::start();
    let cluster = Cluster::builder().aws(&kms).start();
    let vault = cluster.vault();
    cold_secrets(&vault, "cold", 2);
    never_cached(&cluster);
    let mut table = Tampering { kms: &kms, root: vault.root(), app: vault.app() };
    table.root.batch_execute("CREATE TABLE kept AS TABLE vault.secrets").unwrap();
    table.restore();
    let (first, second) = (kms.key_arn(), kms.create_key());
    let with = |set: &str| format!("UPDATE vault.secrets SET {set} WHERE name = 'cold/1'");
    let literal = |bytes: &[u8]| format!("wrapped_dek = '\\x{}'", hex(bytes));

    // Places. The whole of what belongs together, but the name, is another secret: the seal refuses that.
    let other = "FROM kept o WHERE o.name = 'cold/2' AND s.name = 'cold/1'";
    let swap = |columns: &str| format!("UPDATE vault.secrets s SET {columns} {other}");
    table.refused("another secret's wrapped key", &swap("wrapped_dek = o.wrapped_dek"), "cold/1");
    table.refused("another secret's version", &swap("version_id = o.version_id"), "cold/1");
    let both = "UPDATE vault.secrets s SET wrapped_dek = o.wrapped_dek, version_id = o.version_id FROM kept o
                 WHERE (s.name, o.name) IN (('cold/1', 'cold/2'), ('cold/2', 'cold/1'))";
    table.refused("both of two swapped", both, "cold/1");
    table.refused("both of two swapped", both, "cold/2");
    table.refused("another id", &with("id = gen_random_uuid()"), "cold/1");

    // Keys that the row names.
    let name = |key: &str| with(&format!("kms_key_id = '{key}'"));
    table.refused("another key of the account", &name(&second), "cold/1");
    for key in ["", "alias/hyperion", "not a key", &first.replace("key/", "alias/")] {
        table.refused("no key's ARN", &name(key), "cold/1");
    }
    for bytes in [&b""[..], b"x", &[7; 200]] {
        table.refused("bytes that are no wrapped key", &with(&literal(bytes)), "cold/1");
    }

    // Wrapped anew by somebody who may use the keys: under another key, in another context.
    let (wrapped, context) = table.row("cold/1");
    let (theirs, their_context) = table.row("cold/2");
    let signer = Signer::new(&kms);
    let rewrap = |blob: &[u8], from: &serde_json::Value, to: &serde_json::Value, key: &str| {
        let mut body =
            json!({"CiphertextBlob": base64(blob), "DestinationKeyId": key, "SourceEncryptionContext": from});
        if !to.is_null() {
            body["DestinationEncryptionContext"] = to.clone();
        }
        let answer = signer.call("ReEncrypt", &body);
        unbase64(answer["CiphertextBlob"].as_str().unwrap_or_else(|| panic!("no wrapped key in {answer}")))
    };
    let moved = rewrap(&wrapped, &context, &context, &second);
    table.refused("under another key that the row does not name", &with(&literal(&moved)), "cold/1");
    let bare = rewrap(&wrapped, &context, &serde_json::Value::Null, &first);
    table.refused("without a context", &with(&literal(&bare)), "cold/1");
    let bare = rewrap(&wrapped, &context, &serde_json::Value::Null, &second);
    let set = format!("{}, kms_key_id = '{second}'", literal(&bare));
    table.refused("without a context, under another key", &with(&set), "cold/1");
    let misplaced = rewrap(&wrapped, &context, &their_context, &first);
    table.refused("in another context", &with(&literal(&misplaced)), "cold/1");
    let foreign = rewrap(&theirs, &their_context, &context, &first);
    table.refused("another secret's key, in the right context", &with(&literal(&foreign)), "cold/1");
    let made = signer.call(
        "Encrypt",
        &json!({"KeyId": first, "Plaintext": base64(&[9; 16]), "EncryptionContext": context}),
    );
    let short = unbase64(made["CiphertextBlob"].as_str().unwrap());
    table.refused("a key of 16 bytes", &with(&literal(&short)), "cold/1");

    // The control, and what re-wrapping will do: the same key in its context under another KMS key, which the row names.
    table.root.execute(&with(&format!("{}, kms_key_id = '{second}'", literal(&moved))), &[]).unwrap();
    assert_eq!(read(&mut table.app, "cold/1").unwrap(), value("cold/1"));
    table.restore();
}

/// From now on each read asks KMS.
fn never_cached(cluster: &Cluster) {
    cluster.set_conf("hyperion_vault.dek_cache_ttl_secs", "0");
    let mut root = cluster.superuser();
    // The worker takes the setting over in its own time, and what it had cached before expires in its.
    cluster.kill_and_wait(cluster.pid_of("hyperion_vault kms"), SIGTERM);
    until_running(&mut root, 2);
    assert_eq!(root.ask("SELECT vault.status() #>> '{cache,entries}'"), "0");
}
