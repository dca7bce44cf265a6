//! Starting one process with exactly what its request says, and nothing of ours.

use std::cell::Cell;
use std::ffi::{CStr, c_char};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollTimeout, poll};
use nix::sched::{CloneFlags, clone};
use nix::sys::ptrace;
use nix::sys::signal::SigSet;
use nix::unistd::{Pid, chdir, setpgid};

use super::template::Templates;
use super::wire::{Spawn, SpawnStep, texts};
use crate::sandbox::enclosure;

/// How long an executable may stay "busy": open for writing in a process that another thread of
/// the worker is just starting, and that has not yet reached its exec.
const TEXT_BUSY_PATIENCE: Duration = Duration::from_secs(1);

/// Bytes of stack for what runs between clone and exec: a handful of system calls.
const STACK_BYTES: usize = 32 * 1024;

/// Starts processes.
pub(super) struct Launcher {
    /// Where a new process runs until its exec, while this one waits for that.
    stack: Box<[u8]>,
    pub(super) templates: Templates,
}

/// What a process is to be: what it may be copied from goes by this.
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "for templates"))]
pub(super) struct Start<'a> {
    pub(super) spawn: &'a Spawn,
    pub(super) program: &'a CStr,
    pub(super) env: &'a [&'a CStr],
    /// They become 0, 1, 2 and on.
    pub(super) descriptors: &'a [OwnedFd],
    /// What keeps it from signalling others.
    pub(super) fence: Option<&'a OwnedFd>,
}

/// How a process begins.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum As {
    /// As leader of a process group of its own.
    Leader,
    /// In this process's group, and stopped, until this thread lets it go on.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "for templates"))]
    Traced,
}

impl Launcher {
    pub(super) fn new() -> Self {
        Self { stack: vec![0; STACK_BYTES].into(), templates: Templates::default() }
    }

    /// Starts a process with `descriptors` as its 0, 1, 2 and on, as leader of a new process group,
    /// with an empty signal mask and default dispositions, which this process has already
    /// ([`forget_inherited`]).
    ///
    /// The environment is used as it lies in the request. The working directory is the zygote's own
    /// for the time being, which needs no more than one call. With `fenced`, it can signal nobody
    /// but what it starts itself, not even this process.
    pub(super) fn launch(
        &mut self,
        spawn: &Spawn,
        descriptors: Vec<OwnedFd>,
        fenced: bool,
    ) -> Result<Pid, (SpawnStep, Errno)> {
        let receive = |errno| (SpawnStep::Receive, errno);
        let text = |bytes| CStr::from_bytes_with_nul(bytes).map_err(|_| receive(Errno::EINVAL));
        let (program, cwd) = (text(&spawn.program)?, text(&spawn.cwd)?);
        let env = texts(&spawn.env);
        let descriptors = lift(descriptors).map_err(receive)?;
        chdir(cwd).map_err(|errno| (SpawnStep::ChangeFolder, errno))?;
        let fence = if fenced { Some(enclosure::make_fence().map_err(at_fence)?) } else { None };
        let start =
            Start { spawn, program, env: &env, descriptors: &descriptors, fence: fence.as_ref() };
        let stack = &mut self.stack;
        if let Some(pid) = self.templates.start(&start, stack) {
            return Ok(pid);
        }
        let args = texts(&spawn.args);
        let numbered: Vec<_> = descriptors.iter().zip(0..).collect();
        let mut start = || {
            let patient_until = Instant::now() + TEXT_BUSY_PATIENCE;
            loop {
                match execute(stack, program, &numbered, &args, &env, As::Leader) {
                    Err(Errno::ETXTBSY) if Instant::now() < patient_until => {
                        // No event tells when the last writer closes it.
                        let _ = poll(&mut [], PollTimeout::from(5_u8));
                    }
                    other => return other,
                }
            }
        };
        match fence {
            Some(fence) => behind(&fence, start).map_err(at_fence)?,
            None => start(),
        }
        .map_err(|errno| (SpawnStep::Execute, errno))
    }
}

