//! The server's hook for utility commands: what a session is about to do with a database, an extension or a table.
//!
//! Every session, main thread. The hook itself has no guard around what it passes on: an error of a command travels
//! past this frame as the server made it (position, constraint and context included), and there is nothing in the
//! frame to be dropped. Only our own part runs guarded.
//!
//! The trap it avoids: hooks of other libraries; whoever was there before is called.

use std::ffi::CStr;
use std::sync::atomic::{AtomicPtr, Ordering};

use pgrx::PgList;
use pgrx::pg_sys::{self, Oid};

use super::datum;

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
    /// It takes a lock on these relations that others wait for. Those that do not exist are left out.
    Occupy {
        what: &'static str,
        relations: Vec<Oid>,
    },
    /// The same with every table of the database, or those of a kind.
    OccupyAll(&'static str),
    ReindexSchema(String),
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
    // SAFETY: called by the server with a valid statement; arguments are passed on as they came.
    unsafe {
        if is_of_interest((*statement).utilityStmt) {
            before((*statement).utilityStmt);
        }
        match PREVIOUS {
            Some(previous) => {
                previous(statement, query, read_only, context, params, environment, dest, completion)
            }
            None => standard(statement, query, read_only, context, params, environment, dest, completion),
        }
    }
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
                    | T_LockStmt
                    | T_TruncateStmt
                    | T_CreateTrigStmt
                    | T_VacuumStmt
                    | T_ClusterStmt
                    | T_ReindexStmt
            )
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn before(node: *mut pg_sys::Node) {
    // SAFETY: a node of one of the kinds above; BEFORE only ever holds a `fn(&Command)`.
    unsafe {
        let Some(command) = command(node) else { return };
        for f in BEFORE.iter().map(|place| place.load(Ordering::Relaxed)).filter(|f| !f.is_null()) {
            let f: fn(&Command) = std::mem::transmute::<*mut (), fn(&Command)>(f);
            f(&command);
        }
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
            T_LockStmt => {
                let statement = &*node.cast::<pg_sys::LockStmt>();
                // pg_dump's, which stops nobody at work.
                let strong = statement.mode != pg_sys::AccessShareLock as i32;
                strong.then(|| occupy("LOCK", &ranges(statement.relations)))
            }
            T_TruncateStmt => {
                let statement = &*node.cast::<pg_sys::TruncateStmt>();
                Some(occupy("TRUNCATE", &ranges(statement.relations)))
            }
            T_CreateTrigStmt => {
                let statement = &*node.cast::<pg_sys::CreateTrigStmt>();
                Some(occupy("a trigger", &[statement.relation]))
            }
            T_VacuumStmt => {
                let statement = &*node.cast::<pg_sys::VacuumStmt>();
                let full = option(statement.options, c"full").is_some_and(|full| pg_sys::defGetBoolean(full));
                full.then(|| {
                    let relations = PgList::<pg_sys::VacuumRelation>::from_pg(statement.rels);
                    if relations.is_empty() {
                        return Command::OccupyAll("VACUUM FULL");
                    }
                    occupy(
                        "VACUUM FULL",
                        &relations.iter_ptr().map(|one| (*one).relation).collect::<Vec<_>>(),
                    )
                })
            }
            T_ClusterStmt => {
                let relation = (*node.cast::<pg_sys::ClusterStmt>()).relation;
                Some(if relation.is_null() {
                    Command::OccupyAll("CLUSTER")
                } else {
                    occupy("CLUSTER", &[relation])
                })
            }
            T_ReindexStmt => {
                use pg_sys::ReindexObjectType::{
                    REINDEX_OBJECT_INDEX, REINDEX_OBJECT_SCHEMA, REINDEX_OBJECT_TABLE,
                };
                let statement = &*node.cast::<pg_sys::ReindexStmt>();
                Some(match statement.kind {
                    REINDEX_OBJECT_SCHEMA => Command::ReindexSchema(datum::cstr_lossy(statement.name)),
                    REINDEX_OBJECT_INDEX | REINDEX_OBJECT_TABLE => occupy("REINDEX", &[statement.relation]),
                    _ => Command::OccupyAll("REINDEX"),
                })
            }
            _ => None,
        }
    }
}

/// # Safety
/// A list of RangeVar, or null.
unsafe fn ranges(list: *mut pg_sys::List) -> Vec<*mut pg_sys::RangeVar> {
    // SAFETY: as the caller promises.
    unsafe { PgList::<pg_sys::RangeVar>::from_pg(list).iter_ptr().collect() }
}

/// # Safety
/// Valid nodes, or null.
unsafe fn occupy(what: &'static str, relations: &[*mut pg_sys::RangeVar]) -> Command {
    let found = relations.iter().filter(|range| !range.is_null()).map(|range| {
        // SAFETY: a valid node. No lock is taken: the server looks again when it does.
        unsafe {
            pg_sys::RangeVarGetRelidExtended(
                *range,
                pg_sys::NoLock as i32,
                pg_sys::RVROption::RVR_MISSING_OK,
                None,
                std::ptr::null_mut(),
            )
        }
    });
    Command::Occupy { what, relations: found.filter(|oid| *oid != Oid::INVALID).collect() }
}

unsafe fn option(options: *mut pg_sys::List, name: &CStr) -> Option<*mut pg_sys::DefElem> {
    // SAFETY: a list of DefElem, or null.
    unsafe {
        PgList::<pg_sys::DefElem>::from_pg(options)
            .iter_ptr()
            .find(|option| !(**option).defname.is_null() && CStr::from_ptr((**option).defname) == name)
    }
}
