//! The SQL API call by call: what each function does, returns and leaves behind. Runs in the test process.
//!
//! `ops` (vault_admin) writes, `app` (vault_reader) reads, so that a function which needs more than its role shows.
//! The traps: a value echoed by a writer, and a comparison of what was written with itself; so every value is read
//! back by another session.

mod listing;
mod shapes;
mod update;
mod values;

use hyperion_vault_tests::{Ask, Client, Cluster, Vault, sqlstate};

/// The sessions most tests need.
pub struct Sessions {
    pub app: Client,
    pub ops: Client,
    pub root: Client,
}

impl Sessions {
    pub fn of(vault: &Vault<'_>) -> Self {
        Self { app: vault.app(), ops: vault.ops(), root: vault.root() }
    }

    #[track_caller]
    pub fn read(&mut self, name: &str) -> String {
        self.app.query_one("SELECT vault.read_secret($1)", &[&name]).expect("cannot read").get(0)
    }

    /// `valid|version` for a candidate.
    #[track_caller]
    pub fn verify(&mut self, name: &str, candidate: &str) -> String {
        let sql = "SELECT valid::text || '|' || coalesce(version::text, '-') FROM vault.verify($1, $2)";
        self.app.query_one(sql, &[&name, &candidate]).expect("cannot verify").get(0)
    }

    /// `version state, …`, newest first.
    #[track_caller]
    pub fn states(&mut self, name: &str) -> String {
        let sql = "SELECT string_agg(version || ' ' || state, ', ') FROM vault.list_versions($1)";
        self.app.query_one(sql, &[&name]).expect("cannot list versions").get(0)
    }

    /// Moves the end of every grace of a secret into the past: what waiting would do.
    #[track_caller]
    pub fn expire(&mut self, name: &str) {
        let sql = "UPDATE vault.secret_versions v SET expires_at = clock_timestamp() - interval '1 microsecond'
                   FROM vault.secrets s WHERE s.id = v.secret_id AND s.name = $1 AND v.expires_at IS NOT NULL";
        assert!(self.root.execute(sql, &[&name]).expect("cannot expire") > 0, "{name} has nothing in grace");
    }
}

