//! The `aws` provider: AWS KMS through the official SDK.
//!
//! Runs on the tokio threads of the kms worker. One file per concern: [`key`] names of keys, [`endpoint`] where KMS may
//! be asked, [`session`] credentials and client, [`classify`] what an error means; here the five operations.
//!
//! What is checked on this side, whatever the service says: the answer names the key that was asked for, a data key has
//! 32 bytes, a wrapped key has a length that KMS makes, and no request leaves without TLS except to loopback. The
//! encryption context (vault, secret and version by id) goes with every call; KMS authenticates it.
//!
//! The trap it avoids: a row's own word for which key wrapped it. Decrypt is asked with the key that the row names, but
//! context and ciphertext have to agree with that key at KMS; a swapped name, ciphertext or context is refused there.

mod classify;
pub mod endpoint;
pub mod key;
mod session;

use std::collections::HashMap;
use std::error::Error;
use std::future::Future;
use std::sync::Arc;

use aws_sdk_kms::Client;
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::DataKeySpec;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use hyperion_vault_core::envelope::{Dek, DekContext, KEY_LEN};
use hyperion_vault_core::ipc::MAX_WRAPPED;
use zeroize::Zeroizing;

use crate::config::{AwsConfig, KmsMode};
use crate::error::{ErrorKind, KmsError};
use crate::provider::{
    BoxFuture, GeneratedDek, KeyDescription, KeyProvider, StoredDek, WrappedBy, WrappedDek,
};
use classify::{Action, Failure};
use key::{KeyArn, KeyRef};
use session::{Session, Sessions};

/// AWS KMS with one key for new data keys.
#[derive(Debug)]
pub struct AwsProvider {
    key_id: String,
    key: KeyRef,
    sessions: Sessions,
}

impl AwsProvider {
    /// Checks the settings; talks to nobody. Region, credentials and connections are made by the first call.
    pub fn open(config: &AwsConfig) -> Result<Self, KmsError> {
        if config.key_id.is_empty() {
            return Err(KmsError::misconfigured("hyperion_vault.kms_key_id is not set")
                .with_hint("Set it to the id, ARN or alias of a symmetric AWS KMS key."));
        }
        let key = KeyRef::parse(&config.key_id).map_err(invalid)?;
        if let Some(url) = &config.endpoint_url {
            endpoint::check(url).map_err(invalid)?;
        }
        let sessions = Sessions::new(config.clone(), key.region().map(str::to_owned));
        Ok(Self { key_id: config.key_id.clone(), key, sessions })
    }

    /// One call, in the session's region or another. Credentials that AWS does not accept any more are loaded anew, and the call made once more: what
    /// replaced them (a rewritten profile, a new token) may have come since they were read.
    async fn call<T, E, F>(
        &self,
        action: Action,
        key: &str,
        region: Option<&str>,
        send: impl Fn(Client) -> F,
    ) -> Result<(T, Arc<Session>), KmsError>
    where
        E: ProvideErrorMetadata + Error + 'static,
        F: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    {
        let mut session = self.sessions.current().await?;
        loop {
            let client = session.client_in(region.unwrap_or(session.region()));
            let failure = match send(client).await {
                Ok(output) => return Ok((output, session)),
                Err(error) => Failure::of(&error),
            };
            if !failure.is_about_credentials() {
                return Err(failure.classify(action, key));
            }
            match self.sessions.renew(&session).await? {
                Some(renewed) => session = renewed,
                None => return Err(failure.classify(action, key)),
            }
        }
    }

    /// The key for new data keys, as to be asked for: of a multi-Region key, the replica at hand.
    async fn own_key(&self) -> Result<String, KmsError> {
        Ok(match &self.key {
            KeyRef::Arn(arn) => arn.in_region(self.sessions.current().await?.region()).to_string(),
            _ => self.key_id.clone(),
        })
    }

