//! Drives the scheduler: performs its effects on workers, feeds it what happens, tells the tale.
//!
//! The only state here is what the scheduler has no business knowing: clients, outputs, clocks.

mod company;
mod gather;
mod hedged;
mod hints;
pub(crate) mod judge;
mod local;
mod place;
mod refusals;
pub(crate) mod returns;
mod slow;
mod times;
mod way;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use distest_worker::protocol::{
    AttemptId, BinaryKey, Exit, Finished, Leak, Limits, Network, OutputChunk, Report, Stop, Stream,
    Streams, TestTime, Usage,
};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};

use crate::batch::Standings;
use crate::event::{
    AttemptEnded, CancelReason, CapturedOutput, PlanComplete, RunEvent, WorkerInfo,
};
use crate::fleet::{Connection, Fleet, FleetMessage};
use crate::model::{AttemptResult, Sharing, Step, TestBinary, TestCase, TestIndex, WorkerId};
use crate::pace::{Met, Pace, Paces};
use crate::parcel::Parcel;
use crate::plan::Rank;
use crate::scheduler::{
    Acquainted, Batch, Effect, Grant, Group, Input, Needs, Rules, Scheduler, Task, Traits,
};
use crate::settings::Fallback;
use crate::stamp::Stamp;
use crate::testenv::{self, RunFacts};
use crate::tree::Tree;
use gather::Gather;
pub use hints::Here;
use hints::Hints;
use refusals::Refused;
use returns::Returns;
use slow::Slow;
use times::Times;
use way::Ways;
use worker::{Connected, Outcome};

/// Messages taken at a time before effects are performed.
const BURST: usize = 64;
/// Why a result does not count.
const REBUILT: &str = "its executable was built anew or removed during the run: run it again";
/// Answers of workers that wait to be taken.
const OUTCOMES_MAX: usize = 256;

/// A test binary whose tests may run.
#[derive(Debug)]
pub struct Runnable {
    /// Its name in sessions.
    pub key: BinaryKey,
    /// What it is.
    pub binary: Arc<TestBinary>,
    /// Its executable as it was listed.
    pub built: Stamp,
    /// It is one test case as a whole.
    pub whole: bool,
    /// Whether several of its tests may share a process.
    pub sharing: Option<Sharing>,
    /// What travels with it.
    pub parcel: Parcel,
}

impl Runnable {
    /// Whether its executable is still the one that was listed.
    pub fn is_as_listed(&self) -> bool {
        std::fs::metadata(&self.binary.executable)
            .is_ok_and(|metadata| Stamp::of_contents(&metadata) == self.built)
    }
}

/// A test case to run.
#[derive(Clone, Debug)]
pub struct Planned {
    /// What it is.
    pub case: TestCase,
    /// Its place in its binary's list.
    pub place: u32,
    /// Marked `#[ignore]`, and asked for all the same.
    pub ignored: bool,
    /// Its binary.
    pub runnable: Arc<Runnable>,
    /// Its place in the queue.
    pub rank: Rank,
    /// What it will probably take.
    pub expected: Option<Duration>,
    /// What it asks of where and beside whom it runs, if anything.
    pub needs: Option<Arc<Needs>>,
}

impl Planned {
    /// What of the network it sees.
    pub fn network(&self) -> Network {
        match self.needs.as_ref().is_some_and(|needs| needs.private_network) {
            true => Network::Private,
            false => Network::Host,
        }
    }
}

/// What the stages before say.
#[derive(Debug)]
pub enum Order {
    /// Tests to run.
    Tests(Vec<Planned>),
    /// These of the tests share processes. Comes when all are known.
    Batches {
        /// Who with whom.
        batches: Vec<Batch>,
        /// With whom those pass that may fail alone.
        acquainted: Vec<Acquainted>,
        /// What there is to recall of tests that fail alone.
        standings: Arc<Standings>,
    },
    /// There will be no more: everything is built, and attempts may start.
    AllPlanned(PlanComplete),
    /// The workspace files that workers need.
    Tree(Arc<Tree>),
    /// Start nothing more.
    Cancel(CancelReason, Stop),
}

/// What dispatching needs to know.
#[derive(Clone, Debug)]
pub struct DispatchSettings {
    /// The scheduler's rules.
    pub rules: Rules,
    /// Groups of tests, in the order in which [`Needs`] name them.
    pub groups: Vec<Group>,
    /// What all tests have in common.
    pub facts: RunFacts,
    /// The clocks of each attempt.
    pub limits: Limits,
    /// What becomes of output.
    pub streams: Streams,
    /// What cargo was given, for commands that reproduce a failure.
    pub build_args: Vec<std::ffi::OsString>,
    /// What happens if no worker is left.
    pub fallback: Fallback,
    /// The user named workers: the embedded one beside them is none to wait for.
    pub workers_given: bool,
    /// Workers to wait for before the first attempt.
    pub wait_workers: u32,
    /// For how long.
    pub wait_for: Duration,
    /// The user asked for that: when the last worker is gone as long is waited for another.
    pub wait_given: bool,
    /// Wait no longer than the whole run takes on the embedded worker, where that is known.
    pub may_stay_local: bool,
    /// Where output goes that is too long for memory.
    pub output_folder: PathBuf,
    /// The run's start.
    pub origin: Instant,
    /// What a test that fails on a worker may have lacked.
    pub here: Here,
    /// What earlier runs have found out of workers.
    pub paces: Paces,
}

