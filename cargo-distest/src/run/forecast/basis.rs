//! What predictions are made from, and what they say: how long a run takes, and what limits it. Pure.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use distest_worker::protocol::BinaryKey;

use crate::cost::Timings;
use crate::dispatch::Planned;
use crate::forecast::{Forecast, Machine, Question, play};
use crate::model::{TestCase, TestIndex};
use crate::plan::{self, Rank, Urgency};
use crate::scheduler::{Acquainted, Batch, Group, GroupIndex, Rules, Task};

/// What a process takes besides its tests: its start and two ways.
const OVERHEAD: Duration = Duration::from_millis(3);
/// Sending is what limits a run that would take less than this share of its time without.
const SENDING_SHARE: f64 = 0.9;

/// What a run takes on some number of workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Prediction {
    pub(super) takes: Duration,
    /// What keeps it from being quicker.
    pub(super) limit: String,
    /// What it would take if every executable were everywhere, where sending them is the limit.
    pub(super) without_sending: Option<Duration>,
}

/// What the predictions are made from.
pub(super) struct Basis {
    pub(super) tests: Vec<(Task, Duration)>,
    /// How many of them have never run: their times are guessed.
    pub(super) unknown: usize,
    pub(super) groups: Vec<Group>,
    /// Who shares a process, and who runs alone instead.
    pub(super) batches: Vec<Batch>,
    pub(super) acquainted: Vec<Acquainted>,
    /// Bytes of executables, each of which is to be sent once.
    pub(super) sizes: BTreeMap<BinaryKey, u64>,
    /// Bytes that get to a worker each second, as far as any way was measured.
    pub(super) rate: Option<f64>,
    /// Tests at once over the whole run.
    pub(super) threads: Option<u32>,
    /// Of each worker.
    pub(super) slots: u32,
    /// What follows when all of these have ended.
    pub(super) doctests: DoctestTimes,
}

/// The doctests of a run. rustdoc builds and starts them here, as many at once as it likes, wherever
/// they run. History has of each how long after the one before it ended, so that all of them take
/// the sum of these, on however many workers.
pub(super) struct DoctestTimes {
    pub(super) count: usize,
    /// How many of them have never passed: their times are guessed.
    pub(super) unknown: usize,
    /// All of them together; none if there are some, and of none is anything known.
    pub(super) take: Option<Duration>,
}

impl DoctestTimes {
    pub(super) fn of(cases: &[TestCase], timings: &Timings) -> Self {
        let known: Vec<_> = cases.iter().filter_map(|it| plan::expected(it, timings)).collect();
        let is_new = |case: &&TestCase| plan::outlook(case, timings).0.urgency == Urgency::New;
        let (count, unknown) = (cases.len(), cases.iter().filter(is_new).count());
        let guessed = mean(&known) * u32::try_from(count - known.len()).unwrap_or(u32::MAX);
        let take = known.iter().sum::<Duration>() + guessed;
        Self { count, unknown, take: (count == 0 || !known.is_empty()).then_some(take) }
    }
}

fn mean(times: &[Duration]) -> Duration {
    times.iter().sum::<Duration>() / u32::try_from(times.len()).unwrap_or(u32::MAX).max(1)
}

/// Tests with what they take: what is not known is like the mean of the others.
pub(super) fn work(planned: &[Planned]) -> Vec<(Task, Duration)> {
    let known: Vec<_> = planned.iter().filter_map(|test| test.expected).collect();
    let mean = mean(&known);
    let work = planned.iter().enumerate().map(|(index, test)| {
        let takes = test.expected.unwrap_or(mean);
        let rank = Rank { expected: Reverse(takes), ..test.rank };
        let binary: BinaryKey = test.runnable.key;
        (Task { test: TestIndex(index as u32), binary, rank, needs: None }, takes)
    });
    let mut work: Vec<_> = work.collect();
    for ((task, _), test) in work.iter_mut().zip(planned) {
        // Labels, sides and networks are unknown of workers that are not there.
        task.needs = test.needs.as_ref().map(|needs| {
            let mut needs = crate::scheduler::Needs::clone(needs);
            needs.requires = BTreeMap::new();
            needs.place = crate::scheduler::Place::Any;
            needs.private_network = false;
            needs.forwards = false;
            needs.into()
        });
    }
    work
}

