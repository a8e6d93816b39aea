//! Values between Postgres' representation and ours.
//!
//! Main thread only. Results are allocated in the current memory context, as the server expects of a function.

use std::cell::RefCell;
use std::ffi::{CStr, c_char};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hyperion_vault_core::IpNet;
use hyperion_vault_core::envelope::Id;
use pgrx::pg_sys::{self, Datum};

/// A C string of the server, with anything that is not UTF-8 replaced.
///
/// # Safety
/// `text` is null or a NUL-terminated string.
pub unsafe fn cstr_lossy(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: as the caller promises.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// The bytes of a text or bytea datum, detoasted where it must be.
///
/// # Safety
/// `datum` is a varlena that stays in place for `'a`: an argument of the running function, or a column of a tuple
/// the caller holds. A detoasted copy lives in the current memory context, which must outlive `'a` too.
pub unsafe fn varlena_bytes<'a>(datum: Datum) -> &'a [u8] {
    // SAFETY: as the caller promises.
    unsafe {
        let value: *mut pg_sys::varlena = datum.cast_mut_ptr();
        // Most are plain, and need no call into the server.
        let plain = !pgrx::varatt_is_1b_e(value) && !pgrx::varatt_is_4b_c(value);
        let packed = if plain { value } else { pg_sys::pg_detoast_datum_packed(value) };
        pgrx::varlena::varlena_to_byte_slice(packed)
    }
}

/// How many bytes a text or bytea datum has, also if they are stored elsewhere.
///
/// # Safety
/// `datum` is a varlena.
pub unsafe fn varlena_length(datum: Datum) -> usize {
    /// Its length word counts itself.
    const HEADER: usize = 4;
    // SAFETY: as the caller promises.
    unsafe { pg_sys::toast_raw_datum_size(datum) }.saturating_sub(HEADER)
}

/// A small number that was made a datum, such as a worker's argument.
pub fn index(datum: Datum) -> usize {
    datum.value()
}

/// The header of a varlena with a four-byte length.
const VARHDRSZ: usize = 4;

/// A new varlena of `len` payload bytes, filled in place: the value is never in a buffer of ours that would have to
/// be wiped. On an error the allocation is wiped and freed.
pub fn varlena_with<E>(len: usize, fill: impl FnOnce(&mut [u8]) -> Result<(), E>) -> Result<Datum, E> {
    // SAFETY: palloc returns len + 4 writable bytes or raises; the slice covers exactly the payload, zeroed first
    // so that no uninitialised memory is seen.
    unsafe {
        let base = pg_sys::palloc0(len + VARHDRSZ).cast::<u8>();
        pgrx::varlena::set_varsize_4b(base.cast(), (len + VARHDRSZ) as i32);
        let payload = std::slice::from_raw_parts_mut(base.add(VARHDRSZ), len);
        match fill(payload) {
            Ok(()) => Ok(Datum::from(base)),
            Err(e) => {
                zeroize::Zeroize::zeroize(payload);
                pg_sys::pfree(base.cast());
                Err(e)
            }
        }
    }
}

/// A new varlena holding a copy of `bytes`: a text or a bytea.
pub fn varlena(bytes: &[u8]) -> Datum {
    varlena_with::<std::convert::Infallible>(bytes.len(), |out| {
        out.copy_from_slice(bytes);
        Ok(())
    })
    .unwrap_or_else(|never| match never {})
}

/// A uuid datum: a pointer to 16 bytes.
pub fn uuid(id: Id) -> Datum {
    // SAFETY: palloc returns 16 writable bytes or raises.
    unsafe {
        let place = pg_sys::palloc(16).cast::<[u8; 16]>();
        place.write(id.0);
        Datum::from(place)
    }
}

/// # Safety
/// `datum` is a uuid.
pub unsafe fn uuid_from(datum: Datum) -> Id {
    // SAFETY: a uuid datum points to 16 bytes (byte alignment).
    Id(unsafe { datum.cast_mut_ptr::<[u8; 16]>().read() })
}

/// The address family byte of an inet or cidr value (utils/inet.h: AF_INET, and AF_INET + 1 for IPv6).
const PGSQL_AF_INET: u8 = libc::AF_INET as u8;
const PGSQL_AF_INET6: u8 = PGSQL_AF_INET + 1;

/// An inet or cidr value. None for anything that is not one.
///
/// # Safety
/// `datum` is an inet or cidr varlena.
pub unsafe fn inet(datum: Datum) -> Option<IpNet> {
    // SAFETY: as the caller promises. Payload: family, prefix length, then 4 or 16 address bytes.
    let bytes = unsafe { varlena_bytes(datum) };
    let (&[family, bits], rest) = bytes.split_first_chunk::<2>()?;
    let address: IpAddr = match family {
        PGSQL_AF_INET => Ipv4Addr::from(*rest.first_chunk::<4>()?).into(),
        PGSQL_AF_INET6 => Ipv6Addr::from(*rest.first_chunk::<16>()?).into(),
        _ => return None,
    };
    IpNet::new(address, bits).ok()
}

/// The elements of a one-dimensional array of a by-reference type, nulls as None.
///
/// # Safety
/// `datum` is an array whose element type has the given length and alignment; the array stays in place while the
/// result is used.
pub unsafe fn array_elements(
    datum: Datum,
    element_type: pg_sys::Oid,
    length: i32,
    align: u8,
) -> Vec<Option<Datum>> {
    let mut values: *mut Datum = std::ptr::null_mut();
    let mut nulls: *mut bool = std::ptr::null_mut();
    let mut count = 0;
    // SAFETY: as the caller promises; deconstruct_array sets the three results.
    unsafe {
        let array = pg_sys::pg_detoast_datum(datum.cast_mut_ptr()).cast::<pg_sys::ArrayType>();
        pg_sys::deconstruct_array(
            array,
            element_type,
            length,
            false,
            align as c_char,
            &mut values,
            &mut nulls,
            &mut count,
        );
        (0..count as usize).map(|i| (!*nulls.add(i)).then(|| *values.add(i))).collect()
    }
}

/// The networks of a `cidr[]`. None if an element is null or not an address: the caller must refuse.
///
/// # Safety
/// `datum` is a `cidr[]`.
pub unsafe fn cidr_array(datum: Datum) -> Option<Vec<IpNet>> {
    // SAFETY: cidr is a varlena with int alignment (pg_type).
    let elements = unsafe { array_elements(datum, pg_sys::CIDROID, -1, b'i') };
    // SAFETY: the elements of a cidr[] are cidr values.
    elements.into_iter().map(|element| unsafe { inet(element?) }).collect()
}

/// The oids of an `oid[]`. None if an element is null.
///
/// # Safety
/// `datum` is an `oid[]`.
pub unsafe fn oid_array(datum: Datum) -> Option<Vec<pg_sys::Oid>> {
    // SAFETY: as the caller promises.
    unsafe { <Vec<Option<pg_sys::Oid>> as pgrx::FromDatum>::from_datum(datum, false) }?.into_iter().collect()
}

/// A new `oid[]`.
pub fn oid_array_from(oids: &[pg_sys::Oid]) -> Datum {
    use pgrx::IntoDatum;
    // An array is never null.
    oids.to_vec().into_datum().unwrap_or(Datum::null())
}

/// The text form of a numeric.
///
/// # Safety
/// `datum` is a numeric.
pub unsafe fn numeric_text(datum: Datum) -> String {
    // SAFETY: as the caller promises; numeric_out returns a palloc'd C string.
    unsafe {
        let text = pgrx::direct_function_call_as_datum(pg_sys::numeric_out, &[Some(datum)]);
        text.map_or_else(String::new, |text| cstr_lossy(text.cast_mut_ptr()))
    }
}

/// A numeric without a fraction.
pub fn numeric_from(value: u64) -> Datum {
    use pgrx::IntoDatum;
    // A numeric is never null.
    pgrx::AnyNumeric::from(value).into_datum().unwrap_or(Datum::null())
}

/// An inet: one host.
pub fn inet_from(address: IpAddr) -> Datum {
    let mut bytes = [0u8; 2 + 16];
    let len = match address {
        IpAddr::V4(address) => {
            bytes[..2].copy_from_slice(&[PGSQL_AF_INET, 32]);
            bytes[2..6].copy_from_slice(&address.octets());
            6
        }
        IpAddr::V6(address) => {
            bytes[..2].copy_from_slice(&[PGSQL_AF_INET6, 128]);
            bytes[2..].copy_from_slice(&address.octets());
            18
        }
    };
    varlena(&bytes[..len])
}

/// A new `cidr[]` from the text form of one.
pub fn cidr_array_from_text(text: &str) -> crate::error::Result<Datum> {
    let text = std::ffi::CString::new(text)
        .map_err(|_| crate::error::VaultError::internal("a list of networks with a zero byte"))?;
    // SAFETY: the input function of cidr[] on a C string; the result is palloc'd.
    unsafe {
        let array = pg_sys::Oid::from_u32(CIDR_ARRAY);
        let (mut input, mut io_param) = (pg_sys::Oid::INVALID, pg_sys::Oid::INVALID);
        pg_sys::getTypeInputInfo(array, &mut input, &mut io_param);
        Ok(pg_sys::OidInputFunctionCall(input, text.as_ptr().cast_mut(), io_param, -1))
    }
}

/// `cidr[]` in pg_type.
const CIDR_ARRAY: u32 = 651;

/// A timestamp plus an interval of months, days and microseconds, counted in UTC whatever the session's time zone is.
/// Raises the server's error if the sum is out of range.
pub fn plus_interval(at: i64, (month, day, time): (i32, i32, i64)) -> i64 {
    let mut interval = pg_sys::Interval { time, day, month };
    // SAFETY: timestamp_pl_interval, unlike the one for timestamptz, knows no time zone; both store microseconds.
    unsafe {
        pgrx::direct_function_call_as_datum(
            pg_sys::timestamp_pl_interval,
            &[Some(Datum::from(at)), Some(Datum::from(&raw mut interval))],
        )
    }
    .map_or(at, |sum| sum.value() as i64)
}

/// The strings of a `text[]`. None if an element is null or not UTF-8.
///
/// # Safety
/// `datum` is a `text[]`.
pub unsafe fn text_array(datum: Datum) -> Option<Vec<String>> {
    // SAFETY: text is a varlena with int alignment (pg_type).
    let elements = unsafe { array_elements(datum, pg_sys::TEXTOID, -1, b'i') };
    elements
        .into_iter()
        // SAFETY: the elements of a text[] are texts, in place as long as the array is.
        .map(|element| std::str::from_utf8(unsafe { varlena_bytes(element?) }).ok().map(str::to_owned))
        .collect()
}

/// A new `text[]`.
pub fn text_array_from(texts: impl IntoIterator<Item = String>) -> Datum {
    use pgrx::IntoDatum;
    // An array is never null.
    texts.into_iter().collect::<Vec<_>>().into_datum().unwrap_or(Datum::null())
}

/// The text form of a jsonb value.
///
/// # Safety
/// `datum` is a jsonb.
pub unsafe fn jsonb_text(datum: Datum) -> String {
    // SAFETY: as the caller promises; JsonbToCString allocates its result in the current context.
    unsafe {
        let jsonb = pg_sys::pg_detoast_datum(datum.cast_mut_ptr()).cast::<pg_sys::Jsonb>();
        let text = pg_sys::JsonbToCString(
            std::ptr::null_mut(),
            &mut (*jsonb).root,
            pgrx::varsize(jsonb.cast()) as i32,
        );
        cstr_lossy(text)
    }
}

/// A jsonb from its text form, which must be valid.
pub fn jsonb(value: &serde_json::Value) -> Datum {
    use pgrx::IntoDatum;
    // A jsonb datum is never null.
    pgrx::JsonB(value.clone()).into_datum().unwrap_or(Datum::null())
}

/// A jsonb from its text form, which must be valid JSON and small enough for a jsonb: the server raises if it is not.
pub fn jsonb_from_text(text: &str) -> crate::error::Result<Datum> {
    let text = std::ffi::CString::new(text)
        .map_err(|_| crate::error::VaultError::internal("JSON with a zero byte"))?;
    // SAFETY: jsonb_in takes a C string and returns a jsonb, allocated in the current context.
    unsafe { pgrx::direct_function_call_as_datum(pg_sys::jsonb_in, &[Some(Datum::from(text.as_ptr()))]) }
        .ok_or_else(|| crate::error::VaultError::internal("jsonb_in returned NULL"))
}

/// A new interval.
pub fn interval_from(month: i32, day: i32, time: i64) -> Datum {
    // SAFETY: palloc returns enough writable and aligned bytes or raises.
    unsafe {
        let place = pg_sys::palloc(size_of::<pg_sys::Interval>()).cast::<pg_sys::Interval>();
        place.write(pg_sys::Interval { time, day, month });
        Datum::from(place)
    }
}

/// The parts of an interval: months, days, microseconds.
///
/// # Safety
/// `datum` is an interval.
pub unsafe fn interval(datum: Datum) -> (i32, i32, i64) {
    // SAFETY: an interval datum points to an Interval.
    let parts = unsafe { &*datum.cast_mut_ptr::<pg_sys::Interval>() };
    (parts.month, parts.day, parts.time)
}

/// The parts of an interval that a caller gave for a parameter of that type, or a column of it holds: months, days,
/// microseconds.
pub fn interval_parts(value: Datum) -> (i32, i32, i64) {
    // SAFETY: datums of the API's arguments and of rows are passed on for what they were declared.
    unsafe { interval(value) }
}

/// Type and label of an enum, and the value.
type Label = (&'static str, &'static str, Datum);

thread_local! {
    /// Enum values by type and label, and the generation of the relation cache in which they were looked up: a type is
    /// made anew only with the extension, whose tables are made anew too.
    static LABELS: RefCell<(u64, Vec<Label>)> = const { RefCell::new((0, Vec::new())) };
}

/// The enum value of that label. The type must have it. Remembered: the server parses the type's name for it.
pub fn enum_value(type_name: &'static str, label: &'static str) -> Datum {
    let generation = super::table::generation();
    let known = LABELS.with_borrow(|(seen, labels)| {
        let same = |(of, known, _): &&Label| *of == type_name && *known == label;
        (*seen == generation).then(|| labels.iter().find(same).map(|(.., value)| *value)).flatten()
    });
    known.unwrap_or_else(|| {
        let value = pgrx::enum_helper::lookup_enum_by_label(type_name, label);
        LABELS.with_borrow_mut(|(seen, labels)| {
            if *seen != generation {
                labels.clear();
                *seen = generation;
            }
            labels.push((type_name, label, value));
        });
        value
    })
}
