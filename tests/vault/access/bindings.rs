//! Bindings to Postgres roles: membership, SET ROLE, owners of functions; names and OIDs; how soon a change is felt.

use super::{filled, outcome, read};
use hyperion_vault_tests::{Ask, Client, Cluster, PATIENCE, sqlstate, wait_for};

const READER: &str =
    r#"SELECT vault.create_role('reader', permissions => '[{"action":"read","path":"a/*"}]')"#;

fn reads(client: &mut Client) -> bool {
    match read(client, "a/one").as_str() {
        "value of a/one" => true,
        "42501" => false,
        other => panic!("{other}"),
    }
}

#[test]
fn membership_set_role_and_owners_of_functions() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut root = filled(&vault);
    root.ask(READER);
    root.ask(
        "CREATE ROLE team IN ROLE vault_user; CREATE ROLE inner_team IN ROLE team;
         CREATE ROLE member LOGIN IN ROLE inner_team; CREATE ROLE shy LOGIN NOINHERIT IN ROLE team;
         CREATE ROLE caller LOGIN; GRANT USAGE ON SCHEMA vault TO caller;
         GRANT EXECUTE ON FUNCTION vault.read_secret(text, int), vault.can(text, text) TO caller, shy, PUBLIC; GRANT USAGE ON SCHEMA vault TO shy;
         SELECT vault.bind_role('reader', 'team');
         CREATE FUNCTION public.wrapped(name text) RETURNS text LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog
           AS 'SELECT vault.read_secret(name)';
         ALTER FUNCTION public.wrapped(text) OWNER TO member",
    );
    assert!(reads(&mut vault.session("member")), "through two memberships");
    let mut shy = vault.session("shy");
    assert!(!reads(&mut shy), "NOINHERIT: not before SET ROLE");
    shy.ask("SET ROLE team");
    assert!(reads(&mut shy));
    shy.ask("RESET ROLE");
    assert!(!reads(&mut shy));
    // The wrapper reads with its owner's rights, and the caller has none of them after it.
    let mut caller = vault.session("caller");
    assert!(!reads(&mut caller));
    assert_eq!(
        outcome(&mut caller, "SELECT public.wrapped('a/one'), vault.can('read', 'a/one')"),
        "value of a/one|f"
    );
    assert_eq!(outcome(&mut caller, "SELECT public.wrapped('c')"), "42501");
    root.ask("SET ROLE member");
    assert!(reads(&mut root));
    root.ask("SET ROLE one");
    assert!(!reads(&mut root));
    root.ask("RESET ROLE; REVOKE team FROM inner_team");
    assert_eq!(outcome(&mut caller, "SELECT public.wrapped('a/one')"), "42501");

    // pg_database_owner: whose member somebody is by owning the database.
    root.ask("SELECT vault.bind_role('reader', 'pg_database_owner')");
    let mut one = vault.session("one");
    assert!(!reads(&mut one));
    root.ask("ALTER DATABASE postgres OWNER TO one");
    assert!(reads(&mut one));
    root.ask("ALTER DATABASE postgres OWNER TO postgres");
    assert!(!reads(&mut one));
}