#[test]
fn create_secret() {
    let cluster = Cluster::builder().start();
    let mut s = Sessions::of(&cluster.vault());

    // Defaults.
    let sql = "SELECT name, kind, format, version, description, metadata, rotation_interval, grace_period,
                      next_rotation_at, generator, allowed_ips, keep_versions, kms_key_id <> '', id IS NOT NULL,
                      abs(extract(epoch FROM clock_timestamp() - created_at)) < 60,
                      created_at = updated_at AND created_at = version_created_at
                 FROM vault.create_secret('db/password', 'correct horse')";
    assert_eq!(s.ops.ask(sql), "db/password|manual|opaque|1|∅|∅|∅|∅|∅|∅|∅|∅|t|t|t|t");
    assert_eq!(s.read("db/password"), "correct horse");
    sqlstate!(s.ops.try_ask("SELECT vault.create_secret('db/password', 'other')"), "23505",
        message: "already exists", hint: "put_secret");
    assert_eq!(s.read("db/password"), "correct horse", "a refused create changes nothing");
    assert_eq!(s.states("db/password"), "1 current");

    // Everything at once, in named notation.
    let sql = r#"SELECT name, kind, format, version, description, metadata, rotation_interval, grace_period,
                      next_rotation_at - created_at, generator, allowed_ips, keep_versions
                 FROM vault.create_secret(name => 'full', value => 'v', kind => 'automatic', description => 'd "x"',
                   rotation_interval => '30 days', grace_period => '1 day', generator => '{"length": 12}',
                   metadata => '{"team": ["pay"]}', allowed_ips => '{10.0.0.0/8,::1/128}', keep_versions => 7)"#;
    let expected = r#"full|automatic|opaque|1|d "x"|{"team": ["pay"]}|30 days|1 day|30 days|{"length": 12}|{10.0.0.0/8,::1/128}|7"#;
    assert_eq!(s.ops.ask(sql), expected);
    // What create returned is what is stored.
    let listed = "SELECT name, kind, format, version, description, metadata, rotation_interval, grace_period,
                      next_rotation_at - created_at, generator, allowed_ips, keep_versions
                 FROM vault.list_secrets('full')";
    assert_eq!(s.app.ask(listed), expected);

    // User name and password are sealed together.
    let info = "SELECT format, kind, version FROM vault.create_secret('login', username => 'alice', password => 'pw 1')";
    assert_eq!(s.ops.ask(info), "userpass|manual|1");
    assert_eq!(s.read("login"), "pw 1");
    let got = "SELECT value, username, password FROM vault.get_secret('login')";
    assert_eq!(s.app.ask(got), "∅|alice|pw 1");
    s.ops.ask("SELECT vault.create_secret('empty password', username => 'u', password => '')");
    assert_eq!(s.app.ask("SELECT value, username, password FROM vault.get_secret('empty password')"), "∅|u|");

    // Generated: automatic without a value, or a generator named; for the password too.
    let auto = "SELECT kind, format, generator, next_rotation_at - created_at
                  FROM vault.create_secret('auto', kind => 'automatic', rotation_interval => '12 hours')";
    assert_eq!(s.ops.ask(auto), "automatic|opaque|∅|12:00:00");
    let value = s.read("auto");
    assert!(
        value.len() == 32 && value.chars().all(|c| c.is_ascii_alphanumeric()),
        "{} characters",
        value.len()
    );
    s.ops.ask("SELECT vault.create_secret('auto2', kind => 'automatic', rotation_interval => '1 day')");
    assert_ne!(s.read("auto2"), value);
    let generator = r#"'{"length": 20, "charset": "hex"}'"#;
    let sql =
        format!("SELECT kind, next_rotation_at FROM vault.create_secret('gen', generator => {generator})");
    assert_eq!(s.ops.ask(&sql), "manual|∅");
    let value = s.read("gen");
    assert!(value.len() == 20 && value.chars().all(|c| "0123456789abcdef".contains(c)));
    s.ops.ask(&format!(
        "SELECT vault.create_secret('gen login', username => 'bob', generator => {generator})"
    ));
    assert_eq!(s.app.ask("SELECT username FROM vault.get_secret('gen login')"), "bob");
    assert_eq!(s.read("gen login").len(), 20);
    let demanding = r#"'{"length": 4, "charset": "ascii", "require": ["lower","upper","digit","symbol"]}'"#;
    s.ops.ask(&format!("SELECT vault.create_secret('demanding', generator => {demanding})"));
    let value = s.read("demanding");
    for class in [char::is_lowercase, char::is_uppercase, char::is_numeric] {
        assert!(value.chars().any(class));
    }
    assert!(value.chars().any(|c| c.is_ascii_punctuation()));
    // A given value wins over generation.
    s.ops.ask(
        "SELECT vault.create_secret('auto3', 'given', kind => 'automatic', rotation_interval => '1 day')",
    );
    assert_eq!(s.read("auto3"), "given");
}

#[test]
fn put_read_get_verify_rotate_delete() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let mut s = Sessions::of(&vault);
    put_secret(&mut s);
    read_and_get(&mut s);
    verify(&mut s);
    rotate_secret(&mut s);
    delete_secret(&mut s);
}

