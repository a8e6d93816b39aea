//! Everything at once on one name: writers of every kind in transactions of every kind, readers in between.
//!
//! Each value written is unique, and its writer notes secret id, version and value once the commit has been
//! acknowledged. From the notes of all writers follows what any reader may have seen, and what must be left.

use super::{Expected, LEVELS, LIMIT, Random, allowed};
use hyperion_vault_tests::threads::clients_at_once;
use hyperion_vault_tests::{Client, Vault};
use std::collections::{BTreeMap, HashMap};

const NAME: &str = "race/storm";
const WRITERS: usize = 4;
const READERS: usize = 2;
const TRANSACTIONS: usize = 150;
const READS: usize = 150;
/// Length of rotated values, which only the vault knows.
const ROTATED: usize = 20;

/// A version that was made, and its value where the writer knows it.
#[derive(Clone, Debug)]
struct Made {
    id: String,
    version: i32,
    value: Option<String>,
}

#[derive(Default)]
struct Notes {
    made: Vec<Made>,
    /// Version and value as read.
    seen: Vec<(i32, String)>,
    errors: BTreeMap<String, usize>,
    rolled_back: usize,
}

impl Notes {
    fn refused(&mut self, error: &postgres::Error) {
        *self.errors.entry(allowed(error).to_owned()).or_default() += 1;
    }
}

pub fn rage(vault: &Vault<'_>) -> Expected {
    let notes = clients_at_once(vault.cluster, "owner_of_all", WRITERS + READERS, LIMIT, |i, client| {
        if i < WRITERS { write(i, client) } else { read(client) }
    });

    let mut errors: BTreeMap<&str, usize> = BTreeMap::new();
    for (code, n) in notes.iter().flat_map(|notes| &notes.errors) {
        *errors.entry(code).or_default() += n;
    }
    let rolled_back: usize = notes.iter().map(|notes| notes.rolled_back).sum();
    let made: Vec<&Made> = notes.iter().flat_map(|notes| &notes.made).collect();
    println!("{} versions made, {rolled_back} transactions rolled back, errors {errors:?}", made.len());
    assert!(made.len() >= 100 && rolled_back > 0 && errors.len() > 1, "that was no storm");

    // No double: two commits never got the same version of the same secret. No gap: whatever the order, all numbers
    // from 1 up were given.
    let mut secrets: BTreeMap<&str, BTreeMap<i32, &Made>> = BTreeMap::new();
    for made in &made {
        let other = secrets.entry(&made.id).or_default().insert(made.version, made);
        assert!(other.is_none(), "given twice: {made:?} and {other:?}");
    }
    for (id, versions) in &secrets {
        let numbers: Vec<i32> = versions.keys().copied().collect();
        assert_eq!(numbers, (1..=numbers.len() as i32).collect::<Vec<_>>(), "a gap in {id}");
    }

    // Nobody saw a value that was never committed, nor one under another number than its own.
    let versions: HashMap<&str, i32> =
        made.iter().filter_map(|made| Some((made.value.as_deref()?, made.version))).collect();
    let seen: Vec<_> = notes.iter().flat_map(|notes| &notes.seen).collect();
    assert!(seen.len() > READS / 4, "the readers saw {} values", seen.len());
    for (version, value) in seen {
        match value.strip_prefix("w ") {
            Some(_) => assert_eq!(versions.get(value.as_str()), Some(version), "{value:?}"),
            None => assert_eq!(value.len(), ROTATED),
        }
    }
    what_is_left(vault, &secrets)
}

/// What the tables hold agrees with the notes.
fn what_is_left(vault: &Vault<'_>, secrets: &BTreeMap<&str, BTreeMap<i32, &Made>>) -> Expected {
    let mut root = vault.root();
    let orphans = "SELECT count(*) FROM vault.secret_versions v
                   WHERE NOT EXISTS (SELECT FROM vault.secrets s WHERE s.id = v.secret_id)";
    assert_eq!(root.query_one(orphans, &[]).unwrap().get::<_, i64>(0), 0);

    let sql = "SELECT id::text, version FROM vault.list_secrets($1)";
    let Some(row) = root.query_opt(sql, &[&NAME]).unwrap() else { return Expected::new() };
    let (id, current): (&str, i32) = (row.get(0), row.get(1));
    let made = &secrets[id];
    assert_eq!(made.keys().last(), Some(&current), "an acknowledged version is missing");
    let listed =
        root.query("SELECT version, state FROM vault.list_versions($1) ORDER BY version", &[&NAME]).unwrap();
    let first: i32 = listed[0].get(0);
    assert_eq!(
        listed.iter().map(|row| row.get(0)).collect::<Vec<i32>>(),
        (first..=current).collect::<Vec<_>>()
    );

    let mut expected = Expected::new();
    for row in &listed {
        let (version, state): (i32, &str) = (row.get(0), row.get(1));
        let read = root.query_one("SELECT vault.read_secret($1, $2)", &[&NAME, &version]);
        if state == "retained" {
            assert_eq!(allowed(&read.unwrap_err()), "P0002");
            continue;
        }
        let value: String = read.unwrap_or_else(|error| panic!("version {version}: {error:?}")).get(0);
        match &made[&version].value {
            Some(written) => assert_eq!(*written, value, "version {version}"),
            None => assert_eq!(value.len(), ROTATED),
        }
        expected.push((NAME.into(), Some(version), value));
    }
    expected
}

