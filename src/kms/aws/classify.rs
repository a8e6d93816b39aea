//! What an error of KMS means: whether to try again, which SQLSTATE, which words. Our own table, since the SDK's retry is off.
//!
//! Runs on the tokio threads of the kms worker; pure but for [`Failure::of`], which takes the SDK's error apart. Codes
//! from the KMS API reference ("Errors" of each operation and "Common errors").
//!
//! The traps it avoids: an unknown code treated as final during an outage (the HTTP status decides, 5xx is the service's
//! own trouble), and a refusal repeated until an account is throttled.

use std::error::Error;

use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kms::operation::RequestId;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use super::endpoint;
use crate::error::{ErrorKind, KmsError};

/// Longest part of a DETAIL that another party wrote, in characters.
const MAX_FOREIGN: usize = 900;

/// What each error of the HTTP client has in its text.
const HTTP_CLIENT: &str = "client error (";

/// An operation, for the words of its errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    GenerateDataKey,
    Decrypt,
    Encrypt,
    ReEncrypt,
    DescribeKey,
}

impl Action {
    fn name(self) -> &'static str {
        match self {
            Self::GenerateDataKey => "GenerateDataKey",
            Self::Decrypt => "Decrypt",
            Self::Encrypt => "Encrypt",
            Self::ReEncrypt => "ReEncrypt",
            Self::DescribeKey => "DescribeKey",
        }
    }

    /// The IAM actions that allow it.
    fn permissions(self) -> &'static str {
        match self {
            Self::GenerateDataKey => "kms:GenerateDataKey",
            Self::Decrypt => "kms:Decrypt",
            Self::Encrypt => "kms:Encrypt",
            Self::ReEncrypt => "kms:ReEncryptFrom and kms:ReEncryptTo",
            Self::DescribeKey => "kms:DescribeKey",
        }
    }
}

/// Where a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Before anything was sent: no region, no credentials, no endpoint.
    Preparation,
    /// On the way: no connection, connection lost.
    Transport,
    /// The time of the SDK's own timer for connections ran out.
    Timer,
    /// The connection was lost within the answer.
    Body,
    /// An answer came that is none of KMS.
    Answer,
    /// KMS answered with an error.
    Service,
}

/// An SDK error's facts.
#[derive(Debug)]
pub(super) struct Failure {
    pub phase: Phase,
    /// KMS's error code, without namespace.
    pub code: Option<String>,
    /// What KMS, or the layer that failed, said.
    pub message: String,
    pub status: Option<u16>,
    pub request_id: Option<String>,
}

impl Failure {
    /// Takes an error of the SDK apart. Texts are those meant for display; never a raw answer, which may hold a key.
    pub(super) fn of<E>(error: &SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        let status = error.raw_response().map(|raw| raw.status().as_u16());
        let request_id = error.request_id().map(str::to_owned);
        let (phase, code, message) = match error {
            SdkError::ServiceError(service) => {
                let meta = service.err().meta();
                // A 5xx without a body of KMS is parsed into an error without code.
                let message = meta.message().map_or_else(String::new, str::to_owned);
                (Phase::Service, meta.code().map(str::to_owned), message)
            }
            SdkError::TimeoutError(_) => (Phase::Timer, None, chain(error)),
            // A body that was read and is no JSON is a ServiceError without code.
            SdkError::ResponseError(_) => (Phase::Body, None, chain(error)),
            SdkError::DispatchFailure(dispatch) => {
                let message = chain(error);
                // Credentials that cannot be had are reported as failed dispatch of kind "other", and so is what the
                // HTTP client does not know to be I/O: a connection closed before the answer, an answer that is no HTTP.
                let phase = if dispatch.is_timeout() {
                    Phase::Timer
                } else if dispatch.is_io() || message.contains(HTTP_CLIENT) {
                    Phase::Transport
                } else {
                    Phase::Preparation
                };
                (phase, None, message)
            }
            _ => (Phase::Preparation, None, chain(error)),
        };
        let code = code.map(|code| code.rsplit('#').next().unwrap_or_default().to_owned());
        Self { phase, code, message: foreign(&message), status, request_id }
    }

