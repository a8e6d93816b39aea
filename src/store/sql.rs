//! Parts that statements on `vault.secrets s` share, as literals for `concat!`.
//!
//! Used by every process that runs our SQL. The trap it avoids: two statements that disagree about which secrets are
//! there, or about the columns of their result.

/// The result type of writers, as a row constructor over `vault.secrets s`.
macro_rules! info {
    () => {
        "ROW(s.id, s.name, s.kind, s.format::vault.secret_format, s.version, s.description, s.metadata, \
         s.rotation_interval, s.grace_period, s.next_rotation_at, s.generator, s.allowed_ips, s.keep_versions, \
         s.kms_key_id, s.created_at, s.updated_at, s.version_created_at, s.expires_at, s.recover_until, \
         s.target, s.rotation_attempts, s.rotation_error, s.rotation_retry_at)::vault.secret_info"
    };
}

/// Whether the secret of row `s` has not run out: `Presence` of the core crate, in SQL.
macro_rules! unexpired {
    () => {
        "(s.expires_at IS NULL OR s.expires_at > clock_timestamp())"
    };
}

/// Whether the secret of row `s` is live.
macro_rules! live {
    () => {
        concat!("s.recover_until IS NULL AND ", crate::store::sql::unexpired!())
    };
}

/// A statement's text from literals and the parts above.
macro_rules! sql {
    ($($part:expr),+ $(,)?) => {
        match std::ffi::CStr::from_bytes_with_nul(concat!($($part,)+ "\0").as_bytes()) {
            Ok(sql) => sql,
            Err(_) => panic!("statement contains a NUL"),
        }
    };
}

pub(crate) use {info, live, sql, unexpired};
