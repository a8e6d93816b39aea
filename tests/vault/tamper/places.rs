//! Whole, authentic ciphertexts in another place: another secret, version, name, format, vault. Runs in the test
//! process.

use super::{Table, VALUES, assert_all_open, assert_flat, assert_refused, fill, reads, run};
use hyperion_vault_tests::{Cluster, KeyFile, StopMode, expect_error, random_bytes, sqlstate};

/// Both of two secrets get each other's columns.
fn swap(columns: &str, one: &str, other: &str) -> String {
    let assignments: Vec<String> = columns.split(' ').map(|c| format!("{c} = o.{c}")).collect();
    format!(
        "UPDATE vault.secrets s SET {} FROM kept.secrets o
          WHERE (s.name, o.name) IN (('{one}', '{other}'), ('{other}', '{one}'))",
        assignments.join(", ")
    )
}

fn misplaced(table: &mut Table) {
    let both: &[(&str, Option<i32>)] = &[("a", None), ("b", None)];
    for columns in [
        "sealed",
        "wrapped_dek",
        "version_id",
        "sealed wrapped_dek",
        "sealed wrapped_dek version_id",
        "sealed wrapped_dek version_id version",
        "sealed wrapped_dek version_id version format kind",
    ] {
        table.tampered(&swap(columns, "a", "b"), both);
    }
    // Everything but the name: the row of one secret under the name of another.
    table.tampered("UPDATE vault.secrets SET name = 'renamed' WHERE name = 'b'", &[("renamed", None)]);
    table.tampered(
        "UPDATE vault.secrets SET name = 'tmp' WHERE name = 'b';
         UPDATE vault.secrets SET name = 'b' WHERE name = 'login';
         UPDATE vault.secrets SET name = 'login' WHERE name = 'tmp';",
        &[("b", None), ("login", None)],
    );
    // Ids: of the secret, of the version, of each other.
    table.tampered("UPDATE vault.secrets SET id = gen_random_uuid() WHERE name = 'b'", &[("b", None)]);
    table
        .tampered("UPDATE vault.secrets SET version_id = gen_random_uuid() WHERE name = 'b'", &[("b", None)]);
    table.tampered(
        "UPDATE vault.secrets SET id = version_id, version_id = id WHERE name = 'b'",
        &[("b", None)],
    );
    // The number of a version, up and down.
    table.tampered("UPDATE vault.secrets SET version = 3 WHERE name = 'a'", &[("a", None), ("a", Some(3))]);
    table.tampered("UPDATE vault.secrets SET version = 2147483647 WHERE name = 'b'", &[("b", None)]);
    table.tampered("UPDATE vault.secret_versions SET version = 9", &[("a", Some(9))]);
    // The superseded version as the current one, without and with its id; and the other way round; and both.
    let old_as_current = "UPDATE vault.secrets s SET sealed = o.sealed, wrapped_dek = o.wrapped_dek
                            FROM kept.secret_versions o WHERE o.secret_id = s.id";
    table.tampered(old_as_current, &[("a", None)]);
    let with_id = old_as_current.replace(" SET ", " SET version_id = o.version_id, ");
    table.tampered(&with_id, &[("a", None)]);
    let current_as_old = "UPDATE vault.secret_versions v
                             SET sealed = s.sealed, wrapped_dek = s.wrapped_dek, version_id = s.version_id
                            FROM kept.secrets s WHERE v.secret_id = s.id";
    table.tampered(current_as_old, &[("a", Some(1))]);
    table.tampered(&format!("{with_id}; {current_as_old}"), &[("a", None), ("a", Some(1))]);
    // A version of another secret as a superseded one of this, which verify would overlook but for the end of a grace.
    table.tampered(
        "UPDATE vault.secrets SET grace_until = 'infinity' WHERE name = 'b';
         INSERT INTO vault.secret_versions
         SELECT b.id, v.version_id, 7, v.format, v.wrapped_dek, v.sealed, v.kms_key_id, v.kms_key_material_id,
                v.created_at, v.superseded_at, v.expires_at
           FROM vault.secret_versions v, vault.secrets b WHERE b.name = 'b'",
        &[("b", Some(7))],
    );
    // Another format for the same bytes: a password must not come out with the user name in front of it.
    table.tampered("UPDATE vault.secrets SET format = 'userpass' WHERE name = 'b'", &[("b", None)]);
    table.tampered("UPDATE vault.secrets SET format = 'opaque' WHERE name = 'login'", &[("login", None)]);
    table.tampered("UPDATE vault.secret_versions SET format = 'userpass'", &[("a", Some(1))]);
    // A format that does not exist.
    let drop_check = "ALTER TABLE vault.secrets DROP CONSTRAINT secrets_format_check";
    let add_check = "ALTER TABLE vault.secrets ADD CONSTRAINT secrets_format_check
                       CHECK (format IN ('opaque', 'binary', 'userpass'))";
    table.root.batch_execute(drop_check).unwrap();
    table.tampered("UPDATE vault.secrets SET format = 'Opaque' WHERE name = 'b'", &[("b", None)]);
    table.root.batch_execute(add_check).unwrap();
    // Binary is not text: read_secret says so without opening anything, the others have to open it.
    table.root.batch_execute("UPDATE vault.secrets SET format = 'binary' WHERE name = 'b'").unwrap();
    for (i, (sql, parameters)) in reads("b", None).into_iter().enumerate() {
        let error =
            expect_error(run(&mut table.app, sql, &parameters), if i == 0 { "22023" } else { "XX001" });
        assert!(i == 0 || error.detail().is_none());
        assert!(!format!("{error:?}").contains(VALUES[2]));
    }
    table.restore();
    // The vault's own identity.
    let all: &[(&str, Option<i32>)] = &[("a", None), ("a", Some(1)), ("b", None), ("login", None)];
    table.tampered("UPDATE vault.vault_meta SET vault_id = gen_random_uuid()", all);
    table.tampered("DELETE FROM vault.vault_meta", all);
    assert_all_open(&mut table.app);
}

