//! A child process that runs a [`Service`] with the `aws` provider, in an environment and a home of its own.
//!
//! The child is this test program, started with [`child`] as its only test; it reads commands from its standard input
//! and answers with a line of JSON each. The traps: an environment variable of ours that reaches it (it starts with an
//! empty environment), and a child that outlives us (it ends with its standard input).

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use base64::prelude::{BASE64_STANDARD, Engine};
use hyperion_vault_kms::{
    AwsConfig, Job, Limits, Op, Outcome, ProviderConfig, Service, ServiceConfig, StoredDek, WrappedDek,
};
use hyperion_vault_tests::kms::{Credentials, FakeKms};
use hyperion_vault_tests::threads::with_signals_blocked;
use hyperion_vault_tests::{PATIENCE, wait_for};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::setup::{place, trusted_by_default};
use crate::threads::threads;

/// Where a child finds its orders; a process without it is none.
const ORDERS: &str = "HYPERION_VAULT_TEST_CHILD";

/// Begins each line that is ours: libtest writes to standard output too.
const MARK: &str = "@@";

/// A child to be.
pub struct Launch {
    orders: Value,
    environment: Vec<(String, String)>,
    home: TempDir,
}

impl Launch {
    /// A child that uses this key. It finds no credentials and no metadata service.
    pub fn new(key_id: &str) -> Self {
        let launch = Self {
            orders: json!({"key_id": key_id, "attempt_ms": 15_000}),
            environment: Vec::new(),
            home: tempfile::tempdir().unwrap(),
        };
        let home = launch.home.path().to_str().unwrap().to_owned();
        let trusted = trusted_by_default().to_str().unwrap().to_owned();
        launch.env("HOME", &home).env("SSL_CERT_FILE", &trusted).env("AWS_EC2_METADATA_DISABLED", "true")
    }

    /// A child that uses the fake's key at the fake.
    pub fn of(kms: &FakeKms) -> Self {
        Self::new(&kms.key_arn()).endpoint(&kms.endpoint())
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Without this variable of those that every child has.
    pub fn without(mut self, name: &str) -> Self {
        self.environment.retain(|(own, _)| own != name);
        self
    }

    /// In the environment.
    pub fn credentials(self, credentials: &Credentials) -> Self {
        let launch = self
            .env("AWS_ACCESS_KEY_ID", &credentials.access_key_id)
            .env("AWS_SECRET_ACCESS_KEY", &credentials.secret_access_key);
        match &credentials.session_token {
            Some(token) => launch.env("AWS_SESSION_TOKEN", token),
            None => launch,
        }
    }

    /// `kms_endpoint_url`.
    pub fn endpoint(self, url: &str) -> Self {
        self.setting("endpoint_url", url)
    }

    /// What `unwrap` unwraps, of [`place`]`(1)`.
    pub fn stored(mut self, stored: &StoredDek) -> Self {
        self.orders["wrapped"] = BASE64_STANDARD.encode(stored.wrapped.as_bytes()).into();
        self.orders["wrapped_by"] = stored.key_id.as_str().into();
        self
    }

    /// `region`, `profile`: settings of the provider.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.orders[name] = value.into();
        self
    }

    /// How long one attempt may take.
    pub fn attempt(mut self, limit: Duration) -> Self {
        self.orders["attempt_ms"] = u64::try_from(limit.as_millis()).unwrap().into();
        self
    }

    /// A file in its home, such as `.aws/config`, and the file's full name.
    pub fn file(self, name: &str, text: &str) -> Self {
        let path = self.home.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        self
    }

    /// Where [`Self::file`] puts a file.
    pub fn path(&self, name: &str) -> String {
        self.home.path().join(name).to_str().unwrap().to_owned()
    }

    /// The authority whose certificates it trusts, and no other.
    pub fn trusting(self, pem: &str) -> Self {
        let path = self.path("trusted.pem");
        self.file("trusted.pem", pem).env("SSL_CERT_FILE", &path)
    }

    pub fn start(self) -> Child {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["child::child", "--exact", "--nocapture", "--test-threads=1"])
            .env_clear()
            .env(ORDERS, self.orders.to_string())
            .envs(self.environment)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let output = BufReader::new(process.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Some((_, ours)) = line.split_once(MARK) {
                    // Nobody listens to a child that is being ended.
                    let _ = sender.send(ours.to_owned());
                }
            }
        });
        let input = process.stdin.take();
        Child { process, input, lines, home: self.home }
    }
}

/// A running child; ended when dropped.
pub struct Child {
    process: std::process::Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    home: TempDir,
}

impl Child {
    /// `generate`, `describe`, `unwrap`: a call, without repetition. `threads`: what [`Self::threads`] reads.
    #[track_caller]
    pub fn ask(&mut self, command: &str) -> Answer {
        Answer(self.exchange(command))
    }

    /// Name and blocked signals of each thread that the service has brought into being.
    pub fn threads(&mut self) -> Vec<(String, u64)> {
        let list = self.exchange("threads");
        let of = |thread: &Value| {
            (thread["name"].as_str().unwrap().to_owned(), thread["blocked"].as_u64().unwrap())
        };
        list["threads"].as_array().unwrap().iter().map(of).collect()
    }

