//! Background workers: registration, signals, and starting threads that Postgres must never meet.
//!
//! Registration runs in the postmaster; the rest on a worker's main thread. Traps avoided here: pgrx's builder never
//! restarts a worker by default and its `enable_spi_access` moves the start time, so the struct is filled by hand; a
//! thread started while signals are unblocked may run a Postgres signal handler.

use std::ffi::{CStr, CString, c_char};
use std::time::Duration;

use pgrx::bgworkers::{BackgroundWorker, SignalWakeFlags};
use pgrx::pg_sys;

/// Registers a worker that belongs to no database, starts at consistent state (also on a standby) and is restarted
/// `restart_secs` after an orderly death.
pub fn register(name: &CStr, entry: &CStr, restart_secs: i32) {
    let mut worker = described(name, entry, restart_secs);
    // SAFETY: during preload, on the main thread; the struct is copied.
    unsafe { pg_sys::RegisterBackgroundWorker(&mut worker) };
}

fn described(name: &CStr, entry: &CStr, restart_secs: i32) -> pg_sys::BackgroundWorker {
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
    worker
}

/// A worker this process has started. Forgetting it does not end the worker.
pub struct DynamicWorker(*mut pg_sys::BackgroundWorkerHandle);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The postmaster has not started it yet.
    Starting,
    Running,
    Ended,
}

/// Starts a worker that is not restarted by the postmaster; this process's latch is set when it starts and ends. None
/// if all of `max_worker_processes` are taken.
pub fn start(name: &CStr, entry: &CStr, argument: usize) -> Option<DynamicWorker> {
    let mut worker = described(name, entry, pg_sys::BGW_NEVER_RESTART);
    worker.bgw_main_arg = pg_sys::Datum::from(argument);
    worker.bgw_notify_pid = my_pid();
    let mut handle = std::ptr::null_mut();
    // SAFETY: outside a transaction, so that the handle is allocated for the process's life; the struct is copied.
    let started = unsafe { pg_sys::RegisterDynamicBackgroundWorker(&mut worker, &mut handle) };
    // Not `then_some`: there is no handle to be dropped otherwise.
    started.then(|| DynamicWorker(handle))
}

impl DynamicWorker {
    pub fn stage(&self) -> Stage {
        let mut pid = 0;
        // SAFETY: a handle that `start` got and nobody has freed.
        match unsafe { pg_sys::GetBackgroundWorkerPid(self.0, &mut pid) } {
            pg_sys::BgwHandleStatus::BGWH_STARTED => Stage::Running,
            pg_sys::BgwHandleStatus::BGWH_NOT_YET_STARTED => Stage::Starting,
            _ => Stage::Ended,
        }
    }
}

impl Drop for DynamicWorker {
    fn drop(&mut self) {
        // SAFETY: allocated by the server for us, freed once.
        unsafe { pg_sys::pfree(self.0.cast()) };
    }
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

/// As [`attach`], for a worker that runs statements: SIGTERM and SIGINT end them, or a wait inside one, as in a session.
pub fn attach_to_statements() {
    unsafe extern "C-unwind" {
        /// The server's handler: sets flags and the latch. As it is, since a signal may come at any point.
        #[link_name = "die"]
        fn server_die(signal: std::ffi::c_int);
    }
    extern "C-unwind" fn on_sigterm(signal: std::ffi::c_int) {
        // Saved: on PostgreSQL 18 the server's own wrapper does that, not the handler.
        // SAFETY: async-signal-safe, as the server's handlers are; errno is this thread's.
        unsafe {
            let errno = *libc::__errno_location();
            server_die(signal);
            *libc::__errno_location() = errno;
        }
    }
    // SAFETY: a handler of the signature that sigaction wants without SA_SIGINFO; signals are still blocked here.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_sigterm as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(libc::SIGTERM, &action, std::ptr::null_mut());
    }
    // SIGINT is the server's already, for a worker with a connection. This one lets signals in.
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP);
}

