//! What the operations of the fake key service do. Pure; behind the server's lock.
//!
//! Members and errors follow the API reference (<https://docs.aws.amazon.com/kms/latest/APIReference/>).

use super::ACCOUNT;
use super::args::Args;
use super::auth::Caller;
use super::blob::{Blob, Context, seal};
use super::clock::epoch_seconds;
use super::error::ApiError;
use super::keyring::{Key, KeyState, Keyring, key_arn};
use super::op::Op;
use crate::sys::random_bytes;
use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::{Value, json};

/// Limits of the API reference.
const MAX_BLOB: usize = 6144;
const MAX_PLAINTEXT: usize = 4096;
const MAX_ON_DEMAND_ROTATIONS: usize = 25;

type Outcome = Result<Value, ApiError>;

pub(super) fn execute(ring: &mut Keyring, caller: &Caller, op: Op, body: &Value) -> Outcome {
    let args = Args::new(body)?;
    let region = caller.region.as_str();
    match op {
        Op::GenerateDataKey => generate_data_key(ring, region, &args),
        Op::Decrypt => decrypt(ring, region, &args),
        Op::Encrypt => encrypt(ring, region, &args),
        Op::ReEncrypt => re_encrypt(ring, region, &args),
        Op::DescribeKey => {
            Ok(json!({"KeyMetadata": metadata(ring.find(args.key("KeyId")?, region)?, region)}))
        }
        Op::ListKeyRotations => list_key_rotations(ring, region, &args),
        Op::RotateKeyOnDemand => rotate(ring, region, &args),
        Op::CreateKey => {
            let id = ring.create(region, args.flag("MultiRegion")?);
            Ok(json!({"KeyMetadata": metadata(ring.by_id(&id), region)}))
        }
        Op::CreateAlias | Op::UpdateAlias => alias(ring, region, op, &args),
        Op::EnableKey | Op::DisableKey => {
            let key = own_key(ring, region, &args)?;
            if !matches!(key.state(region), KeyState::Enabled | KeyState::Disabled) {
                key.state(region).check(&key_arn(region, &key.id))?;
            }
            let id = key.id.clone();
            let state = if op == Op::EnableKey { KeyState::Enabled } else { KeyState::Disabled };
            ring.set_state(&id, region, state);
            Ok(Value::Null)
        }
        Op::ScheduleKeyDeletion | Op::CancelKeyDeletion => deletion(ring, region, op, &args),
    }
}

fn generate_data_key(ring: &Keyring, region: &str, args: &Args) -> Outcome {
    let reference = args.key("KeyId")?;
    let spec = args.only("KeySpec", &["AES_256", "AES_128"])?;
    let length = match (spec, args.number("NumberOfBytes", 1..=1024)?) {
        (Some("AES_128"), None) => 16,
        (Some(_), None) => 32,
        (None, Some(length)) => usize::try_from(length).expect("at most 1024"),
        _ => return Err(ApiError::validation("Please specify either number of bytes or key spec.")),
    };
    let context = args.context("EncryptionContext")?;
    let key = usable(ring.find(reference, region)?, region)?;
    finish_dry_run(args)?;
    let plaintext: Vec<u8> = std::iter::repeat_with(random_bytes::<32>).flatten().take(length).collect();
    Ok(json!({
        "CiphertextBlob": wrap(key, &context, &plaintext),
        "Plaintext": BASE64_STANDARD.encode(plaintext),
        "KeyId": key_arn(region, &key.id),
        "KeyMaterialId": key.current().id_text(),
    }))
}

fn encrypt(ring: &Keyring, region: &str, args: &Args) -> Outcome {
    let reference = args.key("KeyId")?;
    let plaintext = args.bytes("Plaintext", MAX_PLAINTEXT)?;
    algorithm(args, "EncryptionAlgorithm")?;
    let context = args.context("EncryptionContext")?;
    let key = usable(ring.find(reference, region)?, region)?;
    finish_dry_run(args)?;
    Ok(json!({
        "CiphertextBlob": wrap(key, &context, &plaintext),
        "KeyId": key_arn(region, &key.id),
        "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
    }))
}

fn decrypt(ring: &Keyring, region: &str, args: &Args) -> Outcome {
    let blob = args.bytes("CiphertextBlob", MAX_BLOB)?;
    algorithm(args, "EncryptionAlgorithm")?;
    let context = args.context("EncryptionContext")?;
    let opened = unwrap(ring, region, &blob, args.text("KeyId", 2048)?, &context)?;
    finish_dry_run(args)?;
    Ok(json!({
        "Plaintext": BASE64_STANDARD.encode(opened.plaintext),
        "KeyId": key_arn(region, &opened.key.id),
        "KeyMaterialId": opened.material_id,
        "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
    }))
}

