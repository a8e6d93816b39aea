//! The scripts of releases: where they are, that they never change, and that versions agree. Runs in the test process.
//!
//! `sql/released/VERSION/` holds what a release was: `install.sql`, and as test data `data.sql` (rows it made) and
//! `values.txt` (what they say). `sql/hyperion_vault--A--B.sql` leads from one to the next, and is installed. What has
//! been released is listed with its hash in `sql/released/SHA256SUMS`.

use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A checkout, or what a test makes to look like one.
pub struct Sources {
    root: PathBuf,
}

impl Sources {
    pub fn here() -> Self {
        Self { root: Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent").to_owned() }
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.root.join(path)).unwrap_or_else(|error| panic!("cannot read {path}: {error}"))
    }

    fn sql(&self) -> PathBuf {
        self.root.join("sql")
    }

    /// The version in Cargo.toml, which cargo-pgrx puts into the control file.
    pub fn version(&self) -> String {
        let manifest = self.read("Cargo.toml");
        let package = manifest.split("[workspace.package]").nth(1).expect("the workspace names the version");
        let line = package.lines().find(|line| line.starts_with("version = ")).expect("a version");
        line.trim_start_matches("version = ").trim_matches('"').to_owned()
    }

    /// The parts of the install script, in the order of their names.
    fn parts(&self) -> Vec<PathBuf> {
        let numbered = |path: &PathBuf| name_of(path).starts_with(|c: char| c.is_ascii_digit());
        files(&self.sql()).into_iter().filter(numbered).collect()
    }

    /// The install script: the parts, one after another, as cargo-pgrx puts them together.
    pub fn install(&self) -> String {
        self.parts().iter().map(|path| fs::read_to_string(path).expect("SQL is text")).collect()
    }

    pub fn released(&self, version: &str) -> PathBuf {
        self.sql().join("released").join(version)
    }

    pub fn install_script(&self, version: &str) -> String {
        fs::read_to_string(self.released(version).join("install.sql"))
            .expect("a release has an install script")
    }

    pub fn releases(&self) -> Vec<String> {
        let entries = fs::read_dir(self.sql().join("released")).expect("sql/released is there");
        let dirs = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
        let mut releases: Vec<_> = dirs.map(|path| name_of(&path)).collect();
        releases.sort();
        releases
    }

    pub fn upgrade_scripts(&self) -> Vec<PathBuf> {
        files(&self.sql()).into_iter().filter(|path| ends(path).is_some()).collect()
    }

    /// Hashes of everything that has been released, by path below sql/.
    fn hashes(&self) -> BTreeMap<String, String> {
        let releases = self.releases();
        let mut paths: Vec<_> = releases.iter().flat_map(|version| files(&self.released(version))).collect();
        let upgrades = self.upgrade_scripts().into_iter();
        paths.extend(upgrades.filter(|path| ends(path).is_some_and(|(_, to)| releases.contains(&to))));
        let relative = |path: &Path| path.strip_prefix(self.sql()).expect("below sql/").display().to_string();
        let hash = |path: &Path| {
            let digest = Sha256::digest(fs::read(path).expect("cannot read a released file"));
            digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        paths.iter().map(|path| (relative(path), hash(path))).collect()
    }

    /// Takes the release that stands in `made` over into sql/released, with the hashes of all that is now released.
    pub fn add_release(&self, made: &Path) {
        let version = self.version();
        let dir = self.released(&version);
        fs::create_dir(&dir)
            .unwrap_or_else(|error| panic!("{version} is released already? {}: {error}", dir.display()));
        for file in files(&made.join(&version)) {
            fs::copy(&file, dir.join(name_of(&file))).expect("cannot copy a file");
        }
        let known: BTreeSet<String> =
            self.read("sql/released/SHA256SUMS").lines().map(str::to_owned).collect();
        let sums: BTreeSet<String> =
            self.hashes().iter().map(|(path, hash)| format!("{hash}  {path}")).collect();
        assert!(known.is_subset(&sums), "what was released before has changed");
        let mut sums: Vec<_> = sums.into_iter().collect();
        sums.sort_by(|a, b| a[64..].cmp(&b[64..]));
        fs::write(self.sql().join("released/SHA256SUMS"), sums.join("\n") + "\n")
            .expect("cannot write the hashes");
    }

    /// Everything that is wrong with releases and versions.
    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let version = self.version();
        let listed: BTreeMap<String, String> = self
            .read("sql/released/SHA256SUMS")
            .lines()
            .map(|line| {
                let (hash, path) = line.split_once("  ").expect("hash, two spaces, path");
                (path.to_owned(), hash.to_owned())
            })
            .collect();
        let hashes = self.hashes();
        for path in listed.keys().chain(hashes.keys()).collect::<BTreeSet<_>>() {
            match (listed.get(path), hashes.get(path)) {
                (Some(_), None) => faults.push(format!("{path} was released and is gone")),
                (None, Some(_)) => {
                    faults.push(format!("{path} is not in SHA256SUMS: make release does that"))
                }
                (was, is) if was != is => faults.push(format!("{path} was released and has changed")),
                _ => {}
            }
        }
        let steps: Vec<_> = self.upgrade_scripts().iter().filter_map(|path| ends(path)).collect();
        for release in self.releases() {
            if release == version {
                if self.install_script(&release) != self.install() {
                    faults.push(format!(
                        "{version} is released, and sql/ is not what it was: raise the version"
                    ));
                }
                continue;
            }
            let mut reached = BTreeSet::from([release.clone()]);
            while let Some((_, to)) =
                steps.iter().find(|(from, to)| reached.contains(from) && !reached.contains(to))
            {
                reached.insert(to.clone());
            }
            if !reached.contains(&version) {
                faults.push(format!("no sql/hyperion_vault--A--B.sql leads from {release} to {version}"));
            }
        }
        let meta: serde_json::Value =
            serde_json::from_str(&self.read("META.json")).expect("META.json is JSON");
        for pointer in ["/version", "/provides/hyperion_vault/version"] {
            if meta.pointer(pointer).and_then(|v| v.as_str()) != Some(version.as_str()) {
                faults.push(format!("META.json {pointer} is not {version}"));
            }
        }
        if !self.read("hyperion_vault.control").contains("\ndefault_version = '@CARGO_VERSION@'\n") {
            faults.push("the control file does not take its version from Cargo.toml".into());
        }
        // The order in which cargo-pgrx puts the parts together follows from what lib.rs says.
        let library = self.read("src/lib.rs");
        let places: Vec<_> =
            self.parts().iter().map(|part| library.find(&format!("\"../sql/{}\"", name_of(part)))).collect();
        if places.contains(&None) || !places.is_sorted() {
            faults.push("src/lib.rs does not name every sql/NN_*.sql in the order of their names".into());
        }
        faults
    }
}

