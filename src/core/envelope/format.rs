//! The layout of sealed bytes, the only parser of them, and the formats a value can have.
//!
//! ```text
//! offset  length  what
//!      0       1  format version, 1
//!      1      24  nonce, random
//!     25       n  ciphertext, as long as the plaintext
//!   25+n      16  Poly1305 tag
//! ```
//!
//! Runs wherever sealed bytes are read. The trap it avoids: arithmetic on a stored length. The parser is total:
//! any input, however damaged, gives parts or an error, never a panic.

use super::CryptoError;

/// The only layout so far. Also part of the AAD, so that a later layout cannot be passed off as this one.
pub(super) const SEALED_V1: u8 = 1;
pub(super) const NONCE_LEN: usize = 24;
pub(super) const TAG_LEN: usize = 16;

/// Bytes a sealed value is longer than its plaintext.
pub const SEALED_OVERHEAD: usize = 1 + NONCE_LEN + TAG_LEN;

/// The parts of a sealed value, borrowed from it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parts<'a> {
    pub(super) nonce: &'a [u8; NONCE_LEN],
    pub(super) ciphertext: &'a [u8],
    pub(super) tag: &'a [u8; TAG_LEN],
}

/// Splits sealed bytes. Says nothing about their authenticity.
pub(super) fn split(sealed: &[u8]) -> Result<Parts<'_>, CryptoError> {
    let parts = || {
        let (version, rest) = sealed.split_first()?;
        let (nonce, rest) = rest.split_first_chunk()?;
        let (ciphertext, tag) = rest.split_last_chunk()?;
        (*version == SEALED_V1).then_some(Parts { nonce, ciphertext, tag })
    };
    parts().ok_or(CryptoError::Unauthenticated)
}

/// How long the plaintext of these sealed bytes is, to size the buffer of [`super::open_into`].
/// The answer is as trustworthy as the bytes: nothing has been authenticated yet.
pub fn plaintext_len(sealed: &[u8]) -> Result<usize, CryptoError> {
    Ok(split(sealed)?.ciphertext.len())
}

/// What a secret's plaintext is. The number is authenticated with the value and never changes its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Format {
    /// UTF-8 text.
    Opaque = 1,
    /// Any bytes.
    Binary = 2,
    /// A user name and a password sealed together, see [`super::encode_userpass`].
    Userpass = 3,
}

impl Format {
    /// Every format, for exhaustive tests and for the check that SQL's enum says the same.
    pub const ALL: [Self; 3] = [Self::Opaque, Self::Binary, Self::Userpass];

    /// The label of `vault.secret_format`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Opaque => "opaque",
            Self::Binary => "binary",
            Self::Userpass => "userpass",
        }
    }

    /// The format with this label; exact, lower case.
    pub fn parse(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.as_str() == label)
    }

    /// The number that is stored and authenticated.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The format with this number.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.code() == code)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn labels_and_codes_go_both_ways_and_nothing_else_does() {
        for format in Format::ALL {
            assert_eq!(Format::parse(format.as_str()), Some(format));
            assert_eq!(Format::from_code(format.code()), Some(format));
        }
        for other in ["", "Opaque", "opaque ", "text", "user_pass"] {
            assert_eq!(Format::parse(other), None, "{other}");
        }
        // Stored for ever: a renumbering would make every sealed value unreadable.
        assert_eq!(Format::ALL.map(Format::code), [1, 2, 3]);
        assert_eq!((0..=u8::MAX).filter_map(Format::from_code).count(), 3);
    }

    #[test]
    fn every_length_below_the_overhead_is_refused() {
        for len in 0..SEALED_OVERHEAD {
            assert_eq!(plaintext_len(&vec![SEALED_V1; len]), Err(CryptoError::Unauthenticated), "{len}");
        }
        assert_eq!(plaintext_len(&[SEALED_V1; SEALED_OVERHEAD]), Ok(0));
        assert_eq!(plaintext_len(&[SEALED_V1; SEALED_OVERHEAD + 9]), Ok(9));
    }

    #[test]
    fn every_other_version_byte_is_refused() {
        let mut sealed = [0; SEALED_OVERHEAD + 4];
        for version in (0..=u8::MAX).filter(|v| *v != SEALED_V1) {
            sealed[0] = version;
            assert_eq!(plaintext_len(&sealed), Err(CryptoError::Unauthenticated), "{version}");
        }
    }

    proptest! {
        #[test]
        fn parts_put_together_are_the_input(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let sealed = [&[SEALED_V1][..], &body].concat();
            match split(&sealed) {
                Ok(p) => prop_assert_eq!([&[SEALED_V1], &p.nonce[..], p.ciphertext, p.tag].concat(), sealed),
                Err(_) => prop_assert!(sealed.len() < SEALED_OVERHEAD),
            }
        }
    }
}
