//! The server's hook for utility commands: what a session is about to do with a database, an extension or a table.
//!
//! Every session, main thread. The hook itself has no guard around what it passes on: an error of a command travels
//! past this frame as the server made it (position, constraint and context included), and there is nothing in the
//! frame to be dropped. Only our own part runs guarded.
//!
//! The trap it avoids: hooks of other libraries; whoever was there before is called.

use std::ffi::CStr;
use std::sync::atomic::{AtomicPtr, Ordering};

use pgrx::{PgList, pg_sys};

use super::occupied::{self, All, Occupied};
use super::{catalog, datum, identity};

/// A command of interest. Names as the parser has them.
pub enum Command {
    /// DROP DATABASE, SET TABLESPACE: nobody else may be connected.
    UseDatabaseAlone(String),
    /// The same.
    RenameDatabase {
        from: String,
        to: String,
    },
    CopyDatabase {
        template: String,
        to: String,
    },
    DropExtension(Vec<String>),
    CreateExtension(String),
    /// Of one who is no superuser, in a database with the extension: it makes others wait. LOCK comes a second time when it
    /// is done: what it has reached cannot change any more.
    Occupy(Result<Occupied, All>),
}

static mut PREVIOUS: pg_sys::ProcessUtility_hook_type = None;
/// Who wants to know; null: nobody.
static BEFORE: [AtomicPtr<()>; 2] = [const { AtomicPtr::new(std::ptr::null_mut()) }; 2];

/// Once, in `_PG_init`.
pub fn install() {
    // SAFETY: _PG_init runs on the main thread before any child exists; hooks are chained as the server asks.
    unsafe {
        PREVIOUS = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(hook);
    }
}

/// Runs `f` before each command of interest, in the order of these calls. In `_PG_init`, for as many as there is room for.
pub fn before_each(f: fn(&Command)) {
    let mut free = BEFORE.iter().filter(|place| place.load(Ordering::Relaxed).is_null());
    free.next().expect("room for another").store(f as *mut (), Ordering::Relaxed);
}

unsafe extern "C-unwind" {
    #[link_name = "standard_ProcessUtility"]
    fn standard(
        statement: *mut pg_sys::PlannedStmt,
        query: *const std::ffi::c_char,
        read_only: bool,
        context: pg_sys::ProcessUtilityContext::Type,
        params: pg_sys::ParamListInfo,
        environment: *mut pg_sys::QueryEnvironment,
        dest: *mut pg_sys::DestReceiver,
        completion: *mut pg_sys::QueryCompletion,
    );
}

#[allow(clippy::too_many_arguments, reason = "the server's signature")]
unsafe extern "C-unwind" fn hook(
    statement: *mut pg_sys::PlannedStmt,
    query: *const std::ffi::c_char,
    read_only: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    dest: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: called by the server with a valid statement; arguments are passed on as they came, but for a copy of the statement.
    unsafe {
        let mut call = Call { statement, read_only };
        let node = (*statement).utilityStmt;
        let candidate = !node.is_null() && occupied::is_candidate((*node).type_);
        let locks = candidate && (*node).type_ == pg_sys::NodeTag::T_LockStmt;
        if candidate {
            call = before_occupying(call);
        } else if is_of_interest(node) {
            before(node);
        }
        let Call { statement, read_only } = call;
        match PREVIOUS {
            Some(previous) => {
                previous(statement, query, read_only, context, params, environment, dest, completion)
            }
            None => standard(statement, query, read_only, context, params, environment, dest, completion),
        }
        if locks {
            after_locking((*statement).utilityStmt);
        }
    }
}

/// A statement, and whether it must not be changed.
#[derive(Clone, Copy)]
#[repr(C)]
struct Call {
    statement: *mut pg_sys::PlannedStmt,
    read_only: bool,
}

