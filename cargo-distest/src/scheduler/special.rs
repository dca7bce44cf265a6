//! Tests that can't run just anywhere beside just anybody: those with needs, and suspects.
//!
//! A test is a *suspect* if its process ran when its worker was lost. It runs again with nothing
//! else on its worker, so that a second loss says who did it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use distest_worker::protocol::BinaryKey;

use super::choice::Past;
use super::company::Company;
use super::needs::{Group, GroupIndex, Needs};
use super::state::{Depth, Live, Story, Worker, Workers};
use super::{Effect, Grant, Mutation, Scheduler};
use crate::model::{TestIndex, WorkerId};
use crate::plan::Rank;

/// Tests of one group, or without a group, that are considered at a time.
const SCAN_MAX: usize = 256;
/// Losses of a worker under the same lone test after which that test is to blame.
pub const LOSSES_ALONE_MAX: u32 = 2;

/// Smaller is sooner.
type Key = (Reverse<i8>, Rank, TestIndex);

/// Tests that wait for a place that suits them.
#[derive(Debug, Default)]
pub(super) struct Special {
    groups: Vec<Group>,
    /// Attempts of each group that are with workers.
    alive: Vec<u32>,
    waiting: BTreeMap<Option<GroupIndex>, BTreeSet<Key>>,
    /// How many wait of each binary.
    by_binary: BTreeMap<BinaryKey, usize>,
    len: usize,
}

