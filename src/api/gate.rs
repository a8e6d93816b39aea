//! The gate: everything that is asked before an operation does anything.
//!
//! Order: can a vault live here at all → is this a context plaintext may enter → may this role do that to this name →
//! may this address. All of it before any lookup: who has no right to a name does not learn whether it exists.
//!
//! Client backends, main thread. Policies and tokens join here (`rights`); lockout and the audit record will, so that no
//! operation can be written that forgets one of them.

use std::cell::Cell;

use hyperion_vault_core::IpNet;
use hyperion_vault_core::policy::{Action, Caller, Peer, narrow, permits};
use hyperion_vault_core::secret::SecretName;
use pgrx::pg_sys::Oid;

use super::hook;
use super::rights::Rights;
pub use super::rights::token_name;
use crate::area;
use crate::audit;
use crate::config;
use crate::error::{Kind, Result, VaultError};
use crate::pg::identity::{self, Origin};

thread_local! {
    /// Neither the library's preloading, nor the session's database, nor its encoding can change while it lasts (a
    /// database in use cannot be renamed).
    static FIT: Cell<bool> = const { Cell::new(false) };
}

/// Refuses where a vault cannot live: not preloaded, another database, another encoding.
pub fn environment() -> Result<()> {
    if FIT.get() {
        return Ok(());
    }
    area::get()?;
    let name = identity::database_name();
    if !config::is_vault_database(&name) {
        return Err(VaultError::new(Kind::WrongState, "the vault does not live in this database")
            .detail(format!(
                "This is database \"{name}\"; hyperion_vault.database is \"{}\".",
                config::database()
            ))
            .hint("Connect to that database, or set hyperion_vault.database and restart the server."));
    }
    if !identity::database_is_utf8() {
        return Err(VaultError::new(Kind::WrongState, "the vault needs a database with encoding UTF8")
            .hint("Create a database with ENCODING 'UTF8' TEMPLATE template0 and set hyperion_vault.database to it."));
    }
    FIT.set(true);
    // On a standby nobody but its sessions learns that the primary has created the extension.
    let posts = &area::get()?.header.posts;
    if posts.found() != Some(true) {
        posts.tell_launcher();
    }
    Ok(())
}

/// A name argument: present and well-formed.
pub fn name(argument: Option<&str>) -> Result<SecretName<'_>> {
    let name = SecretName::parse(argument.ok_or_else(|| null("name"))?)?;
    audit::subject(name.as_str());
    Ok(name)
}

pub fn null(parameter: &str) -> VaultError {
    VaultError::new(Kind::Invalid, format!("{parameter} must not be null"))
        .hint(format!("Pass a value for {parameter}."))
}

thread_local! {
    /// The role asked about last, what it may do, and the generation of roles in which that was found out.
    static CALLER: Cell<Option<(Oid, u64, Caller)>> = const { Cell::new(None) };
}

fn caller() -> Caller {
    let role = identity::current_user();
    identity::hear_of_changes();
    // Before the look-ups: what changes during them is noticed by the next call.
    let generation = identity::roles_generation();
    match CALLER.get() {
        Some((known, seen, caller)) if known == role && seen == generation => caller,
        _ => {
            let caller = find_caller(role);
            CALLER.set(Some((role, generation, caller)));
            caller
        }
    }
}

fn find_caller(role: Oid) -> Caller {
    if identity::is_superuser(role) {
        return Caller { superuser: true, ..Caller::default() };
    }
    Caller {
        superuser: false,
        vault_reader: identity::has_privileges_of(role, c"vault_reader"),
        vault_admin: identity::has_privileges_of(role, c"vault_admin"),
        vault_user: identity::has_privileges_of(role, c"vault_user"),
    }
}

/// What the caller may do, all of it.
pub fn rights() -> Result<Rights> {
    Rights::of(caller())
}

/// Whether the caller may do any of `actions` to `name`, without a word. Policies are looked at only if the built-in
/// roles do not answer it.
pub fn permitted(actions: &[Action], name: &str) -> Result<bool> {
    let caller = caller();
    if actions.iter().any(|action| permits(&caller, *action)) {
        return Ok(true);
    }
    let rights = Rights::of(caller)?;
    Ok(actions.iter().any(|action| rights.allow(*action, name)))
}

/// Whether some other role, by itself and without a token, may do `action` to `name`.
pub fn role_may(role: Oid, action: Action, name: &str) -> Result<bool> {
    identity::hear_of_changes();
    let caller = find_caller(role);
    Ok(permits(&caller, action) || Rights::of_role(role, caller)?.allow(action, name))
}

/// Refuses unless the caller may do one of `actions` to `name`.
pub fn authorize(actions: &[Action], name: &str) -> Result<()> {
    if permitted(actions, name)? { Ok(()) } else { Err(denied(actions, name)) }
}

/// Refuses unless the caller may do `action` to each of `names`. Who he is, is asked once.
pub fn authorize_each<'a>(action: Action, names: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let caller = caller();
    if permits(&caller, action) {
        return Ok(());
    }
    let rights = Rights::of(caller)?;
    match names.into_iter().find(|name| !rights.allow(action, name)) {
        None => Ok(()),
        Some(name) => Err(denied(&[action], name)),
    }
}

