//! Carries connections of attempts to services of the client's.
//!
//! An attempt's zygote listens where the attempt looks; here those connections are taken in and
//! carried over the link ([`Client::forward_open`] and its like). What an attempt writes goes in
//! pieces of which few are unanswered; what the service writes is asked for piece by piece. When an
//! attempt has ended, what it wrote before still goes to the service, as it would through a kernel.
//!
//! [`Client::forward_open`]: crate::protocol::Client::forward_open

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::accept::accept_again;
use crate::executor::Listener;
use crate::link::{self, DEADLINE, DEADLINE_MAX, Pipeline};
use crate::protocol::{
    AttemptId, CHUNK_BYTES_MAX, ClientClient, FORWARD_PIECES_MAX, FORWARDED_MAX, FORWARDS_MAX,
    Forward, ForwardedId, ForwardedPiece, NOTES_MAX, Network, Refusal, RefusalKind, SessionSpec,
};
use crate::sandbox::Sandbox;
use crate::sandbox::level::Level;

/// How long the service may take for what an attempt wrote before it ended.
pub(super) const LINGER: Duration = Duration::from_secs(10);
/// Connections of one attempt at once: beyond that the client refuses all, so it isn't asked.
const CONNECTIONS_MAX: usize = 2 * FORWARDED_MAX;
/// A buffer with less room than this gives way to a new one.
const ROOM_BYTES_MIN: usize = 16 * 1024;

/// A session's forwards, and the connections of its attempts. Dropped, all of them end.
pub(super) struct Forwarding {
    forwards: Vec<Forward>,
    client: ClientClient,
    /// For the next connection.
    number: Arc<AtomicU64>,
    running: BTreeMap<AttemptId, Served>,
    /// One for each attempt with connections, until the last of them is done.
    tasks: JoinSet<()>,
}

/// An attempt that looks for services.
struct Served {
    /// Closed when the attempt ends.
    _running: watch::Sender<()>,
    met: Met,
}

/// Why connections of an attempt came to nothing, each reason once.
type Met = Arc<Mutex<BTreeSet<String>>>;

impl Forwarding {
    /// An error says what the client can't mean.
    pub(super) fn new(spec: &SessionSpec, client: ClientClient) -> Result<Self, Refusal> {
        let invalid = |message| Err(Refusal::new(RefusalKind::Invalid, message));
        if spec.forwards.len() > FORWARDS_MAX {
            return invalid(format!("could not forward more than {FORWARDS_MAX} services"));
        }
        for forward in &spec.forwards {
            if let Err(expected) = forward.check() {
                return invalid(format!("could not forward {forward}: {expected}"));
            }
        }
        let (number, running) = (Arc::new(AtomicU64::new(0)), BTreeMap::new());
        let tasks = JoinSet::new();
        Ok(Self { forwards: spec.forwards.clone(), client, number, running, tasks })
    }

    /// The paths of Unix sockets among them.
    pub(super) fn sockets(&self) -> Vec<PathBuf> {
        let socket = |forward: &Forward| match forward {
            Forward::Port(_) => None,
            Forward::Socket(path) => Some(path.as_path().to_owned()),
        };
        self.forwards.iter().filter_map(socket).collect()
    }

    /// Whether all of them can be there for attempts in this sandbox.
    pub(super) fn can_be_in(&self, sandbox: &Sandbox) -> Result<(), Refusal> {
        let in_sight = sandbox.level().is_none_or(Level::is_enclosed);
        match self.sockets().first() {
            Some(socket) if !in_sight => {
                let socket = socket.display();
                let message = format!("could not show {socket} to an attempt: there is no sandbox");
                Err(Refusal::new(RefusalKind::Incompatible, message))
            }
            _ => Ok(()),
        }
    }

    /// What an attempt with this network finds.
    pub(super) fn seen_in(&self, network: Network) -> Vec<Forward> {
        match network {
            Network::Host => Vec::new(),
            Network::Private => self.forwards.clone(),
        }
    }

    /// An attempt runs, and looks for services at these sockets.
    pub(super) fn begin(&mut self, attempt: AttemptId, listeners: Vec<Listener>) {
        // What is done needs no place any more.
        while self.tasks.try_join_next().is_some() {}
        if listeners.is_empty() {
            return;
        }
        let (running, ended) = watch::channel(());
        let met = Met::default();
        let served = Served { _running: running, met: Arc::clone(&met) };
        self.running.insert(attempt, served);
        let (client, number) = (self.client.clone(), Arc::clone(&self.number));
        let carrier = Carrier { client, number, met };
        self.tasks.spawn(carrier.serve(listeners, ended));
    }

