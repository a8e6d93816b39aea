//! The keys of the fake key service: materials, states, aliases, regions. Pure; behind the server's lock.
//!
//! A multi-region key is one key here, with one set of materials, seen under an ARN in each of its regions.

use super::error::ApiError;
use super::sigv4::hex;
use super::{ACCOUNT, REGION};
use crate::sys::random_bytes;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime};

/// A key's state, as DescribeKey gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    Enabled,
    Disabled,
    PendingDeletion,
    PendingImport,
    Unavailable,
}

impl KeyState {
    pub fn name(self) -> &'static str {
        match self {
            KeyState::Enabled => "Enabled",
            KeyState::Disabled => "Disabled",
            KeyState::PendingDeletion => "PendingDeletion",
            KeyState::PendingImport => "PendingImport",
            KeyState::Unavailable => "Unavailable",
        }
    }

    /// Whether a key in this state may be used.
    pub(super) fn check(self, arn: &str) -> Result<(), ApiError> {
        match self {
            KeyState::Enabled => Ok(()),
            KeyState::Disabled => Err(ApiError::disabled(arn)),
            KeyState::PendingDeletion => Err(ApiError::invalid_state(arn, "pending deletion")),
            KeyState::PendingImport => Err(ApiError::invalid_state(arn, "pending import")),
            KeyState::Unavailable => Err(ApiError::invalid_state(arn, "unavailable")),
        }
    }
}

pub(super) struct Material {
    pub id: [u8; 32],
    pub secret: [u8; 32],
    pub made_at: SystemTime,
}

impl Material {
    fn new() -> Self {
        Self { id: random_bytes(), secret: random_bytes(), made_at: SystemTime::now() }
    }

    /// The id on the wire: 64 hexadecimal digits.
    pub fn id_text(&self) -> String {
        hex(&self.id)
    }
}

pub(super) struct Key {
    pub id: String,
    pub home: String,
    pub made_at: SystemTime,
    pub deletion_at: Option<SystemTime>,
    /// The state in each region where the key can be seen.
    pub states: BTreeMap<String, KeyState>,
    /// The oldest first; the last one wraps.
    pub materials: Vec<Material>,
}

impl Key {
    pub fn current(&self) -> &Material {
        self.materials.last().expect("a key is made with a material and loses none")
    }

    pub fn state(&self, region: &str) -> KeyState {
        *self.states.get(region).expect("a key is looked up in a region where it is")
    }

    pub fn is_multi_region(&self) -> bool {
        self.id.starts_with("mrk-")
    }
}

#[derive(Default)]
pub(super) struct Keyring {
    keys: HashMap<String, Key>,
    /// (region, alias/name) to key id.
    aliases: HashMap<(String, String), String>,
}

impl Keyring {
    /// Makes an enabled key and returns its id.
    pub fn create(&mut self, region: &str, multi_region: bool) -> String {
        let id = if multi_region { format!("mrk-{}", hex(&random_bytes::<16>())) } else { random_uuid() };
        let key = Key {
            id: id.clone(),
            home: region.into(),
            made_at: SystemTime::now(),
            deletion_at: None,
            states: BTreeMap::from([(region.to_owned(), KeyState::Enabled)]),
            materials: vec![Material::new()],
        };
        self.keys.insert(id.clone(), key);
        id
    }

    pub fn rotate(&mut self, id: &str) -> String {
        let key = self.by_id(id);
        key.materials.push(Material::new());
        key.current().id_text()
    }

    pub fn set_state(&mut self, id: &str, region: &str, state: KeyState) {
        let key = self.by_id(id);
        // Thirty days is what ScheduleKeyDeletion takes by default.
        let deletion_at = SystemTime::now() + Duration::from_secs(30 * 86_400);
        key.deletion_at = (state == KeyState::PendingDeletion).then_some(deletion_at);
        key.states.insert(region.into(), state);
    }

    pub fn remove(&mut self, id: &str) {
        self.keys.remove(id);
        self.aliases.retain(|_, target| target != id);
    }

    /// The alias's former target, if it had one.
    pub fn point_alias(&mut self, region: &str, alias: &str, id: &str) -> Option<String> {
        self.aliases.insert((region.into(), alias.into()), id.into())
    }

    pub fn has_alias(&self, region: &str, alias: &str) -> bool {
        self.aliases.contains_key(&(region.to_owned(), alias.to_owned()))
    }

    pub fn knows_region(&self, region: &str) -> bool {
        region == REGION || self.keys.values().any(|key| key.states.contains_key(region))
    }

    /// The key with this id, which must be one that was looked up or made here.
    pub fn by_id(&mut self, id: &str) -> &mut Key {
        self.keys.get_mut(id).unwrap_or_else(|| panic!("no key {id}"))
    }

    /// The key with this id, if it can be seen in this region.
    pub fn in_region(&self, id: &str, region: &str) -> Option<&Key> {
        self.keys.get(id).filter(|key| key.states.contains_key(region))
    }

    /// Finds a key by id, ARN, alias name or alias ARN, as one in `region` may name it.
    pub fn find(&self, reference: &str, region: &str) -> Result<&Key, ApiError> {
        let no_key = |id: &str| ApiError::no_key(&key_arn(region, id));
        let resource = match reference.strip_prefix("arn:") {
            None if reference.starts_with("alias/") => reference.to_owned(),
            None => format!("key/{reference}"),
            Some(rest) => resource_of(rest, reference, region)?,
        };
        if let Some(id) = resource.strip_prefix("key/") {
            let known_form = id.starts_with("mrk-") || id.len() == 36;
            return match self.in_region(id, region) {
                Some(key) => Ok(key),
                None if known_form => Err(no_key(id)),
                None => Err(ApiError::new("NotFoundException", format!("Invalid keyId '{id}'"))),
            };
        }
        let alias = resource;
        let unknown = || {
            let arn = format!("arn:aws:kms:{region}:{ACCOUNT}:{alias}");
            ApiError::new("NotFoundException", format!("Alias {arn} is not found."))
        };
        let id = self.aliases.get(&(region.to_owned(), alias.clone())).ok_or_else(unknown)?;
        self.in_region(id, region).ok_or_else(|| no_key(id))
    }
}

/// `key/…` or `alias/…` of an ARN, which must be one of this account in this region.
fn resource_of(rest: &str, arn: &str, region: &str) -> Result<String, ApiError> {
    let parts: Vec<&str> = rest.splitn(5, ':').collect();
    match parts[..] {
        ["aws", "kms", arn_region, account, resource]
            if resource.starts_with("key/") || resource.starts_with("alias/") =>
        {
            if arn_region != region {
                return Err(ApiError::new("NotFoundException", format!("Invalid arn {arn_region}")));
            }
            if account != ACCOUNT {
                return Err(ApiError::no_key(arn));
            }
            Ok(resource.into())
        }
        _ => Err(ApiError::new("InvalidArnException", format!("Invalid arn {arn}"))),
    }
}

pub(super) fn key_arn(region: &str, id: &str) -> String {
    format!("arn:aws:kms:{region}:{ACCOUNT}:key/{id}")
}

/// A random UUID (RFC 9562, version 4).
pub(super) fn random_uuid() -> String {
    let mut bytes = random_bytes::<16>();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let digits = hex(&bytes);
    let parts = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
    parts.join("-")
}