#[test]
fn a_binding_counts_for_one_role_of_that_name_and_oid() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut root = filled(&vault);
    root.ask(READER);
    root.ask("SELECT vault.bind_role('reader', 'one'); SELECT vault.bind_role('reader', 'one')");
    let inactive = "SELECT pg_roles, inactive_pg_roles FROM vault.list_roles() WHERE name = 'reader'";
    assert_eq!(root.ask(inactive), "{one}|{}");
    assert!(reads(&mut vault.session("one")));

    // Renamed, and another one in its place.
    let mut renamed = vault.session("one");
    root.ask("ALTER ROLE one RENAME TO former");
    assert!(!reads(&mut renamed));
    root.ask("CREATE ROLE one LOGIN IN ROLE vault_user");
    assert!(!reads(&mut vault.session("one")) && !reads(&mut renamed));
    assert_eq!(root.ask(inactive), "{}|{one}");
    root.ask("DROP ROLE one; ALTER ROLE former RENAME TO one");
    assert!(reads(&mut renamed), "itself again");
    // Dropped and made anew.
    drop(renamed);
    root.ask("DROP ROLE one; CREATE ROLE one LOGIN IN ROLE vault_user");
    let mut one = vault.session("one");
    assert!(!reads(&mut one));
    root.ask("SELECT vault.bind_role('reader', 'one')");
    assert!(reads(&mut one));

    // As after a restore into another cluster: OIDs that mean others here, or nobody.
    root.ask(
        "SELECT vault.bind_role('reader', 'two'); SELECT vault.bind_role('admin', 'two'); CREATE ROLE gone; SELECT vault.bind_role('reader', 'gone'); DROP ROLE gone;
         UPDATE vault.role_bindings SET pg_role_oid = 'two'::regrole::oid WHERE pg_role = 'one';
         UPDATE vault.role_bindings SET pg_role_oid = 'one'::regrole::oid WHERE pg_role = 'two'",
    );
    let mut two = vault.session("two");
    assert!(!reads(&mut one) && !reads(&mut two), "swapped, not exchanged");
    assert_eq!(root.ask(inactive), "{}|{gone,one,two}");
    assert_eq!(root.ask("SELECT vault.status() #>> '{access,inactive_bindings}'"), "4");
    root.ask("CREATE ROLE manager LOGIN IN ROLE vault_admin, vault_reader");
    for not_superuser in ["manager", "ops"] {
        sqlstate!(vault.session(not_superuser).try_ask("SELECT vault.rebind_roles()"), "42501", hint: "superuser");
    }
    let all = "reader|gone|missing\nadmin|two|rebound\nreader|one|rebound\nreader|two|rebound";
    let mut report: Vec<String> =
        root.ask("SELECT * FROM vault.rebind_roles()").lines().map(str::to_owned).collect();
    report.sort();
    let mut expected: Vec<&str> = all.lines().collect();
    expected.sort_unstable();
    assert_eq!(report, expected);
    assert!(reads(&mut one) && reads(&mut two));
    assert_eq!(root.ask("SELECT * FROM vault.rebind_roles()"), "reader|gone|missing");

    // Taken away by name, and by the number that is left of a role that was dropped.
    root.ask("SELECT vault.unbind_role('reader', 'one')");
    assert!(!reads(&mut one) && reads(&mut two));
    sqlstate!(root.try_ask("SELECT vault.unbind_role('reader', 'one')"), "P0002", hint: "list_roles");
    let oid = root.ask("SELECT pg_role_oid FROM vault.role_bindings WHERE pg_role = 'gone'");
    root.ask(&format!("SELECT vault.unbind_role('reader', {oid}::regrole)"));
    assert_eq!(root.ask(inactive), "{two}|{}");
    for nobody in ["4294000000", "0"] {
        let sql = format!("SELECT vault.bind_role('reader', {nobody}::regrole)");
        sqlstate!(root.try_ask(&sql), "P0002", hint: "pg_roles");
    }
    sqlstate!(root.try_ask("SELECT vault.bind_role('absent', 'one')"), "P0002", hint: "list_roles");
    sqlstate!(root.try_ask("SELECT vault.bind_role('reader', 'no_such_role')"), "42704");
}

