//! Owns a session: feeds it calls and events of slots, performs its effects.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::collect::{Collect, Layer};
use super::environment;
use super::files::Files;
use super::forward::{Forwarding, LINGER};
use super::handler::Request;
use super::layers::Layers;
use super::outbox::{self, Outbox};
use super::permits::{Permit, Sharer};
use super::sessions::Listed;
use super::tally::Started;
use super::{Admission, Begins, WorkerShared};
use crate::executor::{
    Deadline, Environment, ExecutorOptions, SlotCommand, SlotEvent, SlotExit, Slots, SpawnRequest,
    Variables,
};
use crate::link::{Link, LinkEnd};
use crate::output::Capture;
use crate::protocol::{
    AttemptId, AttemptSignal, AttemptSpec, BinaryKey, BinarySpec, ClientClient, Exit, Lease,
    Network, Output, OutputChunk, Pong, Refusal, RefusalKind, Report, SessionReady, SessionSpec,
    SlotId, StdinChunk, Stop,
};
use crate::sandbox::Sandbox;
use crate::sandbox::changes::Written;
use crate::sandbox::enclosure::Enclosure;
use crate::sandbox::host::Host;
use crate::sandbox::left::Left;
use crate::sandbox::level::Level;
use crate::session::{Effect, EndReason, Exited, Input, Session, Tick, weight};

/// Events of slots that wait to be taken.
const EVENTS_MAX: usize = 256;
/// A clock this late says that this process stood still, and so may have missed the client's words.
const STOOD_STILL: Duration = Duration::from_millis(500);
/// How long words that arrived meanwhile may take to get here.
const CATCH_UP: Duration = Duration::from_millis(100);
/// A client without a session that asks for nothing for this long keeps the place of another.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// Between looks at the memory while something waits for it.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Why a worker takes nothing more.
const DRAINING: &str = "the worker takes no more tests";
/// Characters of a run's name that are kept.
const RUN_CHARS_MAX: usize = 100;
/// Binaries that can be ready in a session. Large workspaces have hundreds.
const BINARIES_MAX: usize = 10_000;
/// What is kept of those and of how the session was opened, in bytes. Cargo's variables are 3 KiB.
const READY_BYTES_MAX: usize = 64 << 20;
/// How long what is told may take at the end of a session that ends in order, before it is dropped:
/// as long as what attempts wrote to services of the client's has to arrive, and a little more.
const TELL_TIME: Duration = LINGER.saturating_add(Duration::from_secs(1));
/// How long what runs may take when a session is ended.
const END_TIME: Duration = Duration::from_secs(5);

/// Whether a session may be opened so. Asked before anything is done for it.
pub(super) fn may_open(spec: &SessionSpec) -> Result<(), Refusal> {
    let bytes = weight::of_session(spec);
    if bytes <= READY_BYTES_MAX {
        return Ok(());
    }
    let message = format!("could not open a session: {}", too_much(bytes));
    let refusal = Refusal::new(RefusalKind::OutOfResources, message);
    Err(refusal.with_hint(SEND_LESS))
}

/// Why no more is kept of a session and its binaries.
fn too_much(bytes: usize) -> String {
    format!(
        "the environments of this session and its binaries would take {} MiB, more than {}",
        bytes.div_ceil(1 << 20),
        READY_BYTES_MAX >> 20
    )
}

/// What helps.
const SEND_LESS: &str = "send fewer or shorter variables";

/// Drives one connection's session.
pub(super) struct Driver {
    worker: Arc<WorkerShared>,
    admission: Arc<Admission>,
    files: Arc<Files>,
    client: ClientClient,
    outbox: Outbox,
    /// Empties the outbox; sends long outputs.
    telling: JoinSet<bool>,
    opened: Option<Opened>,
    events: mpsc::Receiver<SlotEvent>,
    events_to: mpsc::Sender<SlotEvent>,
    /// Waits for places on this worker.
    asking: JoinSet<Option<Permit>>,
    /// For how many each of those waits.
    waits: Vec<(u32, AbortHandle)>,
    /// For whom.
    sharer: Sharer,
    /// Live output that waits for a place in the outbox; slots' events wait behind it.
    live: Option<OutputChunk>,
    began: Instant,
    wake: Option<Instant>,
    /// The client and the run of its first session.
    served: Arc<OnceLock<(String, String)>>,
    /// Is told of those.
    begins: Begins,
}

