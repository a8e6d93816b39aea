//! SQL-callable functions: their arguments, results and entry points.
//!
//! Declarations are hand-written in `sql/30_functions.sql`, so entry points are plain version-1 functions made by
//! [`sql_function!`]. Runs in client backends, main thread. The trap it avoids: an argument read as a type it does
//! not have: each accessor names the SQL type the declaration must give at that position; a test compares them.

use std::cell::RefCell;

use pgrx::pg_sys::{self, Datum, FunctionCallInfo};

use super::datum;
use crate::error::Result;

/// The arguments of the running call.
pub struct Args {
    fcinfo: FunctionCallInfo,
}

/// What a function returns.
pub enum Return {
    /// NULL, or a set handed over on the side.
    Null,
    /// Of a function that returns void: not NULL, as of the server's own.
    Void,
    Value(Datum),
}

impl Args {
    /// # Safety
    /// `fcinfo` is that of the function being called, for the duration of the call.
    pub unsafe fn new(fcinfo: FunctionCallInfo) -> Self {
        Self { fcinfo }
    }

    pub(super) fn raw(&self) -> FunctionCallInfo {
        self.fcinfo
    }

    /// The argument as it is, None for NULL (or a position the call does not have).
    pub fn datum(&self, index: usize) -> Option<Datum> {
        // SAFETY: fcinfo is valid (see `new`); args has nargs entries.
        unsafe {
            let info = &*self.fcinfo;
            if index >= info.nargs as usize {
                return None;
            }
            let argument = &*info.args.as_ptr().add(index);
            (!argument.isnull).then_some(argument.value)
        }
    }

    /// A `text` argument. The database is UTF-8 (checked before), so every text is.
    pub fn text(&self, index: usize) -> Option<&str> {
        // SAFETY: declared text; stays in place during the call, which outlives `&self`. The server validates the
        // encoding of every text it lets in, and only a UTF-8 database gets here; checked all the same.
        self.datum(index).and_then(|d| std::str::from_utf8(unsafe { datum::varlena_bytes(d) }).ok())
    }

    /// A `bytea` argument.
    pub fn bytes(&self, index: usize) -> Option<&[u8]> {
        // SAFETY: declared bytea; stays in place during the call, which outlives `&self`.
        self.datum(index).map(|d| unsafe { datum::varlena_bytes(d) })
    }

    /// A `boolean` argument.
    pub fn bool(&self, index: usize) -> Option<bool> {
        self.datum(index).map(|d| d.value() & 0xff != 0)
    }

    /// An `int` argument.
    pub fn int(&self, index: usize) -> Option<i32> {
        self.datum(index).map(|d| d.value() as i32)
    }

    /// An `oid` or `regrole` argument.
    pub fn oid(&self, index: usize) -> Option<pg_sys::Oid> {
        self.datum(index).map(|d| pg_sys::Oid::from(d.value() as u32))
    }

    /// A `uuid` argument.
    pub fn uuid(&self, index: usize) -> Option<hyperion_vault_core::envelope::Id> {
        // SAFETY: declared uuid.
        self.datum(index).map(|d| unsafe { datum::uuid_from(d) })
    }

    /// Whether the argument is the same for the whole statement, a constant or a bound parameter; also if nothing is
    /// known of the call. Then it may be the planner that calls.
    pub fn is_constant(&self, index: usize) -> bool {
        // SAFETY: fcinfo is valid; flinfo, where set, is the executor's, and its expression lives as long.
        unsafe {
            let flinfo = (*self.fcinfo).flinfo;
            flinfo.is_null()
                || (*flinfo).fn_expr.is_null()
                || pg_sys::get_fn_expr_arg_stable(flinfo, index as i32)
        }
    }

    /// A `jsonb` argument, in text form.
    pub fn jsonb(&self, index: usize) -> Option<String> {
        // SAFETY: declared jsonb.
        self.datum(index).map(|d| unsafe { datum::jsonb_text(d) })
    }

    /// An `interval` argument as (months, days, microseconds).
    pub fn interval(&self, index: usize) -> Option<(i32, i32, i64)> {
        // SAFETY: declared interval.
        self.datum(index).map(|d| unsafe { datum::interval(d) })
    }

    /// A `cidr[]` argument; Err(()) if it holds a NULL.
    pub fn cidr_array(&self, index: usize) -> Option<Result<Vec<hyperion_vault_core::IpNet>, ()>> {
        // SAFETY: declared cidr[].
        self.datum(index).map(|d| unsafe { datum::cidr_array(d) }.ok_or(()))
    }

    /// A `text[]` argument; Err(()) if it holds a NULL.
    pub fn text_array(&self, index: usize) -> Option<Result<Vec<String>, ()>> {
        // SAFETY: declared text[].
        self.datum(index).map(|d| unsafe { datum::text_array(d) }.ok_or(()))
    }

    /// The label of an enum argument.
    pub fn enum_label(&self, index: usize) -> Option<String> {
        use pgrx::FromDatum;
        let value = self.datum(index)?;
        // SAFETY: declared as an enum type, whose datum is the oid of its pg_enum row.
        let oid = unsafe { pg_sys::Oid::from_datum(value, false) }?;
        let (label, _, _) = pgrx::enum_helper::lookup_enum_by_oid(oid);
        Some(label)
    }

