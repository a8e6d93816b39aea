//! moto: a KMS over the real protocol, written by others, to check our wire format against. Runs in the test process;
//! the server is its child.
//!
//! A fake: it makes no new key material on rotation, gives no KeyMaterialId and checks no signatures, so behaviour is
//! tested on the strict fake in kms/. The traps: another process may take the port between our look and moto's bind, and
//! we would talk to a stranger; so the start is believed from moto's own output only. And one start costs about half a
//! second on an idle machine: use one server for many checks.

use crate::PATIENCE;
use crate::sys::{Port, as_server_user, spawn_tied_to_us};
use crate::toolchain::cached;
use crate::wait::wait_until;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use tempfile::TempDir;

/// A running moto_server on a loopback port; ended and forgotten with this value.
pub struct Moto {
    child: Child,
    port: Port,
    /// Its working directory, which holds its output.
    dir: TempDir,
}

/// What moto refused: the HTTP status and the body, whose `__type` names the error.
#[derive(Debug)]
pub struct Refusal {
    pub status: u16,
    pub body: Value,
}

impl Refusal {
    /// The error's name without its namespace, such as `DisabledException`.
    pub fn kind(&self) -> &str {
        let name = self.body["__type"].as_str().unwrap_or_default();
        name.rsplit('#').next().unwrap_or_default()
    }
}

impl Moto {
    /// The region of every key made here.
    pub const REGION: &str = "eu-central-1";

    /// Starts the moto_server that `make test` provides and waits until it answers. Fails the test, with the command
    /// that installs it, if there is none.
    #[track_caller]
    pub fn start() -> Self {
        let program = program();
        for _ in 0..5 {
            if let Some(moto) = Self::start_on(&program, Port::reserve()) {
                return moto;
            }
        }
        panic!("five ports in a row were taken by others");
    }

    /// `None` if the port was taken.
    #[track_caller]
    fn start_on(program: &Path, port: Port) -> Option<Self> {
        let dir =
            tempfile::Builder::new().prefix("hv-moto-").tempdir_in("/tmp").expect("cannot make a directory");
        let output = File::create(dir.path().join("output")).expect("cannot make a file");
        let mut command = Command::new(program);
        // A developer's own settings of AWS, moto and Python must not reach it.
        as_server_user(&mut command, None);
        for (name, _) in std::env::vars_os() {
            if ["MOTO_", "PYTHON", "FLASK_", "WERKZEUG_"]
                .iter()
                .any(|own| name.to_string_lossy().starts_with(own))
            {
                command.env_remove(name);
            }
        }
        command
            .args(["-H", "127.0.0.1", "-p", &port.number().to_string()])
            .env("PYTHONUNBUFFERED", "1")
            .current_dir(dir.path())
            // A group of its own: whatever a wrapper script starts ends with it.
            .process_group(0)
            .stdin(std::process::Stdio::null())
            .stderr(output.try_clone().expect("cannot duplicate a file"))
            .stdout(output);
        let child = spawn_tied_to_us(command)
            .unwrap_or_else(|error| panic!("cannot run {}: {error}", program.display()));
        let mut moto = Self { child, port, dir };
        let started = format!("Running on {}", moto.endpoint());
        let mut ended = None;
        let answers = wait_until(PATIENCE, || {
            ended = moto.child.try_wait().expect("cannot wait for our own child");
            ended.is_some() || moto.output().contains(&started)
        });
        if answers && ended.is_none() {
            return Some(moto);
        }
        let output = moto.output();
        if output.contains("ddress already in use") || output.contains("in use by another program") {
            return None;
        }
        let end =
            ended.map_or_else(|| format!("said nothing within {PATIENCE:?}"), |status| status.to_string());
        panic!("{} did not start ({end}):\n{output}", program.display());
    }

    /// For `hyperion_vault.kms_endpoint_url`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port.number())
    }

    /// What it has written so far: a line for each request.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.path().join("output")).unwrap_or_default()).into_owned()
    }

    /// One call, such as `Decrypt`, by hand: the AWS JSON 1.1 protocol without an SDK in between.
    pub fn call(&self, operation: &str, input: &Value) -> Result<Value, Refusal> {
        let body = input.to_string();
        // moto reads service and region out of the credential's scope and does not check the signature.
        let request = format!(
            "POST / HTTP/1.1\r\n\
             Host: 127.0.0.1:{port}\r\n\
             Connection: close\r\n\
             Content-Type: application/x-amz-json-1.1\r\n\
             X-Amz-Target: TrentService.{operation}\r\n\
             X-Amz-Date: 20260101T000000Z\r\n\
             Authorization: AWS4-HMAC-SHA256 Credential=TEST/20260101/{region}/kms/aws4_request, \
             SignedHeaders=host;x-amz-date;x-amz-target, Signature={signature:064}\r\n\
             Content-Length: {length}\r\n\r\n{body}",
            port = self.port.number(),
            region = Self::REGION,
            signature = 0,
            length = body.len(),
        );
        let (status, text) = exchange(self.port.number(), &request)
            .unwrap_or_else(|error| panic!("moto, {operation}: {error}; its output:\n{}", self.output()));
        // Calls without a result answer with an empty body.
        let body =
            if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap_or(json!(text)) };
        if status == 200 { Ok(body) } else { Err(Refusal { status, body }) }
    }

    /// Makes a symmetric key; returns its ARN.
    #[track_caller]
    pub fn create_key(&self) -> String {
        let answer = self.must("CreateKey", &json!({}));
        answer["KeyMetadata"]["Arn"].as_str().expect("CreateKey answers with the key's ARN").to_owned()
    }

    /// Makes `alias`, which begins with `alias/`, stand for `key`.
    #[track_caller]
    pub fn create_alias(&self, alias: &str, key: &str) {
        self.must("CreateAlias", &json!({"AliasName": alias, "TargetKeyId": key}));
    }

    #[track_caller]
    pub fn disable_key(&self, key: &str) {
        self.must("DisableKey", &json!({"KeyId": id_in(key)}));
    }

    #[track_caller]
    pub fn enable_key(&self, key: &str) {
        self.must("EnableKey", &json!({"KeyId": id_in(key)}));
    }

    /// From then on the key is pending deletion; 7 days is the least that KMS takes.
    #[track_caller]
    pub fn schedule_key_deletion(&self, key: &str) {
        self.must("ScheduleKeyDeletion", &json!({"KeyId": id_in(key), "PendingWindowInDays": 7}));
    }

    /// Yearly rotation, as KMS does it by itself.
    #[track_caller]
    pub fn enable_key_rotation(&self, key: &str) {
        self.must("EnableKeyRotation", &json!({"KeyId": id_in(key)}));
    }

    /// Shows in ListKeyRotations; the key material stays what it was.
    #[track_caller]
    pub fn rotate_key_on_demand(&self, key: &str) {
        self.must("RotateKeyOnDemand", &json!({"KeyId": id_in(key)}));
    }

    #[track_caller]
    fn must(&self, operation: &str, input: &Value) -> Value {
        self.call(operation, input).unwrap_or_else(|refusal| panic!("moto refused {operation}: {refusal:?}"))
    }
}

