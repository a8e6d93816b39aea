//! The document that `export_sealed` makes and `import_sealed` takes: a whole vault, sealed, as JSON.
//!
//! Runs in backends. It holds no plaintext and no key: values as they are stored, data keys as the key service wrapped
//! them. What authenticates them (vault, secret, name, version, format) is not checked here, since that takes the keys: a
//! secret put under another name reads as damaged, not as the other. What is checked is that everything has the shape that
//! the vault's own functions give it, so that a document from elsewhere puts no row into the tables that they could
//! not have put there.
//!
//! The trap it avoids: a half-understood document. A key that is missing or unknown, a number out of range, a version
//! without its secret: refused, saying where. The contents are never repeated.

mod read;
#[cfg(test)]
mod tests;

use base64::prelude::{BASE64_STANDARD, Engine};
use ipnet::IpNet;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::envelope::{Format, Id};
use crate::secret::{IntervalParts, Timestamp};

/// What the document says it is.
const NAME: &str = "hyperion_vault sealed export";
/// The only layout so far. A new one gets a new number, and the reader of the old one stays.
const VERSION: i64 = 1;

/// A vault with everything in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Export {
    /// None: a vault that has never sealed anything.
    pub vault: Option<Id>,
    pub secrets: Vec<Secret>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Secret {
    pub id: Id,
    pub name: String,
    /// Kind: automatic (true) or manual.
    pub automatic: bool,
    /// Of all its versions.
    pub format: Format,
    pub current: Version,
    pub description: Option<String>,
    /// JSON, as written.
    pub metadata: Option<String>,
    pub rotation_interval: Option<IntervalParts>,
    pub grace_period: Option<IntervalParts>,
    pub next_rotation_at: Option<Timestamp>,
    /// JSON, as written.
    pub generator: Option<String>,
    pub allowed_ips: Option<Vec<IpNet>>,
    pub keep_versions: Option<i32>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// When the secret runs out.
    pub expires_at: Option<Timestamp>,
    /// Deleted, and restorable until then.
    pub recover_until: Option<Timestamp>,
    /// JSON. Without who set it: nobody has, where it is imported, and so it is not active there.
    pub target: Option<String>,
    /// By number, ascending, all below the current one's.
    pub superseded: Vec<Superseded>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Version {
    pub id: Id,
    pub number: i32,
    pub wrapped_dek: Vec<u8>,
    pub sealed: Vec<u8>,
    pub kms_key_id: String,
    pub kms_key_material_id: Option<String>,
    pub created_at: Timestamp,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Superseded {
    pub version: Version,
    pub superseded_at: Timestamp,
    /// End of its grace; None: it had none.
    pub expires_at: Option<Timestamp>,
}

/// Bounds of a document that depend on the server it comes to.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// As in [`crate::secret::limits`].
    pub max_secret_bytes: usize,
}

/// Microseconds from 1970 to 2000, the origin of [`Timestamp`].
const UNIX_TO_SERVER: i64 = 946_684_800_000_000;

// The document, in the order in which it is written. Field names are the tables' column names.

#[derive(Serialize)]
struct Document<'a> {
    format: &'a str,
    format_version: i64,
    vault_id: Option<String>,
    secrets: Vec<SecretEntry<'a>>,
}

#[derive(Serialize)]
struct SecretEntry<'a> {
    id: String,
    name: &'a str,
    kind: &'a str,
    format: &'a str,
    description: Option<&'a str>,
    metadata: Option<Box<RawValue>>,
    rotation_interval: Option<IntervalEntry>,
    grace_period: Option<IntervalEntry>,
    next_rotation_at: Option<i64>,
    generator: Option<Box<RawValue>>,
    allowed_ips: Option<Vec<String>>,
    keep_versions: Option<i32>,
    created_at: i64,
    updated_at: i64,
    expires_at: Option<i64>,
    recover_until: Option<i64>,
    target: Option<Box<RawValue>>,
    current: VersionEntry<'a>,
    superseded: Vec<SupersededEntry<'a>>,
}

#[derive(Serialize)]
struct VersionEntry<'a> {
    version_id: String,
    version: i32,
    wrapped_dek: String,
    sealed: String,
    kms_key_id: &'a str,
    kms_key_material_id: Option<&'a str>,
    created_at: i64,
}

#[derive(Serialize)]
struct SupersededEntry<'a> {
    #[serde(flatten)]
    version: VersionEntry<'a>,
    superseded_at: i64,
    expires_at: Option<i64>,
}

#[derive(Serialize)]
struct IntervalEntry {
    months: i32,
    days: i32,
    microseconds: i64,
}

impl Export {
    /// The document. None if something in it is not what a vault can hold (metadata that is not JSON).
    pub fn to_json(&self) -> Option<String> {
        let document = Document {
            format: NAME,
            format_version: VERSION,
            vault_id: self.vault.map(|id| id.to_string()),
            secrets: self.secrets.iter().map(secret).collect::<Option<_>>()?,
        };
        serde_json::to_string(&document).ok()
    }
}

fn secret(s: &Secret) -> Option<SecretEntry<'_>> {
    Some(SecretEntry {
        id: s.id.to_string(),
        name: &s.name,
        kind: if s.automatic { "automatic" } else { "manual" },
        format: s.format.as_str(),
        description: s.description.as_deref(),
        metadata: raw(&s.metadata)?,
        rotation_interval: s.rotation_interval.map(interval),
        grace_period: s.grace_period.map(interval),
        next_rotation_at: s.next_rotation_at.map(unix),
        generator: raw(&s.generator)?,
        allowed_ips: s.allowed_ips.as_ref().map(|list| list.iter().map(IpNet::to_string).collect()),
        keep_versions: s.keep_versions,
        created_at: unix(s.created_at),
        updated_at: unix(s.updated_at),
        expires_at: s.expires_at.map(unix),
        recover_until: s.recover_until.map(unix),
        target: raw(&s.target)?,
        current: version(&s.current),
        superseded: s
            .superseded
            .iter()
            .map(|v| SupersededEntry {
                version: version(&v.version),
                superseded_at: unix(v.superseded_at),
                expires_at: v.expires_at.map(unix),
            })
            .collect(),
    })
}

fn version(v: &Version) -> VersionEntry<'_> {
    VersionEntry {
        version_id: v.id.to_string(),
        version: v.number,
        wrapped_dek: BASE64_STANDARD.encode(&v.wrapped_dek),
        sealed: BASE64_STANDARD.encode(&v.sealed),
        kms_key_id: &v.kms_key_id,
        kms_key_material_id: v.kms_key_material_id.as_deref(),
        created_at: unix(v.created_at),
    }
}

fn interval(parts: IntervalParts) -> IntervalEntry {
    IntervalEntry { months: parts.months, days: parts.days, microseconds: parts.micros }
}

/// JSON as it is written; None if it is none.
fn raw(json: &Option<String>) -> Option<Option<Box<RawValue>>> {
    json.as_ref().map(|json| RawValue::from_string(json.clone())).transpose().ok()
}

/// Microseconds since 1970-01-01 00:00 UTC. Infinities, which no function of the vault stores, end at the type's.
fn unix(at: Timestamp) -> i64 {
    at.0.saturating_add(UNIX_TO_SERVER)
}
