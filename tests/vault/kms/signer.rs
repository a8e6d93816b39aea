//! A client of KMS besides the vault: what somebody can do who may use the same keys. Runs in the test process.
//!
//! Signs with AWS Signature Version 4 as the IAM user guide describes it, written apart from the fake's check of it
//! (<https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html>).

use base64::prelude::{BASE64_STANDARD, Engine};
use hmac::{Hmac, KeyInit, Mac};
use hyperion_vault_tests::kms::{Credentials, FakeKms};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

const SIGNED: &str = "host;x-amz-date;x-amz-target";

pub struct Signer {
    host: String,
    region: &'static str,
    credentials: Credentials,
}

impl Signer {
    pub fn new(kms: &FakeKms) -> Self {
        let host = format!("127.0.0.1:{}", kms.port());
        Self { host, region: kms.region(), credentials: Credentials::example() }
    }

    /// A call that must succeed; its answer.
    #[track_caller]
    pub fn call(&self, operation: &str, body: &Value) -> Value {
        let (body, host) = (body.to_string(), &self.host);
        let (date, target) = (now(), format!("TrentService.{operation}"));
        let canonical = format!(
            "POST\n/\n\nhost:{host}\nx-amz-date:{date}\nx-amz-target:{target}\n\n{SIGNED}\n{}",
            hex(&Sha256::digest(body.as_bytes()))
        );
        let scope = format!("{}/{}/kms/aws4_request", &date[..8], self.region);
        let to_sign =
            format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", hex(&Sha256::digest(canonical.as_bytes())));
        let secret = format!("AWS4{}", self.credentials.secret_access_key);
        let key = scope.split('/').fold(secret.into_bytes(), |key, part| mac(&key, part.as_bytes()));
        let signature = hex(&mac(&key, to_sign.as_bytes()));
        let request = format!(
            "POST / HTTP/1.1\r\nhost: {host}\r\nx-amz-date: {date}\r\nx-amz-target: {target}\r\n\
             content-type: application/x-amz-json-1.1\r\ncontent-length: {}\r\nconnection: close\r\n\
             authorization: AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={SIGNED}, Signature={signature}\r\n\r\n{body}",
            body.len(),
            self.credentials.access_key_id,
        );
        let mut stream = TcpStream::connect(host).expect("the fake takes connections");
        stream.write_all(request.as_bytes()).expect("the fake reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("the fake answers and closes");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.starts_with("HTTP/1.1 200"), "{operation}: {answer}");
        serde_json::from_str(body).expect("an answer is JSON")
    }
}

/// As `x-amz-date` has it.
fn now() -> String {
    let output = Command::new("date").args(["-u", "+%Y%m%dT%H%M%SZ"]).output().expect("cannot run date");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn mac(key: &[u8], message: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(message);
    mac.finalize().into_bytes().to_vec()
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn base64(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

pub fn unbase64(text: &str) -> Vec<u8> {
    BASE64_STANDARD.decode(text).expect("AWS writes bytes as base64")
}
