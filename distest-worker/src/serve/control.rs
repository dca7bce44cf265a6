//! The socket by which a worker's own user talks to it: `distest-worker invite`.
//!
//! It lies in a folder of the user's state that nobody else can enter, and answers this user and
//! root only.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

mod which;

use self::which::Candidate;
pub use self::which::{At, Which};
use super::Reception;
use crate::identity::Permission;
use crate::log::Complaint;
use crate::message;

/// How long either side may take to say its word.
const TIME: Duration = Duration::from_secs(5);
/// A Unix socket's path has at most 107 bytes on Linux.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// What sockets' names end with; and until somebody listens there.
const SOCKET: &str = "sock";
const BEGUN: &str = "new";
/// The most bytes of one message.
const MESSAGE_BYTES_MAX: u32 = 64 * 1024;

/// What the user asks.
#[derive(Debug, Serialize, Deserialize)]
pub enum Ask {
    /// What is this worker called?
    Name {},
    /// Open an invitation.
    Invite {
        /// What it permits.
        permissions: Vec<Permission>,
        /// For how long, in seconds.
        valid_s: u64,
        /// Where the client will dial, if not where the worker says: `HOST:PORT`.
        address: Option<String>,
    },
    /// Where do others reach this worker?
    Address {},
}

/// What the worker answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// Its name.
    Name(String),
    /// An invitation's text.
    Invitation(String),
    /// It can't, and why.
    Refused(String),
    /// Where others reach it, once it listens: `HOST:PORT`.
    Address(Option<String>),
}

/// A worker's socket, removed when dropped.
pub(super) struct Control {
    listener: UnixListener,
    path: PathBuf,
    reception: Arc<Reception>,
    answering: Mutex<JoinSet<()>>,
}

impl Control {
    /// Makes it, in this user's state folder, which is cleared of what killed workers left.
    pub(super) fn open(reception: &Arc<Reception>) -> Result<Self, Complaint> {
        let folder = folder().ok_or_else(|| Complaint::from("this user has no home"))?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        // It may have been there, with other permissions.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
        prune(&folder);
        let path = folder.join(format!("{}.{SOCKET}", std::process::id()));
        let begun = path.with_extension(BEGUN);
        let _ = fs::remove_file(&begun);
        let listener = UnixListener::bind(&begun).map_err(|error| {
            let hint = "set XDG_STATE_HOME, here and for `invite`, to a folder with a shorter path";
            match begun.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
                true => Complaint::from(format!("{} is too long", path.display())).hint(hint),
                false => error.into(),
            }
        })?;
        fs::set_permissions(&begun, fs::Permissions::from_mode(0o600))?;
        // It listens by now: whoever is refused at a socket of that name knows that nobody is there.
        fs::rename(&begun, &path)?;
        let (reception, answering) = (Arc::clone(reception), Mutex::default());
        Ok(Self { listener, path, reception, answering })
    }

    /// Takes the next connection; never ends if there is no socket.
    pub(super) async fn serve(this: Option<&Self>) {
        let Some(this) = this else { return std::future::pending().await };
        let Ok((stream, _)) = this.listener.accept().await else {
            // Out of descriptors: nobody waits long for this socket.
            return tokio::time::sleep(TIME).await;
        };
        let us = nix::unistd::geteuid().as_raw();
        if !stream.peer_cred().is_ok_and(|peer| peer.uid() == us || peer.uid() == 0) {
            return;
        }
        let reception = Arc::clone(&this.reception);
        let mut answering = this.answering.lock().unwrap_or_else(PoisonError::into_inner);
        while answering.try_join_next().is_some() {}
        answering.spawn(async move {
            // Whoever asked has gone if this fails.
            let _ = tokio::time::timeout(TIME, answer(stream, &reception)).await;
        });
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Asks the only worker of this user that is meant.
///
/// # Errors
/// In words, with what to do.
pub async fn ask(which: &Which, ask: &Ask) -> Result<Answer, Complaint> {
    let folder = folder();
    folder.iter().for_each(|folder| prune(folder));
    let mut all = Vec::new();
    for path in sockets(folder.as_deref()) {
        all.extend(Candidate::at(path).await);
    }
    let candidate = which.choose(&all)?;
    talk(&candidate.path, ask)
        .await
        .map_err(|error| format!("the worker did not answer: {error}").into())
}

/// `$XDG_STATE_HOME/distest/workers`, else below `~/.local/state`.
fn folder() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let state = state.filter(|path| path.is_absolute());
    let state = state.or_else(|| Some(std::env::home_dir()?.join(".local/state")))?;
    Some(state.join("distest").join("workers"))
}

fn sockets(folder: Option<&Path>) -> Vec<PathBuf> {
    let entries = folder.and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten();
    let paths = entries.flatten().map(|entry| entry.path());
    let mut paths: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|it| it == SOCKET)).collect();
    paths.sort();
    paths
}

/// Removes sockets at which nobody listens: their workers were killed.
fn prune(folder: &Path) {
    for path in sockets(Some(folder)) {
        if is_dead(&path) {
            let _ = fs::remove_file(&path);
        }
    }
}

/// Whether nobody listens there. Waits for nobody.
fn is_dead(path: &Path) -> bool {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let connected = socket(AddressFamily::Unix, SockType::Stream, flags, None)
        .and_then(|ours| connect(ours.as_raw_fd(), &UnixAddr::new(path)?));
    connected == Err(Errno::ECONNREFUSED)
}

async fn talk(path: &Path, ask: &Ask) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(path).await?;
    let talk = async {
        message::send(&mut stream, ask).await?;
        message::receive(&mut stream, MESSAGE_BYTES_MAX).await
    };
    tokio::time::timeout(TIME, talk).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()))
}

async fn answer(mut stream: UnixStream, reception: &Reception) -> io::Result<()> {
    let answer = match message::receive(&mut stream, MESSAGE_BYTES_MAX).await? {
        Ask::Name {} => Answer::Name(reception.worker().config().name.clone()),
        Ask::Address {} => Answer::Address(reception.address().map(str::to_owned)),
        Ask::Invite { permissions, valid_s, address } => {
            let permissions = permissions.into_iter().collect();
            match reception.invite(permissions, Duration::from_secs(valid_s), address) {
                Ok(invitation) => Answer::Invitation(invitation.to_string()),
                Err(why) => Answer::Refused(why),
            }
        }
    };
    message::send(&mut stream, &answer).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_at_which_nobody_listens_go() {
        let folder = tempfile::tempdir().unwrap();
        let [dead, alive, begun] =
            ["1.sock", "2.sock", "3.new"].map(|name| folder.path().join(name));
        let listen = |path: &Path| std::os::unix::net::UnixListener::bind(path).unwrap();
        let _there = listen(&alive);
        drop((listen(&dead), listen(&begun)));
        prune(folder.path());
        assert!(!dead.exists() && alive.exists() && begun.exists());
    }
}
