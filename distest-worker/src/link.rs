//! Two tarpc services over one byte stream, in both directions.
//!
//! tarpc itself is one-way. A link splits one stream into two in-memory transports: requests of
//! the client go one way, callbacks of the worker the other. It does not matter what the stream is
//! (TCP, TLS, a process's standard streams, a pipe in memory) nor who dialled. Between two ends
//! within one process there need be none ([`near`]).
//!
//! What callers may rely on:
//! - **Small things overtake large ones.** Control messages go before bulk ([`Worker::put`],
//!   [`Worker::stdin`], [`Client::output`], [`Client::forward_write`], answers of [`Client::fetch`]
//!   and [`Client::forward_read`], and any message over 16 KiB), and no more bulk is under way than the link carries in about 60 ms, so a heartbeat
//!   passes an upload.
//! - **Bulk keeps its order.** Calls that are bulk by their method arrive in the order in which
//!   they were first polled ([`Pipeline`] does that), and every handler runs in the order of
//!   arrival up to its first `await`. Nothing else is ordered: to have one call after another,
//!   wait for its answer.
//! - **The peer can't hurt.** Frames, messages, requests at once, unread answers and deadlines
//!   are bounded; whoever goes beyond them loses the connection with a reason ([`LinkEnd`]). An
//!   unknown request is answered with an error.
//! - **The end of the connection drops all handlers** and ends all calls with an error, unless the
//!   link lasts ([`client_end_lasting`], [`worker_end_lasting`]): then it goes on over another one
//!   that comes about within [`BROKEN_MAX`], and nothing is lost, repeated or out of order.
//!
//! [`Worker`]: crate::protocol::Worker
//! [`Worker::put`]: crate::protocol::Worker::put
//! [`Worker::stdin`]: crate::protocol::Worker::stdin
//! [`Client::output`]: crate::protocol::Client::output
//! [`Client::fetch`]: crate::protocol::Client::fetch
//! [`Client::forward_read`]: crate::protocol::Client::forward_read
//! [`Client::forward_write`]: crate::protocol::Client::forward_write

mod backlog;
mod carry;
pub mod codec;
mod frame;
mod half;
mod inbox;
mod near;
mod pipeline;
mod pump;
mod record;
pub mod resume;
mod window;
mod wire;

use std::any::Any;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use futures::{FutureExt, StreamExt};
use serde::de::DeserializeOwned;
use tarpc::ServerError;
use tarpc::client::{NewClient, RpcError};
use tarpc::context::Context;
use tarpc::server::{BaseChannel, Channel, serve};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

pub use self::backlog::{BACKLOG_BYTES_MAX, Backlog};
pub use self::carry::{
    Awaiting, BROKEN_MAX, Back, Dial, Dialling, Duplex, Renewal, Resumed, Stream, Undialled,
};
use self::half::{AskingHalf, ServingHalf, Way};
use self::inbox::Inbox;
pub use self::near::near;
pub use self::pipeline::Pipeline;
use self::pump::{Carried, Shared};
use self::wire::Method;
use crate::protocol::{
    ClientClient, ClientRequest, ClientResponse, WorkerClient, WorkerRequest, WorkerResponse,
};

/// How long an ordinary call may take.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// How long a call may take whose data wait behind others on a slow link.
pub const DEADLINE_BULK: Duration = Duration::from_secs(120);
/// Calls that would wait longer are refused: tarpc's timer panics at absurd deadlines.
pub const DEADLINE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Calls of ours that may be under way at once.
const ASKING_MAX: usize = 512;

