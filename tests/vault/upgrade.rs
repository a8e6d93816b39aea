//! Upgrading the extension: ALTER EXTENSION UPDATE from each release to what is in `sql/`. Runs in the test process.
//!
//! How releases are kept is in docs/development.md; [`release`] reads, checks and makes them. Before the first release
//! there is nothing to upgrade from, so the machinery is rehearsed: what is in `sql/` is released into a temporary
//! directory, and upgraded to a made-up next version, with each statement of the upgrade script left out in turn.

mod adoption;
mod release;

use crate::catalog::LISTING;
use hyperion_vault_tests::{Ask, Client, Cluster, KeyFile, Toolchain};
use release::Sources;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The master key of released data: it protects nothing else.
const KEY: [u8; 32] = *b"the key of released test data...";

/// When something happens to the rows of a release by itself: not while anybody runs these tests.
const LATER: &str = "2200-01-01 00:00:00+00";

/// A next version, one change a statement.
const NEXT: [&str; 13] = [
    "ALTER TABLE vault.secrets ADD COLUMN rehearsed text",
    "ALTER TABLE vault.secret_versions ALTER COLUMN superseded_at DROP NOT NULL",
    "CREATE TABLE vault.rehearsed (a int)",
    "CREATE INDEX rehearsed_index ON vault.secrets (created_at)",
    "CREATE POLICY rehearsed ON vault.secrets AS RESTRICTIVE USING (true)",
    "CREATE FUNCTION vault.rehearsed() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE OR REPLACE FUNCTION vault._refuse_truncate() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS 'BEGIN RETURN NULL; END'",
    "ALTER TYPE vault.secret_kind ADD VALUE 'rehearsed'",
    "CREATE TYPE vault.rehearsed_type AS (a int)",
    "GRANT EXECUTE ON FUNCTION vault.status() TO vault_auditor",
    "REVOKE EXECUTE ON FUNCTION vault.list_secrets FROM vault_user",
    "SELECT pg_catalog.pg_extension_config_dump('vault.secret_versions', 'WHERE true')",
    "COMMENT ON FUNCTION vault.status() IS 'rehearsed'",
];
const NEXT_VERSION: &str = "9999.0.0";

#[test]
fn every_release_upgrades_to_this_version() {
    let sources = Sources::here();
    let made = tempfile::tempdir().expect("cannot make a directory");
    let (tree, _dir) = private_tree(&sources);
    let head = sources.version();
    release(&tree, &sources, made.path());

    // The releases there are. One of this very version has the scripts of this version (release.rs), and no way to go.
    for version in sources.releases().iter().filter(|version| **version != head) {
        let (cluster, fresh) = prepared(&tree, &sources.install_script(version), version, &head);
        upgraded(&cluster, &sources.released(version), &head, &fresh);
    }

    // The rehearsal. Every change that the script forgets shows, or it would not show with a real one either.
    let script = |without: Option<usize>| -> String {
        let kept = NEXT.iter().enumerate().filter(|(i, _)| Some(*i) != without);
        kept.map(|(_, statement)| format!("{statement};\n")).collect()
    };
    let extension = |name: &str, text: &str| {
        fs::write(tree.sharedir.join("extension").join(format!("hyperion_vault--{name}.sql")), text)
            .expect("cannot write a script");
    };
    extension(NEXT_VERSION, &(sources.install() + &script(None)));
    extension(&format!("{head}--{NEXT_VERSION}"), &script(None));
    let (cluster, fresh) = prepared(&tree, &sources.install(), &head, NEXT_VERSION);
    for (i, forgotten) in NEXT.iter().enumerate() {
        let target = format!("{NEXT_VERSION}.{i}");
        extension(&format!("{head}--{target}"), &script(Some(i)));
        let mut root = cluster.superuser();
        root.ask(&format!("BEGIN; ALTER EXTENSION hyperion_vault UPDATE TO '{target}'"));
        assert!(
            differences(&mut root, &fresh) != [""; 0],
            "nobody notices that the script lacks: {forgotten}"
        );
        root.ask("ROLLBACK");
    }
    upgraded(&cluster, &made.path().join(&head), NEXT_VERSION, &fresh);

    if std::env::var_os("HYPERION_VAULT_RELEASE").is_some() {
        sources.add_release(made.path());
    }
}

/// The C functions that releases declare: their install scripts must still run.
pub fn released_symbols() -> BTreeSet<String> {
    let sources = Sources::here();
    let scripts: String = sources.releases().iter().map(|version| sources.install_script(version)).collect();
    let names = scripts.split("AS 'MODULE_PATHNAME', '").skip(1);
    let symbols: BTreeSet<_> = names.filter_map(|rest| rest.split('\'').next()).map(str::to_owned).collect();
    assert!(symbols.len() > 30 || sources.releases().is_empty(), "{symbols:?}");
    symbols
}

