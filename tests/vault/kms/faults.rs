//! Every fault of the fake KMS × create, rotate, cold read, warm read: what the caller gets, after how many calls and how
//! long, and that nothing is left behind. Runs in the test process; docs/kms-faults.md is what it measured.
//!
//! What must come out is written down here by hand, from the specification's §7 and §12, not taken from a run. After a
//! change that is meant, run with `HYPERION_VAULT_UPDATE_KMS_FAULTS=1` and read the difference before committing.
//!
//! The traps it avoids: a retry that nobody counted (each attempt is counted at the worker and at the fake), and an outage
//! in one row that the circuit breaker shows in the next: each cell ends with a call that works, without a reload.

use super::{cold_secrets, create, key_calls, read, value};
use crate::watch::status;
use hyperion_vault_tests::kms::{FakeKms, Fault};
use hyperion_vault_tests::{Ask, Client, Cluster, DbError, PATIENCE, wait_for, wait_until};
use std::fmt::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Of the cluster. One attempt gets a third, many times the fake's latency: enough on a machine under load.
const TIMEOUT: Duration = Duration::from_millis(6000);
const RETRIES: u64 = 2;
/// How much later than its deadline a caller may come back on a slow machine.
const LATE: Duration = Duration::from_secs(4);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Time {
    /// Within one attempt.
    AtOnce,
    /// The attempts and the pauses between them.
    Retries,
    /// `kms_timeout_ms`.
    Deadline,
    /// Neither; never right.
    Slow,
}

/// What a call comes to. `{}` in the message stands for the KMS operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cell {
    /// Empty for success.
    code: &'static str,
    message: &'static str,
    attempts: u64,
    time: Time,
}

const OK: Cell = Cell { code: "", message: "", attempts: 1, time: Time::AtOnce };
const UNAUTHENTICATED: Cell =
    Cell { code: "XX001", message: "wrapped key cannot be authenticated", attempts: 1, time: Time::AtOnce };

/// Worth another try, and given up after the retries that the settings allow.
const fn outage(message: &'static str) -> Cell {
    Cell { code: "08006", message, attempts: RETRIES + 1, time: Time::Retries }
}

/// A refusal: told at once, and never repeated.
const fn refused(message: &'static str) -> Cell {
    Cell { code: "38000", message, attempts: 1, time: Time::AtOnce }
}

const HANGS: Cell = Cell {
    code: "08006",
    message: "key service did not answer in time",
    attempts: RETRIES + 1,
    time: Time::Deadline,
};

/// A fault, what happens there, what GenerateDataKey (create, rotate) comes to, and Decrypt (a cold read).
struct Row(&'static str, &'static str, Cell, Cell);

const fn row(name: &'static str, what: &'static str, both: Cell) -> Row {
    Row(name, what, both, both)
}