    /// It has ended. Answers why connections of it came to nothing.
    pub(super) fn end(&mut self, attempt: AttemptId) -> Vec<String> {
        let Some(served) = self.running.remove(&attempt) else { return Vec::new() };
        let mut met = served.met.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *met).into_iter().collect()
    }

    /// Waits until all that ended attempts wrote is with the client, or can't be.
    pub(super) async fn settle(&mut self) {
        self.running.clear();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// What carries connections needs.
#[derive(Clone)]
struct Carrier {
    client: ClientClient,
    number: Arc<AtomicU64>,
    met: Met,
}

impl Carrier {
    /// Takes in an attempt's connections until it ends, and carries them to their ends.
    async fn serve(self, listeners: Vec<Listener>, mut ended: watch::Receiver<()>) {
        let listening = listeners.into_iter().map(Listening::new);
        // What can't be listened to is closed, which the attempt sees.
        let listening: Vec<Listening> = listening.filter_map(Result::ok).collect();
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                Some(_) = connections.join_next() => {}
                _ = ended.changed() => break,
                accepted = accept(&listening), if connections.len() < CONNECTIONS_MAX => {
                    match accepted {
                        Ok((forward, stream)) => {
                            let carried = self.clone().carry(forward, stream, ended.clone());
                            connections.spawn(carried);
                        }
                        // Of descriptors there will be more, but nothing tells when.
                        Err(_) => accept_again().await,
                    }
                }
            }
        }
        // It may have connected, written and ended before we looked.
        for listening in listening {
            for (forward, stream) in listening.waiting() {
                if connections.len() < CONNECTIONS_MAX {
                    connections.spawn(self.clone().carry(forward, stream, ended.clone()));
                }
            }
        }
        while connections.join_next().await.is_some() {}
    }

    /// Before the attempt can see what came of it.
    fn note(&self, why: String) {
        let mut met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        if met.len() < NOTES_MAX {
            met.insert(why);
        }
    }

    /// Carries one connection.
    async fn carry(self, forward: Forward, stream: Stream, mut ended: watch::Receiver<()>) {
        let id = ForwardedId(self.number.fetch_add(1, Ordering::Relaxed));
        let open = Open { client: self.client.clone(), id };
        let opened = self.client.forward_open(link::context(DEADLINE), id, forward).await;
        match opened {
            Ok(Ok(())) => {}
            Ok(Err(refusal)) => {
                self.note(refusal.message);
                return stream.reset();
            }
            Err(_) => return stream.reset(),
        }
        let (from, to) = stream.split();
        let (mut up, mut down) = (pin!(open.up(from)), pin!(open.down(to)));
        let (mut up_is_open, mut down_is_open) = (true, true);
        while up_is_open || down_is_open {
            tokio::select! {
                done = &mut up, if up_is_open => {
                    up_is_open = false;
                    if done.is_err() { break }
                }
                done = &mut down, if down_is_open => {
                    down_is_open = false;
                    if done.is_err() { break }
                }
                _ = ended.changed() => {
                    if up_is_open {
                        let _ = tokio::time::timeout(LINGER, up).await;
                    }
                    break;
                }
            }
        }
    }
}

/// A connection that the client knows of, until this is dropped.
struct Open {
    client: ClientClient,
    id: ForwardedId,
}

/// A connection is of no use any more: the link, the service or the attempt is gone.
struct Broken;

impl Open {
    /// Brings what the attempt writes to the service.
    async fn up(&self, mut from: impl AsyncRead + Unpin) -> Result<(), Broken> {
        let mut calls = Pipeline::new(FORWARD_PIECES_MAX);
        let mut buffer = BytesMut::new();
        loop {
            let data = read(&mut from, &mut buffer).await.map_err(|_| Broken)?;
            let last = data.is_empty();
            let piece = ForwardedPiece { connection: self.id, data };
            // A service takes the time that it needs.
            let call = self.client.forward_write(link::context(DEADLINE_MAX), piece);
            if let Some(answer) = calls.push(call).await {
                taken(answer)?;
            }
            if last {
                break;
            }
        }
        while let Some(answer) = calls.next().await {
            taken(answer)?;
        }
        Ok(())
    }

