//! Folds what happened into what it means: one [`Summary`] per run. Pure.
//!
//! Every event of a run goes through [`Summary::apply`] before a reporter sees it, so a reporter
//! finds in the summary what came before, the event included. A test case gets exactly one
//! verdict; a second one, or one for a test that was never planned, is a bug and panics.

mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

pub use self::state::{Attempt, Counts, TestState};
use crate::event::{
    AttemptEnded, BatchEnded, CancelReason, PlanComplete, RunEvent, RunFinished, RunStarted,
    WorkerDone, WorkerInfo,
};
use crate::failure::ExitCode;
use crate::model::{AttemptResult, TestCase, TestIndex, Triple, Verdict, WorkerId};
use crate::settings::{OutputWhen, ReportSettings, Settings};

/// All that is known of a run so far.
#[derive(Debug)]
pub struct Summary {
    settings: SummarySettings,
    started: Option<RunStarted>,
    built: Option<Duration>,
    plan: Option<PlanComplete>,
    tests: Vec<TestState>,
    counts: Counts,
    /// Planned test cases that have their verdict.
    done: u32,
    /// Those of them that got it for something that happened.
    placed: u32,
    /// Test cases that were skipped and never planned.
    left_out: u32,
    running: BTreeSet<TestIndex>,
    workers: BTreeMap<WorkerId, WorkerDone>,
    /// The slots of those that are there now, and how many there were at most.
    there: BTreeMap<WorkerId, u32>,
    slots_max: u32,
    cancelled: Option<CancelReason>,
    batches: Vec<Arc<BatchEnded>>,
    /// Sum of the durations of attempts that came to an end of their own.
    work: Duration,
    ended: u32,
    span: Option<Span>,
    first_result: Option<Duration>,
    /// Expected work of planned tests without a verdict, and how many of them have no expectation.
    expected_open: Duration,
    unknown_open: u32,
    finished: Option<RunFinished>,
}

/// What a [`Summary`] must know of the settings.
#[derive(Clone, Copy, Debug, Default)]
pub struct SummarySettings {
    /// A flaky test counts as a failure.
    pub flaky_fails: bool,
    /// Attempts beyond the first that a failing test gets.
    pub retries: u32,
    /// Tests at once over the whole run; none: as many as there are slots.
    pub test_threads: Option<u32>,
    /// Keep the output of passing attempts until the end of the run, not only of failed ones.
    pub keep_passes: bool,
}

/// What bounds the time that the tests take, from below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bound {
    /// This test, with all its attempts.
    Longest(TestCase, Duration),
    /// All work, dealt evenly to this many slots.
    Work(Duration, u32),
}

/// What only the caller knows when a run ends.
#[derive(Clone, Copy, Debug)]
pub struct Ending {
    /// What the process will exit with.
    pub exit_code: ExitCode,
    /// Since the run's start.
    pub elapsed: Duration,
    /// When cargo had linked everything, since the run's start.
    pub built_at: Option<Duration>,
    /// An earlier error ended the run: told elsewhere.
    pub failed_early: bool,
}

/// When the first attempt started and the last one ended, since the run's start.
#[derive(Clone, Copy, Debug)]
struct Span {
    from: Duration,
    to: Duration,
}

impl SummarySettings {
    /// As the settings of a run ask for it.
    pub fn of(settings: &Settings) -> Self {
        Self {
            flaky_fails: settings.execute.flaky_fails,
            retries: settings.execute.retries,
            test_threads: settings.execute.test_threads,
            ..Self::kept_for(&settings.report)
        }
    }

    /// Keeps what these reports need.
    pub fn kept_for(report: &ReportSettings) -> Self {
        let at_end = |when| matches!(when, OutputWhen::Final | OutputWhen::ImmediateFinal);
        let junit = report.junit.is_some();
        Self {
            keep_passes: at_end(report.success_output) || junit && report.junit_success_output,
            ..Self::default()
        }
    }
}

impl Summary {
    /// Nothing has happened yet.
    pub fn new(settings: SummarySettings) -> Self {
        Self {
            settings,
            started: None,
            built: None,
            plan: None,
            tests: Vec::new(),
            counts: Counts::default(),
            done: 0,
            placed: 0,
            left_out: 0,
            running: BTreeSet::new(),
            workers: BTreeMap::new(),
            there: BTreeMap::new(),
            slots_max: 0,
            cancelled: None,
            batches: Vec::new(),
            work: Duration::ZERO,
            ended: 0,
            span: None,
            first_result: None,
            expected_open: Duration::ZERO,
            unknown_open: 0,
            finished: None,
        }
    }

