//! Generations of tables: whether what this process remembers of their rows may be out of date.
//!
//! Main thread. A trigger on each table sends a relation-cache invalidation for it (sql/25_access.sql), which travels with
//! the transaction, to other sessions when it commits and to standbys, to this one at once and once more if it rolls
//! back. Here they are counted, per group of tables. The trap it avoids: counting all invalidations of all relations,
//! with which each temporary table somewhere would make every session load its policy anew.

use std::cell::Cell;
use std::ffi::CStr;

use pgrx::pg_sys::{self, Datum, Oid};

/// Tables whose changes are counted together.
#[derive(Clone, Copy)]
pub enum Group {
    Policies,
    Tokens,
}

const TABLES: [(&CStr, Group); 4] = [
    (c"roles", Group::Policies),
    (c"role_permissions", Group::Policies),
    (c"role_bindings", Group::Policies),
    (c"tokens", Group::Tokens),
];

thread_local! {
    static WATCHED: [Cell<Oid>; TABLES.len()] = const { [const { Cell::new(Oid::INVALID) }; TABLES.len()] };
    static GENERATIONS: [Cell<u64>; 2] = const { [const { Cell::new(0) }; 2] };
    static LISTENING: Cell<bool> = const { Cell::new(false) };
}

/// Moves whenever a table of the group may have changed since [`begin`]. For this process: what others have committed is
/// heard at the start of a statement, and by `identity::hear_of_changes`.
pub fn generation(group: Group) -> u64 {
    GENERATIONS.with(|generations| generations[group as usize].get())
}

/// Call it before reading the tables, whose oids may be others than last time, and take the generation after it.
pub fn begin(group: Group) {
    if !LISTENING.replace(true) {
        // SAFETY: the callback stays valid; registered once per process.
        unsafe { pg_sys::CacheRegisterRelcacheCallback(Some(invalidated), Datum::null()) };
    }
    for (place, (table, of)) in TABLES.iter().enumerate() {
        if *of as usize == group as usize {
            // SAFETY: syscache lookups on valid strings. A table that is missing is watched under no oid; reading it
            // fails, so nothing is remembered of it.
            let oid = unsafe {
                pg_sys::get_relname_relid(table.as_ptr(), pg_sys::get_namespace_oid(c"vault".as_ptr(), true))
            };
            WATCHED.with(|watched| watched[place].set(oid));
        }
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn invalidated(_arg: Datum, relation: Oid) {
    for (place, (_, group)) in TABLES.iter().enumerate() {
        // No oid: all relations.
        if relation == Oid::INVALID || WATCHED.with(|watched| watched[place].get()) == relation {
            GENERATIONS.with(|generations| {
                let generation = &generations[*group as usize];
                generation.set(generation.get() + 1);
            });
        }
    }
}
