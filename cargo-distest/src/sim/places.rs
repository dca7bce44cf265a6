//! A worker's places, shared by the sessions of this client and another client: the shipped
//! [`Share`] says whose turn it is. What the other one runs is not simulated, only that it takes
//! places for a while.

use std::collections::BTreeMap;
use std::time::Duration;

use distest_worker::share::{ClientId, Share, Ticket};

use distest_worker::session::Input;

use super::host::Happening;
use super::scenario::MILLI;
use super::world::{ConnId, Event, World};

const OURS: ClientId = ClientId(0);
const THEIRS: ClientId = ClientId(1);

/// Who has or wants places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Who {
    Session(ConnId),
    Other,
}

/// Places that somebody got, under one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) who: Who,
    pub(super) number: u32,
    pub(super) places: u32,
}

pub(super) struct Places {
    share: Share,
    tickets: u64,
    waiting: BTreeMap<Ticket, (Who, u32)>,
    held: BTreeMap<u32, (Who, u32)>,
}

impl Who {
    fn client(self) -> ClientId {
        match self {
            Self::Session(_) => OURS,
            Self::Other => THEIRS,
        }
    }
}

impl Places {
    pub(super) fn new(count: u32) -> Self {
        let (waiting, held) = (BTreeMap::new(), BTreeMap::new());
        Self { share: Share::new(count), tickets: 0, waiting, held }
    }

    pub(super) fn ask(&mut self, now: u64, who: Who, places: u32) -> Vec<Turn> {
        let ticket = Ticket(self.tickets);
        self.tickets += 1;
        self.waiting.insert(ticket, (who, places));
        let turns = self.share.ask(time(now), ticket, who.client(), places);
        self.granted(turns)
    }

    /// One of its wishes for so many places is no more.
    pub(super) fn withdraw(&mut self, now: u64, who: Who, places: u32) -> Vec<Turn> {
        let wish = self.waiting.iter().find(|(_, wish)| **wish == (who, places));
        let Some(ticket) = wish.map(|(ticket, _)| *ticket) else { return Vec::new() };
        self.waiting.remove(&ticket);
        let turns = self.share.withdraw(time(now), ticket);
        self.granted(turns)
    }

    pub(super) fn give_back(&mut self, now: u64, number: u32) -> Vec<Turn> {
        let Some((who, places)) = self.held.remove(&number) else { return Vec::new() };
        let turns = self.share.give_back(time(now), who.client(), places);
        self.granted(turns)
    }

    /// It wants nothing any more, and has nothing.
    pub(super) fn leaves(&mut self, now: u64, who: Who) -> Result<Vec<Turn>, String> {
        if self.held.values().any(|(holder, _)| *holder == who) {
            return Err(format!("{who:?} is over and keeps places"));
        }
        Ok(self.wants_no_more(now, who))
    }

    pub(super) fn wants_no_more(&mut self, now: u64, who: Who) -> Vec<Turn> {
        let mut turns = Vec::new();
        while let Some((_, places)) = self.waiting.values().find(|(asker, _)| *asker == who) {
            let mut more = self.withdraw(now, who, *places);
            // One of its wishes may be what comes next.
            while let Some(at) = more.iter().position(|turn| turn.who == who) {
                let Turn { number, .. } = more.remove(at);
                more.extend(self.give_back(now, number));
            }
            turns.extend(more);
        }
        turns
    }

    /// Memory is short, or not any more.
    pub(super) fn alone(&mut self, now: u64, alone: bool) -> Vec<Turn> {
        let turns = self.share.alone(time(now), alone);
        self.granted(turns)
    }

    pub(super) fn has(&self, who: Who, number: u32) -> bool {
        self.held.get(&number).is_some_and(|(holder, _)| *holder == who)
    }

    /// Another client waits.
    pub(super) fn is_crowded(&self) -> bool {
        self.share.others_wait(OURS)
    }

    fn granted(&mut self, turns: Vec<Ticket>) -> Vec<Turn> {
        let mut granted = Vec::new();
        for ticket in turns {
            let Some((who, places)) = self.waiting.remove(&ticket) else { continue };
            let mut numbers = 0..;
            let free = numbers.find(|number| !self.held.contains_key(number));
            let number = free.unwrap_or_default();
            self.held.insert(number, (who, places));
            granted.push(Turn { who, number, places });
        }
        granted
    }
}

impl World {
    /// Who gets places: what sessions are to be told; the other client runs something.
    pub(super) fn turns(&mut self, host: usize, turns: Vec<Turn>) -> Vec<(ConnId, Input)> {
        let mut ours = Vec::new();
        for Turn { who, number, places } in turns {
            match who {
                Who::Session(conn) => ours.push((conn, Input::Permit { number, places })),
                Who::Other => {
                    let takes = self.random.between(20, 2_500) * MILLI;
                    let ends = Happening::OtherEnds(number, self.hosts[host].epoch);
                    self.after(takes, Event::Host(host, ends));
                }
            }
        }
        ours
    }

    fn take_turns(&mut self, host: usize, turns: Vec<Turn>) -> Result<(), String> {
        for (conn, input) in self.turns(host, turns) {
            self.step(host, conn, input)?;
        }
        Ok(())
    }

    /// A session is over.
    pub(super) fn session_leaves(&mut self, host: usize, conn: ConnId) -> Result<(), String> {
        let turns = self.hosts[host].places.leaves(self.now, Who::Session(conn))?;
        self.take_turns(host, turns)
    }

    /// Nothing is started beside what runs while memory is short.
    pub(super) fn memory_changes(&mut self, host: usize) -> Result<(), String> {
        let short = self.hosts[host].is_short(self.now);
        let turns = self.hosts[host].places.alone(self.now, short);
        self.take_turns(host, turns)
    }

    /// Another client comes, and wants so much for so long.
    pub(super) fn crowd(&mut self, host: usize, for_long: u64) -> Result<(), String> {
        let until = self.now + for_long;
        self.hosts[host].crowded_until = until;
        self.after(for_long, Event::Host(host, Happening::OtherLeaves));
        let slots = u64::from(self.hosts[host].machine.slots);
        for _ in 0..self.random.between(1, slots + 1) {
            self.other_asks(host)?;
        }
        Ok(())
    }

    fn other_asks(&mut self, host: usize) -> Result<(), String> {
        let places = if self.random.one_in(4) { 2 } else { 1 };
        let turns = self.hosts[host].places.ask(self.now, Who::Other, places);
        self.take_turns(host, turns)
    }

    pub(super) fn other_ends(
        &mut self,
        host: usize,
        number: u32,
        epoch: u64,
    ) -> Result<(), String> {
        if self.hosts[host].epoch != epoch {
            return Ok(());
        }
        let turns = self.hosts[host].places.give_back(self.now, number);
        self.take_turns(host, turns)?;
        let more = self.hosts[host].crowded_until > self.now;
        if more { self.other_asks(host) } else { Ok(()) }
    }

    pub(super) fn other_leaves(&mut self, host: usize) -> Result<(), String> {
        if self.hosts[host].crowded_until > self.now {
            return Ok(());
        }
        let turns = self.hosts[host].places.wants_no_more(self.now, Who::Other);
        self.take_turns(host, turns)
    }
}

fn time(micros: u64) -> Duration {
    Duration::from_micros(micros)
}
