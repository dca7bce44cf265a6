//! What a run says on stdout under `--message-format json`, checked line by line.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

/// A test case.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Case {
    /// Binary id.
    pub binary: String,
    /// Name in that binary.
    pub name: String,
}

/// The end of a test's story.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "they are the words of the contract")]
pub enum Verdict {
    Pass,
    Fail,
    Flaky,
    Timeout,
    Crashed,
    Skipped,
    Lost,
}

/// How one attempt ended.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "they are the words of the contract")]
pub enum AttemptResult {
    Pass,
    Fail,
    Timeout,
    Crashed,
    Leak,
    Lost,
}

/// One line.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Line {
    /// The first.
    Start(Start),
    /// An attempt has ended.
    Test(Attempt),
    /// A test's story has ended.
    Verdict(VerdictLine),
    /// The last.
    Summary(Box<Summary>),
    /// A kind that a later version added.
    #[serde(other)]
    Other,
}

/// The first line.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "they are the words of the contract")]
pub struct Start {
    pub schema: u32,
    pub run: String,
    pub version: String,
}

/// An attempt has ended.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "they are the words of the contract")]
pub struct Attempt {
    pub binary_id: String,
    pub name: String,
    pub target: String,
    pub attempt: u32,
    pub result: AttemptResult,
    pub reason: String,
    pub worker: String,
    pub isolation: Isolation,
    pub duration_s: f64,
}

/// How many tests a process runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "they are the words of the contract")]
pub enum Isolation {
    Process,
    Batch,
}

/// A test's story has ended.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "they are the words of the contract")]
pub struct VerdictLine {
    pub binary_id: String,
    pub name: String,
    pub verdict: Verdict,
}

/// The last line.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "they are the words of the contract")]
pub struct Summary {
    pub exit_code: i32,
    pub tests: u32,
    pub passed: u32,
    pub failed: u32,
    pub flaky: u32,
    pub timed_out: u32,
    pub crashed: u32,
    pub skipped: u32,
    pub lost: u32,
    pub batched: u32,
    pub rerun_alone: u32,
    pub elapsed_s: f64,
    pub build_s: f64,
    pub ship_s: f64,
    pub first_result_s: f64,
    pub bound_s: f64,
    pub longest_test_s: f64,
    pub listed: u32,
    pub shipped_bytes: u64,
    pub workers: Vec<WorkerSummary>,
}

/// What a worker did.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "they are the words of the contract")]
pub struct WorkerSummary {
    pub name: String,
    pub slots: u32,
    pub tests: u32,
    pub busy_s: f64,
    pub shipped_bytes: u64,
}

/// All that a run said.
#[derive(Clone, Debug)]
pub struct Transcript {
    /// The first line.
    pub start: Start,
    /// Attempts, in the order of their ends.
    pub attempts: Vec<Attempt>,
    /// What each test came to.
    pub verdicts: BTreeMap<Case, Verdict>,
    /// The last line.
    pub summary: Summary,
}

impl Line {
    /// Reads one line; says what is wrong with one that keeps no contract.
    pub fn parse(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map_err(|error| format!("{error} in line {text}"))
    }
}

impl Transcript {
    /// Reads all lines of a run that came to its end, and checks what must hold of every run.
    pub fn check(lines: &[Line]) -> Result<Self, String> {
        let [Line::Start(start), middle @ .., Line::Summary(summary)] = lines else {
            return Err(format!("not from a start line to a summary: {lines:?}"));
        };
        if start.schema != 1 || start.run.is_empty() || start.version.is_empty() {
            return Err(format!("odd start line: {start:?}"));
        }
        let mut attempts = Vec::new();
        let mut verdicts = BTreeMap::new();
        for line in middle {
            match line {
                Line::Start(_) | Line::Summary(_) => return Err(format!("out of place: {line:?}")),
                Line::Test(attempt) => attempts.push(attempt.clone()),
                Line::Verdict(VerdictLine { binary_id, name, verdict }) => {
                    let case = Case::new(binary_id, name);
                    if verdicts.insert(case.clone(), *verdict).is_some() {
                        return Err(format!("{case} has two verdicts"));
                    }
                }
                Line::Other => {}
            }
        }
        let (start, summary) = (start.clone(), summary.as_ref().clone());
        let transcript = Self { start, attempts, verdicts, summary };
        transcript.check_attempts()?;
        transcript.check_summary()?;
        Ok(transcript)
    }

