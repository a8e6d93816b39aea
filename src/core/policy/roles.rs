//! What the built-in roles may do.
//!
//! Runs in the backend on every operation, on facts the extension gathered (`has_privs_of_role` for each role).
//! The trap it avoids is management that implies reading: `vault_admin` manages every secret and reads no value,
//! and holding two roles gives the union of both and nothing more.

/// What is about to be done to a secret. Listing versions and metadata is `List`; rolling back is `Rotate`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Read,
    Verify,
    List,
    Create,
    Update,
    Delete,
    Rotate,
}

impl Action {
    pub const ALL: [Self; 7] =
        [Self::Read, Self::Verify, Self::List, Self::Create, Self::Update, Self::Delete, Self::Rotate];

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
        }
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

/// The one question every operation asks, on the name alone and before any lookup.
///
/// Today the built-in roles are the whole policy and reach every path. Rules of action and path for
/// `vault_user` add their answer here: they may turn `Denied` into `Allowed`, never the reverse.
pub fn decide(caller: &Caller, action: Action, _path: &str) -> Decision {
    if permits(caller, action) { Decision::Allowed } else { Decision::Denied }
}

/// What a built-in role permits on every path. `vault_user` alone permits nothing: it may call the functions,
/// and what it may do there is up to rules.
pub fn permits(caller: &Caller, action: Action) -> bool {
    use Action::*;
    // Exhaustive on the action, so that a new one must be granted here before anybody may do it.
    match action {
        Read | Verify => caller.superuser || caller.vault_reader,
        List => caller.superuser || caller.vault_reader || caller.vault_admin,
        Create | Update | Delete | Rotate => caller.superuser || caller.vault_admin,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows: each role alone. Columns: `Action::ALL`.
    const TABLE: [(&str, &str); 5] = [
        ("nobody", "-------"),
        ("superuser", "RVLCUDO"),
        ("reader", "RVL----"),
        ("admin", "--LCUDO"),
        ("user", "-------"),
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
                    assert_eq!(decide(&caller, action, path).is_allowed(), expected, "{caller:?} {action:?}");
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
        assert_eq!(names, ["read", "verify", "list", "create", "update", "delete", "rotate"]);
    }
}
