//! The two functions behind `vault.decrypted_secrets`: which rows there are (`_visible`), and their value (`_open`).
//!
//! Client backends, main thread, primary or standby. The view has to open the rows of a query's *result* and no others,
//! and to show nobody the name of a secret that he may not read. How:
//!
//! - It is a plain view over `vault.secrets` that the planner takes apart, so that `name = …`, `= ANY` and joins use the
//!   index. A `security_barrier` view is never taken apart: a join would open every row.
//! - So that a leaky function in the caller's WHERE sees no name it should not, the filter is row-level security on the
//!   table: its conditions come first, and equality of texts, being leakproof, is still pushed into the index.
//!   `security_invoker` makes it ask for the caller, not for the view's owner. Callers have SELECT on the columns of the
//!   view and on nothing that is sealed.
//! - `_open` is STABLE, since a volatile column keeps a view whole and is computed even for `count(*)`; STRICT, since
//!   otherwise an outer join computes it below the join; and dear, since then it is computed after sort and LIMIT.
//!
//! The traps it avoids. A STABLE function with constant arguments runs while a statement is planned, in a plain EXPLAIN
//! too: `_open` refuses arguments that are constant. The caller may order conditions as he likes: `_open` asks the gate
//! itself. The rows are as old as the query's snapshot: `_open` opens the secret as it is now, and only if it is the
//! same secret; of one that has gone meanwhile the value is NULL.

use hyperion_vault_core::envelope::{Format, Id};
use hyperion_vault_core::policy::Action;
use hyperion_vault_core::secret::Presence;
use pgrx::pg_sys::Datum;

use super::gate;
use super::read::{text, with_key};
use crate::audit;
use crate::error::{Kind, Result, VaultError};
use crate::pg::fcinfo::{Args, Return};
use crate::store::secrets;

/// `vault._visible(name, allowed_ips, expires_at, recover_until)`, on columns of a row.
pub fn visible(args: &Args) -> Result<Return> {
    gate::environment()?;
    let live = secrets::presence(args.timestamp(2), args.timestamp(3)) == Presence::Live;
    let here = match args.cidr_array(1) {
        None => true,
        Some(list) => list.is_ok_and(|list| gate::narrowed(Some(&list)).is_ok()),
    };
    let visible = match args.text(0) {
        Some(name) if live && here => gate::permitted(&[Action::Read], name)?,
        _ => false,
    };
    Ok(Return::Value(Datum::from(visible)))
}

/// `vault._open(id, name)`, on columns of a row.
pub fn open(args: &Args) -> Result<Return> {
    if args.is_constant(1) {
        return Err(VaultError::new(
            Kind::WrongState,
            "vault._open() is for the view vault.decrypted_secrets only",
        )
        .hint("Use vault.read_secret()."));
    }
    gate::environment()?;
    gate::plaintext()?;
    let (Some(id), Some(name)) = (args.uuid(0), args.text(1)) else { return Ok(Return::Null) };
    audit::subject(name);
    let value = value(id, name)?;
    if matches!(value, Return::Null) {
        audit::detail("no value");
    }
    Ok(value)
}

fn value(id: Id, name: &str) -> Result<Return> {
    if !gate::permitted(&[Action::Read], name)? {
        return Ok(Return::Null);
    }
    let opened = with_key(name, None, |found, opener| {
        if found.version.secret != id {
            return Ok(Return::Null);
        }
        if found.version.format == Format::Binary {
            // As in get_secret.
            opener.open(name, &found.version)?;
            return Ok(Return::Null);
        }
        text(name, &found.version, opener)
    });
    match opened {
        // Deleted, or its address list narrowed, since the query began.
        Err(error) if error.is_not_found() || error.is_denied() => Ok(Return::Null),
        opened => opened,
    }
}
