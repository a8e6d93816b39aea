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
