//! What tests have written into the client's tree, and left there: read from the upper layer of
//! their sandbox's overlay.
//!
//! A slot that runs enclosed hands out a [`Written`] with each attempt that ended
//! ([`crate::executor::SlotExit::written`]). It stays readable after the sandbox has been left or
//! replaced, for as long as it is held, and holds that layer's memory for as long. It covers all
//! attempts that share the layer (see [`crate::protocol::Writes`]): to learn what one attempt did,
//! compare two lists by [`Change::stamp`]. While another attempt runs in the slot it may change
//! underfoot; nothing read from it is to be trusted: tests wrote it, paths and links included.

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat, lstat};
use nix::sys::statvfs::fstatvfs;

/// The most changes that are listed.
pub const CHANGES_MAX: usize = 100_000;
/// A layer that is fuller than one part in this is no place for another test.
const FULL_DIVISOR: u64 = 2;
/// Deeper than this nothing is looked for: the kernel's own paths end at 4,096 bytes.
const DEPTH_MAX: usize = 2_048;

/// What has been written in one sandbox.
#[derive(Debug)]
pub struct Written {
    /// The upper layer; stands for `/`.
    upper: OwnedFd,
}

/// One thing that is not as it was laid out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The client's absolute path.
    pub path: PathBuf,
    /// What is there now.
    pub kind: ChangeKind,
    /// Changes when the thing does.
    pub stamp: Stamp,
}

/// What a change made of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// A file, new or changed in content or attributes. Its size in bytes and its permissions.
    File {
        /// Bytes.
        size: u64,
        /// Permission bits, as in `0o644`.
        mode: u32,
    },
    /// A symbolic link with this text.
    Link {
        /// Its text.
        target: PathBuf,
    },
    /// A folder that is new, or in which something changed.
    Folder,
    /// Nothing any more.
    Removed,
    /// A socket, a FIFO.
    Special,
}

/// Inode, and when it was last changed in whatever way, in nanoseconds since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp {
    inode: u64,
    changed_ns: i128,
}

impl Written {
    pub(crate) fn new(upper: OwnedFd) -> Self {
        Self { upper }
    }

    /// All changes, sorted by path. At most [`CHANGES_MAX`]: an error if there are more.
    ///
    /// # Errors
    /// A folder can't be read.
    pub fn list(&self) -> io::Result<Vec<Change>> {
        let mut changes = Vec::new();
        list(&self.upper, Path::new("/"), 0, &mut changes)?;
        changes.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(changes)
    }

    /// Opens a changed file for reading, by the client's path. Follows no link.
    ///
    /// # Errors
    /// It isn't there, or is no file.
    pub fn open(&self, path: &Path) -> io::Result<File> {
        let (folder, name) = self.enter(path)?;
        // A FIFO must not be waited for.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = File::from(openat(&folder, name, flags, Mode::empty())?);
        if !file.metadata()?.is_file() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(file)
    }

    /// Of what lies at the client's path now; none if nothing can be seen there.
    pub(crate) fn stamp(&self, path: &Path) -> Option<Stamp> {
        if path == Path::new("/") {
            return fstat(&self.upper).ok().map(|stat| Stamp::of(&stat));
        }
        let (folder, name) = self.enter(path).ok()?;
        fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW).ok().map(|stat| Stamp::of(&stat))
    }

    /// The folder in which the client's path lies, reached through no link, and its name there.
    fn enter<'a>(&self, path: &'a Path) -> io::Result<(OwnedFd, &'a OsStr)> {
        let plain = |component: &Component<'_>| {
            matches!(component, Component::RootDir | Component::Normal(_))
        };
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        if !path.is_absolute() || !path.components().all(|component| plain(&component)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut folder = self.upper.try_clone()?;
        for component in parent.components() {
            if let Component::Normal(name) = component {
                folder = openat(&folder, name, folder_flags(), Mode::empty())?;
            }
        }
        Ok((folder, name))
    }
}

/// Whether the layer that a folder lies in has so little room left that it had better be replaced.
pub(crate) fn is_nearly_full(folder: &OwnedFd) -> bool {
    fstatvfs(folder).is_ok_and(|stat| {
        let short = |free: u64, all: u64| free < all - all / FULL_DIVISOR;
        short(stat.blocks_free(), stat.blocks()) || short(stat.files_free(), stat.files())
    })
}

