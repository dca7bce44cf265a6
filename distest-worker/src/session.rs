//! Slots, leases, clocks and cancellation of one client: a state machine without IO.
//!
//! [`Session::step`] takes one [`Input`] and appends what to do as [`Effect`]s, each of which names
//! its answer. Every attempt that is leased is answered exactly once, by a report or by being
//! given back. This module never reads a clock: time comes as a [`Tick`] with each input.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::protocol::{AttemptId, AttemptSpec, Finished, Limits, LossReason, Report, SlotId, Stop};

/// A client that has said nothing for this long is gone: everything that it started is ended.
/// Sooner than a client gives up a worker, so that no test runs twice at once.
pub const FENCE_AFTER: Duration = Duration::from_secs(3);

/// A moment, counted from the session's start, on a monotonic clock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Tick(pub Duration);

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// The client said something, whatever it was.
    Word,
    /// The client hands over attempts.
    Lease(Vec<AttemptSpec>),
    /// The client wants back what has not started.
    Revoke(Vec<AttemptId>),
    /// The client wants things to end.
    Stop(Stop),
    /// A slot can start attempts: once at first, and after each [`Input::HelperDied`].
    Ready {
        /// Which.
        slot: SlotId,
    },
    /// Answers [`Effect::Spawn`]: its process runs.
    Spawned {
        /// Where.
        slot: SlotId,
        /// Which.
        attempt: AttemptId,
    },
    /// Answers [`Effect::Spawn`]: it never ran. The slot can start another.
    CouldNotSpawn {
        /// Where.
        slot: SlotId,
        /// Which.
        attempt: AttemptId,
        /// Why.
        reason: LossReason,
        /// In words.
        detail: String,
    },
    /// An attempt and all that it started have ended. The slot can start another.
    Exited {
        /// Where.
        slot: SlotId,
        /// How. Whether it timed out is for the session to say.
        finished: Box<Finished>,
    },
    /// What runs a slot's attempts died. The slot waits for [`Input::Ready`].
    HelperDied {
        /// Where.
        slot: SlotId,
        /// What it had, if anything.
        attempt: Option<AttemptId>,
        /// In words.
        detail: String,
    },
    /// Answers [`Effect::WakeAt`]: the moment has come.
    Wake,
    /// The connection is gone.
    PeerLost,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Start an attempt. Answered by [`Input::Spawned`] and later [`Input::Exited`], or by
    /// [`Input::CouldNotSpawn`], or by [`Input::HelperDied`].
    Spawn {
        /// Where.
        slot: SlotId,
        /// What.
        attempt: Box<AttemptSpec>,
    },
    /// SIGTERM to what runs in a slot. Answered by [`Input::Exited`], if it obeys.
    Terminate {
        /// Which slot.
        slot: SlotId,
    },
    /// SIGKILL to what runs in a slot. Answered by [`Input::Exited`].
    Kill {
        /// Which slot.
        slot: SlotId,
    },
    /// Tell the client. No answer.
    Report(Report),
    /// Tell the client which attempts it gets back: the answer to [`Input::Revoke`].
    Revoked(Vec<AttemptId>),
    /// Say [`Input::Wake`] at this moment, and not at any that was asked for before.
    WakeAt(Tick),
    /// The client is silent or gone and what it started is being killed. No answer.
    End {
        /// Why.
        reason: String,
    },
}

/// One client's attempts.
#[derive(Debug)]
pub struct Session {
    slots: BTreeMap<SlotId, Slot>,
    queue: VecDeque<AttemptSpec>,
    /// The last word of the client, if silence counts.
    heard: Option<Tick>,
    stopping: Option<Stop>,
    fenced: bool,
    wake: Option<Tick>,
}

#[derive(Debug)]
enum Slot {
    /// Nobody has said that it can start anything.
    Away,
    Free,
    /// Asked to start; [`Stop`] or the fence may have come meanwhile.
    Starting {
        attempt: AttemptId,
        limits: Limits,
        stopped: Option<Stop>,
    },
    Running(Running),
}

#[derive(Debug)]
struct Running {
    attempt: AttemptId,
    limits: Limits,
    since: Tick,
    /// How often it was called slow.
    slow: u32,
    ending: Option<Ending>,
}

