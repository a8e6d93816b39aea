//! Data keys for the API: a fresh one for a version to be sealed, the one behind a stored version.
//!
//! Client backends, main thread. Order of things, always: ask the key service (which may take seconds) while holding
//! no lock of ours, then lock, then check that what was assumed still holds, else start over. A DEK is bound to vault,
//! secret and version by *ids*, so it stays good while version numbers move under it.

use std::cell::RefCell;

use hyperion_vault_core::envelope::{self, Dek, DekContext, Format, Id, Plaintext, SecretAad};
use hyperion_vault_core::reserve::Reserve;

use super::hook;
use crate::dek_cache;
use crate::error::{Kind, Result, VaultError};
use crate::kms_client::{self, Generated, Wrapped};
use crate::pg::heap::Write;
use crate::pg::monotonic_ms;
use crate::store::meta;
use crate::store::secrets::{self, Fresh, Sealed, Stored};
use crate::store::versions::StoredKey;

/// How often an operation starts over because others changed the same name meanwhile. Each round somebody else got
/// through; ten in a row does not happen by accident.
pub const ATTEMPTS: usize = 10;

pub fn overtaken(name: &str) -> VaultError {
    VaultError::new(
        Kind::Conflict,
        format!("could not change secret \"{name}\" because of concurrent changes"),
    )
    .hint("Try again.")
}

/// Looks again if what `look` has found cannot be authenticated. A superseded version is found after its secret, under a
/// later snapshot: a rename that commits between the two seals it again under another name, with which it opens. If the
/// secret's own row was the same before and after a look (each rename and each new version seals it anew, so that no two
/// are alike), nothing has moved, and the damage is real.
pub fn unmoved<R>(name: &str, mut look: impl FnMut() -> Result<R>) -> Result<R> {
    let row = || secrets::current(name).map(|found| found.map(|current| (current.secret, current.sealed)));
    let mut before = None;
    for _ in 0..ATTEMPTS {
        match look() {
            Err(error) if error.is_corrupted() => {
                let after = Some(row()?);
                if before == after {
                    return Err(error);
                }
                before = after;
            }
            seen => return seen,
        }
    }
    Err(overtaken(name))
}

thread_local! {
    /// Keys of this session for secrets to come.
    static RESERVE: RefCell<Reserve<NewVersion>> = const { RefCell::new(Reserve::new()) };
}

/// A DEK for a version that does not exist yet.
pub struct NewVersion {
    pub vault: Id,
    pub secret: Id,
    pub version_id: Id,
    pub key: Generated,
    /// See [`Fresh::early`].
    pub early: f64,
}

impl NewVersion {
    /// Asks the key service. Takes no lock.
    pub fn prepare(secret: Id) -> Result<Self> {
        let vault = presumed_vault()?;
        let version_id = Id::random()?;
        let key = kms_client::generate(DekContext { vault, secret, version: version_id })?;
        Ok(Self { vault, secret, version_id, key, early: 0.0 })
    }

    /// For a secret that does not exist yet, from the reserve if it has a key. See [`hyperion_vault_core::reserve`].
    pub fn reserved() -> Result<Option<Self>> {
        let mark = kms_client::reserving()?;
        let vault = meta::remembered_vault_id()?;
        RESERVE.with_borrow_mut(|reserve| {
            while let Some(new) = reserve.take(mark, monotonic_ms()) {
                // One of another vault would only be refused later.
                if Some(new.vault) == vault {
                    return Ok(Some(new));
                }
            }
            Ok(None)
        })
    }

    /// For a secret that does not exist yet. Asks the key service if the reserve is empty, and fills it. Takes no lock.
    pub fn of_new_secret() -> Result<Self> {
        if let Some(reserved) = Self::reserved()? {
            return Ok(reserved);
        }
        let vault = presumed_vault()?;
        let (mark, now) = (kms_client::reserving()?, monotonic_ms());
        let ahead = RESERVE.with_borrow_mut(|reserve| reserve.ahead(mark, now));
        let ids = Id::several(2 * (1 + ahead))?;
        let context = |pair: &[Id]| DekContext { vault, secret: pair[0], version: pair[1] };
        let contexts: Vec<DekContext> = ids.chunks_exact(2).map(context).collect();
        let of = |context: &DekContext, key| Self {
            vault,
            secret: context.secret,
            version_id: context.version,
            key,
            early: 0.0,
        };
        let (first, others) = kms_client::generate_ahead(&contexts)?;
        let others = others.into_iter().map(|(index, key)| of(&contexts[index], key));
        RESERVE.with_borrow_mut(|reserve| reserve.keep(mark, now, others));
        Ok(of(&contexts[0], first))
    }

