//! Building the root folder that processes in the sandbox see.
//!
//! In order: a small file system in memory becomes the root, with the old one in a corner of it;
//! everything of this machine is bound into it, read-only; folders are covered where names are
//! missing (see [`super::plan`]); the private folders and the client's roots are bound to their
//! places; `/proc` is mounted; the old root goes.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use nix::unistd::{chdir, geteuid, pivot_root};

use super::plan::{self, Cover, Found};
use super::{Doing, Enclosure, Entered, Obstacle, Step, sockets};

/// Where what is needed for building lies meanwhile.
const WORKSHOP: &str = "/.distest";
const OLD: &str = "/.distest/old";
const LOWER: &str = "/.distest/lower";
const WRITES: &str = "/.distest/writes";
const TREE: &str = "/.distest/tree";

/// Bytes and files of a folder in memory that only holds mount points.
const COVER_LIMITS: &str = "mode=0755,size=4m,nr_inodes=65536";
/// The most files and folders that may be written.
const WRITES_FILES_MAX: u64 = 1 << 20;
/// The most entries of a folder that can be brought back into its cover, one by one.
const COVERED_ENTRIES_MAX: usize = 4096;

/// Devices that root's tests find; everyone else finds all, with their permissions. Root could
/// write to disks.
const DEVICES: [&str; 16] = [
    "dri", "fd", "full", "fuse", "kvm", "net", "null", "ptmx", "pts", "random", "stderr", "stdin",
    "stdout", "tty", "urandom", "zero",
];

/// Folders that every sandbox has to itself: path and permissions.
const PRIVATE: [(&str, u32); 3] = [("/tmp", 0o1777), ("/var/tmp", 0o1777), ("/dev/shm", 0o1777)];

/// What is mounted at a path of the new root.
pub(super) enum Point<'a> {
    /// A folder in the written layer.
    Private { name: String, mode: u32 },
    /// The client's.
    Root,
    /// This machine's, read-only.
    Shown(&'a Path),
}

/// Makes the new root the one of this process, which must be in a mount namespace of its own.
pub(super) fn build(enclosure: &Enclosure) -> Result<Entered, Obstacle> {
    move_in(&enclosure.mount_point)?;
    let mut points = points(enclosure);
    let linked = sockets::linked(&enclosure.sockets, &mut points);
    let device_folder = geteuid().is_root().then_some(Path::new("/dev"));
    let paths = points.iter().map(|(path, _)| path.as_path());
    let mut covers = plan::covers(paths.chain(linked.keys().map(PathBuf::as_path)), look);
    if let Some(devices) = device_folder {
        covers
            .entry(devices.into())
            .or_insert_with(|| Cover { source: devices.into(), ..Cover::default() });
    }
    for (at, cover) in &covers {
        self::cover(at, cover, device_folder == Some(at))?;
    }
    let written = mount_layers(enclosure, &points)?;
    for (path, point) in &points {
        place(path, point)?;
    }
    mount_proc(enclosure)?;
    sockets::link(&linked)?;
    leave_workshop()?;
    for at in covers.keys() {
        // Not `/` alone: whoever may write into none of this machine's may not write there either.
        restrict(at, libc::MOUNT_ATTR_RDONLY, false).doing(Step::Root, at.display())?;
    }
    if let Some(path) = &enclosure.check {
        check(path)?;
    }
    Ok(Entered { written, sockets: linked })
}

/// Makes an empty folder in memory the root, and the old root a folder in it.
fn move_in(mount_point: &Path) -> Result<(), Obstacle> {
    let none = None::<&str>;
    let alone = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(none, "/", none, alone, none).doing(Step::Root, "leaving the host's mounts")?;
    mount_memory(mount_point, COVER_LIMITS).doing(Step::Root, mount_point.display())?;
    let old = mount_point.join(&OLD[1..]);
    fs::create_dir_all(&old).doing(Step::Root, old.display())?;
    pivot_root(mount_point, &old).doing(Step::Root, "changing it")?;
    chdir("/").doing(Step::Root, "entering it")
}