/// How dispatching ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dispatched {
    /// Why it ended early, if it did.
    pub cancelled: Option<CancelReason>,
    /// What was left of the fleet.
    pub fleet: FleetEnd,
    /// The test that no worker may run, if that ended it.
    pub unplaceable: Option<Unplaceable>,
    /// What it found out of workers.
    pub met: Vec<Met>,
}

/// What is left of a fleet at the end of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FleetEnd {
    /// No worker was ever usable.
    #[default]
    NeverWas,
    /// All workers were lost.
    Lost,
    /// All that were not lost take no more tests, and end.
    Left,
    /// Workers are there.
    Stands,
}

/// A test that no worker may run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unplaceable {
    /// Which, and why.
    pub text: String,
    /// The worker that comes nearest, and what it lacks.
    pub nearest: Option<String>,
}

/// An attempt that is with a worker.
struct InFlight {
    worker: WorkerId,
    test: TestIndex,
    number: u32,
    /// When it was handed out.
    leased: Instant,
    started: Option<Instant>,
    slow: Slow,
    gather: Gather,
    /// Another attempt has decided: nothing more is told of this one.
    abandoned: bool,
    /// It is a batch, or a witness.
    batch: Option<company::Batch>,
}

/// How an attempt ended, before the scheduler has said how it counts.
struct Ending {
    worker: WorkerId,
    /// None if it was lost before that.
    started: Option<Instant>,
    reason: String,
    exit: Option<Exit>,
    duration: Duration,
    leak: Option<Leak>,
    usage: Usage,
    outputs: [CapturedOutput; 2],
    /// Its process said last what libtest says last.
    orderly: bool,
    /// The number of the batch that it was in.
    batch: Option<u32>,
    /// The tests of that batch, where somebody may want to run it again.
    batch_tests: Option<Arc<[TestIndex]>>,
    /// What it met, as its worker says.
    notes: Vec<String>,
}

/// The driver of one run.
pub struct Dispatch {
    settings: DispatchSettings,
    scheduler: Scheduler,
    fleet: Fleet,
    events: mpsc::Sender<RunEvent>,
    tests: Vec<Planned>,
    runnables: BTreeMap<BinaryKey, Arc<Runnable>>,
    workers: BTreeMap<WorkerId, Connected>,
    times: Times,
    ways: Ways,
    returns: Returns,
    /// Workers that are or were there, with what was known of them.
    met: BTreeMap<WorkerId, (String, Option<Pace>)>,
    in_flight: BTreeMap<AttemptId, InFlight>,
    endings: BTreeMap<(AttemptId, TestIndex), Box<Ending>>,
    /// Batches handed out so far.
    batches: u32,
    /// The batches in which tests passed that had failed alone.
    witnessed: BTreeMap<TestIndex, Arc<[TestIndex]>>,
    /// How tests passed before.
    standings: Arc<Standings>,
    /// Those of which it is known that they don't any more.
    changed: BTreeSet<TestIndex>,
    tree: watch::Sender<Option<Arc<Tree>>>,
    hints: Hints,
    outcomes: mpsc::Sender<Outcome>,
    gate: Gate,
    /// When running attempts are overdue.
    watches: BTreeSet<(tokio::time::Instant, WorkerId, AttemptId)>,
    /// Workers that joined and that the user was waiting for.
    waited_for: u32,
    fell_back: bool,
    unplaceable: Option<Unplaceable>,
    refused: Refused,
    done: bool,
}

/// What must be there before the first attempt.
struct Gate {
    planned: bool,
    workers: bool,
    opened: bool,
    /// From when on nobody waits for workers, because the run would be over here.
    local_at: Option<Instant>,
    /// Until then a worker is waited for, since the last one is gone.
    another_until: Option<Instant>,
    /// Nobody takes a test: told when all are planned, so that all reasons can be told.
    nobody: bool,
}

impl Gate {
    /// Nothing but workers is missing, and it is known for how long.
    fn waits(&self) -> bool {
        self.planned && !self.workers && self.local_at.is_some()
    }
}

impl Dispatch {
    /// Runs what `orders` plan on what `fleet` brings, until every test has its verdict.
    pub async fn run(
        settings: DispatchSettings,
        fleet: Fleet,
        events: mpsc::Sender<RunEvent>,
        mut orders: mpsc::Receiver<Order>,
        mut messages: mpsc::Receiver<FleetMessage>,
    ) -> Dispatched {
        let (outcomes, mut outcomes_in) = mpsc::channel(OUTCOMES_MAX);
        let wait = tokio::time::sleep(settings.wait_for);
        tokio::pin!(wait);
        let mut this = Self::new(settings, fleet, events, outcomes);
        let mut inputs = Vec::new();
        while !this.done {
            tokio::select! {
                biased;
                Some(outcome) = outcomes_in.recv() => this.on_outcome(outcome, &mut inputs).await,
                Some(message) = messages.recv() => this.on_message(message, &mut inputs).await,
                Some(order) = orders.recv() => this.on_order(order, &mut inputs).await,
                () = &mut wait, if !this.gate.workers => this.gate.workers = true,
                () = until(this.gate.local_at.map(Into::into)), if this.gate.waits() => this.stay_local().await,
                () = until(this.gate.another_until.map(Into::into)) => {
                    this.gate.another_until = None;
                    this.no_other_worker().await;
                }
                () = until(this.watches.first().map(|(due, ..)| *due)) => this.look(&mut inputs),
            }
            for _ in 0..BURST {
                let Ok(message) = messages.try_recv() else { break };
                this.on_message(message, &mut inputs).await;
            }
            this.open_gate(&mut inputs).await;
            this.advance(&mut inputs).await;
        }
        // Sessions are closed in order, for which their workers must be done with telling us of what
        // ended late, such as the slower of two attempts: what nobody takes is answered at once. And
        // no worker is dialled again that goes now.
        drop(messages);
        this.close().await
    }

