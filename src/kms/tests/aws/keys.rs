//! Keys, contexts and rotation: what opens where, against the strict fake.
//!
//! The trap: a provider that trusts its row. Every part of what a row says (wrapped bytes, key, place) is changed here
//! in turn, and nothing may open.

use hyperion_vault_core::envelope::{DekContext, Id};
use hyperion_vault_kms::{ErrorKind, KeyProvider, StoredDek, WrappedDek};
use hyperion_vault_tests::kms::{ALIAS, FakeKms, KeyState, Op};

use crate::setup::{Asker, dek, expect, fake, place, stored, stored_as};

/// The longest wrapped key that KMS makes or takes (API reference, CiphertextBlob).
const MAX_WRAPPED: usize = 6144;

#[test]
fn what_is_wrapped_opens_again() {
    let (kms, asker) = fake();
    assert_eq!(asker.provider.name(), "aws");
    let made = asker.generate(&place(1)).unwrap();
    assert_eq!(made.by.key_id, kms.key_arn());
    assert_eq!(made.by.key_material_id, Some(kms.key_material_id(&kms.key_arn())));
    assert_eq!(asker.unwrap(&place(1), &stored(&made)).unwrap().as_bytes(), made.dek.as_bytes());
    let again = asker.generate(&place(1)).unwrap();
    assert_ne!(again.dek.as_bytes(), made.dek.as_bytes());

    let wrapped = asker.wrap(&place(2), &dek(9)).unwrap();
    // Encrypt does not say which material it used.
    assert_eq!((wrapped.1.key_id.as_str(), &wrapped.1.key_material_id), (kms.key_arn().as_str(), &None));
    assert_eq!(asker.unwrap(&place(2), &stored_as(&wrapped)).unwrap().as_bytes(), &[9; 32]);

    let rewrapped = asker.rewrap(&place(1), &stored(&made)).unwrap();
    assert_ne!(rewrapped.0, made.wrapped);
    assert_eq!(rewrapped.1, made.by);
    assert_eq!(asker.unwrap(&place(1), &stored_as(&rewrapped)).unwrap().as_bytes(), made.dek.as_bytes());

    let described = asker.describe().unwrap();
    assert!(described.enabled);
    assert_eq!((described.key_id, described.key_material_id), (made.by.key_id, made.by.key_material_id));

    // One call each, with the place as context, and no key named by anything but its ARN.
    let counters = kms.counters();
    let calls = [
        (Op::GenerateDataKey, 2),
        (Op::Decrypt, 3),
        (Op::Encrypt, 1),
        (Op::ReEncrypt, 1),
        (Op::DescribeKey, 1),
    ];
    assert_eq!(counters.calls, calls.into());
    assert_eq!(counters.connections, 1, "connections are kept");
    for request in kms.requests() {
        assert_eq!(request.key_id, Some(kms.key_arn()));
        if request.op == Some(Op::DescribeKey) {
            continue;
        }
        let version = if request.context["hyperion_vault:version"].starts_with("02") { 2 } else { 1 };
        assert_eq!(request.context, place(version).pairs().map(|(k, v)| (k.to_owned(), v)).into());
    }
}

#[test]
fn a_wrapped_key_opens_in_its_place_only() {
    let (kms, asker) = fake();
    let seed = asker.seed();
    let home = place(1);
    for other in [
        place(2),
        DekContext { vault: Id([9; 16]), ..home },
        DekContext { secret: Id([9; 16]), ..home },
        // The same ids in other roles.
        DekContext { vault: home.secret, secret: home.vault, ..home },
    ] {
        kms.reset_counters();
        expect(asker.unwrap(&other, &seed), ErrorKind::Unauthenticated, "unwrap");
        expect(asker.rewrap(&other, &seed), ErrorKind::Unauthenticated, "rewrap");
        assert_eq!(kms.counters().total_calls(), 2);
    }
    asker.unwrap(&home, &seed).unwrap();
}

