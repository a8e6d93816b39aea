//! `export_sealed`, `import_sealed`: a whole vault as one document, without a value or a key in the clear.
//!
//! Client backends, main thread; no key service is asked. Importing proves nothing about the values: each is bound to
//! its vault, secret, name, version and format, and a reader finds out whether it opens. So whoever imports gains no
//! value that way, and whoever reads gets none that was sealed for another name.

use hyperion_vault_core::export::{Export, Limits, Secret};
use hyperion_vault_core::secret::{Presence, Timestamp};
use pgrx::pg_sys::Datum;

use super::{gate, lifecycle};
use crate::audit;
use crate::config;
use crate::error::{Kind, Result, VaultError};
use crate::pg::datum;
use crate::pg::fcinfo::{Args, Return};
use crate::pg::heap::Write;
use crate::pg::memory::with_scratch;
use crate::store::{meta, sealed, secrets};

/// The most that all sealed values together may have. In base64, and in the copies that making a jsonb takes, this is
/// about 600 MB of memory; a jsonb array cannot hold more than 256 MB.
const MAX_EXPORT_BYTES: i64 = 128 << 20;

/// `vault.export_sealed()`.
pub fn export_sealed(_args: &Args) -> Result<Return> {
    gate::environment()?;
    gate::administer("export the vault")?;
    let json = {
        let size = sealed::size()?;
        if size > MAX_EXPORT_BYTES {
            return Err(VaultError::new(Kind::WrongState, "the vault is too large for one export")
                .detail(format!(
                    "Its sealed values have {size} bytes; at most {MAX_EXPORT_BYTES} fit into one."
                ))
                .hint("Use pg_dump, which has no such limit: pg_dump -n vault -e hyperion_vault."));
        }
        let export = Export { vault: meta::vault_id()?, secrets: sealed::all()? };
        if export.vault.is_none() && !export.secrets.is_empty() {
            return Err(meta::lost());
        }
        audit::detail(format!("secrets: {}", export.secrets.len()));
        export.to_json().ok_or_else(|| VaultError::internal("a stored property is not valid JSON"))?
    };
    datum::jsonb_from_text(&json).map(Return::Value)
}

/// `vault.import_sealed(sealed)`: all of it or nothing.
pub fn import_sealed(args: &Args) -> Result<Return> {
    gate::environment()?;
    gate::administer("import into the vault")?;
    gate::writable()?;
    let json = args.jsonb(0).ok_or_else(|| gate::null("sealed"))?;
    let export = Export::parse(&json, Limits { max_secret_bytes: config::max_secret_bytes() })?;
    let Some(vault) = export.vault else { return Ok(Return::Value(Datum::from(0_i64))) };
    let write = Write::begin();
    if let Some(other) = meta::adopt(&write, vault)? {
        return Err(VaultError::new(Kind::WrongState, "the export is of another vault")
            .detail(format!("It is of vault {vault}; this is vault {other}, which has secrets, or has some that were deleted and can be restored."))
            .hint("Import it into an empty vault: values are bound to the vault they were sealed in."));
    }
    let now = Timestamp(crate::pg::clock());
    let mut count = 0_i64;
    for secret in &export.secrets {
        if Presence::at(now, secret.expires_at, secret.recover_until) == Presence::Gone {
            // It has run out since it was exported, and is not to come back.
            continue;
        }
        if !with_scratch(|| import(secret))? {
            return Err(VaultError::new(Kind::Exists, format!("secret \"{}\" already exists", secret.name))
                .detail("Its name or its id is in the vault. Nothing was imported.")
                .hint("Delete or rename the secret, or take it out of the export."));
        }
        count += 1;
    }
    audit::detail(format!("secrets: {count}"));
    Ok(Return::Value(Datum::from(count)))
}

/// False if its name or id is taken.
fn import(secret: &Secret) -> Result<bool> {
    let write = Write::begin();
    if let Some(locked) = secrets::lock_any(&write, &secret.name)?
        && locked.presence == Presence::Gone
    {
        lifecycle::replace_gone(&write, &secret.name, &locked)?;
    }
    sealed::insert(&write, secret)
}
