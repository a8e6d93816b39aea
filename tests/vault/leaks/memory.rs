//! Keys in memory: kept out of core dumps, and in the shared cache only while they may be used. Runs in the test
//! process, which looks into the server's processes; where it may not, it says so and the rest of the test is done.
//!
//! Only the extension's own mapping is searched: what a process's stack still holds of its last computation is
//! outside what can be promised (docs/threat-model). The trap: a search that is too late or in the wrong place; so
//! each disappearance is preceded by a search that finds the key.

use super::keys::{KnownDek, MasterKeyFile};
use super::process::{self, Mapping};
use hyperion_vault_tests::scan::Needles;
use hyperion_vault_tests::{
    Client, Cluster, PATIENCE, SIGKILL, Vault, backend_pid, random_text, wait_for, wait_until,
};
use serde_json::Value;

fn put(client: &mut Client, name: &str) -> i32 {
    let sql = "SELECT (vault.put_secret($1, $2)).version";
    client.query_one(sql, &[&name, &random_text(24)]).unwrap().get(0)
}

fn status(client: &mut Client) -> Value {
    let text: String = client.query_one("SELECT vault.status()::text", &[]).unwrap().get(0);
    serde_json::from_str(&text).unwrap()
}

/// The extension's mapping in a process: shared, out of core dumps, and of the size that `vault.status()` reports.
#[track_caller]
fn extension_mapping(pid: i32, size: u64) -> Mapping {
    let found: Vec<Mapping> = process::mappings(pid)
        .unwrap()
        .into_iter()
        .filter(|mapping| mapping.is_shared() && mapping.has_flag("dd"))
        .collect();
    assert_eq!(
        found.len(),
        1,
        "mappings of process {pid} that are shared and left out of core dumps: {found:#?}"
    );
    assert_eq!(found[0].end - found[0].start, size);
    found[0].clone()
}

/// Looks for keys in the extension's mapping, through one process that has it.
struct Eye {
    pid: i32,
    mapping: Mapping,
}

impl Eye {
    #[track_caller]
    fn new(pid: i32, size: u64) -> Self {
        Self { pid, mapping: extension_mapping(pid, size) }
    }

    fn bytes(&self) -> Vec<u8> {
        process::bytes(self.pid, &self.mapping).expect("the first look succeeded")
    }

    /// How many times these keys are there.
    fn count(&self, keys: &[KnownDek]) -> usize {
        let needles = Needles::new(keys.iter().map(|key| (key.label.clone(), key.bytes)));
        needles.in_bytes("the extension's memory", &self.bytes()).len()
    }

    #[track_caller]
    fn assert_cached(&self, keys: &[KnownDek], when: &str) {
        // Once each: the request slot through which a key came is wiped when it is read.
        assert_eq!(self.count(keys), keys.len(), "keys in memory {when}");
    }

    #[track_caller]
    fn assert_gone(&self, keys: &[KnownDek], when: &str) {
        assert_eq!(self.count(keys), 0, "keys in memory {when}");
    }
}

/// Whether this test run may look at that process. If not, says so: the test then shows less than it could.
fn may_look(pid: i32, test: &str) -> bool {
    let first = |mappings: Vec<Mapping>| mappings.into_iter().find(|m| m.permissions.starts_with('r'));
    let looked = process::mappings(pid).map(|found| {
        let mapping = first(found).ok_or(std::io::ErrorKind::PermissionDenied)?;
        process::bytes(pid, &mapping)
    });
    match looked {
        Ok(Ok(_)) => true,
        Ok(Err(error)) | Err(error) => {
            process::say(&format!(
                "SKIPPED in part: {test}: may not read a server process's memory: {error}"
            ));
            false
        }
    }
}