/// An open session.
struct Opened {
    session: Session,
    listed: Listed,
    slots: Slots,
    /// Until when attempts may run without a word from the client, should this process stand still.
    deadline: Arc<Deadline>,
    sandbox: Arc<Sandbox>,
    layers: Layers,
    slot_base: u32,
    run: String,
    env: Arc<Environment>,
    binaries: BTreeMap<BinaryKey, Prepared>,
    /// What is kept of how it was opened and of binaries.
    ready_bytes: usize,
    /// Attempts that have a slot.
    started: BTreeMap<AttemptId, Started>,
    /// Places held by attempts, by their number.
    permits: BTreeMap<u32, Permit>,
    /// What attempts wrote whose report is due.
    outputs: BTreeMap<AttemptId, Outputs>,
    /// Where attempts run that take input, and who waits for it to be taken.
    stdin: BTreeMap<SlotId, Stdin>,
    /// What the client wants to have of what tests write.
    collect: Option<Arc<Collect>>,
    /// Where what the attempts of each slot write goes, if it goes anywhere apart.
    written: BTreeMap<SlotId, Arc<Layer>>,
    /// As whom the attempt of each slot is known.
    labels: BTreeMap<SlotId, String>,
    /// What must be with the client before an attempt's end is told.
    left: BTreeMap<AttemptId, LeftAt>,
    /// Services of the client's, for attempts with a network of their own.
    forwarding: Forwarding,
    /// Processes that had been ended for lack of memory when a slot's attempt began.
    kills: BTreeMap<SlotId, u64>,
    /// Who waits for the session's end.
    closing: Vec<oneshot::Sender<()>>,
    ended: Option<EndReason>,
}

/// A binary that is ready to run.
struct Prepared {
    program: PathBuf,
    cwd: PathBuf,
    /// Over the session's.
    env: Arc<Environment>,
    /// What it weighs.
    bytes: usize,
}

/// Where an attempt left something.
enum LeftAt {
    /// These files in a layer.
    Layer(Arc<Layer>, Vec<Left>),
    /// Among the files that are laid out; and as whom it is known.
    Place(String),
}

/// What an attempt wrote: as its report says it, and what must go ahead.
struct Outputs {
    reported: [Output; 2],
    long: [Option<Capture>; 2],
}

struct Stdin {
    attempt: AttemptId,
    waiting: VecDeque<oneshot::Sender<Result<(), Refusal>>>,
}

impl Driver {
    pub(super) fn new(
        worker: Arc<WorkerShared>,
        files: Arc<Files>,
        client: ClientClient,
        admission: Admission,
        begins: Begins,
    ) -> Self {
        let (events_to, events) = mpsc::channel(EVENTS_MAX);
        let (outbox, emptying) = Outbox::new(client.clone());
        let mut telling = JoinSet::new();
        telling.spawn(async move { emptying.await.is_ok() });
        let sharer = worker.permits.sharer(admission.peer.key);
        Self {
            worker,
            admission: Arc::new(admission),
            files,
            client,
            outbox,
            telling,
            opened: None,
            events,
            events_to,
            asking: JoinSet::new(),
            waits: Vec::new(),
            sharer,
            live: None,
            began: Instant::now(),
            wake: None,
            served: Arc::default(),
            begins,
        }
    }

    /// Will be the client and the run that it serves.
    pub(super) fn served(&self) -> Arc<OnceLock<(String, String)>> {
        Arc::clone(&self.served)
    }