/// One end of a connection. Dropping it closes the connection at once.
pub struct Link {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

/// One end of a connection, at which nothing is served yet: a [`ClientSide`] or a [`WorkerSide`].
pub struct Side<Ask, Answer, Req, Resp> {
    link: Link,
    asking: AskingHalf<Ask, Answer>,
    serving: ServingHalf<Req, Resp>,
}

/// The client's end.
pub type ClientSide = Side<WorkerRequest, WorkerResponse, ClientRequest, ClientResponse>;
/// The worker's end.
pub type WorkerSide = Side<ClientRequest, ClientResponse, WorkerRequest, WorkerResponse>;

/// Why a connection ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LinkEnd {
    /// We closed it.
    Closed,
    /// The peer closed it, or died.
    PeerClosed,
    /// The peer closed it and said why.
    Goodbye(String),
    /// Reading or writing failed.
    Io(String),
    /// The peer did what no distest peer does.
    Violation(String),
    /// A bug of ours.
    Bug(String),
}

/// Bytes on a connection, as counted at its stream.
#[derive(Default, Debug)]
pub struct LinkStats {
    sent: AtomicU64,
    received: AtomicU64,
}

/// The context of a call that may take `timeout`.
pub fn context(timeout: Duration) -> Context {
    let mut context = tarpc::context::current();
    context.deadline = Instant::now() + timeout.min(DEADLINE_MAX);
    context
}

/// Why a call was not answered, in words for people.
pub fn why(error: &RpcError) -> String {
    match error {
        RpcError::Shutdown => "the connection has ended".to_owned(),
        RpcError::Send(why) => format!("the question could not be sent: {why}"),
        RpcError::Channel(why) => format!("the connection broke: {why}"),
        RpcError::DeadlineExceeded => "nothing came in time".to_owned(),
        RpcError::Server(ServerError { detail, .. }) => detail.clone(),
    }
}

/// The client's end: what to call the worker with. `callbacks` serves the worker's calls:
/// `move |context, request| service.clone().serve().serve(context, request)`.
///
/// Must be called within a tokio runtime.
pub fn client_end<S, H, F>(stream: S, callbacks: H) -> (WorkerClient, Link)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
    H: Fn(Context, ClientRequest) -> F + Clone + Send + 'static,
    F: Future<Output = Result<ClientResponse, ServerError>> + Send + 'static,
{
    ClientSide::over(stream, &Backlog::default()).serve(callbacks)
}

/// The client's end of a link that lasts: as [`client_end`].
///
/// Must be called within a tokio runtime.
pub fn client_end_lasting<H, F>(
    stream: Stream,
    renewal: Renewal,
    callbacks: H,
) -> (WorkerClient, Link)
where
    H: Fn(Context, ClientRequest) -> F + Clone + Send + 'static,
    F: Future<Output = Result<ClientResponse, ServerError>> + Send + 'static,
{
    ClientSide::lasting(stream, renewal, &Backlog::default()).serve(callbacks)
}

/// The worker's end. `make` gets what to call the client with and answers what serves the client's
/// calls, as in [`client_end`].
///
/// Must be called within a tokio runtime.
pub fn worker_end<S, M, H, F>(stream: S, make: M) -> Link
where
    S: AsyncRead + AsyncWrite + Send + 'static,
    M: FnOnce(ClientClient) -> H,
    H: Fn(Context, WorkerRequest) -> F + Clone + Send + 'static,
    F: Future<Output = Result<WorkerResponse, ServerError>> + Send + 'static,
{
    WorkerSide::over(stream, &Backlog::default()).serve(make)
}

/// The same for a link that lasts.
///
/// Must be called within a tokio runtime.
pub fn worker_end_lasting<M, H, F>(
    stream: Stream,
    renewal: Renewal,
    backlog: &Backlog,
    make: M,
) -> Link
where
    M: FnOnce(ClientClient) -> H,
    H: Fn(Context, WorkerRequest) -> F + Clone + Send + 'static,
    F: Future<Output = Result<WorkerResponse, ServerError>> + Send + 'static,
{
    WorkerSide::lasting(stream, renewal, backlog).serve(make)
}

impl ClientSide {
    /// Over a stream. What the peer may leave unread it may on all its connections together.
    ///
    /// Must be called within a tokio runtime.
    pub fn over(stream: impl AsyncRead + AsyncWrite + Send + 'static, backlog: &Backlog) -> Self {
        over(stream, backlog)
    }

