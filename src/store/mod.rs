//! The tables: one file per family. Reads are direct index scans; writes are constant SQL inside the service scope.
//!
//! Client backends, main thread.

pub mod audit;
pub mod changes;
pub mod listing;
pub mod meta;
pub mod roles;
pub mod schedule;
pub mod sealed;
pub mod secrets;
mod sql;
pub mod targets;
pub mod tokens;
pub mod versions;
