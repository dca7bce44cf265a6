//! Carries a link's bytes over its connection, or over one after the other.
//!
//! A link that lasts goes on where a connection broke off, if another one comes about within
//! [`BROKEN_MAX`]: both ends say how far they have got ([`super::resume`]) and send again what the
//! other has not received ([`super::record`]). Nothing above this notices, except that it took a
//! while: all clocks of sessions go on, so whoever is cut off for too long is lost as ever.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::LinkEnd;
use super::frame::Violation;
use super::inbox::Inbox;
use super::pump::{BATCH_ROOM, Shared};
use super::resume::{self, Claim, Unresumed};
use super::wire::Method;
use crate::session::FENCE_AFTER;

/// How long a link lasts without a connection. A client that was not heard for longer is fenced.
pub const BROKEN_MAX: Duration = FENCE_AFTER;
/// How long a last word may take.
const GOODBYE_TIME: Duration = Duration::from_secs(1);
/// How long what arrived before a connection broke may take to be read.
const DRAIN_TIME: Duration = Duration::from_millis(500);
/// How long one attempt to connect again may take. The first may go where nothing answers.
const TRY_TIME: Duration = Duration::from_millis(1500);
/// Between two attempts: after the first, and at most. Each doubles it.
const BACK_OFF_MIN: Duration = Duration::from_millis(20);
const BACK_OFF_MAX: Duration = Duration::from_millis(320);

/// Both directions.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Duplex for S {}

/// A stream that leads to the peer, over whatever.
pub type Stream = Box<dyn Duplex>;

/// Where a link's next connection comes from.
pub enum Renewal {
    /// This end dials.
    Dials(Dialling),
    /// The other end comes back.
    Awaits(Awaiting),
}

/// How an end dials again.
pub struct Dialling {
    /// Leads to the same peer, which has proved its key anew.
    pub dial: Dial,
    /// What the peer knows the link by.
    pub token: String,
    /// Is told that the link goes on.
    pub tell: Box<dyn Fn(Resumed) + Send>,
    /// Counts attempts.
    pub tries: u64,
}

/// Makes another connection.
pub type Dial = Box<dyn Fn() -> BoxFuture<'static, Result<Stream, Undialled>> + Send + Sync>;

/// Why there is no other connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Undialled {
    /// There may be one later.
    Yet,
    /// Whoever is there doesn't want us any more.
    Ever,
}

/// A link goes on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resumed {
    /// What became of the last connection.
    pub broke: LinkEnd,
    /// For how long there was none.
    pub after: Duration,
}

/// Peers that come back to one link.
pub struct Awaiting {
    back: mpsc::Receiver<Back>,
    /// The latest of the peer's attempts that was heard of.
    latest: u64,
}

/// A peer that has proved its key, and names the link.
pub struct Back {
    stream: Stream,
    claim: Claim,
    /// Is told when the link goes on there.
    resumed: oneshot::Sender<()>,
}

/// A connection to go on with, and what to send there first.
struct Next {
    stream: Stream,
    first: Vec<Bytes>,
}

impl Back {
    /// One that says this on a stream. Also answers what is told when the link goes on there, and
    /// dropped if it doesn't.
    pub fn new(stream: impl Duplex + 'static, claim: Claim) -> (Self, oneshot::Receiver<()>) {
        let (resumed, told) = oneshot::channel();
        (Self { stream: Box::new(stream), claim, resumed }, told)
    }
}

impl Awaiting {
    /// Those that come through `back`.
    pub fn new(back: mpsc::Receiver<Back>) -> Self {
        Self { back, latest: 0 }
    }

    /// The next that names this link for the first time. An earlier attempt of a peer may come after a
    /// later one.
    async fn next(&mut self) -> Back {
        loop {
            match self.back.recv().await {
                None => return std::future::pending().await,
                Some(back) if back.claim.number > self.latest => {
                    self.latest = back.claim.number;
                    return back;
                }
                Some(back) => refuse(back.stream),
            }
        }
    }
}

/// Writes what the outbox holds until the link ends.
pub(super) async fn write(shared: Arc<Shared>, stream: impl AsyncWrite + Unpin) {
    tokio::select! {
        () = last_word(&shared) => {}
        end = send(&shared, stream, Vec::new()) => shared.finish(end),
    }
}

/// Reads messages and hands them on until the link ends.
pub(super) async fn read<Req, Resp>(
    shared: Arc<Shared>,
    mut stream: impl AsyncRead + Unpin,
    mut inbox: Inbox<Req, Resp>,
) where
    Req: DeserializeOwned + Method,
    Resp: DeserializeOwned + Method,
{
    tokio::select! {
        _ = shared.ended() => {}
        end = inbox.run(&mut stream) => shared.finish(end),
    }
}

