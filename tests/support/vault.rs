//! A cluster with the extension created and the usual roles. Runs in the test process.

use crate::cluster::Cluster;
use postgres::Client;

/// Roles: `app` reads (vault_reader), `ops` manages (vault_admin), `nobody_special` may only log in.
pub struct Vault<'a> {
    pub cluster: &'a Cluster,
}

impl Cluster {
    /// Creates the extension and the roles. Call it once per cluster.
    #[track_caller]
    pub fn vault(&self) -> Vault<'_> {
        let sql = "CREATE EXTENSION hyperion_vault;
                   CREATE ROLE app LOGIN IN ROLE vault_reader;
                   CREATE ROLE ops LOGIN IN ROLE vault_admin;
                   CREATE ROLE nobody_special LOGIN;";
        if let Err(error) = self.superuser().batch_execute(sql) {
            panic!("cannot set up the vault: {error:?}");
        }
        Vault { cluster: self }
    }
}

impl Vault<'_> {
    /// A new session of a member of `vault_reader`.
    #[track_caller]
    pub fn app(&self) -> Client {
        self.session("app")
    }

    /// A new session of a member of `vault_admin`.
    #[track_caller]
    pub fn ops(&self) -> Client {
        self.session("ops")
    }

    /// A new session of a role without any vault rights.
    #[track_caller]
    pub fn nobody(&self) -> Client {
        self.session("nobody_special")
    }

    /// A new superuser session.
    #[track_caller]
    pub fn root(&self) -> Client {
        self.cluster.superuser()
    }

    #[track_caller]
    pub fn session(&self, user: &str) -> Client {
        self.cluster.connect(user, self.cluster.database())
    }
}
