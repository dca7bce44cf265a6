//! The sandbox that a zygote enters: what it is, and entering it.
//!
//! An [`Enclosure`] says what a process is to see: the client's roots at the client's own absolute
//! paths, whatever lies there on this machine; a `/proc`, `/tmp`, `/dev/shm` and home of its own;
//! everything else of this machine read-only; nothing of what is hidden. [`enter`] makes it so for
//! this process and all that it starts, and never writes on this machine's own disks.
//!
//! The client's files come through one discarding overlay: below are the files that
//! [`super::Sandbox`] laid out, above is a size-limited layer in memory that takes whatever is
//! written. All files that an overlay shows must be laid out before it is entered: a lower layer
//! that changes later is undefined. [`Entered`] hands out what was written, see
//! [`super::changes`].

pub(crate) mod bubblewrap;
mod layout;
mod namespaces;
mod network;
mod plan;
mod privileges;
mod root;
mod sockets;

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

pub(crate) use network::{enter_private as enter_private_network, show_interfaces};
pub use privileges::{can_fence, hide_from_others};
pub(crate) use privileges::{go_behind, make_fence};

use super::level::Level;

/// What a process is to see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enclosure {
    /// By which means. At least [`Level::Mounts`].
    pub level: Level,
    /// An empty folder of the worker's, to mount the new root on. Others may use it, too.
    pub mount_point: PathBuf,
    /// The folder in which the client's files are laid out: `LOWER/work/proj/…`.
    pub lower: PathBuf,
    /// Folders of the client, none within another. Each exists below `lower`.
    pub roots: Vec<PathBuf>,
    /// Folders of this machine that are empty inside.
    pub hidden: Vec<PathBuf>,
    /// Folders that are to be seen, read-only, although they lie in a hidden one: those of `PATH`.
    pub shown: Vec<PathBuf>,
    /// An empty folder that can be written: the home of tests. Also if it doesn't exist here.
    pub home: PathBuf,
    /// Paths of Unix sockets at which one can listen inside, whatever lies there on this machine.
    pub sockets: Vec<PathBuf>,
    /// How much may be written, in bytes, into the overlay and all private folders together; of
    /// files and folders as many as are in proportion.
    pub writes_bytes_max: u64,
    /// Make sure that files can be changed, by changing this one: the path of a file below a root.
    pub check: Option<PathBuf>,
}

/// What [`enter`] leaves in the hands of the process that entered.
#[derive(Debug, Default)]
pub(crate) struct Entered {
    /// The overlay's upper layer, a folder that stands for `/`: what has been written so far. None
    /// where the client's files themselves are written.
    pub(crate) written: Option<OwnedFd>,
    /// Where to listen instead of at paths in folders that can't be written: links lead there.
    pub(crate) sockets: BTreeMap<PathBuf, PathBuf>,
    /// `/sys` names the interfaces of a network of an attempt's.
    pub(crate) shows_interfaces: bool,
    /// What is started must be kept from signalling others: no pid namespace does it.
    pub(crate) fences: bool,
}

/// Why a sandbox could not be entered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Obstacle {
    /// What we were doing, to what.
    pub step: Step,
    /// More about it: a path.
    pub detail: String,
    /// What the system answered.
    pub errno: i32,
}

/// The steps of entering.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Creating a user namespace.
    UserNamespace,
    /// Saying which users it has.
    UserMap,
    /// Creating the other namespaces.
    Namespaces,
    /// Starting the first process in them.
    Fork,
    /// Making the new root folder.
    Root,
    /// Bringing in a folder of this machine.
    Bind,
    /// Mounting the overlay.
    Overlay,
    /// Mounting `/proc`.
    Proc,
    /// Giving up privileges.
    Privileges,
    /// Changing a file.
    Check,
    /// Creating a network namespace.
    Network,
    /// Bringing up its loopback interface.
    Loopback,
    /// Making a place for a Unix socket.
    Socket,
}

/// Enters the sandbox; or settles in it, if [`bubblewrap`] has started this process inside. It must
/// have one thread, and no open files but the standard ones that tests may not see.
///
/// With a pid namespace, the process that returns is another: pid 1 of the namespace. The one that
/// called waits for its end and then ends as it did; `leave_behind` is what it does first (closing
/// what only the other may hold).
///
/// # Errors
/// An [`Obstacle`], in whichever process met it; that process is of no use any more.
pub(crate) fn enter(
    enclosure: &Enclosure,
    leave_behind: impl FnOnce(),
) -> Result<Entered, Obstacle> {
    if enclosure.level == Level::Bubblewrap {
        // Unlike with the others, what it starts has no fewer privileges than this process.
        privileges::hide_from_others();
        enclosure.check.as_deref().map_or(Ok(()), root::check)?;
        // An attempt has no network of its own there, so nothing is forwarded to it.
        return Ok(Entered::default());
    }
    namespaces::enter(enclosure, leave_behind)?;
    let entered = root::build(enclosure)?;
    privileges::drop_dangerous()?;
    let fences = !enclosure.level.has_pid_namespace() && can_fence();
    Ok(Entered { fences, ..entered })
}

impl Entered {
    /// Where to listen so that whoever connects to this path, one of [`Enclosure::sockets`], is
    /// heard.
    pub(crate) fn socket_place<'a>(&'a self, path: &'a Path) -> &'a Path {
        self.sockets.get(path).map_or(path, PathBuf::as_path)
    }
}

impl Obstacle {
    fn new(step: Step, detail: impl fmt::Display, errno: Errno) -> Self {
        Self { step, detail: detail.to_string(), errno: errno as i32 }
    }

    /// What the system answered.
    pub fn errno(&self) -> Errno {
        Errno::from_raw(self.errno)
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { step, detail, .. } = self;
        match step {
            Step::UserNamespace => write!(f, "could not create a user namespace"),
            Step::UserMap => write!(f, "could not map users into a user namespace ({detail})"),
            Step::Namespaces => write!(f, "could not create {detail} namespaces"),
            Step::Fork => write!(f, "could not start the sandbox's first process"),
            Step::Root => write!(f, "could not make the sandbox's root ({detail})"),
            Step::Bind => write!(f, "could not bring {detail} into the sandbox"),
            Step::Overlay => write!(f, "could not mount an overlay ({detail})"),
            Step::Proc => write!(f, "could not mount /proc"),
            Step::Privileges => write!(f, "could not give up privileges ({detail})"),
            Step::Check => write!(f, "could not change a file in the sandbox ({detail})"),
            Step::Network => write!(f, "could not create a network namespace"),
            Step::Loopback => write!(f, "could not bring up a loopback interface ({detail})"),
            Step::Socket => write!(f, "could not make a place for the Unix socket {detail}"),
        }?;
        write!(f, ": {}", self.errno().desc())
    }
}

/// Says what was being done when a system call failed.
trait Doing<T> {
    fn doing(self, step: Step, detail: impl fmt::Display) -> Result<T, Obstacle>;
}

impl<T> Doing<T> for nix::Result<T> {
    fn doing(self, step: Step, detail: impl fmt::Display) -> Result<T, Obstacle> {
        self.map_err(|errno| Obstacle::new(step, detail, errno))
    }
}

impl<T> Doing<T> for std::io::Result<T> {
    fn doing(self, step: Step, detail: impl fmt::Display) -> Result<T, Obstacle> {
        self.map_err(|error| {
            let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
            Obstacle::new(step, detail, errno)
        })
    }
}
