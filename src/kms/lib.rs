//! Key services: who turns a wrapped data encryption key (DEK) into a usable one, and the [`Service`] that asks
//! them on behalf of the whole cluster node.
//!
//! ```text
//!  main thread of the kms worker                   tokio threads "hv-kms"
//!  request slots ── Service::submit / cancel ──▶ flights: single flight, FIFO admission, deadline, retry
//!                ◀─ Service::try_recv, wake ────            └──▶ KeyProvider: local | aws
//!                ── Service::serve_now: local, without a fault configured
//! ```
//!
//! Everything here runs inside the `hyperion_vault kms` background worker. The trap it avoids: PostgreSQL's
//! functions may be called on a process's main thread only, and a key service may take seconds to answer. So
//! this crate does not know PostgreSQL at all: jobs come in by value, completions go out through a channel and a
//! wake callback, and what the main thread calls never waits for a key service.
//!
//! One file or directory per provider: [`aws`], and [`local`] for development and air-gapped machines.

#![forbid(unsafe_code)]

pub mod aws;
mod breaker;
mod config;
mod error;
mod flights;
mod keyfile;
mod local;
mod provider;
mod retry;
mod service;
mod status;
mod task;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use aws::AwsProvider;
pub use config::{AwsConfig, KmsMode, Limits, LocalConfig, ProviderConfig, ServiceConfig};
pub use error::{ErrorKind, KmsError};
pub use local::LocalProvider;
pub use provider::{
    BoxFuture, GeneratedDek, ImmediateProvider, KeyDescription, KeyProvider, StoredDek, WrappedBy, WrappedDek,
};
pub use service::{Completion, Job, Op, Outcome, Service, THREAD_NAME, THREADS, Wake};
pub use status::{LastError, Status};
