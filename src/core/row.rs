//! The columns of a stored row, found in its bytes.
//!
//! Runs on the hot read path of client backends. A row of the server's heap is a bitmap of the columns that are NULL and
//! the other ones behind each other, each aligned for its type (access/htup_details.h, varatt.h). Taking it apart
//! here, in bounds-checked code and only once, costs a quarter of what the server's own function does, which has more types to
//! think of. The trap it avoids: arithmetic on a stored length. Any bytes give columns or None, never a panic.
//!
//! Columns that were added to a table after the row was written are NULL, so an upgrade must not add one with a default.

#[cfg(target_endian = "big")]
compile_error!("the length words of stored values are read as on little-endian machines");

/// More than any of our tables has.
pub const MAX_COLUMNS: usize = 32;

/// No such column in this row.
const ABSENT: u16 = u16::MAX;
/// A value that is stored elsewhere: a pointer of 18 bytes (`VARTAG_ONDISK`).
const EXTERNAL: u8 = 0x01;
const ON_DISK: u8 = 18;
const POINTER_LEN: usize = 18;

/// Length and alignment of a table's columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// 0: of varying length, aligned to 4. Else the length in the low six bits, the alignment's logarithm in the others.
    columns: [u8; MAX_COLUMNS],
    count: usize,
}

impl Layout {
    /// From `pg_attribute.attlen` and the alignment in bytes. None for what none of our tables has.
    pub fn new(columns: impl IntoIterator<Item = (i16, u8)>) -> Option<Self> {
        let mut layout = Self { columns: [0; MAX_COLUMNS], count: 0 };
        for (len, align) in columns {
            let place = layout.columns.get_mut(layout.count)?;
            *place = match (len, align) {
                (-1, 4) => 0,
                (1..=63, 1 | 2 | 4 | 8) => u8::try_from(len).ok()? | (align.trailing_zeros() as u8) << 6,
                _ => return None,
            };
            layout.count += 1;
        }
        Some(layout)
    }
}

/// A row taken apart. Columns are counted from 1, as SQL does.
pub struct Row<'a> {
    data: &'a [u8],
    starts: [u16; MAX_COLUMNS],
}

impl<'a> Row<'a> {
    /// `data` are the bytes of the `stored` first columns; in `nulls`, where there is one, a bit that is 0 means NULL.
    pub fn parse(data: &'a [u8], nulls: Option<&[u8]>, stored: usize, layout: &Layout) -> Option<Self> {
        if data.len() >= usize::from(ABSENT) {
            return None;
        }
        let mut starts = [ABSENT; MAX_COLUMNS];
        let mut end = 0;
        let columns = &layout.columns[..stored.min(layout.count)];
        for (i, (start, column)) in starts.iter_mut().zip(columns).enumerate() {
            if let Some(nulls) = nulls
                && nulls.get(i / 8)? & 1 << (i % 8) == 0
            {
                continue;
            }
            let (at, len) = match column {
                // A byte that is not 0 is no padding but the value's own first.
                0 if *data.get(end)? != 0 => (end, varlena_len(data.get(end..)?)?),
                0 => {
                    let at = end.next_multiple_of(4);
                    (at, varlena_len(data.get(at..)?)?)
                }
                code => (end.next_multiple_of(1 << (code >> 6)), usize::from(code & 63)),
            };
            end = at.checked_add(len).filter(|end| *end <= data.len())?;
            *start = at as u16;
        }
        Some(Self { data, starts })
    }

    /// Where the column begins in the data; None if it is NULL.
    pub fn start(&self, column: usize) -> Option<usize> {
        let start = *self.starts.get(column.checked_sub(1)?)?;
        (start != ABSENT).then_some(usize::from(start))
    }

    /// A column of this length.
    pub fn fixed<const N: usize>(&self, column: usize) -> Option<[u8; N]> {
        self.data.get(self.start(column)?..)?.first_chunk().copied()
    }

    /// The bytes of a column of varying length, if they are stored here as they are: neither compressed nor elsewhere.
    pub fn inline(&self, column: usize) -> Option<&'a [u8]> {
        let value = self.data.get(self.start(column)?..)?;
        let header = match *value.first()? {
            EXTERNAL => return None,
            first if first & 1 == 1 => 1,
            first if first & 3 == 0 => 4,
            _ => return None,
        };
        value.get(header..varlena_len(value)?)
    }
}

