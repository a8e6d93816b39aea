//! Property tests of seal and open: what is sealed opens unchanged in its place, and nothing else opens at all.
//!
//! Test only. The trap it avoids: "refused" checked on one lucky position; damage is tried at every bit and every
//! length. All keys and values in this file are test constants or random.

use std::collections::HashSet;

use proptest::prelude::*;

use super::format::NONCE_LEN;
use super::*;

const AAD: SecretAad<'static> = SecretAad {
    vault: Id([0x11; 16]),
    secret: Id([0x22; 16]),
    name: "db/password",
    version: 7,
    format: Format::Opaque,
};

fn dek() -> Dek {
    Dek::generate().unwrap()
}

/// Both ways of opening say no, and the caller's buffer is left all zero.
#[track_caller]
fn assert_refused(dek: &Dek, aad: &SecretAad<'_>, sealed: &[u8], what: &str) {
    assert_eq!(open(dek, aad, sealed).unwrap_err(), CryptoError::Unauthenticated, "{what}");
    let mut out = vec![0xAA; plaintext_len(sealed).unwrap_or(5)];
    assert_eq!(open_into(dek, aad, sealed, &mut out), Err(CryptoError::Unauthenticated), "{what}");
    assert!(out.iter().all(|byte| *byte == 0), "{what}");
}

fn formats() -> impl Strategy<Value = Format> {
    prop::sample::select(&Format::ALL[..])
}

