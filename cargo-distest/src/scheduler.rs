//! Who runs what, when: a state machine without IO.
//!
//! Tests appear while binaries are listed; workers come, go and lie. [`Scheduler::step`] takes one
//! [`Input`] and says what to do as [`Effect`]s, each of which names its answer. Work is handed out
//! late (a worker's slots plus a small prefetch), so that a slow worker never holds the tail, and
//! what is prefetched is taken back when somebody else could start it at once.
//!
//! Every test gets exactly one verdict: results are keyed by attempt, and an attempt that is no
//! longer live (its worker was lost, it was taken back) has no say. This module never reads a
//! clock, an environment or a file; the same inputs always give the same effects.

mod blame;
mod choice;
mod company;
mod hedge;
mod lookout;
mod mutation;
mod needs;
mod placement;
mod queue;
mod returned;
mod special;
mod state;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use distest_worker::protocol::{AttemptId, BinaryKey, Stop};

use crate::event::CancelReason;
use crate::model::{AttemptResult, TestIndex, Verdict, WorkerId};
use crate::pace::Pace;
use crate::plan::{Rank, Urgency};
pub use company::{Acquainted, Batch, Company, InBatch, Returned};
use hedge::Hedges;
pub(crate) use mutation::Mutation;
pub use needs::{Group, GroupIndex, Mismatch, Needs, Place, Traits};
use placement::{Asked, Wanted, Whom};
use queue::{Popped, Queue};
pub use special::LOSSES_ALONE_MAX;
use special::Special;
use state::{Depth, FailedAlone, Live, Readiness, Role, Story, Worker, Workers};

/// A test that keeps being lost gets the verdict [`Verdict::Lost`] after this many losses.
pub const LOSSES_MAX: u32 = 5;
/// Binaries that are being made ready on one worker at a time.
const PREPARING_MAX: usize = 4;
/// Of the workers that found nothing to take so many are looked at again when something ends.
const WOKEN_AT_ONCE: usize = 4;

/// What a run's settings say to the scheduler. By default each test has one attempt, and nothing is
/// bounded.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules {
    /// Attempts beyond the first that a failing test gets.
    pub retries: u32,
    /// Stop starting tests after this many failures; none: never.
    pub failures_max: Option<u32>,
    /// On reaching `failures_max`, end what runs too.
    pub failures_end_running: bool,
    /// A flaky test counts as a failure.
    pub flaky_fails: bool,
    /// Attempts at once over all workers; none: as many as there are slots.
    pub threads: Option<u32>,
    /// When nothing waits, an overdue attempt is also started on another worker that is idle.
    pub hedge: bool,
}

