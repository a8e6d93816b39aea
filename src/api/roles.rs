//! Vault roles and who has them: `create_role`, `set_role_permissions`, `drop_role`, `list_roles`, `can`, `bind_role`,
//! `unbind_role`, `rebind_roles`.
//!
//! Client backends; changes on a primary, main thread. Each change that gives somebody a right asks whether the caller
//! holds it, with the role's row locked, so that what was judged is what is given. The trap it avoids: separation of
//! duties that its subject can undo: a manager who does not read could otherwise make, widen or bind a role that does.

use hyperion_vault_core::envelope::Id;
use hyperion_vault_core::policy::rules::unknown_action;
use hyperion_vault_core::policy::{Granted, Label, NotHeld, Rule};
use hyperion_vault_core::secret::{Pattern, limits};
use pgrx::pg_sys::{Datum, Oid};

use super::gate;
use super::rights::Rights;
use crate::audit;
use crate::error::{Kind, Result, VaultError};
use crate::pg::fcinfo::{Args, Return};
use crate::pg::heap::Write;
use crate::pg::srf::RowSet;
use crate::pg::{datum, identity};
use crate::store::roles::{self, ADMIN, ADMIN_ID};
use crate::store::targets;

/// What every function that changes something asks first; the rights of who asks.
pub fn admitted(what: &str) -> Result<Rights> {
    gate::environment()?;
    gate::administer(what)?;
    gate::writable()?;
    gate::rights()
}

/// The name of a vault role, from an argument.
pub fn role_name<'a>(args: &'a Args, position: usize, parameter: &str) -> Result<&'a str> {
    let text = args.text(position).ok_or_else(|| gate::null(parameter))?;
    let name = Label::parse("role", text)?.as_str();
    match position {
        0 => audit::subject(name),
        _ => audit::detail(format!("role: {name}")),
    }
    Ok(name)
}

/// Refuses unless the caller holds all of this himself.
pub fn hand_out(rights: &Rights, is_admin: bool, rules: &[Rule]) -> Result<()> {
    let detail = match rights.may_hand_out(is_admin, rules) {
        Ok(()) => return Ok(()),
        Err(NotHeld::Admin) => "You do not manage the vault.".to_owned(),
        Err(NotHeld::Rule(place)) => rules.get(place).map_or_else(String::new, |rule| {
            let action = match rule.granted {
                Granted::One(action) => action.as_str(),
                Granted::Every => "every action",
            };
            format!("You do not hold {action} on \"{}\".", rule.path.as_str())
        }),
    };
    Err(VaultError::new(Kind::Denied, "permission denied to hand out a right that you do not hold")
        .detail(detail)
        .hint("Nobody gives what he does not have; a superuser can."))
}

fn built_in() -> VaultError {
    VaultError::new(Kind::WrongState, format!("role \"{ADMIN}\" is built in"))
        .hint("Create a role of your own, or bind this one as it is.")
}

fn permissions(args: &Args, position: usize) -> Result<Vec<Rule>> {
    Ok(Rule::parse_all(&args.jsonb(position).ok_or_else(|| gate::null("permissions"))?)?)
}

/// `vault.create_role(name, description, is_admin, permissions)`.
pub fn create_role(args: &Args) -> Result<Return> {
    let rights = admitted("create roles")?;
    let name = role_name(args, 0, "name")?;
    let description = args.text(1);
    if let Some(description) = description {
        limits::description(description)?;
    }
    let is_admin = args.bool(2).ok_or_else(|| gate::null("is_admin"))?;
    let rules = permissions(args, 3)?;
    hand_out(&rights, is_admin, &rules)?;
    let id = Id::random()?;
    let write = Write::begin();
    if name == ADMIN || !roles::create(&write, id, name, description, is_admin)? {
        return Err(VaultError::new(Kind::Exists, format!("role \"{name}\" already exists"))
            .hint("Change its rules with vault.set_role_permissions(), or drop it first."));
    }
    roles::set_rules(&write, id, &rules)?;
    Ok(Return::Void)
}

/// `vault.set_role_permissions(role, permissions)`.
pub fn set_role_permissions(args: &Args) -> Result<Return> {
    let rights = admitted("change roles")?;
    let name = role_name(args, 0, "role")?;
    let rules = permissions(args, 1)?;
    if name == ADMIN {
        return Err(built_in());
    }
    let write = Write::begin();
    let role = roles::lock(&write, name)?;
    // What the role has already is not handed out by who leaves it there.
    let before = roles::rules(role.id)?;
    let added: Vec<Rule> = rules.iter().filter(|rule| !before.contains(rule)).cloned().collect();
    hand_out(&rights, false, &added)?;
    roles::set_rules(&write, role.id, &rules)?;
    Ok(Return::Void)
}