fn re_encrypt(ring: &Keyring, region: &str, args: &Args) -> Outcome {
    let blob = args.bytes("CiphertextBlob", MAX_BLOB)?;
    let destination = args.key("DestinationKeyId")?;
    algorithm(args, "SourceEncryptionAlgorithm")?;
    algorithm(args, "DestinationEncryptionAlgorithm")?;
    let from = args.context("SourceEncryptionContext")?;
    let to = args.context("DestinationEncryptionContext")?;
    let opened = unwrap(ring, region, &blob, args.text("SourceKeyId", 2048)?, &from)?;
    let key = usable(ring.find(destination, region)?, region)?;
    finish_dry_run(args)?;
    Ok(json!({
        "CiphertextBlob": wrap(key, &to, &opened.plaintext),
        "SourceKeyId": key_arn(region, &opened.key.id),
        "SourceKeyMaterialId": opened.material_id,
        "SourceEncryptionAlgorithm": "SYMMETRIC_DEFAULT",
        "KeyId": key_arn(region, &key.id),
        "DestinationKeyMaterialId": key.current().id_text(),
        "DestinationEncryptionAlgorithm": "SYMMETRIC_DEFAULT",
    }))
}

fn list_key_rotations(ring: &Keyring, region: &str, args: &Args) -> Outcome {
    let key = own_key(ring, region, args)?;
    if matches!(key.state(region), KeyState::PendingImport | KeyState::Unavailable) {
        key.state(region).check(&key_arn(region, &key.id))?;
    }
    let limit = args.number("Limit", 1..=1000)?.unwrap_or(100);
    let all = args.only("IncludeKeyMaterial", &["ALL_KEY_MATERIAL", "ROTATIONS_ONLY"])?;
    // The first material came with the key, not by a rotation.
    let skipped = usize::from(all != Some("ALL_KEY_MATERIAL"));
    let start = match args.text("Marker", 1024)? {
        None => 0,
        Some(marker) => {
            let text = "The Marker is not valid";
            marker.parse::<usize>().map_err(|_| ApiError::new("InvalidMarkerException", text))?
        }
    };
    let listed: Vec<_> = key.materials.iter().enumerate().skip(skipped).collect();
    let end = listed.len().min(start.saturating_add(usize::try_from(limit).expect("at most 1000")));
    let rotations: Vec<Value> = listed[start.min(end)..end]
        .iter()
        .map(|(index, material)| {
            let current = index + 1 == key.materials.len();
            let mut entry = json!({
                "KeyId": key.id,
                "KeyMaterialId": material.id_text(),
                "KeyMaterialState": if current { "CURRENT" } else { "NON_CURRENT" },
            });
            if *index > 0 {
                entry["RotationDate"] = epoch_seconds(material.made_at).into();
                entry["RotationType"] = "ON_DEMAND".into();
            }
            entry
        })
        .collect();
    let mut answer = json!({"Rotations": rotations, "Truncated": end < listed.len()});
    if end < listed.len() {
        answer["NextMarker"] = end.to_string().into();
    }
    Ok(answer)
}

fn rotate(ring: &mut Keyring, region: &str, args: &Args) -> Outcome {
    let key = usable(own_key(ring, region, args)?, region)?;
    let arn = key_arn(region, &key.id);
    if key.home != region {
        let text = "You can rotate a multi-Region key only where its primary key is.";
        return Err(ApiError::new("UnsupportedOperationException", text));
    }
    if key.materials.len() > MAX_ON_DEMAND_ROTATIONS {
        let text = format!("{arn} has reached the maximum number of on-demand rotations.");
        return Err(ApiError::new("LimitExceededException", text));
    }
    let id = key.id.clone();
    ring.rotate(&id);
    Ok(json!({"KeyId": arn}))
}

fn alias(ring: &mut Keyring, region: &str, op: Op, args: &Args) -> Outcome {
    let alias = args.key("AliasName")?;
    let id = ring.find(args.key("TargetKeyId")?, region)?.id.clone();
    let arn = format!("arn:aws:kms:{region}:{ACCOUNT}:{alias}");
    if !alias.starts_with("alias/") || alias.len() == "alias/".len() {
        return Err(ApiError::new(
            "InvalidAliasNameException",
            "Alias must start with the prefix \"alias/\".",
        ));
    }
    match (op, ring.has_alias(region, alias)) {
        (Op::CreateAlias, true) => {
            let text = format!("An alias with the name {arn} already exists");
            Err(ApiError::new("AlreadyExistsException", text))
        }
        (Op::UpdateAlias, false) => {
            Err(ApiError::new("NotFoundException", format!("Alias {arn} is not found.")))
        }
        _ => {
            ring.point_alias(region, alias, &id);
            Ok(Value::Null)
        }
    }
}

