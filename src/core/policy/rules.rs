//! Rules: an action and a path, as `permissions` gives them and `vault.role_permissions` keeps them.
//!
//! Runs in the backend that defines a role, and in each that loads one. The trap it avoids is the rule that is nearly
//! understood: an unknown key, action or type refuses the whole list, since what was meant may have been narrower than
//! what would be left. No error repeats what it was given: it may be a value in the wrong place.

use serde_json::Value;

use super::roles::Action;
use crate::secret::{InvalidArgument, Pattern};

/// The most rules of one role: each backend that a role applies to keeps them.
pub const MAX_RULES: usize = 1000;
/// `MAX_RULES` of the longest paths with room for escapes; refuses more before it is parsed.
const MAX_JSON_BYTES: usize = 4 << 20;

/// What a rule grants on its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Granted {
    One(Action),
    /// `*`: every action there is.
    Every,
}

impl Granted {
    pub fn parse(word: &str) -> Option<Self> {
        if word == "*" { Some(Self::Every) } else { Action::parse(word).map(Self::One) }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::One(action) => action.as_str(),
            Self::Every => "*",
        }
    }

    pub fn includes(self, action: Action) -> bool {
        match self {
            Self::One(granted) => granted == action,
            Self::Every => true,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    pub granted: Granted,
    pub path: Pattern,
}

impl Rule {
    /// Parses `[{"action": "read", "path": "stripe/*"}, …]`; rules given twice are kept once.
    pub fn parse_all(json: &str) -> Result<Vec<Self>, InvalidArgument> {
        if json.len() > MAX_JSON_BYTES {
            return Err(too_many());
        }
        let value: Value = serde_json::from_str(json).map_err(|_| shape())?;
        let Value::Array(items) = value else { return Err(shape()) };
        if items.len() > MAX_RULES {
            return Err(
                too_many().detail(format!("There are {}; at most {MAX_RULES} are allowed.", items.len()))
            );
        }
        let mut rules = Vec::with_capacity(items.len());
        let mut seen = std::collections::HashSet::new();
        for (i, item) in items.iter().enumerate() {
            let rule = Self::parse(item, i + 1)?;
            if seen.insert(rule.clone()) {
                rules.push(rule);
            }
        }
        Ok(rules)
    }

    fn parse(item: &Value, number: usize) -> Result<Self, InvalidArgument> {
        let at = |error: InvalidArgument| {
            let place = format!("In rule {number}.");
            let detail =
                error.detail.as_ref().map_or_else(|| place.clone(), |detail| format!("{place} {detail}"));
            error.detail(detail)
        };
        let Value::Object(fields) = item else { return Err(at(shape())) };
        let (Some(Value::String(action)), Some(Value::String(path)), 2) =
            (fields.get("action"), fields.get("path"), fields.len())
        else {
            return Err(at(shape()));
        };
        let granted = Granted::parse(action).ok_or_else(|| at(unknown_action()))?;
        Ok(Self { granted, path: Pattern::parse(path).map_err(at)? })
    }
}

fn shape() -> InvalidArgument {
    InvalidArgument::new("permissions must be a JSON array of rules")
        .hint("Each rule is an object with action and path, such as {\"action\": \"read\", \"path\": \"stripe/*\"}.")
}

fn too_many() -> InvalidArgument {
    InvalidArgument::new("permissions have too many rules")
        .hint("Use patterns such as stripe/*, or several roles.")
}

/// For rules and for `vault.can`.
pub fn unknown_action() -> InvalidArgument {
    let words: Vec<_> = Action::ALL.into_iter().map(Action::as_str).collect();
    InvalidArgument::new("unknown action").hint(format!("Use {} or *.", words.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parses() {
        let rules = Rule::parse_all(
            r#"[{"action":"read","path":"a/**"}, {"path":"b","action":"*"}, {"action":"read","path":"a/*"}]"#,
        )
        .unwrap();
        let shown: Vec<_> = rules.iter().map(|rule| (rule.granted.as_str(), rule.path.as_str())).collect();
        assert_eq!(shown, [("read", "a/*"), ("*", "b")], "the third is the first");
        assert_eq!(Rule::parse_all("[]").unwrap(), []);
        for action in Action::ALL {
            assert!(Granted::Every.includes(action) && Granted::One(action).includes(action));
            assert_eq!(Granted::parse(action.as_str()), Some(Granted::One(action)));
        }
        assert!(!Granted::One(Action::Read).includes(Action::Verify));
    }

    #[test]
    fn refuses_what_it_does_not_understand_and_repeats_nothing() {
        let one = |fields: &str| format!(r#"[{{"action":"list","path":"*"}},{{{fields}}}]"#);
        for (json, message) in [
            ("".to_owned(), "permissions must be"),
            ("hunter2".to_owned(), "permissions must be"),
            ("null".to_owned(), "permissions must be"),
            ("{}".to_owned(), "permissions must be"),
            (r#"{"action":"read","path":"hunter2"}"#.to_owned(), "permissions must be"),
            ("[1]".to_owned(), "permissions must be"),
            (r#"["hunter2"]"#.to_owned(), "permissions must be"),
            ("[[]]".to_owned(), "permissions must be"),
            ("[null]".to_owned(), "permissions must be"),
            (one(""), "permissions must be"),
            (one(r#""action":"read""#), "permissions must be"),
            (one(r#""path":"hunter2""#), "permissions must be"),
            (one(r#""action":"read","path":null"#), "permissions must be"),
            (one(r#""action":["read"],"path":"hunter2""#), "permissions must be"),
            (one(r#""action":"read","path":"hunter2","effect":"deny""#), "permissions must be"),
            (one(r#""action":"hunter2","path":"a""#), "unknown action"),
            (one(r#""action":"READ","path":"a""#), "unknown action"),
            (one(r#""action":"","path":"a""#), "unknown action"),
            (one(r#""action":"read","path":"""#), "pattern must not be empty"),
            (one(&format!(r#""action":"read","path":"{}""#, "hunter2".repeat(200))), "pattern is too long"),
            (one(r#""action":"read","path":"hunter2\u0000""#), "pattern contains a control"),
            (one(r#""action":"read","path":"hunter2\u202e""#), "pattern contains a control"),
        ] {
            let error = Rule::parse_all(&json).unwrap_err();
            assert!(error.message.starts_with(message), "{json}: {error:?}");
            assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
            let located = error.detail.as_deref().is_some_and(|detail| detail.starts_with("In rule "));
            assert_eq!(located, json.starts_with('['), "{json}: {error:?}");
        }
    }

    #[test]
    fn bounds() {
        let list = |count: usize| {
            let rules: Vec<_> = (0..count).map(|i| format!(r#"{{"action":"read","path":"p{i}"}}"#)).collect();
            format!("[{}]", rules.join(","))
        };
        assert_eq!(Rule::parse_all(&list(MAX_RULES)).unwrap().len(), MAX_RULES);
        let error = Rule::parse_all(&list(MAX_RULES + 1)).unwrap_err();
        assert_eq!(error.message, "permissions have too many rules");
        assert_eq!(Rule::parse_all(&" ".repeat(MAX_JSON_BYTES + 1)).unwrap_err().message, error.message);
    }

    proptest! {
        #[test]
        fn whatever_comes_in_is_parsed_or_refused(json in any::<String>(), path in "\\PC{0,20}", action in "[a-z*]{0,8}") {
            let _ = Rule::parse_all(&json);
            let json = serde_json::json!([{ "action": action, "path": path }]).to_string();
            let parsed = Rule::parse_all(&json);
            prop_assert_eq!(parsed.is_ok(), Granted::parse(&action).is_some() && Pattern::parse(&path).is_ok());
        }
    }
}
