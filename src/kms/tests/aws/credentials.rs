//! Where credentials come from: each link of the SDK's standard chain, and what happens as they end.
//!
//! Each in a child process. That a call goes well proves the credentials: the fake checks signature and session token
//! against those it knows. The traps: an answer "no credentials" to what is an outage of the metadata service (it must
//! be tried again), and temporary credentials that live on in a long-lived worker after they have ended.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use hyperion_vault_tests::kms::{Credentials, FakeKms, Op};
use hyperion_vault_tests::{PATIENCE, wait_until};
use serde_json::json;

use crate::child::{Child, Launch};
use crate::responder::{Reply, Request, Responder};

const ROLE: &str = "arn:aws:iam::111122223333:role/vault";
const HOUR: Duration = Duration::from_secs(3600);

/// Temporary credentials that the fake accepts.
fn session(kms: &FakeKms) -> Credentials {
    let credentials = Credentials::random_session();
    kms.add_credentials(credentials.clone());
    credentials
}

fn permanent(kms: &FakeKms) -> Credentials {
    let credentials = Credentials::random();
    kms.add_credentials(credentials.clone());
    credentials
}

/// A profile file's section.
fn profile(heading: &str, credentials: &Credentials) -> String {
    let Credentials { access_key_id, secret_access_key, session_token } = credentials;
    let token =
        session_token.iter().map(|token| format!("aws_session_token = {token}\n")).collect::<String>();
    format!(
        "[{heading}]\naws_access_key_id = {access_key_id}\naws_secret_access_key = {secret_access_key}\n{token}"
    )
}

fn in_future(lifetime: Duration) -> String {
    DateTime::from(SystemTime::now() + lifetime).fmt(Format::DateTime).unwrap()
}

/// As container and instance metadata services give them.
fn as_json(credentials: &Credentials, lifetime: Duration) -> String {
    json!({
        "Code": "Success",
        "Type": "AWS-HMAC",
        "LastUpdated": in_future(Duration::ZERO),
        "AccessKeyId": credentials.access_key_id,
        "SecretAccessKey": credentials.secret_access_key,
        "Token": credentials.session_token,
        "Expiration": in_future(lifetime),
    })
    .to_string()
}

/// As STS gives them to `action`.
fn as_xml(action: &str, credentials: &Credentials, lifetime: Duration) -> String {
    format!(
        "<{action}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><{action}Result><Credentials>\
         <AccessKeyId>{}</AccessKeyId><SecretAccessKey>{}</SecretAccessKey><SessionToken>{}</SessionToken>\
         <Expiration>{}</Expiration></Credentials><AssumedRoleUser><Arn>{ROLE}</Arn>\
         <AssumedRoleId>AROA:vault</AssumedRoleId></AssumedRoleUser></{action}Result>\
         <ResponseMetadata><RequestId>1</RequestId></ResponseMetadata></{action}Response>",
        credentials.access_key_id,
        credentials.secret_access_key,
        credentials.session_token.as_deref().unwrap(),
        in_future(lifetime)
    )
}

/// The instance metadata service, version 2: a token first, then the role, then its credentials.
fn instance_metadata(request: &Request, credentials: impl Fn() -> String) -> Reply {
    let (method, path) = (request.method.as_str(), request.path.as_str());
    if (method, path) == ("PUT", "/latest/api/token") {
        return Some((200, "the-token".into()));
    }
    if request.header("x-aws-ec2-metadata-token") != Some("the-token") {
        return Some((401, String::new()));
    }
    match (method, path) {
        ("GET", "/latest/meta-data/iam/security-credentials/") => Some((200, "vault-role".into())),
        ("GET", "/latest/meta-data/iam/security-credentials/vault-role") => Some((200, credentials())),
        _ => Some((404, String::new())),
    }
}

/// With this metadata service.
fn on_instance(kms: &FakeKms, service: &Responder) -> Launch {
    Launch::of(kms)
        .without("AWS_EC2_METADATA_DISABLED")
        .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", &service.url())
}

fn in_container(kms: &FakeKms, service: &Responder) -> Launch {
    Launch::of(kms)
        .env("AWS_CONTAINER_CREDENTIALS_FULL_URI", &format!("{}/credentials", service.url()))
        .env("AWS_CONTAINER_AUTHORIZATION_TOKEN", "let-me-in")
}

