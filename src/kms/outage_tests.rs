//! The breaker inside the service: what an outage costs its callers, and how its end is noticed.

use super::*;
use crate::testing::Outage;

fn rig(limits: Limits) -> (Rig, Outage) {
    let outage = Outage::default();
    let provider = FaultyProvider::new(Probe::slow(ms(0)), Faults::default()).with_outage(outage.clone());
    (Rig::new(Arc::new(provider), limits), outage)
}

/// Makes calls until the breaker opens.
fn open(rig: &Rig) {
    rig.until("the breaker did not open", |rig| {
        rig.submit(1, unwrap(1));
        assert_eq!(rig.error().kind, ErrorKind::Unreachable);
        rig.service.status().breaker_open
    });
}

#[test]
fn an_outage_costs_callers_no_call_and_its_end_is_noticed_without_one() {
    let (rig, outage) = rig(Limits { max_retries: 1, ..LIMITS });
    outage.begin();
    open(&rig);
    // A thousand callers: all are answered, none of them asks. Probes go on meanwhile, a few a second.
    let (calls, started) = (rig.service.status().calls, Instant::now());
    for id in 0..1000 {
        rig.submit(id, Op::Generate(place(2)));
        let error = rig.error();
        assert_eq!(error.kind, ErrorKind::Unreachable);
        assert_eq!(error.message, "the key service cannot be reached");
        assert!(error.detail.unwrap().contains("injected outage") && error.hint.is_some());
    }
    let probes = rig.service.status().calls - calls;
    assert!(probes as f64 <= 1.0 + started.elapsed().as_secs_f64() / 0.25, "{probes} calls");
    assert!(rig.service.status().refused >= 1000);
    outage.end();
    // Nobody calls.
    rig.until("the end was not noticed", |rig| !rig.service.status().breaker_open);
    rig.submit(1, unwrap(1));
    assert!(rig.next().result.is_ok());
    assert_eq!(rig.service.status().breaker_opened, 1);
    rig.assert_idle();
}

#[test]
fn those_who_wait_for_a_place_or_an_attempt_are_told_when_it_opens() {
    let (rig, outage) = rig(Limits { max_in_flight: 2, max_retries: 1000, ..LIMITS });
    outage.begin();
    let started = Instant::now();
    (1..=40).for_each(|n| rig.submit(n.into(), unwrap(n)));
    let errors = rig.take(40);
    assert!(errors.values().all(|result| result.is_err()));
    // Left to their retries they would go on until their deadlines.
    assert!(started.elapsed() < PATIENCE);
    assert!(rig.service.status().calls < 40);
    rig.assert_idle();
}

#[test]
fn a_blip_is_ridden_out_by_retries() {
    let (rig, outage) = rig(LIMITS);
    outage.begin();
    (1..=100).for_each(|n| rig.submit(n.into(), unwrap(n)));
    thread::sleep(ms(300));
    outage.end();
    assert!(rig.take(100).values().all(|result| result.is_ok()));
    assert_eq!(rig.service.status().breaker_opened, 0);
}

#[test]
fn calls_that_hang_open_it_even_if_nobody_waits_to_the_end() {
    let rig = Rig::faulty("hang", LIMITS);
    for n in 1..=3 {
        rig.submit(n.into(), unwrap(n));
    }
    rig.until("no calls", |rig| rig.service.status().calls == 3);
    thread::sleep(crate::breaker::OVERDUE + ms(50));
    (1..=3).for_each(|id| assert!(rig.service.cancel(id)));
    rig.until("not noticed", |rig| rig.service.status().failures == 3);
    // Three calls without an answer, but all at once: one observation. The next one makes it an outage.
    assert!(!rig.service.status().breaker_open);
    rig.submit(4, unwrap(4));
    rig.until("no call", |rig| rig.service.status().calls == 4);
    thread::sleep(crate::breaker::OVERDUE + ms(50));
    rig.service.cancel(4);
    rig.until("the breaker did not open", |rig| rig.service.status().breaker_open);
}

#[test]
fn a_reload_closes_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = key_file(dir.path(), "key", 7);
    config.limits.max_retries = 0;
    config.faults = Some("fail=unreachable".parse().unwrap());
    let rig = Rig::started(&config);
    rig.until("the breaker did not open", |rig| {
        rig.submit(1, Op::Describe);
        rig.error();
        thread::sleep(ms(20));
        rig.service.status().breaker_open
    });
    config.faults = None;
    rig.service.reconfigure(&config).unwrap();
    assert!(!rig.service.status().breaker_open);
    rig.submit(1, Op::Describe);
    assert!(rig.next().result.is_ok());
}

#[test]
fn refusals_and_throttling_never_open_it() {
    for fault in ["fail=refused", "fail=throttled", "fail=unauthenticated", "fail=internal"] {
        let rig = Rig::faulty(fault, Limits { max_retries: 0, ..LIMITS });
        let started = Instant::now();
        while started.elapsed() < ms(1200) {
            rig.submit(1, unwrap(1));
            rig.error();
            thread::sleep(ms(20));
        }
        assert_eq!(rig.service.status().breaker_opened, 0, "{fault}");
    }
}

#[test]
fn who_was_in_an_attempt_when_it_opened_makes_no_other() {
    let silent = Probe::hanging();
    let limits = Limits { attempt_timeout: ms(600), max_retries: 1000, ..LIMITS };
    let rig = Rig::new(Arc::clone(&silent) as Arc<dyn KeyProvider>, limits);
    // Three open it; the fourth began in the middle of their attempts.
    (1..=3).for_each(|n| rig.submit(n.into(), Op::Generate(place(n))));
    thread::sleep(ms(300));
    rig.submit(4, Op::Generate(place(4)));
    // Left to its retries, of which it has a thousand, it would go on until its deadline.
    let errors = rig.take(4);
    assert!(errors.values().all(|result| result.is_err()));
    assert!(rig.service.status().breaker_open);
    let calls = silent.calls();
    assert!(calls <= 3 * 4 + 2, "{calls} calls");
    // From now on there are only probes, each of which waits for a pause and then for an answer.
    thread::sleep(2 * limits.attempt_timeout);
    let since = silent.calls() - calls;
    assert!(since <= 3, "{since} calls");
    rig.assert_idle();
}
