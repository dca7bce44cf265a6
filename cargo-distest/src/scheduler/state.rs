//! What the scheduler knows of tests and workers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use distest_worker::protocol::{AttemptId, BinaryKey};

use super::company::Company;
use super::lookout::Lookout;
use super::needs::{GroupIndex, Needs, Traits};
use super::placement::{Loads, Whom};
use super::queue::Taste;
use crate::model::{AttemptResult, TestIndex, Verdict, WorkerId};
use crate::pace::Pace;
use crate::plan::Rank;

/// Attempts that a worker holds beyond its slots, at most.
const PREFETCH_MAX: u32 = 64;
/// Attempts that a worker fails and others pass, or that come to no end there one after the other,
/// before it is quarantined.
const STRIKES_MAX: u32 = 3;
/// A worker is slow if its speed is below this share of the fleet's mean.
const SLOW_SHARE: f64 = 0.9;
/// A test is long if it takes more than this share of the time in which all is done.
const LONG_SHARE: f64 = 0.25;
/// A worker that nobody knows begins with tests that take no more than this part of the longest,
const TINY_PART: u32 = 16;
/// or, if there are none, with the shortest if they take no more than this part of it.
const SHORT_PART: u32 = 4;
/// Tests shorter than this are handed out one per slot ahead.
const SHORT: Duration = Duration::from_millis(20);

/// A test so far.
#[derive(Debug)]
pub(super) struct Story {
    pub(super) binary: BinaryKey,
    pub(super) rank: Rank,
    /// Number of the attempt that is queued, live or was the last.
    pub(super) number: u32,
    /// Attempts that no rule counts: those in batches, and those that were lost.
    pub(super) free: u32,
    /// How it failed last, if it did and got another try.
    pub(super) failed_before: Option<AttemptResult>,
    pub(super) losses: u32,
    /// What it asks of its surroundings.
    pub(super) needs: Option<Arc<Needs>>,
    /// Its process ran when its worker was lost.
    pub(super) suspect: bool,
    /// Workers that were lost while it may have run there, as they joined first, each once.
    pub(super) lost_on: Vec<WorkerId>,
    /// Workers that were lost while it ran there with nothing else, as they joined first: one for
    /// each loss.
    pub(super) alone_on: Vec<WorkerId>,
    /// It is to blame for that.
    pub(super) culprit: bool,
    /// Where it went wrong last, as that joined first.
    pub(super) avoid: Option<WorkerId>,
    /// It must not run where it went wrong, as long as another worker may take it: its process met
    /// an instruction that was unknown there. Never again set.
    pub(super) only_elsewhere: bool,
    /// Where it failed.
    pub(super) failed_on: Vec<WorkerId>,
    /// With whom it passes, as far as anybody knows: see [`super::Acquainted`].
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
    pub(super) fn new(binary: BinaryKey, rank: Rank, needs: Option<Arc<Needs>>) -> Self {
        Self {
            needs,
            suspect: false,
            lost_on: Vec::new(),
            alone_on: Vec::new(),
            culprit: false,
            avoid: None,
            only_elsewhere: false,
            failed_on: Vec::new(),
            binary,
            rank,
            number: 1,
            free: 0,
            failed_before: None,
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
    /// Slots that it takes.
    pub(super) weight: u32,
    /// Nothing else may run beside it.
    pub(super) solo: bool,
    /// Whose bounds it obeys.
    pub(super) group: Option<GroupIndex>,
    /// What its end means.
    pub(super) role: Role,
    /// What it takes on an ordinary slot; zero if nobody knows.
    pub(super) expected: Duration,
    /// When it ends is not to be relied on: it was watched, and was overdue.
    pub(super) late: bool,
    /// It was handed to a slot that was free.
    pub(super) fresh: bool,
}

/// What an attempt's end means for its tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It decides, and its tests count as being here.
    Only,
    /// It decides if it ends first: another attempt of its test is under way, and counts.
    Second,
    /// Nothing: another attempt has decided.
    Abandoned,
}

impl Live {
    pub(super) fn new(test: TestIndex, number: u32, company: Company) -> Self {
        let (started, finished, weight, solo, group) = (false, 0, 1, false, None);
        let (role, expected, late) = (Role::Only, Duration::ZERO, false);
        let fresh = false;
        Self {
            test,
            number,
            company,
            started,
            finished,
            weight,
            solo,
            group,
            role,
            expected,
            late,
            fresh,
        }
    }

