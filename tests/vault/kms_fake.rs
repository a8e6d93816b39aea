//! A cluster on the fake KMS: that `ClusterBuilder::aws` and its kin set one up. Runs in the test process.
//!
//! What the fake does is checked in tests/support/kms; what the provider does about it, elsewhere. Here: calls arrive,
//! signed with the credentials that were meant and no others.

use hyperion_vault_tests::kms::{Credentials, FakeKms, Op};
use hyperion_vault_tests::{Client, Cluster, PATIENCE, wait_for};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

fn create(client: &mut Client, name: &str) -> Result<u64, postgres::Error> {
    client.execute("SELECT vault.create_secret($1, 'the value')", &[&name])
}

#[test]
fn a_cluster_with_a_credentials_file() {
    let kms = FakeKms::start();
    let cluster = Cluster::builder().aws(&kms).start();
    let meta = cluster.aws_credentials_path().metadata().unwrap();
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    assert_eq!(meta.uid(), cluster.data_dir().metadata().unwrap().uid());

    let vault = cluster.vault();
    let mut root = vault.root();
    create(&mut root, "one").unwrap();
    let read: String = root.query_one("SELECT vault.read_secret('one')", &[]).unwrap().get(0);
    assert_eq!(read, "the value");
    assert!(kms.calls(Op::GenerateDataKey) >= 1);
    let by = |requests: &FakeKms| requests.requests().pop().unwrap().access_key_id.unwrap();
    assert_eq!(by(&kms), Credentials::example().access_key_id);

    // Others in the file, while the server runs.
    let session = Credentials::random_session();
    kms.add_credentials(session.clone());
    cluster.write_aws_credentials(&session);
    kms.expire_credentials(&Credentials::example().access_key_id);
    let mut tries = 0;
    wait_for("the new credentials", PATIENCE, || {
        tries += 1;
        create(&mut root, &format!("new-{tries}")).is_ok()
    });
    assert_eq!(by(&kms), session.access_key_id);
}

#[test]
fn a_cluster_with_credentials_in_its_environment() {
    let kms = FakeKms::start();
    let session = Credentials::random_session();
    kms.add_credentials(session.clone());
    let cluster = Cluster::builder().aws_env(&kms, &session).start();
    assert!(!cluster.aws_credentials_path().exists());
    let vault = cluster.vault();
    create(&mut vault.root(), "one").unwrap();
    let requests = kms.requests();
    assert!(requests.iter().all(|seen| seen.access_key_id.as_ref() == Some(&session.access_key_id)));
    assert!(requests.iter().any(|seen| seen.op == Some(Op::GenerateDataKey)));
}
