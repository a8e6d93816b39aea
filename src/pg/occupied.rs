//! Which relations a utility command would lock so that others wait, before it does.
//!
//! Every session, main thread, called by [`utility`](super::utility). The server takes some of these locks before it asks who
//! owns the relation. Names are resolved and *pinned*: the schema that was found is written into the command, since
//! a command that waits for a lock resolves its names again, and they may mean something else by then. So the
//! command must be the caller's own copy.

use std::ffi::CStr;

use pgrx::PgList;
use pgrx::pg_sys::{self, NodeTag, Oid};

/// How far a command reaches from the relations that it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    Itself,
    /// And the tables that inherit from them.
    Children,
    /// And what is below them if they are views.
    Views,
}

/// Relations with what is done to them, for a message.
pub struct Occupied {
    pub relations: Vec<(&'static str, Oid)>,
    pub reach: Reach,
}

/// Whether a command of that kind may have something to say here.
pub(super) fn is_candidate(tag: NodeTag) -> bool {
    use NodeTag::*;
    matches!(
        tag,
        T_LockStmt
            | T_TruncateStmt
            | T_CreateTrigStmt
            | T_VacuumStmt
            | T_ClusterStmt
            | T_ReindexStmt
            | T_RuleStmt
            | T_AlterObjectDependsStmt
            | T_AlterTableStmt
            | T_CreateStmt
    )
}

/// What the command occupies; an error names a command that takes all tables of a database or a schema. Those that do not exist
/// are left out.
///
/// # Safety
/// A valid node that nobody else uses.
pub(super) unsafe fn of(node: *mut pg_sys::Node) -> Result<Occupied, All> {
    use NodeTag::*;
    let mut found = Found(Vec::new());
    let mut reach = Reach::Itself;
    // SAFETY: each node is read as what its tag says it is.
    unsafe {
        match (*node).type_ {
            T_LockStmt => {
                let statement = &*node.cast::<pg_sys::LockStmt>();
                reach = Reach::Views;
                // pg_dump's mode, which stops nobody at work.
                if statement.mode != pg_sys::AccessShareLock as i32 {
                    found.list("LOCK", statement.relations);
                }
            }
            T_TruncateStmt => found.list("TRUNCATE", (*node.cast::<pg_sys::TruncateStmt>()).relations),
            T_CreateTrigStmt => {
                let statement = &*node.cast::<pg_sys::CreateTrigStmt>();
                found.one("a trigger", statement.relation);
                found.one("a trigger", statement.constrrel);
            }
            T_VacuumStmt => {
                let statement = &*node.cast::<pg_sys::VacuumStmt>();
                reach = Reach::Children;
                if last_option(statement.options, c"full").is_some_and(|full| pg_sys::defGetBoolean(full)) {
                    let relations = PgList::<pg_sys::VacuumRelation>::from_pg(statement.rels);
                    if relations.is_empty() {
                        return Err(All::Database("VACUUM FULL"));
                    }
                    relations.iter_ptr().for_each(|one| found.one("VACUUM FULL", (*one).relation));
                }
            }
            T_ClusterStmt => {
                let relation = (*node.cast::<pg_sys::ClusterStmt>()).relation;
                reach = Reach::Children;
                if relation.is_null() {
                    return Err(All::Database("CLUSTER"));
                }
                found.one("CLUSTER", relation);
            }
            T_ReindexStmt => {
                use pg_sys::ReindexObjectType::*;
                let statement = &*node.cast::<pg_sys::ReindexStmt>();
                reach = Reach::Children;
                match statement.kind {
                    REINDEX_OBJECT_INDEX | REINDEX_OBJECT_TABLE => found.one("REINDEX", statement.relation),
                    REINDEX_OBJECT_SCHEMA if CStr::from_ptr(statement.name) == c"vault" => {
                        return Err(All::Schema("REINDEX"));
                    }
                    REINDEX_OBJECT_SCHEMA => {}
                    _ => return Err(All::Database("REINDEX")),
                }
            }
            T_RuleStmt => found.one("a rule", (*node.cast::<pg_sys::RuleStmt>()).relation),
            T_AlterObjectDependsStmt => {
                let statement = &*node.cast::<pg_sys::AlterObjectDependsStmt>();
                found.one("DEPENDS ON EXTENSION", statement.relation);
            }
            T_AlterTableStmt => found.alterations((*node.cast::<pg_sys::AlterTableStmt>()).cmds),
            T_CreateStmt => {
                let statement = &*node.cast::<pg_sys::CreateStmt>();
                found.list("a table that inherits", statement.inhRelations);
                found.elements(statement.tableElts);
                found.elements(statement.constraints);
            }
            _ => {}
        }
    }
    Ok(Occupied { relations: found.0, reach })
}

/// A command without names of relations, called so in messages.
pub enum All {
    Database(&'static str),
    /// The vault's.
    Schema(&'static str),
}

struct Found(Vec<(&'static str, Oid)>);

impl Found {
    /// # Safety
    /// A list of RangeVar, or null; as in [`of`].
    unsafe fn list(&mut self, what: &'static str, ranges: *mut pg_sys::List) {
        // SAFETY: as the caller promises.
        unsafe {
            PgList::<pg_sys::RangeVar>::from_pg(ranges).iter_ptr().for_each(|range| self.one(what, range));
        }
    }

    /// # Safety
    /// A RangeVar or null; as in [`of`].
    unsafe fn one(&mut self, what: &'static str, range: *mut pg_sys::RangeVar) {
        if range.is_null() {
            return;
        }
        // SAFETY: a valid node. No lock is taken: the server looks again when it does.
        let relation = unsafe {
            let flags = pg_sys::RVROption::RVR_MISSING_OK;
            pg_sys::RangeVarGetRelidExtended(range, pg_sys::NoLock as i32, flags, None, std::ptr::null_mut())
        };
        if relation == Oid::INVALID {
            return;
        }
        // SAFETY: syscache lookups; names are palloc'd, in the context that the copy of the command is in.
        unsafe {
            if (*range).schemaname.is_null() {
                let namespace = pg_sys::get_rel_namespace(relation);
                (*range).schemaname = if pg_sys::isTempNamespace(namespace) {
                    pg_sys::pstrdup(c"pg_temp".as_ptr())
                } else {
                    pg_sys::get_namespace_name(namespace)
                };
            }
        }
        self.0.push((what, relation));
    }

    /// # Safety
    /// A list of AlterTableCmd, or null; as in [`of`].
    unsafe fn alterations(&mut self, commands: *mut pg_sys::List) {
        use pg_sys::AlterTableType as Kind;
        // SAFETY: as the caller promises; each definition is what its kind of command says.
        unsafe {
            for command in PgList::<pg_sys::AlterTableCmd>::from_pg(commands).iter_ptr() {
                let definition = (*command).def;
                match (*command).subtype {
                    _ if definition.is_null() => {}
                    Kind::AT_AttachPartition => {
                        self.one("ATTACH PARTITION", (*definition.cast::<pg_sys::PartitionCmd>()).name);
                    }
                    Kind::AT_AddInherit => self.one("INHERIT", definition.cast()),
                    Kind::AT_AddConstraint | Kind::AT_AddColumn => self.element(definition),
                    _ => {}
                }
            }
        }
    }

    /// # Safety
    /// A list of elements of a table, or null; as in [`of`].
    unsafe fn elements(&mut self, elements: *mut pg_sys::List) {
        // SAFETY: as the caller promises.
        unsafe {
            PgList::<pg_sys::Node>::from_pg(elements).iter_ptr().for_each(|element| self.element(element));
        }
    }

    /// # Safety
    /// A valid node; as in [`of`].
    unsafe fn element(&mut self, element: *mut pg_sys::Node) {
        // SAFETY: read as what its tag says it is.
        unsafe {
            match (*element).type_ {
                NodeTag::T_Constraint => {
                    self.one("a foreign key", (*element.cast::<pg_sys::Constraint>()).pktable);
                }
                NodeTag::T_ColumnDef => self.elements((*element.cast::<pg_sys::ColumnDef>()).constraints),
                _ => {}
            }
        }
    }
}

/// An option of a command. Given twice, the last counts, as with the server.
///
/// # Safety
/// A list of DefElem, or null.
unsafe fn last_option(options: *mut pg_sys::List, name: &CStr) -> Option<*mut pg_sys::DefElem> {
    // SAFETY: as the caller promises.
    unsafe {
        PgList::<pg_sys::DefElem>::from_pg(options)
            .iter_ptr()
            .filter(|option| !(**option).defname.is_null() && CStr::from_ptr((**option).defname) == name)
            .last()
    }
}
