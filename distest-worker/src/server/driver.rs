//! Owns a session: feeds it calls and events of slots, performs its effects.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::WorkerShared;
use super::environment::{self, Environment};
use super::files::Files;
use super::handler::Request;
use super::machine_slot::MachineSlot;
use super::outbox::{self, Outbox};
use crate::executor::{ExecutorOptions, SlotCommand, SlotEvent, SlotExit, Slots, SpawnRequest};
use crate::link::{Link, LinkEnd};
use crate::output::Capture;
use crate::protocol::{
    AttemptId, AttemptSpec, BinaryKey, BinarySpec, ClientClient, Finished, LossReason, OutputChunk,
    Pong, Refusal, RefusalKind, Report, SessionReady, SessionSpec, SlotId, StdinChunk,
};
use crate::sandbox::Sandbox;
use crate::session::{Effect, Input, Session, Tick};

/// Events of slots that wait to be taken.
const EVENTS_MAX: usize = 256;

/// A binary that is ready to run.
struct Prepared {
    program: PathBuf,
    cwd: PathBuf,
    env: Environment,
}

/// An open session.
struct Opened {
    session: Session,
    slots: Slots,
    sandbox: Arc<Sandbox>,
    slot_base: u32,
    env: Environment,
    /// Slots by their number on this machine, unique across workers and clients.
    machine_slots: Vec<MachineSlot>,
}

/// What occupies a slot.
struct Busy {
    attempt: AttemptId,
    /// Held while the attempt runs; none while it waits for one.
    permit: Option<OwnedSemaphorePermit>,
    /// Not started yet.
    request: Option<Box<SpawnRequest>>,
    stdin: Option<oneshot::Sender<Result<(), Refusal>>>,
}

/// Drives one connection's session.
pub(super) struct Driver {
    worker: Arc<WorkerShared>,
    files: Arc<Files>,
    outbox: Outbox,
    emptying: tokio::task::JoinHandle<()>,
    opened: Option<Opened>,
    binaries: BTreeMap<BinaryKey, Prepared>,
    busy: BTreeMap<SlotId, Busy>,
    /// Long outputs of attempts whose report is due.
    outputs: BTreeMap<AttemptId, [Option<Capture>; 2]>,
    events: mpsc::Sender<SlotEvent>,
    permits: mpsc::Sender<(SlotId, AttemptId, OwnedSemaphorePermit)>,
    origin: Instant,
    wake: Option<Tick>,
    /// What the session gave back in answer to a revocation.
    revoked: Vec<AttemptId>,
}

/// What a driver waits for beside the client's calls.
pub(super) struct Incoming {
    events: mpsc::Receiver<SlotEvent>,
    permits: mpsc::Receiver<(SlotId, AttemptId, OwnedSemaphorePermit)>,
}

impl Driver {
    pub(super) fn new(
        worker: Arc<WorkerShared>,
        files: Arc<Files>,
        client: ClientClient,
    ) -> (Self, Incoming) {
        let (events, events_in) = mpsc::channel(EVENTS_MAX);
        let (permits, permits_in) = mpsc::channel(EVENTS_MAX);
        let (outbox, emptying) = Outbox::new(client);
        let this = Self {
            worker,
            files,
            outbox,
            emptying: tokio::spawn(emptying),
            opened: None,
            binaries: BTreeMap::new(),
            busy: BTreeMap::new(),
            outputs: BTreeMap::new(),
            events,
            permits,
            origin: Instant::now(),
            wake: None,
            revoked: Vec::new(),
        };
        (this, Incoming { events: events_in, permits: permits_in })
    }

