//! Wrapping and unwrapping: what opens, and all that must not.

use super::client::{Client, base64, bytes};
use crate::kms::{FakeKms, Op};
use serde_json::json;

#[test]
fn a_data_key_opens_only_in_its_context() {
    let kms = FakeKms::start();
    let mut client = Client::new(&kms);
    let context = json!({"vault": "v1", "secret": "s1"});
    let made = client.ok(
        Op::GenerateDataKey,
        json!({"KeyId": "alias/hyperion", "KeySpec": "AES_256", "EncryptionContext": context}),
    );
    assert_eq!(made["KeyId"], kms.key_arn());
    assert_eq!(bytes(&made["Plaintext"]).len(), 32);
    assert_eq!(made["KeyMaterialId"], kms.key_material_id(kms.key_id()));
    assert_eq!(made["KeyMaterialId"].as_str().unwrap().len(), 64);

    let blob = &made["CiphertextBlob"];
    let reordered = json!({"secret": "s1", "vault": "v1"});
    let opened = client.ok(Op::Decrypt, json!({"CiphertextBlob": blob, "EncryptionContext": reordered}));
    assert_eq!(opened["Plaintext"], made["Plaintext"]);
    assert_eq!(opened["KeyId"], kms.key_arn());
    assert_eq!(opened["KeyMaterialId"], made["KeyMaterialId"]);
    assert_eq!(opened["EncryptionAlgorithm"], "SYMMETRIC_DEFAULT");

    for other in [
        json!(null),
        json!({}),
        json!({"vault": "v1"}),
        json!({"vault": "v1", "secret": "s2"}),
        json!({"vault": "v1", "secret": "s1", "more": ""}),
        json!({"vault": "v1s", "secret": "1"}),
        json!({"Vault": "v1", "secret": "s1"}),
        json!({"vault": "s1", "secret": "v1"}),
    ] {
        let refused =
            client.refused(Op::Decrypt, json!({"CiphertextBlob": blob, "EncryptionContext": other}));
        assert_eq!(refused, (400, "InvalidCiphertextException".into(), String::new()), "{other}");
    }
    assert_eq!(kms.calls(Op::Decrypt), 9);
    assert_eq!(kms.counters().failures, 8);
}

#[test]
fn no_context_is_an_empty_one() {
    let kms = FakeKms::start();
    let mut client = Client::new(&kms);
    let made = client.ok(Op::Encrypt, json!({"KeyId": kms.key_id(), "Plaintext": base64(b"x")}));
    assert!(made.get("KeyMaterialId").is_none(), "Encrypt does not return it");
    let request = json!({"CiphertextBlob": made["CiphertextBlob"], "EncryptionContext": {}});
    assert_eq!(bytes(&client.ok(Op::Decrypt, request)["Plaintext"]), b"x");
}

#[test]
fn changed_and_foreign_blobs_do_not_open() {
    let (kms, other) = (FakeKms::start(), FakeKms::start());
    let mut client = Client::new(&kms);
    let made = client.ok(Op::GenerateDataKey, json!({"KeyId": kms.key_id(), "KeySpec": "AES_256"}));
    let mut blob = bytes(&made["CiphertextBlob"]);
    *blob.last_mut().unwrap() ^= 1;
    let refused = client.refused(Op::Decrypt, json!({"CiphertextBlob": base64(&blob)}));
    assert_eq!(refused.1, "InvalidCiphertextException");
    let refused = client.refused(Op::Decrypt, json!({"CiphertextBlob": base64(b"what is this")}));
    assert_eq!(refused.1, "InvalidCiphertextException");

    let request = json!({"CiphertextBlob": made["CiphertextBlob"]});
    let (status, error, message) = Client::new(&other).refused(Op::Decrypt, request);
    assert_eq!((status, error.as_str()), (400, "AccessDeniedException"));
    assert!(message.starts_with("The ciphertext refers to a customer master key that does not exist"));
}

#[test]
fn the_named_key_must_be_the_wrapping_one() {
    let kms = FakeKms::start();
    let second = kms.create_key();
    let mut client = Client::new(&kms);
    let made = client.ok(Op::GenerateDataKey, json!({"KeyId": kms.key_arn(), "KeySpec": "AES_256"}));
    let mut decrypt = |key: &str| {
        let request = json!({"CiphertextBlob": made["CiphertextBlob"], "KeyId": key});
        client.call(Op::Decrypt, request).unwrap()
    };
    for name in [kms.key_id(), &kms.key_arn(), "alias/hyperion"] {
        assert_eq!(decrypt(name).status, 200, "{name}");
    }
    assert_eq!(decrypt(&second).refusal().1, "IncorrectKeyException");
}

