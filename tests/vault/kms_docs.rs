//! docs/kms.md, held to the code: its policies are well-formed, grant what the worker calls and no more, and name the
//! encryption context as it is. Runs in the test process, without a cluster.
//!
//! No AWS is asked, so names of actions are held against a list of what there is. The traps: a policy that parses but
//! would allow too much (a wildcard, another service), or nothing (a condition on a context that the operation has not).

use hyperion_vault_core::envelope::{DekContext, Id};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Actions of the prefix `kms` that concern one key, from AWS's service authorization reference.
const ACTIONS: [&str; 40] = [
    "CancelKeyDeletion",
    "CreateAlias",
    "CreateGrant",
    "Decrypt",
    "DeleteAlias",
    "DeleteImportedKeyMaterial",
    "DeriveSharedSecret",
    "DescribeKey",
    "DisableKey",
    "DisableKeyRotation",
    "EnableKey",
    "EnableKeyRotation",
    "Encrypt",
    "GenerateDataKey",
    "GenerateDataKeyPair",
    "GenerateDataKeyPairWithoutPlaintext",
    "GenerateDataKeyWithoutPlaintext",
    "GenerateMac",
    "GetKeyPolicy",
    "GetKeyRotationStatus",
    "GetParametersForImport",
    "GetPublicKey",
    "ImportKeyMaterial",
    "ListGrants",
    "ListKeyPolicies",
    "ListKeyRotations",
    "ListResourceTags",
    "PutKeyPolicy",
    "ReEncryptFrom",
    "ReEncryptTo",
    "ReplicateKey",
    "RevokeGrant",
    "RotateKeyOnDemand",
    "ScheduleKeyDeletion",
    "TagResource",
    "UntagResource",
    "UpdateAlias",
    "UpdateKeyDescription",
    "UpdatePrimaryRegion",
    "VerifyMac",
];

/// Those that carry an encryption context with a symmetric key.
const WITH_CONTEXT: [&str; 6] = [
    "Decrypt",
    "Encrypt",
    "GenerateDataKey",
    "GenerateDataKeyWithoutPlaintext",
    "ReEncryptFrom",
    "ReEncryptTo",
];

/// What each heading's identity policy must grant, no less and no more.
const FEATURES: [(&str, &[&str]); 4] = [
    ("### Seal", &["GenerateDataKey"]),
    ("### Read", &["Decrypt"]),
    ("### Describe", &["DescribeKey"]),
    ("### Re-wrap", &["DescribeKey", "ListKeyRotations", "ReEncryptFrom", "ReEncryptTo"]),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the checkout")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The JSON block below each heading; a second one below the same heading would go unseen and is a fault.
fn policies(document: &str) -> BTreeMap<String, Value> {
    let (mut found, mut heading, mut block) = (BTreeMap::new(), String::new(), None::<String>);
    for line in document.lines() {
        match &mut block {
            None if line.starts_with('#') => heading = line.to_owned(),
            None if line == "```json" => block = Some(String::new()),
            None => assert!(!line.starts_with("```"), "a block of another kind: {line}"),
            Some(text) if line == "```" => {
                let policy = serde_json::from_str(text).unwrap_or_else(|error| panic!("{heading}: {error}"));
                assert!(found.insert(heading.clone(), policy).is_none(), "{heading}: two policies");
                block = None;
            }
            Some(text) => text.push_str(line),
        }
    }
    assert!(block.is_none(), "a block is not closed");
    found
}

/// One string or a list of them, as IAM writes it.
fn strings(value: &Value) -> Vec<&str> {
    match value {
        Value::String(one) => vec![one],
        Value::Array(many) => many.iter().map(|item| item.as_str().expect("a string")).collect(),
        other => panic!("neither a string nor a list: {other}"),
    }
}

fn context_keys() -> BTreeSet<String> {
    let id = Id([1; 16]);
    let context = DekContext { vault: id, secret: id, version: id };
    context.pairs().into_iter().map(|(key, _)| key.to_owned()).collect()
}

/// The actions of a statement, without their prefix; whatever is wrong with its parts fails here.
fn check_statement<'a>(place: &str, statement: &'a Value, of_key: bool) -> BTreeSet<&'a str> {
    let fields: BTreeSet<&str> =
        statement.as_object().expect("an object").keys().map(String::as_str).collect();
    let known = ["Action", "Condition", "Effect", "Principal", "Resource", "Sid"];
    assert!(fields.iter().all(|field| known.contains(field)), "{place}: {fields:?}");
    assert_eq!(fields.contains("Principal"), of_key, "{place}: only a key policy names principals");
    let sid = statement["Sid"].as_str().expect("each statement has a name");
    assert!(sid.chars().all(|c| c.is_ascii_alphanumeric()), "{place}: IAM takes letters and digits in {sid}");
    let place = format!("{place}, {sid}");

    let actions: BTreeSet<&str> = strings(&statement["Action"])
        .into_iter()
        .map(|action| {
            action.strip_prefix("kms:").unwrap_or_else(|| panic!("{place}: {action} is not of KMS"))
        })
        .collect();
    for action in &actions {
        assert!(ACTIONS.contains(action), "{place}: there is no action kms:{action}");
    }
    let resources = strings(&statement["Resource"]);
    if of_key {
        assert_eq!(resources, ["*"], "{place}: a key policy means its key");
    } else {
        let one_key = resources.len() == 1
            && resources[0].starts_with("arn:aws:kms:")
            && resources[0].contains(":key/");
        assert!(one_key && !resources[0].contains('*'), "{place}: {resources:?}");
    }

    let deny = match statement["Effect"].as_str() {
        Some("Allow") => false,
        Some("Deny") => of_key,
        other => panic!("{place}: {other:?}"),
    };
    let carries = actions.iter().filter(|action| WITH_CONTEXT.contains(*action)).count();
    match statement.get("Condition") {
        None => assert_eq!(carries, 0, "{place}: not confined to the vault"),
        Some(condition) => {
            assert_eq!(
                carries,
                actions.len(),
                "{place}: an action without context never meets the condition"
            );
            check_condition(&place, condition, deny);
        }
    }
    actions
}

