//! Breaks things at random, until peace.

use distest_worker::protocol::Stop;
use distest_worker::session::Input;

use super::host::{Doing, Happening};
use super::scenario::{MILLI, Nature, SECOND};
use super::world::{ConnId, Event, Side, World};
use crate::model::TestIndex;

/// How long the ends of a broken connection wait for each other.
const BROKEN_MAX: u64 = distest_worker::link::BROKEN_MAX.as_micros() as u64;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    /// The worker's process dies.
    Crash,
    /// The machine is gone without a word.
    PowerLoss,
    /// The worker is shut down in order, and started again.
    Restart,
    /// The worker takes nothing more, finishes what runs, and comes back.
    Drain,
    /// The connection breaks. The client comes back before the worker's fence, and nothing was lost
    /// that was under way; or too late.
    Break,
    /// The connection is lost at both ends, and there is no way back.
    Cut,
    /// Only the client learns that it is lost.
    CutForClient,
    /// Only the worker learns it.
    CutForWorker,
    /// Nothing passes.
    Partition,
    PartitionToWorker,
    PartitionToClient,
    /// Everything takes long.
    Delay,
    /// The worker's process stands still, its tests don't.
    Stall,
    /// The worker's clock jumps ahead.
    ClockJump,
    /// The worker has no space left.
    DiskFull,
    Slow,
    /// The worker has little memory left.
    MemoryShort,
    HelperDies,
    /// Another client takes places on the worker as they come free, and gives them back, for a
    /// while.
    Crowded,
    /// The worker crashes by itself every so often, whatever it runs, and always comes back.
    Flaps,
}

pub(super) const FAULTS: [Fault; 20] = [
    Fault::Crash,
    Fault::PowerLoss,
    Fault::Restart,
    Fault::Drain,
    Fault::Break,
    Fault::Cut,
    Fault::CutForClient,
    Fault::CutForWorker,
    Fault::Partition,
    Fault::PartitionToWorker,
    Fault::PartitionToClient,
    Fault::Delay,
    Fault::Stall,
    Fault::ClockJump,
    Fault::DiskFull,
    Fault::Slow,
    Fault::MemoryShort,
    Fault::HelperDies,
    Fault::Crowded,
    Fault::Flaps,
];
/// So many of them, the first, happen by chance: a worker flaps or doesn't.
const BY_CHANCE: u64 = FAULTS.len() as u64 - 1;

/// What passes again.
#[derive(Clone, Copy, Debug)]
pub(super) enum Peace {
    /// A connection that is restored.
    Conn(ConnId),
    /// A connection that broke: whether the client comes back.
    Back(ConnId, bool),
}