    /// Serves until the connection ends, the client falls silent or the worker shuts down. Then
    /// nothing runs any more. Answers how it ended, and what to tell the client of it.
    pub(super) async fn run(
        mut self,
        mut requests: mpsc::UnboundedReceiver<Request>,
        link: &Link,
    ) -> (LinkEnd, Option<&'static str>) {
        let worker = Arc::clone(&self.worker);
        let admission = Arc::clone(&self.admission);
        let mut shutting_down = pin!(worker.shutting_down());
        let mut withdrawn = pin!(admission.withdrawn());
        let mut idle = pin!(tokio::time::sleep(IDLE_MAX));
        loop {
            tokio::select! {
                end = link.ended() => {
                    self.end(false).await;
                    return (end, None);
                }
                () = &mut shutting_down => {
                    self.end(true).await;
                    return (LinkEnd::Closed, Some("the worker is shutting down"));
                }
                () = &mut withdrawn => {
                    self.end(false).await;
                    return (LinkEnd::Closed, Some("this key's permission was withdrawn"));
                }
                () = worker.draining(), if self.may_drain() => {
                    if self.opened.is_none() {
                        self.end(true).await;
                        return (LinkEnd::Closed, Some(DRAINING));
                    }
                    self.step(Input::Drain);
                }
                () = worker.paused(), if self.opened.is_some() && self.may_drain() => {
                    self.step(Input::Drain);
                }
                Some(request) = requests.recv() => {
                    idle.as_mut().reset(Instant::now() + IDLE_MAX);
                    self.on_request(request);
                }
                () = &mut idle, if self.opened.is_none() => {
                    self.end(false).await;
                    return (LinkEnd::Closed, Some("the client wanted nothing"));
                }
                () = self.happening() => {}
            }
            let over = match self.opened.as_ref().and_then(|opened| opened.ended) {
                None => continue,
                Some(EndReason::Closed) => {
                    self.tell_closed(&mut requests).await;
                    // It wanted something until now, and is yet to have the answer.
                    idle.as_mut().reset(Instant::now() + IDLE_MAX);
                    link.settle();
                    continue;
                }
                Some(EndReason::Drained) => {
                    self.tell_closed(&mut requests).await;
                    return (LinkEnd::Closed, Some(DRAINING));
                }
                Some(EndReason::Silent) => "the client said nothing for too long",
                Some(EndReason::PeerLost) => "the client didn't take reports",
            };
            self.end(false).await;
            return (LinkEnd::Closed, Some(over));
        }
    }

    /// There is no session, or one that has not been told yet.
    fn may_drain(&self) -> bool {
        self.opened.as_ref().is_none_or(|opened| opened.session.takes_more())
    }

    /// The next thing that happens here, not at the client's.
    async fn happening(&mut self) {
        let wake = self.wake;
        let waits = self.worker.permits.is_alone() && !self.asking.is_empty();
        let live = self.live.is_some();
        tokio::select! {
            Some(event) = self.events.recv(), if !live => self.on_event(event),
            place = Outbox::live_place(self.outbox.live_places()), if live => {
                if let (Some(chunk), Some(place)) = (self.live.take(), place) {
                    self.outbox.live(chunk, place);
                }
            }
            Some(permit) = self.asking.join_next() => {
                if let Ok(Some(permit)) = permit {
                    self.permitted(permit);
                }
            }
            Some(told) = self.telling.join_next() => {
                // A client that doesn't take reports is none.
                if !told.unwrap_or(false) {
                    self.step(Input::PeerLost);
                }
            }
            () = until(wake) => self.woken(wake),
            // What waits for memory may have it soon.
            () = tokio::time::sleep(LOOK_AGAIN), if waits => {
                self.worker.look_at_memory();
            }
        }
    }

    fn on_request(&mut self, request: Request) {
        let heard = if matches!(request, Request::Ping(_)) { Input::Pinged } else { Input::Heard };
        self.step(heard);
        // Whoever asked may be gone: then the answer is dropped.
        match request {
            Request::Word => {}
            Request::Ping(answer) => {
                let session = self.opened.as_ref().map(|opened| &opened.session);
                let _ = answer.send(Pong {
                    running: session.map_or(0, Session::running),
                    queued: session.map_or(0, Session::queued),
                    short_of_memory: self.worker.look_at_memory(),
                });
            }
            Request::Open(spec, answer) => _ = answer.send(self.open(&spec)),
            Request::Prepared(binary, answer) => _ = answer.send(self.prepared(&binary)),
            Request::Lease(lease, answer) => _ = answer.send(self.lease(lease)),
            Request::Revoke(attempts, answer) => {
                let _ = answer.send(self.step(Input::Revoke(attempts)).revoked);
            }
            Request::Stop(how) => _ = self.step(Input::Stop(how)),
            Request::Stdin(chunk, answer) => self.stdin(chunk, answer),
            Request::Signal(attempt, signal, answer) => {
                let _ = answer.send(self.signal(attempt, signal));
            }
            Request::Close(answer) => match &mut self.opened {
                Some(opened) => {
                    opened.closing.push(answer);
                    self.step(Input::Close(Stop::Kill));
                }
                None => _ = answer.send(()),
            },
        }
    }

