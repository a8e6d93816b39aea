//! What the caller may do beyond the built-in roles: the policies bound to his Postgres role, and that of his token.
//!
//! Client backends, main thread. Remembered per session and looked up anew at the first call after anything that
//! concerns it has changed: memberships and role names (the server's own invalidations), rules, bindings and tokens
//! (`pg::watch`). Only the rules that apply to the caller are loaded, so the size of the whole policy matters to nobody.
//! The trap it avoids: a right that outlives what it came from. A token is in force in the transaction that showed it,
//! while the role that showed it is the current one, and while its row is there: a savepoint that is rolled back, the next
//! transaction of a pooled connection, SET ROLE, a SECURITY DEFINER function and a revocation all end it.

use std::cell::RefCell;
use std::rc::Rc;

use hyperion_vault_core::envelope::Id;
use hyperion_vault_core::policy::token::{Presented, is_valid};
use hyperion_vault_core::policy::{
    Action, Caller, NotHeld, Policy, Reach, Rule, Span, administers, decide, may_hand_out, reach, spans,
};
use hyperion_vault_core::secret::Timestamp;
use pgrx::pg_sys::Oid;

use crate::area;
use crate::error::Result;
use crate::pg::exit::{self, End};
use crate::pg::identity;
use crate::pg::watch::{self, Group};
use crate::store::roles::{self, Binding};
use crate::store::tokens;

/// Roles a session acts as, and tokens it shows, of which it remembers the policy; beyond them the oldest is forgotten.
const REMEMBERED: usize = 16;

/// Who calls, and what he holds.
pub struct Rights {
    caller: Caller,
    bound: Rc<Bound>,
    token: Option<Token>,
}

/// The token in force.
struct Token {
    id: Id,
    role: Id,
    policy: Rc<Policy>,
}

/// The policies bound to a Postgres role.
#[derive(Default)]
struct Bound {
    role: Oid,
    /// Of when this was found out.
    roles: u64,
    policies: u64,
    applies: Vec<Id>,
    policy: Rc<Policy>,
}

/// The policy of a vault role, for tokens.
struct OfRole {
    role: Id,
    policies: u64,
    policy: Rc<Policy>,
}

impl Rights {
    /// Of the current role, whose built-in roles are known. The caller has heard of changes.
    pub fn of(caller: Caller) -> Result<Self> {
        let role = identity::current_user();
        // Everything applies to a superuser, and he needs none of it.
        let bound = if caller.superuser { Rc::default() } else { bound(role)? };
        let token = match in_force(role)? {
            Some(Shown { presented, role, .. }) => {
                Some(Token { id: presented.id, role, policy: policy_of(role)? })
            }
            None => None,
        };
        Ok(Self { caller, bound, token })
    }

    /// Of a role as it is without a token. Its built-in roles are known.
    pub fn of_role(role: Oid, caller: Caller) -> Result<Self> {
        Ok(Self { caller, bound: bound(role)?, token: None })
    }

    fn with<R>(&self, f: impl FnOnce(&Caller, &[&Policy]) -> R) -> R {
        match &self.token {
            Some(token) => f(&self.caller, &[&self.bound.policy, &token.policy]),
            None => f(&self.caller, &[&self.bound.policy]),
        }
    }

    pub fn allow(&self, action: Action, path: &str) -> bool {
        self.with(|caller, held| decide(caller, held, action, path).is_allowed())
    }

    pub fn reach(&self, action: Action) -> Reach {
        self.with(|caller, held| reach(caller, held, action))
    }

    /// The same, rule by rule.
    pub fn spans(&self, action: Action) -> Vec<Span> {
        self.with(|caller, held| spans(caller, held, action))
    }

    pub fn administer(&self) -> bool {
        self.with(administers)
    }

    pub fn is_superuser(&self) -> bool {
        self.caller.superuser
    }

    pub fn may_hand_out(&self, is_admin: bool, rules: &[Rule]) -> Result<(), NotHeld> {
        self.with(|caller, held| may_hand_out(caller, held, is_admin, rules))
    }

    /// The vault roles that the caller has.
    pub fn roles(&self) -> Vec<Id> {
        self.bound.applies.iter().copied().chain(self.token.as_ref().map(|token| token.role)).collect()
    }

    /// The token in force.
    pub fn token(&self) -> Option<Id> {
        self.token.as_ref().map(|token| token.id)
    }
}

thread_local! {
    static BINDINGS: RefCell<Option<(u64, Rc<[Binding]>)>> = const { RefCell::new(None) };
    static BOUND: RefCell<Vec<Rc<Bound>>> = const { RefCell::new(Vec::new()) };
    static OF_ROLES: RefCell<Vec<OfRole>> = const { RefCell::new(Vec::new()) };
    /// The tokens shown in this transaction, the latest last.
    static SHOWN: RefCell<Vec<Shown>> = const { RefCell::new(Vec::new()) };
}

fn bound(role: Oid) -> Result<Rc<Bound>> {
    // Before the look-ups: what changes during them is noticed by the next call.
    let roles = identity::roles_generation();
    let known = BOUND.with_borrow(|bound| bound.iter().find(|known| known.role == role).cloned());
    if let Some(known) = &known
        && known.roles == roles
        && known.policies == watch::generation(Group::Policies)
    {
        return Ok(Rc::clone(known));
    }
    watch::begin(Group::Policies);
    let policies = watch::generation(Group::Policies);
    let applies = applies(role, policies)?;
    let policy = match known {
        // Some role got another password, say: the same policy.
        Some(known) if known.policies == policies && known.applies == applies => Rc::clone(&known.policy),
        _ => Rc::new(roles::policy(&applies)?),
    };
    let now = Rc::new(Bound { role, roles, policies, applies, policy });
    BOUND.with_borrow_mut(|bound| remember(bound, Rc::clone(&now), |known| known.role == role));
    Ok(now)
}

