//! The sessions of the storm: transactions of every kind, made of operations, and what became of them.
//!
//! A thread each; a session that dies is opened anew. The trap: a commit whose answer is lost. Its draft may be true or
//! not, so both are kept until the next look.

use crate::model::Model;
use crate::operations::{Draft, Kind, Made, Operations, SHARED};
use crate::random::Random;
use hyperion_vault_tests::{Ask, Client, Cluster, NoTls, Vault};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const SESSIONS: usize = 6;
/// Names of operations in operations.rs.
const KINDS: usize = 44;
/// Secrets that one session alone changes.
const OWN: usize = 5;
const LEVELS: [&str; 4] = ["READ COMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"];

/// What a session may be told whatever it did: to try again, that it waited too long, that the key service is starting.
const ALWAYS: [&str; 4] = ["40001", "40P01", "55P03", "08006"];
/// And where others change the same things.
const RACING: [&str; 4] = ["55000", "P0002", "23505", "22023"];
/// The session's end.
const ENDED: [&str; 3] = ["57P01", "57P02", "57P03"];

pub struct Storm {
    sessions: Vec<JoinHandle<Session>>,
}

impl Storm {
    pub fn begin(cluster: &Arc<Cluster>, stop: &Arc<AtomicBool>) -> Self {
        let begin = |stream| {
            let (cluster, stop) = (Arc::clone(cluster), Arc::clone(stop));
            std::thread::spawn(move || {
                let _end = StopOnPanic(&stop);
                let mut session = Session::new(stream);
                session.rage(&cluster, &stop);
                session
            })
        };
        Self { sessions: (0..SESSIONS).map(begin).collect() }
    }

    /// Call it once `stop` is set. Panics if a session did.
    pub fn end(self) -> Notes {
        let joined: Vec<_> = self.sessions.into_iter().map(JoinHandle::join).collect();
        Notes { sessions: joined.into_iter().map(|session| session.expect("a session has failed")).collect() }
    }
}

/// One that has found a mistake ends the storm.
struct StopOnPanic<'a>(&'a AtomicBool);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

struct Session {
    stream: usize,
    operations: Operations,
    random: Random,
    model: Model,
    made: Vec<Made>,
    /// Operations that worked, and errors, by name.
    worked: BTreeMap<&'static str, u64>,
    refused: BTreeMap<String, u64>,
    /// Of transactions: committed, rolled back, prepared, answers lost.
    ends: [u64; 4],
    reconnected: u64,
}

/// How a transaction ended for the session.
enum End {
    Committed,
    NotCommitted,
    /// The answer to COMMIT was lost.
    Unknown,
}

impl Session {
    fn new(stream: usize) -> Self {
        Self {
            stream,
            operations: Operations::new(stream),
            random: Random::new(stream),
            model: Model::new((0..OWN).map(|i| format!("own/{stream}/{i}"))),
            made: Vec::new(),
            worked: BTreeMap::new(),
            refused: BTreeMap::new(),
            ends: [0; 4],
            reconnected: 0,
        }
    }

    fn rage(&mut self, cluster: &Cluster, stop: &AtomicBool) {
        let mut session: Option<Client> = None;
        while !stop.load(Ordering::Relaxed) {
            let Some(client) = &mut session else {
                session = self.connect(cluster);
                continue;
            };
            let mut draft = Draft { model: self.model.clone(), made: Vec::new() };
            let end = self.transaction(client, &mut draft);
            let closed = client.is_closed();
            match end {
                End::Committed => {
                    self.model = draft.model;
                    self.made.extend(draft.made);
                }
                End::NotCommitted => {}
                End::Unknown => {
                    self.ends[3] += 1;
                    self.model.may_be(draft.model);
                    session = None;
                    continue;
                }
            }
            if closed {
                session = None;
            }
        }
        // What is still open is decided.
        let deadline = Instant::now() + Duration::from_secs(90);
        while self.connect(cluster).is_none() {
            assert!(Instant::now() < deadline, "session {} cannot connect any more", self.stream);
        }
    }

    /// A session in which everything is certain, unless the server is away.
    fn connect(&mut self, cluster: &Cluster) -> Option<Client> {
        let opened = cluster.config("storm", cluster.database()).connect(NoTls).and_then(|mut client| {
            client.try_ask("SET lock_timeout = '5s'; SET statement_timeout = '60s'")?;
            self.decide(&mut client)?;
            Ok(client)
        });
        match opened {
            Ok(client) => {
                self.reconnected += 1;
                Some(client)
            }
            Err(error) => {
                self.tolerate(Kind::Shared, "connect", &error);
                std::thread::sleep(Duration::from_millis(50));
                None
            }
        }
    }

