//! `vault.secret_versions`: superseded versions, in grace or retained.
//!
//! Client backends, main thread. Whether a version is in grace is a matter of the clock, not of a background job:
//! it is judged at each read.

use hyperion_vault_core::envelope::{Format, Id};
use hyperion_vault_core::secret::version::{Superseded, Timestamp, versions_to_purge};
use pgrx::pg_sys::{self, Datum};

use super::secrets::{Sealed, Stored, unreadable};
use crate::area;
use crate::error::Result;
use crate::pg::scan::{IndexedTable, Key};
use crate::pg::spi::{Bind, Row, Spi, Statement};
use crate::pg::tuple::Tuple;
use crate::store::sql::{live, sql};

thread_local! {
    static VERSIONS: IndexedTable = const {
        IndexedTable::new(c"secret_versions", c"secret_versions_pkey", &[column::SECRET_ID, column::VERSION])
    };
}

/// Column numbers of sql/20_schema.sql.
mod column {
    pub const SECRET_ID: i16 = 1;
    pub const VERSION_ID: i16 = 2;
    pub const VERSION: i16 = 3;
    pub const FORMAT: i16 = 4;
    pub const WRAPPED_DEK: i16 = 5;
    pub const SEALED: i16 = 6;
    pub const KMS_KEY_ID: i16 = 7;
    pub const CREATED_AT: i16 = 9;
    pub const EXPIRES_AT: i16 = 11;
}

fn read<'a>(row: &Tuple<'a>) -> Option<Stored<'a>> {
    Some(Stored {
        secret: row.uuid(column::SECRET_ID)?,
        version_id: row.uuid(column::VERSION_ID)?,
        version: row.int(column::VERSION)?,
        format: Format::parse(row.text(column::FORMAT)?)?,
        wrapped: row.bytes(column::WRAPPED_DEK)?,
        key_id: row.text(column::KMS_KEY_ID)?,
        sealed: row.bytes(column::SEALED)?,
        created_at: row.timestamp(column::CREATED_AT)?,
        expires_at: row.timestamp(column::EXPIRES_AT),
    })
}

/// Visits a superseded version by its number, in whatever state.
pub fn visit<R>(secret: Id, version: i32, visit: impl FnOnce(Option<&Stored<'_>>) -> Result<R>) -> Result<R> {
    let places = area::get().ok().map(|area| area.places());
    VERSIONS.with(|table| {
        table.point(&[Key::Uuid(secret), Key::Int(version)], places, |row| match row {
            None => visit(None),
            Some(row) => visit(Some(&read(row).ok_or_else(unreadable)?)),
        })
    })
}

/// A superseded version by its number, in whatever state.
pub fn by_number(secret: Id, version: i32) -> Result<Option<Sealed>> {
    visit(secret, version, |found| Ok(found.map(|found| found.to_sealed())))
}

/// All superseded versions, in whatever state.
pub fn all(secret: Id) -> Result<Vec<Sealed>> {
    let mut found = Vec::new();
    VERSIONS.with(|table| {
        table.each(&[Key::Uuid(secret)], |row| {
            found.push(read(row).ok_or_else(unreadable)?.to_sealed());
            Ok(true)
        })
    })?;
    Ok(found)
}

/// The superseded versions still in grace at `now`, newest first.
pub fn in_grace(secret: Id, now: i64) -> Result<Vec<Sealed>> {
    let mut found = Vec::new();
    VERSIONS.with(|table| {
        table.each(&[Key::Uuid(secret)], |row| {
            // Judged before anything is copied: retained versions may be many and large.
            if row.timestamp(column::EXPIRES_AT).is_some_and(|end| end > now) {
                found.push(read(row).ok_or_else(unreadable)?.to_sealed());
            }
            Ok(true)
        })
    })?;
    found.sort_by_key(|version: &Sealed| std::cmp::Reverse(version.version));
    Ok(found)
}

static KEEP: Statement = Statement::new(
    c"INSERT INTO vault.secret_versions (secret_id, version_id, version, format, wrapped_dek, sealed, kms_key_id,
        kms_key_material_id, created_at, superseded_at, expires_at)
      SELECT s.id, s.version_id, s.version, s.format, s.wrapped_dek, s.sealed, s.kms_key_id, s.kms_key_material_id,
        s.version_created_at, $2, CASE WHEN s.grace_period > interval '0' THEN $2 + s.grace_period END
      FROM vault.secrets s WHERE s.id = $1 RETURNING expires_at",
    &[pg_sys::UUIDOID, pg_sys::TIMESTAMPTZOID],
);

/// Keeps the current version of a locked secret, which is about to be replaced: in grace if the secret has a grace
/// period, else retained. Returns the end of its grace, which is `secrets::replace`'s too, which remembers it in
/// `grace_until`: whatever else ever prolongs a grace must do so as well.
pub fn keep_current(spi: &Spi, secret: Id, now: Datum) -> Result<Option<i64>> {
    let rows = spi.run(&KEEP, &[Bind::Uuid(secret), Bind::Raw(Some(now))])?;
    Ok(rows.first().and_then(|row| row.timestamp(1)))
}

static END_GRACE: Statement = Statement::new(
    c"UPDATE vault.secret_versions SET expires_at = $3 WHERE secret_id = $1 AND version = $2 AND expires_at > $3",
    &[pg_sys::UUIDOID, pg_sys::INT4OID, pg_sys::TIMESTAMPTZOID],
);

/// Ends the grace of a superseded version of a locked secret now.
pub fn end_grace(spi: &Spi, secret: Id, version: i32, now: Datum) -> Result<()> {
    let binds = [Bind::Uuid(secret), Bind::Int(version), Bind::Raw(Some(now))];
    spi.run(&END_GRACE, &binds).map(drop)
}

