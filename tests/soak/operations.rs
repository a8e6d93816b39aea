//! One operation each: on a secret that nobody else changes, whose outcome is known beforehand; on one that all change; on
//! roles and tokens. Runs in the threads of the storm.

use crate::model::{Model, Secret};
use crate::random::Random;
use hyperion_vault_tests::{Ask, Client};
use postgres::Row;

/// Secrets that all sessions change.
pub const SHARED: usize = 12;

/// A version that was made: of which secret, which number, and its value where the session knows it.
#[derive(Clone, Debug)]
pub struct Made {
    pub id: String,
    pub version: i32,
    pub value: Option<String>,
}

/// Whose operation it was, for what may go wrong with it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Kind {
    Own,
    Shared,
    Access,
}

/// A session's part in a transaction, given up if that does not commit.
#[derive(Clone)]
pub struct Draft {
    pub model: Model,
    pub made: Vec<Made>,
}

pub struct Operations {
    pub stream: usize,
    count: usize,
}

type Outcome = Result<&'static str, (Kind, &'static str, postgres::Error)>;

impl Operations {
    pub fn new(stream: usize) -> Self {
        Self { stream, count: 0 }
    }

    fn value(&mut self) -> String {
        self.count += 1;
        // Some of them out of line.
        let filler = if self.count.is_multiple_of(17) { "x".repeat(6000) } else { String::new() };
        format!("value {} {}{filler}", self.stream, self.count)
    }

    /// One operation, its name, or the error and whose it was. The draft has its effect in either case: without an answer
    /// nobody knows, and with a refusal the caller gives the draft up.
    pub fn act(&mut self, client: &mut Client, draft: &mut Draft, random: &mut Random) -> Outcome {
        let (kind, name, result) = match random.below(20) {
            0..9 => {
                let (name, result) = self.own(client, &mut draft.model, random);
                (Kind::Own, name, result)
            }
            9..17 => {
                let (name, result) = self.shared(client, &mut draft.made, random);
                (Kind::Shared, name, result)
            }
            _ => {
                let (name, result) = self.access(client, random);
                (Kind::Access, name, result)
            }
        };
        result.map(|()| name).map_err(|error| (kind, name, error))
    }

    fn own(
        &mut self,
        client: &mut Client,
        model: &mut Model,
        random: &mut Random,
    ) -> (&'static str, Result<(), postgres::Error>) {
        let names = model.names();
        let name = random.pick(&names).clone();
        let value = self.value();
        let Some(secret) = model.of(&name).cloned() else {
            let grace = random.pick(&["NULL", "'1 second'", "'1 day'"]);
            let call = format!(
                "SELECT version FROM vault.create_secret($1, $2, grace_period => {grace}, keep_versions => 3, generator => '{{}}')"
            );
            model.set(&name, Some(Secret::first(Some(value.clone()))));
            let result = client.query_one(&call, &[&name, &value]).map(|row| {
                assert_eq!(row.get::<_, i32>(0), 1, "{name}");
            });
            return ("create", result);
        };
        // What a writing call must say, and what it leaves.
        let mut write = |client: &mut Client, sql: &str, value: Option<String>, given: bool| {
            model.of_mut(&name).next(value.clone());
            let row = match (&value, given) {
                (Some(value), true) => client.query_one(sql, &[&name, value]),
                _ => client.query_one(sql, &[&name]),
            }?;
            assert_eq!(row.get::<_, i32>(0), secret.version + 1, "{name}: {sql}");
            Ok(())
        };
        match random.below(16) {
            0..3 => ("put", write(client, "SELECT version FROM vault.put_secret($1, $2)", Some(value), true)),
            3 => {
                let sql = format!(
                    "SELECT version FROM vault.put_secret($1, $2, expected_version => {})",
                    secret.version
                );
                ("put expected", write(client, &sql, Some(value), true))
            }
            4..6 => {
                let sql = "SELECT version FROM vault.update_secret($1, value => $2, description => 'new')";
                ("update value", write(client, sql, Some(value), true))
            }
            6 => {
                let sql = "SELECT version FROM vault.update_secret($1, description => left($2, 50), metadata => '{\"a\": [1, 2]}')";
                let result = client.query_one(sql, &[&name, &value]).map(|row| {
                    assert_eq!(row.get::<_, i32>(0), secret.version, "{name}: no new version");
                });
                ("update", result)
            }
            7..9 => ("rotate", write(client, "SELECT version FROM vault.rotate_secret($1)", None, false)),
            9 if secret.version > 1 => {
                let to = secret.version - 1 - random.below(3.min(secret.version as usize - 1)) as i32;
                let value = secret.values.get(&to).cloned().flatten();
                let sql = format!("SELECT version FROM vault.roll_back_secret($1, {to})");
                ("roll back", write(client, &sql, value, false))
            }
            10 => {
                model.set(&name, None);
                ("delete", client.query_one("SELECT vault.delete_secret($1)", &[&name]).map(drop))
            }
            11 => {
                let Some(to) = names.iter().find(|other| model.of(other).is_none()) else {
                    return (
                        "list",
                        client.query("SELECT * FROM vault.list_secrets('own/*')", &[]).map(drop),
                    );
                };
                model.set(to, Some(secret));
                model.set(&name, None);
                ("rename", client.query_one("SELECT vault.rename_secret($1, $2)", &[&name, to]).map(drop))
            }
            12 => {
                let Some(known) = secret.value() else {
                    return (
                        "versions",
                        client.query("SELECT * FROM vault.list_versions($1)", &[&name]).map(drop),
                    );
                };
                let result =
                    client.query_one("SELECT valid, version FROM vault.verify($1, $2)", &[&name, &known]);
                (
                    "verify",
                    result.map(|row| {
                        assert!(row.get::<_, bool>(0), "{name}: its own value is not valid");
                        assert_eq!(row.get::<_, i32>(1), secret.version, "{name}");
                    }),
                )
            }
            _ => {
                let result = client.query_one("SELECT version, value FROM vault.get_secret($1)", &[&name]);
                ("read", result.map(|row| model.found(&name, Some((row.get(0), row.get(1))))))
            }
        }
    }

