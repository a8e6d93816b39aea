//! Keys: their names, states, materials and regions.

use super::client::{Client, base64};
use crate::kms::{ACCOUNT, FakeKms, KeyState, Op};
use serde_json::{Value, json};

#[test]
fn a_key_has_four_names() {
    let kms = FakeKms::start();
    let mut client = Client::new(&kms);
    let alias_arn = format!("arn:aws:kms:eu-central-1:{ACCOUNT}:alias/hyperion");
    for name in [kms.key_id(), &kms.key_arn(), "alias/hyperion", &alias_arn] {
        let answer = client.ok(Op::DescribeKey, json!({"KeyId": name}));
        assert_eq!(answer["KeyMetadata"]["Arn"], kms.key_arn(), "{name}");
        let made = client.ok(Op::GenerateDataKey, json!({"KeyId": name, "KeySpec": "AES_256"}));
        assert_eq!(made["KeyId"], kms.key_arn(), "{name}");
    }
    let unknown = "1234abcd-12ab-34cd-56ef-1234567890ab";
    for (name, error, text) in [
        (
            unknown.to_owned(),
            "NotFoundException",
            format!("Key 'arn:aws:kms:eu-central-1:{ACCOUNT}:key/{unknown}' does not exist"),
        ),
        (
            "alias/other".into(),
            "NotFoundException",
            format!("Alias arn:aws:kms:eu-central-1:{ACCOUNT}:alias/other is not found."),
        ),
        ("nonsense".into(), "NotFoundException", "Invalid keyId 'nonsense'".into()),
        (
            kms.key_arn().replace("eu-central-1", "eu-west-1"),
            "NotFoundException",
            "Invalid arn eu-west-1".into(),
        ),
        (kms.key_arn().replace(ACCOUNT, "444455556666"), "NotFoundException", "does not exist".into()),
        ("arn:aws:kms:eu-central-1".into(), "InvalidArnException", "Invalid arn".into()),
        (kms.key_arn().replace(":kms:", ":s3:"), "InvalidArnException", "Invalid arn".into()),
    ] {
        let refused = client.refused(Op::GenerateDataKey, json!({"KeyId": name, "KeySpec": "AES_256"}));
        assert_eq!((refused.0, refused.1.as_str()), (400, error), "{name}");
        assert!(refused.2.contains(&text), "{refused:?}");
    }
}

#[test]
fn only_an_enabled_key_works() {
    let kms = FakeKms::start();
    let mut client = Client::new(&kms);
    let second = kms.create_key();
    let made = client.ok(Op::GenerateDataKey, json!({"KeyId": kms.key_arn(), "KeySpec": "AES_256"}));
    let blob = &made["CiphertextBlob"];
    let moved = client.ok(Op::Encrypt, json!({"KeyId": second, "Plaintext": base64(b"x")}));
    let calls = [
        (Op::GenerateDataKey, json!({"KeyId": kms.key_arn(), "KeySpec": "AES_256"})),
        (Op::Decrypt, json!({"CiphertextBlob": blob})),
        (Op::Decrypt, json!({"CiphertextBlob": blob, "KeyId": kms.key_arn()})),
        (Op::Encrypt, json!({"KeyId": kms.key_arn(), "Plaintext": base64(b"x")})),
        (Op::ReEncrypt, json!({"CiphertextBlob": blob, "DestinationKeyId": second})),
        (
            Op::ReEncrypt,
            json!({"CiphertextBlob": moved["CiphertextBlob"], "DestinationKeyId": kms.key_arn()}),
        ),
        (Op::RotateKeyOnDemand, json!({"KeyId": kms.key_arn()})),
    ];
    for (state, error, text) in [
        (KeyState::Disabled, "DisabledException", "is disabled."),
        (KeyState::PendingDeletion, "KMSInvalidStateException", "is pending deletion."),
        (KeyState::PendingImport, "KMSInvalidStateException", "is pending import."),
        (KeyState::Unavailable, "KMSInvalidStateException", "is unavailable."),
    ] {
        kms.set_state(&kms.key_arn(), state);
        for (op, request) in &calls {
            let refused = client.refused(*op, request.clone());
            assert_eq!((refused.0, refused.1.as_str()), (400, error), "{} {state:?}", op.name());
            assert_eq!(refused.2, format!("{} {text}", kms.key_arn()), "{}", op.name());
        }
        let metadata = client.ok(Op::DescribeKey, json!({"KeyId": kms.key_arn()}))["KeyMetadata"].clone();
        assert_eq!((&metadata["KeyState"], &metadata["Enabled"]), (&json!(state.name()), &json!(false)));
        assert_eq!(metadata.get("DeletionDate").is_some(), state == KeyState::PendingDeletion);
    }
    kms.set_state(&kms.key_arn(), KeyState::Enabled);
    for (op, request) in &calls {
        client.ok(*op, request.clone());
    }
    kms.delete_key(&kms.key_arn());
    assert_eq!(client.refused(calls[0].0, calls[0].1.clone()).1, "NotFoundException");
    assert_eq!(client.refused(calls[1].0, calls[1].1.clone()).1, "AccessDeniedException");
    assert_eq!(client.refused(Op::DescribeKey, json!({"KeyId": "alias/hyperion"})).1, "NotFoundException");
}