pub fn denied(actions: &[Action], name: &str) -> VaultError {
    audit::subject(name);
    let needed = match actions.first() {
        Some(Action::Read | Action::Verify) => "vault_reader",
        Some(Action::List) => "vault_reader or vault_admin",
        _ => "vault_admin",
    };
    let action = actions.first().map_or("do that", |action| action.as_str());
    VaultError::new(Kind::Denied, format!("permission denied to {action} secret \"{name}\"")).hint(format!(
        "It takes the privileges of {needed}, or a vault role that grants {action} on this path."
    ))
}

/// Refuses unless the caller may do `what` to the vault as a whole.
pub fn administer(what: &str) -> Result<()> {
    let caller = caller();
    if caller.superuser || caller.vault_admin || Rights::of(caller)?.administer() {
        return Ok(());
    }
    Err(VaultError::new(Kind::Denied, format!("permission denied to {what}"))
        .hint("It takes the privileges of vault_admin, or a vault role with is_admin."))
}

/// For callers who may know what exists: `authorize` was asked before the lookup.
pub fn no_secret(name: &str) -> VaultError {
    VaultError::new(Kind::NotFound, format!("secret \"{name}\" does not exist"))
        .hint("See vault.list_secrets() for the names there are.")
}

/// The session's origin as the allowlist knows it.
fn with_peer<R>(f: impl FnOnce(&Peer<'_>) -> R) -> R {
    identity::with_origin(|origin| match origin {
        Origin::UnixSocket => f(&Peer::Local),
        Origin::Ip(address) => f(&Peer::Ip(*address)),
        Origin::Worker(kind) => f(&Peer::Internal { bgw_type: kind }),
        Origin::Autovacuum => f(&Peer::Autovacuum),
        Origin::Other => f(&Peer::Unknown),
    })
}

/// The same in words.
fn shown(peer: &Peer<'_>) -> String {
    match peer {
        Peer::Local => "a Unix socket (local)".to_owned(),
        Peer::Ip(address) => address.to_string(),
        Peer::Internal { bgw_type } => format!("background worker \"{bgw_type}\" (internal)"),
        Peer::Autovacuum => "autovacuum".to_owned(),
        Peer::Unknown => "a process without a client".to_owned(),
    }
}

/// Refuses contexts in which the result would end up somewhere this code does not see, and addresses that are not
/// allowed. For everything that returns plaintext or tells whether a guess is right. Binds superusers too.
pub fn plaintext() -> Result<()> {
    hook::refuse_reading()?;
    if identity::in_restricted_operation() {
        return Err(VaultError::new(
            Kind::Denied,
            "secrets cannot be read in a security-restricted operation",
        )
        .detail(
            "Index expressions, materialized views, VACUUM and ANALYZE store what they compute in the clear.",
        )
        .hint("Call the function in a query of the session itself."));
    }
    let allowed = with_peer(|peer| config::with_allowlist(|list| list.allows(peer)));
    if allowed { Ok(()) } else { Err(not_allowed("hyperion_vault.allowed_ips")) }
}

/// Refuses addresses outside a secret's own list, if it has one.
///
/// Not asked of a hook: it has been admitted to the one version it may read.
pub fn narrowed(allowed_ips: Option<&[IpNet]>) -> Result<()> {
    let Some(list) = allowed_ips else { return Ok(()) };
    if hook::running() {
        return Ok(());
    }
    if with_peer(|peer| narrow(list, peer)) { Ok(()) } else { Err(not_allowed("the secret's allowed_ips")) }
}

fn not_allowed(list: &str) -> VaultError {
    let detail = with_peer(|peer| format!("The client is {}; {list} does not list it.", shown(peer)));
    let empty = list.starts_with("hyperion_vault") && config::with_allowlist(|list| list.is_empty());
    let hint = if empty {
        "hyperion_vault.allowed_ips is empty, which denies all: set it to addresses, CIDRs, local or internal, and reload."
    } else {
        "Add the client to the list, or connect from an address that is on it."
    };
    VaultError::new(Kind::Denied, "client address is not allowed").detail(detail).hint(hint)
}

/// Refuses where nothing can be written. Before any key service is called.
pub fn writable() -> Result<()> {
    hook::refuse_writing()?;
    if identity::in_recovery() {
        return Err(VaultError::new(Kind::ReadOnly, "the vault cannot be changed on a standby")
            .hint("Connect to the primary server."));
    }
    if identity::transaction_read_only() {
        return Err(VaultError::new(
            Kind::ReadOnly,
            "the vault cannot be changed in a read-only transaction",
        )
        .hint("Start a READ WRITE transaction."));
    }
    // Only a function that is marked PARALLEL SAFE and is not gets here; without this the key service would be asked first.
    if identity::in_parallel_mode() {
        return Err(VaultError::new(
            Kind::ReadOnly,
            "the vault cannot be changed during a parallel operation",
        )
        .hint("Mark the function that calls it PARALLEL UNSAFE."));
    }
    Ok(())
}
