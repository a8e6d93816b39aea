//! A row of one of the extension's tables, as its columns.
//!
//! Client backends and database workers, main thread. What a row gives out are views into the server's page, which stays
//! pinned while the row is visited: nothing is copied. The trap it avoids: the row's header holds hint bits that other
//! processes set meanwhile; only the parts of it that never change are looked at, and no reference to it is made.

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
            Some(Self { row, data, place: Place { block, offset: at.ip_posid }, _page: PhantomData })
        }
    }

    pub(super) fn place(&self) -> Place {
        self.place
    }

    pub fn uuid(&self, column: i16) -> Option<Id> {
        self.row.fixed(column as usize).map(Id)
    }

    pub fn int(&self, column: i16) -> Option<i32> {
        self.row.fixed(column as usize).map(i32::from_ne_bytes)
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

    pub fn text(&self, column: i16) -> Option<&'a str> {
        self.bytes(column).and_then(|bytes| std::str::from_utf8(bytes).ok())
    }

    /// A `cidr[]` column; Some(None) if it cannot be read.
    pub fn cidr_array(&self, column: i16) -> Option<Option<Vec<hyperion_vault_core::IpNet>>> {
        // SAFETY: the column is cidr[].
        self.pointer(column).map(|d| unsafe { datum::cidr_array(d) })
    }

    /// A by-reference column as the server passes it around.
    fn pointer(&self, column: i16) -> Option<Datum> {
        // SAFETY: a column begins within the row's bytes.
        self.row.start(column as usize).map(|start| Datum::from(unsafe { self.data.add(start) }.cast_mut()))
    }
}

/// How the columns of a table with this descriptor lie.
///
/// # Safety
/// The descriptor is valid.
pub unsafe fn layout(desc: pg_sys::TupleDesc) -> Option<Layout> {
    // SAFETY: as the caller promises: natts entries follow the descriptor.
    let columns = unsafe {
        #[cfg(any(feature = "pg15", feature = "pg16", feature = "pg17"))]
        let columns = (*desc).attrs.as_slice((*desc).natts as usize);
        #[cfg(feature = "pg18")]
        let columns = (*desc).compact_attrs.as_slice((*desc).natts as usize);
        columns
    };
    Layout::new(columns.iter().map(|column| {
        #[cfg(any(feature = "pg15", feature = "pg16", feature = "pg17"))]
        let align = match column.attalign as u8 {
            b'c' => 1,
            b's' => 2,
            b'i' => 4,
            b'd' => 8,
            _ => 0,
        };
        #[cfg(feature = "pg18")]
        let align = column.attalignby;
        (column.attlen, align)
    }))
}
