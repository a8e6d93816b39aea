//! Handing a new version to its secret's target: before the lock, under it, and after the row is written.
//!
//! Client backends and the maintenance worker, main thread, as part of the writers' pattern (`writing`): [`Handing::look`]
//! opens what it needs while nothing is locked; [`Handing::prepare`] locks the roles and judges, under the secret's row
//! lock, whether the one who set the target may still do that; [`Handing::apply`] runs when the statements of the
//! extension are over, as that one and not as the caller. All in one transaction: if the target does not take the
//! version, there is none.
//!
//! The trap it avoids: a target that is left out because something about it has changed. Then the vault would say one
//! password and the server another; so a version that cannot be handed over is not made.

use std::ffi::CString;

use hyperion_vault_core::envelope::{Format, Id, Plaintext, decode_userpass};
use hyperion_vault_core::policy::Action;
use hyperion_vault_core::policy::target::{RoleFacts, may_call, may_set_password};
use hyperion_vault_core::secret::Target;
use hyperion_vault_core::secret::target::next_in_turn;
use pgrx::pg_sys::Oid;

use super::gate;
use super::hook::{self, Pass};
use super::keys::{NewVersion, Opener, Value};
use super::writing::invalid;
use crate::error::{Kind, Result, VaultError};
use crate::pg::heap::{Assignment, Write};
use crate::pg::identity;
use crate::pg::password::{self, Change, ValidUntil};
use crate::pg::setter::SetterScope;
use crate::store::secrets::{Locked, Sealed};
use crate::store::targets::{self, Setter, Stored};
use crate::store::versions;

/// A target, and everything about it that is decided before the secret is locked.
pub struct Handing {
    target: Target,
    setter: Setter,
    /// None: set by this very call.
    stored: Option<Stored>,
    turn: Option<Turn>,
    /// The caller, if what is handed over is his choice and not a random value.
    chooser: Option<Oid>,
}

/// Which role of a pair the new version is for.
struct Turn {
    next: usize,
    /// The current version that this was decided on, and whether it is the other role's.
    current: Option<(Id, bool)>,
    /// Versions in grace when it was looked, with what they hold, if their keys were to be had.
    in_grace: Vec<(Sealed, Option<Plaintext>)>,
}

/// Where keys come from, for what must be opened to know whose turn it is.
#[derive(Clone, Copy)]
pub enum Keys<'a> {
    /// From the key service, if they are not cached: nothing is locked.
    Asked,
    /// From nowhere else than the cache and here (a version's key): something is.
    Held(Option<&'a (Id, Opener)>),
}

impl Keys<'_> {
    /// What a version holds; None if its key is not to be had.
    fn open(self, name: &str, sealed: &Sealed) -> Result<Option<Plaintext>> {
        if let Self::Held(Some((version, opener))) = self
            && *version == sealed.version_id
        {
            return opener.open(name, &sealed.stored()).map(Some);
        }
        let opener = match (Opener::cached(&sealed.stored())?, self) {
            (Some(opener), _) => opener,
            (None, Self::Asked) => Opener::fetch(sealed)?,
            (None, Self::Held(_)) => return Ok(None),
        };
        opener.open(name, &sealed.stored()).map(Some)
    }
}

/// What came of looking.
pub enum Looked {
    NoTarget,
    To(Box<Handing>),
    /// A key that is needed is not at hand.
    NoKey,
}

/// What [`Handing::prepare`] found.
pub struct Prepared {
    /// Of the target's roles.
    pub roles: Vec<Oid>,
    /// Of its function.
    owner: Option<Oid>,
}

impl Handing {
    /// A target that the current role sets now, for a secret that has no version yet. `username`: the one given.
    pub fn of_new(target: &Target, value: &Value<'_>) -> Result<Self> {
        let mut handing = Self::given(target, value.format())?;
        if let Target::RolePair(pair) = target {
            let username = match value {
                Value::Userpass { username, .. } => *username,
                _ => "",
            };
            let next = usize::from(username == pair[1]);
            handing.turn = Some(Turn { next, current: None, in_grace: Vec::new() });
        }
        Ok(handing)
    }

