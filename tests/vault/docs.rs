//! The documentation, held to what the server does: README examples run, settings, functions, errors and links exist.
//!
//! Runs in the test process against one throw-away cluster. Conventions of the documents:
//!
//! - a ```` ```sql ```` block starts with `-- as ROLE` and runs through psql as that role, blocks in document order;
//! - the ```` ```text ```` block after it is what psql prints (null shown as `(null)`, errors verbose, no footer);
//!   uuids, timestamps and key fingerprints are compared by shape, runs of blanks and dashes by presence;
//! - a block of `-- as ROLE, $1 = '…', $2 = '…'` runs with these texts bound, as a client would, and must succeed;
//! - a ```` ```sql ```` block without a role is a fault: an example that nobody runs rots.
//!
//! The trap it avoids: a test that finds nothing to compare and passes. Each part counts what it has seen.

use hyperion_vault_tests::{Client, Cluster, KeyFile, Vault, sqlstate};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const SETTINGS: [&str; 2] = ["README.md", "docs/settings.md"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the checkout").to_owned()
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// README.md and docs/*.md, by path from the checkout.
fn documents() -> Vec<(String, String)> {
    let docs = fs::read_dir(root().join("docs")).expect("docs/ exists");
    let mut names: Vec<String> = docs
        .map(|entry| entry.expect("docs/ can be read").file_name().into_string().expect("a UTF-8 name"))
        .filter(|name| name.ends_with(".md"))
        .map(|name| format!("docs/{name}"))
        .collect();
    names.push("README.md".to_owned());
    names.sort();
    assert!(names.len() >= 7, "documents are missing: {names:?}");
    names.into_iter().map(|name| (name.clone(), read(&name))).collect()
}

/// A fenced block: its language, its first line's number, its text.
struct Block {
    language: String,
    line: usize,
    text: String,
}

fn blocks(document: &str) -> Vec<Block> {
    let mut found: Vec<Block> = Vec::new();
    let mut open = false;
    for (number, line) in document.lines().enumerate() {
        if let Some(language) = line.strip_prefix("```") {
            open = !open;
            if open {
                found.push(Block { language: language.to_owned(), line: number + 1, text: String::new() });
            }
        } else if open {
            let block = found.last_mut().expect("a block is open");
            block.text.push_str(line);
            block.text.push('\n');
        }
    }
    assert!(!open, "a fence is not closed");
    found
}

/// The cells of every table whose header starts with these words.
fn table(document: &str, header: &[&str]) -> Vec<Vec<String>> {
    let cells = |line: &str| -> Vec<String> {
        line.trim().trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect()
    };
    let mut rows = Vec::new();
    let mut inside = false;
    for line in document.lines() {
        if !line.starts_with('|') {
            inside = false;
        } else if inside {
            if !line.starts_with("|-") {
                rows.push(cells(line));
            }
        } else {
            let names = cells(line);
            inside = names.len() >= header.len() && names.iter().zip(header).all(|(name, want)| name == want);
        }
    }
    rows
}

/// What may differ from run to run replaced by its name: see the module.
fn normal(text: &str) -> String {
    let mut lines = Vec::new();
    for line in text.lines() {
        // psql's place in the script, and the source line of a verbose error.
        let line = match line.split_once("<stdin>:") {
            Some((_, rest)) => rest.split_once(": ").map_or(rest, |(_, message)| message),
            None => line,
        };
        if line.starts_with("LOCATION:") {
            continue;
        }
        let line: Vec<String> = line.split_whitespace().map(shape).collect();
        let line = line.join(" ").replace("<date> <time>", "<timestamp>");
        if !line.is_empty() {
            lines.push(line);
        }
    }
    lines.join("\n")
}

fn shape(word: &str) -> String {
    let digits = |pattern: &str| {
        word.len() >= pattern.len()
            && word
                .bytes()
                .zip(pattern.bytes())
                .all(|(b, p)| if p == b'9' { b.is_ascii_digit() } else { b == p })
    };
    let hex = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit());
    if word.bytes().all(|b| b == b'-' || b == b'+') && word.contains('-') {
        return word.split('+').map(|_| "-").collect::<Vec<_>>().join("+");
    }
    if digits("9999-99-99") && word.len() == 10 {
        return "<date>".to_owned();
    }
    if digits("99:99:99") && word.ends_with("+00") {
        return "<time>".to_owned();
    }
    match word.strip_prefix("local:") {
        Some(rest) if rest.len() == 16 && hex(rest) => return "local:<fingerprint>".to_owned(),
        _ => {}
    }
    let uuid = word.len() == 36 && hex(&word.replace('-', "")) && word.matches('-').count() == 4;
    if uuid { "<uuid>".to_owned() } else { word.to_owned() }
}

