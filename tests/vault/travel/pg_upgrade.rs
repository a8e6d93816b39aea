//! pg_upgrade from an older major, by copying and by linking. Runs in the test process.
//!
//! Needs two server trees with the extension in each: see `Toolchain::older_from_env`.

use super::{elsewhere_builder, fill, goes_on, learn, reader};
use crate::catalog::LISTING;
use hyperion_vault_tests::{Ask, Cluster, StopMode, ToolOutput, Toolchain};
use std::collections::BTreeSet;
use std::path::Path;

#[test]
fn pg_upgrade() {
    let (older, newer) = (Toolchain::older_from_env(), Toolchain::from_env());
    assert!(older.major < newer.major, "from {} to {}", older.version, newer.version);
    let old = Cluster::builder().toolchain(older).allowed_ips("local,127.0.0.1").start();
    fill(&mut old.vault().ops());
    // Rows are kept under the numbers their types have, and a function of the database's own uses the vault.
    old.superuser().ask(
        "CREATE TABLE public.kept (info vault.secret_info, kind vault.secret_kind);
         INSERT INTO public.kept SELECT i, i.kind FROM vault.list_secrets('auto') i;
         CREATE VIEW public.names AS SELECT name FROM vault.list_secrets();
         GRANT USAGE ON SCHEMA vault TO nobody_special; GRANT EXECUTE ON FUNCTION vault.status() TO nobody_special",
    );
    // Targets, of a role that is no superuser and of the one that is: oids of roles stay, those of functions do not.
    old.superuser().ask(
        "CREATE ROLE keeper LOGIN CREATEROLE IN ROLE vault_admin; CREATE ROLE svc LOGIN; GRANT svc TO keeper WITH ADMIN OPTION;
         CREATE SCHEMA hooks; CREATE TABLE hooks.seen (value text);
         CREATE FUNCTION hooks.f(text, int) RETURNS void LANGUAGE sql AS 'INSERT INTO hooks.seen SELECT vault.read_secret($1, $2)';
         SELECT vault.create_secret('hooked', 'v', generator => '{}', target => '{\"type\":\"function\",\"function\":\"hooks.f\"}')",
    );
    old.connect("keeper", "postgres").ask(
        "SELECT vault.create_secret('db/svc', generator => '{}', target => '{\"type\":\"postgres_role\",\"role\":\"svc\"}')",
    );
    old.superuser().ask("REVOKE vault_admin FROM keeper");
    let token = super::dump::with_access(&mut old.superuser());
    let known = learn(&mut reader(&old));
    forget_marks_that_are_too_new(&old, &newer);
    old.stop(StopMode::Fast);

    // Not preloaded in the new server: found out by the check, which says what to set.
    let bare = elsewhere_builder(&old).preload(false).toolchain(newer.clone()).start();
    match_checksums(&old, &bare);
    let outcome = upgrade(&old, &bare, &["--check"]);
    let said =
        outcome.text() + &outcome.errors() + &files_below(&bare.data_dir().join("pg_upgrade_output.d"));
    assert!(!outcome.status.success() && said.contains("hyperion_vault is not preloaded"), "{said}");
    drop(bare);

    // Linking comes last: it uses the old server up.
    for mode in [&[][..], &["--link"]] {
        let new = elsewhere_builder(&old).toolchain(newer.clone()).start();
        match_checksums(&old, &new);
        let outcome = upgrade(&old, &new, mode);
        let logs = new.data_dir().join("pg_upgrade_output.d");
        assert!(outcome.status.success(), "{}{}", outcome.text(), files_below(&logs));
        new.start_again();
        the_catalog_is_that_of_a_new_installation(&new, &newer);
        let mut root = new.superuser();
        assert_eq!(
            root.ask("SELECT (info).name, kind, (SELECT count(*) FROM names) FROM kept"),
            "auto|automatic|8"
        );
        assert!(new.connect("nobody_special", "postgres").ask("SELECT vault.status()").contains("vault_id"));
        // OIDs of roles survive, and so do bindings.
        let list = "SELECT name FROM vault.list_secrets()";
        assert_eq!(new.connect("bound", "postgres").ask(list), "db/password\ndb/svc");
        root.ask("CREATE ROLE shows LOGIN IN ROLE vault_user");
        let shown = format!("SELECT vault.authenticate('{token}'); {list}");
        assert_eq!(new.connect("shows", "postgres").ask(&shown).trim(), "db/password\ndb/svc");
        goes_on(&new, &known);
        let verifier = "SELECT rolpassword FROM pg_authid WHERE rolname = 'svc'";
        let before = root.ask(verifier);
        new.connect("ops", "postgres")
            .ask("SELECT vault.rotate_secret('db/svc'), vault.rotate_secret('hooked')");
        assert!(root.ask(verifier) != before && before.starts_with("SCRAM"));
        assert_eq!(
            root.ask("SELECT count(*) FROM hooks.seen WHERE value = vault.read_secret('hooked')"),
            "1",
            "the function that is there now"
        );
    }
}

