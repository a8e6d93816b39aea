//! When no record can be written nothing is done, and it heals by itself.

use super::{begin_in, log, segments, settle, status, stop_relay};
use hyperion_vault_tests::threads::clients_at_once;
use hyperion_vault_tests::{
    Ask, Client, Cluster, PATIENCE, SIGCONT, SIGKILL, StopMode, assert_contains, backend_pid, sqlstate,
    wait_for,
};
use std::os::unix::fs::PermissionsExt;

const READ: &str = "SELECT vault.read_secret('a')";

/// Reads until the record cannot be written. How many times it could.
fn read_until_refused(client: &mut Client, most: usize) -> (usize, hyperion_vault_tests::DbError) {
    for read in 0..most {
        match client.try_ask(READ) {
            Ok(value) => assert_eq!(value, "the value"),
            Err(error) => return (read, sqlstate!(Err::<(), _>(error), "58030")),
        }
    }
    panic!("{most} reads were not refused")
}

#[test]
fn at_the_limit_operations_are_refused_until_the_relay_has_made_room() {
    let cluster = Cluster::builder().conf("hyperion_vault.audit_spool_max_mb", "1").start();
    let vault = cluster.vault();
    vault.ops().ask("SELECT vault.create_secret('a', 'the value')");
    settle(&cluster);
    let relay = stop_relay(&cluster);
    let (mut app, mut ops) = (vault.app(), vault.ops());
    let (reads, error) = read_until_refused(&mut app, 50_000);
    assert!(reads > 1000, "{reads}");
    assert_contains("the detail", error.detail(), "limit of 1 MB");
    assert_contains("the hint", error.hint(), "audit_spool_max_mb");
    // Nothing at all is done: no value, no write, no verification.
    sqlstate!(ops.try_ask("SELECT vault.put_secret('a', 'other')"), "58030");
    sqlstate!(app.try_ask("SELECT vault.verify('a', 'the value')"), "58030");
    sqlstate!(app.try_ask("SELECT decrypted_secret FROM vault.decrypted_secrets"), "58030");
    sqlstate!(app.try_ask("SELECT * FROM vault.read_secrets('{a}')"), "58030");
    // But what tells why.
    let seen = status(&mut vault.root());
    assert!(seen["spool_bytes"].as_u64().unwrap() > 900_000, "{seen}");
    assert!(
        seen["lag_records"].as_u64().unwrap() > 1000 && seen["append_failures"].as_u64().unwrap() > 0,
        "{seen}"
    );
    assert!(seen["lag_seconds"].as_f64().unwrap() > 0.1, "{seen}");
    assert_eq!(seen["last_append_failure"], "The audit spool has reached its limit.", "{seen}");
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let failed_at = seen["last_append_failure_at_unix"].as_u64().unwrap();
    assert!((now - 60..=now).contains(&failed_at), "{seen}");
    cluster.kill(relay, SIGCONT);
    wait_for("reads to go on", PATIENCE, || app.try_ask(READ).is_ok());
    assert_eq!(app.ask("SELECT version FROM vault.get_secret('a')"), "1", "the refused write did not happen");
    let found: usize = log(&cluster, "id", "function = 'read_secret' AND outcome = 'ok'").lines().count();
    assert!(found > reads, "{found} of {reads}");
    // What is left of the spool is small again.
    let mut root = vault.root();
    wait_for("segments to be removed", PATIENCE, || {
        status(&mut root)["spool_bytes"].as_u64().unwrap() < 600_000
    });
}

#[test]
fn sessions_that_outrun_the_relay_are_slowed_down_and_not_refused() {
    const SESSIONS: usize = 24;
    const READS: usize = 4000;
    let cluster = Cluster::builder().conf("hyperion_vault.audit_spool_max_mb", "4").start();
    let vault = cluster.vault();
    vault.ops().ask("SELECT vault.create_secret('a', 'the value')");
    settle(&cluster);
    // More than two full spools of records at once, by sessions that do nothing else.
    clients_at_once(&cluster, "app", SESSIONS, 4 * PATIENCE, |_, mut client| {
        client.ask(&format!(
            "DO $$ BEGIN FOR i IN 1..{READS} LOOP PERFORM vault.read_secret('a'); END LOOP; END $$"
        ));
    });
    let found = log(&cluster, "id", "function = 'read_secret' AND outcome = 'ok'").lines().count();
    assert_eq!(found, SESSIONS * READS);
    assert_eq!(status(&mut vault.root())["append_failures"], 0);
}

