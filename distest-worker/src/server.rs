//! The worker's side of a connection: a thin implementation of [`protocol::Worker`].
//!
//! Three parts, one way: [`handler`] takes the client's calls in the order in which they arrive and
//! hands them on; [`driver`] owns the session and performs its effects on slots; [`outbox`] brings
//! reports and output to the client. What only concerns files ([`files`]) never passes the driver,
//! nor do the bytes of forwarded connections ([`forward`]).
//!
//! [`protocol::Worker`]: crate::protocol::Worker

mod backlogs;
mod collect;
mod comebacks;
mod driver;
mod environment;
mod files;
mod forward;
mod handler;
mod hands;
mod layers;
mod machine_slot;
mod outbox;
mod permits;
mod pins;
mod sessions;
mod tally;
mod upgrading;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use data_encoding::BASE64URL_NOPAD;
use nix::sys::resource::{Resource, getrlimit};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};

use self::backlogs::Backlogs;
pub(crate) use self::comebacks::NoComeback;
use self::comebacks::{Comebacks, Offer};
use self::driver::Driver;
pub use self::environment::FROM_WORKER;

/// Slots of a worker at most, and numbers that the slots of a machine can have.
pub const SLOTS_MAX: u32 = 4096;
use self::files::Files;
use self::handler::{Handler, need};
use self::permits::Permits;
use self::sessions::Sessions;
pub(crate) use self::tally::Counted;
use self::tally::Tally;
use crate::hello::{self, HELLO_TIMEOUT, Hello, HelloError, Role, Version};
use crate::identity::{Gate, Peer, Permission, PublicKey};
use crate::link::{self, ClientSide, LinkEnd, Renewal, WorkerSide};
use crate::memory::Memory;
use crate::protocol::{Labels, Refusal, RefusalKind, WorkerStatus};
use crate::sandbox::host::Host;
use crate::sandbox::level::Level;
use crate::store::Store;
use crate::tools;
use crate::upgrade::Upgrades;
use crate::zygote::ZygoteProgram;

/// What a worker is.
#[derive(Clone)]
pub struct WorkerConfig {
    /// What people call it.
    pub name: String,
    /// Attempts that it runs at once, over all its sessions; at least 1.
    pub slots: u32,
    /// Where blobs are kept. None for an embedded worker.
    pub store: Option<Store>,
    /// It may use the client's files where they lie: only if it is part of the client's process.
    pub in_place: bool,
    /// What it says of itself.
    pub labels: Labels,
}

/// A worker, shared by its connections.
pub struct WorkerShared {
    config: WorkerConfig,
    zygote: ZygoteProgram,
    host: Arc<Host>,
    /// For output that is too long for memory: files without names.
    scratch: PathBuf,
    permits: Arc<Permits>,
    memory: Memory,
    stage: watch::Sender<Stage>,
    /// Why nothing is to be started now.
    paused: watch::Sender<Option<String>>,
    /// Whom alone it serves, if it hides one client's files from another's tests in no sandbox.
    only: OnceLock<Mutex<Option<PublicKey>>>,
    sessions: Sessions,
    backlogs: Backlogs,
    comebacks: Comebacks,
    tally: Tally,
    /// Held by whoever looks for libraries: it reads files, at anybody's word.
    looking: Arc<tokio::sync::Mutex<()>>,
    /// If it can be given another executable.
    upgrades: OnceLock<Upgrades>,
    /// See [`Hello::instance`].
    instance: String,
}

/// How far a worker is on its way to its end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Stage {
    /// It takes sessions.
    Serving,
    /// It takes nothing more, and what runs comes to its end.
    Draining,
    /// All sessions end now.
    ShuttingDown,
}

/// How a connection ended.
#[derive(Debug)]
pub enum ConnectionEnd {
    /// The peer was no client that we understand.
    NoHello(HelloError),
    /// There was a session, or could have been one.
    Link(LinkEnd),
    /// There was one.
    Session {
        /// How it ended.
        end: LinkEnd,
        /// What the worker calls its client.
        client: String,
        /// The run that it served.
        run: String,
    },
}

/// Is told the client and the run when a connection's first session begins.
pub type Begins = Box<dyn FnMut(&str, &str) + Send>;

impl WorkerShared {
    /// A worker that has no connection yet and starts attempts by `zygote`, in no sandbox.
    pub fn new(config: WorkerConfig, zygote: ZygoteProgram) -> Arc<Self> {
        Self::on(Host::plain(), config, zygote)
    }

