//! Answers on the calling thread: who gives them, what they count, and what sends a question to the threads instead.

use super::*;

fn local(dir: &Path, faults: &str) -> ServiceConfig {
    let mut config = key_file(dir, "key", 7);
    config.faults = (!faults.is_empty()).then(|| faults.parse().unwrap());
    config
}

/// Nothing went through a thread: no wake-up, no completion, no job.
fn assert_no_hand_over(rig: &Rig) {
    assert_eq!(rig.wakes.load(SeqCst), 0, "somebody else than the asking thread had a part in it");
    rig.assert_idle();
}

#[test]
fn the_local_provider_answers_on_the_asking_thread() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::started(&local(dir.path(), ""));
    let ask = |op| rig.service.serve_now(&op).expect("the local provider answers at once");
    let Ok(Outcome::Generated(made)) = ask(Op::Generate(place(1))) else { panic!() };
    let op = |n, wrapped: &[u8]| Op::Unwrap { context: place(n), stored: stored(wrapped) };
    assert_eq!(key(&ask(op(1, made.wrapped.as_bytes()))), *made.dek.as_bytes());
    let refused = ask(op(2, made.wrapped.as_bytes())).unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Unauthenticated);
    let Ok(Outcome::Described(described)) = ask(Op::Describe) else { panic!() };
    assert_eq!(described.key_id, made.by.key_id);
    let Ok(Outcome::Generated(other)) = ask(Op::Generate(place(1))) else { panic!() };
    assert_ne!(other.dek.as_bytes(), made.dek.as_bytes(), "each job gets its own");
    assert_no_hand_over(&rig);

    // Counted as the same calls through the threads are.
    let status = rig.service.status();
    assert_eq!((status.calls, status.failures, status.retries, status.coalesced), (5, 1, 0, 0));
    assert_eq!(status.last_error.unwrap().error.kind, ErrorKind::Unauthenticated);
    assert!(status.last_success_at.is_some() && !status.breaker_open);
}

#[test]
fn both_ways_lead_to_the_same_key() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::started(&local(dir.path(), ""));
    let Some(Ok(Outcome::Generated(made))) = rig.service.serve_now(&Op::Generate(place(1))) else { panic!() };
    rig.submit(1, Op::Unwrap { context: place(1), stored: stored(made.wrapped.as_bytes()) });
    assert_eq!(key(&rig.next().result), *made.dek.as_bytes());
    rig.assert_idle();
}

#[test]
fn a_provider_that_may_wait_is_asked_by_the_threads() {
    let probe = Rig::new(Probe::slow(ms(0)), LIMITS);
    assert!(probe.service.serve_now(&Op::Describe).is_none());
    let dir = tempfile::tempdir().unwrap();
    for faults in ["delay_ms=1", "hang=1", "fail=refused,times=1", "panic=1", "delay_ms=1,panic_now=1"] {
        let rig = Rig::started(&local(dir.path(), faults));
        assert!(rig.service.serve_now(&Op::Describe).is_none(), "{faults}");
        assert_eq!(rig.service.status().calls, 0, "nothing was asked");
    }
    // A breaker that is open, or a provider that is away, is the threads' matter too.
    let outage = crate::testing::Outage::default();
    let inner = local(dir.path(), "").provider.open().unwrap();
    let rig =
        Rig::new(Arc::new(FaultyProvider::new(inner, Faults::default()).with_outage(outage.clone())), LIMITS);
    assert!(rig.service.serve_now(&Op::Describe).unwrap().is_ok());
    outage.begin();
    assert_eq!(rig.service.serve_now(&Op::Describe).unwrap().unwrap_err().kind, ErrorKind::Unreachable);
}

#[test]
fn a_panic_fails_its_call_alone() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::started(&local(dir.path(), "panic_now=1"));
    let error = rig.service.serve_now(&Op::Generate(place(1))).unwrap().unwrap_err();
    assert_eq!(
        (error.kind, error.message.as_str()),
        (ErrorKind::Internal, "key service call ended unexpectedly")
    );
    assert!(rig.service.serve_now(&Op::Generate(place(1))).unwrap().is_ok());
    let status = rig.service.status();
    assert_eq!((status.calls, status.failures), (2, 1));
    assert_no_hand_over(&rig);
}

#[test]
fn it_follows_reloads_and_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let good = local(dir.path(), "");
    let mut rig = Rig::started(&good);
    assert!(rig.service.serve_now(&Op::Describe).is_some());

    rig.service.reconfigure(&local(dir.path(), "delay_ms=1")).unwrap();
    assert!(rig.service.serve_now(&Op::Describe).is_none());
    rig.service.reconfigure(&good).unwrap();
    assert!(rig.service.serve_now(&Op::Describe).is_some());

    // Without a provider each caller is told why, by the way that has the words for it.
    let mut missing = good.clone();
    missing.provider = ProviderConfig::Local(LocalConfig {
        key_file: dir.path().join("none"),
        data_directory: dir.path().join("data"),
    });
    rig.service.reconfigure(&missing).unwrap_err();
    assert!(rig.service.serve_now(&Op::Describe).is_none());
    rig.service.reconfigure(&good).unwrap();
    assert!(rig.service.serve_now(&Op::Describe).is_some());

    rig.service.shutdown(PATIENCE);
    assert!(rig.service.serve_now(&Op::Describe).is_none(), "shutting down");
}