    /// Commits what is still prepared (it was about to be), and looks at what is not certain.
    fn decide(&mut self, client: &mut Client) -> Result<(), postgres::Error> {
        let mine = format!("SELECT gid FROM pg_prepared_xacts WHERE gid LIKE 'storm/{}/%'", self.stream);
        for gid in client.try_ask(&mine)?.lines() {
            client.try_ask(&format!("COMMIT PREPARED '{gid}'"))?;
        }
        // A process that was killed after its commit was written still counts as running until the server restarts, which ends
        // this session too: what is seen before that decides nothing.
        if !self.model.uncertain().is_empty() {
            std::thread::sleep(Duration::from_secs(1));
        }
        for name in self.model.uncertain() {
            match client.query_one("SELECT version, value FROM vault.get_secret($1)", &[&name]) {
                Ok(row) => self.model.found(&name, Some((row.get(0), row.get(1)))),
                Err(error) if error.code().is_some_and(|code| code.code() == "P0002") => {
                    self.model.found(&name, None)
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn transaction(&mut self, client: &mut Client, draft: &mut Draft) -> End {
        if self.random.one_in(2) {
            return match self.operations.act(client, draft, &mut self.random) {
                Ok(name) => {
                    self.worked(name);
                    self.ends[0] += 1;
                    End::Committed
                }
                Err((kind, name, error)) if self.tolerate(kind, name, &error) => End::NotCommitted,
                Err(_) => End::Unknown,
            };
        }
        let level = *self.random.pick(&LEVELS);
        let begun = client.batch_execute(&format!("BEGIN ISOLATION LEVEL {level}"));
        if let Err((kind, name, error)) =
            begun.map_err(|error| (Kind::Shared, "begin", error)).and_then(|()| self.inside(client, draft))
        {
            // Nothing was committed, whatever happened to the session.
            if self.tolerate(kind, name, &error)
                && let Err(error) = client.batch_execute("ROLLBACK")
            {
                self.tolerate(Kind::Shared, "rollback", &error);
            }
            return End::NotCommitted;
        }
        self.end(client)
    }

    /// One to four operations, some below savepoints.
    fn inside(
        &mut self,
        client: &mut Client,
        draft: &mut Draft,
    ) -> Result<(), (Kind, &'static str, postgres::Error)> {
        let plain = |error| (Kind::Shared, "savepoint", error);
        for _ in 0..=self.random.below(4) {
            let before = (self.random.one_in(3)).then(|| draft.clone());
            if before.is_some() {
                client.batch_execute("SAVEPOINT s").map_err(plain)?;
            }
            match (self.operations.act(client, draft, &mut self.random), before) {
                (Ok(name), None) => self.worked(name),
                (Ok(name), Some(before)) => {
                    self.worked(name);
                    if self.random.one_in(2) {
                        client.batch_execute("ROLLBACK TO s").map_err(plain)?;
                        *draft = before;
                    } else {
                        client.batch_execute("RELEASE s").map_err(plain)?;
                    }
                }
                (Err((kind, name, error)), Some(before)) => {
                    if !self.tolerate(kind, name, &error) {
                        return Err((kind, name, error));
                    }
                    client.batch_execute("ROLLBACK TO s").map_err(plain)?;
                    *draft = before;
                }
                (Err(error), None) => return Err(error),
            }
        }
        Ok(())
    }

    fn end(&mut self, client: &mut Client) -> End {
        if self.random.one_in(4) {
            if let Err(error) = client.batch_execute("ROLLBACK") {
                self.tolerate(Kind::Shared, "rollback", &error);
            }
            self.ends[1] += 1;
            return End::NotCommitted;
        }
        let commit = if self.random.one_in(12) {
            let gid = format!("storm/{}/{}", self.stream, self.ends.iter().sum::<u64>());
            match client.batch_execute(&format!("PREPARE TRANSACTION '{gid}'")) {
                Ok(()) => self.ends[2] += 1,
                Err(error) if self.tolerate(Kind::Own, "prepare", &error) => return End::NotCommitted,
                Err(_) => return End::Unknown,
            }
            format!("COMMIT PREPARED '{gid}'")
        } else {
            "COMMIT".to_owned()
        };
        match client.batch_execute(&commit) {
            Ok(()) => {
                self.ends[0] += 1;
                End::Committed
            }
            Err(error) if self.tolerate(Kind::Own, "commit", &error) => End::NotCommitted,
            Err(_) => End::Unknown,
        }
    }

    fn worked(&mut self, name: &'static str) {
        *self.worked.entry(name).or_default() += 1;
    }

    /// Counts an error that may be; panics at any other. Whether the session goes on.
    fn tolerate(&mut self, kind: Kind, name: &str, error: &postgres::Error) -> bool {
        let Some(code) = error.code().map(|code| code.code()) else {
            *self.refused.entry("session lost".into()).or_default() += 1;
            return false;
        };
        let ended = ENDED.contains(&code);
        let racing = kind != Kind::Own && RACING.contains(&code);
        assert!(
            ended || racing || ALWAYS.contains(&code),
            "stream {}: {name} of {kind:?}: no session may be told this: {error:?}",
            self.stream
        );
        *self.refused.entry(format!("{code} {}", if racing { "" } else { name })).or_default() += 1;
        !ended
    }
}

/// What all sessions know when the storm is over.
pub struct Notes {
    sessions: Vec<Session>,
}

impl Notes {
    fn sum<K: Ord + Clone>(&self, of: impl Fn(&Session) -> &BTreeMap<K, u64>) -> BTreeMap<K, u64> {
        let mut sum = BTreeMap::new();
        for (key, n) in self.sessions.iter().flat_map(of) {
            *sum.entry(key.clone()).or_default() += n;
        }
        sum
    }

    pub fn report(&self) {
        let ends = |i: usize| self.sessions.iter().map(|session| session.ends[i]).sum::<u64>();
        println!("worked: {:?}", self.sum(|session| &session.worked));
        println!("refused: {:?}", self.sum(|session| &session.refused));
        println!(
            "{} transactions committed, {} rolled back, {} prepared, {} with unknown end; {} sessions opened",
            ends(0),
            ends(1),
            ends(2),
            ends(3),
            self.sessions.iter().map(|session| session.reconnected).sum::<u64>()
        );
    }

    /// Every kind of operation has worked, and errors did not outweigh the work.
    pub fn assert_stormy(&self, length: Duration) {
        let worked = self.sum(|session| &session.worked);
        let all: u64 = worked.values().sum();
        assert!(all > 10 * length.as_secs(), "{all} operations in {length:?} are no storm");
        let outages: u64 = self
            .sum(|session| &session.refused)
            .iter()
            .filter(|(code, _)| code.starts_with("08006"))
            .map(|(_, n)| n)
            .sum();
        assert!(outages * 20 <= all, "{outages} of {all} found no key service");
        if length > Duration::from_secs(300) {
            assert!(worked.len() == KINDS, "some kinds of operations never worked: {worked:?}");
        }
    }

    /// What was acknowledged is there.
    pub fn assert_kept(mut self, vault: &Vault<'_>) {
        let mut app = vault.app();
        let (mut there, mut gone) = (0, 0);
        for session in &mut self.sessions {
            for name in session.model.names() {
                match app.query_one("SELECT version, value FROM vault.get_secret($1)", &[&name]) {
                    Ok(row) => session.model.found(&name, Some((row.get(0), row.get(1)))),
                    Err(error) => {
                        assert_eq!(error.code().map(|code| code.code()), Some("P0002"), "{name}: {error:?}");
                        session.model.found(&name, None);
                    }
                }
                match session.model.of(&name) {
                    Some(_) => there += 1,
                    None => gone += 1,
                }
            }
        }
        // No version of a shared secret was given twice; the last that was acknowledged is not gone, and has its value.
        let mut versions: BTreeMap<(&str, i32), &Made> = BTreeMap::new();
        for made in self.sessions.iter().flat_map(|session| &session.made) {
            let other = versions.insert((&made.id, made.version), made);
            assert!(other.is_none(), "given twice: {made:?} and {other:?}");
        }
        let mut root = vault.root();
        let (mut shared, mut known) = (0, 0);
        for i in 0..SHARED {
            let name = format!("shared/{i}");
            let sql = "SELECT id::text, version FROM vault.list_secrets($1) WHERE recover_until IS NULL";
            let Some(row) = root.query_opt(sql, &[&name]).expect("a listing") else { continue };
            let (id, version): (&str, i32) = (row.get(0), row.get(1));
            shared += 1;
            let last = versions.range((id, 0)..=(id, i32::MAX)).next_back().map(|((_, version), _)| *version);
            assert!(
                last.is_none_or(|last| last <= version),
                "{name}: version {last:?} was acknowledged, {version} is there"
            );
            // One that runs out may do so now.
            let Ok(read) = app.query_one("SELECT value FROM vault.get_secret($1, $2)", &[&name, &version])
            else {
                continue;
            };
            if let Some(value) = versions.get(&(id, version)).and_then(|made| made.value.as_ref()) {
                assert_eq!(read.get::<_, &str>(0), value, "{name}");
                known += 1;
            }
        }
        println!(
            "{there} secrets with one writer are there, {gone} are gone, as noted; {shared} shared ones, {known} with a value that was noted"
        );
    }
}
