//! What the scheduler knows of tests and workers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use distest_worker::protocol::{AttemptId, BinaryKey};

use super::company::Company;
use crate::model::{AttemptResult, TestIndex, Verdict, WorkerId};
use crate::plan::Rank;

/// Attempts that a worker holds beyond its slots, at most.
const PREFETCH_MAX: u32 = 64;
/// Tests shorter than this are handed out one per slot ahead.
const SHORT: Duration = Duration::from_millis(20);

/// A test so far.
#[derive(Debug)]
pub(super) struct Story {
    pub(super) binary: BinaryKey,
    pub(super) rank: Rank,
    /// Number of the attempt that is queued, live or was the last.
    pub(super) number: u32,
    /// Attempts in batches, which no rule counts.
    pub(super) batched: u32,
    pub(super) failed_before: bool,
    pub(super) losses: u32,
    /// The batch that it would be in if it didn't run alone this time.
    pub(super) company: Option<Arc<[TestIndex]>>,
    /// How it failed alone, while a witness is sought of its passing in company.
    pub(super) failed_alone: Option<FailedAlone>,
    pub(super) verdict: Option<Verdict>,
}

/// The last attempt of a test that has failed alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct FailedAlone {
    pub(super) attempt: AttemptId,
    pub(super) number: u32,
    pub(super) result: AttemptResult,
}

impl Story {
    pub(super) fn new(binary: BinaryKey, rank: Rank) -> Self {
        Self {
            binary,
            rank,
            number: 1,
            batched: 0,
            failed_before: false,
            losses: 0,
            company: None,
            failed_alone: None,
            verdict: None,
        }
    }
}

/// An attempt that is with a worker.
#[derive(Clone, Debug)]
pub(super) struct Live {
    /// The test, or the first of a batch.
    pub(super) test: TestIndex,
    pub(super) number: u32,
    pub(super) company: Company,
    pub(super) started: bool,
    /// Tests of a batch that have ended, as far as is known.
    pub(super) finished: u32,
}

impl Live {
    fn tests(&self) -> usize {
        self.company.counted(&self.test).len()
    }
}

/// A binary on a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Readiness {
    Asked,
    Ready,
    Refused,
}

/// A worker that joined and was not lost.
#[derive(Debug)]
struct Worker {
    slots: u32,
    round_trip: Duration,
    /// Mean duration of what ended here, exponentially weighted.
    mean: Option<Duration>,
    binaries: BTreeMap<BinaryKey, Readiness>,
    preparing: usize,
    live: BTreeMap<AttemptId, Live>,
    /// A [`super::Effect::Revoke`] is unanswered.
    revoking: bool,
}

impl Worker {
    fn is_ready(&self, binary: BinaryKey) -> bool {
        self.binaries.get(&binary) == Some(&Readiness::Ready)
    }

    fn held(&self) -> u32 {
        self.live.len() as u32
    }

    /// Attempts that may be added now.
    fn room(&self, depth: Depth) -> u32 {
        let extra = if depth == Depth::Prefetch { self.prefetch().min(PREFETCH_MAX) } else { 0 };
        (self.slots + extra).saturating_sub(self.held())
    }

    /// As many attempts as end here within a round trip, so that no slot waits for the wire, and
    /// one more per slot while tests are short. Nothing is prefetched before the first result
    /// (what a test costs here is unknown), nor to save less than a tenth of a test's time.
    fn prefetch(&self) -> u32 {
        let Some(mean) = self.mean else { return 0 };
        let round_trips = self.round_trip.as_secs_f64() / mean.as_secs_f64().max(1e-4);
        let in_flight = round_trips * f64::from(self.slots);
        let in_flight = if in_flight < 0.1 { 0 } else { in_flight.ceil() as u32 };
        in_flight.saturating_add(if mean < SHORT { self.slots } else { 0 })
    }

    /// What has not started, the latest first, as far as it won't start within `patience`.
    fn waiting(&self, patience: Duration) -> Vec<(AttemptId, Live)> {
        let waiting = self.live.iter().rev().filter(|(_, live)| !live.started);
        let waiting = waiting.map(|(attempt, live)| (*attempt, live.clone()));
        let beyond = self.held().saturating_sub(self.slots) as usize;
        let wait = self.mean.unwrap_or(Duration::MAX).checked_div(self.slots);
        if wait.is_none_or(|wait| wait < patience) {
            return Vec::new();
        }
        waiting.take(beyond).collect()
    }
}

