//! From JSON to [`Export`], every field checked.
//!
//! Not by derived deserialisation: its errors quote what they do not like, and a document may hold anything, a secret
//! in the wrong place too. Errors here name the place (`secrets[3].current.sealed`) and the rule.

use std::collections::{BTreeMap, BTreeSet};

use base64::prelude::{BASE64_STANDARD, Engine};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Export, Limits, NAME, Secret, Superseded, UNIX_TO_SERVER, VERSION, Version};
use crate::envelope::{Format, Id, plaintext_len};
use crate::policy::allowlist::{MAX_ITEMS, parse_network};
use crate::secret::limits::{self, MAX_USERNAME_BYTES};
use crate::secret::{Generator, IntervalParts, InvalidArgument, SecretName, Target, Timestamp};

/// A wrapped data key: AWS KMS gives at most 6144 bytes (Encrypt, CiphertextBlob).
const MAX_WRAPPED_BYTES: usize = 6144;
/// A key's id: an ARN has at most 2048 characters.
const MAX_KEY_ID_BYTES: usize = 2048;
/// What a user name and the lengths beside it add to a password's payload.
const USERPASS_BYTES: usize = MAX_USERNAME_BYTES + 64;
/// Years 1 to 9999: no clock stood elsewhere.
const TIMES: std::ops::RangeInclusive<i64> = -62_135_596_800_000_000..=253_402_300_799_999_999;

type Result<T> = std::result::Result<T, InvalidArgument>;

impl Export {
    /// The export in `json`, which must be complete and such as [`Export::to_json`] writes it.
    pub fn parse(json: &str, limits: Limits) -> Result<Self> {
        let mut top = Fields::of("", json)?;
        if top.text("format")? != NAME {
            return Err(top.bad("format", &format!("It must be \"{NAME}\".")));
        }
        let version = top.int("format_version")?;
        if version != VERSION {
            return Err(top
                .bad(
                    "format_version",
                    &format!("It is {version}; this version of the extension reads {VERSION}."),
                )
                .hint("Import with the version of the extension that made the export, or a newer one."));
        }
        let vault = top.opt("vault_id", Fields::id)?;
        let mut secrets = Vec::new();
        for (at, entry) in top.array("secrets")?.into_iter().enumerate() {
            secrets.push(secret(Fields::of(&format!("secrets[{at}]"), entry.get())?, limits)?);
        }
        if vault.is_none() && !secrets.is_empty() {
            return Err(top.bad("vault_id", "It is null, but there are secrets."));
        }
        let (mut ids, mut names) = (BTreeSet::new(), BTreeSet::new());
        for (at, secret) in secrets.iter().enumerate() {
            if !ids.insert(secret.id) || !names.insert(&secret.name) {
                return Err(bad(&format!("secrets[{at}]"), "Its id or its name is that of an earlier one."));
            }
        }
        top.done()?;
        Ok(Self { vault, secrets })
    }
}

