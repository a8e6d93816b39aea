//! Lists and counts of secrets: what may be known without opening any.
//!
//! Client backends, main thread, primary or standby. The trap it avoids: a page that is found by walking over all the
//! pages before it. Both ends of the range are plain parameters, so that even a plan made for no values in particular
//! descends the index to the first name of the page.

use hyperion_vault_core::policy::Reach;
use hyperion_vault_core::secret::Pattern;
use pgrx::pg_sys::{self, Datum};

use super::sql::{info, live, sql, unexpired};
use crate::error::Result;
use crate::pg::spi::{Bind, Spi, Statement};

/// The rows of one statement: what it returns is in memory at once, and a secret's properties take up to 70 kB.
const CHUNK: i32 = 500;
/// A page of one name is not looked for name by name.
const MIN_CHUNK: i32 = 20;
/// Sorts before every character a name may have, so that `x` followed by it is the place right after the name `x`.
const JUST_AFTER: char = '\u{1}';

/// `$1` first name of the page, `$2` pattern, `$3` rows, `$4` end of the range.
macro_rules! page {
    ($condition:expr, $end:expr) => {
        sql!(
            "SELECT ",
            info!(),
            ", s.name FROM vault.secrets s WHERE s.name >= $1 AND s.name LIKE $2 AND ",
            $condition,
            $end,
            " ORDER BY s.name LIMIT $3"
        )
    };
}

const TYPES: [pg_sys::Oid; 4] = [pg_sys::TEXTOID, pg_sys::TEXTOID, pg_sys::INT4OID, pg_sys::TEXTOID];
const RANGE_TYPES: &[pg_sys::Oid] = &TYPES;
const OPEN_TYPES: &[pg_sys::Oid] = TYPES.split_at(3).0;

static LIVE_RANGE: Statement = Statement::query(page!(live!(), " AND s.name < $4"), RANGE_TYPES);
static LIVE_OPEN: Statement = Statement::query(page!(live!(), ""), OPEN_TYPES);

macro_rules! buried {
    () => {
        concat!("s.recover_until > clock_timestamp() AND ", unexpired!())
    };
}
static BURIED_RANGE: Statement = Statement::query(page!(buried!(), " AND s.name < $4"), RANGE_TYPES);
static BURIED_OPEN: Statement = Statement::query(page!(buried!(), ""), OPEN_TYPES);

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
    /// Infos of the secrets whose names match and are `listed`, in byte order of the name.
    pub fn list(
        &self,
        spi: &Spi,
        listed: impl Fn(&str) -> bool,
        mut each: impl FnMut(Datum) -> Result<()>,
    ) -> Result<()> {
        spi.prefer_index_order();
        let everywhere = [(String::new(), None)];
        let ranges = match self.reach {
            Reach::Everywhere => &everywhere[..],
            Reach::Ranges(ranges) => ranges,
        };
        let mut left = self.max_rows;
        for (start, end) in ranges {
            left = self.list_range(spi, (start, end.as_deref()), left, &listed, &mut each)?;
            if left == 0 {
                break;
            }
        }
        Ok(())
    }

    /// The same within a range of names; returns how many rows are left to be found.
    fn list_range(
        &self,
        spi: &Spi,
        (from, to): (&str, Option<&str>),
        mut left: i32,
        listed: &impl Fn(&str) -> bool,
        each: &mut impl FnMut(Datum) -> Result<()>,
    ) -> Result<i32> {
        let pattern = self.pattern;
        let (range, open) =
            if self.deleted { (&BURIED_RANGE, &BURIED_OPEN) } else { (&LIVE_RANGE, &LIVE_OPEN) };
        let like = pattern.to_like();
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
        while left > 0 && end.as_ref().is_none_or(|end| start < *end) {
            // Not all that match need be listed: a few more at once than are asked for.
            let wanted = left.clamp(MIN_CHUNK, CHUNK);
            let mut binds = vec![Bind::Text(&start), Bind::Text(&like), Bind::Int(wanted)];
            let statement = match &end {
                Some(end) => {
                    binds.push(Bind::Text(end));
                    range
                }
                None => open,
            };
            let rows = spi.run(statement, &binds)?;
            let mut last = None;
            for row in rows.iter() {
                last = row.text(2).map(str::to_owned);
                if let (Some(info), Some(name)) = (row.raw(1), &last)
                    && left > 0
                    && listed(name)
                {
                    each(info)?;
                    left -= 1;
                }
            }
            match last {
                Some(last) if rows.len() == wanted as usize => start = format!("{last}{JUST_AFTER}"),
                _ => break,
            }
        }
        Ok(left)
    }
}

static COUNT: Statement = Statement::query(
    sql!(
        "SELECT count(*) FILTER (WHERE ",
        live!(),
        "), count(*) FILTER (WHERE s.kind = 'automatic' AND ",
        live!(),
        "), count(*) FILTER (WHERE ",
        buried!(),
        ") FROM vault.secrets s"
    ),
    &[],
);

/// How many secrets there are.
pub struct Counts {
    pub live: i64,
    /// Of the live ones.
    pub automatic: i64,
    /// Deleted and restorable.
    pub deleted: i64,
}

pub fn count(spi: &Spi) -> Result<Counts> {
    let rows = spi.run(&COUNT, &[])?;
    let row = rows.first();
    let column = |number| row.as_ref().and_then(|row| row.bigint(number)).unwrap_or(0);
    Ok(Counts { live: column(1), automatic: column(2), deleted: column(3) })
}
