//! How memory is here: whether little is left of this machine's, or of what its control groups allow
//! this process, and whom the kernel has ended for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A number that was read this short a while ago is as good as a new one.
const FRESH: Duration = Duration::from_secs(1);
/// There is little memory left below this share of all,
const SHORT_PARTS: u64 = 50;
/// or below this many bytes, if that is more,
const SHORT_BYTES: u64 = 64 << 20;
/// but never above this share of all.
const SHORT_PARTS_MIN: u64 = 4;

/// What the kernel says of memory.
#[derive(Debug)]
pub(crate) struct Memory {
    meminfo: PathBuf,
    /// Control groups that this process is in, with all above them.
    groups: Vec<Group>,
    /// Files that count processes ended for lack of memory.
    counts: Vec<PathBuf>,
    last: Mutex<Option<(Instant, Reading)>>,
}

/// A control group, and of which version.
#[derive(Debug)]
struct Group {
    folder: PathBuf,
    version: Version,
}

/// Of control groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// Bytes of memory that there are, and how many of them can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Room {
    total: u64,
    left: u64,
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
        let lines = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
        let own: Vec<_> = lines.lines().filter_map(|line| group(root, line)).collect();
        let mut counts: Vec<_> = own.iter().map(|(_, group)| group.counts()).collect();
        counts.push(root.join("proc/vmstat"));
        let groups = own.into_iter().flat_map(|(mount, group)| group.with_all_above(&mount));
        let (meminfo, groups) = (root.join("proc/meminfo"), groups.collect());
        Self { meminfo, groups, counts, last: Mutex::new(None) }
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
        let machine = of_machine(&meminfo);
        let groups = self.groups.iter().filter_map(Group::room);
        let rooms: Vec<_> = machine.into_iter().chain(groups).collect();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let before = last.is_some_and(|(_, reading)| reading.short);
        let short = rooms.iter().any(|room| room.is_short(before));
        let reading = Reading { short, kills: self.kills() };
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

/// Where groups of its kind are mounted, and the group, for a line of `/proc/self/cgroup`: of either
/// version, memory's only.
fn group(root: &Path, line: &str) -> Option<(PathBuf, Group)> {
    let mut parts = line.splitn(3, ':');
    let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    let (mount, version) = match controllers {
        "" => (root.join("sys/fs/cgroup"), Version::Two),
        _ if controllers.split(',').any(|name| name == "memory") => {
            (root.join("sys/fs/cgroup/memory"), Version::One)
        }
        _ => return None,
    };
    let folder = mount.join(path.trim_start_matches('/'));
    Some((mount, Group { folder, version }))
}

impl Group {
    /// The file that counts processes ended for lack of memory.
    fn counts(&self) -> PathBuf {
        self.folder.join(match self.version {
            Version::One => "memory.oom_control",
            Version::Two => "memory.events",
        })
    }

    /// A group is bounded by those above it, too. Where it isn't seen, as in a container that sees
    /// its own as the topmost, they are all there is.
    fn with_all_above(self, mount: &Path) -> Vec<Self> {
        let folders = self.folder.ancestors().take_while(|it| it.starts_with(mount));
        let version = self.version;
        folders.map(|folder| Self { folder: folder.to_owned(), version }).collect()
    }

    /// What it may take in all, and what is left of that: pages of files can be had back. None
    /// without a bound.
    fn room(&self) -> Option<Room> {
        let [max, used, files] = match self.version {
            Version::One => [
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_active_file total_inactive_file",
            ],
            Version::Two => {
                ["memory.max", "memory.current", "active_file inactive_file slab_reclaimable"]
            }
        };
        let read = |name: &str| fs::read_to_string(self.folder.join(name)).ok();
        // `max` where there is none.
        let total: u64 = read(max)?.trim().parse().ok()?;
        let used: u64 = read(used)?.trim().parse().ok()?;
        let stat = read("memory.stat").unwrap_or_default();
        let files = files.split(' ').filter_map(|name| number(&stat, &format!("{name} ")));
        let used = used.saturating_sub(files.sum());
        Some(Room { total, left: total.saturating_sub(used) })
    }
}

/// What `/proc/meminfo` says. Where nothing is known, enough is left.
fn of_machine(meminfo: &str) -> Option<Room> {
    let bytes = |name| number(meminfo, name).map(|kib| kib.saturating_mul(1024));
    Some(Room { total: bytes("MemTotal:")?, left: bytes("MemAvailable:")? })
}

impl Room {
    /// Whether little is left; what was short is so until there is half as much again.
    fn is_short(self, before: bool) -> bool {
        let Self { total, left } = self;
        let bound = (total / SHORT_PARTS).max(SHORT_BYTES).min(total / SHORT_PARTS_MIN);
        left < if before { bound + bound / 2 } else { bound }
    }
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
        let check = |total, left, before| {
            of_machine(&meminfo(total, left)).is_some_and(|room| room.is_short(before))
        };
        assert!(check(100 * GIB, 2 * GIB - 1, false));
        assert!(!check(100 * GIB, 2 * GIB, false));
        assert!(check(100 * GIB, 3 * GIB - 1, true));
        assert!(!check(100 * GIB, 3 * GIB, true));
        // A small machine.
        assert!(check(GIB, 60 * 1024, false));
        assert!(!check(GIB, 64 * 1024, false));
        // A very small one.
        assert!(check(GIB / 8, 31 * 1024, false));
        assert!(!check(GIB / 8, 32 * 1024, false));
        assert_eq!(of_machine(""), None, "nothing is known");
    }

    /// A machine with plenty of memory, and what else lies in its folders.
    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let plenty = meminfo(100 * GIB, 50 * GIB);
        for (name, text) in [("proc/meminfo", plenty.as_str())].iter().chain(files) {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    #[test]
    fn a_control_group_or_one_above_it_may_leave_less_than_the_machine() {
        const BOUND: &str = "1073741824\n";
        let check = |files: &[(&str, &str)], short| {
            let folder = machine(files);
            assert_eq!(Memory::below(folder.path()).look().short, short, "{files:?}");
        };
        check(&[], false);
        let own = ("proc/self/cgroup", "0::/a/b\n");
        for place in ["sys/fs/cgroup/a/b", "sys/fs/cgroup/a", "sys/fs/cgroup"] {
            let max = format!("{place}/memory.max");
            let current = format!("{place}/memory.current");
            let stat = format!("{place}/memory.stat");
            // All but 24 MiB of 1 GiB, of which files can be had back.
            let used = (current.as_str(), "1048576000\n");
            let much = "anon 1\nactive_file 50000000\nshmem 900000000\ninactive_file 50000000\n";
            check(&[own, (&max, BOUND), used], true);
            check(&[own, (&max, BOUND), used, (&stat, "inactive_file 9\n")], true);
            check(&[own, (&max, BOUND), used, (&stat, much)], false);
            check(&[own, (&max, "max\n"), used], false);
        }
        let old = ("proc/self/cgroup", "4:cpu,memory:/docker/a\n0::/\n");
        let limit = ("sys/fs/cgroup/memory/memory.limit_in_bytes", BOUND);
        let usage = ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1048576000\n");
        let stat = ("sys/fs/cgroup/memory/memory.stat", "total_inactive_file 90000000\n");
        check(&[old, limit, usage], true);
        check(&[old, limit, usage, stat], false);
        let unbounded = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
        check(&[old, unbounded, usage], false);
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
