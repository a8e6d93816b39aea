//! What the workers look for: rotations that are due, grace periods that are over, secrets that have run out.
//!
//! A worker of the vault's database, on a primary. Every search walks an index over dates, from the place where the search
//! before ended, to now: what is not due costs nothing, and rows that somebody else has locked are not met twice in one
//! pass. Secrets are judged again under their lock.
//!
//! The trap it avoids: waiting for a row. Whatever is locked is left for the next pass.

use hyperion_vault_core::envelope::{Format, Id};
use hyperion_vault_core::secret::Presence;
use pgrx::pg_sys::Datum;

use super::derived::{self, BY_DATE, DATES, DateKind, Derived, date, due_at};
use super::secrets::{self, BY_ID, Locked, SECRETS, column, is_automatic, presence, unreadable};
use crate::error::Result;
use crate::pg::datum;
use crate::pg::heap::Write;
use crate::pg::scan::{Bound, Direction, Key, Op};
use crate::pg::tuple::Tuple;

/// Where a search ended: after this date and id. [`START`] is before everything.
pub type Place = (i64, Id);
pub const START: Place = (i64::MIN, Id([0; 16]));

/// Secrets with a date of a kind at or before `now`, the earliest first, behind a place, at most `limit`.
fn dated(kind: DateKind, now: i64, (after, last): Place, limit: usize) -> Result<Vec<Dated>> {
    let mut found = Vec::new();
    let kind = Bound { column: 0, op: Op::Eq, key: kind.key() };
    let at = |op, at| Bound { column: 1, op, key: Key::Time(at) };
    // Of the same date the rest, then the later ones: any number of secrets may have the same.
    let same = [kind, at(Op::Eq, after), Bound { column: 2, op: Op::Gt, key: Key::Uuid(last) }];
    let later = [kind, at(Op::Gt, after), at(Op::Le, now)];
    DATES.with(|table| {
        for bounds in [&same, &later] {
            table.scan(BY_DATE, bounds, Direction::Forward, |row| {
                if found.len() < limit {
                    let secret = row.uuid(date::SECRET_ID).ok_or_else(unreadable)?;
                    found.push(Dated {
                        secret,
                        at: (row.timestamp(date::AT).ok_or_else(unreadable)?, secret),
                    });
                }
                Ok(found.len() < limit)
            })?;
            if found.len() >= limit {
                break;
            }
        }
        Ok(found)
    })
}

/// The first date of a kind.
fn first(kind: DateKind) -> Result<Option<i64>> {
    DATES.with(|table| {
        let kind = [Bound { column: 0, op: Op::Eq, key: kind.key() }];
        table.find(BY_DATE, &kind, Direction::Forward, |row| Ok(row.timestamp(date::AT)))
    })
}

