//! Creating things below a folder without ever following a link.
//!
//! Folders on the way are opened one by one with `O_NOFOLLOW`, each relative to the one before it:
//! portable, and as tight as `openat2` with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, renameat};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};

use crate::protocol::FOLDER_MODE;

/// Name of something that is about to take the place of something else. One at a time: whoever
/// lays things out holds a lock.
const REPLACEMENT: &str = ".distest-replacement";

/// A folder that stands for `/`.
pub(crate) struct Beneath {
    base: OwnedFd,
    /// Permissions that are in the way are changed.
    forces: bool,
    /// The parent of the last slot: entries come sorted.
    last: Option<(PathBuf, OwnedFd)>,
}

/// A name in a folder, where something is or will be.
pub(crate) struct Slot<'a> {
    parent: &'a OwnedFd,
    name: OsString,
    forces: bool,
}

impl Beneath {
    /// One that is ours alone: what keeps us out of folders in it is changed.
    pub(crate) fn open(base: &Path) -> io::Result<Self> {
        let base = open(base, folder_flags(), Mode::empty())?;
        Ok(Self { base, forces: true, last: None })
    }

    /// One in which others have something: what is there keeps its permissions.
    pub(crate) fn among_others(base: &Path) -> io::Result<Self> {
        Ok(Self { forces: false, ..Self::open(base)? })
    }

    /// Gives the folder itself these permissions.
    pub(crate) fn own_mode(&self, mode: u32) -> io::Result<()> {
        let folder = File::from(self.base.try_clone()?);
        folder.set_permissions(Permissions::from_mode(mode & 0o777))
    }

    /// The place of an absolute path without `..`. Creates the folders on the way.
    pub(crate) fn slot(&mut self, path: &Path) -> io::Result<Slot<'_>> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let cached = self.last.as_ref().is_some_and(|(last, _)| last == parent);
        if !cached {
            let mut folder = self.base.try_clone()?;
            for component in parent.components() {
                if let Component::Normal(name) = component {
                    folder = enter(&folder, name, self.forces)?;
                }
            }
            self.last = Some((parent.to_owned(), folder));
        }
        let parent = self.last.as_ref().map_or(&self.base, |(_, folder)| folder);
        Ok(Slot { parent, name: name.to_owned(), forces: self.forces })
    }
}

impl Slot<'_> {
    pub(crate) fn exists(&self) -> bool {
        fstatat(self.parent, self.name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW).is_ok()
    }

    /// A folder with these permissions and all of its owner's.
    pub(crate) fn folder(&self, mode: u32) -> io::Result<()> {
        self.folder_mode(mode | 0o700)
    }

    /// The same, unless there is a folder, which stays as it is. Answers whether it was made.
    pub(crate) fn new_folder(&self, mode: u32) -> io::Result<bool> {
        let made = match mkdirat(self.parent, self.name.as_os_str(), Mode::S_IRWXU) {
            Ok(()) => true,
            Err(Errno::EEXIST) => false,
            Err(error) => return Err(error.into()),
        };
        let about = fstatat(self.parent, self.name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if about.st_mode & libc::S_IFMT != libc::S_IFDIR {
            return Err(Errno::ENOTDIR.into());
        }
        if made {
            self.folder(mode)?;
        }
        Ok(made)
    }

    /// Gives a folder these permissions, and no more.
    pub(crate) fn folder_mode(&self, mode: u32) -> io::Result<()> {
        let folder = File::from(enter(self.parent, &self.name, self.forces)?);
        folder.set_permissions(Permissions::from_mode(mode & FOLDER_MODE))
    }

    /// A new file with what `write` puts into it. Nothing if that fails.
    pub(crate) fn file(
        &self,
        mode: u32,
        write: impl FnOnce(&File) -> io::Result<()>,
    ) -> io::Result<()> {
        self.create(|name| {
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
            let mode_now = Mode::S_IRUSR | Mode::S_IWUSR;
            let file = File::from(openat(self.parent, name, flags | OFlag::O_CLOEXEC, mode_now)?);
            let written = write(&file)
                .and_then(|()| file.set_permissions(Permissions::from_mode(mode & 0o777)));
            if written.is_err() {
                let _ = unlinkat(self.parent, name, UnlinkatFlags::NoRemoveDir);
            }
            written
        })
    }

    /// A symbolic link with this text.
    pub(crate) fn link(&self, target: &Path) -> io::Result<()> {
        self.create(|name| Ok(symlinkat(target, self.parent, name)?))
    }

    /// Creates something; if something that is no folder is in its place, replaces that.
    fn create(&self, make: impl FnOnce(&OsStr) -> io::Result<()>) -> io::Result<()> {
        if !self.exists() {
            return make(&self.name);
        }
        let replacement = OsStr::new(REPLACEMENT);
        let _ = unlinkat(self.parent, replacement, UnlinkatFlags::NoRemoveDir);
        make(replacement)?;
        renameat(self.parent, replacement, self.parent, self.name.as_os_str()).map_err(|error| {
            let _ = unlinkat(self.parent, replacement, UnlinkatFlags::NoRemoveDir);
            error.into()
        })
    }
}

/// Opens a folder in a folder; creates it if nothing is there. Fails if it is a link.
fn enter(parent: &impl AsFd, name: &OsStr, forces: bool) -> io::Result<OwnedFd> {
    match openat(parent, name, folder_flags(), Mode::empty()) {
        Err(Errno::ENOENT) => {
            match mkdirat(parent, name, Mode::from_bits_truncate(0o755)) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(error) => return Err(error.into()),
            }
            Ok(openat(parent, name, folder_flags(), Mode::empty())?)
        }
        Err(Errno::EACCES) if forces => {
            // A test took its own permissions away. Fails on a link, which has none.
            fchmodat(parent, name, Mode::S_IRWXU, FchmodatFlags::NoFollowSymlink)?;
            Ok(openat(parent, name, folder_flags(), Mode::empty())?)
        }
        entered => Ok(entered?),
    }
}

fn folder_flags() -> OFlag {
    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}