    fn open(&mut self, spec: &SessionSpec) -> Result<SessionReady, Refusal> {
        if self.opened.is_some() {
            return Err(Refusal::new(RefusalKind::Invalid, "the session is open already"));
        }
        if self.worker.drains() {
            return Err(Refusal::new(RefusalKind::Closed, DRAINING));
        }
        if !spec.hands {
            self.worker.may_serve(self.admission.peer.key.as_ref())?;
        }
        if let Some(why) = self.worker.pause_reason() {
            let message = format!("the worker takes no tests for now: {why}");
            return Err(Refusal::new(RefusalKind::OutOfResources, message));
        }
        let most = self.worker.slots();
        let slots = if spec.slots == 0 { most } else { spec.slots.min(most) };
        let sandbox = self.files.sandbox()?;
        let collect = Collect::new(spec, &self.client)?;
        let forwarding = Forwarding::new(spec, self.client.clone())?;
        let sockets = forwarding.sockets();
        let enclosure = sandbox.enclosure().map(|enclosure| Enclosure { sockets, ..enclosure });
        let deadline = Deadline::new().map_err(|error| {
            let message = format!("could not begin a session: {error}");
            Refusal::new(RefusalKind::OutOfResources, message)
        })?;
        let deadline = Arc::new(deadline);
        let options = ExecutorOptions {
            scratch: self.worker.scratch().to_owned(),
            zygote: self.worker.zygote.clone(),
            enclosure: enclosure.map(Arc::new),
            wanted: collect.as_ref().map(|collect| collect.wanted()),
            deadline: Arc::clone(&deadline),
        };
        let ready = ready(slots, &sandbox, self.worker.host());
        let client = self.admission.peer.name.clone();
        let run: String =
            spec.run.chars().filter(|c| !c.is_control()).take(RUN_CHARS_MAX).collect();
        let ready_bytes = weight::of_session(spec);
        let key = self.admission.peer.key;
        let listed = self.worker.sessions.begin(key, client.clone(), run.clone(), ready_bytes)?;
        // Nothing can be refused any more: who gets no session keeps nobody else out.
        if !spec.hands {
            self.worker.claim(self.admission.peer.key.as_ref())?;
        }
        self.began = Instant::now();
        let mut env = environment::base(spec.in_place, &sandbox);
        env.extend(environment::translated(&spec.env, &sandbox));
        if self.served.set((client.clone(), run.clone())).is_ok() {
            (self.begins)(&client, &run);
        }
        self.opened = Some(Opened {
            session: Session::new(slots),
            listed,
            slots: Slots::start(slots, options, self.events_to.clone()),
            deadline,
            slot_base: spec.slot_base,
            run: spec.run.clone(),
            env: Arc::new(env),
            sandbox,
            layers: Layers::new(spec.writes),
            binaries: BTreeMap::new(),
            ready_bytes,
            started: BTreeMap::new(),
            permits: BTreeMap::new(),
            outputs: BTreeMap::new(),
            stdin: BTreeMap::new(),
            collect,
            written: BTreeMap::new(),
            labels: BTreeMap::new(),
            left: BTreeMap::new(),
            forwarding,
            kills: BTreeMap::new(),
            closing: Vec::new(),
            ended: None,
        });
        Ok(ready)
    }

    fn prepared(&mut self, binary: &BinarySpec) -> Result<(), Refusal> {
        let opened = self.opened.as_mut().ok_or_else(no_session)?;
        let bytes = opened.room_for(binary)?;
        let prepared = Prepared {
            program: opened.sandbox.path(binary.program.as_path()),
            cwd: opened.sandbox.path(binary.cwd.as_path()),
            env: Arc::new(environment::of_binary(&opened.env, &binary.env, &opened.sandbox)),
            bytes,
        };
        opened.ready_bytes += bytes;
        if let Some(before) = opened.binaries.insert(binary.key, prepared) {
            opened.ready_bytes -= before.bytes;
        }
        opened.list();
        Ok(())
    }

    fn lease(&mut self, mut lease: Lease) -> Result<(), Refusal> {
        lease.attempts.iter_mut().for_each(|spec| spec.limits = spec.limits.bounded());
        let opened = self.opened.as_ref().ok_or_else(no_session)?;
        let unknown = |spec: &&AttemptSpec| !opened.binaries.contains_key(&spec.binary);
        if let Some(spec) = lease.attempts.iter().find(unknown) {
            let (attempt, binary) = (spec.id.0, spec.binary.0);
            let message = format!(
                "could not take a lease: attempt {attempt} needs binary {binary}, which was not \
                 prepared"
            );
            return Err(Refusal::new(RefusalKind::Invalid, message));
        }
        if lease.attempts.iter().any(|spec| spec.network == Network::Private) {
            opened.may_be_private(self.worker.host())?;
        }
        opened.listed.room_for(weight::of_attempts(&lease.attempts))?;
        self.step(Input::Lease(lease.attempts)).leased
    }

