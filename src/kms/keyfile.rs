//! Reads the master key of the `local` provider from its file, if nobody else can.
//!
//! Runs on the main thread of the kms worker, at start and after a reload; reads one small local file. The traps
//! it avoids: a check on a path and a read of another file (so the file is opened first and only its handle is
//! asked), a FIFO in its place that hangs the worker (so it is opened without blocking), and a key that travels
//! with each base backup (so it may not lie, or have a second name, inside the data directory).

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind as Io, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use hyperion_vault_core::envelope::{KEY_LEN, MasterKey};
use zeroize::Zeroizing;

use crate::config::LocalConfig;
use crate::error::KmsError;

/// Base64 of 32 bytes without its padding, and with padding and a CR LF.
const TEXT_MIN: usize = 43;
const TEXT_MAX: usize = 46;

/// Decoding room: 46 characters stand for at most 34 bytes, and the decoder wants whole groups of three.
const DECODED: usize = 36;

/// Owner may read and write. Group and others, execute, set-id and sticky bits: nothing.
const ALLOWED_MODE: u32 = 0o600;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The key in `config.key_file`.
pub(crate) fn read(config: &LocalConfig) -> Result<Box<MasterKey>, KmsError> {
    let path = config.key_file.as_path();
    if path.as_os_str().is_empty() {
        return Err(KmsError::misconfigured("hyperion_vault.local_master_key_file is not set").with_hint(
            format!("Set it to the path of a key file; create one with {}.", create(Path::new("FILE"))),
        ));
    }
    if !path.is_absolute() {
        return Err(KmsError::misconfigured("path of the master key file is not absolute")
            .with_detail(format!("hyperion_vault.local_master_key_file is \"{}\".", path.display()))
            .with_hint("Set it to a path that starts with a slash."));
    }

    // O_NONBLOCK: opening a FIFO without a writer would wait for one for ever. O_NOCTTY: nor may a terminal
    // become ours. Neither changes anything for a regular file. O_CLOEXEC is std's default.
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags((rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY).bits() as i32)
        .open(path)
        .map_err(|error| cannot_open(path, &error))?;
    let found = file.metadata().map_err(|error| cannot("read", path, &error))?;

    check_kind(path, &found)?;
    check_access(path, &found)?;
    check_place(path, &found, &config.data_directory)?;
    check_size(path, found.len())?;
    parse(path, &mut file)
}

fn check_kind(path: &Path, found: &Metadata) -> Result<(), KmsError> {
    let kind = found.file_type();
    if kind.is_file() {
        return Ok(());
    }
    let name = if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_char_device() || kind.is_block_device() {
        "a device"
    } else {
        "a special file"
    };
    Err(KmsError::misconfigured("master key file is not a regular file")
        .with_detail(format!("\"{}\" is {name}.", path.display()))
        .with_hint(format!("Create a key file with {}.", create(Path::new("FILE")))))
}

fn check_access(path: &Path, found: &Metadata) -> Result<(), KmsError> {
    let us = rustix::process::geteuid().as_raw();
    if found.uid() != us {
        return Err(KmsError::misconfigured("master key file belongs to another user")
            .with_detail(format!(
                "\"{}\" is owned by uid {}; the server runs as uid {us}.",
                path.display(),
                found.uid()
            ))
            .with_hint(format!("Make the server's user its owner: chown {us} {}", shell(path))));
    }
    let mode = found.mode() & 0o7777;
    if mode & !ALLOWED_MODE != 0 {
        return Err(KmsError::misconfigured("master key file has too many permissions")
            .with_detail(format!(
                "\"{}\" has mode {mode:04o}; at most {ALLOWED_MODE:04o} is accepted.",
                path.display()
            ))
            .with_hint(format!("Nobody else may read it: chmod 0600 {}", shell(path))));
    }
    Ok(())
}

/// Symbolic links are followed: what counts is where the file is, not where its name is.
fn check_place(path: &Path, found: &Metadata, data_directory: &Path) -> Result<(), KmsError> {
    let real = fs::canonicalize(path).map_err(|error| cannot("resolve", path, &error))?;
    let data = fs::canonicalize(data_directory).map_err(|error| {
        KmsError::misconfigured("could not resolve the data directory").with_detail(format!(
            "\"{}\": {}.",
            data_directory.display(),
            reason(&error)
        ))
    })?;
    // The path was resolved after the file was opened: make sure that both are about one file.
    let resolved = fs::metadata(&real).map_err(|error| cannot("read", path, &error))?;
    if (resolved.dev(), resolved.ino()) != (found.dev(), found.ino()) {
        return Err(KmsError::misconfigured("master key file was replaced while it was being read")
            .with_detail(format!("Path \"{}\".", path.display()))
            .with_hint("Reload the configuration once the file is in place."));
    }
    if real.starts_with(&data) {
        return Err(KmsError::misconfigured("master key file lies inside the data directory")
            .with_detail(format!("\"{}\" is inside \"{}\".", real.display(), data.display()))
            .with_hint(
                "Move it elsewhere: each base backup would carry the key together with what it protects.",
            ));
    }
    if found.nlink() > 1 {
        return Err(KmsError::misconfigured("master key file has more than one name")
            .with_detail(format!("\"{}\" has {} hard links.", path.display(), found.nlink()))
            .with_hint("Remove the others, one of which may lie inside the data directory."));
    }
    Ok(())
}

