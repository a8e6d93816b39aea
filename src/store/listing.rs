//! Lists and counts of secrets: what may be known without opening any.
//!
//! Client backends, main thread, primary or standby. The trap it avoids: a page that is found by walking over all the
//! pages before it; the scan begins at the first name of the page, and ends at the end of its range.

use hyperion_vault_core::policy::Reach;
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
    pub reach: &'a Reach,
}

impl Page<'_> {
    /// Infos of the secrets whose names match and are `listed`, in byte order of the name. What `each` is given is gone
    /// when it returns.
    pub fn list(
        &self,
        listed: impl Fn(&str) -> bool,
        mut each: impl FnMut(Datum) -> Result<()>,
    ) -> Result<()> {
        let everywhere = [(String::new(), None)];
        let ranges = match self.reach {
            Reach::Everywhere => &everywhere[..],
            Reach::Ranges(ranges) => ranges,
        };
        let mut left = self.max_rows;
        for (start, end) in ranges {
            if left == 0 {
                break;
            }
            self.list_range((start, end.as_deref()), &mut left, &listed, &mut each)?;
        }
        Ok(())
    }

    /// The same within a range of names; counts down how many rows are left to be found.
    fn list_range(
        &self,
        (from, to): (&str, Option<&str>),
        left: &mut i32,
        listed: &impl Fn(&str) -> bool,
        each: &mut impl FnMut(Datum) -> Result<()>,
    ) -> Result<()> {
        let pattern = self.pattern;
        let mut end = if pattern.is_exact() {
            Some(format!("{}{JUST_AFTER}", pattern.as_str()))
        } else {
            pattern.prefix_end()
        };
        if let Some(to) = to
            && end.as_deref().is_none_or(|end| end > to)
        {
            end = Some(to.to_owned());
        }
        let mut start = pattern.literal_prefix().max(from).to_owned();
        if let Some(after) = self.after {
            start = start.max(format!("{after}{JUST_AFTER}"));
        }
        let mut bounds = vec![Bound { column: 0, op: Op::Ge, key: Key::Text(&start) }];
        if let Some(end) = &end {
            if start >= *end {
                return Ok(());
            }
            bounds.push(Bound { column: 0, op: Op::Lt, key: Key::Text(end) });
        }
        SECRETS.with(|table| {
            table.scan(BY_NAME, &bounds, Direction::Forward, |row| {
                pgrx::check_for_interrupts!();
                let name = row.text(column::NAME).ok_or_else(unreadable)?;
                if self.is_wanted(row) && pattern.matches(name) && listed(name) {
                    with_scratch(|| each(info::of(row)?))?;
                    *left -= 1;
                }
                Ok(*left > 0)
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
