//! The wire format against moto, a KMS that others wrote: what the provider sends is understood, and what comes back is
//! read.
//!
//! One server for all, as it takes half a second to start. What moto does not check, and the strict fake does: signatures
//! and credentials, states of keys (a disabled one wraps and opens, and only DescribeKey tells), a context that differs
//! in more than its text (pairs are joined loosely), that the key named is the one that wrapped, lengths of what is sent;
//! it knows no ids of key material and makes no new material when a key is rotated.

use hyperion_vault_kms::{AwsConfig, ErrorKind, StoredDek, WrappedDek};
use hyperion_vault_tests::Moto;
use hyperion_vault_tests::kms::Op;

use crate::setup::{Asker, OPS, config, dek, expect, place, stored, stored_as};

fn of(moto: &Moto, key_id: &str) -> Asker {
    let region = Some(Moto::REGION.to_owned());
    Asker::open(&AwsConfig { region, ..config(&moto.endpoint(), key_id) })
}

#[test]
fn an_independent_kms_understands_every_call() {
    let moto = Moto::start();
    let key = moto.create_key();
    moto.create_alias("alias/main", &key);
    let id = key.rsplit('/').next().unwrap();
    let alias_arn = key.replace(&format!("key/{id}"), "alias/main");
    for named in [key.as_str(), id, "alias/main", &alias_arn] {
        round_trip(&of(&moto, named), &key);
    }
    states(&moto);
    rotation(&moto);
}

fn round_trip(asker: &Asker, key: &str) {
    let made = asker.generate(&place(1)).unwrap();
    assert_eq!((made.by.key_id.as_str(), &made.by.key_material_id), (key, &None));
    assert_eq!(asker.unwrap(&place(1), &stored(&made)).unwrap().as_bytes(), made.dek.as_bytes());
    // Another version: its context differs in its text, which moto does see.
    expect(asker.unwrap(&place(2), &stored(&made)), ErrorKind::Unauthenticated, "another place");
    expect(asker.rewrap(&place(2), &stored(&made)), ErrorKind::Unauthenticated, "another place");
    let garbage = StoredDek { wrapped: WrappedDek(vec![5; 150]), key_id: key.to_owned() };
    let garbage = asker.unwrap(&place(1), &garbage);
    assert!(garbage.is_err_and(|error| !error.kind.is_retryable()));

    let wrapped = asker.wrap(&place(3), &dek(3)).unwrap();
    assert_eq!(wrapped.1.key_id, key);
    assert_eq!(asker.unwrap(&place(3), &stored_as(&wrapped)).unwrap().as_bytes(), &[3; 32]);
    let again = asker.rewrap(&place(3), &stored_as(&wrapped)).unwrap();
    assert_ne!(again.0, wrapped.0);
    assert_eq!(asker.unwrap(&place(3), &stored_as(&again)).unwrap().as_bytes(), &[3; 32]);
    let described = asker.describe().unwrap();
    assert!(described.enabled && described.key_id == key, "{described:?}");
}

fn states(moto: &Moto) {
    let (key, other) = (moto.create_key(), moto.create_key());
    let asker = of(moto, &key);
    let seed = asker.seed();
    let moved = of(moto, &other).rewrap(&place(1), &seed).unwrap();
    assert_eq!(moved.1.key_id, other);
    asker.unwrap(&place(1), &stored_as(&moved)).unwrap();

    moto.disable_key(&key);
    assert!(!asker.describe().unwrap().enabled);
    moto.enable_key(&key);
    assert!(asker.describe().unwrap().enabled);
    moto.schedule_key_deletion(&key);
    assert!(!asker.describe().unwrap().enabled);

    let gone = key.replace(key.rsplit('/').next().unwrap(), "00000000-0000-4000-8000-000000000bad");
    let asker = of(moto, &gone);
    for op in OPS.into_iter().filter(|&op| op != Op::Decrypt && op != Op::ReEncrypt) {
        let error = expect(asker.ask(op, &seed), ErrorKind::Refused, op.name());
        assert!(error.message.contains("does not exist"), "{error:?}");
    }
}

fn rotation(moto: &Moto) {
    let key = moto.create_key();
    let asker = of(moto, &key);
    let made = asker.generate(&place(1)).unwrap();
    moto.enable_key_rotation(&key);
    moto.rotate_key_on_demand(&key);
    assert_eq!(asker.unwrap(&place(1), &stored(&made)).unwrap().as_bytes(), made.dek.as_bytes());
    asker.rewrap(&place(1), &stored(&made)).unwrap();
}
