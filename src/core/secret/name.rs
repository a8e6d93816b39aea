//! The name of a secret: what may be one, checked once at the door.
//!
//! Runs in the backend on every read, so a well-formed ASCII name costs one pass over its bytes and no
//! allocation. The trap it avoids is the name that looks like another in a terminal, a log or a policy: control,
//! bidirectional and zero-width characters are refused, and so is every path spelling that a human would take
//! for the same place (`a//b`, `a/./b`, `a/../b`).
//!
//! Names are compared byte for byte: there is no case folding and no Unicode normalisation, so `é` as one code
//! point and `e` + U+0301 are two names. Zero-width joiner and non-joiner (U+200C, U+200D) are allowed because
//! Persian, Indic scripts and emoji are misspelt without them.

use super::InvalidArgument;

/// Longest name in bytes of UTF-8; small enough that an index entry never exceeds a third of a page.
pub const MAX_NAME_BYTES: usize = 512;

/// A checked name of 1 to [`MAX_NAME_BYTES`] bytes, borrowed from the caller's argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretName<'a>(&'a str);

impl<'a> SecretName<'a> {
    /// Accepts path-like names such as `db/password`.
    ///
    /// Refuses: no bytes or more than 512; control, bidirectional or invisible characters; `*`; a leading or
    /// trailing `/`; an empty, `.` or `..` segment. The error says which rule and where, never the name itself.
    pub fn parse(name: &'a str) -> Result<Self, InvalidArgument> {
        match find_fault(name) {
            None => Ok(Self(name)),
            Some(fault) => Err(describe(fault)),
        }
    }

    pub fn as_str(&self) -> &'a str {
        self.0
    }
}

impl AsRef<str> for SecretName<'_> {
    fn as_ref(&self) -> &str {
        self.0
    }
}

