//! What a secret is handed to, in `vault.secrets`, and what the server's catalogs say of it.
//!
//! Client backends and the maintenance worker, main thread. Roles are kept by name and oid, and count only while both
//! match: a role that was dropped and made again is somebody else. The trap it avoids: a target that came along with an
//! import or was set by a role that is gone, and would run as whichever role has its place now.

use std::ffi::CString;

use hyperion_vault_core::envelope::Id;
use hyperion_vault_core::policy::target::{FunctionFacts, RoleFacts};
use hyperion_vault_core::secret::{FunctionName, Presence, Target};
use pgrx::pg_sys::{Datum, Oid};

use super::derived;
use super::secrets::{self, BY_ID, SECRETS, column, presence};
use crate::error::Result;
use crate::pg::heap::{Assignment, Write};
use crate::pg::scan::Key;
use crate::pg::tuple::Tuple;
use crate::pg::{catalog, datum, identity};

/// A target as it is stored.
#[derive(Clone, PartialEq, Eq)]
pub struct Stored {
    pub json: String,
    /// None: it was imported, and nobody has set it here.
    pub set_by: Option<Setter>,
    /// Of the target's roles, in its order.
    pub roles: Vec<Oid>,
}

/// Who set a target.
#[derive(Clone, PartialEq, Eq)]
pub struct Setter {
    pub name: String,
    pub oid: Oid,
}

/// The target of a secret, if it has one.
pub fn of(secret: Id) -> Result<Option<Stored>> {
    SECRETS.with(|table| table.point(BY_ID, &[Key::Uuid(secret)], None, |row| Ok(row.and_then(read))))
}

fn read(row: &Tuple<'_>) -> Option<Stored> {
    let setter = || {
        Some(Setter {
            name: row.text(column::TARGET_SET_BY)?.to_owned(),
            oid: row.oid(column::TARGET_SET_BY_OID)?,
        })
    };
    Some(Stored {
        json: row.jsonb(column::TARGET)?,
        set_by: setter(),
        roles: row.oid_array(column::TARGET_ROLES).flatten().unwrap_or_default(),
    })
}

/// Gives a secret a target, set by `setter`: the columns to write.
pub fn set(target: &Target, setter: &Setter, roles: &[Oid]) -> Result<Vec<Assignment>> {
    Ok(vec![
        (column::TARGET, Some(datum::jsonb_from_text(&target.to_json())?)),
        (column::TARGET_SET_BY, Some(datum::varlena(setter.name.as_bytes()))),
        (column::TARGET_SET_BY_OID, Some(Datum::from(setter.oid))),
        (column::TARGET_ROLES, Some(datum::oid_array_from(roles))),
    ])
}

/// Takes the target off a secret: the columns to write.
pub fn clear() -> Vec<Assignment> {
    [column::TARGET, column::TARGET_SET_BY, column::TARGET_SET_BY_OID, column::TARGET_ROLES]
        .map(|column| (column, None))
        .into()
}

/// Gives every target the oids that the roles of its names have now. Calls `each` with the secret, who set its target,
/// and whether all are there, for all that were not right: first those that are now, then the others.
pub fn rebind(write: &Write, mut each: impl FnMut(&str, &str, bool) -> Result<()>) -> Result<()> {
    let mut all: Vec<(String, Stored, Setter)> = Vec::new();
    SECRETS.with(|table| {
        table.all(None, |row| {
            if let (Some(name), Some(stored)) = (row.text(column::NAME), read(row))
                && let Some(setter) = row.text(column::TARGET_SET_BY)
            {
                let oid = stored.set_by.as_ref().map_or(Oid::INVALID, |setter| setter.oid);
                all.push((name.to_owned(), stored, Setter { name: setter.to_owned(), oid }));
            }
            Ok(true)
        })
    })?;
    all.sort_by(|(a, ..), (b, ..)| a.cmp(b));
    let mut missing = Vec::new();
    for (name, stored, setter) in all {
        let names = Target::parse(&stored.json).map(|target| target.roles().to_vec()).unwrap_or_default();
        let roles: Option<Vec<Oid>> = names.iter().map(|name| role_oid(name)).collect();
        match (role_oid(&setter.name), roles) {
            (Some(oid), Some(roles)) => {
                if oid != setter.oid || roles != stored.roles {
                    let Some(locked) = secrets::lock_any(write, &name)? else { continue };
                    secrets::change(
                        write,
                        &locked,
                        &[
                            (column::TARGET_SET_BY_OID, Some(Datum::from(oid))),
                            (column::TARGET_ROLES, Some(datum::oid_array_from(&roles))),
                        ],
                    )?;
                    each(&name, &setter.name, true)?;
                }
            }
            _ => missing.push((name, setter.name)),
        }
    }
    missing.iter().try_for_each(|(name, setter)| each(name, setter, false))
}

fn role_oid(name: &str) -> Option<Oid> {
    identity::role_oid(&CString::new(name).ok()?)
}

/// Whether another secret sets the password of one of these roles, which are locked. A secret that has run out, or whose
/// recovery window is over, is in nobody's way.
pub fn taken(secret: Id, roles: &[Oid]) -> Result<bool> {
    for other in derived::secrets_of_roles(roles)? {
        let counts = |row: &Tuple<'_>| {
            row.pointer(column::TARGET).is_some()
                && row
                    .oid_array(column::TARGET_ROLES)
                    .flatten()
                    .is_some_and(|named| named.iter().any(|oid| roles.contains(oid)))
                && presence(row.timestamp(column::EXPIRES_AT), row.timestamp(column::RECOVER_UNTIL))
                    != Presence::Gone
        };
        let is_taken = other != secret
            && SECRETS.with(|table| {
                table.point(BY_ID, &[Key::Uuid(other)], None, |row| Ok(row.is_some_and(counts)))
            })?;
        if is_taken {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The roles that CREATE EXTENSION makes.
const OF_THE_VAULT: [&str; 5] =
    ["vault_service", "vault_user", "vault_reader", "vault_admin", "vault_auditor"];

/// What counts when `setter` has the password of `role` set. None if one of them is gone.
pub fn role_facts(role: Oid, setter: Oid) -> Option<RoleFacts> {
    let (of_role, of_setter) = (catalog::role(role)?, catalog::role(setter)?);
    Some(RoleFacts {
        setter_is_superuser: of_setter.superuser,
        setter_has_createrole: of_setter.create_role,
        setter_has_admin: identity::is_admin_of(setter, role),
        own_password: role == setter,
        superuser: of_role.superuser,
        replication: of_role.replication,
        bypass_rls: of_role.bypass_rls,
        of_the_vault: OF_THE_VAULT.contains(&of_role.name.as_str()),
    })
}

/// A function as it is now.
pub struct Function {
    pub facts: FunctionFacts,
    /// Whom the value is for: the function runs as the setter, or as its owner if it is SECURITY DEFINER.
    pub owner: Oid,
}

/// The function of that name with parameters (text, int), if there is one.
pub fn function(name: &FunctionName, setter: Oid) -> Option<Function> {
    let found = catalog::hook_function(&name.schema, &name.name)?;
    Some(Function {
        owner: found.owner,
        facts: FunctionFacts {
            owner_is_setter: found.owner == setter,
            owner_is_superuser: identity::is_superuser(found.owner),
            setter_may_execute: catalog::may_execute(setter, &found),
            plain: found.is_plain,
            system: name.schema.starts_with("pg_")
                || ["vault", "vault_api", "information_schema"].contains(&name.schema.as_str()),
        },
    })
}
