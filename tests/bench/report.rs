//! What was measured: a table for people, a JSON document for machines. Runs in the benchmark's process; pure.

use crate::stats::Summary;
use serde_json::{Value, json};

/// One run of each side, one right after the other.
#[derive(Clone, Copy)]
pub struct Pair {
    pub vault: Side,
    pub plain: Side,
}

#[derive(Clone, Copy)]
pub struct Side {
    pub tps: f64,
    /// Processor time of the server's sessions per call, in microseconds.
    pub cpu_us: f64,
}

pub struct Outcome {
    pub name: &'static str,
    pub clients: u32,
    pub seconds: u32,
    pub pairs: Vec<Pair>,
    /// Of the keys looked up during these runs, those that were in the cache.
    pub cache_hits: Option<f64>,
    pub load: String,
}

impl Outcome {
    fn summary(&self, of: impl Fn(&Pair) -> f64) -> Summary {
        Summary::of(self.pairs.iter().map(of))
            .expect("there is at least one pair, and every rate is above zero")
    }

    /// Vault ÷ plain, by calls per second.
    pub fn ratio(&self) -> Summary {
        self.summary(|pair| pair.vault.tps / pair.plain.tps)
    }

    pub fn json(&self) -> Value {
        let ratio = self.ratio();
        let side = |side: &Side| json!({ "tps": side.tps, "server_cpu_us": side.cpu_us });
        let pairs: Vec<_> = self
            .pairs
            .iter()
            .map(|pair| json!({ "vault": side(&pair.vault), "plain": side(&pair.plain) }))
            .collect();
        json!({
            "name": self.name,
            "clients": self.clients,
            "seconds_per_run": self.seconds,
            "ratio": { "median": ratio.median, "min": ratio.min, "max": ratio.max },
            "vault_tps": self.summary(|pair| pair.vault.tps).median,
            "plain_tps": self.summary(|pair| pair.plain.tps).median,
            "vault_server_cpu_us": self.summary(|pair| pair.vault.cpu_us).median,
            "plain_server_cpu_us": self.summary(|pair| pair.plain.cpu_us).median,
            "cache_hit_ratio": self.cache_hits,
            "load_average": self.load,
            "pairs": pairs,
        })
    }

    pub fn row(&self) -> String {
        let ratio = self.ratio();
        let of = |pick: fn(&Pair) -> f64| self.summary(pick).median;
        format!(
            "{:<15}{:>4}{:>9.2}{:>7.2} –{:>5.2}{:>11.0}{:>11.0}{:>9.1}{:>9.1}{:>10}   {}",
            self.name,
            self.clients,
            ratio.median,
            ratio.min,
            ratio.max,
            of(|pair| pair.vault.tps),
            of(|pair| pair.plain.tps),
            of(|pair| pair.vault.cpu_us),
            of(|pair| pair.plain.cpu_us),
            self.cache_hits.map_or_else(|| "-".to_owned(), |hits| format!("{:.2} %", hits * 100.0)),
            self.load,
        )
    }
}

/// The lines above the rows of [`Outcome::row`].
pub const HEADER: &str = "\
vault ÷ plain  conn   median    min – max    per second, medians    server CPU, µs  from cache   load
                                               vault      plain    vault    plain";

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(rates: &[(f64, f64)]) -> Outcome {
        let side = |tps| Side { tps, cpu_us: 1e6 / tps };
        let pairs =
            rates.iter().map(|(vault, plain)| Pair { vault: side(*vault), plain: side(*plain) }).collect();
        Outcome {
            name: "read_secret",
            clients: 8,
            seconds: 3,
            pairs,
            cache_hits: Some(1.0),
            load: "0 0 0".into(),
        }
    }

    #[test]
    fn the_median_of_ratios_not_the_ratio_of_medians() {
        // Each pair ran under its own load; only within a pair are the two sides comparable.
        let outcome = outcome(&[(10.0, 20.0), (90.0, 100.0), (30.0, 40.0)]);
        assert_eq!(outcome.ratio(), Summary { median: 0.75, min: 0.5, max: 0.9 });
        let json = outcome.json();
        assert_eq!(json["ratio"]["median"], 0.75);
        assert_eq!((&json["vault_tps"], &json["plain_tps"]), (&json!(30.0), &json!(40.0)));
        assert_eq!(json["pairs"].as_array().map(Vec::len), Some(3));
        assert!(outcome.row().contains("0.75   0.50 – 0.90"), "{}", outcome.row());
    }
}
