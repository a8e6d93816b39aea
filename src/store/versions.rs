//! `vault.secret_versions`: superseded versions, in grace or retained.
//!
//! Client backends and database workers, main thread. Whether a version is in grace is a matter of the clock, not of a
//! background job: it is judged at each read. Versions are written under the lock of their secret's row. The trap it
//! avoids: a write that walks over all versions that the same transaction has superseded and removed before.

use hyperion_vault_core::envelope::{Format, Id};
use hyperion_vault_core::secret::VersionState;
use hyperion_vault_core::secret::version::{Superseded, Timestamp, versions_to_purge};
use pgrx::pg_sys::Datum;

use super::derived;
use super::secrets::{self, Draft, Sealed, Stored, unreadable};
use crate::area;
use crate::error::Result;
use crate::pg::datum;
use crate::pg::heap::{RowLock, Write};
use crate::pg::scan::{Direction, Index, Key, Table, equal};
use crate::pg::tuple::Tuple;

thread_local! {
    pub(super) static VERSIONS: Table = const {
        Table::new(
            c"secret_versions",
            &[
                c"secret_id", c"version_id", c"version", c"format", c"wrapped_dek", c"sealed", c"kms_key_id",
                c"kms_key_material_id", c"created_at", c"superseded_at", c"expires_at", c"settled",
            ],
            &[Index { name: c"secret_versions_pkey", columns: &[column::SECRET_ID, column::VERSION] }],
        )
    };
}

/// Columns of [`VERSIONS`].
pub(super) mod column {
    pub const SECRET_ID: i16 = 1;
    pub const VERSION_ID: i16 = 2;
    pub const VERSION: i16 = 3;
    pub const FORMAT: i16 = 4;
    pub const WRAPPED_DEK: i16 = 5;
    pub const SEALED: i16 = 6;
    pub const KMS_KEY_ID: i16 = 7;
    pub const KMS_KEY_MATERIAL_ID: i16 = 8;
    pub const CREATED_AT: i16 = 9;
    pub const SUPERSEDED_AT: i16 = 10;
    pub const EXPIRES_AT: i16 = 11;
    pub const SETTLED: i16 = 12;
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
        table.point(0, &[Key::Uuid(secret), Key::Int(version)], places, |row| match row {
            None => visit(None),
            Some(row) => visit(Some(&read(row).ok_or_else(unreadable)?)),
        })
    })
}

/// A superseded version by its number, in whatever state.
pub fn by_number(secret: Id, version: i32) -> Result<Option<Sealed>> {
    visit(secret, version, |found| Ok(found.map(|found| found.to_sealed())))
}