fn deletion(ring: &mut Keyring, region: &str, op: Op, args: &Args) -> Outcome {
    let key = own_key(ring, region, args)?;
    let (id, arn, state) = (key.id.clone(), key_arn(region, &key.id), key.state(region));
    let pending = state == KeyState::PendingDeletion;
    if op == Op::CancelKeyDeletion {
        if !pending {
            return Err(ApiError::invalid_state(&arn, "not pending deletion"));
        }
        ring.set_state(&id, region, KeyState::Disabled);
        return Ok(json!({"KeyId": arn}));
    }
    let days = args.number("PendingWindowInDays", 7..=30)?.unwrap_or(30);
    if pending {
        state.check(&arn)?;
    }
    ring.set_state(&id, region, KeyState::PendingDeletion);
    let deletion_at = ring.by_id(&id).deletion_at.map(epoch_seconds);
    Ok(json!({
        "KeyId": arn,
        "KeyState": KeyState::PendingDeletion.name(),
        "PendingWindowInDays": days,
        "DeletionDate": deletion_at,
    }))
}

fn metadata(key: &Key, region: &str) -> Value {
    let state = key.state(region);
    let arn = key_arn(region, &key.id);
    let mut metadata = json!({
        "AWSAccountId": ACCOUNT,
        "KeyId": key.id,
        "Arn": arn,
        "CreationDate": epoch_seconds(key.made_at),
        "Enabled": state == KeyState::Enabled,
        "Description": "",
        "KeyUsage": "ENCRYPT_DECRYPT",
        "KeyState": state.name(),
        "Origin": "AWS_KMS",
        "KeyManager": "CUSTOMER",
        "CustomerMasterKeySpec": "SYMMETRIC_DEFAULT",
        "KeySpec": "SYMMETRIC_DEFAULT",
        "EncryptionAlgorithms": ["SYMMETRIC_DEFAULT"],
        "MultiRegion": key.is_multi_region(),
        "CurrentKeyMaterialId": key.current().id_text(),
    });
    if let Some(time) = key.deletion_at {
        metadata["DeletionDate"] = epoch_seconds(time).into();
    }
    if key.is_multi_region() {
        let place = |region: &str| json!({"Arn": key_arn(region, &key.id), "Region": region});
        let replicas = key.states.keys().filter(|region| **region != key.home);
        metadata["MultiRegionConfiguration"] = json!({
            "MultiRegionKeyType": if key.home == region { "PRIMARY" } else { "REPLICA" },
            "PrimaryKey": place(&key.home),
            "ReplicaKeys": replicas.map(|region| place(region)).collect::<Vec<_>>(),
        });
    }
    metadata
}

struct Opened<'a> {
    key: &'a Key,
    material_id: String,
    plaintext: Vec<u8>,
}

/// Opens a wrapped key, with the key it names, which must be `expected` if that is given.
fn unwrap<'a>(
    ring: &'a Keyring,
    region: &str,
    blob: &[u8],
    expected: Option<&str>,
    context: &Context,
) -> Result<Opened<'a>, ApiError> {
    let expected = expected.map(|reference| ring.find(reference, region)).transpose()?;
    let blob = Blob::parse(blob).ok_or_else(ApiError::invalid_ciphertext)?;
    if let Some(expected) = expected {
        usable(expected, region)?;
        if expected.id != blob.key_id {
            return Err(ApiError::incorrect_key());
        }
    }
    let key = ring.in_region(blob.key_id, region).ok_or_else(ApiError::foreign_ciphertext)?;
    usable(key, region)?;
    let material = key.materials.iter().find(|material| material.id == blob.material_id);
    let material = material.ok_or_else(ApiError::invalid_ciphertext)?;
    let plaintext = blob.open(&material.secret, context).ok_or_else(ApiError::invalid_ciphertext)?;
    Ok(Opened { key, material_id: material.id_text(), plaintext })
}

fn wrap(key: &Key, context: &Context, plaintext: &[u8]) -> String {
    let material = key.current();
    BASE64_STANDARD.encode(seal(&key.id, &material.id, &material.secret, context, plaintext))
}

fn usable<'a>(key: &'a Key, region: &str) -> Result<&'a Key, ApiError> {
    key.state(region).check(&key_arn(region, &key.id))?;
    Ok(key)
}

/// The key that `KeyId` names, for operations that take no alias.
fn own_key<'a>(ring: &'a Keyring, region: &str, args: &Args) -> Result<&'a Key, ApiError> {
    let reference = args.key("KeyId")?;
    if reference.contains("alias/") {
        return Err(ApiError::new("NotFoundException", format!("Invalid keyId '{reference}'")));
    }
    ring.find(reference, region)
}

fn algorithm(args: &Args, name: &str) -> Result<(), ApiError> {
    match args.only(name, &["SYMMETRIC_DEFAULT", "RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256", "SM2PKE"])? {
        None | Some("SYMMETRIC_DEFAULT") => Ok(()),
        Some(other) => Err(ApiError::new(
            "InvalidKeyUsageException",
            format!("Algorithm {other} is incompatible with key spec SYMMETRIC_DEFAULT."),
        )),
    }
}

/// Ends a dry run that went well, which is an error too.
fn finish_dry_run(args: &Args) -> Result<(), ApiError> {
    if args.flag("DryRun")? { Err(ApiError::dry_run()) } else { Ok(()) }
}