static KEYS: Statement = Statement::new(
    c"SELECT version, version_id, wrapped_dek FROM vault.secret_versions WHERE secret_id = $1",
    &[pg_sys::UUIDOID],
);

/// A version and its key as it is stored.
pub struct StoredKey {
    pub version: i32,
    pub version_id: Id,
    pub wrapped: Vec<u8>,
}

impl StoredKey {
    /// From a row of a version's number, id and wrapped DEK.
    pub fn of(row: Row<'_>) -> Option<Self> {
        Some(Self { version: row.int(1)?, version_id: row.uuid(2)?, wrapped: row.bytes(3)?.to_vec() })
    }
}

/// The keys of all superseded versions of a locked secret.
pub fn keys(spi: &Spi, secret: Id) -> Result<Vec<StoredKey>> {
    Ok(spi.run(&KEYS, &[Bind::Uuid(secret)])?.iter().filter_map(StoredKey::of).collect())
}

static SEAL_AGAIN: Statement = Statement::new(
    c"UPDATE vault.secret_versions SET sealed = $3 WHERE secret_id = $1 AND version = $2",
    &[pg_sys::UUIDOID, pg_sys::INT4OID, pg_sys::BYTEAOID],
);

/// Replaces the sealed bytes of a superseded version of a locked secret, which is being renamed.
pub fn seal_again(spi: &Spi, version: &Sealed, sealed: &[u8]) -> Result<()> {
    let binds = [Bind::Uuid(version.secret), Bind::Int(version.version), Bind::Bytes(sealed)];
    spi.run(&SEAL_AGAIN, &binds).map(drop)
}

static SUPERSEDED: Statement = Statement::query(
    c"SELECT version, expires_at FROM vault.secret_versions WHERE secret_id = $1",
    &[pg_sys::UUIDOID],
);
static PURGE: Statement = Statement::new(
    c"DELETE FROM vault.secret_versions WHERE secret_id = $1 AND version = $2 RETURNING version, version_id, wrapped_dek",
    &[pg_sys::UUIDOID, pg_sys::INT4OID],
);

/// Deletes the retained versions of a locked secret beyond the newest `keep`, and returns them.
pub fn purge(spi: &Spi, secret: Id, keep: u32, now: i64) -> Result<Vec<StoredKey>> {
    let superseded: Vec<Superseded> = {
        let rows = spi.run(&SUPERSEDED, &[Bind::Uuid(secret)])?;
        rows.iter()
            .filter_map(|row| {
                Some(Superseded { version: row.int(1)?, expires_at: row.bigint(2).map(Timestamp) })
            })
            .collect()
    };
    let mut purged = Vec::new();
    for version in versions_to_purge(Timestamp(now), &superseded, keep) {
        let rows = spi.run(&PURGE, &[Bind::Uuid(secret), Bind::Int(version)])?;
        purged.extend(rows.iter().filter_map(StoredKey::of));
    }
    Ok(purged)
}

static DELETE_ALL: Statement = Statement::new(
    c"DELETE FROM vault.secret_versions WHERE secret_id = $1 RETURNING version, version_id, wrapped_dek",
    &[pg_sys::UUIDOID],
);

/// Deletes every superseded version of a locked secret, which is about to be deleted itself, and returns them.
pub fn delete_all(spi: &Spi, secret: Id) -> Result<Vec<StoredKey>> {
    let rows = spi.run(&DELETE_ALL, &[Bind::Uuid(secret)])?;
    Ok(rows.iter().filter_map(StoredKey::of).collect())
}

static LIST: Statement = Statement::query(
    sql!(
        "SELECT s.version, s.version_created_at, NULL::timestamptz, s.kms_key_id, true \
           FROM vault.secrets s WHERE s.name = $1 AND ",
        live!(),
        " UNION ALL \
         SELECT v.version, v.created_at, v.expires_at, v.kms_key_id, false \
           FROM vault.secret_versions v JOIN vault.secrets s ON v.secret_id = s.id WHERE s.name = $1 AND ",
        live!(),
        " ORDER BY 1 DESC"
    ),
    &[pg_sys::TEXTOID],
);

/// One version as `vault.list_versions` shows it.
pub struct Listed {
    pub version: i32,
    pub created_at: Option<Datum>,
    pub expires_at: Option<Datum>,
    pub kms_key_id: Option<Datum>,
    pub current: bool,
}

/// All versions of a secret, newest first; none if there is no such secret.
pub fn list(spi: &Spi, name: &str, mut each: impl FnMut(Listed) -> Result<()>) -> Result<usize> {
    let rows = spi.run(&LIST, &[Bind::Text(name)])?;
    for row in rows.iter() {
        each(Listed {
            version: row.int(1).ok_or_else(unreadable)?,
            created_at: row.raw(2),
            expires_at: row.raw(3),
            kms_key_id: row.raw(4),
            current: row.bool(5).unwrap_or(false),
        })?;
    }
    Ok(rows.len())
}

static COUNT: Statement = Statement::query(
    c"SELECT count(*), count(*) FILTER (WHERE expires_at > clock_timestamp()) FROM vault.secret_versions",
    &[],
);

/// How many superseded versions there are, and how many of them are in grace.
pub fn count(spi: &Spi) -> Result<(i64, i64)> {
    let rows = spi.run(&COUNT, &[])?;
    Ok(rows.first().map_or((0, 0), |row| (row.bigint(1).unwrap_or(0), row.bigint(2).unwrap_or(0))))
}
