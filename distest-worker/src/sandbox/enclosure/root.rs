//! Building the root folder that processes in the sandbox see.
//!
//! In order: a small file system in memory becomes the root, with the old one in a corner of it;
//! everything of this machine is bound into it, read-only; folders are covered where names are
//! missing (see [`super::plan`]); the private folders and the client's roots are bound to their
//! places; `/proc` is mounted; the old root goes.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use nix::unistd::{chdir, geteuid, pivot_root};

use super::layout::{self, Point, below};
use super::plan::{self, Cover};
use super::{Doing, Enclosure, Entered, Obstacle, Step, sockets};

/// Where what is needed for building lies meanwhile.
const WORKSHOP: &str = "/.distest";
const OLD: &str = "/.distest/old";
const LOWER: &str = "/.distest/lower";
const WRITES: &str = "/.distest/writes";
const TREE: &str = "/.distest/tree";

/// Bytes and files of a folder in memory that only holds mount points.
const COVER_LIMITS: &str = "mode=0755,size=4m,nr_inodes=65536";
/// Of files and folders as many may be written as there are so many bytes: each takes some memory
/// however small it is.
const BYTES_PER_WRITTEN_FILE: u64 = 8 * 1024;
/// But never fewer.
const WRITTEN_FILES_MIN: u64 = 1_024;
/// The most entries of a folder that can be brought back into its cover, one by one.
const COVERED_ENTRIES_MAX: usize = 4096;

/// Devices that root's tests find; everyone else finds all, with their permissions. Root could
/// write to disks.
const DEVICES: [&str; 14] = [
    "dri", "fd", "full", "fuse", "kvm", "net", "null", "random", "stderr", "stdin", "stdout",
    "tty", "urandom", "zero",
];
/// What makes terminals, and where they then are.
const TERMINALS: [&str; 2] = ["ptmx", "pts"];

