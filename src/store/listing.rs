//! Lists and counts of secrets: what may be known without opening any.
//!
//! Client backends, main thread, primary or standby. The traps it avoids: a page that is found by walking over all the
//! pages before it; and a walk whose length tells of names that the caller may not list.

use hyperion_vault_core::policy::Span;
use hyperion_vault_core::secret::{Pattern, Presence};
use pgrx::pg_sys::Datum;

use super::info;
use super::schedule;
use super::secrets::{BY_NAME, SECRETS, column, is_automatic, presence, unreadable};
use crate::error::Result;
use crate::pg::memory::with_scratch;
use crate::pg::scan::{Bound, Direction, Key, Op};
use crate::pg::tuple::Tuple;

/// Sorts before every character a name may have, so that `x` followed by it is the place right after the name `x`.
const JUST_AFTER: char = '\u{1}';

/// What `vault.list_secrets` is asked for.
pub struct Page<'a> {
    pub pattern: &'a Pattern,
    pub after: Option<&'a str>,
    pub max_rows: i32,
    /// The deleted ones that can be restored, instead of the live ones.
    pub deleted: bool,
    /// Where there may be names that the caller may list.
    pub spans: &'a [Span],
}

impl Page<'_> {
    /// Infos of the secrets whose names match and are `listed`, in byte order of the name. What `each` is given is gone
    /// when it returns.
    ///
    /// The server shows everybody how many rows were fetched. So what the caller asks for bounds a scan, or ends it early, only
    /// where one rule allows every name there is, or for one name that is listed; else the rule's own span is
    /// fetched from its beginning to its end.
    pub fn list(
        &self,
        listed: impl Fn(&str) -> bool,
        mut each: impl FnMut(Datum) -> Result<()>,
    ) -> Result<()> {
        let mut left = self.max_rows;
        if self.pattern.is_exact() {
            let name = self.pattern.as_str();
            if listed(name) {
                self.scan((name, Some(&just_after(name))), true, &mut left, &listed, &mut each)?;
            }
            return Ok(());
        }
        for span in self.spans {
            if left == 0 {
                break;
            }
            let (start, end) = (span.start.as_str(), span.end.as_deref());
            if !span.whole {
                self.scan((start, end), false, &mut left, &listed, &mut each)?;
                continue;
            }
            let after = self.after.map(just_after).unwrap_or_default();
            let start = start.max(self.pattern.literal_prefix()).max(&after);
            let prefix_end = self.pattern.prefix_end();
            let end = match (end, prefix_end.as_deref()) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            if end.is_none_or(|end| start < end) {
                self.scan((start, end), true, &mut left, &listed, &mut each)?;
            }
        }
        Ok(())
    }

    /// The same within a range of names, to its end unless it `stops` when no row is left to be found.
    fn scan(
        &self,
        (start, end): (&str, Option<&str>),
        stops: bool,
        left: &mut i32,
        listed: &impl Fn(&str) -> bool,
        each: &mut impl FnMut(Datum) -> Result<()>,
    ) -> Result<()> {
        let mut bounds = vec![Bound { column: 0, op: Op::Ge, key: Key::Text(start) }];
        bounds.extend(end.map(|end| Bound { column: 0, op: Op::Lt, key: Key::Text(end) }));
        SECRETS.with(|table| {
            table.scan(BY_NAME, &bounds, Direction::Forward, |row| {
                pgrx::check_for_interrupts!();
                let name = row.text(column::NAME).ok_or_else(unreadable)?;
                if *left > 0
                    && self.after.is_none_or(|after| name > after)
                    && self.is_wanted(row)
                    && self.pattern.matches(name)
                    && listed(name)
                {
                    with_scratch(|| each(info::of(row)?))?;
                    *left -= 1;
                }
                Ok(!stops || *left > 0)
            })
        })
    }

    fn is_wanted(&self, row: &Tuple<'_>) -> bool {
        match presence_of(row) {
            Presence::Live => !self.deleted,
            Presence::Deleted { .. } => self.deleted,
            Presence::Gone => false,
        }
    }
}

/// The place right after a name.
fn just_after(name: &str) -> String {
    format!("{name}{JUST_AFTER}")
}

fn presence_of(row: &Tuple<'_>) -> Presence {
    presence(row.timestamp(column::EXPIRES_AT), row.timestamp(column::RECOVER_UNTIL))
}

/// How many secrets there are.
#[derive(Default)]
pub struct Counts {
    pub live: i64,
    /// Of the live ones.
    pub automatic: i64,
    /// Deleted and restorable.
    pub deleted: i64,
    /// Automatic, live and due.
    pub due: i64,
    /// Automatic and live; scheduled rotation has failed.
    pub failing: i64,
}

pub fn count() -> Result<Counts> {
    let mut counts = Counts::default();
    let now = crate::pg::clock();
    SECRETS.with(|table| {
        table.all(None, |row| {
            pgrx::check_for_interrupts!();
            match presence_of(row) {
                Presence::Live => {
                    let (due, failing) = schedule::counted(row, now);
                    counts.live += 1;
                    counts.automatic += i64::from(is_automatic(row));
                    counts.due += i64::from(due);
                    counts.failing += i64::from(failing);
                }
                Presence::Deleted { .. } => counts.deleted += 1,
                Presence::Gone => {}
            }
            Ok(true)
        })
    })?;
    Ok(counts)
}
