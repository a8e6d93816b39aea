//! Names of roles and tokens.
//!
//! Checked in the backend that makes or looks up one. The trap it avoids is the name that looks like another in a listing
//! or a log. No error repeats the name: it may be a token or a value in the wrong place.

use crate::secret::InvalidArgument;
use crate::secret::name::is_forbidden_char;

/// Longest name in bytes of UTF-8.
pub const MAX_LABEL_BYTES: usize = 128;

/// A checked name of a role or token, borrowed from the caller's argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label<'a>(&'a str);

impl<'a> Label<'a> {
    /// Accepts 1 to [`MAX_LABEL_BYTES`] bytes without control or invisible characters, and without blanks at the ends.
    /// `what` is what is named, for the message: `role` or `token`.
    pub fn parse(what: &str, text: &'a str) -> Result<Self, InvalidArgument> {
        let fault = if text.is_empty() {
            "must not be empty"
        } else if text.len() > MAX_LABEL_BYTES {
            "is too long"
        } else if text.chars().any(is_forbidden_char) {
            "contains a control or invisible character"
        } else if text.trim() != text {
            "must not start or end with a blank"
        } else {
            return Ok(Self(text));
        };
        Err(InvalidArgument::new(format!("{what} name {fault}"))
            .hint(format!("Use 1 to {MAX_LABEL_BYTES} bytes of visible text.")))
    }

    pub fn as_str(&self) -> &'a str {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_words_and_refuses_what_cannot_be_told_apart() {
        for good in ["a", "Stripe reader", "dienst/ü", "a*b", &"x".repeat(128)] {
            assert_eq!(Label::parse("role", good).unwrap().as_str(), good);
        }
        for (bad, message) in [
            ("", "token name must not be empty"),
            (&"x".repeat(129), "token name is too long"),
            ("a\nb", "token name contains a control or invisible character"),
            ("a\u{200b}", "token name contains a control or invisible character"),
            (" a", "token name must not start or end with a blank"),
            ("a\u{a0}", "token name must not start or end with a blank"),
        ] {
            assert_eq!(Label::parse("token", bad).unwrap_err().message, message);
        }
        assert!(!format!("{:?}", Label::parse("role", "hunter2\n").unwrap_err()).contains("hunter2"));
    }
}
