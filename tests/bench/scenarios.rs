//! What is compared with what. Runs in the benchmark's process.
//!
//! Names are numbers of twelve digits: pgbench can bind a number as it is, so that neither side pays for putting a
//! string together. Both sides of a pair bind the same names, return the same 64 bytes and speak the same protocol.

/// How many secrets there are, and rows in the plain table.
pub const SECRETS: u32 = 10_000;
/// The name of the first.
pub const FIRST: u64 = 100_000_000_000;
/// Further ones, in both: with a user name and password, and with a superseded version in grace.
pub const FEW: u32 = 1_000;
pub const FIRST_USERPASS: u64 = 300_000_000_000;
pub const FIRST_VERSIONED: u64 = 400_000_000_000;
/// As many as [`SECRETS`] that are written to, in both, and never read: the table of the reads stays as it was filled.
pub const FIRST_WRITTEN: u64 = 450_000_000_000;
/// Names in one call of `read_secrets`.
const BATCH: u32 = 50;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A figure the project states, measured at full length.
    Main,
    /// Every key from the cache.
    Cached,
    /// No call of the vault: what its figures are to be seen beside.
    Reference,
    Writing,
    /// No key from the cache: each read asks the key service, here the local one.
    Cold,
}

/// `vault` beside `plain`, at some number of connections.
pub struct Scenario {
    pub name: &'static str,
    pub vault: String,
    pub plain: String,
    pub user: &'static str,
    pub clients: u32,
    pub kind: Kind,
}

impl Scenario {
    /// The seed of a pair (0: the warm-up). Another one for each: a writing run must not make the names of an earlier
    /// one again, and pgbench gives its first client the same numbers however many there are.
    pub fn seed(&self, pair: u32) -> u32 {
        self.clients * 100_000 + pair
    }

    /// Whether the keys must all come from the cache.
    pub fn cached(&self) -> bool {
        matches!(self.kind, Kind::Main | Kind::Cached)
    }
}

/// The script of a call on random names of a range.
fn script(first: u64, count: u32, call: &str) -> String {
    format!("\\set n random({first}, {})\n{call}", first + u64::from(count) - 1)
}

pub fn all() -> Vec<Scenario> {
    // Far apart from the stored ones, and so many that none comes twice: both sides add rows in random order.
    let fresh = "\\set n random(500000000000, 900000000000000000)\n";
    // Each statement ends as pgbench wants it: a variable at the very end of a script is not replaced cleanly.
    let select = "SELECT value FROM bench.plain WHERE name = :n;\n";
    let value = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    let insert = format!("INSERT INTO bench.inserted (name, value) VALUES (:n, '{value}');\n");
    let create = format!("SELECT (vault.create_secret(:n, '{value}')).version;\n");
    let update = format!("UPDATE bench.updated SET value = '{value}' WHERE name = :n;\n");
    let put = format!("SELECT (vault.put_secret(:n, '{value}')).version;\n");
    let names = format!("ARRAY(SELECT (:n::bigint + i)::text FROM generate_series(0, {}) i)", BATCH - 1);
    let mut all = Vec::new();
    let mut add = |name, clients, kind, (first, count), vault: &str, plain: &str| {
        let (vault, plain) = (script(first, count, vault), script(first, count, plain));
        all.push(Scenario { name, vault, plain, user: "app", clients, kind });
    };
    let (many, few) = ((FIRST, SECRETS), |first| (first, FEW));
    let read = "SELECT vault.read_secret(:n);\n";
    for clients in [1, 8, 64] {
        add("read_secret", clients, Kind::Main, many, read, select);
    }
    for clients in [1, 8] {
        use Kind::{Cached, Cold, Reference};
        let call = "SELECT * FROM vault.get_secret(:n);\n";
        add("get_secret", clients, Cached, many, call, select);
        add("verify", clients, Cached, many, "SELECT * FROM vault.verify(:n, 'not the value');\n", select);
        add(
            "by_version",
            clients,
            Cached,
            few(FIRST_VERSIONED),
            "SELECT vault.read_secret(:n, 1);\n",
            select,
        );
        add("userpass", clients, Cached, few(FIRST_USERPASS), read, select);
        let (batch, rows) = (
            format!("SELECT count(value) FROM vault.read_secrets({names});\n"),
            format!("SELECT count(value) FROM bench.plain WHERE name = ANY ({names});\n"),
        );
        add("read_secrets_50", clients, Cached, (FIRST, SECRETS - BATCH), &batch, &rows);
        add("select_1", clients, Reference, many, "SELECT 1;\n", select);
        add("plpgsql", clients, Reference, many, "SELECT bench.wrapped(:n);\n", select);
        add("cold_read", clients, Cold, many, read, select);
    }
    for clients in [1, 8] {
        all.push(Scenario {
            name: "create_secret",
            vault: format!("{fresh}{create}"),
            plain: format!("{fresh}{insert}"),
            user: "ops",
            clients,
            kind: Kind::Writing,
        });
        all.push(Scenario {
            name: "put_secret",
            vault: script(FIRST_WRITTEN, SECRETS, &put),
            plain: script(FIRST_WRITTEN, SECRETS, &update),
            user: "ops",
            clients,
            kind: Kind::Writing,
        });
    }
    // The stated figure first; writes late, so that they disturb no read; cold last, which restarts the server.
    all.sort_by_key(|scenario| scenario.kind);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stated_figure_comes_first_and_writes_disturb_no_read() {
        let order: Vec<_> = all().iter().map(|scenario| (scenario.name, scenario.clients)).collect();
        assert_eq!(order[..3], [("read_secret", 1), ("read_secret", 8), ("read_secret", 64)]);
        let place = |name| order.iter().position(|(n, _)| *n == name).unwrap();
        for writing in ["create_secret", "put_secret"] {
            assert!(place("plpgsql") < place(writing) && place(writing) < place("cold_read"));
        }
    }

    #[test]
    fn no_two_runs_create_the_same_names() {
        let writing = all().into_iter().filter(|scenario| scenario.name == "create_secret");
        let seeds: Vec<_> =
            writing.flat_map(|scenario| (0..4).map(move |pair| scenario.seed(pair))).collect();
        let distinct: std::collections::HashSet<_> = seeds.iter().collect();
        assert_eq!((distinct.len(), seeds.len()), (8, 8));
    }
}