    async fn generate(&self, context: &DekContext) -> Result<GeneratedDek, KmsError> {
        let key = self.own_key().await?;
        let (output, session) = self
            .call(Action::GenerateDataKey, &key, None, |client| {
                client
                    .generate_data_key()
                    .key_id(&key)
                    .key_spec(DataKeySpec::Aes256)
                    .set_encryption_context(Some(pairs(context)))
                    .send()
            })
            .await?;
        let plaintext = output.plaintext.map(secret).ok_or_else(|| incomplete(Action::GenerateDataKey))?;
        let by = self.wrapped_by(Action::GenerateDataKey, &session, output.key_id, output.key_material_id)?;
        let wrapped = wrapped(Action::GenerateDataKey, output.ciphertext_blob)?;
        let dek = Dek::from_slice(&plaintext).map_err(|_| {
            KmsError::new(ErrorKind::Refused, "AWS KMS made a data key of the wrong length")
                .with_detail(format!("It has {} bytes instead of {KEY_LEN}.", plaintext.len()))
                .with_hint("Check what answers at hyperion_vault.kms_endpoint_url.")
        })?;
        Ok(GeneratedDek { dek: Box::new(dek), wrapped, by })
    }

    async fn unwrap(&self, context: &DekContext, stored: &StoredDek) -> Result<Box<Dek>, KmsError> {
        let (arn, region) = self.stored_key(stored).await?;
        let here = arn.in_region(&region);
        // A key of one region is asked for there: it may be one that `kms_key_id` named earlier.
        let asked = here.to_string();
        let (output, _) = self
            .call(Action::Decrypt, &asked, Some(here.region()), |client| {
                client
                    .decrypt()
                    .key_id(&asked)
                    .ciphertext_blob(Blob::new(stored.wrapped.as_bytes()))
                    .set_encryption_context(Some(pairs(context)))
                    .send()
            })
            .await?;
        let plaintext = output.plaintext.map(secret).ok_or_else(|| incomplete(Action::Decrypt))?;
        // What opens under another key, or is no data key, was not wrapped for this place by this vault.
        let same = output.key_id.as_deref().and_then(KeyArn::parse).is_some_and(|used| used.same_key(&arn));
        let dek = Dek::from_slice(&plaintext).ok().filter(|_| same);
        dek.map(Box::new).ok_or_else(KmsError::unauthenticated)
    }

    async fn wrap(&self, context: &DekContext, dek: &Dek) -> Result<(WrappedDek, WrappedBy), KmsError> {
        let key = self.own_key().await?;
        let (output, session) = self
            .call(Action::Encrypt, &key, None, |client| {
                client
                    .encrypt()
                    .key_id(&key)
                    .plaintext(Blob::new(dek.as_bytes()))
                    .set_encryption_context(Some(pairs(context)))
                    .send()
            })
            .await?;
        let by = self.wrapped_by(Action::Encrypt, &session, output.key_id, None)?;
        Ok((wrapped(Action::Encrypt, output.ciphertext_blob)?, by))
    }

    async fn rewrap(
        &self,
        context: &DekContext,
        stored: &StoredDek,
    ) -> Result<(WrappedDek, WrappedBy), KmsError> {
        let (arn, region) = self.stored_key(stored).await?;
        let asked = arn.in_region(&region).to_string();
        let key = self.own_key().await?;
        let (output, session) = self
            .call(Action::ReEncrypt, &format!("{asked} and {key}"), None, |client| {
                client
                    .re_encrypt()
                    .source_key_id(&asked)
                    .destination_key_id(&key)
                    .ciphertext_blob(Blob::new(stored.wrapped.as_bytes()))
                    .set_source_encryption_context(Some(pairs(context)))
                    .set_destination_encryption_context(Some(pairs(context)))
                    .send()
            })
            .await?;
        let source = output.source_key_id.as_deref().and_then(KeyArn::parse);
        if !source.is_some_and(|used| used.same_key(&arn)) {
            return Err(KmsError::unauthenticated());
        }
        let by =
            self.wrapped_by(Action::ReEncrypt, &session, output.key_id, output.destination_key_material_id)?;
        Ok((wrapped(Action::ReEncrypt, output.ciphertext_blob)?, by))
    }

    async fn describe_key(&self) -> Result<KeyDescription, KmsError> {
        let key = self.own_key().await?;
        let (output, session) = self
            .call(Action::DescribeKey, &key, None, |client| client.describe_key().key_id(&key).send())
            .await?;
        let metadata = output.key_metadata.ok_or_else(|| incomplete(Action::DescribeKey))?;
        let arn = metadata.arn.clone();
        let by =
            self.wrapped_by(Action::DescribeKey, &session, arn, metadata.current_key_material_id.clone())?;
        Ok(KeyDescription {
            key_id: by.key_id,
            key_material_id: by.key_material_id,
            enabled: metadata.enabled,
        })
    }