/// What a grant is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// A free slot.
    Slots,
    /// The time until the worker's next request arrives.
    Prefetch,
}

/// All workers of a run.
#[derive(Debug, Default)]
pub(super) struct Workers {
    by_id: BTreeMap<WorkerId, Worker>,
    /// Workers that may have room for an attempt, by what they hold: the emptiest first.
    roomy: BTreeSet<(u32, WorkerId)>,
    outstanding: u32,
    /// Tests of the attempts that are outstanding.
    tests: usize,
}

impl Workers {
    pub(super) fn insert(&mut self, id: WorkerId, slots: u32, round_trip: Duration) {
        let worker = Worker {
            slots: slots.max(1),
            round_trip,
            mean: None,
            binaries: BTreeMap::new(),
            preparing: 0,
            live: BTreeMap::new(),
            revoking: false,
        };
        let before = self.by_id.insert(id, worker);
        debug_assert!(before.is_none(), "{id:?} joined twice");
        self.roomy.insert((0, id));
    }

    pub(super) fn ids(&self) -> Vec<WorkerId> {
        self.by_id.keys().copied().collect()
    }

    /// Attempts that are with workers.
    pub(super) fn outstanding(&self) -> u32 {
        self.outstanding
    }

    /// Tests that are with workers.
    pub(super) fn tests(&self) -> usize {
        self.tests
    }

    /// Attempts whose processes run.
    pub(super) fn running(&self) -> u32 {
        let live = self.by_id.values().flat_map(|worker| worker.live.values());
        live.filter(|live| live.started).count() as u32
    }

    /// Workers that may have room, the emptiest first.
    pub(super) fn roomy(&self) -> Vec<WorkerId> {
        self.roomy.iter().map(|(_, id)| *id).collect()
    }

    pub(super) fn room(&self, id: WorkerId, depth: Depth) -> u32 {
        self.by_id.get(&id).map_or(0, |worker| worker.room(depth))
    }

    pub(super) fn is_ready(&self, id: WorkerId, binary: BinaryKey) -> bool {
        self.by_id.get(&id).is_some_and(|worker| worker.is_ready(binary))
    }

    /// Whether some worker runs this binary, or may yet say that it does.
    pub(super) fn may_take(&self, binary: BinaryKey) -> bool {
        let refused = Some(&Readiness::Refused);
        self.by_id.values().any(|worker| worker.binaries.get(&binary) != refused)
    }

    /// Which of `binaries`, in their order, each worker is to be asked for now, so that at most
    /// `at_once` questions to it are open. Notes them as asked.
    pub(super) fn ask(
        &mut self,
        binaries: &[BinaryKey],
        at_once: usize,
    ) -> Vec<(WorkerId, BinaryKey)> {
        let mut asked = Vec::new();
        for (id, worker) in &mut self.by_id {
            for binary in binaries {
                if worker.preparing >= at_once {
                    break;
                }
                if !worker.binaries.contains_key(binary) {
                    worker.binaries.insert(*binary, Readiness::Asked);
                    worker.preparing += 1;
                    asked.push((*id, *binary));
                }
            }
        }
        asked
    }

    pub(super) fn answer(&mut self, id: WorkerId, binary: BinaryKey, runs: bool) {
        let Some(worker) = self.by_id.get_mut(&id) else { return };
        // Only a question is answered: a peer that says more than it was asked changes nothing.
        let Some(state) = worker.binaries.get_mut(&binary).filter(|s| **s == Readiness::Asked)
        else {
            return;
        };
        *state = if runs { Readiness::Ready } else { Readiness::Refused };
        worker.preparing -= 1;
    }

    pub(super) fn grant(&mut self, id: WorkerId, attempt: AttemptId, live: Live) {
        self.tests += live.tests();
        self.changing(id, |worker| {
            worker.live.insert(attempt, live);
        });
        self.outstanding += 1;
    }

    pub(super) fn started(&mut self, id: WorkerId, attempt: AttemptId) {
        if let Some(live) = self.by_id.get_mut(&id).and_then(|w| w.live.get_mut(&attempt)) {
            live.started = true;
        }
    }