/// Granted or revoked: felt by every session at its next statement, whatever its snapshot, and undone with its
/// transaction; on a standby as soon as it is replayed.
#[test]
fn changes_are_felt_at_the_next_statement_and_roll_back() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut root = filled(&vault);
    root.ask(READER);
    let mut old = vault.session("one");
    old.ask("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class");
    let mut fresh = vault.session("one");
    let grant = "SELECT vault.bind_role('reader', 'one')";
    let widen = r#"SELECT vault.set_role_permissions('reader', '[{"action":"read","path":"a/*"},{"action":"list","path":"c"}]')"#;
    let narrow = r#"SELECT vault.set_role_permissions('reader', '[{"action":"list","path":"a/*"}]')"#;
    let changes: [(&str, bool); 8] = [
        (grant, true),
        ("SELECT vault.unbind_role('reader', 'one')", false),
        (grant, true),
        (narrow, false),
        (widen, true),
        ("DELETE FROM vault.role_permissions", false),
        (widen, true),
        ("SELECT vault.drop_role('reader')", false),
    ];
    let mut before = false;
    for (change, after) in changes {
        // Uncommitted: seen by nobody else; rolled back: as if it had never been, for its own session too.
        root.ask(&format!("BEGIN; {change}"));
        assert_eq!((reads_in(&mut old), reads(&mut fresh)), (before, before), "{change}: not committed");
        root.ask("SAVEPOINT s; SET LOCAL ROLE one");
        assert_eq!(reads_in(&mut root), after, "{change}: its own");
        root.ask("ROLLBACK TO s; ROLLBACK; BEGIN; SET LOCAL ROLE one");
        assert_eq!(reads_in(&mut root), before, "{change}: rolled back");
        root.ask("ROLLBACK; BEGIN; SAVEPOINT s");
        root.ask(&format!("{change}; ROLLBACK TO s; SET LOCAL ROLE one"));
        assert_eq!(reads_in(&mut root), before, "{change}: rolled back to a savepoint");
        root.ask("COMMIT");
        assert_eq!((reads(&mut fresh), reads_in(&mut old)), (before, before), "{change}: rolled back");
        root.ask(change);
        assert_eq!((reads(&mut fresh), reads_in(&mut old)), (after, after), "{change}: committed");
        before = after;
    }
    drop(old);

    root.ask(&format!("{READER}; {grant}"));
    let standby = cluster.standby();
    let mut there = standby.connect("one", "postgres");
    assert!(reads(&mut there));
    root.ask(narrow);
    standby.wait_replayed(&cluster);
    wait_for("the standby to have heard", PATIENCE, || !reads(&mut there));
    root.ask(widen);
    standby.wait_replayed(&cluster);
    wait_for("the standby to have heard", PATIENCE, || reads(&mut there));
    let mut manager = standby.connect("ops", "postgres");
    sqlstate!(manager.try_ask(grant), "25006");
}

/// What logical replication applies is felt like what a session writes: there row triggers run and statement triggers do not.
#[test]
fn a_change_that_is_replicated_is_felt() {
    let cluster = Cluster::builder().conf("wal_level", "logical").start();
    let vault = cluster.vault();
    let mut root = filled(&vault);
    root.ask("SELECT vault.create_role('reader'); SELECT vault.bind_role('reader', 'one')");
    let id = root.ask("SELECT id FROM vault.roles");
    root.ask("CREATE DATABASE source");
    let mut source = cluster.connect("postgres", "source");
    source.ask("CREATE SCHEMA vault; CREATE TABLE vault.role_permissions (role_id uuid, action text, path text, PRIMARY KEY (role_id, action, path))");
    source.ask("CREATE PUBLICATION p FOR TABLE vault.role_permissions");
    source.ask("SELECT pg_create_logical_replication_slot('s', 'pgoutput')");
    root.ask(&format!(
        "CREATE SUBSCRIPTION s CONNECTION 'host={} port={} dbname=source user=postgres' PUBLICATION p
         WITH (create_slot = false, slot_name = 's', copy_data = false)",
        cluster.socket_dir().display(),
        cluster.port()
    ));
    let mut one = vault.session("one");
    assert!(!reads(&mut one));
    source.ask(&format!("INSERT INTO vault.role_permissions VALUES ('{id}', 'read', 'a/*')"));
    wait_for("the right to arrive", 2 * PATIENCE, || reads(&mut one));
    source.ask("UPDATE vault.role_permissions SET path = 'b/*'");
    wait_for("the right to move", PATIENCE, || !reads(&mut one));
    source.ask("UPDATE vault.role_permissions SET path = '*'");
    wait_for("the right to come back", PATIENCE, || reads(&mut one));
    source.ask("TRUNCATE vault.role_permissions");
    wait_for("the right to end", PATIENCE, || !reads(&mut one));
    root.ask(
        "ALTER SUBSCRIPTION s DISABLE; ALTER SUBSCRIPTION s SET (slot_name = NONE); DROP SUBSCRIPTION s",
    );
}

/// `reads` inside of a transaction that is to go on.
fn reads_in(client: &mut Client) -> bool {
    client.ask("SAVEPOINT question");
    let may = reads(client);
    client.ask(if may { "RELEASE question" } else { "ROLLBACK TO question" });
    may
}