/// The versions of an upgrade script's name.
fn ends(path: &Path) -> Option<(String, String)> {
    let name = name_of(path);
    let versions = name.strip_prefix("hyperion_vault--")?.strip_suffix(".sql")?;
    versions.split_once("--").map(|(from, to)| (from.to_owned(), to.to_owned()))
}

fn name_of(path: &Path) -> String {
    path.file_name().expect("a file has a name").to_string_lossy().into_owned()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("cannot read {}: {error}", dir.display()));
    let mut files: Vec<_> =
        entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    files.sort();
    files
}

#[test]
fn released_scripts_never_change_and_versions_agree() {
    assert_eq!(Sources::here().faults(), [""; 0]);

    // The controls, on a checkout of our own that has released this version.
    let dir = tempfile::tempdir().expect("cannot make a directory");
    let (here, copy) = (Sources::here(), Sources { root: dir.path().to_owned() });
    for path in ["Cargo.toml", "META.json", "hyperion_vault.control", "src/lib.rs", "sql/released/SHA256SUMS"]
    {
        let to = dir.path().join(path);
        fs::create_dir_all(to.parent().expect("below the directory")).expect("cannot make a directory");
        fs::copy(here.root.join(path), to).expect("cannot copy a file");
    }
    fs::write(copy.sql().join("released/SHA256SUMS"), "").expect("cannot write");
    for part in here.parts() {
        fs::copy(&part, copy.sql().join(name_of(&part))).expect("cannot copy a file");
    }
    let version = copy.version();
    let made = dir.path().join("made");
    fs::create_dir_all(made.join(&version)).expect("cannot make a directory");
    for (name, text) in [("install.sql", copy.install()), ("data.sql", "".into()), ("values.txt", "".into())]
    {
        fs::write(made.join(&version).join(name), text).expect("cannot write");
    }
    let write = |path: &str, text: &str| fs::write(dir.path().join(path), text).expect("cannot write");
    let with = |path: &str, text: &str| {
        let before = copy.read(path);
        write(path, text);
        let faults = copy.faults();
        write(path, &before);
        faults
    };
    let one = |faults: Vec<String>, sign: &str| {
        assert!(faults.len() == 1 && faults[0].contains(sign), "{faults:?}")
    };
    copy.add_release(&made);
    assert_eq!(copy.faults(), [""; 0]);
    assert_eq!(copy.read("sql/released/SHA256SUMS").lines().count(), 3);

    let part = format!("sql/{}", name_of(&copy.parts()[0]));
    one(with(&part, &(copy.read(&part) + "-- more")), "raise the version");
    one(with(&format!("sql/released/{version}/data.sql"), "changed"), "has changed");
    let unlisted = copy.read("sql/released/SHA256SUMS").lines().skip(1).collect::<Vec<_>>().join("\n");
    one(with("sql/released/SHA256SUMS", &unlisted), "make release");
    let ghost =
        format!("{}{}  released/0.0.1/install.sql\n", copy.read("sql/released/SHA256SUMS"), "0".repeat(64));
    one(with("sql/released/SHA256SUMS", &ghost), "is gone");
    one(with("META.json", &copy.read("META.json").replacen(&version, "7.7.7", 1)), "META.json /version");
    one(with("hyperion_vault.control", "default_version = '0.1.0'\n"), "Cargo.toml");
    one(
        with("src/lib.rs", &copy.read("src/lib.rs").replace(&name_of(&copy.parts()[0]), "no.sql")),
        "src/lib.rs",
    );

    // The next version: wants a way from the last one, however many steps; then it may change what it likes.
    let next =
        copy.read("Cargo.toml").replacen(&format!("version = \"{version}\""), "version = \"7.7.7\"", 1);
    write("Cargo.toml", &next);
    write("META.json", &copy.read("META.json").replace(&version, "7.7.7"));
    one(copy.faults(), "leads from");
    write("sql/hyperion_vault--5.5.5--7.7.7.sql", "");
    one(copy.faults(), "leads from");
    write(&format!("sql/hyperion_vault--{version}--5.5.5.sql"), "");
    write(&part, &(copy.read(&part) + "-- more"));
    assert_eq!(copy.faults(), [""; 0]);
}
