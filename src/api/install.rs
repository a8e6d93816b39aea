//! What the installation script and the row-level security policies call.

use pgrx::pg_sys::Datum;

use super::gate;
use crate::error::Result;
use crate::pg::fcinfo::{Args, Return};
use crate::pg::scope;

/// `vault._inside()`: whether a statement of the extension's own is running.
pub fn inside(_args: &Args) -> Result<Return> {
    Ok(Return::Value(Datum::from(scope::inside())))
}

/// `vault._check_install()`: refuses CREATE EXTENSION where the vault could not be used afterwards.
pub fn check(_args: &Args) -> Result<Return> {
    gate::environment()?;
    Ok(Return::Void)
}
