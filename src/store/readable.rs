//! What is known of a secret without opening it, by name or a page at a time: the rows behind `vault.decrypted_secrets`.
//!
//! Client backends, main thread, primary or standby. The trap it avoids: rows that are kept while the caller's query runs.
//! They are copies; each look, at one name or at a page, is a scan of its own under the latest snapshot.

use hyperion_vault_core::IpNet;
use hyperion_vault_core::envelope::Id;
use hyperion_vault_core::secret::Presence;

use super::secrets::{BY_NAME, SECRETS, column, presence, unreadable};
use crate::area;
use crate::error::Result;
use crate::pg::memory::with_scratch;
use crate::pg::scan::{Bound, Direction, Key, Op};
use crate::pg::tuple::Tuple;

/// A secret without its value. Whether a caller may see it is not decided here.
pub struct Readable {
    pub id: Id,
    pub name: String,
    pub description: Option<String>,
    pub created_at: i64,
    pub updated_at: i64,
    /// Where it may be read from; Some(empty) also for a list that cannot be read, which admits nobody.
    pub allowed_ips: Option<Vec<IpNet>>,
    expires_at: Option<i64>,
    recover_until: Option<i64>,
}

impl Readable {
    /// The presence now of a secret that ends as this row said.
    pub fn presence(&self) -> Presence {
        presence(self.expires_at, self.recover_until)
    }

    fn read(row: &Tuple<'_>) -> Result<Self> {
        let read = || {
            Some(Self {
                id: row.uuid(column::ID)?,
                name: row.text(column::NAME)?.to_owned(),
                description: row.text(column::DESCRIPTION).map(str::to_owned),
                created_at: row.timestamp(column::CREATED_AT)?,
                updated_at: row.timestamp(column::UPDATED_AT)?,
                allowed_ips: row.cidr_array(column::ALLOWED_IPS).map(Option::unwrap_or_default),
                expires_at: row.timestamp(column::EXPIRES_AT),
                recover_until: row.timestamp(column::RECOVER_UNTIL),
            })
        };
        read().ok_or_else(unreadable)
    }
}

/// The row of that name as of now, be its secret live or not.
pub fn named(name: &str) -> Result<Option<Readable>> {
    let places = area::get().ok().map(|area| area.places());
    SECRETS.with(|table| {
        table.point(BY_NAME, &[Key::Text(name)], places, |row| row.map(Readable::read).transpose())
    })
}

/// At most `rows` rows whose names are from `start` to before `end`, in byte order.
pub fn page(start: &str, end: Option<&str>, rows: usize) -> Result<Vec<Readable>> {
    crate::pg::check_for_interrupts();
    let mut page = Vec::new();
    let mut bounds = vec![Bound { column: 0, op: Op::Ge, key: Key::Text(start) }];
    bounds.extend(end.map(|end| Bound { column: 0, op: Op::Lt, key: Key::Text(end) }));
    // What the scan allocates, and copies of what was compressed, go with the page: a caller may ask for many of them.
    with_scratch(|| {
        SECRETS.with(|table| {
            table.scan(BY_NAME, &bounds, Direction::Forward, |row| {
                page.push(Readable::read(row)?);
                Ok(page.len() < rows)
            })
        })
    })?;
    Ok(page)
}
