//! Transactions with an old snapshot are told what is true now: a delete, a new value, the end of a grace bind at once.

use super::{state, text};
use hyperion_vault_tests::{Client, Cluster, PATIENCE, sqlstate, wait_for};

/// The deferrable one comes first: it waits until no other serializable transaction is open.
const LEVELS: [&str; 3] = ["SERIALIZABLE READ ONLY DEFERRABLE", "REPEATABLE READ", "SERIALIZABLE"];

fn sees_the_ordinary_row(client: &mut Client) -> bool {
    text(client, "SELECT count(*)::text FROM ordinary") == "1"
}

#[test]
fn an_old_snapshot_shows_no_old_secret() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut root = vault.root();
    root.batch_execute("CREATE TABLE ordinary AS SELECT 1 AS n; GRANT SELECT ON ordinary TO app").unwrap();
    root.batch_execute(
        "SELECT vault.create_secret('doomed', 'old', grace_period => '1 day');
         SELECT vault.put_secret('doomed', 'older than the snapshot');
         SELECT vault.create_secret('changing', 'old')",
    )
    .unwrap();

    let mut sessions: Vec<Client> = LEVELS
        .iter()
        .map(|level| {
            let mut client = vault.app();
            client.batch_execute(&format!("BEGIN TRANSACTION ISOLATION LEVEL {level}")).unwrap();
            assert!(sees_the_ordinary_row(&mut client));
            // Plans, oids and data keys are warm.
            assert_eq!(text(&mut client, "SELECT vault.read_secret('doomed', 1)"), "old");
            assert_eq!(text(&mut client, "SELECT vault.read_secret('changing')"), "old");
            client
        })
        .collect();

    root.batch_execute(
        "DELETE FROM ordinary;
         SELECT vault.delete_secret('doomed');
         SELECT vault.put_secret('changing', 'new');
         SELECT vault.create_secret('young', 'new')",
    )
    .unwrap();

    for (level, client) in LEVELS.iter().zip(&mut sessions) {
        assert!(
            sees_the_ordinary_row(client),
            "{level}: the snapshot is not old, so this test shows nothing"
        );
        assert_eq!(text(client, "SELECT vault.read_secret('changing')"), "new", "{level}");
        assert_eq!(text(client, "SELECT vault.read_secret('young')"), "new", "{level}");
        let get = "SELECT version || value FROM vault.get_secret('changing')";
        assert_eq!(text(client, get), "2new", "{level}");
        for (candidate, valid) in [("new", "true"), ("old", "false")] {
            let verify = format!("SELECT valid::text FROM vault.verify('changing', '{candidate}')");
            assert_eq!(text(client, &verify), valid, "{level}");
        }
        let list = "SELECT string_agg(name, ' ' ORDER BY name) FROM vault.list_secrets()";
        assert_eq!(text(client, list), "changing young", "{level}");
        for call in [
            "SELECT vault.read_secret('doomed')",
            "SELECT vault.read_secret('doomed', 1)",
            "SELECT * FROM vault.get_secret('doomed')",
            "SELECT * FROM vault.verify('doomed', 'old')",
            "SELECT * FROM vault.list_versions('doomed')",
            "SELECT vault.read_secret('changing', 1)",
        ] {
            client.batch_execute("SAVEPOINT s").unwrap();
            assert_eq!(state(client, call), "P0002", "{level}: {call}");
            client.batch_execute("ROLLBACK TO s").unwrap();
        }
    }

    // A secret of the same name, created anew, is not the one that was: its first version is not the old one.
    root.batch_execute("SELECT vault.create_secret('doomed', 'anew')").unwrap();
    for client in &mut sessions {
        assert_eq!(text(client, "SELECT vault.read_secret('doomed', 1)"), "anew");
    }
    drop(sessions);
    grace_ends_under_an_old_snapshot(&cluster);
    an_uncommitted_change_is_nobody_elses(&cluster);
}

/// The end of a grace period is a matter of the clock, neither of now() nor of the snapshot.
fn grace_ends_under_an_old_snapshot(cluster: &Cluster) {
    let (mut root, mut old) = (cluster.superuser(), cluster.connect("app", cluster.database()));
    root.batch_execute(
        "SELECT vault.create_secret('brief', 'first', grace_period => '2 s');
         SELECT vault.create_secret('anchor', 'x')",
    )
    .unwrap();
    old.batch_execute("BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ").unwrap();
    // Keys are cached by now: what refuses later is the clock, not the key service.
    assert_eq!(text(&mut old, "SELECT vault.read_secret('brief')"), "first");
    root.batch_execute("SELECT vault.put_secret('brief', 'second')").unwrap();

    // Each judgement is framed by two looks at the clock, so that a slow machine cannot make it wrong.
    let mut look = |sql: &str, yes: &str, no: &str| {
        let ended = "SELECT (clock_timestamp() >= expires_at)::text FROM vault.list_versions('brief') WHERE version = 1";
        let before = text(&mut old, ended) == "true";
        old.batch_execute("SAVEPOINT s").unwrap();
        let answer = match old.query_one(sql, &[]) {
            Ok(row) => row.get::<_, String>(0),
            Err(error) => error.code().expect("an error of the server").code().to_owned(),
        };
        old.batch_execute("ROLLBACK TO s").unwrap();
        let after = text(&mut old, ended) == "true";
        assert!(answer == yes || answer == no, "{sql}: {answer}");
        assert!(!before || answer == no, "{sql}: {answer} after the end of the grace period");
        assert!(after || answer == yes, "{sql}: {answer} before the end of the grace period");
        before
    };
    wait_for("the end of the grace period", PATIENCE, || {
        look("SELECT vault.read_secret('brief', 1)", "first", "P0002");
        look("SELECT value FROM vault.get_secret('brief', 1)", "first", "P0002");
        look("SELECT valid::text FROM vault.verify('brief', 'first')", "true", "false");
        look("SELECT state FROM vault.list_versions('brief') WHERE version = 1", "grace", "retained")
    });
    assert_eq!(text(&mut old, "SELECT vault.read_secret('brief')"), "second");
    assert_eq!(text(&mut old, "SELECT valid::text FROM vault.verify('brief', 'second')"), "true");
}

/// The latest snapshot is still a snapshot: what others have not committed is not there.
fn an_uncommitted_change_is_nobody_elses(cluster: &Cluster) {
    let (mut writer, mut reader) = (cluster.superuser(), cluster.connect("app", cluster.database()));
    writer.batch_execute("SELECT vault.create_secret('pending', 'old')").unwrap();
    writer
        .batch_execute(
            "BEGIN;
             SELECT vault.put_secret('pending', 'new');
             SELECT vault.create_secret('pending too', 'new');
             SELECT vault.delete_secret('anchor')",
        )
        .unwrap();
    assert_eq!(text(&mut writer, "SELECT vault.read_secret('pending')"), "new");
    assert_eq!(text(&mut reader, "SELECT vault.read_secret('pending')"), "old");
    assert_eq!(text(&mut reader, "SELECT valid::text FROM vault.verify('pending', 'new')"), "false");
    assert_eq!(text(&mut reader, "SELECT vault.read_secret('anchor')"), "x");
    sqlstate!(reader.query("SELECT vault.read_secret('pending too')", &[]), "P0002");
    sqlstate!(writer.query("SELECT vault.read_secret('anchor')", &[]), "P0002");
    writer.batch_execute("ROLLBACK").unwrap();
    assert_eq!(text(&mut reader, "SELECT vault.read_secret('pending')"), "old");
}
