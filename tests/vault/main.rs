//! Integration tests: each test starts its own throw-away cluster. See tests/support for what they stand on.

mod api;
mod bad_input;
mod catalog;
mod crash;
mod deaths;
mod docs;
mod gaps;
mod gate;
mod harness;
mod install;
mod isolation;
mod keyfile;
mod kms;
mod kms_docs;
mod kms_fake;
mod leaks;
mod load;
mod moto;
mod races;
mod remembered;
mod review;
mod tamper;
mod travel;
mod triggers;
mod watch;
mod worker;
