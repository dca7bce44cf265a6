//! What tells a file from its replacement without reading it.
//!
//! A file that is written to twice within one tick of its file system's clock may look the same. So,
//! as in git's index ("racy git"), a stamp lasts only if the file was old enough when it was read.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::sys::statfs;
use nix::time::{ClockId, clock_getres};
use serde::{Deserialize, Serialize};

/// The coarsest tick of a file system's clock.
pub(crate) const TICK_MAX: Duration = Duration::from_secs(2);
/// File systems of this machine, which take their times from the kernel's coarse clock.
const OURS: [statfs::FsType; 6] = [
    statfs::EXT4_SUPER_MAGIC,
    statfs::XFS_SUPER_MAGIC,
    statfs::BTRFS_SUPER_MAGIC,
    statfs::F2FS_SUPER_MAGIC,
    statfs::TMPFS_MAGIC,
    statfs::OVERLAYFS_SUPER_MAGIC,
];

/// What changes when a file's contents do. Times in nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) size: u64,
    pub(crate) modified: i64,
    pub(crate) changed: i64,
}

impl Stamp {
    /// Of a file's contents: giving the file another name changes its change time, but not this.
    pub fn of_contents(metadata: &Metadata) -> Self {
        Self { changed: 0, ..Self::of(metadata) }
    }

    /// Of all that may tell it from another file, its names included.
    pub(crate) fn of(metadata: &Metadata) -> Self {
        let nanos =
            |seconds: i64, nanos: i64| seconds.wrapping_mul(1_000_000_000).wrapping_add(nanos);
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: nanos(metadata.mtime(), metadata.mtime_nsec()),
            changed: nanos(metadata.ctime(), metadata.ctime_nsec()),
        }
    }
    /// Of a file that was read from `read` on and had not changed at its end, if it will tell that
    /// file from all that may take its place.
    pub(crate) fn lasting(path: &Path, metadata: &Metadata, read: SystemTime) -> Option<Self> {
        let age = metadata.modified().ok().and_then(|time| read.duration_since(time).ok())?;
        let lasts = age >= TICK_MAX || age >= ticks()? && has_our_times(path, metadata);
        lasts.then(|| Self::of(metadata))
    }
}

/// How long to wait until a file is old enough for its stamp to last, on a file system of this
/// machine.
pub(crate) fn youth(metadata: &Metadata, now: SystemTime) -> Duration {
    let age = metadata.modified().ok().and_then(|time| now.duration_since(time).ok());
    age.zip(ticks()).map_or(Duration::ZERO, |(age, ticks)| ticks.saturating_sub(age))
}

/// Two ticks of the kernel's coarse clock: some milliseconds.
fn ticks() -> Option<Duration> {
    let tick = clock_getres(ClockId::CLOCK_REALTIME_COARSE).ok()?;
    Some(Duration::from(tick) * 2)
}

/// Whether the file's times are the kernel's, to a tick. Where parts of a second are not kept they
/// are none.
fn has_our_times(path: &Path, metadata: &Metadata) -> bool {
    let ours = |it: statfs::Statfs| OURS.contains(&it.filesystem_type());
    metadata.mtime_nsec() != 0 && statfs::statfs(path).is_ok_and(ours)
}

/// Sets when a file was modified.
#[cfg(test)]
pub(crate) fn date(path: &Path, modified: SystemTime) {
    std::fs::File::options().write(true).open(path).unwrap().set_modified(modified).unwrap();
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn lasts_if_the_file_is_older_than_its_clock_is_coarse() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("file");
        fs::write(&path, "").unwrap();
        let ours = OURS.contains(&statfs::statfs(&path).unwrap().filesystem_type());
        let begin = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let [ms, ns] = [Duration::from_millis, Duration::from_nanos];
        // Modified so long after a whole second, read so long after that.
        for (part, age, lasts) in [
            (ns(1), ms(0), false),
            (ns(1), ms(100), ours),
            (ns(1), ms(1_999), ours),
            (ns(1), ms(2_000), true),
            (ns(0), ms(1_999), false),
            (ns(0), ms(2_000), true),
        ] {
            let modified = begin + part;
            date(&path, modified);
            let metadata = fs::metadata(&path).unwrap();
            let stamp = Stamp::lasting(&path, &metadata, modified + age);
            assert_eq!(stamp.is_some(), lasts, "{part:?} {age:?}");
            let early = Stamp::lasting(&path, &metadata, modified - ms(1));
            assert_eq!(early, None, "of a clock that is ahead");
            let waits = youth(&metadata, modified + age);
            assert_eq!(waits.is_zero(), age > ms(20), "{waits:?}");
            assert!(waits <= ms(20), "{waits:?}");
        }
    }
}
