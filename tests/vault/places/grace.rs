//! `verify` and the end of the last grace beside the current version: it is right after every way to change it, so that no
//! version in grace is ever missed, and the superseded versions are looked at only where one may be. Runs in the test process.

use super::{LIMIT, descents};
use hyperion_vault_tests::threads::clients_at_once;
use hyperion_vault_tests::{Ask, Client, Cluster, KeyFile};

/// Secrets whose column says less than their superseded versions, of which verify would miss one.
const MISSED: &str = "SELECT count(*) FROM vault.secrets s
      WHERE s.grace_until < (SELECT max(v.expires_at) FROM vault.secret_versions v WHERE v.secret_id = s.id)";

/// Which of the values are accepted, with their versions.
fn accepted(client: &mut Client, name: &str, values: &[&str]) -> String {
    let verify = |value: &&str| format!("(SELECT version FROM vault.verify('{name}', '{value}'))");
    client.ask(&format!("SELECT {}", values.iter().map(verify).collect::<Vec<_>>().join(", ")))
}

#[test]
fn no_version_in_grace_is_missed() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let (mut ops, mut app, mut root) = (vault.ops(), vault.app(), vault.root());
    let all = ["v1", "v2", "v3", "v4"];
    let missed = |root: &mut Client| assert_eq!(root.ask(MISSED), "0");

    // Without a grace one look is enough: with none ever, and with retained versions.
    ops.ask("SELECT vault.create_secret('plain', 'v1')");
    let verify = "SELECT vault.verify('plain', 'x')";
    app.ask(verify);
    assert_eq!(descents(&mut app, verify), "0|0");
    ops.ask("SELECT vault.put_secret('plain', 'v2')");
    app.ask(verify);
    assert_eq!(descents(&mut app, verify), "0|0");
    assert_eq!(accepted(&mut app, "plain", &all), "∅|2|∅|∅");
    // A grace period given later is for the versions superseded later.
    ops.ask("SELECT vault.update_secret('plain', grace_period => '1 hour')");
    assert_eq!(descents(&mut app, verify), "0|0", "the row has moved, and the writer has said where");
    ops.ask("SELECT vault.put_secret('plain', 'v3')");
    assert_eq!(accepted(&mut app, "plain", &all), "∅|2|3|∅");
    assert!(descents(&mut app, verify).ends_with("|1"));
    // Taken away, the versions in grace keep theirs.
    ops.ask("SELECT vault.update_secret('plain', value => 'v4', reset => '{grace_period}')");
    assert_eq!(accepted(&mut app, "plain", &all), "∅|2|∅|4");
    missed(&mut root);
    // Both in one call, and back to an earlier value.
    ops.ask("SELECT vault.update_secret('plain', value => 'v3', grace_period => '2 hours')");
    assert_eq!(accepted(&mut app, "plain", &all), "∅|2|5|4");
    ops.ask("SELECT vault.roll_back_secret('plain', 1)");
    assert_eq!(accepted(&mut app, "plain", &all), "6|2|5|4");
    missed(&mut root);

    // Renamed, deleted and restored, seen by its own transaction and not by others before it commits.
    root.ask("SELECT vault.rename_secret('plain', 'renamed'); SELECT vault.delete_secret('renamed', '1 hour'); SELECT vault.restore_secret('renamed')");
    assert_eq!(accepted(&mut app, "renamed", &all), "6|2|5|4");
    ops.ask("SELECT vault.create_secret('t', 'v1', grace_period => '1 hour')");
    root.batch_execute("BEGIN; SELECT vault.put_secret('t', 'v2')").unwrap();
    assert_eq!(
        (accepted(&mut root, "t", &all), accepted(&mut app, "t", &all)),
        ("1|2|∅|∅".into(), "1|∅|∅|∅".into())
    );
    root.batch_execute("COMMIT").unwrap();
    assert_eq!(accepted(&mut app, "t", &all), "1|2|∅|∅");
    ops.ask("SELECT vault.create_secret('rotated', kind => 'automatic', rotation_interval => '1 day', grace_period => '1 hour')");
    let first = app.ask("SELECT vault.read_secret('rotated')");
    ops.ask("SELECT vault.rotate_secret('rotated')");
    assert_eq!(accepted(&mut app, "rotated", &[&first]), "1");
    missed(&mut root);

    // The end is one of the clock: past it, and only then, one look is enough again.
    ops.ask("SELECT vault.create_secret('short', 'v1', grace_period => '8 seconds'); SELECT vault.put_secret('short', 'v2')");
    assert_eq!(accepted(&mut app, "short", &all), "1|2|∅|∅");
    root.ask("SELECT pg_sleep_until((SELECT grace_until FROM vault.secrets WHERE name = 'short'))");
    assert_eq!(accepted(&mut app, "short", &all), "∅|2|∅|∅");
    assert_eq!(descents(&mut app, "SELECT vault.verify('short', 'x')"), "0|0");

    // A row that does not say (restored from a dump that knows no such column) costs the look.
    root.batch_execute("UPDATE vault.secrets SET grace_until = NULL").unwrap();
    assert_eq!(accepted(&mut app, "t", &all), "1|2|∅|∅");
    ops.ask("SELECT vault.put_secret('t', 'v3')");
    assert_eq!(accepted(&mut app, "t", &all), "1|2|3|∅");
    assert_eq!(root.ask("SELECT count(*) FROM vault.secrets WHERE grace_until IS NOT NULL"), "0");

    // Exports never had it: it is found out at the import.
    let document = ops.ask("SELECT vault.export_sealed()");
    assert!(!document.contains("grace_until"));
    let key = std::fs::read(cluster.key_path()).unwrap();
    let there = Cluster::builder().key_file(KeyFile::Custom { bytes: key, mode: 0o600 }).start();
    let other = there.vault();
    let import = "SELECT vault.import_sealed($1::text::jsonb)";
    other.ops().query_one(import, &[&document]).unwrap();
    assert_eq!(accepted(&mut other.app(), "t", &all), "1|2|3|∅");
    assert_eq!(accepted(&mut other.app(), "renamed", &all), "6|2|5|4");
    let unknown = "SELECT count(*) FILTER (WHERE grace_until IS NULL), count(*) FILTER (WHERE grace_until > now()) FROM vault.secrets";
    assert_eq!(other.root().ask(unknown), "0|3");
    missed(&mut other.root());
}

