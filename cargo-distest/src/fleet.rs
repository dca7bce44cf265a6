//! Where workers come from: embedded in this process, or at an address.
//!
//! [`Fleet::connect`] tries all addresses at once and tells of each through one channel, together
//! with everything that the workers then say. It vouches for a worker only after `hello` and
//! `open` were answered; both have deadlines, so that a silent peer costs seconds.

mod admin;
mod callbacks;
mod connection;
mod copy;
mod discover;
mod embedded;
mod forward;
mod greeting;
mod hands;
mod joiners;
mod keys;
mod known;
mod listen;
mod meant;
mod members;
mod notices;
mod ssh;
mod stopwatch;
mod talk;
mod trouble;
mod turns;
mod visit;

use std::collections::hash_map::RandomState;
use std::ffi::OsString;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use distest_worker::identity::PrivateKey;
use distest_worker::protocol::{Forward, OsText, OutputChunk, Report, Writes};
use distest_worker::registry::RegistryPlace;
use tokio::sync::{OnceCell, mpsc, oneshot, watch};
use tokio::time::Instant;

use self::keys::Keys;
use self::members::Members;
use crate::collect::Collector;
use crate::model::WorkerId;
use crate::settings::{FleetSettings, IdentitySettings, LocalSlots, WorkerAddress};
use crate::testenv::{self, Pass, RunFacts};
pub use admin::{Upgraded, collect_garbage, drain, upgrade};
use connection::Gone;
pub use connection::{Connection, PathsThere};
pub use copy::{get, put};
pub use greeting::Names;
pub use hands::{Happened, run};
pub use joiners::JOINERS_WITHIN;
pub use known::add_known;
pub use meant::{Meant, all, named, only};
pub use notices::{Notice, Notices};
use trouble::{Spare, Unusable};
pub use trouble::{Trouble, Undone};
pub use visit::{Clock, Said, Source, Visited, Wanted, visit};

/// A worker that can't be reached or doesn't greet is given up after this long.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Between heartbeats.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// A worker that has not answered for this long is lost. Later than its own fence
/// ([`distest_worker::session::FENCE_AFTER`]), so that no test runs twice at once.
pub const LOST_AFTER: Duration = Duration::from_millis(4500);
/// Between attempts to reach a worker again that was lost: at first, and at most. Each failure
/// doubles it.
const REDIAL_MIN: Duration = Duration::from_millis(500);
const REDIAL_MAX: Duration = Duration::from_secs(2);
/// Messages of workers that wait to be taken.
const MESSAGES_MAX: usize = 256;

/// What becomes of the fleet, and what its workers say.
#[derive(Debug)]
pub enum FleetMessage {
    /// A worker can be used.
    Joined(Box<Connection>),
    /// A worker is short of memory, or not any more.
    Memory {
        /// Which.
        worker: WorkerId,
        /// It is short now.
        short: bool,
    },
    /// An address yields no usable worker.
    Unusable {
        /// As it was given.
        address: String,
        /// Why not.
        reason: String,
        /// What to do.
        hint: Option<String>,
    },
    /// Every address has joined or is unusable.
    AllAnswered,
    /// A worker says what happened. `taken` is its window: send it when the reports are taken.
    Reports {
        /// Which worker.
        worker: WorkerId,
        /// In order.
        reports: Vec<Report>,
        /// Answer.
        taken: oneshot::Sender<()>,
    },
    /// A worker sends output.
    Output {
        /// Which worker.
        worker: WorkerId,
        /// The piece.
        chunk: OutputChunk,
        /// Answer.
        taken: oneshot::Sender<()>,
    },
    /// A worker's connection broke, and another one has taken its place; nothing was lost.
    Resumed {
        /// Which.
        worker: WorkerId,
        /// What became of the first.
        reason: String,
        /// How long it took.
        after: Duration,
    },
    /// A worker is gone.
    Gone {
        /// Which.
        worker: WorkerId,
        /// Why, as far as we know.
        reason: String,
        /// From now on nothing of ours can run there any more: it has ended, or fenced itself.
        dead_at: Instant,
    },
}

