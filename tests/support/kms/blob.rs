//! Wrapped keys as the fake key service makes them. Pure.
//!
//! `magic, key id length, key id, material id, nonce, sealed`, with all before the nonce and the encryption context as
//! associated data. The trap is a context that is merely concatenated: `{"ab": "c"}` would open what `{"a": "bc"}`
//! sealed. Here pairs are sorted, counted, and each part carries its length.

use crate::sys::random_bytes;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use std::collections::BTreeMap;

const MAGIC: &[u8; 4] = b"FKM\x01";
const NONCE: usize = 24;
const MATERIAL: usize = 32;

/// An encryption context; a map keeps its pairs sorted.
pub(super) type Context = BTreeMap<String, String>;

/// A wrapped key taken apart, not yet opened.
pub(super) struct Blob<'a> {
    pub key_id: &'a str,
    pub material_id: [u8; MATERIAL],
    header: &'a [u8],
    nonce: [u8; NONCE],
    sealed: &'a [u8],
}

pub(super) fn seal(
    key_id: &str,
    material_id: &[u8; MATERIAL],
    material: &[u8; 32],
    context: &Context,
    plaintext: &[u8],
) -> Vec<u8> {
    let mut blob = MAGIC.to_vec();
    blob.push(u8::try_from(key_id.len()).expect("our key ids are short"));
    blob.extend(key_id.as_bytes());
    blob.extend(material_id);
    let nonce = random_bytes::<NONCE>();
    let payload = Payload { msg: plaintext, aad: &associated_data(&blob, context) };
    let sealed = XChaCha20Poly1305::new(material.into())
        .encrypt(&XNonce::from(nonce), payload)
        .expect("plaintexts of a few kilobytes are within the cipher's limit");
    blob.extend(nonce);
    blob.extend(sealed);
    blob
}

impl<'a> Blob<'a> {
    /// `None` if these bytes are no wrapped key of any fake key service.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(MAGIC)?;
        let (&length, rest) = rest.split_first()?;
        let (key_id, rest) = rest.split_at_checked(length.into())?;
        let (material_id, rest) = rest.split_first_chunk::<MATERIAL>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE>()?;
        Some(Self {
            key_id: std::str::from_utf8(key_id).ok()?,
            material_id: *material_id,
            header: &bytes[..bytes.len() - rest.len()],
            nonce: *nonce,
            sealed,
        })
    }

    /// `None` if it was not sealed by this material, with this context, as it is.
    pub fn open(&self, material: &[u8; 32], context: &Context) -> Option<Vec<u8>> {
        let payload = Payload { msg: self.sealed, aad: &associated_data(self.header, context) };
        XChaCha20Poly1305::new(material.into()).decrypt(&XNonce::from(self.nonce), payload).ok()
    }
}

fn associated_data(header: &[u8], context: &Context) -> Vec<u8> {
    let mut data = Vec::new();
    put(&mut data, header);
    data.extend(length(context.len()));
    for (name, value) in context {
        put(&mut data, name.as_bytes());
        put(&mut data, value.as_bytes());
    }
    data
}

fn put(data: &mut Vec<u8>, part: &[u8]) {
    data.extend(length(part.len()));
    data.extend(part);
}

fn length(n: usize) -> [u8; 8] {
    (n as u64).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(pairs: &[(&str, &str)]) -> Context {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn opens_only_what_was_sealed() {
        let material = random_bytes::<32>();
        let sealed_with = context(&[("a", "bc"), ("d", "")]);
        let blob = seal("key", &[7; 32], &material, &sealed_with, b"data");
        let parsed = Blob::parse(&blob).unwrap();
        assert_eq!((parsed.key_id, parsed.material_id), ("key", [7; 32]));
        assert_eq!(parsed.open(&material, &sealed_with).unwrap(), b"data");

        let others: [&[(&str, &str)]; 8] = [
            &[],
            &[("a", "bc")],
            &[("d", "")],
            &[("ab", "c"), ("d", "")],
            &[("a", "b"), ("d", "c")],
            &[("a", "bc"), ("d", "x")],
            &[("A", "bc"), ("d", "")],
            &[("a", "bc"), ("d", ""), ("e", "")],
        ];
        for other in others {
            assert_eq!(parsed.open(&material, &context(other)), None, "{other:?}");
        }
        assert_eq!(parsed.open(&random_bytes::<32>(), &sealed_with), None);
    }

    #[test]
    fn every_byte_counts() {
        let material = random_bytes::<32>();
        let blob = seal("key", &[7; 32], &material, &Context::new(), b"data");
        for at in 0..blob.len() {
            let mut changed = blob.clone();
            changed[at] ^= 1;
            let opened = Blob::parse(&changed).and_then(|blob| blob.open(&material, &Context::new()));
            assert_eq!(opened, None, "byte {at}");
            let cut = Blob::parse(&blob[..at]).and_then(|blob| blob.open(&material, &Context::new()));
            assert_eq!(cut, None, "cut at {at}");
        }
    }
}
