//! The whole vault as rows, out and in: what `export_sealed` and `import_sealed` ask of the tables.
//!
//! Client backends, main thread. The trap it avoids: a version that is in two places, or in none, because it was
//! superseded between two looks. Both tables are read under one snapshot.

use std::collections::BTreeMap;

use hyperion_vault_core::IpNet;
use hyperion_vault_core::envelope::{Format, Id};
use hyperion_vault_core::export::{Secret, Superseded, Version};
use hyperion_vault_core::secret::{IntervalParts, Presence, Timestamp};
use pgrx::pg_sys::Datum;

use super::secrets::{self, SECRETS, column, is_automatic, presence, unreadable};
use super::versions::{self, VERSIONS};
use super::{derived, versions::column as superseded};
use crate::error::Result;
use crate::pg::datum;
use crate::pg::heap::{Assignment, Wait, Write};
use crate::pg::scan::{Key, Snapshot};
use crate::pg::tuple::Tuple;

/// How many bytes all sealed values have together, at the moment. Reads none of them.
pub fn size() -> Result<i64> {
    let mut size = 0_i64;
    let mut add = |row: &Tuple<'_>, column| {
        size += row.length(column).unwrap_or(0) as i64;
        Ok(true)
    };
    SECRETS.with(|table| table.all(None, |row| add(row, column::SEALED)))?;
    VERSIONS.with(|table| table.all(None, |row| add(row, superseded::SEALED)))?;
    Ok(size)
}

/// Every secret with all its versions, by name; deleted ones too while they can be restored, but none that is gone.
pub fn all() -> Result<Vec<Secret>> {
    // Before the snapshot: a rewrite in between could give rows a newer origin than it sees.
    SECRETS.with(|table| table.lock_for_reading())?;
    VERSIONS.with(|table| table.lock_for_reading())?;
    let snapshot = Snapshot::latest();
    let mut secrets = Vec::new();
    SECRETS.with(|table| {
        table.all(Some(&snapshot), |row| {
            pgrx::check_for_interrupts!();
            let ends = (row.timestamp(column::EXPIRES_AT), row.timestamp(column::RECOVER_UNTIL));
            if presence(ends.0, ends.1) != Presence::Gone {
                secrets.push(secret(row).ok_or_else(unreadable)?);
            }
            Ok(true)
        })
    })?;
    let mut versions: BTreeMap<Id, Vec<Superseded>> = BTreeMap::new();
    VERSIONS.with(|table| {
        table.all(Some(&snapshot), |row| {
            pgrx::check_for_interrupts!();
            let secret = row.uuid(superseded::SECRET_ID).ok_or_else(unreadable)?;
            versions.entry(secret).or_default().push(superseded_version(row).ok_or_else(unreadable)?);
            Ok(true)
        })
    })?;
    for secret in &mut secrets {
        // What is left over has no secret any more, or one that is gone.
        secret.superseded = versions.remove(&secret.id).unwrap_or_default();
        secret.superseded.sort_by_key(|superseded| superseded.version.number);
    }
    secrets.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(secrets)
}

fn text(row: &Tuple<'_>, column: i16) -> Option<String> {
    row.text(column).map(str::to_owned)
}

fn time(row: &Tuple<'_>, column: i16) -> Option<Timestamp> {
    row.timestamp(column).map(Timestamp)
}

fn superseded_version(row: &Tuple<'_>) -> Option<Superseded> {
    let version = Version {
        id: row.uuid(superseded::VERSION_ID)?,
        number: row.int(superseded::VERSION)?,
        wrapped_dek: row.bytes(superseded::WRAPPED_DEK)?.to_vec(),
        sealed: row.bytes(superseded::SEALED)?.to_vec(),
        kms_key_id: text(row, superseded::KMS_KEY_ID)?,
        kms_key_material_id: text(row, superseded::KMS_KEY_MATERIAL_ID),
        created_at: time(row, superseded::CREATED_AT)?,
    };
    Some(Superseded {
        version,
        superseded_at: time(row, superseded::SUPERSEDED_AT)?,
        expires_at: time(row, superseded::EXPIRES_AT),
    })
}

fn secret(row: &Tuple<'_>) -> Option<Secret> {
    let interval =
        |column| row.interval(column).map(|(months, days, micros)| IntervalParts { months, days, micros });
    Some(Secret {
        id: row.uuid(column::ID)?,
        name: text(row, column::NAME)?,
        automatic: is_automatic(row),
        format: Format::parse(row.text(column::FORMAT)?)?,
        current: Version {
            id: row.uuid(column::VERSION_ID)?,
            number: row.int(column::VERSION)?,
            wrapped_dek: row.bytes(column::WRAPPED_DEK)?.to_vec(),
            sealed: row.bytes(column::SEALED)?.to_vec(),
            kms_key_id: text(row, column::KMS_KEY_ID)?,
            kms_key_material_id: text(row, column::KMS_KEY_MATERIAL_ID),
            created_at: time(row, column::VERSION_CREATED_AT)?,
        },
        description: text(row, column::DESCRIPTION),
        metadata: row.jsonb(column::METADATA),
        rotation_interval: interval(column::ROTATION_INTERVAL),
        grace_period: interval(column::GRACE_PERIOD),
        next_rotation_at: time(row, column::NEXT_ROTATION_AT),
        generator: row.jsonb(column::GENERATOR),
        allowed_ips: match row.cidr_array(column::ALLOWED_IPS) {
            None => None,
            Some(list) => Some(list?),
        },
        keep_versions: row.int(column::KEEP_VERSIONS),
        created_at: time(row, column::CREATED_AT)?,
        updated_at: time(row, column::UPDATED_AT)?,
        expires_at: time(row, column::EXPIRES_AT),
        recover_until: time(row, column::RECOVER_UNTIL),
        target: row.jsonb(column::TARGET),
        superseded: Vec::new(),
    })
}

