//! The types that carry keys and plaintext, and the comparison that tells nothing about them.
//!
//! Runs in every process that seals or opens. The trap they avoid: key bytes in a plain array, which a `{:?}`, a
//! panic message or a freed buffer passes on. They wipe themselves on drop, print only their kind, and cannot be
//! cloned, displayed or compared with `==`.

use std::fmt;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::CryptoError;

/// Length of every symmetric key, in bytes.
pub const KEY_LEN: usize = 32;

/// Keeps a fingerprint from being the hash of the key that some other program publishes.
const FINGERPRINT_LABEL: &[u8] = b"hyperion_vault/master-key-fingerprint/v1";

mod sealed {
    pub trait Sealed {}
}

/// A key the AEAD accepts: a [`Dek`] or a [`MasterKey`], so that no bare byte slice is taken for one.
pub trait AeadKey: sealed::Sealed {
    /// The raw key, for the cipher only.
    fn as_bytes(&self) -> &[u8; KEY_LEN];
}

/// The bytes of a key. Not `Zeroize` to the outside, or a wiped key could be used again.
#[derive(ZeroizeOnDrop)]
struct KeyBytes([u8; KEY_LEN]);

impl KeyBytes {
    fn from_slice(bytes: &[u8]) -> Result<Self, CryptoError> {
        let key = Self(bytes.try_into().map_err(|_| CryptoError::InvalidKey)?);
        key.refuse_zero()?;
        Ok(key)
    }

    fn generate() -> Result<Self, CryptoError> {
        Self::fill(|bytes| getrandom::fill(bytes).map_err(|_| CryptoError::Rng))
    }

    /// Lets `fill` write the key where it will live, so that no other buffer needs wiping.
    fn fill(fill: impl FnOnce(&mut [u8; KEY_LEN]) -> Result<(), CryptoError>) -> Result<Self, CryptoError> {
        let mut key = Self([0; KEY_LEN]);
        fill(&mut key.0)?;
        key.refuse_zero()?;
        Ok(key)
    }

    /// An all-zero key is a slot that was wiped before it was read, never a key: sealing under it would
    /// publish the value. Looks at every byte, so that the check itself says nothing about real keys.
    fn refuse_zero(&self) -> Result<(), CryptoError> {
        let any = self.0.iter().fold(0, |any, byte| any | byte);
        if any == 0 { Err(CryptoError::InvalidKey) } else { Ok(()) }
    }
}

/// A data encryption key: seals one version of one secret, once.
#[derive(ZeroizeOnDrop)]
pub struct Dek(KeyBytes);

impl Dek {
    /// Copies 32 bytes. The caller still owns, and has to wipe, his.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, CryptoError> {
        KeyBytes::from_slice(bytes).map(Self)
    }

    /// A fresh key from the OS random source.
    pub fn generate() -> Result<Self, CryptoError> {
        KeyBytes::generate().map(Self)
    }

    /// A key that `fill` writes in place (from an unwrap, or from shared memory), so that the caller has no
    /// copy to wipe. What `fill` wrote is wiped if it fails.
    pub fn fill(
        fill: impl FnOnce(&mut [u8; KEY_LEN]) -> Result<(), CryptoError>,
    ) -> Result<Self, CryptoError> {
        KeyBytes::fill(fill).map(Self)
    }

    /// The raw key, for the cipher and for the shared cache only.
    pub fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0.0
    }
}

/// The key-encryption key of the `local` provider. Lives in the key-service worker only.
#[derive(ZeroizeOnDrop)]
pub struct MasterKey(KeyBytes);

impl MasterKey {
    /// Copies 32 bytes. The caller still owns, and has to wipe, his.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, CryptoError> {
        KeyBytes::from_slice(bytes).map(Self)
    }

    /// A fresh key from the OS random source.
    pub fn generate() -> Result<Self, CryptoError> {
        KeyBytes::generate().map(Self)
    }

    /// A public name for this key: it tells two key files apart and may be stored and shown.
    ///
    /// It is 64 bits of SHA-256 over the key, so checking a guess against it costs a guess at a uniform 256-bit
    /// key, and 2^192 keys share each fingerprint. That argument needs a random key: one made from a
    /// passphrase could be guessed offline against it, which is why key files hold 32 random bytes.
    pub fn fingerprint(&self) -> [u8; 8] {
        let mut digest: [u8; 32] =
            Sha256::new().chain_update(FINGERPRINT_LABEL).chain_update(self.0.0).finalize().into();
        let mut name = [0; 8];
        name.copy_from_slice(&digest[..8]);
        // The other 192 bits are published nowhere; keep it so.
        digest.zeroize();
        name
    }
}

