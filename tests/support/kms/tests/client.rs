//! A tiny HTTP client that signs, for the fake's own tests. Raw, so that a test sees what is on the wire, and can send
//! what no decent client would.

use crate::PATIENCE;
use crate::kms::clock::amz_date;
use crate::kms::sigv4::{Scope, Signable, authorization};
use crate::kms::{Credentials, FakeKms, Op};
use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::Value;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::SystemTime;

/// A client; each call uses the connection of the one before while that lives.
pub struct Client {
    port: u16,
    pub credentials: Credentials,
    pub region: String,
    pub service: String,
    /// A header it sends and does not sign.
    pub unsigned: Option<&'static str>,
    /// When it believes to sign.
    pub clock: Box<dyn Fn() -> SystemTime>,
    stream: Option<TcpStream>,
}

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Client {
    pub fn new(kms: &FakeKms) -> Self {
        Self {
            port: kms.port(),
            credentials: Credentials::example(),
            region: kms.region().into(),
            service: "kms".into(),
            unsigned: None,
            clock: Box::new(SystemTime::now),
            stream: None,
        }
    }

    /// The members of a successful answer.
    #[track_caller]
    pub fn ok(&mut self, op: Op, body: Value) -> Value {
        let response = self.call(op, body).unwrap_or_else(|error| panic!("{}: {error}", op.name()));
        assert_eq!(response.status, 200, "{}: {}", op.name(), String::from_utf8_lossy(&response.body));
        if response.body.is_empty() { Value::Null } else { response.json() }
    }

    /// Status, error and text of a refusal.
    #[track_caller]
    pub fn refused(&mut self, op: Op, body: Value) -> (u16, String, String) {
        let response = self.call(op, body).unwrap_or_else(|error| panic!("{}: {error}", op.name()));
        assert_ne!(response.status, 200, "{}: {}", op.name(), String::from_utf8_lossy(&response.body));
        response.refusal()
    }

    pub fn call(&mut self, op: Op, body: Value) -> io::Result<Response> {
        let bytes = self.request(op, &body);
        self.exchange(&bytes)
    }

    /// A signed request.
    pub fn request(&self, op: Op, body: &Value) -> Vec<u8> {
        let body = body.to_string();
        let host = format!("127.0.0.1:{}", self.port);
        let date = amz_date((self.clock)());
        let target = format!("TrentService.{}", op.name());
        let mut headers = vec![
            ("content-type", "application/x-amz-json-1.1"),
            ("host", &host),
            ("x-amz-date", &date),
            ("x-amz-target", &target),
        ];
        if let Some(token) = &self.credentials.session_token {
            headers.insert(3, ("x-amz-security-token", token));
        }
        let scope =
            Scope { date: date[..8].into(), region: self.region.clone(), service: self.service.clone() };
        let signed: Vec<_> =
            headers.iter().copied().filter(|(name, _)| Some(*name) != self.unsigned).collect();
        let signable = Signable { method: "POST", path: "/", headers: &signed, body: body.as_bytes() };
        let Credentials { access_key_id, secret_access_key, .. } = &self.credentials;
        let authorization = authorization(access_key_id, secret_access_key, &date, &scope, &signable);
        let mut request = String::from("POST / HTTP/1.1\r\n");
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        let length = body.len();
        request
            .push_str(&format!("authorization: {authorization}\r\ncontent-length: {length}\r\n\r\n{body}"));
        request.into_bytes()
    }

    /// Sends these bytes and reads an answer.
    pub fn exchange(&mut self, request: &[u8]) -> io::Result<Response> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => TcpStream::connect(("127.0.0.1", self.port))?,
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        stream.write_all(request)?;
        let response = read_response(&mut stream)?;
        if response.header("connection") == Some("keep-alive") {
            self.stream = Some(stream);
        }
        Ok(response)
    }

    /// Sends a request and leaves the answer to whoever takes the stream.
    pub fn send_only(&self, op: Op, body: &Value) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.write_all(&self.request(op, body)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    #[track_caller]
    pub fn refusal(&self) -> (u16, String, String) {
        let json = self.json();
        let text = |name: &str| json[name].as_str().map(str::to_owned);
        let message = text("message").or_else(|| text("Message")).unwrap_or_default();
        (self.status, text("__type").expect("an error has a type"), message)
    }
}

/// Reads one answer; fails if it is cut short.
pub fn read_response(stream: &mut TcpStream) -> io::Result<Response> {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        bytes.push(byte[0]);
    }
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut parsed = httparse::Response::new(&mut headers);
    parsed.parse(&bytes).unwrap();
    let mut response = Response { status: parsed.code.unwrap(), headers: Vec::new(), body: Vec::new() };
    for header in parsed.headers.iter() {
        let value = String::from_utf8(header.value.to_vec()).unwrap();
        response.headers.push((header.name.to_ascii_lowercase(), value));
    }
    let length = response.header("content-length").expect("every answer has a length").parse().unwrap();
    response.body = vec![0; length];
    stream.read_exact(&mut response.body)?;
    Ok(response)
}

#[track_caller]
pub fn bytes(value: &Value) -> Vec<u8> {
    BASE64_STANDARD.decode(value.as_str().expect("a text")).unwrap()
}

pub fn base64(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}
