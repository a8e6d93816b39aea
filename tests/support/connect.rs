//! Connections to a cluster, and witnesses of whether it restarted. Runs in the test process.

use crate::cluster::Cluster;
use postgres::config::SslMode;
use postgres::error::SqlState;
use postgres::{Client, Config, Error, NoTls};
use std::time::Duration;

impl Cluster {
    /// How to reach this cluster over its Unix socket: to be cloned into threads, or for settings of one's own.
    pub fn config(&self, user: &str, database: &str) -> Config {
        let mut config = Config::new();
        config.host_path(self.socket_dir()).port(self.port()).user(user).dbname(database);
        // Bounds the wait for a full accept queue; a session that hangs later is the watchdog's business.
        config.connect_timeout(Duration::from_secs(30)).application_name("hyperion_vault_tests");
        config.ssl_mode(SslMode::Disable);
        config
    }

    pub fn config_tcp(&self, user: &str, database: &str, host: &str) -> Config {
        let mut config = Config::new();
        config.host(host).port(self.port()).user(user).dbname(database);
        config.connect_timeout(Duration::from_secs(30)).application_name("hyperion_vault_tests");
        config.ssl_mode(SslMode::Disable);
        config
    }

    pub fn try_connect(&self, user: &str, database: &str) -> Result<Client, Error> {
        self.config(user, database).connect(NoTls)
    }

    /// A session over the Unix socket.
    #[track_caller]
    pub fn connect(&self, user: &str, database: &str) -> Client {
        self.opened(self.try_connect(user, database), user)
    }

    /// A session over TCP, from and to loopback: `host` is `127.0.0.1` or `::1`.
    #[track_caller]
    pub fn connect_tcp(&self, user: &str, database: &str, host: &str) -> Client {
        self.opened(self.config_tcp(user, database, host).connect(NoTls), user)
    }

    /// A superuser's session in the vault's database.
    #[track_caller]
    pub fn superuser(&self) -> Client {
        self.connect("postgres", &self.database)
    }

    /// The harness' own session: a test's settings, such as a short statement_timeout for everyone, do not reach it.
    pub(crate) fn try_control(&self) -> Result<Client, Error> {
        let mut config = self.config("postgres", "postgres");
        config.options("-c statement_timeout=0 -c lock_timeout=0 -c default_transaction_read_only=off");
        config.connect(NoTls)
    }

    /// Opens a witness now; see [`Witness`].
    #[track_caller]
    pub fn witness(&self) -> Witness {
        let mut client = self.connect("postgres", "postgres");
        let pid = backend_pid(&mut client);
        Witness { client, pid, config: self.config("postgres", "postgres") }
    }

    #[track_caller]
    fn opened(&self, client: Result<Client, Error>, user: &str) -> Client {
        client.unwrap_or_else(|error| {
            panic!("cannot connect as {user}: {error:?}; the end of the server log:\n{}", self.log_tail(20))
        })
    }

    pub(crate) fn accepts_connections(&self) -> bool {
        match self.try_connect("postgres", "postgres") {
            Ok(_) => true,
            // Refused for a reason of its own, such as too many clients, by a server that is up.
            Err(error) => error.code().is_some_and(|code| *code != SqlState::CANNOT_CONNECT_NOW),
        }
    }
}

/// The process id of the backend that serves this session.
#[track_caller]
pub fn backend_pid(client: &mut Client) -> i32 {
    client.query_one("SELECT pg_backend_pid()", &[]).expect("cannot ask for the backend's pid").get(0)
}

/// A session opened before an event. If its backend still answers afterwards, the server did not restart: after the
/// death of a process by SIGKILL or SIGSEGV the postmaster ends every other one.
pub struct Witness {
    client: Client,
    pid: i32,
    config: Config,
}

impl Witness {
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether the same backend still answers. Call it once the event is over (`kill_and_wait`).
    pub fn survived(&mut self) -> bool {
        // A postmaster deals with dead children before it takes a new connection. So after this attempt, whatever
        // comes of it, the witness has been told to end if it has to; without it a quick question could still be
        // answered in the moment before.
        drop(self.config.connect(NoTls));
        let pid = self.client.query_one("SELECT pg_backend_pid()", &[]).map(|row| row.get::<_, i32>(0));
        pid.is_ok_and(|pid| pid == self.pid)
    }

    #[track_caller]
    pub fn assert_survived(&mut self) {
        assert!(self.survived(), "the server restarted: the witness session was ended");
    }

    #[track_caller]
    pub fn assert_lost(&mut self) {
        // A dead child is gone a moment before the postmaster ends the others for it.
        let lost = crate::wait_until(crate::PATIENCE, || !self.survived());
        assert!(lost, "the server did not restart: the witness session still answers");
    }
}
