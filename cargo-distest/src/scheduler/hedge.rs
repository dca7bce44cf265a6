//! Overdue attempts near the end of a run are started once more, on a worker that is idle.
//!
//! Only with [`super::Rules::hedge`], and only tests that may run twice at once: nobody in a group,
//! nobody who must be alone, nobody who shares a process. The first of the two that comes to an end
//! of its own decides. The other is *abandoned*: it is ended, keeps its place on its worker until
//! that is certain, has no say, and nothing is told of it. If one is lost, the other goes on as if it were the only one; if
//! one fails and the test may be tried again, the other is that try, under the next number ("The tail at scale", Dean and
//! Barroso 2013).

use std::collections::BTreeMap;
use std::time::Duration;

use distest_worker::protocol::{AttemptId, BinaryKey};

use super::choice::Past;
use super::company::Company;
use super::special::Wish;
use super::state::{Depth, Live, Role, Story};
use super::{Effect, Grant, Mutation, Scheduler};
use crate::model::{TestIndex, WorkerId};
use crate::plan::Urgency;

/// An attempt is overdue when it has run this many times as long as is expected where it runs,
const OVERDUE_TIMES: u32 = 2;
/// and at least this much longer.
const OVERDUE_BY: Duration = Duration::from_secs(1);

/// Attempts that concern this module.
#[derive(Debug, Default)]
pub(super) struct Hedges {
    /// They run far longer than expected, and where.
    overdue: BTreeMap<AttemptId, WorkerId>,
    /// Two attempts of one test that are under way, each with where the other is.
    twins: BTreeMap<AttemptId, (WorkerId, AttemptId)>,
}

impl Hedges {
    /// An attempt is with nobody any more.
    pub(super) fn gone(&mut self, attempt: AttemptId) {
        self.overdue.remove(&attempt);
    }

    /// Parts an attempt from its twin; answers who that is.
    fn part(&mut self, attempt: AttemptId) -> Option<(WorkerId, AttemptId)> {
        let (worker, twin) = self.twins.remove(&attempt)?;
        self.twins.remove(&twin);
        Some((worker, twin))
    }
}

impl Story {
    /// Two attempts of it may be alive at once.
    fn may_be_hedged(&self) -> bool {
        let free =
            self.needs.as_ref().is_none_or(|needs| needs.group.is_none() && !needs.exclusive);
        let known = matches!(self.rank.urgency, Urgency::Known | Urgency::Failed);
        let timed = known && !self.rank.expected.0.is_zero();
        timed && free && !self.suspect && !self.only_elsewhere && self.company.is_none()
    }
}

impl Scheduler {
    /// An attempt's process runs: ends it if nobody waits for it any more, else has its time
    /// watched if it may ever be hedged.
    pub(super) fn watch(
        &mut self,
        worker: WorkerId,
        attempt: AttemptId,
        effects: &mut Vec<Effect>,
    ) {
        let Some(live) = self.workers.live(worker, attempt) else { return };
        if live.role == Role::Abandoned {
            effects.push(Effect::Kill { worker, attempt });
            return;
        }
        let alone = live.role == Role::Only && live.company == Company::Alone;
        let story = &self.stories[live.test.0 as usize];
        let hedged = story.may_be_hedged() || self.has(Mutation::HedgeAnybody);
        if !self.rules.hedge || !alone || !hedged {
            return;
        }
        let expected = story.rank.expected.0.div_f64(self.workers.speed(worker));
        let after = (expected * OVERDUE_TIMES).max(expected + OVERDUE_BY);
        effects.push(Effect::Watch { worker, attempt, after });
    }

    /// An attempt has run far longer than expected.
    pub(super) fn overdue(&mut self, worker: WorkerId, attempt: AttemptId) {
        self.workers.late(worker, attempt);
        let watched = self.workers.live(worker, attempt);
        let watched = watched.filter(|live| live.role == Role::Only && live.started);
        let may = watched.is_some_and(|live| {
            let story = &self.stories[live.test.0 as usize];
            let fit = live.company == Company::Alone && story.may_be_hedged();
            fit || self.has(Mutation::HedgeAnybody)
        });
        if self.rules.hedge && may {
            self.hedges.overdue.insert(attempt, worker);
        }
    }