    /// Takes in the next event.
    ///
    /// # Panics
    ///
    /// If a planned test gets no verdict before [`RunEvent::Finished`], or two, or if an event
    /// names a test that was never planned: see [`Summary::open`].
    pub fn apply(&mut self, event: &RunEvent) {
        match event {
            RunEvent::Started(started) => self.started = Some(RunStarted::clone(started)),
            RunEvent::Built { elapsed } => self.built = Some(*elapsed),
            RunEvent::Planned { test, case, triple, expected } => {
                self.plan_test(*test, case, triple, *expected);
            }
            RunEvent::Skipped { .. } => {
                self.counts.skipped += 1;
                self.left_out += 1;
            }
            RunEvent::PlanComplete(plan) => self.plan = Some(plan.clone()),
            RunEvent::WorkerJoined(info) => {
                self.workers.insert(info.id, idle(info));
                self.there.insert(info.id, info.slots);
                self.slots_max = self.slots_max.max(self.slots());
            }
            RunEvent::WorkerLost { worker, .. } => _ = self.there.remove(worker),
            RunEvent::Step { worker, step, took } => {
                if let Some(done) = self.workers.get_mut(worker) {
                    done.steps.push((*step, *took));
                }
            }
            RunEvent::Shipped { worker, bytes, .. } => {
                if let Some(done) = self.workers.get_mut(worker) {
                    done.shipped_bytes += bytes;
                }
            }
            RunEvent::AttemptStarted { test, .. } | RunEvent::AttemptGoesOn { test, .. } => {
                self.running.insert(*test);
            }
            RunEvent::AttemptSlow { test, .. } => self.test_mut(*test).slow = true,
            RunEvent::Hedged { test, .. } => self.test_mut(*test).hedged = true,
            RunEvent::AttemptEnded(ended) => self.end_attempt(ended),
            RunEvent::BatchEnded(batch) => self.end_batch(batch),
            RunEvent::RunsAgainAlone { test } => {
                self.test_mut(*test).again_alone = true;
                self.running.remove(test);
            }
            RunEvent::Verdict { test, verdict } => self.close_test(*test, *verdict),
            RunEvent::Cancelling { reason, .. } => {
                self.cancelled.get_or_insert(*reason);
            }
            RunEvent::Finished(finished) => self.finish(finished),
            RunEvent::WorkerUnusable { .. }
            | RunEvent::StaysLocal
            | RunEvent::WorkerResumed { .. }
            | RunEvent::LiveOutput { .. }
            | RunEvent::Collected { .. }
            | RunEvent::Warning { .. } => {}
        }
        assert_eq!(self.counts.tests(), self.done + self.left_out, "verdicts don't add up");
    }

    /// Who runs what; none before the first event.
    pub fn started(&self) -> Option<&RunStarted> {
        self.started.as_ref()
    }

    /// How long cargo took; none before it has linked everything.
    pub fn built(&self) -> Option<Duration> {
        self.built
    }

    /// What will be done; none while test cases may still appear.
    pub fn plan(&self) -> Option<&PlanComplete> {
        self.plan.as_ref()
    }

    /// How the run ended; none before the last event.
    pub fn finished(&self) -> Option<&RunFinished> {
        self.finished.as_ref()
    }

    /// The planned test cases, in the order of their numbers.
    pub fn tests(&self) -> &[TestState] {
        &self.tests
    }

    /// One planned test case.
    ///
    /// # Panics
    ///
    /// If it was never planned.
    pub fn test(&self, test: TestIndex) -> &TestState {
        &self.tests[test.0 as usize]
    }

    /// Test cases by verdict.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Planned test cases that have their verdict.
    pub fn done(&self) -> u32 {
        self.done
    }

    /// Planned test cases of which some attempt came to an end of its own.
    pub fn ran(&self) -> usize {
        self.tests.iter().filter(|test| test.ran()).count()
    }

    /// Planned test cases that still lack a verdict. Whoever ends a run early gives each of them
    /// one ([`Verdict::Lost`]) before [`RunEvent::Finished`].
    pub fn open(&self) -> impl Iterator<Item = TestIndex> {
        let open = |(_, test): &(usize, &TestState)| test.verdict.is_none();
        self.tests.iter().enumerate().filter(open).map(|(index, _)| TestIndex(index as u32))
    }

    /// Whether a test never ran because the run was cancelled.
    pub fn not_run(&self, test: &TestState) -> bool {
        // What waited on a worker when the run was cancelled was lost there, but never ran. Whoever got
        // its verdict before that, and with it a place, was lost for good.
        let nothing = test.attempts.iter().all(|attempt| attempt.duration.is_zero());
        let late = self.cancelled.is_some() && test.place == 0;
        test.verdict == Some(Verdict::Lost) && !test.ran() && nothing && late
    }

