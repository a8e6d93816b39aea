//! What must not be found anywhere: values, data keys, the master key. Runs in the test process.
//!
//! The tests know the master key (they wrote the key file) and so can compute every data key from the tables. Values
//! go to the server as bound parameters: a literal in the text of a statement is the client's own disclosure, and
//! where the server writes it down is the server's business. Every search has a positive control.

mod disk;
mod keys;
mod memory;
mod messages;
mod process;
