//! Tokens: when they are in force and when not, how they end, and that their text is nowhere.

use super::{filled, outcome, read};
use crate::watch::first_look;
use hyperion_vault_tests::{Ask, Client, Cluster, PATIENCE, SIGTERM, Vault, sqlstate, wait_for};

const SETUP: &str = r#"
    SELECT vault.create_role('reader', permissions => '[{"action":"read","path":"a/*"}]');
    SELECT vault.create_role('writer', permissions => '[{"action":"create","path":"new/*"},{"action":"list","path":"*"}]')"#;

fn create(root: &mut Client, name: &str, role: &str) -> String {
    root.ask(&format!("SELECT vault.create_token('{name}', '{role}')"))
}

fn show(client: &mut Client, token: &str) {
    assert_eq!(outcome(client, &format!("SELECT vault.authenticate('{token}')")), "", "{token}");
}

fn reads(client: &mut Client) -> bool {
    client.ask("SAVEPOINT question");
    let value = read(client, "a/one");
    client.ask(if value == "42501" { "ROLLBACK TO question" } else { "RELEASE question" });
    match value.as_str() {
        "value of a/one" => true,
        "42501" => false,
        other => panic!("{other}"),
    }
}

#[test]
fn in_force_for_one_transaction_and_one_role() {
    let cluster = Cluster::builder().conf("max_prepared_transactions", "2").start();
    let vault = cluster.vault();
    let mut root = filled(&vault);
    root.ask(SETUP);
    let (reader, writer) = (create(&mut root, "r", "reader"), create(&mut root, "w", "writer"));
    root.ask("CREATE ROLE other IN ROLE vault_user; GRANT other TO one");
    let mut one = vault.session("one");

    // In one statement, in one simple query, in one transaction; then it is over, however that ended.
    let sql = format!("SELECT vault.read_secret('a/one') FROM vault.authenticate('{reader}')");
    assert_eq!(outcome(&mut one, &sql), "value of a/one");
    assert_eq!(read(&mut one, "a/one"), "42501");
    let sql = format!("SELECT vault.authenticate('{reader}'); SELECT vault.read_secret('a/one')");
    assert_eq!(outcome(&mut one, &sql).trim(), "value of a/one");
    assert_eq!(read(&mut one, "a/one"), "42501");
    for end in [
        "COMMIT",
        "ROLLBACK",
        "COMMIT AND CHAIN",
        "ROLLBACK AND CHAIN",
        "PREPARE TRANSACTION 'p'; ROLLBACK PREPARED 'p'",
    ] {
        one.ask("BEGIN");
        show(&mut one, &reader);
        assert!(reads(&mut one));
        assert_eq!(one.ask("SELECT name, role FROM vault.list_tokens()"), "r|reader", "his own");
        for statement in end.split("; ") {
            one.ask(statement);
        }
        one.ask(if end.contains("CHAIN") { "" } else { "BEGIN" });
        assert!(!reads(&mut one), "after {end}");
        assert_eq!(one.ask("SELECT count(*) FROM vault.list_tokens()"), "0");
        one.ask("ROLLBACK");
    }

    // Another role is current: not in force, and in force again when it no longer is.
    one.ask("BEGIN");
    show(&mut one, &reader);
    one.ask("SET LOCAL ROLE other");
    assert!(!reads(&mut one));
    show(&mut one, &writer);
    assert_eq!(one.ask("SELECT vault.can('create', 'new/x'), vault.can('read', 'a/one')"), "t|f");
    one.ask("RESET ROLE");
    assert_eq!(one.ask("SELECT vault.can('create', 'new/x'), vault.can('read', 'a/one')"), "f|t");
    // Another token takes its place, and a rolled-back savepoint takes that back.
    one.ask("SAVEPOINT s");
    show(&mut one, &writer);
    assert!(!reads(&mut one));
    one.ask("SAVEPOINT inner_one; RELEASE inner_one");
    assert_eq!(one.ask("SELECT vault.can('create', 'new/x')"), "t");
    one.ask("ROLLBACK TO s");
    assert!(reads(&mut one));
    one.ask("ROLLBACK; BEGIN; SAVEPOINT s; SAVEPOINT t");
    show(&mut one, &reader);
    one.ask("RELEASE t");
    assert!(reads(&mut one), "released, not rolled back");
    one.ask("ROLLBACK TO s");
    assert!(!reads(&mut one));
    one.ask("SAVEPOINT t");
    show(&mut one, &reader);
    one.ask("RELEASE t; RELEASE s; SAVEPOINT u; ROLLBACK TO u");
    assert!(reads(&mut one));
    // A failed attempt leaves what was in force before it.
    one.ask("SAVEPOINT v");
    assert_eq!(outcome(&mut one, "SELECT vault.authenticate('nonsense')"), "28000");
    one.ask("ROLLBACK TO v");
    assert!(reads(&mut one));
    one.ask("ROLLBACK");

    // Shown inside of a SECURITY DEFINER function, it is its owner's; shown outside, it is none of the function's.
    root.ask(&format!(
        "CREATE FUNCTION public.shows() RETURNS text LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog
           AS $$ SELECT vault.authenticate('{reader}'); SELECT vault.read_secret('a/one') $$;
         CREATE FUNCTION public.plain() RETURNS boolean LANGUAGE sql SECURITY DEFINER AS $$ SELECT vault.can('read', 'a/one') $$;
         ALTER FUNCTION public.shows() OWNER TO two; ALTER FUNCTION public.plain() OWNER TO two"
    ));
    one.ask("BEGIN");
    assert_eq!(one.ask("SELECT public.shows()"), "value of a/one");
    assert!(!reads(&mut one));
    one.ask("ROLLBACK; BEGIN");
    show(&mut one, &reader);
    assert_eq!(one.ask("SELECT public.plain(), vault.can('read', 'a/one')"), "f|t");
    one.ask("COMMIT");

    // What a holder writes is as his role says; the token adds to what the Postgres role has.
    root.ask("SELECT vault.bind_role('reader', 'one')");
    one.ask("BEGIN");
    show(&mut one, &writer);
    assert_eq!(
        one.ask("SELECT (vault.create_secret('new/x', 'v')).version, vault.can('read', 'a/one')"),
        "1|t"
    );
    assert_eq!(one.ask("SELECT count(*) FROM vault.list_secrets()"), "5");
    one.ask("COMMIT");
    assert_eq!(outcome(&mut one, "SELECT vault.create_secret('new/y', 'v')"), "42501");

    // Who may not call the API at all cannot show a token either.
    assert_eq!(outcome(&mut vault.nobody(), &format!("SELECT vault.authenticate('{reader}')")), "42501");
}