/// Has a process that is scheduled as most are, and all that it starts from now on, interrupt nothing
/// when it wakes (`SCHED_BATCH`): who starts a thread and waits for it need not first be interrupted
/// by it. Where that can't be, all goes on as it was.
#[expect(unsafe_code, reason = "no crate here wraps sched_setscheduler")]
pub(super) fn make_patient(process: Pid) {
    let param = libc::sched_param { sched_priority: 0 };
    // SAFETY: neither call keeps anything, and the second reads what `param` points to.
    unsafe {
        if libc::sched_getscheduler(process.as_raw()) == libc::SCHED_OTHER {
            libc::sched_setscheduler(process.as_raw(), libc::SCHED_BATCH, &raw const param);
        }
    }
}

fn at_fence(errno: Errno) -> (SpawnStep, Errno) {
    (SpawnStep::Fence, errno)
}

/// A new process that executes `program` at once, as posix_spawn would start it, on a stack that is
/// there already and without going through all signals twice: of a test that does nothing that is
/// some 2 % of its cost.
#[expect(unsafe_code, reason = "two processes in one memory, until one has its own")]
pub(super) fn execute(
    stack: &mut [u8],
    program: &CStr,
    descriptors: &[(&OwnedFd, RawFd)],
    args: &[&CStr],
    env: &[&CStr],
    begins: As,
) -> nix::Result<Pid> {
    let (args, env) = (pointers(args), pointers(env));
    // Written by the new process, read by this one, which stands still meanwhile.
    let failure = Cell::new(None);
    let begin = || {
        let prepared = prepare(descriptors, begins);
        failure.set(Some(prepared.err().unwrap_or_else(|| {
            // SAFETY: all are lists of NUL-terminated texts that end in a null pointer. It returns
            // only if it has failed.
            unsafe { libc::execve(program.as_ptr(), args.as_ptr(), env.as_ptr()) };
            Errno::last()
        })));
        // Ends the new process alone: clone's own code turns it into _exit.
        127
    };
    let flags = CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK;
    // SAFETY: the caller's thread waits until the new process has called execve or has ended, so
    // nobody else uses this stack and what is borrowed here; what it does until then makes system
    // calls, allocates nothing and takes no lock.
    let pid = unsafe { clone(Box::new(begin), stack, flags, Some(libc::SIGCHLD)) }?;
    match failure.get() {
        None => Ok(pid),
        Some(errno) => {
            // It has ended: nobody else is to hear of it.
            let _ = nix::sys::wait::waitpid(pid, None);
            Err(errno)
        }
    }
}

/// What the new process does to itself.
fn prepare(descriptors: &[(&OwnedFd, RawFd)], begins: As) -> nix::Result<()> {
    for (descriptor, number) in descriptors {
        become_descriptor(descriptor, *number)?;
    }
    match begins {
        As::Leader => setpgid(Pid::from_raw(0), Pid::from_raw(0))?,
        As::Traced => ptrace::traceme()?,
    }
    SigSet::empty().thread_set_mask()
}

#[expect(unsafe_code, reason = "the number is the new process's own to give")]
fn become_descriptor(descriptor: &OwnedFd, number: RawFd) -> nix::Result<()> {
    // SAFETY: descriptors of the new process are copies: none of this one's is closed by it. Unlike
    // its original the copy outlives exec.
    Errno::result(unsafe { libc::dup2(descriptor.as_raw_fd(), number) }).map(drop)
}

/// As the kernel takes a list of texts.
fn pointers(texts: &[&CStr]) -> Vec<*const c_char> {
    texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
}

/// What it makes there is behind the fence. In a thread of its own, because a fence is a thread's
/// and for good. The outer error is the fence's.
pub(super) fn behind<T: Send>(
    fence: &OwnedFd,
    make: impl FnOnce() -> nix::Result<T> + Send,
) -> nix::Result<nix::Result<T>> {
    std::thread::scope(|scope| {
        let fenced = || enclosure::go_behind(fence).map(|()| make());
        let thread = std::thread::Builder::new().spawn_scoped(scope, fenced);
        thread.map_err(|_| Errno::EAGAIN)?.join().unwrap_or(Err(Errno::EIO))
    })
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
pub(super) fn duplicate_from(descriptor: &OwnedFd, lowest: RawFd) -> nix::Result<OwnedFd> {
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
