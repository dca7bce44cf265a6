//! What waits to be sent to the peer, and what is known of it.
//!
//! Whoever reads takes frames off a stream and hands each message to the half of tarpc that it is
//! for ([`super::inbox`]); whoever writes ([`super::carry`]) sends what both halves put into the
//! [`Outbox`]: returned credit, then control messages, then bulk as far as the window admits.
//! Neither ever waits for a half, so that answers can't be held up by requests or the other way
//! round; what is queued is bounded instead.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use serde::Serialize;
use tarpc::{ClientMessage, RequestName, Response};
use tokio::sync::{Notify, watch};

use super::backlog::{Backlog, Waiting};
use super::frame::{self, Channel, Violation};
use super::record::Record;
use super::window::{self, Window};
use super::wire::{self, Method};
use super::{LinkEnd, LinkStats};

/// Bytes handed to the stream at once: a control message may have to wait for them.
const BATCH_BYTES: usize = 64 * 1024;
/// Room for them with a piece that is larger than the rest.
pub(super) const BATCH_ROOM: usize = BATCH_BYTES + 2 * frame::PAYLOAD_BYTES_MAX;
/// Bytes of memory for what waits on one connection for a peer that doesn't read, before it counts as gone.
const QUEUED_BYTES_MAX: usize = 128 * 1024 * 1024;
/// Bytes of requests under way in handlers before no more credit is given.
const HELD_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Requests without answer to remember before those past their deadline are dropped.
const ASKED_PRUNE: usize = 4096;

/// What the tasks of one link share.
pub(super) struct Shared {
    outbox: Mutex<Outbox>,
    /// The writer has something to do.
    pub(super) wake: Notify,
    end: watch::Sender<Option<LinkEnd>>,
    asked: Mutex<BTreeMap<u64, Asked>>,
    pub(super) serving: AtomicUsize,
    /// It ends with its connection, although it could outlive it.
    pub(super) settled: AtomicBool,
    /// The connection may be dead.
    pub(super) doubt: Notify,
    pub(super) stats: Arc<LinkStats>,
    started: tokio::time::Instant,
}

/// What waits to be sent.
pub(super) struct Outbox {
    control: VecDeque<Vec<u8>>,
    bulk: VecDeque<Vec<u8>>,
    /// Bytes of the first bulk message that have been sent.
    bulk_sent: usize,
    /// Memory that both take.
    waiting: Waiting,
    pub(super) window: Window,
    /// If the link outlives its connections.
    record: Option<Record>,
    /// Bulk bytes received, credited as far as they may be, and told to the peer.
    received: u64,
    credit_due: u64,
    credit_told: u64,
    /// Bytes of requests that handlers are at.
    pub(super) held: u64,
    goodbye: Option<String>,
}

/// A request of ours that waits for its answer.
pub(super) struct Asked {
    pub(super) method: u8,
    deadline: Instant,
}

/// A request of the peer with what it holds while it is served.
pub(super) struct Carried<Req> {
    pub(super) request: Req,
    /// None where the other end is within this process.
    pub(super) hold: Option<Hold>,
}