    /// It was sealed and not stored: its key is no longer cached.
    pub fn forget(&self) {
        let context = DekContext { vault: self.vault, secret: self.secret, version: self.version_id };
        dek_cache::evict(&[context.cache_digest(&self.key.wrapped)]);
    }

    /// The key once more, for as long as the version is handed over.
    pub fn copy_key(&self) -> Result<Dek> {
        Ok(Dek::from_slice(self.key.dek.as_bytes())?)
    }

    /// Whether the vault is still (or now becomes) the one the DEK was made for.
    pub fn belongs(&self, write: &Write) -> Result<bool> {
        Ok(meta::establish(write, self.vault)? == self.vault)
    }

    /// Seals a value as the given version of the secret called `name`, and calls `store` with it.
    pub fn seal<R>(
        &self,
        name: &str,
        version: i32,
        value: &Value<'_>,
        store: impl FnOnce(&Fresh<'_>) -> Result<R>,
    ) -> Result<R> {
        let aad = aad(self.vault, self.secret, name, version, value.format())?;
        let sealed = value.with_payload(|payload| envelope::seal(&self.key.dek, &aad, payload))?;
        let context = DekContext { vault: self.vault, secret: self.secret, version: self.version_id };
        dek_cache::sealed(context.cache_digest(&self.key.wrapped), &self.key.dek)?;
        store(&Fresh {
            version_id: self.version_id,
            version,
            format: value.format(),
            sealed: &sealed,
            key: &self.key,
            early: self.early,
        })
    }
}

/// The vault's id, or one for a vault that has none yet. If it is out of date, [`NewVersion::belongs`] says so.
fn presumed_vault() -> Result<Id> {
    match meta::remembered_vault_id()? {
        Some(id) => Ok(id),
        None => Ok(Id::random()?),
    }
}

/// A value to be sealed.
pub enum Value<'a> {
    Opaque(&'a str),
    Binary(&'a [u8]),
    Userpass {
        username: &'a str,
        password: &'a str,
    },
    /// What another version of the same secret held.
    Opened(Format, &'a Plaintext),
}

impl Value<'_> {
    pub fn format(&self) -> Format {
        match self {
            Value::Opaque(_) => Format::Opaque,
            Value::Binary(_) => Format::Binary,
            Value::Userpass { .. } => Format::Userpass,
            Value::Opened(format, _) => *format,
        }
    }

    /// What `read_secret` will return of it: the value, or the password of a userpass value.
    pub fn main_part(&self) -> Result<&[u8]> {
        Ok(match self {
            Value::Opaque(value) => value.as_bytes(),
            Value::Binary(value) => value,
            Value::Userpass { password, .. } => password.as_bytes(),
            Value::Opened(Format::Userpass, payload) => {
                envelope::decode_userpass(payload.as_bytes())?.1.as_bytes()
            }
            Value::Opened(_, payload) => payload.as_bytes(),
        })
    }

    /// Calls `f` with the bytes to be sealed. Only those of a userpass value are put together, and wiped afterwards.
    fn with_payload<R>(&self, f: impl FnOnce(&[u8]) -> R) -> R {
        match self {
            Value::Opaque(value) => f(value.as_bytes()),
            Value::Binary(value) => f(value),
            Value::Userpass { username, password } => {
                f(envelope::encode_userpass(username, password).as_bytes())
            }
            Value::Opened(_, payload) => f(payload.as_bytes()),
        }
    }
}

fn aad(vault: Id, secret: Id, name: &str, version: i32, format: Format) -> Result<SecretAad<'_>> {
    let version = u32::try_from(version).map_err(|_| crate::store::secrets::unreadable())?;
    Ok(SecretAad { vault, secret, name, version, format })
}

/// The key of a stored version, and the place it is sealed in.
pub struct Opener {
    vault: Id,
    dek: Dek,
}

impl Opener {
    /// The DEK from the cache, without asking anyone; None if it is not there.
    pub fn cached(stored: &Stored<'_>) -> Result<Option<Self>> {
        let vault = meta::remembered_vault_id()?.ok_or_else(meta::lost)?;
        if let Some(dek) = hook::key(stored.version_id) {
            return Ok(Some(Self { vault, dek }));
        }
        Ok(kms_client::cached(&context(vault, stored).cache_digest(stored.wrapped))?
            .map(|dek| Self { vault, dek }))
    }

