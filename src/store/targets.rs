//! What a secret is handed to, in `vault.secrets`, and what the server's catalogs say of it.
//!
//! Client backends and the maintenance worker, main thread. Roles are kept by name and oid, and count only while both
//! match: a role that was dropped and made again is somebody else. The trap it avoids: a target that came along with an
//! import or was set by somebody who is gone, and would run as whoever has his place now.

use hyperion_vault_core::envelope::Id;
use hyperion_vault_core::policy::target::{FunctionFacts, RoleFacts};
use hyperion_vault_core::secret::{FunctionName, Target};
use pgrx::pg_sys::{self, Datum, Oid};

use super::secrets::{TIMESTAMPTZ, returned};
use super::sql::{info, sql};
use crate::error::Result;
use crate::pg::datum;
use crate::pg::spi::{Bind, Row, Spi, Statement};

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

static GET: Statement = Statement::query(
    c"SELECT target, target_set_by, target_set_by_oid::int8, array_to_string(target_roles, ',')
        FROM vault.secrets WHERE id = $1 AND target IS NOT NULL",
    &[pg_sys::UUIDOID],
);

/// The target of a secret, if it has one.
pub fn of(spi: &Spi, secret: Id) -> Result<Option<Stored>> {
    let rows = spi.run(&GET, &[Bind::Uuid(secret)])?;
    Ok(rows.first().and_then(|row| {
        Some(Stored {
            json: row.jsonb(1)?,
            set_by: setter(&row),
            roles: row
                .text(4)
                .unwrap_or_default()
                .split(',')
                .filter_map(|oid| oid.parse().ok().map(Oid::from_u32))
                .collect(),
        })
    }))
}

fn setter(row: &Row<'_>) -> Option<Setter> {
    let oid = u32::try_from(row.bigint(3)?).ok()?;
    Some(Setter { name: row.text(2)?.to_owned(), oid: Oid::from_u32(oid) })
}

static SET: Statement = Statement::new(
    sql!(
        "UPDATE vault.secrets AS s SET target = $2, target_set_by = $3, target_set_by_oid = $4, \
           target_roles = $5::oid[], updated_at = $6 \
         WHERE s.id = $1 RETURNING ",
        info!()
    ),
    &[pg_sys::UUIDOID, pg_sys::JSONBOID, pg_sys::TEXTOID, pg_sys::OIDOID, pg_sys::TEXTOID, TIMESTAMPTZ],
);

/// Gives a locked secret a target, set by `setter`. Returns its info.
pub fn set(
    spi: &Spi,
    secret: Id,
    target: &Target,
    setter: &Setter,
    roles: &[Oid],
    now: Datum,
) -> Result<Datum> {
    let roles: Vec<String> = roles.iter().map(|oid| oid.to_u32().to_string()).collect();
    let rows = spi.run(
        &SET,
        &[
            Bind::Uuid(secret),
            Bind::Raw(Some(datum::jsonb_from_text(&target.to_json())?)),
            Bind::Text(&setter.name),
            Bind::Raw(Some(Datum::from(setter.oid))),
            Bind::Text(&format!("{{{}}}", roles.join(","))),
            Bind::Raw(Some(now)),
        ],
    )?;
    returned(rows.first())
}

/// Takes the target off a locked secret. Returns its info.
pub fn clear(spi: &Spi, secret: Id, now: Datum) -> Result<Datum> {
    let none = || Bind::Raw(None);
    let binds = [Bind::Uuid(secret), none(), none(), none(), none(), Bind::Raw(Some(now))];
    returned(spi.run(&SET, &binds)?.first())
}

/// Targets with who has the names in them now: the setter, and of the roles as many as there are.
macro_rules! found {
    () => {
        "WITH t AS (SELECT s.id, s.name, s.target_set_by, g.oid AS setter, w.wanted, w.roles FROM vault.secrets s \
           LEFT JOIN pg_catalog.pg_roles g ON g.rolname::text COLLATE \"C\" = s.target_set_by \
           CROSS JOIN LATERAL (SELECT count(*) AS wanted, \
               coalesce(array_agg(r.oid ORDER BY n.place) FILTER (WHERE r.oid IS NOT NULL), '{}') AS roles \
             FROM jsonb_array_elements_text(CASE s.target ->> 'type' \
                 WHEN 'postgres_role' THEN jsonb_build_array(s.target -> 'role') \
                 WHEN 'postgres_role_pair' THEN s.target -> 'roles' ELSE '[]' END) WITH ORDINALITY n (name, place) \
             LEFT JOIN pg_catalog.pg_roles r ON r.rolname::text = n.name) w \
           WHERE s.target IS NOT NULL AND s.target_set_by IS NOT NULL) "
    };
}

