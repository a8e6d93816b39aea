//! Settings of a running cluster. Runs in the test process.
//!
//! The trap: `pg_reload_conf()` returns before anything has changed. A test that reads too early tests the old value.

use crate::cluster::Cluster;
use crate::{PATIENCE, wait_for};
use std::fs::OpenOptions;
use std::io::Write;
use std::time::SystemTime;

impl Cluster {
    /// `ALTER SYSTEM SET`, then [`reload`](Self::reload); fails if the server refuses the value, or if it takes effect
    /// only after a restart (use [`stage_conf`](Self::stage_conf) for those).
    #[track_caller]
    pub fn set_conf(&self, name: &str, value: &str) {
        self.try_set_conf(name, value)
            .unwrap_or_else(|error| panic!("cannot set {name} to {value:?}: {error:?}"));
    }

    /// Like [`set_conf`](Self::set_conf), for values that must be refused.
    #[track_caller]
    pub fn try_set_conf(&self, name: &str, value: &str) -> Result<(), postgres::Error> {
        self.alter_system(name, Some(value))?;
        self.reload();
        let sql = "SELECT pending_restart FROM pg_settings WHERE name = lower($1)";
        let pending = self.try_control()?.query_opt(sql, &[&name])?.is_some_and(|row| row.get(0));
        assert!(!pending, "{name} takes effect only after a restart: use stage_conf, then restart");
        Ok(())
    }

    /// `ALTER SYSTEM SET` alone, for settings that need a restart.
    #[track_caller]
    pub fn stage_conf(&self, name: &str, value: &str) {
        self.alter_system(name, Some(value))
            .unwrap_or_else(|error| panic!("cannot set {name} to {value:?}: {error:?}"));
    }

    /// `ALTER SYSTEM RESET`, then reload: back to what postgresql.conf says.
    #[track_caller]
    pub fn reset_conf(&self, name: &str) {
        self.alter_system(name, None).unwrap_or_else(|error| panic!("cannot reset {name}: {error:?}"));
        self.reload();
    }

    /// Adds a setting to postgresql.conf unseen by the server: the way a wrong value gets into a file, which ALTER
    /// SYSTEM would refuse. Takes effect at the next reload or start, unless ALTER SYSTEM has set it too.
    pub fn append_conf(&self, name: &str, value: &str) {
        self.append_to_conf(&conf_line(name, value));
    }

    /// Makes the server read its configuration again, and waits until it has.
    ///
    /// On return new sessions have the new values and open ones will before their next statement: the postmaster
    /// signals its children in the same step in which it takes the values over. A background worker has its signal
    /// too, but acts on it when its main loop next comes round.
    #[track_caller]
    pub fn reload(&self) {
        let load_time = || -> Option<SystemTime> {
            let mut client = self.try_control().ok()?;
            client.query_one("SELECT pg_conf_load_time()", &[]).ok().map(|row| row.get(0))
        };
        let before = load_time().expect("cannot ask the server when it last read its configuration");
        self.signal_postmaster(libc::SIGHUP);
        wait_for("the reload", PATIENCE, || load_time().is_some_and(|now| now > before));
    }

    /// The value of a setting as a new superuser session sees it.
    #[track_caller]
    pub fn show(&self, name: &str) -> String {
        let row = self.superuser().query_one("SELECT current_setting($1)", &[&name]);
        row.unwrap_or_else(|error| panic!("cannot show {name}: {error:?}")).get(0)
    }

    #[track_caller]
    fn alter_system(&self, name: &str, value: Option<&str>) -> Result<(), postgres::Error> {
        let plain = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.".contains(c));
        assert!(plain, "{name:?} is no setting's name");
        let sql = match value {
            Some(value) => format!("ALTER SYSTEM SET {name} = '{}'", value.replace('\'', "''")),
            None => format!("ALTER SYSTEM RESET {name}"),
        };
        self.try_control()?.batch_execute(&sql)
    }

    pub(crate) fn append_to_conf(&self, lines: &str) {
        let path = self.data_dir().join("postgresql.conf");
        let file = OpenOptions::new().append(true).open(path);
        file.and_then(|mut file| file.write_all(lines.as_bytes())).expect("cannot write postgresql.conf");
    }
}

/// One line of postgresql.conf. The server's lexer takes both `''` and backslash escapes.
pub(crate) fn conf_line(name: &str, value: &str) -> String {
    format!("{name} = '{}'\n", value.replace('\\', "\\\\").replace('\'', "''"))
}