    /// Brings what the service writes to the attempt.
    async fn down(&self, mut to: impl AsyncWrite + Unpin) -> Result<(), Broken> {
        loop {
            let read = self.client.forward_read(link::context(DEADLINE_MAX), self.id).await;
            let Ok(Ok(data)) = read else { return Err(Broken) };
            if data.is_empty() {
                return to.shutdown().await.map_err(|_| Broken);
            }
            to.write_all(&data).await.map_err(|_| Broken)?;
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let (client, id) = (self.client.clone(), self.id);
        // Without a runtime there is no link any more. A client that is gone has forgotten it.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move { client.forward_close(link::context(DEADLINE), id).await });
        }
    }
}

fn taken<E>(answer: Result<Result<(), Refusal>, E>) -> Result<(), Broken> {
    answer.map_err(|_| Broken)?.map_err(|_| Broken)
}

/// The next bytes; none at the end.
async fn read(from: &mut (impl AsyncRead + Unpin), buffer: &mut BytesMut) -> io::Result<Bytes> {
    if buffer.capacity() < ROOM_BYTES_MIN {
        buffer.reserve(CHUNK_BYTES_MAX);
    }
    // A message must not be longer, whatever room there is.
    (&mut *from).take(CHUNK_BYTES_MAX as u64).read_buf(buffer).await?;
    Ok(buffer.split().freeze())
}

/// Where connections for a service come in.
enum Listening {
    Port(Forward, TcpListener),
    Socket(Forward, UnixListener),
}

impl Listening {
    fn new(Listener { forward, socket }: Listener) -> io::Result<Self> {
        match forward {
            Forward::Port(_) => {
                let listener = std::net::TcpListener::from(socket);
                listener.set_nonblocking(true)?;
                Ok(Self::Port(forward, TcpListener::from_std(listener)?))
            }
            Forward::Socket(_) => {
                let listener = std::os::unix::net::UnixListener::from(socket);
                listener.set_nonblocking(true)?;
                Ok(Self::Socket(forward, UnixListener::from_std(listener)?))
            }
        }
    }

    fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<(Forward, Stream)>> {
        match self {
            Self::Port(forward, listener) => listener
                .poll_accept(context)
                .map_ok(|(stream, _)| (forward.clone(), Stream::Tcp(stream))),
            Self::Socket(forward, listener) => listener
                .poll_accept(context)
                .map_ok(|(stream, _)| (forward.clone(), Stream::Unix(stream))),
        }
    }

    /// Connections that nobody has taken in yet, when no more can come.
    fn waiting(self) -> Vec<(Forward, Stream)> {
        let mut found = Vec::new();
        match self {
            Self::Port(forward, listener) => {
                let Ok(listener) = listener.into_std() else { return found };
                while let Ok((stream, _)) = listener.accept() {
                    let stream = stream.set_nonblocking(true).map(|()| stream);
                    let stream = stream.and_then(TcpStream::from_std).map(Stream::Tcp);
                    found.extend(stream.map(|stream| (forward.clone(), stream)));
                }
            }
            Self::Socket(forward, listener) => {
                let Ok(listener) = listener.into_std() else { return found };
                while let Ok((stream, _)) = listener.accept() {
                    let stream = stream.set_nonblocking(true).map(|()| stream);
                    let stream = stream.and_then(UnixStream::from_std).map(Stream::Unix);
                    found.extend(stream.map(|stream| (forward.clone(), stream)));
                }
            }
        }
        found
    }
}

/// The next connection at any of them.
async fn accept(listening: &[Listening]) -> io::Result<(Forward, Stream)> {
    poll_fn(|context| {
        let mut polled = listening.iter().map(|one| one.poll_accept(context));
        polled.find(Poll::is_ready).unwrap_or(Poll::Pending)
    })
    .await
}

/// A connection of an attempt's.
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// Ends it so that the attempt sees an error, not an end. It was connected before anybody could
    /// know that there is nothing to connect to, so it can't be told in the usual way.
    fn reset(self) {
        if let Self::Tcp(stream) = self {
            let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
            // Without it the attempt sees an end.
            let _ = setsockopt(&stream, sockopt::Linger, &at_once);
        }
    }

    fn split(self) -> (Box<dyn AsyncRead + Send + Unpin>, Box<dyn AsyncWrite + Send + Unpin>) {
        match self {
            Self::Tcp(stream) => {
                // It only costs time if it fails.
                let _ = stream.set_nodelay(true);
                let (from, to) = stream.into_split();
                (Box::new(from), Box::new(to))
            }
            Self::Unix(stream) => {
                let (from, to) = stream.into_split();
                (Box::new(from), Box::new(to))
            }
        }
    }
}