/// What a session needs to know of the run.
#[derive(Clone, Debug)]
pub struct SessionFacts {
    /// What all tests have in common.
    pub run: RunFacts,
    /// Folders of the client that are laid out on workers, outermost first.
    pub roots: Vec<OsText>,
    /// The client's own environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Variables that remote tests get beside those that always travel.
    pub pass: Pass,
    /// Sessions have no environment: each attempt brings all of its own.
    pub bare: bool,
    /// Which tests see what others wrote, where that is discarded.
    pub writes: Writes,
    /// Whose tests these are, for the times that workers keep; empty: they keep none.
    pub project: String,
    /// We have no times of our own.
    pub lend_times: bool,
    /// A test may ask for a network of its own.
    pub private_networks: bool,
    /// Services of this machine's that such a test finds where they are here.
    pub forwards: Vec<Forward>,
    /// Takes what the user should know of that.
    pub notices: Arc<Notices>,
    /// Patterns of files that come back.
    pub collect: Vec<String>,
    /// They come before the end is told of the attempt that left them.
    pub collect_at_once: bool,
    /// Takes them.
    pub collector: Arc<Collector>,
}

/// Makes connections, numbers workers.
#[derive(Clone)]
pub struct Fleet {
    shared: Arc<Shared>,
}

struct Shared {
    facts: SessionFacts,
    settings: FleetSettings,
    messages: mpsc::Sender<FleetMessage>,
    workers: AtomicU32,
    slots: AtomicU32,
    members: Arc<Members>,
    /// Workers that have joined, without the embedded one, whether or not they are still there.
    joined: watch::Sender<u32>,
    /// Read when the first worker needs them.
    keys: OnceCell<Result<Keys, Unusable>>,
}

impl Fleet {
    /// A fleet without workers, and the channel through which it speaks.
    pub fn new(
        facts: SessionFacts,
        settings: FleetSettings,
    ) -> (Self, mpsc::Receiver<FleetMessage>) {
        let (messages, inbox) = mpsc::channel(MESSAGES_MAX);
        let (workers, slots) = (AtomicU32::new(0), AtomicU32::new(0));
        let keys = OnceCell::new();
        let members = Members::new(settings.max_workers);
        let joined = watch::Sender::new(0);
        let shared = Shared { facts, settings, messages, workers, slots, members, joined, keys };
        (Self { shared: Arc::new(shared) }, inbox)
    }

    /// Connects to every address and starts the embedded worker if the settings want one. Ends
    /// when all have joined or failed, with [`FleetMessage::AllAnswered`]; if the user asked to wait
    /// for some, not before so many have joined or the time is over.
    pub async fn connect(&self) {
        let began = Instant::now();
        let settings = &self.shared.settings;
        let local = local_slots(settings);
        let embedded = async {
            if local > 0 {
                self.embedded(local).await;
            }
        };
        let remote = futures::future::join_all(settings.workers.iter().map(|a| self.remote(a)));
        futures::future::join(embedded, remote).await;
        if settings.wait_given && !settings.workers.is_empty() {
            // Whoever was not there is dialled again meanwhile.
            let mut joined = self.shared.joined.subscribe();
            let enough = joined.wait_for(|joined| *joined >= settings.wait_workers);
            let _ = tokio::time::timeout_at(began + settings.wait_for, enough).await;
        }
        self.say(FleetMessage::AllAnswered).await;
    }

    /// Starts the embedded worker, on all cores: nobody else is there.
    pub async fn fall_back(&self) {
        let slots = match self.shared.settings.local_slots {
            LocalSlots::Count(slots) if slots > 0 => slots,
            _ => cores(),
        };
        self.embedded(slots).await;
    }

    async fn embedded(&self, slots: u32) {
        let id = self.next_id();
        let base = self.shared.slots.fetch_add(slots, Ordering::Relaxed);
        match embedded::start(self, id, slots, base).await {
            Ok(connection) => self.say(FleetMessage::Joined(Box::new(connection))).await,
            Err(unusable) => self.say(unusable.into_message("embedded".to_owned())).await,
        }
    }

    async fn remote(&self, address: &WorkerAddress) {
        match self.reach(address).await {
            Ok(Some(connection)) => {
                let (fleet, address) = (self.clone(), address.clone());
                let gone = connection.gone();
                self.joined(connection).await;
                tokio::spawn(async move { fleet.redial(address, Some(gone)).await });
            }
            // It tells of its workers by itself.
            Ok(None) => {}
            Err(unusable) => {
                let (fleet, redialled, spare) = (self.clone(), address.clone(), unusable.spare);
                if spare.is_some() {
                    tokio::spawn(async move { fleet.redial(redialled, None).await });
                }
                // Another is there in its place.
                if spare != Some(Spare::UntilOneLeaves) {
                    self.say(unusable.into_message(address.to_string())).await;
                }
            }
        }
    }

