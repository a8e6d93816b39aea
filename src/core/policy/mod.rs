//! Who may do what, and from where, decided without a server.
//!
//! Runs in the backend of the caller on every operation, before the name is looked up, so that a refusal tells
//! nothing about what exists. The trap it avoids is a decision spread over callers: each question has one
//! function here, whose answer for "nothing was configured" is no.

pub mod allowlist;
pub mod index;
pub mod label;
pub mod roles;
pub mod rules;
pub mod spans;
pub mod target;
pub mod token;
pub mod uses;

pub use allowlist::{Allowlist, Peer, narrow, parse_network};
pub use index::Policy;
pub use label::Label;
pub use roles::{
    Action, Caller, Decision, NotHeld, Reach, administers, decide, may_hand_out, permits, reach,
};
pub use rules::{Granted, Rule};
pub use spans::{Span, spans};
