//! Real files of every wrong kind. Each refusal has to name the fact and the fix, and none may show key bytes.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE};
use hyperion_vault_core::envelope::AeadKey;
use tempfile::TempDir;

use super::*;
use crate::error::ErrorKind;

/// Holds `+` and `/` in base64, so that the URL alphabet is told apart, and no byte twice.
const KEY: [u8; 32] = *b"\xfb\xff\xbf\x01\x02\x03\x04\x05\x06\x07\x08\x0a\x0d\x10\x11\x12\x80\x81\x82\x83\x84\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f";

struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("data")).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        chmod(&path, 0o600);
        path
    }

    fn read(&self, key_file: PathBuf) -> Result<Box<MasterKey>, KmsError> {
        read(&LocalConfig { key_file, data_directory: self.path("data") })
    }

    /// The refusal, with what all refusals have in common checked.
    fn refusal(&self, key_file: PathBuf) -> (String, String, String) {
        let error = self.read(key_file).expect_err("should have been refused");
        assert_eq!(error.kind, ErrorKind::Misconfigured, "{error:?}");
        assert!(!error.message.ends_with('.'), "{error:?}");
        assert_eq!(error.message.chars().next().unwrap().to_lowercase().next(), error.message.chars().next());
        let shown = format!("{error:?}");
        for secret in [STANDARD.encode(KEY), STANDARD_NO_PAD.encode(&KEY[..24])] {
            assert!(!shown.contains(&secret), "{shown}");
        }
        (error.message, error.detail.unwrap_or_default(), error.hint.unwrap_or_default())
    }
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn raw_and_base64_are_the_same_key() {
    let place = Place::new();
    let padded = STANDARD.encode(KEY);
    let bare = STANDARD_NO_PAD.encode(KEY);
    assert_eq!((padded.len(), bare.len()), (44, 43));
    for content in [
        KEY.to_vec(),
        padded.clone().into_bytes(),
        bare.clone().into_bytes(),
        format!("{padded}\n").into_bytes(),
        format!("{bare}\n").into_bytes(),
        format!("{padded}\r\n").into_bytes(),
        format!("{bare}\r\n").into_bytes(),
    ] {
        let path = place.write("key", &content);
        assert_eq!(place.read(path).unwrap().as_bytes(), &KEY, "{} bytes", content.len());
    }
}

#[test]
fn the_command_in_the_hint_makes_a_usable_key() {
    let place = Place::new();
    // A name that needs quoting.
    let path = place.path("the key's file");
    let (message, detail, hint) = place.refusal(path.clone());
    assert_eq!(message, "could not open the master key file");
    assert!(detail.contains("no such file or directory") && detail.contains("the key's file"), "{detail}");
    let command = &hint[hint.find('(').unwrap()..=hint.rfind(')').unwrap()];
    assert!(Command::new("sh").args(["-c", command]).status().unwrap().success(), "{command}");
    let first = place.read(path.clone()).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    assert!(Command::new("sh").args(["-c", command]).status().unwrap().success());
    assert_ne!(place.read(path).unwrap().as_bytes(), first.as_bytes());
}

#[test]
fn mode_must_be_0600_or_stricter() {
    let place = Place::new();
    let path = place.write("key", &KEY);
    for mode in [0o600, 0o400] {
        chmod(&path, mode);
        assert!(place.read(path.clone()).is_ok(), "{mode:o}");
    }
    for bit in (0..12).map(|shift| 1 << shift).filter(|bit| bit & 0o600 == 0) {
        chmod(&path, 0o600 | bit);
        let (message, detail, hint) = place.refusal(path.clone());
        assert_eq!(message, "master key file has too many permissions");
        assert!(detail.contains(&format!("mode {:04o}", 0o600 | bit)), "{detail}");
        assert!(hint.ends_with(&format!("chmod 0600 {}", path.display())), "{hint}");
    }
}

#[test]
fn the_owner_must_be_the_server() {
    let place = Place::new();
    if !is_root() {
        // Only root can give a file away, but this one is root's.
        assert_eq!(place.refusal("/etc/passwd".into()).0, "master key file belongs to another user");
        return;
    }
    let path = place.write("key", &KEY);
    chown(&path, Some(65534), None).unwrap();
    let (message, detail, hint) = place.refusal(path.clone());
    assert_eq!(message, "master key file belongs to another user");
    assert!(detail.contains("uid 65534") && detail.contains("uid 0"), "{detail}");
    assert!(hint.contains("chown 0 "), "{hint}");
    // The group does not matter while it may do nothing.
    chown(&path, Some(0), Some(65534)).unwrap();
    assert!(place.read(path).is_ok());
}

#[test]
fn an_unreadable_file_is_explained() {
    if is_root() {
        return; // Root reads everything.
    }
    let place = Place::new();
    let path = place.write("key", &KEY);
    chmod(&path, 0);
    let (message, detail, hint) = place.refusal(path);
    assert_eq!(message, "could not open the master key file");
    assert!(detail.contains("permission denied"), "{detail}");
    assert!(hint.contains("chown"), "{hint}");
}