    /// The worker at an address; none at one where workers dial us.
    async fn reach(&self, address: &WorkerAddress) -> Result<Option<Connection>, Unusable> {
        match address {
            WorkerAddress::Tcp { host, port, key } => {
                connection::dial(self, host, *port, *key).await.map(Some)
            }
            WorkerAddress::Ssh { user, host, port } => {
                let target = ssh::Target { user: user.as_deref(), host, port: *port };
                ssh::launch(self, &target, address.to_string()).await.map(Some)
            }
            WorkerAddress::Listen(address) => listen::listen(self, *address).await.map(|()| None),
            WorkerAddress::Registry { host, port, key } => {
                let place = connection::format_place(host, *port);
                let sight = discover::registry(self, RegistryPlace { place, key: *key }).await?;
                discover::follow(self, sight).await.map(|()| None)
            }
            WorkerAddress::Mdns => {
                let sight = discover::mdns(self).await?;
                discover::follow(self, sight).await.map(|()| None)
            }
        }
    }

    async fn keys(&self) -> Result<&Keys, Unusable> {
        let identity = &self.shared.settings.identity;
        let keys = self.shared.keys.get_or_init(|| async { Keys::load(identity) }).await;
        keys.as_ref().map_err(Clone::clone)
    }

    /// A worker that was lost may come back, as another one: whatever it had is forgotten. One that
    /// was not needed may be when another is lost, and one that was not there may come.
    async fn redial(self, address: WorkerAddress, mut gone: Option<Gone>) {
        loop {
            if let Some(mut gone) = gone {
                // The sender goes with the connection.
                let _ = gone.wait_for(|_| false).await;
            }
            let mut back_off = REDIAL_MIN;
            let mut told = false;
            let connection = loop {
                tokio::time::sleep(back_off).await;
                back_off = (back_off * 2).min(REDIAL_MAX);
                tokio::select! {
                    () = self.shared.members.wanted() => {}
                    () = self.shared.messages.closed() => {}
                }
                if self.shared.messages.is_closed() {
                    return;
                }
                let mut leaving = self.shared.members.leaving();
                match self.reach(&address).await {
                    Ok(Some(connection)) => break connection,
                    Err(Unusable { spare: Some(Spare::UntilOneLeaves), .. }) => tokio::select! {
                        _ = leaving.changed() => {}
                        () = self.shared.messages.closed() => {}
                    },
                    // It tells of its workers by itself.
                    Ok(None) => return,
                    // That it isn't there is known.
                    Err(Unusable { spare: Some(_), .. }) => {}
                    // It is there, and doesn't want us any more.
                    Err(unusable) => {
                        if !std::mem::replace(&mut told, true) {
                            self.say(unusable.into_message(address.to_string())).await;
                        }
                    }
                }
            };
            gone = Some(connection.gone());
            self.joined(connection).await;
        }
    }

    async fn joined(&self, connection: Connection) {
        self.say(FleetMessage::Joined(Box::new(connection))).await;
        self.shared.joined.send_modify(|joined| *joined += 1);
    }

    fn next_id(&self) -> WorkerId {
        WorkerId(self.shared.workers.fetch_add(1, Ordering::Relaxed))
    }

    fn environment(&self, embedded: bool) -> Vec<(OsText, OsText)> {
        let facts = &self.shared.facts;
        if facts.bare {
            return Vec::new();
        }
        testenv::session(&facts.run, facts.environment.iter().cloned(), embedded, &facts.pass)
    }

    async fn say(&self, message: FleetMessage) {
        // Nobody listens once the run is over.
        let _ = self.shared.messages.send(message).await;
    }
}

/// A name for a run, unique in practice, and in order of time: `20261122T101500Z-1a2b3c4d`.
pub fn run_name() -> String {
    let now = SystemTime::now();
    let time = humantime::format_rfc3339_seconds(now).to_string().replace(['-', ':'], "");
    // Its keys are random in every process.
    let random = RandomState::new().hash_one((now, std::process::id()));
    format!("{time}-{:08x}", random as u32)
}

/// Our private key, made on first use.
///
/// # Errors
/// Why there is none, and what to do.
pub fn own_key(identity: &IdentitySettings) -> Result<PrivateKey, (String, Option<String>)> {
    Keys::ours_of(identity).map_err(|it| (it.reason, it.hint))
}

/// Slots that the embedded worker gets beside the given workers.
fn local_slots(settings: &FleetSettings) -> u32 {
    let alone = settings.workers.is_empty();
    match settings.local_slots {
        LocalSlots::Count(slots) => slots,
        LocalSlots::Auto if settings.is_on_another() => 0,
        LocalSlots::Auto if alone => cores(),
        LocalSlots::Auto => cores().saturating_sub(1).max(1),
    }
}

fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32)
}
