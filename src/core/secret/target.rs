//! What a new version of a secret is handed to: `target` of `create_secret` and `update_secret`, and which of two
//! alternating roles is next.
//!
//! Runs in whichever process makes a new version. The traps it avoids: a function's name that means one thing where it
//! is set and another where it is called (it is taken apart here, always with its schema, and put together again in
//! quotes), and an error that repeats what was meant for another argument.

use serde_json::{Map, Value, json};

use super::InvalidArgument;

/// `NAMEDATALEN - 1`: the server would cut a longer identifier, and so name another object.
const MAX_IDENTIFIER_BYTES: usize = 63;
/// Two names with their JSON around them; refuses megabytes before they are parsed.
const MAX_TARGET_BYTES: usize = 4096;

const EXAMPLE: &str = "Use {\"type\":\"postgres_role\",\"role\":\"app\"}, {\"type\":\"postgres_role_pair\",\"roles\":[\"app_a\",\"app_b\"]} or {\"type\":\"function\",\"function\":\"app.on_rotate(text,int)\"}.";

/// What is done with each new version, in the transaction that makes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The password becomes that of this role of the server.
    Role(String),
    /// Of these two in turn, so that the former credential goes on working.
    RolePair([String; 2]),
    /// A function is called with the secret's name and the new version's number.
    Function(FunctionName),
}

/// A function by schema and name; its parameters are always `(text, int)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionName {
    pub schema: String,
    pub name: String,
}

impl Target {
    /// Parses the text of the jsonb. Whether the roles or the function exist is for the server to say.
    pub fn parse(json: &str) -> Result<Self, InvalidArgument> {
        if json.len() > MAX_TARGET_BYTES {
            return Err(invalid("target is too long")
                .detail(format!("It has {} bytes; at most {MAX_TARGET_BYTES} are allowed.", json.len())));
        }
        let value: Value = serde_json::from_str(json).map_err(|_| invalid("target is not valid JSON"))?;
        let Value::Object(mut fields) = value else { return Err(invalid("target must be a JSON object")) };
        let kind = text(&mut fields, "type")?;
        let target = match kind.as_str() {
            "postgres_role" => Self::Role(identifier("role", text(&mut fields, "role")?)?),
            "postgres_role_pair" => Self::RolePair(pair(&mut fields)?),
            "function" => Self::Function(FunctionName::parse(&text(&mut fields, "function")?)?),
            _ => return Err(invalid("target has an unknown type")),
        };
        if fields.is_empty() { Ok(target) } else { Err(invalid("target has members that are not known")) }
    }

    /// The canonical form. Parses to an equal target.
    pub fn to_json(&self) -> String {
        match self {
            Self::Role(role) => json!({ "type": "postgres_role", "role": role }),
            Self::RolePair(roles) => json!({ "type": "postgres_role_pair", "roles": roles }),
            Self::Function(function) => json!({ "type": "function", "function": function.signature() }),
        }
        .to_string()
    }

    /// The roles whose passwords it sets.
    pub fn roles(&self) -> &[String] {
        match self {
            Self::Role(role) => std::slice::from_ref(role),
            Self::RolePair(roles) => roles,
            Self::Function(_) => &[],
        }
    }
}

/// The place in the pair of the role that a new version is for: the one that is not in use. `current`: the user name of
/// the version before, if there is one.
pub fn next_in_turn(pair: &[String; 2], current: Option<&str>) -> usize {
    usize::from(current == Some(pair[0].as_str()))
}

impl FunctionName {
    /// Parses `schema.name` or `schema.name(text,int)`, identifiers as SQL has them.
    fn parse(text: &str) -> Result<Self, InvalidArgument> {
        let unqualified = || {
            invalid("target function must be named with its schema")
                .detail("It is called with a fixed search_path.")
        };
        let (schema, rest) = leading_identifier(text)?;
        let rest = rest.trim_start().strip_prefix('.').ok_or_else(unqualified)?;
        let (name, rest) = leading_identifier(rest.trim_start())?;
        let parameters = rest.trim();
        let fits = parameters.is_empty()
            || parameters.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')).is_some_and(|list| {
                let list: Vec<_> = list.split(',').map(|name| name.trim().to_ascii_lowercase()).collect();
                matches!(list.as_slice(), [first, second]
                    if matches!(first.as_str(), "text" | "pg_catalog.text")
                        && matches!(second.as_str(), "int" | "integer" | "int4" | "pg_catalog.int4"))
            });
        if !fits {
            return Err(invalid("target function must take the secret's name and the new version")
                .detail("Its parameters must be (text,int)."));
        }
        Ok(Self { schema, name })
    }

    /// As it is shown, and stored.
    pub fn signature(&self) -> String {
        format!("{}.{}(text,int)", shown(&self.schema), shown(&self.name))
    }

    /// For a statement: quoted whatever it is, so that no name is taken for anything else.
    pub fn quoted(&self) -> String {
        format!("{}.{}", quote(&self.schema), quote(&self.name))
    }
}

fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn shown(name: &str) -> String {
    let plain = name
        .bytes()
        .enumerate()
        .all(|(i, b)| b.is_ascii_lowercase() || b == b'_' || i > 0 && (b.is_ascii_digit() || b == b'$'));
    if plain { name.to_owned() } else { quote(name) }
}

/// An SQL identifier at the start of `text`, quoted or folded to lower case, and what follows it.
fn leading_identifier(text: &str) -> Result<(String, &str), InvalidArgument> {
    let bad = || invalid("target function is not the name of a function");
    if let Some(quoted) = text.strip_prefix('"') {
        let mut name = String::new();
        let mut chars = quoted.char_indices().peekable();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' if chars.peek().is_some_and(|(_, next)| *next == '"') => {
                    chars.next();
                    name.push('"');
                }
                '"' => return Ok((identifier("function", name)?, &quoted[at + 1..])),
                c => name.push(c),
            }
        }
        return Err(bad());
    }
    let inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '$') || !c.is_ascii();
    let end = text.find(|c| !inside(c)).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    if name.starts_with(|c: char| c.is_ascii_digit() || c == '$') {
        return Err(bad());
    }
    // The server folds ASCII alone in a UTF-8 database.
    Ok((identifier("function", name.to_ascii_lowercase())?, rest))
}

fn text(fields: &mut Map<String, Value>, key: &str) -> Result<String, InvalidArgument> {
    match fields.remove(key) {
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(invalid(&format!("target {key} must be a string"))),
        None => Err(invalid(&format!("target has no {key}"))),
    }
}

fn pair(fields: &mut Map<String, Value>) -> Result<[String; 2], InvalidArgument> {
    let two = || invalid("target roles must be two names");
    let Some(Value::Array(roles)) = fields.remove("roles") else { return Err(two()) };
    let names = roles.into_iter().map(|role| match role {
        Value::String(name) => identifier("role", name),
        _ => Err(two()),
    });
    let pair: [String; 2] = names.collect::<Result<Vec<_>, _>>()?.try_into().map_err(|_| two())?;
    if pair[0] == pair[1] {
        return Err(invalid("target roles must be two different roles")
            .detail("One role has one password: see type postgres_role."));
    }
    Ok(pair)
}

fn identifier(what: &str, name: String) -> Result<String, InvalidArgument> {
    if name.is_empty() || name.len() > MAX_IDENTIFIER_BYTES || name.chars().any(char::is_control) {
        return Err(invalid(&format!("target {what} is not a name"))
            .detail(format!("A name has 1 to {MAX_IDENTIFIER_BYTES} bytes.")));
    }
    Ok(name)
}

