//! Pipes between an attempt's standard streams and the worker.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::unistd::read;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::SlotEvent;
use crate::output::Capture;
use crate::pipes::readable;
use crate::protocol::{AttemptId, LIMIT_MAX, SlotId, Stream};

/// The most bytes read at once: what a pipe holds.
pub(super) const READ_BYTES_MAX: usize = 64 * 1024;
/// How often a pipe is read in one go: more than it holds.
const READS_AT_ONCE_MAX: usize = 32;
/// What a pipe that fills in a pause is made to hold, where the system allows.
const PIPE_BYTES: i32 = 1 << 20;
/// How long what is read as it comes lies in its pipe: an attempt that prints line by line would
/// wake the worker for each.
const PAUSE: Duration = Duration::from_millis(2);
/// Where nobody waits to see it and it is little, the pause grows up to this.
const PAUSE_MAX: Duration = Duration::from_millis(16);
/// Little is less than one in this many of the bytes that the pipe holds.
const LITTLE: u64 = 16;

/// One output stream of an attempt.
///
/// It begins at rest: nobody reads, so that a test that is quick and prints little, as most are,
/// wakes the worker only once, by its end. [`Reading::wake`] makes it read as data comes.
pub(super) enum Reading {
    AtRest { pipe: OwnedFd, sink: Sink },
    Awake(Pump),
}

/// Where an output stream goes.
pub(super) struct Sink {
    pub(super) capture: Capture,
    /// Where to send it instead of keeping it.
    pub(super) live: Option<Live>,
}

/// Where a live stream is sent.
#[derive(Clone)]
pub(super) struct Live {
    pub(super) slot: SlotId,
    pub(super) attempt: AttemptId,
    pub(super) stream: Stream,
    pub(super) events: mpsc::Sender<SlotEvent>,
}

/// A stream at its end.
pub(super) struct Drained {
    pub(super) capture: Capture,
    /// Somebody still holds the other end.
    pub(super) open: bool,
}

/// A task that reads a pipe.
pub(super) struct Pump {
    task: Task<Drained>,
    /// Tells the task that the attempt has ended, and how long others may hold the pipe.
    ended: oneshot::Sender<Duration>,
}

