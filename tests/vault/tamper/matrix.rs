//! Bits and lengths: every byte of what is stored, one after the other. Runs in the test process.

use super::{Table, VALUES, assert_all_open, assert_flat, assert_refused, fill};
use hyperion_vault_tests::{Client, Cluster, StopMode, expect_error};

/// Bytes 2 to 9 of a key wrapped by the local provider name the master key that wrapped it.
const FINGERPRINT: std::ops::Range<usize> = 2..10;

fn column(client: &mut Client, column: &str) -> Vec<u8> {
    client.query_one(&format!("SELECT {column} FROM vault.secrets WHERE name = 'b'"), &[]).unwrap().get(0)
}

fn set(client: &mut Client, column: &str, bytes: &[u8]) {
    let sql = format!("UPDATE vault.secrets SET {column} = $1 WHERE name = 'b'");
    assert_eq!(client.execute(&sql, &[&bytes]).unwrap(), 1);
}

/// The tampered key is refused by the key service, which does not know it: 38000, or XX001 in all other bytes.
fn assert_unknown_key(client: &mut Client, what: &str) {
    let error = expect_error(client.query("SELECT vault.read_secret('b')", &[]), "38000");
    assert_eq!(error.message(), "key is sealed under another master key", "{what}");
    assert!(error.detail().is_some() && error.hint().is_some());
    assert!(VALUES.iter().all(|value| !format!("{error:?}").contains(value)));
}

fn every_bit_and_length(table: &mut Table) {
    let Table { root, app } = table;
    // The wrapped key: one bit of each byte; the cipher's own tests flip all of them.
    let wrapped = column(root, "wrapped_dek");
    assert_eq!(wrapped.len(), 83);
    for at in 0..wrapped.len() {
        let mut bad = wrapped.clone();
        bad[at] ^= 1 << (at % 8);
        set(root, "wrapped_dek", &bad);
        let what = format!("wrapped key, byte {at}");
        if FINGERPRINT.contains(&at) {
            assert_unknown_key(app, &what);
        } else {
            assert_refused(app, "b", None, &what);
        }
    }
    for len in [0, 1, 2, 9, 10, 11, 82] {
        set(root, "wrapped_dek", &wrapped[..len]);
        assert_refused(app, "b", None, &format!("wrapped key cut to {len}"));
    }
    for extra in [1, 100, 7_000, 1_000_000] {
        set(root, "wrapped_dek", &[wrapped.clone(), vec![0; extra]].concat());
        assert_refused(app, "b", None, &format!("wrapped key with {extra} bytes more"));
    }
    set(root, "wrapped_dek", &wrapped);

    // The value: format byte, nonce, ciphertext, tag; every bit of them.
    let sealed = column(root, "sealed");
    assert_eq!(sealed.len(), 1 + 24 + VALUES[2].len() + 16);
    for bit in 0..sealed.len() * 8 {
        let mut bad = sealed.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        set(root, "sealed", &bad);
        // One function per bit; each gets its share.
        let sql = [
            "SELECT vault.read_secret('b')",
            "SELECT * FROM vault.get_secret('b')",
            "SELECT vault.verify('b', 'x')",
        ];
        let error = expect_error(app.query(sql[bit % 3], &[]), "XX001");
        assert_eq!(error.message(), "ciphertext cannot be authenticated", "bit {bit}");
        assert_flat(&error, &format!("bit {bit}"));
    }
    for len in 0..sealed.len() {
        set(root, "sealed", &sealed[..len]);
        let error = expect_error(app.query("SELECT vault.read_secret('b')", &[]), "XX001");
        assert_eq!(error.message(), "ciphertext cannot be authenticated", "cut to {len}");
    }
    for extra in [1, 16, 100_000] {
        set(root, "sealed", &[sealed.clone(), vec![0; extra]].concat());
        assert_refused(app, "b", None, &format!("value with {extra} bytes more"));
    }
    set(root, "sealed", &sealed);
    assert_all_open(app);

    // The same in a superseded version: refused where it is asked for; verify, which would compare with it, too.
    for column in ["sealed", "wrapped_dek"] {
        let flip = format!(
            "UPDATE vault.secret_versions SET {column} = set_byte({column}, 40, get_byte({column}, 40) # 1)"
        );
        root.batch_execute(&flip).unwrap();
        assert_refused(app, "a", Some(1), column);
        let current: String = app.query_one("SELECT vault.read_secret('a')", &[]).unwrap().get(0);
        assert_eq!(current, VALUES[1], "the current version is whole");
        root.batch_execute(&flip).unwrap();
        assert_all_open(app);
    }
}

#[test]
fn every_bit_and_every_length_counts() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    fill(&mut vault.root());
    let mut table = Table::new(&vault);
    assert_all_open(&mut table.app);
    every_bit_and_length(&mut table);

    // And with nothing cached: each read asks the key service.
    cluster.set_conf("hyperion_vault.dek_cache_ttl_secs", "0");
    cluster.restart(StopMode::Fast);
    let (root, app) = (vault.root(), vault.app());
    every_bit_and_length(&mut Table { root, app });
}
