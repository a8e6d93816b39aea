//! Many values, each in every encoding in which it could slip out, sought in one pass over bytes, files and
//! directories. Runs in the test process; pure but for reading files.
//!
//! The trap: base64 of a value depends on what stands before it, so three alignments are sought.

use aho_corasick::AhoCorasick;
use base64::prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD, Engine};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// Shorter values would be met by chance.
const MIN_VALUE: usize = 8;
/// Longer values are sought by windows of [`WINDOW`] bytes, since tables and WAL store them in pieces.
const MAX_WHOLE: usize = 128;
const WINDOW: usize = 48;
const WINDOWS: usize = 8;

/// How a value was written where it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Raw,
    Hex,
    Base64,
    /// The `escape` output format of bytea.
    Escaped,
    Json,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit {
    /// The file, or what the caller called the bytes.
    pub place: String,
    pub offset: usize,
    /// The label the value was given.
    pub needle: String,
    pub form: Form,
}

/// Values to look for.
pub struct Needles {
    automaton: AhoCorasick,
    /// Of each pattern of the automaton: the index into `labels`, and the form.
    patterns: Vec<(usize, Form)>,
    labels: Vec<String>,
}

impl Needles {
    /// Each value with a label to report it by. A label should not repeat the value.
    #[track_caller]
    pub fn new<L: Into<String>, V: AsRef<[u8]>>(values: impl IntoIterator<Item = (L, V)>) -> Self {
        let (mut labels, mut patterns, mut bytes) = (Vec::new(), Vec::new(), Vec::new());
        for (label, value) in values {
            let value = value.as_ref();
            assert!(value.len() >= MIN_VALUE, "a value of {} bytes is met by chance", value.len());
            let mut seen = BTreeSet::new();
            for piece in pieces(value) {
                for (form, encoded) in forms(piece) {
                    if seen.insert(encoded.clone()) {
                        patterns.push((labels.len(), form));
                        bytes.push(encoded);
                    }
                }
            }
            labels.push(label.into());
        }
        let automaton = AhoCorasick::new(bytes).expect("the values are too many for one search");
        Self { automaton, patterns, labels }
    }

    pub fn in_bytes(&self, place: &str, bytes: &[u8]) -> Vec<Hit> {
        let hit = |found: aho_corasick::Match| {
            let (label, form) = self.patterns[found.pattern().as_usize()];
            Hit { place: place.to_owned(), offset: found.start(), needle: self.labels[label].clone(), form }
        };
        // Overlapping: a value that is the beginning of another must not hide it.
        self.automaton.find_overlapping_iter(bytes).map(hit).collect()
    }

    /// Searches a file, or every file below a directory. Files that vanish meanwhile are passed over.
    #[track_caller]
    pub fn in_path(&self, path: &Path) -> Vec<Hit> {
        let mut hits = Vec::new();
        self.walk(path, &mut hits)
            .unwrap_or_else(|error| panic!("cannot search {}: {error}", path.display()));
        hits
    }

    fn walk(&self, path: &Path, hits: &mut Vec<Hit>) -> std::io::Result<()> {
        let kind = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            meta => meta?.file_type(),
        };
        if kind.is_dir() {
            for entry in fs::read_dir(path)? {
                self.walk(&entry?.path(), hits)?;
            }
        } else if kind.is_file() {
            match fs::read(path) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                bytes => hits.extend(self.in_bytes(&path.to_string_lossy(), &bytes?)),
            }
        }
        Ok(())
    }
}

fn pieces(value: &[u8]) -> Vec<&[u8]> {
    if value.len() <= MAX_WHOLE {
        return vec![value];
    }
    let last = value.len() - WINDOW;
    (0..WINDOWS).map(|i| last * i / (WINDOWS - 1)).map(|start| &value[start..start + WINDOW]).collect()
}

fn forms(value: &[u8]) -> Vec<(Form, Vec<u8>)> {
    let mut forms = vec![(Form::Raw, value.to_vec())];
    let hex = value.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}"); // a String takes everything
        hex
    });
    forms.push((Form::Hex, hex.to_uppercase().into_bytes()));
    forms.push((Form::Hex, hex.into_bytes()));
    for before in 0..3 {
        // Three bytes make four characters, so the text depends on what stands before; characters that also hold
        // bits of neighbours are left out at both ends.
        let padded = [&[0; 3][..before], value].concat();
        let (from, to) = ([0, 2, 3][before], padded.len() * 8 / 6);
        for encoded in [BASE64_STANDARD_NO_PAD.encode(&padded), BASE64_URL_SAFE_NO_PAD.encode(&padded)] {
            forms.push((Form::Base64, encoded.as_bytes()[from..to].to_vec()));
        }
    }
    let escaped = escape_bytea(value);
    // In a COPY file, and in a string literal, each backslash is doubled once more.
    forms.push((Form::Escaped, escaped.replace('\\', "\\\\").into_bytes()));
    forms.push((Form::Escaped, escaped.into_bytes()));
    if let Ok(text) = std::str::from_utf8(value) {
        forms.push((Form::Json, escape_json(text).into_bytes()));
    }
    forms
}

/// byteaout() with bytea_output = escape.
fn escape_bytea(value: &[u8]) -> String {
    value.iter().fold(String::new(), |mut out, byte| {
        let _ = match byte {
            b'\\' => out.write_str("\\\\"),
            0x20..=0x7e => out.write_char(char::from(*byte)),
            _ => write!(out, "\\{byte:03o}"),
        };
        out
    })
}

/// The escapes of PostgreSQL's to_json (escape_json() in json.c).
fn escape_json(text: &str) -> String {
    text.chars().fold(String::new(), |mut out, c| {
        let _ = match c {
            '"' => out.write_str("\\\""),
            '\\' => out.write_str("\\\\"),
            '\n' => out.write_str("\\n"),
            '\r' => out.write_str("\\r"),
            '\t' => out.write_str("\\t"),
            '\u{8}' => out.write_str("\\b"),
            '\u{c}' => out.write_str("\\f"),
            c if c < ' ' => write!(out, "\\u{:04x}", u32::from(c)),
            c => out.write_char(c),
        };
        out
    })
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