/// A running attempt that has been told to end.
#[derive(Debug)]
struct Ending {
    cause: Cause,
    /// When it is killed; none: it has been.
    kill_at: Option<Tick>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Timeout,
    Stop,
}

impl Session {
    /// A session in which nothing is ready. `fence`: a silent client is gone; an embedded worker's
    /// can't be.
    pub fn new(slots: u32, fence: bool) -> Self {
        Self {
            slots: (0..slots).map(|slot| (SlotId(slot), Slot::Away)).collect(),
            queue: VecDeque::new(),
            heard: fence.then_some(Tick::default()),
            stopping: None,
            fenced: false,
            wake: None,
        }
    }

    /// Takes one input and appends what to do.
    pub fn step(&mut self, now: Tick, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Word => self.heard = self.heard.map(|_| now),
            Input::Lease(attempts) => self.lease(attempts, effects),
            Input::Revoke(attempts) => self.revoke(&attempts, effects),
            Input::Stop(how) => self.stop(now, how, effects),
            Input::Ready { slot } => {
                // A slot that has work is not free, whatever is said of it.
                if let Some(state @ Slot::Away) = self.slots.get_mut(&slot) {
                    *state = Slot::Free;
                }
            }
            Input::Spawned { slot, attempt } => self.spawned(now, slot, attempt, effects),
            Input::CouldNotSpawn { slot, attempt, reason, detail } => {
                if self.vacate(slot, attempt, Slot::Free) {
                    effects.push(Effect::Report(Report::Lost { attempt, reason, detail }));
                }
            }
            Input::Exited { slot, finished } => self.exited(slot, *finished, effects),
            Input::HelperDied { slot, attempt, detail } => {
                self.helper_died(slot, attempt, detail, effects);
            }
            Input::Wake => {
                if self.wake.is_some_and(|wake| wake <= now) {
                    self.wake = None;
                }
            }
            Input::PeerLost => self.fence("the connection is gone", effects),
        }
        self.look_at_clocks(now, effects);
        self.start(effects);
        self.set_alarm(effects);
        debug_assert_eq!(self.check(), Ok(()));
    }

    /// Attempts that run or are about to.
    pub fn running(&self) -> u32 {
        self.slots.values().filter(|slot| slot.attempt().is_some()).count() as u32
    }

    /// Attempts that wait for a slot.
    pub fn queued(&self) -> u32 {
        self.queue.len() as u32
    }

    fn lease(&mut self, attempts: Vec<AttemptSpec>, effects: &mut Vec<Effect>) {
        if self.fenced || self.stopping.is_some() {
            attempts.iter().for_each(|attempt| effects.push(dropped(attempt.id)));
        } else {
            self.queue.extend(attempts);
        }
    }

    fn revoke(&mut self, attempts: &[AttemptId], effects: &mut Vec<Effect>) {
        let mut back = Vec::new();
        self.queue.retain(|queued| {
            let wanted = attempts.contains(&queued.id);
            if wanted {
                back.push(queued.id);
            }
            !wanted
        });
        effects.push(Effect::Revoked(back));
    }

    fn stop(&mut self, now: Tick, how: Stop, effects: &mut Vec<Effect>) {
        self.stopping = Some(how);
        effects.extend(self.queue.drain(..).map(|attempt| dropped(attempt.id)));
        for (slot, state) in &mut self.slots {
            match state {
                Slot::Away | Slot::Free => {}
                Slot::Starting { stopped, .. } => {
                    // Nothing runs yet that could be signalled in an orderly way.
                    if how != Stop::Drain {
                        *stopped = Some(how);
                        effects.push(Effect::Kill { slot: *slot });
                    }
                }
                Slot::Running(running) => running.stop(now, *slot, how, effects),
            }
        }
    }

    fn spawned(&mut self, now: Tick, slot: SlotId, attempt: AttemptId, effects: &mut Vec<Effect>) {
        let Some(state) = self.slots.get_mut(&slot) else { return };
        let Slot::Starting { attempt: expected, limits, stopped } = state else { return };
        if *expected != attempt {
            return;
        }
        let (limits, stopped) = (*limits, *stopped);
        let mut running = Running { attempt, limits, since: now, slow: 0, ending: None };
        effects.push(Effect::Report(Report::Started { attempt, slot }));
        if let Some(how) = stopped {
            running.stop(now, slot, how, effects);
        } else if self.fenced {
            running.stop(now, slot, Stop::Kill, effects);
        }
        *state = Slot::Running(running);
    }

    fn exited(&mut self, slot: SlotId, mut finished: Finished, effects: &mut Vec<Effect>) {
        let attempt = finished.attempt;
        let cause = match self.slots.get(&slot) {
            Some(Slot::Running(running)) => running.ending.as_ref().map(|ending| ending.cause),
            _ => None,
        };
        if !self.vacate(slot, attempt, Slot::Free) {
            return;
        }
        effects.push(Effect::Report(match cause {
            // It was told to end: however it ended says nothing about the test.
            Some(Cause::Stop) => {
                let (reason, detail) = (LossReason::Stopped, String::new());
                Report::Lost { attempt, reason, detail }
            }
            cause => {
                finished.timed_out = cause == Some(Cause::Timeout);
                Report::Finished(finished)
            }
        }));
    }

    fn helper_died(
        &mut self,
        slot: SlotId,
        attempt: Option<AttemptId>,
        detail: String,
        effects: &mut Vec<Effect>,
    ) {
        match attempt {
            Some(attempt) => {
                if self.vacate(slot, attempt, Slot::Away) {
                    let reason = LossReason::HelperDied;
                    effects.push(Effect::Report(Report::Lost { attempt, reason, detail }));
                }
            }
            // What it was asked to start goes to its successor.
            None => {
                if let Some(state @ Slot::Free) = self.slots.get_mut(&slot) {
                    *state = Slot::Away;
                }
            }
        }
    }

    /// Takes an attempt out of a slot; false if it isn't there.
    fn vacate(&mut self, slot: SlotId, attempt: AttemptId, then: Slot) -> bool {
        match self.slots.get_mut(&slot) {
            Some(state) if state.attempt() == Some(attempt) => {
                *state = then;
                true
            }
            _ => false,
        }
    }

    fn look_at_clocks(&mut self, now: Tick, effects: &mut Vec<Effect>) {
        if self.heard.is_some_and(|heard| heard.0 + FENCE_AFTER <= now.0) && !self.fenced {
            let seconds = FENCE_AFTER.as_secs();
            self.fence(&format!("the client has said nothing for {seconds} s"), effects);
        }
        for (slot, state) in &mut self.slots {
            if let Slot::Running(running) = state {
                running.look_at_clocks(now, *slot, effects);
            }
        }
    }

    /// Kills everything: the client will run it elsewhere, or is no more.
    fn fence(&mut self, reason: &str, effects: &mut Vec<Effect>) {
        if std::mem::replace(&mut self.fenced, true) {
            return;
        }
        effects.push(Effect::End { reason: reason.to_owned() });
        effects.extend(self.queue.drain(..).map(|attempt| dropped(attempt.id)));
        for (slot, state) in &mut self.slots {
            match state {
                Slot::Away | Slot::Free => {}
                Slot::Starting { .. } => effects.push(Effect::Kill { slot: *slot }),
                Slot::Running(running) => {
                    running.ending = Some(Ending { cause: Cause::Stop, kill_at: None });
                    effects.push(Effect::Kill { slot: *slot });
                }
            }
        }
    }

    fn start(&mut self, effects: &mut Vec<Effect>) {
        for (slot, state) in &mut self.slots {
            if !matches!(state, Slot::Free) {
                continue;
            }
            let Some(attempt) = self.queue.pop_front() else { return };
            let (id, limits) = (attempt.id, attempt.limits);
            *state = Slot::Starting { attempt: id, limits, stopped: None };
            effects.push(Effect::Spawn { slot: *slot, attempt: Box::new(attempt) });
        }
    }

    fn set_alarm(&mut self, effects: &mut Vec<Effect>) {
        let fence = self.heard.filter(|_| !self.fenced).map(|heard| Tick(heard.0 + FENCE_AFTER));
        let clocks = self.slots.values().filter_map(|slot| match slot {
            Slot::Running(running) => running.next_alarm(),
            Slot::Away | Slot::Free | Slot::Starting { .. } => None,
        });
        let Some(next) = clocks.chain(fence).min() else { return };
        // An alarm that rings too early only asks for the next: the fence moves with every word.
        if self.wake.is_none_or(|wake| next < wake) {
            self.wake = Some(next);
            effects.push(Effect::WakeAt(next));
        }
    }

    /// What must hold after every step.
    ///
    /// # Errors
    /// Says which invariant is broken.
    pub fn check(&self) -> Result<(), String> {
        let mut ids: Vec<_> = self.slots.values().filter_map(Slot::attempt).collect();
        ids.extend(self.queue.iter().map(|attempt| attempt.id));
        let count = ids.len();
        ids.sort_unstable();
        ids.dedup();
        if ids.len() != count {
            return Err("an attempt is held twice".to_owned());
        }
        if !self.queue.is_empty() && self.slots.values().any(|slot| matches!(slot, Slot::Free)) {
            return Err("an attempt waits although a slot is free".to_owned());
        }
        if self.fenced && !self.queue.is_empty() {
            return Err("a fenced session holds attempts".to_owned());
        }
        Ok(())
    }
}

