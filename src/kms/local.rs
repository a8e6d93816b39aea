//! The `local` provider: DEKs wrapped under a master key from a file on this machine. For development, and for
//! machines without a network; whoever can read the file can read the vault.
//!
//! ```text
//! offset  length  what
//!      0       1  format version, 1
//!      1       1  provider, 'L'
//!      2       8  fingerprint of the master key
//!     10      73  the DEK, sealed for its place (envelope::wrap_dek)
//! ```
//!
//! Runs on the main thread of the kms worker ([`ImmediateProvider`]) or, behind a fault of the tests, on its tokio threads,
//! and finishes without waiting: the key is read once, when the provider is opened; a reload opens another. The trap it avoids: the wrong key file after a restore, reported as
//! damaged data. The fingerprint tells the two apart. It needs no authentication of its own: changed, it names a
//! key that is not the loaded one, and the bytes are refused all the same.

use hyperion_vault_core::envelope::{
    self, CryptoError, Dek, DekContext, KEY_LEN, MasterKey, SEALED_OVERHEAD,
};

use crate::config::{KmsMode, LocalConfig};
use crate::error::{ErrorKind, KmsError};
use crate::keyfile;
use crate::provider::{
    BoxFuture, GeneratedDek, ImmediateProvider, KeyDescription, KeyProvider, StoredDek, WrappedBy, WrappedDek,
};

const FORMAT: u8 = 1;
const TAG: u8 = b'L';
const FINGERPRINT_LEN: usize = 8;
const SEALED_LEN: usize = KEY_LEN + SEALED_OVERHEAD;
const WRAPPED_LEN: usize = 2 + FINGERPRINT_LEN + SEALED_LEN;

/// A loaded master key.
#[derive(Debug)]
pub struct LocalProvider {
    /// Boxed, so that moving the provider leaves no copies of the key behind.
    master: Box<MasterKey>,
    fingerprint: [u8; FINGERPRINT_LEN],
    /// `local:` and the fingerprint, which each answer carries.
    key_id: String,
}

impl LocalProvider {
    /// Reads and checks the key file. Every failure is `Misconfigured` and says how to repair it.
    pub fn open(config: &LocalConfig) -> Result<Self, KmsError> {
        keyfile::read(config).map(Self::new)
    }

    fn new(master: Box<MasterKey>) -> Self {
        let fingerprint = master.fingerprint();
        let key_id = format!("local:{}", hex(&fingerprint));
        Self { master, fingerprint, key_id }
    }

    /// `local:` and the master key's fingerprint.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    fn generate(&self, context: &DekContext) -> Result<GeneratedDek, KmsError> {
        let dek = Box::new(Dek::generate().map_err(cannot_wrap)?);
        let (wrapped, by) = self.wrap(context, &dek)?;
        Ok(GeneratedDek { dek, wrapped, by })
    }

    fn wrap(&self, context: &DekContext, dek: &Dek) -> Result<(WrappedDek, WrappedBy), KmsError> {
        let sealed = envelope::wrap_dek(&self.master, context, dek).map_err(cannot_wrap)?;
        let mut wrapped = Vec::with_capacity(WRAPPED_LEN);
        wrapped.extend_from_slice(&[FORMAT, TAG]);
        wrapped.extend_from_slice(&self.fingerprint);
        wrapped.extend_from_slice(&sealed);
        // The fingerprint is the material: another file is another key id.
        let by = WrappedBy { key_id: self.key_id.clone(), key_material_id: None };
        Ok((WrappedDek(wrapped), by))
    }

    fn unwrap(&self, context: &DekContext, wrapped: &[u8]) -> Result<Box<Dek>, KmsError> {
        let (fingerprint, sealed) = split(wrapped).ok_or_else(|| {
            // No secret in this: lengths and tags are public. It is the one hint a changed kms_mode leaves.
            KmsError::unauthenticated()
                .with_detail("It does not have the format of the local provider.")
                .with_hint("If hyperion_vault.kms_mode was changed, set it back.")
        })?;
        if *fingerprint != self.fingerprint {
            return Err(KmsError::new(ErrorKind::Refused, "key is sealed under another master key")
                .with_detail(format!(
                    "It was wrapped by local:{}; the loaded master key file holds {}.",
                    hex(fingerprint),
                    self.key_id()
                ))
                .with_hint(format!(
                    "Restore the key file that holds local:{} and point \
                     hyperion_vault.local_master_key_file to it.",
                    hex(fingerprint)
                )));
        }
        envelope::unwrap_dek(&self.master, context, sealed)
            .map(Box::new)
            .map_err(|_| KmsError::unauthenticated())
    }

    fn description(&self) -> KeyDescription {
        KeyDescription { key_id: self.key_id.clone(), key_material_id: None, enabled: true }
    }
}

