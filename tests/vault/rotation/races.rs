//! One secret, and everybody at it at once: rotate, update, delete, create, the schedule.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::builder;
use hyperion_vault_tests::threads::background;
use hyperion_vault_tests::{Ask, NoTls, PATIENCE, wait_for, wait_until};

/// What a session may be told; a deadlock (40P01) is not among it, nor is an internal error.
const EXPECTED: [&str; 4] = ["P0002", "23505", "55000", "40001"];

fn run(deletes: bool) {
    let cluster = builder().start();
    let vault = cluster.vault();
    let create = "SELECT vault.create_secret('s', kind => 'automatic', rotation_interval => '1 second', grace_period => '1 day', keep_versions => 1000)";
    vault.ops().ask(create);
    let (stop, through) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut statements = vec![
        ("ops", "SELECT vault.rotate_secret('s')"),
        ("ops", "SELECT vault.rotate_secret('s')"),
        ("ops", "SELECT vault.update_secret('s', value => 'mine')"),
        ("ops", "SELECT vault.update_secret('s', description => 'd', rotation_interval => '2 seconds')"),
        ("app", "SELECT vault.read_secret('s')"),
        ("postgres", "UPDATE vault.secrets SET next_rotation_at = clock_timestamp() - interval '1 minute'"),
    ];
    if deletes {
        statements.push(("ops", "SELECT vault.delete_secret('s')"));
        statements.push(("ops", create));
    } else {
        // Where there is none it would create one of other properties.
        statements.push(("ops", "SELECT vault.put_secret('s', 'x')"));
    }
    let sessions: Vec<_> = statements
        .into_iter()
        .map(|(user, sql)| {
            let (stop, through) = (Arc::clone(&stop), Arc::clone(&through));
            let config = cluster.config(user, cluster.database());
            background(move || {
                let mut client = config.connect(NoTls).unwrap();
                let (mut done, mut slowest) = (0, Duration::ZERO);
                while !stop.load(Relaxed) {
                    let begun = Instant::now();
                    match client.simple_query(sql) {
                        Ok(_) => {
                            through.fetch_add(usize::from(done == 0), Relaxed);
                            done += 1;
                        }
                        Err(error) => {
                            let code = error.code().map(|code| code.code().to_owned()).unwrap_or_default();
                            assert!(EXPECTED.contains(&code.as_str()), "{sql}: {error:?}");
                        }
                    }
                    slowest = slowest.max(begun.elapsed());
                    std::thread::sleep(Duration::from_millis(3));
                }
                (sql, done, slowest)
            })
        })
        .collect();
    std::thread::sleep(Duration::from_secs(5));
    // A slow machine needs longer until each has had its turn; who has none is told of below.
    let _ = wait_until(2 * PATIENCE, || through.load(Relaxed) == sessions.len());
    stop.store(true, Relaxed);
    for session in sessions {
        let (sql, done, slowest) = session.finish(PATIENCE);
        println!("{done} times, at most {slowest:?}: {sql}");
        assert!(done > 0, "{sql} never got through");
        assert!(slowest < PATIENCE, "{sql} took {slowest:?}");
    }
    let mut root = vault.root();
    // Every version but the current one is there, once, in grace. (`version` tells how many there have been.)
    let sound = "SELECT count(*) = 0 FROM vault.secrets s WHERE version <> 1 + (SELECT count(*) FROM vault.secret_versions v
                   WHERE v.secret_id = s.id AND v.version < s.version AND v.expires_at > clock_timestamp())";
    assert_eq!(root.ask(sound), "t");
    assert_eq!(
        root.ask(
            "SELECT count(*) FROM vault.secret_versions WHERE secret_id NOT IN (SELECT id FROM vault.secrets)"
        ),
        "0"
    );
    // The schedule is at it too, and not kept out by what the others have left behind. (Of one that is deleted there may be
    // nothing left to rotate.)
    if !deletes {
        let scheduled = "SELECT count(*) > 0 FROM vault.audit_log WHERE function = 'maintenance' AND action = 'rotate' AND outcome <> 'error'";
        wait_for("a rotation of the worker's", PATIENCE, || root.ask(scheduled) == "t");
    }
    let failed = "SELECT coalesce(max(rotation_attempts), 0) FROM vault.secrets";
    assert_eq!(root.ask(failed), "0", "the worker had no failures");
    let log = cluster.log();
    assert!(!log.contains("deadlock") && !log.contains("WARNING"), "{log}");
}

#[test]
fn everybody_rotates_one_secret() {
    run(false);
}

#[test]
fn everybody_rotates_and_deletes_one_secret() {
    run(true);
}