/// Does both, over one connection after the other.
pub(super) async fn last<Req, Resp>(
    shared: Arc<Shared>,
    stream: Stream,
    mut inbox: Inbox<Req, Resp>,
    mut renewal: Renewal,
) where
    Req: DeserializeOwned + Method + Send + 'static,
    Resp: DeserializeOwned + Method + Send + 'static,
{
    let mut next = Next { stream, first: Vec::new() };
    loop {
        let (read, write) = tokio::io::split(next.stream);
        let mut reading = Reading::start(inbox, read);
        let mut writing = Box::pin(send(&shared, write, next.first));
        let replaced = tokio::select! {
            () = last_word(&shared) => return,
            end = reading.ended() => {
                let is_violation = matches!(end, LinkEnd::Violation(_));
                if !end.is_break() || shared.settled.load(Ordering::Relaxed) {
                    shared.finish(end);
                    if is_violation {
                        let _ = timeout(GOODBYE_TIME, writing).await;
                    }
                    return;
                }
                Err(end)
            }
            end = &mut writing => {
                if !end.is_break() {
                    return shared.finish(end);
                }
                // What came before it broke may say why.
                let read = timeout(DRAIN_TIME, reading.ended()).await;
                let end = read.ok().filter(|read| !read.is_break()).unwrap_or(end);
                if !end.is_break() || shared.settled.load(Ordering::Relaxed) {
                    return shared.finish(end);
                }
                Err(end)
            }
            replacement = renewal.replacement(&shared.doubt) => Ok(replacement),
        };
        let Some(back) = reading.stop().await else {
            return shared.finish(LinkEnd::Bug("a message could not be taken".to_owned()));
        };
        inbox = back;
        // Closes the connection, so that the other end need not find out by itself.
        drop(writing);
        let renewed = match replaced {
            Ok(replacement) => renewal.go_on(&shared, replacement).await,
            Err(end) => renewal.after(&shared, end).await,
        };
        match renewed {
            Ok(renewed) => next = renewed,
            Err(end) => return shared.finish(end),
        }
    }
}

/// The task that reads one connection.
struct Reading<Req, Resp> {
    task: JoinSet<(Inbox<Req, Resp>, Option<LinkEnd>)>,
    halt: Arc<Notify>,
    back: Option<Inbox<Req, Resp>>,
}

impl<Req, Resp> Reading<Req, Resp>
where
    Req: DeserializeOwned + Method + Send + 'static,
    Resp: DeserializeOwned + Method + Send + 'static,
{
    fn start(mut inbox: Inbox<Req, Resp>, mut stream: ReadHalf<Stream>) -> Self {
        let halt = Arc::new(Notify::new());
        let halted = Arc::clone(&halt);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let end = tokio::select! {
                end = inbox.run(&mut stream) => Some(end),
                () = halted.notified() => None,
            };
            (inbox, end)
        });
        Self { task, halt, back: None }
    }

    /// How the connection ended for whoever reads it.
    async fn ended(&mut self) -> LinkEnd {
        match self.task.join_next().await {
            Some(Ok((inbox, end))) => {
                self.back = Some(inbox);
                end.unwrap_or(LinkEnd::PeerClosed)
            }
            Some(Err(_)) => LinkEnd::Bug("a message could not be taken".to_owned()),
            None => LinkEnd::PeerClosed,
        }
    }

    /// From now on nothing more is read there.
    async fn stop(mut self) -> Option<Inbox<Req, Resp>> {
        self.halt.notify_one();
        if self.back.is_none() {
            self.ended().await;
        }
        self.back
    }
}

/// What takes the place of a connection.
enum Replacement {
    /// One that we dialled.
    Dialled(Stream),
    /// The peer has come back.
    Back(Back),
}

impl Renewal {
    /// Another connection, while there still is one: the peer has given that up, or we doubt it.
    async fn replacement(&mut self, doubt: &Notify) -> Replacement {
        match self {
            Self::Awaits(awaiting) => Replacement::Back(awaiting.next().await),
            Self::Dials(dialling) => loop {
                doubt.notified().await;
                if let Ok(Ok(stream)) = timeout(TRY_TIME, (dialling.dial)()).await {
                    return Replacement::Dialled(stream);
                }
            },
        }
    }

    /// Goes on with another connection, which may break at once.
    async fn go_on(&mut self, shared: &Shared, with: Replacement) -> Result<Next, LinkEnd> {
        match (self, with) {
            (Self::Dials(dialling), Replacement::Dialled(stream)) => {
                let began = Instant::now();
                let broke = LinkEnd::Io("nothing came any more".to_owned());
                match dialling.claim(shared, stream).await {
                    Ok(next) => {
                        dialling.resumed(broke, began);
                        Ok(next)
                    }
                    Err(Unresumed::Broken) => dialling.again(shared, broke).await,
                    Err(Unresumed::Refused) => Err(broke),
                    Err(Unresumed::Gap(what)) => Err(LinkEnd::Violation(what)),
                }
            }
            (_, Replacement::Back(back)) => welcome(shared, back),
            (Self::Awaits(_), Replacement::Dialled(_)) => Err(LinkEnd::PeerClosed),
        }
    }

    /// Goes on after a connection broke.
    async fn after(&mut self, shared: &Shared, broke: LinkEnd) -> Result<Next, LinkEnd> {
        let over = over(shared);
        match self {
            Self::Dials(dialling) => tokio::select! {
                next = dialling.again(shared, broke) => next,
                end = over => Err(end),
            },
            Self::Awaits(awaiting) => tokio::select! {
                back = timeout(BROKEN_MAX, awaiting.next()) => match back {
                    Ok(back) => welcome(shared, back),
                    Err(_) => Err(broke),
                },
                end = over => Err(end),
            },
        }
    }
}

