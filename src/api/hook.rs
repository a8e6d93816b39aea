//! What a rotation hook may do with the vault: read the version it is called for, and nothing else.
//!
//! A hook is a function that a secret's target names. While it runs, this process holds a pass: the secret's name, the
//! new version and its data key. The functions that read ask for it first. With the pass they need no right and no
//! address, since whoever set the target has handed the value to the function; without it nothing of the vault can be
//! read or changed from inside a hook, whatever the role.
//!
//! Client backends and the maintenance worker, main thread. The traps it avoids: a pass that outlives its call, and a
//! key service that is asked while the secret is locked (the key is in the pass).

use std::cell::RefCell;
use std::time::Duration;

use hyperion_vault_core::envelope::{Dek, Id};
use hyperion_vault_core::secret::FunctionName;
use pgrx::pg_sys::Oid;
use pgrx::pg_sys::panic::CaughtError;

use crate::config;
use crate::error::{Kind, Result, VaultError, is_for_the_caller};
use crate::pg::alarm::Alarm;
use crate::pg::{call, identity};

/// What a hook is called for.
pub struct Pass {
    pub name: String,
    pub version: i32,
    pub version_id: Id,
    pub key: Dek,
    /// The setter, as whom the function runs, and its owner, as whom it runs if it is SECURITY DEFINER.
    pub readers: [Oid; 2],
}

thread_local! {
    static PASS: RefCell<Option<Pass>> = const { RefCell::new(None) };
}

/// The pass while its hook runs, taken away on every way out.
struct Held;

impl Drop for Held {
    fn drop(&mut self) {
        PASS.take();
    }
}

pub fn running() -> bool {
    PASS.with_borrow(Option::is_some)
}

/// Whether the pass lets this version (None: the current one) be read. False if no hook runs; refuses what its hook must
/// not read.
pub fn admits(name: &str, version: Option<i32>) -> Result<bool> {
    PASS.with_borrow(|pass| {
        let Some(pass) = pass else { return Ok(false) };
        let reader = identity::current_user();
        if pass.name == name
            && version.is_none_or(|version| version == pass.version)
            && pass.readers.contains(&reader)
        {
            return Ok(true);
        }
        Err(only_that(pass))
    })
}

/// Refuses while a hook runs: for what reads by another way than [`admits`] looks at.
pub fn refuse_reading() -> Result<()> {
    PASS.with_borrow(|pass| pass.as_ref().map_or(Ok(()), |pass| Err(only_that(pass))))
}

fn only_that(pass: &Pass) -> VaultError {
    VaultError::new(Kind::Denied, "a rotation hook may read only the version it is called for")
        .detail(format!("It is called for version {} of secret \"{}\".", pass.version, pass.name))
        .hint("Use vault.read_secret() or vault.get_secret() with the name that the hook is given, in the hook itself.")
}

/// Refuses while a hook runs.
pub fn refuse_writing() -> Result<()> {
    if !running() {
        return Ok(());
    }
    Err(VaultError::new(Kind::WrongState, "a rotation hook cannot change the vault")
        .detail("The secret that is being rotated is locked, and its new version is not committed yet.")
        .hint("Change other secrets in a transaction of their own."))
}

/// The data key of the version the hook is called for.
pub fn key(version_id: Id) -> Option<Dek> {
    PASS.with_borrow(|pass| {
        let pass = pass.as_ref().filter(|pass| pass.version_id == version_id)?;
        Dek::from_slice(pass.key.as_bytes()).ok()
    })
}

/// Calls the hook, inside the setter's scope. `value`: what no error may repeat.
pub fn call(function: &FunctionName, pass: Pass, value: &[u8]) -> Result<()> {
    let (name, version) = (pass.name.clone(), pass.version);
    let limit = Duration::from_millis(config::hook_timeout_ms());
    let alarm = Alarm::set(limit);
    let too_long = || {
        VaultError::new(
            Kind::Cancelled,
            format!("rotation hook {} of secret \"{name}\" took too long", function.signature()),
        )
        .detail(format!("hyperion_vault.hook_timeout_ms is {}.", limit.as_millis()))
        .hint("Nothing was changed. Make the hook faster, or raise the setting.")
    };
    pgrx::PgTryBuilder::new(std::panic::AssertUnwindSafe(|| {
        PASS.set(Some(pass));
        let _held = Held;
        call::function(function, &name, version)
    }))
    // Given back as an error of ours, which goes straight out: nothing is done in the transaction before it is undone.
    .catch_others(|caught| {
        Err(if alarm.rang() { too_long() } else { failed(function, &name, caught, value) })
    })
    .execute()?;
    // It may have caught the cancellation itself.
    if alarm.rang() { Err(too_long()) } else { Ok(()) }
}

fn failed(function: &FunctionName, name: &str, caught: CaughtError, value: &[u8]) -> VaultError {
    let report = match &caught {
        CaughtError::PostgresError(report)
        | CaughtError::ErrorReport(report)
        | CaughtError::RustPanic { ereport: report, .. } => report,
    };
    let holds_value =
        |text: &str| !value.is_empty() && text.as_bytes().windows(value.len()).any(|part| part == value);
    let parts: Vec<&str> =
        [Some(report.message()), report.detail(), report.hint()].into_iter().flatten().collect();
    let clean: Vec<&str> = parts.iter().copied().filter(|text| !holds_value(text)).collect();
    if clean.len() == parts.len() && is_for_the_caller(report.sql_error_code()) {
        caught.rethrow();
    }
    let mut reason = clean.join(" / ");
    if clean.len() < parts.len() {
        reason.push_str(if clean.is_empty() { "" } else { " / " });
        reason.push_str("the rest is not repeated here, since it holds the value");
    }
    VaultError::new(
        Kind::TargetFailed,
        format!("rotation hook {} of secret \"{name}\" failed", function.signature()),
    )
    .detail(format!("It said: {reason}."))
    .hint("Nothing was changed: the former version is still current.")
}
