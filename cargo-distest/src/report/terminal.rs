//! A run as people follow it on stderr, in nextest's manner.
//!
//! Until cargo has linked everything it owns the terminal: lines are held back, then shown in
//! order; if the build fails, cargo's message is all there is to see. Results wait for the line
//! that says how many tests there are. Meaning never depends on colour.

mod ending;
mod gate;
mod line;
mod output;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use distest_worker::protocol::{Exit, Stream};

use self::gate::Gate;
use self::line::{Line, Paint, Time, Tone, attempt_label, counter, verdict_label};
use super::text::{because, count};
use super::{Reporter, Screen};
use crate::event::{AttemptEnded, CancelReason, PlanComplete, RunEvent, RunFinished, WorkerInfo};
use crate::failure::{ExitCode, Failure};
use crate::model::{AttemptResult, Step, TestCase, TestIndex, Verdict, WorkerId};
use crate::results::{Summary, TestState};
use crate::settings::{MessageFormat, OutputWhen, ReportSettings, ShowProgress, StatusLevel};
use distest_worker::shown;

/// Shows a run on the terminal, or on whatever stderr is.
pub struct Terminal {
    screen: Rc<dyn Screen>,
    settings: ReportSettings,
    paint: Paint,
    gate: Gate,
    /// How the last attempt of a test without verdict ended.
    ended: BTreeMap<TestIndex, Arc<AttemptEnded>>,
    /// Skipped tests, kept if they are shown at the end.
    skipped: Vec<TestCase>,
    /// The test whose output is being shown live.
    live: Option<TestIndex>,
    /// Live output stopped in the middle of a line.
    mid_line: bool,
}

impl Terminal {
    /// Shows what the settings ask for; beside JSON lines only warnings.
    pub fn new(settings: &ReportSettings, screen: Rc<dyn Screen>) -> Self {
        Self {
            paint: Paint { colors: screen.colors() },
            settings: settings.clone(),
            gate: Gate::new(Rc::clone(&screen)),
            screen,
            ended: BTreeMap::new(),
            skipped: Vec::new(),
            live: None,
            mid_line: false,
        }
    }

    fn results(&mut self, event: &RunEvent, summary: &Summary) {
        match event {
            RunEvent::PlanComplete(plan) => self.plan_complete(plan, summary),
            RunEvent::WorkerJoined(info) => self.joined(info),
            RunEvent::Step { worker, step: Step::Test, .. } if self.settings.verbose => {
                self.at_work(*worker, summary);
            }
            RunEvent::WorkerResumed { worker, reason, after } if self.settings.verbose => {
                self.resumed(*worker, reason, *after, summary);
            }
            RunEvent::Skipped { case, .. } => {
                if self.settings.status_level >= StatusLevel::Skip {
                    self.gate.result(skip_line(self.paint, summary, case));
                }
                if self.settings.final_status_level >= StatusLevel::Skip {
                    self.skipped.push(case.clone());
                }
            }
            RunEvent::AttemptStarted { test, .. } | RunEvent::AttemptGoesOn { test, .. } => {
                self.runs_again(*test, summary);
            }
            RunEvent::AttemptSlow { test, attempt, worker, elapsed } => {
                if self.settings.status_level >= StatusLevel::Slow {
                    let label =
                        if *attempt > 1 { format!("TRY {attempt} SLOW") } else { "SLOW".into() };
                    let time = Time::Over(*elapsed);
                    self.status((label, Tone::Odd), time, 0, *test, Some(*worker), summary);
                }
            }
            RunEvent::Hedged { test, worker, .. } => {
                if self.settings.status_level >= StatusLevel::Slow {
                    let label = ("HEDGED".to_owned(), Tone::Odd);
                    self.status(label, Time::None, 0, *test, Some(*worker), summary);
                }
            }
            RunEvent::StaysLocal => {
                let rest = "local: the run is over here before workers answer";
                self.gate.early(self.paint.labelled(Tone::Good, "Staying", rest));
            }
            RunEvent::LiveOutput { test, stream, data } => self.live(*test, *stream, data, summary),
            RunEvent::AttemptEnded(ended) => self.attempt_ended(ended, summary),
            RunEvent::Verdict { test, verdict } => self.verdict(*test, *verdict, summary),
            RunEvent::Cancelling { reason, running } => self.cancelling(*reason, *running),
            RunEvent::Collected { files } => self.collected(files, summary),
            RunEvent::Finished(finished) => self.finished(finished, summary),
            RunEvent::Started(_)
            | RunEvent::Built { .. }
            | RunEvent::Planned { .. }
            | RunEvent::Step { .. }
            | RunEvent::WorkerUnusable { .. }
            | RunEvent::WorkerResumed { .. }
            | RunEvent::WorkerLost { .. }
            | RunEvent::Shipped { .. }
            | RunEvent::BatchEnded(_)
            | RunEvent::RunsAgainAlone { .. }
            | RunEvent::Warning { .. } => {}
        }
    }

