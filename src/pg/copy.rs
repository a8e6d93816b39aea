//! Many rows at a time into a table of ours: the server's own `COPY … FROM`, from memory.
//!
//! The relay, main thread, in a transaction with an active snapshot. It fills pages instead of rows, logs them by the page,
//! and still does for each row what an INSERT does: constraints, defaults, all indexes there are. It asks for no
//! privilege and knows no row-level security (the server's COPY command does that before it gets here), and runs triggers:
//! whoever calls it has looked at those ([`Spi::begin_writing`](super::spi::Spi::begin_writing)).
//!
//! The trap it avoids: the callback that hands out bytes has no argument of its own, so what it reads from is kept per
//! thread; a call that an error ended must not leave anything of it for the next.

use std::cell::Cell;
use std::ffi::{CStr, c_int, c_void};

use pgrx::pg_sys;

use crate::error::{Result, VaultError};

mod raw {
    use super::*;

    unsafe extern "C-unwind" {
        /// parser/parse_relation.h, the same on all majors.
        pub fn addRangeTableEntryForRelation(
            pstate: *mut pg_sys::ParseState,
            relation: pg_sys::Relation,
            lockmode: c_int,
            alias: *mut pg_sys::Alias,
            inh: bool,
            in_from_cl: bool,
        ) -> *mut c_void;
    }
}

thread_local! {
    /// What is left of the bytes that are being copied.
    static SOURCE: Cell<&'static [u8]> = const { Cell::new(&[]) };
}

/// Inserts rows in COPY's binary format into a table of schema vault; the number of rows.
pub fn binary(table: &CStr, columns: &[&CStr], bytes: &[u8]) -> Result<u64> {
    // SAFETY: lookups on valid strings; the relation is open, and locked until the end of the transaction, while it is
    // used. The lists and nodes are made with the server's own functions, in the current memory context, which outlives
    // the copy; strings in them are only read. SOURCE is emptied below, or by the next call, before `bytes` can go: the
    // callback is called by CopyFrom alone, and an error that leaves it ends the copy.
    unsafe {
        let schema = pg_sys::get_namespace_oid(c"vault".as_ptr(), true);
        let oid = pg_sys::get_relname_relid(table.as_ptr(), schema);
        if oid == pg_sys::Oid::INVALID {
            return Err(VaultError::internal(format!("table vault.{} is gone", table.to_string_lossy())));
        }
        let relation = pg_sys::table_open(oid, pg_sys::RowExclusiveLock as c_int);
        let parse = pg_sys::make_parsestate(std::ptr::null_mut());
        pg_sys::ffi::pg_guard_ffi_boundary(|| {
            raw::addRangeTableEntryForRelation(
                parse,
                relation,
                pg_sys::RowExclusiveLock as c_int,
                std::ptr::null_mut(),
                false,
                false,
            )
        });
        let names = columns.iter().fold(std::ptr::null_mut(), |list, name| {
            pg_sys::lappend(list, pg_sys::makeString(name.as_ptr().cast_mut()).cast())
        });
        let format = pg_sys::makeString(c"binary".as_ptr().cast_mut());
        let option = pg_sys::makeDefElem(c"format".as_ptr().cast_mut(), format.cast(), -1);
        SOURCE.set(std::slice::from_raw_parts(bytes.as_ptr(), bytes.len()));
        let copy = pg_sys::BeginCopyFrom(
            parse,
            relation,
            std::ptr::null_mut(),
            std::ptr::null(),
            false,
            Some(next),
            names,
            pg_sys::lappend(std::ptr::null_mut(), option.cast()),
        );
        let copied = pg_sys::CopyFrom(copy);
        pg_sys::EndCopyFrom(copy);
        SOURCE.set(&[]);
        pg_sys::free_parsestate(parse);
        pg_sys::table_close(relation, pg_sys::NoLock as c_int);
        Ok(copied)
    }
}

/// Hands out up to `most` of the bytes that are left; 0 at their end. Raises nothing.
unsafe extern "C-unwind" fn next(out: *mut c_void, _least: c_int, most: c_int) -> c_int {
    let source = SOURCE.get();
    let (now, rest) = source.split_at(source.len().min(most.max(0) as usize));
    SOURCE.set(rest);
    // SAFETY: the server gives room for `most` bytes; the source lives as long as the copy.
    unsafe { std::ptr::copy_nonoverlapping(now.as_ptr(), out.cast(), now.len()) };
    now.len() as c_int
}
