//! Integration tests: each test starts its own throw-away cluster. See tests/support for what they stand on.

mod crash;
mod deaths;
mod docs;
mod harness;
mod keyfile;
mod leaks;
mod tamper;
mod triggers;
mod watch;
mod worker;
