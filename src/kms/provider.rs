//! [`KeyProvider`]: what every key service must do, and the types its answers come in.
//!
//! Called on the tokio threads of the kms worker. The trap it avoids: an implementation that blocks its thread
//! (file, DNS, lock). There are two threads for all calls; a provider does its slow work asynchronously and may be
//! dropped at any await point, when the deadline passes or nobody waits any more.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use hyperion_vault_core::envelope::{Dek, DekContext};

use crate::error::KmsError;

/// A future that can be kept in a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A key service. Errors say by their kind whether a retry makes sense; retrying is the caller's task, never the
/// provider's, so that one budget and one backoff hold for all (a provider may load credentials anew and ask once more).
pub trait KeyProvider: Send + Sync {
    /// The `hyperion_vault.kms_mode` that selects it.
    fn name(&self) -> &'static str;

    /// Makes a DEK and wraps it for this place.
    fn generate_dek<'a>(&'a self, context: &'a DekContext) -> BoxFuture<'a, Result<GeneratedDek, KmsError>>;

    /// Unwraps a DEK, if it was wrapped for this place by this key service under the key that the row names.
    fn unwrap_dek<'a>(
        &'a self,
        context: &'a DekContext,
        stored: &'a StoredDek,
    ) -> BoxFuture<'a, Result<Box<Dek>, KmsError>>;

    /// Wraps a key that exists already for this place.
    fn wrap_dek<'a>(
        &'a self,
        context: &'a DekContext,
        dek: &'a Dek,
    ) -> BoxFuture<'a, Result<(WrappedDek, WrappedBy), KmsError>>;

    /// Wraps a stored DEK anew, under the key and key material that wrap now; the DEK stays what it is.
    fn rewrap_dek<'a>(
        &'a self,
        context: &'a DekContext,
        stored: &'a StoredDek,
    ) -> BoxFuture<'a, Result<(WrappedDek, WrappedBy), KmsError>>;

    /// The key that wraps now. Also the cheapest question that shows whether the service answers.
    fn describe(&self) -> BoxFuture<'_, Result<KeyDescription, KmsError>>;

    /// The same provider without futures, if it needs no more than some microseconds for an answer.
    fn immediate(&self) -> Option<&dyn ImmediateProvider> {
        None
    }
}

/// A provider that answers on the thread that asks: it computes, and never waits, reads a file, takes a lock that may be
/// held, or fails in a way that a repetition cures. The worker's main thread calls it, where all sessions wait meanwhile.
pub trait ImmediateProvider {
    /// As [`KeyProvider::generate_dek`].
    fn generate_now(&self, context: &DekContext) -> Result<GeneratedDek, KmsError>;

    /// As [`KeyProvider::unwrap_dek`].
    fn unwrap_now(&self, context: &DekContext, stored: &StoredDek) -> Result<Box<Dek>, KmsError>;

    /// As [`KeyProvider::describe`].
    fn describe_now(&self) -> Result<KeyDescription, KmsError>;
}

/// A DEK as the key service wrapped it: safe to store, opaque to everyone but its provider.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct WrappedDek(pub Vec<u8>);

impl WrappedDek {
    /// The bytes to store.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for WrappedDek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WrappedDek({} bytes)", self.0.len())
    }
}

/// A wrapped DEK as a row keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StoredDek {
    /// The opaque bytes.
    pub wrapped: WrappedDek,
    /// The row's word for the key that wrapped it, see [`WrappedBy::key_id`]. Not authenticated by itself: a provider
    /// that relies on it has the service check that key and bytes belong together.
    pub key_id: String,
}

/// Which key wrapped a DEK, for the row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrappedBy {
    /// The wrapping key: `local:<fingerprint>` or a key ARN.
    pub key_id: String,
    /// Which material of that key, where the service rotates material under one id.
    pub key_material_id: Option<String>,
}

/// A fresh DEK and what has to be stored with what it seals.
///
/// The DEK is boxed because results travel through futures and a channel: moving the box moves a pointer, where
/// moving the key would leave its bytes behind at each stop.
#[derive(Debug)]
pub struct GeneratedDek {
    /// For the caller, once.
    pub dek: Box<Dek>,
    /// For the row.
    pub wrapped: WrappedDek,
    /// For the row.
    pub by: WrappedBy,
}

/// The wrapping key as the service describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyDescription {
    /// As in [`WrappedBy::key_id`].
    pub key_id: String,
    /// As in [`WrappedBy::key_material_id`].
    pub key_material_id: Option<String>,
    /// Whether it can wrap and unwrap now.
    pub enabled: bool,
}