    fn stdin(&mut self, chunk: StdinChunk, answer: oneshot::Sender<Result<(), Refusal>>) {
        let taking = self.opened.as_mut().and_then(|opened| {
            let found = opened.stdin.iter_mut().find(|(_, stdin)| stdin.attempt == chunk.attempt);
            found.map(|(slot, stdin)| (&opened.slots, *slot, stdin))
        });
        let Some((slots, slot, stdin)) = taking else {
            let message = "the attempt doesn't run (any more)";
            let _ = answer.send(Err(Refusal::new(RefusalKind::Closed, message)));
            return;
        };
        stdin.waiting.push_back(answer);
        slots.command(slot, SlotCommand::Stdin(chunk.data));
    }

    fn signal(&self, attempt: AttemptId, signal: AttemptSignal) -> Result<(), Refusal> {
        let opened = self.opened.as_ref().ok_or_else(no_session)?;
        // Every attempt that has a slot is among those that may take input.
        let found = opened.stdin.iter().find(|(_, stdin)| stdin.attempt == attempt);
        let (slot, _) = found.ok_or_else(|| {
            Refusal::new(RefusalKind::Closed, "the attempt doesn't run (yet, or any more)")
        })?;
        opened.slots.command(*slot, SlotCommand::Signal(attempt, signal));
        Ok(())
    }

    fn on_event(&mut self, event: SlotEvent) {
        let input = match event {
            SlotEvent::Ready { slot } => Input::Ready(slot),
            SlotEvent::Spawned { slot, attempt, listeners } => {
                if let Some(opened) = &mut self.opened {
                    opened.forwarding.begin(attempt, listeners);
                }
                Input::Spawned { slot, attempt }
            }
            SlotEvent::CouldNotSpawn { slot, attempt, reason, detail } => {
                Input::CouldNotSpawn { slot, attempt, reason, detail }
            }
            SlotEvent::Output { slot: _, attempt, stream, data } => {
                self.live = Some(OutputChunk { attempt, stream, data });
                return;
            }
            SlotEvent::StdinTaken { slot, attempt: _ } => {
                let stdin = self.opened.as_mut().and_then(|opened| opened.stdin.get_mut(&slot));
                if let Some(answer) = stdin.and_then(|stdin| stdin.waiting.pop_front()) {
                    let _ = answer.send(Ok(()));
                }
                return;
            }
            SlotEvent::Progress { slot, attempt, lines } => {
                Input::Progressed { slot, attempt, lines }
            }
            SlotEvent::Exited(exit) => self.exited(*exit),
            SlotEvent::HelperDied { slot, attempt, detail } => {
                Input::HelperDied { slot, attempt, detail }
            }
            SlotEvent::Gone { slot, detail } => Input::Gone { slot, detail },
        };
        self.step(input);
    }

    /// Keeps an attempt's output until its report is due.
    fn exited(&mut self, exit: SlotExit) -> Input {
        let SlotExit { slot, attempt, exit, duration, usage, leak, written, left, stdout, stderr } =
            exit;
        if let Some(opened) = &mut self.opened {
            opened.wrote(slot, attempt, written, left, &mut self.telling);
            let reported = [stdout.to_output(), stderr.to_output()];
            let mut long = [Some(stdout), Some(stderr)];
            for (output, capture) in reported.iter().zip(&mut long) {
                // Live streams are counted, not kept: all of it is with the client already.
                capture.take_if(|capture| !outbox::is_long(output) || capture.kept() == 0);
            }
            opened.outputs.insert(attempt, Outputs { reported, long });
        }
        let before = self.opened.as_mut().and_then(|opened| opened.kills.remove(&slot));
        let killed = exit == Exit::Signal(Signal::SIGKILL as i32);
        let out_of_memory =
            killed && before.is_some_and(|before| self.worker.memory.look_now().kills > before);
        Input::Exited(Exited { slot, attempt, exit, duration, usage, leak, out_of_memory })
    }

    fn permitted(&mut self, permit: Permit) {
        // Without a session it goes back by being dropped.
        if let Some(opened) = &mut self.opened {
            let (number, places) = (permit.number(), permit.places());
            opened.permits.insert(number, permit);
            self.step(Input::Permit { number, places });
        }
    }

