//! What becomes of tests that share a process: they keep what nothing speaks against, and run
//! again alone otherwise.

use std::sync::Arc;
use std::time::Duration;

use distest_worker::protocol::AttemptId;

use super::company::{Acquainted, Batch, Company, InBatch, Returned};
use super::state::{FailedAlone, Live, Story};
use super::{Effect, Scheduler};
use crate::model::{AttemptResult, TestIndex, Verdict, WorkerId};
use crate::plan::{Rank, Urgency};

/// Witnesses in a run who may see in vain whether a test that fails alone passes in company. Where
/// so many fail in either way the code is at fault, and each witness is another batch.
pub(super) const WITNESSES_MAX: u32 = 32;

impl Scheduler {
    /// Puts tests that wait by themselves together.
    pub(super) fn batch(&mut self, batches: Vec<Batch>, acquainted: Vec<Acquainted>) {
        if self.phase.cancelled.is_some() {
            return;
        }
        for Acquainted { test, company } in acquainted {
            if self.stories[test.0 as usize].is_special() {
                continue;
            }
            self.stories[test.0 as usize].company = Some(company);
        }
        for Batch { binary, tests, expected } in batches {
            let waiting: Arc<[TestIndex]> = tests
                .iter()
                .copied()
                .filter(|test| {
                    let story = &self.stories[test.0 as usize];
                    story.binary == binary && self.queue.remove(binary, story.rank, *test)
                })
                .collect();
            let Some(first) = waiting.first().copied() else { continue };
            let rank = Rank { urgency: Urgency::Known, expected: std::cmp::Reverse(expected) };
            self.queue.insert(binary, rank, first, Company::Batch(waiting));
        }
    }

    pub(super) fn end_batch(
        &mut self,
        worker: WorkerId,
        attempt: AttemptId,
        returned: &[Returned],
        duration: Duration,
        effects: &mut Vec<Effect>,
    ) {
        // As with a single test: whoever is not live has no say.
        let Some(live) = self.take_live(worker, attempt) else { return };
        self.workers.learn(worker, duration);
        self.batch_ended(attempt, &live.company, live.test, returned, effects);
    }

    pub(super) fn batch_ended(
        &mut self,
        attempt: AttemptId,
        company: &Company,
        test: TestIndex,
        returned: &[Returned],
        effects: &mut Vec<Effect>,
    ) {
        let outcome = |index: usize| {
            returned.get(index).map_or(InBatch::NotReached, |returned| returned.outcome)
        };
        if let Company::Witness(_) = company {
            return self.heard_witness(test, outcome(0) == InBatch::Passed, effects);
        }
        for (index, test) in company.counted(&test).iter().enumerate() {
            self.test_returned(attempt, *test, outcome(index), effects);
        }
    }

    fn test_returned(
        &mut self,
        attempt: AttemptId,
        test: TestIndex,
        outcome: InBatch,
        effects: &mut Vec<Effect>,
    ) {
        let cancelled = self.phase.cancelled.is_some();
        let story = &mut self.stories[test.0 as usize];
        let result = match outcome {
            InBatch::Passed => Some(AttemptResult::Pass),
            InBatch::Failed => Some(AttemptResult::Fail),
            InBatch::Interrupted => Some(AttemptResult::Lost),
            InBatch::Unsure => cancelled.then_some(AttemptResult::Lost),
            InBatch::NotReached => None,
        };
        if let Some(result) = result {
            let will_retry = result == AttemptResult::Fail && !cancelled;
            let (number, only_in_company) = (story.number, false);
            let ended =
                Effect::AttemptEnded { attempt, test, number, result, will_retry, only_in_company };
            effects.push(ended);
        }
        if outcome == InBatch::Passed {
            let verdict = story.verdict_after(AttemptResult::Pass);
            return self.decide(test, verdict, effects);
        }
        if cancelled {
            let verdict = match outcome {
                InBatch::Failed => Verdict::Fail,
                InBatch::NotReached => Verdict::Skipped,
                InBatch::Passed | InBatch::Interrupted | InBatch::Unsure => Verdict::Lost,
            };
            return self.decide(test, verdict, effects);
        }
        if outcome == InBatch::Failed {
            story.failed_before = Some(AttemptResult::Fail);
        }
        if result.is_some() {
            story.number += 1;
            story.free += 1;
        }
        effects.push(Effect::RunsAgainAlone { test, outcome });
        self.queue_again(test);
    }