/// Where what goes, in the order of paths, so that folders come before what is in them.
fn points(enclosure: &Enclosure) -> Vec<(PathBuf, Point<'_>)> {
    let Enclosure { roots, hidden, shown, home, .. } = enclosure;
    let mut points: Vec<(PathBuf, Point<'_>)> = Vec::new();
    // The client's files stand for everything that lies where they are.
    let mut add = |path: &Path, point| {
        let new = points.iter().all(|(known, _): &(PathBuf, _)| known != path);
        if new && !roots.iter().any(|root| path.starts_with(root)) {
            points.push((path.to_owned(), point));
        }
    };
    let name = |path: &Path| path.to_string_lossy().replace('/', "-");
    for (path, mode) in PRIVATE {
        let path = Path::new(path);
        add(path, Point::Private { name: name(path), mode });
    }
    add(home, Point::Private { name: "home".into(), mode: 0o700 });
    for (index, path) in hidden.iter().enumerate() {
        let in_private = PRIVATE.iter().any(|(private, _)| path.starts_with(private))
            || (path.starts_with(home) && path != home)
            || hidden.iter().any(|other| path.starts_with(other) && path != other);
        // What doesn't exist can't be seen either.
        if !in_private && old(path).is_dir() {
            add(path, Point::Private { name: format!("hidden-{index}"), mode: 0o755 });
        }
    }
    for path in shown {
        let in_hidden = path.starts_with(home) || hidden.iter().any(|it| path.starts_with(it));
        if in_hidden && fs::read_dir(old(path)).is_ok() {
            add(path, Point::Shown(path));
        }
    }
    points.extend(roots.iter().map(|root| (root.clone(), Point::Root)));
    points.sort_by(|(a, _), (b, _)| a.cmp(b));
    points
}

/// What lies at a path of this machine.
fn look(path: &Path) -> Found {
    match fs::symlink_metadata(old(path)) {
        Ok(metadata) if metadata.is_dir() => Found::Folder,
        Ok(metadata) if metadata.is_symlink() => resolve(path).map_or(Found::Other, Found::LinkTo),
        _ => Found::Other,
    }
}

/// The folder that a link of this machine leads to.
fn resolve(link: &Path) -> Option<PathBuf> {
    /// As the kernel's.
    const LINKS_MAX: usize = 40;
    let mut left = LINKS_MAX;
    let mut pending: Vec<_> = link.iter().skip(1).map(PathBuf::from).collect();
    pending.reverse();
    let mut at = PathBuf::from("/");
    while let Some(name) = pending.pop() {
        if name == Path::new("..") {
            at.pop();
            continue;
        }
        let next = at.join(&name);
        let Ok(target) = fs::read_link(old(&next)) else {
            at = next;
            continue;
        };
        left = left.checked_sub(1)?;
        if target.is_absolute() {
            at = PathBuf::from("/");
        }
        let names = target.components().filter_map(|component| match component {
            std::path::Component::Normal(name) => Some(PathBuf::from(name)),
            std::path::Component::ParentDir => Some(PathBuf::from("..")),
            _ => None,
        });
        let names: Vec<_> = names.collect();
        pending.extend(names.into_iter().rev());
    }
    fs::symlink_metadata(old(&at)).is_ok_and(|metadata| metadata.is_dir()).then_some(at)
}

/// Covers a folder, and brings back into it what was there.
fn cover(at: &Path, cover: &Cover, only_devices: bool) -> Result<(), Obstacle> {
    if at != Path::new("/") {
        create_folder(at).doing(Step::Root, at.display())?;
        mount_memory(at, COVER_LIMITS).doing(Step::Root, at.display())?;
    }
    let source = old(&cover.source);
    let entries = fs::read_dir(&source).doing(Step::Bind, cover.source.display())?;
    let mut count = 0;
    for entry in entries {
        let entry = entry.doing(Step::Bind, cover.source.display())?;
        let name = entry.file_name();
        let wanted = DEVICES.iter().any(|known| name == *known)
            || name.to_string_lossy().starts_with("nvidia");
        let is_proc = at == Path::new("/") && name == "proc";
        if cover.without.contains(&name) || is_proc || (only_devices && !wanted) {
            continue;
        }
        count += 1;
        if count > COVERED_ENTRIES_MAX {
            let what = format!("more than {COVERED_ENTRIES_MAX} entries of {}", at.display());
            return Err(Obstacle::new(Step::Bind, what, Errno::E2BIG));
        }
        let path = at.join(&name);
        bring_back(&entry, &path).doing(Step::Bind, path.display())?;
    }
    Ok(())
}

/// Brings an entry of the old root to a path, read-only.
fn bring_back(entry: &fs::DirEntry, path: &Path) -> io::Result<()> {
    let kind = entry.file_type()?;
    if kind.is_symlink() {
        return std::os::unix::fs::symlink(fs::read_link(entry.path())?, path);
    }
    if kind.is_dir() {
        fs::create_dir(path)?;
    } else if kind.is_file() || kind.is_char_device() || kind.is_block_device() || kind.is_socket()
    {
        fs::File::create(path)?;
    } else {
        return Ok(());
    }
    bind(&entry.path(), path, true)
}

/// Makes the written layer and, of that and the laid-out files, the client's tree.
fn mount_layers(
    enclosure: &Enclosure,
    points: &[(PathBuf, Point<'_>)],
) -> Result<OwnedFd, Obstacle> {
    for folder in [LOWER, WRITES, TREE] {
        fs::create_dir(folder).doing(Step::Overlay, folder)?;
    }
    bind(&old(&enclosure.lower), Path::new(LOWER), true)
        .doing(Step::Overlay, enclosure.lower.display())?;
    let limits =
        format!("mode=0755,size={},nr_inodes={WRITES_FILES_MAX}", enclosure.writes_bytes_max);
    let writes = Path::new(WRITES);
    mount_memory(writes, &limits).doing(Step::Overlay, "the layer for writes")?;
    for (_, point) in points {
        if let Point::Private { name, mode } = point {
            let folder = writes.join(name);
            let permissions = fs::Permissions::from_mode(*mode);
            fs::create_dir(&folder)
                .and_then(|()| fs::set_permissions(&folder, permissions))
                .doing(Step::Overlay, folder.display())?;
        }
    }
    let (upper, work) = (writes.join("upper"), writes.join("work"));
    for folder in [&upper, &work] {
        fs::create_dir(folder).doing(Step::Overlay, folder.display())?;
    }
    let mut options =
        format!("lowerdir={LOWER},upperdir={},workdir={}", upper.display(), work.display());
    if enclosure.level.has_user_namespace() {
        // Other attributes than these belong to the machine's root.
        options.push_str(",userxattr");
    }
    mount(Some("overlay"), TREE, Some("overlay"), MsFlags::MS_NODEV, Some(options.as_str()))
        .doing(Step::Overlay, "the client's files")?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(&upper, flags, Mode::empty()).doing(Step::Overlay, upper.display())
}

fn place(path: &Path, point: &Point<'_>) -> Result<(), Obstacle> {
    create_folder(path).doing(Step::Bind, path.display())?;
    let bound = match point {
        Point::Root => bind(&below(Path::new(TREE), path), path, false),
        Point::Private { name, .. } => bind(&Path::new(WRITES).join(name), path, false),
        Point::Shown(shown) => bind(&old(shown), path, true),
    };
    bound.doing(Step::Bind, path.display())
}

fn mount_proc(enclosure: &Enclosure) -> Result<(), Obstacle> {
    let proc = Path::new("/proc");
    create_folder(proc).doing(Step::Proc, "")?;
    if !enclosure.level.has_pid_namespace() {
        return bind(&old(proc), proc, false).doing(Step::Proc, "");
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), proc, Some("proc"), flags, None::<&str>).doing(Step::Proc, "")
}

/// Takes away the old root and what building needed. What is mounted elsewhere stays.
fn leave_workshop() -> Result<(), Obstacle> {
    for mounted in [TREE, WRITES, LOWER, OLD] {
        umount2(mounted, MntFlags::MNT_DETACH).doing(Step::Root, mounted)?;
        fs::remove_dir(mounted).doing(Step::Root, mounted)?;
    }
    fs::remove_dir(WORKSHOP).doing(Step::Root, WORKSHOP)
}

/// Changes a file, which shows that what an overlay lets one see can be written, too: not if the
/// files below belong to users that the namespace doesn't have.
fn check(path: &Path) -> Result<(), Obstacle> {
    let changed = fs::File::options().append(true).open(path);
    changed
        .and_then(|mut file| io::Write::write_all(&mut file, b"!"))
        .doing(Step::Check, path.display())
}

fn mount_memory(at: &Path, limits: &str) -> nix::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), at, Some("tmpfs"), flags, Some(limits))
}

