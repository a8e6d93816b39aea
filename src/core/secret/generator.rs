//! Random values for automatic secrets and passwords: what to draw from, how many, and what must occur.
//!
//! Runs in the backend that creates or rotates a secret and in the maintenance worker. The traps it avoids are
//! bias (`byte % n` favours the first characters; placing one character of each required class at a fixed or
//! shuffled position favours some strings) and copies (the value is written once into a buffer of its final
//! size that is wiped on drop, as is the buffer of random bytes).
//!
//! **Distribution.** Every string of `length` characters that holds every required class is equally likely.
//! Characters are drawn by rejecting random bytes at or above the largest multiple of the set's size; a value
//! that misses a required class is thrown away whole. The rarest specification that parses (three one-character
//! classes required at length 3 from a set of 35) succeeds once in about 7,000 draws of three characters, some
//! hundred microseconds; so [`MAX_DRAWS`] is never reached by a working generator.
//!
//! Explicit sets are printable ASCII without space: a space at either end is lost in configuration files, and
//! beyond ASCII password preparation (SASLprep, RFC 4013) may change the characters behind the user's back.

use std::fmt;

use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::{InvalidArgument, quoted};

pub const MAX_LENGTH: usize = 4096;
pub const DEFAULT_LENGTH: usize = 32;

/// A specification is a few dozen bytes; this refuses megabytes of JSON before they are parsed.
const MAX_SPEC_BYTES: usize = 4096;

/// With the rarest specification (success 6 in 42,875) a million draws fail with probability below e^-140.
const MAX_DRAWS: u32 = 1_000_000;

/// What `vault.create_secret(generator => …)` describes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generator {
    length: usize,
    charset: Charset,
    /// In the order of [`Class::ALL`], each at most once.
    require: Vec<Class>,
}

/// The operating system gave no random bytes, or bytes that are not random.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RandomUnavailable;

impl Generator {
    /// Parses `{"length": 32, "charset": "alphanumeric", "require": ["lower", "digit"]}`; every key is optional.
    ///
    /// - `length`: whole number from 1 to 4096 (characters; the sets are ASCII, so also bytes); 32 if absent.
    /// - `charset`: `alphanumeric` (the default), `hex` (lower case), `base64url`, `ascii` (the 94 printable
    ///   characters without space), or the characters themselves: 2 to 94 distinct ones of `ascii`. A word that
    ///   looks like a misspelt name of a set (`Hex`, `base64`) is refused rather than taken as characters.
    /// - `require`: of `lower`, `upper`, `digit`, `symbol` (ASCII punctuation); each must occur in the value.
    pub fn parse(json: &str) -> Result<Self, InvalidArgument> {
        if json.len() > MAX_SPEC_BYTES {
            return Err(invalid("generator is too long")
                .detail(format!("It has {} bytes; at most {MAX_SPEC_BYTES} are allowed.", json.len())));
        }
        // For a `Value` serde_json's message names the kind of fault and its place, never the text.
        let value: Value = serde_json::from_str(json)
            .map_err(|e| invalid("generator is not valid JSON").detail(format!("Parser: {e}.")))?;
        let Value::Object(fields) = value else {
            return Err(invalid("generator must be a JSON object"));
        };
        if let Some(key) = fields.keys().find(|k| !matches!(k.as_str(), "length" | "charset" | "require")) {
            return Err(invalid(format!("generator has an unknown key {}", quoted(key)))
                .detail("The keys are length, charset and require."));
        }
        let length = parse_length(&fields)?;
        let charset = match fields.get("charset") {
            None => Charset::Alphanumeric,
            Some(Value::String(text)) => Charset::parse(text)?,
            Some(_) => return Err(invalid("generator charset must be a string")),
        };
        let require = parse_require(&fields)?;
        for class in &require {
            if !charset.chars().bytes().any(|b| class.contains(b)) {
                return Err(invalid(format!("generator requires {} but the charset has none", class.name())));
            }
        }
        if require.len() > length {
            return Err(invalid("generator requires more classes than it has characters")
                .detail(format!("The length is {length} and {} classes are required.", require.len())));
        }
        Ok(Self { length, charset, require })
    }