impl Drop for Moto {
    /// Also while a test panics: its output is then shown. It has nothing worth saving.
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let group = i32::try_from(self.child.id()).expect("a process id fits");
            // SAFETY: killpg takes plain integers. The child leads this group and has not been waited for, so the
            // number cannot belong to others yet.
            unsafe { libc::killpg(group, libc::SIGKILL) };
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("moto's output:\n{}", self.output());
        }
    }
}

/// The id in a key's ARN, or the id itself: moto takes only ids where the state of a key is changed.
fn id_in(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or(key)
}

/// Sends one request and reads the answer to its end: status and body.
fn exchange(port: u16, request: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    parse_answer(&answer).ok_or_else(|| std::io::Error::other(format!("no HTTP answer: {answer:?}")))
}

/// `None` unless the answer is whole. The body is not chunked: moto sends lengths.
fn parse_answer(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let status = lines.next()?.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    let length: usize = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok())?;
    (body.len() == length).then(|| (status, body.to_owned()))
}

#[track_caller]
fn program() -> PathBuf {
    let caches = cached("moto/bin/moto_server");
    locate(std::env::var_os("HYPERION_VAULT_MOTO"), caches, std::env::var_os("PATH"))
        .unwrap_or_else(|reason| panic!("{reason}"))
}

/// What the caller names, else the first of `caches` that is there, else what PATH has.
fn locate(named: Option<OsString>, caches: Vec<PathBuf>, path: Option<OsString>) -> Result<PathBuf, String> {
    const REMEDY: &str = "install it with: packaging/setup.sh moto (make test does), \
         or name one that you have: HYPERION_VAULT_MOTO=/path/to/moto_server";
    if let Some(named) = named.map(PathBuf::from) {
        return if named.is_file() {
            Ok(named)
        } else {
            Err(format!("HYPERION_VAULT_MOTO={} is no program; {REMEDY}", named.display()))
        };
    }
    let in_path = path.iter().flat_map(std::env::split_paths).map(|dir| dir.join("moto_server"));
    let found = caches.into_iter().chain(in_path).find(|file| file.is_file());
    found.ok_or_else(|| format!("there is no moto_server here; {REMEDY}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_named_program_comes_first_then_the_caches_then_path() {
        let dir = tempfile::tempdir().unwrap();
        let place = |sub: &str| {
            fs::create_dir(dir.path().join(sub)).unwrap();
            let file = dir.path().join(sub).join("moto_server");
            File::create(&file).unwrap();
            file
        };
        let (named, cache, path) = (place("named"), place("cache"), place("path"));
        let in_path = Some(path.parent().unwrap().as_os_str().to_owned());
        let absent = dir.path().join("absent");
        let caches = vec![absent.clone(), cache.clone()];
        assert_eq!(locate(Some(named.clone().into()), caches.clone(), in_path.clone()), Ok(named));
        assert_eq!(locate(None, caches, in_path.clone()), Ok(cache));
        assert_eq!(locate(None, vec![absent.clone()], in_path.clone()), Ok(path));
        // A wrong name is an error, not a reason to look elsewhere; and every failure says what to do.
        for failure in
            [locate(Some(absent.clone().into()), vec![], in_path), locate(None, vec![absent], None)]
        {
            assert!(failure.unwrap_err().contains("packaging/setup.sh moto"));
        }
    }

    #[test]
    fn a_taken_port_is_noticed() {
        let port = Port::reserve();
        let _stranger = std::net::TcpListener::bind(("127.0.0.1", port.number())).unwrap();
        assert!(Moto::start_on(&program(), port).is_none());
    }

    #[test]
    fn half_an_answer_is_none() {
        let whole = "HTTP/1.1 400 BAD REQUEST\r\ncontent-Length: 2\r\n\r\n{}";
        assert_eq!(parse_answer(whole), Some((400, "{}".into())));
        assert_eq!(parse_answer(&whole[..whole.len() - 1]), None);
        assert_eq!(parse_answer("HTTP/1.1 200 OK\r\n\r\n{}"), None);
        assert_eq!(parse_answer("SSH-2.0\r\n\r\n"), None);
    }
}
