//! Clusters whose key service is AWS KMS, or what plays it: settings, and credentials where the server finds them.
//! Runs in the test process.
//!
//! The trap: the SDK looks in many places. Whatever the machine has (instance metadata, files in a home directory) is
//! shut out, so that a test's credentials are the only ones, and a test without any really has none.

use crate::builder::{ClusterBuilder, KeyFile};
use crate::cluster::Cluster;
use crate::kms::{Credentials, FakeKms};
use crate::sys::give_to;
use std::fs;
use std::path::PathBuf;

/// The profile of the cluster's credentials file.
const PROFILE: &str = "hyperion_vault";

/// Where a cluster gets its credentials from.
pub(crate) struct AwsAccess {
    /// Of the credentials file; `None`: there is no such file at first.
    credentials: Option<Credentials>,
}

impl ClusterBuilder {
    /// Keys come from this fake's first key. Credentials are in a file that [`Cluster::write_aws_credentials`] rewrites.
    pub fn aws(self, kms: &FakeKms) -> Self {
        self.aws_at(&kms.endpoint(), kms.region(), &kms.key_arn(), &Credentials::example())
    }

    /// Like [`aws`](Self::aws), with any service, key (id, ARN, alias) and credentials.
    pub fn aws_at(self, endpoint: &str, region: &str, key: &str, credentials: &Credentials) -> Self {
        let mut builder =
            self.aws_settings(endpoint, region, key).conf("hyperion_vault.aws_profile", PROFILE);
        builder.aws = Some(AwsAccess { credentials: Some(credentials.clone()) });
        builder
    }

    /// Like [`aws`](Self::aws), with credentials in the server's environment, which all its processes inherit.
    pub fn aws_env(self, kms: &FakeKms, credentials: &Credentials) -> Self {
        let mut builder = self
            .aws_settings(&kms.endpoint(), kms.region(), &kms.key_arn())
            .env("AWS_ACCESS_KEY_ID", &credentials.access_key_id)
            .env("AWS_SECRET_ACCESS_KEY", &credentials.secret_access_key);
        if let Some(token) = &credentials.session_token {
            builder = builder.env("AWS_SESSION_TOKEN", token);
        }
        builder.aws = Some(AwsAccess { credentials: None });
        builder
    }

    fn aws_settings(self, endpoint: &str, region: &str, key: &str) -> Self {
        self.key_file(KeyFile::None)
            .conf("hyperion_vault.kms_mode", "aws")
            .conf("hyperion_vault.kms_key_id", key)
            .conf("hyperion_vault.kms_region", region)
            .conf("hyperion_vault.kms_endpoint_url", endpoint)
            .env("AWS_EC2_METADATA_DISABLED", "true")
    }
}

impl AwsAccess {
    /// Makes the files and points the environment of a server that is not yet started to them.
    pub fn prepare(&self, cluster: &mut Cluster) {
        let dir = cluster.aws_dir();
        fs::create_dir(&dir)
            .and_then(|()| give_to(&dir, cluster.user, 0o700))
            .expect("cannot make a directory");
        if let Some(credentials) = &self.credentials {
            cluster.write_aws_credentials(credentials);
        }
        // The SDK may warn of a file that is named and missing.
        cluster.write_aws_file("config", "");
        for (variable, file) in
            [("AWS_SHARED_CREDENTIALS_FILE", "credentials"), ("AWS_CONFIG_FILE", "config")]
        {
            let path = dir.join(file).to_str().expect("a path under /tmp that we named").to_owned();
            // What a test has set itself wins.
            if !cluster.env.iter().any(|(name, _)| name == variable) {
                cluster.env.push((variable.into(), path));
            }
        }
    }
}

impl Cluster {
    /// The credentials file of a cluster built with [`ClusterBuilder::aws`]; mode 0600, the server's user owns it.
    pub fn aws_credentials_path(&self) -> PathBuf {
        self.aws_dir().join("credentials")
    }

    /// Replaces the credentials file in one step, as who issues credentials would.
    pub fn write_aws_credentials(&self, credentials: &Credentials) {
        let Credentials { access_key_id, secret_access_key, session_token } = credentials;
        let mut text = format!(
            "[{PROFILE}]\naws_access_key_id = {access_key_id}\naws_secret_access_key = {secret_access_key}\n"
        );
        if let Some(token) = session_token {
            text.push_str(&format!("aws_session_token = {token}\n"));
        }
        self.write_aws_file("credentials", &text);
    }

    fn aws_dir(&self) -> PathBuf {
        self.dir().join("aws")
    }

    fn write_aws_file(&self, name: &str, text: &str) {
        let path = self.aws_dir().join(name);
        let new = path.with_extension("new");
        fs::write(&new, text)
            .and_then(|()| give_to(&new, self.user, 0o600))
            .and_then(|()| fs::rename(&new, &path))
            .expect("cannot write a file of the AWS SDK");
    }
}