/// Writers that change value and grace of the same secrets in any order leave no version behind that verify misses.
#[test]
fn nor_after_a_race() {
    let cluster = Cluster::builder().conf("hyperion_vault.keep_versions", "1000").start();
    let vault = cluster.vault();
    vault.ops().ask(
        "SELECT vault.create_secret('r/' || i, 'v', grace_period => '1 hour') FROM generate_series(0, 1) i",
    );
    clients_at_once(&cluster, "ops", 4, LIMIT, |part, mut client| {
        for i in 0..40 {
            let name = format!("r/{}", (part + i) % 2);
            let statement = match (part * 7 + i) % 5 {
                0 => format!("update_secret('{name}', grace_period => '{} minutes')", 1 + i % 7),
                1 => format!("update_secret('{name}', reset => '{{grace_period}}')"),
                2 => format!(
                    "update_secret('{name}', value => '{part}/{i}', grace_period => '{} hours')",
                    1 + i % 3
                ),
                _ => format!("put_secret('{name}', '{part}/{i}')"),
            };
            let end = if i % 6 == 5 { "ROLLBACK" } else { "COMMIT" };
            client.batch_execute(&format!("BEGIN; SELECT vault.{statement}; {end}")).unwrap();
        }
    });
    let mut root = vault.root();
    assert_eq!(root.ask(MISSED), "0");
    let in_grace =
        "SELECT s.name, v.version FROM vault.secrets s JOIN vault.secret_versions v ON v.secret_id = s.id
                     WHERE v.expires_at > clock_timestamp()";
    assert_eq!(root.ask(&format!("SELECT count(*) > 20 FROM ({in_grace}) x")), "t");
    let refused = "NOT (vault.verify(x.name, vault.read_secret(x.name, x.version))).valid";
    assert_eq!(root.ask(&format!("SELECT count(*) FROM ({in_grace}) x WHERE {refused}")), "0");
}
