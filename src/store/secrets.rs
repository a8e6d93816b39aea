//! `vault.secrets`: a secret and its current version.
//!
//! Client backends and database workers, main thread. Whatever changes in a row goes through [`insert`] or a [`Draft`],
//! which keep the tables derived from it ([`derived`](super::derived)). The traps it avoids: a row judged under the
//! transaction's old snapshot (scans use the latest one, and writers lock the row before they decide); two updates of one
//! row in one operation.

use hyperion_vault_core::IpNet;
use hyperion_vault_core::cache::Places;
use hyperion_vault_core::envelope::{Format, Id};
use hyperion_vault_core::secret::{Presence, Timestamp};
use pgrx::pg_sys::Datum;

use super::derived::{self, Derived};
use super::info;
use crate::area;
use crate::error::{Kind, Result, VaultError};
use crate::kms_client::Generated;
use crate::pg::datum;
use crate::pg::heap::{Assignment, RowLock, Wait, Write};
use crate::pg::scan::{Index, Key, Table};
use crate::pg::tuple::Tuple;
use crate::store::versions::StoredKey;

thread_local! {
    pub(super) static SECRETS: Table = const {
        Table::new(
            c"secrets",
            &[
                c"id", c"version_id", c"version", c"name", c"format", c"wrapped_dek", c"sealed", c"kms_key_id",
                c"kms_key_material_id", c"kind", c"description", c"metadata", c"rotation_interval", c"grace_period",
                c"next_rotation_at", c"generator", c"allowed_ips", c"keep_versions", c"created_at", c"updated_at",
                c"version_created_at", c"expires_at", c"recover_until", c"grace_until", c"target", c"target_set_by",
                c"target_set_by_oid", c"target_roles", c"rotation_attempts", c"rotation_error", c"rotation_retry_at",
            ],
            &[
                Index { name: c"secrets_name_key", columns: &[column::NAME] },
                Index { name: c"secrets_pkey", columns: &[column::ID] },
            ],
        )
    };
}

/// Indexes of [`SECRETS`].
pub(super) const BY_NAME: usize = 0;
pub(super) const BY_ID: usize = 1;