fn invalid(message: &str) -> InvalidArgument {
    InvalidArgument::new(message).hint(EXAMPLE)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn function(text: &str) -> Result<FunctionName, InvalidArgument> {
        match Target::parse(&json!({ "type": "function", "function": text }).to_string())? {
            Target::Function(function) => Ok(function),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_three_types() {
        let role = Target::parse(r#"{"type":"postgres_role","role":"app"}"#).unwrap();
        assert_eq!(role, Target::Role("app".into()));
        assert_eq!(role.roles(), ["app"]);
        let pair = Target::parse(r#"{"roles":["a","b"],"type":"postgres_role_pair"}"#).unwrap();
        assert_eq!(pair.roles(), ["a", "b"]);
        let name = function("app.on_rotate(text,int)").unwrap();
        assert_eq!((name.schema.as_str(), name.name.as_str()), ("app", "on_rotate"));
        assert_eq!(name.quoted(), r#""app"."on_rotate""#);
        assert!(Target::Function(name).roles().is_empty());
    }

    #[test]
    fn what_is_not_a_target_is_refused_and_not_repeated() {
        let refused = [
            "",
            "[]",
            r#""hunter2""#,
            "{}",
            r#"{"type":"hunter2"}"#,
            r#"{"type":1}"#,
            r#"{"type":"postgres_role"}"#,
            r#"{"type":"postgres_role","role":""}"#,
            r#"{"type":"postgres_role","role":["hunter2"]}"#,
            r#"{"type":"postgres_role","role":"app","hunter2":1}"#,
            r#"{"type":"postgres_role","role":"app","roles":["a","b"]}"#,
            r#"{"type":"postgres_role","role":"a\u0000b"}"#,
            r#"{"type":"postgres_role_pair","roles":["hunter2"]}"#,
            r#"{"type":"postgres_role_pair","roles":["a","b","c"]}"#,
            r#"{"type":"postgres_role_pair","roles":["hunter2","hunter2"]}"#,
            r#"{"type":"postgres_role_pair","roles":["a",2]}"#,
            r#"{"type":"postgres_role_pair","roles":"ab"}"#,
            r#"{"type":"function","function":"hunter2"}"#,
            r#"{"type":"function","function":"app.hunter2(text)"}"#,
            r#"{"type":"function","function":"app.hunter2(int,text)"}"#,
            r#"{"type":"function","function":"app.f(text,int) ; drop"}"#,
            r#"{"type":"function","function":"app.f(text,int)("}"#,
            r#"{"type":"function","function":"a.b.hunter2(text,int)"}"#,
            r#"{"type":"function","function":"1a.f(text,int)"}"#,
            r#"{"type":"function","function":"\"app.f(text,int)"}"#,
            r#"{"type":"function","function":"app.(text,int)"}"#,
            r#"{"type":"function","function":"\"\".f"}"#,
        ];
        for json in refused {
            let error = Target::parse(json).expect_err(json);
            assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
            assert!(error.hint.is_some_and(|hint| hint.contains("postgres_role_pair")));
        }
        let long = |len| format!(r#"{{"type":"postgres_role","role":"{}"}}"#, "r".repeat(len));
        assert!(Target::parse(&long(63)).is_ok());
        assert!(Target::parse(&long(64)).is_err());
        assert!(Target::parse(&long(5000)).unwrap_err().message.contains("too long"));
    }

    #[test]
    fn identifiers_are_those_of_sql() {
        for (text, schema, name) in [
            ("App.On_Rotate", "app", "on_rotate"),
            (r#""App"."On ""Rotate"""(TEXT, Integer)"#, "App", "On \"Rotate\""),
            (r#""a.b" . "c(d)" ( pg_catalog.text , int4 )"#, "a.b", "c(d)"),
            ("größe.f$1", "größe", "f$1"),
        ] {
            let parsed = function(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!((parsed.schema.as_str(), parsed.name.as_str()), (schema, name), "{text}");
        }
    }

    #[test]
    fn roles_take_turns() {
        let pair = ["a".to_owned(), "b".to_owned()];
        assert_eq!(next_in_turn(&pair, None), 0);
        assert_eq!(next_in_turn(&pair, Some("a")), 1);
        assert_eq!(next_in_turn(&pair, Some("b")), 0);
        assert_eq!(next_in_turn(&pair, Some("somebody else")), 0);
    }

    proptest! {
        #[test]
        fn the_canonical_form_is_the_same_target(schema in "[^\\p{Cc}]{1,15}", name in "[^\\p{Cc}]{1,15}") {
            let target = Target::Function(FunctionName { schema: schema.clone(), name: name.clone() });
            prop_assert_eq!(Target::parse(&target.to_json()).unwrap(), target);
            let role = Target::Role(name.clone());
            prop_assert_eq!(Target::parse(&role.to_json()).unwrap(), role);
            if schema != name {
                let pair = Target::RolePair([schema, name]);
                prop_assert_eq!(Target::parse(&pair.to_json()).unwrap(), pair);
            }
        }

        #[test]
        fn any_text_is_parsed_without_panic(text in ".*") {
            let _ = Target::parse(&text);
            let _ = FunctionName::parse(&text);
        }
    }
}