    /// The same, in sandboxes as the host can make them.
    pub fn on(host: Host, config: WorkerConfig, zygote: ZygoteProgram) -> Arc<Self> {
        let scratch =
            config.store.as_ref().map_or_else(std::env::temp_dir, |store| store.scratch().into());
        let permits = Permits::new(config.slots.max(1));
        let sessions = Sessions::default();
        let (host, instance) = (Arc::new(host), instance());
        Arc::new(Self {
            config,
            zygote,
            host,
            scratch,
            permits,
            memory: Memory::of_this_machine(),
            stage: watch::Sender::new(Stage::Serving),
            paused: watch::Sender::new(None),
            only: OnceLock::new(),
            sessions,
            backlogs: Backlogs::default(),
            comebacks: Comebacks::default(),
            tally: Tally::default(),
            looking: Arc::default(),
            upgrades: OnceLock::new(),
            instance,
        })
    }

    /// What it is.
    pub fn config(&self) -> &WorkerConfig {
        &self.config
    }

    /// From now on it can be given another executable.
    pub fn can_upgrade(&self, upgrades: Upgrades) {
        let _ = self.upgrades.set(upgrades);
    }

    /// Which one it is given, if it can be.
    pub fn upgrades(&self) -> Option<&Upgrades> {
        self.upgrades.get()
    }

    /// Whether it is to become another executable once it has drained.
    pub(crate) fn is_upgraded(&self) -> bool {
        self.upgrades().is_some_and(Upgrades::is_chosen)
    }

    /// Looks how much memory is left; answers whether that is little. Then nothing is started beside
    /// what runs.
    fn look_at_memory(&self) -> bool {
        let short = self.memory.look().short;
        self.permits.alone(short);
        short
    }

    /// Takes nothing more, and ends each session when what runs in it has ended.
    pub fn drain(&self) {
        self.reach(Stage::Draining);
    }

    /// Whether all sessions end now.
    pub(crate) fn shuts_down(&self) -> bool {
        *self.stage.borrow() >= Stage::ShuttingDown
    }

    /// Whether it takes nothing more.
    fn drains(&self) -> bool {
        *self.stage.borrow() >= Stage::Draining
    }

    fn reach(&self, stage: Stage) {
        self.stage.send_if_modified(|now| {
            let further = stage > *now;
            *now = stage.max(*now);
            further
        });
    }

    async fn reached(&self, stage: Stage) {
        // An error means that the sender is gone, which `self` holds.
        let _ = self.stage.subscribe().wait_for(|now| *now >= stage).await;
    }

    /// From now on serves the first client that comes, and no other: tests could see what others
    /// have here, and what they left.
    pub fn serve_one_client(&self) {
        let _ = self.only.set(Mutex::default());
    }

    /// Whether it serves the first client and no other.
    pub fn serves_one_client(&self) -> bool {
        self.only.get().is_some()
    }

    /// Whether this client may have a session. Who needs no key could see all that is here anyway.
    fn may_serve(&self, key: Option<&PublicKey>) -> Result<(), Refusal> {
        let (Some(only), Some(key)) = (self.only.get(), key) else { return Ok(()) };
        let only = only.lock().unwrap_or_else(PoisonError::into_inner);
        Self::is_served(only.as_ref().unwrap_or(key), key)
    }

    /// From now on it is this client that is served, if it is one only.
    fn claim(&self, key: Option<&PublicKey>) -> Result<(), Refusal> {
        let (Some(only), Some(key)) = (self.only.get(), key) else { return Ok(()) };
        let mut only = only.lock().unwrap_or_else(PoisonError::into_inner);
        Self::is_served(only.get_or_insert(*key), key)
    }

    fn is_served(only: &PublicKey, key: &PublicKey) -> Result<(), Refusal> {
        if only == key {
            return Ok(());
        }
        let message = "could not open a session: in no sandbox this worker can't hide one client's \
                       files from another's tests, and it has served another client";
        let hint = "start it again for this client, with --trust-clients if its clients may see each \
                    other's files, or where sandboxes are possible";
        Err(Refusal::new(RefusalKind::Forbidden, message).with_hint(hint))
    }

    /// Starts nothing more for now, and why; or goes on. What runs comes to its end, and sessions are
    /// over then: clients come again.
    pub fn pause(&self, why: Option<String>) {
        self.paused.send_if_modified(|paused| {
            // What changes from look to look is told as it was at first.
            let changed = paused.is_some() != why.is_some();
            *paused = why;
            changed
        });
    }

