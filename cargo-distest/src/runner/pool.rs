//! The workers that serve a site, and the attempts that run there.
//!
//! Calls come and go one by one, so there is nothing to schedule: each goes to the worker with the
//! most room, and waits there if there is none. A worker's reports find their call through a table.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use distest_worker::protocol::{AttemptId, BinaryKey, Exit, Leak, Network, Report, Stream};
use tokio::sync::{OnceCell, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::pack::Parcel;
use crate::fleet::{Connection, Fleet, FleetMessage, SessionFacts};
use crate::model::{Triple, WorkerId};
use crate::settings::FleetSettings;
use crate::ship::{ShipError, Shipper};
use crate::suits;
use crate::tree::Tree;

/// Workers with open sessions. Dropping it ends the sessions.
pub(super) struct Pool {
    shared: Arc<Shared>,
    tree: Arc<Tree>,
    tasks: [JoinHandle<()>; 2],
}

struct Shared {
    state: Mutex<State>,
    /// Told whenever a worker joins, is lost, or all have answered.
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    members: BTreeMap<WorkerId, Arc<Member>>,
    /// Those that take nothing more.
    leaving: BTreeSet<WorkerId>,
    /// Every address has joined or is unusable.
    answered: bool,
    /// Why addresses are unusable, and workers were lost.
    troubles: Vec<String>,
    attempts: BTreeMap<AttemptId, Route>,
    next: u64,
}

/// Where an attempt's story goes.
struct Route {
    worker: WorkerId,
    call: mpsc::UnboundedSender<Said>,
}

/// A worker.
pub(super) struct Member {
    pub(super) connection: Connection,
    shipper: Shipper,
    tree: OnceCell<()>,
    ready: Mutex<BTreeMap<BinaryKey, Arc<OnceCell<()>>>>,
}

/// What a worker says of an attempt.
#[derive(Debug)]
pub(super) enum Said {
    /// Its process runs.
    Started,
    /// It wrote something. Answer when it has been taken.
    Output(Stream, Bytes, oneshot::Sender<()>),
    /// It and all that it started have ended.
    Finished {
        exit: Exit,
        /// What it met that was not of its own making.
        notes: Vec<String>,
        /// What it left behind, which was ended.
        leak: Option<Leak>,
    },
    /// It came to no end of its own.
    Lost(String),
}

/// A place for one attempt on a worker; given back when dropped.
pub(super) struct Ticket {
    pub(super) attempt: AttemptId,
    pub(super) member: Arc<Member>,
    pub(super) said: mpsc::UnboundedReceiver<Said>,
    shared: Arc<Shared>,
}

impl Pool {
    /// Begins to connect.
    pub(super) fn start(facts: SessionFacts, settings: FleetSettings, tree: Arc<Tree>) -> Self {
        let (fleet, messages) = Fleet::new(facts, settings);
        let (changed, _) = watch::channel(());
        let shared = Arc::new(Shared { state: Mutex::default(), changed });
        let connecting = tokio::spawn(async move { fleet.connect().await });
        let routing = tokio::spawn(route(Arc::clone(&shared), messages));
        Self { shared, tree, tasks: [connecting, routing] }
    }

    /// Whether a worker is there, or may still come.
    pub(super) fn alive(&self) -> bool {
        let state = self.shared.state();
        !state.answered || !state.members.is_empty()
    }

    /// A place on the worker of this triple and network with the most room, other than those that
    /// are `unsuited`; once there is one. None, with the reasons, if there won't be.
    pub(super) async fn ticket(
        &self,
        triple: &Triple,
        network: Network,
        unsuited: &BTreeSet<WorkerId>,
    ) -> Result<Ticket, Vec<String>> {
        let mut changed = self.shared.changed.subscribe();
        loop {
            {
                let mut state = self.shared.state();
                if let Some(member) = state.roomiest(triple, network, unsuited) {
                    let (call, said) = mpsc::unbounded_channel();
                    let attempt = AttemptId(state.next);
                    state.next += 1;
                    state.attempts.insert(attempt, Route { worker: member.connection.id, call });
                    let shared = Arc::clone(&self.shared);
                    return Ok(Ticket { attempt, member, said, shared });
                }
                if state.answered {
                    let mut troubles = state.troubles.clone();
                    troubles.extend(state.of_leaving());
                    let stays =
                        |id: &&WorkerId| !state.leaving.contains(id) && !unsuited.contains(id);
                    if state.members.keys().any(|id| stays(&id)) {
                        let own = match network {
                            Network::Host => "",
                            Network::Private => " in a network of its own",
                        };
                        troubles.push(format!("no worker runs what was built for {triple}{own}"));
                    }
                    return Err(troubles);
                }
            }
            // The sender lives as long as we do.
            let _ = changed.changed().await;
        }
    }

    /// Gets an executable and the workspace's files to a worker.
    pub(super) async fn prepare(&self, member: &Member, parcel: &Parcel) -> Result<(), ShipError> {
        member.tree.get_or_try_init(|| member.shipper.tree(&self.tree)).await?;
        let cell = match parcel.single {
            true => Arc::default(),
            false => Arc::clone(member.ready().entry(parcel.key).or_default()),
        };
        let (spec, files) = (&parcel.packed.spec, &parcel.packed.files);
        cell.get_or_try_init(|| member.shipper.binary(spec, files)).await.map(|&()| ())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.shared.state().attempts.remove(&self.attempt);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Member {
    /// Has what `spec` says made ready: for an embedded worker, which needs no files.
    pub(super) async fn prepare_in_place(
        &self,
        spec: &distest_worker::protocol::BinarySpec,
    ) -> Result<(), ShipError> {
        self.shipper.binary(spec, &BTreeMap::new()).await
    }

    fn ready(&self) -> MutexGuard<'_, BTreeMap<BinaryKey, Arc<OnceCell<()>>>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn roomiest(
        &self,
        triple: &Triple,
        network: Network,
        unsuited: &BTreeSet<WorkerId>,
    ) -> Option<Arc<Member>> {
        let load = |member: &&Arc<Member>| {
            let id = member.connection.id;
            let running = self.attempts.values().filter(|route| route.worker == id).count();
            (1000 * running / member.connection.slots.max(1) as usize, id)
        };
        let fits = |member: &&Arc<Member>| {
            let Connection { id, hello, embedded, forwards, .. } = &member.connection;
            let own =
                hello.private_network && suits::forward_lack(hello, *embedded, forwards).is_none();
            let connected = network == Network::Host || own;
            let stays = !self.leaving.contains(id) && !unsuited.contains(id);
            stays && connected && (*embedded || *hello.target == *triple.0)
        };
        self.members.values().filter(fits).min_by_key(load).cloned()
    }

    /// Of each worker that drains, that it takes nothing.
    fn of_leaving(&self) -> Vec<String> {
        let leaving = self.members.iter().filter(|(id, _)| self.leaving.contains(id));
        let told = leaving.map(|(_, member)| {
            format!("worker {} finishes what runs and takes nothing more", member.connection.name)
        });
        told.collect()
    }

    fn lose(&mut self, worker: WorkerId, reason: &str) {
        let Some(member) = self.members.remove(&worker) else { return };
        let what = format!("worker {} was lost: {reason}", member.connection.name);
        for route in self.attempts.values().filter(|route| route.worker == worker) {
            let _ = route.call.send(Said::Lost(what.clone()));
        }
        self.troubles.push(what);
    }

    /// Hands something on to the call that it is about, if this worker has its attempt.
    fn tell(&self, worker: WorkerId, attempt: AttemptId, said: Said) {
        if let Some(route) = self.attempts.get(&attempt).filter(|route| route.worker == worker) {
            // A call that is gone doesn't care.
            let _ = route.call.send(said);
        }
    }

    fn report(&mut self, worker: WorkerId, report: Report) {
        match report {
            Report::Started { attempt, .. } => self.tell(worker, attempt, Said::Started),
            Report::Slow { .. } | Report::Progress { .. } => {}
            Report::Draining {} => _ = self.leaving.insert(worker),
            Report::Finished(mut finished) => {
                let (exit, notes) = (finished.exit, finished.take_notes());
                let said = Said::Finished { exit, notes, leak: finished.leak };
                self.tell(worker, finished.attempt, said);
            }
            Report::Lost { attempt, detail, .. } => {
                self.tell(worker, attempt, Said::Lost(detail));
            }
        }
    }
}

/// Takes what workers say, until the pool is dropped.
async fn route(shared: Arc<Shared>, mut messages: mpsc::Receiver<FleetMessage>) {
    while let Some(message) = messages.recv().await {
        let mut state = shared.state();
        match message {
            FleetMessage::Joined(connection) => {
                let shipper = Shipper::new(connection.worker.clone(), connection.hello.proofs);
                let (tree, ready) = (OnceCell::new(), Mutex::default());
                let id = connection.id;
                let member = Member { connection: *connection, shipper, tree, ready };
                if member.connection.embedded {
                    // Everything lies where it is.
                    let _ = member.tree.set(());
                }
                state.members.insert(id, Arc::new(member));
            }
            FleetMessage::Unusable { address, reason, .. } => {
                state.troubles.push(format!("worker {address} is not usable: {reason}"));
            }
            // What waits there waits for its own turn only: nothing is taken back.
            FleetMessage::Memory { .. } | FleetMessage::Resumed { .. } => {}
            FleetMessage::AllAnswered => state.answered = true,
            FleetMessage::Reports { worker, reports, taken } => {
                reports.into_iter().for_each(|report| state.report(worker, report));
                let _ = taken.send(());
            }
            FleetMessage::Output { worker, chunk, taken } => {
                let said = Said::Output(chunk.stream, chunk.data, taken);
                state.tell(worker, chunk.attempt, said);
            }
            FleetMessage::Gone { worker, reason, .. } => state.lose(worker, &reason),
        }
        drop(state);
        shared.changed.send_replace(());
    }
}
