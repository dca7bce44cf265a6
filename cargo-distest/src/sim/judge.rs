//! What really happened. Knows every process, and nothing of what anybody says of them.

use std::collections::{BTreeMap, BTreeSet};

use distest_worker::protocol::AttemptId;

use super::scenario::{Nature, Scenario};
use super::world::ConnId;
use crate::event::CancelReason;
use crate::model::{AttemptResult, TestIndex, Verdict};
use crate::scheduler::{LOSSES_ALONE_MAX, LOSSES_MAX, Needs};

/// A test's process, or a batch's while it runs this test.
#[derive(Clone, Copy, Debug)]
pub(super) struct Alive {
    pub(super) test: TestIndex,
    pub(super) conn: ConnId,
    pub(super) slots: u32,
    pub(super) in_batch: bool,
}

/// A worker that was lost while it was kept for one test.
#[derive(Clone, Copy, Debug)]
struct LostAlone {
    host: usize,
    /// Another worker was there that might take the test.
    choice: bool,
}

#[derive(Debug, Default)]
pub(super) struct Judge {
    alive: BTreeMap<AttemptId, Alive>,
    /// How attempts ended that really ran to their end.
    ended: BTreeMap<(TestIndex, AttemptId), BTreeSet<AttemptResult>>,
    verdicts: BTreeMap<TestIndex, Verdict>,
    /// How many attempts of a test were told of.
    told: BTreeMap<TestIndex, u32>,
    losses: BTreeMap<TestIndex, u32>,
    /// Workers that were lost when they had nothing but this test.
    lost_alone: BTreeMap<TestIndex, Vec<LostAlone>>,
    culprits: BTreeSet<AttemptId>,
    /// Attempts that ever had a process.
    begun: BTreeSet<AttemptId>,
    /// Attempts that were on lost workers behind as many others as these have slots, and never began.
    waited: BTreeSet<AttemptId>,
    /// Tests that were started once more while they ran.
    hedged: BTreeMap<TestIndex, u32>,
    cancelled: bool,
    /// Sessions of which nothing may be alive any more.
    dead: BTreeSet<ConnId>,
}

impl Judge {
    pub(super) fn begins(&mut self, attempt: AttemptId, alive: Alive) {
        self.alive.insert(attempt, alive);
        self.begun.insert(attempt);
    }

    /// The process is gone, without an end of its own.
    pub(super) fn dies(&mut self, attempt: AttemptId) {
        self.alive.remove(&attempt);
    }

    pub(super) fn ends(&mut self, test: TestIndex, attempt: AttemptId, result: AttemptResult) {
        self.ended.entry((test, attempt)).or_default().insert(result);
    }