fn list(
    folder: &impl AsFd,
    path: &Path,
    depth: usize,
    changes: &mut Vec<Change>,
) -> io::Result<()> {
    // A descriptor of its own: reading moves its position.
    let own = openat(folder, ".", folder_flags(), Mode::empty())?;
    let mut dir = Dir::from_fd(own)?;
    let names: Vec<_> =
        dir.iter().map(|entry| Ok(entry?.file_name().to_owned())).collect::<io::Result<_>>()?;
    for name in names {
        let name = OsStr::from_bytes(name.to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        let stat = match fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::ENOENT) => continue,
            Err(errno) => return Err(errno.into()),
        };
        if changes.len() >= CHANGES_MAX {
            let message = format!("tests left more than {CHANGES_MAX} changes");
            return Err(io::Error::other(message));
        }
        let kind = kind(folder, name, &stat);
        let is_folder = kind == ChangeKind::Folder;
        let path = path.join(name);
        changes.push(Change { path: path.clone(), kind, stamp: Stamp::of(&stat) });
        if is_folder && depth < DEPTH_MAX {
            let inner = match openat(folder, name, folder_flags(), Mode::empty()) {
                Ok(inner) => inner,
                // Gone meanwhile, or closed to everyone by a test.
                Err(Errno::ENOENT | Errno::EACCES | Errno::ENOTDIR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            list(&inner, &path, depth + 1, changes)?;
        }
    }
    Ok(())
}

fn kind(folder: &impl AsFd, name: &OsStr, stat: &FileStat) -> ChangeKind {
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFREG => ChangeKind::File {
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mode: stat.st_mode & 0o7777,
        },
        libc::S_IFDIR => ChangeKind::Folder,
        libc::S_IFLNK => match readlinkat(folder, name) {
            Ok(target) => ChangeKind::Link { target: target.into() },
            Err(_) => ChangeKind::Special,
        },
        // How an overlay notes that something is gone.
        libc::S_IFCHR if stat.st_rdev == 0 => ChangeKind::Removed,
        _ => ChangeKind::Special,
    }
}

impl Stamp {
    /// Of what lies at a path, link or not; none if nothing can be seen there.
    pub(crate) fn at(path: &CStr) -> Option<Self> {
        lstat(path).ok().map(|stat| Self::of(&stat))
    }

    /// Whether the change was less than `time` before `now`, or after it.
    pub(crate) fn is_within(self, time: Duration, now: SystemTime) -> bool {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        now.as_nanos() as i128 - self.changed_ns < time.as_nanos() as i128
    }

    fn of(stat: &FileStat) -> Self {
        let changed_ns = i128::from(stat.st_ctime) * 1_000_000_000 + i128::from(stat.st_ctime_nsec);
        Self { inode: stat.st_ino, changed_ns }
    }
}

fn folder_flags() -> OFlag {
    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn lists_and_opens_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let proj = dir.path().join("code/proj");
        fs::create_dir_all(proj.join("sub")).unwrap();
        fs::write(proj.join("sub/new.snap"), "new").unwrap();
        symlink("/etc/passwd", proj.join("link")).unwrap();
        let written = Written::new(File::open(dir.path()).unwrap().into());
        let shown = |changes: &[Change]| -> Vec<(String, ChangeKind)> {
            let shown = changes.iter().map(|it| (it.path.display().to_string(), it.kind.clone()));
            shown.collect()
        };
        let mode = fs::metadata(proj.join("sub/new.snap")).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o7777;
        let before = written.list().unwrap();
        let expected = [
            ("/code", ChangeKind::Folder),
            ("/code/proj", ChangeKind::Folder),
            ("/code/proj/link", ChangeKind::Link { target: "/etc/passwd".into() }),
            ("/code/proj/sub", ChangeKind::Folder),
            ("/code/proj/sub/new.snap", ChangeKind::File { size: 3, mode }),
        ];
        assert_eq!(shown(&before), expected.map(|(path, kind)| (path.to_owned(), kind)));

        let mut text = String::new();
        let path = Path::new("/code/proj/sub/new.snap");
        written.open(path).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "new");
        for wrong in ["/code/proj/link", "/code/proj/sub", "/code/../code", "code/proj", "/"] {
            assert!(written.open(Path::new(wrong)).is_err(), "{wrong}");
        }

        fs::write(proj.join("sub/new.snap"), "NEW").unwrap();
        let after = written.list().unwrap();
        let changed: Vec<_> = after.iter().filter(|it| !before.contains(it)).collect();
        assert_eq!(changed.len(), 1);
        assert_eq!(changed[0].path, path);
    }
}
