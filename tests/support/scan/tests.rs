//! Tests of the search itself, without a server. They run in the test process.

use super::*;

const VALUE: &[u8] = b"k\\9\"\x00\xff correct horse \x01";

fn found(haystack: &[u8]) -> Vec<Form> {
    Needles::new([("v", VALUE)]).in_bytes("here", haystack).into_iter().map(|hit| hit.form).collect()
}

#[test]
fn a_value_is_found_in_each_form_and_at_its_offset() {
    let hits = Needles::new([("v", VALUE)]).in_bytes("here", &[b"abc", VALUE, b"def"].concat());
    assert_eq!(hits.len(), 1);
    assert_eq!((hits[0].offset, hits[0].form, hits[0].place.as_str()), (3, Form::Raw, "here"));

    assert_eq!(found(b"\\x6b5c392200ff20636f727265637420686f7273652001"), [Form::Hex]);
    assert_eq!(found(b"6B5C392200FF20636F727265637420686F7273652001"), [Form::Hex]);
    assert_eq!(found(br#"k\\9"\000\377 correct horse \001"#), [Form::Escaped]);
    assert_eq!(found(br#"k\\\\9"\\000\\377 correct horse \\001"#), [Form::Escaped]);
    let json = Needles::new([("v", "tab\tand \"quote\"")]).in_bytes("", br#"{"a":"tab\tand \"quote\""}"#);
    assert_eq!(json[0].form, Form::Json);
}

#[test]
fn base64_is_found_whatever_stands_around_it() {
    for before in 0..6 {
        for after in 0..4 {
            let text = [&b"xyzxyz"[..before], VALUE, &b"1234"[..after]].concat();
            for encoded in [BASE64_STANDARD_NO_PAD.encode(&text), BASE64_URL_SAFE_NO_PAD.encode(&text)] {
                assert!(found(encoded.as_bytes()).contains(&Form::Base64), "{before} {after}");
            }
        }
    }
}

#[test]
fn what_is_not_there_is_not_found() {
    assert_eq!(found(b""), []);
    assert_eq!(found(&VALUE[1..]), []);
    let other: Vec<u8> = VALUE.iter().map(|byte| byte ^ 1).collect();
    assert_eq!(found(&other), []);
    assert_eq!(found(BASE64_STANDARD_NO_PAD.encode(&other).as_bytes()), []);
}

#[test]
fn one_value_does_not_hide_another() {
    let hits = Needles::new([("short", "canary-1"), ("long", "canary-10")]).in_bytes("", b"xcanary-10x");
    let raw: Vec<_> =
        hits.iter().filter(|hit| hit.form == Form::Raw).map(|hit| hit.needle.as_str()).collect();
    assert_eq!(raw, ["short", "long"]);
}

#[test]
fn a_long_value_is_found_in_parts() {
    let long: Vec<u8> = (0..5000u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    let needles = Needles::new([("long", &long)]);
    assert!(!needles.in_bytes("", &long[..2000]).is_empty(), "its first chunk");
    assert!(!needles.in_bytes("", &long[long.len() - 1000..]).is_empty(), "its last chunk");
    assert!(needles.in_bytes("", &[0; 4096]).is_empty());
}

#[test]
fn a_directory_is_searched_to_its_depths() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("a/b");
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("file"), [b"..", VALUE].concat()).unwrap();
    fs::write(dir.path().join("clean"), "nothing").unwrap();
    std::os::unix::fs::symlink("/nowhere", dir.path().join("dangling")).unwrap();
    let hits = Needles::new([("v", VALUE)]).in_path(dir.path());
    assert_eq!(hits.len(), 1);
    assert!(hits[0].place.ends_with("a/b/file"));
}

#[test]
#[should_panic(expected = "met by chance")]
fn a_short_value_is_refused() {
    Needles::new([("v", "1234567")]);
}
