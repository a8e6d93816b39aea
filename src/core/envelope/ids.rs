//! [`Id`]: the uuid that names a vault, a secret or a version in everything that is authenticated.
//!
//! Runs anywhere; pure apart from the OS random source. The trap it avoids: binding ciphertext to a number from
//! a sequence, which a restored dump or a second vault would hand out again.

use std::fmt;

use super::CryptoError;

/// A uuid, as its 16 bytes in network order (what `uuid_send` gives).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub [u8; 16]);

impl Id {
    /// A version 4 uuid (RFC 9562 §5.4) from the OS random source.
    pub fn random() -> Result<Self, CryptoError> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(|_| CryptoError::Rng)?;
        Ok(Self::version_4(bytes))
    }

    /// So many of them, with one question to the random source.
    pub fn several(count: usize) -> Result<Vec<Self>, CryptoError> {
        let mut bytes = vec![0; 16 * count];
        getrandom::fill(&mut bytes).map_err(|_| CryptoError::Rng)?;
        Ok(bytes.chunks_exact(16).filter_map(|chunk| chunk.try_into().ok()).map(Self::version_4).collect())
    }

    fn version_4(mut bytes: [u8; 16]) -> Self {
        bytes[6] = (bytes[6] & 0x0f) | 0x40;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        Self(bytes)
    }

    /// The id in exactly 16 bytes, else `None`.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The id that [`Display`](fmt::Display) wrote: 32 hexadecimal digits with hyphens after 8, 12, 16 and 20.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 16];
        let mut digits = text.bytes();
        for (i, byte) in bytes.iter_mut().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) && digits.next()? != b'-' {
                return None;
            }
            let mut digit = || char::from(digits.next()?).to_digit(16);
            *byte = (digit()? << 4 | digit()?) as u8;
        }
        digits.next().is_none().then_some(Self(bytes))
    }
}

/// Hyphenated lower case, as PostgreSQL prints a uuid.
impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn display_is_hyphenated_lower_case() {
        let id = Id(*b"\x01\x23\x45\x67\x89\xab\xcd\xef\x01\x23\x45\x67\x89\xab\xcd\xef");
        assert_eq!(id.to_string(), "01234567-89ab-cdef-0123-456789abcdef");
        assert_eq!(format!("{id:?}"), id.to_string());
        assert_eq!(Id::parse("01234567-89AB-cdef-0123-456789abcdef"), Some(id));
        let text = id.to_string();
        for (at, _) in text.char_indices() {
            assert_eq!(Id::parse(&text[..at]), None, "{at}");
            assert_eq!(Id::parse(&format!("{}x{}", &text[..at], &text[at + 1..])), None, "{at}");
        }
        for other in [format!("{text}0"), text.replace('-', ""), format!("{{{text}}}"), "é".repeat(18)] {
            assert_eq!(Id::parse(&other), None, "{other}");
        }
    }

    #[test]
    fn random_ids_are_version_4_and_distinct() {
        let ids: HashSet<Id> = (0..1000).map(|_| Id::random().unwrap()).collect();
        assert_eq!(ids.len(), 1000);
        for id in ids {
            let text = id.to_string();
            assert_eq!(text.as_bytes()[14], b'4', "{text}");
            assert!(b"89ab".contains(&text.as_bytes()[19]), "{text}");
        }
    }

    #[test]
    fn from_slice_takes_sixteen_bytes_only() {
        assert_eq!(Id::from_slice(&[7; 16]), Some(Id([7; 16])));
        assert_eq!(Id::from_slice(&[7; 15]), None);
        assert_eq!(Id::from_slice(&[7; 17]), None);
        assert_eq!(Id::from_slice(&[]), None);
    }
}
