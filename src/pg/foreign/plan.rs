//! What the planner is told: which conditions on the key bound a scan, and the order of its rows.
//!
//! Client backends, main thread, while a statement is planned: nothing is read here, and nothing depends on the rows or on
//! who may read them. A condition bounds a scan if it compares the key with something that is known before the scan begins,
//! by the equality of texts and in a collation where equal means the same bytes. It stays a filter of the scan all the same,
//! so what is found here makes a query faster and never changes its result.

use hyperion_vault_core::readable::{Terms, narrowest};
use pgrx::pg_sys::{self, Cost, List, Node, Oid, PlannerInfo, RelOptInfo, Relids, RestrictInfo};
use pgrx::{PgList, is_a};

use super::table;

/// Rows that a scan is said to have: as many as the planner takes a column to have distinct values when it knows nothing, so
/// that one row is expected for one key.
const ROWS: f64 = 200.0;
/// Of a scan that nothing bounds: dear enough for a join to look up some hundred keys instead.
const COST_OF_ALL: Cost = 1000.0;
/// Of one key: about an index scan.
const COST_OF_ONE: Cost = 8.0;
/// Elements an array of keys is said to have.
const ARRAY_ROWS: usize = 10;

/// A condition that bounds a scan: the rows' keys are among the values of its expressions.
struct Condition {
    terms: Vec<(Kind, *mut Node)>,
}

/// What a bounding expression gives.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Key = 0,
    Keys = 1,
}

impl Kind {
    pub(super) fn of(number: i32) -> Self {
        if number == Self::Keys as i32 { Self::Keys } else { Self::Key }
    }
}

impl Condition {
    fn count(&self) -> Terms {
        let arrays = self.terms.iter().filter(|(kind, _)| *kind == Kind::Keys).count();
        Terms { names: self.terms.len() - arrays, arrays }
    }

    fn cost(&self) -> Cost {
        let Terms { names, arrays } = self.count();
        ((names + arrays * ARRAY_ROWS) as Cost * COST_OF_ONE).min(COST_OF_ALL)
    }
}

/// The narrowest condition among these.
fn best(mut conditions: Vec<Condition>) -> Option<Condition> {
    let counts: Vec<_> = conditions.iter().map(Condition::count).collect();
    narrowest(&counts).map(|at| conditions.swap_remove(at))
}

#[pgrx::pg_guard]
pub(super) unsafe extern "C-unwind" fn rel_size(root: *mut PlannerInfo, rel: *mut RelOptInfo, _relid: Oid) {
    // SAFETY: the planner's own, valid while it plans.
    unsafe {
        (*rel).tuples = ROWS;
        pg_sys::set_baserel_size_estimates(root, rel);
    }
}

#[pgrx::pg_guard]
pub(super) unsafe extern "C-unwind" fn paths(root: *mut PlannerInfo, rel: *mut RelOptInfo, relid: Oid) {
    // SAFETY: the planner's own, valid while it plans; so are the nodes reached from them.
    unsafe {
        let scan = Relation { root, rel, key: key(relid) };
        let bound = best(scan.conditions((*rel).baserestrictinfo));
        let filters = (*rel).baserestrictcost;
        let cost = filters.startup
            + match &bound {
                Some(condition) => condition.cost() + filters.per_tuple * (*rel).rows,
                None => COST_OF_ALL + filters.per_tuple * ROWS,
            };
        scan.add_path((*rel).rows, filters.startup, cost, (*rel).lateral_relids);
        if bound.is_some() {
            return;
        }
        let mut known: Vec<Relids> = Vec::new();
        for join in scan.join_conditions() {
            let Some(condition) = scan.condition(join) else { continue };
            let others = pg_sys::bms_union((*join).clause_relids, (*rel).lateral_relids);
            let others = pg_sys::bms_del_member(others, (*rel).relid as i32);
            if others.is_null() || known.iter().any(|known| pg_sys::bms_equal(*known, others)) {
                continue;
            }
            known.push(others);
            let info = pg_sys::get_baserel_parampathinfo(root, rel, others);
            (*info).ppi_rows = 1.0;
            scan.add_path(1.0, filters.startup, filters.startup + condition.cost(), others);
        }
    }
}

#[pgrx::pg_guard]
pub(super) unsafe extern "C-unwind" fn plan(
    root: *mut PlannerInfo,
    rel: *mut RelOptInfo,
    relid: Oid,
    _path: *mut pg_sys::ForeignPath,
    target_list: *mut List,
    clauses: *mut List,
    outer: *mut pg_sys::Plan,
) -> *mut pg_sys::ForeignScan {
    // SAFETY: the planner's own, valid while it plans; the lists are made in its memory.
    unsafe {
        let scan = Relation { root, rel, key: key(relid) };
        let mut expressions = PgList::<Node>::new();
        let mut kinds: *mut List = std::ptr::null_mut();
        if let Some(condition) = best(scan.conditions(clauses)) {
            for (kind, expression) in condition.terms {
                expressions.push(expression);
                kinds = pg_sys::lappend_int(kinds, kind as i32);
            }
        }
        let filters = pg_sys::extract_actual_clauses(clauses, false);
        let (none, no_tlist) = (std::ptr::null_mut(), std::ptr::null_mut());
        let expressions = expressions.into_pg();
        pg_sys::make_foreignscan(
            target_list,
            filters,
            (*rel).relid,
            expressions,
            kinds,
            no_tlist,
            none,
            outer,
        )
    }
}

