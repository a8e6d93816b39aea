//! `hyperion_vault.allowed_ips` and a secret's own `allowed_ips`, over the Unix socket, IPv4 and IPv6.

use super::{state, text};
use hyperion_vault_tests::{Client, Cluster, NoTls, PATIENCE, Vault, ipv6_loopback_works, sqlstate};

/// A session and how it came in.
struct Way {
    name: &'static str,
    /// How a refusal names it.
    shown: &'static str,
    client: Client,
}

/// Sessions of `user` over every way there is on this machine.
fn ways(cluster: &Cluster, user: &str) -> Vec<Way> {
    let database = cluster.database();
    let tcp = |host| cluster.connect_tcp(user, database, host);
    let mut ways = vec![
        Way { name: "local", shown: "Unix socket", client: cluster.connect(user, database) },
        Way { name: "v4", shown: "127.0.0.1", client: tcp("127.0.0.1") },
    ];
    if ipv6_loopback_works() {
        ways.push(Way { name: "v6", shown: "::1", client: tcp("::1") });
    }
    ways
}

const PLAINTEXT: [&str; 3] = [
    "SELECT vault.read_secret('s')",
    "SELECT value FROM vault.get_secret('s')",
    "SELECT valid::text FROM vault.verify('s', 'value')",
];

#[test]
fn only_listed_addresses_read() {
    // The session's own settings must not matter: this cluster's is what it starts with.
    let cluster = Cluster::builder().allowed_ips("").start();
    let vault = cluster.vault();
    vault.root().batch_execute("SELECT vault.create_secret('s', 'value')").unwrap();
    // Opened once, before anything is allowed: a reload reaches open sessions.
    let mut sessions = [ways(&cluster, "app"), ways(&cluster, "postgres")];

    for (list, allowed) in [
        ("", ""),
        ("local", "local"),
        ("127.0.0.1", "v4"),
        ("127.0.0.0/8, 10.0.0.0/8", "v4"),
        ("::1", "v6"),
        ("::1/128 LOCAL", "v6 local"),
        ("0.0.0.0/0", "v4"),
        ("::/0", "v6"),
        ("0.0.0.0/0,::/0,local", "local v4 v6"),
        ("::ffff:127.0.0.1", "v4"),
        ("127.0.0.2", ""),
        ("10.0.0.0/8", ""),
        ("internal", ""),
        ("internal:\"client backend\"", ""),
        ("", ""),
    ] {
        cluster.set_conf("hyperion_vault.allowed_ips", list);
        for way in sessions.iter_mut().flatten() {
            let may = allowed.split(' ').any(|name| name == way.name);
            for call in PLAINTEXT {
                if may {
                    let right = if call.contains("valid") { "true" } else { "value" };
                    assert_eq!(text(&mut way.client, call), right, "{list:?}, {}: {call}", way.name);
                    continue;
                }
                let hint =
                    if list.is_empty() { "is empty, which denies all" } else { "Add the client to the list" };
                let refused = way.client.query(call, &[]);
                sqlstate!(refused, "42501", message: "client address is not allowed", detail: way.shown, hint: hint);
                // Before any lookup: there is no telling whether the secret exists.
                let absent = call.replace("'s'", "'absent'");
                sqlstate!(way.client.query(&absent, &[]), "42501", message: "client address is not allowed");
            }
            // What shows no value is open to whoever may do it.
            assert_eq!(text(&mut way.client, "SELECT name FROM vault.list_secrets()"), "s");
            assert_eq!(text(&mut way.client, "SELECT state FROM vault.list_versions('s')"), "current");
        }
    }
    // The empty list again, with a role that may not read: the right comes before the address.
    let denied = vault.ops().query(PLAINTEXT[0], &[]);
    sqlstate!(denied, "42501", message: "permission denied to read");

    a_secrets_own_list(&vault, &mut sessions);
    lists_that_are_refused(&cluster);
}