/// Connects a worker to a database as the bootstrap superuser, with settings of its own in the place of those that a
/// database or a role may have. After [`attach_to_statements`]; a database that cannot be connected to is FATAL.
pub fn connect(database: &str, name: &CStr) {
    let database = CString::new(database).unwrap_or_default();
    // SAFETY: once per process; valid strings, a null user is the bootstrap superuser.
    unsafe { pg_sys::BackgroundWorkerInitializeConnection(database.as_ptr(), std::ptr::null(), 0) };
    // SAFETY: connected; a string that lasts.
    let encoding = unsafe { CStr::from_ptr(pg_sys::GetDatabaseEncodingName()) };
    for (setting, value) in [
        (c"application_name", name),
        // What the relay copies in is as the database has it.
        (c"client_encoding", encoding),
        // Ends whoever it catches, also a worker in the middle of its work.
        #[cfg(any(feature = "pg17", feature = "pg18"))]
        (c"transaction_timeout", c"0"),
        (c"role", c"none"),
        (c"default_transaction_read_only", c"off"),
        (c"default_transaction_isolation", c"read committed"),
        (c"default_transaction_deferrable", c"off"),
        (c"session_replication_role", c"origin"),
        // Nobody's forgotten lock on a table or a role stops the rest of the work.
        (c"lock_timeout", c"5s"),
        (c"search_path", c"pg_catalog, pg_temp"),
    ] {
        // SAFETY: valid strings; settings that a superuser may change.
        unsafe {
            pg_sys::SetConfigOption(
                setting.as_ptr(),
                value.as_ptr(),
                pg_sys::GucContext::PGC_SUSET,
                pg_sys::GucSource::PGC_S_OVERRIDE,
            );
        }
    }
}

/// Whether SIGTERM has come, for a worker that runs statements.
pub fn death_requested() -> bool {
    // SAFETY: a flag that this process's own signal handler sets.
    unsafe { std::ptr::read_volatile(&raw const pg_sys::ProcDiePending) != 0 }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wakeup {
    /// The latch was set, or the time is over.
    Awake,
    Stop,
}

/// Sleeps between two transactions. Unlike `latch::wait` it tells a request to stop instead of dying of it.
pub fn nap(timeout: Duration) -> Wakeup {
    let millis = super::latch::millis(timeout);
    // SAFETY: MyLatch is this process's own; QueryCancelPending is a flag of this process.
    unsafe {
        if !death_requested() {
            pg_sys::WaitLatch(
                pg_sys::MyLatch,
                (pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH) as i32,
                millis,
                pg_sys::PG_WAIT_EXTENSION,
            );
            pg_sys::ResetLatch(pg_sys::MyLatch);
        }
        if death_requested() {
            return Wakeup::Stop;
        }
        // pg_cancel_backend between two statements: there is nothing to cancel.
        pg_sys::QueryCancelPending = 0;
    }
    pgrx::check_for_interrupts!();
    Wakeup::Awake
}

/// What `pg_stat_activity` shows, and counts that others want to see soon.
pub fn report_running() {
    // SAFETY: null is an empty text.
    unsafe { pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, std::ptr::null()) };
}

pub fn report_idle() {
    // SAFETY: as above; outside a transaction, as the report of counts wants.
    unsafe {
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_IDLE, std::ptr::null());
        pg_sys::pgstat_report_stat(false);
    }
}

/// Asks a worker to end.
pub fn end(pid: i32) {
    if pid > 1 {
        // SAFETY: no pointers. A worker leaves its post, where the pid is from, before it ends.
        unsafe { libc::kill(pid, libc::SIGTERM) };
    }
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

/// Ends the process in order and without a line in the log: a worker that is not restarted by the postmaster.
#[allow(unreachable_code, reason = "some majors' bindings know that proc_exit does not return, some do not")]
pub fn exit_quietly() -> ! {
    // SAFETY: runs the exit callbacks and does not return.
    unsafe { pg_sys::proc_exit(0) };
    unreachable!("proc_exit does not return")
}

pub fn my_pid() -> i32 {
    std::process::id() as i32
}