    /// A target that the current role sets now.
    fn given(target: &Target, format: Format) -> Result<Self> {
        if !target.roles().is_empty() && format != Format::Userpass {
            return Err(invalid(
                "a role's password can be set from a secret with a username and password only",
                "Create the secret with username and password, or use a target of type function.",
            ));
        }
        let oid = identity::current_user();
        let setter = Setter { name: identity::role_name(oid).unwrap_or_default(), oid };
        Ok(Self { target: target.clone(), setter, stored: None, turn: None, chooser: None })
    }

    fn stored(name: &str, stored: Stored) -> Result<Self> {
        let inactive = |detail: String| {
            VaultError::new(Kind::WrongState, format!("the target of secret \"{name}\" is not active"))
                .detail(detail)
                .hint("Set it again with vault.update_secret(target => …), or take it off with reset => '{target}'.")
        };
        // What is stored was parsed when it was set.
        let target = Target::parse(&stored.json)
            .map_err(|e| inactive(format!("What is stored of it cannot be used: {}.", e.message)))?;
        let Some(setter) = stored.set_by.clone() else {
            return Err(inactive("It came with an import, and nobody has set it here.".into()));
        };
        if role_oid(&setter.name) != Some(setter.oid) {
            return Err(inactive(format!(
                "Role \"{}\", which set it, has been dropped, renamed or made again.",
                setter.name
            )));
        }
        let same = stored.roles.len() == target.roles().len()
            && target.roles().iter().zip(&stored.roles).all(|(name, oid)| role_oid(name) == Some(*oid));
        if !same {
            return Err(inactive(format!(
                "A role that it names has been dropped, renamed or made again since it was set: {}.",
                quoted(target.roles())
            )));
        }
        Ok(Self { target, setter, stored: Some(stored), turn: None, chooser: None })
    }

    /// Before the lock: what a new version of an existing secret is handed to. `given`: the target that the current
    /// role sets with it. `chosen`: the value, or how it will be generated, is the caller's choice.
    pub fn look(
        name: &str,
        current: &Sealed,
        has_target: bool,
        given: Option<&Target>,
        chosen: bool,
        keys: Keys<'_>,
    ) -> Result<Looked> {
        let mut handing = match given {
            Some(target) => Self::given(target, current.format)?,
            None if has_target => match targets::of(current.secret)? {
                Some(stored) => Self::stored(name, stored)?,
                None => return Ok(Looked::NoTarget),
            },
            None => return Ok(Looked::NoTarget),
        };
        handing.chooser = (chosen && handing.stored.is_some()).then(identity::current_user);
        if let Target::RolePair(pair) = &handing.target {
            let Some(in_use) = keys.open(name, current)? else { return Ok(Looked::NoKey) };
            let (username, _) = decode_userpass(in_use.as_bytes())?;
            let next = next_in_turn(pair, Some(username));
            let leaves = username == pair[1 - next];
            let mut in_grace = Vec::new();
            for version in versions::in_grace(current.secret, crate::pg::clock())? {
                let opened = keys.open(name, &version)?;
                in_grace.push((version, opened));
            }
            handing.turn = Some(Turn { next, current: Some((current.version_id, leaves)), in_grace });
        }
        Ok(Looked::To(Box::new(handing)))
    }

    /// Under the lock: whether what [`look`](Self::look) saw is still so.
    pub fn holds(&self, locked: &Locked<'_>) -> Result<bool> {
        if let Some(stored) = &self.stored
            && targets::of(locked.id)?.as_ref() != Some(stored)
        {
            return Ok(false);
        }
        let Some(turn) = &self.turn else { return Ok(true) };
        if turn.current.is_none_or(|(version, _)| version != locked.version_id) {
            return Ok(false);
        }
        let now = versions::in_grace(locked.id, crate::pg::clock())?;
        let seen =
            |version: &Sealed| turn.in_grace.iter().any(|(seen, _)| seen.version_id == version.version_id);
        Ok(now.iter().all(seen))
    }

