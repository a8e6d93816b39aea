//! An installation of 0.1.0 that is in use: what it says between the restart with the new library and ALTER EXTENSION UPDATE,
//! and what of it goes on afterwards. Runs in the test process.
//!
//! The trap: dates that the maintenance worker's own walk would have found, so that a script that lacks them passes. What the
//! script writes is compared with what the triggers make of the same rows, before the worker sees any.

use super::{Sources, prepared, private_tree};
use hyperion_vault_tests::{Ask, Client, Cluster, PATIENCE, StopMode, sqlstate, wait_for};
use std::fs;
use std::time::Duration;

const FROM: &str = "0.1.0";
/// The version whose script moves what is derived from indexes to tables.
const TO: &str = "0.2.0";

/// What a superuser may have built on it.
const AROUND: &str = "CREATE VIEW public.mine AS SELECT name, decrypted_secret FROM vault.decrypted_secrets;
    GRANT SELECT ON public.mine TO app;
    CREATE MATERIALIZED VIEW public.names AS SELECT name FROM vault.decrypted_secrets WITH NO DATA;
    ALTER TABLE vault.secrets ADD COLUMN team text;
    GRANT vault_service TO ops";

/// Rows with a date or a role of each kind, as the library of 0.1.0 leaves them. None is due but those of [`DUE`].
const PENDING: &str = "UPDATE vault.secrets SET kind = 'automatic', next_rotation_at = '2190-01-01', rotation_retry_at = '2191-01-01',
           target = '{\"type\": \"function\", \"function\": \"public.f(text,int)\"}' WHERE name = 'userpass';
    UPDATE vault.secrets SET recover_until = '2192-01-01', expires_at = '2193-01-01', kind = 'automatic', next_rotation_at = '2190-01-01',
           target = '{\"type\": \"postgres_role_pair\", \"roles\": [\"a\", \"b\"]}', target_roles = '{4711,4712}' WHERE name = 'retained'";

/// A rotation, an expiry and the end of a grace period.
const DUE: &str = "UPDATE vault.secrets SET next_rotation_at = now() WHERE name = 'auto';
    UPDATE vault.secrets SET expires_at = now() WHERE name = 'empty';
    UPDATE vault.secret_versions SET expires_at = now() FROM vault.secrets s WHERE s.id = secret_id AND name = 'opaque' AND secret_versions.version = 1";

const REFUSED: [(&str, &str); 10] = [
    ("app", "SELECT vault.read_secret('opaque')"),
    ("app", "SELECT vault.verify('opaque', 'x')"),
    ("app", "SELECT * FROM vault.list_secrets()"),
    ("app", "SELECT * FROM vault.decrypted_secrets"),
    ("app", "SELECT * FROM mine"),
    ("postgres", "SELECT * FROM vault.decrypted_secrets"),
    ("ops", "SELECT vault.put_secret('opaque', 'x')"),
    ("ops", "SELECT vault.create_secret('new', 'x')"),
    ("ops", "SELECT vault.delete_secret('opaque')"),
    ("ops", "SELECT vault.create_role('r')"),
];

const MAINTENANCE: &str = "hyperion_vault maintenance";