    /// Ends the service, which must take its threads with it, and the child.
    #[track_caller]
    pub fn stop(mut self) {
        let end = self.exchange("stop");
        assert_eq!(end["left"], json!([]), "threads outlive the service");
        drop(self.input.take());
        wait_for("the child's end", PATIENCE, || self.process.try_wait().unwrap().is_some());
        assert!(self.process.wait().unwrap().success());
    }

    /// Writes a file in its home anew, at once.
    pub fn rewrite(&self, name: &str, text: &str) {
        let path = self.home.path().join(name);
        let new = path.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, path).unwrap();
    }

    #[track_caller]
    fn exchange(&mut self, command: &str) -> Value {
        writeln!(self.input.as_mut().unwrap(), "{command}").unwrap();
        let line = self.lines.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no answer to {command}"));
        serde_json::from_str(&line).unwrap()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        drop(self.input.take());
        // It may have ended by itself; and a call that hangs must not hold us up.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// How a call in a child ended.
pub struct Answer(Value);

/// An error of a call in a child.
#[derive(Debug)]
pub struct Failure {
    pub message: String,
    pub detail: String,
    pub hint: String,
    pub took: Duration,
}

impl Answer {
    /// The key's ARN, of a call that went well.
    #[track_caller]
    pub fn ok(&self) -> String {
        assert_eq!(self.0["kind"], Value::Null, "{}", self.0);
        self.0["key_id"].as_str().unwrap().to_owned()
    }

    /// The name of the error's kind; nothing if the call went well.
    pub fn kind(&self) -> &str {
        self.0["kind"].as_str().unwrap_or_default()
    }

    /// The error, which must be one of these kinds (separated by bars) and carry the fix.
    #[track_caller]
    pub fn err(&self, kinds: &str) -> Failure {
        assert!(kinds.split('|').any(|kind| kind == self.kind()), "not {kinds}: {}", self.0);
        let text = |name: &str| self.0[name].as_str().unwrap_or_default().to_owned();
        let took = Duration::from_millis(self.0["took_ms"].as_u64().unwrap());
        Failure { message: text("message"), detail: text("detail"), hint: text("hint"), took }
    }
}

/// Not a test: what a child does. In any other process it has nothing to do.
#[test]
fn child() {
    let Some(orders) = std::env::var_os(ORDERS) else { return };
    let orders: Value = serde_json::from_str(orders.to_str().unwrap()).unwrap();
    let text = |name: &str| orders[name].as_str().map(str::to_owned);
    let config = ServiceConfig {
        provider: ProviderConfig::Aws(AwsConfig {
            key_id: text("key_id").unwrap(),
            region: text("region"),
            endpoint_url: text("endpoint_url"),
            profile: text("profile"),
        }),
        limits: Limits {
            max_in_flight: 4,
            max_jobs: 16,
            max_retries: 0,
            attempt_timeout: Duration::from_millis(orders["attempt_ms"].as_u64().unwrap()),
        },
        #[cfg(feature = "testing")]
        faults: None,
    };
    let before = threads();
    let mut service = with_signals_blocked(|| Service::start(&config, Arc::new(|| ())).unwrap());
    let ours = || threads().into_iter().filter(|(id, _)| !before.contains_key(id)).collect::<Vec<_>>();
    for (number, command) in (1..).zip(std::io::stdin().lines().map_while(Result::ok)) {
        let answer = match command.as_str() {
            "generate" => call(&service, number, Op::Generate(place(1))),
            "describe" => call(&service, number, Op::Describe),
            "unwrap" => {
                let wrapped = BASE64_STANDARD.decode(text("wrapped").unwrap()).unwrap();
                let stored = StoredDek { wrapped: WrappedDek(wrapped), key_id: text("wrapped_by").unwrap() };
                call(&service, number, Op::Unwrap { context: place(1), stored })
            }
            "threads" => {
                let of = |(_, (name, blocked)): (_, (String, u64))| json!({"name": name, "blocked": blocked});
                json!({"threads": ours().into_iter().map(of).collect::<Vec<_>>()})
            }
            "stop" => {
                service.shutdown(Duration::from_secs(5));
                // The kernel lists a thread a moment longer than its joiner waits.
                let gone = hyperion_vault_tests::wait_until(PATIENCE, || ours().is_empty());
                json!({"left": if gone { vec![] } else { ours().into_iter().map(|(_, (name, _))| name).collect() }})
            }
            other => panic!("what is {other:?}?"),
        };
        println!("{MARK}{answer}");
    }
}

fn call(service: &Service, id: u64, op: Op) -> Value {
    let began = Instant::now();
    service.submit(Job { id, deadline: began + 2 * PATIENCE, op });
    let completion = loop {
        match service.try_recv() {
            Some(completion) => break completion,
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    assert_eq!(completion.id, id);
    let mut answer = match completion.result {
        Ok(Outcome::Generated(generated)) => json!({"key_id": generated.by.key_id}),
        Ok(Outcome::Described(key)) => json!({"key_id": key.key_id}),
        Ok(Outcome::Unwrapped(_)) => json!({"key_id": null}),
        Err(error) => json!({
            "kind": error.kind.as_str(), "message": error.message, "detail": error.detail, "hint": error.hint,
        }),
    };
    answer["took_ms"] = u64::try_from(began.elapsed().as_millis()).unwrap().into();
    answer
}
