//! Which key service to use and within what limits: the settings of the kms worker as plain values.
//!
//! Made by the worker's main thread from GUCs, at start and after each SIGHUP. The trap it avoids: settings read
//! where they are used, so that a reload changes half of a request. A configuration is one value, swapped whole.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::aws::AwsProvider;
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

/// The `aws` provider's settings. Credentials are none of them: the SDK's standard chain finds those.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AwsConfig {
    /// `hyperion_vault.kms_key_id`: id, ARN or alias of the key for new data keys.
    pub key_id: String,
    /// `hyperion_vault.kms_region`; without it the region in `key_id`, else the chain's.
    pub region: Option<String>,
    /// `hyperion_vault.kms_endpoint_url`; without it the region's own.
    pub endpoint_url: Option<String>,
    /// `hyperion_vault.aws_profile`: the profile of the shared configuration files to use.
    pub profile: Option<String>,
}

/// A key service and all it needs to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProviderConfig {
    /// AWS KMS.
    Aws(AwsConfig),
    /// A key file on this machine.
    Local(LocalConfig),
}

impl ProviderConfig {
    /// Its mode.
    pub fn mode(&self) -> KmsMode {
        match self {
            Self::Aws(_) => KmsMode::Aws,
            Self::Local(_) => KmsMode::Local,
        }
    }

    /// Opens the provider. Reads local files, so it takes milliseconds; talks to no network.
    pub fn open(&self) -> Result<Arc<dyn KeyProvider>, KmsError> {
        match self {
            Self::Aws(config) => Ok(Arc::new(AwsProvider::open(config)?)),
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
    fn aws_wants_a_key_and_an_endpoint_it_may_use() {
        let open = |key_id: &str, endpoint_url: Option<&str>| {
            let endpoint_url = endpoint_url.map(str::to_owned);
            ProviderConfig::Aws(AwsConfig { key_id: key_id.into(), endpoint_url, ..AwsConfig::default() })
                .open()
        };
        for (key_id, endpoint, said) in [
            ("", None, "kms_key_id is not set"),
            ("a key", None, "not a KMS key"),
            ("alias/main", Some("http://kms.example.com"), "without TLS"),
        ] {
            let error = open(key_id, endpoint).err().unwrap();
            assert_eq!(error.kind, ErrorKind::Misconfigured);
            assert!(error.message.contains(said) && error.hint.is_some(), "{error:?}");
        }
        assert_eq!(open("alias/main", Some("http://127.0.0.1:1")).unwrap().name(), "aws");
    }
}
