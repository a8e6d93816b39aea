//! Background workers: registration, signals, and starting threads that Postgres must never meet.
//!
//! Registration runs in the postmaster; the rest on a worker's main thread. Traps avoided here: pgrx's builder never
//! restarts a worker by default and its `enable_spi_access` moves the start time, so the struct is filled by hand; a
//! thread started while signals are unblocked may run a Postgres signal handler.

use std::ffi::{CStr, c_char};

use pgrx::bgworkers::{BackgroundWorker, SignalWakeFlags};
use pgrx::pg_sys;

/// Registers a worker that belongs to no database, starts at consistent state (also on a standby) and is restarted
/// `restart_secs` after an orderly death.
pub fn register(name: &CStr, entry: &CStr, restart_secs: i32) {
    let mut worker = pg_sys::BackgroundWorker {
        bgw_flags: (pg_sys::BGWORKER_SHMEM_ACCESS | pg_sys::BGWORKER_BACKEND_DATABASE_CONNECTION) as i32,
        bgw_start_time: pg_sys::BgWorkerStartTime::BgWorkerStart_ConsistentState,
        bgw_restart_time: restart_secs,
        ..Default::default()
    };
    fill(&mut worker.bgw_name, name);
    fill(&mut worker.bgw_type, name);
    fill(&mut worker.bgw_library_name, c"hyperion_vault");
    fill(&mut worker.bgw_function_name, entry);
    // SAFETY: during preload, on the main thread; the struct is copied.
    unsafe { pg_sys::RegisterBackgroundWorker(&mut worker) };
}

/// Copies a name, cut to the field with its terminating NUL.
fn fill(field: &mut [c_char], text: &CStr) {
    let room = field.len() - 1;
    for (place, byte) in field[..room].iter_mut().zip(text.to_bytes()) {
        *place = *byte as c_char;
    }
}

/// Takes over SIGHUP, SIGTERM and SIGINT and lets signals in. First thing in a worker.
pub fn attach() {
    // SIGINT (pg_cancel_backend) too, to do nothing with it: the worker runs no statement that could be cancelled.
    BackgroundWorker::attach_signal_handlers(
        SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM | SignalWakeFlags::SIGINT,
    );
}

/// Takes a place among the server's sessions, without a database: visible in `pg_stat_activity` and within reach of
/// `pg_terminate_backend`, while no DROP DATABASE ever waits for it. After [`attach`].
pub fn join_sessions() {
    // SAFETY: once, first thing in a worker registered with the flags above; null names mean no database and the
    // bootstrap role, as for the server's own logical replication launcher.
    unsafe { pg_sys::BackgroundWorkerInitializeConnection(std::ptr::null(), std::ptr::null(), 0) };
}

pub fn reload_requested() -> bool {
    BackgroundWorker::sighup_received()
}

pub fn stop_requested() -> bool {
    BackgroundWorker::sigterm_received()
}

/// Reads the configuration files again.
pub fn reload_configuration() {
    // SAFETY: on the main thread, outside a transaction, as background workers do it.
    unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) };
}

/// Runs `f` with every signal blocked, so that threads it starts inherit the mask and no handler of Postgres ever
/// runs on them.
pub fn with_signals_blocked<R>(f: impl FnOnce() -> R) -> R {
    // SAFETY: valid masks; the old one is put back on the same thread. `f` does not raise Postgres errors.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        let result = f();
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
        result
    }
}

/// This process holds key material outside the guarded mapping: no core dump of it, no debugger of the same user.
pub fn forbid_core_dumps() {
    // SAFETY: a flag of this process; no pointers.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
}

/// Ends the process in order, with the status that makes the postmaster start it again.
#[allow(unreachable_code, reason = "some majors' bindings know that proc_exit does not return, some do not")]
pub fn exit_for_restart() -> ! {
    // SAFETY: runs the exit callbacks and does not return. Status 0 would unregister the worker for good.
    unsafe { pg_sys::proc_exit(1) };
    unreachable!("proc_exit does not return")
}

pub fn my_pid() -> i32 {
    std::process::id() as i32
}