#[test]
fn keys_are_left_out_of_core_dumps() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut client = vault.root();
    put(&mut client, "a");
    let backend = backend_pid(&mut client);
    let worker = cluster.pid_of("hyperion_vault kms");

    // The worker holds the master key in its own memory: no dump of it at all, and nobody but root may trace it.
    assert!(!process::is_dumpable(worker).unwrap(), "the worker");
    assert!(process::is_dumpable(backend).unwrap(), "an ordinary backend, or this test could not tell");

    if may_look(backend, "keys_are_left_out_of_core_dumps") {
        let size = status(&mut client)["shared_memory"]["bytes"].as_u64().unwrap();
        extension_mapping(backend, size);
        extension_mapping(cluster.pid_of("checkpointer"), size);
        let others = process::mappings(backend).unwrap();
        assert!(others.iter().any(|m| m.is_shared() && !m.has_flag("dd")), "Postgres' own memory is dumped");
    }
    // It stays so after an orderly restart of the worker.
    cluster.kill_and_wait(worker, hyperion_vault_tests::SIGTERM);
    let successor = cluster.pid_of("hyperion_vault kms");
    wait_for("the successor to say that it may not be dumped", PATIENCE, || {
        process::is_dumpable(successor).is_ok_and(|dumpable| !dumpable)
    });
}

#[test]
fn keys_are_in_shared_memory_only_while_they_are_cached() {
    let master = MasterKeyFile::new();
    let cluster = master.give_to(Cluster::builder()).conf("hyperion_vault.keep_versions", "1").start();
    let vault = cluster.vault();
    let mut client = vault.root();
    let pid = backend_pid(&mut client);
    if !may_look(pid, "keys_are_in_shared_memory_only_while_they_are_cached") {
        return;
    }
    let size = status(&mut client)["shared_memory"]["bytes"].as_u64().unwrap();
    let eye = Eye::new(pid, size);

    deleted(&vault, &master, &eye);
    rolled_back(&vault, &master, &eye);
    purged(&mut client, &master, &eye);
    expired(&cluster, &mut client, &master, &eye);
    never_cached(&cluster, &mut client, &master, &eye);
    eye.assert_gone(&[KnownDek { label: "master key".into(), bytes: master.bytes }], "at any time");
}

fn deleted(vault: &Vault<'_>, master: &MasterKeyFile, eye: &Eye) {
    let (mut client, mut other) = (vault.root(), vault.root());
    put(&mut client, "deleted");
    put(&mut client, "deleted");
    let keys = master.deks(&mut client, "deleted");
    assert_eq!(keys.len(), 2);
    eye.assert_cached(&keys, "after two writes");
    client.batch_execute("BEGIN").unwrap();
    client.execute("SELECT vault.delete_secret('deleted')", &[]).unwrap();
    eye.assert_cached(&keys, "before the deletion is committed: others may still read");
    client.batch_execute("ROLLBACK").unwrap();
    eye.assert_cached(&keys, "after a deletion that was rolled back");
    other.execute("SELECT vault.read_secret('deleted')", &[]).unwrap();
    client.execute("SELECT vault.delete_secret('deleted')", &[]).unwrap();
    eye.assert_gone(&keys, "after delete_secret");
}

fn rolled_back(vault: &Vault<'_>, master: &MasterKeyFile, eye: &Eye) {
    let mut client = vault.root();
    client.batch_execute("BEGIN").unwrap();
    put(&mut client, "undone");
    let first = master.dek(&mut client, "undone");
    client.batch_execute("SAVEPOINT s").unwrap();
    put(&mut client, "undone/savepoint");
    let second = master.dek(&mut client, "undone/savepoint");
    eye.assert_cached(&[first.clone(), second.clone()], "in the transaction that sealed with them");
    client.batch_execute("ROLLBACK TO s").unwrap();
    eye.assert_gone(&[second], "after ROLLBACK TO SAVEPOINT");
    client.batch_execute("ROLLBACK").unwrap();
    eye.assert_gone(&[first], "after ROLLBACK");

    // The same for a transaction whose session is ended in the middle: no ROLLBACK is ever sent.
    let mut doomed = vault.root();
    doomed.batch_execute("BEGIN").unwrap();
    put(&mut doomed, "undone");
    let key = [master.dek(&mut doomed, "undone")];
    eye.assert_cached(&key, "in the transaction that sealed with it");
    let pid = backend_pid(&mut doomed);
    client.execute("SELECT pg_terminate_backend($1, 30000)", &[&pid]).unwrap();
    wait_for("its key to go with the terminated session", PATIENCE, || eye.count(&key) == 0);
}