/// A copy of the tree under test for scripts of our own, with the install script of the checkout.
fn private_tree(sources: &Sources) -> (Toolchain, tempfile::TempDir) {
    let (tree, dir) = Toolchain::from_env().private_copy();
    let extension = tree.sharedir.join("extension");
    for script in sources.upgrade_scripts() {
        let name = script.file_name().expect("a script has a name");
        fs::copy(&script, extension.join(name)).expect("cannot copy a script");
    }
    let install = extension.join(format!("hyperion_vault--{}.sql", sources.version()));
    fs::write(install, sources.install()).expect("cannot write a script");
    (tree, dir)
}

fn cluster(tree: &Toolchain) -> Cluster {
    let key = KeyFile::Custom { bytes: KEY.to_vec(), mode: 0o600 };
    Cluster::builder().toolchain(tree.clone()).key_file(key).fresh_initdb().start()
}

/// Makes a release of what is in `sql/` in `into`: install script, rows as this version makes them, and what they say.
fn release(tree: &Toolchain, sources: &Sources, into: &Path) {
    let cluster = cluster(tree);
    let vault = cluster.vault();
    let (mut ops, mut app) = (vault.ops(), vault.app());
    ops.ask(
        "SELECT vault.create_secret('opaque', 'first', grace_period => '1 day', description => 'd', metadata => '{\"a\": 1}');
         SELECT vault.put_secret('opaque', 'second'), vault.put_secret('opaque', 'dritter, mit ü');
         SELECT vault.create_secret(name => 'userpass', username => 'u', password => 'p', generator => '{\"length\": 40}');
         SELECT vault.create_secret('auto', kind => 'automatic', rotation_interval => '30 days', grace_period => '1 hour', keep_versions => 2);
         SELECT vault.rotate_secret('auto'), vault.rotate_secret('auto');
         SELECT vault.create_secret('retained', 'old'), vault.put_secret('retained', 'new');
         SELECT vault.create_secret('empty', '')",
    );
    // A release is read years later: its grace does not end, and nothing is rotated.
    vault.root().ask(&format!(
        "UPDATE vault.secret_versions SET expires_at = '{LATER}' WHERE expires_at IS NOT NULL;
         UPDATE vault.secrets SET grace_until = '{LATER}' WHERE isfinite(grace_until);
         UPDATE vault.secrets SET next_rotation_at = '{LATER}' WHERE next_rotation_at IS NOT NULL"
    ));
    let values = app.ask(
        "SELECT i.name, v.version, vault.read_secret(i.name, v.version) FROM vault.list_secrets() i, vault.list_versions(i.name) v
          WHERE v.state <> 'retained' ORDER BY 1, 2",
    );
    assert_eq!(values.lines().count(), 9, "{values}");
    let dir = into.join(sources.version());
    fs::create_dir_all(&dir).expect("cannot make a directory");
    fs::write(dir.join("install.sql"), sources.install()).expect("cannot write a file");
    // The rows alone: what pg_dump says around them depends on its own version.
    let dump = String::from_utf8(cluster.pg_dump(&["--data-only", "-n", "vault"])).expect("a dump is text");
    let copies =
        dump.split_inclusive("\n\\.\n").filter_map(|part| part.find("COPY vault.").map(|at| &part[at..]));
    fs::write(dir.join("data.sql"), copies.collect::<String>()).expect("cannot write a file");
    fs::write(dir.join("values.txt"), values).expect("cannot write a file");
}

/// A cluster with version `from` installed, made by `install`, and the lines that describe a fresh `to`.
fn prepared(tree: &Toolchain, install: &str, from: &str, to: &str) -> (Cluster, Vec<String>) {
    let path = tree.sharedir.join(format!("extension/hyperion_vault--{from}.sql"));
    fs::write(path, install).expect("cannot write a script");
    let cluster = cluster(tree);
    let create = |version: &str| {
        cluster.superuser().ask(&format!("CREATE EXTENSION hyperion_vault VERSION '{version}'"))
    };
    create(to);
    let fresh = lines(&mut cluster.superuser());
    assert!(fresh.len() > 150, "{fresh:#?}");
    cluster.superuser().ask("DROP EXTENSION hyperion_vault; DROP SCHEMA vault");
    create(from);
    cluster
        .superuser()
        .ask("CREATE ROLE app LOGIN IN ROLE vault_reader; CREATE ROLE ops LOGIN IN ROLE vault_admin");
    (cluster, fresh)
}