/// Shows a folder or file at another path, with all that is mounted in it.
fn bind(from: &Path, to: &Path, read_only: bool) -> io::Result<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(from), to, None::<&str>, flags, None::<&str>)?;
    if read_only {
        restrict(to, libc::MOUNT_ATTR_RDONLY, true)?;
    }
    Ok(())
}

/// Sets attributes of a mount, or of all that are mounted in it as well. Kernels before 5.12 can't:
/// there the permissions of files are all that keeps tests from writing.
#[expect(unsafe_code, reason = "neither nix nor the C library has this call")]
fn restrict(at: &Path, attributes: u64, all: bool) -> nix::Result<()> {
    use nix::NixPath;
    let attributes =
        libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = if all { libc::AT_RECURSIVE } else { 0 };
    let result = at.with_nix_path(|path| {
        // SAFETY: path and attributes live until the call returns; the size is the attributes'.
        unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                libc::AT_FDCWD,
                path.as_ptr(),
                flags,
                &raw const attributes,
                size_of::<libc::mount_attr>(),
            )
        }
    })?;
    match Errno::result(result) {
        Err(Errno::ENOSYS) => Ok(()),
        done => done.map(drop),
    }
}

fn create_folder(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)
}

/// Where a path of this machine is found while building.
fn old(path: &Path) -> PathBuf {
    below(Path::new(OLD), path)
}

fn below(folder: &Path, path: &Path) -> PathBuf {
    folder.join(path.strip_prefix("/").unwrap_or(path))
}