    /// Serves until the connection ends. Then nothing runs any more.
    pub(super) async fn run(
        mut self,
        mut requests: mpsc::UnboundedReceiver<Request>,
        mut incoming: Incoming,
        link: &Link,
    ) -> LinkEnd {
        let end = loop {
            let wake = self.wake;
            tokio::select! {
                end = link.ended() => break end,
                Some(request) = requests.recv() => self.on_request(request).await,
                Some(event) = incoming.events.recv() => self.on_event(event).await,
                Some((slot, attempt, permit)) = incoming.permits.recv() => {
                    self.on_permit(slot, attempt, permit);
                }
                () = sleep_until(self.origin, wake), if wake.is_some() => {
                    self.wake = None;
                    self.step(Input::Wake);
                }
            }
        };
        self.step(Input::PeerLost);
        self.end().await;
        self.emptying.abort();
        end
    }

    async fn on_request(&mut self, request: Request) {
        self.step(Input::Word);
        match request {
            Request::Word => {}
            Request::Ping(answer) => {
                let counts = self.opened.as_ref().map(|opened| &opened.session);
                let _ = answer.send(Pong {
                    running: counts.map_or(0, Session::running),
                    queued: counts.map_or(0, Session::queued),
                });
            }
            Request::Open(spec, answer) => _ = answer.send(self.open(&spec)),
            Request::Prepared(binary, answer) => _ = answer.send(self.prepared(&binary)),
            Request::Lease(lease, answer) => {
                let known = lease.attempts.iter().all(|a| self.binaries.contains_key(&a.binary));
                let _ = answer.send(match (&self.opened, known) {
                    (None, _) => Err(Refusal::new(RefusalKind::Closed, "no session is open")),
                    (Some(_), false) => {
                        let message = "the lease names a binary that was not prepared";
                        Err(Refusal::new(RefusalKind::Invalid, message))
                    }
                    (Some(_), true) => {
                        self.step(Input::Lease(lease.attempts));
                        Ok(())
                    }
                });
            }
            Request::Revoke(attempts, answer) => {
                self.step(Input::Revoke(attempts));
                let _ = answer.send(std::mem::take(&mut self.revoked));
            }
            Request::Stop(how) => self.step(Input::Stop(how)),
            Request::Stdin(chunk, answer) => self.stdin(chunk, answer),
            Request::Close(answer) => {
                self.end().await;
                let _ = answer.send(());
            }
        }
    }

    fn open(&mut self, spec: &SessionSpec) -> Result<SessionReady, Refusal> {
        if self.opened.is_some() {
            return Err(Refusal::new(RefusalKind::Invalid, "the session is open already"));
        }
        let config = self.worker.config();
        let most = config.slots.max(1);
        let slots = if spec.slots == 0 { most } else { spec.slots.min(most) };
        let sandbox = self.files.sandbox()?;
        let env = environment::with(&environment::base(spec.in_place), &spec.env, &sandbox);
        let zygote = config.zygote.clone();
        let options = ExecutorOptions { scratch: config.scratch.clone(), zygote };
        self.opened = Some(Opened {
            session: Session::new(slots, !spec.in_place),
            slots: Slots::start(slots, options, self.events.clone()),
            sandbox,
            slot_base: spec.slot_base,
            env,
            machine_slots: (0..slots).map(|_| MachineSlot::take()).collect(),
        });
        Ok(SessionReady { slots })
    }

    fn prepared(&mut self, binary: &BinarySpec) -> Result<(), Refusal> {
        let closed = || Refusal::new(RefusalKind::Closed, "no session is open");
        let opened = self.opened.as_ref().ok_or_else(closed)?;
        let prepared = Prepared {
            program: opened.sandbox.path(binary.program.as_path()),
            cwd: opened.sandbox.path(binary.cwd.as_path()),
            env: environment::with(&opened.env, &binary.env, &opened.sandbox),
        };
        self.binaries.insert(binary.key, prepared);
        Ok(())
    }