/// A test to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Its number: tests are numbered from 0 without gaps, in the order in which they are added.
    pub test: TestIndex,
    /// Its binary.
    pub binary: BinaryKey,
    /// Its place in the queue.
    pub rank: Rank,
    /// What it asks of where and beside whom it runs, if anything.
    pub needs: Option<Arc<Needs>>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Tests became known.
    Added(Vec<Task>),
    /// These of the tests that are known, and wait, share processes. Before [`Input::Open`].
    Batched {
        /// Who with whom.
        batches: Vec<Batch>,
        /// With whom those pass that may fail alone.
        acquainted: Vec<Acquainted>,
    },
    /// What tests of which nothing was known will probably take, each on an ordinary slot.
    Timed(Vec<(TestIndex, Duration)>),
    /// No more tests will become known.
    AllAdded,
    /// Everything is built and the tree is known: attempts may start.
    Open,
    /// A worker can be used.
    Joined {
        /// Its number: never used before.
        worker: WorkerId,
        /// Attempts that it runs at once, at least 1.
        slots: u32,
        /// From a request to its answer.
        round_trip: Duration,
        /// What is true of it.
        traits: Traits,
    },
    /// All addresses have answered or failed: no more workers will join by themselves.
    NoMoreWorkers,
    /// Answers [`Effect::Prepare`].
    Ready {
        /// Where.
        worker: WorkerId,
        /// What.
        binary: BinaryKey,
    },
    /// Answers [`Effect::Prepare`]: this binary will not run there.
    Refused {
        /// Where.
        worker: WorkerId,
        /// What.
        binary: BinaryKey,
    },
    /// Answers [`Effect::Prepare`]: it lacks more than was to be sent, and was sent nothing.
    Lacks {
        /// Where.
        worker: WorkerId,
        /// What.
        binary: BinaryKey,
        /// Bytes of files, before compression.
        bytes: u64,
    },
    /// Files have got to a worker.
    Arrived {
        /// Where.
        worker: WorkerId,
        /// Bytes of them, before compression.
        bytes: u64,
        /// How long that took.
        took: Duration,
    },
    /// An attempt's process runs.
    Started {
        /// Where.
        worker: WorkerId,
        /// Which.
        attempt: AttemptId,
        /// Since it was handed out.
        waited: Duration,
    },
    /// Answers [`Effect::Watch`], if the attempt has not ended before.
    Overdue {
        /// Where.
        worker: WorkerId,
        /// Which.
        attempt: AttemptId,
    },
    /// Tests of a batch have ended in their order.
    Progressed {
        /// Where.
        worker: WorkerId,
        /// Which batch.
        attempt: AttemptId,
        /// So many, since its start.
        finished: u32,
    },
    /// Answers [`Effect::Lease`], once per attempt that is no batch.
    Ended {
        /// Where.
        worker: WorkerId,
        /// Which.
        attempt: AttemptId,
        /// How.
        result: AttemptResult,
        /// How long it ran.
        duration: Duration,
    },
    /// Answers [`Effect::Lease`] like [`Input::Ended`], for a test in a process of its own that died
    /// by an instruction that its processor doesn't know: the test's fault, or the machine's.
    IllegalInstruction {
        /// Where.
        worker: WorkerId,
        /// Which.
        attempt: AttemptId,
        /// How long it ran.
        duration: Duration,
    },
    /// Answers [`Effect::Lease`], once per batch.
    BatchEnded {
        /// Where.
        worker: WorkerId,
        /// Which.
        attempt: AttemptId,
        /// What became of its tests, in their order; of a witness, of the test in question.
        tests: Vec<Returned>,
        /// How long it ran.
        duration: Duration,
    },
    /// Answers [`Effect::Revoke`]: these never started and never will. The others of the request
    /// run or have ended.
    Revoked {
        /// Where.
        worker: WorkerId,
        /// Which.
        attempts: Vec<AttemptId>,
    },
    /// A worker takes nothing more, by its own word: it is given nothing more, and what it has not
    /// started is taken back.
    Leaving {
        /// Which.
        worker: WorkerId,
    },
    /// A worker is short of memory, or not any more: until then it is given one thing at a time,
    /// and what else it has not started is taken back.
    Memory {
        /// Which.
        worker: WorkerId,
        /// It is short now.
        short: bool,
    },
    /// A worker's connection is gone. What it has may still run: it is given nothing more, and
    /// [`Input::Lost`] follows when it has certainly fenced itself.
    Cut {
        /// Which.
        worker: WorkerId,
    },
    /// A worker is gone, and with it all that it had: nothing runs there any more.
    Lost {
        /// Which.
        worker: WorkerId,
    },
    /// Answers [`Effect::NeedWorker`]: there will be none. The run ends when all is done that those
    /// who are there take.
    NoWorker,
    /// Start nothing more.
    Cancel {
        /// Why.
        reason: CancelReason,
        /// What becomes of what runs.
        how: Stop,
    },
}

/// Whom an input concerns. Attempts come and go by the thousand, and concern few: what has to run
/// again is seen to where it is queued.
struct Reach {
    /// Who may have to be made ready for something.
    prepare: Whom,
    /// Who may take more.
    hand_out: Whom,
    /// Those who found nothing to take may find something.
    stirs: bool,
}

