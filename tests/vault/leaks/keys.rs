//! The data keys behind the stored versions, computed as the local provider would. Runs in the test process.
//!
//! The trap: a search for keys that were computed wrongly finds nothing either. [`MasterKeyFile::deks`] therefore opens each
//! wrapped key with authentication: a wrong master key, place or layout fails the test.

use hyperion_vault_core::envelope::{DekContext, Id, MasterKey, unwrap_dek};
use hyperion_vault_tests::{Client, ClusterBuilder, KeyFile, random_bytes};

/// A master key that the test chose.
pub struct MasterKeyFile {
    pub bytes: [u8; 32],
}

/// A version's data key; `label` says whose.
#[derive(Clone)]
pub struct KnownDek {
    pub label: String,
    pub bytes: [u8; 32],
}

impl MasterKeyFile {
    pub fn new() -> Self {
        Self { bytes: random_bytes() }
    }

    /// Makes the cluster use it.
    pub fn give_to(&self, builder: ClusterBuilder) -> ClusterBuilder {
        builder.key_file(KeyFile::Custom { bytes: self.bytes.to_vec(), mode: 0o600 })
    }

    /// The data keys of all versions that `client`, a superuser, sees: in its own transaction also those that it has
    /// not committed. Only those of secrets whose name is LIKE `names`.
    #[track_caller]
    pub fn deks(&self, client: &mut impl postgres::GenericClient, names: &str) -> Vec<KnownDek> {
        let master = MasterKey::from_slice(&self.bytes).unwrap();
        let sql = "SELECT uuid_send(m.vault_id), uuid_send(v.secret), uuid_send(v.version_id), v.wrapped_dek,
                          v.name || ' version ' || v.version
                     FROM vault.vault_meta m,
                          (SELECT s.id AS secret, s.version_id, s.wrapped_dek, s.version, s.name FROM vault.secrets s
                           UNION ALL
                           SELECT s.id, o.version_id, o.wrapped_dek, o.version, s.name
                             FROM vault.secret_versions o JOIN vault.secrets s ON s.id = o.secret_id) v
                    WHERE v.name LIKE $1";
        let rows = client.query(sql, &[&names]).expect("cannot read the wrapped keys");
        let id = |bytes: &[u8]| Id::from_slice(bytes).expect("uuid_send gives 16 bytes");
        rows.iter()
            .map(|row| {
                let (vault, secret, version) = (id(row.get(0)), id(row.get(1)), id(row.get(2)));
                let wrapped: &[u8] = row.get(3);
                // Format 1, 'L', the master key's fingerprint, the sealed key.
                let (head, sealed) = wrapped.split_at(10);
                assert_eq!(head, [&[1, b'L'][..], &master.fingerprint()].concat());
                let dek = unwrap_dek(&master, &DekContext { vault, secret, version }, sealed).unwrap();
                KnownDek { label: format!("data key of {}", row.get::<_, String>(4)), bytes: *dek.as_bytes() }
            })
            .collect()
    }

    /// The one data key of a secret that has one version.
    #[track_caller]
    pub fn dek(&self, client: &mut Client, name: &str) -> KnownDek {
        let mut deks = self.deks(client, name);
        assert_eq!(deks.len(), 1, "versions of {name}");
        deks.remove(0)
    }
}
