//! The settings of `kms_mode = aws`: what is refused with which reason, and what a vault does that lacks one. Runs in the
//! test process. That they exist, who sees them and when they change is in tests/vault/install/settings.rs.

use super::{create, read, value};
use crate::watch::status;
use hyperion_vault_tests::kms::FakeKms;
use hyperion_vault_tests::{Client, Cluster, KeyFile, PATIENCE, sqlstate, wait_for};

/// Name, bad value, part of what is said about it.
const BAD: [(&str, &str, &str); 16] = [
    ("kms_key_id", "not a key", "letters, digits and hyphens"),
    ("kms_key_id", "alias/", "character that none may have"),
    ("kms_key_id", "alias/a b", "character that none may have"),
    (
        "kms_key_id",
        "arn:aws:s3:eu-central-1:111122223333:key/1234",
        "arn:partition:kms:region:account:key/id",
    ),
    ("kms_key_id", "arn:aws:kms:eu-central-1:1111:key/1234", "account is malformed"),
    ("kms_key_id", "arn:aws:kms:eu-central-1:111122223333:grant/1234", "neither key/id nor alias/name"),
    ("kms_region", "EU-CENTRAL-1", "eu-central-1"),
    ("kms_region", "eu central 1", "not an AWS region"),
    ("kms_endpoint_url", "http://kms.eu-central-1.amazonaws.com", "without TLS"),
    ("kms_endpoint_url", "http://10.0.0.1:8080", "without TLS"),
    ("kms_endpoint_url", "kms.eu-central-1.amazonaws.com", "no scheme"),
    ("kms_endpoint_url", "https://user:word@host", "user name"),
    ("kms_endpoint_url", "ftp://127.0.0.1", "neither https nor http"),
    ("kms_endpoint_url", "https://host/?x=1", "may not have"),
    ("aws_profile", "a]b", "not the name of a profile"),
    ("aws_profile", "[default]", "not the name of a profile"),
];

#[test]
fn bad_values_are_refused_with_the_reason() {
    let kms = FakeKms::start();
    let cluster = Cluster::builder().aws(&kms).start();
    let vault = cluster.vault();
    let mut root = vault.root();
    create(&mut root, "a").unwrap();
    let conf = std::fs::read_to_string(cluster.data_dir().join("postgresql.conf")).unwrap();
    for (name, value, reason) in BAD {
        let name = format!("hyperion_vault.{name}");
        let before = cluster.show(&name);
        let error = sqlstate!(cluster.try_set_conf(&name, value), "22023", message: &name);
        let said = [error.detail(), error.hint()].map(Option::unwrap_or_default).concat();
        assert!(said.contains(reason), "{name} = {value:?}: {error:?}");
        // In the file, where nobody checked it.
        let mark = cluster.log_mark();
        cluster.append_conf(&name, value);
        cluster.reload();
        cluster.wait_for_log(mark, &format!("invalid value for parameter \"{name}\""), PATIENCE);
        cluster.wait_for_log(mark, reason, PATIENCE);
        assert_eq!(cluster.show(&name), before);
        std::fs::write(cluster.data_dir().join("postgresql.conf"), &conf).unwrap();
    }
    create(&mut root, "b").unwrap();
    for (name, value) in [
        ("kms_key_id", "alias/main"),
        ("kms_endpoint_url", "https://vpce-1.kms.eu-central-1.vpce.amazonaws.com"),
        ("kms_endpoint_url", "http://[::1]:4566"),
        ("kms_region", "us-gov-west-1"),
        ("aws_profile", "with blanks"),
    ] {
        let name = format!("hyperion_vault.{name}");
        cluster.set_conf(&name, value);
        assert_eq!(cluster.show(&name), value);
        cluster.reset_conf(&name);
    }
}

/// Tries until the worker has the setting that makes it refuse.
fn until_refused(root: &mut Client, message: &str, hint: &str) {
    let mut n = 0;
    let mut last = None;
    wait_for("the setting to be in force", PATIENCE, || {
        n += 1;
        last = create(root, &format!("try/{message}/{n}")).err();
        last.is_some()
    });
    sqlstate!(Err::<(), _>(last.expect("it was refused")), "38000", message: message, hint: hint);
}

#[test]
fn a_vault_without_key_or_region_says_what_to_set() {
    let kms = FakeKms::start();
    let cluster = Cluster::builder().key_file(KeyFile::None).conf("hyperion_vault.kms_mode", "aws").start();
    let vault = cluster.vault();
    let (mut root, mut ops) = (vault.root(), vault.ops());
    // The default settings of a new installation: nothing hangs, and the log says it too.
    sqlstate!(create(&mut ops, "a"), "38000", message: "hyperion_vault.kms_key_id is not set", hint: "ARN or alias");
    sqlstate!(create(&mut ops, "a"), "38000");
    let shown = status(&mut root);
    assert_eq!((&shown["kms"]["mode"], &shown["kms"]["usable"]), (&"aws".into(), &false.into()), "{shown}");
    assert_eq!((&shown["workers"][0]["running"], &shown["workers"][0]["starts"]), (&true.into(), &1.into()));
    assert!(cluster.log().contains("WARNING:  hyperion_vault: hyperion_vault.kms_key_id is not set"));
    drop(cluster);

    let cluster = Cluster::builder().aws(&kms).start();
    let vault = cluster.vault();
    let mut root = vault.root();
    create(&mut root, "a").unwrap();
    // An ARN tells the region, an alias does not.
    cluster.set_conf("hyperion_vault.kms_region", "");
    create(&mut root, "by arn").unwrap();
    cluster.set_conf("hyperion_vault.kms_key_id", hyperion_vault_tests::kms::ALIAS);
    until_refused(&mut root, "AWS region is not known", "hyperion_vault.kms_region");
    cluster.set_conf("hyperion_vault.kms_key_id", "");
    wait_for("the worker to have no key", PATIENCE, || status(&mut root)["kms"]["usable"] == false);
    until_refused(&mut root, "kms_key_id is not set", "alias");
    assert_eq!(read(&mut root, "a").unwrap(), value("a"), "its key is cached");
    cluster.reset_conf("hyperion_vault.kms_key_id");
    cluster.reset_conf("hyperion_vault.kms_region");
    wait_for("the worker to be usable", PATIENCE, || create(&mut root, "again").is_ok());
    assert_eq!(status(&mut root)["workers"][0]["starts"], 1);
}