impl ImmediateProvider for LocalProvider {
    fn generate_now(&self, context: &DekContext) -> Result<GeneratedDek, KmsError> {
        self.generate(context)
    }

    fn unwrap_now(&self, context: &DekContext, stored: &StoredDek) -> Result<Box<Dek>, KmsError> {
        self.unwrap(context, stored.wrapped.as_bytes())
    }

    fn describe_now(&self) -> Result<KeyDescription, KmsError> {
        Ok(self.description())
    }
}

impl KeyProvider for LocalProvider {
    fn name(&self) -> &'static str {
        KmsMode::Local.as_str()
    }

    fn generate_dek<'a>(&'a self, context: &'a DekContext) -> BoxFuture<'a, Result<GeneratedDek, KmsError>> {
        Box::pin(async move { self.generate(context) })
    }

    fn unwrap_dek<'a>(
        &'a self,
        context: &'a DekContext,
        stored: &'a StoredDek,
    ) -> BoxFuture<'a, Result<Box<Dek>, KmsError>> {
        Box::pin(async move { self.unwrap(context, stored.wrapped.as_bytes()) })
    }

    fn wrap_dek<'a>(
        &'a self,
        context: &'a DekContext,
        dek: &'a Dek,
    ) -> BoxFuture<'a, Result<(WrappedDek, WrappedBy), KmsError>> {
        Box::pin(async move { self.wrap(context, dek) })
    }

    /// With one key there is nothing to wrap under another: this only makes sure that it opens.
    fn rewrap_dek<'a>(
        &'a self,
        context: &'a DekContext,
        stored: &'a StoredDek,
    ) -> BoxFuture<'a, Result<(WrappedDek, WrappedBy), KmsError>> {
        Box::pin(async move { self.wrap(context, &*self.unwrap(context, stored.wrapped.as_bytes())?) })
    }

    fn describe(&self) -> BoxFuture<'_, Result<KeyDescription, KmsError>> {
        Box::pin(async move { Ok(self.description()) })
    }

    fn immediate(&self) -> Option<&dyn ImmediateProvider> {
        Some(self)
    }
}

/// The only parser of wrapped bytes. Total: any input gives parts or nothing.
fn split(wrapped: &[u8]) -> Option<(&[u8; FINGERPRINT_LEN], &[u8; SEALED_LEN])> {
    let (header, rest) = wrapped.split_first_chunk()?;
    let (fingerprint, sealed) = rest.split_first_chunk()?;
    (*header == [FORMAT, TAG]).then_some((fingerprint, sealed.try_into().ok()?))
}

