//! Where the worker's credentials come from, how new ones reach it, and where they are not to be seen. Runs in the test
//! process.
//!
//! The trap: a scan that finds nothing because it looks in the wrong place. With credentials in the environment the same
//! look into a session's environment must find them.

use super::{create, created_by, read, value};
use hyperion_vault_tests::kms::{Credentials, FakeKms};
use hyperion_vault_tests::{Ask, Client, Cluster, LogMark, sqlstate};
use std::time::Duration;

/// A session that AWS refuses is made anew, unless it is younger than this (src/kms/aws/session.rs).
const RENEWABLE: Duration = Duration::from_millis(2100);

const WARNING: &str = "AWS credentials in the server's environment are inherited by every process";

fn last_key(kms: &FakeKms) -> Option<String> {
    kms.requests().pop()?.access_key_id
}

#[test]
fn new_credentials_in_the_profile_are_used_by_the_next_call() {
    let kms = FakeKms::start();
    let cluster = Cluster::builder().aws(&kms).start();
    let vault = cluster.vault();
    let mut root = vault.root();
    create(&mut root, "first").unwrap();
    let mut old = Credentials::example();
    // A user's keys that are replaced, a role's that are, and back.
    for (i, new) in
        [Credentials::random(), Credentials::random_session(), Credentials::random()].into_iter().enumerate()
    {
        std::thread::sleep(RENEWABLE);
        kms.add_credentials(new.clone());
        cluster.write_aws_credentials(&new);
        if i == 1 {
            kms.remove_credentials(&old.access_key_id);
        } else {
            kms.expire_credentials(&old.access_key_id);
        }
        // The very next call, nobody is refused.
        let name = format!("new/{i}");
        create(&mut root, &name).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        assert_eq!(last_key(&kms).as_ref(), Some(&new.access_key_id));
        assert_eq!(read(&mut root, &name).unwrap(), value(&name));
        old = new;
    }

    // Expired wherever one looks.
    std::thread::sleep(RENEWABLE);
    kms.expire_credentials(&old.access_key_id);
    for _ in 0..2 {
        let error = sqlstate!(create(&mut root, "never"), "38000", message: "ExpiredTokenException");
        assert!(error.detail().is_some_and(|text| text.contains("expired")), "{error:?}");
        assert!(error.hint().is_some_and(|text| text.contains("Renew the credentials")), "{error:?}");
    }
    // No file at all any more, which is found out when the session is made anew.
    std::fs::remove_file(cluster.aws_credentials_path()).unwrap();
    std::thread::sleep(RENEWABLE);
    sqlstate!(create(&mut root, "never"), "38000", message: "no AWS credentials", hint: "aws_profile");
    let right = Credentials::random();
    kms.add_credentials(right.clone());
    cluster.write_aws_credentials(&right);
    std::thread::sleep(RENEWABLE);
    created_by(&mut root, "mended");
    assert_eq!(last_key(&kms), Some(right.access_key_id));
    assert_eq!(root.ask("SELECT vault.status() #>> '{workers,0,starts}'"), "1");
}

/// The environment that a session hands on, as a superuser reads it. (The server overwrites what /proc shows of it.)
fn environment(root: &mut Client) -> String {
    root.ask(
        "DROP TABLE IF EXISTS environment; CREATE TEMP TABLE environment (line text);
         COPY environment FROM PROGRAM 'env';",
    );
    let found = root.ask("SELECT string_agg(line, ' ') FROM environment");
    assert!(found.contains("AWS_EC2_METADATA_DISABLED"), "the wrong place");
    found
}

/// Where secrets of the credentials show: the log, the settings, the environment.
fn shown(cluster: &Cluster, root: &mut Client, credentials: &Credentials) -> Vec<&'static str> {
    let settings =
        root.ask("SELECT string_agg(concat(name, '=', setting, boot_val, reset_val), ' ') FROM pg_settings");
    let files = root.ask("SELECT string_agg(concat(name, setting), ' ') FROM pg_file_settings");
    let status = root.ask("SELECT vault.status()");
    let processes = cluster.processes();
    let places = [
        ("log", cluster.log()),
        ("settings", settings),
        ("file settings", files),
        ("status", status),
        ("environment", environment(root)),
        ("titles", processes.iter().map(|process| process.title.clone()).collect()),
    ];
    let secrets = [Some(&credentials.secret_access_key), credentials.session_token.as_ref()];
    let seen = |text: &str| secrets.iter().flatten().any(|secret| text.contains(secret.as_str()));
    places.into_iter().filter(|(_, text)| seen(text)).map(|(place, _)| place).collect()
}

#[test]
fn credentials_of_a_profile_are_seen_nowhere() {
    let kms = FakeKms::start();
    let credentials = Credentials::random_session();
    kms.add_credentials(credentials.clone());
    let cluster =
        Cluster::builder().aws_at(&kms.endpoint(), kms.region(), &kms.key_arn(), &credentials).start();
    let vault = cluster.vault();
    let mut root = vault.root();
    create(&mut root, "a").unwrap();
    // Errors about them too.
    kms.expire_credentials(&credentials.access_key_id);
    sqlstate!(create(&mut root, "b"), "38000");
    kms.remove_credentials(&credentials.access_key_id);
    std::thread::sleep(RENEWABLE);
    let error = sqlstate!(create(&mut root, "b"), "38000", message: "UnrecognizedClientException");
    assert!(!format!("{error:?}").contains(&credentials.secret_access_key));
    assert_eq!(shown(&cluster, &mut root, &credentials), Vec::<&str>::new());
    assert!(!cluster.log_contains(LogMark::START, WARNING));
}

#[test]
fn credentials_in_the_environment_are_warned_of() {
    let kms = FakeKms::start();
    for credentials in [Credentials::random_session(), Credentials::random()] {
        kms.add_credentials(credentials.clone());
        let cluster = Cluster::builder().aws_env(&kms, &credentials).start();
        let vault = cluster.vault();
        let mut root = vault.root();
        create(&mut root, "a").unwrap();
        let log = cluster.log();
        assert_eq!(log.matches(WARNING).count(), 1, "{log}");
        let token = if credentials.session_token.is_some() { ", AWS_SESSION_TOKEN" } else { "" };
        assert!(log.contains(&format!("Found AWS_SECRET_ACCESS_KEY{token}.")), "{log}");
        assert!(log.contains("hyperion_vault.aws_profile"), "{log}");
        // That is what the warning is about: any session's environment has them. Nothing else does.
        assert_eq!(shown(&cluster, &mut root, &credentials), ["environment"]);
        // A profile that the settings name comes first.
        sqlstate!(with_profile(&cluster, &mut root), "38000", message: "no AWS credentials", hint: "aws_profile");
    }
}

/// Creates with a profile set that no file has, once the worker has that setting.
fn with_profile(cluster: &Cluster, root: &mut Client) -> Result<u64, postgres::Error> {
    cluster.set_conf("hyperion_vault.aws_profile", "absent");
    let mut last = None;
    let refused = hyperion_vault_tests::wait_until(hyperion_vault_tests::PATIENCE, || {
        let name = format!("probe/{}", hyperion_vault_tests::random_text(12));
        last = Some(create(root, &name));
        last.as_ref().is_some_and(Result::is_err)
    });
    assert!(refused, "the environment's credentials are used beside a profile that is set");
    last.expect("it was tried at least once")
}