/// A key file made by the command the README gives, run as it stands but for the path.
fn key_by_the_book() -> KeyFile {
    let readme = read("README.md");
    let shell = blocks(&readme).into_iter().find(|b| b.language == "sh" && b.text.contains("master.key"));
    let shell = shell.expect("the README says how to make a key file").text;
    let line = shell.lines().find(|line| line.contains("/dev/urandom")).expect("a line that makes the key");
    let command = line.split('\'').nth(1).expect("the command stands in single quotes");
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("master.key");
    let ours = command.replace("/etc/hyperion_vault/master.key", path.to_str().expect("a UTF-8 path"));
    assert_ne!(ours, command, "the command names another file: {command}");
    let status = std::process::Command::new("sh").args(["-c", &ours]).status().expect("sh runs");
    assert!(status.success(), "{ours}");
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::metadata(&path).expect("the key file was made").permissions().mode() & 0o7777;
    assert_eq!(mode, 0o600);
    KeyFile::Custom { bytes: fs::read(&path).expect("our own file"), mode }
}

#[test]
fn readme_examples_do_what_they_show() {
    let cluster = Cluster::builder().key_file(key_by_the_book()).start();
    let readme = read("README.md");
    let blocks = blocks(&readme);
    let (mut compared, mut errors, mut bound) = (0, 0, 0);
    for (i, block) in blocks.iter().enumerate().filter(|(_, block)| block.language == "sql") {
        let place = format!("README.md:{}", block.line);
        let first = block.text.lines().next().unwrap_or_default();
        let head = first.strip_prefix("-- as ").unwrap_or_else(|| panic!("{place}: which role runs it?"));
        let (role, parameters) = head.split_once(',').unwrap_or((head, ""));
        if !parameters.is_empty() {
            let values: Vec<&str> = parameters.split('\'').skip(1).step_by(2).collect();
            run_bound(&mut cluster.connect(role, cluster.database()), &block.text, &values, &place);
            bound += 1;
            continue;
        }
        let args = ["-q", "-P", "footer=off", "-P", "null=(null)", "-v", "VERBOSITY=verbose"];
        if block.text.contains("vault.audit_log") {
            // A reader comes later than a script does.
            crate::audit::settle(&cluster);
        }
        let output = cluster.psql_as(role, &args, &block.text);
        let got = normal(&format!("{}{}", output.text(), output.errors()));
        let expected = blocks.get(i + 1).filter(|next| next.language == "text").map_or("", |next| &next.text);
        let expected = normal(expected);
        assert_eq!(got, expected, "{place}, as {role}:\n{}{}", output.text(), output.errors());
        let fails = expected.contains("ERROR:");
        assert_eq!(output.status.success(), !fails, "{place}: {}", output.status);
        compared += 1;
        errors += usize::from(fails);
    }
    assert!(
        compared >= 10 && errors >= 3 && bound >= 1,
        "{compared} compared, {errors} errors, {bound} bound"
    );

    let vault = Vault { cluster: &cluster };
    every_function_is_in_the_readme(&mut vault.root(), &readme);
    settings_are_as_documented(&mut vault.root());
    named_settings_and_functions_exist(&mut vault.root());
    rights_are_as_documented(&vault, &readme);
}

/// Runs one statement with texts bound, as the extended protocol does it. What it returns is not compared.
fn run_bound(client: &mut Client, sql: &str, values: &[&str], place: &str) {
    let bound: Vec<&(dyn postgres::types::ToSql + Sync)> = values.iter().map(|value| value as _).collect();
    let rows = client.query(sql, &bound).unwrap_or_else(|error| panic!("{place}: {error:?}"));
    assert_eq!(rows.len(), 1, "{place}");
}

fn column(client: &mut Client, sql: &str) -> BTreeSet<String> {
    let rows = client.query(sql, &[]).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    rows.iter().map(|row| row.get(0)).collect()
}

const FUNCTIONS: &str = "SELECT proname::text FROM pg_proc WHERE pronamespace = 'vault'::regnamespace";

fn every_function_is_in_the_readme(client: &mut Client, readme: &str) {
    let api: Vec<String> =
        column(client, FUNCTIONS).into_iter().filter(|name| !name.starts_with('_')).collect();
    assert!(api.len() >= 11, "{api:?}");
    for name in api {
        assert!(readme.contains(&format!("vault.{name}(")), "README.md does not mention vault.{name}()");
    }
}

