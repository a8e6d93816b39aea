//! `create_secret`, `put_secret`, `update_secret`, `rotate_secret`, `delete_secret`.
//!
//! Client backends on a primary, main thread. Each follows one pattern: look (without a lock) → ask the key service
//! for a DEK → lock the row → check that it is still the secret the DEK was made for, else start over → seal → write.
//! So a slow key service blocks nobody, two sessions on one name take turns at the row lock, version numbers are
//! given under it, and nothing is lost between two of them. None of these functions returns a value.

use hyperion_vault_core::envelope::{Format, Id, decode_userpass};
use hyperion_vault_core::policy::Action;
use hyperion_vault_core::secret::{Generator, limits};
use pgrx::pg_sys::Datum;
use zeroize::Zeroizing;

use super::arguments::{self, Given};
use super::gate::{self, no_secret};
use super::keys::{ATTEMPTS, NewVersion, Opener, Value, forget, overtaken};
use crate::config;
use crate::error::{Kind, Result, VaultError};
use crate::pg::fcinfo::{Args, Return};
use crate::pg::spi::Spi;
use crate::store::secrets::{self, Changes, Locked, Properties, RESETTABLE};
use crate::store::versions;

fn admitted<'a>(args: &'a Args, actions: &[Action]) -> Result<&'a str> {
    gate::environment()?;
    let name = gate::name(args.text(0))?.as_str();
    gate::authorize(actions, name)?;
    gate::writable()?;
    Ok(name)
}

fn exists(name: &str) -> VaultError {
    VaultError::new(Kind::Exists, format!("secret \"{name}\" already exists"))
        .hint("Use vault.put_secret() to create or update, or vault.update_secret().")
}

fn invalid(message: &str, hint: &str) -> VaultError {
    VaultError::new(Kind::Invalid, message).hint(hint)
}

/// A value the operating system's generator gave.
fn generated(generator: &Generator) -> Result<Zeroizing<String>> {
    generator.generate().map_err(|_| {
        VaultError::internal("no value could be generated: the operating system provides no random bytes")
    })
}

