//! Endpoints from the environment, from profiles and behind proxies: no data key leaves this machine without TLS.
//!
//! 0.0.0.0 is no loopback address to us, but on Linux a connection to it reaches this machine: so it can be seen that
//! nothing is sent, and that it would arrive. The trap: a check of the setting alone, where the SDK also takes endpoints
//! from three other places.

use std::time::Duration;

use hyperion_vault_kms::{AwsConfig, AwsProvider, ErrorKind};
use hyperion_vault_tests::kms::{Credentials, FakeKms};

use crate::child::Launch;
use crate::responder::Responder;

fn launch(kms: &FakeKms) -> Launch {
    Launch::new(&kms.key_arn()).credentials(&Credentials::example())
}

#[test]
fn an_endpoint_without_tls_is_refused_wherever_it_comes_from() {
    let kms = FakeKms::start();
    let plain = format!("http://0.0.0.0:{}", kms.port());
    let loopback = kms.endpoint();
    type Set = fn(Launch, &str) -> Launch;
    let places: [(&str, Set); 4] = [
        ("AWS_ENDPOINT_URL", |launch, url| launch.env("AWS_ENDPOINT_URL", url)),
        ("AWS_ENDPOINT_URL_KMS", |launch, url| launch.env("AWS_ENDPOINT_URL_KMS", url)),
        ("the profile", |launch, url| {
            launch.file(".aws/config", &format!("[default]\nendpoint_url = {url}\n"))
        }),
        ("the profile's services", |launch, url| {
            let text =
                format!("[default]\nservices = mine\n[services mine]\nkms =\n  endpoint_url = {url}\n");
            launch.file(".aws/config", &text)
        }),
    ];
    for (place, set) in places {
        let mut child = set(launch(&kms), &plain).start();
        for call in ["generate", "describe"] {
            let error = child.ask(call).err("misconfigured");
            assert!(error.message.contains("not https"), "{place}: {error:?}");
            assert!(error.hint.contains("https"), "{place}: {error:?}");
        }
        assert_eq!(kms.counters().connections, 0, "{place}");
        // The place is one that counts: an endpoint there that may be used, is.
        set(launch(&kms), &loopback).start().ask("generate").ok();
        assert_eq!(kms.counters().connections, 1, "{place}");
        // The setting is before all of them.
        set(launch(&kms), &plain).endpoint(&loopback).start().ask("generate").ok();
        kms.reset_counters();
    }
}

#[test]
fn the_setting_itself_is_refused_before_any_call() {
    let endpoint_url = Some("http://0.0.0.0:4000".to_owned());
    let config = AwsConfig { key_id: "alias/main".into(), endpoint_url, ..AwsConfig::default() };
    let error = AwsProvider::open(&config).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Misconfigured);
    assert!(error.message.contains("TLS") && error.hint.is_some(), "{error:?}");
}

/// A proxy would be given the call in clear, even one that is meant for loopback.
#[test]
fn proxies_of_the_environment_are_not_used() {
    let kms = FakeKms::start();
    let proxy = Responder::start(|_| Some((200, "{}".into())));
    let mut launch = launch(&kms).endpoint(&kms.endpoint());
    for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        launch = launch.env(name, &proxy.url());
    }
    launch.start().ask("generate").ok();
    assert!(proxy.seen().is_empty());
}

#[test]
fn a_name_that_does_not_resolve_is_an_outage_and_no_thread_waits_for_it() {
    let kms = FakeKms::start();
    let limit = Duration::from_secs(10);
    // Reserved for this (RFC 6761).
    let mut child = launch(&kms).endpoint("https://kms.invalid").attempt(limit).start();
    for call in ["generate", "describe"] {
        let error = child.ask(call).err("unreachable|timed_out");
        assert!(error.took < limit + Duration::from_secs(2), "{error:?}");
        assert!(error.hint.contains("endpoint"), "{error:?}");
    }
    child.stop();
}

#[test]
fn nobody_at_the_endpoint_is_an_outage() {
    let kms = FakeKms::start();
    let port = {
        let gone = Responder::start(|_| None);
        gone.port()
    };
    for scheme in ["http", "https"] {
        let mut child = launch(&kms).endpoint(&format!("{scheme}://127.0.0.1:{port}")).start();
        let error = child.ask("describe").err("unreachable");
        assert!(error.detail.contains("refused"), "{error:?}");
        assert!(error.took < Duration::from_secs(5), "{error:?}");
    }
    // Somebody who does not speak TLS.
    let mut child = launch(&kms).endpoint(&format!("https://127.0.0.1:{}", kms.port())).start();
    child.ask("describe").err("unreachable");
    assert_eq!(kms.counters().total_calls(), 0);
}