/// It takes away, and never gives.
fn a_secrets_own_list(vault: &Vault<'_>, sessions: &mut [Vec<Way>]) {
    vault.cluster.set_conf("hyperion_vault.allowed_ips", "0.0.0.0/0, ::/0, local");
    let mut root = vault.root();
    for (list, allowed) in [
        ("'{127.0.0.1/32}'", "v4"),
        ("'{127.0.0.0/8,10.0.0.0/8}'", "v4"),
        ("'{::1/128}'", "v6"),
        ("'{0.0.0.0/0}'", "v4"),
        ("'{::/0}'", "v6"),
        ("'{10.0.0.0/8,2001:db8::/32}'", ""),
        ("'{0.0.0.0/0,::/0}'", "v4 v6"),
        ("NULL, reset => '{allowed_ips}'", "local v4 v6"),
    ] {
        root.batch_execute(&format!("SELECT vault.update_secret('s', allowed_ips => {list})")).unwrap();
        for way in sessions.iter_mut().flatten() {
            let may = allowed.split(' ').any(|name| name == way.name);
            for call in PLAINTEXT {
                if may {
                    assert_eq!(state(&mut way.client, call), "00000", "{list}, {}: {call}", way.name);
                } else {
                    let refused = way.client.query(call, &[]);
                    sqlstate!(refused, "42501", message: "client address is not allowed", detail: "the secret's allowed_ips");
                }
            }
        }
    }

    // It binds the versions in grace as well, and an open transaction with an old snapshot.
    root.batch_execute("SELECT vault.update_secret('s', value => 'newer', grace_period => '1 day')").unwrap();
    root.batch_execute("SELECT vault.update_secret('s', value => 'newest')").unwrap();
    let mut app = vault.app();
    app.batch_execute("BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ").unwrap();
    assert_eq!(text(&mut app, "SELECT vault.read_secret('s', 2)"), "newer");
    root.batch_execute("SELECT vault.update_secret('s', allowed_ips => '{127.0.0.1/32}')").unwrap();
    assert_eq!(state(&mut app, "SELECT vault.read_secret('s', 2)"), "42501");

    // Wider than the setting: the setting holds.
    vault.cluster.set_conf("hyperion_vault.allowed_ips", "local");
    for way in sessions.iter_mut().flatten() {
        assert_eq!(state(&mut way.client, PLAINTEXT[0]), "42501", "{}", way.name);
    }
    root.batch_execute("SELECT vault.update_secret('s', reset => '{allowed_ips}')").unwrap();
}

/// What cannot be understood is refused where it is set, and at a reload, which keeps the old list.
fn lists_that_are_refused(cluster: &Cluster) {
    const SETTING: &str = "hyperion_vault.allowed_ips";
    cluster.set_conf(SETTING, "local");
    let mut app = cluster.connect("app", cluster.database());
    for bad in [
        "localhost",
        "10.0.0.1/8",
        "127.0.0.1/33",
        "300.1.1.1",
        "127.1",
        "local;127.0.0.1",
        "fe80::1%eth0",
        "internal:",
        "internal:\"autovacuum worker\"",
        "*",
        "all",
        "0.0.0.0/0 any",
    ] {
        sqlstate!(cluster.try_set_conf(SETTING, bad), "22023", message: SETTING, detail: "address list");
        assert_eq!(cluster.show(SETTING), "local");
    }

    // Nobody sets it for his session, by whatever way; not even a superuser.
    let mut root = cluster.superuser();
    for sql in [
        "SET hyperion_vault.allowed_ips = '0.0.0.0/0'",
        "SELECT set_config('hyperion_vault.allowed_ips', '0.0.0.0/0', true)",
        "ALTER ROLE app SET hyperion_vault.allowed_ips = '0.0.0.0/0'",
        "ALTER DATABASE postgres SET hyperion_vault.allowed_ips = '0.0.0.0/0'",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql SET hyperion_vault.allowed_ips = '0.0.0.0/0' AS 'SELECT 1'",
    ] {
        assert_eq!(state(&mut root, sql), "55P02", "{sql}");
    }
    for user in ["app", "postgres"] {
        let mut config = cluster.config(user, cluster.database());
        config.options("-c hyperion_vault.allowed_ips=0.0.0.0/0");
        let refused = config.connect(NoTls).map(drop).unwrap_err();
        assert!(refused.code().is_some_and(|code| ["55P02", "42501"].contains(&code.code())), "{refused:?}");
    }
    for sql in
        ["SHOW hyperion_vault.allowed_ips", "ALTER SYSTEM SET hyperion_vault.allowed_ips = '0.0.0.0/0'"]
    {
        assert_eq!(state(&mut app, sql), "42501", "{sql}");
    }

    // Into the file behind the server's back.
    cluster.reset_conf(SETTING);
    cluster.append_conf(SETTING, "local, 127.0.0.1");
    cluster.reload();
    assert_eq!(cluster.show(SETTING), "local, 127.0.0.1");
    let mark = cluster.log_mark();
    cluster.append_conf(SETTING, "local, 127.0.0.1, 10.0.0.1/8");
    cluster.reload();
    cluster.wait_for_log(mark, "invalid value for parameter \"hyperion_vault.allowed_ips\"", PATIENCE);
    cluster.wait_for_log(mark, "invalid item \"10.0.0.1/8\" in address list", PATIENCE);
    assert_eq!(cluster.show(SETTING), "local, 127.0.0.1");
    let mut tcp = cluster.connect_tcp("app", cluster.database(), "127.0.0.1");
    for client in [&mut app, &mut tcp] {
        assert_eq!(text(client, PLAINTEXT[0]), "newest");
    }
}