    /// Under the lock: locks the target's roles and asks whether the setter may do this. Written down if he sets it now.
    pub fn prepare(&self, name: &str, secret: Id) -> Result<Prepared> {
        let mut found: Vec<(usize, Oid)> = Vec::new();
        let mut order: Vec<usize> = (0..self.target.roles().len()).collect();
        // Two secrets with the same pair the other way round must not wait for one another.
        order.sort_by_key(|at| &self.target.roles()[*at]);
        for at in order {
            let role = &self.target.roles()[at];
            let oid = password::lock_role(role).ok_or_else(|| no_role(role))?;
            self.may_set(role, oid, self.setter.oid)?
                .map_err(|why| self.denied(name, &format!("to set the password of role \"{role}\""), why))?;
            // Else who manages the vault would get every role that it sets a password of.
            if let Some(chooser) = self.chooser {
                self.may_set(role, oid, chooser)?.map_err(|why| not_his_to_choose(role, chooser, why))?;
            }
            found.push((at, oid));
        }
        found.sort_by_key(|(at, _)| *at);
        let roles: Vec<Oid> = found.into_iter().map(|(_, oid)| oid).collect();
        if self.stored.as_ref().is_some_and(|stored| stored.roles != roles) {
            return Err(VaultError::new(
                Kind::Conflict,
                format!("a role of the target of secret \"{name}\" has changed"),
            )
            .hint("Try again."));
        }
        if self.stored.is_none() && targets::taken(secret, &roles)? {
            return Err(VaultError::new(
                Kind::WrongState,
                "the target's role has its password from another secret",
            )
            .detail(format!(
                "Roles: {}. One secret knows the password of a role.",
                quoted(self.target.roles())
            ))
            .hint("Take the target off that secret first, or delete it."));
        }
        let owner = match &self.target {
            Target::Function(function) => {
                // The function is handed the value, as the setter's: else who manages the vault could read all of it.
                if !gate::role_may(self.setter.oid, Action::Read, name)? {
                    let why = "What the function is handed, the role must be allowed to read: it is not.";
                    return Err(self.denied(name, &format!("to call {}", function.signature()), why));
                }
                let found = targets::function(function, self.setter.oid).ok_or_else(|| {
                    VaultError::new(
                        Kind::WrongState,
                        format!("function {} does not exist", function.signature()),
                    )
                    .hint("Create it, or set another target with vault.update_secret().")
                })?;
                may_call(&found.facts)
                    .map_err(|why| self.denied(name, &format!("to call {}", function.signature()), why))?;
                Some(found.owner)
            }
            _ => None,
        };
        Ok(Prepared { roles, owner })
    }

