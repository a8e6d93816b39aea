//! The members of a request's JSON body, checked as AWS checks them. Pure.

use super::blob::Context;
use super::error::ApiError;
use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::{Map, Value};

/// Of an encryption context, names and values together; real requests stay far below.
const MAX_CONTEXT: usize = 8192;

pub(super) struct Args<'a>(&'a Map<String, Value>);

impl<'a> Args<'a> {
    pub fn new(body: &'a Value) -> Result<Self, ApiError> {
        body.as_object()
            .map(Self)
            .ok_or_else(|| ApiError::serialization("Start of structure or map expected"))
    }

    /// A text of 1 to `max` bytes.
    pub fn text(&self, name: &str, max: usize) -> Result<Option<&'a str>, ApiError> {
        let Some(value) = self.member(name) else { return Ok(None) };
        let text = value
            .as_str()
            .ok_or_else(|| ApiError::serialization(format!("{name} cannot be converted to String")))?;
        length(name, text.len(), max)?;
        Ok(Some(text))
    }

    /// The name of a key: required where it is asked for with this.
    pub fn key(&self, name: &str) -> Result<&'a str, ApiError> {
        self.text(name, 2048)?.ok_or_else(|| ApiError::constraint(&member_name(name), "not be null"))
    }

    /// A member that may only have the value given here.
    pub fn only(&self, name: &str, allowed: &[&str]) -> Result<Option<&'a str>, ApiError> {
        let value = self.text(name, 2048)?;
        if value.is_some_and(|value| !allowed.contains(&value)) {
            let rule = format!("satisfy enum value set: [{}]", allowed.join(", "));
            return Err(ApiError::constraint(&member_name(name), &rule));
        }
        Ok(value)
    }

    /// Bytes, required, 1 to `max` of them.
    pub fn bytes(&self, name: &str, max: usize) -> Result<Vec<u8>, ApiError> {
        let value =
            self.member(name).ok_or_else(|| ApiError::constraint(&member_name(name), "not be null"))?;
        let bytes = value
            .as_str()
            .and_then(|text| BASE64_STANDARD.decode(text).ok())
            .ok_or_else(|| ApiError::serialization(format!("{name} is not valid base64")))?;
        length(name, bytes.len(), max)?;
        Ok(bytes)
    }

    pub fn number(
        &self,
        name: &str,
        allowed: std::ops::RangeInclusive<u64>,
    ) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.member(name) else { return Ok(None) };
        let number = value
            .as_u64()
            .ok_or_else(|| ApiError::serialization(format!("{name} cannot be converted to Integer")))?;
        if number < *allowed.start() {
            let rule = format!("have value greater than or equal to {}", allowed.start());
            return Err(ApiError::constraint(&member_name(name), &rule));
        }
        if number > *allowed.end() {
            let rule = format!("have value less than or equal to {}", allowed.end());
            return Err(ApiError::constraint(&member_name(name), &rule));
        }
        Ok(Some(number))
    }

    pub fn flag(&self, name: &str) -> Result<bool, ApiError> {
        let Some(value) = self.member(name) else { return Ok(false) };
        value
            .as_bool()
            .ok_or_else(|| ApiError::serialization(format!("{name} cannot be converted to Boolean")))
    }

    /// An encryption context; none is the same as an empty one.
    pub fn context(&self, name: &str) -> Result<Context, ApiError> {
        let Some(value) = self.member(name) else { return Ok(Context::new()) };
        let pairs = value.as_object().ok_or_else(|| ApiError::serialization(format!("{name} is no map")))?;
        let mut context = Context::new();
        for (key, value) in pairs {
            let value = value
                .as_str()
                .ok_or_else(|| ApiError::serialization(format!("a value of {name} is no String")))?;
            context.insert(key.clone(), value.into());
        }
        if context.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() > MAX_CONTEXT {
            return Err(ApiError::validation("EncryptionContext is too long"));
        }
        Ok(context)
    }

    fn member(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }
}

fn length(name: &str, length: usize, max: usize) -> Result<(), ApiError> {
    if length == 0 {
        return Err(ApiError::constraint(&member_name(name), "have length greater than or equal to 1"));
    }
    if length > max {
        let rule = format!("have length less than or equal to {max}");
        return Err(ApiError::constraint(&member_name(name), &rule));
    }
    Ok(())
}

/// AWS names members in violations with a small first letter.
fn member_name(name: &str) -> String {
    let (first, rest) = name.split_at(1);
    first.to_ascii_lowercase() + rest
}
