//! Spools on the disk: whose they are, copies, damage, another place.

use super::full::Disk;
use super::{begin_in, log, segments, settle, staging, status, stop_relay};
use hyperion_vault_tests::{Ask, Cluster, PATIENCE, SIGKILL, StopMode, sqlstate, wait_for};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

fn copy(from: &Path, to: &Path) {
    assert!(
        Command::new("cp")
            .args(["--archive", "--no-target-directory"])
            .arg(from)
            .arg(to)
            .status()
            .unwrap()
            .success()
    );
}

#[test]
fn spools_are_private_and_former_ones_go_when_they_are_taken() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    vault.ops().ask("SELECT vault.create_secret('a', 'v')");
    settle(&cluster);
    let base = cluster.data_dir().join("hyperion_vault_audit");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&base), 0o700);
    let before = segments(&base);
    assert_eq!(before.iter().map(|path| mode(path)).collect::<Vec<_>>(), [0o600]);
    for _ in 0..3 {
        cluster.restart(StopMode::Fast);
        vault.app().ask("SELECT vault.read_secret('a')");
    }
    settle(&cluster);
    wait_for("former spools to be removed", PATIENCE, || segments(&base).len() == 1);
    assert_ne!(segments(&base), before);
    assert_eq!(log(&cluster, "id", "session_role = 'app'").lines().count(), 3);
    assert_eq!(vault.root().ask("SELECT count(*) FROM vault.audit_spools"), "4");
}

#[test]
fn a_copied_spool_is_neither_continued_nor_taken_twice() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    vault.ops().ask("SELECT vault.create_secret('a', 'v')");
    let base = cluster.data_dir().join("hyperion_vault_audit");
    for _ in 0..20 {
        vault.app().ask("SELECT vault.read_secret('a')");
    }
    settle(&cluster);
    let kept = cluster.dir().join("kept");
    copy(&base, &kept);
    let count = "SELECT count(*) FROM vault.audit_log";
    // The copy comes back, once beside the present spool, once in its place, as after a restored snapshot.
    cluster.stop(StopMode::Fast);
    std::fs::remove_dir_all(&base).unwrap();
    copy(&kept, &base);
    cluster.start_again();
    let copied = segments(&kept)[0].file_name().unwrap().to_owned();
    let before = vault.root().ask(count);
    vault.app().ask("SELECT vault.read_secret('a')");
    settle(&cluster);
    let spools: usize =
        vault.root().ask("SELECT count(DISTINCT spool_id) FROM vault.audit_log").parse().unwrap();
    assert_eq!(spools, 2, "{copied:?}: the copy was not continued");
    assert_eq!(
        vault.root().ask("SELECT count(*) FROM (SELECT FROM vault.audit_log WHERE resolves IS NULL GROUP BY spool_id, position HAVING count(*) > 1) x"),
        "0"
    );
    assert_eq!(log(&cluster, "id", "session_role = 'app'").lines().count(), 21, "{before}");
}

#[test]
fn torn_records_are_skipped_and_what_follows_is_not() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    vault.ops().ask("SELECT vault.create_secret('a', 'v')");
    let read = || vault.app().ask("SELECT vault.read_secret('a')");
    settle(&cluster);
    let base = cluster.data_dir().join("hyperion_vault_audit");
    // What somebody puts behind the end of the segment is in the way of nothing.
    let path = segments(&base).pop().unwrap();
    let whole = std::fs::read(&path).unwrap();
    let mut file = std::fs::OpenOptions::new().append(true).open(path).unwrap();
    file.write_all(&whole[..whole.len().min(40)]).unwrap();
    read();
    settle(&cluster);
    assert_eq!(log(&cluster, "outcome", "session_role = 'app'"), "ok");
    // The second of three is damaged, in what a former life leaves behind.
    let relay = stop_relay(&cluster);
    (0..3).for_each(|_| drop(read()));
    let path = staging(&base);
    let mut bytes = std::fs::read(&path).unwrap();
    let length = u32::from_ne_bytes(bytes[8..12].try_into().unwrap()) as usize;
    assert!(length > 200, "{length}");
    bytes[64 + length / 2] ^= 1;
    // In place: the server has it mapped.
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().write_all(&bytes).unwrap();
    cluster.kill_and_wait(relay, SIGKILL);
    cluster.wait_ready();
    read();
    assert_eq!(log(&cluster, "outcome", "session_role = 'app'"), "ok\nok\nok\nok");
    assert_eq!(status(&mut vault.root())["torn"], 1, "of this life of the server");
}

