//! As whom a target is applied: who may set which, and what becomes of it when he or the role changes.

use super::{agrees, builder, credential, logs_in, major, prepare, secret_for_svc, version};
use hyperion_vault_tests::{Ask, Client, Vault, sqlstate};

fn role(name: &str) -> String {
    format!("'{{\"type\":\"postgres_role\",\"role\":\"{name}\"}}'")
}

#[test]
fn nobody_sets_a_password_that_he_could_not_set() {
    let cluster = builder().start();
    let vault = prepare(&cluster);
    let (mut root, mut ops, mut keeper) = (vault.root(), vault.ops(), vault.session("keeper"));
    root.batch_execute(
        "CREATE ROLE boss SUPERUSER LOGIN PASSWORD 'b'; CREATE ROLE walker REPLICATION LOGIN; CREATE ROLE seer BYPASSRLS LOGIN;
         CREATE ROLE stranger LOGIN",
    )
    .unwrap();
    let create = |name: &str| {
        format!("SELECT vault.create_secret('db/x', generator => '{{}}', target => {})", role(name))
    };
    // No CREATEROLE, no password of others.
    sqlstate!(ops.try_ask(&create("svc")), "42501", message: "permission denied for role \"ops\"", detail: "needs CREATEROLE", hint: "have it set by");
    for special in ["boss", "walker", "seer"] {
        sqlstate!(keeper.try_ask(&create(special)), "42501", message: "set the password", detail: "SUPERUSER, REPLICATION or BYPASSRLS");
    }
    for own in ["vault_service", "vault_reader", "vault_admin", "vault_user", "vault_auditor"] {
        sqlstate!(keeper.try_ask(&create(own)), "42501", detail: "role of the vault");
    }
    sqlstate!(keeper.try_ask(&create("nobody_at_all")), "55000", message: "does not exist");
    if major(&cluster) >= 16 {
        sqlstate!(keeper.try_ask(&create("stranger")), "42501", detail: "ADMIN OPTION");
        // ADMIN OPTION alone is not enough either.
        root.ask("GRANT stranger TO ops WITH ADMIN OPTION");
        sqlstate!(ops.try_ask(&create("stranger")), "42501", detail: "CREATEROLE");
    } else {
        keeper.ask(&create("stranger"));
        keeper.ask("SELECT vault.delete_secret('db/x')");
    }
    // The identity is the effective role, in both directions.
    root.ask("GRANT ops TO keeper");
    sqlstate!(keeper.try_ask(&format!("SET ROLE ops; {}", create("svc"))), "42501", message: "role \"ops\"");
    keeper.ask("RESET ROLE");
    assert_eq!(keeper.ask("SELECT count(*) FROM vault.list_secrets()"), "0", "nothing was made");
    assert!(logs_in(&cluster, "svc", "of its own") && logs_in(&cluster, "boss", "b"));

    // One's own password needs no more than being who one is.
    ops.ask(&create("ops"));
    assert!(agrees(&cluster, &mut vault.app(), "db/x"));
    ops.ask("SELECT vault.delete_secret('db/x')");
    let pair = "SELECT vault.create_secret('db/x', generator => '{}',
        target => '{\"type\":\"postgres_role_pair\",\"roles\":[\"ops\",\"app_a\"]}')";
    sqlstate!(ops.try_ask(pair), "42501", detail: "CREATEROLE");

    // A superuser may have any.
    for special in ["boss", "walker", "vault_auditor"] {
        root.ask(&create(special));
        root.ask("SELECT vault.rotate_secret('db/x')");
        ops.ask("SELECT vault.rotate_secret('db/x')");
        root.ask("SELECT vault.delete_secret('db/x')");
    }
    root.ask(&create("boss"));
    let (_, password) = credential(&mut vault.app(), "db/x");
    assert!(logs_in(&cluster, "boss", &password));
    // But nobody else may take that over with a target of his own.
    sqlstate!(
        keeper.try_ask(&format!(
            "SELECT vault.update_secret('db/x', password => 'p', target => {})",
            role("boss")
        )),
        "42501"
    );
    assert!(logs_in(&cluster, "boss", &password));

    // Formats, and one secret a role.
    sqlstate!(
        keeper.try_ask(&format!("SELECT vault.create_secret('db/t', 'text', target => {})", role("svc"))),
        "22023", message: "username and password only"
    );
    sqlstate!(
        keeper.try_ask(&format!("SELECT vault.create_secret('db/t', username => 'else', password => 'p', target => {})", role("svc"))),
        "22023", message: "username is not the role"
    );
    sqlstate!(keeper.try_ask("SELECT vault.create_secret('db/t', 'text', target => '{\"type\":\"hunter2\"}')"), "22023", message: "unknown type");
    keeper.ask("SELECT vault.create_secret('db/one', username => 'u', password => 'p')");
    keeper.ask(&format!("SELECT vault.update_secret('db/one', target => {})", role("svc")));
    assert_eq!(credential(&mut vault.app(), "db/one"), ("svc".into(), "p".into()), "the user name follows");
    let second =
        format!("SELECT vault.create_secret('db/two', generator => '{{}}', target => {})", role("svc"));
    sqlstate!(keeper.try_ask(&second), "55000", message: "from another secret", hint: "Take the target off");
    keeper.ask("SELECT vault.delete_secret('db/one', '1 day')");
    sqlstate!(keeper.try_ask(&second), "55000", message: "from another secret");
    keeper.ask("SELECT vault.delete_secret('db/one')");
    keeper.ask(&second);
}

