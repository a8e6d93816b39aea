//! The processes of a cluster: finding them, ending them, crashing the server. Runs in the test process.
//!
//! Signals go to this cluster's postmaster and its direct children, to nothing else: tests may run as root, on a
//! machine where others run servers too.

use crate::PATIENCE;
use crate::cluster::Cluster;
use crate::process::{Process, children_of, stands_still};
use crate::sys::send_signal;
use crate::wait::{wait_for, wait_until};
use libc::{SIGKILL, SIGSTOP};
use std::path::Path;
use std::time::Duration;

impl Cluster {
    /// SIGKILL of the postmaster, then waits until its children have noticed and gone: fails naming those that have
    /// not (a worker that outlives its postmaster blocks the next start), after killing them.
    #[track_caller]
    pub fn kill_postmaster_9(&self) {
        // Stopped, it makes no more of them while they are listed.
        self.signal_postmaster(SIGSTOP);
        if let Some(postmaster) = self.postmaster.pid() {
            wait_for("the postmaster to stop", PATIENCE, || stands_still(postmaster));
        }
        let children = self.processes();
        self.signal_postmaster(SIGKILL);
        assert!(self.postmaster.wait_gone(PATIENCE), "the postmaster survived SIGKILL");
        let left = end_orphans(&children, &self.tools.program("postgres"), PATIENCE);
        assert!(left.is_empty(), "these outlived their postmaster: {left:?}");
    }

    #[track_caller]
    pub fn postmaster_pid(&self) -> i32 {
        self.postmaster.pid().expect("the server is not running")
    }

    pub fn signal_postmaster(&self, signal: i32) {
        self.postmaster.signal(signal);
    }

    /// Signals one of this server's processes unless it has just ended. Whether it was there.
    pub fn try_kill(&self, pid: i32, signal: i32) -> bool {
        let Some(postmaster) = self.postmaster.pid() else { return false };
        Process::child(postmaster, pid).is_some_and(|process| send_signal(process.pid, signal).is_ok())
    }

    /// Signals one of this server's processes; panics if `pid` is not one.
    #[track_caller]
    pub fn kill(&self, pid: i32, signal: i32) {
        send_signal(self.process(pid).pid, signal).expect("cannot signal a server process");
    }

    /// Signals one of this server's processes and waits until that very process has ended.
    #[track_caller]
    pub fn kill_and_wait(&self, pid: i32, signal: i32) {
        let process = self.process(pid);
        send_signal(pid, signal).expect("cannot signal a server process");
        wait_for(&format!("the end of {process:?} after signal {signal}"), PATIENCE, || {
            !process.is_running()
        });
    }

    /// SIGSTOP of one of this server's processes; on return it has stopped.
    #[track_caller]
    pub fn freeze(&self, pid: i32) {
        self.kill(pid, SIGSTOP);
        wait_for(&format!("{pid} to stop"), PATIENCE, || stands_still(pid));
    }

    /// The postmaster's running children, in order of their ids; none when it is down.
    pub fn processes(&self) -> Vec<Process> {
        self.postmaster.pid().map(children_of).unwrap_or_default()
    }

    /// The processes whose title contains `title`, such as `hyperion_vault kms` or `checkpointer`.
    pub fn pids(&self, title: &str) -> Vec<i32> {
        self.processes().into_iter().filter(|process| process.title.contains(title)).map(|p| p.pid).collect()
    }

    /// The one process with this title, waited for if it is not there yet.
    #[track_caller]
    pub fn pid_of(&self, title: &str) -> i32 {
        wait_for(&format!("exactly one process {title:?}"), PATIENCE, || self.pids(title).len() == 1);
        // It may end between the two looks; the test is then told so by the panic.
        *self.pids(title).first().unwrap_or_else(|| panic!("{title:?} has just ended"))
    }

    #[track_caller]
    fn process(&self, pid: i32) -> Process {
        Process::child(self.postmaster_pid(), pid)
            .unwrap_or_else(|| panic!("{pid} is not a running process of this server"))
    }
}

/// Waits for orphaned server processes to end by themselves, kills those that do not, and returns them.
///
/// Orphans no longer have our postmaster as parent, so what is killed must also run this `program`: a mistake in
/// finding the children must never become a mistake in killing.
pub(crate) fn end_orphans(children: &[Process], program: &Path, patience: Duration) -> Vec<Process> {
    if wait_until(patience, || children.iter().all(|child| !child.is_running())) {
        return Vec::new();
    }
    let left: Vec<_> = children.iter().filter(|child| child.is_running()).cloned().collect();
    let program = program.canonicalize().ok();
    for child in left.iter().filter(|child| program.is_some() && child.program() == program) {
        let _ = send_signal(child.pid, SIGKILL); // it may just have ended
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, id};

    #[test]
    fn only_orphans_that_run_the_program_are_killed() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let orphans = [Process::child(i32::try_from(id()).unwrap(), pid).unwrap()];
        // The child may still be about to execute its program.
        let ours = std::env::current_exe().unwrap();
        wait_for("sleep to run", PATIENCE, || orphans[0].program().is_some_and(|path| path != ours));
        let program = orphans[0].program().unwrap();
        for other in ["/bin/sh", "/no/such/program"] {
            assert_eq!(end_orphans(&orphans, Path::new(other), Duration::ZERO).len(), 1);
            std::thread::sleep(Duration::from_millis(50));
            assert!(orphans[0].is_running(), "killed as if it were {other}");
        }
        assert_eq!(end_orphans(&orphans, &program, Duration::ZERO).len(), 1);
        wait_for("its end", PATIENCE, || !orphans[0].is_running());
        child.wait().unwrap();
        assert!(end_orphans(&orphans, &program, Duration::ZERO).is_empty());
    }
}
