//! Slots, leases, clocks and cancellation of one client. A state machine without IO.
//!
//! [`Session::step`] takes one [`Input`] at a time and answers with [`Effect`]s for a driver to
//! perform. Every leased attempt is answered exactly once by [`Report::Finished`] or
//! [`Report::Lost`], unless it comes back from a revoke. This module never reads a clock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::protocol::{
    AttemptId, AttemptSpec, Exit, Finished, Leak, LossReason, Output, ProgressLine, Refusal,
    RefusalKind, Report, SlotId, Stop, Usage,
};

mod slot;
#[cfg(test)]
mod tests;
pub mod weight;

use self::slot::{Busy, Slot};

/// A session whose client pings is ended after this long without a word of it.
pub const FENCE_AFTER: Duration = Duration::from_secs(3);
/// It is ended this long after the last of its answers that the client is known to have had,
/// whatever else arrives.
///
/// A client pings again only when it has had the answer to its last ping, and takes a worker for
/// lost 4.5 s after an answer. Words that were long under way, or that arrive while answers do not,
/// prove nothing: only this bound keeps the worker's end before the client's, however long messages
/// take (leases, Gray and Cheriton 1989).
pub const LEASE: Duration = Duration::from_secs(4);

/// What waits in a session when its worker drains is dropped after this long, unless the client
/// has taken it back.
pub const DRAIN_WAIT: Duration = Duration::from_secs(2);

/// An attempt that does several things one after the other is expected to take no more than 1 s
/// while other clients wait for places. Expectations are the client's: by the worker's clock it
/// is ended after this long.
pub const YIELD_AFTER: Duration = Duration::from_secs(2);
/// Why it was ended then, in words.
pub const MADE_ROOM: &str =
    "other clients of the worker wait, and it had done several things already";
/// How often whether others wait is looked at from then on.
const YIELD_AGAIN: Duration = Duration::from_millis(250);

/// Attempts that may wait in a session.
pub const QUEUED_MAX: usize = 16 * 1024;
/// What those may weigh in memory, in bytes. A client leases about a second's work ahead.
pub const QUEUED_BYTES_MAX: usize = 64 << 20;

/// Time since the session began, monotonic.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Tick(pub Duration);

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// The client leases attempts. Answered by [`Effect::Leased`].
    Lease(Vec<AttemptSpec>),
    /// The client takes back what has not started. Answered by [`Effect::Revoked`].
    Revoke(Vec<AttemptId>),
    /// The client ends what runs and drops what is queued. More may be leased after it.
    Stop(Stop),
    /// The client or the worker ends the session. Answered by [`Effect::End`].
    Close(Stop),
    /// The connection is gone. Answered by [`Effect::End`].
    PeerLost,
    /// The worker starts nothing more: what waits is the client's to take back. Answered by
    /// [`Effect::End`] when nothing runs and nothing waits.
    Drain,
    /// The client made some request.
    Heard,
    /// The client pinged: from now on it is expected to keep saying something.
    Pinged,
    /// This machine has room for what was asked for.
    Permit {
        /// Unique among all that run.
        number: u32,
        /// As many as were asked for.
        places: u32,
    },
    /// A slot's helper is there.
    Ready(SlotId),
    /// An attempt's process runs.
    Spawned {
        /// Where.
        slot: SlotId,
        /// Which.
        attempt: AttemptId,
    },
    /// An attempt's process could not be started.
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
    /// An attempt has told of its progress: at least one line.
    Progressed {
        /// Where.
        slot: SlotId,
        /// Which.
        attempt: AttemptId,
        /// What it told.
        lines: Vec<ProgressLine>,
    },
    /// An attempt and all that it started have ended.
    Exited(Exited),
    /// A slot's helper died; another one is started. Without an attempt nothing was lost: what the
    /// slot was given is started by the next helper.
    HelperDied {
        /// Where.
        slot: SlotId,
        /// What died with it.
        attempt: Option<AttemptId>,
        /// In words.
        detail: String,
    },
    /// A slot won't have a helper any more.
    Gone {
        /// Where.
        slot: SlotId,
        /// In words.
        detail: String,
    },
    /// Time has passed.
    Woken {
        /// Other clients wait for places here.
        crowded: bool,
    },
}

