//! Who may call: signatures, credentials, clocks; and what the server says of itself.

use super::client::Client;
use crate::kms::{Credentials, FakeKms, Op};
use serde_json::{Value, json};
use std::time::{Duration, SystemTime};

fn describe() -> Value {
    json!({"KeyId": "alias/hyperion"})
}

#[test]
fn only_the_right_secret_signs() {
    let kms = FakeKms::start();
    let mut client = Client::new(&kms);
    client.ok(Op::DescribeKey, describe());
    client.credentials.secret_access_key.push('x');
    let refused = client.refused(Op::DescribeKey, describe());
    assert_eq!((refused.0, refused.1.as_str()), (400, "InvalidSignatureException"));
    assert!(refused.2.starts_with("The request signature we calculated does not match"), "{refused:?}");

    client.credentials = Credentials::random();
    let refused = client.refused(Op::DescribeKey, describe());
    assert_eq!((refused.0, refused.1.as_str()), (400, "UnrecognizedClientException"));
    kms.add_credentials(client.credentials.clone());
    client.ok(Op::DescribeKey, describe());
    let seen = kms.requests().pop().unwrap();
    assert_eq!(seen.access_key_id.as_ref(), Some(&client.credentials.access_key_id));
    kms.remove_credentials(&client.credentials.access_key_id);
    assert_eq!(client.refused(Op::DescribeKey, describe()).1, "UnrecognizedClientException");
}

#[test]
fn session_tokens_count_and_expire() {
    let kms = FakeKms::start();
    let mut client = Client::new(&kms);
    let session = Credentials::random_session();
    kms.add_credentials(session.clone());
    client.credentials = session.clone();
    client.ok(Op::DescribeKey, describe());
    client.credentials.session_token = Some("other".into());
    assert_eq!(client.refused(Op::DescribeKey, describe()).1, "UnrecognizedClientException");
    client.credentials.session_token = None;
    assert_eq!(client.refused(Op::DescribeKey, describe()).1, "UnrecognizedClientException");

    client.credentials = session.clone();
    kms.expire_credentials(&session.access_key_id);
    let refused = client.refused(Op::DescribeKey, describe());
    assert_eq!((refused.0, refused.1.as_str()), (400, "ExpiredTokenException"));
    assert_eq!(refused.2, "The security token included in the request is expired");
    // Whoever does not know the secret does not learn that it has expired.
    client.credentials.secret_access_key.push('x');
    assert_eq!(client.refused(Op::DescribeKey, describe()).1, "InvalidSignatureException");
    kms.add_credentials(session.clone());
    client.credentials = session;
    client.ok(Op::DescribeKey, describe());
}

#[test]
fn clocks_may_differ_by_a_quarter_of_an_hour() {
    let kms = FakeKms::start();
    let mut client = Client::new(&kms);
    let minutes = |n: u64| Duration::from_secs(n * 60);
    for (offset, ahead, text) in [
        (14, false, None),
        (14, true, None),
        (16, false, Some("Signature expired: ")),
        (16, true, Some("Signature not yet current: ")),
    ] {
        client.clock = Box::new(move || match ahead {
            true => SystemTime::now() + minutes(offset),
            false => SystemTime::now() - minutes(offset),
        });
        match text {
            None => {
                client.ok(Op::DescribeKey, describe());
            }
            Some(text) => {
                let refused = client.refused(Op::DescribeKey, describe());
                assert_eq!(refused.1, "InvalidSignatureException");
                assert!(refused.2.starts_with(text) && refused.2.ends_with(" 15 min.)"), "{refused:?}");
            }
        }
    }
}

/// A signed request with its text changed; what the signature covers may not change, what it must cover must be there.
#[test]
fn tampered_requests_are_refused() {
    let kms = FakeKms::start();
    let mut client = Client::new(&kms);
    let session = Credentials::random_session();
    kms.add_credentials(session.clone());
    client.credentials = session;
    let request = String::from_utf8(client.request(Op::DescribeKey, &describe())).unwrap();
    assert_eq!(client.exchange(request.as_bytes()).unwrap().status, 200);
    let date = request.lines().find_map(|line| line.strip_prefix("x-amz-date: ")).unwrap().to_owned();
    let day = &date[..8];
    let signed = "SignedHeaders=content-type;host;x-amz-date;x-amz-security-token;x-amz-target";
    let authorization = request.lines().find(|line| line.starts_with("authorization: ")).unwrap().to_owned();
    for (from, to, error) in [
        ("alias/hyperion", "alias/hyperiox", "InvalidSignatureException"),
        ("TrentService.DescribeKey", "TrentService.EncryptXKey", "UnknownOperationException"),
        ("TrentService.DescribeKey", "TrentService.Decrypt", "InvalidSignatureException"),
        ("host: 127.0.0.1", "host: 127.0.0.2", "InvalidSignatureException"),
        (
            "content-type: application/x-amz-json-1.1",
            "content-type: application/json",
            "UnknownOperationException",
        ),
        ("POST / ", "POST /x ", "UnknownOperationException"),
        ("POST / ", "GET / ", "UnknownOperationException"),
        (&authorization, "x-other: 1", "MissingAuthenticationTokenException"),
        ("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA1", "IncompleteSignatureException"),
        ("Signature=", "Sign=", "IncompleteSignatureException"),
        ("x-amz-date: ", "x-date: ", "IncompleteSignatureException"),
        ("/aws4_request", "/aws4", "IncompleteSignatureException"),
        ("/kms/", "/s3/", "InvalidSignatureException"),
        ("/eu-central-1/", "/eu-west-9/", "InvalidSignatureException"),
        (&format!("/{day}/"), "/20150830/", "InvalidSignatureException"),
        (
            signed,
            "SignedHeaders=content-type;x-amz-date;x-amz-security-token;x-amz-target",
            "InvalidSignatureException",
        ),
        (signed, "SignedHeaders=content-type;host;x-amz-date;x-amz-target", "InvalidSignatureException"),
        (
            signed,
            "SignedHeaders=content-type;host;x-amz-date;x-amz-security-token",
            "InvalidSignatureException",
        ),
        (
            signed,
            "SignedHeaders=host;content-type;x-amz-date;x-amz-security-token;x-amz-target",
            "InvalidSignatureException",
        ),
        (
            signed,
            "SignedHeaders=absent;content-type;host;x-amz-date;x-amz-security-token;x-amz-target",
            "InvalidSignatureException",
        ),
    ] {
        assert!(request.contains(from), "{from:?}");
        let response = client.exchange(request.replacen(from, to, 1).as_bytes()).unwrap();
        assert_ne!(response.status, 200, "{from:?} to {to:?}");
        assert_eq!(response.refusal().1, error, "{from:?} to {to:?}");
    }
}