    /// Whether other credentials may cure it: what a role or file holds now may be newer than what was used, or there at
    /// all. A source that breaks or times out is asked again by the same session.
    pub(super) fn is_about_credentials(&self) -> bool {
        match self.phase {
            Phase::Preparation => !self.message.contains(endpoint::NOT_TLS) && !self.has_no_source_for_now(),
            _ => self.code.as_deref().is_some_and(|code| STALE_CREDENTIALS.contains(&code)),
        }
    }

    /// Nothing says so by type: a provider of credentials that times out or breaks, against none that has any, or one
    /// that says no (STS to a role that may not be assumed).
    fn has_no_source_for_now(&self) -> bool {
        if ["AccessDenied", "not authorized", "InvalidIdentityToken"]
            .iter()
            .any(|no| self.message.contains(no))
        {
            return false;
        }
        ["timed out", "timeout", "unhandled error", "error occurred while loading"]
            .iter()
            .any(|sign| self.message.contains(sign))
    }

    /// The error for the caller.
    pub(super) fn classify(&self, action: Action, wanted: &str) -> KmsError {
        let name = action.name();
        let error = |kind, message: String| {
            let mut error = KmsError::new(kind, message);
            if !self.message.is_empty() {
                error = error.with_detail(sentence(&self.message));
            }
            match &self.request_id {
                Some(id) => error.with_detail(format!("KMS request {}.", foreign(id))),
                None => error,
            }
        };
        let unreachable = |message: String| {
            error(ErrorKind::Unreachable, message)
                .with_hint("Check that the AWS KMS endpoint can be reached from this host.")
        };
        match self.phase {
            Phase::Transport => unreachable(format!("AWS KMS cannot be reached for {name}")),
            Phase::Timer => error(ErrorKind::TimedOut, format!("AWS KMS did not answer {name} in time"))
                .with_hint("Check that the AWS KMS endpoint can be reached from this host."),
            Phase::Body => unreachable(format!("the answer of AWS KMS to {name} broke off")),
            Phase::Answer => unreachable(format!("the answer to {name} is not one of AWS KMS")),
            Phase::Preparation => self.unprepared(action),
            Phase::Service => {
                let status = self.status.unwrap_or(0);
                let Some(code) = self.code.as_deref() else {
                    return match status {
                        // Not JSON, or not what the operation answers with: most likely somebody else, for now.
                        200..300 => unreachable(format!("the answer to {name} is not one of AWS KMS")),
                        500.. => unreachable(format!("AWS KMS answered {name} with HTTP status {status}")),
                        429 => error(ErrorKind::Throttled, format!("AWS KMS throttles {name}"))
                            .with_hint(THROTTLED),
                        // A proxy's 403, for example: nobody who speaks for KMS.
                        _ => error(
                            ErrorKind::Refused,
                            format!("AWS KMS answered {name} with HTTP status {status}"),
                        )
                        .with_hint("Check hyperion_vault.kms_endpoint_url and any proxy on the way to it."),
                    };
                };
                self.refused(action, wanted, code, status, &error)
            }
        }
    }

    /// By KMS's own code.
    fn refused(
        &self,
        action: Action,
        wanted: &str,
        code: &str,
        status: u16,
        error: &dyn Fn(ErrorKind, String) -> KmsError,
    ) -> KmsError {
        let name = action.name();
        match code {
            "InvalidCiphertextException" | "IncorrectKeyException" => KmsError::unauthenticated(),
            _ if THROTTLING.contains(&code) => {
                error(ErrorKind::Throttled, format!("AWS KMS throttles {name}")).with_hint(THROTTLED)
            }
            _ if OUTAGE.contains(&code) || status >= 500 => {
                error(ErrorKind::Unreachable, format!("AWS KMS cannot serve {name} now: {}", foreign(code)))
                    .with_hint("This is for AWS to repair; see the AWS Health Dashboard. Calls go on by themselves afterwards.")
            }
            "AccessDeniedException" | "AccessDenied" => {
                error(ErrorKind::Refused, format!("AWS KMS denies {name}")).with_hint(format!(
                    "Allow {} on {wanted} to the identity of the key-service worker, in its IAM policy and in the key policy.",
                    action.permissions()
                ))
            }
            "DisabledException" => error(ErrorKind::Refused, "the KMS key is disabled".to_owned())
                .with_hint(format!("Enable the key {wanted} (aws kms enable-key).")),
            "KMSInvalidStateException" => {
                error(ErrorKind::Refused, "the KMS key is not in a state in which it can be used".to_owned())
                    .with_hint(format!(
                        "If {wanted} is pending deletion, cancel that (aws kms cancel-key-deletion) and enable it."
                    ))
            }
            "NotFoundException" => error(ErrorKind::Refused, "the KMS key does not exist".to_owned()).with_hint(
                format!("Check account and region of {wanted}, and hyperion_vault.kms_key_id and kms_region."),
            ),
            "InvalidKeyUsageException" => {
                error(ErrorKind::Refused, "the KMS key is not one for symmetric encryption".to_owned())
                    .with_hint("Use a key with KeySpec SYMMETRIC_DEFAULT and KeyUsage ENCRYPT_DECRYPT.")
            }
            _ if self.is_about_credentials() => {
                error(ErrorKind::Refused, format!("AWS does not accept the credentials of the key-service worker: {}", foreign(code)))
                    .with_hint("Renew the credentials where the worker finds them (role, token file or profile), and check this host's clock.")
            }
            _ => error(ErrorKind::Refused, format!("AWS KMS refused {name}: {}", foreign(code)))
                .with_hint("Check hyperion_vault.kms_key_id, and the key in the AWS console."),
        }
    }

