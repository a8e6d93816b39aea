//! The fake key service held to its word, over the wire.

mod client;
mod crypto;