fn secret(mut f: Fields<'_>, limits: Limits) -> Result<Secret> {
    let name = f.text("name")?;
    SecretName::parse(&name).map_err(|e| f.within("name", e))?;
    let automatic = match f.text("kind")?.as_str() {
        "automatic" => true,
        "manual" => false,
        _ => return Err(f.bad("kind", "It must be \"automatic\" or \"manual\".")),
    };
    let format = Format::parse(&f.text("format")?)
        .ok_or_else(|| f.bad("format", "It must be \"opaque\", \"binary\" or \"userpass\"."))?;
    let sub = |f: &Fields<'_>, key: &str| f.path_to(key);
    let current = {
        let path = sub(&f, "current");
        let mut fields = Fields::of(&path, f.take("current")?.get())?;
        let current = version(&mut fields, format, limits)?;
        fields.done()?;
        current
    };
    let mut superseded: Vec<Superseded> = Vec::new();
    let path = sub(&f, "superseded");
    for (at, entry) in f.array("superseded")?.into_iter().enumerate() {
        let mut fields = Fields::of(&format!("{path}[{at}]"), entry.get())?;
        let version = version(&mut fields, format, limits)?;
        let after = superseded.last().map_or(0, |earlier| earlier.version.number);
        if version.number <= after || version.number >= current.number {
            return Err(fields.bad("version", "Versions ascend and stay below the current one."));
        }
        superseded.push(Superseded {
            superseded_at: fields.time("superseded_at")?,
            expires_at: fields.opt("expires_at", Fields::time)?,
            version,
        });
        fields.done()?;
    }
    let checked = |f: &mut Fields<'_>, key, check: fn(&str) -> Result<()>| -> Result<Option<String>> {
        let Some(json) = f.opt(key, |f, key| Ok(f.take(key)?.get().to_owned()))? else { return Ok(None) };
        check(&json).map_err(|e| f.within(key, e))?;
        Ok(Some(json))
    };
    let description = f.opt("description", Fields::text)?;
    if let Some(text) = &description {
        limits::description(text).map_err(|e| f.within("description", e))?;
    }
    let secret = Secret {
        id: f.id("id")?,
        automatic,
        format,
        current,
        description,
        metadata: checked(&mut f, "metadata", limits::metadata)?,
        rotation_interval: f.interval("rotation_interval", limits::rotation_interval)?,
        grace_period: f.interval("grace_period", limits::grace_period)?,
        next_rotation_at: f.opt("next_rotation_at", Fields::time)?,
        generator: checked(&mut f, "generator", generator)?,
        allowed_ips: f.opt("allowed_ips", networks)?,
        keep_versions: f.opt("keep_versions", Fields::small)?,
        created_at: f.time("created_at")?,
        updated_at: f.time("updated_at")?,
        expires_at: f.opt("expires_at", Fields::time)?,
        recover_until: f.opt("recover_until", Fields::time)?,
        target: checked(&mut f, "target", target)?,
        superseded,
        name,
    };
    if let Some(keep) = secret.keep_versions {
        limits::keep_versions(keep).map_err(|e| f.within("keep_versions", e))?;
    }
    if automatic && secret.rotation_interval.is_none() {
        return Err(f.bad("rotation_interval", "An automatic secret has one."));
    }
    if automatic != secret.next_rotation_at.is_some() {
        return Err(f.bad("next_rotation_at", "An automatic secret has one, a manual secret has none."));
    }
    f.done()?;
    Ok(secret)
}

fn version(f: &mut Fields<'_>, format: Format, limits: Limits) -> Result<Version> {
    let number = f.small("version")?;
    if number < 1 {
        return Err(f.bad("version", "Versions count from 1."));
    }
    let wrapped_dek = f.bytes("wrapped_dek")?;
    if wrapped_dek.is_empty() || wrapped_dek.len() > MAX_WRAPPED_BYTES {
        return Err(f.bad("wrapped_dek", &format!("It must have 1 to {MAX_WRAPPED_BYTES} bytes.")));
    }
    let sealed = f.bytes("sealed")?;
    let most = limits.max_secret_bytes + if format == Format::Userpass { USERPASS_BYTES } else { 0 };
    match plaintext_len(&sealed) {
        Err(_) => return Err(f.bad("sealed", "It is not a sealed value.")),
        Ok(len) if len > most => {
            return Err(f
                .bad("sealed", &format!("Its value has {len} bytes; at most {most} are allowed."))
                .hint("Raise hyperion_vault.max_secret_bytes."));
        }
        Ok(_) => {}
    }
    let key_id = |f: &Fields<'_>, key: &str, text: &str| {
        let fine = !text.is_empty() && text.len() <= MAX_KEY_ID_BYTES && !text.chars().any(char::is_control);
        fine.then_some(()).ok_or_else(|| f.bad(key, "It is not the id of a key."))
    };
    let kms_key_id = f.text("kms_key_id")?;
    key_id(f, "kms_key_id", &kms_key_id)?;
    let kms_key_material_id = f.opt("kms_key_material_id", Fields::text)?;
    if let Some(id) = &kms_key_material_id {
        key_id(f, "kms_key_material_id", id)?;
    }
    Ok(Version {
        id: f.id("version_id")?,
        number,
        wrapped_dek,
        sealed,
        kms_key_id,
        kms_key_material_id,
        created_at: f.time("created_at")?,
    })
}

/// Its own error names keys it does not know, which here may be anything.
fn generator(json: &str) -> Result<()> {
    Generator::parse(json).map(drop).map_err(|_| InvalidArgument::new("generator is not valid"))
}

fn target(json: &str) -> Result<()> {
    Target::parse(json).map(drop).map_err(|_| InvalidArgument::new("target is not valid"))
}

fn networks(f: &mut Fields<'_>, key: &str) -> Result<Vec<ipnet::IpNet>> {
    let items = f.array(key)?;
    if items.is_empty() || items.len() > MAX_ITEMS {
        return Err(f.bad(key, &format!("It must have 1 to {MAX_ITEMS} networks.")));
    }
    let network = |item: &RawValue| parse_network(&scalar::<String>(item)?).ok();
    let networks: Option<Vec<_>> = items.into_iter().map(network).collect();
    networks.ok_or_else(|| f.bad(key, "It must have networks such as \"10.0.0.0/8\" only."))
}

