//! Every fault, as it looks on the wire; and that each ends when it should.

use super::client::{Client, bytes, read_response};
use crate::kms::{FakeKms, Fault, Op};
use crate::{PATIENCE, wait_for};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// A data key's request and the request that opens it.
fn requests(client: &mut Client) -> (Value, Value) {
    let generate = json!({"KeyId": "alias/hyperion", "KeySpec": "AES_256", "EncryptionContext": {"a": "b"}});
    let made = client.ok(Op::GenerateDataKey, generate.clone());
    (generate, json!({"CiphertextBlob": made["CiphertextBlob"], "EncryptionContext": {"a": "b"}}))
}

#[test]
fn names_are_unique_and_plain() {
    let names: BTreeSet<String> = Fault::ALL.into_iter().map(Fault::name).collect();
    assert_eq!(names.len(), Fault::ALL.len());
    assert!(
        names
            .iter()
            .all(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'))
    );
}

/// What a client sees of a fault.
#[derive(Debug, PartialEq)]
enum Seen {
    /// Answered right, after at least so long.
    Late(Duration),
    Silence,
    Refused,
    /// Reset after so many bytes of the answer: none, or more than the head.
    Reset {
        within_body: bool,
    },
    /// Status, error and a part of the text.
    Error(u16, &'static str, String),
    /// A status with a body that is empty or a page.
    Page(u16, bool),
    NotJson,
    Lacks(&'static [&'static str]),
    KeyLength(usize),
    OtherKey,
}

/// What each fault must look like to a Decrypt, of which key and by whom.
fn expected(fault: Fault, arn: &str) -> Seen {
    let error = |status, name, text: &str| Seen::Error(status, name, text.to_owned());
    match fault {
        Fault::Latency(delay) => Seen::Late(delay),
        Fault::Hang => Seen::Silence,
        Fault::Refused => Seen::Refused,
        Fault::ResetBeforeAnswer => Seen::Reset { within_body: false },
        Fault::ResetMidBody => Seen::Reset { within_body: true },
        Fault::Throttling => error(400, "ThrottlingException", "exceeded the rate"),
        Fault::HttpEmpty(status) => Seen::Page(status, false),
        Fault::HttpHtml(status) => Seen::Page(status, true),
        Fault::KmsInternal => error(500, "KMSInternalException", "internal"),
        Fault::DependencyTimeout => error(503, "DependencyTimeoutException", "timed out"),
        Fault::KeyUnavailable => error(500, "KeyUnavailableException", "not available"),
        Fault::AccessDenied => error(
            400,
            "AccessDeniedException",
            &format!(
                "User: arn:aws:iam::111122223333:user/hyperion-vault is not authorized to perform: kms:Decrypt on \
                 resource: {arn} because no identity-based policy allows the kms:Decrypt action"
            ),
        ),
        Fault::ExpiredCredentials => error(400, "ExpiredTokenException", "expired"),
        Fault::Disabled => error(400, "DisabledException", &format!("{arn} is disabled.")),
        Fault::PendingDeletion => {
            error(400, "KMSInvalidStateException", &format!("{arn} is pending deletion."))
        }
        Fault::NotFound => error(400, "NotFoundException", &format!("Key '{arn}' does not exist")),
        Fault::InvalidCiphertext => error(400, "InvalidCiphertextException", ""),
        Fault::IncorrectKey => error(400, "IncorrectKeyException", "does not identify a CMK"),
        Fault::GarbageJson => Seen::NotJson,
        Fault::WrongShape => Seen::Lacks(&["Plaintext", "KeyId", "CiphertextBlob"]),
        Fault::ShortKey => Seen::KeyLength(16),
        Fault::LongKey => Seen::KeyLength(64),
        Fault::OtherKeyId => Seen::OtherKey,
    }
}

#[test]
fn every_fault_shows_on_the_wire_and_ends() {
    let kms = FakeKms::start();
    let mut client = Client::new(&kms);
    let (_, decrypt) = requests(&mut client);
    for fault in Fault::ALL {
        kms.reset_counters();
        kms.inject(fault);
        check(&kms, &decrypt, expected(fault, &kms.key_arn()));
        if !matches!(fault, Fault::Latency(_) | Fault::Refused) {
            let counters = kms.counters();
            assert_eq!(counters.failures, 1, "{}", fault.name());
            assert_eq!(counters.faults.get(&fault.name()), Some(&1), "{}", fault.name());
            assert_eq!(kms.requests().pop().unwrap().fault, Some(fault.name()));
        }
        kms.clear();
        // On the old connection, if the fault left it alone, and on a new one.
        if fault != Fault::Refused {
            client.ok(Op::Decrypt, decrypt.clone());
        }
        client = Client::new(&kms);
        client.ok(Op::Decrypt, decrypt.clone());
    }
}

#[track_caller]
fn check(kms: &FakeKms, decrypt: &Value, expected: Seen) {
    let mut client = Client::new(kms);
    let began = Instant::now();
    match expected {
        Seen::Late(delay) => {
            client.ok(Op::Decrypt, decrypt.clone());
            assert!(began.elapsed() >= delay);
        }
        Seen::Silence => {
            let mut stream = client.send_only(Op::Decrypt, decrypt);
            wait_for("the request to arrive", PATIENCE, || kms.calls(Op::Decrypt) == 1);
            stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            let kind = stream.read(&mut [0]).unwrap_err().kind();
            assert!(matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut), "{kind:?}");
        }
        Seen::Refused => {
            let error = TcpStream::connect(("127.0.0.1", kms.port())).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        }
        Seen::Reset { within_body } => {
            let mut stream = client.send_only(Op::Decrypt, decrypt);
            let mut read = Vec::new();
            let error = stream.read_to_end(&mut read).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            let text = String::from_utf8_lossy(&read).into_owned();
            let Some((head, body)) = text.split_once("\r\n\r\n") else {
                // A reset may overtake what was sent before it.
                assert!(read.is_empty(), "{text}");
                return;
            };
            assert!(within_body, "{text}");
            let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
            assert_eq!(body.len(), length.parse::<usize>().unwrap() / 2);
        }
        Seen::Error(status, name, text) => {
            let refusal = client.refused(Op::Decrypt, decrypt.clone());
            assert_eq!((refusal.0, refusal.1.as_str()), (status, name));
            assert!(refusal.2.contains(&text), "{refusal:?}");
        }
        Seen::Page(status, html) => {
            let response = client.call(Op::Decrypt, decrypt.clone()).unwrap();
            assert_eq!(response.status, status);
            assert_eq!(response.body.starts_with(b"<html>"), html);
            assert_eq!(response.body.is_empty(), !html);
            assert_eq!(response.header("content-type"), html.then_some("text/html"));
        }
        Seen::NotJson => {
            let response = client.call(Op::Decrypt, decrypt.clone()).unwrap();
            assert_eq!(response.status, 200);
            assert!(serde_json::from_slice::<Value>(&response.body).is_err());
        }
        Seen::Lacks(members) => {
            let answer = client.ok(Op::Decrypt, decrypt.clone());
            assert!(answer.is_object() && members.iter().all(|name| answer.get(name).is_none()), "{answer}");
        }
        Seen::KeyLength(length) => {
            assert_eq!(bytes(&client.ok(Op::Decrypt, decrypt.clone())["Plaintext"]).len(), length);
        }
        Seen::OtherKey => {
            let answer = client.ok(Op::Decrypt, decrypt.clone());
            let id = answer["KeyId"].as_str().unwrap();
            assert!(id.starts_with("arn:aws:kms:eu-central-1:111122223333:key/") && id != kms.key_arn());
        }
    }
}

