//! The failures the fake key service can be told to give, and the book of those in force. Runs in the test process.
//!
//! The trap: a fault that does not apply to an operation (a wrong key length in an answer without a key) must leave it
//! alone and not be used up by it, or a test of a limited fault would test nothing.

use super::lock;
use super::op::Op;
use std::sync::Mutex;
use std::time::Duration;

/// A failure of the key service, as a client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Answers this much later, and then as usual. Adds to any other fault.
    Latency(Duration),
    /// Reads the request and does not answer while the fault is in force; answers as usual once it is cleared.
    Hang,
    /// Connections are refused and open ones closed until the fault is cleared. Of the whole server: not for one
    /// operation, nor for a number of times.
    Refused,
    /// Resets the connection after reading the request, without doing what it asks.
    ResetBeforeAnswer,
    /// Does what is asked, sends headers and half of the body, and resets the connection.
    ResetMidBody,
    /// ThrottlingException, 400.
    Throttling,
    /// This status without a body.
    HttpEmpty(u16),
    /// This status with a page of HTML, as a proxy or load balancer in between gives it.
    HttpHtml(u16),
    /// KMSInternalException, 500.
    KmsInternal,
    /// DependencyTimeoutException, 503.
    DependencyTimeout,
    /// KeyUnavailableException, 500.
    KeyUnavailable,
    /// AccessDeniedException, 400, naming identity, action and resource.
    AccessDenied,
    /// ExpiredTokenException, 400, whatever the credentials are.
    ExpiredCredentials,
    /// DisabledException, 400.
    Disabled,
    /// KMSInvalidStateException, 400: the key is pending deletion.
    PendingDeletion,
    /// NotFoundException, 400.
    NotFound,
    /// InvalidCiphertextException, 400.
    InvalidCiphertext,
    /// IncorrectKeyException, 400.
    IncorrectKey,
    /// 200 with something that is not JSON.
    GarbageJson,
    /// 200 with JSON that lacks what was asked for.
    WrongShape,
    /// A key of 16 bytes.
    ShortKey,
    /// A key of 64 bytes.
    LongKey,
    /// The answer names another key than the one that was asked for.
    OtherKeyId,
}

impl Fault {
    /// One of each kind, for tables over all of them.
    pub const ALL: [Fault; 23] = [
        Fault::Latency(Duration::from_millis(300)),
        Fault::Hang,
        Fault::Refused,
        Fault::ResetBeforeAnswer,
        Fault::ResetMidBody,
        Fault::Throttling,
        Fault::HttpEmpty(500),
        Fault::HttpHtml(503),
        Fault::KmsInternal,
        Fault::DependencyTimeout,
        Fault::KeyUnavailable,
        Fault::AccessDenied,
        Fault::ExpiredCredentials,
        Fault::Disabled,
        Fault::PendingDeletion,
        Fault::NotFound,
        Fault::InvalidCiphertext,
        Fault::IncorrectKey,
        Fault::GarbageJson,
        Fault::WrongShape,
        Fault::ShortKey,
        Fault::LongKey,
        Fault::OtherKeyId,
    ];

    /// A stable name, different for each entry of [`ALL`](Self::ALL).
    pub fn name(self) -> String {
        let name = match self {
            Fault::Latency(_) => "latency",
            Fault::Hang => "hang",
            Fault::Refused => "refused",
            Fault::ResetBeforeAnswer => "reset_before_answer",
            Fault::ResetMidBody => "reset_mid_body",
            Fault::Throttling => "throttling",
            Fault::HttpEmpty(status) => return format!("http_{status}_empty"),
            Fault::HttpHtml(status) => return format!("http_{status}_html"),
            Fault::KmsInternal => "kms_internal",
            Fault::DependencyTimeout => "dependency_timeout",
            Fault::KeyUnavailable => "key_unavailable",
            Fault::AccessDenied => "access_denied",
            Fault::ExpiredCredentials => "expired_credentials",
            Fault::Disabled => "disabled",
            Fault::PendingDeletion => "pending_deletion",
            Fault::NotFound => "not_found",
            Fault::InvalidCiphertext => "invalid_ciphertext",
            Fault::IncorrectKey => "incorrect_key",
            Fault::GarbageJson => "garbage_json",
            Fault::WrongShape => "wrong_shape",
            Fault::ShortKey => "short_key",
            Fault::LongKey => "long_key",
            Fault::OtherKeyId => "other_key_id",
        };
        name.into()
    }

    /// Whether the real service could answer this operation so.
    pub fn applies_to(self, op: Op) -> bool {
        match self {
            Fault::Disabled | Fault::PendingDeletion => op.is_cryptographic() || op == Op::RotateKeyOnDemand,
            Fault::NotFound => op != Op::CreateKey,
            Fault::InvalidCiphertext | Fault::IncorrectKey => op.takes_blob(),
            Fault::WrongShape | Fault::OtherKeyId => op.is_cryptographic() || op == Op::DescribeKey,
            Fault::ShortKey | Fault::LongKey => op.returns_plaintext(),
            _ => true,
        }
    }
}

/// What is to happen to one request.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Plan {
    pub delay: Duration,
    pub fault: Option<Fault>,
}

struct Rule {
    fault: Fault,
    /// `None`: every operation.
    op: Option<Op>,
    /// `None`: until cleared.
    left: Option<u64>,
}

/// The faults in force, the oldest first.
#[derive(Default)]
pub(super) struct FaultBook(Mutex<Vec<Rule>>);

impl FaultBook {
    pub fn add(&self, fault: Fault, op: Option<Op>, times: Option<u64>) {
        if let Some(op) = op {
            assert!(fault.applies_to(op), "{} never happens to {}", fault.name(), op.name());
        }
        assert_ne!(times, Some(0), "a fault for no time at all");
        lock(&self.0).push(Rule { fault, op, left: times });
    }

    pub fn clear(&self) {
        lock(&self.0).clear();
    }

    /// Takes what is due to a request: all latencies, and the first other fault. `None` is an unknown operation.
    pub fn take(&self, op: Option<Op>) -> Plan {
        let mut plan = Plan::default();
        let mut rules = lock(&self.0);
        for rule in rules.iter_mut() {
            let meant = rule.op.is_none() || rule.op == op;
            if !meant || op.is_some_and(|op| !rule.fault.applies_to(op)) {
                continue;
            }
            match rule.fault {
                Fault::Latency(delay) => plan.delay += delay,
                fault if plan.fault.is_none() => plan.fault = Some(fault),
                _ => continue,
            }
            if let Some(left) = &mut rule.left {
                *left -= 1;
            }
        }
        rules.retain(|rule| rule.left != Some(0));
        plan
    }
}
