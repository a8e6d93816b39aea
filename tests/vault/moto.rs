//! The harness's moto does what tests of the `aws` provider will lean on. Runs in the test process, without a cluster.
//!
//! The trap it avoids: a peer that accepts anything would let every later check pass. So its refusals are looked at too.

use base64::prelude::{BASE64_STANDARD, Engine};
use hyperion_vault_tests::{Moto, PATIENCE, wait_for};
use serde_json::{Value, json};
use std::net::TcpStream;

fn text<'a>(answer: &'a Value, field: &str) -> &'a str {
    answer[field].as_str().unwrap_or_else(|| panic!("no {field} in {answer}"))
}

#[test]
fn moto_is_a_kms_and_ends_with_its_owner() {
    let moto = Moto::start();
    let key = moto.create_key();
    assert!(key.starts_with(&format!("arn:aws:kms:{}:", Moto::REGION)), "{key}");
    moto.create_alias("alias/vault", &key);
    let described =
        moto.call("DescribeKey", &json!({"KeyId": "alias/vault"})).expect("the alias stands for the key");
    assert_eq!(text(&described["KeyMetadata"], "Arn"), key);

    let context = json!({"hyperion_vault:vault": "a", "hyperion_vault:version": "1"});
    let spec = json!({"KeyId": key, "KeySpec": "AES_256", "EncryptionContext": context});
    let made = moto.call("GenerateDataKey", &spec).expect("a data key");
    assert_eq!(text(&made, "KeyId"), key);
    assert_eq!(BASE64_STANDARD.decode(text(&made, "Plaintext")).expect("base64").len(), 32);
    let open = |context: &Value| {
        moto.call("Decrypt", &json!({"CiphertextBlob": made["CiphertextBlob"], "EncryptionContext": context}))
    };
    let opened = open(&context).expect("the data key opens where it was made");
    assert_eq!(opened["Plaintext"], made["Plaintext"]);
    let refusal = open(&json!({"hyperion_vault:vault": "b", "hyperion_vault:version": "1"}))
        .expect_err("another vault");
    assert_eq!((refusal.status, refusal.kind()), (400, "InvalidCiphertextException"), "{refusal:?}");

    let state = || {
        let described = moto.call("DescribeKey", &json!({"KeyId": key})).expect("the key is there");
        text(&described["KeyMetadata"], "KeyState").to_owned()
    };
    moto.disable_key(&key);
    assert_eq!(state(), "Disabled");
    moto.enable_key(&key);
    assert_eq!(state(), "Enabled");
    moto.enable_key_rotation(&key);
    moto.rotate_key_on_demand(&key);
    let rotations = moto.call("ListKeyRotations", &json!({"KeyId": key})).expect("a list");
    assert_eq!(rotations["Rotations"].as_array().map(Vec::len), Some(1), "{rotations}");
    moto.schedule_key_deletion(&key);
    assert_eq!(state(), "PendingDeletion");
    let refusal = moto.call("DescribeKey", &json!({"KeyId": "alias/absent"})).expect_err("no such alias");
    assert_eq!(refusal.kind(), "NotFoundException", "{refusal:?}");

    let address = moto.endpoint().strip_prefix("http://").expect("http on loopback").to_owned();
    let owner = std::thread::spawn(move || {
        let _moto = moto;
        panic!("on purpose: a test that fails");
    });
    assert!(owner.join().is_err());
    wait_for("moto to be gone", PATIENCE, || TcpStream::connect(&address).is_err());
}
