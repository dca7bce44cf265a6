//! One slot: a zygote, and one attempt after the other in it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::helper::{Helper, Inside};
use super::progress::Progress;
use super::pump::{Feeder, Live, READ_BYTES_MAX, Reading, Sink};
use super::request::{encode, explain};
use super::{HELPER_DEATHS_MAX, Listener, SlotCommand, SlotEvent, SlotExit, SpawnRequest};
use crate::output::Capture;
use crate::pipes;
use crate::protocol::{AttemptId, Leak, LossReason, Network, SlotId, Stream, Streams};
use crate::sandbox::changes::Written;
use crate::sandbox::enclosure::Enclosure;
use crate::sandbox::left::{Left, Wanted};
use crate::sandbox::level::Level;
use crate::zygote::ZygoteProgram;
use crate::zygote::deadline::Deadline;
use crate::zygote::wire::{Answer, Exited, Request, Spawn, SpawnStep};

/// How long the output of an attempt that is captured lies in its pipe before somebody reads it.
/// Most tests have ended by then, which saves a wake-up for every line they print.
const REST: Duration = Duration::from_millis(10);
/// How long a zygote may take to start a process: slow disks included.
const SPAWN_PATIENCE: Duration = Duration::from_secs(60);
/// How long an attempt may outlive SIGKILL before its zygote counts as dead.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait before a zygote is started again, times the number of deaths in a row.
const RESTART_AFTER: Duration = Duration::from_millis(100);

/// What a slot is and has.
pub(super) struct Place {
    pub(super) slot: SlotId,
    pub(super) events: mpsc::Sender<SlotEvent>,
    pub(super) scratch: Arc<Path>,
    pub(super) zygote: ZygoteProgram,
    pub(super) enclosure: Option<Arc<Enclosure>>,
    pub(super) wanted: Option<Arc<Wanted>>,
    /// How long attempts may run without a word from the session.
    pub(super) deadline: Arc<Deadline>,
    /// What attempts without input read from, once it is open.
    pub(super) nothing: OnceLock<File>,
}

type Commands = mpsc::UnboundedReceiver<SlotCommand>;

/// Lives until told to end, by a command or by `ending` being closed.
pub(super) async fn run(place: Place, mut commands: Commands, mut ending: watch::Receiver<()>) {
    let mut helper = None;
    let mut buffer = vec![0; READ_BYTES_MAX];
    tokio::select! {
        biased;
        _closed = ending.changed() => {}
        () = place.serve(&mut helper, &mut commands, &mut buffer) => {}
    }
    if let Some(helper) = helper {
        helper.end().await;
    }
}

/// How an attempt came out, as far as the slot is concerned.
enum Outcome {
    /// The slot can take the next.
    Done,
    /// The zygote is of no use any more.
    Died(Death),
    /// The slot is to end.
    End,
}

/// The end of a zygote.
struct Death {
    /// What was running or about to.
    attempt: Option<AttemptId>,
    detail: String,
}

/// An attempt between its request and its exit. Dropped before that, its process group is killed,
/// in case that its zygote is no longer there to do so.
struct Running {
    attempt: AttemptId,
    /// Its process, from when it is known until its exit is.
    leader: Option<i32>,
    stdout: Option<Reading>,
    stderr: Option<Reading>,
    feeder: Option<Feeder>,
    progress: Option<Progress>,
    /// When to begin to read what is at rest.
    wake_at: Option<Instant>,
    /// SIGKILL has been asked for.
    killed: bool,
    /// When the zygote must have answered.
    answer_by: Option<Instant>,
}

