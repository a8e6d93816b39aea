//! `update_secret`: property by property, and what each means for the versions. Runs in the test process.

use super::Sessions;
use crate::watch::first_look;
use hyperion_vault_tests::{Ask, Cluster, sqlstate};

/// Every property update_secret can set, in the order of `PROPERTIES` below: name, a new value, how it is shown.
const SET: [(&str, &str, &str); 7] = [
    ("description", "'new'", "new"),
    ("metadata", r#"'{"b": 2}'"#, r#"{"b": 2}"#),
    ("rotation_interval", "'3 days'", "3 days"),
    ("grace_period", "'2 hours'", "02:00:00"),
    ("generator", r#"'{"length": 8}'"#, r#"{"length": 8}"#),
    ("allowed_ips", "'{192.168.0.0/16}'", "{192.168.0.0/16}"),
    ("keep_versions", "9", "9"),
];
const BEFORE: [&str; 7] =
    ["old", r#"{"a": 1}"#, "1 day", "01:00:00", r#"{"length": 4}"#, "{127.0.0.1/32,::1/128}", "3"];
const PROPERTIES: &str =
    "description, metadata, rotation_interval, grace_period, generator, allowed_ips, keep_versions";

fn fresh(s: &mut Sessions) {
    s.ops.ask(
        r#"SELECT vault.create_secret('u', 'value', description => 'old', metadata => '{"a": 1}', rotation_interval => '1 day',
             grace_period => '1 hour', generator => '{"length": 4}', allowed_ips => '{127.0.0.1,::1}', keep_versions => 3)"#,
    );
}

#[test]
fn properties() {
    let cluster = Cluster::builder().allowed_ips("local,127.0.0.1").start();
    let mut s = Sessions::of(&cluster.vault());
    let listed = format!("SELECT {PROPERTIES}, version FROM vault.list_secrets('u')");
    for (i, (property, value, shown)) in SET.into_iter().enumerate() {
        fresh(&mut s);
        let before = format!("{}|1", BEFORE.join("|"));
        assert_eq!(s.app.ask(&listed), before);
        // Set alone: the others, the value and the version stay.
        let mut after = BEFORE;
        after[i] = shown;
        let after = format!("{}|1", after.join("|"));
        let sql =
            format!("SELECT {PROPERTIES}, version FROM vault.update_secret('u', {property} => {value})");
        assert_eq!(s.ops.ask(&sql), after, "{property}");
        assert_eq!(s.app.ask(&listed), after, "{property}");
        // NULL leaves it.
        let sql = format!("SELECT vault.update_secret('u', {property} => NULL)");
        sqlstate!(s.ops.try_ask(&sql), "22023", message: "nothing to update");
        let sql = format!(
            "SELECT {PROPERTIES}, version FROM vault.update_secret('u', {property} => NULL, kind => 'manual')"
        );
        assert_eq!(s.ops.ask(&sql), after, "{property}");
        // Reset clears it, and only it.
        let mut after = BEFORE;
        after[i] = "∅";
        let after = format!("{}|1", after.join("|"));
        let sql = format!(
            "SELECT {PROPERTIES}, version FROM vault.update_secret('u', reset => ARRAY['{property}'])"
        );
        assert_eq!(s.ops.ask(&sql), after, "reset {property}");
        assert_eq!(s.states("u"), "1 current");
        s.ops.ask("SELECT vault.delete_secret('u')");
    }
    // Several at once, some set and some cleared; the value too.
    fresh(&mut s);
    let sql = format!(
        "SELECT {PROPERTIES}, version FROM vault.update_secret('u', 'next', description => 'both',
           reset => '{{metadata,generator,allowed_ips,metadata}}')"
    );
    assert_eq!(s.ops.ask(&sql), "both|∅|1 day|01:00:00|∅|∅|3|2");
    assert_eq!(s.read("u"), "next");
    // updated_at moves with every change; version_created_at with a new value only.
    let times = "SELECT updated_at > version_created_at, version_created_at > created_at
                   FROM vault.update_secret('u', description => 'later')";
    assert_eq!(s.ops.ask(times), "t|t");
    // A secret's own list binds on: from the socket it is refused once set, through TCP it is not.
    s.ops.ask("SELECT vault.update_secret('u', allowed_ips => '{127.0.0.1}')");
    sqlstate!(s.app.try_ask("SELECT vault.read_secret('u')"), "42501", detail: "Unix socket");
    let mut tcp = cluster.connect_tcp("app", "postgres", "127.0.0.1");
    assert_eq!(tcp.ask("SELECT vault.read_secret('u')"), "next");
    s.ops.ask("SELECT vault.update_secret('u', reset => '{allowed_ips}')");
    assert_eq!(s.read("u"), "next");
}

#[test]
fn values_kinds_and_versions() {
    let cluster = Cluster::builder().conf("hyperion_vault.scan_interval_secs", "3600").start();
    let mut s = Sessions::of(&cluster.vault());
    // What is past its grace below is left to the next write: the worker sleeps.
    first_look(&cluster);

    // A grace period given with a new value is that of the version this value supersedes.
    s.ops.ask("SELECT vault.create_secret('g', 'one')");
    s.ops.ask("SELECT vault.update_secret('g', 'two', grace_period => '1 hour')");
    assert_eq!((s.states("g"), s.verify("g", "one")), ("2 current, 1 grace".into(), "true|1".into()));
    s.ops.ask("SELECT vault.update_secret('g', 'three', reset => '{grace_period}')");
    assert_eq!(
        (s.states("g"), s.verify("g", "two")),
        ("3 current, 2 retained, 1 grace".into(), "false|-".into())
    );
    s.ops.ask("SELECT vault.update_secret('g', 'four', grace_period => '0')");
    assert_eq!(s.states("g"), "4 current, 3 retained, 2 retained, 1 grace");
    // Changing the period alone leaves versions that are already in grace as they are.
    let until = s.app.ask("SELECT expires_at FROM vault.list_versions('g') WHERE version = 1");
    s.ops.ask("SELECT vault.update_secret('g', grace_period => '30 days')");
    assert_eq!(s.app.ask("SELECT expires_at FROM vault.list_versions('g') WHERE version = 1"), until);

    // expected_version guards values and properties alike.
    for call in [
        "'x', expected_version => 3",
        "description => 'x', expected_version => 0",
        "kind => 'manual', expected_version => 5",
    ] {
        let sql = format!("SELECT vault.update_secret('g', {call})");
        sqlstate!(s.ops.try_ask(&sql), "55000", detail: "is at version 4", hint: "Read the secret again");
    }
    assert_eq!(s.app.ask("SELECT description, version FROM vault.list_secrets('g')"), "∅|4");
    assert_eq!(s.ops.ask("SELECT version FROM vault.update_secret('g', 'five', expected_version => 4)"), "5");

    // Either part of a login alone.
    s.ops.ask("SELECT vault.create_secret('l', username => 'u', password => 'p')");
    let login = "SELECT version, username, password FROM vault.get_secret('l')";
    for (call, expected) in [
        ("username => 'u2'", "2|u2|p"),
        ("password => 'p2'", "3|u2|p2"),
        ("username => 'u3', password => 'p3'", "4|u3|p3"),
        ("password => ''", "5|u3|"),
    ] {
        s.ops.ask(&format!("SELECT vault.update_secret('l', {call})"));
        assert_eq!(s.app.ask(login), expected);
    }
    sqlstate!(s.ops.try_ask("SELECT vault.update_secret('l', 'v')"), "22023", hint: "username or password");
    sqlstate!(s.ops.try_ask("SELECT vault.update_secret('g', username => 'u')"), "22023", hint: "Pass value instead");
    assert_eq!(s.app.ask(login), "5|u3|");

    // Kinds, and when the next rotation is due.
    s.ops.ask("SELECT vault.create_secret('k', 'v')");
    sqlstate!(s.ops.try_ask("SELECT vault.update_secret('k', kind => 'automatic')"), "22023", hint: "rotation_interval");
    let due = |change: &str| {
        format!(
            "SELECT kind, rotation_interval, next_rotation_at - updated_at, version FROM vault.update_secret('k', {change})"
        )
    };
    assert_eq!(s.ops.ask(&due("rotation_interval => '1 day'")), "manual|1 day|∅|1");
    assert_eq!(s.ops.ask(&due("kind => 'automatic'")), "automatic|1 day|1 day|1");
    assert_eq!(s.ops.ask(&due("rotation_interval => '2 days'")), "automatic|2 days|2 days|1");
    // A change of something else does not move the date.
    let date = s.app.ask("SELECT next_rotation_at FROM vault.list_secrets('k')");
    for change in
        ["description => 'd'", "kind => 'automatic'", "rotation_interval => '2 days'", "keep_versions => 2"]
    {
        assert_eq!(
            s.ops.ask(&format!("SELECT next_rotation_at FROM vault.update_secret('k', {change})")),
            date
        );
    }
    assert_eq!(s.ops.ask(&due("value => 'w'")), "automatic|2 days|2 days|2");
    sqlstate!(s.ops.try_ask("SELECT vault.update_secret('k', reset => '{rotation_interval}')"), "22023", hint: "kind => 'manual'");
    assert_eq!(s.ops.ask(&due("kind => 'manual'")), "manual|2 days|∅|2");
    assert_eq!(s.ops.ask(&due("reset => '{rotation_interval}'")), "manual|∅|∅|2");
    assert_eq!(
        s.ops.ask(&due("kind => 'automatic', rotation_interval => '6 hours'")),
        "automatic|06:00:00|06:00:00|2"
    );
    assert_eq!(s.ops.ask(&due("kind => 'manual', reset => '{rotation_interval}'")), "manual|∅|∅|2");
    assert_eq!(s.read("k"), "w");

    retention(&mut s, &cluster);
}

/// Which superseded versions stay: the newest `keep_versions` past their grace, of the secret or of the setting.
fn retention(s: &mut Sessions, cluster: &Cluster) {
    let put = |s: &mut Sessions, name: &str, times: usize| {
        for i in 0..times {
            s.ops.execute("SELECT vault.put_secret($1, $2)", &[&name, &format!("value {i}")]).unwrap();
        }
    };
    put(s, "n", 8);
    assert_eq!(s.states("n"), "8 current, 7 retained, 6 retained, 5 retained, 4 retained, 3 retained");
    s.ops.ask("SELECT vault.update_secret('n', keep_versions => 2)");
    assert_eq!(s.states("n"), "8 current, 7 retained, 6 retained", "purged by the change itself");
    put(s, "n", 1);
    assert_eq!(s.states("n"), "9 current, 8 retained, 7 retained");
    s.ops.ask("SELECT vault.update_secret('n', keep_versions => 0)");
    assert_eq!(s.states("n"), "9 current");
    put(s, "n", 2);
    assert_eq!(s.states("n"), "11 current");
    assert_eq!(s.root.ask("SELECT count(*) FROM vault.secret_versions v JOIN vault.secrets s ON s.id = v.secret_id WHERE name = 'n'"), "0");

    // In grace they are neither counted nor purged, not even by 0; past it they go with the next write.
    s.ops.ask("SELECT vault.update_secret('n', grace_period => '1 hour')");
    put(s, "n", 3);
    assert_eq!(s.states("n"), "14 current, 13 grace, 12 grace, 11 grace");
    s.expire("n");
    assert_eq!(s.states("n"), "14 current, 13 retained, 12 retained, 11 retained");
    put(s, "n", 1);
    assert_eq!(s.states("n"), "15 current, 14 grace");

    // Without a number of its own the setting counts, from the next write on.
    put(s, "m", 4);
    cluster.set_conf("hyperion_vault.keep_versions", "1");
    assert_eq!(s.states("m"), "4 current, 3 retained, 2 retained, 1 retained");
    put(s, "m", 1);
    assert_eq!(s.states("m"), "5 current, 4 retained");
    s.ops.ask("SELECT vault.update_secret('m', keep_versions => 3)");
    put(s, "m", 3);
    assert_eq!(s.states("m"), "8 current, 7 retained, 6 retained, 5 retained");
    s.ops.ask("SELECT vault.update_secret('m', reset => '{keep_versions}')");
    assert_eq!(s.states("m"), "8 current, 7 retained", "back to the setting");
    cluster.set_conf("hyperion_vault.keep_versions", "0");
    s.ops.ask("SELECT vault.rotate_secret('n') FROM vault.update_secret('n', generator => '{}')");
    put(s, "m", 1);
    assert_eq!(s.states("m"), "9 current");
    cluster.reset_conf("hyperion_vault.keep_versions");
}
