//! Tokens: `create_token`, `revoke_token`, `list_tokens`, `authenticate`.
//!
//! Client backends, main thread; `authenticate` on standbys too. The text of a token is shown once, by `create_token`,
//! and is in no error, no record and no table. The trap it avoids: a refusal that says what was wrong; a token that is
//! unknown, expired, revoked or no token at all gets one answer.

use hyperion_vault_core::policy::Label;
use hyperion_vault_core::policy::token::{NewToken, PREFIX, prefix_of};
use hyperion_vault_core::secret::{IntervalParts, limits};
use pgrx::pg_sys::Datum;

use super::roles::{admitted, hand_out, role_name, rules_of};
use super::{gate, rights};
use crate::area;
use crate::audit;
use crate::error::{Kind, Result, VaultError};
use crate::pg::fcinfo::{Args, Return};
use crate::pg::heap::Write;
use crate::pg::srf::RowSet;
use crate::pg::{datum, identity};
use crate::store::{roles, tokens};

fn token_label(args: &Args) -> Result<&str> {
    let name = Label::parse("token", args.text(0).ok_or_else(|| gate::null("name"))?)?.as_str();
    if name.starts_with(PREFIX) {
        // Errors and records repeat names.
        return Err(VaultError::new(Kind::Invalid, "this looks like a token, not like the name of one")
            .hint("Pass the name that the token was created with; names do not start with hvt_."));
    }
    audit::subject(name);
    Ok(name)
}

/// `vault.create_token(name, role, expires_in)`.
pub fn create_token(args: &Args) -> Result<Return> {
    let rights = admitted("create tokens")?;
    let name = token_label(args)?;
    let role = role_name(args, 1, "role")?;
    if let Some((months, days, micros)) = args.interval(2) {
        limits::expires_in(IntervalParts { months, days, micros })?;
    }
    let creator = identity::role_name(identity::current_user()).unwrap_or_default();
    let token = NewToken::generate()?;
    let write = Write::begin();
    let role = roles::lock(&write, role)?;
    hand_out(&rights, role.is_admin, &rules_of(&role)?)?;
    if !tokens::create(&write, &token, role.id, name, &creator, args.interval(2))? {
        return Err(VaultError::new(Kind::Exists, format!("token \"{name}\" already exists"))
            .detail("A token keeps its name when it has expired, until it is revoked.")
            .hint("Use another name, or revoke that one with vault.revoke_token()."));
    }
    Ok(Return::Value(datum::varlena(token.text.as_bytes())))
}

/// `vault.revoke_token(name)`.
pub fn revoke_token(args: &Args) -> Result<Return> {
    admitted("revoke tokens")?;
    let name = token_label(args)?;
    if !tokens::revoke(&Write::begin(), name)? {
        return Err(VaultError::new(Kind::NotFound, format!("token \"{name}\" does not exist"))
            .hint("See vault.list_tokens() for the tokens there are."));
    }
    Ok(Return::Void)
}

/// `vault.list_tokens()`.
pub fn list_tokens(args: &Args) -> Result<Return> {
    gate::environment()?;
    let rights = gate::rights()?;
    let rows = RowSet::begin(args)?;
    let only = match (rights.administer(), rights.token()) {
        (true, _) => None,
        (false, Some(own)) => Some(own),
        (false, None) => return rows.finish(),
    };
    let uses = area::get()?.uses();
    tokens::list(only, |token| {
        let last_used_at = token.last_used_at.max(uses.last(token.id));
        let text = |text: &str| datum::varlena(text.as_bytes());
        rows.push(&[
            Some(text(&token.name)),
            token.role.as_deref().map(text),
            Some(text(&prefix_of(token.id))),
            token.created_at.map(Datum::from),
            token.created_by.as_deref().map(text),
            token.expires_at.map(Datum::from),
            last_used_at.map(Datum::from),
        ])
    })?;
    rows.finish()
}

/// `vault.authenticate(token)`.
pub fn authenticate(args: &Args) -> Result<Return> {
    gate::environment()?;
    let token = args.text(0).ok_or_else(|| gate::null("token"))?;
    if !rights::authenticate(token)? {
        return Err(refused());
    }
    if let Some(name) = rights::token_name() {
        audit::subject(&name);
    }
    Ok(Return::Void)
}

/// Whoever counts failures (lockout) does it here.
fn refused() -> VaultError {
    VaultError::new(Kind::Unauthenticated, "token is not valid")
        .hint("Pass a token as vault.create_token() returned it, that has neither expired nor been revoked.")
}
