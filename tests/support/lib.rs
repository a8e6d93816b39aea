//! Support for the integration tests: throw-away PostgreSQL clusters with the extension preloaded.
//!
//! Runs in the test process, never in a server. Everything that can hang (a session, a server that will not stop) is
//! bounded: a cluster has a time limit after which its server is stopped, so that whatever waits on it fails instead
//! of holding up the run. Signals go only to processes this test process started.
//!
//! Environment: `PG_CONFIG` (server under test), `HYPERION_VAULT_TEST_USER` (who runs servers when the tests run as
//! root, default `postgres`), `HYPERION_VAULT_TEST_OLD_PG_CONFIG` (an older major to upgrade from), `HYPERION_VAULT_MOTO`
//! (the moto_server to use), `KEEP=1` (keep the directory of a cluster whose test panicked).

mod ask;
mod aws;
mod builder;
mod cluster;
mod conf;
mod connect;
mod errors;
mod faults;
pub mod kms;
mod log;
pub mod memory;
mod moto;
mod postmaster;
mod process;
mod processes;
mod psql;
pub mod scan;
mod standby;
mod sys;
mod template;
pub mod threads;
mod toolchain;
mod vault;
mod wait;

pub use ask::Ask;
pub use builder::{ClusterBuilder, KeyFile, StartFailure};
pub use cluster::{Cluster, StopMode};
pub use connect::{Witness, backend_pid};
pub use errors::{assert_contains, expect_disconnect, expect_error, lend};
pub use libc::{
    SIGABRT, SIGCONT, SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGSEGV, SIGSTOP, SIGTERM, SIGUSR1, SIGUSR2,
};
pub use log::{LEAKS, LogMark};
pub use moto::{Moto, Refusal};
pub use postgres::error::DbError;
pub use postgres::{Client, NoTls};
pub use process::Process;
pub use psql::ToolOutput;
pub use sys::{effective_uid, ipv6_loopback_works, random_bytes, random_text};
pub use toolchain::Toolchain;
pub use vault::Vault;
pub use wait::{wait_for, wait_until};

use std::time::Duration;

/// What a healthy local server does in milliseconds must be done within this, loaded CI machines included.
pub const PATIENCE: Duration = Duration::from_secs(30);
