//! One JSON object a line on stdout: the lines that CLI.md promises to scripts, and nothing else.
//!
//! Readers ignore fields that they don't know; fields are only ever added.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use serde::Serialize;

use super::{Reporter, Screen};
use crate::event::{AttemptEnded, RunEvent, RunFinished};
use crate::failure::Failure;
use crate::model::{AttemptResult, BinaryId, TestCase, TestName, Triple, Verdict};
use crate::results::Summary;

/// The version of the lines' meaning. Raised when a reader of the old ones would be misled.
pub const SCHEMA: u32 = 1;

/// Prints the lines of a run.
pub struct Json {
    screen: Rc<dyn Screen>,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Line<'a> {
    Start { schema: u32, run: &'a str, version: &'a str },
    Test(TestLine<'a>),
    Verdict { binary_id: &'a BinaryId, name: &'a TestName, verdict: Verdict },
    Summary(SummaryLine<'a>),
}

#[derive(Serialize)]
struct TestLine<'a> {
    binary_id: &'a BinaryId,
    name: &'a TestName,
    target: &'a Triple,
    attempt: u32,
    result: AttemptResult,
    reason: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    hints: &'a [String],
    worker: String,
    isolation: &'static str,
    /// The number of the batch within the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    batch: Option<u32>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    only_in_company: bool,
    duration_s: f64,
}

#[derive(Serialize)]
struct SummaryLine<'a> {
    exit_code: u8,
    tests: u32,
    passed: u32,
    failed: u32,
    flaky: u32,
    timed_out: u32,
    crashed: u32,
    skipped: u32,
    lost: u32,
    batched: u32,
    rerun_alone: u32,
    hedged: u32,
    elapsed_s: f64,
    build_s: f64,
    ship_s: f64,
    first_result_s: f64,
    bound_s: f64,
    longest_test_s: f64,
    listed: u32,
    shipped_bytes: u64,
    workers: Vec<WorkerLine<'a>>,
}

#[derive(Serialize)]
struct WorkerLine<'a> {
    name: &'a str,
    slots: u32,
    tests: u32,
    busy_s: f64,
    shipped_bytes: u64,
    /// Time to its first result, by step.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    start_s: BTreeMap<&'static str, f64>,
}

impl Json {
    /// Prints to the screen's stdout.
    pub fn new(screen: Rc<dyn Screen>) -> Self {
        Self { screen }
    }

    fn print(&self, line: &Line<'_>) {
        // Strings and numbers always serialize: a failure here would be a bug of this module.
        if let Ok(text) = serde_json::to_string(line) {
            self.screen.stdout_line(&text);
        }
    }

    fn verdict(&self, case: &TestCase, verdict: Verdict) {
        self.print(&Line::Verdict { binary_id: &case.binary, name: &case.name, verdict });
    }
}

impl Reporter for Json {
    fn event(&mut self, event: &RunEvent, summary: &Summary) {
        match event {
            RunEvent::Started(started) => {
                let (run, version) = (started.run.as_str(), started.version);
                self.print(&Line::Start { schema: SCHEMA, run, version });
            }
            RunEvent::Skipped { case, .. } => self.verdict(case, Verdict::Skipped),
            RunEvent::AttemptEnded(ended) => self.print(&Line::Test(test_line(ended, summary))),
            RunEvent::Verdict { test, verdict } => {
                self.verdict(&summary.test(*test).case, *verdict);
            }
            RunEvent::Finished(finished) => {
                self.print(&Line::Summary(summary_line(finished, summary)));
            }
            RunEvent::Built { .. }
            | RunEvent::Planned { .. }
            | RunEvent::PlanComplete(_)
            | RunEvent::WorkerJoined(_)
            | RunEvent::Step { .. }
            | RunEvent::WorkerUnusable { .. }
            | RunEvent::WorkerResumed { .. }
            | RunEvent::WorkerLost { .. }
            | RunEvent::Shipped { .. }
            | RunEvent::AttemptStarted { .. }
            | RunEvent::AttemptSlow { .. }
            | RunEvent::Hedged { .. }
            | RunEvent::AttemptGoesOn { .. }
            | RunEvent::StaysLocal
            | RunEvent::LiveOutput { .. }
            | RunEvent::BatchEnded(_)
            | RunEvent::RunsAgainAlone { .. }
            | RunEvent::Cancelling { .. }
            | RunEvent::Collected { .. }
            | RunEvent::Warning { .. } => {}
        }
    }

    fn pause(&mut self, _summary: &Summary) {
        self.screen.flush();
    }

    fn finish(&mut self, _summary: &Summary) -> Result<(), Failure> {
        Ok(())
    }
}

fn test_line<'a>(ended: &'a AttemptEnded, summary: &'a Summary) -> TestLine<'a> {
    let test = summary.test(ended.test);
    TestLine {
        binary_id: &test.case.binary,
        name: &test.case.name,
        target: &test.triple,
        attempt: ended.attempt,
        result: ended.result,
        reason: &ended.reason,
        hints: &ended.hints,
        worker: summary.worker_name(ended.worker),
        isolation: if ended.batch.is_some() { "batch" } else { "process" },
        batch: ended.batch,
        only_in_company: ended.only_in_company,
        duration_s: seconds(ended.duration),
    }
}

fn summary_line<'a>(finished: &'a RunFinished, summary: &Summary) -> SummaryLine<'a> {
    let counts = summary.counts();
    let workers: Vec<_> = finished
        .workers
        .iter()
        .map(|done| WorkerLine {
            name: &done.info.name,
            slots: done.info.slots,
            tests: done.tests,
            busy_s: seconds(done.busy),
            shipped_bytes: done.shipped_bytes,
            start_s: done.steps.iter().map(|(step, took)| (step.name(), seconds(*took))).collect(),
        })
        .collect();
    SummaryLine {
        exit_code: finished.exit_code,
        tests: counts.tests(),
        passed: counts.passed,
        failed: counts.failed,
        flaky: counts.flaky,
        timed_out: counts.timed_out,
        crashed: counts.crashed,
        skipped: counts.skipped,
        lost: counts.lost,
        batched: summary.batched(),
        rerun_alone: summary.rerun_alone(),
        hedged: summary.hedged(),
        elapsed_s: seconds(finished.elapsed),
        build_s: seconds(finished.build),
        ship_s: seconds(finished.ship),
        first_result_s: seconds(finished.first_result.unwrap_or_default()),
        bound_s: seconds(finished.bound),
        longest_test_s: seconds(finished.longest.as_ref().map_or(Duration::ZERO, |l| l.1)),
        listed: finished.listed,
        shipped_bytes: workers.iter().map(|worker| worker.shipped_bytes).sum(),
        workers,
    }
}

/// Microseconds are as fine as anything here is measured.
fn seconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e6
}

#[cfg(test)]
mod tests;
