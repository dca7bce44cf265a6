//! Serves connections that tests make to services of this machine's.
//!
//! A worker gets what was declared to it and nothing else, whatever it asks for: this is the only
//! place that decides it. What it asks is bounded: connections, pieces of each that are under way,
//! and their sizes. Memory holds no more than that, however slow a service is.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use distest_worker::protocol::{
    CHUNK_BYTES_MAX, FORWARD_PIECES_MAX, FORWARDED_MAX, Forward, ForwardedId, ForwardedPiece,
    Refusal, RefusalKind,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Mutex as AsyncMutex, OwnedSemaphorePermit, Semaphore};

use super::CONNECT_TIMEOUT;
use super::notices::Notices;

/// How long to wait for room in a socket's queue: there is no event for it.
const QUEUE_AGAIN_AFTER: Duration = Duration::from_millis(10);
/// A buffer with less room than this gives way to a new one.
const ROOM_BYTES_MIN: usize = 16 * 1024;

/// What one worker may reach, and its connections. Dropped, they end.
pub(super) struct Forwards {
    worker: String,
    declared: Vec<Forward>,
    places: Arc<Semaphore>,
    connections: Mutex<BTreeMap<ForwardedId, Arc<Carried>>>,
    notices: Arc<Notices>,
}

/// A connection to a service.
struct Carried {
    reading: AsyncMutex<Reading>,
    writing: AsyncMutex<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Pieces that are being written or wait for it.
    pieces: AtomicUsize,
    _place: OwnedSemaphorePermit,
}

struct Reading {
    from: Box<dyn AsyncRead + Send + Unpin>,
    buffer: BytesMut,
}

impl Forwards {
    pub(super) fn new(worker: &str, declared: &[Forward], notices: Arc<Notices>) -> Arc<Self> {
        Arc::new(Self {
            worker: worker.to_owned(),
            declared: declared.to_vec(),
            places: Arc::new(Semaphore::new(FORWARDED_MAX)),
            connections: Mutex::default(),
            notices,
        })
    }

    /// Connects to a service.
    pub(super) async fn open(&self, id: ForwardedId, forward: &Forward) -> Result<(), Refusal> {
        if !self.declared.contains(forward) {
            let what = match forward {
                Forward::Port(port) => format!("port {port}"),
                Forward::Socket(path) => format!("the socket {path:?}"),
            };
            let text = format!(
                "worker {} asked for {what} of this machine, which is not forwarded to it, and was \
                 refused",
                self.worker
            );
            let hint = "use no worker that you don't trust";
            self.notices.tell(text.clone(), hint);
            return Err(Refusal::new(RefusalKind::Forbidden, text));
        }
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            let text = format!(
                "tests on worker {} have {FORWARDED_MAX} connections to forwarded services open: \
                 more are closed at once",
                self.worker
            );
            self.notices.tell(text.clone(), "run fewer tests at once, with --test-threads");
            return Err(Refusal::new(RefusalKind::OutOfResources, text));
        };
        let (from, to) = match connect(forward).await {
            Ok(halves) => halves,
            Err(error) => {
                let text = format!("could not connect tests to {}: {error}", name(forward));
                let hint = "start the service on this machine: tests saw a closed connection";
                self.notices.tell(text.clone(), hint);
                let text = format!("{text}; the test saw a closed connection");
                return Err(Refusal::new(RefusalKind::Closed, text));
            }
        };
        let reading = Reading { from, buffer: BytesMut::new() };
        let carried = Carried {
            reading: AsyncMutex::new(reading),
            writing: AsyncMutex::new(to),
            pieces: AtomicUsize::new(0),
            _place: place,
        };
        match self.connections().entry(id) {
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(Arc::new(carried));
                Ok(())
            }
            std::collections::btree_map::Entry::Occupied(_) => {
                Err(invalid("a connection of this number is open"))
            }
        }
    }

    /// Gives a piece to a service. Pieces of one connection keep the order in which this was first
    /// polled.
    pub(super) async fn write(&self, piece: ForwardedPiece) -> Result<(), Refusal> {
        let carried = self.carried(piece.connection)?;
        if piece.data.len() > CHUNK_BYTES_MAX {
            return Err(invalid("a piece is too long"));
        }
        let _turn = Turn::take(&carried.pieces)?;
        let mut to = carried.writing.lock().await;
        match piece.data.is_empty() {
            true => to.shutdown().await,
            false => to.write_all(&piece.data).await,
        }
        .map_err(|error| broken(&error))
    }

    /// What a service writes next; empty at its end.
    pub(super) async fn read(&self, id: ForwardedId) -> Result<Bytes, Refusal> {
        let carried = self.carried(id)?;
        let mut reading =
            carried.reading.try_lock().map_err(|_| invalid("it is being read already"))?;
        let Reading { from, buffer } = &mut *reading;
        if buffer.capacity() < ROOM_BYTES_MIN {
            buffer.reserve(CHUNK_BYTES_MAX);
        }
        // A message must not be longer, whatever room there is.
        let read = from.take(CHUNK_BYTES_MAX as u64).read_buf(buffer).await;
        read.map_err(|error| broken(&error))?;
        Ok(buffer.split().freeze())
    }

    /// Ends a connection. What is under way on it ends with its caller.
    pub(super) fn close(&self, id: ForwardedId) {
        self.connections().remove(&id);
    }

    fn carried(&self, id: ForwardedId) -> Result<Arc<Carried>, Refusal> {
        let closed = || Refusal::new(RefusalKind::Closed, "the connection is not open (any more)");
        self.connections().get(&id).cloned().ok_or_else(closed)
    }

    fn connections(&self) -> MutexGuard<'_, BTreeMap<ForwardedId, Arc<Carried>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of the pieces of a connection that are under way.