#[test]
fn faults_of_one_operation_and_of_a_number() {
    let kms = FakeKms::start();
    let mut client = Client::new(&kms);
    let (generate, decrypt) = requests(&mut client);
    kms.inject_for(Op::Decrypt, Fault::Throttling, Some(2));
    kms.inject_for(Op::Decrypt, Fault::KmsInternal, Some(1));
    client.ok(Op::GenerateDataKey, generate.clone());
    let errors: Vec<String> = (0..3).map(|_| client.refused(Op::Decrypt, decrypt.clone()).1).collect();
    assert_eq!(errors, ["ThrottlingException", "ThrottlingException", "KMSInternalException"]);
    client.ok(Op::Decrypt, decrypt.clone());

    // What cannot happen to an operation is not used up by it.
    kms.inject_times(Fault::InvalidCiphertext, 1);
    client.ok(Op::GenerateDataKey, generate.clone());
    client.ok(Op::DescribeKey, json!({"KeyId": kms.key_id()}));
    assert_eq!(client.refused(Op::Decrypt, decrypt.clone()).1, "InvalidCiphertextException");
    client.ok(Op::Decrypt, decrypt.clone());

    // Latency adds to another fault, and uses up neither the other.
    kms.inject_times(Fault::Latency(Duration::from_millis(50)), 1);
    kms.inject_times(Fault::Throttling, 1);
    let began = Instant::now();
    client.refused(Op::Decrypt, decrypt.clone());
    assert!(began.elapsed() >= Duration::from_millis(50));
    client.ok(Op::Decrypt, decrypt);
}

