//! Changes to the properties of a secret, beside its value.
//!
//! Client backends on a primary, main thread. The trap it avoids: NULL that means "leave as it is" for one property and
//! "clear" for the next; clearing is always by name, in `reset`.

use hyperion_vault_core::envelope::Id;
use hyperion_vault_core::secret::Target;
use pgrx::pg_sys::{self, Datum};

use super::secrets::{CIDR_ARRAY, Properties, TIMESTAMPTZ, returned};
use super::sql::{info, sql};
use crate::error::{Kind, Result, VaultError};
use crate::pg::spi::{Bind, Spi, Statement};

/// Changes to a secret's properties: None leaves one as it is unless it is named in `reset`.
#[derive(Default)]
pub struct Changes {
    pub properties: Properties,
    /// `text[]` of property names.
    pub reset: Option<Datum>,
    pub target: TargetChange,
}

/// What becomes of a secret's target.
#[derive(Default, PartialEq)]
pub enum TargetChange {
    #[default]
    Keep,
    /// By the current role.
    Set(Target),
    Clear,
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        let Properties {
            automatic,
            description,
            metadata,
            rotation_interval,
            grace_period,
            generator,
            allowed_ips,
            keep_versions,
            expires_in,
        } = &self.properties;
        let datums = [
            description,
            metadata,
            rotation_interval,
            grace_period,
            generator,
            allowed_ips,
            expires_in,
            &self.reset,
        ];
        automatic.is_none()
            && keep_versions.is_none()
            && self.target == TargetChange::Keep
            && datums.iter().all(|datum| datum.is_none())
    }
}

/// The properties `reset` may name.
pub const RESETTABLE: [&str; 9] = [
    "description",
    "metadata",
    "rotation_interval",
    "grace_period",
    "generator",
    "allowed_ips",
    "keep_versions",
    "expires_in",
    "target",
];

static CHANGE: Statement = Statement::new(
    sql!(
        "WITH new AS (SELECT o.id, \
           CASE WHEN $2 IS NULL THEN o.kind WHEN $2 THEN 'automatic'::vault.secret_kind ELSE 'manual'::vault.secret_kind END AS kind, \
           CASE WHEN 'description' = ANY ($11) THEN NULL ELSE coalesce($3, o.description) END AS description, \
           CASE WHEN 'metadata' = ANY ($11) THEN NULL ELSE coalesce($4, o.metadata) END AS metadata, \
           CASE WHEN 'rotation_interval' = ANY ($11) THEN NULL ELSE coalesce($5, o.rotation_interval) END AS rotation_interval, \
           CASE WHEN 'grace_period' = ANY ($11) THEN NULL ELSE coalesce($6, o.grace_period) END AS grace_period, \
           CASE WHEN 'generator' = ANY ($11) THEN NULL ELSE coalesce($7, o.generator) END AS generator, \
           CASE WHEN 'allowed_ips' = ANY ($11) THEN NULL ELSE coalesce($8, o.allowed_ips) END AS allowed_ips, \
           CASE WHEN 'keep_versions' = ANY ($11) THEN NULL ELSE coalesce($9, o.keep_versions) END AS keep_versions, \
           CASE WHEN 'expires_in' = ANY ($11) THEN NULL ELSE coalesce($10 + $12, o.expires_at) END AS expires_at \
           FROM vault.secrets o WHERE o.id = $1) \
         UPDATE vault.secrets AS s SET kind = new.kind, description = new.description, metadata = new.metadata, \
           rotation_interval = new.rotation_interval, grace_period = new.grace_period, generator = new.generator, \
           allowed_ips = new.allowed_ips, keep_versions = new.keep_versions, expires_at = new.expires_at, \
           updated_at = $10, \
           next_rotation_at = CASE WHEN new.kind = 'manual' THEN NULL \
             WHEN s.kind = 'automatic' AND new.rotation_interval IS NOT DISTINCT FROM s.rotation_interval THEN s.next_rotation_at \
             ELSE $10 + new.rotation_interval END, \
           rotation_attempts = NULL, rotation_error = NULL, rotation_retry_at = NULL \
         FROM new WHERE s.id = new.id \
         RETURNING ",
        info!(),
        ", s.kind = 'automatic' AND s.rotation_interval IS NULL, s.keep_versions"
    ),
    &[
        pg_sys::UUIDOID,
        pg_sys::BOOLOID,
        pg_sys::TEXTOID,
        pg_sys::JSONBOID,
        pg_sys::INTERVALOID,
        pg_sys::INTERVALOID,
        pg_sys::JSONBOID,
        CIDR_ARRAY,
        pg_sys::INT4OID,
        TIMESTAMPTZ,
        pg_sys::TEXTARRAYOID,
        pg_sys::INTERVALOID,
    ],
);

/// Changes the properties of a secret whose row is locked. Returns its info and its `keep_versions` as they are now.
pub fn change(spi: &Spi, id: Id, changes: &Changes, now: Datum) -> Result<(Datum, Option<i32>)> {
    let properties = &changes.properties;
    let rows = spi.run(
        &CHANGE,
        &[
            Bind::Uuid(id),
            Bind::Raw(properties.automatic.map(Datum::from)),
            Bind::Raw(properties.description),
            Bind::Raw(properties.metadata),
            Bind::Raw(properties.rotation_interval),
            Bind::Raw(properties.grace_period),
            Bind::Raw(properties.generator),
            Bind::Raw(properties.allowed_ips),
            Bind::OptInt(properties.keep_versions),
            Bind::Raw(Some(now)),
            Bind::Raw(changes.reset),
            Bind::Raw(properties.expires_in),
        ],
    )?;
    let row = rows.first();
    if row.as_ref().and_then(|row| row.bool(2)).unwrap_or(false) {
        return Err(missing_interval());
    }
    let keep_versions = row.as_ref().and_then(|row| row.int(3));
    Ok((returned(row)?, keep_versions))
}

pub fn missing_interval() -> VaultError {
    VaultError::new(Kind::Invalid, "an automatic secret needs a rotation_interval")
        .hint("Pass rotation_interval => '30 days', or kind => 'manual'.")
}
