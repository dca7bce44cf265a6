//! What was seen at a path, and whether it is still so.

use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::SystemTime;

use distest_worker::digest::Digest;
use serde::{Deserialize, Serialize};

use crate::stamp::{Stamp, TICK_MAX};

/// Whatever somebody who reads a file, lists a folder or looks for either goes by. Links are
/// followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Seen {
    /// Nothing.
    Absent,
    /// Something, no matter what.
    There,
    /// A file, or anything else that is no folder.
    File(Stamp),
    /// A folder, and the names of what is in it.
    Folder(Stamp, Digest),
}

impl Seen {
    /// Looks.
    pub(super) fn at(path: &Path) -> io::Result<Self> {
        let Some(metadata) = metadata(path)? else { return Ok(Self::Absent) };
        let stamp = Stamp::of(&metadata);
        match metadata.is_dir() {
            true => Ok(Self::Folder(stamp, names(path)?)),
            false => Ok(Self::File(stamp)),
        }
    }

    /// Looks only whether something is there.
    pub(super) fn whether(path: &Path) -> io::Result<Self> {
        Ok(if metadata(path)?.is_some() { Self::There } else { Self::Absent })
    }

    /// Whether looking again would show the same.
    pub(super) fn holds(&self, path: &Path) -> bool {
        let Ok(metadata) = metadata(path) else { return false };
        match (self, metadata) {
            (Self::Absent, metadata) => metadata.is_none(),
            (_, None) => false,
            (Self::There, Some(_)) => true,
            (Self::File(stamp), Some(now)) => !now.is_dir() && Stamp::of(&now) == *stamp,
            // What came and went again, or was only written anew, is of no concern.
            (Self::Folder(stamp, seen), Some(now)) => {
                now.is_dir()
                    && (Stamp::of(&now) == *stamp || names(path).is_ok_and(|now| now == *seen))
            }
        }
    }

    /// Whether somebody who looked at `time` or later may have seen something else.
    pub(super) fn is_younger_than(&self, time: SystemTime) -> bool {
        match self {
            Self::Absent | Self::There => false,
            Self::File(stamp) | Self::Folder(stamp, _) => is_younger(stamp, time),
        }
    }
}

/// Whether whatever would have to change for `path` to appear may have changed since `time`.
pub(super) fn may_have_gone(path: &Path, time: SystemTime) -> bool {
    let above = path.ancestors().skip(1).find_map(|folder| fs::metadata(folder).ok());
    above.is_none_or(|folder| is_younger(&Stamp::of(&folder), time))
}

fn is_younger(stamp: &Stamp, time: SystemTime) -> bool {
    let trusted = time
        .checked_sub(TICK_MAX)
        .and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    let changed = u128::try_from(stamp.modified.max(stamp.changed)).unwrap_or(0);
    trusted.is_none_or(|trusted| changed > trusted.as_nanos())
}

fn metadata(path: &Path) -> io::Result<Option<Metadata>> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Names in a folder, each with what it is.
fn names(folder: &Path) -> io::Result<Digest> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let mut kind = entry.file_type()?;
        if kind.is_symlink()
            && let Some(target) = metadata(&entry.path())?
        {
            kind = target.file_type();
        }
        let mut name = entry.file_name().into_encoded_bytes();
        name.extend([0, u8::from(kind.is_dir()), u8::from(kind.is_file()), 0]);
        names.push(name);
    }
    names.sort_unstable();
    Ok(Digest::of(&names.concat()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_change_is_noticed_and_what_makes_no_difference_is_not() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        fs::write(at("file"), "a").unwrap();
        fs::create_dir_all(at("folder/sub")).unwrap();
        let file = Seen::at(&at("file")).unwrap();
        let folder = Seen::at(&at("folder")).unwrap();
        let absent = Seen::at(&at("file/none")).unwrap();
        let there = Seen::whether(&at("folder/sub")).unwrap();
        assert_eq!(absent, Seen::Absent);
        let hold = || {
            [
                file.holds(&at("file")),
                folder.holds(&at("folder")),
                absent.holds(&at("file/none")),
                there.holds(&at("folder/sub")),
            ]
        };
        assert_eq!(hold(), [true; 4]);

        fs::write(at("folder/passing"), "").unwrap();
        assert_eq!(hold(), [true, false, true, true]);
        fs::remove_file(at("folder/passing")).unwrap();
        assert_eq!(hold(), [true; 4]);

        fs::remove_dir(at("folder/sub")).unwrap();
        fs::write(at("folder/sub"), "").unwrap();
        fs::remove_file(at("file")).unwrap();
        fs::create_dir_all(at("file/none")).unwrap();
        assert_eq!(hold(), [false, false, false, true]);
    }

    #[test]
    fn what_was_just_written_is_not_trusted() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("file");
        fs::write(&path, "").unwrap();
        let seen = Seen::at(&path).unwrap();
        let written = fs::metadata(&path).unwrap().modified().unwrap();
        for (later, young) in [(0, true), (1, true), (2, false), (60, false)] {
            let time = written + Duration::from_secs(later) + Duration::from_millis(10);
            assert_eq!(seen.is_younger_than(time), young, "{later} s later");
            assert_eq!(may_have_gone(&temp.path().join("no/such"), time), young, "{later} s later");
        }
        // As if it had been written long ago.
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert!(Seen::at(&path).unwrap().is_younger_than(written));
    }
}