    fn stdin(&mut self, chunk: StdinChunk, answer: oneshot::Sender<Result<(), Refusal>>) {
        let busy = self.busy.iter_mut().find(|(_, busy)| busy.attempt == chunk.attempt);
        let (Some((slot, busy)), Some(opened)) = (busy, &self.opened) else {
            let message = "the attempt doesn't run (any more)";
            let _ = answer.send(Err(Refusal::new(RefusalKind::Closed, message)));
            return;
        };
        busy.stdin = Some(answer);
        opened.slots.command(*slot, SlotCommand::Stdin(chunk.data));
    }

    async fn on_event(&mut self, event: SlotEvent) {
        match event {
            SlotEvent::Ready { slot } => self.step(Input::Ready { slot }),
            SlotEvent::Spawned { slot, attempt } => self.step(Input::Spawned { slot, attempt }),
            SlotEvent::CouldNotSpawn { slot, attempt, reason, detail } => {
                self.busy.remove(&slot);
                self.step(Input::CouldNotSpawn { slot, attempt, reason, detail });
            }
            SlotEvent::Output { slot: _, attempt, stream, data } => {
                self.outbox.live(OutputChunk { attempt, stream, data }).await;
            }
            SlotEvent::StdinTaken { slot, attempt: _ } => {
                if let Some(answer) = self.busy.get_mut(&slot).and_then(|busy| busy.stdin.take()) {
                    let _ = answer.send(Ok(()));
                }
            }
            SlotEvent::Exited(exit) => self.exited(*exit),
            SlotEvent::HelperDied { slot, attempt, detail } => {
                if attempt.is_some() {
                    self.busy.remove(&slot);
                }
                self.step(Input::HelperDied { slot, attempt, detail });
            }
            SlotEvent::Gone { slot, detail } => {
                let attempt = self.busy.remove(&slot).map(|busy| busy.attempt);
                self.step(Input::HelperDied { slot, attempt, detail });
            }
        }
    }

    fn exited(&mut self, exit: SlotExit) {
        self.busy.remove(&exit.slot);
        let outputs = [exit.stdout, exit.stderr];
        let [stdout, stderr] = [0, 1].map(|n: usize| outputs[n].to_output());
        let live = outputs.iter().all(|output| output.kept() == 0);
        if !live && (outbox::is_long(&stdout) || outbox::is_long(&stderr)) {
            let long = [outbox::is_long(&stdout), outbox::is_long(&stderr)];
            let mut long = long.into_iter();
            let captures = outputs.map(|output| (long.next() == Some(true)).then_some(output));
            self.outputs.insert(exit.attempt, captures);
        }
        let finished = Box::new(Finished {
            attempt: exit.attempt,
            exit: exit.exit,
            timed_out: false,
            duration: exit.duration,
            leak: exit.leak,
            usage: exit.usage,
            stdout,
            stderr,
        });
        self.step(Input::Exited { slot: exit.slot, finished });
    }

    /// Steps the session through an input and performs what it wants.
    fn step(&mut self, input: Input) {
        let Some(opened) = &mut self.opened else { return };
        let mut effects = Vec::new();
        opened.session.step(Tick(self.origin.elapsed()), input, &mut effects);
        for effect in effects {
            match effect {
                Effect::Spawn { slot, attempt } => self.spawn(slot, *attempt),
                Effect::Terminate { slot } => self.signal(slot, SlotCommand::Terminate),
                Effect::Kill { slot } => self.signal(slot, SlotCommand::Kill),
                Effect::Report(report) => self.report(report),
                Effect::Revoked(attempts) => self.revoked = attempts,
                Effect::WakeAt(at) => self.wake = Some(at),
                Effect::End { .. } => {}
            }
        }
    }