/// Inserts a secret with all its versions; false if its name or id, or one of its versions, is there already.
pub fn insert(write: &Write, s: &Secret) -> Result<bool> {
    let id_is_taken = SECRETS
        .with(|table| table.point(secrets::BY_ID, &[Key::Uuid(s.id)], None, |row| Ok(row.is_some())))?;
    if id_is_taken || !versions::keys(s.id)?.is_empty() {
        return Ok(false);
    }
    let interval = |parts: Option<IntervalParts>| {
        parts.map(|parts| datum::interval_from(parts.months, parts.days, parts.micros))
    };
    let json = |json: &Option<String>| json.as_deref().map(datum::jsonb_from_text).transpose();
    // The text of an array: networks have no character that needs quoting in it.
    let networks = s.allowed_ips.as_ref().map(|list| {
        let items: Vec<String> = list.iter().map(IpNet::to_string).collect();
        datum::cidr_array_from_text(&format!("{{{}}}", items.join(",")))
    });
    let text = |text: &str| datum::varlena(text.as_bytes());
    let time = |at: Timestamp| Datum::from(at.0);
    let last_grace = s.superseded.iter().filter_map(|superseded| superseded.expires_at).max();
    let current = &s.current;
    let values: Vec<Assignment> = vec![
        (column::ID, Some(datum::uuid(s.id))),
        (column::VERSION_ID, Some(datum::uuid(current.id))),
        (column::VERSION, Some(Datum::from(current.number))),
        (column::NAME, Some(text(&s.name))),
        (column::FORMAT, Some(text(s.format.as_str()))),
        (column::WRAPPED_DEK, Some(datum::varlena(&current.wrapped_dek))),
        (column::SEALED, Some(datum::varlena(&current.sealed))),
        (column::KMS_KEY_ID, Some(text(&current.kms_key_id))),
        (column::KMS_KEY_MATERIAL_ID, current.kms_key_material_id.as_deref().map(text)),
        (column::KIND, Some(secrets::kind_label(s.automatic))),
        (column::DESCRIPTION, s.description.as_deref().map(text)),
        (column::METADATA, json(&s.metadata)?),
        (column::ROTATION_INTERVAL, interval(s.rotation_interval)),
        (column::GRACE_PERIOD, interval(s.grace_period)),
        (column::NEXT_ROTATION_AT, s.next_rotation_at.map(time)),
        (column::GENERATOR, json(&s.generator)?),
        (column::ALLOWED_IPS, networks.transpose()?),
        (column::KEEP_VERSIONS, s.keep_versions.map(Datum::from)),
        (column::CREATED_AT, Some(time(s.created_at))),
        (column::UPDATED_AT, Some(time(s.updated_at))),
        (column::VERSION_CREATED_AT, Some(time(current.created_at))),
        (column::EXPIRES_AT, s.expires_at.map(time)),
        (column::RECOVER_UNTIL, s.recover_until.map(time)),
        (column::GRACE_UNTIL, Some(Datum::from(last_grace.map_or(i64::MIN, |end| end.0)))),
        (column::TARGET, json(&s.target)?),
    ];
    if secrets::insert_row(Wait::Block, write, &s.name, &values)?.is_none() {
        return Ok(false);
    }
    for Superseded { version, superseded_at, expires_at } in &s.superseded {
        VERSIONS.with(|table| {
            table.insert(
                write,
                &[
                    (superseded::SECRET_ID, Some(datum::uuid(s.id))),
                    (superseded::VERSION_ID, Some(datum::uuid(version.id))),
                    (superseded::VERSION, Some(Datum::from(version.number))),
                    (superseded::FORMAT, Some(text(s.format.as_str()))),
                    (superseded::WRAPPED_DEK, Some(datum::varlena(&version.wrapped_dek))),
                    (superseded::SEALED, Some(datum::varlena(&version.sealed))),
                    (superseded::KMS_KEY_ID, Some(text(&version.kms_key_id))),
                    (superseded::KMS_KEY_MATERIAL_ID, version.kms_key_material_id.as_deref().map(text)),
                    (superseded::CREATED_AT, Some(time(version.created_at))),
                    (superseded::SUPERSEDED_AT, Some(time(*superseded_at))),
                    (superseded::EXPIRES_AT, expires_at.map(time)),
                    (superseded::SETTLED, Some(Datum::from(false))),
                ],
            )
        })?;
        if let Some(end) = expires_at {
            derived::grace_ends(write, s.id, end.0)?;
        }
    }
    Ok(true)
}
