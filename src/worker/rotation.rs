//! Scheduled rotation: automatic secrets get a new value when they are due.
//!
//! A worker of the vault's database, on a primary. One pass:
//!
//! ```text
//! find what is due → ask the key service for a DEK each, many at a time, no lock held
//!   → as answers come: one transaction for those that are there; for each of them
//!       lock, still due? → savepoint: the path of vault.rotate_secret → or: attempts, error, next try
//!     → one NOTIFY → commit
//! ```
//!
//! Exactly one rotation per due time: whether it is due is judged again under the row lock, in the transaction that
//! sets the next date. A row that somebody else has locked is skipped; a secret that fails comes back later; one whose
//! key takes long is overtaken by those whose keys are there. So nothing waits behind another.
//!
//! The traps it avoids: a row lock held while the key service is asked; a value that is used twice because the first
//! attempt failed after it went out; an outage of the key service counted as a failure of ten thousand secrets.

use std::collections::VecDeque;
use std::time::Duration;

use hyperion_vault_core::envelope::{DekContext, Format, Id};
use hyperion_vault_core::ipc::Request;
use hyperion_vault_core::schedule as decide;
use serde_json::json;

use crate::api::keys::{self, NewVersion, Opener};
use crate::api::update::{NewValue, Update};
use crate::audit;
use crate::error::{Kind, Result, VaultError};
use crate::kms_client::{self, Generated, Pipeline};
use crate::pg::heap::Write;
use crate::pg::transaction::{self, Failure};
use crate::pg::{catalog, clock, latch, monotonic_ms, worker};
use crate::store::schedule::{self, Due, Lane, LockedDue, Place, START};
use crate::store::secrets;

/// How many are found at a time: more than the key service is asked for at once, few enough to be held in memory.
const FOUND: usize = 256;
/// How many rotations share a transaction, so a flush to disk and a notification (whose payload ends at 8000 bytes). A
/// rotation takes less than a millisecond, so no row is locked for long.
const BATCH: usize = 64;
/// How long answers that are there wait for more, to share a transaction: a key service that takes 20 ms for each then
/// costs a flush to disk for some thirty rotations, not for seven.
const LINGER_MS: u64 = 50;
/// After so many the other work has its turn.
const PASS: usize = 2048;
/// What is kept of an error.
const MAX_ERROR_BYTES: usize = 500;

/// One secret on its way.
struct Job {
    due: Due,
    vault: Id,
    version_id: Id,
    /// The key of the current version, which a new password needs the user name of.
    opener: Option<(Id, Opener)>,
    /// How that key is asked for, until it is there.
    unwrap: Option<(Id, Request)>,
}

/// Rotates what is due in a lane. True if there may be more.
pub fn pass(lane: Lane) -> Result<bool> {
    let now = clock();
    let mut pass = Pass {
        lane,
        now,
        after: START,
        waiting: VecDeque::new(),
        exhausted: false,
        done: 0,
        pipeline: Pipeline::open()?,
        ready: Vec::new(),
        ready_at: 0,
        outage: None,
    };
    pass.run()?;
    match pass.outage {
        // The worker's own failure: it backs off as a whole.
        Some(error) => Err(error),
        None => Ok(!pass.exhausted),
    }
}

struct Pass {
    lane: Lane,
    now: i64,
    after: Place,
    waiting: VecDeque<Job>,
    /// All that is due has been found.
    exhausted: bool,
    done: usize,
    pipeline: Pipeline<Job>,
    ready: Vec<(Job, Result<Generated>)>,
    /// When the first of those was.
    ready_at: u64,
    /// The key service cannot be asked, or nothing recorded: nothing more is begun.
    outage: Option<VaultError>,
}

