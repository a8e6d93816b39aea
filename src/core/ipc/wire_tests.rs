//! The wire codec: round trips, limits, hostile bytes, and what `Debug` shows.
//!
//! Unit tests only.

use proptest::prelude::*;

use super::wire::MAX_ID;
use super::*;
use crate::envelope::{Dek, DekContext, Id};

fn context(seed: u8) -> DekContext {
    DekContext { vault: Id([seed; 16]), secret: Id([seed ^ 1; 16]), version: Id([seed ^ 2; 16]) }
}

fn dek(seed: u8) -> Dek {
    Dek::from_slice(&[seed.max(1); 32]).expect("not zero")
}

/// Equality of responses, which the type itself does not offer.
fn parts(response: &Response) -> Vec<Vec<u8>> {
    let text = |text: &String| text.clone().into_bytes();
    match response {
        Response::Dek { dek, wrapped, key_id, key_material_id } => {
            vec![vec![1], dek.as_bytes().to_vec(), wrapped.clone(), text(key_id), text(key_material_id)]
        }
        Response::Unwrapped { dek } => vec![vec![2], dek.as_bytes().to_vec()],
        Response::Described { provider, key_id, key_material_id } => {
            vec![vec![3], text(provider), text(key_id), text(key_material_id)]
        }
        Response::Error { kind, message, detail, hint } => {
            vec![vec![4, *kind as u8], text(message), text(detail), text(hint)]
        }
    }
}

#[test]
fn the_longest_messages_fit() {
    let unwrap = |wrapped: usize, id: usize| Request::UnwrapDek {
        context: context(1),
        wrapped: vec![3; wrapped],
        key_id: "k".repeat(id),
    };
    let request = unwrap(MAX_WRAPPED, MAX_ID);
    assert_eq!(Request::decode(&request.encode().expect("fits")), Ok(request));
    assert_eq!(unwrap(MAX_WRAPPED + 1, 1).encode(), Err(Malformed));
    let longest = Response::Dek {
        dek: dek(5),
        wrapped: vec![3; MAX_WRAPPED],
        key_id: "k".repeat(960),
        key_material_id: "m".repeat(960),
    };
    let (status, bytes) = longest.encode();
    assert!(status == 0 && bytes.len() <= RESPONSE_BYTES);
    assert_eq!(parts(&Response::decode(&bytes).expect("own encoding")), parts(&longest));

    let too_long = Response::Dek {
        dek: dek(5),
        wrapped: vec![3; MAX_WRAPPED + 1],
        key_id: String::new(),
        key_material_id: String::new(),
    };
    let (status, bytes) = too_long.encode();
    assert_eq!(status, ErrorKind::Internal as u32);
    assert!(matches!(Response::decode(&bytes), Ok(Response::Error { kind: ErrorKind::Internal, .. })));
    assert!(!bytes.windows(8).any(|window| window == [5; 8]), "the key is in the error");
}

#[test]
fn error_texts_are_cut_at_character_boundaries() {
    // Three-byte characters, so that no limit (a power of two) is a multiple.
    let text = "€".repeat(20_000);
    let error = Response::Error {
        kind: ErrorKind::Throttled,
        message: text.clone(),
        detail: text.clone(),
        hint: text.clone(),
    };
    let (status, bytes) = error.encode();
    assert_eq!(status, ErrorKind::Throttled as u32);
    assert!(bytes.len() <= RESPONSE_BYTES);
    let Ok(Response::Error { kind: ErrorKind::Throttled, message, detail, hint }) = Response::decode(&bytes)
    else {
        panic!("an error was expected")
    };
    for (part, max) in [(message, 1024), (detail, 4096), (hint, 1024)] {
        assert!(text.starts_with(&part) && part.len() > max - 3 && part.len() <= max);
    }
}

#[test]
fn debug_shows_no_key() {
    let response = Response::Dek {
        dek: dek(0xab),
        wrapped: vec![],
        key_id: "arn".to_owned(),
        key_material_id: String::new(),
    };
    let shown = format!("{response:?} {:?}", Response::Unwrapped { dek: dek(0xab) });
    assert!(shown.contains("arn"));
    assert!(!shown.contains("171") && !shown.to_lowercase().contains("ab"), "{shown}");
}

#[test]
fn a_wiped_key_is_no_key() {
    let (_, bytes) = Response::Unwrapped { dek: dek(1) }.encode();
    let mut wiped = bytes.to_vec();
    wiped[1..].fill(0);
    assert!(Response::decode(&bytes).is_ok());
    assert_eq!(Response::decode(&wiped).err(), Some(Malformed));
}

fn any_request() -> impl Strategy<Value = Request> {
    prop_oneof![
        any::<u8>().prop_map(|seed| Request::GenerateDek { context: context(seed) }),
        (any::<u8>(), prop::collection::vec(any::<u8>(), 0..400), ".{0,60}").prop_map(
            |(seed, wrapped, key_id)| Request::UnwrapDek { context: context(seed), wrapped, key_id }
        ),
        Just(Request::Describe),
    ]
}

fn any_response() -> impl Strategy<Value = Response> {
    prop_oneof![
        (any::<u8>(), prop::collection::vec(any::<u8>(), 0..400), ".{0,60}", ".{0,60}").prop_map(
            |(seed, wrapped, key_id, key_material_id)| Response::Dek {
                dek: dek(seed),
                wrapped,
                key_id,
                key_material_id
            }
        ),
        any::<u8>().prop_map(|seed| Response::Unwrapped { dek: dek(seed) }),
        (".{0,60}", ".{0,60}", ".{0,60}").prop_map(|(provider, key_id, key_material_id)| {
            Response::Described { provider, key_id, key_material_id }
        }),
        (prop::sample::select(&ErrorKind::ALL[..]), ".{0,60}", ".{0,60}", ".{0,60}")
            .prop_map(|(kind, message, detail, hint)| Response::Error { kind, message, detail, hint }),
    ]
}

proptest! {
    #[test]
    fn requests_survive_the_wire(request in any_request()) {
        let bytes = request.encode().expect("short enough");
        prop_assert_eq!(Request::decode(&bytes), Ok(request.clone()));
        prop_assert_eq!(u32::from(bytes[0]), request.op());
        // No prefix and no extension is a message: lengths are unambiguous.
        for end in 0..bytes.len() {
            prop_assert_eq!(Request::decode(&bytes[..end]), Err(Malformed));
        }
        prop_assert_eq!(Request::decode(&[&bytes[..], &[0]].concat()), Err(Malformed));
    }

    #[test]
    fn responses_survive_the_wire(response in any_response()) {
        let (status, bytes) = response.encode();
        let decoded = Response::decode(&bytes).expect("own encoding");
        prop_assert_eq!(parts(&decoded), parts(&response));
        prop_assert_eq!(status, decoded.status());
        for end in 0..bytes.len() {
            prop_assert!(Response::decode(&bytes[..end]).is_err());
        }
        prop_assert!(Response::decode(&[&bytes[..], &[0]].concat()).is_err());
    }

    #[test]
    fn any_bytes_are_parsed_or_refused(tag in 0u8..6, bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let bytes = [&[tag], &bytes[..]].concat();
        if let Ok(request) = Request::decode(&bytes) {
            prop_assert_eq!(request.encode().expect("decoded"), bytes.clone());
        }
        if let Ok(response) = Response::decode(&bytes) {
            prop_assert_eq!(response.encode().1.to_vec(), bytes);
        }
    }
}
