//! A server process's memory as the kernel shows it: mappings, their flags, their bytes. Runs in the test process.
//!
//! The trap: reading another process's memory needs the right to trace it, which a test run may not have. Such a
//! test must say that it looked at nothing ([`say`]), not pass in silence.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};

/// One mapping of a process.
#[derive(Clone, Debug)]
pub struct Mapping {
    pub start: u64,
    pub end: u64,
    /// As in proc_pid_maps(5), such as `rw-s`.
    pub permissions: String,
    /// The two-letter `VmFlags` of proc_pid_smaps(5); `dd`: left out of core dumps.
    pub flags: Vec<String>,
}

impl Mapping {
    pub fn size(&self) -> usize {
        usize::try_from(self.end - self.start).expect("a mapping fits the address space")
    }

    pub fn has_flag(&self, flag: &str) -> bool {
        self.flags.iter().any(|own| own == flag)
    }

    pub fn is_shared(&self) -> bool {
        self.permissions.ends_with('s')
    }
}

/// All mappings of a process. Needs the right to trace it.
pub fn mappings(pid: i32) -> io::Result<Vec<Mapping>> {
    Ok(parse(&fs::read_to_string(format!("/proc/{pid}/smaps"))?))
}

/// The bytes of one of its mappings. Needs the right to trace it.
pub fn bytes(pid: i32, mapping: &Mapping) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; mapping.size()];
    File::open(format!("/proc/{pid}/mem"))?.read_exact_at(&mut bytes, mapping.start)?;
    Ok(bytes)
}

/// Whether this process may dump core and be traced by its own user: the kernel gives the files of one that may not
/// to root (PR_SET_DUMPABLE(2const)).
pub fn is_dumpable(pid: i32) -> io::Result<bool> {
    let owner = fs::metadata(format!("/proc/{pid}/environ"))?.uid();
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let user = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_ascii_whitespace().nth(1));
    let user: u32 = user.and_then(|user| user.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    if user == 0 {
        return Err(io::Error::other("the process is root's: its files are root's either way"));
    }
    Ok(owner == user)
}

/// Writes a line that the test runner does not hold back, as it does with what a passing test prints.
pub fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}"); // without a stderr there is nobody to tell
}

fn parse(smaps: &str) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            if let Some(mapping) = mappings.last_mut() {
                mapping.flags = flags.split_ascii_whitespace().map(str::to_owned).collect();
            }
            continue;
        }
        // A header: 7f0c…-7f0d… rw-s 00000000 00:01 1024 /dev/zero (deleted). Other lines have no such range.
        let mut words = line.split_ascii_whitespace();
        let range = words.next().and_then(|range| range.split_once('-'));
        let number = |text| u64::from_str_radix(text, 16).ok();
        if let Some((Some(start), Some(end))) = range.map(|(start, end)| (number(start), number(end))) {
            let permissions = words.next().unwrap_or_default().to_owned();
            mappings.push(Mapping { start, end, permissions, flags: Vec::new() });
        }
    }
    mappings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_mappings_and_flags() {
        let text = "7f00-7f10 rw-s 00000000 00:01 1024      /dev/zero (deleted)\nSize:   4 kB\nVmFlags: rd wr sh dd \n\
                    ffff-10fff r-xp 00000000 fe:00 12 /usr/lib/a-b.so\nVmFlags: rd ex mr\n";
        let found = parse(text);
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].start, found[0].size(), found[0].is_shared()), (0x7f00, 16, true));
        assert!(found[0].has_flag("dd") && !found[1].has_flag("dd") && !found[1].is_shared());
    }

    #[test]
    fn sees_its_own_memory() {
        let here = Box::new([0x5au8; 64]);
        let address = here.as_ptr() as u64;
        let me = i32::try_from(std::process::id()).unwrap();
        let Ok(own) = mappings(me) else { return say("skipped: /proc does not show this process's memory") };
        let mapping = own.iter().find(|m| (m.start..m.end).contains(&address)).unwrap();
        let offset = usize::try_from(address - mapping.start).unwrap();
        assert_eq!(bytes(me, mapping).unwrap()[offset..offset + 64], *here);
    }
}
