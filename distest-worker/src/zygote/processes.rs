//! The processes that descend from one, read from `/proc`.
//!
//! A subreaper's descendants are exactly what its attempts started: they stay so when they leave
//! their process group or session or lose their parent.

use std::collections::BTreeMap;
use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A process that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    /// The name the kernel knows it by, at most 15 bytes.
    pub(crate) name: String,
}

/// Everything that descends from `root`, without `root` and what is only waiting to be reaped,
/// by process id.
///
/// A snapshot: what forks meanwhile may be missing, so whoever kills looks again. Empty where
/// `/proc` can't be read.
pub(crate) fn descendants(root: i32) -> Vec<Process> {
    let mut parents: BTreeMap<i32, Vec<Stat>> = BTreeMap::new();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    for entry in entries.flatten() {
        let is_process =
            entry.file_name().as_encoded_bytes().first().is_some_and(u8::is_ascii_digit);
        if is_process
            && let Ok(text) = fs::read(entry.path().join("stat"))
            && let Some(stat) = parse_stat(&String::from_utf8_lossy(&text))
        {
            parents.entry(stat.parent).or_default().push(stat);
        }
    }
    let (mut found, mut next) = (Vec::new(), vec![root]);
    while let Some(parent) = next.pop() {
        for stat in parents.remove(&parent).unwrap_or_default() {
            next.push(stat.process.pid);
            if !stat.ended {
                found.push(stat.process);
            }
        }
    }
    found.sort_by_key(|process| process.pid);
    found
}

/// Ends all of them. What has ended or may not be killed is passed over.
pub(crate) fn kill_all(processes: &[Process]) {
    for process in processes {
        let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
    }
}

struct Stat {
    process: Process,
    parent: i32,
    ended: bool,
}

/// Reads `/proc/PID/stat` (proc_pid_stat(5)): `17 (a name) S 1 …`. The name may hold anything.
fn parse_stat(text: &str) -> Option<Stat> {
    let (head, tail) = text.rsplit_once(')')?;
    let (pid, name) = head.split_once('(')?;
    let mut fields = tail.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let process = Process { pid: pid.trim().parse().ok()?, name: name.into() };
    Some(Stat { process, parent, ended: matches!(state, "Z" | "X" | "x") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_parentheses_and_spaces() {
        let stat = parse_stat("17 (a) b (c) S 4 17 17 0 -1").unwrap();
        assert_eq!(stat.process, Process { pid: 17, name: "a) b (c".into() });
        assert_eq!((stat.parent, stat.ended), (4, false));
        assert!(parse_stat("18 (x) Z 4 17").unwrap().ended);
        assert!(parse_stat("").is_none());
    }
}