impl Special {
    pub(super) fn new(groups: Vec<Group>) -> Self {
        Self { alive: vec![0; groups.len()], groups, ..Self::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    fn insert(&mut self, story: &Story, rank: Rank, test: TestIndex) {
        let key = (Reverse(story.priority()), rank, test);
        let added = self.waiting.entry(story.group()).or_default().insert(key);
        debug_assert!(added, "{test:?} waits already");
        *self.by_binary.entry(story.binary).or_default() += 1;
        self.len += 1;
    }

    fn remove(&mut self, story: &Story, key: &Key) {
        let Some(waiting) = self.waiting.get_mut(&story.group()) else { return };
        if !waiting.remove(key) {
            return;
        }
        if waiting.is_empty() {
            self.waiting.remove(&story.group());
        }
        self.len -= 1;
        if let Some(count) = self.by_binary.get_mut(&story.binary) {
            *count -= 1;
            if *count == 0 {
                self.by_binary.remove(&story.binary);
            }
        }
    }

    /// Whether tests of this binary wait here.
    pub(super) fn has(&self, binary: BinaryKey) -> bool {
        self.by_binary.contains_key(&binary)
    }

    /// Binaries of tests that wait here.
    pub(super) fn binaries(&self) -> impl Iterator<Item = BinaryKey> {
        self.by_binary.keys().copied()
    }

    /// A waiting test has another rank than `before`. False if it doesn't wait here.
    pub(super) fn rerank(&mut self, story: &Story, before: Rank, test: TestIndex) -> bool {
        let (group, before) = (story.group(), (Reverse(story.priority()), before, test));
        let waits = self.waiting.get(&group).is_some_and(|waiting| waiting.contains(&before));
        if waits {
            self.remove(story, &before);
            self.insert(story, story.rank, test);
        }
        waits
    }

    /// Every waiting test, by number.
    pub(super) fn drain(&mut self) -> Vec<TestIndex> {
        self.len = 0;
        self.by_binary.clear();
        let waiting = std::mem::take(&mut self.waiting).into_values().flatten();
        let mut tests: Vec<_> = waiting.map(|(_, _, test)| test).collect();
        tests.sort_unstable();
        tests
    }

    pub(super) fn tests(&self) -> impl Iterator<Item = TestIndex> {
        self.waiting.values().flatten().map(|(_, _, test)| *test)
    }

    pub(super) fn has_room(&self, group: Option<GroupIndex>) -> bool {
        let Some(GroupIndex(index)) = group else { return true };
        let max = self.groups.get(index as usize).and_then(|group| group.threads_max);
        max.is_none_or(|max| self.alive[index as usize] < max)
    }

    /// A group whose tests don't wait for each other.
    fn is_unbounded(&self, group: Option<GroupIndex>) -> bool {
        let group = group.and_then(|GroupIndex(index)| self.groups.get(index as usize));
        group.is_none_or(|group| group.threads_max.is_none() && group.per_worker.is_none())
    }

    pub(super) fn per_worker(&self, group: Option<GroupIndex>) -> Option<u32> {
        self.groups.get(group?.0 as usize)?.per_worker
    }

    pub(super) fn entered(&mut self, group: Option<GroupIndex>) {
        if let Some(alive) = group.and_then(|GroupIndex(index)| self.alive.get_mut(index as usize))
        {
            *alive += 1;
        }
    }

    pub(super) fn left(&mut self, group: Option<GroupIndex>) {
        if let Some(alive) = group.and_then(|GroupIndex(index)| self.alive.get_mut(index as usize))
        {
            *alive -= 1;
        }
    }

    /// What must hold after every step.
    pub(super) fn check(&self) -> Result<(), String> {
        for (group, alive) in self.groups.iter().zip(&self.alive) {
            if group.threads_max.is_some_and(|max| *alive > max) {
                return Err(format!("{alive} attempts of group {} are live", group.name));
            }
        }
        Ok(())
    }
}

impl Story {
    /// It may not run just anywhere.
    pub(super) fn is_special(&self) -> bool {
        self.needs.is_some() || self.suspect || self.avoid.is_some()
    }

    /// Nothing else may run beside it.
    pub(super) fn solo(&self) -> bool {
        self.suspect || self.needs.as_ref().is_some_and(|needs| needs.exclusive)
    }

    /// It may be handed out before there is a slot for it: nobody else waits for what it would hold
    /// meanwhile.
    fn may_wait_anywhere(&self) -> bool {
        self.threads() == 1 && !self.solo() && self.avoid.is_none()
    }

    fn priority(&self) -> i8 {
        self.needs.as_ref().map_or(0, |needs| needs.priority)
    }

    pub(super) fn group(&self) -> Option<GroupIndex> {
        self.needs.as_ref().and_then(|needs| needs.group)
    }

    pub(super) fn threads(&self) -> u32 {
        self.needs.as_ref().map_or(1, |needs| needs.threads.max(1))
    }
}

impl Scheduler {
    pub(super) fn wait_specially(&mut self, rank: Rank, test: TestIndex) {
        self.special.insert(&self.stories[test.0 as usize], rank, test);
    }

    /// The first waiting test that is to run where no worker is, and how many others there are.
    pub(super) fn unplaceable(&self) -> Option<(TestIndex, u32)> {
        let mut unplaceable = self.special.tests().filter(|test| {
            let needs = self.stories[test.0 as usize].needs.as_deref();
            let met = |worker: &Worker| needs.is_none_or(|needs| needs.met_by(worker.traits()));
            !self.workers.all().any(|(_, worker)| met(worker))
        });
        unplaceable.next().map(|first| (first, unplaceable.count() as u32))
    }

    /// A waiting test that no worker here will ever take.
    pub(super) fn homeless(&self) -> Option<TestIndex> {
        self.special.tests().find(|test| !self.may_be_placed(*test))
    }

    /// A waiting test that a worker here may yet take.
    pub(super) fn placeable(&self) -> Option<TestIndex> {
        self.special.tests().find(|test| self.may_be_placed(*test))
    }

    pub(super) fn may_be_placed(&self, test: TestIndex) -> bool {
        let story = &self.stories[test.0 as usize];
        self.workers.may_suit(story.binary, story.needs.as_deref(), None)
    }

    /// Gives what waits here a place, if there is one, or reserves one.
    pub(super) fn place_special(&mut self, urgent: bool, effects: &mut Vec<Effect>) {
        if self.special.len() == 0 {
            return;
        }
        // Whoever keeps a worker from others goes on with it, whatever became urgent meanwhile.
        let reserved = self.workers.reserved_for();
        let with_room = self.special.waiting.iter();
        let with_room = with_room.filter(|(group, _)| self.special.has_room(**group));
        let wanted = with_room.flat_map(|(group, keys)| {
            let keys = keys.iter().filter(|(Reverse(priority), _, test)| {
                (*priority >= 0 || reserved.contains(test)) == urgent
            });
            keys.take(SCAN_MAX).map(|key| (*key, *group))
        });
        let mut wanted: Vec<_> = wanted.collect();
        wanted.sort_unstable();
        for (key, group) in wanted {
            if self.special.has_room(group) {
                self.place(key, group, effects);
            }
        }
        // Others of the group have taken its places: nothing is kept for who may not run.
        for test in self.workers.reserved_for() {
            if !self.special.has_room(self.stories[test.0 as usize].group()) {
                self.workers.unreserve(test);
            }
        }
    }

    fn place(&mut self, key: Key, group: Option<GroupIndex>, effects: &mut Vec<Effect>) {
        let (Reverse(priority), _, test) = key;
        let story = &self.stories[test.0 as usize];
        let permits = self.permits();
        let threads = story.threads().min(self.rules.threads.unwrap_or(u32::MAX).max(1));
        let wish = Wish {
            test,
            binary: story.binary,
            needs: story.needs.as_deref(),
            solo: story.solo(),
            threads,
            per_worker: self.special.per_worker(group),
            group,
            past: story.past(),
        };
        let ahead = story.may_wait_anywhere() && self.special.is_unbounded(group);
        let now = self.workers.suitable(&wish, Depth::Slots);
        let fresh = now.is_some();
        let then = || self.workers.suitable(&wish, Depth::Prefetch);
        let found = now.or_else(|| if ahead { then() } else { None });
        // Tests without needs would take every slot ahead of time, and it would wait for all of them.
        let crowded_out = found.is_none() && priority >= 0;
        let Some((worker, weight)) = found.filter(|(_, weight)| *weight <= permits) else {
            if wish.solo || wish.threads > 1 || crowded_out {
                self.workers.reserve(&wish);
            }
            return;
        };
        let solo = wish.solo && !self.has(Mutation::CrowdExclusive);
        let places = if solo { u32::MAX } else { wish.threads.max(1) };
        self.special.remove(&self.stories[test.0 as usize], &key);
        self.special.entered(group);
        let Story { number, free, .. } = self.stories[test.0 as usize];
        let company = Company::Alone;
        let expected = self.stories[test.0 as usize].rank.expected.0;
        let live = Live {
            weight,
            solo,
            group,
            expected,
            fresh,
            ..Live::new(test, number, company.clone())
        };
        self.workers.unreserve(test);
        let attempt = self.next_attempt();
        self.workers.grant(worker, attempt, live);
        let alone = number - free;
        let grants = vec![Grant { attempt, test, number, alone, places, company }];
        effects.push(Effect::Lease { worker, grants });
    }
}

/// What is sought for a test.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish<'a> {
    pub(super) test: TestIndex,
    pub(super) binary: BinaryKey,
    pub(super) needs: Option<&'a Needs>,
    pub(super) solo: bool,
    pub(super) threads: u32,
    pub(super) group: Option<GroupIndex>,
    pub(super) per_worker: Option<u32>,
    pub(super) past: Past<'a>,
}

impl Wish<'_> {
    /// The group's bound on this worker leaves room for one more.
    fn may_join(&self, worker: &Worker) -> bool {
        self.per_worker.is_none_or(|max| worker.of_group(self.group) < max)
    }
}

