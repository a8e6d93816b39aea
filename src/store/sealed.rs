//! The whole vault as rows, out and in: what `export_sealed` and `import_sealed` ask of the tables.
//!
//! Client backends, main thread. The trap it avoids: a version that is in two places, or in none, because it was
//! superseded between two queries. One statement reads both tables under one snapshot.

use std::collections::BTreeMap;

use hyperion_vault_core::IpNet;
use hyperion_vault_core::envelope::{Format, Id};
use hyperion_vault_core::export::{Secret, Superseded, Version};
use hyperion_vault_core::secret::{IntervalParts, Timestamp};
use pgrx::pg_sys::{self, Datum};

use super::secrets::unreadable;
use crate::error::Result;
use crate::pg::datum;
use crate::pg::spi::{Bind, Row, Spi, Statement};

static SIZE: Statement = Statement::query(
    c"SELECT coalesce(sum(octet_length(sealed)::int8), 0)::int8 FROM
        (SELECT sealed FROM vault.secrets UNION ALL SELECT sealed FROM vault.secret_versions) v",
    &[],
);

/// How many bytes all sealed values have together. Reads none of them.
pub fn size(spi: &Spi) -> Result<i64> {
    let rows = spi.run(&SIZE, &[])?;
    Ok(rows.first().and_then(|row| row.bigint(1)).unwrap_or(0))
}

/// The columns that both tables have come first, in the order of `version()`.
static ALL: Statement = Statement::query(
    c"SELECT id, version_id, version, format, wrapped_dek, sealed, kms_key_id, kms_key_material_id, version_created_at,
        NULL::timestamptz, NULL::timestamptz, name, kind = 'automatic', description, metadata, rotation_interval, grace_period,
        next_rotation_at, generator, allowed_ips, keep_versions, created_at, updated_at, expires_at, recover_until, target
      FROM vault.secrets
      WHERE (expires_at IS NULL OR expires_at > clock_timestamp()) AND (recover_until IS NULL OR recover_until > clock_timestamp())
      UNION ALL
      SELECT secret_id, version_id, version, format, wrapped_dek, sealed, kms_key_id, kms_key_material_id, created_at,
        superseded_at, expires_at, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
      FROM vault.secret_versions",
    &[],
);

/// Every secret with all its versions, by name; deleted ones too while they can be restored, but none that is gone.
pub fn all(spi: &Spi) -> Result<Vec<Secret>> {
    let rows = spi.run(&ALL, &[])?;
    let mut secrets = Vec::new();
    let mut superseded: BTreeMap<Id, Vec<Superseded>> = BTreeMap::new();
    for row in rows.iter() {
        let id = row.uuid(1).ok_or_else(unreadable)?;
        match text(&row, 12) {
            Some(name) => secrets.push(secret(&row, id, name).ok_or_else(unreadable)?),
            None => superseded.entry(id).or_default().push(version_of(&row).ok_or_else(unreadable)?),
        }
    }
    for secret in &mut secrets {
        // What is left over has no secret any more, or one that is gone.
        secret.superseded = superseded.remove(&secret.id).unwrap_or_default();
        secret.superseded.sort_by_key(|superseded| superseded.version.number);
    }
    secrets.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(secrets)
}

fn text(row: &Row<'_>, column: i32) -> Option<String> {
    row.bytes(column).and_then(|bytes| std::str::from_utf8(bytes).ok()).map(str::to_owned)
}

fn time(row: &Row<'_>, column: i32) -> Option<Timestamp> {
    row.bigint(column).map(Timestamp)
}

fn version(row: &Row<'_>) -> Option<Version> {
    Some(Version {
        id: row.uuid(2)?,
        number: row.int(3)?,
        wrapped_dek: row.bytes(5)?.to_vec(),
        sealed: row.bytes(6)?.to_vec(),
        kms_key_id: text(row, 7)?,
        kms_key_material_id: text(row, 8),
        created_at: time(row, 9)?,
    })
}

fn version_of(row: &Row<'_>) -> Option<Superseded> {
    Some(Superseded { version: version(row)?, superseded_at: time(row, 10)?, expires_at: time(row, 11) })
}

fn secret(row: &Row<'_>, id: Id, name: String) -> Option<Secret> {
    let interval =
        |column| row.interval(column).map(|(months, days, micros)| IntervalParts { months, days, micros });
    Some(Secret {
        id,
        name,
        automatic: row.bool(13)?,
        format: Format::parse(&text(row, 4)?)?,
        current: version(row)?,
        description: text(row, 14),
        metadata: row.jsonb(15),
        rotation_interval: interval(16),
        grace_period: interval(17),
        next_rotation_at: time(row, 18),
        generator: row.jsonb(19),
        allowed_ips: match row.cidr_array(20) {
            None => None,
            Some(list) => Some(list?),
        },
        keep_versions: row.int(21),
        created_at: time(row, 22)?,
        updated_at: time(row, 23)?,
        expires_at: time(row, 24),
        recover_until: time(row, 25),
        target: row.jsonb(26),
        superseded: Vec::new(),
    })
}