impl Reach {
    fn of(input: &Input) -> Self {
        use Whom::{All, Nobody, One};
        let (prepare, hand_out, stirs) = match input {
            Input::Progressed { .. } => (Nobody, Nobody, false),
            Input::Started { worker, .. } => (Nobody, One(*worker), false),
            Input::Ended { .. }
            | Input::IllegalInstruction { .. }
            | Input::BatchEnded { .. }
            | Input::Revoked { .. } => (Nobody, All, false),
            Input::Lacks { worker, .. } | Input::Arrived { worker, .. } => {
                (One(*worker), Nobody, false)
            }
            Input::Joined { worker, .. } | Input::Ready { worker, .. } => {
                (One(*worker), One(*worker), false)
            }
            _ => (All, All, true),
        };
        Self { prepare, hand_out, stirs }
    }
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Make a binary ready on a worker. Answered by [`Input::Ready`], [`Input::Refused`],
    /// [`Input::Lacks`] or [`Input::Lost`].
    Prepare {
        /// Where.
        worker: WorkerId,
        /// What.
        binary: BinaryKey,
        /// If it lacks more bytes of it than this, send nothing.
        bytes_max: u64,
    },
    /// Hand these attempts to a worker. Each is answered by [`Input::Ended`] or
    /// [`Input::BatchEnded`], [`Input::Revoked`] or [`Input::Lost`].
    Lease {
        /// To which.
        worker: WorkerId,
        /// In the order in which to start them.
        grants: Vec<Grant>,
    },
    /// Take back what has not started. Answered by [`Input::Revoked`].
    Revoke {
        /// From which.
        worker: WorkerId,
        /// Which.
        attempts: Vec<AttemptId>,
    },
    /// Say so if this attempt has not ended after so long. Answered by
    /// [`Input::Overdue`].
    Watch {
        /// Where.
        worker: WorkerId,
        /// Which.
        attempt: AttemptId,
        /// How long.
        after: Duration,
    },
    /// End a running attempt: nobody waits for it any more. Answered as [`Effect::Lease`] is, and
    /// whatever that says does not count.
    Kill {
        /// Where.
        worker: WorkerId,
        /// Which.
        attempt: AttemptId,
    },
    /// Drop what is queued there and treat what runs like this. Answered by [`Input::Ended`] for
    /// each attempt.
    Stop {
        /// Which worker.
        worker: WorkerId,
        /// How.
        how: Stop,
    },
    /// Tell of an attempt's end. No answer.
    AttemptEnded {
        /// Which.
        attempt: AttemptId,
        /// Of which test.
        test: TestIndex,
        /// From 1, one more for each attempt of the test that is told, whatever became of it.
        number: u32,
        /// How, as it counts.
        result: AttemptResult,
        /// Another follows because of the rules.
        will_retry: bool,
        /// It failed alone, and passes in the batch into which it belongs.
        only_in_company: bool,
    },
    /// Tell that a test that was in a batch runs again, alone. No answer.
    RunsAgainAlone {
        /// Which.
        test: TestIndex,
        /// How it came out of the batch.
        outcome: InBatch,
    },
    /// Tell that an overdue attempt is started once more elsewhere. No answer.
    Hedged {
        /// Of which test.
        test: TestIndex,
        /// From 1; both attempts have it.
        number: u32,
        /// Where it is overdue.
        overdue: WorkerId,
        /// Where else it runs now.
        worker: WorkerId,
    },
    /// Tell that the other attempt of a hedged test goes on as the only one. No answer.
    GoesOn {
        /// Which.
        attempt: AttemptId,
        /// From 1: the test's next try, if the one that ended counts as one.
        number: u32,
    },
    /// Tell nothing more of this attempt: the other one of a hedged test has decided. No answer.
    Abandoned {
        /// Which.
        attempt: AttemptId,
        /// Of which test.
        test: TestIndex,
    },
    /// Tell of a test's verdict. No answer.
    Verdict {
        /// Of which test.
        test: TestIndex,
        /// Which.
        verdict: Verdict,
    },
    /// Tell that nothing more is started. No answer.
    Cancelling {
        /// Why.
        reason: CancelReason,
        /// Attempts whose processes run now and that count.
        running: u32,
    },
    /// Tell that a test is to blame for the loss of workers: its attempt's end and its verdict
    /// follow. No answer.
    TookDown {
        /// Its last attempt.
        attempt: AttemptId,
        /// How many workers were lost while it ran there alone.
        workers: u32,
    },
    /// Tell that a worker gets nothing more. No answer.
    Quarantined {
        /// Which.
        worker: WorkerId,
        /// It fails what others pass; else: attempts come to no end there.
        fails: bool,
    },
    /// Tell that the run can't go on because no worker meets a test's needs. No answer.
    Unplaceable {
        /// The first such test.
        test: TestIndex,
        /// How many others there are.
        more: u32,
    },
    /// There are tests that no worker will take; what others take goes on meanwhile. Answered by [`Input::Joined`] or
    /// [`Input::NoWorker`].
    NeedWorker,
    /// Every test has its verdict and none will be added. The last effect.
    Done,
}

/// One attempt handed to a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Its name.
    pub attempt: AttemptId,
    /// Of which test; of a batch, the first.
    pub test: TestIndex,
    /// From 1.
    pub number: u32,
    /// As the test itself counts: from 1, without its attempts in batches and those that were lost.
    pub alone: u32,
    /// Places on the worker that it takes, of whichever client's; more than there are: all.
    pub places: u32,
    /// With whom it runs.
    pub company: Company,
}

/// The state of a run's tests and workers.
#[derive(Debug)]
pub struct Scheduler {
    rules: Rules,
    stories: Vec<Story>,
    queue: Queue,
    special: Special,
    workers: Workers,
    hedges: Hedges,
    attempts_made: u64,
    failures: u32,
    /// Witnesses that were sought, but for those who saw their test pass.
    witnesses: u32,
    done: usize,
    phase: Phase,
    #[cfg(test)]
    mutation: Option<Mutation>,
    /// What is not live any more, for a bug that listens to it.
    #[cfg(test)]
    late: BTreeMap<AttemptId, Live>,
}

