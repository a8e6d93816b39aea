//! `vault.secret_dates`, `vault.target_roles`: what is looked for by a date or a role, derived from the rows of
//! `vault.secrets` and `vault.secret_versions`.
//!
//! Client backends and database workers, main thread, under the lock of the secret. Tables of their own, so that a secret
//! without such a date costs nothing more, and no index of `vault.secrets` needs an expression or a condition to be
//! evaluated. They are not dumped: triggers make them anew when the rows are restored, and keep them where a superuser
//! changes rows in SQL.
//!
//! A row here says where to look, never what to do: whoever finds one judges the secret itself, under its lock. A date is
//! never later than the secret's own, but may be earlier, and is moved when it has come. The trap it avoids: a date that is left behind or comes twice; each is found by its key (secret and kind) before it is changed.

use hyperion_vault_core::envelope::Id;
use hyperion_vault_core::secret::Target;
use pgrx::pg_sys::{Datum, Oid};

use super::secrets::{BY_ID, SECRETS, column, is_automatic, unreadable};
use super::versions::VERSIONS;
use crate::error::Result;
use crate::pg::datum;
use crate::pg::heap::{Wait, Write};
use crate::pg::scan::{Bound, Direction, Index, Key, Op, Table, equal};
use crate::pg::tuple::Tuple;

/// Columns of [`DATES`].
pub(super) mod date {
    pub const SECRET_ID: i16 = 1;
    pub const KIND: i16 = 2;
    pub const AT: i16 = 3;
}

/// Columns of [`TARGET_ROLES`].
mod role {
    pub const ROLE: i16 = 1;
    pub const SECRET_ID: i16 = 2;
}

thread_local! {
    pub(super) static DATES: Table = const {
        Table::new(
            c"secret_dates",
            &[c"secret_id", c"kind", c"at"],
            &[
                Index { name: c"secret_dates_pkey", columns: &[date::SECRET_ID, date::KIND] },
                Index { name: c"secret_dates_at_idx", columns: &[date::KIND, date::AT, date::SECRET_ID] },
            ],
        )
        .derived()
    };
    static TARGET_ROLES: Table = const {
        Table::new(
            c"target_roles",
            &[c"role", c"secret_id"],
            &[Index { name: c"target_roles_pkey", columns: &[role::ROLE, role::SECRET_ID] }],
        )
        .derived()
    };
}

/// Indexes of [`DATES`].
const BY_SECRET: usize = 0;
pub(super) const BY_DATE: usize = 1;

/// What a date is for: `vault.secret_dates.kind`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i16)]
pub enum DateKind {
    /// Scheduled rotation is due, or tried again.
    Rotation = 1,
    /// The same of a secret whose target is a function.
    HookRotation = 2,
    /// The secret runs out, or its recovery window ends.
    End = 3,
    /// The first grace of a superseded version ends that has not been dealt with.
    Grace = 4,
}

impl DateKind {
    const OF_SECRET: [Self; 3] = [Self::Rotation, Self::HookRotation, Self::End];

    pub(super) fn key(self) -> Key<'static> {
        Key::Short(self as i16)
    }
}

/// What is derived from a row of `vault.secrets`.
pub(super) struct Derived {
    pub id: Id,
    rotation: Option<(DateKind, i64)>,
    end: Option<i64>,
    target_roles: Vec<Oid>,
}

impl Derived {
    /// Of no row.
    pub fn none() -> Self {
        Self { id: Id([0; 16]), rotation: None, end: None, target_roles: Vec::new() }
    }

    pub fn of(row: &Tuple<'_>) -> Result<Self> {
        let target = row.jsonb(column::TARGET);
        let kind = match target.as_deref().map(Target::parse) {
            Some(Ok(Target::Function(_))) => DateKind::HookRotation,
            _ => DateKind::Rotation,
        };
        Ok(Self {
            id: row.uuid(column::ID).ok_or_else(unreadable)?,
            rotation: due_at(row).map(|at| (kind, at)),
            end: earlier(row.timestamp(column::EXPIRES_AT), row.timestamp(column::RECOVER_UNTIL)),
            target_roles: match target {
                Some(_) => row.oid_array(column::TARGET_ROLES).flatten().unwrap_or_default(),
                None => Vec::new(),
            },
        })
    }

    fn date(&self, kind: DateKind) -> Option<i64> {
        match kind {
            DateKind::End => self.end,
            kind => self.rotation.filter(|(known, _)| *known == kind).map(|(_, at)| at),
        }
    }
}

