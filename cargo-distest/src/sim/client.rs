//! The client: drives the scheduler as `dispatch` and `fleet` do.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use distest_worker::link::codec::{self, Message};
use distest_worker::protocol::{
    AttemptId, AttemptSignal, AttemptSpec, BinaryKey, BinarySpec, ClientRequest, ClientResponse,
    Lease, Limits, Network, Report, SessionSpec, Stop, Streams, WorkerRequest, WorkerResponse,
};

use super::scenario::{MILLI, Machine, SECOND, Scenario};
use super::world::{ConnId, Event, Frame, Side, World};
use crate::batch::{Acceptance, Closing, End};
use crate::dispatch::judge;
use crate::dispatch::returns::Returns;
use crate::event::CancelReason;
use crate::model::{AttemptResult, TestIndex, TestName, WorkerId};
use crate::scheduler::{Company, Effect, Grant, Input, Mutation, Scheduler, Traits};

const HEARTBEAT: u64 = SECOND;
const LOST_AFTER: u64 = 4_500 * MILLI;
const REDIAL_EVERY: u64 = 500 * MILLI;
const ANSWER: u64 = 10 * SECOND;
/// A test that runs longer is ended.
pub(super) const TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) enum Timer {
    Begin(u32),
    Dial(usize),
    Ping(ConnId),
    /// No answer has come since.
    Silent(ConnId, u64),
    Unanswered(ConnId, u64),
    Fenced(WorkerId, ConnId),
    Interrupt(Stop),
    Overdue(WorkerId, AttemptId),
    Hang(ConnId),
}

#[derive(Debug)]
enum Asked {
    Open(u64),
    Ping(u64),
    Prepare(BinaryKey),
    Lease,
    Revoke,
    Other,
}

struct Peer {
    host: usize,
    worker: Option<WorkerId>,
    asked: BTreeMap<u64, Asked>,
    asked_ever: u64,
    heard: u64,
    short: bool,
    refused: BTreeSet<BinaryKey>,
    /// It takes nothing more, by its own word or by the scheduler's.
    cleared: bool,
}

pub(super) struct Client {
    scheduler: Scheduler,
    peers: BTreeMap<ConnId, Peer>,
    workers: BTreeMap<WorkerId, ConnId>,
    joined: u32,
    returns: Returns,
    flights: BTreeMap<AttemptId, (WorkerId, Grant)>,
    handed_out: BTreeMap<AttemptId, u64>,
    batches: BTreeMap<AttemptId, Acceptance>,
    inputs: VecDeque<Input>,
    /// Addresses that have not answered yet.
    unanswered: usize,
    fell_back: bool,
    done: bool,
}

