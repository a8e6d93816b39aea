//! HTTP/1.1 on a raw socket, as much of it as clients of AWS KMS use. Runs in a connection's thread.
//!
//! Raw, because faults break it on purpose. The trap: two requests may arrive in one read, and one in many.

use super::clock::http_date;
use super::keyring::random_uuid;
use serde_json::Value;
use std::io::{self, Read};
use std::time::SystemTime;

/// KMS takes far less; a client that sends more is broken.
const MAX_HEAD: usize = 64 * 1024;
const MAX_BODY: usize = 1024 * 1024;
const MAX_HEADERS: usize = 64;

#[derive(Clone, Debug)]
pub(super) struct Request {
    pub method: String,
    pub path: String,
    /// Names in lower case, in the order of the wire.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub keep_alive: bool,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }
}

/// Reads requests from one connection.
pub(super) struct Reader<R> {
    from: R,
    /// Read and not yet used.
    pending: Vec<u8>,
}

impl<R: Read> Reader<R> {
    pub fn new(from: R) -> Self {
        Self { from, pending: Vec::new() }
    }

    /// The next request; `None` when the client closes the connection between two.
    pub fn next(&mut self) -> io::Result<Option<Request>> {
        let (mut request, head, length) = loop {
            if let Some(parsed) = parse_head(&self.pending)? {
                break parsed;
            }
            if self.pending.len() > MAX_HEAD {
                return Err(invalid("headers too long"));
            }
            if !self.fill()? {
                return if self.pending.is_empty() {
                    Ok(None)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
        };
        while self.pending.len() < head + length {
            if !self.fill()? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        request.body = self.pending[head..head + length].to_vec();
        self.pending.drain(..head + length);
        Ok(Some(request))
    }

    fn fill(&mut self) -> io::Result<bool> {
        let mut chunk = [0; 8192];
        loop {
            match self.from.read(&mut chunk) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(n) => {
                    self.pending.extend(&chunk[..n]);
                    return Ok(n > 0);
                }
            }
        }
    }
}

/// The request without its body, the length of its head and of its body; `None` if more bytes are needed.
fn parse_head(bytes: &[u8]) -> io::Result<Option<(Request, usize, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let head = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(invalid(&error.to_string())),
    };
    let text = |value: &[u8]| String::from_utf8(value.to_vec()).map_err(|_| invalid("header not in UTF-8"));
    let mut request = Request {
        method: parsed.method.unwrap_or_default().into(),
        path: parsed.path.unwrap_or_default().into(),
        headers: Vec::new(),
        body: Vec::new(),
        keep_alive: parsed.version == Some(1),
    };
    for header in parsed.headers.iter() {
        request.headers.push((header.name.to_ascii_lowercase(), text(header.value)?));
    }
    if request.header("transfer-encoding").is_some() {
        return Err(invalid("chunked bodies are not for AWS JSON"));
    }
    if request.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
        request.keep_alive = false;
    }
    let length = match request.header("content-length") {
        Some(length) => length.parse().map_err(|_| invalid("content-length is no number"))?,
        None => 0,
    };
    if length > MAX_BODY {
        return Err(invalid("body too long"));
    }
    Ok(Some((request, head, length)))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub status: u16,
    content_type: &'static str,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(status: u16, body: &Value) -> Self {
        Self { status, content_type: "application/x-amz-json-1.1", body: body.to_string().into_bytes() }
    }

    pub fn empty(status: u16) -> Self {
        Self { status, content_type: "", body: Vec::new() }
    }

    pub fn html(status: u16) -> Self {
        let reason = reason(status);
        let page = format!(
            "<html>\r\n<head><title>{status} {reason}</title></head>\r\n<body>\r\n<center><h1>{status} {reason}\
             </h1></center>\r\n</body>\r\n</html>\r\n"
        );
        Self { status, content_type: "text/html", body: page.into_bytes() }
    }

    /// Not JSON, though it says so and begins like it.
    pub fn garbage() -> Self {
        let body = b"{\"CiphertextBlob\": \"AQIC\xff\xfe, \x00 <<<".to_vec();
        Self { status: 200, content_type: "application/x-amz-json-1.1", body }
    }

    /// All bytes of the answer, and how many of them come before the body.
    pub fn bytes(&self, keep_alive: bool) -> (Vec<u8>, usize) {
        let mut head = format!(
            "HTTP/1.1 {} {}\r\nx-amzn-RequestId: {}\r\nCache-Control: no-cache, no-store, must-revalidate, private\r\n\
             Expires: 0\r\nPragma: no-cache\r\nDate: {}\r\n",
            self.status,
            reason(self.status),
            random_uuid(),
            http_date(SystemTime::now())
        );
        if !self.content_type.is_empty() {
            head.push_str(&format!("Content-Type: {}\r\n", self.content_type));
        }
        let connection = if keep_alive { "keep-alive" } else { "close" };
        head.push_str(&format!("Content-Length: {}\r\nConnection: {connection}\r\n\r\n", self.body.len()));
        let length = head.len();
        let mut bytes = head.into_bytes();
        bytes.extend(&self.body);
        (bytes, length)
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        412 => "Precondition Failed",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives one byte at a time.
    struct Drip<'a>(&'a [u8]);

    impl Read for Drip<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let Some((&first, rest)) = self.0.split_first() else { return Ok(0) };
            buffer[0] = first;
            self.0 = rest;
            Ok(1)
        }
    }

    #[test]
    fn requests_in_one_piece_and_in_many() {
        let wire = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}POST / HTTP/1.1\r\nConnection: close\r\n\r\n";
        let whole: Box<dyn Read> = Box::new(&wire[..]);
        for source in [whole, Box::new(Drip(wire))] {
            let mut reader = Reader::new(source);
            let first = reader.next().unwrap().unwrap();
            assert_eq!(
                (first.body.as_slice(), first.header("host"), first.keep_alive),
                (&b"{}"[..], Some("a"), true)
            );
            let second = reader.next().unwrap().unwrap();
            assert!(second.body.is_empty() && !second.keep_alive);
            assert!(reader.next().unwrap().is_none());
        }
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for wire in [
            "\x16\x03\x01 nonsense\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\n{}",
        ] {
            assert!(Reader::new(wire.as_bytes()).next().is_err(), "{wire:?}");
        }
    }
}
