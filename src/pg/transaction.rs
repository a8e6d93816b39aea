//! Transactions of a worker's own.
//!
//! Main thread of a database worker; a session's transactions are the client's. The trap it avoids: statements without
//! an active snapshot, which work until a value is toasted.

use std::panic::AssertUnwindSafe;

use pgrx::pg_sys;
use pgrx::pg_sys::panic::{CaughtError, ErrorReportWithLevel};

use crate::error::{Result, VaultError};

/// Runs `f` in a transaction: committed if it returns Ok, rolled back if it returns Err. A server error or panic that
/// leaves `f` leaves the transaction open, for whoever catches it to [`abort`].
pub fn run<R>(f: impl FnOnce() -> Result<R>) -> Result<R> {
    // SAFETY: no transaction is open; each call as the server's own workers make it.
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
    }
    match f() {
        Ok(value) => {
            // SAFETY: the snapshot pushed above, the transaction begun above.
            unsafe {
                pg_sys::PopActiveSnapshot();
                pg_sys::CommitTransactionCommand();
            }
            Ok(value)
        }
        Err(error) => {
            abort();
            Err(error)
        }
    }
}

/// Why a savepoint was rolled back.
pub enum Failure {
    Ours(Box<VaultError>),
    /// The same, raised as an error of the server's and caught again.
    Raised(Box<ErrorReportWithLevel>),
    Server(Box<ErrorReportWithLevel>),
}

/// Runs `f` in a savepoint of the open transaction: kept if it returns Ok; undone if it returns Err, panics, or meets an
/// error of the server. A cancelled statement is no failure: it leaves as it came.
pub fn savepoint<R>(f: impl FnOnce() -> Result<R>) -> Result<R, Failure> {
    // SAFETY: as the server's own procedural languages do it: the owner and memory in use before are put back.
    unsafe {
        let context = pg_sys::CurrentMemoryContext;
        let owner = pg_sys::CurrentResourceOwner;
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        pg_sys::MemoryContextSwitchTo(context);
        let result =
            pgrx::PgTryBuilder::new(AssertUnwindSafe(|| f().map_err(|error| Failure::Ours(Box::new(error)))))
                // What takes too long in our own judgement has the same code, and is raised by us.
                .catch_when(pgrx::PgSqlErrorCode::ERRCODE_QUERY_CANCELED, |error| match error {
                    CaughtError::ErrorReport(report) => Err(Failure::Raised(Box::new(report))),
                    error => error.rethrow(),
                })
                .catch_others(|error| match error {
                    CaughtError::ErrorReport(report) => Err(Failure::Raised(Box::new(report))),
                    error => Err(Failure::Server(Box::new(report(error)))),
                })
                .catch_rust_panic(|error| Err(Failure::Server(Box::new(report(error)))))
                .execute();
        match &result {
            Ok(_) => pg_sys::ReleaseCurrentSubTransaction(),
            Err(_) => pg_sys::RollbackAndReleaseCurrentSubTransaction(),
        }
        pg_sys::MemoryContextSwitchTo(context);
        pg_sys::CurrentResourceOwner = owner;
        result
    }
}

/// What was reported, of whatever kind.
pub fn report(error: CaughtError) -> ErrorReportWithLevel {
    match error {
        CaughtError::PostgresError(report)
        | CaughtError::ErrorReport(report)
        | CaughtError::RustPanic { ereport: report, .. } => report,
    }
}

/// Rolls back whatever is open.
pub fn abort() {
    // Not AbortCurrentTransaction, which in a savepoint ends that one and leaves the rest open.
    // SAFETY: no arguments; does nothing where there is nothing.
    unsafe { pg_sys::AbortOutOfAnyTransaction() };
}
