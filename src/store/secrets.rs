//! `vault.secrets`: a secret and its current version.
//!
//! Client backends, main thread. The trap it avoids: a row judged under the transaction's old snapshot; both the
//! scans and the statements here use the latest one, and writers lock the row before they decide.

use hyperion_vault_core::IpNet;
use hyperion_vault_core::envelope::{Format, Id};
use pgrx::pg_sys::{self, Datum};

use crate::error::{Kind, Result, VaultError};
use crate::kms_client::Generated;
use crate::pg::scan::{IndexedTable, Key, Tuple};
use crate::pg::spi::{Bind, Row, Spi, Statement};

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
}

/// A sealed version, current or not, as stored.
pub struct Sealed {
    pub secret: Id,
    pub version_id: Id,
    pub version: i32,
    pub format: Format,
    pub wrapped: Vec<u8>,
    /// The key that wrapped it, for the key service.
    pub key_id: String,
    pub sealed: Vec<u8>,
    pub created_at: i64,
    /// End of its grace; None for the current version.
    pub expires_at: Option<i64>,
}

/// A secret as a reader needs it.
pub struct Current {
    pub version: Sealed,
    /// The enum value, passed through to results.
    pub kind: Datum,
    pub allowed_ips: Option<Vec<IpNet>>,
}

/// The secret of that name as of now: one index descent.
pub fn current(name: &str) -> Result<Option<Current>> {
    let mut found = None;
    BY_NAME.with(|table| {
        table.each(&[Key::Text(name)], |row| {
            found = Some(read_current(row).ok_or_else(unreadable)??);
            Ok(false)
        })
    })?;
    Ok(found)
}

fn read_current(row: &Tuple) -> Option<Result<Current>> {
    let allowed_ips = match row.cidr_array(column::ALLOWED_IPS) {
        None => None,
        // A list that cannot be read admits nobody.
        Some(list) => Some(list?),
    };
    Some(Ok(Current {
        version: Sealed {
            secret: row.uuid(column::ID)?,
            version_id: row.uuid(column::VERSION_ID)?,
            version: row.int(column::VERSION)?,
            format: Format::parse(row.text(column::FORMAT)?)?,
            wrapped: row.bytes(column::WRAPPED_DEK)?.to_vec(),
            key_id: row.text(column::KMS_KEY_ID)?.to_owned(),
            sealed: row.bytes(column::SEALED)?.to_vec(),
            created_at: row.timestamp(column::VERSION_CREATED_AT)?,
            expires_at: None,
        },
        kind: row.raw(column::KIND)?,
        allowed_ips,
    }))
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
    pub automatic: bool,
    pub generator: Option<String>,
    pub keep_versions: Option<i32>,
}

static LOCK: Statement = Statement::new(
    c"SELECT id, version, version_id, kind = 'automatic', generator, keep_versions
        FROM vault.secrets WHERE name = $1 FOR UPDATE",
    &[pg_sys::TEXTOID],
);

/// Locks the secret's row, waiting for whoever has it; None if there is no such secret (any more).
pub fn lock(spi: &Spi, name: &str) -> Result<Option<Locked>> {
    let rows = spi.run(&LOCK, &[Bind::Text(name)])?;
    let locked = rows.first().map(|row| {
        Some(Locked {
            id: row.uuid(1)?,
            version: row.int(2)?,
            version_id: row.uuid(3)?,
            automatic: row.bool(4)?,
            generator: row.jsonb(5),
            keep_versions: row.int(6),
        })
    });
    locked.map(|locked| locked.ok_or_else(unreadable)).transpose()
}

/// The result type of writers, as a row constructor over `vault.secrets s`.
macro_rules! info {
    () => {
        "ROW(s.id, s.name, s.kind, s.format::vault.secret_format, s.version, s.description, s.metadata, \
         s.rotation_interval, s.grace_period, s.next_rotation_at, s.generator, s.allowed_ips, s.keep_versions, \
         s.kms_key_id, s.created_at, s.updated_at, s.version_created_at)::vault.secret_info"
    };
}

/// A statement's text from literals and [`info!`].
macro_rules! sql {
    ($($part:expr),+ $(,)?) => {
        match std::ffi::CStr::from_bytes_with_nul(concat!($($part,)+ "\0").as_bytes()) {
            Ok(sql) => sql,
            Err(_) => panic!("statement contains a NUL"),
        }
    };
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
}

/// A freshly sealed version.
pub struct Fresh<'a> {
    pub version_id: Id,
    pub version: i32,
    pub format: Format,
    pub sealed: &'a [u8],
    pub key: &'a Generated,
}

const TIMESTAMPTZ: pg_sys::Oid = pg_sys::TIMESTAMPTZOID;
const CIDR_ARRAY: pg_sys::Oid = pg_sys::Oid::from_u32(651);

