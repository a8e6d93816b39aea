//! `vault.audit_log`, `vault.audit_spools`, `vault.audit_pending`.
//!
//! The relay, in transactions of its own. The lock on `audit_spools` makes it the only writer, as ids without gaps and a
//! chain over the rows need; readers and dumps are not in its way.

use std::ffi::CStr;

use hyperion_vault_core::audit::{Client, Outcome, Record, Spool};
use hyperion_vault_core::copy::Rows;
use hyperion_vault_core::envelope::Id;
use pgrx::pg_sys::{self, Datum};

use super::secrets::TIMESTAMPTZ;
use crate::audit::relay::Taken;
use crate::error::{Result, VaultError};
use crate::pg::copy;
use crate::pg::memory::with_scratch;
use crate::pg::spi::{Bind, Spi, Statement};

static TAKEN: Statement = Statement::query(
    c"SELECT position, records FROM vault.audit_spools WHERE spool_id = $1",
    &[pg_sys::UUIDOID],
);

/// How far a spool has been taken.
pub fn taken(spool: Id) -> Result<Taken> {
    taken_in(&Spi::connect()?, spool)
}

fn taken_in(spi: &Spi, spool: Id) -> Result<Taken> {
    let rows = spi.run(&TAKEN, &[Bind::Uuid(spool)])?;
    Ok(rows.first().map_or_else(Taken::default, |row| Taken {
        position: row.bigint(1).unwrap_or(0),
        records: row.bigint(2).unwrap_or(0),
    }))
}

static LOCK: Statement = Statement::on_log(c"LOCK TABLE vault.audit_spools IN SHARE ROW EXCLUSIVE MODE", &[]);
static LAST: Statement = Statement::query(c"SELECT max(id) FROM vault.audit_log", &[]);

/// The one writer of the log, for the length of a transaction.
pub struct Writer {
    spi: Spi,
    spool: Id,
    last: i64,
    rows: Rows,
    /// Ids and transactions of the rows whose outcome is not known yet.
    pending: Vec<(i64, u64)>,
}

const COLUMNS: [&CStr; 20] = [
    c"id",
    c"at",
    c"spool_id",
    c"position",
    c"system_id",
    c"timeline",
    c"node",
    c"session_role",
    c"role",
    c"token",
    c"client",
    c"client_addr",
    c"action",
    c"function",
    c"subject",
    c"version",
    c"outcome",
    c"sqlstate",
    c"detail",
    c"occurrences",
];
static ADVANCE: Statement = Statement::on_log(
    c"INSERT INTO vault.audit_spools (spool_id, position, records, updated_at) VALUES ($1, $2, $3, $4)
      ON CONFLICT (spool_id) DO UPDATE SET position = excluded.position, records = excluded.records,
        updated_at = excluded.updated_at",
    &[pg_sys::UUIDOID, pg_sys::INT8OID, pg_sys::INT8OID, TIMESTAMPTZ],
);
static AWAIT: Statement = Statement::on_log(
    c"INSERT INTO vault.audit_pending (id, xid) VALUES ($1, $2)",
    &[pg_sys::INT8OID, pg_sys::TEXTOID],
);

impl Writer {
    pub fn begin(spool: Id) -> Result<Self> {
        let spi = Spi::connect()?;
        let last = locked(&spi)?;
        Ok(Self { spi, spool, last, rows: Rows::new(COLUMNS.len() as i16), pending: Vec::new() })
    }

    /// As the table has it, under the lock.
    pub fn taken(&self) -> Result<Taken> {
        taken_in(&self.spi, self.spool)
    }

    /// Adds the row of a record, whose outcome is known better by now. It is in the table after [`Writer::finish`].
    pub fn add(&mut self, spool: &Spool, position: i64, record: &Record<'_>, outcome: Outcome) {
        self.last += 1;
        let (id, spool_id) = (self.last, self.spool.0);
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
        // As COLUMNS has them.
        self.rows.row(|row| {
            row.bigint(id);
            row.bigint(record.at);
            row.uuid(spool_id);
            row.bigint(position);
            row.numeric(spool.system_id);
            row.bigint(i64::from(record.timeline));
            row.text(record.node);
            row.text(record.session_role);
            row.text(record.role);
            row.opt_text(record.token);
            row.text(client);
            row.inet(address);
            row.text(record.action);
            row.text(record.function);
            row.opt_text(record.subject);
            row.int(record.version);
            row.text(outcome.as_str());
            // Decoded from ASCII.
            row.opt_text(record.sqlstate.as_ref().and_then(|state| std::str::from_utf8(state).ok()));
            row.opt_text(record.detail);
            row.bigint(i64::from(record.occurrences.max(1)));
        });
    }

