//! `vault.roles`, `vault.role_permissions`, `vault.role_bindings`: the policy as it is stored.
//!
//! Client backends, main thread. Loading is by direct index scans under the latest snapshot, as reading secrets is: a
//! revocation binds a `REPEATABLE READ` session, and no plan of ours depends on who calls. The trap it avoids: a row that
//! is not understood and grants something; an action or a path that does not parse grants nothing.

use hyperion_vault_core::envelope::Id;
use hyperion_vault_core::policy::{Granted, Policy, Rule};
use hyperion_vault_core::secret::Pattern;
use pgrx::pg_sys::{self, Datum, Oid};

use crate::error::{Kind, Result, VaultError};
use crate::pg::datum;
use crate::pg::scan::{IndexedTable, Key};
use crate::pg::spi::{Bind, Spi, Statement};
use crate::store::sql::sql;

/// The built-in role, which has no row: `is_admin` and nothing else.
pub const ADMIN: &str = "admin";
/// What bindings and tokens of [`ADMIN`] refer to. No role that is made has it: theirs are random.
pub const ADMIN_ID: Id = Id([0; 16]);

thread_local! {
    static ROLES: IndexedTable = const { IndexedTable::new(c"roles", c"roles_pkey", &[role::ID]) };
    static PERMISSIONS: IndexedTable = const {
        IndexedTable::new(c"role_permissions", c"role_permissions_pkey", &[permission::ROLE_ID])
    };
    static BINDINGS: IndexedTable = const {
        IndexedTable::new(c"role_bindings", c"role_bindings_pkey", &[binding::ROLE_ID])
    };
}

