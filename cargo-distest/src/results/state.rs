//! One test case's story so far, and how many ended how. Pure.

use std::sync::Arc;
use std::time::Duration;

use crate::event::AttemptEnded;
use crate::model::{AttemptResult, TestCase, Triple, Verdict, WorkerId};

/// Test cases by verdict. Each test case is in exactly one of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of `Verdict`")]
pub struct Counts {
    pub passed: u32,
    pub failed: u32,
    pub flaky: u32,
    pub timed_out: u32,
    pub crashed: u32,
    pub skipped: u32,
    pub lost: u32,
}

/// A test case that was planned.
#[derive(Clone, Debug)]
pub struct TestState {
    /// What it is.
    pub case: TestCase,
    /// What it was built for.
    pub triple: Triple,
    /// What it was expected to take.
    pub expected: Option<Duration>,
    /// Attempts that ended or were lost, in the order in which they did.
    pub attempts: Vec<Attempt>,
    /// It was in a batch.
    pub batched: bool,
    /// It was in a batch and ran again alone.
    pub again_alone: bool,
    /// It failed in a batch, or has no verdict of it because it ended too early, or may be why.
    pub trouble_in_company: bool,
    /// It failed alone and passes in the batch into which it belongs.
    pub only_in_company: bool,
    /// Some attempt was told to be slow.
    pub slow: bool,
    /// Some attempt was overdue, and it was started once more.
    pub hedged: bool,
    /// Its verdict, when it has one.
    pub verdict: Option<Verdict>,
    /// Its place in the order of verdicts, from 1, of those that something happened to; 0 until it has
    /// one.
    pub place: u32,
}

/// An attempt that ended or was lost.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// From 1.
    pub number: u32,
    /// Where.
    pub worker: WorkerId,
    /// How it ended.
    pub result: AttemptResult,
    /// When it started, since the run's start.
    pub started: Duration,
    /// How long it ran.
    pub duration: Duration,
    /// The number of the batch that it was part of; none if it had a process of its own.
    pub batch: Option<u32>,
    /// Bytes that it wrote.
    pub printed: u64,
    /// Its process said last what libtest says last.
    pub orderly: bool,
    /// All of it, output included, where the settings ask for it.
    pub full: Option<Arc<AttemptEnded>>,
}

impl Counts {
    /// All test cases.
    pub fn tests(&self) -> u32 {
        self.not_skipped() + self.skipped
    }

    /// Test cases that were selected and have a verdict.
    pub fn not_skipped(&self) -> u32 {
        self.passed + self.failed + self.flaky + self.timed_out + self.crashed + self.lost
    }

    pub(super) fn of(&mut self, verdict: Verdict) -> &mut u32 {
        match verdict {
            Verdict::Pass => &mut self.passed,
            Verdict::Fail => &mut self.failed,
            Verdict::Flaky => &mut self.flaky,
            Verdict::Timeout => &mut self.timed_out,
            Verdict::Crashed => &mut self.crashed,
            Verdict::Skipped => &mut self.skipped,
            Verdict::Lost => &mut self.lost,
        }
    }
}

impl TestState {
    /// The attempt that decided, or the last one so far.
    pub fn last(&self) -> Option<&Attempt> {
        self.attempts.last()
    }

    /// An attempt in a batch failed.
    pub fn failed_in_company(&self) -> bool {
        let failed = |it: &Attempt| it.batch.is_some() && it.result == AttemptResult::Fail;
        self.attempts.iter().any(failed)
    }

    /// Some attempt came to an end that says something about the test.
    pub fn ran(&self) -> bool {
        self.attempts.iter().any(|attempt| attempt.result != AttemptResult::Lost)
    }

    /// Attempts that were lost.
    pub fn lost(&self) -> u32 {
        let lost = |attempt: &&Attempt| attempt.result == AttemptResult::Lost;
        self.attempts.iter().filter(lost).count() as u32
    }

    /// In how much time attempts of it ran, lost ones left out: one after the other, or, where it was hedged, two at
    /// once.
    pub fn duration(&self) -> Duration {
        let told = |attempt: &&Attempt| attempt.result != AttemptResult::Lost;
        let told = self.attempts.iter().filter(told);
        if !self.hedged {
            return told.map(|attempt| attempt.duration).sum();
        }
        let mut spans: Vec<_> = told.map(|it| (it.started, it.started + it.duration)).collect();
        spans.sort_unstable();
        let mut until = Duration::ZERO;
        let beyond = spans.into_iter().map(|(from, to)| {
            let more = to.saturating_sub(from.max(until));
            until = until.max(to);
            more
        });
        beyond.sum()
    }
}
