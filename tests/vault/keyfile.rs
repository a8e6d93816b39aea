//! The local provider's key file through the public interface: every state in which it may not be used, what is said
//! about it, and that the server lives on and mends itself when the file does. Runs in the test process.
//!
//! The provider's own tests (src/kms) cover each check by itself. Here it is about the whole way: worker, shared
//! memory, SQLSTATE, DETAIL, HINT, status. The trap: a case that is refused for the reason of the one before; so the
//! right key is put back, and seen to work, before each.

use hyperion_vault_tests::{
    Client, Cluster, DbError, KeyFile, LogMark, PATIENCE, StopMode, Vault, random_bytes, sqlstate, wait_for,
};
use serde_json::Value;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

const FILE: &str = "hyperion_vault.local_master_key_file";
const CREATE: &str = "SELECT vault.create_secret('new', 'value')";
const READ: &str = "SELECT vault.read_secret('kept')";

fn status(client: &mut Client) -> Value {
    let text: String = client.query_one("SELECT vault.status()::text", &[]).unwrap().get(0);
    serde_json::from_str(&text).unwrap()
}

/// Waits until the worker has taken the present configuration and file over, and says whether it can use them.
#[track_caller]
fn reload_until_usable_is(cluster: &Cluster, client: &mut Client, usable: bool) {
    cluster.reload();
    wait_for(&format!("kms.usable to be {usable}"), PATIENCE, || status(client)["kms"]["usable"] == usable);
}

/// A cluster without a cache, so that every call needs the key, with one secret in it.
struct Bench<'a> {
    cluster: &'a Cluster,
    root: Client,
    key: [u8; 32],
    /// What is told about a refused file, for the search of key bytes in it.
    told: Vec<DbError>,
}

impl<'a> Bench<'a> {
    fn new(vault: &Vault<'a>, key: [u8; 32]) -> Self {
        let mut root = vault.root();
        root.query("SELECT vault.create_secret('kept', 'the value')", &[]).unwrap();
        Self { cluster: vault.cluster, root, key, told: Vec::new() }
    }

    fn path(&self) -> String {
        self.cluster.key_path().to_str().unwrap().to_owned()
    }

    /// Removes whatever is in the key file's place.
    fn clear(&self) {
        let path = self.cluster.key_path();
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => fs::remove_dir(&path).unwrap(),
            Ok(_) => fs::remove_file(&path).unwrap(),
            Err(_) => {}
        }
    }

    /// With the right key in place everything works.
    #[track_caller]
    fn mended(&mut self) {
        self.clear();
        self.cluster.write_key_file(&self.key, 0o600);
        reload_until_usable_is(self.cluster, &mut self.root, true);
        self.works();
    }

    #[track_caller]
    fn works(&mut self) {
        assert_eq!(self.root.query_one(READ, &[]).unwrap().get::<_, String>(0), "the value");
        self.root.query("SELECT vault.put_secret('other', 'x')", &[]).unwrap();
    }

    /// After a reload neither reading nor writing works, for this reason. Then puts the right key back.
    #[track_caller]
    fn refused(&mut self, message: &str, detail: &str, hint: &str) {
        reload_until_usable_is(self.cluster, &mut self.root, false);
        for sql in [CREATE, READ, "SELECT vault.verify('kept', 'x')", "SELECT vault.put_secret('kept', 'x')"]
        {
            let error =
                sqlstate!(self.root.query(sql, &[]), "38000", message: message, detail: detail, hint: hint);
            assert!(error.message().chars().next().is_some_and(char::is_lowercase));
            self.told.push(error);
        }
        self.mended();
    }

    /// The same for another content of the file.
    #[track_caller]
    fn refused_content(&mut self, bytes: &[u8], message: &str, detail: &str, hint: &str) {
        self.cluster.write_key_file(bytes, 0o600);
        self.refused(message, detail, hint);
    }
}