impl Place {
    /// Runs attempts in a zygote, until told to end or the zygote keeps dying. It is started when
    /// there is something for it to do: a session that only waits costs no process.
    async fn serve(&self, helper: &mut Option<Helper>, commands: &mut Commands, buffer: &mut [u8]) {
        let mut deaths = 0;
        let mut next = None;
        self.tell(SlotEvent::Ready { slot: self.slot }).await;
        loop {
            if next.is_none() {
                next = next_request(commands).await;
            }
            if next.is_none() {
                return;
            }
            let (attempt, detail) = match Helper::start(&self.zygote, &self.deadline) {
                Err(error) => (None, format!("could not start {:?}: {error}", self.zygote.program)),
                Ok(started) => {
                    let current = helper.insert(started);
                    let died =
                        self.attempts(current, &mut next, commands, buffer, &mut deaths).await;
                    let (Some(death), Some(dead)) = (died, helper.take()) else { return };
                    let end = dead.bury().await;
                    (death.attempt, format!("{}; {end}", death.detail))
                }
            };
            deaths += 1;
            let detail = format!("slot {} lost its helper process: {detail}", self.slot.0);
            self.tell(SlotEvent::HelperDied { slot: self.slot, attempt, detail: detail.clone() })
                .await;
            if deaths >= HELPER_DEATHS_MAX {
                let detail = format!("{detail}; {deaths} times in a row, so the slot is given up");
                self.tell(SlotEvent::Gone { slot: self.slot, detail }).await;
                return;
            }
            tokio::time::sleep(RESTART_AFTER * deaths).await;
            if next.is_none() {
                self.tell(SlotEvent::Ready { slot: self.slot }).await;
            }
        }
    }

    /// Runs attempts, the `next` first, until the zygote dies; `None` when told to end.
    async fn attempts(
        &self,
        helper: &mut Helper,
        next: &mut Option<Box<SpawnRequest>>,
        commands: &mut Commands,
        buffer: &mut [u8],
        deaths: &mut u32,
    ) -> Option<Death> {
        // Not taken in before: what dies at its start takes nothing with it.
        match tokio::time::timeout(SPAWN_PATIENCE, helper.up()).await {
            Ok(Ok(Answer::Alive)) => {}
            Ok(answer) => return Some(Death { attempt: None, detail: unexpected(answer) }),
            Err(_) => return Some(Death { attempt: None, detail: "it doesn't answer".into() }),
        }
        loop {
            let request = match next.take() {
                Some(request) => request,
                None => tokio::select! {
                    biased;
                    answer = helper.receive() => {
                        return Some(Death { attempt: None, detail: unexpected(answer) });
                    }
                    request = next_request(commands) => request?,
                },
            };
            if let Err(detail) = self.enclose(helper, request.layer, request.network).await {
                return Some(Death { attempt: Some(request.attempt), detail });
            }
            match self.attempt(*request, helper, commands, buffer).await {
                Outcome::Done => *deaths = 0,
                Outcome::Died(death) => return Some(death),
                Outcome::End => return None,
            }
        }
    }

    /// Makes sure that the zygote is in the sandbox that attempts with this layer share, and in no
    /// other, and that it can start an attempt in this network: else another takes its place.
    async fn enclose(
        &self,
        helper: &mut Helper,
        layer: u64,
        network: Network,
    ) -> Result<(), String> {
        let astray = helper.network == Network::Private && network == Network::Host;
        let placed = self.enclosure.is_none() || helper.is_inside(layer);
        if placed && !astray {
            helper.network = network;
            return Ok(());
        }
        let elsewhere = self.enclosure.as_ref().is_some_and(|it| it.level == Level::Bubblewrap);
        if astray || helper.has_entered() || elsewhere {
            let next = Helper::start_for(&self.zygote, self.enclosure.as_deref(), &self.deadline)
                .map_err(|error| {
                format!("could not start {:?}: {error}", self.zygote.program)
            })?;
            std::mem::replace(helper, next).end().await;
        }
        helper.network = network;
        let Some(enclosure) = &self.enclosure else { return Ok(()) };
        match tokio::time::timeout(SPAWN_PATIENCE, helper.enter(enclosure, layer)).await {
            Ok(entered) => entered,
            Err(_) => Err("it did not enter its sandbox in time".into()),
        }
    }