#[test]
fn a_ciphertext_opens_only_in_its_place() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    fill(&mut vault.root());
    let mut table = Table::new(&vault);
    assert_all_open(&mut table.app);
    misplaced(&mut table);

    // Writers that build on the old value refuse as well, and change nothing.
    table
        .root
        .batch_execute("UPDATE vault.secrets SET sealed = sealed || '\\x00' WHERE name = 'login'")
        .unwrap();
    let mut ops = vault.ops();
    let sql = "SELECT vault.update_secret(name => 'login', password => 'new')";
    let error = expect_error(ops.query(sql, &[]), "XX001");
    assert_flat(&error, "update_secret");
    let version: i32 =
        table.root.query_one("SELECT version FROM vault.secrets WHERE name = 'login'", &[]).unwrap().get(0);
    assert_eq!(version, 1);
    table.restore();

    cluster.set_conf("hyperion_vault.dek_cache_ttl_secs", "0");
    cluster.restart(StopMode::Fast);
    let (root, app) = (vault.root(), vault.app());
    misplaced(&mut Table { root, app });
}

/// A vault that has lost its identity makes no new one: what it sealed under that could not live beside the old.
#[test]
fn a_vault_without_its_identity_seals_nothing() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut ops = vault.ops();
    fill(&mut ops);
    let mut table = Table::new(&vault);
    table.root.batch_execute("DELETE FROM vault.vault_meta").unwrap();
    for sql in [
        "SELECT vault.put_secret('new', 'x')",
        "SELECT vault.put_secret('b', 'x')",
        "SELECT vault.create_secret('new', 'x')",
        "SELECT vault.update_secret('b', value => 'x')",
    ] {
        sqlstate!(ops.query(sql, &[]), "XX001", detail: "vault.vault_meta", hint: "Restore vault.vault_meta");
    }
    let rows: i64 = table.root.query_one("SELECT count(*) FROM vault.vault_meta", &[]).unwrap().get(0);
    assert_eq!(rows, 0, "no identity was made up");
    // Emptied on purpose it is a new vault.
    table.root.batch_execute("DELETE FROM vault.secrets").unwrap();
    ops.query("SELECT vault.put_secret('new', 'x')", &[]).unwrap();
    table.restore();
    assert_all_open(&mut table.app);
}

/// Two vaults under one key file: rows of one do not open in the other, though the same key wraps both.
#[test]
fn rows_of_another_vault_do_not_open() {
    let key = KeyFile::Custom { bytes: random_bytes::<32>().to_vec(), mode: 0o600 };
    let theirs = Cluster::builder().key_file(key.clone()).start();
    let vault = theirs.vault();
    fill(&mut vault.root());
    let copy = |client: &mut hyperion_vault_tests::Client, table: &str| {
        let mut bytes = Vec::new();
        let mut reader = client.copy_out(&format!("COPY vault.{table} TO STDOUT")).unwrap();
        std::io::Read::read_to_end(&mut reader, &mut bytes).unwrap();
        bytes
    };
    let tables =
        ["secrets", "secret_versions", "vault_meta"].map(|table| (table, copy(&mut vault.root(), table)));

    let ours = Cluster::builder().key_file(key).start();
    let vault = ours.vault();
    let (mut root, mut app) = (vault.root(), vault.app());
    root.query("SELECT vault.put_secret('ours', 'our value')", &[]).unwrap();
    let mut paste = |table: &str, bytes: &[u8]| {
        let mut writer = root.copy_in(&format!("COPY vault.{table} FROM STDIN")).unwrap();
        std::io::Write::write_all(&mut writer, bytes).unwrap();
        writer.finish().unwrap();
    };
    for (table, bytes) in &tables[..2] {
        paste(table, bytes);
    }
    for (name, version) in [("a", None), ("a", Some(1)), ("b", None), ("login", None)] {
        assert_refused(&mut app, name, version, "a row of another vault");
    }
    let own: String = app.query_one("SELECT vault.read_secret('ours')", &[]).unwrap().get(0);
    assert_eq!(own, "our value");

    // With their vault's identity they open: that is a restore. Ours then do not.
    root.batch_execute("DELETE FROM vault.vault_meta").unwrap();
    let (table, bytes) = &tables[2];
    let mut writer = root.copy_in(&format!("COPY vault.{table} FROM STDIN")).unwrap();
    std::io::Write::write_all(&mut writer, bytes).unwrap();
    writer.finish().unwrap();
    assert_all_open(&mut app);
    assert_refused(&mut app, "ours", None, "a row sealed under the identity before");
}
