//! Who may do what, and from where, decided without a server.
//!
//! Runs in the backend of the caller on every operation, before the name is looked up, so that a refusal tells
//! nothing about what exists. The trap it avoids is a decision spread over callers: each question has one
//! function here, whose answer for "nothing was configured" is no.

pub mod allowlist;
pub mod roles;

pub use allowlist::{Allowlist, Peer, narrow, parse_network};
pub use roles::{Action, Caller, Decision, decide, permits};