    async fn attempt(
        &self,
        request: SpawnRequest,
        helper: &mut Helper,
        commands: &mut Commands,
        buffer: &mut [u8],
    ) -> Outcome {
        let (mut running, spawn, numbers, descriptors) = match self.prepare(&request) {
            Ok(prepared) => prepared,
            Err(error) => {
                self.could_not_spawn(&request, SpawnStep::Receive, &error).await;
                return Outcome::Done;
            }
        };
        match helper.send(&Request::Spawn(Box::new(spawn)), &numbers).await {
            Err(error) if !is_lost(&error) => {
                self.could_not_spawn(&request, SpawnStep::Receive, &error).await;
                return Outcome::Done;
            }
            // A zygote that is gone is heard of below.
            Ok(()) | Err(_) => {}
        }
        // Only the attempt must hold these, or its output never ends.
        drop(descriptors);
        let exited = loop {
            let wake_at = running.next_wake();
            let check_at = helper.next_check();
            tokio::select! {
                biased;
                answer = helper.receive_all() => match answer {
                    Ok((Answer::Spawned { pid, forwards }, sockets)) => {
                        running.leader = pid;
                        if !matches!(request.streams, Streams::Capture) {
                            // Not earlier, so that no output comes before this event.
                            running.wake_at = Some(Instant::now());
                        }
                        if !running.killed {
                            running.answer_by = None;
                        }
                        let listeners = listeners(&request, &forwards, sockets);
                        let (slot, attempt) = (self.slot, request.attempt);
                        self.tell(SlotEvent::Spawned { slot, attempt, listeners }).await;
                    }
                    Ok((Answer::CouldNotSpawn { step, errno }, _)) => {
                        let error = io::Error::from_raw_os_error(errno);
                        self.could_not_spawn(&request, step, &error).await;
                        return Outcome::Done;
                    }
                    Ok((Answer::Exited(exited), _)) => break exited,
                    Ok((Answer::Entered | Answer::CouldNotEnter(_) | Answer::Alive, _)) | Err(_) => {
                        return running.died(unexpected(answer.map(|(answer, _)| answer)));
                    }
                },
                command = commands.recv() => match command {
                    None | Some(SlotCommand::End) => return Outcome::End,
                    Some(command) => self.obey(command, &mut running, helper).await,
                },
                () = sleep_until(wake_at.unwrap_or_else(Instant::now)), if wake_at.is_some() => {
                    if let Err(detail) = running.wake() {
                        return running.died(detail);
                    }
                }
                () = sleep_until(check_at) => {
                    if let Err(detail) = helper.check().await {
                        return running.died(detail);
                    }
                }
            }
        };
        let left = match helper.inside() {
            Some(inside) => {
                inside.spent |= exited.spent;
                let left = self.left(inside).await;
                inside.written.clone().map(|written| (written, left))
            }
            None => None,
        };
        self.finish(&request, running, exited, left, buffer).await
    }

    /// Files that are wanted and that the attempt left which has just ended.
    async fn left(&self, inside: &mut Inside) -> Vec<Left> {
        let (Some(wanted), Some(written)) = (&self.wanted, &inside.written) else {
            return Vec::new();
        };
        if !inside.follower.is_due(written) {
            return Vec::new();
        }
        let mut follower = std::mem::take(&mut inside.follower);
        let (wanted, written) = (Arc::clone(wanted), Arc::clone(written));
        let looking = tokio::task::spawn_blocking(move || {
            let left = follower.look(&written, &wanted, SystemTime::now());
            (follower, left)
        });
        // What panics here has seen nothing.
        let (follower, left) = looking.await.unwrap_or_default();
        inside.spent |= follower.spent;
        inside.follower = follower;
        left
    }

    fn nothing(&self) -> io::Result<&File> {
        match self.nothing.get() {
            Some(open) => Ok(open),
            None => {
                let open = File::open("/dev/null")?;
                Ok(self.nothing.get_or_init(|| open))
            }
        }
    }