    /// The results of a test's attempts, in order, without those that were lost.
    pub fn results(&self, case: &Case) -> Vec<AttemptResult> {
        let own = self.attempts.iter().filter(|attempt| attempt.is_of(case));
        own.map(|attempt| attempt.result).filter(|result| *result != AttemptResult::Lost).collect()
    }

    /// How many tests came to this.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.verdicts.values().filter(|found| **found == verdict).count()
    }

    fn check_attempts(&self) -> Result<(), String> {
        for attempt in &self.attempts {
            let Attempt { attempt: number, target, worker, duration_s, .. } = attempt;
            let odd = *number == 0 || target.is_empty() || worker.is_empty() || *duration_s < 0.0;
            if odd || (attempt.result == AttemptResult::Fail && attempt.reason.is_empty()) {
                return Err(format!("odd attempt: {attempt:?}"));
            }
            if !self.verdicts.contains_key(&Case::new(&attempt.binary_id, &attempt.name)) {
                return Err(format!("an attempt without verdict: {attempt:?}"));
            }
        }
        for (case, verdict) in &self.verdicts {
            let results = self.results(case);
            let explained = match (verdict, results.as_slice()) {
                (Verdict::Pass, [only]) => only.passed(),
                (Verdict::Flaky, [first, .., last]) => !first.passed() && last.passed(),
                (Verdict::Fail, [.., last]) => *last == AttemptResult::Fail,
                (Verdict::Timeout, [.., last]) => *last == AttemptResult::Timeout,
                (Verdict::Crashed, [.., last]) => *last == AttemptResult::Crashed,
                (Verdict::Skipped, results) => results.is_empty(),
                (Verdict::Lost, _) => true,
                _ => false,
            };
            if !explained {
                return Err(format!("{case} is {verdict:?} after {results:?}"));
            }
        }
        Ok(())
    }

    fn check_summary(&self) -> Result<(), String> {
        let summary = &self.summary;
        let counts = [
            (Verdict::Pass, summary.passed),
            (Verdict::Fail, summary.failed),
            (Verdict::Flaky, summary.flaky),
            (Verdict::Timeout, summary.timed_out),
            (Verdict::Crashed, summary.crashed),
            (Verdict::Skipped, summary.skipped),
            (Verdict::Lost, summary.lost),
        ];
        for (verdict, told) in counts {
            let counted = self.count(verdict);
            if counted != told as usize {
                return Err(format!("{counted} tests are {verdict:?}, the summary says {told}"));
            }
        }
        let sum: u32 = counts.iter().map(|(_, count)| count).sum();
        let shipped: u64 = summary.workers.iter().map(|worker| worker.shipped_bytes).sum();
        if summary.tests != sum || summary.shipped_bytes != shipped {
            return Err(format!("the summary's sums are wrong: {summary:?}"));
        }
        Ok(())
    }
}

impl Attempt {
    /// Whether it is one of this test's.
    pub fn is_of(&self, case: &Case) -> bool {
        self.binary_id == case.binary && self.name == case.name
    }
}

impl AttemptResult {
    /// Whether the test did what it should.
    pub fn passed(self) -> bool {
        matches!(self, Self::Pass | Self::Leak)
    }
}

impl Verdict {
    /// Whether it is red in a report.
    pub fn failed(self) -> bool {
        matches!(self, Self::Fail | Self::Timeout | Self::Crashed | Self::Lost)
    }
}

impl Case {
    /// From its two names.
    pub fn new(binary: &str, name: &str) -> Self {
        Self { binary: binary.to_owned(), name: name.to_owned() }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.binary, self.name)
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
