//! Limits on what a caller may store, and the checks of arguments that are not names or generators.
//!
//! Runs in the backend before anything is sealed, locked or sent to a key service. The trap it avoids is the
//! argument that is discovered to be bad after work was done for it; and, since these checks see values and
//! usernames, an error that repeats them: only sizes and rules are ever named.

use serde::de::IgnoredAny;

use super::InvalidArgument;
use super::name::is_forbidden_char;
use super::version::Span;

/// Longest description in bytes: a page of text, kept beside the name and returned by every listing.
pub const MAX_DESCRIPTION_BYTES: usize = 4096;
/// Largest metadata document in bytes of its text form; larger things are secrets or belong in a table.
pub const MAX_METADATA_BYTES: usize = 64 * 1024;
/// Longest username in bytes; longer than any database or directory allows.
pub const MAX_USERNAME_BYTES: usize = 1024;
/// Most retained versions of one secret: each is a row and a data key to re-wrap.
pub const MAX_KEEP_VERSIONS: i32 = 1000;
/// Shortest rotation interval: the maintenance worker does not look more often than once a second.
pub const MIN_ROTATION_INTERVAL: Span = Span::from_secs(1);
/// Longest of all intervals, 100 years of 365 days: beyond it an interval is a mistake, and sums of timestamps
/// stay far from the end of the server's range.
pub const MAX_INTERVAL: Span = Span::from_secs(36_500 * 86_400);

/// An `interval` as the server stores it. Months are 30 days, days 24 hours (see [`Span`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IntervalParts {
    pub months: i32,
    pub days: i32,
    pub micros: i64,
}

/// A value of format text or a password: at most `max_secret_bytes` bytes, no NUL. Empty is a value.
pub fn text_value(value: &str, max_secret_bytes: usize) -> Result<(), InvalidArgument> {
    binary_value(value.as_bytes(), max_secret_bytes)?;
    if value.as_bytes().contains(&0) {
        return Err(InvalidArgument::new("secret value must not contain a zero byte")
            .hint("Store it with create_secret_bytes or put_secret_bytes."));
    }
    Ok(())
}

/// A value of format binary: at most `max_secret_bytes` bytes. Empty is a value.
pub fn binary_value(value: &[u8], max_secret_bytes: usize) -> Result<(), InvalidArgument> {
    if value.len() > max_secret_bytes {
        return Err(InvalidArgument::new("secret value is too long")
            .detail(format!("The value has {} bytes; at most {max_secret_bytes} are allowed.", value.len()))
            .hint("Raise hyperion_vault.max_secret_bytes, or store a key here and the data elsewhere."));
    }
    Ok(())
}

/// 1 to [`MAX_USERNAME_BYTES`] bytes without control or invisible characters.
pub fn username(username: &str) -> Result<(), InvalidArgument> {
    if username.is_empty() {
        return Err(InvalidArgument::new("username must not be empty"));
    }
    at_most("username", username.len(), MAX_USERNAME_BYTES)?;
    if username.chars().any(is_forbidden_char) {
        return Err(InvalidArgument::new("username contains a control or invisible character"));
    }
    Ok(())
}

/// At most [`MAX_DESCRIPTION_BYTES`] bytes; line breaks are welcome, NUL is not.
pub fn description(description: &str) -> Result<(), InvalidArgument> {
    at_most("description", description.len(), MAX_DESCRIPTION_BYTES)?;
    if description.contains('\0') {
        return Err(InvalidArgument::new("description must not contain a zero byte"));
    }
    Ok(())
}

/// A JSON object of at most [`MAX_METADATA_BYTES`] bytes, given as the text of the jsonb.
pub fn metadata(json: &str) -> Result<(), InvalidArgument> {
    at_most("metadata", json.len(), MAX_METADATA_BYTES)?;
    let object = json.trim_ascii_start().starts_with('{');
    // IgnoredAny checks the syntax and builds nothing: numbers beyond f64, which jsonb holds, pass.
    if !object || serde_json::from_str::<IgnoredAny>(json).is_err() {
        return Err(InvalidArgument::new("metadata must be a JSON object")
            .hint("Use an object such as {\"team\": \"payments\"}."));
    }
    Ok(())
}

/// 0 to [`MAX_KEEP_VERSIONS`].
pub fn keep_versions(keep: i32) -> Result<u32, InvalidArgument> {
    u32::try_from(keep).ok().filter(|_| keep <= MAX_KEEP_VERSIONS).ok_or_else(|| {
        InvalidArgument::new("keep_versions is out of range")
            .detail(format!("It is {keep}; from 0 to {MAX_KEEP_VERSIONS} is allowed."))
    })
}

/// From [`MIN_ROTATION_INTERVAL`] to [`MAX_INTERVAL`].
pub fn rotation_interval(parts: IntervalParts) -> Result<Span, InvalidArgument> {
    interval("rotation_interval", parts, MIN_ROTATION_INTERVAL)
}

/// From zero (the previous version ends at once) to [`MAX_INTERVAL`].
pub fn grace_period(parts: IntervalParts) -> Result<Span, InvalidArgument> {
    interval("grace_period", parts, Span::ZERO)
}

/// From [`MIN_ROTATION_INTERVAL`] to [`MAX_INTERVAL`].
pub fn expires_in(parts: IntervalParts) -> Result<Span, InvalidArgument> {
    interval("expires_in", parts, MIN_ROTATION_INTERVAL)
}

/// From zero (destroyed at once) to [`MAX_INTERVAL`].
pub fn recovery_window(parts: IntervalParts) -> Result<Span, InvalidArgument> {
    interval("recovery_window", parts, Span::ZERO)
}

fn interval(what: &str, parts: IntervalParts, least: Span) -> Result<Span, InvalidArgument> {
    match Span::from_parts(parts) {
        Some(span) if span < least => Err(InvalidArgument::new(format!("{what} is too short"))
            .hint(format!("Use an interval of at least {} second.", least.micros() / 1_000_000))),
        Some(span) if span <= MAX_INTERVAL => Ok(span),
        // Either below zero or beyond i64; PostgreSQL 17's infinities are the extremes of every part.
        None if parts.is_below_zero() => Err(InvalidArgument::new(format!("{what} must not be negative"))
            .detail("A month counts as 30 days and a day as 24 hours.")),
        _ => Err(InvalidArgument::new(format!("{what} is too long"))
            .hint("Use a finite interval of at most 36500 days.")),
    }
}

impl IntervalParts {
    fn is_below_zero(self) -> bool {
        let days = i128::from(self.months) * 30 + i128::from(self.days);
        days * 86_400_000_000 + i128::from(self.micros) < 0
    }
}

fn at_most(what: &str, len: usize, max: usize) -> Result<(), InvalidArgument> {
    if len > max {
        return Err(InvalidArgument::new(format!("{what} is too long"))
            .detail(format!("It has {len} bytes; at most {max} are allowed.")));
    }
    Ok(())
}