#[test]
#[should_panic(expected = "never happens to GenerateDataKey")]
fn a_fault_that_cannot_happen_is_a_mistake() {
    FakeKms::start().inject_for(Op::GenerateDataKey, Fault::IncorrectKey, None);
}

#[test]
fn faults_do_not_let_a_bad_signature_pass() {
    let kms = FakeKms::start();
    let mut client = Client::new(&kms);
    let (generate, _) = requests(&mut client);
    client.credentials.secret_access_key.push('x');
    for fault in [Fault::Throttling, Fault::OtherKeyId, Fault::GarbageJson] {
        kms.inject(fault);
        assert_eq!(client.refused(Op::GenerateDataKey, generate.clone()).1, "InvalidSignatureException");
        kms.clear();
    }
}

#[test]
fn a_hung_request_is_answered_once_the_fault_is_cleared() {
    let kms = FakeKms::start();
    let mut client = Client::new(&kms);
    let (_, decrypt) = requests(&mut client);
    kms.reset_counters();
    kms.inject_for(Op::Decrypt, Fault::Hang, None);
    let mut hung: Vec<_> = (0..3).map(|_| client.send_only(Op::Decrypt, &decrypt)).collect();
    wait_for("three hung calls", PATIENCE, || kms.calls(Op::Decrypt) == 3);
    // Others go on.
    client.ok(Op::DescribeKey, json!({"KeyId": kms.key_id()}));
    assert!(
        kms.requests().iter().filter(|seen| seen.op == Some(Op::Decrypt)).all(|seen| seen.outcome.is_none())
    );

    // One client gives up, and is noticed to.
    drop(hung.pop());
    wait_for("the connection to end", PATIENCE, || kms.open_connections() == 3);
    kms.clear();
    for mut stream in hung {
        assert_eq!(read_response(&mut stream).unwrap().status, 200);
    }
    assert_eq!(kms.max_concurrent(), 4);
}

#[test]
fn refused_closes_what_is_open_and_comes_back_at_the_same_place() {
    let kms = FakeKms::start();
    let mut client = Client::new(&kms);
    let (_, decrypt) = requests(&mut client);
    kms.inject_for(Op::Decrypt, Fault::Hang, None);
    let mut hung = client.send_only(Op::Decrypt, &decrypt);
    wait_for("a hung call", PATIENCE, || kms.calls(Op::Decrypt) == 1);
    let endpoint = kms.endpoint();
    for _ in 0..20 {
        kms.inject(Fault::Refused);
        assert!(client.call(Op::Decrypt, decrypt.clone()).is_err());
        let error = Client::new(&kms).call(Op::Decrypt, decrypt.clone()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        assert!(read_response(&mut hung).is_err());
        kms.clear();
        assert_eq!(kms.endpoint(), endpoint);
        client = Client::new(&kms);
        client.ok(Op::Decrypt, decrypt.clone());
    }
}

#[test]
fn the_end_waits_for_nobody() {
    let kms = FakeKms::start();
    let client = Client::new(&kms);
    kms.inject_for(Op::Decrypt, Fault::Hang, None);
    kms.inject_for(Op::Encrypt, Fault::Latency(Duration::from_secs(3600)), None);
    let idle = TcpStream::connect(("127.0.0.1", kms.port())).unwrap();
    let mut waiting = [client.send_only(Op::Decrypt, &json!({})), client.send_only(Op::Encrypt, &json!({}))];
    wait_for("both calls", PATIENCE, || kms.counters().total_calls() == 2);
    let began = Instant::now();
    drop(kms);
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    for stream in &mut waiting {
        assert!(read_response(stream).is_err());
    }
    drop(idle);
}

#[test]
fn the_end_while_refusing() {
    let kms = FakeKms::start();
    kms.inject(Fault::Refused);
    drop(kms);
}
