//! The tables: one file per family, read and written below SQL (`pg::scan`, `pg::heap`).
//!
//! Client backends and database workers, main thread.

pub mod audit;
pub mod changes;
pub mod derived;
mod info;
pub mod listing;
pub mod meta;
pub mod readable;
pub mod roles;
pub mod schedule;
pub mod sealed;
pub mod secrets;
pub mod targets;
pub mod tokens;
pub mod versions;

/// Refuses if the tables cannot be used as they are, such as those of an earlier version of the extension.
pub fn check_tables() -> crate::error::Result<()> {
    secrets::SECRETS.with(|table| table.check())?;
    versions::VERSIONS.with(|table| table.check())?;
    derived::DATES.with(|table| table.check())
}
