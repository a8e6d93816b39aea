//! `vault.tokens`: which tokens there are. Their texts are nowhere; their hashes leave this file only to be compared.
//!
//! Client backends, main thread. Looked up by id under the latest snapshot: a token that was revoked is gone for every
//! session, however old its transaction's snapshot is.

use hyperion_vault_core::envelope::Id;
use hyperion_vault_core::policy::token::{NewToken, TokenHash};
use hyperion_vault_core::policy::uses::Uses;
use hyperion_vault_core::secret::Timestamp;
use pgrx::pg_sys::{self, Datum};

use crate::error::Result;
use crate::pg::scan::{IndexedTable, Key};
use crate::pg::spi::{Bind, Spi, Statement};
use crate::pg::tuple::Tuple;

thread_local! {
    static BY_ID: IndexedTable = const { IndexedTable::new(c"tokens", c"tokens_pkey", &[column::ID]) };
}

/// Column numbers of sql/25_access.sql.
mod column {
    pub const ID: i16 = 1;
    pub const ROLE_ID: i16 = 2;
    pub const HASH: i16 = 3;
    pub const NAME: i16 = 4;
    pub const EXPIRES_AT: i16 = 7;
}

/// A token as it is stored.
pub struct Stored {
    pub role: Id,
    pub hash: TokenHash,
    pub name: String,
    pub expires_at: Option<Timestamp>,
}

pub fn by_id(id: Id) -> Result<Option<Stored>> {
    let mut found = None;
    BY_ID.with(|table| {
        table.each(&[Key::Uuid(id)], |row| {
            // A row that is not whole is no token's.
            found = read(row);
            Ok(false)
        })
    })?;
    Ok(found)
}

fn read(row: &Tuple<'_>) -> Option<Stored> {
    Some(Stored {
        role: row.uuid(column::ROLE_ID)?,
        hash: TokenHash::from_slice(row.bytes(column::HASH)?)?,
        name: row.text(column::NAME)?.to_owned(),
        expires_at: row.timestamp(column::EXPIRES_AT).map(Timestamp),
    })
}

static CREATE: Statement = Statement::on_access(
    c"INSERT INTO vault.tokens (id, role_id, hash, name, created_at, created_by, expires_at)
      VALUES ($1, $2, $3, $4, $6, $5, $6 + $7) ON CONFLICT (name) DO NOTHING",
    &[
        pg_sys::UUIDOID,
        pg_sys::UUIDOID,
        pg_sys::BYTEAOID,
        pg_sys::TEXTOID,
        pg_sys::TEXTOID,
        pg_sys::TIMESTAMPTZOID,
        pg_sys::INTERVALOID,
    ],
);

/// Stores a token of a locked role; false if the name is taken.
pub fn create(
    spi: &Spi,
    token: &NewToken,
    role: Id,
    name: &str,
    creator: &str,
    expires_in: Option<Datum>,
) -> Result<bool> {
    let binds = [
        Bind::Uuid(token.id),
        Bind::Uuid(role),
        Bind::Bytes(&token.hash.0),
        Bind::Text(name),
        Bind::Text(creator),
        Bind::Raw(Some(Datum::from(crate::pg::clock()))),
        Bind::Raw(expires_in),
    ];
    Ok(spi.run(&CREATE, &binds)?.len() == 1)
}

static REVOKE: Statement =
    Statement::on_access(c"DELETE FROM vault.tokens WHERE name = $1", &[pg_sys::TEXTOID]);

/// Whether there was a token of that name.
pub fn revoke(spi: &Spi, name: &str) -> Result<bool> {
    Ok(spi.run(&REVOKE, &[Bind::Text(name)])?.len() == 1)
}

static LIST: Statement = Statement::query(
    c"SELECT t.id, t.name, CASE WHEN t.role_id = '00000000-0000-0000-0000-000000000000' THEN 'admin' ELSE r.name END,
             t.created_at, t.created_by, t.expires_at, t.last_used_at
        FROM vault.tokens t LEFT JOIN vault.roles r ON r.id = t.role_id
       WHERE $1 IS NULL OR t.id = $1 ORDER BY t.name",
    &[pg_sys::UUIDOID],
);

/// One token as `vault.list_tokens` shows it.
pub struct Listed {
    pub id: Id,
    pub name: Option<Datum>,
    pub role: Option<Datum>,
    pub created_at: Option<Datum>,
    pub created_by: Option<Datum>,
    pub expires_at: Option<Datum>,
    /// As it was noted last.
    pub last_used_at: Option<i64>,
}

/// All tokens, or the one with that id, by name.
pub fn list(spi: &Spi, only: Option<Id>, mut each: impl FnMut(Listed) -> Result<()>) -> Result<()> {
    let only = only.map(crate::pg::datum::uuid);
    let rows = spi.run(&LIST, &[Bind::Raw(only)])?;
    for row in rows.iter() {
        let Some(id) = row.uuid(1) else { continue };
        each(Listed {
            id,
            name: row.raw(2),
            role: row.raw(3),
            created_at: row.raw(4),
            created_by: row.raw(5),
            expires_at: row.raw(6),
            last_used_at: row.timestamp(7),
        })?;
    }
    Ok(())
}

static USES: Statement = Statement::query(c"SELECT id, last_used_at FROM vault.tokens", &[]);
/// A row that somebody is revoking is left alone: it would be waited for.
static NOTE: Statement = Statement::on_access(
    c"UPDATE vault.tokens SET last_used_at = $2
       WHERE id = (SELECT t.id FROM vault.tokens t WHERE t.id = $1 FOR UPDATE SKIP LOCKED)",
    &[pg_sys::UUIDOID, pg_sys::TIMESTAMPTZOID],
);

/// Writes down when tokens were used last, as `uses` knows it.
pub fn note_uses(spi: &Spi, uses: Uses<'_>) -> Result<()> {
    let later: Vec<(Id, i64)> = {
        let rows = spi.run(&USES, &[])?;
        rows.iter()
            .filter_map(|row| {
                let id = row.uuid(1)?;
                let last = uses.last(id)?;
                (Some(last) > row.timestamp(2)).then_some((id, last))
            })
            .collect()
    };
    for (id, last) in later {
        spi.run(&NOTE, &[Bind::Uuid(id), Bind::Raw(Some(Datum::from(last)))])?;
    }
    Ok(())
}