    fn new(
        settings: DispatchSettings,
        fleet: Fleet,
        events: mpsc::Sender<RunEvent>,
        outcomes: mpsc::Sender<Outcome>,
    ) -> Self {
        let hints = Hints::new(settings.here.clone());
        Self {
            scheduler: Scheduler::with_groups(settings.rules, settings.groups.clone()),
            settings,
            fleet,
            events,
            tests: Vec::new(),
            runnables: BTreeMap::new(),
            workers: BTreeMap::new(),
            times: Times::default(),
            ways: Ways::default(),
            returns: Returns::default(),
            met: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            endings: BTreeMap::new(),
            batches: 0,
            witnessed: BTreeMap::new(),
            standings: Arc::default(),
            changed: BTreeSet::new(),
            tree: watch::Sender::new(None),
            hints,
            outcomes,
            watches: BTreeSet::new(),
            gate: Gate {
                planned: false,
                workers: false,
                opened: false,
                local_at: None,
                another_until: None,
                nobody: false,
            },
            waited_for: 0,
            fell_back: false,
            unplaceable: None,
            refused: Refused::new(),
            done: false,
        }
    }

    /// Tells of attempts that are overdue by now.
    fn look(&mut self, inputs: &mut Vec<Input>) {
        let later = (tokio::time::Instant::now(), WorkerId(u32::MAX), AttemptId(u64::MAX));
        let later = self.watches.split_off(&later);
        let due = std::mem::replace(&mut self.watches, later).into_iter();
        let due = due.filter(|(_, _, attempt)| self.in_flight.contains_key(attempt));
        inputs.extend(due.map(|(_, worker, attempt)| Input::Overdue { worker, attempt }));
    }

    async fn tell(&self, event: RunEvent) {
        // If the reporters are gone, the run still ends in order.
        if let Err(TrySendError::Full(event)) = self.events.try_send(event) {
            let _ = self.events.send(event).await;
        }
    }

    async fn on_order(&mut self, order: Order, inputs: &mut Vec<Input>) {
        match order {
            Order::Tests(planned) => self.plan(planned, inputs).await,
            Order::Batches { batches, acquainted, standings } => {
                self.standings = standings;
                inputs.push(Input::Batched { batches, acquainted });
            }
            Order::AllPlanned(plan) => {
                self.tell(RunEvent::PlanComplete(plan)).await;
                self.gate.planned = true;
                self.gate.local_at = self.local_at();
                if self.settings.streams == Streams::Live && self.tests.len() == 1 {
                    self.settings.streams = Streams::LiveWithStdin;
                }
                inputs.push(Input::AllAdded);
                if std::mem::take(&mut self.gate.nobody) {
                    self.tell_other_refusals().await;
                    inputs.push(Input::NoWorker);
                }
            }
            Order::Tree(tree) => _ = self.tree.send_replace(Some(tree)),
            Order::Cancel(reason, how) => inputs.push(Input::Cancel { reason, how }),
        }
    }

    async fn plan(&mut self, planned: Vec<Planned>, inputs: &mut Vec<Input>) {
        let mut tasks = Vec::with_capacity(planned.len());
        for mut test in planned {
            self.times.apply(&mut test);
            let index = TestIndex(self.tests.len() as u32);
            let binary = test.runnable.key;
            self.runnables.entry(binary).or_insert_with(|| Arc::clone(&test.runnable));
            tasks.push(Task { test: index, binary, rank: test.rank, needs: test.needs.clone() });
            let (case, triple) = (test.case.clone(), test.runnable.binary.triple.clone());
            let expected = test.expected;
            self.tests.push(test);
            self.tell(RunEvent::Planned { test: index, case, triple, expected }).await;
        }
        inputs.push(Input::Added(tasks));
    }

    async fn on_message(&mut self, message: FleetMessage, inputs: &mut Vec<Input>) {
        match message {
            FleetMessage::Joined(connection) => self.join(*connection, inputs).await,
            FleetMessage::Unusable { address, reason, hint } => {
                self.tell(RunEvent::WorkerUnusable { address, reason, hint }).await;
            }
            FleetMessage::AllAnswered => {
                self.gate.workers = true;
                inputs.push(Input::NoMoreWorkers);
                let hopeless = self.settings.fallback == Fallback::Fail && self.waited_for == 0;
                // Whatever this machine's own worker would take.
                let (reason, how) = (CancelReason::FleetLost, Stop::Kill);
                inputs.extend(hopeless.then_some(Input::Cancel { reason, how }));
            }
            FleetMessage::Memory { worker, short } => {
                let known = self.workers.get_mut(&worker).filter(|_| short);
                if let Some(connected) = known
                    && connected.is_first_shortage()
                {
                    let name = connected.name();
                    let text =
                        format!("worker {name} is short of memory: it runs one test at a time");
                    let hint = "give it fewer slots, or more memory".to_owned();
                    self.tell(RunEvent::Warning { text, hint: Some(hint) }).await;
                }
                inputs.push(Input::Memory { worker, short });
            }
            FleetMessage::Reports { worker, reports, taken } => {
                for report in reports {
                    self.on_report(worker, report, inputs).await;
                }
                let _ = taken.send(());
            }
            FleetMessage::Output { worker, chunk, taken } => {
                self.on_output(worker, chunk).await;
                let _ = taken.send(());
            }
            FleetMessage::Resumed { worker, reason, after } => {
                self.tell(RunEvent::WorkerResumed { worker, reason, after }).await;
            }
            FleetMessage::Gone { worker, reason, dead_at } => {
                self.cut(worker, reason, dead_at, inputs).await;
            }
        }
    }

