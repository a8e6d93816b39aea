//! Faults in what the service says: refusals it would give, and answers that are wrong. Pure; behind the server's lock.

use super::auth::Caller;
use super::blob::Blob;
use super::error::ApiError;
use super::fault::Fault;
use super::http::Answer;
use super::keyring::{Keyring, key_arn};
use super::op::Op;
use super::operations::execute;
use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::Value;

/// A key id no key has.
const OTHER_KEY: &str = "00000000-0000-4000-8000-000000000bad";

/// The refusal a fault stands for, if it is one.
pub(super) fn refusal(
    fault: Fault,
    keyring: &Keyring,
    caller: &Caller,
    op: Op,
    body: &Value,
) -> Option<ApiError> {
    let arn = || arn_meant(keyring, &caller.region, body);
    Some(match fault {
        Fault::Throttling => ApiError::throttling(),
        Fault::KmsInternal => ApiError::internal(),
        Fault::DependencyTimeout => ApiError::dependency_timeout(),
        Fault::KeyUnavailable => ApiError::key_unavailable(),
        Fault::AccessDenied => ApiError::access_denied(&caller.identity, op, &arn()),
        Fault::ExpiredCredentials => ApiError::expired_token(),
        Fault::Disabled => ApiError::disabled(&arn()),
        Fault::PendingDeletion => ApiError::invalid_state(&arn(), "pending deletion"),
        Fault::NotFound => ApiError::no_key(&arn()),
        Fault::InvalidCiphertext => ApiError::invalid_ciphertext(),
        Fault::IncorrectKey => ApiError::incorrect_key(),
        _ => return None,
    })
}

/// Does what is asked, and spoils the answer as the fault wants.
pub(super) fn respond(
    keyring: &mut Keyring,
    caller: &Caller,
    op: Op,
    body: &Value,
    fault: Option<Fault>,
) -> Result<Answer, ApiError> {
    let mut result = execute(keyring, caller, op, body)?;
    match fault {
        Some(Fault::GarbageJson) => return Ok(Answer::garbage()),
        Some(Fault::WrongShape) => {
            if let Some(members) = result.as_object_mut() {
                members.retain(|name, _| {
                    !matches!(name.as_str(), "Plaintext" | "CiphertextBlob" | "KeyId" | "KeyMetadata")
                });
            }
        }
        Some(Fault::ShortKey) => resize_plaintext(&mut result, 16),
        Some(Fault::LongKey) => resize_plaintext(&mut result, 64),
        Some(Fault::OtherKeyId) => {
            let other = key_arn(&caller.region, OTHER_KEY);
            match result.get_mut("KeyMetadata") {
                Some(metadata) => {
                    metadata["Arn"] = other.into();
                    metadata["KeyId"] = OTHER_KEY.into();
                }
                None => result["KeyId"] = other.into(),
            }
        }
        _ => {}
    }
    Ok(if result.is_null() { Answer::empty(200) } else { Answer::json(200, &result) })
}

fn resize_plaintext(result: &mut Value, length: usize) {
    let plaintext = result["Plaintext"].as_str().expect("the fault applies only to answers with a key");
    let mut bytes = BASE64_STANDARD.decode(plaintext).expect("we encoded it");
    bytes.resize(length, 0x5a);
    result["Plaintext"] = BASE64_STANDARD.encode(bytes).into();
}

/// The ARN of the key a request is about, by name or by wrapped key.
fn arn_meant(keyring: &Keyring, region: &str, body: &Value) -> String {
    let text = |name: &str| body.get(name).and_then(Value::as_str);
    let named = ["KeyId", "SourceKeyId"].iter().find_map(|name| text(name));
    if let Some(name) = named {
        return match keyring.find(name, region) {
            Ok(key) => key_arn(region, &key.id),
            Err(_) => name.into(),
        };
    }
    let blob = text("CiphertextBlob").and_then(|blob| BASE64_STANDARD.decode(blob).ok()).unwrap_or_default();
    Blob::parse(&blob).map_or_else(|| "*".into(), |blob| key_arn(region, blob.key_id))
}
