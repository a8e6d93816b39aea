//! The settings: which there are, who may change and see them, and what is refused. Runs in the test process.

use hyperion_vault_tests::{Ask, Cluster, PATIENCE, StopMode, sqlstate};

/// Name, default, when it can change. A setting that is not here fails the test.
const SETTINGS: &str = "\
allowed_ips||sighup
audit_spool_dir||postmaster
audit_spool_max_mb|1024|sighup
audit_sync|off|sighup
aws_profile||sighup
database|postgres|postmaster
dek_cache_size|16384|postmaster
dek_cache_stale_secs|0|sighup
dek_cache_ttl_secs|300|sighup
hook_timeout_ms|5000|sighup
keep_versions|5|sighup
kms_endpoint_url||sighup
kms_key_id||sighup
kms_max_in_flight|64|sighup
kms_max_retries|5|sighup
kms_mode|aws|sighup
kms_queue_slots|256|postmaster
kms_region||sighup
kms_timeout_ms|10000|sighup
local_master_key_file||sighup
max_batch|256|sighup
max_secret_bytes|1048576|sighup
node_name||sighup
rotation_enabled|on|sighup
scan_interval_secs|15|sighup";

#[test]
fn settings() {
    let cluster = Cluster::builder().start();
    let vault = cluster.vault();
    let (mut app, mut root) = (vault.app(), vault.root());
    // test_faults exists only in test builds.
    let listed = "SELECT substr(name, 16), boot_val, context FROM pg_settings
                   WHERE name LIKE 'hyperion\\_vault.%' AND name NOT LIKE 'hyperion\\_vault.test\\_%' ORDER BY name COLLATE \"C\"";
    assert_eq!(root.ask(listed), SETTINGS);
    assert_eq!(root.ask("SELECT count(*) FROM pg_settings WHERE name LIKE 'hyperion\\_vault.%' AND coalesce(short_desc, '') = ''"), "0");
    let names = SETTINGS.lines().map(|line| line.split('|').next().unwrap_or_default());

    // No session changes any of them for itself, a superuser's neither.
    for name in names.clone() {
        sqlstate!(root.try_ask(&format!("SET hyperion_vault.{name} = '1'")), "55P02");
        sqlstate!(app.try_ask(&format!("SET hyperion_vault.{name} = '1'")), "55P02");
        sqlstate!(root.try_ask(&format!("SELECT set_config('hyperion_vault.{name}', '1', true)")), "55P02");
        sqlstate!(app.try_ask(&format!("ALTER SYSTEM SET hyperion_vault.{name} = '1'")), "42501");
    }
    for start in ["ALTER ROLE postgres SET", "ALTER DATABASE postgres SET"] {
        sqlstate!(root.try_ask(&format!("{start} hyperion_vault.allowed_ips = '0.0.0.0/0'")), "55P02");
    }
    let mut config = cluster.config("postgres", "postgres");
    config.options("-c hyperion_vault.allowed_ips=0.0.0.0/0");
    assert!(config.connect(hyperion_vault_tests::NoTls).is_err(), "set by a client at its start");

    // What helps an attacker is not shown.
    let private = [
        "allowed_ips",
        "audit_spool_dir",
        "aws_profile",
        "kms_endpoint_url",
        "kms_key_id",
        "local_master_key_file",
    ];
    for name in names {
        let show = format!("SHOW hyperion_vault.{name}");
        let visible = format!("SELECT count(setting) FROM pg_settings WHERE name = 'hyperion_vault.{name}'");
        assert_eq!(root.ask(&visible), "1", "{name}");
        if private.contains(&name) {
            sqlstate!(app.try_ask(&show), "42501", message: "to examine");
            sqlstate!(app.try_ask(&format!("SELECT current_setting('hyperion_vault.{name}')")), "42501");
            assert_eq!(app.ask(&visible), "0", "{name}");
        } else {
            assert_eq!(app.ask(&show), root.ask(&show));
        }
    }

    // Unknown names under the prefix are refused by whatever way they come.
    for sql in [
        "SET hyperion_vault.foo = 1",
        "SET hyperion_vault.allowed_ip = 'local'",
        "SELECT set_config('hyperion_vault.foo', '1', false)",
        "ALTER SYSTEM SET hyperion_vault.foo = 1",
        "ALTER ROLE app SET hyperion_vault.foo = 1",
    ] {
        // Before 17 ALTER SYSTEM refuses every name it does not know, of whatever prefix.
        let error = if sql.starts_with("ALTER SYSTEM") && cluster.toolchain().major < 17 {
            sqlstate!(root.try_ask(sql), "42704", message: "unrecognized configuration parameter")
        } else {
            sqlstate!(root.try_ask(sql), "42602", message: "invalid configuration parameter name", detail: "reserved prefix")
        };
        assert!(error.message().contains("hyperion_vault."));
    }
    bad_values(&cluster);
    reloads(&cluster);
    starts(&cluster);
}

