//! [`VaultError`], and the only table from an error's kind to its SQLSTATE.
//!
//! Runs in client backends and workers, main thread only (reporting calls into Postgres). The trap it avoids:
//! SQLSTATEs chosen at the place of the error drift apart, and a message built from a value leaks it.

use hyperion_vault_core::envelope::CryptoError;
use hyperion_vault_core::ipc::ErrorKind;
use hyperion_vault_core::secret::InvalidArgument;
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::panic::{ErrorReport, ErrorReportWithLevel};

pub type Result<T, E = VaultError> = std::result::Result<T, E>;

/// What went wrong, in the words of the specification's error table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No such secret or version, and the caller may know.
    NotFound,
    /// The name is taken.
    Exists,
    /// Wrong state for the call, `expected_version` differs, wrong database, not preloaded.
    WrongState,
    /// The tables are those of another version of the extension.
    Outdated,
    /// A bad argument.
    Invalid,
    /// The address is not allowed, or policy denies.
    Denied,
    /// A token is unknown, expired or revoked.
    Unauthenticated,
    /// The key service is unreachable, timed out or throttled.
    KmsUnavailable,
    /// The key service refused, or its configuration cannot be used.
    KmsRefused,
    /// A ciphertext, wrapped key or row cannot be authenticated.
    Corrupted,
    /// The request queue was full past the deadline.
    Overloaded,
    /// A write where none can be made.
    ReadOnly,
    /// Concurrent changes kept overtaking this one.
    Conflict,
    /// The audit record cannot be written.
    AuditUnavailable,
    /// What a new version was to be handed to did not take it.
    TargetFailed,
    /// It took longer than it may.
    Cancelled,
    /// A broken invariant of our own.
    Internal,
}

impl Kind {
    fn sqlstate(self) -> PgSqlErrorCode {
        match self {
            Kind::NotFound => PgSqlErrorCode::ERRCODE_NO_DATA_FOUND,
            Kind::Exists => PgSqlErrorCode::ERRCODE_UNIQUE_VIOLATION,
            Kind::WrongState | Kind::Outdated => PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            Kind::Invalid => PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            Kind::Denied => PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            Kind::Unauthenticated => PgSqlErrorCode::ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION,
            Kind::KmsUnavailable => PgSqlErrorCode::ERRCODE_CONNECTION_FAILURE,
            Kind::KmsRefused => PgSqlErrorCode::ERRCODE_EXTERNAL_ROUTINE_EXCEPTION,
            Kind::Corrupted => PgSqlErrorCode::ERRCODE_DATA_CORRUPTED,
            Kind::Overloaded => PgSqlErrorCode::ERRCODE_INSUFFICIENT_RESOURCES,
            Kind::ReadOnly => PgSqlErrorCode::ERRCODE_READ_ONLY_SQL_TRANSACTION,
            Kind::Conflict => PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
            Kind::AuditUnavailable => PgSqlErrorCode::ERRCODE_IO_ERROR,
            Kind::TargetFailed => PgSqlErrorCode::ERRCODE_EXTERNAL_ROUTINE_EXCEPTION,
            Kind::Cancelled => PgSqlErrorCode::ERRCODE_QUERY_CANCELED,
            Kind::Internal => PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
        }
    }
}

/// An error on its way to the client. Never holds a secret value: it is shown, logged and kept.
#[derive(Debug)]
pub struct VaultError {
    kind: Kind,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
}