    async fn join(&mut self, mut connection: Connection, inputs: &mut Vec<Input>) {
        let worker = connection.id;
        let info = Arc::new(WorkerInfo {
            id: worker,
            name: connection.name.clone(),
            address: connection.address.clone(),
            slots: connection.slots,
            embedded: connection.embedded,
        });
        let (slots, round_trip) = (connection.slots, connection.round_trip);
        let steps = std::mem::take(&mut connection.steps);
        let mut connected =
            Connected::new(connection, self.tree.subscribe(), self.outcomes.clone());
        self.lend(connected.take_times(), inputs);
        let before = self.settings.paces.get(connected.name()).copied();
        let formerly = self.returns.joined(worker, &info.name, &info.address);
        let traits = Traits { formerly, pace: before.unwrap_or_default(), ..connected.traits() };
        self.met.insert(worker, (connected.name().to_owned(), before));
        self.workers.insert(worker, connected);
        // It is asked first.
        self.gate.nobody = false;
        self.gate.another_until = None;
        if !info.embedded || !self.settings.workers_given {
            self.waited_for += 1;
        }
        self.gate.workers |= self.waited_for >= self.settings.wait_workers.max(1);
        let embedded = info.embedded;
        self.tell(RunEvent::WorkerJoined(info)).await;
        for (step, took) in steps {
            self.tell(RunEvent::Step { worker, step, took }).await;
        }
        if !embedded {
            self.ways.begin(worker, self.gate.opened, Instant::now());
        }
        inputs.push(Input::Joined { worker, slots, round_trip, traits });
    }

    /// A worker knows how long tests take.
    fn lend(&mut self, times: Vec<TestTime>, inputs: &mut Vec<Input>) {
        if times.is_empty() {
            return;
        }
        self.times.lend(times);
        let tests = self.tests.iter_mut().enumerate();
        let timed = tests.filter_map(|(index, test)| {
            let changed = self.times.apply(test);
            changed.then_some((TestIndex(index as u32), test.rank.expected.0))
        });
        inputs.push(Input::Timed(timed.collect()));
        if self.gate.planned {
            self.gate.local_at = self.local_at();
        }
    }

    /// A worker's connection is gone. What it had may run until `dead_at`: only then it is lost.
    async fn cut(
        &mut self,
        worker: WorkerId,
        reason: String,
        dead_at: tokio::time::Instant,
        inputs: &mut Vec<Input>,
    ) {
        if self.workers.remove(&worker).is_none() {
            return;
        }
        self.returns.left(worker);
        let theirs = self.in_flight.values().filter(|flight| flight.worker == worker);
        let (running, waiting): (Vec<_>, Vec<_>) = theirs.partition(|it| it.started.is_some());
        let (running, waiting) = (running.len() as u32, waiting.len() as u32);
        let event = RunEvent::WorkerLost { worker, reason: reason.clone(), running, waiting };
        self.tell(event).await;
        inputs.push(Input::Cut { worker });
        if dead_at <= tokio::time::Instant::now() {
            return self.lose(worker, &reason, inputs);
        }
        let outcomes = self.outcomes.clone();
        tokio::spawn(async move {
            tokio::time::sleep_until(dead_at).await;
            let _ = outcomes.send(Outcome::Fenced { worker, reason }).await;
        });
    }

    fn lose(&mut self, worker: WorkerId, reason: &str, inputs: &mut Vec<Input>) {
        let theirs = self.in_flight.extract_if(.., |_, flight| flight.worker == worker);
        let lost: Vec<_> = theirs.collect();
        for (attempt, flight) in lost {
            let when = match flight.started {
                Some(_) => "",
                None => " before it said that the test had started",
            };
            let ending = Ending::lost(format!("the worker was lost{when}: {reason}"), &flight);
            // Of a batch, only the test that ran is told of.
            let running = flight.batch.as_ref().and_then(company::Batch::running);
            let test = running.unwrap_or(flight.test);
            self.keep_ending(attempt, test, flight.abandoned, ending);
        }
        inputs.push(Input::Lost { worker });
    }

