//! The `aws` provider against servers that speak KMS's protocol: the strict fake, moto, and small ones that lie.
//!
//! Runs in the test process, without PostgreSQL. The SDK finds credentials, region and endpoint in the environment of
//! its process, so what is tested there runs in child processes, each with an environment and home of its own
//! ([`child`]). The trap: a developer's own AWS settings that reach a test, and a test's calls that reach his account;
//! so [`setup`] replaces them before the first provider is opened.

mod answers;
mod child;
mod credentials;
mod endpoints;
mod faults;
mod keys;
mod moto;
mod regions;
mod responder;
mod setup;
mod threads;
mod tls;