/// Minor releases from 15.20 on mark the columns of every table with an option that a server older than that release
/// does not know, so that pg_upgrade fails whatever the tables are ("unrecognized parameter"). The cure is a new server
/// from the same round of minor releases; where there is none to test with, the marks are taken away.
fn forget_marks_that_are_too_new(old: &Cluster, newer: &Toolchain) {
    let binary = std::fs::read(newer.program("postgres")).expect("cannot read the server's program");
    if binary.windows(9).any(|window| window == b"pg_attver") {
        return;
    }
    let forget = "SET allow_system_table_mods = on;
                  UPDATE pg_attribute SET attoptions = NULL WHERE attoptions::text ~ '^\\{pg_attver=[0-9]+\\}$'";
    for database in old.superuser().ask("SELECT datname FROM pg_database WHERE datallowconn").lines() {
        old.connect("postgres", database).ask(forget);
    }
}

fn upgrade(old: &Cluster, new: &Cluster, mode: &[&str]) -> ToolOutput {
    let text = |path: &Path| path.to_str().expect("a path that we named").to_owned();
    let (from, to) = (old.toolchain(), new.toolchain());
    let args = [
        ["-b".into(), text(&from.bindir), "-B".into(), text(&to.bindir)],
        ["-d".into(), text(&old.data_dir()), "-D".into(), text(&new.data_dir())],
        ["-p".into(), old.port().to_string(), "-P".into(), new.port().to_string()],
        ["-U".into(), "postgres".into(), "--socketdir".into(), text(&new.socket_dir())],
    ]
    .concat();
    let args: Vec<&str> = args.iter().map(String::as_str).chain(mode.iter().copied()).collect();
    new.run_tool("pg_upgrade", &args, b"")
}

/// Both with page checksums or both without: defaults of majors differ, and pg_upgrade wants them alike. Stops `new`.
fn match_checksums(old: &Cluster, new: &Cluster) {
    new.stop(StopMode::Fast);
    for cluster in [old, new] {
        let data = cluster.data_dir();
        let data = data.to_str().expect("a path that we named");
        let state = cluster.run_tool("pg_controldata", &["-D", data], b"").success().text();
        let off =
            state.lines().any(|line| line.starts_with("Data page checksum version:") && line.ends_with(" 0"));
        if off {
            cluster.run_tool("pg_checksums", &["--enable", "--no-sync", "-D", data], b"").success();
        }
    }
}

fn the_catalog_is_that_of_a_new_installation(upgraded: &Cluster, tools: &Toolchain) {
    let fresh = Cluster::builder().toolchain(tools.clone()).start();
    fresh.vault();
    fresh.superuser().ask("CREATE ROLE bound LOGIN IN ROLE vault_user");
    fresh.superuser().ask("GRANT USAGE ON SCHEMA vault TO nobody_special; GRANT EXECUTE ON FUNCTION vault.status() TO nobody_special");
    let (found, expected) = (upgraded.superuser().ask(LISTING), fresh.superuser().ask(LISTING));
    let (found, expected): (BTreeSet<_>, BTreeSet<_>) = (found.lines().collect(), expected.lines().collect());
    let differences: Vec<_> = found.symmetric_difference(&expected).collect();
    assert!(differences.is_empty() && found.len() > 100, "{differences:#?}");
}

/// What pg_upgrade leaves behind when it has refused.
fn files_below(dir: &Path) -> String {
    let Ok(entries) = std::fs::read_dir(dir) else { return String::new() };
    entries
        .flatten()
        .map(|entry| match entry.path() {
            path if path.is_dir() => files_below(&path),
            path => std::fs::read(path).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default(),
        })
        .collect()
}