/// How far the run is, apart from its tests.
#[derive(Debug, Default)]
struct Phase {
    all_added: bool,
    open: bool,
    no_more_workers: bool,
    /// [`Effect::NeedWorker`] was told, and nobody has joined since.
    asked_for_worker: bool,
    /// [`Effect::NeedWorker`] was answered by [`Input::NoWorker`]: the run ends when all is done that
    /// those who are there take.
    nobody_comes: bool,
    /// Who may have to be made ready for something: what binaries are wanted, or which worker has
    /// them, may have changed.
    prepare: Whom,
    /// Something waits that did not before, or who takes what is another question now.
    stirred: bool,
    /// A worker was quarantined or leaves, and what it has not started is to be taken back.
    quarantined: bool,
    cancelled: Option<CancelReason>,
    finished: bool,
}

impl Scheduler {
    /// A run in which nothing is known yet.
    pub fn new(rules: Rules) -> Self {
        Self::with_groups(rules, Vec::new())
    }

    /// The same with groups, for tests that name them by their place.
    pub fn with_groups(rules: Rules, groups: Vec<Group>) -> Self {
        Self {
            special: Special::new(groups),
            rules,
            stories: Vec::new(),
            queue: Queue::default(),
            workers: Workers::default(),
            hedges: Hedges::default(),
            attempts_made: 0,
            failures: 0,
            witnesses: 0,
            done: 0,
            phase: Phase::default(),
            #[cfg(test)]
            mutation: None,
            #[cfg(test)]
            late: Default::default(),
        }
    }

    /// Takes one input and appends what to do.
    pub fn step(&mut self, input: Input, effects: &mut Vec<Effect>) {
        let reach = Reach::of(&input);
        self.phase.prepare = self.phase.prepare.and(reach.prepare);
        self.phase.stirred |= reach.stirs;
        match input {
            Input::Added(tasks) => self.add(tasks, effects),
            Input::Batched { batches, acquainted } => self.batch(batches, acquainted),
            Input::Timed(times) => {
                for (test, takes) in times {
                    self.time(test, takes);
                }
            }
            Input::AllAdded => self.phase.all_added = true,
            Input::Open => self.phase.open = true,
            Input::Joined { worker, slots, round_trip, traits } => {
                self.phase.asked_for_worker = false;
                self.phase.nobody_comes = false;
                let formerly = traits.formerly.filter(|_| !self.has(Mutation::ForgetWorker));
                let traits = Traits { formerly, ..traits };
                self.workers.insert(worker, slots, round_trip, traits);
            }
            Input::NoMoreWorkers => self.phase.no_more_workers = true,
            Input::Ready { worker, binary } => {
                self.workers.answer(worker, binary, Readiness::Ready);
            }
            Input::Refused { worker, binary } => {
                self.workers.answer(worker, binary, Readiness::Refused);
            }
            Input::Lacks { worker, binary, bytes } => {
                let now = match self.has(Mutation::TakeLackForReady) {
                    true => Readiness::Ready,
                    false => Readiness::Far(bytes),
                };
                self.workers.answer(worker, binary, now);
            }
            Input::Arrived { worker, bytes, took } => {
                self.workers.learn_rate(worker, bytes, took);
            }
            Input::Started { worker, attempt, waited } => {
                self.workers.started(worker, attempt);
                self.workers.learn_overhead(worker, attempt, waited);
                self.watch(worker, attempt, effects);
            }
            Input::Overdue { worker, attempt } => self.overdue(worker, attempt),
            Input::Ended { worker, attempt, result, duration } => {
                self.end(worker, attempt, result, duration, effects);
            }
            Input::IllegalInstruction { worker, attempt, duration } => {
                self.end_by_illegal_instruction(worker, attempt, duration, effects);
            }
            Input::Progressed { worker, attempt, finished } => {
                self.workers.progressed(worker, attempt, finished);
            }
            Input::BatchEnded { worker, attempt, tests, duration } => {
                self.end_batch(worker, attempt, &tests, duration, effects);
            }
            Input::Revoked { worker, attempts } => self.take_back(worker, &attempts, effects),
            Input::Leaving { worker } => {
                self.workers.leave(worker);
                self.phase.quarantined = true;
            }
            Input::Memory { worker, short } => {
                if !self.has(Mutation::LeaseWhenShort) {
                    self.workers.short(worker, short);
                }
                self.phase.quarantined |= short;
            }
            Input::Cut { worker } => self.cut(worker),
            Input::Lost { worker } => self.lose(worker, effects),
            Input::NoWorker => self.no_worker(effects),
            Input::Cancel { reason, how } => self.cancel(reason, how, effects),
        }
        self.hand_out(reach.hand_out, effects);
        self.give_up(effects);
        self.finish(effects);
        debug_assert_eq!(self.check(), Ok(()));
    }