    fn plan_complete(&mut self, plan: &PlanComplete, summary: &Summary) {
        self.gate.early("────────────".to_owned());
        if let Some(started) = summary.started() {
            let rest = format!("{} with profile: {}", started.run, started.profile);
            self.gate.early(self.paint.labelled(Tone::Good, "Distest run", &rest));
        }
        let number = |number: u32| self.paint.put(Tone::Strong, &number.to_string());
        let skipped = match plan.skipped {
            0 => String::new(),
            1 => format!(" ({} test skipped)", number(1)),
            more => format!(" ({} tests skipped)", number(more)),
        };
        let tests = if plan.tests == 1 { "test" } else { "tests" };
        let binaries = if plan.binaries == 1 { "binary" } else { "binaries" };
        let (all, across) = (number(plan.tests), number(plan.binaries));
        let rest = format!("{all} {tests} across {across} {binaries}{skipped}");
        self.gate.early(self.paint.labelled(Tone::Good, "Starting", &rest));
        self.gate.planned();
    }

    /// `   Collected 2 files from workers: tests/snapshots/a.snap.new, b.profraw`
    fn collected(&mut self, files: &[PathBuf], summary: &Summary) {
        const SHOWN_MAX: usize = 5;
        let workspace = summary.started().map(|started| &started.workspace);
        let names = files.iter().take(SHOWN_MAX).map(|file| {
            let name = workspace.and_then(|root| file.strip_prefix(root).ok()).unwrap_or(file);
            shown::word(&name.to_string_lossy()).into_owned()
        });
        let more = if files.len() > SHOWN_MAX { ", …" } else { "" };
        let number = count(files.len(), "file", "files");
        let rest = format!("{number} from workers: {}{more}", names.collect::<Vec<_>>().join(", "));
        self.gate.result(self.paint.labelled(Tone::Good, "Collected", &rest));
    }

    fn joined(&mut self, info: &WorkerInfo) {
        if !info.embedded {
            let (name, slots) =
                (self.paint.put(Tone::Strong, &shown::word(&info.name)), info.slots as usize);
            let slots = count(slots, "slot", "slots");
            let rest = format!("{name} joined with {slots} ({})", shown::word(&info.address));
            self.gate.early(self.paint.labelled(Tone::Good, "Worker", &rest));
        }
    }

    /// `      Worker far had a first result after 1.203s: read 0.051s, connect 0.210s, …`
    fn at_work(&mut self, worker: WorkerId, summary: &Summary) {
        let Some(done) = summary.workers().find(|done| done.info.id == worker) else { return };
        let name = self.paint.put(Tone::Strong, &shown::word(&done.info.name));
        let time = |took: Duration| format!("{:.3}s", took.as_secs_f64());
        let all: Duration = done.steps.iter().map(|(_, took)| *took).sum();
        let steps =
            done.steps.iter().map(|(step, took)| format!("{} {}", step.name(), time(*took)));
        let steps: Vec<_> = steps.collect();
        let rest = format!("{name} had a first result after {}: {}", time(all), steps.join(", "));
        self.gate.result(self.paint.labelled(Tone::Good, "Worker", &rest));
    }

    fn resumed(&mut self, worker: WorkerId, reason: &str, after: Duration, summary: &Summary) {
        let Some(done) = summary.workers().find(|done| done.info.id == worker) else { return };
        let name = self.paint.put(Tone::Strong, &shown::word(&done.info.name));
        let (reason, took) = (shown::word(reason), after.as_secs_f64());
        let rest = format!("{name} is connected again after {took:.3}s ({reason})");
        self.gate.result(self.paint.labelled(Tone::Odd, "Resumed", &rest));
    }

