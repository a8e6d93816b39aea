//! Tests of the generator: what parses, and that every allowed value is equally likely.
//!
//! The statistical bounds are eight standard deviations plus 30 above the mean: with three characters, the
//! widest tail, a sound generator exceeds them once in 10^10 (e^-24), and the bias of `byte % n` exceeds them
//! many times over (see `the_chi_square_test_finds_modulo_bias`).

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

fn generator(json: &str) -> Generator {
    Generator::parse(json).unwrap()
}

/// Far above the mean of chi-square with `cells - 1` degrees of freedom.
fn chi_square_bound(cells: usize) -> f64 {
    let freedom = (cells - 1) as f64;
    freedom + 8.0 * (2.0 * freedom).sqrt() + 30.0
}

fn chi_square(counts: impl Iterator<Item = usize>, cells: usize, total: usize) -> f64 {
    let expected = total as f64 / cells as f64;
    let (seen, sum) =
        counts.fold((0, 0.0), |(n, s), c| (n + 1, s + (c as f64 - expected).powi(2) / expected));
    sum + (cells - seen) as f64 * expected
}

#[test]
fn the_default_is_32_alphanumeric() {
    assert_eq!(generator("{}"), Generator::default());
    assert_eq!(Generator::default().to_json(), r#"{"charset":"alphanumeric","length":32,"require":[]}"#);
    let value = Generator::default().generate().unwrap();
    assert!(value.len() == 32 && value.bytes().all(|b| b.is_ascii_alphanumeric()));
}

#[test]
fn named_sets_hold_what_they_say() {
    for (charset, size, belongs) in [
        ("alphanumeric", 62, (|b| b.is_ascii_alphanumeric()) as fn(u8) -> bool),
        ("hex", 16, |b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)),
        ("base64url", 64, |b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'),
        ("ascii", 94, |b| b.is_ascii_graphic()),
    ] {
        let g = generator(&json!({ "charset": charset, "length": 4096 }).to_string());
        let chars: BTreeSet<u8> = g.charset.chars().bytes().collect();
        assert_eq!((chars.len(), g.charset.chars().len()), (size, size), "{charset}");
        assert!(chars.iter().all(|&b| belongs(b)), "{charset}");
        // 4096 draws miss one of 94 characters once in 10^17 runs.
        let value = g.generate().unwrap();
        assert_eq!(value.bytes().collect::<BTreeSet<u8>>(), chars, "{charset}");
    }
}

#[test]
fn accepts() {
    for (json, canonical) in [
        (r#"{"length":1}"#, r#"{"charset":"alphanumeric","length":1,"require":[]}"#),
        (r#"{"length":4096,"charset":"hex"}"#, r#"{"charset":"hex","length":4096,"require":[]}"#),
        (r#"{"charset":"ba"}"#, r#"{"charset":"ba","length":32,"require":[]}"#),
        (r#"{"charset":"\"\\"}"#, r#"{"charset":"\"\\","length":32,"require":[]}"#),
        (
            r#"{"charset":"ascii","length":4,"require":["symbol","digit","upper","lower","digit"]}"#,
            r#"{"charset":"ascii","length":4,"require":["lower","upper","digit","symbol"]}"#,
        ),
        (r#"{"charset":"0123456789","length":6}"#, r#"{"charset":"0123456789","length":6,"require":[]}"#),
        (
            r#"{"charset":"base64url","require":["symbol"]}"#,
            r#"{"charset":"base64url","length":32,"require":["symbol"]}"#,
        ),
    ] {
        assert_eq!(generator(json).to_json(), canonical);
        assert_eq!(generator(canonical), generator(json));
    }
}

#[test]
fn refuses() {
    for (json, message) in [
        ("", "generator is not valid JSON"),
        ("{", "generator is not valid JSON"),
        ("{} {}", "generator is not valid JSON"),
        ("null", "generator must be a JSON object"),
        ("[]", "generator must be a JSON object"),
        ("32", "generator must be a JSON object"),
        (r#""hex""#, "generator must be a JSON object"),
        (r#"{"lenght":1}"#, "generator has an unknown key \"lenght\""),
        (r#"{"Length":1}"#, "generator has an unknown key \"Length\""),
        (r#"{"length":"32"}"#, "generator length must be a whole number"),
        (r#"{"length":null}"#, "generator length must be a whole number"),
        (r#"{"length":true}"#, "generator length must be a whole number"),
        (r#"{"length":1.5}"#, "generator length must be a whole number"),
        (r#"{"length":0}"#, "generator length is out of range"),
        (r#"{"length":-1}"#, "generator length is out of range"),
        (r#"{"length":4097}"#, "generator length is out of range"),
        (r#"{"length":18446744073709551615}"#, "generator length is out of range"),
        (r#"{"charset":null}"#, "generator charset must be a string"),
        (r#"{"charset":["a","b"]}"#, "generator charset must be a string"),
        (r#"{"charset":""}"#, "generator charset must hold at least two characters"),
        (r#"{"charset":"a"}"#, "generator charset must hold at least two characters"),
        (r#"{"charset":"aba"}"#, "generator charset holds \"a\" twice"),
        (r#"{"charset":"alphanumerics"}"#, "generator charset holds \"a\" twice"),
        (r#"{"charset":"Hex"}"#, "generator charset \"Hex\" is not known"),
        (r#"{"charset":"base64"}"#, "generator charset \"base64\" is not known"),
        (r#"{"charset":"LOWER"}"#, "generator charset \"LOWER\" is not known"),
        (r#"{"charset":"a b"}"#, "generator charset has characters other than printable ASCII without space"),
        (r#"{"charset":"aé"}"#, "generator charset has characters other than printable ASCII without space"),
        (
            r#"{"charset":"a\u0000"}"#,
            "generator charset has characters other than printable ASCII without space",
        ),
        (
            r#"{"charset":"ab\u007f"}"#,
            "generator charset has characters other than printable ASCII without space",
        ),
        (r#"{"require":"lower"}"#, "generator require must be an array of strings"),
        (r#"{"require":[1]}"#, "generator require must be an array of strings"),
        (r#"{"require":null}"#, "generator require must be an array of strings"),
        (r#"{"require":["letter"]}"#, "generator requires an unknown class \"letter\""),
        (r#"{"charset":"hex","require":["upper"]}"#, "generator requires upper but the charset has none"),
        (r#"{"require":["symbol"]}"#, "generator requires symbol but the charset has none"),
        (r#"{"charset":"ab","require":["digit"]}"#, "generator requires digit but the charset has none"),
        (
            r#"{"length":1,"require":["lower","digit"]}"#,
            "generator requires more classes than it has characters",
        ),
    ] {
        let e = Generator::parse(json).unwrap_err();
        assert_eq!(e.message, message, "{json}");
        assert!(e.hint.is_some());
    }
    let long = format!("{{\"x\":\"{}\"}}", "x".repeat(5000));
    assert_eq!(Generator::parse(&long).unwrap_err().message, "generator is too long");
    let deep = "[".repeat(4000);
    assert_eq!(Generator::parse(&deep).unwrap_err().message, "generator is not valid JSON");
}

#[test]
fn every_byte_value_once_gives_every_character_equally_often() {
    // Exact, not statistical: feed 0..=255 in order and count. Bias of any kind shows as unequal counts.
    for charset in ["ab", "abc", "0123456789", "hex", "alphanumeric", "base64url", "ascii"] {
        let mut g = generator(&json!({ "charset": charset }).to_string());
        let size = g.charset.chars().len();
        g.length = 256 - 256 % size;
        let mut calls = 0;
        let value = g
            .generate_from(|bytes| {
                calls += 1;
                bytes.iter_mut().zip(0..=255).for_each(|(b, i)| *b = i);
                Ok(())
            })
            .unwrap();
        assert_eq!(calls, 1);
        for c in g.charset.chars().chars() {
            assert_eq!(value.matches(c).count(), 256 / size, "{charset} {c}");
        }
    }
}

#[test]
fn characters_are_uniform_at_every_position() {
    for charset in ["hex", "alphanumeric", "ascii", "abc"] {
        let g = generator(&json!({ "charset": charset, "length": 32 }).to_string());
        let size = g.charset.chars().len();
        let (mut all, mut first, mut last) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let rounds = 4000;
        for _ in 0..rounds {
            let value = g.generate().unwrap();
            value.bytes().for_each(|b| *all.entry(b).or_insert(0) += 1);
            *first.entry(value.as_bytes()[0]).or_insert(0) += 1;
            *last.entry(value.as_bytes()[31]).or_insert(0) += 1;
        }
        for (counts, total) in [(all, 32 * rounds), (first, rounds), (last, rounds)] {
            let x = chi_square(counts.into_values(), size, total);
            assert!(x < chi_square_bound(size), "{charset}: chi-square {x}");
        }
    }
}

#[test]
fn the_chi_square_test_finds_modulo_bias() {
    // The same test on `byte % 62` of perfectly uniform bytes, as a positive control.
    let mut counts = BTreeMap::new();
    for i in 0..4000 * 32 {
        *counts.entry(i % 256 % 62).or_insert(0) += 1;
    }
    assert!(chi_square(counts.into_values(), 62, 4000 * 32) > 3.0 * chi_square_bound(62));
}

#[test]
fn required_classes_condition_but_do_not_bias() {
    // 27 strings, of which 18 hold a letter and a digit: all 18 occur, equally often.
    let g = generator(r#"{"length":3,"charset":"ab0","require":["lower","digit"]}"#);
    let mut counts = BTreeMap::new();
    for _ in 0..18_000 {
        *counts.entry(g.generate().unwrap().to_string()).or_insert(0) += 1;
    }
    assert_eq!(counts.len(), 18);
    assert!(counts.keys().all(|v| v.contains('0') && v.contains(['a', 'b'])));
    let x = chi_square(counts.into_values(), 18, 18_000);
    assert!(x < chi_square_bound(18), "chi-square {x}");
}

#[test]
fn all_four_classes_even_in_four_characters() {
    for length in [4, 5, 8, 64] {
        let g = generator(
            &json!({ "length": length, "charset": "ascii", "require": ["lower", "upper", "digit", "symbol"] })
                .to_string(),
        );
        for _ in 0..200 {
            let value = g.generate().unwrap();
            assert_eq!(value.len(), length);
            assert!(Class::ALL.iter().all(|c| value.bytes().any(|b| c.contains(b))));
        }
    }
}

#[test]
fn the_rarest_specification_succeeds() {
    let symbols: String = (0x21..0x7f).map(char::from).filter(char::is_ascii_punctuation).collect();
    let g = generator(
        &json!({ "length": 3, "charset": format!("aA0{symbols}"), "require": ["lower", "upper", "digit"] })
            .to_string(),
    );
    for _ in 0..5 {
        let mut chars: Vec<char> = g.generate().unwrap().chars().collect();
        chars.sort_unstable();
        assert_eq!(chars, ['0', 'A', 'a']);
    }
}

#[test]
fn a_dead_or_stuck_source_is_an_error_not_a_value_or_a_hang() {
    assert_eq!(Generator::default().generate_from(|_| Err(RandomUnavailable)), Err(RandomUnavailable));
    let g = generator(r#"{"length":2,"charset":"aA","require":["lower","upper"]}"#);
    assert_eq!(g.generate_from(|_| Ok(())), Err(RandomUnavailable), "zeros for ever");
    // A source that dies half way leaves no short value.
    let mut calls = 0;
    let result = generator(r#"{"length":4096}"#).generate_from(|_| {
        calls += 1;
        if calls > 3 { Err(RandomUnavailable) } else { Ok(()) }
    });
    assert_eq!(result, Err(RandomUnavailable));
}

#[test]
fn values_differ_and_never_grow_their_buffer() {
    let g = generator(r#"{"length":37}"#);
    let values: BTreeSet<String> = (0..1000)
        .map(|_| {
            let value = g.generate().unwrap();
            assert_eq!(value.capacity(), 37, "a grown buffer leaves an unwiped copy behind");
            value.to_string()
        })
        .collect();
    assert_eq!(values.len(), 1000);
}

proptest! {
    #[test]
    fn parse_never_panics(text in prop_oneof![any::<String>(), "[{}\\[\\]\":,a-z0-9]{0,60}"]) {
        let _ = Generator::parse(&text);
    }

    #[test]
    fn what_parses_round_trips_and_generates(
        length in 1usize..200,
        set in prop::collection::btree_set(0x21u8..0x7f, 2..94).prop_shuffle_to_text(),
        require in prop::sample::subsequence(vec!["lower", "upper", "digit", "symbol"], 0..=4),
    ) {
        let json = json!({ "length": length, "charset": set, "require": require }).to_string();
        if let Ok(g) = Generator::parse(&json) {
            prop_assert_eq!(&Generator::parse(&g.to_json()).unwrap(), &g);
            let value = g.generate().unwrap();
            prop_assert_eq!(value.len(), length);
            prop_assert!(value.chars().all(|c| set.contains(c)));
            prop_assert!(g.require.iter().all(|class| value.bytes().any(|b| class.contains(b))));
        } else {
            let missing = require.iter().any(|name| {
                let class = Class::ALL.into_iter().find(|c| c.name() == *name).unwrap();
                !set.bytes().any(|b| class.contains(b))
            });
            prop_assert!(missing || require.len() > length || looks_like_a_set_name(&set));
        }
    }
}

trait ShuffleToText {
    fn prop_shuffle_to_text(self) -> BoxedStrategy<String>;
}

impl<S: Strategy<Value = BTreeSet<u8>> + 'static> ShuffleToText for S {
    fn prop_shuffle_to_text(self) -> BoxedStrategy<String> {
        self.prop_map(|set| set.into_iter().map(char::from).collect::<Vec<_>>())
            .prop_shuffle()
            .prop_map(|chars| chars.into_iter().collect())
            .boxed()
    }
}
