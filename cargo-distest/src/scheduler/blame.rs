//! Whose fault it is: a test that takes workers down, a worker that fails what others pass.

use std::time::Duration;

use distest_worker::protocol::{AttemptId, Stop};

use super::placement::Whom;
use super::special::LOSSES_ALONE_MAX;
use super::state::{Live, Role};
use super::{Effect, Mutation, Phase, Scheduler};
use crate::event::CancelReason;
use crate::model::{AttemptResult, TestIndex, WorkerId};

impl Scheduler {
    /// Takes an attempt off its worker, and out of its group. None if it isn't live there.
    pub(super) fn take_live(&mut self, worker: WorkerId, attempt: AttemptId) -> Option<Live> {
        let Some(live) = self.workers.take(worker, attempt) else { return self.late(attempt) };
        self.special.left(live.group);
        self.hedges.gone(attempt);
        #[cfg(test)]
        self.late.insert(attempt, live.clone());
        Some(live)
    }

    #[cfg(test)]
    fn late(&mut self, attempt: AttemptId) -> Option<Live> {
        self.late.remove(&attempt).filter(|_| self.has(Mutation::AcceptLateResult))
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "as in tests")]
    fn late(&mut self, _: AttemptId) -> Option<Live> {
        None
    }

    /// A worker gets nothing more, and keeps what it has until it is lost.
    pub(super) fn cut(&mut self, worker: WorkerId) {
        if self.has(Mutation::ReleaseGroupEarly) {
            for group in self.workers.groups_on(worker) {
                self.special.left(group);
            }
        }
        self.workers.cut(worker);
    }

    /// A test's process ran when its worker was lost, which is named as it joined first: it may be
    /// why, and runs with nothing beside it from now on.
    ///
    /// Being there proves nothing: only who was alone, again and again, is to blame. A worker that
    /// is lost by itself comes back, so that the same one twice says as much of the worker as of
    /// the test, unless there is no other.
    pub(super) fn suspect(&mut self, test: TestIndex, on: WorkerId, alone: bool) {
        self.lost_on(test, on);
        let story = &mut self.stories[test.0 as usize];
        story.suspect = true;
        if !alone {
            return;
        }
        story.alone_on.push(on);
        let culprit = self.is_culprit(test, on);
        self.stories[test.0 as usize].culprit = culprit;
    }

    /// Whether a test is to blame, now that a worker was lost under it alone.
    fn is_culprit(&self, test: TestIndex, on: WorkerId) -> bool {
        let story = &self.stories[test.0 as usize];
        let proves = || {
            let elsewhere = story.alone_on.iter().any(|other| *other != on);
            let needs = story.needs.as_deref();
            let other = self.workers.may_suit(story.binary, needs, Some(on));
            elsewhere || !other
        };
        story.alone_on.len() >= LOSSES_ALONE_MAX as usize && proves()
    }

    fn lost_on(&mut self, test: TestIndex, on: WorkerId) {
        let lost_on = &mut self.stories[test.0 as usize].lost_on;
        if !lost_on.contains(&on) {
            lost_on.push(on);
        }
    }

    /// A worker was lost that had said of this attempt neither that it started nor how it ended. It may be why,
    /// and proves nothing even where it was alone: it is lost at last, and never to blame. Who was lost
    /// before runs with nothing beside it from now on, so that it takes nobody with it.
    pub(super) fn lost_unstarted(
        &mut self,
        attempt: AttemptId,
        (test, number): (TestIndex, u32),
        on: WorkerId,
        effects: &mut Vec<Effect>,
    ) {
        self.lost_on(test, on);
        let story = &mut self.stories[test.0 as usize];
        story.suspect |= story.losses > 0;
        self.lost_attempt(attempt, test, number, effects);
    }

    /// Something went wrong here: rather elsewhere next time.
    pub(super) fn avoid(&mut self, test: TestIndex, worker: WorkerId) {
        if self.workers.len() > 1 {
            self.stories[test.0 as usize].avoid = Some(self.workers.first(worker));
        }
    }

    /// A test's process met an instruction that is unknown there: it runs once elsewhere, if it can,
    /// before it is judged.
    pub(super) fn end_by_illegal_instruction(
        &mut self,
        worker: WorkerId,
        attempt: AttemptId,
        duration: Duration,
        effects: &mut Vec<Effect>,
    ) {
        let test = self.workers.test_of(worker, attempt);
        let Some(test) = test.filter(|test| self.may_run_elsewhere(*test, worker)) else {
            return self.end(worker, attempt, AttemptResult::Crashed, duration, effects);
        };
        let Some(live) = self.take_live(worker, attempt) else { return };
        if live.role == Role::Abandoned {
            return;
        }
        self.workers.trouble(worker, true);
        // Who passes it elsewhere speaks against this worker.
        self.compare(test, worker, AttemptResult::Crashed, effects);
        let first = self.workers.first(worker);
        let story = &mut self.stories[test.0 as usize];
        story.avoid = Some(first);
        story.only_elsewhere = true;
        self.tell_lost(attempt, test, live.number, effects);
        if !self.goes_on(attempt, effects) {
            self.queue_again(test);
        }
    }

    fn may_run_elsewhere(&self, test: TestIndex, worker: WorkerId) -> bool {
        let story = &self.stories[test.0 as usize];
        let was_moved = story.only_elsewhere || self.phase.cancelled.is_some();
        let first = self.workers.first(worker);
        !was_moved && self.workers.may_suit(story.binary, story.needs.as_deref(), Some(first))
    }

    /// Learns from a test that fails here and passes there.
    pub(super) fn compare(
        &mut self,
        test: TestIndex,
        worker: WorkerId,
        result: AttemptResult,
        effects: &mut Vec<Effect>,
    ) {
        let story = &mut self.stories[test.0 as usize];
        if !result.passed() {
            story.failed_on.push(worker);
            return;
        }
        // Who fails it here and passes it here is no worse than others: the test is.
        let failed_on = std::mem::take(&mut story.failed_on);
        if failed_on.contains(&worker) {
            return;
        }
        for failed_on in failed_on {
            if self.workers.strike(failed_on) && self.phase.cancelled.is_none() {
                self.quarantine(failed_on, true, effects);
            }
        }
    }

    pub(super) fn quarantine(&mut self, worker: WorkerId, fails: bool, effects: &mut Vec<Effect>) {
        self.workers.quarantine(worker);
        self.phase.prepare = Whom::All;
        self.phase.stirred = true;
        self.phase.quarantined = true;
        effects.push(Effect::Quarantined { worker, fails });
    }

    /// Takes back what quarantined workers have not started.
    pub(super) fn clear_quarantined(&mut self, effects: &mut Vec<Effect>) {
        if !std::mem::take(&mut self.phase.quarantined) {
            return;
        }
        for (worker, attempts) in self.workers.held_by_quarantined() {
            self.workers.revoking(worker, true);
            effects.push(Effect::Revoke { worker, attempts });
        }
    }

    /// No worker will come. Nothing more is begun if none is there, or if one of the tests is to run
    /// where nobody is.
    pub(super) fn no_worker(&mut self, effects: &mut Vec<Effect>) {
        self.phase.nobody_comes = true;
        let at_once = self.workers.len() == 0 || self.has(Mutation::GiveUpAtOnce);
        if at_once || self.unplaceable().is_some() {
            self.end_without_worker(effects);
        }
    }

    /// Ends a run in which all is done but what nobody takes, now or later.
    pub(super) fn give_up(&mut self, effects: &mut Vec<Effect>) {
        let Phase { nobody_comes, all_added, cancelled, .. } = self.phase;
        let waits = self.queue.len() + self.special.len() > 0;
        if !nobody_comes || cancelled.is_some() || self.workers.outstanding() > 0 || !waits {
            return;
        }
        let takes = |binary| self.workers.may_take(binary);
        let somebody_takes = || self.queue.binaries().any(takes) || self.placeable().is_some();
        if self.workers.len() == 0 || all_added && !somebody_takes() {
            self.end_without_worker(effects);
        }
    }

    fn end_without_worker(&mut self, effects: &mut Vec<Effect>) {
        match self.unplaceable().filter(|_| self.workers.len() > 0) {
            Some((test, more)) => {
                effects.push(Effect::Unplaceable { test, more });
                self.cancel(CancelReason::Unplaceable, Stop::Kill, effects);
            }
            None => self.cancel(CancelReason::FleetLost, Stop::Kill, effects),
        }
    }
}
