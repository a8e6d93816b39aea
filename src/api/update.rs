//! `update_secret`, `rotate_secret`, `roll_back_secret`: changes of a secret that is there.
//!
//! Client backends on a primary, main thread. The pattern of all writers, see `writing`. A secret's format is that of
//! its first version for good: readers of text must not suddenly meet bytes, or a user name.

use hyperion_vault_core::envelope::{Format, Id, Plaintext, decode_userpass};
use hyperion_vault_core::policy::Action;
use hyperion_vault_core::secret::Generator;
use pgrx::pg_sys::Datum;
use zeroize::Zeroizing;

use super::arguments::{self, Given};
use super::gate;
use super::keys::{ATTEMPTS, NewVersion, Opener, Value, overtaken, unmoved};
use super::lifecycle::{purge, purge_next};
use super::target::{self, Handed, Handing, Keys};
use super::writing::{admitted, generated, invalid, missing};
use crate::audit;
use crate::config;
use crate::error::{Kind, Result, VaultError};
use crate::pg::fcinfo::{Args, Return};
use crate::pg::heap::Write;
use crate::store::changes::{Changes, RESETTABLE, TargetChange, change};
use crate::store::secrets::{self, Draft, Locked, Sealed};
use crate::store::{targets, versions};

pub fn expected_version(expected: Option<i32>) -> Result<Option<i32>> {
    match expected {
        Some(version) if version < 0 => Err(invalid(
            "expected_version must not be negative",
            "Pass the version you read, or 0 for a secret that must not exist.",
        )),
        expected => Ok(expected),
    }
}

pub fn check_expected(name: &str, expected: Option<i32>, found: i32) -> Result<()> {
    match expected {
        Some(expected) if expected != found => {
            let found =
                if found == 0 { "does not exist".to_owned() } else { format!("is at version {found}") };
            Err(VaultError::new(
                Kind::WrongState,
                format!("secret \"{name}\" is not at the expected version"),
            )
            .detail(format!("Expected version {expected}; the secret {found}."))
            .hint("Read the secret again and repeat the change on what it is now."))
        }
        _ => Ok(()),
    }
}

/// What becomes of a secret's value.
pub enum NewValue<'a> {
    Keep,
    Opaque(&'a str),
    Binary(&'a [u8]),
    /// A part that is not given stays as it is.
    Userpass {
        username: Option<&'a str>,
        password: Option<&'a str>,
    },
    /// From the secret's generator; the user name of a userpass secret stays.
    Generated,
    /// What a superseded version of this number held.
    Of(i32),
    /// What the current version holds: a new target is handed the value that there is.
    Again,
}

/// A change of an existing secret.
pub struct Update<'a> {
    pub name: &'a str,
    pub expected: Option<i32>,
    pub changes: Option<Changes>,
    pub value: NewValue<'a>,
}

/// What one attempt came to.
enum Attempt {
    Done(Datum),
    /// Others changed the secret between look and lock.
    Overtaken,
    /// There is no such secret (any more).
    Missing,
}

/// What was found without a lock.
struct Looked {
    current: Sealed,
    has_target: bool,
    /// The stored version that the new value takes from.
    source: Option<Sealed>,
    handing: Option<Handing>,
}

