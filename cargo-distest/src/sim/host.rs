//! A worker: drives sessions as `server` does. Its processes are made up, and known to the judge.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use distest_worker::link::codec::{self, Message};
use distest_worker::protocol::{
    AttemptId, AttemptSignal, AttemptSpec, BinaryKey, ClientRequest, ClientResponse, Exit,
    Finished, LossReason, Output, Pong, ProgressLine, Refusal, RefusalKind, Report, SessionReady,
    SlotId, Stop, Usage, WorkerRequest, WorkerResponse,
};
use distest_worker::session::{self, Effect, EndReason, Exited, Input, Session, Tick};

use super::client::TIMEOUT;
use super::judge::Alive;
use super::places::{Places, Who};
use super::random::Random;
use super::scenario::{MILLI, Machine, Nature};
use super::world::{ConnId, Event, Frame, Side, World};
use crate::model::{AttemptResult, TestIndex};
use crate::scheduler::Mutation;

/// Reports in one call.
const REPORTS_MAX: usize = 256;

#[derive(Debug)]
pub(super) enum Happening {
    SlotReady(ConnId, SlotId),
    Prepared(ConnId, u64, BinaryKey),
    /// The clock that was set so many changes ago.
    Wake(ConnId, u64),
    Spawned(ConnId, SlotId, Box<AttemptSpec>, u64),
    /// The test that a process runs ends by itself.
    TestEnds(AttemptId, usize),
    /// A signal has done its work.
    Signalled(AttemptId, i32),
    /// A test takes the worker down.
    TakesDown(AttemptId),
    Restart,
    /// It may have memory again.
    Recovers,
    /// What another client ran under this number has ended, unless the worker has been restarted
    /// since.
    OtherEnds(u32, u64),
    /// The other client may want no more.
    OtherLeaves,
    /// It shuts down in order, and everything has ended.
    ShutDown,
}

/// What a worker does when a fault hits it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Doing {
    Down,
    Unconnected,
    Idle,
    Preparing,
    Holding,
    Running,
    RunningLone,
    Telling,
    Revoking,
    Ending,
}

pub(super) struct Host {
    pub(super) machine: Machine,
    up: bool,
    /// Incremented by every start.
    pub(super) epoch: u64,
    pub(super) sessions: BTreeMap<ConnId, Serving>,
    processes: BTreeMap<AttemptId, Process>,
    pub(super) places: Places,
    /// Until then another client wants places, too.
    pub(super) crowded_until: u64,
    /// Batches that it ended for that.
    pub(super) made_room: u64,
    pub(super) stalled_until: u64,
    pub(super) disk_full_until: u64,
    pub(super) slow_until: u64,
    /// It has little memory left.
    pub(super) short_until: u64,
    /// Its clock is ahead by this.
    pub(super) jump: u64,
    /// What it said, for saying it again.
    said: Vec<Report>,
    /// Where in its batch the test is of which an attempt is the witness.
    witnesses: BTreeMap<AttemptId, usize>,
}

pub(super) struct Serving {
    session: Session,
    began: u64,
    prepared: BTreeSet<BinaryKey>,
    outbox: VecDeque<Report>,
    telling: bool,
    asked_ever: u64,
    wake: Option<Tick>,
    wakes: u64,
    closing: Option<u64>,
    ended: Option<EndReason>,
}

#[derive(Debug)]
struct Process {
    conn: ConnId,
    slot: SlotId,
    tests: Vec<TestIndex>,
    place: usize,
    began: u64,
    witness: Option<TestIndex>,
    failed: bool,
    orphan: bool,
    /// The client has it killed: whatever it ends with is no end of its own.
    abandoned: bool,
}

