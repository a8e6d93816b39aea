//! The server: a thread that accepts, and a thread for each connection. Runs in the test process.
//!
//! No lock is held while anything waits, so that latency of one call delays no other. The trap is the end: a dropped
//! server must not wait for a connection that hangs, so all waiting is on a condition that the end fulfils, and all
//! reading is on sockets that the end shuts down.

use super::auth::Registry;
use super::error::ApiError;
use super::fault::{Fault, FaultBook};
use super::http::{Answer, Reader, Request};
use super::keyring::Keyring;
use super::listener::Listener;
use super::lock;
use super::log::{Entry, Log};
use super::op::Op;
use super::respond::{refusal, respond};
use serde_json::Value;
use std::collections::HashMap;
use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime};

/// How often a hung request looks whether its client has gone; the end of the fault it notices at once.
const POLL: Duration = Duration::from_millis(10);

pub(super) struct Server {
    listener: Listener,
    gate: Mutex<Gate>,
    changed: Condvar,
    connections: Mutex<HashMap<u64, Arc<TcpStream>>>,
    pub faults: FaultBook,
    pub credentials: Registry,
    pub keyring: Mutex<Keyring>,
    pub log: Log,
}

/// What threads wait on.
#[derive(Default)]
struct Gate {
    stopped: bool,
    refusing: bool,
    /// How many times the faults were cleared.
    cleared: u64,
}

