//! What the maintenance worker looks for: rotations that are due, grace periods that are over, secrets that have run out.
//!
//! A worker of the vault's database, on a primary. Every search walks an index that holds only rows with a date, from
//! the place where the search before ended, to now: what is not due costs nothing, and rows that somebody else has
//! locked are not met twice in one pass. Rows are judged again under their lock.
//!
//! The trap it avoids: waiting for a row. Whatever is locked is left for the next pass.

use hyperion_vault_core::envelope::{Format, Id};
use pgrx::pg_sys;

use super::secrets::{TIMESTAMPTZ, unreadable};
use super::sql::{live, sql};
use super::versions::StoredKey;
use crate::error::Result;
use crate::pg::spi::{Bind, Row, Spi, Statement};

/// Where a search ended: after this date and id. [`START`] is before everything.
pub type Place = (i64, Id);
pub const START: Place = (i64::MIN, Id([0; 16]));

/// When a rotation is due: a next try is after the date. As in the index secrets_due_idx. Not `coalesce`: the planner
/// does not know that it tells nothing of the row, and so does not use the index beside a row-level security policy.
macro_rules! due_at {
    () => {
        "greatest(s.rotation_retry_at, s.next_rotation_at)"
    };
}

/// The condition of the same index.
macro_rules! scheduled {
    () => {
        "s.kind = 'automatic' AND s.recover_until IS NULL"
    };
}

/// A secret whose rotation is due.
pub struct Due {
    pub id: Id,
    pub name: String,
    pub at: Place,
    pub format: Format,
    /// How often it has failed in a row.
    pub attempts: u32,
    pub has_target: bool,
}

/// Whose turn a secret is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// All but those of the other lane.
    Own,
    /// Those whose target is a function: others' code, which may take its time.
    Hooks,
}

/// Whether a secret's target is a function.
macro_rules! hooked {
    () => {
        "(s.target ->> 'type' = 'function') IS TRUE"
    };
}

static DUE: Statement = Statement::query(
    sql!(
        "SELECT s.id, s.name, ",
        due_at!(),
        ", s.format, s.rotation_attempts, s.target IS NOT NULL FROM vault.secrets s WHERE ",
        scheduled!(),
        " AND ",
        due_at!(),
        " <= $1 AND (",
        due_at!(),
        ", s.id) > ($2, $3) AND (s.expires_at IS NULL OR s.expires_at > $1) AND ",
        hooked!(),
        " = $5 ORDER BY ",
        due_at!(),
        ", s.id LIMIT $4"
    ),
    &[TIMESTAMPTZ, TIMESTAMPTZ, pg_sys::UUIDOID, pg_sys::INT4OID, pg_sys::BOOLOID],
);

/// Secrets of a lane to rotate at `now`, the longest overdue first.
pub fn due(spi: &Spi, lane: Lane, now: i64, after: Place, limit: i32) -> Result<Vec<Due>> {
    spi.prefer_index_order();
    let [now, at, id, limit] = place(now, after, limit);
    let rows = spi.run(&DUE, &[now, at, id, limit, Bind::Bool(lane == Lane::Hooks)])?;
    rows.iter()
        .map(|row| {
            let id = row.uuid(1).ok_or_else(unreadable)?;
            Ok(Due {
                id,
                name: row.text(2).ok_or_else(unreadable)?.to_owned(),
                at: (row.timestamp(3).ok_or_else(unreadable)?, id),
                format: row.text(4).and_then(Format::parse).ok_or_else(unreadable)?,
                attempts: attempts(&row, 5),
                has_target: row.bool(6).unwrap_or(false),
            })
        })
        .collect()
}

fn attempts(row: &Row<'_>, column: i32) -> u32 {
    row.int(column).and_then(|attempts| u32::try_from(attempts).ok()).unwrap_or(0)
}

static HOOKS_DUE: Statement = Statement::query(
    sql!(
        "SELECT EXISTS (SELECT FROM vault.secrets s WHERE ",
        scheduled!(),
        " AND ",
        due_at!(),
        " <= $1 AND (s.expires_at IS NULL OR s.expires_at > $1) AND ",
        hooked!(),
        ")"
    ),
    &[TIMESTAMPTZ],
);