#[test]
fn rotation_keeps_old_blobs_open() {
    let kms = FakeKms::start();
    let mut client = Client::new(&kms);
    let generate = json!({"KeyId": "alias/hyperion", "KeySpec": "AES_256"});
    let mut made = vec![client.ok(Op::GenerateDataKey, generate.clone())];
    for round in 0..3 {
        let id = if round == 0 {
            assert_eq!(
                client.ok(Op::RotateKeyOnDemand, json!({"KeyId": kms.key_id()}))["KeyId"],
                kms.key_arn()
            );
            kms.key_material_id(kms.key_id())
        } else {
            kms.rotate(&kms.key_arn())
        };
        made.push(client.ok(Op::GenerateDataKey, generate.clone()));
        assert_eq!(made.last().unwrap()["KeyMaterialId"], id);
        let metadata = client.ok(Op::DescribeKey, json!({"KeyId": kms.key_id()}))["KeyMetadata"].clone();
        assert_eq!(metadata["CurrentKeyMaterialId"], id);
    }
    for one in &made {
        let opened =
            client.ok(Op::Decrypt, json!({"CiphertextBlob": one["CiphertextBlob"], "KeyId": kms.key_id()}));
        assert_eq!(
            (&opened["Plaintext"], &opened["KeyMaterialId"]),
            (&one["Plaintext"], &one["KeyMaterialId"])
        );
    }
    // ReEncrypt under the same key moves a blob to the current material.
    let moved = client.ok(
        Op::ReEncrypt,
        json!({"CiphertextBlob": made[0]["CiphertextBlob"], "DestinationKeyId": "alias/hyperion"}),
    );
    assert_eq!(moved["SourceKeyMaterialId"], made[0]["KeyMaterialId"]);
    assert_eq!(moved["DestinationKeyMaterialId"], made[3]["KeyMaterialId"]);

    let list = |client: &mut Client, more: Value| {
        let mut request = json!({"KeyId": kms.key_id()});
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        client.ok(Op::ListKeyRotations, request)
    };
    let ids = |answer: &Value| -> Vec<Value> {
        answer["Rotations"].as_array().unwrap().iter().map(|entry| entry["KeyMaterialId"].clone()).collect()
    };
    let expected: Vec<Value> = made.iter().map(|one| one["KeyMaterialId"].clone()).collect();
    let rotations = list(&mut client, json!({}));
    assert_eq!(ids(&rotations), expected[1..]);
    assert_eq!(rotations["Truncated"], false);
    for (index, entry) in rotations["Rotations"].as_array().unwrap().iter().enumerate() {
        assert_eq!(entry["KeyMaterialState"], if index == 2 { "CURRENT" } else { "NON_CURRENT" });
        assert_eq!((&entry["RotationType"], &entry["KeyId"]), (&json!("ON_DEMAND"), &json!(kms.key_id())));
        assert!(entry["RotationDate"].as_f64().unwrap() > 1.7e9);
    }
    let all = list(&mut client, json!({"IncludeKeyMaterial": "ALL_KEY_MATERIAL"}));
    assert_eq!(ids(&all), expected);
    assert!(all["Rotations"][0].get("RotationDate").is_none());
    let first = list(&mut client, json!({"Limit": 2}));
    assert_eq!((ids(&first), &first["Truncated"]), (expected[1..3].to_vec(), &json!(true)));
    let rest = list(&mut client, json!({"Limit": 2, "Marker": first["NextMarker"]}));
    assert_eq!((ids(&rest), &rest["Truncated"]), (expected[3..].to_vec(), &json!(false)));

    let alias = json!({"KeyId": "alias/hyperion"});
    assert_eq!(client.refused(Op::ListKeyRotations, alias.clone()).1, "NotFoundException");
    assert_eq!(client.refused(Op::RotateKeyOnDemand, alias).1, "NotFoundException");
}

#[test]
fn on_demand_rotations_are_limited() {
    let kms = FakeKms::start();
    let mut client = Client::new(&kms);
    for _ in 0..25 {
        client.ok(Op::RotateKeyOnDemand, json!({"KeyId": kms.key_id()}));
    }
    assert_eq!(
        client.refused(Op::RotateKeyOnDemand, json!({"KeyId": kms.key_id()})).1,
        "LimitExceededException"
    );
}