    /// The canonical form: every key, named sets by name, classes in a fixed order. Parses to an equal generator.
    pub fn to_json(&self) -> String {
        let require: Vec<&str> = self.require.iter().map(|c| c.name()).collect();
        json!({ "length": self.length, "charset": self.charset.text(), "require": require }).to_string()
    }

    /// Length of every generated value, in characters and in bytes.
    pub fn length(&self) -> usize {
        self.length
    }

    /// A fresh value from the operating system's generator.
    pub fn generate(&self) -> Result<Zeroizing<String>, RandomUnavailable> {
        self.generate_from(|bytes| getrandom::fill(bytes).map_err(|_| RandomUnavailable))
    }

    fn generate_from(
        &self,
        fill: impl FnMut(&mut [u8]) -> Result<(), RandomUnavailable>,
    ) -> Result<Zeroizing<String>, RandomUnavailable> {
        let set = self.charset.chars().as_bytes();
        // Bytes below the largest multiple of the set's size fall evenly on its characters.
        let fair = 256 - 256 % set.len();
        let mut random = Bytes::new(fill);
        // Full capacity at once: growing would leave copies of the value behind, unwiped.
        let mut value = Zeroizing::new(String::with_capacity(self.length));
        for _ in 0..MAX_DRAWS {
            value.clear();
            while value.len() < self.length {
                let byte = usize::from(random.next()?);
                if byte < fair {
                    value.push(char::from(set[byte % set.len()]));
                }
            }
            if self.require.iter().all(|class| value.bytes().any(|b| class.contains(b))) {
                return Ok(value);
            }
        }
        Err(RandomUnavailable)
    }
}

/// 32 characters of the alphanumeric set: 190 bits.
impl Default for Generator {
    fn default() -> Self {
        Self { length: DEFAULT_LENGTH, charset: Charset::Alphanumeric, require: Vec::new() }
    }
}

impl fmt::Display for RandomUnavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("could not get random bytes from the operating system")
    }
}

impl std::error::Error for RandomUnavailable {}

fn parse_length(fields: &Map<String, Value>) -> Result<usize, InvalidArgument> {
    let Some(value) = fields.get("length") else {
        return Ok(DEFAULT_LENGTH);
    };
    let Value::Number(number) = value else {
        return Err(invalid("generator length must be a whole number"));
    };
    match number.as_u64().and_then(|n| usize::try_from(n).ok()) {
        Some(length @ 1..=MAX_LENGTH) => Ok(length),
        None if number.is_f64() => Err(invalid("generator length must be a whole number")),
        _ => Err(invalid("generator length is out of range")
            .detail(format!("It is {number}; from 1 to {MAX_LENGTH} is allowed."))),
    }
}

fn parse_require(fields: &Map<String, Value>) -> Result<Vec<Class>, InvalidArgument> {
    let Some(value) = fields.get("require") else {
        return Ok(Vec::new());
    };
    let Value::Array(items) = value else {
        return Err(invalid("generator require must be an array of strings"));
    };
    let mut named = Vec::with_capacity(Class::ALL.len());
    for item in items {
        let Value::String(name) = item else {
            return Err(invalid("generator require must be an array of strings"));
        };
        let class = Class::ALL
            .into_iter()
            .find(|c| c.name() == name)
            .ok_or_else(|| invalid(format!("generator requires an unknown class {}", quoted(name))))?;
        named.push(class);
    }
    Ok(Class::ALL.into_iter().filter(|c| named.contains(c)).collect())
}

