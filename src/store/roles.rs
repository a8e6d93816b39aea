//! `vault.roles`, `vault.role_permissions`, `vault.role_bindings`: the policy as it is stored.
//!
//! Client backends, main thread. Loading is under the latest snapshot, as reading secrets is: a revocation binds a
//! `REPEATABLE READ` session. Sessions remember what they loaded, so every change announces itself. The trap it avoids: a
//! row that is not understood and grants something; an action or a path that does not parse grants nothing.

use std::ffi::CString;

use hyperion_vault_core::envelope::Id;
use hyperion_vault_core::policy::{Granted, Policy, Rule};
use hyperion_vault_core::secret::Pattern;
use pgrx::pg_sys::{Datum, Oid};

use super::tokens;
use crate::error::{Kind, Result, VaultError};
use crate::pg::heap::{Assignment, RowLock, Wait, Write};
use crate::pg::scan::{Bound, Direction, Index, Key, Table, equal};
use crate::pg::tuple::Tuple;
use crate::pg::{clock, datum, identity};

/// The built-in role, which has no row: `is_admin` and nothing else.
pub const ADMIN: &str = "admin";
/// What bindings and tokens of [`ADMIN`] refer to. No role that is made has it: theirs are random.
pub const ADMIN_ID: Id = Id([0; 16]);

thread_local! {
    static ROLES: Table = const {
        Table::new(
            c"roles",
            &[c"id", c"name", c"description", c"is_admin", c"created_at"],
            &[
                Index { name: c"roles_pkey", columns: &[role::ID] },
                Index { name: c"roles_name_key", columns: &[role::NAME] },
            ],
        )
    };
    static PERMISSIONS: Table = const {
        Table::new(
            c"role_permissions",
            &[c"role_id", c"action", c"path"],
            &[Index {
                name: c"role_permissions_pkey",
                columns: &[permission::ROLE_ID, permission::ACTION, permission::PATH],
            }],
        )
    };
    static BINDINGS: Table = const {
        Table::new(
            c"role_bindings",
            &[c"role_id", c"pg_role", c"pg_role_oid", c"created_at"],
            &[Index { name: c"role_bindings_key", columns: &[binding::ROLE_ID, binding::PG_ROLE] }],
        )
    };
}

/// Indexes of [`ROLES`].
const BY_ID: usize = 0;
const BY_NAME: usize = 1;

/// Columns of [`ROLES`].
mod role {
    pub const ID: i16 = 1;
    pub const NAME: i16 = 2;
    pub const DESCRIPTION: i16 = 3;
    pub const IS_ADMIN: i16 = 4;
    pub const CREATED_AT: i16 = 5;
}
/// Columns of [`PERMISSIONS`].
mod permission {
    pub const ROLE_ID: i16 = 1;
    pub const ACTION: i16 = 2;
    pub const PATH: i16 = 3;
}
/// Columns of [`BINDINGS`].
mod binding {
    pub const ROLE_ID: i16 = 1;
    pub const PG_ROLE: i16 = 2;
    pub const PG_ROLE_OID: i16 = 3;
    pub const CREATED_AT: i16 = 4;
}

/// Calls `visit` for each row of a table within the bounds of its first index.
fn each(table: &Table, bounds: &[Bound<'_>], mut visit: impl FnMut(&Tuple<'_>) -> Result<()>) -> Result<()> {
    table.scan(0, bounds, Direction::Forward, |row| visit(row).map(|()| true))
}

/// A Postgres role that has a vault role, as it is stored.
pub struct Binding {
    pub role: Id,
    pub name: String,
    pub oid: Oid,
}

/// All bindings.
pub fn bindings() -> Result<Vec<Binding>> {
    let mut found = Vec::new();
    BINDINGS.with(|table| {
        each(table, &[], |row| {
            found.extend(read_binding(row));
            Ok(())
        })
    })?;
    Ok(found)
}

fn read_binding(row: &Tuple<'_>) -> Option<Binding> {
    Some(Binding {
        role: row.uuid(binding::ROLE_ID)?,
        name: row.text(binding::PG_ROLE)?.to_owned(),
        oid: row.oid(binding::PG_ROLE_OID)?,
    })
}

