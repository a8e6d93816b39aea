//! Clients that reconnect with what they read while the secret rotates under them. Runs in the test process.
//!
//! A rotation waits until a client has come round once since the one before, so that in no client's round there are
//! two: what a machine under load can be asked for. `HYPERION_VAULT_TEST_ROTATIONS` raises the number (default 60).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use super::{builder, credential, logs_in, prepare, secret_for_svc};
use hyperion_vault_tests::threads::background;
use hyperion_vault_tests::{Ask, Client, Cluster, PATIENCE, wait_until};

const CLIENTS: usize = 2;

fn rotations() -> u64 {
    std::env::var("HYPERION_VAULT_TEST_ROTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(60)
}

/// What the clients saw.
#[derive(Debug, Default)]
struct Seen {
    logins: u64,
    /// Refused at the first attempt, within `grace` of reading.
    refused: u64,
    /// Refused at the first attempt, but later than that: this machine was too slow.
    late: u64,
    /// Refused again, within `grace` of reading again.
    refused_twice: u64,
}

/// Rotates under clients; `rotate` says whether it did.
fn under_clients(
    cluster: Arc<Cluster>,
    name: &'static str,
    grace: Duration,
    rotate: impl Fn(&mut Client) -> bool,
) -> Seen {
    let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new([const { AtomicU64::new(0) }; CLIENTS]));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (cluster, stop, rounds) = (Arc::clone(&cluster), Arc::clone(&stop), Arc::clone(&rounds));
            background(move || {
                let mut app = cluster.connect("app", cluster.database());
                let mut seen = Seen::default();
                while !stop.load(SeqCst) {
                    let begun = Instant::now();
                    let (username, password) = credential(&mut app, name);
                    if !logs_in(&cluster, &username, &password) {
                        *if begun.elapsed() < grace { &mut seen.refused } else { &mut seen.late } += 1;
                        let again = Instant::now();
                        let (username, password) = credential(&mut app, name);
                        let refused = !logs_in(&cluster, &username, &password);
                        seen.refused_twice += u64::from(refused && again.elapsed() < grace);
                    }
                    seen.logins += 1;
                    rounds[client].fetch_add(1, SeqCst);
                }
                seen
            })
        })
        .collect();
    let mut ops = cluster.connect("ops", cluster.database());
    let mut done = 0;
    while done < rotations() {
        // Not always at the same place in their rounds.
        std::thread::sleep(Duration::from_micros(done * 379 % 5000));
        if rotate(&mut ops) {
            done += 1;
            let before: Vec<_> = rounds.iter().map(|round| round.load(SeqCst)).collect();
            let all_round = || rounds.iter().zip(&before).all(|(now, before)| now.load(SeqCst) > *before);
            assert!(wait_until(PATIENCE, all_round), "the clients stand still");
        }
    }
    stop.store(true, SeqCst);
    clients.into_iter().map(|client| client.finish(PATIENCE)).fold(Seen::default(), |a, b| Seen {
        logins: a.logins + b.logins,
        refused: a.refused + b.refused,
        late: a.late + b.late,
        refused_twice: a.refused_twice + b.refused_twice,
    })
}

#[test]
fn a_pair_refuses_nobody() {
    let cluster = Arc::new(builder().start());
    let vault = prepare(&cluster);
    vault.session("keeper").ask(
        "SELECT vault.create_secret('db/app', generator => '{}', grace_period => '400 milliseconds',
           target => '{\"type\":\"postgres_role_pair\",\"roles\":[\"app_a\",\"app_b\"]}')",
    );
    let grace = Duration::from_millis(400);
    let seen = under_clients(Arc::clone(&cluster), "db/app", grace, |ops| {
        match ops.try_ask("SELECT vault.rotate_secret('db/app')") {
            Ok(_) => true,
            // The role whose turn it is has a credential in grace.
            Err(error) if error.code().is_some_and(|code| code.code() == "55000") => {
                std::thread::sleep(Duration::from_millis(5));
                false
            }
            Err(error) => panic!("{error:?}"),
        }
    });
    println!("pair: {seen:?}");
    assert_eq!((seen.refused, seen.refused_twice), (0, 0), "{seen:?}");
    assert!(seen.logins >= 2 * rotations());
}

/// The same clients at the same pace; that some of them are refused is the control of the test above.
#[test]
fn a_single_role_refuses_nobody_twice() {
    let cluster = Arc::new(builder().start());
    let vault = prepare(&cluster);
    drop(secret_for_svc(&vault));
    let seen = under_clients(Arc::clone(&cluster), "db/svc", Duration::MAX, |ops| {
        ops.ask("SELECT vault.rotate_secret('db/svc')");
        true
    });
    println!("single: {seen:?}");
    assert_eq!(seen.refused_twice, 0, "{seen:?}");
    assert!(seen.refused > 0, "no client was in the window: the pace proves nothing ({seen:?})");
}