impl Basis {
    /// How long it takes on so many workers, and what keeps it from being quicker: sending, if it
    /// would be much quicker without.
    pub(super) fn predict(&self, workers: u32) -> Prediction {
        let makespan = self.play(workers, self.rate).makespan;
        let doctests = self.doctests.take.unwrap_or_default();
        let takes = makespan + doctests;
        if doctests > makespan {
            return Prediction { takes, limit: "the doctests".to_owned(), without_sending: None };
        }
        let sends = self.rate.is_some() && workers > 1;
        let without = sends.then(|| self.play(workers, None).makespan);
        let without = without.filter(|without| *without < makespan.mul_f64(SENDING_SHARE));
        let limit = match without {
            Some(_) => "sending executables".to_owned(),
            None => self.limit(workers),
        };
        Prediction { takes, limit, without_sending: without.map(|without| without + doctests) }
    }

    /// The tests on so many workers, of which one is here; so many bytes get to the others each
    /// second, or all are there.
    fn play(&self, workers: u32, rate: Option<f64>) -> Forecast {
        let here = Machine {
            slots: self.slots,
            speed: 1.0,
            speed_known: true,
            round_trip: Duration::from_millis(1),
            prepare: Duration::ZERO,
            rate: None,
            dies_at: None,
        };
        let elsewhere = Machine { rate, ..here };
        let others = workers.saturating_sub(1) as usize;
        let machines = std::iter::once(here).chain(std::iter::repeat_n(elsewhere, others));
        let question = Question {
            rules: Rules { threads: self.threads, ..Rules::default() },
            groups: self.groups.clone(),
            batches: self.batches.clone(),
            acquainted: self.acquainted.clone(),
            tests: self.tests.clone(),
            machines: machines.collect(),
            overhead: OVERHEAD,
            sizes: self.sizes.clone(),
        };
        play(&question, |scheduler, input, effects| scheduler.step(input, effects))
    }

    /// What keeps the tests from being quicker: the largest of their lower bounds.
    fn limit(&self, workers: u32) -> String {
        let all = workers.saturating_mul(self.slots).max(1);
        let (at_once, busy) = match self.threads.filter(|threads| *threads < all) {
            Some(threads) => (threads.max(1), "the number of test threads"),
            None => (all, "all slots are busy"),
        };
        let lasts = |takes: &Duration| *takes + OVERHEAD;
        let work =
            self.tests.iter().map(|(task, takes)| lasts(takes) * self.slots_of(task).min(at_once));
        // Who shares a process shares its start.
        let shared: usize = self.batches.iter().map(|batch| batch.tests.len() - 1).sum();
        let saved = OVERHEAD * u32::try_from(shared).unwrap_or(u32::MAX);
        let work = work.sum::<Duration>().saturating_sub(saved);
        let longest = self.tests.iter().map(|(_, takes)| lasts(takes)).max().unwrap_or_default();
        let lasts = |batch: &Batch| {
            let tests = batch.tests.iter().map(|test| self.tests[test.0 as usize].1);
            tests.sum::<Duration>() + OVERHEAD
        };
        let batch = self.batches.iter().map(lasts).max().unwrap_or_default();
        let plain = [
            (work / at_once, busy),
            (batch, "the longest batch of tests in one process"),
            (longest, "the longest test"),
        ];
        let plain = plain.map(|(bound, name)| (bound, name.to_owned()));
        let limits = plain.into_iter().chain(self.group_bounds(workers));
        limits.max_by_key(|(bound, _)| *bound).map(|(_, name)| name).unwrap_or_default()
    }

    /// Slots that a test keeps others from.
    fn slots_of(&self, task: &Task) -> u32 {
        task.needs.as_ref().map_or(1, |needs| match needs.exclusive {
            true => self.slots,
            false => needs.threads.clamp(1, self.slots),
        })
    }

    /// How long each bounded group takes on its own, and what it is called.
    fn group_bounds(&self, workers: u32) -> impl Iterator<Item = (Duration, String)> {
        let mut sums: BTreeMap<GroupIndex, Duration> = BTreeMap::new();
        for (task, takes) in &self.tests {
            if let Some(group) = task.needs.as_ref().and_then(|needs| needs.group) {
                *sums.entry(group).or_default() += *takes + OVERHEAD;
            }
        }
        sums.into_iter().filter_map(move |(GroupIndex(index), sum)| {
            let group = self.groups.get(usize::from(index))?;
            let per_worker = group.per_worker.map(|max| max.saturating_mul(workers));
            let at_once = [group.threads_max, per_worker].into_iter().flatten().min()?;
            Some((sum / at_once.max(1), format!("the test group {}", group.name)))
        })
    }
}

#[cfg(test)]
mod tests;
