//! The few things std does not offer: the server's user, signals, children that die with us, ports.
//!
//! Runs in the test process. The trap: a test run that is killed must not leave servers behind. PR_SET_PDEATHSIG does
//! that, but it fires when the *thread* that forked ends, and libtest gives every test its own thread; so all
//! postmasters are forked by one thread that lives as long as the process.

use std::collections::BTreeSet;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};

/// The unprivileged user that runs servers when the tests run as root: postgres and initdb refuse to be root.
#[derive(Clone, Copy, Debug)]
pub struct ServerUser {
    uid: u32,
    gid: u32,
}

impl ServerUser {
    /// `None` when the tests are not root: servers then simply run as the same user.
    pub fn from_env() -> Option<Self> {
        if effective_uid() != 0 {
            return None;
        }
        let name = std::env::var("HYPERION_VAULT_TEST_USER").unwrap_or_else(|_| "postgres".into());
        let user = Self { uid: id_of("-u", &name), gid: id_of("-g", &name) };
        assert_ne!(user.uid, 0, "HYPERION_VAULT_TEST_USER={name} is root; servers refuse to run as root");
        Some(user)
    }
}

pub fn effective_uid() -> u32 {
    // SAFETY: geteuid reads a property of this process; it has no preconditions and cannot fail.
    unsafe { libc::geteuid() }
}

fn id_of(flag: &str, name: &str) -> u32 {
    let output = Command::new("id").args([flag, name]).output().expect("cannot run id(1)");
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    text.parse().unwrap_or_else(|_| {
        panic!("no system user {name:?} to run servers as; create it or set HYPERION_VAULT_TEST_USER")
    })
}

/// Makes `command` run as the server's user, with nothing of our own environment that steers libpq, a server or the
/// AWS SDK: a developer's PGHOST or AWS_PROFILE must not reach a test, nor RUST_BACKTRACE the server's messages.
pub fn as_server_user(command: &mut Command, user: Option<ServerUser>) {
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if ["PG", "AWS_", "VAULT_", "RUST_", "LC_", "LANG"].iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(&*name);
        }
    }
    if let Some(user) = user {
        command.uid(user.uid).gid(user.gid);
    }
}

/// Hands `path` to the server's user and sets its mode.
pub fn give_to(path: &Path, user: Option<ServerUser>, mode: u32) -> io::Result<()> {
    if let Some(user) = user {
        chown(path, Some(user.uid), Some(user.gid))?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

/// Sends `signal`. Callers (postmaster.rs, cluster.rs) have checked that `pid` is a process we started.
pub fn send_signal(pid: i32, signal: i32) -> io::Result<()> {
    assert!(pid > 1, "refusing to signal {pid}: 0, -1 and negative ids mean groups of processes");
    // SAFETY: kill takes plain integers; a positive pid names exactly one process.
    if unsafe { libc::kill(pid, signal) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Spawns `command` so that it gets SIGQUIT (a postmaster's immediate shutdown) when this process dies, however.
pub fn spawn_tied_to_us(command: Command) -> io::Result<Child> {
    type Job = (Command, Sender<io::Result<Child>>);
    static SPAWNER: OnceLock<Sender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, queue) = channel::<Job>();
        std::thread::Builder::new()
            .name("spawner".into())
            .spawn(move || {
                for (mut command, reply) in queue {
                    // SAFETY: the closure runs between fork and exec and makes one async-signal-safe system call.
                    // It runs after std has switched the user, which would have cleared the setting.
                    unsafe {
                        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGQUIT) {
                            0 => Ok(()),
                            _ => Err(io::Error::last_os_error()),
                        });
                    }
                    // The asker is waiting in recv below; if it has gone, its child is only waited for at our exit.
                    let _ = reply.send(command.spawn());
                }
            })
            .expect("cannot start a thread");
        jobs
    });
    let (reply, answer) = channel();
    spawner.send((command, reply)).expect("the spawner thread never ends");
    answer.recv().expect("the spawner thread never ends")
}

/// Bytes from the operating system's random source.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system's random source failed");
    bytes
}

/// Random letters and digits: canaries to look for later. Random, so that neither table nor WAL compression can hide
/// them from a search.
pub fn random_text(len: usize) -> String {
    const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    // The slight bias of the remainder is of no importance here.
    (0..len).map(|_| char::from(ALPHABET[usize::from(random_bytes::<1>()[0]) % ALPHABET.len()])).collect()
}

pub fn ipv6_loopback_works() -> bool {
    TcpListener::bind("[::1]:0").is_ok()
}

/// A loopback port, held for its owner within this process until dropped.
pub struct Port(u16);

static PORTS_HELD: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

impl Port {
    /// Picks below the kernel's ephemeral range (32768 and up), so that no outgoing connection takes the port while a
    /// server restarts. Another process may still race us to it: whoever starts a server must look for a failed bind.
    pub fn reserve() -> Self {
        for _ in 0..1000 {
            let port = 20_000 + u16::from_le_bytes(random_bytes()) % 12_000;
            let free = TcpListener::bind(("127.0.0.1", port)).is_ok()
                && (!ipv6_loopback_works() || TcpListener::bind(("::1", port)).is_ok());
            if free && PORTS_HELD.lock().unwrap_or_else(PoisonError::into_inner).insert(port) {
                return Self(port);
            }
        }
        panic!("no free loopback port between 20000 and 32000");
    }

    pub fn number(&self) -> u16 {
        self.0
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        PORTS_HELD.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}
