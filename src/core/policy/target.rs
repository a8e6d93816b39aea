//! Whose password a target may set, and which function it may call: on facts that the extension gathered.
//!
//! Runs in whichever process makes a new version, each time, since any of these facts may have changed since the target
//! was set. The server asks part of it again when the password is set; here more is asked, so that nobody hands out what
//! he does not hold: a vault that any of its managers could point at a superuser would make all of them superusers.

/// About a role whose password is to be set, and the role that set the target.
#[derive(Clone, Copy, Debug, Default)]
pub struct RoleFacts {
    pub setter_is_superuser: bool,
    pub setter_has_createrole: bool,
    /// ADMIN OPTION on the role, which counts from PostgreSQL 16 on.
    pub setter_has_admin: bool,
    /// The setter set his own password, and nothing but that.
    pub own_password: bool,
    pub superuser: bool,
    pub replication: bool,
    pub bypass_rls: bool,
    /// One of the roles that the extension itself uses.
    pub of_the_vault: bool,
}

/// About a function to be called, and the role that set the target.
#[derive(Clone, Copy, Debug, Default)]
pub struct FunctionFacts {
    pub owner_is_setter: bool,
    pub owner_is_superuser: bool,
    pub setter_may_execute: bool,
    /// A plain function that returns no set.
    pub plain: bool,
    /// In a schema of the server or of the vault.
    pub system: bool,
}

/// Why not, as a DETAIL.
pub fn may_set_password(facts: &RoleFacts, admin_option_counts: bool) -> Result<(), &'static str> {
    if facts.setter_is_superuser {
        return Ok(());
    }
    if facts.superuser || facts.replication || facts.bypass_rls {
        return Err(
            "Only a superuser may have a secret set the password of a role with SUPERUSER, REPLICATION or BYPASSRLS.",
        );
    }
    if facts.of_the_vault {
        return Err("Only a superuser may have a secret set the password of a role of the vault.");
    }
    if facts.own_password {
        return Ok(());
    }
    match (facts.setter_has_createrole, facts.setter_has_admin, admin_option_counts) {
        (true, true, _) | (true, _, false) => Ok(()),
        (_, _, false) => Err("The role that sets the target needs CREATEROLE."),
        (_, _, true) => {
            Err("The role that sets the target needs CREATEROLE, and the ADMIN OPTION on the target's role.")
        }
    }
}

/// Why not, as a DETAIL. The owner of a function can replace it at any time, and it runs with the setter's rights.
pub fn may_call(facts: &FunctionFacts) -> Result<(), &'static str> {
    if facts.system {
        return Err("It is in a schema of the server or of the vault.");
    }
    if !facts.plain {
        return Err("It is a procedure or aggregate, or returns a set.");
    }
    if !facts.owner_is_setter && !facts.owner_is_superuser {
        return Err(
            "It belongs neither to the role that sets the target nor to a superuser: its owner could have anything run as that role.",
        );
    }
    if !facts.setter_may_execute {
        return Err("The role that sets the target needs EXECUTE on it, and USAGE on its schema.");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_superuser_may_set_any_and_others_what_they_could_alter() {
        for bits in 0u16..512 {
            let bit = |n: u16| bits & (1 << n) != 0;
            let facts = RoleFacts {
                setter_is_superuser: bit(0),
                setter_has_createrole: bit(1),
                setter_has_admin: bit(2),
                own_password: bit(3),
                superuser: bit(4),
                replication: bit(5),
                bypass_rls: bit(6),
                of_the_vault: bit(7),
            };
            let admin_counts = bit(8);
            let special = bit(4) || bit(5) || bit(6) || bit(7);
            let could = bit(1) && (bit(2) || !admin_counts) || bit(3);
            let expected = bit(0) || !special && could;
            assert_eq!(may_set_password(&facts, admin_counts).is_ok(), expected, "{facts:?} {admin_counts}");
        }
        assert!(may_set_password(&RoleFacts::default(), false).is_err());
    }

    #[test]
    fn a_function_is_the_setters_or_a_superusers() {
        for bits in 0u8..32 {
            let bit = |n: u8| bits & (1 << n) != 0;
            let facts = FunctionFacts {
                owner_is_setter: bit(0),
                owner_is_superuser: bit(1),
                setter_may_execute: bit(2),
                plain: bit(3),
                system: bit(4),
            };
            let expected = (bit(0) || bit(1)) && bit(2) && bit(3) && !bit(4);
            assert_eq!(may_call(&facts).is_ok(), expected, "{facts:?}");
        }
    }
}