fn write(i: usize, mut client: Client) -> Notes {
    let mut random = Random::new(10 + i);
    let mut notes = Notes::default();
    let mut count = 0;
    for _ in 0..TRANSACTIONS {
        let Some(level) = LEVELS[random.below(4) as usize] else {
            match act(&mut client, i, &mut count, &mut random) {
                Ok(made) => notes.made.extend(made),
                Err(error) => notes.refused(&error),
            }
            continue;
        };
        client.batch_execute(&format!("BEGIN ISOLATION LEVEL {level}")).unwrap();
        let undo = random.below(4) == 0;
        match transact(&mut client, i, &mut count, &mut random)
            .and_then(|made| client.batch_execute(if undo { "ROLLBACK" } else { "COMMIT" }).map(|()| made))
        {
            Ok(_) if undo => notes.rolled_back += 1,
            Ok(made) => notes.made.extend(made),
            Err(error) => {
                notes.refused(&error);
                client.batch_execute("ROLLBACK").unwrap();
            }
        }
    }
    notes
}

/// One to three operations, some of them undone by a savepoint.
fn transact(
    client: &mut Client,
    i: usize,
    count: &mut usize,
    random: &mut Random,
) -> Result<Vec<Made>, postgres::Error> {
    let mut made = Vec::new();
    for _ in 0..=random.below(3) {
        if random.below(3) > 0 {
            made.extend(act(client, i, count, random)?);
            continue;
        }
        client.batch_execute("SAVEPOINT s")?;
        let outcome = act(client, i, count, random);
        match outcome {
            Ok(kept) if random.below(2) == 0 => made.extend(kept),
            Ok(_) => client.batch_execute("ROLLBACK TO s")?,
            Err(error) => {
                allowed(&error);
                client.batch_execute("ROLLBACK TO s")?;
            }
        }
    }
    Ok(made)
}

/// One operation; the version it made, if it makes one.
fn act(
    client: &mut Client,
    i: usize,
    count: &mut usize,
    random: &mut Random,
) -> Result<Option<Made>, postgres::Error> {
    *count += 1;
    let value = format!("w {i} {count}");
    let expected = random.below(8) as i32;
    let made = |row: postgres::Row, value| Some(Made { id: row.get(0), version: row.get(1), value });
    let columns = "SELECT id::text, version FROM ";
    match random.below(16) {
        0..4 => {
            let sql = format!("{columns} vault.put_secret($1, $2)");
            Ok(made(client.query_one(&sql, &[&NAME, &value])?, Some(value)))
        }
        4..7 => {
            let sql = format!("{columns} vault.update_secret($1, value => $2, description => $2)");
            Ok(made(client.query_one(&sql, &[&NAME, &value])?, Some(value)))
        }
        7..10 => {
            let sql = format!("{columns} vault.rotate_secret($1)");
            Ok(made(client.query_one(&sql, &[&NAME])?, None))
        }
        10..12 => {
            let sql = format!("{columns} vault.put_secret($1, $2, expected_version => $3)");
            let row = client.query_one(&sql, &[&NAME, &value, &expected])?;
            assert_eq!(row.get::<_, i32>(1), expected + 1);
            Ok(made(row, Some(value)))
        }
        12 => {
            let sql = "SELECT vault.update_secret($1, metadata => '{\"a\": 1}', keep_versions => $2)";
            client.query_one(sql, &[&NAME, &expected])?;
            Ok(None)
        }
        13 => {
            client.query_one("SELECT vault.delete_secret($1)", &[&NAME])?;
            Ok(None)
        }
        _ => {
            let sql = format!(
                "{columns} vault.create_secret($1, $2, grace_period => '1 day',
                 generator => '{{\"length\": {ROTATED}, \"charset\": \"hex\"}}')"
            );
            Ok(made(client.query_one(&sql, &[&NAME, &value])?, Some(value)))
        }
    }
}

fn read(mut client: Client) -> Notes {
    let mut notes = Notes::default();
    for _ in 0..READS {
        let current = client
            .query_one("SELECT version, value FROM vault.get_secret($1)", &[&NAME])
            .map(|row| (row.get::<_, i32>(0), row.get::<_, String>(1)));
        let (version, value) = match current {
            Ok(current) => current,
            Err(error) => {
                notes.refused(&error);
                continue;
            }
        };
        notes.seen.push((version, value.clone()));
        // It may be gone by now, or the number may belong to another secret; it is never wrong.
        match client.query_one("SELECT valid, version FROM vault.verify($1, $2)", &[&NAME, &value]) {
            Ok(row) if row.get(0) => notes.seen.push((row.get(1), value)),
            Ok(_) => {}
            Err(error) => notes.refused(&error),
        }
        let previous = version - 1;
        match client.query_one("SELECT vault.read_secret($1, $2)", &[&NAME, &previous]) {
            Ok(row) => notes.seen.push((previous, row.get(0))),
            Err(error) => notes.refused(&error),
        }
    }
    notes
}