/// Column numbers of sql/25_access.sql.
mod role {
    pub const ID: i16 = 1;
    pub const IS_ADMIN: i16 = 4;
}
mod permission {
    pub const ROLE_ID: i16 = 1;
    pub const ACTION: i16 = 2;
    pub const PATH: i16 = 3;
}
mod binding {
    pub const ROLE_ID: i16 = 1;
    pub const PG_ROLE: i16 = 2;
    pub const PG_ROLE_OID: i16 = 3;
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
        table.each(&[], |row| {
            if let (Some(role), Some(name), Some(oid)) =
                (row.uuid(binding::ROLE_ID), row.text(binding::PG_ROLE), row.oid(binding::PG_ROLE_OID))
            {
                found.push(Binding { role, name: name.to_owned(), oid });
            }
            Ok(true)
        })
    })?;
    Ok(found)
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
        let mut found = None;
        ROLES.with(|table| {
            table.each(&[Key::Uuid(*id)], |row| {
                found = row.bool(role::IS_ADMIN);
                Ok(false)
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
        table.each(&[Key::Uuid(role)], |row| {
            let granted = row.text(permission::ACTION).and_then(Granted::parse);
            let path = row.text(permission::PATH).and_then(|path| Pattern::parse(path).ok());
            if let (Some(granted), Some(path)) = (granted, path) {
                rules.push(Rule { granted, path });
            }
            Ok(true)
        })
    })?;
    Ok(rules)
}

/// A role that is there, its row locked, so that its rules stay what they are until the transaction ends.
pub struct Locked {
    pub id: Id,
    pub is_admin: bool,
}

static LOCK: Statement = Statement::on_access(
    c"SELECT id, is_admin FROM vault.roles WHERE name = $1 FOR UPDATE",
    &[pg_sys::TEXTOID],
);

/// Locks a role by its name. The built-in one needs no lock: it does not change.
pub fn lock(spi: &Spi, name: &str) -> Result<Locked> {
    if name == ADMIN {
        return Ok(Locked { id: ADMIN_ID, is_admin: true });
    }
    let rows = spi.run(&LOCK, &[Bind::Text(name)])?;
    rows.first().and_then(|row| Some(Locked { id: row.uuid(1)?, is_admin: row.bool(2)? })).ok_or_else(|| {
        VaultError::new(Kind::NotFound, format!("role \"{name}\" does not exist"))
            .hint("See vault.list_roles() for the roles there are.")
    })
}

static CREATE: Statement = Statement::on_access(
    c"INSERT INTO vault.roles (id, name, description, is_admin, created_at)
      VALUES ($1, $2, $3, $4, clock_timestamp()) ON CONFLICT (name) DO NOTHING",
    &[pg_sys::UUIDOID, pg_sys::TEXTOID, pg_sys::TEXTOID, pg_sys::BOOLOID],
);

/// Makes a role; false if the name is taken.
pub fn create(spi: &Spi, id: Id, name: &str, description: Option<&str>, is_admin: bool) -> Result<bool> {
    let binds = [Bind::Uuid(id), Bind::Text(name), Bind::OptText(description), Bind::Bool(is_admin)];
    Ok(spi.run(&CREATE, &binds)?.len() == 1)
}

static CLEAR: Statement =
    Statement::on_access(c"DELETE FROM vault.role_permissions WHERE role_id = $1", &[pg_sys::UUIDOID]);
static ADD: Statement = Statement::on_access(
    c"INSERT INTO vault.role_permissions (role_id, action, path)
      SELECT $1, r ->> 'action', r ->> 'path' FROM pg_catalog.jsonb_array_elements($2) AS r",
    &[pg_sys::UUIDOID, pg_sys::JSONBOID],
);

/// Gives a locked or new role these rules and no others.
pub fn set_rules(spi: &Spi, role: Id, rules: &[Rule]) -> Result<()> {
    spi.run(&CLEAR, &[Bind::Uuid(role)])?;
    let rules = rules
        .iter()
        .map(|rule| serde_json::json!({ "action": rule.granted.as_str(), "path": rule.path.as_str() }))
        .collect();
    let rules = datum::jsonb(&serde_json::Value::Array(rules));
    spi.run(&ADD, &[Bind::Uuid(role), Bind::Raw(Some(rules))]).map(drop)
}

static DROP: [Statement; 4] = [
    Statement::on_access(c"DELETE FROM vault.tokens WHERE role_id = $1", &[pg_sys::UUIDOID]),
    Statement::on_access(c"DELETE FROM vault.role_bindings WHERE role_id = $1", &[pg_sys::UUIDOID]),
    Statement::on_access(c"DELETE FROM vault.role_permissions WHERE role_id = $1", &[pg_sys::UUIDOID]),
    Statement::on_access(c"DELETE FROM vault.roles WHERE id = $1", &[pg_sys::UUIDOID]),
];

/// Drops a locked role and all that refers to it.
pub fn drop_role(spi: &Spi, role: Id) -> Result<()> {
    DROP.iter().try_for_each(|statement| spi.run(statement, &[Bind::Uuid(role)]).map(drop))
}

static BIND: Statement = Statement::on_access(
    c"INSERT INTO vault.role_bindings (role_id, pg_role, pg_role_oid, created_at)
      VALUES ($1, $2, $3, clock_timestamp())
      ON CONFLICT (role_id, pg_role) DO UPDATE SET pg_role_oid = excluded.pg_role_oid, created_at = excluded.created_at
       WHERE role_bindings.pg_role_oid <> excluded.pg_role_oid",
    &[pg_sys::UUIDOID, pg_sys::TEXTOID, pg_sys::OIDOID],
);

/// Binds a locked role to a Postgres role.
pub fn bind(spi: &Spi, role: Id, name: &str, oid: Oid) -> Result<()> {
    let binds = [Bind::Uuid(role), Bind::Text(name), Bind::Raw(Some(Datum::from(oid)))];
    spi.run(&BIND, &binds).map(drop)
}

static UNBIND: Statement = Statement::on_access(
    c"DELETE FROM vault.role_bindings WHERE role_id = $1 AND (pg_role = $2 OR pg_role_oid = $3)",
    &[pg_sys::UUIDOID, pg_sys::TEXTOID, pg_sys::OIDOID],
);

/// Takes a locked role from a Postgres role, by its name if it has one, and by its OID. Whether there was a binding.
pub fn unbind(spi: &Spi, role: Id, name: Option<&str>, oid: Oid) -> Result<bool> {
    let binds = [Bind::Uuid(role), Bind::OptText(name), Bind::Raw(Some(Datum::from(oid)))];
    Ok(spi.run(&UNBIND, &binds)?.len() > 0)
}

static REBIND: Statement = Statement::on_access(
    c"UPDATE vault.role_bindings b SET pg_role_oid = g.oid FROM pg_catalog.pg_roles g
       WHERE g.rolname::text COLLATE \"C\" = b.pg_role AND g.oid <> b.pg_role_oid
      RETURNING coalesce((SELECT r.name FROM vault.roles r WHERE r.id = b.role_id), 'admin'), b.pg_role",
    &[],
);
static MISSING: Statement = Statement::query(
    c"SELECT coalesce((SELECT r.name FROM vault.roles r WHERE r.id = b.role_id), 'admin'), b.pg_role
        FROM vault.role_bindings b
       WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles g WHERE g.rolname::text COLLATE \"C\" = b.pg_role)
       ORDER BY 1, 2",
    &[],
);

/// Gives every binding the OID that its Postgres role has now. Calls `each` with the role's name, the Postgres role's,
/// and whether there is one, for all bindings that were not right.
pub fn rebind(spi: &Spi, each: impl FnMut(Datum, Datum, bool) -> Result<()>) -> Result<()> {
    super::each_rebound(spi, &REBIND, &MISSING, each)
}

static LIST: Statement = Statement::query(
    sql!(
        "SELECT r.name, r.description, r.is_admin, \
           coalesce((SELECT jsonb_agg(jsonb_build_object('action', p.action, 'path', p.path) ORDER BY p.path, p.action) \
                       FROM vault.role_permissions p WHERE p.role_id = r.id), '[]'), \
           b.active, b.inactive, r.created_at \
         FROM (SELECT id, name, description, is_admin, created_at FROM vault.roles UNION ALL \
               SELECT '00000000-0000-0000-0000-000000000000', 'admin', 'built in: manages everything, reads no value', true, NULL) r \
         CROSS JOIN LATERAL (\
           SELECT coalesce(array_agg(b.pg_role ORDER BY b.pg_role) FILTER (WHERE g.oid IS NOT NULL), '{}') AS active, \
                  coalesce(array_agg(b.pg_role ORDER BY b.pg_role) FILTER (WHERE g.oid IS NULL), '{}') AS inactive \
             FROM vault.role_bindings b \
             LEFT JOIN pg_catalog.pg_roles g ON g.oid = b.pg_role_oid AND g.rolname::text COLLATE \"C\" = b.pg_role \
            WHERE b.role_id = r.id) b \
         WHERE $1 IS NULL OR r.id::text = ANY ($1) ORDER BY r.name"
    ),
    &[pg_sys::TEXTARRAYOID],
);

/// The columns of `vault.list_roles`, for all roles or those with these ids.
pub fn list(
    spi: &Spi,
    only: Option<&[Id]>,
    mut each: impl FnMut(&[Option<Datum>; 7]) -> Result<()>,
) -> Result<()> {
    let only = only.map(|ids| datum::text_array_from(ids.iter().map(Id::to_string)));
    let rows = spi.run(&LIST, &[Bind::Raw(only)])?;
    rows.iter().try_for_each(|row| each(&[1, 2, 3, 4, 5, 6, 7].map(|column| row.raw(column))))
}

static COUNT: Statement = Statement::query(
    c"SELECT (SELECT count(*) FROM vault.roles), count(*),
             count(*) FILTER (WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles g
               WHERE g.oid = b.pg_role_oid AND g.rolname::text COLLATE \"C\" = b.pg_role)),
             (SELECT count(*) FROM vault.tokens)
        FROM vault.role_bindings b",
    &[],
);

/// How many roles, bindings, bindings that do not count, and tokens there are.
pub fn count(spi: &Spi) -> Result<[i64; 4]> {
    let rows = spi.run(&COUNT, &[])?;
    let row = rows.first();
    Ok([1, 2, 3, 4].map(|column| row.as_ref().and_then(|row| row.bigint(column)).unwrap_or(0)))
}