    /// Tests that count as being here.
    fn tests(&self) -> usize {
        match self.role {
            Role::Only => self.company.counted(&self.test).len(),
            Role::Second | Role::Abandoned => 0,
        }
    }
}

/// A binary on a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readiness {
    Asked,
    Ready,
    Refused,
    /// It lacks so many bytes, more than was worth sending.
    Far(u64),
}

/// A worker that joined and was not lost.
#[derive(Debug)]
pub(super) struct Worker {
    /// Its number when it joined first.
    first: WorkerId,
    slots: u32,
    round_trip: Duration,
    traits: Traits,
    /// Mean duration of what ended here, exponentially weighted.
    mean: Option<Duration>,
    /// What will probably end here first takes, as long as nothing has.
    guess: Option<Duration>,
    pace: Pace,
    binaries: BTreeMap<BinaryKey, Readiness>,
    preparing: usize,
    live: BTreeMap<AttemptId, Live>,
    /// Slots that `live` takes.
    load: u32,
    /// A [`super::Effect::Revoke`] is unanswered.
    revoking: bool,
    /// A test waits for this attempt's end, which is watched.
    relied_on: Option<AttemptId>,
    /// Nothing more is handed out here until this test is.
    pub(super) reserved: Option<TestIndex>,
    standing: Standing,
    /// How often it failed what passed elsewhere.
    strikes: u32,
    /// Attempts in a row that came to no end here.
    troubles: u32,
}

/// Whether a worker may be given work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Good,
    /// Its connection is gone, and what it has may run on until it is declared lost.
    Cut,
    /// It fails what others pass.
    Quarantined,
    /// It takes nothing more, by its own word.
    Leaving,
    /// It takes one thing after another until it has memory again.
    Short,
}

impl Worker {
    fn is_ready(&self, binary: BinaryKey) -> bool {
        self.binaries.get(&binary) == Some(&Readiness::Ready)
    }

    /// Slots that are taken, here or on the way.
    pub(super) fn held(&self) -> u32 {
        self.load
    }

    pub(super) fn slots(&self) -> u32 {
        self.slots
    }

    /// How fast it is, as a whole number.
    pub(super) fn speed_percent(&self) -> u32 {
        (self.pace.speed() * 100.0).round() as u32
    }

    pub(super) fn first(&self) -> WorkerId {
        self.first
    }

    pub(super) fn traits(&self) -> &Traits {
        &self.traits
    }

    pub(super) fn pace(&self) -> &Pace {
        &self.pace
    }

    pub(super) fn readiness(&self, binary: BinaryKey) -> Option<Readiness> {
        self.binaries.get(&binary).copied()
    }

    pub(super) fn is_good(&self) -> bool {
        self.standing == Standing::Good
    }

    /// It gets more, now or when it has done what it has.
    fn gets_more(&self) -> bool {
        matches!(self.standing, Standing::Good | Standing::Short)
    }

    /// It is ready for a binary, in good standing, and meets these needs.
    pub(super) fn suits(&self, binary: BinaryKey, needs: Option<&Needs>) -> bool {
        let suits = needs.is_none_or(|needs| needs.met_by(&self.traits));
        suits && self.takes_something() && self.is_ready(binary)
    }

    /// It gets more: as much as it has room for, or one thing where memory is short.
    fn takes_something(&self) -> bool {
        match self.standing {
            Standing::Good => true,
            Standing::Short => self.live.is_empty(),
            Standing::Cut | Standing::Quarantined | Standing::Leaving => false,
        }
    }

    /// It is there and gets nothing more.
    fn is_cleared(&self) -> bool {
        matches!(self.standing, Standing::Quarantined | Standing::Leaving)
    }