    /// Over one stream after the other.
    ///
    /// Must be called within a tokio runtime.
    pub fn lasting(stream: Stream, renewal: Renewal, backlog: &Backlog) -> Self {
        lasting(stream, renewal, backlog)
    }

    /// Serves the worker's calls from now on; answers what to call the worker with.
    pub fn serve<H, F>(self, callbacks: H) -> (WorkerClient, Link)
    where
        H: Fn(Context, ClientRequest) -> F + Clone + Send + 'static,
        F: Future<Output = Result<ClientResponse, ServerError>> + Send + 'static,
    {
        let Self { mut link, asking, serving } = self;
        let NewClient { client, dispatch } = WorkerClient::new(asking_config(), asking);
        link.tasks.spawn(dispatch.map(|_| ()));
        link.serve(serving, callbacks);
        (client, link)
    }
}

impl WorkerSide {
    /// Over a stream. What the peer may leave unread it may on all its connections together.
    ///
    /// Must be called within a tokio runtime.
    pub fn over(stream: impl AsyncRead + AsyncWrite + Send + 'static, backlog: &Backlog) -> Self {
        over(stream, backlog)
    }

    /// Over one stream after the other.
    ///
    /// Must be called within a tokio runtime.
    pub fn lasting(stream: Stream, renewal: Renewal, backlog: &Backlog) -> Self {
        lasting(stream, renewal, backlog)
    }

    /// Serves the client's calls from now on, by what `make` makes of what to call the client with.
    pub fn serve<M, H, F>(self, make: M) -> Link
    where
        M: FnOnce(ClientClient) -> H,
        H: Fn(Context, WorkerRequest) -> F + Clone + Send + 'static,
        F: Future<Output = Result<WorkerResponse, ServerError>> + Send + 'static,
    {
        let Self { mut link, asking, serving } = self;
        let NewClient { client, dispatch } = ClientClient::new(asking_config(), asking);
        link.tasks.spawn(dispatch.map(|_| ()));
        link.serve(serving, make(client));
        link
    }
}

fn over<S, Ask, Answer, Req, Resp>(stream: S, backlog: &Backlog) -> Side<Ask, Answer, Req, Resp>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
    Req: DeserializeOwned + Method + Send + 'static,
    Answer: DeserializeOwned + Method + Send + 'static,
{
    let (read, write) = tokio::io::split(stream);
    carried(Shared::new(backlog, false), |link, inbox| {
        link.tasks.spawn(carry::read(link.shared.clone(), read, inbox));
        link.tasks.spawn(carry::write(link.shared.clone(), write));
    })
}

fn lasting<Ask, Answer, Req, Resp>(
    stream: Stream,
    renewal: Renewal,
    backlog: &Backlog,
) -> Side<Ask, Answer, Req, Resp>
where
    Req: DeserializeOwned + Method + Send + 'static,
    Answer: DeserializeOwned + Method + Send + 'static,
{
    carried(Shared::new(backlog, true), |link, inbox| {
        link.tasks.spawn(carry::last(link.shared.clone(), stream, inbox, renewal));
    })
}

fn carried<Ask, Answer, Req, Resp>(
    shared: Arc<Shared>,
    carry: impl FnOnce(&mut Link, Inbox<Req, Answer>),
) -> Side<Ask, Answer, Req, Resp>
where
    Req: DeserializeOwned + Method,
    Answer: DeserializeOwned + Method,
{
    let (to_server, requests) = mpsc::unbounded_channel();
    let (to_caller, responses) = mpsc::unbounded_channel();
    let asking = AskingHalf::new(shared.clone(), Way::Stream, responses);
    let serving = ServingHalf::new(shared.clone(), requests, Way::Stream);
    let inbox = Inbox::new(shared.clone(), to_server, to_caller);
    let mut link = Link { shared, tasks: JoinSet::new() };
    carry(&mut link, inbox);
    Side { link, asking, serving }
}

impl Link {
    /// When and why the connection ended.
    pub async fn ended(&self) -> LinkEnd {
        self.shared.ended().await
    }

