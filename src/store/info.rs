//! `vault.secret_info`: what may be known of a secret without reading it, as the composite value that the API returns.
//!
//! Client backends and database workers, main thread. The trap it avoids: a column that is sealed, or that says how to
//! open what is; none is among the fields.

use hyperion_vault_core::envelope::Format;
use pgrx::pg_sys::Datum;

use super::secrets::{column, unreadable};
use crate::error::Result;
use crate::pg::composite::RowType;
use crate::pg::datum;
use crate::pg::tuple::Tuple;

thread_local! {
    static SECRET_INFO: RowType = const {
        RowType::new(
            c"secret_info",
            &[
                c"id", c"name", c"kind", c"format", c"version", c"description", c"metadata", c"rotation_interval",
                c"grace_period", c"next_rotation_at", c"generator", c"allowed_ips", c"keep_versions", c"kms_key_id",
                c"created_at", c"updated_at", c"version_created_at", c"expires_at", c"recover_until", c"target",
                c"rotation_attempts", c"rotation_error", c"rotation_retry_at",
            ],
        )
    };
}

/// The info of a secret from its row, in the current memory context.
pub fn of(row: &Tuple<'_>) -> Result<Datum> {
    let format = row.text(column::FORMAT).and_then(Format::parse).ok_or_else(unreadable)?;
    let time = |column| row.timestamp(column).map(Datum::from);
    let int = |column| row.int(column).map(Datum::from);
    let as_stored = |column| row.pointer(column);
    let values = [
        row.uuid(column::ID).map(datum::uuid),
        as_stored(column::NAME),
        row.label(column::KIND),
        Some(datum::enum_value("vault.secret_format", format.as_str())),
        int(column::VERSION),
        as_stored(column::DESCRIPTION),
        as_stored(column::METADATA),
        as_stored(column::ROTATION_INTERVAL),
        as_stored(column::GRACE_PERIOD),
        time(column::NEXT_ROTATION_AT),
        as_stored(column::GENERATOR),
        as_stored(column::ALLOWED_IPS),
        int(column::KEEP_VERSIONS),
        as_stored(column::KMS_KEY_ID),
        time(column::CREATED_AT),
        time(column::UPDATED_AT),
        time(column::VERSION_CREATED_AT),
        time(column::EXPIRES_AT),
        time(column::RECOVER_UNTIL),
        as_stored(column::TARGET),
        int(column::ROTATION_ATTEMPTS),
        as_stored(column::ROTATION_ERROR),
        time(column::ROTATION_RETRY_AT),
    ];
    SECRET_INFO.with(|info| info.form(&values))
}