    /// Makes the pipes and the request, and says which descriptors it takes, in their order; of
    /// those the new ones are to be closed when it has been sent.
    fn prepare(
        &self,
        request: &SpawnRequest,
    ) -> io::Result<(Running, Spawn, Vec<RawFd>, Vec<OwnedFd>)> {
        let attempt = request.attempt;
        let spawn = encode(request)?;
        let (stdout, its_stdout) = pipes::output()?;
        let (stderr, its_stderr) = pipes::output()?;
        let live = !matches!(request.streams, Streams::Capture);
        let mut descriptors = Vec::with_capacity(4);
        let (its_stdin, feeder) = match request.streams {
            Streams::Capture | Streams::Live => (self.nothing()?.as_raw_fd(), None),
            Streams::LiveWithStdin => {
                let (ours, its_stdin) = pipes::input()?;
                let (number, events) = (its_stdin.as_raw_fd(), self.events.clone());
                descriptors.push(its_stdin);
                (number, Some(Feeder::start(ours, self.slot, attempt, events)?))
            }
        };
        let mut numbers = vec![its_stdin, its_stdout.as_raw_fd(), its_stderr.as_raw_fd()];
        descriptors.extend([its_stdout, its_stderr]);
        let sink = |stream| Sink {
            capture: Capture::new(Arc::clone(&self.scratch)),
            live: live.then(|| Live {
                slot: self.slot,
                attempt,
                stream,
                events: self.events.clone(),
            }),
        };
        let now = Instant::now();
        let progress = match request.progress {
            true => {
                let (ours, theirs) = pipes::output()?;
                numbers.push(theirs.as_raw_fd());
                descriptors.push(theirs);
                Some(Progress::start(ours, self.slot, attempt, self.events.clone()))
            }
            false => None,
        };
        let running = Running {
            attempt,
            leader: None,
            stdout: Some(Reading::AtRest { pipe: stdout, sink: sink(Stream::Stdout) }),
            stderr: Some(Reading::AtRest { pipe: stderr, sink: sink(Stream::Stderr) }),
            feeder,
            progress,
            wake_at: (!live).then(|| now + REST),
            killed: false,
            answer_by: Some(now + SPAWN_PATIENCE),
        };
        Ok((running, spawn, numbers, descriptors))
    }

    /// A signal that can't be sent is no error: either the zygote is gone, which is heard of, or
    /// the next, harder one will tell.
    async fn obey(&self, command: SlotCommand, running: &mut Running, helper: &Helper) {
        match command {
            SlotCommand::Terminate => {
                let _ = helper.send(&Request::Terminate(running.attempt), &[]).await;
            }
            SlotCommand::Kill => {
                running.killed = true;
                running.answer_by = Some(Instant::now() + KILL_PATIENCE);
                let _ = helper.send(&Request::Kill(running.attempt), &[]).await;
            }
            SlotCommand::Signal(attempt, signal) => {
                let _ = helper.send(&Request::Signal(attempt, signal), &[]).await;
            }
            SlotCommand::Stdin(data) => {
                if let Some(feeder) = &running.feeder {
                    feeder.feed(data);
                }
            }
            SlotCommand::Spawn(request) => {
                let error = Errno::EBUSY.into();
                self.could_not_spawn(&request, SpawnStep::Receive, &error).await;
            }
            // Taken care of where commands are received.
            SlotCommand::End => {}
        }
    }

