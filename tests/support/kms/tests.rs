//! The fake key service held to its word, over the wire.

mod client;
mod counting;
mod crypto;
mod faults;
mod keys;
mod signing;