impl sealed::Sealed for Dek {}
impl sealed::Sealed for MasterKey {}

impl AeadKey for Dek {
    fn as_bytes(&self) -> &[u8; KEY_LEN] {
        self.as_bytes()
    }
}

impl AeadKey for MasterKey {
    fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0.0
    }
}

impl fmt::Debug for Dek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dek(..)")
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(..)")
    }
}

/// An opened value. Wiped on drop, whole capacity included; prints neither content nor length.
#[derive(ZeroizeOnDrop)]
pub struct Plaintext(Zeroizing<Vec<u8>>);

impl Plaintext {
    /// Takes the bytes over without copying. A `Vec` that grew by reallocation has left older copies behind:
    /// build it with its final capacity.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The value.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The value as text; what was sealed as text but is not UTF-8 was not sealed by us.
    pub fn as_str(&self) -> Result<&str, CryptoError> {
        std::str::from_utf8(&self.0).map_err(|_| CryptoError::Unauthenticated)
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the value has no bytes, which is a legal value.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Plaintext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Plaintext(..)")
    }
}

/// Whether `stored` and `candidate` are equal, in a time that depends on `candidate`'s length alone.
///
/// The candidate is always walked in full: against the stored value, or, if the lengths differ, against itself.
/// So neither the stored length nor the position of the first difference shows, and unlike hashing both sides
/// it leaves no blocks of the value in a hash state nobody wipes.
pub fn constant_time_eq(stored: &[u8], candidate: &[u8]) -> bool {
    let same_len = stored.len().ct_eq(&candidate.len());
    // Indexed, not branched on.
    let against = [candidate, stored][usize::from(same_len.unwrap_u8())];
    bool::from(against.ct_eq(candidate) & same_len)
}

#[cfg(test)]
mod tests {
    use std::marker::PhantomData;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_are_thirty_two_bytes_and_not_zero() {
        for len in (0..100).filter(|len| *len != KEY_LEN) {
            assert_eq!(Dek::from_slice(&vec![7; len]).unwrap_err(), CryptoError::InvalidKey, "{len}");
            assert_eq!(MasterKey::from_slice(&vec![7; len]).unwrap_err(), CryptoError::InvalidKey, "{len}");
        }
        assert_eq!(Dek::from_slice(&[0; KEY_LEN]).unwrap_err(), CryptoError::InvalidKey);
        assert_eq!(MasterKey::from_slice(&[0; KEY_LEN]).unwrap_err(), CryptoError::InvalidKey);
        assert_eq!(Dek::fill(|_| Ok(())).unwrap_err(), CryptoError::InvalidKey);
        assert_eq!(Dek::fill(|_| Err(CryptoError::Rng)).unwrap_err(), CryptoError::Rng);
        for at in 0..KEY_LEN {
            let mut bytes = [0; KEY_LEN];
            bytes[at] = 1;
            assert_eq!(Dek::from_slice(&bytes).unwrap().as_bytes(), &bytes);
            assert_eq!(AeadKey::as_bytes(&MasterKey::from_slice(&bytes).unwrap()), &bytes);
        }
    }

    #[test]
    fn generated_keys_differ() {
        assert_ne!(Dek::generate().unwrap().as_bytes(), Dek::generate().unwrap().as_bytes());
        let (a, b) = (MasterKey::generate().unwrap(), MasterKey::generate().unwrap());
        assert_ne!(a.0.0, b.0.0);
        assert_ne!(a.fingerprint(), b.fingerprint());
        assert_eq!(a.fingerprint(), MasterKey::from_slice(&a.0.0).unwrap().fingerprint());
    }

