//! The socket by which a worker's own user talks to it: `distest-worker invite`.
//!
//! It lies in a folder of the user's state that nobody else can enter, and answers this user and
//! root only.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use super::Reception;
use crate::identity::Permission;
use crate::message;

/// How long either side may take to say its word.
const TIME: Duration = Duration::from_secs(5);
/// A Unix socket's path has at most 107 bytes on Linux.
const SOCKET_PATH_BYTES_MAX: usize = 107;
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
}

/// A worker's socket, removed when dropped.
pub(super) struct Control {
    listener: UnixListener,
    path: PathBuf,
    reception: Arc<Reception>,
    answering: Mutex<JoinSet<()>>,
}

impl Control {
    /// Makes it, in this user's state folder.
    pub(super) fn open(reception: &Arc<Reception>) -> io::Result<Self> {
        let folder = folder().ok_or_else(|| io::Error::other("this user has no home"))?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        // It may have been there, with other permissions.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
        let path = folder.join(format!("{}.sock", std::process::id()));
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path).map_err(|error| {
            let hint = "set XDG_STATE_HOME, here and for `invite`, to a folder with a shorter path";
            match path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
                true => io::Error::other(format!("{} is too long\nhint: {hint}", path.display())),
                false => error,
            }
        })?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
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

/// Asks the worker of this user that is called `name`, or the only one there is.
///
/// # Errors
/// In words, with what to do.
pub async fn ask(name: Option<&str>, ask: &Ask) -> Result<Answer, String> {
    let mut found = Vec::new();
    for path in sockets() {
        if let Ok(Answer::Name(told)) = talk(&path, &Ask::Name {}).await
            && name.is_none_or(|name| name == told)
        {
            found.push((told, path));
        }
    }
    match &found[..] {
        [(_, path)] => {
            talk(path, ask).await.map_err(|error| format!("the worker did not answer: {error}"))
        }
        [] => Err(match name {
            Some(name) => format!("no worker of this user on this machine is called `{name}`"),
            None => "no worker of this user runs on this machine\n\
                     hint: start one with: distest-worker serve --listen IP:PORT"
                .to_owned(),
        }),
        several => {
            let names: Vec<&str> = several.iter().map(|(name, _)| name.as_str()).collect();
            Err(format!(
                "several workers run here\nhint: choose one with --name: {}",
                names.join(", ")
            ))
        }
    }
}

/// `$XDG_STATE_HOME/distest/workers`, else below `~/.local/state`.
fn folder() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let state = state.filter(|path| path.is_absolute());
    let state = state.or_else(|| Some(std::env::home_dir()?.join(".local/state")))?;
    Some(state.join("distest").join("workers"))
}

fn sockets() -> Vec<PathBuf> {
    let entries = folder().and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten();
    let paths = entries.flatten().map(|entry| entry.path());
    let mut paths: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|it| it == "sock")).collect();
    paths.sort();
    paths
}

async fn talk(path: &Path, ask: &Ask) -> io::Result<Answer> {
    let mut stream = match UnixStream::connect(path).await {
        Ok(stream) => stream,
        Err(error) => {
            if error.kind() == io::ErrorKind::ConnectionRefused {
                // Left by a worker that was killed.
                let _ = fs::remove_file(path);
            }
            return Err(error);
        }
    };
    let talk = async {
        message::send(&mut stream, ask).await?;
        message::receive(&mut stream, MESSAGE_BYTES_MAX).await
    };
    tokio::time::timeout(TIME, talk).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()))
}

async fn answer(mut stream: UnixStream, reception: &Reception) -> io::Result<()> {
    let answer = match message::receive(&mut stream, MESSAGE_BYTES_MAX).await? {
        Ask::Name {} => Answer::Name(reception.worker().config().name.clone()),
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