/// The number of the key's column; 0 if the relation has none, which nothing refers to.
unsafe fn key(relid: Oid) -> i16 {
    // SAFETY: a syscache lookup on a valid string.
    unsafe { pg_sys::get_attnum(relid, table().key.as_ptr()) }
}

/// A foreign table in a query that is being planned.
#[derive(Clone, Copy)]
struct Relation {
    root: *mut PlannerInfo,
    rel: *mut RelOptInfo,
    key: i16,
}

/// All methods: the planner's structures are valid while it plans, and everything reached from them is.
impl Relation {
    unsafe fn add_path(self, rows: f64, startup: Cost, total: Cost, required_outer: Relids) {
        let (root, rel, none) = (self.root, self.rel, std::ptr::null_mut());
        // SAFETY: see `impl`. Null is the default target, and no list.
        unsafe {
            let order = self.order();
            #[cfg(any(feature = "pg15", feature = "pg16"))]
            let path = pg_sys::create_foreignscan_path(
                root,
                rel,
                std::ptr::null_mut(),
                rows,
                startup,
                total,
                order,
                required_outer,
                std::ptr::null_mut(),
                none,
            );
            #[cfg(feature = "pg17")]
            let path = pg_sys::create_foreignscan_path(
                root,
                rel,
                std::ptr::null_mut(),
                rows,
                startup,
                total,
                order,
                required_outer,
                std::ptr::null_mut(),
                none,
                none,
            );
            #[cfg(feature = "pg18")]
            let path = pg_sys::create_foreignscan_path(
                root,
                rel,
                std::ptr::null_mut(),
                rows,
                0,
                startup,
                total,
                order,
                required_outer,
                std::ptr::null_mut(),
                none,
                none,
            );
            pg_sys::add_path(rel, path.cast());
        }
    }

    /// The first key of the order that the query wants, if it is the order of every scan; else none.
    unsafe fn order(self) -> *mut List {
        let mut order = PgList::<pg_sys::PathKey>::new();
        // SAFETY: see `impl`.
        unsafe {
            let wanted = PgList::<pg_sys::PathKey>::from_pg((*self.root).query_pathkeys);
            if let Some(first) = wanted.get_ptr(0)
                && ascending(first)
                && !(*first).pk_nulls_first
                && (*first).pk_opfamily == pg_sys::TEXT_BTREE_FAM_OID
                && (*(*first).pk_eclass).ec_collation == pg_sys::C_COLLATION_OID
            {
                let members = PgList::<pg_sys::EquivalenceMember>::from_pg((*(*first).pk_eclass).ec_members);
                if members.iter_ptr().any(|member| self.is_key((*member).em_expr.cast())) {
                    order.push(first);
                }
            }
        }
        order.into_pg()
    }

    /// Those of a list of conditions that bound a scan.
    unsafe fn conditions(self, clauses: *mut List) -> Vec<Condition> {
        // SAFETY: see `impl`: a list of RestrictInfos.
        unsafe {
            let clauses = PgList::<RestrictInfo>::from_pg(clauses);
            clauses.iter_ptr().filter_map(|clause| self.condition(clause)).collect()
        }
    }

    /// Conditions that join the relation with others and could bound a scan for each of their rows.
    unsafe fn join_conditions(self) -> Vec<*mut RestrictInfo> {
        let mut this = self;
        let arg = (&raw mut this).cast();
        // SAFETY: see `impl`. The callback is given `this`, which outlives the call.
        unsafe {
            let implied = pg_sys::generate_implied_equalities_for_column(
                self.root,
                self.rel,
                Some(is_key),
                arg,
                (*self.rel).lateral_referencers,
            );
            let implied = PgList::<RestrictInfo>::from_pg(implied);
            let explicit = PgList::<RestrictInfo>::from_pg((*self.rel).joininfo);
            let movable = |join: &*mut RestrictInfo| pg_sys::join_clause_is_movable_to(*join, self.rel);
            implied.iter_ptr().chain(explicit.iter_ptr()).filter(movable).collect()
        }
    }

    unsafe fn condition(self, clause: *mut RestrictInfo) -> Option<Condition> {
        let mut terms = Vec::new();
        // SAFETY: see `impl`.
        unsafe {
            if (*clause).pseudoconstant || !self.collect((*clause).clause.cast(), &mut terms) {
                return None;
            }
        }
        Some(Condition { terms })
    }