const EXPECTED: [Row; 23] = [
    row("latency", "answers after 300 ms", OK),
    row("hang", "reads the request and never answers", HANGS),
    row("refused", "connections are refused", outage("AWS KMS cannot be reached for {}")),
    row(
        "reset_before_answer",
        "resets the connection after the request",
        outage("AWS KMS cannot be reached for {}"),
    ),
    row(
        "reset_mid_body",
        "does what is asked, resets the connection halfway through the answer",
        outage("the answer of AWS KMS to {} broke off"),
    ),
    row("throttling", "ThrottlingException", outage("AWS KMS throttles {}")),
    row("http_500_empty", "HTTP 500 without a body", outage("AWS KMS answered {} with HTTP status 500")),
    row("http_503_html", "HTTP 503 with a proxy's page", outage("AWS KMS answered {} with HTTP status 503")),
    row("kms_internal", "KMSInternalException", outage("AWS KMS cannot serve {} now: KMSInternalException")),
    row(
        "dependency_timeout",
        "DependencyTimeoutException",
        outage("AWS KMS cannot serve {} now: DependencyTimeoutException"),
    ),
    row(
        "key_unavailable",
        "KeyUnavailableException",
        outage("AWS KMS cannot serve {} now: KeyUnavailableException"),
    ),
    row("access_denied", "AccessDeniedException", refused("AWS KMS denies {}")),
    row(
        "expired_credentials",
        "ExpiredTokenException",
        refused("AWS does not accept the credentials of the key-service worker: ExpiredTokenException"),
    ),
    row("disabled", "DisabledException", refused("the KMS key is disabled")),
    row(
        "pending_deletion",
        "KMSInvalidStateException",
        refused("the KMS key is not in a state in which it can be used"),
    ),
    row("not_found", "NotFoundException", refused("the KMS key does not exist")),
    Row("invalid_ciphertext", "InvalidCiphertextException (of Decrypt only)", OK, UNAUTHENTICATED),
    Row("incorrect_key", "IncorrectKeyException (of Decrypt only)", OK, UNAUTHENTICATED),
    // Not KMS, whatever it is: most likely something in between, for now.
    row("garbage_json", "HTTP 200 without JSON", outage("the answer to {} is not one of AWS KMS")),
    row("wrong_shape", "HTTP 200, key and key id missing", outage("the answer to {} is not one of AWS KMS")),
    Row(
        "short_key",
        "a data key of 16 bytes",
        refused("AWS KMS made a data key of the wrong length"),
        UNAUTHENTICATED,
    ),
    Row(
        "long_key",
        "a data key of 64 bytes",
        refused("AWS KMS made a data key of the wrong length"),
        UNAUTHENTICATED,
    ),
    Row(
        "other_key_id",
        "an answer in the name of another key",
        refused("AWS KMS answered for another key"),
        UNAUTHENTICATED,
    ),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Create,
    Rotate,
    ColdRead,
    WarmRead,
}

impl Call {
    const ALL: [Call; 4] = [Call::Create, Call::Rotate, Call::ColdRead, Call::WarmRead];

    fn operation(self) -> &'static str {
        if self == Call::ColdRead { "Decrypt" } else { "GenerateDataKey" }
    }

    fn expected(self, row: &Row) -> Cell {
        match self {
            Call::Create | Call::Rotate => row.2,
            Call::ColdRead => row.3,
            Call::WarmRead => Cell { attempts: 0, ..OK },
        }
    }
}

/// What was measured.
struct Outcome {
    error: Option<DbError>,
    attempts: u64,
    took: Duration,
}

impl Outcome {
    fn time(&self) -> Time {
        match self.took {
            // The worker's deadline comes a little before the session's.
            took if took + Duration::from_millis(150) >= TIMEOUT && took < TIMEOUT + LATE => Time::Deadline,
            took if took >= TIMEOUT => Time::Slow,
            _ if self.attempts > 1 => Time::Retries,
            took if took < TIMEOUT / 3 => Time::AtOnce,
            _ => Time::Slow,
        }
    }

    fn code(&self) -> &str {
        self.error.as_ref().map_or("", |error| error.code().code())
    }

    /// The message without what differs between operations. A deadline is told by the worker, or, if its answer comes too
    /// late, by the session's own clock in almost the same words.
    fn message(&self, call: Call) -> String {
        let message = self.error.as_ref().map_or("", DbError::message);
        let message = message.replace(call.operation(), "{}");
        message
            .strip_prefix("the key service did")
            .map_or(message.clone(), |rest| format!("key service did{rest}"))
    }

    fn is(&self, call: Call, cell: &Cell) -> bool {
        self.code() == cell.code
            && self.message(call) == cell.message
            && self.attempts == cell.attempts
            && self.time() == cell.time
    }
}

/// The cluster under test, how many attempts its worker has made in all, and how often its breaker has opened.
struct Bench<'a> {
    kms: &'a FakeKms,
    root: Client,
    ops: Client,
    app: Client,
    attempts: u64,
    opened: u64,
}