impl Host {
    pub(super) fn new(machine: Machine) -> Self {
        let places = Places::new(machine.slots);
        Self {
            machine,
            up: true,
            epoch: 0,
            sessions: BTreeMap::new(),
            processes: BTreeMap::new(),
            places,
            crowded_until: 0,
            made_room: 0,
            stalled_until: 0,
            disk_full_until: 0,
            slow_until: 0,
            short_until: 0,
            jump: 0,
            said: Vec::new(),
            witnesses: BTreeMap::new(),
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.up
    }

    pub(super) fn witness(&self, attempt: AttemptId) -> Option<usize> {
        self.witnesses.get(&attempt).copied()
    }

    fn clock(&self, now: u64) -> u64 {
        now + now * self.machine.rate / 1_000_000 - now + self.jump
    }

    fn tick(&self, now: u64, serving: &Serving) -> Tick {
        Tick(Duration::from_micros(self.clock(now).saturating_sub(serving.began)))
    }

    pub(super) fn running(&self) -> usize {
        self.processes.values().filter(|process| !process.orphan).count()
    }

    pub(super) fn is_short(&self, now: u64) -> bool {
        self.short_until > now
    }

    pub(super) fn telling(&self) -> bool {
        self.sessions.values().any(|serving| serving.telling)
    }

    pub(super) fn holding(&self) -> bool {
        self.sessions.values().any(|serving| serving.session.queued() > 0)
    }

    pub(super) fn ending(&self) -> bool {
        self.sessions.values().any(|serving| serving.ended.is_some())
    }

    /// Set clocks, for faults that move them.
    pub(super) fn clocks(&self) -> Vec<(ConnId, u64)> {
        self.sessions.iter().map(|(conn, serving)| (*conn, serving.wakes)).collect()
    }

    /// Takes no more sessions.
    pub(super) fn leaves(&mut self) {
        self.up = false;
    }

    /// An attempt that runs in a session, for faults.
    pub(super) fn busy_slot(&self) -> Option<(ConnId, SlotId, AttemptId)> {
        let mut running = self.processes.iter().filter(|(_, process)| !process.orphan);
        running.next().map(|(attempt, process)| (process.conn, process.slot, *attempt))
    }
}

impl World {
    pub(super) fn host_receives(&mut self, conn: ConnId, frame: Frame) -> Result<(), String> {
        let host = self.conns[&conn].host;
        let bytes = match frame {
            Frame::End { .. } => {
                self.close(conn, Side::Host, None);
                return self.step(host, conn, Input::PeerLost).map(|_| ());
            }
            Frame::Bytes(bytes) => bytes,
        };
        match codec::read::<WorkerRequest, ClientResponse>(&bytes)? {
            Message::Request(id, request) => self.serve(host, conn, id, request),
            Message::Answer(_, Ok(ClientResponse::Report(()))) => {
                if let Some(serving) = self.hosts[host].sessions.get_mut(&conn) {
                    serving.telling = false;
                }
                self.tell(host, conn)
            }
            Message::Answer(..) | Message::Cancel(_) => Ok(()),
        }
    }

