//! Finds the agent that serves this user with these settings, or starts it.

use std::fs::{self, File};
use std::hash::Hasher;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use etcetera::BaseStrategy;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::geteuid;

use super::wire::FromShim;
use super::{AGENT_WORD, folder, site};
use crate::failure::{ExitCode, Failure};
use crate::settings::{EMPTY_KEY, Resolved, Settings};

/// How often an agent that just ends may be met before we give up.
const TRIES_MAX: u32 = 5;
/// A Unix socket's path has at most 107 bytes on Linux.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// How long an agent may take to listen.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// Whoever serves calls.
pub(super) enum Server {
    /// At this socket, and nowhere else: a run that is under way.
    At(PathBuf),
    /// An agent, started if it isn't there.
    Agent(PathBuf),
}

/// The agent for the settings in force here; none if they name no worker, or leave them out: then
/// with the reason.
pub(super) fn agent() -> Result<Result<Server, Option<&'static str>>, Failure> {
    let Resolved { settings, keyless, .. } = site::settings_here()?;
    if settings.fleet.workers.is_empty() {
        return Ok(Err(keyless.then_some(EMPTY_KEY)));
    }
    Ok(Ok(Server::Agent(socket_path(&settings)?)))
}

impl Server {
    /// Connects and says the first word.
    pub(super) fn call(&self, call: &FromShim) -> Result<UnixStream, Failure> {
        let path = match self {
            Self::At(path) | Self::Agent(path) => path,
        };
        let what = || format!("could not reach the agent at {}", path.display());
        let mut tries = 0;
        loop {
            match connect(path).and_then(|stream| said(stream, call)) {
                Ok(stream) => return Ok(stream),
                Err(error) => {
                    tries += 1;
                    let gone = matches!(
                        error.kind(),
                        io::ErrorKind::NotFound
                            | io::ErrorKind::ConnectionRefused
                            | io::ErrorKind::ConnectionReset
                            | io::ErrorKind::BrokenPipe
                    );
                    if matches!(self, Self::At(_)) || !gone || tries == TRIES_MAX {
                        return Err(Failure::new(ExitCode::Setup, what()).because(error));
                    }
                    start(path)?;
                }
            }
        }
    }
}

/// Waits for the greeting, which an agent that is just ending never gives, and says the call.
fn said(mut stream: UnixStream, call: &FromShim) -> io::Result<UnixStream> {
    let mut greeting = [0];
    match stream.read(&mut greeting)? {
        0 => Err(io::ErrorKind::ConnectionReset.into()),
        _ => call.write(&mut stream).map(|()| stream),
    }
}

fn connect(path: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(path)?;
    let theirs = getsockopt(&stream, PeerCredentials)?;
    if theirs.uid() != geteuid().as_raw() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is another user's"));
    }
    Ok(stream)
}

/// Starts an agent, unless somebody else has done so meanwhile.
fn start(path: &Path) -> Result<(), Failure> {
    let fail = |error: io::Error| {
        Failure::new(ExitCode::Setup, "could not start the agent that keeps workers' connections")
            .because(error)
    };
    let mut options = File::options();
    let lock = options.write(true).create(true).truncate(false).mode(0o600);
    let lock = lock.open(path.with_extension("lock")).map_err(fail)?;
    let _lock =
        Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| fail(errno.into()))?;
    if connect(path).is_ok() {
        return Ok(());
    }
    let program = std::env::current_exe().map_err(fail)?;
    let mut command = Command::new(program);
    for name in site::FOLDER_VARIABLES {
        command.env_remove(name);
    }
    let mut agent = command
        .args(["runner", AGENT_WORD])
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        // Out of reach of the terminal's signals.
        .process_group(0)
        .spawn()
        .map_err(fail)?;
    let mut said = Vec::new();
    if let Some(stdout) = agent.stdout.take() {
        // It closes its stdout when it listens, or ends.
        ready(stdout, &mut said).map_err(fail)?;
    }
    if said == b"ready" {
        return Ok(());
    }
    let _ = agent.kill();
    let _ = agent.wait();
    Err(fail(io::Error::other(String::from_utf8_lossy(&said).into_owned())))
}

fn ready(stdout: std::process::ChildStdout, said: &mut Vec<u8>) -> io::Result<()> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let mut stdout = stdout;
    let timeout = PollTimeout::try_from(START_PATIENCE).unwrap_or(PollTimeout::MAX);
    loop {
        let polled = poll(&mut [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)], timeout)?;
        let mut buffer = [0; 256];
        match if polled == 0 { 0 } else { stdout.read(&mut buffer)? } {
            0 => return Ok(()),
            read => said.extend_from_slice(&buffer[..read]),
        }
    }
}

/// Where the agent for these settings listens: a folder that only this user can enter, a name that
/// depends on the settings and on this executable.
pub(super) fn socket_path(settings: &Settings) -> Result<PathBuf, Failure> {
    let folder = private_folder()?;
    let mut hasher = twox_hash::XxHash64::with_seed(0);
    let Settings { fleet, travel, .. } = settings;
    hasher.write(format!("{fleet:?} {travel:?}").as_bytes());
    hasher.write(env!("CARGO_PKG_VERSION").as_bytes());
    if let Ok(metadata) = std::env::current_exe().and_then(fs::metadata) {
        for number in [metadata.dev(), metadata.ino(), metadata.size()] {
            hasher.write_u64(number);
        }
        hasher.write_i64(metadata.mtime_nsec() ^ metadata.mtime());
    }
    Ok(folder.join(format!("{:016x}", hasher.finish())))
}

/// `$XDG_RUNTIME_DIR/cargo-distest`, else `cargo-distest/runner` in the user's cache folder, else,
/// if that is too long for a socket, one in the temporary folder.
fn private_folder() -> Result<PathBuf, Failure> {
    let absolute = |path: &PathBuf| path.is_absolute();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(absolute);
    let cache = || etcetera::choose_base_strategy().ok().map(|folders| folders.cache_dir());
    let folder = runtime
        .filter(|path| path.is_dir())
        .map(|runtime| runtime.join("cargo-distest"))
        .or_else(|| Some(cache()?.join("cargo-distest").join("runner")));
    let short = |path: &PathBuf| path.as_os_str().len() + 1 + 16 + 5 <= SOCKET_PATH_BYTES_MAX;
    let folder = folder.filter(short).unwrap_or_else(folder::temporary);
    folder::private(folder, "set XDG_RUNTIME_DIR")
}
