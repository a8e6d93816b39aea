//! `list_secrets` and `list_versions`: order, patterns, pages, states. Runs in the test process.

use super::Sessions;
use hyperion_vault_tests::{Ask, Client, Cluster, sqlstate};

/// All names, page by page, as a client would.
fn pages(app: &mut Client, pattern: &str, max_rows: i32) -> Vec<Vec<String>> {
    let mut pages: Vec<Vec<String>> = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let rows = app
            .query("SELECT name FROM vault.list_secrets($1, $2, $3)", &[&pattern, &after, &max_rows])
            .expect("cannot list");
        if rows.is_empty() {
            return pages;
        }
        let names: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        after = names.last().cloned();
        pages.push(names);
    }
}

#[test]
fn twenty_five_hundred_secrets_in_pages() {
    let cluster = Cluster::builder().start();
    let mut s = Sessions::of(&cluster.vault());
    let prefixes = ["db/", "Db/", "db-", "é/", "日本/", "\u{1f511}/", "a b/", "_x/", "100%/", "z\\/"];
    let mut names: Vec<String> =
        (0..2500).map(|i| format!("{}{}", prefixes[i % prefixes.len()], (i * 7919) % 2500)).collect();
    let count: i64 = s
        .ops
        .query_one("SELECT count(vault.put_secret(n, 'v')) FROM unnest($1::text[]) n", &[&names])
        .unwrap()
        .get(0);
    assert_eq!(count, 2500);
    // Rust compares strings by their bytes, which is the promised order.
    names.sort();

    let all = pages(&mut s.app, "*", 1000);
    assert_eq!(all.iter().map(Vec::len).collect::<Vec<_>>(), [1000, 1000, 500]);
    assert_eq!(all.concat(), names);
    assert_eq!(pages(&mut s.app, "*", 7).concat(), names);
    assert_eq!(pages(&mut s.app, "*", 10_000), [names.clone()]);
    assert_eq!(s.app.ask("SELECT count(*) FROM vault.list_secrets()"), "1000", "the default page");
    assert_eq!(
        s.ops.ask("SELECT count(*) FROM vault.list_secrets(max_rows => 1)"),
        "1",
        "an admin lists too"
    );

    for (pattern, keep) in [
        ("db/*", (|n| n.starts_with("db/")) as fn(&str) -> bool),
        ("*/1*", |n| n.contains("/1")),
        ("*9", |n| n.ends_with('9')),
        ("d*/*5", |n| n.starts_with('d') && n.contains('/') && n.ends_with('5')),
        ("**", |_| true),
        ("é/*", |n| n.starts_with("é/")),
        ("\u{1f511}*", |n| n.starts_with('\u{1f511}')),
        // What LIKE would take for wildcards or an escape.
        ("_x/*", |n| n.starts_with("_x/")),
        ("_b/*", |_| false),
        ("100%/*", |n| n.starts_with("100%/")),
        ("%", |_| false),
        ("z\\/*", |n| n.starts_with("z\\/")),
        ("DB/*", |_| false),
        ("db/0", |n| n == "db/0"),
        ("db", |_| false),
    ] {
        let expected: Vec<_> = names.iter().filter(|n| keep(n)).cloned().collect();
        assert_eq!(pages(&mut s.app, pattern, 100).concat(), expected, "{pattern}");
    }
    // "after" need not be a name, and is exclusive.
    let after = |s: &mut Sessions, after: &str| -> i64 {
        let sql = "SELECT count(*) FROM vault.list_secrets('*', $1, 10000)";
        s.app.query_one(sql, &[&after]).unwrap().get(0)
    };
    assert_eq!((after(&mut s, ""), after(&mut s, "\u{10ffff}"), after(&mut s, "a b")), (2500, 0, 1750));
    let last = names.last().unwrap().clone();
    assert_eq!((after(&mut s, &last), after(&mut s, &names[0].clone())), (0, 2499));

    // A page is of one moment; a deleted "after" still marks the place.
    let (page, next) = (names[9].clone(), names[10].clone());
    s.ops.execute("SELECT vault.delete_secret($1)", &[&page]).unwrap();
    let row = s.app.query_one("SELECT name FROM vault.list_secrets('*', $1, 1)", &[&page]).unwrap();
    assert_eq!(row.get::<_, String>(0), next);
}

#[test]
fn versions_and_their_states() {
    let cluster = Cluster::builder().start();
    let mut s = Sessions::of(&cluster.vault());
    s.ops.ask("SELECT vault.create_secret('v', 'one')");
    s.ops.ask("SELECT vault.put_secret('v', 'two')");
    s.ops.ask("SELECT vault.update_secret('v', 'three', grace_period => '1 hour')");
    let all =
        "SELECT version, state, expires_at IS NULL, expires_at > clock_timestamp() + interval '59 minutes',
                      created_at <= clock_timestamp(), kms_key_id <> '' FROM vault.list_versions('v')";
    assert_eq!(s.app.ask(all), "3|current|t|∅|t|t\n2|grace|f|t|t|t\n1|retained|t|∅|t|t");
    // Each keeps its own time of making: ascending with the version, the newest as in the listing.
    let ordered = "SELECT bool_and(created_at > before) FROM (
                     SELECT created_at, lag(created_at) OVER (ORDER BY version) AS before FROM vault.list_versions('v')) x";
    assert_eq!(s.app.ask(ordered), "t");
    let same = "SELECT i.version_created_at = v.created_at, i.created_at = (SELECT min(created_at) FROM vault.list_versions('v')),
                       i.kms_key_id = v.kms_key_id
                  FROM vault.list_secrets('v') i JOIN vault.list_versions('v') v USING (version)";
    assert_eq!(s.app.ask(same), "t|t|t");
    s.expire("v");
    assert_eq!(s.states("v"), "3 current, 2 retained, 1 retained");
    assert_eq!(s.ops.ask("SELECT count(*) FROM vault.list_versions('v')"), "3", "an admin lists too");
    sqlstate!(s.app.try_ask("SELECT * FROM vault.list_versions('w')"), "P0002", message: "\"w\" does not exist");
    let status = "SELECT s->'secrets', s->'active_versions', s->'grace_versions', s->'retained_versions', s->'automatic'
                    FROM vault.status() s";
    assert_eq!(s.app.ask(status), "1|1|0|2|0");
}