    /// What is known of the workers that are or were there.
    pub fn paces(&self) -> BTreeMap<WorkerId, Pace> {
        self.workers.paces()
    }

    /// Why the run was cancelled, if it was.
    pub fn cancelled(&self) -> Option<CancelReason> {
        self.phase.cancelled
    }

    fn add(&mut self, tasks: Vec<Task>, effects: &mut Vec<Effect>) {
        for task in tasks {
            debug_assert_eq!(task.test.0 as usize, self.stories.len());
            self.stories.push(Story::new(task.binary, task.rank, task.needs));
            if self.phase.cancelled.is_some() {
                self.decide(task.test, Verdict::Skipped, effects);
            } else if self.stories[task.test.0 as usize].is_special() {
                self.wait_specially(task.rank, task.test);
            } else {
                self.queue.insert(task.binary, task.rank, task.test, Company::Alone);
            }
        }
    }

    /// Gives a test of which nothing was known another place in the queue, if it waits.
    fn time(&mut self, test: TestIndex, takes: Duration) {
        let Some(story) = self.stories.get_mut(test.0 as usize) else { return };
        let before = story.rank;
        if before.urgency != Urgency::New {
            return;
        }
        let rank = Rank { urgency: Urgency::Known, expected: Reverse(takes) };
        story.rank = rank;
        let binary = story.binary;
        if self.special.rerank(&self.stories[test.0 as usize], before, test) {
            return;
        }
        if self.queue.remove(binary, before, test) {
            self.queue.insert(binary, rank, test, Company::Alone);
        }
    }

    pub(super) fn end(
        &mut self,
        worker: WorkerId,
        attempt: AttemptId,
        result: AttemptResult,
        duration: Duration,
        effects: &mut Vec<Effect>,
    ) {
        // A lost worker's late result, or a lie: the attempt has no say any more.
        let Some(live) = self.take_live(worker, attempt) else { return };
        if live.role == Role::Abandoned {
            return;
        }
        let Live { test, number, company, started, .. } = live;
        if company != Company::Alone {
            // A batch that is answered like a test: nothing is known of its tests.
            return self.batch_ended(attempt, &company, test, &[], effects);
        }
        if result == AttemptResult::Lost {
            self.avoid(test, worker);
            let bad = self.phase.cancelled.is_none() && self.workers.trouble(worker, false);
            if bad {
                self.quarantine(worker, false, effects);
            }
            self.lost_attempt(attempt, test, number, effects);
            if !self.goes_on(attempt, effects) {
                self.requeue(test, started, effects);
            }
            return;
        }
        self.workers.learn(worker, duration);
        let expected = self.stories[test.0 as usize].rank;
        if expected.urgency == Urgency::Known {
            self.workers.learn_speed(worker, expected.expected.0, duration);
        }
        self.workers.trouble(worker, true);
        self.compare(test, worker, result, effects);
        let cancelled = self.phase.cancelled.is_some();
        let story = &mut self.stories[test.0 as usize];
        let tries = self.rules.retries.saturating_add(story.free);
        let will_retry = !result.passed() && number <= tries && !cancelled;
        let decides = !result.passed() && !will_retry && !cancelled;
        if decides && self.wants_witness(test, result) {
            return self.seek_witness(FailedAlone { attempt, number, result }, test);
        }
        let only_in_company = false;
        let ended =
            Effect::AttemptEnded { attempt, test, number, result, will_retry, only_in_company };
        effects.push(ended);
        let story = &mut self.stories[test.0 as usize];
        if will_retry {
            story.number += 1;
            story.failed_before = Some(result);
            self.avoid(test, worker);
            if !self.goes_on(attempt, effects) {
                self.queue_again(test);
            }
            return;
        }
        let verdict = story.verdict_after(result);
        self.abandon_twin(attempt, effects);
        self.decide(test, verdict, effects);
    }

    /// Tells of an attempt that came to no end of its own, and counts it.
    fn lost_attempt(
        &mut self,
        attempt: AttemptId,
        test: TestIndex,
        number: u32,
        effects: &mut Vec<Effect>,
    ) {
        self.stories[test.0 as usize].losses += 1;
        self.tell_lost(attempt, test, number, effects);
    }

    /// Tells of an attempt that came to no end of its own: the next has another number, and is no
    /// other try.
    fn tell_lost(
        &mut self,
        attempt: AttemptId,
        test: TestIndex,
        number: u32,
        effects: &mut Vec<Effect>,
    ) {
        let story = &mut self.stories[test.0 as usize];
        story.number += 1;
        story.free += 1;
        let result = AttemptResult::Lost;
        let (will_retry, only_in_company) = (false, false);
        let ended =
            Effect::AttemptEnded { attempt, test, number, result, will_retry, only_in_company };
        effects.push(ended);
    }

