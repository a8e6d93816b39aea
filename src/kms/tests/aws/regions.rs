//! In which region KMS is asked, by how the key is named and what the settings and the environment say.
//!
//! The region of a call is the one it is signed for; the fake keeps the signature's scope. The trap: a key id or an
//! alias name means another key in each region, so a region from the wrong source seals under the wrong key.

use hyperion_vault_kms::{AwsConfig, ErrorKind};
use hyperion_vault_tests::kms::{ALIAS, Credentials, FakeKms, SeenRequest};

use crate::child::Launch;
use crate::responder::Responder;
use crate::setup::{Asker, config, expect, place, stored, stored_as};

/// Where the fake's keys are, and two other regions.
const HOME: &str = "eu-central-1";
const AWAY: &str = "us-east-1";
const FAR: &str = "ap-south-1";

/// The region a request was signed for.
fn signed_for(request: &SeenRequest) -> String {
    let header = request.header("authorization").unwrap();
    let scope = header.split("Credential=").nth(1).unwrap();
    scope.split('/').nth(2).unwrap().to_owned()
}

fn last_region(kms: &FakeKms) -> String {
    signed_for(kms.requests().last().expect("nothing was asked"))
}

fn in_region(kms: &FakeKms, key_id: &str, region: &str) -> Asker {
    let region = Some(region.to_owned());
    Asker::open(&AwsConfig { region, ..config(&kms.endpoint(), key_id) })
}

#[test]
fn a_key_may_be_named_in_four_ways() {
    let kms = FakeKms::start();
    let alias_arn = kms.key_arn().replace(&format!("key/{}", kms.key_id()), ALIAS);
    for asker in [
        Asker::of(&kms, &kms.key_arn()),
        Asker::of(&kms, &alias_arn),
        in_region(&kms, kms.key_id(), HOME),
        in_region(&kms, ALIAS, HOME),
    ] {
        let made = asker.generate(&place(1)).unwrap();
        assert_eq!(made.by.key_id, kms.key_arn());
        asker.unwrap(&place(1), &stored(&made)).unwrap();
        assert_eq!(last_region(&kms), HOME);
    }
}

#[test]
fn a_key_id_alone_needs_a_region() {
    let kms = FakeKms::start();
    for key in [kms.key_id(), ALIAS] {
        let error = expect(Asker::of(&kms, key).describe(), ErrorKind::Misconfigured, key);
        assert!(error.message.contains("region") && error.hint.unwrap().contains("kms_region"));
    }
    assert_eq!(kms.counters().connections, 0);
}

#[test]
fn the_setting_is_before_the_arn_and_the_arn_before_the_environment() {
    let kms = FakeKms::start();
    let key = kms.create_multi_region_key();
    for region in [AWAY, FAR] {
        kms.replicate(&key, region);
    }
    let id = key.rsplit('/').next().unwrap();
    let profile = format!("[default]\nregion = {FAR}\n");
    let launch = |key: &str| Launch::new(key).endpoint(&kms.endpoint()).credentials(&Credentials::example());
    // Everything says something: kms_region, ARN, environment, profile.
    let with_all = || launch(&key).env("AWS_REGION", FAR).file(".aws/config", &profile);
    for (child, wanted) in [
        (with_all().setting("region", AWAY), AWAY),
        (with_all(), HOME),
        (launch(id).env("AWS_REGION", AWAY).file(".aws/config", &profile), AWAY),
        (launch(id).env("AWS_DEFAULT_REGION", AWAY), AWAY),
        (launch(id).file(".aws/config", &profile), FAR),
    ] {
        let key_id = child.start().ask("generate").ok();
        assert_eq!(last_region(&kms), wanted);
        assert_eq!(key_id, key.replace(HOME, wanted), "the replica there");
    }
}

#[test]
fn the_region_of_the_instance_is_the_last_resort() {
    let kms = FakeKms::start();
    let metadata = Responder::start(|request| match (request.method.as_str(), request.path.as_str()) {
        ("PUT", "/latest/api/token") => Some((200, "token".into())),
        ("GET", "/latest/meta-data/placement/region") => Some((200, HOME.into())),
        _ => Some((404, String::new())),
    });
    let key_id = Launch::new(ALIAS)
        .endpoint(&kms.endpoint())
        .credentials(&Credentials::example())
        .without("AWS_EC2_METADATA_DISABLED")
        .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", &metadata.url())
        .start()
        .ask("generate")
        .ok();
    assert_eq!((key_id, last_region(&kms)), (kms.key_arn(), HOME.to_owned()));
}

#[test]
fn replicas_of_a_multi_region_key_open_each_others_keys() {
    let kms = FakeKms::start();
    let home_arn = kms.create_multi_region_key();
    let away_arn = kms.replicate(&home_arn, AWAY);
    // A standby in another region, with the same key in its settings.
    let (home, away) = (in_region(&kms, &home_arn, HOME), in_region(&kms, &home_arn, AWAY));
    let from_home = home.generate(&place(1)).unwrap();
    let from_away = away.generate(&place(2)).unwrap();
    assert_eq!((&from_home.by.key_id, &from_away.by.key_id), (&home_arn, &away_arn));
    assert_eq!(away.unwrap(&place(1), &stored(&from_home)).unwrap().as_bytes(), from_home.dek.as_bytes());
    assert_eq!(
        (last_region(&kms), kms.requests().last().unwrap().key_id.clone()),
        (AWAY.into(), Some(away_arn.clone()))
    );
    assert_eq!(home.unwrap(&place(2), &stored(&from_away)).unwrap().as_bytes(), from_away.dek.as_bytes());
    assert_eq!(last_region(&kms), HOME);
    let moved = away.rewrap(&place(1), &stored(&from_home)).unwrap();
    assert_eq!(moved.1.key_id, away_arn);
    assert_eq!(home.unwrap(&place(1), &stored_as(&moved)).unwrap().as_bytes(), from_home.dek.as_bytes());
    assert_eq!(away.describe().unwrap().key_id, away_arn);

    // A key of one region is asked for there and nowhere else.
    let error = expect(in_region(&kms, &kms.key_arn(), AWAY).describe(), ErrorKind::Refused, "elsewhere");
    assert!(error.hint.unwrap().contains("kms_region"));
}

/// `kms_key_id` was moved to a key in another region: what the old one wrapped is still asked for where that one lives.
#[test]
fn a_key_of_an_earlier_setting_is_asked_for_in_its_own_region() {
    let kms = FakeKms::start();
    let made = Asker::of(&kms, &kms.key_arn()).generate(&place(1)).unwrap();
    let away = || {
        let launch = Launch::new("alias/elsewhere").credentials(&Credentials::example());
        launch.setting("region", AWAY).stored(&stored(&made))
    };
    // The environment's endpoint is for every region. The fake knows the key in its own region only.
    let answer = away().env("AWS_ENDPOINT_URL_KMS", &kms.endpoint()).start().ask("unwrap");
    assert_eq!(answer.kind(), "", "it opened");
    assert_eq!(last_region(&kms), HOME);
    // The settings' endpoint is one place, and calls are signed for its region.
    let answer = away().endpoint(&kms.endpoint()).start().ask("unwrap");
    answer.err("refused");
    assert_eq!(last_region(&kms), AWAY);
}
