//! What is compared with what. Runs in the benchmark's process.
//!
//! Names are numbers of twelve digits: pgbench can bind a number as it is, so that neither side pays for putting a
//! string together. Both sides of a pair bind the same names, return the same 64 bytes and speak the same protocol.

/// How many secrets there are, and rows in the plain table.
pub const SECRETS: u32 = 10_000;
/// The name of the first.
pub const FIRST: u64 = 100_000_000_000;

/// `vault` beside `plain`, at some number of connections.
pub struct Scenario {
    pub name: &'static str,
    pub vault: String,
    pub plain: String,
    pub user: &'static str,
    pub clients: u32,
    /// Whether this is the figure the project states, measured at full length.
    pub main: bool,
    /// Whether the keys must all come from the cache.
    pub cached: bool,
}

impl Scenario {
    /// The seed of a pair (0: the warm-up). Another one for each: a writing run must not make the names of an earlier
    /// one again, and pgbench gives its first client the same numbers however many there are.
    pub fn seed(&self, pair: u32) -> u32 {
        self.clients * 100_000 + pair
    }
}

pub fn all() -> Vec<Scenario> {
    let stored = format!("\\set n random({FIRST}, {})\n", FIRST + u64::from(SECRETS) - 1);
    // Far apart from the stored ones, and so many that none comes twice: both sides add rows in random order.
    let fresh = "\\set n random(200000000000, 900000000000000000)\n";
    // Each statement ends as pgbench wants it: a variable at the very end of a script is not replaced cleanly.
    let select = "SELECT value FROM bench.plain WHERE name = :n;\n";
    let value = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    let insert = format!("INSERT INTO bench.inserted (name, value) VALUES (:n, '{value}');\n");
    let create = format!("SELECT (vault.create_secret(:n, '{value}')).version;\n");
    let mut all = Vec::new();
    for clients in [1, 8] {
        let read = |name, call: &str, main| Scenario {
            name,
            vault: format!("{stored}{call}"),
            plain: format!("{stored}{select}"),
            user: "app",
            clients,
            main,
            cached: true,
        };
        all.push(read("read_secret", "SELECT vault.read_secret(:n);\n", true));
        all.push(read("get_secret", "SELECT * FROM vault.get_secret(:n);\n", false));
        all.push(read("verify", "SELECT * FROM vault.verify(:n, 'not the value');\n", false));
        all.push(Scenario {
            name: "create_secret",
            vault: format!("{fresh}{create}"),
            plain: format!("{fresh}{insert}"),
            user: "ops",
            clients,
            main: false,
            cached: false,
        });
    }
    // The stated figure first; writes last, so that they disturb no read.
    all.sort_by_key(|scenario| (!scenario.cached, !scenario.main));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stated_figure_comes_first_and_writes_last() {
        let order: Vec<_> = all().iter().map(|scenario| (scenario.name, scenario.clients)).collect();
        assert_eq!(order[..2], [("read_secret", 1), ("read_secret", 8)]);
        assert_eq!(order[order.len() - 2..], [("create_secret", 1), ("create_secret", 8)]);
        assert!(all().iter().all(|scenario| !scenario.main || scenario.cached));
    }

    #[test]
    fn no_two_writing_runs_have_the_same_names() {
        let writing = all().into_iter().filter(|scenario| !scenario.cached);
        let seeds: Vec<_> =
            writing.flat_map(|scenario| (0..4).map(move |pair| scenario.seed(pair))).collect();
        let distinct: std::collections::HashSet<_> = seeds.iter().collect();
        assert_eq!((distinct.len(), seeds.len()), (8, 8));
    }
}