/// Whether anything of the lane [`Lane::Hooks`] is due.
pub fn hooks_are_due(spi: &Spi, now: i64) -> Result<bool> {
    spi.prefer_index_order();
    let rows = spi.run(&HOOKS_DUE, &[Bind::Timestamp(now)])?;
    Ok(rows.first().and_then(|row| row.bool(1)).unwrap_or(false))
}

fn place(now: i64, (at, id): Place, limit: i32) -> [Bind<'static>; 4] {
    [Bind::Timestamp(now), Bind::Timestamp(at), Bind::Uuid(id), Bind::Int(limit)]
}

static NEXT: Statement = Statement::query(
    sql!(
        "SELECT least( \
           (SELECT ",
        due_at!(),
        " FROM vault.secrets s WHERE ",
        scheduled!(),
        " AND $1 ORDER BY ",
        due_at!(),
        ", s.id LIMIT 1), \
           (SELECT least(s.expires_at, s.recover_until) FROM vault.secrets s \
             WHERE s.expires_at IS NOT NULL OR s.recover_until IS NOT NULL \
             ORDER BY least(s.expires_at, s.recover_until), s.id LIMIT 1), \
           (SELECT v.expires_at FROM vault.secret_versions v WHERE v.expires_at IS NOT NULL AND NOT v.settled \
             ORDER BY v.expires_at, v.secret_id LIMIT 1))"
    ),
    &[pg_sys::BOOLOID],
);

/// The next date of any kind, rotations only if they are wanted.
pub fn next(spi: &Spi, rotations: bool) -> Result<Option<i64>> {
    spi.prefer_index_order();
    let rows = spi.run(&NEXT, &[Bind::Bool(rotations)])?;
    Ok(rows.first().and_then(|row| row.timestamp(1)))
}

static LOCK_DUE: Statement = Statement::new(
    sql!(
        "SELECT s.name, s.rotation_attempts FROM vault.secrets s WHERE s.id = $1 AND ",
        scheduled!(),
        " AND ",
        due_at!(),
        " <= $2 AND ",
        live!(),
        " FOR UPDATE SKIP LOCKED"
    ),
    &[pg_sys::UUIDOID, TIMESTAMPTZ],
);

/// A secret that is due and locked.
pub struct LockedDue {
    /// As of now: it may have been renamed since it was found.
    pub name: String,
    pub attempts: u32,
}

/// Locks a secret whose rotation is due; None if it is not (any more), or somebody else has it.
pub fn lock_due(spi: &Spi, id: Id, now: i64) -> Result<Option<LockedDue>> {
    let rows = spi.run(&LOCK_DUE, &[Bind::Uuid(id), Bind::Timestamp(now)])?;
    rows.first()
        .map(|row| {
            Ok(LockedDue {
                name: row.text(1).ok_or_else(unreadable)?.to_owned(),
                attempts: attempts(&row, 2),
            })
        })
        .transpose()
}

static FAILED: Statement = Statement::new(
    c"UPDATE vault.secrets SET rotation_attempts = $2, rotation_error = $3, rotation_retry_at = $4 WHERE id = $1",
    &[pg_sys::UUIDOID, pg_sys::INT4OID, pg_sys::TEXTOID, TIMESTAMPTZ],
);

/// Remembers that the rotation of a locked secret failed.
pub fn failed(spi: &Spi, id: Id, attempts: u32, error: &str, retry_at: i64) -> Result<()> {
    let attempts = i32::try_from(attempts).unwrap_or(i32::MAX);
    let binds = [Bind::Uuid(id), Bind::Int(attempts), Bind::Text(error), Bind::Timestamp(retry_at)];
    spi.run(&FAILED, &binds).map(drop)
}

static NOTIFY: Statement =
    Statement::query(c"SELECT pg_catalog.pg_notify('vault_rotation', $1)", &[pg_sys::TEXTOID]);

/// Tells listeners when the transaction commits.
pub fn notify(spi: &Spi, payload: &str) -> Result<()> {
    spi.run(&NOTIFY, &[Bind::Text(payload)]).map(drop)
}