/// When a secret's scheduled rotation is due: a next try is after the date. None if it has no schedule.
pub(super) fn due_at(row: &Tuple<'_>) -> Option<i64> {
    if !is_automatic(row) || row.timestamp(column::RECOVER_UNTIL).is_some() {
        return None;
    }
    let (next, retry) = (row.timestamp(column::NEXT_ROTATION_AT), row.timestamp(column::ROTATION_RETRY_AT));
    next.max(retry)
}

fn earlier(a: Option<i64>, b: Option<i64>) -> Option<i64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// A secret's row has changed from one state to the other; `before` is empty for a new one.
pub(super) fn secret_changed(write: &Write, before: &Derived, after: &Derived) -> Result<()> {
    for kind in DateKind::OF_SECRET {
        if before.date(kind) != after.date(kind) {
            move_date(write, after.id, kind, after.date(kind))?;
        }
    }
    if before.target_roles != after.target_roles {
        forget_roles(write, after.id, &before.target_roles)?;
        after.target_roles.iter().try_for_each(|oid| add_role(write, after.id, *oid))?;
    }
    Ok(())
}

fn add_role(write: &Write, secret: Id, oid: Oid) -> Result<()> {
    let key = [Key::Oid(oid), Key::Uuid(secret)];
    let row = [(role::ROLE, Some(Datum::from(oid))), (role::SECRET_ID, Some(datum::uuid(secret)))];
    TARGET_ROLES.with(|table| table.insert_unless_present(write, 0, &key, &row).map(drop))
}

/// A secret's row is gone.
pub(super) fn secret_deleted(write: &Write, before: &Derived) -> Result<()> {
    forget_roles(write, before.id, &before.target_roles)?;
    let mut dates = Vec::new();
    DATES.with(|table| {
        let held = table.hold(write)?;
        table.scan(BY_SECRET, &equal([Key::Uuid(before.id)]), Direction::Forward, |row| {
            dates.push(held.take(row));
            Ok(true)
        })?;
        dates.iter().try_for_each(|date| match table.lock_taken(write, date)? {
            Some(date) => table.delete(write, &date),
            None => Ok(()),
        })
    })
}

fn forget_roles(write: &Write, secret: Id, roles: &[Oid]) -> Result<()> {
    TARGET_ROLES.with(|table| {
        for oid in roles {
            if let Some(row) =
                table.lock(write, 0, &[Key::Oid(*oid), Key::Uuid(secret)], None, Wait::Block)?
            {
                table.delete(write, &row)?;
            }
        }
        Ok(())
    })
}

/// Sets or removes a date of a secret: of one that is locked, or as a restore brings it.
pub(super) fn set_date(write: &Write, secret: Id, kind: DateKind, at: Option<i64>) -> Result<()> {
    change_date(write, secret, kind, |_| at)
}

/// The same, but a date that has not come stays where it is if it is to be later: whoever finds it then moves it
/// ([`sync`]). So many changes of one secret in one transaction do not each leave a row behind that nobody can remove yet.
fn move_date(write: &Write, secret: Id, kind: DateKind, at: Option<i64>) -> Result<()> {
    let now = crate::pg::clock();
    change_date(write, secret, kind, |known| match (known, at) {
        (Some(known), Some(at)) if known > now && known <= at => Some(known),
        _ => at,
    })
}

/// Makes a date what `at` says for the one there is; asked again after a wait.
fn change_date(
    write: &Write,
    secret: Id,
    kind: DateKind,
    at: impl Fn(Option<i64>) -> Option<i64>,
) -> Result<()> {
    let key = [Key::Uuid(secret), kind.key()];
    DATES.with(|table| {
        loop {
            let known =
                table.point(BY_SECRET, &key, None, |row| Ok(row.map(|row| row.timestamp(date::AT))))?;
            match (known, at(known.flatten())) {
                (None, None) => return Ok(()),
                (Some(known), at) if known == at => return Ok(()),
                (Some(seen), at) => {
                    let Some(row) = table.lock(write, BY_SECRET, &key, None, Wait::Block)? else { continue };
                    if row.row()?.timestamp(date::AT) != seen {
                        continue;
                    }
                    return match at {
                        Some(at) => table.update(write, &row, &[(date::AT, Some(Datum::from(at)))]).map(drop),
                        None => table.delete(write, &row),
                    };
                }
                (None, Some(at)) => {
                    let row = [
                        (date::SECRET_ID, Some(datum::uuid(secret))),
                        (date::KIND, Some(Datum::from(kind as i16))),
                        (date::AT, Some(Datum::from(at))),
                    ];
                    if table.insert_unless_present(write, BY_SECRET, &key, &row)?.is_some() {
                        return Ok(());
                    }
                }
            }
            pgrx::check_for_interrupts!();
        }
    })
}