    fn unprepared(&self, action: Action) -> KmsError {
        let said = self.message.as_str();
        if said.contains(endpoint::NOT_TLS) {
            return KmsError::misconfigured(format!("{} was not sent: {}", action.name(), endpoint::NOT_TLS))
                .with_hint("Use an https endpoint in hyperion_vault.kms_endpoint_url, AWS_ENDPOINT_URL_KMS and the profile.");
        }
        let kind =
            if self.has_no_source_for_now() { ErrorKind::Unreachable } else { ErrorKind::Misconfigured };
        KmsError::new(kind, "the key-service worker has no AWS credentials")
            .with_detail(sentence(said))
            .with_hint(
                "Give the host an instance or container role, or set hyperion_vault.aws_profile to a profile that the server's user can read.",
            )
    }
}

const THROTTLED: &str = "Lower hyperion_vault.kms_max_in_flight, raise hyperion_vault.dek_cache_ttl_secs, or raise the request quota of AWS KMS.";

const THROTTLING: [&str; 5] = [
    "ThrottlingException",
    "Throttling",
    "RequestLimitExceeded",
    "TooManyRequestsException",
    "LimitExceededException",
];

const OUTAGE: [&str; 8] = [
    "KMSInternalException",
    "DependencyTimeoutException",
    "KeyUnavailableException",
    "ServiceUnavailable",
    "ServiceUnavailableException",
    "InternalFailure",
    "InternalServerError",
    "RequestTimeoutException",
];

const STALE_CREDENTIALS: [&str; 10] = [
    "ExpiredTokenException",
    "ExpiredToken",
    "RequestExpired",
    "UnrecognizedClientException",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "SignatureDoesNotMatch",
    "IncompleteSignature",
    "IncompleteSignatureException",
    "MissingAuthenticationTokenException",
];

/// An error and its causes, each once, as meant for display.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}

/// Another party's text: bounded, one line, nothing but printable characters.
pub(super) fn foreign(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_FOREIGN)
        .collect::<String>()
        .trim()
        .to_owned()
}

