//! [`Record`]: what is known of one operation, and its bytes.
//!
//! Runs in the backend that encodes and in the relay that decodes. The trap it avoids: a decoder that trusts its input;
//! this one is total, and whatever it does not know is an error, never a guess.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where the caller was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client<'a> {
    /// No client: a process of the server itself.
    None,
    /// A Unix socket.
    Local,
    Ip(IpAddr),
    /// A background worker, by its type.
    Internal(&'a str),
}

/// How it ended, as far as the record's writer knew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Ok,
    Denied,
    Error,
    /// A write whose transaction was still open.
    Pending,
    RolledBack,
    /// A write whose transaction was on a timeline that is not this server's any more.
    Unknown,
}

impl Outcome {
    const ALL: [Self; 6] =
        [Self::Ok, Self::Denied, Self::Error, Self::Pending, Self::RolledBack, Self::Unknown];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Denied => "denied",
            Self::Error => "error",
            Self::Pending => "pending",
            Self::RolledBack => "rolled_back",
            Self::Unknown => "unknown",
        }
    }

    fn from_u8(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| *outcome as u8 == byte)
    }
}

/// One operation. Never a value, a candidate, a password or a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Microseconds since 2000-01-01 00:00 UTC.
    pub at: i64,
    pub timeline: u32,
    /// The full id of the (sub)transaction a pending write belongs to; 0: none.
    pub xid: u64,
    /// How many operations this stands for: more than one for denials that were counted instead of written.
    pub occurrences: u32,
    pub outcome: Outcome,
    /// Of an operation that failed.
    pub sqlstate: Option<[u8; 5]>,
    pub version: Option<i32>,
    pub client: Client<'a>,
    pub node: &'a str,
    pub session_role: &'a str,
    pub role: &'a str,
    pub token: Option<&'a str>,
    pub action: &'a str,
    pub function: &'a str,
    pub subject: Option<&'a str>,
    pub detail: Option<&'a str>,
}

/// Of the layout below.
const FORMAT: u8 = 1;
/// Length of a text that is not there.
const ABSENT: u16 = u16::MAX;
/// Longer texts are cut: names have at most 512 bytes, and everything else is ours or the server's and shorter.
const MAX_TEXT: usize = 1024;

impl<'a> Record<'a> {
    /// Appends the record's bytes. Integers are little-endian; texts have a length of two bytes before them.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(FORMAT);
        out.push(self.outcome as u8);
        out.extend_from_slice(&self.at.to_le_bytes());
        out.extend_from_slice(&self.timeline.to_le_bytes());
        out.extend_from_slice(&self.xid.to_le_bytes());
        out.extend_from_slice(&self.occurrences.to_le_bytes());
        out.extend_from_slice(&self.version.unwrap_or(0).to_le_bytes());
        out.extend_from_slice(&self.sqlstate.unwrap_or_default());
        let kind = match self.client {
            Client::None => 0,
            Client::Local => 1,
            Client::Ip(IpAddr::V4(_)) => 2,
            Client::Ip(IpAddr::V6(_)) => 3,
            Client::Internal(_) => 4,
        };
        out.push(kind);
        match self.client {
            Client::Ip(IpAddr::V4(address)) => out.extend_from_slice(&address.octets()),
            Client::Ip(IpAddr::V6(address)) => out.extend_from_slice(&address.octets()),
            Client::Internal(text) => put(out, Some(text)),
            Client::None | Client::Local => {}
        }
        for text in [self.node, self.session_role, self.role, self.action, self.function] {
            put(out, Some(text));
        }
        for text in [self.token, self.subject, self.detail] {
            put(out, text);
        }
    }

    /// The record that these bytes are, all of them; None if they are none.
    pub fn decode(bytes: &'a [u8]) -> Option<Self> {
        let mut rest = Rest(bytes);
        if rest.byte()? != FORMAT {
            return None;
        }
        let outcome = Outcome::from_u8(rest.byte()?)?;
        let at = i64::from_le_bytes(rest.array()?);
        let timeline = u32::from_le_bytes(rest.array()?);
        let xid = u64::from_le_bytes(rest.array()?);
        let occurrences = u32::from_le_bytes(rest.array()?);
        let version = Some(i32::from_le_bytes(rest.array()?)).filter(|version| *version != 0);
        let sqlstate = Some(rest.array::<5>()?).filter(|state| *state != [0; 5]);
        if sqlstate.is_some_and(|state| !state.iter().all(u8::is_ascii_alphanumeric)) {
            return None;
        }
        let client = match rest.byte()? {
            0 => Client::None,
            1 => Client::Local,
            2 => Client::Ip(Ipv4Addr::from(rest.array::<4>()?).into()),
            3 => Client::Ip(Ipv6Addr::from(rest.array::<16>()?).into()),
            4 => Client::Internal(rest.text()??),
            _ => return None,
        };
        let [node, session_role, role, action, function] =
            [rest.text()??, rest.text()??, rest.text()??, rest.text()??, rest.text()??];
        let [token, subject, detail] = [rest.text()?, rest.text()?, rest.text()?];
        rest.0.is_empty().then_some(Self {
            at,
            timeline,
            xid,
            occurrences,
            outcome,
            sqlstate,
            version,
            client,
            node,
            session_role,
            role,
            token,
            action,
            function,
            subject,
            detail,
        })
    }
}

fn put(out: &mut Vec<u8>, text: Option<&str>) {
    match text {
        None => out.extend_from_slice(&ABSENT.to_le_bytes()),
        Some(text) => {
            let text = &text[..text.floor_char_boundary(MAX_TEXT)];
            out.extend_from_slice(&(text.len() as u16).to_le_bytes());
            out.extend_from_slice(text.as_bytes());
        }
    }
}

/// What has not been decoded yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>()?;
        self.0 = tail;
        Some(*head)
    }

    fn byte(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// None: no record; Some(None): a text that is not there.
    fn text(&mut self) -> Option<Option<&'a str>> {
        let len = u16::from_le_bytes(self.array()?);
        if len == ABSENT {
            return Some(None);
        }
        let (text, tail) = self.0.split_at_checked(usize::from(len))?;
        self.0 = tail;
        // A text column of the table cannot hold a zero byte.
        std::str::from_utf8(text).ok().filter(|text| !text.contains('\0')).map(Some)
    }
}
