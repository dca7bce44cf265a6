//! Moves messages between the stream and the two in-memory ends that tarpc sees.
//!
//! A reader task takes frames off the stream and hands each message to the half that it is for; a
//! writer task sends what both halves put into the [`Outbox`]: returned credit, then control
//! messages, then bulk as far as the window admits. Neither ever waits for a half, so that answers
//! can't be held up by requests or the other way round; what is queued is bounded instead.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tarpc::{ClientMessage, RequestName, Response};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, mpsc, watch};

use super::backlog::{Backlog, Waiting};
use super::frame::{self, Arrival, Assembler, Channel, Violation};
use super::window::{self, Window};
use super::wire::{self, Method, TwoWay};
use super::{DEADLINE_MAX, LinkEnd, LinkStats};

/// Bytes handed to the stream at once: a control message may have to wait for them.
const BATCH_BYTES: usize = 64 * 1024;
/// Bytes read at once.
const READ_BYTES: usize = 128 * 1024;
/// Bytes of memory for what waits on one connection for a peer that doesn't read, before it counts as gone.
const QUEUED_BYTES_MAX: usize = 128 * 1024 * 1024;
/// Bytes of requests under way in handlers before no more credit is given.
const HELD_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Requests of the peer that may be under way at once.
const SERVING_MAX: usize = 1024;
/// Requests without answer to remember before those past their deadline are dropped.
const ASKED_PRUNE: usize = 4096;
/// How long a last word may take.
const GOODBYE_TIME: Duration = Duration::from_secs(1);

/// What the tasks of one link share.
pub(super) struct Shared {
    outbox: Mutex<Outbox>,
    /// The writer has something to do.
    wake: Notify,
    end: watch::Sender<Option<LinkEnd>>,
    asked: Mutex<BTreeMap<u64, Asked>>,
    serving: AtomicUsize,
    pub(super) stats: Arc<LinkStats>,
    started: tokio::time::Instant,
}

/// What waits to be sent.
struct Outbox {
    control: VecDeque<Vec<u8>>,
    bulk: VecDeque<Vec<u8>>,
    /// Bytes of the first bulk message that have been sent.
    bulk_sent: usize,
    /// Memory that both take.
    waiting: Waiting,
    window: Window,
    /// Bulk bytes received, credited as far as they may be, and told to the peer.
    received: u64,
    credit_due: u64,
    credit_told: u64,
    /// Bytes of requests that handlers are at.
    held: u64,
    goodbye: Option<String>,
}

/// A request of ours that waits for its answer.
struct Asked {
    method: u8,
    deadline: Instant,
}

/// A request of the peer with what it holds while it is served.
pub(super) struct Carried<Req> {
    pub(super) request: Req,
    pub(super) hold: Hold,
}

/// Keeps account of a request that is being served; dropped when it no longer is.
pub(super) struct Hold {
    shared: Arc<Shared>,
    bytes: u64,
}

/// This end of the link is over.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    #[error("the connection has ended: {0}")]
    Ended(LinkEnd),
    #[error("a message of {0} bytes is larger than a link carries ({max})", max = frame::MESSAGE_BYTES_MAX)]
    TooLarge(usize),
    #[error("could not encode a message")]
    Encode(#[from] rmp_serde::encode::Error),
}

impl Shared {
    pub(super) fn new(backlog: &Backlog) -> Arc<Self> {
        Arc::new(Self {
            outbox: Mutex::new(Outbox {
                control: VecDeque::new(),
                bulk: VecDeque::new(),
                bulk_sent: 0,
                waiting: backlog.begin(),
                window: Window::new(),
                received: 0,
                credit_due: 0,
                credit_told: 0,
                held: 0,
                goodbye: None,
            }),
            wake: Notify::new(),
            end: watch::Sender::new(None),
            asked: Mutex::default(),
            serving: AtomicUsize::new(0),
            stats: Arc::default(),
            started: tokio::time::Instant::now(),
        })
    }

    /// Ends the link, unless it has ended already.
    pub(super) fn finish(&self, end: LinkEnd) {
        if let LinkEnd::Violation(why) = &end {
            self.outbox().goodbye = Some(why.clone());
            self.wake.notify_one();
        }
        self.end.send_if_modified(|slot| {
            let first = slot.is_none();
            slot.get_or_insert(end);
            first
        });
    }