/// A task that is aborted when it is dropped.
struct Task<T>(JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Reading {
    /// Reads from now on as data comes.
    pub(super) fn wake(self) -> Self {
        match self {
            Self::AtRest { pipe, sink } => Self::Awake(Pump::start(pipe, sink)),
            awake @ Self::Awake(_) => awake,
        }
    }

    /// Reads the rest, once the attempt has ended. `buffer` is room to work in.
    pub(super) async fn finish(
        self,
        leak_timeout: Duration,
        buffer: &mut [u8],
    ) -> io::Result<Drained> {
        let pump = match self {
            Self::AtRest { pipe, mut sink } => match read_waiting(&pipe, &mut sink, buffer).await {
                Rest::End => return Ok(Drained { capture: sink.capture, open: false }),
                Rest::Open => Pump::start(pipe, sink),
            },
            Self::Awake(pump) => pump,
        };
        let Pump { mut task, ended } = pump;
        let _ = ended.send(leak_timeout);
        (&mut task.0).await.map_err(io::Error::other)
    }
}

impl Sink {
    async fn take(&mut self, data: &[u8]) {
        match &self.live {
            Some(live) => {
                self.capture.pass(data.len());
                live.send(Bytes::copy_from_slice(data)).await;
            }
            None => {
                self.capture.push(data);
                if self.capture.wants_spill() {
                    self.spill().await;
                }
            }
        }
    }

    async fn spill(&mut self) {
        let placeholder = Capture::new(self.capture.scratch());
        let mut capture = std::mem::replace(&mut self.capture, placeholder);
        let spilled = tokio::task::spawn_blocking(move || {
            capture.spill();
            capture
        });
        // It can only fail with the whole runtime.
        if let Ok(capture) = spilled.await {
            self.capture = capture;
        }
    }
}

impl Live {
    async fn send(&self, data: Bytes) {
        let Self { slot, attempt, stream, .. } = *self;
        let _ = self.events.send(SlotEvent::Output { slot, attempt, stream, data }).await;
    }
}

impl Pump {
    fn start(pipe: OwnedFd, sink: Sink) -> Self {
        let (ended, end) = oneshot::channel();
        Self { task: Task(tokio::spawn(drain(pipe, sink, end))), ended }
    }
}

/// Reads until the end of the stream, or, when the attempt has ended, until others have held it
/// open for too long.
async fn drain(pipe: OwnedFd, mut sink: Sink, mut end: oneshot::Receiver<Duration>) -> Drained {
    let mut holds = fcntl(&pipe, FcntlArg::F_GETPIPE_SZ).map_or(0, |bytes| bytes as u64);
    let mut widened = false;
    let mut buffer = vec![0; READ_BYTES_MAX];
    let mut until = None;
    let mut pause: Option<Instant> = None;
    let mut next_pause = PAUSE;
    loop {
        tokio::select! {
            biased;
            leak_timeout = &mut end, if until.is_none() => {
                let leak_timeout = leak_timeout.unwrap_or_default().min(LIMIT_MAX);
                until = Some(Instant::now() + leak_timeout);
            }
            () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {
                return Drained { capture: sink.capture, open: true };
            }
            () = sleep_until(pause.unwrap_or_else(Instant::now)), if pause.is_some() => {}
            ready = readable(&pipe), if pause.is_none() => {
                // A pipe that can't be waited for has nothing more to say.
                if ready.is_err() {
                    break;
                }
            }
        }
        let before = sink.capture.total();
        if let Rest::End = read_waiting(&pipe, &mut sink, &mut buffer).await {
            break;
        }
        // Whoever fills half of the pipe in a pause would soon have to wait for its reader.
        let got = sink.capture.total() - before;
        if got * 2 >= holds && !widened {
            // Only then: what all pipes of a user may hold is bounded. Where the system allows no
            // more, it stays as it is.
            widened = true;
            let bytes = fcntl(&pipe, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
            holds = bytes.map_or(holds, |bytes| bytes as u64);
        }
        pause = (got > 0 && got * 2 < holds).then(|| Instant::now() + next_pause);
        next_pause = match got * LITTLE < holds && sink.live.is_none() {
            true => (next_pause * 2).min(PAUSE_MAX),
            false => PAUSE,
        };
    }
    Drained { capture: sink.capture, open: false }
}

/// What [`read_waiting`] came to.
enum Rest {
    /// The end: nobody can write any more.
    End,
    /// Somebody still can.
    Open,
}

/// Reads what is in a pipe without waiting for more: all that an attempt that has ended has
/// written, and little more if others go on writing.
async fn read_waiting(pipe: &OwnedFd, sink: &mut Sink, buffer: &mut [u8]) -> Rest {
    for _ in 0..READS_AT_ONCE_MAX {
        match read(pipe, buffer) {
            Ok(0) => return Rest::End,
            Ok(length) => sink.take(&buffer[..length]).await,
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Rest::Open,
            // A pipe that can't be read has nothing more to say.
            Err(_) => return Rest::End,
        }
    }
    Rest::Open
}

/// Standard input of an attempt, written by a task because the attempt may not read it.
pub(super) struct Feeder {
    data: mpsc::UnboundedSender<Bytes>,
    _task: Task<()>,
}

impl Feeder {
    pub(super) fn start(
        pipe: OwnedFd,
        slot: SlotId,
        attempt: AttemptId,
        events: mpsc::Sender<SlotEvent>,
    ) -> io::Result<Self> {
        let mut pipe = Some(pipe::Sender::from_owned_fd_unchecked(pipe)?);
        let (sender, mut data) = mpsc::unbounded_channel::<Bytes>();
        let task = tokio::spawn(async move {
            while let Some(piece) = data.recv().await {
                let written = match &mut pipe {
                    Some(open) if !piece.is_empty() => open.write_all(&piece).await.is_ok(),
                    Some(_) | None => false,
                };
                if !written {
                    pipe = None;
                }
                let _ = events.send(SlotEvent::StdinTaken { slot, attempt }).await;
            }
        });
        Ok(Self { data: sender, _task: Task(task) })
    }

    pub(super) fn feed(&self, piece: Bytes) {
        let _ = self.data.send(piece);
    }
}
