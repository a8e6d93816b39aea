//! `vault.secrets`: a secret and its current version.
//!
//! Client backends, main thread. The trap it avoids: a row judged under the transaction's old snapshot; both the
//! scans and the statements here use the latest one, and writers lock the row before they decide.

use hyperion_vault_core::IpNet;
use hyperion_vault_core::envelope::{Format, Id};
use hyperion_vault_core::secret::{Presence, Timestamp};
use pgrx::pg_sys::{self, Datum};

use crate::area;
use crate::error::{Kind, Result, VaultError};
use crate::kms_client::Generated;
use crate::pg::scan::{IndexedTable, Key};
use crate::pg::spi::{Bind, Row, Spi, Statement};
use crate::pg::tuple::Tuple;
use crate::store::sql::{info, sql};
use crate::store::versions::StoredKey;

thread_local! {
    static BY_NAME: IndexedTable =
        const { IndexedTable::new(c"secrets", c"secrets_name_key", &[column::NAME]) };
}

/// Column numbers of sql/20_schema.sql.
mod column {
    pub const ID: i16 = 1;
    pub const VERSION_ID: i16 = 2;
    pub const VERSION: i16 = 3;
    pub const NAME: i16 = 4;
    pub const FORMAT: i16 = 5;
    pub const WRAPPED_DEK: i16 = 6;
    pub const SEALED: i16 = 7;
    pub const KMS_KEY_ID: i16 = 8;
    pub const KIND: i16 = 10;
    pub const ALLOWED_IPS: i16 = 17;
    pub const VERSION_CREATED_AT: i16 = 21;
    pub const EXPIRES_AT: i16 = 22;
    pub const RECOVER_UNTIL: i16 = 23;
    pub const GRACE_UNTIL: i16 = 24;
    pub const TARGET: i16 = 25;
}

/// A sealed version, current or not, where it is stored: a view of its row.
#[derive(Clone, Copy)]
pub struct Stored<'a> {
    pub secret: Id,
    pub version_id: Id,
    pub version: i32,
    pub format: Format,
    pub wrapped: &'a [u8],
    /// The key that wrapped it, for the key service.
    pub key_id: &'a str,
    pub sealed: &'a [u8],
    pub created_at: i64,
    /// End of its grace; None for the current version.
    pub expires_at: Option<i64>,
}

/// The same, taken along.
#[derive(Clone)]
pub struct Sealed {
    pub secret: Id,
    pub version_id: Id,
    pub version: i32,
    pub format: Format,
    pub wrapped: Vec<u8>,
    pub key_id: String,
    pub sealed: Vec<u8>,
    pub created_at: i64,
    pub expires_at: Option<i64>,
}

impl Stored<'_> {
    pub fn to_sealed(self) -> Sealed {
        Sealed { sealed: self.sealed.to_vec(), ..self.without_value() }
    }

    /// Enough to ask for its key, and to know it again.
    pub fn without_value(self) -> Sealed {
        Sealed {
            secret: self.secret,
            version_id: self.version_id,
            version: self.version,
            format: self.format,
            wrapped: self.wrapped.to_vec(),
            key_id: self.key_id.to_owned(),
            sealed: Vec::new(),
            created_at: self.created_at,
            expires_at: self.expires_at,
        }
    }

    /// Whether it is that version, under the same key.
    pub fn is(&self, other: &Sealed) -> bool {
        self.version_id == other.version_id && self.wrapped == other.wrapped
    }
}

impl Sealed {
    pub fn stored(&self) -> Stored<'_> {
        Stored {
            secret: self.secret,
            version_id: self.version_id,
            version: self.version,
            format: self.format,
            wrapped: &self.wrapped,
            key_id: &self.key_id,
            sealed: &self.sealed,
            created_at: self.created_at,
            expires_at: self.expires_at,
        }
    }
}

/// A secret as a reader needs it.
pub struct Current<'a> {
    pub version: Stored<'a>,
    /// The enum value, passed through to results.
    pub kind: Datum,
    pub allowed_ips: Option<Vec<IpNet>>,
    /// As of the moment it was looked up.
    pub presence: Presence,
    /// End of the last grace of any of its versions, in the past if there is none; None if it is not known.
    pub grace_until: Option<i64>,
}