#[test]
fn each_unusable_key_file_is_named_and_mended_without_a_restart() {
    let key = random_bytes::<32>();
    let cluster = Cluster::builder()
        .key_file(KeyFile::Custom { bytes: key.to_vec(), mode: 0o600 })
        .conf("hyperion_vault.dek_cache_ttl_secs", "0")
        .start();
    let vault = cluster.vault();
    let mut bench = Bench::new(&vault, key);
    let before = status(&mut bench.root)["workers"][0].clone();
    assert_eq!(before["running"], true);
    let path = bench.path();
    let create = "head -c 32 /dev/urandom";

    bench.clear();
    bench.refused("could not open", "no such file or directory", create);
    for mode in [0o644, 0o640, 0o700, 0o602, 0o4600] {
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        bench.refused("too many permissions", &format!("mode {mode:04o}"), "chmod 0600");
    }
    let wrong = "wrong size";
    bench.refused_content(b"", wrong, "has 0 bytes", create);
    bench.refused_content(&key[..31], wrong, "has 31 bytes", create);
    bench.refused_content(&[&key[..], b"\n"].concat(), wrong, "has 33 bytes", create);
    bench.refused_content(&key.repeat(40_000), wrong, "has 1280000 bytes", create);
    bench.refused_content(base64(&key[..31]).as_bytes(), "does not hold a 32-byte key", "31 bytes", create);
    bench.refused_content(&[b'!'; 44], "not valid base64", "44 bytes", create);
    bench.refused_content(&[0; 32], "all zeros", "holds no key", create);
    bench.refused_content(base64(&[0; 32]).as_bytes(), "all zeros", "holds no key", create);
    not_a_file(&mut bench);
    other_places(&mut bench);
    settings(&mut bench);

    // One worker has borne it all, and nothing was said that holds a piece of the key.
    assert_eq!(status(&mut bench.root)["workers"][0], before);
    let all = format!("{:?}{}", bench.told, cluster.log());
    for piece in [base64(&key)[..12].to_owned(), hex(&key)[..16].to_owned(), format!("{:?}", &key[..4])] {
        assert!(!all.contains(piece.trim_matches(['[', ']'])), "a piece of the key is told");
    }
    assert!(!all.contains("PANIC") && !all.contains("panicked"));
}

/// Things that are no files. A FIFO without a writer would hold up whoever opens it the usual way.
fn not_a_file(bench: &mut Bench<'_>) {
    let kind = "not a regular file";
    bench.clear();
    fs::create_dir(bench.path()).unwrap();
    fs::set_permissions(bench.path(), Permissions::from_mode(0o755)).unwrap();
    bench.refused(kind, "is a directory", "key file");
    bench.clear();
    let made = Command::new("mkfifo").args(["-m", "0666", &bench.path()]).status().unwrap();
    assert!(made.success());
    bench.refused(kind, "is a FIFO", "key file");
    bench.cluster.set_conf(FILE, "/dev/zero");
    bench.refused_setting(kind, "is a device", "key file");
    // A stranger's file, readable by all: whoever owns it could change it.
    bench.cluster.set_conf(FILE, "/etc/passwd");
    bench.refused_setting("belongs to another user", "owned by uid 0", "chown");
    // A file that the server's user may not open.
    bench.clear();
    bench.cluster.write_key_file(&bench.key, 0o000);
    bench.refused("could not open", "permission denied", "chmod 0600");
}

impl Bench<'_> {
    /// [`Self::refused`] for another path; puts the setting back too.
    #[track_caller]
    fn refused_setting<'d>(&mut self, message: &str, detail: impl Into<Option<&'d str>>, hint: &str) {
        let detail = detail.into();
        reload_until_usable_is(self.cluster, &mut self.root, false);
        for sql in [CREATE, READ] {
            let error = sqlstate!(self.root.query(sql, &[]), "38000", message: message, hint: hint);
            let told = error.detail().unwrap_or_default();
            assert!(detail.is_none_or(|part| told.contains(part)), "{error:?}");
            self.told.push(error);
        }
        self.cluster.reset_conf(FILE);
        self.mended();
    }
}