fn scalar<'a, T: Deserialize<'a>>(raw: &'a RawValue) -> Option<T> {
    serde_json::from_str(raw.get()).ok()
}

fn bad(path: &str, rule: &str) -> InvalidArgument {
    let place = if path.is_empty() { "the document".to_owned() } else { path.to_owned() };
    InvalidArgument::new(format!("sealed export is not valid at {place}"))
        .detail(rule.to_owned())
        .hint("Pass what vault.export_sealed() returned, unchanged. Nothing was imported.")
}

/// The members of an object that have not been asked for yet, and where it is in the document.
struct Fields<'a> {
    path: String,
    members: BTreeMap<String, &'a RawValue>,
}

impl<'a> Fields<'a> {
    fn of(path: &str, json: &'a str) -> Result<Self> {
        // jsonb has no key twice; where a text had, the last one counts, as in jsonb.
        let members = serde_json::from_str(json).map_err(|_| bad(path, "It must be a JSON object."))?;
        Ok(Self { path: path.to_owned(), members })
    }

    fn path_to(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn bad(&self, key: &str, rule: &str) -> InvalidArgument {
        bad(&self.path_to(key), rule)
    }

    /// The error of a rule that arguments have too, with its place.
    fn within(&self, key: &str, e: InvalidArgument) -> InvalidArgument {
        let rule = format!("{}. {}", e.message, e.detail.unwrap_or_default());
        self.bad(key, rule.trim_end())
    }

    fn take(&mut self, key: &str) -> Result<&'a RawValue> {
        self.members.remove(key).ok_or_else(|| self.bad(key, "It is missing."))
    }

    /// Everything must have been asked for.
    fn done(self) -> Result<()> {
        match self.members.len() {
            0 => Ok(()),
            // Not named: whatever is no part of an export is not repeated.
            count => Err(bad(&self.path, &format!("It has {count} members that are not known."))),
        }
    }

    /// A member that may be null, but not absent.
    fn opt<T>(&mut self, key: &str, read: impl FnOnce(&mut Self, &str) -> Result<T>) -> Result<Option<T>> {
        if self.members.get(key).is_some_and(|raw| raw.get() == "null") {
            self.members.remove(key);
            return Ok(None);
        }
        read(self, key).map(Some)
    }

    fn scalar<T: Deserialize<'a>>(&mut self, key: &str, rule: &str) -> Result<T> {
        scalar(self.take(key)?).ok_or_else(|| self.bad(key, rule))
    }

    fn text(&mut self, key: &str) -> Result<String> {
        self.scalar(key, "It must be a string.")
    }

    fn int(&mut self, key: &str) -> Result<i64> {
        self.scalar(key, "It must be a whole number.")
    }

    fn small(&mut self, key: &str) -> Result<i32> {
        self.scalar(key, "It must be a whole number of 32 bits.")
    }

    fn array(&mut self, key: &str) -> Result<Vec<&'a RawValue>> {
        self.scalar(key, "It must be an array.")
    }

    fn bytes(&mut self, key: &str) -> Result<Vec<u8>> {
        let text = self.text(key)?;
        BASE64_STANDARD.decode(text).map_err(|_| self.bad(key, "It must be base64."))
    }

    fn id(&mut self, key: &str) -> Result<Id> {
        let text = self.text(key)?;
        Id::parse(&text).ok_or_else(|| self.bad(key, "It must be a uuid."))
    }

    fn time(&mut self, key: &str) -> Result<Timestamp> {
        let unix = self.int(key)?;
        if !TIMES.contains(&unix) {
            return Err(self.bad(key, "It must be microseconds since 1970, from year 1 to 9999."));
        }
        Ok(Timestamp(unix - UNIX_TO_SERVER))
    }

    fn interval<T>(
        &mut self,
        key: &str,
        check: fn(IntervalParts) -> Result<T>,
    ) -> Result<Option<IntervalParts>> {
        self.opt(key, |f, key| {
            let mut fields = Fields::of(&f.path_to(key), f.take(key)?.get())?;
            let parts = IntervalParts {
                months: fields.small("months")?,
                days: fields.small("days")?,
                micros: fields.int("microseconds")?,
            };
            fields.done()?;
            check(parts).map_err(|e| f.within(key, e))?;
            Ok(parts)
        })
    }
}