    /// A test that was handed out in vain goes back: for free, unless that keeps happening.
    fn requeue(&mut self, test: TestIndex, started: bool, effects: &mut Vec<Effect>) {
        let cancelled = self.phase.cancelled.is_some() && !self.has(Mutation::RequeueCancelled);
        let story = &self.stories[test.0 as usize];
        if cancelled {
            let verdict = if started { Verdict::Lost } else { Verdict::Skipped };
            self.decide(test, verdict, effects);
        } else if story.losses >= LOSSES_MAX || story.culprit {
            self.decide(test, Verdict::Lost, effects);
        } else {
            self.queue_again(test);
        }
    }

    pub(super) fn queue_again(&mut self, test: TestIndex) {
        self.queue_in_company(test, Company::Alone);
    }

    fn queue_in_company(&mut self, test: TestIndex, company: Company) {
        let story = &self.stories[test.0 as usize];
        let (binary, rank) = (story.binary, Rank { urgency: Urgency::Again, ..story.rank });
        if company == Company::Alone && story.is_special() {
            // Of others of its binary nobody may have known that it has no place any more.
            if !self.special.has(binary) || !self.may_be_placed(test) {
                self.phase.prepare = Whom::All;
            }
            self.wait_specially(rank, test);
        } else {
            if !self.queue.has(binary) {
                self.phase.prepare = Whom::All;
            }
            self.phase.stirred = true;
            self.queue.insert(binary, rank, test, company);
        }
    }

    fn take_back(&mut self, worker: WorkerId, attempts: &[AttemptId], effects: &mut Vec<Effect>) {
        self.workers.revoking(worker, false);
        for attempt in attempts {
            let Some(live) = self.take_live(worker, *attempt) else { continue };
            if live.role == Role::Abandoned || self.goes_on(*attempt, effects) {
                continue;
            }
            match live {
                Live { test, company: Company::Alone, .. } => self.requeue(test, false, effects),
                Live { test, company, .. } => self.requeue_batch(test, company, effects),
            }
        }
    }

    fn lose(&mut self, worker: WorkerId, effects: &mut Vec<Effect>) {
        if self.has(Mutation::KeepDeadWork) && self.workers.none_started(worker) {
            return;
        }
        let slots = self.workers.worker(worker).map_or(0, Worker::slots);
        let first = self.workers.first(worker);
        let had = self.workers.remove(worker);
        let alone = had.len() == 1;
        let mut ahead = 0;
        for (attempt, live) in had {
            // What the first of its slots had may have begun although nobody said so; whoever waited
            // behind those didn't. When a run ends nothing is repeated, and nothing has to be counted.
            let may_run = ahead < slots || self.has(Mutation::CountPrefetched);
            let counts = may_run && self.phase.cancelled.is_none();
            let may_have_begun = !live.started && counts && !self.has(Mutation::ForgetUnstarted);
            ahead += live.weight;
            #[cfg(test)]
            self.late.insert(attempt, live.clone());
            self.hedges.gone(attempt);
            if !self.has(Mutation::ReleaseGroupEarly) {
                self.special.left(live.group);
            }
            if live.role == Role::Abandoned {
                continue;
            }
            if !live.started && self.has(Mutation::SkipRequeue) {
                continue;
            }
            if live.company != Company::Alone {
                self.lose_batch(attempt, live, (first, may_have_begun), effects);
                continue;
            }
            // Only what had started, or may have, is told of: the rest never was an attempt.
            if may_have_begun {
                self.lost_unstarted(attempt, (live.test, live.number), first, effects);
            }
            if live.started {
                let alone = alone && live.solo || self.has(Mutation::BlamePresence);
                self.suspect(live.test, first, alone);
                let story = &self.stories[live.test.0 as usize];
                if story.culprit {
                    let workers = story.alone_on.len() as u32;
                    effects.push(Effect::TookDown { attempt, workers });
                }
                self.lost_attempt(attempt, live.test, live.number, effects);
            }
            if !self.goes_on(attempt, effects) {
                self.requeue(live.test, live.started, effects);
            }
        }
    }

    fn cancel(&mut self, reason: CancelReason, how: Stop, effects: &mut Vec<Effect>) {
        if self.phase.finished {
            return;
        }
        if self.phase.cancelled.is_none() {
            self.phase.cancelled = Some(reason);
            let running = self.workers.running();
            effects.push(Effect::Cancelling { reason, running });
            let mut waiting = self.queue.drain();
            waiting.extend(self.special.drain());
            waiting.sort_unstable();
            for test in waiting {
                // What failed and would have had another try has failed; what was lost and is queued
                // again did begin, and came to no end.
                let story = &self.stories[test.0 as usize];
                match (&story.failed_alone, story.failed_before, story.losses > 0) {
                    (Some(_), _, _) => self.heard_witness(test, false, effects),
                    (None, Some(result), _) => {
                        self.decide(test, story.verdict_after(result), effects);
                    }
                    (None, None, true) => self.decide(test, Verdict::Lost, effects),
                    (None, None, false) => self.decide(test, Verdict::Skipped, effects),
                }
            }
        }
        for worker in self.workers.ids() {
            effects.push(Effect::Stop { worker, how });
        }
    }