impl Server {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            listener: Listener::bind(),
            gate: Mutex::default(),
            changed: Condvar::new(),
            connections: Mutex::default(),
            faults: FaultBook::default(),
            credentials: Registry::default(),
            keyring: Mutex::default(),
            log: Log::default(),
        })
    }

    pub fn port(&self) -> u16 {
        self.listener.address().port()
    }

    pub fn refuse(&self) {
        lock(&self.gate).refusing = true;
        self.listener.refuse();
        self.close_connections();
    }

    pub fn clear(&self) {
        self.faults.clear();
        let mut gate = lock(&self.gate);
        gate.cleared += 1;
        if std::mem::take(&mut gate.refusing) {
            self.listener.listen();
        }
        self.changed.notify_all();
    }

    pub fn stop(&self) {
        lock(&self.gate).stopped = true;
        self.changed.notify_all();
        self.listener.refuse();
        self.close_connections();
    }

    /// Whether all connections' threads have ended within `limit`.
    pub fn wait_idle(&self, limit: Duration) -> bool {
        crate::wait_until(limit, || lock(&self.connections).is_empty())
    }

    pub fn open_connections(&self) -> usize {
        lock(&self.connections).len()
    }

    pub fn close_connections(&self) {
        for stream in lock(&self.connections).values() {
            // Fails if the client was faster.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// The accepting thread's life.
    pub fn accept_all(self: &Arc<Self>) {
        for number in 0.. {
            let stream = loop {
                {
                    let gate = lock(&self.gate);
                    let gate = self
                        .changed
                        .wait_while(gate, |gate| gate.refusing && !gate.stopped)
                        .unwrap_or_else(std::sync::PoisonError::into_inner);
                    if gate.stopped {
                        return;
                    }
                }
                match self.listener.accept() {
                    Ok(stream) => break stream,
                    // Refusing, stopped, or too many open files for the moment.
                    Err(_) => std::thread::sleep(Duration::from_millis(1)),
                }
            };
            self.log.connection();
            self.start_connection(number, stream);
        }
    }

    fn start_connection(self: &Arc<Self>, number: u64, stream: TcpStream) {
        let stream = Arc::new(stream);
        lock(&self.connections).insert(number, Arc::clone(&stream));
        let gate = lock(&self.gate);
        if gate.stopped || gate.refusing {
            // Whoever set that may have closed the connections before this one was listed.
            let _ = stream.shutdown(Shutdown::Both);
        }
        drop(gate);
        let server = Arc::clone(self);
        let thread = std::thread::Builder::new().name(format!("fake-kms-{number}")).stack_size(512 * 1024);
        let started = thread.spawn(move || {
            let _listed = Listed { server: &server, number };
            // A client that breaks off or talks nonsense has only itself to blame.
            let _ = server.serve(&stream);
        });
        if started.is_err() {
            lock(&self.connections).remove(&number);
        }
    }

    fn serve(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = Reader::new(stream);
        loop {
            match reader.next() {
                Ok(Some(request)) => {
                    if !self.handle(stream, &request)? {
                        return Ok(());
                    }
                }
                Ok(None) => return Ok(()),
                Err(error) => {
                    if error.kind() == io::ErrorKind::InvalidData {
                        send(stream, &Answer::html(400), false)?;
                    }
                    return Err(error);
                }
            }
        }
    }

    /// Answers a request, or does what a fault wants. Says whether the connection goes on.
    fn handle(&self, stream: &TcpStream, request: &Request) -> io::Result<bool> {
        let op = request.header("x-amz-target").and_then(Op::from_target);
        let body: Option<Value> = serde_json::from_slice(&request.body).ok();
        let plan = self.faults.take(op);
        let cleared = lock(&self.gate).cleared;
        let kept = body.clone().unwrap_or_default();
        let entry = self.log.begin(op, request, kept, plan.fault.map(Fault::name));
        if !self.pause(plan.delay) {
            return Ok(false);
        }
        let fault = match plan.fault {
            Some(Fault::Hang) => {
                if !self.hang(stream, cleared) {
                    return Ok(false);
                }
                None
            }
            Some(Fault::ResetBeforeAnswer) => {
                reset(stream)?;
                return Ok(false);
            }
            fault => fault,
        };
        let answer = self.answer(request, op, body, fault, &entry);
        if fault == Some(Fault::ResetMidBody) {
            let (bytes, head) = answer.bytes(true);
            let mut stream_writer = stream;
            stream_writer.write_all(&bytes[..head + answer.body.len() / 2])?;
            // So that the client reads it: a reset overtakes what it has not read yet.
            std::thread::sleep(Duration::from_millis(5));
            reset(stream)?;
            return Ok(false);
        }
        // Before the bytes, so that a client that has its answer finds itself no longer counted as running.
        drop(entry);
        send(stream, &answer, request.keep_alive)?;
        Ok(request.keep_alive)
    }

    fn answer(
        &self,
        request: &Request,
        op: Option<Op>,
        body: Option<Value>,
        fault: Option<Fault>,
        entry: &Entry,
    ) -> Answer {
        let finish = |answer: Answer, error: Option<String>| {
            entry.answered(answer.status, error);
            answer
        };
        match fault {
            Some(Fault::HttpEmpty(status)) => return finish(Answer::empty(status), None),
            Some(Fault::HttpHtml(status)) => return finish(Answer::html(status), None),
            _ => {}
        }
        match self.execute(request, op, body, fault) {
            Ok(answer) => finish(answer, None),
            Err(error) => finish(error.answer(), Some(error.kind.into())),
        }
    }

    fn execute(
        &self,
        request: &Request,
        op: Option<Op>,
        body: Option<Value>,
        fault: Option<Fault>,
    ) -> Result<Answer, ApiError> {
        let json = request.header("content-type") == Some("application/x-amz-json-1.1");
        let op = op
            .filter(|_| json && request.method == "POST" && request.path == "/")
            .ok_or_else(ApiError::unknown_operation)?;
        let known_region = |region: &str| lock(&self.keyring).knows_region(region);
        let caller = self.credentials.authenticate(request, known_region, SystemTime::now())?;
        let body = body.ok_or_else(|| ApiError::serialization("the body is not JSON"))?;
        let mut keyring = lock(&self.keyring);
        if let Some(error) = fault.and_then(|fault| refusal(fault, &keyring, &caller, op, &body)) {
            return Err(error);
        }
        respond(&mut keyring, &caller, op, &body, fault)
    }

    /// Waits; `false` if the server ends meanwhile.
    fn pause(&self, delay: Duration) -> bool {
        let until = Instant::now() + delay;
        let mut gate = lock(&self.gate);
        while !gate.stopped {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            gate = self.wait(gate, left);
        }
        false
    }

    /// Waits until the faults are cleared; `false` if the server ends or the client goes away.
    fn hang(&self, stream: &TcpStream, cleared: u64) -> bool {
        let mut gate = lock(&self.gate);
        while !gate.stopped {
            if gate.cleared != cleared {
                return true;
            }
            gate = self.wait(gate, POLL);
            if peer_has_gone(stream) {
                return false;
            }
        }
        false
    }

    fn wait<'a>(
        &self,
        gate: std::sync::MutexGuard<'a, Gate>,
        limit: Duration,
    ) -> std::sync::MutexGuard<'a, Gate> {
        self.changed.wait_timeout(gate, limit).unwrap_or_else(std::sync::PoisonError::into_inner).0
    }
}

/// A connection in the list of open ones, until its thread ends, however.
struct Listed<'a> {
    server: &'a Server,
    number: u64,
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        lock(&self.server.connections).remove(&self.number);
    }
}

fn send(mut stream: &TcpStream, answer: &Answer, keep_alive: bool) -> io::Result<()> {
    stream.write_all(&answer.bytes(keep_alive).0)
}

/// Makes the close of the connection, which is next, a reset: what was not sent is dropped, and the peer gets an RST.
fn reset(stream: &TcpStream) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let size = libc::socklen_t::try_from(size_of_val(&linger)).expect("a few bytes");
    // SAFETY: the descriptor is open, and the pointer and size are those of a linger structure, as SO_LINGER wants.
    let result = unsafe {
        let value = (&raw const linger).cast();
        libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, value, size)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn peer_has_gone(stream: &TcpStream) -> bool {
    let mut poll = libc::pollfd { fd: stream.as_raw_fd(), events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: one initialised pollfd, as the count says; no time to wait.
    unsafe { libc::poll(&raw mut poll, 1, 0) > 0 }
}