    fn serve(
        &mut self,
        host: usize,
        conn: ConnId,
        id: u64,
        request: WorkerRequest,
    ) -> Result<(), String> {
        let pinged = matches!(request, WorkerRequest::Ping {});
        let forgets = self.mutation == Some(Mutation::ForgetFence);
        let heard = if pinged && !forgets { Input::Pinged } else { Input::Heard };
        self.step(host, conn, heard)?;
        let closed = || Refusal::new(RefusalKind::Closed, "no session is open");
        let answer = match request {
            WorkerRequest::Ping {} => {
                let short_of_memory = self.hosts[host].is_short(self.now);
                WorkerResponse::Ping(Pong { short_of_memory, ..Pong::default() })
            }
            WorkerRequest::Open { .. } => {
                self.open(host, conn);
                let slots = self.hosts[host].machine.slots;
                WorkerResponse::Open(Ok(SessionReady { slots, ..SessionReady::default() }))
            }
            WorkerRequest::Prepare { binary } => {
                let takes = self.random.between(1, 200) * MILLI;
                let prepared = Happening::Prepared(conn, id, binary.key);
                self.after(takes, Event::Host(host, prepared));
                return Ok(());
            }
            WorkerRequest::Lease { lease } => {
                let known = self.hosts[host].sessions.get(&conn).is_none_or(|serving| {
                    lease.attempts.iter().all(|spec| serving.prepared.contains(&spec.binary))
                });
                if !known {
                    return Err("a lease names a binary that was not prepared".to_owned());
                }
                let answers = self.step(host, conn, Input::Lease(lease.attempts))?;
                WorkerResponse::Lease(answers.leased.unwrap_or_else(|| Err(closed())))
            }
            WorkerRequest::Revoke { attempts } => {
                let answers = self.step(host, conn, Input::Revoke(attempts))?;
                WorkerResponse::Revoke(answers.revoked)
            }
            WorkerRequest::Signal { attempt, signal } => {
                if signal != AttemptSignal::Kill {
                    return Err(format!("nobody sends {signal:?} here"));
                }
                WorkerResponse::Signal(self.abandoned(host, attempt))
            }
            WorkerRequest::Stop { how } => {
                self.step(host, conn, Input::Stop(how))?;
                WorkerResponse::Stop(())
            }
            WorkerRequest::Close {} => match self.hosts[host].sessions.get_mut(&conn) {
                Some(serving) => {
                    serving.closing = Some(id);
                    self.step(host, conn, Input::Close(Stop::Kill))?;
                    return Ok(());
                }
                None => WorkerResponse::Close(()),
            },
            other => return Err(format!("nobody asks for {other:?} here")),
        };
        let bytes = codec::answer(id, answer)?;
        self.send(conn, Side::Client, Frame::Bytes(bytes));
        Ok(())
    }

    fn open(&mut self, host: usize, conn: ConnId) {
        let (slots, began) = (self.hosts[host].machine.slots, self.hosts[host].clock(self.now));
        let mut session = Session::new(slots);
        session.mutate(self.mutation.and_then(Mutation::of_session));
        let serving = Serving {
            session,
            began,
            prepared: BTreeSet::new(),
            outbox: VecDeque::new(),
            telling: false,
            asked_ever: 0,
            wake: None,
            wakes: 0,
            closing: None,
            ended: None,
        };
        self.hosts[host].sessions.insert(conn, serving);
        for slot in (0..slots).map(SlotId) {
            let takes = self.random.between(1, 6) * MILLI;
            self.after(takes, Event::Host(host, Happening::SlotReady(conn, slot)));
        }
    }

    pub(super) fn happens(&mut self, host: usize, happening: Happening) -> Result<(), String> {
        let stalled = self.hosts[host].stalled_until;
        if stalled > self.now && !matches!(happening, Happening::Restart) {
            // Its processes run on, but this worker takes no notice.
            let processes_own =
                matches!(happening, Happening::TestEnds(..) | Happening::TakesDown(_));
            if !processes_own {
                self.at(stalled, Event::Host(host, happening));
                return Ok(());
            }
        }
        match happening {
            Happening::SlotReady(conn, slot) => {
                self.step(host, conn, Input::Ready(slot)).map(|_| ())
            }
            Happening::Prepared(conn, id, binary) => self.prepared(host, conn, id, binary),
            Happening::Wake(conn, set) => self.woken(host, conn, set),
            Happening::Spawned(conn, slot, spec, epoch) => {
                self.spawned(host, conn, slot, &spec, epoch)
            }
            Happening::TestEnds(attempt, place) => self.test_ends(host, attempt, place),
            Happening::Signalled(attempt, signal) => {
                self.exits(host, attempt, Exit::Signal(signal))
            }
            Happening::TakesDown(attempt) => {
                let test = self.hosts[host].processes.get(&attempt).map(|it| it.tests[it.place]);
                match test {
                    Some(test) if self.may_lose(host, Some(test)) => self.crash(host, true),
                    _ => Ok(()),
                }
            }
            Happening::Restart => {
                self.hosts[host].up = true;
                self.hosts[host].epoch += 1;
                Ok(())
            }
            Happening::Recovers => self.memory_changes(host),
            Happening::OtherEnds(number, epoch) => self.other_ends(host, number, epoch),
            Happening::OtherLeaves => self.other_leaves(host),
            Happening::ShutDown => self.crash(host, false),
        }
    }