/// A rotation that must fail with 55000 and say why; the former version stays.
#[track_caller]
fn inactive(ops: &mut Client, vault: &Vault<'_>, detail: &str) {
    let before = version(ops, "db/svc");
    for call in ["rotate_secret('db/svc')", "update_secret('db/svc', password => 'x')"] {
        sqlstate!(ops.try_ask(&format!("SELECT vault.{call}")), "55000",
            message: "is not active", detail: detail, hint: "Set it again");
    }
    assert_eq!(version(ops, "db/svc"), before);
    assert!(agrees(vault.cluster, &mut vault.app(), "db/svc"), "the vault and the server disagree");
}

#[test]
fn a_target_is_its_setters() {
    let cluster = builder().start();
    let vault = prepare(&cluster);
    drop(secret_for_svc(&vault));
    let (mut root, mut ops, mut app) = (vault.root(), vault.ops(), vault.app());
    let rotate = "SELECT vault.rotate_secret('db/svc')";
    ops.ask(rotate);

    // What the setter may do is asked each time; not what the caller may, superuser or not.
    let refused = |client: &mut Client, detail: &str| {
        let before = version(client, "db/svc");
        sqlstate!(client.try_ask(rotate), "42501", message: "permission denied for role \"keeper\"", detail: detail);
        assert_eq!(version(client, "db/svc"), before);
    };
    root.ask("ALTER ROLE keeper NOCREATEROLE");
    refused(&mut ops, "CREATEROLE");
    refused(&mut root, "CREATEROLE");
    root.ask("ALTER ROLE keeper CREATEROLE; ALTER ROLE svc SUPERUSER");
    refused(&mut root, "SUPERUSER");
    root.ask("ALTER ROLE svc NOSUPERUSER BYPASSRLS");
    refused(&mut root, "BYPASSRLS");
    root.ask("ALTER ROLE svc NOBYPASSRLS");
    assert!(agrees(&cluster, &mut app, "db/svc"));
    ops.ask(rotate);
    // No longer a manager of the vault: what he set stays, until others take it off.
    root.ask("REVOKE vault_admin FROM keeper");
    ops.ask(rotate);

    // Another name, another oid, gone.
    root.ask("ALTER ROLE keeper RENAME TO keeper_was");
    inactive(&mut ops, &vault, "Role \"keeper\", which set it, has been dropped, renamed or made again");
    root.ask("CREATE ROLE keeper SUPERUSER");
    inactive(&mut ops, &vault, "Role \"keeper\"");
    root.ask("DROP ROLE keeper; ALTER ROLE keeper_was RENAME TO keeper");
    ops.ask(rotate);
    root.ask("DROP OWNED BY keeper; DROP ROLE keeper");
    inactive(&mut ops, &vault, "Role \"keeper\"");
    root.ask("CREATE ROLE keeper LOGIN CREATEROLE IN ROLE vault_admin");
    inactive(&mut ops, &vault, "Role \"keeper\"");
    if major(&cluster) >= 16 {
        root.ask("GRANT svc TO keeper WITH ADMIN OPTION");
    }
    let set = format!("SELECT vault.update_secret('db/svc', target => {})", role("svc"));
    vault.session("keeper").ask(&set);
    ops.ask(rotate);
    assert!(agrees(&cluster, &mut app, "db/svc"));

    // The role itself: made again it is somebody else's.
    root.ask("DROP OWNED BY svc; DROP ROLE svc");
    let gone = "A role that it names has been dropped, renamed or made again since it was set: \"svc\"";
    let before = version(&mut ops, "db/svc");
    sqlstate!(ops.try_ask(rotate), "55000", detail: gone);
    root.ask("CREATE ROLE svc LOGIN PASSWORD 'new'");
    sqlstate!(ops.try_ask(rotate), "55000", detail: gone);
    assert!(logs_in(&cluster, "svc", "new"));
    assert_eq!(version(&mut ops, "db/svc"), before);
    root.ask(&set);
    assert!(agrees(&cluster, &mut app, "db/svc"));
    root.ask("ALTER ROLE svc RENAME TO svc2");
    sqlstate!(ops.try_ask(rotate), "55000", detail: gone);
    root.ask("ALTER ROLE svc2 RENAME TO svc");

    // Through a function that runs as its owner, it is the owner who sets it.
    root.batch_execute(&format!(
        "CREATE FUNCTION public.set_it() RETURNS void SECURITY DEFINER LANGUAGE sql AS $$ {set} $$;"
    ))
    .unwrap();
    ops.ask("SELECT public.set_it()");
    assert_eq!(root.ask("SELECT target_set_by FROM vault.secrets"), "postgres");
}