#[test]
fn the_rows_word_for_its_key_has_to_be_true() {
    let (kms, asker) = fake();
    let seed = asker.seed();
    let named = |key_id: &str| StoredDek { wrapped: seed.wrapped.clone(), key_id: key_id.into() };
    let ask = |key_id: &str, kind: ErrorKind, calls: u64| {
        for op in [Op::Decrypt, Op::ReEncrypt] {
            kms.reset_counters();
            let error = expect(asker.ask(op, &named(key_id)), kind, key_id);
            assert_eq!(kms.counters().total_calls(), calls, "{key_id}: {error:?}");
        }
    };
    // Nothing that KMS would have to be asked about: not the ARN of a key.
    let alias_arn = kms.key_arn().replace(&format!("key/{}", kms.key_id()), ALIAS);
    for garbage in
        ["", "x", "arn:aws:kms", kms.key_id(), ALIAS, &alias_arn, "arn:aws:s3:::bucket", "\u{0}", "LOCAL:0"]
    {
        ask(garbage, ErrorKind::Unauthenticated, 0);
    }
    // Another key of ours did not wrap it.
    ask(&kms.create_key(), ErrorKind::Unauthenticated, 1);
    // A key that is not there, here or in that account: it may have been deleted, which is for the operator to know.
    ask(&kms.key_arn().replace(kms.key_id(), "00000000-0000-4000-8000-000000000bad"), ErrorKind::Refused, 1);
    ask(&kms.key_arn().replace("111122223333", "999999999999"), ErrorKind::Refused, 1);
    // The other provider's.
    ask("local:0123456789abcdef", ErrorKind::Refused, 0);
    let error = asker.unwrap(&place(1), &named("local:0123456789abcdef")).unwrap_err();
    assert!(error.hint.unwrap().contains("kms_mode"));
    assert!(error.detail.unwrap().contains("local:0123456789abcdef"));
}

#[test]
fn wrapped_bytes_that_were_changed_do_not_open() {
    let (kms, asker) = fake();
    let seed = asker.seed();
    let bytes = seed.wrapped.as_bytes();
    let refuse = |changed: Vec<u8>, most: u64, what: &str| {
        let changed = StoredDek { wrapped: WrappedDek(changed), key_id: seed.key_id.clone() };
        for op in [Op::Decrypt, Op::ReEncrypt] {
            kms.reset_counters();
            expect(asker.ask(op, &changed), ErrorKind::Unauthenticated, what);
            assert_eq!(kms.counters().total_calls(), most, "{what}");
        }
    };
    // What KMS would refuse for its length alone is not sent.
    refuse(Vec::new(), 0, "empty");
    refuse(vec![1; MAX_WRAPPED + 1], 0, "too long");
    refuse(vec![1; MAX_WRAPPED], 1, "as long as can be");
    refuse([bytes, &[0]].concat(), 1, "longer");
    for at in 0..bytes.len() {
        refuse(bytes[..at].to_vec(), u64::from(at > 0), &format!("cut at {at}"));
        let mut changed = bytes.to_vec();
        changed[at] ^= 1 << (at % 8);
        refuse(changed, 1, &format!("byte {at} changed"));
    }
    asker.unwrap(&place(1), &seed).unwrap();
}

#[test]
fn what_a_rotated_key_wrapped_before_opens_after() {
    let (kms, asker) = fake();
    let key = kms.key_arn();
    let old = asker.generate(&place(1)).unwrap();
    let rotated = kms.rotate(&key);
    let new = asker.generate(&place(2)).unwrap();
    assert_eq!(new.by.key_material_id.as_ref(), Some(&rotated));
    assert_ne!(old.by.key_material_id, new.by.key_material_id);
    assert_eq!(old.by.key_id, new.by.key_id);
    assert_eq!(asker.describe().unwrap().key_material_id, Some(rotated));

    // Wrapped anew it names the new material, and both open.
    let rewrapped = asker.rewrap(&place(1), &stored(&old)).unwrap();
    assert_eq!(rewrapped.1, new.by);
    for stored in [stored(&old), stored_as(&rewrapped)] {
        assert_eq!(asker.unwrap(&place(1), &stored).unwrap().as_bytes(), old.dek.as_bytes());
    }
}