    /// An attempt that was lost is worth a line only if its test runs again: else the verdict says it.
    fn runs_again(&mut self, test: TestIndex, summary: &Summary) {
        let Some(ended) = self.ended.get(&test).map(Arc::clone) else { return };
        if ended.result == AttemptResult::Lost && self.settings.status_level >= StatusLevel::Retry {
            let time = Time::Took(ended.duration);
            let label = (format!("TRY {} LOST", ended.attempt), Tone::Odd);
            self.status(label, time, 0, test, Some(ended.worker), summary);
            self.gate.result(format!("    ({}; runs again)", shown::word(&ended.reason)));
        }
        self.ended.remove(&test);
    }

    fn attempt_ended(&mut self, ended: &Arc<AttemptEnded>, summary: &Summary) {
        if ended.will_retry && self.settings.status_level >= StatusLevel::Retry {
            let label = attempt_label(ended.result, ended.exit, Some(ended.attempt));
            let time = Time::Took(ended.duration);
            self.status(label, time, 0, ended.test, Some(ended.worker), summary);
            if is_immediate(self.settings.failure_output) {
                self.output(ended, summary);
            }
        }
        self.ended.insert(ended.test, Arc::clone(ended));
    }

    fn verdict(&mut self, index: TestIndex, verdict: Verdict, summary: &Summary) {
        let ended = self.ended.remove(&index);
        let test = summary.test(index);
        if summary.not_run(test) {
            return;
        }
        let failed = summary.is_failure(verdict);
        // Whoever is shown that an attempt failed is also shown that the next one passed.
        let tier = tier(test, verdict, failed).min(match verdict {
            Verdict::Flaky => StatusLevel::Retry,
            _ => StatusLevel::All,
        });
        let output =
            if failed { self.settings.failure_output } else { self.settings.success_output };
        // Whoever is shown how it failed in company is also shown how it passed alone.
        let output = is_immediate(output)
            || (test.failed_in_company() && is_immediate(self.settings.failure_output));
        if tier > self.settings.status_level && !output {
            return;
        }
        let label = verdict_label(verdict, test, ended.as_ref().and_then(|ended| ended.exit));
        let time = test.last().map_or(Time::None, |last| Time::Took(last.duration));
        let worker = test.last().map(|last| last.worker);
        self.status(label, time, test.place, index, worker, summary);
        let Some(ended) = ended else { return };
        if let Some(leak) = output::leak(&ended) {
            self.gate.result(leak);
        }
        if output {
            self.output(&ended, summary);
        }
    }

    fn live(&mut self, test: TestIndex, stream: Stream, data: &Bytes, summary: &Summary) {
        if self.live != Some(test) {
            self.status(("START".to_owned(), Tone::Good), Time::None, 0, test, None, summary);
            self.live = Some(test);
        }
        self.mid_line = !data.ends_with(b"\n");
        self.gate.raw(stream, data);
    }

    fn cancelling(&mut self, reason: CancelReason, running: u32) {
        let still = match running {
            0 => String::new(),
            running => format!(": {} still running", count(running as usize, "test", "tests")),
        };
        let rest = format!("due to {}{still}", self.paint.put(Tone::Bad, because(reason)));
        self.gate.result(self.paint.labelled(Tone::Bad, "Cancelling", &rest));
    }

    fn finished(&mut self, finished: &RunFinished, summary: &Summary) {
        // Nothing ran, and what was wrong is told elsewhere.
        if finished.failed_early && summary.ran() == 0 {
            return;
        }
        let (paint, settings) = (self.paint, &self.settings);
        let lines = ending::lines(paint, settings, summary, finished, &self.skipped);
        self.gate.result(lines.join("\n"));
    }

    fn output(&mut self, ended: &AttemptEnded, summary: &Summary) {
        let case = &summary.test(ended.test).case;
        // In one piece: around each the progress bar is taken away and drawn again.
        let lines = output::sections(self.paint, case, ended);
        if !lines.is_empty() {
            self.gate.result(lines.join("\n"));
        }
    }

    fn status(
        &mut self,
        (label, tone): (String, Tone),
        time: Time,
        place: u32,
        test: TestIndex,
        worker: Option<WorkerId>,
        summary: &Summary,
    ) {
        let line = self.paint.line(&Line {
            label,
            tone,
            time,
            counter: counter_if(&self.settings, || counter(summary, place)),
            case: &summary.test(test).case,
            worker: worker.and_then(|worker| worker_name(summary, worker)),
        });
        self.gate.result(line);
    }