    fn decide(&mut self, test: TestIndex, verdict: Verdict, effects: &mut Vec<Effect>) {
        let story = &mut self.stories[test.0 as usize];
        debug_assert!(story.verdict.is_none(), "{test:?} has a verdict already");
        story.verdict = Some(verdict);
        self.done += 1;
        effects.push(Effect::Verdict { test, verdict });
        let failed = match verdict {
            Verdict::Fail | Verdict::Timeout | Verdict::Crashed | Verdict::Lost => true,
            Verdict::Flaky => self.rules.flaky_fails,
            Verdict::Pass | Verdict::Skipped => false,
        };
        self.failures += u32::from(failed);
        let enough = self.rules.failures_max.is_some_and(|max| self.failures >= max);
        if failed && enough && self.phase.cancelled.is_none() {
            let ends = self.rules.failures_end_running;
            let how = if ends { Stop::Terminate } else { Stop::Drain };
            self.cancel(CancelReason::TestFailure, how, effects);
        }
    }

    /// Gives free slots of these workers work, the most urgent and longest first.
    fn hand_out(&mut self, whom: Whom, effects: &mut Vec<Effect>) {
        if self.phase.cancelled.is_some() {
            return;
        }
        let unready = std::mem::take(&mut self.phase.prepare);
        if unready != Whom::Nobody {
            self.prepare(unready, effects);
        }
        if !self.phase.open {
            return;
        }
        self.clear_quarantined(effects);
        self.place_special(true, effects);
        let stirred = std::mem::take(&mut self.phase.stirred);
        self.workers.wake(if stirred { usize::MAX } else { WOKEN_AT_ONCE });
        let whom = if stirred { Whom::All } else { whom };
        // Who is fastest with a binary, as far as somebody wanted to know.
        let mut fastest = BTreeMap::new();
        for depth in [Depth::Slots, Depth::Prefetch] {
            // The emptiest worker first, so that what is left over goes where it starts soonest.
            for worker in self.workers.eager(whom) {
                if self.queue.len() == 0 || self.permits() == 0 {
                    break;
                }
                let grants = self.grants(worker, depth, &mut fastest, effects);
                if !grants.is_empty() {
                    effects.push(Effect::Lease { worker, grants });
                }
            }
        }
        if self.queue.len() == 0 {
            self.place_special(false, effects);
            self.hedge(effects);
            self.rebalance(effects);
        }
    }

    fn prepare(&mut self, whom: Whom, effects: &mut Vec<Effect>) {
        let mut wanted: Vec<_> = self.queue.binaries().collect();
        wanted.extend(self.special.binaries().filter(|binary| !self.queue.has(*binary)));
        if wanted.is_empty() {
            // What others prefetched can be taken back for a worker that joins late.
            let waiting = self.workers.waiting().flat_map(|(_, waiting)| waiting);
            let binaries = waiting.map(|(_, live)| self.stories[live.test.0 as usize].binary);
            wanted = BTreeSet::from_iter(binaries).into_iter().collect();
        }
        // Nobody has to have these: who runs them now does.
        let overdue = self.overdue_binaries().filter(|binary| !wanted.contains(binary));
        let asked: Vec<_> = wanted.iter().copied().chain(BTreeSet::from_iter(overdue)).collect();
        let asked = asked.into_iter().map(|binary| {
            // What must run just here, or somewhere else, may be wanted anywhere.
            let plain = !self.special.has(binary);
            Wanted { binary, work: self.queue.work_of(binary).filter(|_| plain) }
        });
        let asked: Vec<_> = asked.collect();
        for Asked { worker, binary, bytes_max } in self.workers.ask(whom, &asked, PREPARING_MAX) {
            effects.push(Effect::Prepare { worker, binary, bytes_max });
        }
        let needed = self.phase.no_more_workers && !self.phase.asked_for_worker;
        let refused = |binary: &BinaryKey| !self.workers.may_take(*binary);
        if needed && (wanted.iter().any(refused) || self.homeless().is_some()) {
            self.phase.asked_for_worker = true;
            effects.push(Effect::NeedWorker);
        }
    }