/// `vault.create_secret(…)`.
pub fn create_secret(args: &Args) -> Result<Return> {
    let name = admitted(args, &[Action::Create])?;
    let given = Given::parse(args)?;
    let automatic = given.automatic.ok_or_else(|| gate::null("kind"))?;
    if automatic && given.rotation_interval.is_none() {
        return Err(secrets::missing_interval());
    }
    let may_generate = automatic || given.generator.is_some();
    let random = match (given.value, given.password) {
        (None, None) if may_generate => Some(generated(
            given.generator.as_ref().map_or(&Generator::default(), |(generator, _)| generator),
        )?),
        _ => None,
    };
    let random = random.as_ref().map(|text| text.as_str());
    let value = match (given.value, given.username, given.password.or(random)) {
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
    let properties = properties(&given);
    let info = create(name, &value, &properties)?.ok_or_else(|| exists(name))?;
    Ok(Return::Value(info))
}

fn properties(given: &Given<'_>) -> Properties {
    Properties {
        automatic: given.automatic,
        description: given.description,
        metadata: given.metadata,
        rotation_interval: given.rotation_interval,
        grace_period: given.grace_period,
        generator: given.generator.as_ref().map(|(_, datum)| *datum),
        allowed_ips: given.allowed_ips,
        keep_versions: given.keep_versions,
    }
}

/// Creates a secret; None if the name is taken.
fn create(name: &str, value: &Value<'_>, properties: &Properties) -> Result<Option<Datum>> {
    for _ in 0..ATTEMPTS {
        // Before the key service is asked: the common mistake costs no call.
        if secrets::current(name)?.is_some() {
            return Ok(None);
        }
        let new = NewVersion::prepare(Id::random()?)?;
        let spi = Spi::connect()?;
        if !new.belongs(&spi)? {
            continue;
        }
        let now = Datum::from(crate::pg::clock());
        return new
            .seal(name, 1, value, |fresh| secrets::insert(&spi, new.secret, name, fresh, properties, now));
    }
    Err(overtaken(name))
}

/// `vault.put_secret(name, value, expected_version, description)`.
pub fn put_secret(args: &Args) -> Result<Return> {
    let name = admitted(args, &[Action::Update, Action::Create])?;
    let value = arguments::value(args.text(1))?;
    let expected = expected_version(args.int(2))?;
    let description = args.text(3);
    if let Some(description) = description {
        limits::description(description)?;
    }
    for _ in 0..ATTEMPTS {
        if secrets::current(name)?.is_none() {
            gate::authorize(&[Action::Create], name)?;
            check_expected(name, expected, 0)?;
            let properties = Properties { description: args.datum(3), ..Properties::default() };
            if let Some(info) = create(name, &Value::Opaque(value), &properties)? {
                return Ok(Return::Value(info));
            }
            // Somebody else created it meanwhile: update that one.
            continue;
        }
        gate::authorize(&[Action::Update], name)?;
        let changes = description.map(|_| Changes {
            properties: Properties { description: args.datum(3), ..Properties::default() },
            reset: None,
        });
        let update = Update { name, expected, changes, value: NewValue::Opaque(value) };
        if let Some(info) = update.run()? {
            return Ok(Return::Value(info));
        }
        // Somebody else deleted it meanwhile: create it.
    }
    Err(overtaken(name))
}

fn expected_version(expected: Option<i32>) -> Result<Option<i32>> {
    match expected {
        Some(version) if version < 0 => Err(invalid(
            "expected_version must not be negative",
            "Pass the version you read, or 0 for a secret that must not exist.",
        )),
        expected => Ok(expected),
    }
}

fn check_expected(name: &str, expected: Option<i32>, found: i32) -> Result<()> {
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
enum NewValue<'a> {
    Keep,
    Opaque(&'a str),
    /// A part that is not given stays as it is.
    Userpass {
        username: Option<&'a str>,
        password: Option<&'a str>,
    },
    /// From the secret's generator; the user name of a userpass secret stays.
    Generated,
}

/// A change of an existing secret.
struct Update<'a> {
    name: &'a str,
    expected: Option<i32>,
    changes: Option<Changes>,
    value: NewValue<'a>,
}

/// What one attempt came to.
enum Attempt {
    Done(Datum),
    /// Others changed the secret between look and lock.
    Overtaken,
    /// There is no such secret (any more).
    Missing,
}

impl Update<'_> {
    /// None if there is no such secret.
    fn run(&self) -> Result<Option<Datum>> {
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
        let Some(current) = secrets::current(self.name)? else { return Ok(Attempt::Missing) };
        let current = current.version;
        check_expected(self.name, self.expected, current.version)?;
        // A secret's format never changes, so this holds under the lock too if the id does.
        self.check_format(current.format)?;
        let inherits = match self.value {
            NewValue::Keep | NewValue::Opaque(_) => false,
            NewValue::Userpass { username, password } => username.is_none() || password.is_none(),
            NewValue::Generated => current.format == Format::Userpass,
        };
        let inherited = if inherits {
            let opener = match Opener::cached(&current)? {
                Some(opener) => opener,
                None => Opener::fetch(&current)?,
            };
            Some(opener.open(self.name, &current)?)
        } else {
            None
        };
        let new = match self.value {
            NewValue::Keep => None,
            _ => Some(NewVersion::prepare(current.secret)?),
        };

        let spi = Spi::connect()?;
        if let Some(new) = &new
            && !new.belongs(&spi)?
        {
            return Ok(Attempt::Overtaken);
        }
        // Gone, but maybe replaced in the same transaction: then there always was a secret of this name.
        let Some(locked) = secrets::lock(&spi, self.name)? else { return Ok(Attempt::Overtaken) };
        if locked.id != current.secret || (inherits && locked.version_id != current.version_id) {
            return Ok(Attempt::Overtaken);
        }
        check_expected(self.name, self.expected, locked.version)?;
        let clock = crate::pg::clock();
        let mut keep_versions = locked.keep_versions;
        let mut info = None;
        if let Some(changes) = &self.changes {
            let (changed, keep) = secrets::change(&spi, locked.id, changes, Datum::from(clock))?;
            (info, keep_versions) = (Some(changed), keep);
        }
        if let Some(new) = &new {
            let inherited =
                inherited.as_ref().map(|payload| decode_userpass(payload.as_bytes())).transpose()?;
            info = Some(self.replace(&spi, new, &locked, inherited, Datum::from(clock))?);
        }
        let keep = keep_versions.unwrap_or_else(config::keep_versions).max(0) as u32;
        let purged = versions::purge(&spi, locked.id, keep, clock)?;
        forget(locked.id, &purged)?;
        info.map(Attempt::Done).ok_or_else(|| VaultError::internal("an update that changes nothing"))
    }

    fn check_format(&self, format: Format) -> Result<()> {
        match (&self.value, format) {
            (NewValue::Opaque(_), Format::Userpass) => Err(invalid(
                "the secret holds a username and password",
                "Use vault.update_secret() with username or password.",
            )),
            (NewValue::Userpass { .. }, Format::Opaque | Format::Binary) => Err(invalid(
                "the secret holds a single value, no username and password",
                "Pass value instead.",
            )),
            (NewValue::Opaque(_) | NewValue::Generated, Format::Binary) => {
                Err(invalid("the secret is binary", "This version reads and writes text only."))
            }
            _ => Ok(()),
        }
    }

    /// Keeps the current version of a locked secret and puts a new one in its place.
    fn replace(
        &self,
        spi: &Spi,
        new: &NewVersion,
        locked: &Locked,
        inherited: Option<(&str, &str)>,
        now: Datum,
    ) -> Result<Datum> {
        let random = match self.value {
            NewValue::Generated => Some(generated(&rotation_generator(self.name, locked)?)?),
            _ => None,
        };
        let random = random.as_ref().map(|text| text.as_str());
        let value = match (&self.value, inherited) {
            (NewValue::Opaque(value), _) => Value::Opaque(value),
            (NewValue::Userpass { username: Some(username), password: Some(password) }, _) => {
                Value::Userpass { username, password }
            }
            (NewValue::Userpass { username, password }, Some((old_username, old_password))) => {
                Value::Userpass {
                    username: username.unwrap_or(old_username),
                    password: password.unwrap_or(old_password),
                }
            }
            (NewValue::Generated, Some((username, _))) => {
                Value::Userpass { username, password: random.unwrap_or_default() }
            }
            (NewValue::Generated, None) => Value::Opaque(random.unwrap_or_default()),
            (NewValue::Keep, _) | (NewValue::Userpass { .. }, None) => {
                return Err(VaultError::internal("a new version without a value"));
            }
        };
        let version = locked.version.checked_add(1).ok_or_else(|| {
            VaultError::new(Kind::WrongState, format!("secret \"{}\" has no version numbers left", self.name))
        })?;
        versions::keep_current(spi, locked.id, now)?;
        new.seal(self.name, version, &value, |fresh| secrets::replace(spi, locked.id, fresh, now))
    }
}