    fn woken(&mut self, wake: Option<Instant>) {
        let now = Instant::now();
        if wake.is_some_and(|wake| now - wake > STOOD_STILL) {
            // The client may not have been silent but unheard: what it said comes first.
            self.wake = Some(now + CATCH_UP);
            return;
        }
        self.wake = None;
        self.step(Input::Woken { crowded: self.sharer.others_wait() });
    }

    /// Steps the session through an input, performs what it wants, and answers what was asked.
    fn step(&mut self, input: Input) -> Answers {
        let mut answers = Answers { leased: Ok(()), revoked: Vec::new() };
        let leased: Vec<_> = match &input {
            Input::Lease(attempts) => attempts.iter().map(|attempt| attempt.id).collect(),
            _ => Vec::new(),
        };
        let mut inputs = VecDeque::from([input]);
        let (mut effects, mut returned) = (Vec::new(), Vec::new());
        while let Some(input) = inputs.pop_front() {
            let Some(opened) = &mut self.opened else { break };
            opened.session.step(Tick(self.began.elapsed()), input, &mut effects);
            for effect in effects.drain(..) {
                match effect {
                    Effect::Leased(result) => {
                        if result.is_ok() {
                            opened.layers.lease(&leased);
                        }
                        answers.leased = result;
                    }
                    Effect::Revoked(attempts) => {
                        attempts.iter().for_each(|attempt| opened.layers.forget(*attempt));
                        answers.revoked = attempts;
                    }
                    Effect::AskPermit { places } => {
                        self.worker.look_at_memory();
                        match self.sharer.ask(places).now() {
                            Ok(permit) => {
                                let number = permit.number();
                                inputs.push_back(Input::Permit { number, places });
                                opened.permits.insert(number, permit);
                            }
                            Err(waiting) => {
                                self.waits.retain(|(_, wait)| !wait.is_finished());
                                self.waits.push((places, self.asking.spawn(waiting)));
                            }
                        }
                    }
                    Effect::WithdrawPermit { places } => {
                        let waits =
                            |(of, wait): &(u32, AbortHandle)| *of == places && !wait.is_finished();
                        if let Some(at) = self.waits.iter().position(waits) {
                            self.waits.swap_remove(at).1.abort();
                        }
                    }
                    Effect::ReturnPermit(permit) => {
                        returned.extend(opened.permits.remove(&permit));
                    }
                    Effect::Spawn { slot, permit, attempt } => {
                        opened.started.insert(attempt.id, self.worker.tally.start());
                        opened.kills.insert(slot, self.worker.memory.look().kills);
                        inputs.extend(opened.spawn(self.worker.config(), slot, permit, *attempt));
                    }
                    Effect::Terminate(slot) => opened.slots.command(slot, SlotCommand::Terminate),
                    Effect::Kill(slot) => opened.slots.command(slot, SlotCommand::Kill),
                    // Who speaks an older version wouldn't understand it.
                    Effect::Report(Report::Draining {}) if self.admission.speaks.minor < 1 => {}
                    Effect::Report(report) => {
                        opened.report(report, &self.outbox, &mut self.telling);
                    }
                    Effect::WakeAt(tick) => self.wake = self.began.checked_add(tick.0),
                    Effect::End(reason) => opened.ended = Some(reason),
                }
            }
            // After what was asked for: whoever gives a place back and wants another is among those
            // whose turn it may be.
            returned.clear();
            opened.list();
            let fence = opened.session.fence_at();
            opened.deadline.renew(fence.map(|at| at.0.saturating_sub(self.began.elapsed())));
        }
        answers
    }

    /// The session has ended as the client asked: says so once all else has been said, and all
    /// files have been brought that its tests left. Each piece of them has a deadline of its own;
    /// all of it may take longer than a client bears a silent worker.
    async fn tell_closed(&mut self, requests: &mut mpsc::UnboundedReceiver<Request>) {
        let Some(opened) = self.opened.take() else { return };
        let mut telling = std::mem::take(&mut self.telling);
        let outbox = self.outbox.clone();
        let mut forwarding = opened.forwarding;
        let told = async {
            let told = async {
                opened.slots.end().await;
                tell_all(&mut telling, &outbox).await;
                forwarding.settle().await;
            };
            let _ = tokio::time::timeout(TELL_TIME, told).await;
            if let Some(collect) = opened.collect {
                let written = opened.written.into_values().collect();
                collect.rest(written, opened.sandbox).await;
            }
        };
        {
            let mut told = pin!(told);
            loop {
                tokio::select! {
                    () = &mut told => break,
                    // A connection has one session, so nothing begins meanwhile.
                    Some(request) = requests.recv() => self.on_request(request),
                }
            }
        }
        self.telling = telling;
        for closing in opened.closing {
            let _ = closing.send(());
        }
    }

