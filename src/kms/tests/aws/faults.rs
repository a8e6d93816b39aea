//! Every failure the fake can give × every operation of the provider: which kind of error, and how many requests.
//!
//! The trap: a retry below ours. The service repeats calls within its own deadlines and counts them; were the SDK to
//! repeat them too, a refusal would be asked for again and an outage would be three times as long.

use std::time::Duration;

use hyperion_vault_kms::{ErrorKind, StoredDek};
use hyperion_vault_tests::kms::{Credentials, FakeKms, Fault, Op};
use hyperion_vault_tests::{PATIENCE, wait_for};

use crate::child::Launch;
use crate::setup::{Asker, OPS, expect, fake};

/// What becomes of a call that meets a fault.
#[derive(Debug)]
enum Expected {
    Success,
    /// The provider leaves it to the service to give up.
    Silence,
    Error(ErrorKind),
}

fn expected(fault: Fault, op: Op) -> Expected {
    use ErrorKind::{Refused, Throttled, Unauthenticated, Unreachable};
    // What opens but is no data key of ours was tampered with; what is made wrong is the service's mistake.
    let wrong_key = if op == Op::Decrypt { Unauthenticated } else { Refused };
    Expected::Error(match fault {
        Fault::Latency(_) => return Expected::Success,
        Fault::Hang => return Expected::Silence,
        Fault::Refused | Fault::ResetBeforeAnswer | Fault::ResetMidBody => Unreachable,
        Fault::Throttling => Throttled,
        Fault::HttpEmpty(429) | Fault::HttpHtml(429) => Throttled,
        Fault::HttpEmpty(500..) | Fault::HttpHtml(500..) => Unreachable,
        Fault::HttpEmpty(_) | Fault::HttpHtml(_) => Refused,
        Fault::KmsInternal | Fault::DependencyTimeout | Fault::KeyUnavailable => Unreachable,
        Fault::AccessDenied | Fault::ExpiredCredentials => Refused,
        Fault::Disabled | Fault::PendingDeletion | Fault::NotFound => Refused,
        Fault::InvalidCiphertext | Fault::IncorrectKey => Unauthenticated,
        // Not KMS, for now.
        Fault::GarbageJson | Fault::WrongShape => Unreachable,
        Fault::ShortKey | Fault::LongKey | Fault::OtherKeyId => wrong_key,
    })
}

