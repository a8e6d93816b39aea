//! A counter in a secret, counted up by compare-and-set: a lost update would show as a value that is too small.

use super::{Expected, LEVELS, LIMIT, Random, allowed};
use hyperion_vault_tests::threads::clients_at_once;
use hyperion_vault_tests::{Client, Vault};

const NAME: &str = "race/counter";
const SESSIONS: usize = 4;
/// Increments that each session must get through.
const EACH: usize = 40;

pub fn count_up(vault: &Vault<'_>) -> Expected {
    let mut root = vault.root();
    // Every version stays in grace, so that all of them can be read afterwards.
    let sql = "SELECT vault.create_secret('race/counter', '0', grace_period => '1 day')";
    root.query_one(sql, &[]).unwrap();

    let outcomes = clients_at_once(vault.cluster, "owner_of_all", SESSIONS, LIMIT, |i, mut client| {
        let mut random = Random::new(i);
        let (mut counted, mut refused, mut undone) = (Vec::new(), 0, 0);
        while counted.len() < EACH {
            // Two transactions out of three of a session are of its own level, the others of any.
            let level = LEVELS[if random.below(3) == 0 { random.below(4) as usize } else { i }];
            let Some(level) = level else {
                match increment(&mut client) {
                    Ok(version) => counted.push(version),
                    Err(error) => refused += usize::from(!allowed(&error).is_empty()),
                }
                continue;
            };
            client.batch_execute(&format!("BEGIN ISOLATION LEVEL {level}")).unwrap();
            let undo = random.below(4) == 0;
            let done = increment(&mut client).and_then(|version| {
                client.batch_execute(if undo { "ROLLBACK" } else { "COMMIT" }).map(|()| version)
            });
            match done {
                Ok(_) if undo => undone += 1,
                Ok(version) => counted.push(version),
                Err(error) => {
                    refused += usize::from(!allowed(&error).is_empty());
                    client.batch_execute("ROLLBACK").unwrap();
                }
            }
        }
        (counted, refused, undone)
    });

    let total = (SESSIONS * EACH) as i32;
    let refused: usize = outcomes.iter().map(|(_, refused, _)| refused).sum();
    let undone: usize = outcomes.iter().map(|(.., undone)| undone).sum();
    println!("{total} counted, {refused} refused, {undone} rolled back");
    assert!(refused > 0 && undone > 0, "that was no race");

    let row = root.query_one("SELECT version, value FROM vault.get_secret($1)", &[&NAME]).unwrap();
    assert_eq!(row.get::<_, &str>(1), total.to_string(), "the number of successes");
    assert_eq!(row.get::<_, i32>(0), total + 1);

    let mut acknowledged: Vec<i32> = outcomes.into_iter().flat_map(|(counted, ..)| counted).collect();
    acknowledged.sort_unstable();
    assert_eq!(acknowledged, (2..=total + 1).collect::<Vec<_>>(), "a gap or a double");
    let listed: Vec<(i32, String)> = root
        .query("SELECT version, state FROM vault.list_versions($1) ORDER BY version", &[&NAME])
        .unwrap()
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    let state = |version| if version == total + 1 { "current" } else { "grace" }.to_owned();
    assert_eq!(listed, (1..=total + 1).map(|version| (version, state(version))).collect::<Vec<_>>());
    let oldest = root.query_one("SELECT valid, version FROM vault.verify($1, '0')", &[&NAME]).unwrap();
    assert_eq!((oldest.get::<_, bool>(0), oldest.get::<_, Option<i32>>(1)), (true, Some(1)));

    // Version 1 holds 0.
    (1..=total + 1).map(|version| (NAME.into(), Some(version), (version - 1).to_string())).collect()
}

/// Reads, adds one, writes if nobody else has. Returns the new version.
fn increment(client: &mut Client) -> Result<i32, postgres::Error> {
    let row = client.query_one("SELECT version, value FROM vault.get_secret($1)", &[&NAME])?;
    let (version, value): (i32, i32) = (row.get(0), row.get::<_, &str>(1).parse().expect("a number"));
    let sql = "SELECT (vault.put_secret($1, $2, expected_version => $3)).version";
    let new: i32 = client.query_one(sql, &[&NAME, &(value + 1).to_string(), &version])?.get(0);
    assert_eq!(new, version + 1);
    Ok(new)
}