impl Bench<'_> {
    fn attempts_now(&mut self) -> u64 {
        status(&mut self.root)["kms"]["calls"].as_u64().expect("a count")
    }

    /// Waits until the worker has counted as many attempts as expected, or gives what it has.
    fn attempts_since(&mut self, expected: u64) -> u64 {
        let goal = self.attempts + expected;
        let mut now = 0;
        // Published with each turn of its loop; one that comes late is found by the next look.
        let _ = wait_until(PATIENCE, || {
            now = self.attempts_now();
            now >= goal
        });
        let made = now - self.attempts;
        self.attempts = now;
        made
    }

    /// Waits until the breaker has opened once more, and has been closed by a probe, which is an attempt more.
    fn until_probed(&mut self) {
        self.opened += 1;
        wait_for("the breaker to open and close", PATIENCE, || {
            let kms = status(&mut self.root)["kms"].take();
            kms["breaker"] == "closed" && kms["breaker_opened"] == self.opened
        });
    }

    fn run(&mut self, call: Call, name: &str) -> Result<(), postgres::Error> {
        match call {
            Call::Create => create(&mut self.ops, name).map(drop),
            Call::Rotate => self.ops.batch_execute("SELECT vault.rotate_secret('auto')"),
            Call::ColdRead => read(&mut self.app, name).map(|read| assert_eq!(read, value(name))),
            Call::WarmRead => read(&mut self.app, "warm").map(|read| assert_eq!(read, value("warm"))),
        }
    }

    /// Version and value of the secret that is rotated; its key is in the cache.
    fn automatic(&mut self) -> (String, String) {
        let version = self.root.ask("SELECT version FROM vault.secrets WHERE name = 'auto'");
        (version, read(&mut self.app, "auto").unwrap())
    }

    fn rows(&mut self) -> String {
        self.root
            .ask("SELECT (SELECT count(*) FROM vault.secrets), (SELECT count(*) FROM vault.secret_versions)")
    }

    /// One cell: the call under the fault, what it left, and the same call once the fault is over.
    fn measure(&mut self, fault: Fault, call: Call, expected: &Cell, cold: &str) -> Outcome {
        let name = if call == Call::Create { format!("new/{}", fault.name()) } else { cold.to_owned() };
        let what = format!("{} {call:?}", fault.name());
        let (rows, automatic) = (self.rows(), self.automatic());
        assert_eq!(self.attempts_now(), self.attempts, "before {what}: a call that nobody asked for");
        self.kms.reset_counters();
        self.kms.inject(fault);
        let begun = Instant::now();
        let result = self.run(call, &name);
        let took = begun.elapsed();
        self.kms.clear();
        // One caller whose attempts all hang is an outage; every other row is over too soon to be one.
        let probes = u64::from(expected.time == Time::Deadline);
        if probes > 0 {
            self.until_probed();
        }
        let seen = key_calls(self.kms) - probes;
        let error = result.err().map(|error| {
            error.as_db_error().cloned().unwrap_or_else(|| panic!("{what}: the session failed: {error:?}"))
        });
        let attempts = self.attempts_since(expected.attempts + probes) - probes;
        // A refused connection is no call. Credentials that AWS does not accept are loaded anew, once, unless they are
        // new; the call goes out again with what was found.
        let arrived = match fault {
            Fault::Refused => 0..=0,
            Fault::ExpiredCredentials => attempts..=2 * attempts,
            _ => attempts..=attempts,
        };
        assert!(arrived.contains(&seen), "{what}: {attempts} attempts, {seen} calls at the fake");
        if let Some(error) = &error {
            no_key_bytes(&what, error);
            assert_eq!((self.rows(), self.automatic()), (rows, automatic.clone()), "{what}: left behind");
            self.run(call, &name).unwrap_or_else(|error| panic!("{what}: still, afterwards: {error:?}"));
            assert_eq!(self.attempts_since(1), 1, "{what}: afterwards");
        }
        if call == Call::Rotate {
            let (version, value) = self.automatic();
            let next: i32 = automatic.0.parse::<i32>().unwrap() + 1;
            assert!(version == next.to_string() && value != automatic.1, "{what}: not rotated");
        }
        Outcome { error, attempts, took }
    }
}