    fn prepared(
        &mut self,
        host: usize,
        conn: ConnId,
        id: u64,
        binary: BinaryKey,
    ) -> Result<(), String> {
        let full = self.hosts[host].disk_full_until > self.now;
        let Some(serving) = self.hosts[host].sessions.get_mut(&conn) else { return Ok(()) };
        let result = if full {
            Err(Refusal::new(RefusalKind::OutOfResources, "no space is left"))
        } else {
            serving.prepared.insert(binary);
            Ok(())
        };
        let bytes = codec::answer(id, WorkerResponse::Prepare(result))?;
        self.send(conn, Side::Client, Frame::Bytes(bytes));
        Ok(())
    }

    fn woken(&mut self, host: usize, conn: ConnId, set: u64) -> Result<(), String> {
        let machine = &self.hosts[host];
        let Some(serving) = machine.sessions.get(&conn) else { return Ok(()) };
        let Some(wake) = serving.wake.filter(|_| serving.wakes == set) else { return Ok(()) };
        let now = machine.tick(self.now, serving);
        if now < wake {
            let left = (wake.0 - now.0).as_micros() as u64;
            self.after(left + 200, Event::Host(host, Happening::Wake(conn, set)));
            return Ok(());
        }
        if let Some(serving) = self.hosts[host].sessions.get_mut(&conn) {
            serving.wake = None;
        }
        let crowded = self.hosts[host].places.is_crowded();
        self.step(host, conn, Input::Woken { crowded }).map(|_| ())
    }

    /// Steps a session through an input and performs what it wants.
    pub(super) fn step(
        &mut self,
        host: usize,
        conn: ConnId,
        input: Input,
    ) -> Result<Answers, String> {
        let mut answers = Answers::default();
        let mut inputs = VecDeque::from([(conn, input)]);
        while let Some((conn, input)) = inputs.pop_front() {
            let machine = &mut self.hosts[host];
            let now = self.now;
            let Some(serving) = machine.sessions.get(&conn) else {
                // A place on its way to a session that is over.
                if let Input::Permit { number, .. } = input {
                    let turns = machine.places.give_back(now, number);
                    inputs.extend(self.turns(host, turns));
                }
                continue;
            };
            let tick = machine.tick(now, serving);
            let Some(serving) = machine.sessions.get_mut(&conn) else { continue };
            let mut effects = Vec::new();
            serving.session.step(tick, input, &mut effects);
            for effect in effects {
                self.note(|| format!("  {conn:?} {effect:?}"));
                self.act(host, conn, effect, &mut answers, &mut inputs)?;
            }
        }
        self.tell(host, conn)?;
        Ok(answers)
    }

