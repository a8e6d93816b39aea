//! [`KmsError`]: what went wrong with a key service, in the words PostgreSQL will show.
//!
//! Made on the tokio threads and on the main thread of the kms worker, then copied through shared memory to the
//! waiting backend. The trap it avoids: an error that carries what it failed on. Nothing here is built from key
//! bytes or from a panic's payload; message, DETAIL and HINT name files, modes, lengths and fingerprints only.

use std::fmt;

pub use hyperion_vault_core::ipc::ErrorKind;

/// A failure of a key service or of its settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KmsError {
    /// Decides retry and SQLSTATE.
    pub kind: ErrorKind,
    /// Lower case, no full stop.
    pub message: String,
    /// The facts.
    pub detail: Option<String>,
    /// The fix, as a sentence.
    pub hint: Option<String>,
}

impl KmsError {
    /// An error with a message only.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), detail: None, hint: None }
    }

    /// Adds the facts; a second call adds a sentence to them.
    pub fn with_detail(mut self, detail: impl AsRef<str>) -> Self {
        let text = self.detail.get_or_insert_default();
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(detail.as_ref());
        self
    }

    /// Sets the fix.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// See [`ErrorKind::is_retryable`].
    pub fn is_retryable(&self) -> bool {
        self.kind.is_retryable()
    }

    pub(crate) fn misconfigured(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Misconfigured, message)
    }

    /// One fixed text for every wrapped key that does not open: what exactly was wrong with it is for nobody to
    /// learn who can write the tables.
    pub(crate) fn unauthenticated() -> Self {
        Self::new(ErrorKind::Unauthenticated, "wrapped key cannot be authenticated")
    }
}

impl fmt::Display for KmsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for KmsError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_pass_by_itself_is_retryable() {
        let retryable: Vec<_> = ErrorKind::ALL.into_iter().filter(|kind| kind.is_retryable()).collect();
        assert_eq!(retryable, [ErrorKind::Unreachable, ErrorKind::TimedOut, ErrorKind::Throttled]);
    }

    #[test]
    fn names_go_both_ways_and_differ() {
        for kind in ErrorKind::ALL {
            assert_eq!(ErrorKind::from_name(kind.as_str()), Some(kind));
        }
        assert_eq!(ErrorKind::from_name("Refused"), None);
        assert_eq!(ErrorKind::from_name(""), None);
    }

    #[test]
    fn detail_accumulates() {
        let error = KmsError::misconfigured("m").with_detail("One.").with_detail("Two.").with_hint("Do.");
        assert_eq!(error.detail.as_deref(), Some("One. Two."));
        assert_eq!(error.to_string(), "m");
        assert_eq!(error.hint.as_deref(), Some("Do."));
    }
}
