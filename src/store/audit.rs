//! `vault.audit_log`, `vault.audit_spools`, `vault.audit_pending`.
//!
//! The relay, in transactions of its own. The lock on `audit_spools` makes it the only writer, as ids without gaps and a
//! chain over the rows need; readers and dumps are not in its way.

use hyperion_vault_core::audit::{Client, Outcome, Record, Spool};
use hyperion_vault_core::envelope::Id;
use pgrx::pg_sys::{self, Datum};
use std::cell::Cell;

use super::secrets::TIMESTAMPTZ;
use crate::audit::relay::Taken;
use crate::error::Result;
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
    last: Cell<i64>,
}

static INSERT: Statement = Statement::on_log(
    c"INSERT INTO vault.audit_log (id, at, spool_id, position, system_id, timeline, node, session_role, role, token, client,
        client_addr, action, function, subject, version, outcome, sqlstate, detail, occurrences)
      VALUES ($1, $2, $3, $4, $5::numeric, $6, $7, $8, $9, $10, $11, $12::inet, $13, $14, $15, $16, $17, $18, $19, $20)",
    &[
        pg_sys::INT8OID,
        TIMESTAMPTZ,
        pg_sys::UUIDOID,
        pg_sys::INT8OID,
        pg_sys::TEXTOID,
        pg_sys::INT8OID,
        pg_sys::TEXTOID,
        pg_sys::TEXTOID,
        pg_sys::TEXTOID,
        pg_sys::TEXTOID,
        pg_sys::TEXTOID,
        pg_sys::TEXTOID,
        pg_sys::TEXTOID,
        pg_sys::TEXTOID,
        pg_sys::TEXTOID,
        pg_sys::INT4OID,
        pg_sys::TEXTOID,
        pg_sys::TEXTOID,
        pg_sys::TEXTOID,
        pg_sys::INT8OID,
    ],
);
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
        Ok(Self { spi, spool, last: Cell::new(last) })
    }

    /// As the table has it, under the lock.
    pub fn taken(&self) -> Result<Taken> {
        taken_in(&self.spi, self.spool)
    }

    /// Adds the row of a record, whose outcome is known better by now.
    pub fn insert(&self, spool: &Spool, position: i64, record: &Record<'_>, outcome: Outcome) -> Result<()> {
        let id = self.last.get() + 1;
        self.last.set(id);
        let system_id = spool.system_id.to_string();
        let (client, address) = match record.client {
            Client::None => ("none".to_owned(), None),
            Client::Local => ("local".to_owned(), None),
            Client::Ip(address) => ("tcp".to_owned(), Some(address.to_string())),
            Client::Internal(kind) => (format!("internal:{kind}"), None),
        };
        let sqlstate = record.sqlstate.map(|state| String::from_utf8_lossy(&state).into_owned());
        let bigint = |value: i64| Bind::Raw(Some(Datum::from(value)));
        with_scratch(|| -> Result<()> {
            self.spi.run(
                &INSERT,
                &[
                    bigint(id),
                    bigint(record.at),
                    Bind::Uuid(self.spool),
                    bigint(position),
                    Bind::Text(&system_id),
                    bigint(i64::from(record.timeline)),
                    Bind::Text(record.node),
                    Bind::Text(record.session_role),
                    Bind::Text(record.role),
                    Bind::OptText(record.token),
                    Bind::Text(&client),
                    Bind::OptText(address.as_deref()),
                    Bind::Text(record.action),
                    Bind::Text(record.function),
                    Bind::OptText(record.subject),
                    Bind::OptInt(record.version),
                    Bind::Text(outcome.as_str()),
                    Bind::OptText(sqlstate.as_deref()),
                    Bind::OptText(record.detail),
                    bigint(i64::from(record.occurrences.max(1))),
                ],
            )?;
            if outcome == Outcome::Pending {
                self.spi.run(&AWAIT, &[bigint(id), Bind::Text(&record.xid.to_string())])?;
            }
            Ok(())
        })
    }

    /// The spool has been taken that far.
    pub fn advance(&self, taken: Taken) -> Result<()> {
        let now = Datum::from(crate::pg::clock());
        self.spi
            .run(
                &ADVANCE,
                &[
                    Bind::Uuid(self.spool),
                    Bind::Raw(Some(Datum::from(taken.position))),
                    Bind::Raw(Some(Datum::from(taken.records))),
                    Bind::Raw(Some(now)),
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

static PENDING: Statement = Statement::query(
    c"SELECT p.id, l.system_id::text, l.timeline, p.xid FROM vault.audit_pending p JOIN vault.audit_log l ON l.id = p.id
       ORDER BY p.id LIMIT $1",
    &[pg_sys::INT4OID],
);

pub fn pending(most: i32) -> Result<Vec<Pending>> {
    let spi = Spi::connect()?;
    let rows = spi.run(&PENDING, &[Bind::Int(most)])?;
    let pending = rows.iter().map(|row| {
        Some(Pending {
            id: row.bigint(1)?,
            system_id: row.text(2)?.parse().ok()?,
            timeline: u32::try_from(row.bigint(3)?).ok()?,
            xid: row.text(4)?.parse().ok()?,
        })
    });
    Ok(pending.flatten().collect())
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