    /// The key that wrapped a stored data key, as its row says, and the region to ask.
    async fn stored_key(&self, stored: &StoredDek) -> Result<(KeyArn, String), KmsError> {
        let Some(arn) = KeyArn::parse(&stored.key_id) else {
            return Err(if stored.key_id.starts_with("local:") {
                KmsError::new(ErrorKind::Refused, "the data key was wrapped by the local key provider")
                    .with_detail(format!("It was wrapped by {}.", stored.key_id.escape_debug()))
                    .with_hint("Set hyperion_vault.kms_mode back to local with that key file.")
            } else {
                KmsError::unauthenticated()
            });
        };
        if !(1..=MAX_WRAPPED).contains(&stored.wrapped.as_bytes().len()) {
            return Err(KmsError::unauthenticated());
        }
        let region = self.sessions.current().await?.region().to_owned();
        Ok((arn, region))
    }

    /// Which key wrapped, as KMS says, if that can be the one it was asked for.
    fn wrapped_by(
        &self,
        action: Action,
        session: &Session,
        key_id: Option<String>,
        material: Option<String>,
    ) -> Result<WrappedBy, KmsError> {
        let said = key_id.ok_or_else(|| incomplete(action))?;
        let arn = KeyArn::parse(&said).filter(|arn| self.key.may_be(arn) && arn.region() == session.region());
        let Some(arn) = arn else {
            return Err(KmsError::new(ErrorKind::Refused, "AWS KMS answered for another key")
                .with_detail(format!("Asked for {}, answered for {}.", self.key_id, classify::foreign(&said)))
                .with_hint(
                    "Check hyperion_vault.kms_key_id, kms_region and what answers at kms_endpoint_url.",
                ));
        };
        // 64 hex digits (API reference); anything else is as good as no id.
        let is_id = |id: &String| id.len() <= 128 && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
        Ok(WrappedBy {
            key_id: arn.to_string(),
            key_material_id: material.filter(|id| !id.is_empty()).filter(is_id),
        })
    }
}

impl KeyProvider for AwsProvider {
    fn name(&self) -> &'static str {
        KmsMode::Aws.as_str()
    }

    fn generate_dek<'a>(&'a self, context: &'a DekContext) -> BoxFuture<'a, Result<GeneratedDek, KmsError>> {
        Box::pin(self.generate(context))
    }

    fn unwrap_dek<'a>(
        &'a self,
        context: &'a DekContext,
        stored: &'a StoredDek,
    ) -> BoxFuture<'a, Result<Box<Dek>, KmsError>> {
        Box::pin(self.unwrap(context, stored))
    }

    fn wrap_dek<'a>(
        &'a self,
        context: &'a DekContext,
        dek: &'a Dek,
    ) -> BoxFuture<'a, Result<(WrappedDek, WrappedBy), KmsError>> {
        Box::pin(self.wrap(context, dek))
    }

    fn rewrap_dek<'a>(
        &'a self,
        context: &'a DekContext,
        stored: &'a StoredDek,
    ) -> BoxFuture<'a, Result<(WrappedDek, WrappedBy), KmsError>> {
        Box::pin(self.rewrap(context, stored))
    }

    fn describe(&self) -> BoxFuture<'_, Result<KeyDescription, KmsError>> {
        Box::pin(self.describe_key())
    }
}

fn pairs(context: &DekContext) -> HashMap<String, String> {
    context.pairs().into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Takes a key out of the SDK's type, which does not wipe itself.
fn secret(blob: Blob) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(blob.into_inner())
}

fn wrapped(action: Action, blob: Option<Blob>) -> Result<WrappedDek, KmsError> {
    let bytes = blob.map(Blob::into_inner).unwrap_or_default();
    if (1..=MAX_WRAPPED).contains(&bytes.len()) { Ok(WrappedDek(bytes)) } else { Err(incomplete(action)) }
}

/// JSON, but not what the operation answers with: most likely somebody else at KMS's address, for now.
fn incomplete(action: Action) -> KmsError {
    let failure = Failure {
        phase: classify::Phase::Answer,
        code: None,
        message: "A field that it must have is missing or too long".into(),
        status: None,
        request_id: None,
    };
    failure.classify(action, "")
}

fn invalid(error: hyperion_vault_core::secret::InvalidArgument) -> KmsError {
    let made = KmsError::misconfigured(error.message);
    let made = match error.detail {
        Some(detail) => made.with_detail(detail),
        None => made,
    };
    match error.hint {
        Some(hint) => made.with_hint(hint),
        None => made,
    }
}
