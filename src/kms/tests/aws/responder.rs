//! A tiny HTTP server that says what a test wants: metadata services, STS, and key services that lie.
//!
//! Runs in the test process, a thread for each connection, one request on each. The trap: a request that is never
//! answered must not outlive the test; its connection is kept, not its thread, and closed with the server.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use hyperion_vault_tests::PATIENCE;

#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }
}

/// Status and body, or silence for as long as the client likes to wait.
pub type Reply = Option<(u16, String)>;

pub struct Responder {
    port: u16,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    answer: Box<dyn Fn(&Request) -> Reply + Send + Sync>,
    stopped: AtomicBool,
    seen: Mutex<Vec<Request>>,
    /// Connections that get no answer.
    kept: Mutex<Vec<TcpStream>>,
}

impl Responder {
    /// Answers each request as the function says.
    pub fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            answer: Box::new(answer),
            stopped: AtomicBool::new(false),
            seen: Mutex::default(),
            kept: Mutex::default(),
        });
        let acceptor = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    // SeqCst: no more than a flag, and nothing here is worth a cheaper one.
                    if shared.stopped.load(Ordering::SeqCst) {
                        return;
                    }
                    let shared = Arc::clone(&shared);
                    // A client that breaks off is the test's own affair.
                    std::thread::spawn(move || shared.serve(stream).unwrap_or_default());
                }
            }
        });
        Self { port, shared, acceptor: Some(acceptor) }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The requests so far, the oldest first.
    pub fn seen(&self) -> Vec<Request> {
        self.shared.seen.lock().unwrap().clone()
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Wakes it; if that fails, it has ended already.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
        drop(self.acceptor.take().map(JoinHandle::join));
    }
}

impl Shared {
    fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut reader = BufReader::new(&stream);
        let mut line = || {
            let mut line = String::new();
            reader.read_line(&mut line).map(|_| line.trim_end().to_owned())
        };
        let first = line()?;
        let mut words = first.split(' ').map(str::to_owned);
        let (Some(method), Some(path)) = (words.next(), words.next()) else { return Ok(()) };
        let mut headers = Vec::new();
        loop {
            let line = line()?;
            let Some((name, value)) = line.split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut request = Request { method, path, headers, body: String::new() };
        let length: usize = request.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        request.body = String::from_utf8_lossy(&body).into_owned();
        let reply = (self.answer)(&request);
        self.seen.lock().unwrap().push(request);
        match reply {
            None => self.kept.lock().unwrap().push(stream),
            Some((status, body)) => {
                // The life of an instance metadata token, which the SDK would believe of an error, too.
                let token =
                    if status == 200 { "x-aws-ec2-metadata-token-ttl-seconds: 21600\r\n" } else { "" };
                let length = body.len();
                write!(
                    &stream,
                    "HTTP/1.1 {status} Said\r\n{token}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
                )?;
            }
        }
        Ok(())
    }
}