fn by_id<R>(id: Id, read: impl FnOnce(&Tuple<'_>) -> Option<R>) -> Result<Option<R>> {
    SECRETS.with(|table| table.point(BY_ID, &[Key::Uuid(id)], None, |row| Ok(row.and_then(read))))
}

/// A secret whose rotation is due.
pub struct Due {
    pub id: Id,
    pub name: String,
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

impl Lane {
    fn kind(self) -> DateKind {
        match self {
            Self::Own => DateKind::Rotation,
            Self::Hooks => DateKind::HookRotation,
        }
    }
}

/// What a search found, and where to go on if there may be more.
pub struct Found<T> {
    pub rows: Vec<T>,
    /// Secrets that the date is not true of; see [`heal`].
    pub stale: Vec<Id>,
    pub next: Option<Place>,
}

/// Secrets of a lane to rotate at `now`, the longest overdue first.
pub fn due(lane: Lane, now: i64, after: Place, limit: usize) -> Result<Found<Due>> {
    let dated = dated(lane.kind(), now, after, limit)?;
    let next = dated.last().filter(|_| dated.len() == limit).map(|last| last.at);
    let (mut rows, mut stale) = (Vec::with_capacity(dated.len()), Vec::new());
    for Dated { secret, .. } in dated {
        let is_true = |row: &Tuple<'_>| due_at(row).is_some_and(|at| at <= now);
        match by_id(secret, |row| is_true(row).then(|| is_live(row).then(|| read_due(row)).flatten()))? {
            Some(due) => rows.extend(due),
            None => stale.push(secret),
        }
    }
    Ok(Found { rows, stale, next })
}

fn is_due(row: &Tuple<'_>, now: i64) -> bool {
    due_at(row).is_some_and(|at| at <= now) && is_live(row)
}

fn is_live(row: &Tuple<'_>) -> bool {
    presence(row.timestamp(column::EXPIRES_AT), row.timestamp(column::RECOVER_UNTIL)) == Presence::Live
}

fn read_due(row: &Tuple<'_>) -> Option<Due> {
    Some(Due {
        id: row.uuid(column::ID)?,
        name: row.text(column::NAME)?.to_owned(),
        format: Format::parse(row.text(column::FORMAT)?)?,
        attempts: attempts(row),
        has_target: row.pointer(column::TARGET).is_some(),
    })
}

fn attempts(row: &Tuple<'_>) -> u32 {
    row.int(column::ROTATION_ATTEMPTS).and_then(|attempts| u32::try_from(attempts).ok()).unwrap_or(0)
}

/// Whether anything of the lane [`Lane::Hooks`] is due.
pub fn hooks_are_due(now: i64) -> Result<bool> {
    /// How many are looked at in a go: what is found by its date is nearly always due.
    const LOOKED_AT: usize = 16;
    let mut after = START;
    loop {
        let found = due(Lane::Hooks, now, after, LOOKED_AT)?;
        match found.next {
            _ if !found.rows.is_empty() => return Ok(true),
            Some(next) => after = next,
            None => return Ok(false),
        }
    }
}

/// The next date of any kind, rotations only if they are wanted.
pub fn next(rotations: bool) -> Result<Option<i64>> {
    let mut next: Option<i64> = None;
    for kind in [DateKind::End, DateKind::Grace, DateKind::Rotation, DateKind::HookRotation] {
        let wanted = rotations || !matches!(kind, DateKind::Rotation | DateKind::HookRotation);
        if wanted && let Some(at) = first(kind)? {
            next = Some(next.map_or(at, |next| next.min(at)));
        }
    }
    Ok(next)
}

/// A secret that is due and locked.
pub struct LockedDue<'w> {
    secret: Locked<'w>,
    /// As of now: it may have been renamed since it was found.
    pub name: String,
    pub attempts: u32,
}

/// Locks a secret whose rotation is due; None if it is not (any more), or somebody else has it.
pub fn lock_due<'w>(write: &'w Write, id: Id, now: i64) -> Result<Option<LockedDue<'w>>> {
    let Some(secret) = secrets::lock_if_free(write, id)? else { return Ok(None) };
    let found = {
        let row = secret.row()?;
        is_due(&row, now).then(|| Some((row.text(column::NAME)?.to_owned(), attempts(&row))))
    };
    let Some(found) = found else { return Ok(None) };
    let (name, attempts) = found.ok_or_else(unreadable)?;
    Ok(Some(LockedDue { secret, name, attempts }))
}

/// Remembers that the rotation of a locked secret failed.
pub fn failed(
    write: &Write,
    locked: &LockedDue<'_>,
    attempts: u32,
    error: &str,
    retry_at: i64,
) -> Result<()> {
    let attempts = i32::try_from(attempts).unwrap_or(i32::MAX);
    secrets::change(
        write,
        &locked.secret,
        &[
            (column::ROTATION_ATTEMPTS, Some(Datum::from(attempts))),
            (column::ROTATION_ERROR, Some(datum::varlena(error.as_bytes()))),
            (column::ROTATION_RETRY_AT, Some(Datum::from(retry_at))),
        ],
    )
    .map(drop)
}

/// A secret found by a date.
pub struct Dated {
    pub secret: Id,
    pub at: Place,
}

/// Secrets that have run out, or were deleted and whose recovery window is over.
pub fn gone(now: i64, after: Place, limit: usize) -> Result<Vec<Dated>> {
    dated(DateKind::End, now, after, limit)
}

/// Secrets with a version whose grace is over and has not been dealt with.
pub fn ended(now: i64, after: Place, limit: usize) -> Result<Vec<Dated>> {
    dated(DateKind::Grace, now, after, limit)
}

/// Locks a secret; None if there is none, or somebody else has it.
pub fn lock<'w>(write: &'w Write, secret: Id) -> Result<Option<LockedAny<'w>>> {
    let Some(secret) = secrets::lock_if_free(write, secret)? else { return Ok(None) };
    let name = secret.row()?.text(column::NAME).ok_or_else(unreadable)?.to_owned();
    Ok(Some(LockedAny { name, secret }))
}

/// A locked secret, and its name.
pub struct LockedAny<'w> {
    pub name: String,
    pub secret: Locked<'w>,
}

/// Makes the dates of a secret what its row says: a date was found that it does not have, or is missing. Left alone if
/// somebody else has the secret, who keeps them.
pub fn heal(write: &Write, secret: Id) -> Result<()> {
    match secrets::lock_if_free(write, secret)? {
        Some(locked) => derived::sync(write, &Derived::of(&locked.row()?)?),
        None if by_id(secret, |_| Some(()))?.is_none() => derived::forget(write, secret),
        None => Ok(()),
    }
}

/// What the schedule says of a row of `vault.secrets` that is live.
pub(super) fn counted(row: &Tuple<'_>, now: i64) -> (bool, bool) {
    if !is_automatic(row) {
        return (false, false);
    }
    (row.timestamp(column::NEXT_ROTATION_AT).is_some_and(|at| at <= now), attempts(row) > 0)
}
