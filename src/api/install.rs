//! What the installation script calls.

use super::gate;
use crate::error::Result;
use crate::pg::fcinfo::{Args, Return};

/// `vault._check_install()`: refuses CREATE EXTENSION where the vault could not be used afterwards.
pub fn check(_args: &Args) -> Result<Return> {
    gate::environment()?;
    Ok(Return::Void)
}