    async fn on_report(&mut self, worker: WorkerId, report: Report, inputs: &mut Vec<Input>) {
        match report {
            Report::Started { attempt, slot: _ } => {
                let Some(flight) = self.flight(worker, attempt) else { return };
                // It starts once, however often that is said.
                if flight.started.is_some() {
                    return;
                }
                let now = Instant::now();
                flight.started = Some(now);
                let waited = now.duration_since(flight.leased);
                let (test, number, abandoned) = (flight.test, flight.number, flight.abandoned);
                if !abandoned {
                    let event = RunEvent::AttemptStarted { test, attempt: number, worker };
                    self.tell(event).await;
                }
                self.step(worker, Step::Files).await;
                if self.settings.streams == Streams::LiveWithStdin
                    && let Some(connected) = self.workers.get(&worker)
                {
                    connected.pass_stdin(attempt);
                }
                inputs.push(Input::Started { worker, attempt, waited });
            }
            Report::Slow { attempt, elapsed } => {
                let slow_after = self.settings.limits.slow_after;
                let Some(flight) = self.flight(worker, attempt) else { return };
                let since = flight.started.unwrap_or(flight.leased).elapsed();
                if flight.abandoned || !flight.slow.is_due(since, slow_after) {
                    return;
                }
                let running = flight.batch.as_ref().and_then(company::Batch::running);
                let (test, attempt) = (running.unwrap_or(flight.test), flight.number);
                self.tell(RunEvent::AttemptSlow { test, attempt, worker, elapsed }).await;
            }
            Report::Finished(finished) => self.finish(worker, finished, inputs).await,
            Report::Draining {} => {
                if let Some(connected) = self.workers.get_mut(&worker)
                    && connected.leaves()
                {
                    let text = format!("worker {} takes no more tests", connected.name());
                    self.tell(RunEvent::Warning { text, hint: None }).await;
                    inputs.push(Input::Leaving { worker });
                }
            }
            Report::Progress { attempt, lines } => {
                self.on_progress(worker, attempt, &lines, inputs);
            }
            Report::Lost { attempt, reason, detail } => {
                if self.flight(worker, attempt).is_none() {
                    return;
                }
                let Some(mut flight) = self.in_flight.remove(&attempt) else { return };
                let reason = judge::loss(reason, &detail);
                if let Some(batch) = flight.batch.take() {
                    return self.batch_lost(attempt, flight, batch, &reason, inputs).await;
                }
                let ending = Ending::lost(reason, &flight);
                let duration = ending.duration;
                self.keep_ending(attempt, flight.test, flight.abandoned, ending);
                let result = AttemptResult::Lost;
                inputs.push(Input::Ended { worker, attempt, result, duration });
            }
        }
    }

    async fn finish(&mut self, worker: WorkerId, mut finished: Finished, inputs: &mut Vec<Input>) {
        let attempt = finished.attempt;
        if self.flight(worker, attempt).is_none() {
            return;
        }
        let Some(mut flight) = self.in_flight.remove(&attempt) else { return };
        let rebuilt = self.is_rebuilt(&flight);
        if let Some(batch) = flight.batch.take() {
            if rebuilt {
                return self.batch_lost(attempt, flight, batch, REBUILT, inputs).await;
            }
            return self.batch_finished(flight, batch, finished, inputs).await;
        }
        let (result, reason) = match rebuilt {
            true => (AttemptResult::Lost, REBUILT.to_owned()),
            false => judge::judge(&finished),
        };
        let outputs = flight.outputs(&finished);
        let now = Instant::now();
        let begun = now.checked_sub(finished.duration).unwrap_or(now);
        let ending = Ending {
            worker,
            // It may be told only by its end.
            started: flight.started.map(|started| started.min(begun)),
            reason,
            orderly: self.is_orderly(&flight, &outputs[0]),
            exit: Some(finished.exit),
            duration: finished.duration,
            leak: finished.leak.clone(),
            usage: finished.usage,
            outputs,
            batch: None,
            batch_tests: None,
            notes: finished.take_notes(),
        };
        let duration = finished.duration;
        self.keep_ending(attempt, flight.test, flight.abandoned, ending);
        let illegal = result == AttemptResult::Crashed && judge::is_illegal(finished.exit);
        inputs.push(match illegal {
            true => Input::IllegalInstruction { worker, attempt, duration },
            false => Input::Ended { worker, attempt, result, duration },
        });
    }

    /// Whether another executable lies where the embedded worker has just run one. What was the
    /// same at the end was so at the start.
    fn is_rebuilt(&self, flight: &InFlight) -> bool {
        let in_place = self.workers.get(&flight.worker).is_some_and(Connected::embedded);
        in_place && !self.planned(flight.test).runnable.is_as_listed()
    }

    /// An attempt that this worker has; a worker has no say about others'.
    fn flight(&mut self, worker: WorkerId, attempt: AttemptId) -> Option<&mut InFlight> {
        self.in_flight.get_mut(&attempt).filter(|flight| flight.worker == worker)
    }

    async fn on_output(&mut self, worker: WorkerId, chunk: OutputChunk) {
        let folder = self.settings.output_folder.clone();
        let live = self.settings.streams != Streams::Capture;
        let Some(flight) = self.flight(worker, chunk.attempt) else { return };
        let name = format!("{}-{:?}", chunk.attempt.0, chunk.stream).to_lowercase();
        flight.gather.push(chunk.stream, &chunk.data, &folder, &name);
        if live {
            let (test, stream, data) = (flight.test, chunk.stream, chunk.data);
            self.tell(RunEvent::LiveOutput { test, stream, data }).await;
        }
    }