    /// The DEK through the key service. May take seconds: look the version up again afterwards.
    pub fn fetch(sealed: &Sealed) -> Result<Self> {
        let vault = vault()?;
        Ok(Self { vault, dek: kms_client::unwrap(&wrapped(vault, sealed))? })
    }

    /// With a DEK that the worker has given.
    pub fn with(vault: Id, dek: Dek) -> Self {
        Self { vault, dek }
    }

    /// Those of several versions, in their order, at the same time.
    pub fn fetch_all(versions: &[&Sealed]) -> Result<Vec<Self>> {
        let vault = vault()?;
        let wanted: Vec<_> = versions.iter().map(|sealed| wrapped(vault, sealed)).collect();
        Ok(kms_client::unwrap_all(&wanted)?.into_iter().map(|dek| Self { vault, dek }).collect())
    }

    /// Takes the version's DEK out of the cache, now. Of the vault it was fetched for: that one may be gone too.
    pub fn evict(&self, sealed: &Sealed) {
        dek_cache::evict(&[context(self.vault, &sealed.stored()).cache_digest(&sealed.wrapped)]);
    }

    pub fn open(&self, name: &str, stored: &Stored<'_>) -> Result<Plaintext> {
        let aad = aad(self.vault, stored.secret, name, stored.version, stored.format)?;
        Ok(envelope::open(&self.dek, &aad, stored.sealed)?)
    }

    /// The same value sealed for the same version under another name. The wrapped DEK is bound to ids and stays good.
    pub fn seal_again(&self, name: &str, new_name: &str, sealed: &Sealed) -> Result<Vec<u8>> {
        let value = self.open(name, &sealed.stored())?;
        let aad = aad(self.vault, sealed.secret, new_name, sealed.version, sealed.format)?;
        Ok(envelope::seal(&self.dek, &aad, value.as_bytes())?)
    }

    /// Straight into a result buffer of the right length.
    pub fn open_into(&self, name: &str, stored: &Stored<'_>, out: &mut [u8]) -> Result<()> {
        let aad = aad(self.vault, stored.secret, name, stored.version, stored.format)?;
        Ok(envelope::open_into(&self.dek, &aad, stored.sealed, out)?)
    }
}

pub fn vault() -> Result<Id> {
    meta::vault_id()?.ok_or_else(meta::lost)
}

fn context(vault: Id, stored: &Stored<'_>) -> DekContext {
    DekContext { vault, secret: stored.secret, version: stored.version_id }
}

pub fn wrapped(vault: Id, sealed: &Sealed) -> Wrapped<'_> {
    Wrapped { context: context(vault, &sealed.stored()), wrapped: &sealed.wrapped, key_id: &sealed.key_id }
}

/// Takes the key of a version that has run out out of the cache, now.
pub fn evict(stored: &Stored<'_>) -> Result<()> {
    if let Some(vault) = meta::vault_id()? {
        dek_cache::evict(&[context(vault, stored).cache_digest(stored.wrapped)]);
    }
    Ok(())
}

/// Takes the keys of deleted versions out of the cache when the transaction commits.
pub fn forget(secret: Id, versions: &[StoredKey]) -> Result<()> {
    if let Some(vault) = meta::vault_id()? {
        for key in versions {
            let context = DekContext { vault, secret, version: key.version_id };
            dek_cache::deleted(context.cache_digest(&key.wrapped));
        }
    }
    Ok(())
}