#[test]
fn a_flood_of_refusals_leaves_room_for_everybody_else() {
    let cluster = Cluster::builder().conf("hyperion_vault.audit_spool_max_mb", "1").start();
    let vault = cluster.vault();
    vault.ops().ask("SELECT vault.create_secret('a', 'the value')");
    settle(&cluster);
    let relay = stop_relay(&cluster);
    // Refused, and with new connections too.
    for _ in 0..10 {
        let mut ops = vault.ops();
        ops.ask(
            "DO $$ BEGIN FOR i IN 1..2000 LOOP BEGIN PERFORM vault.read_secret('a'); EXCEPTION WHEN insufficient_privilege THEN NULL; END; END LOOP; END $$",
        );
    }
    // Failed for reasons of the caller's own: not counted but written, up to the reserve.
    vault.app().ask(
        "DO $$ BEGIN FOR i IN 1..20000 LOOP BEGIN PERFORM vault.read_secret('none'); EXCEPTION WHEN no_data_found THEN NULL; END; END LOOP; END $$",
    );
    assert!(status(&mut vault.root())["unrecorded_refusals"].as_u64().unwrap() > 1000);
    let mut app = vault.app();
    for _ in 0..500 {
        assert_eq!(app.ask(READ), "the value");
    }
    cluster.kill(relay, SIGCONT);
    settle(&cluster);
    let denied = log(&cluster, "count(*) FILTER (WHERE occurrences = 1)", "outcome = 'denied' GROUP BY id");
    assert!(denied.lines().count() < 200, "refusals were written one by one");
    // None is forgotten: once the window is over, their number is there.
    let mut root = vault.root();
    wait_for("the count of refusals", PATIENCE, || {
        root.ask(
            "SELECT sum(occurrences) FROM vault.audit_log WHERE outcome = 'denied' AND session_role = 'ops'",
        ) == "20000"
    });
}

#[test]
fn a_file_system_that_says_no_is_an_error_of_the_call() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    vault.ops().ask("SELECT vault.create_secret('a', 'the value')");
    let mut app = vault.app();
    app.ask(READ);
    settle(&cluster);
    let relay = stop_relay(&cluster);
    // The kernel refuses any write of this session that would make a file longer, as a full disk does. What the staging
    // buffer has room for needs none.
    let pid = backend_pid(&mut app);
    limit_file_size(&cluster, pid, "10:");
    let (reads, error) = read_until_refused(&mut app, 10_000);
    assert!(reads > 500, "{reads}");
    assert_contains("the detail", error.detail(), "File too large");
    assert!(
        !format!("{error:?}").contains("hyperion_vault_audit"),
        "the path is nobody's business: {error:?}"
    );
    sqlstate!(app.try_ask("SELECT vault.verify('a', 'the value')"), "58030");
    // Others, whom the kernel lets, write what was staged and go on.
    assert_eq!(vault.app().ask(READ), "the value");
    limit_file_size(&cluster, pid, "unlimited:");
    assert_eq!(app.ask(READ), "the value");
    cluster.kill(relay, SIGCONT);
    let found = log(&cluster, "function || ' ' || outcome", "session_role = 'app'");
    assert_eq!(
        (found.lines().count(), found.lines().all(|line| line == "read_secret ok")),
        (reads + 3, true),
        "what was refused for want of a record has none"
    );
}

/// As the server's user, who may do so to his own processes.
fn limit_file_size(cluster: &Cluster, pid: i32, limit: &str) {
    let tool = "/usr/bin/prlimit";
    cluster.run_tool(tool, &["--pid", &pid.to_string(), &format!("--fsize={limit}")], b"").success();
}

#[test]
fn a_full_disk_refuses_and_heals() {
    let Some(disk) = Disk::new("tmpfs", Some("512k")) else { return };
    let spool = disk.path().join("audit");
    let cluster = Cluster::builder().conf("hyperion_vault.audit_spool_dir", spool.to_str().unwrap()).start();
    // The directory is made once it can be.
    let vault = cluster.vault();
    sqlstate!(vault.ops().try_ask("SELECT vault.create_secret('a', 'the value')"), "58030");
    begin_in(&spool, &cluster, "the value");
    let relay = stop_relay(&cluster);
    let mut app = vault.app();
    let (reads, error) = read_until_refused(&mut app, 10_000);
    assert_contains("the detail", error.detail(), "No space left on device");
    let told = status(&mut vault.root())["last_append_failure"].to_string();
    assert_contains("the status", Some(told.as_str()), "No space left on device");
    assert!(reads > 100, "{reads}");
    sqlstate!(app.try_ask(READ), "58030");
    cluster.kill(relay, SIGCONT);
    // Room comes back as soon as somebody makes some: what was staged is written once more where it was cut off.
    disk.grow("8m");
    assert_eq!(app.ask(READ), "the value");
    let found = log(&cluster, "id", "session_role = 'app' AND outcome = 'ok'").lines().count();
    assert_eq!(found, reads + 1, "each value that was given out has its record, and nothing else has");
    assert_eq!(status(&mut vault.root())["torn"], 0);
    drop(app);
    cluster.stop(StopMode::Fast);
}

