//! Which key service to use and within what limits: the settings of the kms worker as plain values.
//!
//! Made by the worker's main thread from GUCs, at start and after each SIGHUP. The trap it avoids: settings read
//! where they are used, so that a reload changes half of a request. A configuration is one value, swapped whole.
//!
//! The seat of the `aws` provider: a variant `Aws(AwsConfig)` of [`ProviderConfig`], which replaces
//! [`ProviderConfig::Aws`], and one arm in [`ProviderConfig::open`].

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::error::KmsError;
use crate::local::LocalProvider;
use crate::provider::KeyProvider;

/// The values of `hyperion_vault.kms_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KmsMode {
    /// AWS KMS.
    Aws,
    /// A key file on this machine.
    Local,
}

impl KmsMode {
    /// The name in the settings, and [`KeyProvider::name`].
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Aws => "aws",
            Self::Local => "local",
        }
    }
}

impl FromStr for KmsMode {
    type Err = KmsError;

    fn from_str(name: &str) -> Result<Self, KmsError> {
        [Self::Aws, Self::Local].into_iter().find(|mode| mode.as_str() == name).ok_or_else(|| {
            KmsError::misconfigured(format!("unrecognized kms_mode \"{name}\""))
                .with_hint("Set hyperion_vault.kms_mode to aws or local.")
        })
    }
}

/// The `local` provider's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalConfig {
    /// `hyperion_vault.local_master_key_file`.
    pub key_file: PathBuf,
    /// The cluster's data directory, in which the key file must not lie: a base backup would carry the key
    /// together with what it protects.
    pub data_directory: PathBuf,
}

/// A key service and all it needs to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProviderConfig {
    /// AWS KMS; not built into this version.
    Aws,
    /// A key file on this machine.
    Local(LocalConfig),
}

impl ProviderConfig {
    /// Its mode.
    pub fn mode(&self) -> KmsMode {
        match self {
            Self::Aws => KmsMode::Aws,
            Self::Local(_) => KmsMode::Local,
        }
    }

    /// Opens the provider. Reads local files, so it takes milliseconds; talks to no network.
    pub fn open(&self) -> Result<Arc<dyn KeyProvider>, KmsError> {
        match self {
            Self::Aws => Err(KmsError::misconfigured("kms_mode aws is not built into this version")
                .with_hint("Set hyperion_vault.kms_mode to local and hyperion_vault.local_master_key_file.")),
            Self::Local(config) => Ok(Arc::new(LocalProvider::open(config)?)),
        }
    }
}

/// What the service may use up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Provider calls at one time (`kms_max_in_flight`, 64); at least 1 is taken.
    pub max_in_flight: usize,
    /// Jobs held at one time, waiting ones included. The number of request slots: more cannot come.
    pub max_jobs: usize,
    /// Further attempts after a retryable failure (`kms_max_retries`, 5).
    pub max_retries: u32,
    /// How long one attempt may take. A job's own deadline bounds all attempts together, so this has to be
    /// shorter if a call that hangs is to be tried again: a third of `kms_timeout_ms` leaves room for two more.
    pub attempt_timeout: Duration,
}

/// Everything the service is told.
#[derive(Clone, Debug)]
pub struct ServiceConfig {
    /// Whom to ask.
    pub provider: ProviderConfig,
    /// Within what limits.
    pub limits: Limits,
    /// What to spoil, in tests.
    #[cfg(any(test, feature = "testing"))]
    pub faults: Option<crate::testing::Faults>,
}

impl ServiceConfig {
    pub(crate) fn open(&self) -> Result<Arc<dyn KeyProvider>, KmsError> {
        let provider = self.provider.open()?;
        #[cfg(any(test, feature = "testing"))]
        if let Some(faults) = self.faults {
            return Ok(Arc::new(crate::testing::FaultyProvider::new(provider, faults)));
        }
        Ok(provider)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn modes_are_named_as_in_the_settings() {
        assert_eq!("aws".parse::<KmsMode>(), Ok(KmsMode::Aws));
        assert_eq!("local".parse::<KmsMode>(), Ok(KmsMode::Local));
        for bad in ["", "Local", "local ", "vault"] {
            let error = bad.parse::<KmsMode>().unwrap_err();
            assert_eq!(error.kind, ErrorKind::Misconfigured);
            assert!(error.hint.is_some());
        }
    }

    #[test]
    fn aws_says_that_it_is_not_there() {
        let error = ProviderConfig::Aws.open().err().unwrap();
        assert_eq!(error.kind, ErrorKind::Misconfigured);
        assert_eq!(error.message, "kms_mode aws is not built into this version");
        assert!(error.hint.unwrap().contains("local"));
    }
}
