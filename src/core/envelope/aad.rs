//! Additional authenticated data: which place a ciphertext belongs to, as bytes no other place has.
//!
//! ```text
//! LE64(number of fields), then for each field LE64(length), bytes
//! fields: format tag ("hyperion_vault" + layout version), purpose, then what the purpose calls for
//! ```
//!
//! Every field carries its length, fixed-size ones too, so two different lists of fields never encode alike: no
//! separator to smuggle into a name, no field to slide into its neighbour. This is PASETO's pre-authentication
//! encoding. The purpose comes first among the variable parts, so that what one caller seals another kind of
//! caller cannot open, even with the same key and the same following fields.
//!
//! Runs on the hot read path of client backends: an encoding of usual size stays on the stack.

use super::format::{Format, SEALED_V1};
use super::ids::Id;

const TAG: &[u8] = b"hyperion_vault";

/// Room for a secret's AAD with a name of up to about 120 bytes. Most names are far shorter; a longer one costs
/// one allocation.
const INLINE: usize = 256;

/// What a ciphertext is for. Labels are authenticated: never change or reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// The value of one version of a secret.
    SecretValue,
    /// A secret version's DEK, wrapped by the `local` provider's master key.
    SecretDek,
}

impl Purpose {
    /// Every purpose, so that a test can see their labels differ.
    pub const ALL: [Self; 2] = [Self::SecretValue, Self::SecretDek];

    /// The label inside the AAD.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SecretValue => "secret-value",
            Self::SecretDek => "secret-dek",
        }
    }
}

/// An encoded AAD. Can only be made with a [`Purpose`], so no ciphertext exists without one.
pub struct Aad {
    /// The encoding, while it fits.
    inline: [u8; INLINE],
    /// The encoding, once it does not; then it is not empty.
    spilled: Vec<u8>,
    len: usize,
}

impl Aad {
    /// Encodes `fields` for `purpose`. Injective over (purpose, fields).
    pub fn encode(purpose: Purpose, fields: &[&[u8]]) -> Self {
        let mut aad = Self { inline: [0; INLINE], spilled: Vec::new(), len: 0 };
        write(purpose, fields, |bytes| aad.push(bytes));
        aad
    }

    /// The bytes the AEAD authenticates.
    pub fn as_bytes(&self) -> &[u8] {
        // While nothing has spilled, `push` keeps len within the array.
        if self.spilled.is_empty() { &self.inline[..self.len] } else { &self.spilled }
    }

    fn push(&mut self, bytes: &[u8]) {
        let end = self.len.saturating_add(bytes.len());
        if self.spilled.is_empty() {
            if let Some(room) = self.inline.get_mut(self.len..end) {
                room.copy_from_slice(bytes);
                self.len = end;
                return;
            }
            self.spilled.reserve(2 * end);
            self.spilled.extend_from_slice(&self.inline[..self.len]);
        }
        self.spilled.extend_from_slice(bytes);
        self.len = end;
    }
}

/// The one encoder, over any sink.
fn write(purpose: Purpose, fields: &[&[u8]], mut push: impl FnMut(&[u8])) {
    push(&len64(fields.len() + 2));
    let mut field = |parts: &[&[u8]]| {
        push(&len64(parts.iter().map(|part| part.len()).sum()));
        parts.iter().for_each(|part| push(part));
    };
    field(&[TAG, &[SEALED_V1]]);
    field(&[purpose.as_str().as_bytes()]);
    fields.iter().for_each(|bytes| field(&[bytes]));
}

/// Lossless: no platform Rust supports has a wider `usize`.
fn len64(len: usize) -> [u8; 8] {
    (len as u64).to_le_bytes()
}

/// The place of a secret's value: a sealed value opens only with all of these the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecretAad<'a> {
    /// The vault, made at the first seal; keeps two databases apart.
    pub vault: Id,
    /// The secret, whatever its name.
    pub secret: Id,
    /// Its name, so that a renamed row does not read as another secret. A rename seals anew.
    pub name: &'a str,
    /// Version number, from 1.
    pub version: u32,
    /// How the plaintext is to be understood.
    pub format: Format,
}