prop_compose! {
    /// A place and the name it borrows.
    fn places()(vault: [u8; 16], secret: [u8; 16], name in ".{0,200}", version: u32, format in formats())
        -> (String, SecretAad<'static>) {
        (name, SecretAad { vault: Id(vault), secret: Id(secret), name: "", version, format })
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn round_trip(key: [u8; 32], (name, place) in places(), value in prop::collection::vec(any::<u8>(), 0..8192)) {
        prop_assume!(key != [0; 32]);
        let dek = Dek::from_slice(&key).unwrap();
        let aad = SecretAad { name: &name, ..place };
        let sealed = seal(&dek, &aad, &value).unwrap();
        prop_assert_eq!(sealed.len(), value.len() + SEALED_OVERHEAD);
        prop_assert_eq!(plaintext_len(&sealed), Ok(value.len()));
        let plaintext = open(&dek, &aad, &sealed).unwrap();
        prop_assert_eq!(plaintext.as_bytes(), &value[..]);
        let mut out = vec![0xAA; value.len()];
        prop_assert_eq!(open_into(&dek, &aad, &sealed, &mut out), Ok(()));
        prop_assert_eq!(out, value);
    }

    /// Two places that differ at all: each opens its own and not the other's.
    #[test]
    fn another_place_is_refused((a_name, a) in places(), (b_name, b) in places(), take: [bool; 5]) {
        // Take each property of b or not, so that neighbours differing in one of them are common.
        let a = SecretAad { name: &a_name, ..a };
        let b = SecretAad {
            vault: if take[0] { b.vault } else { a.vault },
            secret: if take[1] { b.secret } else { a.secret },
            name: if take[2] { &b_name } else { a.name },
            version: if take[3] { b.version } else { a.version },
            format: if take[4] { b.format } else { a.format },
        };
        let key = dek();
        let sealed = seal(&key, &a, b"value").unwrap();
        prop_assert_eq!(open(&key, &b, &sealed).is_ok(), a == b);
        prop_assert_eq!(a.encode().as_bytes() == b.encode().as_bytes(), a == b);
    }

    #[test]
    fn any_bytes_are_refused_without_panic(
        version in prop_oneof![Just(1u8), any::<u8>()],
        body in prop::collection::vec(any::<u8>(), 0..300),
        out_len in 0..300usize,
    ) {
        let sealed = [&[version][..], &body].concat();
        assert_refused(&dek(), &AAD, &sealed, "random bytes");
        assert_refused(&dek(), &AAD, &body, "random bytes");
        let mut out = vec![0xAA; out_len];
        prop_assert!(open_into(&dek(), &AAD, &sealed, &mut out).is_err());
        prop_assert!(out.iter().all(|byte| *byte == 0));
    }
}

#[test]
fn the_largest_value_round_trips() {
    let key = dek();
    let value: Vec<u8> = (0..1 << 20).map(|i| (i * 31 + i / 251) as u8).collect();
    let mut sealed = seal(&key, &AAD, &value).unwrap();
    assert_eq!(open(&key, &AAD, &sealed).unwrap().as_bytes(), value);
    *sealed.last_mut().unwrap() ^= 1;
    assert_refused(&key, &AAD, &sealed, "last bit");
}

#[test]
fn every_bit_flip_is_refused() {
    let key = dek();
    // Empty, a part of a block, a whole ChaCha block, more than one of them.
    for len in [0, 1, 15, 64, 100] {
        let mut sealed = seal(&key, &AAD, &vec![0x5a; len]).unwrap();
        for bit in 0..sealed.len() * 8 {
            sealed[bit / 8] ^= 1 << (bit % 8);
            assert_refused(&key, &AAD, &sealed, &format!("length {len}, bit {bit}"));
            sealed[bit / 8] ^= 1 << (bit % 8);
        }
        assert!(open(&key, &AAD, &sealed).is_ok());
    }
}

#[test]
fn every_truncation_and_extension_is_refused() {
    let key = dek();
    // Zeros, because padding of the MAC input is zeros too.
    for value in [&[0; 0][..], &[0; 40]] {
        let sealed = seal(&key, &AAD, value).unwrap();
        for cut in 1..=sealed.len() {
            assert_refused(&key, &AAD, &sealed[..sealed.len() - cut], &format!("{cut} cut from the end"));
            assert_refused(&key, &AAD, &sealed[cut..], &format!("{cut} cut from the start"));
        }
        for at in 0..=sealed.len() {
            for extra in [&[0][..], &[1], &[0; 16], &[0xff; 64]] {
                let longer = [&sealed[..at], extra, &sealed[at..]].concat();
                assert_refused(&key, &AAD, &longer, &format!("{} inserted at {at}", extra.len()));
            }
        }
    }
}

#[test]
fn every_other_place_and_key_is_refused() {
    let key = dek();
    let sealed = seal(&key, &AAD, b"value").unwrap();
    let other = Id([0x23; 16]);
    let places = [
        SecretAad { vault: other, ..AAD },
        SecretAad { secret: other, ..AAD },
        SecretAad { vault: AAD.secret, secret: AAD.vault, ..AAD },
        SecretAad { name: "", ..AAD },
        SecretAad { name: "db/passwor", ..AAD },
        SecretAad { name: "db/password\0", ..AAD },
        SecretAad { name: "DB/password", ..AAD },
        SecretAad { version: 6, ..AAD },
        SecretAad { version: 7 << 8, ..AAD },
        SecretAad { version: 0, ..AAD },
        SecretAad { format: Format::Binary, ..AAD },
        SecretAad { format: Format::Userpass, ..AAD },
    ];
    for place in &places {
        assert_refused(&key, place, &sealed, &format!("{place:?}"));
    }
    assert_refused(&dek(), &AAD, &sealed, "other key");
    let mut near = *key.as_bytes();
    for bit in 0..256 {
        near[bit / 8] ^= 1 << (bit % 8);
        assert_refused(&Dek::from_slice(&near).unwrap(), &AAD, &sealed, &format!("key bit {bit}"));
        near[bit / 8] ^= 1 << (bit % 8);
    }
    // The control: with nothing changed it opens.
    assert_eq!(open(&key, &AAD, &sealed).unwrap().as_str(), Ok("value"));
}

#[test]
fn every_other_purpose_is_refused() {
    let key = dek();
    let fields: &[&[u8]] = &[b"same", b"fields"];
    for sealed_for in Purpose::ALL {
        let sealed = seal_with_aad(&key, &Aad::encode(sealed_for, fields), b"value").unwrap();
        for opened_for in Purpose::ALL {
            let opened = open_with_aad(&key, &Aad::encode(opened_for, fields), &sealed);
            assert_eq!(opened.is_ok(), sealed_for == opened_for, "{sealed_for:?} as {opened_for:?}");
        }
    }
}

#[test]
fn swapped_nonces_and_swapped_rows_are_refused() {
    let key = dek();
    let (a, b) = (seal(&key, &AAD, b"value a").unwrap(), seal(&key, &AAD, b"value b").unwrap());
    let spliced = [&a[..1 + NONCE_LEN], &b[1 + NONCE_LEN..]].concat();
    assert_refused(&key, &AAD, &spliced, "nonce of another seal");
    // Two rows of one table, each with its own key, their sealed bytes exchanged.
    let other = SecretAad { secret: Id([0x33; 16]), name: "db/other", ..AAD };
    let other_key = dek();
    let c = seal(&other_key, &other, b"value c").unwrap();
    assert_refused(&key, &AAD, &c, "row of another secret");
    assert_refused(&other_key, &other, &a, "row of another secret");
    // Nor does it help to move the key along with the bytes.
    assert_refused(&other_key, &AAD, &c, "row and key of another secret");
    assert_eq!(open(&other_key, &other, &c).unwrap().as_str(), Ok("value c"));
}

#[test]
fn buffers_of_another_length_are_refused_and_wiped() {
    let key = dek();
    let sealed = seal(&key, &AAD, b"value").unwrap();
    for len in (0..20).filter(|len| *len != 5) {
        let mut out = vec![0xAA; len];
        assert_eq!(open_into(&key, &AAD, &sealed, &mut out), Err(CryptoError::Unauthenticated));
        assert_eq!(out, vec![0; len]);
    }
}

#[test]
fn nonces_are_distinct_and_random_in_every_byte() {
    let key = dek();
    let sealed: Vec<Vec<u8>> = (0..2000).map(|_| seal(&key, &AAD, b"value").unwrap()).collect();
    let nonces: HashSet<&[u8]> = sealed.iter().map(|bytes| &bytes[1..1 + NONCE_LEN]).collect();
    assert_eq!(nonces.len(), 2000);
    for at in 0..NONCE_LEN {
        // 2000 uniform bytes miss a given value with 0.04 %: about 255.9 distinct values, never below 200.
        let values: HashSet<u8> = nonces.iter().map(|nonce| nonce[at]).collect();
        assert!(values.len() > 200, "byte {at} of the nonce takes {} values", values.len());
    }
}

#[test]
fn errors_are_flat() {
    assert_eq!(CryptoError::Unauthenticated.to_string(), "cannot be authenticated");
    let key = dek();
    let sealed = seal(&key, &AAD, b"value").unwrap();
    let mut version = sealed.clone();
    version[0] = 2;
    let mut tag = sealed.clone();
    tag[sealed.len() - 1] ^= 1;
    let errors: HashSet<String> = [&version, &tag, &sealed[..9].to_vec(), &vec![]]
        .map(|bytes| format!("{:?}", open(&key, &AAD, bytes).unwrap_err()))
        .into();
    assert_eq!(errors.len(), 1, "{errors:?}");
}

/// The fast Poly1305 for short values is chosen by a flag of the build (`.cargo/config.toml`), which a `RUSTFLAGS` variable
/// takes away: a read of 64 bytes then takes twice as long, and nothing else would tell.
#[test]
#[allow(unexpected_cfgs, reason = "a flag of the poly1305 crate")]
fn the_build_has_the_fast_poly1305() {
    #[cfg(not(poly1305_force_soft))]
    panic!("RUSTFLAGS overrides the flags of .cargo/config.toml");
}
