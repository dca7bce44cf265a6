//! Listening where an attempt looks for the client's services.

use std::fs::{self, Permissions};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::protocol::Forward;
use crate::sandbox::enclosure::Entered;

/// What an attempt's forwards take in the sandbox: gone when this is dropped.
#[derive(Default)]
pub(super) struct Places(Vec<PathBuf>);

/// Sockets that listen, each with the place of its forward in the list.
pub(super) type Listeners = Vec<(u16, OwnedFd)>;

/// Listens for an attempt, in the network that this process is in. Unix sockets only in a sandbox:
/// elsewhere the machine's own paths are in sight, which are not ours.
pub(super) fn listen(
    forwards: &[Forward],
    sandbox: Option<&Entered>,
) -> Result<(Listeners, Places), Errno> {
    let (mut listeners, mut places) = (Listeners::new(), Places::default());
    for (number, forward) in (0..).zip(forwards) {
        let sockets = match (forward, sandbox) {
            (Forward::Port(port), _) => listen_at_port(*port),
            (Forward::Socket(path), Some(sandbox)) => {
                let path = sandbox.socket_place(path.as_path());
                // Noted first: what is half made goes, too.
                places.0.push(path.to_owned());
                listen_at_path(path).map(|listener| vec![listener])
            }
            (Forward::Socket(_), None) => Ok(Vec::new()),
        };
        let sockets =
            sockets.map_err(|error| error.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw))?;
        listeners.extend(sockets.into_iter().map(|socket| (number, socket)));
    }
    Ok((listeners, places))
}

/// At both loopback addresses, or at the older one where there is no other.
fn listen_at_port(port: u16) -> io::Result<Vec<OwnedFd>> {
    let bind = |address: IpAddr| TcpListener::bind((address, port)).map(OwnedFd::from);
    let mut listeners = vec![bind(Ipv4Addr::LOCALHOST.into())?];
    match bind(Ipv6Addr::LOCALHOST.into()) {
        Ok(listener) => listeners.push(listener),
        Err(error)
            if matches!(
                error.raw_os_error().map(Errno::from_raw),
                Some(Errno::EADDRNOTAVAIL | Errno::EAFNOSUPPORT)
            ) => {}
        Err(error) => return Err(error),
    }
    Ok(listeners)
}

/// Whatever lies there in the sandbox was left by an attempt.
fn listen_at_path(path: &Path) -> io::Result<OwnedFd> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    // Who may use the service is the service's to say.
    fs::set_permissions(path, Permissions::from_mode(0o777))?;
    Ok(listener.into())
}

impl Drop for Places {
    fn drop(&mut self) {
        for path in &self.0 {
            // An attempt may have removed it.
            let _ = fs::remove_file(path);
        }
    }
}
