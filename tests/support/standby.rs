//! Base backups of a throw-away cluster: as standbys, or recovered to a point in time. Runs in the test process.
//!
//! A standby is a cluster of its own: port, socket, log, key file (a copy), worker. It follows its primary over the
//! primary's Unix socket, so the primary must outlive it or be stopped by the test on purpose.

use crate::cluster::Cluster;
use crate::postmaster::Postmaster;
use crate::sys::{Port, give_to};
use crate::{Ask, PATIENCE, wait_for};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

impl Cluster {
    /// Takes a base backup of this running cluster: a cluster of its own, not started, with a copy of the key file.
    #[track_caller]
    pub fn base_backup(&self) -> Cluster {
        let dir = tempfile::Builder::new().prefix("hv-").tempdir_in("/tmp").expect("cannot make a directory");
        give_to(dir.path(), self.user, 0o700).expect("cannot hand over a directory");
        let mut backup = Cluster {
            tools: self.tools.clone(),
            user: self.user,
            postmaster: Arc::new(Postmaster::default()),
            port: Port::reserve(),
            database: self.database.clone(),
            env: self.env.clone(),
            watchdog: None,
            dir: Some(dir),
        };
        for sub in ["sock", "keys"] {
            let path = backup.dir().join(sub);
            fs::create_dir(&path)
                .and_then(|()| give_to(&path, self.user, 0o700))
                .expect("cannot make a directory");
        }
        if let Ok(key) = fs::read(self.key_path()) {
            backup.write_key_file(&key, 0o600);
        }
        let data = backup.data_dir();
        let data = data.to_str().expect("a path under /tmp that we named");
        self.run_tool("pg_basebackup", &["-D", data, "-X", "stream", "-c", "fast", "--no-sync"], b"")
            .success();
        let key = backup.key_path();
        let key = key.to_str().expect("a path under /tmp that we named");
        backup.append_conf("hyperion_vault.local_master_key_file", key);
        backup.start_watchdog(Duration::from_secs(300));
        backup
    }

    /// Takes a base backup and starts it as a hot standby that streams from here.
    #[track_caller]
    pub fn standby(&self) -> Cluster {
        let standby = self.base_backup();
        // Not -R: it writes every option its own libpq knows, and the server may load an older libpq of the system.
        standby.write_signal("standby.signal");
        let source = format!("host={} port={} user=postgres", self.socket_dir().display(), self.port());
        standby.append_conf("primary_conninfo", &source);
        standby.start_again();
        standby
    }

    /// Starts this base backup, recovers it from the WAL archive in `archive` to `target` (a `recovery_target_*` setting
    /// and its value), and waits until it is a primary.
    #[track_caller]
    pub fn recover(&self, archive: &Path, target: (&str, &str)) {
        self.write_signal("recovery.signal");
        self.append_conf("restore_command", &format!("cp {}/%f %p", archive.display()));
        self.append_conf(target.0, target.1);
        self.append_conf("recovery_target_action", "promote");
        self.start_again();
        wait_for("the end of recovery", PATIENCE, || {
            self.superuser().ask("SELECT pg_is_in_recovery()") == "f"
        });
    }

    fn write_signal(&self, name: &str) {
        let signal = self.data_dir().join(name);
        fs::write(&signal, "")
            .and_then(|()| give_to(&signal, self.user, 0o600))
            .expect("cannot write a file");
    }

    /// Waits until this standby has replayed everything `primary` has written so far.
    #[track_caller]
    pub fn wait_replayed(&self, primary: &Cluster) {
        // flush, not insert: the insert position skips page headers and may lie where no record ends.
        let target = primary.superuser().ask("SELECT pg_current_wal_flush_lsn()");
        let mut session = self.superuser();
        let caught_up = format!("SELECT coalesce(pg_last_wal_replay_lsn() >= '{target}', false)");
        wait_for("the standby to replay", PATIENCE, || session.ask(&caught_up) == "t");
    }
}
