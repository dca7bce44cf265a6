//! One worker: dialled, greeted, watched.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use distest_worker::hello::Hello;
use distest_worker::identity::PublicKey;
use distest_worker::link::{
    self, Backlog, ClientSide, Dial, Dialling, Link, LinkEnd, LinkStats, Renewal, Resumed, Stream,
    Undialled,
};
use distest_worker::protocol::{
    Client, Forward, OsText, Refusal, RefusalKind, SessionSpec, TestTime, WorkerClient,
};
use distest_worker::tls::{self, Purpose, Secured, TlsError, Trust};
use tarpc::server::Serve;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::callbacks::Callbacks;
use super::forward::Forwards;
use super::greeting::{Comeback, Greeted};
use super::keys::{Keys, Place};
use super::members::Member;
use super::stopwatch::Stopwatch;
use super::{CONNECT_TIMEOUT, Fleet, FleetMessage, HEARTBEAT, LOST_AFTER, Spare, Unusable};
use crate::collect::Collector;
use crate::model::{Step, WorkerId};
use crate::settings::WorkerAddress;
use crate::wary;

/// What a worker that dialled us may take to prove its key and to greet.
pub(super) const GREETING_TIME: Duration = Duration::from_secs(5);

/// A connection on which a ping has not been answered for this long may be dead.
const DOUBT_AFTER: Duration = Duration::from_secs(1);

/// What to do where no connection comes about.
const NO_WAY: &str = "check how host and port are spelt, that the machine is up, and that this \
                      machine's network leads there (routes, a VPN, a firewall)";

/// A worker with an open session. Dropping it ends the session.
#[derive(Debug)]
pub struct Connection {
    /// Its number in this run.
    pub id: WorkerId,
    /// What it calls itself.
    pub name: String,
    /// As it was given; empty for the embedded one.
    pub address: String,
    /// Slots that this session may use.
    pub slots: u32,
    /// It lives in this process and uses the client's files where they lie.
    pub embedded: bool,
    /// What it says of itself.
    pub hello: Arc<Hello>,
    /// Services of ours that its tests are to find, if they have a network of their own.
    pub forwards: Vec<Forward>,
    /// How it recreates the client's paths.
    pub paths: Arc<PathsThere>,
    /// How long it took until it could be used, by step; empty for the embedded one.
    pub steps: Vec<(Step, Duration)>,
    /// From a request to its answer.
    pub round_trip: Duration,
    /// How long tests take as far as it knows, if we wanted to know.
    pub times: Vec<TestTime>,
    /// Of how many of our tests it knows that; none if it keeps no times.
    pub times_known: Option<u32>,
    /// What takes the files that its tests left.
    pub collector: Arc<Collector>,
    /// For calling it.
    pub worker: WorkerClient,
    /// Bytes on the wire so far.
    pub stats: Arc<LinkStats>,
    /// When it last answered a ping.
    heard: watch::Receiver<Instant>,
    task: JoinHandle<()>,
    here: watch::Sender<()>,
    _member: Option<Member>,
}

/// Ends with an error when the connection is dropped.
pub(super) type Gone = watch::Receiver<()>;

impl Connection {
    pub(super) fn gone(&self) -> Gone {
        self.here.subscribe()
    }

    /// From when on nothing of ours can run there any more, if the session ends now. The embedded
    /// worker is told to end it, and answers no pings.
    pub fn dead_at(&self) -> Instant {
        let last = if self.embedded { Instant::now() } else { *self.heard.borrow() };
        last + LOST_AFTER
    }
}