    /// Whether `who` may set the password of a role of the target.
    fn may_set(&self, role: &str, oid: Oid, who: Oid) -> Result<Result<(), &'static str>> {
        let facts = targets::role_facts(oid, who).ok_or_else(|| no_role(role))?;
        // In a pair VALID UNTIL is set as well, which nobody may by himself.
        let facts = RoleFacts { own_password: facts.own_password && self.turn.is_none(), ..facts };
        Ok(may_set_password(&facts, cfg!(not(feature = "pg15"))))
    }

    fn denied(&self, name: &str, what: &str, why: &str) -> VaultError {
        VaultError::new(
            Kind::Denied,
            format!("permission denied for role \"{}\" {what} from secret \"{name}\"", self.setter.name),
        )
        .detail(why)
        .hint("A target is applied with the rights of the role that set it: have it set by one that may do this.")
    }

    /// Under the lock: the columns that say what the target is, if it is set by this call.
    pub fn assignments(&self, prepared: &Prepared) -> Result<Vec<Assignment>> {
        if self.stored.is_some() {
            return Ok(Vec::new());
        }
        targets::set(&self.target, &self.setter, &prepared.roles)
    }

    /// The role that the new version is for: its user name follows.
    pub fn role(&self) -> Option<&str> {
        match (&self.target, &self.turn) {
            (Target::Role(role), _) => Some(role),
            (Target::RolePair(pair), Some(turn)) => Some(&pair[turn.next]),
            _ => None,
        }
    }

    /// The user name of the new version, if it follows the target; refuses one that was given and is another.
    pub fn username(&self, given: Option<&str>) -> Result<Option<&str>> {
        let Some(role) = self.role() else { return Ok(None) };
        match given {
            Some(given) if given != role => Err(invalid(
                "username is not the role whose turn it is",
                "Leave username out: it follows the target.",
            )),
            _ => Ok(Some(role)),
        }
    }

    /// Under the lock, once the current version is kept (until `grace_ends`): makes sure that no version in grace loses
    /// its password to the new one.
    pub fn make_way(
        &self,
        write: &Write,
        name: &str,
        new: &[u8],
        grace_ends: Option<i64>,
        clock: i64,
    ) -> Result<()> {
        let (Some(turn), Some(role)) = (&self.turn, self.role()) else { return Ok(()) };
        for (version, opened) in &turn.in_grace {
            let ends = version.expires_at.unwrap_or(clock);
            if ends <= clock {
                continue;
            }
            // One that could not be opened may be that role's: then this waits until its grace is over.
            if let Some(opened) = opened {
                let (username, password) = decode_userpass(opened.as_bytes())?;
                if username != role || password.as_bytes() == new {
                    continue;
                }
            }
            if grace_ends.is_none() {
                versions::end_grace(write, version.secret, version.version, clock)?;
                continue;
            }
            return Err(VaultError::new(
                Kind::WrongState,
                format!("role \"{role}\", whose turn it is in secret \"{name}\", has a credential in grace"),
            )
            .detail(format!("It is that of version {}, for another {} ms.", version.version, (ends - clock + 999) / 1000))
            .hint("Try again when its grace is over. To end it now, take the grace period off with vault.update_secret(reset => '{grace_period}')."));
        }
        Ok(())
    }

    /// After the row is written and the extension's own statements are over: hands the version over, as the setter.
    pub fn apply(&self, version: &Handed<'_>, prepared: &Prepared, grace_ends: Option<i64>) -> Result<()> {
        let name = version.name;
        if let Some(role) = self.role() {
            let password = std::str::from_utf8(version.value).unwrap_or_default();
            if password.is_empty() {
                return Err(invalid(
                    "the password of a role must not be empty",
                    "Pass another, or a generator.",
                ));
            }
            let _setter = SetterScope::enter(self.setter.oid);
            let valid_until = self.turn.as_ref().map(|_| ValidUntil::Infinity);
            self.alter(&Change { role, password: Some(password), valid_until }, prepared)?;
            if let (Target::RolePair(pair), Some(turn)) = (&self.target, &self.turn)
                && turn.current.is_some_and(|(_, leaves)| leaves)
            {
                // The former credential ends with its grace: by the server, on every member of the cluster.
                let until = ValidUntil::At(grace_ends.unwrap_or_else(crate::pg::clock));
                let other = &pair[1 - turn.next];
                self.alter(&Change { role: other, password: None, valid_until: Some(until) }, prepared)?;
            }
        }
        if let (Target::Function(function), Some(owner)) = (&self.target, prepared.owner) {
            let pass = Pass {
                name: name.to_owned(),
                version: version.number,
                version_id: version.new.version_id,
                key: version.new.copy_key()?,
                readers: [self.setter.oid, owner],
            };
            let _setter = SetterScope::enter(self.setter.oid);
            hook::call(function, pass, version.value)?;
        }
        Ok(())
    }

    fn alter(&self, change: &Change<'_>, prepared: &Prepared) -> Result<()> {
        if prepared.roles.contains(&password::alter_role(change)?) {
            return Ok(());
        }
        // Renamed under our hands: the lock does not keep that off.
        Err(VaultError::new(Kind::Conflict, format!("role \"{}\" was renamed meanwhile", change.role))
            .hint("Try again."))
    }
}

/// A version that has just been written.
pub struct Handed<'a> {
    pub name: &'a str,
    pub number: i32,
    pub new: &'a NewVersion,
    /// The value, or the password of a userpass secret.
    pub value: &'a [u8],
}

fn role_oid(name: &str) -> Option<Oid> {
    identity::role_oid(&CString::new(name).ok()?)
}

fn not_his_to_choose(role: &str, chooser: Oid, why: &str) -> VaultError {
    VaultError::new(
        Kind::Denied,
        format!("permission denied for role \"{}\" to choose the password of role \"{role}\"", identity::role_name(chooser).unwrap_or_default()),
    )
    .detail(why.replace("The role that sets the target", "It"))
    .hint("Rotate the secret, which gives it a random one, or have it done by a role that may set that password.")
}

fn no_role(role: &str) -> VaultError {
    VaultError::new(Kind::WrongState, format!("role \"{role}\" of the target does not exist"))
        .hint("Create it, or set another target with vault.update_secret().")
}

fn quoted(roles: &[String]) -> String {
    roles.iter().map(|role| format!("\"{role}\"")).collect::<Vec<_>>().join(", ")
}
