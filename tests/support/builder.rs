//! How a throw-away cluster is to be made: settings, key file, database. Runs in the test process.
//!
//! Defaults suit tests: fast (no fsync), small, and with all WAL kept, so that a leak scan sees everything that was
//! ever written. What a test sets itself comes last in the file and so wins.

use crate::aws::AwsAccess;
use crate::cluster::Cluster;
use crate::conf::conf_line;
use crate::postmaster::Postmaster;
use crate::sys::{Port, ServerUser, give_to, ipv6_loopback_works, random_bytes};
use crate::template::new_data_directory;
use crate::toolchain::Toolchain;
use base64::prelude::{BASE64_STANDARD, Engine};
use std::fs;
use std::sync::Arc;
use std::time::Duration;

/// What the local provider's key file holds.
#[derive(Clone, Debug)]
pub enum KeyFile {
    /// 32 random bytes, mode 0600.
    Raw,
    /// 32 random bytes in base64 with a line feed, mode 0600.
    Base64,
    /// These bytes with this mode.
    Custom { bytes: Vec<u8>, mode: u32 },
    /// The setting names a file that does not exist.
    Missing,
    /// No file, and the setting is left out.
    None,
}

/// Why a server did not come up; `log` is what it wrote since it was started.
#[derive(Debug)]
pub struct StartFailure {
    pub reason: String,
    pub log: String,
}

#[must_use = "call start()"]
pub struct ClusterBuilder {
    tools: Option<Toolchain>,
    conf: Vec<(String, String)>,
    env: Vec<(String, String)>,
    preload: bool,
    key_file: KeyFile,
    allowed_ips: String,
    database: String,
    fresh_initdb: bool,
    time_limit: Duration,
    /// What aws.rs has been asked for.
    pub(crate) aws: Option<AwsAccess>,
}

impl ClusterBuilder {
    pub(crate) fn new() -> Self {
        Self {
            tools: None,
            conf: Vec::new(),
            env: Vec::new(),
            preload: true,
            key_file: KeyFile::Raw,
            allowed_ips: "local".into(),
            database: "postgres".into(),
            fresh_initdb: false,
            // Generous for a loaded CI machine, yet far below any CI job's own limit.
            time_limit: Duration::from_secs(300),
            aws: None,
        }
    }

    /// Uses this server instead of the one the environment names.
    pub fn toolchain(mut self, tools: Toolchain) -> Self {
        self.tools = Some(tools);
        self
    }

    /// Adds a line to postgresql.conf, after all defaults.
    pub fn conf(mut self, name: &str, value: &str) -> Self {
        self.conf.push((name.into(), value.into()));
        self
    }

    pub fn max_connections(self, n: u32) -> Self {
        self.conf("max_connections", &n.to_string())
    }

    /// fsync and synchronous commit as in production (default off).
    pub fn fsync(self, on: bool) -> Self {
        self.conf("fsync", if on { "on" } else { "off" })
    }

    /// Sets a variable in the postmaster's environment, which all its processes inherit.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Whether the extension's library is preloaded (default) and its settings are written at all.
    pub fn preload(mut self, preload: bool) -> Self {
        self.preload = preload;
        self
    }

    pub fn key_file(mut self, key_file: KeyFile) -> Self {
        self.key_file = key_file;
        self
    }

    /// `hyperion_vault.allowed_ips`, by default `local`.
    pub fn allowed_ips(mut self, allowed_ips: &str) -> Self {
        self.allowed_ips = allowed_ips.into();
        self
    }

    /// The database of the vault (`hyperion_vault.database`), made if it is not `postgres`.
    pub fn database(mut self, database: &str) -> Self {
        self.database = database.into();
        self
    }

    /// Runs initdb instead of copying the template, for a system identifier of its own.
    pub fn fresh_initdb(mut self) -> Self {
        self.fresh_initdb = true;
        self
    }

