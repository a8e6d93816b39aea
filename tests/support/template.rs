//! A fresh data directory without paying for initdb each time. Runs in the test process.
//!
//! initdb runs once per server version and machine; clusters get a copy. The template lives in the temp directory and
//! outlives the run, guarded by a lock file, because several test processes may start at once. The trap: a name in
//! /tmp that anyone can guess. The directory must be ours and closed to others before anything in it is trusted.
//! Copies share a system identifier: a test that needs two different ones asks for `fresh_initdb`.

use crate::sys::{ServerUser, as_server_user, effective_uid, give_to};
use crate::toolchain::Toolchain;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Fills `data` (which must not exist) with a new, stopped cluster that belongs to the server's user.
pub fn new_data_directory(tools: &Toolchain, user: Option<ServerUser>, data: &Path, fresh: bool) {
    if fresh {
        initdb(tools, user, data);
    } else {
        let template = template(tools, user);
        copy_tree(&template, data, user).unwrap_or_else(|error| {
            panic!("cannot copy {} to {}: {error}", template.display(), data.display())
        });
    }
}

fn template(tools: &Toolchain, user: Option<ServerUser>) -> PathBuf {
    let home = PathBuf::from(format!("/tmp/hyperion_vault-templates-{}", effective_uid()));
    match DirBuilder::new().mode(0o700).create(&home) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            panic!("cannot create {}: {error}", home.display())
        }
        _ => {}
    }
    let meta = fs::symlink_metadata(&home).expect("the directory was just made or found");
    let ours = meta.is_dir() && meta.uid() == effective_uid() && meta.mode() & 0o077 == 0;
    assert!(ours, "{} belongs to someone else or is open to others; remove it", home.display());

    // The version string names the minor release and the packaging; the path keeps two builds of one version apart.
    let name: String = format!("{}{}", tools.version, tools.bindir.display())
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '_' })
        .collect();
    let lock = File::create(home.join(format!("{name}.lock"))).expect("cannot create the lock file");
    lock.lock().expect("cannot lock the template"); // released when `lock` is dropped
    let template = home.join(&name);
    if !template.exists() {
        // initdb in its own directory, which its user can reach, then move: a half-made template is never seen.
        let work = tempfile::Builder::new()
            .prefix("hv-initdb-")
            .tempdir_in("/tmp")
            .expect("cannot make a directory");
        give_to(work.path(), user, 0o700).expect("cannot hand over a directory");
        let made = work.path().join("data");
        initdb(tools, user, &made);
        fs::rename(&made, &template).expect("cannot move the template into place");
    }
    template
}

fn initdb(tools: &Toolchain, user: Option<ServerUser>, data: &Path) {
    let mut command = Command::new(tools.program("initdb"));
    command
        .args([
            "--no-sync",
            "--auth=trust",
            "--username=postgres",
            "--encoding=UTF8",
            "--locale=C",
            "--pgdata",
        ])
        .arg(data)
        // A current directory that the server's user cannot enter makes initdb fail in unclear ways.
        .current_dir("/");
    as_server_user(&mut command, user);
    let output = command.output().unwrap_or_else(|error| panic!("cannot run initdb: {error}"));
    assert!(output.status.success(), "initdb failed:\n{}", String::from_utf8_lossy(&output.stderr));
}

fn copy_tree(from: &Path, to: &Path, user: Option<ServerUser>) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target, user)?;
        } else {
            fs::copy(entry.path(), &target)?;
            give_to(&target, user, 0o600)?;
        }
    }
    give_to(to, user, 0o700)
}