#[test]
fn a_token_ends_at_once() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut root = filled(&vault);
    root.ask(SETUP);
    let token = create(&mut root, "t", "reader");
    let begin = |client: &mut Client, token: &str| {
        client.ask("ROLLBACK; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class");
        show(client, token);
        assert!(reads(client));
    };
    let mut one = vault.session("one");
    begin(&mut one, &token);

    // Revoked: in the open transaction, for whoever shows it again, and not before it is committed.
    root.ask("BEGIN; SELECT vault.revoke_token('t')");
    assert!(reads(&mut one));
    root.ask("ROLLBACK");
    assert!(reads(&mut one));
    root.ask("SELECT vault.revoke_token('t')");
    assert!(!reads(&mut one));
    one.ask("ROLLBACK");
    assert_eq!(outcome(&mut one, &format!("SELECT vault.authenticate('{token}')")), "28000");
    sqlstate!(root.try_ask("SELECT vault.revoke_token('t')"), "P0002", hint: "list_tokens");

    // Revoking what one is using, and thinking better of it.
    root.ask("CREATE ROLE manager LOGIN IN ROLE vault_admin");
    let token = create(&mut root, "t", "reader");
    let mut manager = vault.session("manager");
    begin(&mut manager, &token);
    manager.ask("SAVEPOINT s; SELECT vault.revoke_token('t')");
    assert!(!reads(&mut manager));
    manager.ask("ROLLBACK TO s");
    assert!(reads(&mut manager));
    manager.ask("ROLLBACK");

    // Rules that change, the role that goes, a row that is somebody else's, its end moved below SQL.
    begin(&mut one, &token);
    root.ask(r#"SELECT vault.set_role_permissions('reader', '[]')"#);
    assert!(!reads(&mut one));
    root.ask(r#"SELECT vault.set_role_permissions('reader', '[{"action":"read","path":"a/o*"}]')"#);
    assert!(reads(&mut one));
    root.ask("UPDATE vault.tokens SET role_id = (SELECT id FROM vault.roles WHERE name = 'writer')");
    assert!(!reads(&mut one));
    root.ask("UPDATE vault.tokens SET role_id = (SELECT id FROM vault.roles WHERE name = 'reader')");
    assert!(reads(&mut one));
    root.ask("UPDATE vault.tokens SET hash = sha256('x')");
    assert!(!reads(&mut one));
    one.ask("ROLLBACK");
    root.ask("SELECT vault.revoke_token('t')");
    let token = create(&mut root, "t", "reader");
    begin(&mut one, &token);
    root.ask("SELECT vault.drop_role('reader')");
    assert!(!reads(&mut one));
    one.ask("ROLLBACK");
    assert_eq!(
        outcome(&mut one, &format!("SELECT vault.authenticate('{token}')")),
        "28000",
        "gone with its role"
    );
    assert_eq!(root.ask("SELECT count(*) FROM vault.list_tokens()"), "0");

    // Expired, in the middle of a transaction and of a session.
    root.ask(r#"SELECT vault.create_role('reader', permissions => '[{"action":"read","path":"a/*"}]')"#);
    let token = root.ask("SELECT vault.create_token('short', 'reader', expires_in => '6 seconds')");
    begin(&mut one, &token);
    wait_for("the token to expire", PATIENCE, || !reads(&mut one));
    one.ask("ROLLBACK");
    assert_eq!(outcome(&mut one, &format!("SELECT vault.authenticate('{token}')")), "28000");
    assert_eq!(root.ask("SELECT expires_at < clock_timestamp() FROM vault.list_tokens()"), "t");
    sqlstate!(root.try_ask("SELECT vault.create_token('short', 'reader')"), "23505", detail: "expired", hint: "revoke_token");

    // On a standby too, as soon as the revocation is replayed.
    let token = create(&mut root, "t", "reader");
    let standby = cluster.standby();
    let mut there = standby.connect("one", "postgres");
    begin(&mut there, &token);
    root.ask("SELECT vault.revoke_token('t')");
    standby.wait_replayed(&cluster);
    wait_for("the standby to have heard", PATIENCE, || !reads(&mut there));
}

/// When a token was used last is told at once, written down in time, and costs no write when it is used.
#[test]
fn the_last_use_is_known_without_a_write() {
    let cluster = Cluster::builder().conf("hyperion_vault.scan_interval_secs", "3600").start();
    let vault = cluster.vault();
    // It would write down what it finds.
    first_look(&cluster);
    let mut root = filled(&vault);
    root.ask(SETUP);
    let token = create(&mut root, "t", "reader");
    create(&mut root, "unused", "reader");
    let mut one = vault.session("one");
    let stored = "SELECT name, last_used_at IS NOT NULL FROM vault.tokens ORDER BY 1";
    let listed =
        "SELECT name, last_used_at BETWEEN now() - interval '1 minute' AND now() FROM vault.list_tokens()";
    let wal = root.ask("SELECT pg_current_wal_insert_lsn()");
    one.ask(&format!(
        "BEGIN READ ONLY; SELECT vault.authenticate('{token}'); SELECT vault.read_secret('a/one'); COMMIT"
    ));
    assert_eq!(one.ask(&format!("BEGIN; SELECT vault.authenticate('{token}'); SELECT pg_current_xact_id_if_assigned() IS NULL; COMMIT")).trim(), "t");
    assert_eq!(
        root.ask(&format!("SELECT count(*) FROM pg_class WHERE pg_current_wal_insert_lsn() < '{wal}'")),
        "0"
    );
    assert_eq!(root.ask(listed), "t|t\nunused|∅");
    assert_eq!(root.ask(stored), "t|f\nunused|f");
    // The maintenance worker writes it down when it starts, and every few minutes; a restart of the server forgets the rest.
    cluster.kill_and_wait(cluster.pid_of("hyperion_vault maintenance"), SIGTERM);
    wait_for("the note of the last use", PATIENCE, || root.ask(stored) == "t|t\nunused|f");
    drop(root);
    cluster.restart(hyperion_vault_tests::StopMode::Fast);
    assert_eq!(cluster.superuser().ask(listed), "t|t\nunused|∅");
}

/// Shown once: the text is in no table, no listing, no error and no log; what is stored is its hash.
#[test]
fn a_token_is_nowhere_and_nothing_else_is_one() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut root = filled(&vault);
    root.ask(SETUP);
    // Bound, not written: a literal would be in the log of the statement, which is the caller's business.
    let make = "SELECT vault.create_token($1, 'reader', '1 day')";
    let token: String = root.query_one(make, &[&"t"]).unwrap().get(0);
    assert!(token.starts_with("hvt_") && token.len() == 68, "{token}");
    let other: String = root.query_one(make, &[&"u"]).unwrap().get(0);
    assert_ne!(token[4..26], other[4..26]);
    assert_eq!(
        root.ask("SELECT encode(hash, 'hex') FROM vault.tokens WHERE name = 't'"),
        sha256(&mut root, &token)
    );
    let listed = root.ask(
        "SELECT name, role, prefix, created_by, expires_at > now(), last_used_at FROM vault.list_tokens()",
    );
    assert_eq!(
        listed,
        format!("t|reader|{}|postgres|t|∅\nu|reader|{}|postgres|t|∅", &token[..25], &other[..25])
    );
    assert!(!root.ask("SELECT string_agg(t::text, ' ') FROM vault.tokens t").contains(&token[30..]));

    let mut one = vault.session("one");
    let show = "SELECT vault.authenticate($1)";
    let attempt = |client: &mut Client, text: &str| client.execute(show, &[&text]);
    attempt(&mut one, &token).unwrap();
    let forged = format!("{}{}", &token[..26], &other[26..]);
    let long = "x".repeat(1 << 20);
    let mut wrong: Vec<String> =
        vec![String::new(), " ".into(), "hvt_".into(), "'; --".into(), "ü".repeat(34), long, forged];
    wrong.extend([
        token[..67].to_owned(),
        format!("{token}A"),
        format!(" {token}"),
        token.to_lowercase(),
        token.replace("hvt_", "hvs_"),
    ]);
    wrong.extend([
        token[..67].to_owned() + "=",
        format!("hvt_{}", "A".repeat(64)),
        format!("{}\n", &token[..67]),
        "$2".into(),
    ]);
    let first =
        sqlstate!(attempt(&mut one, "x"), "28000", message: "token is not valid", hint: "create_token");
    assert_eq!(first.detail(), None);
    for text in &wrong {
        let error = sqlstate!(attempt(&mut one, text), "28000");
        // Flat: nobody learns what was wrong.
        assert_eq!((error.message(), error.detail(), error.hint()), (first.message(), None, first.hint()));
    }
    sqlstate!(one.try_ask("SELECT vault.authenticate(NULL)"), "22023", message: "token must not be null");
    // Of its text, the log has nothing.
    let log = cluster.log();
    assert!(log.contains("token is not valid"), "the log is read");
    for secret in [&token[26..], &other[26..]] {
        assert!(!log.contains(secret), "a token is in the log");
    }
    drop_and_forget(&vault, &token);
}

fn sha256(root: &mut Client, text: &str) -> String {
    root.ask(&format!("SELECT encode(sha256('{text}'), 'hex')"))
}

/// A vault made anew in the same session knows nothing of the former one's tokens and roles.
fn drop_and_forget(vault: &Vault<'_>, token: &str) {
    let mut root = vault.root();
    let mut one = vault.session("one");
    one.ask("SELECT 1");
    assert_eq!(
        outcome(
            &mut one,
            &format!("SELECT vault.authenticate('{token}'); SELECT vault.can('read', 'a/one')")
        )
        .trim(),
        "t"
    );
    root.ask("DROP EXTENSION hyperion_vault; CREATE EXTENSION hyperion_vault");
    assert_eq!(outcome(&mut one, &format!("SELECT vault.authenticate('{token}')")), "28000");
    assert_eq!(outcome(&mut one, "SELECT vault.can('read', 'a/one')"), "f");
}
