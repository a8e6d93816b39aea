//! The two halves of `vault.decrypted_secrets`: which rows there are (`vault._readable`, a foreign table that this file
//! scans), and their value (`vault._open`, a function).
//!
//! Client backends, main thread, primary or standby. The view has to open the rows of a query's *result* and no others,
//! and to show nobody the name of a secret that they may not read. How:
//!
//! - It is a plain view that the planner takes apart, so that `name = …`, `= ANY` and joins reach the scan below it. A
//!   `security_barrier` view is never taken apart: a join would open every row.
//! - Below it is a foreign table, which gives out only rows that the current role may read: there is no filter that a leaky
//!   function, a leakproof operator or EXPLAIN could get below. Its scan looks a name up only if the role may read it.
//! - The view's owner has the only right to the foreign table. What runs here runs as the caller all the same.
//! - `_open` is STABLE, since a volatile column keeps a view whole and is computed even for `count(*)`; STRICT, since
//!   otherwise an outer join computes it below the join; and dear, since then it is computed after sort and LIMIT. A scan
//!   that returned values itself would open rows that a filter, sort or join drops later.
//!
//! The traps it avoids. A STABLE function with constant arguments runs while a statement is planned, in a plain EXPLAIN
//! too: `_open` refuses arguments that are constant. Callers may order conditions as they like: `_open` asks the gate
//! itself. Rows are as old as the page they came in: `_open` opens the secret as it is now, and only if it is the same
//! secret; of one that has gone meanwhile the value is NULL.

use std::collections::VecDeque;

use hyperion_vault_core::envelope::{Format, Id};
use hyperion_vault_core::policy::Action;
use hyperion_vault_core::readable::{Source, Walk};
use hyperion_vault_core::secret::Presence;

use super::gate;
use super::read::{text, with_key};
use crate::audit;
use crate::error::{Kind, Result, VaultError};
use crate::pg::fcinfo::{Args, Return};
use crate::pg::foreign::{self, COLUMNS, Scan, Table, Type, Value};
use crate::store::readable::{self, Readable};

/// Names, and what is known of a secret without opening it.
static READABLE: Table = Table {
    columns: [
        (c"id", Type::Uuid),
        (c"name", Type::Text),
        (c"description", Type::Text),
        (c"created_at", Type::Timestamp),
        (c"updated_at", Type::Timestamp),
    ],
    key: c"name",
    explained: (c"Secrets", c"all that the current role may read"),
    begin: |bound| {
        gate::environment()?;
        Ok(Box::new(Rows { walk: Walk::new(bound), page: VecDeque::new(), current: None }))
    },
};

/// `vault._secrets_handler()`.
pub fn handler(_args: &Args) -> Result<Return> {
    Ok(foreign::handler(&READABLE))
}

/// A scan of the foreign table.
struct Rows {
    walk: Walk,
    /// Rows that were fetched and not given out yet.
    page: VecDeque<Readable>,
    current: Option<Readable>,
}

impl Scan for Rows {
    fn next(&mut self) -> Result<Option<[Value<'_>; COLUMNS]>> {
        loop {
            // Asked of each row when it leaves: a right that was revoked since the page was fetched counts no more.
            while let Some(row) = self.page.pop_front() {
                if is_shown(&row)? {
                    return Ok(Some(values(self.current.insert(row))));
                }
            }
            if !self.fetch()? {
                return Ok(None);
            }
        }
    }
}

impl Rows {
    /// Fetches the next page, which may be empty; false if there is none.
    fn fetch(&mut self) -> Result<bool> {
        match &mut self.walk {
            Walk::Names(left) => {
                crate::pg::check_for_interrupts();
                let Some(name) = left.pop_front() else { return Ok(false) };
                // Before the look-up: without the right nothing is looked up, so nothing tells whether the name exists.
                if gate::permitted(&[Action::Read], &name)? {
                    self.page.extend(readable::named(&name)?);
                }
            }
            Walk::Pages(pages) => {
                let spans = gate::rights()?.spans(Action::Read);
                let Some(rows) = pages.next(&spans, &mut Pages { kept: 0 })? else { return Ok(false) };
                self.page = rows.into();
            }
        }
        Ok(true)
    }
}

/// The most that is kept of one span, in bytes: as much as one call of a function may return.
const MAX_KEPT: usize = 512 << 20;

struct Pages {
    /// Bytes kept so far.
    kept: usize,
}

impl Source for Pages {
    type Row = Readable;
    type Error = VaultError;

    fn page(&mut self, start: &str, end: Option<&str>, rows: usize) -> Result<Vec<Readable>> {
        readable::page(start, end, rows)
    }

    fn name(row: &Readable) -> &str {
        &row.name
    }

    fn keep(&mut self, row: &Readable) -> Result<bool> {
        let keep = is_shown(row)?;
        if keep {
            self.kept +=
                size_of::<Readable>() + row.name.len() + row.description.as_ref().map_or(0, String::len);
            if self.kept > MAX_KEPT {
                return Err(VaultError::new(Kind::Invalid, "too many secrets for one scan")
                    .detail(format!("A scan keeps at most {} MiB.", MAX_KEPT >> 20))
                    .hint("Ask for secrets by name, or grant read on paths that end in their only *."));
            }
        }
        Ok(keep)
    }
}

/// Whether the current role may read the secret, from where it is, and the secret is live.
fn is_shown(row: &Readable) -> Result<bool> {
    Ok(row.presence() == Presence::Live
        && gate::narrowed(row.allowed_ips.as_deref()).is_ok()
        && gate::permitted(&[Action::Read], &row.name)?)
}

fn values(row: &Readable) -> [Value<'_>; COLUMNS] {
    [
        Value::Uuid(row.id),
        Value::Text(&row.name),
        row.description.as_deref().map_or(Value::Null, Value::Text),
        Value::Timestamp(row.created_at),
        Value::Timestamp(row.updated_at),
    ]
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
