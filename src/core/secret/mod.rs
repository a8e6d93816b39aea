//! What a secret is, decided without a server: names, patterns, generators, version states, limits.
//!
//! Runs in whichever backend or worker calls it; nothing here keeps state. The trap it avoids is the error that
//! repeats its input: a caller who swaps `name` and `value` (the order of supabase_vault is the reverse of ours)
//! must not find the value in the server log, so no error of this module quotes a name, a value, a username, a
//! description or metadata. What it does quote (a generator's key, an allowlist item) goes through [`quoted`].

pub mod generator;
pub mod limits;
pub mod name;
pub mod pattern;
pub mod presence;
pub mod target;
pub mod version;

use std::fmt;

pub use generator::{Generator, RandomUnavailable};
pub use limits::IntervalParts;
pub use name::SecretName;
pub use pattern::Pattern;
pub use presence::Presence;
pub use target::{FunctionName, Target};
pub use version::{Span, Superseded, Timestamp, VersionState};

/// An argument or setting that was refused; the extension reports it as SQLSTATE 22023.
///
/// In the server's message style: `message` is lower case without a full stop, `detail` states facts and `hint`
/// says what to do, both as sentences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidArgument {
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

impl InvalidArgument {
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), detail: None, hint: None }
    }

    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for InvalidArgument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for InvalidArgument {}

/// A piece of configuration as it may stand in a message: in double quotes, on one line, at most 64 characters.
///
/// Longer text is cut because a message that repeats a megabyte of input helps nobody, and escaped because a
/// control character in a log line can forge the next one.
pub(crate) fn quoted(text: &str) -> String {
    const MAX_CHARS: usize = 64;
    let mut out = String::with_capacity(text.len().min(MAX_CHARS) + 5);
    out.push('"');
    for (i, c) in text.chars().enumerate() {
        if i == MAX_CHARS {
            out.push_str("...");
            break;
        }
        if name::is_forbidden_char(c) { out.extend(c.escape_unicode()) } else { out.push(c) }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_is_one_short_line() {
        assert_eq!(quoted("a b"), "\"a b\"");
        assert_eq!(quoted("a\nb\u{202e}"), "\"a\\u{a}b\\u{202e}\"");
        let long = quoted(&"é".repeat(10_000));
        assert_eq!(long.chars().count(), 64 + 3 + 2);
        assert!(long.ends_with("...\""));
        assert_eq!(quoted(&"x".repeat(64)).len(), 66, "exactly the limit is not cut");
    }

    #[test]
    fn display_is_the_message_alone() {
        let e = InvalidArgument::new("bad thing").detail("Fact.").hint("Fix.");
        assert_eq!(e.to_string(), "bad thing");
        assert_eq!((e.detail.as_deref(), e.hint.as_deref()), (Some("Fact."), Some("Fix.")));
    }
}