    async fn on_outcome(&mut self, outcome: Outcome, inputs: &mut Vec<Input>) {
        match outcome {
            Outcome::Ready { worker, binary, sent } => {
                if let Some((bytes, took)) = sent {
                    inputs.push(Input::Arrived { worker, bytes, took });
                }
                inputs.push(Input::Ready { worker, binary });
            }
            Outcome::Lacks { worker, binary, bytes } => {
                inputs.push(Input::Lacks { worker, binary, bytes });
            }
            Outcome::Refused { worker, binary, reason, hint } => {
                if let Some(connected) = self.workers.get(&worker) {
                    let (name, label) = (connected.name(), self.label(binary));
                    let text = format!("worker {name} takes no tests of {label}: {reason}");
                    self.tell(RunEvent::Warning { text, hint }).await;
                }
                self.refused.insert((worker, binary));
                inputs.push(Input::Refused { worker, binary });
            }
            Outcome::Shipped { worker, bytes, blobs } => {
                self.tell(RunEvent::Shipped { worker, bytes, blobs }).await;
            }
            Outcome::Revoked { worker, attempts } => {
                for attempt in &attempts {
                    self.in_flight.remove(attempt);
                }
                inputs.push(Input::Revoked { worker, attempts });
            }
            Outcome::Gone { worker, reason } => {
                if let Some(dead_at) = self.workers.get(&worker).map(Connected::dead_at) {
                    self.cut(worker, reason, dead_at, inputs).await;
                }
            }
            Outcome::Fenced { worker, reason } => self.lose(worker, &reason, inputs),
        }
    }

    fn keeps_times(&self, worker: WorkerId) -> bool {
        self.workers.get(&worker).is_some_and(|worker| worker.times_known().is_some())
    }

    fn label(&self, binary: BinaryKey) -> String {
        self.runnables
            .get(&binary)
            .map(|runnable| runnable.binary.id.to_string())
            .unwrap_or_default()
    }

    /// When the run could be over here, had it begun at the start instead of waiting for workers.
    fn local_at(&self) -> Option<Instant> {
        let embedded = self.workers.values().find(|worker| worker.embedded());
        let embedded = embedded.filter(|_| self.settings.may_stay_local)?;
        let threads = self.settings.rules.threads.unwrap_or(u32::MAX);
        let slots = embedded.slots().min(threads);
        let takes = local::time_here(&self.tests, slots, &embedded.traits())?;
        self.settings.origin.checked_add(takes)
    }

    /// Waiting for workers has taken as long as the run takes here.
    async fn stay_local(&mut self) {
        self.gate.workers = true;
        if !self.tests.is_empty() {
            self.tell(RunEvent::StaysLocal).await;
        }
    }

    async fn open_gate(&mut self, inputs: &mut Vec<Input>) {
        if self.gate.planned && self.gate.workers && !self.gate.opened {
            self.gate.opened = true;
            inputs.push(Input::Open);
            for (worker, took) in self.ways.opened(Instant::now()) {
                self.tell(RunEvent::Step { worker, step: Step::Build, took }).await;
            }
        }
    }

    /// A worker has come to the end of a step, if it hadn't before.
    async fn step(&mut self, worker: WorkerId, step: Step) {
        if let Some(took) = self.ways.done(worker, step, Instant::now()) {
            self.tell(RunEvent::Step { worker, step, took }).await;
        }
    }

    /// Steps the scheduler through what happened, then performs what it wants, with one lease per
    /// worker.
    async fn advance(&mut self, inputs: &mut Vec<Input>) {
        let mut effects = Vec::new();
        for input in inputs.drain(..) {
            self.scheduler.step(input, &mut effects);
        }
        let mut leases: BTreeMap<WorkerId, Vec<Grant>> = BTreeMap::new();
        for effect in effects {
            match effect {
                Effect::Lease { worker, grants } => {
                    leases.entry(worker).or_default().extend(grants)
                }
                // A stop must not overtake the lease that it is to stop.
                Effect::Stop { worker, how } => {
                    self.lease(worker, leases.remove(&worker).unwrap_or_default());
                    if let Some(connected) = self.workers.get(&worker) {
                        connected.stop(how);
                    }
                }
                other => self.perform(other).await,
            }
        }
        for (worker, grants) in leases {
            self.lease(worker, grants);
        }
    }

