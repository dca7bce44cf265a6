//! The worker's end of one zygote.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use tempfile::TempDir;
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::protocol::Network;
use crate::sandbox::changes::Written;
use crate::sandbox::enclosure::Enclosure;
use crate::sandbox::left::Follower;
use crate::sandbox::level::Level;
use crate::store::remove_all;
use crate::zygote::ZygoteProgram;
use crate::zygote::deadline::Deadline;
use crate::zygote::processes::{descendants, kill_all};
use crate::zygote::wire::{self, Answer, Request};

/// How long a zygote that has been told to leave may take: it gives up by itself before that.
const LEAVE_PATIENCE: Duration =
    crate::zygote::CLEAR_PATIENCE.saturating_add(Duration::from_secs(2));

/// A zygote that has said nothing for this long is asked whether it still lives.
const ASK_AFTER: Duration = Duration::from_secs(5);
/// How long it may take to answer that: a busy machine included.
const SIGN_PATIENCE: Duration = Duration::from_secs(10);

/// A running zygote.
pub(super) struct Helper {
    socket: AsyncFd<OwnedFd>,
    child: Child,
    buffer: Box<[u8]>,
    /// The sandbox that it is in.
    inside: Option<Inside>,
    /// Private once an attempt was started in a network of its own: there is no way back.
    pub(super) network: Network,
    life: Life,
    /// Folders of the sandbox that it was started in.
    own: Option<TempDir>,
}

/// What is known of whether a zygote still answers.
enum Life {
    /// It said something then.
    Heard(Instant),
    /// It was asked for a sign then, and has said nothing since.
    Asked(Instant),
}

/// A sandbox, from outside.
pub(super) struct Inside {
    /// Attempts that share what they write have the same number.
    pub(super) layer: u64,
    /// What attempts write into the client's files, where that lies apart from them.
    pub(super) written: Option<Arc<Written>>,
    /// Sees what each attempt leaves there.
    pub(super) follower: Follower,
    /// Not for another attempt.
    pub(super) spent: bool,
}

/// A socket for a zygote, in which it finds the deadline.
fn socket_to(deadline: &Deadline) -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    let request = wire::encode(&Request::Deadline)?;
    wire::send_request(ours.as_fd(), &request, &[deadline.memory().as_raw_fd()])?;
    Ok((ours, theirs))
}

impl Helper {
    /// Starts a zygote. It needn't be up yet to be sent to.
    pub(super) fn start(program: &ZygoteProgram, deadline: &Deadline) -> io::Result<Self> {
        let (ours, theirs) = socket_to(deadline)?;
        Self::started(ours, program.command(theirs))
    }

    /// Starts one where it can enter this sandbox: in it, if it can't by itself.
    pub(super) fn start_for(
        program: &ZygoteProgram,
        enclosure: Option<&Enclosure>,
        deadline: &Deadline,
    ) -> io::Result<Self> {
        let inside = enclosure.filter(|enclosure| enclosure.level == Level::Bubblewrap);
        let Some(enclosure) = inside else { return Self::start(program, deadline) };
        let (ours, theirs) = socket_to(deadline)?;
        let spawn = |command| Self::started(ours, command);
        let (helper, own) = program.start_inside(theirs, enclosure, spawn)?;
        Ok(Self { own: Some(own), ..helper })
    }

    fn started(ours: OwnedFd, command: std::process::Command) -> io::Result<Self> {
        crate::pipes::set_nonblocking(&ours)?;
        let child = Command::from(command).spawn()?;
        let buffer = vec![0; wire::ANSWER_BYTES_MAX].into();
        let life = Life::Heard(Instant::now());
        let network = Network::Host;
        Ok(Self { socket: watch(ours)?, child, buffer, inside: None, network, life, own: None })
    }