impl VaultError {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), detail: None, hint: None }
    }

    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Whether something stored cannot be authenticated.
    pub fn is_corrupted(&self) -> bool {
        self.kind == Kind::Corrupted
    }

    pub fn is_not_found(&self) -> bool {
        self.kind == Kind::NotFound
    }

    /// Whether ALTER EXTENSION UPDATE is due.
    pub fn is_outdated(&self) -> bool {
        self.kind == Kind::Outdated
    }

    pub fn is_unauthenticated(&self) -> bool {
        self.kind == Kind::Unauthenticated
    }

    pub fn is_denied(&self) -> bool {
        self.kind == Kind::Denied
    }

    /// The five characters of its SQLSTATE.
    pub fn sqlstate(&self) -> [u8; 5] {
        crate::pg::sqlstate(self.kind.sqlstate() as i32)
    }

    /// Whether waiting may help: the key service cannot be asked, or nothing recorded.
    pub fn is_outage(&self) -> bool {
        matches!(self.kind, Kind::KmsUnavailable | Kind::Overloaded | Kind::AuditUnavailable)
    }

    /// For where it is kept rather than raised.
    pub fn summary(&self) -> String {
        match &self.detail {
            Some(detail) => format!("{} ({detail})", self.message),
            None => self.message.clone(),
        }
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }

    /// What the key-service worker answered. `kind` travels through shared memory; the texts never hold key bytes.
    pub fn from_kms(kind: ErrorKind, message: &str, detail: &str, hint: &str) -> Self {
        let kind = match kind {
            ErrorKind::Unreachable | ErrorKind::TimedOut | ErrorKind::Throttled => Kind::KmsUnavailable,
            ErrorKind::Refused | ErrorKind::Misconfigured => Kind::KmsRefused,
            ErrorKind::Unauthenticated => Kind::Corrupted,
            ErrorKind::Overloaded => Kind::Overloaded,
            ErrorKind::Internal => Kind::Internal,
        };
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Self { kind, message: message.to_owned(), detail: some(detail), hint: some(hint) }
    }

    /// Raises this as a Postgres ERROR. Unwinds: destructors of the caller's frames run.
    pub fn raise(self) -> ! {
        self.report(pgrx::PgLogLevel::ERROR);
        unreachable!("an ERROR does not return")
    }

    /// Puts this into the server's log as a WARNING.
    pub fn warn(self) {
        self.report(pgrx::PgLogLevel::WARNING);
    }

    fn report(self, level: pgrx::PgLogLevel) {
        let mut report = ErrorReport::new(self.kind.sqlstate(), self.message, "");
        if let Some(detail) = self.detail {
            report = report.set_detail(detail);
        }
        if let Some(hint) = self.hint {
            report = report.set_hint(hint);
        }
        report.report(level);
    }
}

/// Puts an error that a worker has caught into the server's log, where it would have ended the worker otherwise.
pub fn log_caught(caught: &ErrorReportWithLevel) {
    let mut report =
        ErrorReport::new(caught.sql_error_code(), format!("hyperion_vault: {}", caught.message()), "");
    if let Some(detail) = caught.detail() {
        report = report.set_detail(detail);
    }
    if let Some(hint) = caught.hint() {
        report = report.set_hint(hint);
    }
    report.report(pgrx::PgLogLevel::WARNING);
}

/// Whether an error that something else raised says to the caller what he must know as it is: that his transaction can be
/// repeated, or that his statement or session is ended.
pub fn is_for_the_caller(code: PgSqlErrorCode) -> bool {
    matches!(
        code,
        PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE
            | PgSqlErrorCode::ERRCODE_T_R_DEADLOCK_DETECTED
            | PgSqlErrorCode::ERRCODE_QUERY_CANCELED
            | PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE
            | PgSqlErrorCode::ERRCODE_ADMIN_SHUTDOWN
            | PgSqlErrorCode::ERRCODE_CRASH_SHUTDOWN
    )
}

impl From<InvalidArgument> for VaultError {
    fn from(e: InvalidArgument) -> Self {
        Self { kind: Kind::Invalid, message: e.message, detail: e.detail, hint: e.hint }
    }
}

impl From<CryptoError> for VaultError {
    fn from(e: CryptoError) -> Self {
        match e {
            CryptoError::Unauthenticated | CryptoError::InvalidKey => {
                Self::new(Kind::Corrupted, format!("ciphertext {}", CryptoError::Unauthenticated))
            }
            CryptoError::TooLarge => Self::new(Kind::Invalid, e.to_string()),
            CryptoError::Rng => Self::new(Kind::Internal, e.to_string()),
        }
    }
}
