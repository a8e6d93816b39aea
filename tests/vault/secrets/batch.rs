//! `read_secrets`: what is in a batch, what it costs in calls, and that it never turns to disk.

use crate::api::Sessions;
use hyperion_vault_tests::scan::{Scan, assert_none};
use hyperion_vault_tests::{Ask, Client, Cluster, StopMode, Vault, random_text, sqlstate};
use std::time::Duration;

fn kms_calls(root: &mut Client) -> i64 {
    root.ask("SELECT vault.status() -> 'kms' -> 'calls'").parse().expect("a number")
}

#[test]
fn read_secrets() {
    let cluster = Cluster::builder().conf("hyperion_vault.max_batch", "20").start();
    let vault = cluster.vault();
    let mut s = Sessions::of(&vault);
    s.ops.ask(
        r"SELECT vault.create_secret('a', 'value a', grace_period => '1 day'); SELECT vault.put_secret('a', 'newer a');
          SELECT vault.create_secret('l', username => 'u', password => 'p');
          SELECT vault.create_secret_bytes('b', '\x00ff');
          SELECT vault.create_secret('deleted', 'v'); SELECT vault.delete_secret('deleted', '1 day');
          SELECT vault.create_secret('over', 'v', expires_in => '1 hour');
          SELECT vault.create_secret('empty', '')",
    );
    super::run_out(&mut s.root, "over", "expires_at");
    let mut read = |names: &str| {
        s.app.ask(&format!("SELECT name, kind, format, version, value, username, password, expires_at FROM vault.read_secrets({names})"))
    };
    // In the order given, each once; what is not there is left out.
    let rows = "l|manual|userpass|1|∅|u|p|∅\na|manual|opaque|2|newer a|∅|∅|∅\nb|manual|binary|1|∅|∅|∅|∅\nempty|manual|opaque|1||∅|∅|∅";
    assert_eq!(read("'{l,a,deleted,b,missing,a,over,l,empty}'"), rows);
    assert_eq!(read("'{}'"), "");
    assert_eq!(read("'{missing}'"), "");
    assert_eq!(read("'{{l,a},{b,empty}}'"), rows, "the shape of the array does not matter");
    let same = "SELECT count(*) FROM vault.read_secrets('{a,l,empty}') r JOIN LATERAL vault.get_secret(r.name) g ON g IS NOT DISTINCT FROM r";
    assert_eq!(s.app.ask(same), "3", "the rows of get_secret");

    // Mistakes, rights and addresses are about the whole call.
    for (names, code, message) in [
        ("NULL", "22023", "names must not be null"),
        ("'{a,NULL}'", "22023", "names must not hold a NULL"),
        ("'{a,/bad}'", "22023", "must not start with"),
        ("ARRAY(SELECT 'n' || i FROM generate_series(1, 21) i)", "22023", "too many names"),
    ] {
        sqlstate!(s.app.try_ask(&format!("SELECT * FROM vault.read_secrets({names})")), code, message: message);
    }
    assert_eq!(
        s.app.ask(
            "SELECT count(*) FROM vault.read_secrets(ARRAY(SELECT 'n' || i FROM generate_series(1, 20) i))"
        ),
        "0"
    );
    sqlstate!(s.ops.try_ask("SELECT * FROM vault.read_secrets('{missing}')"), "42501", hint: "vault_reader");
    assert_eq!(s.ops.ask("SELECT vault.update_secret('l', allowed_ips => '{10.0.0.0/8}') IS NULL"), "f");
    sqlstate!(s.app.try_ask("SELECT * FROM vault.read_secrets('{a,l}')"), "42501", detail: "the secret's allowed_ips");
    cluster.set_conf("hyperion_vault.allowed_ips", "");
    sqlstate!(s.app.try_ask("SELECT * FROM vault.read_secrets('{}')"), "42501", hint: "which denies all");
}