fn sentence(text: &str) -> String {
    let text = text.trim_end_matches('.');
    format!("{text}.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(code: &str, status: u16) -> Failure {
        Failure {
            phase: Phase::Service,
            code: (!code.is_empty()).then(|| code.to_owned()),
            message: "User: arn:aws:iam::111122223333:role/app said no".into(),
            status: Some(status),
            request_id: Some("c0ffee".into()),
        }
    }

    fn kind(code: &str, status: u16) -> ErrorKind {
        answer(code, status).classify(Action::Decrypt, "KEY").kind
    }

    /// The table of the specification, §7, and what it leaves open.
    #[test]
    fn every_code_has_its_kind() {
        for (code, status, wanted) in [
            ("ThrottlingException", 400, ErrorKind::Throttled),
            ("", 429, ErrorKind::Throttled),
            ("KMSInternalException", 500, ErrorKind::Unreachable),
            ("DependencyTimeoutException", 503, ErrorKind::Unreachable),
            ("KeyUnavailableException", 500, ErrorKind::Unreachable),
            ("SomethingNew", 500, ErrorKind::Unreachable),
            ("", 503, ErrorKind::Unreachable),
            ("AccessDeniedException", 400, ErrorKind::Refused),
            ("DisabledException", 400, ErrorKind::Refused),
            ("KMSInvalidStateException", 400, ErrorKind::Refused),
            ("NotFoundException", 400, ErrorKind::Refused),
            ("InvalidKeyUsageException", 400, ErrorKind::Refused),
            ("ExpiredTokenException", 400, ErrorKind::Refused),
            ("ValidationException", 400, ErrorKind::Refused),
            ("SomethingNew", 400, ErrorKind::Refused),
            ("", 403, ErrorKind::Refused),
            ("", 200, ErrorKind::Unreachable),
            ("InvalidCiphertextException", 400, ErrorKind::Unauthenticated),
            ("IncorrectKeyException", 400, ErrorKind::Unauthenticated),
        ] {
            assert_eq!(kind(code, status), wanted, "{code} {status}");
        }
    }

    #[test]
    fn a_refusal_says_what_aws_said_and_what_is_missing() {
        let error = answer("AccessDeniedException", 400).classify(Action::ReEncrypt, "arn:key");
        assert_eq!(error.message, "AWS KMS denies ReEncrypt");
        assert_eq!(
            error.detail.as_deref(),
            Some("User: arn:aws:iam::111122223333:role/app said no. KMS request c0ffee.")
        );
        let hint = error.hint.unwrap();
        assert!(hint.contains("kms:ReEncryptFrom and kms:ReEncryptTo on arn:key"), "{hint}");
    }

    #[test]
    fn a_forged_ciphertext_learns_nothing() {
        for code in ["InvalidCiphertextException", "IncorrectKeyException"] {
            let error = answer(code, 400).classify(Action::Decrypt, "KEY");
            assert_eq!(error, KmsError::unauthenticated());
        }
    }

    #[test]
    fn every_error_has_a_fix_and_is_in_the_servers_style() {
        for phase in [Phase::Preparation, Phase::Transport, Phase::Timer, Phase::Body, Phase::Answer] {
            let failure =
                Failure { phase, code: None, message: "why".into(), status: None, request_id: None };
            let error = failure.classify(Action::GenerateDataKey, "KEY");
            assert!(error.hint.is_some_and(|hint| hint.ends_with('.')), "{phase:?}");
            assert_eq!(error.detail.as_deref(), Some("why."), "{phase:?}");
        }
        for code in STALE_CREDENTIALS.iter().chain(&OUTAGE).chain(&THROTTLING) {
            let error = answer(code, 400).classify(Action::GenerateDataKey, "KEY");
            assert!(error.hint.is_some_and(|hint| hint.ends_with('.')), "{code}");
            assert!(!error.message.ends_with('.'), "{code}");
        }
    }

    #[test]
    fn foreign_text_is_bounded_and_on_one_line() {
        assert_eq!(foreign("a\nb\u{7}c "), "a b c");
        assert_eq!(foreign(&"ü".repeat(5000)).chars().count(), MAX_FOREIGN);
    }

    #[test]
    fn credentials_that_time_out_are_an_outage_and_none_at_all_a_mistake() {
        let with = |message: &str| {
            let failure = Failure {
                phase: Phase::Preparation,
                code: None,
                message: message.into(),
                status: None,
                request_id: None,
            };
            (failure.classify(Action::Decrypt, "KEY"), failure.is_about_credentials())
        };
        let (error, renew) = with("identity resolver timed out after 5s");
        assert_eq!((error.kind, renew), (ErrorKind::Unreachable, false));
        // STS says no: no outage, and nothing to repeat.
        let (error, _) = with(
            "an error occurred while loading credentials: service error: AccessDenied: not authorized to perform sts:AssumeRole",
        );
        assert_eq!(error.kind, ErrorKind::Misconfigured);
        // A file that is there by now is found by a new session only.
        let (error, renew) = with("no providers in chain provided credentials");
        assert_eq!((error.kind, renew), (ErrorKind::Misconfigured, true));
        let (error, renew) = with("interceptor: the endpoint is not https");
        assert_eq!((error.kind, renew), (ErrorKind::Misconfigured, false));
        assert!(error.message.contains("not https"));
    }
}
