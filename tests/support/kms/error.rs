//! What the fake key service says when it refuses: error types, HTTP statuses and wordings of AWS KMS. Pure.
//!
//! Statuses are those of the API reference (<https://docs.aws.amazon.com/kms/latest/APIReference/>), which calls nearly
//! every refusal 400. The trap: the authorization layer spells the text `Message`, the service itself `message`, and
//! InvalidCiphertextException has no text at all; a client that insists on one of them shows nothing.

use super::http::Answer;
use super::op::Op;
use serde_json::{Map, Value};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ApiError {
    pub status: u16,
    pub kind: &'static str,
    pub message: Option<String>,
}

impl ApiError {
    pub fn new(kind: &'static str, message: impl Into<String>) -> Self {
        Self { status: 400, kind, message: Some(message.into()) }
    }

    fn with_status(self, status: u16) -> Self {
        Self { status, ..self }
    }

    pub fn answer(&self) -> Answer {
        let mut body = Map::new();
        body.insert("__type".into(), self.kind.into());
        if let Some(message) = &self.message {
            let name = if self.kind == "AccessDeniedException" { "Message" } else { "message" };
            body.insert(name.into(), message.as_str().into());
        }
        Answer::json(self.status, &Value::Object(body))
    }

    pub fn access_denied(identity: &str, op: Op, arn: &str) -> Self {
        let action = op.action();
        Self::new(
            "AccessDeniedException",
            format!(
                "User: {identity} is not authorized to perform: {action} on resource: {arn} \
                 because no identity-based policy allows the {action} action"
            ),
        )
    }

    /// A wrapped key of a key this account does not have.
    pub fn foreign_ciphertext() -> Self {
        Self::new(
            "AccessDeniedException",
            "The ciphertext refers to a customer master key that does not exist, does not exist in this region, \
             or you are not allowed to access.",
        )
    }

    pub fn disabled(arn: &str) -> Self {
        Self::new("DisabledException", format!("{arn} is disabled."))
    }

    pub fn invalid_state(arn: &str, state: &str) -> Self {
        Self::new("KMSInvalidStateException", format!("{arn} is {state}."))
    }

    pub fn no_key(arn: &str) -> Self {
        Self::new("NotFoundException", format!("Key '{arn}' does not exist"))
    }

    pub fn invalid_ciphertext() -> Self {
        Self { status: 400, kind: "InvalidCiphertextException", message: None }
    }

    pub fn incorrect_key() -> Self {
        let text = "The key ID in the request does not identify a CMK that can perform this operation.";
        Self::new("IncorrectKeyException", text)
    }

    pub fn throttling() -> Self {
        let text =
            "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls.";
        Self::new("ThrottlingException", text)
    }

    pub fn internal() -> Self {
        Self::new("KMSInternalException", "The request failed because of an internal exception.")
            .with_status(500)
    }

    pub fn dependency_timeout() -> Self {
        let text = "The system timed out while trying to fulfill the request. The request can be retried.";
        Self::new("DependencyTimeoutException", text).with_status(503)
    }

    pub fn key_unavailable() -> Self {
        let text = "The request was rejected because the specified KMS key was not available.";
        Self::new("KeyUnavailableException", text).with_status(500)
    }

    pub fn expired_token() -> Self {
        Self::new("ExpiredTokenException", "The security token included in the request is expired")
    }

    pub fn validation(text: impl Into<String>) -> Self {
        Self::new("ValidationException", text)
    }

    /// A violated constraint in AWS's wording; `rule` as in "have length less than or equal to 6144".
    pub fn constraint(member: &str, rule: &str) -> Self {
        Self::validation(format!(
            "1 validation error detected: Value at '{member}' failed to satisfy constraint: Member must {rule}"
        ))
    }

    pub fn serialization(text: impl Into<String>) -> Self {
        Self::new("SerializationException", text)
    }

    pub fn dry_run() -> Self {
        let text = "The request would have succeeded, but the DryRun option is set.";
        Self::new("DryRunOperationException", text).with_status(412)
    }

    pub fn unknown_operation() -> Self {
        Self { status: 400, kind: "UnknownOperationException", message: None }
    }
}