/// Where the text alone tells which check refused.
#[test]
fn the_days_of_scope_and_date_agree() {
    let kms = FakeKms::start();
    let mut client = Client::new(&kms);
    let request = String::from_utf8(client.request(Op::DescribeKey, &describe())).unwrap();
    let day = request.lines().find_map(|line| line.strip_prefix("x-amz-date: ")).unwrap()[..8].to_owned();
    for other in ["20150830", &day[..4]] {
        let changed = request.replacen(&format!("/{day}/"), &format!("/{other}/"), 1);
        let refused = client.exchange(changed.as_bytes()).unwrap().refusal();
        assert!(refused.2.starts_with("Date in Credential scope does not match"), "{refused:?}");
    }
}

/// Signatures that are right, of requests that sign too little or for elsewhere.
#[test]
fn what_must_be_signed() {
    let kms = FakeKms::start();
    let mut client = Client::new(&kms);
    client.credentials = Credentials::random_session();
    kms.add_credentials(client.credentials.clone());
    client.unsigned = Some("content-type");
    client.ok(Op::DescribeKey, describe());
    for name in ["host", "x-amz-date", "x-amz-target", "x-amz-security-token"] {
        client.unsigned = Some(name);
        let refused = client.refused(Op::DescribeKey, describe());
        assert_eq!(refused.1, "InvalidSignatureException");
        assert!(refused.2.contains(&format!("'{name}' must be a 'SignedHeader'")), "{refused:?}");
    }
    client.unsigned = None;
    for (service, region, text) in [
        ("s3", "eu-central-1", "Credential should be scoped to correct service: 'kms'."),
        ("kms", "eu-west-1", "Credential should be scoped to a valid region."),
    ] {
        (client.service, client.region) = (service.into(), region.into());
        let refused = client.refused(Op::DescribeKey, describe());
        assert_eq!((refused.1.as_str(), refused.2.as_str()), ("InvalidSignatureException", text));
    }
}

#[test]
fn answers_look_like_those_of_the_service() {
    let kms = FakeKms::start();
    let mut client = Client::new(&kms);
    let mut ids = Vec::new();
    for request in [describe(), json!({"KeyId": "alias/none"})] {
        let response = client.call(Op::DescribeKey, request).unwrap();
        assert_eq!(response.header("content-type"), Some("application/x-amz-json-1.1"));
        assert!(response.header("date").unwrap().ends_with(" GMT"));
        let id = response.header("x-amzn-requestid").unwrap().to_owned();
        assert_eq!(id.len(), 36);
        ids.push(id);
    }
    assert_ne!(ids[0], ids[1]);
    // Both on one connection, and what is no HTTP is answered so.
    assert_eq!(kms.counters().connections, 1);
    assert_eq!(Client::new(&kms).exchange(b"\x16\x03\x01\x02\r\n\r\n").unwrap().status, 400);
}

#[test]
fn a_session_is_named_as_an_assumed_role() {
    let kms = FakeKms::start();
    let mut client = Client::new(&kms);
    client.credentials = Credentials::random_session();
    kms.add_credentials(client.credentials.clone());
    kms.inject_for(Op::ReEncrypt, crate::kms::Fault::AccessDenied, None);
    let response = client.call(Op::ReEncrypt, json!({"SourceKeyId": "alias/hyperion"})).unwrap();
    let text =
        response.json()["Message"].as_str().expect("the authorization layer writes Message").to_owned();
    assert!(text.starts_with("User: arn:aws:sts::111122223333:assumed-role/hyperion-vault/"), "{text}");
    assert!(text.contains("kms:ReEncryptFrom on resource: ") && text.contains(&kms.key_arn()), "{text}");
}
