//! One slot's attempt and its clocks: slow notices, timeout, SIGTERM, grace, SIGKILL. Pure.

use std::time::Duration;

use super::{Effect, MADE_ROOM, Tick, YIELD_AFTER};
use crate::protocol::{AttemptId, AttemptSpec, Limits, Report, SlotId, Stop};

/// A slot.
#[derive(Debug)]
pub(super) enum Slot {
    /// Its helper is not there (yet).
    Down,
    /// It can take an attempt.
    Free,
    /// It has one.
    Busy(Busy),
    /// It will never have a helper again, and why.
    Gone(String),
}

/// An attempt in a slot.
#[derive(Debug)]
pub(super) struct Busy {
    pub(super) attempt: AttemptId,
    pub(super) permit: u32,
    /// It was ended because its timeout had passed.
    pub(super) timed_out: bool,
    /// It was ended by a stop.
    pub(super) stopped: bool,
    /// It does several things, and is looked at then, whether others wait for its place.
    pub(super) yield_at: Option<Tick>,
    pub(super) began: Option<Tick>,
    several: bool,
    pub(super) yielded: bool,
    limits: Limits,
    since: Option<Tick>,
    slow_at: Option<Tick>,
    ladder: Ladder,
}

/// How far an attempt has been ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ladder {
    /// It runs.
    Left,
    /// SIGTERM was sent.
    Terminated {
        /// When SIGKILL follows.
        kill_at: Tick,
    },
    /// SIGKILL was sent.
    Killed,
}

impl Busy {
    pub(super) fn new(spec: &AttemptSpec, permit: u32) -> Self {
        Self {
            attempt: spec.id,
            permit,
            timed_out: false,
            stopped: false,
            yield_at: None,
            began: None,
            several: spec.progress,
            yielded: false,
            limits: spec.limits,
            since: None,
            slow_at: None,
            ladder: Ladder::Left,
        }
    }

    /// Its process runs from now on.
    pub(super) fn started(&mut self, now: Tick, slot: SlotId, effects: &mut Vec<Effect>) {
        self.since = Some(now);
        self.began = Some(now);
        self.yield_at = self.several.then(|| now.after(YIELD_AFTER));
        let notice = self.limits.slow_after;
        self.slow_at = (notice > Duration::ZERO).then(|| now.after(notice));
        // A signal needs a process: what was ordered before is done now.
        match self.ladder {
            Ladder::Left => {}
            Ladder::Terminated { .. } => {
                self.ladder = Ladder::Terminated { kill_at: now.after(self.limits.grace) };
                effects.push(Effect::Terminate(slot));
            }
            Ladder::Killed => effects.push(Effect::Kill(slot)),
        }
    }

    /// Ends it, because others wait.
    pub(super) fn make_room(&mut self, slot: SlotId, effects: &mut Vec<Effect>) {
        self.yield_at = None;
        if self.ladder == Ladder::Left {
            (self.stopped, self.yielded) = (true, true);
            self.kill(slot, effects);
        }
    }

    /// Why it was stopped.
    pub(super) fn stopped_because(&self) -> &'static str {
        match self.yielded {
            true => MADE_ROOM,
            false => "it was stopped while it ran",
        }
    }

    /// What it does now began only now. One that is being ended has no more time for that.
    pub(super) fn progressed(&mut self, now: Tick) {
        if self.since.is_some() && self.ladder == Ladder::Left {
            self.since = Some(now);
            self.slow_at = self.slow_at.map(|_| now.after(self.limits.slow_after));
        }
    }

    /// Ends it, as far as `how` asks for more than was done already.
    pub(super) fn stop(&mut self, now: Tick, slot: SlotId, how: Stop, effects: &mut Vec<Effect>) {
        match how {
            Stop::Drain => {}
            Stop::Terminate => {
                self.stopped = true;
                self.terminate(now, slot, effects);
            }
            Stop::Kill => {
                self.stopped = true;
                self.kill(slot, effects);
            }
        }
    }

    /// Does what is due.
    pub(super) fn watch_clocks(&mut self, now: Tick, slot: SlotId, effects: &mut Vec<Effect>) {
        let Some(since) = self.since else { return };
        if self.ladder == Ladder::Left
            && self.limits.timeout.is_some_and(|limit| since.after(limit) <= now)
        {
            self.timed_out = true;
            self.terminate(now, slot, effects);
        }
        if let Ladder::Terminated { kill_at } = self.ladder
            && kill_at <= now
        {
            self.kill(slot, effects);
        }
        if self.ladder == Ladder::Left
            && let Some(slow_at) = self.slow_at
            && slow_at <= now
        {
            let elapsed = now.0.saturating_sub(since.0);
            effects.push(Effect::Report(Report::Slow { attempt: self.attempt, elapsed }));
            // A late clock gives one notice, not all that were missed.
            let notice = self.limits.slow_after.as_nanos();
            let passed = elapsed.as_nanos() / notice + 1;
            let next = u64::try_from(notice.saturating_mul(passed)).unwrap_or(u64::MAX);
            self.slow_at = Some(since.after(Duration::from_nanos(next)));
        }
    }

    /// When [`Busy::watch_clocks`] has something to do next.
    pub(super) fn next_clock(&self) -> Option<Tick> {
        let since = self.since?;
        match self.ladder {
            Ladder::Left => {
                let timeout = self.limits.timeout.map(|limit| since.after(limit));
                self.slow_at.into_iter().chain(timeout).chain(self.yield_at).min()
            }
            Ladder::Terminated { kill_at } => Some(kill_at),
            Ladder::Killed => None,
        }
    }

    fn terminate(&mut self, now: Tick, slot: SlotId, effects: &mut Vec<Effect>) {
        if self.ladder != Ladder::Left {
            return;
        }
        if self.limits.grace == Duration::ZERO {
            return self.kill(slot, effects);
        }
        self.ladder = Ladder::Terminated { kill_at: now.after(self.limits.grace) };
        if self.since.is_some() {
            effects.push(Effect::Terminate(slot));
        }
    }

    fn kill(&mut self, slot: SlotId, effects: &mut Vec<Effect>) {
        if self.ladder == Ladder::Killed {
            return;
        }
        self.ladder = Ladder::Killed;
        if self.since.is_some() {
            effects.push(Effect::Kill(slot));
        }
    }
}
