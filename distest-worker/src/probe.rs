//! Finding out how truly this machine can recreate clients' paths.
//!
//! What the system says about itself is no answer: containers, security modules and limits refuse
//! single steps in their own ways. So the whole sequence is carried out, in a helper process, with
//! a root whose parents don't exist, up to changing a file in it and to a network of its own.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::geteuid;

use crate::sandbox::enclosure::{Enclosure, Obstacle, Step, can_fence};
use crate::sandbox::host::{Host, Shortfall};
use crate::sandbox::level::Level;
use crate::zygote::ZygoteProgram;
use crate::zygote::wire::{
    ANSWER_BYTES_MAX, Answer, Request, decode, encode, receive_answer, send_request,
};

/// How long one attempt may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of what a helper says why it ended.
const LAST_WORDS_BYTES_MAX: u64 = 4096;

/// Sets the host's level to the best that works, and says why nothing better does. Nothing better
/// than `most` is tried. Also finds out about networks. `scratch` is a folder of the worker's own.
pub fn probe(host: &mut Host, zygote: &ZygoteProgram, scratch: &Path, most: Level) {
    let mut failures = Vec::new();
    let mut network = None;
    for level in Level::ALL.into_iter().filter(|level| *level <= most) {
        host.level = level;
        if !level.is_enclosed() {
            break;
        }
        match attempt(host, zygote, scratch) {
            Ok(tried) => {
                network = Some(tried);
                break;
            }
            Err(failure) => failures.push((level, failure)),
        }
    }
    let consequences = consequences(host.level, can_fence());
    host.shortfall = shortfall(&failures).or_else(|| chosen(most, consequences));
    if let Some(Shortfall { reason, .. }) = &mut host.shortfall {
        reason.push_str(consequences);
    }
    host.private_network = network.unwrap_or_else(|| private_network(zygote));
}

/// Whether an attempt that is in no sandbox can have a network of its own; else why not.
///
/// # Errors
/// What stands in the way.
pub fn private_network(zygote: &ZygoteProgram) -> Result<(), Shortfall> {
    let answers = ask(|socket| zygote.command(socket).spawn(), vec![Request::TryNetwork]);
    network_answer(answers.map(|mut answers| answers.pop()))
}

fn network_answer(answer: io::Result<Option<Answer>>) -> Result<(), Shortfall> {
    let (reason, hint) = match answer {
        Ok(Some(Answer::Entered)) => return Ok(()),
        Ok(Some(Answer::CouldNotEnter(obstacle))) => (obstacle.to_string(), hint(&obstacle)),
        Ok(other) => (format!("the helper process failed: it said {other:?}"), None),
        Err(error) => (format!("the helper process failed: {error}"), None),
    };
    Err(Shortfall { reason, hint })
}