/// How an attempt's process ended. Its output is the driver's.
#[derive(Clone, Debug)]
pub struct Exited {
    /// Where.
    pub slot: SlotId,
    /// Which.
    pub attempt: AttemptId,
    /// How.
    pub exit: Exit,
    /// From its start.
    pub duration: Duration,
    /// What it consumed.
    pub usage: Usage,
    /// What it left behind.
    pub leak: Option<Leak>,
    /// The kernel ended it for lack of memory.
    pub out_of_memory: bool,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// The lease was taken, or not. Answers [`Input::Lease`].
    Leased(Result<(), Refusal>),
    /// These were taken back. Answers [`Input::Revoke`].
    Revoked(Vec<AttemptId>),
    /// Wait for room on this machine. Answered by [`Input::Permit`], once for each.
    AskPermit {
        /// So many at once.
        places: u32,
    },
    /// Don't wait any longer for one permit for so many places. Not answered; the permit may be on
    /// its way, and is given back then.
    WithdrawPermit {
        /// So many at once.
        places: u32,
    },
    /// Give back a permit. Not answered.
    ReturnPermit(u32),
    /// Start an attempt. Answered by [`Input::Spawned`], [`Input::CouldNotSpawn`],
    /// [`Input::HelperDied`] or [`Input::Gone`].
    Spawn {
        /// Where.
        slot: SlotId,
        /// The permit that it runs under.
        permit: u32,
        /// What.
        attempt: Box<AttemptSpec>,
    },
    /// SIGTERM. Answered by [`Input::Exited`], if the attempt obeys.
    Terminate(SlotId),
    /// SIGKILL. Answered by [`Input::Exited`], [`Input::HelperDied`] or [`Input::Gone`].
    Kill(SlotId),
    /// Tell the client. The outputs of [`Report::Finished`] are empty: the driver has them. Not
    /// answered.
    Report(Report),
    /// Say [`Input::Woken`] then, unless a later effect says another time.
    WakeAt(Tick),
    /// The session is over and nothing runs. Nothing follows but [`Effect::ReturnPermit`] for
    /// permits still asked for.
    End(EndReason),
}

/// Why a session ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EndReason {
    /// It was closed in order.
    Closed,
    /// The connection was lost.
    PeerLost,
    /// The client fell silent for [`FENCE_AFTER`].
    Silent,
    /// The worker drains, and nothing is left to do here.
    Drained,
}

/// One client's session.
#[derive(Debug)]
pub struct Session {
    slots: Vec<Slot>,
    queue: VecDeque<AttemptSpec>,
    /// What that weighs.
    queued_bytes: usize,
    /// Permits asked for and not yet granted, by their places.
    asked: BTreeMap<u32, usize>,
    phase: Phase,
    /// Nothing more is started, and what still waits then is dropped.
    draining: Option<Tick>,
    last_word: Tick,
    /// When the answer was given that the client is known to have had.
    proven: Tick,
    /// When the last ping was answered.
    answered: Tick,
    /// The client pings, so silence means that it is gone.
    fenced: bool,
    wake: Option<Tick>,
    #[cfg(debug_assertions)]
    count: Count,
    #[cfg(feature = "mutations")]
    mutation: Option<Mutation>,
}

/// Bugs that the client's simulation switches in to see whether it finds them.
#[cfg(feature = "mutations")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutation {
    /// Any word moves the fence, heard answers or not.
    FenceByAnyWord,
    /// What runs is given back.
    RevokeRunning,
    /// The place of what made room for others never comes back.
    KeepPlace,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Open,
    Ending(EndReason),
    Ended,
}

/// What became of attempts, for [`Session::check`].
#[cfg(debug_assertions)]
#[derive(Debug, Default)]
struct Count {
    leased: u64,
    answered: u64,
    revoked: u64,
}

impl Session {
    /// A session with `slots` slots whose helpers are not there yet.
    pub fn new(slots: u32) -> Self {
        Self {
            slots: (0..slots).map(|_| Slot::Down).collect(),
            queue: VecDeque::new(),
            queued_bytes: 0,
            asked: BTreeMap::new(),
            phase: Phase::Open,
            draining: None,
            last_word: Tick::default(),
            proven: Tick::default(),
            answered: Tick::default(),
            fenced: false,
            wake: None,
            #[cfg(debug_assertions)]
            count: Count::default(),
            #[cfg(feature = "mutations")]
            mutation: None,
        }
    }

    /// Switches a bug in.
    #[cfg(feature = "mutations")]
    pub fn mutate(&mut self, mutation: Option<Mutation>) {
        self.mutation = mutation;
    }