fn put_secret(s: &mut Sessions) {
    assert_eq!(
        s.ops.ask("SELECT version, description FROM vault.put_secret('p', 'one', description => 'first')"),
        "1|first"
    );
    let again = "SELECT version, description, created_at < updated_at, updated_at = version_created_at
                   FROM vault.put_secret('p', 'two')";
    assert_eq!(s.ops.ask(again), "2|first|t|t");
    assert_eq!(
        s.ops.ask("SELECT version, description FROM vault.put_secret('p', 'three', 2, 'third')"),
        "3|third"
    );
    assert_eq!(s.read("p"), "three");
    // expected_version: 0 only creates, n only replaces n.
    for wrong in [0, 2, 4] {
        let sql = format!("SELECT vault.put_secret('p', 'x', expected_version => {wrong})");
        sqlstate!(s.ops.try_ask(&sql), "55000", message: "not at the expected version", detail: "is at version 3", hint: "Read the secret again");
    }
    sqlstate!(s.ops.try_ask("SELECT vault.put_secret('p0', 'x', 1)"), "55000", detail: "does not exist");
    assert_eq!((s.read("p"), s.states("p")), ("three".into(), "3 current, 2 retained, 1 retained".into()));
    assert_eq!(s.ops.ask("SELECT version FROM vault.put_secret('p0', 'x', expected_version => 0)"), "1");
    sqlstate!(s.ops.try_ask("SELECT vault.put_secret('p0', 'y', expected_version => 0)"), "55000");
    assert_eq!(s.read("p0"), "x");
    // The same value again is a new version all the same.
    assert_eq!(s.ops.ask("SELECT version FROM vault.put_secret('p0', 'x')"), "2");
    // An automatic secret is due an interval after its new value.
    s.ops.ask("SELECT vault.create_secret('p auto', kind => 'automatic', rotation_interval => '1 day')");
    let due = "SELECT next_rotation_at - version_created_at, created_at < version_created_at
                 FROM vault.put_secret('p auto', 'by hand')";
    assert_eq!(s.ops.ask(due), "1 day|t");
    assert_eq!(s.read("p auto"), "by hand");
    s.ops.ask("SELECT vault.create_secret('p login', username => 'u', password => 'p')");
    sqlstate!(s.ops.try_ask("SELECT vault.put_secret('p login', 'v')"), "22023", hint: "update_secret");
    // Undone with the caller's transaction.
    s.ops.ask(
        "BEGIN; SELECT vault.put_secret('p', 'undone'); SELECT vault.put_secret('p new', 'undone'); ROLLBACK",
    );
    assert_eq!(s.read("p"), "three");
    sqlstate!(s.app.try_ask("SELECT vault.read_secret('p new')"), "P0002");
}

fn read_and_get(s: &mut Sessions) {
    s.ops.ask("SELECT vault.create_secret('r', 'one', grace_period => '1 hour')");
    s.ops.ask("SELECT vault.put_secret('r', 'two'); SELECT vault.put_secret('r', 'three')");
    let by_version =
        "SELECT vault.read_secret('r', 1), vault.read_secret('r', version => 2), vault.read_secret('r', 3),
                             vault.read_secret('r', NULL)";
    assert_eq!(s.app.ask(by_version), "one|two|three|three");
    let all = "SELECT g.name, g.kind, g.format, g.version, g.value, g.username, g.password,
                      g.created_at = v.created_at, g.expires_at IS NOT DISTINCT FROM v.expires_at,
                      g.expires_at - v2.created_at
                 FROM vault.list_versions('r') v CROSS JOIN vault.get_secret('r', v.version) g
                 LEFT JOIN vault.list_versions('r') v2 ON v2.version = v.version + 1 ORDER BY v.version";
    let expected = "r|manual|opaque|1|one|∅|∅|t|t|01:00:00\nr|manual|opaque|2|two|∅|∅|t|t|01:00:00\nr|manual|opaque|3|three|∅|∅|t|t|∅";
    assert_eq!(s.app.ask(all), expected);
    assert_eq!(s.app.ask("SELECT version, value FROM vault.get_secret('r')"), "3|three");
    s.expire("r");
    for version in [1, 2] {
        for function in ["read_secret", "get_secret"] {
            let sql = format!("SELECT vault.{function}('r', {version})");
            sqlstate!(s.app.try_ask(&sql), "P0002", detail: "no longer, in grace", hint: "list_versions");
        }
    }
    assert_eq!(s.states("r"), "3 current, 2 retained, 1 retained");
    assert_eq!(s.read("r"), "three");
    for sql in ["SELECT vault.read_secret('r', 4)", "SELECT * FROM vault.get_secret('r', 4)"] {
        sqlstate!(s.app.try_ask(sql), "P0002", message: "no readable version 4", detail: "There is no such version");
    }
    for sql in ["SELECT vault.read_secret('missing')", "SELECT * FROM vault.get_secret('missing')"] {
        sqlstate!(s.app.try_ask(sql), "P0002", message: "secret \"missing\" does not exist");
    }
    // Userpass by version: each version has its own name and password.
    s.ops.ask(
        "SELECT vault.create_secret('r login', username => 'u1', password => 'p1', grace_period => '1 hour');
               SELECT vault.update_secret('r login', username => 'u2', password => 'p2')",
    );
    assert_eq!(s.app.ask("SELECT vault.read_secret('r login', 1), vault.read_secret('r login')"), "p1|p2");
    let both = "SELECT version, format, value, username, password FROM vault.get_secret('r login', 1)
                UNION ALL SELECT version, format, value, username, password FROM vault.get_secret('r login')";
    assert_eq!(s.app.ask(both), "1|userpass|∅|u1|p1\n2|userpass|∅|u2|p2");
}

