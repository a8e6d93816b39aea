//! What the functions that write have in common.
//!
//! Client backends on a primary, main thread. Each writer follows one pattern: look (without a lock) → ask the key
//! service for the DEKs it needs → lock the row → check that it is still the secret the DEKs are for, else start over →
//! seal → write. So a slow key service blocks nobody, two sessions on one name take turns at the row lock, version
//! numbers are given under it, and nothing is lost between two of them. No writer returns a value.

use hyperion_vault_core::policy::Action;
use hyperion_vault_core::secret::{Generator, Presence};
use zeroize::Zeroizing;

use super::gate::{self, no_secret};
use crate::error::{Kind, Result, VaultError};
use crate::pg::fcinfo::Args;
use crate::store::secrets;

pub fn admitted<'a>(args: &'a Args, actions: &[Action]) -> Result<&'a str> {
    gate::environment()?;
    let name = gate::name(args.text(0))?.as_str();
    gate::authorize(actions, name)?;
    gate::writable()?;
    Ok(name)
}

pub fn invalid(message: &str, hint: &str) -> VaultError {
    VaultError::new(Kind::Invalid, message).hint(hint)
}

/// No live secret of that name: says so if it was deleted and can be restored. For those who manage it.
pub fn missing(name: &str) -> VaultError {
    match secrets::state(name) {
        Ok(Some(Presence::Deleted { .. })) => no_secret(name)
            .detail("It was deleted; its recovery window is still open.")
            .hint("Bring it back with vault.restore_secret()."),
        Ok(_) => no_secret(name),
        Err(error) => error,
    }
}

/// A value the operating system's generator gave.
pub fn generated(generator: &Generator) -> Result<Zeroizing<String>> {
    generator.generate().map_err(|_| {
        VaultError::internal("no value could be generated: the operating system provides no random bytes")
    })
}