/// Makes everything that is derived from a secret's row what the row says.
pub(super) fn sync(write: &Write, derived: &Derived) -> Result<()> {
    for kind in DateKind::OF_SECRET {
        set_date(write, derived.id, kind, derived.date(kind))?;
    }
    derived.target_roles.iter().try_for_each(|oid| add_role(write, derived.id, *oid))
}

/// Whether everything that is derived from a secret's row is there: dates on time, if maybe too early.
fn is_synced(derived: &Derived) -> Result<bool> {
    for kind in DateKind::OF_SECRET {
        let known = DATES.with(|table| {
            let key = [Key::Uuid(derived.id), kind.key()];
            table.point(BY_SECRET, &key, None, |row| Ok(row.and_then(|row| row.timestamp(date::AT))))
        })?;
        let on_time = match (known, derived.date(kind)) {
            (Some(known), Some(at)) => known <= at,
            (known, at) => known == at,
        };
        if !on_time {
            return Ok(false);
        }
    }
    for oid in &derived.target_roles {
        let key = [Key::Oid(*oid), Key::Uuid(derived.id)];
        if !TARGET_ROLES.with(|table| table.point(0, &key, None, |row| Ok(row.is_some())))? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A page of a walk over all rows, to find what is not derived from them.
pub struct Walked {
    /// Secrets that something is missing of.
    pub unsynced: Vec<Id>,
    /// Where the next page begins; None at the end.
    pub next: Option<Id>,
}

/// Rows of a page.
const PAGE: usize = 1000;

/// Walks over secrets behind one of them in the order of their ids.
pub fn walk_secrets(after: Id) -> Result<Walked> {
    let mut all = Vec::new();
    let behind = [Bound { column: 0, op: Op::Gt, key: Key::Uuid(after) }];
    SECRETS.with(|table| {
        table.scan(BY_ID, &behind, Direction::Forward, |row| {
            all.push(Derived::of(row)?);
            Ok(all.len() < PAGE)
        })
    })?;
    let next = all.last().filter(|_| all.len() == PAGE).map(|last| last.id);
    let mut unsynced = Vec::new();
    for derived in all {
        if !is_synced(&derived)? {
            unsynced.push(derived.id);
        }
    }
    Ok(Walked { unsynced, next })
}

/// Walks over superseded versions of the secrets behind one, and makes the dates that are missing of their grace periods.
/// Where the next page begins; None at the end.
pub fn walk_versions(write: &Write, after: Id) -> Result<Option<Id>> {
    use super::versions::column;
    let mut ends: Vec<(Id, Option<i64>)> = Vec::new();
    let (mut rows, mut next) = (0, None);
    let behind = [Bound { column: 0, op: Op::Gt, key: Key::Uuid(after) }];
    VERSIONS.with(|table| {
        table.scan(0, &behind, Direction::Forward, |row| {
            let secret = row.uuid(column::SECRET_ID).ok_or_else(unreadable)?;
            if ends.last().is_none_or(|(last, _)| *last != secret) {
                // Whole secrets, however many versions one has.
                if rows >= PAGE {
                    next = ends.last().map(|(last, _)| *last);
                    return Ok(false);
                }
                ends.push((secret, None));
            }
            rows += 1;
            let open = row.timestamp(column::EXPIRES_AT).filter(|_| row.bool(column::SETTLED) != Some(true));
            if let Some((_, end)) = ends.last_mut() {
                *end = earlier(*end, open);
            }
            Ok(true)
        })
    })?;
    for (secret, end) in ends {
        if let Some(end) = end {
            grace_ends(write, secret, end)?;
        }
    }
    Ok(next)
}

/// Removes all that is derived from a secret that is gone.
pub(super) fn forget(write: &Write, secret: Id) -> Result<()> {
    secret_deleted(write, &Derived { id: secret, ..Derived::none() })
}

/// Moves when the tables that this is derived from may have been altered, so that their triggers did not run.
pub fn alterations() -> Result<(u64, u64)> {
    Ok((SECRETS.with(|table| table.alterations())?, VERSIONS.with(|table| table.alterations())?))
}

/// A version's grace ends at that time: the date is moved there if it is later, or made.
pub(super) fn grace_ends(write: &Write, secret: Id, at: i64) -> Result<()> {
    change_date(write, secret, DateKind::Grace, |known| Some(known.map_or(at, |known| known.min(at))))
}

/// The secrets that one of these roles is a target of.
pub(super) fn secrets_of_roles(roles: &[Oid]) -> Result<Vec<Id>> {
    let mut found = Vec::new();
    TARGET_ROLES.with(|table| {
        roles.iter().try_for_each(|oid| {
            table.scan(0, &equal([Key::Oid(*oid)]), Direction::Forward, |row| {
                found.extend(row.uuid(role::SECRET_ID));
                Ok(true)
            })
        })
    })?;
    Ok(found)
}
