//! Recovery to a point in time: base backup and WAL archive. Runs in the test process.

use super::{fill, goes_on, learn, reader};
use hyperion_vault_tests::{Ask, Cluster, PATIENCE, StopMode, sqlstate, wait_for};

/// Between two updates of a secret lies a point, named, timed or numbered: there its earlier value is read.
#[test]
fn to_a_point_between_two_updates() {
    let cluster = Cluster::builder().allowed_ips("local,127.0.0.1").start();
    let archive = cluster.dir().join("sock"); // a directory that the server may write to
    let archive_command = format!("test ! -f {0}/%f && cp %p {0}/%f", archive.display());
    cluster.stage_conf("archive_mode", "on");
    cluster.stage_conf("archive_command", &archive_command);
    cluster.restart(StopMode::Fast);
    let vault = cluster.vault();
    let mut ops = vault.ops();
    fill(&mut ops);
    let known = learn(&mut reader(&cluster));
    let backups = [cluster.base_backup(), cluster.base_backup(), cluster.base_backup()];

    // At each point the secret has another value.
    let mut root = vault.root();
    ops.ask("SELECT vault.create_secret('p', 'before', grace_period => '1 day')");
    let mut put = |value: &str| {
        ops.ask(&format!("BEGIN; SELECT vault.put_secret('p', '{value}')"));
        let xid = ops.ask("SELECT pg_current_xact_id()");
        ops.ask("COMMIT");
        xid
    };
    put("by name");
    root.ask("SELECT pg_create_restore_point('here')");
    put("by time");
    let time = root.ask("SELECT clock_timestamp()");
    let xid = put("by xid");
    put("after all of them");
    ops.ask("SELECT vault.delete_secret('p'); SELECT vault.delete_secret('login')");
    let last = root.ask("SELECT pg_walfile_name(pg_switch_wal())");
    wait_for("the archive", PATIENCE, || {
        root.ask("SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver") >= last
    });

    let targets = [
        (("recovery_target_name", "here"), "by name", 2),
        (("recovery_target_time", time.as_str()), "by time", 3),
        (("recovery_target_xid", xid.as_str()), "by xid", 4),
    ];
    for (backup, (target, value, version)) in backups.iter().zip(targets) {
        backup.recover(&archive, target);
        let (mut app, mut ops) = (reader(backup), backup.connect("ops", backup.database()));
        let read = "SELECT vault.read_secret('p'), vault.verify('p', 'before'), vault.read_secret('p', 1),
                           (SELECT string_agg(state, ' ') FROM vault.list_versions('p'))";
        let grace = " grace".repeat(version - 1);
        assert_eq!(app.ask(read), format!("{value}|(t,1)|before|current{grace}"), "{target:?}");
        assert_eq!(app.ask("SELECT vault.verify('p', 'after all of them')"), "(f,)");
        // Deleted for good, and written again with the number it had in the life that is over.
        assert_eq!(
            ops.ask("SELECT version FROM vault.put_secret('p', 'another')"),
            (version + 1).to_string()
        );
        assert_eq!(app.ask("SELECT vault.read_secret('p')"), "another");
        ops.ask("SELECT vault.delete_secret('p')");
        sqlstate!(app.try_ask("SELECT vault.read_secret('p')"), "P0002");
        drop((app, ops));
        goes_on(backup, &known);
    }
    assert_eq!(
        reader(&cluster).ask("SELECT count(*) FROM vault.list_secrets('p')"),
        "0",
        "the original lives on"
    );
}
