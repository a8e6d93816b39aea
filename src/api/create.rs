//! `create_secret`, `create_secret_bytes`, `put_secret`, `put_secret_bytes`.
//!
//! Client backends on a primary, main thread. The pattern of all writers, see `writing`. A name is taken by a live
//! secret, and by a deleted one that can still be restored; a secret that has run out is destroyed by whoever takes its
//! name.

use std::cell::Cell;

use hyperion_vault_core::policy::Action;
use hyperion_vault_core::secret::{Generator, Presence, Target, limits};
use pgrx::pg_sys::Datum;

use super::arguments::{self, Given};
use super::gate;
use super::keys::{ATTEMPTS, NewVersion, Value, overtaken};
use super::lifecycle::replace_gone;
use super::target::{Handed, Handing};
use super::update::{NewValue, Update, check_expected, expected_version};
use super::writing::{admitted, generated, invalid};
use crate::audit;
use crate::error::{Kind, Result, VaultError};
use crate::pg::fcinfo::{Args, Return};
use crate::pg::heap::{Wait, Write};
use crate::store::changes::{Changes, missing_interval};
use crate::store::secrets::{self, Properties};

pub fn exists(name: &str) -> VaultError {
    VaultError::new(Kind::Exists, format!("secret \"{name}\" already exists"))
        .hint("Use vault.put_secret() to create or update, or vault.update_secret().")
}

/// The name of a deleted secret that can be restored.
pub fn reserved(name: &str) -> VaultError {
    VaultError::new(Kind::Exists, format!("secret \"{name}\" is deleted and can still be restored"))
        .detail("Its name stays taken until its recovery window is over.")
        .hint("Bring it back with vault.restore_secret(), or destroy it now with vault.delete_secret() without a window.")
}

/// `vault.create_secret(…)`.
pub fn create_secret(args: &Args) -> Result<Return> {
    let name = admitted(args, &[Action::Create])?;
    let given = Given::parse(args, &arguments::TEXT)?;
    let automatic = given.automatic.ok_or_else(|| gate::null("kind"))?;
    if automatic && given.rotation_interval.is_none() {
        return Err(missing_interval());
    }
    let may_generate = automatic || given.generator.is_some();
    let random = match (given.value, given.password) {
        (None, None) if may_generate => Some(generated(
            given.generator.as_ref().map_or(&Generator::default(), |(generator, _)| generator),
        )?),
        _ => None,
    };
    let random = random.as_ref().map(|text| text.as_str());
    // A secret for a role is for that one: its name need not be said twice.
    let role = given.target.as_ref().and_then(|target| target.roles().first()).map(String::as_str);
    let username = given.username.or(role.filter(|_| given.value.is_none()));
    let value = match (given.value, username, given.password.or(random)) {
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {
            return Err(invalid(
                "a secret has either a value or a username and password",
                "Pass value alone, or username and password.",
            ));
        }
        (Some(value), None, None) => Value::Opaque(value),
        (None, Some(username), Some(password)) => Value::Userpass { username, password },
        (None, None, Some(value)) if given.password.is_none() => Value::Opaque(value),
        (None, None, Some(_)) => {
            return Err(invalid(
                "a password needs a username",
                "Pass username too, or pass the password as value.",
            ));
        }
        (None, Some(_), None) => {
            return Err(invalid(
                "a username needs a password",
                "Pass password, or a generator to have one made.",
            ));
        }
        (None, None, None) => {
            return Err(invalid(
                "a manual secret needs a value",
                "Pass value, or username and password, or a generator to have one made.",
            ));
        }
    };
    let info =
        create(name, &value, &given.properties(), given.target.as_ref())?.ok_or_else(|| exists(name))?;
    Ok(Return::Value(info))
}

/// `vault.create_secret_bytes(…)`.
pub fn create_secret_bytes(args: &Args) -> Result<Return> {
    let name = admitted(args, &[Action::Create])?;
    let value = arguments::bytes(args.bytes(1))?;
    let given = Given::parse(args, &arguments::BYTES)?;
    let info = create(name, &Value::Binary(value), &given.properties(), None)?.ok_or_else(|| exists(name))?;
    Ok(Return::Value(info))
}

thread_local! {
    /// For how many secrets to come the name is looked up first, though a key is at hand. An insertion that meets a taken name
    /// leaves a dead row.
    static LOOKS: Cell<u32> = const { Cell::new(0) };
}

/// So many names have to be free after one that was not.
const LOOKS_AFTER: u32 = 16;