fn container(request: &Request, credentials: impl Fn() -> String) -> Reply {
    if request.header("authorization") != Some("let-me-in") {
        return Some((401, String::new()));
    }
    assert_eq!((request.method.as_str(), request.path.as_str()), ("GET", "/credentials"));
    Some((200, credentials()))
}

/// With a web identity token in a file, and STS there.
fn with_web_identity(kms: &FakeKms, sts: &Responder) -> Launch {
    let launch = Launch::of(kms).file("token", "the.web.token");
    let token = launch.path("token");
    launch
        .env("AWS_WEB_IDENTITY_TOKEN_FILE", &token)
        .env("AWS_ROLE_ARN", ROLE)
        .env("AWS_ENDPOINT_URL_STS", &sts.url())
        .env("AWS_REGION", "eu-central-1")
}

/// A service that gives temporary credentials.
struct Source {
    name: &'static str,
    start: fn(&FakeKms, &Responder) -> Launch,
    answer: fn(&Request, &Credentials, Duration) -> Reply,
}

const SOURCES: [Source; 3] = [
    Source {
        name: "STS",
        start: with_web_identity,
        answer: |_, credentials, lifetime| {
            Some((200, as_xml("AssumeRoleWithWebIdentity", credentials, lifetime)))
        },
    },
    Source {
        name: "container",
        start: in_container,
        answer: |request, credentials, lifetime| container(request, || as_json(credentials, lifetime)),
    },
    Source {
        name: "instance",
        start: on_instance,
        answer: |request, credentials, lifetime| {
            instance_metadata(request, || as_json(credentials, lifetime))
        },
    },
];

/// Calls, and checks who the fake says did.
#[track_caller]
fn calls_as(child: &mut Child, kms: &FakeKms, credentials: &Credentials) {
    for _ in 0..2 {
        assert_eq!(child.ask("generate").ok(), kms.key_arn());
        let request = kms.requests().pop().unwrap();
        assert_eq!(request.access_key_id.as_ref(), Some(&credentials.access_key_id));
        assert_eq!(request.header("x-amz-security-token"), credentials.session_token.as_deref());
    }
}

#[test]
fn from_the_environment() {
    let kms = FakeKms::start();
    for credentials in [permanent(&kms), session(&kms)] {
        calls_as(&mut Launch::of(&kms).credentials(&credentials).start(), &kms, &credentials);
    }
}

#[test]
fn from_a_profile() {
    let kms = FakeKms::start();
    let (default, named, other) = (permanent(&kms), session(&kms), permanent(&kms));
    let launch = || {
        Launch::of(&kms)
            .file(".aws/credentials", &(profile("default", &default) + &profile("vault", &named)))
            // The other file heads its sections differently.
            .file(".aws/config", &profile("profile other", &other))
    };
    calls_as(&mut launch().start(), &kms, &default);
    calls_as(&mut launch().env("AWS_PROFILE", "vault").start(), &kms, &named);
    calls_as(&mut launch().setting("profile", "vault").start(), &kms, &named);
    calls_as(&mut launch().setting("profile", "other").start(), &kms, &other);
    // What the settings name is before whatever the environment says.
    let stray = Credentials::random();
    let stray = launch().credentials(&stray).env("AWS_PROFILE", "other").setting("profile", "vault");
    calls_as(&mut stray.start(), &kms, &named);
    // Files elsewhere.
    let elsewhere = launch().file("mine", &profile("default", &other));
    let path = elsewhere.path("mine");
    calls_as(&mut elsewhere.env("AWS_SHARED_CREDENTIALS_FILE", &path).start(), &kms, &other);
}

#[test]
fn a_profile_that_is_not_there_is_a_mistake_in_the_settings() {
    let kms = FakeKms::start();
    let good = permanent(&kms);
    // Even where other credentials could be had: another identity than the one asked for must not be used.
    let mut child = Launch::of(&kms)
        .file(".aws/credentials", &profile("default", &good))
        .credentials(&good)
        .setting("profile", "vault")
        .start();
    let error = child.ask("describe").err("misconfigured");
    assert!(error.hint.contains("aws_profile") && error.detail.contains("vault"), "{error:?}");
    assert_eq!(kms.counters().connections, 0);
}

