//! `vault.audit_log`, `vault.audit_spools`, `vault.audit_pending`.
//!
//! The relay, in transactions of its own. The lock on `audit_spools` makes it the only writer, as ids without gaps and a
//! chain over the rows need; readers and dumps are not in its way. The trap it avoids: a log that costs the server more
//! than what it records; rows are handed over many at a time, and texts that repeat from row to row are made once.

use hyperion_vault_core::audit::{Client, Outcome, Record, Spool};
use hyperion_vault_core::envelope::Id;
use pgrx::pg_sys::Datum;

use crate::audit::relay::Taken;
use crate::error::Result;
use crate::pg::datum;
use crate::pg::heap::{Assignment, Write};
use crate::pg::scan::{Bound, Direction, Index, Key, Op, Table, equal};
use crate::pg::tuple::Tuple;

thread_local! {
    static LOG: Table = const {
        Table::new(
            c"audit_log",
            &[
                c"id", c"at", c"spool_id", c"position", c"system_id", c"timeline", c"node", c"session_role", c"role",
                c"token", c"client", c"client_addr", c"action", c"function", c"subject", c"version", c"outcome",
                c"sqlstate", c"detail", c"occurrences", c"resolves",
            ],
            &[Index { name: c"audit_log_pkey", columns: &[log::ID] }],
        )
        .in_every_version()
    };
    static SPOOLS: Table = const {
        Table::new(
            c"audit_spools",
            &[c"spool_id", c"position", c"records", c"updated_at"],
            &[Index { name: c"audit_spools_pkey", columns: &[spool::ID] }],
        )
        .in_every_version()
    };
    static PENDING: Table = const {
        Table::new(
            c"audit_pending",
            &[c"id", c"xid"],
            &[Index { name: c"audit_pending_pkey", columns: &[pending::ID] }],
        )
        .in_every_version()
    };
}

/// Columns of [`LOG`].
mod log {
    pub const ID: i16 = 1;
    pub const AT: i16 = 2;
    pub const SPOOL_ID: i16 = 3;
    pub const POSITION: i16 = 4;
    pub const SYSTEM_ID: i16 = 5;
    pub const TIMELINE: i16 = 6;
    pub const NODE: i16 = 7;
    pub const SESSION_ROLE: i16 = 8;
    pub const ROLE: i16 = 9;
    pub const TOKEN: i16 = 10;
    pub const CLIENT: i16 = 11;
    pub const CLIENT_ADDR: i16 = 12;
    pub const ACTION: i16 = 13;
    pub const FUNCTION: i16 = 14;
    pub const SUBJECT: i16 = 15;
    pub const VERSION: i16 = 16;
    pub const OUTCOME: i16 = 17;
    pub const SQLSTATE: i16 = 18;
    pub const DETAIL: i16 = 19;
    pub const OCCURRENCES: i16 = 20;
    pub const RESOLVES: i16 = 21;
}
/// Columns of [`SPOOLS`].
mod spool {
    pub const ID: i16 = 1;
    pub const POSITION: i16 = 2;
    pub const RECORDS: i16 = 3;
    pub const UPDATED_AT: i16 = 4;
}
/// Columns of [`PENDING`].
mod pending {
    pub const ID: i16 = 1;
    pub const XID: i16 = 2;
}

/// How far a spool has been taken.
pub fn taken(spool: Id) -> Result<Taken> {
    SPOOLS.with(|table| {
        table.point(0, &[Key::Uuid(spool)], None, |row| {
            Ok(row.map_or_else(Taken::default, |row| Taken {
                position: row.bigint(self::spool::POSITION).unwrap_or(0),
                records: row.bigint(self::spool::RECORDS).unwrap_or(0),
            }))
        })
    })
}

/// The one writer of the log, for the length of a transaction.
pub struct Writer {
    write: Write,
    spool: Id,
    last: i64,
    rows: Vec<Row>,
    texts: [Repeated; 7],
    system: Option<(u64, Datum)>,
    /// Ids and transactions of the rows whose outcome is not known yet.
    pending: Vec<(i64, u64)>,
}

type Row = [Assignment; 20];

/// The text that a column had in the row before, and its datum.
#[derive(Default)]
struct Repeated(Option<(String, Datum)>);

impl Repeated {
    fn datum(&mut self, text: &str) -> Option<Datum> {
        match &self.0 {
            Some((known, datum)) if known == text => Some(*datum),
            _ => {
                let datum = datum::varlena(text.as_bytes());
                self.0 = Some((text.to_owned(), datum));
                Some(datum)
            }
        }
    }
}