fn cannot_wrap(error: CryptoError) -> KmsError {
    KmsError::new(ErrorKind::Internal, "could not make a data key").with_detail(format!("Reason: {error}."))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use hyperion_vault_core::envelope::Id;

    use super::*;

    const PLACE: DekContext = DekContext { vault: Id([1; 16]), secret: Id([2; 16]), version: Id([3; 16]) };

    fn provider(fill: u8) -> LocalProvider {
        LocalProvider::new(Box::new(MasterKey::from_slice(&[fill; 32]).unwrap()))
    }

    #[test]
    fn wraps_and_unwraps() {
        let local = provider(7);
        let made = local.generate(&PLACE).unwrap();
        assert_eq!(made.wrapped.0.len(), WRAPPED_LEN);
        assert_eq!(made.wrapped.0[..2], [1, b'L']);
        assert_eq!(made.by.key_id, format!("local:{}", hex(&made.wrapped.0[2..10])));
        assert_eq!(made.by.key_id.len(), "local:".len() + 16);
        assert!(!made.wrapped.0.windows(32).any(|window| window == made.dek.as_bytes()));
        let opened = local.unwrap(&PLACE, &made.wrapped.0).unwrap();
        assert_eq!(opened.as_bytes(), made.dek.as_bytes());
        // Another process with the same file is the same provider.
        let opened = provider(7).unwrap(&PLACE, &made.wrapped.0).unwrap();
        assert_eq!(opened.as_bytes(), made.dek.as_bytes());
        assert_ne!(local.generate(&PLACE).unwrap().dek.as_bytes(), made.dek.as_bytes());
    }

    #[test]
    fn every_single_bit_flip_is_refused() {
        let local = provider(7);
        let wrapped = local.generate(&PLACE).unwrap().wrapped.0;
        for bit in 0..wrapped.len() * 8 {
            let mut bad = wrapped.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let kind = local.unwrap(&PLACE, &bad).unwrap_err().kind;
            // A changed fingerprint names another master key; all else is damage.
            let wanted =
                if (2..10).contains(&(bit / 8)) { ErrorKind::Refused } else { ErrorKind::Unauthenticated };
            assert_eq!(kind, wanted, "bit {bit}");
        }
    }

    #[test]
    fn other_lengths_are_refused() {
        let local = provider(7);
        let wrapped = local.generate(&PLACE).unwrap().wrapped.0;
        for len in 0..wrapped.len() {
            assert_eq!(
                local.unwrap(&PLACE, &wrapped[..len]).unwrap_err().kind,
                ErrorKind::Unauthenticated,
                "{len}"
            );
        }
        for extra in [1, 2, 73, 4096] {
            let longer = [wrapped.as_slice(), &vec![0; extra]].concat();
            assert_eq!(local.unwrap(&PLACE, &longer).unwrap_err().kind, ErrorKind::Unauthenticated);
        }
    }

    #[test]
    fn another_place_is_refused_flatly() {
        let local = provider(7);
        let wrapped = local.generate(&PLACE).unwrap().wrapped.0;
        let other = Id([9; 16]);
        for place in [
            DekContext { vault: other, ..PLACE },
            DekContext { secret: other, ..PLACE },
            DekContext { version: other, ..PLACE },
            DekContext { secret: PLACE.version, version: PLACE.secret, ..PLACE },
        ] {
            assert_eq!(local.unwrap(&place, &wrapped).unwrap_err(), KmsError::unauthenticated());
        }
    }

    #[test]
    fn another_master_key_is_named() {
        let (ours, theirs) = (provider(7), provider(8));
        let wrapped = theirs.generate(&PLACE).unwrap().wrapped.0;
        let error = ours.unwrap(&PLACE, &wrapped).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Refused);
        assert_eq!(error.message, "key is sealed under another master key");
        let detail = error.detail.unwrap();
        assert!(detail.contains(ours.key_id()) && detail.contains(theirs.key_id()), "{detail}");
        assert!(error.hint.unwrap().contains(theirs.key_id()));
        // With our fingerprint written over it, it still does not open.
        let mut forged = wrapped;
        forged[2..10].copy_from_slice(&ours.fingerprint);
        assert_eq!(ours.unwrap(&PLACE, &forged).unwrap_err(), KmsError::unauthenticated());
    }

    #[test]
    fn debug_shows_no_key() {
        let local = LocalProvider::new(Box::new(MasterKey::from_slice(&[0xab; 32]).unwrap()));
        let shown = format!("{local:?} {:?}", local.generate(&PLACE).unwrap());
        assert!(!shown.contains("171, 171"), "{shown}");
        assert!(shown.contains("MasterKey(..)") && shown.contains("Dek(..)"));
    }
}
