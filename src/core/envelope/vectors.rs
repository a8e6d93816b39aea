//! Known answers: every Wycheproof XChaCha20-Poly1305 vector, and this format's own bytes.
//!
//! Test only. The trap it avoids: a suite that shrinks or is skipped without anyone noticing, so the counts are
//! asserted. The format's answers were computed with a separate implementation, written in Python from the
//! RFCs: bytes on disk are for ever, and a change to layout or AAD has to fail here first. All keys in this
//! file are test constants.

use wycheproof::TestResult;
use wycheproof::aead::{TestName, TestSet};

use super::aead::{open_raw, seal_with_nonce};
use super::format::{NONCE_LEN, TAG_LEN};
use super::*;

const VAULT: Id = Id([0x11; 16]);
const SECRET: Id = Id([0x22; 16]);
const VERSION: Id = Id([0x33; 16]);

/// The key 00 01 … 1f.
fn counting_key() -> [u8; KEY_LEN] {
    std::array::from_fn(|i| i as u8)
}

/// The nonce 40 41 … 57.
fn counting_nonce() -> [u8; NONCE_LEN] {
    std::array::from_fn(|i| 0x40 + i as u8)
}

fn hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks_exact(2);
    assert!(digits.remainder().is_empty());
    digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

#[test]
fn wycheproof() {
    let set = TestSet::load(TestName::XChaCha20Poly1305).unwrap();
    assert_eq!(set.number_of_tests, 315);
    let (mut valid, mut invalid, mut bad_nonce) = (0, 0, 0);
    for group in &set.test_groups {
        assert_eq!((group.key_size, group.tag_size), (8 * KEY_LEN, 8 * TAG_LEN));
        for test in &group.tests {
            let id = test.tc_id;
            let key = Dek::from_slice(&test.key).unwrap();
            let sealed = [&[1], &test.nonce[..], &test.ct, &test.tag].concat();
            let mut out = vec![0xAA; test.ct.len()];
            let opened = open_raw(&key, &test.aad, &sealed, &mut out);
            let nonce = <&[u8; NONCE_LEN]>::try_from(&test.nonce[..]);
            assert_eq!(nonce.is_ok(), group.nonce_size == 8 * NONCE_LEN, "case {id}");
            match (nonce, test.result) {
                (Ok(nonce), TestResult::Valid) => {
                    assert_eq!(opened, Ok(()), "case {id}");
                    assert_eq!(out, test.pt[..], "case {id}");
                    let again = seal_with_nonce(&key, nonce, &test.aad, &test.pt).unwrap();
                    assert_eq!(again, sealed, "case {id}");
                    valid += 1;
                }
                (nonce, result) => {
                    assert_eq!(result, TestResult::Invalid, "case {id}");
                    assert_eq!(opened, Err(CryptoError::Unauthenticated), "case {id}");
                    assert!(out.iter().all(|byte| *byte == 0), "case {id}");
                    *(if nonce.is_ok() { &mut invalid } else { &mut bad_nonce }) += 1;
                }
            }
        }
    }
    assert_eq!((valid, invalid, bad_nonce), (246, 60, 9));
}

#[test]
fn sealed_value_is_the_known_answer() {
    let key = Dek::from_slice(&counting_key()).unwrap();
    let aad =
        SecretAad { vault: VAULT, secret: SECRET, name: "db/password", version: 7, format: Format::Opaque };
    let known_aad = hex(concat!(
        "0700000000000000",
        "0f00000000000000",
        "6879706572696f6e5f7661756c7401",
        "0c00000000000000",
        "7365637265742d76616c7565",
        "1000000000000000",
        "11111111111111111111111111111111",
        "1000000000000000",
        "22222222222222222222222222222222",
        "0b00000000000000",
        "64622f70617373776f7264",
        "0400000000000000",
        "07000000",
        "0100000000000000",
        "01",
    ));
    let known = hex(concat!(
        "01",
        "404142434445464748494a4b4c4d4e4f5051525354555657",
        "b7567702b5830d36e79bf5cdcabc07f3e6cec8b66a7920ee0b419120",
        "a205ef981e68be43f8ad4dad4e524603",
    ));
    let plaintext = b"correct horse battery staple";
    assert_eq!(aad.encode().as_bytes(), known_aad);
    assert_eq!(seal_with_nonce(&key, &counting_nonce(), &known_aad, plaintext).unwrap(), known);
    assert_eq!(open(&key, &aad, &known).unwrap().as_bytes(), plaintext);
}

#[test]
fn wrapped_dek_is_the_known_answer() {
    let master = MasterKey::from_slice(&counting_key()).unwrap();
    let context = DekContext { vault: VAULT, secret: SECRET, version: VERSION };
    let known = hex(concat!(
        "01",
        "404142434445464748494a4b4c4d4e4f5051525354555657",
        "8e635f2a8aba234cd5aedde4f5c63fc8c8e0f79e490309c0306ba71f535e79ca",
        "f32dfcef755e96e2d9e68b012557cbee",
    ));
    assert_eq!(unwrap_dek(&master, &context, &known).unwrap().as_bytes(), &[0x5a; KEY_LEN]);
}

#[test]
fn digests_are_the_known_answers() {
    let master = MasterKey::from_slice(&counting_key()).unwrap();
    assert_eq!(master.fingerprint()[..], hex("677fc2c69c6d5e56"));
    // Without the label it would be 630dcd29…, the hash anybody else may publish of the same file.
    let context = DekContext { vault: VAULT, secret: SECRET, version: VERSION };
    let known = hex("ddafeb10d6c5e825c6cad60958e35c39988505442da120222608043c0c41925a");
    assert_eq!(context.cache_digest(b"wrapped")[..], known);
}