static INSERT: Statement = Statement::new(
    sql!(
        "INSERT INTO vault.secrets AS s (id, name, version, version_id, format, wrapped_dek, sealed, kms_key_id, \
           kms_key_material_id, kind, description, metadata, rotation_interval, grace_period, generator, allowed_ips, \
           keep_versions, next_rotation_at, created_at, updated_at, version_created_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, \
           CASE WHEN $10 THEN 'automatic'::vault.secret_kind ELSE 'manual'::vault.secret_kind END, \
           $11, $12, $13, $14, $15, $16, $17, CASE WHEN $10 THEN $18 + $13 END, $18, $18, $18) \
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
        ],
    )?;
    Ok(rows.first().and_then(|row| row.result(1)))
}

static REPLACE: Statement = Statement::new(
    sql!(
        "UPDATE vault.secrets AS s SET version = $2, version_id = $3, format = $4, wrapped_dek = $5, sealed = $6, \
           kms_key_id = $7, kms_key_material_id = $8, updated_at = $9, version_created_at = $9, \
           next_rotation_at = CASE WHEN s.kind = 'automatic' THEN $9 + s.rotation_interval END \
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
    ],
);

/// Makes `fresh` the current version of a secret whose row is locked and whose former version has been kept.
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
        ],
    )?;
    returned(rows.first())
}

fn returned(row: Option<Row<'_>>) -> Result<Datum> {
    row.and_then(|row| row.result(1)).ok_or_else(|| VaultError::internal("a locked secret vanished"))
}

/// Changes to a secret's properties: None leaves one as it is unless it is named in `reset`.
#[derive(Default)]
pub struct Changes {
    pub properties: Properties,
    /// `text[]` of property names.
    pub reset: Option<Datum>,
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
        } = &self.properties;
        let datums =
            [description, metadata, rotation_interval, grace_period, generator, allowed_ips, &self.reset];
        automatic.is_none() && keep_versions.is_none() && datums.iter().all(|datum| datum.is_none())
    }
}

/// The properties `reset` may name.
pub const RESETTABLE: [&str; 7] = [
    "description",
    "metadata",
    "rotation_interval",
    "grace_period",
    "generator",
    "allowed_ips",
    "keep_versions",
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
           CASE WHEN 'keep_versions' = ANY ($11) THEN NULL ELSE coalesce($9, o.keep_versions) END AS keep_versions \
           FROM vault.secrets o WHERE o.id = $1) \
         UPDATE vault.secrets AS s SET kind = new.kind, description = new.description, metadata = new.metadata, \
           rotation_interval = new.rotation_interval, grace_period = new.grace_period, generator = new.generator, \
           allowed_ips = new.allowed_ips, keep_versions = new.keep_versions, updated_at = $10, \
           next_rotation_at = CASE WHEN new.kind = 'manual' THEN NULL \
             WHEN s.kind = 'automatic' AND new.rotation_interval IS NOT DISTINCT FROM s.rotation_interval THEN s.next_rotation_at \
             ELSE $10 + new.rotation_interval END \
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

static DELETE: Statement = Statement::new(
    c"DELETE FROM vault.secrets WHERE id = $1 RETURNING version_id, wrapped_dek",
    &[pg_sys::UUIDOID],
);

/// Deletes a locked secret, whose superseded versions are deleted by now. Returns the current version's id and
/// wrapped DEK.
pub fn delete(spi: &Spi, id: Id) -> Result<Option<(Id, Vec<u8>)>> {
    let rows = spi.run(&DELETE, &[Bind::Uuid(id)])?;
    Ok(rows.first().and_then(|row| Some((row.uuid(1)?, row.bytes(2)?.to_vec()))))
}

static LIST: Statement = Statement::query(
    sql!(
        "SELECT ",
        info!(),
        " FROM vault.secrets s \
          WHERE s.name >= $1 AND ($2::text IS NULL OR s.name < $2) AND ($3::text IS NULL OR s.name > $3) AND s.name LIKE $4 \
          ORDER BY s.name LIMIT $5"
    ),
    &[pg_sys::TEXTOID, pg_sys::TEXTOID, pg_sys::TEXTOID, pg_sys::TEXTOID, pg_sys::INT4OID],
);

/// Infos of the secrets whose names match, in byte order of the name.
pub fn list(
    spi: &Spi,
    pattern: &hyperion_vault_core::secret::Pattern,
    after: Option<&str>,
    max_rows: i32,
    mut each: impl FnMut(Datum),
) -> Result<()> {
    let rows = spi.run(
        &LIST,
        &[
            Bind::Text(pattern.literal_prefix()),
            Bind::OptText(pattern.prefix_end().as_deref()),
            Bind::OptText(after),
            Bind::Text(&pattern.to_like()),
            Bind::Int(max_rows),
        ],
    )?;
    for row in rows.iter() {
        if let Some(info) = row.raw(1) {
            each(info);
        }
    }
    Ok(())
}

static COUNT: Statement =
    Statement::query(c"SELECT count(*), count(*) FILTER (WHERE kind = 'automatic') FROM vault.secrets", &[]);

/// How many secrets there are, and how many of them are automatic.
pub fn count(spi: &Spi) -> Result<(i64, i64)> {
    let rows = spi.run(&COUNT, &[])?;
    Ok(rows.first().map_or((0, 0), |row| (row.bigint(1).unwrap_or(0), row.bigint(2).unwrap_or(0))))
}