    async fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Lease { .. } | Effect::Stop { .. } => {}
            Effect::Prepare { worker, binary, bytes_max } => {
                let (connected, runnable) =
                    (self.workers.get(&worker), self.runnables.get(&binary));
                if let (Some(connected), Some(runnable)) = (connected, runnable) {
                    connected.prepare(Arc::clone(runnable), bytes_max);
                }
            }
            Effect::Watch { worker, attempt, after } => {
                // What is never due is not watched.
                let due = tokio::time::Instant::now().checked_add(after);
                self.watches.extend(due.map(|due| (due, worker, attempt)));
            }
            Effect::Kill { worker, attempt } => {
                if let Some(connected) = self.workers.get(&worker) {
                    connected.kill(attempt);
                }
            }
            Effect::Hedged { test, number: attempt, overdue, worker } => {
                self.tell(RunEvent::Hedged { test, attempt, overdue, worker }).await;
            }
            Effect::GoesOn { attempt, number } => self.goes_on(attempt, number).await,
            Effect::Abandoned { attempt, test } => self.abandoned(attempt, test),
            Effect::Revoke { worker, attempts } => {
                if let Some(connected) = self.workers.get(&worker) {
                    connected.revoke(attempts);
                }
            }
            Effect::AttemptEnded { attempt, test, number, result, will_retry, only_in_company } => {
                if let Some(mut ending) = self.endings.remove(&(attempt, test)) {
                    let notes = std::mem::take(&mut ending.notes);
                    let mut ended = self.attempt_ended((test, number), *ending, result, will_retry);
                    if result.passed() && self.keeps_times(ended.worker) {
                        self.times.took(ended.worker, test, ended.duration);
                    }
                    ended.hints = self.hints_for(&ended, notes).await;
                    match only_in_company {
                        true => self.only_in_company(&mut ended),
                        false => self.recall(&mut ended),
                    }
                    let worker = ended.worker;
                    self.tell(RunEvent::AttemptEnded(Arc::new(ended))).await;
                    self.step(worker, Step::Test).await;
                }
            }
            Effect::Verdict { test, verdict } => {
                self.tell(RunEvent::Verdict { test, verdict }).await
            }
            Effect::Cancelling { reason, running } => {
                self.tell(RunEvent::Cancelling { reason, running }).await;
            }
            Effect::RunsAgainAlone { test, outcome: _ } => {
                self.tell(RunEvent::RunsAgainAlone { test }).await;
            }
            Effect::TookDown { attempt, workers } => {
                let ending = self.endings.range_mut((attempt, TestIndex(0))..).next();
                if let Some((_, ending)) = ending.filter(|((of, _), _)| *of == attempt) {
                    ending.reason = format!("took {workers} workers down");
                }
            }
            Effect::Quarantined { worker, fails } => self.quarantined(worker, fails).await,
            Effect::Unplaceable { test, more } => self.unplaceable(test, more),
            Effect::NeedWorker => self.need_worker().await,
            Effect::Done => self.done = true,
        }
    }

    fn lease(&mut self, worker: WorkerId, grants: Vec<Grant>) {
        if grants.is_empty() || !self.workers.contains_key(&worker) {
            return;
        }
        let mut specs = Vec::with_capacity(grants.len());
        let (leased, started) = (Instant::now(), None);
        for grant in grants {
            let Grant { attempt, test, number, alone, places, company: _ } = grant;
            let (slow, gather) = (Slow::default(), Gather::default());
            let (abandoned, batch) = (false, None);
            let flight =
                InFlight { worker, test, number, leased, started, slow, gather, abandoned, batch };
            if let Some((spec, batch)) = self.batch_spec(&grant) {
                specs.push(spec);
                self.in_flight.insert(attempt, InFlight { batch: Some(batch), ..flight });
                continue;
            }
            let planned = &self.tests[test.0 as usize];
            let Runnable { key: binary, whole, sharing, .. } = *planned.runnable;
            let (case, ignored) = (&planned.case, planned.ignored);
            specs.push(distest_worker::protocol::AttemptSpec {
                id: attempt,
                binary,
                args: testenv::arguments(case, ignored, whole, sharing.is_some()),
                env: testenv::attempt(&self.settings.facts, &planned.case, alone),
                limits: self.settings.limits,
                streams: self.settings.streams,
                progress: false,
                unset: testenv::unset(&planned.runnable.binary.package).collect(),
                network: planned.network(),
                places,
                label: planned.case.to_string(),
            });
            self.in_flight.insert(attempt, flight);
        }
        if let Some(connected) = self.workers.get(&worker) {
            connected.lease(specs);
        }
    }

    fn attempt_ended(
        &self,
        (test, attempt): (TestIndex, u32),
        ending: Ending,
        result: AttemptResult,
        will_retry: bool,
    ) -> AttemptEnded {
        let planned = self.planned(test);
        let reproduce = match result.passed() {
            true => String::new(),
            false => testenv::reproduce(
                &self.settings.build_args,
                &planned.runnable.binary,
                &planned.case,
            ),
        };
        let mut reason = ending.reason;
        if result == AttemptResult::Lost && ending.exit.is_some_and(judge::is_illegal) {
            reason.push_str(": the processor there may lack an instruction");
        }
        let started = ending.started.unwrap_or_else(Instant::now);
        let [stdout, stderr] = ending.outputs;
        AttemptEnded {
            test,
            attempt,
            will_retry,
            worker: ending.worker,
            result,
            reason,
            exit: ending.exit,
            started: started.duration_since(self.settings.origin),
            duration: ending.duration,
            leak: ending.leak,
            usage: ending.usage,
            stdout,
            stderr,
            reproduce,
            hints: Vec::new(),
            batch: ending.batch,
            reproduce_batch: ending.batch_tests.map(|tests| self.reproduce_batch(&tests)),
            only_in_company: false,
            orderly: ending.orderly,
        }
    }

    /// What a test that failed met, or may have lacked elsewhere.
    async fn hints_for(&mut self, ended: &AttemptEnded, notes: Vec<String>) -> Vec<String> {
        if ended.result.passed() || ended.result == AttemptResult::Lost {
            return Vec::new();
        }
        let mut hints = notes;
        let failed = matches!(ended.result, AttemptResult::Fail | AttemptResult::Crashed);
        let here = self.workers.get(&ended.worker).is_none_or(Connected::embedded);
        if !failed || here {
            return hints;
        }
        let runnable = &self.tests[ended.test.0 as usize].runnable;
        let tree = self.tree.borrow().clone();
        hints.extend(self.hints.of(runnable, tree, [&ended.stdout, &ended.stderr]).await);
        hints
    }

    async fn quarantined(&self, worker: WorkerId, fails: bool) {
        let name = self.workers.get(&worker).map_or("?", Connected::name);
        let why = match fails {
            true => "it fails tests that pass elsewhere",
            false => "tests come to no end there",
        };
        let text = format!("worker {name} gets no more tests in this run: {why}");
        let hint = Some("look at its disk, memory and installed programs".to_owned());
        self.tell(RunEvent::Warning { text, hint }).await;
    }

    /// Keeps in words which test no worker may run, and which worker comes nearest.
    fn unplaceable(&mut self, test: TestIndex, more: u32) {
        let Some(planned) = self.tests.get(test.0 as usize) else { return };
        let Some(needs) = &planned.needs else { return };
        let misses =
            self.workers.values().map(|worker| (needs.mismatches(&worker.traits()), worker));
        let nearest = misses.min_by_key(|(misses, _)| misses.len());
        let nearest = nearest.map(|(misses, worker)| {
            let missing: Vec<_> = misses.iter().map(ToString::to_string).collect();
            format!("the nearest is {}: {}", worker.name(), missing.join(", "))
        });
        let case = &planned.case;
        let others = match more {
            0 => String::new(),
            1 => ", nor 1 more test".to_owned(),
            more => format!(", nor {more} more tests"),
        };
        let text = format!("no worker may run {case}, which needs {needs}{others}");
        self.unplaceable = Some(Unplaceable { text, nearest });
    }

    /// Tests are left that no worker takes: one that was there may come back.
    async fn need_worker(&mut self) {
        let none_left = self.workers.values().all(Connected::is_leaving);
        if !self.settings.wait_given || self.waited_for == 0 || !none_left {
            return self.no_other_worker().await;
        }
        let patience = self.settings.wait_for;
        self.gate.another_until = Instant::now().checked_add(patience);
        let seconds = patience.as_secs_f64();
        let text = format!("no worker is left: one is waited for, for {seconds} s at most");
        let hint = Some("--wait-workers says how long".to_owned());
        self.tell(RunEvent::Warning { text, hint }).await;
    }

    /// The embedded worker takes what is left, if it may and has not been tried.
    async fn no_other_worker(&mut self) {
        let embedded = self.workers.values().any(Connected::embedded);
        if self.fell_back || embedded || self.settings.fallback == Fallback::Fail {
            self.scheduler_says_no_worker().await;
            return;
        }
        self.fell_back = true;
        let text = match self.waited_for > 0 {
            true => "no worker is left: the remaining tests run on this machine",
            false => "no given worker is usable: the tests run on this machine",
        };
        let hint = "set fleet.fallback = \"fail\" to end such a run instead".to_owned();
        self.tell(RunEvent::Warning { text: text.to_owned(), hint: Some(hint) }).await;
        let fleet = self.fleet.clone();
        tokio::spawn(async move { fleet.fall_back().await });
    }

    async fn scheduler_says_no_worker(&mut self) {
        if !self.refused.is_empty() && !self.gate.planned {
            self.gate.nobody = true;
            return;
        }
        self.tell_other_refusals().await;
        let mut inputs = vec![Input::NoWorker];
        Box::pin(self.advance(&mut inputs)).await;
    }

    /// Ends all sessions in order.
    async fn close(self) -> Dispatched {
        let fleet = match (self.waited_for, self.workers.is_empty()) {
            (0, _) => FleetEnd::NeverWas,
            (_, true) => FleetEnd::Lost,
            (_, false) if self.workers.values().all(Connected::is_leaving) => FleetEnd::Left,
            (_, false) => FleetEnd::Stands,
        };
        let (paces, mut times) = (self.scheduler.paces(), self.times);
        let closing = self.workers.into_iter().map(|(worker, connected)| {
            let speed = paces.get(&worker).map_or(1.0, Pace::speed);
            let known = connected.times_known();
            connected.close(times.for_keeping(worker, known, speed, &self.tests))
        });
        let closing: Vec<_> = closing.collect();
        futures::future::join_all(closing).await;
        let cancelled = self.scheduler.cancelled();
        let mut met = self.met;
        let met = paces.into_iter().filter_map(|(worker, now)| {
            let (name, before) = met.remove(&worker)?;
            Some(Met { worker, name, before, now })
        });
        let met = met.collect();
        Dispatched { cancelled, fleet, unplaceable: self.unplaceable, met }
    }
}

/// Waits until then, if that is known.
async fn until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl Ending {
    fn lost(reason: String, flight: &InFlight) -> Self {
        Self {
            worker: flight.worker,
            started: flight.started,
            reason,
            exit: None,
            duration: flight.started.map_or(Duration::ZERO, |started| started.elapsed()),
            leak: None,
            usage: Usage::default(),
            outputs: Default::default(),
            orderly: true,
            batch: None,
            batch_tests: None,
            notes: Vec::new(),
        }
    }
}

impl InFlight {
    /// What it wrote, now that it has ended.
    fn outputs(&mut self, finished: &Finished) -> [CapturedOutput; 2] {
        let outputs = [(Stream::Stdout, &finished.stdout), (Stream::Stderr, &finished.stderr)];
        outputs.map(|(stream, output)| self.gather.finish(stream, output))
    }
}