fn invalid(message: impl Into<String>) -> InvalidArgument {
    InvalidArgument::new(message).hint(
        "Use for example {\"length\": 32, \"charset\": \"ascii\", \"require\": [\"upper\", \"digit\"]}.",
    )
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Charset {
    Alphanumeric,
    Hex,
    Base64Url,
    Ascii,
    /// Distinct printable ASCII characters, at least two.
    Explicit(String),
}

impl Charset {
    const NAMED: [Self; 4] = [Self::Alphanumeric, Self::Hex, Self::Base64Url, Self::Ascii];

    fn parse(text: &str) -> Result<Self, InvalidArgument> {
        if let Some(named) = Self::NAMED.into_iter().find(|c| c.text() == text) {
            return Ok(named);
        }
        if looks_like_a_set_name(text) {
            return Err(invalid(format!("generator charset {} is not known", quoted(text))).detail(
                "The named sets are alphanumeric, hex, base64url and ascii; \
                 a list of characters that spells such a word can be written in another order.",
            ));
        }
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(invalid("generator charset has characters other than printable ASCII without space"));
        }
        let mut seen = [false; 128];
        for b in text.bytes() {
            // In range: every byte was found to be ASCII above.
            if std::mem::replace(&mut seen[usize::from(b)], true) {
                return Err(invalid(format!(
                    "generator charset holds {} twice",
                    quoted(&char::from(b).to_string())
                ))
                .detail("The named sets are alphanumeric, hex, base64url and ascii."));
            }
        }
        if text.len() < 2 {
            return Err(invalid("generator charset must hold at least two characters"));
        }
        Ok(Self::Explicit(text.to_owned()))
    }

    /// The word, or the characters of an explicit set.
    fn text(&self) -> &str {
        match self {
            Self::Alphanumeric => "alphanumeric",
            Self::Hex => "hex",
            Self::Base64Url => "base64url",
            Self::Ascii => "ascii",
            Self::Explicit(chars) => chars,
        }
    }

    fn chars(&self) -> &str {
        match self {
            Self::Alphanumeric => "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
            Self::Hex => "0123456789abcdef",
            Self::Base64Url => "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_",
            Self::Ascii => {
                "!\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~"
            }
            Self::Explicit(chars) => chars,
        }
    }
}

/// Words that someone meant as a name: taken as characters, `Hex` would make values of three different letters.
fn looks_like_a_set_name(text: &str) -> bool {
    const WORDS: [&str; 17] = [
        "hex",
        "hexa",
        "base64",
        "base64url",
        "base32",
        "base58",
        "ascii",
        "alnum",
        "alpha",
        "alphanumeric",
        "lower",
        "upper",
        "digit",
        "digits",
        "symbol",
        "number",
        "utf8",
    ];
    WORDS.iter().any(|word| word.eq_ignore_ascii_case(text))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Lower,
    Upper,
    Digit,
    Symbol,
}

impl Class {
    const ALL: [Self; 4] = [Self::Lower, Self::Upper, Self::Digit, Self::Symbol];

    fn name(self) -> &'static str {
        match self {
            Self::Lower => "lower",
            Self::Upper => "upper",
            Self::Digit => "digit",
            Self::Symbol => "symbol",
        }
    }

    fn contains(self, b: u8) -> bool {
        match self {
            Self::Lower => b.is_ascii_lowercase(),
            Self::Upper => b.is_ascii_uppercase(),
            Self::Digit => b.is_ascii_digit(),
            Self::Symbol => b.is_ascii_punctuation(),
        }
    }
}

/// Random bytes one at a time, fetched 256 at a time (the most that one getrandom call returns uninterrupted).
struct Bytes<F> {
    fill: F,
    buffer: Zeroizing<[u8; 256]>,
    used: usize,
}

impl<F: FnMut(&mut [u8]) -> Result<(), RandomUnavailable>> Bytes<F> {
    fn new(fill: F) -> Self {
        Self { fill, buffer: Zeroizing::new([0; 256]), used: 256 }
    }

    fn next(&mut self) -> Result<u8, RandomUnavailable> {
        if self.used == self.buffer.len() {
            (self.fill)(&mut self.buffer[..])?;
            self.used = 0;
        }
        let byte = self.buffer[self.used];
        self.used += 1;
        Ok(byte)
    }
}

#[cfg(test)]
mod tests;