    /// Reads the rest of the output and tells of the end.
    async fn finish(
        &self,
        request: &SpawnRequest,
        mut running: Running,
        exited: Exited,
        left: Option<(Arc<Written>, Vec<Left>)>,
        buffer: &mut [u8],
    ) -> Outcome {
        running.leader = None;
        if let Some(progress) = running.progress.take() {
            progress.finish().await;
        }
        let (Some(stdout), Some(stderr)) = (running.stdout.take(), running.stderr.take()) else {
            return running.died("its output is gone".into());
        };
        // One after the other: the second has had its time when the first has, and both are at
        // their end already unless somebody else holds them.
        let started = Instant::now();
        let stdout = stdout.finish(request.leak_timeout, buffer).await;
        let rest = request.leak_timeout.saturating_sub(started.elapsed());
        let stderr = stderr.finish(rest, buffer).await;
        let (stdout, stderr) = match (stdout, stderr) {
            (Ok(stdout), Ok(stderr)) => (stdout, stderr),
            (Err(error), _) | (_, Err(error)) => {
                return running.died(format!("could not read what the attempt wrote: {error}"));
            }
        };
        let output_open = stdout.open || stderr.open;
        let leaked = output_open || !exited.left.is_empty();
        let (written, left) = left.unzip();
        self.tell(SlotEvent::Exited(Box::new(SlotExit {
            slot: self.slot,
            attempt: request.attempt,
            exit: exited.exit,
            duration: exited.duration,
            usage: exited.usage,
            leak: leaked.then_some(Leak { processes: exited.left, output_open }),
            written,
            left: left.unwrap_or_default(),
            stdout: stdout.capture,
            stderr: stderr.capture,
        })))
        .await;
        Outcome::Done
    }

    async fn could_not_spawn(&self, request: &SpawnRequest, step: SpawnStep, error: &io::Error) {
        let out_of_resources = matches!(
            error.raw_os_error().map(Errno::from_raw),
            Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::EAGAIN | Errno::ENOSPC)
        );
        self.tell(SlotEvent::CouldNotSpawn {
            slot: self.slot,
            attempt: request.attempt,
            reason: if out_of_resources {
                LossReason::OutOfResources
            } else {
                LossReason::CouldNotStart
            },
            detail: explain(request, step, error),
        })
        .await;
    }

    /// A receiver that is gone wants no more events.
    async fn tell(&self, event: SlotEvent) {
        let _ = self.events.send(event).await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(leader) = self.leader {
            let _ = killpg(Pid::from_raw(leader), Signal::SIGKILL);
        }
    }
}

impl Running {
    /// When [`Running::wake`] is due.
    fn next_wake(&self) -> Option<Instant> {
        self.wake_at.into_iter().chain(self.answer_by).min()
    }

    /// Does what is due. An error says that the zygote doesn't answer.
    fn wake(&mut self) -> Result<(), String> {
        let now = Instant::now();
        if self.wake_at.is_some_and(|at| now >= at) {
            self.wake_at = None;
            for reading in [&mut self.stdout, &mut self.stderr] {
                *reading = reading.take().map(Reading::wake);
            }
        }
        match self.answer_by {
            Some(by) if now >= by => Err("it doesn't answer".into()),
            Some(_) | None => Ok(()),
        }
    }

    fn died(&self, detail: String) -> Outcome {
        Outcome::Died(Death { attempt: Some(self.attempt), detail })
    }
}

/// The next attempt; none when told to end.
async fn next_request(commands: &mut Commands) -> Option<Box<SpawnRequest>> {
    loop {
        match commands.recv().await? {
            SlotCommand::End => return None,
            SlotCommand::Spawn(request) => return Some(request),
            // Meant for an attempt that has ended meanwhile.
            SlotCommand::Terminate
            | SlotCommand::Kill
            | SlotCommand::Signal(..)
            | SlotCommand::Stdin(_) => {}
        }
    }
}

/// Which socket listens for which service.
fn listeners(request: &SpawnRequest, forwards: &[u16], sockets: Vec<OwnedFd>) -> Vec<Listener> {
    let forwards = forwards.iter().map(|number| request.forwards.get(usize::from(*number)));
    let both = forwards.zip(sockets);
    both.filter_map(|(forward, socket)| Some(Listener { forward: forward?.clone(), socket }))
        .collect()
}

fn is_lost(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

fn unexpected(answer: io::Result<Answer>) -> String {
    match answer {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => "it closed its socket".into(),
        Err(error) => format!("could not hear it: {error}"),
        Ok(answer) => format!("it said {answer:?} out of turn"),
    }
}