impl World {
    pub(super) fn fault(&mut self) -> Result<(), String> {
        // The client's own worker is part of the client.
        let host = self.random.below(self.hosts.len() as u64 - 1) as usize;
        let fault = FAULTS[self.random.below(BY_CHANCE) as usize];
        if self.client.is_done() {
            return Ok(());
        }
        let doing = self.doing(host);
        let harmless = matches!(
            fault,
            Fault::Restart
                | Fault::Stall
                | Fault::DiskFull
                | Fault::Slow
                | Fault::MemoryShort
                | Fault::HelperDies
                | Fault::Crowded
        );
        if !harmless && !self.may_lose(host, None) {
            return Ok(());
        }
        self.note(|| format!("  ! {fault:?} of {host} {doing:?}"));
        self.cover(fault, doing);
        let up = self.hosts[host].is_up();
        let brief = self.random.between(10, 300) * MILLI;
        let long = self.random.between(100, 9_000) * MILLI;
        let conn = self.latest_conn(host);
        match fault {
            Fault::Crash if up => self.crash(host, false)?,
            Fault::PowerLoss if up => self.crash(host, true)?,
            Fault::Restart if up => self.shut_down(host)?,
            Fault::Drain if up => {
                let conns: Vec<_> = self.hosts[host].sessions.keys().copied().collect();
                for conn in conns {
                    self.step(host, conn, Input::Drain)?;
                }
            }
            Fault::Crowded if up => self.crowd(host, long)?,
            Fault::Crash | Fault::PowerLoss | Fault::Restart | Fault::Drain => {}
            Fault::Crowded | Fault::Flaps => {}
            Fault::Break => {
                let away = self.random.between(20, 5_000) * MILLI;
                if let Some(conn) = conn {
                    self.breaks(conn, away);
                }
            }
            Fault::Cut => {
                self.lose_end(conn, Side::Client);
                self.lose_end(conn, Side::Host);
            }
            Fault::CutForClient => {
                self.lose_end(conn, Side::Client);
                self.block(conn, Side::Host, 60 * SECOND);
            }
            Fault::CutForWorker => {
                self.lose_end(conn, Side::Host);
                self.block(conn, Side::Client, 60 * SECOND);
            }
            Fault::Partition => {
                self.block(conn, Side::Client, long);
                self.block(conn, Side::Host, long);
            }
            Fault::PartitionToWorker => self.block(conn, Side::Host, long),
            Fault::PartitionToClient => self.block(conn, Side::Client, long),
            Fault::Delay => {
                if let Some(conn) = conn.and_then(|id| self.conns.get_mut(&id)) {
                    conn.latency = brief;
                }
                if let Some(conn) = conn {
                    self.after(long, Event::Heals(Peace::Conn(conn)));
                }
            }
            Fault::Stall => self.hosts[host].stalled_until = self.now + brief,
            Fault::ClockJump => {
                // Either it ends the session at once, or it never does.
                let far = self.random.one_in(2);
                let range = if far { (4_000, 6_000) } else { (100, 900) };
                self.hosts[host].jump += self.random.between(range.0, range.1) * MILLI;
                for (conn, set) in self.hosts[host].clocks() {
                    self.after(brief / 10, Event::Host(host, Happening::Wake(conn, set)));
                }
            }
            Fault::DiskFull => self.hosts[host].disk_full_until = self.now + long,
            Fault::Slow => self.hosts[host].slow_until = self.now + long,
            Fault::MemoryShort => {
                self.hosts[host].short_until = self.now + long;
                self.after(long, Event::Host(host, Happening::Recovers));
                self.memory_changes(host)?;
            }
            Fault::HelperDies => self.helper_dies(host)?,
        }
        Ok(())
    }

    /// The worker that does so crashes by itself, and will again.
    pub(super) fn flap(&mut self) -> Result<(), String> {
        let Some((host, random)) = &mut self.flaps else { return Ok(()) };
        let (host, power) = (*host, random.one_in(3));
        let next = random.between(100, 2_500) * MILLI;
        if self.client.is_done() || self.now >= self.scenario.peace_at {
            return Ok(());
        }
        self.after(next, Event::Flaps);
        if !self.hosts[host].is_up() || !self.may_flap(host) {
            return Ok(());
        }
        let doing = self.doing(host);
        self.note(|| format!("  ! {host} flaps {doing:?}"));
        self.cover(Fault::Flaps, doing);
        self.crash(host, power)
    }

    /// As [`World::may_lose`], but the same worker may be lost again with an innocent test alone, if
    /// that has a choice: then the worker is why.
    fn may_flap(&self, host: usize) -> bool {
        let flights = self.client.flights_on(host);
        let lone = flights.iter().filter(|(_, tests)| tests.len() == 1).map(|(_, tests)| tests[0]);
        let innocent =
            |test: &TestIndex| self.scenario.tests[test.0 as usize].nature != Nature::Kills;
        lone.filter(innocent).all(|test| {
            let choice = self.client.has_choice(&self.scenario, test, host);
            !self.judge.was_lost_alone(test)
                || choice && self.judge.was_lost_alone_only_on(test, host)
        })
    }