/// Restores the rows of a release, updates, and asks: is it what a new installation is, does it read what it read, and
/// does it go on?
fn upgraded(cluster: &Cluster, release: &Path, to: &str, fresh: &[String]) {
    let read = |name: &str| fs::read(release.join(name)).expect("a release has three files");
    let from =
        cluster.superuser().ask("SELECT extversion FROM pg_extension WHERE extname = 'hyperion_vault'");
    cluster.run_tool("psql", &["-X", "-q", "-v", "ON_ERROR_STOP=1"], &read("data.sql")).success();
    let mut root = cluster.superuser();
    let soon = root.ask(&format!(
        "SELECT name FROM vault.secrets, unnest(ARRAY[next_rotation_at, grace_until, expires_at, recover_until]) at
          WHERE isfinite(at) AND at < '{LATER}'
         UNION ALL SELECT version_id::text FROM vault.secret_versions WHERE expires_at < '{LATER}'"
    ));
    assert_eq!(soon, "", "these rows of {from} change by themselves");
    root.ask(&format!("ALTER EXTENSION hyperion_vault UPDATE TO '{to}'"));
    assert_eq!(root.ask("SELECT extversion FROM pg_extension WHERE extname = 'hyperion_vault'"), to);
    let differences = differences(&mut root, fresh);
    assert!(differences.is_empty(), "an upgrade from {from} is not what a fresh {to} is: {differences:#?}");

    let values = String::from_utf8(read("values.txt")).expect("values are text");
    let (mut app, mut ops) =
        (cluster.connect("app", cluster.database()), cluster.connect("ops", cluster.database()));
    for line in values.lines() {
        let [name, version, value] = line.splitn(3, '|').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let read = format!(
            "SELECT vault.read_secret('{name}', {version}), (vault.verify('{name}', '{value}')).valid"
        );
        assert_eq!(app.ask(&read), format!("{value}|t"), "{name}, version {version}, of {from}");
    }
    assert!(values.lines().count() >= 9);
    ops.ask(
        "SELECT vault.put_secret('opaque', 'written after'), vault.rotate_secret('auto'), vault.create_secret('new', 'n');
         SELECT vault.update_secret(name => 'userpass', password => 'q'); SELECT vault.delete_secret('retained')",
    );
    let read = "SELECT vault.read_secret('opaque'), vault.read_secret('new'), vault.read_secret('userpass'), vault.read_secret('opaque', 1)";
    assert_eq!(app.ask(read), "written after|n|q|first");
}

/// What the listing leaves out: bodies, comments, and the rights that a dump takes for granted.
const REST: &str = r#"
    SELECT 'body ' || p.oid::regprocedure || ' ' || md5(prosrc) FROM pg_proc p JOIN member m ON m.classid = 'pg_proc'::regclass AND m.objid = p.oid
    UNION ALL SELECT 'comment on ' || pg_describe_object(classoid, objoid, objsubid) || ': ' || description FROM pg_description d
      WHERE (classoid, objoid) IN (SELECT classid, objid FROM member)
         OR (classoid = 'pg_namespace'::regclass AND objoid = 'vault'::regnamespace)
         OR (classoid = 'pg_policy'::regclass AND objoid IN (SELECT p.oid FROM pg_policy p JOIN vault_table t ON t.oid = polrelid))
    UNION ALL SELECT 'initial rights on ' || pg_describe_object(classoid, objoid, objsubid) || ': ' ||
        (SELECT string_agg(a::text, ' ' ORDER BY a::text COLLATE "C") FROM unnest(initprivs) a)
      FROM pg_init_privs WHERE (classoid, objoid) IN (SELECT classid, objid FROM member)"#;

/// Everything that the extension is in this database, a line each. Members of roles are the cluster's, and left out.
fn lines(root: &mut Client) -> Vec<String> {
    let listing = root.ask(LISTING);
    let rest = root.ask(REST);
    root.ask("DROP FUNCTION pg_temp.rights; DROP TABLE listing, member, vault_table; RESET search_path");
    listing.lines().chain(rest.lines()).filter(|line| !line.starts_with("role ")).map(str::to_owned).collect()
}

fn differences(root: &mut Client, fresh: &[String]) -> Vec<String> {
    let found: BTreeSet<String> = lines(root).into_iter().collect();
    let fresh: BTreeSet<String> = fresh.iter().cloned().collect();
    let only = |these: &BTreeSet<String>, those: &BTreeSet<String>, mark: &str| {
        these.difference(those).map(|line| format!("{mark} {line}")).collect::<Vec<_>>()
    };
    [only(&found, &fresh, "+"), only(&fresh, &found, "-")].concat()
}