    /// A composite result built from values in the order of the declared OUT parameters.
    pub fn row(&self, values: &mut [Datum], nulls: &mut [bool]) -> Return {
        let desc = self.result_desc();
        // SAFETY: the descriptor is this session's for good; `values` has one entry per column (checked).
        unsafe {
            assert!((*desc).natts as usize == values.len(), "function result does not match its declaration");
            let tuple = pg_sys::heap_form_tuple(desc, values.as_mut_ptr(), nulls.as_mut_ptr());
            Return::Value(pg_sys::HeapTupleHeaderGetDatum((*tuple).t_data))
        }
    }

    /// The row type of the function's result. Made once per session and function, since making one reads the function's
    /// declaration; whoever evaluates the call compares it with the declaration it was planned for.
    fn result_desc(&self) -> pg_sys::TupleDesc {
        thread_local! {
            static DESCS: RefCell<Vec<(pg_sys::Oid, pg_sys::TupleDesc)>> = const { RefCell::new(Vec::new()) };
        }
        // SAFETY: fcinfo is valid; flinfo, where set, is the caller's.
        let function = unsafe {
            let flinfo = (*self.fcinfo).flinfo;
            if flinfo.is_null() { pg_sys::Oid::INVALID } else { (*flinfo).fn_oid }
        };
        let known =
            DESCS.with_borrow(|descs| descs.iter().find(|(of, _)| *of == function).map(|(_, desc)| *desc));
        known.unwrap_or_else(|| {
            let mut desc: pg_sys::TupleDesc = std::ptr::null_mut();
            // SAFETY: fcinfo is valid; a function declared with OUT parameters resolves to a composite (checked). The copy
            // is in memory that lasts as long as the session, and so does the row type that it is registered as.
            let desc = unsafe {
                let class = pg_sys::get_call_result_type(self.fcinfo, std::ptr::null_mut(), &mut desc);
                assert!(
                    class == pg_sys::TypeFuncClass::TYPEFUNC_COMPOSITE,
                    "function result does not match its declaration"
                );
                let before = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
                let desc = pg_sys::CreateTupleDescCopy(desc);
                pg_sys::MemoryContextSwitchTo(before);
                pg_sys::BlessTupleDesc(desc)
            };
            DESCS.with_borrow_mut(|descs| descs.push((function, desc)));
            desc
        })
    }

    /// What a trigger is told, if this is the call of one.
    pub(super) fn trigger(&self) -> Option<*mut pg_sys::TriggerData> {
        // SAFETY: fcinfo is valid; a context node whose tag says so is the trigger's data.
        unsafe {
            let context = (*self.fcinfo).context;
            (!context.is_null() && (*context).type_ == pg_sys::NodeTag::T_TriggerData)
                .then(|| context.cast::<pg_sys::TriggerData>())
        }
    }

    pub(super) fn set_result_null(&self, null: bool) {
        // SAFETY: fcinfo is valid.
        unsafe { (*self.fcinfo).isnull = null };
    }

    /// Runs a function's body and turns its result into what the server wants.
    pub fn call(self, body: impl FnOnce(&Args) -> Result<Return>) -> Datum {
        match body(&self) {
            Ok(Return::Value(value)) => {
                self.set_result_null(false);
                value
            }
            Ok(Return::Void) => {
                self.set_result_null(false);
                Datum::null()
            }
            Ok(Return::Null) => {
                self.set_result_null(true);
                Datum::null()
            }
            Err(error) => error.raise(),
        }
    }
}

/// Makes the version-1 entry point `$name` (with its `pg_finfo_` record) for `$body: fn(&Args) -> Result<Return>`.
macro_rules! sql_function {
    ($name:ident, $finfo:ident, $body:path) => {
        $crate::pg::fcinfo::sql_function!(@entry $name, $finfo, $body);
    };
    (@entry $name:ident, $finfo:ident, $body:expr) => {
        #[unsafe(no_mangle)]
        #[doc(hidden)]
        pub extern "C" fn $finfo() -> &'static ::pgrx::pg_sys::Pg_finfo_record {
            static VERSION_1: ::pgrx::pg_sys::Pg_finfo_record =
                ::pgrx::pg_sys::Pg_finfo_record { api_version: 1 };
            &VERSION_1
        }

        /// # Safety
        /// Called by the server's function manager only.
        #[unsafe(no_mangle)]
        #[doc(hidden)]
        #[::pgrx::pg_guard]
        pub unsafe extern "C-unwind" fn $name(
            fcinfo: ::pgrx::pg_sys::FunctionCallInfo,
        ) -> ::pgrx::pg_sys::Datum {
            // SAFETY: the function manager passes the call's own fcinfo.
            unsafe { $crate::pg::fcinfo::Args::new(fcinfo) }.call($body)
        }
    };
}

/// The same for a function of the API, each call of which leaves a record: `$action` is what it says was done, `$kind` a
/// variant of [`crate::audit::Kind`].
macro_rules! audited {
    ($name:ident, $finfo:ident, $function:literal, $action:literal, $kind:ident, $body:path) => {
        $crate::pg::fcinfo::sql_function!(@entry $name, $finfo, |args: &$crate::pg::fcinfo::Args| {
            static OPERATION: $crate::audit::Operation = $crate::audit::Operation {
                function: $function,
                action: $action,
                kind: $crate::audit::Kind::$kind,
            };
            $crate::audit::run(&OPERATION, || $body(args))
        });
    };
}
pub(crate) use {audited, sql_function};