    fn act(
        &mut self,
        host: usize,
        conn: ConnId,
        effect: Effect,
        answers: &mut Answers,
        inputs: &mut VecDeque<(ConnId, Input)>,
    ) -> Result<(), String> {
        let epoch = self.hosts[host].epoch;
        match effect {
            Effect::Leased(result) => answers.leased = Some(result),
            Effect::Revoked(attempts) => answers.revoked = attempts,
            Effect::AskPermit { places } => {
                let turns = self.hosts[host].places.ask(self.now, Who::Session(conn), places);
                inputs.extend(self.turns(host, turns));
            }
            Effect::WithdrawPermit { places } => {
                let turns = self.hosts[host].places.withdraw(self.now, Who::Session(conn), places);
                inputs.extend(self.turns(host, turns));
            }
            Effect::ReturnPermit(number) => {
                let turns = self.hosts[host].places.give_back(self.now, number);
                inputs.extend(self.turns(host, turns));
            }
            Effect::Spawn { slot, permit, attempt } => {
                if !self.hosts[host].places.has(Who::Session(conn), permit) {
                    return Err(format!("{:?} is started in another's place", attempt.id));
                }
                let takes = self.random.between(1, 4) * MILLI;
                let spawned = Happening::Spawned(conn, slot, attempt, epoch);
                self.after(takes, Event::Host(host, spawned));
            }
            Effect::Terminate(slot) => self.signal(host, conn, slot, 15),
            Effect::Kill(slot) => self.signal(host, conn, slot, 9),
            Effect::Report(report) => self.report(host, conn, report),
            Effect::WakeAt(tick) => {
                let machine = &mut self.hosts[host];
                let Some(serving) = machine.sessions.get(&conn) else { return Ok(()) };
                let left = tick.0.saturating_sub(machine.tick(self.now, serving).0);
                let Some(serving) = machine.sessions.get_mut(&conn) else { return Ok(()) };
                serving.wake = Some(tick);
                serving.wakes += 1;
                let wake = Happening::Wake(conn, serving.wakes);
                let late = self.random.below(50) * MILLI;
                let left = u64::try_from(left.as_micros()).unwrap_or(u64::MAX);
                self.after(left.saturating_add(late), Event::Host(host, wake));
            }
            Effect::End(reason) => {
                if let Some(serving) = self.hosts[host].sessions.get_mut(&conn) {
                    serving.ended = Some(reason);
                }
            }
        }
        Ok(())
    }

    fn signal(&mut self, host: usize, conn: ConnId, slot: SlotId, signal: i32) {
        let mut processes = self.hosts[host].processes.iter();
        let theirs = processes.find(|(_, process)| process.conn == conn && process.slot == slot);
        if let Some(attempt) = theirs.map(|(attempt, _)| *attempt) {
            let takes = self.random.below(20) * MILLI;
            self.after(takes, Event::Host(host, Happening::Signalled(attempt, signal)));
        }
    }

    fn abandoned(&mut self, host: usize, attempt: AttemptId) -> Result<(), Refusal> {
        let Some(process) = self.hosts[host].processes.get_mut(&attempt) else {
            return Err(Refusal::new(RefusalKind::Invalid, "no such attempt runs"));
        };
        process.abandoned = true;
        let takes = self.random.below(20) * MILLI;
        self.after(takes, Event::Host(host, Happening::Signalled(attempt, 9)));
        Ok(())
    }

    fn report(&mut self, host: usize, conn: ConnId, report: Report) {
        let machine = &mut self.hosts[host];
        let Some(serving) = machine.sessions.get_mut(&conn) else { return };
        if matches!(&report, Report::Lost { detail, .. } if detail == session::MADE_ROOM) {
            machine.made_room += 1;
        }
        serving.outbox.push_back(report.clone());
        if machine.machine.lies {
            machine.said.push(report);
            let lie = self.random.below(6);
            let nth = self.random.below(machine.said.len() as u64) as usize;
            match lie {
                0 => serving.outbox.push_back(machine.said[nth].clone()),
                1 => {
                    let lie = invented(&mut self.random, &machine.said[nth]);
                    // A lie about what it has, when that arrives, would be believed by anybody.
                    let Report::Finished(finished) = &lie else { return };
                    if self.client.is_over(finished.attempt) {
                        serving.outbox.push_back(lie);
                    }
                }
                _ => {}
            }
        }
    }