impl Workers {
    /// Where a wish can be met, now or after what is there: the emptiest such worker, and what it
    /// takes there.
    pub(super) fn suitable(&self, wish: &Wish<'_>, depth: Depth) -> Option<(WorkerId, u32)> {
        let choice = self.choice(wish);
        let losses = |worker| if wish.past.suspect { self.losses(worker) } else { 0 };
        self.open_to(wish.test)
            .filter(|(_, worker)| {
                let kept = worker.reserved == Some(wish.test) && !wish.past.is_strict();
                kept || self.allows(&choice, worker)
            })
            // Who wants a worker for itself looks at those that have nothing.
            .take_while(|(_, worker)| {
                !wish.solo || worker.held() == 0 || worker.reserved == Some(wish.test)
            })
            .filter_map(|(id, worker)| {
                let weight = wish.threads.min(worker.slots());
                let whole = wish.solo || wish.threads > worker.slots();
                let fits =
                    if whole { worker.held() == 0 } else { worker.room_of(depth, true) >= weight };
                let takes = fits && wish.may_join(worker) && worker.suits(wish.binary, wish.needs);
                let slowness = || Reverse(worker.speed_percent());
                takes.then(|| (losses(worker), worker.held(), slowness(), id, weight))
            })
            .min()
            .map(|(.., id, weight)| (id, weight))
    }

    /// Keeps a worker from getting more until this wish can be met there. At most half of the
    /// workers are reserved at once, at least one.
    fn reserve(&mut self, wish: &Wish<'_>) {
        let kept = self.reserved_by(wish.test);
        if kept.is_some() && !wish.past.is_strict() {
            return;
        }
        let choice = self.choice(wish);
        if let Some(kept) = kept.and_then(|id| self.worker(id)) {
            if self.allows(&choice, kept) {
                return;
            }
            self.unreserve(wish.test);
        }
        let most = (self.len() / 2).max(1);
        if self.reserved() >= most {
            return;
        }
        let suits = |worker: &Worker| worker.suits(wish.binary, wish.needs);
        let best = self
            .all()
            .filter(|(_, worker)| suits(worker) && self.allows(&choice, worker))
            .filter(|(_, worker)| worker.reserved.is_none() && wish.may_join(worker))
            .min_by_key(|(id, worker)| (worker.held(), Reverse(worker.speed_percent()), **id))
            .map(|(id, _)| *id);
        if let Some(id) = best {
            self.changing(id, |worker| worker.reserved = Some(wish.test));
        }
    }

    fn unreserve(&mut self, test: TestIndex) {
        if let Some(id) = self.reserved_by(test) {
            self.changing(id, |worker| worker.reserved = None);
        }
    }

    /// Whether some worker that is there, but for the one that joined first as this, meets these
    /// needs and runs this binary, or may yet.
    pub(super) fn may_suit(
        &self,
        binary: BinaryKey,
        needs: Option<&Needs>,
        but: Option<WorkerId>,
    ) -> bool {
        let mut others = self.all().filter(|(_, worker)| Some(worker.first()) != but);
        others.any(|(_, worker)| worker.may_meet(binary, needs))
    }
}