/// Gives back what to go on with: a copy if names were pinned in it.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn before_occupying(call: Call) -> Call {
    if identity::is_superuser(identity::current_user()) || !catalog::extension_exists() {
        return call;
    }
    // SAFETY: a valid statement; the copy is in the context of the one that runs.
    unsafe {
        let statement = if call.read_only {
            pg_sys::copyObjectImpl(call.statement.cast()).cast::<pg_sys::PlannedStmt>()
        } else {
            call.statement
        };
        tell(&Command::Occupy(occupied::of((*statement).utilityStmt)));
        Call { statement, read_only: false }
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn after_locking(node: *mut pg_sys::Node) {
    if identity::is_superuser(identity::current_user()) || !catalog::extension_exists() {
        return;
    }
    // SAFETY: the statement is the copy from before.
    tell(&Command::Occupy(unsafe { occupied::of(node) }));
}

/// Whether the statement is worth the guard.
unsafe fn is_of_interest(node: *mut pg_sys::Node) -> bool {
    use pg_sys::NodeTag::*;
    // SAFETY: a valid node or null, as the caller got it from the server.
    unsafe {
        !node.is_null()
            && matches!(
                (*node).type_,
                T_DropdbStmt
                    | T_RenameStmt
                    | T_AlterDatabaseStmt
                    | T_CreatedbStmt
                    | T_CreateExtensionStmt
                    | T_DropStmt
            )
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn before(node: *mut pg_sys::Node) {
    // SAFETY: a node of one of the kinds above.
    if let Some(command) = unsafe { command(node) } {
        tell(&command);
    }
}

fn tell(command: &Command) {
    for f in BEFORE.iter().map(|place| place.load(Ordering::Relaxed)).filter(|f| !f.is_null()) {
        // SAFETY: BEFORE only ever holds a `fn(&Command)`.
        let f: fn(&Command) = unsafe { std::mem::transmute::<*mut (), fn(&Command)>(f) };
        f(command);
    }
}

unsafe fn command(node: *mut pg_sys::Node) -> Option<Command> {
    use pg_sys::NodeTag::*;
    // SAFETY: each node is read as what its tag says it is; strings are NUL-terminated or null.
    unsafe {
        match (*node).type_ {
            T_DropdbStmt => {
                let statement = &*node.cast::<pg_sys::DropdbStmt>();
                Some(Command::UseDatabaseAlone(datum::cstr_lossy(statement.dbname)))
            }
            T_RenameStmt => {
                let statement = &*node.cast::<pg_sys::RenameStmt>();
                (statement.renameType == pg_sys::ObjectType::OBJECT_DATABASE).then(|| {
                    Command::RenameDatabase {
                        from: datum::cstr_lossy(statement.subname),
                        to: datum::cstr_lossy(statement.newname),
                    }
                })
            }
            T_AlterDatabaseStmt => {
                let statement = &*node.cast::<pg_sys::AlterDatabaseStmt>();
                option(statement.options, c"tablespace")
                    .map(|_| Command::UseDatabaseAlone(datum::cstr_lossy(statement.dbname)))
            }
            T_CreatedbStmt => {
                let statement = &*node.cast::<pg_sys::CreatedbStmt>();
                let template = match option(statement.options, c"template") {
                    Some(option) if !(*option).arg.is_null() => {
                        datum::cstr_lossy(pg_sys::defGetString(option))
                    }
                    _ => "template1".to_owned(),
                };
                Some(Command::CopyDatabase { template, to: datum::cstr_lossy(statement.dbname) })
            }
            T_CreateExtensionStmt => {
                let statement = &*node.cast::<pg_sys::CreateExtensionStmt>();
                Some(Command::CreateExtension(datum::cstr_lossy(statement.extname)))
            }
            T_DropStmt => {
                let statement = &*node.cast::<pg_sys::DropStmt>();
                if statement.removeType != pg_sys::ObjectType::OBJECT_EXTENSION {
                    return None;
                }
                let names = PgList::<pg_sys::Node>::from_pg(statement.objects)
                    .iter_ptr()
                    .map(|object| datum::cstr_lossy((*object.cast::<pg_sys::String>()).sval))
                    .collect();
                Some(Command::DropExtension(names))
            }
            _ => None,
        }
    }
}

unsafe fn option(options: *mut pg_sys::List, name: &CStr) -> Option<*mut pg_sys::DefElem> {
    // SAFETY: a list of DefElem, or null.
    unsafe {
        PgList::<pg_sys::DefElem>::from_pg(options)
            .iter_ptr()
            .find(|option| !(**option).defname.is_null() && CStr::from_ptr((**option).defname) == name)
    }
}