/// Calls `visit` for the superseded versions of a secret until it says stop (false).
fn each(secret: Id, direction: Direction, visit: impl FnMut(&Tuple<'_>) -> Result<bool>) -> Result<()> {
    VERSIONS.with(|table| table.scan(0, &equal([Key::Uuid(secret)]), direction, visit))
}

/// All superseded versions, in whatever state.
pub fn all(secret: Id) -> Result<Vec<Sealed>> {
    let mut found = Vec::new();
    each(secret, Direction::Forward, |row| {
        found.push(read(row).ok_or_else(unreadable)?.to_sealed());
        Ok(true)
    })?;
    Ok(found)
}

/// The superseded versions still in grace at `now`, newest first.
pub fn in_grace(secret: Id, now: i64) -> Result<Vec<Sealed>> {
    let mut found = Vec::new();
    each(secret, Direction::Backward, |row| {
        // Judged before anything is copied: retained versions may be many and large.
        if row.timestamp(column::EXPIRES_AT).is_some_and(|end| end > now) {
            found.push(read(row).ok_or_else(unreadable)?.to_sealed());
        }
        Ok(true)
    })?;
    Ok(found)
}

/// Keeps the current version of a locked secret, which is about to be replaced: in grace if the secret has (or is about to
/// get) a grace period, else retained. Returns the end of its grace, which is [`Draft::replace`]'s too: whatever else ever
/// prolongs a grace must remember it in `grace_until` as well.
pub fn keep_current(write: &Write, draft: &Draft<'_, '_>, now: i64) -> Result<Option<i64>> {
    use secrets::column as from;
    let locked = draft.locked();
    let end = draft.grace_end(now)?;
    let row = locked.row()?;
    let as_stored = |column| row.pointer(column);
    VERSIONS.with(|table| {
        table.insert(
            write,
            &[
                (column::SECRET_ID, Some(datum::uuid(locked.id))),
                (column::VERSION_ID, Some(datum::uuid(locked.version_id))),
                (column::VERSION, Some(Datum::from(locked.version))),
                (column::FORMAT, as_stored(from::FORMAT)),
                (column::WRAPPED_DEK, as_stored(from::WRAPPED_DEK)),
                (column::SEALED, Some(datum::varlena(row.bytes(from::SEALED).ok_or_else(unreadable)?))),
                (column::KMS_KEY_ID, as_stored(from::KMS_KEY_ID)),
                (column::KMS_KEY_MATERIAL_ID, as_stored(from::KMS_KEY_MATERIAL_ID)),
                (column::CREATED_AT, row.timestamp(from::VERSION_CREATED_AT).map(Datum::from)),
                (column::SUPERSEDED_AT, Some(Datum::from(now))),
                (column::EXPIRES_AT, end.map(Datum::from)),
                (column::SETTLED, Some(Datum::from(false))),
            ],
        )
    })?;
    if let Some(end) = end {
        derived::grace_ends(write, locked.id, end)?;
    }
    Ok(end)
}

/// Ends the grace of a superseded version of a locked secret now.
pub fn end_grace(write: &Write, secret: Id, version: i32, now: i64) -> Result<()> {
    VERSIONS.with(|table| {
        let key = equal([Key::Uuid(secret), Key::Int(version)]);
        let held = table.hold(write)?;
        let found = table.find(0, &key, Direction::Forward, |row| {
            let open = row.timestamp(column::EXPIRES_AT).is_some_and(|end| end > now);
            Ok(open.then(|| held.take(row)))
        })?;
        let Some(found) = found else { return Ok(()) };
        table.update(write, &found, &[(column::EXPIRES_AT, Some(Datum::from(now)))])?;
        derived::grace_ends(write, secret, now)
    })
}

/// A version and its key as it is stored.
pub struct StoredKey {
    pub version: i32,
    pub version_id: Id,
    pub wrapped: Vec<u8>,
}

impl StoredKey {
    fn of(row: &Tuple<'_>) -> Option<Self> {
        Some(Self {
            version: row.int(column::VERSION)?,
            version_id: row.uuid(column::VERSION_ID)?,
            wrapped: row.bytes(column::WRAPPED_DEK)?.to_vec(),
        })
    }
}

/// The keys of all superseded versions of a locked secret.
pub fn keys(secret: Id) -> Result<Vec<StoredKey>> {
    let mut found = Vec::new();
    each(secret, Direction::Forward, |row| {
        found.extend(StoredKey::of(row));
        Ok(true)
    })?;
    Ok(found)
}

/// Replaces the sealed bytes of a superseded version of a locked secret, which is being renamed.
pub fn seal_again(write: &Write, version: &Sealed, sealed: &[u8]) -> Result<()> {
    VERSIONS.with(|table| {
        let key = equal([Key::Uuid(version.secret), Key::Int(version.version)]);
        let held = table.hold(write)?;
        let found = table.find(0, &key, Direction::Forward, |row| Ok(Some(held.take(row))))?;
        match found {
            Some(found) => {
                table.update(write, &found, &[(column::SEALED, Some(datum::varlena(sealed)))]).map(drop)
            }
            None => Err(unreadable()),
        }
    })
}

/// Deletes the retained versions of a locked secret beyond the newest `keep`, and returns them.
pub fn purge(write: &Write, secret: Id, keep: u32, now: i64) -> Result<Vec<StoredKey>> {
    let mut superseded = Vec::new();
    each(secret, Direction::Forward, |row| {
        let version = row.int(column::VERSION).ok_or_else(unreadable)?;
        superseded.push(Superseded { version, expires_at: row.timestamp(column::EXPIRES_AT).map(Timestamp) });
        Ok(true)
    })?;
    let purged = versions_to_purge(Timestamp(now), &superseded, keep);
    delete(write, secret, |version| purged.binary_search(&version).is_ok())
}

/// As [`purge`], after one more version was superseded: as a rule there is one retained version too many, the oldest. So
/// the versions are looked at from the newest on, and no further than that one, since all that the same transaction may
/// have removed before are behind it. If the version before it is there too, there are more, and all of them go.
pub fn purge_next(write: &Write, secret: Id, keep: u32, now: i64) -> Result<Vec<StoredKey>> {
    let Some(purged) = purge_one(write, secret, keep, now)? else { return Ok(Vec::new()) };
    let before = purged.version - 1;
    if VERSIONS
        .with(|table| table.point(0, &[Key::Uuid(secret), Key::Int(before)], None, |row| Ok(row.is_none())))?
    {
        return Ok(vec![purged]);
    }
    let mut all = purge(write, secret, keep, now)?;
    all.push(purged);
    Ok(all)
}

fn purge_one(write: &Write, secret: Id, keep: u32, now: i64) -> Result<Option<StoredKey>> {
    let mut retained = 0;
    let mut found: Option<(RowLock<'_>, StoredKey)> = None;
    VERSIONS.with(|table| {
        let held = table.hold(write)?;
        table.scan(0, &equal([Key::Uuid(secret)]), Direction::Backward, |row| {
            let end = row.timestamp(column::EXPIRES_AT).map(Timestamp);
            if VersionState::at(Timestamp(now), false, end) == VersionState::Retained {
                retained += 1;
                if retained > keep {
                    found = Some((held.take(row), StoredKey::of(row).ok_or_else(unreadable)?));
                    return Ok(false);
                }
            }
            Ok(true)
        })?;
        let Some((row, key)) = found else { return Ok(None) };
        table.delete(write, &row)?;
        Ok(Some(key))
    })
}

/// Deletes every superseded version of a locked secret, which is about to be deleted itself, and returns them.
pub fn delete_all(write: &Write, secret: Id) -> Result<Vec<StoredKey>> {
    delete(write, secret, |_| true)
}

fn delete(write: &Write, secret: Id, is_wanted: impl Fn(i32) -> bool) -> Result<Vec<StoredKey>> {
    let (mut rows, mut keys) = (Vec::new(), Vec::new());
    VERSIONS.with(|table| {
        let held = table.hold(write)?;
        table.scan(0, &equal([Key::Uuid(secret)]), Direction::Forward, |row| {
            let key = StoredKey::of(row).ok_or_else(unreadable)?;
            if is_wanted(key.version) {
                rows.push(held.take(row));
                keys.push(key);
            }
            Ok(true)
        })?;
        rows.iter().try_for_each(|row| table.delete(write, row))
    })?;
    Ok(keys)
}

/// Marks the versions of a locked secret whose grace is over as dealt with, and returns them. The secret's next date of
/// this kind is that of the first of the others.
pub fn settle(write: &Write, secret: Id, now: i64) -> Result<Vec<StoredKey>> {
    let (mut rows, mut keys, mut next) = (Vec::new(), Vec::new(), None::<i64>);
    VERSIONS.with(|table| {
        let held = table.hold(write)?;
        table.scan(0, &equal([Key::Uuid(secret)]), Direction::Forward, |row| {
            match row.timestamp(column::EXPIRES_AT) {
                Some(end) if row.bool(column::SETTLED) != Some(true) => {
                    if end <= now {
                        rows.push(held.take(row));
                        keys.push(StoredKey::of(row).ok_or_else(unreadable)?);
                    } else {
                        next = Some(next.map_or(end, |next| next.min(end)));
                    }
                }
                _ => {}
            }
            Ok(true)
        })?;
        let settled = [(column::SETTLED, Some(Datum::from(true)))];
        rows.iter().try_for_each(|row| table.update(write, row, &settled).map(drop))
    })?;
    derived::set_date(write, secret, derived::DateKind::Grace, next)?;
    Ok(keys)
}

/// The body of the trigger on `vault.secret_versions`, for what a superuser does in SQL: the date of its grace is found.
pub fn row_changed(args: &crate::pg::fcinfo::Args) -> Result<crate::pg::fcinfo::Return> {
    VERSIONS.with(|table| {
        crate::pg::triggers::changed_row(args, table, |_, new| {
            let Some(new) = new else { return Ok(()) };
            match (new.uuid(column::SECRET_ID), new.timestamp(column::EXPIRES_AT)) {
                (Some(secret), Some(end)) if new.bool(column::SETTLED) != Some(true) => {
                    let write = Write::begin();
                    // As every writer of its dates does, if the secret is there already.
                    secrets::lock_by_id(&write, secret)?;
                    derived::grace_ends(&write, secret, end)
                }
                _ => Ok(()),
            }
        })
    })
}

/// One version as `vault.list_versions` shows it.
pub struct Listed {
    pub version: i32,
    pub created_at: Option<Datum>,
    pub expires_at: Option<Datum>,
    pub kms_key_id: Option<Datum>,
    pub current: bool,
}

/// All versions of a live secret, newest first; none if there is no such secret.
pub fn list(name: &str, mut each: impl FnMut(Listed) -> Result<()>) -> Result<usize> {
    // One snapshot for both tables would not do: the rows are found through an index each. What is superseded between the
    // two looks is left out of the second.
    let Some(current) = secrets::current(name)? else { return Ok(0) };
    let text = |text: &str| Some(datum::varlena(text.as_bytes()));
    each(Listed {
        version: current.version,
        created_at: Some(Datum::from(current.created_at)),
        expires_at: None,
        kms_key_id: text(&current.key_id),
        current: true,
    })?;
    let mut count = 1;
    self::each(current.secret, Direction::Backward, |row| {
        let version = row.int(column::VERSION).ok_or_else(unreadable)?;
        if version != current.version {
            count += 1;
            each(Listed {
                version,
                created_at: row.timestamp(column::CREATED_AT).map(Datum::from),
                expires_at: row.timestamp(column::EXPIRES_AT).map(Datum::from),
                kms_key_id: row.text(column::KMS_KEY_ID).and_then(text),
                current: false,
            })?;
        }
        Ok(true)
    })?;
    Ok(count)
}

/// How many superseded versions there are, and how many of them are in grace.
pub fn count() -> Result<(i64, i64)> {
    let (mut all, mut grace, now) = (0, 0, crate::pg::clock());
    VERSIONS.with(|table| {
        table.all(None, |row| {
            all += 1;
            grace += i64::from(row.timestamp(column::EXPIRES_AT).is_some_and(|end| end > now));
            Ok(true)
        })
    })?;
    Ok((all, grace))
}
