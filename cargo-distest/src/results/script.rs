//! Scripted runs, for the tests of whatever takes events in.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use distest_worker::protocol::{Exit, Leak, Usage};

use crate::event::*;
use crate::failure::ExitCode;
use crate::model::*;
use crate::results::{Ending, Summary, SummarySettings};

pub(crate) fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(crate) fn output(text: impl Into<Bytes>) -> CapturedOutput {
    let head = text.into();
    CapturedOutput { total: head.len() as u64, head, ..Default::default() }
}

/// A run in the making: events, and the summary of them.
pub(crate) struct Script {
    pub(crate) events: Vec<RunEvent>,
    pub(crate) summary: Summary,
    pub(crate) settings: SummarySettings,
    pub(crate) now: Duration,
    tests: u32,
    skipped: u32,
}

impl Script {
    /// Started, with these workers.
    pub(crate) fn new(settings: SummarySettings, workers: &[&str]) -> Self {
        let mut script = Self {
            events: Vec::new(),
            summary: Summary::new(settings),
            settings,
            now: Duration::ZERO,
            tests: 0,
            skipped: 0,
        };
        script.push(RunEvent::Started(Box::new(RunStarted {
            run: "20261122T101500Z-1a2b3c4d".to_owned(),
            version: "0.1.0",
            at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_342_500),
            workspace: PathBuf::from("/w"),
            profile: "default".to_owned(),
        })));
        for (id, name) in workers.iter().enumerate() {
            let embedded = *name == "local";
            script.push(RunEvent::WorkerJoined(Arc::new(WorkerInfo {
                id: WorkerId(id as u32),
                name: (*name).to_owned(),
                address: if embedded { String::new() } else { format!("tcp://{name}:7000") },
                slots: 2,
                embedded,
            })));
        }
        script
    }

    pub(crate) fn push(&mut self, event: RunEvent) {
        self.summary.apply(&event);
        self.events.push(event);
    }

    pub(crate) fn built(&mut self) {
        self.now += millis(2000);
        self.push(RunEvent::Built { elapsed: self.now });
    }

    pub(crate) fn plan(&mut self, binary: &str, name: &str, expected: Option<u64>) -> TestIndex {
        let test = TestIndex(self.tests);
        self.tests += 1;
        self.push(RunEvent::Planned {
            test,
            case: case(binary, name),
            triple: triple(),
            expected: expected.map(millis),
        });
        test
    }

    pub(crate) fn skip(&mut self, binary: &str, name: &str) {
        self.skipped += 1;
        let (case, reason) = (case(binary, name), SkipReason::Ignored);
        self.push(RunEvent::Skipped { case, triple: triple(), reason });
    }

    pub(crate) fn planned(&mut self) {
        self.push(RunEvent::PlanComplete(PlanComplete {
            tests: self.tests,
            skipped: self.skipped,
            binaries: 2,
            listed: 2,
        }));
    }

    /// An attempt from start to end, that took this long.
    pub(crate) fn attempt(
        &mut self,
        test: TestIndex,
        result: AttemptResult,
        took: u64,
        change: impl FnOnce(&mut AttemptEnded),
    ) {
        let attempt = self.summary.test(test).last().map_or(1, |last| last.number + 1);
        let case = self.summary.test(test).case.clone();
        let (reason, exit) = match result {
            AttemptResult::Pass | AttemptResult::Leak => ("", Some(Exit::Code(0))),
            AttemptResult::Fail => ("exited with code 101", Some(Exit::Code(101))),
            AttemptResult::Timeout => ("timed out after 1s", Some(Exit::Signal(15))),
            AttemptResult::Crashed => ("signal 11 (SIGSEGV)", Some(Exit::Signal(11))),
            AttemptResult::Lost => ("its worker was lost", None),
        };
        let mut ended = AttemptEnded {
            test,
            attempt,
            will_retry: false,
            worker: WorkerId(0),
            result,
            reason: reason.to_owned(),
            exit,
            started: self.now,
            duration: millis(took),
            leak: None,
            usage: Usage::default(),
            stdout: CapturedOutput::default(),
            stderr: CapturedOutput::default(),
            reproduce: format!("cd /w && target/debug/deps/x-1 --exact {}", case.name),
            hints: Vec::new(),
            batch: None,
            reproduce_batch: None,
            only_in_company: false,
            orderly: true,
        };
        change(&mut ended);
        let worker = ended.worker;
        self.push(RunEvent::AttemptStarted { test, attempt, worker });
        self.now += ended.duration;
        self.push(RunEvent::AttemptEnded(Arc::new(ended)));
    }

    pub(crate) fn verdict(&mut self, test: TestIndex, verdict: Verdict) {
        self.push(RunEvent::Verdict { test, verdict });
    }

    pub(crate) fn finish(&mut self, exit_code: ExitCode, failed_early: bool) {
        let built_at = self.summary.built();
        let ending = Ending { exit_code, elapsed: self.now, built_at, failed_early };
        self.push(RunEvent::Finished(Box::new(self.summary.ending(ending))));
    }
}

