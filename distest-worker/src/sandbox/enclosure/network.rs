//! A network of an attempt's own.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::namespaces::enter_user_namespace;
use super::{Doing, Obstacle, Step};

/// The interface that every network namespace has.
const LOOPBACK: &[u8] = b"lo";
/// Where a sysfs shows the interfaces of a network, and where it shows them as devices.
const CLASSES: &str = "/sys/class/net";
const DEVICES: &str = "/sys/devices/virtual/net";

/// Leaves this process's network for a new one, in which there is a loopback interface and nothing
/// else, also no socket of anyone's (nor an abstract Unix one). For this process and all that it
/// starts from now on; what already runs stays where it is. The way back is closed.
///
/// Inside of a sandbox or as root that is one step. An ordinary user elsewhere enters a user
/// namespace first, once, in which other users' files seem to be nobody's. This process must have
/// one thread.
pub(crate) fn enter_private() -> Result<(), Obstacle> {
    match unshare(CloneFlags::CLONE_NEWNET) {
        Err(Errno::EPERM) => {
            enter_user_namespace()?;
            unshare(CloneFlags::CLONE_NEWNET).doing(Step::Network, "")?;
        }
        done => done.doing(Step::Network, "")?,
    }
    let any = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .doing(Step::Loopback, "a socket")?;
    bring_up_loopback(&any).doing(Step::Loopback, "its flags")
}

/// Makes `/sys` name this network's interfaces, for a process with mounts of its own. `before` says
/// whether it does so with those of another network, which then go.
///
/// What a sysfs shows of networks belongs to the one in which it was mounted, so there is a new one
/// below the two folders that tell of interfaces; all else is the machine's, as before. Containers
/// that mask a part of `/sys` don't allow this.
pub(crate) fn show_interfaces(before: bool) -> nix::Result<()> {
    if before {
        for mounted in [DEVICES, CLASSES, CLASSES] {
            umount2(mounted, MntFlags::MNT_DETACH)?;
        }
    }
    let none = None::<&str>;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("sysfs"), CLASSES, Some("sysfs"), flags, none)?;
    // A class has links to its devices, beside it.
    let own = |folder: &str| format!("{CLASSES}{}", folder.trim_start_matches("/sys"));
    mount(Some(own(DEVICES).as_str()), DEVICES, none, MsFlags::MS_BIND, none)
        .inspect_err(|_| _ = umount2(CLASSES, MntFlags::MNT_DETACH))?;
    mount(Some(own(CLASSES).as_str()), CLASSES, none, MsFlags::MS_BIND, none).inspect_err(|_| {
        for mounted in [DEVICES, CLASSES] {
            let _ = umount2(mounted, MntFlags::MNT_DETACH);
        }
    })
}

/// As netdevice(7) has it. The kernel gives a loopback interface its addresses when it comes up.
#[expect(unsafe_code, reason = "interfaces are changed by ioctl")]
fn bring_up_loopback(any: &OwnedFd) -> io::Result<()> {
    // SAFETY: all zeroes is a request with an empty name and no flags.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(LOOPBACK) {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request is one of an interface's flags, and lives through the call.
    let result = unsafe { libc::ioctl(any.as_raw_fd(), libc::SIOCSIFFLAGS, &request) };
    Errno::result(result).map(drop).map_err(io::Error::from)
}
