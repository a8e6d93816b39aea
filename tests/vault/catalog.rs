//! The list of everything the extension makes in a database, against the one kept in pg_test/expected/catalog.out.
//! Runs in the test process.
//!
//! An object that nobody wrote down is one nobody thought about: its rights, its volatility, its row-level security.
//! After a change that is meant, run with `HYPERION_VAULT_UPDATE_CATALOG=1` and read the difference before committing.

use hyperion_vault_tests::{Ask, Client, Cluster, sqlstate};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// One line for each thing the extension made; leaves temporary tables `listing`, `member` and `vault_table`.
pub const LISTING: &str = include_str!("catalog/listing.sql");

#[test]
fn the_catalog_is_as_listed() {
    // Without the usual roles of the tests: nobody is a member of anything.
    let cluster = Cluster::builder().start();
    let mut root = cluster.superuser();
    root.ask("CREATE EXTENSION hyperion_vault");

    let found = format!("{}\n", root.ask(LISTING));
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../pg_test/expected/catalog.out");
    if std::env::var_os("HYPERION_VAULT_UPDATE_CATALOG").is_some() {
        std::fs::write(&path, &found).expect("cannot write the listing");
    }
    let expected = std::fs::read_to_string(&path).expect("cannot read the listing");
    let (found, expected): (BTreeSet<_>, BTreeSet<_>) = (found.lines().collect(), expected.lines().collect());
    let new: Vec<_> = found.difference(&expected).collect();
    let gone: Vec<_> = expected.difference(&found).collect();
    assert!(new.is_empty() && gone.is_empty(), "not in {}: {new:#?}\nonly there: {gone:#?}", path.display());

    rules(&found);
    comments(&mut root);
    symbols(&cluster, &mut root);
    an_unregistered_object_shows(&mut root);
}

