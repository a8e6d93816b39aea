//! Answers that are wrong in ways no real KMS is, from a server that says what a test wants; and what errors give away.
//!
//! The traps: an answer that is believed because it parses, and an error that quotes what it could not parse.

use std::io::{Read, Write};
use std::net::TcpListener;

use base64::prelude::{BASE64_STANDARD, Engine};
use hyperion_vault_kms::{AwsConfig, ErrorKind, KmsError, StoredDek, WrappedDek};
use hyperion_vault_tests::kms::{Credentials, Fault, Op};
use serde_json::{Value, json};

use crate::responder::Responder;
use crate::setup::{Asker, OPS, config, dek, expect, fake, place};

const ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
const MATERIAL: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// A recognisable key.
const KEY: [u8; 32] = *b"THE-KEY-THAT-NOBODY-MUST-EVER-SE";

fn encoded(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

/// A right answer to this operation.
fn right(op: Op) -> Value {
    let blob = encoded(b"a wrapped key");
    match op {
        Op::GenerateDataKey => {
            json!({"CiphertextBlob": blob, "Plaintext": encoded(&KEY), "KeyId": ARN, "KeyMaterialId": MATERIAL})
        }
        Op::Decrypt => json!({"Plaintext": encoded(&KEY), "KeyId": ARN, "KeyMaterialId": MATERIAL}),
        Op::Encrypt => json!({"CiphertextBlob": blob, "KeyId": ARN}),
        Op::ReEncrypt => json!({
            "CiphertextBlob": blob, "SourceKeyId": ARN, "KeyId": ARN, "DestinationKeyMaterialId": MATERIAL,
        }),
        Op::DescribeKey => json!({"KeyMetadata": {
            "KeyId": ARN.rsplit('/').next(), "Arn": ARN, "Enabled": true, "CurrentKeyMaterialId": MATERIAL,
        }}),
        other => panic!("no provider calls {}", other.name()),
    }
}

fn seed() -> StoredDek {
    StoredDek { wrapped: WrappedDek(b"a wrapped key".to_vec()), key_id: ARN.into() }
}

/// Who asks a server that gives this answer, for the key named so.
fn told(key_id: &str, status: u16, body: &str) -> (Responder, Asker) {
    let body = body.to_owned();
    let server = Responder::start(move |_| Some((status, body.clone())));
    let region = Some("eu-central-1".to_owned());
    let asker = Asker::open(&AwsConfig { region, ..config(&server.url(), key_id) });
    (server, asker)
}

/// The answer with a member changed; `null` takes it away.
fn with(op: Op, member: &str, value: Value) -> String {
    let mut answer = right(op);
    let members = if op == Op::DescribeKey { &mut answer["KeyMetadata"] } else { &mut answer };
    let members = members.as_object_mut().unwrap();
    match value {
        Value::Null => drop(members.remove(member).unwrap()),
        value => drop(members.insert(member.into(), value)),
    }
    answer.to_string()
}

#[test]
fn right_answers_are_right() {
    for op in OPS {
        let (server, asker) = told(ARN, 200, &right(op).to_string());
        asker.ask(op, &seed()).unwrap_or_else(|error| panic!("{}: {error:?}", op.name()));
        assert_eq!(server.seen().len(), 1);
    }
}

#[test]
fn an_answer_for_another_key_is_not_believed() {
    let replace = |from: &str, to: &str| ARN.replace(from, to);
    let other_id = replace("1234abcd", "ffffffff");
    let other_account = replace("111122223333", "444455556666");
    let other_region = replace("eu-central-1", "us-east-1");
    let other_partition = replace("arn:aws:", "arn:aws-cn:");
    let alias = replace("key/1234abcd-12ab-34cd-56ef-1234567890ab", "alias/main");
    let by_alias_arn = alias.as_str();
    for (named, answered) in [
        (ARN, &other_id),
        (ARN, &other_account),
        (ARN, &other_region),
        (ARN, &other_partition),
        (ARN, &alias),
        ("1234abcd-12ab-34cd-56ef-1234567890ab", &other_id),
        ("1234abcd-12ab-34cd-56ef-1234567890ab", &other_region),
        ("alias/main", &other_region),
        ("alias/main", &alias),
        (by_alias_arn, &other_account),
        (by_alias_arn, &other_partition),
    ] {
        for op in [Op::GenerateDataKey, Op::Encrypt, Op::ReEncrypt, Op::DescribeKey] {
            let member = if op == Op::DescribeKey { "Arn" } else { "KeyId" };
            let (_server, asker) = told(named, 200, &with(op, member, answered.as_str().into()));
            let what = format!("{}: {named} asked, {answered} answered", op.name());
            let error = expect(asker.ask(op, &seed()), ErrorKind::Refused, &what);
            assert!(error.detail.unwrap().contains(answered.as_str()), "{what}");
        }
    }
    // What a row names is held against the answer, not what the settings name.
    for answered in [&other_id, &other_account, &other_region, &other_partition, &alias] {
        let (_server, asker) = told("alias/main", 200, &with(Op::Decrypt, "KeyId", answered.as_str().into()));
        expect(asker.ask(Op::Decrypt, &seed()), ErrorKind::Unauthenticated, answered);
        let (_server, asker) =
            told("alias/main", 200, &with(Op::ReEncrypt, "SourceKeyId", answered.as_str().into()));
        expect(asker.ask(Op::ReEncrypt, &seed()), ErrorKind::Unauthenticated, answered);
    }
}

#[test]
fn an_answer_with_something_missing_or_wrong_is_not_believed() {
    use ErrorKind::{Refused, Unauthenticated, Unreachable};
    let blob = |length: usize| Value::from(encoded(&vec![7; length]));
    for (op, member, value, kind) in [
        (Op::GenerateDataKey, "Plaintext", Value::Null, Unreachable),
        (Op::GenerateDataKey, "Plaintext", blob(0), Refused),
        (Op::GenerateDataKey, "Plaintext", blob(31), Refused),
        (Op::GenerateDataKey, "Plaintext", blob(33), Refused),
        (Op::GenerateDataKey, "CiphertextBlob", Value::Null, Unreachable),
        (Op::GenerateDataKey, "CiphertextBlob", blob(0), Unreachable),
        (Op::GenerateDataKey, "CiphertextBlob", blob(6145), Unreachable),
        (Op::GenerateDataKey, "KeyId", Value::Null, Unreachable),
        (Op::Decrypt, "Plaintext", Value::Null, Unreachable),
        (Op::Decrypt, "Plaintext", blob(31), Unauthenticated),
        (Op::Decrypt, "Plaintext", blob(33), Unauthenticated),
        (Op::Decrypt, "KeyId", Value::Null, Unauthenticated),
        (Op::Encrypt, "CiphertextBlob", Value::Null, Unreachable),
        (Op::Encrypt, "CiphertextBlob", blob(6145), Unreachable),
        (Op::Encrypt, "KeyId", Value::Null, Unreachable),
        (Op::ReEncrypt, "CiphertextBlob", Value::Null, Unreachable),
        (Op::ReEncrypt, "SourceKeyId", Value::Null, Unauthenticated),
        (Op::ReEncrypt, "KeyId", Value::Null, Unreachable),
        (Op::DescribeKey, "Arn", Value::Null, Unreachable),
    ] {
        let what = format!("{} with {member} {value}", op.name());
        let (server, asker) = told(ARN, 200, &with(op, member, value));
        expect(asker.ask(op, &seed()), kind, &what);
        assert_eq!(server.seen().len(), 1, "{what}");
    }
    // The longest that KMS makes.
    let (_server, asker) = told(ARN, 200, &with(Op::GenerateDataKey, "CiphertextBlob", blob(6144)));
    assert_eq!(asker.generate(&place(1)).unwrap().wrapped.as_bytes().len(), 6144);
}

#[test]
fn a_name_of_key_material_that_is_none_is_left_out() {
    for (value, wanted) in [
        (json!(MATERIAL), Some(MATERIAL.to_owned())),
        (Value::Null, None),
        (json!(""), None),
        (json!("a b"), None),
        (json!("x'; drop table"), None),
        (json!("f".repeat(129)), None),
    ] {
        let (_server, asker) = told(ARN, 200, &with(Op::GenerateDataKey, "KeyMaterialId", value));
        assert_eq!(asker.generate(&place(1)).unwrap().by.key_material_id, wanted);
    }
}

/// Something in between that does not even speak HTTP: no lack of credentials, and worth another try.
#[test]
fn what_is_no_http_is_an_outage() {
    for answer in [
        "SSH-2.0-OpenSSH_9.2\r\n",
        "HTTP/9.9 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        "",
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            for stream in listener.incoming().take(OPS.len()) {
                let mut stream = stream.unwrap();
                // So that the client is not told of unread bytes instead.
                assert!(stream.read(&mut [0; 65536]).unwrap() > 0);
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        let asker = Asker::open(&config(&endpoint, ARN));
        for op in OPS {
            expect(asker.ask(op, &seed()), ErrorKind::Unreachable, &format!("{} told {answer:?}", op.name()));
        }
        server.join().unwrap();
    }
}

/// Everything an error could be shown as.
fn words(error: &KmsError) -> String {
    format!("{error} {error:?} {error:#?}")
}

/// Whether a text holds the key, or a good part of it, in any form that a text may have.
#[track_caller]
fn holds_no_key(text: &str, key: &[u8], what: &str) {
    let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    let decimal: String = key[..6].iter().map(|byte| format!("{byte}, ")).collect();
    let plain = String::from_utf8_lossy(&key[..8]).into_owned();
    let lower = text.to_ascii_lowercase();
    for (form, part) in [("hex", &hex[..16]), ("decimal", &decimal), ("plain", &plain)] {
        assert!(!lower.contains(&part.to_ascii_lowercase()), "{what}: the key in {form}: {text}");
    }
    assert!(!text.contains(&encoded(key)[..12]), "{what}: the key in base64: {text}");
}

#[test]
fn an_error_never_quotes_what_it_could_not_read() {
    let key = encoded(&KEY);
    let plain = String::from_utf8(KEY.to_vec()).unwrap();
    let bodies = [
        // Cut off, twice, nested, bare, and in places where something else is due.
        format!("{{\"Plaintext\":\"{key}\",\"KeyId\":"),
        format!("{{\"Plaintext\":\"{key}\"}}{{\"Plaintext\":\"{key}\"}}"),
        format!("{{\"Plaintext\":[\"{key}\"]}}"),
        format!("{{\"Plaintext\":{{\"{key}\":1}}}}"),
        format!("{{\"Plaintext\":\"{key}!\"}}"),
        format!("{{\"Plaintext\":\"\\u{key}\"}}"),
        format!("{{\"KeyMetadata\":\"{key}\",\"CiphertextBlob\":\"{key}#\"}}"),
        format!("{{\"KeyMetadata\":{{\"Enabled\":\"{key}\",\"CreationDate\":\"{key}\"}}}}"),
        format!("{{\"{key}"),
        key.clone(),
        plain,
        format!("<html>{key}</html>"),
    ];
    for body in &bodies {
        for status in [200, 400, 403, 500] {
            let (_server, asker) = told(ARN, status, body);
            for op in OPS {
                let error = asker.ask(op, &seed()).unwrap_err();
                assert!(error.message.len() < 200, "{error:?}");
                holds_no_key(&words(&error), &KEY, &format!("{} answered {status} {body}", op.name()));
            }
        }
    }
}

#[test]
fn what_another_party_wrote_is_bounded_and_on_one_line() {
    let long = "y".repeat(100_000);
    let bodies = [
        (
            400,
            json!({"__type": "AccessDeniedException", "Message": format!("no\nERROR: {long}")}).to_string(),
        ),
        (400, json!({"__type": long.as_str(), "message": long.as_str()}).to_string()),
        (200, with(Op::GenerateDataKey, "KeyId", long.as_str().into())),
        (200, with(Op::GenerateDataKey, "KeyId", format!("{ARN}\n{long}").into())),
    ];
    for (status, body) in bodies {
        let (_server, asker) = told(ARN, status, &body);
        let error = expect(asker.generate(&place(1)), ErrorKind::Refused, "long");
        for text in [Some(&error.message), error.detail.as_ref(), error.hint.as_ref()].into_iter().flatten() {
            assert!(text.len() < 2500, "{} bytes: {}…", text.len(), &text[..200]);
            assert!(!text.contains(char::is_control), "{text}");
        }
    }
}

#[test]
fn neither_provider_nor_errors_show_credentials_or_keys() {
    let (kms, asker) = fake();
    let seed = asker.seed();
    let known = dek(0xa7);
    let credentials = Credentials::example();
    let mut texts = Vec::new();
    for fault in Fault::ALL {
        if matches!(fault, Fault::Latency(_) | Fault::Hang) {
            continue;
        }
        kms.inject(fault);
        for op in OPS {
            texts.extend(asker.ask(op, &seed).err().map(|error| words(&error)));
        }
        texts.extend(asker.wrap(&place(3), &known).err().map(|error| words(&error)));
        kms.clear();
    }
    let generated = asker.generate(&place(1)).unwrap();
    let opened = asker.unwrap(&place(1), &seed).unwrap();
    texts.push(format!("{generated:?} {opened:?} {seed:?} {:?} {:#?}", asker.provider, asker.provider));
    assert!(texts.len() > 100, "{}", texts.len());
    for text in &texts {
        assert!(!text.contains(&credentials.secret_access_key), "{text}");
        assert!(!text.contains(&credentials.access_key_id), "{text}");
        holds_no_key(text, known.as_bytes(), "wrapped");
        holds_no_key(text, generated.dek.as_bytes(), "generated");
        holds_no_key(text, opened.as_bytes(), "unwrapped");
        // The wrapped key is no secret, but nothing that belongs into a log.
        assert!(!text.contains(&encoded(seed.wrapped.as_bytes())[..40]), "{text}");
    }
}
