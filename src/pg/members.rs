//! What others do to the vault's objects by other means than statements on rows: refused, whatever they were granted.
//!
//! Every server process, main thread. A role with stray privileges could put a trigger in the place of one of ours
//! (`CREATE OR REPLACE TRIGGER` asks for TRIGGER alone), have a superuser's own statement run its code, empty a table,
//! tie rows down with a foreign key, stop everybody with a lock, or plant a function beside ours that suits a call
//! better. Two hooks of the server find it:
//!
//! - the object access hook, called with the oid of what was just created, changed or truncated. It decides: a name may mean
//!   something else a moment later, an oid may not;
//! - the utility hook, called with a command before it takes its locks, and so with names, which it pins
//!   ([`occupied`](super::occupied)). It spares everybody else the wait behind a command that is refused, or that would be allowed
//!   and does nothing but lock. After a LOCK it looks once more: only then the views cannot change any more.
//!
//! Superusers pass, and so does what a superuser's function does. The trap it avoids: rows of the catalogs that the
//! running command has made are not seen by its own look-ups; `catalog::row_now` sees them.

use std::collections::HashSet;

use pgrx::pg_sys::{self, Oid};

use super::occupied::{All, Reach};
use super::utility::{self, Command};
use super::{catalog, identity};
use crate::error::{Kind, VaultError};

static mut PREVIOUS: pg_sys::object_access_hook_type = None;

/// Once, in `_PG_init`.
pub fn install() {
    // SAFETY: _PG_init runs on the main thread before any child exists; hooks are chained as the server asks.
    unsafe {
        PREVIOUS = pg_sys::object_access_hook;
        pg_sys::object_access_hook = Some(hook);
    }
    utility::before_each(before);
}

// No guard around it: nothing in its frame needs dropping, so an error of `previous` passes unchanged.
unsafe extern "C-unwind" fn hook(
    access: pg_sys::ObjectAccessType::Type,
    class: Oid,
    object: Oid,
    part: std::ffi::c_int,
    argument: *mut std::ffi::c_void,
) {
    use pg_sys::ObjectAccessType::{OAT_POST_ALTER, OAT_POST_CREATE, OAT_TRUNCATE};
    // SAFETY: called by the server; arguments are passed on as they came.
    unsafe {
        if let Some(previous) = PREVIOUS {
            previous(access, class, object, part, argument);
        }
        if matches!(access, OAT_POST_CREATE | OAT_POST_ALTER | OAT_TRUNCATE) {
            judge(access == OAT_TRUNCATE, class, object);
        }
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn judge(truncated: bool, class: Oid, object: Oid) {
    if identity::is_superuser(identity::current_user()) {
        return;
    }
    let Some(vault) = catalog::vault() else { return };
    let refused = if truncated {
        vault.has_relation(object).then_some("TRUNCATE")
    } else if class == catalog::TRIGGERS {
        (on_member(&vault, class, object, c"tgrelid") || on_member(&vault, class, object, c"tgconstrrelid"))
            .then_some("a trigger")
    } else if class == catalog::CONSTRAINTS {
        on_member(&vault, class, object, c"confrelid").then_some("a foreign key")
    } else {
        None
    };
    if let Some(what) = refused {
        on_relation(what).raise();
    }
    let namespace = if class == pg_sys::ExtensionRelationId {
        catalog::extension_namespace(object)
    } else {
        catalog::namespace_now(class, object)
    };
    if namespace == Some(vault.namespace) {
        VaultError::new(
            Kind::Denied,
            "permission denied to create anything in schema vault, or to move it there",
        )
        .hint("The schema is hyperion_vault's; only superusers add to it. Use another schema.")
        .raise();
    }
}

fn on_member(vault: &catalog::Vault, class: Oid, object: Oid, column: &std::ffi::CStr) -> bool {
    catalog::oid_now(class, object, column).is_some_and(|relation| vault.has_relation(relation))
}

fn on_relation(what: &str) -> VaultError {
    VaultError::new(Kind::Denied, format!("permission denied for {what} on a relation of hyperion_vault"))
        .hint("Use the functions of schema vault. Only superusers maintain its tables.")
}

fn before(command: &Command) {
    let Command::Occupy(occupied) = command else { return };
    let Some(vault) = catalog::vault() else { return };
    match occupied {
        Ok(occupied) => {
            let mut seen = HashSet::new();
            let refused = occupied
                .relations
                .iter()
                .find(|(_, relation)| reaches(&vault, *relation, occupied.reach, &mut seen));
            if let Some((what, _)) = refused {
                on_relation(what).raise();
            }
        }
        Err(All::Schema(what)) => on_relation(what).raise(),
        Err(All::Database(what)) => VaultError::new(
            Kind::Denied,
            format!("permission denied for {what} of a database that holds hyperion_vault"),
        )
        .hint("Name the tables. Only superusers maintain those of the vault.")
        .raise(),
    }
}

/// Whether the relation is the vault's, or an index of one, or reaches one. Each relation is looked at once.
fn reaches(vault: &catalog::Vault, relation: Oid, reach: Reach, seen: &mut HashSet<u32>) -> bool {
    if !seen.insert(relation.to_u32()) {
        return false;
    }
    pgrx::check_for_interrupts!();
    vault.has_relation(relation)
        || catalog::table_of_index(relation).is_some_and(|table| vault.has_relation(table))
        || reach != Reach::Itself
            && catalog::descendants(relation).into_iter().any(|child| vault.has_relation(child))
        || reach == Reach::Views
            && catalog::below_view(relation).into_iter().any(|below| reaches(vault, below, reach, seen))
}