static INSERT: Statement = Statement::new(
    c"INSERT INTO vault.secrets (id, version_id, version, format, wrapped_dek, sealed, kms_key_id, kms_key_material_id,
        version_created_at, name, kind, description, metadata, rotation_interval, grace_period, next_rotation_at, generator,
        allowed_ips, keep_versions, created_at, updated_at, expires_at, recover_until, grace_until, target)
      VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10,
        CASE WHEN $11 THEN 'automatic'::vault.secret_kind ELSE 'manual'::vault.secret_kind END,
        $12, $13, $14, $15, $16, $17, $18::cidr[], $19, $20, $21, $22, $23, coalesce($24, '-infinity'), $25)
      ON CONFLICT DO NOTHING RETURNING true",
    &[
        pg_sys::UUIDOID,
        pg_sys::UUIDOID,
        pg_sys::INT4OID,
        pg_sys::TEXTOID,
        pg_sys::BYTEAOID,
        pg_sys::BYTEAOID,
        pg_sys::TEXTOID,
        pg_sys::TEXTOID,
        pg_sys::TIMESTAMPTZOID,
        pg_sys::TEXTOID,
        pg_sys::BOOLOID,
        pg_sys::TEXTOID,
        pg_sys::JSONBOID,
        pg_sys::INTERVALOID,
        pg_sys::INTERVALOID,
        pg_sys::TIMESTAMPTZOID,
        pg_sys::JSONBOID,
        pg_sys::TEXTOID,
        pg_sys::INT4OID,
        pg_sys::TIMESTAMPTZOID,
        pg_sys::TIMESTAMPTZOID,
        pg_sys::TIMESTAMPTZOID,
        pg_sys::TIMESTAMPTZOID,
        pg_sys::TIMESTAMPTZOID,
        pg_sys::JSONBOID,
    ],
);

static INSERT_SUPERSEDED: Statement = Statement::new(
    c"INSERT INTO vault.secret_versions (secret_id, version_id, version, format, wrapped_dek, sealed, kms_key_id,
        kms_key_material_id, created_at, superseded_at, expires_at)
      VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
      ON CONFLICT DO NOTHING RETURNING true",
    &[
        pg_sys::UUIDOID,
        pg_sys::UUIDOID,
        pg_sys::INT4OID,
        pg_sys::TEXTOID,
        pg_sys::BYTEAOID,
        pg_sys::BYTEAOID,
        pg_sys::TEXTOID,
        pg_sys::TEXTOID,
        pg_sys::TIMESTAMPTZOID,
        pg_sys::TIMESTAMPTZOID,
        pg_sys::TIMESTAMPTZOID,
    ],
);

/// Inserts a secret with all its versions; false if its name or id, or one of its versions, is there already.
pub fn insert(spi: &Spi, s: &Secret) -> Result<bool> {
    let interval = |parts: Option<IntervalParts>| {
        Bind::Raw(parts.map(|parts| datum::interval_from(parts.months, parts.days, parts.micros)))
    };
    let json = |json: &Option<String>| json.as_deref().map(datum::jsonb_from_text);
    // The text of an array: networks have no character that needs quoting in it.
    let networks = s.allowed_ips.as_ref().map(|list| {
        let items: Vec<String> = list.iter().map(IpNet::to_string).collect();
        format!("{{{}}}", items.join(","))
    });
    let mut binds = version_binds(s.id, s.format, &s.current);
    binds.extend([
        Bind::Text(&s.name),
        Bind::Bool(s.automatic),
        Bind::OptText(s.description.as_deref()),
        Bind::Raw(json(&s.metadata).transpose()?),
        interval(s.rotation_interval),
        interval(s.grace_period),
        Bind::Raw(s.next_rotation_at.map(stamp)),
        Bind::Raw(json(&s.generator).transpose()?),
        Bind::OptText(networks.as_deref()),
        Bind::OptInt(s.keep_versions),
        Bind::Raw(Some(stamp(s.created_at))),
        Bind::Raw(Some(stamp(s.updated_at))),
        Bind::Raw(s.expires_at.map(stamp)),
        Bind::Raw(s.recover_until.map(stamp)),
        Bind::Raw(s.superseded.iter().filter_map(|superseded| superseded.expires_at).max().map(stamp)),
        Bind::Raw(json(&s.target).transpose()?),
    ]);
    if spi.run(&INSERT, &binds)?.first().is_none() {
        return Ok(false);
    }
    for superseded in &s.superseded {
        let mut binds = version_binds(s.id, s.format, &superseded.version);
        binds.push(Bind::Raw(Some(stamp(superseded.superseded_at))));
        binds.push(Bind::Raw(superseded.expires_at.map(stamp)));
        if spi.run(&INSERT_SUPERSEDED, &binds)?.first().is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn version_binds(secret: Id, format: Format, version: &Version) -> Vec<Bind<'_>> {
    vec![
        Bind::Uuid(secret),
        Bind::Uuid(version.id),
        Bind::Int(version.number),
        Bind::Text(format.as_str()),
        Bind::Bytes(&version.wrapped_dek),
        Bind::Bytes(&version.sealed),
        Bind::Text(&version.kms_key_id),
        Bind::OptText(version.kms_key_material_id.as_deref()),
        Bind::Raw(Some(stamp(version.created_at))),
    ]
}

fn stamp(at: Timestamp) -> Datum {
    Datum::from(at.0)
}
