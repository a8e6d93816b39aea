//! Second line of defence: statements of others that name a table of the vault are refused when they start.
//!
//! Every server process, main thread, in every database: the server calls the hook for each statement that it is about to
//! execute, EXPLAIN and COPY included, after its own privilege check. Row-level security alone does not do: before 16 a table
//! without any policy for the role is still scanned, and EXPLAIN ANALYZE tells how many rows the filter removed.
//!
//! A statement passes if the role that it is checked as is a superuser or has BYPASSRLS; members of `vault_auditor` also
//! read `audit_log`. Tables are known by their membership in the extension, not by their name or schema. The trap:
//! this runs for every statement of everybody, so what is not a vault table must cost a few instructions.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use pgrx::pg_sys::{self, Datum, List, Oid};

use super::{catalog, datum, identity, plain, table};
use crate::error::{Kind, VaultError};

static mut PREVIOUS: pg_sys::ExecutorCheckPerms_hook_type = None;

/// Once, in `_PG_init`.
pub fn install() {
    // SAFETY: _PG_init runs on the main thread before any child exists; hooks are chained as the server asks.
    unsafe {
        PREVIOUS = pg_sys::ExecutorCheckPerms_hook;
        pg_sys::ExecutorCheckPerms_hook = Some(hook);
    }
}

/// A relation that a statement uses.
#[repr(C)]
#[derive(Clone, Copy)]
struct Use {
    relation: Oid,
    /// What the statement does with it; 0 for the children of an inheritance tree, which the server checks as their parent.
    privileges: pg_sys::AclMode,
    /// Whose privileges count: the owner of a view, or no oid for the current user.
    checked_as: Oid,
}

// Neither version of the hook has a guard around it: nothing in its frame needs dropping, so an error of `previous` passes
// unchanged. Only `judge` is guarded, which is called for relations not known to be others'.

#[cfg(feature = "pg15")]
unsafe extern "C-unwind" fn hook(relations: *mut List, raise: bool) -> bool {
    // SAFETY: called by the server with a list of RangeTblEntry.
    unsafe {
        if let Some(previous) = PREVIOUS
            && !previous(relations, raise)
        {
            return false;
        }
        elements::<pg_sys::RangeTblEntry>(relations)
            .iter()
            .filter(|entry| is_relation(&***entry))
            .map(|entry| &**entry)
            .map(|entry| Use {
                relation: entry.relid,
                privileges: entry.requiredPerms,
                checked_as: entry.checkAsUser,
            })
            .all(|usage| passes(usage, raise))
    }
}

#[cfg(not(feature = "pg15"))]
unsafe extern "C-unwind" fn hook(relations: *mut List, permissions: *mut List, raise: bool) -> bool {
    // SAFETY: called by the server with lists of RangeTblEntry and RTEPermissionInfo.
    unsafe {
        if let Some(previous) = PREVIOUS
            && !previous(relations, permissions, raise)
        {
            return false;
        }
        let checked = elements::<pg_sys::RTEPermissionInfo>(permissions).iter().map(|info| Use {
            relation: (**info).relid,
            privileges: (**info).requiredPerms,
            checked_as: (**info).checkAsUser,
        });
        let children = elements::<pg_sys::RangeTblEntry>(relations)
            .iter()
            .filter(|entry| is_relation(&***entry) && (***entry).perminfoindex == 0)
            .map(|entry| Use { relation: (**entry).relid, privileges: 0, checked_as: Oid::INVALID });
        checked.chain(children).all(|usage| passes(usage, raise))
    }
}

/// Whether the entry is a relation that can be scanned or written; EXCLUDED of ON CONFLICT has the relation's oid and
/// is only a row type.
fn is_relation(entry: &pg_sys::RangeTblEntry) -> bool {
    entry.rtekind == pg_sys::RTEKind::RTE_RELATION && entry.relkind != pg_sys::RELKIND_COMPOSITE_TYPE as i8
}

/// The pointers in a list.
///
/// # Safety
/// `list` is null or a valid list of pointers to `T`, which outlives the result.
unsafe fn elements<'a, T>(list: *mut List) -> &'a [*mut T] {
    if list.is_null() {
        return &[];
    }
    // SAFETY: as the caller promises. A cell of a list of pointers is a pointer.
    unsafe { std::slice::from_raw_parts((*list).elements.cast::<*mut T>(), (*list).length as usize) }
}