    /// So many tests of a batch have ended.
    pub(super) fn progressed(&mut self, id: WorkerId, attempt: AttemptId, finished: u32) {
        if let Some(live) = self.by_id.get_mut(&id).and_then(|w| w.live.get_mut(&attempt)) {
            live.finished = live.finished.max(finished);
        }
    }

    /// Removes an attempt that is live there.
    pub(super) fn take(&mut self, id: WorkerId, attempt: AttemptId) -> Option<Live> {
        let live = self.changing(id, |worker| worker.live.remove(&attempt))??;
        self.outstanding -= 1;
        self.tests -= live.tests();
        Some(live)
    }

    /// Learns what a test cost there.
    pub(super) fn learn(&mut self, id: WorkerId, duration: Duration) {
        self.changing(id, |worker| {
            worker.mean = Some(match worker.mean {
                Some(mean) => mean.mul_f64(0.8) + duration.mul_f64(0.2),
                None => duration,
            });
        });
    }

    /// Removes a worker; answers what it had.
    pub(super) fn remove(&mut self, id: WorkerId) -> BTreeMap<AttemptId, Live> {
        let live = self.by_id.remove(&id).map(|worker| worker.live).unwrap_or_default();
        self.roomy.remove(&(live.len() as u32, id));
        self.outstanding -= live.len() as u32;
        self.tests -= live.values().map(Live::tests).sum::<usize>();
        live
    }

    /// Slots that are free on other workers than `but`, for a test of `binary`.
    pub(super) fn free_elsewhere(&self, but: WorkerId, binary: BinaryKey) -> bool {
        self.roomy
            .iter()
            .map(|(_, id)| *id)
            .filter(|id| *id != but)
            .any(|id| self.is_ready(id, binary) && self.room(id, Depth::Slots) > 0)
    }

    /// Slots that are free now.
    pub(super) fn free_slots(&self) -> u32 {
        self.roomy.iter().map(|(_, id)| self.room(*id, Depth::Slots)).sum()
    }

    /// Per worker, what is prefetched there and will wait longer than it takes to fetch it back.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (WorkerId, Vec<(AttemptId, Live)>)> {
        let idle = self.by_id.iter().filter(|(_, worker)| !worker.revoking);
        idle.map(|(id, worker)| (*id, worker.waiting(worker.round_trip * 2)))
    }

    pub(super) fn revoking(&mut self, id: WorkerId, asked: bool) {
        if let Some(worker) = self.by_id.get_mut(&id) {
            worker.revoking = asked;
        }
    }

    /// Changes a worker and keeps `roomy` true.
    fn changing<T>(&mut self, id: WorkerId, change: impl FnOnce(&mut Worker) -> T) -> Option<T> {
        let worker = self.by_id.get_mut(&id)?;
        self.roomy.remove(&(worker.held(), id));
        let result = change(worker);
        if worker.room(Depth::Prefetch) > 0 {
            self.roomy.insert((worker.held(), id));
        }
        Some(result)
    }

    /// What must hold after every step.
    pub(super) fn check(&self) -> Result<(), String> {
        let held: u32 = self.by_id.values().map(Worker::held).sum();
        if held != self.outstanding {
            return Err(format!("{held} attempts are held, {} counted", self.outstanding));
        }
        let live = self.by_id.values().flat_map(|worker| worker.live.values());
        let tests: usize = live.map(Live::tests).sum();
        if tests != self.tests {
            return Err(format!("{tests} tests are held, {} counted", self.tests));
        }
        for (id, worker) in &self.by_id {
            let roomy = self.roomy.contains(&(worker.held(), *id));
            if roomy != (worker.room(Depth::Prefetch) > 0) {
                return Err(format!("{id:?} is filed wrongly: roomy = {roomy}"));
            }
            let over = worker.held() > worker.slots + PREFETCH_MAX;
            let asked = worker.binaries.values().filter(|s| **s == Readiness::Asked).count();
            if over || asked != worker.preparing {
                return Err(format!("{id:?} holds too much or counts wrongly: {worker:?}"));
            }
        }
        if self.roomy.len() > self.by_id.len() {
            return Err("a lost worker is filed as roomy".to_owned());
        }
        Ok(())
    }
}
