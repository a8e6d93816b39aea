//! A row of one of the extension's tables, as its columns.
//!
//! Client backends and database workers, main thread. What a row gives out are views into the server's page, which stays
//! pinned while the row is visited: nothing is copied. The trap it avoids: the row's header holds hint bits that other
//! processes set meanwhile; only the parts of it that never change are looked at, and no reference to it is made.

use std::ffi::CStr;
use std::marker::PhantomData;

use hyperion_vault_core::cache::Place;
use hyperion_vault_core::envelope::Id;
use hyperion_vault_core::row::{Layout, Row};
use pgrx::pg_sys::{self, Datum};

use super::datum;

/// A row during a visit.
pub struct Tuple<'a> {
    row: Row<'a>,
    /// Where the columns' bytes begin.
    data: *const u8,
    place: Place,
    tuple: pg_sys::HeapTuple,
    _page: PhantomData<&'a [u8]>,
}

impl<'a> Tuple<'a> {
    /// None for bytes that are no such row.
    ///
    /// # Safety
    /// The tuple is one of a table with this layout and stays in place for `'a`.
    pub unsafe fn new(tuple: pg_sys::HeapTuple, layout: &Layout) -> Option<Self> {
        // SAFETY: as the caller promises. Header fields are read one by one, since hint bits beside those looked at may
        // change at any time; bitmap and data do not change in a row that somebody sees.
        unsafe {
            let header = (*tuple).t_data;
            let stored = (&raw const (*header).t_infomask2).read_volatile() as usize
                & pg_sys::HEAP_NATTS_MASK as usize;
            let has_nulls =
                (&raw const (*header).t_infomask).read_volatile() & pg_sys::HEAP_HASNULL as u16 != 0;
            let offset = usize::from((*header).t_hoff);
            let len = ((*tuple).t_len as usize).checked_sub(offset)?;
            let bitmap_at = std::mem::offset_of!(pg_sys::HeapTupleHeaderData, t_bits);
            let bitmap = (header.cast::<u8>().add(bitmap_at), offset.checked_sub(bitmap_at)?);
            let data = header.cast::<u8>().add(offset).cast_const();
            let row = Row::parse(
                std::slice::from_raw_parts(data, len),
                has_nulls.then(|| std::slice::from_raw_parts(bitmap.0, bitmap.1)),
                stored,
                layout,
            )?;
            let at = &(*tuple).t_self;
            let block = u32::from(at.ip_blkid.bi_hi) << 16 | u32::from(at.ip_blkid.bi_lo);
            Some(Self { row, data, place: Place { block, offset: at.ip_posid }, tuple, _page: PhantomData })
        }
    }

    pub(super) fn place(&self) -> Place {
        self.place
    }

    /// Where the row is, as the server says it.
    pub(super) fn item_pointer(&self) -> pg_sys::ItemPointerData {
        // SAFETY: the tuple is in place for `'a`.
        unsafe { (*self.tuple).t_self }
    }

    pub(super) fn heap_tuple(&self) -> pg_sys::HeapTuple {
        self.tuple
    }

    pub fn uuid(&self, column: i16) -> Option<Id> {
        self.row.fixed(column as usize).map(Id)
    }

    pub fn int(&self, column: i16) -> Option<i32> {
        self.row.fixed(column as usize).map(i32::from_ne_bytes)
    }

    pub fn short(&self, column: i16) -> Option<i16> {
        self.row.fixed(column as usize).map(i16::from_ne_bytes)
    }

    pub fn bigint(&self, column: i16) -> Option<i64> {
        self.row.fixed(column as usize).map(i64::from_ne_bytes)
    }

    pub fn bool(&self, column: i16) -> Option<bool> {
        self.row.fixed(column as usize).map(|[byte]| byte != 0)
    }

    pub fn oid(&self, column: i16) -> Option<pg_sys::Oid> {
        self.row.fixed(column as usize).map(|bytes| pg_sys::Oid::from(u32::from_ne_bytes(bytes)))
    }

    /// A column of an enum type, as the value it is in results.
    pub fn label(&self, column: i16) -> Option<Datum> {
        self.row.fixed(column as usize).map(|bytes| Datum::from(u32::from_ne_bytes(bytes)))
    }

    pub fn timestamp(&self, column: i16) -> Option<i64> {
        self.row.fixed(column as usize).map(i64::from_ne_bytes)
    }

