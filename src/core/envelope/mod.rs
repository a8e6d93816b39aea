//! Envelope encryption: how a value, and the key that seals it, become bytes that open in one place only.
//!
//! Each secret version has its own 256-bit data encryption key ([`Dek`]). The value is sealed under it with
//! XChaCha20-Poly1305 and an AAD that names the place it belongs to ([`SecretAad`]); the DEK itself is wrapped
//! by a key service under a [`DekContext`]. Callers bring keys and places; nothing here knows about SQL, shared
//! memory or the network.
//!
//! Runs in client backends (seal, open), in the key-service worker (the `local` provider's wrap and unwrap) and
//! in the maintenance worker; no state, so any thread. The trap it avoids: a ciphertext that still opens after
//! somebody who can write the tables has moved it to another row, and an error that tells him why it did not.
//!
//! What it cannot promise: the cipher keeps its derived sub-keys on the stack while it works and the compiler
//! may leave copies of moved keys there. Types wipe what they own; stacks are guarded by excluding core dumps.

mod aad;
mod aead;
mod context;
mod format;
mod ids;
mod keys;
mod userpass;

use std::fmt;

pub use aad::{Aad, Purpose, SecretAad};
pub use aead::{open_into_with_aad, open_with_aad, seal_with_aad};
pub use context::{DekContext, unwrap_dek, wrap_dek};
pub use format::{Format, SEALED_OVERHEAD, plaintext_len};
pub use ids::Id;
pub use keys::{AeadKey, Dek, KEY_LEN, MasterKey, Plaintext, constant_time_eq};
pub use userpass::{decode_userpass, encode_userpass};

/// Why a value could not be sealed or opened.
///
/// Deliberately flat: whether the version byte, the length, the tag, the key or the place was wrong is the one
/// thing an attacker with write access to the tables would like to learn, so all of it is
/// [`CryptoError::Unauthenticated`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CryptoError {
    /// The bytes are not what was sealed here under this key. SQLSTATE XX001.
    Unauthenticated,
    /// Key material is not 32 bytes, or is all zero (a wiped buffer that was about to be used as a key).
    InvalidKey,
    /// The value is beyond what the cipher can seal under one nonce (256 GiB).
    TooLarge,
    /// The operating system gave no random bytes. Nothing was sealed.
    Rng,
}

impl fmt::Display for CryptoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unauthenticated => "cannot be authenticated",
            Self::InvalidKey => "key material cannot be used",
            Self::TooLarge => "value is too large to seal",
            Self::Rng => "the operating system provides no random bytes",
        })
    }
}

impl std::error::Error for CryptoError {}

/// Seals a secret's value for the place `aad` under `dek`, with a fresh random nonce.
///
/// Returns `plaintext.len() + SEALED_OVERHEAD` bytes, laid out as in [`plaintext_len`].
pub fn seal(dek: &Dek, aad: &SecretAad<'_>, plaintext: &[u8]) -> Result<Vec<u8>, CryptoError> {
    aead::seal_with_aad(dek, &aad.encode(), plaintext)
}

/// Opens what [`seal`] made, if key and place are the same and no bit has changed.
pub fn open(dek: &Dek, aad: &SecretAad<'_>, sealed: &[u8]) -> Result<Plaintext, CryptoError> {
    aead::open_with_aad(dek, &aad.encode(), sealed)
}

/// As [`open`], straight into the caller's buffer (such as the result datum), of exactly
/// [`plaintext_len`] bytes; any other length is refused. After an error `out` holds only zeros.
pub fn open_into(dek: &Dek, aad: &SecretAad<'_>, sealed: &[u8], out: &mut [u8]) -> Result<(), CryptoError> {
    aead::open_into_with_aad(dek, &aad.encode(), sealed, out)
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod vectors;