    /// Ends everything that runs. The client is told, if it is there.
    async fn end(mut self, client_is_there: bool) {
        let why = if client_is_there { Input::Close(Stop::Kill) } else { Input::PeerLost };
        self.step(why);
        let ending = async {
            while client_is_there && self.opened.as_ref().is_some_and(|it| it.ended.is_none()) {
                self.happening().await;
            }
            if client_is_there {
                tell_all(&mut self.telling, &self.outbox).await;
            }
        };
        let _ = tokio::time::timeout(END_TIME, ending).await;
        if let Some(Opened { slots, forwarding, .. }) = self.opened.take() {
            drop(forwarding);
            slots.end().await;
        }
    }
}

/// Waits until the client has all reports and the outputs that go ahead of them.
async fn tell_all(telling: &mut JoinSet<bool>, outbox: &Outbox) {
    // One of these empties the outbox, and ends only with an error.
    while telling.len() > 1 && telling.join_next().await.is_some() {}
    outbox.flush().await;
}

/// What a session answers at once.
struct Answers {
    leased: Result<(), Refusal>,
    revoked: Vec<AttemptId>,
}

impl Opened {
    /// What is to be kept of a binary, if there is room for it.
    fn room_for(&self, binary: &BinarySpec) -> Result<usize, Refusal> {
        let (bytes, before) = (weight::of_binary(binary), self.binaries.get(&binary.key));
        let full = |why: String| {
            let message = format!("could not prepare {}: {why}", binary.label);
            Refusal::new(RefusalKind::OutOfResources, message)
        };
        if before.is_none() && self.binaries.len() >= BINARIES_MAX {
            let why = format!("{BINARIES_MAX} binaries are ready in this session already");
            return Err(full(why).with_hint("run parts of the workspace one after the other"));
        }
        let all = self.ready_bytes + bytes - before.map_or(0, |before| before.bytes);
        if all > READY_BYTES_MAX {
            return Err(full(too_much(all)).with_hint(SEND_LESS));
        }
        self.listed.room_for(bytes)?;
        Ok(bytes)
    }

    /// Says what goes on in it and what it keeps.
    fn list(&self) {
        let bytes = self.ready_bytes + self.session.queued_bytes();
        self.listed.set(self.session.running(), self.session.queued(), bytes);
    }

    /// Whether attempts can have networks of their own, and in them what is forwarded.
    fn may_be_private(&self, host: &Host) -> Result<(), Refusal> {
        if let Err(lack) = &host.private_network {
            let message =
                format!("could not give an attempt a network of its own: {}", lack.reason);
            let refusal = Refusal::new(RefusalKind::Incompatible, message);
            return Err(Refusal { hint: lack.hint.clone(), ..refusal });
        }
        self.forwarding.can_be_in(&self.sandbox)
    }

    /// Starts an attempt. Answers what became of it if it can't be started at all.
    fn spawn(
        &mut self,
        config: &super::WorkerConfig,
        slot: SlotId,
        permit: u32,
        spec: AttemptSpec,
    ) -> Option<Input> {
        let attempt = spec.id;
        let Some(binary) = self.binaries.get(&spec.binary) else {
            let detail = format!("binary {} was not prepared", spec.binary.0);
            let reason = crate::protocol::LossReason::CouldNotStart;
            return Some(Input::CouldNotSpawn { slot, attempt, reason, detail });
        };
        let mut env = Variables::new([Arc::clone(&self.env), Arc::clone(&binary.env)]);
        let given = environment::translated(&spec.env, &self.sandbox);
        given.for_each(|(name, value)| env.set(name, value));
        let ours = [
            ("DISTEST", "1".to_owned()),
            ("DISTEST_TEST_WORKER", config.name.clone()),
            ("DISTEST_TEST_SLOT", permit.to_string()),
            ("NEXTEST_TEST_GLOBAL_SLOT", self.slot_base.saturating_add(slot.0).to_string()),
        ];
        ours.into_iter().for_each(|(name, value)| env.set(name, value));
        spec.unset.iter().for_each(|name| env.unset(name.as_os_str()));
        if self.sandbox.level().is_some() {
            environment::with_own_profiles(&mut env, &self.run, attempt);
        }
        let args = spec.args.iter().map(|arg| self.sandbox.value(arg.as_os_str()));
        let request = SpawnRequest {
            attempt,
            program: binary.program.clone(),
            args: args.collect(),
            env,
            cwd: binary.cwd.clone(),
            streams: spec.streams,
            progress: spec.progress,
            leak_timeout: spec.limits.leak_timeout,
            layer: self.layers.of(&spec),
            network: spec.network,
            forwards: self.forwarding.seen_in(spec.network),
        };
        self.labels.insert(slot, spec.label);
        self.stdin.insert(slot, Stdin { attempt, waiting: VecDeque::new() });
        self.slots.command(slot, SlotCommand::Spawn(Box::new(request)));
        None
    }

