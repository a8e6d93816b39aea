//! Patterns over names: exact, or with `*` for any run of characters, slashes included.
//!
//! Runs in the backend: `list_secrets(pattern)` today, policy paths later. The trap it avoids is the matcher
//! that backtracks: a pattern comes from one user and the names from another, so time must be linear in both
//! whatever they hold. There is no escape: `*` cannot stand in a name, so no pattern needs a literal one.

use super::InvalidArgument;
use super::name::is_forbidden_char;

/// Longest pattern in bytes: room for a longest name with a `*` around every second character.
pub const MAX_PATTERN_BYTES: usize = 1024;

/// A checked pattern. Matching is case sensitive and byte for byte, like names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pattern {
    /// Without adjacent stars: `a**b` says nothing that `a*b` does not.
    text: String,
}

impl Pattern {
    /// Accepts 1 to [`MAX_PATTERN_BYTES`] bytes without control or invisible characters.
    ///
    /// A pattern that no name can match (`a//b`) is accepted and matches none.
    pub fn parse(pattern: &str) -> Result<Self, InvalidArgument> {
        if pattern.is_empty() {
            return Err(InvalidArgument::new("pattern must not be empty")
                .hint("Use * to match every name, or a pattern such as db/*."));
        }
        if pattern.len() > MAX_PATTERN_BYTES {
            return Err(InvalidArgument::new("pattern is too long")
                .detail(format!(
                    "The pattern has {} bytes; at most {MAX_PATTERN_BYTES} are allowed.",
                    pattern.len()
                ))
                .hint("Use a shorter pattern such as db/*."));
        }
        if let Some((at, c)) = pattern.char_indices().find(|&(_, c)| is_forbidden_char(c)) {
            return Err(InvalidArgument::new("pattern contains a control or invisible character")
                .detail(format!("U+{:04X} stands at byte offset {at}.", c as u32))
                .hint("Use * to match every name, or a pattern such as db/*."));
        }
        let mut text = String::with_capacity(pattern.len());
        for c in pattern.chars() {
            if c != '*' || !text.ends_with('*') {
                text.push(c);
            }
        }
        Ok(Self { text })
    }

    /// The pattern with runs of stars collapsed.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// True for a pattern without `*`, which matches itself and nothing else.
    pub fn is_exact(&self) -> bool {
        !self.text.contains('*')
    }

    /// True for `*`.
    pub fn matches_everything(&self) -> bool {
        self.text == "*"
    }

    /// Whether the whole of `name` matches; linear time, no allocation.
    pub fn matches(&self, name: &str) -> bool {
        let Some((prefix, rest)) = self.text.split_once('*') else {
            return self.text == name;
        };
        let Some(mut name) = name.strip_prefix(prefix) else {
            return false;
        };
        let (middle, suffix) = rest.rsplit_once('*').unwrap_or(("", rest));
        // Taking each piece at its leftmost place leaves the most for those after it, so there is nothing to
        // go back to: every byte of the name is passed over once.
        for piece in middle.split('*').filter(|p| !p.is_empty()) {
            match name.find(piece) {
                Some(at) => name = &name[at + piece.len()..],
                None => return false,
            }
        }
        name.ends_with(suffix)
    }

    /// What every match starts with: the text before the first `*`, the whole pattern if there is none.
    pub fn literal_prefix(&self) -> &str {
        self.text.split('*').next().unwrap_or("")
    }

    /// The least string above every string that starts with [`Self::literal_prefix`], in the order of
    /// `COLLATE "C"`: an index range is `name >= literal_prefix AND name < prefix_end`. `None`: no upper end.
    pub fn prefix_end(&self) -> Option<String> {
        let mut end = self.literal_prefix().to_owned();
        while let Some(last) = end.pop() {
            // Byte order of UTF-8 is code point order; surrogates are no code points of their own.
            let next = if last == '\u{d7ff}' { Some('\u{e000}') } else { char::from_u32(last as u32 + 1) };
            if let Some(next) = next {
                end.push(next);
                return Some(end);
            }
        }
        None
    }