    /// Sends what is to be told, one call at a time; says that it is over when all is told.
    fn tell(&mut self, host: usize, conn: ConnId) -> Result<(), String> {
        let Some(serving) = self.hosts[host].sessions.get_mut(&conn) else { return Ok(()) };
        let at_once = matches!(serving.ended, Some(EndReason::Silent | EndReason::PeerLost));
        if at_once {
            let silent = serving.ended == Some(EndReason::Silent);
            self.hosts[host].sessions.remove(&conn);
            self.close(conn, Side::Host, silent.then_some(true));
            return self.session_leaves(host, conn);
        }
        if serving.telling {
            return Ok(());
        }
        if !serving.outbox.is_empty() {
            let many = serving.outbox.len().min(REPORTS_MAX);
            let reports = serving.outbox.drain(..many).collect();
            serving.telling = true;
            serving.asked_ever += 1;
            let bytes = codec::request(serving.asked_ever, &ClientRequest::Report { reports })?;
            self.send(conn, Side::Client, Frame::Bytes(bytes));
            return Ok(());
        }
        if serving.ended.is_some() {
            let closing = serving.closing;
            self.hosts[host].sessions.remove(&conn);
            if let Some(id) = closing {
                let bytes = codec::answer(id, WorkerResponse::Close(()))?;
                self.send(conn, Side::Client, Frame::Bytes(bytes));
            }
            self.close(conn, Side::Host, Some(true));
            return self.session_leaves(host, conn);
        }
        Ok(())
    }

    fn spawned(
        &mut self,
        host: usize,
        conn: ConnId,
        slot: SlotId,
        spec: &AttemptSpec,
        epoch: u64,
    ) -> Result<(), String> {
        let attempt = spec.id;
        if self.hosts[host].epoch != epoch || !self.hosts[host].sessions.contains_key(&conn) {
            return Ok(());
        }
        if self.hosts[host].disk_full_until > self.now {
            let (reason, detail) = (LossReason::OutOfResources, "no space is left".to_owned());
            let input = Input::CouldNotSpawn { slot, attempt, reason, detail };
            return self.step(host, conn, input).map(|_| ());
        }
        let mut args: VecDeque<_> =
            spec.args.iter().map(|arg| arg.as_os_str().to_string_lossy().into_owned()).collect();
        let mut witness = None;
        if let Some(test) = args.front().and_then(|arg| arg.strip_prefix("witness ")) {
            witness = test.parse().ok().map(TestIndex);
            args.pop_front();
        }
        let tests: Vec<_> = args.iter().filter_map(|arg| arg.parse().ok().map(TestIndex)).collect();
        if let Some(place) = tests.iter().position(|test| Some(*test) == witness) {
            self.hosts[host].witnesses.insert(attempt, place);
        }
        let process = Process {
            conn,
            slot,
            tests,
            place: 0,
            began: self.now,
            witness,
            failed: false,
            orphan: false,
            abandoned: false,
        };
        let first = process.tests[0];
        self.hosts[host].processes.insert(attempt, process);
        self.test_begins(host, attempt);
        let nature = self.scenario.tests[first.0 as usize].nature;
        let kills = nature == Nature::KillsAtOnce && !self.hosts[host].machine.embedded;
        if kills && self.may_lose(host, Some(first)) {
            self.note(|| format!("  ! {first:?} kills its worker at once"));
            self.unsaid += 1;
            return self.crash(host, false);
        }
        self.step(host, conn, Input::Spawned { slot, attempt }).map(|_| ())
    }

    fn test_begins(&mut self, host: usize, attempt: AttemptId) {
        let machine = &self.hosts[host];
        let Some(process) = machine.processes.get(&attempt) else { return };
        let (place, conn) = (process.place, process.conn);
        let test = process.tests[place];
        // A witness runs tests again whose own attempts may be elsewhere.
        if process.witness.is_none_or(|witness| witness == test) {
            let in_batch = process.tests.len() > 1;
            let alive = Alive { test, conn, slots: machine.machine.slots, in_batch };
            self.judge.begins(attempt, alive);
        } else {
            self.judge.dies(attempt);
        }
        let slow = if machine.slow_until > self.now { 10 } else { 1 };
        let takes =
            (self.scenario.tests[test.0 as usize].takes * machine.machine.slowness / 100) * slow;
        let happening = match self.outcome_of(host, test, attempt) {
            Fate::Hangs => return,
            Fate::TakesDown => {
                self.after(takes / 2, Event::Host(host, Happening::TakesDown(attempt)));
                Happening::TestEnds(attempt, place)
            }
            Fate::Ends(_) => Happening::TestEnds(attempt, place),
        };
        self.after(takes.max(1), Event::Host(host, happening));
    }