impl Slot {
    fn attempt(&self) -> Option<AttemptId> {
        match self {
            Self::Away | Self::Free => None,
            Self::Starting { attempt, .. } => Some(*attempt),
            Self::Running(running) => Some(running.attempt),
        }
    }
}

impl Running {
    fn stop(&mut self, now: Tick, slot: SlotId, how: Stop, effects: &mut Vec<Effect>) {
        let gently = match how {
            Stop::Drain => return,
            Stop::Terminate => !self.limits.grace.is_zero(),
            Stop::Kill => false,
        };
        let cause = self.ending.as_ref().map_or(Cause::Stop, |ending| ending.cause);
        if gently && self.ending.is_none() {
            let kill_at = Some(Tick(now.0 + self.limits.grace));
            self.ending = Some(Ending { cause, kill_at });
            effects.push(Effect::Terminate { slot });
        } else if !gently {
            self.ending = Some(Ending { cause, kill_at: None });
            effects.push(Effect::Kill { slot });
        }
    }

    fn look_at_clocks(&mut self, now: Tick, slot: SlotId, effects: &mut Vec<Effect>) {
        if let Some(Ending { kill_at, .. }) = &mut self.ending {
            if kill_at.is_some_and(|at| at <= now) {
                *kill_at = None;
                effects.push(Effect::Kill { slot });
            }
            return;
        }
        if self.slow_at().is_some_and(|at| at <= now) {
            let (attempt, elapsed) = (self.attempt, now.0.saturating_sub(self.since.0));
            effects.push(Effect::Report(Report::Slow { attempt, elapsed }));
            // Late by more than a period: one notice is enough.
            while self.slow_at().is_some_and(|at| at <= now) {
                self.slow += 1;
            }
        }
        if self.timeout_at().is_some_and(|at| at <= now) {
            let gently = !self.limits.grace.is_zero();
            let kill_at = gently.then_some(Tick(now.0 + self.limits.grace));
            self.ending = Some(Ending { cause: Cause::Timeout, kill_at });
            effects.push(if gently { Effect::Terminate { slot } } else { Effect::Kill { slot } });
        }
    }

    fn next_alarm(&self) -> Option<Tick> {
        match &self.ending {
            Some(ending) => ending.kill_at,
            None => self.slow_at().into_iter().chain(self.timeout_at()).min(),
        }
    }

    /// None if a slow attempt is never told of.
    fn slow_at(&self) -> Option<Tick> {
        let period = Some(self.limits.slow_after).filter(|period| !period.is_zero())?;
        Some(Tick(self.since.0.checked_add(period.checked_mul(self.slow + 1)?)?))
    }

    fn timeout_at(&self) -> Option<Tick> {
        self.limits.timeout.and_then(|timeout| self.since.0.checked_add(timeout)).map(Tick)
    }
}

fn dropped(attempt: AttemptId) -> Effect {
    let (reason, detail) = (LossReason::Dropped, String::new());
    Effect::Report(Report::Lost { attempt, reason, detail })
}
