//! The workers that live in the vault's database, and who looks after them.
//!
//! [`launcher`] is started by the postmaster and belongs to no database. It starts the others (see [`ROSTER`]) while
//! the extension exists in `hyperion_vault.database`. [`session`] is what they have in common; [`detach`] lets commands
//! that want nobody in the database have it. All meet in [`posts`], a part of the shared mapping.
//!
//! The trap all of this avoids: a worker that must be stopped by hand before its database can be dropped.

use std::ffi::CStr;

mod derived;
pub mod detach;
pub mod hooks;
mod housekeeping;
pub mod launcher;
pub mod maintenance;
pub mod posts;
mod rotation;
pub mod session;
mod token_uses;

use crate::audit::relay;

/// A worker of the vault's database.
pub struct Employee {
    pub name: &'static CStr,
    /// Its entry point, for the postmaster.
    pub entry: &'static CStr,
    /// Runs only while there is something for it to do.
    pub on_demand: bool,
}

/// Who is started, in this order; the first also finds out whether there is an extension. A worker's place here is its
/// place in [`posts::Posts::workers`].
pub const ROSTER: [Employee; 3] = [
    Employee { name: maintenance::NAME, entry: c"hyperion_vault_maintenance_main", on_demand: false },
    Employee { name: relay::NAME, entry: c"hyperion_vault_relay_main", on_demand: false },
    Employee { name: hooks::NAME, entry: c"hyperion_vault_hooks_main", on_demand: true },
];
