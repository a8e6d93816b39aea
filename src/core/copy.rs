//! Rows in the binary format of `COPY`: what the server takes many rows at a time from.
//!
//! Source of the format: "Binary Format" in the documentation of COPY, and the `recv` functions of the types used. Runs in
//! the relay. The trap it avoids: a row with fewer or more fields than it said; the server would take the next row's
//! length for a field.

use std::net::IpAddr;

/// Signature, no flags, no header extension.
const HEADER: &[u8; 19] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// In place of a row's number of fields: the end.
const TRAILER: [u8; 2] = (-1i16).to_be_bytes();
/// In place of a field's length.
const NULL: [u8; 4] = (-1i32).to_be_bytes();
/// A numeric's digits are of this base.
const NBASE: u64 = 10_000;
/// Address families as the server numbers them in values of type inet.
const PGSQL_AF_INET: u8 = 2;
const PGSQL_AF_INET6: u8 = 3;

/// Rows of `fields` fields each.
#[derive(Debug)]
pub struct Rows {
    bytes: Vec<u8>,
    fields: i16,
    count: u64,
}

impl Rows {
    pub fn new(fields: i16) -> Self {
        Self { bytes: HEADER.to_vec(), fields, count: 0 }
    }

    /// The number of rows begun.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Begins a row, whose fields are put one after the other. A row with another number of fields than was promised is a
    /// defect of the caller, and panics.
    pub fn row(&mut self, put: impl FnOnce(&mut Row<'_>)) {
        self.bytes.extend_from_slice(&self.fields.to_be_bytes());
        self.count += 1;
        let mut row = Row { bytes: &mut self.bytes, left: self.fields };
        put(&mut row);
        assert!(row.left == 0, "{} fields are missing", row.left);
    }

    /// All bytes.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&TRAILER);
        self.bytes
    }
}

/// A row that is being written.
#[derive(Debug)]
pub struct Row<'a> {
    bytes: &'a mut Vec<u8>,
    left: i16,
}

impl Row<'_> {
    fn field(&mut self, bytes: &[u8]) {
        self.left -= 1;
        assert!(self.left >= 0, "a field too many");
        self.bytes.extend_from_slice(&(bytes.len() as i32).to_be_bytes());
        self.bytes.extend_from_slice(bytes);
    }

    pub fn null(&mut self) {
        self.left -= 1;
        assert!(self.left >= 0, "a field too many");
        self.bytes.extend_from_slice(&NULL);
    }

    /// A bigint, or a timestamptz in microseconds since 2000-01-01 00:00 UTC.
    pub fn bigint(&mut self, value: i64) {
        self.field(&value.to_be_bytes());
    }

    pub fn int(&mut self, value: Option<i32>) {
        match value {
            Some(value) => self.field(&value.to_be_bytes()),
            None => self.null(),
        }
    }

    pub fn uuid(&mut self, value: [u8; 16]) {
        self.field(&value);
    }

    pub fn text(&mut self, value: &str) {
        self.field(value.as_bytes());
    }

    pub fn opt_text(&mut self, value: Option<&str>) {
        match value {
            Some(value) => self.text(value),
            None => self.null(),
        }
    }

    /// A numeric without a fraction.
    pub fn numeric(&mut self, value: u64) {
        // Five digits are enough for 2^64.
        let mut digits = [0u16; 5];
        let (mut rest, mut count) = (value, 0);
        while rest > 0 {
            digits[count] = (rest % NBASE) as u16;
            rest /= NBASE;
            count += 1;
        }
        let mut out = [0u8; 8 + 2 * 5];
        out[0..2].copy_from_slice(&(count as u16).to_be_bytes());
        // The weight of the first digit; sign and scale are zero.
        out[2..4].copy_from_slice(&(count.saturating_sub(1) as u16).to_be_bytes());
        for (place, digit) in out[8..].chunks_exact_mut(2).zip(digits[..count].iter().rev()) {
            place.copy_from_slice(&digit.to_be_bytes());
        }
        self.field(&out[..8 + 2 * count]);
    }

    /// An inet: one host.
    pub fn inet(&mut self, address: Option<IpAddr>) {
        let mut out = [0u8; 4 + 16];
        let len = match address {
            None => return self.null(),
            Some(IpAddr::V4(address)) => {
                out[..4].copy_from_slice(&[PGSQL_AF_INET, 32, 0, 4]);
                out[4..8].copy_from_slice(&address.octets());
                8
            }
            Some(IpAddr::V6(address)) => {
                out[..4].copy_from_slice(&[PGSQL_AF_INET6, 128, 0, 16]);
                out[4..].copy_from_slice(&address.octets());
                20
            }
        };
        self.field(&out[..len]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(put: impl FnOnce(&mut Row<'_>)) -> Vec<u8> {
        let mut rows = Rows::new(1);
        rows.row(put);
        assert_eq!(rows.count(), 1);
        let bytes = rows.finish();
        assert_eq!(bytes[..19], HEADER[..]);
        assert_eq!(bytes[19..21], [0, 1]);
        assert_eq!(bytes[bytes.len() - 2..], [0xff, 0xff]);
        bytes[21..bytes.len() - 2].to_vec()
    }

    #[test]
    fn fields_are_as_the_server_wants_them() {
        assert_eq!(field(|row| row.null()), [0xff; 4]);
        assert_eq!(field(|row| row.int(None)), [0xff; 4]);
        assert_eq!(field(|row| row.opt_text(None)), [0xff; 4]);
        assert_eq!(field(|row| row.inet(None)), [0xff; 4]);
        assert_eq!(field(|row| row.int(Some(-2))), [0, 0, 0, 4, 0xff, 0xff, 0xff, 0xfe]);
        assert_eq!(field(|row| row.bigint(258)), [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(field(|row| row.text("né")), [0, 0, 0, 3, b'n', 0xc3, 0xa9]);
        assert_eq!(field(|row| row.opt_text(Some(""))), [0; 4]);
        assert_eq!(field(|row| row.uuid([7; 16]))[4..], [7; 16]);
        assert_eq!(
            field(|row| row.inet("10.1.2.3".parse().ok())),
            [0, 0, 0, 8, PGSQL_AF_INET, 32, 0, 4, 10, 1, 2, 3]
        );
        let six = field(|row| row.inet("::1".parse().ok()));
        assert_eq!((six.len(), &six[..8], six[23]), (24, &[0, 0, 0, 20, PGSQL_AF_INET6, 128, 0, 16][..], 1));
    }

    #[test]
    fn numerics() {
        // ndigits, weight, sign, dscale, digits: as numeric_send has them.
        assert_eq!(field(|row| row.numeric(0)), [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(field(|row| row.numeric(9999))[4..], [0, 1, 0, 0, 0, 0, 0, 0, 0x27, 0x0f]);
        assert_eq!(field(|row| row.numeric(10_000))[4..], [0, 2, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0]);
        // 1844 6744 0737 0955 1615
        let digits: Vec<u8> = [1844u16, 6744, 737, 955, 1615].iter().flat_map(|d| d.to_be_bytes()).collect();
        let most = field(|row| row.numeric(u64::MAX));
        assert_eq!(most[4..12], [0, 5, 0, 4, 0, 0, 0, 0]);
        assert_eq!(most[12..], digits);
    }

    #[test]
    #[should_panic(expected = "1 fields are missing")]
    fn a_short_row_is_a_defect() {
        Rows::new(2).row(|row| row.null());
    }

    #[test]
    #[should_panic(expected = "a field too many")]
    fn a_long_row_is_a_defect() {
        Rows::new(0).row(|row| row.bigint(1));
    }
}