fn check_condition(place: &str, condition: &Value, deny: bool) {
    let operators: BTreeSet<&str> =
        condition.as_object().expect("an object").keys().map(String::as_str).collect();
    let (on_vault, all) = if deny {
        ("StringNotEquals", BTreeSet::from(["StringNotEquals"]))
    } else {
        ("StringEquals", BTreeSet::from(["StringEquals", "ForAllValues:StringEquals"]))
    };
    assert_eq!(operators, all, "{place}");
    let on_vault = condition[on_vault].as_object().expect("an object");
    let (key, id) = on_vault.iter().next().expect("a condition on the vault");
    let name = key.strip_prefix("kms:EncryptionContext:").expect("a condition on the encryption context");
    assert!(
        on_vault.len() == 1 && name.ends_with(":vault") && context_keys().contains(name),
        "{place}: {key}"
    );
    let id = id.as_str().expect("a uuid");
    let groups: Vec<usize> = id.split('-').map(str::len).collect();
    assert!(
        groups == [8, 4, 4, 4, 12] && id.chars().all(|c| c == '-' || c.is_ascii_hexdigit()),
        "{place}: {id}"
    );
    if !deny {
        let keys = strings(&condition["ForAllValues:StringEquals"]["kms:EncryptionContextKeys"]);
        assert_eq!(keys.into_iter().map(str::to_owned).collect::<BTreeSet<_>>(), context_keys(), "{place}");
    }
}

fn check_policy<'a>(place: &str, policy: &'a Value, of_key: bool) -> BTreeSet<&'a str> {
    // The older version of the language would read variables as text; there are only these two fields.
    assert_eq!(policy["Version"], "2012-10-17", "{place}");
    assert_eq!(policy.as_object().map(serde_json::Map::len), Some(2), "{place}");
    let statements = policy["Statement"].as_array().expect("a list of statements");
    let sids: BTreeSet<Option<&str>> = statements.iter().map(|statement| statement["Sid"].as_str()).collect();
    assert_eq!(sids.len(), statements.len(), "{place}: two statements of one name");
    statements.iter().flat_map(|statement| check_statement(place, statement, of_key)).collect()
}