/// Why a level doesn't work.
enum Failure {
    /// Only somebody else could.
    NotOurs(&'static str),
    /// A step of it failed.
    Obstacle(Obstacle),
    /// The helper process was of no use.
    Helper(io::Error),
}

/// Enters a sandbox of the host's level and leaves the network in it. Answers how the latter went.
fn attempt(
    host: &Host,
    zygote: &ZygoteProgram,
    scratch: &Path,
) -> Result<Result<(), Shortfall>, Failure> {
    match (host.level, geteuid().is_root()) {
        (Level::Root, false) => return Err(Failure::NotOurs("only root could")),
        (Level::Bubblewrap, true) => return Err(Failure::NotOurs("it is for ordinary users")),
        _ => {}
    }
    let folder = tempfile::Builder::new().prefix("probe-").tempdir_in(scratch);
    let folder = folder.map_err(Failure::Helper)?;
    let enclosure = example(host, folder.path()).map_err(Failure::Helper)?;
    let requests = vec![Request::Enter(Box::new(enclosure.clone())), Request::TryNetwork];
    let mut own = None;
    let start = |socket| match host.level {
        Level::Bubblewrap => {
            let spawn = |mut command: Command| command.stderr(Stdio::piped()).spawn();
            let (child, folders) = zygote.start_inside(socket, &enclosure, spawn)?;
            own = Some(folders);
            Ok(child)
        }
        _ => zygote.command(socket).spawn(),
    };
    let mut answers = ask(start, requests).map_err(Failure::Helper)?.into_iter();
    match answers.next() {
        Some(Answer::Entered) => Ok(network_answer(Ok(answers.next()))),
        Some(Answer::CouldNotEnter(obstacle)) => Err(Failure::Obstacle(obstacle)),
        other => Err(Failure::Helper(io::Error::other(format!("it said {other:?}")))),
    }
}

/// A sandbox with one root, neither of whose folders exists here.
fn example(host: &Host, folder: &Path) -> io::Result<Enclosure> {
    let root = PathBuf::from(format!("/distest-probe-{}/root", std::process::id()));
    let (mount_point, lower) = (folder.join("mount"), folder.join("lower"));
    let below = lower.join(root.strip_prefix("/").unwrap_or(&root));
    fs::create_dir_all(&mount_point)?;
    fs::create_dir_all(&below)?;
    fs::write(below.join("file"), "?")?;
    let check = Some(root.join("file"));
    Ok(Enclosure {
        level: host.level,
        mount_point,
        lower,
        roots: vec![root],
        hidden: host.hidden.clone(),
        shown: host.shown.clone(),
        home: host.home.clone(),
        sockets: Vec::new(),
        writes_bytes_max: host.writes_bytes_max,
        check,
    })
}

/// What a helper process answers, up to the first request that it can't fulfil.
fn ask(
    start: impl FnOnce(OwnedFd) -> io::Result<Child>,
    requests: Vec<Request>,
) -> io::Result<Vec<Answer>> {
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    let patience = TimeVal::milliseconds(PATIENCE.as_millis().try_into().unwrap_or(i64::MAX));
    setsockopt(&ours, sockopt::ReceiveTimeout, &patience)?;
    let mut child = start(theirs)?;
    let converse = || {
        let mut answers = Vec::new();
        let mut buffer = vec![0; ANSWER_BYTES_MAX];
        for request in requests {
            send_request(ours.as_fd(), &encode(&request)?, &[])?;
            let answer = match receive_answer(ours.as_fd(), &mut buffer)? {
                (0, _) => return Err(io::ErrorKind::UnexpectedEof.into()),
                (length, _) => decode(&buffer[..length])?,
            };
            let done = answer != Answer::Entered;
            answers.push(answer);
            if done {
                break;
            }
        }
        Ok(answers)
    };
    let answers: io::Result<Vec<Answer>> = converse();
    // It leaves when its socket closes; one that doesn't answer is not waited for.
    drop(ours);
    if answers.is_err() {
        let _ = child.kill();
    }
    child.wait()?;
    answers.map_err(|error| last_words(&mut child).unwrap_or(error))
}

/// What a process said why it ended, if anybody listened.
fn last_words(child: &mut Child) -> Option<io::Error> {
    let mut told = Vec::new();
    child.stderr.take()?.take(LAST_WORDS_BYTES_MAX).read_to_end(&mut told).ok()?;
    let told = String::from_utf8_lossy(&told);
    let last = told.lines().last()?.trim();
    Some(io::Error::other(last.to_owned()))
}

/// What to tell of the levels that don't work: the best one's obstacle counts.
fn shortfall(failures: &[(Level, Failure)]) -> Option<Shortfall> {
    let telling = failures.iter().find(|(_, failure)| !matches!(failure, Failure::NotOurs(_)));
    let (level, failure) = telling.or_else(|| failures.first())?;
    let (reason, hint) = match failure {
        Failure::NotOurs(why) => ((*why).to_owned(), None),
        Failure::Obstacle(obstacle) => (obstacle.to_string(), hint(obstacle)),
        Failure::Helper(error) => (format!("the helper process failed: {error}"), None),
    };
    Some(Shortfall { reason: format!("{level}: {reason}"), hint })
}

/// What to tell of a level that was chosen, and not for want of a better one, if something comes of it.
fn chosen(most: Level, consequences: &str) -> Option<Shortfall> {
    let reason = format!("nothing better is tried with --sandbox {}", most.name());
    let hint = Some("start the worker without --sandbox".to_owned());
    (!consequences.is_empty()).then_some(Shortfall { reason, hint })
}

/// What comes of a level beside that paths are recreated otherwise.
fn consequences(level: Level, can_fence: bool) -> &'static str {
    match (level, can_fence) {
        (Level::Namespaces | Level::Root | Level::Bubblewrap, _) => "",
        (Level::Mounts, true) => "; leak detection: partial",
        (Level::Mounts, false) => {
            "; leak detection: partial; tests can signal this user's processes (from Linux 6.12 on, \
             Landlock prevents that)"
        }
        (Level::SamePath | Level::Variables, _) => {
            "; leak detection: partial; tests can reach all that is this user's, the worker's own \
             files and processes included"
        }
    }
}

/// What an administrator can do about an obstacle.
fn hint(obstacle: &Obstacle) -> Option<String> {
    let setting = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let is = |path: &str, value: &str| setting(path).as_deref() == Some(value);
    explain(obstacle, &is).map(str::to_owned)
}