/// 32 bytes are 64 hexadecimal digits, or 43 characters of base64.
#[track_caller]
fn no_key_bytes(what: &str, error: &DbError) {
    let text = format!("{error:?}");
    let encoded = |c: char| c.is_ascii_alphanumeric() || c == '+' || c == '/';
    let longest = text.split(|c| !encoded(c)).map(str::len).max().unwrap_or(0);
    assert!(longest < 43, "{what}: may hold a key: {text}");
}

#[test]
fn every_fault_and_every_call() {
    let kms = FakeKms::start();
    let cluster = Cluster::builder()
        .aws(&kms)
        .conf("hyperion_vault.kms_timeout_ms", &TIMEOUT.as_millis().to_string())
        .conf("hyperion_vault.kms_max_retries", &RETRIES.to_string())
        .start();
    let vault = cluster.vault();
    cold_secrets(&vault, "cold", EXPECTED.len());
    let mut ops = vault.ops();
    create(&mut ops, "warm").unwrap();
    ops.batch_execute(
        "SELECT vault.create_secret('auto', kind => 'automatic', rotation_interval => '1 day')",
    )
    .unwrap();
    let mut bench = Bench { kms: &kms, root: vault.root(), ops, app: vault.app(), attempts: 0, opened: 0 };
    let made = EXPECTED.len() as u64 + 2;
    assert_eq!(bench.attempts_since(made), made);
    assert_eq!(
        EXPECTED.map(|row| row.0.to_owned()),
        Fault::ALL.map(Fault::name),
        "one row per fault, in order"
    );

    let begun = Instant::now();
    let (mut wrong, mut measured) = (Vec::new(), Vec::new());
    for (i, (row, fault)) in EXPECTED.iter().zip(Fault::ALL).enumerate() {
        let cold = format!("cold/{}", i + 1);
        let outcomes = Call::ALL.map(|call| {
            let expected = call.expected(row);
            let outcome = bench.measure(fault, call, &expected, &cold);
            if !outcome.is(call, &expected) {
                let Outcome { error, attempts, took } = &outcome;
                wrong.push(format!(
                    "{} {call:?}: {attempts} attempts, {took:?}, {error:?}; expected {expected:?}",
                    row.0
                ));
            }
            told(fault, call, outcome.error.as_ref(), &kms);
            outcome
        });
        measured.push((row, outcomes));
    }
    println!("{} cells in {:?}", 4 * measured.len(), begun.elapsed());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let kms_status = status(&mut bench.root)["kms"].take();
    assert_eq!((&kms_status["breaker"], &kms_status["breaker_opened"]), (&"closed".into(), &3.into()));
    assert_eq!(status(&mut bench.root)["workers"][0]["starts"], 1, "none of it ended the worker");
    publish(&document(&measured));
}

/// What AWS said is in DETAIL, and what to do about it in HINT.
fn told(fault: Fault, call: Call, error: Option<&DbError>, kms: &FakeKms) {
    let Some(error) = error else { return };
    let (detail, hint) = (error.detail().unwrap_or_default(), error.hint().unwrap_or_default());
    let operation = call.operation();
    let (in_detail, in_hint) = match fault {
        Fault::AccessDenied => (
            format!(
                "user/hyperion-vault is not authorized to perform: kms:{operation} on resource: {}",
                kms.key_arn()
            ),
            format!("Allow kms:{operation} on {}", kms.key_arn()),
        ),
        Fault::Disabled => (format!("{} is disabled.", kms.key_arn()), "aws kms enable-key".to_owned()),
        Fault::PendingDeletion => ("is pending deletion.".to_owned(), "cancel-key-deletion".to_owned()),
        Fault::NotFound => {
            (format!("Key '{}' does not exist", kms.key_arn()), "account and region".to_owned())
        }
        Fault::ExpiredCredentials => (
            "The security token included in the request is expired.".to_owned(),
            "Renew the credentials".to_owned(),
        ),
        Fault::Throttling => ("You have exceeded the rate".to_owned(), "kms_max_in_flight".to_owned()),
        Fault::Refused => {
            (format!("Gave up after {} attempts.", RETRIES + 1), "endpoint can be reached".to_owned())
        }
        Fault::KmsInternal => ("an internal exception".to_owned(), "AWS Health Dashboard".to_owned()),
        Fault::OtherKeyId if call != Call::ColdRead => (kms.key_arn(), "kms_endpoint_url".to_owned()),
        _ if error.code().code() == "XX001" => {
            // What exactly was wrong with a wrapped key is for nobody to learn.
            assert_eq!((error.detail(), error.hint()), (None, None), "{}", fault.name());
            return;
        }
        _ => (String::new(), ".".to_owned()),
    };
    assert!(detail.contains(&in_detail), "{} {call:?}: {detail:?} lacks {in_detail:?}", fault.name());
    assert!(hint.contains(&in_hint), "{} {call:?}: {hint:?} lacks {in_hint:?}", fault.name());
}

