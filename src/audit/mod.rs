//! The audit log on this side of SQL: every operation of the API runs inside [`run`], which leaves one record of it.
//!
//! Client backends and workers, main thread. States of an operation:
//!
//! ```text
//! begun ─▶ done ──────▶ recorded ─▶ its result is returned
//!   │        └ cannot be recorded ─▶ 58030, nothing is returned
//!   ├─▶ failed (VaultError, or an ERROR of the server that unwinds) ─▶ recorded if possible ─▶ the error goes on
//!   └─▶ FATAL (does not unwind) ─▶ recorded by the exit callback
//! ```
//!
//! What was read is recorded as `ok` *before* the value leaves. What was written is recorded as `pending` with the id of the
//! (sub)transaction that wrote it, in the call: the commit log knows what becomes of that id, and the relay asks it (see
//! `relay`). So no rollback, savepoint, PREPARE TRANSACTION or crash between commit and record can make the log lie.
//!
//! The traps it avoids: a function of the API without a record (entry points are made by `audited!`, and a test counts); an
//! operation inside another (a hook that reads), hence the stack; a look-up of names after an error, when the
//! transaction can do none: who is calling is found out at the beginning.

pub mod relay;
mod spool;
pub mod status;

use std::any::Any;
use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use hyperion_vault_core::audit::{self as log, Class, Outcome};
use pgrx::pg_sys::Oid;

use crate::api::gate;
use crate::error::{Result, VaultError};
use crate::pg::exit;
use crate::pg::identity::{self, Origin};
use crate::pg::xact;

pub use spool::open;

/// One entry point of the API.
pub struct Operation {
    /// The SQL function, or what else was called.
    pub function: &'static str,
    /// What it does, in the words of policies where they have one.
    pub action: &'static str,
    pub kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Changes nothing that a rollback would undo.
    Read,
    /// Is pending until its transaction ends.
    Write,
    /// Says how things are and must do so when no record can be written; names no secret.
    Watch,
}

/// An operation that is running.
struct Running {
    operation: &'static Operation,
    /// Who was calling when it began: an operation inside it may be somebody else's.
    who: Rc<Names>,
    /// The name of the token in force when it began.
    token: Option<Rc<str>>,
    has_subject: bool,
    detail: Option<Cow<'static, str>>,
    version: Option<i32>,
    buffers: Buffers,
    /// Records in the buffers that stand in the place of its own.
    given: u64,
    /// Records in the buffers besides its own.
    also: u64,
}

impl Running {
    /// What can be said by now of what becomes of it, and the transaction that will tell.
    fn fate(&self) -> (Outcome, u64) {
        // What has written nothing has nothing that could be rolled back.
        let xid = match self.operation.kind {
            Kind::Write => xact::current_id().unwrap_or(0),
            Kind::Read | Kind::Watch => 0,
        };
        (if xid == 0 { Outcome::Ok } else { Outcome::Pending }, xid)
    }
}

/// What every record is put together in: kept from one operation to the next, so that a read allocates nothing for it.
#[derive(Default)]
struct Buffers {
    /// What the operation is about, if it has said so.
    subject: String,
    /// Frames of records that this one call leaves in the place of one.
    frames: Vec<u8>,
}

impl Buffers {
    /// Longer ones, of batches, are given back.
    const KEPT: usize = 16 << 10;

    fn take() -> Self {
        SPARE.take().unwrap_or_default()
    }

    fn keep(mut self) {
        if self.frames.capacity() <= Self::KEPT {
            self.frames.clear();
            self.subject.clear();
            SPARE.set(Some(self));
        }
    }
}

thread_local! {
    static SPARE: Cell<Option<Buffers>> = const { Cell::new(None) };
    static STACK: RefCell<Vec<Running>> = const { RefCell::new(Vec::new()) };
    static ACTOR: RefCell<Actor> = const { RefCell::new(Actor::nobody()) };
    static WATCHING_EXIT: Cell<bool> = const { Cell::new(false) };
}

/// Who is calling, in names.
#[derive(Default)]
struct Names {
    session_role: String,
    role: String,
}

/// The names as they were looked up last, and for whom.
struct Actor {
    known: Option<((Oid, Oid, u64), Rc<Names>)>,
}

impl Actor {
    const fn nobody() -> Self {
        Self { known: None }
    }

    /// Looks the names up, if they may not be those of last time.
    fn identify(&mut self) -> Rc<Names> {
        let who = (identity::session_user(), identity::current_user(), identity::roles_generation());
        match &self.known {
            Some((known, names)) if *known == who => Rc::clone(names),
            _ => {
                let names = Rc::new(Names { session_role: name_of(who.0), role: name_of(who.1) });
                self.known = Some((who, Rc::clone(&names)));
                names
            }
        }
    }
}

/// Of a role that is gone, its oid.
pub fn name_of(role: Oid) -> String {
    identity::role_name(role).unwrap_or_else(|| role.to_u32().to_string())
}

/// Runs an operation and leaves its record.
pub fn run<R>(operation: &'static Operation, f: impl FnOnce() -> Result<R>) -> Result<R> {
    begin(operation);
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(result)) => {
            succeeded()?;
            Ok(result)
        }
        Ok(Err(error)) => {
            let outcome = if error.is_refusal() { Outcome::Denied } else { Outcome::Error };
            failed(outcome, error.sqlstate());
            Err(error)
        }
        Err(payload) => unwound(payload),
    }
}

#[cold]
fn unwound(payload: Box<dyn Any + Send>) -> ! {
    failed(Outcome::Error, crate::pg::sqlstate_of_panic(payload.as_ref()));
    resume_unwind(payload)
}