#[test]
fn a_spool_that_fills_its_disk_is_taken_after_a_restart_that_has_no_room_for_another() {
    let Some(disk) = Disk::new("tmpfs", Some("512k")) else { return };
    let spool = disk.path().join("audit");
    let cluster = Cluster::builder().conf("hyperion_vault.audit_spool_dir", spool.to_str().unwrap()).start();
    let vault = cluster.vault();
    begin_in(&spool, &cluster, "the value");
    let relay = stop_relay(&cluster);
    let (reads, _) = read_until_refused(&mut vault.app(), 10_000);
    // Not a byte is left, and nothing but what the relay removes will make room.
    let rest = disk.path().join("rest");
    let _ = std::fs::write(&rest, vec![1; 512 << 10]);
    cluster.kill_and_wait(relay, SIGKILL);
    cluster.wait_ready();
    let mut app = vault.app();
    wait_for("reads to go on", PATIENCE, || app.try_ask(READ).is_ok());
    let found = log(&cluster, "id", "session_role = 'app' AND outcome = 'ok'").lines().count();
    assert_eq!(found, reads + 1);
    drop(app);
    cluster.stop(StopMode::Fast);
}

/// A file system of a test's own, which takes root; gone at its end.
pub struct Disk {
    mount: std::path::PathBuf,
    _parent: tempfile::TempDir,
}

impl Disk {
    /// None: this cannot be had here; what it shows is then not shown.
    pub fn new(kind: &str, size: Option<&str>) -> Option<Self> {
        if hyperion_vault_tests::effective_uid() != 0 {
            println!("not root: no file system can be mounted");
            return None;
        }
        let parent = tempfile::tempdir_in("/tmp").unwrap();
        std::fs::set_permissions(parent.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let mount = parent.path().join("disk");
        std::fs::create_dir(&mount).unwrap();
        let options = size.map_or_else(|| "mode=755".to_owned(), |size| format!("mode=755,size={size}"));
        let mounted = run(&["mount", "-t", kind, "-o", &options, kind, mount.to_str().unwrap()]);
        if !mounted {
            println!("may not mount");
            return None;
        }
        Some(Self { mount, _parent: parent })
    }

    pub fn path(&self) -> &std::path::Path {
        &self.mount
    }

    fn grow(&self, size: &str) {
        assert!(run(&[
            "mount",
            "-o",
            &format!("remount,mode=755,size={size}"),
            self.mount.to_str().unwrap()
        ]));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        run(&["umount", "--lazy", self.mount.to_str().unwrap()]);
    }
}

fn run(command: &[&str]) -> bool {
    std::process::Command::new(command[0]).args(&command[1..]).status().is_ok_and(|status| status.success())
}

#[test]
fn a_directory_that_cannot_be_used_is_refused_by_name_of_the_reason_until_it_can() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    vault.ops().ask("SELECT vault.create_secret('a', 'the value')");
    settle(&cluster);
    let directory = cluster.dir().join("spool");
    cluster.make_server_directory(&directory);
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o777)).unwrap();
    vault.root().ask(&format!("ALTER SYSTEM SET hyperion_vault.audit_spool_dir = '{}'", directory.display()));
    let mark = cluster.log_mark();
    cluster.restart(StopMode::Fast);
    assert!(cluster.log_contains(mark, "the audit record cannot be written"), "the log says so at the start");
    let mut app = vault.app();
    sqlstate!(app.try_ask(READ), "58030");
    std::thread::sleep(std::time::Duration::from_millis(300));
    sqlstate!(app.try_ask(READ), "58030", detail: "other users may write to it", hint: "0700");
    assert_eq!(status(&mut vault.root())["open"], false);
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o700)).unwrap();
    wait_for("the directory to be used", PATIENCE, || app.try_ask(READ).is_ok());
    assert_eq!(status(&mut vault.root())["open"], true);
    settle(&cluster);
    // Not a path at all is refused when it is set.
    let mut root = vault.root();
    sqlstate!(root.try_ask("ALTER SYSTEM SET hyperion_vault.audit_spool_dir = 'spool'"), "22023", detail: "not absolute");
}

#[test]
fn a_record_is_on_disk_before_the_value_leaves_if_that_is_asked_for() {
    let cluster = Cluster::builder().conf("hyperion_vault.audit_sync", "on").start();
    let vault = cluster.vault();
    vault.ops().ask("SELECT vault.create_secret('a', 'the value')");
    // Many at once share syncs and wait for one another.
    clients_at_once(&cluster, "app", 8, PATIENCE, |_, mut client| {
        for _ in 0..50 {
            assert_eq!(client.ask(READ), "the value");
        }
    });
    assert_eq!(log(&cluster, "id", "session_role = 'app'").lines().count(), 400);
    assert_eq!(status(&mut vault.root())["sync"], true);
    // Each by itself, too: it is in the segment, and not only staged.
    settle(&cluster);
    stop_relay(&cluster);
    let base = cluster.data_dir().join("hyperion_vault_audit");
    let written =
        || -> u64 { segments(&base).iter().map(|path| std::fs::metadata(path).unwrap().len()).sum() };
    let mut app = vault.app();
    for _ in 0..3 {
        let before = written();
        app.ask(READ);
        assert!(written() > before);
    }
}