impl Update<'_> {
    /// None if there is no such secret.
    pub fn run(&self) -> Result<Option<Datum>> {
        for _ in 0..ATTEMPTS {
            match self.attempt()? {
                Attempt::Done(info) => return Ok(Some(info)),
                Attempt::Missing => return Ok(None),
                Attempt::Overtaken => {}
            }
        }
        Err(overtaken(self.name))
    }

    fn attempt(&self) -> Result<Attempt> {
        let Some((looked, opened)) = unmoved(self.name, || self.look_and_open())? else {
            return Ok(Attempt::Missing);
        };
        let new = if self.makes_version() { Some(NewVersion::prepare(looked.current.secret)?) } else { None };
        self.write(looked, opened.as_ref(), new.as_ref())
    }

    fn look_and_open(&self) -> Result<Option<(Looked, Option<Plaintext>)>> {
        let Some(looked) = self.look(Keys::Asked)? else { return Ok(None) };
        let opened = match &looked.source {
            None => None,
            Some(source) => {
                let opener = match Opener::cached(&source.stored())? {
                    Some(opener) => opener,
                    None => Opener::fetch(source)?,
                };
                Some(opener.open(self.name, &source.stored())?)
            }
        };
        Ok(Some((looked, opened)))
    }

    /// As [`run`](Self::run), with keys that were fetched before, and no others: the key service is not asked. None if they
    /// do not fit (any more), or there is no such secret.
    pub fn run_with(&self, new: &NewVersion, opener: Option<&(Id, Opener)>) -> Result<Option<Datum>> {
        let Some(looked) = unmoved(self.name, || self.look(Keys::Held(opener)))? else { return Ok(None) };
        if looked.current.secret != new.secret {
            return Ok(None);
        }
        let opened = match (&looked.source, opener) {
            (None, _) => None,
            (Some(source), Some((version, opener))) if *version == source.version_id => {
                Some(opener.open(self.name, &source.stored())?)
            }
            (Some(source), _) => match Opener::cached(&source.stored())? {
                Some(opener) => Some(opener.open(self.name, &source.stored())?),
                None => return Ok(None),
            },
        };
        match self.write(looked, opened.as_ref(), Some(new))? {
            Attempt::Done(info) => Ok(Some(info)),
            Attempt::Overtaken | Attempt::Missing => Ok(None),
        }
    }

    /// Everything that can be known before the row is locked; None if there is no such secret, or a key is not to be had.
    fn look(&self, keys: Keys<'_>) -> Result<Option<Looked>> {
        let Some((current, has_target)) = secrets::current_with_target(self.name)? else { return Ok(None) };
        check_expected(self.name, self.expected, current.version)?;
        // A secret's format never changes, so this holds under the lock too if the id does.
        self.check_format(current.format)?;
        let source = self.source(&current)?;
        let given = match self.target_change() {
            TargetChange::Set(target) => Some(target),
            TargetChange::Keep | TargetChange::Clear => None,
        };
        let concerned =
            *self.target_change() != TargetChange::Clear && (self.makes_version() || self.chooses());
        let handing = if concerned {
            match Handing::look(self.name, &current, has_target, given, self.chooses(), keys)? {
                target::Looked::To(handing) => Some(*handing),
                target::Looked::NoTarget => None,
                target::Looked::NoKey => return Ok(None),
            }
        } else {
            None
        };
        Ok(Some(Looked { current, has_target, source, handing }))
    }

    /// Locks, checks that everything is as it was, writes, and hands over.
    fn write(&self, looked: Looked, opened: Option<&Plaintext>, new: Option<&NewVersion>) -> Result<Attempt> {
        let Looked { current, has_target, source, handing } = looked;
        let write = Write::begin();
        if let Some(new) = new
            && !new.belongs(&write)?
        {
            return Ok(Attempt::Overtaken);
        }
        // Gone, but maybe replaced in the same transaction: then there always was a secret of this name.
        let Some(locked) = secrets::lock(&write, self.name)? else { return Ok(Attempt::Overtaken) };
        if locked.id != current.secret || !self.still_there(source.as_ref(), &locked)? {
            return Ok(Attempt::Overtaken);
        }
        let holds = match &handing {
            Some(handing) => handing.holds(&locked)?,
            None => true,
        };
        if locked.has_target != has_target || !holds {
            return Ok(Attempt::Overtaken);
        }
        check_expected(self.name, self.expected, locked.version)?;
        let prepared = handing.as_ref().map(|handing| handing.prepare(self.name, locked.id)).transpose()?;
        let clock = crate::pg::clock();
        let mut draft = Draft::of(&locked);
        if let Some(changes) = &self.changes {
            change(&mut draft, changes, clock)?;
        }
        if self.target_change() == &TargetChange::Clear {
            draft.assign(targets::clear());
        }
        let mut handed = None;
        if let Some(new) = new {
            if let (Some(handing), Some(prepared)) = (&handing, &prepared) {
                draft.assign(handing.assignments(prepared)?);
            }
            let written = self.replace(&write, &mut draft, new, &locked, opened, handing.as_ref(), clock)?;
            handed = handing.zip(prepared).map(|(handing, prepared)| (handing, prepared, new, written));
        }
        if draft.is_empty() {
            return Err(VaultError::internal("an update that changes nothing"));
        }
        let keep = draft.keep_versions().unwrap_or_else(config::keep_versions).max(0) as u32;
        let info = draft.write(&write)?;
        match &self.changes {
            Some(_) => purge(&write, locked.id, keep, clock)?,
            None => purge_next(&write, locked.id, keep, clock)?,
        }
        // Others' code runs from here on.
        if let Some((handing, prepared, new, written)) = handed {
            let version = Handed { name: self.name, number: written.number, new, value: &written.value };
            handing.apply(&version, &prepared, written.grace_ends)?;
        }
        Ok(Attempt::Done(info))
    }

    /// The stored version that the new value takes from, if it does.
    fn source(&self, current: &Sealed) -> Result<Option<Sealed>> {
        let inherits = match self.value {
            NewValue::Keep | NewValue::Opaque(_) | NewValue::Binary(_) => false,
            NewValue::Userpass { username, password } => username.is_none() || password.is_none(),
            NewValue::Generated => current.format == Format::Userpass,
            NewValue::Again => true,
            NewValue::Of(number) => return self.earlier(current, number).map(Some),
        };
        Ok(inherits.then(|| current.clone()))
    }

    /// A version to roll back to.
    fn earlier(&self, current: &Sealed, number: i32) -> Result<Sealed> {
        let name = self.name;
        if number == current.version {
            return Err(VaultError::new(
                Kind::WrongState,
                format!("secret \"{name}\" is at version {number} already"),
            )
            .hint("Pass the number of an earlier version; see vault.list_versions()."));
        }
        versions::by_number(current.secret, number)?.ok_or_else(|| {
            VaultError::new(Kind::NotFound, format!("secret \"{name}\" has no version {number}"))
                .detail("There never was one, or it has been purged.")
                .hint("See vault.list_versions() for the versions that are kept.")
        })
    }

    /// Whether the version that was opened without a lock is still what it was, now that the secret is locked: the
    /// current one (else the half that is kept would be an old one), or the one to roll back to.
    fn still_there(&self, source: Option<&Sealed>, locked: &Locked<'_>) -> Result<bool> {
        match (source, &self.value) {
            (None, _) => Ok(true),
            (Some(source), NewValue::Of(number)) => {
                let now = versions::by_number(locked.id, *number)?;
                Ok(now.is_some_and(|now| now.version_id == source.version_id))
            }
            (Some(source), _) => Ok(source.version_id == locked.version_id),
        }
    }

    fn check_format(&self, format: Format) -> Result<()> {
        let generates = self.changes.as_ref().is_some_and(|changes| {
            changes.properties.automatic == Some(true) || changes.properties.generator.is_some()
        });
        match (&self.value, format) {
            (NewValue::Opaque(_), Format::Userpass) => Err(invalid(
                "the secret holds a username and password",
                "Use vault.update_secret() with username or password.",
            )),
            (NewValue::Binary(_), Format::Userpass) => Err(invalid(
                "the secret holds a username and password, no bytes",
                "Use vault.update_secret() with username or password.",
            )),
            (NewValue::Binary(_), Format::Opaque) => {
                Err(invalid("the secret is text, not binary", "Use vault.put_secret() for it."))
            }
            (NewValue::Opaque(_) | NewValue::Userpass { .. }, Format::Binary) => Err(invalid(
                "the secret is binary, not text",
                "Use vault.put_secret_bytes() for it, or delete it and create it anew as text.",
            )),
            (NewValue::Userpass { .. }, Format::Opaque) => Err(invalid(
                "the secret holds a single value, no username and password",
                "Pass value instead.",
            )),
            (NewValue::Generated, Format::Binary) => {
                Err(VaultError::new(Kind::WrongState, format!("secret \"{}\" cannot be rotated", self.name))
                    .detail("It is binary, and values are generated as text.")
                    .hint("Set a new value with vault.put_secret_bytes()."))
            }
            (_, Format::Binary) if generates => Err(invalid(
                "a binary secret cannot be automatic or have a generator",
                "Values are generated as text: create it as text, for example with charset base64url.",
            )),
            _ => Ok(()),
        }
    }

    fn makes_version(&self) -> bool {
        !matches!(self.value, NewValue::Keep)
    }

    /// Whether the caller says what the value is, or out of what it will be made.
    fn chooses(&self) -> bool {
        let generator = self.changes.as_ref().is_some_and(|changes| changes.properties.generator.is_some());
        generator || !matches!(self.value, NewValue::Keep | NewValue::Generated | NewValue::Again)
    }

    fn target_change(&self) -> &TargetChange {
        self.changes.as_ref().map_or(&TargetChange::Keep, |changes| &changes.target)
    }

    /// Keeps the current version of a locked secret and puts a new one in its place.
    #[expect(clippy::too_many_arguments, reason = "what one attempt has found and made so far")]
    fn replace(
        &self,
        write: &Write,
        draft: &mut Draft<'_, '_>,
        new: &NewVersion,
        locked: &Locked<'_>,
        opened: Option<&Plaintext>,
        handing: Option<&Handing>,
        clock: i64,
    ) -> Result<Written> {
        let random = match self.value {
            NewValue::Generated => Some(generated(&rotation_generator(self.name, locked)?)?),
            _ => None,
        };
        let random = random.as_ref().map(|text| text.as_str());
        let given = match self.value {
            NewValue::Userpass { username, .. } => username,
            _ => None,
        };
        let followed = match handing {
            Some(handing) => handing.username(given)?,
            None => None,
        };
        let unfit = || VaultError::internal("a new version without a value");
        let inherited = || decode_userpass(opened.ok_or_else(unfit)?.as_bytes()).map_err(VaultError::from);
        let value = match &self.value {
            NewValue::Opaque(value) => Value::Opaque(value),
            NewValue::Binary(value) => Value::Binary(value),
            NewValue::Userpass { username, password } => Value::Userpass {
                username: match followed.or(*username) {
                    Some(username) => username,
                    None => inherited()?.0,
                },
                password: match password {
                    Some(password) => password,
                    None => inherited()?.1,
                },
            },
            NewValue::Generated if locked.format == Format::Userpass => Value::Userpass {
                username: match followed {
                    Some(username) => username,
                    None => inherited()?.0,
                },
                password: random.unwrap_or_default(),
            },
            NewValue::Generated => Value::Opaque(random.unwrap_or_default()),
            NewValue::Of(_) | NewValue::Again => match followed {
                Some(username) => Value::Userpass { username, password: inherited()?.1 },
                None => Value::Opened(locked.format, opened.ok_or_else(unfit)?),
            },
            NewValue::Keep => return Err(unfit()),
        };
        let version = locked.version.checked_add(1).ok_or_else(|| {
            VaultError::new(Kind::WrongState, format!("secret \"{}\" has no version numbers left", self.name))
        })?;
        let grace_ends = versions::keep_current(write, draft, clock)?;
        let mut main_part: Zeroizing<Vec<u8>> = Zeroizing::default();
        if let Some(handing) = handing {
            main_part = Zeroizing::new(value.main_part()?.to_vec());
            handing.make_way(write, self.name, &main_part, grace_ends, clock)?;
        }
        audit::version(version);
        new.seal(self.name, version, &value, |fresh| draft.replace(fresh, grace_ends, clock))?;
        Ok(Written { number: version, grace_ends, value: main_part })
    }
}