/// Columns of [`SECRETS`].
pub(super) mod column {
    pub const ID: i16 = 1;
    pub const VERSION_ID: i16 = 2;
    pub const VERSION: i16 = 3;
    pub const NAME: i16 = 4;
    pub const FORMAT: i16 = 5;
    pub const WRAPPED_DEK: i16 = 6;
    pub const SEALED: i16 = 7;
    pub const KMS_KEY_ID: i16 = 8;
    pub const KMS_KEY_MATERIAL_ID: i16 = 9;
    pub const KIND: i16 = 10;
    pub const DESCRIPTION: i16 = 11;
    pub const METADATA: i16 = 12;
    pub const ROTATION_INTERVAL: i16 = 13;
    pub const GRACE_PERIOD: i16 = 14;
    pub const NEXT_ROTATION_AT: i16 = 15;
    pub const GENERATOR: i16 = 16;
    pub const ALLOWED_IPS: i16 = 17;
    pub const KEEP_VERSIONS: i16 = 18;
    pub const CREATED_AT: i16 = 19;
    pub const UPDATED_AT: i16 = 20;
    pub const VERSION_CREATED_AT: i16 = 21;
    pub const EXPIRES_AT: i16 = 22;
    pub const RECOVER_UNTIL: i16 = 23;
    pub const GRACE_UNTIL: i16 = 24;
    pub const TARGET: i16 = 25;
    pub const TARGET_SET_BY: i16 = 26;
    pub const TARGET_SET_BY_OID: i16 = 27;
    pub const TARGET_ROLES: i16 = 28;
    pub const ROTATION_ATTEMPTS: i16 = 29;
    pub const ROTATION_ERROR: i16 = 30;
    pub const ROTATION_RETRY_AT: i16 = 31;
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
    SECRETS.with(|table| {
        table.point(BY_NAME, &[Key::Text(name)], places(), |row| match row {
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

/// The live secret of that name as of now, and whether it has a target: for writers.
pub fn current_with_target(name: &str) -> Result<Option<(Sealed, bool)>> {
    SECRETS.with(|table| {
        table.point(BY_NAME, &[Key::Text(name)], places(), |row| {
            let Some(row) = row else { return Ok(None) };
            let found = read_current(row).ok_or_else(unreadable)?;
            let has_target = row.pointer(column::TARGET).is_some();
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

/// A row that the extension cannot have written.
pub fn unreadable() -> VaultError {
    VaultError::new(Kind::Corrupted, "stored secret cannot be authenticated")
}

/// A secret's row, locked.
pub struct Locked<'w> {
    row: RowLock<'w>,
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

impl<'w> Locked<'w> {
    fn of(row: RowLock<'w>) -> Result<Self> {
        let locked = {
            let stored = row.row()?;
            let read = || {
                Some((
                    stored.uuid(column::ID)?,
                    stored.int(column::VERSION)?,
                    stored.uuid(column::VERSION_ID)?,
                    Format::parse(stored.text(column::FORMAT)?)?,
                    stored.bytes(column::WRAPPED_DEK)?.to_vec(),
                ))
            };
            let (id, version, version_id, format, wrapped) = read().ok_or_else(unreadable)?;
            Self {
                id,
                version,
                version_id,
                format,
                automatic: is_automatic(&stored),
                generator: stored.jsonb(column::GENERATOR),
                keep_versions: stored.int(column::KEEP_VERSIONS),
                wrapped,
                presence: presence(
                    stored.timestamp(column::EXPIRES_AT),
                    stored.timestamp(column::RECOVER_UNTIL),
                ),
                has_target: stored.pointer(column::TARGET).is_some(),
                row,
            }
        };
        Ok(locked)
    }

    /// The key of the current version.
    pub fn key(&self) -> StoredKey {
        StoredKey { version: self.version, version_id: self.version_id, wrapped: self.wrapped.clone() }
    }

    /// The row as it was when it was locked.
    pub(super) fn row(&self) -> Result<Tuple<'_>> {
        self.row.row()
    }
}

/// Where sessions have seen rows last.
fn places<'a>() -> Option<Places<'a>> {
    area::get().ok().map(|area| area.places())
}

/// Whether a row's secret is automatic.
pub(super) fn is_automatic(row: &Tuple<'_>) -> bool {
    row.label(column::KIND).is_some_and(|kind| kind == kind_label(true))
}

pub(super) fn kind_label(automatic: bool) -> Datum {
    datum::enum_value("vault.secret_kind", if automatic { "automatic" } else { "manual" })
}

/// Locks a live secret's row, waiting for whoever has it; None if there is no such secret (any more).
pub fn lock<'w>(write: &'w Write, name: &str) -> Result<Option<Locked<'w>>> {
    Ok(lock_any(write, name)?.filter(|locked| locked.presence == Presence::Live))
}

/// Locks the row of that name, be its secret live, deleted or gone.
pub fn lock_any<'w>(write: &'w Write, name: &str) -> Result<Option<Locked<'w>>> {
    let row = SECRETS.with(|table| table.lock(write, BY_NAME, &[Key::Text(name)], places(), Wait::Block))?;
    row.map(Locked::of).transpose()
}

/// Locks the row of that id; None if there is none, or somebody else has it.
pub(super) fn lock_if_free<'w>(write: &'w Write, id: Id) -> Result<Option<Locked<'w>>> {
    let row = SECRETS.with(|table| table.lock(write, BY_ID, &[Key::Uuid(id)], None, Wait::Skip))?;
    row.map(Locked::of).transpose()
}

/// Locks the row of that id, waiting for whoever has it; false if there is none.
pub(super) fn lock_by_id(write: &Write, id: Id) -> Result<bool> {
    SECRETS.with(|table| Ok(table.lock(write, BY_ID, &[Key::Uuid(id)], None, Wait::Block)?.is_some()))
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

impl Fresh<'_> {
    fn assign(&self, values: &mut Vec<Assignment>, now: i64) {
        let text = |text: &str| Some(datum::varlena(text.as_bytes()));
        values.extend([
            (column::VERSION_ID, Some(datum::uuid(self.version_id))),
            (column::VERSION, Some(Datum::from(self.version))),
            (column::FORMAT, text(self.format.as_str())),
            (column::WRAPPED_DEK, Some(datum::varlena(&self.key.wrapped))),
            (column::SEALED, Some(datum::varlena(self.sealed))),
            (column::KMS_KEY_ID, text(&self.key.key_id)),
            (column::KMS_KEY_MATERIAL_ID, self.key.key_material_id.as_deref().and_then(text)),
            (column::VERSION_CREATED_AT, Some(Datum::from(now))),
            (column::UPDATED_AT, Some(Datum::from(now))),
        ]);
    }
}

/// The sum of a time and an interval that was accepted as a property or is stored as one.
pub(super) fn plus(at: i64, interval: Datum) -> i64 {
    datum::plus_interval(at, datum::interval_parts(interval))
}

/// Inserts a new secret and returns its info; None if the name is taken (by a transaction that has committed, for
/// which this one may have waited; with [`Wait::Skip`] by any).
#[allow(clippy::too_many_arguments, reason = "what a row is made of")]
pub fn insert(
    wait: Wait,
    write: &Write,
    id: Id,
    name: &str,
    fresh: &Fresh<'_>,
    properties: &Properties,
    target: Vec<Assignment>,
    now: i64,
) -> Result<Option<Datum>> {
    let automatic = properties.automatic.unwrap_or(false);
    let due = properties.rotation_interval.filter(|_| automatic).map(|interval| plus(now, interval));
    let mut values = vec![
        (column::ID, Some(datum::uuid(id))),
        (column::NAME, Some(datum::varlena(name.as_bytes()))),
        (column::KIND, Some(kind_label(automatic))),
        (column::DESCRIPTION, properties.description),
        (column::METADATA, properties.metadata),
        (column::ROTATION_INTERVAL, properties.rotation_interval),
        (column::GRACE_PERIOD, properties.grace_period),
        (column::GENERATOR, properties.generator),
        (column::ALLOWED_IPS, properties.allowed_ips),
        (column::KEEP_VERSIONS, properties.keep_versions.map(Datum::from)),
        (column::NEXT_ROTATION_AT, due.map(Datum::from)),
        (column::EXPIRES_AT, properties.expires_in.map(|interval| Datum::from(plus(now, interval)))),
        (column::CREATED_AT, Some(Datum::from(now))),
        (column::GRACE_UNTIL, Some(Datum::from(i64::MIN))),
    ];
    fresh.assign(&mut values, now);
    values.extend(target);
    insert_row(wait, write, name, &values)
}

/// The same with all columns given, by who sees to it that they are right.
pub(super) fn insert_row(
    wait: Wait,
    write: &Write,
    name: &str,
    values: &[Assignment],
) -> Result<Option<Datum>> {
    let inserted = SECRETS.with(|table| table.insert_or(wait, write, BY_NAME, &[Key::Text(name)], values))?;
    let Some(inserted) = inserted else { return Ok(None) };
    let row = inserted.row()?;
    derived::secret_changed(write, &Derived::none(), &Derived::of(&row)?)?;
    info::of(&row).map(Some)
}

/// Changes to a locked secret, gathered and then written at once.
pub struct Draft<'l, 'w> {
    locked: &'l Locked<'w>,
    values: Vec<Assignment>,
}

impl<'l, 'w> Draft<'l, 'w> {
    pub fn of(locked: &'l Locked<'w>) -> Self {
        Self { locked, values: Vec::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    pub(super) fn set(&mut self, column: i16, value: Option<Datum>) {
        match self.values.iter_mut().find(|(known, _)| *known == column) {
            Some((_, known)) => *known = value,
            None => self.values.push((column, value)),
        }
    }

    pub fn assign(&mut self, values: impl IntoIterator<Item = Assignment>) {
        values.into_iter().for_each(|(column, value)| self.set(column, value));
    }

    pub(super) fn locked(&self) -> &'l Locked<'w> {
        self.locked
    }

    fn given(&self, column: i16) -> Option<Option<Datum>> {
        self.values.iter().find(|(known, _)| *known == column).map(|(_, value)| *value)
    }

    /// A column of type interval as it will be.
    pub(super) fn interval(&self, column: i16) -> Result<Option<Datum>> {
        match self.given(column) {
            Some(value) => Ok(value),
            None => Ok(self.locked.row()?.pointer(column)),
        }
    }

    pub(super) fn set_kind(&mut self, automatic: bool) {
        self.set(column::KIND, Some(kind_label(automatic)));
    }

    pub(super) fn is_automatic(&self) -> bool {
        match self.given(column::KIND) {
            Some(kind) => kind == Some(kind_label(true)),
            None => self.locked.automatic,
        }
    }

    pub fn keep_versions(&self) -> Option<i32> {
        match self.given(column::KEEP_VERSIONS) {
            Some(value) => value.map(|value| value.value() as i32),
            None => self.locked.keep_versions,
        }
    }

    /// The end of the grace of a version that is superseded at `now`; None if the secret has no grace period.
    pub fn grace_end(&self, now: i64) -> Result<Option<i64>> {
        let Some(period) = self.interval(column::GRACE_PERIOD)? else { return Ok(None) };
        Ok((span_of(period) > 0).then(|| plus(now, period)))
    }

    /// Scheduled rotation has not failed any more.
    pub(super) fn forget_failures(&mut self) {
        for column in [column::ROTATION_ATTEMPTS, column::ROTATION_ERROR, column::ROTATION_RETRY_AT] {
            self.set(column, None);
        }
    }

    /// Makes `fresh` the current version. The former one has been kept (`versions::keep_current`) until `grace_end`, which
    /// is remembered beside the current version.
    pub fn replace(&mut self, fresh: &Fresh<'_>, grace_end: Option<i64>, now: i64) -> Result<()> {
        let mut values = Vec::new();
        fresh.assign(&mut values, now);
        self.assign(values);
        let due = self
            .interval(column::ROTATION_INTERVAL)?
            .filter(|_| self.is_automatic())
            .map(|interval| plus(now, interval).saturating_sub(leeway(interval, fresh.early)));
        self.set(column::NEXT_ROTATION_AT, due.map(Datum::from));
        self.forget_failures();
        if let (Some(end), Some(known)) = (grace_end, self.locked.row()?.timestamp(column::GRACE_UNTIL)) {
            self.set(column::GRACE_UNTIL, Some(Datum::from(end.max(known))));
        }
        Ok(())
    }

    /// Writes what was gathered. The secret's info as it is then.
    pub fn write(self, write: &'w Write) -> Result<Datum> {
        let before = Derived::of(&self.locked.row()?)?;
        let updated = SECRETS.with(|table| table.update(write, &self.locked.row, &self.values))?;
        let row = updated.row()?;
        if let (Some(places), Some(name)) = (places(), row.text(column::NAME)) {
            SECRETS.with(|table| table.remember(&[Key::Text(name)], places, &updated))?;
        }
        derived::secret_changed(write, &before, &Derived::of(&row)?)?;
        info::of(&row)
    }
}

/// The length of an interval in microseconds, months taken for 30 days as the server compares intervals.
pub(super) fn span_of(interval: Datum) -> i64 {
    let (months, days, micros) = datum::interval_parts(interval);
    let days = i128::from(months) * 30 + i128::from(days);
    (days * 86_400_000_000 + i128::from(micros)).clamp(0, i128::from(i64::MAX)) as i64
}

/// How much earlier than due the next rotation comes: a share `early` of a twentieth of the interval, of an hour at most.
fn leeway(interval: Datum, early: f64) -> i64 {
    const HOUR: i64 = 3_600_000_000;
    ((span_of(interval) / 20).min(HOUR) as f64 * early) as i64
}

/// Marks a locked secret as deleted, restorable for `window`.
pub fn bury(write: &Write, locked: &Locked<'_>, window: Datum, now: i64) -> Result<()> {
    change(
        write,
        locked,
        &[
            (column::RECOVER_UNTIL, Some(Datum::from(plus(now, window)))),
            (column::UPDATED_AT, Some(Datum::from(now))),
        ],
    )
    .map(drop)
}

/// Takes the mark of [`bury`] off a locked secret.
pub fn restore(write: &Write, locked: &Locked<'_>, now: i64) -> Result<Datum> {
    change(write, locked, &[(column::RECOVER_UNTIL, None), (column::UPDATED_AT, Some(Datum::from(now)))])
}

pub(super) fn change<'w>(write: &'w Write, locked: &Locked<'w>, values: &[Assignment]) -> Result<Datum> {
    let mut draft = Draft::of(locked);
    draft.assign(values.iter().copied());
    draft.write(write)
}

/// Gives a locked secret another name, for which its current version has been sealed again. Raises `taken` if somebody
/// took the name meanwhile.
pub fn rename(
    write: &Write,
    locked: &Locked<'_>,
    new_name: &str,
    sealed: &[u8],
    now: i64,
    taken: impl Fn() -> VaultError + std::panic::UnwindSafe + std::panic::RefUnwindSafe,
) -> Result<Datum> {
    let values = [
        (column::NAME, Some(datum::varlena(new_name.as_bytes()))),
        (column::SEALED, Some(datum::varlena(sealed))),
        (column::UPDATED_AT, Some(Datum::from(now))),
    ];
    crate::pg::on_unique_violation("secrets_name_key", || change(write, locked, &values), taken)
}

/// Deletes a locked secret, whose superseded versions are deleted by now.
pub fn delete(write: &Write, locked: &Locked<'_>) -> Result<()> {
    let before = Derived::of(&locked.row()?)?;
    SECRETS.with(|table| table.delete(write, &locked.row))?;
    derived::secret_deleted(write, &before)
}

/// The body of the trigger on `vault.secrets`, for what a superuser does in SQL: keeps what is derived from its rows.
pub fn row_changed(args: &crate::pg::fcinfo::Args) -> Result<crate::pg::fcinfo::Return> {
    SECRETS.with(|table| {
        crate::pg::triggers::changed_row(args, table, |old, new| {
            let write = Write::begin();
            match (old, new) {
                (Some(old), Some(new)) => {
                    let (old, new) = (Derived::of(old)?, Derived::of(new)?);
                    if old.id != new.id {
                        derived::secret_deleted(&write, &old)?;
                        return derived::secret_changed(&write, &Derived::none(), &new);
                    }
                    derived::secret_changed(&write, &old, &new)
                }
                (Some(old), None) => derived::secret_deleted(&write, &Derived::of(old)?),
                (None, Some(new)) => derived::secret_changed(&write, &Derived::none(), &Derived::of(new)?),
                (None, None) => Ok(()),
            }
        })
    })
}
