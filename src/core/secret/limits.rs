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
            .hint("Store it encoded, for example with encode(value, 'base64')."));
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
        return Err(InvalidArgument::new("username must not be empty")
            .hint("Pass the user name, or store the password alone as value."));
    }
    at_most("username", username.len(), MAX_USERNAME_BYTES)?;
    if username.chars().any(is_forbidden_char) {
        return Err(InvalidArgument::new("username contains a control or invisible character")
            .hint("Remove it: such a name looks like another."));
    }
    Ok(())
}

/// At most [`MAX_DESCRIPTION_BYTES`] bytes; line breaks are welcome, NUL is not.
pub fn description(description: &str) -> Result<(), InvalidArgument> {
    at_most("description", description.len(), MAX_DESCRIPTION_BYTES)?;
    if description.contains('\0') {
        return Err(
            InvalidArgument::new("description must not contain a zero byte").hint("Remove the zero byte.")
        );
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
            .hint("Pass 0 to keep none, or NULL to follow hyperion_vault.keep_versions.")
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
            .detail("A month counts as 30 days and a day as 24 hours.")
            .hint("Use an interval such as '30 days'.")),
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
            .detail(format!("It has {len} bytes; at most {max} are allowed."))
            .hint("Shorten it; what is long can be a secret of its own."));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parts(months: i32, days: i32, micros: i64) -> IntervalParts {
        IntervalParts { months, days, micros }
    }

    fn message<T: std::fmt::Debug>(result: Result<T, InvalidArgument>) -> String {
        result.unwrap_err().message
    }

    #[test]
    fn values() {
        let max = 1024 * 1024;
        let longest = "x".repeat(max);
        assert_eq!(text_value("", max), Ok(()));
        assert_eq!(text_value(&longest, max), Ok(()));
        assert_eq!(binary_value(&[], max), Ok(()));
        assert_eq!(binary_value(&[0, 255], max), Ok(()), "binary may hold zero bytes");
        assert_eq!(message(text_value(&(longest.clone() + "x"), max)), "secret value is too long");
        assert_eq!(message(binary_value((longest + "x").as_bytes(), max)), "secret value is too long");
        assert_eq!(
            message(text_value("é", 1)),
            "secret value is too long",
            "bytes are counted, not characters"
        );
        assert_eq!(message(text_value("a\0b", max)), "secret value must not contain a zero byte");
        assert_eq!(binary_value(b"", 0), Ok(()));
    }

    #[test]
    fn texts_beside_the_value() {
        assert_eq!(username("app"), Ok(()));
        assert_eq!(username(&"x".repeat(1024)), Ok(()));
        assert_eq!(message(username("")), "username must not be empty");
        assert_eq!(message(username(&"x".repeat(1025))), "username is too long");
        for bad in ["a\0", "a\n", "\u{85}", "\u{202e}x"] {
            assert_eq!(message(username(bad)), "username contains a control or invisible character");
        }
        assert_eq!(description(""), Ok(()));
        assert_eq!(description("two\nlines\tand a tab"), Ok(()));
        assert_eq!(description(&"x".repeat(4096)), Ok(()));
        assert_eq!(message(description(&"x".repeat(4097))), "description is too long");
        assert_eq!(message(description("\0")), "description must not contain a zero byte");
    }

    #[test]
    fn metadata_is_an_object() {
        for good in [
            "{}",
            " {\"a\": [1, null, {\"b\": \"c\"}]}",
            "{\"n\": 1e400}",
            "{\"n\": 123456789012345678901234567890}",
        ] {
            assert_eq!(metadata(good), Ok(()), "{good}");
        }
        for bad in ["", "null", "[]", "[{}]", "1", "\"{}\"", "{", "{}{}", "{\"a\"}", "{a: 1}", "{} x"] {
            assert_eq!(message(metadata(bad)), "metadata must be a JSON object", "{bad}");
        }
        let object = |bytes: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(bytes - 8));
        assert_eq!(metadata(&object(65536)), Ok(()));
        assert_eq!(message(metadata(&object(65537))), "metadata is too long");
        // As deep as 64 KiB allow: neither a stack overflow nor a limit of its own below the server's.
        let (open, close) = ("{\"a\":".repeat(10_000), "}".repeat(10_000));
        assert_eq!(metadata(&format!("{open}1{close}")), Ok(()));
        assert_eq!(message(metadata(&open)), "metadata must be a JSON object");
    }

    #[test]
    fn counts() {
        for (keep, expected) in
            [(0, Some(0)), (5, Some(5)), (1000, Some(1000)), (1001, None), (-1, None), (i32::MIN, None)]
        {
            assert_eq!(keep_versions(keep).ok(), expected);
        }
        assert_eq!(
            keep_versions(-1).unwrap_err().detail.as_deref(),
            Some("It is -1; from 0 to 1000 is allowed.")
        );
    }

    #[test]
    fn intervals() {
        const SECOND: i64 = 1_000_000;
        assert_eq!(rotation_interval(parts(0, 0, SECOND)).map(Span::micros), Ok(SECOND));
        assert_eq!(rotation_interval(parts(1, -29, 0)), rotation_interval(parts(0, 1, 0)));
        assert_eq!(grace_period(parts(0, 0, 0)), Ok(Span::ZERO));
        assert_eq!(recovery_window(parts(0, 0, 0)), Ok(Span::ZERO));
        assert_eq!(rotation_interval(parts(0, 36_500, 0)), Ok(MAX_INTERVAL));
        for (result, expected) in [
            (rotation_interval(parts(0, 0, SECOND - 1)), "rotation_interval is too short"),
            (rotation_interval(parts(0, 0, 0)), "rotation_interval is too short"),
            (expires_in(parts(0, 0, 0)), "expires_in is too short"),
            (rotation_interval(parts(0, 0, -SECOND)), "rotation_interval must not be negative"),
            (grace_period(parts(0, 0, -1)), "grace_period must not be negative"),
            (grace_period(parts(1, -31, 0)), "grace_period must not be negative"),
            (recovery_window(parts(-1, 0, 0)), "recovery_window must not be negative"),
            (grace_period(parts(0, 36_500, 1)), "grace_period is too long"),
            (grace_period(parts(i32::MAX, i32::MAX, i64::MAX)), "grace_period is too long"),
            (grace_period(parts(i32::MIN, i32::MIN, i64::MIN)), "grace_period must not be negative"),
        ] {
            assert_eq!(message(result), expected);
        }
    }

    #[test]
    fn errors_do_not_repeat_what_was_given() {
        let canary = "hunter2";
        for e in [
            text_value("hunter2\0", 100).unwrap_err(),
            text_value(canary, 3).unwrap_err(),
            username("hunter2\n").unwrap_err(),
            description("hunter2\0").unwrap_err(),
            metadata("hunter2").unwrap_err(),
            metadata("{\"hunter2\": }").unwrap_err(),
        ] {
            assert!(!format!("{e:?}").contains(canary), "{e:?}");
        }
    }

    proptest! {
        #[test]
        fn intervals_never_panic_and_stay_in_range(months: i32, days: i32, micros: i64) {
            if let Ok(span) = rotation_interval(parts(months, days, micros)) {
                prop_assert!(span >= MIN_ROTATION_INTERVAL && span <= MAX_INTERVAL);
            }
        }

        #[test]
        fn small_intervals_are_judged_by_their_sum(months in -3i32..3, days in -100i32..100, hours in -50i64..50) {
            let micros = hours * 3_600_000_000;
            let sum = (i64::from(months) * 30 + i64::from(days)) * 86_400_000_000 + micros;
            prop_assert_eq!(grace_period(parts(months, days, micros)).ok().map(Span::micros), (sum >= 0).then_some(sum));
        }

        #[test]
        fn metadata_never_panics(text in prop_oneof![any::<String>(), "[{}\\[\\]\",:a1 ]{0,30}"]) {
            let parsed: Result<serde_json::Value, _> = serde_json::from_str(&text);
            prop_assert_eq!(metadata(&text).is_ok(), parsed.is_ok_and(|v| v.is_object()));
        }
    }
}