/// How a worker recreates the client's paths in a session.
#[derive(Debug)]
pub struct PathsThere {
    /// The client's folders that tests may look for.
    pub roots: Vec<OsText>,
    /// The number of a [`distest_worker::sandbox::level::Level`].
    pub level: u32,
    /// Why it is not a better one; empty if it can't be.
    pub reason: String,
    /// What to do about that.
    pub hint: Option<String>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Connects to a worker that listens, and opens a session there.
pub(super) async fn dial(
    fleet: &Fleet,
    host: &str,
    port: u16,
    key: Option<PublicKey>,
) -> Result<Connection, Unusable> {
    let address = WorkerAddress::Tcp { host: host.to_owned(), port, key }.to_string();
    let keys = fleet.keys().await?;
    let mut watch = Stopwatch::start();
    let secured = reach(keys, host, port, key).await?;
    watch.done(Step::Connect);
    let again = again(keys, &secured)?;
    let greeted = Greeted::dialled(keys, secured, again).await?;
    watch.done(Step::Hello);
    over(fleet, greeted, address, watch).await
}

/// Dials the same worker again, where it was: a name may lead to several.
fn again(keys: &Keys, secured: &Secured<TcpStream>) -> Result<Dial, Unusable> {
    let place = secured.stream.get_ref().0.inner().peer_addr();
    let place = place.map_err(|error| Unusable::new(error.to_string()))?;
    let (ours, key) = (keys.ours().clone(), secured.key);
    Ok(Box::new(move || {
        let ours = ours.clone();
        Box::pin(async move {
            let stream = TcpStream::connect(place).await.map_err(|_| Undialled::Yet)?;
            let _ = stream.set_nodelay(true);
            let trust: Trust = Arc::new(move |theirs| *theirs == key);
            match tls::connect(stream, &ours, Purpose::Resume, trust).await {
                Ok(secured) => Ok(Box::new(secured.stream) as Stream),
                Err(TlsError::Refused | TlsError::WrongPurpose) => Err(Undialled::Ever),
                Err(_) => Err(Undialled::Yet),
            }
        })
    }))
}

/// Connects to a worker that listens, and has both ends' keys proved.
pub(super) async fn reach(
    keys: &Keys,
    host: &str,
    port: u16,
    key: Option<PublicKey>,
) -> Result<Secured<TcpStream>, Unusable> {
    let start_hint = format!(
        "start it with: distest-worker serve --listen {host}:{port}; one that finishes what runs \
         (drain) takes no connection any more, and has to be started again when it has ended"
    );
    let stream = match timeout(CONNECT_TIMEOUT, TcpStream::connect((host, port))).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            let reason = "nobody listens there (connection refused)";
            return Err(Unusable::absent(reason).hint(start_hint));
        }
        Ok(Err(error)) => {
            return Err(Unusable::absent(format!("could not connect: {error}")).hint(NO_WAY));
        }
        Err(_) => {
            let seconds = CONNECT_TIMEOUT.as_secs();
            let reason = format!("could not connect within {seconds} s");
            return Err(Unusable::absent(reason).hint(NO_WAY));
        }
    };
    stream.set_nodelay(true).map_err(|error| Unusable::new(error.to_string()))?;
    let peer = stream.peer_addr().map_err(|error| Unusable::new(error.to_string()))?;
    let loopback = peer.ip().to_canonical().is_loopback();
    let place = format_place(host, port);
    keys.secure(stream, Place { address: &place, pinned: key, loopback }).await
}

/// Opens a session at a worker that has greeted us, if it is wanted.
pub(super) async fn over(
    fleet: &Fleet,
    greeted: Greeted,
    address: String,
    mut watch: Stopwatch,
) -> Result<Connection, Unusable> {
    let on = fleet.shared.settings.on.as_deref();
    if let Some(on) = on.filter(|on| !greeted.names.include(on)) {
        let name = &greeted.hello.name;
        return Err(Unusable::new(format!("its name is {name:?}, and --on asks for {on:?}")));
    }
    let member = Some(fleet.shared.members.admit(&greeted.hello)?);
    let base = fleet.shared.slots.fetch_add(greeted.hello.slots, Ordering::Relaxed);
    let open = Open { id: fleet.next_id(), address, slots: 0, base, member };
    let Greeted { hello, stream, comeback, .. } = greeted;
    let side = match comeback {
        None => ClientSide::over(stream, &Backlog::default()),
        Some(Comeback { dial, token }) => {
            let tell = tell_resumed(open.id, fleet.shared.messages.clone());
            let dials = Renewal::Dials(Dialling { dial, token, tell, tries: 0 });
            ClientSide::lasting(stream, dials, &Backlog::default())
        }
    };
    let mut connection = open.session(fleet, hello, side).await?;
    watch.done(Step::Session);
    connection.steps = watch.steps();
    Ok(connection)
}