    /// The same pattern for SQL `LIKE` with the default escape `\`.
    pub fn to_like(&self) -> String {
        let mut like = String::with_capacity(self.text.len() + 8);
        for c in self.text.chars() {
            match c {
                '*' => like.push('%'),
                '%' | '_' | '\\' => like.extend(['\\', c]),
                _ => like.push(c),
            }
        }
        like
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::{Duration, Instant};

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).unwrap()
    }

    #[test]
    fn matching() {
        for (text, name, expected) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a", "A", false),
            ("*", "", true),
            ("*", "a/b/c", true),
            ("db/*", "db/password", true),
            ("db/*", "db/a/b", true),
            ("db/*", "db/", true),
            ("db/*", "db", false),
            ("db/*", "dbx/password", false),
            ("*/password", "db/password", true),
            ("*/password", "password", false),
            ("*/password", "a/password/b", false),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("ab*ba", "aba", false),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "acb", false),
            ("*ab*ab*", "ab", false),
            ("*ab*ab*", "abab", true),
            ("*aab", "aaab", true),
            ("a**b", "ab", true),
            ("***", "x", true),
            ("é*", "è", false),
            ("a%b", "axb", false),
            ("a_b", "axb", false),
            ("a.b", "axb", false),
        ] {
            assert_eq!(pattern(text).matches(name), expected, "{text} on {name}");
        }
    }

    #[test]
    fn refuses() {
        assert_eq!(Pattern::parse("").unwrap_err().message, "pattern must not be empty");
        assert!(Pattern::parse(&"a".repeat(1024)).is_ok());
        assert_eq!(Pattern::parse(&"a".repeat(1025)).unwrap_err().message, "pattern is too long");
        for bad in ["a\0", "a\nb", "\u{202e}*", "\u{feff}"] {
            let e = Pattern::parse(bad).unwrap_err();
            assert_eq!(e.message, "pattern contains a control or invisible character");
        }
    }

    #[test]
    fn prefix_range_and_like() {
        for (text, prefix, end, like) in [
            ("db/*", "db/", Some("db0"), "db/%"),
            ("db", "db", Some("dc"), "db"),
            ("*", "", None, "%"),
            ("*a", "", None, "%a"),
            ("a*b*c", "a", Some("b"), "a%b%c"),
            ("10%_x\\**", "10%_x\\", Some("10%_x]"), "10\\%\\_x\\\\%"),
            ("\u{10ffff}*", "\u{10ffff}", None, "\u{10ffff}%"),
            ("a\u{10ffff}*", "a\u{10ffff}", Some("b"), "a\u{10ffff}%"),
            ("\u{d7ff}*", "\u{d7ff}", Some("\u{e000}"), "\u{d7ff}%"),
        ] {
            let p = pattern(text);
            assert_eq!((p.literal_prefix(), p.prefix_end().as_deref()), (prefix, end), "{text}");
            assert_eq!(p.to_like(), like);
        }
        assert!(pattern("**").matches_everything() && !pattern("*a").matches_everything());
        assert!(pattern("a").is_exact() && !pattern("a*").is_exact());
    }

    #[test]
    fn hostile_patterns_stay_linear() {
        // A backtracking matcher would need longer than the universe for the first of these.
        let name = "a".repeat(512);
        let hostile =
            [format!("{}b", "*a".repeat(511)), format!("*{}b*", "a".repeat(500)), "*ab".repeat(300) + "*"];
        let start = Instant::now();
        for text in &hostile {
            let p = pattern(text);
            for _ in 0..1000 {
                assert!(!p.matches(&name));
            }
        }
        // About 20 ms in a debug build; generous for a loaded machine.
        assert!(start.elapsed() < Duration::from_secs(10), "took {:?}", start.elapsed());
    }

    /// The textbook recursion, with a table so that it ends.
    fn naive(pattern: &[char], name: &[char]) -> bool {
        let mut row: Vec<bool> = vec![false; name.len() + 1];
        row[0] = true;
        for &p in pattern {
            let mut next = vec![false; name.len() + 1];
            if p == '*' {
                let mut reached = false;
                for i in 0..=name.len() {
                    reached |= row[i];
                    next[i] = reached;
                }
            } else {
                for i in 0..name.len() {
                    next[i + 1] = row[i] && name[i] == p;
                }
            }
            row = next;
        }
        row[name.len()]
    }

    /// `LIKE` as PostgreSQL documents it, on the output of `to_like`.
    fn like(pattern: &[char], name: &[char]) -> bool {
        match pattern {
            [] => name.is_empty(),
            ['\\', c, rest @ ..] => name.first() == Some(c) && like(rest, &name[1..]),
            ['%', rest @ ..] => (0..=name.len()).any(|i| like(rest, &name[i..])),
            ['_', rest @ ..] => !name.is_empty() && like(rest, &name[1..]),
            [c, rest @ ..] => name.first() == Some(c) && like(rest, &name[1..]),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn agrees_with_naive_matcher_like_and_range(text in "[ab*é%_\\\\/]{1,10}", name in "[abé%_\\\\/]{0,12}") {
            let p = Pattern::parse(&text).unwrap();
            let name_chars: Vec<char> = name.chars().collect();
            let expected = naive(&text.chars().collect::<Vec<_>>(), &name_chars);
            prop_assert_eq!(p.matches(&name), expected);
            prop_assert_eq!(like(&p.to_like().chars().collect::<Vec<_>>(), &name_chars), expected);
            if expected {
                prop_assert!(name.as_str() >= p.literal_prefix());
                prop_assert!(p.prefix_end().is_none_or(|end| name < end));
            }
        }

        #[test]
        fn a_pattern_matches_what_it_was_made_from(pieces in prop::collection::vec("[a-c]{0,3}", 1..6), gap in "[a-c/]{0,3}") {
            let text = pieces.join("*");
            prop_assume!(!text.is_empty());
            prop_assert!(Pattern::parse(&text).unwrap().matches(&pieces.join(&gap)));
        }

        #[test]
        fn never_panics(text in any::<String>(), name in any::<String>()) {
            if let Ok(p) = Pattern::parse(&text) {
                p.matches(&name);
                p.prefix_end();
                p.to_like();
            }
        }

        #[test]
        fn prefix_end_is_tight(prefix in "[a\u{7e}\u{7ff}\u{d7ff}\u{ffff}\u{10ffff}]{1,4}") {
            let p = Pattern::parse(&format!("{prefix}*")).unwrap();
            if let Some(end) = p.prefix_end() {
                prop_assert!(prefix < end && !end.starts_with(&prefix));
                let high = format!("{prefix}\u{10ffff}\u{10ffff}");
                prop_assert!(high < end);
            }
        }
    }
}
