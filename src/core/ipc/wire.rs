//! What the payload bytes of a request slot mean: requests to the key-service worker and its responses.
//!
//! Encoded by one process and decoded by another of the same build, so there is no version byte; parsers are total
//! all the same, since what lies in shared memory is outside the type system. Runs in client backends and on the
//! worker's main thread. The trap it avoids: a DEK in a buffer that grows (old copies stay behind unwiped) or in
//! a `{:?}`; buffers are made at their final size, wiped on drop, and Debug shows no key. Their size is that of the message,
//! not the largest possible: wiping 8 kB takes longer than the local provider needs for a key.
//!
//! Format: a tag byte, then the fields in order; fixed-size fields as they are, others with a little-endian u16
//! length. Bytes left over after the last field are refused.

use std::fmt;

use zeroize::Zeroizing;

use super::slot::{REQUEST_BYTES, RESPONSE_BYTES};
use crate::envelope::{Dek, DekContext, KEY_LEN};

/// The longest wrapped DEK, in bytes: what AWS KMS accepts as a `CiphertextBlob` (API reference of Decrypt).
pub const MAX_WRAPPED: usize = 6144;

/// Key ids and key-material ids. An AWS key ARN or alias has at most 2,048 characters, but a DEK, the longest
/// wrapped key and two ids must fit a slot together; what providers return is below 200.
pub(super) const MAX_ID: usize = 960;
/// Texts of an error, in bytes; longer ones are cut at a character boundary. Chosen so that all three fit a slot.
const MAX_MESSAGE: usize = 1024;
const MAX_DETAIL: usize = 4096;
const MAX_HINT: usize = 1024;

const _: () = assert!(1 + DekContext::LEN + 2 + MAX_WRAPPED + 2 + MAX_ID <= REQUEST_BYTES);
const _: () = assert!(1 + KEY_LEN + 2 + MAX_WRAPPED + 2 * (2 + MAX_ID) <= RESPONSE_BYTES);
const _: () = assert!(2 + 2 + MAX_MESSAGE + 2 + MAX_DETAIL + 2 + MAX_HINT <= RESPONSE_BYTES);

/// The bytes are no message of this build. Says nothing about them: they may be key bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("malformed message in the request queue")
    }
}

impl std::error::Error for Malformed {}

/// What a backend asks of the worker. Carries no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// A fresh DEK, plain and wrapped for this place.
    GenerateDek { context: DekContext },
    /// The DEK inside `wrapped` (at most [`MAX_WRAPPED`] bytes), if it was wrapped for this place by the key of this
    /// id (at most [`MAX_ID`] bytes).
    UnwrapDek { context: DekContext, wrapped: Vec<u8>, key_id: String },
    /// Which provider and key are in use, and whether they answer.
    Describe,
}

impl Request {
    /// The op code for the slot: the tag of the encoding.
    pub fn op(&self) -> u32 {
        u32::from(self.tag())
    }

    /// At most [`REQUEST_BYTES`] bytes. Fails on an overlong wrapped key, which no provider made.
    pub fn encode(&self) -> Result<Vec<u8>, Malformed> {
        let mut out = Writer::new(self.encoded_len());
        out.raw(&[self.tag()]);
        match self {
            Self::GenerateDek { context } => out.raw(&context.to_bytes()),
            Self::UnwrapDek { context, wrapped, key_id } => {
                out.raw(&context.to_bytes());
                out.bytes(wrapped, MAX_WRAPPED)?;
                out.bytes(key_id.as_bytes(), MAX_ID)?;
            }
            Self::Describe => {}
        }
        // Requests hold nothing secret: the buffer may leave its wiping wrapper.
        Ok(std::mem::take(&mut *out.0))
    }

    fn encoded_len(&self) -> usize {
        1 + match self {
            Self::GenerateDek { .. } => DekContext::LEN,
            Self::UnwrapDek { wrapped, key_id, .. } => {
                DekContext::LEN + field_len(wrapped.len()) + field_len(key_id.len())
            }
            Self::Describe => 0,
        }
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut input = Reader(bytes);
        let request = match input.array::<1>()? {
            [1] => Self::GenerateDek { context: input.context()? },
            [2] => Self::UnwrapDek {
                context: input.context()?,
                wrapped: input.bytes(MAX_WRAPPED)?.to_vec(),
                key_id: input.string(MAX_ID)?,
            },
            [3] => Self::Describe,
            _ => return Err(Malformed),
        };
        input.finish()?;
        Ok(request)
    }

    fn tag(&self) -> u8 {
        match self {
            Self::GenerateDek { .. } => 1,
            Self::UnwrapDek { .. } => 2,
            Self::Describe => 3,
        }
    }
}