/// A new version that has been written.
struct Written {
    number: i32,
    /// Of the version before.
    grace_ends: Option<i64>,
    /// What is to be handed over, if anything is.
    value: Zeroizing<Vec<u8>>,
}

/// How to make a new value for a locked secret.
fn rotation_generator(name: &str, locked: &Locked<'_>) -> Result<Generator> {
    match &locked.generator {
        Some(json) => Ok(Generator::parse(json)?),
        None if locked.automatic => Ok(Generator::default()),
        None => Err(VaultError::new(Kind::WrongState, format!("secret \"{name}\" cannot be rotated"))
            .detail("It is manual and has no generator, so no new value can be made for it.")
            .hint(
                "Set a new value with vault.put_secret(), or give it a generator with vault.update_secret().",
            )),
    }
}

/// `vault.update_secret(…)`.
pub fn update_secret(args: &Args) -> Result<Return> {
    let name = admitted(args, &[Action::Update])?;
    let given = Given::parse(args, &arguments::UPDATE)?;
    let expected = expected_version(args.int(13))?;
    let reset = match args.text_array(14) {
        None => Vec::new(),
        Some(Ok(names)) => names,
        Some(Err(())) => {
            return Err(invalid(
                "reset must not hold a NULL",
                &format!("It may name {}.", RESETTABLE.join(", ")),
            ));
        }
    };
    check_reset(&reset, &given)?;
    let value = match (given.value, given.username, given.password) {
        (None, None, None) if given.target.is_some() => NewValue::Again,
        (None, None, None) => NewValue::Keep,
        (Some(value), None, None) => NewValue::Opaque(value),
        (None, username, password) => NewValue::Userpass { username, password },
        (Some(_), ..) => {
            return Err(invalid(
                "a secret has either a value or a username and password",
                "Pass value alone, or username and password.",
            ));
        }
    };
    let target = match given.target.clone() {
        Some(target) => TargetChange::Set(target),
        None if reset.iter().any(|property| property == "target") => TargetChange::Clear,
        None => TargetChange::Keep,
    };
    let changes = Changes { properties: given.properties(), reset, target };
    if changes.is_empty() && matches!(value, NewValue::Keep) {
        return Err(invalid("nothing to update", "Pass a value, a property, or reset."));
    }
    let changes = (!changes.is_empty()).then_some(changes);
    let update = Update { name, expected, changes, value };
    update.run()?.map(Return::Value).ok_or_else(|| missing(name))
}