    /// Attempts running or starting.
    pub fn running(&self) -> u32 {
        self.slots.iter().filter(|slot| matches!(slot, Slot::Busy(_))).count() as u32
    }

    /// It is open, and was not told to drain.
    pub fn takes_more(&self) -> bool {
        self.phase == Phase::Open && self.draining.is_none()
    }

    /// Attempts waiting.
    pub fn queued(&self) -> u32 {
        self.queue.len() as u32
    }

    /// What those weigh in memory, in bytes.
    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Takes in what happened at `now`, which never goes back, and says what is to be done.
    pub fn step(&mut self, now: Tick, input: Input, effects: &mut Vec<Effect>) {
        let first = effects.len();
        let crowded = match input {
            Input::Woken { crowded } => Some(crowded),
            _ => None,
        };
        self.take(now, input, effects);
        self.watch_clocks(now, crowded, effects);
        self.drop_what_can_never_run(effects);
        self.withdraw(effects);
        self.ask(effects);
        self.end_if_idle(effects);
        self.tell_wake(effects);
        #[cfg(debug_assertions)]
        self.account(&effects[first..]);
        let _ = first;
        self.check();
    }

    /// Asserts what must always hold. Does nothing in a release build.
    pub fn check(&self) {
        #[cfg(debug_assertions)]
        {
            let held = u64::from(self.running() + self.queued());
            let Count { leased, answered, revoked } = self.count;
            #[cfg(feature = "mutations")]
            let leased = match self.mutation {
                Some(Mutation::RevokeRunning) => held + answered + revoked,
                Some(Mutation::FenceByAnyWord | Mutation::KeepPlace) | None => leased,
            };
            assert_eq!(held + answered + revoked, leased, "each attempt is somewhere, once");
            let bytes: usize = self.queue.iter().map(weight::of_attempt).sum();
            assert_eq!(bytes, self.queued_bytes, "what waits is weighed");
            let asked: usize = self.asked.values().sum();
            assert!(asked <= self.slots.len(), "no more permits than slots");
            if self.phase != Phase::Open {
                assert!(self.queue.is_empty(), "nothing waits in a session that ends");
            }
            let mut ids: Vec<_> = self.busy().map(|busy| busy.attempt).collect();
            ids.extend(self.queue.iter().map(|spec| spec.id));
            ids.sort_unstable();
            assert!(ids.windows(2).all(|pair| pair[0] != pair[1]), "an attempt is held twice");
        }
    }

