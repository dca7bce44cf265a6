//! Puts a file into its place below a folder, without ever following a link and without
//! overwriting what somebody else has just written.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::io::{self, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path};
use std::time::SystemTime;

use distest_worker::digest::Digest;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, renameat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{LinkatFlags, UnlinkatFlags, linkat, unlinkat};

/// What lies at a path.
#[derive(Clone, Copy, Debug)]
pub(super) enum Found {
    Nothing,
    File {
        digest: Digest,
        /// When its contents or anything else about it last changed.
        changed: SystemTime,
    },
}

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placed {
    Written,
    /// It is there already.
    Same,
    /// Something else is there that may not be replaced.
    Kept,
}

/// Puts what `new` holds, whose digest is `digest`, at `path` below `root`, if `may_replace` agrees
/// with what is there. Creates folders on the way.
pub(super) fn place(
    root: &Path,
    path: &Path,
    new: &mut File,
    digest: Digest,
    mode: u32,
    mut may_replace: impl FnMut(Found) -> bool,
) -> io::Result<Placed> {
    let relative = path.strip_prefix(root).map_err(io::Error::other)?;
    let (Some(parent), Some(name)) = (relative.parent(), relative.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut folder = open(root, folder_flags(), Mode::empty())?;
    for component in parent.components() {
        let Component::Normal(name) = component else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        folder = enter(&folder, name)?;
    }
    let found = look(&folder, name)?;
    if matches!(found, Found::File { digest: there, .. } if there == digest) {
        return Ok(Placed::Same);
    }
    if !may_replace(found) {
        return Ok(Placed::Kept);
    }
    let temp = OsString::from(format!(".distest-{}-{}", std::process::id(), digest));
    write(&folder, &temp, new, mode)?;
    let placed = match found {
        // Fails if something has come there meanwhile.
        Found::Nothing => linkat(&folder, temp.as_os_str(), &folder, name, LinkatFlags::empty()),
        Found::File { digest, .. } => match look(&folder, name) {
            Ok(Found::File { digest: now, .. }) if now == digest => {
                renameat(&folder, temp.as_os_str(), &folder, name)
            }
            _ => Err(Errno::EEXIST),
        },
    };
    // Gone already if it was renamed.
    let _ = unlinkat(&folder, temp.as_os_str(), UnlinkatFlags::NoRemoveDir);
    match placed {
        Ok(()) => Ok(Placed::Written),
        Err(Errno::EEXIST) => Ok(Placed::Kept),
        Err(error) => Err(error.into()),
    }
}

fn look(folder: &OwnedFd, name: &OsStr) -> io::Result<Found> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = match openat(folder, name, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::ENOENT) => return Ok(Found::Nothing),
        Err(error) => return Err(error.into()),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("something that is no file is there"));
    }
    let created_or_so = nix::sys::stat::fstat(&file)?;
    let seconds = u64::try_from(created_or_so.st_ctime).unwrap_or(0);
    let nanos = u32::try_from(created_or_so.st_ctime_nsec).unwrap_or(0);
    let changed = SystemTime::UNIX_EPOCH + std::time::Duration::new(seconds, nanos);
    Ok(Found::File { digest: Digest::of_reader(file)?.0, changed })
}

fn write(folder: &OwnedFd, name: &OsStr, new: &mut File, mode: u32) -> io::Result<()> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
    let flags = flags | OFlag::O_CLOEXEC;
    let mut file = File::from(openat(folder, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
    new.rewind()?;
    let written = io::copy(new, &mut file)
        // Nobody else may write to it, whatever the worker's masks are, and its owner always.
        .and_then(|_| file.set_permissions(Permissions::from_mode(mode & 0o755 | 0o600)));
    if written.is_err() {
        let _ = unlinkat(folder, name, UnlinkatFlags::NoRemoveDir);
    }
    written
}

/// Opens a folder in a folder; creates it if nothing is there. Fails if it is a link.
fn enter(parent: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
    match openat(parent, name, folder_flags(), Mode::empty()) {
        Err(Errno::ENOENT) => {
            match mkdirat(parent, name, Mode::from_bits_truncate(0o755)) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(error) => return Err(error.into()),
            }
            Ok(openat(parent, name, folder_flags(), Mode::empty())?)
        }
        entered => Ok(entered?),
    }
}

fn folder_flags() -> OFlag {
    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}
