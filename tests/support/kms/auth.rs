//! Who calls: the credentials the fake key service knows, and the check of a request's signature against them.
//!
//! Runs in a connection's thread. The trap: a fake that accepts any signature hides a client that signs with stale or
//! wrong credentials; so the signature is computed again and compared, and so are dates, scope and session token.

use super::clock::{amz_date, parse_amz_date};
use super::error::ApiError;
use super::http::Request;
use super::sigv4::{ALGORITHM, Scope, Signable, signature};
use super::{ACCOUNT, lock};
use crate::sys::random_text;
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

/// AWS accepts clocks that are this far off.
const SKEW: Duration = Duration::from_secs(15 * 60);

/// Credentials of an IAM user, or of an assumed role if they have a session token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    pub access_key_id: String,
    pub secret_access_key: String,
    pub session_token: Option<String>,
}

impl Credentials {
    /// What a new fake accepts: the example of AWS's own documentation, which no account has.
    pub fn example() -> Self {
        Self {
            access_key_id: "AKIAIOSFODNN7EXAMPLE".into(),
            secret_access_key: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into(),
            session_token: None,
        }
    }

    /// Long-lived credentials that no other place holds: something to look for in a search for leaks.
    pub fn random() -> Self {
        Self {
            access_key_id: format!("AKIA{}", random_text(16).to_ascii_uppercase()),
            secret_access_key: random_text(40),
            session_token: None,
        }
    }

    /// Temporary credentials, as a role gives them.
    pub fn random_session() -> Self {
        Self {
            access_key_id: format!("ASIA{}", random_text(16).to_ascii_uppercase()),
            secret_access_key: random_text(40),
            session_token: Some(random_text(200)),
        }
    }

    /// Who the key service says its holder is.
    pub fn identity(&self) -> String {
        match self.session_token {
            Some(_) => {
                format!("arn:aws:sts::{ACCOUNT}:assumed-role/hyperion-vault/i-1234567890abcdef0")
            }
            None => format!("arn:aws:iam::{ACCOUNT}:user/hyperion-vault"),
        }
    }
}

/// An authenticated caller.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub identity: String,
    /// The region he signed for, in which he sees the keys.
    pub region: String,
}

#[derive(Default)]
pub(super) struct Registry(Mutex<HashMap<String, Entry>>);

#[derive(Clone)]
struct Entry {
    credentials: Credentials,
    expired: bool,
}

impl Registry {
    pub fn add(&self, credentials: Credentials) {
        let name = credentials.access_key_id.clone();
        lock(&self.0).insert(name, Entry { credentials, expired: false });
    }

    pub fn remove(&self, access_key_id: &str) {
        assert!(lock(&self.0).remove(access_key_id).is_some(), "no credentials {access_key_id}");
    }

    pub fn expire(&self, access_key_id: &str) {
        match lock(&self.0).get_mut(access_key_id) {
            Some(entry) => entry.expired = true,
            None => panic!("no credentials {access_key_id}"),
        }
    }

    /// Checks a request's signature. `known_region` says whether there is such a region.
    pub fn authenticate(
        &self,
        request: &Request,
        known_region: impl Fn(&str) -> bool,
        now: SystemTime,
    ) -> Result<Caller, ApiError> {
        let missing = || ApiError::new("MissingAuthenticationTokenException", "Missing Authentication Token");
        let claim = Claim::parse(request.header("authorization").ok_or_else(missing)?)?;
        let date = request.header("x-amz-date").ok_or_else(|| incomplete("'X-Amz-Date'"))?;
        claim.check_scope(date, known_region)?;
        let token = request.header("x-amz-security-token");
        claim.check_signed_headers(token.is_some())?;

        let unknown = || {
            let text = "The security token included in the request is invalid.";
            ApiError::new("UnrecognizedClientException", text)
        };
        let entry = lock(&self.0).get(&claim.access_key_id).cloned().ok_or_else(unknown)?;
        check_date(date, now)?;

        let headers = claim
            .signed_headers
            .iter()
            .map(|name| Some((name.as_str(), request.header(name)?)))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(mismatch)?;
        let signable =
            Signable { method: &request.method, path: &request.path, headers: &headers, body: &request.body };
        if signature(&entry.credentials.secret_access_key, date, &claim.scope, &signable) != claim.signature {
            return Err(mismatch());
        }
        if token != entry.credentials.session_token.as_deref() {
            return Err(unknown());
        }
        if entry.expired {
            return Err(ApiError::expired_token());
        }
        Ok(Caller { identity: entry.credentials.identity(), region: claim.scope.region })
    }
}

