//! Whether tables and indexes are sound, by the server's own amcheck, and whether the server's log tells of anything that
//! must not happen. Runs when the storm is over.

use hyperion_vault_tests::{Ask, Cluster, LEAKS};

/// The vault's tables and their TOAST tables, with their kind and the method of indexes. Not those that a REINDEX
/// CONCURRENTLY that was killed has left invalid: the server reads none of them, and amcheck refuses them.
const RELATIONS: &str = "WITH t AS (SELECT c.oid, c.reltoastrelid FROM pg_class c
        WHERE c.relnamespace = 'vault'::regnamespace AND c.relkind = 'r'),
      h AS (SELECT oid FROM t UNION ALL SELECT reltoastrelid FROM t WHERE reltoastrelid <> 0)
    SELECT h.oid, h.oid::regclass, 'heap' FROM h
    UNION ALL SELECT i.indexrelid, i.indexrelid::regclass, m.amname FROM h JOIN pg_index i ON i.indrelid = h.oid AND i.indisvalid
      JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam
    ORDER BY 3, 1";

/// Lines that a server writes only when something is broken.
const BROKEN: [&str; 9] = [
    "PANIC:",
    "TRAP:",
    "was terminated by signal 6",
    "was terminated by signal 11",
    "could not open file \"base",
    "missing chunk",
    "unexpected chunk",
    "invalid page",
    "failed to re-find",
];

pub fn sound(cluster: &Cluster) {
    let mut root = cluster.superuser();
    let relations = root.ask(RELATIONS);
    let (mut heaps, mut indexes) = (0, 0);
    for line in relations.lines() {
        let [oid, name, kind] = line.split('|').collect::<Vec<_>>()[..] else { panic!("{line}") };
        match kind {
            "heap" => {
                let found = root.ask(&format!("SELECT blkno, offnum, attnum, msg FROM checks.verify_heapam({oid}::regclass, check_toast => true)"));
                assert_eq!(found, "", "{name} is damaged");
                heaps += 1;
            }
            "btree" => {
                root.ask(&format!("SELECT checks.bt_index_check({oid}::regclass, heapallindexed => true)"));
                root.ask(&format!("SELECT checks.bt_index_parent_check({oid}::regclass, heapallindexed => true, rootdescend => true)"));
                indexes += 1;
            }
            // No check exists for these.
            _ => {}
        }
    }
    println!("{heaps} tables and {indexes} indexes checked");
    assert!(heaps >= 15 && indexes >= 15, "{relations}");
    let log = cluster.log();
    let broken: Vec<_> = log
        .lines()
        .filter(|line| BROKEN.iter().chain(&LEAKS).any(|sign| line.contains(sign)))
        // What a superuser's rewrite of a table may run into, see disturb.rs.
        .filter(|line| !(line.contains("missing chunk") && line.contains("client backend postgres@")))
        .collect();
    assert!(broken.is_empty(), "{broken:#?}");
    // An internal error of ours, or of a function of the server that was called wrongly.
    let internal: Vec<_> =
        log.lines().filter(|line| line.contains("XX000") || line.contains("XX001")).collect();
    assert!(internal.is_empty(), "{internal:#?}");
}
