//! Counters and the request log, and that the server is no bottleneck.

use super::client::{Client, base64};
use crate::kms::{FakeKms, Fault, Op};
use crate::{PATIENCE, wait_for};
use serde_json::json;
use std::net::TcpStream;
use std::time::{Duration, Instant};

#[test]
fn requests_are_kept_without_key_bytes() {
    let kms = FakeKms::start();
    let mut client = Client::new(&kms);
    let context = json!({"a": "b"});
    let plaintext = base64(&[0x42; 32]);
    client.ok(
        Op::Encrypt,
        json!({"KeyId": kms.key_id(), "Plaintext": plaintext, "EncryptionContext": context}),
    );
    client.refused(Op::Decrypt, json!({"CiphertextBlob": "AAAA", "EncryptionContext": context}));
    let seen = kms.requests();
    assert_eq!(seen.len(), 2);
    assert_eq!((seen[0].op, seen[0].key_id.as_deref()), (Some(Op::Encrypt), Some(kms.key_id())));
    assert_eq!(seen[0].context.get("a").map(String::as_str), Some("b"));
    assert_eq!(seen[0].header("x-amz-target"), Some("TrentService.Encrypt"));
    assert_eq!(seen[0].outcome.as_ref().unwrap().status, 200);
    assert!(!format!("{seen:?}").contains(&plaintext));
    let outcome = seen[1].outcome.as_ref().unwrap();
    assert_eq!((outcome.status, outcome.error.as_deref()), (400, Some("InvalidCiphertextException")));

    let counters = kms.counters();
    assert_eq!((counters.calls(Op::Encrypt), counters.calls(Op::Decrypt), counters.total_calls()), (1, 1, 2));
    assert_eq!((counters.failures, counters.connections, counters.max_concurrent), (1, 1, 1));
    assert!(counters.faults.is_empty());
    kms.reset_counters();
    assert_eq!((kms.counters().total_calls(), kms.max_concurrent(), kms.requests().len()), (0, 0, 0));
}

#[test]
fn the_log_is_bounded_and_the_counters_are_not() {
    let kms = FakeKms::start();
    let mut client = Client::new(&kms);
    let request = client.request(Op::DescribeKey, &json!({"KeyId": "alias/hyperion"}));
    for _ in 0..2100 {
        client.exchange(&request).unwrap();
    }
    assert_eq!((kms.calls(Op::DescribeKey), kms.requests().len()), (2100, 2000));
    assert!(kms.requests().iter().all(|seen| seen.outcome.is_some()));
}

#[test]
fn latency_of_one_call_does_not_add_to_that_of_another() {
    const THREADS: u32 = 16;
    const CALLS: u32 = 25;
    let kms = FakeKms::start();
    let delay = Duration::from_millis(100);
    kms.inject(Fault::Latency(delay));
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let mut client = Client::new(&kms);
                for _ in 0..CALLS {
                    client.ok(Op::GenerateDataKey, json!({"KeyId": "alias/hyperion", "KeySpec": "AES_256"}));
                }
            });
        }
    });
    let took = began.elapsed();
    // One after the other they would take 40 s; side by side 2.5 s, and this leaves room for a loaded machine.
    assert!(took < delay * THREADS * CALLS / 2, "{took:?}");
    assert_eq!(kms.calls(Op::GenerateDataKey), u64::from(THREADS * CALLS));
    assert!((2..=u64::from(THREADS)).contains(&kms.max_concurrent()), "{}", kms.max_concurrent());
}

#[test]
fn hundreds_of_connections() {
    let kms = FakeKms::start();
    let open: Vec<TcpStream> =
        (0..300).map(|_| TcpStream::connect(("127.0.0.1", kms.port())).unwrap()).collect();
    wait_for("all connections", PATIENCE, || kms.open_connections() == open.len());
    Client::new(&kms).ok(Op::DescribeKey, json!({"KeyId": "alias/hyperion"}));
    kms.close_connections();
    wait_for("no connection", PATIENCE, || kms.open_connections() == 0);
    Client::new(&kms).ok(Op::DescribeKey, json!({"KeyId": "alias/hyperion"}));
}
