//! Arguments that `create_secret` and `update_secret` share, validated before anything is asked of anyone.
//!
//! Client backends, main thread. Positions are those of sql/30_functions.sql, the same in both functions. No error
//! here quotes a value: a caller who swapped two arguments must not find his secret in the log.

use hyperion_vault_core::policy::allowlist::MAX_ITEMS;
use hyperion_vault_core::secret::{Generator, IntervalParts, limits};
use pgrx::pg_sys::Datum;

use super::gate;
use crate::config;
use crate::error::{Kind, Result, VaultError};
use crate::pg::fcinfo::Args;

mod position {
    pub const VALUE: usize = 1;
    pub const KIND: usize = 2;
    pub const DESCRIPTION: usize = 3;
    pub const USERNAME: usize = 4;
    pub const PASSWORD: usize = 5;
    pub const ROTATION_INTERVAL: usize = 6;
    pub const GRACE_PERIOD: usize = 7;
    pub const GENERATOR: usize = 8;
    pub const METADATA: usize = 9;
    pub const ALLOWED_IPS: usize = 10;
    pub const KEEP_VERSIONS: usize = 11;
}

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
}

impl<'a> Given<'a> {
    pub fn parse(args: &'a Args) -> Result<Self> {
        let given = Self {
            value: args.text(position::VALUE).map(checked_value).transpose()?,
            username: args.text(position::USERNAME),
            password: args.text(position::PASSWORD).map(checked_value).transpose()?,
            automatic: args.enum_label(position::KIND).map(|label| label == "automatic"),
            description: args.datum(position::DESCRIPTION),
            rotation_interval: args.datum(position::ROTATION_INTERVAL),
            grace_period: args.datum(position::GRACE_PERIOD),
            generator: match (args.jsonb(position::GENERATOR), args.datum(position::GENERATOR)) {
                (Some(text), Some(datum)) => Some((Generator::parse(&text)?, datum)),
                _ => None,
            },
            metadata: args.datum(position::METADATA),
            allowed_ips: args.datum(position::ALLOWED_IPS),
            keep_versions: args.int(position::KEEP_VERSIONS),
        };
        if let Some(username) = given.username {
            limits::username(username)?;
        }
        if let Some(description) = args.text(position::DESCRIPTION) {
            limits::description(description)?;
        }
        if let Some(interval) = args.interval(position::ROTATION_INTERVAL) {
            limits::rotation_interval(parts(interval))?;
        }
        if let Some(interval) = args.interval(position::GRACE_PERIOD) {
            limits::grace_period(parts(interval))?;
        }
        if let Some(metadata) = args.jsonb(position::METADATA) {
            limits::metadata(&metadata)?;
        }
        if let Some(keep) = given.keep_versions {
            limits::keep_versions(keep)?;
        }
        match args.cidr_array(position::ALLOWED_IPS) {
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

/// A value argument of `put_secret`.
pub fn value(argument: Option<&str>) -> Result<&str> {
    checked_value(argument.ok_or_else(|| gate::null("value"))?)
}

fn parts((months, days, micros): (i32, i32, i64)) -> IntervalParts {
    IntervalParts { months, days, micros }
}