const HEAD: &str = "\
# What a caller gets when AWS KMS fails

Measured by `tests/vault/kms/faults.rs`, which also writes this file, against the test suite's fake KMS on loopback; real AWS
was not reached. Settings of the run: `kms_timeout_ms` 6000, `kms_max_retries` 2 (so three calls at most). *At once* is
within one attempt; *retries* the attempts and the pauses between them; *deadline* is `kms_timeout_ms`. With default
settings there are up to six calls, and 10 s.

In every row: a read whose key is cached works, at once and without a call; a create that failed left no row, a rotate that failed
left version and value; the next call after the fault works, without a restart or a reload (after three that hung, once the
circuit breaker, which they opened, has seen an answer). How an outage that goes on is cut short for everybody is told in
[kms.md](kms.md).

";

fn document(measured: &[(&Row, [Outcome; 4])]) -> String {
    let mut text = HEAD.to_owned();
    text.push_str(
        "| Fault | KMS … | create_secret | rotate_secret | read_secret, key not cached | read_secret, key cached |\n\
         |---|---|---|---|---|---|\n",
    );
    for (row, outcomes) in measured {
        write!(text, "| {} | {} |", row.0, row.1).expect("a String takes all");
        for outcome in outcomes {
            let code =
                if outcome.error.is_some() { format!("`{}`", outcome.code()) } else { "ok".to_owned() };
            let time = match outcome.time() {
                Time::AtOnce => "at once",
                Time::Retries => "retries",
                Time::Deadline => "deadline",
                Time::Slow => "slow",
            };
            let calls = match outcome.attempts {
                0 => "no call".to_owned(),
                1 => "1 call".to_owned(),
                n => format!("{n} calls"),
            };
            write!(text, " {code}, {calls}, {time} |").expect("a String takes all");
        }
        text.push('\n');
    }
    text.push_str("\nWhat the session is told; … is the KMS operation, GenerateDataKey or Decrypt.\n\n");
    text.push_str("| Fault | create_secret, rotate_secret | read_secret, key not cached |\n|---|---|---|\n");
    for (row, [create, rotate, read, _]) in measured {
        assert_eq!(create.message(Call::Create), rotate.message(Call::Rotate), "{}", row.0);
        let said = |outcome: &Outcome, call| match outcome.error {
            Some(_) => outcome.message(call).replace("{}", "…"),
            None => "ok".to_owned(),
        };
        let (made, opened) = (said(create, Call::Create), said(read, Call::ColdRead));
        writeln!(text, "| {} | {made} | {opened} |", row.0).expect("a String takes all");
    }
    text.push_str(
        "\nExpired credentials are loaded anew, at most every two seconds, and the call is then made once more with what was found.\n",
    );
    text
}

fn publish(document: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/kms-faults.md");
    if std::env::var_os("HYPERION_VAULT_UPDATE_KMS_FAULTS").is_some() {
        std::fs::write(&path, document).expect("cannot write the document");
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    let new: Vec<_> = document.lines().filter(|line| !kept.lines().any(|old| old == *line)).collect();
    assert!(kept == document, "{} is not what was measured; new lines: {new:#?}", path.display());
}