#[test]
fn keys_and_aliases_over_the_wire() {
    let kms = FakeKms::start();
    let mut client = Client::new(&kms);
    let made = client.ok(Op::CreateKey, json!({}))["KeyMetadata"].clone();
    let (id, arn) = (made["KeyId"].as_str().unwrap(), made["Arn"].as_str().unwrap());
    assert_eq!(made["KeyState"], "Enabled");
    let named = |target: &str| json!({"AliasName": "alias/app", "TargetKeyId": target});
    assert_eq!(client.refused(Op::UpdateAlias, named(id)).1, "NotFoundException");
    client.ok(Op::CreateAlias, named(id));
    assert_eq!(client.refused(Op::CreateAlias, named(id)).1, "AlreadyExistsException");
    let mut describe = |name: &str| client.ok(Op::DescribeKey, json!({"KeyId": name}))["KeyMetadata"].clone();
    assert_eq!(describe("alias/app")["Arn"], arn);
    client.ok(Op::UpdateAlias, named(kms.key_id()));
    let mut describe = |name: &str| client.ok(Op::DescribeKey, json!({"KeyId": name}))["KeyMetadata"].clone();
    assert_eq!(describe("alias/app")["Arn"], kms.key_arn());
    kms.create_alias("alias/app", arn);
    assert_eq!(describe("alias/app")["Arn"], arn);

    let key = json!({"KeyId": id});
    for (op, state) in [
        (Op::DisableKey, "Disabled"),
        (Op::EnableKey, "Enabled"),
        (Op::ScheduleKeyDeletion, "PendingDeletion"),
        (Op::CancelKeyDeletion, "Disabled"),
    ] {
        client.ok(op, key.clone());
        assert_eq!(client.ok(Op::DescribeKey, key.clone())["KeyMetadata"]["KeyState"], state);
    }
    assert_eq!(client.refused(Op::CancelKeyDeletion, key.clone()).1, "KMSInvalidStateException");
    client.ok(Op::ScheduleKeyDeletion, key.clone());
    assert_eq!(client.refused(Op::ScheduleKeyDeletion, key.clone()).1, "KMSInvalidStateException");
    assert_eq!(client.refused(Op::EnableKey, key).1, "KMSInvalidStateException");
}

#[test]
fn a_multi_region_key_opens_in_its_other_region() {
    let kms = FakeKms::start();
    let arn = kms.create_multi_region_key();
    let id = arn.rsplit('/').next().unwrap();
    assert!(id.starts_with("mrk-"), "{arn}");
    let mut here = Client::new(&kms);
    let mut there = Client::new(&kms);
    there.region = "eu-west-1".into();
    let made = here.ok(Op::GenerateDataKey, json!({"KeyId": id, "KeySpec": "AES_256"}));
    let open = json!({"CiphertextBlob": made["CiphertextBlob"]});
    // A region that has no key is none here.
    assert_eq!(there.refused(Op::Decrypt, open.clone()).1, "InvalidSignatureException");

    let replica = kms.replicate(&arn, "eu-west-1");
    assert_eq!(replica, arn.replace("eu-central-1", "eu-west-1"));
    let opened = there.ok(Op::Decrypt, open.clone());
    assert_eq!((&opened["KeyId"], &opened["Plaintext"]), (&json!(replica), &made["Plaintext"]));
    assert_eq!(
        there.refused(Op::Decrypt, json!({"CiphertextBlob": made["CiphertextBlob"], "KeyId": arn})).1,
        "NotFoundException"
    );
    let metadata = there.ok(Op::DescribeKey, json!({"KeyId": id}))["KeyMetadata"].clone();
    assert_eq!(metadata["MultiRegionConfiguration"]["MultiRegionKeyType"], "REPLICA");

    // States are each region's own, rotation is the key's.
    kms.set_state(&arn, KeyState::Disabled);
    assert_eq!(here.refused(Op::Decrypt, open.clone()).1, "DisabledException");
    there.ok(Op::Decrypt, open.clone());
    kms.set_state(&arn, KeyState::Enabled);
    assert_eq!(there.refused(Op::RotateKeyOnDemand, json!({"KeyId": id})).1, "UnsupportedOperationException");
    let material = kms.rotate(&arn);
    assert_eq!(
        there.ok(Op::GenerateDataKey, json!({"KeyId": id, "KeySpec": "AES_256"}))["KeyMaterialId"],
        material
    );

    // A key of one region stays there.
    let single = here.ok(Op::GenerateDataKey, json!({"KeyId": kms.key_id(), "KeySpec": "AES_256"}));
    let open = json!({"CiphertextBlob": single["CiphertextBlob"]});
    assert_eq!(there.refused(Op::Decrypt, open).1, "AccessDeniedException");
}
