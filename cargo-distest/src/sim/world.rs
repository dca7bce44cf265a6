//! Time and connections. A connection carries frames in order, each way; it may lose its ends one
//! after the other, and hold frames back for as long as a partition lasts.

use std::collections::{BTreeMap, VecDeque};

use super::client::{Client, Timer};
use super::faults::{Fault, Peace};
use super::host::{Doing, Happening, Host};
use super::judge::Judge;
use super::random::Random;
use super::scenario::{MILLI, SECOND, Scenario};
use super::{Coverage, Outcome};
use crate::scheduler::Mutation;

/// A run that takes longer than this never ends.
const TIME_MAX: u64 = 2 * 3_600 * SECOND;
const STEPS_MAX: u64 = 600_000;
/// From the run's end until nothing may be left.
const AFTERMATH: u64 = 15 * SECOND;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ConnId(pub(super) u32);

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Host,
}

#[derive(Debug)]
pub(super) enum Frame {
    Bytes(Vec<u8>),
    /// The other side has closed; if it said goodbye, everything had ended there.
    End {
        goodbye: bool,
    },
}

/// What happens at some time.
#[derive(Debug)]
pub(super) enum Event {
    /// The next frame arrives at this side.
    Arrives(ConnId, Side),
    Client(Timer),
    Host(usize, Happening),
    Fault,
    /// The worker that does so crashes by itself.
    Flaps,
    /// A fault passes.
    Heals(Peace),
}

#[derive(Debug)]
pub(super) struct Conn {
    pub(super) host: usize,
    pub(super) latency: u64,
    /// Frames under way, to the client and to the host.
    under_way: [VecDeque<Frame>; 2],
    /// When the last of them arrives.
    last: [u64; 2],
    /// Nothing arrives before.
    pub(super) blocked: [u64; 2],
    pub(super) open: [bool; 2],
}

pub(super) struct World {
    pub(super) now: u64,
    pub(super) random: Random,
    pub(super) scenario: Scenario,
    pub(super) judge: Judge,
    pub(super) client: Client,
    pub(super) hosts: Vec<Host>,
    pub(super) conns: BTreeMap<ConnId, Conn>,
    pub(super) mutation: Option<Mutation>,
    pub(super) coverage: Coverage,
    pub(super) seed: u64,
    /// Workers that were killed by what they had not said to have started.
    pub(super) unsaid: u64,
    /// A worker that crashes by itself every so often, and when.
    pub(super) flaps: Option<(usize, Random)>,
    events: BTreeMap<(u64, u64), Event>,
    events_made: u64,
    steps: u64,
    trace: bool,
}

impl World {
    pub(super) fn new(seed: u64, mutation: Option<Mutation>, trace: bool) -> Self {
        let mut random = Random::new(seed);
        let scenario = Scenario::new(&mut random);
        let client = Client::new(&scenario, mutation);
        let hosts: Vec<_> = scenario.machines.iter().cloned().map(Host::new).collect();
        let flaps = flapping(seed, hosts.len() - 1);
        Self {
            now: 0,
            random,
            scenario,
            judge: Judge::default(),
            client,
            hosts,
            conns: BTreeMap::new(),
            mutation,
            coverage: Coverage::new(),
            seed,
            unsaid: 0,
            flaps,
            events: BTreeMap::new(),
            events_made: 0,
            steps: 0,
            trace,
        }
    }

    pub(super) fn run(&mut self) -> Result<(), String> {
        self.begin()?;
        let first_fault = self.random.below(self.scenario.fault_every * 2);
        self.at(first_fault, Event::Fault);
        self.after(SECOND, Event::Flaps);
        let mut over = None;
        while let Some(((at, _), event)) = self.events.pop_first() {
            if over.is_some_and(|over| at > over) {
                break;
            }
            self.now = at;
            self.steps += 1;
            self.note(|| format!("{event:?}"));
            self.take(event).and_then(|()| self.judge.check(&self.scenario)).map_err(|why| {
                format!("after {:.3} s and {} steps: {why}", at as f64 / 1e6, self.steps)
            })?;
            if self.client.is_done() && over.is_none() {
                over = Some(at + AFTERMATH);
            }
            if over.is_none() && (at > TIME_MAX || self.steps > STEPS_MAX) {
                return Err(format!("the run doesn't end: {}", self.client.state()));
            }
        }
        if over.is_none() {
            return Err(format!("nothing happens any more: {}", self.client.state()));
        }
        self.judge.check_end(&self.scenario)
    }

    pub(super) fn outcome(self) -> Outcome {
        let mut verdicts = BTreeMap::new();
        for verdict in self.judge.verdicts().values() {
            *verdicts.entry(verdict.as_str()).or_default() += 1;
        }
        let hedges = u64::from(self.judge.hedges());
        let made_room = self.hosts.iter().map(|host| host.made_room).sum();
        let (coverage, steps, unsaid) = (self.coverage, self.steps, self.unsaid);
        Outcome { coverage, verdicts, steps, hedges, made_room, unsaid }
    }