    fn take(&mut self, now: Tick, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Lease(attempts) => {
                self.last_word = now;
                effects.push(Effect::Leased(self.lease(attempts)));
            }
            Input::Revoke(attempts) => {
                self.last_word = now;
                effects.push(Effect::Revoked(self.revoke(&attempts)));
            }
            Input::Stop(how) => {
                self.last_word = now;
                self.stop(now, how, effects);
            }
            Input::Close(how) => self.end(EndReason::Closed, now, how, effects),
            Input::PeerLost => self.end(EndReason::PeerLost, now, Stop::Kill, effects),
            Input::Drain => self.drain(now, effects),
            Input::Heard => self.last_word = now,
            Input::Pinged => {
                self.last_word = now;
                self.proven = self.answered;
                self.answered = now;
                self.fenced = true;
            }
            Input::Permit { number, places } => self.permitted(number, places, effects),
            Input::Ready(slot) => {
                if let Some(slot @ Slot::Down) = self.slot(slot) {
                    *slot = Slot::Free;
                }
            }
            Input::Spawned { slot, attempt } => self.spawned(now, slot, attempt, effects),
            Input::CouldNotSpawn { slot, attempt, reason, detail } => {
                self.lost(slot, attempt, Slot::Free, reason, detail, effects);
            }
            Input::Progressed { slot, attempt, lines } => {
                if let Some(Slot::Busy(busy)) = self.slot(slot)
                    && busy.attempt == attempt
                {
                    busy.progressed(now);
                    effects.push(Effect::Report(Report::Progress { attempt, lines }));
                }
            }
            Input::Exited(exited) => self.exited(exited, effects),
            Input::HelperDied { slot, attempt, detail } => {
                if let Some(attempt) = attempt {
                    self.lost(slot, attempt, Slot::Down, LossReason::HelperDied, detail, effects);
                } else if let Some(slot @ Slot::Free) = self.slot(slot) {
                    *slot = Slot::Down;
                }
            }
            Input::Gone { slot, detail } => self.gone(slot, detail, effects),
            Input::Woken { crowded: _ } => {}
        }
    }

    fn lease(&mut self, attempts: Vec<AttemptSpec>) -> Result<(), Refusal> {
        if self.phase != Phase::Open {
            return Err(Refusal::new(RefusalKind::Closed, "the session is over"));
        }
        if self.queue.len() + attempts.len() > QUEUED_MAX {
            let message = format!("could not take a lease: more than {QUEUED_MAX} attempts wait");
            return Err(Refusal::new(RefusalKind::OutOfResources, message));
        }
        let bytes = self.queued_bytes + weight::of_attempts(&attempts);
        if bytes > QUEUED_BYTES_MAX {
            let most = QUEUED_BYTES_MAX >> 20;
            let message = format!(
                "could not take a lease: the attempts that wait would take {} MiB of memory, more \
                 than {most}",
                bytes.div_ceil(1 << 20)
            );
            let hint = "lease less at once, with shorter arguments and variables";
            return Err(Refusal::new(RefusalKind::OutOfResources, message).with_hint(hint));
        }
        let mut ids: Vec<_> = self.busy().map(|busy| busy.attempt).collect();
        ids.extend(self.queue.iter().map(|spec| spec.id));
        ids.extend(attempts.iter().map(|spec| spec.id));
        ids.sort_unstable();
        if let Some(pair) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
            let message = format!("could not take a lease: attempt {} is in it twice", pair[0].0);
            return Err(Refusal::new(RefusalKind::Invalid, message));
        }
        #[cfg(debug_assertions)]
        {
            self.count.leased += attempts.len() as u64;
        }
        self.queued_bytes = bytes;
        self.queue.extend(attempts);
        Ok(())
    }

    fn revoke(&mut self, attempts: &[AttemptId]) -> Vec<AttemptId> {
        let attempts: BTreeSet<_> = attempts.iter().collect();
        let mut revoked = Vec::new();
        self.queue.retain(|spec| {
            let keep = !attempts.contains(&spec.id);
            if !keep {
                self.queued_bytes -= weight::of_attempt(spec);
                revoked.push(spec.id);
            }
            keep
        });
        #[cfg(feature = "mutations")]
        if self.mutation == Some(Mutation::RevokeRunning) {
            let running = self.busy().map(|busy| busy.attempt);
            revoked.extend(running.filter(|attempt| attempts.contains(attempt)));
        }
        revoked
    }

    fn stop(&mut self, now: Tick, how: Stop, effects: &mut Vec<Effect>) {
        self.drop_queue(LossReason::Dropped, "it was stopped before it started", effects);
        for (number, slot) in self.slots.iter_mut().enumerate() {
            if let Slot::Busy(busy) = slot {
                busy.stop(now, SlotId(number as u32), how, effects);
            }
        }
    }

    fn end(&mut self, reason: EndReason, now: Tick, how: Stop, effects: &mut Vec<Effect>) {
        if self.phase == Phase::Open {
            self.phase = Phase::Ending(reason);
        }
        if self.phase != Phase::Ended {
            self.stop(now, how, effects);
        }
    }

    fn drain(&mut self, now: Tick, effects: &mut Vec<Effect>) {
        if self.phase == Phase::Open && self.draining.is_none() {
            self.draining = Some(now.after(DRAIN_WAIT));
            effects.push(Effect::Report(Report::Draining {}));
        }
    }

    fn permitted(&mut self, permit: u32, places: u32, effects: &mut Vec<Effect>) {
        if let Some(asked) = self.asked.get_mut(&places) {
            *asked = asked.saturating_sub(1);
        }
        if self.draining.is_some() {
            effects.push(Effect::ReturnPermit(permit));
            return;
        }
        let free = self.slots.iter().position(|slot| matches!(slot, Slot::Free));
        let next = self.queue.iter().position(|spec| spec.places == places);
        let next = next.filter(|_| free.is_some()).and_then(|next| self.queue.remove(next));
        let (Some(number), Some(spec)) = (free, next) else {
            effects.push(Effect::ReturnPermit(permit));
            return;
        };
        self.queued_bytes -= weight::of_attempt(&spec);
        self.slots[number] = Slot::Busy(Busy::new(&spec, permit));
        let slot = SlotId(number as u32);
        effects.push(Effect::Spawn { slot, permit, attempt: Box::new(spec) });
    }

    fn spawned(&mut self, now: Tick, slot: SlotId, attempt: AttemptId, effects: &mut Vec<Effect>) {
        if let Some(Slot::Busy(busy)) = self.slot(slot)
            && busy.attempt == attempt
        {
            effects.push(Effect::Report(Report::Started { attempt, slot }));
            busy.started(now, slot, effects);
        }
    }

    fn exited(&mut self, exited: Exited, effects: &mut Vec<Effect>) {
        let Exited { slot, attempt, exit, duration, usage, leak, out_of_memory } = exited;
        let Some(busy) = self.release(slot, attempt, Slot::Free, effects) else { return };
        // A stop that came after the timeout doesn't unmake it.
        effects.push(Effect::Report(if busy.stopped && !busy.timed_out {
            let detail = busy.stopped_because().to_owned();
            Report::Lost { attempt, reason: LossReason::Stopped, detail }
        } else {
            Report::Finished(Finished {
                attempt,
                exit,
                timed_out: busy.timed_out,
                duration,
                leak,
                out_of_memory: out_of_memory && !busy.timed_out,
                usage,
                stdout: Output::default(),
                stderr: Output::default(),
                notes: Vec::new(),
            })
        }));
    }

    fn lost(
        &mut self,
        slot: SlotId,
        attempt: AttemptId,
        then: Slot,
        reason: LossReason,
        detail: String,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(busy) = self.release(slot, attempt, then, effects) {
            let reason = if busy.stopped { LossReason::Stopped } else { reason };
            effects.push(Effect::Report(Report::Lost { attempt, reason, detail }));
        }
    }

    fn gone(&mut self, slot: SlotId, detail: String, effects: &mut Vec<Effect>) {
        let attempt = match self.slot(slot) {
            Some(Slot::Busy(busy)) => Some(busy.attempt),
            Some(_) => None,
            None => return,
        };
        match attempt {
            Some(attempt) => {
                let then = Slot::Gone(detail.clone());
                self.lost(slot, attempt, then, LossReason::HelperDied, detail, effects);
            }
            None => self.slots[slot.0 as usize] = Slot::Gone(detail),
        }
    }

    /// Takes an attempt off its slot and gives its permit back. None if it isn't there: too late.
    fn release(
        &mut self,
        slot: SlotId,
        attempt: AttemptId,
        then: Slot,
        effects: &mut Vec<Effect>,
    ) -> Option<Busy> {
        #[cfg(feature = "mutations")]
        let keeps = self.mutation == Some(Mutation::KeepPlace);
        let place = self.slot(slot)?;
        match std::mem::replace(place, then) {
            #[cfg(feature = "mutations")]
            Slot::Busy(busy) if busy.attempt == attempt && busy.yielded && keeps => Some(busy),
            Slot::Busy(busy) if busy.attempt == attempt => {
                effects.push(Effect::ReturnPermit(busy.permit));
                Some(busy)
            }
            other => {
                *place = other;
                None
            }
        }
    }

    fn watch_clocks(&mut self, now: Tick, crowded: Option<bool>, effects: &mut Vec<Effect>) {
        if self.fence_at().is_some_and(|at| at <= now) {
            self.end(EndReason::Silent, now, Stop::Kill, effects);
        }
        if self.draining.is_some_and(|until| until <= now) {
            self.drop_queue(LossReason::Dropped, "the worker takes nothing more", effects);
        }
        for (number, slot) in self.slots.iter_mut().enumerate() {
            if let Slot::Busy(busy) = slot {
                busy.watch_clocks(now, SlotId(number as u32), effects);
            }
        }
        if let Some(crowded) = crowded {
            self.make_room(now, crowded, effects);
        }
    }

    /// Ends the attempt that does several things and is overdue the longest, if others wait.
    fn make_room(&mut self, now: Tick, crowded: bool, effects: &mut Vec<Effect>) {
        let slots = self.slots.iter_mut().enumerate();
        let mut overdue: Vec<_> = slots
            .filter_map(|(number, slot)| match slot {
                Slot::Busy(busy) if busy.yield_at.is_some_and(|at| at <= now) => {
                    Some((SlotId(number as u32), busy))
                }
                _ => None,
            })
            .collect();
        overdue.sort_by_key(|(slot, busy)| (busy.began, *slot));
        for (index, (slot, busy)) in overdue.into_iter().enumerate() {
            if crowded && index == 0 {
                busy.make_room(slot, effects);
            } else {
                busy.yield_at = Some(now.after(YIELD_AGAIN));
            }
        }
    }

    fn drop_what_can_never_run(&mut self, effects: &mut Vec<Effect>) {
        let why = self.slots.iter().try_fold("this session has no slots", |_, slot| match slot {
            Slot::Gone(why) => Some(why.as_str()),
            _ => None,
        });
        if let Some(why) = why.map(str::to_owned) {
            self.drop_queue(LossReason::HelperDied, &why, effects);
        }
    }

    fn drop_queue(&mut self, reason: LossReason, detail: &str, effects: &mut Vec<Effect>) {
        self.queued_bytes = 0;
        effects.extend(self.queue.drain(..).map(|spec| {
            let (attempt, detail) = (spec.id, detail.to_owned());
            Effect::Report(Report::Lost { attempt, reason, detail })
        }));
    }

    /// Takes back what was asked for and nothing wants any more. Only if it is more than one place,
    /// which stand empty until there are enough; one is given back when it comes.
    fn withdraw(&mut self, effects: &mut Vec<Effect>) {
        for (&places, asked) in self.asked.iter_mut().filter(|(places, _)| **places > 1) {
            let wanting = match self.draining {
                Some(_) => 0,
                None => self.queue.iter().filter(|spec| spec.places == places).count(),
            };
            for _ in wanting..*asked {
                effects.push(Effect::WithdrawPermit { places });
            }
            *asked = wanting.min(*asked);
        }
        self.asked.retain(|_, asked| *asked > 0);
    }

    fn ask(&mut self, effects: &mut Vec<Effect>) {
        if self.draining.is_some() {
            return;
        }
        let free = self.slots.iter().filter(|slot| matches!(slot, Slot::Free)).count();
        let mut left = self.slots.len() - self.asked.values().sum::<usize>();
        let mut wanted: BTreeMap<u32, usize> = BTreeMap::new();
        for spec in self.queue.iter().take(free) {
            let (places, wanted) = (spec.places, wanted.entry(spec.places).or_default());
            *wanted += 1;
            let asked = self.asked.entry(places).or_default();
            if *asked < *wanted && left > 0 {
                (*asked, left) = (*asked + 1, left - 1);
                effects.push(Effect::AskPermit { places });
            }
        }
        self.asked.retain(|_, asked| *asked > 0);
    }

    fn end_if_idle(&mut self, effects: &mut Vec<Effect>) {
        let idle = self.queue.is_empty() && self.running() == 0;
        // What runs is fenced as ever, so the session stays open as long.
        if self.phase == Phase::Open && self.draining.is_some() && idle {
            self.phase = Phase::Ending(EndReason::Drained);
        }
        if let Phase::Ending(reason) = self.phase
            && self.running() == 0
        {
            self.phase = Phase::Ended;
            effects.push(Effect::End(reason));
        }
    }

    fn tell_wake(&mut self, effects: &mut Vec<Effect>) {
        let clocks = self.busy().filter_map(Busy::next_clock);
        let dropping = self.draining.filter(|_| !self.queue.is_empty());
        let wake = clocks.chain(self.fence_at()).chain(dropping).min();
        if wake != self.wake {
            self.wake = wake;
            effects.extend(wake.map(Effect::WakeAt));
        }
    }

    /// When what runs is ended if the client says nothing until then.
    pub fn fence_at(&self) -> Option<Tick> {
        let armed = self.fenced && self.phase == Phase::Open;
        #[cfg(feature = "mutations")]
        if self.mutation == Some(Mutation::FenceByAnyWord) {
            return armed.then(|| self.last_word.after(FENCE_AFTER));
        }
        armed.then(|| self.last_word.after(FENCE_AFTER).min(self.proven.after(LEASE)))
    }

    fn slot(&mut self, slot: SlotId) -> Option<&mut Slot> {
        self.slots.get_mut(slot.0 as usize)
    }

    fn busy(&self) -> impl Iterator<Item = &Busy> {
        self.slots.iter().filter_map(|slot| match slot {
            Slot::Busy(busy) => Some(busy),
            _ => None,
        })
    }

    #[cfg(debug_assertions)]
    fn account(&mut self, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::Report(Report::Finished(_) | Report::Lost { .. }) => {
                    self.count.answered += 1;
                }
                #[cfg(feature = "mutations")]
                Effect::Revoked(_) if self.mutation == Some(Mutation::RevokeRunning) => {}
                Effect::Revoked(attempts) => self.count.revoked += attempts.len() as u64,
                _ => {}
            }
        }
    }
}

impl Tick {
    /// This much later. Saturates: a limit may be absurd.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}
