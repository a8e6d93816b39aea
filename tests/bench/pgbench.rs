//! One run of PostgreSQL's own `pgbench`, and what it printed. Runs in the benchmark's process.
//!
//! The trap: pgbench reports a rate also for a run in which clients gave up halfway, and ends with 0 for some. A run
//! counts only if it says how much it did and that nothing failed.

use hyperion_vault_tests::Cluster;

/// What a run is.
#[derive(Clone, Copy)]
pub struct Run<'a> {
    pub script: &'a str,
    pub user: &'a str,
    pub clients: u32,
    pub seconds: u32,
    /// Both runs of a pair have the same, and so ask for the same names in the same order.
    pub seed: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Transactions per second, the time it took to connect not counted.
    pub tps: f64,
    pub transactions: u64,
}

impl Run<'_> {
    /// Panics, showing what pgbench said, unless every call succeeded.
    #[track_caller]
    pub fn execute(&self, cluster: &Cluster) -> Rate {
        let (clients, seconds, seed) =
            (self.clients.to_string(), self.seconds.to_string(), self.seed.to_string());
        // One thread: pgbench has one core to itself, and the server another.
        let args = [
            "--no-vacuum",
            "--protocol=prepared",
            "--jobs=1",
            "--client",
            &clients,
            "--time",
            &seconds,
            "--random-seed",
            &seed,
            "--username",
            self.user,
            "--file=-",
        ];
        let output = cluster.run_tool("pgbench", &args, self.script.as_bytes());
        let (text, errors) = (output.text(), output.errors());
        assert!(output.status.success(), "pgbench {:?} failed:\n{}\n{errors}{text}", args, self.script);
        parse(&text).unwrap_or_else(|problem| panic!("pgbench: {problem}:\n{}\n{errors}{text}", self.script))
    }
}

/// Reads the report of pgbench 15 to 18.
pub fn parse(report: &str) -> Result<Rate, String> {
    let field = |label: &str| {
        let line = report.lines().find_map(|line| line.trim().strip_prefix(label));
        line.and_then(|rest| rest.split_whitespace().next()).ok_or_else(|| format!("no line \"{label}\""))
    };
    fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
        text.parse().map_err(|_| format!("\"{text}\" is not a number"))
    }
    let failed: u64 = number(field("number of failed transactions:")?)?;
    if failed != 0 {
        return Err(format!("{failed} transactions failed"));
    }
    let transactions: u64 = number(field("number of transactions actually processed:")?)?;
    let tps: f64 = number(field("tps =")?)?;
    if transactions == 0 || !tps.is_finite() || tps <= 0.0 {
        return Err("it did nothing".into());
    }
    Ok(Rate { tps, transactions })
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "\
pgbench (18.6)
transaction type: -
scaling factor: 1
query mode: prepared
number of clients: 8
number of threads: 1
maximum number of tries: 1
duration: 3 s
number of transactions actually processed: 180213
number of failed transactions: 0 (0.000%)
latency average = 0.133 ms
initial connection time = 5.812 ms
tps = 60163.480411 (without initial connection time)
";

    #[test]
    fn a_report_is_read() {
        assert_eq!(parse(REPORT), Ok(Rate { tps: 60163.480411, transactions: 180_213 }));
    }

    #[test]
    fn a_run_that_failed_in_part_or_did_nothing_is_no_result() {
        let failed = REPORT.replace("failed transactions: 0 (0.000%)", "failed transactions: 3 (0.002%)");
        assert!(parse(&failed).unwrap_err().contains("3 transactions"));
        assert!(parse(&REPORT.replace("180213", "0")).is_err());
        assert!(parse(&REPORT.replace("60163.480411", "inf")).is_err());
        assert!(parse(&REPORT.replace("60163.480411", "0.000000")).is_err());
        // pgbench -t reports "180213/180213"; a number that is not one must not be read as something else.
        assert!(parse(&REPORT.replace("180213", "180213/180213")).is_err());
        for line in ["tps", "number of failed", "number of transactions"] {
            let without: String =
                REPORT.lines().filter(|l| !l.starts_with(line)).map(|l| format!("{l}\n")).collect();
            assert!(parse(&without).unwrap_err().contains(line), "{line}");
        }
        assert!(parse("").is_err());
    }
}