/// Creates a secret; None if the name is taken by a live one.
fn create(
    name: &str,
    value: &Value<'_>,
    properties: &Properties,
    target: Option<&Target>,
) -> Result<Option<Datum>> {
    let handing = target.map(|target| Handing::of_new(target, value)).transpose()?;
    if let (Some(handing), Value::Userpass { username, .. }) = (&handing, value) {
        handing.username(Some(username))?;
    }
    for attempt in 0..ATTEMPTS {
        // With a key at hand and names that were free so far, the insertion is what finds out. It waits for nobody: who is at
        // work on a secret of that name is not in the way of one who only wants to hear that it exists.
        let blind = attempt == 0 && handing.is_none() && LOOKS.get() == 0;
        let at_hand = if blind { NewVersion::reserved()? } else { None };
        let wait = if at_hand.is_some() { Wait::Skip } else { Wait::Block };
        let (new, gone) = match at_hand {
            Some(new) => (new, false),
            None => {
                // Before the key service is asked: the common mistake costs no call.
                let gone = match secrets::state(name)? {
                    Some(Presence::Live) => return Ok(None),
                    Some(Presence::Deleted { .. }) => return Err(reserved(name)),
                    Some(Presence::Gone) => true,
                    None => false,
                };
                (NewVersion::of_new_secret()?, gone)
            }
        };
        let write = Write::begin();
        if !new.belongs(&write)? {
            continue;
        }
        if gone && let Some(locked) = secrets::lock_any(&write, name)? {
            // Somebody may have taken the name since.
            if locked.presence != Presence::Gone {
                continue;
            }
            replace_gone(&write, name, &locked)?;
        }
        let prepared = handing.as_ref().map(|handing| handing.prepare(name, new.secret)).transpose()?;
        let now = crate::pg::clock();
        let target = match (&handing, &prepared) {
            (Some(handing), Some(prepared)) => handing.assignments(prepared)?,
            _ => Vec::new(),
        };
        let info = new.seal(name, 1, value, |fresh| {
            secrets::insert(wait, &write, new.secret, name, fresh, properties, target, now)
        })?;
        // Not inserted: the name is another's, whatever the state of that one is.
        let Some(info) = info else {
            LOOKS.set(LOOKS_AFTER);
            new.forget();
            continue;
        };
        LOOKS.set(LOOKS.get().saturating_sub(1));
        audit::version(1);
        if let (Some(handing), Some(prepared)) = (&handing, &prepared) {
            let version = Handed { name, number: 1, new: &new, value: value.main_part()? };
            handing.apply(&version, prepared, None)?;
        }
        return Ok(Some(info));
    }
    Err(overtaken(name))
}

/// `vault.put_secret(name, value, expected_version, description)`.
pub fn put_secret(args: &Args) -> Result<Return> {
    let name = admitted(args, &[Action::Update, Action::Create])?;
    let value = arguments::value(args.text(1))?;
    put(args, name, &Value::Opaque(value), || NewValue::Opaque(value))
}

/// `vault.put_secret_bytes(name, value, expected_version, description)`.
pub fn put_secret_bytes(args: &Args) -> Result<Return> {
    let name = admitted(args, &[Action::Update, Action::Create])?;
    let value = arguments::bytes(args.bytes(1))?;
    put(args, name, &Value::Binary(value), || NewValue::Binary(value))
}

fn put<'a>(args: &Args, name: &'a str, first: &Value<'_>, next: impl Fn() -> NewValue<'a>) -> Result<Return> {
    let expected = expected_version(args.int(2))?;
    let description = args.text(3);
    if let Some(description) = description {
        limits::description(description)?;
    }
    let properties = || Properties { description: args.datum(3), ..Properties::default() };
    for _ in 0..ATTEMPTS {
        if secrets::state(name)? != Some(Presence::Live) {
            gate::authorize(&[Action::Create], name)?;
            check_expected(name, expected, 0)?;
            if let Some(info) = create(name, first, &properties(), None)? {
                return Ok(Return::Value(info));
            }
            // Somebody else created it meanwhile: update that one.
            continue;
        }
        gate::authorize(&[Action::Update], name)?;
        let changes = description.map(|_| Changes { properties: properties(), ..Changes::default() });
        let update = Update { name, expected, changes, value: next() };
        if let Some(info) = update.run()? {
            return Ok(Return::Value(info));
        }
        // Somebody else deleted it meanwhile: create it.
    }
    Err(overtaken(name))
}