fn check_size(path: &Path, size: u64) -> Result<(), KmsError> {
    let text = (TEXT_MIN as u64..=TEXT_MAX as u64).contains(&size);
    if size == KEY_LEN as u64 || text { Ok(()) } else { Err(wrong_size(path, size)) }
}

/// 32 bytes are the key; anything longer is base64 of it, with or without padding and a newline at the end.
fn parse(path: &Path, file: &mut File) -> Result<Box<MasterKey>, KmsError> {
    // One byte of room more than is accepted: a file that grew since shows.
    let mut buffer = Zeroizing::new([0; TEXT_MAX + 1]);
    let mut len = 0;
    while len < buffer.len() {
        match file.read(&mut buffer[len..]) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(error) if error.kind() == Io::Interrupted => {}
            Err(error) => return Err(cannot("read", path, &error)),
        }
    }
    check_size(path, len as u64)?;
    let content = &buffer[..len];
    if len == KEY_LEN {
        return master(path, content);
    }

    let text = content.strip_suffix(b"\n").unwrap_or(content);
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    let mut decoded = Zeroizing::new([0; DECODED]);
    // The decoder's own error names the offending byte, which is a part of somebody's key: not passed on.
    let len = BASE64.decode_slice(text, decoded.as_mut_slice()).map_err(|_| {
        KmsError::misconfigured("master key file is not valid base64")
            .with_detail(format!("\"{}\" has {} bytes.", path.display(), content.len()))
            .with_hint(format!("Restore it from its backup, or create a new one with {}.", create(path)))
    })?;
    if len != KEY_LEN {
        return Err(KmsError::misconfigured("master key file does not hold a 32-byte key")
            .with_detail(format!("\"{}\" decodes to {len} bytes.", path.display()))
            .with_hint(format!("Restore it from its backup, or create a new one with {}.", create(path))));
    }
    master(path, &decoded[..len])
}

fn master(path: &Path, key: &[u8]) -> Result<Box<MasterKey>, KmsError> {
    // The length has been checked, so an all-zero key is all that can be refused here.
    MasterKey::from_slice(key).map(Box::new).map_err(|_| {
        KmsError::misconfigured("master key is all zeros")
            .with_detail(format!("\"{}\" holds no key.", path.display()))
            .with_hint(format!("Restore it from its backup, or create a new one with {}.", create(path)))
    })
}

fn wrong_size(path: &Path, size: u64) -> KmsError {
    KmsError::misconfigured("master key file has the wrong size")
        .with_detail(format!("\"{}\" has {size} bytes.", path.display()))
        .with_detail("Accepted are 32 raw bytes, or 43 or 44 characters of base64 and a newline.")
        .with_hint(format!("Restore it from its backup, or create a new one with {}.", create(path)))
}

fn cannot_open(path: &Path, error: &io::Error) -> KmsError {
    let us = rustix::process::geteuid().as_raw();
    let hint = match error.kind() {
        Io::NotFound => format!("Restore it from its backup, or create one with {}.", create(path)),
        Io::PermissionDenied => format!(
            "The server's user, uid {us}, must own it and be able to reach it: chown {us} {0} && chmod 0600 {0}",
            shell(path)
        ),
        _ => "Check hyperion_vault.local_master_key_file.".to_owned(),
    };
    cannot("open", path, error).with_hint(hint)
}

fn cannot(what: &str, path: &Path, error: &io::Error) -> KmsError {
    KmsError::misconfigured(format!("could not {what} the master key file")).with_detail(format!(
        "\"{}\": {}.",
        path.display(),
        reason(error)
    ))
}

/// The system's words for it, without Rust's "(os error 2)".
fn reason(error: &io::Error) -> String {
    match rustix::io::Errno::from_io_error(error) {
        Some(rustix::io::Errno::NOENT) => "no such file or directory".to_owned(),
        Some(rustix::io::Errno::ACCESS) => "permission denied".to_owned(),
        Some(rustix::io::Errno::NOTDIR) => "not a directory".to_owned(),
        Some(rustix::io::Errno::LOOP) => "too many levels of symbolic links".to_owned(),
        _ => error.to_string(),
    }
}

/// The command that makes a key file: never readable by others, not even for a moment.
fn create(path: &Path) -> String {
    format!("(umask 077; head -c 32 /dev/urandom > {})", shell(path))
}

/// The path as a shell takes it.
fn shell(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
#[path = "keyfile_tests.rs"]
mod tests;