impl SecretAad<'_> {
    /// The AAD of this place.
    pub fn encode(&self) -> Aad {
        self.with_fields(|fields| Aad::encode(Purpose::SecretValue, fields))
    }

    /// Appends the same bytes to `out`.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        self.with_fields(|fields| {
            write(Purpose::SecretValue, fields, |bytes| out.extend_from_slice(bytes));
        });
    }

    fn with_fields<R>(&self, then: impl FnOnce(&[&[u8]]) -> R) -> R {
        then(&[
            &self.vault.0,
            &self.secret.0,
            self.name.as_bytes(),
            &self.version.to_le_bytes(),
            &[self.format.code()],
        ])
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    /// Reads an encoding back. That this is possible for every input is the proof that no two inputs share one.
    fn decode(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        fn number(bytes: &mut &[u8]) -> usize {
            u64::from_le_bytes(*bytes.split_off(..8).unwrap().as_array().unwrap()) as usize
        }
        let count = number(&mut bytes);
        let fields = (0..count).map(|_| {
            let len = number(&mut bytes);
            bytes.split_off(..len).unwrap().to_vec()
        });
        let fields: Vec<_> = fields.collect();
        assert!(bytes.is_empty());
        fields
    }

    fn purposes() -> impl Strategy<Value = Purpose> {
        prop::sample::select(&Purpose::ALL[..])
    }

    /// Few distinct bytes and short fields, some of which look like a length prefix: near collisions are common.
    fn fields() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let byte = prop::sample::select(vec![0u8, 1, 8, b'a']);
        let tricky = prop_oneof![
            prop::collection::vec(byte, 0..4),
            (0..3u64).prop_map(|n| n.to_le_bytes().to_vec()),
            prop::collection::vec(any::<u8>(), 0..40),
        ];
        prop::collection::vec(tricky, 0..5)
    }

    fn encode(purpose: Purpose, fields: &[Vec<u8>]) -> Vec<u8> {
        let fields: Vec<&[u8]> = fields.iter().map(Vec::as_slice).collect();
        Aad::encode(purpose, &fields).as_bytes().to_vec()
    }

    proptest! {
        #[test]
        fn encodings_read_back(purpose in purposes(), fields in fields()) {
            let mut expected = vec![b"hyperion_vault\x01".to_vec(), purpose.as_str().into()];
            expected.extend(fields.iter().cloned());
            prop_assert_eq!(decode(&encode(purpose, &fields)), expected);
        }

        #[test]
        fn distinct_inputs_have_distinct_encodings(a in (purposes(), fields()), b in (purposes(), fields())) {
            prop_assert_eq!(encode(a.0, &a.1) == encode(b.0, &b.1), a == b);
        }

        /// The same bytes, cut into fields elsewhere.
        #[test]
        fn moved_borders_change_the_encoding(
            bytes in prop::collection::vec(any::<u8>(), 0..60), a in 0..60usize, b in 0..60usize,
        ) {
            let (a, b) = (a.min(bytes.len()), b.min(bytes.len()));
            let cut = |at: usize| vec![bytes[..at].to_vec(), bytes[at..].to_vec()];
            let encoded = |at| encode(Purpose::SecretValue, &cut(at));
            prop_assert_eq!(encoded(a) == encoded(b), a == b);
            prop_assert_ne!(encoded(a), encode(Purpose::SecretValue, std::slice::from_ref(&bytes)));
        }

        #[test]
        fn secret_places_read_back(
            vault: [u8; 16], secret: [u8; 16], name in ".{0,300}", version: u32,
            format in prop::sample::select(&Format::ALL[..]),
        ) {
            let aad = SecretAad { vault: Id(vault), secret: Id(secret), name: &name, version, format };
            let encoded = aad.encode();
            let fields = decode(encoded.as_bytes());
            prop_assert_eq!(fields.len(), 7);
            prop_assert_eq!(&fields[1], b"secret-value");
            prop_assert_eq!(&fields[2], &vault);
            prop_assert_eq!(&fields[3], &secret);
            prop_assert_eq!(&fields[4], name.as_bytes());
            prop_assert_eq!(&fields[5], &version.to_le_bytes());
            prop_assert_eq!(&fields[6], &[format.code()]);
            let mut out = b"kept".to_vec();
            aad.encode_into(&mut out);
            prop_assert_eq!(&out[..4], b"kept");
            prop_assert_eq!(&out[4..], encoded.as_bytes());
        }
    }

    /// Stack or heap, and wherever the border between them falls, the bytes are the same.
    #[test]
    fn spilling_changes_nothing() {
        let mut spilled = HashSet::new();
        for len in 0..1100 {
            let field: Vec<u8> = (0..len).map(|i| i as u8).collect();
            for fields in [vec![&field[..], b"tail"], vec![b"head", &field]] {
                let aad = Aad::encode(Purpose::SecretDek, &fields);
                spilled.insert(!aad.spilled.is_empty());
                let mut expected = Vec::new();
                write(Purpose::SecretDek, &fields, |bytes| expected.extend_from_slice(bytes));
                assert_eq!(aad.as_bytes(), expected, "{len}");
                assert_eq!(aad.spilled.is_empty(), expected.len() <= INLINE, "{len}");
            }
        }
        assert_eq!(spilled.len(), 2);
    }

    #[test]
    fn purposes_have_distinct_labels() {
        let labels: HashSet<_> = Purpose::ALL.map(Purpose::as_str).into();
        assert_eq!(labels.len(), Purpose::ALL.len());
    }
}
