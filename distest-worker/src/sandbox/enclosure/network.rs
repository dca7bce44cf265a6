//! A network of an attempt's own.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::namespaces::enter_user_namespace;
use super::{Doing, Obstacle, Step};

/// The interface that every network namespace has.
const LOOPBACK: &[u8] = b"lo";

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