#[test]
fn rewrapped_for_another_key_it_no_longer_needs_the_old_one() {
    let kms = FakeKms::start();
    let (old_key, new_key) = (kms.key_arn(), kms.create_key());
    let (before, after) = (Asker::of(&kms, &old_key), Asker::of(&kms, &new_key));
    let made = before.generate(&place(1)).unwrap();
    // The settings name the key for what is new; a row names its own.
    assert_eq!(after.unwrap(&place(1), &stored(&made)).unwrap().as_bytes(), made.dek.as_bytes());
    let moved = after.rewrap(&place(1), &stored(&made)).unwrap();
    assert_eq!(moved.1.key_id, new_key);
    assert_eq!(moved.1.key_material_id, Some(kms.key_material_id(&new_key)));
    // Not under the old key's name, nor the old bytes under the new one's.
    let crossed = [
        StoredDek { key_id: old_key.clone(), ..stored_as(&moved) },
        StoredDek { key_id: new_key.clone(), ..stored(&made) },
    ];
    for crossed in crossed {
        expect(after.unwrap(&place(1), &crossed), ErrorKind::Unauthenticated, "crossed");
    }

    for (state, said) in [(KeyState::Disabled, "disabled"), (KeyState::PendingDeletion, "state")] {
        kms.set_state(&old_key, state);
        let error = expect(after.unwrap(&place(1), &stored(&made)), ErrorKind::Refused, "the old key");
        assert!(error.message.contains(said), "{error:?}");
        assert!(error.hint.unwrap().contains(&old_key), "whose key is to be enabled");
        assert_eq!(after.unwrap(&place(1), &stored_as(&moved)).unwrap().as_bytes(), made.dek.as_bytes());
        // A disabled key can still be described, and is.
        assert!(!before.describe().unwrap().enabled);
    }
    kms.delete_key(&old_key);
    let error = expect(after.unwrap(&place(1), &stored(&made)), ErrorKind::Refused, "the deleted key");
    assert!(error.message.contains("does not exist"), "{error:?}");
    after.unwrap(&place(1), &stored_as(&moved)).unwrap();
}

#[test]
fn disabled_is_over_as_soon_as_the_key_is_enabled() {
    let (kms, asker) = fake();
    let seed = asker.seed();
    kms.set_state(&kms.key_arn(), KeyState::Disabled);
    for op in [Op::GenerateDataKey, Op::Decrypt, Op::Encrypt, Op::ReEncrypt] {
        expect(asker.ask(op, &seed), ErrorKind::Refused, op.name());
    }
    kms.set_state(&kms.key_arn(), KeyState::Enabled);
    for op in crate::setup::OPS {
        asker.ask(op, &seed).unwrap();
    }
}

#[test]
fn an_alias_follows_its_target_and_rows_do_not() {
    let kms = FakeKms::start();
    let first = kms.key_arn();
    let second = kms.create_key();
    let alias_arn = first.replace(&format!("key/{}", kms.key_id()), ALIAS);
    let by_alias = Asker::of(&kms, &alias_arn);
    let old = by_alias.generate(&place(1)).unwrap();
    assert_eq!(old.by.key_id, first, "a row keeps the key, not the alias");
    kms.create_alias(ALIAS, &second);
    assert_eq!(by_alias.generate(&place(2)).unwrap().by.key_id, second);
    assert_eq!(by_alias.describe().unwrap().key_id, second);
    assert_eq!(by_alias.unwrap(&place(1), &stored(&old)).unwrap().as_bytes(), old.dek.as_bytes());
    assert_eq!(by_alias.rewrap(&place(1), &stored(&old)).unwrap().1.key_id, second);
}
