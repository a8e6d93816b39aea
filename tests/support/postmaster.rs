//! The server's main process as our own child. Runs in the test process; shared with the cluster's watchdog thread.
//!
//! The trap: once the child has been waited for, its id may belong to anyone, and we may be root. The child is
//! therefore forgotten, under the lock, in the same step that reaps it, and every signal is sent under that lock.

use crate::sys::{send_signal, spawn_tied_to_us};
use crate::wait::wait_until;
use std::io;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[derive(Default)]
pub struct Postmaster {
    child: Mutex<Option<Child>>,
}

impl Postmaster {
    pub fn spawn(&self, command: Command) -> io::Result<()> {
        let mut child = self.lock();
        assert!(child.is_none(), "the server is running already");
        *child = Some(spawn_tied_to_us(command)?);
        Ok(())
    }

    /// The process id while the server runs.
    pub fn pid(&self) -> Option<i32> {
        self.lock().as_ref().map(pid_of)
    }

    /// Signals the postmaster; does nothing when it has gone.
    pub fn signal(&self, signal: i32) {
        if let Some(child) = self.lock().as_ref() {
            // It cannot have been reaped (see above), so the only failure would be a lack of rights.
            send_signal(pid_of(child), signal).expect("cannot signal our own server");
        }
    }

    /// The exit status, once, if it has ended since it was last asked.
    pub fn try_reap(&self) -> Option<ExitStatus> {
        let mut child = self.lock();
        let status = child.as_mut()?.try_wait().expect("cannot wait for our own child")?;
        *child = None;
        Some(status)
    }

    /// Waits until the postmaster has ended; `false` if it still runs after `timeout`.
    pub fn wait_gone(&self, timeout: Duration) -> bool {
        wait_until(timeout, || self.try_reap().is_some() || self.pid().is_none())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Child>> {
        // A test that panicked elsewhere must still be able to stop its server.
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn pid_of(child: &Child) -> i32 {
    // Linux process ids are below 2^22.
    i32::try_from(child.id()).expect("a process id fits")
}