/// Whatever the documents call `vault.x(…)` or `hyperion_vault.x` must exist. What is not there yet is named without
/// its schema.
fn named_settings_and_functions_exist(client: &mut Client) {
    let functions = column(client, FUNCTIONS);
    let settings = column(client, "SELECT name FROM pg_settings WHERE name LIKE 'hyperion\\_vault.%'");
    let mut seen = 0;
    for (document, text) in documents() {
        for (at, _) in text.match_indices("vault.") {
            let name: String =
                text[at + 6..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            let called = text[at + 6 + name.len()..].starts_with('(');
            if text[..at].ends_with("hyperion_") {
                // Files are called that too: hyperion_vault.so, .control.
                let file = ["so", "control", ""].contains(&name.as_str());
                assert!(file || settings.contains(&format!("hyperion_vault.{name}")), "{document}: {name}");
            } else if called {
                assert!(functions.contains(&name), "{document}: there is no function vault.{name}()");
            }
            seen += 1;
        }
    }
    assert!(seen > 80, "{seen} names seen");
}

/// Both tables list every setting of a release build, with its default, unit, range and context as the server has them.
fn settings_are_as_documented(client: &mut Client) {
    let sql = "SELECT name, coalesce(boot_val, ''), coalesce(unit, ''), coalesce(min_val, ''), \
                 coalesce(max_val, ''), context FROM pg_settings \
               WHERE name LIKE 'hyperion\\_vault.%' AND name NOT LIKE 'hyperion\\_vault.test\\_%' ORDER BY name";
    let rows = client.query(sql, &[]).expect("pg_settings can be read");
    assert!(rows.len() >= 13);
    for document in SETTINGS {
        let text = read(document);
        let mut documented = table(&text, &["Setting", "Default", "Unit", "Takes effect"]);
        documented.sort();
        assert_eq!(documented.len(), rows.len(), "{document}: {documented:?}");
        for (row, cells) in rows.iter().zip(documented) {
            let column = |i: usize| row.get::<_, String>(i);
            assert_eq!(cells[0], column(0), "{document}");
            let default = if cells[1] == "''" { String::new() } else { cells[1].clone() };
            assert_eq!(default, column(1), "{document}: default of {}", cells[0]);
            assert_eq!(cells[2], column(2), "{document}: unit of {}", cells[0]);
            let context = match cells[3].as_str() {
                "restart" => "postmaster",
                "reload" => "sighup",
                other => panic!("{document}: {} takes effect at {other:?}", cells[0]),
            };
            assert_eq!(context, column(5), "{document}: {}", cells[0]);
            if document == "docs/settings.md" && !column(3).is_empty() {
                assert_eq!(cells[4], format!("{} – {}", column(3), column(4)), "range of {}", cells[0]);
            }
        }
    }
}

/// The README's table of rights, asked cell by cell. Each call is one that fails later (or finds nothing) for whoever
/// passes the gate, so that only the gate's answer, 42501, counts.
fn rights_are_as_documented(vault: &Vault, readme: &str) {
    let sql = "CREATE ROLE documented_user LOGIN IN ROLE vault_user;
               CREATE ROLE documented_auditor LOGIN IN ROLE vault_auditor;";
    vault.root().batch_execute(sql).expect("roles for the test");
    let calls = [
        "SELECT vault.read_secret(name => 'docs/absent')",
        "SELECT vault.verify(name => 'docs/absent', candidate => 'x')",
        "SELECT * FROM vault.list_versions(name => 'docs/absent')",
        "SELECT vault.create_secret(name => 'docs/absent')",
        "SELECT vault.delete_secret(name => 'docs/absent')",
    ];
    let rows = table(readme, &["Role", "read", "verify", "list", "create, update, rotate", "delete"]);
    assert_eq!(rows.len(), 6, "{rows:?}");
    let mut allowed_in_all = 0;
    for row in rows {
        let login = match row[0].as_str() {
            "vault_reader" => "app",
            "vault_admin" => "ops",
            "vault_user" => "documented_user",
            "vault_auditor" => "documented_auditor",
            "superuser" => "postgres",
            "anybody else" => {
                vault.root().batch_execute("CREATE ROLE documented_stranger LOGIN").expect("a role");
                "documented_stranger"
            }
            other => panic!("unknown role {other:?} in the table"),
        };
        let mut client = vault.session(login);
        for (call, cell) in calls.iter().zip(&row[1..]) {
            let error = client.simple_query(call).expect_err("every call here fails");
            let code = error.code().expect("an error of the server").code();
            assert_eq!(code != "42501", cell == "yes", "{} {call}: {code}", row[0]);
            allowed_in_all += usize::from(cell == "yes");
        }
    }
    assert!(allowed_in_all > 5);
    // The control: this role may not even look the schema up.
    sqlstate!(vault.session("documented_stranger").simple_query("SELECT vault.status()"), "42501");
}

/// Every message in docs/errors.md is one the source can raise: each of its fixed parts stands in a string of it.
#[test]
fn documented_errors_exist() {
    let mut source = String::new();
    collect(&root().join("src"), &mut source);
    collect(&root().join("sql"), &mut source);
    // As the texts would be without Rust's escapes and continuation lines.
    let source = source.replace("\\\"", "\"");
    let rows = table(&read("docs/errors.md"), &["Message", "SQLSTATE"]);
    assert!(rows.len() >= 40, "{} rows", rows.len());
    for row in rows {
        assert_eq!(row[1].len(), 5, "{row:?}");
        for part in row[0].split('…').filter(|part| !part.trim_matches(['"', ' ']).is_empty()) {
            assert!(source.contains(part.trim()), "no source has {part:?} of {:?}", row[0]);
        }
    }
    let codes = table(&read("docs/errors.md"), &["SQLSTATE", "Name"]);
    let names = read("src/error.rs");
    assert!(codes.len() >= 10, "{codes:?}");
    for row in codes {
        let constant = format!("ERRCODE_{}", row[1].to_uppercase());
        let constant = constant.replace("ERRCODE_SERIALIZATION", "ERRCODE_T_R_SERIALIZATION");
        assert!(names.contains(&constant), "{row:?}");
    }
}

fn collect(dir: &Path, into: &mut String) {
    for entry in fs::read_dir(dir).expect("a directory of the checkout") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, into);
        } else if path.extension().is_some_and(|ext| ext == "rs" || ext == "sql") {
            into.push_str(&fs::read_to_string(&path).expect("a source file"));
        }
    }
}

