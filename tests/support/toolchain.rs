//! Which PostgreSQL is under test: its programs, its directories, its major version. Runs in the test process.
//!
//! Everything is asked of one pg_config, so that the server, initdb, psql and pg_dump cannot come from different trees.

use crate::sys::give_to;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Clone, Debug)]
pub struct Toolchain {
    pub pg_config: PathBuf,
    pub bindir: PathBuf,
    pub sharedir: PathBuf,
    pub pkglibdir: PathBuf,
    /// For example `PostgreSQL 18.6`.
    pub version: String,
    pub major: u32,
}

impl Toolchain {
    /// The tree of `PG_CONFIG`; else the `pg18` tree in the cache that `make` fills (`HYPERION_VAULT_CACHE`, or its
    /// default places); else the `pg_config` in PATH.
    pub fn from_env() -> Self {
        let pg_config = std::env::var_os("PG_CONFIG").map(PathBuf::from).or_else(cached_pg_config);
        Self::at(&pg_config.unwrap_or_else(|| PathBuf::from("pg_config")))
    }

    /// The tree of an older major with the extension installed, to upgrade from. Panics if there is none: a test that
    /// cannot test must not pass.
    pub fn older_from_env() -> Self {
        let Some(pg_config) = std::env::var_os("HYPERION_VAULT_TEST_OLD_PG_CONFIG") else {
            panic!(
                "set HYPERION_VAULT_TEST_OLD_PG_CONFIG to the pg_config of an older major with the extension \
                 installed (make test does, for the newest of PG_MAJORS), or leave this test out: --skip pg_upgrade"
            )
        };
        Self::at(Path::new(&pg_config))
    }

    /// The tree that this pg_config describes. Panics, saying what to set, when it cannot be run.
    pub fn at(pg_config: &Path) -> Self {
        let version = ask(pg_config, "--version");
        // "PostgreSQL 18.6", "PostgreSQL 15.19 (Debian 15.19-0+deb12u1)", "PostgreSQL 19devel"
        let digits: String =
            version.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
        let major = digits.parse().unwrap_or_else(|_| panic!("cannot read a major version in {version:?}"));
        let dir = |flag| PathBuf::from(ask(pg_config, flag));
        Self {
            pg_config: pg_config.to_owned(),
            bindir: dir("--bindir"),
            sharedir: dir("--sharedir"),
            pkglibdir: dir("--pkglibdir"),
            version,
            major,
        }
    }

    /// A copy of this tree for a test that puts files of its own into it, and the directory that it goes with.
    pub fn private_copy(&self) -> (Self, tempfile::TempDir) {
        let dir =
            tempfile::Builder::new().prefix("hv-tree-").tempdir_in("/tmp").expect("cannot make a directory");
        give_to(dir.path(), None, 0o755).expect("the directory is ours");
        // Below another root with the paths they have: the server finds its directories relative to its programs.
        let copied = Command::new("cp")
            .args(["--archive", "--parents"])
            .args([&self.bindir, &self.sharedir, &self.pkglibdir])
            .arg(dir.path())
            // cp takes the parents' modes from paths without their leading slash.
            .current_dir("/")
            .status();
        assert!(copied.is_ok_and(|status| status.success()), "cannot copy {}", self.bindir.display());
        let below =
            |path: &Path| dir.path().join(path.strip_prefix("/").expect("pg_config gives absolute paths"));
        let copy = Self::at(&below(&self.bindir).join("pg_config"));
        assert_eq!(copy.sharedir, below(&self.sharedir), "this PostgreSQL cannot be relocated");
        (copy, dir)
    }

    /// The path of one of the tree's programs, such as `psql`.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bindir.join(name)
    }
}

fn cached_pg_config() -> Option<PathBuf> {
    cached("pg18/bin/pg_config").into_iter().find(|path| path.is_file())
}

/// Where `file` may lie in the cache that `make` fills: `HYPERION_VAULT_CACHE`, or its default places.
pub fn cached(file: &str) -> Vec<PathBuf> {
    let caches = match std::env::var_os("HYPERION_VAULT_CACHE") {
        Some(cache) => vec![PathBuf::from(cache)],
        None => std::iter::once(PathBuf::from("/var/cache/hyperion_vault"))
            .chain(std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache/hyperion_vault")))
            .collect(),
    };
    caches.into_iter().map(|cache| cache.join(file)).collect()
}

fn ask(pg_config: &Path, flag: &str) -> String {
    let output = Command::new(pg_config).arg(flag).output().unwrap_or_else(|error| {
        panic!(
            "cannot run {}: {error}; set PG_CONFIG to the pg_config of the server under test",
            pg_config.display()
        )
    });
    assert!(output.status.success(), "{} {flag} failed: {}", pg_config.display(), output.status);
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
