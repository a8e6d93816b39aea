//! What the fake key service has seen: counters, and the latest requests. Runs in connections' threads.
//!
//! The trap: a test that prints a request must not print a key. Key bytes are cut out before anything is kept.

use super::auth::claimed_access_key_id;
use super::http::Request;
use super::lock;
use super::op::Op;
use serde_json::Value;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Enough for a test to look at; a busy one makes ten thousand calls.
const KEPT: usize = 2000;

/// A request as it arrived, and how it ended.
#[derive(Clone, Debug)]
pub struct SeenRequest {
    pub at: Instant,
    /// `None`: no operation the fake knows.
    pub op: Option<Op>,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// Without key bytes.
    pub body: Value,
    /// As claimed; the signature may have been wrong.
    pub access_key_id: Option<String>,
    /// As the client named it.
    pub key_id: Option<String>,
    /// Of ReEncrypt: the source's.
    pub context: BTreeMap<String, String>,
    /// `None` while it is being worked on, or left without an answer.
    pub outcome: Option<Outcome>,
    /// The fault it met, by name; latency is none.
    pub fault: Option<String>,
}

/// How a request was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub status: u16,
    /// AWS's name of the error.
    pub error: Option<String>,
    /// From the last byte of the request to the first of the answer.
    pub took: Duration,
}

impl SeenRequest {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }
}

/// Counts since the start or the last reset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests that arrived, by operation, whatever became of them.
    pub calls: BTreeMap<Op, u64>,
    /// Answers that were no success, and requests that met a fault.
    pub failures: u64,
    /// Requests that met a fault other than latency, by its name.
    pub faults: BTreeMap<String, u64>,
    /// Connections accepted.
    pub connections: u64,
    /// The largest number of requests that were being worked on at one time.
    pub max_concurrent: u64,
}

impl Counters {
    pub fn calls(&self, op: Op) -> u64 {
        self.calls.get(&op).copied().unwrap_or(0)
    }

    pub fn total_calls(&self) -> u64 {
        self.calls.values().sum()
    }
}

#[derive(Default)]
pub(super) struct Log(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    counters: Counters,
    running: u64,
    requests: VecDeque<SeenRequest>,
    /// The number of the request at the front.
    first: u64,
}

/// A request in the log.
pub(super) struct Entry<'a> {
    log: &'a Log,
    number: u64,
    began: Instant,
}

impl Log {
    pub fn connection(&self) {
        lock(&self.0).counters.connections += 1;
    }

    pub fn begin(&self, op: Option<Op>, request: &Request, body: Value, fault: Option<String>) -> Entry<'_> {
        let began = Instant::now();
        let text = |name: &str| body.get(name).and_then(Value::as_str).map(str::to_owned);
        let context = body.get("EncryptionContext").or_else(|| body.get("SourceEncryptionContext"));
        let seen = SeenRequest {
            at: began,
            op,
            headers: request.headers.clone(),
            access_key_id: request.header("authorization").and_then(claimed_access_key_id),
            key_id: text("KeyId").or_else(|| text("SourceKeyId")),
            context: context.and_then(|c| serde_json::from_value(c.clone()).ok()).unwrap_or_default(),
            body: without_key_bytes(body),
            outcome: None,
            fault: fault.clone(),
        };
        let mut inner = lock(&self.0);
        inner.running += 1;
        inner.counters.max_concurrent = inner.counters.max_concurrent.max(inner.running);
        if let Some(op) = op {
            *inner.counters.calls.entry(op).or_default() += 1;
        }
        if let Some(fault) = fault {
            inner.counters.failures += 1;
            *inner.counters.faults.entry(fault).or_default() += 1;
        }
        inner.requests.push_back(seen);
        if inner.requests.len() > KEPT {
            inner.requests.pop_front();
            inner.first += 1;
        }
        let number = inner.first + inner.requests.len() as u64 - 1;
        Entry { log: self, number, began }
    }

    pub fn counters(&self) -> Counters {
        lock(&self.0).counters.clone()
    }

    pub fn requests(&self) -> Vec<SeenRequest> {
        lock(&self.0).requests.iter().cloned().collect()
    }

    /// Requests that are being worked on stay counted as such.
    pub fn reset(&self) {
        let mut inner = lock(&self.0);
        inner.counters = Counters { max_concurrent: inner.running, ..Counters::default() };
        inner.first += inner.requests.len() as u64;
        inner.requests.clear();
    }
}

impl Entry<'_> {
    /// Notes the answer.
    pub fn answered(&self, status: u16, error: Option<String>) {
        let mut inner = lock(&self.log.0);
        let index = self.number.checked_sub(inner.first).and_then(|index| usize::try_from(index).ok());
        let took = self.began.elapsed();
        let seen = index.and_then(|index| inner.requests.get_mut(index));
        let mut new_failure = status >= 400;
        if let Some(seen) = seen {
            // A fault was counted when the request arrived.
            new_failure &= seen.fault.is_none();
            seen.outcome = Some(Outcome { status, error, took });
        }
        inner.counters.failures += u64::from(new_failure);
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        lock(&self.log.0).running -= 1;
    }
}

fn without_key_bytes(mut body: Value) -> Value {
    if let Some(plaintext) = body.get_mut("Plaintext") {
        let length = plaintext.as_str().map_or(0, str::len);
        *plaintext = format!("({length} characters)").into();
    }
    body
}
