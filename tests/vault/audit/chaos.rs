//! What a client has received is in the log, exactly once, whatever was killed meanwhile.
//!
//! `HYPERION_VAULT_CHAOS_READS` sets how many reads (10,000 unless set).

use super::settle;
use hyperion_vault_tests::threads::background;
use hyperion_vault_tests::{Ask, Client, Cluster, SIGCONT, SIGINT, SIGKILL, SIGSTOP, SIGTERM, random_bytes};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const SECRETS: usize = 100;
const CLIENTS: usize = 6;

#[test]
fn every_value_a_client_received_is_in_the_table_exactly_once() {
    let reads: usize = std::env::var("HYPERION_VAULT_CHAOS_READS").map_or(10_000, |n| n.parse().unwrap());
    let roles = reads.div_ceil(SECRETS);
    let cluster = Arc::new(Cluster::builder().start());
    let vault = cluster.vault();
    // A read is known by who read what: each role reads each secret once.
    vault.root().ask(&format!(
        "DO $$ BEGIN
           FOR i IN 0..{roles} - 1 LOOP EXECUTE format('CREATE ROLE r%s IN ROLE vault_reader', i); END LOOP;
           FOR i IN 0..{SECRETS} - 1 LOOP PERFORM vault.create_secret('s/' || i, 'value ' || i); END LOOP;
         END $$"
    ));
    let next = Arc::new(AtomicUsize::new(0));
    // Reads are faster than what is to happen meanwhile: so they wait for it.
    let allowed = Arc::new(AtomicUsize::new(0));
    let received = Arc::new(Mutex::new(HashMap::<(usize, usize), usize>::new()));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (cluster, next, received) = (Arc::clone(&cluster), Arc::clone(&next), Arc::clone(&received));
            let allowed = Arc::clone(&allowed);
            background(move || {
                let mut client: Option<Client> = None;
                loop {
                    let read = next.fetch_add(1, SeqCst);
                    if read >= reads {
                        return;
                    }
                    while read >= allowed.load(SeqCst) {
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    // Only whole attempts count: one that never reached the server is made again.
                    let session = loop {
                        match client.take().map_or_else(|| cluster.try_connect("postgres", "postgres"), Ok) {
                            Ok(session) => break session,
                            Err(_) => std::thread::sleep(Duration::from_millis(20)),
                        }
                    };
                    let (role, secret) = (read / SECRETS, read % SECRETS);
                    let (session, value) = attempt(session, read, role, secret);
                    if let Some(value) = value {
                        assert_eq!(value, format!("value {secret}"));
                        *received.lock().unwrap().entry((role, secret)).or_default() += 1;
                    }
                    client = session;
                }
            })
        })
        .collect();
    let done = disturb(&cluster, &allowed, reads);
    for client in clients {
        client.finish(Duration::from_secs(240));
    }
    settle(&cluster);

    let mut root = vault.root();
    let logged: HashMap<(usize, usize), usize> = root
        .ask("SELECT substr(role, 2), substr(subject, 3), count(*) FROM vault.audit_log WHERE outcome = 'ok' AND subject LIKE 's/%' AND function = 'read_secret' GROUP BY 1, 2")
        .lines()
        .map(|line| {
            let mut parts = line.split('|').map(|part| part.parse::<usize>().unwrap());
            let mut part = || parts.next().unwrap();
            ((part(), part()), part())
        })
        .collect();
    let received = received.lock().unwrap();
    println!(
        "{reads} reads: {} values received, {} in the log, of them {} that no client got; {done}",
        received.len(),
        logged.len(),
        logged.len() - received.len()
    );
    assert!(received.len() > reads / 2, "only {} of {reads} were read", received.len());
    let missing: Vec<_> = received.keys().filter(|read| !logged.contains_key(read)).collect();
    assert!(missing.is_empty(), "received and not in the log: {missing:?}");
    let doubled: Vec<_> = logged.iter().filter(|(_, count)| **count != 1).collect();
    assert!(doubled.is_empty(), "more than once in the log: {doubled:?}");
    assert_eq!(
        root.ask("SELECT count(*), max(id) - min(id) + 1 = count(*), (SELECT sum(records) FROM vault.audit_spools) = count(*) FILTER (WHERE resolves IS NULL) FROM vault.audit_log").split_once('|').unwrap().1,
        "t|t", "ids without gaps, one row a record"
    );
}

/// One read, in one of several kinds of transaction. The session, if it lives, and the value, if one came.
fn attempt(mut session: Client, read: usize, role: usize, secret: usize) -> (Option<Client>, Option<String>) {
    let role = format!("SET LOCAL ROLE r{role}");
    let sql = format!("SELECT vault.read_secret('s/{secret}')");
    let value = (|| {
        session.batch_execute(&format!("BEGIN; {role}"))?;
        let value = session.query_one(&sql, &[])?.get::<_, String>(0);
        Ok::<_, postgres::Error>(value)
    })();
    let end = match (&value, read % 3) {
        (Ok(_), 0) => "COMMIT",
        _ => "ROLLBACK",
    };
    let session = session.batch_execute(end).is_ok().then_some(session);
    (session, value.ok())
}

/// What is done to the server while the clients read; in seven rounds, in which three of the first four come in turn, and then
/// one of the last three, which restart it.
const STEPS: usize = 28;

/// Kills this and that, and lets the clients go on by a part of their reads with each. What was done, in words.
fn disturb(cluster: &Cluster, allowed: &AtomicUsize, reads: usize) -> String {
    let mut counts = [0usize; 7];
    let started = Instant::now();
    for step in 0..STEPS {
        let what = if step % 4 == 3 { 4 + step / 4 % 3 } else { (step - step / 4) % 4 };
        allowed.store((step + 1) * reads / (STEPS + 1), SeqCst);
        std::thread::sleep(Duration::from_millis(60));
        // Its victim may not be there just now.
        while !once(cluster, what) {
            assert!(started.elapsed() < Duration::from_secs(200), "not all of it could be done: {counts:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        counts[what] += 1;
    }
    allowed.store(usize::MAX, SeqCst);
    let [terminated, cancelled, relays, stopped, backends, relay_kills, postmasters] = counts;
    format!(
        "{terminated} backends terminated, {cancelled} cancelled, relay terminated {relays} and stopped {stopped} times, \
         SIGKILL of {backends} backends, {relay_kills} relays, {postmasters} postmasters"
    )
}

/// Does one of these things. Whether it could be done.
fn once(cluster: &Cluster, what: usize) -> bool {
    let backends = cluster.pids("postgres postgres [local]");
    let random = usize::from(random_bytes::<1>()[0]);
    let victim = backends.get(random % backends.len().max(1)).copied();
    let relay = cluster.pids("hyperion_vault relay").first().copied();
    let done = match (what, victim, relay) {
        (0, Some(pid), _) | (2, _, Some(pid)) => cluster.try_kill(pid, SIGTERM),
        (1, Some(pid), _) => cluster.try_kill(pid, SIGINT),
        (3, _, Some(pid)) => {
            let stopped = cluster.try_kill(pid, SIGSTOP);
            std::thread::sleep(Duration::from_millis(30));
            stopped && cluster.try_kill(pid, SIGCONT)
        }
        (4, Some(pid), _) | (5, _, Some(pid)) => cluster.try_kill(pid, SIGKILL),
        (6, ..) => {
            cluster.kill_postmaster_9();
            cluster.start_again();
            true
        }
        _ => false,
    };
    if done && (4..6).contains(&what) {
        // The postmaster notices it a moment later.
        std::thread::sleep(Duration::from_millis(100));
        cluster.wait_ready();
    }
    done
}