    /// A batch that was handed out in vain and never started waits again.
    pub(super) fn requeue_batch(
        &mut self,
        test: TestIndex,
        company: Company,
        effects: &mut Vec<Effect>,
    ) {
        if self.phase.cancelled.is_none() {
            return self.queue_in_company(test, company);
        }
        match company {
            Company::Witness(_) => self.heard_witness(test, false, effects),
            Company::Alone | Company::Batch(_) => {
                for test in company.counted(&test) {
                    self.decide(*test, Verdict::Skipped, effects);
                }
            }
        }
    }

    /// A batch whose worker is gone: the test that ran then may be why, and runs alone. So does the
    /// first if nobody said that the batch had started, and it may have.
    pub(super) fn lose_batch(
        &mut self,
        attempt: AttemptId,
        live: Live,
        (on, may_have_begun): (WorkerId, bool),
        effects: &mut Vec<Effect>,
    ) {
        let Live { test, company, started, finished, .. } = live;
        let begun = started || may_have_begun;
        let tests = match &company {
            Company::Batch(tests) if begun => Arc::clone(tests),
            Company::Witness(_) if begun => return self.heard_witness(test, false, effects),
            _ => return self.requeue_batch(test, company, effects),
        };
        let ran = tests.get(finished as usize).copied();
        if let Some(test) = ran {
            let number = self.stories[test.0 as usize].number;
            if started {
                self.suspect(test, on, false);
                self.lost_attempt(attempt, test, number, effects);
            } else {
                self.lost_unstarted(attempt, (test, number), on, effects);
            }
            self.requeue(test, true, effects);
        }
        let rest: Arc<[TestIndex]> =
            tests.iter().copied().filter(|test| Some(*test) != ran).collect();
        if let Some(first) = rest.first().copied() {
            self.requeue_batch(first, Company::Batch(rest), effects);
        }
    }

    /// Whether it is to be seen if a test that failed alone passes in company. Of one that took too
    /// long it isn't: it might take that long again.
    pub(super) fn wants_witness(&self, test: TestIndex, result: AttemptResult) -> bool {
        let known = self.stories[test.0 as usize].company.is_some();
        known && result != AttemptResult::Timeout && self.witnesses < WITNESSES_MAX
    }

    /// A test has failed alone: whether it passes in company is to be told with its failure.
    pub(super) fn seek_witness(&mut self, failed: FailedAlone, test: TestIndex) {
        let story = &mut self.stories[test.0 as usize];
        story.failed_alone = Some(failed);
        let Some(company) = story.company.take() else { return };
        self.witnesses += 1;
        // Whoever needs what a batch doesn't have, or may take a worker down, is left out.
        let tame = |it: &TestIndex| {
            let story = &self.stories[it.0 as usize];
            *it == test || (story.needs.is_none() && !story.suspect)
        };
        let company = match company.iter().all(tame) {
            true => company,
            false => company.iter().copied().filter(tame).collect(),
        };
        self.queue_in_company(test, Company::Witness(company));
    }

    /// Tells of a test that has failed alone.
    pub(super) fn heard_witness(
        &mut self,
        test: TestIndex,
        only_in_company: bool,
        effects: &mut Vec<Effect>,
    ) {
        let story = &mut self.stories[test.0 as usize];
        let Some(FailedAlone { attempt, number, result }) = story.failed_alone.take() else {
            return;
        };
        let verdict = story.verdict_after(result);
        self.witnesses -= u32::from(only_in_company);
        let will_retry = false;
        let ended =
            Effect::AttemptEnded { attempt, test, number, result, will_retry, only_in_company };
        effects.push(ended);
        self.decide(test, verdict, effects);
    }
}

impl Story {
    /// The verdict, if the last attempt ended like this.
    pub(super) fn verdict_after(&self, result: AttemptResult) -> Verdict {
        match result {
            AttemptResult::Pass | AttemptResult::Leak if self.failed_before.is_some() => {
                Verdict::Flaky
            }
            AttemptResult::Pass | AttemptResult::Leak => Verdict::Pass,
            AttemptResult::Timeout => Verdict::Timeout,
            AttemptResult::Crashed => Verdict::Crashed,
            AttemptResult::Fail | AttemptResult::Lost => Verdict::Fail,
        }
    }
}