#[test]
fn from_a_role_that_a_profile_assumes() {
    let kms = FakeKms::start();
    let (source, role) = (Credentials::random(), session(&kms));
    let sts = Responder::start({
        let (source, role) = (source.clone(), role.clone());
        move |request| {
            let signed = request.header("authorization").unwrap_or_default();
            assert!(signed.contains(&source.access_key_id), "{signed}");
            assert!(request.body.contains("Action=AssumeRole&"), "{}", request.body);
            Some((200, as_xml("AssumeRole", &role, HOUR)))
        }
    });
    let files = profile("source", &source)
        + &format!("[vault]\nrole_arn = {ROLE}\nsource_profile = source\nregion = eu-central-1\n");
    let launch = || Launch::of(&kms).file(".aws/credentials", &files).env("AWS_ENDPOINT_URL_STS", &sts.url());
    calls_as(&mut launch().env("AWS_PROFILE", "vault").start(), &kms, &role);
    calls_as(&mut launch().setting("profile", "vault").start(), &kms, &role);
    assert_eq!(sts.seen().len(), 2, "credentials are kept until they end");
    // The profile's region is that of the calls, too.
    let by_id = Launch::new(kms.key_id()).endpoint(&kms.endpoint()).setting("profile", "vault");
    let by_id = by_id.file(".aws/credentials", &files).env("AWS_ENDPOINT_URL_STS", &sts.url());
    calls_as(&mut by_id.start(), &kms, &role);
}

#[test]
fn from_a_web_identity_token() {
    let kms = FakeKms::start();
    let role = session(&kms);
    let sts = Responder::start({
        let role = role.clone();
        move |request| {
            assert!(request.body.contains("WebIdentityToken=the.web.token"), "{}", request.body);
            Some((200, as_xml("AssumeRoleWithWebIdentity", &role, HOUR)))
        }
    });
    calls_as(&mut with_web_identity(&kms, &sts).start(), &kms, &role);
}

#[test]
fn from_a_container_and_from_an_instance() {
    let kms = FakeKms::start();
    let role = session(&kms);
    let given = role.clone();
    let service = Responder::start(move |request| container(request, || as_json(&given, HOUR)));
    calls_as(&mut in_container(&kms, &service).start(), &kms, &role);
    let given = role.clone();
    let service = Responder::start(move |request| instance_metadata(request, || as_json(&given, HOUR)));
    calls_as(&mut on_instance(&kms, &service).start(), &kms, &role);
}

/// Until a child calls as somebody else; every call on the way must go well.
#[track_caller]
fn until_called_as(child: &mut Child, kms: &FakeKms, credentials: &Credentials) {
    let renewed = wait_until(PATIENCE, || {
        child.ask("describe").ok();
        kms.requests().pop().unwrap().access_key_id.as_ref() == Some(&credentials.access_key_id)
    });
    assert!(renewed, "the credentials were not renewed");
}

#[test]
fn temporary_credentials_are_renewed_before_they_end() {
    for Source { name, start, answer } in SOURCES {
        let kms = FakeKms::start();
        let (first, second) = (session(&kms), session(&kms));
        let later = Arc::new(AtomicBool::new(false));
        let service = Responder::start({
            let (first, second, later) = (first.clone(), second.clone(), Arc::clone(&later));
            move |request| {
                // Set between two calls, and so seen by the second.
                if later.load(Ordering::SeqCst) {
                    answer(request, &second, HOUR)
                } else {
                    // The SDK asks for others ten seconds or less before the end.
                    answer(request, &first, Duration::from_secs(8))
                }
            }
        });
        let mut child = start(&kms, &service).start();
        child.ask("describe").ok();
        assert_eq!(kms.requests().pop().unwrap().access_key_id.as_ref(), Some(&first.access_key_id));
        later.store(true, Ordering::SeqCst);
        until_called_as(&mut child, &kms, &second);
        assert_eq!(kms.counters().failures, 0, "{name}: ended credentials were used");
    }
}