#[test]
fn lengths_are_limited() {
    let kms = FakeKms::start();
    let mut client = Client::new(&kms);
    let key = kms.key_id();
    let encrypt = |length: usize| json!({"KeyId": key, "Plaintext": base64(&vec![1; length])});
    client.ok(Op::Encrypt, encrypt(1));
    let largest = client.ok(Op::Encrypt, encrypt(4096));
    let opened = client.ok(Op::Decrypt, json!({"CiphertextBlob": largest["CiphertextBlob"]}));
    assert_eq!(bytes(&opened["Plaintext"]).len(), 4096);
    let context = json!({"k": "v".repeat(9000)});
    for (op, request) in [
        (Op::Encrypt, encrypt(0)),
        (Op::Encrypt, encrypt(4097)),
        (Op::Decrypt, json!({"CiphertextBlob": ""})),
        (Op::Decrypt, json!({})),
        (Op::Decrypt, json!({"CiphertextBlob": base64(&[0; 6145])})),
        (Op::GenerateDataKey, json!({"KeyId": key})),
        (Op::GenerateDataKey, json!({"KeyId": key, "KeySpec": "AES_256", "NumberOfBytes": 32})),
        (Op::GenerateDataKey, json!({"KeyId": key, "KeySpec": "AES_512"})),
        (Op::GenerateDataKey, json!({"KeyId": key, "NumberOfBytes": 1025})),
        (Op::GenerateDataKey, json!({"KeySpec": "AES_256"})),
        (Op::GenerateDataKey, json!({"KeyId": key, "KeySpec": "AES_256", "EncryptionContext": context})),
    ] {
        let (status, error, _) = client.refused(op, request.clone());
        assert_eq!((status, error.as_str()), (400, "ValidationException"), "{} {request}", op.name());
    }
    assert_eq!(
        client.refused(Op::Decrypt, json!({"CiphertextBlob": base64(&[0; 6144])})).1,
        "InvalidCiphertextException"
    );
    for request in [
        json!([]),
        json!({"CiphertextBlob": "%%%"}),
        json!({"CiphertextBlob": 7}),
        json!({"CiphertextBlob": "aaaa", "EncryptionContext": {"n": 1}}),
    ] {
        assert_eq!(client.refused(Op::Decrypt, request.clone()).1, "SerializationException", "{request}");
    }
}

#[test]
fn key_lengths_and_freshness() {
    let kms = FakeKms::start();
    let mut client = Client::new(&kms);
    for (spec, length) in [
        (json!({"KeySpec": "AES_128"}), 16),
        (json!({"KeySpec": "AES_256"}), 32),
        (json!({"NumberOfBytes": 1}), 1),
        (json!({"NumberOfBytes": 1024}), 1024),
    ] {
        let mut request = spec.clone();
        request["KeyId"] = kms.key_id().into();
        let (one, two) =
            (client.ok(Op::GenerateDataKey, request.clone()), client.ok(Op::GenerateDataKey, request));
        assert_eq!(bytes(&one["Plaintext"]).len(), length, "{spec}");
        assert_ne!(one["CiphertextBlob"], two["CiphertextBlob"]);
        assert!(length == 1 || one["Plaintext"] != two["Plaintext"]);
    }
}

#[test]
fn re_encrypt_moves_a_key_to_another_key_and_context() {
    let kms = FakeKms::start();
    let second = kms.create_key();
    let mut client = Client::new(&kms);
    let from = json!({"v": "1"});
    let made = client.ok(
        Op::GenerateDataKey,
        json!({"KeyId": kms.key_arn(), "KeySpec": "AES_256", "EncryptionContext": from}),
    );
    let to = json!({"v": "2"});
    let request = json!({
        "CiphertextBlob": made["CiphertextBlob"], "SourceEncryptionContext": from, "SourceKeyId": kms.key_arn(),
        "DestinationKeyId": second, "DestinationEncryptionContext": to,
    });
    let moved = client.ok(Op::ReEncrypt, request.clone());
    assert_eq!(moved["KeyId"], second);
    assert_eq!(moved["SourceKeyId"], kms.key_arn());
    assert_eq!(moved["SourceKeyMaterialId"], made["KeyMaterialId"]);
    assert_eq!(moved["DestinationKeyMaterialId"], kms.key_material_id(&second));
    assert!(moved.get("Plaintext").is_none());

    let open = json!({"CiphertextBlob": moved["CiphertextBlob"], "EncryptionContext": to, "KeyId": second});
    assert_eq!(client.ok(Op::Decrypt, open)["Plaintext"], made["Plaintext"]);
    let wrong = json!({"CiphertextBlob": moved["CiphertextBlob"], "EncryptionContext": from});
    assert_eq!(client.refused(Op::Decrypt, wrong).1, "InvalidCiphertextException");

    let changed = |name: &str, value: serde_json::Value| {
        let mut request = request.clone();
        request[name] = value;
        request
    };
    for (request, error) in [
        (changed("SourceEncryptionContext", json!({})), "InvalidCiphertextException"),
        (changed("SourceKeyId", second.as_str().into()), "IncorrectKeyException"),
        (changed("DestinationKeyId", "alias/none".into()), "NotFoundException"),
        (changed("DestinationKeyId", json!(null)), "ValidationException"),
    ] {
        assert_eq!(client.refused(Op::ReEncrypt, request.clone()).1, error, "{request}");
    }
}

#[test]
fn a_dry_run_does_nothing_but_check() {
    let kms = FakeKms::start();
    let mut client = Client::new(&kms);
    let request = json!({"KeyId": kms.key_id(), "KeySpec": "AES_256", "DryRun": true});
    let (status, error, _) = client.refused(Op::GenerateDataKey, request);
    assert_eq!((status, error.as_str()), (412, "DryRunOperationException"));
    let request = json!({"CiphertextBlob": base64(b"no blob"), "DryRun": true});
    assert_eq!(client.refused(Op::Decrypt, request).1, "InvalidCiphertextException");
}