    /// Sends a request; its descriptors are copied and can be closed then.
    pub(super) async fn send(&self, request: &Request, descriptors: &[RawFd]) -> io::Result<()> {
        let data = wire::encode(request)?;
        loop {
            match wire::send_request(self.socket.as_fd(), &data, descriptors) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.socket.writable().await?.clear_ready();
                }
                done => return done,
            }
        }
    }

    /// Waits for the next answer. May be dropped and called again. An error says that there will
    /// be none.
    pub(super) async fn receive(&mut self) -> io::Result<Answer> {
        Ok(self.receive_all().await?.0)
    }

    /// The same with the descriptors that come with it.
    pub(super) async fn receive_all(&mut self) -> io::Result<(Answer, Vec<OwnedFd>)> {
        loop {
            // A sign of life, whenever it comes, is no answer to anything else.
            match self.receive_any().await? {
                (Answer::Alive, _) => {}
                answer => return Ok(answer),
            }
        }
    }

    async fn receive_any(&mut self) -> io::Result<(Answer, Vec<OwnedFd>)> {
        loop {
            let mut ready = self.socket.readable().await?;
            let received =
                ready.try_io(|socket| wire::receive_answer(socket.as_fd(), &mut self.buffer));
            match received {
                Ok(Ok((0, _))) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(Ok((length, descriptors))) => {
                    self.life = Life::Heard(Instant::now());
                    return Ok((wire::decode(&self.buffer[..length])?, descriptors));
                }
                // Said once when it died with unread requests; what it had answered comes after.
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }

    /// Waits for a first sign of life. An error says that none will come.
    pub(super) async fn up(&mut self) -> io::Result<Answer> {
        // A zygote that is gone is heard of.
        let _ = self.send(&Request::AreYouAlive, &[]).await;
        Ok(self.receive_any().await?.0)
    }

    /// When to call [`Helper::check`] next, while something is expected of it.
    pub(super) fn next_check(&self) -> Instant {
        match self.life {
            Life::Heard(at) => at + ASK_AFTER,
            Life::Asked(at) => at + SIGN_PATIENCE,
        }
    }

    /// Asks for a sign of life if it has said nothing for a while. An error says that none came.
    pub(super) async fn check(&mut self) -> Result<(), String> {
        let now = Instant::now();
        match self.life {
            Life::Heard(at) if now >= at + ASK_AFTER => {
                self.life = Life::Asked(now);
                // A zygote that is gone is heard of.
                let _ = self.send(&Request::AreYouAlive, &[]).await;
                Ok(())
            }
            Life::Asked(at) if now >= at + SIGN_PATIENCE => Err("it doesn't answer".to_owned()),
            Life::Heard(_) | Life::Asked(_) => Ok(()),
        }
    }

    /// Whether attempts with this layer can run in it as it is.
    pub(super) fn is_inside(&self, layer: u64) -> bool {
        self.inside.as_ref().is_some_and(|inside| inside.layer == layer && !inside.spent)
    }

    /// Whether it has ever been in a sandbox: it can't enter another.
    pub(super) fn has_entered(&self) -> bool {
        self.inside.is_some()
    }

    /// The sandbox that it is in.
    pub(super) fn inside(&mut self) -> Option<&mut Inside> {
        self.inside.as_mut()
    }

    /// Makes it enter a sandbox. An error, in words, is the end of it.
    pub(super) async fn enter(
        &mut self,
        enclosure: &Arc<Enclosure>,
        layer: u64,
    ) -> Result<(), String> {
        let request = Request::Enter(Box::new(Enclosure::clone(enclosure)));
        self.send(&request, &[]).await.map_err(|error| format!("could not ask it: {error}"))?;
        match self.receive_all().await {
            Ok((Answer::Entered, mut descriptors)) => {
                let written = descriptors.pop().map(|written| Arc::new(Written::new(written)));
                let follower = written.as_deref().map(Follower::of).unwrap_or_default();
                self.inside = Some(Inside { layer, written, follower, spent: false });
                Ok(())
            }
            Ok((Answer::CouldNotEnter(obstacle), _)) => Err(format!("no sandbox: {obstacle}")),
            Ok((answer, _)) => Err(format!("it said {answer:?} when told to enter a sandbox")),
            Err(error) => Err(format!("it ended on entering a sandbox: {error}")),
        }
    }

    /// Lets the zygote kill what it started and leave; kills it if it doesn't.
    pub(super) async fn end(self) {
        let Self { socket, mut child, own, .. } = self;
        drop(socket);
        if tokio::time::timeout(LEAVE_PATIENCE, child.wait()).await.is_err() {
            let left = child.id().map(as_pid).map(descendants).unwrap_or_default();
            kill_all(&left);
            let _ = child.kill().await;
        }
        discard(own).await;
    }

    /// Makes an end of a zygote that died or doesn't answer and, if it still exists, of all that
    /// descends from it. Tells how it ended.
    pub(super) async fn bury(self) -> String {
        let Self { socket, mut child, own, .. } = self;
        let left = child.id().map(as_pid).map(descendants).unwrap_or_default();
        let _ = child.start_kill();
        kill_all(&left);
        drop(socket);
        let end = match tokio::time::timeout(LEAVE_PATIENCE, child.wait()).await {
            Ok(Ok(status)) => describe(status),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it can't be killed".into(),
        };
        discard(own).await;
        end
    }
}

/// Removes what a zygote had for itself: tests may have left much there, and closed folders.
async fn discard(own: Option<TempDir>) {
    let Some(path) = own.map(TempDir::keep) else { return };
    // What can't be removed now goes with the session's folder.
    let _ = tokio::task::spawn_blocking(move || remove_all(&path)).await;
}

#[expect(unsafe_code, reason = "tokio wants to be sure that nobody else closes it")]
fn watch(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` always names the same open socket, and is closed only when dropped.
    Ok(unsafe { AsyncFd::register(socket)? })
}

fn describe(status: ExitStatus) -> String {
    format!("it ended with {status}")
}

fn as_pid(id: u32) -> i32 {
    i32::try_from(id).unwrap_or(i32::MAX)
}
