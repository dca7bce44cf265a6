//! Pipes to and from processes that the runtime waits for, but not all the time.

use std::io;
use std::os::fd::OwnedFd;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;
use tokio::net::unix::pipe;

/// A pipe whose reading end, ours, doesn't block: `(ours, the process's)`.
///
/// # Errors
/// Whatever the system reports, such as too many open files.
pub fn output() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    set_nonblocking(&reader)?;
    Ok((reader, writer))
}

/// A pipe whose writing end, ours, doesn't block: `(ours, the process's)`.
///
/// # Errors
/// Whatever the system reports, such as too many open files.
pub fn input() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    set_nonblocking(&writer)?;
    Ok((writer, reader))
}

/// Waits until there is something to read, or the end. A pipe is watched only meanwhile: to watch
/// it while it rests would be to be woken by every line.
///
/// # Errors
/// It can't be waited for.
pub async fn readable(pipe: &OwnedFd) -> io::Result<()> {
    pipe::Receiver::from_owned_fd_unchecked(pipe.try_clone()?)?.readable().await
}

pub(crate) fn set_nonblocking(descriptor: &OwnedFd) -> io::Result<()> {
    fcntl(descriptor, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}