    fn grants(
        &mut self,
        worker: WorkerId,
        depth: Depth,
        fastest: &mut BTreeMap<BinaryKey, Option<WorkerId>>,
        effects: &mut Vec<Effect>,
    ) -> Vec<Grant> {
        let mut room = self.workers.room(worker, depth).min(self.permits());
        if depth == Depth::Prefetch {
            // What is left is for all: nobody takes more ahead than an equal share.
            let share = self.queue.len().div_ceil(self.workers.len().max(1));
            room = room.min(u32::try_from(share).unwrap_or(u32::MAX));
        }
        let mut grants = Vec::new();
        let waiting = self.queue.work();
        let taste = self.workers.taste(worker, waiting, self.queue.longest());
        let waits_for_nobody = self.has(Mutation::WaitForNobody);
        for _ in 0..room {
            let mut sooner = None;
            let popped = self.queue.pop(
                |binary| self.workers.is_ready(worker, binary),
                taste,
                |binary, expected| {
                    let workers = &self.workers;
                    let on = fastest.entry(binary).or_insert_with(|| workers.fastest(binary));
                    sooner = on.filter(|on| workers.is_sooner(*on, worker, waiting, expected));
                    sooner.is_none() && !waits_for_nobody
                },
            );
            // Who is waited for must be heard of: what it runs, or that it takes too long.
            let relied_on = sooner.and_then(|on| Some((on, self.workers.rely_on(on)?)));
            effects.extend(relied_on.map(|(worker, (attempt, after))| Effect::Watch {
                worker,
                attempt,
                after,
            }));
            let Some(Popped { test, company, expected }) = popped else {
                self.workers.be_patient(worker);
                break;
            };
            if self.has(Mutation::DoubleGrant) && company == Company::Alone {
                self.queue_again(test);
            }
            let attempt = self.next_attempt();
            let Story { number, free, .. } = self.stories[test.0 as usize];
            let with = company.clone();
            let fresh = depth == Depth::Slots;
            let live = Live { expected, fresh, ..Live::new(test, number, company) };
            self.workers.grant(worker, attempt, live);
            let alone = number - free;
            grants.push(Grant { attempt, test, number, alone, places: 1, company: with });
        }
        grants
    }

    /// Slots that may yet be taken, wherever they are.
    fn permits(&self) -> u32 {
        self.rules.threads.map_or(u32::MAX, |max| max.saturating_sub(self.workers.load()))
    }

    /// Numbers are never used twice, so a late word about an old attempt is never one about a new.
    fn next_attempt(&mut self) -> AttemptId {
        let attempt = AttemptId(self.attempts_made);
        self.attempts_made += 1;
        attempt
    }

    /// With an empty queue, takes prefetched attempts back for slots that are free elsewhere.
    fn rebalance(&mut self, effects: &mut Vec<Effect>) {
        let mut free = self.workers.free_slots();
        if free == 0 || self.workers.outstanding() == 0 {
            return;
        }
        let mut revokes = Vec::new();
        for (worker, waiting) in self.workers.waiting() {
            let wanted = waiting.into_iter().filter(|(_, live)| {
                let Story { binary, needs, .. } = &self.stories[live.test.0 as usize];
                let needs = needs.as_deref();
                self.workers.free_elsewhere(worker, *binary, needs, live.expected)
            });
            let wanted = wanted.map(|(attempt, _)| attempt);
            let attempts: Vec<_> = wanted.take(free as usize).collect();
            free -= attempts.len() as u32;
            if !attempts.is_empty() {
                revokes.push((worker, attempts));
            }
        }
        for (worker, attempts) in revokes {
            self.workers.revoking(worker, true);
            effects.push(Effect::Revoke { worker, attempts });
        }
    }

    fn finish(&mut self, effects: &mut Vec<Effect>) {
        let complete = self.phase.all_added || self.phase.cancelled.is_some();
        if complete && self.done == self.stories.len() && !self.phase.finished {
            self.phase.finished = true;
            effects.push(Effect::Done);
        }
    }

    /// What must hold after every step.
    ///
    /// # Errors
    /// Says which invariant is broken.
    pub fn check(&self) -> Result<(), String> {
        let (queued, live) = (self.queue.len() + self.special.len(), self.workers.tests());
        self.special.check()?;
        let (done, known) = (self.done, self.stories.len());
        if queued + live + done != known {
            return Err(format!("{queued} queued + {live} live + {done} done ≠ {known} known"));
        }
        let load = self.workers.load();
        if self.rules.threads.is_some_and(|threads| load > threads) {
            let threads = self.rules.threads;
            return Err(format!("{load} slots are taken, {threads:?} may be"));
        }
        // The full audit costs time in proportion to the fleet: for small ones only.
        if known <= 1_000 { self.workers.check() } else { Ok(()) }
    }
}