/// Visits the row of that name as of now, be its secret live, deleted or gone: one look at its place, or one index descent.
pub fn visit<R>(name: &str, visit: impl FnOnce(Option<&Current<'_>>) -> Result<R>) -> Result<R> {
    let places = area::get().ok().map(|area| area.places());
    BY_NAME.with(|table| {
        table.point(&[Key::Text(name)], places, |row| match row {
            None => visit(None),
            Some(row) => visit(Some(&read_current(row).ok_or_else(unreadable)?)),
        })
    })
}

/// The live secret of that name as of now.
pub fn current(name: &str) -> Result<Option<Sealed>> {
    visit(name, |found| {
        let live = found.filter(|found| found.presence == Presence::Live);
        Ok(live.map(|found| found.version.to_sealed()))
    })
}

/// The live secret of that name as of now, and whether it has a target: for writers, since the column is the last one.
pub fn current_with_target(name: &str) -> Result<Option<(Sealed, bool)>> {
    let places = area::get().ok().map(|area| area.places());
    BY_NAME.with(|table| {
        table.point(&[Key::Text(name)], places, |row| {
            let Some(row) = row else { return Ok(None) };
            let found = read_current(row).ok_or_else(unreadable)?;
            let has_target = row.bytes(column::TARGET).is_some();
            Ok((found.presence == Presence::Live).then(|| (found.version.to_sealed(), has_target)))
        })
    })
}

/// Whether there is a row of that name, and how its secret is.
pub fn state(name: &str) -> Result<Option<Presence>> {
    visit(name, |found| Ok(found.map(|found| found.presence)))
}

fn read_current<'a>(row: &Tuple<'a>) -> Option<Current<'a>> {
    let allowed_ips = match row.cidr_array(column::ALLOWED_IPS) {
        None => None,
        // A list that cannot be read admits nobody.
        Some(list) => Some(list?),
    };
    Some(Current {
        version: Stored {
            secret: row.uuid(column::ID)?,
            version_id: row.uuid(column::VERSION_ID)?,
            version: row.int(column::VERSION)?,
            format: Format::parse(row.text(column::FORMAT)?)?,
            wrapped: row.bytes(column::WRAPPED_DEK)?,
            key_id: row.text(column::KMS_KEY_ID)?,
            sealed: row.bytes(column::SEALED)?,
            created_at: row.timestamp(column::VERSION_CREATED_AT)?,
            expires_at: None,
        },
        kind: row.label(column::KIND)?,
        allowed_ips,
        presence: presence(row.timestamp(column::EXPIRES_AT), row.timestamp(column::RECOVER_UNTIL)),
        grace_until: row.timestamp(column::GRACE_UNTIL),
    })
}

/// The presence, now, of a secret with these ends.
pub fn presence(expires_at: Option<i64>, recover_until: Option<i64>) -> Presence {
    if expires_at.is_none() && recover_until.is_none() {
        // Most secrets, whose readers need no clock.
        return Presence::Live;
    }
    Presence::at(Timestamp(crate::pg::clock()), expires_at.map(Timestamp), recover_until.map(Timestamp))
}

/// A row that our own statements cannot have written.
pub fn unreadable() -> VaultError {
    VaultError::new(Kind::Corrupted, "stored secret cannot be authenticated")
}

/// A secret's row, locked.
pub struct Locked {
    pub id: Id,
    pub version: i32,
    pub version_id: Id,
    pub format: Format,
    pub automatic: bool,
    pub generator: Option<String>,
    pub keep_versions: Option<i32>,
    pub wrapped: Vec<u8>,
    /// As of the moment the lock was there.
    pub presence: Presence,
    pub has_target: bool,
}

impl Locked {
    /// The key of the current version.
    pub fn key(&self) -> StoredKey {
        StoredKey { version: self.version, version_id: self.version_id, wrapped: self.wrapped.clone() }
    }
}

static LOCK: Statement = Statement::new(
    c"SELECT id, version, version_id, kind = 'automatic', generator, keep_versions, wrapped_dek, expires_at, recover_until, format,
        target IS NOT NULL
        FROM vault.secrets WHERE name = $1 FOR UPDATE",
    &[pg_sys::TEXTOID],
);

/// Locks a live secret's row, waiting for whoever has it; None if there is no such secret (any more).
pub fn lock(spi: &Spi, name: &str) -> Result<Option<Locked>> {
    Ok(lock_any(spi, name)?.filter(|locked| locked.presence == Presence::Live))
}

/// Locks the row of that name, be its secret live, deleted or gone.
pub fn lock_any(spi: &Spi, name: &str) -> Result<Option<Locked>> {
    let rows = spi.run(&LOCK, &[Bind::Text(name)])?;
    let locked = rows.first().map(|row| {
        Some(Locked {
            id: row.uuid(1)?,
            version: row.int(2)?,
            version_id: row.uuid(3)?,
            format: Format::parse(row.text(10)?)?,
            automatic: row.bool(4)?,
            generator: row.jsonb(5),
            keep_versions: row.int(6),
            wrapped: row.bytes(7)?.to_vec(),
            presence: presence(row.timestamp(8), row.timestamp(9)),
            has_target: row.bool(11)?,
        })
    });
    locked.map(|locked| locked.ok_or_else(unreadable)).transpose()
}