/// Refused when they are set, with the reason.
fn bad_values(cluster: &Cluster) {
    let long = "x".repeat(64);
    for (name, value, detail) in [
        ("allowed_ips", "nonsense", "nonsense"),
        ("allowed_ips", "10.0.0.0/8, 10.0.0.1/8", "10.0.0.1/8"),
        ("allowed_ips", "local,,internal:", ""),
        ("allowed_ips", "fe80::1%eth0", "zone"),
        ("allowed_ips", "999.1.1.1", "999.1.1.1"),
        ("local_master_key_file", "relative/key", "not absolute"),
        ("database", "", "not a database name"),
        ("database", long.as_str(), "not a database name"),
        // More of these four, with reasons, in tests/vault/kms/settings.rs.
        ("aws_profile", "[default]", "not the name of a profile"),
        ("kms_endpoint_url", "http://10.0.0.1", "TLS"),
        ("kms_key_id", "no key", "not a KMS key"),
        ("kms_region", "Frankfurt", "not an AWS region"),
        ("kms_mode", "gcp", ""),
        ("kms_timeout_ms", "9", ""),
        ("kms_timeout_ms", "11min", ""),
        ("kms_timeout_ms", "soon", ""),
        ("kms_max_retries", "-1", ""),
        ("kms_max_retries", "21", ""),
        ("kms_max_in_flight", "0", ""),
        ("kms_queue_slots", "3", ""),
        ("kms_queue_slots", "8193", ""),
        ("dek_cache_size", "7", ""),
        ("dek_cache_size", "16777217", ""),
        ("dek_cache_ttl_secs", "-1", ""),
        ("dek_cache_ttl_secs", "2d", ""),
        ("dek_cache_stale_secs", "-1", ""),
        ("keep_versions", "-1", ""),
        ("keep_versions", "1001", ""),
        ("max_batch", "0", ""),
        ("max_batch", "100001", ""),
        ("max_secret_bytes", "0", ""),
        ("max_secret_bytes", "257MB", ""),
    ] {
        let before = cluster.show(&format!("hyperion_vault.{name}"));
        let error =
            sqlstate!(cluster.try_set_conf(&format!("hyperion_vault.{name}"), value), "22023", message: name);
        let said = format!(
            "{} {} {}",
            error.message(),
            error.detail().unwrap_or_default(),
            error.hint().unwrap_or_default()
        );
        assert!(said.contains(detail), "{name} = {value:?}: {error:?}");
        assert_eq!(cluster.show(&format!("hyperion_vault.{name}")), before);
    }
    for (name, value, shown) in [
        (
            "allowed_ips",
            "local, 10.0.0.0/8 ::1 internal:\"my worker\"",
            "local, 10.0.0.0/8 ::1 internal:\"my worker\"",
        ),
        ("kms_timeout_ms", "2s", "2s"),
        ("dek_cache_ttl_secs", "1h", "1h"),
        ("max_secret_bytes", "2MB", "2MB"),
        ("keep_versions", "0", "0"),
    ] {
        let name = format!("hyperion_vault.{name}");
        cluster.set_conf(&name, value);
        assert_eq!(cluster.show(&name), shown);
        cluster.reset_conf(&name);
    }
}