    /// The bytes of a text or bytea column, if they lie in the row as they are.
    pub fn inline(&self, column: i16) -> Option<&'a [u8]> {
        self.row.inline(column as usize)
    }

    /// The bytes of a text or bytea column, fetched or decompressed where they must be.
    pub fn bytes(&self, column: i16) -> Option<&'a [u8]> {
        self.inline(column).or_else(|| {
            // SAFETY: the column is a varlena, in place during the visit; a detoasted copy lives in the function's
            // own memory, longer.
            self.pointer(column).map(|d| unsafe { datum::varlena_bytes(d) })
        })
    }

    /// How many bytes a text or bytea column has, without fetching them.
    pub fn length(&self, column: i16) -> Option<usize> {
        // SAFETY: the column is a varlena, in place during the visit.
        self.pointer(column).map(|d| unsafe { datum::varlena_length(d) })
    }

    pub fn text(&self, column: i16) -> Option<&'a str> {
        self.bytes(column).and_then(|bytes| std::str::from_utf8(bytes).ok())
    }

    /// A `cidr[]` column; Some(None) if it cannot be read.
    pub fn cidr_array(&self, column: i16) -> Option<Option<Vec<hyperion_vault_core::IpNet>>> {
        // SAFETY: the column is cidr[].
        self.pointer(column).map(|d| unsafe { datum::cidr_array(d) })
    }

    /// An `interval` column as (months, days, microseconds).
    pub fn interval(&self, column: i16) -> Option<(i32, i32, i64)> {
        // SAFETY: the column is an interval, aligned as the server stores it.
        self.pointer(column).map(|d| unsafe { datum::interval(d) })
    }

    /// A `jsonb` column in text form.
    pub fn jsonb(&self, column: i16) -> Option<String> {
        // SAFETY: the column is jsonb.
        self.pointer(column).map(|d| unsafe { datum::jsonb_text(d) })
    }

    /// An `oid[]` column; Some(None) if it cannot be read.
    pub fn oid_array(&self, column: i16) -> Option<Option<Vec<pg_sys::Oid>>> {
        // SAFETY: the column is oid[].
        self.pointer(column).map(|d| unsafe { datum::oid_array(d) })
    }

    /// A `numeric` column without a fraction, as text.
    pub fn numeric(&self, column: i16) -> Option<String> {
        // SAFETY: the column is numeric.
        self.pointer(column).map(|d| unsafe { datum::numeric_text(d) })
    }

    /// A column of a varlena or interval type as the server passes it around, in place during the visit.
    pub fn pointer(&self, column: i16) -> Option<Datum> {
        // SAFETY: a column begins within the row's bytes.
        self.row.start(column as usize).map(|start| Datum::from(unsafe { self.data.add(start) }.cast_mut()))
    }
}

/// A column as the catalog describes it.
pub(super) struct Attribute {
    /// Empty for a column that was dropped.
    name: String,
    pub len: i16,
    /// In bytes.
    pub align: u8,
    type_oid: pg_sys::Oid,
    not_null: bool,
    generated: bool,
}

impl Attribute {
    pub fn is(&self, name: &CStr) -> bool {
        self.name.as_bytes() == name.to_bytes()
    }

    /// Why a row of the extension's, which has NULL there, cannot be written to the table.
    pub fn obstacle(&self) -> Option<String> {
        if self.name.is_empty() {
            return None;
        }
        let of = |what: &str| Some(format!("Column \"{}\" {what}.", self.name));
        // SAFETY: a lookup in the type cache; any oid will do.
        let constrained = || unsafe { pg_sys::DomainHasConstraints(self.type_oid) };
        if self.generated {
            of("is generated")
        } else if self.not_null {
            of("is NOT NULL")
        } else if constrained() {
            of("has a domain type with constraints")
        } else {
            None
        }
    }
}

/// The columns of a table with this descriptor, dropped ones too.
///
/// # Safety
/// The descriptor is valid.
pub(super) unsafe fn attributes(desc: pg_sys::TupleDesc) -> Vec<Attribute> {
    // SAFETY: as the caller promises: natts entries follow the descriptor.
    unsafe {
        (0..(*desc).natts)
            .map(|i| {
                #[cfg(feature = "pg18")]
                let attribute = &*pg_sys::TupleDescAttr(desc, i);
                #[cfg(not(feature = "pg18"))]
                let attribute = &*(*desc).attrs.as_ptr().add(i as usize);
                Attribute {
                    name: if attribute.attisdropped {
                        String::new()
                    } else {
                        datum::cstr_lossy(attribute.attname.data.as_ptr())
                    },
                    len: attribute.attlen,
                    align: match attribute.attalign as u8 {
                        b'c' => 1,
                        b's' => 2,
                        b'i' => 4,
                        b'd' => 8,
                        _ => 0,
                    },
                    type_oid: attribute.atttypid,
                    not_null: attribute.attnotnull,
                    generated: attribute.attgenerated != 0,
                }
            })
            .collect()
    }
}