impl Writer {
    pub fn begin(spool: Id) -> Result<Self> {
        let write = Write::begin();
        let last = locked(&write)?;
        let texts = std::array::from_fn(|_| Repeated::default());
        Ok(Self { write, spool, last, rows: Vec::new(), texts, system: None, pending: Vec::new() })
    }

    /// As the table has it, under the lock.
    pub fn taken(&self) -> Result<Taken> {
        taken(self.spool)
    }

    /// Adds the row of a record, whose outcome is known better by now. It is in the table after [`Writer::finish`].
    pub fn add(&mut self, spool: &Spool, position: i64, record: &Record<'_>, outcome: Outcome) {
        self.last += 1;
        let id = self.last;
        if outcome == Outcome::Pending {
            self.pending.push((id, record.xid));
        }
        let internal;
        let (client, address) = match record.client {
            Client::None => ("none", None),
            Client::Local => ("local", None),
            Client::Ip(address) => ("tcp", Some(address)),
            Client::Internal(kind) => {
                internal = format!("internal:{kind}");
                (internal.as_str(), None)
            }
        };
        let system_id = match self.system {
            Some((known, datum)) if known == spool.system_id => datum,
            _ => {
                let datum = datum::numeric_from(spool.system_id);
                self.system = Some((spool.system_id, datum));
                datum
            }
        };
        let number = |value: i64| Some(Datum::from(value));
        let text = |text: &str| datum::varlena(text.as_bytes());
        let [node, session_role, role, by_client, action, function, by_outcome] = &mut self.texts;
        self.rows.push([
            (log::ID, number(id)),
            (log::AT, number(record.at)),
            (log::SPOOL_ID, Some(datum::uuid(spool.id))),
            (log::POSITION, number(position)),
            (log::SYSTEM_ID, Some(system_id)),
            (log::TIMELINE, number(i64::from(record.timeline))),
            (log::NODE, node.datum(record.node)),
            (log::SESSION_ROLE, session_role.datum(record.session_role)),
            (log::ROLE, role.datum(record.role)),
            (log::TOKEN, record.token.map(text)),
            (log::CLIENT, by_client.datum(client)),
            (log::CLIENT_ADDR, address.map(datum::inet_from)),
            (log::ACTION, action.datum(record.action)),
            (log::FUNCTION, function.datum(record.function)),
            (log::SUBJECT, record.subject.map(text)),
            (log::VERSION, record.version.map(Datum::from)),
            (log::OUTCOME, by_outcome.datum(outcome.as_str())),
            // Decoded from ASCII.
            (log::SQLSTATE, record.sqlstate.as_ref().map(|state| datum::varlena(state))),
            (log::DETAIL, record.detail.map(text)),
            (log::OCCURRENCES, number(i64::from(record.occurrences.max(1)))),
        ]);
    }

    /// Writes what was added, and that the spool has been taken that far.
    pub fn finish(self, taken: Taken) -> Result<()> {
        let (write, rows) = (&self.write, &self.rows);
        if !rows.is_empty() {
            LOG.with(|table| {
                table.insert_all(write, rows.len(), |place, row| row.extend_from_slice(&rows[place]))
            })?;
        }
        PENDING.with(|table| {
            table.insert_all(write, self.pending.len(), |place, row| {
                let (id, xid) = self.pending[place];
                row.push((pending::ID, Some(Datum::from(id))));
                row.push((pending::XID, Some(datum::varlena(xid.to_string().as_bytes()))));
            })
        })?;
        let progress = [
            (spool::POSITION, Some(Datum::from(taken.position))),
            (spool::RECORDS, Some(Datum::from(taken.records))),
            (spool::UPDATED_AT, Some(Datum::from(crate::pg::clock()))),
        ];
        SPOOLS.with(|table| {
            let key = equal([Key::Uuid(self.spool)]);
            let held = table.hold(write)?;
            let known = table.find(0, &key, Direction::Forward, |row| Ok(Some(held.take(row))))?;
            match known {
                Some(row) => table.update(write, &row, &progress).map(drop),
                None => {
                    let mut row = vec![(spool::ID, Some(datum::uuid(self.spool)))];
                    row.extend(progress);
                    table.insert(write, &row).map(drop)
                }
            }
        })
    }
}

