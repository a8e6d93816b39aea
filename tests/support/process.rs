//! Looking at processes through /proc: a server's children and their titles. Runs in the test process.
//!
//! The trap: a process id is reused. A process is therefore remembered by its id *and* its start time.

use std::fs;
use std::path::PathBuf;

/// A process as it was seen once; see [`Process::is_running`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    /// What the process shows as its command line, such as `postgres: checkpointer`.
    pub title: String,
    started: u64,
}

impl Process {
    /// The process with this id, if it runs and is a direct child of `parent`.
    pub(crate) fn child(parent: i32, pid: i32) -> Option<Self> {
        let stat = stat(pid)?;
        (stat.parent == parent && stat.running).then(|| Self {
            pid,
            title: title(pid),
            started: stat.started,
        })
    }

    /// The file it executes, if that can be told.
    pub(crate) fn program(&self) -> Option<PathBuf> {
        fs::read_link(format!("/proc/{}/exe", self.pid)).ok()
    }

    /// Whether it sleeps, and no signal is on its way to it.
    pub(crate) fn is_at_rest(&self) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        // proc_pid_status(5): pending signals of the thread and of the process are masks in hexadecimal.
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let none = |name| field(name).is_some_and(|mask| mask.bytes().all(|digit| digit == b'0'));
        field("State:").is_some_and(|state| state.starts_with('S')) && none("SigPnd:") && none("ShdPnd:")
    }

    /// Whether this very process still runs. One that has died but was not waited for yet does not run.
    pub fn is_running(&self) -> bool {
        stat(self.pid).is_some_and(|stat| stat.running && stat.started == self.started)
    }
}

/// The running direct children of `parent`, in order of their ids.
pub(crate) fn children_of(parent: i32) -> Vec<Process> {
    let mut children: Vec<_> = fs::read_dir("/proc")
        .expect("/proc is not mounted")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Process::child(parent, pid))
        .collect();
    children.sort_by_key(|child| child.pid);
    children
}

/// Whether it has been stopped, or has died.
pub(crate) fn stands_still(pid: i32) -> bool {
    stat(pid).is_none_or(|stat| stat.stopped || !stat.running)
}

struct Stat {
    parent: i32,
    running: bool,
    stopped: bool,
    started: u64,
}

fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // proc_pid_stat(5): pid (comm) state ppid … starttime is field 22. comm may contain spaces and parentheses.
    let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_ascii_whitespace().collect();
    Some(Stat {
        running: !matches!(*fields.first()?, "Z" | "X" | "x"),
        stopped: *fields.first()? == "T",
        parent: fields.get(1)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
    })
}

fn title(pid: i32) -> String {
    let raw = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&raw).replace('\0', " ").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, id};

    #[test]
    fn a_child_is_seen_until_it_dies_and_not_as_a_zombie() {
        let me = i32::try_from(id()).unwrap();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let seen = Process::child(me, pid).unwrap();
        assert!(seen.is_running());
        crate::wait_for("the child to sleep", crate::PATIENCE, || seen.is_at_rest());
        assert!(!stands_still(pid));
        crate::sys::send_signal(pid, libc::SIGSTOP).unwrap();
        crate::wait_for("the child to stop", crate::PATIENCE, || stands_still(pid));
        assert!(seen.is_running() && !seen.is_at_rest());
        assert!(children_of(me).iter().any(|process| process.pid == pid));
        assert_eq!(Process::child(pid, pid), None, "it is not its own child");
        child.kill().unwrap();
        crate::wait_for("the child to die", crate::PATIENCE, || !seen.is_running());
        child.wait().unwrap();
        assert!(!seen.is_running());
    }

    #[test]
    fn a_reused_id_is_another_process() {
        let parent = stat(i32::try_from(id()).unwrap()).unwrap().parent;
        let mut me = Process::child(parent, i32::try_from(id()).unwrap()).unwrap();
        assert!(me.is_running());
        me.started += 1;
        assert!(!me.is_running());
    }
}