/// How to make a new value for a locked secret.
fn rotation_generator(name: &str, locked: &Locked) -> Result<Generator> {
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
    let given = Given::parse(args)?;
    let expected = expected_version(args.int(12))?;
    let reset = match args.text_array(13) {
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
    let changes = Changes { properties: properties(&given), reset: args.datum(13) };
    if changes.is_empty() && matches!(value, NewValue::Keep) {
        return Err(invalid("nothing to update", "Pass a value, a property, or reset."));
    }
    let changes = (!changes.is_empty()).then_some(changes);
    let update = Update { name, expected, changes, value };
    update.run()?.map(Return::Value).ok_or_else(|| no_secret(name))
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
    update.run()?.map(Return::Value).ok_or_else(|| no_secret(name))
}

/// `vault.delete_secret(name)`.
pub fn delete_secret(args: &Args) -> Result<Return> {
    let name = admitted(args, &[Action::Delete])?;
    let spi = Spi::connect()?;
    for _ in 0..ATTEMPTS {
        if let Some(locked) = secrets::lock(&spi, name)? {
            let mut keys = versions::delete_all(&spi, locked.id)?;
            keys.extend(secrets::delete(&spi, locked.id)?);
            forget(locked.id, &keys)?;
            return Ok(Return::Void);
        }
        // Gone, unless it was replaced while this call waited for the lock.
        if secrets::current(name)?.is_none() {
            return Err(no_secret(name));
        }
    }
    Err(overtaken(name))
}