fn begin(operation: &'static Operation) {
    if !WATCHING_EXIT.replace(true) {
        exit::before_exit(ended_by_exit);
    }
    let who = ACTOR.with_borrow_mut(Actor::identify);
    let token = gate::token_name();
    STACK.with_borrow_mut(|stack| {
        stack.push(Running {
            operation,
            who,
            token,
            has_subject: false,
            detail: None,
            version: None,
            buffers: Buffers::take(),
            given: 0,
            also: 0,
        });
    });
}

fn with_running(f: impl FnOnce(&mut Running)) {
    STACK.with_borrow_mut(|stack| {
        if let Some(running) = stack.last_mut() {
            f(running);
        }
    });
}

/// What the running operation is about. Only ever a name that was found well-formed: anything else may be a value in the
/// wrong place.
pub fn subject(name: &str) {
    with_running(|running| {
        name.clone_into(&mut running.buffers.subject);
        running.has_subject = true;
    });
}

/// The version that the running operation reads or makes.
pub fn version(version: i32) {
    with_running(|running| running.version = Some(version));
}

/// What else is to be said: a word of ours, or another name.
pub fn detail(text: impl Into<Cow<'static, str>>) {
    let text = text.into();
    with_running(|running| running.detail = Some(text));
}

/// One of several secrets that the running operation gives out: leaves a record of its own.
pub fn each(name: &str, version: i32) {
    with_running(|running| {
        let mut frames = std::mem::take(&mut running.buffers.frames);
        let about = About { subject: Some(name), version: Some(version), ..About::of(running) };
        about.push(&mut frames, Outcome::Ok, None, 0);
        (running.buffers.frames, running.given) = (frames, running.given + 1);
    });
}

/// What the running operation has done besides, to another version of its subject or to another secret: leaves a record
/// besides its own.
pub fn also(action: &'static str, name: Option<&str>, version: i32) {
    with_running(|running| {
        let mut frames = std::mem::take(&mut running.buffers.frames);
        let (outcome, xid) = running.fate();
        let own = About::of(running);
        let about =
            About { action, subject: name.or(own.subject), version: Some(version), detail: None, ..own };
        about.push(&mut frames, outcome, None, xid);
        (running.buffers.frames, running.also) = (frames, running.also + 1);
    });
}

/// What goes into a record besides the actor.
struct About<'a> {
    function: &'static str,
    action: &'static str,
    who: &'a Names,
    token: Option<&'a str>,
    subject: Option<&'a str>,
    detail: Option<&'a str>,
    version: Option<i32>,
    occurrences: u32,
    /// The address, if not that of this session.
    client: Option<log::Client<'a>>,
}

impl<'a> About<'a> {
    fn of(running: &'a Running) -> Self {
        Self {
            function: running.operation.function,
            action: running.operation.action,
            who: &running.who,
            token: running.token.as_deref(),
            subject: running.has_subject.then_some(running.buffers.subject.as_str()),
            detail: running.detail.as_deref(),
            version: running.version,
            occurrences: 1,
            client: None,
        }
    }

    fn push(&self, frames: &mut Vec<u8>, outcome: Outcome, sqlstate: Option<[u8; 5]>, xid: u64) {
        crate::config::with_node_name(|node| {
            with_client(|client| {
                let client = self.client.unwrap_or(client);
                let record = log::Record {
                    at: crate::pg::clock(),
                    timeline: xact::timeline(),
                    xid,
                    occurrences: self.occurrences,
                    outcome,
                    sqlstate,
                    version: self.version,
                    client,
                    node,
                    session_role: &self.who.session_role,
                    role: &self.who.role,
                    token: self.token,
                    action: self.action,
                    function: self.function,
                    subject: self.subject,
                    detail: self.detail,
                };
                log::push(frames, |out| record.encode(out));
            });
        });
    }
}

fn with_client<R>(f: impl FnOnce(log::Client<'_>) -> R) -> R {
    identity::with_origin(|origin| match origin {
        Origin::UnixSocket => f(log::Client::Local),
        Origin::Ip(address) => f(log::Client::Ip(address.to_canonical())),
        Origin::Worker(kind) => f(log::Client::Internal(kind)),
        Origin::Autovacuum | Origin::Other => f(log::Client::None),
    })
}

fn end() -> Option<Running> {
    STACK.with_borrow_mut(Vec::pop)
}

fn succeeded() -> Result<()> {
    let Some(mut running) = end() else { return Ok(()) };
    let mut frames = std::mem::take(&mut running.buffers.frames);
    let mut records = running.given + running.also;
    if running.given == 0 {
        let (outcome, xid) = running.fate();
        About::of(&running).push(&mut frames, outcome, None, xid);
        records += 1;
    }
    let appended = spool::append(&mut frames, records, Class::Needed);
    Buffers { frames, ..running.buffers }.keep();
    match appended {
        Err(_) if running.operation.kind == Kind::Watch => Ok(()),
        result => result,
    }
}

/// Records a failure as far as that can be done: the operation is refused anyway.
fn failed(outcome: Outcome, sqlstate: [u8; 5]) {
    let Some(running) = end() else { return };
    if outcome == Outcome::Denied && !spool::worth_writing() {
        return;
    }
    let mut frames = Vec::new();
    About::of(&running).push(&mut frames, outcome, Some(sqlstate), 0);
    spool::append_if_possible(&mut frames);
}

/// FATAL in the middle of operations (`pg_terminate_backend`): they end here, innermost first.
fn ended_by_exit() {
    spool::let_go();
    while STACK.try_with(|stack| stack.try_borrow().is_ok_and(|stack| !stack.is_empty())).unwrap_or(false) {
        failed(Outcome::Error, *b"57P01");
    }
}

impl VaultError {
    /// Whether the caller was refused, rather than unlucky.
    fn is_refusal(&self) -> bool {
        self.is_denied() || self.is_unauthenticated()
    }
}