    /// When nothing is to be started for now.
    async fn paused(&self) {
        // An error means that the sender is gone, which `self` holds.
        let _ = self.paused.subscribe().wait_for(Option::is_some).await;
    }

    /// Why nothing is to be started now.
    fn pause_reason(&self) -> Option<String> {
        self.paused.borrow().clone()
    }

    /// When it drains, or shuts down.
    pub async fn draining(&self) {
        self.reached(Stage::Draining).await;
    }

    /// What has happened since it started.
    pub(crate) fn counted(&self) -> Counted {
        self.tally.counted()
    }

    /// Blobs that were removed to make room.
    pub(crate) fn evicted(&self) -> u64 {
        self.config.store.as_ref().map_or(0, Store::evicted)
    }

    /// A connection was not let in.
    pub(crate) fn count_refused(&self) {
        self.tally.refuse();
    }

    /// What goes on here.
    pub(crate) fn status(&self) -> WorkerStatus {
        let store = self.config.store.as_ref();
        let shortfall = self.host.shortfall.as_ref();
        WorkerStatus {
            slots: self.slots(),
            used: self.permits.in_use(),
            short_of_memory: self.look_at_memory(),
            draining: self.drains(),
            paused: self.pause_reason().unwrap_or_default(),
            store_bytes: store.map_or(0, Store::bytes),
            store_bytes_max: store.map_or(0, Store::bytes_max),
            sandbox_reason: shortfall.map(|it| it.reason.clone()).unwrap_or_default(),
            sandbox_hint: shortfall.and_then(|it| it.hint.clone()),
            clock_ms: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX)),
            descriptors_max: getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft),
            disk_free_bytes: store.and_then(Store::disk_free),
            one_client: self.serves_one_client(),
            sessions: self.sessions.all(),
        }
    }

    /// Ends all sessions, in order, and lets no more begin.
    pub fn shut_down(&self) {
        self.reach(Stage::ShuttingDown);
    }

    /// When it shuts down.
    pub(crate) async fn shutting_down(&self) {
        self.reached(Stage::ShuttingDown).await;
    }

    /// How it makes sandboxes.
    pub fn host(&self) -> &Host {
        &self.host
    }

    fn slots(&self) -> u32 {
        self.config.slots.max(1)
    }

    fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// See [`Hello::instance`](crate::hello::Hello::instance).
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Whether a client's paths are free here is known only when a session asks for them.
    fn advertised_level(&self) -> Level {
        match self.host.level {
            Level::SamePath => Level::Variables,
            level => level,
        }
    }

    fn hello(&self) -> Hello {
        Hello {
            slots: self.slots(),
            labels: self.config.labels.clone(),
            tools: tools::present(),
            sandbox_level: self.advertised_level().number(),
            private_network: self.host.private_network.is_ok(),
            private_network_lack: match &self.host.private_network {
                Ok(()) => String::new(),
                Err(lack) => lack.reason.clone(),
            },
            forwards: true,
            proofs: self.config.store.is_some(),
            instance: self.instance.clone(),
            ..Hello::new(Role::Worker, &*self.config.name)
        }
    }

    /// The same for somebody whom it knows.
    fn hello_to(&self, peer: &Peer) -> Hello {
        let may_run = need(&peer.permissions, Permission::Run);
        let refusal = may_run.and_then(|()| self.may_serve(peer.key.as_ref())).err();
        Hello { refusal, ..self.hello() }
    }
}

/// A random name for this process; empty if the system has no randomness.
fn instance() -> String {
    let mut bytes = [0; 12];
    match SystemRandom::new().fill(&mut bytes) {
        Ok(()) => BASE64URL_NOPAD.encode(&bytes),
        Err(_) => String::new(),
    }
}

/// Greets a client and serves it until the connection ends; then everything that it started has
/// ended, and its files are gone. For streams whose other end could do everything without us.
pub async fn serve_connection<S>(stream: S, worker: Arc<WorkerShared>) -> ConnectionEnd
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let gate = Arc::new(Gate::new(None, None));
    serve_peer(stream, worker, Peer::ourselves(), gate, false, Box::new(|_, _| {})).await
}

