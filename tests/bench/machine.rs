//! The machine under the benchmark: cores to pin to, load, processor time. Runs in the benchmark's process.
//!
//! The trap: with client and server free to move, the scheduler places them on one core or two as it likes, and
//! single-connection figures jump by a factor of four. So the server gets one core and pgbench another, if there are
//! two. Only this process and the throw-away server's are pinned.

use hyperion_vault_tests::Cluster;
use std::fs;
use std::process::Command;
use std::time::Duration;

/// One core for the server's processes, another for pgbench (and this process, which only waits).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cores {
    pub server: usize,
    pub client: usize,
}

impl Cores {
    /// None if this process may use one core only, or `taskset` is not there.
    pub fn choose() -> Option<Self> {
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
        let siblings = |core: usize| {
            let path = format!("/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list");
            fs::read_to_string(path).map(|list| list_of_cores(&list)).unwrap_or_default()
        };
        let cores = pick(&list_of_cores(allowed), siblings)?;
        Command::new("taskset").arg("--version").output().ok().filter(|out| out.status.success())?;
        Some(cores)
    }

    pub fn pin_client(&self) {
        // The process' threads too: one of them forks the server and pgbench, which inherit.
        pin(self.client, i32::try_from(std::process::id()).expect("Linux process ids are below 2^22"));
    }

    pub fn pin_server(&self, cluster: &Cluster) {
        // Sessions inherit from the postmaster.
        pin(self.server, cluster.postmaster_pid());
        cluster.processes().iter().for_each(|process| pin(self.server, process.pid));
    }
}

fn pin(core: usize, pid: i32) {
    let output = Command::new("taskset")
        .args(["--all-tasks", "--cpu-list", "--pid", &core.to_string(), &pid.to_string()])
        .output()
        .unwrap_or_else(|error| panic!("cannot run taskset: {error}"));
    let message = String::from_utf8_lossy(&output.stderr);
    // A server process that has ended meanwhile need not be pinned.
    assert!(output.status.success() || message.contains("No such process"), "taskset: {message}");
}

/// The first core and the last that is not a hardware thread of the same one, else simply the last.
fn pick(allowed: &[usize], siblings: impl Fn(usize) -> Vec<usize>) -> Option<Cores> {
    let &server = allowed.first()?;
    let same = siblings(server);
    let others = || allowed.iter().rev().filter(|core| **core != server);
    let &client = others().find(|core| !same.contains(core)).or_else(|| others().next())?;
    Some(Cores { server, client })
}

/// The kernel's list format: `0-3,8`.
fn list_of_cores(list: &str) -> Vec<usize> {
    let range = |item: &str| -> Option<std::ops::RangeInclusive<usize>> {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    list.trim().split(',').filter_map(range).flatten().collect()
}

/// The load averages of 1, 5 and 15 minutes as the kernel prints them.
pub fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

pub fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    line.and_then(|line| line.split_once(": ")).map_or_else(|| "unknown".into(), |(_, name)| name.into())
}

/// The processor time of a server's sessions that have ended: what the postmaster's reaped children used.
pub struct Sessions {
    postmaster: i32,
    ticks_per_second: u32,
}

impl Sessions {
    pub fn of(cluster: &Cluster) -> Self {
        let output = Command::new("getconf").arg("CLK_TCK").output();
        let ticks =
            output.ok().and_then(|output| String::from_utf8_lossy(&output.stdout).trim().parse().ok());
        // 100 on every Linux that anyone runs.
        Self { postmaster: cluster.postmaster_pid(), ticks_per_second: ticks.unwrap_or(100) }
    }

    /// Waits until no session is left, so that the time of each is in the sum.
    pub fn total(&self, cluster: &Cluster) -> Duration {
        hyperion_vault_tests::wait_for("the sessions to end", hyperion_vault_tests::PATIENCE, || {
            cluster.pids("[local]").is_empty()
        });
        // They have exited; the postmaster needs a moment to reap them.
        std::thread::sleep(Duration::from_millis(50));
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.postmaster)).unwrap_or_default();
        let ticks = reaped_ticks(&stat).unwrap_or_else(|| panic!("cannot read {stat:?}"));
        Duration::from_secs_f64(ticks as f64 / f64::from(self.ticks_per_second))
    }
}

/// cutime + cstime of proc_pid_stat(5), fields 16 and 17. Field 2 may contain spaces and parentheses.
fn reaped_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace().skip(13);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lists_of_cores() {
        assert_eq!(list_of_cores("\t0-1\n"), [0, 1]);
        assert_eq!(list_of_cores("0-2,5,8-9"), [0, 1, 2, 5, 8, 9]);
        assert_eq!(list_of_cores("7"), [7]);
        assert!(list_of_cores("").is_empty());
    }

    #[test]
    fn two_cores_that_are_not_one() {
        let none = |_| Vec::new();
        assert_eq!(pick(&[], none), None);
        assert_eq!(pick(&[3], none), None);
        assert_eq!(pick(&[0, 1], none), Some(Cores { server: 0, client: 1 }));
        // Hardware threads 0 and 2 share a core.
        let pairs = |core: usize| vec![core % 2, core % 2 + 2];
        assert_eq!(pick(&[0, 1, 2], pairs), Some(Cores { server: 0, client: 1 }));
        // Better two threads of a core than none.
        assert_eq!(pick(&[0, 2], pairs), Some(Cores { server: 0, client: 2 }));
    }

    #[test]
    fn processor_time_of_children_whatever_the_name() {
        let stat = "77 (a ) name) S 1 77 77 0 -1 4194560 9 999 0 0 5 6 700 80 20 0 1 0 123 0 0";
        assert_eq!(reaped_ticks(stat), Some(780));
        assert_eq!(reaped_ticks("77 (short) S 1"), None);
    }
}
