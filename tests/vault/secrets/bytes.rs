//! Format binary: bytes in, the same bytes out, and what text functions say to them.

use crate::api::Sessions;
use hyperion_vault_tests::{Ask, Client, Cluster, sqlstate};

fn read_bytes(client: &mut Client, name: &str, version: Option<i32>) -> Vec<u8> {
    client
        .query_one("SELECT vault.read_secret_bytes($1, $2)", &[&name, &version])
        .expect("cannot read")
        .get(0)
}

#[test]
fn bytes() {
    let cluster = Cluster::builder().start();
    let mut s = Sessions::of(&cluster.vault());
    let all: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    for (name, value) in
        [("b/all", &all[..]), ("b/empty", b""), ("b/nul", b"\0"), ("b/not text", b"\xff\xfe")]
    {
        let info = s.ops.query_one(
            "SELECT format::text, version FROM vault.create_secret_bytes($1, $2)",
            &[&name, &value],
        );
        let info = info.unwrap();
        assert_eq!((info.get::<_, &str>(0), info.get::<_, i32>(1)), ("binary", 1));
        assert_eq!(read_bytes(&mut s.app, name, None), value, "{name}");
    }
    let full = r"SELECT name, kind, format, description, grace_period, metadata, allowed_ips, keep_versions, expires_at - created_at
        FROM vault.create_secret_bytes(name => 'b/full', value => '\x00ff', description => 'd', grace_period => '1 hour',
          metadata => '{}', allowed_ips => '{10.0.0.0/8}', keep_versions => 2, expires_in => '1 day')";
    assert_eq!(s.ops.ask(full), "b/full|manual|binary|d|01:00:00|{}|{10.0.0.0/8}|2|1 day");
    sqlstate!(s.ops.try_ask(r"SELECT vault.create_secret_bytes('b/nul', '\x01')"), "23505", hint: "put_secret");

    put_and_versions(&mut s);
    text_functions_on_bytes(&mut s);
    bytes_functions_on_text(&mut s);
    limits(&mut s);
}

fn put_and_versions(s: &mut Sessions) {
    let put = "SELECT version, format, description FROM vault.put_secret_bytes";
    assert_eq!(s.ops.ask(&format!(r"{put}('p', '\x0001', description => 'one')")), "1|binary|one");
    s.ops.ask("SELECT vault.update_secret('p', grace_period => '1 hour')");
    assert_eq!(s.ops.ask(&format!(r"{put}('p', '\x0002', expected_version => 1)")), "2|binary|one");
    sqlstate!(s.ops.try_ask(&format!(r"{put}('p', '\x0003', expected_version => 1)")), "55000", detail: "at version 2");
    assert_eq!(
        (read_bytes(&mut s.app, "p", None), read_bytes(&mut s.app, "p", Some(1))),
        (vec![0, 2], vec![0, 1])
    );
    let mut verify = |candidate: &str| {
        s.app.ask(&format!("SELECT valid, version FROM vault.verify_bytes('p', '{candidate}')"))
    };
    assert_eq!(verify(r"\x0002"), "t|2");
    assert_eq!(verify(r"\x0001"), "t|1");
    assert_eq!(verify(r"\x00"), "f|∅");
    assert_eq!(verify(r"\x"), "f|∅");
    assert_eq!(verify(r"\x000200"), "f|∅");
    s.ops.ask("SELECT vault.roll_back_secret('p', 1)");
    assert_eq!(read_bytes(&mut s.app, "p", None), [0, 1]);
    s.expire("p");
    sqlstate!(s.app.try_ask("SELECT vault.read_secret_bytes('p', 1)"), "P0002", hint: "list_versions");
}

/// A secret keeps the format it was created with.
fn text_functions_on_bytes(s: &mut Sessions) {
    s.ops.ask(r"SELECT vault.create_secret_bytes('t', 'plain'::bytea)");
    sqlstate!(s.app.try_ask("SELECT vault.read_secret('t')"), "22023", message: "is binary", hint: "vault.read_secret_bytes()");
    // No value, rather than a text that stands for one; the format says why.
    assert_eq!(
        s.app.ask("SELECT format, version, value, username, password FROM vault.get_secret('t')"),
        "binary|1|∅|∅|∅"
    );
    // Text is compared as its UTF-8 bytes.
    assert_eq!((s.verify("t", "plain"), s.verify("t", "plain ")), ("true|1".into(), "false|-".into()));
    for sql in ["put_secret('t', 'v')", "update_secret('t', 'v')", "update_secret('t', password => 'v')"] {
        sqlstate!(s.ops.try_ask(&format!("SELECT vault.{sql}")), "22023", message: "binary, not text", hint: "put_secret_bytes");
    }
    for property in ["kind => 'automatic', rotation_interval => '1 day'", "generator => '{}'"] {
        let sql = format!("SELECT vault.update_secret('t', {property})");
        sqlstate!(s.ops.try_ask(&sql), "22023", message: "cannot be automatic");
    }
    sqlstate!(s.ops.try_ask("SELECT vault.rotate_secret('t')"), "55000", message: "cannot be rotated", detail: "binary");
    assert_eq!(
        s.ops.ask("SELECT description, version FROM vault.update_secret('t', description => 'still bytes')"),
        "still bytes|1"
    );
    assert_eq!(read_bytes(&mut s.app, "t", None), b"plain");
    assert_eq!(s.states("t"), "1 current");
    for sql in ["read_secret_bytes('missing')", r"verify_bytes('missing', '\x00')"] {
        sqlstate!(s.app.try_ask(&format!("SELECT vault.{sql}")), "P0002");
    }
}

fn bytes_functions_on_text(s: &mut Sessions) {
    s.ops.ask("SELECT vault.create_secret('o', 'schön')");
    assert_eq!(read_bytes(&mut s.app, "o", None), "schön".as_bytes());
    assert_eq!(s.app.ask(r"SELECT valid, version FROM vault.verify_bytes('o', '\x736368c3b66e')"), "t|1");
    sqlstate!(s.ops.try_ask(r"SELECT vault.put_secret_bytes('o', '\x00')"), "22023", message: "text, not binary", hint: "put_secret()");
    s.ops.ask("SELECT vault.create_secret('u', username => 'a', password => 'b')");
    sqlstate!(s.app.try_ask("SELECT vault.read_secret_bytes('u')"), "22023", message: "username and password", hint: "read_secret()");
    sqlstate!(s.ops.try_ask(r"SELECT vault.put_secret_bytes('u', '\x00')"), "22023", message: "username and password");
    assert_eq!(s.app.ask(r"SELECT valid FROM vault.verify_bytes('u', 'b'::bytea)"), "t", "the password");
    assert_eq!((s.read("o"), s.read("u")), ("schön".into(), "b".into()));
}

fn limits(s: &mut Sessions) {
    let most = vec![0u8; 1_048_576];
    s.ops.execute("SELECT vault.put_secret_bytes('most', $1)", &[&most]).unwrap();
    assert_eq!(read_bytes(&mut s.app, "most", None), most);
    let more = vec![0u8; 1_048_577];
    for sql in ["SELECT vault.put_secret_bytes('most', $1)", "SELECT vault.create_secret_bytes('more', $1)"] {
        sqlstate!(s.ops.execute(sql, &[&more]), "22023", message: "too long", hint: "max_secret_bytes");
    }
}