/// `vault.drop_role(name)`.
pub fn drop_role(args: &Args) -> Result<Return> {
    admitted("drop roles")?;
    let name = role_name(args, 0, "name")?;
    if name == ADMIN {
        return Err(built_in());
    }
    let write = Write::begin();
    let role = roles::lock(&write, name)?;
    roles::drop_role(&write, &role)?;
    Ok(Return::Void)
}

/// `vault.list_roles()`.
pub fn list_roles(args: &Args) -> Result<Return> {
    gate::environment()?;
    let rights = gate::rights()?;
    let own = (!rights.administer()).then(|| rights.roles());
    let rows = RowSet::begin(args)?;
    roles::list(own.as_deref(), |row| rows.push(row))?;
    rows.finish()
}

/// `vault.can(action, path)`: about the caller, and from where he is makes no difference.
pub fn can(args: &Args) -> Result<Return> {
    gate::environment()?;
    let action = args.text(0).ok_or_else(|| gate::null("action"))?;
    let granted = Granted::parse(action).ok_or_else(unknown_action)?;
    let path = Pattern::parse(args.text(1).ok_or_else(|| gate::null("path"))?)?;
    audit::subject(path.as_str());
    let may = gate::rights()?.may_hand_out(false, &[Rule { granted, path }]).is_ok();
    Ok(Return::Value(Datum::from(may)))
}

fn pg_role(args: &Args) -> Result<Oid> {
    args.oid(1).ok_or_else(|| gate::null("pg_role"))
}

/// `vault.bind_role(role, pg_role)`.
pub fn bind_role(args: &Args) -> Result<Return> {
    let rights = admitted("bind roles")?;
    let name = role_name(args, 0, "role")?;
    let oid = pg_role(args)?;
    let pg_role = identity::role_name(oid).ok_or_else(|| {
        VaultError::new(Kind::NotFound, "the Postgres role does not exist")
            .hint("Name a role that is in pg_roles.")
    })?;
    audit::detail(format!("Postgres role: {pg_role}"));
    let write = Write::begin();
    let role = roles::lock(&write, name)?;
    hand_out(&rights, role.is_admin, &rules_of(&role)?)?;
    roles::bind(&write, role.id, &pg_role, oid)?;
    Ok(Return::Void)
}

/// The rules of a locked role, for who is about to give it to somebody.
pub fn rules_of(role: &roles::Locked) -> Result<Vec<Rule>> {
    if role.id == ADMIN_ID { Ok(Vec::new()) } else { roles::rules(role.id) }
}

/// `vault.unbind_role(role, pg_role)`.
pub fn unbind_role(args: &Args) -> Result<Return> {
    admitted("unbind roles")?;
    let name = role_name(args, 0, "role")?;
    let oid = pg_role(args)?;
    let pg_role = identity::role_name(oid);
    audit::detail(format!("Postgres role: {}", audit::name_of(oid)));
    let write = Write::begin();
    let role = roles::lock(&write, name)?;
    if !roles::unbind(&write, role.id, pg_role.as_deref(), oid)? {
        return Err(VaultError::new(
            Kind::NotFound,
            format!("role \"{name}\" is not bound to that Postgres role"),
        )
        .hint("See vault.list_roles() for the bindings there are."));
    }
    Ok(Return::Void)
}

/// `vault.rebind_roles()`. For superusers: a name says nothing about who has it here, and whoever may create Postgres
/// roles could take one that a restored binding is waiting for.
pub fn rebind_roles(args: &Args) -> Result<Return> {
    gate::environment()?;
    if !gate::rights()?.is_superuser() {
        return Err(VaultError::new(Kind::Denied, "permission denied to rebind roles")
            .detail("Bindings are given to whoever has their names now.")
            .hint("Have a superuser call it, or bind roles one by one with vault.bind_role()."));
    }
    gate::writable()?;
    let rows = RowSet::begin(args)?;
    let write = Write::begin();
    let push = |role: &str, pg_role: &str, found| {
        let text = |text: &str| Some(datum::varlena(text.as_bytes()));
        rows.push(&[text(role), text(pg_role), text(if found { "rebound" } else { "missing" })])
    };
    roles::rebind(&write, push)?;
    targets::rebind(&write, |secret, setter, found| push(&format!("secret {secret}"), setter, found))?;
    rows.finish()
}
