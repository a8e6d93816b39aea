//! Transactions of a worker's own.
//!
//! Main thread of a database worker; a session's transactions are the client's. The trap it avoids: statements without
//! an active snapshot, which work until a value is toasted.

use pgrx::pg_sys;

use crate::error::Result;

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

/// Rolls back whatever is open.
pub fn abort() {
    // SAFETY: no arguments; does nothing where there is nothing.
    unsafe { pg_sys::AbortCurrentTransaction() };
}