#[test]
fn credentials_that_aws_ends_early_are_replaced_within_the_call() {
    let kms = FakeKms::start();
    let (first, second) = (session(&kms), session(&kms));
    let current = Arc::new(Mutex::new(first.clone()));
    let service = Responder::start({
        let current = Arc::clone(&current);
        move |request| container(request, || as_json(&current.lock().unwrap(), HOUR))
    });
    let mut child = in_container(&kms, &service).start();
    child.ask("describe").ok();
    *current.lock().unwrap() = second.clone();
    kms.expire_credentials(&first.access_key_id);
    replaced(&mut child, &kms);
    calls_as(&mut child, &kms, &second);
}

#[test]
fn a_rewritten_profile_is_read_again_when_the_old_one_is_refused() {
    let kms = FakeKms::start();
    let (first, second) = (permanent(&kms), permanent(&kms));
    let mut child = Launch::of(&kms)
        .file(".aws/credentials", &profile("vault", &first))
        .setting("profile", "vault")
        .start();
    calls_as(&mut child, &kms, &first);
    child.rewrite(".aws/credentials", &profile("vault", &second));
    calls_as(&mut child, &kms, &first);
    // Deleted in IAM, as after a rotation of access keys.
    kms.remove_credentials(&first.access_key_id);
    replaced(&mut child, &kms);
    calls_as(&mut child, &kms, &second);
}

/// Calls until one goes well, which it must within the interval of renewals, and with one request more than usual.
#[track_caller]
fn replaced(child: &mut Child, kms: &FakeKms) {
    let went_well = wait_until(PATIENCE, || {
        kms.reset_counters();
        let answer = child.ask("describe");
        match answer.kind() {
            "" => assert_eq!((answer.ok(), kms.calls(Op::DescribeKey)), (kms.key_arn(), 2)),
            _ => {
                let error = answer.err("refused");
                assert!(error.message.contains("does not accept the credentials"), "{error:?}");
                assert_eq!(kms.calls(Op::DescribeKey), 1);
            }
        }
        answer.kind().is_empty()
    });
    assert!(went_well, "refused credentials were not replaced");
}

#[test]
fn without_any_credentials_it_says_so_at_once() {
    let kms = FakeKms::start();
    let mut child = Launch::of(&kms).start();
    for call in ["describe", "generate"] {
        let error = child.ask(call).err("misconfigured");
        assert!(error.message.contains("no AWS credentials"), "{error:?}");
        assert!(error.hint.contains("hyperion_vault.aws_profile"), "{error:?}");
        assert!(error.took < Duration::from_secs(5), "{error:?}");
    }
    assert_eq!(kms.counters().connections, 0);
    child.stop();
}

/// Sources that cannot give credentials now but may later, so that a call is worth repeating.
#[test]
fn a_source_of_credentials_that_is_away_is_an_outage_that_passes() {
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Trouble {
        Silent,
        Broken,
    }
    let mut handles = Vec::new();
    for Source { name, start, answer } in SOURCES {
        for trouble in [Trouble::Silent, Trouble::Broken] {
            // Most of their time they wait: at one time they take no longer than one.
            handles.push(std::thread::spawn(move || {
                let kms = FakeKms::start();
                let role = session(&kms);
                let well = Arc::new(AtomicBool::new(false));
                let service = Responder::start({
                    let (role, well) = (role.clone(), Arc::clone(&well));
                    move |request| match trouble {
                        _ if well.load(Ordering::SeqCst) => answer(request, &role, HOUR),
                        Trouble::Silent => None,
                        Trouble::Broken => Some((500, "out of order".into())),
                    }
                });
                let limit = Duration::from_secs(3);
                let mut child = start(&kms, &service).attempt(limit).start();
                let error = child.ask("describe").err("unreachable|timed_out");
                assert!(error.took < limit + Duration::from_secs(2), "{name} {trouble:?}: {error:?}");
                assert!(!service.seen().is_empty(), "it was not asked");
                well.store(true, Ordering::SeqCst);
                let recovered = wait_until(PATIENCE, || child.ask("describe").kind().is_empty());
                assert!(
                    recovered,
                    "{name} {trouble:?}: still no credentials: {:?}; {:#?}",
                    child.ask("describe").err("unreachable|timed_out|misconfigured|refused"),
                    service.seen()
                );
                calls_as(&mut child, &kms, &role);
                child.stop();
            }));
        }
    }
    for handle in handles {
        handle.join().unwrap();
    }
}
