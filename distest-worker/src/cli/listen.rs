//! Where a worker listens: at an address, or at the socket that systemd hands over.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::str::FromStr;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt,
};

use crate::log::Complaint;
use crate::upgrade::{HANDED_SOCKET, LEFT_SOCKET};

/// How it is asked for.
const SYSTEMD: &str = "systemd";

/// Where to listen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ListenAt {
    /// There; port 0 picks a free one.
    Address(SocketAddr),
    /// At the socket that this process was started with.
    Handed,
}

impl FromStr for ListenAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == SYSTEMD {
            return Ok(Self::Handed);
        }
        let address = text.parse().map_err(|error| format!("{error}: expected IP:PORT"))?;
        Ok(Self::Address(address))
    }
}

/// The one socket that systemd handed to this process.
///
/// # Errors
/// In words, with what to do: there is none, there are several, or it is no TCP socket that listens.
pub(super) fn handed() -> Result<TcpListener, Complaint> {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let (pid, count) = (variable("LISTEN_PID"), variable("LISTEN_FDS"));
    meant_for_us(&pid, &count, std::process::id())?;
    listener().map_err(|why| why.after("could not use the socket that systemd hands over"))
}

/// The socket at which the executable listened that this process was before, if it was another.
///
/// # Errors
/// In words: it is none.
pub(super) fn left() -> Result<Option<TcpListener>, Complaint> {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    if variable("LISTEN_FDNAMES") != LEFT_SOCKET || variable("LISTEN_PID") != our_pid() {
        return Ok(None);
    }
    let could_not = "could not go on with the socket of the old executable";
    listener().map(Some).map_err(|why| why.after(could_not))
}

fn our_pid() -> String {
    std::process::id().to_string()
}

fn meant_for_us(pid: &str, count: &str, us: u32) -> Result<(), Complaint> {
    let hint = "start it by distest-worker.socket, or name an address: --listen IP:PORT";
    let not = |what: String| Err(Complaint::from(what).hint(hint));
    if pid.parse() != Ok(us) || count.is_empty() {
        return not("systemd hands no socket to this process".to_owned());
    }
    match count {
        "1" => Ok(()),
        _ => not(format!("systemd hands {count} sockets to this process, and it takes one")),
    }
}

fn listener() -> Result<TcpListener, Complaint> {
    #[expect(unsafe_code, reason = "a descriptor that was inherited has no owner yet")]
    // SAFETY: who started this process says that it is its own, and nothing else here has it: this
    // is called once, before anything else was opened on purpose.
    let socket = unsafe { OwnedFd::from_raw_fd(HANDED_SOCKET) };
    let told = |errno: nix::Error| errno.desc().to_owned();
    // What is started later must not inherit it.
    fcntl(&socket, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(told)?;
    let name: SockaddrStorage = getsockname(socket.as_raw_fd()).map_err(told)?;
    let internet = matches!(name.family(), Some(AddressFamily::Inet | AddressFamily::Inet6));
    let listens = getsockopt(&socket, sockopt::AcceptConn);
    if !internet || listens != Ok(true) {
        return Err(
            Complaint::from("it is no TCP socket that listens").hint("use ListenStream=PORT")
        );
    }
    let listener = TcpListener::from(socket);
    listener.set_nonblocking(true).map_err(|error| error.to_string())?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_or_what_systemd_hands_over() {
        let parse = |text: &str| text.parse::<ListenAt>();
        assert_eq!(parse("systemd"), Ok(ListenAt::Handed));
        assert_eq!(parse("[::1]:7"), Ok(ListenAt::Address("[::1]:7".parse().unwrap())));
        assert!(parse("host").is_err_and(|error| error.contains("IP:PORT")));
    }

    #[test]
    fn a_socket_for_somebody_else_is_not_taken() {
        assert_eq!(meant_for_us("7", "1", 7), Ok(()));
        for (pid, count) in [("8", "1"), ("", ""), ("7", ""), ("x", "1"), ("7", "2"), ("7", "0")] {
            let told = meant_for_us(pid, count, 7).unwrap_err();
            assert!(told.hint.unwrap().contains("--listen IP:PORT"), "{}", told.why);
        }
    }
}