/// Makes a call that is not answered, and gives it up a while after it has arrived.
fn give_up(kms: &FakeKms, asker: &Asker, op: Op, seed: &StoredDek) {
    let before = kms.calls(op);
    let patience = async {
        while kms.calls(op) == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    asker.wait(async {
        tokio::select! {
            ended = asker.future(op, seed) => panic!("{}: {ended:?}", op.name()),
            () = patience => {}
        }
    });
}

#[test]
fn every_fault_of_every_operation_has_its_kind_and_costs_one_request() {
    let (kms, asker) = fake();
    let seed = asker.seed();
    let more = [
        Fault::HttpEmpty(503),
        Fault::HttpHtml(502),
        Fault::HttpEmpty(429),
        Fault::HttpHtml(429),
        Fault::HttpEmpty(403),
        Fault::HttpHtml(403),
        Fault::HttpHtml(404),
        Fault::HttpEmpty(307),
    ];
    let mut checked = 0;
    for fault in Fault::ALL.into_iter().chain(more) {
        for op in OPS.into_iter().filter(|&op| fault.applies_to(op)) {
            let what = format!("{} of {}", fault.name(), op.name());
            kms.reset_counters();
            if fault == Fault::Refused {
                kms.inject(fault)
            } else {
                kms.inject_for(op, fault, None)
            }
            match expected(fault, op) {
                Expected::Success => asker.ask(op, &seed).unwrap(),
                Expected::Silence => give_up(&kms, &asker, op, &seed),
                Expected::Error(kind) => {
                    let error = expect(asker.ask(op, &seed), kind, &what);
                    let words = format!("{error:?}");
                    // What AWS said, and what to allow.
                    if fault == Fault::AccessDenied {
                        assert!(words.contains(&Credentials::example().identity()), "{words}");
                        assert!(error.hint.unwrap().contains(&op.action()), "{words}");
                    }
                    if matches!(kind, ErrorKind::Unreachable | ErrorKind::Throttled) {
                        assert!(error.message.contains(op.name()), "{words}");
                    }
                }
            }
            let calls = kms.calls(op);
            // Credentials that are refused are loaded anew, if they are not new (see below).
            let due = if fault == Fault::ExpiredCredentials { 1..=2 } else { 1..=1 };
            assert!(
                due.contains(&calls) || fault == Fault::Refused && calls == 0,
                "{what}: {calls} requests"
            );
            assert_eq!(kms.counters().total_calls(), calls, "{what}");
            kms.clear();
            // The connection of a call that was given up is not used for the next one.
            asker.ask(op, &seed).unwrap_or_else(|error| panic!("after {what}: {error:?}"));
            checked += 1;
        }
    }
    assert!(checked > 130, "only {checked} cases");
}

#[test]
fn a_call_that_is_given_up_closes_its_connection() {
    let (kms, asker) = fake();
    let seed = asker.seed();
    kms.inject(Fault::Hang);
    for op in OPS {
        give_up(&kms, &asker, op, &seed);
    }
    // Drives the client's side of the connections, too.
    asker.wait(async { tokio::time::sleep(Duration::from_millis(50)).await });
    wait_for("the hung calls' connections to end", PATIENCE, || kms.open_connections() == 0);
    kms.clear();
    asker.describe().unwrap();
}

#[test]
fn a_connection_that_the_service_closed_is_no_outage() {
    let (kms, asker) = fake();
    for _ in 0..20 {
        asker.describe().unwrap();
        kms.close_connections();
        wait_for("the connection's end", PATIENCE, || kms.open_connections() == 0);
        // The client learns of it before it sends the next request.
        asker.wait(async { tokio::time::sleep(Duration::from_millis(5)).await });
    }
    assert_eq!(kms.calls(Op::DescribeKey), 20);
}

#[test]
fn credentials_that_are_refused_are_loaded_anew_once() {
    let (kms, asker) = fake();
    asker.describe().unwrap();
    kms.inject(Fault::ExpiredCredentials);
    kms.reset_counters();
    // The session is new: others would be the same.
    let error = expect(asker.describe(), ErrorKind::Refused, "expired");
    assert!(error.detail.unwrap().contains("expired"));
    assert_eq!(kms.calls(Op::DescribeKey), 1);

    // Older than a renewal's least interval (session.rs), it is made anew: once for all who ask.
    std::thread::sleep(Duration::from_millis(2100));
    kms.reset_counters();
    expect(asker.describe(), ErrorKind::Refused, "expired");
    assert_eq!(kms.calls(Op::DescribeKey), 2);
    kms.clear();
    asker.describe().unwrap();
}

#[test]
fn wrong_credentials_are_named_as_such() {
    let (kms, asker) = fake();
    kms.remove_credentials(&Credentials::example().access_key_id);
    let error = expect(asker.describe(), ErrorKind::Refused, "unknown access key");
    assert!(error.message.contains("does not accept the credentials"), "{error:?}");
    // A secret that does not belong to the access key.
    let wrong = Credentials { secret_access_key: "x".repeat(40), ..Credentials::example() };
    kms.add_credentials(Credentials::example());
    let error = Launch::of(&kms).credentials(&wrong).start().ask("describe").err("refused");
    assert!(error.message.contains("does not accept the credentials"), "{error:?}");
    assert!(!format!("{error:?}").contains(&wrong.secret_access_key));
    asker.describe().unwrap();
}