impl Client {
    pub(super) fn new(scenario: &Scenario, mutation: Option<Mutation>) -> Self {
        let mut scheduler = Scheduler::with_groups(scenario.rules, scenario.groups.clone());
        scheduler.mutate(mutation);
        Self {
            scheduler,
            peers: BTreeMap::new(),
            workers: BTreeMap::new(),
            joined: 0,
            returns: Returns::default(),
            flights: BTreeMap::new(),
            handed_out: BTreeMap::new(),
            batches: BTreeMap::new(),
            inputs: VecDeque::new(),
            unanswered: 0,
            fell_back: false,
            done: false,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    pub(super) fn state(&self) -> String {
        format!("{}, flights {:?}", self.scheduler.unfinished(), self.flights)
    }

    /// It was handed out once, and has been answered since.
    pub(super) fn is_over(&self, attempt: AttemptId) -> bool {
        self.handed_out.contains_key(&attempt) && !self.flights.contains_key(&attempt)
    }

    /// Attempts that the client believes to be with this host, by connection.
    pub(super) fn flights_on(&self, host: usize) -> Vec<(ConnId, Vec<TestIndex>)> {
        let theirs = self.peers.iter().filter(|(_, peer)| peer.host == host);
        let flights = theirs.filter_map(|(conn, peer)| {
            let worker = peer.worker?;
            let flights = self.flights.values().filter(|(on, _)| *on == worker);
            Some((*conn, flights.map(|(_, grant)| grant.test).collect()))
        });
        flights.collect()
    }

    /// Whether another worker than this is there that may take a test.
    pub(super) fn has_choice(&self, scenario: &Scenario, test: TestIndex, but: usize) -> bool {
        let task = &scenario.tests[test.0 as usize].task;
        let met = |host: usize| {
            let traits = traits(&scenario.machines[host]);
            task.needs.as_ref().is_none_or(|needs| needs.met_by(&traits))
        };
        let there = self.peers.values().filter(|peer| peer.worker.is_some() && !peer.cleared);
        let mut others = there.filter(|peer| peer.host != but && met(peer.host));
        others.any(|peer| !peer.refused.contains(&task.binary))
    }

    fn clear(&mut self, worker: WorkerId) {
        let conn = self.workers.get(&worker);
        if let Some(peer) = conn.and_then(|conn| self.peers.get_mut(conn)) {
            peer.cleared = true;
        }
    }

    pub(super) fn is_preparing(&self, host: usize) -> bool {
        let mut theirs = self.peers.values().filter(|peer| peer.host == host);
        theirs.any(|peer| peer.asked.values().any(|asked| matches!(asked, Asked::Prepare(_))))
    }

    pub(super) fn is_revoking(&self, host: usize) -> bool {
        let mut theirs = self.peers.values().filter(|peer| peer.host == host);
        theirs.any(|peer| peer.asked.values().any(|asked| matches!(asked, Asked::Revoke)))
    }

    pub(super) fn has_session(&self, host: usize) -> bool {
        self.peers.values().any(|peer| peer.host == host && peer.worker.is_some())
    }
}

fn traits(machine: &Machine) -> Traits {
    Traits {
        embedded: machine.embedded,
        labels: machine.labels.clone(),
        pace: machine.pace,
        ..Traits::default()
    }
}

impl World {
    pub(super) fn begin(&mut self) -> Result<(), String> {
        for part in 0..4 {
            let at = self.random.below(30) * MILLI;
            self.at(u64::from(part) * 40 * MILLI + at, Event::Client(Timer::Begin(part)));
        }
        let embedded_too = self.random.one_in(3);
        for host in 0..self.hosts.len() {
            if !self.hosts[host].machine.embedded || embedded_too {
                self.client.unanswered += 1;
                self.client.fell_back |= self.hosts[host].machine.embedded;
                let at = self.random.below(300) * MILLI;
                self.at(at, Event::Client(Timer::Dial(host)));
            }
        }
        if self.random.one_in(3) {
            // Another client was there before, everywhere.
            for host in 0..self.hosts.len() - 1 {
                self.crowd(host, self.scenario.peace_at)?;
            }
        }
        if self.random.one_in(12) {
            let how = [Stop::Kill, Stop::Terminate, Stop::Drain][self.random.below(3) as usize];
            let at = self.random.below(4_000) * MILLI;
            self.at(at, Event::Client(Timer::Interrupt(how)));
        }
        Ok(())
    }

    pub(super) fn client_timer(&mut self, timer: Timer) -> Result<(), String> {
        match timer {
            Timer::Begin(part) => self.client_begin(part),
            Timer::Dial(host) => self.dial(host)?,
            Timer::Ping(conn) => self.ping(conn)?,
            Timer::Silent(conn, since) => {
                if self.client.peers.get(&conn).is_some_and(|peer| peer.heard == since) {
                    self.peer_gone(conn, Some(self.now));
                }
            }
            Timer::Unanswered(conn, id) => {
                if self.client.peers.get(&conn).is_some_and(|peer| peer.asked.contains_key(&id)) {
                    self.peer_gone(conn, None);
                }
            }
            Timer::Fenced(worker, conn) => self.fenced(worker, conn),
            Timer::Interrupt(how) => {
                let reason = CancelReason::Interrupt;
                self.client.inputs.push_back(Input::Cancel { reason, how });
            }
            Timer::Overdue(worker, attempt) => {
                self.client.inputs.push_back(Input::Overdue { worker, attempt });
            }
            Timer::Hang(conn) => self.close(conn, Side::Client, Some(true)),
        }
        self.advance()
    }

    fn client_begin(&mut self, part: u32) {
        let tasks = self.scenario.tests.iter().map(|test| test.task.clone());
        let half = self.scenario.tests.len() / 2;
        let inputs = &mut self.client.inputs;
        match part {
            0 => inputs.push_back(Input::Added(tasks.take(half).collect())),
            1 => inputs.push_back(Input::Added(tasks.skip(half).collect())),
            2 => {
                let (batches, acquainted) =
                    (self.scenario.batches.clone(), self.scenario.acquainted.clone());
                inputs.push_back(Input::Batched { batches, acquainted });
            }
            _ => inputs.extend([Input::AllAdded, Input::Open]),
        }
    }

    fn dial(&mut self, host: usize) -> Result<(), String> {
        if self.client.done {
            return Ok(());
        }
        if !self.hosts[host].is_up() {
            self.address_answered();
            self.after(REDIAL_EVERY, Event::Client(Timer::Dial(host)));
            return Ok(());
        }
        let conn = self.connect(host);
        let peer = Peer {
            host,
            worker: None,
            asked: BTreeMap::new(),
            asked_ever: 0,
            heard: self.now,
            short: false,
            refused: BTreeSet::new(),
            cleared: false,
        };
        self.client.peers.insert(conn, peer);
        let spec =
            SessionSpec { in_place: self.hosts[host].machine.embedded, ..Default::default() };
        self.ask(conn, &WorkerRequest::Open { spec }, Asked::Open(self.now))
    }

    fn address_answered(&mut self) {
        if self.client.unanswered > 0 {
            self.client.unanswered -= 1;
            if self.client.unanswered == 0 {
                self.client.inputs.push_back(Input::NoMoreWorkers);
            }
        }
    }

    fn ask(&mut self, conn: ConnId, request: &WorkerRequest, asked: Asked) -> Result<(), String> {
        let Some(peer) = self.client.peers.get_mut(&conn) else { return Ok(()) };
        peer.asked_ever += 1;
        let id = peer.asked_ever;
        peer.asked.insert(id, asked);
        let bytes = codec::request(id, request)?;
        self.send(conn, Side::Host, Frame::Bytes(bytes));
        self.after(ANSWER, Event::Client(Timer::Unanswered(conn, id)));
        Ok(())
    }

    fn ping(&mut self, conn: ConnId) -> Result<(), String> {
        self.ask(conn, &WorkerRequest::Ping {}, Asked::Ping(self.now))
    }

    pub(super) fn client_receives(&mut self, conn: ConnId, frame: Frame) -> Result<(), String> {
        match frame {
            Frame::End { goodbye } => self.peer_gone(conn, goodbye.then_some(self.now)),
            Frame::Bytes(bytes) => match codec::read::<ClientRequest, WorkerResponse>(&bytes)? {
                Message::Request(id, ClientRequest::Report { reports }) => {
                    for report in reports {
                        self.reported(conn, report);
                    }
                    let bytes = codec::answer(id, ClientResponse::Report(()))?;
                    self.send(conn, Side::Host, Frame::Bytes(bytes));
                }
                Message::Answer(id, answer) => self.answered(conn, id, answer?)?,
                Message::Request(..) | Message::Cancel(_) => {}
            },
        }
        self.advance()
    }

    fn answered(&mut self, id: ConnId, asked: u64, answer: WorkerResponse) -> Result<(), String> {
        let now = self.now;
        let Some(peer) = self.client.peers.get_mut(&id) else { return Ok(()) };
        let Some(asked) = peer.asked.remove(&asked) else { return Ok(()) };
        let (host, worker) = (peer.host, peer.worker);
        match (asked, answer, worker) {
            (Asked::Open(at), WorkerResponse::Open(Ok(ready)), None) => {
                let worker = WorkerId(self.client.joined);
                self.client.joined += 1;
                (peer.worker, peer.heard) = (Some(worker), now);
                self.client.workers.insert(worker, id);
                let machine = &self.hosts[host].machine;
                let name = host.to_string();
                let formerly = self.client.returns.joined(worker, &name, "");
                let traits = Traits { formerly, ..traits(machine) };
                let round_trip = Duration::from_micros(now - at);
                let slots = ready.slots;
                self.client.inputs.push_back(Input::Joined { worker, slots, round_trip, traits });
                if !machine.embedded {
                    self.after(LOST_AFTER, Event::Client(Timer::Silent(id, now)));
                    self.ping(id)?;
                }
                self.address_answered();
            }
            (Asked::Ping(at), WorkerResponse::Ping(pong), Some(worker)) => {
                peer.heard = now;
                let short = pong.short_of_memory;
                if std::mem::replace(&mut peer.short, short) != short {
                    self.client.inputs.push_back(Input::Memory { worker, short });
                }
                self.after(LOST_AFTER, Event::Client(Timer::Silent(id, now)));
                self.at(at + HEARTBEAT, Event::Client(Timer::Ping(id)));
            }
            (Asked::Prepare(binary), WorkerResponse::Prepare(result), Some(worker)) => {
                self.client.inputs.push_back(match result {
                    Ok(()) => Input::Ready { worker, binary },
                    Err(_) => {
                        peer.refused.insert(binary);
                        Input::Refused { worker, binary }
                    }
                });
            }
            (Asked::Lease, WorkerResponse::Lease(Err(_)), _) => self.peer_gone(id, None),
            (Asked::Revoke, WorkerResponse::Revoke(attempts), Some(worker)) => {
                for attempt in &attempts {
                    self.client.flights.remove(attempt);
                }
                self.client.inputs.push_back(Input::Revoked { worker, attempts });
            }
            _ => {}
        }
        Ok(())
    }

    /// A connection is of no use any more. Whatever it had may run until `dead_at`, if that is
    /// known.
    fn peer_gone(&mut self, conn: ConnId, dead_at: Option<u64>) {
        let Some(peer) = self.client.peers.remove(&conn) else { return };
        self.close(conn, Side::Client, Some(false));
        let embedded = self.hosts[peer.host].machine.embedded;
        if let Some(worker) = peer.worker {
            self.client.workers.remove(&worker);
            self.client.returns.left(worker);
            self.client.inputs.push_back(Input::Cut { worker });
            let dead_at = match (dead_at, embedded, self.mutation) {
                (_, _, Some(Mutation::LoseAtOnce)) | (_, true, _) => self.now,
                (Some(at), ..) => at,
                (None, ..) => peer.heard + LOST_AFTER,
            };
            self.at(dead_at, Event::Client(Timer::Fenced(worker, conn)));
        } else {
            self.address_answered();
        }
        if !self.client.done && !embedded {
            self.after(REDIAL_EVERY, Event::Client(Timer::Dial(peer.host)));
        }
    }

    fn fenced(&mut self, worker: WorkerId, conn: ConnId) {
        let theirs = self.client.flights.values().filter(|(on, _)| *on == worker);
        let theirs: Vec<_> = theirs.map(|(_, grant)| grant.test).collect();
        let host = self.conns[&conn].host;
        let slots = self.hosts[host].machine.slots as usize;
        let attempts = self.client.flights.iter().filter(|(_, (on, _))| *on == worker);
        attempts.skip(slots).for_each(|(attempt, _)| self.judge.waited(*attempt));
        if let [lone] = theirs[..] {
            let choice = self.client.has_choice(&self.scenario, lone, host);
            self.judge.lost_alone(&self.scenario, lone, (host, choice));
        }
        self.client.flights.retain(|_, (on, _)| *on != worker);
        self.judge.session_lost(conn);
        self.client.inputs.push_back(Input::Lost { worker });
    }

    fn reported(&mut self, conn: ConnId, report: Report) {
        let Some(worker) = self.client.peers.get(&conn).and_then(|peer| peer.worker) else {
            return;
        };
        let attempt = match &report {
            Report::Draining {} => {
                self.client.clear(worker);
                self.client.inputs.push_back(Input::Leaving { worker });
                return;
            }
            Report::Started { attempt, .. }
            | Report::Slow { attempt, .. }
            | Report::Progress { attempt, .. }
            | Report::Lost { attempt, .. } => *attempt,
            Report::Finished(finished) => finished.attempt,
        };
        let late = self.mutation == Some(Mutation::AcceptLateResult);
        let known = self.client.flights.get(&attempt).is_some_and(|(on, _)| *on == worker);
        if !known && !late {
            return;
        }
        let input = match report {
            Report::Started { attempt, .. } => {
                let handed_out = self.client.handed_out.get(&attempt).copied();
                let waited = self.now - handed_out.unwrap_or(self.now);
                let waited = Duration::from_micros(waited);
                Input::Started { worker, attempt, waited }
            }
            Report::Draining {} | Report::Slow { .. } => return,
            Report::Progress { attempt, lines } => {
                let Some(batch) = self.client.batches.get_mut(&attempt) else { return };
                lines.iter().for_each(|line| batch.line(&line.text, line.at));
                Input::Progressed { worker, attempt, finished: batch.finished() }
            }
            Report::Lost { attempt, .. } => {
                self.client.flights.remove(&attempt);
                match self.client.batches.remove(&attempt) {
                    Some(batch) => self.batch_ended(worker, attempt, batch, &End::default()),
                    None => {
                        let (result, duration) = (AttemptResult::Lost, Duration::ZERO);
                        Input::Ended { worker, attempt, result, duration }
                    }
                }
            }
            Report::Finished(finished) => {
                self.client.flights.remove(&attempt);
                match self.client.batches.remove(&attempt) {
                    Some(batch) => {
                        let passed = batch.finished();
                        let end = End {
                            exit: Some(finished.exit),
                            closing: Some(Closing { passed, ..Closing::default() }),
                            duration: finished.duration,
                            ..End::default()
                        };
                        self.batch_ended(worker, attempt, batch, &end)
                    }
                    None => {
                        let (result, _) = judge::judge(&finished);
                        let duration = finished.duration;
                        Input::Ended { worker, attempt, result, duration }
                    }
                }
            }
        };
        self.client.inputs.push_back(input);
    }

    fn batch_ended(
        &self,
        worker: WorkerId,
        attempt: AttemptId,
        batch: Acceptance,
        end: &End,
    ) -> Input {
        let mut tests = batch.close(end);
        // Of a witness, only the test in question counts.
        if let Some(place) = self.hosts.iter().find_map(|host| host.witness(attempt)) {
            tests = tests.get(place).copied().into_iter().collect();
        }
        Input::BatchEnded { worker, attempt, tests, duration: end.duration }
    }

    /// Steps the scheduler through what has happened, and does what it wants.
    fn advance(&mut self) -> Result<(), String> {
        let mut effects = Vec::new();
        while let Some(input) = self.client.inputs.pop_front() {
            self.note(|| format!("  < {input:?}"));
            self.client.scheduler.step(input, &mut effects);
            self.client.scheduler.check()?;
            for effect in effects.drain(..) {
                self.note(|| format!("  > {effect:?}"));
                self.perform(effect)?;
            }
        }
        Ok(())
    }

    fn perform(&mut self, effect: Effect) -> Result<(), String> {
        let conn = |client: &Client, worker: &WorkerId| client.workers.get(worker).copied();
        match effect {
            Effect::Prepare { worker, binary, bytes_max } => {
                let Some(conn) = conn(&self.client, &worker) else { return Ok(()) };
                // Binaries are of all sizes, and on links of which something is known not all
                // is worth sending.
                let bytes = 1u64 << ((binary.0 * 7 + worker.0 * 13) % 40);
                if bytes > bytes_max {
                    self.client.inputs.push_back(Input::Lacks { worker, binary, bytes });
                    return Ok(());
                }
                let spec = BinarySpec {
                    key: binary,
                    label: String::new(),
                    program: "/test".into(),
                    cwd: "/".into(),
                    env: Vec::new(),
                    files: Vec::new(),
                    writable: Vec::new(),
                };
                self.ask(conn, &WorkerRequest::Prepare { binary: spec }, Asked::Prepare(binary))
            }
            Effect::Lease { worker, grants } => {
                let Some(conn) = conn(&self.client, &worker) else { return Ok(()) };
                let has_some = self.client.flights.values().any(|(has, _)| *has == worker);
                let short = self.client.peers.get(&conn).is_some_and(|peer| peer.short);
                if short && (has_some || grants.len() > 1) {
                    return Err(format!("{worker:?} is short of memory, and is given more"));
                }
                let attempts = grants.iter().map(|grant| self.spec(grant)).collect();
                for grant in grants {
                    if let Company::Batch(tests) | Company::Witness(tests) = &grant.company {
                        let names = tests.iter().map(|test| TestName::new(test.0.to_string()));
                        let batch = Acceptance::new(names.collect());
                        self.client.batches.insert(grant.attempt, batch);
                    }
                    self.client.handed_out.insert(grant.attempt, self.now);
                    self.client.flights.insert(grant.attempt, (worker, grant));
                }
                let lease = Lease { attempts };
                self.ask(conn, &WorkerRequest::Lease { lease }, Asked::Lease)
            }
            Effect::Revoke { worker, attempts } => {
                let Some(conn) = conn(&self.client, &worker) else { return Ok(()) };
                self.ask(conn, &WorkerRequest::Revoke { attempts }, Asked::Revoke)
            }
            Effect::Watch { worker, attempt, after } => {
                let after = u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
                self.after(after, Event::Client(Timer::Overdue(worker, attempt)));
                Ok(())
            }
            Effect::Kill { worker, attempt } => {
                let Some(conn) = conn(&self.client, &worker) else { return Ok(()) };
                let signal = AttemptSignal::Kill;
                self.ask(conn, &WorkerRequest::Signal { attempt, signal }, Asked::Other)
            }
            Effect::Hedged { test, .. } => {
                self.judge.hedged(test);
                Ok(())
            }
            Effect::Stop { worker, how } => {
                let Some(conn) = conn(&self.client, &worker) else { return Ok(()) };
                self.ask(conn, &WorkerRequest::Stop { how }, Asked::Other)
            }
            Effect::AttemptEnded { attempt, test, number, result, .. } => {
                self.judge.attempt_ended(&self.scenario, attempt, (test, number), result)
            }
            Effect::Verdict { test, verdict } => self.judge.verdict(test, verdict),
            Effect::Cancelling { reason, running } => self.judge.cancelled(reason, running),
            Effect::TookDown { attempt, .. } => {
                self.judge.blamed(attempt);
                Ok(())
            }
            Effect::NeedWorker => {
                let own = self.hosts.len() - 1;
                if self.scenario.falls_back && !self.client.fell_back {
                    self.client.fell_back = true;
                    self.after(MILLI, Event::Client(Timer::Dial(own)));
                } else {
                    self.client.inputs.push_back(Input::NoWorker);
                }
                Ok(())
            }
            Effect::Quarantined { worker, .. } => {
                self.client.clear(worker);
                Ok(())
            }
            Effect::Done => self.end(),
            Effect::RunsAgainAlone { .. }
            | Effect::GoesOn { .. }
            | Effect::Abandoned { .. }
            | Effect::Unplaceable { .. } => Ok(()),
        }
    }

    fn end(&mut self) -> Result<(), String> {
        self.client.done = true;
        let conns: Vec<_> = self.client.peers.keys().copied().collect();
        for conn in conns {
            self.ask(conn, &WorkerRequest::Close {}, Asked::Other)?;
            self.after(2 * SECOND, Event::Client(Timer::Hang(conn)));
        }
        Ok(())
    }

    fn spec(&self, grant: &Grant) -> AttemptSpec {
        let (tests, witness) = match &grant.company {
            Company::Alone => (vec![grant.test], false),
            Company::Batch(tests) => (tests.to_vec(), false),
            Company::Witness(tests) => (tests.to_vec(), true),
        };
        let mut args: Vec<_> = tests.iter().map(|test| test.0.to_string().into()).collect();
        if witness {
            args.insert(0, format!("witness {}", grant.test.0).into());
        }
        AttemptSpec {
            id: grant.attempt,
            binary: self.scenario.tests[grant.test.0 as usize].task.binary,
            args,
            env: Vec::new(),
            limits: Limits { timeout: Some(TIMEOUT), ..Limits::default() },
            streams: Streams::Capture,
            progress: grant.company != Company::Alone,
            unset: Vec::new(),
            network: Network::Host,
            places: grant.places,
            label: String::new(),
        }
    }
}