    /// Tells the peer why the connection ends, as soon as what is being written has been written.
    pub(super) fn say_goodbye(&self, why: &str) {
        self.outbox().goodbye = Some(why.to_owned());
        self.wake.notify_one();
    }

    /// When and why the link ended.
    pub(super) async fn ended(&self) -> LinkEnd {
        let mut end = self.end.subscribe();
        match end.wait_for(Option::is_some).await.map(|end| end.clone()) {
            Ok(Some(end)) => end,
            // `self` holds the sender.
            _ => LinkEnd::PeerClosed,
        }
    }

    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn asked(&self) -> MutexGuard<'_, BTreeMap<u64, Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    pub(super) fn check_open(&self) -> Result<(), SendError> {
        self.end.borrow().clone().map_or(Ok(()), |end| Err(SendError::Ended(end)))
    }

    fn send(&self, message: Vec<u8>, bulk: bool) -> Result<(), SendError> {
        let bytes = message.len();
        if bytes > frame::MESSAGE_BYTES_MAX {
            return Err(SendError::TooLarge(bytes));
        }
        let mut outbox = self.outbox();
        let fits = outbox.waiting.add(memory(&message));
        let overflow = !fits || outbox.waiting.bytes() > QUEUED_BYTES_MAX;
        if bulk || bytes > frame::CONTROL_BYTES_MAX {
            outbox.bulk.push_back(message);
        } else {
            outbox.control.push_back(message);
        }
        drop(outbox);
        if overflow {
            self.finish(LinkEnd::Violation("it does not take what it is sent".to_owned()));
        }
        self.wake.notify_one();
        Ok(())
    }

    pub(super) fn send_request<Req: Serialize + Method>(
        &self,
        message: ClientMessage<Req>,
    ) -> Result<(), SendError> {
        match message {
            ClientMessage::Request(request) => {
                let (id, deadline) = (request.id, request.context.deadline);
                let bytes = wire::request(id, deadline, &request.message)?;
                let mut asked = self.asked();
                if asked.len() > ASKED_PRUNE {
                    let now = Instant::now();
                    asked.retain(|_, asked| asked.deadline > now);
                }
                asked.insert(id, Asked { method: request.message.method(), deadline });
                drop(asked);
                self.send(bytes, request.message.is_bulk())
            }
            ClientMessage::Cancel { request_id, .. } => {
                self.asked().remove(&request_id);
                self.send(wire::cancel(request_id)?, false)
            }
            _ => Ok(()),
        }
    }

    pub(super) fn send_response<Resp: Serialize + Method>(
        &self,
        response: &Response<Resp>,
    ) -> Result<(), SendError> {
        let bulk = response.message.as_ref().is_ok_and(Method::is_bulk);
        match self.send(wire::answer(response)?, bulk) {
            Err(error @ SendError::TooLarge(_)) => {
                let bytes = wire::failure(response.request_id, &error.to_string())?;
                self.send(bytes, false)
            }
            result => result,
        }
    }

    /// Takes account of bulk bytes that arrived, and gives credit for them if handlers keep up.
    fn received_bulk(&self, total: u64) -> Result<(), Violation> {
        let mut outbox = self.outbox();
        outbox.received = total;
        if total - outbox.credit_told > window::BYTES_TOLERATED + HELD_BYTES_MAX {
            return Err(Violation("it sent more than it had credit for".to_owned()));
        }
        if outbox.give_credit() {
            self.wake.notify_one();
        }
        Ok(())
    }
}

impl Outbox {
    fn give_credit(&mut self) -> bool {
        if self.held <= HELD_BYTES_MAX {
            self.credit_due = self.received;
        }
        self.credit_due > self.credit_told
    }