#[test]
fn a_hostile_session_changes_nothing_about_it() {
    let cluster = builder().start();
    let vault = prepare(&cluster);
    cluster.set_conf("password_encryption", "md5");
    drop(secret_for_svc(&vault));
    let (mut root, mut ops, mut app) = (vault.root(), vault.ops(), vault.app());
    root.batch_execute(
        "CREATE SCHEMA evil AUTHORIZATION ops; GRANT CREATE ON DATABASE postgres TO ops; CREATE TABLE public.trap (t text);
         GRANT INSERT ON public.trap TO PUBLIC",
    )
    .unwrap();
    ops.batch_execute(
        "CREATE FUNCTION evil.eq(name, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.trap VALUES (current_user); RETURN true; END $$;
         CREATE OPERATOR evil.= (LEFTARG = name, RIGHTARG = text, FUNCTION = evil.eq);
         CREATE FUNCTION evil.eq(oid, oid) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.trap VALUES (current_user); RETURN true; END $$;
         CREATE OPERATOR evil.= (LEFTARG = oid, RIGHTARG = oid, FUNCTION = evil.eq);
         SET search_path = evil, pg_catalog; SET row_security = off; SET DateStyle = 'SQL, DMY'; SET TimeZone = 'Pacific/Auckland';
         SET client_min_messages = debug5",
    )
    .unwrap();
    if major(&cluster) >= 16 {
        cluster.set_conf("scram_iterations", "5000");
        ops.batch_execute("SET scram_iterations = 1").unwrap();
    }
    ops.ask("SELECT vault.rotate_secret('db/svc')");
    assert!(agrees(&cluster, &mut app, "db/svc"));
    let verifier = root.ask("SELECT rolpassword FROM pg_authid WHERE rolname = 'svc'");
    let iterations = if major(&cluster) >= 16 { "5000" } else { "4096" };
    assert!(
        verifier.starts_with(&format!("SCRAM-SHA-256${iterations}:")),
        "not the server's number of iterations"
    );
    assert_eq!(ops.ask("SHOW search_path"), "evil, pg_catalog", "and the session keeps its own");
    // What a role sets for itself, as any role may, is its session's default, and makes no password weaker.
    if major(&cluster) >= 16 {
        ops.batch_execute("ALTER ROLE ops SET scram_iterations = 1").unwrap();
        let mut weak = vault.ops();
        assert_eq!(weak.ask("SHOW scram_iterations"), "1");
        weak.ask("SELECT vault.rotate_secret('db/svc')");
        let verifier = root.ask("SELECT rolpassword FROM pg_authid WHERE rolname = 'svc'");
        assert!(verifier.starts_with("SCRAM-SHA-256$4096:"), "chosen by the one who rotates");
    }
    assert_eq!(ops.ask("SELECT current_user"), "ops");
    assert_eq!(root.ask("SELECT count(*) FROM public.trap"), "0");
}
