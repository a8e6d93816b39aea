//! Searching the bytes a server leaves on disk, or in a dump, for values that must not be there. Runs in the test
//! process; reads files only.
//!
//! The trap is a search that finds nothing because it cannot find anything. Every scan of a cluster therefore also
//! looks for control values that were stored in an ordinary table, committed and rolled back, and fails if it does
//! not find them in the tables *and* in the WAL. What is compressed, or split at a page boundary, can escape in one
//! place: look for several random values (`random_text`), which do not compress.

mod needles;

pub use needles::{Form, Hit, Needles};

use crate::cluster::Cluster;
use crate::sys::random_bytes;
use std::path::Path;

/// A search of a cluster that proves that it can find things.
pub struct Scan {
    needles: Needles,
}

/// Text and bytea, committed and rolled back.
const CONTROLS: [&str; 4] = ["control text", "control bytea", "control text undone", "control bytea undone"];

impl Scan {
    /// Stores the controls, in a table `public.scan_control` of the vault's database. Best called before the work
    /// whose traces are sought, so that the controls are as old as these.
    #[track_caller]
    pub fn plant(cluster: &Cluster) -> Planted {
        let values: Vec<_> =
            CONTROLS.iter().map(|_| format!("{:032x}", u128::from_le_bytes(random_bytes()))).collect();
        let mut client = cluster.superuser();
        let mut insert = |text: &str, bytes: &str, end: &str| {
            let mut transaction = client.transaction()?;
            transaction
                .execute("INSERT INTO public.scan_control VALUES ($1, $2)", &[&text, &bytes.as_bytes()])?;
            if end == "commit" { transaction.commit() } else { transaction.rollback() }
        };
        cluster
            .superuser()
            .batch_execute("CREATE TABLE public.scan_control (t text, b bytea)")
            .and_then(|()| insert(&values[0], &values[1], "commit"))
            .and_then(|()| insert(&values[2], &values[3], "rollback"))
            .expect("cannot store the control values");
        Planted { values }
    }

    /// Everything below the data directory: tables, WAL, temporary files, statistics. Writes a checkpoint first if
    /// the server runs. Returns the hits, controls excepted; fails if the controls were not found.
    #[track_caller]
    pub fn data_directory(&self, cluster: &Cluster) -> Vec<Hit> {
        if cluster.is_running() {
            cluster.superuser().batch_execute("CHECKPOINT").expect("cannot write a checkpoint");
        }
        let hits = self.needles.in_path(&cluster.data_dir());
        for control in CONTROLS {
            for part in ["/base/", "/pg_wal/"] {
                let found = hits.iter().any(|hit| hit.needle == control && hit.place.contains(part));
                assert!(found, "this search is blind: it did not find {control} in {part}");
            }
        }
        without_controls(hits)
    }

    /// A plain-text dump of the vault's database. Returns the hits, controls excepted, and checks the controls.
    #[track_caller]
    pub fn dump(&self, cluster: &Cluster) -> Vec<Hit> {
        let hits = self.needles.in_bytes("pg_dump", &cluster.pg_dump(&[]));
        for control in &CONTROLS[..2] {
            let found = hits.iter().any(|hit| hit.needle == *control);
            assert!(found, "this search is blind: it did not find {control} in the dump");
        }
        without_controls(hits)
    }

    /// A file or directory elsewhere, such as the server log, where there are no controls.
    #[track_caller]
    pub fn path(&self, path: &Path) -> Vec<Hit> {
        without_controls(self.needles.in_path(path))
    }
}

/// The controls are stored; what remains is to say what to look for.
pub struct Planted {
    values: Vec<String>,
}

impl Planted {
    #[track_caller]
    pub fn look_for<L: Into<String>, V: AsRef<[u8]>>(
        &self,
        values: impl IntoIterator<Item = (L, V)>,
    ) -> Scan {
        let controls =
            CONTROLS.iter().zip(&self.values).map(|(label, v)| ((*label).to_owned(), v.clone().into()));
        let values = values.into_iter().map(|(label, value)| (label.into(), value.as_ref().to_vec()));
        Scan { needles: Needles::new(controls.chain(values)) }
    }
}

/// Fails, naming the first hits, unless there are none.
#[track_caller]
pub fn assert_none(hits: &[Hit]) {
    let first: Vec<_> = hits.iter().take(20).collect();
    assert!(hits.is_empty(), "{} traces of values that must not be there: {first:#?}", hits.len());
}

fn without_controls(mut hits: Vec<Hit>) -> Vec<Hit> {
    hits.retain(|hit| !CONTROLS.contains(&hit.needle.as_str()));
    hits
}
