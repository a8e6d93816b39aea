//! The plaintext of a `userpass` secret: user name and password in one sealed value.
//!
//! ```text
//! offset  length  what
//!      0       1  payload version, 1
//!      1       8  LE64 length of the user name
//!      9       n  user name, UTF-8
//!    9+n    rest  password, UTF-8
//! ```
//!
//! Sealed together so that a row cannot pair one version's name with another's password. Runs in client
//! backends. The trap it avoids: a separator that a password may contain.

use super::{CryptoError, Plaintext};

const PAYLOAD_V1: u8 = 1;

/// The payload for [`super::seal`] with [`super::Format::Userpass`]. Either part may be empty.
pub fn encode_userpass(username: &str, password: &str) -> Plaintext {
    // Exact capacity: growing would free a copy of the password unwiped.
    let mut payload = Vec::with_capacity(1 + 8 + username.len() + password.len());
    payload.push(PAYLOAD_V1);
    payload.extend_from_slice(&(username.len() as u64).to_le_bytes());
    payload.extend_from_slice(username.as_bytes());
    payload.extend_from_slice(password.as_bytes());
    Plaintext::new(payload)
}

/// User name and password of an opened payload. What opened but does not parse was not sealed as `userpass`
/// by this code, and gets the same flat error.
pub fn decode_userpass(payload: &[u8]) -> Result<(&str, &str), CryptoError> {
    let parts = || {
        let (version, rest) = payload.split_first()?;
        let (len, rest) = rest.split_first_chunk()?;
        let len = usize::try_from(u64::from_le_bytes(*len)).ok()?;
        let (username, password) = rest.split_at_checked(len)?;
        let parts = (std::str::from_utf8(username).ok()?, std::str::from_utf8(password).ok()?);
        (*version == PAYLOAD_V1).then_some(parts)
    };
    parts().ok_or(CryptoError::Unauthenticated)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn layout_is_fixed() {
        assert_eq!(encode_userpass("ab", "c").as_bytes(), b"\x01\x02\0\0\0\0\0\0\0abc");
    }

    #[test]
    fn damaged_payloads_are_refused() {
        let refused: [&[u8]; 9] = [
            b"",
            b"\x01",
            b"\x01\0\0\0\0\0\0\0",
            b"\x00\x01\0\0\0\0\0\0\0abc",
            b"\x02\x01\0\0\0\0\0\0\0abc",
            b"\x01\x04\0\0\0\0\0\0\0abc",
            b"\x01\xff\xff\xff\xff\xff\xff\xff\xffabc",
            b"\x01\x01\0\0\0\0\0\0\0\xffbc",
            // Each part has to be text by itself: a two-byte character may not lie across the border.
            b"\x01\x01\0\0\0\0\0\0\0\xc3\xa4",
        ];
        for payload in refused {
            assert_eq!(decode_userpass(payload), Err(CryptoError::Unauthenticated), "{payload:?}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(username in ".*", password in ".*") {
            let payload = encode_userpass(&username, &password);
            prop_assert_eq!(decode_userpass(payload.as_bytes()), Ok((&*username, &*password)));
        }

        #[test]
        fn any_bytes_are_parsed_without_panic(
            head in prop::sample::select(vec![0u8, 1, 2]),
            len in prop_oneof![0..40u64, any::<u64>()],
            rest in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let payload = [&[head][..], &len.to_le_bytes(), &rest].concat();
            if let Ok((username, password)) = decode_userpass(&payload) {
                let again = encode_userpass(username, password);
                prop_assert_eq!(again.as_bytes(), &payload[..]);
            }
            let _ = decode_userpass(&rest);
        }
    }
}