    /// Batches that have ended.
    pub fn batches(&self) -> &[Arc<BatchEnded>] {
        &self.batches
    }

    /// Test cases that were in a batch.
    pub fn batched(&self) -> u32 {
        self.tests.iter().filter(|test| test.batched).count() as u32
    }

    /// Test cases that were in a batch and ran again alone.
    pub fn rerun_alone(&self) -> u32 {
        self.tests.iter().filter(|test| test.again_alone).count() as u32
    }

    /// Tests that were started once more while an attempt of theirs was overdue.
    pub fn hedged(&self) -> u32 {
        self.tests.iter().filter(|test| test.hedged).count() as u32
    }

    /// Test cases of which an attempt runs now.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Why no more tests are started: the first reason.
    pub fn cancelled(&self) -> Option<CancelReason> {
        self.cancelled
    }

    /// The workers that joined, and what they did so far, by number.
    pub fn workers(&self) -> impl ExactSizeIterator<Item = &WorkerDone> {
        self.workers.values()
    }

    /// A worker's name; its number if it never joined.
    pub fn worker_name(&self, worker: WorkerId) -> String {
        let known = self.workers.get(&worker);
        known.map_or_else(|| format!("worker {}", worker.0), |done| done.info.name.clone())
    }

    /// Tests that can run at once: at least 1.
    pub fn slots(&self) -> u32 {
        self.usable(self.there.values().fold(0, |sum: u32, slots| sum.saturating_add(*slots)))
    }

    fn usable(&self, slots: u32) -> u32 {
        slots.min(self.settings.test_threads.unwrap_or(u32::MAX)).max(1)
    }

    /// A flaky test counts as a failure.
    pub fn flaky_fails(&self) -> bool {
        self.settings.flaky_fails
    }

    /// Attempts that a failing test gets at most.
    pub fn tries(&self) -> u32 {
        self.settings.retries.saturating_add(1)
    }

    /// Whether a verdict makes the run fail.
    pub fn is_failure(&self, verdict: Verdict) -> bool {
        match verdict {
            Verdict::Fail | Verdict::Timeout | Verdict::Crashed | Verdict::Lost => true,
            Verdict::Flaky => self.settings.flaky_fails,
            Verdict::Pass | Verdict::Skipped => false,
        }
    }

    /// What the tests make of the exit code: [`ExitCode::TestsFailed`] or [`ExitCode::Passed`].
    pub fn exit_code(&self) -> ExitCode {
        let Counts { passed: _, failed, flaky, timed_out, crashed, skipped: _, lost } = self.counts;
        let flaky = if self.settings.flaky_fails { flaky } else { 0 };
        if failed + flaky + timed_out + crashed + lost > 0 {
            ExitCode::TestsFailed
        } else {
            ExitCode::Passed
        }
    }

    /// The test that took longest, with all its attempts; the first of several.
    pub fn longest(&self) -> Option<(&TestCase, Duration)> {
        let mut longest: Option<(&TestCase, Duration)> = None;
        for test in self.tests.iter().filter(|test| test.ran()) {
            let duration = test.duration();
            if longest.is_none_or(|(_, most)| duration > most) {
                longest = Some((&test.case, duration));
            }
        }
        longest
    }

    /// What the tests could not take less than: max(total work / slots, longest test).
    pub fn bound(&self) -> Bound {
        let slots = self.usable(self.slots_max);
        let work = self.work / slots;
        match self.longest() {
            Some((case, duration)) if duration >= work => Bound::Longest(case.clone(), duration),
            _ => Bound::Work(work, slots),
        }
    }

    /// How long the open tests will take, from what history expects and what was measured.
    pub fn remaining(&self) -> Option<Duration> {
        let unknown = match (self.unknown_open, self.ended) {
            (0, _) => Duration::ZERO,
            (_, 0) => return None,
            (open, ended) => self.work / ended * open,
        };
        Some((self.expected_open + unknown) / self.slots())
    }

    /// The run's last event, from all that came before it.
    pub fn ending(&self, ending: Ending) -> RunFinished {
        let shipped = self.workers.values().any(|done| done.shipped_bytes > 0);
        let ship = match (shipped, self.span, ending.built_at) {
            (true, Some(span), Some(built_at)) => span.from.saturating_sub(built_at),
            _ => Duration::ZERO,
        };
        // Whatever ended a run before it had built all: until then it was building.
        let unbuilt = match self.cancelled.is_some() && self.span.is_none() {
            true => ending.elapsed,
            false => Duration::ZERO,
        };
        RunFinished {
            exit_code: ending.exit_code.number(),
            elapsed: ending.elapsed,
            build: self.built.unwrap_or(unbuilt),
            ship,
            first_result: self.first_result,
            testing: self.span.map_or(Duration::ZERO, |span| span.to - span.from),
            bound: self.bound().duration(),
            longest: self.longest().map(|(case, duration)| (case.clone(), duration)),
            listed: self.plan.as_ref().map_or(0, |plan| plan.listed),
            failed_early: ending.failed_early,
            workers: self.workers.values().cloned().collect(),
        }
    }