impl Pass {
    fn run(&mut self) -> Result<()> {
        loop {
            self.find()?;
            // Before, so that what has been answered makes room; and after, which wakes the key-service worker.
            self.collect();
            self.submit()?;
            self.collect();
            if self.is_batch() {
                let batch = self.batch();
                self.done += batch.len();
                if let Some(error) = rotate(self.now, batch)? {
                    self.outage = Some(error);
                }
                if worker::death_requested() {
                    return Ok(());
                }
            } else if self.ready.is_empty()
                && self.pipeline.is_empty()
                && (self.waiting.is_empty() || self.outage.is_some())
            {
                return Ok(());
            } else if self.ready.is_empty() {
                self.pipeline.wait();
            } else {
                latch::wait(Duration::from_millis(LINGER_MS / 2));
            }
        }
    }

    /// Whether to rotate now what is ready.
    fn is_batch(&self) -> bool {
        let waited = || monotonic_ms().saturating_sub(self.ready_at) >= LINGER_MS;
        self.ready.len() >= BATCH || !self.ready.is_empty() && (self.pipeline.is_empty() || waited())
    }

    /// The next ones to share a transaction; one that is handed to a target has its own, since it may wait for others.
    fn batch(&mut self) -> Vec<(Job, Result<Generated>)> {
        let own = self.ready.iter().take(BATCH).take_while(|(job, _)| !job.due.has_target).count();
        self.ready.drain(..own.max(1)).collect()
    }

    fn find(&mut self) -> Result<()> {
        let full = self.done + self.waiting.len() >= PASS;
        if self.exhausted || full || self.outage.is_some() || !self.waiting.is_empty() {
            return Ok(());
        }
        let (lane, now, after) = (self.lane, self.now, self.after);
        let (mut found, next) = transaction::run(|| {
            let due = schedule::due(lane, now, after, FOUND)?;
            if !due.stale.is_empty() {
                let write = Write::begin();
                due.stale.iter().try_for_each(|secret| schedule::heal(&write, *secret))?;
            }
            if due.rows.is_empty() {
                return Ok((Vec::new(), due.next));
            }
            let vault = keys::vault()?;
            let jobs = due.rows.into_iter().map(|due| job(vault, due)).collect::<Result<Vec<Job>>>()?;
            Ok((jobs, due.next))
        })?;
        match next {
            Some(next) => self.after = next,
            None => self.exhausted = true,
        }
        // Those that have not failed do not wait for those that have, and may again.
        found.sort_by_key(|job| job.due.attempts);
        self.waiting.extend(found);
        Ok(())
    }

    fn submit(&mut self) -> Result<()> {
        if self.outage.is_some() {
            return Ok(());
        }
        while let Some(job) = self.waiting.pop_front() {
            let request = match &job.unwrap {
                Some((_, request)) => request.clone(),
                None => Request::GenerateDek { context: job.context() },
            };
            if let Some(job) = self.pipeline.submit(job, &request)? {
                self.waiting.push_front(job);
                return Ok(());
            }
        }
        Ok(())
    }

    fn collect(&mut self) {
        for (mut job, answer) in self.pipeline.collect() {
            let answer = match (answer, job.unwrap.take()) {
                (Err(error), _) if error.is_outage() => {
                    // Not this secret's fault, and it stays due.
                    self.outage = Some(error);
                    continue;
                }
                (Err(error), _) => Err(error),
                (Ok(response), Some((version, _))) => match kms_client::unwrapped(response) {
                    Ok(dek) => {
                        job.opener = Some((version, Opener::with(job.vault, dek)));
                        self.waiting.push_front(job);
                        continue;
                    }
                    Err(error) => Err(error),
                },
                (Ok(response), None) => kms_client::generated(response),
            };
            if self.ready.is_empty() {
                self.ready_at = monotonic_ms();
            }
            self.ready.push((job, answer));
        }
    }
}

impl Job {
    fn context(&self) -> DekContext {
        DekContext { vault: self.vault, secret: self.due.id, version: self.version_id }
    }
}