impl Binding {
    /// Whether there is a Postgres role of that name and OID.
    fn is_active(&self) -> bool {
        oid_of(&self.name) == Some(self.oid)
    }
}

/// The OID of the Postgres role that has this name now.
fn oid_of(pg_role: &str) -> Option<Oid> {
    identity::role_oid(&CString::new(pg_role).ok()?)
}

/// What these roles grant together. One that does not exist grants nothing.
pub fn policy(roles: &[Id]) -> Result<Policy> {
    let mut is_admin = false;
    let mut rules = Vec::new();
    for id in roles {
        if *id == ADMIN_ID {
            is_admin = true;
            continue;
        }
        let found =
            ROLES.with(|table| {
                table.point(BY_ID, &[Key::Uuid(*id)], None, |row| {
                    Ok(row.and_then(|row| row.bool(role::IS_ADMIN)))
                })
            })?;
        if let Some(admin) = found {
            is_admin |= admin;
            rules.extend(self::rules(*id)?);
        }
    }
    Ok(Policy::new(is_admin, rules))
}

/// The rules of a role.
pub fn rules(role: Id) -> Result<Vec<Rule>> {
    let mut rules = Vec::new();
    PERMISSIONS.with(|table| {
        each(table, &equal([Key::Uuid(role)]), |row| {
            let granted = row.text(permission::ACTION).and_then(Granted::parse);
            let path = row.text(permission::PATH).and_then(|path| Pattern::parse(path).ok());
            if let (Some(granted), Some(path)) = (granted, path) {
                rules.push(Rule { granted, path });
            }
            Ok(())
        })
    })?;
    Ok(rules)
}

/// A role that is there, its row locked, so that its rules stay what they are until the transaction ends.
pub struct Locked<'w> {
    /// None for the built-in one.
    row: Option<RowLock<'w>>,
    pub id: Id,
    pub is_admin: bool,
}

/// Locks a role by its name. The built-in one needs no lock: it does not change.
pub fn lock<'w>(write: &'w Write, name: &str) -> Result<Locked<'w>> {
    if name == ADMIN {
        return Ok(Locked { row: None, id: ADMIN_ID, is_admin: true });
    }
    let row = ROLES.with(|table| table.lock(write, BY_NAME, &[Key::Text(name)], None, Wait::Block))?;
    let locked = match row {
        None => None,
        Some(row) => {
            let found = {
                let stored = row.row()?;
                stored.uuid(role::ID).zip(stored.bool(role::IS_ADMIN))
            };
            found.map(|(id, is_admin)| Locked { row: Some(row), id, is_admin })
        }
    };
    locked.ok_or_else(|| {
        VaultError::new(Kind::NotFound, format!("role \"{name}\" does not exist"))
            .hint("See vault.list_roles() for the roles there are.")
    })
}

/// Makes a role; false if the name is taken.
pub fn create(write: &Write, id: Id, name: &str, description: Option<&str>, is_admin: bool) -> Result<bool> {
    let text = |text: &str| datum::varlena(text.as_bytes());
    ROLES.with(|table| {
        let made = table.insert_unless_present(
            write,
            BY_NAME,
            &[Key::Text(name)],
            &[
                (role::ID, Some(datum::uuid(id))),
                (role::NAME, Some(text(name))),
                (role::DESCRIPTION, description.map(text)),
                (role::IS_ADMIN, Some(Datum::from(is_admin))),
                (role::CREATED_AT, Some(Datum::from(clock()))),
            ],
        )?;
        if made.is_some() {
            table.announce_change(write)?;
        }
        Ok(made.is_some())
    })
}