    fn plan_test(
        &mut self,
        index: TestIndex,
        case: &TestCase,
        triple: &Triple,
        expected: Option<Duration>,
    ) {
        assert_eq!(index.0 as usize, self.tests.len(), "{case} was planned out of turn");
        match expected {
            Some(expected) => self.expected_open += expected,
            None => self.unknown_open += 1,
        }
        self.tests.push(TestState {
            case: case.clone(),
            triple: triple.clone(),
            expected,
            attempts: Vec::new(),
            batched: false,
            again_alone: false,
            trouble_in_company: false,
            only_in_company: false,
            slow: false,
            hedged: false,
            verdict: None,
            place: 0,
        });
    }

    fn end_attempt(&mut self, ended: &Arc<AttemptEnded>) {
        self.running.remove(&ended.test);
        let lost = ended.result == AttemptResult::Lost;
        if let Some(done) = self.workers.get_mut(&ended.worker) {
            done.busy += ended.duration;
            done.tests += u32::from(!lost);
        }
        if !lost {
            self.work += ended.duration;
            self.ended += 1;
            let end = ended.started + ended.duration;
            self.first_result = Some(self.first_result.map_or(end, |first| first.min(end)));
        }
        // Time in which tests ran is that, also where nothing came of it.
        if !lost || !ended.duration.is_zero() {
            let end = ended.started + ended.duration;
            let span = self.span.get_or_insert(Span { from: ended.started, to: end });
            *span = Span { from: span.from.min(ended.started), to: span.to.max(end) };
        }
        let keep_passes = self.settings.keep_passes;
        let test = self.test_mut(ended.test);
        // Whoever failed in company and passed alone is to be seen both ways.
        let keep = keep_passes || !ended.result.passed() || test.failed_in_company();
        test.only_in_company |= ended.only_in_company;
        test.attempts.push(Attempt {
            batch: ended.batch,
            printed: ended.stdout.total + ended.stderr.total,
            orderly: ended.orderly,
            number: ended.attempt,
            worker: ended.worker,
            result: ended.result,
            started: ended.started,
            duration: ended.duration,
            full: keep.then(|| Arc::clone(ended)),
        });
    }

    fn end_batch(&mut self, batch: &Arc<BatchEnded>) {
        for test in &batch.tests {
            self.test_mut(*test).batched = true;
        }
        for test in &batch.trouble {
            self.test_mut(*test).trouble_in_company = true;
        }
        self.batches.push(Arc::clone(batch));
    }

    fn close_test(&mut self, index: TestIndex, verdict: Verdict) {
        self.done += 1;
        let test = self.test_mut(index);
        let before = test.verdict.replace(verdict);
        assert_eq!(before, None, "{} got a second verdict, {verdict}", test.case);
        // Who never ran is told of in one sum.
        if verdict != Verdict::Skipped && !self.not_run(self.test(index)) {
            self.placed += 1;
            self.test_mut(index).place = self.placed;
        }
        match self.test(index).expected {
            Some(expected) => self.expected_open -= expected,
            None => self.unknown_open -= 1,
        }
        *self.counts.of(verdict) += 1;
    }

    fn finish(&mut self, finished: &RunFinished) {
        if let Some(open) = self.open().next() {
            panic!("{} got no verdict before the run's end", self.test(open).case);
        }
        self.finished = Some(finished.clone());
    }

    fn test_mut(&mut self, test: TestIndex) -> &mut TestState {
        self.tests.get_mut(test.0 as usize).unwrap_or_else(|| panic!("{test:?} was never planned"))
    }
}

impl Bound {
    /// How long.
    pub fn duration(&self) -> Duration {
        match self {
            Self::Longest(_, duration) | Self::Work(duration, _) => *duration,
        }
    }
}

fn idle(info: &Arc<WorkerInfo>) -> WorkerDone {
    WorkerDone {
        info: Arc::clone(info),
        tests: 0,
        busy: Duration::ZERO,
        shipped_bytes: 0,
        steps: Vec::new(),
    }
}

#[cfg(test)]
pub(crate) mod script;
#[cfg(test)]
mod tests;