/// The access key id an `Authorization` header names, unchecked.
pub(super) fn claimed_access_key_id(authorization: &str) -> Option<String> {
    Claim::parse(authorization).ok().map(|claim| claim.access_key_id)
}

/// What an `Authorization` header says.
struct Claim {
    access_key_id: String,
    scope: Scope,
    signed_headers: Vec<String>,
    signature: String,
}

impl Claim {
    fn parse(header: &str) -> Result<Self, ApiError> {
        let fields = header
            .strip_prefix(ALGORITHM)
            .and_then(|rest| rest.strip_prefix(' '))
            .ok_or_else(|| incomplete("an algorithm that is known"))?;
        let field = |name: &str| {
            fields
                .split(',')
                .find_map(|field| field.trim().strip_prefix(name)?.strip_prefix('='))
                .ok_or_else(|| incomplete(&format!("'{name}' parameter")))
        };
        let credential: Vec<&str> = field("Credential")?.split('/').collect();
        let [access_key_id, date, region, service, "aws4_request"] = credential[..] else {
            return Err(incomplete("a valid credential scope"));
        };
        let signed_headers: Vec<String> = field("SignedHeaders")?.split(';').map(str::to_owned).collect();
        if !signed_headers.is_sorted() {
            return Err(mismatch());
        }
        Ok(Self {
            access_key_id: access_key_id.into(),
            scope: Scope { date: date.into(), region: region.into(), service: service.into() },
            signed_headers,
            signature: field("Signature")?.into(),
        })
    }

    fn check_scope(&self, date: &str, known_region: impl Fn(&str) -> bool) -> Result<(), ApiError> {
        let refuse = |text: String| Err(ApiError::new("InvalidSignatureException", text));
        if !known_region(&self.scope.region) {
            return refuse("Credential should be scoped to a valid region.".into());
        }
        if self.scope.service != "kms" {
            return refuse("Credential should be scoped to correct service: 'kms'.".into());
        }
        if !date.starts_with(&self.scope.date) || self.scope.date.len() != 8 {
            return refuse(format!(
                "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: \
                 '{}' != '{}', from '{date}'.",
                self.scope.date,
                date.get(..8).unwrap_or(date)
            ));
        }
        Ok(())
    }

    fn check_signed_headers(&self, has_token: bool) -> Result<(), ApiError> {
        let mut required = vec!["host", "x-amz-date", "x-amz-target"];
        if has_token {
            required.push("x-amz-security-token");
        }
        for name in required {
            if !self.signed_headers.iter().any(|signed| signed == name) {
                let text = format!("'{name}' must be a 'SignedHeader' in the AWS 'Authorization' header.");
                return Err(ApiError::new("InvalidSignatureException", text));
            }
        }
        Ok(())
    }
}

fn check_date(date: &str, now: SystemTime) -> Result<(), ApiError> {
    let stamp = parse_amz_date(date).ok_or_else(|| incomplete("a valid 'X-Amz-Date'"))?;
    let refuse = |text| Err(ApiError::new("InvalidSignatureException", text));
    let (oldest, newest) = (now - SKEW, now + SKEW);
    let now = amz_date(now);
    if stamp < oldest {
        let oldest = amz_date(oldest);
        return refuse(format!("Signature expired: {date} is now earlier than {oldest} ({now} - 15 min.)"));
    }
    if stamp > newest {
        let newest = amz_date(newest);
        return refuse(format!(
            "Signature not yet current: {date} is still later than {newest} ({now} + 15 min.)"
        ));
    }
    Ok(())
}

fn incomplete(what: &str) -> ApiError {
    ApiError::new("IncompleteSignatureException", format!("Authorization header requires {what}."))
}

fn mismatch() -> ApiError {
    ApiError::new(
        "InvalidSignatureException",
        "The request signature we calculated does not match the signature you provided. Check your AWS Secret \
         Access Key and signing method. Consult the service documentation for details.",
    )
}
