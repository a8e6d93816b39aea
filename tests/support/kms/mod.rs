//! A fake AWS KMS for tests: a real server on loopback that is strict where AWS is, and fails when it is told to.
//!
//! Runs in the test process, on threads of its own. It speaks AWS JSON 1.1 over HTTP, verifies Signature Version 4,
//! really encrypts under keys that rotate and have states, insists on the exact encryption context, and counts. It
//! knows one account and, unless keys are replicated, one region. What it is not: eventually consistent, rate-limited
//! or an authority on IAM policies; no request to it tells anything about the real service beyond its published API.
//!
//! The trap of every fake is leniency: its own tests (tests.rs) hold it to refuse what must be refused.

mod args;
mod auth;
mod blob;
mod clock;
mod error;
mod fault;
mod http;
mod keyring;
mod listener;
mod log;
mod op;
mod operations;
mod respond;
mod server;
mod sigv4;
#[cfg(test)]
mod tests;

pub use auth::Credentials;
pub use fault::Fault;
pub use keyring::KeyState;
pub use log::{Counters, Outcome, SeenRequest};
pub use op::Op;

use keyring::key_arn;
use server::Server;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// The account of all keys; AWS's own example.
pub const ACCOUNT: &str = "111122223333";
/// The region of all keys that are made.
pub const REGION: &str = "eu-central-1";
/// The alias of the key a new fake has.
pub const ALIAS: &str = "alias/hyperion";

/// A running fake KMS; ends when dropped, hung requests included. Methods take `&self`: threads may share it.
pub struct FakeKms {
    server: Arc<Server>,
    acceptor: Option<JoinHandle<()>>,
    key_id: String,
}

impl FakeKms {
    /// Starts a service with one symmetric key, which [`ALIAS`] names, and [`Credentials::example`] for it.
    pub fn start() -> Self {
        let server = Server::new();
        server.credentials.add(Credentials::example());
        let key_id = {
            let mut keyring = lock(&server.keyring);
            let id = keyring.create(REGION, false);
            keyring.point_alias(REGION, ALIAS, &id);
            id
        };
        let thread = std::thread::Builder::new().name("fake-kms-accept".into());
        let acceptor = thread.spawn({
            let server = Arc::clone(&server);
            move || server.accept_all()
        });
        Self { acceptor: Some(acceptor.expect("cannot start a thread")), server, key_id }
    }