static REBIND: Statement = Statement::new(
    sql!(
        found!(),
        "UPDATE vault.secrets s SET target_set_by_oid = t.setter, target_roles = t.roles FROM t \
          WHERE s.id = t.id AND t.setter IS NOT NULL AND cardinality(t.roles) = t.wanted \
            AND (s.target_set_by_oid IS DISTINCT FROM t.setter OR s.target_roles IS DISTINCT FROM t.roles) \
          RETURNING 'secret ' || s.name, s.target_set_by"
    ),
    &[],
);
static MISSING: Statement = Statement::query(
    sql!(
        found!(),
        "SELECT 'secret ' || name, target_set_by FROM t WHERE setter IS NULL OR cardinality(roles) < wanted"
    ),
    &[],
);

/// Gives every target the oids that the roles of its names have now. Calls `each` with the secret, who set its target,
/// and whether all are there, for all that were not right.
pub fn rebind(spi: &Spi, each: impl FnMut(Datum, Datum, bool) -> Result<()>) -> Result<()> {
    super::each_rebound(spi, &REBIND, &MISSING, each)
}

/// A secret that has run out, or whose recovery window is over, is in nobody's way.
static TAKEN: Statement = Statement::query(
    c"SELECT true FROM vault.secrets s WHERE s.target IS NOT NULL AND s.id <> $1 AND s.target_roles && $2::oid[]
        AND (s.expires_at IS NULL OR s.expires_at > clock_timestamp())
        AND (s.recover_until IS NULL OR s.recover_until > clock_timestamp()) LIMIT 1",
    &[pg_sys::UUIDOID, pg_sys::TEXTOID],
);

/// Whether another secret sets the password of one of these roles, which are locked.
pub fn taken(spi: &Spi, secret: Id, roles: &[Oid]) -> Result<bool> {
    let roles: Vec<String> = roles.iter().map(|oid| oid.to_u32().to_string()).collect();
    let binds = [Bind::Uuid(secret), Bind::Text(&format!("{{{}}}", roles.join(",")))];
    Ok(spi.run(&TAKEN, &binds)?.first().is_some())
}

static ROLE: Statement = Statement::query(
    c"SELECT s.rolsuper, s.rolcreaterole, pg_has_role(s.oid, r.oid, 'MEMBER WITH ADMIN OPTION'), s.oid = r.oid,
        r.rolsuper, r.rolreplication, r.rolbypassrls,
        r.rolname IN ('vault_service', 'vault_user', 'vault_reader', 'vault_admin', 'vault_auditor')
      FROM pg_catalog.pg_roles r, pg_catalog.pg_roles s WHERE r.oid = $1 AND s.oid = $2",
    &[pg_sys::OIDOID, pg_sys::OIDOID],
);

/// What counts when `setter` has the password of `role` set. None if one of them is gone.
pub fn role_facts(spi: &Spi, role: Oid, setter: Oid) -> Result<Option<RoleFacts>> {
    let rows = spi.run(&ROLE, &[Bind::Raw(Some(Datum::from(role))), Bind::Raw(Some(Datum::from(setter)))])?;
    Ok(rows.first().map(|row| {
        let is = |column| row.bool(column).unwrap_or(false);
        RoleFacts {
            setter_is_superuser: is(1),
            setter_has_createrole: is(2),
            setter_has_admin: is(3),
            own_password: is(4),
            superuser: is(5),
            replication: is(6),
            bypass_rls: is(7),
            of_the_vault: is(8),
        }
    }))
}

/// A function as it is now.
pub struct Function {
    pub facts: FunctionFacts,
    /// Whom the value is for: the function runs as the setter, or as its owner if it is SECURITY DEFINER.
    pub owner: Oid,
}

static FUNCTION: Statement = Statement::query(
    c"SELECT p.proowner::int8, p.proowner = s.oid, o.rolsuper,
        has_function_privilege(s.oid, p.oid, 'EXECUTE') AND has_schema_privilege(s.oid, n.oid, 'USAGE'),
        p.prokind = 'f' AND NOT p.proretset, n.nspname LIKE 'pg\\_%' OR n.nspname IN ('vault', 'vault_api', 'information_schema')
      FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
        JOIN pg_catalog.pg_roles o ON o.oid = p.proowner, pg_catalog.pg_roles s
      WHERE n.nspname = $1 AND p.proname = $2 AND p.proargtypes = '25 23'::oidvector AND s.oid = $3",
    &[pg_sys::TEXTOID, pg_sys::TEXTOID, pg_sys::OIDOID],
);

/// The function of that name with parameters (text, int), if there is one.
pub fn function(spi: &Spi, name: &FunctionName, setter: Oid) -> Result<Option<Function>> {
    let binds = [Bind::Text(&name.schema), Bind::Text(&name.name), Bind::Raw(Some(Datum::from(setter)))];
    let rows = spi.run(&FUNCTION, &binds)?;
    Ok(rows.first().and_then(|row| {
        let is = |column| row.bool(column).unwrap_or(false);
        Some(Function {
            owner: Oid::from_u32(u32::try_from(row.bigint(1)?).ok()?),
            facts: FunctionFacts {
                owner_is_setter: is(2),
                owner_is_superuser: is(3),
                setter_may_execute: is(4),
                plain: is(5),
                system: is(6),
            },
        })
    }))
}