/// What a caller gives besides the value; None is what was not given. Datums as they came in, of the declared types.
#[derive(Default)]
pub struct Properties {
    /// Kind: automatic (true) or manual, which is the default.
    pub automatic: Option<bool>,
    pub description: Option<Datum>,
    pub metadata: Option<Datum>,
    pub rotation_interval: Option<Datum>,
    pub grace_period: Option<Datum>,
    pub generator: Option<Datum>,
    pub allowed_ips: Option<Datum>,
    pub keep_versions: Option<i32>,
    /// How long from now until the secret runs out.
    pub expires_in: Option<Datum>,
}

/// A freshly sealed version.
pub struct Fresh<'a> {
    pub version_id: Id,
    pub version: i32,
    pub format: Format,
    pub sealed: &'a [u8],
    pub key: &'a Generated,
    /// How much of its leeway the next rotation uses, from 0 to below 1.
    pub early: f64,
}

pub(super) const TIMESTAMPTZ: pg_sys::Oid = pg_sys::TIMESTAMPTZOID;
pub(super) const CIDR_ARRAY: pg_sys::Oid = pg_sys::Oid::from_u32(651);

static INSERT: Statement = Statement::new(
    sql!(
        "INSERT INTO vault.secrets AS s (id, name, version, version_id, format, wrapped_dek, sealed, kms_key_id, \
           kms_key_material_id, kind, description, metadata, rotation_interval, grace_period, generator, allowed_ips, \
           keep_versions, next_rotation_at, created_at, updated_at, version_created_at, \
           expires_at, grace_until) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, \
           CASE WHEN $10 THEN 'automatic'::vault.secret_kind ELSE 'manual'::vault.secret_kind END, \
           $11, $12, $13, $14, $15, $16, $17, CASE WHEN $10 THEN $18 + $13 END, $18, $18, $18, \
           $18 + $19, '-infinity') \
         ON CONFLICT (name) DO NOTHING RETURNING ",
        info!()
    ),
    &[
        pg_sys::UUIDOID,
        pg_sys::TEXTOID,
        pg_sys::INT4OID,
        pg_sys::UUIDOID,
        pg_sys::TEXTOID,
        pg_sys::BYTEAOID,
        pg_sys::BYTEAOID,
        pg_sys::TEXTOID,
        pg_sys::TEXTOID,
        pg_sys::BOOLOID,
        pg_sys::TEXTOID,
        pg_sys::JSONBOID,
        pg_sys::INTERVALOID,
        pg_sys::INTERVALOID,
        pg_sys::JSONBOID,
        CIDR_ARRAY,
        pg_sys::INT4OID,
        TIMESTAMPTZ,
        pg_sys::INTERVALOID,
    ],
);

/// Inserts a new secret and returns its info; None if the name is taken (by a transaction that has committed, for
/// which this one may have waited).
pub fn insert(
    spi: &Spi,
    id: Id,
    name: &str,
    fresh: &Fresh<'_>,
    properties: &Properties,
    now: Datum,
) -> Result<Option<Datum>> {
    let rows = spi.run(
        &INSERT,
        &[
            Bind::Uuid(id),
            Bind::Text(name),
            Bind::Int(fresh.version),
            Bind::Uuid(fresh.version_id),
            Bind::Text(fresh.format.as_str()),
            Bind::Bytes(&fresh.key.wrapped),
            Bind::Bytes(fresh.sealed),
            Bind::Text(&fresh.key.key_id),
            Bind::OptText(fresh.key.key_material_id.as_deref()),
            Bind::Bool(properties.automatic.unwrap_or(false)),
            Bind::Raw(properties.description),
            Bind::Raw(properties.metadata),
            Bind::Raw(properties.rotation_interval),
            Bind::Raw(properties.grace_period),
            Bind::Raw(properties.generator),
            Bind::Raw(properties.allowed_ips),
            Bind::OptInt(properties.keep_versions),
            Bind::Raw(Some(now)),
            Bind::Raw(properties.expires_in),
        ],
    )?;
    Ok(rows.first().and_then(|row| row.result(1)))
}

