//! Everything goes through unchanged, and nothing else goes in.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const LIMITS: Limits = Limits { max_secret_bytes: 100 };

fn version(number: i32) -> Version {
    Version {
        id: Id([number as u8; 16]),
        number,
        wrapped_dek: vec![7; 83],
        sealed: [&[1][..], &[number as u8; 60]].concat(),
        kms_key_id: "local:0123".into(),
        kms_key_material_id: (number % 2 == 0).then(|| "m".into()),
        created_at: Timestamp(1_000_000 + i64::from(number)),
    }
}

fn export() -> Export {
    let plain = Secret {
        id: Id([0xa0; 16]),
        name: "db/password".into(),
        automatic: false,
        format: Format::Opaque,
        current: version(1),
        description: None,
        metadata: None,
        rotation_interval: None,
        grace_period: None,
        next_rotation_at: None,
        generator: None,
        allowed_ips: None,
        keep_versions: None,
        created_at: Timestamp(-5),
        updated_at: Timestamp(0),
        expires_at: None,
        recover_until: None,
        target: None,
        superseded: vec![],
    };
    let full = Secret {
        id: Id([0xa1; 16]),
        name: "ü/ö".into(),
        automatic: true,
        format: Format::Userpass,
        current: version(9),
        description: Some("a \"line\"\nand another".into()),
        metadata: Some(r#"{"n": 1e999, "big": 123456789012345678901234567890.5, "a": [null]}"#.into()),
        rotation_interval: Some(IntervalParts { months: 1, days: 2, micros: 3 }),
        grace_period: Some(IntervalParts { months: 0, days: 0, micros: 0 }),
        next_rotation_at: Some(Timestamp(77)),
        generator: Some(r#"{"length": 40}"#.into()),
        allowed_ips: Some(vec!["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()]),
        keep_versions: Some(0),
        created_at: Timestamp(1),
        updated_at: Timestamp(2),
        expires_at: Some(Timestamp(5)),
        recover_until: Some(Timestamp(6)),
        target: Some(r#"{"type": "postgres_role", "role": "app"}"#.into()),
        superseded: [2, 5, 8]
            .map(|n| Superseded {
                version: version(n),
                superseded_at: Timestamp(3),
                expires_at: (n == 8).then_some(Timestamp(4)),
            })
            .into(),
    };
    Export { vault: Some(Id([1; 16])), secrets: vec![plain, full] }
}

fn parse(json: &str) -> Result<Export, crate::secret::InvalidArgument> {
    Export::parse(json, LIMITS)
}

#[test]
fn what_was_written_is_read() {
    let export = export();
    assert_eq!(parse(&export.to_json().unwrap()), Ok(export));
    let empty = Export { vault: None, secrets: vec![] };
    assert_eq!(parse(&empty.to_json().unwrap()), Ok(empty));
}

/// A document to spoil: without the numbers that `Value` cannot hold.
fn document() -> Value {
    let mut export = export();
    export.secrets[1].metadata = Some(r#"{"a": {"b": [1]}}"#.into());
    serde_json::from_str(&export.to_json().unwrap()).unwrap()
}

/// The paths of all members and elements.
fn places(value: &Value, path: &str, found: &mut Vec<String>) {
    let mut visit = |key: String, value: &Value| {
        let path = format!("{path}/{key}");
        found.push(path.clone());
        // Inside these anything goes.
        if !["metadata", "generator", "target"].contains(&key.as_str()) {
            places(value, &path, found);
        }
    };
    match value {
        Value::Object(members) => members.iter().for_each(|(key, value)| visit(key.clone(), value)),
        Value::Array(items) => items.iter().enumerate().for_each(|(i, value)| visit(i.to_string(), value)),
        _ => {}
    }
}

#[test]
fn every_member_counts_and_none_is_repeated() {
    let document = document();
    let mut all = Vec::new();
    places(&document, "", &mut all);
    assert!(all.len() >= 90, "{}", all.len());
    let canary = "canary-of-a-secret-value";
    for path in &all {
        let (parent, key) = path.rsplit_once('/').unwrap();
        // Taken away. (An element of an array may go.)
        let mut without = document.clone();
        if let Some(members) = without.pointer_mut(parent).unwrap().as_object_mut() {
            members.remove(key);
            let error = parse(&without.to_string()).unwrap_err();
            assert!(error.message.ends_with(key), "{path}: {error:?}");
        }
        // Of another type.
        for wrong in
            [json!({canary: canary}), json!([canary]), json!(canary), json!(-3), json!(1.5), json!(true)]
        {
            let mut other = document.clone();
            *other.pointer_mut(path).unwrap() = wrong.clone();
            let fits = match key {
                "metadata" => wrong.is_object(),
                "name" | "description" | "kms_key_id" | "kms_key_material_id" => wrong.is_string(),
                "created_at" | "updated_at" | "superseded_at" | "expires_at" | "recover_until"
                | "next_rotation_at" => wrong == json!(-3),
                // A month less three days is an interval.
                "days" | "microseconds" => wrong == json!(-3) && path.contains("rotation_interval"),
                _ => false,
            };
            match parse(&other.to_string()) {
                Ok(_) => assert!(fits, "{path} took {wrong}"),
                Err(error) => {
                    let text = format!("{error:?}");
                    assert!(
                        !text.contains(canary) && error.detail.is_some() && error.hint.is_some(),
                        "{text}"
                    );
                    assert!(!fits || wrong == json!(-3), "{path} refused {wrong}: {text}");
                }
            }
        }
    }
}

#[test]
fn one_rule_each() {
    for (path, value, rule) in [
        ("/format", json!("vault"), "hyperion_vault sealed export"),
        ("/format_version", json!(2), "reads 1"),
        ("/vault_id", json!(null), "there are secrets"),
        ("/vault_id", json!("01010101-0101-0101-0101-01010101010"), "uuid"),
        ("/secrets/1/id", json!(Id([0xa0; 16]).to_string()), "earlier one"),
        ("/secrets/1/name", json!("db/password"), "earlier one"),
        ("/secrets/0/name", json!("a//b"), "segment"),
        ("/secrets/0/name", json!("a*"), "name"),
        ("/secrets/0/name", json!(""), "empty"),
        ("/secrets/0/name", json!("a\u{202e}b"), "invisible"),
        ("/secrets/0/kind", json!("AUTOMATIC"), "manual"),
        ("/secrets/0/kind", json!("automatic"), "automatic secret has one"),
        ("/secrets/1/kind", json!("manual"), "manual secret has none"),
        ("/secrets/0/format", json!("text"), "userpass"),
        ("/secrets/0/description", json!("x".repeat(4097)), "description"),
        ("/secrets/0/metadata", json!({"a": "x".repeat(70_000)}), "metadata"),
        ("/secrets/1/rotation_interval/microseconds", json!(-9_000_000_000_000_000_i64), "rotation_interval"),
        ("/secrets/1/rotation_interval/months", json!(2_147_483_647), "rotation_interval"),
        ("/secrets/1/rotation_interval/months", json!(2_147_483_648_i64), "32 bits"),
        ("/secrets/1/rotation_interval", json!(null), "automatic secret has one"),
        ("/secrets/1/grace_period/days", json!(-1), "grace_period"),
        ("/secrets/1/generator", json!({"length": 0}), "generator"),
        ("/secrets/1/target", json!({"type": "shell"}), "target"),
        ("/secrets/1/allowed_ips", json!([]), "networks"),
        ("/secrets/1/allowed_ips/0", json!("10.0.0.1/8"), "networks"),
        ("/secrets/1/allowed_ips/0", json!("local"), "networks"),
        ("/secrets/1/keep_versions", json!(1001), "keep_versions"),
        ("/secrets/0/created_at", json!(i64::MAX), "year"),
        ("/secrets/0/current/version", json!(0), "from 1"),
        ("/secrets/1/current/version", json!(8), "below the current"),
        ("/secrets/1/superseded/0/version", json!(5), "ascend"),
        ("/secrets/1/superseded/2/version", json!(4), "ascend"),
        ("/secrets/0/current/wrapped_dek", json!(""), "6144"),
        ("/secrets/0/current/wrapped_dek", json!("A".repeat(8196)), "6144"),
        ("/secrets/0/current/wrapped_dek", json!("AAA"), "base64"),
        ("/secrets/0/current/sealed", json!(BASE64_STANDARD.encode([1; 40])), "sealed value"),
        ("/secrets/0/current/sealed", json!(BASE64_STANDARD.encode([2; 60])), "sealed value"),
        ("/secrets/0/current/sealed", json!(BASE64_STANDARD.encode([1; 142])), "101 bytes; at most 100"),
        ("/secrets/0/current/kms_key_id", json!(""), "id of a key"),
        ("/secrets/0/current/kms_key_id", json!("a\nb"), "id of a key"),
        ("/secrets/0/current/kms_key_id", json!("x".repeat(2049)), "id of a key"),
    ] {
        let mut document = document();
        *document.pointer_mut(path).unwrap() = value;
        let error = parse(&document.to_string()).expect_err(path);
        let detail = error.detail.unwrap_or_default();
        assert!(detail.contains(rule), "{path}: {} / {detail}", error.message);
    }
    // The longest value that goes in.
    let mut document = document();
    *document.pointer_mut("/secrets/0/current/sealed").unwrap() = json!(BASE64_STANDARD.encode([1; 141]));
    assert!(parse(&document.to_string()).is_ok());
    // One member too many, at each level.
    for path in ["", "/secrets/0", "/secrets/0/current", "/secrets/1/superseded/0", "/secrets/1/grace_period"]
    {
        let mut document = self::document();
        let object = document.pointer_mut(path).unwrap().as_object_mut().unwrap();
        object.insert("canary".into(), json!(1));
        let error = parse(&document.to_string()).expect_err(path);
        assert!(error.detail.unwrap().contains("not known") && !error.message.contains("canary"), "{path}");
    }
}

proptest! {
    /// Total: any text gives an export or an error.
    #[test]
    fn any_text(text in any::<String>()) {
        let _ = parse(&text);
    }

    #[test]
    fn a_truncated_document_is_refused(cut in 0..1000usize) {
        let json = export().to_json().unwrap();
        let cut = cut % json.len();
        if json.is_char_boundary(cut) {
            prop_assert!(parse(&json[..cut]).is_err());
        }
    }
}
