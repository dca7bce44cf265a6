//! What tells a file from its replacement without reading it.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// A file modified less than this before it was read may change unnoticed.
const RACY: Duration = Duration::from_secs(2);

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
    /// file from all that may take its place. As in git's index ("racy git"), one that was modified
    /// less than two seconds before might change again within the resolution of its file system's
    /// clock.
    pub(crate) fn lasting(metadata: &Metadata, read: SystemTime) -> Option<Self> {
        let age = metadata.modified().ok().and_then(|time| read.duration_since(time).ok());
        age.filter(|age| *age >= RACY).map(|_| Self::of(metadata))
    }
}
