//! `vault.tokens`: which tokens there are. Their texts are nowhere; their hashes leave this file only to be compared.
//!
//! Client backends, main thread. Looked up by id under the latest snapshot: a token that was revoked is gone for every
//! session, however old its transaction's snapshot is.

use hyperion_vault_core::envelope::Id;
use hyperion_vault_core::policy::token::{NewToken, TokenHash};
use hyperion_vault_core::policy::uses::Uses;
use hyperion_vault_core::secret::Timestamp;
use pgrx::pg_sys::Datum;

use super::roles::{ADMIN, ADMIN_ID, delete_of};
use crate::error::Result;
use crate::pg::heap::{Wait, Write};
use crate::pg::scan::{Direction, Index, Key, Table, equal};
use crate::pg::tuple::Tuple;
use crate::pg::{clock, datum};

thread_local! {
    static TOKENS: Table = const {
        Table::new(
            c"tokens",
            &[
                c"id", c"role_id", c"hash", c"name", c"created_at", c"created_by", c"expires_at", c"last_used_at",
            ],
            &[
                Index { name: c"tokens_pkey", columns: &[column::ID] },
                Index { name: c"tokens_name_key", columns: &[column::NAME] },
            ],
        )
    };
}

/// Indexes of [`TOKENS`].
const BY_ID: usize = 0;
const BY_NAME: usize = 1;

/// Columns of [`TOKENS`].
mod column {
    pub const ID: i16 = 1;
    pub const ROLE_ID: i16 = 2;
    pub const HASH: i16 = 3;
    pub const NAME: i16 = 4;
    pub const CREATED_AT: i16 = 5;
    pub const CREATED_BY: i16 = 6;
    pub const EXPIRES_AT: i16 = 7;
    pub const LAST_USED_AT: i16 = 8;
}

/// A token as it is stored.
pub struct Stored {
    pub role: Id,
    pub hash: TokenHash,
    pub name: String,
    pub expires_at: Option<Timestamp>,
}

/// A row that is not whole is no token's.
pub fn by_id(id: Id) -> Result<Option<Stored>> {
    TOKENS.with(|table| table.point(BY_ID, &[Key::Uuid(id)], None, |row| Ok(row.and_then(read))))
}

fn read(row: &Tuple<'_>) -> Option<Stored> {
    Some(Stored {
        role: row.uuid(column::ROLE_ID)?,
        hash: TokenHash::from_slice(row.bytes(column::HASH)?)?,
        name: row.text(column::NAME)?.to_owned(),
        expires_at: row.timestamp(column::EXPIRES_AT).map(Timestamp),
    })
}

/// Stores a token of a locked role; false if the name is taken. `expires_in`: months, days, microseconds.
pub fn create(
    write: &Write,
    token: &NewToken,
    role: Id,
    name: &str,
    creator: &str,
    expires_in: Option<(i32, i32, i64)>,
) -> Result<bool> {
    let text = |text: &str| Some(datum::varlena(text.as_bytes()));
    let now = clock();
    TOKENS.with(|table| {
        let made = table.insert_unless_present(
            write,
            BY_NAME,
            &[Key::Text(name)],
            &[
                (column::ID, Some(datum::uuid(token.id))),
                (column::ROLE_ID, Some(datum::uuid(role))),
                (column::HASH, Some(datum::varlena(&token.hash.0))),
                (column::NAME, text(name)),
                (column::CREATED_AT, Some(Datum::from(now))),
                (column::CREATED_BY, text(creator)),
                (
                    column::EXPIRES_AT,
                    expires_in.map(|interval| Datum::from(datum::plus_interval(now, interval))),
                ),
            ],
        )?;
        if made.is_some() {
            table.announce_change(write)?;
        }
        Ok(made.is_some())
    })
}

/// Whether there was a token of that name.
pub fn revoke(write: &Write, name: &str) -> Result<bool> {
    TOKENS.with(|table| {
        let Some(row) = table.lock(write, BY_NAME, &[Key::Text(name)], None, Wait::Block)? else {
            return Ok(false);
        };
        table.delete(write, &row)?;
        table.announce_change(write)?;
        Ok(true)
    })
}

/// Revokes the tokens of a locked role. There is no index for it: roles are dropped rarely.
pub(super) fn revoke_of(write: &Write, role: Id) -> Result<()> {
    let is_of = |row: &Tuple<'_>| row.uuid(column::ROLE_ID) == Some(role);
    TOKENS.with(|table| delete_of(write, table, BY_ID, &[], is_of).map(drop))
}

/// One token as `vault.list_tokens` shows it.
pub struct Listed {
    pub id: Id,
    pub name: String,
    /// None if the role is gone.
    pub role: Option<String>,
    pub created_at: Option<i64>,
    pub created_by: Option<String>,
    pub expires_at: Option<i64>,
    /// As it was noted last.
    pub last_used_at: Option<i64>,
}

/// All tokens, or the one with that id, by name.
pub fn list(only: Option<Id>, each: impl FnMut(Listed) -> Result<()>) -> Result<()> {
    let mut found = Vec::new();
    let mut read = |row: &Tuple<'_>| {
        if let (Some(id), Some(name)) = (row.uuid(column::ID), row.text(column::NAME)) {
            let listed = Listed {
                id,
                name: name.to_owned(),
                role: None,
                created_at: row.timestamp(column::CREATED_AT),
                created_by: row.text(column::CREATED_BY).map(str::to_owned),
                expires_at: row.timestamp(column::EXPIRES_AT),
                last_used_at: row.timestamp(column::LAST_USED_AT),
            };
            found.push((listed, row.uuid(column::ROLE_ID)));
        }
    };
    TOKENS.with(|table| match only {
        Some(id) => table.scan(BY_ID, &equal([Key::Uuid(id)]), Direction::Forward, |row| {
            read(row);
            Ok(true)
        }),
        None => table.all(None, |row| {
            read(row);
            Ok(true)
        }),
    })?;
    found.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    for (listed, role) in &mut found {
        listed.role = match role {
            Some(ADMIN_ID) => Some(ADMIN.to_owned()),
            Some(role) => super::roles::name(*role)?,
            None => None,
        };
    }
    found.into_iter().map(|(listed, _)| listed).try_for_each(each)
}

/// How many tokens there are.
pub(super) fn count() -> Result<i64> {
    let mut count = 0;
    TOKENS.with(|table| {
        table.all(None, |_| {
            count += 1;
            Ok(true)
        })
    })?;
    Ok(count)
}

/// Writes down when tokens were used last, as `uses` knows it. A row that somebody is revoking is left alone: it would be
/// waited for. That changes nobody's rights, and is not announced.
pub fn note_uses(write: &Write, uses: Uses<'_>) -> Result<()> {
    let mut later: Vec<(Id, i64)> = Vec::new();
    TOKENS.with(|table| {
        table.all(None, |row| {
            if let Some(id) = row.uuid(column::ID)
                && let Some(last) = uses.last(id)
                && Some(last) > row.timestamp(column::LAST_USED_AT)
            {
                later.push((id, last));
            }
            Ok(true)
        })?;
        for (id, last) in later {
            if let Some(row) = table.lock(write, BY_ID, &[Key::Uuid(id)], None, Wait::Skip)? {
                table.update(write, &row, &[(column::LAST_USED_AT, Some(Datum::from(last)))])?;
            }
        }
        Ok(())
    })
}