struct Turn<'a>(&'a AtomicUsize);

impl<'a> Turn<'a> {
    fn take(pieces: &'a AtomicUsize) -> Result<Self, Refusal> {
        let turn = Self(pieces);
        match pieces.fetch_add(1, Ordering::Relaxed) {
            before if before < FORWARD_PIECES_MAX => Ok(turn),
            _ => Err(invalid("too many pieces of it are under way")),
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

type Halves = (Box<dyn AsyncRead + Send + Unpin>, Box<dyn AsyncWrite + Send + Unpin>);

/// Connects to a service as a test here would.
async fn connect(forward: &Forward) -> io::Result<Halves> {
    let connected = async {
        match forward {
            Forward::Port(port) => at_port(*port).await,
            Forward::Socket(path) => at_path(path.as_path()).await,
        }
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, connected).await {
        Ok(connected) => connected,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

async fn at_port(port: u16) -> io::Result<Halves> {
    let stream = match TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
        Ok(stream) => stream,
        // It may listen at the newer protocol's address only; if not, the older one's error tells.
        Err(error) => TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.map_err(|_| error)?,
    };
    stream.set_nodelay(true)?;
    let (from, to) = stream.into_split();
    Ok((Box::new(from), Box::new(to)))
}

async fn at_path(path: &Path) -> io::Result<Halves> {
    loop {
        match UnixStream::connect(path).await {
            // Its queue is full.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tokio::time::sleep(QUEUE_AGAIN_AFTER).await;
            }
            connected => {
                let (from, to) = connected?.into_split();
                return Ok((Box::new(from), Box::new(to)));
            }
        }
    }
}

fn name(forward: &Forward) -> String {
    match forward {
        Forward::Port(port) => format!("port {port} of this machine"),
        Forward::Socket(path) => format!("{} of this machine", path.as_path().display()),
    }
}

fn invalid(why: &str) -> Refusal {
    Refusal::new(RefusalKind::Invalid, format!("could not use a forwarded connection: {why}"))
}

fn broken(error: &io::Error) -> Refusal {
    Refusal::new(RefusalKind::Closed, format!("the service's connection broke: {error}"))
}

#[cfg(test)]
mod tests;
