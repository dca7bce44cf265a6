//! How this machine's memory is: whether there is little left, and whom the kernel has ended for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A number that was read this short a while ago is as good as a new one.
const FRESH: Duration = Duration::from_secs(1);
/// There is little memory left below this share of the machine's,
const SHORT_PARTS: u64 = 50;
/// or below this many bytes, if that is more.
const SHORT_BYTES: u64 = 64 << 20;

/// What the kernel says of memory.
#[derive(Debug)]
pub(crate) struct Memory {
    meminfo: PathBuf,
    /// Files that count processes ended for lack of memory.
    counts: Vec<PathBuf>,
    last: Mutex<Option<(Instant, Reading)>>,
}

/// What was read at some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reading {
    /// Little is left.
    pub(crate) short: bool,
    /// Processes that were ended for lack of memory so far.
    pub(crate) kills: u64,
}

impl Memory {
    /// This machine's, and this process's control group's.
    pub(crate) fn of_this_machine() -> Self {
        Self::below(Path::new("/"))
    }

    fn below(root: &Path) -> Self {
        let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
        let mut counts: Vec<_> = groups.lines().filter_map(|line| group(root, line)).collect();
        counts.push(root.join("proc/vmstat"));
        Self { meminfo: root.join("proc/meminfo"), counts, last: Mutex::new(None) }
    }

    /// How it is, or was a moment ago.
    pub(crate) fn look(&self) -> Reading {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match last {
            Some((at, reading)) if at.elapsed() < FRESH => reading,
            _ => self.look_now(),
        }
    }

    /// How it is now.
    pub(crate) fn look_now(&self) -> Reading {
        let meminfo = fs::read_to_string(&self.meminfo).unwrap_or_default();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let before = last.is_some_and(|(_, reading)| reading.short);
        let reading = Reading { short: is_short(&meminfo, before), kills: self.kills() };
        *last = Some((Instant::now(), reading));
        reading
    }

    /// What all that count say together: a process may be ended for its group's sake or the machine's,
    /// and groups of the older kind count only what is directly in them.
    fn kills(&self) -> u64 {
        let counted = self.counts.iter().filter_map(|path| {
            let text = fs::read_to_string(path).ok()?;
            number(&text, "oom_kill ")
        });
        counted.sum()
    }
}

/// The file that counts for a line of `/proc/self/cgroup`: of either version, memory's only.
fn group(root: &Path, line: &str) -> Option<PathBuf> {
    let mut parts = line.splitn(3, ':');
    let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    let path = path.trim_start_matches('/');
    match controllers {
        "" => Some(root.join("sys/fs/cgroup").join(path).join("memory.events")),
        _ if controllers.split(',').any(|name| name == "memory") => {
            Some(root.join("sys/fs/cgroup/memory").join(path).join("memory.oom_control"))
        }
        _ => None,
    }
}

/// Whether little is left; what was short is so until there is half as much again. Where nothing
/// is known, enough is.
fn is_short(meminfo: &str, before: bool) -> bool {
    let bytes = |name| number(meminfo, name).map(|kib| kib.saturating_mul(1024));
    let (Some(total), Some(left)) = (bytes("MemTotal:"), bytes("MemAvailable:")) else {
        return false;
    };
    let bound = (total / SHORT_PARTS).max(SHORT_BYTES);
    left < if before { bound + bound / 2 } else { bound }
}

/// The number behind a name at the start of a line.
fn number(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 20;

    fn meminfo(total_kib: u64, available_kib: u64) -> String {
        format!("MemTotal: {total_kib} kB\nMemFree: 1 kB\nMemAvailable:   {available_kib} kB\n")
    }

    #[test]
    fn little_is_left_below_a_share_of_all_and_until_there_is_half_as_much_again() {
        let check = |total, left, before| is_short(&meminfo(total, left), before);
        assert!(check(100 * GIB, 2 * GIB - 1, false));
        assert!(!check(100 * GIB, 2 * GIB, false));
        assert!(check(100 * GIB, 3 * GIB - 1, true));
        assert!(!check(100 * GIB, 3 * GIB, true));
        // A small machine.
        assert!(check(GIB, 60 * 1024, false));
        assert!(!check(GIB, 64 * 1024, false));
        assert!(!is_short("", true), "nothing is known");
    }

    #[test]
    fn who_was_ended_is_counted_by_groups_and_the_machine() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let kills = || Memory::below(folder.path()).look().kills;
        assert_eq!(kills(), 0);
        write("proc/self/cgroup", "4:memory:/a/b\n3:cpuset:/\n0::/c\n");
        write("proc/vmstat", "nr_free_pages 7\noom_kill 3\n");
        assert_eq!(kills(), 3);
        write("sys/fs/cgroup/c/memory.events", "low 0\noom 9\noom_kill 5\noom_group_kill 1\n");
        assert_eq!(kills(), 3 + 5);
        write("sys/fs/cgroup/memory/a/b/memory.oom_control", "under_oom 0\noom_kill 6\n");
        assert_eq!(kills(), 3 + 5 + 6);
    }
}
