//! Asking a session in text: what psql would print, so that a whole row is one assertion. Runs in the test process.
//!
//! The simple protocol gives every type as the server writes it, without a client-side type for each of ours.

use postgres::{Client, SimpleQueryMessage};

pub trait Ask {
    /// The rows of a script: columns separated by `|`, rows by line feeds, NULL as `∅`.
    ///
    /// Panics if the server reports an error; what it reports is shown.
    #[track_caller]
    fn ask(&mut self, sql: &str) -> String;

    /// Like [`ask`](Self::ask), with the error instead of a panic, for `sqlstate!`.
    fn try_ask(&mut self, sql: &str) -> Result<String, postgres::Error>;
}

impl Ask for Client {
    #[track_caller]
    fn ask(&mut self, sql: &str) -> String {
        self.try_ask(sql).unwrap_or_else(|error| panic!("{sql}\nfailed: {error:?}"))
    }

    fn try_ask(&mut self, sql: &str) -> Result<String, postgres::Error> {
        let mut lines = Vec::new();
        for message in self.simple_query(sql)? {
            if let SimpleQueryMessage::Row(row) = message {
                let columns: Vec<_> = (0..row.len()).map(|i| row.get(i).unwrap_or("∅")).collect();
                lines.push(columns.join("|"));
            }
        }
        Ok(lines.join("\n"))
    }
}