/// Cold keys are fetched side by side; a slow key service is waited for once, not once for each name.
#[test]
fn cold_keys_at_once() {
    let cluster = Cluster::builder().conf("hyperion_vault.kms_queue_slots", "16").start();
    let vault = cluster.vault();
    let (mut ops, app, root) = (vault.ops(), vault.app(), vault.root());
    ops.ask("SELECT vault.create_secret('c/' || i, 'value ' || i) FROM generate_series(1, 24) i");
    let sql = "SELECT count(*), count(DISTINCT value), bool_and(value = 'value ' || substr(name, 3))
                 FROM vault.read_secrets(ARRAY(SELECT 'c/' || i FROM generate_series(1, 24) i))";
    // More names than a batch may hold slots, the cache empty: still right.
    cluster.restart(StopMode::Fast);
    let (mut app, mut root) = {
        drop((app, root));
        (vault.app(), vault.root())
    };
    let before = kms_calls(&mut root);
    assert_eq!(app.ask(sql), "24|24|t");
    assert_eq!(kms_calls(&mut root) - before, 24);
    assert_eq!(app.ask(sql), "24|24|t");
    assert_eq!(kms_calls(&mut root) - before, 24, "cached by now");

    // No cache, and each call takes 800 ms: 24 one after the other would take 19 s.
    cluster.set_conf("hyperion_vault.dek_cache_ttl_secs", "0");
    cluster.restart(StopMode::Fast);
    let (mut app, mut root) = {
        drop((app, root));
        (vault.app(), vault.root())
    };
    cluster.set_faults("delay_ms=800");
    let (start, before) = (std::time::Instant::now(), kms_calls(&mut root));
    assert_eq!(app.ask(sql), "24|24|t");
    let took = start.elapsed();
    assert_eq!(kms_calls(&mut root) - before, 24);
    assert!(took.as_secs_f64() < 15.0, "{took:?}: not side by side");
    // An answer that fails fails the call, and leaves no slot behind.
    cluster.set_faults("fail=refused,times=1");
    sqlstate!(app.try_ask(sql), "38000");
    cluster.clear_faults();
    assert_eq!(app.ask(sql), "24|24|t");
    hyperion_vault_tests::wait_for("all slots to be free", hyperion_vault_tests::PATIENCE, || {
        root.ask("SELECT vault.status() -> 'queue' -> 'states' ->> 'free'") == "16"
    });
}

const MIB: usize = 1 << 20;

/// 256 values of 1 MiB with a work_mem of 64 kB: the result stays in memory. The same values sorted by the caller go to
/// disk, and this search finds them there.
#[test]
fn a_full_batch_does_not_spill() {
    let cluster = Cluster::builder()
        .conf("work_mem", "64kB")
        .conf("log_temp_files", "0")
        .time_limit(Duration::from_secs(1800))
        .start();
    let vault = cluster.vault();
    let planted = Scan::plant(&cluster);
    let canaries = fill(&vault);
    // Some of them: the search slows down with their number, and a spill holds a batch from its first value on.
    let scan = planted
        .look_for(canaries.iter().step_by(50).map(|canary| (canary.clone(), canary.clone().into_bytes())));
    let mark = cluster.log_mark();
    let mut app = vault.app();
    let names = "ARRAY(SELECT 'm/' || i FROM generate_series(0, 255) i)";
    // A portal of the protocol, which the server runs row by row. (What the SQL command FETCH returns, it collects first,
    // in a store of its own that does turn to disk.)
    let mut transaction = app.transaction().unwrap();
    let portal =
        transaction.bind(&format!("SELECT name, value FROM vault.read_secrets({names})"), &[]).unwrap();
    // All 256 are materialised with the first row, and stay so while the portal is open.
    let rows = transaction.query_portal(&portal, 1).unwrap();
    assert_eq!((rows[0].get::<_, &str>(0), rows[0].get::<_, &str>(1).len()), ("m/0", MIB));
    let temporary = cluster.data_dir().join("base/pgsql_tmp");
    let spilled = || std::fs::read_dir(&temporary).map_or(0, Iterator::count);
    assert_eq!(spilled(), 0, "the batch has a temporary file");
    assert_none(&scan.data_directory(&cluster));
    let rows = transaction.query_portal(&portal, 0).unwrap();
    assert_eq!(rows.len(), 255);
    for (row, i) in rows.iter().zip(1usize..) {
        let (name, value): (&str, &str) = (row.get(0), row.get(1));
        assert!(name == format!("m/{i}") && value.len() == MIB && value.starts_with(&canaries[i]), "{name}");
    }
    transaction.commit().unwrap();
    assert!(!cluster.log_contains(mark, "temporary file"), "{}", cluster.log_since(mark));

    // The control.
    let mut transaction = app.transaction().unwrap();
    let sql = format!("SELECT value FROM vault.read_secrets({names}) ORDER BY md5(value)");
    let portal = transaction.bind(&sql, &[]).unwrap();
    transaction.query_portal(&portal, 1).unwrap();
    assert!(spilled() > 0);
    let hits = scan.path(&temporary);
    assert!(hits.len() > 20, "this search is blind: {} hits", hits.len());
    transaction.commit().unwrap();
}

/// 256 secrets `m/0` … of a mebibyte, each with one canary in eight places.
fn fill(vault: &Vault<'_>) -> Vec<String> {
    let mut ops = vault.ops();
    let put = ops.prepare("SELECT vault.put_secret($1, repeat(rpad($2, $3, 'x'), 8))").unwrap();
    (0..256)
        .map(|i| {
            let canary = random_text(64);
            ops.execute(&put, &[&format!("m/{i}"), &canary, &((MIB / 8) as i32)]).unwrap();
            canary
        })
        .collect()
}