    fn test_ends(&mut self, host: usize, attempt: AttemptId, place: usize) -> Result<(), String> {
        let Some(process) = self.hosts[host].processes.get(&attempt) else { return Ok(()) };
        if process.place != place || process.orphan {
            return Ok(());
        }
        let (test, alone) = (process.tests[place], process.tests.len() == 1);
        let counts = process.witness.is_none_or(|witness| witness == test);
        let overdue = self.now - process.began >= TIMEOUT.as_micros() as u64 * 99 / 100;
        let result = match self.outcome_of(host, test, attempt) {
            Fate::Ends(result) => result,
            Fate::TakesDown | Fate::Hangs => AttemptResult::Pass,
        };
        let witness = process.witness.is_some();
        if counts && !witness && (alone || result != AttemptResult::Crashed) {
            self.judge.ends(test, attempt, result);
            if overdue {
                // The signal may have come too late to make a difference.
                self.judge.ends(test, attempt, AttemptResult::Timeout);
            }
        }
        let exit = match result {
            AttemptResult::Crashed => Some(Exit::Signal(11)),
            _ if alone && result.passed() => Some(Exit::Code(0)),
            _ if alone => Some(Exit::Code(101)),
            _ => None,
        };
        if let Some(exit) = exit {
            return self.exits(host, attempt, exit);
        }
        let Some(process) = self.hosts[host].processes.get_mut(&attempt) else { return Ok(()) };
        let word = if result.passed() { "ok" } else { "failed" };
        process.failed |= !result.passed();
        process.place += 1;
        let (conn, slot, failed) = (process.conn, process.slot, process.failed);
        let over = process.place == process.tests.len();
        if !over {
            self.test_begins(host, attempt);
        }
        let at = Duration::from_micros(self.now);
        let lines = vec![ProgressLine { text: format!("{word} {}", test.0), at }];
        self.step(host, conn, Input::Progressed { slot, attempt, lines })?;
        if !over {
            return Ok(());
        }
        self.exits(host, attempt, Exit::Code(if failed { 101 } else { 0 }))
    }

    /// The process is gone.
    fn exits(&mut self, host: usize, attempt: AttemptId, exit: Exit) -> Result<(), String> {
        let Some(process) = self.hosts[host].processes.remove(&attempt) else { return Ok(()) };
        self.judge.dies(attempt);
        if process.orphan {
            return Ok(());
        }
        let ended_by_us = matches!(exit, Exit::Signal(9 | 15));
        if ended_by_us && process.tests.len() == 1 && !process.abandoned {
            // Only a timeout is an end that counts, and the session knows whether it was one.
            self.judge.ends(process.tests[0], attempt, AttemptResult::Timeout);
        }
        let conn = process.conn;
        let exited = Exited {
            slot: process.slot,
            attempt,
            exit,
            duration: Duration::from_micros(self.now - process.began),
            usage: Usage::default(),
            leak: None,
            out_of_memory: false,
        };
        self.step(host, conn, Input::Exited(exited)).map(|_| ())
    }

