//! Arguments that the functions which create and update secrets share, validated before anything is asked of anyone.
//!
//! Client backends, main thread. Positions are those of sql/30_functions.sql. No error
//! here quotes a value: a caller who swapped two arguments must not find his secret in the log.

use hyperion_vault_core::policy::allowlist::MAX_ITEMS;
use hyperion_vault_core::secret::{Generator, IntervalParts, Target, limits};
use pgrx::pg_sys::Datum;

use super::gate;
use crate::config;
use crate::error::{Kind, Result, VaultError};
use crate::pg::fcinfo::Args;
use crate::store::secrets::Properties;

/// Where a function has which argument.
pub struct Positions {
    value: usize,
    kind: usize,
    description: usize,
    username: usize,
    password: usize,
    rotation_interval: usize,
    grace_period: usize,
    generator: usize,
    metadata: usize,
    allowed_ips: usize,
    keep_versions: usize,
    expires_in: usize,
    target: usize,
}

/// An argument the function does not have: as if it were NULL.
const NONE: usize = usize::MAX;

/// `create_secret`.
pub const TEXT: Positions = Positions {
    value: 1,
    kind: 2,
    description: 3,
    username: 4,
    password: 5,
    rotation_interval: 6,
    grace_period: 7,
    generator: 8,
    metadata: 9,
    allowed_ips: 10,
    keep_versions: 11,
    expires_in: 12,
    target: 13,
};

/// `update_secret`, which has two more before the last.
pub const UPDATE: Positions = Positions { target: 15, ..TEXT };

/// `create_secret_bytes`, whose value is not text and is read apart.
pub const BYTES: Positions = Positions {
    value: NONE,
    kind: NONE,
    description: 2,
    username: NONE,
    password: NONE,
    rotation_interval: NONE,
    grace_period: 3,
    generator: NONE,
    metadata: 4,
    allowed_ips: 5,
    keep_versions: 6,
    expires_in: 7,
    target: NONE,
};

/// What the caller gave, NULL being nothing.
pub struct Given<'a> {
    pub value: Option<&'a str>,
    pub username: Option<&'a str>,
    pub password: Option<&'a str>,
    /// Kind: automatic (true) or manual.
    pub automatic: Option<bool>,
    pub description: Option<Datum>,
    pub rotation_interval: Option<Datum>,
    pub grace_period: Option<Datum>,
    pub generator: Option<(Generator, Datum)>,
    pub metadata: Option<Datum>,
    pub allowed_ips: Option<Datum>,
    pub keep_versions: Option<i32>,
    pub expires_in: Option<Datum>,
    pub target: Option<Target>,
}

impl<'a> Given<'a> {
    pub fn parse(args: &'a Args, at: &Positions) -> Result<Self> {
        let given = Self {
            value: args.text(at.value).map(checked_value).transpose()?,
            username: args.text(at.username),
            password: args.text(at.password).map(checked_value).transpose()?,
            automatic: args.enum_label(at.kind).map(|label| label == "automatic"),
            description: args.datum(at.description),
            rotation_interval: args.datum(at.rotation_interval),
            grace_period: args.datum(at.grace_period),
            generator: match (args.jsonb(at.generator), args.datum(at.generator)) {
                (Some(text), Some(datum)) => Some((Generator::parse(&text)?, datum)),
                _ => None,
            },
            metadata: args.datum(at.metadata),
            allowed_ips: args.datum(at.allowed_ips),
            keep_versions: args.int(at.keep_versions),
            expires_in: args.datum(at.expires_in),
            target: args.jsonb(at.target).map(|json| Target::parse(&json)).transpose()?,
        };
        if let Some(username) = given.username {
            limits::username(username)?;
        }
        if let Some(description) = args.text(at.description) {
            limits::description(description)?;
        }
        if let Some(interval) = args.interval(at.rotation_interval) {
            limits::rotation_interval(parts(interval))?;
        }
        if let Some(interval) = args.interval(at.grace_period) {
            limits::grace_period(parts(interval))?;
        }
        if let Some(interval) = args.interval(at.expires_in) {
            limits::expires_in(parts(interval))?;
        }
        if let Some(metadata) = args.jsonb(at.metadata) {
            limits::metadata(&metadata)?;
        }
        if let Some(keep) = given.keep_versions {
            limits::keep_versions(keep)?;
        }
        match args.cidr_array(at.allowed_ips) {
            Some(Ok(list)) if list.len() > MAX_ITEMS => {
                return Err(VaultError::new(Kind::Invalid, "allowed_ips has too many entries")
                    .detail(format!("It has {}; at most {MAX_ITEMS} are allowed.", list.len()))
                    .hint("Combine addresses into networks: every read looks at all of them."));
            }
            Some(Ok(list)) if !list.is_empty() => {}
            None => {}
            _ => {
                return Err(VaultError::new(Kind::Invalid, "allowed_ips must hold addresses and no NULL")
                    .hint("Use for example '{10.0.0.0/8}'; NULL means that hyperion_vault.allowed_ips alone decides."));
            }
        }
        Ok(given)
    }
}

fn checked_value(value: &str) -> Result<&str> {
    limits::text_value(value, config::max_secret_bytes())?;
    Ok(value)
}

impl Given<'_> {
    pub fn properties(&self) -> Properties {
        Properties {
            automatic: self.automatic,
            description: self.description,
            metadata: self.metadata,
            rotation_interval: self.rotation_interval,
            grace_period: self.grace_period,
            generator: self.generator.as_ref().map(|(_, datum)| *datum),
            allowed_ips: self.allowed_ips,
            keep_versions: self.keep_versions,
            expires_in: self.expires_in,
        }
    }
}

/// A value argument of type bytea.
pub fn bytes(argument: Option<&[u8]>) -> Result<&[u8]> {
    let value = argument.ok_or_else(|| gate::null("value"))?;
    limits::binary_value(value, config::max_secret_bytes())?;
    Ok(value)
}

/// A recovery window, and whether it is longer than nothing.
pub fn recovery_window(args: &Args, position: usize) -> Result<(Datum, bool)> {
    let (Some(interval), Some(datum)) = (args.interval(position), args.datum(position)) else {
        return Err(gate::null("recovery_window"));
    };
    Ok((datum, limits::recovery_window(parts(interval))?.micros() > 0))
}

/// A value argument of `put_secret`.
pub fn value(argument: Option<&str>) -> Result<&str> {
    checked_value(argument.ok_or_else(|| gate::null("value"))?)
}

fn parts((months, days, micros): (i32, i32, i64)) -> IntervalParts {
    IntervalParts { months, days, micros }
}
