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

/// More columns than the extension knows in any of its tables.
pub const MAX_COLUMNS: usize = 48;

/// No such column in this row.
const ABSENT: u32 = u32::MAX;
/// A value that is stored elsewhere: a pointer of 18 bytes (`VARTAG_ONDISK`).
const EXTERNAL: u8 = 0x01;
const ON_DISK: u8 = 18;
const POINTER_LEN: usize = 18;

/// A column as the server stores it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Bytes; 0: of varying length.
    len: u16,
    /// The alignment's logarithm.
    align: u8,
    /// Which column of the extension's it is, from 0; [`MAX_COLUMNS`] for somebody else's or a dropped one.
    place: u8,
}

/// How the columns of a table lie, up to the last one that the extension knows. Whatever an administrator adds to a table
/// may stand between them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    columns: Vec<Column>,
}

impl Layout {
    /// From `pg_attribute.attlen`, the alignment in bytes, and the number (from 1) that the extension has for the column,
    /// None for one that is not its own. None for what no table can have.
    pub fn new(columns: impl IntoIterator<Item = (i16, u8, Option<usize>)>) -> Option<Self> {
        let mut all = Vec::new();
        let mut known = 0;
        for (len, align, number) in columns {
            let len = match len {
                -1 => 0,
                1.. => len as u16,
                _ => return None,
            };
            if !matches!(align, 1 | 2 | 4 | 8) {
                return None;
            }
            let place = match number {
                Some(number) => number.checked_sub(1).filter(|place| *place < MAX_COLUMNS)?,
                None => MAX_COLUMNS,
            };
            all.push(Column { len, align: align.trailing_zeros() as u8, place: place as u8 });
            if number.is_some() {
                known = all.len();
            }
        }
        all.truncate(known);
        Some(Self { columns: all })
    }
}

/// A row taken apart. Columns are counted from 1, in the extension's own order.
pub struct Row<'a> {
    data: &'a [u8],
    /// The last place takes the columns of others.
    starts: [u32; MAX_COLUMNS + 1],
}

impl<'a> Row<'a> {
    /// `data` are the bytes of the `stored` first columns; in `nulls`, where there is one, a bit that is 0 means NULL.
    pub fn parse(data: &'a [u8], nulls: Option<&[u8]>, stored: usize, layout: &Layout) -> Option<Self> {
        // One that is not stored yet may hold a value of a megabyte.
        if data.len() >= ABSENT as usize {
            return None;
        }
        let mut starts = [ABSENT; MAX_COLUMNS + 1];
        let mut end = 0;
        for (i, column) in layout.columns.iter().take(stored).enumerate() {
            if let Some(nulls) = nulls
                && nulls.get(i / 8)? & 1 << (i % 8) == 0
            {
                continue;
            }
            let align = 1 << column.align;
            let (at, len) = match column.len {
                // A byte that is not 0 is no padding but the value's own first.
                0 if *data.get(end)? != 0 => (end, varlena_len(data.get(end..)?)?),
                0 => {
                    let at = end.next_multiple_of(align);
                    (at, varlena_len(data.get(at..)?)?)
                }
                len => (end.next_multiple_of(align), usize::from(len)),
            };
            end = at.checked_add(len).filter(|end| *end <= data.len())?;
            *starts.get_mut(usize::from(column.place))? = at as u32;
        }
        Some(Self { data, starts })
    }

    /// Where the column begins in the data; None if it is NULL.
    pub fn start(&self, column: usize) -> Option<usize> {
        let start = *self.starts.get(column.checked_sub(1).filter(|place| *place < MAX_COLUMNS)?)?;
        (start != ABSENT).then_some(start as usize)
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
        (data, nulls, layout(values))
    }

    /// Every column is the extension's, in the order of the table.
    fn layout(values: &[Value]) -> Layout {
        Layout::new(values.iter().enumerate().map(|(i, value)| {
            let (len, align) = value.column();
            (len, align, Some(i + 1))
        }))
        .unwrap()
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

    /// Columns of others before, between and behind the extension's own, and those in another order.
    #[test]
    fn columns_of_others_are_stepped_over() {
        let values = [
            Value::Fixed(b"a name of 64 bytes".iter().copied().chain([0; 46]).collect(), 1),
            Value::Fixed(7i32.to_ne_bytes().to_vec(), 4),
            Value::Short(b"somebody's".to_vec()),
            Value::Short(b"ours".to_vec()),
            Value::Fixed(9i64.to_ne_bytes().to_vec(), 8),
        ];
        let (data, nulls, _) = stored(&values);
        let numbers = [None, Some(2), None, Some(1), None];
        let layout = Layout::new(values.iter().zip(numbers).map(|(value, number)| {
            let (len, align) = value.column();
            (len, align, number)
        }))
        .unwrap();
        let row = Row::parse(&data, Some(&nulls), values.len(), &layout).unwrap();
        assert_eq!(row.inline(1), Some(&b"ours"[..]));
        assert_eq!(row.fixed::<4>(2), Some(7i32.to_ne_bytes()));
        assert_eq!((row.start(3), row.start(MAX_COLUMNS), row.start(MAX_COLUMNS + 1)), (None, None, None));
    }

    #[test]
    fn only_what_a_table_can_have_is_known() {
        let ours = |(len, align)| (len, align, Some(1));
        for (len, align) in
            [(-1, 4), (-1, 8), (-1, 1), (16, 1), (64, 1), (4, 4), (8, 8), (1, 1), (16, 8), (1000, 2)]
        {
            assert!(Layout::new([ours((len, align))]).is_some(), "{len} {align}");
        }
        // A C string is no column's type.
        for other in [(-2, 1), (0, 1), (4, 3)] {
            assert!(Layout::new([ours(other)]).is_none(), "{other:?}");
        }
        assert!(Layout::new([(4, 4, Some(MAX_COLUMNS))]).is_some());
        assert!(Layout::new([(4, 4, Some(MAX_COLUMNS + 1))]).is_none());
        assert!(Layout::new([(4, 4, Some(0))]).is_none());
        // However many others there are.
        assert!(Layout::new(std::iter::repeat_n((4, 4, None), 1600).chain([(4, 4, Some(1))])).is_some());
    }
}