/// What must hold whatever the file says: a listing that was updated without reading must not pass.
fn rules(lines: &BTreeSet<&str>) {
    let of = |kind: &str| lines.iter().filter(|line| line.starts_with(kind)).copied().collect::<Vec<_>>();
    assert!(of("function ").len() >= 12 && of("table ").len() >= 3 && of("role ").len() == 5);
    for line in lines {
        assert!(!line.contains("PUBLIC"), "granted to everyone: {line}");
    }
    assert!(of("stranger").is_empty() && of("rule ").is_empty());
    for table in of("table ") {
        // The log is read by its auditors, with their own statements; nobody else has a right on any table.
        let rights =
            if table.starts_with("table vault.audit_log:") { "vault_auditor=SELECT" } else { "nobody" };
        let ends = table.ends_with(&format!("rights {rights}"));
        assert!(table.contains("rls t, forced t, owner postgres") && ends, "{table}");
        let name = table.split([' ', ':']).nth(1).unwrap_or_default();
        assert!(
            of("trigger")
                .iter()
                .any(|t| t.contains("BEFORE TRUNCATE") && t.contains(&format!(" ON {name} "))),
            "{name}"
        );
        // What is derived from other tables, a restore makes anew.
        let derived = ["vault.secret_dates", "vault.target_roles"].contains(&name);
        assert_eq!(of("dumped").contains(&format!("dumped: {name}").as_str()), !derived, "{name} in dumps");
    }
    // A restore, and logical replication, keep what is derived, and tell sessions: whatever their settings are.
    for (table, function) in [
        ("secrets", "_secret_changed"),
        ("secret_versions", "_version_changed"),
        ("vault_meta", "_identity_changed"),
        ("roles", "_access_changed"),
        ("role_permissions", "_access_changed"),
        ("role_bindings", "_access_changed"),
        ("tokens", "_access_changed"),
    ] {
        let always = of("trigger").iter().any(|line| {
            line.contains(" AFTER INSERT OR ")
                && line.contains(&format!(" ON vault.{table} FOR EACH "))
                && line.ends_with(&format!("EXECUTE FUNCTION vault.{function}(), A"))
        });
        assert!(always, "{table}");
    }
    // Statements and replication do not write what is derived.
    for table in ["secret_dates", "target_roles"] {
        let end = format!(
            " BEFORE INSERT OR DELETE OR UPDATE ON vault.{table} FOR EACH ROW EXECUTE FUNCTION vault._keep_derived(), A"
        );
        assert!(of("trigger").iter().any(|line| line.ends_with(&end)), "{table}");
    }
    // A foreign key could refer to what is unique without a condition: no name is.
    for index in of("index ").into_iter().filter(|line| line.contains(" UNIQUE ") && line.contains("name")) {
        assert!(index.contains(" WHERE (name IS NOT NULL)"), "{index}");
    }
    for view in of("view ") {
        let callers = "rights vault_admin=SELECT vault_reader=SELECT vault_user=SELECT,";
        // No options: the owner's right to what is below counts, which nobody else has.
        assert!(view.contains(": , owner postgres, ") && view.contains(callers), "{view}");
    }
    let foreign: Vec<_> = ["foreign table ", "wrapper ", "server "].into_iter().flat_map(of).collect();
    assert_eq!(foreign.len(), 3, "{foreign:#?}");
    for line in foreign {
        let alone = line.contains(" options none, owner postgres, rights nobody") && !line.contains("RIGHTS");
        assert!(alone, "{line}");
    }
    // Row-level security admits nobody, but auditors to the log.
    let [policy] = of("policy ")[..] else { panic!("{:#?}", of("policy ")) };
    let auditing = "policy vault.audit_log.auditing: permissive for r to vault_auditor using true";
    assert!(policy.starts_with(auditing), "{policy}");
    // No column of a table is anybody's.
    let granted: Vec<_> = of("column ").into_iter().filter(|line| line.contains("RIGHTS")).collect();
    assert!(granted.is_empty(), "{granted:#?}");
    for role in of("role ") {
        assert!(role.contains(": inherit limit -1, members none, member of none"), "{role}");
    }
    for function in of("function vault.") {
        assert!(
            (!function.contains("STRICT") || function.starts_with("function vault._open("))
                && !function.contains("SECURITY DEFINER")
                && !function.contains("parallel SAFE"),
            "{function}"
        );
        let private = function.starts_with("function vault._");
        let callers = "vault_admin=EXECUTE vault_reader=EXECUTE vault_user=EXECUTE";
        // What the view calls, it calls as the caller.
        let called = function.starts_with("function vault._open(");
        assert_eq!(private && !called, !function.contains(callers), "{function}");
        // EXPLAIN runs stable functions with constant arguments; only those may be.
        assert_eq!(function.contains(" volatile,"), !called, "{function}");
        const WRITERS: [&str; 16] = [
            "create",
            "put",
            "update",
            "rotate",
            "roll_back",
            "rename",
            "delete",
            "restore",
            "import",
            "set",
            "drop",
            "bind",
            "unbind",
            "rebind",
            "revoke",
            // What it changes is the session.
            "authenticate(token text)",
        ];
        let writes = WRITERS.iter().any(|verb| {
            function.strip_prefix("function vault.").is_some_and(|rest| {
                rest.starts_with(&format!("{verb}_")) || rest.starts_with(&format!("{verb} "))
            })
        });
        if !private {
            assert!(
                function.contains(if writes { "parallel unsafe" } else { "parallel restricted" }),
                "{function}"
            );
        }
    }
}