#[test]
fn an_installation_in_use_is_adopted() {
    let sources = Sources::here();
    let (tree, _dir) = private_tree(&sources);
    let (cluster, _) = prepared(&tree, &sources.install_script(FROM), FROM, TO);
    let rows = fs::read(sources.released(FROM).join("data.sql")).expect("a release has rows");
    cluster.run_tool("psql", &["-X", "-q", "-v", "ON_ERROR_STOP=1"], &rows).success();
    cluster.superuser().ask(AROUND);

    // The restart with the new library.
    let mark = cluster.log_mark();
    cluster.restart(StopMode::Fast);
    cluster.wait_for_log(mark, "do not fit the library", PATIENCE);
    let worker = cluster.pid_of(MAINTENANCE);
    let mut root = cluster.superuser();
    for (user, sql) in REFUSED {
        sqlstate!(
            cluster.connect(user, cluster.database()).try_ask(sql),
            "55000",
            message: "do not fit the library",
            hint: "ALTER EXTENSION hyperion_vault UPDATE"
        );
    }
    // Nothing keeps a superuser from a backup, or from the tables.
    assert!(String::from_utf8_lossy(&cluster.pg_dump(&["-n", "vault"])).contains("COPY vault.secrets "));
    root.ask(PENDING);
    root.ask(DUE);
    // Several turns of the worker, and one line about all of them.
    std::thread::sleep(Duration::from_secs(5));
    let log = cluster.log_since(mark);
    let said = log.lines().filter(|line| line.contains("WARNING:") && line.contains("do not fit")).count();
    assert_eq!(said, 1, "{log}");
    assert!(!log.contains("are missing"), "{log}");
    assert_eq!(cluster.pid_of(MAINTENANCE), worker);

    root.ask(&format!("BEGIN; ALTER EXTENSION hyperion_vault UPDATE TO '{TO}'"));
    let written = derived(&mut root);
    root.ask(
        "ALTER TABLE vault.secret_dates DISABLE TRIGGER keep_derived;
         ALTER TABLE vault.target_roles DISABLE TRIGGER keep_derived;
         DELETE FROM vault.secret_dates; DELETE FROM vault.target_roles;
         CREATE TEMP TABLE kept AS SELECT * FROM vault.secrets; DELETE FROM vault.secrets; INSERT INTO vault.secrets SELECT * FROM kept;
         UPDATE vault.secret_versions SET version = version",
    );
    assert_eq!(written, derived(&mut root), "what the script writes is not what the triggers make");
    for row in [
        "auto 1",
        "empty 3",
        "opaque 4",
        "userpass 2 2191",
        "retained 3 2192",
        "retained 4711",
        "retained 4712",
    ] {
        assert!(written.contains(row), "{row}: {written}");
    }
    assert_eq!(written.lines().count(), 8, "{written}");
    root.ask("ROLLBACK");

    root.ask(&format!("ALTER EXTENSION hyperion_vault UPDATE TO '{TO}'"));
    went_on(&cluster, &mut root);
    assert_eq!(cluster.pid_of(MAINTENANCE), worker, "the worker is the same");
}

/// What is derived, a line a row.
fn derived(root: &mut Client) -> String {
    root.ask(
        "SELECT s.name || ' ' || d.kind || ' ' || d.at FROM vault.secret_dates d JOIN vault.secrets s ON s.id = d.secret_id
         UNION ALL SELECT s.name || ' ' || r.role FROM vault.target_roles r JOIN vault.secrets s ON s.id = r.secret_id
         ORDER BY 1",
    )
}

fn went_on(cluster: &Cluster, root: &mut Client) {
    let mut comes = |what: &str, sql: &str| wait_for(what, PATIENCE, || root.ask(sql) == "t");
    comes("the rotation", "SELECT version = 4 FROM vault.secrets WHERE name = 'auto'");
    comes("the expiry", "SELECT NOT EXISTS (SELECT FROM vault.secrets WHERE name = 'empty')");
    comes(
        "the end of the grace period",
        "SELECT NOT EXISTS (SELECT FROM vault.secret_versions v JOIN vault.secrets s ON s.id = v.secret_id
          WHERE s.name = 'opaque' AND v.version = 1 AND NOT v.settled)",
    );

    let mut app = cluster.connect("app", cluster.database());
    assert_eq!(app.ask("SELECT decrypted_secret FROM mine WHERE name = 'opaque'"), "dritter, mit ü");
    assert_eq!(app.ask("SELECT name FROM mine ORDER BY name"), "auto\nopaque\nuserpass");
    sqlstate!(app.try_ask("SELECT name FROM vault.secrets"), "42501");
    root.ask("REFRESH MATERIALIZED VIEW public.names");
    // Members of vault_service keep their membership, which gives no right on a table.
    let held = "SELECT pg_has_role('ops', 'vault_service', 'MEMBER'), count(*) FILTER (WHERE has_table_privilege('vault_service', c.oid, 'SELECT,INSERT,UPDATE,DELETE'))
         FROM pg_class c WHERE relnamespace = 'vault'::regnamespace AND relkind IN ('r', 'f', 'v')";
    assert_eq!(root.ask(held), "t|0");
}
