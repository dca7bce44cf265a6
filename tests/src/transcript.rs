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
    #[serde(default)]
    pub batch: Option<u32>,
    #[serde(default)]
    pub only_in_company: bool,
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
    #[serde(default)]
    pub hedged: u32,
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
    #[serde(default)]
    pub start_s: BTreeMap<String, f64>,
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

    /// A test's attempts, in the order of their ends.
    pub fn attempts_of(&self, case: &Case) -> Vec<&Attempt> {
        self.attempts.iter().filter(|attempt| attempt.is_of(case)).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    const START: &str = r#"{"type":"start","schema":1,"run":"r","version":"0.1.0","later":1}"#;

    fn attempt(result: &str) -> String {
        format!(
            r#"{{"type":"test","binary_id":"b","name":"n","target":"t","attempt":1,"result":"{result}",
            "reason":"why","worker":"local","isolation":"process","duration_s":0.1}}"#
        )
    }

    fn verdict(verdict: &str) -> String {
        format!(r#"{{"type":"verdict","binary_id":"b","name":"n","verdict":"{verdict}"}}"#)
    }

    fn summary(passed: u32, failed: u32) -> String {
        let tests = passed + failed;
        format!(
            r#"{{"type":"summary","exit_code":0,"tests":{tests},"passed":{passed},"failed":{failed},
            "flaky":0,"timed_out":0,"crashed":0,"skipped":0,"lost":0,"batched":0,"rerun_alone":0,
            "elapsed_s":1,"build_s":0,"ship_s":0,"first_result_s":0,"bound_s":0,"longest_test_s":0,
            "listed":1,"shipped_bytes":0,"workers":[]}}"#
        )
    }

    fn check(lines: &[&str]) -> Result<Transcript, String> {
        let lines: Vec<Line> = lines.iter().map(|line| Line::parse(line).unwrap()).collect();
        Transcript::check(&lines)
    }

    #[test]
    fn accepts_a_run_in_order() {
        let told = check(&[START, &attempt("leak"), &verdict("pass"), &summary(1, 0)]).unwrap();
        assert_eq!(told.results(&Case::new("b", "n")), [AttemptResult::Leak]);
    }

    #[test]
    fn refuses_what_keeps_no_contract() {
        let (pass, passed, one) = (attempt("pass"), verdict("pass"), summary(1, 0));
        let refused = |lines: &[&str], why: &str| {
            let error = check(lines).unwrap_err();
            assert!(error.contains(why), "{error}");
        };
        refused(&[&pass, &passed, &one], "not from a start line");
        refused(&[START, &pass, &passed], "not from a start line");
        refused(&[START, &pass, &passed, &passed, &one], "two verdicts");
        refused(&[START, &pass, &one], "without verdict");
        refused(&[START, &attempt("fail"), &passed, &one], "is Pass after [Fail]");
        refused(&[START, &passed, &one], "is Pass after []");
        refused(&[START, &pass, &passed, &summary(0, 1)], "the summary says");
        assert!(Line::parse(r#"{"type":"verdict","binary_id":"b"}"#).is_err());
        assert!(Line::parse("warning: not JSON").is_err());
    }
}