    /// What it has not started and is taken back. Where memory is short one thing stays, if it is
    /// all that there is.
    fn gives_back(&self) -> Vec<AttemptId> {
        let waiting = self.live.iter().filter(|(_, live)| !live.started);
        let waiting: Vec<_> = waiting.map(|(attempt, _)| *attempt).collect();
        let kept = match self.standing {
            Standing::Quarantined | Standing::Leaving => 0,
            Standing::Short => usize::from(waiting.len() == self.live.len()),
            Standing::Good | Standing::Cut => waiting.len(),
        };
        waiting.into_iter().skip(kept).collect()
    }

    /// It runs this binary, or may yet say that it does.
    pub(super) fn may_take(&self, binary: BinaryKey) -> bool {
        let refuses = self.binaries.get(&binary) == Some(&Readiness::Refused);
        !self.is_cleared() && !refuses
    }

    /// Attempts of a group that are here.
    pub(super) fn of_group(&self, group: Option<GroupIndex>) -> u32 {
        if group.is_none() {
            return 0;
        }
        self.live.values().filter(|live| live.group == group).count() as u32
    }

    /// Slots that may be filled now.
    fn room(&self, depth: Depth) -> u32 {
        let room = self.room_of(depth, false);
        if self.standing == Standing::Short { room.min(1) } else { room }
    }

    /// As [`Worker::room`], of a reservation too.
    pub(super) fn room_of(&self, depth: Depth, reserved_too: bool) -> u32 {
        let solo = self.live.values().next().is_some_and(|live| live.solo);
        let kept = self.reserved.is_some() && !reserved_too;
        if solo || kept || !self.takes_something() {
            return 0;
        }
        // The worker starts what it has as slots come free, and knows nothing of weights.
        let heavy = self.load > self.live.len() as u32;
        let ahead = depth == Depth::Prefetch && !heavy;
        let extra = if ahead { self.prefetch().min(PREFETCH_MAX) } else { 0 };
        (self.slots + extra).saturating_sub(self.held())
    }

    /// As many attempts as end here while the next one is handed out, so that no slot waits for the
    /// wire, and one more per slot while tests are short. Nothing is prefetched while it is unknown
    /// what a test costs here, nor to save less than a tenth of a test's time.
    fn prefetch(&self) -> u32 {
        let Some(mean) = self.mean.or(self.guess) else { return 0 };
        let round_trips = self.overhead().as_secs_f64() / mean.as_secs_f64().max(1e-4);
        let in_flight = round_trips * f64::from(self.slots);
        let in_flight = if in_flight < 0.1 { 0 } else { in_flight.ceil() as u32 };
        in_flight.saturating_add(if mean < SHORT { self.slots } else { 0 })
    }

    /// From handing an attempt to a free slot until it runs. Who shares the worker may be why a
    /// start takes long, and then nothing is gained by handing out more.
    fn overhead(&self) -> Duration {
        let most = self.round_trip * 4 + SHORT;
        self.pace.overhead().map_or(self.round_trip, |overhead| overhead.min(most))
    }