    /// Notes where a slot's attempts write now, and what this one left. What they wrote before,
    /// elsewhere, is complete.
    fn wrote(
        &mut self,
        slot: SlotId,
        attempt: AttemptId,
        written: Option<Arc<Written>>,
        left: Vec<Left>,
        telling: &mut JoinSet<bool>,
    ) {
        let Some(collect) = &self.collect else { return };
        let label = self.labels.remove(&slot).unwrap_or_default();
        let Some(written) = written else {
            if collect.is_at_once() {
                self.left.insert(attempt, LeftAt::Place(label));
            }
            return;
        };
        let same = self.written.get(&slot).filter(|layer| layer.is(&written));
        let layer = same.cloned().unwrap_or_else(|| Arc::new(Layer::new(written)));
        layer.note(&label, &left);
        if collect.is_at_once() && !left.is_empty() {
            self.left.insert(attempt, LeftAt::Layer(Arc::clone(&layer), left));
        }
        let before = self.written.insert(slot, Arc::clone(&layer));
        if let Some(before) = before.filter(|before| !Arc::ptr_eq(before, &layer)) {
            let collect = Arc::clone(collect);
            telling.spawn(async move {
                collect.written(before).await;
                true
            });
        }
    }

    /// Tells the client, after the output that belongs to it.
    fn report(&mut self, mut report: Report, outbox: &Outbox, telling: &mut JoinSet<bool>) {
        let attempt = match &report {
            Report::Finished(finished) => finished.attempt,
            Report::Lost { attempt, .. } => *attempt,
            Report::Started { .. }
            | Report::Slow { .. }
            | Report::Progress { .. }
            | Report::Draining {} => return outbox.report(report),
        };
        // What only waited has not been started.
        if let Some(started) = self.started.remove(&attempt) {
            started.ended(&report);
        }
        self.layers.forget(attempt);
        let met = self.forwarding.end(attempt);
        // Whoever waits to give it input learns from the dropped answer that it is over.
        self.stdin.retain(|_, stdin| stdin.attempt != attempt);
        let left = self.left.remove(&attempt).zip(self.collect.clone());
        let outputs = self.outputs.remove(&attempt);
        let (Report::Finished(finished), Some(Outputs { reported, long })) = (&mut report, outputs)
        else {
            return outbox.report(report);
        };
        [finished.stdout, finished.stderr] = reported;
        finished.notes = met;
        if left.is_none() && long.iter().all(Option::is_none) {
            return outbox.report(report);
        }
        let (outbox, sandbox) = (outbox.clone(), Arc::clone(&self.sandbox));
        telling.spawn(async move {
            if let Some((left, collect)) = left {
                match left {
                    LeftAt::Layer(layer, left) => collect.left(layer, left).await,
                    LeftAt::Place(label) => collect.in_place(label, sandbox).await,
                }
            }
            outbox.report_after(attempt, long, report).await;
            true
        });
    }
}

/// What the client gets, and how its paths will be recreated.
fn ready(slots: u32, sandbox: &Sandbox, host: &Host) -> SessionReady {
    let Some(level) = sandbox.level() else {
        // Everything lies where it is.
        return SessionReady {
            slots,
            sandbox_level: Level::Namespaces.number(),
            ..Default::default()
        };
    };
    let shortfall = host.shortfall.clone();
    let (reason, hint) = shortfall.map_or((String::new(), None), |it| (it.reason, it.hint));
    SessionReady {
        slots,
        sandbox_level: level.number(),
        sandbox_reason: reason,
        sandbox_hint: hint,
        ..Default::default()
    }
}

fn no_session() -> Refusal {
    Refusal::new(RefusalKind::Closed, "no session is open")
}

async fn until(wake: Option<Instant>) {
    match wake {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
