//! Starting one process with exactly what its request says, and nothing of ours.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollTimeout, poll};
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::signal::SigSet;
use nix::unistd::{Pid, chdir};

use super::wire::{Spawn, SpawnStep, texts};
use crate::sandbox::enclosure;

/// How long an executable may stay "busy": open for writing in a process that another thread of
/// the worker is just starting, and that has not yet reached its exec.
const TEXT_BUSY_PATIENCE: Duration = Duration::from_secs(1);

/// Starts a process with `descriptors` as its 0, 1, 2 and on, as leader of a new process group,
/// with an empty signal mask and default dispositions.
///
/// This is posix_spawn itself rather than [`std::process::Command`] because the environment can
/// then be used as it lies in the request. The working directory is the zygote's own for the time
/// being, which needs no more than one call. With `fenced`, it can signal nobody but what it starts
/// itself, not even this process.
pub(super) fn launch(
    spawn: &Spawn,
    descriptors: Vec<OwnedFd>,
    fenced: bool,
) -> Result<Pid, (SpawnStep, Errno)> {
    let receive = |errno| (SpawnStep::Receive, errno);
    let text = |bytes| CStr::from_bytes_with_nul(bytes).map_err(|_| receive(Errno::EINVAL));
    let (program, cwd) = (text(&spawn.program)?, text(&spawn.cwd)?);
    let (args, env) = (texts(&spawn.args), texts(&spawn.env));
    let descriptors = lift(descriptors).map_err(receive)?;
    chdir(cwd).map_err(|errno| (SpawnStep::ChangeFolder, errno))?;
    let start = || {
        let (actions, attributes) = prepare(&descriptors).map_err(receive)?;
        let patient_until = Instant::now() + TEXT_BUSY_PATIENCE;
        loop {
            match posix_spawn(program, &actions, &attributes, &args, &env) {
                Err(Errno::ETXTBSY) if Instant::now() < patient_until => {
                    // No event tells when the last writer closes it.
                    let _ = poll(&mut [], PollTimeout::from(5_u8));
                }
                other => return other.map_err(|errno| (SpawnStep::Execute, errno)),
            }
        }
    };
    if fenced { behind_a_fence(start) } else { start() }
}

/// In a thread of its own, because a fence is a thread's and for good.
fn behind_a_fence(
    start: impl FnOnce() -> Result<Pid, (SpawnStep, Errno)> + Send,
) -> Result<Pid, (SpawnStep, Errno)> {
    std::thread::scope(|scope| {
        let fenced = || {
            enclosure::fence().map_err(|errno| (SpawnStep::Fence, errno))?;
            start()
        };
        let thread = std::thread::Builder::new().spawn_scoped(scope, fenced);
        let no_thread = |_| (SpawnStep::Fence, Errno::EAGAIN);
        thread.map_err(no_thread)?.join().unwrap_or(Err((SpawnStep::Fence, Errno::EIO)))
    })
}

fn prepare(descriptors: &[OwnedFd]) -> nix::Result<(PosixSpawnFileActions, PosixSpawnAttr)> {
    let mut actions = PosixSpawnFileActions::init()?;
    for (number, descriptor) in (0..).zip(descriptors) {
        actions.add_dup2(descriptor.as_raw_fd(), number)?;
    }
    let mut attributes = PosixSpawnAttr::init()?;
    attributes.set_flags(
        PosixSpawnFlags::POSIX_SPAWN_SETPGROUP
            | PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK
            | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF,
    )?;
    // All are default already; saying so spares glibc a question about each.
    attributes.set_sigdefault(&SigSet::all())?;
    attributes.set_pgroup(Pid::from_raw(0))?;
    attributes.set_sigmask(&SigSet::empty())?;
    Ok((actions, attributes))
}

/// Moves descriptors out of the range that they will be copied to.
fn lift(descriptors: Vec<OwnedFd>) -> nix::Result<Vec<OwnedFd>> {
    let beyond = RawFd::try_from(descriptors.len()).map_err(|_| Errno::EMFILE)?;
    descriptors
        .into_iter()
        .map(|descriptor| {
            if descriptor.as_raw_fd() >= beyond {
                return Ok(descriptor);
            }
            duplicate_from(&descriptor, beyond)
        })
        .collect()
}

#[expect(unsafe_code, reason = "fcntl answers a bare number")]
fn duplicate_from(descriptor: &OwnedFd, lowest: RawFd) -> nix::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    let number = fcntl(descriptor, FcntlArg::F_DUPFD_CLOEXEC(lowest))?;
    // SAFETY: fcntl has just made it; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Gives up what the worker's own parents left it, once, so that no test inherits it: ignored and
/// handled signals, descriptors other than the standard three.
#[expect(unsafe_code, reason = "dispositions and descriptors of the whole process")]
pub(super) fn forget_inherited() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: the process has one thread, and the default dispositions run no code of ours.
        // SIGKILL, SIGSTOP and the C library's own signals refuse, which is as well.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: called first of all, when nothing of ours owns a descriptor above 2. Old kernels
    // (before 5.9) lack the call; what is inherited there stays.
    unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32) };
}