    /// Appends what may be sent now. Answers whether the connection ends after it.
    fn fill(&mut self, batch: &mut Vec<u8>, now: Duration) -> bool {
        if let Some(why) = self.goodbye.take() {
            frame::put_goodbye(batch, &why);
            return true;
        }
        if self.credit_due > self.credit_told {
            frame::put_credit(batch, self.credit_due);
            self.credit_told = self.credit_due;
        }
        while batch.len() < BATCH_BYTES
            && let Some(message) = self.control.pop_front()
        {
            self.waiting.take(memory(&message));
            frame::put_message(batch, Channel::Control, &message, true);
        }
        while batch.len() < BATCH_BYTES
            && let Some(message) = self.bulk.front()
        {
            let rest = &message[self.bulk_sent..];
            let piece = &rest[..rest.len().min(frame::PAYLOAD_BYTES_MAX)];
            if !self.window.admits(piece.len()) {
                break;
            }
            let (bytes, last) = (piece.len(), piece.len() == rest.len());
            frame::put_message(batch, Channel::Bulk, piece, last);
            self.window.sent(bytes, now);
            self.bulk_sent += bytes;
            if last {
                self.waiting.take(memory(message));
                self.bulk.pop_front();
                self.bulk_sent = 0;
            }
        }
        false
    }
}

/// Bytes of memory that a message takes while it waits.
fn memory(message: &Vec<u8>) -> usize {
    message.capacity() + size_of::<Vec<u8>>()
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.shared.serving.fetch_sub(1, Ordering::Relaxed);
        if self.bytes > 0 {
            let mut outbox = self.shared.outbox();
            outbox.held -= self.bytes;
            if outbox.give_credit() {
                self.shared.wake.notify_one();
            }
        }
    }
}

impl<Req: RequestName> RequestName for Carried<Req> {
    fn name(&self) -> &str {
        self.request.name()
    }
}

/// Writes what the outbox holds until the link ends.
pub(super) async fn write(shared: Arc<Shared>, mut stream: impl AsyncWrite + Unpin) {
    let last_word = async {
        if matches!(shared.ended().await, LinkEnd::Violation(_)) {
            tokio::time::sleep(GOODBYE_TIME).await;
        }
    };
    let writing = async {
        let mut batch = Vec::with_capacity(BATCH_BYTES + 2 * frame::PAYLOAD_BYTES_MAX);
        loop {
            batch.clear();
            let closing = shared.outbox().fill(&mut batch, shared.now());
            if batch.is_empty() {
                shared.wake.notified().await;
                continue;
            }
            stream.write_all(&batch).await?;
            stream.flush().await?;
            shared.stats.add_sent(batch.len());
            if closing {
                return stream.shutdown().await;
            }
        }
    };
    tokio::select! {
        () = last_word => {}
        done = writing => shared.finish(match done {
            Ok(()) => LinkEnd::Closed,
            Err(error) => LinkEnd::of_io(&error),
        }),
    }
}

/// Reads messages and hands them on until the link ends.
pub(super) async fn read<Req, Resp>(
    shared: Arc<Shared>,
    stream: impl AsyncRead + Unpin,
    to_server: mpsc::UnboundedSender<ClientMessage<Carried<Req>>>,
    to_caller: mpsc::UnboundedSender<Response<Resp>>,
) where
    Req: DeserializeOwned + Method,
    Resp: DeserializeOwned + Method,
{
    let mut inbox = Inbox { shared: shared.clone(), to_server, to_caller };
    tokio::select! {
        _ = shared.ended() => {}
        end = inbox.run(stream) => shared.finish(end),
    }
}

struct Inbox<Req, Resp> {
    shared: Arc<Shared>,
    to_server: mpsc::UnboundedSender<ClientMessage<Carried<Req>>>,
    to_caller: mpsc::UnboundedSender<Response<Resp>>,
}