/// Links between the documents lead to files and headings that are there; so do the source paths they name.
#[test]
fn links_and_paths_resolve() {
    let (mut links, mut paths) = (0, 0);
    for (document, text) in documents() {
        let dir = root().join(&document).parent().expect("a file has a directory").to_owned();
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split(')').next().expect("split gives one part at least");
            if target.starts_with("https://") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = if file.is_empty() { root().join(&document) } else { dir.join(file) };
            assert!(path.exists(), "{document}: {target} leads nowhere");
            if !anchor.is_empty() {
                let headings = fs::read_to_string(&path).expect("a document");
                let found = headings.lines().filter(|l| l.starts_with('#')).any(|l| slug(l) == anchor);
                assert!(found, "{document}: {target} has no such heading");
            }
            links += 1;
        }
        for word in text.split(['`', ' ', '\n']).filter(|w| w.starts_with("src/") || w.starts_with("sql/")) {
            let path = word.trim_end_matches([',', '.', ';', ':', ')']);
            if !path.contains(['*', '<', '{']) {
                assert!(root().join(path).exists(), "{document}: {path} does not exist");
                paths += 1;
            }
        }
    }
    assert!(links >= 10 && paths >= 15, "{links} links, {paths} paths");
}

/// A heading's anchor, as the common renderers make it.
fn slug(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.chars()
        .filter(|c| c.is_alphanumeric() || *c == ' ' || *c == '-' || *c == '_')
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

#[test]
fn the_comparison_sees_differences() {
    let a = " id | at \n----+------\n 11111111-1111-1111-1111-111111111111 | 2026-01-02 03:04:05.6+00\n";
    let b = " id   | at \n------+--------\n 99999999-1111-1111-1111-111111111111 | 2027-01-02 03:04:05.678+00\n\n";
    assert_eq!(normal(a), normal(b));
    assert_ne!(normal(a), normal(&a.replace("id", "name")));
    assert_ne!(normal("t"), normal("f"));
    assert_eq!(normal("psql:<stdin>:3: ERROR:  22023: x\nLOCATION:  f, a.rs:1"), "ERROR: 22023: x");
    assert_eq!(normal("local:0123456789abcdef"), normal("local:fedcba9876543210"));
    assert_ne!(normal("local:0123456789abcdef"), normal("aws:fedcba9876543210"));
    let rows = table("| A | B |\n|---|---|\n| `x` | y |\n\n| C |\n|---|\n| z |\n", &["A", "B"]);
    assert_eq!(rows, [["x", "y"]]);
    assert_eq!(slug("## Who may do what?"), "who-may-do-what");
}