#[test]
fn only_regular_files_and_none_of_them_hangs() {
    let place = Place::new();
    let started = Instant::now();
    let fifo = place.path("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    for (path, what) in
        [(fifo, "a FIFO"), (place.path("data"), "a directory"), ("/dev/zero".into(), "a device")]
    {
        let (message, detail, hint) = place.refusal(path);
        assert_eq!(message, "master key file is not a regular file");
        assert!(detail.contains(what), "{detail}");
        assert!(hint.contains("/dev/urandom"), "{hint}");
    }
    let socket = place.path("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    assert_eq!(place.refusal(socket).0, "could not open the master key file");
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn symbolic_links_are_followed() {
    let place = Place::new();
    let target = place.write("key", &KEY);
    let link = place.path("link");
    symlink(&target, &link).unwrap();
    assert!(place.read(link.clone()).is_ok());
    // The checks are about the target.
    chmod(&target, 0o644);
    assert_eq!(place.refusal(link).0, "master key file has too many permissions");
    let dangling = place.path("dangling");
    symlink(place.path("nothing"), &dangling).unwrap();
    assert!(place.refusal(dangling).1.contains("no such file"));
    let loop_ = place.path("loop");
    symlink(&loop_, &loop_).unwrap();
    assert!(place.refusal(loop_).1.contains("symbolic links"));
}

#[test]
fn not_inside_the_data_directory_by_whatever_name() {
    let place = Place::new();
    let inside = place.write("data/key", &KEY);
    let link = place.path("link");
    symlink(&inside, &link).unwrap();
    let dir_link = place.path("elsewhere");
    symlink(place.path("data"), &dir_link).unwrap();
    fs::create_dir(place.path("data/base")).unwrap();
    let deep = place.write("data/base/key", &KEY);
    for path in [inside.clone(), link, dir_link.join("key"), deep, place.path("data/../data/key")] {
        let (message, detail, hint) = place.refusal(path);
        assert_eq!(message, "master key file lies inside the data directory");
        assert!(detail.contains("data"), "{detail}");
        assert!(hint.contains("base backup"), "{hint}");
    }
    // The data directory may be named by a link as well.
    let config = LocalConfig { key_file: inside.clone(), data_directory: dir_link };
    assert_eq!(read(&config).unwrap_err().message, "master key file lies inside the data directory");
    // A second name of a file inside is not a way around it.
    let hard = place.path("hard");
    fs::hard_link(&inside, &hard).unwrap();
    assert_eq!(place.refusal(hard).0, "master key file has more than one name");
    // A sibling whose name begins alike is outside.
    fs::create_dir(place.path("data-keys")).unwrap();
    assert!(place.read(place.write("data-keys/key", &KEY)).is_ok());
    // A data directory that cannot be found is not one the file is outside of.
    let config = LocalConfig { key_file: place.write("key", &KEY), data_directory: place.path("nothing") };
    assert_eq!(read(&config).unwrap_err().message, "could not resolve the data directory");
}

#[test]
fn the_path_must_be_set_and_absolute() {
    let place = Place::new();
    let (message, _, hint) = place.refusal(PathBuf::new());
    assert_eq!(message, "hyperion_vault.local_master_key_file is not set");
    assert!(hint.contains("(umask 077; head -c 32 /dev/urandom > FILE)"), "{hint}");
    let (message, detail, _) = place.refusal(PathBuf::from("etc/key"));
    assert_eq!(message, "path of the master key file is not absolute");
    assert!(detail.contains("etc/key"));
}

#[test]
fn sizes_of_neither_form_are_refused() {
    let place = Place::new();
    for size in (0..=31).chain(33..=42).chain([47, 48, 64, 65, 4096, 1 << 20]) {
        let path = place.write("key", &vec![b'A'; size]);
        let (message, detail, hint) = place.refusal(path);
        assert_eq!(message, "master key file has the wrong size", "{size}");
        assert!(detail.contains(&format!("{size} bytes")), "{detail}");
        assert!(hint.contains("backup"), "{hint}");
    }
}

#[test]
fn what_is_not_base64_of_a_key_is_refused_without_showing_it() {
    let place = Place::new();
    let padded = STANDARD.encode(KEY);
    let bare = STANDARD_NO_PAD.encode(KEY);
    let bad = |content: String| {
        assert!((TEXT_MIN..=TEXT_MAX).contains(&content.len()), "{content:?} tests the size only");
        place.refusal(place.write("key", content.as_bytes())).0
    };
    let not_base64 = "master key file is not valid base64";
    assert_eq!(bad(URL_SAFE.encode(KEY)), not_base64);
    assert_eq!(bad(format!("{padded}\n\n")), not_base64);
    assert_eq!(bad(format!(" {padded}")), not_base64);
    assert_eq!(bad(format!("{padded} ")), not_base64);
    assert_eq!(bad(format!("{}!", &padded[..43])), not_base64);
    // Bits after the key: another text for the same key.
    assert_eq!(bad(format!("{}9", &bare[..42])), not_base64);
    // Correct base64 of 33 and 34 bytes.
    let other_size = "master key file does not hold a 32-byte key";
    assert_eq!(bad(STANDARD.encode([7; 33])), other_size);
    assert_eq!(bad(STANDARD_NO_PAD.encode([7; 34])), other_size);
}

#[test]
fn a_zero_key_is_refused() {
    let place = Place::new();
    for content in [vec![0; 32], STANDARD.encode([0; 32]).into_bytes()] {
        let (message, _, hint) = place.refusal(place.write("key", &content));
        assert_eq!(message, "master key is all zeros");
        assert!(hint.contains("/dev/urandom"));
    }
}
