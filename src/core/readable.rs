//! How a scan of readable secrets goes: what bounds it, what it fetches next, and when it may stop early.
//!
//! Runs in the backend of the caller, for `vault.decrypted_secrets`. A scan goes in byte order of the names and keeps
//! nothing but its position between two rows, so the rights of each page are those of the moment.
//!
//! The trap it avoids: the server counts the rows that a scan fetches, and shows the counts to everybody. A caller who
//! could make a scan stop anywhere would find out how many names lie between two others. So only two things bound a
//! fetch: names that the caller has given and may read, and the spans of the caller's own rules. A fetch ends early only
//! inside a span that one rule allows wholly; any other span is fetched to its end before its first row is shown.

use std::collections::{BTreeSet, VecDeque};

use crate::policy::Span;

/// Rows of the first page, for queries with a small LIMIT.
const FIRST_PAGE: usize = 16;
/// Rows of a page at most: up to 1 MiB of descriptions.
const PAGE: usize = 256;
/// Sorts before every character a name may have, so that `x` followed by it is the place right after the name `x`.
const JUST_AFTER: char = '\u{1}';

/// How many names a condition of a query can stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Expressions of one name each.
    pub names: usize,
    /// Expressions of arrays of names, of unknown length.
    pub arrays: usize,
}

/// Which of several conditions on the name bounds a scan; all of them are checked on its rows anyway. The one that stands
/// for the fewest names, as far as the planner can tell.
pub fn narrowest(conditions: &[Terms]) -> Option<usize> {
    (0..conditions.len()).min_by_key(|i| (conditions[*i].arrays, conditions[*i].names))
}

/// What bounds a scan, known when it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bound {
    /// The query does not: the caller's rights do.
    Rights,
    /// Conditions that name the rows.
    Names(Vec<String>),
}

/// A scan that has begun.
#[derive(Debug)]
pub enum Walk {
    /// Names that are left, in byte order, each once.
    Names(VecDeque<String>),
    Pages(Pages),
}

impl Walk {
    pub fn new(bound: Bound) -> Self {
        match bound {
            Bound::Rights => Self::Pages(Pages { position: Some(String::new()), rows: FIRST_PAGE }),
            Bound::Names(names) => {
                Self::Names(names.into_iter().collect::<BTreeSet<_>>().into_iter().collect())
            }
        }
    }
}

/// A scan of whatever the caller may read.
#[derive(Debug)]
pub struct Pages {
    /// The next row has this name or a later one; None: there is none.
    position: Option<String>,
    rows: usize,
}

/// Where rows come from.
pub trait Source {
    type Row;
    type Error;

    /// At most `rows` rows from `start` to before `end`, in byte order of their names.
    fn page(&mut self, start: &str, end: Option<&str>, rows: usize) -> Result<Vec<Self::Row>, Self::Error>;

    fn name(row: &Self::Row) -> &str;

    /// Whether a row of a span that is not allowed wholly is worth keeping until the span is at its end.
    fn keep(&mut self, row: &Self::Row) -> Result<bool, Self::Error>;
}

impl Pages {
    /// The next rows, in order; none may be among them although more follow. None at the end of the scan.
    ///
    /// `spans` are the caller's now. They hold rows that are not to be shown: who shows them asks.
    pub fn next<S: Source>(
        &mut self,
        spans: &[Span],
        source: &mut S,
    ) -> Result<Option<Vec<S::Row>>, S::Error> {
        let Some(position) = self.position.take() else { return Ok(None) };
        let ahead = |span: &&Span| span.end.as_ref().is_none_or(|end| *end > position);
        let Some(span) = spans.iter().find(ahead) else { return Ok(None) };
        let mut start = position.max(span.start.clone());
        let end = span.end.as_deref();
        if span.whole {
            let page = source.page(&start, end, self.rows)?;
            self.position = match after(&page, self.rows, S::name) {
                Some(next) => Some(next),
                None => span.end.clone(),
            };
            self.rows = (self.rows * 2).min(PAGE);
            return Ok(Some(page));
        }
        let mut kept = Vec::new();
        loop {
            let page = source.page(&start, end, PAGE)?;
            let next = after(&page, PAGE, S::name);
            for row in page {
                if source.keep(&row)? {
                    kept.push(row);
                }
            }
            match next {
                Some(next) => start = next,
                None => break,
            }
        }
        self.position = span.end.clone();
        Ok(Some(kept))
    }
}

/// Where the rows behind a full page begin. None: the page was the last.
fn after<R>(page: &[R], rows: usize, name: impl Fn(&R) -> &str) -> Option<String> {
    page.last().filter(|_| page.len() >= rows).map(|last| format!("{}{JUST_AFTER}", name(last)))
}

#[cfg(test)]
mod tests;