/// A bad line in the file, which no command checked: said in the log, and the old value stays in force.
fn reloads(cluster: &Cluster) {
    let mut app = cluster.connect("app", "postgres");
    cluster.superuser().ask("SELECT vault.create_secret('a', 'v')");
    let conf =
        std::fs::read_to_string(cluster.data_dir().join("postgresql.conf")).expect("cannot read the file");
    for (name, value, said) in [
        (
            "hyperion_vault.allowed_ips",
            "everyone",
            "invalid value for parameter \"hyperion_vault.allowed_ips\"",
        ),
        (
            "hyperion_vault.local_master_key_file",
            "key",
            "invalid value for parameter \"hyperion_vault.local_master_key_file\"",
        ),
        (
            "hyperion_vault.keep_versions",
            "many",
            "invalid value for parameter \"hyperion_vault.keep_versions\"",
        ),
        ("hyperion_vault.foo", "1", "hyperion_vault.foo"),
        (
            "hyperion_vault.database",
            "other",
            "\"hyperion_vault.database\" cannot be changed without restarting the server",
        ),
        (
            "hyperion_vault.kms_queue_slots",
            "8",
            "\"hyperion_vault.kms_queue_slots\" cannot be changed without restarting",
        ),
        (
            "hyperion_vault.dek_cache_size",
            "8",
            "\"hyperion_vault.dek_cache_size\" cannot be changed without restarting",
        ),
    ] {
        let mark = cluster.log_mark();
        cluster.append_conf(name, value);
        cluster.reload();
        cluster.wait_for_log(mark, said, PATIENCE);
        assert_eq!(app.ask("SELECT vault.read_secret('a')"), "v", "{name}");
        std::fs::write(cluster.data_dir().join("postgresql.conf"), &conf).expect("cannot write the file");
        cluster.reload();
    }
    // A good one is taken over by open sessions at once: here, nobody is allowed any more.
    cluster.append_conf("hyperion_vault.allowed_ips", "");
    cluster.reload();
    sqlstate!(app.try_ask("SELECT vault.read_secret('a')"), "42501", message: "client address is not allowed", hint: "empty, which denies all");
    std::fs::write(cluster.data_dir().join("postgresql.conf"), &conf).expect("cannot write the file");
    cluster.reload();
    assert_eq!(app.ask("SELECT vault.read_secret('a')"), "v");
}

/// At a start the server reads the file before the library can judge it: it warns, and goes on with the default. That
/// must be the safe side: nobody allowed, no key.
fn starts(cluster: &Cluster) {
    let path = cluster.data_dir().join("postgresql.conf");
    let conf = std::fs::read_to_string(&path).expect("cannot read the file");
    let read = || cluster.connect("app", "postgres").try_ask("SELECT vault.read_secret('a')");
    for (name, value, default) in [
        ("allowed_ips", "everyone", ""),
        ("database", "", "postgres"),
        ("kms_mode", "gcp", "aws"),
        ("kms_endpoint_url", "http://10.0.0.1", ""),
        ("local_master_key_file", "key", ""),
        ("dek_cache_size", "1", "16384"),
    ] {
        let name = format!("hyperion_vault.{name}");
        cluster.stop(StopMode::Fast);
        cluster.append_conf(&name, value);
        let mark = cluster.log_mark();
        cluster.start_again();
        let said = format!("WARNING:  invalid value for parameter \"{name}\": \"{value}\"");
        let too_small = format!("WARNING:  {value} is outside the valid range for parameter \"{name}\"");
        assert!(
            cluster.log_contains(mark, &said) || cluster.log_contains(mark, &too_small),
            "{}",
            cluster.log_since(mark)
        );
        assert_eq!(cluster.show(&name), default);
        match name.as_str() {
            "hyperion_vault.allowed_ips" => drop(sqlstate!(read(), "42501", hint: "denies all")),
            "hyperion_vault.kms_mode" | "hyperion_vault.local_master_key_file" => {
                drop(sqlstate!(read(), "38000"))
            }
            _ => assert_eq!(read().expect("cannot read"), "v"),
        }
        std::fs::write(&path, &conf).expect("cannot write the file");
    }
    // An unknown one was set before the library could say that it is: dropped with a warning that names it.
    cluster.stop(StopMode::Fast);
    cluster.append_conf("hyperion_vault.allowed_ip", "0.0.0.0/0");
    let mark = cluster.log_mark();
    cluster.start_again();
    let said = "invalid configuration parameter name \"hyperion_vault.allowed_ip\"";
    assert!(cluster.log_contains(mark, said), "{}", cluster.log_since(mark));
    sqlstate!(cluster.superuser().try_ask("SHOW hyperion_vault.allowed_ip"), "42704");
    assert_eq!(read().expect("cannot read"), "v");
}
