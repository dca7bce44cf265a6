//! What tells a file from its replacement without reading it.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use serde::{Deserialize, Serialize};

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
}
