//! The real client programs against a cluster: psql, pg_dump and their like. Runs in the test process.
//!
//! They come from the same tree as the server and see nothing of the developer's libpq environment.

use crate::cluster::Cluster;
use crate::sys::as_server_user;
use std::io::Write;
use std::process::{Command, ExitStatus, Stdio};

#[derive(Debug)]
pub struct ToolOutput {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl ToolOutput {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Fails the test, showing what the program said, unless it succeeded.
    #[track_caller]
    pub fn success(self) -> Self {
        assert!(self.status.success(), "{}:\n{}{}", self.status, self.errors(), self.text());
        self
    }
}

impl Cluster {
    /// Runs a script through psql as superuser in the vault's database: unaligned, tuples only, stops at an error.
    pub fn psql(&self, script: &str) -> ToolOutput {
        self.psql_as("postgres", &["-A", "-t", "-q"], script)
    }

    /// Runs a script through psql as `user`, with these further arguments.
    pub fn psql_as(&self, user: &str, args: &[&str], script: &str) -> ToolOutput {
        let mut all = vec!["-X", "-v", "ON_ERROR_STOP=1", "-U", user];
        all.extend(args);
        self.run_tool("psql", &all, script.as_bytes())
    }

    /// A plain-text dump of the vault's database by a superuser.
    #[track_caller]
    pub fn pg_dump(&self, args: &[&str]) -> Vec<u8> {
        self.run_tool("pg_dump", args, b"").success().stdout
    }

    /// Runs a program of the server's tree with libpq's environment set for this cluster (superuser, vault's
    /// database), fed with `stdin`.
    pub fn run_tool(&self, program: &str, args: &[&str], stdin: &[u8]) -> ToolOutput {
        let mut command = Command::new(self.toolchain().program(program));
        as_server_user(&mut command, self.user);
        command
            .args(args)
            .env("PGHOST", self.socket_dir())
            .env("PGPORT", self.port().to_string())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", self.database())
            .env("PGCLIENTENCODING", "UTF8")
            .current_dir(self.dir())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
        let mut pipe = child.stdin.take().expect("stdin is piped");
        // A thread of its own: a program that answers while it reads would otherwise block on its full stdout, and
        // we on its full stdin.
        let output = std::thread::scope(|scope| {
            scope.spawn(move || {
                let _ = pipe.write_all(stdin); // a program that stops early closes the pipe; its status tells
            });
            child.wait_with_output().expect("cannot wait for our own child")
        });
        ToolOutput { status: output.status, stdout: output.stdout, stderr: output.stderr }
    }
}
