//! The server's log: everything the postmaster and its children wrote to stderr. Runs in the test process.
//!
//! Tests look at what came *after* a mark, so that an earlier message does not satisfy them.

use crate::cluster::Cluster;
use crate::wait::wait_until;
use std::path::PathBuf;
use std::time::Duration;

/// How the server tells of something that was not given back, before 17 and since.
pub const LEAKS: [&str; 3] = ["reference leak", "refcount leak", "resource was not closed"];

/// A place in a cluster's log.
#[derive(Clone, Copy, Debug)]
pub struct LogMark(usize);

impl LogMark {
    pub const START: LogMark = LogMark(0);
}

impl Cluster {
    pub fn log_path(&self) -> PathBuf {
        self.dir().join("server.log")
    }

    /// The log's present end.
    pub fn log_mark(&self) -> LogMark {
        LogMark(self.log_bytes().len())
    }

    /// The whole log.
    pub fn log(&self) -> String {
        self.log_since(LogMark::START)
    }

    pub fn log_since(&self, mark: LogMark) -> String {
        String::from_utf8_lossy(&self.log_bytes()[mark.0..]).into_owned()
    }

    pub fn log_contains(&self, mark: LogMark, text: &str) -> bool {
        self.log_since(mark).contains(text)
    }

    /// Waits for a message that another process writes in its own time.
    #[track_caller]
    pub fn wait_for_log(&self, mark: LogMark, text: &str, timeout: Duration) {
        let found = wait_until(timeout, || self.log_contains(mark, text));
        assert!(found, "{text:?} did not appear in the log:\n{}", self.log_since(mark));
    }

    pub(crate) fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let skip = log.lines().count().saturating_sub(lines);
        log.lines().skip(skip).map(|line| format!("{line}\n")).collect()
    }

    fn log_bytes(&self) -> Vec<u8> {
        // Absent until the first start.
        std::fs::read(self.log_path()).unwrap_or_default()
    }
}