    fn take(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Arrives(conn, side) => self.arrives(conn, side),
            Event::Client(timer) => self.client_timer(timer),
            Event::Host(host, happening) => self.happens(host, happening),
            Event::Fault => {
                self.fault()?;
                let next = self.now + self.random.below(self.scenario.fault_every * 2);
                if next < self.scenario.peace_at {
                    self.at(next, Event::Fault);
                }
                Ok(())
            }
            Event::Flaps => self.flap(),
            Event::Heals(peace) => self.heals(peace),
        }
    }

    pub(super) fn note(&self, what: impl FnOnce() -> String) {
        if self.trace {
            let line = what();
            let short: String = line.chars().take(300).collect();
            eprintln!("{:>12.6} {short}", self.now as f64 / 1e6);
        }
    }

    pub(super) fn cover(&mut self, fault: Fault, doing: Doing) {
        *self.coverage.entry((fault, doing)).or_default() += 1;
    }

    /// At this time, or now if it has passed.
    pub(super) fn at(&mut self, time: u64, event: Event) {
        self.events_made += 1;
        self.events.insert((time.max(self.now), self.events_made), event);
    }

    pub(super) fn after(&mut self, time: u64, event: Event) {
        self.at(self.now.saturating_add(time), event);
    }

    pub(super) fn connect(&mut self, host: usize) -> ConnId {
        let id = ConnId(self.conns.len() as u32);
        let embedded = self.hosts[host].machine.embedded;
        let latency = match (embedded, self.random.below(4)) {
            (true, _) => 10,
            (false, 0) => self.random.between(20, 120) * MILLI,
            (false, _) => self.random.between(100, 5_000),
        };
        let conn = Conn {
            host,
            latency,
            under_way: Default::default(),
            last: [0; 2],
            blocked: [0; 2],
            open: [true; 2],
        };
        self.conns.insert(id, conn);
        id
    }

    pub(super) fn send(&mut self, id: ConnId, to: Side, frame: Frame) {
        let jitter = self.random.below(100);
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if !conn.open[from(to)] {
            return;
        }
        let arrives = self.now + conn.latency + conn.latency * jitter / 100;
        let arrives = arrives.max(conn.last[to as usize]).max(conn.blocked[to as usize]);
        conn.last[to as usize] = arrives;
        conn.under_way[to as usize].push_back(frame);
        self.at(arrives, Event::Arrives(id, to));
    }

    /// This side is gone; the other one hears of it behind all that was sent before, if it is told.
    pub(super) fn close(&mut self, id: ConnId, side: Side, told: Option<bool>) {
        if let Some(goodbye) = told {
            let to = if side == Side::Client { Side::Host } else { Side::Client };
            self.send(id, to, Frame::End { goodbye });
        }
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.open[side as usize] = false;
            conn.under_way[side as usize].clear();
        }
    }

    /// This side learns that the connection is lost; the other one doesn't.
    pub(super) fn reset(&mut self, id: ConnId, side: Side) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        // Whatever was under way is lost with it.
        conn.under_way[side as usize].clear();
        conn.under_way[side as usize].push_back(Frame::End { goodbye: false });
        let other = if side == Side::Client { Side::Host } else { Side::Client };
        conn.under_way[other as usize].retain(|_| false);
        conn.last[side as usize] = self.now;
        self.at(self.now + MILLI, Event::Arrives(id, side));
    }

    fn arrives(&mut self, id: ConnId, to: Side) -> Result<(), String> {
        let Some(conn) = self.conns.get_mut(&id) else { return Ok(()) };
        let stalled = match to {
            Side::Host => self.hosts[conn.host].stalled_until,
            Side::Client => 0,
        };
        let not_before = conn.blocked[to as usize].max(stalled);
        if not_before > self.now && !conn.under_way[to as usize].is_empty() {
            if not_before < u64::MAX {
                self.at(not_before, Event::Arrives(id, to));
            }
            return Ok(());
        }
        let Some(frame) = conn.under_way[to as usize].pop_front() else { return Ok(()) };
        if !conn.open[to as usize] {
            return Ok(());
        }
        match to {
            Side::Client => self.client_receives(id, frame),
            Side::Host => self.host_receives(id, frame),
        }
    }
}

/// One run in four has a worker that flaps, beside others, by random numbers of its own.
fn flapping(seed: u64, remote: usize) -> Option<(usize, Random)> {
    let mut random = Random::new(!seed);
    let host = random.below(remote as u64) as usize;
    (remote > 1 && random.one_in(4)).then_some((host, random))
}

fn from(to: Side) -> usize {
    match to {
        Side::Client => Side::Host as usize,
        Side::Host => Side::Client as usize,
    }
}
