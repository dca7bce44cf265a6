//! Leaving this machine's namespaces.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getegid, geteuid, pipe};

use super::{Doing, Enclosure, Obstacle, Step};

/// Enters new namespaces; see [`super::enter`] for who returns.
pub(super) fn enter(enclosure: &Enclosure, leave_behind: impl FnOnce()) -> Result<(), Obstacle> {
    if enclosure.level.has_user_namespace() {
        enter_user_namespace()?;
    }
    // Shared memory and queues of System V outlive processes, and would be everyone's.
    let mut flags = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC;
    if enclosure.level.has_pid_namespace() {
        flags |= CloneFlags::CLONE_NEWPID;
    }
    unshare(flags).doing(Step::Namespaces, "mount, ipc and pid")?;
    if enclosure.level.has_pid_namespace() {
        become_first_process(leave_behind)?;
    }
    Ok(())
}

/// Enters a user namespace in which everyone is who they were: an ordinary user alone, root with
/// all users that it may speak for.
pub(super) fn enter_user_namespace() -> Result<(), Obstacle> {
    let (user, group) = (geteuid(), getegid());
    if user.is_root() {
        return enter_with_all_users();
    }
    unshare(CloneFlags::CLONE_NEWUSER).doing(Step::UserNamespace, "")?;
    write("/proc/self/setgroups", "deny")?;
    write("/proc/self/uid_map", &format!("{user} {user} 1"))?;
    write("/proc/self/gid_map", &format!("{group} {group} 1"))
}

/// Only a process outside may map more users than its own, so a child stays behind to do that.
fn enter_with_all_users() -> Result<(), Obstacle> {
    let users = identity("/proc/self/uid_map")?;
    let groups = identity("/proc/self/gid_map")?;
    let own = Pid::this();
    let (may_map, tell) = pipe().doing(Step::UserMap, "a pipe")?;
    let child = fork_once().doing(Step::Fork, "")?;
    let Some(child) = child else {
        drop(tell);
        // Ended by the parent's word, or by its end.
        let mapped = wait_for_word(may_map.as_fd()) && map(own, &users, &groups).is_ok();
        std::process::exit(i32::from(!mapped));
    };
    let entered = unshare(CloneFlags::CLONE_NEWUSER);
    if entered.is_ok() {
        let _ = nix::unistd::write(&tell, b"!");
    }
    drop(tell);
    let status = waitpid(child, None).doing(Step::UserMap, "waiting")?;
    entered.doing(Step::UserNamespace, "")?;
    match status {
        WaitStatus::Exited(_, 0) => Ok(()),
        // Not allowed to speak for everyone: then for ourselves alone.
        _ => {
            write("/proc/self/setgroups", "deny")?;
            write("/proc/self/uid_map", "0 0 1")?;
            write("/proc/self/gid_map", "0 0 1")
        }
    }
}

fn map(process: Pid, users: &str, groups: &str) -> io::Result<()> {
    fs::write(format!("/proc/{process}/uid_map"), users)?;
    fs::write(format!("/proc/{process}/gid_map"), groups)
}

/// A map from all ids that there are here to themselves, as proc_pid_uid_map(5) writes it.
fn identity(path: &str) -> Result<String, Obstacle> {
    let text = fs::read_to_string(path).doing(Step::UserMap, path)?;
    let mut map = String::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        if let (Some(first), Some(count)) = (words.next(), words.nth(1)) {
            map.push_str(&format!("{first} {first} {count}\n"));
        }
    }
    Ok(map)
}

fn wait_for_word(pipe: BorrowedFd<'_>) -> bool {
    loop {
        match nix::unistd::read(pipe, &mut [0]) {
            Err(Errno::EINTR) => {}
            read => return read == Ok(1),
        }
    }
}

/// Starts pid 1 of the new namespace and returns in it. It ends when this process does, and this
/// process when it does.
fn become_first_process(leave_behind: impl FnOnce()) -> Result<(), Obstacle> {
    let (alive, parent): (OwnedFd, OwnedFd) = pipe().doing(Step::Fork, "")?;
    match fork_once().doing(Step::Fork, "")? {
        None => {
            drop(parent);
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).doing(Step::Fork, "")?;
            // It may have died before it was to be told of.
            if nix::unistd::getppid() != Pid::from_raw(0) || is_closed(alive.as_fd()) {
                return Err(Obstacle::new(Step::Fork, "", Errno::ESRCH));
            }
            Ok(())
        }
        Some(child) => {
            drop(alive);
            leave_behind();
            let code = loop {
                match waitpid(child, None) {
                    Ok(WaitStatus::Exited(_, code)) => break code,
                    Ok(WaitStatus::Signaled(..)) => break 1,
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(_) => break 1,
                }
            };
            drop(parent);
            std::process::exit(code);
        }
    }
}

/// Whether nobody holds the other end any more.
fn is_closed(pipe: BorrowedFd<'_>) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut watched = [PollFd::new(pipe, PollFlags::POLLIN)];
    let polled = poll(&mut watched, PollTimeout::ZERO);
    polled.is_ok_and(|ready| ready > 0)
}

#[expect(unsafe_code, reason = "fork is safe in a process with one thread only")]
fn fork_once() -> nix::Result<Option<Pid>> {
    // SAFETY: zygotes have one thread.
    match unsafe { fork()? } {
        ForkResult::Child => Ok(None),
        ForkResult::Parent { child } => Ok(Some(child)),
    }
}

fn write(path: &str, text: &str) -> Result<(), Obstacle> {
    fs::write(path, text).doing(Step::UserMap, path)
}