    /// Tests that nobody takes are no reason to end what others run.
    pub(super) fn cancelled(&mut self, reason: CancelReason, running: u32) -> Result<(), String> {
        self.cancelled = true;
        match (reason, running) {
            (CancelReason::FleetLost, 1..) => {
                Err(format!("the run ends for lack of a worker while {running} attempts run"))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn hedged(&mut self, test: TestIndex) {
        *self.hedged.entry(test).or_default() += 1;
    }

    /// How often tests were started once more.
    pub(super) fn hedges(&self) -> u32 {
        self.hedged.values().sum()
    }

    pub(super) fn blamed(&mut self, attempt: AttemptId) {
        self.culprits.insert(attempt);
    }

    pub(super) fn lost_alone(
        &mut self,
        scenario: &Scenario,
        test: TestIndex,
        (host, choice): (usize, bool),
    ) {
        let needs = scenario.tests[test.0 as usize].task.needs.as_deref();
        // Only who is kept from others is alone on purpose.
        let kept = self.losses.contains_key(&test) || needs.is_some_and(|needs| needs.exclusive);
        if kept {
            self.lost_alone.entry(test).or_default().push(LostAlone { host, choice });
        }
    }

    /// Whether a worker was lost that was kept for this test.
    pub(super) fn was_lost_alone(&self, test: TestIndex) -> bool {
        self.lost_alone.contains_key(&test)
    }

    /// As [`Judge::was_lost_alone`], and each time it was this worker.
    pub(super) fn was_lost_alone_only_on(&self, test: TestIndex, host: usize) -> bool {
        let losses = self.lost_alone.get(&test);
        losses.is_some_and(|losses| losses.iter().all(|loss| loss.host == host))
    }

    /// Two losses that have nothing to do with the one test that was there both times can't be told
    /// from its guilt, by anybody, if these were two workers, or the same while no other was there.
    fn seems_guilty(&self, test: TestIndex) -> bool {
        let losses = self.lost_alone.get(&test).map_or(&[][..], Vec::as_slice);
        let [.., last] = losses else { return false };
        let elsewhere = losses.iter().any(|loss| loss.host != last.host);
        losses.len() >= LOSSES_ALONE_MAX as usize && (elsewhere || !last.choice)
    }

    /// An attempt was on a lost worker, behind as many others as that has slots.
    pub(super) fn waited(&mut self, attempt: AttemptId) {
        if !self.begun.contains(&attempt) {
            self.waited.insert(attempt);
        }
    }

    pub(super) fn session_lost(&mut self, conn: ConnId) {
        self.dead.insert(conn);
    }

    pub(super) fn verdicts(&self) -> &BTreeMap<TestIndex, Verdict> {
        &self.verdicts
    }

    pub(super) fn attempt_ended(
        &mut self,
        scenario: &Scenario,
        attempt: AttemptId,
        (test, number): (TestIndex, u32),
        result: AttemptResult,
    ) -> Result<(), String> {
        let told = self.told.entry(test).or_default();
        if number != *told + 1 {
            return Err(format!("try {number} of {test:?} is told after {told} others"));
        }
        *told += 1;
        if let Some(verdict) = self.verdicts.get(&test) {
            return Err(format!("try {number} of {test:?} is told after {verdict:?}"));
        }
        if result == AttemptResult::Lost {
            if self.waited.contains(&attempt) {
                return Err(format!("{attempt:?} of {test:?} is lost, and waited behind others"));
            }
            *self.losses.entry(test).or_default() += 1;
            let innocent = scenario.tests[test.0 as usize].nature != Nature::Kills;
            if self.culprits.contains(&attempt) && innocent && !self.seems_guilty(test) {
                return Err(format!("{test:?} is blamed for what it did not do"));
            }
            return Ok(());
        }
        match self.ended.get(&(test, attempt)) {
            Some(really) if really.contains(&result) => Ok(()),
            really => {
                Err(format!("{attempt:?} of {test:?} is said to be {result:?}, it is {really:?}"))
            }
        }
    }

    pub(super) fn verdict(&mut self, test: TestIndex, verdict: Verdict) -> Result<(), String> {
        if let Some(before) = self.verdicts.insert(test, verdict) {
            return Err(format!("{test:?} is judged twice: {before:?}, then {verdict:?}"));
        }
        let of_test = (test, AttemptId(0))..=(test, AttemptId(u64::MAX));
        let ends: BTreeSet<_> =
            self.ended.range(of_test).flat_map(|(_, results)| results.iter().copied()).collect();
        let passed = ends.contains(&AttemptResult::Pass);
        let failed = ends.iter().any(|result| !result.passed());
        let losses = self.losses.get(&test).copied().unwrap_or(0);
        let blamed = !self.culprits.is_empty();
        let true_of_it = match verdict {
            Verdict::Pass => passed,
            Verdict::Flaky => passed && failed,
            Verdict::Fail => ends.contains(&AttemptResult::Fail),
            Verdict::Timeout => ends.contains(&AttemptResult::Timeout),
            Verdict::Crashed => ends.contains(&AttemptResult::Crashed),
            Verdict::Skipped => self.cancelled,
            Verdict::Lost => self.cancelled || losses >= LOSSES_MAX || blamed,
        };
        match true_of_it {
            true => Ok(()),
            false => Err(format!("{test:?} is {verdict:?} and ended {ends:?}, {losses} lost")),
        }
    }

    /// Who may be alive beside whom.
    pub(super) fn check(&self, scenario: &Scenario) -> Result<(), String> {
        let mut tests: BTreeMap<TestIndex, ConnId> = BTreeMap::new();
        let mut twice = BTreeSet::new();
        let mut groups: BTreeMap<_, u32> = BTreeMap::new();
        let mut hosts: BTreeMap<ConnId, (u32, bool)> = BTreeMap::new();
        for alive in self.alive.values() {
            let test = alive.test;
            if let Some(other) = tests.insert(test, alive.conn) {
                // Only a hedge is two, on two workers, and nobody but who may be hedged.
                let task = &scenario.tests[test.0 as usize].task;
                let needs = task.needs.as_deref();
                let may = needs.is_none_or(|needs| needs.group.is_none() && !needs.exclusive);
                let hedged = scenario.rules.hedge && self.hedged.contains_key(&test);
                if !hedged || !may || alive.in_batch || other == alive.conn || !twice.insert(test) {
                    return Err(format!("{test:?} is alive twice"));
                }
            }
            if self.dead.contains(&alive.conn) {
                return Err(format!("{test:?} outlives its worker's loss on {:?}", alive.conn));
            }
            let needs = scenario.tests[test.0 as usize].task.needs.as_deref();
            if let Some(group) = needs.and_then(|needs| needs.group) {
                let alive = groups.entry(group).or_default();
                *alive += 1;
                let group = &scenario.groups[group.0 as usize];
                if group.threads_max.is_some_and(|max| *alive > max) {
                    return Err(format!("{alive} of group {} are alive", group.name));
                }
            }
            let beside = hosts.entry(alive.conn).or_default();
            let exclusive = needs.is_some_and(|needs: &Needs| needs.exclusive);
            let threads_max = scenario.rules.threads.unwrap_or(u32::MAX).min(alive.slots);
            beside.0 += needs.map_or(1, |needs| needs.threads.clamp(1, threads_max.max(1)));
            beside.1 |= exclusive;
            if beside.0 > alive.slots && !alive.in_batch {
                let beside = self.alive.values().filter(|other| other.conn == alive.conn);
                let beside: Vec<_> = beside
                    .map(|other| (other.test, &scenario.tests[other.test.0 as usize].task.needs))
                    .collect();
                return Err(format!("too much is alive on {:?}: {beside:?}", alive.conn));
            }
        }
        let mut counts: BTreeMap<ConnId, u32> = BTreeMap::new();
        for alive in self.alive.values() {
            *counts.entry(alive.conn).or_default() += 1;
        }
        let crowded = hosts.iter().find(|(conn, (_, lone))| *lone && counts[conn] > 1);
        match crowded {
            Some((conn, _)) => Err(format!("an exclusive test is not alone on {conn:?}")),
            None => Ok(()),
        }
    }

    /// What must hold when the run has ended and everything was closed.
    pub(super) fn check_end(&self, scenario: &Scenario) -> Result<(), String> {
        if self.verdicts.len() != scenario.tests.len() {
            let (judged, known) = (self.verdicts.len(), scenario.tests.len());
            return Err(format!("{judged} of {known} tests are judged"));
        }
        match self.alive.first_key_value() {
            Some((attempt, alive)) => Err(format!("{attempt:?} runs on: {alive:?}")),
            None => Ok(()),
        }
    }
}