    /// `http://127.0.0.1:PORT`; stays the same while connections are refused.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port())
    }

    pub fn port(&self) -> u16 {
        self.server.port()
    }

    pub fn region(&self) -> &'static str {
        REGION
    }

    /// The ARN of the key it started with.
    pub fn key_arn(&self) -> String {
        key_arn(REGION, &self.key_id)
    }

    /// The id of the key it started with.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// Makes another key and returns its ARN.
    pub fn create_key(&self) -> String {
        key_arn(REGION, &lock(&self.server.keyring).create(REGION, false))
    }

    /// Makes a multi-region key (`mrk-…`) and returns its ARN.
    pub fn create_multi_region_key(&self) -> String {
        key_arn(REGION, &lock(&self.server.keyring).create(REGION, true))
    }

    /// Makes a multi-region key reachable in another region, and returns its ARN there. The region of a request is the
    /// one it is signed for; the endpoint is the same.
    pub fn replicate(&self, key: &str, region: &str) -> String {
        let id = self.find(key).1;
        assert!(id.starts_with("mrk-"), "{key} is no multi-region key");
        lock(&self.server.keyring).set_state(&id, region, KeyState::Enabled);
        key_arn(region, &id)
    }

    /// Makes an alias (`alias/…`), or points it to another key.
    pub fn create_alias(&self, alias: &str, key: &str) {
        assert!(alias.starts_with("alias/"), "{alias:?} does not begin with alias/");
        let (region, id) = self.find(key);
        lock(&self.server.keyring).point_alias(&region, alias, &id);
    }

    /// Gives a key new material, under which it wraps from now on, and returns its id. Older wrapped keys still open.
    pub fn rotate(&self, key: &str) -> String {
        let id = self.find(key).1;
        lock(&self.server.keyring).rotate(&id)
    }

    /// The id of the material a key wraps with.
    pub fn key_material_id(&self, key: &str) -> String {
        let id = self.find(key).1;
        lock(&self.server.keyring).by_id(&id).current().id_text()
    }

    /// Sets a key's state, in the region of its ARN if it is one.
    pub fn set_state(&self, key: &str, state: KeyState) {
        let (region, id) = self.find(key);
        lock(&self.server.keyring).set_state(&id, &region, state);
    }

    /// Deletes a key at once and for good, with its aliases.
    pub fn delete_key(&self, key: &str) {
        let id = self.find(key).1;
        lock(&self.server.keyring).remove(&id);
    }

    pub fn add_credentials(&self, credentials: Credentials) {
        self.server.credentials.add(credentials);
    }

    /// From now on these credentials are known, but expired.
    pub fn expire_credentials(&self, access_key_id: &str) {
        self.server.credentials.expire(access_key_id);
    }

    /// From now on these credentials are unknown.
    pub fn remove_credentials(&self, access_key_id: &str) {
        self.server.credentials.remove(access_key_id);
    }

    /// From now on every request to which the fault can apply meets it, until [`clear`](Self::clear).
    pub fn inject(&self, fault: Fault) {
        match fault {
            Fault::Refused => self.server.refuse(),
            fault => self.server.faults.add(fault, None, None),
        }
    }

    /// Like [`inject`](Self::inject), for one operation, and for so many of its calls if `times` says so.
    pub fn inject_for(&self, op: Op, fault: Fault, times: Option<u64>) {
        assert_ne!(fault, Fault::Refused, "connections are refused whatever is asked: use inject");
        self.server.faults.add(fault, Some(op), times);
    }

    /// Like [`inject`](Self::inject), for the next so many requests, whatever they ask.
    pub fn inject_times(&self, fault: Fault, times: u64) {
        assert_ne!(fault, Fault::Refused, "nobody counts refused connections: use inject");
        self.server.faults.add(fault, None, Some(times));
    }

    /// Ends all faults. Hung requests are answered; latency that has begun runs to its end.
    pub fn clear(&self) {
        self.server.clear();
    }

    /// Closes all connections, as a service does that restarts.
    pub fn close_connections(&self) {
        self.server.close_connections();
    }

    /// Connections that are open now.
    pub fn open_connections(&self) -> usize {
        self.server.open_connections()
    }

    /// How many calls of this operation have arrived, whatever became of them.
    pub fn calls(&self, op: Op) -> u64 {
        self.counters().calls(op)
    }

    pub fn counters(&self) -> Counters {
        self.server.log.counters()
    }

    /// The largest number of requests that were being worked on at one time.
    pub fn max_concurrent(&self) -> u64 {
        self.counters().max_concurrent
    }

    /// The latest requests (two thousand at most), the oldest first; without key bytes.
    pub fn requests(&self) -> Vec<SeenRequest> {
        self.server.log.requests()
    }

    /// Sets all counters to zero and forgets the requests.
    pub fn reset_counters(&self) {
        self.server.log.reset();
    }

    /// Region and id of the key that a test names by ARN, id or alias.
    #[track_caller]
    fn find(&self, key: &str) -> (String, String) {
        let region =
            key.strip_prefix("arn:aws:kms:").and_then(|rest| rest.split(':').next()).unwrap_or(REGION);
        let keyring = lock(&self.server.keyring);
        let found = keyring.find(key, region).unwrap_or_else(|error| panic!("no key {key:?}: {error:?}"));
        (region.into(), found.id.clone())
    }
}

impl Drop for FakeKms {
    fn drop(&mut self) {
        self.server.stop();
        if let Some(acceptor) = self.acceptor.take() {
            let ended = acceptor.join();
            if !std::thread::panicking() {
                assert!(ended.is_ok(), "the fake key service panicked");
            }
        }
        // Their threads hold nothing but the server itself: one that is late does no harm.
        self.server.wait_idle(Duration::from_secs(5));
    }
}

/// A test that panicked in one place must still get to the rest.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