/// `is` tells whether a file of `/proc/sys` holds a value.
fn explain(obstacle: &Obstacle, is: &dyn Fn(&str, &str) -> bool) -> Option<&'static str> {
    let denied = matches!(obstacle.errno(), Errno::EPERM | Errno::EACCES);
    match (obstacle.step, obstacle.errno()) {
        (Step::UserNamespace | Step::Namespaces, Errno::ENOSPC) => Some(
            "user namespaces are limited here: sudo sysctl -w user.max_user_namespaces=15000 \
             (and user.max_mnt_namespaces, user.max_pid_namespaces)",
        ),
        (Step::Network, Errno::ENOSPC) => Some(
            "network namespaces are limited here: sudo sysctl -w user.max_net_namespaces=15000",
        ),
        (Step::Network, Errno::EINVAL | Errno::ENOSYS) => {
            Some("this kernel was built without network namespaces (CONFIG_NET_NS)")
        }
        (Step::UserNamespace, Errno::EINVAL | Errno::ENOSYS) => {
            Some("this kernel was built without user namespaces (CONFIG_USER_NS)")
        }
        _ if denied && is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") => Some(
            "AppArmor restricts user namespaces: sudo sysctl -w \
             kernel.apparmor_restrict_unprivileged_userns=0, or allow them for the worker alone: \
             put `abi <abi/4.0>, include <tunables/global> profile distest-worker \
             /path/to/distest-worker flags=(unconfined) { userns, }` into \
             /etc/apparmor.d/distest-worker and run sudo apparmor_parser -r on it",
        ),
        (Step::UserNamespace, Errno::EPERM)
            if is("/proc/sys/kernel/unprivileged_userns_clone", "0") =>
        {
            Some(
                "ordinary users may not create user namespaces here: sudo sysctl -w \
                 kernel.unprivileged_userns_clone=1",
            )
        }
        (Step::Proc, _) if denied => Some(
            "a container that masks /proc allows no other: start it with \
             --security-opt systempaths=unconfined (Docker) or --security-opt unmask=ALL (Podman)",
        ),
        (
            Step::UserNamespace
            | Step::Namespaces
            | Step::Root
            | Step::Bind
            | Step::Overlay
            | Step::Network
            | Step::Loopback,
            _,
        ) if denied => Some(
            "in a container: start it with --security-opt seccomp=unconfined \
                 --security-opt apparmor=unconfined, or with --cap-add SYS_ADMIN",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(step: Step, errno: Errno, settings: &[(&str, &str)], expected: Option<&str>) {
        let obstacle = Obstacle { step, detail: String::new(), errno: errno as i32 };
        let is = |path: &str, value: &str| settings.contains(&(path, value));
        let told = explain(&obstacle, &is);
        match expected {
            Some(word) => assert!(told.is_some_and(|told| told.contains(word)), "{told:?}"),
            None => assert_eq!(told, None),
        }
    }

    #[test]
    fn hints_name_what_stands_in_the_way() {
        let apparmor = ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1");
        let debian = ("/proc/sys/kernel/unprivileged_userns_clone", "0");
        let (user, root) = (Step::UserNamespace, Step::Root);
        check(user, Errno::ENOSPC, &[], Some("user.max_user_namespaces"));
        check(user, Errno::EPERM, &[debian], Some("unprivileged_userns_clone=1"));
        check(Step::UserMap, Errno::EACCES, &[apparmor], Some("apparmor_parser"));
        check(root, Errno::EACCES, &[apparmor], Some("apparmor_restrict_unprivileged_userns=0"));
        check(user, Errno::EPERM, &[], Some("seccomp=unconfined"));
        check(Step::Proc, Errno::EPERM, &[], Some("systempaths=unconfined"));
        check(Step::Network, Errno::EPERM, &[], Some("seccomp=unconfined"));
        check(Step::Network, Errno::ENOSPC, &[], Some("user.max_net_namespaces"));
        check(Step::Check, Errno::EOVERFLOW, &[], None);
    }

    #[test]
    fn what_comes_of_a_level_is_told() {
        for level in Level::ALL {
            let told = |can_fence| consequences(level, can_fence);
            assert_eq!(told(true).contains("leak detection: partial"), !level.has_pid_namespace());
            let chosen = chosen(level, told(true));
            assert_eq!(chosen.is_some(), !told(true).is_empty(), "{level:?}");
            let hints = chosen.is_none_or(|it| it.hint.is_some_and(|it| it.contains("--sandbox")));
            assert!(hints, "{level:?}");
            assert_eq!(told(false).contains("can signal"), level == Level::Mounts);
            assert_eq!(told(true).contains("all that is this user's"), !level.is_enclosed());
        }
    }

    #[test]
    fn the_best_levels_obstacle_is_told_and_not_that_root_could() {
        let denied = Obstacle { step: Step::Proc, detail: String::new(), errno: libc::EPERM };
        let failures = [
            (Level::Namespaces, Failure::Obstacle(denied)),
            (Level::Root, Failure::NotOurs("only root could")),
        ];
        let told = shortfall(&failures).unwrap();
        assert_eq!(told.reason, "namespaces: could not mount /proc: Operation not permitted");
        assert!(told.hint.is_some());
        assert_eq!(shortfall(&[]), None);
    }
}