    fn warning(&mut self, text: &str, hint: Option<&str>) {
        let (warning, text) = (self.paint.put(Tone::Odd, "warning"), shown::lines(text));
        self.gate.early(format!("{warning}: {text}"));
        if let Some(hint) = hint {
            let (label, hint) = (self.paint.put(Tone::Module, "hint"), shown::lines(hint));
            self.gate.early(format!("{label}: {hint}"));
        }
    }
}

impl Reporter for Terminal {
    fn event(&mut self, event: &RunEvent, summary: &Summary) {
        if self.mid_line && !matches!(event, RunEvent::LiveOutput { .. }) {
            // Only what is ours starts a new line: the test's stdout stays as it was written.
            let ours = matches!(event, RunEvent::AttemptEnded(_) | RunEvent::AttemptSlow { .. });
            if ours {
                self.gate.result(String::new());
                self.mid_line = false;
            }
        }
        match event {
            RunEvent::Built { .. } => {
                self.gate.built();
            }
            RunEvent::WorkerUnusable { address, reason, hint } => {
                self.warning(&format!("worker {address} can't be used: {reason}"), hint.as_deref());
            }
            RunEvent::WorkerLost { worker, reason, running, waiting } => {
                let running = count(*running as usize, "test", "tests");
                let waiting = match waiting {
                    0 => String::new(),
                    waiting => format!(" and {waiting} waiting"),
                };
                let name = summary.worker_name(*worker);
                let what = format!("{running} running{waiting}");
                self.warning(&format!("worker {name} was lost with {what}: {reason}"), None);
            }
            RunEvent::Warning { text, hint } => self.warning(text, hint.as_deref()),
            _ => {}
        }
        match (self.settings.format, event) {
            (MessageFormat::Human, _) => self.results(event, summary),
            // stdout belongs to the lines for programs.
            (MessageFormat::Json, RunEvent::LiveOutput { data, .. }) => {
                self.screen.raw(Stream::Stderr, data);
            }
            // No line for programs says why.
            (
                MessageFormat::Json,
                RunEvent::Cancelling { reason: CancelReason::GlobalTimeout, .. },
            ) => {
                let why = because(CancelReason::GlobalTimeout);
                self.warning(&format!("the run was cancelled due to {why}"), None);
            }
            (MessageFormat::Json, _) => {}
        }
        if let RunEvent::Finished(finished) = event {
            // After a failed build cargo's message stands alone.
            if finished.exit_code != ExitCode::BuildFailed.number() {
                self.gate.open();
            }
        }
    }

    fn pause(&mut self, _summary: &Summary) {
        self.gate.release();
    }

    fn finish(&mut self, _summary: &Summary) -> Result<(), Failure> {
        Ok(())
    }
}

/// The lowest status level that shows a test with this verdict.
fn tier(test: &TestState, verdict: Verdict, failed: bool) -> StatusLevel {
    match verdict {
        _ if failed => StatusLevel::Fail,
        Verdict::Skipped => StatusLevel::Skip,
        Verdict::Flaky => StatusLevel::Flaky,
        _ if test.slow => StatusLevel::Slow,
        _ if leaked(test) => StatusLevel::Leak,
        _ => StatusLevel::Pass,
    }
}

fn leaked(test: &TestState) -> bool {
    test.last().is_some_and(|last| last.result == AttemptResult::Leak)
}

fn exit_of(test: &TestState) -> Option<Exit> {
    test.last()?.full.as_ref()?.exit
}

fn is_immediate(when: OutputWhen) -> bool {
    matches!(when, OutputWhen::Immediate | OutputWhen::ImmediateFinal)
}

/// A worker's name, if there is more than one to tell apart.
fn worker_name(summary: &Summary, worker: WorkerId) -> Option<String> {
    (summary.workers().len() > 1).then(|| summary.worker_name(worker))
}

fn counter_if(settings: &ReportSettings, counter: impl FnOnce() -> String) -> String {
    if settings.progress == ShowProgress::None { String::new() } else { counter() }
}

fn skip_line(paint: Paint, summary: &Summary, case: &TestCase) -> String {
    paint.line(&Line {
        label: "SKIP".to_owned(),
        tone: Tone::Name,
        time: Time::None,
        counter: counter(summary, 0),
        case,
        worker: None,
    })
}

#[cfg(test)]
mod tests;