/// Keeps account of a request that is being served; dropped when it no longer is.
pub(super) struct Hold {
    pub(super) shared: Arc<Shared>,
    pub(super) bytes: u64,
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
    /// Of a link that outlives its connections if it is `lasting`.
    pub(super) fn new(backlog: &Backlog, lasting: bool) -> Arc<Self> {
        Arc::new(Self {
            outbox: Mutex::new(Outbox {
                control: VecDeque::new(),
                bulk: VecDeque::new(),
                bulk_sent: 0,
                waiting: backlog.begin(),
                window: Window::new(),
                record: lasting.then(Record::default),
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
            settled: AtomicBool::new(false),
            doubt: Notify::new(),
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

    /// What was last said, once something has been.
    pub(super) async fn goodbye(&self) -> String {
        loop {
            let said = self.outbox().goodbye.take();
            match said {
                Some(why) => return why,
                None => self.wake.notified().await,
            }
        }
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

    pub(super) fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn asked(&self) -> MutexGuard<'_, BTreeMap<u64, Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    pub(super) fn check_open(&self) -> Result<(), SendError> {
        self.end.borrow().clone().map_or(Ok(()), |end| Err(SendError::Ended(end)))
    }

    pub(super) fn send(&self, message: Vec<u8>, bulk: bool) -> Result<(), SendError> {
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

    /// Takes account of bytes that arrived, of which `bulk` have on that channel since the link began;
    /// gives credit for those if handlers keep up.
    pub(super) fn received(&self, bytes: usize, bulk: u64) -> Result<(), Violation> {
        let mut outbox = self.outbox();
        outbox.received = bulk;
        if bulk - outbox.credit_told > window::BYTES_TOLERATED + HELD_BYTES_MAX {
            return Err(Violation("it sent more than it had credit for".to_owned()));
        }
        let mut due = outbox.give_credit();
        if let Some(record) = &mut outbox.record {
            record.receive(bytes);
            due |= record.is_due(false);
        }
        if due {
            self.wake.notify_one();
        }
        Ok(())
    }
}

impl Outbox {
    pub(super) fn give_credit(&mut self) -> bool {
        if self.held <= HELD_BYTES_MAX {
            self.credit_due = self.received;
        }
        self.credit_due > self.credit_told
    }

    /// Whether the connection is to end with a last word.
    pub(super) fn is_closing(&self) -> bool {
        self.goodbye.is_some()
    }

    /// Appends what may be sent now. Answers whether the connection ends after it.
    pub(super) fn fill(&mut self, batch: &mut BytesMut, now: Duration) -> bool {
        if let Some(why) = self.goodbye.take() {
            frame::put_goodbye(batch, &why);
            return true;
        }
        if self.record.as_ref().is_none_or(Record::has_room) {
            self.fill_with_messages(batch, now);
        }
        if let Some(record) = &mut self.record
            && record.is_due(!batch.is_empty())
        {
            frame::put_received(batch, record.tell());
        }
        false
    }

    fn fill_with_messages(&mut self, batch: &mut BytesMut, now: Duration) {
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
        if !self.bulk.is_empty() {
            batch.reserve(BATCH_ROOM - batch.len().min(BATCH_ROOM));
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
    }

    /// Keeps what was filled in until the peer has received it, if the link outlives its connections:
    /// then it is no longer in the batch.
    pub(super) fn keep(&mut self, batch: &mut BytesMut) -> Option<Bytes> {
        let record = self.record.as_mut()?;
        let bytes = batch.split().freeze();
        if !bytes.is_empty() {
            record.send(bytes.clone());
            self.waiting.add(bytes.len());
        }
        Some(bytes)
    }

    /// The peer has received so many bytes since the link began.
    pub(super) fn acknowledged(&mut self, total: u64) -> Result<(), Violation> {
        let Some(record) = &mut self.record else { return Ok(()) };
        let never = || Violation("it has received what was never sent".to_owned());
        let freed = record.acknowledge(total).ok_or_else(never)?;
        self.waiting.take(freed as usize);
        Ok(())
    }

    /// How many this end has received.
    pub(super) fn received_in_all(&self) -> u64 {
        self.record.as_ref().map_or(0, Record::received)
    }

    /// What to send again to a peer that has received so many.
    pub(super) fn since(&mut self, total: u64) -> Result<Vec<Bytes>, Violation> {
        let record = self.record.get_or_insert_default();
        let before = record.kept_bytes();
        let again = record.since(total);
        self.waiting.take((before - record.kept_bytes()) as usize);
        let gap = || Violation("it goes on where nothing is left, or never was".to_owned());
        again.ok_or_else(gap)
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

#[cfg(test)]
mod tests {
    use super::super::record::KEPT_BYTES_MAX;
    use super::*;

    #[tokio::test]
    async fn what_nobody_takes_is_bounded_over_all_connections_of_a_peer() {
        let bytes_max = 1 << 20;
        let backlog = Backlog::new(bytes_max);
        let many: Vec<_> = (0..256).map(|_| Shared::new(&backlog, false)).collect();
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
        let mut batch = BytesMut::new();
        many[0].outbox().fill(&mut batch, Duration::ZERO);
        assert!(backlog.bytes() < before);
        drop(many);
        assert_eq!(backlog.bytes(), 0);
    }

    #[tokio::test]
    async fn what_a_peer_does_not_acknowledge_counts_as_unread() {
        let backlog = Backlog::default();
        let shared = Shared::new(&backlog, true);
        let mut batch = BytesMut::new();
        let mut sent = 0;
        while {
            shared.send(vec![0; 4096], false).unwrap();
            let mut outbox = shared.outbox();
            outbox.fill(&mut batch, Duration::ZERO);
            let kept = outbox.keep(&mut batch).unwrap().len();
            sent += kept;
            kept > 0
        } {}
        assert!((KEPT_BYTES_MAX..KEPT_BYTES_MAX + 8192).contains(&(sent as u64)), "{sent}");
        assert!(backlog.bytes() >= sent, "{} bytes", backlog.bytes());
        let all = sent as u64;
        assert!(shared.outbox().acknowledged(all + 1).is_err());
        shared.outbox().acknowledged(all).unwrap();
        assert!(backlog.bytes() < 8192, "{} bytes", backlog.bytes());
        shared.outbox().fill(&mut batch, Duration::ZERO);
        assert!(!batch.is_empty(), "it goes on");
    }
}
