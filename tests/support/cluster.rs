//! A throw-away cluster: its places, start and stop, and its end. Runs in the test process.
//!
//! The server is a direct child, not a daemon behind pg_ctl, so its process id is ours and stays valid until we reap
//! it. A cluster that goes out of scope, in a failing test too, takes its server and its directory along.
//! All methods take `&self`, so that threads of a test can share the cluster.

use crate::PATIENCE;
use crate::builder::{ClusterBuilder, StartFailure};
use crate::postmaster::Postmaster;
use crate::processes::end_orphans;
use crate::sys::{Port, ServerUser, as_server_user, give_to};
use crate::threads::Watchdog;
use crate::toolchain::Toolchain;
use libc::{SIGCONT, SIGINT, SIGKILL, SIGQUIT, SIGTERM};
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// PostgreSQL's shutdown modes (server-shutdown in its manual).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Waits for sessions to end.
    Smart,
    /// Ends sessions, writes a checkpoint.
    Fast,
    /// As a crash: recovery at the next start.
    Immediate,
}

pub struct Cluster {
    pub(crate) tools: Toolchain,
    pub(crate) user: Option<ServerUser>,
    pub(crate) postmaster: Arc<Postmaster>,
    pub(crate) port: Port,
    pub(crate) database: String,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) watchdog: Option<Watchdog>,
    /// `None` only while the cluster is dropped.
    pub(crate) dir: Option<TempDir>,
}

impl Cluster {
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder::new()
    }

    pub fn toolchain(&self) -> &Toolchain {
        &self.tools
    }

    /// The database of the vault.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The vault has moved: `hyperion_vault.database` was set to `name`. Later sessions go there.
    pub fn moved_to_database(&mut self, name: &str) {
        self.database = name.into();
    }

    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// The directory with everything of this cluster; removed when it is dropped.
    pub fn dir(&self) -> &Path {
        self.dir.as_ref().expect("only drop takes the directory").path()
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir().join("data")
    }

    pub fn socket_dir(&self) -> PathBuf {
        self.dir().join("sock")
    }

    /// Makes a directory that belongs to the server's user, such as for a tablespace.
    pub fn make_server_directory(&self, path: &Path) {
        fs::create_dir(path).and_then(|()| give_to(path, self.user, 0o700)).expect("cannot make a directory");
    }

    /// Where the key file of the local provider is: next to the data directory, not inside it.
    pub fn key_path(&self) -> PathBuf {
        self.dir().join("keys/master.key")
    }

    /// Replaces the key file. The server's user owns it.
    pub fn write_key_file(&self, bytes: &[u8], mode: u32) {
        let path = self.key_path();
        fs::write(&path, bytes)
            .and_then(|()| give_to(&path, self.user, mode))
            .expect("cannot write the key file");
    }

    /// Starts a stopped (or crashed) server and waits until it accepts connections.
    #[track_caller]
    pub fn start_again(&self) {
        if let Err(failure) = self.try_start_again() {
            panic!("{}; its log:\n{}", failure.reason, failure.log);
        }
    }

    pub fn try_start_again(&self) -> Result<(), StartFailure> {
        self.start_under(&[])
    }

    /// Starts the server under a program that runs it, such as `valgrind` with its arguments.
    pub fn start_under(&self, runner: &[&str]) -> Result<(), StartFailure> {
        let mark = self.log_mark();
        let log =
            OpenOptions::new().create(true).append(true).open(self.log_path()).expect("cannot open the log");
        let postgres = self.tools.program("postgres");
        let mut command = match runner {
            [] => Command::new(postgres),
            [program, args @ ..] => {
                let mut command = Command::new(program);
                command.args(args).arg(postgres);
                command
            }
        };
        as_server_user(&mut command, self.user);
        command
            .arg("-D")
            .arg(self.data_dir())
            .args(["-p", &self.port().to_string(), "-k"])
            .arg(self.socket_dir())
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("cannot duplicate a file handle"))
            .stderr(log);
        self.postmaster.spawn(command).unwrap_or_else(|error| panic!("cannot run postgres: {error}"));
        self.await_ready().map_err(|reason| StartFailure { reason, log: self.log_since(mark) })
    }

    /// Waits until the server accepts connections, such as after a crash restart.
    #[track_caller]
    pub fn wait_ready(&self) {
        if let Err(reason) = self.await_ready() {
            panic!("{reason}; the end of its log:\n{}", self.log_tail(40));
        }
    }

    fn await_ready(&self) -> Result<(), String> {
        // Crash recovery under load is the slow case.
        let deadline = Instant::now() + 2 * PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.postmaster.try_reap() {
                return Err(format!("the server ended ({status})"));
            }
            if self.postmaster.pid().is_none() {
                return Err("the server is not running".into());
            }
            if self.accepts_connections() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err("the server did not accept connections in time".into())
    }

    #[track_caller]
    pub fn stop(&self, mode: StopMode) {
        self.signal_postmaster(match mode {
            StopMode::Smart => SIGTERM,
            StopMode::Fast => SIGINT,
            StopMode::Immediate => SIGQUIT,
        });
        let stopped = self.postmaster.wait_gone(2 * PATIENCE);
        assert!(stopped, "the server did not stop ({mode:?}); the end of its log:\n{}", self.log_tail(40));
    }

    #[track_caller]
    pub fn restart(&self, mode: StopMode) {
        self.stop(mode);
        self.start_again();
    }

    pub fn is_running(&self) -> bool {
        self.postmaster.try_reap();
        self.postmaster.pid().is_some()
    }

    pub(crate) fn start_watchdog(&mut self, limit: Duration) {
        let postmaster = Arc::clone(&self.postmaster);
        self.watchdog = Some(Watchdog::start(limit, move || {
            postmaster.signal(SIGQUIT);
            postmaster.signal(SIGCONT); // or a stopped one would not notice
        }));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let expired = self.watchdog.take().is_some_and(|watchdog| watchdog.expired());
        let children = self.processes();
        self.signal_postmaster(SIGQUIT);
        self.signal_postmaster(SIGCONT);
        if !self.postmaster.wait_gone(PATIENCE) {
            self.signal_postmaster(SIGKILL);
            self.postmaster.wait_gone(PATIENCE);
        }
        end_orphans(&children, &self.tools.program("postgres"), Duration::from_secs(1));
        if std::thread::panicking() {
            eprintln!("--- the end of the server log ---\n{}---", self.log_tail(40));
            if std::env::var_os("KEEP").is_some_and(|keep| keep == "1") {
                let kept = self.dir.take().map(TempDir::keep);
                eprintln!("kept {}", kept.unwrap_or_default().display());
            }
        } else {
            assert!(!expired, "the test ran into its cluster's time limit");
        }
    }
}