/// The same for a peer that may do what it may do, for as long as `gate` lets it. It may come back
/// if the stream breaks, if it `dialled`.
pub(crate) async fn serve_peer<S>(
    mut stream: S,
    worker: Arc<WorkerShared>,
    peer: Peer,
    gate: Arc<Gate>,
    dialled: bool,
    begins: Begins,
) -> ConnectionEnd
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let key = peer.key.filter(|_| dialled);
    let token = key.and_then(|_| Comebacks::token()).unwrap_or_default();
    let greeting = async {
        let ours = Hello { comeback: token.clone(), ..worker.hello_to(&peer) };
        let theirs = hello::exchange(&mut stream, &ours, HELLO_TIMEOUT).await?;
        // Before it knows that it is connected.
        let lasts = theirs.comes_back && !token.is_empty();
        let offer = key.filter(|_| lasts).map(|key| worker.comebacks.offer(&token, key));
        hello::accept(&mut stream).await?;
        Ok((theirs.protocol, offer.unzip()))
    };
    let (speaks, (offer, awaiting)) = match greeting.await {
        Ok(greeted) => greeted,
        Err(error) => return ConnectionEnd::NoHello(error),
    };
    let backlog = worker.backlogs.of(peer.key.as_ref());
    let side = match awaiting.map(Renewal::Awaits) {
        Some(back) => WorkerSide::lasting(Box::new(stream), back, &backlog),
        None => WorkerSide::over(stream, &backlog),
    };
    let ended = serve_greeted(side, worker, Admission { peer, gate, speaks }, begins, offer);
    ended.await
}

/// The way to a worker in this process, which does there what is asked of it until that ends; and
/// how it greets.
pub fn serve_near(
    worker: Arc<WorkerShared>,
) -> (Hello, ClientSide, impl Future<Output = ConnectionEnd> + Send) {
    let (ours, theirs) = link::near();
    let (peer, gate) = (Peer::ourselves(), Arc::new(Gate::new(None, None)));
    let hello = worker.hello_to(&peer);
    let admission = Admission { peer, gate, speaks: hello.protocol };
    (hello, ours, serve_greeted(theirs, worker, admission, Box::new(|_, _| {}), None))
}

/// Serves a client that has been greeted, until the connection ends. Until the session ends it may
/// come back, if that was offered.
async fn serve_greeted(
    side: WorkerSide,
    worker: Arc<WorkerShared>,
    admission: Admission,
    begins: Begins,
    offer: Option<Offer>,
) -> ConnectionEnd {
    let (requests, requests_in) = mpsc::unbounded_channel();
    let (config, peer) = (worker.config(), &admission.peer);
    let files = Arc::new(Files::new(
        config.store.clone(),
        peer.key.as_ref(),
        config.in_place,
        Arc::clone(&worker.host),
    ));
    let permissions = Arc::new(peer.permissions.clone());
    let mut caller = None;
    let link = side.serve(|client| {
        caller = Some(client);
        let shared = Arc::clone(&worker);
        let handler = Handler::new(requests, Arc::clone(&files), permissions, shared);
        move |context, request| handler.clone().answer(context, request)
    });
    let Some(client) = caller else { return ConnectionEnd::Link(link.ended().await) };
    let driver = Driver::new(worker, Arc::clone(&files), client, admission, begins);
    let served = driver.served();
    let (end, last_word) = driver.run(requests_in, &link).await;
    drop(offer);
    match last_word {
        Some(why) => link.close(why).await,
        None => drop(link),
    }
    // Removing a sandbox takes time; handlers that still hold it end with the link.
    let _ = tokio::task::spawn_blocking(move || drop(files)).await;
    match served.get() {
        Some((client, run)) => {
            ConnectionEnd::Session { end, client: client.clone(), run: run.clone() }
        }
        None => ConnectionEnd::Link(end),
    }
}

/// Takes a client with this key back to the session that it names, with which it then goes on.
pub(crate) async fn come_back<S>(
    stream: S,
    worker: &WorkerShared,
    key: &PublicKey,
) -> Result<(), NoComeback>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    worker.comebacks.take(stream, key).await?;
    worker.tally.come_back();
    Ok(())
}

/// Greets a client and tells it why it isn't served.
pub(crate) async fn turn_away<S>(mut stream: S, worker: &WorkerShared, why: Refusal)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let told = async {
        hello::exchange(&mut stream, &worker.hello(), HELLO_TIMEOUT).await?;
        hello::refuse(&mut stream, why).await?;
        Ok::<_, HelloError>(stream.shutdown().await?)
    };
    // Who doesn't listen isn't served either.
    let _ = tokio::time::timeout(HELLO_TIMEOUT, told).await;
}

/// Who is served, and until when.
struct Admission {
    peer: Peer,
    gate: Arc<Gate>,
    /// The version of the protocol that the peer speaks.
    speaks: Version,
}

impl Admission {
    /// When something that the peer might do is no longer allowed.
    async fn withdrawn(&self) {
        self.gate.revoked(&self.peer).await;
    }
}