    fn shared(
        &mut self,
        client: &mut Client,
        made: &mut Vec<Made>,
        random: &mut Random,
    ) -> (&'static str, Result<(), postgres::Error>) {
        let name = format!("shared/{}", random.below(SHARED));
        let other = format!("shared/{}", random.below(SHARED));
        let value = self.value();
        let expected = random.below(6) as i32;
        let version = |row: Row, value| Made { id: row.get(0), version: row.get(1), value };
        let columns = "SELECT id::text, version FROM";
        let mut write = |client: &mut Client, call: &str, value: Option<&String>| {
            let sql = format!("{columns} vault.{call}");
            let row = match value {
                Some(value) => client.query_one(&sql, &[&name, value])?,
                None => client.query_one(&sql, &[&name])?,
            };
            made.push(version(row, value.cloned()));
            Ok(())
        };
        let ask =
            |client: &mut Client, call: &str| client.query(&format!("SELECT {call}"), &[&name]).map(drop);
        match random.below(26) {
            0..3 => ("shared put", write(client, "put_secret($1, $2)", Some(&value))),
            3 => {
                let ends = random.pick(&["NULL", "NULL", "'2 seconds'"]);
                let call = format!(
                    "create_secret($1, $2, grace_period => '1 second', generator => '{{}}', expires_in => {ends})"
                );
                ("shared create", write(client, &call, Some(&value)))
            }
            4..6 => (
                "shared update value",
                write(client, "update_secret($1, value => $2, description => left($2, 50))", Some(&value)),
            ),
            6..8 => ("shared rotate", write(client, "rotate_secret($1)", None)),
            8 => (
                "shared end of grace",
                write(client, "update_secret($1, value => $2, grace_period => '0')", Some(&value)),
            ),
            9 => {
                let call = format!("put_secret($1, $2, expected_version => {expected})");
                ("shared put expected", write(client, &call, Some(&value)))
            }
            10 => {
                ("shared roll back", write(client, &format!("roll_back_secret($1, {})", expected + 1), None))
            }
            11 => (
                "shared update",
                ask(
                    client,
                    "vault.update_secret($1, metadata => '{\"a\": 1}', keep_versions => 2, reset => '{description}')",
                ),
            ),
            12 => ("shared delete", ask(client, "vault.delete_secret($1)")),
            13 => ("shared bury", ask(client, "vault.delete_secret($1, '1 hour')")),
            14 => ("shared bury briefly", ask(client, "vault.delete_secret($1, '1 second')")),
            15..17 => ("shared restore", ask(client, "vault.restore_secret($1)")),
            17 => {
                let result =
                    client.query_one("SELECT vault.rename_secret($1, $2)", &[&name, &other]).map(drop);
                ("shared rename", result)
            }
            18 => ("shared read", ask(client, "vault.read_secret($1)")),
            19 => ("shared read old", ask(client, &format!("vault.read_secret($1, {})", expected + 1))),
            20 => (
                "shared batch",
                ask(client, "r.* FROM vault.read_secrets(ARRAY[$1, 'shared/1', 'auto/1', 'none']) r"),
            ),
            21 => ("shared verify", ask(client, "v.* FROM vault.verify($1, 'wrong') v")),
            22 => ("shared versions", ask(client, "v.* FROM vault.list_versions($1) v")),
            23 => ("shared list", client.query("SELECT * FROM vault.list_secrets()", &[]).map(drop)),
            24 => ("view", ask(client, "decrypted_secret FROM vault.decrypted_secrets WHERE name = $1")),
            _ if random.one_in(4) => {
                ("export", client.query("SELECT vault.export_sealed()::text", &[]).map(drop))
            }
            _ => (
                "status",
                client.query("SELECT vault.status()::text, vault.can('read', 'a/b')", &[]).map(drop),
            ),
        }
    }

    fn access(
        &mut self,
        client: &mut Client,
        random: &mut Random,
    ) -> (&'static str, Result<(), postgres::Error>) {
        let role = format!("role-{}", random.below(4));
        let token = format!("token-{}-{}", self.stream, random.below(3));
        let rules = format!(
            r#"[{{"action":"read","path":"own/{}/*"}},{{"action":"list","path":"shared/*"}}]"#,
            self.stream
        );
        let (name, sql) = match random.below(11) {
            0..2 => ("create role", format!("SELECT vault.create_role('{role}', permissions => '{rules}')")),
            2 => ("set rules", format!("SELECT vault.set_role_permissions('{role}', '{rules}')")),
            3 => ("bind", format!("SELECT vault.bind_role('{role}', 'storm')")),
            4 => ("unbind", format!("SELECT vault.unbind_role('{role}', 'storm')")),
            5 => ("drop role", format!("SELECT vault.drop_role('{role}')")),
            6..8 => {
                let sql = format!(
                    "SELECT vault.authenticate(vault.create_token('{token}', '{role}', '1 hour')), vault.can('read', 'own/1/1')"
                );
                ("token", sql)
            }
            8 => ("revoke", format!("SELECT vault.revoke_token('{token}')")),
            9 => ("list roles", "SELECT * FROM vault.list_roles()".to_owned()),
            _ => ("list tokens", "SELECT * FROM vault.list_tokens()".to_owned()),
        };
        (name, client.try_ask(&sql).map(drop))
    }
}