    /// Writes what was added, and that the spool has been taken that far.
    pub fn finish(self, taken: Taken) -> Result<()> {
        let rows = self.rows.count();
        if rows > 0 {
            let copied = with_scratch(|| copy::binary(c"audit_log", &COLUMNS, &self.rows.finish()))?;
            if copied != rows {
                // A trigger of somebody's that leaves rows out: the position must not go past them.
                return Err(VaultError::internal(format!("the audit log took {copied} of {rows} rows")));
            }
        }
        for (id, xid) in self.pending {
            self.spi.run(&AWAIT, &[Bind::Raw(Some(Datum::from(id))), Bind::Text(&xid.to_string())])?;
        }
        self.spi
            .run(
                &ADVANCE,
                &[
                    Bind::Uuid(self.spool),
                    Bind::Raw(Some(Datum::from(taken.position))),
                    Bind::Raw(Some(Datum::from(taken.records))),
                    Bind::Raw(Some(datum_now())),
                ],
            )
            .map(drop)
    }
}

/// Takes the writer's lock. The last id there is.
///
/// Ids grow by one, and begin at the clock: seconds since 1970, times 2^20. A log that is restored into a database whose
/// relay has written rows already then neither collides with them nor comes after them.
fn locked(spi: &Spi) -> Result<i64> {
    // Plans are kept, and one made while the log was empty must not read the hundred million rows it has later.
    spi.prefer_index_order();
    spi.run(&LOCK, &[])?;
    let rows = spi.run(&LAST, &[])?;
    let last = rows.first().and_then(|row| row.bigint(1));
    Ok(last.unwrap_or_else(|| (crate::pg::unix_now() as i64) << 20))
}

/// A row that waits for its transaction.
pub struct Pending {
    pub id: i64,
    pub system_id: u64,
    pub timeline: u32,
    pub xid: u64,
}

// OFFSET 0 keeps this a look by key for each: merged or hashed, the log would be read from its beginning.
static PENDING: Statement = Statement::query(
    c"SELECT p.id, l.system_id, l.timeline, p.xid
        FROM vault.audit_pending p,
             LATERAL (SELECT system_id::text, timeline FROM vault.audit_log WHERE id = p.id OFFSET 0) l
       WHERE p.id > $1 ORDER BY p.id LIMIT $2",
    &[pg_sys::INT8OID, pg_sys::INT4OID],
);

/// Some of the pending rows, in their order.
pub struct Page {
    pub rows: Vec<Pending>,
    /// The last one's id, if there may be more behind it.
    pub next: Option<i64>,
}

/// Pending rows behind one, at most so many.
pub fn pending(after: i64, most: i32) -> Result<Page> {
    let spi = Spi::connect()?;
    spi.prefer_index_order();
    let rows = spi.run(&PENDING, &[Bind::Raw(Some(Datum::from(after))), Bind::Int(most)])?;
    let pending = rows.iter().map(|row| {
        Some(Pending {
            id: row.bigint(1)?,
            system_id: row.text(2)?.parse().ok()?,
            timeline: u32::try_from(row.bigint(3)?).ok()?,
            xid: row.text(4)?.parse().ok()?,
        })
    });
    let next = rows.iter().nth(most as usize - 1).and_then(|row| row.bigint(1));
    Ok(Page { next, rows: pending.flatten().collect() })
}

static RESOLVE: Statement = Statement::on_log(
    c"INSERT INTO vault.audit_log (id, at, spool_id, position, system_id, timeline, node, session_role, role, token, client,
        client_addr, action, function, subject, version, outcome, detail, occurrences, resolves)
      SELECT $1, $2, spool_id, position, system_id, timeline, node, session_role, role, token, client, client_addr, action,
        function, subject, version, $4, detail, occurrences, id FROM vault.audit_log WHERE id = $3",
    &[pg_sys::INT8OID, TIMESTAMPTZ, pg_sys::INT8OID, pg_sys::TEXTOID],
);
static FORGET: Statement =
    Statement::on_log(c"DELETE FROM vault.audit_pending WHERE id = $1", &[pg_sys::INT8OID]);

/// Adds a row for each pending one whose outcome is known.
pub fn resolve(resolved: &[(i64, Outcome)]) -> Result<()> {
    if resolved.is_empty() {
        return Ok(());
    }
    let spi = Spi::connect()?;
    let mut last = locked(&spi)?;
    let now = datum_now();
    for (id, outcome) in resolved {
        last += 1;
        let id = Datum::from(*id);
        spi.run(
            &RESOLVE,
            &[
                Bind::Raw(Some(Datum::from(last))),
                Bind::Raw(Some(now)),
                Bind::Raw(Some(id)),
                Bind::Text(outcome.as_str()),
            ],
        )?;
        spi.run(&FORGET, &[Bind::Raw(Some(id))])?;
    }
    Ok(())
}

fn datum_now() -> Datum {
    Datum::from(crate::pg::clock())
}