    /// Starts an attempt as soon as the worker has a place for it.
    fn spawn(&mut self, slot: SlotId, attempt: AttemptSpec) {
        let Some(request) = self.request(slot, &attempt) else { return };
        let id = attempt.id;
        let permit = Arc::clone(&self.worker.permits).try_acquire_owned().ok();
        let waits = permit.is_none();
        let mut busy = Busy { attempt: id, permit, request: Some(request), stdin: None };
        if !waits {
            self.start(slot, &mut busy);
        }
        self.busy.insert(slot, busy);
        if waits {
            let (permits, told) = (Arc::clone(&self.worker.permits), self.permits.clone());
            tokio::spawn(async move {
                if let Ok(permit) = permits.acquire_owned().await {
                    let _ = told.send((slot, id, permit)).await;
                }
            });
        }
    }

    fn on_permit(&mut self, slot: SlotId, attempt: AttemptId, permit: OwnedSemaphorePermit) {
        // The attempt may have been stopped meanwhile: then the permit goes to the next.
        let Some(mut busy) = self.busy.remove(&slot) else { return };
        if busy.attempt == attempt && busy.permit.is_none() {
            busy.permit = Some(permit);
            self.start(slot, &mut busy);
        }
        self.busy.insert(slot, busy);
    }

    fn start(&self, slot: SlotId, busy: &mut Busy) {
        if let (Some(opened), Some(request)) = (&self.opened, busy.request.take()) {
            opened.slots.command(slot, SlotCommand::Spawn(request));
        }
    }

    fn request(&self, slot: SlotId, attempt: &AttemptSpec) -> Option<Box<SpawnRequest>> {
        // A lease that names unknown binaries was refused.
        let (opened, binary) = (self.opened.as_ref()?, self.binaries.get(&attempt.binary)?);
        let number = opened.machine_slots.get(slot.0 as usize).map_or(slot.0, MachineSlot::number);
        let ours = [
            ("DISTEST_TEST_WORKER", self.worker.config().name.clone()),
            ("DISTEST_TEST_SLOT", number.to_string()),
            ("NEXTEST_TEST_GLOBAL_SLOT", (opened.slot_base + slot.0).to_string()),
        ];
        let mut env = environment::with(&binary.env, &attempt.env, &opened.sandbox);
        env.extend(ours.map(|(name, value)| (OsString::from(name), OsString::from(value))));
        let args = attempt.args.iter().map(|arg| opened.sandbox.value(arg.as_os_str()));
        Some(Box::new(SpawnRequest {
            attempt: attempt.id,
            program: binary.program.clone(),
            args: args.collect(),
            env: env.into_iter().collect(),
            cwd: binary.cwd.clone(),
            streams: attempt.streams,
            leak_timeout: attempt.limits.leak_timeout,
        }))
    }

    /// Signals what runs in a slot; what has not started yet never will.
    fn signal(&mut self, slot: SlotId, command: SlotCommand) {
        let Some(opened) = &self.opened else { return };
        if self.busy.get(&slot).is_some_and(|busy| busy.permit.is_none()) {
            if let Some(Busy { attempt, .. }) = self.busy.remove(&slot) {
                let (reason, detail) = (LossReason::Stopped, String::new());
                self.step(Input::CouldNotSpawn { slot, attempt, reason, detail });
            }
            return;
        }
        opened.slots.command(slot, command);
    }

    fn report(&mut self, report: Report) {
        let attempt = match &report {
            Report::Finished(finished) => finished.attempt,
            Report::Lost { attempt, .. } => *attempt,
            Report::Started { .. } | Report::Slow { .. } => return self.outbox.report(report),
        };
        match self.outputs.remove(&attempt) {
            Some(outputs) => self.outbox.report_after(attempt, outputs, report),
            None => self.outbox.report(report),
        }
    }

    /// Ends everything that runs and removes the session.
    async fn end(&mut self) {
        let Some(opened) = self.opened.take() else { return };
        self.busy.clear();
        opened.slots.end().await;
    }
}

async fn sleep_until(origin: Instant, wake: Option<Tick>) {
    let at = origin + wake.map_or(std::time::Duration::ZERO, |tick| tick.0);
    tokio::time::sleep_until(at.into()).await;
}