impl Dialling {
    /// Dials until there is a connection, or nobody can be waiting for it any more.
    async fn again(&mut self, shared: &Shared, broke: LinkEnd) -> Result<Next, LinkEnd> {
        let began = Instant::now();
        let end = began + BROKEN_MAX;
        let mut back_off = BACK_OFF_MIN;
        loop {
            let attempt = async {
                let stream = (self.dial)().await.map_err(|undialled| match undialled {
                    Undialled::Ever => Unresumed::Refused,
                    Undialled::Yet => Unresumed::Broken,
                });
                self.claim(shared, stream?).await
            };
            match timeout_at(end.min(Instant::now() + TRY_TIME), attempt).await {
                Ok(Ok(next)) => {
                    self.resumed(broke, began);
                    return Ok(next);
                }
                Ok(Err(Unresumed::Refused)) => return Err(broke),
                Ok(Err(Unresumed::Gap(what))) => return Err(LinkEnd::Violation(what)),
                Ok(Err(Unresumed::Broken)) | Err(_) => {}
            }
            let next = Instant::now() + back_off;
            if next >= end {
                return Err(broke);
            }
            tokio::time::sleep_until(next).await;
            back_off = (back_off * 2).min(BACK_OFF_MAX);
        }
    }

    /// Claims the link on a new connection.
    async fn claim(&mut self, shared: &Shared, mut stream: Stream) -> Result<Next, Unresumed> {
        self.tries += 1;
        let (token, number) = (self.token.clone(), self.tries);
        let received = shared.outbox().received_in_all();
        let claim = Claim { token, number, received };
        let theirs = timeout(TRY_TIME, resume::ask(&mut stream, &claim)).await;
        let theirs = theirs.map_err(|_| Unresumed::Broken)??;
        let first = shared.outbox().since(theirs);
        let first = first.map_err(|Violation(what)| Unresumed::Gap(what))?;
        Ok(Next { stream, first })
    }

    fn resumed(&self, broke: LinkEnd, since: Instant) {
        (self.tell)(Resumed { broke, after: since.elapsed() });
    }
}

/// Goes on with a peer that has come back.
fn welcome(shared: &Shared, back: Back) -> Result<Next, LinkEnd> {
    let mut outbox = shared.outbox();
    let again = outbox.since(back.claim.received);
    let answer = again.and_then(|again| {
        let answer = resume::answer(outbox.received_in_all());
        Ok((again, answer.map_err(|error| Violation(error.to_string()))?))
    });
    drop(outbox);
    match answer {
        Ok((again, answer)) => {
            // Whoever waits for it only tells of it.
            let _ = back.resumed.send(());
            let first = std::iter::once(answer).chain(again).collect();
            Ok(Next { stream: back.stream, first })
        }
        Err(Violation(what)) => {
            refuse(back.stream);
            Err(LinkEnd::Violation(what))
        }
    }
}

/// Tells somebody that there is no such link, while others are not kept waiting.
fn refuse(mut stream: Stream) {
    tokio::spawn(async move {
        // Who doesn't listen is not resumed either.
        let _ = timeout(GOODBYE_TIME, resume::refuse(&mut stream)).await;
    });
}

/// When a link without a connection ends.
async fn over(shared: &Shared) -> LinkEnd {
    loop {
        if shared.outbox().is_closing() {
            return LinkEnd::Closed;
        }
        tokio::select! {
            end = shared.ended() => return end,
            () = shared.wake.notified() => {}
        }
    }
}

/// When the link has ended, and the peer has had time to be told why.
async fn last_word(shared: &Shared) {
    if matches!(shared.ended().await, LinkEnd::Violation(_)) {
        tokio::time::sleep(GOODBYE_TIME).await;
    }
}

/// Sends `first`, then what the outbox holds, until the connection breaks or we close it.
async fn send(shared: &Shared, mut stream: impl AsyncWrite + Unpin, first: Vec<Bytes>) -> LinkEnd {
    let mut closing = false;
    let sending = async {
        for bytes in first {
            stream.write_all(&bytes).await?;
            shared.stats.add_sent(bytes.len());
        }
        stream.flush().await?;
        let mut batch = BytesMut::with_capacity(BATCH_ROOM);
        while !closing {
            batch.clear();
            let kept = {
                let mut outbox = shared.outbox();
                closing = outbox.fill(&mut batch, shared.now());
                outbox.keep(&mut batch)
            };
            let bytes = kept.as_deref().unwrap_or(&batch);
            if bytes.is_empty() {
                shared.wake.notified().await;
                continue;
            }
            stream.write_all(bytes).await?;
            stream.flush().await?;
            shared.stats.add_sent(bytes.len());
        }
        stream.shutdown().await
    };
    let sent: io::Result<()> = sending.await;
    match sent {
        Err(error) if !closing => LinkEnd::of_io(&error),
        _ => LinkEnd::Closed,
    }
}