/// What kind of failure it is: decides whether to try again, whether a stale key may serve, and the SQLSTATE the
/// extension raises. The number travels through shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ErrorKind {
    /// No answer from the key service: transport failure, or an internal error on its side. 08006.
    Unreachable = 1,
    /// No answer before the deadline. 08006.
    TimedOut = 2,
    /// The service asks to be called less often, and retries did not help. 08006.
    Throttled = 3,
    /// The service answered no: access denied, key disabled or deleted, another master key. 38000.
    Refused = 4,
    /// The wrapped bytes are not what was wrapped for this place. XX001.
    Unauthenticated = 5,
    /// The settings cannot work: key file missing, readable by others, wrong length, unknown mode. 38000.
    Misconfigured = 6,
    /// A defect on our side, such as a panic in a provider. XX000.
    Internal = 7,
    /// More jobs wait than the worker may hold. 53000.
    Overloaded = 8,
}

impl ErrorKind {
    /// Every kind, for tables and tests.
    pub const ALL: [Self; 8] = [
        Self::Unreachable,
        Self::TimedOut,
        Self::Throttled,
        Self::Refused,
        Self::Unauthenticated,
        Self::Misconfigured,
        Self::Internal,
        Self::Overloaded,
    ];

    /// Stable lower-case name, for `vault.status()` and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed_out",
            Self::Throttled => "throttled",
            Self::Refused => "refused",
            Self::Unauthenticated => "unauthenticated",
            Self::Misconfigured => "misconfigured",
            Self::Internal => "internal",
            Self::Overloaded => "overloaded",
        }
    }

    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// The kind of that number.
    pub fn from_u8(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }

    /// Whether the same call may succeed a moment later. A refusal does not become consent by repetition, and
    /// repeating one is noise in the key service's audit trail; `Overloaded` is for the caller to repeat, since
    /// a retry in the worker would add to the load.
    pub const fn is_retryable(self) -> bool {
        match self {
            Self::Unreachable | Self::TimedOut | Self::Throttled => true,
            Self::Refused
            | Self::Unauthenticated
            | Self::Misconfigured
            | Self::Internal
            | Self::Overloaded => false,
        }
    }

    /// Whether the key service may be fine with the key and just cannot be asked: the only case in which the DEK
    /// cache may serve an entry past its TTL.
    pub const fn is_outage(self) -> bool {
        matches!(self, Self::Unreachable | Self::TimedOut | Self::Throttled | Self::Overloaded)
    }
}

/// What the worker answers. The DEK inside wipes itself on drop and prints nothing.
#[derive(Debug)]
pub enum Response {
    /// To [`Request::GenerateDek`].
    Dek {
        dek: Dek,
        wrapped: Vec<u8>,
        /// The key that wrapped it, as the provider names it.
        key_id: String,
        /// The key material among those a rotated key has had; empty if the provider does not say.
        key_material_id: String,
    },
    /// To [`Request::UnwrapDek`].
    Unwrapped { dek: Dek },
    /// To [`Request::Describe`].
    Described { provider: String, key_id: String, key_material_id: String },
    /// To any. `detail` and `hint` may be empty; none of the texts may quote key bytes.
    Error { kind: ErrorKind, message: String, detail: String, hint: String },
}

impl Response {
    /// The status for the slot: 0, or the error kind's number.
    pub fn status(&self) -> u32 {
        match self {
            Self::Error { kind, .. } => *kind as u32,
            _ => 0,
        }
    }

    /// Status and bytes for the slot, at most [`RESPONSE_BYTES`]. Always succeeds: error texts are cut to fit, and a
    /// key or id too long to deliver is delivered as an error that says so (a cut id would be a wrong id).
    pub fn encode(&self) -> (u32, Zeroizing<Vec<u8>>) {
        match self.try_encode() {
            Ok(bytes) => (self.status(), bytes),
            Err(Malformed) => {
                let error = Self::Error {
                    kind: ErrorKind::Internal,
                    message: "key service returned more than a request slot holds".to_owned(),
                    detail: String::new(),
                    hint: String::new(),
                };
                // An error always encodes: its texts are cut to fit. Were it not so, no bytes decode as Malformed.
                (error.status(), error.try_encode().unwrap_or_default())
            }
        }
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut input = Reader(bytes);
        let response = match input.array::<1>()? {
            [1] => Self::Dek {
                dek: input.dek()?,
                wrapped: input.bytes(MAX_WRAPPED)?.to_vec(),
                key_id: input.string(MAX_ID)?,
                key_material_id: input.string(MAX_ID)?,
            },
            [2] => Self::Unwrapped { dek: input.dek()? },
            [3] => Self::Described {
                provider: input.string(MAX_ID)?,
                key_id: input.string(MAX_ID)?,
                key_material_id: input.string(MAX_ID)?,
            },
            [4] => {
                let [kind] = input.array()?;
                Self::Error {
                    kind: ErrorKind::from_u8(kind).ok_or(Malformed)?,
                    message: input.string(MAX_MESSAGE)?,
                    detail: input.string(MAX_DETAIL)?,
                    hint: input.string(MAX_HINT)?,
                }
            }
            _ => return Err(Malformed),
        };
        input.finish()?;
        Ok(response)
    }