fn remember<T>(known: &mut Vec<T>, new: T, same: impl Fn(&T) -> bool) {
    known.retain(|one| !same(one));
    if known.len() == REMEMBERED {
        known.remove(0);
    }
    known.push(new);
}

/// The vault roles bound to `role`, or to a role whose privileges it has. A binding counts while there is a Postgres role
/// of its name *and* its OID: names can be given to another role, and OIDs mean another one after a restore elsewhere.
fn applies(role: Oid, policies: u64) -> Result<Vec<Id>> {
    let known = BINDINGS.with_borrow(|known| {
        known.as_ref().filter(|(seen, _)| *seen == policies).map(|(_, bindings)| Rc::clone(bindings))
    });
    let bindings = match known {
        Some(bindings) => bindings,
        None => {
            let bindings: Rc<[Binding]> = roles::bindings()?.into();
            BINDINGS.set(Some((policies, Rc::clone(&bindings))));
            bindings
        }
    };
    let counts = |binding: &&Binding| {
        identity::has_privileges_of_role(role, binding.oid)
            && identity::role_name(binding.oid).is_some_and(|name| name == binding.name)
    };
    let mut roles: Vec<Id> = bindings.iter().filter(counts).map(|binding| binding.role).collect();
    roles.sort_unstable();
    roles.dedup();
    Ok(roles)
}

/// The policy of one vault role.
fn policy_of(role: Id) -> Result<Rc<Policy>> {
    let now = watch::generation(Group::Policies);
    let known = OF_ROLES.with_borrow(|known| {
        known.iter().find(|one| one.role == role && one.policies == now).map(|one| Rc::clone(&one.policy))
    });
    if let Some(policy) = known {
        return Ok(policy);
    }
    watch::begin(Group::Policies);
    let policies = watch::generation(Group::Policies);
    let policy = Rc::new(roles::policy(&[role])?);
    let found = OfRole { role, policies, policy: Rc::clone(&policy) };
    OF_ROLES.with_borrow_mut(|known| remember(known, found, |one| one.role == role));
    Ok(policy)
}

/// A token that was shown in this transaction.
#[derive(Clone)]
struct Shown {
    /// Where, so that its rollback takes the token back.
    subtransaction: u32,
    by: Oid,
    presented: Rc<Presented>,
    role: Id,
    name: Rc<str>,
    expires_at: Option<Timestamp>,
    /// Of when its row was looked at.
    tokens: u64,
    there: bool,
}

/// Shows a token: true if it is one, and from now on in force. Not a word about why not.
pub fn authenticate(text: &str) -> Result<bool> {
    identity::hear_of_changes();
    watch::begin(Group::Tokens);
    let generation = watch::generation(Group::Tokens);
    let Some(presented) = Presented::parse(text) else { return Ok(false) };
    let stored = tokens::by_id(presented.id)?;
    let known = stored.as_ref().map(|stored| (stored.hash, stored.expires_at));
    let valid = presented.is(known, Timestamp(crate::pg::clock()));
    let Some(stored) = stored.filter(|_| valid) else { return Ok(false) };
    area::get()?.uses().note(presented.id, crate::pg::clock());
    exit::at_transaction_end(ended);
    let (subtransaction, by) = (exit::subtransaction(), identity::current_user());
    SHOWN.with_borrow_mut(|shown| {
        // One that this one takes the place of, whatever becomes of the subtransaction.
        shown.retain(|one| one.subtransaction != subtransaction || one.by != by);
        shown.push(Shown {
            subtransaction,
            by,
            presented: Rc::new(presented),
            role: stored.role,
            name: stored.name.into(),
            expires_at: stored.expires_at,
            tokens: generation,
            there: true,
        });
    });
    Ok(true)
}

fn ended(end: End) {
    // A callback of the server's: nothing here may raise.
    match end {
        End::Commit | End::Abort => SHOWN.take().clear(),
        End::SavepointAbort(id) => {
            SHOWN.with_borrow_mut(|shown| shown.retain(|one| one.subtransaction < id));
        }
    }
}

/// The token that `role` showed last, if it is in force.
fn in_force(role: Oid) -> Result<Option<Shown>> {
    let Some(mut shown) = SHOWN.with_borrow(|shown| shown.iter().rfind(|one| one.by == role).cloned()) else {
        return Ok(None);
    };
    let now = Timestamp(crate::pg::clock());
    if shown.tokens != watch::generation(Group::Tokens) {
        watch::begin(Group::Tokens);
        shown.tokens = watch::generation(Group::Tokens);
        let stored = tokens::by_id(shown.presented.id)?;
        let known = stored.as_ref().map(|stored| (stored.hash, stored.expires_at));
        shown.there = shown.presented.is(known, now);
        if let Some(stored) = stored {
            shown.role = stored.role;
            shown.name = stored.name.into();
            shown.expires_at = stored.expires_at;
        }
        // Kept even if it is gone: the revocation may be rolled back.
        SHOWN.with_borrow_mut(|all| {
            if let Some(place) = all.iter_mut().rfind(|one| one.by == role) {
                *place = shown.clone();
            }
        });
    }
    Ok((shown.there && is_valid(shown.expires_at, now)).then_some(shown))
}

/// The name of the token in force, for the record of what is being done. None also if that cannot be told now.
pub fn token_name() -> Option<Rc<str>> {
    if SHOWN.with_borrow(Vec::is_empty) {
        return None;
    }
    in_force(identity::current_user()).ok().flatten().map(|shown| shown.name)
}