/// Takes the writer's lock. The last id there is.
///
/// Ids grow by one, and begin at the clock: seconds since 1970, times 2^20. A log that is restored into a database whose
/// relay has written rows already then neither collides with them nor comes after them.
fn locked(write: &Write) -> Result<i64> {
    SPOOLS.with(|table| table.lock_alone(write))?;
    let last = LOG.with(|table| table.find(0, &[], Direction::Backward, |row| Ok(row.bigint(log::ID))))?;
    Ok(last.unwrap_or_else(|| (crate::pg::unix_now() as i64) << 20))
}

/// A row that waits for its transaction.
pub struct Pending {
    pub id: i64,
    pub system_id: u64,
    pub timeline: u32,
    pub xid: u64,
}

/// Some of the pending rows, in their order.
pub struct Page {
    pub rows: Vec<Pending>,
    /// The last one's id, if there may be more behind it.
    pub next: Option<i64>,
}

/// Pending rows behind one, at most so many.
pub fn pending(after: i64, most: usize) -> Result<Page> {
    let mut found: Vec<(i64, Option<u64>)> = Vec::new();
    let behind = [Bound { column: 0, op: Op::Gt, key: Key::Long(after) }];
    PENDING.with(|table| {
        table.scan(0, &behind, Direction::Forward, |row| {
            if let Some(id) = row.bigint(self::pending::ID) {
                found.push((id, row.text(self::pending::XID).and_then(|xid| xid.parse().ok())));
            }
            Ok(found.len() < most)
        })
    })?;
    let next = found.last().filter(|_| found.len() == most).map(|(id, _)| *id);
    let mut rows = Vec::with_capacity(found.len());
    for (id, xid) in found {
        let written = LOG.with(|table| {
            table.point(0, &[Key::Long(id)], None, |row| {
                Ok(row.and_then(|row| {
                    let system_id = row.numeric(log::SYSTEM_ID)?.parse().ok()?;
                    Some((system_id, u32::try_from(row.bigint(log::TIMELINE)?).ok()?))
                }))
            })
        })?;
        if let (Some((system_id, timeline)), Some(xid)) = (written, xid) {
            rows.push(Pending { id, system_id, timeline, xid });
        }
    }
    Ok(Page { rows, next })
}

/// Adds a row for each pending one whose outcome is known.
pub fn resolve(resolved: &[(i64, Outcome)]) -> Result<()> {
    if resolved.is_empty() {
        return Ok(());
    }
    let write = Write::begin();
    let mut last = locked(&write)?;
    let now = crate::pg::clock();
    for (id, outcome) in resolved {
        let pending = LOG.with(|table| {
            let held = table.hold(&write)?;
            table.find(0, &equal([Key::Long(*id)]), Direction::Forward, |row| Ok(Some(held.take(row))))
        })?;
        if let Some(pending) = pending {
            last += 1;
            let row = resolving(&pending.row()?, last, now, *outcome);
            LOG.with(|table| table.insert(&write, &row))?;
        }
        PENDING.with(|table| {
            let key = equal([Key::Long(*id)]);
            let held = table.hold(&write)?;
            let row = table.find(0, &key, Direction::Forward, |row| Ok(Some(held.take(row))))?;
            row.map_or(Ok(()), |row| table.delete(&write, &row))
        })?;
    }
    Ok(())
}

/// The row that tells what became of a pending one.
fn resolving(row: &Tuple<'_>, id: i64, now: i64, outcome: Outcome) -> Vec<Assignment> {
    let number = |column| (column, row.bigint(column).map(Datum::from));
    let as_stored = |column| (column, row.pointer(column));
    vec![
        (log::ID, Some(Datum::from(id))),
        (log::AT, Some(Datum::from(now))),
        (log::SPOOL_ID, row.uuid(log::SPOOL_ID).map(datum::uuid)),
        number(log::POSITION),
        as_stored(log::SYSTEM_ID),
        number(log::TIMELINE),
        as_stored(log::NODE),
        as_stored(log::SESSION_ROLE),
        as_stored(log::ROLE),
        as_stored(log::TOKEN),
        as_stored(log::CLIENT),
        as_stored(log::CLIENT_ADDR),
        as_stored(log::ACTION),
        as_stored(log::FUNCTION),
        as_stored(log::SUBJECT),
        (log::VERSION, row.int(log::VERSION).map(Datum::from)),
        (log::OUTCOME, Some(datum::varlena(outcome.as_str().as_bytes()))),
        as_stored(log::DETAIL),
        number(log::OCCURRENCES),
        (log::RESOLVES, row.bigint(log::ID).map(Datum::from)),
    ]
}
