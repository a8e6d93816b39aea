//! Changes to the properties of a secret, beside its value.
//!
//! Client backends on a primary, main thread. The trap it avoids: NULL that means "leave as it is" for one property and
//! "clear" for the next; clearing is always by name, in `reset`.

use hyperion_vault_core::secret::Target;
use pgrx::pg_sys::Datum;

use super::secrets::{Draft, Properties, column, plus, span_of};
use crate::error::{Kind, Result, VaultError};

/// Changes to a secret's properties: None leaves one as it is unless it is named in `reset`.
#[derive(Default)]
pub struct Changes {
    pub properties: Properties,
    /// Names of properties to clear.
    pub reset: Vec<String>,
    pub target: TargetChange,
}

/// What becomes of a secret's target.
#[derive(Default, PartialEq)]
pub enum TargetChange {
    #[default]
    Keep,
    /// By the current role.
    Set(Target),
    Clear,
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
            expires_in,
        } = &self.properties;
        let datums =
            [description, metadata, rotation_interval, grace_period, generator, allowed_ips, expires_in];
        automatic.is_none()
            && keep_versions.is_none()
            && self.reset.is_empty()
            && self.target == TargetChange::Keep
            && datums.iter().all(|datum| datum.is_none())
    }
}

/// The properties `reset` may name.
pub const RESETTABLE: [&str; 9] = [
    "description",
    "metadata",
    "rotation_interval",
    "grace_period",
    "generator",
    "allowed_ips",
    "keep_versions",
    "expires_in",
    "target",
];

/// Puts changes of properties into the draft of a locked secret.
pub fn change(draft: &mut Draft<'_, '_>, changes: &Changes, now: i64) -> Result<()> {
    let properties = &changes.properties;
    let (was_automatic, interval_before) = (draft.is_automatic(), draft.interval(column::ROTATION_INTERVAL)?);
    if let Some(automatic) = properties.automatic {
        draft.set_kind(automatic);
    }
    let expires_at = properties.expires_in.map(|interval| Datum::from(plus(now, interval)));
    for (name, column, given) in [
        ("description", column::DESCRIPTION, properties.description),
        ("metadata", column::METADATA, properties.metadata),
        ("rotation_interval", column::ROTATION_INTERVAL, properties.rotation_interval),
        ("grace_period", column::GRACE_PERIOD, properties.grace_period),
        ("generator", column::GENERATOR, properties.generator),
        ("allowed_ips", column::ALLOWED_IPS, properties.allowed_ips),
        ("keep_versions", column::KEEP_VERSIONS, properties.keep_versions.map(Datum::from)),
        ("expires_in", column::EXPIRES_AT, expires_at),
    ] {
        if changes.reset.iter().any(|reset| reset == name) {
            draft.set(column, None);
        } else if given.is_some() {
            draft.set(column, given);
        }
    }
    draft.set(column::UPDATED_AT, Some(Datum::from(now)));
    let interval = draft.interval(column::ROTATION_INTERVAL)?;
    if !draft.is_automatic() {
        draft.set(column::NEXT_ROTATION_AT, None);
    } else {
        let interval = interval.ok_or_else(missing_interval)?;
        let same = |before| span_of(before) == span_of(interval);
        if !was_automatic || !interval_before.is_some_and(same) {
            draft.set(column::NEXT_ROTATION_AT, Some(Datum::from(plus(now, interval))));
        }
    }
    draft.forget_failures();
    Ok(())
}

pub fn missing_interval() -> VaultError {
    VaultError::new(Kind::Invalid, "an automatic secret needs a rotation_interval")
        .hint("Pass rotation_interval => '30 days', or kind => 'manual'.")
}
