//! Checks of the errors a server reports: SQLSTATE, message, detail, hint. Runs in the test process.
//!
//! An error of the wrong kind must not pass for the expected one: the code is always compared, and a value that came
//! back instead of an error is not printed, since it may be a secret.

use postgres::error::DbError;
use std::error::Error;

/// The error of `result`, which must come from the server with this SQLSTATE.
#[track_caller]
pub fn expect_error<T>(result: Result<T, postgres::Error>, sqlstate: &str) -> DbError {
    let Err(error) = result else { panic!("expected an error {sqlstate}, but the call succeeded") };
    let Some(reported) = error.as_db_error() else {
        panic!("expected an error {sqlstate}, but the session failed: {error:?}")
    };
    assert_eq!(reported.code().code(), sqlstate, "an error of another kind: {reported:?}");
    reported.clone()
}

/// Fails unless the session has ended, however the client came to know: from the server's last message (57P01 and its
/// kind), or from a closed socket, since a client that writes first may never read that message.
#[track_caller]
pub fn expect_disconnect<T>(result: Result<T, postgres::Error>) {
    let Err(error) = result else { panic!("expected the session to have ended, but the call succeeded") };
    let ended = match error.code() {
        Some(code) => ["57P01", "57P02", "57P03"].contains(&code.code()),
        None => error.is_closed() || error.source().is_some_and(|cause| cause.is::<std::io::Error>()),
    };
    assert!(ended, "expected the session to have ended, but it reports {error:?}");
}

/// Fails unless `text` contains `part`; `what` names the text. What `sqlstate!` is made of.
#[track_caller]
pub fn assert_contains(what: &str, text: Option<&str>, part: &str) {
    assert!(text.is_some_and(|text| text.contains(part)), "{what} {text:?} does not contain {part:?}");
}

/// Asserts that an expression fails with a SQLSTATE, and optionally what its message, detail and hint contain; gives
/// the error, a `DbError`.
///
/// `sqlstate!(client.execute(sql, &[]), "55000", hint: "shared_preload_libraries")`
#[macro_export]
macro_rules! sqlstate {
    ($result:expr, $code:expr $(, $field:ident : $part:expr)* $(,)?) => {{
        let error = $crate::expect_error($result, $code);
        $( $crate::sqlstate!(@check error, $field, $part); )*
        error
    }};
    (@check $error:ident, message, $part:expr) => {
        $crate::assert_contains("the message", Some($error.message()), $part)
    };
    (@check $error:ident, detail, $part:expr) => {
        $crate::assert_contains("the detail", $error.detail(), $part)
    };
    (@check $error:ident, hint, $part:expr) => {
        $crate::assert_contains("the hint", $error.hint(), $part)
    };
}

/// Does for a stranger what the vault lets only superusers do: first it is refused to the stranger, for that reason alone.
#[track_caller]
pub fn lend(stranger: &mut postgres::Client, root: &mut postgres::Client, sql: &str) {
    let error = expect_error(stranger.batch_execute(sql), "42501");
    assert!(
        error.hint().is_some_and(|hint| hint.contains("nly superusers")),
        "{sql}: refused by something else: {error:?}"
    );
    root.batch_execute(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}