/// Deletes the rows of a table within the bounds of an index, as many as `is_wanted`, and tells of it. How many. Waits for
/// whoever changes one of them, and judges it again then.
pub(super) fn delete_of(
    write: &Write,
    table: &Table,
    index: usize,
    bounds: &[Bound<'_>],
    is_wanted: impl Fn(&Tuple<'_>) -> bool,
) -> Result<usize> {
    let held = table.hold(write)?;
    let mut rows = Vec::new();
    table.scan(index, bounds, Direction::Forward, |row| {
        if is_wanted(row) {
            rows.push(held.take(row));
        }
        Ok(true)
    })?;
    let mut count = 0;
    for row in rows {
        if let Some(row) = table.lock_taken(write, &row)?
            && is_wanted(&row.row()?)
        {
            table.delete(write, &row)?;
            count += 1;
        }
    }
    if count > 0 {
        table.announce_change(write)?;
    }
    Ok(count)
}

/// Gives a locked or new role these rules and no others.
pub fn set_rules(write: &Write, role: Id, rules: &[Rule]) -> Result<()> {
    let text = |text: &str| Some(datum::varlena(text.as_bytes()));
    PERMISSIONS.with(|table| {
        delete_of(write, table, 0, &equal([Key::Uuid(role)]), |_| true)?;
        for rule in rules {
            table.insert(
                write,
                &[
                    (permission::ROLE_ID, Some(datum::uuid(role))),
                    (permission::ACTION, text(rule.granted.as_str())),
                    (permission::PATH, text(rule.path.as_str())),
                ],
            )?;
        }
        table.announce_change(write)
    })
}

/// Drops a locked role and all that refers to it.
pub fn drop_role(write: &Write, role: &Locked<'_>) -> Result<()> {
    tokens::revoke_of(write, role.id)?;
    let of_role = equal([Key::Uuid(role.id)]);
    BINDINGS.with(|table| delete_of(write, table, 0, &of_role, |_| true))?;
    PERMISSIONS.with(|table| delete_of(write, table, 0, &of_role, |_| true))?;
    let Some(row) = &role.row else { return Ok(()) };
    ROLES.with(|table| {
        table.delete(write, row)?;
        table.announce_change(write)
    })
}

/// Binds a locked role to a Postgres role.
pub fn bind(write: &Write, role: Id, name: &str, oid: Oid) -> Result<()> {
    let key = [Key::Uuid(role), Key::Text(name)];
    let now = Some(Datum::from(clock()));
    let binding = [(binding::PG_ROLE_OID, Some(Datum::from(oid))), (binding::CREATED_AT, now)];
    loop {
        if renew(write, role, name, oid, &binding)? {
            return Ok(());
        }
        let [of_oid, at] = binding;
        let row = [
            (binding::ROLE_ID, Some(datum::uuid(role))),
            (binding::PG_ROLE, Some(datum::varlena(name.as_bytes()))),
            of_oid,
            at,
        ];
        let made = BINDINGS.with(|table| {
            let made = table.insert_unless_present(write, 0, &key, &row)?.is_some();
            if made { table.announce_change(write).map(|()| true) } else { Ok(false) }
        })?;
        if made {
            return Ok(());
        }
        // Somebody else made it, or took it away again.
        pgrx::check_for_interrupts!();
    }
}

/// Changes a binding that is there and has another OID. Whether it is there.
fn renew(write: &Write, role: Id, name: &str, oid: Oid, values: &[Assignment]) -> Result<bool> {
    BINDINGS.with(|table| {
        let key = [Key::Uuid(role), Key::Text(name)];
        let Some(row) = table.lock(write, 0, &key, None, Wait::Block)? else { return Ok(false) };
        if row.row()?.oid(binding::PG_ROLE_OID) != Some(oid) {
            table.update(write, &row, values)?;
            table.announce_change(write)?;
        }
        Ok(true)
    })
}

/// Takes a locked role from a Postgres role, by its name if it has one, and by its OID. Whether there was a binding.
pub fn unbind(write: &Write, role: Id, name: Option<&str>, oid: Oid) -> Result<bool> {
    let is_meant = |row: &Tuple<'_>| {
        name.is_some() && row.text(binding::PG_ROLE) == name || row.oid(binding::PG_ROLE_OID) == Some(oid)
    };
    BINDINGS.with(|table| Ok(delete_of(write, table, 0, &equal([Key::Uuid(role)]), is_meant)? > 0))
}

/// The name of the role with that id, if there is one.
pub(super) fn name(role: Id) -> Result<Option<String>> {
    ROLES.with(|table| {
        table.point(BY_ID, &[Key::Uuid(role)], None, |row| {
            Ok(row.and_then(|row| row.text(self::role::NAME)).map(str::to_owned))
        })
    })
}

/// Gives every binding the OID that its Postgres role has now. Calls `each` with the role's name, the Postgres role's,
/// and whether there is one, for all bindings that were not right: first those that are now, then the others.
pub fn rebind(write: &Write, mut each: impl FnMut(&str, &str, bool) -> Result<()>) -> Result<()> {
    let mut all = Vec::new();
    for binding in bindings()? {
        all.push((name(binding.role)?.unwrap_or_else(|| ADMIN.to_owned()), binding));
    }
    all.sort_by(|(a, one), (b, other)| (a, &one.name).cmp(&(b, &other.name)));
    let mut missing = Vec::new();
    for (name, binding) in all {
        match oid_of(&binding.name) {
            None => missing.push((name, binding.name)),
            Some(oid) if oid == binding.oid => {}
            Some(oid) => {
                if renew(
                    write,
                    binding.role,
                    &binding.name,
                    oid,
                    &[(binding::PG_ROLE_OID, Some(Datum::from(oid)))],
                )? {
                    each(&name, &binding.name, true)?;
                }
            }
        }
    }
    missing.iter().try_for_each(|(role, pg_role)| each(role, pg_role, false))
}

/// A role as `vault.list_roles` shows it.
struct Listed {
    id: Id,
    name: String,
    description: Option<String>,
    is_admin: bool,
    created_at: Option<i64>,
}

/// The columns of `vault.list_roles`, for all roles or those with these ids.
pub fn list(only: Option<&[Id]>, mut each: impl FnMut(&[Option<Datum>; 7]) -> Result<()>) -> Result<()> {
    let mut roles = vec![Listed {
        id: ADMIN_ID,
        name: ADMIN.to_owned(),
        description: Some("built in: manages everything, reads no value".to_owned()),
        is_admin: true,
        created_at: None,
    }];
    ROLES.with(|table| {
        self::each(table, &[], |row| {
            if let (Some(id), Some(name)) = (row.uuid(role::ID), row.text(role::NAME)) {
                roles.push(Listed {
                    id,
                    name: name.to_owned(),
                    description: row.text(role::DESCRIPTION).map(str::to_owned),
                    is_admin: row.bool(role::IS_ADMIN).unwrap_or(false),
                    created_at: row.timestamp(role::CREATED_AT),
                });
            }
            Ok(())
        })
    })?;
    roles.sort_by(|a, b| a.name.cmp(&b.name));
    let bindings = bindings()?;
    let text = |text: &str| datum::varlena(text.as_bytes());
    for role in roles {
        if only.is_some_and(|only| !only.contains(&role.id)) {
            continue;
        }
        let names = |active: bool| {
            let mut names: Vec<String> = bindings
                .iter()
                .filter(|binding| binding.role == role.id && binding.is_active() == active)
                .map(|binding| binding.name.clone())
                .collect();
            names.sort();
            datum::text_array_from(names)
        };
        each(&[
            Some(text(&role.name)),
            role.description.as_deref().map(text),
            Some(Datum::from(role.is_admin)),
            Some(datum::jsonb(&stored_rules(role.id)?)),
            Some(names(true)),
            Some(names(false)),
            role.created_at.map(Datum::from),
        ])?;
    }
    Ok(())
}

/// The rules of a role as they are stored, also those that are not understood.
fn stored_rules(role: Id) -> Result<serde_json::Value> {
    let mut rules = Vec::new();
    PERMISSIONS.with(|table| {
        each(table, &equal([Key::Uuid(role)]), |row| {
            let text = |column| row.text(column).unwrap_or_default().to_owned();
            rules.push((text(permission::PATH), text(permission::ACTION)));
            Ok(())
        })
    })?;
    rules.sort();
    let rules = rules.into_iter().map(|(path, action)| serde_json::json!({ "action": action, "path": path }));
    Ok(serde_json::Value::Array(rules.collect()))
}

/// How many roles, bindings, bindings that do not count, and tokens there are.
pub fn count() -> Result<[i64; 4]> {
    let mut roles = 0;
    ROLES.with(|table| {
        each(table, &[], |_| {
            roles += 1;
            Ok(())
        })
    })?;
    let bindings = bindings()?;
    let inactive = bindings.iter().filter(|binding| !binding.is_active()).count();
    Ok([roles, bindings.len() as i64, inactive as i64, tokens::count()?])
}