    /// Bytes sent and received so far; goes on counting.
    pub fn stats(&self) -> Arc<LinkStats> {
        self.shared.stats.clone()
    }

    /// Closes the connection after telling the peer why.
    pub async fn close(self, why: &str) {
        self.shared.say_goodbye(why);
        let _ = tokio::time::timeout(Duration::from_secs(1), self.shared.ended()).await;
    }

    /// From now on the link ends with its connection: there is nothing left that could go on.
    pub fn settle(&self) {
        self.shared.settled.store(true, Ordering::Relaxed);
    }

    /// The connection may be dead although nobody says so: a link that lasts looks for another one.
    pub fn doubt(&self) {
        self.shared.doubt.notify_one();
    }

    fn serve<Req, Resp, H, F>(&mut self, half: ServingHalf<Req, Resp>, handler: H)
    where
        Req: tarpc::RequestName + Send + 'static,
        Resp: serde::Serialize + wire::Method + Send + 'static,
        H: Fn(Context, Req) -> F + Clone + Send + 'static,
        F: Future<Output = Result<Resp, ServerError>> + Send + 'static,
    {
        let shared = self.shared.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                _ = shared.ended() => {}
                () = serve_all(half, handler, &shared) => {}
            }
        });
    }
}

/// Serves requests: each handler up to its first `await` in order of arrival, then all at once.
async fn serve_all<Req, Resp, H, F>(half: ServingHalf<Req, Resp>, handler: H, shared: &Shared)
where
    Req: tarpc::RequestName + Send + 'static,
    Resp: serde::Serialize + wire::Method + Send + 'static,
    H: Fn(Context, Req) -> F + Clone + Send + 'static,
    F: Future<Output = Result<Resp, ServerError>> + Send + 'static,
{
    let mut requests = pin!(BaseChannel::with_defaults(half).requests());
    let mut handlers: JoinSet<Result<(), Box<dyn Any + Send>>> = JoinSet::new();
    loop {
        let done = tokio::select! {
            Some(done) = handlers.join_next() => done.unwrap_or(Ok(())),
            request = requests.next() => {
                let Some(Ok(request)) = request else { return };
                let handler = handler.clone();
                let run = request.execute(serve(move |context, carried: Carried<Req>| {
                    let Carried { request, hold } = carried;
                    let answer = handler(context, request);
                    async move {
                        let answer = answer.await;
                        drop(hold);
                        answer
                    }
                }));
                let mut run = Box::pin(AssertUnwindSafe(run).catch_unwind());
                match poll_fn(|cx| Poll::Ready(run.as_mut().poll(cx))).await {
                    Poll::Ready(done) => done,
                    Poll::Pending => {
                        handlers.spawn(run);
                        Ok(())
                    }
                }
            }
        };
        if let Err(panic) = done {
            shared.finish(LinkEnd::Bug(panic_text(&*panic)));
        }
    }
}

fn asking_config() -> tarpc::client::Config {
    let mut config = tarpc::client::Config::default();
    config.max_in_flight_requests = ASKING_MAX;
    config
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a handler panicked").to_owned()
}

impl LinkEnd {
    /// Whether it was only the connection that ended: nobody meant it.
    fn is_break(&self) -> bool {
        matches!(self, Self::PeerClosed | Self::Io(_))
    }

    fn of_io(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof => Self::PeerClosed,
            _ => Self::Io(error.to_string()),
        }
    }
}

impl fmt::Display for LinkEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("closed"),
            Self::PeerClosed => f.write_str("the other side closed the connection"),
            Self::Goodbye(why) => write!(f, "the other side closed the connection: {why}"),
            Self::Io(why) => write!(f, "the connection broke: {why}"),
            Self::Violation(what) => {
                write!(f, "connection closed, the other side broke the protocol: {what}")
            }
            Self::Bug(what) => write!(f, "connection closed because of a bug: {what}"),
        }
    }
}

impl LinkStats {
    /// Bytes handed to the stream.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Bytes taken from the stream.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    fn add_sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn add_received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}