    /// After this time from its start the server is stopped and the test fails (default 5 minutes).
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = limit;
        self
    }

    /// Makes and starts the cluster, and waits until it accepts connections.
    #[track_caller]
    pub fn start(self) -> Cluster {
        self.try_start().unwrap_or_else(|failure| panic!("{}; its log:\n{}", failure.reason, failure.log))
    }

    /// Like [`start`](Self::start), for tests of configurations that must be refused.
    pub fn try_start(self) -> Result<Cluster, StartFailure> {
        let user = ServerUser::from_env();
        let dir = tempfile::Builder::new().prefix("hv-").tempdir_in("/tmp").expect("cannot make a directory");
        give_to(dir.path(), user, 0o700).expect("cannot hand over a directory");
        let mut cluster = Cluster {
            tools: self.tools.clone().unwrap_or_else(Toolchain::from_env),
            user,
            postmaster: Arc::new(Postmaster::default()),
            port: Port::reserve(),
            database: self.database.clone(),
            env: self.env.clone(),
            watchdog: None,
            dir: Some(dir),
        };
        new_data_directory(&cluster.tools, user, &cluster.data_dir(), self.fresh_initdb);
        for sub in ["sock", "keys"] {
            let path = cluster.dir().join(sub);
            fs::create_dir(&path)
                .and_then(|()| give_to(&path, user, 0o700))
                .expect("cannot make a directory");
        }
        self.write_key(&cluster);
        if let Some(access) = &self.aws {
            access.prepare(&mut cluster);
        }
        self.write_conf(&cluster);
        cluster.start_watchdog(self.time_limit);

        // Another process may take the port between our look and the server's bind. The server then goes on with the
        // other addresses and a warning, and a TCP client would talk to a stranger.
        for _ in 0..5 {
            let mark = cluster.log_mark();
            let outcome = cluster.try_start_again();
            if !cluster.log_contains(mark, "could not bind") {
                outcome?;
                if self.database != "postgres" {
                    let sql = format!("CREATE DATABASE {}", quote_identifier(&self.database));
                    cluster
                        .connect("postgres", "postgres")
                        .batch_execute(&sql)
                        .expect("cannot create the database");
                }
                return Ok(cluster);
            }
            if outcome.is_ok() {
                cluster.stop(crate::StopMode::Immediate);
            }
            cluster.port = Port::reserve();
        }
        panic!("five ports in a row were taken by others");
    }

    fn write_key(&self, cluster: &Cluster) {
        match &self.key_file {
            KeyFile::Raw => cluster.write_key_file(&random_bytes::<32>(), 0o600),
            KeyFile::Base64 => {
                let text = format!("{}\n", BASE64_STANDARD.encode(random_bytes::<32>()));
                cluster.write_key_file(text.as_bytes(), 0o600);
            }
            KeyFile::Custom { bytes, mode } => cluster.write_key_file(bytes, *mode),
            KeyFile::Missing | KeyFile::None => {}
        }
    }

    fn write_conf(&self, cluster: &Cluster) {
        let addresses = if ipv6_loopback_works() { "127.0.0.1,::1" } else { "127.0.0.1" };
        let mut settings: Vec<(&str, &str)> = vec![
            ("listen_addresses", addresses),
            ("fsync", "off"),
            ("shared_buffers", "32MB"),
            ("wal_keep_size", "2GB"),
            ("timezone", "UTC"),
            ("lc_messages", "C"),
            ("log_line_prefix", "%m [%p] %b %q%u@%d "),
            ("log_checkpoints", "off"),
        ];
        let key = cluster.key_path();
        if self.preload {
            settings.extend([
                ("shared_preload_libraries", "hyperion_vault"),
                ("hyperion_vault.database", self.database.as_str()),
                ("hyperion_vault.kms_mode", "local"),
                ("hyperion_vault.allowed_ips", self.allowed_ips.as_str()),
            ]);
            if !matches!(self.key_file, KeyFile::None) {
                let key = key.to_str().expect("a path under /tmp that we named");
                settings.push(("hyperion_vault.local_master_key_file", key));
            }
        }
        let own = self.conf.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let lines: String =
            settings.into_iter().chain(own).map(|(name, value)| conf_line(name, value)).collect();
        cluster.append_to_conf(&lines);
    }
}

fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