pub(crate) fn case(binary: &str, name: &str) -> TestCase {
    TestCase { binary: BinaryId::new(binary), name: TestName::new(name) }
}

fn triple() -> Triple {
    Triple::new("x86_64-unknown-linux-gnu")
}

/// Two workers, every verdict, retries, a leak, a slow test, a lost worker.
pub(crate) fn every_verdict(settings: SummarySettings) -> Script {
    let mut s = Script::new(SummarySettings { retries: 1, ..settings }, &["local", "w2"]);
    s.push(RunEvent::WorkerUnusable {
        address: "tcp://gone:1".to_owned(),
        reason: "connection refused".to_owned(),
        hint: Some("start it with distest-worker serve".to_owned()),
    });
    s.skip("basic", "tests::ignored");
    let [ok, bad, seg] =
        ["tests::ok", "tests::bad", "tests::seg"].map(|name| s.plan("basic", name, Some(10)));
    s.built();
    let [hang, leak, flaky, moved, gone] =
        ["hang", "leak", "flaky", "moved", "gone"].map(|name| s.plan("basic::it", name, None));
    s.push(RunEvent::Shipped { worker: WorkerId(1), bytes: 4000, blobs: 2 });
    s.attempt(ok, AttemptResult::Pass, 4, |ended| ended.stdout = output("never shown\n"));
    s.verdict(ok, Verdict::Pass);
    s.planned();
    s.attempt(bad, AttemptResult::Fail, 111, |ended| {
        ended.will_retry = true;
        ended.stderr = output("first try\n");
    });
    s.attempt(bad, AttemptResult::Fail, 12, |ended| {
        ended.stdout = output("\nrunning 1 test\nout\x1b[31mred\x1b[0m ]]> <&\n");
        ended.stderr =
            output("\nthread 'tests::bad' (12) panicked at src/lib.rs:3:77:\nboom\0 no newline");
    });
    s.verdict(bad, Verdict::Fail);
    s.attempt(seg, AttemptResult::Crashed, 6, |ended| {
        ended.worker = WorkerId(1);
        ended.stdout = CapturedOutput {
            head: "start\n".into(),
            tail: "end\n".into(),
            total: 199_000_010,
            spill: Some(PathBuf::from("/tmp/run/1.out")),
        };
    });
    s.verdict(seg, Verdict::Crashed);
    s.push(RunEvent::AttemptSlow {
        test: hang,
        attempt: 1,
        worker: WorkerId(0),
        elapsed: millis(500),
    });
    s.attempt(hang, AttemptResult::Timeout, 1004, |_| {});
    s.verdict(hang, Verdict::Timeout);
    s.attempt(leak, AttemptResult::Leak, 208, |ended| {
        let processes = vec!["sleep (pid 4711)".to_owned()];
        ended.leak = Some(Leak { processes, output_open: false });
    });
    s.verdict(leak, Verdict::Pass);
    s.attempt(flaky, AttemptResult::Fail, 8, |ended| {
        ended.will_retry = true;
        ended.stdout = output("it was the first time\n");
    });
    s.attempt(flaky, AttemptResult::Pass, 7, |_| {});
    s.verdict(flaky, Verdict::Flaky);
    let lost = |ended: &mut AttemptEnded| {
        ended.worker = WorkerId(1);
        ended.duration = Duration::ZERO;
    };
    s.push(RunEvent::WorkerLost {
        worker: WorkerId(1),
        reason: "silent for 4.5 s".to_owned(),
        running: 2,
        waiting: 1,
    });
    s.attempt(moved, AttemptResult::Lost, 0, lost);
    s.attempt(moved, AttemptResult::Pass, 5, |_| {});
    s.verdict(moved, Verdict::Pass);
    s.attempt(gone, AttemptResult::Lost, 0, lost);
    s.verdict(gone, Verdict::Lost);
    s.push(RunEvent::Warning { text: "the disk is nearly full".to_owned(), hint: None });
    s.finish(ExitCode::TestsFailed, false);
    s
}