    /// Adds what the key is compared with; false if the expression is not such a comparison, or several of them with OR.
    unsafe fn collect(self, clause: *mut Node, terms: &mut Vec<(Kind, *mut Node)>) -> bool {
        // SAFETY: see `impl`; a node is what its tag says.
        unsafe {
            if is_a(clause, pg_sys::NodeTag::T_OpExpr) {
                let clause = clause.cast::<pg_sys::OpExpr>();
                let args = PgList::<Node>::from_pg((*clause).args);
                let (Some(left), Some(right), 2) = (args.get_ptr(0), args.get_ptr(1), args.len()) else {
                    return false;
                };
                if !is_exact((*clause).opno, (*clause).inputcollid) {
                    return false;
                }
                for (key, value) in [(left, right), (right, left)] {
                    if self.is_key(key) && self.is_known(value) {
                        terms.push((Kind::Key, value));
                        return true;
                    }
                }
                return false;
            }
            if is_a(clause, pg_sys::NodeTag::T_ScalarArrayOpExpr) {
                let clause = clause.cast::<pg_sys::ScalarArrayOpExpr>();
                let args = PgList::<Node>::from_pg((*clause).args);
                let (Some(key), Some(array), 2) = (args.get_ptr(0), args.get_ptr(1), args.len()) else {
                    return false;
                };
                let bounds = (*clause).useOr
                    && is_exact((*clause).opno, (*clause).inputcollid)
                    && self.is_key(key)
                    && pg_sys::exprType(array) == pg_sys::TEXTARRAYOID
                    && self.is_known(array);
                if bounds {
                    terms.push((Kind::Keys, array));
                }
                return bounds;
            }
            if is_a(clause, pg_sys::NodeTag::T_BoolExpr) {
                let clause = clause.cast::<pg_sys::BoolExpr>();
                let args = PgList::<Node>::from_pg((*clause).args);
                return (*clause).boolop == pg_sys::BoolExprType::OR_EXPR
                    && args.iter_ptr().all(|arg| self.collect(arg, terms));
            }
            false
        }
    }

    /// Whether an expression is the key's column, as the scan returns it.
    unsafe fn is_key(self, node: *mut Node) -> bool {
        // SAFETY: see `impl`; a node is what its tag says.
        unsafe {
            if node.is_null() || !is_a(node, pg_sys::NodeTag::T_Var) {
                return false;
            }
            let var = node.cast::<pg_sys::Var>();
            self.key > 0
                && (*var).varattno == self.key
                && (*var).varno as pg_sys::Index == (*self.rel).relid
                && (*var).varlevelsup == 0
                && (*var).vartype == pg_sys::TEXTOID
                && !is_nulled(var)
        }
    }

    /// Whether an expression has one value that can be computed before the scan of the relation begins.
    unsafe fn is_known(self, node: *mut Node) -> bool {
        // SAFETY: see `impl`.
        unsafe {
            let relations = pg_sys::pull_varnos(self.root, node);
            !pg_sys::bms_is_member((*self.rel).relid as i32, relations)
                && !pg_sys::contain_volatile_functions(node)
                && !pg_sys::contain_subplans(node)
        }
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn is_key(
    _root: *mut PlannerInfo,
    _rel: *mut RelOptInfo,
    _class: *mut pg_sys::EquivalenceClass,
    member: *mut pg_sys::EquivalenceMember,
    arg: *mut std::ffi::c_void,
) -> bool {
    // SAFETY: called inside `join_conditions`, whose argument it gets back.
    unsafe { (*arg.cast::<Relation>()).is_key((*member).em_expr.cast()) }
}

/// Whether it is the equality of texts, in a collation that tells different bytes apart.
unsafe fn is_exact(operator: Oid, collation: Oid) -> bool {
    // SAFETY: a syscache lookup of a collation that the expression depends on.
    unsafe {
        operator.to_u32() == pg_sys::TextEqualOperator
            && collation != Oid::INVALID
            && pg_sys::get_collation_isdeterministic(collation)
    }
}

#[cfg(any(feature = "pg15", feature = "pg16", feature = "pg17"))]
unsafe fn ascending(key: *mut pg_sys::PathKey) -> bool {
    // SAFETY: a valid path key.
    unsafe { (*key).pk_strategy == pg_sys::BTLessStrategyNumber as i32 }
}

#[cfg(feature = "pg18")]
unsafe fn ascending(key: *mut pg_sys::PathKey) -> bool {
    // SAFETY: a valid path key.
    unsafe { (*key).pk_cmptype == pg_sys::CompareType::COMPARE_LT }
}

/// Whether an outer join may have put NULL in the place of the column. Before 16 the planner itself keeps the two apart.
#[cfg(not(feature = "pg15"))]
unsafe fn is_nulled(var: *mut pg_sys::Var) -> bool {
    // SAFETY: a valid Var.
    unsafe { !(*var).varnullingrels.is_null() }
}

#[cfg(feature = "pg15")]
unsafe fn is_nulled(_var: *mut pg_sys::Var) -> bool {
    false
}