    /// What an attempt does, always the same for the same attempt.
    fn outcome_of(&self, host: usize, test: TestIndex, attempt: AttemptId) -> Fate {
        let mixed = self.seed ^ (attempt.0 << 20) ^ u64::from(test.0);
        let mut random = Random::new(mixed);
        let machine = &self.hosts[host].machine;
        let nature = self.scenario.tests[test.0 as usize].nature;
        match nature {
            Nature::Hangs => Fate::Hangs,
            Nature::Kills if !machine.embedded && random.below(5) > 0 => Fate::TakesDown,
            Nature::KillsAtOnce if !machine.embedded => Fate::TakesDown,
            _ if machine.fails_all => Fate::Ends(AttemptResult::Fail),
            Nature::Passes | Nature::Kills | Nature::KillsAtOnce => Fate::Ends(AttemptResult::Pass),
            Nature::Fails => Fate::Ends(AttemptResult::Fail),
            Nature::Crashes => Fate::Ends(AttemptResult::Crashed),
            Nature::Flaky if random.one_in(3) => Fate::Ends(AttemptResult::Fail),
            Nature::Flaky => Fate::Ends(AttemptResult::Pass),
        }
    }

    /// The worker is gone, and what it ran soon after. With its power, nobody is told.
    pub(super) fn crash(&mut self, host: usize, power: bool) -> Result<(), String> {
        if !self.hosts[host].up {
            // It is down already, and comes back once.
            return Ok(());
        }
        let conns: Vec<_> = self.hosts[host].sessions.keys().copied().collect();
        let theirs = self.conns.iter().filter(|(_, conn)| conn.host == host && conn.open[1]);
        let open: Vec<_> = theirs.map(|(id, _)| *id).chain(conns).collect();
        for conn in open {
            self.close(conn, Side::Host, (!power).then_some(false));
        }
        let machine = &mut self.hosts[host];
        machine.up = false;
        machine.epoch += 1;
        machine.sessions.clear();
        // The other client's sessions end with it.
        machine.places = Places::new(machine.machine.slots);
        machine.crowded_until = 0;
        let attempts: Vec<_> = machine.processes.keys().copied().collect();
        for process in machine.processes.values_mut() {
            process.orphan = true;
        }
        for attempt in attempts {
            let takes = if power { 0 } else { self.random.below(5) * MILLI };
            self.after(takes, Event::Host(host, Happening::Signalled(attempt, 9)));
        }
        self.memory_changes(host)?;
        let down = self.random.between(100, 4_000) * MILLI;
        self.after(down, Event::Host(host, Happening::Restart));
        Ok(())
    }

    /// Its helper dies with what it runs, and another one is started.
    pub(super) fn helper_dies(&mut self, host: usize) -> Result<(), String> {
        let Some((conn, slot, attempt)) = self.hosts[host].busy_slot() else { return Ok(()) };
        self.hosts[host].processes.remove(&attempt);
        self.judge.dies(attempt);
        let detail = "killed".to_owned();
        self.step(host, conn, Input::HelperDied { slot, attempt: Some(attempt), detail })?;
        self.after(5 * MILLI, Event::Host(host, Happening::SlotReady(conn, slot)));
        Ok(())
    }
}

enum Fate {
    Ends(AttemptResult),
    Hangs,
    TakesDown,
}

/// What a session answers at once.
#[derive(Default)]
pub(super) struct Answers {
    leased: Option<Result<(), Refusal>>,
    revoked: Vec<AttemptId>,
}

/// A passed attempt that nobody ran here.
fn invented(random: &mut Random, like: &Report) -> Report {
    let near = match like {
        Report::Draining {} => AttemptId(0),
        Report::Started { attempt, .. }
        | Report::Slow { attempt, .. }
        | Report::Progress { attempt, .. }
        | Report::Lost { attempt, .. } => *attempt,
        Report::Finished(finished) => finished.attempt,
    };
    // Numbers that were answered long ago, so that a session's own live attempts are left alone.
    let attempt = AttemptId(near.0.saturating_sub(random.between(40, 60)));
    Report::Finished(Finished {
        attempt,
        exit: Exit::Code(0),
        timed_out: false,
        duration: Duration::ZERO,
        leak: None,
        out_of_memory: false,
        usage: Usage::default(),
        stdout: Output::default(),
        stderr: Output::default(),
        notes: Vec::new(),
    })
}