fn other_places(bench: &mut Bench<'_>) {
    let elsewhere = bench.cluster.dir().join("keys/real.key");
    let inside = bench.cluster.data_dir().join("master.key");
    // A symbolic link is fine where its file is. Without the key in between, or nothing would show that it was read.
    fs::rename(bench.path(), &elsewhere).unwrap();
    reload_until_usable_is(bench.cluster, &mut bench.root, false);
    symlink(&elsewhere, bench.path()).unwrap();
    reload_until_usable_is(bench.cluster, &mut bench.root, true);
    bench.works();

    // Inside the data directory, by its name or behind a link or a detour: each base backup would carry it.
    let place = "inside the data directory";
    fs::rename(&elsewhere, &inside).unwrap();
    fs::remove_file(bench.path()).unwrap();
    symlink(&inside, bench.path()).unwrap();
    bench.refused(place, "master.key", "Move it elsewhere");
    bench.cluster.set_conf(FILE, inside.to_str().unwrap());
    bench.refused_setting(place, "master.key", "Move it elsewhere");
    let detour = bench.cluster.dir().join("keys/../data/base/../master.key");
    bench.cluster.set_conf(FILE, detour.to_str().unwrap());
    bench.refused_setting(place, "master.key", "Move it elsewhere");
    fs::remove_file(&inside).unwrap();
    fs::hard_link(bench.path(), &inside).unwrap();
    bench.refused("more than one name", "2 hard links", "Remove the others");
    fs::remove_file(&inside).unwrap();
    // Links that lead nowhere, or to themselves.
    bench.clear();
    symlink(bench.path(), bench.path()).unwrap();
    bench.refused("could not open", "symbolic links", FILE);
}

fn settings(bench: &mut Bench<'_>) {
    // Refused when it is set, and when a file says so; what was in force stays in force.
    let error = sqlstate!(bench.cluster.try_set_conf(FILE, "keys/master.key"), "22023", message: FILE);
    assert!(error.detail().is_some_and(|detail| detail.contains("not absolute")), "{error:?}");
    assert!(error.hint().is_some());
    let mark = bench.cluster.log_mark();
    bench.cluster.append_conf(FILE, "keys/master.key");
    bench.cluster.reload();
    bench.cluster.wait_for_log(mark, &format!("invalid value for parameter \"{FILE}\""), PATIENCE);
    bench.works();
    let path = bench.path();
    bench.cluster.append_conf(FILE, &path);

    bench.cluster.set_conf(FILE, "");
    bench.refused_setting("is not set", None, "path of a key file");
    bench.cluster.set_conf("hyperion_vault.kms_mode", "aws");
    reload_until_usable_is(bench.cluster, &mut bench.root, false);
    let shown = status(&mut bench.root);
    assert_eq!((&shown["kms"]["mode"], &shown["kms"]["usable"]), (&Value::from("aws"), &Value::from(false)));
    for sql in [CREATE, READ] {
        let part = "hyperion_vault.kms_key_id is not set";
        sqlstate!(bench.root.query(sql, &[]), "38000", message: part, hint: "AWS KMS key");
    }
    sqlstate!(bench.cluster.try_set_conf("hyperion_vault.kms_mode", "azure"), "22023", hint: "aws, local");
    bench.cluster.reset_conf("hyperion_vault.kms_mode");
    bench.mended();
}