#[test]
fn policies_grant_what_is_called_and_no_more() {
    let document = read("docs/kms.md");
    let policies = policies(&document);
    assert_eq!(policies.len(), FEATURES.len() + 1, "{:?}", policies.keys());
    for (heading, wanted) in FEATURES {
        let policy = policies.get(heading).unwrap_or_else(|| panic!("no policy below {heading}"));
        assert_eq!(check_policy(heading, policy, false), wanted.iter().copied().collect(), "{heading}");
    }
    let key_policy = &policies["## Key policy"];
    let actions = check_policy("the key policy", key_policy, true);
    assert!(
        ["GenerateDataKey", "Decrypt", "DescribeKey", "PutKeyPolicy"].iter().all(|a| actions.contains(a))
    );
    let statements = key_policy["Statement"].as_array().expect("checked above");
    let administrators = strings(&statements[0]["Action"]);
    assert!(
        administrators.iter().all(|action| !WITH_CONTEXT.contains(&action.trim_start_matches("kms:"))),
        "administrators of the key do not use it"
    );
    assert!(statements.iter().any(|statement| statement["Effect"] == "Deny"));

    // Every action that the worker's hints ask for is explained here.
    let mut source = String::new();
    collect(&root().join("src/kms"), &mut source);
    let named: BTreeSet<&str> =
        ACTIONS.into_iter().filter(|a| source.contains(&format!("kms:{a}"))).collect();
    for action in named {
        let operation = action.trim_end_matches("From").trim_end_matches("To");
        assert!(document.contains(&format!("`{operation}`")), "docs/kms.md says nothing of kms:{action}");
    }
}

fn collect(dir: &Path, into: &mut String) {
    for entry in fs::read_dir(dir).expect("a directory of the checkout") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, into);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            into.push_str(&fs::read_to_string(&path).expect("a source file"));
        }
    }
}

#[test]
fn the_encryption_context_is_as_documented_and_the_document_is_linked() {
    let document = read("docs/kms.md");
    for key in context_keys() {
        assert!(document.contains(&format!("| `{key}` |")), "{key}");
    }
    let linked = ["settings.md", "threat-model.md", "testing.md"];
    for name in linked {
        assert!(
            read(&format!("docs/{name}")).contains("](kms.md"),
            "docs/{name} does not lead to docs/kms.md"
        );
    }
}

/// The sums of the example, from its premises.
#[test]
fn the_example_of_costs_adds_up() {
    let document = read("docs/kms.md").replace('\n', " ");
    for (ttl, requests, dollars) in [(300, "25,920,000", "77.70"), (3600, "2,160,000", "6.42")] {
        let calls: u64 = 1000 * 3 * (30 * 86_400 / ttl);
        assert_eq!(requests.replace(',', "").parse(), Ok(calls));
        // Hundredths of a dollar: 3 for 10,000 requests, 20,000 are free.
        let cents = (calls - 20_000) * 3 / 10_000;
        assert_eq!(dollars, format!("{}.{:02}", cents / 100, cents % 100));
        assert!(document.contains(requests) && document.contains(&format!("{dollars} USD")), "{ttl}");
    }
}

#[test]
fn the_checks_see_faults() {
    let good = r#"{"Sid": "A", "Effect": "Allow", "Action": "kms:DescribeKey", "Resource": "arn:aws:kms:r:1:key/a"}"#;
    let outcome = |text: String| {
        std::panic::catch_unwind(move || {
            let statement: Value = serde_json::from_str(&text).expect("JSON");
            check_statement("a test", &statement, false).len()
        })
    };
    assert_eq!(outcome(good.to_owned()).ok(), Some(1));
    for (from, to) in [
        ("kms:DescribeKey", "kms:*"),
        ("kms:DescribeKey", "s3:GetObject"),
        ("kms:DescribeKey", "kms:ReEncrypt"),
        // Not confined to the vault.
        ("kms:DescribeKey", "kms:Decrypt"),
        ("arn:aws:kms:r:1:key/a", "*"),
        ("arn:aws:kms:r:1:key/a", "arn:aws:kms:r:1:alias/a"),
        ("\"Allow\"", "\"Perhaps\""),
        ("\"Resource\"", "\"Principal\": \"*\", \"Resource\""),
        ("\"Resource\"", "\"Condition\": {}, \"Resource\""),
    ] {
        let bad = good.replace(from, to);
        assert_ne!(bad, good);
        assert!(outcome(bad.clone()).is_err(), "{bad}");
    }
}
