//! Values of every size and script, and the rule that writers never show one. Runs in the test process.

use super::Sessions;
use hyperion_vault_tests::{Ask, Cluster, random_text, sqlstate};

const MIB: usize = 1 << 20;

#[test]
fn values_round_trip() {
    let cluster = Cluster::builder().start();
    let mut s = Sessions::of(&cluster.vault());
    let texts = [
        String::new(),
        " ".into(),
        "\n".into(),
        "trailing blank ".into(),
        "quotes ' \" ` $$ \\ \\x00 %s {} ;--".into(),
        "\u{1}\u{7}\u{8}\t\r\n\u{1b}[31m\u{7f}\u{85}".into(),
        "Größe, naïve, Ελληνικά, русский, 日本語, 한국어, हिन्दी, ไทย".into(),
        "עברית \u{202e}العربية\u{202c}".into(),
        "e\u{301} is not é; ﬁ is not fi; \u{212a} is not K".into(),
        "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467} \u{1f1e9}\u{1f1ea}".into(),
        "\u{feff}byte order mark, \u{fffd}, \u{ffff}, \u{10ffff}, \u{e000}".into(),
        "∅".into(),
        random_text(MIB),
        // Four bytes a character: the limit counts bytes.
        "\u{1f600}".repeat(MIB / 4),
        // Compresses well: must not be stored compressed, nor come back shorter.
        "a".repeat(MIB),
    ];
    for (i, text) in texts.iter().enumerate() {
        let name = format!("value {i}");
        let sql = "SELECT version FROM vault.create_secret($1, $2)";
        assert_eq!(s.ops.query_one(sql, &[&name, text]).unwrap().get::<_, i32>(0), 1);
        assert!(s.read(&name) == *text, "value {i} came back changed");
        let got = s.app.query_one("SELECT value FROM vault.get_secret($1)", &[&name]).unwrap();
        assert!(got.get::<_, String>(0) == *text, "value {i}");
        assert_eq!(s.verify(&name, text), "true|1", "value {i}");
        assert_eq!(s.verify(&name, &format!("{text}x")), "false|-", "value {i}");
        // As a password, and as the value of another version.
        let login = format!("login {i}");
        let sql = "SELECT vault.create_secret(name => $1, username => 'ü', password => $2)";
        s.ops.execute(sql, &[&login, text]).unwrap();
        assert!(s.read(&login) == *text, "password {i}");
        let sql = "SELECT version FROM vault.put_secret($1, $2)";
        assert_eq!(s.ops.query_one(sql, &[&name, text]).unwrap().get::<_, i32>(0), 2);
        assert!(s.read(&name) == *text, "value {i} as version 2");
    }
    // What is stored does not tell more than the length: sealed = value + a constant, compressible or not.
    let lengths = "SELECT count(DISTINCT octet_length(sealed)), min(octet_length(sealed)) > 1048576,
                          min(pg_column_size(sealed)) > 1048576
                     FROM vault.secrets WHERE name IN ('value 12', 'value 13', 'value 14')";
    assert_eq!(s.root.ask(lengths), "1|t|t");

    // One byte more is refused everywhere, and nothing is written.
    for long in ["x".repeat(MIB + 1), format!("{}é", "x".repeat(MIB - 1))] {
        for sql in [
            "SELECT vault.create_secret('long', $1)",
            "SELECT vault.put_secret('long', $1)",
            "SELECT vault.put_secret('value 1', $1)",
            "SELECT vault.update_secret('value 1', $1)",
            "SELECT vault.create_secret('long', username => 'u', password => $1)",
            "SELECT vault.update_secret('login 1', password => $1)",
        ] {
            let error = sqlstate!(s.ops.execute(sql, &[&long]), "22023", message: "too long", detail: "1048577 bytes", hint: "max_secret_bytes");
            assert!(!format!("{error:?}").contains("xxxx"), "the error repeats the value");
        }
    }
    assert_eq!(s.app.ask("SELECT count(*) FROM vault.list_secrets('long')"), "0");
    assert_eq!(s.states("value 1"), "2 current, 1 retained");
    // A candidate of any size is only a wrong candidate.
    assert_eq!(s.verify("value 1", &"x".repeat(4 * MIB)), "false|-");

    // The limit is a setting; what is stored already stays readable.
    cluster.set_conf("hyperion_vault.max_secret_bytes", "10");
    s.ops.execute("SELECT vault.put_secret('ten', $1)", &[&"0123456789"]).unwrap();
    sqlstate!(s.ops.execute("SELECT vault.put_secret('ten', $1)", &[&"0123456789x"]), "22023", detail: "at most 10");
    assert!(s.read("value 12") == texts[12]);
    cluster.set_conf("hyperion_vault.max_secret_bytes", "2MB");
    let large = random_text(2 * MIB);
    s.ops.execute("SELECT vault.put_secret('ten', $1)", &[&large]).unwrap();
    assert!(s.read("ten") == large);
}