impl<Req, Resp> Inbox<Req, Resp>
where
    Req: DeserializeOwned + Method,
    Resp: DeserializeOwned + Method,
{
    async fn run(&mut self, mut stream: impl AsyncRead + Unpin) -> LinkEnd {
        let (mut input, mut assembler) = (BytesMut::new(), Assembler::default());
        loop {
            input.reserve(READ_BYTES);
            match stream.read_buf(&mut input).await {
                Ok(0) => return LinkEnd::PeerClosed,
                Ok(bytes) => self.shared.stats.add_received(bytes),
                Err(error) => return LinkEnd::of_io(&error),
            }
            match self.take(&mut assembler, &mut input) {
                Ok(None) => {}
                Ok(Some(goodbye)) => return LinkEnd::Goodbye(goodbye),
                Err(Violation(what)) => return LinkEnd::Violation(what),
            }
        }
    }

    /// Takes all whole frames of `input`. Answers a last word, if there was one.
    fn take(
        &mut self,
        assembler: &mut Assembler,
        input: &mut BytesMut,
    ) -> Result<Option<String>, Violation> {
        while let Some(arrival) = assembler.next(input)? {
            match arrival {
                Arrival::Part => {}
                Arrival::Message(bytes) => self.message(&bytes)?,
                Arrival::Goodbye(why) => return Ok(Some(why)),
                Arrival::Credit(total) => {
                    let now = self.shared.now();
                    self.shared.outbox().window.credit(total, now).ok_or_else(|| {
                        Violation("it gave credit for what was never sent".to_owned())
                    })?;
                    self.shared.wake.notify_one();
                }
            }
        }
        self.shared.received_bulk(assembler.bulk_bytes())?;
        Ok(None)
    }

    fn message(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        match wire::read::<Req, Resp>(bytes)? {
            TwoWay::Request { id, timeout_ms, request } => {
                self.request(id, timeout_ms, request, bytes.len())
            }
            TwoWay::Cancel(request_id) => {
                let trace_context = tarpc::trace::Context::default();
                // A half that is gone serves nothing: no error of the connection.
                let _ = self.to_server.send(ClientMessage::Cancel { trace_context, request_id });
                Ok(())
            }
            TwoWay::Response(response) => self.response(response),
        }
    }

    fn request(
        &mut self,
        id: u64,
        timeout_ms: u64,
        request: Result<Req, String>,
        bytes: usize,
    ) -> Result<(), Violation> {
        let request = match request {
            Ok(request) if timeout_ms <= DEADLINE_MAX.as_millis() as u64 => request,
            Ok(_) => return self.refuse(id, "a deadline days away is not served"),
            Err(why) => return self.refuse(id, &format!("this request is not known here: {why}")),
        };
        if self.shared.serving.fetch_add(1, Ordering::Relaxed) >= SERVING_MAX {
            return Err(Violation(format!("it asked for more than {SERVING_MAX} things at once")));
        }
        let bytes = if request.holds_up() { bytes as u64 } else { 0 };
        self.shared.outbox().held += bytes;
        let hold = Hold { shared: self.shared.clone(), bytes };
        let carried = Carried { request, hold };
        let timeout = Duration::from_millis(timeout_ms);
        let _ = self.to_server.send(wire::for_tarpc(id, timeout, carried));
        Ok(())
    }

    fn refuse(&self, id: u64, why: &str) -> Result<(), Violation> {
        wire::failure(id, why)
            .map_err(SendError::from)
            .and_then(|bytes| self.shared.send(bytes, false))
            .map_err(|error| Violation(error.to_string()))
    }

    /// tarpc panics at an answer to another method, so it must not see one.
    fn response(&mut self, response: Response<Resp>) -> Result<(), Violation> {
        let Some(asked) = self.shared.asked().remove(&response.request_id) else {
            return Ok(()); // Too late: nobody waits any more.
        };
        if let Ok(answer) = &response.message
            && answer.method() != asked.method
        {
            return Err(Violation("it answered another question than the one asked".to_owned()));
        }
        let _ = self.to_caller.send(response);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_nobody_takes_is_bounded_over_all_connections_of_a_peer() {
        let bytes_max = 1 << 20;
        let backlog = Backlog::new(bytes_max);
        let many: Vec<_> = (0..256).map(|_| Shared::new(&backlog)).collect();
        let is_open = |shared: &&Arc<Shared>| shared.check_open().is_ok();
        // Nobody writes what these have to send.
        for shared in &many[..128] {
            shared.send(vec![0; 4096], false).unwrap();
        }
        let greedy = &many[128];
        for sent in 0.. {
            if !is_open(&greedy) {
                assert!((100..140).contains(&sent), "{sent}");
                break;
            }
            greedy.send(vec![0; 4096], sent % 2 == 0).unwrap();
        }
        assert_eq!(many.iter().filter(is_open).count(), 255, "only that one is cut");
        let LinkEnd::Violation(why) = greedy.ended().await else { panic!() };
        assert!(why.contains("does not take what it is sent"), "{why}");
        // What is sent waits no more, and neither does what a connection leaves that has ended.
        let before = backlog.bytes();
        let mut batch = Vec::new();
        many[0].outbox().fill(&mut batch, Duration::ZERO);
        assert!(backlog.bytes() < before);
        drop(many);
        assert_eq!(backlog.bytes(), 0);
    }
}
