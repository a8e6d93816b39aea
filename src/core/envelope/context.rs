//! [`DekContext`]: which vault, secret and version a wrapped DEK belongs to, for every kind of key service.
//!
//! A cloud service gets it as encryption context (name-value pairs that it authenticates and logs, so CloudTrail
//! shows which version was unwrapped); the `local` provider authenticates its bytes; the shared DEK cache mixes
//! it into its lookup digest. It names the version by the uuid of its row, not by number: a key is made before
//! any row lock is taken, when the number is not known yet.
//!
//! Runs in client backends and in the key-service worker. The trap it avoids: a cache looked up by wrapped bytes
//! alone, which would hand a DEK to a row those bytes were copied into, past the check the service makes.

use sha2::{Digest, Sha256};

use super::{Aad, CryptoError, Dek, Id, MasterKey, Purpose, open_into_with_aad, seal_with_aad};

const CACHE_LABEL: &[u8] = b"hyperion_vault/dek-cache/v1";

/// The place of a wrapped DEK.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DekContext {
    /// The vault.
    pub vault: Id,
    /// The secret.
    pub secret: Id,
    /// The row of the version.
    pub version: Id,
}

impl DekContext {
    /// Length of [`Self::to_bytes`].
    pub const LEN: usize = 48;

    /// The three ids one after the other, for a request slot.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        for (to, id) in bytes.chunks_exact_mut(16).zip([self.vault, self.secret, self.version]) {
            to.copy_from_slice(&id.0);
        }
        bytes
    }

    /// Reads what [`Self::to_bytes`] wrote; any other length is refused.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CryptoError> {
        let ids = || {
            let (vault, rest) = bytes.split_first_chunk()?;
            let (secret, rest) = rest.split_first_chunk()?;
            Some(Self { vault: Id(*vault), secret: Id(*secret), version: Id(rest.try_into().ok()?) })
        };
        ids().ok_or(CryptoError::Unauthenticated)
    }

    /// The encryption context of a cloud key service. Not secret: it appears in that service's log.
    pub fn pairs(&self) -> [(&'static str, String); 3] {
        [
            ("hyperion_vault:vault", self.vault.to_string()),
            ("hyperion_vault:secret", self.secret.to_string()),
            ("hyperion_vault:version", self.version.to_string()),
        ]
    }

    /// Where the DEK that these wrapped bytes hold *in this place* is found in the shared cache.
    pub fn cache_digest(&self, wrapped: &[u8]) -> [u8; 32] {
        Sha256::new()
            .chain_update(CACHE_LABEL)
            .chain_update((wrapped.len() as u64).to_le_bytes())
            .chain_update(wrapped)
            .chain_update(self.to_bytes())
            .finalize()
            .into()
    }

    fn aad(&self) -> Aad {
        Aad::encode(Purpose::SecretDek, &[&self.vault.0, &self.secret.0, &self.version.0])
    }
}

/// Wraps a DEK under the `local` provider's master key, for this place only.
pub fn wrap_dek(master: &MasterKey, context: &DekContext, dek: &Dek) -> Result<Vec<u8>, CryptoError> {
    seal_with_aad(master, &context.aad(), dek.as_bytes())
}

/// Unwraps what [`wrap_dek`] made with the same master key and place.
pub fn unwrap_dek(master: &MasterKey, context: &DekContext, wrapped: &[u8]) -> Result<Dek, CryptoError> {
    Dek::fill(|key| open_into_with_aad(master, &context.aad(), wrapped, key))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const PLACE: DekContext =
        DekContext { vault: Id([0x11; 16]), secret: Id([0x22; 16]), version: Id([0x33; 16]) };

    /// The same place with one of the three ids changed, or two of them swapped.
    fn other_places() -> [DekContext; 5] {
        let other = Id([0x44; 16]);
        [
            DekContext { vault: other, ..PLACE },
            DekContext { secret: other, ..PLACE },
            DekContext { version: other, ..PLACE },
            DekContext { vault: PLACE.secret, secret: PLACE.vault, ..PLACE },
            DekContext { secret: PLACE.version, version: PLACE.secret, ..PLACE },
        ]
    }

    #[test]
    fn bytes_go_both_ways() {
        let bytes = PLACE.to_bytes();
        assert_eq!(bytes, *[[0x11; 16], [0x22; 16], [0x33; 16]].concat());
        assert_eq!(DekContext::from_bytes(&bytes), Ok(PLACE));
        for len in (0..100).filter(|len| *len != DekContext::LEN) {
            assert_eq!(DekContext::from_bytes(&vec![0; len]), Err(CryptoError::Unauthenticated), "{len}");
        }
    }

    #[test]
    fn pairs_name_the_ids() {
        assert_eq!(
            PLACE.pairs(),
            [
                ("hyperion_vault:vault", "11111111-1111-1111-1111-111111111111".to_owned()),
                ("hyperion_vault:secret", "22222222-2222-2222-2222-222222222222".to_owned()),
                ("hyperion_vault:version", "33333333-3333-3333-3333-333333333333".to_owned()),
            ]
        );
    }

    #[test]
    fn cache_digest_depends_on_bytes_and_place() {
        let mut seen = HashSet::from([PLACE.cache_digest(b"wrapped")]);
        assert!(!seen.insert(PLACE.cache_digest(b"wrapped")));
        for place in other_places() {
            assert!(seen.insert(place.cache_digest(b"wrapped")), "{place:?}");
        }
        assert!(seen.insert(PLACE.cache_digest(b"")));
        assert!(seen.insert(PLACE.cache_digest(b"wrappee")));
        // The length before the bytes: a place's first bytes cannot pass for the wrapped key's last.
        assert!(seen.insert(PLACE.cache_digest(b"wrapped\x11")));
    }

    #[test]
    fn wrapped_dek_opens_only_in_its_place_and_under_its_key() {
        let (master, dek) = (MasterKey::generate().unwrap(), Dek::generate().unwrap());
        let wrapped = wrap_dek(&master, &PLACE, &dek).unwrap();
        assert_eq!(unwrap_dek(&master, &PLACE, &wrapped).unwrap().as_bytes(), dek.as_bytes());
        for place in other_places() {
            assert_eq!(unwrap_dek(&master, &place, &wrapped).unwrap_err(), CryptoError::Unauthenticated);
        }
        let other = MasterKey::generate().unwrap();
        assert_eq!(unwrap_dek(&other, &PLACE, &wrapped).unwrap_err(), CryptoError::Unauthenticated);
    }

    #[test]
    fn wrapped_bytes_that_do_not_hold_a_key_are_refused() {
        let master = MasterKey::generate().unwrap();
        for len in [0, 31, 33] {
            let wrapped = seal_with_aad(&master, &PLACE.aad(), &vec![7; len]).unwrap();
            assert_eq!(unwrap_dek(&master, &PLACE, &wrapped).unwrap_err(), CryptoError::Unauthenticated);
        }
        let zero = seal_with_aad(&master, &PLACE.aad(), &[0; 32]).unwrap();
        assert_eq!(unwrap_dek(&master, &PLACE, &zero).unwrap_err(), CryptoError::InvalidKey);
    }
}
