//! Credentials, region and client of the `aws` provider, made by the first call and made anew when AWS refuses them.
//!
//! Runs on the tokio threads of the kms worker, under an asynchronous lock: the first call of many makes the session,
//! the others wait for it. The standard credential chain of the SDK: environment, profile (roles and web identity
//! included), web identity token, container, instance metadata; or, if the settings name one, that profile alone.
//! Temporary credentials are renewed by the SDK before they expire.
//!
//! The trap it avoids: a profile file is read once and kept by the SDK, so that credentials replaced in it would be noticed
//! at the next restart. A refusal that credentials can cure makes a new session, at most one each [`RENEW`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_kms::Client;
use aws_sdk_kms::config::retry::RetryConfig;
use aws_sdk_kms::config::{SharedHttpClient, StalledStreamProtectionConfig, timeout::TimeoutConfig};
use aws_smithy_http_client::tls::{self, rustls_provider::CryptoMode};
use tokio::sync::Mutex;

use super::endpoint::TlsOnly;
use crate::config::AwsConfig;
use crate::error::KmsError;

/// A session that was refused is not replaced more often: with credentials that are simply wrong each call would
/// otherwise read files and ask the metadata service again.
const RENEW: Duration = Duration::from_secs(2);

/// To connect, TLS included. The SDK's default; an attempt as a whole is bounded by the service.
const CONNECT: Duration = Duration::from_millis(3100);

/// A client with the credentials it found.
#[derive(Debug)]
pub(super) struct Session {
    client: Client,
    region: String,
    /// Whether the settings name the endpoint.
    fixed_endpoint: bool,
    made: Instant,
}

impl Session {
    /// A client for keys in `region`. An endpoint that the settings name is where everything goes, whatever the region;
    /// the calls are signed for its own.
    pub(super) fn client_in(&self, region: &str) -> Client {
        if region == self.region || self.fixed_endpoint {
            return self.client.clone();
        }
        let config = self.client.config().to_builder().region(Region::new(region.to_owned()));
        Client::from_conf(config.build())
    }

    pub(super) fn region(&self) -> &str {
        &self.region
    }
}

/// The session in use.
pub(super) struct Sessions {
    config: AwsConfig,
    /// What `kms_key_id` says about the region.
    key_region: Option<String>,
    http: SharedHttpClient,
    current: Mutex<Option<Arc<Session>>>,
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sessions").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Sessions {
    pub(super) fn new(config: AwsConfig, key_region: Option<String>) -> Self {
        // Trusted certificates are those of the system, loaded by the first connection.
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(tls::Provider::Rustls(CryptoMode::Ring))
            .build_https();
        Self { config, key_region, http, current: Mutex::new(None) }
    }

    /// The session in use, made if there is none.
    pub(super) async fn current(&self) -> Result<Arc<Session>, KmsError> {
        let mut current = self.current.lock().await;
        if let Some(session) = &*current {
            return Ok(Arc::clone(session));
        }
        let session = Arc::new(self.make().await?);
        Ok(Arc::clone(current.insert(session)))
    }

    /// Another session than the one that was refused; `None` if that one is too new for another to differ.
    pub(super) async fn renew(&self, refused: &Arc<Session>) -> Result<Option<Arc<Session>>, KmsError> {
        let mut current = self.current.lock().await;
        match &*current {
            // Somebody else was faster.
            Some(session) if !Arc::ptr_eq(session, refused) => return Ok(Some(Arc::clone(session))),
            _ if refused.made.elapsed() < RENEW => return Ok(None),
            _ => {}
        }
        let session = Arc::new(self.make().await?);
        Ok(Some(Arc::clone(current.insert(session))))
    }

    async fn make(&self) -> Result<Session, KmsError> {
        let AwsConfig { region, endpoint_url, profile, .. } = &self.config;
        let loader = || {
            let loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
                .http_client(self.http.clone())
                // Every failure is classified and repeated by the service, within its own deadlines.
                .retry_config(RetryConfig::disabled())
                .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT).build())
                .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
            match profile {
                Some(profile) => loader.profile_name(profile),
                None => loader,
            }
        };
        // The setting, else what the key's ARN says, else whatever the chain finds.
        let region = match region.as_ref().or(self.key_region.as_ref()) {
            Some(region) => Region::new(region.clone()),
            None => loader().load().await.region().cloned().ok_or_else(|| {
                KmsError::misconfigured("the AWS region is not known")
                    .with_hint("Set hyperion_vault.kms_region, or give hyperion_vault.kms_key_id as an ARN.")
            })?,
        };
        let mut loader = loader().region(region.clone());
        if let Some(profile) = profile {
            // A profile that was asked for by name is the only source: in the chain, variables of the environment
            // would come before it. Roles are assumed in the region of the calls.
            let provider_config = ProviderConfig::without_region()
                .with_http_client(self.http.clone())
                .with_region(Some(region.clone()));
            let credentials = ProfileFileCredentialsProvider::builder()
                .configure(&provider_config)
                .profile_name(profile)
                .build();
            loader = loader.credentials_provider(credentials);
        }
        let shared = loader.load().await;
        let mut config = aws_sdk_kms::config::Builder::from(&shared).interceptor(TlsOnly);
        if let Some(url) = endpoint_url {
            config = config.endpoint_url(url);
        }
        let client = Client::from_conf(config.build());
        let fixed_endpoint = endpoint_url.is_some();
        Ok(Session { client, region: region.to_string(), fixed_endpoint, made: Instant::now() })
    }
}