fn check_reset(reset: &[String], given: &Given<'_>) -> Result<()> {
    let is_given = |property: &str| match property {
        "description" => given.description.is_some(),
        "metadata" => given.metadata.is_some(),
        "rotation_interval" => given.rotation_interval.is_some(),
        "grace_period" => given.grace_period.is_some(),
        "generator" => given.generator.is_some(),
        "allowed_ips" => given.allowed_ips.is_some(),
        "keep_versions" => given.keep_versions.is_some(),
        "expires_in" => given.expires_in.is_some(),
        "target" => given.target.is_some(),
        _ => false,
    };
    if reset.len() > RESETTABLE.len() {
        return Err(invalid(
            "reset names more properties than there are",
            &format!("It may name {}.", RESETTABLE.join(", ")),
        ));
    }
    for property in reset {
        if !RESETTABLE.contains(&property.as_str()) {
            // Not quoted: it may be a value in the wrong place.
            return Err(invalid(
                "reset names an unknown property",
                &format!("It may name {}.", RESETTABLE.join(", ")),
            ));
        }
        if is_given(property) {
            return Err(invalid(&format!("{property} is both given and reset"), "Pass one of the two."));
        }
    }
    Ok(())
}

/// `vault.rotate_secret(name)`.
pub fn rotate_secret(args: &Args) -> Result<Return> {
    let name = admitted(args, &[Action::Rotate])?;
    let update = Update { name, expected: None, changes: None, value: NewValue::Generated };
    update.run()?.map(Return::Value).ok_or_else(|| missing(name))
}

/// `vault.roll_back_secret(name, version)`.
pub fn roll_back_secret(args: &Args) -> Result<Return> {
    let name = admitted(args, &[Action::Rotate])?;
    let version = args.int(1).ok_or_else(|| gate::null("version"))?;
    let update = Update { name, expected: None, changes: None, value: NewValue::Of(version) };
    update.run()?.map(Return::Value).ok_or_else(|| missing(name))
}