/// Every function that writes or lists, with what it returns searched for the values it knew.
#[test]
fn writers_and_listings_never_echo_a_value() {
    let cluster = Cluster::builder().start();
    let mut s = Sessions::of(&cluster.vault());
    let canaries: Vec<_> = (0..6).map(|_| random_text(24)).collect();
    let [a, b, c, d, e, f] = &canaries[..] else { unreachable!() };
    let mut seen = String::new();
    for sql in [
        format!("SELECT * FROM vault.create_secret('a', '{a}', grace_period => '1 hour', generator => '{{}}')"),
        format!("SELECT vault.put_secret('a', '{b}')"),
        format!("SELECT * FROM vault.update_secret('a', '{c}', description => 'd')"),
        format!("SELECT vault.create_secret('l', username => '{d}', password => '{e}', generator => '{{}}')"),
        format!("SELECT * FROM vault.update_secret('l', password => '{f}')"),
        "SELECT vault.create_secret('g', kind => 'automatic', rotation_interval => '1 day', grace_period => '1 hour')".into(),
        "SELECT * FROM vault.rotate_secret('a') a, vault.rotate_secret('l') l, vault.rotate_secret('g') g".into(),
        "SELECT * FROM vault.list_secrets()".into(),
        "SELECT vault.list_versions(name) FROM vault.list_secrets()".into(),
        "SELECT * FROM vault.roll_back_secret('a', 1)".into(),
        format!("SELECT * FROM vault.create_secret_bytes('b', '{a}'::bytea)"),
        format!("SELECT * FROM vault.put_secret_bytes('b', '{b}'::bytea)"),
        "SELECT vault.delete_secret('a', '1 day')".into(),
        "SELECT * FROM vault.list_secrets(deleted => true)".into(),
        "SELECT * FROM vault.restore_secret('a')".into(),
        "SELECT vault.delete_secret('a')".into(),
        "SELECT vault.status()".into(),
    ] {
        seen += &s.ops.ask(&sql);
    }
    // The control: this search would find a name.
    assert!(seen.contains("\"secrets\"") && seen.contains("automatic"));
    let mut values = canaries.clone();
    for (name, version) in [("g", 1), ("g", 2), ("l", 3)] {
        let row = s.app.query_one("SELECT vault.read_secret($1, $2)", &[&name, &version]).unwrap();
        values.push(row.get(0));
    }
    for value in &values {
        assert!(
            value.len() >= 24 && !seen.contains(value.as_str()) && !seen.contains(&hex(value)),
            "a writer showed a value"
        );
    }
    // The type itself has no room for one.
    let columns = "SELECT string_agg(attname, ' ' ORDER BY attnum) FROM pg_attribute
                    WHERE attrelid = 'vault.secret_info'::regclass AND attnum > 0 AND NOT attisdropped";
    assert_eq!(
        s.root.ask(columns),
        "id name kind format version description metadata rotation_interval grace_period next_rotation_at generator \
         allowed_ips keep_versions kms_key_id created_at updated_at version_created_at expires_at recover_until target \
         rotation_attempts rotation_error rotation_retry_at"
    );
}

/// A value as the server shows the bytes of it.
fn hex(value: &str) -> String {
    value.bytes().map(|byte| format!("{byte:02x}")).collect()
}