    /// What has not started, the latest first, as far as it won't start within `patience`.
    fn waiting(&self, patience: Duration) -> Vec<(AttemptId, Live)> {
        let waiting = self.live.iter().rev().filter(|(_, live)| !live.started);
        let waiting = waiting.map(|(attempt, live)| (*attempt, live.clone()));
        let beyond = self.held().saturating_sub(self.slots) as usize;
        let wait = self.mean.or(self.guess).unwrap_or(Duration::MAX).checked_div(self.slots);
        if self.standing != Standing::Good || wait.is_none_or(|wait| wait < patience) {
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
    lookout: Lookout,
    /// Who is kept for which test.
    reserved: BTreeMap<TestIndex, WorkerId>,
    outstanding: u32,
    /// Slots that they take.
    load: u32,
    /// Slots of all workers, each as fast as it is.
    power: f64,
    /// Slots of all workers.
    slots: u32,
    /// Tests of the attempts that are outstanding.
    tests: usize,
    /// What they take, in time on one ordinary slot.
    work: Duration,
    /// What was known of workers that were lost.
    gone: BTreeMap<WorkerId, Pace>,
    /// How often workers were lost, as they joined first.
    losses: BTreeMap<WorkerId, u32>,
    /// The last weighing of who has what, if it still serves.
    pub(super) loads: Option<Loads>,
}

impl Workers {
    pub(super) fn insert(
        &mut self,
        id: WorkerId,
        slots: u32,
        round_trip: Duration,
        traits: Traits,
    ) {
        let pace = traits.pace;
        self.power += f64::from(slots.max(1)) * pace.speed();
        self.slots += slots.max(1);
        let worker = Worker {
            first: traits.formerly.unwrap_or(id),
            traits,
            pace,
            load: 0,
            reserved: None,
            standing: Standing::Good,
            strikes: 0,
            troubles: 0,
            slots: slots.max(1),
            round_trip,
            mean: None,
            guess: None,
            binaries: BTreeMap::new(),
            preparing: 0,
            live: BTreeMap::new(),
            revoking: false,
            relied_on: None,
        };
        let before = self.by_id.insert(id, worker);
        debug_assert!(before.is_none(), "{id:?} joined twice");
        self.lookout.join(id, &pace);
    }

    /// A worker's number when it joined first.
    pub(super) fn first(&self, id: WorkerId) -> WorkerId {
        self.by_id.get(&id).map_or(id, |worker| worker.first)
    }

    /// How often a worker was lost before.
    pub(super) fn losses(&self, worker: &Worker) -> u32 {
        self.losses.get(&worker.first).copied().unwrap_or(0)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (&WorkerId, &Worker)> + Clone {
        self.by_id.iter()
    }

    /// Slots that are taken everywhere.
    pub(super) fn load(&self) -> u32 {
        self.load
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

    /// Attempts whose processes run, of a hedged test one.
    pub(super) fn running(&self) -> u32 {
        let live = self.by_id.values().flat_map(|worker| worker.live.values());
        live.filter(|live| live.started && live.role == Role::Only).count() as u32
    }

    /// Those of these workers that may have room and want more, the emptiest first.
    pub(super) fn eager(&self, whom: Whom) -> Vec<WorkerId> {
        match whom {
            Whom::Nobody => Vec::new(),
            Whom::One(id) => vec![id],
            Whom::All => self.lookout.eager().collect(),
        }
    }

    /// A worker finds nothing to take, until it is woken or something changes there.
    pub(super) fn be_patient(&mut self, id: WorkerId) {
        let Some(worker) = self.by_id.get(&id) else { return };
        self.lookout.be_patient(id, worker.held());
    }

    /// So many workers that found nothing to take are to be looked at again, in turn: what they find
    /// depends on what others do, and nobody tells them.
    pub(super) fn wake(&mut self, most: usize) {
        for _ in 0..most.min(self.lookout.patient()) {
            let Some(id) = self.lookout.next_patient() else { return };
            self.changing(id, |_| ());
        }
    }

    pub(super) fn room(&self, id: WorkerId, depth: Depth) -> u32 {
        self.by_id.get(&id).map_or(0, |worker| worker.room(depth))
    }

    pub(super) fn is_ready(&self, id: WorkerId, binary: BinaryKey) -> bool {
        self.by_id.get(&id).is_some_and(|worker| worker.is_ready(binary))
    }

    /// Whether some worker runs this binary, or may yet say that it does.
    pub(super) fn may_take(&self, binary: BinaryKey) -> bool {
        self.by_id.values().any(|worker| worker.may_take(binary))
    }

    pub(super) fn worker(&self, id: WorkerId) -> Option<&Worker> {
        self.by_id.get(&id)
    }

    /// Whether a worker may be asked to get ready for a binary, with at most `at_once` questions
    /// open.
    pub(super) fn may_ask(&self, id: WorkerId, binary: BinaryKey, at_once: usize) -> bool {
        self.by_id.get(&id).is_some_and(|worker| {
            let open = matches!(worker.readiness(binary), None | Some(Readiness::Far(_)));
            worker.gets_more() && worker.preparing < at_once && open
        })
    }

    /// Bytes of a binary that a worker lacks, if it has said so.
    pub(super) fn lacks(&self, id: WorkerId, binary: BinaryKey) -> Option<u64> {
        match self.by_id.get(&id)?.readiness(binary)? {
            Readiness::Far(bytes) => Some(bytes),
            Readiness::Asked | Readiness::Ready | Readiness::Refused => None,
        }
    }

    pub(super) fn asks(&mut self, id: WorkerId, binary: BinaryKey) {
        if let Some(worker) = self.by_id.get_mut(&id) {
            worker.binaries.insert(binary, Readiness::Asked);
            worker.preparing += 1;
        }
    }

    /// Learns from files that got to a worker.
    pub(super) fn learn_rate(&mut self, id: WorkerId, bytes: u64, took: Duration) {
        if let Some(worker) = self.by_id.get_mut(&id) {
            worker.pace.learn_rate(bytes, took);
        }
    }

    pub(super) fn answer(&mut self, id: WorkerId, binary: BinaryKey, now: Readiness) {
        let Some(worker) = self.by_id.get_mut(&id) else { return };
        // Only a question is answered: a peer that says more than it was asked changes nothing.
        let Some(state) = worker.binaries.get_mut(&binary).filter(|s| **s == Readiness::Asked)
        else {
            return;
        };
        *state = now;
        worker.preparing -= 1;
    }

    pub(super) fn grant(&mut self, id: WorkerId, attempt: AttemptId, live: Live) {
        self.tests += live.tests();
        self.load += live.weight;
        self.work += live.expected;
        self.changing(id, |worker| {
            worker.load += live.weight;
            // Until something has ended here; of a worker that nobody knows nothing is expected.
            let known = worker.pace.is_known() && !live.expected.is_zero();
            if worker.mean.is_none() && known {
                worker.guess = Some(live.expected.div_f64(worker.pace.speed()));
            }
            worker.live.insert(attempt, live);
        });
        self.outstanding += 1;
    }

    /// The test of an attempt that is live there.
    pub(super) fn test_of(&self, id: WorkerId, attempt: AttemptId) -> Option<TestIndex> {
        Some(self.live(id, attempt)?.test)
    }

    /// An attempt that is live there.
    pub(super) fn live(&self, id: WorkerId, attempt: AttemptId) -> Option<&Live> {
        self.by_id.get(&id)?.live.get(&attempt)
    }

    /// Changes what an attempt's end means.
    pub(super) fn set_role(&mut self, id: WorkerId, attempt: AttemptId, role: Role) {
        let worker = self.by_id.get_mut(&id);
        let Some(live) = worker.and_then(|worker| worker.live.get_mut(&attempt)) else { return };
        self.tests -= live.tests();
        live.role = role;
        self.tests += live.tests();
    }

    /// Gives an attempt that is live another number.
    pub(super) fn renumber(&mut self, id: WorkerId, attempt: AttemptId, number: u32) {
        let worker = self.by_id.get_mut(&id);
        if let Some(live) = worker.and_then(|worker| worker.live.get_mut(&attempt)) {
            live.number = number;
        }
    }

    /// What tests are expected to take, divided by what they take there.
    pub(super) fn speed(&self, id: WorkerId) -> f64 {
        self.by_id.get(&id).map_or(1.0, |worker| worker.pace.speed())
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
        let live = self.changing(id, |worker| {
            let live = worker.live.remove(&attempt)?;
            worker.load -= live.weight;
            Some(live)
        })??;
        self.outstanding -= 1;
        self.load -= live.weight;
        self.work -= live.expected;
        self.tests -= live.tests();
        Some(live)
    }

    /// Which of the tests a worker should begin of whose place in the queue only their length
    /// speaks, when so much work waits and the longest of it takes so long.
    ///
    /// A slow worker begins nothing that would run there beyond the time at which all that waits
    /// can be done: a faster one may come. One that nobody knows shows how fast it is with
    /// something short: the longest would take far too long if it is slow, and waits but a little.
    pub(super) fn taste(&self, id: WorkerId, waiting: Duration, longest: Duration) -> Taste {
        let Some(worker) = self.by_id.get(&id).filter(|_| self.by_id.len() > 1) else {
            return Taste::Any;
        };
        let rest = waiting.as_secs_f64() / self.power.max(0.01);
        if !worker.pace.is_known() && worker.mean.is_none() {
            let matters = longest.as_secs_f64() > rest * LONG_SHARE;
            let trial = Taste::Trial { tiny: longest / TINY_PART, short: longest / SHORT_PART };
            return if matters { trial } else { Taste::Any };
        }
        let speed = worker.pace.speed();
        if speed * f64::from(self.slots) > self.power * SLOW_SHARE {
            return Taste::Any;
        }
        Taste::Timely(Duration::try_from_secs_f64(rest * speed).unwrap_or(Duration::MAX))
    }

    /// The fastest worker for tests of `binary` of which will certainly be heard: it runs something
    /// that is not overdue.
    pub(super) fn fastest(&self, binary: BinaryKey) -> Option<WorkerId> {
        let reliable = |worker: &Worker| {
            worker.live.values().all(|live| !live.late && !live.expected.is_zero())
                && !worker.live.is_empty()
                && worker.reserved.is_none()
        };
        let will_do = |worker: &Worker| reliable(worker) && worker.suits(binary, None);
        self.lookout.fastest_first().find(|id| self.by_id.get(id).is_some_and(will_do))
    }

    /// Whether a test ends sooner on one worker, when all that waits and runs is done everywhere,
    /// than on another one now. What runs is taken to be half done.
    pub(super) fn is_sooner(
        &self,
        on: WorkerId,
        than: WorkerId,
        waiting: Duration,
        test: Duration,
    ) -> bool {
        let (there, here) = (self.speed(on), self.speed(than));
        let wait = (waiting + self.work / 2).as_secs_f64() / self.power.max(0.01);
        there > here && wait + test.as_secs_f64() / there < test.as_secs_f64() / here
    }

    /// What a worker has and nobody has been told to watch, with when it should have ended at the
    /// latest: these are to be watched from now on.
    pub(super) fn rely_on(&mut self, id: WorkerId) -> Option<(AttemptId, Duration)> {
        let worker = self.by_id.get_mut(&id)?;
        if worker.relied_on.is_some_and(|attempt| worker.live.contains_key(&attempt)) {
            return None;
        }
        let all: Duration = worker.live.values().map(|live| live.expected).sum();
        let (attempt, _) = worker.live.first_key_value()?;
        worker.relied_on = Some(*attempt);
        let all = all.div_f64(worker.pace.speed());
        Some((*attempt, all * 2 + Duration::from_secs(1)))
    }

    /// An attempt takes much longer than it should.
    pub(super) fn late(&mut self, id: WorkerId, attempt: AttemptId) {
        if let Some(live) = self.by_id.get_mut(&id).and_then(|w| w.live.get_mut(&attempt)) {
            live.late = true;
        }
    }

    /// What is known of workers that are or were there.
    pub(super) fn paces(&self) -> BTreeMap<WorkerId, Pace> {
        let there = self.by_id.iter().map(|(id, worker)| (*id, worker.pace));
        self.gone.iter().map(|(id, pace)| (*id, *pace)).chain(there).collect()
    }

    /// Learns how long an attempt that was handed to a free slot waited until it ran.
    pub(super) fn learn_overhead(&mut self, id: WorkerId, attempt: AttemptId, waited: Duration) {
        self.changing(id, |worker| {
            if worker.live.get(&attempt).is_some_and(|live| live.fresh) {
                worker.pace.learn_overhead(waited);
            }
        });
    }

    /// Learns how fast a worker is from a test that was expected to take some time.
    pub(super) fn learn_speed(&mut self, id: WorkerId, expected: Duration, took: Duration) {
        let Some(worker) = self.by_id.get_mut(&id).filter(|_| expected >= SHORT) else { return };
        let before = worker.pace.speed();
        worker.pace.learn(expected, took);
        let now = worker.pace.speed();
        self.power += f64::from(worker.slots) * (now - before);
        self.lookout.speed(id, before, now);
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
        let Some(worker) = self.by_id.remove(&id) else { return BTreeMap::new() };
        self.gone.insert(id, worker.pace);
        // Who leaves by its own word is not lost by itself.
        if worker.standing != Standing::Leaving {
            *self.losses.entry(worker.first).or_default() += 1;
        }
        self.power -= f64::from(worker.slots) * worker.pace.speed();
        self.work -= worker.live.values().map(|live| live.expected).sum::<Duration>();
        self.slots -= worker.slots;
        self.lookout.leave(id, worker.held(), &worker.pace);
        if let Some(test) = worker.reserved {
            self.reserved.remove(&test);
        }
        self.load -= worker.load;
        let live = worker.live;
        self.outstanding -= live.len() as u32;
        self.tests -= live.values().map(Live::tests).sum::<usize>();
        live
    }

    /// Slots that are free on other workers than `but`, for a test of `binary` with these needs that
    /// ends there sooner than where it is.
    pub(super) fn free_elsewhere(
        &self,
        but: WorkerId,
        binary: BinaryKey,
        needs: Option<&Needs>,
        expected: Duration,
    ) -> bool {
        self.lookout
            .roomy()
            .filter(|id| *id != but && !self.is_sooner(but, *id, Duration::ZERO, expected))
            .filter_map(|id| self.by_id.get(&id))
            .any(|worker| worker.suits(binary, needs) && worker.room(Depth::Slots) > 0)
    }

    /// Slots that are free now.
    pub(super) fn free_slots(&self) -> u32 {
        self.lookout.roomy().map(|id| self.room(id, Depth::Slots)).sum()
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

    /// Nothing that it has has started.
    pub(super) fn none_started(&self, id: WorkerId) -> bool {
        self.by_id.get(&id).is_some_and(|worker| worker.live.values().all(|live| !live.started))
    }

    /// The groups of what it has.
    pub(super) fn groups_on(&self, id: WorkerId) -> Vec<Option<GroupIndex>> {
        let live = self.by_id.get(&id).map(|worker| worker.live.values());
        live.into_iter().flatten().map(|live| live.group).collect()
    }

    /// Its connection is gone.
    pub(super) fn cut(&mut self, id: WorkerId) {
        self.changing(id, |worker| {
            worker.standing = Standing::Cut;
            worker.reserved = None;
        });
    }

    /// A test that failed here has passed elsewhere. True if that is enough for a quarantine.
    pub(super) fn strike(&mut self, id: WorkerId) -> bool {
        if let Some(worker) = self.by_id.get_mut(&id) {
            worker.strikes += 1;
        }
        self.is_bad(id)
    }

    /// An attempt came to an end here, or to none by the worker's own word. True if there were
    /// enough of the latter in a row for a quarantine.
    pub(super) fn trouble(&mut self, id: WorkerId, ended: bool) -> bool {
        if let Some(worker) = self.by_id.get_mut(&id) {
            worker.troubles = if ended { 0 } else { worker.troubles + 1 };
        }
        !ended && self.is_bad(id)
    }

    /// It is in good standing, should not be, and somebody else is there.
    fn is_bad(&self, id: WorkerId) -> bool {
        let good = |worker: &Worker| worker.standing == Standing::Good;
        let bad = self.by_id.get(&id).is_some_and(|worker| {
            good(worker) && worker.strikes.max(worker.troubles) >= STRIKES_MAX
        });
        bad && self.by_id.iter().any(|(other, worker)| *other != id && good(worker))
    }

    /// What workers have not started that are in quarantine, leave or are short of memory.
    pub(super) fn held_by_quarantined(&self) -> Vec<(WorkerId, Vec<AttemptId>)> {
        let theirs = self.by_id.iter().filter(|(_, worker)| !worker.revoking);
        let held = theirs.map(|(id, worker)| (*id, worker.gives_back()));
        held.filter(|(_, attempts)| !attempts.is_empty()).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn quarantine(&mut self, id: WorkerId) {
        self.changing(id, |worker| {
            worker.standing = Standing::Quarantined;
            worker.reserved = None;
        });
    }

    /// It takes nothing more.
    pub(super) fn leave(&mut self, id: WorkerId) {
        self.changing(id, |worker| {
            if worker.standing != Standing::Cut {
                worker.standing = Standing::Leaving;
            }
            worker.reserved = None;
        });
    }

    /// It is short of memory, or not any more.
    pub(super) fn short(&mut self, id: WorkerId, short: bool) {
        self.changing(id, |worker| match (worker.standing, short) {
            (Standing::Good, true) => {
                worker.standing = Standing::Short;
                worker.reserved = None;
            }
            (Standing::Short, false) => worker.standing = Standing::Good,
            (_, true | false) => {}
        });
    }

    /// Tests for which workers are kept.
    pub(super) fn reserved_for(&self) -> BTreeSet<TestIndex> {
        self.reserved.keys().copied().collect()
    }

    /// Who is kept for a test.
    pub(super) fn reserved_by(&self, test: TestIndex) -> Option<WorkerId> {
        self.reserved.get(&test).copied()
    }

    /// How many workers are kept for tests.
    pub(super) fn reserved(&self) -> usize {
        self.reserved.len()
    }

    /// Who may have room for a test, the emptiest first: all that are kept for nobody else.
    pub(super) fn open_to(&self, test: TestIndex) -> impl Iterator<Item = (WorkerId, &Worker)> {
        let kept = self.reserved_by(test).into_iter();
        let all = kept.chain(self.lookout.roomy());
        all.filter_map(|id| Some((id, self.by_id.get(&id)?)))
    }

    /// Changes a worker and keeps what workers are filed by true.
    pub(super) fn changing<T>(
        &mut self,
        id: WorkerId,
        change: impl FnOnce(&mut Worker) -> T,
    ) -> Option<T> {
        let worker = self.by_id.get_mut(&id)?;
        self.lookout.take_out(id, worker.held());
        let before = worker.reserved;
        let result = change(worker);
        if worker.room(Depth::Prefetch) > 0 {
            self.lookout.file(id, worker.held());
        }
        if before != worker.reserved {
            before.map(|test| self.reserved.remove(&test));
            worker.reserved.map(|test| self.reserved.insert(test, id));
        }
        Some(result)
    }

    /// What must hold after every step.
    pub(super) fn check(&self) -> Result<(), String> {
        let held: u32 = self.by_id.values().map(|worker| worker.live.len() as u32).sum();
        let load: u32 = self.by_id.values().map(Worker::held).sum();
        if load != self.load {
            return Err(format!("{load} slots are taken, {} counted", self.load));
        }
        if held != self.outstanding {
            return Err(format!("{held} attempts are held, {} counted", self.outstanding));
        }
        let live = self.by_id.values().flat_map(|worker| worker.live.values());
        let tests: usize = live.map(Live::tests).sum();
        if tests != self.tests {
            return Err(format!("{tests} tests are held, {} counted", self.tests));
        }
        for (id, worker) in &self.by_id {
            let has_room = worker.room(Depth::Prefetch) > 0;
            self.lookout.check(*id, worker.held(), &worker.pace, has_room)?;
            let kept = worker.reserved.is_none_or(|test| self.reserved_by(test) == Some(*id));
            if !kept {
                return Err(format!("{id:?} is kept for a test that doesn't know it"));
            }
            let weight: u32 = worker.live.values().map(|live| live.weight).sum();
            let beside = worker.live.len() > 1 && worker.live.values().any(|live| live.solo);
            if weight != worker.load || beside {
                return Err(format!("{id:?} counts wrongly, or something is beside a lone test"));
            }
            let over = worker.held() > worker.slots + PREFETCH_MAX;
            let asked = worker.binaries.values().filter(|s| **s == Readiness::Asked).count();
            if over || asked != worker.preparing {
                return Err(format!("{id:?} holds too much or counts wrongly: {worker:?}"));
            }
        }
        let kept = self.by_id.values().filter(|worker| worker.reserved.is_some()).count();
        if self.reserved.len() != kept {
            return Err("lost workers are kept for tests".to_owned());
        }
        self.lookout.check_all(self.by_id.len())
    }
}