fn verify(s: &mut Sessions) {
    s.ops.ask("SELECT vault.create_secret('v', 'a', grace_period => '1 hour')");
    assert_eq!(s.verify("v", "a"), "true|1");
    for wrong in ["b", "", "A", "a ", "aa", "\u{1f600}"] {
        assert_eq!(s.verify("v", wrong), "false|-");
    }
    s.ops.ask("SELECT vault.put_secret('v', 'b'); SELECT vault.put_secret('v', 'a')");
    assert_eq!(s.verify("v", "a"), "true|3", "the newest version that matches");
    assert_eq!(s.verify("v", "b"), "true|2");
    s.ops.ask("SELECT vault.put_secret('v', 'b')");
    s.ops.ask("SELECT vault.put_secret('v', 'c')");
    assert_eq!(
        (s.verify("v", "a"), s.verify("v", "b")),
        ("true|3".into(), "true|4".into()),
        "among those in grace too"
    );
    s.expire("v");
    assert_eq!(
        (s.verify("v", "a"), s.verify("v", "b"), s.verify("v", "c")),
        ("false|-".into(), "false|-".into(), "true|5".into())
    );
    s.ops.ask("SELECT vault.create_secret('v empty', '')");
    assert_eq!((s.verify("v empty", ""), s.verify("v empty", " ")), ("true|1".into(), "false|-".into()));
    // Of userpass the password counts, not the name and not the two together.
    s.ops.ask(
        "SELECT vault.create_secret('v login', username => 'u', password => 'p', grace_period => '1 day');
               SELECT vault.update_secret('v login', password => 'q')",
    );
    let answers: Vec<_> = ["q", "p", "u", "up"].iter().map(|c| s.verify("v login", c)).collect();
    assert_eq!(answers, ["true|2", "true|1", "false|-", "false|-"]);
    sqlstate!(s.app.try_ask("SELECT vault.verify('missing', 'x')"), "P0002");
    // Who writes does not read, nor guess.
    for sql in
        ["SELECT vault.read_secret('v')", "SELECT vault.get_secret('v')", "SELECT vault.verify('v', 'c')"]
    {
        sqlstate!(s.ops.try_ask(sql), "42501", hint: "vault_reader");
    }
}