    /// Binaries of overdue attempts: whoever is idle may be asked to get ready for them.
    pub(super) fn overdue_binaries(&self) -> impl Iterator<Item = BinaryKey> {
        self.hedges.overdue.iter().filter_map(|(attempt, worker)| {
            let test = self.workers.test_of(*worker, *attempt)?;
            Some(self.stories[test.0 as usize].binary)
        })
    }

    /// Nothing waits: starts overdue attempts once more where a slot is free.
    pub(super) fn hedge(&mut self, effects: &mut Vec<Effect>) {
        if self.special.len() > 0 {
            return;
        }
        let overdue: Vec<_> = self.hedges.overdue.iter().map(|(it, on)| (*it, *on)).collect();
        for (attempt, worker) in overdue {
            if self.hedges.twins.contains_key(&attempt) {
                continue;
            }
            if let Some(test) = self.workers.test_of(worker, attempt) {
                self.hedge_one(test, worker, attempt, effects);
            }
        }
    }

    fn hedge_one(
        &mut self,
        test: TestIndex,
        on: WorkerId,
        overdue: AttemptId,
        effects: &mut Vec<Effect>,
    ) {
        let Story { binary, number, free, .. } = self.stories[test.0 as usize];
        let story = &self.stories[test.0 as usize];
        let permits = self.permits();
        let threads = story.threads().min(self.rules.threads.unwrap_or(u32::MAX).max(1));
        let wish = Wish {
            test,
            binary,
            needs: story.needs.as_deref(),
            solo: false,
            threads,
            per_worker: None,
            group: None,
            past: Past {
                avoid: Some(self.workers.first(on)),
                only_elsewhere: true,
                ..story.past()
            },
        };
        let found = self.workers.suitable(&wish, Depth::Slots);
        let found = found.filter(|(worker, weight)| *worker != on && *weight <= permits);
        let Some((worker, weight)) = found else { return };
        let expected = story.rank.expected.0;
        let attempt = self.next_attempt();
        let company = Company::Alone;
        let live = Live {
            weight,
            role: Role::Second,
            expected,
            fresh: true,
            ..Live::new(test, number, company.clone())
        };
        self.workers.grant(worker, attempt, live);
        self.hedges.twins.insert(overdue, (worker, attempt));
        self.hedges.twins.insert(attempt, (on, overdue));
        effects.push(Effect::Hedged { test, number, overdue: on, worker });
        let (alone, places) = (number - free, threads.max(1));
        let grants = vec![Grant { attempt, test, number, alone, places, company }];
        effects.push(Effect::Lease { worker, grants });
    }

    /// An attempt came to no end of its own. True if its twin goes on, as the only one now.
    pub(super) fn goes_on(&mut self, attempt: AttemptId, effects: &mut Vec<Effect>) -> bool {
        let Some((worker, twin)) = self.hedges.part(attempt) else { return false };
        if self.has(Mutation::ForgetTwin) {
            return false;
        }
        self.workers.set_role(worker, twin, Role::Only);
        if let Some(live) = self.workers.live(worker, twin) {
            let number = self.stories[live.test.0 as usize].number;
            self.workers.renumber(worker, twin, number);
            effects.push(Effect::GoesOn { attempt: twin, number });
        }
        true
    }

    /// An attempt has come to an end that decides: its twin, if it has one, is ended.
    pub(super) fn abandon_twin(&mut self, attempt: AttemptId, effects: &mut Vec<Effect>) {
        let Some((worker, attempt)) = self.hedges.part(attempt) else { return };
        if self.has(Mutation::HeedBoth) {
            return self.workers.set_role(worker, attempt, Role::Second);
        }
        self.hedges.gone(attempt);
        let Some(live) = self.workers.live(worker, attempt) else { return };
        let (started, test) = (live.started, live.test);
        self.workers.set_role(worker, attempt, Role::Abandoned);
        effects.push(Effect::Abandoned { attempt, test });
        effects.push(match started {
            true => Effect::Kill { worker, attempt },
            false => Effect::Revoke { worker, attempts: vec![attempt] },
        });
    }
}