/// Characters that may stand in no name, pattern or username: all of category Cc, the line and paragraph
/// separators, every character with the Bidi_Control property (Unicode 15, PropList.txt), and the three
/// zero-width characters without a use inside a word (U+200B, U+2060, U+FEFF).
pub(crate) fn is_forbidden_char(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[derive(Clone, Copy)]
enum Fault {
    Empty,
    TooLong(usize),
    Character { at: usize, c: char },
    Wildcard(usize),
    LeadingSlash,
    TrailingSlash,
    EmptySegment(usize),
    DotSegment(usize),
}

fn find_fault(name: &str) -> Option<Fault> {
    let bytes = name.as_bytes();
    if bytes.is_empty() {
        return Some(Fault::Empty);
    }
    // Before the scan, so that a megabyte passed by mistake costs nothing.
    if bytes.len() > MAX_NAME_BYTES {
        return Some(Fault::TooLong(bytes.len()));
    }
    let mut segment_start = 0;
    let mut ascii = true;
    for (at, &b) in bytes.iter().enumerate() {
        match b {
            b'/' => {
                if let Some(fault) = segment_fault(bytes, segment_start, at) {
                    return Some(fault);
                }
                segment_start = at + 1;
            }
            b'*' => return Some(Fault::Wildcard(at)),
            0x00..=0x1f | 0x7f => return Some(Fault::Character { at, c: b as char }),
            0x80.. => ascii = false,
            _ => {}
        }
    }
    if let Some(fault) = segment_fault(bytes, segment_start, bytes.len()) {
        return Some(fault);
    }
    if ascii {
        return None;
    }
    name.char_indices().find(|&(_, c)| is_forbidden_char(c)).map(|(at, c)| Fault::Character { at, c })
}

fn segment_fault(bytes: &[u8], start: usize, end: usize) -> Option<Fault> {
    match &bytes[start..end] {
        b"" if start == 0 => Some(Fault::LeadingSlash),
        b"" if end == bytes.len() => Some(Fault::TrailingSlash),
        b"" => Some(Fault::EmptySegment(start)),
        b"." | b".." => Some(Fault::DotSegment(start)),
        _ => None,
    }
}

#[cold]
fn describe(fault: Fault) -> InvalidArgument {
    let form = "Use 1 to 512 bytes of segments separated by single slashes, such as db/password.";
    let (message, detail) = match fault {
        Fault::Empty => ("secret name must not be empty", None),
        Fault::TooLong(len) => (
            "secret name is too long",
            Some(format!("The name has {len} bytes; at most {MAX_NAME_BYTES} are allowed.")),
        ),
        Fault::Character { at, c } => (
            "secret name contains a control or invisible character",
            Some(format!("U+{:04X} stands at byte offset {at}.", c as u32)),
        ),
        Fault::Wildcard(at) => {
            ("secret name must not contain \"*\"", Some(format!("It stands at byte offset {at}.")))
        }
        Fault::LeadingSlash => ("secret name must not start with \"/\"", None),
        Fault::TrailingSlash => ("secret name must not end with \"/\"", None),
        Fault::EmptySegment(at) => (
            "secret name must not contain an empty segment",
            Some(format!("Two slashes meet at byte offset {at}.")),
        ),
        Fault::DotSegment(at) => (
            "secret name must not contain \".\" or \"..\" as a segment",
            Some(format!("The segment starts at byte offset {at}.")),
        ),
    };
    InvalidArgument { message: message.to_owned(), detail, hint: Some(form.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn accepts() {
        let long = "a".repeat(512);
        let wide = "é".repeat(256);
        for name in [
            "a",
            "db/password",
            "a/b/c/d",
            "...",
            "a/.../b",
            ".a",
            "a.",
            "..a/b..",
            "with space",
            "ünï/密码",
            "emoji/👩\u{200d}💻",
            "می\u{200c}خواهم",
            "a%b_c\\d",
            "'; drop table x",
            &long,
            &wide,
        ] {
            assert_eq!(SecretName::parse(name).map(|n| n.as_str()), Ok(name));
        }
    }

    #[test]
    fn refuses() {
        let long = "a".repeat(513);
        let wide = "é".repeat(257);
        for (name, message) in [
            ("", "secret name must not be empty"),
            (&*long, "secret name is too long"),
            (&*wide, "secret name is too long"),
            ("/", "secret name must not start with \"/\""),
            ("/a", "secret name must not start with \"/\""),
            ("//a", "secret name must not start with \"/\""),
            ("a/", "secret name must not end with \"/\""),
            ("é/", "secret name must not end with \"/\""),
            ("a//b", "secret name must not contain an empty segment"),
            ("a//", "secret name must not contain an empty segment"),
            (".", "secret name must not contain \".\" or \"..\" as a segment"),
            ("..", "secret name must not contain \".\" or \"..\" as a segment"),
            ("a/.", "secret name must not contain \".\" or \"..\" as a segment"),
            ("../a", "secret name must not contain \".\" or \"..\" as a segment"),
            ("a/../b", "secret name must not contain \".\" or \"..\" as a segment"),
            ("a/./b", "secret name must not contain \".\" or \"..\" as a segment"),
            ("*", "secret name must not contain \"*\""),
            ("a/b*", "secret name must not contain \"*\""),
        ] {
            assert_eq!(SecretName::parse(name).unwrap_err().message, message, "{name:?}");
        }
    }

    #[test]
    fn every_forbidden_character_is_refused_anywhere_and_nothing_else_is() {
        // Spelt out apart from the implementation: Cc, then separators, Bidi_Control and zero-width.
        let mut forbidden: Vec<u32> = (0..=0x1f).chain(0x7f..=0x9f).collect();
        forbidden
            .extend([0x61c, 0x200b, 0x200e, 0x200f, 0x2028, 0x2029, 0x202a, 0x202b, 0x202c, 0x202d, 0x202e]);
        forbidden.extend([0x2060, 0x2066, 0x2067, 0x2068, 0x2069, 0xfeff]);
        for c in (0..=0x10ffff).filter_map(char::from_u32) {
            let refused = SecretName::parse(&format!("a{c}b")).is_err();
            let expected = forbidden.contains(&(c as u32)) || c == '*';
            assert_eq!(refused, expected, "U+{:04X}", c as u32);
        }
        for c in ['\n', '\u{85}', '\u{202e}', '\u{feff}'] {
            for name in [format!("{c}é"), format!("é{c}"), format!("a/{c}/b"), c.to_string()] {
                let e = SecretName::parse(&name).unwrap_err();
                assert_eq!(e.message, "secret name contains a control or invisible character", "{name:?}");
            }
        }
    }

    #[test]
    fn errors_point_at_the_place_but_do_not_repeat_the_name() {
        let e = SecretName::parse("hunter2\n").unwrap_err();
        assert_eq!(e.detail.as_deref(), Some("U+000A stands at byte offset 7."));
        let e = SecretName::parse("é/../hunter2").unwrap_err();
        assert_eq!(e.detail.as_deref(), Some("The segment starts at byte offset 3."));
        for bad in ["hunter2/", "/hunter2", "hunter2//x", "hunter2/..", "hunter2*", "hunter2\u{7}"] {
            assert!(!format!("{:?}", SecretName::parse(bad).unwrap_err()).contains("hunter2"));
        }
    }

    /// The rules again, the slow and obvious way.
    fn reference(name: &str) -> bool {
        (1..=512).contains(&name.len())
            && !name.contains('*')
            && !name.chars().any(is_forbidden_char)
            && name.split('/').all(|s| !matches!(s, "" | "." | ".."))
    }

    proptest! {
        #[test]
        fn agrees_with_the_reference(name in prop_oneof![
            "[a./*é]{0,8}", "\\PC{0,40}", any::<String>(), "[a/]{500,530}",
        ]) {
            prop_assert_eq!(SecretName::parse(&name).is_ok(), reference(&name));
        }
    }
}