static GONE: Statement = Statement::query(
    c"SELECT s.id, s.name, least(s.expires_at, s.recover_until) FROM vault.secrets s
       WHERE (s.expires_at IS NOT NULL OR s.recover_until IS NOT NULL)
         AND least(s.expires_at, s.recover_until) <= $1
         AND (least(s.expires_at, s.recover_until), s.id) > ($2, $3)
       ORDER BY least(s.expires_at, s.recover_until), s.id LIMIT $4",
    &[TIMESTAMPTZ, TIMESTAMPTZ, pg_sys::UUIDOID, pg_sys::INT4OID],
);

/// A row found by its date.
pub struct Dated {
    pub secret: Id,
    pub at: Place,
}

fn dated(row: &Row<'_>) -> Result<Dated> {
    let secret = row.uuid(1).ok_or_else(unreadable)?;
    Ok(Dated { secret, at: (row.timestamp(2).ok_or_else(unreadable)?, secret) })
}

/// Secrets that have run out, or were deleted and whose recovery window is over.
pub fn gone(spi: &Spi, now: i64, after: Place, limit: i32) -> Result<Vec<(String, Dated)>> {
    spi.prefer_index_order();
    let rows = spi.run(&GONE, &place(now, after, limit))?;
    rows.iter()
        .map(|row| {
            let secret = row.uuid(1).ok_or_else(unreadable)?;
            let at = (row.timestamp(3).ok_or_else(unreadable)?, secret);
            Ok((row.text(2).ok_or_else(unreadable)?.to_owned(), Dated { secret, at }))
        })
        .collect()
}

static ENDED: Statement = Statement::query(
    c"SELECT v.secret_id, v.expires_at FROM vault.secret_versions v
       WHERE v.expires_at IS NOT NULL AND NOT v.settled AND v.expires_at <= $1 AND (v.expires_at, v.secret_id) > ($2, $3)
       ORDER BY v.expires_at, v.secret_id LIMIT $4",
    &[TIMESTAMPTZ, TIMESTAMPTZ, pg_sys::UUIDOID, pg_sys::INT4OID],
);

/// Versions whose grace is over and has not been dealt with.
pub fn ended(spi: &Spi, now: i64, after: Place, limit: i32) -> Result<Vec<Dated>> {
    spi.prefer_index_order();
    spi.run(&ENDED, &place(now, after, limit))?.iter().map(|row| dated(&row)).collect()
}

static LOCK: Statement = Statement::new(
    c"SELECT s.name, s.keep_versions FROM vault.secrets s WHERE s.id = $1 FOR UPDATE SKIP LOCKED",
    &[pg_sys::UUIDOID],
);

/// Locks a secret and returns its name and `keep_versions`; None if there is none, or somebody else has it.
pub fn lock(spi: &Spi, secret: Id) -> Result<Option<(String, Option<i32>)>> {
    spi.run(&LOCK, &[Bind::Uuid(secret)])?
        .first()
        .map(|row| Ok((row.text(1).ok_or_else(unreadable)?.to_owned(), row.int(2))))
        .transpose()
}

static SETTLE: Statement = Statement::new(
    c"UPDATE vault.secret_versions SET settled = true
       WHERE secret_id = $1 AND expires_at <= $2 AND NOT settled RETURNING version, version_id, wrapped_dek",
    &[pg_sys::UUIDOID, TIMESTAMPTZ],
);

/// Marks the versions of a locked secret whose grace is over as dealt with, and returns them.
pub fn settle(spi: &Spi, secret: Id, now: i64) -> Result<Vec<StoredKey>> {
    let rows = spi.run(&SETTLE, &[Bind::Uuid(secret), Bind::Timestamp(now)])?;
    Ok(rows.iter().filter_map(StoredKey::of).collect())
}

static COUNT: Statement = Statement::query(
    sql!(
        "SELECT count(*) FILTER (WHERE s.next_rotation_at <= clock_timestamp()), \
           count(*) FILTER (WHERE s.rotation_attempts > 0) FROM vault.secrets s WHERE s.kind = 'automatic' AND ",
        live!()
    ),
    &[],
);

/// How many rotations are due and not done, and how many have failed.
pub fn count(spi: &Spi) -> Result<(i64, i64)> {
    let rows = spi.run(&COUNT, &[])?;
    Ok(rows.first().map_or((0, 0), |row| (row.bigint(1).unwrap_or(0), row.bigint(2).unwrap_or(0))))
}