    pub(super) fn heals(&mut self, peace: Peace) -> Result<(), String> {
        match peace {
            Peace::Conn(conn) => {
                if let Some(conn) = self.conns.get_mut(&conn) {
                    conn.latency = 2 * MILLI;
                }
            }
            Peace::Back(conn, in_time) => {
                let open = self.conns.get(&conn).map(|conn| conn.open);
                // What the worker has ended meanwhile is not to be come back to.
                if !in_time || open != Some([true, true]) {
                    self.lose_end(Some(conn), Side::Client);
                    self.lose_end(Some(conn), Side::Host);
                }
            }
        }
        Ok(())
    }

    /// What can't be told from a test's guilt by anybody is not to happen here.
    pub(super) fn may_lose(&mut self, host: usize, guilty: Option<TestIndex>) -> bool {
        let flights = self.client.flights_on(host);
        let lone = flights.iter().filter(|(_, tests)| tests.len() == 1).map(|(_, tests)| tests[0]);
        let lone: Vec<_> = lone.filter(|test| Some(*test) != guilty).collect();
        let innocent =
            |test: &&TestIndex| self.scenario.tests[test.0 as usize].nature != Nature::Kills;
        let spared = lone.iter().filter(innocent).any(|test| self.judge.was_lost_alone(*test));
        !spared
    }

    fn doing(&self, host: usize) -> Doing {
        let machine = &self.hosts[host];
        let lone = self.client.flights_on(host).iter().any(
            |(_, tests)| matches!(tests.as_slice(), [test] if self.judge.was_lost_alone(*test)),
        );
        match machine {
            it if !it.is_up() => Doing::Down,
            _ if !self.client.has_session(host) => Doing::Unconnected,
            it if it.ending() => Doing::Ending,
            _ if self.client.is_revoking(host) => Doing::Revoking,
            it if it.telling() => Doing::Telling,
            it if it.running() > 0 && lone => Doing::RunningLone,
            it if it.holding() => Doing::Holding,
            it if it.running() > 0 => Doing::Running,
            _ if self.client.is_preparing(host) => Doing::Preparing,
            _ => Doing::Idle,
        }
    }

    fn latest_conn(&self, host: usize) -> Option<ConnId> {
        self.conns.iter().rev().find(|(_, conn)| conn.host == host).map(|(id, _)| *id)
    }

    /// A reset reaches one end.
    fn lose_end(&mut self, conn: Option<ConnId>, side: Side) {
        let Some(id) = conn else { return };
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if conn.open[side as usize] {
            conn.blocked[side as usize] = 0;
            self.reset(id, side);
        }
    }

    /// Neither end has a connection for so long, or until nobody waits for the other any more. What
    /// is sent meanwhile, or was under way, arrives when the client is back.
    fn breaks(&mut self, id: ConnId, away: u64) {
        let (in_time, away) = (away < BROKEN_MAX, away.min(BROKEN_MAX));
        self.after(away, Event::Heals(Peace::Back(id, in_time)));
        let until = self.now + away + MILLI;
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.blocked = conn.blocked.map(|before| before.max(until));
        }
    }

    fn block(&mut self, conn: Option<ConnId>, to: Side, for_long: u64) {
        let forever = self.random.one_in(4);
        let until = if forever { 60 * SECOND } else { for_long };
        if let Some(conn) = conn.and_then(|id| self.conns.get_mut(&id)) {
            conn.blocked[to as usize] = self.now + until;
        }
    }

    /// Ends everything in order, and says so.
    fn shut_down(&mut self, host: usize) -> Result<(), String> {
        let conns: Vec<_> = self.hosts[host].sessions.keys().copied().collect();
        for conn in conns {
            self.step(host, conn, Input::Close(Stop::Kill))?;
        }
        self.hosts[host].leaves();
        self.after(SECOND, Event::Host(host, Happening::ShutDown));
        Ok(())
    }
}