    #[test]
    fn debug_prints_the_kind_alone() {
        // Test constants. Equal bytes, so that any leak in any radix would repeat one number.
        let dek = Dek::from_slice(&[0x5a; KEY_LEN]).unwrap();
        let master = MasterKey::from_slice(&[0x5a; KEY_LEN]).unwrap();
        let value = Plaintext::new(b"hunter2".to_vec());
        assert_eq!(format!("{dek:?} {dek:#?} {dek:02x?}"), "Dek(..) Dek(..) Dek(..)");
        assert_eq!(format!("{master:?} {master:#?}"), "MasterKey(..) MasterKey(..)");
        assert_eq!(format!("{value:?} {value:#?}"), "Plaintext(..) Plaintext(..)");
        // What an unwrap of a Result would put into a panic message.
        assert_eq!(format!("{:?}", Err::<(), _>((dek, master, value))).matches("(..)").count(), 3);
    }

    /// Whether `T` has a trait, answered at compile time: the inherent constant exists only under its bound and
    /// then hides the trait's.
    struct Has<T>(PhantomData<T>);
    trait Not {
        const CLONE: bool = false;
        const DISPLAY: bool = false;
        const EQ: bool = false;
        const WIPED: bool = false;
    }
    impl<T> Not for Has<T> {}
    impl<T: Clone> Has<T> {
        const CLONE: bool = true;
    }
    impl<T: fmt::Display> Has<T> {
        const DISPLAY: bool = true;
    }
    impl<T: PartialEq> Has<T> {
        const EQ: bool = true;
    }
    impl<T: ZeroizeOnDrop> Has<T> {
        const WIPED: bool = true;
    }

    macro_rules! traits {
        ($t:ty) => {
            [Has::<$t>::CLONE, Has::<$t>::DISPLAY, Has::<$t>::EQ, Has::<$t>::WIPED]
        };
    }

    /// Safe code cannot look at memory after a drop; it can ask whether there is a drop, and that it wipes.
    #[test]
    fn secret_types_are_wiped_and_nothing_more() {
        assert_eq!(traits!(String), [true, true, true, false], "the control");
        assert_eq!(traits!(Dek), [false, false, false, true]);
        assert_eq!(traits!(MasterKey), [false, false, false, true]);
        assert_eq!(traits!(Plaintext), [false, false, false, true]);
        assert!(std::mem::needs_drop::<KeyBytes>());
        assert!(std::mem::needs_drop::<Dek>());
        assert!(std::mem::needs_drop::<MasterKey>());
    }

    #[test]
    fn plaintext_gives_text_only_if_it_is() {
        assert_eq!(Plaintext::new("gr\u{fc}n".into()).as_str(), Ok("gr\u{fc}n"));
        assert_eq!(Plaintext::new(vec![b'a', 0xff]).as_str(), Err(CryptoError::Unauthenticated));
        let empty = Plaintext::new(Vec::new());
        assert!(empty.is_empty());
        assert_eq!((empty.len(), empty.as_bytes(), empty.as_str()), (0, &[][..], Ok("")));
    }

    proptest! {
        #[test]
        fn constant_time_eq_is_eq(
            a in prop::collection::vec(any::<u8>(), 0..80),
            b in prop::collection::vec(any::<u8>(), 0..80),
            at in 0..80usize,
            bit in 0..8u32,
        ) {
            prop_assert_eq!(constant_time_eq(&a, &b), a == b);
            prop_assert!(constant_time_eq(&a, &a.clone()));
            let longer = [&a[..], &[0]].concat();
            prop_assert!(!constant_time_eq(&a, &longer));
            prop_assert!(!constant_time_eq(&longer, &a));
            let mut flipped = longer.clone();
            flipped[at % longer.len()] ^= 1 << bit;
            prop_assert!(!constant_time_eq(&longer, &flipped));
        }
    }

    #[test]
    fn constant_time_eq_knows_nothing_from_something() {
        assert!(constant_time_eq(b"", b""));
        assert!(!constant_time_eq(b"", b"a"));
        assert!(!constant_time_eq(b"a", b""));
    }
}