/// What lies in `/proc` and is the machine's own: its root's tests could change it there.
const MACHINES_OWN: [&str; 6] =
    ["/proc/acpi", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Makes the new root the one of this process, which must be in a mount namespace of its own.
pub(super) fn build(enclosure: &Enclosure) -> Result<Entered, Obstacle> {
    move_in(&enclosure.mount_point)?;
    let machine = Path::new(OLD);
    let mut points = layout::points(enclosure, machine);
    let linked = sockets::linked(&enclosure.sockets, &mut points);
    let device_folder = geteuid().is_root().then_some(Path::new("/dev"));
    let paths = points.iter().map(|(path, _)| path.as_path());
    let paths = paths.chain(linked.keys().map(PathBuf::as_path));
    let mut covers = plan::covers(paths, |path| layout::look(machine, path));
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
    Ok(Entered { written: Some(written), sockets: linked, ..Entered::default() })
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

/// Covers a folder, and brings back into it what was there.
fn cover(at: &Path, cover: &Cover, only_devices: bool) -> Result<(), Obstacle> {
    if at != Path::new("/") {
        create_folder(at).doing(Step::Root, at.display())?;
        mount_memory(at, COVER_LIMITS).doing(Step::Root, at.display())?;
    }
    let source = old(&cover.source);
    let entries = match fs::read_dir(&source) {
        // What a worker's user may not look into, its tests could not either.
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => return Ok(()),
        entries => entries.doing(Step::Bind, cover.source.display())?,
    };
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
    if only_devices && !TERMINALS.iter().any(|name| cover.without.contains(OsStr::new(name))) {
        bring_terminals(&source, at).doing(Step::Bind, at.join("pts").display())?;
    }
    Ok(())
}

/// Makes terminals possible below a fresh `/dev`: of the sandbox's own, or else the machine's. The
/// device alone would not do: the kernel looks for `pts` beside it.
fn bring_terminals(machines: &Path, at: &Path) -> io::Result<()> {
    let [device, folder] = TERMINALS.map(|name| at.join(name));
    fs::create_dir(&folder)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let options = Some("newinstance,ptmxmode=0666,mode=0620");
    let own = mount(Some("devpts"), &folder, Some("devpts"), flags, options).is_ok();
    if !own {
        match machines.join("pts") {
            pts if pts.is_dir() => bind(&pts, &folder, true)?,
            // Nor has the machine any.
            _ => return Ok(()),
        }
    }
    // Many machines let nobody open the device in there.
    let inner = fs::metadata(folder.join("ptmx")).is_ok_and(|it| it.mode() & 0o666 == 0o666);
    let machines = machines.join("ptmx");
    if own || inner || !machines.exists() {
        return symlink("pts/ptmx", device);
    }
    fs::File::create(&device)?;
    bind(&machines, &device, true)
}

/// Brings an entry of the old root to a path, read-only.
fn bring_back(entry: &fs::DirEntry, path: &Path) -> io::Result<()> {
    let kind = entry.file_type()?;
    if kind.is_symlink() {
        return symlink(fs::read_link(entry.path())?, path);
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
    let bytes_max = enclosure.writes_bytes_max;
    let files_max = (bytes_max / BYTES_PER_WRITTEN_FILE).max(WRITTEN_FILES_MIN);
    let limits = format!("mode=0755,size={bytes_max},nr_inodes={files_max}");
    let writes = Path::new(WRITES);
    mount_memory(writes, &limits).doing(Step::Overlay, "the layer for writes")?;
    for (_, point) in points {
        let private = match point {
            Point::Private { name, mode } => Some((name, *mode)),
            Point::Hidden { name } => Some((name, 0o755)),
            Point::Root | Point::Shown(_) => None,
        };
        if let Some((name, mode)) = private {
            let folder = writes.join(name);
            let permissions = fs::Permissions::from_mode(mode);
            fs::create_dir(&folder)
                .and_then(|()| fs::set_permissions(&folder, permissions))
                .doing(Step::Overlay, folder.display())?;
        }
    }
    let (upper, work) = (writes.join("upper"), writes.join("work"));
    for folder in [&upper, &work] {
        fs::create_dir(folder).doing(Step::Overlay, folder.display())?;
    }
    let options =
        format!("lowerdir={LOWER},upperdir={},workdir={}", upper.display(), work.display());
    let mount_tree = |more: &str| {
        let options = format!("{options}{more}");
        mount(Some("overlay"), TREE, Some("overlay"), MsFlags::MS_NODEV, Some(options.as_str()))
    };
    let mounted = match enclosure.level.has_user_namespace() {
        // Other attributes than these belong to the machine's root. Without them, and so here, a
        // folder that has travelled can't be renamed.
        true => mount_tree(",userxattr"),
        false => mount_tree(",redirect_dir=on").or_else(|_| mount_tree("")),
    };
    mounted.doing(Step::Overlay, "the client's files")?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(&upper, flags, Mode::empty()).doing(Step::Overlay, upper.display())
}

fn place(path: &Path, point: &Point<'_>) -> Result<(), Obstacle> {
    create_folder(path).doing(Step::Bind, path.display())?;
    let bound = match point {
        Point::Root => bind(&below(Path::new(TREE), path), path, false),
        Point::Private { name, .. } | Point::Hidden { name } => {
            bind(&Path::new(WRITES).join(name), path, false)
        }
        Point::Shown(shown) => bind(&old(shown), path, true),
    };
    bound.doing(Step::Bind, path.display())
}

fn mount_proc(enclosure: &Enclosure) -> Result<(), Obstacle> {
    let proc = Path::new("/proc");
    create_folder(proc).doing(Step::Proc, "")?;
    if enclosure.level.has_pid_namespace() {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("proc"), proc, Some("proc"), flags, None::<&str>).doing(Step::Proc, "")?;
    } else {
        bind(&old(proc), proc, false).doing(Step::Proc, "")?;
    }
    if geteuid().is_root() {
        for path in MACHINES_OWN.map(Path::new).into_iter().filter(|path| path.exists()) {
            bind(path, path, true).doing(Step::Proc, path.display())?;
        }
    }
    Ok(())
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
pub(super) fn check(path: &Path) -> Result<(), Obstacle> {
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