fn job(vault: Id, due: Due) -> Result<Job> {
    let mut job = Job { vault, version_id: Id::random()?, opener: None, unwrap: None, due };
    if job.due.format == Format::Userpass
        && let Some(current) = secrets::current(&job.due.name)?
    {
        match Opener::cached(&current.stored())? {
            Some(opener) => job.opener = Some((current.version_id, opener)),
            None => {
                job.unwrap = Some((current.version_id, keys::wrapped(vault, &current).request()));
            }
        }
    }
    Ok(job)
}

static OPERATION: audit::Operation =
    audit::Operation { function: "maintenance", action: "rotate", kind: audit::Kind::Write };

/// Rotates those of a batch that are still due, in one transaction. Returns what kept it from it if that is no secret's
/// fault; those secrets stay due.
fn rotate(now: i64, batch: Vec<(Job, Result<Generated>)>) -> Result<Option<VaultError>> {
    transaction::run(|| {
        let mut rotated = Vec::new();
        let mut outage = None;
        for (job, key) in batch {
            // Between two, where no lock of the server's own is held, whoever wants the processor has it.
            std::thread::yield_now();
            let id = job.due.id;
            let write = Write::begin();
            let Some(locked) = schedule::lock_due(&write, id, now)? else { continue };
            let outcome = transaction::savepoint(|| {
                audit::run(&OPERATION, || {
                    audit::subject(&locked.name);
                    rotate_one(&locked.name, job, key?)
                })
            });
            match outcome {
                Ok(Some(version)) => rotated.push(json!({ "id": id.to_string(), "version": version })),
                // Changed between look and lock: the next pass sees it as it is then.
                Ok(None) => {}
                Err(Failure::Ours(error)) if error.is_outage() => outage = Some(*error),
                Err(failure) => remember(&write, &locked, &failure)?,
            }
        }
        if !rotated.is_empty() {
            catalog::notify(c"vault_rotation", &json!({ "rotated": rotated }).to_string())?;
        }
        Ok(outage)
    })
}

/// The version that the secret has now; None if the keys do not fit it any more.
fn rotate_one(name: &str, job: Job, key: Generated) -> Result<Option<i32>> {
    let new = NewVersion {
        vault: job.vault,
        secret: job.due.id,
        version_id: job.version_id,
        key,
        early: decide::earliness(random()?),
    };
    let update = Update { name, expected: None, changes: None, value: NewValue::Generated };
    if update.run_with(&new, job.opener.as_ref())?.is_none() {
        audit::detail("not rotated: it was changed meanwhile");
        return Ok(None);
    }
    Ok(secrets::current(name)?.map(|current| current.version))
}

fn remember(write: &Write, locked: &LockedDue<'_>, failure: &Failure) -> Result<()> {
    let mut error = match failure {
        Failure::Ours(error) => error.summary(),
        Failure::Raised(report) => match report.detail() {
            Some(detail) => format!("{} ({detail})", report.message()),
            None => report.message().to_owned(),
        },
        // Its detail may show rows.
        Failure::Server(report) => report.message().to_owned(),
    };
    error.truncate(error.floor_char_boundary(MAX_ERROR_BYTES));
    let attempts = locked.attempts.saturating_add(1);
    let wait = decide::retry_after(attempts, random()?);
    let message = format!("hyperion_vault: scheduled rotation of secret \"{}\" failed", locked.name);
    VaultError::new(Kind::WrongState, message)
        .detail(error.clone())
        .hint(format!("Attempt {attempts}; the next one comes in {} s.", wait.as_secs()))
        .warn();
    let retry_at = clock().saturating_add(i64::try_from(wait.as_micros()).unwrap_or(i64::MAX));
    schedule::failed(write, locked, attempts, &error, retry_at)
}

/// For spreading things apart; need not be secret.
fn random() -> Result<u64> {
    let Id([.., a, b, c, d, e, f, g, h]) = Id::random()?;
    // Big-endian from the last byte: the fixed bits of an id are in the byte that counts least.
    Ok(u64::from_be_bytes([h, g, f, e, d, c, b, a]))
}
