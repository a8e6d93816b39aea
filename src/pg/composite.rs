//! Values of the extension's composite types, made from their fields.
//!
//! Client backends and database workers, main thread. The trap it avoids: fields that are put by their number; an
//! administrator may add attributes to a type, and an upgrade adds its own behind those.

use std::cell::RefCell;
use std::ffi::CStr;

use pgrx::pg_sys::{self, Datum, Oid};

use super::index::Values;
use super::table;
use super::tuple;
use crate::error::{Kind, Result, VaultError};

/// A composite type of schema `vault`. Make it a `thread_local`.
pub struct RowType {
    name: &'static CStr,
    fields: &'static [&'static CStr],
    known: RefCell<Option<Known>>,
}

struct Known {
    oid: Oid,
    /// The number of each field in the type.
    numbers: Vec<i16>,
    width: usize,
    generation: u64,
}

impl RowType {
    pub const fn new(name: &'static CStr, fields: &'static [&'static CStr]) -> Self {
        Self { name, fields, known: RefCell::new(None) }
    }

    /// A value of the type, in the current memory context: one value for each of the fields, in their order. Attributes of
    /// others are NULL.
    pub fn form(&self, values: &[Option<Datum>]) -> Result<Datum> {
        assert!(values.len() == self.fields.len(), "a value for each field");
        let generation = table::generation();
        if self.known.borrow().as_ref().is_none_or(|known| known.generation != generation) {
            *self.known.borrow_mut() = Some(self.look_up(generation)?);
        }
        let known = self.known.borrow();
        let Some(known) = &*known else { return Err(self.missing()) };
        let mut row = Values::none(known.width);
        for (number, value) in known.numbers.iter().zip(values) {
            row.set(*number, *value);
        }
        // SAFETY: the descriptor is the type cache's, held while it is used; one value of its type for each attribute. What
        // becomes a datum has no pointer to values that are stored elsewhere.
        unsafe {
            let desc = pg_sys::lookup_rowtype_tupdesc(known.oid, -1);
            if (*desc).natts as usize != known.width {
                pg_sys::DecrTupleDescRefCount(desc);
                return Err(self.missing());
            }
            let tuple = pg_sys::heap_form_tuple(desc, row.values.as_mut_ptr(), row.nulls.as_mut_ptr());
            pg_sys::DecrTupleDescRefCount(desc);
            Ok(pg_sys::HeapTupleHeaderGetDatum((*tuple).t_data))
        }
    }

    #[cold]
    fn look_up(&self, generation: u64) -> Result<Known> {
        // SAFETY: syscache lookups on valid strings; the descriptor is read while it is held.
        unsafe {
            let schema = pg_sys::get_namespace_oid(c"vault".as_ptr(), true);
            let oid = pg_sys::GetSysCacheOid(
                pg_sys::SysCacheIdentifier::TYPENAMENSP as i32,
                pg_sys::Anum_pg_type_oid as i16,
                Datum::from(self.name.as_ptr()),
                Datum::from(schema),
                Datum::null(),
                Datum::null(),
            );
            if oid == Oid::INVALID {
                return Err(self.missing());
            }
            let desc = pg_sys::lookup_rowtype_tupdesc(oid, -1);
            let attributes = tuple::attributes(desc);
            pg_sys::DecrTupleDescRefCount(desc);
            let numbers = self
                .fields
                .iter()
                .map(|field| {
                    attributes.iter().position(|attribute| attribute.is(field)).map(|at| at as i16 + 1)
                })
                .collect::<Option<Vec<i16>>>()
                .ok_or_else(|| self.missing())?;
            Ok(Known { oid, numbers, width: attributes.len(), generation })
        }
    }

    fn missing(&self) -> VaultError {
        VaultError::new(
            Kind::WrongState,
            format!("type \"vault.{}\" does not fit the library", self.name.to_string_lossy()),
        )
        .hint("Run ALTER EXTENSION hyperion_vault UPDATE.")
    }
}