#[test]
fn what_is_staged_outlives_the_server() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    vault.ops().ask("SELECT vault.create_secret('a', 'v')");
    settle(&cluster);
    let base = cluster.data_dir().join("hyperion_vault_audit");
    let written = || std::fs::metadata(segments(&base).pop().unwrap()).unwrap().len();
    let before = written();
    let relay = stop_relay(&cluster);
    for _ in 0..100 {
        vault.app().ask("SELECT vault.read_secret('a')");
    }
    assert_eq!(written(), before, "nothing of it is in the segment");
    // All at once, as a container ends: stopped, it would not notice that its postmaster is gone.
    cluster.kill(relay, SIGKILL);
    cluster.kill_postmaster_9();
    cluster.start_again();
    settle(&cluster);
    assert_eq!(log(&cluster, "outcome", "session_role = 'app'").lines().count(), 100);
    assert_eq!(status(&mut vault.root())["torn"], 0);
    wait_for("the former spool to go", PATIENCE, || segments(&base).len() == 1);
}

#[test]
fn where_files_are_not_mapped_records_are_written_one_by_one() {
    // Not one of those that are known to overwrite in place.
    let Some(disk) = Disk::new("ramfs", None) else { return };
    let base = disk.path().join("audit");
    let cluster = Cluster::builder().conf("hyperion_vault.audit_spool_dir", base.to_str().unwrap()).start();
    let vault = cluster.vault();
    begin_in(&base, &cluster, "v");
    assert!(!staging(&base).exists());
    let written = || std::fs::metadata(segments(&base).pop().unwrap()).unwrap().len();
    let relay = stop_relay(&cluster);
    let mut app = vault.app();
    for _ in 0..10 {
        let before = written();
        app.ask("SELECT vault.read_secret('a')");
        assert!(written() > before);
    }
    cluster.kill_and_wait(relay, SIGKILL);
    cluster.wait_ready();
    assert_eq!(log(&cluster, "outcome", "session_role = 'app'").lines().count(), 10);
    cluster.stop(StopMode::Fast);
}

#[test]
fn a_spool_that_is_removed_under_the_server_is_noticed_and_replaced() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut app = vault.app();
    vault.ops().ask("SELECT vault.create_secret('a', 'v')");
    app.ask("SELECT vault.read_secret('a')");
    settle(&cluster);
    let mark = cluster.log_mark();
    let base = cluster.data_dir().join("hyperion_vault_audit");
    std::fs::remove_dir_all(&base).unwrap();
    cluster.wait_for_log(mark, "a segment of the open audit spool is gone", PATIENCE);
    wait_for("a new spool", PATIENCE, || app.try_ask("SELECT vault.read_secret('a')").is_ok());
    assert_eq!(log(&cluster, "outcome", "session_role = 'app'"), "ok\nok");
    assert_eq!(segments(&base).len(), 1);
    // The staging file alone, which sessions have mapped: what they put into it now would be nowhere.
    let mark = cluster.log_mark();
    std::fs::remove_file(staging(&base)).unwrap();
    cluster.wait_for_log(mark, "or its staging file", PATIENCE);
    wait_for("a new spool", PATIENCE, || app.try_ask("SELECT vault.read_secret('a')").is_ok());
    wait_for("the former one to go", PATIENCE, || segments(&base).len() == 1);
    assert!(staging(&base).exists());
    assert_eq!(vault.app().ask("SELECT vault.read_secret('a')"), "v");
    assert_eq!(log(&cluster, "outcome", "session_role = 'app'"), "ok\nok\nok\nok");
}

#[test]
fn a_directory_outside_is_used_by_one_server_at_a_time() {
    let outside = tempfile::tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(outside.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let base = outside.path().join("audit");
    let configured = || Cluster::builder().conf("hyperion_vault.audit_spool_dir", base.to_str().unwrap());
    let first = configured().start();
    let vault = first.vault();
    begin_in(&base, &first, "v");
    assert!(!first.data_dir().join("hyperion_vault_audit").exists());
    assert_eq!(segments(&base).len(), 1);
    // The relay has taken over the lock that a session, which has ended, took first.
    let second = configured().start();
    let other = second.vault();
    sqlstate!(other.ops().try_ask("SELECT vault.create_secret('b', 'v')"), "58030");
    std::thread::sleep(std::time::Duration::from_millis(300));
    sqlstate!(other.ops().try_ask("SELECT vault.create_secret('b', 'v')"), "58030", detail: "another server uses it");
    // And the first loses nothing by it.
    vault.app().ask("SELECT vault.read_secret('a')");
    assert_eq!(log(&first, "outcome", "session_role = 'app'"), "ok");
    first.stop(StopMode::Fast);
    let mut ops = other.ops();
    wait_for("the directory to be free", PATIENCE, || {
        ops.try_ask("SELECT vault.put_secret('b', 'v')").is_ok()
    });
    assert_eq!(log(&second, "function, outcome", "subject = 'b' AND outcome = 'ok'"), "put_secret|ok");
}
