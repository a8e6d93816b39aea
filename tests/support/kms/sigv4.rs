//! AWS Signature Version 4: what a request's signature must be. Pure.
//!
//! Source: "Create a signed AWS API request" in the IAM user guide
//! (<https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html>). The server checks
//! with it what clients send, and the client of the fake's own tests signs with it; so it is held to AWS's published
//! vectors below, or both could be wrong in the same way.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use std::fmt::Write;

pub(super) const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// Where a signature is valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scope {
    /// `20150830`.
    pub date: String,
    pub region: String,
    pub service: String,
}

/// The signed part of a request. KMS is always asked at `/` without a query.
pub(super) struct Signable<'a> {
    pub method: &'a str,
    pub path: &'a str,
    /// The signed headers, names in lower case, in the order of the names.
    pub headers: &'a [(&'a str, &'a str)],
    pub body: &'a [u8],
}

impl Scope {
    fn text(&self) -> String {
        format!("{}/{}/{}/aws4_request", self.date, self.region, self.service)
    }
}

/// The signature, in hexadecimal digits.
pub(super) fn signature(secret: &str, amz_date: &str, scope: &Scope, request: &Signable) -> String {
    let to_sign = format!(
        "{ALGORITHM}\n{amz_date}\n{}\n{}",
        scope.text(),
        hex(&Sha256::digest(canonical_request(request).as_bytes()))
    );
    let mut key = mac(format!("AWS4{secret}").as_bytes(), scope.date.as_bytes());
    for part in [&scope.region, &scope.service, "aws4_request"] {
        key = mac(&key, part.as_bytes());
    }
    hex(&mac(&key, to_sign.as_bytes()))
}

/// The `Authorization` header of a request signed with these credentials.
#[cfg(test)]
pub(super) fn authorization(
    access_key_id: &str,
    secret: &str,
    amz_date: &str,
    scope: &Scope,
    request: &Signable,
) -> String {
    let names = signed_names(request);
    let signature = signature(secret, amz_date, scope, request);
    let scope = scope.text();
    format!("{ALGORITHM} Credential={access_key_id}/{scope}, SignedHeaders={names}, Signature={signature}")
}

fn canonical_request(request: &Signable) -> String {
    let mut text = format!("{}\n{}\n\n", request.method, request.path);
    for (name, value) in request.headers {
        // Outer white space goes, inner runs become one space.
        let value = value.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
        text.push_str(&format!("{name}:{value}\n"));
    }
    text.push_str(&format!("\n{}\n{}", signed_names(request), hex(&Sha256::digest(request.body))));
    text
}

fn signed_names(request: &Signable) -> String {
    request.headers.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";")
}

fn mac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(message);
    mac.finalize().into_bytes().into()
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string cannot fail");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cases of AWS's Signature Version 4 test suite (service "service", region us-east-1).
    #[test]
    fn published_vectors() {
        let secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
        let host = ("host", "example.amazonaws.com");
        let date = ("x-amz-date", "20150830T123600Z");
        type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a str);
        let cases: [Case; 4] = [
            (
                "get-vanilla",
                "GET",
                &[host, date],
                "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
            ),
            (
                "post-vanilla",
                "POST",
                &[host, date],
                "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
            ),
            (
                "get-header-key-duplicate",
                "GET",
                &[host, ("my-header1", "value2,value2,value1"), date],
                "c9d5ea9f3f72853aea855b47ea873832890dbdd183b4468f858259531a5138ea",
            ),
            (
                "get-header-value-trim",
                "GET",
                &[host, ("my-header1", " value1"), ("my-header2", " \"a   b   c\""), date],
                "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
            ),
        ];
        let scope = Scope { date: "20150830".into(), region: "us-east-1".into(), service: "service".into() };
        for (name, method, headers, expected) in cases {
            let request = Signable { method, path: "/", headers, body: b"" };
            assert_eq!(signature(secret, date.1, &scope, &request), expected, "{name}");
            let header = authorization("AKIDEXAMPLE", secret, date.1, &scope, &request);
            assert!(
                header.starts_with(
                    "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
                     SignedHeaders=host;"
                ),
                "{header}"
            );
        }
    }

    #[test]
    fn the_body_is_signed() {
        let scope = Scope { date: "20150830".into(), region: "r".into(), service: "kms".into() };
        let sign = |body| {
            let request = Signable { method: "POST", path: "/", headers: &[("host", "h")], body };
            signature("s", "20150830T123600Z", &scope, &request)
        };
        assert_ne!(sign(b"{}"), sign(b"{} "));
    }
}