#[test]
fn the_server_starts_without_its_key_and_keeps_what_is_cached() {
    let cluster = Cluster::builder().key_file(KeyFile::Missing).start();
    let vault = cluster.vault();
    let mut root = vault.root();
    cluster.wait_for_log(
        LogMark::START,
        "WARNING:  hyperion_vault: could not open the master key file",
        PATIENCE,
    );
    sqlstate!(root.query(CREATE, &[]), "38000", detail: "no such file", hint: "/dev/urandom");
    assert_eq!(root.query_one("SELECT 1 + 1", &[]).unwrap().get::<_, i32>(0), 2);
    let shown = status(&mut root);
    assert_eq!(
        (&shown["kms"]["usable"], &shown["workers"][0]["starts"]),
        (&Value::from(false), &Value::from(1))
    );
    assert_eq!(shown["secrets"], 0);

    // Once the file is there the worker finds it by itself, within seconds.
    let (right, wrong) = (random_bytes::<32>(), random_bytes::<32>());
    cluster.write_key_file(&right, 0o600);
    wait_for("the worker to find the key file", PATIENCE, || status(&mut root)["kms"]["usable"] == true);
    root.query("SELECT vault.put_secret('kept', 'the value')", &[]).unwrap();
    root.query("SELECT vault.put_secret('kept', 'the new value')", &[]).unwrap();
    root.query("SELECT vault.put_secret('b', 'another')", &[]).unwrap();

    // Unreadable after the start: no harm until the file is read again, and then none to what is cached.
    fs::set_permissions(cluster.key_path(), Permissions::from_mode(0o000)).unwrap();
    root.query(CREATE, &[]).unwrap();
    reload_until_usable_is(&cluster, &mut root, false);
    sqlstate!(root.query("SELECT vault.put_secret('b', 'x')", &[]), "38000", detail: "permission denied");
    assert_eq!(root.query_one(READ, &[]).unwrap().get::<_, String>(0), "the new value");
    assert!(root.query_one("SELECT valid FROM vault.verify('b', 'another')", &[]).unwrap().get::<_, bool>(0));
    assert_eq!(status(&mut root)["workers"][0]["starts"], 1);

    // It starts like that, and with another key as well. The error tells the two apart, by name.
    cluster.restart(StopMode::Fast);
    let mut root = vault.root();
    sqlstate!(root.query(READ, &[]), "38000", message: "could not open", detail: "permission denied");
    another_key(&cluster, &vault, &right, &wrong);
}

fn another_key(cluster: &Cluster, vault: &Vault<'_>, right: &[u8; 32], wrong: &[u8; 32]) {
    let name = |key: &[u8; 32]| {
        let key = hyperion_vault_core::envelope::MasterKey::from_slice(key).unwrap();
        format!("local:{}", hex(&key.fingerprint()))
    };
    cluster.write_key_file(wrong, 0o600);
    cluster.restart(StopMode::Fast);
    let mut root = vault.root();
    // A good file, of another vault.
    wait_for("the key to be in use", PATIENCE, || status(&mut root)["kms"]["usable"] == true);
    for sql in [READ, "SELECT * FROM vault.get_secret('kept')", "SELECT vault.verify('b', 'x')"] {
        let error = sqlstate!(root.query(sql, &[]), "38000",
            message: "sealed under another master key", detail: &name(right), hint: &name(right));
        assert!(error.detail().is_some_and(|detail| detail.contains(&name(wrong))), "{error:?}");
    }
    let ids: i64 = root
        .query_one("SELECT count(*) FROM vault.list_secrets() WHERE kms_key_id = $1", &[&name(right)])
        .unwrap()
        .get(0);
    assert_eq!(ids, 3, "what is needed to read them is shown without reading them");
    // With the right one, in its other spelling, everything opens.
    cluster.write_key_file(format!("{}\r\n", base64(right)).as_bytes(), 0o600);
    cluster.restart(StopMode::Immediate);
    let mut root = vault.root();
    for (secret, value) in [("kept", "the new value"), ("b", "another"), ("new", "value")] {
        let read: String = root.query_one("SELECT vault.read_secret($1)", &[&secret]).unwrap().get(0);
        assert_eq!(read, value);
    }
    assert!(Path::new(&cluster.key_path()).exists());
}

fn base64(bytes: &[u8]) -> String {
    use base64::prelude::{BASE64_STANDARD, Engine};
    BASE64_STANDARD.encode(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