fn rotate_secret(s: &mut Sessions) {
    s.ops.ask("SELECT vault.create_secret('rot', kind => 'automatic', rotation_interval => '2 days', grace_period => '1 hour')");
    let first = s.read("rot");
    let rotated =
        "SELECT version, kind, next_rotation_at - version_created_at, version_created_at > created_at
                     FROM vault.rotate_secret('rot')";
    assert_eq!(s.ops.ask(rotated), "2|automatic|2 days|t");
    let second = s.read("rot");
    assert!(second.len() == 32 && second != first);
    assert_eq!((s.verify("rot", &first), s.verify("rot", &second)), ("true|1".into(), "true|2".into()));
    s.ops.ask(r#"SELECT vault.update_secret('rot', generator => '{"length": 9, "charset": "01"}')"#);
    s.ops.ask("SELECT vault.rotate_secret('rot')");
    let third = s.read("rot");
    assert!(third.len() == 9 && third.chars().all(|c| "01".contains(c)), "by its generator");
    assert_eq!(s.states("rot"), "3 current, 2 grace, 1 grace");
    // Manual with a generator: on demand, never due.
    s.ops.ask(
        r#"SELECT vault.create_secret('rot m', 'mine', generator => '{"length": 5, "charset": "hex"}')"#,
    );
    assert_eq!(
        s.ops.ask("SELECT version, kind, next_rotation_at FROM vault.rotate_secret('rot m')"),
        "2|manual|∅"
    );
    assert_eq!(s.read("rot m").len(), 5);
    // A rotated login keeps its name.
    s.ops.ask(r#"SELECT vault.create_secret('rot l', username => 'keep me', password => 'old', grace_period => '1 hour',
                   generator => '{"length": 16}')"#);
    s.ops.ask("SELECT vault.rotate_secret('rot l')");
    assert_eq!(
        s.app.ask("SELECT version, username, length(password) FROM vault.get_secret('rot l')"),
        "2|keep me|16"
    );
    assert_eq!(s.app.ask("SELECT username, password FROM vault.get_secret('rot l', 1)"), "keep me|old");
    s.ops.ask("SELECT vault.create_secret('rot no', 'v')");
    sqlstate!(s.ops.try_ask("SELECT vault.rotate_secret('rot no')"), "55000", message: "cannot be rotated", detail: "no generator", hint: "put_secret");
    assert_eq!((s.read("rot no"), s.states("rot no")), ("v".into(), "1 current".into()));
    sqlstate!(s.ops.try_ask("SELECT vault.rotate_secret('missing')"), "P0002");
}

fn delete_secret(s: &mut Sessions) {
    s.ops.ask("SELECT vault.create_secret('d', 'one', grace_period => '1 hour'); SELECT vault.put_secret('d', 'two')");
    let id = s.app.ask("SELECT id FROM vault.list_secrets('d')");
    s.ops.ask("BEGIN; SELECT vault.delete_secret('d')");
    sqlstate!(s.ops.try_ask("SELECT vault.update_secret('d', description => 'x')"), "P0002");
    s.ops.ask("ROLLBACK");
    assert_eq!(
        s.app.ask("SELECT vault.read_secret('d', 1), vault.read_secret('d')"),
        "one|two",
        "rolled back"
    );
    assert_eq!(s.ops.ask("SELECT vault.delete_secret('d')"), "", "void");
    for sql in [
        "read_secret('d')",
        "read_secret('d', 1)",
        "get_secret('d')",
        "verify('d', 'two')",
        "list_versions('d')",
    ] {
        sqlstate!(s.app.try_ask(&format!("SELECT vault.{sql}")), "P0002", message: "does not exist");
    }
    assert_eq!(s.app.ask("SELECT count(*) FROM vault.list_secrets('d')"), "0");
    let rows = format!(
        "SELECT (SELECT count(*) FROM vault.secrets WHERE id = '{id}'), (SELECT count(*) FROM vault.secret_versions WHERE secret_id = '{id}')"
    );
    assert_eq!(s.root.ask(&rows), "0|0", "nothing sealed is left behind");
    for sql in ["delete_secret('d')", "rotate_secret('d')", "update_secret('d', 'x')"] {
        sqlstate!(s.ops.try_ask(&format!("SELECT vault.{sql}")), "P0002", message: "does not exist");
    }
    // A name used again is another secret.
    assert_eq!(s.ops.ask("SELECT version FROM vault.create_secret('d', 'new')"), "1");
    assert_ne!(s.app.ask("SELECT id FROM vault.list_secrets('d')"), id);
    assert_eq!(
        (s.read("d"), s.states("d"), s.verify("d", "two")),
        ("new".into(), "1 current".into(), "false|-".into())
    );
}
