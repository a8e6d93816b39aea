//! Polling for a condition. Runs in the test's own thread.
//!
//! Tests never sleep for a fixed time and hope: they wait for what they need, with a bound.

use std::time::{Duration, Instant};

/// Short against anything a server does, long enough not to load a small machine.
const POLL: Duration = Duration::from_millis(10);

/// Polls `condition` until it holds or `timeout` has passed; says whether it came to hold.
#[must_use = "a condition that never held must fail the test; or use wait_for"]
pub fn wait_until(timeout: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + timeout;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(POLL);
    }
}

/// Like [`wait_until`], but fails the test, saying `what` did not come.
#[track_caller]
pub fn wait_for(what: &str, timeout: Duration, condition: impl FnMut() -> bool) {
    assert!(wait_until(timeout, condition), "waited {timeout:?} in vain for: {what}");
}