fn not_opened(refusal: Refusal) -> Unusable {
    let refusal = wary::refusal(refusal);
    // It may be of use later.
    let spare = (refusal.kind == RefusalKind::OutOfResources).then_some(Spare::ForNow);
    Unusable { hint: refusal.hint, spare, ..Unusable::new(refusal.message) }
}

/// `HOST:PORT`.
pub(super) fn format_place(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// What is asked of a greeted worker.
pub(super) struct Open {
    pub(super) id: WorkerId,
    /// Empty for the embedded worker.
    pub(super) address: String,
    /// Slots wanted; 0 takes what there is.
    pub(super) slots: u32,
    /// Number of its first slot within the run.
    pub(super) base: u32,
    /// Its place in the fleet; none for the embedded worker.
    pub(super) member: Option<Member>,
}

impl Open {
    /// Opens the session at a worker that has greeted us so, and starts watching it.
    pub(super) async fn session(
        self,
        fleet: &Fleet,
        theirs: Hello,
        side: ClientSide,
    ) -> Result<Connection, Unusable> {
        let embedded = self.address.is_empty();
        let messages = fleet.shared.messages.clone();
        let collector = Arc::clone(&fleet.shared.facts.collector);
        let facts = &fleet.shared.facts;
        let notices = Arc::clone(&facts.notices);
        let forwards = Forwards::new(&theirs.name, &facts.forwards, notices);
        let callbacks = Callbacks {
            worker: self.id,
            messages: messages.clone(),
            collector: Arc::clone(&collector),
            forwards,
        };
        let (worker, link) =
            side.serve(move |context, request| callbacks.clone().serve().serve(context, request));
        let spec = SessionSpec {
            run: facts.run.run.clone(),
            slots: self.slots,
            slot_base: self.base,
            in_place: embedded,
            roots: if embedded { Vec::new() } else { facts.roots.clone() },
            env: fleet.environment(embedded),
            hands: false,
            writes: facts.writes,
            collect: if embedded { Vec::new() } else { facts.collect.clone() },
            forwards: facts.forwards.clone(),
            collect_at_once: facts.collect_at_once,
            project: if embedded { String::new() } else { facts.project.clone() },
            lend_times: facts.lend_times,
        };
        let asked = Instant::now();
        let ready = worker
            .open(link::context(CONNECT_TIMEOUT), spec)
            .await
            .map_err(|error| {
                let why = wary::sentence(&link::why(&error));
                Unusable::new(format!("could not open a session: {why}"))
            })?
            .map_err(not_opened)?;
        // Of its own slots this process knows how many there are.
        let ready = if embedded { ready } else { wary::ready(ready) };
        let round_trip = asked.elapsed();
        let stats = link.stats();
        let (hears, heard) = watch::channel(Instant::now());
        let watched = Watched { id: self.id, embedded, hears, messages };
        let task = tokio::spawn(attend(watched, link, worker.clone()));
        Ok(Connection {
            id: self.id,
            name: theirs.name.clone(),
            address: self.address,
            slots: ready.slots,
            embedded,
            hello: Arc::new(theirs),
            forwards: facts.forwards.clone(),
            paths: Arc::new(PathsThere {
                roots: facts.roots.clone(),
                level: ready.sandbox_level,
                reason: ready.sandbox_reason,
                hint: ready.sandbox_hint,
            }),
            steps: Vec::new(),
            round_trip,
            times: ready.times,
            times_known: ready.times_known,
            collector,
            worker,
            stats,
            heard,
            task,
            _member: self.member,
            here: watch::Sender::new(()),
        })
    }
}

/// Tells that a worker's session goes on after a connection broke.
fn tell_resumed(
    worker: WorkerId,
    messages: mpsc::Sender<FleetMessage>,
) -> Box<dyn Fn(Resumed) + Send> {
    Box::new(move |Resumed { broke, after }| {
        let reason = wary::sentence(&broke.to_string());
        let messages = messages.clone();
        // The session goes on, whether or not somebody has time to hear it.
        tokio::spawn(async move {
            let _ = messages.send(FleetMessage::Resumed { worker, reason, after }).await;
        });
    })
}

/// A worker that is attended to.
struct Watched {
    id: WorkerId,
    embedded: bool,
    /// Has when it last answered.
    hears: watch::Sender<Instant>,
    messages: mpsc::Sender<FleetMessage>,
}

/// Asks for a sign of life each [`HEARTBEAT`] and tells of the worker's end: when its connection
/// is gone, or when it has not answered for [`LOST_AFTER`]. Long before, the connection is doubted:
/// something on the way may have forgotten it without a word, and another one can take its place.
///
/// One ping follows the answer to another, never earlier: so the worker learns from each that we
/// have had its last answer, and its own fence can't be later than our loss of it
/// ([`distest_worker::session`]).
///
/// The embedded worker is never asked that, since it stops with us. Only its memory is looked at.
async fn attend(watched: Watched, link: Link, worker: WorkerClient) {
    let Watched { id, embedded, hears, messages } = watched;
    let last = || *hears.borrow();
    let mut memory = Shortage { id, short: false, told: messages.clone() };
    let silent = async {
        loop {
            let asked = Instant::now();
            if embedded {
                match worker.status(link::context(LOST_AFTER)).await {
                    Ok(Ok(status)) => memory.is(status.short_of_memory),
                    Ok(Err(_)) | Err(_) => return std::future::pending().await,
                }
            } else {
                let mut answer = pin!(worker.ping(link::context(LOST_AFTER)));
                let answered = async {
                    loop {
                        tokio::select! {
                            answered = &mut answer => return answered,
                            () = sleep(DOUBT_AFTER) => link.doubt(),
                        }
                    }
                };
                match timeout_at(last() + LOST_AFTER, answered).await {
                    Ok(Ok(pong)) => {
                        hears.send_replace(Instant::now());
                        memory.is(pong.short_of_memory);
                    }
                    Ok(Err(_)) | Err(_) => break,
                }
            }
            sleep_until(asked + HEARTBEAT).await;
        }
        sleep_until(last() + LOST_AFTER).await;
    };
    let (reason, fenced) = tokio::select! {
        biased;
        end = link.ended() => {
            // It says goodbye when everything has ended; then there is nothing to wait for.
            let orderly = matches!(end, LinkEnd::Closed | LinkEnd::Goodbye(_));
            (wary::sentence(&end.to_string()), orderly)
        }
        () = silent => (format!("no sign of life for {:.1} s", LOST_AFTER.as_secs_f64()), true),
    };
    let dead_at = if fenced || embedded { Instant::now() } else { last() + LOST_AFTER };
    // Nobody listens once the run is over.
    let _ = messages.send(FleetMessage::Gone { worker: id, reason, dead_at }).await;
}

/// Whether a worker is short of memory, as far as that was told.
struct Shortage {
    id: WorkerId,
    short: bool,
    told: mpsc::Sender<FleetMessage>,
}

impl Shortage {
    /// Tells it if it is news.
    fn is(&mut self, short: bool) {
        let memory = FleetMessage::Memory { worker: self.id, short };
        // If there is no room, the next answer says it again.
        if self.short != short && self.told.try_send(memory).is_ok() {
            self.short = short;
        }
    }
}