/// A superseded version's key goes with the version.
fn purged(client: &mut Client, master: &MasterKeyFile, eye: &Eye) {
    put(client, "purged");
    let oldest = [master.dek(client, "purged")];
    put(client, "purged");
    eye.assert_cached(&oldest, "while its version is retained");
    put(client, "purged");
    eye.assert_gone(&oldest, "after its version was purged");
}

fn expired(cluster: &Cluster, client: &mut Client, master: &MasterKeyFile, eye: &Eye) {
    cluster.set_conf("hyperion_vault.dek_cache_ttl_secs", "1");
    // On a slow machine the second may be over before the first look: then the next key is tried.
    let key = (0..20).find_map(|i| {
        put(client, &format!("expiring/{i}"));
        let key = [master.dek(client, &format!("expiring/{i}"))];
        (eye.count(&key) == 1).then_some(key)
    });
    let key = key.expect("none of 20 keys was seen in the second that it was cached");
    // It expires after a second and is wiped when the worker's sweep comes round, within five more.
    wait_for("the expired key to be wiped", PATIENCE, || eye.count(&key) == 0);
}

/// Without a cache a key passes through a request slot and leaves nothing there.
fn never_cached(cluster: &Cluster, client: &mut Client, master: &MasterKeyFile, eye: &Eye) {
    cluster.set_conf("hyperion_vault.dek_cache_ttl_secs", "0");
    put(client, "uncached");
    let key = [master.dek(client, "uncached")];
    let before = status(client)["kms"]["calls"].as_u64().unwrap();
    eye.assert_gone(&key, "after a write without a cache");
    client.execute("SELECT vault.read_secret('uncached')", &[]).unwrap();
    eye.assert_gone(&key, "after a read without a cache");
    let asked = wait_until(PATIENCE, || status(client)["kms"]["calls"].as_u64().unwrap() > before);
    assert!(asked, "the read went through the worker");
    cluster.reset_conf("hyperion_vault.dek_cache_ttl_secs");
}

#[test]
fn a_crash_leaves_no_key_behind() {
    let master = MasterKeyFile::new();
    // The logger outlives the crash of another process and keeps the mapping it was started with.
    let cluster = master.give_to(Cluster::builder()).conf("logging_collector", "on").start();
    let vault = cluster.vault();
    let mut client = vault.root();
    let (pid, logger) = (backend_pid(&mut client), cluster.pid_of("logger"));
    for i in 0..10 {
        put(&mut client, &format!("kept/{i}"));
    }
    let keys = master.deks(&mut client, "%");
    assert_eq!(keys.len(), 10);
    let shown = status(&mut client);
    assert_eq!(shown["cache"]["entries"], 10);
    let may_look = may_look(pid, "a_crash_leaves_no_key_behind");
    let size = shown["shared_memory"]["bytes"].as_u64().unwrap();
    let old = may_look.then(|| Eye::new(logger, size));
    if let Some(old) = &old {
        old.assert_cached(&keys, "before the crash");
    }

    let mut witness = cluster.witness();
    cluster.kill_and_wait(pid, SIGKILL);
    witness.assert_lost();
    cluster.wait_ready();
    let mut client = vault.root();
    assert_eq!(status(&mut client)["cache"]["entries"], 0);
    if let Some(old) = old {
        assert_eq!(cluster.pid_of("logger"), logger, "the same process: it still has the old mapping");
        // Not only keys: digests, requests and answers as well.
        assert!(old.bytes().iter().all(|byte| *byte == 0), "the mapping of before the crash is wiped");
        let new = Eye::new(backend_pid(&mut client), size);
        new.assert_gone(&keys, "after the restart");
        client.execute("SELECT vault.read_secret('kept/0')", &[]).unwrap();
        assert_eq!(new.count(&keys), 1, "the one that was read since");
    }
    for i in 0..10 {
        client.execute("SELECT vault.read_secret($1)", &[&format!("kept/{i}")]).unwrap();
    }
}