    fn try_encode(&self) -> Result<Zeroizing<Vec<u8>>, Malformed> {
        let mut out = Writer::new(self.encoded_len());
        match self {
            Self::Dek { dek, wrapped, key_id, key_material_id } => {
                out.raw(&[1]);
                out.raw(dek.as_bytes());
                out.bytes(wrapped, MAX_WRAPPED)?;
                out.bytes(key_id.as_bytes(), MAX_ID)?;
                out.bytes(key_material_id.as_bytes(), MAX_ID)?;
            }
            Self::Unwrapped { dek } => {
                out.raw(&[2]);
                out.raw(dek.as_bytes());
            }
            Self::Described { provider, key_id, key_material_id } => {
                out.raw(&[3]);
                out.bytes(provider.as_bytes(), MAX_ID)?;
                out.bytes(key_id.as_bytes(), MAX_ID)?;
                out.bytes(key_material_id.as_bytes(), MAX_ID)?;
            }
            Self::Error { kind, message, detail, hint } => {
                out.raw(&[4, *kind as u8]);
                out.bytes(cut(message, MAX_MESSAGE).as_bytes(), MAX_MESSAGE)?;
                out.bytes(cut(detail, MAX_DETAIL).as_bytes(), MAX_DETAIL)?;
                out.bytes(cut(hint, MAX_HINT).as_bytes(), MAX_HINT)?;
            }
        }
        Ok(out.0)
    }

    /// Of an error at most so much, since its texts are cut.
    fn encoded_len(&self) -> usize {
        1 + match self {
            Self::Dek { wrapped, key_id, key_material_id, .. } => {
                KEY_LEN
                    + field_len(wrapped.len())
                    + field_len(key_id.len())
                    + field_len(key_material_id.len())
            }
            Self::Unwrapped { .. } => KEY_LEN,
            Self::Described { provider, key_id, key_material_id } => {
                field_len(provider.len()) + field_len(key_id.len()) + field_len(key_material_id.len())
            }
            Self::Error { message, detail, hint, .. } => {
                1 + field_len(message.len().min(MAX_MESSAGE))
                    + field_len(detail.len().min(MAX_DETAIL))
                    + field_len(hint.len().min(MAX_HINT))
            }
        }
    }
}

/// A field of this many bytes, with its length before it.
const fn field_len(bytes: usize) -> usize {
    2 + bytes
}

/// The longest prefix of at most `max` bytes that ends at a character boundary.
fn cut(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

/// Writes into a buffer that has its final capacity from the start and never moves.
struct Writer(Zeroizing<Vec<u8>>);

impl Writer {
    fn new(capacity: usize) -> Self {
        Self(Zeroizing::new(Vec::with_capacity(capacity)))
    }

    fn raw(&mut self, bytes: &[u8]) {
        debug_assert!(
            self.0.len() + bytes.len() <= self.0.capacity(),
            "a buffer that grows leaves a copy behind"
        );
        self.0.extend_from_slice(bytes);
    }

    /// `max` is at most [`MAX_WRAPPED`], so the length fits its 16 bits.
    fn bytes(&mut self, bytes: &[u8], max: usize) -> Result<(), Malformed> {
        let len = u16::try_from(bytes.len()).map_err(|_| Malformed)?;
        if bytes.len() > max {
            return Err(Malformed);
        }
        self.raw(&len.to_le_bytes());
        self.raw(bytes);
        Ok(())
    }
}

/// Takes fields off the front; every read is checked.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*head)
    }

    fn bytes(&mut self, max: usize) -> Result<&'a [u8], Malformed> {
        let len = usize::from(u16::from_le_bytes(self.array()?));
        if len > max {
            return Err(Malformed);
        }
        let (head, rest) = self.0.split_at_checked(len).ok_or(Malformed)?;
        self.0 = rest;
        Ok(head)
    }

    fn string(&mut self, max: usize) -> Result<String, Malformed> {
        String::from_utf8(self.bytes(max)?.to_vec()).map_err(|_| Malformed)
    }

    fn context(&mut self) -> Result<DekContext, Malformed> {
        DekContext::from_bytes(&self.array::<{ DekContext::LEN }>()?).map_err(|_| Malformed)
    }

    /// Straight from the input into the key type; a wiped (all-zero) key is refused there.
    fn dek(&mut self) -> Result<Dek, Malformed> {
        let (head, rest) = self.0.split_at_checked(KEY_LEN).ok_or(Malformed)?;
        self.0 = rest;
        Dek::from_slice(head).map_err(|_| Malformed)
    }

    fn finish(self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed) }
    }
}
