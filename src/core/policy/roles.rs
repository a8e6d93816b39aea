//! Who may do what: the built-in roles, and the policies that a caller holds.
//!
//! Runs in the backend on every operation, on facts the extension gathered (`has_privs_of_role` for each role, the
//! policies bound to it and of its token). The traps it avoids are management that implies reading: `vault_admin` manages
//! every secret and reads no value, and holding two roles gives the union of both and nothing more; and a second opinion
//! elsewhere about what a rule covers.

use super::index::{self, Policy};
use super::rules::Rule;

/// What is about to be done to a secret or a subject. Listing versions and metadata is `List`; rolling back is `Rotate`.
/// The last three are the keyring's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Read,
    Verify,
    List,
    Create,
    Update,
    Delete,
    Rotate,
    Encrypt,
    Decrypt,
    Shred,
}

impl Action {
    pub const ALL: [Self; 10] = [
        Self::Read,
        Self::Verify,
        Self::List,
        Self::Create,
        Self::Update,
        Self::Delete,
        Self::Rotate,
        Self::Encrypt,
        Self::Decrypt,
        Self::Shred,
    ];

    /// The word used in policies, audit records and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Verify => "verify",
            Self::List => "list",
            Self::Create => "create",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Rotate => "rotate",
            Self::Encrypt => "encrypt",
            Self::Decrypt => "decrypt",
            Self::Shred => "shred",
        }
    }

    /// The action of exactly that word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.as_str() == word)
    }
}

/// What is known about the effective role: superuser, and whose privileges it has. The default is nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Caller {
    pub superuser: bool,
    pub vault_reader: bool,
    pub vault_admin: bool,
    pub vault_user: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use]
pub enum Decision {
    Allowed,
    Denied,
}

impl Decision {
    pub fn is_allowed(self) -> bool {
        self == Self::Allowed
    }
}

/// The one question every operation asks, on the name alone and before any lookup: may who has these built-in roles,
/// and holds these policies, do `action` to `path`?
///
/// Rights only add up: a policy turns `Denied` into `Allowed`, never the reverse. A path with `*` stands for all that it
/// matches, and is allowed if one rule covers all of it (see [`Policy::allows`]): handing out a right asks the same
/// question as using it.
pub fn decide(caller: &Caller, held: &[&Policy], action: Action, path: &str) -> Decision {
    if permits(caller, action) || held.iter().any(|policy| policy.allows(action, path)) {
        Decision::Allowed
    } else {
        Decision::Denied
    }
}

/// What a built-in role permits on every path. `vault_user` alone permits nothing: it may call the functions,
/// and what it may do there is up to policies.
pub fn permits(caller: &Caller, action: Action) -> bool {
    use Action::*;
    caller.superuser
        || caller.vault_admin && manages(action)
        || caller.vault_reader && matches!(action, Read | Verify | List)
}

/// Whether an action belongs to managing: to `vault_admin`, and to roles with `is_admin`.
pub(super) fn manages(action: Action) -> bool {
    use Action::*;
    // Exhaustive, so that a new action must be thought about here before any manager has it.
    match action {
        // What they tell of a value is for readers.
        Read | Verify | Decrypt => false,
        // Putting a value in that one knows (create, encrypt) tells nothing of those that are there.
        List | Create | Update | Delete | Rotate | Encrypt | Shred => true,
    }
}

/// Whether who has these roles and policies manages the vault as a whole: roles, bindings, tokens, export, import.
pub fn administers(caller: &Caller, held: &[&Policy]) -> bool {
    caller.superuser || caller.vault_admin || held.iter().any(|policy| policy.is_admin())
}

/// Why something may not be handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotHeld {
    /// `is_admin`, by who is none.
    Admin,
    /// The rule at this place of those to be handed out.
    Rule(usize),
}

/// Whether these rights may be handed out: nobody gives what he does not hold. A rule is held if, for each of its
/// actions, one rule of the giver covers its whole path; several that cover it together do not count, which errs on the
/// side of refusing.
pub fn may_hand_out<'a>(
    caller: &Caller,
    held: &[&Policy],
    is_admin: bool,
    rules: impl IntoIterator<Item = &'a Rule>,
) -> Result<(), NotHeld> {
    if is_admin && !administers(caller, held) {
        return Err(NotHeld::Admin);
    }
    let holds = |rule: &Rule| {
        Action::ALL
            .into_iter()
            .filter(|action| rule.granted.includes(*action))
            .all(|action| decide(caller, held, action, rule.path.as_str()).is_allowed())
    };
    match rules.into_iter().position(|rule| !holds(rule)) {
        None => Ok(()),
        Some(place) => Err(NotHeld::Rule(place)),
    }
}

/// The names on which something may be allowed: where to look for them in the order of names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    Everywhere,
    /// From the first name of each range to before its end (None: no end); sorted, not touching. Not every name in them
    /// is allowed: [`decide`] says which. None at all: nothing is.
    Ranges(Vec<(String, Option<String>)>),
}

