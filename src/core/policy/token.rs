//! Tokens: what a holder shows to act with the rights of a role.
//!
//! Made and checked in backends. `hvt_` and 64 characters of base64url: 16 bytes of id, 32 bytes of secret, so that
//! scanners of repositories and logs can recognise one, and an operator can tell from its first characters which it is.
//! The id is a primary key and no secret: it finds the row, and what is compared, in constant time and whether or not
//! there is a row, is the SHA-256 of the whole text with the stored one. The trap it avoids: a look-up by the secret
//! itself, or by its hash, whose time is that of an index and not of our making.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::envelope::{CryptoError, Id, constant_time_eq};
use crate::secret::Timestamp;

pub const PREFIX: &str = "hvt_";
const ID_BYTES: usize = 16;
const SECRET_BYTES: usize = 32;
/// Whole characters of base64url that the id alone determines.
const ID_CHARS: usize = ID_BYTES * 8 / 6;
/// Length of a token's text: a multiple of three bytes needs no padding.
pub const LENGTH: usize = PREFIX.len() + (ID_BYTES + SECRET_BYTES) / 3 * 4;

/// SHA-256 of a token's text: what is stored.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TokenHash(pub [u8; 32]);

impl TokenHash {
    fn of(text: &str) -> Self {
        Self(Sha256::digest(text.as_bytes()).into())
    }

    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(..)")
    }
}

/// A token that has just been made. Its text is shown once and kept nowhere.
pub struct NewToken {
    pub id: Id,
    pub hash: TokenHash,
    pub text: Zeroizing<String>,
}

impl NewToken {
    pub fn generate() -> Result<Self, CryptoError> {
        let id = Id::random()?;
        let mut bytes = Zeroizing::new([0; ID_BYTES + SECRET_BYTES]);
        bytes[..ID_BYTES].copy_from_slice(&id.0);
        getrandom::fill(&mut bytes[ID_BYTES..]).map_err(|_| CryptoError::Rng)?;
        // Room for all of it: a buffer that grows leaves copies behind.
        let mut text = Zeroizing::new(String::with_capacity(LENGTH + 4));
        text.push_str(PREFIX);
        URL_SAFE_NO_PAD.encode_string(&bytes[..], &mut text);
        Ok(Self { id, hash: TokenHash::of(&text), text })
    }
}

/// How the tokens with this id start: for listings.
pub fn prefix_of(id: Id) -> String {
    let mut text = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(id.0));
    text.truncate(PREFIX.len() + ID_CHARS);
    text
}

/// A text that somebody showed and that has the form of a token.
#[derive(Debug)]
pub struct Presented {
    pub id: Id,
    hash: TokenHash,
}

impl Presented {
    /// None for what cannot be a token.
    pub fn parse(text: &str) -> Option<Self> {
        let encoded = text.strip_prefix(PREFIX).filter(|_| text.len() == LENGTH)?;
        let mut bytes = Zeroizing::new([0; ID_BYTES + SECRET_BYTES]);
        URL_SAFE_NO_PAD.decode_slice(encoded, &mut bytes[..]).ok()?;
        Some(Self { id: Id::from_slice(&bytes[..ID_BYTES])?, hash: TokenHash::of(text) })
    }

    /// Whether this is the token of that row, if there is a row, and it has not expired. Takes the same time for a
    /// wrong secret as for an id that nobody has.
    pub fn is(&self, stored: Option<(TokenHash, Option<Timestamp>)>, now: Timestamp) -> bool {
        let (hash, expires_at) = stored.unwrap_or((TokenHash([0; 32]), None));
        let same = constant_time_eq(&hash.0, &self.hash.0);
        same && stored.is_some() && is_valid(expires_at, now)
    }
}

/// Whether a token with this end is valid now. A time that equals `now` has come.
pub fn is_valid(expires_at: Option<Timestamp>, now: Timestamp) -> bool {
    expires_at.is_none_or(|end| end > now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_new_token_is_recognised_by_its_hash_alone() {
        let token = NewToken::generate().unwrap();
        assert_eq!(token.text.len(), LENGTH);
        assert!(token.text.starts_with(&prefix_of(token.id)), "{} {}", *token.text, prefix_of(token.id));
        let shown = Presented::parse(&token.text).unwrap();
        assert_eq!(shown.id, token.id);
        let now = Timestamp(100);
        assert!(shown.is(Some((token.hash, None)), now));
        assert!(shown.is(Some((token.hash, Some(Timestamp(101)))), now));
        assert!(!shown.is(Some((token.hash, Some(Timestamp(100)))), now), "expired this very moment");
        assert!(!shown.is(None, now));
        let other = NewToken::generate().unwrap();
        assert!(!shown.is(Some((other.hash, None)), now));
        assert_ne!(*other.text, *token.text);
        // The same id with another secret, as who has seen a listing could make up.
        let mut forged = token.text.to_string();
        let last = if forged.pop() == Some('A') { 'B' } else { 'A' };
        forged.push(last);
        let forged = Presented::parse(&forged).unwrap();
        assert!(forged.id == token.id && !forged.is(Some((token.hash, None)), now));
    }

    #[test]
    fn the_hash_is_sha256_of_the_text() {
        // printf %s hvt_AAAA…A (64 times A) | sha256sum
        let text = format!("{PREFIX}{}", "A".repeat(64));
        let hex: String =
            Presented::parse(&text).unwrap().hash.0.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, HASH_OF_ZEROS);
    }

    const HASH_OF_ZEROS: &str = "1994783d820ff8d15f3a5f16a9a97cf0656d6d0c8be9a8326ca42ae63a4fa3f9";

    #[test]
    fn nothing_secret_is_printed() {
        let token = NewToken::generate().unwrap();
        assert_eq!(format!("{:?}", token.hash), "TokenHash(..)");
        assert!(!format!("{:?}", Presented::parse(&token.text)).contains("hvt"));
    }

    proptest! {
        #[test]
        fn whatever_comes_in_is_parsed_or_refused(text in prop_oneof![
            any::<String>(), "hvt_[A-Za-z0-9_-]{60,68}", "hvt_[A-Za-z0-9+/=]{64}", "hvt_\\PC{0,64}", "HVT_[A-Za-z0-9_-]{64}",
        ]) {
            let form = text.len() == LENGTH && text.starts_with(PREFIX)
                && text[PREFIX.len()..].bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
            prop_assert_eq!(Presented::parse(&text).is_some(), form);
        }
    }
}