/// Every object has a comment that says something.
fn comments(root: &mut Client) {
    let silent = "SELECT coalesce(string_agg(what, ', '), '') FROM (
        SELECT pg_describe_object(classid, objid, 0) AS what, obj_description(objid, classid::regclass::name) AS comment FROM member
         WHERE NOT (classid = 'pg_type'::regclass AND EXISTS (SELECT FROM pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid
                      WHERE t.oid = objid AND (t.typcategory = 'A' OR c.relkind IN ('r', 'v', 'f'))))
           AND NOT (classid = 'pg_class'::regclass AND (SELECT relkind = 'c' FROM pg_class WHERE oid = objid))
        UNION ALL SELECT 'policy ' || polname, obj_description(p.oid, 'pg_policy') FROM pg_policy p JOIN vault_table c ON c.oid = polrelid
        UNION ALL SELECT rolname, shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname LIKE 'vault\\_%'
        UNION ALL SELECT nspname, obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname LIKE 'vault%'
        UNION ALL SELECT extname, obj_description(oid, 'pg_extension') FROM pg_extension WHERE extname = 'hyperion_vault') x
       WHERE length(coalesce(comment, '')) < 10";
    assert_eq!(root.ask(silent), "", "these have no comment");
}

/// Each C function has its code, and all code for C functions has its declaration, here or in a release.
fn symbols(cluster: &Cluster, root: &mut Client) {
    // The server's own check of a C function: loads the library, finds symbol and call convention, or raises.
    let declared = root.ask("SELECT prosrc FROM pg_proc p JOIN member m ON m.objid = p.oid AND m.classid = 'pg_proc'::regclass
                              WHERE prolang = (SELECT oid FROM pg_language WHERE lanname = 'c') ORDER BY fmgr_c_validator(p.oid)::text, prosrc COLLATE \"C\"");
    let mut declared: BTreeSet<_> = declared.lines().map(str::to_owned).collect();
    declared.extend(crate::upgrade::released_symbols());
    sqlstate!(root.try_ask("CREATE FUNCTION pg_temp.none() RETURNS int LANGUAGE c AS '$libdir/hyperion_vault', 'vault_no_such_function'"), "42883");
    let library = cluster.toolchain().pkglibdir.join("hyperion_vault.so");
    let bytes = std::fs::read(&library).expect("cannot read the library");
    let marker = b"\0pg_finfo_vault_";
    let exported: BTreeSet<String> = bytes
        .windows(marker.len())
        .enumerate()
        .filter(|(_, window)| window == marker)
        .map(|(at, _)| {
            let name = &bytes[at + "\0pg_finfo_".len()..];
            let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
            String::from_utf8_lossy(&name[..end]).into_owned()
        })
        .collect();
    assert_eq!(declared, exported, "declared in SQL / exported by the library");
}

/// The control: the listing sees what was added.
fn an_unregistered_object_shows(root: &mut Client) {
    let before: BTreeSet<String> = root.ask("TABLE listing").lines().map(str::to_owned).collect();
    root.ask(
        "RESET search_path; DROP TABLE listing, member, vault_table;
         CREATE FUNCTION vault.leak() RETURNS int LANGUAGE sql AS 'SELECT 1';
         ALTER EXTENSION hyperion_vault ADD FUNCTION vault.leak();
         CREATE TABLE vault.loose (a int);
         GRANT SELECT ON vault.secrets TO PUBLIC;
         ALTER TABLE vault.secret_versions NO FORCE ROW LEVEL SECURITY;
         CREATE POLICY extra ON vault.secrets USING (true);
         GRANT vault_service TO vault_user;
         DROP FUNCTION pg_temp.rights",
    );
    let after: BTreeSet<String> = root.ask(LISTING).lines().map(str::to_owned).collect();
    let after: Vec<_> =
        after.iter().filter(|line| !before.iter().any(|b| b.ends_with(line.as_str()))).collect();
    for sign in [
        "member: function vault.leak()",
        "function vault.leak() returns integer: sql, volatile, parallel unsafe, owner postgres, rights PUBLIC=EXECUTE",
        "stranger: table vault.loose",
        "table vault.secrets: logged, rls t, forced t, owner postgres, rights PUBLIC=SELECT",
        "table vault.secret_versions: logged, rls t, forced f",
        "policy vault.secrets.extra: permissive for all to everyone using true",
        "role vault_service: inherit limit -1, members vault_user",
    ] {
        assert!(after.iter().any(|line| line.starts_with(sign)), "{sign} does not show in {after:#?}");
    }
}