/// Where `action` may be allowed.
pub fn reach(caller: &Caller, held: &[&Policy], action: Action) -> Reach {
    if permits(caller, action) || held.iter().any(|policy| policy.is_admin() && manages(action)) {
        return Reach::Everywhere;
    }
    Reach::Ranges(index::merge(held.iter().flat_map(|policy| policy.ranges(action)).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows: each role alone. Columns: `Action::ALL`.
    const TABLE: [(&str, &str); 5] = [
        ("nobody", "----------"),
        ("superuser", "RVLCUDOEYS"),
        ("reader", "RVL-------"),
        ("admin", "--LCUDOE-S"),
        ("user", "----------"),
    ];

    fn row(role: &str) -> Vec<bool> {
        let (_, cells) = TABLE.iter().find(|(r, _)| *r == role).unwrap();
        cells.chars().map(|c| c != '-').collect()
    }

    #[test]
    fn every_combination_is_the_union_of_its_roles() {
        for bits in 0u8..16 {
            let caller = Caller {
                superuser: bits & 1 != 0,
                vault_reader: bits & 2 != 0,
                vault_admin: bits & 4 != 0,
                vault_user: bits & 8 != 0,
            };
            let held: Vec<_> = [
                ("nobody", true),
                ("superuser", caller.superuser),
                ("reader", caller.vault_reader),
                ("admin", caller.vault_admin),
                ("user", caller.vault_user),
            ]
            .into_iter()
            .filter(|(_, held)| *held)
            .map(|(role, _)| row(role))
            .collect();
            for (i, action) in Action::ALL.into_iter().enumerate() {
                let expected = held.iter().any(|row| row[i]);
                assert_eq!(permits(&caller, action), expected, "{caller:?} {action:?}");
                for path in ["", "a", "db/password", "*"] {
                    assert_eq!(
                        decide(&caller, &[], action, path).is_allowed(),
                        expected,
                        "{caller:?} {action:?}"
                    );
                }
            }
        }
        assert_eq!(
            Caller::default(),
            Caller { superuser: false, vault_reader: false, vault_admin: false, vault_user: false }
        );
    }

    #[test]
    fn action_names_are_those_of_the_policy_language() {
        let names: Vec<_> = Action::ALL.into_iter().map(Action::as_str).collect();
        assert_eq!(
            names,
            ["read", "verify", "list", "create", "update", "delete", "rotate", "encrypt", "decrypt", "shred"]
        );
        for action in Action::ALL {
            assert_eq!(Action::parse(action.as_str()), Some(action));
        }
        for word in ["", "*", "Read", "read ", "reads", "rea"] {
            assert_eq!(Action::parse(word), None, "{word}");
        }
    }

    #[test]
    fn a_policy_that_administers_manages_and_reads_nothing() {
        let policy = Policy::new(true, []);
        for action in Action::ALL {
            let allowed = decide(&Caller::default(), &[&policy], action, "a").is_allowed();
            assert_eq!(allowed, manages(action), "{action:?}");
        }
        assert!(administers(&Caller::default(), &[&policy]));
        assert!(!administers(&Caller { vault_reader: true, ..Caller::default() }, &[&Policy::default()]));
    }

    fn rules(json: &str) -> Vec<Rule> {
        Rule::parse_all(json).unwrap()
    }

    #[test]
    fn nobody_hands_out_what_he_does_not_hold() {
        let admin = Caller { vault_admin: true, ..Caller::default() };
        let held = Policy::new(
            false,
            rules(
                r#"[{"action":"read","path":"a/*"},{"action":"verify","path":"a/b*"},{"action":"*","path":"all/*"}]"#,
            ),
        );
        for (json, caller, expected) in [
            (r#"[]"#, admin, Ok(())),
            (r#"[{"action":"list","path":"*"},{"action":"shred","path":"x"}]"#, admin, Ok(())),
            (r#"[{"action":"list","path":"*"},{"action":"read","path":"x"}]"#, admin, Err(NotHeld::Rule(1))),
            (r#"[{"action":"decrypt","path":"x"}]"#, admin, Err(NotHeld::Rule(0))),
            (r#"[{"action":"verify","path":"x"}]"#, admin, Err(NotHeld::Rule(0))),
            (r#"[{"action":"*","path":"x"}]"#, admin, Err(NotHeld::Rule(0))),
            (
                r#"[{"action":"read","path":"a/*"},{"action":"read","path":"a/x"},{"action":"read","path":"a/*/c"}]"#,
                Caller::default(),
                Ok(()),
            ),
            (r#"[{"action":"read","path":"a*"}]"#, Caller::default(), Err(NotHeld::Rule(0))),
            (r#"[{"action":"read","path":"*"}]"#, Caller::default(), Err(NotHeld::Rule(0))),
            (r#"[{"action":"verify","path":"a/*"}]"#, Caller::default(), Err(NotHeld::Rule(0))),
            (
                r#"[{"action":"*","path":"all/of/it"},{"action":"shred","path":"all/*"}]"#,
                Caller::default(),
                Ok(()),
            ),
            (r#"[{"action":"*","path":"a/b"}]"#, Caller::default(), Err(NotHeld::Rule(0))),
        ] {
            assert_eq!(may_hand_out(&caller, &[&held], false, &rules(json)), expected, "{json}");
        }
        assert_eq!(may_hand_out(&Caller::default(), &[&held], true, &[]), Err(NotHeld::Admin));
        assert_eq!(may_hand_out(&admin, &[], true, &[]), Ok(()));
        let root = Caller { superuser: true, ..Caller::default() };
        assert_eq!(may_hand_out(&root, &[], true, &rules(r#"[{"action":"*","path":"*"}]"#)), Ok(()));
    }
}