/// The length of the value at the start of `bytes`, header included.
fn varlena_len(bytes: &[u8]) -> Option<usize> {
    match *bytes.first()? {
        EXTERNAL => (*bytes.get(1)? == ON_DISK).then_some(POINTER_LEN),
        first if first & 1 == 1 => Some(usize::from(first >> 1)),
        _ => {
            let len = (u32::from_le_bytes(*bytes.first_chunk()?) >> 2) as usize;
            (len >= 4).then_some(len)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A column's value as it may be stored.
    #[derive(Clone, Debug)]
    enum Value {
        Null,
        Fixed(Vec<u8>, u8),
        Short(Vec<u8>),
        Long(Vec<u8>),
        Compressed(Vec<u8>),
        External,
    }

    impl Value {
        fn column(&self) -> (i16, u8) {
            match self {
                Value::Fixed(bytes, align) => (bytes.len() as i16, *align),
                _ => (-1, 4),
            }
        }

        /// Appends it as the server would.
        fn store(&self, row: &mut Vec<u8>) {
            let pad = |row: &mut Vec<u8>, align: usize| row.resize(row.len().next_multiple_of(align), 0);
            let long = |row: &mut Vec<u8>, bytes: &[u8], bits: u32| {
                pad(row, 4);
                row.extend_from_slice(&((bytes.len() as u32 + 4) << 2 | bits).to_le_bytes());
                row.extend_from_slice(bytes);
            };
            match self {
                Value::Null => {}
                Value::Fixed(bytes, align) => {
                    pad(row, usize::from(*align));
                    row.extend_from_slice(bytes);
                }
                Value::Short(bytes) => {
                    row.push((bytes.len() as u8 + 1) << 1 | 1);
                    row.extend_from_slice(bytes);
                }
                Value::Long(bytes) => long(row, bytes, 0),
                Value::Compressed(bytes) => long(row, bytes, 2),
                Value::External => {
                    row.extend_from_slice(&[EXTERNAL, ON_DISK]);
                    row.extend_from_slice(&[0xee; 16]);
                }
            }
        }
    }

    fn values() -> impl Strategy<Value = Vec<Value>> {
        let bytes = |len| prop::collection::vec(any::<u8>(), len);
        let value = prop_oneof![
            Just(Value::Null),
            Just(Value::External),
            (bytes(16..17), prop::sample::select(vec![1u8, 8])).prop_map(|(b, a)| Value::Fixed(b, a)),
            (prop::sample::select(vec![1u8, 2, 4, 8])).prop_flat_map(move |n| {
                bytes(usize::from(n)..usize::from(n) + 1).prop_map(move |b| Value::Fixed(b, n))
            }),
            bytes(0..126).prop_map(Value::Short),
            bytes(0..400).prop_map(Value::Long),
            bytes(4..400).prop_map(Value::Compressed),
        ];
        prop::collection::vec(value, 0..=MAX_COLUMNS)
    }

    fn stored(values: &[Value]) -> (Vec<u8>, Vec<u8>, Layout) {
        let mut data = Vec::new();
        let mut nulls = vec![0u8; values.len().div_ceil(8)];
        for (i, value) in values.iter().enumerate() {
            value.store(&mut data);
            if !matches!(value, Value::Null) {
                nulls[i / 8] |= 1 << (i % 8);
            }
        }
        (data, nulls, Layout::new(values.iter().map(Value::column)).unwrap())
    }

    proptest! {
        #[test]
        fn what_was_stored_is_found(values in values()) {
            let (data, nulls, layout) = stored(&values);
            let row = Row::parse(&data, Some(&nulls), values.len(), &layout).unwrap();
            for (i, value) in values.iter().enumerate() {
                let column = i + 1;
                match value {
                    Value::Null => prop_assert_eq!(row.start(column), None),
                    Value::Fixed(bytes, _) => {
                        let start = row.start(column).unwrap();
                        prop_assert_eq!(&data[start..start + bytes.len()], &bytes[..]);
                        if bytes.len() == 8 {
                            prop_assert_eq!(&row.fixed::<8>(column).unwrap()[..], &bytes[..]);
                        }
                    }
                    Value::Short(bytes) | Value::Long(bytes) => {
                        prop_assert_eq!(row.inline(column), Some(&bytes[..]));
                    }
                    Value::Compressed(_) | Value::External => {
                        prop_assert_eq!(row.inline(column), None);
                        prop_assert!(row.start(column).is_some());
                    }
                }
            }
            prop_assert_eq!(row.start(0), None);
            prop_assert_eq!(row.start(values.len() + 1), None);
        }

        /// A row from before a column was added.
        #[test]
        fn columns_that_came_later_are_null(values in values(), stored_columns in 0..=MAX_COLUMNS) {
            let (data, nulls, layout) = stored(&values);
            let row = Row::parse(&data, Some(&nulls), stored_columns, &layout).unwrap();
            for column in stored_columns + 1..=MAX_COLUMNS {
                prop_assert_eq!(row.start(column), None);
            }
        }

        #[test]
        fn any_bytes_are_parsed_without_panic(
            values in values(), data in prop::collection::vec(any::<u8>(), 0..300),
            nulls in prop::option::of(prop::collection::vec(any::<u8>(), 0..5)), count in 0..40usize,
        ) {
            let (_, _, layout) = stored(&values);
            if let Some(row) = Row::parse(&data, nulls.as_deref(), count, &layout) {
                for column in 0..40 {
                    let _ = (row.start(column), row.fixed::<16>(column), row.inline(column));
                }
            }
        }

        /// A row that ends too early has no columns at all, rather than some.
        #[test]
        fn a_row_cut_short_is_refused(values in values(), cut in 1..50usize) {
            let (data, nulls, layout) = stored(&values);
            // Trailing columns of length zero do not exist: every value has a byte.
            if let Some(shorter) = data.len().checked_sub(cut) {
                prop_assert!(Row::parse(&data[..shorter], Some(&nulls), values.len(), &layout).is_none());
            }
        }
    }

    #[test]
    fn only_the_types_of_our_tables_are_known() {
        assert!(Layout::new([(-1, 4), (16, 1), (4, 4), (8, 8), (1, 1), (16, 8)]).is_some());
        // A C string, a varlena of doubles, a type longer than the code has room for.
        for other in [(-2, 1), (-1, 8), (64, 1), (0, 1), (4, 3)] {
            assert!(Layout::new([other]).is_none(), "{other:?}");
        }
        assert!(Layout::new([(4, 4); MAX_COLUMNS]).is_some());
        assert!(Layout::new([(4, 4); MAX_COLUMNS + 1]).is_none());
    }
}