/// Whether the statement may use the relation. With `raise`, an error says that it may not.
unsafe fn passes(usage: Use, raise: bool) -> bool {
    // The server's own catalogs.
    if usage.relation.to_u32() < pg_sys::FirstNormalObjectId {
        return true;
    }
    let known = KNOWN.with_borrow(|known| known.get(&usage.relation.to_u32()).copied());
    // SAFETY: in a transaction, as the server calls the hook.
    known == Some(false) || unsafe { judge(usage, raise) }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn judge(usage: Use, raise: bool) -> bool {
    if !is_vault_table(usage.relation) {
        return true;
    }
    let role = if usage.checked_as == Oid::INVALID { plain::user() } else { usage.checked_as };
    // SAFETY: a syscache lookup; superusers included, false for a role that does not exist.
    if unsafe { pg_sys::has_bypassrls_privilege(role) } {
        return true;
    }
    // SAFETY: a syscache lookup; null, or a palloc'd string.
    let name = unsafe { pg_sys::get_rel_name(usage.relation) };
    let name = if name.is_null() {
        String::new()
    } else {
        // SAFETY: not null, as above.
        unsafe { datum::cstr_lossy(name) }
    };
    let is_log = name == "audit_log";
    // Exactly: a child of an inheritance tree is written without any privilege named.
    if is_log
        && usage.privileges == pg_sys::AclMode::from(pg_sys::ACL_SELECT)
        && identity::has_privileges_of(role, c"vault_auditor")
    {
        return true;
    }
    if raise {
        if table::is_outdated() {
            table::outdated().raise();
        }
        let hint = if is_log {
            "Reading the audit log requires the privileges of vault_auditor; nothing else is done with it by statements."
        } else {
            "Use the functions of schema vault. Dumps and copies require a superuser or a role with BYPASSRLS."
        };
        VaultError::new(Kind::Denied, format!("permission denied for table {name}")).hint(hint).raise();
    }
    false
}

/// Oids are spread well enough by one multiplication.
#[derive(Default)]
struct OidHasher(u64);

impl Hasher for OidHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, oid: u32) {
        self.0 = (self.0 ^ u64::from(oid)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// So many relations are remembered, about half a megabyte; then everything is forgotten. A session that uses more of them
/// spends far more on opening them.
const MOST: usize = 1 << 15;

thread_local! {
    /// Whether a relation is a vault table. Membership never changes during the life of a relation, but for ALTER
    /// EXTENSION ADD and DROP, which a superuser runs; so an entry lasts until the relation cache hears of a change.
    static KNOWN: RefCell<HashMap<u32, bool, BuildHasherDefault<OidHasher>>> =
        const { RefCell::new(HashMap::with_hasher(BuildHasherDefault::new())) };
    static INVALIDATIONS: Cell<u64> = const { Cell::new(0) };
    static LISTENING: Cell<bool> = const { Cell::new(false) };
}

fn is_vault_table(relation: Oid) -> bool {
    if let Some(known) = KNOWN.with_borrow(|known| known.get(&relation.to_u32()).copied()) {
        return known;
    }
    if !LISTENING.replace(true) {
        // SAFETY: the callback stays valid; registered once per process.
        unsafe { pg_sys::CacheRegisterRelcacheCallback(Some(invalidated), Datum::null()) };
    }
    let before = INVALIDATIONS.get();
    let verdict = look_up(relation);
    // What was looked up while a change was heard of may be from before it. And a table in the vault's schema may become
    // the extension's (ALTER EXTENSION ADD), which nothing announces.
    if INVALIDATIONS.get() == before && (verdict || !catalog::is_in_vault_schema(relation)) {
        KNOWN.with_borrow_mut(|known| {
            if known.len() >= MOST {
                known.clear();
            }
            known.insert(relation.to_u32(), verdict);
        });
    }
    verdict
}

#[cold]
fn look_up(relation: Oid) -> bool {
    // SAFETY: syscache and catalog lookups by oid; none of them fails for an oid that is not in use.
    unsafe {
        let relation = match pg_sys::get_rel_relkind(relation) as u8 {
            pg_sys::RELKIND_TOASTVALUE => match owner_of_toast(relation) {
                Some(owner) => owner,
                None => return false,
            },
            pg_sys::RELKIND_RELATION
            | pg_sys::RELKIND_PARTITIONED_TABLE
            | pg_sys::RELKIND_FOREIGN_TABLE
            | pg_sys::RELKIND_MATVIEW
            | pg_sys::RELKIND_SEQUENCE => relation,
            // A view is checked as what is below it.
            _ => return false,
        };
        catalog::has_relation(relation)
    }
}

/// The table that a TOAST table belongs to. It is in its name, which the server keeps so when it rewrites a table, and
/// lets nobody change.
fn owner_of_toast(toast: Oid) -> Option<Oid> {
    // SAFETY: a syscache lookup; null, or a palloc'd string.
    let name = unsafe {
        let name = pg_sys::get_rel_name(toast);
        if name.is_null() {
            return None;
        }
        datum::cstr_lossy(name)
    };
    name.strip_prefix("pg_toast_")?.parse().ok().map(|oid: u32| Oid::from(oid))
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn invalidated(_arg: Datum, relation: Oid) {
    INVALIDATIONS.set(INVALIDATIONS.get() + 1);
    // Never while the map is borrowed: it is not across a call of the server.
    KNOWN.with_borrow_mut(|known| {
        if relation == Oid::INVALID {
            known.clear();
        } else {
            known.remove(&relation.to_u32());
        }
    });
}
