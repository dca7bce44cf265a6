//! The ends of child processes, with what they consumed.

use std::io;
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::protocol::{Exit, Usage};

/// What [`wait_any`] found.
pub(super) enum Waited {
    /// A child has ended. Its usage includes the descendants that it had reaped itself.
    Ended { pid: Pid, exit: Exit, usage: Usage },
    /// There are children, but none that has ended.
    StillRunning,
    /// There is no child, and so, in a subreaper, no descendant.
    NoChildren,
}

/// Reaps one child that has ended, without waiting.
#[expect(unsafe_code, reason = "only wait4 tells usage per child")]
pub(super) fn wait_any() -> io::Result<Waited> {
    let mut status = 0;
    // SAFETY: all zeroes is a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are valid for the call.
    let pid = unsafe { libc::wait4(-1, &raw mut status, libc::WNOHANG, &raw mut usage) };
    match Errno::result(pid) {
        Ok(0) => Ok(Waited::StillRunning),
        Ok(pid) => Ok(Waited::Ended {
            pid: Pid::from_raw(pid),
            exit: if libc::WIFSIGNALED(status) {
                Exit::Signal(libc::WTERMSIG(status))
            } else {
                Exit::Code(libc::WEXITSTATUS(status))
            },
            usage: Usage {
                user: duration(usage.ru_utime),
                system: duration(usage.ru_stime),
                // Kibibytes, on Linux.
                memory_bytes: u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024,
            },
        }),
        Err(Errno::ECHILD) => Ok(Waited::NoChildren),
        Err(Errno::EINTR) => Ok(Waited::StillRunning),
        Err(errno) => Err(errno.into()),
    }
}

fn duration(time: libc::timeval) -> Duration {
    let micros = i128::from(time.tv_sec) * 1_000_000 + i128::from(time.tv_usec);
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}
