//! The decisions of hyperion_vault, kept apart from PostgreSQL.
//!
//! Nothing here imports pgrx, tokio or anything of a server: every module is a function of its arguments
//! (and, for the shared-memory state machines, of the atomics it is given), so it is tested with plain
//! `cargo test -p hyperion_vault_core`. Runs in whichever process calls it; the trap it avoids is a decision
//! that can only be tested by starting a server.
#![forbid(unsafe_code)]

pub mod audit;
pub mod cache;
pub mod envelope;
pub mod export;
pub mod ipc;
pub mod launch;
pub mod note;
pub mod policy;
pub mod readable;
pub mod reserve;
pub mod row;
pub mod schedule;
pub mod secret;

pub use ipnet::IpNet;
