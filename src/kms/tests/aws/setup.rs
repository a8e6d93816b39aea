//! What the tests in this process stand on: an environment of our own, and a provider with blocking calls.
//!
//! The trap: the environment belongs to the whole process and may be changed only while nobody reads it. [`environment`]
//! runs once, before the first provider; whatever needs another environment is a child process.

use std::future::Future;
use std::path::PathBuf;
use std::sync::OnceLock;

use hyperion_vault_core::envelope::{Dek, DekContext, Id};
use hyperion_vault_kms::{
    AwsConfig, AwsProvider, ErrorKind, GeneratedDek, KeyDescription, KeyProvider, KmsError, StoredDek,
    WrappedBy, WrappedDek,
};
use hyperion_vault_tests::PATIENCE;
use hyperion_vault_tests::kms::{Credentials, FakeKms, Op};
use tokio::runtime::{Builder, Runtime};

use crate::tls::Authority;

/// The operations a provider uses.
pub const OPS: [Op; 5] = [Op::GenerateDataKey, Op::Decrypt, Op::Encrypt, Op::ReEncrypt, Op::DescribeKey];

/// Replaces the AWS part of this process's environment: the fake's credentials, and nothing else to be found.
pub fn environment() {
    static TRUSTED: OnceLock<PathBuf> = OnceLock::new();
    TRUSTED.get_or_init(|| {
        let Credentials { access_key_id, secret_access_key, .. } = Credentials::example();
        let inherited: Vec<_> = std::env::vars_os().map(|(name, _)| name).collect();
        let trusted = trusted_by_default();
        // SAFETY: every test comes through here before it opens a provider or resolves a name, so the other threads of
        // this process are in here too, or libtest's main thread, which uses std's own, synchronised functions.
        unsafe {
            for name in inherited.iter().filter(|name| name.to_string_lossy().starts_with("AWS_")) {
                std::env::remove_var(name);
            }
            std::env::set_var("AWS_ACCESS_KEY_ID", access_key_id);
            std::env::set_var("AWS_SECRET_ACCESS_KEY", secret_access_key);
            std::env::set_var("AWS_CONFIG_FILE", "/dev/null");
            std::env::set_var("AWS_SHARED_CREDENTIALS_FILE", "/dev/null");
            std::env::set_var("AWS_EC2_METADATA_DISABLED", "true");
            // The SDK's debug build wants a trusted certificate, and a bare container has none.
            std::env::set_var("SSL_CERT_FILE", &trusted);
        }
        trusted
    });
}

/// A file with the certificate of an authority that signs nothing.
pub fn trusted_by_default() -> PathBuf {
    static FILE: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    FILE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.pem");
        std::fs::write(&file, Authority::new().pem()).unwrap();
        (dir, file)
    })
    .1
    .clone()
}

/// A provider, asked from a test's own thread.
pub struct Asker {
    runtime: Runtime,
    pub provider: AwsProvider,
}

impl Asker {
    pub fn open(config: &AwsConfig) -> Self {
        environment();
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        Self { runtime, provider: AwsProvider::open(config).unwrap() }
    }

    /// For a key of the fake, named as one likes.
    pub fn of(kms: &FakeKms, key_id: &str) -> Self {
        Self::open(&config(&kms.endpoint(), key_id))
    }

    /// Runs a future that must end.
    pub fn wait<F: Future>(&self, future: F) -> F::Output {
        let bounded = async { tokio::time::timeout(PATIENCE, future).await };
        self.runtime.block_on(bounded).expect("a call of the provider hangs")
    }

    pub fn generate(&self, place: &DekContext) -> Result<GeneratedDek, KmsError> {
        self.wait(self.provider.generate_dek(place))
    }

    pub fn unwrap(&self, place: &DekContext, stored: &StoredDek) -> Result<Box<Dek>, KmsError> {
        self.wait(self.provider.unwrap_dek(place, stored))
    }

    pub fn wrap(&self, place: &DekContext, dek: &Dek) -> Result<(WrappedDek, WrappedBy), KmsError> {
        self.wait(self.provider.wrap_dek(place, dek))
    }

    pub fn rewrap(
        &self,
        place: &DekContext,
        stored: &StoredDek,
    ) -> Result<(WrappedDek, WrappedBy), KmsError> {
        self.wait(self.provider.rewrap_dek(place, stored))
    }

    pub fn describe(&self) -> Result<KeyDescription, KmsError> {
        self.wait(self.provider.describe())
    }

    /// Makes a call of this operation, whatever it answers.
    pub fn ask(&self, op: Op, stored: &StoredDek) -> Result<(), KmsError> {
        self.wait(self.future(op, stored))
    }

    /// The call that [`Self::ask`] makes.
    pub async fn future(&self, op: Op, stored: &StoredDek) -> Result<(), KmsError> {
        let place = place(1);
        match op {
            Op::GenerateDataKey => self.provider.generate_dek(&place).await.map(drop),
            Op::Decrypt => self.provider.unwrap_dek(&place, stored).await.map(drop),
            Op::Encrypt => self.provider.wrap_dek(&place, &dek(7)).await.map(drop),
            Op::ReEncrypt => self.provider.rewrap_dek(&place, stored).await.map(drop),
            Op::DescribeKey => self.provider.describe().await.map(drop),
            other => panic!("no provider calls {}", other.name()),
        }
    }

    /// A wrapped key of [`place`]`(1)`, for [`Self::ask`].
    pub fn seed(&self) -> StoredDek {
        stored(&self.generate(&place(1)).unwrap())
    }
}

/// The settings that matter most.
pub fn config(endpoint: &str, key_id: &str) -> AwsConfig {
    AwsConfig { key_id: key_id.into(), endpoint_url: Some(endpoint.into()), ..AwsConfig::default() }
}

/// A fake and a provider for its key.
pub fn fake() -> (FakeKms, Asker) {
    let kms = FakeKms::start();
    let asker = Asker::of(&kms, &kms.key_arn());
    (kms, asker)
}

pub fn place(version: u8) -> DekContext {
    DekContext { vault: Id([1; 16]), secret: Id([2; 16]), version: Id([version; 16]) }
}

pub fn dek(byte: u8) -> Dek {
    Dek::from_slice(&[byte; 32]).unwrap()
}

/// As a row keeps it.
pub fn stored(generated: &GeneratedDek) -> StoredDek {
    StoredDek { wrapped: generated.wrapped.clone(), key_id: generated.by.key_id.clone() }
}

/// As a row keeps it.
pub fn stored_as((wrapped, by): &(WrappedDek, WrappedBy)) -> StoredDek {
    StoredDek { wrapped: wrapped.clone(), key_id: by.key_id.clone() }
}

/// The error of a call, which must be of this kind and fit to be shown: in the server's style, with the fix.
#[track_caller]
pub fn expect<T>(result: Result<T, KmsError>, kind: ErrorKind, what: &str) -> KmsError {
    let Err(error) = result else { panic!("{what}: it went well, {kind:?} was due") };
    assert_eq!(error.kind, kind, "{what}: {error:?}");
    assert!(!error.message.ends_with('.') && !error.message.is_empty(), "{what}: {error:?}");
    if kind == ErrorKind::Unauthenticated {
        // It says nothing about why.
        assert_eq!((&error.detail, &error.hint), (&None, &None), "{what}");
    } else {
        let sentence = |text: &Option<String>| text.as_deref().is_some_and(|text| text.ends_with('.'));
        assert!(sentence(&error.hint), "{what}: {error:?}");
        assert!(error.detail.is_none() || sentence(&error.detail), "{what}: {error:?}");
    }
    error
}