static REPLACE: Statement = Statement::new(
    sql!(
        "UPDATE vault.secrets AS s SET version = $2, version_id = $3, format = $4, wrapped_dek = $5, sealed = $6, \
           kms_key_id = $7, kms_key_material_id = $8, updated_at = $9, version_created_at = $9, \
           next_rotation_at = CASE WHEN s.kind = 'automatic' \
             THEN $9 + s.rotation_interval - least(s.rotation_interval / 20, interval '1 hour') * $10 END, \
           rotation_attempts = NULL, rotation_error = NULL, rotation_retry_at = NULL, \
           grace_until = CASE WHEN s.grace_period > interval '0' AND s.grace_until IS NOT NULL \
             THEN greatest(s.grace_until, $9 + s.grace_period) ELSE s.grace_until END \
         WHERE s.id = $1 RETURNING ",
        info!()
    ),
    &[
        pg_sys::UUIDOID,
        pg_sys::INT4OID,
        pg_sys::UUIDOID,
        pg_sys::TEXTOID,
        pg_sys::BYTEAOID,
        pg_sys::BYTEAOID,
        pg_sys::TEXTOID,
        pg_sys::TEXTOID,
        TIMESTAMPTZ,
        pg_sys::FLOAT8OID,
    ],
);

/// Makes `fresh` the current version of a secret whose row is locked and whose former version has been kept
/// (`versions::keep_current`, with the same `now`: the end of its grace is remembered beside the current version).
pub fn replace(spi: &Spi, id: Id, fresh: &Fresh<'_>, now: Datum) -> Result<Datum> {
    let rows = spi.run(
        &REPLACE,
        &[
            Bind::Uuid(id),
            Bind::Int(fresh.version),
            Bind::Uuid(fresh.version_id),
            Bind::Text(fresh.format.as_str()),
            Bind::Bytes(&fresh.key.wrapped),
            Bind::Bytes(fresh.sealed),
            Bind::Text(&fresh.key.key_id),
            Bind::OptText(fresh.key.key_material_id.as_deref()),
            Bind::Raw(Some(now)),
            Bind::Float(fresh.early),
        ],
    )?;
    returned(rows.first())
}

pub(super) fn returned(row: Option<Row<'_>>) -> Result<Datum> {
    row.and_then(|row| row.result(1)).ok_or_else(|| VaultError::internal("a locked secret vanished"))
}

static BURY: Statement = Statement::new(
    c"UPDATE vault.secrets SET recover_until = $2 + $3, updated_at = $2 WHERE id = $1",
    &[pg_sys::UUIDOID, TIMESTAMPTZ, pg_sys::INTERVALOID],
);

/// Marks a locked secret as deleted, restorable for `window`.
pub fn bury(spi: &Spi, id: Id, window: Datum, now: Datum) -> Result<()> {
    spi.run(&BURY, &[Bind::Uuid(id), Bind::Raw(Some(now)), Bind::Raw(Some(window))]).map(drop)
}

static RESTORE: Statement = Statement::new(
    sql!(
        "UPDATE vault.secrets AS s SET recover_until = NULL, updated_at = $2 WHERE s.id = $1 RETURNING ",
        info!()
    ),
    &[pg_sys::UUIDOID, TIMESTAMPTZ],
);

/// Takes the mark of [`bury`] off a locked secret.
pub fn restore(spi: &Spi, id: Id, now: Datum) -> Result<Datum> {
    returned(spi.run(&RESTORE, &[Bind::Uuid(id), Bind::Raw(Some(now))])?.first())
}

static RENAME: Statement = Statement::new(
    sql!(
        "UPDATE vault.secrets AS s SET name = $2, sealed = $3, updated_at = $4 WHERE s.id = $1 RETURNING ",
        info!()
    ),
    &[pg_sys::UUIDOID, pg_sys::TEXTOID, pg_sys::BYTEAOID, TIMESTAMPTZ],
);

/// Gives a locked secret another name, for which its current version has been sealed again. Raises `taken` if somebody
/// took the name meanwhile.
pub fn rename(
    spi: &Spi,
    id: Id,
    new_name: &str,
    sealed: &[u8],
    now: Datum,
    taken: impl Fn() -> VaultError + std::panic::UnwindSafe + std::panic::RefUnwindSafe,
) -> Result<Datum> {
    let binds = [Bind::Uuid(id), Bind::Text(new_name), Bind::Bytes(sealed), Bind::Raw(Some(now))];
    crate::pg::on_unique_violation(|| returned(spi.run(&RENAME, &binds)?.first()), taken)
}

static DELETE: Statement = Statement::new(c"DELETE FROM vault.secrets WHERE id = $1", &[pg_sys::UUIDOID]);

/// Deletes a locked secret, whose superseded versions are deleted by now.
pub fn delete(spi: &Spi, id: Id) -> Result<()> {
    spi.run(&DELETE, &[Bind::Uuid(id)]).map(drop)
}
